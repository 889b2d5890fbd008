-- bulk.sql: the statements of tracedb/storing.py.

-- name: bulk_layout
-- one row a table, and none at all from a server that cannot store rows
select
    c.relname as table_name,
    c.reltype::bigint as row_oid,
    t.typarray::bigint as array_oid,
    (
        select string_agg(a.attname || ' ' || ty.typname, ', ' order by a.attnum)
        from pg_catalog.pg_attribute as a
        join pg_catalog.pg_type as ty on ty.oid = a.atttypid
        where a.attrelid = c.oid and a.attnum > 0
    ) as columns,
    (
        select a.atttypid::bigint
        from pg_catalog.pg_attribute as a
        where a.attrelid = pg_catalog.to_regclass('tracedb.agent_routing_decisions')
            and a.attname = 'request_embedding'
    ) as vector_oid
from pg_catalog.pg_class as c
join pg_catalog.pg_type as t on t.oid = c.reltype
where c.relnamespace = (select n.oid from pg_catalog.pg_namespace as n where n.nspname = 'tracedb')
    and c.relname = any(%(tables)s)
    and exists (
        select from pg_catalog.pg_proc as p
        where p.pronamespace = c.relnamespace and p.proname = 'store_rows'
    );

-- name: store_rows
-- the tenant is set before the function is called, which takes it from there
select r.inserted, r.merged
from (select tracedb.set_tenant(%(tenant_id)s)::text as done offset 0) as s
cross join lateral tracedb.store_rows(
    %(trace_keys)s, %(traces)s, %(stubs)s, %(routing_decisions)s, %(hooks)s, %(endpoint_calls)s,
    %(spans)s, %(payloads)s, %(texts)s, %(platform_events)s, %(cost_events)s,
    %(agent_executions)s, case when s.done is not null then %(tenant_id)s end
) as r;
