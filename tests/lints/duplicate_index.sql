-- duplicate_index.sql: no two indexes of a table are the same.

select
    i.indrelid::regclass::text as object,
    string_agg(i.indexrelid::regclass::text, ', ' order by i.indexrelid) as detail
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indexrelid
where c.relnamespace = 'tracedb'::regnamespace
group by
    i.indrelid, c.relam, i.indkey::text, i.indclass::text, i.indcollation::text,
    i.indoption::text, pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)
having count(*) > 1
