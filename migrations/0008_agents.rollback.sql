-- 0008_agents.rollback.sql: drops the functions.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop function tracedb.get_feature_adoption(integer, timestamptz, uuid);
drop function tracedb.get_usage_patterns(integer, timestamptz, uuid);
drop function tracedb.get_churn_risk(timestamptz, uuid);
drop function tracedb.get_tenant_health(timestamptz, uuid);
drop function tracedb.daily_requests(integer, timestamptz, uuid);
drop function tracedb.get_agent_success_rate(text, integer, timestamptz, uuid);
drop function tracedb.agent_report(timestamptz, timestamptz, uuid);
drop function tracedb.wilson_interval(bigint, bigint);

reset role;
