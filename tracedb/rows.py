"""What queries answer: one frozen dataclass for each shape of row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

Json = Any


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was not stored: its position in the call (from 0), and "field: rule"."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of the records of one call: `received` is the sum of the other four."""

    received: int = 0
    inserted: int = 0
    merged: int = 0
    duplicates: int = 0
    rejected: tuple[Rejection, ...] = ()

    def __add__(self, other: Receipt) -> Receipt:
        return Receipt(
            self.received + other.received,
            self.inserted + other.inserted,
            self.merged + other.merged,
            self.duplicates + other.duplicates,
            self.rejected + other.rejected,
        )


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A node of a trace's tree (`tracedb.tree_node`), numbered depth first from 1.

    Durations are in microseconds; `span_id` is 16 hex digits, None for a trace.
    """

    node_no: int
    parent_no: int | None
    depth: int
    node_type: str
    trace_id: UUID
    span_id: str | None
    name: str | None
    status: str
    started_at: datetime
    ended_at: datetime | None
    duration_us: int | None
    self_us: int | None
    on_critical_path: bool
    is_orphan: bool
    agent_id: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    error: str | None


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace with its tokens, cost and part counts (`tracedb.trace_summary`)."""

    tenant_id: UUID
    trace_id: UUID
    root_trace_id: UUID | None
    parent_trace_id: UUID | None
    parent_span_id: bytes | None
    external_id: str | None
    session_id: str | None
    user_id: str | None
    source: str | None
    channel: str | None
    message_type: str | None
    name: str | None
    intent: Json
    route: str | None
    agent_id: str | None
    status: str
    error_type: str | None
    error_message: str | None
    started_at: datetime
    ended_at: datetime | None
    duration_ms: int | None
    llm_calls: int | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    docs_retrieved: int | None
    doc_sources: list[str]
    research_triggered: bool
    kb_enrichment_triggered: bool
    tags: list[str]
    context: dict[str, Json]
    span_count: int
    error_count: int
    unpriced_count: int


@dataclass(frozen=True, slots=True)
class TracePage:
    """Traces, newest first, and the cursor of the next page; None if this one is not full."""

    traces: tuple[TraceSummary, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class TraceChange:
    """A trace that was written, or a part of it (`tracedb.changes_since`)."""

    trace_id: UUID
    changed_at: datetime
    next_cursor: str


@dataclass(frozen=True, slots=True)
class AnalyticsGroup:
    """What an agent or a route did; `name` is None for traces that name none.

    Executions include nested ones, requests do not; errors and percentiles (milliseconds, within
    1 %) are of all executions. Unknown tokens count as 0, an unknown cost alone is None.
    """

    name: str | None
    requests: int
    executions: int
    errors: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    unknown_cost_count: int
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None


@dataclass(frozen=True, slots=True)
class Analytics:
    """Totals of a time (`tracedb.get_analytics`); errors and percentiles are of the requests.

    Percentiles are milliseconds, within 1 %; unknown tokens count as 0, an unknown cost is None.
    """

    since: datetime
    until: datetime
    total_requests: int = 0
    total_executions: int = 0
    total_errors: int = 0
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cost_usd: Decimal | None = None
    unknown_cost_count: int = 0
    p50_duration_ms: float | None = None
    p95_duration_ms: float | None = None
    p99_duration_ms: float | None = None
    by_agent: tuple[AnalyticsGroup, ...] = ()
    by_route: tuple[AnalyticsGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of an hour, a day or a time, of one kind and set of labels (`tracedb.usage_series`).

    `kind`: "request" and "nested" are traces, "call" are spans, which are no addition to traces but
    another look at them. A label is None where none is named. Percentiles are milliseconds, within
    1 %; `cost_usd` is None if no cost is known, `unpriced` counts what has a cost not known whole.
    """

    starts_at: datetime
    kind: str
    agent_id: str | None
    route: str | None
    provider: str | None
    model: str | None
    operation_type: str | None
    executions: int
    errors: int
    successes: int
    running: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None
    unpriced: int
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None


@dataclass(frozen=True, slots=True)
class UsageDifference:
    """An hour and series whose total is not what its traces add up to, both as rows in text."""

    starts_at: datetime
    rolled_up: str | None
    counted: str | None


@dataclass(frozen=True, slots=True)
class Folded:
    """What one call folded for a tenant (`tracedb.fold_usage`)."""

    tenant_id: UUID
    changes: int
    traces: int


@dataclass(frozen=True, slots=True)
class AgentReport:
    """An agent over a time (`tracedb.agent_report`): its traces, and its runs as they were judged.

    Rates and scores are 0 to 1, `_low` and `_high` ends of their 95 % interval (Wilson), durations
    milliseconds within 1 %. None where nothing is known.
    """

    agent_id: str
    executions: int
    errors: int
    success_rate: float | None
    success_rate_low: float | None
    success_rate_high: float | None
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    unknown_cost_count: int
    cost_per_success_usd: Decimal | None
    runs: int
    run_success_rate: float | None
    run_success_rate_low: float | None
    run_success_rate_high: float | None
    quality_score: float | None
    citation_accuracy: float | None
    hallucination_rate: float | None


@dataclass(frozen=True, slots=True)
class TenantHealth:
    """How well a tenant fares, 0 to 100, and the parts of it, 0 to 1 (`get_tenant_health`)."""

    score: float | None
    reliability: float | None
    activity: float | None
    trend: float | None
    latency: float | None
    quality: float | None
    requests_7d: int
    requests_28d: int


@dataclass(frozen=True, slots=True)
class ChurnRisk:
    """How likely it looks that a tenant leaves, 0 to 1, and why (`tracedb.get_churn_risk`)."""

    risk: float
    level: str
    silence: float
    decline: float | None
    days_silent: int
    active_day_rate: float
    last_active_day: datetime


@dataclass(frozen=True, slots=True)
class UsagePattern:
    """An hour of the week (Monday is 1, UTC) and what is done in it (`get_usage_patterns`)."""

    weekday: int
    hour: int
    requests: int
    requests_per_hour: float
    share: float | None
    errors: int
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class FeatureAdoption:
    """A route, agent, model or operation and how much it is used (`get_feature_adoption`)."""

    feature_type: str
    feature: str
    executions: int
    share: float | None
    active_days: int
    adoption: float | None
    executions_before: int
    change: float | None
    first_used_day: datetime


@dataclass(frozen=True, slots=True)
class UserAnalytics:
    """A user over all retained traces (`tracedb.user_request_analytics`)."""

    user_id: str
    total_requests: int
    total_executions: int
    total_errors: int
    total_input_tokens: int | None
    total_output_tokens: int | None
    total_cost_usd: Decimal | None
    unknown_cost_count: int
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None
    first_started_at: datetime
    last_started_at: datetime


@dataclass(frozen=True, slots=True)
class AgentPerformance:
    """How an agent did over all retained traces (`tracedb.agent_performance`)."""

    tenant_id: UUID
    agent_id: str
    trace_count: int
    running_count: int
    success_count: int
    success_rate: float | None
    mean_duration_ms: float | None
    median_duration_ms: float | None
    p95_duration_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    unknown_cost_count: int
    last_started_at: datetime


@dataclass(frozen=True, slots=True)
class HookPerformance:
    """How a hook did (`tracedb.hook_performance_summary`)."""

    tenant_id: UUID
    hook_type: str
    name: str | None
    tool_name: str | None
    execution_count: int
    success_rate: float | None
    blocked_count: int
    modified_count: int
    mean_duration_ms: float | None
    median_duration_ms: float | None
    p95_duration_ms: float | None
    last_started_at: datetime


@dataclass(frozen=True, slots=True)
class EndpointReliability:
    """How an endpoint did (`tracedb.endpoint_reliability`)."""

    tenant_id: UUID
    service: str
    method: str | None
    path: str | None
    call_count: int
    success_rate: float | None
    client_error_count: int
    server_error_count: int
    timeout_count: int
    retry_count: int
    mean_duration_ms: float | None
    median_duration_ms: float | None
    p95_duration_ms: float | None
    last_failed_at: datetime | None


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """A kind of failure (`tracedb.error_analysis`)."""

    tenant_id: UUID
    node_type: str
    origin: str | None
    error_type: str
    error_count: int
    trace_count: int
    first_seen_at: datetime
    last_seen_at: datetime
    last_message: str | None
    last_trace_id: UUID


@dataclass(frozen=True, slots=True)
class DashboardSummary:
    """A tenant's last 7 days and 24 hours (`tracedb.dashboard_summary`)."""

    tenant_id: UUID
    trace_count_7d: int
    trace_count_24h: int
    error_count_7d: int
    success_rate_7d: float | None
    median_duration_ms_7d: float | None
    p95_duration_ms_7d: float | None
    input_tokens_7d: int | None
    output_tokens_7d: int | None
    cost_usd_7d: Decimal | None
    cost_usd_24h: Decimal | None
    user_count_7d: int
    agent_count_7d: int
    last_started_at: datetime
    unknown_cost_count_7d: int


@dataclass(frozen=True, slots=True)
class WriterLosses:
    """What became of a writer's records (`tracedb.loss_report`).

    accepted = stored + dead + dropped + missing. `gaps` lists the missing numbers as (first, last):
    on their way while the writer lives or its spool waits, lost otherwise.
    """

    writer_id: UUID
    service: str | None
    started_at: datetime
    last_seen_at: datetime
    closed: bool
    accepted: int
    stored: int
    dead: int
    dropped: int
    requeued: int
    repeated: int
    missing: int
    gaps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be stored as it is, and why (`tracedb.dead_letters`)."""

    dead_letter_id: UUID
    writer_id: UUID
    record_no: int
    record: str
    reason: str
    sqlstate: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Requeued:
    """How many dead letters were stored, and why others were refused again, by their id."""

    requeued: int
    kept: dict[UUID, str]
