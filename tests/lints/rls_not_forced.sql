-- rls_not_forced.sql: every table and partition has row-level security enabled and forced.

select
    c.oid::regclass::text as object,
    case when c.relrowsecurity then 'enabled but not forced' else 'not enabled' end as detail
from pg_catalog.pg_class as c
where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
    and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    and not (c.relrowsecurity and c.relforcerowsecurity)
