-- virtual_column.sql: generated columns are stored: Citus and older servers know no others.

select format('%s.%s', c.oid::regclass, a.attname) as object, 'generated, not stored' as detail
from pg_catalog.pg_attribute as a
join pg_catalog.pg_class as c on c.oid = a.attrelid
where c.relnamespace = 'tracedb'::regnamespace and a.attgenerated not in ('', 's')
