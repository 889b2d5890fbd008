-- 703_settled_costs.sql: no amount counts twice once its trace is gone.

set role tracedb_owner;

create or replace function tracedb.settle_costs(
    from_time timestamptz, to_time timestamptz, of_tenant uuid, except_tenants uuid[]
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into tracedb.settled_costs (tenant_id, entry_id)
    select c.tenant_id, c.entry_id
    from (
        select e.tenant_id, e.event_id as entry_id, e.trace_id
        from tracedb.tenant_cost_events as e
        where e.cost_type in ('llm', 'embedding')
            and e.trace_id >= tracedb.uuid_floor(from_time)
            and e.trace_id < tracedb.uuid_floor(to_time)
        union all
        select r.tenant_id, r.reservation_id, r.trace_id
        from tracedb.budget_reservations as r
        where r.status = 'settled'
            and r.trace_id >= tracedb.uuid_floor(from_time)
            and r.trace_id < tracedb.uuid_floor(to_time)
    ) as c
    cross join lateral (
        select f.cost_usd is not null or not f.is_cost_unknown as is_known
        from tracedb.trace_figures as f
        where f.tenant_id = c.tenant_id and f.trace_id = c.trace_id
        limit 1
    ) as f
    where f.is_known
        and (of_tenant is null or c.tenant_id = of_tenant) and c.tenant_id <> all(except_tenants)
    on conflict do nothing;
end $$;

comment on function tracedb.settle_costs(timestamptz, timestamptz, uuid, uuid[]) is
    'Before traces of a time are removed (of a tenant, or of all but some): notes which cost '
    'events and reservations their costs have in them already, as cost_entries and spent_since '
    'decide it. Internal.';

reset role;
