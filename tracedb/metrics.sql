-- metrics.sql: what `tracedb metrics` asks; tracedb/metrics.py has the metrics of each.

-- Where a statement can tell tenants apart, it answers with one row for all of them (tenant_id is
-- null, and there is one also if nothing was found) or, asked to, with a row a tenant.

-- name: limits
select
    set_config('statement_timeout', %(milliseconds)s, true),
    set_config('transaction_read_only', 'on', true);

-- name: requests
select
    t.tenant_id,
    s.status,
    count(t.trace_id) filter (where t.parent_trace_id is null) as request_count,
    count(t.trace_id) as execution_count
from unnest(array['running', 'ok', 'error', 'timeout', 'cancelled']) as s (status)
left join tracedb.execution_traces as t
    on t.status = s.status
    -- the id is the clock, to the day; started_at is exact
    and t.trace_id >= tracedb.uuid_floor(now() - %(window)s - interval '1 day')
    and t.trace_id < tracedb.uuid_floor(now() + interval '1 day')
    and t.started_at >= now() - %(window)s and t.started_at < now()
group by grouping sets ((s.status), (s.status, t.tenant_id))
having (grouping(t.tenant_id) = 0) = %(per_tenant)s
    and (not %(per_tenant)s or t.tenant_id is not null);

-- name: durations
select r.tenant_id, q.quantile, q.seconds
from (
    select
        t.tenant_id,
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by t.duration_ms / 1000.0)
            as seconds
    from tracedb.execution_traces as t
    where t.trace_id >= tracedb.uuid_floor(now() - %(window)s - interval '1 day')
        and t.trace_id < tracedb.uuid_floor(now() + interval '1 day')
        and t.started_at >= now() - %(window)s and t.started_at < now()
        and t.parent_trace_id is null and t.duration_ms is not null
    group by grouping sets ((), (t.tenant_id))
    having (grouping(t.tenant_id) = 0) = %(per_tenant)s
) as r
cross join lateral unnest(array['0.5', '0.95', '0.99'], r.seconds) as q (quantile, seconds)
where q.seconds is not null;

-- name: usage
select
    t.tenant_id,
    coalesce(sum(t.input_tokens), 0) as input_tokens,
    coalesce(sum(t.output_tokens), 0) as output_tokens,
    coalesce(sum(t.cost_usd), 0) as cost_usd,
    count(*) filter (where t.is_cost_unknown) as unpriced_count
from tracedb.trace_figures as t
where t.trace_id >= tracedb.uuid_floor(now() - %(window)s - interval '1 day')
    and t.trace_id < tracedb.uuid_floor(now() + interval '1 day')
    and t.started_at >= now() - %(window)s and t.started_at < now()
group by grouping sets ((), (t.tenant_id))
having (grouping(t.tenant_id) = 0) = %(per_tenant)s;

-- name: ingest
select
    l.table_name,
    case when %(per_tenant)s then l.tenant_id end as tenant_id,
    sum(l.row_count) as row_count,
    min(l.lag_seconds) as lag_seconds,
    max(l.p95_delay_seconds) as p95_delay_seconds
from tracedb.ingest_lag(now() - %(window)s) as l
group by 1, 2;

-- name: backlog
select
    b.tenant_id,
    coalesce(sum(b.change_count), 0) as change_count,
    extract(epoch from min(b.oldest_at)) as oldest_at
from tracedb.change_backlog as b
group by grouping sets ((), (b.tenant_id))
having (grouping(b.tenant_id) = 0) = %(per_tenant)s;

-- name: writers
select
    coalesce(w.service, '') as service,
    case when %(per_tenant)s then w.tenant_id end as tenant_id,
    sum(w.living_count) as living_count,
    sum(w.accepted) as accepted,
    sum(w.stored) as stored,
    sum(w.dead) as dead,
    sum(w.requeued) as requeued,
    sum(w.dropped) as dropped,
    sum(w.pending) as pending,
    sum(w.lost) as lost
from tracedb.writer_losses as w
group by 1, 2;

-- name: dead_letters
select d.tenant_id, count(*) as letter_count
from tracedb.dead_letters as d
group by grouping sets ((), (d.tenant_id))
having (grouping(d.tenant_id) = 0) = %(per_tenant)s;

-- name: partitions
select h.parent as table_name, h.headroom_seconds
from tracedb.partition_headroom as h;

-- name: default_partitions
select d.parent as table_name, d.stray_rows
from tracedb.default_partition_rows() as d;

-- name: tables
select s.table_name, s.row_estimate, s.dead_rows, s.table_bytes, s.index_bytes
from tracedb.table_sizes as s;

-- name: indexes
select i.table_name, i.index_name, i.scan_count
from tracedb.index_usage as i;
