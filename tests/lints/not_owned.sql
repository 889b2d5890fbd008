-- not_owned.sql: everything belongs to tracedb_owner, whose rights definer functions lend.

select o.object, format('owned by %s', o.owner) as detail
from (
    select 'schema tracedb', n.nspowner::regrole
    from pg_catalog.pg_namespace as n
    where n.nspname = 'tracedb'
    union all
    select c.oid::regclass::text, c.relowner::regrole
    from pg_catalog.pg_class as c
    where c.relnamespace = 'tracedb'::regnamespace
        and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
        and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    union all
    select p.oid::regprocedure::text, p.proowner::regrole
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'tracedb'::regnamespace
) as o(object, owner)
where o.owner <> 'tracedb_owner'::regrole
