-- public_grant.sql: nothing in the schema is granted to everybody.

select g.object, lower(a.privilege_type) as detail
from (
    select 'schema tracedb' as object, n.nspacl as acl
    from pg_catalog.pg_namespace as n
    where n.nspname = 'tracedb'
    union all
    select c.oid::regclass::text, c.relacl
    from pg_catalog.pg_class as c
    where c.relnamespace = 'tracedb'::regnamespace
    union all
    select c.oid::regclass || '.' || a.attname, a.attacl
    from pg_catalog.pg_attribute as a
    join pg_catalog.pg_class as c on c.oid = a.attrelid
    where c.relnamespace = 'tracedb'::regnamespace
    union all
    -- without any grant a function is everybody's
    select p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'tracedb'::regnamespace
) as g(object, acl)
cross join lateral aclexplode(g.acl) as a
where a.grantee = 0
