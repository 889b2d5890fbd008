-- 0010_tenant_money.rollback.sql: removes budgets, reservations and alerts WITH WHAT THEY HOLD.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop function tracedb.get_cost_breakdown(text, timestamptz, timestamptz, uuid);
drop function tracedb.get_tenant_daily_cost(uuid, date);
drop function tracedb.spent_since(timestamptz, timestamptz, uuid);
drop function tracedb.get_budget_status(timestamptz, uuid);
drop function tracedb.project_costs(numeric[], integer);
drop function tracedb.forecast_costs(text, timestamptz, integer, uuid);
drop function tracedb.lock_budgets(uuid);
drop function tracedb.reserve_budget(uuid, numeric, interval, uuid, uuid);
drop function tracedb.settle_budget(uuid, numeric, uuid, uuid);
drop function tracedb.release_budget(uuid, uuid);
drop function tracedb.set_budget(text, text, numeric, numeric, uuid);
drop function tracedb.remove_budget(text, uuid);
drop function tracedb.check_budgets(timestamptz, uuid);
drop view tracedb.cost_entries;
drop table tracedb.budget_alerts;
drop table tracedb.budget_reservations;
drop table tracedb.budgets;

reset role;
