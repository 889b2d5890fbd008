-- archive.sql: the statements of tracedb/archive.py and restore.py.

-- name: one_snapshot
-- Everything after it sees the same rows; text is the same whatever the session prefers.
set transaction isolation level repeatable read, read only;

-- name: exact_text
select
    set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO, YMD', true),
    set_config('intervalstyle', 'postgres', true), set_config('bytea_output', 'hex', true),
    set_config('extra_float_digits', '1', true);

-- name: sees_all_rows
select tracedb.sees_all_rows(%(table_name)s);

-- name: columns
select a.attname as name, format_type(a.atttypid, a.atttypmod) as type
from pg_catalog.pg_attribute as a
where a.attrelid = ('tracedb.' || quote_ident(%(table_name)s))::regclass
    and a.attnum > 0 and not a.attisdropped
order by a.attnum;

-- name: contents
select * from tracedb.archive_contents(
    %(table_name)s, %(from_time)s, %(to_time)s, %(tenant_id)s, %(except_tenants)s::uuid[]
);

-- name: copy_out
copy (
    select {columns} from tracedb.{table} as t
    where t.{key} >= tracedb.uuid_floor({from_time}) and t.{key} < tracedb.uuid_floor({to_time})
        and ({tenant_id}::uuid is null or t.tenant_id = {tenant_id}::uuid)
        and t.tenant_id <> all({except_tenants}::uuid[])
) to stdout (format csv, header false);

-- name: partition_key
select tracedb.partition_key(%(table_name)s);

-- name: record_archive
select tracedb.record_archive(%(archive)s, %(contents)s);

-- name: discard_archive
select tracedb.discard_archive(%(archive_id)s);

-- name: archives
select
    a.archive_id, a.tenant_id, a.except_tenants, a.family, a.table_name, a.from_time, a.to_time,
    a.first_id, a.last_id, a.row_count, a.row_hash, a.state, a.uri, a.format, a.file_bytes,
    a.sha256, a.schema_version, a.columns, a.created_at
from tracedb.archives as a
where (%(state)s::text is null or a.state = %(state)s)
    and (%(family)s::text is null or a.family = %(family)s)
    and (%(table_name)s::text is null or a.table_name = %(table_name)s)
    and (%(since)s::timestamptz is null or a.to_time > %(since)s)
    and (%(until)s::timestamptz is null or a.from_time < %(until)s)
    and (
        %(of_tenant)s::uuid is null
        or exists (
            select from tracedb.archived_tenants as t
            where t.tenant_id = %(of_tenant)s and t.archive_id = a.archive_id
        )
    )
order by a.created_at desc, a.archive_id;

-- name: where_is_trace
select * from tracedb.where_is_trace(%(trace_id)s, %(tenant_id)s);

-- name: cover_times
select tracedb.cover_times(%(family)s, %(from_time)s, %(to_time)s);

-- name: open_staging
select tracedb.open_staging(%(table_name)s);

-- name: copy_in
copy pg_temp.{staging} ({columns}) from stdin (format csv, header false);

-- name: thin_staging
delete from pg_temp.{staging} as s
where s.{key} < tracedb.uuid_floor({since}) or s.{key} >= tracedb.uuid_floor({until})
    or s.tenant_id <> {tenant_id}::uuid or s.{key} <> {id}::uuid;

-- name: thin_erased
select tracedb.thin_erased(%(tables)s);

-- name: restore_staged
select * from tracedb.restore_staged(
    %(family)s, %(tables)s, %(from_time)s, %(to_time)s, %(of_tenant)s, %(keep_until)s, %(reason)s
);

-- name: side_schema
create schema if not exists {schema};

-- name: side_table
create table if not exists {schema}.{table} (
    like tracedb.{table} including defaults including generated including indexes
);

-- name: side_guard
alter table {schema}.{table} enable row level security;

-- name: side_staging
create temporary table {staging} (like {schema}.{table} including defaults) on commit drop;

-- name: side_store
insert into {schema}.{table} select s.* from pg_temp.{staging} as s on conflict do nothing;

-- name: family_of
select p.family from tracedb.partition_policies as p where %(table_name)s = any(p.parents);

-- name: key_columns
select a.attname as name
from pg_catalog.pg_index as i
cross join unnest(i.indkey::smallint[]) with ordinality as k (number, place)
join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.number
where i.indisprimary and i.indrelid = to_regclass('tracedb.' || quote_ident(%(table_name)s))
order by k.place;
