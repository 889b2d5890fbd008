-- 535_cost.sql: what calls cost: by the price of their time, exactly, or unknown.

set role tracedb_owner;

-- These two have no "set" clause, so that they are inlined where they run for each span.
create or replace function tracedb.price_of_class(tokens bigint, usd_per_mtok numeric)
returns numeric
language sql immutable parallel safe
as $$
    select case
        when tokens operator(pg_catalog.=) 0 then 0
        when tokens operator(pg_catalog.>) 0
            then tokens operator(pg_catalog.*) usd_per_mtok
        -- not reported, but without a price that could matter
        when tokens is null and coalesce(usd_per_mtok, 0) operator(pg_catalog.=) 0 then 0
    end
$$;

comment on function tracedb.price_of_class(bigint, numeric) is
    'What tokens of one class cost, in millionths of a US dollar. Null where there are tokens and '
    'no price, where it is not known how many of a class with a price there are, and for a '
    'negative number. Internal: price_of_tokens adds the classes up.';

create or replace function tracedb.price_of_tokens(
    input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    input_usd_per_mtok numeric,
    cache_read_usd_per_mtok numeric,
    cache_write_usd_per_mtok numeric,
    output_usd_per_mtok numeric,
    reasoning_usd_per_mtok numeric,
    request_usd numeric
)
returns numeric
language sql immutable parallel safe
as $$
    -- A class with a price of its own is taken out of the class that includes it.
    select request_usd operator(pg_catalog.+) (0.000001 operator(pg_catalog.*) (
        tracedb.price_of_class(
            input_tokens
                operator(pg_catalog.-) case when cache_read_usd_per_mtok is null then 0
                    else coalesce(cache_read_tokens, 0) end
                operator(pg_catalog.-) case when cache_write_usd_per_mtok is null then 0
                    else coalesce(cache_write_tokens, 0) end,
            input_usd_per_mtok)
        operator(pg_catalog.+) case when cache_read_usd_per_mtok is null then 0
            else tracedb.price_of_class(coalesce(cache_read_tokens, 0), cache_read_usd_per_mtok) end
        operator(pg_catalog.+) case when cache_write_usd_per_mtok is null then 0
            else tracedb.price_of_class(
                coalesce(cache_write_tokens, 0), cache_write_usd_per_mtok) end
        operator(pg_catalog.+) tracedb.price_of_class(
            output_tokens
                operator(pg_catalog.-) case when reasoning_usd_per_mtok is null then 0
                    else coalesce(reasoning_tokens, 0) end,
            output_usd_per_mtok)
        operator(pg_catalog.+) case when reasoning_usd_per_mtok is null then 0
            else tracedb.price_of_class(coalesce(reasoning_tokens, 0), reasoning_usd_per_mtok) end
    ))
$$;

comment on function tracedb.price_of_tokens(
    bigint, bigint, bigint, bigint, bigint, numeric, numeric, numeric, numeric, numeric, numeric
) is
    'What a call costs in US dollars, to the last digit. Input tokens include cached ones and '
    'output tokens include reasoning; each token is paid once, at the price of its own class where '
    'there is one (cache reads and writes, reasoning), else at that of the class around it. Null: '
    'unknown, because a class has tokens and no price, because tokens that cost something were not '
    'reported, or because the classes exceed what includes them.';

create or replace function tracedb.prices_of(
    providers text[], request_models text[], response_models text[], tenant_id uuid
)
returns table (
    name_no bigint,
    valid_from timestamptz,
    valid_until timestamptz,
    min_input_tokens bigint,
    until_input_tokens bigint,
    price_id bigint,
    input_usd_per_mtok numeric,
    cache_read_usd_per_mtok numeric,
    cache_write_usd_per_mtok numeric,
    output_usd_per_mtok numeric,
    reasoning_usd_per_mtok numeric,
    request_usd numeric
)
language plpgsql stable
rows 10
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    return query
    select
        l.name_no, l.valid_from, least(l.next_from, l.better_from, 'infinity'),
        l.min_input_tokens, coalesce(l.next_tier, 9223372036854775807),
        l.price_id, l.input_usd_per_mtok, l.cache_read_usd_per_mtok, l.cache_write_usd_per_mtok,
        l.output_usd_per_mtok, l.reasoning_usd_per_mtok, l.request_usd
    from (
        select
            n.name_no, p.*,
            -- An entry holds until the next one of its kind or the first one of a better kind.
            min(p.valid_from) over (
                partition by n.name_no, r.rank
                order by p.valid_from groups between 1 following and unbounded following
            ) as next_from,
            min(p.valid_from) over (
                partition by n.name_no
                order by r.rank groups between unbounded preceding and 1 preceding
            ) as better_from,
            max(p.revision) over (partition by n.name_no, r.rank, p.valid_from) as last_revision,
            lead(p.min_input_tokens) over (
                partition by n.name_no, r.rank, p.valid_from, p.revision
                order by p.min_input_tokens
            ) as next_tier
        from unnest(providers, request_models, response_models) with ordinality
            as n (provider, request_model, response_model, name_no)
        cross join lateral (
            select o.* from tracedb.model_prices as o
            where o.tenant_id = prices_of.tenant_id
                and o.model = any(array[n.response_model, n.request_model])
            union all
            select g.* from tracedb.model_prices as g
            where g.tenant_id is null
                and g.model = any(array[n.response_model, n.request_model])
        ) as p
        cross join lateral (
            select 4 * (p.tenant_id is null)::integer
                + 2 * (p.model is distinct from n.response_model)::integer
                + (p.provider is null)::integer as rank
        ) as r
        -- a price may say that it is for calls that name no provider
        where p.provider is null or p.provider = coalesce(n.provider, '')
    ) as l
    where l.revision = l.last_revision
        and (l.better_from is null or l.valid_from < l.better_from);
end $$;

comment on function tracedb.prices_of(text[], text[], text[], uuid) is
    'What calls of the models named (by their place from 1) cost a tenant, when and from how many '
    'input tokens on: for any name, time and number at most one row. A tenant''s own price goes '
    'before one of the general list, that of the model that answered before that of the model '
    'that was asked, that of the provider before one of any provider.';

create or replace function tracedb.span_costs(spans tracedb.llm_spans[], tenant_id uuid)
returns tracedb.span_cost[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    costs tracedb.span_cost[];
begin
    if not exists (select from tracedb.model_prices) then
        return null;
    end if;
    -- Prices are looked up once a name, not once a call, and for all names at once.
    with calls as materialized (
        select
            s.ordinality as place, s.started_at, coalesce(s.input_tokens, 0) as size,
            coalesce(s.provider, '') as provider,
            coalesce(s.request_model, '') as request_model,
            coalesce(s.response_model, '') as response_model,
            s.input_tokens, s.cache_read_tokens, s.cache_write_tokens, s.output_tokens,
            s.reasoning_tokens,
            s.operation_type in ('llm', 'embedding', 'rerank') as is_leaf
        from unnest(spans) with ordinality as s
    ),
    names as materialized (
        select n.*, row_number() over () as name_no
        from (
            select distinct c.provider, c.request_model, c.response_model
            from calls as c
            where c.is_leaf
        ) as n
    ),
    prices as materialized (
        select n.provider, n.request_model, n.response_model, p.*
        from tracedb.prices_of(
            array(select n.provider from names as n order by n.name_no),
            array(select n.request_model from names as n order by n.name_no),
            array(select n.response_model from names as n order by n.name_no),
            span_costs.tenant_id) as p
        join names as n using (name_no)
    )
    select array_agg(
        case when p.price_id is not null then row(
            p.price_id,
            tracedb.price_of_tokens(
                c.input_tokens, c.cache_read_tokens, c.cache_write_tokens, c.output_tokens,
                c.reasoning_tokens, p.input_usd_per_mtok, p.cache_read_usd_per_mtok,
                p.cache_write_usd_per_mtok, p.output_usd_per_mtok, p.reasoning_usd_per_mtok,
                p.request_usd)
        )::tracedb.span_cost end
        order by c.place)
    into costs
    from calls as c
    left join prices as p
        on c.is_leaf and c.provider = p.provider and c.request_model = p.request_model
        and c.response_model = p.response_model
        and c.started_at >= p.valid_from and c.started_at < p.valid_until
        and c.size >= p.min_input_tokens and c.size < p.until_input_tokens;
    return costs;
end $$;

comment on function tracedb.span_costs(tracedb.llm_spans[], uuid) is
    'What spans cost by the price of their start, in their order; null for a span that is no leaf '
    '(llm, embedding, rerank) or has no price, and as a whole where no price is known at all. '
    'A cost is null where there is a price, but not all that it needs. Internal.';

create or replace function tracedb.priced_rows(part_rows jsonb[])
returns jsonb[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    costs tracedb.span_cost[];
begin
    if not exists (select from tracedb.model_prices) then
        return part_rows;
    end if;
    costs := tracedb.span_costs(
        array(
            select jsonb_populate_record(null::tracedb.llm_spans, u.r)
            from unnest(part_rows) with ordinality as u (r, place)
            order by u.place
        ),
        (part_rows[1] ->> 'tenant_id')::uuid);
    return array(
        select u.r || jsonb_build_object(
            'price_id', u.known_price_id, 'computed_cost_usd', u.known_cost_usd)
        from rows from (unnest(part_rows), unnest(costs)) with ordinality
            as u (r, known_price_id, known_cost_usd, place)
        order by u.place
    );
end $$;

comment on function tracedb.priced_rows(jsonb[]) is
    'Rows of llm_spans (as jsonb) with what they cost by the prices that are known. Internal.';

reset role;
