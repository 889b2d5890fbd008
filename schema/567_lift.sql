-- 567_lift.sql: whether patterns help.

set role tracedb_owner;

create or replace function tracedb.newcombe_interval(
    successes_1 bigint, trials_1 bigint, successes_2 bigint, trials_2 bigint
)
returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when trials_1 > 0 and trials_2 > 0 then array[
        a.p - b.p - sqrt(power(a.p - a.w[1], 2) + power(b.w[2] - b.p, 2)),
        a.p - b.p + sqrt(power(a.w[2] - a.p, 2) + power(b.p - b.w[1], 2))
    ] end
    from (
        select
            successes_1 / nullif(trials_1, 0)::double precision as p,
            tracedb.wilson_interval(successes_1, trials_1) as w
    ) as a
    cross join (
        select
            successes_2 / nullif(trials_2, 0)::double precision as p,
            tracedb.wilson_interval(successes_2, trials_2) as w
    ) as b
$$;

comment on function tracedb.newcombe_interval(bigint, bigint, bigint, bigint) is
    'The 95 % confidence interval, as [low, high], of the difference of two shares, the first less '
    'the second (Newcombe, Interval estimation for the difference between independent '
    'proportions, Statistics in Medicine 1998, method 10, from Wilson intervals). Null where '
    'either has no trials.';

create or replace view tracedb.pattern_effectiveness with (security_invoker = true) as
select
    p.tenant_id,
    p.pattern_id,
    p.intent,
    p.agent_id,
    p.prompt,
    h.use_count,
    h.use_successes,
    h.use_failures,
    h.use_successes::double precision / nullif(h.use_successes + h.use_failures, 0)
        as success_rate,
    i.interval[1] as success_rate_low,
    i.interval[2] as success_rate_high,
    l.mean_deviation,
    l.mean_quality,
    l.duration_ratio,
    h.trace_count,
    h.success_count,
    h.last_used_at,
    p.retired_at
from (select distinct s.tenant_id from tracedb.success_patterns as s) as o
cross join lateral tracedb.pattern_history(
    array(
        select a.pattern_id from tracedb.success_patterns as a where a.tenant_id = o.tenant_id
    ), now(), o.tenant_id) as h
join tracedb.success_patterns as p
    on p.tenant_id = o.tenant_id and p.pattern_id = h.pattern_id
cross join lateral tracedb.wilson_interval(
    h.use_successes, h.use_successes + h.use_failures) as i(interval)
left join (
    select
        u.tenant_id,
        u.pattern_id,
        avg(u.deviation) as mean_deviation,
        avg(u.quality) as mean_quality,
        sum(u.duration_ms) filter (where u.expected_duration_ms > 0)::double precision
            / nullif(sum(u.expected_duration_ms) filter (where u.duration_ms is not null), 0)
            as duration_ratio
    from tracedb.pattern_usage_log as u
    where u.arm = 'pattern' and u.applied
    group by u.tenant_id, u.pattern_id
) as l on l.tenant_id = p.tenant_id and l.pattern_id = p.pattern_id;

comment on view tracedb.pattern_effectiveness is
    'A pattern a row: its uses, how they ended, and the success rate (0 to 1) of those with a '
    'known end with its 95 % interval (wilson_interval); exact at every moment, folded or not. '
    'Of the uses that are still in the log (pattern_usage_log): mean deviation and quality, and '
    'duration_ratio, the time taken in parts of the time expected. trace_count and success_count '
    'are of the traces it was learned from.';

create or replace function tracedb.pattern_lift(
    of_pattern uuid default null,
    since timestamptz default now() - interval '90 days',
    until timestamptz default now(),
    min_traces integer default 20,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    pattern_id uuid, comparison text, with_traces bigint, with_successes bigint,
    without_traces bigint, without_successes bigint, with_rate double precision,
    without_rate double precision, difference double precision,
    difference_low double precision, difference_high double precision, reason text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    threshold constant double precision := (tracedb.pattern_settings(tenant)).success_threshold;
    lowest constant uuid := tracedb.uuid_floor(since);
    highest constant uuid := tracedb.uuid_floor(until);
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    if min_traces is null or min_traces < 1 then
        raise exception using errcode = 'TD002', message = 'min_traces: must be at least 1';
    end if;
    return query
    with uses as materialized (
        select u.trace_id, u.pattern_id, u.arm, u.applied, u.success
        from tracedb.pattern_usage_log as u
        where u.tenant_id = tenant and u.trace_id >= lowest and u.trace_id < highest
            and (of_pattern is null or u.pattern_id = of_pattern)
    ),
    patterns as (
        select
            u.pattern_id, p.agent_id, p.intent, bool_or(u.arm = 'control') as is_randomised,
            bool_or(u.arm = 'control' and u.success is not null) as has_outcomes
        from uses as u
        left join tracedb.success_patterns as p
            on p.tenant_id = tenant and p.pattern_id = u.pattern_id
        group by u.pattern_id, p.agent_id, p.intent
    ),
    alike as materialized (
        select t.trace_id, p.pattern_id
        from (
            select t.trace_id, left(t.agent_id, 200) as agent_id, l.label
            from tracedb.execution_traces as t
            cross join lateral tracedb.intent_label(t.intent) as l(label)
            where t.tenant_id = tenant and t.trace_id >= lowest and t.trace_id < highest
                and t.parent_trace_id is null and t.status <> 'running'
                and exists (
                    select from patterns as p
                    where not p.is_randomised
                        and p.agent_id is not distinct from left(t.agent_id, 200)
                        and p.intent is not distinct from l.label
                )
                and not exists (
                    select from tracedb.pattern_usage_log as u
                    where u.tenant_id = tenant and u.trace_id = t.trace_id
                )
            order by t.trace_id desc
            limit 10000
        ) as t
        join patterns as p
            on not p.is_randomised and p.agent_id is not distinct from t.agent_id
            and p.intent is not distinct from t.label
    ),
    scored as (
        select s.trace_id, s.score >= threshold as success
        from tracedb.score_traces(array(
            select u.trace_id from uses as u union select a.trace_id from alike as a
        ), tenant) as s
        where s.score is not null
    ),
    ends as (
        select
            u.pattern_id, 'randomised' as comparison, u.arm = 'pattern' as has_pattern,
            -- one measure for both: outcomes of one side and scores of the other differ anyway
            case when p.has_outcomes then coalesce(u.success, s.success) else s.success end
                as success
        from uses as u
        join patterns as p on p.pattern_id = u.pattern_id and p.is_randomised
        left join scored as s on s.trace_id = u.trace_id
        union all
        select u.pattern_id, 'observational', true, s.success
        from uses as u
        join patterns as p on p.pattern_id = u.pattern_id and not p.is_randomised
        join scored as s on s.trace_id = u.trace_id
        where u.applied
        union all
        select a.pattern_id, 'observational', false, s.success
        from alike as a
        join scored as s on s.trace_id = a.trace_id
        union all
        select null, 'randomised', t.has_pattern, coalesce(t.success, s.success)
        from (
            select
                u.trace_id, bool_or(u.arm = 'pattern') as has_pattern,
                bool_and(u.success) filter (where p.has_outcomes) as success
            from uses as u
            join patterns as p on p.pattern_id = u.pattern_id
            -- what was held back from nobody would count with the pattern alone
            where p.is_randomised or not exists (select from patterns as r where r.is_randomised)
            group by u.trace_id
        ) as t
        left join scored as s on s.trace_id = t.trace_id
        where of_pattern is null
    ),
    arms as (
        select
            e.pattern_id, e.comparison,
            count(e.success) filter (where e.has_pattern) as with_n,
            count(*) filter (where e.has_pattern and e.success) as with_k,
            count(e.success) filter (where not e.has_pattern) as without_n,
            count(*) filter (where not e.has_pattern and e.success) as without_k
        from ends as e
        group by e.pattern_id, e.comparison
    )
    select
        a.pattern_id, a.comparison, a.with_n, a.with_k, a.without_n, a.without_k,
        r.with_rate, r.without_rate,
        case when w.reason is null then r.with_rate - r.without_rate end,
        case when w.reason is null then i.interval[1] end,
        case when w.reason is null then i.interval[2] end,
        w.reason
    from arms as a
    cross join lateral (
        select
            a.with_k / nullif(a.with_n, 0)::double precision as with_rate,
            a.without_k / nullif(a.without_n, 0)::double precision as without_rate
    ) as r
    cross join lateral tracedb.newcombe_interval(a.with_k, a.with_n, a.without_k, a.without_n)
        as i(interval)
    cross join lateral (
        select case
            when a.with_n < min_traces then
                format('%s traces with the pattern, %s are needed', a.with_n, min_traces)
            when a.without_n < min_traces then
                format('%s traces without it, %s are needed', a.without_n, min_traces)
        end as reason
    ) as w
    order by a.pattern_id nulls first;
end $$;

comment on function tracedb.pattern_lift(uuid, timestamptz, timestamptz, integer, uuid) is
    'Whether a pattern helps: the success rate (0 to 1) of traces that had it less that of traces '
    'that had not, with the 95 % interval of the difference (newcombe_interval). A row of all '
    'patterns that were ever held back together (pattern_id null), and one for each pattern '
    '(of_pattern null: of all) used in traces of that time. comparison says how: randomised, where '
    'the log has a control arm: all for whom it was found, followed or not, against those from '
    'whom it was held back, all by their score (score_trace), or, where outcomes of both were '
    'logged, by these and else the score; observational, where it has none: traces that followed '
    'it against traces without any pattern, of the same agent and intent (of the newest 10,000), '
    'all by their score. That is no proof: the traces may differ in more than the pattern. With '
    'fewer than min_traces on a side there is no difference, but a reason.';

reset role;
