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
        -- attaching needs the parents' owner; the third one shows a number a table and no row
        or p.proname not in (
            'ensure_partitions', 'drain_default_partitions', 'default_partition_rows',
            -- making indexes needs the owner, and policies keep text searches off them
            'ensure_pattern_indexes', 'patterns_with_words',
            -- the maintainer's, who acts for every tenant
            'begin_erasure', 'erase_step', 'note_erased', 'erase_spooled', 'collect_archived',
            'replace_archive', 'forget_file',
            -- deletes what has a tombstone and should not be there
            'purge_refused',
            -- the maintainer's: what removes and restores, as far as the plan says so
            'archive_contents', 'record_archive', 'discard_archive', 'retire_partitions',
            'drop_retired', 'delete_expired', 'purge_expired', 'cover_times', 'open_staging',
            'restore_staged'
        )
    )
