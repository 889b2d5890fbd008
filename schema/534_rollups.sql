-- 534_rollups.sql: folding usage into totals, and reading totals that are exact at every moment.

-- Readers add what is not folded yet: for each trace that was written since, they take away what it
-- has added to the totals before and add what it says now. So an answer never depends on when, or
-- whether, fold_usage ran; it only becomes slower the more is left to fold.

set role tracedb_owner;

create or replace function tracedb.add_to_rollups(
    width text, lines tracedb.usage_contributions[], tenant_id uuid
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    before tracedb.usage_contributions[];
begin
    with gone as (
        delete from tracedb.usage_rollups as r
        using (select distinct l.starts_at, l.series_id from unnest(lines) as l) as l
        where r.tenant_id = add_to_rollups.tenant_id and r.width = add_to_rollups.width
            and r.starts_at = l.starts_at and r.series_id = l.series_id
        returning r.*
    )
    select array_agg(
        row(
            g.tenant_id, null, g.starts_at, g.series_id, g.kind, g.agent_id, g.route, g.provider,
            g.model, g.operation_type, g.executions, g.errors, g.successes, g.running,
            g.input_tokens, g.output_tokens, g.cache_read_tokens, g.cache_write_tokens,
            g.reasoning_tokens, g.cost_usd, g.costed, g.unpriced, g.duration_us,
            g.duration_buckets, g.duration_counts
        )::tracedb.usage_contributions)
    into before
    from gone as g;
    insert into tracedb.usage_rollups
    select
        a.tenant_id, add_to_rollups.width, a.starts_at, a.series_id, a.kind, a.agent_id, a.route,
        a.provider, a.model, a.operation_type, a.executions, a.errors, a.successes, a.running,
        a.input_tokens, a.output_tokens, a.cache_read_tokens, a.cache_write_tokens,
        a.reasoning_tokens, a.cost_usd, a.costed, a.unpriced, a.duration_us, a.duration_buckets,
        a.duration_counts
    from tracedb.added_usage(lines || before) as a
    where a.executions <> 0
    on conflict do nothing;
end $$;

comment on function tracedb.add_to_rollups(text, tracedb.usage_contributions[], uuid) is
    'Adds lines to the totals of their hour or day; a total that becomes empty goes. The caller '
    'holds the tenant''s lock. Internal.';

create or replace function tracedb.fold_usage(max_traces integer default 5000)
returns table (tenant_id uuid, changes bigint, traces bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant uuid;
    change_ids uuid[];
    trace_ids uuid[];
    first_id uuid;
    last_id uuid;
    now_added tracedb.usage_contributions[];
    taken tracedb.usage_contributions[];
    given tracedb.usage_contributions[];
    by_hour tracedb.usage_contributions[];
    by_day tracedb.usage_contributions[];
    line tracedb.usage_contributions;
    remaining bigint := max_traces;
begin
    if max_traces is null or max_traces < 1 then
        raise exception using errcode = 'TD002', message = 'max_traces: must be at least 1';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    for tenant in
        select distinct c.tenant_id from tracedb.trace_changes as c where not c.folded
    loop
        exit when remaining <= 0;
        -- Nobody else writes a tenant's totals meanwhile; other tenants' are free.
        continue when not pg_try_advisory_xact_lock(hashtextextended('tracedb.fold/' || tenant, 0));

        select array_agg(distinct c.change_id), array_agg(distinct i.trace_id)
        into change_ids, trace_ids
        from (
            select
                c.*,
                sum(cardinality(c.trace_ids)) over (
                    order by c.created_at, c.change_id rows unbounded preceding
                ) - cardinality(c.trace_ids) as before
            from tracedb.trace_changes as c
            where c.tenant_id = tenant and not c.folded
        ) as c
        cross join lateral unnest(c.trace_ids) as i(trace_id)
        where c.before < remaining;
        continue when change_ids is null;
        remaining := remaining - cardinality(trace_ids);

        -- What is committed from here on has a change of its own, which is folded next time.
        trace_ids := tracedb.with_nested(trace_ids, tenant);
        first_id := trace_ids[1];
        last_id := trace_ids[cardinality(trace_ids)];
        now_added := array(
            select u from tracedb.usage_of_traces(trace_ids, '{(,)}', tenant) as u
        );
        with gone as (
            delete from tracedb.usage_contributions as c
            where c.tenant_id = tenant and c.trace_id = any(trace_ids)
                and c.trace_id between first_id and last_id
                and not exists (
                    select from unnest(now_added) as n
                    where n.trace_id = c.trace_id and n.starts_at = c.starts_at
                        and n.series_id = c.series_id and n is not distinct from c
                )
            returning c
        )
        select array_agg(g.c) into taken from gone as g;
        with stored as (
            insert into tracedb.usage_contributions as c
            select n.* from unnest(now_added) as n
            on conflict do nothing
            returning c
        )
        select array_agg(s.c) into given from stored as s;

        by_hour := array(
            select a
            from tracedb.added_usage(given || array(
                select tracedb.negated_usage(t) from unnest(taken) as t
            )) as a
        );
        by_day := '{}';
        foreach line in array by_hour loop
            line.starts_at := date_trunc('day', line.starts_at);
            by_day := by_day || line;
        end loop;
        perform tracedb.add_to_rollups('hour', by_hour, tenant);
        perform tracedb.add_to_rollups('day', by_day, tenant);

        update tracedb.trace_changes as c
        set folded = true
        where c.tenant_id = tenant and not c.folded and c.change_id = any(change_ids);

        tenant_id := tenant;
        changes := cardinality(change_ids);
        traces := cardinality(trace_ids);
        return next;
    end loop;
end $$;

comment on function tracedb.fold_usage(integer) is
    'Brings usage_rollups up to the changes that are committed: those of about max_traces traces, '
    'the oldest of each tenant first. Returns a row for each tenant it worked for: how many '
    'changes and how many traces (nested ones too) it folded. Run it, a transaction a call, until '
    'it returns nothing, every minute or so. Tenants that another session folds are left to it; '
    'on a replica it does nothing.';

create or replace function tracedb.usage_between(
    since timestamptz, until timestamptz, by_hour boolean, tenant_id uuid
)
returns setof tracedb.usage_contributions
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    floor_hour constant timestamptz := date_trunc('hour', since);
    first_hour constant timestamptz := case
        when floor_hour = since then since else floor_hour + interval '1 hour' end;
    last_hour constant timestamptz := greatest(date_trunc('hour', until), first_hour);
    floor_day constant timestamptz := date_trunc('day', first_hour);
    first_day constant timestamptz := case
        when by_hour then last_hour
        when floor_day = first_hour then first_hour
        else least(floor_day + interval '1 day', last_hour)
    end;
    last_day constant timestamptz := greatest(date_trunc('day', last_hour), first_day);
    changed uuid[];
    first_id uuid;
    last_id uuid;
    whole_hours constant tstzmultirange := tstzmultirange(tstzrange(first_hour, last_hour));
    edges constant tstzmultirange :=
        tstzmultirange(tstzrange(since, greatest(since, until))) - whole_hours;
begin
    changed := tracedb.with_nested(array(
        select distinct i.trace_id
        from tracedb.trace_changes as c
        cross join lateral unnest(c.trace_ids) as i(trace_id)
        where c.tenant_id = tenant and not c.folded
    ), tenant);
    first_id := changed[1];
    last_id := changed[cardinality(changed)];

    return query
    select
        r.tenant_id, null::uuid, r.starts_at, r.series_id, r.kind, r.agent_id, r.route, r.provider,
        r.model, r.operation_type, r.executions, r.errors, r.successes, r.running, r.input_tokens,
        r.output_tokens, r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.cost_usd,
        r.costed, r.unpriced, r.duration_us, r.duration_buckets, r.duration_counts
    from (values
        ('hour', first_hour, first_day), ('day', first_day, last_day), ('hour', last_day, last_hour)
    ) as w (width, since, until)
    join tracedb.usage_rollups as r
        on r.tenant_id = tenant and r.width = w.width
        and r.starts_at >= w.since and r.starts_at < w.until;

    if cardinality(changed) > 0 then
        return query
        select n.*
        from tracedb.usage_contributions as c
        cross join lateral tracedb.negated_usage(c) as n
        where c.tenant_id = tenant and c.trace_id = any(changed)
            and c.trace_id between first_id and last_id
            and c.starts_at >= first_hour and c.starts_at < last_hour;
        return query
        select u.* from tracedb.usage_of_traces(changed, whole_hours, tenant) as u;
    end if;

    -- What is left is less than an hour at either end: counted from the traces themselves.
    if not isempty(edges) then
        return query
        select u.*
        from tracedb.usage_of_traces(changed || array(
            select c.trace_id
            from tracedb.usage_contributions as c
            where c.tenant_id = tenant
                and c.starts_at = any(array[floor_hour, date_trunc('hour', until)])
        ), edges, tenant) as u;
    end if;
end $$;

comment on function tracedb.usage_between(timestamptz, timestamptz, boolean, uuid) is
    'Lines (of no trace in particular), some of them negative, that add up to the usage from since '
    'to until (exclusive), exactly, whatever is folded; with by_hour hours only, else days where '
    'they are whole. A part of an hour is counted from the traces themselves, as long as they are '
    'retained. Internal: see usage_series.';

create or replace function tracedb.usage_series(
    since timestamptz,
    until timestamptz default now(),
    width text default 'hour',
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.usage_contributions
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    line tracedb.usage_contributions;
    lines tracedb.usage_contributions[] := '{}';
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    if width is null or width not in ('hour', 'day', 'total') then
        raise exception using errcode = 'TD002', message = 'width: must be hour, day or total';
    end if;
    for line in
        select u.* from tracedb.usage_between(since, until, width = 'hour', tenant_id) as u
    loop
        line.starts_at := case
            when width = 'total' then since else date_trunc(width, line.starts_at) end;
        lines := lines || line;
    end loop;
    return query
    select a.* from tracedb.added_usage(lines) as a
    where a.executions <> 0
    order by a.starts_at, a.kind, a.series_id;
end $$;

comment on function tracedb.usage_series(timestamptz, timestamptz, text, uuid) is
    'Usage from since to until (exclusive) by hour, day (UTC) or in total: a row for each of '
    'these, kind, agent, route, provider, model and operation that has any; columns as in '
    'usage_rollups (trace_id is null). Exact at every moment, also for what is not folded yet; it '
    'outlives the traces it was counted from, except in a part of an hour at either end. Count '
    'requests and nested executions, or calls; do not add calls to them. Percentiles: '
    'percentiles_ms(array_agg(u), array[0.5, 0.95]).';

create or replace function tracedb.tenants_report(
    since timestamptz, until timestamptz default now()
)
returns table (
    tenant_id uuid, requests bigint, executions bigint, errors bigint, input_tokens bigint,
    output_tokens bigint, cost_usd numeric, unknown_cost_count bigint,
    p50_duration_ms double precision, p95_duration_ms double precision,
    p99_duration_ms double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    first_hour constant timestamptz := date_trunc('hour', since);
    last_hour constant timestamptz := greatest(date_trunc('hour', until), first_hour);
    first_day constant timestamptz := least(
        date_trunc('day', first_hour - interval '1 microsecond') + interval '1 day', last_hour);
    last_day constant timestamptz := greatest(date_trunc('day', last_hour), first_day);
    changed constant uuid[] := array(
        select distinct c.tenant_id from tracedb.trace_changes as c where not c.folded
    );
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    return query
    -- From tenant to tenant by the key: the totals of other times are many more.
    with recursive known (tenant_id) as (
        (select r.tenant_id from tracedb.usage_rollups as r order by r.tenant_id limit 1)
        union all
        select (
            select r.tenant_id from tracedb.usage_rollups as r
            where r.tenant_id > k.tenant_id order by r.tenant_id limit 1
        )
        from known as k
        where k.tenant_id is not null
    ),
    lines as materialized (
        select
            r.tenant_id, r.kind, r.executions, r.errors, r.input_tokens, r.output_tokens,
            r.cost_usd, r.costed, r.unpriced, r.duration_buckets, r.duration_counts
        from (values
            ('hour', first_hour, first_day), ('day', first_day, last_day),
            ('hour', last_day, last_hour)
        ) as w (width, since, until)
        cross join known as k
        cross join lateral (
            select o.*
            from tracedb.usage_rollups as o
            where o.tenant_id = k.tenant_id and o.width = w.width
                and o.starts_at >= w.since and o.starts_at < w.until
            offset 0  -- or it would be joined the other way round
        ) as r
        where r.kind in ('request', 'nested') and k.tenant_id <> all(changed)
        union all
        select
            u.tenant_id, u.kind, u.executions, u.errors, u.input_tokens, u.output_tokens,
            u.cost_usd, u.costed, u.unpriced, u.duration_buckets, u.duration_counts
        from unnest(changed) as c(tenant_id)
        cross join lateral tracedb.usage_between(first_hour, last_hour, false, c.tenant_id) as u
        where u.kind in ('request', 'nested')
    ),
    durations as (
        select d.tenant_id, tracedb.percentiles_ms(
            array_agg(d.bucket order by d.bucket), array_agg(d.n order by d.bucket),
            array[0.5, 0.95, 0.99]) as percentiles
        from (
            select l.tenant_id, u.bucket, sum(u.n)::bigint as n
            from lines as l
            cross join lateral unnest(l.duration_buckets, l.duration_counts) as u (bucket, n)
            where l.kind = 'request'
            group by l.tenant_id, u.bucket
            having sum(u.n) <> 0
        ) as d
        group by d.tenant_id
    )
    select
        s.*, d.percentiles[1], d.percentiles[2], d.percentiles[3]
    from (
        select
            l.tenant_id,
            coalesce(sum(l.executions) filter (where l.kind = 'request'), 0)::bigint,
            sum(l.executions)::bigint as executions,
            coalesce(sum(l.errors) filter (where l.kind = 'request'), 0)::bigint,
            sum(l.input_tokens)::bigint, sum(l.output_tokens)::bigint,
            case when sum(l.costed) > 0 then sum(l.cost_usd) end as cost_usd,
            sum(l.unpriced)::bigint
        from lines as l
        group by l.tenant_id
    ) as s
    left join durations as d using (tenant_id)
    where s.executions <> 0
    order by s.cost_usd desc nulls last, s.tenant_id;
end $$;

comment on function tracedb.tenants_report(timestamptz, timestamptz) is
    'Every tenant that the role sees, the most expensive first: requests, executions (nested ones '
    'too), errors of requests, tokens, cost, how many have a cost not known whole, and the '
    'latency of requests in milliseconds within 1 %. Of the whole hours from that of since to '
    'before that of until, and for those exact at every moment.';

create or replace function tracedb.usage_differences(
    since timestamptz,
    until timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    starts_at timestamptz, series_id uuid, rolled_up tracedb.usage_contributions,
    counted tracedb.usage_contributions
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    trace_ids constant uuid[] := array(
        -- the id is the clock, to the day
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = tenant
            and t.trace_id >= tracedb.uuid_floor(since - interval '1 day')
            and t.trace_id < tracedb.uuid_floor(until + interval '1 day')
        union
        select c.trace_id
        from tracedb.usage_contributions as c
        where c.tenant_id = tenant
            and c.starts_at >= date_trunc('hour', since) and c.starts_at < until
        union
        select i.trace_id
        from tracedb.trace_changes as c
        cross join lateral unnest(c.trace_ids) as i(trace_id)
        where c.tenant_id = tenant and not c.folded
    );
begin
    return query
    select coalesce(r.starts_at, c.starts_at), coalesce(r.series_id, c.series_id), r, c
    from tracedb.usage_series(since, until, 'hour', tenant) as r
    full join tracedb.added_usage(array(
        select u
        from tracedb.usage_of_traces(
            trace_ids, tstzmultirange(tstzrange(since, until)), tenant) as u
    ) || array(
        select row(
            e.tenant_id, null, e.starts_at, e.series_id, e.kind, e.agent_id, e.route, e.provider,
            e.model, e.operation_type, e.executions, e.errors, e.successes, e.running,
            e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens,
            e.reasoning_tokens, e.cost_usd, e.costed, e.unpriced, e.duration_us,
            e.duration_buckets, e.duration_counts
        )::tracedb.usage_contributions
        from tracedb.usage_rollups as e
        where e.tenant_id = tenant and e.width = 'erased'
            -- of a part of an hour there is nothing left
            and e.starts_at >= since and e.starts_at <= until - interval '1 hour'
    )) as c on c.starts_at = r.starts_at and c.series_id = r.series_id
    where r is distinct from c;
end $$;

comment on function tracedb.usage_differences(timestamptz, timestamptz, uuid) is
    'Where the totals of an hour and series are not what its traces add up to, with what those '
    'had added that were erased: none, if all is well. Only of use for a time whose other traces '
    'are all retained: those that are gone still count in the totals.';

reset role;
