-- 527_changes.sql: what was written since, without a gap.

set role tracedb_owner;

create or replace function tracedb.note_changes(trace_ids uuid[], tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if cardinality(trace_ids) > 0 then
        insert into tracedb.trace_changes (tenant_id, trace_ids)
        values (note_changes.tenant_id, note_changes.trace_ids)
        on conflict do nothing;
    end if;
end $$;

comment on function tracedb.note_changes(uuid[], uuid) is
    'Tells changes_since of traces that this transaction writes. Whatever writes traces or their '
    'parts calls it. Internal.';

create or replace function tracedb.changes_cursor()
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return concat_ws('/', (pg_control_system()).system_identifier,
        pg_snapshot_xmin(pg_current_snapshot()), '00000000-0000-0000-0000-000000000000', 0);
end $$;

comment on function tracedb.changes_cursor() is
    'A cursor for changes_since that skips what has been written so far: take it, read all there '
    'is, then follow the changes.';

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

reset role;
