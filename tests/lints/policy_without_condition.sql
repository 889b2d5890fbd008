-- policy_without_condition.sql: a policy says "using" for what it reads, "with check" for what
-- it writes.

select
    format('%s on %s', p.polname, p.polrelid::regclass) as object,
    case when p.polqual is null then 'no using' else 'no with check' end as detail
from pg_catalog.pg_policy as p
join pg_catalog.pg_class as c on c.oid = p.polrelid
where c.relnamespace = 'tracedb'::regnamespace
    and (
        (p.polcmd <> 'a' and p.polqual is null)
        or (p.polcmd in ('a', 'w', '*') and p.polwithcheck is null)
    )
