-- operations.sql: what an operator asks; tracedb/operations.py has one function for each.

-- name: table_sizes
select * from tracedb.table_sizes order by total_bytes desc, table_name;

-- name: index_usage
select * from tracedb.index_usage order by index_bytes desc, index_name;

-- name: partition_sizes
select * from tracedb.partition_sizes order by family, parent, from_time nulls first;

-- name: partition_headroom
select h.*, d.stray_rows as default_rows
from tracedb.partition_headroom as h
join tracedb.default_partition_rows() as d using (parent)
order by h.parent;

-- name: trace_storage
select * from tracedb.trace_storage order by from_time;

-- name: storage_forecast
select * from tracedb.storage_forecast order by bytes_in_90_days desc, table_name;

-- name: table_bloat
select * from tracedb.table_bloat(%(exact)s) order by dead_bytes desc, table_name;

-- name: ingest_lag
select * from tracedb.ingest_lag(coalesce(%(since)s, now() - interval '1 hour'))
order by table_name, tenant_id;

-- name: writer_losses
select * from tracedb.writer_losses order by lost + dropped + dead - requeued desc, service;

-- name: change_backlog
select * from tracedb.change_backlog order by change_count desc, tenant_id;

-- name: daily_requests
with counted as (
    select
        date_trunc('day', t.started_at, 'UTC') as day,
        count(*) as request_count,
        count(*) filter (where t.status in ('error', 'timeout')) as error_count
    from tracedb.execution_traces as t
    -- the id is the clock, to the day; started_at is exact
    where t.trace_id >= tracedb.uuid_floor(now() - (%(days)s + 1) * interval '1 day')
        and t.parent_trace_id is null
    group by 1
)
select
    (d.day at time zone 'UTC')::date as day,
    coalesce(c.request_count, 0) as request_count,
    coalesce(c.error_count, 0) as error_count
from generate_series(0, %(days)s - 1) as n
cross join lateral (
    select (date_trunc('day', now() at time zone 'UTC') - n * interval '1 day')
        at time zone 'UTC' as day
) as d
left join counted as c using (day)
order by d.day;
