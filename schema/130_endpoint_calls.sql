-- 130_endpoint_calls.sql: one call of a service endpoint.

set role tracedb_owner;

create table if not exists tracedb.endpoint_calls (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    service         text        not null,
    method          text,
    path            text,
    status_code     integer,
    retries         integer     not null default 0,
    request         jsonb,
    response        jsonb,
    -- Null: not made by a hook.
    hook_span_id    bytea,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint endpoint_calls_pkey primary key (tenant_id, trace_id, span_id),
    constraint endpoint_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint endpoint_span_ids_are_8_bytes check (
        octet_length(span_id) = 8 and octet_length(parent_span_id) = 8
        and octet_length(hook_span_id) = 8
    ),
    constraint endpoint_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint endpoint_status_code_is_http check (status_code between 100 and 599),
    constraint endpoint_retries_not_negative check (retries >= 0),
    constraint endpoint_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint endpoint_ends_after_start check (ended_at >= started_at),
    constraint endpoint_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint endpoint_duration_not_negative check (duration_ms >= 0),
    constraint endpoint_json_readable check (
        tracedb.is_readable(request) and tracedb.is_readable(response)
        and tracedb.is_readable(attributes)
    ),
    constraint endpoint_attributes_is_object check (jsonb_typeof(attributes) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.endpoint_calls_default
partition of tracedb.endpoint_calls default;

comment on table tracedb.endpoint_calls is
    'One call of a service endpoint, with request and response as the recorder sanitised them.';
comment on column tracedb.endpoint_calls.retries is
    'How often the call was repeated before this result; 0 if the first attempt counted.';
comment on column tracedb.endpoint_calls.hook_span_id is
    'The hook execution that made the call.';
comment on constraint endpoint_trace_id_is_uuid7 on tracedb.endpoint_calls is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint endpoint_span_ids_are_8_bytes on tracedb.endpoint_calls is
    'span_id, parent_span_id, hook_span_id: must be 8 bytes (16 hex digits)';
comment on constraint endpoint_status_known on tracedb.endpoint_calls is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint endpoint_status_code_is_http on tracedb.endpoint_calls is
    'status_code: must be from 100 to 599';
comment on constraint endpoint_retries_not_negative on tracedb.endpoint_calls is
    'retries: must not be negative';
comment on constraint endpoint_time_in_range on tracedb.endpoint_calls is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint endpoint_ends_after_start on tracedb.endpoint_calls is
    'ended_at: must not be before started_at';
comment on constraint endpoint_running_has_no_end on tracedb.endpoint_calls is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint endpoint_duration_not_negative on tracedb.endpoint_calls is
    'duration_ms: must not be negative';
comment on constraint endpoint_json_readable on tracedb.endpoint_calls is
    'request, response, attributes: nested less than 100 levels deep, numbers within 1e308';
comment on constraint endpoint_attributes_is_object on tracedb.endpoint_calls is
    'attributes: must be an object';

reset role;
