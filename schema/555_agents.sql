-- 555_agents.sql: how well agents do.

set role tracedb_owner;

create or replace function tracedb.wilson_interval(successes bigint, trials bigint)
returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when trials > 0 then array[
        tracedb.wilson_lower(successes, trials, 1.959963984540054),  -- 95 %
        tracedb.wilson_upper(successes, trials, 1.959963984540054)
    ] end
$$;

comment on function tracedb.wilson_interval(bigint, bigint) is
    'The 95 % confidence interval, as [low, high], of a share of which so many trials succeeded '
    '(Wilson, Probable Inference, 1927). Null without trials. Rank by its low end: three of three '
    'is not better than 990 of 1000.';

create or replace function tracedb.agent_report(
    since timestamptz,
    until timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    agent_id text, executions bigint, errors bigint, success_rate double precision,
    success_rate_low double precision, success_rate_high double precision,
    p50_duration_ms double precision, p95_duration_ms double precision, input_tokens bigint,
    output_tokens bigint, cost_usd numeric, unknown_cost_count bigint, cost_per_success_usd numeric,
    runs bigint, run_success_rate double precision, run_success_rate_low double precision,
    run_success_rate_high double precision, quality_score double precision,
    citation_accuracy double precision, hallucination_rate double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    return query
    with traced as (
        select
            u.agent_id,
            sum(u.executions)::bigint as executions,
            sum(u.errors)::bigint as errors,
            sum(u.successes)::bigint as successes,
            sum(u.executions - u.running)::bigint as finished,
            sum(u.input_tokens)::bigint as input_tokens,
            sum(u.output_tokens)::bigint as output_tokens,
            case when sum(u.costed) > 0 then sum(u.cost_usd) end as cost_usd,
            sum(u.unpriced)::bigint as unpriced,
            tracedb.percentiles_ms(array_agg(u), array[0.5, 0.95]) as percentiles
        from tracedb.usage_series(since, until, 'total', tenant) as u
        where u.kind in ('request', 'nested') and u.agent_id is not null
        group by u.agent_id
    ),
    judged as (
        select
            e.agent_id,
            count(*) as runs,
            count(*) filter (where e.success) as successes,
            avg(e.quality_score) as quality_score,
            avg(e.citation_accuracy) as citation_accuracy,
            avg(e.hallucination_detected::integer)::double precision as hallucination_rate
        from tracedb.agent_executions as e
        where e.tenant_id = tenant
            -- the id is the clock, to the day
            and e.event_id >= tracedb.uuid_floor(since - interval '1 day')
            and e.event_id < tracedb.uuid_floor(until + interval '1 day')
            and e.occurred_at >= since and e.occurred_at < until
        group by e.agent_id
    )
    select
        coalesce(t.agent_id, j.agent_id), coalesce(t.executions, 0), coalesce(t.errors, 0),
        t.successes::double precision / nullif(t.finished, 0), w.interval[1], w.interval[2],
        t.percentiles[1], t.percentiles[2], coalesce(t.input_tokens, 0),
        coalesce(t.output_tokens, 0), t.cost_usd, coalesce(t.unpriced, 0),
        t.cost_usd / nullif(t.successes, 0), coalesce(j.runs, 0),
        j.successes::double precision / j.runs, v.interval[1], v.interval[2], j.quality_score,
        j.citation_accuracy, j.hallucination_rate
    from traced as t
    full join judged as j on j.agent_id = t.agent_id
    cross join lateral tracedb.wilson_interval(t.successes, t.finished) as w(interval)
    cross join lateral tracedb.wilson_interval(j.successes, j.runs) as v(interval)
    order by coalesce(v.interval[1], w.interval[1]) desc nulls last, 1;
end $$;

comment on function tracedb.agent_report(timestamptz, timestamptz, uuid) is
    'Agents compared from since to until (exclusive), the most surely successful first (by the low '
    'end of the 95 % interval of run_success_rate, else of success_rate; wilson_interval). From '
    'usage totals: executions (traces that name the agent, nested ones too), errors, success_rate '
    '= ok / finished, latency in milliseconds within 1 %, tokens and cost by the rules of '
    'trace_figures, cost_per_success_usd = cost / ok. From agent_executions: runs, '
    'run_success_rate = success / runs, mean quality_score and citation_accuracy, and '
    'hallucination_rate, of the runs that say. Rates are 0 to 1; null where nothing is known.';

create or replace function tracedb.get_agent_success_rate(
    agent_id text,
    hours integer default 24,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns double precision
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if hours is null or hours not between 1 and 876000 then
        raise exception using errcode = 'TD002', message = 'hours: must be from 1 to 876000';
    end if;
    return (
        select 100 * coalesce(r.run_success_rate, r.success_rate)
        from tracedb.agent_report(as_of - hours * interval '1 hour', as_of, tenant_id) as r
        where r.agent_id = get_agent_success_rate.agent_id
    );
end $$;

comment on function tracedb.get_agent_success_rate(text, integer, timestamptz, uuid) is
    'How many per cent (0 to 100) of an agent''s runs in the hours before as_of were a success: of '
    'agent_executions, or of its finished traces where it has none of these. Null without any.';

reset role;
