-- security_definer.sql: functions with their owner's rights are few and reviewed, and public
-- cannot call them.

select
    p.oid::regprocedure::text as object,
    case when a.grantee = 0 then 'public may call it' else 'not reviewed' end as detail
from pg_catalog.pg_proc as p
left join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
    on a.grantee = 0
where p.pronamespace = 'tracedb'::regnamespace and p.prosecdef
    and (
        a.grantee = 0
        -- attaching needs the parents' owner; the third one shows a number a table and no row; then
        -- what indexes do: making them needs the owner, and policies keep text searches off them
        or p.proname not in (
            'ensure_partitions', 'drain_default_partitions', 'default_partition_rows',
            'ensure_pattern_indexes', 'patterns_with_words'
        )
    )
