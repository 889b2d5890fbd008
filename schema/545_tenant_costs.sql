-- 545_tenant_costs.sql: what a tenant has spent, on what.

set role tracedb_owner;

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

reset role;
