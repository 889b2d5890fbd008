-- 310_tenant_cost_events.sql: what a tenant was charged for.

set role tracedb_owner;

create table if not exists tracedb.tenant_cost_events (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    cost_type   text        not null,
    -- Null: unknown, which is not 0.
    cost_usd    numeric,
    quantity    numeric,
    service     text        not null,
    service_tier text,
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint tenant_cost_events_pkey primary key (tenant_id, event_id),
    constraint cost_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint cost_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint cost_type_known check (cost_type in ('llm', 'embedding', 'storage', 'compute')),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint cost_quantity_not_negative check (quantity >= 0 and quantity < 1e30),
    constraint cost_metadata_is_object check (jsonb_typeof(metadata) = 'object'),
    constraint cost_json_readable check (tracedb.is_readable(metadata))
) partition by range (event_id);

create table if not exists tracedb.tenant_cost_events_default
partition of tracedb.tenant_cost_events default;

comment on table tracedb.tenant_cost_events is
    'A cost of a tenant, in US dollars, and what it was for.';
comment on column tracedb.tenant_cost_events.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.tenant_cost_events.quantity is
    'How much was used: tokens of an llm or embedding, otherwise in the unit metadata names.';
comment on column tracedb.tenant_cost_events.service_tier is
    'The model or plan, such as gpt-4o.';
comment on constraint cost_uses_uuid7 on tracedb.tenant_cost_events is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint cost_time_in_range on tracedb.tenant_cost_events is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint cost_type_known on tracedb.tenant_cost_events is
    'cost_type: must be llm, embedding, storage or compute';
comment on constraint cost_is_money on tracedb.tenant_cost_events is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint cost_quantity_not_negative on tracedb.tenant_cost_events is
    'quantity: must be at least 0 and less than 1e30, and a number';
comment on constraint cost_metadata_is_object on tracedb.tenant_cost_events is
    'metadata: must be an object';
comment on constraint cost_json_readable on tracedb.tenant_cost_events is
    'metadata: nested less than 100 levels deep, numbers within 1e308';

reset role;
