-- patterns.sql: the statements about patterns; tracedb/patterns.py has one function for each.

-- name: save_pattern
select tracedb.save_pattern(%(pattern)s::jsonb, %(tenant_id)s);

-- name: get_pattern
select tracedb.get_pattern(%(pattern_id)s, %(tenant_id)s);

-- name: list_patterns
select
    p.pattern_id, p.prompt, p.intent, p.agent_id, p.route, p.tool_sequence, p.trace_count,
    p.success_count, h.use_count, h.use_successes, h.use_failures, h.lower_bound as confidence,
    h.last_evidence_at, p.retired_at, p.retired_reason
from tracedb.list_patterns(%(max_rows)s, %(before)s, %(tenant_id)s) as p
cross join lateral tracedb.pattern_history(
    array[p.pattern_id], tenant_id => %(tenant_id)s) as h
order by p.pattern_id desc;

-- name: retire_pattern
select tracedb.retire_pattern(%(pattern_id)s, %(reason)s, %(tenant_id)s);

-- name: find_patterns
select
    rank, pattern_id, score, prompt, intent, agent_id, route, tool_sequence, confidence, explored,
    mode, explanation
from tracedb.find_patterns(
    %(embedding)s::real[], %(query)s, %(context)s::jsonb, %(k)s::integer, %(min_score)s, %(model)s,
    %(seed)s::bigint, coalesce(%(as_of)s, now()), %(tenant_id)s)
order by rank;

-- name: replay_plan
select tracedb.replay_plan(%(pattern_id)s, coalesce(%(as_of)s, now()), %(tenant_id)s);

-- name: pattern_settings
select to_jsonb(s) - array['tenant_id', 'created_at', 'updated_at']
from tracedb.pattern_settings(%(tenant_id)s) as s;

-- name: set_pattern_settings
select to_jsonb(s) - array['tenant_id', 'created_at', 'updated_at']
from tracedb.set_pattern_settings(%(settings)s::jsonb, %(tenant_id)s) as s;

-- name: patterns_to_embed
select pattern_id, prompt, prompt_hash, embedding
from tracedb.patterns_to_embed(%(model)s, %(max_rows)s, %(after)s, %(tenant_id)s);

-- name: put_embeddings
select tracedb.put_embeddings(
    %(model)s, %(pattern_ids)s::uuid[], %(embeddings)s::real[], %(prompt_hashes)s::uuid[],
    %(tenant_id)s);

-- name: pattern_models
select
    model, dimension, pattern_count, embedded_count, outdated_count, missing_count, index_name
from tracedb.pattern_models(%(tenant_id)s);

-- name: drop_embedding_model
select tracedb.drop_embedding_model(%(model)s, %(max_rows)s, %(tenant_id)s);

-- name: wanted_pattern_indexes
select
    case when i.index_name is null then 'to build' else 'to drop' end as action,
    coalesce(i.index_name, '') as index_name, w.tenant_id, w.kind, w.model, w.row_count
from tracedb.wanted_pattern_indexes() as w
left join tracedb.pattern_indexes as i using (tenant_id, kind, model)
where w.size_share > 1 and i.index_name is null or w.size_share < 0.5 and i.index_name is not null
order by w.size_share desc, w.tenant_id, w.kind, w.model;

-- name: ensure_pattern_indexes
select action, index_name, tenant_id, kind, model, row_count
from tracedb.ensure_pattern_indexes(%(max_indexes)s, %(max_memory_mb)s);
