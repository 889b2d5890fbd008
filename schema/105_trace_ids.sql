-- 105_trace_ids.sql: foreign trace ids and the one trace each of them means.

set role tracedb_owner;

-- Not partitioned: a partitioned table could not promise one row an external id.
create table if not exists tracedb.trace_ids (
    tenant_id   uuid not null,
    external_id text not null,
    trace_id    uuid not null,
    constraint trace_ids_pkey primary key (tenant_id, external_id),
    constraint trace_ids_external_id_fits check (octet_length(external_id) between 1 and 1024),
    constraint trace_ids_trace_id_is_uuid7 check (tracedb.is_uuid7(trace_id))
);

comment on table tracedb.trace_ids is
    'A foreign id (an OpenTelemetry trace id, a request id) and the trace it means. The key makes '
    'concurrent writers agree. 128-bit ids are kept as 32 hex digits without dashes.';
comment on constraint trace_ids_external_id_fits on tracedb.trace_ids is
    'external_id: 1 to 1024 bytes';
comment on constraint trace_ids_trace_id_is_uuid7 on tracedb.trace_ids is
    'trace_id: must be a UUIDv7';

-- No "set" clause: it would keep this from being inlined, and ingest calls it several times a
-- record.
create or replace function tracedb.external_key(id text)
returns text
language sql immutable parallel safe
as $$
    select case
        when id operator(pg_catalog.~*)
            '^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$'
            then pg_catalog.lower(pg_catalog.replace(id, '-', ''))
        else id
    end
$$;

comment on function tracedb.external_key(text) is
    'The form in which trace_ids keeps a foreign id: 128-bit ids without dashes and in lower case, '
    'so that a trace is found by either spelling; anything else as it is.';

reset role;
