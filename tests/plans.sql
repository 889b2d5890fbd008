-- plans.sql: the documented queries, each with the indexes it reads.

-- test_plans.py runs every query under row-level security and compares. Each index is followed by
-- the number of partitions with rows that the query may read through it: "all", or few because the
-- others are pruned ("recent": the weeks that 8 days touch, "month": those of 31 days). "a|b":
-- either; both begin with the tenant, and for the rows of a whole week they cost the same.

-- trace_by_id: the header of a trace.
--     execution_traces_pkey 1
select * from tracedb.execution_traces where tenant_id = :'tenant' and trace_id = :'trace';

-- decisions_of_trace: the routing decisions of a trace.
--     agent_routing_decisions_pkey 1
select * from tracedb.agent_routing_decisions where tenant_id = :'tenant' and trace_id = :'trace';

-- hooks_of_trace: the hook executions of a trace.
--     hook_executions_pkey 1
select * from tracedb.hook_executions where tenant_id = :'tenant' and trace_id = :'trace';

-- calls_of_trace: the endpoint calls of a trace.
--     endpoint_calls_pkey 1
select * from tracedb.endpoint_calls where tenant_id = :'tenant' and trace_id = :'trace';

-- spans_of_trace: the spans of a trace.
--     llm_spans_pkey 1
select * from tracedb.llm_spans where tenant_id = :'tenant' and trace_id = :'trace';

-- costs_of_trace: what the calls of a trace cost.
--     llm_spans_pkey 1
--     span_cost_adjustments_pkey 1
select span_id, cost_usd from tracedb.priced_spans
where tenant_id = :'tenant' and trace_id = :'trace' and is_leaf;

-- payloads_of_trace: the texts of a trace.
--     trace_payloads_pkey 1
select * from tracedb.trace_payloads where tenant_id = :'tenant' and trace_id = :'trace';

-- trace_of_external_id: the trace that a foreign id means.
--     trace_ids_pkey 1
select tracedb.find_trace(:'external', :'tenant');

-- trace_of_own_id: the same, asked with the trace's own id.
--     trace_ids_pkey 1
--     execution_traces_pkey 1
select tracedb.find_trace(:'trace', :'tenant');

-- place_of_trace: whether a trace is stored, or archived.
--     execution_traces_pkey 1
select * from tracedb.where_is_trace(:'trace', :'tenant');

-- whole_trace: a trace and all its parts as one document.
--     trace_ids_pkey 1
--     execution_traces_pkey 1
--     execution_traces_parent_trace_id_idx all
--     agent_routing_decisions_pkey 1
--     hook_executions_pkey 1
--     endpoint_calls_pkey 1
--     llm_spans_pkey 1
--     trace_payloads_pkey 1
select tracedb.get_trace(:'trace', :'tenant');

-- tree: a trace and its nested executions as one tree; the header may be read by either index.
--     trace_ids_pkey 1
--     execution_traces_pkey|execution_traces_user_id_idx 2
--     execution_traces_parent_trace_id_idx all
--     agent_routing_decisions_pkey 1
--     hook_executions_pkey 1
--     endpoint_calls_pkey 1
--     llm_spans_pkey 1
--     span_cost_adjustments_pkey 1
select * from tracedb.trace_tree(:'trace', :'tenant');

-- nested: the executions that a trace started; a nested one is at most a day older (by its clock).
--     execution_traces_parent_trace_id_idx all
select trace_id from tracedb.execution_traces
where tenant_id = :'tenant' and parent_trace_id = :'trace'
    and trace_id >= tracedb.uuid_floor(tracedb.uuid_time(:'trace') - interval '1 day');

-- newest_of_user: the newest traces of a user.
--     execution_traces_user_id_idx all
select * from tracedb.execution_traces
where tenant_id = :'tenant' and user_id = :'user'
order by trace_id desc limit 10;

-- newest_of_user_this_week: the same, as far back as a time.
--     execution_traces_user_id_idx recent
select * from tracedb.execution_traces
where tenant_id = :'tenant' and user_id = :'user'
    and trace_id >= tracedb.uuid_floor(now() - interval '7 days')
order by trace_id desc limit 10;

-- newest: the newest traces of a tenant.
--     execution_traces_pkey all
select * from tracedb.execution_traces
where tenant_id = :'tenant' order by trace_id desc limit 10;

-- newest_failures: the newest traces that failed.
--     execution_traces_failed_idx all
select * from tracedb.execution_traces
where tenant_id = :'tenant' and status in ('error', 'timeout')
order by trace_id desc limit 10;

-- summary_of_trace: a trace with its counts and its cost.
--     execution_traces_pkey|execution_traces_user_id_idx 1
--     agent_routing_decisions_pkey 1
--     hook_executions_pkey 1
--     endpoint_calls_pkey 1
--     llm_spans_pkey 1
--     span_cost_adjustments_pkey 1
select * from tracedb.trace_summary where tenant_id = :'tenant' and trace_id = :'trace';

-- newest_summaries_of_user: a user's history with counts and costs; parts of these 10 traces only.
--     execution_traces_user_id_idx all
--     agent_routing_decisions_pkey 10
--     hook_executions_pkey 10
--     endpoint_calls_pkey 10
--     llm_spans_pkey 10
--     span_cost_adjustments_pkey 10
select * from tracedb.trace_summary
where tenant_id = :'tenant' and user_id = :'user'
order by trace_id desc limit 10;

-- dashboard: the last 7 days of a tenant.
--     execution_traces_pkey|execution_traces_user_id_idx recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.dashboard_summary where tenant_id = :'tenant';

-- agents: the agents of a tenant, over all its traces.
--     execution_traces_pkey|execution_traces_user_id_idx all
--     llm_spans_pkey all
--     span_cost_adjustments_pkey all
select * from tracedb.agent_performance where tenant_id = :'tenant';

-- hooks: the hooks of a tenant.
--     hook_executions_pkey all
select * from tracedb.hook_performance_summary where tenant_id = :'tenant';

-- endpoints: the endpoints that a tenant called.
--     endpoint_calls_pkey all
select * from tracedb.endpoint_reliability where tenant_id = :'tenant';

-- failures: what fails for a tenant.
--     execution_traces_failed_idx all
--     agent_routing_decisions_pkey all
--     hook_executions_pkey all
--     endpoint_calls_pkey all
--     llm_spans_pkey all
select * from tracedb.error_analysis where tenant_id = :'tenant';

-- found_of_user: the newest traces of a user, by the function.
--     execution_traces_user_id_idx all
--     execution_traces_pkey all
--     agent_routing_decisions_pkey 10
--     hook_executions_pkey 10
--     endpoint_calls_pkey 10
--     llm_spans_pkey 10
--     span_cost_adjustments_pkey 10
select * from tracedb.get_user_traces(:'user', tenant_id => :'tenant');

-- found_failures: the newest failures of a week.
--     execution_traces_failed_idx recent
--     execution_traces_pkey recent
--     agent_routing_decisions_pkey recent
--     hook_executions_pkey recent
--     endpoint_calls_pkey recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.get_error_traces(tenant_id => :'tenant');

-- found_slow: the newest slow traces of a week.
--     execution_traces_pkey recent
--     agent_routing_decisions_pkey recent
--     hook_executions_pkey recent
--     endpoint_calls_pkey recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.get_slow_queries(2000, tenant_id => :'tenant');

-- found_of_agent: the newest traces of an agent in a week; no index, only the week's partitions.
--     execution_traces_pkey recent
--     agent_routing_decisions_pkey recent
--     hook_executions_pkey recent
--     endpoint_calls_pkey recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.get_traces_by_agent('agent-1', tenant_id => :'tenant');

-- found_of_route: the newest traces of a route in a week.
--     execution_traces_pkey recent
--     agent_routing_decisions_pkey recent
--     hook_executions_pkey recent
--     endpoint_calls_pkey recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.get_traces_by_route('refund', tenant_id => :'tenant');

-- found_newest: a page of all traces.
--     execution_traces_pkey all
--     agent_routing_decisions_pkey all
--     hook_executions_pkey all
--     endpoint_calls_pkey all
--     llm_spans_pkey all
--     span_cost_adjustments_pkey all
select * from tracedb.find_traces(max_rows => 20, tenant_id => :'tenant');

-- found_of_session: the traces of a session, in the 30 days of a search without an index.
--     execution_traces_pkey month
--     agent_routing_decisions_pkey month
--     hook_executions_pkey month
--     endpoint_calls_pkey month
--     llm_spans_pkey month
--     span_cost_adjustments_pkey month
select * from tracedb.find_traces(
    jsonb_build_object('session_id', :'session'::text), tenant_id => :'tenant');

-- found_by_span: traces with a span of a model, in the same 30 days.
--     execution_traces_pkey month
--     agent_routing_decisions_pkey month
--     hook_executions_pkey month
--     endpoint_calls_pkey month
--     llm_spans_pkey month
--     span_cost_adjustments_pkey month
select * from tracedb.find_traces(
    '{"model": "gpt-4.1-mini", "operation_type": "llm"}', tenant_id => :'tenant');

-- found_by_cost: traces that cost so much, in the same 30 days.
--     execution_traces_pkey month
--     agent_routing_decisions_pkey month
--     hook_executions_pkey month
--     endpoint_calls_pkey month
--     llm_spans_pkey month
--     span_cost_adjustments_pkey month
select * from tracedb.find_traces('{"min_cost_usd": 0.02}', tenant_id => :'tenant');

-- totals_of_a_week: the analytics of 7 days; traces are read for the part of an hour at either end.
--     trace_changes_unfolded_idx 1
--     usage_rollups_pkey 1
--     usage_contributions_starts_at_idx|usage_contributions_pkey all
--     execution_traces_pkey|execution_traces_user_id_idx recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select tracedb.get_analytics(7, :'moment'::timestamptz, :'tenant');

-- agents_of_a_week: the same by agent and route, as a view.
--     execution_traces_pkey|execution_traces_user_id_idx recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
select * from tracedb.agent_traces_analytics where tenant_id = :'tenant';

-- totals_of_user: a user over all its traces; each reads the partition of its trace.
--     execution_traces_user_id_idx all
--     execution_traces_pkey all
--     llm_spans_pkey all
--     span_cost_adjustments_pkey all
select tracedb.get_user_analytics(:'user', :'tenant');

-- changes: what was written since.
--     trace_changes_pkey 1
select * from tracedb.changes_since(null, 1000, :'tenant');

-- newest_platform_events: the newest platform events of a tenant.
--     platform_events_pkey all
select * from tracedb.platform_events where tenant_id = :'tenant' order by event_id desc limit 20;

-- costs_of_a_week: what a tenant was charged for in a week.
--     tenant_cost_events_pkey recent
select cost_type, service, sum(cost_usd) from tracedb.tenant_cost_events
where tenant_id = :'tenant' and event_id >= tracedb.uuid_floor(now() - interval '7 days')
group by cost_type, service;

-- newest_agent_executions: how the agents of a tenant did of late.
--     agent_executions_pkey recent
select * from tracedb.agent_executions
where tenant_id = :'tenant' and event_id >= tracedb.uuid_floor(now() - interval '7 days')
order by event_id desc limit 20;

-- spent_by_day: what was spent in a week, traces and events, by day.
--     trace_changes_unfolded_idx 1
--     usage_rollups_pkey 1
--     usage_contributions_starts_at_idx|usage_contributions_pkey all
--     execution_traces_pkey|execution_traces_user_id_idx recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
--     tenant_cost_events_pkey recent
select * from tracedb.get_cost_breakdown(
    'day', :'moment'::timestamptz - interval '7 days', :'moment'::timestamptz, :'tenant'
);

-- spent_by_model: the same, by model.
--     execution_traces_pkey|execution_traces_user_id_idx recent
--     llm_spans_pkey recent
--     span_cost_adjustments_pkey recent
--     tenant_cost_events_pkey recent
select * from tracedb.get_cost_breakdown('model', now() - interval '7 days', now(), :'tenant');

-- patterns_found: patterns near in meaning, or with the words, and how they have done.
--     pattern_embeddings_pkey|pattern_embeddings_content_idx|pattern_embeddings_pattern_idx 3
--     success_patterns_pkey|success_patterns_signature 2
--     success_patterns_retired_idx 1
--     pattern_usage_log_uncounted_idx all
select * from tracedb.find_patterns(
    array_fill(1::real, array[256]), 'word7', tenant_id => :'tenant');

-- patterns_without_embedding: what is to be embedded, and what its text has already.
--     success_patterns_pkey 1
--     pattern_embeddings_pkey|pattern_embeddings_pattern_idx 1
--     pattern_embeddings_content_idx 1
select * from tracedb.patterns_to_embed('another', 100, tenant_id => :'tenant');

-- models_of_pattern: a pattern with its history and the models it has embeddings of.
--     success_patterns_pkey 1
--     pattern_embeddings_pattern_idx 1
--     pattern_usage_log_uncounted_idx all
select tracedb.get_pattern(tracedb.uuid_from_key('2026-01-01', '3'), :'tenant');

-- uses_of_trace: the patterns used in a trace.
--     pattern_usage_log_pkey 1
select * from tracedb.pattern_usage_log where tenant_id = :'tenant' and trace_id = :'trace';

-- learned_of_trace: what a trace has added to what is learned.
--     learned_traces_pkey 1
select * from tracedb.learned_traces where tenant_id = :'tenant' and trace_id = :'trace';

-- newest_of_pattern: the newest traces of a pattern, chain or error.
--     learned_traces_learned_id_idx all
select trace_id from tracedb.learned_traces
where tenant_id = :'tenant' and learned_id = md5('3')::uuid
order by trace_id desc limit 200;

-- error_by_fingerprint: an error, to write down what helps against it.
--     error_patterns_pkey 1
select * from tracedb.error_patterns where tenant_id = :'tenant' and fingerprint = md5('3')::uuid;

-- chain_by_id: a sequence of agents.
--     agent_chaining_patterns_pkey 1
select * from tracedb.agent_chaining_patterns
where tenant_id = :'tenant' and chain_id = md5('3')::uuid;

-- receipts: the patterns that were given up, the newest first.
--     pattern_prunings_pkey 1
select * from tracedb.pattern_prunings where tenant_id = :'tenant'
order by pruning_id desc limit 10;

-- progress_of_learning: how far learning has come.
--     learning_progress_pkey 1
select * from tracedb.learning_progress where tenant_id = :'tenant' and subject = 'error';
