-- 300_platform_events.sql: what happened on the platform, of any kind.

set role tracedb_owner;

create table if not exists tracedb.platform_events (
    tenant_id   uuid        not null,
    event_id    uuid        not null,
    -- Null: the recorder gave the event_id itself. Null in other columns: not reported.
    event_key   text,
    occurred_at timestamptz not null,
    user_id     text,
    session_id  text,
    trace_id    uuid,
    event_type  text        not null,
    event_category text     not null,
    event_data  jsonb       not null default '{}',
    metadata    jsonb       not null default '{}',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint platform_events_pkey primary key (tenant_id, event_id),
    constraint event_uses_uuid7 check (
        tracedb.is_uuid7(event_id) and event_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint event_time_in_range check (
        occurred_at >= '1970-01-01 00:00:00+00' and occurred_at < '2200-01-01 00:00:00+00'
    ),
    constraint event_json_readable
        check (tracedb.is_readable(event_data) and tracedb.is_readable(metadata)),
    constraint event_data_is_object
        check (jsonb_typeof(event_data) = 'object' and jsonb_typeof(metadata) = 'object')
) partition by range (event_id);

create table if not exists tracedb.platform_events_default
partition of tracedb.platform_events default;

comment on table tracedb.platform_events is
    'An event of a tenant: a query, a login, a setting changed.';
comment on column tracedb.platform_events.event_id is
    'A UUIDv7: also the clock, the order and the partition key. Made from occurred_at and '
    'event_key where the recorder gives a key, so that a retry is a duplicate.';
comment on column tracedb.platform_events.event_category is
    'A kind of event_type, such as user_behavior, system or security.';
comment on constraint event_uses_uuid7 on tracedb.platform_events is
    'event_id: must be a UUIDv7 of a time before 2200';
comment on constraint event_time_in_range on tracedb.platform_events is
    'occurred_at: must lie between 1970 and 2200';
comment on constraint event_json_readable on tracedb.platform_events is
    'event_data, metadata: nested less than 100 levels deep, numbers within 1e308';
comment on constraint event_data_is_object on tracedb.platform_events is
    'event_data, metadata: must be objects';

reset role;
