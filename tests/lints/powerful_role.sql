-- powerful_role.sql: our roles cannot log in or go round row-level security, and no role that
-- is granted to people inherits the owner's policies.

select
    r.rolname::text as object,
    concat_ws(', ',
        case when r.rolsuper then 'superuser' end,
        case when r.rolbypassrls then 'bypasses row-level security' end,
        case when r.rolcreaterole then 'creates roles' end,
        case when r.rolcreatedb then 'creates databases' end,
        case when r.rolreplication then 'replicates' end,
        case when r.rolcanlogin then 'logs in' end,
        case when r.rolname <> 'tracedb_owner' and pg_has_role(r.oid, 'tracedb_owner', 'member')
            then 'member of the owner' end
    ) as detail
from pg_catalog.pg_roles as r
where r.rolname in (
        'tracedb_owner', 'tracedb_service', 'tracedb_app', 'tracedb_reader', 'tracedb_maintainer'
    )
    and (
        r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolcreatedb or r.rolreplication
        or r.rolcanlogin
        or (r.rolname <> 'tracedb_owner' and pg_has_role(r.oid, 'tracedb_owner', 'member'))
    )
