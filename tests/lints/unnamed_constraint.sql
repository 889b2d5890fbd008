-- unnamed_constraint.sql: checks are named for their rule, because errors are told by that name.

select
    format('%s on %s', k.conname, k.conrelid::regclass) as object,
    'named by the server' as detail
from pg_catalog.pg_constraint as k
where k.connamespace = 'tracedb'::regnamespace
    and k.contype in ('c', 'x')
    and k.conname ~ '_(check|excl)\d*$'
