-- foreign_key_on_event_table.sql: event tables neither have foreign keys nor are their target:
-- parts of a trace arrive in any order, and checking them ignores row-level security.

select format('%s on %s', k.conname, k.conrelid::regclass) as object,
    format('to %s', k.confrelid::regclass) as detail
from pg_catalog.pg_constraint as k
where k.contype = 'f'
    and exists (
        select from pg_catalog.pg_class as c
        where c.oid in (k.conrelid, k.confrelid)
            and c.relnamespace = 'tracedb'::regnamespace and (c.relkind = 'p' or c.relispartition)
    )
