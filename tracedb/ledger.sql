-- ledger.sql: what tracedb/ledger.py asks and tells the database about its migrations.

-- name: search_path
select set_config(
    'search_path', concat_ws(', ', 'tracedb', nullif(current_setting('search_path'), '')), false
);

-- name: exists
select to_regclass(%(name)s) is not null;

-- name: schema_exists
select to_regnamespace('tracedb') is not null;

-- name: create_schema
create schema tracedb;

-- name: create_checksums
-- yoyo knows a migration by its file name alone; this is how an edited file is noticed
create table if not exists tracedb._migration_checksum (
    migration_id text        primary key,
    sha256       text        not null,
    applied_at   timestamptz not null default now()
);

-- name: applied
select migration_id from tracedb._yoyo_migration order by applied_at_utc, migration_id;

-- name: checksums
select migration_id, sha256 from tracedb._migration_checksum;

-- name: record_checksum
insert into tracedb._migration_checksum (migration_id, sha256)
values (%(id)s, %(sha256)s)
on conflict (migration_id) do update
set
    sha256 = excluded.sha256,
    applied_at = excluded.applied_at;

-- name: forget_checksum
delete from tracedb._migration_checksum where migration_id = %(id)s;

-- name: invalid_indexes
select c.relname
from pg_catalog.pg_index i
join pg_catalog.pg_class c on c.oid = i.indexrelid
where c.relnamespace = to_regnamespace('tracedb') and not i.indisvalid
order by c.relname;

-- name: has_tables
select exists (
    select
    from pg_catalog.pg_class c
    where
        c.relnamespace = to_regnamespace('tracedb')
        and c.relkind in ('r', 'p')
        and c.relname <> all (%(ledger)s)
);

-- name: other_ledgers
-- where a plain `yoyo apply` without ?schema=tracedb,public keeps its ledger
select c.oid::regclass::text
from pg_catalog.pg_class c
where
    c.relname = '_yoyo_migration'
    and c.relkind = 'r'
    and c.relnamespace <> to_regnamespace('tracedb')
    and has_table_privilege(c.oid, 'select')
order by c.relnamespace <> to_regnamespace('public'), 1;

-- name: applied_in
-- {ledger} is one of other_ledgers
select migration_id from {ledger};

-- name: sharing
-- any member of tracedb_owner may migrate next; not its owner, for that would let a rollback of
-- everything that tracedb_owner owns take the ledger along
select format(
    'grant select, insert, update, delete on tracedb.%%I to tracedb_owner', c.relname
)
from pg_catalog.pg_class c
where
    c.relnamespace = to_regnamespace('tracedb')
    and c.relname = any (%(ledger)s)
    and pg_has_role(c.relowner, 'usage')
    and to_regrole('tracedb_owner') is not null;

-- name: lock
select pg_try_advisory_lock(%(one)s, %(two)s);

-- name: unlock
select pg_advisory_unlock(%(one)s, %(two)s);

-- name: lock_holder
select l.pid
from pg_catalog.pg_locks l
join pg_catalog.pg_database d on d.oid = l.database and d.datname = current_database()
where
    l.locktype = 'advisory'
    and l.granted
    and l.objsubid = 2
    and l.classid = %(one)s::bigint::oid
    and l.objid = %(two)s::bigint::oid;

-- name: clear_lock_row
-- A row of ours (its pid is negative) is a leftover, because we hold the advisory lock. A row of a
-- plain yoyo is one when no session is left that may be yoyo's: older than the row (give or take a
-- minute for clocks), and last seen saying what yoyo says.
delete from tracedb.yoyo_lock l
where
    l.pid < 0
    or not exists (
        select
        from pg_catalog.pg_stat_activity a
        where
            a.datname = current_database()
            and a.pid <> pg_backend_pid()
            and coalesce(a.backend_start at time zone 'utc' < l.ctime + interval '1 minute', true)
            and coalesce(
                a.query ~* '(yoyo|^\s*(begin|commit|rollback)|insufficient privilege)', true
            )
    );

-- name: take_lock_row
insert into tracedb.yoyo_lock (locked, ctime, pid)
values (1, now() at time zone 'utc', %(pid)s)
on conflict do nothing
returning pid;

-- name: lock_row
select pid, ctime from tracedb.yoyo_lock;

-- name: drop_lock_row
delete from tracedb.yoyo_lock where pid = %(pid)s;
