-- 620_operations.sql: what an operator watches: sizes, growth, indexes, delays, losses.

-- Sizes and delays of all tenants are the maintainer's and the service's business: they would tell
-- one tenant how much the others do. What shows a tenant_id is open to every role, under row-level
-- security. Sizes come from the catalog and from the statistics that the server keeps, so that no
-- view here reads a table whole; row counts are its estimates.

set role tracedb_owner;

create or replace function tracedb.estimated_rows(relation regclass)
returns bigint
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        -- The counter begins anew after a crash, reltuples is as of the last vacuum or analyze.
        select greatest(pg_stat_get_live_tuples(c.oid), c.reltuples::bigint, 0)
        from pg_class as c
        where c.oid = relation
    );
end $$;

comment on function tracedb.estimated_rows(regclass) is
    'About how many rows a table or partition has: the larger of what the server has counted and '
    'what its last vacuum or analyze found.';

create or replace view tracedb.table_sizes with (security_invoker = true) as
select
    s.*,
    s.table_bytes + s.index_bytes as total_bytes,
    (s.table_bytes + s.index_bytes)::double precision / nullif(s.row_estimate, 0) as bytes_per_row
from (
    select
        parent.relname::text as table_name,
        count(*) filter (where c.relispartition) as partition_count,
        sum(tracedb.estimated_rows(c.oid))::bigint as row_estimate,
        sum(pg_catalog.pg_stat_get_dead_tuples(c.oid))::bigint as dead_rows,
        sum(pg_catalog.pg_table_size(c.oid))::bigint as table_bytes,
        sum(pg_catalog.pg_indexes_size(c.oid))::bigint as index_bytes
    from pg_catalog.pg_class as c
    join pg_catalog.pg_class as parent
        on parent.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid)
    where c.relnamespace = 'tracedb'::regnamespace and c.relkind = 'r'
        and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
    group by parent.relname
) as s;

comment on view tracedb.table_sizes is
    'A table a row, a parent with all its partitions: about how many rows it has, how many dead '
    'ones wait for vacuum, and its bytes on disk (table_bytes with TOAST, index_bytes, both).';

create or replace view tracedb.index_usage with (security_invoker = true) as
select
    table_.relname::text as table_name,
    index_.relname::text as index_name,
    bool_or(i.indisunique) as is_unique,
    sum(pg_catalog.pg_stat_get_numscans(i.indexrelid))::bigint as scan_count,
    sum(pg_catalog.pg_stat_get_tuples_returned(i.indexrelid))::bigint as entries_read,
    sum(pg_catalog.pg_relation_size(i.indexrelid))::bigint as index_bytes,
    sum(pg_catalog.pg_stat_get_numscans(i.indexrelid)) = 0 and not bool_or(i.indisunique)
        as is_unused,
    max(d.stats_reset) as counted_since
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indexrelid and c.relkind = 'i'
join pg_catalog.pg_class as index_
    on index_.oid = coalesce(pg_catalog.pg_partition_root(i.indexrelid), i.indexrelid)
join pg_catalog.pg_class as table_
    on table_.oid = coalesce(pg_catalog.pg_partition_root(i.indrelid), i.indrelid)
left join pg_catalog.pg_stat_database as d on d.datname = current_database()
where c.relnamespace = 'tracedb'::regnamespace
    and table_.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'
group by table_.relname, index_.relname;

comment on view tracedb.index_usage is
    'An index a row, that of a parent with those of all its partitions: how often it was scanned '
    'and how many of its entries were read since counted_since (null: since the database was '
    'made), and its bytes. is_unused: never scanned, and not there to keep rows unique.';

create or replace view tracedb.partition_sizes with (security_invoker = true) as
select
    p.family,
    p.parent,
    p.partition,
    p.is_default,
    p.from_time,
    p.to_time,
    now() - p.from_time as age,
    tracedb.estimated_rows(c.oid) as row_estimate,
    pg_catalog.pg_stat_get_dead_tuples(c.oid) as dead_rows,
    pg_catalog.pg_table_size(c.oid) as table_bytes,
    pg_catalog.pg_indexes_size(c.oid) as index_bytes,
    pg_catalog.pg_total_relation_size(c.oid) as total_bytes
from tracedb.partitions as p
join pg_catalog.pg_class as c
    on c.relname = p.partition and c.relnamespace = 'tracedb'::regnamespace;

comment on view tracedb.partition_sizes is
    'A partition a row: the time it covers, how long ago that began (negative: it is ahead of '
    'need, null: the default one), about how many rows it has and its bytes on disk.';

create or replace view tracedb.partition_headroom with (security_invoker = true) as
select
    p.family,
    p.parent,
    count(*) as partition_count,
    max(p.to_time) as covered_until,
    coalesce(extract(epoch from max(p.to_time) - now()), 0)::double precision as headroom_seconds
from tracedb.partitions as p
group by p.family, p.parent;

comment on view tracedb.partition_headroom is
    'A partitioned table a row: until when there are partitions, and how many seconds that is from '
    'now. At 0 rows go to the default partition.';

create or replace view tracedb.trace_storage with (security_invoker = true) as
select
    p.from_time,
    p.to_time,
    sum(p.row_estimate) filter (where p.parent = 'execution_traces')::bigint as trace_count,
    sum(p.total_bytes)::bigint as total_bytes,
    sum(p.total_bytes)::double precision
        / nullif(sum(p.row_estimate) filter (where p.parent = 'execution_traces'), 0)
        as bytes_per_trace
from tracedb.partition_sizes as p
where p.family = 'traces' and not p.is_default and p.from_time < now()
group by p.from_time, p.to_time;

comment on view tracedb.trace_storage is
    'A period of partitions a row: about how many traces began in it, nested ones too, and the '
    'bytes of these with all their parts, texts and indexes; in all, and for a trace.';

create or replace view tracedb.storage_forecast with (security_invoker = true) as
with recent as (
    select
        p.*,
        -- from the first one with rows in it on: a new database was not slow before
        min(p.from_time) filter (where p.row_estimate > 0) over (partition by p.parent) as since
    from tracedb.partition_sizes as p
    where not p.is_default and p.from_time < now() and p.to_time > now() - interval '28 days'
),
growing as materialized (
    select
        p.parent,
        sum(p.total_bytes) / d.days as bytes_per_day,
        sum(p.row_estimate) / d.days as rows_per_day
    from recent as p
    cross join lateral (select extract(epoch from now() - p.since) / 86400 as days) as d
    where p.from_time >= p.since
    group by p.parent, d.days
),
sizes as materialized (select s.* from tracedb.table_sizes as s),
-- as many bytes of the tables without partitions for a trace as so far
per_trace as (
    select g.rows_per_day / nullif(s.row_estimate, 0) as share_per_day
    from growing as g
    join sizes as s on s.table_name = g.parent
    where g.parent = 'execution_traces'
)
select
    s.table_name,
    s.total_bytes,
    d.bytes_per_day::double precision as bytes_per_day,
    (s.total_bytes + 30 * d.bytes_per_day)::bigint as bytes_in_30_days,
    (s.total_bytes + 90 * d.bytes_per_day)::bigint as bytes_in_90_days
from sizes as s
left join growing as g on g.parent = s.table_name
left join per_trace as t on s.partition_count = 0
cross join lateral (
    select coalesce(g.bytes_per_day, s.total_bytes * t.share_per_day, 0) as bytes_per_day
) as d;

comment on view tracedb.storage_forecast is
    'A table a row: its bytes on disk now, how many come a day, and how many it has in 30 and in '
    '90 days if that goes on and nothing is removed. Bytes a day are those of the partitions of '
    'the last 28 days, the current one included, over the time since the first of them that has '
    'rows began; a table without partitions is taken to grow as the number of traces does.';

create or replace function tracedb.table_bloat(exact boolean default false)
returns table (
    table_name text, table_bytes bigint, dead_rows bigint, dead_bytes bigint, free_bytes bigint,
    bloat_fraction double precision, method text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    scan constant text := (
        select format('%I.pgstattuple_approx', n.nspname)
        from pg_extension as e
        join pg_namespace as n on n.oid = e.extnamespace
        join pg_proc as p on p.pronamespace = n.oid and p.proname = 'pgstattuple_approx'
        where e.extname = 'pgstattuple' and exact
            and has_schema_privilege(n.oid, 'usage') and has_function_privilege(p.oid, 'execute')
    );
begin
    return query execute format(
        'select parent.relname::text, sum(b.size)::bigint, sum(b.dead_rows)::bigint, '
        'coalesce(sum(b.dead_bytes), 0)::bigint, sum(b.free_bytes)::bigint, '
        '(coalesce(sum(b.dead_bytes), 0) + coalesce(sum(b.free_bytes), 0))::double precision '
        '/ nullif(sum(b.size), 0), %L '
        'from pg_class as c '
        'join pg_class as parent on parent.oid = coalesce(pg_partition_root(c.oid), c.oid) '
        'cross join lateral (%s) as b (size, dead_rows, dead_bytes, free_bytes) '
        'where c.relnamespace = %L::regnamespace and c.relkind = ''r'' '
        'and c.relname !~ ''^(_yoyo_|yoyo_lock$|_migration_)'' '
        'group by parent.relname order by 1',
        case when scan is null then 'statistics' else 'pgstattuple' end,
        case
            when scan is null then
                'select pg_relation_size(c.oid), pg_stat_get_dead_tuples(c.oid), '
                'pg_relation_size(c.oid) * pg_stat_get_dead_tuples(c.oid) / nullif('
                'tracedb.estimated_rows(c.oid) + pg_stat_get_dead_tuples(c.oid), 0), null::bigint'
            else
                'select t.table_len, t.dead_tuple_count, t.dead_tuple_len, t.approx_free_space '
                'from ' || scan || '(c.oid) as t'
        end,
        'tracedb');
end $$;

comment on function tracedb.table_bloat(boolean) is
    'A table a row, a parent with all its partitions: how much of its bytes (without indexes and '
    'TOAST) is not in use. Method "statistics": dead_bytes = bytes * dead rows / (live + dead '
    'rows) as the server counts them; free space is not known. Method "pgstattuple", with exact, '
    'where the extension is installed and the role may call it: what pgstattuple_approx finds, '
    'which reads every page that vacuum has not left clean.';

create or replace function tracedb.ingest_lag(
    since timestamptz default now() - interval '1 hour'
)
returns table (
    table_name text, tenant_id uuid, row_count bigint, newest_event_at timestamptz,
    newest_row_at timestamptz, lag_seconds double precision,
    p50_delay_seconds double precision, p95_delay_seconds double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    parent text;
    columns text[];
    happened text;
begin
    for parent in
        select unnest(p.parents) from tracedb.partition_policies as p order by 1
    loop
        columns := array(
            select a.attname::text
            from pg_attribute as a
            where a.attrelid = ('tracedb.' || quote_ident(parent))::regclass
        );
        happened := case
            when 'started_at' = any(columns) then 'started_at'
            when 'recorded_at' = any(columns) then 'recorded_at'
            when 'occurred_at' = any(columns) then 'occurred_at'
        end;
        continue when happened is null;  -- derived from the others
        -- From tenant to tenant by the key, then the newest rows of each.
        return query execute format(
            'with recursive held (tenant_id) as ( '
            '(select t.tenant_id from tracedb.%1$I as t where t.%2$I >= $1 '
            'order by t.tenant_id, t.%2$I limit 1) union all '
            'select (select t.tenant_id from tracedb.%1$I as t '
            'where t.tenant_id > h.tenant_id and t.%2$I >= $1 '
            'order by t.tenant_id, t.%2$I limit 1) '
            'from held as h where h.tenant_id is not null) '
            'select %1$L::text, h.tenant_id, r.* from held as h cross join lateral ( '
            'select count(*), max(t.%3$I), max(t.created_at), '
            'extract(epoch from now() - max(t.created_at))::double precision, '
            'percentile_cont(0.5) within group (order by d.seconds), '
            'percentile_cont(0.95) within group (order by d.seconds) '
            'from tracedb.%1$I as t '
            'cross join lateral (select greatest(extract(epoch from t.created_at - %4$s), 0)'
            '::double precision as seconds) as d '
            'where t.tenant_id = h.tenant_id and t.%2$I >= $1) as r '
            'where h.tenant_id is not null',
            parent, tracedb.partition_key(parent), happened,
            case
                when 'ended_at' = any(columns) then format(
                    'case when t.ended_at <= t.created_at then t.ended_at else t.%I end', happened)
                else format('t.%I', happened)
            end)
        using tracedb.uuid_floor(since);
    end loop;
end $$;

comment on function tracedb.ingest_lag(timestamptz) is
    'How fresh the rows are, a table and tenant a row, of those whose ids are not older than since '
    '(nothing where there are none): the newest event, the newest row and how many seconds ago it '
    'was stored, and how long rows take from the end of what they record (the start, if they were '
    'stored before it ended) until they are stored.';

create or replace view tracedb.writer_losses with (security_invoker = true) as
select
    w.tenant_id,
    w.service,
    count(*) as writer_count,
    count(*) filter (where l.is_living) as living_count,
    sum(w.highest_no)::bigint as accepted,
    sum(w.stored)::bigint as stored,
    sum(w.dead)::bigint as dead,
    sum(w.requeued)::bigint as requeued,
    sum(tracedb.number_count(w.dropped))::bigint as dropped,
    coalesce(sum(l.missing) filter (where l.is_living), 0)::bigint as pending,
    coalesce(sum(l.missing) filter (where not l.is_living), 0)::bigint as lost,
    max(w.last_seen_at) as last_seen_at
from tracedb.ingest_writers as w
cross join lateral (
    select
        not w.closed and w.last_seen_at > now() - interval '1 day' as is_living,
        w.highest_no - tracedb.number_count(w.settled) as missing
) as l
group by w.tenant_id, w.service;

comment on view tracedb.writer_losses is
    'A service a row (null: writers that did not say): what became of the records its writers '
    'accepted = stored + dead + dropped + pending + lost. Missing records are pending while their '
    'writer lives (it is open and was heard of within a day), and lost otherwise, unless its spool '
    'still waits. loss_report tells writer by writer.';

create or replace view tracedb.change_backlog with (security_invoker = true) as
select
    c.tenant_id,
    count(*) as change_count,
    sum(cardinality(c.trace_ids))::bigint as trace_count,
    min(c.created_at) as oldest_at,
    max(c.created_at) as newest_at
from tracedb.trace_changes as c
where not c.folded
group by c.tenant_id;

comment on view tracedb.change_backlog is
    'A tenant a row: the changes that fold_usage has yet to fold, how many traces they name, and '
    'when the first and the last of them were written.';

reset role;
