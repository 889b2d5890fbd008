-- 566_outcomes.sql: where patterns were used and how that ended.

-- A use is a row of its own, which use and outcome fill in whatever order they come. The counts of
-- a pattern are touched by fold_pattern_usage alone, which adds what a row stands for now less what
-- it was counted as before; readers add what is not folded yet (pattern_history).

set role tracedb_owner;

create or replace function tracedb.log_pattern_use(
    trace_id uuid,
    pattern_id uuid,
    applied boolean default true,
    arm text default 'pattern',
    explored boolean default false,
    rank integer default null,
    score double precision default null,
    score_parts jsonb default '{}',
    expected_duration_ms bigint default null,
    used_at timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    insert into tracedb.pattern_usage_log as u (
        tenant_id, trace_id, pattern_id, applied, arm, explored, rank, score, score_parts,
        expected_duration_ms, used_at
    )
    values (
        tenant_id, trace_id, pattern_id, applied and arm is distinct from 'control', arm, explored,
        rank, score, score_parts,
        coalesce(expected_duration_ms, (
            select case when jsonb_typeof(p.performance -> 'p50_ms') = 'number' then least(
                greatest((p.performance -> 'p50_ms')::numeric, 0), 9223372036854775807)::bigint end
            from tracedb.success_patterns as p
            where p.tenant_id = log_pattern_use.tenant_id
                and p.pattern_id = log_pattern_use.pattern_id
        )),
        used_at
    )
    on conflict on constraint pattern_usage_log_pkey do update
    set applied = excluded.applied,
        arm = excluded.arm,
        explored = excluded.explored,
        rank = excluded.rank,
        score = excluded.score,
        score_parts = excluded.score_parts,
        expected_duration_ms = excluded.expected_duration_ms,
        used_at = least(u.used_at, excluded.used_at),
        updated_at = excluded.updated_at;
end $$;

comment on function tracedb.log_pattern_use(
    uuid, uuid, boolean, text, boolean, integer, double precision, jsonb, bigint, timestamptz, uuid
) is
    'Records that a pattern was found for a trace: followed (applied) or only offered, or held '
    'back for comparison (arm control); rank, score and score_parts as find_patterns gave them. '
    'expected_duration_ms is the median of the pattern unless given. The trace may come later, '
    'the outcome earlier; said again, what is said last counts, and the earliest used_at.';

create or replace function tracedb.log_pattern_outcome(
    trace_id uuid,
    pattern_id uuid,
    success boolean,
    deviation double precision default null,
    duration_ms bigint default null,
    quality double precision default null,
    feedback text default null,
    outcome_at timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    insert into tracedb.pattern_usage_log as u (
        tenant_id, trace_id, pattern_id, used_at, success, deviation, duration_ms, quality,
        feedback, outcome_at
    )
    values (
        tenant_id, trace_id, pattern_id, outcome_at, success, deviation, duration_ms, quality,
        feedback, outcome_at
    )
    on conflict on constraint pattern_usage_log_pkey do update
    set success = excluded.success,
        deviation = excluded.deviation,
        duration_ms = excluded.duration_ms,
        quality = excluded.quality,
        feedback = excluded.feedback,
        outcome_at = excluded.outcome_at,
        used_at = least(u.used_at, excluded.used_at),
        updated_at = excluded.updated_at
    where u.outcome_at is null or u.outcome_at <= excluded.outcome_at;
end $$;

comment on function tracedb.log_pattern_outcome(
    uuid, uuid, boolean, double precision, bigint, double precision, text, timestamptz, uuid
) is
    'Records how the use of a pattern ended: success (null: not known), how far it left the '
    'pattern (deviation, 0 to 1), how long it took, how good it was (quality, 0 to 1), what was '
    'said of it. It may come before the use; the outcome of the latest outcome_at counts, whole.';

create or replace function tracedb.fold_pattern_usage(max_uses integer default 10000)
returns table (tenant_id uuid, uses bigint, patterns bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant uuid;
    trace_ids uuid[];
    pattern_ids uuid[];
    counted text[];
    standing text[];
    used_at timestamptz[];
    remaining bigint := max_uses;
begin
    if max_uses is null or max_uses < 1 then
        raise exception using errcode = 'TD002', message = 'max_uses: must be at least 1';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    for tenant in
        select distinct u.tenant_id
        from tracedb.pattern_usage_log as u
        where u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
    loop
        exit when remaining <= 0;
        -- The one who learns writes the same patterns.
        continue when not pg_try_advisory_xact_lock(
            hashtextextended('tracedb.learn/' || tenant, 0));

        select
            array_agg(u.trace_id), array_agg(u.pattern_id), array_agg(u.counted),
            array_agg(u.standing), array_agg(u.used_at)
        into trace_ids, pattern_ids, counted, standing, used_at
        from (
            select u.*, tracedb.usage_standing(u.arm, u.applied, u.success) as standing
            from tracedb.pattern_usage_log as u
            where u.tenant_id = tenant
                and u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
            order by u.pattern_id, u.trace_id
            limit remaining
            -- An outcome that comes meanwhile waits, and is folded next time.
            for update
        ) as u;
        continue when trace_ids is null;
        remaining := remaining - cardinality(trace_ids);

        update tracedb.pattern_usage_log as u
        set counted = k.standing, updated_at = now()
        from unnest(trace_ids, pattern_ids, standing) as k (trace_id, pattern_id, standing)
        where u.tenant_id = tenant and u.trace_id = k.trace_id and u.pattern_id = k.pattern_id;

        update tracedb.success_patterns as p
        set use_count = p.use_count + d.uses,
            use_successes = p.use_successes + d.successes,
            use_failures = p.use_failures + d.failures,
            last_used_at = greatest(p.last_used_at, d.last_used_at),
            updated_at = now()
        from (
            select
                k.pattern_id,
                sum((k.standing <> 'none')::integer - (k.counted <> 'none')::integer) as uses,
                sum((k.standing = 'success')::integer - (k.counted = 'success')::integer)
                    as successes,
                sum((k.standing = 'failure')::integer - (k.counted = 'failure')::integer)
                    as failures,
                max(k.used_at) filter (where k.standing <> 'none') as last_used_at
            from unnest(pattern_ids, counted, standing, used_at)
                as k (pattern_id, counted, standing, used_at)
            group by k.pattern_id
        ) as d
        where p.tenant_id = tenant and p.pattern_id = d.pattern_id;

        tenant_id := tenant;
        uses := cardinality(trace_ids);
        patterns := (select count(distinct i) from unnest(pattern_ids) as i);
        return next;
    end loop;
end $$;

comment on function tracedb.fold_pattern_usage(integer) is
    'Adds what was logged of uses and outcomes to the counts of success_patterns: at most max_uses '
    'rows, a row for each tenant it worked for. Run it, a transaction a call, until it returns '
    'nothing, every minute or so, and before partitions of pattern_usage_log are dropped. Tenants '
    'for which another session folds or learns are left to it; on a replica it does nothing.';

reset role;
