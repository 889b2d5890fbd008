-- 720_restore.sql: bringing archived rows back, and where a trace is.

set role tracedb_owner;

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
    perform tracedb.thin_erased(tables);  -- who was erased since stays so
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

reset role;
