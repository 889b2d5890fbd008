-- 0004_bulk.rollback.sql: rows get in by tracedb.ingest alone again; no data is touched.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop function tracedb.store_rows(
        text[], tracedb.execution_traces[], tracedb.execution_traces[],
        tracedb.agent_routing_decisions[], tracedb.hook_executions[], tracedb.endpoint_calls[],
        tracedb.llm_spans[], tracedb.trace_payloads[], tracedb.trace_payloads[],
        tracedb.platform_events[], tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid);
drop function tracedb.store_again(text, anyarray, text, uuid);

reset role;
