-- 910_first_partitions.sql: the partitions of the first weeks.

select tracedb.ensure_partitions();
