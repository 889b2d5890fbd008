-- 546_budgets.sql: limits that hold, however many sessions spend at once.

set role tracedb_owner;

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
        and f.is_known is not true
        and not exists (
            select from tracedb.settled_costs as s
            where s.tenant_id = r.tenant_id and s.entry_id = r.reservation_id
        );
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

reset role;
