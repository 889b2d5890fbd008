"""What the queries of tracedb/learning.py answer: one frozen dataclass for each shape of row.

Rates and shares are 0 to 1; intervals are 95 % ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion of success, and whether a trace met it; None: not known, and not counted.

    `weight` is what it counts by the settings, `share` once those not known are left out.
    """

    name: str
    met: bool | None
    weight: float
    share: float


@dataclass(frozen=True, slots=True)
class TraceScore:
    """How well a trace went (`tracedb.score_trace`); no score while it runs."""

    trace_id: UUID
    score: float | None
    known_weight: float
    threshold: float
    is_success: bool | None
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Learned:
    """What a call of learning did: how many traces it looked at, and what changed by that.

    `changed` counts the patterns, chains or errors whose counts changed. Done when `examined` is 0.
    """

    examined: int
    changed: int
    last_trace_id: UUID | None


@dataclass(frozen=True, slots=True)
class AgentChain:
    """A sequence of agents (`tracedb.agent_chains`)."""

    chain_id: UUID
    agent_sequence: list[str]
    trace_count: int
    success_count: int
    success_rate: float
    success_rate_low: float
    success_rate_high: float
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    mean_tokens: int | None
    mean_cost_usd: Decimal | None
    first_seen_at: datetime
    last_seen_at: datetime
    source_trace_ids: list[UUID]


@dataclass(frozen=True, slots=True)
class ErrorPattern:
    """An error by its fingerprint (`tracedb.error_patterns`)."""

    fingerprint: UUID
    template: str
    operation: str
    error_type: str | None
    agent_id: str | None
    tool: str | None
    occurrences: int
    trace_count: int
    first_seen_at: datetime
    last_seen_at: datetime
    sample_message: str | None
    sample_trace_ids: list[UUID]
    known_fix: str | None


@dataclass(frozen=True, slots=True)
class FoldedUses:
    """What a call of `tracedb.fold_pattern_usage` added to the counts of a tenant's patterns."""

    tenant_id: UUID
    uses: int
    patterns: int


@dataclass(frozen=True, slots=True)
class PatternEffectiveness:
    """How a pattern does (`tracedb.pattern_effectiveness`); None where nothing is known."""

    pattern_id: UUID
    intent: str | None
    agent_id: str | None
    prompt: str
    use_count: int
    use_successes: int
    use_failures: int
    success_rate: float | None
    success_rate_low: float | None
    success_rate_high: float | None
    mean_deviation: float | None
    mean_quality: float | None
    duration_ratio: float | None
    trace_count: int
    success_count: int
    last_used_at: datetime | None
    retired_at: datetime | None


@dataclass(frozen=True, slots=True)
class PatternLift:
    """Success with a pattern less success without (`tracedb.pattern_lift`).

    `pattern_id` is None for all together. There is either a difference or a `reason` why not.
    """

    pattern_id: UUID | None
    comparison: str
    with_traces: int
    with_successes: int
    without_traces: int
    without_successes: int
    with_rate: float | None
    without_rate: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RoutingValue:
    """What another policy of routing would have been worth (`tracedb.evaluate_routing`).

    There are either estimates, in the unit of the reward, or a `reason` why not. `effective` is how
    many of the policy's own decisions the logged ones are worth.
    """

    decisions: int
    rewarded: int
    effective: float | None
    unsupported: float | None
    logged_value: float | None
    ips: float | None
    ips_low: float | None
    ips_high: float | None
    snips: float | None
    snips_low: float | None
    snips_high: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PrunedPattern:
    """A pattern that was given up, or would be (`tracedb.prune_patterns`)."""

    pattern_id: UUID
    reason: str
    uses: int
    successes: int
    failures: int
    success_rate_high: float
    last_used_at: datetime
