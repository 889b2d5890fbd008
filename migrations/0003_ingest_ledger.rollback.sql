-- 0003_ingest_ledger.rollback.sql: removes the ledger and the dead letters AND THEIR DATA.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop function tracedb.loss_report(uuid, uuid);
drop function tracedb.purge_dead_letters(timestamptz, integer, uuid);
drop function tracedb.requeue_dead_letters(uuid[], integer, uuid);
drop function tracedb.ingest_from(uuid, bigint[], json, uuid);
drop function tracedb.bury(uuid, bigint, text, text, text, uuid);
drop function tracedb.record_delivery(uuid, int8multirange, text, uuid);
drop function tracedb.touch_writer(uuid, text, bigint, boolean, uuid);
drop table tracedb.dead_letters;
drop table tracedb.ingest_writers;
drop function tracedb.number_count(int8multirange);

reset role;
