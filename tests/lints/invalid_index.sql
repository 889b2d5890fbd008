-- invalid_index.sql: no index is left over from a build that broke off.

select i.indexrelid::regclass::text as object, 'invalid' as detail
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indexrelid
where c.relnamespace = 'tracedb'::regnamespace
    and not (i.indisvalid and i.indisready and i.indislive)
