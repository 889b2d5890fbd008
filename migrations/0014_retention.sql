-- 0014_retention.sql: rules of retention, archives, restore, and what maintenance did.
--
-- depends: 0013_learning

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

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

create table if not exists tracedb.settled_costs (
    tenant_id uuid not null,
    entry_id  uuid not null,
    constraint settled_costs_pkey primary key (tenant_id, entry_id)
);

comment on table tracedb.settled_costs is
    'Cost events (event_id) and settled reservations (reservation_id) whose amount is in the cost '
    'of a trace that retention has removed: the totals keep it, so it is not counted beside them.';

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

create or replace function tracedb.changes_since(
    cursor text default null,
    max_rows integer default 1000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (trace_id uuid, changed_at timestamptz, next_cursor text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    server constant text := (pg_control_system()).system_identifier;
    -- Every older transaction has ended, so what it wrote is here to be seen. Younger ones, even
    -- committed ones, wait: an older one could still appear before them.
    horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
    parts constant text[] := string_to_array(cursor, '/');
    last_written_by xid8 := '0';
    last_change_id uuid := '00000000-0000-0000-0000-000000000000';
    last_place bigint := 0;
begin
    if max_rows is null or max_rows not between 1 and 10000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 10000';
    end if;
    if cursor is not null then
        if cursor !~ '^\d{1,20}/\d{1,19}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/\d{1,9}$' then
            raise exception using errcode = 'TD002',
                message = 'cursor: must be one that changes_since or changes_cursor has given';
        end if;
        last_written_by := parts[2]::xid8;
        last_change_id := parts[3];
        last_place := parts[4];
        -- Transactions are numbered by the server, so another one's cursor means nothing here.
        if parts[1] <> server
            or last_written_by > pg_snapshot_xmax(pg_current_snapshot())
        then
            raise exception using errcode = 'TD002',
                message = 'cursor: of another server, or of a state it has lost',
                hint = 'Take a new one from tracedb.changes_cursor() and read everything again.';
        end if;
        if exists (
            select from tracedb.change_horizons as h
            where h.tenant_id = changes_since.tenant_id and last_written_by < h.purged_until
        ) then
            raise exception using errcode = 'TD002',
                message = 'cursor: older than the changes that are kept',
                hint = 'Take a new one from tracedb.changes_cursor() and read everything again.';
        end if;
    end if;
    return query
    select u.trace_id, c.created_at,
        concat_ws('/', server, c.written_by, c.change_id, u.place)
    from (
        select c.*
        from tracedb.trace_changes as c
        where c.tenant_id = changes_since.tenant_id and c.written_by < horizon
            and (c.written_by, c.change_id) >= (last_written_by, last_change_id)
        order by c.written_by, c.change_id
        limit max_rows + 1  -- each but the first has at least one trace to show
    ) as c
    cross join lateral unnest(c.trace_ids) with ordinality as u (trace_id, place)
    where (c.written_by, c.change_id, u.place) > (last_written_by, last_change_id, last_place)
    order by c.written_by, c.change_id, u.place
    limit max_rows;
end $$;

comment on function tracedb.changes_since(text, integer, uuid) is
    'The traces that were written, or parts of which were, since a cursor (null: since the first '
    'that is known), in the order of their transactions, at most max_rows (1 to 10000). Go on with '
    'the next_cursor of the last row; without a row, with the same again. No committed change is '
    'ever skipped, whatever ran at the same time: what is younger than the oldest transaction that '
    'still writes anywhere on the server waits for it. A trace may be named more than once. '
    'Changes are kept as the retention rule of trace_changes says; an older cursor is refused.';

create or replace function tracedb.maintenance_advice(min_bytes bigint default 67108864)
returns table (object text, advice text, reason text, command text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with tables as (
        select
            c.oid, c.relname::text as name, tracedb.estimated_rows(c.oid) as live,
            pg_stat_get_dead_tuples(c.oid) as dead, age(c.relfrozenxid) as age,
            pg_stat_get_mod_since_analyze(c.oid) as modified, pg_relation_size(c.oid) as bytes
        from pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind = 'r'
            and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'
    ),
    indexes as (
        select
            x.oid, x.relname::text as name, t.name as table_name, i.indisvalid,
            pg_relation_size(x.oid) as bytes, t.bytes as table_bytes
        from tables as t
        join pg_index as i on i.indrelid = t.oid
        join pg_class as x on x.oid = i.indexrelid
    )
    select t.name, 'vacuum', format('%s dead rows beside %s', t.dead, t.live),
        format('vacuum (analyze) tracedb.%I', t.name)
    from tables as t
    where t.bytes >= min_bytes and t.dead > 0.2 * t.live
    union all
    select t.name, 'freeze', format('its oldest row is %s transactions old', t.age),
        format('vacuum (freeze) tracedb.%I', t.name)
    from tables as t
    where t.age > 0.9 * current_setting('autovacuum_freeze_max_age')::bigint
    union all
    select t.name, 'analyze', format('%s rows changed of %s', t.modified, t.live),
        format('analyze tracedb.%I', t.name)
    from tables as t
    where t.bytes >= min_bytes and t.modified > 0.2 * t.live
    union all
    select x.name, 'reindex', 'it is not valid: its building was broken off',
        format('reindex index concurrently tracedb.%I', x.name)
    from indexes as x
    where not x.indisvalid
    union all
    select x.name, 'reindex',
        format('%s, more than the %s of %s', pg_size_pretty(x.bytes),
            pg_size_pretty(x.table_bytes), x.table_name),
        format('reindex index concurrently tracedb.%I', x.name)
    from indexes as x
    where x.indisvalid and x.bytes >= min_bytes and x.bytes > x.table_bytes
    order by 1, 2;
end $$;

comment on function tracedb.maintenance_advice(bigint) is
    'What maintenance would do good, each with its command: tables of at least min_bytes with many '
    'dead rows or old statistics, indexes larger than their table, invalid indexes, and tables '
    'that near the age at which the server freezes them by force. From the server''s statistics; '
    'nothing is read whole.';

-- What has no partitions: when a row of it is old enough, and whether it may go.
create or replace function tracedb.purge_condition(table_name text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select c.condition
    from (values
        ('trace_changes', 't.created_at < $1 and t.folded'),
        ('maintenance_runs', 't.started_at < $1 and t.ended_at is not null'),
        ('dead_letters', 't.created_at < $1'),
        ('ingest_writers', 't.last_seen_at < $1 and t.closed'),
        ('trace_ids', 't.trace_id < tracedb.uuid_floor($1)')
    ) as c (table_name, condition)
    where c.table_name = purge_condition.table_name
$$;

comment on function tracedb.purge_condition(text) is
    'Which rows t of a table without partitions are older than $1 and may be removed; null if none '
    'ever may. Internal: see purge_expired.';

create or replace function tracedb.leading_table(table_name text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            -- the parts of a trace go with it; events stand alone
            when tracedb.partition_key(p.parents[1]) = 'trace_id' then p.parents[1]
            else leading_table.table_name
        end
        from tracedb.partition_policies as p
        where leading_table.table_name = any(p.parents)
    );
end $$;

comment on function tracedb.leading_table(text) is
    'The table whose rule counts where a partitioned one has none: execution_traces for the parts '
    'of traces, else itself; null for what has no partitions. Internal.';

create or replace function tracedb.retention_rule(table_name text, tenant_id uuid)
returns tracedb.retention_policies
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    rule tracedb.retention_policies;
    leader constant text := tracedb.leading_table(table_name);
begin
    select
        null, retention_rule.tenant_id, retention_rule.table_name,
        (array_agg(p.keep order by p.place)
            filter (where p.keep is not null and p.is_rule))[1],
        (array_agg(p.action order by p.place)
            filter (where p.action is not null and p.is_rule))[1],
        (array_agg(p.hold_reason order by p.place) filter (where p.hold_reason is not null))[1],
        null, null
    into rule
    from (
        select
            r.*,
            r.table_name in (retention_rule.table_name, leader) as is_rule,
            case when r.table_name = retention_rule.table_name then 0 else 2 end
                + case when r.tenant_id is null then 1 else 0 end as place
        from tracedb.retention_policies as r
        where (r.tenant_id is null or r.tenant_id = retention_rule.tenant_id)
            and (
                r.table_name in (retention_rule.table_name, leader)
                -- where a part is held, so is its trace
                or (
                    leader = retention_rule.table_name and r.hold_reason is not null
                    and tracedb.partition_key(leader) = 'trace_id'
                    and tracedb.leading_table(r.table_name) = leader
                )
            )
    ) as p;
    return rule;
end $$;

comment on function tracedb.retention_rule(text, uuid) is
    'The rule that counts for a table and tenant (null: for tenants without one of their own): '
    'keep, action and hold_reason, each of the first that says it: the tenant''s for the table, '
    'that of all tenants, the tenant''s for the leading table, that of all tenants.';

create or replace function tracedb.held_tenants(
    relations text[], from_time timestamptz, to_time timestamptz, tenant_ids uuid[]
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_name text;
    found uuid[];
    held uuid[] := '{}';
begin
    foreach table_name in array relations loop
        execute format(
            'select array(select i from unnest($1) as i where exists ('
            'select from tracedb.%1$I as t where t.tenant_id = i and t.%2$I >= $2 '
            'and t.%2$I < $3))', table_name, tracedb.partition_key(table_name))
        into found
        using tenant_ids, tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time);
        held := held || found;
    end loop;
    return array(select distinct i from unnest(held) as i order by i);
end $$;

comment on function tracedb.held_tenants(text[], timestamptz, timestamptz, uuid[]) is
    'Which of these tenants have rows of that time in any of the tables. Internal.';

create or replace function tracedb.has_other_tenants(
    relations text[], from_time timestamptz, to_time timestamptz, except_tenants uuid[]
)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_name text;
    found boolean;
begin
    foreach table_name in array relations loop
        execute format(
            'select exists (select from tracedb.%1$I as t where t.%2$I >= $1 and t.%2$I < $2 '
            'and t.tenant_id <> all($3))', table_name, tracedb.partition_key(table_name))
        into found
        using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), except_tenants;
        if found then
            return true;
        end if;
    end loop;
    return false;
end $$;

comment on function tracedb.has_other_tenants(text[], timestamptz, timestamptz, uuid[]) is
    'Whether tenants but these have rows of that time in any of the tables. Internal.';

create or replace function tracedb.retention_plan(
    as_of timestamptz default now(), forced boolean default false
)
returns table (
    family text, tables text[], archived text[], tenant_id uuid, except_tenants uuid[],
    from_time timestamptz, to_time timestamptz, how text, row_estimate bigint, bytes bigint,
    reason text, blocked_by text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    leader record;
    period record;
    rule tracedb.retention_policies;
    own tracedb.retention_policies;
    special uuid[];
    present uuid[];
    restored record;
    tenant uuid;
    cutoff timestamptz;
    kept text[];
begin
    if as_of is null or not isfinite(as_of) then
        raise exception using errcode = 'TD002', message = 'as_of: must be a time';
    end if;
    if as_of > now() + interval '1 day' and not forced then
        raise exception using errcode = 'TD002',
            message = 'as_of: more than a day after the server''s clock',
            hint = 'If both clocks are right, force it.';
    end if;
    for leader in
        select
            p.family, t.table_name, a.above,
            -- a trace goes with all its parts
            case when a.above <> t.table_name or tracedb.partition_key(a.above) <> 'trace_id'
                then array[t.table_name] else p.parents
            end as members
        from tracedb.partition_policies as p
        cross join lateral (
            select distinct r.table_name
            from tracedb.retention_policies as r
            where r.table_name = any(p.parents) and r.keep is not null
        ) as t
        cross join lateral (select tracedb.leading_table(t.table_name) as above) as a
        order by p.family, a.above <> t.table_name, t.table_name
    loop
        rule := tracedb.retention_rule(leader.table_name, null);
        special := array(
            select distinct r.tenant_id
            from tracedb.retention_policies as r
            where r.tenant_id is not null
                and (r.table_name in (leader.table_name, leader.above)
                    or r.table_name = any(leader.members))
            union
            select r.tenant_id
            from tracedb.retention_receipts as r
            where r.family = leader.family and r.keep_until > as_of and r.tenant_id is not null
        );
        for period in
            select
                p.from_time, p.to_time,
                array_agg(p.parent order by array_position(leader.members, p.parent)) as tables,
                sum(tracedb.estimated_rows(format('tracedb.%I', p.partition)::regclass))::bigint
                    as row_estimate,
                sum(pg_total_relation_size(format('tracedb.%I', p.partition)::regclass))::bigint
                    as bytes
            from tracedb.partitions as p
            where p.parent = any(leader.members) and not p.is_default and p.from_time < as_of
            group by p.from_time, p.to_time
            having leader.table_name = any(array_agg(p.parent))
            order by p.from_time
        loop
            -- what is removed whole takes its parts along
            continue when leader.above <> leader.table_name and period.to_time
                <= as_of - (tracedb.retention_rule(leader.above, null)).keep;
            family := leader.family;
            tables := period.tables;
            from_time := period.from_time;
            to_time := period.to_time;
            tenant_id := null;
            except_tenants := '{}';
            blocked_by := null;
            present := '{}';
            kept := '{}';
            if cardinality(special) > 0 then
                present := tracedb.held_tenants(tables, from_time, to_time, special);
            end if;
            if to_time <= as_of - rule.keep then
                archived := array(
                    select t from unnest(tables) with ordinality as u (t, place)
                    where (tracedb.retention_rule(t, null)).action = 'archive' order by place);
                select r.* into restored
                from tracedb.retention_receipts as r
                where r.family = leader.family and r.keep_until > as_of and r.tenant_id is null
                    and r.from_time < period.to_time and r.to_time > period.from_time
                order by r.keep_until desc limit 1;
                foreach tenant in array present loop
                    own := tracedb.retention_rule(leader.table_name, tenant);
                    if own.hold_reason is not null then
                        kept := kept || format('%s: legal hold: %s', tenant, own.hold_reason);
                    elsif to_time > as_of - own.keep then
                        kept := kept || format('%s: kept for %s', tenant, own.keep);
                    elsif exists (
                        select from tracedb.retention_receipts as r
                        where r.tenant_id = tenant and r.family = leader.family
                            and r.keep_until > as_of and r.from_time < period.to_time
                            and r.to_time > period.from_time
                    ) then
                        kept := kept || format('%s: restored', tenant);
                    else
                        continue;
                    end if;
                    except_tenants := except_tenants || tenant;
                end loop;
                how := case when cardinality(except_tenants) > 0 then 'rows' else 'partition' end;
                row_estimate := period.row_estimate;
                bytes := period.bytes;
                reason := concat_ws('; ',
                    format('older than %s', rule.keep),
                    'stays for ' || nullif(array_to_string(kept, ', '), ''));
                blocked_by := case
                    when rule.hold_reason is not null then 'legal hold: ' || rule.hold_reason
                    when restored.keep_until is not null then
                        format('restored, and kept until %s', restored.keep_until)
                    when exists (
                        select from tracedb.partitions as o
                        where o.parent = any(leader.members)
                            and o.from_time < period.to_time and o.to_time > period.from_time
                            and (o.from_time, o.to_time) <> (period.from_time, period.to_time)
                    ) then 'partitions of the family that differ in bounds'
                    when how = 'rows' and not tracedb.has_other_tenants(
                        tables, from_time, to_time, except_tenants)
                    then 'nothing but what is kept is left'
                end;
                return next;
                continue;
            end if;
            -- Not old enough for all: those with a shorter rule of their own.
            foreach tenant in array present loop
                own := tracedb.retention_rule(leader.table_name, tenant);
                -- For ever, or not shorter.
                continue when own.keep is null or own.keep >= rule.keep;
                cutoff := least(period.to_time, date_trunc('day', as_of - own.keep));
                continue when cutoff <= period.from_time;
                continue when tracedb.held_tenants(
                    period.tables, period.from_time, cutoff, array[tenant]) = '{}';
                tenant_id := tenant;
                to_time := cutoff;
                how := 'rows';
                row_estimate := null;
                bytes := null;
                archived := array(
                    select t from unnest(tables) with ordinality as u (t, place)
                    where (tracedb.retention_rule(t, tenant)).action = 'archive' order by place);
                reason := format('older than the %s of this tenant', own.keep);
                blocked_by := case
                    when own.hold_reason is not null then 'legal hold: ' || own.hold_reason
                    when exists (
                        select from tracedb.retention_receipts as r
                        where coalesce(r.tenant_id, tenant) = tenant and r.family = leader.family
                            and r.keep_until > as_of and r.from_time < period.to_time
                            and r.to_time > period.from_time
                    ) then 'restored'
                end;
                return next;
            end loop;
        end loop;
    end loop;

    tenant_id := null;
    except_tenants := '{}';
    archived := '{}';
    from_time := null;
    bytes := null;
    row_estimate := null;
    how := 'purge';
    for family, to_time, reason, blocked_by in
        select r.table_name, as_of - r.keep, format('older than %s', r.keep),
            'legal hold: ' || r.hold_reason
        from tracedb.retention_policies as r
        where r.tenant_id is null and r.keep is not null
            and tracedb.purge_condition(r.table_name) is not null
        order by r.table_name
    loop
        tables := array[family];
        return next;
    end loop;
end $$;

comment on function tracedb.retention_plan(timestamptz, boolean) is
    'What a retention run would do, changing nothing: a row for each period of partitions that is '
    'old enough (how: partition, dropped whole; or rows, where other tenants'' rows stay: '
    'except_tenants), for each tenant whose own rule is shorter (rows, tenant_id), and for each '
    'table without partitions (purge). archived: those of the tables that are archived before; '
    'reason: the rule; blocked_by: why it is not done, null if it is. row_estimate and bytes are '
    'of whole partitions. as_of must not be more than a day after the server''s clock, unless '
    'forced.';

create or replace function tracedb.set_retention(
    table_name text,
    keep interval default null,
    action text default null,
    note text default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.retention_policies
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    leader constant text := tracedb.leading_table(table_name);
    tied constant text[] := array['llm_spans', 'span_cost_adjustments', 'usage_contributions'];
    rule tracedb.retention_policies;
    problem text := case
        when table_name is null then 'table_name: must be given'
        when table_name = any(tied) then
            'table_name: goes with execution_traces, whose totals it makes up: set that'
        when leader is null and tracedb.purge_condition(table_name) is null then
            'table_name: has no rows that grow old'
        when leader is null and tenant_id is not null then
            'tenant_id: this table has one rule for all tenants'
        when leader is null and action = 'archive' then
            'action: this table cannot be archived'
        when action not in ('archive', 'drop') then 'action: must be archive or drop'
        when keep < interval '2 days' then
            'keep: at least 2 days, so that a clock a day wrong removes nothing of today'
        when keep > interval '1000 years' then 'keep: at most 1000 years'
        when leader <> table_name
            and keep > (tracedb.retention_rule(leader, tenant_id)).keep
            then format('keep: at most that of %s, with which it goes', leader)
    end;
begin
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;
    insert into tracedb.retention_policies as r (tenant_id, table_name, keep, action, note)
    values (
        set_retention.tenant_id, set_retention.table_name, set_retention.keep,
        coalesce(set_retention.action, case when set_retention.tenant_id is null then coalesce(
            (tracedb.retention_rule(set_retention.table_name, null)).action, 'drop') end),
        set_retention.note)
    on conflict (tenant_id, table_name) do update
    set keep = excluded.keep, action = excluded.action,
        note = coalesce(excluded.note, r.note), updated_at = now()
    returning r.* into rule;
    return rule;
end $$;

comment on function tracedb.set_retention(text, interval, text, text, uuid) is
    'Says how long a table''s rows are kept (null: for ever, or for a tenant as for all) and '
    'whether they are archived or dropped then; of all tenants if none is set or given. A hold '
    'stays as it is. Tables: those with partitions, and trace_changes, trace_ids, dead_letters, '
    'ingest_writers and maintenance_runs (drop only).';

create or replace function tracedb.remove_retention(
    table_name text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    delete from tracedb.retention_policies as r
    where r.table_name = remove_retention.table_name
        and r.tenant_id is not distinct from remove_retention.tenant_id
        and r.hold_reason is null;
    return found;
end $$;

comment on function tracedb.remove_retention(text, uuid) is
    'Takes a rule away, and says whether there was one; not one with a hold: release that first. '
    'Without a rule of all tenants a table is kept for ever.';

create or replace function tracedb.set_legal_hold(
    table_name text, reason text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if tracedb.leading_table(table_name) is null then
        raise exception using errcode = 'TD002',
            message = 'table_name: must be one with partitions';
    end if;
    if reason = '' then
        raise exception using errcode = 'TD002', message = 'reason: must say why';
    end if;
    insert into tracedb.retention_policies as r (tenant_id, table_name, hold_reason)
    select set_legal_hold.tenant_id, set_legal_hold.table_name, set_legal_hold.reason
    where set_legal_hold.reason is not null
    on conflict (tenant_id, table_name) do update
    set hold_reason = excluded.hold_reason, updated_at = now();
    if found or reason is not null then
        return true;
    end if;
    update tracedb.retention_policies as r
    set hold_reason = null, updated_at = now()
    where r.table_name = set_legal_hold.table_name
        and r.tenant_id is not distinct from set_legal_hold.tenant_id
        and r.hold_reason is not null;
    return found;
end $$;

comment on function tracedb.set_legal_hold(text, text, uuid) is
    'Holds the rows of a table, and of a trace all of it, so that nothing removes them however old '
    'they are: of all tenants if none is set or given. A null reason releases the hold; false: '
    'there was none.';

create or replace function tracedb.settle_costs(
    from_time timestamptz, to_time timestamptz, of_tenant uuid, except_tenants uuid[]
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into tracedb.settled_costs (tenant_id, entry_id)
    select c.tenant_id, c.entry_id
    from (
        select e.tenant_id, e.event_id as entry_id, e.trace_id
        from tracedb.tenant_cost_events as e
        where e.cost_type in ('llm', 'embedding')
            and e.trace_id >= tracedb.uuid_floor(from_time)
            and e.trace_id < tracedb.uuid_floor(to_time)
        union all
        select r.tenant_id, r.reservation_id, r.trace_id
        from tracedb.budget_reservations as r
        where r.status = 'settled'
            and r.trace_id >= tracedb.uuid_floor(from_time)
            and r.trace_id < tracedb.uuid_floor(to_time)
    ) as c
    cross join lateral (
        select f.cost_usd is not null or not f.is_cost_unknown as is_known
        from tracedb.trace_figures as f
        where f.tenant_id = c.tenant_id and f.trace_id = c.trace_id
        limit 1
    ) as f
    where f.is_known
        and (of_tenant is null or c.tenant_id = of_tenant) and c.tenant_id <> all(except_tenants)
    on conflict do nothing;
end $$;

comment on function tracedb.settle_costs(timestamptz, timestamptz, uuid, uuid[]) is
    'Before traces of a time are removed (of a tenant, or of all but some): notes which cost '
    'events and reservations their costs have in them already, as cost_entries and spent_since '
    'decide it. Internal.';

create or replace function tracedb.spent_since(
    since timestamptz, as_of timestamptz, tenant_id uuid,
    out spent_usd numeric, out reserved_usd numeric, out unknown_cost_count bigint
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    select coalesce(sum(s.cost_usd), 0), coalesce(sum(s.unknown_count), 0)
    into spent_usd, unknown_cost_count
    from (
        select sum(u.cost_usd) as cost_usd, sum(u.unpriced) as unknown_count
        from tracedb.usage_between(
            since, as_of + interval '1 microsecond', false, spent_since.tenant_id) as u
        where u.kind in ('request', 'nested')
        union all
        select sum(c.cost_usd), count(*) filter (where c.is_cost_unknown)
        from tracedb.cost_entries as c
        where c.source = 'event' and c.tenant_id = spent_since.tenant_id
            and c.entry_id >= tracedb.uuid_floor(since - interval '1 day')
            and c.entry_id < tracedb.uuid_floor(as_of + interval '1 day')
            and c.occurred_at >= since and c.occurred_at <= as_of
    ) as s;
    -- What was settled counts until the trace it was for says itself what it cost.
    select
        spent_usd + coalesce(sum(r.settled_usd) filter (where r.status = 'settled'), 0),
        coalesce(sum(r.amount_usd) filter (where r.status = 'open'), 0)
    into spent_usd, reserved_usd
    from tracedb.budget_reservations as r
    left join lateral (
        select f.cost_usd is not null or not f.is_cost_unknown as is_known
        from tracedb.trace_figures as f
        where r.status = 'settled' and f.tenant_id = r.tenant_id and f.trace_id = r.trace_id
        limit 1  -- or all the tenant's traces would be read, to join them
    ) as f on true
    where r.tenant_id = spent_since.tenant_id and r.reserved_at <= as_of
        and (r.status = 'settled' and r.reserved_at >= since
            or r.status = 'open' and r.expires_at > as_of)
        and f.is_known is not true
        and not exists (
            select from tracedb.settled_costs as s
            where s.tenant_id = r.tenant_id and s.entry_id = r.reservation_id
        );
end $$;

comment on function tracedb.spent_since(timestamptz, timestamptz, uuid) is
    'What a tenant has spent (cost_entries, and what was settled and is in no trace yet) and what '
    'is reserved and open. Internal.';

create or replace view tracedb.cost_entries with (security_invoker = true) as
select
    f.tenant_id,
    f.trace_id as entry_id,
    'trace' as source,
    f.started_at as occurred_at,
    f.user_id,
    f.agent_id,
    null::text as model,
    f.cost_usd,
    f.is_cost_unknown,
    f.cost_usd is not null and (
        select t.cost_usd is null
        from tracedb.execution_traces as t
        where t.tenant_id = f.tenant_id and t.trace_id = f.trace_id
    ) as is_sum_of_spans
from tracedb.trace_figures as f
union all
select
    e.tenant_id,
    e.event_id,
    'event',
    e.occurred_at,
    e.user_id,
    null,
    case when e.cost_type in ('llm', 'embedding') then coalesce(e.service_tier, e.service) end,
    e.cost_usd,
    e.cost_usd is null,
    false
from tracedb.tenant_cost_events as e
left join lateral (
    select f.cost_usd is not null or not f.is_cost_unknown as is_known
    from tracedb.trace_figures as f
    where f.tenant_id = e.tenant_id and f.trace_id = e.trace_id
        -- what else a trace may have caused is in no trace's cost
        and e.cost_type in ('llm', 'embedding')
    limit 1  -- or all the tenant's traces would be read, to join them
) as f on true
where f.is_known is not true
    and not exists (
        select from tracedb.settled_costs as s
        where s.tenant_id = e.tenant_id and s.entry_id = e.event_id
    );

comment on view tracedb.cost_entries is
    'What cost a tenant money, once: every trace with its cost (trace_figures: nested money once), '
    'and every cost event that is not in a trace''s cost. A cost event of a call (llm, embedding) '
    'that names a trace whose cost is known says the same again and is left out; one of storage or '
    'compute, one that names no trace, and one of a trace without a known cost count. What is in '
    'the cost of a trace that retention removed (settled_costs) is left out as well. entry_id is '
    'a clock, as trace_id and event_id are. is_sum_of_spans: the cost is that of the trace''s '
    'calls, not reported for it as a whole.';

create or replace function tracedb.sees_all_rows(table_name text)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    relation constant regclass := ('tracedb.' || quote_ident(table_name))::regclass;
begin
    return not row_security_active(relation) or (
        exists (
            select from pg_policy as p
            where p.polrelid = relation and p.polpermissive and p.polcmd in ('*', 'r')
                and pg_get_expr(p.polqual, p.polrelid) = 'true'
                and exists (
                    select from unnest(p.polroles) as r
                    where r = 0 or pg_has_role(current_user, r, 'usage')
                )
        )
        and not exists (
            select from pg_policy as p
            where p.polrelid = relation and not p.polpermissive
        )
    );
end $$;

comment on function tracedb.sees_all_rows(text) is
    'Whether row-level security hides no row of the table from the caller. Copying a table out as '
    'anybody else would write a file without those rows, and no error.';

create or replace function tracedb.archive_contents(
    table_name text, from_time timestamptz, to_time timestamptz, tenant_id uuid,
    except_tenants uuid[]
)
returns table (tenant uuid, row_count bigint, row_hash bigint, first_id uuid, last_id uuid)
language plpgsql stable
security definer  -- counts what is there, whatever the caller's policies show
set search_path = pg_catalog, pg_temp
as $$
begin
    return query execute format(
        'select c.*, f.id, l.id from ( '
        'select t.tenant_id, count(*) as row_count, '
        'bit_xor(hashtextextended(t.ctid::text, t.xmin::text::bigint)) as row_hash '
        'from tracedb.%1$I as t where t.%2$I >= $1 and t.%2$I < $2 '
        '%3$s and t.tenant_id <> all($4) group by t.tenant_id) as c '
        'cross join lateral (select t.%2$I as id from tracedb.%1$I as t '
        'where t.tenant_id = c.tenant_id and t.%2$I >= $1 and t.%2$I < $2 '
        'order by t.%2$I limit 1) as f '
        'cross join lateral (select t.%2$I as id from tracedb.%1$I as t '
        'where t.tenant_id = c.tenant_id and t.%2$I >= $1 and t.%2$I < $2 '
        'order by t.%2$I desc limit 1) as l',
        table_name, tracedb.partition_key(table_name),
        case when tenant_id is not null then 'and t.tenant_id = $3' end)
    using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), tenant_id, except_tenants;
end $$;

comment on function tracedb.archive_contents(text, timestamptz, timestamptz, uuid, uuid[]) is
    'The rows of a table whose ids are of that time, a tenant a row: how many, a hash over the '
    'place and the writing transaction of each (another one after any change), the first and the '
    'last id. Of one tenant, or of all but some.';

create or replace function tracedb.slice_end(
    table_name text, from_time timestamptz, to_time timestamptz, tenant_id uuid,
    except_tenants uuid[], max_rows integer
)
returns timestamptz
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    last_id uuid;
begin
    execute format(
        'select t.%2$I from tracedb.%1$I as t where t.%2$I >= $1 and t.%2$I < $2 '
        '%3$s and t.tenant_id <> all($4) order by t.%2$I offset $5 - 1 limit 1',
        table_name, tracedb.partition_key(table_name),
        case when tenant_id is not null then 'and t.tenant_id = $3' end)
    into last_id
    using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), tenant_id, except_tenants,
        max_rows;
    return coalesce(least(tracedb.uuid_time(last_id) + interval '1 millisecond', to_time), to_time);
end $$;

comment on function tracedb.slice_end(
    text, timestamptz, timestamptz, uuid, uuid[], integer
) is
    'Where the time after which a table has about max_rows rows since from_time: what is deleted '
    'row by row is cut there. Internal.';

create or replace function tracedb.has_unfolded(
    table_name text, from_time timestamptz, to_time timestamptz
)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if table_name = 'pattern_usage_log' then
        return exists (
            select from tracedb.pattern_usage_log as u
            where u.trace_id >= tracedb.uuid_floor(from_time)
                and u.trace_id < tracedb.uuid_floor(to_time)
                and u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
        );
    end if;
    return exists (
        select from tracedb.trace_changes as c
        cross join lateral unnest(c.trace_ids) as i(trace_id)
        where not c.folded and i.trace_id >= tracedb.uuid_floor(from_time)
            and i.trace_id < tracedb.uuid_floor(to_time)
    );
end $$;

comment on function tracedb.has_unfolded(text, timestamptz, timestamptz) is
    'Whether rows of that time must not go yet: fold_usage has yet to fold changes of the traces, '
    'or fold_pattern_usage uses of patterns.';

create or replace function tracedb.record_archive(archive jsonb, contents jsonb)
returns uuid
language plpgsql volatile
security definer  -- nobody but these functions writes what is archived
set search_path = pg_catalog, pg_temp
as $$
declare
    new_row constant tracedb.archives := jsonb_populate_record(
        null::tracedb.archives,
        jsonb_build_object(
            'except_tenants', jsonb_build_array(), 'state', 'written', 'created_at', now(),
            'created_by', session_user) || archive);
begin
    insert into tracedb.archives values (new_row.*) on conflict do nothing;
    insert into tracedb.archived_tenants
    select c.tenant_id, new_row.archive_id, new_row.table_name, c.row_count, c.first_id, c.last_id
    from jsonb_populate_recordset(null::tracedb.archived_tenants, contents) as c
    on conflict do nothing;
    return new_row.archive_id;
end $$;

comment on function tracedb.record_archive(jsonb, jsonb) is
    'Records a file that was written and read back: its columns of archives, and the rows of '
    'archived_tenants for it.';

create or replace function tracedb.discard_archive(archive_id uuid)
returns boolean
language plpgsql volatile
security definer  -- as record_archive
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    delete from tracedb.archives as a
    where a.archive_id = discard_archive.archive_id and a.state = 'written';
    if not found then
        return false;
    end if;
    delete from tracedb.archived_tenants as t where t.archive_id = discard_archive.archive_id;
    return true;
end $$;

comment on function tracedb.discard_archive(uuid) is
    'Forgets an archive whose rows are all still in their table; false for any other.';

create or replace function tracedb.assert_archived(
    table_name text, from_time timestamptz, to_time timestamptz, tenant_id uuid,
    except_tenants uuid[], archive_ids uuid[]
)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    archive tracedb.archives;
    found_rows bigint;
    found_hash bigint;
begin
    select a.* into archive
    from tracedb.archives as a
    where a.archive_id = any(archive_ids) and a.table_name = assert_archived.table_name
        and a.from_time = assert_archived.from_time and a.to_time = assert_archived.to_time
        and a.tenant_id is not distinct from assert_archived.tenant_id
        and a.except_tenants = assert_archived.except_tenants and a.state = 'written';
    select coalesce(sum(c.row_count), 0), coalesce(bit_xor(c.row_hash), 0)
    into found_rows, found_hash
    from tracedb.archive_contents(
        table_name, from_time, to_time, tenant_id, except_tenants) as c;
    if found_rows = 0 and archive is null then
        return null;  -- of nothing there is no file
    end if;
    if (found_rows, found_hash) is distinct from (archive.row_count, archive.row_hash) then
        raise exception using errcode = 'TD003', message = format(
            '%s from %s: changed since it was archived (%s rows then, %s now)', table_name,
            from_time, coalesce(archive.row_count, 0), found_rows);
    end if;
    return archive.archive_id;
end $$;

comment on function tracedb.assert_archived(
    text, timestamptz, timestamptz, uuid, uuid[], uuid[]
) is
    'Raises unless one of these archives has exactly the rows that are there now. The caller holds '
    'a lock that keeps it so. Internal.';

create or replace function tracedb.assert_planned(
    relations text[], from_time timestamptz, to_time timestamptz, tenant_id uuid,
    except_tenants uuid[], how text, as_of timestamptz, forced boolean,
    out family text, out archived text[], out reason text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    -- A rule set from here on waits until this has ended.
    lock table tracedb.retention_policies in share mode;
    select p.family, p.archived, p.reason
    into assert_planned.family, assert_planned.archived, assert_planned.reason
    from tracedb.retention_plan(as_of, forced) as p
    where p.blocked_by is null and p.how = assert_planned.how and p.tables @> relations
        and p.from_time <= assert_planned.from_time and p.to_time >= assert_planned.to_time
        and (
            p.how = 'rows'
            or (p.from_time, p.to_time) = (assert_planned.from_time, assert_planned.to_time)
        )
        and p.tenant_id is not distinct from assert_planned.tenant_id
        and p.except_tenants = assert_planned.except_tenants
    limit 1;
    if not found then
        raise exception using errcode = 'TD003', message = format(
            '%s from %s: the plan has changed, and does not remove it', relations[1], from_time);
    end if;
    if tracedb.partition_key(relations[1]) = 'trace_id'
        and tracedb.has_unfolded(relations[1], from_time, to_time)
    then
        raise exception using errcode = 'TD004',
            message = format('%s from %s: not folded yet', relations[1], from_time);
    end if;
end $$;

comment on function tracedb.assert_planned(
    text[], timestamptz, timestamptz, uuid, uuid[], text, timestamptz, boolean
) is
    'What the plan says of removing this; raises if it does not, or totals have yet to count it. '
    'Internal.';

create or replace function tracedb.retire_partitions(
    relations text[], from_time timestamptz, to_time timestamptz, archive_ids uuid[],
    as_of timestamptz default now(), forced boolean default false,
    patience interval default interval '150 milliseconds'
)
returns setof tracedb.retention_receipts
language plpgsql volatile
security definer  -- detaching needs the parents' owner; the maintainer is only granted this call
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    planned record;
    relation text;
    partition text;
    partitions text[] := '{}';
    archived_as uuid[] := '{}';
    counts bigint[] := '{}';
    counted bigint;
    deadline timestamptz;
begin
    perform set_config('lock_timeout', format('%sms', ceil(extract(epoch from patience) * 1000)),
        true);
    foreach relation in array relations loop
        partition := (
            select p.partition from tracedb.partitions as p
            where p.parent = relation and p.from_time = retire_partitions.from_time
                and p.to_time = retire_partitions.to_time
        );
        if partition is null then
            raise exception using errcode = 'TD003',
                message = format('%s from %s: has no such partition', relation, from_time);
        end if;
        partitions := partitions || partition;
        -- Writers of these old rows wait from here on; readers, and other partitions, do not.
        execute format('lock table tracedb.%I in share row exclusive mode', partition);
    end loop;
    select a.* into planned
    from tracedb.assert_planned(
        relations, from_time, to_time, null, '{}', 'partition', as_of, forced) as a;
    foreach relation in array relations loop
        if relation = any(planned.archived) then
            archived_as := archived_as || tracedb.assert_archived(
                relation, from_time, to_time, null, '{}', archive_ids);
            counted := coalesce((
                select a.row_count from tracedb.archives as a
                where a.archive_id = archived_as[cardinality(archived_as)]
            ), 0);
        else
            archived_as := archived_as || null::uuid;
            -- Counting them would take longer than all the rest.
            counted := tracedb.estimated_rows(format(
                'tracedb.%I', partitions[cardinality(archived_as)])::regclass);
        end if;
        counts := counts || counted;
    end loop;
    if 'execution_traces' = any(relations) then
        perform tracedb.settle_costs(from_time, to_time, null, '{}');
    end if;
    -- Everybody waits behind these locks: together they are waited for no longer than patience.
    deadline := clock_timestamp() + patience;
    foreach relation in array relations loop
        perform set_config('lock_timeout', format('%sms', greatest(1, ceil(
            extract(epoch from deadline - clock_timestamp()) * 1000))), true);
        execute format('lock table only tracedb.%I, tracedb.%I in access exclusive mode',
            relation, relation || '_default');
    end loop;
    for i in 1 .. cardinality(relations) loop
        return query
        insert into tracedb.retention_receipts as r (
            action, family, table_name, from_time, to_time, row_count, bytes, archive_id, reason
        )
        values (
            'dropped', planned.family, relations[i], retire_partitions.from_time,
            retire_partitions.to_time, counts[i],
            pg_total_relation_size(format('tracedb.%I', partitions[i])::regclass), archived_as[i],
            planned.reason
        )
        returning r.*;
        execute format('alter table tracedb.%I detach partition tracedb.%I',
            relations[i], partitions[i]);
        execute format('alter table tracedb.%I rename to %I',
            partitions[i], partitions[i] || '_retired');
    end loop;
    update tracedb.archives as a set state = 'removed' where a.archive_id = any(archived_as);
end $$;

comment on function tracedb.retire_partitions(
    text[], timestamptz, timestamptz, uuid[], timestamptz, boolean, interval
) is
    'Takes the partitions of these tables and that time out of their tables, together, if the '
    'plan of as_of says so, totals have counted all of it, and the archives have exactly the rows '
    'that are there; raises otherwise. Nobody waits for it longer than patience; it fails with '
    'lock_not_available instead, and can be tried again. Returns the receipts; drop_retired frees '
    'the space.';

create or replace function tracedb.drop_retired()
returns setof text
language plpgsql volatile
security definer  -- as retire_partitions
set search_path = pg_catalog, pg_temp
set lock_timeout = '900ms'
as $$
declare
    retired text;
begin
    for retired in
        select c.relname
        from pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind = 'r'
            and not c.relispartition and c.relname ~ '_p[0-9]{8}_retired$'
        order by c.relname
    loop
        begin
            execute format('drop table tracedb.%I', retired);
            return next retired;
        exception
            when lock_not_available then
                raise notice '% is in use: the next run drops it', retired;
        end;
    end loop;
end $$;

comment on function tracedb.drop_retired() is
    'Drops the partitions that retire_partitions has taken out, and returns their names. Apart '
    'from it, since everybody would wait while files are removed.';

create or replace function tracedb.delete_expired(
    relations text[], from_time timestamptz, to_time timestamptz, tenant_id uuid,
    except_tenants uuid[], archive_ids uuid[], as_of timestamptz default now(),
    forced boolean default false
)
returns setof tracedb.retention_receipts
language plpgsql volatile
security definer  -- deletes rows of tenants as their rules say; nobody is granted to
set search_path = pg_catalog, pg_temp
set lock_timeout = '900ms'
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    planned record;
    parent text;
    rows_of constant text := 'tracedb.%1$I as t where t.%2$I >= $1 and t.%2$I < $2 '
        'and t.tenant_id <> all($4) and (t.tenant_id = $3 or $3 is null)';
    archive uuid;
    locked bigint;
    deleted bigint;
begin
    -- Nobody folds meanwhile what is about to go.
    perform pg_advisory_xact_lock(hashtextextended('tracedb.fold/' || i, 0))
    from (
        select distinct c.tenant as i
        from tracedb.archive_contents(
            relations[1], from_time, to_time, tenant_id, except_tenants) as c
        order by 1
    ) as tenants;
    select a.* into planned
    from tracedb.assert_planned(
        relations, from_time, to_time, tenant_id, except_tenants, 'rows', as_of, forced) as a;
    if 'execution_traces' = any(relations) then
        perform tracedb.settle_costs(from_time, to_time, tenant_id, except_tenants);
    end if;
    foreach parent in array relations loop
        execute format('select count(*) from (select from ' || rows_of || ' for update) as l',
            parent, tracedb.partition_key(parent))
        into locked
        using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), tenant_id,
            except_tenants;
        archive := case when parent = any(planned.archived) then tracedb.assert_archived(
            parent, from_time, to_time, tenant_id, except_tenants, archive_ids) end;
        execute format('delete from ' || rows_of, parent, tracedb.partition_key(parent))
        using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), tenant_id,
            except_tenants;
        get diagnostics deleted = row_count;
        if deleted <> locked then
            raise exception using errcode = 'TD003',
                message = format('%s from %s: changed since it was archived', parent, from_time);
        end if;
        update tracedb.archives as a set state = 'removed' where a.archive_id = archive;
        return query
        insert into tracedb.retention_receipts as r (
            tenant_id, action, family, table_name, from_time, to_time, row_count, archive_id,
            reason
        )
        values (
            delete_expired.tenant_id, 'deleted', planned.family, parent,
            delete_expired.from_time, delete_expired.to_time, deleted, archive, planned.reason
        )
        returning r.*;
    end loop;
end $$;

comment on function tracedb.delete_expired(
    text[], timestamptz, timestamptz, uuid, uuid[], uuid[], timestamptz, boolean
) is
    'Deletes the rows of a tenant, or of all but some, of these tables and that time (a slice of '
    'what the plan of as_of has as "rows"), if totals have counted them and the archives have '
    'exactly what is there; raises otherwise. Returns the receipts.';

create or replace function tracedb.purge_expired(
    table_name text, max_rows integer default 10000, as_of timestamptz default now(),
    forced boolean default false
)
returns bigint
language plpgsql volatile
security definer  -- deletes what no role may
set search_path = pg_catalog, pg_temp
set lock_timeout = '900ms'
as $$
#variable_conflict use_column
declare
    planned record;
    purged bigint;
begin
    if max_rows is null or max_rows < 1 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be at least 1';
    end if;
    select p.* into planned
    from tracedb.retention_plan(as_of, forced) as p
    where p.how = 'purge' and p.tables = array[table_name] and p.blocked_by is null;
    if planned is null then
        return 0;
    end if;
    if table_name = 'trace_changes' then
        -- Whoever follows from before what is purged is told so, and not given a gap.
        with gone as (
            delete from tracedb.trace_changes as t
            where (t.tenant_id, t.written_by, t.change_id) in (
                select c.tenant_id, c.written_by, c.change_id
                from tracedb.trace_changes as c
                where c.created_at < planned.to_time and c.folded
                limit max_rows
            )
            returning t.tenant_id, t.written_by
        ),
        horizon as (
            insert into tracedb.change_horizons as h (tenant_id, purged_until)
            select g.tenant_id, max(g.written_by) from gone as g group by g.tenant_id
            on conflict (tenant_id) do update
            set purged_until = greatest(h.purged_until, excluded.purged_until),
                updated_at = now()
            returning 1
        )
        select count(*) into purged from gone;
    else
        execute format(
            'delete from tracedb.%1$I as d where d.ctid = any(array('
            'select t.ctid from tracedb.%1$I as t where %2$s limit $2 for update skip locked))',
            table_name, tracedb.purge_condition(table_name))
        using planned.to_time, max_rows;
        get diagnostics purged = row_count;
    end if;
    if purged > 0 then
        insert into tracedb.retention_receipts (
            action, family, table_name, from_time, to_time, row_count, reason
        )
        values ('purged', table_name, table_name, '-infinity', planned.to_time, purged,
            planned.reason)
        on conflict do nothing;
    end if;
    return purged;
end $$;

comment on function tracedb.purge_expired(text, integer, timestamptz, boolean) is
    'Deletes at most max_rows rows that are older than their rule, of a table without partitions, '
    'and returns how many: call it until that is 0. Changes go only when they are folded.';

create or replace function tracedb.cover_times(
    family text, from_time timestamptz, to_time timestamptz
)
returns setof text
language plpgsql volatile
security definer  -- as ensure_partitions
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    policy tracedb.partition_policies;
    at timestamptz;
begin
    select p.* into policy
    from tracedb.partition_policies as p where p.family = cover_times.family;
    if policy is null then
        raise exception using errcode = 'TD002', message = 'family: there is no such one';
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.partitions')) then
        raise exception using errcode = '55P03',
            message = 'another session is managing partitions';
    end if;
    at := date_trunc(policy.width, from_time);
    while at < to_time loop
        return query select c from tracedb.cover_period(policy, at) as c;
        at := at + ('1 ' || policy.width)::interval;
    end loop;
end $$;

comment on function tracedb.cover_times(text, timestamptz, timestamptz) is
    'Makes the missing partitions of a family from a time on and before another, for rows that '
    'come back, and returns their names.';

create or replace function tracedb.open_staging(table_name text)
returns text
language plpgsql volatile
-- The table is the owner's, so that nothing of the caller's (a trigger, a view in its place) runs
-- with the owner's rights when its rows are stored.
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    staging constant text := 'restore_' || table_name;
begin
    if tracedb.leading_table(table_name) is null then
        raise exception using errcode = 'TD002',
            message = 'table_name: must be one with partitions';
    end if;
    execute format(
        'create temporary table %I (like tracedb.%I including defaults including generated) '
        -- most rows stay in one piece, and are compressed once: where they are stored
        'with (toast_tuple_target = 8160) on commit drop', staging, table_name);
    execute format('grant select, insert, delete on pg_temp.%I to tracedb_maintainer', staging);
    return staging;
end $$;

comment on function tracedb.open_staging(text) is
    'Makes an empty temporary table like this one, for the transaction, and returns its name: COPY '
    'archived rows into it, then call restore_staged.';

create or replace function tracedb.restore_staged(
    family text, tables text[], from_time timestamptz, to_time timestamptz, tenant_id uuid,
    keep_until timestamptz, reason text
)
returns setof tracedb.retention_receipts
language plpgsql volatile
security definer  -- writes rows of any tenant, as they were
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    relation text;
    storing text;
    stored bigint;
begin
    foreach relation in array tables loop
        if not exists (
            select from pg_class as c
            where c.oid = to_regclass('pg_temp.' || quote_ident('restore_' || relation))
                and c.relowner = current_user::text::regrole
        ) then
            raise exception using errcode = 'TD002',
                message = 'tables: must be those that open_staging was called for';
        end if;
    end loop;
    -- Who was erased since stays so: what restores of them goes here from the staging tables.
    foreach relation in array tables loop
        storing := format('insert into tracedb.%I select s.* from pg_temp.%I as s',
            relation, 'restore_' || relation);
        begin
            -- Mostly nothing of it is there, and looking for each row first costs a tenth more.
            execute storing;
            get diagnostics stored = row_count;
        exception
            when unique_violation then
                execute storing || ' on conflict do nothing';
                get diagnostics stored = row_count;
        end;
        return query
        insert into tracedb.retention_receipts as r (
            tenant_id, action, family, table_name, from_time, to_time, row_count, keep_until,
            reason
        )
        values (
            restore_staged.tenant_id, 'restored', restore_staged.family, relation,
            restore_staged.from_time, restore_staged.to_time, stored, restore_staged.keep_until,
            restore_staged.reason
        )
        returning r.*;
    end loop;
    if tracedb.partition_key(tables[1]) = 'trace_id' then
        execute (
            select format(
                'select count(tracedb.note_changes(c.ids, c.tenant_id)::text) from ( '
                'select i.tenant_id, array_agg(i.trace_id) as ids from ( '
                'select d.*, row_number() over (partition by d.tenant_id) / 1000 as portion '
                'from (%s) as d) as i group by i.tenant_id, i.portion) as c',
                string_agg(
                    format('select s.tenant_id, s.trace_id from pg_temp.%I as s', 'restore_' || t),
                    ' union '))
            from unnest(tables) as t
        );
    end if;
end $$;

comment on function tracedb.restore_staged(
    text, text[], timestamptz, timestamptz, uuid, timestamptz, text
) is
    'Stores the rows of the staging tables, all in the caller''s transaction; those that are there '
    'already stay as they are. Until keep_until no retention run removes the time again (of a '
    'tenant, or of all). Returns the receipts. What the traces added to totals comes back with '
    'them (usage_contributions), so that folding them again adds nothing.';

create or replace function tracedb.where_is_trace(
    trace_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns table (place text, table_name text, archive_id uuid)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if exists (
        select from tracedb.execution_traces as t
        where t.tenant_id = where_is_trace.tenant_id and t.trace_id = where_is_trace.trace_id
    ) then
        return query select 'stored', 'execution_traces', null::uuid;
    end if;
    return query
    select 'archived', a.table_name, a.archive_id
    from tracedb.archived_tenants as a
    where a.tenant_id = where_is_trace.tenant_id and a.first_id <= where_is_trace.trace_id
        and a.last_id >= where_is_trace.trace_id
    order by a.archive_id desc;
end $$;

comment on function tracedb.where_is_trace(uuid, uuid) is
    'Where a trace, or what was archived of it, is: place "stored" (in its tables), or "archived" '
    '(if it ever was, then in this archive; the newest first); nothing if it never was.';

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    policy record;
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for a new policy
    for policy in
        select
            c.table_name, r.role_name, r.command,
            format('%s_%s_%s', c.table_name, substr(r.role_name, 9), r.command) as name,
            concat(
                ' using (' || r.visible || ')', ' with check (' || r.writable || ')'
            ) as conditions
        from (values
            ('rule', 'retention_policies'),
            ('receipt', 'archives'), ('receipt', 'retention_receipts'),
            ('trail', 'archived_tenants'), ('trail', 'change_horizons'), ('trail', 'settled_costs'),
            ('run', 'maintenance_runs')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('rule', 'tracedb_owner', 'all', 'true', 'true'),
            ('rule', 'tracedb_service', 'select', 'true', null),
            ('rule', 'tracedb_maintainer', 'select', 'true', null),
            ('rule', 'tracedb_maintainer', 'insert', null, 'true'),
            ('rule', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('rule', 'tracedb_maintainer', 'delete', 'true', null),
            ('receipt', 'tracedb_owner', 'all', 'true', 'true'),
            ('receipt', 'tracedb_service', 'select', 'true', null),
            ('receipt', 'tracedb_maintainer', 'select', 'true', null),
            ('trail', 'tracedb_owner', 'all', 'true', 'true'),
            ('trail', 'tracedb_service', 'select', 'true', null),
            ('trail', 'tracedb_app', 'select', own_rows, null),
            ('trail', 'tracedb_reader', 'select', own_rows, null),
            ('trail', 'tracedb_maintainer', 'select', 'true', null),
            ('run', 'tracedb_owner', 'all', 'true', 'true'),
            ('run', 'tracedb_service', 'select', 'true', null),
            ('run', 'tracedb_maintainer', 'select', 'true', null),
            ('run', 'tracedb_maintainer', 'insert', null, 'true'),
            ('run', 'tracedb_maintainer', 'update', 'true', 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;


alter table tracedb.retention_policies enable row level security;
alter table tracedb.retention_policies force row level security;
alter table tracedb.archives enable row level security;
alter table tracedb.archives force row level security;
alter table tracedb.archived_tenants enable row level security;
alter table tracedb.archived_tenants force row level security;
alter table tracedb.retention_receipts enable row level security;
alter table tracedb.retention_receipts force row level security;
alter table tracedb.change_horizons enable row level security;
alter table tracedb.change_horizons force row level security;
alter table tracedb.settled_costs enable row level security;
alter table tracedb.settled_costs force row level security;
alter table tracedb.maintenance_runs enable row level security;
alter table tracedb.maintenance_runs force row level security;

grant select on
    tracedb.retention_policies,
    tracedb.archives,
    tracedb.retention_receipts,
    tracedb.maintenance_runs
to tracedb_service, tracedb_maintainer;
grant select on tracedb.archived_tenants, tracedb.change_horizons, tracedb.settled_costs
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function tracedb.where_is_trace(uuid, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant insert, update, delete on tracedb.retention_policies to tracedb_maintainer;
grant insert, update on tracedb.maintenance_runs to tracedb_maintainer;
grant execute on function
    tracedb.maintenance_advice(bigint),
    tracedb.purge_condition(text),
    tracedb.leading_table(text),
    tracedb.retention_rule(text, uuid),
    tracedb.held_tenants(text[], timestamptz, timestamptz, uuid[]),
    tracedb.has_other_tenants(text[], timestamptz, timestamptz, uuid[]),
    tracedb.retention_plan(timestamptz, boolean),
    tracedb.set_retention(text, interval, text, text, uuid),
    tracedb.remove_retention(text, uuid),
    tracedb.set_legal_hold(text, text, uuid),
    tracedb.sees_all_rows(text),
    tracedb.archive_contents(text, timestamptz, timestamptz, uuid, uuid[]),
    tracedb.slice_end(text, timestamptz, timestamptz, uuid, uuid[], integer),
    tracedb.has_unfolded(text, timestamptz, timestamptz),
    tracedb.record_archive(jsonb, jsonb),
    tracedb.discard_archive(uuid),
    tracedb.retire_partitions(
        text[], timestamptz, timestamptz, uuid[], timestamptz, boolean, interval),
    tracedb.drop_retired(),
    tracedb.delete_expired(
        text[], timestamptz, timestamptz, uuid, uuid[], uuid[], timestamptz, boolean),
    tracedb.purge_expired(text, integer, timestamptz, boolean),
    tracedb.cover_times(text, timestamptz, timestamptz),
    tracedb.open_staging(text),
    tracedb.restore_staged(
        text, text[], timestamptz, timestamptz, uuid, timestamptz, text)
to tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.archived_tenants');
select tracedb.co_locate('tracedb.change_horizons');
select tracedb.co_locate('tracedb.settled_costs');
