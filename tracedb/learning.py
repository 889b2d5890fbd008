"""One typed function for every statement of learning.sql: learning, outcomes, what they are worth.

Learning, folding and pruning are the maintainer's (cron: `tracedb patterns learn|fold|prune`);
logging uses and outcomes, and asking, are every tenant's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import learning_rows as rows
from tracedb.answers import as_json
from tracedb.query import Query, many, maybe, nothing, one, statement
from tracedb.rows import Json

_FILE = "learning.sql"


def score_trace(trace_id: UUID) -> Query[rows.TraceScore | None]:
    """How well a trace went, by each criterion (`tracedb.score_trace`); None: no such trace."""

    def score(found: Sequence[Json | None]) -> rows.TraceScore | None:
        document = maybe(found)
        if document is None:
            return None
        criteria = tuple(rows.Criterion(**each) for each in document["criteria"])
        return rows.TraceScore(
            **document | {"trace_id": UUID(document["trace_id"]), "criteria": criteria}
        )

    return Query(statement("score_trace", _FILE), {"trace_id": trace_id}, scalar_row, score)


def extract_patterns(
    since: datetime | None = None, *, max_traces: int = 1000, after: UUID | None = None
) -> Query[rows.Learned | None]:
    """Learn success patterns from the next changes: call it until `examined` is 0.

    With `since`, from the traces from that time on instead, a page a call: go on `after` the
    last_trace_id. None: another session learns for this tenant. Nothing counts twice
    (`tracedb.extract_patterns`).
    """
    return _learning("extract_patterns", since, max_traces, after)


def learn_chains(
    since: datetime | None = None, *, max_traces: int = 1000, after: UUID | None = None
) -> Query[rows.Learned | None]:
    """Learn sequences of agents from nested executions (`tracedb.learn_chains`)."""
    return _learning("learn_chains", since, max_traces, after)


def learn_errors(
    since: datetime | None = None, *, max_traces: int = 1000, after: UUID | None = None
) -> Query[rows.Learned | None]:
    """Learn errors by fingerprint from all that failed (`tracedb.learn_errors`)."""
    return _learning("learn_errors", since, max_traces, after)


def _learning(
    subject: Literal["extract_patterns", "learn_chains", "learn_errors"],
    since: datetime | None,
    max_traces: int,
    after: UUID | None,
) -> Query[rows.Learned | None]:
    args = {"since": since, "max_traces": max_traces, "after": after}
    return Query(statement(subject, _FILE), args, class_row(rows.Learned), maybe)


def tenants_to_learn() -> Query[list[UUID]]:
    """The tenants that have written anything, as far as this role sees them."""
    return Query(statement("tenants_to_learn", _FILE), {}, scalar_row, many)


def unlearned_changes() -> Query[int]:
    """How many batches were written that nothing was learned from yet, as this role sees them."""
    return Query(statement("unlearned_changes", _FILE), {}, scalar_row, one, lambda: 0)


def uncounted_uses() -> Query[int]:
    """How many uses the counts of patterns do not have yet, as this role sees them."""
    return Query(statement("uncounted_uses", _FILE), {}, scalar_row, one, lambda: 0)


def agent_chains(max_rows: int = 100) -> Query[list[rows.AgentChain]]:
    """The sequences of agents, the most frequent first, and how well they work."""
    args = {"max_rows": max_rows}
    return Query(statement("agent_chains", _FILE), args, class_row(rows.AgentChain), many)


def error_patterns(
    since: datetime | None = None, *, unfixed: bool = False, max_rows: int = 100
) -> Query[list[rows.ErrorPattern]]:
    """The errors, the most frequent first: all, those seen `since`, those without a known fix."""
    args = {"since": since, "unfixed": unfixed, "max_rows": max_rows}
    return Query(statement("error_patterns", _FILE), args, class_row(rows.ErrorPattern), many)


def set_error_fix(fingerprint: UUID, known_fix: str | None) -> Query[bool]:
    """Write down what helps against an error (None: nothing); False if there is no such error."""
    args = {"fingerprint": fingerprint, "known_fix": known_fix}
    return Query(statement("set_error_fix", _FILE), args, scalar_row, one, lambda: False)


def log_pattern_use(
    trace_id: UUID,
    pattern_id: UUID,
    *,
    applied: bool = True,
    arm: Literal["pattern", "control"] = "pattern",
    explored: bool = False,
    rank: int | None = None,
    score: float | None = None,
    score_parts: Mapping[str, Any] | None = None,
    expected_duration_ms: int | None = None,
    used_at: datetime | None = None,
) -> Query[None]:
    """Say that a pattern was found for a trace, which may come later.

    `applied`: it was followed, not only offered. Arm "control": it was held back on purpose, for
    `pattern_lift` to compare with. Rank, score and parts (the explanation) are those that
    `find_patterns` gave. Said again, the last word counts (`tracedb.log_pattern_use`).
    """
    args = {
        "trace_id": trace_id,
        "pattern_id": pattern_id,
        "applied": applied,
        "arm": arm,
        "explored": explored,
        "rank": rank,
        "score": score,
        "score_parts": json.dumps(dict(score_parts or {}), default=as_json),
        "expected_duration_ms": expected_duration_ms,
        "used_at": used_at,
    }
    return Query(statement("log_pattern_use", _FILE), args, scalar_row, _said, nothing)


def log_pattern_outcome(
    trace_id: UUID,
    pattern_id: UUID,
    success: bool | None,
    *,
    deviation: float | None = None,
    duration_ms: int | None = None,
    quality: float | None = None,
    feedback: str | None = None,
    outcome_at: datetime | None = None,
) -> Query[None]:
    """Say how the use of a pattern ended, before or after `log_pattern_use`.

    `deviation`: how far it left the pattern, 0 to 1; `quality`: how good it was, 0 to 1. The
    outcome of the latest `outcome_at` (default: now) counts (`tracedb.log_pattern_outcome`).
    """
    args = {
        "trace_id": trace_id,
        "pattern_id": pattern_id,
        "success": success,
        "deviation": deviation,
        "duration_ms": duration_ms,
        "quality": quality,
        "feedback": feedback,
        "outcome_at": outcome_at,
    }
    return Query(statement("log_pattern_outcome", _FILE), args, scalar_row, _said, nothing)


def _said(_: Sequence[Any]) -> None:
    return None


def fold_pattern_usage(max_uses: int = 10_000) -> Query[list[rows.FoldedUses]]:
    """Add logged uses to the counts of patterns, a row for each tenant: until there is none.

    Answers are exact without it, but slower (`tracedb.fold_pattern_usage`).
    """
    args = {"max_uses": max_uses}
    return Query(statement("fold_pattern_usage", _FILE), args, class_row(rows.FoldedUses), many)


def pattern_effectiveness(max_rows: int = 100) -> Query[list[rows.PatternEffectiveness]]:
    """How patterns do, the most used first."""
    row = class_row(rows.PatternEffectiveness)
    return Query(statement("pattern_effectiveness", _FILE), {"max_rows": max_rows}, row, many)


def pattern_lift(
    pattern_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    min_traces: int = 20,
) -> Query[list[rows.PatternLift]]:
    """Whether patterns (None: all, and all together) help, from `since` (default: 90 days ago) on.

    Against those from whom they were held back, else against traces without one, which proves
    nothing: the answer says which (`tracedb.pattern_lift`).
    """
    args = {"pattern_id": pattern_id, "since": since, "until": until, "min_traces": min_traces}
    return Query(statement("pattern_lift", _FILE), args, class_row(rows.PatternLift), many)


def evaluate_routing(
    policy: Mapping[str, float] | Literal["greedy"],
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    reward: Literal["success", "score", "cost", "duration"] = "success",
    min_effective: int = 20,
) -> Query[rows.RoutingValue | None]:
    """What routing by another policy would have been worth, from `since` (30 days ago) on.

    The policy is a probability for each agent, or "greedy" by the scores of the candidates. It is
    an estimate from the decisions that were made, or a reason why there is none
    (`tracedb.evaluate_routing`). A graceful client answers None without a database.
    """
    args = {
        "policy": json.dumps(policy if isinstance(policy, str) else dict(policy)),
        "since": since,
        "until": until,
        "reward": reward,
        "min_effective": min_effective,
    }
    row = class_row(rows.RoutingValue)
    return Query(statement("evaluate_routing", _FILE), args, row, one, nothing)


def prune_patterns(
    as_of: datetime | None = None, *, max_patterns: int = 1000, dry_run: bool = True
) -> Query[list[rows.PrunedPattern]]:
    """Retire patterns that had their chance and do not work, or only say which.

    Each leaves a receipt in `pattern_prunings`; the policy is in `pattern_settings`
    (`tracedb.prune_patterns`).
    """
    args = {"as_of": as_of, "max_patterns": max_patterns, "dry_run": dry_run}
    return Query(statement("prune_patterns", _FILE), args, class_row(rows.PrunedPattern), many)


def tenants_with_patterns() -> Query[list[UUID]]:
    """The tenants that have patterns, as far as this role sees them."""
    return Query(statement("tenants_with_patterns", _FILE), {}, scalar_row, many)
