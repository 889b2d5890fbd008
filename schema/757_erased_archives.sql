-- 757_erased_archives.sql: archives without those who were erased, and restores without them.

set role tracedb_owner;

create or replace function tracedb.thin_erased(tables text[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation text;
    spec record;
    trace_ids uuid[] := '{}';
    tenant_ids uuid[] := '{}';
    -- the time of a row, where it has one of a user's
    at_column text;
begin
    if not exists (select from tracedb.erased_keys) then
        return;
    end if;
    if 'execution_traces' = any(tables) then
        -- Also what the erasure never saw, because no archive was at hand.
        with recursive gone as (
            select s.tenant_id, s.trace_id
            from pg_temp.restore_execution_traces as s
            where exists (
                select from tracedb.erased_keys as e
                where e.tenant_id = s.tenant_id and e.kind = 'user'
                    and e.key_hash = tracedb.tombstone('user', s.user_id, s.tenant_id)
                    and s.started_at < e.erased_at
            ) or exists (
                select from tracedb.erased_traces as t
                where t.tenant_id = s.tenant_id
                    and t.trace_id in (s.trace_id, s.parent_trace_id, s.root_trace_id)
            )
            union
            select s.tenant_id, s.trace_id
            from gone as g
            join pg_temp.restore_execution_traces as s
                on s.tenant_id = g.tenant_id and s.parent_trace_id = g.trace_id
        )
        select array_agg(g.trace_id), array_agg(g.tenant_id) into trace_ids, tenant_ids
        from gone as g;
    end if;
    foreach relation in array tables loop
        select s.* into spec from tracedb.subject_tables() as s where s.table_name = relation;
        -- Everything of an erased tenant; the id is the clock.
        execute format(
            'delete from pg_temp.%I as s using tracedb.erased_keys as e '
            'where e.tenant_id = s.tenant_id and e.kind = ''tenant'' '
            'and e.key_hash = tracedb.tombstone(''tenant'', '''', s.tenant_id) '
            'and s.%I < tracedb.uuid_floor(e.erased_at)',
            'restore_' || relation, tracedb.partition_key(relation));
        at_column := case
            when spec.user_column is null then null
            when spec.deed = 'traces' then 'started_at'
            else 'occurred_at'
        end;
        execute format(
            '%s where exists ( '
            '    select from unnest($1, $2) as g (trace_id, tenant_id) '
            '    where g.tenant_id = s.tenant_id and g.trace_id = s.%I '
            ') or exists ( '
            '    select from tracedb.erased_traces as t '
            '    where t.tenant_id = s.tenant_id and t.trace_id = s.%I '
            ') %s',
            case
                when spec.deed = 'money' then format('update pg_temp.%I as s set %s',
                    'restore_' || relation, (
                        select string_agg(format('%I = %s', c,
                            case c when 'metadata' then '''{}''' else 'null' end), ', ')
                        from unnest(spec.personal || spec.trace_column) as c
                    ))
                else format('delete from pg_temp.%I as s', 'restore_' || relation)
            end,
            spec.trace_column, spec.trace_column,
            case when at_column is not null then format(
                'or exists ( '
                '    select from tracedb.erased_keys as e '
                '    where e.tenant_id = s.tenant_id and e.kind = ''user'' '
                '        and e.key_hash = tracedb.tombstone(''user'', s.%I, s.tenant_id) '
                '        and s.%I < e.erased_at '
                ')', spec.user_column, at_column) end)
        using trace_ids, tenant_ids;
    end loop;
end $$;

comment on function tracedb.thin_erased(text[]) is
    'Takes those who were erased out of the staging tables of a restore (restore_<table>): their '
    'rows go, amounts become nobody''s.';

create or replace function tracedb.collect_archived(
    erasure_id uuid, trace_ids uuid[], foreign_ids text[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not exists (
        select from tracedb.erasures as e
        where e.tenant_id = collect_archived.tenant_id
            and e.erasure_id = collect_archived.erasure_id and e.finished_at is null
    ) then
        raise exception using errcode = 'P0002',
            message = 'erasure_id: no erasure that is going on';
    end if;
    perform tracedb.collect_erased(trace_ids, erasure_id, tenant_id);
    insert into tracedb.erased_keys (tenant_id, key_hash, kind, erasure_id, erased_at)
    select
        collect_archived.tenant_id,
        tracedb.tombstone('trace', i, collect_archived.tenant_id), 'trace',
        collect_archived.erasure_id, now()
    from unnest(foreign_ids) as i
    order by 2
    on conflict do nothing;
end $$;

comment on function tracedb.collect_archived(uuid, uuid[], text[], uuid) is
    'Gives traces that were found in archives, and their foreign ids, the tombstones of an '
    'erasure.';

create or replace function tracedb.replace_archive(
    archive jsonb, contents jsonb, erasure_id uuid,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as record_archive
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    anew constant tracedb.archives := jsonb_populate_record(null::tracedb.archives, archive);
    old_uri text;
begin
    select a.uri into old_uri
    from tracedb.archives as a
    where a.archive_id = anew.archive_id and a.state = 'removed'
    for update;
    if not found then
        raise exception using errcode = 'P0002',
            message = 'archive_id: no archive whose rows are nowhere else';
    end if;
    update tracedb.archives as a set
        uri = anew.uri, row_count = anew.row_count, first_id = anew.first_id,
        last_id = anew.last_id, file_bytes = anew.file_bytes, sha256 = anew.sha256
    where a.archive_id = anew.archive_id;
    delete from tracedb.archived_tenants as t
    where t.tenant_id = replace_archive.tenant_id and t.archive_id = anew.archive_id;
    insert into tracedb.archived_tenants
    select
        replace_archive.tenant_id, anew.archive_id, anew.table_name, c.row_count, c.first_id,
        c.last_id
    from jsonb_populate_recordset(null::tracedb.archived_tenants, contents) as c
    on conflict do nothing;
    update tracedb.erasures as e set files = array_append(e.files, old_uri)
    where e.tenant_id = replace_archive.tenant_id
        and e.erasure_id = replace_archive.erasure_id;
end $$;

comment on function tracedb.replace_archive(jsonb, jsonb, uuid, uuid) is
    'Records the file that an archive has now, without rows of somebody who was erased, and what '
    'it has left of the tenant; the receipt names the old file until it is deleted '
    '(forget_file).';

create or replace function tracedb.forget_file(
    uri text, tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.erasures as e set files = array_remove(e.files, forget_file.uri)
    where e.tenant_id = forget_file.tenant_id and forget_file.uri = any(e.files);
end $$;

comment on function tracedb.forget_file(text, uuid) is
    'Says that an old file of an archive is deleted.';

reset role;
