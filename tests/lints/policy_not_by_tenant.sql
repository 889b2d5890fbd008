-- policy_not_by_tenant.sql: the policies of tenant roles compare the tenant and do nothing else.

select
    format('%s on %s', p.polname, p.polrelid::regclass) as object,
    q.condition as detail
from pg_catalog.pg_policy as p
join pg_catalog.pg_class as c on c.oid = p.polrelid
cross join lateral (values
    (pg_get_expr(p.polqual, p.polrelid)), (pg_get_expr(p.polwithcheck, p.polrelid))
) as q(condition)
where c.relnamespace = 'tracedb'::regnamespace
    and p.polroles && array['tracedb_app', 'tracedb_reader']::regrole[]::oid[]
    and q.condition <> '(tenant_id = tracedb.current_tenant_id())'
    -- reviewed: the general price list is for all to read
    and not (
        p.polrelid = coalesce(to_regclass('tracedb.model_prices'), 0) and p.polcmd = 'r'
        and q.condition = '((tenant_id IS NULL) OR (tenant_id = tracedb.current_tenant_id()))'
    )
