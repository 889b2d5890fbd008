-- 528_analytics.sql: totals, by agent, by route and of a user.

set role tracedb_owner;

create or replace function tracedb.get_analytics(
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    since constant timestamptz := as_of - days * interval '1 day';
begin
    if days is null or days not between 1 and 36500 then
        raise exception using errcode = 'TD002', message = 'days: must be from 1 to 36500';
    end if;
    return (
        with figures as (
            select
                grouping(u.agent_id) as all_agents,
                grouping(u.route) as all_routes,
                u.agent_id,
                u.route,
                coalesce(sum(u.executions) filter (where u.kind = 'request'), 0) as requests,
                coalesce(sum(u.errors) filter (where u.kind = 'request'), 0) as failed_requests,
                coalesce(sum(u.executions), 0) as executions,
                coalesce(sum(u.errors), 0) as errors,
                coalesce(sum(u.input_tokens), 0) as input_tokens,
                coalesce(sum(u.output_tokens), 0) as output_tokens,
                case when sum(u.costed) > 0 then sum(u.cost_usd) end as cost_usd,
                coalesce(sum(u.unpriced), 0) as unknown_cost_count,
                tracedb.percentiles_ms(
                    tracedb.merged_durations(u.duration_buckets, u.duration_counts),
                    array[0.5, 0.95, 0.99]) as percentiles,
                tracedb.percentiles_ms(
                    tracedb.merged_durations(u.duration_buckets, u.duration_counts)
                        filter (where u.kind = 'request'),
                    array[0.5, 0.95, 0.99]) as request_percentiles
            from tracedb.usage_between(since, as_of, false, tenant_id) as u
            where u.kind in ('request', 'nested')
            group by grouping sets ((), (u.agent_id), (u.route))
        ),
        shown as (
            select f.*, jsonb_build_object(
                'requests', f.requests, 'executions', f.executions, 'errors', f.errors,
                'input_tokens', f.input_tokens, 'output_tokens', f.output_tokens,
                'cost_usd', f.cost_usd, 'unknown_cost_count', f.unknown_cost_count,
                'p50_duration_ms', f.percentiles[1], 'p95_duration_ms', f.percentiles[2],
                'p99_duration_ms', f.percentiles[3]) as document
            from figures as f
        )
        select jsonb_build_object(
            'since', since, 'until', as_of,
            'total_requests', s.requests, 'total_executions', s.executions,
            'total_errors', s.failed_requests, 'total_input_tokens', s.input_tokens,
            'total_output_tokens', s.output_tokens, 'total_cost_usd', s.cost_usd,
            'unknown_cost_count', s.unknown_cost_count,
            'p50_duration_ms', s.request_percentiles[1],
            'p95_duration_ms', s.request_percentiles[2],
            'p99_duration_ms', s.request_percentiles[3],
            'by_agent', coalesce((
                select jsonb_agg(jsonb_build_object('agent_id', a.agent_id) || a.document
                    order by a.executions desc, a.agent_id)
                from shown as a where a.all_agents = 0 and a.executions > 0
            ), '[]'),
            'by_route', coalesce((
                select jsonb_agg(jsonb_build_object('route', r.route) || r.document
                    order by r.executions desc, r.route)
                from shown as r where r.all_routes = 0 and r.executions > 0
            ), '[]'))
        from shown as s
        where s.all_agents = 1 and s.all_routes = 1
    );
end $$;

comment on function tracedb.get_analytics(integer, timestamptz, uuid) is
    'The days before as_of as one document: {"since", "until", "total_requests", '
    '"total_executions", "total_errors", "total_input_tokens", "total_output_tokens", '
    '"total_cost_usd", "unknown_cost_count", "p50_duration_ms", "p95_duration_ms", '
    '"p99_duration_ms", "by_agent": [...], "by_route": [...]}. Requests are traces that are not '
    'nested; of them are total_errors and the percentiles. A group (its agent_id or route is null '
    'where traces name none) has requests, executions, errors, input_tokens, output_tokens, '
    'cost_usd, unknown_cost_count and percentiles, the last ones and errors of all its executions, '
    'nested ones too; requests, executions, tokens and cost of the groups add up to the totals. '
    'Money is null where none is known; unknown tokens count as 0. Percentiles are within 1 % (see '
    'percentiles_ms). Rules of money: trace_figures. Read from usage_rollups, but exact at every '
    'moment, and for times whose traces are gone (see usage_series).';

create or replace function tracedb.get_user_analytics(
    user_id text, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    return (
        select to_jsonb(a) - 'tenant_id'
        from tracedb.user_request_analytics as a
        where a.tenant_id = get_user_analytics.tenant_id
            and a.user_id = get_user_analytics.user_id
    );
end $$;

comment on function tracedb.get_user_analytics(text, uuid) is
    'A user over all retained traces, as one document: the row of user_request_analytics. Null if '
    'no trace names the user.';

reset role;
