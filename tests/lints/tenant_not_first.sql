-- tenant_not_first.sql: tenant_id leads every key and index of a table that has it; a key without
-- it tells one tenant about another's rows, and lets it take their ids.

select i.indexrelid::regclass::text as object, pg_get_indexdef(i.indexrelid) as detail
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indrelid
join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = 'tenant_id'
where c.relnamespace = 'tracedb'::regnamespace
    and i.indkey[0] <> a.attnum
    -- reviewed: an external_id names one tenant, and only trusted roles insert
    and i.indexrelid <> coalesce(to_regclass('tracedb.tenants_external_id_key'), 0)
    -- reviewed: prices are of all tenants or of one; only trusted roles insert
    and i.indexrelid <> coalesce(to_regclass('tracedb.model_prices_pkey'), 0)
    -- reviewed: of all tenants or of one; no tenant's role reads or writes them
    and i.indrelid <> all (array[
        to_regclass('tracedb.retention_policies'), to_regclass('tracedb.archives'),
        to_regclass('tracedb.retention_receipts')
    ]::oid[])
