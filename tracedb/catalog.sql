-- catalog.sql: every object of schema tracedb as (object, definition), for tracedb/verify.py.
--
-- Left out: partitions (they come and go; their parents speak for them) and the migration ledger.
-- Names are printed qualified because the caller sets an empty search path.
with space as (
    select n.oid, n.nspowner, n.nspacl
    from pg_namespace n
    where n.nspname = 'tracedb'
),

relation as (
    select c.*, c.oid::regclass::text as name
    from pg_class c
    join space on space.oid = c.relnamespace
    where
        c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
        and not c.relispartition
        and c.relname <> all (%(ledger)s)
),

attribute as (
    -- the place among the columns that were not dropped: what `select *` shows
    select
        a.*,
        r.name,
        r.relkind,
        row_number() over (partition by r.oid order by a.attnum) as place
    from pg_attribute a
    join relation r on r.oid = a.attrelid
    where a.attnum > 0 and not a.attisdropped
),

routine as (
    select p.*, p.oid::regprocedure::text as name
    from pg_proc p
    join space on space.oid = p.pronamespace
),

-- no row of pg_type that only shadows a table, and no array
named_type as (
    select t.*, format_type(t.oid, null) as name
    from pg_type t
    join space on space.oid = t.typnamespace
    where
        t.typtype in ('d', 'e', 'r')
        or t.typrelid in (select c.oid from pg_class c where c.relkind = 'c')
),

-- an absent acl means the built-in default, so both are spelled out
acl (object, acl) as (
    select 'schema tracedb', coalesce(s.nspacl, acldefault('n', s.nspowner)) from space s
    union all
    select
        r.name,
        coalesce(
            r.relacl, acldefault(case r.relkind when 'S' then 's' else 'r' end::"char", r.relowner)
        )
    from relation r
    union all
    select a.name || '.' || a.attname, a.attacl from attribute a where a.attacl is not null
    union all
    select 'function ' || p.name, coalesce(p.proacl, acldefault('f', p.proowner)) from routine p
    union all
    select 'type ' || t.name, coalesce(t.typacl, acldefault('T', t.typowner)) from named_type t
    union all
    select
        format('default for %%s, kind %%s', pg_get_userbyid(d.defaclrole), d.defaclobjtype),
        d.defaclacl
    from pg_default_acl d
    join space on space.oid = d.defaclnamespace
)

select 'schema tracedb' as object, 'owner ' || pg_get_userbyid(s.nspowner) as definition
from space s

union all
select
    case r.relkind
        when 'v' then 'view '
        when 'm' then 'materialized view '
        when 'S' then 'sequence '
        when 'f' then 'foreign table '
        else 'table '
    end || r.name,
    concat_ws(
        ', ',
        'owner ' || pg_get_userbyid(r.relowner),
        case when r.relkind = 'p' then 'partition by ' || pg_get_partkeydef(r.oid) end,
        case when r.relrowsecurity then 'row security' end,
        case when r.relforcerowsecurity then 'forced' end,
        case r.relpersistence when 'u' then 'unlogged' end,
        (
            select 'access method ' || m.amname
            from pg_am m
            where m.oid = r.relam and m.amname <> 'heap'
        ),
        array_to_string(r.reloptions, ', ')
    )
from relation r

union all
select 'definition of ' || r.name, pg_get_viewdef(r.oid)
from relation r
where r.relkind in ('v', 'm')

union all
select
    'sequence of ' || r.name,
    format(
        '%%s start %%s by %%s from %%s to %%s cache %%s cycle %%s',
        q.seqtypid::regtype, q.seqstart, q.seqincrement, q.seqmin, q.seqmax, q.seqcache, q.seqcycle
    )
from relation r
join pg_sequence q on q.seqrelid = r.oid

union all
select
    'column ' || a.name || '.' || a.attname,
    concat_ws(
        ' ',
        '#' || a.place,
        format_type(a.atttypid, a.atttypmod),
        (
            select 'collate ' || l.collname
            from pg_collation l
            join pg_type t on t.oid = a.atttypid
            where l.oid = a.attcollation and a.attcollation <> t.typcollation
        ),
        case when a.attnotnull then 'not null' end,
        case a.attidentity when 'a' then 'identity always' when 'd' then 'identity by default' end,
        case a.attgenerated when 's' then 'stored' when 'v' then 'virtual' end,
        'default ' || pg_get_expr(d.adbin, d.adrelid),
        (
            select 'storage ' || a.attstorage::text
            from pg_type t
            where t.oid = a.atttypid and a.attstorage <> t.typstorage
        ),
        'compression ' || nullif(a.attcompression::text, '')
    )
from attribute a
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where a.relkind <> 'S'

union all
-- not-null constraints are catalog rows on PostgreSQL 18 only; the column says it everywhere
select
    'constraint ' || k.conname || ' on ' || coalesce(r.name, t.name),
    pg_get_constraintdef(k.oid) || case when k.convalidated then '' else ' [not validated]' end
from pg_constraint k
left join relation r on r.oid = k.conrelid
left join named_type t on t.oid = k.contypid
where k.contype <> 'n' and (r.oid is not null or t.oid is not null)

union all
select
    'index ' || i.indexrelid::regclass,
    pg_get_indexdef(i.indexrelid) || case when i.indisvalid then '' else ' [invalid]' end
    || case when i.indisclustered then ' [clustered]' else '' end
from pg_index i
join relation r on r.oid = i.indrelid
join pg_class c on c.oid = i.indexrelid
-- not those that ensure_pattern_indexes builds for large tenants
where c.relname !~ '^(pattern_embeddings_hnsw|success_patterns_words)_[0-9a-f]{16}$'

union all
select 'statistics ' || s.stxname, pg_get_statisticsobjdef(s.oid)
from pg_statistic_ext s
join relation r on r.oid = s.stxrelid

union all
select
    'trigger ' || t.tgname || ' on ' || r.name,
    pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
from pg_trigger t
join relation r on r.oid = t.tgrelid
where not t.tgisinternal

union all
select 'rule ' || w.rulename || ' on ' || r.name, pg_get_ruledef(w.oid)
from pg_rewrite w
join relation r on r.oid = w.ev_class
where w.rulename <> '_RETURN'

union all
select
    'function ' || p.name,
    'owner ' || pg_get_userbyid(p.proowner) || case
        when p.prokind <> 'a' then E'\n' || pg_get_functiondef(p.oid)
        else (
            select format(
                ', aggregate of %%s, %%s, %%s, %%s, %%s, %%s, %%s, %%s, %%s',
                a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
                a.aggtranstype::regtype, a.agginitval, a.aggkind, p.proparallel
            )
            from pg_aggregate a
            where a.aggfnoid = p.oid
        )
    end
from routine p

union all
select
    'type ' || t.name,
    concat_ws(
        ' ',
        'owner ' || pg_get_userbyid(t.typowner),
        case t.typtype
            when 'd' then format_type(t.typbasetype, t.typtypmod)
            when 'e' then (
                select
                    'enum '
                    || string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder)
                from pg_enum e
                where e.enumtypid = t.oid
            )
            when 'c' then (
                select string_agg(
                    a.attname || ' ' || format_type(a.atttypid, a.atttypmod),
                    ', '
                    order by a.attnum
                )
                from pg_attribute a
                where a.attrelid = t.typrelid and not a.attisdropped
            )
        end,
        case when t.typnotnull then 'not null' end,
        'default ' || t.typdefault
    )
from named_type t

union all
select
    'policy ' || p.polname || ' on ' || r.name,
    concat_ws(
        ' ',
        case when p.polpermissive then 'permissive' else 'restrictive' end,
        'for ' || p.polcmd::text,
        'to ' || (
            select string_agg(coalesce(o.rolname::text, 'public'), ', ' order by o.rolname)
            from unnest(p.polroles) as member (oid)
            left join pg_roles o on o.oid = member.oid
        ),
        'using ' || pg_get_expr(p.polqual, p.polrelid),
        'with check ' || pg_get_expr(p.polwithcheck, p.polrelid)
    )
from pg_policy p
join relation r on r.oid = p.polrelid

union all
select
    'grants on ' || acl.object,
    string_agg(
        format(
            '%%s %%s%%s',
            case e.grantee when 0 then 'public' else pg_get_userbyid(e.grantee) end,
            lower(e.privilege_type),
            case when e.is_grantable then ' with grant option' else '' end
        ),
        ', '
        order by case e.grantee when 0 then '' else pg_get_userbyid(e.grantee) end, e.privilege_type
    )
from acl
cross join aclexplode(acl.acl) as e
group by acl.object

union all
select 'comment on ' || c.object, c.text
from (
    select 'schema tracedb', obj_description(s.oid, 'pg_namespace') from space s
    union all
    select r.name, obj_description(r.oid, 'pg_class') from relation r
    union all
    select a.name || '.' || a.attname, col_description(a.attrelid, a.attnum) from attribute a
    union all
    select i.indexrelid::regclass::text, obj_description(i.indexrelid, 'pg_class')
    from pg_index i
    join relation r on r.oid = i.indrelid
    union all
    select 'constraint ' || k.conname || ' on ' || r.name, obj_description(k.oid, 'pg_constraint')
    from pg_constraint k
    join relation r on r.oid = k.conrelid
    union all
    select 'policy ' || p.polname || ' on ' || r.name, obj_description(p.oid, 'pg_policy')
    from pg_policy p
    join relation r on r.oid = p.polrelid
    union all
    select 'function ' || p.name, obj_description(p.oid, 'pg_proc') from routine p
    union all
    select 'type ' || t.name, obj_description(t.oid, 'pg_type') from named_type t
) as c (object, text)
where c.text is not null

order by object, definition;
