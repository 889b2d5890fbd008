-- missing_comment.sql: the schema and every table, view, function, aggregate and type says what
-- it is.

select o.object, 'no comment' as detail
from (
    select 'schema tracedb' as object, obj_description('tracedb'::regnamespace, 'pg_namespace')
    union all
    select c.oid::regclass::text, obj_description(c.oid, 'pg_class')
    from pg_catalog.pg_class as c
    where c.relnamespace = 'tracedb'::regnamespace
        and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and not c.relispartition
        and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    union all
    select p.oid::regprocedure::text, obj_description(p.oid, 'pg_proc')
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'tracedb'::regnamespace
    union all
    select format_type(t.oid, null), obj_description(t.oid, 'pg_type')
    from pg_catalog.pg_type as t
    left join pg_catalog.pg_class as c on c.oid = t.typrelid
    where t.typnamespace = 'tracedb'::regnamespace
        and (t.typtype in ('d', 'e', 'r') or c.relkind = 'c')
) as o(object, comment)
where o.comment is null
