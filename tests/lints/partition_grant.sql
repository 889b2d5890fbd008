-- partition_grant.sql: nobody but the owner reaches a partition directly.

select
    c.oid::regclass::text as object,
    format('%s to %s', lower(a.privilege_type), coalesce(r.rolname, 'public')) as detail
from pg_catalog.pg_class as c
cross join lateral aclexplode(c.relacl) as a
left join pg_catalog.pg_roles as r on r.oid = a.grantee
where c.relnamespace = 'tracedb'::regnamespace and c.relispartition and c.relkind in ('r', 'p')
    and a.grantee <> c.relowner
