-- policy_with_subselect.sql: policies call current_tenant_id() directly, because Citus cannot
-- distribute a policy with a sub-select.

select
    format('%s on %s', p.polname, p.polrelid::regclass) as object,
    coalesce(q.condition, '') as detail
from pg_catalog.pg_policy as p
join pg_catalog.pg_class as c on c.oid = p.polrelid
cross join lateral (
    select concat_ws(
        ' / ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
    ) as condition
) as q
where c.relnamespace = 'tracedb'::regnamespace and q.condition ~* '\mselect\M'
