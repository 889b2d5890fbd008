-- policy_always_true.sql: only the owner and the trusted roles have policies without a condition.

select
    format('%s on %s', p.polname, p.polrelid::regclass) as object,
    format('always true for %s', r.rolname) as detail
from pg_catalog.pg_policy as p
join pg_catalog.pg_class as c on c.oid = p.polrelid
cross join unnest(p.polroles) as o(role)
left join pg_catalog.pg_roles as r on r.oid = o.role
where c.relnamespace = 'tracedb'::regnamespace
    and 'true' in (pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    -- reviewed: they work for all tenants, and BYPASSRLS cannot be had on managed servers
    and coalesce(r.rolname, 'public')
        not in ('tracedb_owner', 'tracedb_service', 'tracedb_maintainer')
