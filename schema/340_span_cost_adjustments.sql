-- 340_span_cost_adjustments.sql: what a call costs after all, once a price was learnt later.

set role tracedb_owner;

create table if not exists tracedb.span_cost_adjustments (
    tenant_id         uuid        not null,
    trace_id          uuid        not null,
    span_id           bytea       not null,
    adjustment_id     uuid        not null default tracedb.new_id(),
    span_updated_at   timestamptz not null,
    -- Null: no price is known any more, or it was not known before.
    price_id          bigint,
    cost_usd          numeric,
    previous_cost_usd numeric,
    reason            text        not null,
    created_at        timestamptz not null default now(),
    constraint span_cost_adjustments_pkey primary key (tenant_id, trace_id, span_id, adjustment_id),
    constraint adjustment_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint adjustment_span_id_is_8_bytes check (octet_length(span_id) = 8),
    constraint adjustment_changes_the_cost check (cost_usd is distinct from previous_cost_usd)
) partition by range (trace_id);

create table if not exists tracedb.span_cost_adjustments_default
partition of tracedb.span_cost_adjustments default;

comment on table tracedb.span_cost_adjustments is
    'A change of what a span is computed to cost, appended by reprice. The newest one of a span '
    'counts (see priced_spans); the span itself keeps the cost it was stored with.';
comment on column tracedb.span_cost_adjustments.span_updated_at is
    'Which report of the span was priced: an adjustment does not count for a later report, whose '
    'cost is computed anew.';
comment on column tracedb.span_cost_adjustments.cost_usd is
    'What it costs now, in US dollars.';
comment on column tracedb.span_cost_adjustments.previous_cost_usd is
    'What it cost before: as computed, or by the adjustment before this one.';
comment on constraint adjustment_trace_id_is_uuid7 on tracedb.span_cost_adjustments is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint adjustment_span_id_is_8_bytes on tracedb.span_cost_adjustments is
    'span_id: must be 8 bytes (16 hex digits)';
comment on constraint adjustment_changes_the_cost on tracedb.span_cost_adjustments is
    'cost_usd, previous_cost_usd: must differ';

reset role;
