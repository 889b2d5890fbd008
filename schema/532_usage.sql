-- 532_usage.sql: what traces add to a total, and how totals are added up.

-- Latency is kept as a histogram of buckets that grow by 2 %, so that percentiles of any hours,
-- agents or models can be merged. A bucket is named by its middle, which is within 1 % of all in it
-- (Masson, Rim, Lee: DDSketch, 2019).

set role tracedb_owner;

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

reset role;
