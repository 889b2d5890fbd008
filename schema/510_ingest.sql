-- 510_ingest.sql: the one way in: any mix of records, in any order, any number of times.

set role tracedb_owner;

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
    if table_name = 'llm_spans' then
        part_rows := tracedb.priced_rows(part_rows);
    end if;
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
    perform pg_current_xact_id();  -- from here on, an erasure waits for this transaction
    if exists (select from tracedb.erased_keys as e where e.tenant_id = store_records.tenant_id)
    then
        items := tracedb.without_erased(items, tenant_id);
    end if;
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

    perform tracedb.note_changes(array(
        select distinct (r ->> 'trace_id')::uuid
        from unnest(items) as r
        -- an event may name a trace, but changes nothing of it
        where r ->> 'type' = 'trace' or r ? 'span_id'
    ), tenant_id);
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
    'records changed what was there, duplicates changed nothing (nor do records of somebody who '
    'was erased since, which count with them), and a rejected one, named by its '
    'position from 0 with the field and the rule it broke, costs its neighbours nothing. Raises '
    'TD001 without a tenant.';

reset role;
