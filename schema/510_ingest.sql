-- 510_ingest.sql: the one way in: any mix of records, in any order, any number of times.

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

create or replace function tracedb.resolve_traces(records jsonb[], tenant_id uuid)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    keys text[];
    mapped jsonb;
    -- Between these lie the ids that may be traces of ours; what is looked up outside a range has
    -- to be looked up in every partition.
    first_id uuid;
    last_id uuid;
    missing jsonb;
begin
    select array_agg(distinct k.key) into keys
    from unnest(records) as r
    cross join lateral unnest(array[
        tracedb.external_key(r ->> 'external_id'), tracedb.external_key(r ->> 'trace_id'),
        tracedb.external_key(r ->> 'parent_trace_id'), tracedb.external_key(r ->> 'root_trace_id')
    ]) as k(key)
    where k.key is not null;
    select min(k), max(k) into first_id, last_id
    from unnest(keys) as k
    where k ~ '^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$';

    select coalesce(jsonb_object_agg(m.external_id, m.trace_id), '{}') into mapped
    from tracedb.trace_ids as m
    where m.tenant_id = resolve_traces.tenant_id and m.external_id = any(keys);

    -- An unmapped id is ours if it is a UUIDv7 of the record's own time, or if we have a trace of
    -- that id. Any other is foreign and gets a trace, once: writers of the same key meet at the
    -- table's key, and who came second takes the first one's trace.
    with named as (
        select
            tracedb.external_key(r ->> 'external_id') as external_key,
            tracedb.external_key(r ->> 'trace_id') as id_key,
            coalesce(r ->> 'started_at', r ->> 'recorded_at', r ->> 'occurred_at')::timestamptz
                as at
        from unnest(records) as r
        union all
        select null, tracedb.external_key(p.id), (r ->> 'started_at')::timestamptz
        from unnest(records) as r
        cross join lateral unnest(array[
            r ->> 'parent_trace_id', r ->> 'root_trace_id'
        ]) as p(id)
        where p.id is not null
    ),
    our_ids as (
        select n.id_key
        from named as n
        where n.id_key is not null and tracedb.is_uuid7(n.id_key::uuid)
            and tracedb.uuid_time(n.id_key::uuid)
                between n.at - interval '1 day' and n.at + interval '1 day'
        union
        select replace(t.trace_id::text, '-', '')
        from tracedb.execution_traces as t
        where t.tenant_id = resolve_traces.tenant_id and t.trace_id = any(array(
            select n.id_key::uuid from named as n where tracedb.is_uuid7(n.id_key::uuid)
        ))
        and t.trace_id between first_id and last_id
    ),
    -- The trace an external id means: what it or an id given beside it already means.
    external_traces as (
        select n.external_key, coalesce(
            (mapped ->> n.external_key)::uuid,
            min((mapped ->> n.id_key))::uuid,
            min(o.id_key)::uuid,
            tracedb.uuid_from_key(min(n.at), resolve_traces.tenant_id || n.external_key)
        ) as trace_id
        from named as n
        left join our_ids as o using (id_key)
        where n.external_key is not null
        group by n.external_key
    ),
    id_traces as (
        select n.id_key, coalesce(
            min(e.trace_id::text)::uuid,
            min(o.id_key)::uuid,
            tracedb.uuid_from_key(min(n.at), resolve_traces.tenant_id || n.id_key)
        ) as trace_id
        from named as n
        left join our_ids as o using (id_key)
        left join external_traces as e using (external_key)
        where n.id_key is not null
        group by n.id_key
    )
    select jsonb_object_agg(k.key, k.trace_id) into missing
    from (
        select e.external_key as key, e.trace_id from external_traces as e
        union all
        select i.id_key, i.trace_id from id_traces as i where i.id_key::uuid <> i.trace_id
    ) as k
    where not mapped ? k.key;

    if missing is not null then
        -- In order, so that two batches cannot wait for each other.
        insert into tracedb.trace_ids (tenant_id, external_id, trace_id)
        select resolve_traces.tenant_id, m.key, m.value::uuid
        from jsonb_each_text(missing) as m
        order by m.key
        on conflict do nothing;

        select coalesce(jsonb_object_agg(m.external_id, m.trace_id), '{}') into mapped
        from tracedb.trace_ids as m
        where m.tenant_id = resolve_traces.tenant_id and m.external_id = any(keys);
    end if;
    return mapped;
end $$;

comment on function tracedb.resolve_traces(jsonb[], uuid) is
    'Maps the foreign ids among the keys by which records name traces and returns the mapping '
    '{"key": "trace_id"}; a key that is not in it is a trace id itself. Internal.';

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

create or replace function tracedb.column_list(table_name text, prefix text, except_for text[])
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select string_agg(prefix || quote_ident(a.attname), ', ' order by a.attnum)
        from pg_catalog.pg_attribute as a
        where a.attrelid = ('tracedb.' || quote_ident(table_name))::regclass
            and a.attnum > 0 and not a.attisdropped and a.attname <> all(except_for)
    );
end $$;

comment on function tracedb.column_list(text, text, text[]) is
    'The columns of a table as a list in SQL, each after the prefix. Internal.';

create or replace function tracedb.store_parts(
    table_name text, part_rows jsonb[], out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    -- The key without the tenant, which every row of a batch shares. Rows are inserted in its
    -- order, so that two batches cannot wait for each other.
    key constant text[] := case tracedb.partition_key(table_name)
        when 'event_id' then array['event_id']
        else array['trace_id', 'span_id']
    end || case when table_name = 'trace_payloads' then array['kind'] else '{}' end;
    fixed constant text[] := array['tenant_id', 'created_at'] || key;
    made bigint;
    -- The batch's stretch of ids, so that the update is planned for its partitions alone.
    first_id uuid;
    last_id uuid;
begin
    execute format(
        'with made as ( '
        '    insert into tracedb.%1$I '
        '    select part.* from unnest($1) as r '
        '    cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
        '    order by %2$s '
        '    on conflict do nothing '
        '    returning %3$s '
        '), records as ( '
        '    select distinct %2$s from unnest($1) as r '
        '    cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
        '    where r ? ''type'' '
        ') '
        'select (select count(*) from made), (select count(*) from made join records using (%3$s))',
        table_name,
        (select string_agg('part.' || k, ', ') from unnest(key) as k),
        (select string_agg(k, ', ') from unnest(key) as k))
    into made, inserted
    using part_rows;
    merged := 0;
    if made < cardinality(part_rows) then
        select min(replace(r ->> key[1], '-', '')), max(replace(r ->> key[1], '-', ''))
        into first_id, last_id
        from unnest(part_rows) as r;
        execute format(
            'with changed as ( '
            '    update tracedb.%1$I as t set (%2$s) = row(%3$s) '
            '    from ( '
            '        select distinct on (%4$s) part.*, '
            '            tracedb.part_rank(to_jsonb(part)) as part_rank, r ? ''type'' as is_record '
            '        from unnest($1) as r '
            '        cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
            '        order by %4$s, part_rank desc, is_record desc '
            '    ) as part '
            '    where t.tenant_id = $2 and (%5$s) = (%4$s) and t.%6$I between $3 and $4 '
            '        and tracedb.part_rank(to_jsonb(t)) < part.part_rank '
            '    returning part.is_record '
            ') '
            'select count(*) filter (where is_record) from changed',
            table_name,
            tracedb.column_list(table_name, '', fixed),
            tracedb.column_list(table_name, 'part.', fixed),
            (select string_agg('part.' || k, ', ') from unnest(key) as k),
            (select string_agg('t.' || k, ', ') from unnest(key) as k),
            key[1])
        into merged
        using part_rows, (part_rows[1] ->> 'tenant_id')::uuid, first_id, last_id;
    end if;
end $$;

comment on function tracedb.store_parts(text, jsonb[]) is
    'Stores complete rows (as jsonb) of one of the part tables: new ones are inserted, and a later '
    'report replaces an earlier one (see part_rank). Rows without a type are texts given with '
    'other records, which the counts leave out. Internal.';

create or replace function tracedb.store_traces(
    trace_rows jsonb[], out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    fixed constant text[] := array['tenant_id', 'trace_id', 'created_at', 'updated_at'];
    tenant constant uuid := trace_rows[1] ->> 'tenant_id';
    reports jsonb[];
    made bigint;
begin
    -- Rows go through the table's type first, so that equal values are spelled equally.
    select array_agg(
        jsonb_build_object(
            'trace_id', f.trace_id, 'report', f.report, 'is_record', f.is_record)
        order by f.trace_id)
    into reports
    from (
        select
            row.trace_id,
            tracedb.merged_report(tracedb.report_of(
                to_jsonb(row), case when row.status = 'running' then 1 else 2 end)) as report,
            bool_or(row.provisional is null) as is_record
        from unnest(trace_rows) as r
        cross join lateral jsonb_populate_record(null::tracedb.execution_traces, r) as row
        group by row.trace_id
    ) as f;

    with made as (
        insert into tracedb.execution_traces
        select row.*
        from unnest(reports) as r
        cross join lateral jsonb_populate_record(null::tracedb.execution_traces,
            tracedb.trace_row_of(r -> 'report') || jsonb_build_object(
                'tenant_id', tenant, 'trace_id', r -> 'trace_id',
                'created_at', now(), 'updated_at', now())) as row
        on conflict do nothing
        returning trace_id
    )
    select count(*), count(*) filter (where (r ->> 'is_record')::boolean) into made, inserted
    from made
    join unnest(reports) as r on (r ->> 'trace_id')::uuid = made.trace_id;
    merged := 0;
    if made < cardinality(reports) then
        execute format(
            'with changed as ( '
            '    update tracedb.execution_traces as t set updated_at = now(), (%1$s) = ( '
            '        select %1$s from jsonb_populate_record(null::tracedb.execution_traces, '
            '            tracedb.trace_row_of(tracedb.merge_reports( '
            '                tracedb.report_of(to_jsonb(t)), r -> ''report''))) '
            '    ) '
            '    from unnest($1) as r '
            '    where t.tenant_id = $2 and t.trace_id = (r ->> ''trace_id'')::uuid '
            '        and t.trace_id between $3 and $4 '
            '        and tracedb.merge_reports(tracedb.report_of(to_jsonb(t)), r -> ''report'') '
            '            <> tracedb.report_of(to_jsonb(t)) '
            '    returning (r ->> ''is_record'')::boolean as is_record '
            ') '
            'select count(*) filter (where is_record) from changed',
            tracedb.column_list('execution_traces', '', fixed))
        into merged
        using reports, tenant, (reports[1] ->> 'trace_id')::uuid,
            (reports[cardinality(reports)] ->> 'trace_id')::uuid;
    end if;
end $$;

comment on function tracedb.store_traces(jsonb[]) is
    'Stores complete rows (as jsonb) of execution_traces: new ones are inserted, others merged '
    'into what is there (see merge_reports). Rows with provisional fields are stubs, which the '
    'counts leave out. Internal.';

create or replace function tracedb.store_records(
    texts text[], tenant_id uuid, out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    items jsonb[];
    problem text;
    mapped jsonb;
    spec record;
    batch jsonb[];
    stored record;
    -- The batch's stretch of ids, outside of which no partition is looked at.
    first_id uuid;
    last_id uuid;
begin
    if exists (select from unnest(texts) as t where octet_length(t) > 20971520) then
        raise exception using errcode = 'TD002', message = 'record: at most 20 MiB as JSON';
    end if;
    items := array(select t::jsonb from unnest(texts) as t);
    select tracedb.record_problem(r, store_records.tenant_id) into problem
    from unnest(items) as r
    where tracedb.record_problem(r, store_records.tenant_id) is not null
    limit 1;
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;

    mapped := tracedb.resolve_traces(items, tenant_id);
    items := array(
        select tracedb.complete_record(r, mapped, store_records.tenant_id)
        from unnest(items) as r
    );

    -- Every table is visited once and in the order of its key, so that two batches cannot wait for
    -- each other. First the traces: records of them, and stubs for parts whose trace is unknown so
    -- far, which the trace's own record completes; a stub starts with the earliest part.
    select min(replace(r ->> 'trace_id', '-', '')), max(replace(r ->> 'trace_id', '-', ''))
    into first_id, last_id
    from unnest(items) as r;
    batch := array(select r from unnest(items) as r where r ->> 'type' = 'trace') || array(
        select jsonb_strip_nulls(jsonb_build_object(
            'tenant_id', store_records.tenant_id, 'trace_id', p.trace_id,
            'external_id', p.external_id, 'started_at', p.at, 'status', 'running',
            'provisional', '{"external_id": 0, "started_at": 0, "status": 0}'::jsonb))
        from (
            select
                (r ->> 'trace_id')::uuid as trace_id,
                min(coalesce(r ->> 'started_at', r ->> 'recorded_at')::timestamptz) as at,
                min(r ->> 'external_id') as external_id
            from unnest(items) as r
            where r ? 'span_id'  -- parts have one; traces and events do not
            group by 1
        ) as p
        where not exists (
            select from tracedb.execution_traces as t
            where t.tenant_id = store_records.tenant_id and t.trace_id = p.trace_id
                and t.trace_id between first_id and last_id
                and coalesce(t.provisional ->> 'started_at', '2') <> '0'
        )
    );
    inserted := 0;
    merged := 0;
    if cardinality(batch) > 0 then
        stored := tracedb.store_traces(batch);
        inserted := stored.inserted;
        merged := stored.merged;
    end if;

    for spec in
        select t.type, t.table_name from tracedb.record_types() as t where t.type <> 'trace'
    loop
        batch := array(select r from unnest(items) as r where r ->> 'type' = spec.type);
        if spec.type = 'payload' then
            batch := batch || array(
                select tracedb.payload_of(r - 'content_type', f.kind, r -> f.kind)
                from unnest(items) as r
                cross join unnest(array['prompt', 'response', 'input', 'output']) as f(kind)
                -- an endpoint call's response is a column of its own
                where r ? f.kind and (r ->> 'type' = 'trace') = (f.kind in ('prompt', 'response'))
            );
        end if;
        if cardinality(batch) > 0 then
            stored := tracedb.store_parts(spec.table_name, batch);
            inserted := inserted + stored.inserted;
            merged := merged + stored.merged;
        end if;
    end loop;
end $$;

comment on function tracedb.store_records(text[], uuid) is
    'Stores a slice of a batch whole, or raises for the first record that is not right. Internal.';

create or replace function tracedb.ingest_slice(
    texts text[], first integer, last integer, tenant_id uuid,
    out inserted bigint, out merged bigint, out rejected jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    middle constant integer := (first + last) / 2;
    state text;
    message text;
    constraint_ text;
    one record;
    other record;
begin
    begin
        select s.inserted, s.merged, '[]'::jsonb into inserted, merged, rejected
        from tracedb.store_records(texts[first:last], tenant_id) as s;
        return;
    exception
        -- Only what is wrong with the data; anything else (a lock, a right, a full disk) is about
        -- the whole batch and is raised.
        when data_exception or integrity_constraint_violation or program_limit_exceeded
            or sqlstate 'TD002'
        then
            get stacked diagnostics
                state = returned_sqlstate,
                message = message_text,
                constraint_ = constraint_name;
    end;
    if first = last then
        inserted := 0;
        merged := 0;
        rejected := jsonb_build_array(jsonb_build_object(
            'index', first - 1,
            'reason', tracedb.stated_reason(texts[first], state, message, constraint_)));
        return;
    end if;
    -- The bad record is isolated by halving: its neighbours cost it a few statements, not their
    -- place in the database.
    one := tracedb.ingest_slice(texts, first, middle, tenant_id);
    other := tracedb.ingest_slice(texts, middle + 1, last, tenant_id);
    inserted := one.inserted + other.inserted;
    merged := one.merged + other.merged;
    rejected := one.rejected || other.rejected;
end $$;

comment on function tracedb.ingest_slice(text[], integer, integer, uuid) is
    'Stores the records first..last of a batch, halving the slice around records that are refused. '
    'Internal.';

create or replace function tracedb.ingest(
    batch json, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    texts text[];
    stored record;
begin
    if tenant_id is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    if batch is null then
        raise exception using errcode = 'TD002', message = 'batch: required';
    end if;
    texts := case
        when json_typeof(batch) = 'array'
            then array(select e::text from json_array_elements(batch) as e)
        else array[batch::text]
    end;
    if cardinality(texts) = 0 then
        return '{"received": 0, "inserted": 0, "merged": 0, "duplicates": 0, "rejected": []}';
    end if;
    stored := tracedb.ingest_slice(texts, 1, cardinality(texts), tenant_id);
    return jsonb_build_object(
        'received', cardinality(texts),
        'inserted', stored.inserted,
        'merged', stored.merged,
        'duplicates', cardinality(texts) - stored.inserted - stored.merged
            - jsonb_array_length(stored.rejected),
        'rejected', stored.rejected
    );
end $$;

comment on function tracedb.ingest(json, uuid) is
    'Stores a batch of records: a JSON array of objects with a "type" (trace, routing_decision, '
    'hook, endpoint_call, span, payload, platform_event, cost_event, agent_execution) and the '
    'fields of that type (see record_types). Records '
    'may come in any order and any number of times; parts may come before their trace. Returns '
    '{"received", "inserted", "merged", "duplicates", "rejected": [{"index", "reason"}]}: merged '
    'records changed what was there, duplicates changed nothing, and a rejected one, named by its '
    'position from 0 with the field and the rule it broke, costs its neighbours nothing. Raises '
    'TD001 without a tenant.';

reset role;
