-- policy_role_matrix.sql: one permissive policy for each role and command, and none for public.

with policy as (
    select
        p.polrelid::regclass as relation, p.polname, p.polpermissive, p.polroles, r.role, v.command
    from pg_catalog.pg_policy as p
    join pg_catalog.pg_class as c on c.oid = p.polrelid
    cross join unnest(p.polroles) as r(role)
    cross join unnest(
        case p.polcmd when '*' then array['r', 'a', 'w', 'd'] else array[p.polcmd::text] end
    ) as v(command)
    where c.relnamespace = 'tracedb'::regnamespace
)
select distinct
    format('%s on %s', p.polname, p.relation) as object,
    case
        when not p.polpermissive then 'restrictive'
        when p.role = 0 then 'for public'
        else 'for several roles'
    end as detail
from policy as p
where not p.polpermissive or p.role = 0 or cardinality(p.polroles) > 1
union all
select
    p.relation::text,
    format('%s for %s: %s', p.command, p.role::regrole, string_agg(p.polname, ', '))
from policy as p
where p.role <> 0
group by p.relation, p.role, p.command
having count(*) > 1
