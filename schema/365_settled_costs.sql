-- 365_settled_costs.sql: what was charged again for a trace that is gone.

set role tracedb_owner;

create table if not exists tracedb.settled_costs (
    tenant_id uuid not null,
    entry_id  uuid not null,
    constraint settled_costs_pkey primary key (tenant_id, entry_id)
);

comment on table tracedb.settled_costs is
    'Cost events (event_id) and settled reservations (reservation_id) whose amount is in the cost '
    'of a trace that retention has removed: the totals keep it, so it is not counted beside them.';

reset role;
