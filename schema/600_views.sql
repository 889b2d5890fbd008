-- 600_views.sql: what dashboards read.

-- Every view reads with its caller's rights and shows the tenant in its first column: name it
-- ("where tenant_id = ..."), and the plan starts at the tenant's rows.

set role tracedb_owner;

create or replace view tracedb.trace_summary with (security_invoker = true) as
select
    t.tenant_id,
    t.trace_id,
    coalesce(t.root_trace_id, case when t.parent_trace_id is null then t.trace_id end)
        as root_trace_id,
    t.parent_trace_id,
    t.parent_span_id,
    t.external_id,
    t.session_id,
    t.user_id,
    t.source,
    t.channel,
    t.message_type,
    t.name,
    t.intent,
    t.route,
    t.agent_id,
    t.status,
    t.error_type,
    t.error_message,
    t.started_at,
    t.ended_at,
    t.duration_ms,
    coalesce(t.llm_calls, s.llm_calls) as llm_calls,
    coalesce(t.input_tokens, s.input_tokens) as input_tokens,
    coalesce(t.output_tokens, s.output_tokens) as output_tokens,
    coalesce(t.cost_usd, s.cost_usd) as cost_usd,
    t.docs_retrieved,
    t.doc_sources,
    t.research_triggered,
    t.kb_enrichment_triggered,
    t.tags,
    t.context,
    s.span_count + r.part_count + h.part_count + e.part_count as span_count,
    s.error_count + r.error_count + h.error_count + e.error_count as error_count,
    case when t.cost_usd is null then s.unpriced_count else 0 end as unpriced_count
from tracedb.execution_traces as t
left join lateral (
    select
        count(*) as span_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count,
        -- Only leaves: an agent's span may repeat the usage of the calls below it. A sum of
        -- nothing, or of unknown costs alone, stays null.
        count(*) filter (where p.is_leaf) as llm_calls,
        sum(p.input_tokens) filter (where p.is_leaf)::bigint as input_tokens,
        sum(p.output_tokens) filter (where p.is_leaf)::bigint as output_tokens,
        sum(p.cost_usd) filter (where p.is_leaf) as cost_usd,
        count(*) filter (where p.is_leaf and p.cost_usd is null) as unpriced_count
    from tracedb.priced_spans as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as s on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.agent_routing_decisions as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as r on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.hook_executions as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as h on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.endpoint_calls as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as e on true;

comment on view tracedb.trace_summary is
    'A trace a row: its header, how many parts it has and how many of them failed, and its tokens '
    'and cost: as reported for the trace where they were, else summed over its leaf spans (null if '
    'neither is known). unpriced_count says how many leaf spans are missing from such a sum, '
    'because their cost is unknown. Histories, analytics and money read from here.';

create or replace view tracedb.agent_performance with (security_invoker = true) as
select
    t.tenant_id,
    t.agent_id,
    count(*) as trace_count,
    count(*) filter (where t.status = 'running') as running_count,
    count(*) filter (where t.status = 'ok') as success_count,
    count(*) filter (where t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.status <> 'running'), 0) as success_rate,
    avg(t.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by t.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms) as p95_duration_ms,
    sum(t.input_tokens)::bigint as input_tokens,
    sum(t.output_tokens)::bigint as output_tokens,
    sum(t.cost_usd) as cost_usd,
    count(*) filter (where t.cost_usd is null or t.unpriced_count > 0) as unknown_cost_count,
    max(t.started_at) as last_started_at
from tracedb.trace_summary as t
where t.agent_id is not null
group by t.tenant_id, t.agent_id;

comment on view tracedb.agent_performance is
    'An agent a row, over all retained traces: success rate of the finished ones (0 to 1), '
    'duration in milliseconds, tokens and cost, and how many traces have a cost that is unknown or '
    'only known in part. Nested executions count for their own agent.';

create or replace view tracedb.hook_performance_summary with (security_invoker = true) as
select
    h.tenant_id,
    h.hook_type,
    coalesce(h.name, h.script) as name,
    h.tool_name,
    count(*) as execution_count,
    count(*) filter (where h.status = 'ok')::double precision
        / nullif(count(*) filter (where h.status <> 'running'), 0) as success_rate,
    count(*) filter (where h.outcome = 'blocked') as blocked_count,
    count(*) filter (where h.outcome = 'modified') as modified_count,
    avg(h.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by h.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by h.duration_ms) as p95_duration_ms,
    max(h.started_at) as last_started_at
from tracedb.hook_executions as h
group by h.tenant_id, h.hook_type, coalesce(h.name, h.script), h.tool_name;

comment on view tracedb.hook_performance_summary is
    'A hook (type, name, tool) a row: how often it ran, worked (0 to 1), blocked or modified, and '
    'how long it took in milliseconds.';

create or replace view tracedb.endpoint_reliability with (security_invoker = true) as
select
    e.tenant_id,
    e.service,
    e.method,
    e.path,
    count(*) as call_count,
    count(*) filter (where e.status = 'ok')::double precision
        / nullif(count(*) filter (where e.status <> 'running'), 0) as success_rate,
    count(*) filter (where e.status_code between 400 and 499) as client_error_count,
    count(*) filter (where e.status_code >= 500) as server_error_count,
    count(*) filter (where e.status = 'timeout') as timeout_count,
    sum(e.retries) as retry_count,
    avg(e.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by e.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by e.duration_ms) as p95_duration_ms,
    max(e.started_at) filter (where e.status in ('error', 'timeout')) as last_failed_at
from tracedb.endpoint_calls as e
group by e.tenant_id, e.service, e.method, e.path;

comment on view tracedb.endpoint_reliability is
    'An endpoint (service, method, path) a row: how often it was called and worked (0 to 1), how '
    'it failed, and how long it took in milliseconds.';

create or replace view tracedb.error_analysis with (security_invoker = true) as
select
    f.tenant_id,
    f.node_type,
    f.origin,
    f.error_type,
    count(*) as error_count,
    count(distinct f.trace_id) as trace_count,
    min(f.started_at) as first_seen_at,
    max(f.started_at) as last_seen_at,
    (array_agg(f.error_message order by f.started_at desc)
        filter (where f.error_message is not null))[1] as last_message,
    (array_agg(f.trace_id order by f.started_at desc))[1] as last_trace_id
from (
    select
        t.tenant_id, 'trace' as node_type, coalesce(t.agent_id, t.route, t.name) as origin,
        coalesce(t.error_type, t.status) as error_type, t.error_message, t.trace_id, t.started_at
    from tracedb.execution_traces as t
    where t.status in ('error', 'timeout')
    union all
    select
        s.tenant_id, 'span', coalesce(s.tool_name, s.response_model, s.request_model, s.name),
        coalesce(s.error_type, s.status), s.status_message, s.trace_id, s.started_at
    from tracedb.llm_spans as s
    where s.status in ('error', 'timeout')
    union all
    select
        r.tenant_id, 'routing_decision', r.selected_agent,
        coalesce(r.error_type, r.status), r.error_message, r.trace_id, r.started_at
    from tracedb.agent_routing_decisions as r
    where r.status in ('error', 'timeout')
    union all
    select
        h.tenant_id, 'hook', coalesce(h.name, h.script, h.hook_type),
        coalesce(h.error_type, h.status), h.error_message, h.trace_id, h.started_at
    from tracedb.hook_executions as h
    where h.status in ('error', 'timeout')
    union all
    select
        e.tenant_id, 'endpoint_call', concat_ws(' ', e.service, e.method, e.path),
        coalesce(e.error_type, 'HTTP ' || e.status_code, e.status), e.error_message, e.trace_id,
        e.started_at
    from tracedb.endpoint_calls as e
    where e.status in ('error', 'timeout')
) as f
group by f.tenant_id, f.node_type, f.origin, f.error_type;

comment on view tracedb.error_analysis is
    'A kind of failure a row: where it happens (node_type and origin: an agent, a model or tool, a '
    'hook, an endpoint), how often, in how many traces, since when, and the newest example.';

create or replace view tracedb.trace_figures with (security_invoker = true) as
select
    t.tenant_id,
    t.trace_id,
    t.user_id,
    t.agent_id,
    t.route,
    t.started_at,
    t.duration_ms,
    t.status,
    t.status in ('error', 'timeout') as has_failed,
    t.parent_trace_id is null as is_request,
    case when not a.has_tokens then t.input_tokens end as input_tokens,
    case when not a.has_tokens then t.output_tokens end as output_tokens,
    case when not a.has_cost then t.cost_usd end as cost_usd,
    not a.has_cost and (t.cost_usd is null or t.unpriced_count > 0) as is_cost_unknown
from tracedb.trace_summary as t
-- What an execution reports for itself as a whole includes those nested in it; their own figures
-- count where none above them reported any. A circle of parents ends by itself: "union".
cross join lateral (
    with recursive above as (
        select t.parent_trace_id as trace_id, false as has_cost, false as has_tokens
        union
        select p.parent_trace_id, p.cost_usd is not null, p.input_tokens is not null
        from above
        join tracedb.execution_traces as p
            on p.tenant_id = t.tenant_id and p.trace_id = above.trace_id
    )
    select bool_or(above.has_cost) as has_cost, bool_or(above.has_tokens) as has_tokens
    from above
) as a;

comment on view tracedb.trace_figures is
    'What each trace adds to a total. A request is a trace that is not nested. Tokens and cost are '
    'those of trace_summary, but null where an execution above reported its own, which include '
    'them: so every sum over traces counts them once. is_cost_unknown: the cost is not known, or '
    'only in part. Every total of tracedb is a sum over these rows.';

create or replace view tracedb.dashboard_summary with (security_invoker = true) as
select
    t.tenant_id,
    count(*) filter (where t.is_request) as trace_count_7d,
    count(*) filter (where t.is_request and r.is_of_today) as trace_count_24h,
    count(*) filter (where t.is_request and t.has_failed) as error_count_7d,
    count(*) filter (where t.is_request and t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.is_request and t.status <> 'running'), 0)
        as success_rate_7d,
    percentile_cont(0.5) within group (order by t.duration_ms)
        filter (where t.is_request) as median_duration_ms_7d,
    percentile_cont(0.95) within group (order by t.duration_ms)
        filter (where t.is_request) as p95_duration_ms_7d,
    sum(t.input_tokens)::bigint as input_tokens_7d,
    sum(t.output_tokens)::bigint as output_tokens_7d,
    sum(t.cost_usd) as cost_usd_7d,
    sum(t.cost_usd) filter (where r.is_of_today) as cost_usd_24h,
    count(distinct t.user_id) as user_count_7d,
    count(distinct t.agent_id) as agent_count_7d,
    max(t.started_at) as last_started_at,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count_7d
from tracedb.trace_figures as t
cross join lateral (select t.started_at >= now() - interval '1 day' as is_of_today) as r
-- The id is the clock, to the day; started_at is exact.
where t.trace_id >= tracedb.uuid_floor(now() - interval '8 days')
    and t.started_at >= now() - interval '7 days'
group by t.tenant_id;

comment on view tracedb.dashboard_summary is
    'A tenant a row, over the requests (traces that are not nested) of the last 7 days and 24 '
    'hours: how many, how well, how fast (milliseconds), users and agents, and the tokens and cost '
    'of these and of what is nested in them. unknown_cost_count_7d counts traces whose cost is '
    'unknown, or known only in part.';

create or replace view tracedb.agent_traces_analytics with (security_invoker = true) as
select
    t.tenant_id,
    t.agent_id,
    t.route,
    count(*) filter (where t.is_request) as request_count,
    count(*) as execution_count,
    count(*) filter (where t.has_failed) as error_count,
    count(*) filter (where t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.status <> 'running'), 0) as success_rate,
    avg(t.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by t.duration_ms) as p50_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms) as p95_duration_ms,
    percentile_cont(0.99) within group (order by t.duration_ms) as p99_duration_ms,
    sum(t.input_tokens)::bigint as input_tokens,
    sum(t.output_tokens)::bigint as output_tokens,
    sum(t.cost_usd) as cost_usd,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
    max(t.started_at) as last_started_at
from tracedb.trace_figures as t
-- The id is the clock, to the day; started_at is exact.
where t.trace_id >= tracedb.uuid_floor(now() - interval '8 days')
    and t.started_at >= now() - interval '7 days'
group by t.tenant_id, t.agent_id, t.route;

comment on view tracedb.agent_traces_analytics is
    'An agent and route a row, over the last 7 days: executions, nested ones too (of them '
    'request_count are not), failures, durations in milliseconds, tokens and cost. agent_id and '
    'route are null where traces name none, so that costs add up. get_analytics answers the same '
    'for any time.';

create or replace view tracedb.user_request_analytics with (security_invoker = true) as
select
    t.tenant_id,
    t.user_id,
    count(*) filter (where t.is_request) as total_requests,
    count(*) as total_executions,
    count(*) filter (where t.is_request and t.has_failed) as total_errors,
    sum(t.input_tokens)::bigint as total_input_tokens,
    sum(t.output_tokens)::bigint as total_output_tokens,
    sum(t.cost_usd) as total_cost_usd,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
    percentile_cont(0.5) within group (order by t.duration_ms)
        filter (where t.is_request) as p50_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms)
        filter (where t.is_request) as p95_duration_ms,
    percentile_cont(0.99) within group (order by t.duration_ms)
        filter (where t.is_request) as p99_duration_ms,
    min(t.started_at) as first_started_at,
    max(t.started_at) as last_started_at
from tracedb.trace_figures as t
group by t.tenant_id, t.user_id;

comment on view tracedb.user_request_analytics is
    'A user a row, over all retained traces: requests (traces that are not nested), how many of '
    'them failed and how long they took in milliseconds, and the tokens and cost of these and of '
    'the nested executions that name the same user. user_id is null for traces that name none.';

reset role;
