-- enum.sql: closed sets are text with a check; an enum's values can never be taken away again,
-- and its comparison uses no index under row-level security.

select format_type(t.oid, null) as object, 'an enum' as detail
from pg_catalog.pg_type as t
where t.typnamespace = 'tracedb'::regnamespace and t.typtype = 'e'
