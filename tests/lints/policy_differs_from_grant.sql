-- policy_differs_from_grant.sql: a command has a policy for a role where it is granted to it,
-- and nowhere else.

with relation as (
    select c.oid, c.relacl, c.relowner
    from pg_catalog.pg_class as c
    where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
        and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
),
granted as (
    select r.oid as relation, a.grantee as role, a.privilege_type as command
    from relation as r
    cross join lateral aclexplode(r.relacl) as a
    where a.grantee <> r.relowner
        and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    union
    -- or for some columns
    select r.oid, a.grantee, a.privilege_type
    from relation as r
    join pg_catalog.pg_attribute as c on c.attrelid = r.oid
    cross join lateral aclexplode(c.attacl) as a
),
ruled as (
    select p.polrelid as relation, o.role, v.command
    from pg_catalog.pg_policy as p
    join relation as r on r.oid = p.polrelid
    cross join unnest(p.polroles) as o(role)
    cross join unnest(case p.polcmd
        when 'r' then array['SELECT']
        when 'a' then array['INSERT']
        when 'w' then array['UPDATE']
        when 'd' then array['DELETE']
        else array['SELECT', 'INSERT', 'UPDATE', 'DELETE']
    end) as v(command)
    where o.role <> r.relowner
)
select
    relation::regclass::text as object,
    format('%s for %s: %s', lower(command), role::regrole,
        case when r is null then 'granted without a policy' else 'a policy without a grant' end
    ) as detail
from granted as g
full join ruled as r using (relation, role, command)
where g is null or r is null
