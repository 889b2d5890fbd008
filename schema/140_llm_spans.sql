-- 140_llm_spans.sql: one span of the tree: a model call, a tool call, an agent's step.

set role tracedb_owner;

create table if not exists tracedb.llm_spans (
    tenant_id          uuid        not null,
    trace_id           uuid        not null,
    span_id            bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id     bytea,
    name               text,
    operation_type     text        not null,
    status             text        not null default 'ok',
    error_type         text,
    status_message     text,
    started_at         timestamptz not null,
    ended_at           timestamptz,
    duration_us        bigint,
    provider           text,
    request_model      text,
    response_model     text,
    input_tokens       bigint,
    output_tokens      bigint,
    cache_read_tokens  bigint,
    cache_write_tokens bigint,
    reasoning_tokens   bigint,
    cost_usd           numeric,
    -- Null: no price was known.
    price_id           bigint,
    agent_id           text,
    tool_name          text,
    message_id         text,
    conversation_id    text,
    attributes         jsonb       not null default '{}',
    events             jsonb       not null default '[]',
    links              jsonb       not null default '[]',
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    -- Null: no price was known, or not of all that the call used.
    computed_cost_usd  numeric,
    constraint llm_spans_pkey primary key (tenant_id, trace_id, span_id),
    constraint span_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint span_operation_type_known check (operation_type in (
        'llm', 'embedding', 'rerank',  -- the leaves: only these count towards tokens and cost
        'tool', 'retrieval', 'agent', 'chain', 'guardrail', 'evaluator', 'other'
    )),
    constraint span_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint span_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint span_ends_after_start check (ended_at >= started_at),
    constraint span_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint span_duration_not_negative check (duration_us >= 0),
    constraint span_tokens_not_negative check (
        input_tokens >= 0 and output_tokens >= 0 and cache_read_tokens >= 0
        and cache_write_tokens >= 0 and reasoning_tokens >= 0
    ),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint span_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint span_attributes_is_object check (jsonb_typeof(attributes) = 'object'),
    constraint span_events_links_are_arrays
        check (jsonb_typeof(events) = 'array' and jsonb_typeof(links) = 'array'),
    constraint span_json_readable check (
        tracedb.is_readable(attributes) and tracedb.is_readable(events)
        and tracedb.is_readable(links)
    )
) partition by range (trace_id);

create table if not exists tracedb.llm_spans_default
partition of tracedb.llm_spans default;

comment on table tracedb.llm_spans is
    'One span of a trace: a call of a model or a tool, a retrieval, a step of an agent.';
comment on column tracedb.llm_spans.span_id is
    '8 bytes, as in OpenTelemetry; unique within its trace.';
comment on column tracedb.llm_spans.operation_type is
    'llm, embedding, rerank, tool, retrieval, agent, chain, guardrail, evaluator or other. Only '
    'the first three count towards tokens and cost: the others may repeat their children''s usage.';
comment on column tracedb.llm_spans.input_tokens is
    'All input tokens, cached ones (cache_read_tokens, cache_write_tokens) included.';
comment on column tracedb.llm_spans.output_tokens is
    'All output tokens, reasoning_tokens included.';
comment on column tracedb.llm_spans.cost_usd is
    'Cost in US dollars as it was reported; null if it was not. What counts says priced_spans.';
comment on column tracedb.llm_spans.price_id is
    'The row of model_prices by which computed_cost_usd was computed.';
comment on column tracedb.llm_spans.computed_cost_usd is
    'Cost in US dollars by the price known when the span was stored, also where one was reported. '
    'The server''s own: no record sets it.';
comment on column tracedb.llm_spans.duration_us is
    'Duration in microseconds.';
comment on constraint span_trace_id_is_uuid7 on tracedb.llm_spans is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint span_ids_are_8_bytes on tracedb.llm_spans is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint span_operation_type_known on tracedb.llm_spans is
    'operation_type: must be llm, embedding, rerank, tool, retrieval, agent, chain, guardrail, '
    'evaluator or other';
comment on constraint span_status_known on tracedb.llm_spans is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint span_time_in_range on tracedb.llm_spans is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint span_ends_after_start on tracedb.llm_spans is
    'ended_at: must not be before started_at';
comment on constraint span_running_has_no_end on tracedb.llm_spans is
    'ended_at, duration_us: must not be given while status is running';
comment on constraint span_duration_not_negative on tracedb.llm_spans is
    'duration_us: must not be negative';
comment on constraint span_tokens_not_negative on tracedb.llm_spans is
    'input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens: must '
    'not be negative';
comment on constraint span_cost_is_money on tracedb.llm_spans is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint span_attributes_is_object on tracedb.llm_spans is
    'attributes: must be an object';
comment on constraint span_events_links_are_arrays on tracedb.llm_spans is
    'events, links: must be arrays';
comment on constraint span_json_readable on tracedb.llm_spans is
    'attributes, events, links: nested less than 100 levels deep, numbers within 1e308';

reset role;
