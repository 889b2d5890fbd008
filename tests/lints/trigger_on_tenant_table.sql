-- trigger_on_tenant_table.sql: tenant tables have no triggers and no rules: a row costs what its
-- insert says, and Citus runs neither.

select format('%s on %s', t.name, c.oid::regclass) as object, t.kind as detail
from pg_catalog.pg_class as c
join (
    select g.tgrelid as relation, g.tgname as name, 'trigger' as kind
    from pg_catalog.pg_trigger as g
    where not g.tgisinternal
    union all
    select r.ev_class, r.rulename, 'rule'
    from pg_catalog.pg_rewrite as r
) as t on t.relation = c.oid
where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
    and exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = c.oid and a.attname = 'tenant_id'
    )
