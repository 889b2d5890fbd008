-- 500_merge.sql: what becomes of two reports of the same thing.

set role tracedb_owner;

-- Reports arrive in any order, more than once, and from many processes. The same trace must come
-- of it every time, so merging is a least upper bound: commutative, associative, idempotent.
-- Per field the value of the higher rank wins: 2 from a finished report, 1 from a running one,
-- 0 inferred from a part that came before its trace. Between values of one rank:
--     tags, doc_sources           the union
--     started_at                  of the report that ended later, with its end and duration: times
--                                 of two reports would contradict each other
--     status                      the worse (ok, cancelled, timeout, error)
--     everything else             the greater, in jsonb's order
-- Fields of context have ranks of their own, as "context.<key>".

create or replace function tracedb.union_of(one jsonb, other jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(distinct element order by element)
    from jsonb_array_elements(one || other) as element
$$;

comment on function tracedb.union_of(jsonb, jsonb) is
    'The elements of two JSON arrays, sorted and without repetitions. Internal.';

create or replace function tracedb.report_of(trace_row jsonb, rank integer default 2)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(field.key, jsonb_build_array(
        coalesce((trace_row -> 'provisional' ->> field.key)::integer, rank), field.value
    )), '{}')
    from (
        select f.key, case
            when f.key in ('tags', 'doc_sources') then tracedb.union_of(f.value, '[]')
            else f.value
        end as value
        from jsonb_each(trace_row - array[
            'started_at', 'ended_at', 'duration_ms', 'context', 'provisional', 'tenant_id',
            'trace_id', 'created_at', 'updated_at'
        ]) as f
        -- What says nothing ranks nowhere: nulls, empty lists, flags that were not raised.
        where f.value not in ('null', '[]', 'false')
        union all
        select 'started_at', jsonb_build_object(
            'started_at', trace_row -> 'started_at',
            'ended_at', trace_row -> 'ended_at',
            'duration_ms', trace_row -> 'duration_ms')
        union all
        select 'context.' || c.key, c.value
        from jsonb_each(coalesce(nullif(trace_row -> 'context', 'null'), '{}')) as c
    ) as field
$$;

comment on function tracedb.report_of(jsonb, integer) is
    'What a row of execution_traces (as jsonb) says: {"field": [rank, value], ...}. The rank is '
    'that of fields the row does not list as provisional. Internal.';

create or replace function tracedb.merge_reports(one jsonb, other jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(field.key, case
        when field.b is null or field.a -> 0 > field.b -> 0 then field.a
        when field.a is null or field.b -> 0 > field.a -> 0 then field.b
        when field.key in ('tags', 'doc_sources')
            then jsonb_build_array(field.a -> 0, tracedb.union_of(field.a -> 1, field.b -> 1))
        when field.key = 'started_at' then (
            select t
            from unnest(array[field.a, field.b]) as t
            -- as times: the order of jsonb strings depends on the database's collation
            order by
                (t -> 1 ->> 'ended_at')::timestamptz desc nulls last,
                (t -> 1 ->> 'started_at')::timestamptz,
                t -> 1 -> 'duration_ms' desc
            limit 1
        )
        when field.key = 'status' then (
            select s from unnest(array[field.a, field.b]) as s
            order by array_position(
                array['running', 'ok', 'cancelled', 'timeout', 'error'], s ->> 1) desc
            limit 1
        )
        else greatest(field.a, field.b)
    end), '{}')
    from (
        select k as key, one -> k as a, other -> k as b
        from jsonb_object_keys(one || other) as k
    ) as field
$$;

comment on function tracedb.merge_reports(jsonb, jsonb) is
    'The least upper bound of two reports of one trace, each as report_of gives it: the same '
    'whatever the order, and unchanged by a repetition. Internal.';

create or replace function tracedb.trace_row_of(report jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
            'doc_sources', '[]'::jsonb, 'tags', '[]'::jsonb,
            'research_triggered', false, 'kb_enrichment_triggered', false
        )
        || coalesce(jsonb_object_agg(f.key, f.value -> 1)
            filter (where f.key not like 'context.%' and f.key <> 'started_at'), '{}')
        || coalesce(report -> 'started_at' -> 1, '{}')
        || jsonb_build_object(
            'context', coalesce(jsonb_object_agg(substr(f.key, 9), f.value -> 1)
                filter (where f.key like 'context.%'), '{}'),
            'provisional', jsonb_object_agg(f.key, f.value -> 0)
                filter (where f.value -> 0 < '2')
        )
    from jsonb_each(report) as f
$$;

comment on function tracedb.trace_row_of(jsonb) is
    'A report as a row of execution_traces (as jsonb, without keys and server times). Internal.';

create or replace aggregate tracedb.merged_report(jsonb) (
    sfunc = tracedb.merge_reports,
    stype = jsonb,
    initcond = '{}'
);

comment on aggregate tracedb.merged_report(jsonb) is
    'merge_reports over a set of reports. Internal.';

-- A part is reported whole: its finished report says all its running one said. So the later
-- report replaces the earlier one, and of two finished reports any fixed order will do.
create or replace function tracedb.part_rank(part_row jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_array(
        coalesce(part_row ->> 'status', 'ok') <> 'running',
        extract(epoch from (part_row ->> 'ended_at')::timestamptz),
        length(part_row ->> 'content'),
        part_row - array['created_at', 'updated_at', 'price_id', 'computed_cost_usd']
    )
$$;

comment on function tracedb.part_rank(jsonb) is
    'Sorts reports of the same part (rows as jsonb): a finished one after a running one, then the '
    'one that ended later, then the longer payload. The greatest is kept. Internal.';

reset role;
