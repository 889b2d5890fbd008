-- 180_erasures.sql: who was erased, as nobody but a hash, and what must not come back.

set role tracedb_owner;

create table if not exists tracedb.erasures (
    tenant_id    uuid        not null,
    erasure_id   uuid        not null default tracedb.new_id(),
    kind         text        not null,
    subject_hash bytea       not null,
    requested_by text        not null default session_user,
    begun_at     timestamptz not null default now(),
    -- Null: not finished; erase_step goes on with it.
    finished_at  timestamptz,
    phase        text        not null,
    -- Where the phase is; null: at its beginning.
    position     text,
    -- Null: nothing is waited for yet.
    horizon      xid8,
    counts       jsonb       not null default '{}',
    elsewhere    jsonb       not null default '{}',
    files        text[]      not null default '{}',
    constraint erasures_pkey primary key (tenant_id, erasure_id),
    constraint erasure_kind_known check (kind in ('user', 'tenant')),
    constraint erasure_phase_known
        check (phase in ('collect', 'settle', 'rows', 'traces', 'done')),
    constraint erasure_ends_when_done check ((phase = 'done') = (finished_at is not null)),
    constraint erasure_counts_are_objects
        check (jsonb_typeof(counts) = 'object' and jsonb_typeof(elsewhere) = 'object')
);

comment on table tracedb.erasures is
    'The receipts of erasures, and how far each has come. Kept when a tenant is erased, too.';
comment on column tracedb.erasures.kind is
    'user, or tenant: all of it.';
comment on column tracedb.erasures.subject_hash is
    'The tombstone of the user (or tenant); the id itself is not kept.';
comment on column tracedb.erasures.phase is
    'collect (find the traces), settle (wait for what was being written), rows (what is no part '
    'of a trace, or all of a tenant), traces, done.';
comment on column tracedb.erasures.horizon is
    'Transactions before this one may not have seen the tombstones: what they wrote is looked for '
    'when they have ended.';
comment on column tracedb.erasures.counts is
    'Rows that were deleted, or made nobody''s, by table.';
comment on column tracedb.erasures.elsewhere is
    'What was done outside the database: {"spool": {...}, "archives": {...}}, counts by name.';
comment on column tracedb.erasures.files is
    'Files of archives that were written anew and are yet to be deleted.';
comment on constraint erasure_kind_known on tracedb.erasures is
    'kind: must be user or tenant';
comment on constraint erasure_phase_known on tracedb.erasures is
    'phase: must be collect, settle, rows, traces or done';
comment on constraint erasure_ends_when_done on tracedb.erasures is
    'finished_at: of an erasure that is done, and of no other';
comment on constraint erasure_counts_are_objects on tracedb.erasures is
    'counts, elsewhere: must be objects';

create table if not exists tracedb.erased_keys (
    tenant_id  uuid        not null,
    key_hash   bytea       not null,
    kind       text        not null,
    erasure_id uuid        not null,
    erased_at  timestamptz not null,
    constraint erased_keys_pkey primary key (tenant_id, key_hash),
    constraint erased_key_kind_known check (kind in ('user', 'tenant', 'trace'))
);

comment on table tracedb.erased_keys is
    'Tombstones: hashes (tombstone) of users and tenants, whose records of a time before erased_at '
    'are refused, and of foreign ids of erased traces, which are refused for ever.';
comment on constraint erased_key_kind_known on tracedb.erased_keys is
    'kind: must be user, tenant or trace';

create table if not exists tracedb.erased_traces (
    tenant_id  uuid    not null,
    trace_id   uuid    not null,
    erasure_id uuid    not null,
    pending    boolean not null default true,
    constraint erased_traces_pkey primary key (tenant_id, trace_id)
);

comment on table tracedb.erased_traces is
    'Tombstones of traces: whatever names one of them is refused. There is none without a row in '
    'erased_keys.';
comment on column tracedb.erased_traces.pending is
    'Whether its rows are yet to be deleted.';

reset role;
