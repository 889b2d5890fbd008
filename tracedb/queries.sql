-- queries.sql: every statement of the Python layer; tracedb/queries.py has one function for each.

-- name: set_tenant
select tracedb.set_tenant(%(tenant_id)s);

-- name: ingest
select * from jsonb_to_record(tracedb.ingest(%(batch)s::json, %(tenant_id)s)) as receipt (
    received bigint, inserted bigint, merged bigint, duplicates bigint, rejected jsonb
);

-- name: find_trace
select tracedb.find_trace(%(external_id)s, %(tenant_id)s);

-- name: get_trace
-- as text, so that Python reads money as decimals
select tracedb.get_trace(%(trace_id)s, %(tenant_id)s)::text;

-- name: trace_tree
select * from tracedb.trace_tree(%(trace_id)s, %(tenant_id)s);

-- name: trace_summary
select * from tracedb.trace_summary
where tenant_id = %(tenant_id)s and trace_id = %(trace_id)s;

-- name: find_traces
select * from tracedb.find_traces(
    %(filter)s::jsonb, %(limit)s, %(cursor)s, %(offset)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_user_traces
select * from tracedb.get_user_traces(
    %(user_id)s, %(limit)s, %(offset)s, %(start_date)s, %(end_date)s, %(tenant_id)s
);

-- name: get_traces_by_route
select * from tracedb.get_traces_by_route(
    %(route)s, %(limit)s, %(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_traces_by_agent
select * from tracedb.get_traces_by_agent(
    %(agent_id)s, %(limit)s, %(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_error_traces
select * from tracedb.get_error_traces(
    %(limit)s, %(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_slow_queries
select * from tracedb.get_slow_queries(
    %(threshold_ms)s, %(limit)s, %(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_research_triggers
select * from tracedb.get_research_triggers(
    %(limit)s, %(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s
);

-- name: get_analytics
-- as text, so that Python reads money as decimals
select tracedb.get_analytics(%(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s)::text;

-- name: get_user_analytics
select tracedb.get_user_analytics(%(user_id)s, %(tenant_id)s)::text;

-- name: changes_cursor
select tracedb.changes_cursor();

-- name: changes_since
select * from tracedb.changes_since(%(cursor)s, %(limit)s, %(tenant_id)s);

-- name: agent_performance
select * from tracedb.agent_performance
where tenant_id = %(tenant_id)s
order by trace_count desc, agent_id;

-- name: hook_performance_summary
select * from tracedb.hook_performance_summary
where tenant_id = %(tenant_id)s
order by execution_count desc, hook_type, name, tool_name;

-- name: endpoint_reliability
select * from tracedb.endpoint_reliability
where tenant_id = %(tenant_id)s
order by call_count desc, service, method, path;

-- name: error_analysis
select * from tracedb.error_analysis
where tenant_id = %(tenant_id)s
order by error_count desc, last_seen_at desc;

-- name: dashboard_summary
select * from tracedb.dashboard_summary
where tenant_id = %(tenant_id)s;

-- name: ensure_tenant
select tracedb.ensure_tenant(%(external_id)s, %(name)s);

-- name: ensure_partitions
select tracedb.ensure_partitions(coalesce(%(as_of)s, now()), %(since)s);

-- name: drain_default_partitions
select tracedb.drain_default_partitions(%(max_periods)s);

-- name: loss_report
select * from tracedb.loss_report(%(writer_id)s, %(tenant_id)s);

-- name: dead_letters
select dead_letter_id, writer_id, record_no, record, reason, sqlstate, created_at
from tracedb.dead_letters
where tenant_id = %(tenant_id)s
    and dead_letter_id > coalesce(%(after)s, '00000000-0000-0000-0000-000000000000'::uuid)
order by dead_letter_id
limit %(max_rows)s;

-- name: requeue_dead_letters
select *
from jsonb_to_record(
    tracedb.requeue_dead_letters(%(dead_letter_ids)s, %(max_rows)s, %(tenant_id)s)
) as answer (requeued bigint, kept jsonb);

-- name: purge_dead_letters
select tracedb.purge_dead_letters(coalesce(%(before)s, now()), %(max_rows)s, %(tenant_id)s);

-- name: tenants_with_writers
select distinct tenant_id from tracedb.ingest_writers order by tenant_id;

-- name: usage_series
select u.starts_at, u.kind, u.agent_id, u.route, u.provider, u.model, u.operation_type,
    u.executions, u.errors, u.successes, u.running,
    u.input_tokens::bigint, u.output_tokens::bigint, u.cache_read_tokens::bigint,
    u.cache_write_tokens::bigint, u.reasoning_tokens::bigint,
    case when u.costed > 0 then u.cost_usd end as cost_usd, u.unpriced,
    p.percentiles[1] as p50_duration_ms, p.percentiles[2] as p95_duration_ms,
    p.percentiles[3] as p99_duration_ms
from tracedb.usage_series(%(since)s, coalesce(%(until)s, now()), %(width)s, %(tenant_id)s) as u
cross join lateral (
    select tracedb.percentiles_ms(
        u.duration_buckets, u.duration_counts, array[0.5, 0.95, 0.99]
    ) as percentiles
) as p;

-- name: usage_differences
select starts_at, rolled_up::text, counted::text
from tracedb.usage_differences(%(since)s, coalesce(%(until)s, now()), %(tenant_id)s)
order by starts_at, series_id;

-- name: fold_usage
select tenant_id, changes, traces from tracedb.fold_usage(%(max_traces)s);

-- name: unfolded_changes
select count(*) from tracedb.trace_changes where not folded;

-- name: agent_report
select * from tracedb.agent_report(%(since)s, coalesce(%(until)s, now()), %(tenant_id)s);

-- name: get_agent_success_rate
select tracedb.get_agent_success_rate(
    %(agent_id)s, %(hours)s, coalesce(%(as_of)s, now()), %(tenant_id)s);

-- name: get_tenant_health
select * from tracedb.get_tenant_health(coalesce(%(as_of)s, now()), %(tenant_id)s);

-- name: get_churn_risk
select * from tracedb.get_churn_risk(coalesce(%(as_of)s, now()), %(tenant_id)s);

-- name: get_usage_patterns
select * from tracedb.get_usage_patterns(%(weeks)s, coalesce(%(as_of)s, now()), %(tenant_id)s);

-- name: get_feature_adoption
select * from tracedb.get_feature_adoption(%(days)s, coalesce(%(as_of)s, now()), %(tenant_id)s);
