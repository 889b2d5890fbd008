-- 150_trace_payloads.sql: the bulky text of a trace or of one of its parts.

set role tracedb_owner;

-- Apart from the headers so that lists stay narrow, and so that text can expire sooner.
create table if not exists tracedb.trace_payloads (
    tenant_id    uuid        not null,
    trace_id     uuid        not null,
    -- Eight zero bytes (no valid span id): the payload of the trace as a whole.
    span_id      bytea       not null default '\x0000000000000000',
    kind         text        not null,
    content      text        not null,
    content_type text        not null default 'text/plain',
    recorded_at  timestamptz not null,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),
    constraint trace_payloads_pkey primary key (tenant_id, trace_id, span_id, kind),
    constraint payload_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint payload_span_id_is_8_bytes check (octet_length(span_id) = 8),
    constraint payload_kind_known check (kind in ('prompt', 'response', 'input', 'output')),
    constraint payload_content_fits check (octet_length(content) <= 16777216),
    constraint payload_content_type_known
        check (content_type in ('text/plain', 'application/json')),
    constraint payload_time_in_range check (
        recorded_at >= '1970-01-01 00:00:00+00' and recorded_at < '2200-01-01 00:00:00+00'
    )
) partition by range (trace_id);

create table if not exists tracedb.trace_payloads_default
partition of tracedb.trace_payloads default;

comment on table tracedb.trace_payloads is
    'The text or JSON of a trace (prompt, response) or of a part (input, output).';
comment on column tracedb.trace_payloads.content is
    'The text itself, or the JSON document as text where content_type is application/json. At '
    'most 16 MiB.';
comment on constraint payload_trace_id_is_uuid7 on tracedb.trace_payloads is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint payload_span_id_is_8_bytes on tracedb.trace_payloads is
    'span_id: must be 8 bytes (16 hex digits)';
comment on constraint payload_kind_known on tracedb.trace_payloads is
    'kind: must be prompt, response, input or output';
comment on constraint payload_content_fits on tracedb.trace_payloads is
    'content: at most 16 MiB (16777216 bytes)';
comment on constraint payload_content_type_known on tracedb.trace_payloads is
    'content_type: must be text/plain or application/json';
comment on constraint payload_time_in_range on tracedb.trace_payloads is
    'recorded_at: must lie between 1970 and 2200';

reset role;
