-- 557_insight.sql: how a tenant fares: health, risk of leaving, rhythm, what it uses.

-- Days are those of UTC, and whole: the day of as_of is not over, so it does not count.

set role tracedb_owner;

create or replace function tracedb.daily_requests(
    days integer, as_of timestamptz, tenant_id uuid
)
returns table (day timestamptz, requests bigint, finished bigint, successes bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    until constant timestamptz := date_trunc('day', as_of);
begin
    return query
    select
        d.day, coalesce(sum(u.executions), 0)::bigint,
        coalesce(sum(u.executions - u.running), 0)::bigint, coalesce(sum(u.successes), 0)::bigint
    from generate_series(
        until - days * interval '1 day', until - interval '1 day', interval '1 day') as d(day)
    left join tracedb.usage_series(until - days * interval '1 day', until, 'day', tenant_id) as u
        on u.starts_at = d.day and u.kind = 'request'
    group by d.day
    order by d.day;
end $$;

comment on function tracedb.daily_requests(integer, timestamptz, uuid) is
    'A row for each of the whole days before as_of: how many requests there were (0 too), finished '
    'and ok. Internal.';

create or replace function tracedb.get_tenant_health(
    as_of timestamptz default now(), tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    score double precision, reliability double precision, activity double precision,
    trend double precision, latency double precision, quality double precision,
    requests_7d bigint, requests_28d bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    today constant timestamptz := date_trunc('day', as_of);
    week_ago constant timestamptz := today - interval '7 days';
begin
    return query
    with requests as (
        select
            sum(d.requests) filter (where d.day >= week_ago) as last_7,
            sum(d.requests) filter (where d.day < week_ago) as before_21,
            sum(d.successes) filter (where d.day >= week_ago)::double precision
                / nullif(sum(d.finished) filter (where d.day >= week_ago), 0) as success_rate,
            count(*) filter (where d.day >= week_ago and d.requests > 0) as days_of_7,
            count(*) filter (where d.day < week_ago and d.requests > 0) as days_of_21,
            sum(d.requests) as last_28
        from tracedb.daily_requests(28, as_of, tenant) as d
    ),
    latencies as (
        select
            (tracedb.percentiles_ms(array_agg(u) filter (where u.starts_at >= week_ago),
                array[0.95]))[1] as last_7,
            (tracedb.percentiles_ms(array_agg(u) filter (where u.starts_at < week_ago),
                array[0.95]))[1] as before_21
        from tracedb.usage_series(today - interval '28 days', today, 'day', tenant) as u
        where u.kind = 'request'
    ),
    judged as (
        select avg(e.quality_score) as quality
        from tracedb.agent_executions as e
        where e.tenant_id = tenant
            and e.event_id >= tracedb.uuid_floor(week_ago - interval '1 day')
            and e.event_id < tracedb.uuid_floor(today + interval '1 day')
            and e.occurred_at >= week_ago and e.occurred_at < today
    ),
    parts as (
        select
            r.success_rate as reliability,
            case when r.days_of_21 > 0 then least(1, r.days_of_7 * 3.0 / r.days_of_21) end
                ::double precision as activity,
            case when r.before_21 > 0 then least(1, r.last_7 * 3.0 / r.before_21) end
                ::double precision as trend,
            case
                when l.last_7 > 0 and l.before_21 is not null then least(1, l.before_21 / l.last_7)
            end as latency,
            j.quality,
            r.last_7::bigint as requests_7d,
            r.last_28::bigint as requests_28d
        from requests as r, latencies as l, judged as j
    )
    select
        case when p.requests_28d > 0 then (
            select 100 * sum(c.weight * c.value) / sum(c.weight)
            from (values
                (0.35, p.reliability), (0.2, p.activity), (0.2, p.trend), (0.1, p.latency),
                (0.15, p.quality)
            ) as c (weight, value)
            where c.value is not null
        ) end,
        p.reliability, p.activity, p.trend, p.latency, p.quality, p.requests_7d, p.requests_28d
    from parts as p;
end $$;

comment on function tracedb.get_tenant_health(timestamptz, uuid) is
    'How well a tenant fares, 0 to 100, from the 28 whole days before as_of: 100 times the '
    'weighted mean of what is known of: reliability (weight 0.35) = ok / finished requests of the '
    'last 7 days; activity (0.2) = days with a request of the last 7, against the 21 before (a '
    'third of them, at most 1); trend (0.2) = requests of the last 7 days, likewise; latency '
    '(0.1) = p95 of the 21 days before / p95 of the last 7, at most 1; quality (0.15) = mean '
    'quality_score of agent_executions of the last 7 days. Each is 0 to 1, or null where nothing '
    'can be compared; the score is null for a tenant without a request in 28 days.';

create or replace function tracedb.get_churn_risk(
    as_of timestamptz default now(), tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    risk double precision, level text, silence double precision, decline double precision,
    days_silent bigint, active_day_rate double precision, last_active_day timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    today constant timestamptz := date_trunc('day', as_of);
begin
    return query
    with days as (
        select d.* from tracedb.daily_requests(90, as_of, tenant_id) as d
    ),
    rhythm as (
        select
            min(d.day) filter (where d.requests > 0) as first_day,
            max(d.day) filter (where d.requests > 0) as last_day,
            count(*) filter (where d.requests > 0) as active_days,
            sum(d.requests) filter (where d.day >= today - interval '7 days') as last_7,
            sum(d.requests) filter (where d.day < today - interval '7 days'
                and d.day >= today - interval '35 days') as before_28
        from days as d
    ),
    measured as (
        select
            r.*,
            extract(day from today - r.last_day)::bigint - 1 as days_silent,
            -- while it was active: from its first day to its last
            r.active_days / (extract(day from r.last_day - r.first_day) + 1)::double precision
                as active_day_rate,
            case when r.before_28 > 0 then greatest(0, 1 - r.last_7 * 4.0 / r.before_28) end
                ::double precision as decline
        from rhythm as r
        where r.active_days > 0
    ),
    rated as (
        select
            m.*,
            -- never quite certain, also of a tenant that was active daily
            1 - power(1 - least(m.active_day_rate, 0.9), m.days_silent) as silence
        from measured as m
    )
    select
        o.risk, case when o.risk < 0.3 then 'low' when o.risk < 0.7 then 'medium' else 'high' end,
        r.silence, r.decline, r.days_silent, r.active_day_rate, r.last_day
    from rated as r
    cross join lateral (
        select 1 - (1 - r.silence) * (1 - coalesce(r.decline, 0) / 2) as risk
    ) as o;
end $$;

comment on function tracedb.get_churn_risk(timestamptz, uuid) is
    'How likely it looks that a tenant has left or is leaving, from the 90 whole days before '
    'as_of: risk = 1 - (1 - silence) (1 - decline / 2), 0 to 1; level is low below 0.3, medium '
    'below 0.7, else high. silence = 1 - (1 - active_day_rate)^days_silent: how unlikely so many '
    'days without a request would be by its own rhythm (active_day_rate: days with a request, '
    'from the first to the last of them; taken as 0.9 at most). decline = 1 - requests of the '
    'last 7 days / mean week of the 28 days before, at least 0, null if there were none. No row '
    'for a tenant without a request in 90 days. It is a formula, not a trained model: calibrate '
    'levels on tenants that did leave.';

create or replace function tracedb.get_usage_patterns(
    weeks integer default 4,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    weekday integer, hour integer, requests bigint, requests_per_hour double precision,
    share double precision, errors bigint, cost_usd numeric
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    until constant timestamptz := date_trunc('day', as_of);
begin
    if weeks is null or weeks not between 1 and 520 then
        raise exception using errcode = 'TD002', message = 'weeks: must be from 1 to 520';
    end if;
    return query
    select
        extract(isodow from u.starts_at)::integer, extract(hour from u.starts_at)::integer,
        coalesce(sum(u.executions) filter (where u.kind = 'request'), 0)::bigint,
        coalesce(sum(u.executions) filter (where u.kind = 'request'), 0)::double precision / weeks,
        (coalesce(sum(u.executions) filter (where u.kind = 'request'), 0)
            / nullif(sum(sum(u.executions) filter (where u.kind = 'request')) over (), 0)
        )::double precision,
        coalesce(sum(u.errors) filter (where u.kind = 'request'), 0)::bigint,
        case when sum(u.costed) > 0 then sum(u.cost_usd) end
    from tracedb.usage_series(until - weeks * interval '7 days', until, 'hour', tenant_id) as u
    where u.kind in ('request', 'nested')
    group by 1, 2
    order by 1, 2;
end $$;

comment on function tracedb.get_usage_patterns(integer, timestamptz, uuid) is
    'When a tenant works: a row for each weekday (1 Monday to 7 Sunday) and hour (UTC) with '
    'anything in the whole weeks before the day of as_of: requests, their mean a week '
    '(requests_per_hour), their share of all (0 to 1), errors of them, and cost.';

create or replace function tracedb.get_feature_adoption(
    days integer default 28,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    feature_type text, feature text, executions bigint, share double precision,
    active_days bigint, adoption double precision, executions_before bigint,
    change double precision, first_used_day timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    until constant timestamptz := date_trunc('day', as_of);
    since constant timestamptz := until - days * interval '1 day';
begin
    if days is null or days not between 1 and 3650 then
        raise exception using errcode = 'TD002', message = 'days: must be from 1 to 3650';
    end if;
    return query
    with used as (
        select f.feature_type, f.feature, u.starts_at, u.executions
        from tracedb.usage_series(since - days * interval '1 day', until, 'day', tenant_id) as u
        cross join lateral (values
            ('route', case when u.kind = 'request' then u.route end),
            ('agent', case when u.kind in ('request', 'nested') then u.agent_id end),
            ('model', case when u.kind = 'call' then u.model end),
            ('operation', case when u.kind = 'call' then u.operation_type end)
        ) as f (feature_type, feature)
        where f.feature is not null
    ),
    counted as (
        select
            u.feature_type, u.feature,
            coalesce(sum(u.executions) filter (where u.starts_at >= since), 0) as executions,
            count(distinct u.starts_at) filter (where u.starts_at >= since) as active_days,
            coalesce(sum(u.executions) filter (where u.starts_at < since), 0) as before,
            min(u.starts_at) as first_used_day
        from used as u
        group by u.feature_type, u.feature
    ),
    active as (
        select count(distinct u.starts_at) as days from used as u where u.starts_at >= since
    )
    select
        c.feature_type, c.feature, c.executions::bigint,
        (c.executions / nullif(sum(c.executions) over (partition by c.feature_type), 0))
            ::double precision,
        c.active_days, c.active_days::double precision / nullif(a.days, 0), c.before::bigint,
        (c.executions / nullif(c.before, 0) - 1)::double precision, c.first_used_day
    from counted as c, active as a
    order by c.feature_type, c.executions desc, c.feature;
end $$;

comment on function tracedb.get_feature_adoption(integer, timestamptz, uuid) is
    'What a tenant uses, over the whole days before the day of as_of: a row for each route (of '
    'requests), agent (of traces), model and operation (of calls) of these days or of as many '
    'before them: executions, share = of all of its type, adoption = active_days / days on which '
    'the tenant did anything (0 to 1), executions_before and change = executions / '
    'executions_before - 1 (null: not used before), and first_used_day within both.';

reset role;
