-- 756_erasure_steps.sql: an erasure, a transaction a step, each of which may be the last for now.

set role tracedb_owner;

create or replace function tracedb.erase_foreign_ids(erasure_id uuid, tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    insert into tracedb.erased_keys (tenant_id, key_hash, kind, erasure_id, erased_at)
    select
        m.tenant_id, tracedb.tombstone('trace', m.external_id, m.tenant_id), 'trace',
        e.erasure_id, now()
    from tracedb.trace_ids as m
    join tracedb.erased_traces as e on e.tenant_id = m.tenant_id and e.trace_id = m.trace_id
    where m.tenant_id = erase_foreign_ids.tenant_id
        and e.erasure_id = erase_foreign_ids.erasure_id
    order by 2
    on conflict do nothing;
end $$;

comment on function tracedb.erase_foreign_ids(uuid, uuid) is
    'Gives the foreign ids of an erasure''s traces their tombstones. Internal.';

create or replace function tracedb.erase_user_rows(
    erasure tracedb.erasures, user_id text, max_rows integer,
    out erased jsonb, out next_position text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    tenant constant uuid := erasure.tenant_id;
    at_table constant text := split_part(erasure.position, '/', 1);
    lowest constant uuid := '00000000-0000-0000-0000-000000000000';
    highest constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    first_id constant uuid := coalesce(
        nullif(split_part(erasure.position, '/', 2), '')::uuid, lowest);
    last_id uuid;
    spec record;
    trace_ids constant uuid[] := array(
        select t.trace_id
        from tracedb.erased_traces as t
        where t.tenant_id = tenant and t.erasure_id = erasure.erasure_id and t.pending
    );
    condition text;
    gone bigint;
begin
    -- A table once through, by its key where it is large.
    select s.*, tracedb.partition_key(s.table_name) as key into spec
    from tracedb.subject_tables() as s
    where s.deed in ('rows', 'money')
        and (erasure.position is null or s.table_name > at_table
            or s.table_name = at_table and first_id > lowest)
    order by s.table_name
    limit 1;
    if spec is null then
        return;
    end if;
    if spec.key = 'event_id' then
        execute format(
            'select t.event_id from tracedb.%I as t '
            'where t.tenant_id = $1 and t.event_id > $2 order by t.event_id offset $3 limit 1',
            spec.table_name)
        into last_id
        using tenant, first_id, max_rows;
    end if;
    next_position := spec.table_name || coalesce('/' || last_id, '');
    last_id := coalesce(last_id, highest);
    if spec.table_name = 'tenant_cost_events' then
        gone := tracedb.erase_costs(user_id, trace_ids, first_id, last_id, tenant);
    elsif spec.table_name = 'budget_reservations' then
        gone := tracedb.erase_reservations(trace_ids, tenant);
    else
        condition := tracedb.subject_condition(
            spec.trace_column, spec.user_column, spec.record_column);
        execute format(
            'delete from tracedb.%I as t where t.tenant_id = $1 and (%s)%s',
            spec.table_name, condition,
            case when spec.key = 'event_id' then ' and t.event_id > $4 and t.event_id <= $5'
                else ' and $4 < $5' end)
        using tenant, user_id, trace_ids, first_id, last_id;
        get diagnostics gone = row_count;
    end if;
    erased := jsonb_build_object(spec.table_name, gone);
end $$;

comment on function tracedb.erase_user_rows(tracedb.erasures, text, integer) is
    'Erases a user from the next part of the next table that is no part of a trace; next_position '
    'is null when there is none. Internal.';

create or replace function tracedb.erase_tenant_rows(
    erasure tracedb.erasures, max_rows integer, out erased jsonb, out next_position text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    spec record;
    bound text;
    gone bigint;
begin
    -- Its own row last: until then it is known whose the rest is.
    select s.table_name, a.attname, format_type(a.atttypid, null) as key_type into spec
    from tracedb.subject_tables() as s
    join pg_catalog.pg_index as i
        on i.indrelid = ('tracedb.' || quote_ident(s.table_name))::regclass and i.indisprimary
    left join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[1]
    where s.table_name <> 'erasures'
        and (erasure.position is null or (s.table_name = 'tenants', s.table_name)
            >= (erasure.position = 'tenants', erasure.position))
    order by s.table_name = 'tenants', s.table_name
    limit 1;
    if spec.attname is not null then
        execute format(
            'select t.%1$I::text from tracedb.%2$I as t where t.tenant_id = $1 '
            'order by t.%1$I offset $2 limit 1',
            spec.attname, spec.table_name)
        into bound
        using erasure.tenant_id, max_rows;
    end if;
    execute format(
        'delete from tracedb.%I as t where t.tenant_id = $1%s%s',
        spec.table_name,
        case when bound is not null
            then format(' and t.%I <= %L::%s', spec.attname, bound, spec.key_type) else '' end,
        case when spec.table_name = 'erased_keys'
            then format(' and t.erasure_id <> %L', erasure.erasure_id) else '' end)
    using erasure.tenant_id;
    get diagnostics gone = row_count;
    erased := jsonb_build_object(spec.table_name, gone);
    next_position := case
        when bound is not null then spec.table_name
        else (
            select s.table_name
            from tracedb.subject_tables() as s
            where s.table_name <> 'erasures' and (s.table_name = 'tenants', s.table_name)
                > (spec.table_name = 'tenants', spec.table_name)
            order by s.table_name = 'tenants', s.table_name
            limit 1
        )
    end;
end $$;

comment on function tracedb.erase_tenant_rows(tracedb.erasures, integer) is
    'Erases the next part of what a tenant has; next_position is null when that was the last. '
    'Internal.';

create or replace function tracedb.erase_step(
    erasure_id uuid,
    user_id text default null,
    max_rows integer default 500,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.erasures
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    e tracedb.erasures;
    found_ids uuid[];
    made record;
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 100000';
    end if;
    select r.* into e
    from tracedb.erasures as r
    where r.tenant_id = tenant and r.erasure_id = erase_step.erasure_id
    for update;
    if not found then
        raise exception using errcode = 'P0002', message = 'erasure_id: no erasure of this tenant';
    end if;
    if e.subject_hash is distinct from tracedb.tombstone(e.kind, coalesce(user_id, ''), tenant) then
        raise exception using errcode = 'TD002',
            message = 'user_id: not the one this erasure is of';
    end if;
    case e.phase
        when 'collect' then
            found_ids := array(
                select t.trace_id
                from tracedb.execution_traces as t
                where t.tenant_id = tenant and t.user_id = erase_step.user_id
                    and (e.position is null or t.trace_id < e.position::uuid)
                order by t.trace_id desc
                limit max_rows
            );
            e.position := found_ids[cardinality(found_ids)];
            if e.position is not null then
                perform tracedb.collect_erased(found_ids, e.erasure_id, tenant);
            else
                perform tracedb.erase_foreign_ids(e.erasure_id, tenant);
                e.phase := 'settle';
            end if;
        when 'settle' then
            if e.horizon is null then
                e.horizon := pg_snapshot_xmax(pg_current_snapshot());
            elsif pg_snapshot_xmin(pg_current_snapshot()) >= e.horizon then
                -- All that began before the tombstones were there has ended: if it left anything,
                -- that gets its tombstone, and again time to settle.
                e.phase := 'rows';
                if e.kind = 'user' and tracedb.collect_erased(array(
                    select t.trace_id
                    from tracedb.execution_traces as t
                    where t.tenant_id = tenant and t.user_id = erase_step.user_id
                    union
                    select t.trace_id
                    from tracedb.erased_traces as t
                    where t.tenant_id = tenant and t.erasure_id = e.erasure_id and t.pending
                ), e.erasure_id, tenant) > 0 then
                    perform tracedb.erase_foreign_ids(e.erasure_id, tenant);
                    e.phase := 'settle';
                    e.horizon := null;
                end if;
            end if;
        when 'rows' then
            if e.kind = 'user' then
                made := tracedb.erase_user_rows(e, user_id, max_rows * 100);
            else
                made := tracedb.erase_tenant_rows(e, max_rows * 10);
            end if;
            e.counts := tracedb.add_counts(e.counts, coalesce(made.erased, '{}'));
            e.position := made.next_position;
            if e.position is null then
                e.phase := case e.kind when 'user' then 'traces' else 'done' end;
            end if;
        when 'traces' then
            found_ids := array(
                select t.trace_id
                from tracedb.erased_traces as t
                where t.tenant_id = tenant and t.erasure_id = e.erasure_id and t.pending
                    and (e.position is null or t.trace_id > e.position::uuid)
                order by t.trace_id
                limit max_rows
            );
            e.position := found_ids[cardinality(found_ids)];
            if e.position is not null then
                e.counts := tracedb.add_counts(
                    e.counts, tracedb.erase_traces(found_ids, e.erasure_id, tenant));
            else
                e.phase := 'done';
            end if;
        else
            return e;
    end case;
    update tracedb.erasures as r set
        phase = e.phase, position = e.position, horizon = e.horizon, counts = e.counts,
        finished_at = case when e.phase = 'done' then clock_timestamp() end
    where r.tenant_id = tenant and r.erasure_id = e.erasure_id
    returning r.* into e;
    return e;
end $$;

comment on function tracedb.erase_step(uuid, text, integer, uuid) is
    'Goes on with an erasure, about max_rows traces (1 to 100000) or a hundred times as many '
    'events; user_id as begin_erasure was given it. Call it, a transaction a call, until the phase '
    'is done. In settle it waits for transactions that were writing when the tombstones came: '
    'call it again a little later.';

create or replace function tracedb.note_erased(
    erasure_id uuid, place text, counts jsonb,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.erasures as r set elsewhere = r.elsewhere || jsonb_build_object(
        place, tracedb.add_counts(coalesce(r.elsewhere -> place, '{}'), note_erased.counts))
    where r.tenant_id = note_erased.tenant_id and r.erasure_id = note_erased.erasure_id;
end $$;

comment on function tracedb.note_erased(uuid, text, jsonb, uuid) is
    'Adds to a receipt what was erased outside the database: the place (spool, archives) and '
    'counts by name.';

create or replace function tracedb.erase_spooled(
    writer_id uuid, numbers bigint[], records text[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint[]
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    kept bigint[];
    erased int8multirange;
begin
    if cardinality(numbers) is distinct from cardinality(records) then
        raise exception using
            errcode = 'TD002', message = 'numbers: must be one for each of the records';
    end if;
    select array_agg((r ->> '_number')::bigint) into kept
    from unnest(tracedb.without_erased(array(
        select coalesce(tracedb.readable_record(u.item), '{}')
            || jsonb_build_object('_number', u.record_no)
        from unnest(numbers, records) as u (record_no, item)
    ), tenant_id)) as r;
    select range_agg(int8range(n, n, '[]')) into erased
    from unnest(numbers) as n
    where n <> all(coalesce(kept, '{}'));
    if erased is not null then
        perform tracedb.touch_writer(writer_id, null, upper(erased) - 1, false, tenant_id);
        perform tracedb.record_delivery(writer_id, erased, 'stored', tenant_id);
    end if;
    return coalesce(kept, '{}');
end $$;

comment on function tracedb.erase_spooled(uuid, bigint[], text[], uuid) is
    'Which of a writer''s records that wait on disk (their numbers, and the records as JSON) are '
    'to be kept. The others are of somebody who was erased; the ledger counts them as if '
    'they had come: as stored.';

reset role;
