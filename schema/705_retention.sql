-- 705_retention.sql: the steps of a retention run, each whole in its transaction.

-- The maintainer plans, reads and archives; what locks, detaches, drops or deletes needs the owner,
-- and asks the plan again before it does, so that a hold set meanwhile counts.

set role tracedb_owner;

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

reset role;
