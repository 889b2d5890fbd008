-- 100_execution_traces.sql: one request, or one nested agent execution.

set role tracedb_owner;

create table if not exists tracedb.execution_traces (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    -- Null: not reported. A trace without a parent is its own root.
    root_trace_id   uuid,
    -- Null: not nested. The parent, and the part of the parent that started this execution.
    parent_trace_id uuid,
    parent_span_id  bytea,
    -- Null: the recorder used our own id.
    external_id     text,
    -- Null in any column from here on: not reported.
    session_id      text,
    user_id         text,
    source          text,
    channel         text,
    message_type    text,
    name            text,
    intent          jsonb,
    route           text,
    agent_id        text,
    status          text        not null,
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    llm_calls       bigint,
    input_tokens    bigint,
    output_tokens   bigint,
    cost_usd        numeric,
    docs_retrieved  bigint,
    doc_sources     text[]      not null default '{}',
    research_triggered      boolean not null default false,
    kb_enrichment_triggered boolean not null default false,
    tags            text[]      not null default '{}',
    context         jsonb       not null default '{}',
    -- Null: every value is from a finished report. Else a rank per field: 0 inferred from a part
    -- that came before its trace, 1 from the report of a running trace. See merge_reports.
    provisional     jsonb,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint execution_traces_pkey primary key (tenant_id, trace_id),
    constraint traces_have_uuid7_ids check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint trace_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint trace_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint trace_ends_after_start check (ended_at >= started_at),
    -- Else an early report's end could be merged with a later report's start.
    constraint trace_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint trace_duration_not_negative check (duration_ms >= 0),
    constraint trace_parent_span_is_8_bytes check (octet_length(parent_span_id) = 8),
    constraint trace_counts_not_negative check (
        llm_calls >= 0 and input_tokens >= 0 and output_tokens >= 0 and docs_retrieved >= 0
    ),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint trace_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    -- An index entry holds at most 2704 bytes; without a rule a long label would be refused by
    -- the index, with a message that names no field.
    constraint trace_labels_fit check (
        octet_length(external_id) <= 1024 and octet_length(session_id) <= 1024
        and octet_length(user_id) <= 1024 and octet_length(source) <= 1024
        and octet_length(channel) <= 1024 and octet_length(message_type) <= 1024
        and octet_length(name) <= 1024 and octet_length(route) <= 1024
        and octet_length(agent_id) <= 1024 and octet_length(error_type) <= 1024
    ),
    constraint trace_json_readable
        check (tracedb.is_readable(intent) and tracedb.is_readable(context)),
    constraint trace_context_is_object check (jsonb_typeof(context) = 'object'),
    constraint trace_provisional_is_object check (jsonb_typeof(provisional) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.execution_traces_default
partition of tracedb.execution_traces default;

-- The newest of a user: order comes from the id.
create index if not exists execution_traces_user_id_idx
on tracedb.execution_traces (tenant_id, user_id, trace_id desc);

-- Nested executions of a trace, for trace_tree.
create index if not exists execution_traces_parent_trace_id_idx
on tracedb.execution_traces (tenant_id, parent_trace_id, trace_id)
where parent_trace_id is not null;

-- The newest failures; few rows, so a partial index.
create index if not exists execution_traces_failed_idx
on tracedb.execution_traces (tenant_id, trace_id desc)
where status in ('error', 'timeout');

comment on table tracedb.execution_traces is
    'One request or (nested) agent execution. Its text is in trace_payloads, its parts in '
    'agent_routing_decisions, hook_executions, endpoint_calls and llm_spans.';
comment on column tracedb.execution_traces.trace_id is
    'A UUIDv7: also the clock, the order and the partition key.';
comment on column tracedb.execution_traces.external_id is
    'The recorder''s own id, if it is not a UUIDv7 of its time; see trace_ids.';
comment on column tracedb.execution_traces.cost_usd is
    'Cost in US dollars of the trace as a whole, as its recorder reported it; null if it did not. '
    'Nothing updates it from spans: trace_summary counts spans where this is null.';
comment on column tracedb.execution_traces.status is
    'running, ok, error, timeout or cancelled.';
comment on constraint traces_have_uuid7_ids on tracedb.execution_traces is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint trace_status_known on tracedb.execution_traces is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint trace_time_in_range on tracedb.execution_traces is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint trace_ends_after_start on tracedb.execution_traces is
    'ended_at: must not be before started_at';
comment on constraint trace_running_has_no_end on tracedb.execution_traces is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint trace_duration_not_negative on tracedb.execution_traces is
    'duration_ms: must not be negative';
comment on constraint trace_parent_span_is_8_bytes on tracedb.execution_traces is
    'parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint trace_counts_not_negative on tracedb.execution_traces is
    'llm_calls, input_tokens, output_tokens, docs_retrieved: must not be negative';
comment on constraint trace_cost_is_money on tracedb.execution_traces is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint trace_labels_fit on tracedb.execution_traces is
    'external_id, session_id, user_id, source, channel, message_type, name, route, agent_id, '
    'error_type: at most 1024 bytes each';
comment on constraint trace_json_readable on tracedb.execution_traces is
    'intent, context: nested less than 100 levels deep, numbers within 1e308';
comment on constraint trace_provisional_is_object on tracedb.execution_traces is
    'provisional: must be an object';
comment on constraint trace_context_is_object on tracedb.execution_traces is
    'context: must be an object';

reset role;
