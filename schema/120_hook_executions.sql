-- 120_hook_executions.sql: one run of a hook around a tool or a prompt.

set role tracedb_owner;

create table if not exists tracedb.hook_executions (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    hook_type       text        not null,
    tool_name       text,
    script          text,
    intelligence_functions text[] not null default '{}',
    quality_gates   jsonb       not null default '{}',
    modifications   jsonb       not null default '{}',
    outcome         text,
    exit_code       integer,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint hook_executions_pkey primary key (tenant_id, trace_id, span_id),
    constraint hook_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint hook_span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint hook_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint hook_outcome_known check (outcome in ('allowed', 'blocked', 'modified', 'skipped')),
    constraint hook_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint hook_ends_after_start check (ended_at >= started_at),
    constraint hook_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint hook_duration_not_negative check (duration_ms >= 0),
    constraint hook_json_readable check (
        tracedb.is_readable(quality_gates) and tracedb.is_readable(modifications)
        and tracedb.is_readable(attributes)
    ),
    constraint hook_attributes_is_object check (jsonb_typeof(attributes) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.hook_executions_default
partition of tracedb.hook_executions default;

comment on table tracedb.hook_executions is
    'One run of a hook: what triggered it, what it checked, changed and decided.';
comment on column tracedb.hook_executions.hook_type is
    'When it ran, such as pre_tool_use, post_tool_use or user_prompt_submit.';
comment on column tracedb.hook_executions.outcome is
    'allowed, blocked, modified or skipped: the decision, whereas status tells whether the hook '
    'itself worked.';
comment on constraint hook_trace_id_is_uuid7 on tracedb.hook_executions is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint hook_span_ids_are_8_bytes on tracedb.hook_executions is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint hook_status_known on tracedb.hook_executions is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint hook_outcome_known on tracedb.hook_executions is
    'outcome: must be allowed, blocked, modified or skipped';
comment on constraint hook_time_in_range on tracedb.hook_executions is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint hook_ends_after_start on tracedb.hook_executions is
    'ended_at: must not be before started_at';
comment on constraint hook_running_has_no_end on tracedb.hook_executions is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint hook_duration_not_negative on tracedb.hook_executions is
    'duration_ms: must not be negative';
comment on constraint hook_json_readable on tracedb.hook_executions is
    'quality_gates, modifications, attributes: nested less than 100 levels deep, numbers within '
    '1e308';
comment on constraint hook_attributes_is_object on tracedb.hook_executions is
    'attributes: must be an object';

reset role;
