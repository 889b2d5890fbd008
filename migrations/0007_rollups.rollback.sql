-- 0007_rollups.rollback.sql: drops the totals; analytics count traces again.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

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
                grouping(t.agent_id) as all_agents,
                grouping(t.route) as all_routes,
                t.agent_id,
                t.route,
                count(*) filter (where t.is_request) as requests,
                count(*) filter (where t.is_request and t.has_failed) as failed_requests,
                count(*) as executions,
                count(*) filter (where t.has_failed) as errors,
                sum(t.input_tokens) as input_tokens,
                sum(t.output_tokens) as output_tokens,
                sum(t.cost_usd) as cost_usd,
                count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
                percentile_cont(array[0.5, 0.95, 0.99]) within group (order by t.duration_ms)
                    as percentiles,
                percentile_cont(array[0.5, 0.95, 0.99]) within group (order by t.duration_ms)
                    filter (where t.is_request) as request_percentiles
            from tracedb.trace_figures as t
            where t.tenant_id = get_analytics.tenant_id
                -- the id is the clock, to the day; started_at is exact
                and t.trace_id >= tracedb.uuid_floor(since - interval '1 day')
                and t.trace_id < tracedb.uuid_floor(as_of + interval '1 day')
                and t.started_at >= since and t.started_at < as_of
            group by grouping sets ((), (t.agent_id), (t.route))
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
                from shown as a where a.all_agents = 0
            ), '[]'),
            'by_route', coalesce((
                select jsonb_agg(jsonb_build_object('route', r.route) || r.document
                    order by r.executions desc, r.route)
                from shown as r where r.all_routes = 0
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
    'Money is null where none is known. Rules of money: trace_figures.';

drop function tracedb.tenants_report(timestamptz, timestamptz);
drop function tracedb.usage_differences(timestamptz, timestamptz, uuid);
drop function tracedb.usage_series(timestamptz, timestamptz, text, uuid);
drop function tracedb.usage_between(timestamptz, timestamptz, boolean, uuid);
drop function tracedb.fold_usage(integer);
drop function tracedb.add_to_rollups(text, tracedb.usage_contributions[], uuid);
drop function tracedb.with_nested(uuid[], uuid);
drop function tracedb.negated_usage(tracedb.usage_contributions);
drop function tracedb.added_usage(tracedb.usage_contributions[]);
drop function tracedb.usage_of_traces(uuid[], tstzmultirange, uuid);
drop function tracedb.percentiles_ms(tracedb.usage_contributions[], double precision[]);
drop function tracedb.percentiles_ms(smallint[], bigint[], double precision[]);
update tracedb.partition_policies
set parents = array_remove(parents, 'usage_contributions')
where family = 'traces';
drop table tracedb.usage_contributions;
drop table tracedb.usage_rollups;
drop policy trace_changes_maintainer_update on tracedb.trace_changes;
revoke update (folded) on tracedb.trace_changes from tracedb_maintainer;

reset role;
