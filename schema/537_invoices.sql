-- 537_invoices.sql: a provider's invoice against what was traced.

set role tracedb_owner;

create or replace function tracedb.reconcile_invoice(
    provider text,
    period daterange,
    lines jsonb,
    tolerance_usd numeric default 0.01,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    since constant timestamptz := lower(period)::timestamptz;
    until constant timestamptz := upper(period)::timestamptz;
    problem text;
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002',
            message = 'period: must have a first and a last day';
    end if;
    if tolerance_usd is null or not tolerance_usd >= 0 then
        raise exception using errcode = 'TD002',
            message = 'tolerance_usd: must not be negative';
    end if;
    if jsonb_typeof(lines) is distinct from 'array' then
        raise exception using errcode = 'TD002', message = 'lines: must be an array';
    end if;
    select case
        when jsonb_typeof(e) <> 'object' then 'lines: must be objects'
        when coalesce(e ->> 'model', '') = '' then 'model: required'
        when not (e ->> 'day')::date <@ period then 'day: must lie in the period'
        when e - array['model', 'day', 'amount_usd', 'calls', 'input_tokens', 'output_tokens',
            'cache_read_tokens', 'cache_write_tokens', 'reasoning_tokens'] <> '{}'
            then 'lines: a field that no line has'
    end into problem
    from jsonb_array_elements(lines) as e
    order by 1
    limit 1;
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;
    return (
        with invoiced as materialized (
            -- A model may be charged in several lines, such as one a class of tokens.
            select
                l.model, l.day, sum(l.amount_usd) as amount_usd, sum(l.calls) as calls,
                sum(l.input_tokens) as input_tokens, sum(l.output_tokens) as output_tokens,
                sum(l.cache_read_tokens) as cache_read_tokens,
                sum(l.cache_write_tokens) as cache_write_tokens,
                sum(l.reasoning_tokens) as reasoning_tokens
            from jsonb_to_recordset(lines) as l (
                model text, day date, amount_usd numeric, calls numeric, input_tokens numeric,
                output_tokens numeric, cache_read_tokens numeric, cache_write_tokens numeric,
                reasoning_tokens numeric
            )
            group by l.model, l.day
        ),
        traced as (
            select
                c.model,
                case
                    when c.has_day or not c.has_undated and c.is_dated then c.day
                end as day,
                sum(c.cost_usd) as amount_usd, count(*) as calls,
                count(*) filter (where c.cost_usd is null) as unpriced_calls,
                coalesce(sum(c.input_tokens), 0) as input_tokens,
                coalesce(sum(c.output_tokens), 0) as output_tokens,
                coalesce(sum(c.cache_read_tokens), 0) as cache_read_tokens,
                coalesce(sum(c.cache_write_tokens), 0) as cache_write_tokens,
                coalesce(sum(c.reasoning_tokens), 0) as reasoning_tokens
            from (
                select
                    s.*, n.model, s.started_at::date as day,
                    exists (
                        select from invoiced as i
                        where i.model = n.model and i.day = s.started_at::date
                    ) as has_day,
                    exists (
                        select from invoiced as i where i.model = n.model and i.day is null
                    ) as has_undated,
                    exists (
                        select from invoiced as i where i.model = n.model and i.day is not null
                    ) as is_dated
                from tracedb.priced_spans as s
                -- The name that the invoice uses, of the two that a call may have.
                cross join lateral (
                    select case
                        when s.response_model in (select i.model from invoiced as i)
                            then s.response_model
                        when s.request_model in (select i.model from invoiced as i)
                            then s.request_model
                        else coalesce(s.response_model, s.request_model)
                    end as model
                ) as n
                where s.tenant_id = reconcile_invoice.tenant_id
                    and s.trace_id >= tracedb.uuid_floor(since - interval '1 day')
                    and s.trace_id < tracedb.uuid_floor(until + interval '1 day')
                    and s.started_at >= since and s.started_at < until
                    and s.is_leaf and s.provider = reconcile_invoice.provider
            ) as c
            group by 1, 2
        ),
        compared as (
            select
                coalesce(i.model, t.model) as model, coalesce(i.day, t.day) as day,
                i.amount_usd as invoiced_usd, t.amount_usd as traced_usd,
                coalesce(i.amount_usd, 0) - coalesce(t.amount_usd, 0) as difference_usd,
                i.amount_usd is not null
                    and abs(i.amount_usd - coalesce(t.amount_usd, 0)) > tolerance_usd
                    as amount_differs,
                coalesce(t.unpriced_calls, 0) as unpriced_calls,
                num_nonnulls(i.calls, i.input_tokens, i.output_tokens, i.cache_read_tokens,
                    i.cache_write_tokens, i.reasoning_tokens) > 0 as states_usage,
                -- Only what the invoice states can differ.
                i.calls <> t.calls or i.input_tokens <> t.input_tokens
                    or i.output_tokens <> t.output_tokens
                    or i.cache_read_tokens <> t.cache_read_tokens
                    or i.cache_write_tokens <> t.cache_write_tokens
                    or i.reasoning_tokens <> t.reasoning_tokens as usage_differs,
                jsonb_strip_nulls(to_jsonb(i) - array['model', 'day', 'amount_usd']) as invoiced,
                to_jsonb(t) - array['model', 'day', 'amount_usd', 'unpriced_calls'] as traced,
                i.model is not null as is_invoiced, t.calls is not null as is_traced
            from invoiced as i
            full join traced as t
                on t.model = i.model and coalesce(t.day, '-infinity') = coalesce(i.day, '-infinity')
        ),
        judged as (
            select c.*, case
                when not c.is_traced then 'missing_in_traces'
                when not c.is_invoiced then 'missing_in_invoice'
                when c.amount_differs or c.invoiced_usd is null and c.usage_differs
                    then 'amount_differs'
                else 'matched'
            end as outcome
            from compared as c
        )
        select jsonb_build_object(
            'provider', provider, 'since', since, 'until', until,
            'invoiced_usd', coalesce(sum(j.invoiced_usd), 0),
            'traced_usd', coalesce(sum(j.traced_usd), 0),
            'difference_usd', coalesce(sum(j.difference_usd), 0),
            'unpriced_calls', coalesce(sum(j.unpriced_calls), 0),
            'matched', count(*) filter (where j.outcome = 'matched'),
            'amount_differs', count(*) filter (where j.outcome = 'amount_differs'),
            'missing_in_traces', count(*) filter (where j.outcome = 'missing_in_traces'),
            'missing_in_invoice', count(*) filter (where j.outcome = 'missing_in_invoice'),
            'lines', coalesce(jsonb_agg(jsonb_build_object(
                'model', j.model, 'day', j.day, 'outcome', j.outcome,
                'reason', case when j.outcome = 'amount_differs' then case
                    when j.usage_differs then 'usage differs'
                    when j.unpriced_calls > 0 then 'calls without a known price'
                    when j.states_usage then 'price differs'
                    else 'price or usage differs'
                end end,
                'invoiced_usd', j.invoiced_usd, 'traced_usd', j.traced_usd,
                'difference_usd', j.difference_usd, 'unpriced_calls', j.unpriced_calls,
                'invoiced', j.invoiced, 'traced', j.traced
            ) order by abs(j.difference_usd) desc, j.model, j.day), '[]'))
        from judged as j
    );
end $$;

comment on function tracedb.reconcile_invoice(text, daterange, jsonb, numeric, uuid) is
    'Compares a provider''s invoice for a period (days in UTC) with the calls that were traced. '
    'Lines are [{"model", "day", "amount_usd", "calls", "input_tokens", "output_tokens", '
    '"cache_read_tokens", "cache_write_tokens", "reasoning_tokens"}], all but model optional, the '
    'token classes as in llm_spans; lines of one model and day are added up. A call is compared '
    'with the line of its day, else with the model''s line without a day, by the model that '
    'answered or that was asked. Returns {"provider", "since", "until", "invoiced_usd", '
    '"traced_usd", "difference_usd" (invoiced less traced), "unpriced_calls", "matched", '
    '"amount_differs", "missing_in_traces", "missing_in_invoice" (how many lines), "lines": '
    '[{"model", "day", "outcome", "reason", "invoiced_usd", "traced_usd", "difference_usd", '
    '"unpriced_calls", "invoiced", "traced"}]}. Amounts match within tolerance_usd a line; the '
    'reason says whether the usage differs from what the invoice states, or the price.';

reset role;
