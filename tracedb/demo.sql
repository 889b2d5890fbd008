-- demo.sql: what the commands demo, trace and import ask; tracedb/demo.py has a function for each.

-- name: tenant_named
select t.tenant_id, t.external_id, t.name, t.created_at
from tracedb.tenants as t
where t.external_id = %(external_id)s;

-- name: trace_anywhere
-- in every tenant that the role may see
with wanted as (
    select tracedb.external_key(%(id)s) as key
)
select m.tenant_id, m.trace_id
from wanted as w
join tracedb.trace_ids as m on m.external_id = w.key
union
select t.tenant_id, t.trace_id
from wanted as w
join tracedb.execution_traces as t
    on t.trace_id = case when w.key ~ '^[0-9a-f]{32}$' then w.key::uuid end
order by tenant_id, trace_id;

-- name: agents
-- The total, whose agent is null, leaves nested executions out: their parents' figures have them.
select
    t.agent_id,
    t.is_nested,
    count(*) as trace_count,
    count(*) filter (where t.status = 'ok') as success_count,
    count(*) filter (where t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.status <> 'running'), 0) as success_rate,
    percentile_cont(0.5) within group (order by t.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms) as p95_duration_ms,
    sum(t.input_tokens)::bigint as input_tokens,
    sum(t.output_tokens)::bigint as output_tokens,
    sum(t.cost_usd) as cost_usd,
    count(*) filter (where t.cost_usd is null or t.unpriced_count > 0) as unknown_cost_count,
    min(t.started_at) as first_started_at,
    max(t.started_at) as last_started_at
from (
    select
        coalesce(s.agent_id, 'no agent') as agent_id, s.parent_trace_id is not null as is_nested,
        s.status, s.duration_ms, s.input_tokens, s.output_tokens, s.cost_usd, s.unpriced_count,
        s.started_at
    from tracedb.trace_summary as s
    where s.tenant_id = %(tenant_id)s
) as t
group by grouping sets ((t.agent_id, t.is_nested), (t.is_nested))
having not (grouping(t.agent_id) = 1 and t.is_nested)
order by grouping(t.agent_id), t.is_nested, count(*) desc, t.agent_id;

-- name: slowest
select
    t.tenant_id, t.trace_id, t.name, t.agent_id, t.status, t.error_type, t.error_message,
    t.started_at, t.duration_ms, t.cost_usd
from tracedb.trace_summary as t
where t.tenant_id = %(tenant_id)s and t.parent_trace_id is null and t.duration_ms is not null
order by t.duration_ms desc, t.trace_id desc
limit %(max_rows)s;

-- name: failed
select
    t.tenant_id, t.trace_id, t.name, t.agent_id, t.status, t.error_type, t.error_message,
    t.started_at, t.duration_ms, t.cost_usd
from tracedb.trace_summary as t
where t.tenant_id = %(tenant_id)s and t.parent_trace_id is null
    and t.status in ('error', 'timeout')
order by t.trace_id desc
limit %(max_rows)s;

-- name: failure_kinds
select coalesce(t.error_type, t.status) as kind, count(*) as trace_count
from tracedb.execution_traces as t
where t.tenant_id = %(tenant_id)s and t.parent_trace_id is null
    and t.status in ('error', 'timeout')
group by 1
order by 2 desc, 1;

-- name: showcase
-- a trace with something to see that fits a screen
select t.trace_id
from tracedb.trace_summary as t
where t.tenant_id = %(tenant_id)s and t.parent_trace_id is null and t.span_count <= 30
order by
    exists (
        select from tracedb.execution_traces as n
        where n.tenant_id = t.tenant_id and n.parent_trace_id = t.trace_id
    ) desc,
    t.error_count > 0 desc, t.span_count desc, t.trace_id desc
limit 1;

-- name: shown_to_try
-- not run: the demo shows it for psql
select agent_id, trace_count, success_rate, cost_usd
from tracedb.agent_performance
where tenant_id = '{tenant_id}';
