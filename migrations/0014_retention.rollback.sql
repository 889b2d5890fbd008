-- 0014_retention.rollback.sql: removes rules, receipts and the list of archives; FILES STAY.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

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
    'still writes anywhere on the server waits for it. A trace may be named more than once.';

drop function tracedb.where_is_trace(uuid, uuid);
drop function tracedb.restore_staged(
    text, text[], timestamptz, timestamptz, uuid, timestamptz, text
);
drop function tracedb.open_staging(text);
drop function tracedb.cover_times(text, timestamptz, timestamptz);
drop function tracedb.purge_expired(text, integer, timestamptz, boolean);
drop function tracedb.delete_expired(
    text[], timestamptz, timestamptz, uuid, uuid[], uuid[], timestamptz, boolean
);
drop function tracedb.drop_retired();
drop function tracedb.retire_partitions(
    text[], timestamptz, timestamptz, uuid[], timestamptz, boolean, interval
);
drop function tracedb.assert_planned(
    text[], timestamptz, timestamptz, uuid, uuid[], text, timestamptz, boolean
);
drop function tracedb.assert_archived(text, timestamptz, timestamptz, uuid, uuid[], uuid[]);
drop function tracedb.discard_archive(uuid);
drop function tracedb.record_archive(jsonb, jsonb);
drop function tracedb.has_unfolded(timestamptz, timestamptz);
drop function tracedb.slice_end(text, timestamptz, timestamptz, uuid, uuid[], integer);
drop function tracedb.archive_contents(text, timestamptz, timestamptz, uuid, uuid[]);
drop function tracedb.sees_all_rows(text);
drop function tracedb.set_legal_hold(text, text, uuid);
drop function tracedb.remove_retention(text, uuid);
drop function tracedb.set_retention(text, interval, text, text, uuid);
drop function tracedb.retention_plan(timestamptz, boolean);
drop function tracedb.has_other_tenants(text[], timestamptz, timestamptz, uuid[]);
drop function tracedb.held_tenants(text[], timestamptz, timestamptz, uuid[]);
drop function tracedb.retention_rule(text, uuid);
drop function tracedb.leading_table(text);
drop function tracedb.purge_condition(text);
drop function tracedb.maintenance_advice(bigint);
drop table tracedb.maintenance_runs;
drop table tracedb.change_horizons;
drop table tracedb.retention_receipts;
drop table tracedb.archived_tenants;
drop table tracedb.archives;
drop table tracedb.retention_policies;

reset role;
