-- 170_trace_changes.sql: which traces each transaction wrote, for those who follow along.

set role tracedb_owner;

-- A row a batch, not a row or a column a trace: that costs ingest next to nothing, covers parts as
-- well, and updates nothing.
create table if not exists tracedb.trace_changes (
    tenant_id  uuid        not null,
    written_by xid8        not null default pg_current_xact_id(),
    change_id  uuid        not null default tracedb.new_id(),
    trace_ids  uuid[]      not null,
    created_at timestamptz not null default now(),
    folded     boolean     not null default false,
    constraint trace_changes_pkey primary key (tenant_id, written_by, change_id),
    constraint change_names_traces check (cardinality(trace_ids) > 0)
);

-- What fold_usage has yet to do, and readers of totals add themselves: seldom more than a minute's.
create index if not exists trace_changes_unfolded_idx
on tracedb.trace_changes (tenant_id, created_at) where not folded;

comment on table tracedb.trace_changes is
    'The traces that a batch named, in its own transaction; changes_since reads it. A trace that a '
    'batch named may be unchanged (a repetition).';
comment on column tracedb.trace_changes.written_by is
    'The transaction. A reader goes as far as all older ones have ended, so that none of them can '
    'appear behind it.';
comment on column tracedb.trace_changes.folded is
    'Whether usage_rollups have what these traces add to them; fold_usage sets it.';
comment on constraint change_names_traces on tracedb.trace_changes is
    'trace_ids: at least one';

reset role;
