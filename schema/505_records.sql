-- 505_records.sql: what a record may say, and the row it becomes.

set role tracedb_owner;

create or replace function tracedb.record_types()
returns table (type text, table_name text, fields text[], required text[], defaults jsonb)
language sql immutable parallel safe
as $$
    values
    ('trace', 'execution_traces', array[
        'trace_id', 'root_trace_id', 'parent_trace_id', 'parent_span_id', 'external_id',
        'session_id', 'user_id', 'source', 'channel', 'message_type', 'name', 'intent', 'route',
        'agent_id', 'status', 'error_type', 'error_message', 'started_at', 'ended_at',
        'duration_ms', 'llm_calls', 'input_tokens', 'output_tokens', 'cost_usd',
        'docs_retrieved', 'doc_sources', 'research_triggered', 'kb_enrichment_triggered', 'tags',
        'context', 'prompt', 'response'
    ], array['started_at'], '{}'::pg_catalog.jsonb),
    ('routing_decision', 'agent_routing_decisions', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'selected_agent',
        'reason', 'trigger_confidence', 'context_confidence', 'capability_confidence',
        'historical_confidence', 'total_confidence', 'candidates', 'selection_probability',
        'cache_hit', 'pattern_id', 'request_embedding', 'embedding_model', 'status',
        'error_type', 'error_message', 'started_at', 'ended_at', 'duration_ms', 'attributes',
        'input', 'output'
    ], array['span_id', 'selected_agent', 'started_at'],
    '{"candidates": [], "cache_hit": false, "attributes": {}}'),
    ('hook', 'hook_executions', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'hook_type', 'tool_name',
        'script', 'intelligence_functions', 'quality_gates', 'modifications', 'outcome',
        'exit_code', 'status', 'error_type', 'error_message', 'started_at', 'ended_at',
        'duration_ms', 'attributes', 'input', 'output'
    ], array['span_id', 'hook_type', 'started_at'],
    '{"intelligence_functions": [], "quality_gates": {}, "modifications": {}, "attributes": {}}'),
    ('endpoint_call', 'endpoint_calls', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'service', 'method',
        'path', 'status_code', 'retries', 'request', 'response', 'hook_span_id', 'status',
        'error_type', 'error_message', 'started_at', 'ended_at', 'duration_ms', 'attributes',
        'input', 'output'
    ], array['span_id', 'service', 'started_at'], '{"retries": 0, "attributes": {}}'),
    ('span', 'llm_spans', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'operation_type',
        'status', 'error_type', 'status_message', 'started_at', 'ended_at', 'duration_us',
        'provider', 'request_model', 'response_model', 'input_tokens', 'output_tokens',
        'cache_read_tokens', 'cache_write_tokens', 'reasoning_tokens', 'cost_usd', 'agent_id',
        'tool_name', 'message_id', 'conversation_id', 'attributes', 'events', 'links', 'input',
        'output'
    ], array['span_id', 'operation_type', 'started_at'],
    '{"attributes": {}, "events": [], "links": []}'),
    ('payload', 'trace_payloads', array[
        'trace_id', 'external_id', 'span_id', 'kind', 'content', 'content_type', 'recorded_at'
    ], array['kind', 'content', 'recorded_at'], '{"span_id": "0000000000000000"}'),
    ('platform_event', 'platform_events', array[
        'event_id', 'event_key', 'occurred_at', 'user_id', 'session_id', 'trace_id', 'external_id',
        'event_type', 'event_category', 'event_data', 'metadata'
    ], array['event_type', 'event_category', 'occurred_at'], '{"event_data": {}, "metadata": {}}'),
    ('cost_event', 'tenant_cost_events', array[
        'event_id', 'event_key', 'occurred_at', 'user_id', 'session_id', 'trace_id', 'external_id',
        'cost_type', 'cost_usd', 'quantity', 'service', 'service_tier', 'metadata'
    ], array['cost_type', 'service', 'occurred_at'], '{"metadata": {}}'),
    ('agent_execution', 'agent_executions', array[
        'event_id', 'event_key', 'occurred_at', 'user_id', 'session_id', 'trace_id', 'external_id',
        'agent_id', 'agent_type', 'execution_time_ms', 'success', 'error_type', 'error_message',
        'quality_score', 'citation_accuracy', 'hallucination_detected', 'cost_usd',
        'total_tokens', 'metadata'
    ], array['agent_id', 'success', 'occurred_at'], '{"metadata": {}}')
$$;

comment on function tracedb.record_types() is
    'The record types ingest takes: their table, the fields a record may have, the ones it must '
    'have besides trace_id or external_id (events: event_id or event_key), and the values of '
    'fields left out. prompt, response, input and output are stored as payloads of that kind.';

create or replace function tracedb.record_problem(item jsonb, tenant_id uuid)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    id_form constant text := '^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$';
    span_form constant text := '^(?!0{16})[0-9a-f]{16}$';
    time_form constant text := '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?'
        '(Z|[+-]\d\d(:?\d\d)?)$';
    spec record;
    field text;
begin
    if jsonb_typeof(item) <> 'object' then
        return format('record: must be an object, not %s', jsonb_typeof(item));
    end if;
    select t.* into spec from tracedb.record_types() as t where t.type = item ->> 'type';
    if spec is null then
        select string_agg(t.type, ', ') into field from tracedb.record_types() as t;
        return format('type: must be one of %s, not %s', field, coalesce(item ->> 'type', 'null'));
    end if;
    if item - array['type', 'tenant_id'] - spec.fields <> '{}' then
        select min(k) into field
        from jsonb_object_keys(item - array['type', 'tenant_id'] - spec.fields) as k;
        return format('%s: unknown field of a %s', field, spec.type);
    end if;
    if lower(item ->> 'tenant_id') <> tenant_id::text then
        return 'tenant_id: must be the tenant the batch is ingested for';
    end if;
    if 'event_id' = any(spec.fields) then
        if coalesce(item ->> 'event_id', item ->> 'event_key') is null then
            return 'event_id: required (or event_key)';
        end if;
    elsif coalesce(item ->> 'trace_id', item ->> 'external_id') is null then
        return 'trace_id: required (or external_id)';
    end if;
    foreach field in array spec.required loop
        if item ->> field is null then
            return format('%s: required', field);
        end if;
    end loop;
    field := case
        when item ->> 'trace_id' !~* id_form then 'trace_id'
        when item ->> 'root_trace_id' !~* id_form then 'root_trace_id'
        when item ->> 'parent_trace_id' !~* id_form then 'parent_trace_id'
    end;
    if field is not null then
        return format('%s: must be a UUID or 32 hex digits (other keys go into external_id)',
            field);
    end if;
    if item ->> 'event_id' !~* id_form then
        return 'event_id: must be a UUID or 32 hex digits (other keys go into event_key)';
    end if;
    field := case
        when item ->> 'span_id' !~* span_form then 'span_id'
        when item ->> 'parent_span_id' !~* span_form then 'parent_span_id'
        when item ->> 'hook_span_id' !~* span_form then 'hook_span_id'
    end;
    if field is not null then
        return format('%s: must be 16 hex digits, not all 0', field);
    end if;
    field := case
        when item ->> 'started_at' !~ time_form then 'started_at'
        when item ->> 'ended_at' !~ time_form then 'ended_at'
        when item ->> 'recorded_at' !~ time_form then 'recorded_at'
        when item ->> 'occurred_at' !~ time_form then 'occurred_at'
    end;
    if field is not null then
        return format('%s: must be an ISO 8601 time with its offset from UTC, such as '
            '2026-01-31T12:00:00Z', field);
    end if;
    if jsonb_typeof(item -> 'context') not in ('object', 'null') then
        return 'context: must be an object';
    end if;
    -- 300 years: what is longer cannot be added to a time
    if item @? '$.duration_ms ? (@ > 1e13)' or item @? '$.duration_us ? (@ > 1e16)' then
        return format('%s: must be less than 300 years',
            case when item ? 'duration_us' then 'duration_us' else 'duration_ms' end);
    end if;
    return null;
end $$;

comment on function tracedb.record_problem(jsonb, uuid) is
    'What is wrong with the form of a record, as "field: rule", or null. Ranges and the like are '
    'the tables'' constraints. Internal.';

create or replace function tracedb.stated_reason(
    item text, sqlstate_ text, message text, constraint_ text
)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    spec record;
    field record;
begin
    if constraint_ <> '' then
        return coalesce((
            select obj_description(c.oid, 'pg_constraint')
            from pg_catalog.pg_constraint as c
            where c.conname = constraint_ and c.connamespace = 'tracedb'::regnamespace
                and obj_description(c.oid, 'pg_constraint') is not null
            limit 1
        ), message);
    end if;
    if sqlstate_ = 'TD002' then
        return message;
    end if;
    -- A value of the wrong type: the server's message names the value, so find its field.
    begin
        select t.* into spec from tracedb.record_types() as t
        where t.type = item::jsonb ->> 'type';
    exception
        when data_exception or program_limit_exceeded then
            return 'record: not storable as JSON: ' || message;
    end;
    for field in select f.key, f.value from jsonb_each(item::jsonb - 'span_id') as f loop
        begin
            execute format('select jsonb_populate_record(null::tracedb.%I, $1)', spec.table_name)
            using jsonb_build_object(field.key, field.value);
        exception
            when data_exception or program_limit_exceeded then
                return field.key || ': ' || sqlerrm;
        end;
    end loop;
    return message;
end $$;

comment on function tracedb.stated_reason(text, text, text, text) is
    'Why a record was refused, as "field: rule", from the error its storing raised. Internal.';

create or replace function tracedb.payload_of(
    item jsonb, kind text, content jsonb
)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'trace_id', item -> 'trace_id',
        'tenant_id', item -> 'tenant_id',
        'created_at', item -> 'created_at',
        'updated_at', item -> 'updated_at',
        'span_id', coalesce(item -> 'span_id', '"\\x0000000000000000"'),
        'recorded_at', coalesce(item -> 'recorded_at', item -> 'started_at'),
        'kind', kind,
        'content', content #>> '{}',
        'content_type', coalesce(item ->> 'content_type', case
            when jsonb_typeof(content) = 'string' then 'text/plain' else 'application/json'
        end)
    )
$$;

comment on function tracedb.payload_of(jsonb, text, jsonb) is
    'The trace_payloads row (as jsonb) of a text or document given with a record. Internal.';

create or replace function tracedb.event_id_of(item jsonb, tenant_id uuid)
returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when tracedb.is_uuid7(e.id) and tracedb.uuid_time(e.id)
            between e.at - interval '1 day' and e.at + interval '1 day'
            then e.id
        else tracedb.uuid_from_key(
            e.at, concat_ws('/', tenant_id, item ->> 'type', coalesce(e.id::text, e.key)))
    end
    from (
        select (item ->> 'event_id')::uuid as id, (item ->> 'occurred_at')::timestamptz as at,
            item ->> 'event_key' as key
    ) as e
$$;

comment on function tracedb.event_id_of(jsonb, uuid) is
    'The id of an event record: its own, if that is a UUIDv7 of its time, else made from its time '
    'and its id or key. Null for other records. Internal.';

create or replace function tracedb.complete_record(item jsonb, mapped jsonb, tenant_id uuid)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    spec record;
    external_key constant text := tracedb.external_key(item ->> 'external_id');
    id_key constant text := tracedb.external_key(item ->> 'trace_id');
    duration_field text := 'duration_ms';
    per_second integer := 1000;
    started_at constant timestamptz := item ->> 'started_at';
    ended_at timestamptz := item ->> 'ended_at';
    duration bigint;
    status text;
begin
    select t.* into spec from tracedb.record_types() as t where t.type = item ->> 'type';
    -- What is null was left out; most records have nothing of the kind.
    if item @? 'strict $.* ? (@ == null)' then
        select jsonb_object_agg(f.key, f.value) into item
        from jsonb_each(item) as f
        where f.value <> 'null';
    end if;
    item := spec.defaults || item;
    if started_at is not null then
        if spec.type = 'span' then
            duration_field := 'duration_us';
            per_second := 1000000;
        end if;
        -- Either of end and duration gives the other; without both it is still running. An end
        -- before the start is left to the table's constraint, whose message names it.
        duration := coalesce((item ->> duration_field)::bigint, case
            when ended_at is not null then greatest(
                round(extract(epoch from ended_at - started_at) * per_second), 0)
        end);
        ended_at := coalesce(ended_at,
            started_at + duration * (interval '1 second' / per_second));
        status := coalesce(item ->> 'status',
            case when ended_at is null then 'running' else 'ok' end);
    end if;
    item := item || jsonb_strip_nulls(jsonb_build_object(
        'tenant_id', tenant_id,
        'trace_id', coalesce(mapped ->> external_key, mapped ->> id_key, id_key),
        'event_id', tracedb.event_id_of(item, tenant_id),
        -- Not a column of the parts, but the name of the stub a part may make of its trace.
        'external_id', coalesce(external_key, case when mapped ? id_key then id_key end),
        'parent_trace_id', coalesce(
            mapped ->> tracedb.external_key(item ->> 'parent_trace_id'),
            item ->> 'parent_trace_id'),
        'root_trace_id', coalesce(
            mapped ->> tracedb.external_key(item ->> 'root_trace_id'),
            item ->> 'root_trace_id'),
        'span_id', '\x' || lower(item ->> 'span_id'),
        'parent_span_id', '\x' || lower(item ->> 'parent_span_id'),
        'hook_span_id', '\x' || lower(item ->> 'hook_span_id'),
        'ended_at', ended_at,
        duration_field, duration,
        'status', status,
        'created_at', now(),
        'updated_at', now()
    ));
    if spec.type = 'payload' then
        item := item || tracedb.payload_of(item, item ->> 'kind', item -> 'content');
    end if;
    return item;
end $$;

comment on function tracedb.complete_record(jsonb, jsonb, uuid) is
    'A checked record with its ids resolved and what was left out filled in, as a row of its '
    'table. Internal.';

reset role;
