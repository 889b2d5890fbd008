-- 0002_events.sql: platform events, cost events and agent executions.
--
-- depends: 0001_initial

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

insert into tracedb.partition_policies (family, parents)
values ('events', array['platform_events', 'tenant_cost_events', 'agent_executions'])
on conflict (family) do nothing;

create or replace function tracedb.partition_key(parent text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return substring(
        pg_get_partkeydef(('tracedb.' || quote_ident(parent))::regclass) from '\((.*)\)');
end $$;

comment on function tracedb.partition_key(text) is
    'The column by which a table is partitioned: trace_id or event_id. Internal.';

create or replace function tracedb.create_partition(
    parent text, from_time timestamptz, to_time timestamptz
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
-- Below deadlock_timeout: of a reader and this, it is this that gives up.
set lock_timeout = '900ms'
as $$
declare
    partition constant text := parent || to_char(from_time, '"_p"YYYYMMDD');
    lowest constant uuid := tracedb.uuid_floor(from_time);
    highest constant uuid := tracedb.uuid_floor(to_time);
begin
    -- Made apart and attached: "create ... partition of" would lock the parent exclusively.
    execute format(
        'create table tracedb.%I (like tracedb.%I including defaults including constraints '
        'including generated including indexes including storage)', partition, parent);
    -- Rows that came before their partition wait in the default one, which must be free of them
    -- before this one can be attached. Attaching locks it anyway; locked before we look, nobody can
    -- add such a row in between.
    execute format('lock table tracedb.%I in access exclusive mode', parent || '_default');
    execute format(
        'with moved as (delete from tracedb.%1$I where %2$I >= $1 and %2$I < $2 returning *) '
        'insert into tracedb.%3$I select * from moved',
        parent || '_default', tracedb.partition_key(parent), partition)
    using lowest, highest;
    -- Nothing of this is inherited, and a detached partition keeps only what it has itself.
    execute format('alter table tracedb.%I enable row level security', partition);
    execute format('alter table tracedb.%I force row level security', partition);
    execute format(
        'alter table tracedb.%I attach partition tracedb.%I for values from (%L) to (%L)',
        parent, partition, lowest, highest);
    return partition;
end $$;

comment on function tracedb.create_partition(text, timestamptz, timestamptz) is
    'Makes and attaches one partition and moves the rows of its range out of the default '
    'partition. Internal: ensure_partitions and drain_default_partitions decide what is missing.';

create or replace function tracedb.drain_default_partitions(max_periods integer default 10)
returns setof text
language plpgsql volatile
security definer  -- as ensure_partitions
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    policy tracedb.partition_policies;
    parent text;
    lowest uuid;
    periods integer := 0;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.partitions')) then
        raise notice 'another session is managing partitions';
        return;
    end if;
    for policy in select p.* from tracedb.partition_policies as p order by p.family loop
        foreach parent in array policy.parents loop
            while periods < max_periods loop
                execute format(
                    'select %1$I from tracedb.%2$I order by 1 limit 1',
                    tracedb.partition_key(parent), parent || '_default')
                into lowest;
                exit when lowest is null;
                periods := periods + 1;
                return query
                select c from tracedb.cover_period(policy, tracedb.uuid_time(lowest)) as c;
            end loop;
        end loop;
    end loop;
end $$;

comment on function tracedb.drain_default_partitions(integer) is
    'Moves rows that came before their partition out of the default partitions: makes the '
    'partitions they belong to, at most max_periods periods a call, and returns their names. '
    'Run it until it returns nothing.';

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
        -- A record and a text of one key: the record may be inserted for the text and come back.
        merged := least(merged,
            (select count(*) from unnest(part_rows) as r where r ? 'type') - inserted);
    end if;
end $$;

comment on function tracedb.store_parts(text, jsonb[]) is
    'Stores complete rows (as jsonb) of one of the part tables: new ones are inserted, and a later '
    'report replaces an earlier one (see part_rank). Rows without a type are texts given with '
    'other records, which the counts leave out. Internal.';

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

set role tracedb_owner;

create table if not exists tracedb.platform_events (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    event_type  text        not null,
    event_category text     not null,
    event_data  jsonb       not null default '{}',
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint platform_events_pkey primary key (tenant_id, event_id),
    constraint event_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint event_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint event_json_readable
        check (tracedb.is_readable(event_data) and tracedb.is_readable(metadata)),
    constraint event_data_is_object
        check (jsonb_typeof(event_data) = 'object' and jsonb_typeof(metadata) = 'object')
) partition by range (event_id);

create table if not exists tracedb.platform_events_default
partition of tracedb.platform_events default;

comment on table tracedb.platform_events is
    'An event of a tenant: a query, a login, a setting changed.';
comment on column tracedb.platform_events.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.platform_events.event_category is
    'A kind of event_type, such as user_behavior, system or security.';
comment on constraint event_uses_uuid7 on tracedb.platform_events is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint event_time_in_range on tracedb.platform_events is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint event_json_readable on tracedb.platform_events is
    'event_data, metadata: nested less than 100 levels deep, numbers within 1e308';
comment on constraint event_data_is_object on tracedb.platform_events is
    'event_data, metadata: must be objects';

reset role;

set role tracedb_owner;

create table if not exists tracedb.tenant_cost_events (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    cost_type   text        not null,
    -- Null: unknown, which is not 0.
    cost_usd    numeric,
    quantity    numeric,
    service     text        not null,
    service_tier text,
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint tenant_cost_events_pkey primary key (tenant_id, event_id),
    constraint cost_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint cost_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint cost_type_known check (cost_type in ('llm', 'embedding', 'storage', 'compute')),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint cost_quantity_not_negative check (quantity >= 0 and quantity < 1e30),
    constraint cost_metadata_is_object check (jsonb_typeof(metadata) = 'object'),
    constraint cost_json_readable check (tracedb.is_readable(metadata))
) partition by range (event_id);

create table if not exists tracedb.tenant_cost_events_default
partition of tracedb.tenant_cost_events default;

comment on table tracedb.tenant_cost_events is
    'A cost of a tenant, in US dollars, and what it was for.';
comment on column tracedb.tenant_cost_events.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.tenant_cost_events.quantity is
    'How much was used: tokens of an llm or embedding, otherwise in the unit metadata names.';
comment on column tracedb.tenant_cost_events.service_tier is
    'The model or plan, such as gpt-4o.';
comment on constraint cost_uses_uuid7 on tracedb.tenant_cost_events is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint cost_time_in_range on tracedb.tenant_cost_events is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint cost_type_known on tracedb.tenant_cost_events is
    'cost_type: must be llm, embedding, storage or compute';
comment on constraint cost_is_money on tracedb.tenant_cost_events is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint cost_quantity_not_negative on tracedb.tenant_cost_events is
    'quantity: must be at least 0 and less than 1e30, and a number';
comment on constraint cost_metadata_is_object on tracedb.tenant_cost_events is
    'metadata: must be an object';
comment on constraint cost_json_readable on tracedb.tenant_cost_events is
    'metadata: nested less than 100 levels deep, numbers within 1e308';

reset role;

set role tracedb_owner;

create table if not exists tracedb.agent_executions (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    agent_id    text        not null,
    agent_type  text,
    execution_time_ms bigint,
    success     boolean     not null,
    error_type  text,
    error_message text,
    quality_score double precision,
    citation_accuracy double precision,
    hallucination_detected boolean,
    cost_usd    numeric,
    total_tokens bigint,
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint agent_executions_pkey primary key (tenant_id, event_id),
    constraint execution_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint execution_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint execution_duration_not_negative check (execution_time_ms >= 0),
    constraint execution_scores_are_fractions
        check (quality_score between 0 and 1 and citation_accuracy between 0 and 1),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint execution_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint execution_tokens_not_negative check (total_tokens >= 0),
    constraint execution_metadata_is_object check (jsonb_typeof(metadata) = 'object'),
    constraint execution_json_readable check (tracedb.is_readable(metadata))
) partition by range (event_id);

create table if not exists tracedb.agent_executions_default
partition of tracedb.agent_executions default;

comment on table tracedb.agent_executions is
    'A run of an agent: whether it worked, how good it was, what it took. The steps inside a run '
    'are traces; trace_id names its own.';
comment on column tracedb.agent_executions.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.agent_executions.success is
    'Whether the run did what it was asked.';
comment on column tracedb.agent_executions.quality_score is
    'How good the result was, 0 to 1, as judged by the recorder.';
comment on constraint execution_uses_uuid7 on tracedb.agent_executions is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint execution_time_in_range on tracedb.agent_executions is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint execution_duration_not_negative on tracedb.agent_executions is
    'execution_time_ms: must not be negative';
comment on constraint execution_scores_are_fractions on tracedb.agent_executions is
    'quality_score, citation_accuracy: must be from 0 to 1';
comment on constraint execution_cost_is_money on tracedb.agent_executions is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint execution_tokens_not_negative on tracedb.agent_executions is
    'total_tokens: must not be negative';
comment on constraint execution_metadata_is_object on tracedb.agent_executions is
    'metadata: must be an object';
comment on constraint execution_json_readable on tracedb.agent_executions is
    'metadata: nested less than 100 levels deep, numbers within 1e308';

reset role;

set role tracedb_owner;

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    policy record;
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for a new policy
    for policy in
        select
            c.table_name, r.role_name, r.command,
            format('%s_%s_%s', c.table_name, substr(r.role_name, 9), r.command) as name,
            concat(
                ' using (' || r.visible || ')', ' with check (' || r.writable || ')'
            ) as conditions
        from (values
            ('event', 'platform_events'), ('event', 'tenant_cost_events'),
            ('event', 'agent_executions'),
            ('default', 'platform_events_default'), ('default', 'tenant_cost_events_default'),
            ('default', 'agent_executions_default')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('event', 'tracedb_owner', 'all', 'true', 'true'),
            ('event', 'tracedb_service', 'select', 'true', null),
            ('event', 'tracedb_service', 'insert', null, 'true'),
            ('event', 'tracedb_service', 'update', 'true', 'true'),
            ('event', 'tracedb_app', 'select', own_rows, null),
            ('event', 'tracedb_app', 'insert', null, own_rows),
            ('event', 'tracedb_app', 'update', own_rows, own_rows),
            ('event', 'tracedb_reader', 'select', own_rows, null),
            ('event', 'tracedb_maintainer', 'select', 'true', null),

            ('default', 'tracedb_owner', 'all', 'true', 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

-- Also on partitions: neither attaching nor detaching gives or takes it.
do $$
declare
    table_name regclass;
begin
    for table_name in
        select c.oid
        from pg_catalog.pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
            and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
            and not (c.relrowsecurity and c.relforcerowsecurity)
    loop
        execute format('alter table %s enable row level security', table_name);
        execute format('alter table %s force row level security', table_name);
    end loop;
end $$;

revoke all on function tracedb.partition_key(text), tracedb.event_id_of(jsonb, uuid) from public;
grant select, insert, update on
    tracedb.platform_events,
    tracedb.tenant_cost_events,
    tracedb.agent_executions
to tracedb_service, tracedb_app;
grant select on
    tracedb.platform_events,
    tracedb.tenant_cost_events,
    tracedb.agent_executions
to tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.partition_key(text),
    tracedb.event_id_of(jsonb, uuid)
to tracedb_service, tracedb_app;

reset role;

select tracedb.ensure_partitions();
select tracedb.co_locate('tracedb.platform_events');
select tracedb.co_locate('tracedb.tenant_cost_events');
select tracedb.co_locate('tracedb.agent_executions');
