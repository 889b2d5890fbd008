-- function_without_grant.sql: every function is granted to a role in 900_grants.sql, or is
-- reviewed as one that only the owner's functions and migrations call.

select p.oid::regprocedure::text as object, 'granted to nobody' as detail
from pg_catalog.pg_proc as p
where p.pronamespace = 'tracedb'::regnamespace
    and not exists (
        select from aclexplode(p.proacl) as a where a.grantee <> p.proowner
    )
    and p.proname not in (
        'create_partition', 'cover_period',  -- called by ensure_ and drain_partitions
        'co_locate',                         -- called by migrations
        -- called by erase_step and purge_refused
        'add_counts', 'collect_erased', 'erase_traces', 'erase_costs', 'erase_reservations',
        'erase_foreign_ids', 'erase_user_rows', 'erase_tenant_rows', 'erase_learned',
        'assert_archived', 'assert_planned', 'settle_costs',  -- called by what removes
        -- called by ensure_pattern_indexes
        'build_pattern_index', 'common_pattern_words', 'embeddings_partition'
    )
