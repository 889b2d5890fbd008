-- 320_agent_executions.sql: one run of an agent, as its platform judged it.

set role tracedb_owner;

create table if not exists tracedb.agent_executions (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    agent_id    text        not null,
    agent_type  text,
    execution_time_ms bigint,
    success     boolean     not null,
    error_type  text,
    error_message text,
    quality_score double precision,
    citation_accuracy double precision,
    hallucination_detected boolean,
    cost_usd    numeric,
    total_tokens bigint,
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint agent_executions_pkey primary key (tenant_id, event_id),
    constraint execution_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint execution_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint execution_duration_not_negative check (execution_time_ms >= 0),
    constraint execution_scores_are_fractions
        check (quality_score between 0 and 1 and citation_accuracy between 0 and 1),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint execution_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint execution_tokens_not_negative check (total_tokens >= 0),
    constraint execution_metadata_is_object check (jsonb_typeof(metadata) = 'object'),
    constraint execution_json_readable check (tracedb.is_readable(metadata))
) partition by range (event_id);

create table if not exists tracedb.agent_executions_default
partition of tracedb.agent_executions default;

comment on table tracedb.agent_executions is
    'A run of an agent: whether it worked, how good it was, what it took. The steps inside a run '
    'are traces; trace_id names its own.';
comment on column tracedb.agent_executions.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.agent_executions.success is
    'Whether the run did what it was asked.';
comment on column tracedb.agent_executions.quality_score is
    'How good the result was, 0 to 1, as judged by the recorder.';
comment on constraint execution_uses_uuid7 on tracedb.agent_executions is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint execution_time_in_range on tracedb.agent_executions is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint execution_duration_not_negative on tracedb.agent_executions is
    'execution_time_ms: must not be negative';
comment on constraint execution_scores_are_fractions on tracedb.agent_executions is
    'quality_score, citation_accuracy: must be from 0 to 1';
comment on constraint execution_cost_is_money on tracedb.agent_executions is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint execution_tokens_not_negative on tracedb.agent_executions is
    'total_tokens: must not be negative';
comment on constraint execution_metadata_is_object on tracedb.agent_executions is
    'metadata: must be an object';
comment on constraint execution_json_readable on tracedb.agent_executions is
    'metadata: nested less than 100 levels deep, numbers within 1e308';

reset role;
