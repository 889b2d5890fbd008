-- money.sql: the statements about prices and money; tracedb/money.py has one function for each.

-- name: set_prices
select tracedb.set_prices(%(prices)s::jsonb, %(tenant_id)s);

-- name: model_prices
select
    price_id, provider, model, valid_from, revision, min_input_tokens, input_usd_per_mtok,
    cache_read_usd_per_mtok, cache_write_usd_per_mtok, output_usd_per_mtok, reasoning_usd_per_mtok,
    request_usd, source
from tracedb.model_prices
where tenant_id is not distinct from %(tenant_id)s
    and (%(model)s::text is null or model = %(model)s)
order by provider nulls first, model, valid_from, revision, min_input_tokens;

-- name: unpriced_names
select distinct provider, request_model, response_model
from tracedb.priced_spans
where is_leaf and price_id is null and coalesce(response_model, request_model) is not null
order by provider, request_model, response_model;

-- name: tenants_with_spans
-- from one tenant to the next along the key, not over all spans
with recursive t as (
    (select tenant_id from tracedb.llm_spans order by tenant_id limit 1)
    union all
    select (
        select s.tenant_id from tracedb.llm_spans as s
        where s.tenant_id > t.tenant_id
        order by s.tenant_id
        limit 1
    )
    from t
    where t.tenant_id is not null
)
select tenant_id from t where tenant_id is not null;

-- name: unpriced_usage
select
    provider, model, call_count, call_count_without_usage, input_tokens, cache_read_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, first_started_at, last_started_at
from tracedb.unpriced_usage
where tenant_id = %(tenant_id)s
order by call_count desc, provider, model;

-- name: reprice
-- as text, so that Python reads money as decimals
select tracedb.reprice(
    %(since)s, %(until)s, %(dry_run)s, %(reason)s, %(max_spans)s, %(cursor)s, %(tenant_id)s
)::text;

-- name: reconcile_invoice
select tracedb.reconcile_invoice(
    %(provider)s, daterange(%(first_day)s, %(last_day)s, '[]'), %(lines)s::jsonb,
    %(tolerance_usd)s, %(tenant_id)s
)::text;

-- name: get_tenant_daily_cost
select tracedb.get_tenant_daily_cost(
    %(tenant_id)s, coalesce(%(date)s, (now() at time zone 'UTC')::date)
);

-- name: get_cost_breakdown
select * from tracedb.get_cost_breakdown(
    %(by)s, %(since)s, coalesce(%(until)s, now()), %(tenant_id)s
);

-- name: set_budget
select tracedb.set_budget(
    %(name)s, %(period)s, %(soft_limit_usd)s, %(hard_limit_usd)s, %(tenant_id)s
);

-- name: remove_budget
select tracedb.remove_budget(%(name)s, %(tenant_id)s);

-- name: get_budget_status
select * from tracedb.get_budget_status(coalesce(%(as_of)s, clock_timestamp()), %(tenant_id)s);

-- name: check_budgets
select b.name, a.period_start, a.threshold, a.limit_usd, a.spent_usd
from tracedb.check_budgets(coalesce(%(as_of)s, clock_timestamp()), %(tenant_id)s) as a
join tracedb.budgets as b using (tenant_id, budget_id)
order by b.name, a.limit_usd;

-- name: reserve_budget
select tracedb.reserve_budget(
    %(reservation_id)s, %(amount_usd)s, %(ttl)s, %(trace_id)s, %(tenant_id)s
);

-- name: settle_budget
select tracedb.settle_budget(%(reservation_id)s, %(cost_usd)s, %(trace_id)s, %(tenant_id)s);

-- name: release_budget
select tracedb.release_budget(%(reservation_id)s, %(tenant_id)s);

-- name: forecast_costs
select tracedb.forecast_costs(
    %(period)s, coalesce(%(as_of)s, now()), %(history_days)s, %(tenant_id)s
)::text;
