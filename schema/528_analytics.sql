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
        with lines as materialized (
            select u.*
            from tracedb.usage_between(since, as_of, false, tenant_id) as u
            where u.kind in ('request', 'nested')
        ),
        sums as (
            select
                grouping(l.agent_id, l.route) as level,
                l.agent_id,
                l.route,
                coalesce(sum(l.executions) filter (where l.kind = 'request'), 0) as requests,
                coalesce(sum(l.errors) filter (where l.kind = 'request'), 0) as failed_requests,
                coalesce(sum(l.executions), 0) as executions,
                coalesce(sum(l.errors), 0) as errors,
                coalesce(sum(l.input_tokens), 0) as input_tokens,
                coalesce(sum(l.output_tokens), 0) as output_tokens,
                case when sum(l.costed) > 0 then sum(l.cost_usd) end as cost_usd,
                coalesce(sum(l.unpriced), 0) as unknown_cost_count
            from lines as l
            group by grouping sets ((), (l.agent_id), (l.route))
        ),
        -- of the total: the requests' alone
        buckets as (
            select
                grouping(l.agent_id, l.route) as level, l.agent_id, l.route, d.bucket,
                case
                    when grouping(l.agent_id, l.route) < 3 then sum(d.n)
                    else coalesce(sum(d.n) filter (where l.kind = 'request'), 0)
                end::bigint as n
            from lines as l
            cross join lateral unnest(l.duration_buckets, l.duration_counts) as d (bucket, n)
            group by grouping sets ((d.bucket), (l.agent_id, d.bucket), (l.route, d.bucket))
        ),
        histograms as (
            select
                b.level, b.agent_id, b.route,
                tracedb.percentiles_ms(
                    array_agg(b.bucket order by b.bucket), array_agg(b.n order by b.bucket),
                    array[0.5, 0.95, 0.99]) as percentiles
            from buckets as b
            where b.n <> 0
            group by b.level, b.agent_id, b.route
        ),
        shown as (
            select s.*, h.percentiles, jsonb_build_object(
                'requests', s.requests, 'executions', s.executions, 'errors', s.errors,
                'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
                'cost_usd', s.cost_usd, 'unknown_cost_count', s.unknown_cost_count,
                'p50_duration_ms', h.percentiles[1], 'p95_duration_ms', h.percentiles[2],
                'p99_duration_ms', h.percentiles[3]) as document
            from sums as s
            left join histograms as h
                on h.level = s.level and h.agent_id is not distinct from s.agent_id
                and h.route is not distinct from s.route
            where s.level = 3 or s.executions > 0
        )
        select jsonb_build_object(
            'since', since, 'until', as_of,
            'total_requests', s.requests, 'total_executions', s.executions,
            'total_errors', s.failed_requests, 'total_input_tokens', s.input_tokens,
            'total_output_tokens', s.output_tokens, 'total_cost_usd', s.cost_usd,
            'unknown_cost_count', s.unknown_cost_count,
            'p50_duration_ms', s.percentiles[1],
            'p95_duration_ms', s.percentiles[2],
            'p99_duration_ms', s.percentiles[3],
            'by_agent', coalesce((
                select jsonb_agg(jsonb_build_object('agent_id', a.agent_id) || a.document
                    order by a.executions desc, a.agent_id)
                from shown as a where a.level = 1
            ), '[]'),
            'by_route', coalesce((
                select jsonb_agg(jsonb_build_object('route', r.route) || r.document
                    order by r.executions desc, r.route)
                from shown as r where r.level = 2
            ), '[]'))
        from shown as s
        where s.level = 3
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
