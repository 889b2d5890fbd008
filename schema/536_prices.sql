-- 536_prices.sql: learning prices, and applying them to what was stored before.

set role tracedb_owner;

create or replace function tracedb.set_prices(prices jsonb, tenant_id uuid default null)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    problem text;
    added integer;
begin
    select case
        when jsonb_typeof(e) <> 'object' then 'prices: must be objects'
        when coalesce(e ->> 'model', '') = '' then 'model: required'
        when e ->> 'valid_from' is null then 'valid_from: required'
        when e ->> 'source' is null then 'source: required'
        when jsonb_typeof(e -> 'tiers') is distinct from 'array' or e -> 'tiers' = '[]'
            then 'tiers: must be an array of at least one'
    end into problem
    from jsonb_array_elements(prices) as e
    order by 1
    limit 1;
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;
    -- Or two who set the same price would both find it missing.
    perform pg_advisory_xact_lock(hashtext('tracedb.model_prices'));
    with given as (
        select
            e ->> 'provider' as provider, e ->> 'model' as model,
            (e ->> 'valid_from')::timestamptz as valid_from, e ->> 'source' as source,
            e -> 'tiers' as tiers
        from jsonb_array_elements(prices) as e
    ),
    tiers as (
        select
            g.provider, g.model, g.valid_from, g.source, coalesce(t.min_input_tokens, 0) as least,
            t.input_usd_per_mtok, t.cache_read_usd_per_mtok, t.cache_write_usd_per_mtok,
            t.output_usd_per_mtok, t.reasoning_usd_per_mtok, coalesce(t.request_usd, 0) as request
        from given as g
        cross join lateral jsonb_to_recordset(g.tiers) as t (
            min_input_tokens bigint, input_usd_per_mtok numeric, cache_read_usd_per_mtok numeric,
            cache_write_usd_per_mtok numeric, output_usd_per_mtok numeric,
            reasoning_usd_per_mtok numeric, request_usd numeric
        )
    ),
    wanted as (
        select
            t.provider, t.model, t.valid_from,
            array_agg(row(
                t.least, t.input_usd_per_mtok, t.cache_read_usd_per_mtok,
                t.cache_write_usd_per_mtok, t.output_usd_per_mtok, t.reasoning_usd_per_mtok,
                t.request
            ) order by t.least) as entry
        from tiers as t
        group by t.provider, t.model, t.valid_from
    ),
    known as (
        select distinct on (k.model, k.provider, k.valid_from) k.*
        from (
            select
                p.provider, p.model, p.valid_from, p.revision,
                array_agg(row(
                    p.min_input_tokens, p.input_usd_per_mtok, p.cache_read_usd_per_mtok,
                    p.cache_write_usd_per_mtok, p.output_usd_per_mtok, p.reasoning_usd_per_mtok,
                    p.request_usd
                ) order by p.min_input_tokens) as entry
            from tracedb.model_prices as p
            where p.tenant_id is not distinct from set_prices.tenant_id
                and p.model in (select g.model from given as g)
            group by p.provider, p.model, p.valid_from, p.revision
        ) as k
        order by k.model, k.provider, k.valid_from, k.revision desc
    )
    insert into tracedb.model_prices (
        tenant_id, provider, model, valid_from, revision, min_input_tokens, input_usd_per_mtok,
        cache_read_usd_per_mtok, cache_write_usd_per_mtok, output_usd_per_mtok,
        reasoning_usd_per_mtok, request_usd, source
    )
    select
        set_prices.tenant_id, t.provider, t.model, t.valid_from, coalesce(k.revision, 0) + 1,
        t.least, t.input_usd_per_mtok, t.cache_read_usd_per_mtok, t.cache_write_usd_per_mtok,
        t.output_usd_per_mtok, t.reasoning_usd_per_mtok, t.request, t.source
    from wanted as w
    join tiers as t
        on t.model = w.model and t.valid_from = w.valid_from
        and t.provider is not distinct from w.provider
    left join known as k
        on k.model = w.model and k.valid_from = w.valid_from
        and k.provider is not distinct from w.provider
    where k.entry is distinct from w.entry
    order by t.model, t.provider, t.valid_from, t.least;
    get diagnostics added = row_count;
    return added;
end $$;

comment on function tracedb.set_prices(jsonb, uuid) is
    'Adds entries to model_prices: [{"provider", "model", "valid_from", "source", "tiers": '
    '[{"min_input_tokens", "input_usd_per_mtok", "cache_read_usd_per_mtok", '
    '"cache_write_usd_per_mtok", "output_usd_per_mtok", "reasoning_usd_per_mtok", "request_usd"}, '
    '...]}, ...], for all tenants or as a tenant''s own. An entry that says what is known already '
    'is left out; one that says something else for the same valid_from is a correction. Returns '
    'how many rows were added. Calls stored before keep their cost until reprice.';

create or replace function tracedb.reprice(
    since timestamptz default null,
    until timestamptz default null,
    dry_run boolean default true,
    reason text default 'by the prices known later',
    max_spans integer default 10000,
    cursor text default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := reprice.tenant_id;
    -- the id is the clock, to the day; started_at is exact
    lowest constant uuid := tracedb.uuid_floor(
        coalesce(since - interval '1 day', '-infinity'));
    highest constant uuid := tracedb.uuid_floor(coalesce(until + interval '1 day', 'infinity'));
    after constant text[] := string_to_array(coalesce(cursor, lowest || '/'), '/');
    calls tracedb.llm_spans[];
    adjustments tracedb.span_cost_adjustments[];
    answer jsonb;
begin
    if tenant is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    if max_spans is null or max_spans not between 1 and 100000 then
        raise exception using errcode = 'TD002', message = 'max_spans: must be from 1 to 100000';
    end if;
    if cursor !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-9a-f]{16}$' then
        raise exception using errcode = 'TD002',
            message = 'cursor: must be one that reprice has given';
    end if;
    if not dry_run
        and not pg_try_advisory_xact_lock(hashtext('tracedb.reprice'), hashtext(tenant::text))
    then
        raise exception using
            errcode = 'lock_not_available',
            message = 'another session reprices this tenant';
    end if;
    -- What the provider charged is not ours to change.
    select array_agg(s) into calls
    from (
        select s.*
        from tracedb.llm_spans as s
        where s.tenant_id = tenant
            and s.trace_id >= lowest and s.trace_id < highest
            and (s.trace_id, s.span_id) > (after[1]::uuid, decode(after[2], 'hex'))
            and (since is null or s.started_at >= since)
            and (until is null or s.started_at < until)
            and s.operation_type in ('llm', 'embedding', 'rerank')
            and s.cost_usd is null
        order by s.trace_id, s.span_id
        limit max_spans
    ) as s;

    with changed as materialized (
        select
            n.trace_id, n.span_id, n.updated_at, n.provider,
            coalesce(n.response_model, n.request_model) as model,
            n.known_price_id, n.known_cost_usd, p.cost_usd as previous_cost_usd
        from rows from (unnest(calls), unnest(tracedb.span_costs(calls, tenant))) as n
        join tracedb.priced_spans as p
            on p.tenant_id = tenant and p.trace_id = n.trace_id and p.span_id = n.span_id
            and p.updated_at = n.updated_at
        where p.trace_id between (calls[1]).trace_id and (calls[cardinality(calls)]).trace_id
            and n.known_cost_usd is distinct from p.cost_usd
    ),
    models as (
        select
            c.provider, c.model, count(*) as spans,
            sum(c.previous_cost_usd) as previous_cost_usd, sum(c.known_cost_usd) as cost_usd,
            sum(coalesce(c.known_cost_usd, 0) - coalesce(c.previous_cost_usd, 0)) as difference_usd
        from changed as c
        group by c.provider, c.model
    )
    select
        (
            select array_agg(row(
                tenant, c.trace_id, c.span_id, tracedb.new_id(), c.updated_at, c.known_price_id,
                c.known_cost_usd, c.previous_cost_usd, reprice.reason, now()
            )::tracedb.span_cost_adjustments)
            from changed as c
        ),
        jsonb_build_object(
            'dry_run', dry_run,
            'examined', coalesce(cardinality(calls), 0),
            'adjusted', coalesce(sum(m.spans), 0),
            'previous_cost_usd', sum(m.previous_cost_usd),
            'cost_usd', sum(m.cost_usd),
            'difference_usd', coalesce(sum(m.difference_usd), 0),
            'by_model', coalesce(
                jsonb_agg(to_jsonb(m) order by abs(m.difference_usd) desc, m.model), '[]'),
            'cursor', case when cardinality(calls) = max_spans then
                concat_ws('/', (calls[max_spans]).trace_id,
                    encode((calls[max_spans]).span_id, 'hex')) end)
    into adjustments, answer
    from models as m;
    if not dry_run then
        insert into tracedb.span_cost_adjustments
        select a.* from unnest(adjustments) as a
        on conflict do nothing;
        perform tracedb.note_changes(
            array(select distinct a.trace_id from unnest(adjustments) as a), tenant);
    end if;
    return answer;
end $$;

comment on function
tracedb.reprice(timestamptz, timestamptz, boolean, text, integer, text, uuid) is
    'Compares what calls that started from since on and before until (null: any time) count as '
    'with what they cost by the prices known now, and, unless it is a dry run, appends an '
    'adjustment for each that differs. Reported costs stay. At most max_spans (1 to 100000) calls '
    'are examined; go on with the cursor of the answer until it is null. Returns {"dry_run", '
    '"examined", "adjusted", "previous_cost_usd", "cost_usd", "difference_usd", "by_model": '
    '[{"provider", "model", "spans", "previous_cost_usd", "cost_usd", "difference_usd"}], '
    '"cursor"}, the sums over what is adjusted. A second run finds nothing.';

reset role;
