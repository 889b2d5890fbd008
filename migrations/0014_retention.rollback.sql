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
        and f.is_known is not true;
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
where f.is_known is not true;

comment on view tracedb.cost_entries is
    'What cost a tenant money, once: every trace with its cost (trace_figures: nested money once), '
    'and every cost event that is not in a trace''s cost. A cost event of a call (llm, embedding) '
    'that names a trace whose cost is known says the same again and is left out; one of storage or '
    'compute, one that names no trace, and one of a trace without a known cost count. entry_id is '
    'a clock, as trace_id and event_id are. is_sum_of_spans: the cost is that of the trace''s '
    'calls, not reported for it as a whole.';

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
drop function tracedb.has_unfolded(text, timestamptz, timestamptz);
drop function tracedb.slice_end(text, timestamptz, timestamptz, uuid, uuid[], integer);
drop function tracedb.archive_contents(text, timestamptz, timestamptz, uuid, uuid[]);
drop function tracedb.settle_costs(timestamptz, timestamptz, uuid, uuid[]);
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
drop table tracedb.settled_costs;
drop table tracedb.change_horizons;
drop table tracedb.retention_receipts;
drop table tracedb.archived_tenants;
drop table tracedb.archives;
drop table tracedb.retention_policies;

reset role;
