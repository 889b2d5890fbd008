-- unclassified_column.sql: subject_tables says of every table of tenants whether it holds something
-- of a person, and of every column that can hold text; and of nothing that is not there.

with columns as (
    select c.relname::text as table_name, a.attname::text as column_name, a.atttypid
    from pg_catalog.pg_class as c
    join pg_catalog.pg_attribute as a
        on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
        and not c.relispartition
        and exists (
            select from pg_catalog.pg_attribute as t
            where t.attrelid = c.oid and t.attname = 'tenant_id'
        )
),
textual as (
    select c.table_name, c.column_name
    from columns as c
    join pg_catalog.pg_type as t on t.oid = c.atttypid
    -- arrays, strings, multiranges, and what else is not a number, a time or a uuid
    where t.typcategory in ('A', 'S', 'R', 'V')
        or t.typcategory = 'U' and t.typname not in ('uuid', 'xid8')
),
classified as (
    select s.table_name, c.column_name
    from tracedb.subject_tables() as s
    cross join unnest(s.personal || s.impersonal) as c(column_name)
),
named as (
    select s.table_name, c.column_name
    from tracedb.subject_tables() as s
    cross join unnest(
        s.personal || s.impersonal || array[s.trace_column, s.user_column, s.record_column]
    ) as c(column_name)
    where c.column_name is not null
)
select format('tracedb.%I', c.table_name) as object, 'not in subject_tables' as detail
from columns as c
where c.table_name not in (select s.table_name from tracedb.subject_tables() as s)
union
select format('tracedb.%I.%I', t.table_name, t.column_name), 'personal or not?'
from textual as t
where not exists (
    select from classified as c
    where c.table_name = t.table_name and c.column_name = t.column_name
)
union
select format('tracedb.%I.%I', n.table_name, n.column_name), 'there is no such column'
from named as n
where not exists (
    select from columns as c
    where c.table_name = n.table_name and c.column_name = n.column_name
)
union
select format('tracedb.%I.%I', c.table_name, c.column_name), 'personal and impersonal'
from classified as c
group by c.table_name, c.column_name
having count(*) > 1
