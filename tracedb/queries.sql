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
