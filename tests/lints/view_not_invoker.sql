-- view_not_invoker.sql: views read with their caller's rights; a materialized one never does.

select c.oid::regclass::text as object, 'reads with its owner''s rights' as detail
from pg_catalog.pg_class as c
where c.relnamespace = 'tracedb'::regnamespace
    and c.relkind in ('v', 'm')
    and not coalesce(c.reloptions @> array['security_invoker=true'], false)
