-- 590_priced_spans.sql: what each call cost, and the calls of which nobody knows.

set role tracedb_owner;

create or replace view tracedb.priced_spans with (security_invoker = true) as
select
    s.tenant_id,
    s.trace_id,
    s.span_id,
    s.parent_span_id,
    s.name,
    s.operation_type,
    s.operation_type in ('llm', 'embedding', 'rerank') as is_leaf,
    s.status,
    s.error_type,
    s.status_message,
    s.started_at,
    s.ended_at,
    s.duration_us,
    s.provider,
    s.request_model,
    s.response_model,
    s.input_tokens,
    s.output_tokens,
    s.cache_read_tokens,
    s.cache_write_tokens,
    s.reasoning_tokens,
    s.cost_usd as reported_cost_usd,
    case when a.adjustment_id is null then s.computed_cost_usd else a.cost_usd end
        as computed_cost_usd,
    case
        when s.cost_usd is not null then s.cost_usd
        when a.adjustment_id is null then s.computed_cost_usd
        else a.cost_usd
    end as cost_usd,
    case when a.adjustment_id is null then s.price_id else a.price_id end as price_id,
    s.agent_id,
    s.tool_name,
    s.message_id,
    s.conversation_id,
    s.attributes,
    s.events,
    s.links,
    s.created_at,
    s.updated_at
from tracedb.llm_spans as s
left join lateral (
    select c.adjustment_id, c.cost_usd, c.price_id
    from tracedb.span_cost_adjustments as c
    where c.tenant_id = s.tenant_id and c.trace_id = s.trace_id and c.span_id = s.span_id
        and c.span_updated_at = s.updated_at
        and s.cost_usd is null  -- nothing else is adjusted
    order by c.adjustment_id desc
    limit 1
) as a on true;

comment on view tracedb.priced_spans is
    'Every span with what it costs: cost_usd is the cost that was reported (reported_cost_usd), '
    'else the newest adjustment''s, else the one computed when it was stored; null if unknown. '
    'computed_cost_usd and price_id say what it costs by model_prices, also beside a reported '
    'cost. Totals are sums over the leaves (is_leaf): other spans may repeat their usage.';

create or replace view tracedb.unpriced_usage with (security_invoker = true) as
select
    s.tenant_id,
    s.provider,
    coalesce(s.response_model, s.request_model) as model,
    count(*) as call_count,
    count(*) filter (where s.input_tokens is null and s.output_tokens is null)
        as call_count_without_usage,
    sum(s.input_tokens)::bigint as input_tokens,
    sum(s.cache_read_tokens)::bigint as cache_read_tokens,
    sum(s.cache_write_tokens)::bigint as cache_write_tokens,
    sum(s.output_tokens)::bigint as output_tokens,
    sum(s.reasoning_tokens)::bigint as reasoning_tokens,
    min(s.started_at) as first_started_at,
    max(s.started_at) as last_started_at
from tracedb.priced_spans as s
where s.is_leaf and s.cost_usd is null
group by s.tenant_id, s.provider, coalesce(s.response_model, s.request_model);

comment on view tracedb.unpriced_usage is
    'A provider and model a row whose calls have no known cost: how many (and how many of them '
    'report no tokens, which no price would help), their tokens, and from when to when. Set a '
    'price (set_prices) and reprice.';

reset role;
