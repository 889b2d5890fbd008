-- no_primary_key.sql: every table has a primary key.

select c.oid::regclass::text as object, 'no primary key' as detail
from pg_catalog.pg_class as c
where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
    and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    and not exists (
        select from pg_catalog.pg_constraint as k where k.conrelid = c.oid and k.contype = 'p'
    )
