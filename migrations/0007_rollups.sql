-- 0007_rollups.sql: hourly and daily totals of usage, folded from the changes.
--
-- depends: 0006_cost

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create table if not exists tracedb.usage_rollups (
    tenant_id          uuid        not null,
    width              text        not null,
    starts_at          timestamptz not null,
    series_id          uuid        not null,
    kind               text        not null,
    -- Null in a label: the trace or call names none.
    agent_id           text,
    route              text,
    provider           text,
    model              text,
    operation_type     text,
    executions         bigint      not null,
    errors             bigint      not null,
    successes          bigint      not null,
    running            bigint      not null,
    input_tokens       numeric     not null,
    output_tokens      numeric     not null,
    cache_read_tokens  numeric     not null,
    cache_write_tokens numeric     not null,
    reasoning_tokens   numeric     not null,
    cost_usd           numeric     not null,
    costed             bigint      not null,
    unpriced           bigint      not null,
    duration_us        numeric     not null,
    duration_buckets   smallint[]  not null,
    duration_counts    bigint[]    not null,
    constraint usage_rollups_pkey primary key (tenant_id, width, starts_at, series_id),
    constraint rollup_width_known check (width in ('hour', 'day')),
    constraint rollup_kind_known check (kind in ('request', 'nested', 'call')),
    constraint rollup_buckets_have_counts
        check (cardinality(duration_buckets) = cardinality(duration_counts))
);

-- What a trace adds to each hour, so that folding it again adds only the difference. It goes with
-- the trace's partition; the totals stay.
create table if not exists tracedb.usage_contributions (
    tenant_id          uuid        not null,
    trace_id           uuid        not null,
    starts_at          timestamptz not null,
    series_id          uuid        not null,
    kind               text        not null,
    -- Null in a label: the trace or call names none.
    agent_id           text,
    route              text,
    provider           text,
    model              text,
    operation_type     text,
    executions         bigint      not null,
    errors             bigint      not null,
    successes          bigint      not null,
    running            bigint      not null,
    input_tokens       numeric     not null,
    output_tokens      numeric     not null,
    cache_read_tokens  numeric     not null,
    cache_write_tokens numeric     not null,
    reasoning_tokens   numeric     not null,
    cost_usd           numeric     not null,
    costed             bigint      not null,
    unpriced           bigint      not null,
    duration_us        numeric     not null,
    duration_buckets   smallint[]  not null,
    duration_counts    bigint[]    not null,
    constraint usage_contributions_pkey primary key (tenant_id, trace_id, starts_at, series_id),
    constraint contribution_kind_known check (kind in ('request', 'nested', 'call')),
    constraint contribution_buckets_have_counts
        check (cardinality(duration_buckets) = cardinality(duration_counts))
) partition by range (trace_id);

create table if not exists tracedb.usage_contributions_default
partition of tracedb.usage_contributions default;

-- The traces that have anything in an hour, of which a total may need a part.
create index if not exists usage_contributions_starts_at_idx
on tracedb.usage_contributions (tenant_id, starts_at, trace_id);

comment on table tracedb.usage_rollups is
    'Totals of an hour or a day (UTC) and a series: traces (kind request, or nested) by agent and '
    'route, and calls (spans) by agent, route, provider, model and operation. Written by '
    'fold_usage alone; what is not folded yet is missing here: usage_between and usage_series add '
    'it, and are exact at every moment.';
comment on column tracedb.usage_rollups.width is
    'hour or day.';
comment on column tracedb.usage_rollups.starts_at is
    'The beginning of the hour or day, by the started_at of the trace or of the call.';
comment on column tracedb.usage_rollups.series_id is
    'A hash of kind and labels (usage_series_id), so that labels may be null and of any length.';
comment on column tracedb.usage_rollups.kind is
    'request: traces that are not nested; nested: the other traces; call: spans. Calls are no '
    'addition to traces, but another look at them.';
comment on column tracedb.usage_rollups.executions is
    'How many traces or calls; errors, successes and running are of these.';
comment on column tracedb.usage_rollups.input_tokens is
    'Of traces as trace_figures has it, of calls of the leaf operations; unknown counts as 0. The '
    'other classes are known of calls only. Cached tokens are part of input_tokens, reasoning '
    'tokens of output_tokens.';
comment on column tracedb.usage_rollups.cost_usd is
    'In US dollars, by the rules of trace_figures, or of the leaf calls. 0 of costed 0 is unknown.';
comment on column tracedb.usage_rollups.costed is
    'How many of the executions have a cost in cost_usd.';
comment on column tracedb.usage_rollups.unpriced is
    'How many have a cost that is unknown, or known only in part.';
comment on column tracedb.usage_rollups.duration_us is
    'Sum of the known durations, in microseconds; duration_counts says how many there are.';
comment on column tracedb.usage_rollups.duration_buckets is
    'The buckets (duration_bucket) that durations fell into, in ascending order.';
comment on column tracedb.usage_rollups.duration_counts is
    'How many durations fell into each of duration_buckets.';
comment on constraint rollup_width_known on tracedb.usage_rollups is
    'width: must be hour or day';
comment on constraint rollup_kind_known on tracedb.usage_rollups is
    'kind: must be request, nested or call';
comment on constraint rollup_buckets_have_counts on tracedb.usage_rollups is
    'duration_counts: one for each of duration_buckets';

comment on table tracedb.usage_contributions is
    'What each trace has added to the hours of usage_rollups (columns as there).';
comment on constraint contribution_kind_known on tracedb.usage_contributions is
    'kind: must be request, nested or call';
comment on constraint contribution_buckets_have_counts on tracedb.usage_contributions is
    'duration_counts: one for each of duration_buckets';

-- Where traces have partitions, also for those of long ago.
update tracedb.partition_policies
set parents = parents || '{usage_contributions}'
where family = 'traces' and not parents @> '{usage_contributions}';

select tracedb.create_partition('usage_contributions', p.from_time, p.to_time)
from tracedb.partitions as p
where p.parent = 'execution_traces' and not p.is_default
    and not exists (
        select
        from tracedb.partitions as c
        where c.parent = 'usage_contributions' and c.from_time = p.from_time
    )
order by p.from_time;

-- What was stored before there were totals is folded like a change.
insert into tracedb.trace_changes (tenant_id, trace_ids)
select t.tenant_id, array_agg(t.trace_id)
from (
    select
        e.tenant_id, e.trace_id,
        row_number() over (partition by e.tenant_id order by e.trace_id) / 1000 as batch_no
    from tracedb.execution_traces as e
    where not exists (
        select
        from tracedb.trace_changes as c
        where c.tenant_id = e.tenant_id and e.trace_id = any(c.trace_ids)
    )
) as t
group by t.tenant_id, t.batch_no
on conflict do nothing;

create or replace function tracedb.percentiles_ms(
    buckets smallint[], counts bigint[], shares double precision[]
)
returns double precision[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    answer double precision[] := array_fill(null::double precision, array[cardinality(shares)]);
    total bigint := 0;
    counted bigint;
    -- among the sorted durations, counted from 0, as percentile_cont has it
    place double precision;
    upto bigint;
    i integer;
    low double precision;
    high double precision;
begin
    foreach counted in array counts loop
        total := total + counted;
    end loop;
    if total = 0 then
        return answer;
    end if;
    for k in 1 .. cardinality(shares) loop
        place := shares[k] * (total - 1);
        i := 1;
        upto := counts[1];
        while upto <= floor(place) loop
            i := i + 1;
            upto := upto + counts[i];
        end loop;
        low := buckets[i];
        while upto <= ceil(place) loop
            i := i + 1;
            upto := upto + counts[i];
        end loop;
        high := buckets[i];
        low := case when low < 0 then 0
            else power(1.02::double precision, low - 0.5::double precision) / 1000 end;
        high := case when high < 0 then 0
            else power(1.02::double precision, high - 0.5::double precision) / 1000 end;
        answer[k] := low + (high - low) * (place - floor(place));
    end loop;
    return answer;
end $$;

comment on function tracedb.percentiles_ms(smallint[], bigint[], double precision[]) is
    'Percentiles, in milliseconds, of a histogram (duration_buckets and duration_counts), for '
    'shares from 0 to 1: as percentile_cont would give them, within 1 %; null if it is empty.';

create or replace function tracedb.percentiles_ms(
    lines tracedb.usage_contributions[], shares double precision[]
)
returns double precision[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select tracedb.percentiles_ms(
            coalesce(array_agg(d.bucket order by d.bucket), '{}'),
            coalesce(array_agg(d.n order by d.bucket), '{}'), shares)
        from (
            select u.bucket, sum(u.n)::bigint as n
            from unnest(lines) as l
            cross join lateral unnest(l.duration_buckets, l.duration_counts) as u (bucket, n)
            group by u.bucket
            having sum(u.n) <> 0
        ) as d
    );
end $$;

comment on function tracedb.percentiles_ms(tracedb.usage_contributions[], double precision[]) is
    'Percentiles, in milliseconds, over lines of usage together, such as those of usage_series: '
    'percentiles_ms(array_agg(u), array[0.5, 0.95]).';

create or replace function tracedb.usage_of_traces(
    trace_ids uuid[], during tstzmultirange, tenant_id uuid
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
    ids constant uuid[] := array(select distinct i from unnest(trace_ids) as i order by i);
    first_id constant uuid := ids[1];
    last_id constant uuid := ids[cardinality(ids)];
begin
    return query
    with entries as (
        select
            t.trace_id, t.started_at,
            case when t.is_request then 'request' else 'nested' end as kind, t.agent_id, t.route,
            null as provider, null as model, null as operation_type, t.status,
            t.input_tokens, t.output_tokens, 0::bigint as cache_read_tokens,
            0::bigint as cache_write_tokens, 0::bigint as reasoning_tokens, t.cost_usd,
            t.is_cost_unknown, t.duration_ms * 1000::numeric as duration_us
        from tracedb.trace_figures as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
            and t.started_at <@ during
        union all
        select
            s.trace_id, s.started_at, 'call', coalesce(s.agent_id, t.agent_id), t.route,
            s.provider, coalesce(s.response_model, s.request_model), s.operation_type, s.status,
            l.one * s.input_tokens, l.one * s.output_tokens, l.one * s.cache_read_tokens,
            l.one * s.cache_write_tokens, l.one * s.reasoning_tokens, l.one * s.cost_usd,
            s.is_leaf and s.cost_usd is null, s.duration_us::numeric
        from tracedb.priced_spans as s
        join tracedb.execution_traces as t
            on t.tenant_id = s.tenant_id and t.trace_id = s.trace_id
        -- the others may repeat what the leaves below them used
        cross join lateral (
            select case when s.is_leaf then 1 end as one
        ) as l
        where s.tenant_id = tenant and s.trace_id = any(ids)
            and s.trace_id between first_id and last_id
            and t.trace_id between first_id and last_id
            and s.started_at <@ during
    ),
    counted as (
        select
            e.trace_id, date_trunc('hour', e.started_at) as starts_at, e.kind, e.agent_id, e.route,
            e.provider, e.model, e.operation_type,
            case
                when e.duration_us = 0 then -1
                when e.duration_us > 0 then ceil(
                    ln(greatest(e.duration_us, 1)::double precision) / ln(1.02::double precision))
            end::smallint as bucket,
            count(*) as executions,
            count(*) filter (where e.status in ('error', 'timeout')) as errors,
            count(*) filter (where e.status = 'ok') as successes,
            count(*) filter (where e.status = 'running') as running,
            coalesce(sum(e.input_tokens), 0) as input_tokens,
            coalesce(sum(e.output_tokens), 0) as output_tokens,
            coalesce(sum(e.cache_read_tokens), 0) as cache_read_tokens,
            coalesce(sum(e.cache_write_tokens), 0) as cache_write_tokens,
            coalesce(sum(e.reasoning_tokens), 0) as reasoning_tokens,
            coalesce(sum(e.cost_usd), 0) as cost_usd,
            count(e.cost_usd) as costed,
            count(*) filter (where e.is_cost_unknown) as unpriced,
            coalesce(sum(e.duration_us), 0) as duration_us
        from entries as e
        group by 1, 2, 3, 4, 5, 6, 7, 8, 9
    )
    select
        tenant, c.trace_id, c.starts_at,
        encode(substr(sha256(convert_to(jsonb_build_array(
            c.kind, c.agent_id, c.route, c.provider, c.model, c.operation_type
        )::text, 'UTF8')), 1, 16), 'hex')::uuid,
        c.kind, c.agent_id, c.route, c.provider, c.model, c.operation_type,
        sum(c.executions)::bigint, sum(c.errors)::bigint, sum(c.successes)::bigint,
        sum(c.running)::bigint, sum(c.input_tokens), sum(c.output_tokens),
        sum(c.cache_read_tokens), sum(c.cache_write_tokens), sum(c.reasoning_tokens),
        sum(c.cost_usd), sum(c.costed)::bigint, sum(c.unpriced)::bigint, sum(c.duration_us),
        array_remove(array_agg(c.bucket order by c.bucket), null),
        coalesce(
            array_agg(c.executions order by c.bucket) filter (where c.bucket is not null), '{}')
    from counted as c
    group by c.trace_id, c.starts_at, c.kind, c.agent_id, c.route, c.provider, c.model,
        c.operation_type;
end $$;

comment on function tracedb.usage_of_traces(uuid[], tstzmultirange, uuid) is
    'What these traces, and their calls, add to each hour and series, as far as they started in '
    'these times; read from the traces themselves. Internal.';

create or replace function tracedb.added_usage(lines tracedb.usage_contributions[])
returns setof tracedb.usage_contributions
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with sums as (
        select
            l.tenant_id, l.starts_at, l.series_id, l.kind, l.agent_id, l.route, l.provider,
            l.model, l.operation_type,
            sum(l.executions)::bigint as executions, sum(l.errors)::bigint as errors,
            sum(l.successes)::bigint as successes, sum(l.running)::bigint as running,
            sum(l.input_tokens) as input_tokens, sum(l.output_tokens) as output_tokens,
            sum(l.cache_read_tokens) as cache_read_tokens,
            sum(l.cache_write_tokens) as cache_write_tokens,
            sum(l.reasoning_tokens) as reasoning_tokens, sum(l.cost_usd) as cost_usd,
            sum(l.costed)::bigint as costed, sum(l.unpriced)::bigint as unpriced,
            sum(l.duration_us) as duration_us
        from unnest(lines) as l
        group by l.tenant_id, l.starts_at, l.series_id, l.kind, l.agent_id, l.route, l.provider,
            l.model, l.operation_type
    ),
    histograms as (
        select
            d.starts_at, d.series_id,
            array_agg(d.bucket order by d.bucket) as buckets,
            array_agg(d.n order by d.bucket) as counts
        from (
            select l.starts_at, l.series_id, u.bucket, sum(u.n)::bigint as n
            from unnest(lines) as l
            cross join lateral unnest(l.duration_buckets, l.duration_counts) as u (bucket, n)
            group by l.starts_at, l.series_id, u.bucket
            having sum(u.n) <> 0
        ) as d
        group by d.starts_at, d.series_id
    )
    select
        s.tenant_id, null::uuid, s.starts_at, s.series_id, s.kind, s.agent_id, s.route, s.provider,
        s.model, s.operation_type, s.executions, s.errors, s.successes, s.running, s.input_tokens,
        s.output_tokens, s.cache_read_tokens, s.cache_write_tokens, s.reasoning_tokens, s.cost_usd,
        s.costed, s.unpriced, s.duration_us, coalesce(h.buckets, '{}'), coalesce(h.counts, '{}')
    from sums as s
    left join histograms as h using (starts_at, series_id);
end $$;

comment on function tracedb.added_usage(tracedb.usage_contributions[]) is
    'Lines of a tenant added up by time and series, of whatever traces. Internal.';

create or replace function tracedb.negated_usage(line tracedb.usage_contributions)
returns tracedb.usage_contributions
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return row(
        line.tenant_id, line.trace_id, line.starts_at, line.series_id, line.kind, line.agent_id,
        line.route, line.provider, line.model, line.operation_type, -line.executions, -line.errors,
        -line.successes, -line.running, -line.input_tokens, -line.output_tokens,
        -line.cache_read_tokens, -line.cache_write_tokens, -line.reasoning_tokens, -line.cost_usd,
        -line.costed, -line.unpriced, -line.duration_us, line.duration_buckets,
        array(
            select -u.n
            from unnest(line.duration_counts) with ordinality as u (n, place)
            order by u.place
        )
    )::tracedb.usage_contributions;
end $$;

comment on function tracedb.negated_usage(tracedb.usage_contributions) is
    'What takes a line away from a sum. Internal.';

create or replace function tracedb.with_nested(trace_ids uuid[], tenant_id uuid)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
-- Nested ones are looked up, however many there are in all.
set enable_hashjoin = off
set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return array(
        with recursive affected as (
            select i as trace_id from unnest(trace_ids) as i
            union
            select n.trace_id
            from affected as a
            join tracedb.execution_traces as n
                on n.tenant_id = with_nested.tenant_id and n.parent_trace_id = a.trace_id
        )
        select a.trace_id from affected as a order by a.trace_id
    );
end $$;

comment on function tracedb.with_nested(uuid[], uuid) is
    'These traces and all that are nested in them, in the order of their ids: what they add to a '
    'total depends on those above (trace_figures). Internal.';

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
    )) as c on c.starts_at = r.starts_at and c.series_id = r.series_id
    where r is distinct from c;
end $$;

comment on function tracedb.usage_differences(timestamptz, timestamptz, uuid) is
    'Where the totals of an hour and series are not what its traces add up to: none, if all is '
    'well. Only of use for a time whose traces are all retained: those that are gone still count '
    'in the totals.';

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
        with lines as materialized (
            select u.*
            from tracedb.usage_between(since, as_of, false, tenant_id) as u
            where u.kind in ('request', 'nested')
        ),
        sums as (
            select
                grouping(l.agent_id, l.route) as level,
                l.agent_id,
                l.route,
                coalesce(sum(l.executions) filter (where l.kind = 'request'), 0) as requests,
                coalesce(sum(l.errors) filter (where l.kind = 'request'), 0) as failed_requests,
                coalesce(sum(l.executions), 0) as executions,
                coalesce(sum(l.errors), 0) as errors,
                coalesce(sum(l.input_tokens), 0) as input_tokens,
                coalesce(sum(l.output_tokens), 0) as output_tokens,
                case when sum(l.costed) > 0 then sum(l.cost_usd) end as cost_usd,
                coalesce(sum(l.unpriced), 0) as unknown_cost_count
            from lines as l
            group by grouping sets ((), (l.agent_id), (l.route))
        ),
        -- of the total: the requests' alone
        buckets as (
            select
                grouping(l.agent_id, l.route) as level, l.agent_id, l.route, d.bucket,
                case
                    when grouping(l.agent_id, l.route) < 3 then sum(d.n)
                    else coalesce(sum(d.n) filter (where l.kind = 'request'), 0)
                end::bigint as n
            from lines as l
            cross join lateral unnest(l.duration_buckets, l.duration_counts) as d (bucket, n)
            group by grouping sets ((d.bucket), (l.agent_id, d.bucket), (l.route, d.bucket))
        ),
        histograms as (
            select
                b.level, b.agent_id, b.route,
                tracedb.percentiles_ms(
                    array_agg(b.bucket order by b.bucket), array_agg(b.n order by b.bucket),
                    array[0.5, 0.95, 0.99]) as percentiles
            from buckets as b
            where b.n <> 0
            group by b.level, b.agent_id, b.route
        ),
        shown as (
            select s.*, h.percentiles, jsonb_build_object(
                'requests', s.requests, 'executions', s.executions, 'errors', s.errors,
                'input_tokens', s.input_tokens, 'output_tokens', s.output_tokens,
                'cost_usd', s.cost_usd, 'unknown_cost_count', s.unknown_cost_count,
                'p50_duration_ms', h.percentiles[1], 'p95_duration_ms', h.percentiles[2],
                'p99_duration_ms', h.percentiles[3]) as document
            from sums as s
            left join histograms as h
                on h.level = s.level and h.agent_id is not distinct from s.agent_id
                and h.route is not distinct from s.route
            where s.level = 3 or s.executions > 0
        )
        select jsonb_build_object(
            'since', since, 'until', as_of,
            'total_requests', s.requests, 'total_executions', s.executions,
            'total_errors', s.failed_requests, 'total_input_tokens', s.input_tokens,
            'total_output_tokens', s.output_tokens, 'total_cost_usd', s.cost_usd,
            'unknown_cost_count', s.unknown_cost_count,
            'p50_duration_ms', s.percentiles[1],
            'p95_duration_ms', s.percentiles[2],
            'p99_duration_ms', s.percentiles[3],
            'by_agent', coalesce((
                select jsonb_agg(jsonb_build_object('agent_id', a.agent_id) || a.document
                    order by a.executions desc, a.agent_id)
                from shown as a where a.level = 1
            ), '[]'),
            'by_route', coalesce((
                select jsonb_agg(jsonb_build_object('route', r.route) || r.document
                    order by r.executions desc, r.route)
                from shown as r where r.level = 2
            ), '[]'))
        from shown as s
        where s.level = 3
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
    'Money is null where none is known; unknown tokens count as 0. Percentiles are within 1 % (see '
    'percentiles_ms). Rules of money: trace_figures. Read from usage_rollups, but exact at every '
    'moment, and for times whose traces are gone (see usage_series).';

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
            ('total', 'usage_rollups'), ('total', 'usage_contributions'),
            ('default', 'usage_contributions_default'),
            ('feed', 'trace_changes')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('default', 'tracedb_owner', 'all', 'true', 'true'),

            ('feed', 'tracedb_maintainer', 'update', 'true', 'true'),

            ('total', 'tracedb_owner', 'all', 'true', 'true'),
            ('total', 'tracedb_service', 'select', 'true', null),
            ('total', 'tracedb_app', 'select', own_rows, null),
            ('total', 'tracedb_reader', 'select', own_rows, null),
            ('total', 'tracedb_maintainer', 'select', 'true', null),
            ('total', 'tracedb_maintainer', 'insert', null, 'true'),
            ('total', 'tracedb_maintainer', 'delete', 'true', null)
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.usage_rollups enable row level security;
alter table tracedb.usage_rollups force row level security;
alter table tracedb.usage_contributions enable row level security;
alter table tracedb.usage_contributions force row level security;
alter table tracedb.usage_contributions_default enable row level security;
alter table tracedb.usage_contributions_default force row level security;

revoke all on function
    tracedb.percentiles_ms(smallint[], bigint[], double precision[]),
    tracedb.percentiles_ms(tracedb.usage_contributions[], double precision[]),
    tracedb.usage_of_traces(uuid[], tstzmultirange, uuid),
    tracedb.added_usage(tracedb.usage_contributions[]),
    tracedb.negated_usage(tracedb.usage_contributions),
    tracedb.with_nested(uuid[], uuid),
    tracedb.usage_between(timestamptz, timestamptz, boolean, uuid),
    tracedb.usage_series(timestamptz, timestamptz, text, uuid),
    tracedb.tenants_report(timestamptz, timestamptz),
    tracedb.usage_differences(timestamptz, timestamptz, uuid),
    tracedb.fold_usage(integer),
    tracedb.add_to_rollups(text, tracedb.usage_contributions[], uuid)
from public;
grant select on tracedb.usage_rollups, tracedb.usage_contributions
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.percentiles_ms(smallint[], bigint[], double precision[]),
    tracedb.percentiles_ms(tracedb.usage_contributions[], double precision[]),
    tracedb.usage_of_traces(uuid[], tstzmultirange, uuid),
    tracedb.added_usage(tracedb.usage_contributions[]),
    tracedb.negated_usage(tracedb.usage_contributions),
    tracedb.with_nested(uuid[], uuid),
    tracedb.usage_between(timestamptz, timestamptz, boolean, uuid),
    tracedb.usage_series(timestamptz, timestamptz, text, uuid),
    tracedb.tenants_report(timestamptz, timestamptz),
    tracedb.usage_differences(timestamptz, timestamptz, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant update (folded) on tracedb.trace_changes to tracedb_maintainer;
grant insert, delete on tracedb.usage_rollups, tracedb.usage_contributions to tracedb_maintainer;
grant execute on function
    tracedb.fold_usage(integer),
    tracedb.add_to_rollups(text, tracedb.usage_contributions[], uuid)
to tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.usage_rollups');
select tracedb.co_locate('tracedb.usage_contributions');
