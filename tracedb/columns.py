"""The tables that records become rows of, as far as the client knows them."""

from __future__ import annotations

from typing import Any

# The columns that tracedb/bulk.py knows, as name and type; a server that has others gets JSON.
_PART = "tenant_id uuid, trace_id uuid, span_id bytea, parent_span_id bytea, name text, "
_RUN = "started_at timestamptz, ended_at timestamptz, duration_ms int8, attributes jsonb, "
_EVENT = (
    "tenant_id uuid, event_id uuid, event_key text, occurred_at timestamptz, user_id text, "
    "session_id text, trace_id uuid, "
)
_TIMES = "created_at timestamptz, updated_at timestamptz"
COLUMNS = {
    "execution_traces": "tenant_id uuid, trace_id uuid, root_trace_id uuid, parent_trace_id uuid, "
    "parent_span_id bytea, external_id text, session_id text, user_id text, source text, "
    "channel text, message_type text, name text, intent jsonb, route text, agent_id text, "
    "status text, error_type text, error_message text, started_at timestamptz, "
    "ended_at timestamptz, duration_ms int8, llm_calls int8, input_tokens int8, "
    "output_tokens int8, cost_usd numeric, docs_retrieved int8, doc_sources _text, "
    "research_triggered bool, kb_enrichment_triggered bool, tags _text, context jsonb, "
    "provisional jsonb, " + _TIMES,
    "agent_routing_decisions": _PART + "selected_agent text, reason text, "
    "trigger_confidence float8, context_confidence float8, capability_confidence float8, "
    "historical_confidence float8, total_confidence float8, candidates jsonb, "
    "selection_probability float8, cache_hit bool, pattern_id uuid, request_embedding vector, "
    "embedding_model text, status text, error_type text, error_message text, " + _RUN + _TIMES,
    "hook_executions": _PART + "hook_type text, tool_name text, script text, "
    "intelligence_functions _text, quality_gates jsonb, modifications jsonb, outcome text, "
    "exit_code int4, status text, error_type text, error_message text, " + _RUN + _TIMES,
    "endpoint_calls": _PART + "service text, method text, path text, status_code int4, "
    "retries int4, request jsonb, response jsonb, hook_span_id bytea, status text, "
    "error_type text, error_message text, " + _RUN + _TIMES,
    "llm_spans": _PART + "operation_type text, status text, error_type text, "
    "status_message text, started_at timestamptz, ended_at timestamptz, duration_us int8, "
    "provider text, request_model text, response_model text, input_tokens int8, "
    "output_tokens int8, cache_read_tokens int8, cache_write_tokens int8, reasoning_tokens int8, "
    "cost_usd numeric, price_id int8, agent_id text, tool_name text, message_id text, "
    "conversation_id text, attributes jsonb, events jsonb, links jsonb, "
    + _TIMES
    + ", computed_cost_usd numeric",
    "trace_payloads": "tenant_id uuid, trace_id uuid, span_id bytea, kind text, content text, "
    "content_type text, recorded_at timestamptz, " + _TIMES,
    "platform_events": _EVENT + "event_type text, event_category text, event_data jsonb, "
    "metadata jsonb, " + _TIMES,
    "tenant_cost_events": _EVENT + "cost_type text, cost_usd numeric, quantity numeric, "
    "service text, service_tier text, metadata jsonb, " + _TIMES,
    "agent_executions": _EVENT + "agent_id text, agent_type text, execution_time_ms int8, "
    "success bool, error_type text, error_message text, quality_score float8, "
    "citation_accuracy float8, hallucination_detected bool, cost_usd numeric, "
    "total_tokens int8, metadata jsonb, " + _TIMES,
}
# The type of record, the array of `tracedb.store_rows` and the table its rows are of.
TYPES = {
    "trace": ("traces", "execution_traces"),
    "routing_decision": ("routing_decisions", "agent_routing_decisions"),
    "hook": ("hooks", "hook_executions"),
    "endpoint_call": ("endpoint_calls", "endpoint_calls"),
    "span": ("spans", "llm_spans"),
    "payload": ("payloads", "trace_payloads"),
    "platform_event": ("platform_events", "platform_events"),
    "cost_event": ("cost_events", "tenant_cost_events"),
    "agent_execution": ("agent_executions", "agent_executions"),
}
ARRAYS = dict(TYPES.values()) | {
    "stubs": "execution_traces",
    "texts": "trace_payloads",
}
# as `tracedb.record_types` has them, and those of a trace from `tracedb.trace_row_of`
DEFAULTS: dict[str, Any] = {
    "attributes": {},
    "candidates": [],
    "cache_hit": False,
    "intelligence_functions": [],
    "quality_gates": {},
    "modifications": {},
    "retries": 0,
    "events": [],
    "links": [],
    "event_data": {},
    "metadata": {},
    "doc_sources": [],
    "research_triggered": False,
    "kb_enrichment_triggered": False,
    "tags": [],
    "context": {},
}
