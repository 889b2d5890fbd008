"""What may be told of a record whose content must not be: its type, ids, times and figures."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

# Kept only where they look as they should: a field of this name may hold anything.
_ID = re.compile(r"[0-9a-fA-F-]{16,36}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ][0-9:.]{5,15}(?:Z|[+-][0-9:]{2,6})")
_NUMBER = re.compile(r"-?[0-9.]{1,40}")
_KEPT = {
    **dict.fromkeys(
        (
            *("tenant_id", "trace_id", "root_trace_id", "parent_trace_id", "span_id"),
            *("parent_span_id", "hook_span_id", "event_id", "pattern_id"),
        ),
        _ID,
    ),
    **dict.fromkeys(("started_at", "ended_at", "occurred_at", "recorded_at"), _TIME),
    **dict.fromkeys(
        (
            *("duration_ms", "duration_us", "execution_time_ms", "llm_calls", "docs_retrieved"),
            *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
            *("reasoning_tokens", "total_tokens", "cost_usd", "quantity", "retries", "exit_code"),
            *("status_code", "trigger_confidence", "context_confidence", "capability_confidence"),
            *("historical_confidence", "total_confidence", "selection_probability"),
            *("quality_score", "citation_accuracy"),
        ),
        _NUMBER,
    ),
    "type": re.compile(
        "trace|span|routing_decision|hook|endpoint_call|payload|platform_event|cost_event"
        "|agent_execution"
    ),
    "status": re.compile("running|ok|error|timeout|cancelled"),
    "operation_type": re.compile(
        "llm|embedding|rerank|tool|retrieval|agent|chain|guardrail|evaluator|other"
    ),
    "outcome": re.compile("allowed|blocked|modified|skipped"),
    "kind": re.compile("prompt|response|input|output"),
    "cost_type": re.compile("llm|embedding|storage|compute"),
}
_FLAGS = (
    *("research_triggered", "kb_enrichment_triggered", "cache_hit", "success"),
    "hallucination_detected",
)
# A record may be known by these alone, so that they cannot all become the same text.
_KEYS = ("external_id", "event_key")
_TEXTS = (
    *("session_id", "user_id", "source", "channel", "message_type", "name", "route", "agent_id"),
    *("error_type", "error_message", "prompt", "response", "input", "output", "content"),
    *("selected_agent", "reason", "embedding_model", "hook_type", "tool_name", "script"),
    *("service", "method", "path", "status_message", "provider", "request_model"),
    *("response_model", "message_id", "conversation_id", "event_type", "event_category"),
    *("service_tier", "agent_type"),
)

_SALT = secrets.token_bytes(16)


def masked(record: Mapping[str, object], note: str) -> dict[str, Any]:
    """The record with `note` for every text, and without its documents, lists and vectors.

    Ids, times, figures, flags and words of a fixed list stay. The caller's own keys
    (`external_id`, `event_key`) become others, the same in this process for the same key.
    """
    left: dict[str, Any] = {}
    for name, form in _KEPT.items():
        value = record.get(name)
        is_number = form is _NUMBER and type(value) in (int, float)
        if is_number or (isinstance(value, str) and form.fullmatch(value)):
            left[name] = value
    for name in _FLAGS:
        if isinstance(value := record.get(name), bool):
            left[name] = value
    for name in _KEYS:
        if (value := record.get(name)) is not None:
            digest = blake2b(str(value).encode(errors="replace"), digest_size=16, key=_SALT)
            left[name] = f"redacted-{digest.hexdigest()}"
    for name in _TEXTS:
        if record.get(name) is not None:
            left[name] = note
    return left
