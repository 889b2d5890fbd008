-- 547_forecast.sql: what the period will have cost in the end, and how far off that usually is.

set role tracedb_owner;

create or replace function tracedb.project_costs(
    daily numeric[], horizon integer, out run_rate_usd numeric, out seasonal_usd numeric
)
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select
        round(horizon * (
            select avg(d.usd) from unnest(daily) with ordinality as d (usd, place)
            where d.place > cardinality(daily) - 7
        ), 12),
        round(sum(coalesce(
            (
                -- the same day of up to four weeks before
                select avg(daily[cardinality(daily) + ahead - 7 * weeks])
                from generate_series((ahead + 6) / 7, (ahead + 6) / 7 + 3) as weeks
                where cardinality(daily) + ahead - 7 * weeks >= 1
            ),
            (select avg(d.usd) from unnest(daily) as d (usd))
        )), 12)
    from generate_series(1, horizon) as ahead
$$;

comment on function tracedb.project_costs(numeric[], integer) is
    'What the next days (horizon) will cost in all after the daily costs given, oldest first, by '
    'two formulas. Run rate: the mean of the last 7 days, for each. Seasonal: for each day the '
    'mean of the same weekday in the last 4 weeks there are. Null without a day to go by.';

create or replace function tracedb.forecast_costs(
    period text default 'month',
    as_of timestamptz default now(),
    history_days integer default 84,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    today constant date := as_of::date;
    period_start date;
    period_end date;
    -- today and what comes after it
    horizon integer;
    daily numeric[];
    spent_before numeric;
    spent_today numeric;
    forecast record;
    errors record;
begin
    if period is null or period not in ('day', 'week', 'month') then
        raise exception using errcode = 'TD002', message = 'period: must be day, week or month';
    end if;
    if history_days is null or history_days not between 7 and 730 then
        raise exception using errcode = 'TD002', message = 'history_days: must be from 7 to 730';
    end if;
    period_start := date_trunc(period, as_of)::date;
    period_end := (date_trunc(period, as_of) + ('1 ' || period)::interval)::date;
    horizon := period_end - today;

    -- Days without a cost count as 0 from the first one that has any.
    with costs as (
        select b.key::date as day, coalesce(b.cost_usd, 0) as usd
        from tracedb.get_cost_breakdown(
            'day', least(today - history_days, period_start)::timestamptz, as_of, tenant_id) as b
    )
    select
        array(
            select coalesce(c.usd, 0)
            from generate_series(0, today - 1 - d.first_day) as place
            left join costs as c on c.day = d.first_day + place
            order by place
        ),
        (select coalesce(sum(c.usd), 0) from costs as c
            where c.day >= period_start and c.day < today),
        (select coalesce(sum(c.usd), 0) from costs as c where c.day = today)
    into daily, spent_before, spent_today
    from (select min(c.day) as first_day from costs as c) as d;

    select p.* into forecast from tracedb.project_costs(daily, horizon) as p;

    -- The same formulas for as many days, from each day on of which the outcome is known.
    select
        count(*) as periods,
        sum(abs(p.run_rate_usd - p.actual)) / nullif(sum(p.actual), 0) as run_rate_wape,
        avg(abs(p.run_rate_usd - p.actual) / nullif(p.actual, 0)) as run_rate_mape,
        sum(abs(p.seasonal_usd - p.actual)) / nullif(sum(p.actual), 0) as seasonal_wape,
        avg(abs(p.seasonal_usd - p.actual) / nullif(p.actual, 0)) as seasonal_mape
    into errors
    from (
        select
            f.*,
            (select sum(a.usd) from unnest(daily[known + 1:known + horizon]) as a (usd)) as actual
        from generate_series(7, cardinality(daily) - horizon) as known
        cross join lateral tracedb.project_costs(daily[1:known], horizon) as f
    ) as p;

    return jsonb_build_object(
        'period', period,
        'since', period_start::timestamptz, 'until', period_end::timestamptz,
        'spent_usd', spent_before + spent_today,
        'days_left', horizon,
        'history_days', coalesce(cardinality(daily), 0),
        -- what is spent today already is the least that today costs
        'run_rate_usd', case when cardinality(daily) > 0
            then spent_before + greatest(forecast.run_rate_usd, spent_today) end,
        'seasonal_usd', case when cardinality(daily) > 0
            then spent_before + greatest(forecast.seasonal_usd, spent_today) end,
        'backtests', errors.periods,
        'run_rate_wape', round(errors.run_rate_wape, 6),
        'run_rate_mape', round(errors.run_rate_mape, 6),
        'seasonal_wape', round(errors.seasonal_wape, 6),
        'seasonal_mape', round(errors.seasonal_mape, 6),
        'better', case
            when errors.seasonal_wape < errors.run_rate_wape then 'seasonal'
            when errors.run_rate_wape is not null then 'run_rate'
        end);
end $$;

comment on function tracedb.forecast_costs(text, timestamptz, integer, uuid) is
    'What a tenant will have spent at the end of the day, week or month (in UTC) around as_of: '
    '{"period", "since", "until", "spent_usd", "days_left" (today included), "history_days", '
    '"run_rate_usd", "seasonal_usd", "backtests", "run_rate_wape", "run_rate_mape", '
    '"seasonal_wape", "seasonal_mape", "better"}. Both forecasts are what was spent in the period '
    'before today and project_costs of the days left, from the daily costs of the last '
    'history_days (7 to 730). The errors are those of the same formula for as many days from each '
    'past day on whose outcome is known (backtests: how many): WAPE is the sum of absolute errors '
    'over the sum of costs, MAPE the mean of absolute errors relative to the cost; better names '
    'the formula with the lower WAPE. Null where there is no history to go by.';

reset role;
