-- constraint_without_reason.sql: a check has a comment "field, field: rule" naming columns of its
-- table; it is what the caller gets to read.

select
    format('%s on %s', k.conname, k.conrelid::regclass) as object,
    coalesce(o.comment, 'no comment') as detail
from pg_catalog.pg_constraint as k
join pg_catalog.pg_class as c on c.oid = k.conrelid
cross join lateral (select obj_description(k.oid, 'pg_constraint') as comment) as o
where k.connamespace = 'tracedb'::regnamespace and k.contype = 'c' and not c.relispartition
    and (
        o.comment is null
        or o.comment !~ '^[a-z0-9_]+(, [a-z0-9_]+)*: .'
        or exists (
            select from regexp_split_to_table(split_part(o.comment, ':', 1), ', ') as f(field)
            where not exists (
                select from pg_catalog.pg_attribute as a
                where a.attrelid = c.oid and a.attname = f.field and a.attnum > 0
            )
        )
    )
