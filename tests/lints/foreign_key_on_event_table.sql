-- foreign_key_on_event_table.sql: event tables neither have foreign keys nor are their target:
-- parts of a trace arrive in any order, and checking them ignores row-level security.

select format('%s on %s', k.conname, k.conrelid::regclass) as object,
    format('to %s', k.confrelid::regclass) as detail
from pg_catalog.pg_constraint as k
where k.contype = 'f'
    and exists (
        select
        from pg_catalog.pg_partitioned_table as e  -- by range: event tables have partitions of time
        join pg_catalog.pg_class as c on c.oid = e.partrelid
        left join pg_catalog.pg_inherits as i on i.inhparent = e.partrelid
        where c.relnamespace = 'tracedb'::regnamespace and e.partstrat = 'r'
            and (e.partrelid in (k.conrelid, k.confrelid)
                or i.inhrelid in (k.conrelid, k.confrelid))
    )
