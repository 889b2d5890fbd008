-- 110_agent_routing_decisions.sql: which agent was chosen, and why.

set role tracedb_owner;

create table if not exists tracedb.agent_routing_decisions (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    selected_agent  text        not null,
    reason          text,
    trigger_confidence    double precision,
    context_confidence    double precision,
    capability_confidence double precision,
    historical_confidence double precision,
    total_confidence      double precision,
    candidates      jsonb       not null default '[]',
    selection_probability double precision,
    cache_hit       boolean     not null default false,
    pattern_id      uuid,
    -- Of any dimension; the type is not schema-qualified because providers install the extension
    -- in different schemas.
    request_embedding vector,
    embedding_model text,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint agent_routing_decisions_pkey primary key (tenant_id, trace_id, span_id),
    constraint routing_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint routing_span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint routing_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint routing_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint routing_ends_after_start check (ended_at >= started_at),
    constraint routing_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint routing_duration_not_negative check (duration_ms >= 0),
    constraint routing_confidence_is_fraction check (
        trigger_confidence between 0 and 1 and context_confidence between 0 and 1
        and capability_confidence between 0 and 1 and historical_confidence between 0 and 1
        and total_confidence between 0 and 1
    ),
    -- 0 would say the choice was impossible, and off-policy evaluation divides by it.
    constraint routing_probability_is_positive
        check (selection_probability > 0 and selection_probability <= 1),
    constraint routing_candidates_is_array check (jsonb_typeof(candidates) = 'array'),
    constraint routing_attributes_is_object check (jsonb_typeof(attributes) = 'object'),
    constraint routing_json_readable
        check (tracedb.is_readable(candidates) and tracedb.is_readable(attributes))
) partition by range (trace_id);

create table if not exists tracedb.agent_routing_decisions_default
partition of tracedb.agent_routing_decisions default;

comment on table tracedb.agent_routing_decisions is
    'One routing decision: the agent chosen, the confidence it was chosen with and the candidates '
    'it was chosen from.';
comment on column tracedb.agent_routing_decisions.candidates is
    'The agents considered: [{"agent": ..., "score": ..., "probability": ...}, ...].';
comment on column tracedb.agent_routing_decisions.selection_probability is
    'The probability with which the router made this choice (1 if it was deterministic).';
comment on column tracedb.agent_routing_decisions.total_confidence is
    'The confidence the router acted on, 0 to 1; the four columns before it are its parts.';
comment on constraint routing_trace_id_is_uuid7 on tracedb.agent_routing_decisions is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint routing_span_ids_are_8_bytes on tracedb.agent_routing_decisions is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint routing_status_known on tracedb.agent_routing_decisions is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint routing_time_in_range on tracedb.agent_routing_decisions is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint routing_ends_after_start on tracedb.agent_routing_decisions is
    'ended_at: must not be before started_at';
comment on constraint routing_running_has_no_end on tracedb.agent_routing_decisions is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint routing_duration_not_negative on tracedb.agent_routing_decisions is
    'duration_ms: must not be negative';
comment on constraint routing_confidence_is_fraction on tracedb.agent_routing_decisions is
    'trigger_confidence, context_confidence, capability_confidence, historical_confidence, '
    'total_confidence: must be from 0 to 1';
comment on constraint routing_probability_is_positive on tracedb.agent_routing_decisions is
    'selection_probability: must be above 0 and at most 1';
comment on constraint routing_candidates_is_array on tracedb.agent_routing_decisions is
    'candidates: must be an array';
comment on constraint routing_attributes_is_object on tracedb.agent_routing_decisions is
    'attributes: must be an object';
comment on constraint routing_json_readable on tracedb.agent_routing_decisions is
    'candidates, attributes: nested less than 100 levels deep, numbers within 1e308';

reset role;
