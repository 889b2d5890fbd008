-- 568_routing_value.sql: what another way of routing would have been worth.

set role tracedb_owner;

create or replace function tracedb.policy_shares(policy jsonb, candidates jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when jsonb_typeof(policy) = 'object' then policy
        else (
            -- who has the highest score; several of them equally
            select jsonb_object_agg(b.agent, 1.0 / b.n)
            from (
                select c.agent, count(*) over () as n
                from (
                    select
                        e.candidate ->> 'agent' as agent,
                        rank() over (
                            order by max((e.candidate -> 'score')::double precision) desc) as place
                    from jsonb_array_elements(candidates) as e(candidate)
                    where jsonb_typeof(e.candidate -> 'score') = 'number'
                        and e.candidate ->> 'agent' is not null
                    group by e.candidate ->> 'agent'
                ) as c
                where c.place = 1
            ) as b
        )
    end
$$;

comment on function tracedb.policy_shares(jsonb, jsonb) is
    'With what probability a policy chooses each agent: {"agent": probability} as it is given, or '
    'for "greedy" by the scores of the candidates. Null if greedy and no candidate has a score. '
    'Internal.';

create or replace function tracedb.evaluate_routing(
    policy jsonb,
    since timestamptz default now() - interval '30 days',
    until timestamptz default now(),
    reward text default 'success',
    min_effective integer default 20,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    decisions bigint, rewarded bigint, effective double precision, unsupported double precision,
    logged_value double precision,
    ips double precision, ips_low double precision, ips_high double precision,
    snips double precision, snips_low double precision, snips_high double precision,
    reason text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    wanted constant text := reward;
    threshold constant double precision := (tracedb.pattern_settings(tenant)).success_threshold;
    lowest constant uuid := tracedb.uuid_floor(since);
    highest constant uuid := tracedb.uuid_floor(until);
    total double precision;
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    if wanted is null or wanted not in ('success', 'score', 'cost', 'duration') then
        raise exception using errcode = 'TD002',
            message = 'reward: must be success, score, cost or duration';
    end if;
    if min_effective is null or min_effective < 2 then
        raise exception using errcode = 'TD002', message = 'min_effective: must be at least 2';
    end if;
    if jsonb_typeof(policy) = 'object' then
        if exists (
            select from jsonb_each(policy) as p
            where jsonb_typeof(p.value) <> 'number' or p.value::numeric not between 0 and 1
        ) then
            raise exception using errcode = 'TD002',
                message = 'policy: probabilities must be numbers from 0 to 1';
        end if;
        select sum(p.value::numeric) into total from jsonb_each(policy) as p;
        if total is null or abs(total - 1) > 1e-9 then
            raise exception using errcode = 'TD002',
                message = 'policy: probabilities must add up to 1';
        end if;
    elsif policy is distinct from '"greedy"' then
        raise exception using errcode = 'TD002',
            message = 'policy: must be {"agent": probability, ...} or "greedy"';
    end if;
    return query
    with first_decisions as materialized (
        select distinct on (r.trace_id)
            r.trace_id, r.selected_agent, r.selection_probability, r.candidates
        from tracedb.agent_routing_decisions as r
        where r.tenant_id = tenant and r.trace_id >= lowest and r.trace_id < highest
        order by r.trace_id, r.started_at, r.span_id
    ),
    rewards as (
        select
            s.trace_id,
            case wanted
                when 'success' then (s.score >= threshold)::integer::double precision
                when 'score' then s.score
                when 'cost' then t.cost_usd::double precision
                when 'duration' then t.duration_ms::double precision
            end as reward
        from tracedb.score_traces(array(select d.trace_id from first_decisions as d), tenant) as s
        left join tracedb.trace_summary as t
            on wanted in ('cost', 'duration') and t.tenant_id = tenant and t.trace_id = s.trace_id
        where s.score is not null
    ),
    samples as (
        select
            d.selection_probability as p, v.reward, a.shares,
            coalesce((a.shares ->> d.selected_agent)::double precision, 0)
                / d.selection_probability as weight,
            -- what the policy would choose, and the router could not have: there it has no record
            (
                select coalesce(sum(s.share::double precision), 0)
                from jsonb_each_text(a.shares) as s (agent, share)
                where s.share::double precision > 0 and s.agent <> d.selected_agent
                    and not exists (
                        select from jsonb_array_elements(d.candidates) as e(candidate)
                        where e.candidate ->> 'agent' = s.agent
                            and jsonb_typeof(e.candidate -> 'probability') = 'number'
                            and (e.candidate -> 'probability')::double precision > 0
                    )
            ) as unsupported
        from first_decisions as d
        join rewards as v on v.trace_id = d.trace_id and v.reward is not null
        cross join lateral tracedb.policy_shares(policy, d.candidates) as a(shares)
    ),
    sums as (
        select
            (select count(*) from first_decisions) as decisions,
            count(*) as n,
            count(*) filter (where s.p is null) as without_probability,
            count(*) filter (where s.shares is null) as without_score,
            avg(s.unsupported) as unsupported,
            avg(s.reward) as logged_value,
            sum(s.weight) as weights,
            sum(s.weight * s.weight) as squares,
            avg(s.weight * s.reward) as ips,
            stddev_samp(s.weight * s.reward) / sqrt(count(*)) as ips_error,
            sum(s.weight * s.reward) / nullif(sum(s.weight), 0) as snips
        from samples as s
    ),
    judged as (
        select
            t.*, t.weights * t.weights / nullif(t.squares, 0) as effective,
            (
                select sqrt(sum(power(s.weight * (s.reward - t.snips), 2))) / nullif(t.weights, 0)
                from samples as s
            ) as snips_error
        from sums as t
    ),
    answered as (
        select j.*, case
            when j.n = 0 then 'no decision of a trace with a known ' || wanted
            when j.without_probability > 0 then format(
                '%s of %s decisions have no selection_probability', j.without_probability, j.n)
            when j.without_score > 0 then format(
                '%s of %s decisions have no candidate with a score', j.without_score, j.n)
            when j.unsupported > 1e-9 then format(
                'no overlap: %s %% of what this policy would choose, the router never could (by '
                'the probabilities of the candidates)', round((100 * j.unsupported)::numeric, 1))
            when coalesce(j.effective, 0) < min_effective then format(
                'too little overlap: the decisions are worth %s of this policy''s own, %s are '
                'needed', round(coalesce(j.effective, 0)::numeric, 1), min_effective)
        end as reason
        from judged as j
    )
    select
        a.decisions, a.n, a.effective, a.unsupported, a.logged_value,
        v.ips, v.ips - 1.96 * v.ips_error, v.ips + 1.96 * v.ips_error,
        v.snips, v.snips - 1.96 * v.snips_error, v.snips + 1.96 * v.snips_error,
        a.reason
    from answered as a
    left join answered as v on v.reason is null;
end $$;

comment on function tracedb.evaluate_routing(
    jsonb, timestamptz, timestamptz, text, integer, uuid
) is
    'What routing by another policy would have been worth, from the decisions that were made (the '
    'first of each trace of that time) and the probability they were made with. The policy: '
    '{"agent": probability, ...}, the same for every request, or "greedy" by the scores of the '
    'candidates. The reward: success (1 if the score reaches the threshold) or score '
    '(score_trace), cost (US dollars) or duration (milliseconds). Each decision weighs w = '
    'policy''s probability / logged probability: ips = mean(w r) (Horvitz and Thompson, 1952), '
    'unbiased; snips = sum(w r) / sum(w) (Swaminathan and Joachims, The Self-Normalized Estimator '
    'for Counterfactual Learning, 2015), steadier; both with a normal 95 % interval, the second '
    'by the delta method. effective = sum(w)^2 / sum(w^2) (Kish, Survey Sampling, 1965): so many '
    'decisions of the policy itself would say as much. There is a reason and no number where a '
    'probability is missing, where the policy chooses agents that the router could not have '
    'chosen (unsupported: their mean share), and where effective is below min_effective. '
    'logged_value is what the routing in use had.';

reset role;
