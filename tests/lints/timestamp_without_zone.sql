-- timestamp_without_zone.sql: every time is a timestamptz.

select
    format('%s.%s', c.oid::regclass, a.attname) as object,
    format_type(a.atttypid, a.atttypmod) as detail
from pg_catalog.pg_attribute as a
join pg_catalog.pg_class as c on c.oid = a.attrelid
where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'c')
    and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    and a.attnum > 0 and not a.attisdropped
    and a.atttypid in ('timestamp'::regtype, 'time'::regtype, 'timetz'::regtype)
