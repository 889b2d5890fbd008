-- 625_advice.sql: what vacuum, analyze or a reindex would do good.

set role tracedb_owner;

create or replace function tracedb.maintenance_advice(min_bytes bigint default 67108864)
returns table (object text, advice text, reason text, command text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    with tables as (
        select
            c.oid, c.relname::text as name, tracedb.estimated_rows(c.oid) as live,
            pg_stat_get_dead_tuples(c.oid) as dead, age(c.relfrozenxid) as age,
            pg_stat_get_mod_since_analyze(c.oid) as modified, pg_relation_size(c.oid) as bytes
        from pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind = 'r'
            and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'
    ),
    indexes as (
        select
            x.oid, x.relname::text as name, t.name as table_name, i.indisvalid,
            pg_relation_size(x.oid) as bytes, t.bytes as table_bytes
        from tables as t
        join pg_index as i on i.indrelid = t.oid
        join pg_class as x on x.oid = i.indexrelid
    )
    select t.name, 'vacuum', format('%s dead rows beside %s', t.dead, t.live),
        format('vacuum (analyze) tracedb.%I', t.name)
    from tables as t
    where t.bytes >= min_bytes and t.dead > 0.2 * t.live
    union all
    select t.name, 'freeze', format('its oldest row is %s transactions old', t.age),
        format('vacuum (freeze) tracedb.%I', t.name)
    from tables as t
    where t.age > 0.9 * current_setting('autovacuum_freeze_max_age')::bigint
    union all
    select t.name, 'analyze', format('%s rows changed of %s', t.modified, t.live),
        format('analyze tracedb.%I', t.name)
    from tables as t
    where t.bytes >= min_bytes and t.modified > 0.2 * t.live
    union all
    select x.name, 'reindex', 'it is not valid: its building was broken off',
        format('reindex index concurrently tracedb.%I', x.name)
    from indexes as x
    where not x.indisvalid
    union all
    select x.name, 'reindex',
        format('%s, more than the %s of %s', pg_size_pretty(x.bytes),
            pg_size_pretty(x.table_bytes), x.table_name),
        format('reindex index concurrently tracedb.%I', x.name)
    from indexes as x
    where x.indisvalid and x.bytes >= min_bytes and x.bytes > x.table_bytes
    order by 1, 2;
end $$;

comment on function tracedb.maintenance_advice(bigint) is
    'What maintenance would do good, each with its command: tables of at least min_bytes with many '
    'dead rows or old statistics, indexes larger than their table, invalid indexes, and tables '
    'that near the age at which the server freezes them by force. From the server''s statistics; '
    'nothing is read whole.';

reset role;
