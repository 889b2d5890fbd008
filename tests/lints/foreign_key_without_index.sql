-- foreign_key_without_index.sql: the columns of a foreign key lead an index, or deleting the
-- target reads the whole table.

select format('%s on %s', k.conname, k.conrelid::regclass) as object, 'no index' as detail
from pg_catalog.pg_constraint as k
where k.connamespace = 'tracedb'::regnamespace and k.contype = 'f'
    and not exists (
        select from pg_catalog.pg_index as i
        where i.indrelid = k.conrelid
            and (i.indkey::smallint[])[0:cardinality(k.conkey) - 1] @> k.conkey
    )
