-- 0009_operations.rollback.sql: removes the views of operations; no data is touched.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop view
    tracedb.change_backlog,
    tracedb.writer_losses,
    tracedb.storage_forecast,
    tracedb.trace_storage,
    tracedb.partition_headroom,
    tracedb.partition_sizes,
    tracedb.index_usage,
    tracedb.table_sizes;
drop function tracedb.ingest_lag(timestamptz);
drop function tracedb.table_bloat(boolean);
drop function tracedb.estimated_rows(regclass);

revoke execute on function tracedb.partition_key(text) from tracedb_maintainer;
revoke execute on function tracedb.default_partition_rows() from tracedb_service;
revoke select on tracedb.partitions, tracedb.partition_policies from tracedb_service;
drop policy partition_policies_service_select on tracedb.partition_policies;

reset role;
