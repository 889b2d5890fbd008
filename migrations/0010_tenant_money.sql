-- 0010_tenant_money.sql: what tenants spend, budgets and forecasts.
--
-- depends: 0009_operations

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create table if not exists tracedb.budgets (
    tenant_id      uuid        not null,
    budget_id      uuid        not null default tracedb.new_id(),
    name           text        not null,
    period         text        not null,
    -- Null: no such limit.
    soft_limit_usd numeric,
    hard_limit_usd numeric,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    constraint budgets_pkey primary key (tenant_id, budget_id),
    constraint budgets_name unique (tenant_id, name),
    constraint budget_has_a_name check (name <> ''),
    constraint budget_period_known check (period in ('day', 'week', 'month')),
    constraint budget_limits_are_money check (
        soft_limit_usd >= 0 and soft_limit_usd < 1e15
        and hard_limit_usd >= 0 and hard_limit_usd < 1e15
    ),
    constraint budget_soft_before_hard check (soft_limit_usd <= hard_limit_usd),
    constraint budget_has_a_limit check (num_nonnulls(soft_limit_usd, hard_limit_usd) > 0)
);

comment on table tracedb.budgets is
    'What a tenant may spend in a day, week or month (in UTC), in US dollars. Crossing the soft '
    'limit is recorded (budget_alerts); reserve_budget gives nothing beyond the hard one.';
comment on constraint budget_has_a_name on tracedb.budgets is
    'name: required';
comment on constraint budget_period_known on tracedb.budgets is
    'period: must be day, week or month';
comment on constraint budget_limits_are_money on tracedb.budgets is
    'soft_limit_usd, hard_limit_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint budget_soft_before_hard on tracedb.budgets is
    'soft_limit_usd: must not exceed hard_limit_usd';
comment on constraint budget_has_a_limit on tracedb.budgets is
    'soft_limit_usd, hard_limit_usd: at least one';

create table if not exists tracedb.budget_reservations (
    tenant_id      uuid        not null,
    reservation_id uuid        not null default tracedb.new_id(),
    status         text        not null default 'open',
    reserved_at    timestamptz not null default now(),
    expires_at     timestamptz not null,
    amount_usd     numeric     not null,
    -- Null: not settled.
    settled_usd    numeric,
    -- Null: what is paid for is no trace, or not yet known to be one.
    trace_id       uuid,
    updated_at     timestamptz not null default now(),
    constraint budget_reservations_pkey primary key (tenant_id, reservation_id),
    constraint reservation_status_known check (status in ('open', 'settled', 'released')),
    constraint reservation_is_money check (
        amount_usd >= 0 and amount_usd < 1e15 and settled_usd >= 0 and settled_usd < 1e15
    ),
    constraint reservation_is_settled_with_a_cost
        check ((status = 'settled') = (settled_usd is not null)),
    constraint reservation_ends_after_start check (expires_at >= reserved_at)
);

comment on table tracedb.budget_reservations is
    'Money set aside for a call that is about to be made: open until it is settled with what the '
    'call cost, released, or expired.';
comment on column tracedb.budget_reservations.trace_id is
    'The trace whose cost this is: once that is known, it counts instead.';
comment on constraint reservation_status_known on tracedb.budget_reservations is
    'status: must be open, settled or released';
comment on constraint reservation_is_money on tracedb.budget_reservations is
    'amount_usd, settled_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint reservation_is_settled_with_a_cost on tracedb.budget_reservations is
    'settled_usd: of a settled reservation, and of no other';
comment on constraint reservation_ends_after_start on tracedb.budget_reservations is
    'expires_at: must not be before reserved_at';

create table if not exists tracedb.budget_alerts (
    tenant_id    uuid        not null,
    budget_id    uuid        not null,
    period_start timestamptz not null,
    threshold    text        not null,
    limit_usd    numeric     not null,
    spent_usd    numeric     not null,
    created_at   timestamptz not null default now(),
    constraint budget_alerts_pkey primary key (tenant_id, budget_id, period_start, threshold),
    constraint budget_alerts_budget foreign key (tenant_id, budget_id)
        references tracedb.budgets on delete cascade,
    constraint alert_threshold_known check (threshold in ('soft', 'hard'))
);

comment on table tracedb.budget_alerts is
    'That a limit of a budget was reached, once a period and limit; written by check_budgets.';
comment on column tracedb.budget_alerts.spent_usd is
    'What was spent when it was noticed.';
comment on constraint alert_threshold_known on tracedb.budget_alerts is
    'threshold: must be soft or hard';

create or replace function tracedb.get_cost_breakdown(
    by text,
    since timestamptz,
    until timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    key text,
    cost_usd numeric,
    trace_cost_usd numeric,
    event_cost_usd numeric,
    item_count bigint,
    unknown_cost_count bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    if by is null or by not in ('day', 'user', 'agent', 'model') then
        raise exception using errcode = 'TD002', message = 'by: must be day, user, agent or model';
    end if;
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: required';
    end if;
    if by in ('day', 'agent') then
        return query
        select
            case by when 'day' then to_char(s.at, 'YYYY-MM-DD') else s.agent_id end as key,
            sum(s.cost_usd),
            sum(s.cost_usd) filter (where s.source = 'trace'),
            sum(s.cost_usd) filter (where s.source = 'event'),
            sum(s.item_count)::bigint,
            sum(s.unknown_count)::bigint
        from (
            select
                'trace' as source, u.starts_at as at, u.agent_id,
                case when u.costed > 0 then u.cost_usd end as cost_usd,
                u.executions as item_count, u.unpriced as unknown_count
            from tracedb.usage_series(since, until, 'day', get_cost_breakdown.tenant_id) as u
            where u.kind in ('request', 'nested')
            union all
            select 'event', c.occurred_at, c.agent_id, c.cost_usd, 1, c.is_cost_unknown::integer
            from tracedb.cost_entries as c
            where c.source = 'event' and c.tenant_id = get_cost_breakdown.tenant_id
                and c.entry_id >= tracedb.uuid_floor(since - interval '1 day')
                and c.entry_id < tracedb.uuid_floor(until + interval '1 day')
                and c.occurred_at >= since and c.occurred_at < until
        ) as s
        group by 1
        order by 2 desc nulls last, 1;
        return;
    end if;
    if by = 'user' then
        return query
        select
            c.user_id,
            sum(c.cost_usd),
            sum(c.cost_usd) filter (where c.source = 'trace'),
            sum(c.cost_usd) filter (where c.source = 'event'),
            count(*),
            count(*) filter (where c.is_cost_unknown)
        from tracedb.cost_entries as c
        where c.tenant_id = get_cost_breakdown.tenant_id
            -- the id is the clock, to the day; occurred_at is exact
            and c.entry_id >= tracedb.uuid_floor(since - interval '1 day')
            and c.entry_id < tracedb.uuid_floor(until + interval '1 day')
            and c.occurred_at >= since and c.occurred_at < until
        group by 1
        order by 2 desc nulls last, 1;
        return;
    end if;
    return query
    select
        m.model, sum(m.cost_usd), sum(m.cost_usd) filter (where m.source = 'trace'),
        sum(m.cost_usd) filter (where m.source = 'event'), count(*),
        count(*) filter (where m.is_cost_unknown)
    from tracedb.cost_entries as c
    cross join lateral (
        -- A trace's cost is that of its calls, unless it was reported for the trace as a whole:
        -- then nobody knows which model it was for.
        select
            coalesce(s.response_model, s.request_model) as model, s.cost_usd, c.source,
            s.cost_usd is null as is_cost_unknown
        from tracedb.priced_spans as s
        where c.is_sum_of_spans and s.tenant_id = get_cost_breakdown.tenant_id
            and s.trace_id = c.entry_id and s.is_leaf
        union all
        select c.model, c.cost_usd, c.source, c.is_cost_unknown
        where not c.is_sum_of_spans
    ) as m
    where c.tenant_id = get_cost_breakdown.tenant_id
        and c.entry_id >= tracedb.uuid_floor(since - interval '1 day')
        and c.entry_id < tracedb.uuid_floor(until + interval '1 day')
        and c.occurred_at >= since and c.occurred_at < until
    group by 1
    order by 2 desc nulls last, 1;
end $$;

comment on function tracedb.get_cost_breakdown(text, timestamptz, timestamptz, uuid) is
    'What a tenant spent from since on and before until, by day (in UTC), user, agent or model, '
    'the most first; the key is null where nothing names it. cost_usd is trace_cost_usd (null: '
    'none is known) and event_cost_usd together; item_count counts traces and events, by model '
    'calls and events, and unknown_cost_count those of them whose cost is unknown, or known in '
    'part. By model, a cost that was reported for a trace as a whole has no key. Every breakdown '
    'has the same total. Rules: cost_entries.';

create or replace function tracedb.get_tenant_daily_cost(
    tenant_id uuid default tracedb.current_tenant_id(),
    date date default (now() at time zone 'UTC')::date
)
returns numeric
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
    return (
        select sum(b.cost_usd)
        from tracedb.get_cost_breakdown(
            'day', date::timestamptz, (date + 1)::timestamptz, tenant_id) as b
    );
end $$;

comment on function tracedb.get_tenant_daily_cost(uuid, date) is
    'What a tenant spent on a day (in UTC; today), in US dollars; null if nothing is known. Rules: '
    'cost_entries.';

create or replace function tracedb.spent_since(
    since timestamptz, as_of timestamptz, tenant_id uuid,
    out spent_usd numeric, out reserved_usd numeric, out unknown_cost_count bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    select coalesce(sum(s.cost_usd), 0), coalesce(sum(s.unknown_count), 0)
    into spent_usd, unknown_cost_count
    from (
        select sum(u.cost_usd) as cost_usd, sum(u.unpriced) as unknown_count
        from tracedb.usage_between(
            since, as_of + interval '1 microsecond', false, spent_since.tenant_id) as u
        where u.kind in ('request', 'nested')
        union all
        select sum(c.cost_usd), count(*) filter (where c.is_cost_unknown)
        from tracedb.cost_entries as c
        where c.source = 'event' and c.tenant_id = spent_since.tenant_id
            and c.entry_id >= tracedb.uuid_floor(since - interval '1 day')
            and c.entry_id < tracedb.uuid_floor(as_of + interval '1 day')
            and c.occurred_at >= since and c.occurred_at <= as_of
    ) as s;
    -- What was settled counts until the trace it was for says itself what it cost.
    select
        spent_usd + coalesce(sum(r.settled_usd) filter (where r.status = 'settled'), 0),
        coalesce(sum(r.amount_usd) filter (where r.status = 'open'), 0)
    into spent_usd, reserved_usd
    from tracedb.budget_reservations as r
    left join lateral (
        select f.cost_usd is not null or not f.is_cost_unknown as is_known
        from tracedb.trace_figures as f
        where r.status = 'settled' and f.tenant_id = r.tenant_id and f.trace_id = r.trace_id
        limit 1  -- or all the tenant's traces would be read, to join them
    ) as f on true
    where r.tenant_id = spent_since.tenant_id and r.reserved_at <= as_of
        and (r.status = 'settled' and r.reserved_at >= since
            or r.status = 'open' and r.expires_at > as_of)
        and f.is_known is not true;
end $$;

comment on function tracedb.spent_since(timestamptz, timestamptz, uuid) is
    'What a tenant has spent (cost_entries, and what was settled and is in no trace yet) and what '
    'is reserved and open. Internal.';

create or replace function tracedb.get_budget_status(
    as_of timestamptz default clock_timestamp(), tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    budget_id uuid,
    name text,
    period text,
    period_start timestamptz,
    period_end timestamptz,
    soft_limit_usd numeric,
    hard_limit_usd numeric,
    spent_usd numeric,
    reserved_usd numeric,
    remaining_usd numeric,
    state text,
    unknown_cost_count bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    return query
    select
        b.budget_id, b.name, b.period, p.starts_at, p.starts_at + ('1 ' || b.period)::interval,
        b.soft_limit_usd, b.hard_limit_usd, s.spent_usd, s.reserved_usd,
        b.hard_limit_usd - s.spent_usd - s.reserved_usd,
        case
            when s.spent_usd >= b.hard_limit_usd then 'hard'
            when s.spent_usd >= b.soft_limit_usd then 'soft'
            else 'ok'
        end,
        s.unknown_cost_count
    from tracedb.budgets as b
    cross join lateral (select date_trunc(b.period, as_of) as starts_at) as p
    cross join lateral tracedb.spent_since(p.starts_at, as_of, get_budget_status.tenant_id) as s
    where b.tenant_id = get_budget_status.tenant_id
    order by b.name;
end $$;

comment on function tracedb.get_budget_status(timestamptz, uuid) is
    'How each budget of a tenant stands in the period (in UTC) around as_of: what is spent, what '
    'is reserved and not settled yet, what remains below the hard limit (null without one), and '
    'the state: ok, soft or hard, the limit that spending has reached. unknown_cost_count says how '
    'many traces and events of the period have a cost that is unknown, or known in part.';

create or replace function tracedb.set_budget(
    name text,
    period text,
    soft_limit_usd numeric,
    hard_limit_usd numeric,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    id uuid;
begin
    insert into tracedb.budgets as b (tenant_id, name, period, soft_limit_usd, hard_limit_usd)
    values (
        set_budget.tenant_id, set_budget.name, set_budget.period, set_budget.soft_limit_usd,
        set_budget.hard_limit_usd)
    on conflict (tenant_id, name) do update set
        period = excluded.period, soft_limit_usd = excluded.soft_limit_usd,
        hard_limit_usd = excluded.hard_limit_usd, updated_at = excluded.updated_at
    returning b.budget_id into id;
    return id;
end $$;

comment on function tracedb.set_budget(text, text, numeric, numeric, uuid) is
    'Gives a tenant a budget a day, week or month in US dollars, or changes the one of that name; '
    'a limit may be null, not both. Returns its id.';

create or replace function tracedb.remove_budget(
    name text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    delete from tracedb.budgets as b
    where b.tenant_id = remove_budget.tenant_id and b.name = remove_budget.name;
    return found;
end $$;

comment on function tracedb.remove_budget(text, uuid) is
    'Takes a budget away, with its alerts; whether there was one.';

create or replace function tracedb.lock_budgets(tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Under another level what others have committed while this one waited would stay unseen.
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using
            errcode = 'feature_not_supported',
            message = 'budgets need a read committed transaction';
    end if;
    perform pg_advisory_xact_lock(hashtext('tracedb.budgets'), hashtext(tenant_id::text));
end $$;

comment on function tracedb.lock_budgets(uuid) is
    'Waits until no other transaction reserves, settles or releases money of the tenant. Internal.';

create or replace function tracedb.reserve_budget(
    reservation_id uuid,
    amount_usd numeric,
    ttl interval default interval '10 minutes',
    trace_id uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    as_of timestamptz;
    given text;
begin
    if reservation_id is null then
        raise exception using errcode = 'TD002', message = 'reservation_id: required';
    end if;
    if amount_usd is null or not (amount_usd >= 0 and amount_usd < 1e15) then
        raise exception using errcode = 'TD002',
            message = 'amount_usd: must be at least 0 and less than 1e15, and a number';
    end if;
    if ttl is null or ttl not between interval '0' and interval '1 day' then
        raise exception using errcode = 'TD002', message = 'ttl: must be at most a day';
    end if;
    perform tracedb.lock_budgets(tenant_id);
    select r.status into given
    from tracedb.budget_reservations as r
    where r.tenant_id = reserve_budget.tenant_id
        and r.reservation_id = reserve_budget.reservation_id;
    if found then
        return given <> 'released';
    end if;
    -- taken after the wait, so that it is not before what others reserved meanwhile
    as_of := clock_timestamp();
    if exists (
        select from tracedb.get_budget_status(as_of, tenant_id) as s
        where s.remaining_usd < reserve_budget.amount_usd
    ) then
        return false;
    end if;
    insert into tracedb.budget_reservations
        (tenant_id, reservation_id, reserved_at, expires_at, amount_usd, trace_id)
    values (
        reserve_budget.tenant_id, reserve_budget.reservation_id, as_of, as_of + ttl,
        reserve_budget.amount_usd, reserve_budget.trace_id)
    on conflict do nothing;
    return true;
end $$;

comment on function tracedb.reserve_budget(uuid, numeric, interval, uuid, uuid) is
    'Sets money aside before a call is made, if no budget of the tenant would go beyond its hard '
    'limit by it. True: make the call, then settle or release the reservation (an id of your own '
    'choice; asked for again it is the same one). False: do not make the call. It counts until '
    'then, or for ttl (at most a day; 10 minutes). Sessions take turns until the end of their '
    'transactions, so that together they never reserve more than there is: commit at once. Give '
    'the trace_id here or to settle_budget, or the cost of the trace counts beside it.';

create or replace function tracedb.settle_budget(
    reservation_id uuid,
    cost_usd numeric,
    trace_id uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if cost_usd is null then
        raise exception using errcode = 'TD002', message = 'cost_usd: required';
    end if;
    perform tracedb.lock_budgets(tenant_id);
    update tracedb.budget_reservations as r set
        status = 'settled', settled_usd = settle_budget.cost_usd,
        trace_id = coalesce(settle_budget.trace_id, r.trace_id), updated_at = now()
    where r.tenant_id = settle_budget.tenant_id
        and r.reservation_id = settle_budget.reservation_id and r.status = 'open';
    return found;
end $$;

comment on function tracedb.settle_budget(uuid, numeric, uuid, uuid) is
    'Says what a call cost that money was reserved for, also after the reservation has expired: '
    'it counts instead of what was reserved, until the trace named has a cost of its own. False if '
    'the reservation is unknown, settled or released already: then nothing changes.';

create or replace function tracedb.release_budget(
    reservation_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform tracedb.lock_budgets(tenant_id);
    update tracedb.budget_reservations as r set status = 'released', updated_at = now()
    where r.tenant_id = release_budget.tenant_id
        and r.reservation_id = release_budget.reservation_id and r.status = 'open';
    return found;
end $$;

comment on function tracedb.release_budget(uuid, uuid) is
    'Gives back money that was reserved for a call that was not made. False if the reservation is '
    'unknown, settled or released already.';

create or replace function tracedb.check_budgets(
    as_of timestamptz default clock_timestamp(), tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.budget_alerts
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    insert into tracedb.budget_alerts as a
        (tenant_id, budget_id, period_start, threshold, limit_usd, spent_usd)
    select check_budgets.tenant_id, s.budget_id, s.period_start, l.threshold, l.usd, s.spent_usd
    from tracedb.get_budget_status(as_of, tenant_id) as s
    cross join lateral (values
        ('soft', s.soft_limit_usd), ('hard', s.hard_limit_usd)
    ) as l (threshold, usd)
    where s.spent_usd >= l.usd
    on conflict do nothing
    returning a.*;
end $$;

comment on function tracedb.check_budgets(timestamptz, uuid) is
    'Records that spending has reached limits and returns what is new: every limit once a period, '
    'however often this is called.';

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
where f.is_known is not true;

comment on view tracedb.cost_entries is
    'What cost a tenant money, once: every trace with its cost (trace_figures: nested money once), '
    'and every cost event that is not in a trace''s cost. A cost event of a call (llm, embedding) '
    'that names a trace whose cost is known says the same again and is left out; one of storage or '
    'compute, one that names no trace, and one of a trace without a known cost count. entry_id is '
    'a clock, as trace_id and event_id are. is_sum_of_spans: the cost is that of the trace''s '
    'calls, not reported for it as a whole.';

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    policy record;
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for a new policy
    for policy in
        select
            c.table_name, r.role_name, r.command,
            format('%s_%s_%s', c.table_name, substr(r.role_name, 9), r.command) as name,
            concat(
                ' using (' || r.visible || ')', ' with check (' || r.writable || ')'
            ) as conditions
        from (values
            ('budget', 'budgets'),
            ('reservation', 'budget_reservations'),
            ('alert', 'budget_alerts')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('budget', 'tracedb_owner', 'all', 'true', 'true'),
            ('budget', 'tracedb_service', 'select', 'true', null),
            ('budget', 'tracedb_service', 'insert', null, 'true'),
            ('budget', 'tracedb_service', 'update', 'true', 'true'),
            ('budget', 'tracedb_service', 'delete', 'true', null),
            ('budget', 'tracedb_app', 'select', own_rows, null),
            ('budget', 'tracedb_reader', 'select', own_rows, null),
            ('budget', 'tracedb_maintainer', 'select', 'true', null),

            ('reservation', 'tracedb_owner', 'all', 'true', 'true'),
            ('reservation', 'tracedb_service', 'select', 'true', null),
            ('reservation', 'tracedb_service', 'insert', null, 'true'),
            ('reservation', 'tracedb_service', 'update', 'true', 'true'),
            ('reservation', 'tracedb_app', 'select', own_rows, null),
            ('reservation', 'tracedb_app', 'insert', null, own_rows),
            ('reservation', 'tracedb_app', 'update', own_rows, own_rows),
            ('reservation', 'tracedb_reader', 'select', own_rows, null),
            ('reservation', 'tracedb_maintainer', 'select', 'true', null),

            ('alert', 'tracedb_owner', 'all', 'true', 'true'),
            ('alert', 'tracedb_service', 'select', 'true', null),
            ('alert', 'tracedb_service', 'insert', null, 'true'),
            ('alert', 'tracedb_app', 'select', own_rows, null),
            ('alert', 'tracedb_reader', 'select', own_rows, null),
            ('alert', 'tracedb_maintainer', 'select', 'true', null)
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.budgets enable row level security;
alter table tracedb.budgets force row level security;

alter table tracedb.budget_reservations enable row level security;
alter table tracedb.budget_reservations force row level security;

alter table tracedb.budget_alerts enable row level security;
alter table tracedb.budget_alerts force row level security;

revoke all on function
    tracedb.set_budget(text, text, numeric, numeric, uuid),
    tracedb.remove_budget(text, uuid),
    tracedb.check_budgets(timestamptz, uuid),
    tracedb.lock_budgets(uuid),
    tracedb.reserve_budget(uuid, numeric, interval, uuid, uuid),
    tracedb.settle_budget(uuid, numeric, uuid, uuid),
    tracedb.release_budget(uuid, uuid),
    tracedb.get_cost_breakdown(text, timestamptz, timestamptz, uuid),
    tracedb.get_tenant_daily_cost(uuid, date),
    tracedb.spent_since(timestamptz, timestamptz, uuid),
    tracedb.get_budget_status(timestamptz, uuid),
    tracedb.project_costs(numeric[], integer),
    tracedb.forecast_costs(text, timestamptz, integer, uuid)
from public;
grant select, insert, update, delete on tracedb.budgets to tracedb_service;
grant select, insert, update on tracedb.budget_reservations to tracedb_service, tracedb_app;
grant select, insert on tracedb.budget_alerts to tracedb_service;
grant select on tracedb.budgets, tracedb.budget_alerts to tracedb_app;
grant select on tracedb.budgets, tracedb.budget_reservations, tracedb.budget_alerts
to tracedb_reader, tracedb_maintainer;
grant select on tracedb.cost_entries
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.set_budget(text, text, numeric, numeric, uuid),
    tracedb.remove_budget(text, uuid),
    tracedb.check_budgets(timestamptz, uuid)
to tracedb_service;
grant execute on function
    tracedb.lock_budgets(uuid),
    tracedb.reserve_budget(uuid, numeric, interval, uuid, uuid),
    tracedb.settle_budget(uuid, numeric, uuid, uuid),
    tracedb.release_budget(uuid, uuid)
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.get_cost_breakdown(text, timestamptz, timestamptz, uuid),
    tracedb.get_tenant_daily_cost(uuid, date),
    tracedb.spent_since(timestamptz, timestamptz, uuid),
    tracedb.get_budget_status(timestamptz, uuid),
    tracedb.project_costs(numeric[], integer),
    tracedb.forecast_costs(text, timestamptz, integer, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.budgets');
select tracedb.co_locate('tracedb.budget_reservations');
select tracedb.co_locate('tracedb.budget_alerts');
