-- 610_cost_entries.sql: everything that cost a tenant money, once.

set role tracedb_owner;

create or replace view tracedb.cost_entries with (security_invoker = true) as
select
    f.tenant_id,
    f.trace_id as entry_id,
    'trace' as source,
    f.started_at as occurred_at,
    f.user_id,
    f.agent_id,
    null::text as model,
    f.cost_usd,
    f.is_cost_unknown,
    f.cost_usd is not null and (
        select t.cost_usd is null
        from tracedb.execution_traces as t
        where t.tenant_id = f.tenant_id and t.trace_id = f.trace_id
    ) as is_sum_of_spans
from tracedb.trace_figures as f
union all
select
    e.tenant_id,
    e.event_id,
    'event',
    e.occurred_at,
    e.user_id,
    null,
    case when e.cost_type in ('llm', 'embedding') then coalesce(e.service_tier, e.service) end,
    e.cost_usd,
    e.cost_usd is null,
    false
from tracedb.tenant_cost_events as e
left join lateral (
    select f.cost_usd is not null or not f.is_cost_unknown as is_known
    from tracedb.trace_figures as f
    where f.tenant_id = e.tenant_id and f.trace_id = e.trace_id
        -- what else a trace may have caused is in no trace's cost
        and e.cost_type in ('llm', 'embedding')
    limit 1  -- or all the tenant's traces would be read, to join them
) as f on true
where f.is_known is not true
    and not exists (
        select from tracedb.settled_costs as s
        where s.tenant_id = e.tenant_id and s.entry_id = e.event_id
    );

comment on view tracedb.cost_entries is
    'What cost a tenant money, once: every trace with its cost (trace_figures: nested money once), '
    'and every cost event that is not in a trace''s cost. A cost event of a call (llm, embedding) '
    'that names a trace whose cost is known says the same again and is left out; one of storage or '
    'compute, one that names no trace, and one of a trace without a known cost count. What is in '
    'the cost of a trace that retention removed (settled_costs) is left out as well. entry_id is '
    'a clock, as trace_id and event_id are. is_sum_of_spans: the cost is that of the trace''s '
    'calls, not reported for it as a whole.';

reset role;
