-- 360_retention.sql: how long rows are kept, where archived ones are, and what was removed.

set role tracedb_owner;

create table if not exists tracedb.retention_policies (
    policy_id   uuid        not null default tracedb.new_id(),
    -- Null: the rule of all tenants. A tenant's own goes before it.
    tenant_id   uuid,
    table_name  text        not null,
    -- Null: as the rule of all tenants says; in that one: for ever.
    keep        interval,
    -- Null: as the rule of all tenants says.
    action      text,
    -- Null: not held. Nothing that is held is removed, however old.
    hold_reason text,
    -- Null: nothing to say.
    note        text,
    updated_at  timestamptz not null default now(),
    constraint retention_policies_pkey primary key (policy_id),
    constraint retention_policies_rule unique nulls not distinct (tenant_id, table_name),
    constraint retention_action_known check (action in ('archive', 'drop')),
    constraint retention_keep_in_range
        check (keep >= interval '2 days' and keep <= interval '1000 years'),
    constraint retention_hold_has_a_reason check (hold_reason <> ''),
    constraint retention_general_rule_has_an_action
        check (tenant_id is not null or keep is null or action is not null)
);

comment on table tracedb.retention_policies is
    'How long the rows of a table are kept, and whether older ones are archived before they are '
    'removed. A part of a trace that has no row here goes with its trace; trace_payloads may have '
    'one, so that texts expire before the headers do. How wide partitions are says '
    'partition_policies. Written by set_retention and set_legal_hold.';
comment on column tracedb.retention_policies.action is
    'archive: removed only after they were written to the archive and read back; drop: removed.';
comment on constraint retention_action_known on tracedb.retention_policies is
    'action: must be archive or drop';
comment on constraint retention_keep_in_range on tracedb.retention_policies is
    'keep: from 2 days, so that a clock a day wrong removes nothing of today, to 1000 years';
comment on constraint retention_hold_has_a_reason on tracedb.retention_policies is
    'hold_reason: must say why';
comment on constraint retention_general_rule_has_an_action on tracedb.retention_policies is
    'action: must be given with how long the rows of all tenants are kept';

insert into tracedb.retention_policies (table_name, keep, action)
values
    ('execution_traces', interval '90 days', 'archive'),
    ('pattern_usage_log', interval '180 days', 'drop'),
    ('platform_events', interval '3 years', 'archive'),
    ('agent_executions', interval '3 years', 'archive'),
    ('tenant_cost_events', interval '7 years', 'archive'),
    ('trace_changes', interval '90 days', 'drop'),
    ('maintenance_runs', interval '90 days', 'drop')
on conflict (tenant_id, table_name) do nothing;

create table if not exists tracedb.archives (
    archive_id     uuid        not null,
    -- Null: the rows of all tenants, or of all but those in except_tenants.
    tenant_id      uuid,
    except_tenants uuid[]      not null default '{}',
    family         text        not null,
    table_name     text        not null,
    from_time      timestamptz not null,
    to_time        timestamptz not null,
    -- Null in both: it has no rows.
    first_id       uuid,
    last_id        uuid,
    row_count      bigint      not null,
    row_hash       bigint      not null,
    state          text        not null default 'written',
    uri            text        not null,
    format         text        not null,
    file_bytes     bigint      not null,
    sha256         text        not null,
    schema_version text        not null,
    columns        jsonb       not null,
    created_at     timestamptz not null default now(),
    created_by     text        not null default session_user,
    constraint archives_pkey primary key (archive_id),
    constraint archive_state_known check (state in ('written', 'removed')),
    constraint archive_format_known check (format in ('csv', 'parquet')),
    constraint archive_ends_after_start check (to_time > from_time),
    constraint archive_sha256_is_hex check (sha256 ~ '^[0-9a-f]{64}$'),
    constraint archive_counts_rows check (row_count >= 0 and file_bytes >= 0)
);

comment on table tracedb.archives is
    'A file of archived rows of one table and range of ids; it was read back and compared before '
    'it was recorded here. The manifest beside the file says the same.';
comment on column tracedb.archives.from_time is
    'With to_time: rows whose ids are from uuid_floor(from_time) on and before '
    'uuid_floor(to_time).';
comment on column tracedb.archives.row_hash is
    'Over the place and the writing transaction of each row, whatever their order: if it is what '
    'it was, no row was added, changed or removed since the file was written.';
comment on column tracedb.archives.state is
    'written: the rows are still in the table; removed: the file is where they are now.';
comment on column tracedb.archives.file_bytes is
    'Bytes of the file; sha256 is of these bytes.';
comment on column tracedb.archives.schema_version is
    'The newest migration when it was written.';
comment on column tracedb.archives.columns is
    'The columns in their order: [{"name", "type"}, ...].';
comment on constraint archive_state_known on tracedb.archives is
    'state: must be written or removed';
comment on constraint archive_format_known on tracedb.archives is
    'format: must be csv or parquet';
comment on constraint archive_ends_after_start on tracedb.archives is
    'to_time: must be after from_time';
comment on constraint archive_sha256_is_hex on tracedb.archives is
    'sha256: 64 hex digits';
comment on constraint archive_counts_rows on tracedb.archives is
    'row_count, file_bytes: must not be negative';

create table if not exists tracedb.archived_tenants (
    tenant_id  uuid   not null,
    archive_id uuid   not null,
    table_name text   not null,
    row_count  bigint not null,
    first_id   uuid   not null,
    last_id    uuid   not null,
    constraint archived_tenants_pkey primary key (tenant_id, archive_id),
    constraint archived_tenant_has_rows check (row_count > 0)
);

comment on table tracedb.archived_tenants is
    'Which archives have rows of a tenant, how many, and from which id to which: where to look for '
    'an archived trace.';
comment on constraint archived_tenant_has_rows on tracedb.archived_tenants is
    'row_count: must be positive';

create table if not exists tracedb.retention_receipts (
    receipt_id uuid        not null default tracedb.new_id(),
    -- Null: of all tenants.
    tenant_id  uuid,
    action     text        not null,
    family     text        not null,
    table_name text        not null,
    from_time  timestamptz not null,
    to_time    timestamptz not null,
    row_count  bigint      not null,
    -- Null: no partition was dropped for it.
    bytes      bigint,
    -- Null: there is no archive of it.
    archive_id uuid,
    -- Null: not restored. Until then no retention run removes it again.
    keep_until timestamptz,
    reason     text        not null,
    created_at timestamptz not null default now(),
    created_by text        not null default session_user,
    constraint retention_receipts_pkey primary key (receipt_id),
    constraint receipt_action_known
        check (action in ('dropped', 'deleted', 'purged', 'restored')),
    constraint receipt_of_restored_keeps check ((action = 'restored') = (keep_until is not null))
);

comment on table tracedb.retention_receipts is
    'What retention removed and restore brought back: written in the transaction that did it, and '
    'never changed. Uri, sha256, id range and columns are those of the archive.';
comment on column tracedb.retention_receipts.action is
    'dropped: a whole partition; deleted: rows of a partition that stays; purged: rows of a table '
    'without partitions; restored: rows brought back from an archive.';
comment on column tracedb.retention_receipts.row_count is
    'Exact, but for a partition that was dropped without an archive: then as the server counts.';
comment on column tracedb.retention_receipts.bytes is
    'What the dropped partition had on disk, with its indexes.';
comment on constraint receipt_action_known on tracedb.retention_receipts is
    'action: must be dropped, deleted, purged or restored';
comment on constraint receipt_of_restored_keeps on tracedb.retention_receipts is
    'keep_until: of what is restored, and of nothing else';

create table if not exists tracedb.change_horizons (
    tenant_id    uuid        not null,
    purged_until xid8        not null,
    updated_at   timestamptz not null default now(),
    constraint change_horizons_pkey primary key (tenant_id)
);

comment on table tracedb.change_horizons is
    'Up to which transaction the changes of a tenant were purged; changes_since refuses a cursor '
    'that is older. No row: none were.';

create table if not exists tracedb.maintenance_runs (
    run_id     uuid        not null default tracedb.new_id(),
    job        text        not null,
    started_at timestamptz not null default now(),
    -- Null: it still runs, or was killed.
    ended_at   timestamptz,
    outcome    text        not null default 'running',
    figures    jsonb       not null default '{}',
    -- Null: it did not fail.
    error      text,
    run_by     text        not null default session_user,
    constraint maintenance_runs_pkey primary key (run_id),
    constraint run_outcome_known check (outcome in ('running', 'ok', 'findings', 'failed')),
    constraint run_names_a_job check (job <> '')
);

comment on table tracedb.maintenance_runs is
    'A run of a maintenance job: what cron did, and how it ended.';
comment on column tracedb.maintenance_runs.figures is
    'What it did, in numbers.';
comment on constraint run_outcome_known on tracedb.maintenance_runs is
    'outcome: must be running, ok, findings or failed';
comment on constraint run_names_a_job on tracedb.maintenance_runs is
    'job: must not be empty';

reset role;
