-- doctor.sql: what `tracedb doctor` asks. A row is a finding; its column says what was found.

-- name: server_version
-- the minor releases of 2026-05, which fix row-level-security and memory-safety bugs
select format('PostgreSQL %%s', current_setting('server_version')) as finding
where current_setting('server_version_num')::integer < case
    current_setting('server_version_num')::integer / 10000
    when 15 then 150018
    when 16 then 160014
    when 17 then 170010
    when 18 then 180004
    else 150018
end;

-- name: vector_extension
select coalesce('vector ' || e.extversion, 'the extension vector is missing') as finding
from (select 'vector' as name) as wanted
left join pg_catalog.pg_extension as e on e.extname = wanted.name
where coalesce(string_to_array(e.extversion, '.')::integer[] < '{0,8,2}', true);

-- name: roles
select format('role %%s is missing', wanted.name) as finding
from unnest(array[
    'tracedb_owner', 'tracedb_service', 'tracedb_app', 'tracedb_reader', 'tracedb_maintainer'
]) as wanted (name)
where to_regrole(wanted.name) is null
union all
select format('role %%s has %%s', r.rolname, concat_ws(', ',
    case when r.rolsuper then 'SUPERUSER' end,
    case when r.rolbypassrls then 'BYPASSRLS' end,
    case when r.rolcanlogin then 'LOGIN' end))
from pg_catalog.pg_roles as r
where r.rolname in (
        'tracedb_owner', 'tracedb_service', 'tracedb_app', 'tracedb_reader', 'tracedb_maintainer'
    )
    and (r.rolsuper or r.rolbypassrls or r.rolcanlogin)
union all
select format('role %%s is a member of tracedb_owner, whose policies show every tenant', r.rolname)
from pg_catalog.pg_roles as r
where r.rolname in ('tracedb_service', 'tracedb_app', 'tracedb_reader', 'tracedb_maintainer')
    and to_regrole('tracedb_owner') is not null
    and pg_catalog.pg_has_role(r.oid, to_regrole('tracedb_owner'), 'member');

-- name: row_security
select format('%%s: row-level security is not %%s', c.relname,
    case when c.relrowsecurity then 'forced' else 'enabled' end) as finding
from pg_catalog.pg_class as c
where c.relnamespace = to_regnamespace('tracedb') and c.relkind in ('r', 'p')
    and c.relname <> all(%(ledger)s)
    and not (c.relrowsecurity and c.relforcerowsecurity)
union all
select format('%%s: no policy', c.relname)
from pg_catalog.pg_class as c
where c.relnamespace = to_regnamespace('tracedb') and c.relkind in ('r', 'p')
    and not c.relispartition and c.relname <> all(%(ledger)s)
    and not exists (select from pg_catalog.pg_policy as p where p.polrelid = c.oid)
order by 1;

-- name: grants
select format('%%s: %%s for %%s', c.relname, string_agg(distinct a.privilege_type, ', '),
    case when a.grantee = 0 then 'public' else a.grantee::regrole::text end) as finding
from pg_catalog.pg_class as c
cross join lateral pg_catalog.aclexplode(c.relacl) as a
where c.relnamespace = to_regnamespace('tracedb') and c.relname <> all(%(ledger)s)
    and a.grantee <> c.relowner
    and (
        c.relispartition or a.grantee = 0
        or a.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER')
    )
group by c.relname, a.grantee
order by 1;

-- name: partitions_ahead
select format('%%s: partitions end %%s', p.parent,
    coalesce(to_char(max(p.to_time) at time zone 'UTC', 'YYYY-MM-DD'), 'before they begin')
) as finding
from tracedb.partitions as p
join tracedb.partition_policies as f using (family)
group by p.parent, f.width
having coalesce(max(p.to_time), '-infinity')
    < date_trunc(f.width, now(), 'UTC') + 2 * ('1 ' || f.width)::interval
order by 1;

-- name: default_partitions
select format('%%s: %%s rows in the default partition', parent, stray_rows) as finding
from tracedb.default_partition_rows()
where stray_rows > 0;

-- name: rollups
select format('%%s changes of tenant %%s are not folded, the oldest since %%s', count(*),
    c.tenant_id, to_char(min(c.created_at) at time zone 'UTC', 'YYYY-MM-DD HH24:MI')) as finding
from tracedb.trace_changes as c
where not c.folded
group by c.tenant_id
having min(c.created_at) < now() - interval '1 hour'
order by 1;

-- name: losses
-- an open writer's missing records are on their way; one unheard of for a day is not coming back
select format('%%s dead letters of tenant %%s', count(*), d.tenant_id) as finding
from tracedb.dead_letters as d
group by d.tenant_id
union all
select format('writer %%s of tenant %%s: %%s missing, %%s dropped',
    w.writer_id, w.tenant_id, l.missing, l.dropped)
from tracedb.ingest_writers as w
cross join lateral (
    select
        case when w.closed or w.last_seen_at < now() - interval '1 day'
            then w.highest_no - tracedb.number_count(w.settled) else 0
        end as missing,
        tracedb.number_count(w.dropped) as dropped
) as l
where w.last_seen_at > now() - interval '30 days' and l.missing + l.dropped > 0
order by 1;

-- name: indexes
select format('%%s is invalid', i.indexrelid::regclass) as finding
from pg_catalog.pg_index as i
join pg_catalog.pg_class as c on c.oid = i.indexrelid
where c.relnamespace = to_regnamespace('tracedb') and not (i.indisvalid and i.indisready)
order by 1;
