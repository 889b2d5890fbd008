-- constraint_name_twice.sql: a check's name means one rule in the whole schema, because ingest
-- finds the reason by it.

select k.conname::text as object, string_agg(k.conrelid::regclass::text, ', ') as detail
from pg_catalog.pg_constraint as k
join pg_catalog.pg_class as c on c.oid = k.conrelid
where k.connamespace = 'tracedb'::regnamespace and k.contype = 'c' and not c.relispartition
group by k.conname
having count(*) > 1
