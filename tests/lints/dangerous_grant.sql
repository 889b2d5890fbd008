-- dangerous_grant.sql: nobody is granted what ignores row-level security (truncate, references,
-- trigger), takes locks at will (maintain), or can be passed on.

select
    c.oid::regclass::text as object,
    format('%s to %s%s', lower(a.privilege_type), coalesce(r.rolname, 'public'),
        case when a.is_grantable then ' with grant option' end) as detail
from pg_catalog.pg_class as c
cross join lateral aclexplode(c.relacl) as a
left join pg_catalog.pg_roles as r on r.oid = a.grantee
where c.relnamespace = 'tracedb'::regnamespace and a.grantee <> c.relowner
    and (
        a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
        or a.is_grantable
    )
