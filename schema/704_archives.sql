-- 704_archives.sql: what an archive is to hold, and whether it still holds just that.

set role tracedb_owner;

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

reset role;
