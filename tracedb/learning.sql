-- learning.sql: the statements about learning and outcomes; tracedb/learning.py has one function
-- for each.

-- name: score_trace
select tracedb.score_trace(%(trace_id)s, %(tenant_id)s);

-- name: extract_patterns
select examined, changed, last_trace_id
from tracedb.extract_patterns(%(since)s, %(max_traces)s, %(after)s, %(tenant_id)s);

-- name: learn_chains
select examined, changed, last_trace_id
from tracedb.learn_chains(%(since)s, %(max_traces)s, %(after)s, %(tenant_id)s);

-- name: learn_errors
select examined, changed, last_trace_id
from tracedb.learn_errors(%(since)s, %(max_traces)s, %(after)s, %(tenant_id)s);

-- name: tenants_to_learn
-- from one tenant to the next along the key, not over all changes
with recursive t as (
    (select tenant_id from tracedb.trace_changes order by tenant_id limit 1)
    union all
    select (
        select c.tenant_id from tracedb.trace_changes as c
        where c.tenant_id > t.tenant_id
        order by c.tenant_id
        limit 1
    )
    from t
    where t.tenant_id is not null
)
select tenant_id from t where tenant_id is not null;

-- name: unlearned_changes
select count(*)
from tracedb.trace_changes as c
left join tracedb.learning_progress as p
    on p.tenant_id = c.tenant_id and p.subject = 'pattern'
where p.cursor is null
    or (c.written_by, c.change_id)
        > (split_part(p.cursor, '/', 2)::xid8, split_part(p.cursor, '/', 3)::uuid);

-- name: uncounted_uses
select count(*)
from tracedb.pattern_usage_log as u
where u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success);

-- name: agent_chains
select
    chain_id, agent_sequence, trace_count, success_count, success_rate, success_rate_low,
    success_rate_high, p50_duration_ms, p95_duration_ms, mean_tokens, mean_cost_usd,
    first_seen_at, last_seen_at, source_trace_ids
from tracedb.agent_chains
where tenant_id = %(tenant_id)s
order by trace_count desc, chain_id
limit %(max_rows)s;

-- name: error_patterns
select
    fingerprint, template, operation, error_type, agent_id, tool, occurrences, trace_count,
    first_seen_at, last_seen_at, sample_message, sample_trace_ids, known_fix
from tracedb.error_patterns
where tenant_id = %(tenant_id)s
    and (%(since)s::timestamptz is null or last_seen_at >= %(since)s)
    and (not %(unfixed)s or known_fix is null)
order by occurrences desc, fingerprint
limit %(max_rows)s;

-- name: set_error_fix
select tracedb.set_error_fix(%(fingerprint)s, %(known_fix)s, %(tenant_id)s);

-- name: log_pattern_use
select tracedb.log_pattern_use(
    %(trace_id)s, %(pattern_id)s, %(applied)s, %(arm)s, %(explored)s, %(rank)s, %(score)s,
    %(score_parts)s::jsonb, %(expected_duration_ms)s, coalesce(%(used_at)s, now()), %(tenant_id)s
);

-- name: log_pattern_outcome
select tracedb.log_pattern_outcome(
    %(trace_id)s, %(pattern_id)s, %(success)s, %(deviation)s, %(duration_ms)s, %(quality)s,
    %(feedback)s, coalesce(%(outcome_at)s, now()), %(tenant_id)s
);

-- name: fold_pattern_usage
select tenant_id, uses, patterns from tracedb.fold_pattern_usage(%(max_uses)s);

-- name: pattern_effectiveness
select
    pattern_id, intent, agent_id, prompt, use_count, use_successes, use_failures, success_rate,
    success_rate_low, success_rate_high, mean_deviation, mean_quality, duration_ratio, trace_count,
    success_count, last_used_at, retired_at
from tracedb.pattern_effectiveness
where tenant_id = %(tenant_id)s
order by use_count desc, pattern_id
limit %(max_rows)s;

-- name: pattern_lift
select
    pattern_id, comparison, with_traces, with_successes, without_traces, without_successes,
    with_rate, without_rate, difference, difference_low, difference_high, reason
from tracedb.pattern_lift(
    %(pattern_id)s, coalesce(%(since)s, now() - interval '90 days'), coalesce(%(until)s, now()),
    %(min_traces)s, %(tenant_id)s
);

-- name: evaluate_routing
select
    decisions, rewarded, effective, unsupported, logged_value, ips, ips_low, ips_high, snips,
    snips_low, snips_high, reason
from tracedb.evaluate_routing(
    %(policy)s::jsonb, coalesce(%(since)s, now() - interval '30 days'), coalesce(%(until)s, now()),
    %(reward)s, %(min_effective)s, %(tenant_id)s
);

-- name: prune_patterns
select pattern_id, reason, uses, successes, failures, success_rate_high, last_used_at
from tracedb.prune_patterns(
    coalesce(%(as_of)s, now()), %(max_patterns)s, %(dry_run)s, %(tenant_id)s
);

-- name: tenants_with_patterns
with recursive t as (
    (select tenant_id from tracedb.success_patterns order by tenant_id limit 1)
    union all
    select (
        select p.tenant_id from tracedb.success_patterns as p
        where p.tenant_id > t.tenant_id
        order by p.tenant_id
        limit 1
    )
    from t
    where t.tenant_id is not null
)
select tenant_id from t where tenant_id is not null;
