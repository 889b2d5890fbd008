"""What the queries of tracedb/patterns.py answer: one frozen dataclass for each shape of row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from tracedb.rows import Json


@dataclass(frozen=True, slots=True)
class FoundPattern:
    """A pattern that fits what was asked (`tracedb.find_patterns`), from rank 1 on.

    `score` and `confidence` (the lower bound of its success rate) are from 0 to 1; `explanation`
    has the parts of the score, their weights and the evidence. `explored`: its turn to be tried,
    not its score, brought it in. `mode` is exact, hnsw or keyword.
    """

    rank: int
    pattern_id: UUID
    score: float
    prompt: str
    intent: str | None
    agent_id: str | None
    route: str | None
    tool_sequence: list[str]
    confidence: float
    explored: bool
    mode: str
    explanation: Json


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern in a list, with its counts up to this moment (`tracedb.pattern_history`)."""

    pattern_id: UUID
    prompt: str
    intent: str | None
    agent_id: str | None
    route: str | None
    tool_sequence: list[str]
    trace_count: int
    success_count: int
    use_count: int
    use_successes: int
    use_failures: int
    confidence: float
    last_evidence_at: datetime | None
    retired_at: datetime | None
    retired_reason: str | None


@dataclass(frozen=True, slots=True)
class PatternToEmbed:
    """A pattern that lacks a model's embedding, and that of the same text if there is one."""

    pattern_id: UUID
    prompt: str
    prompt_hash: UUID
    embedding: list[float] | None


@dataclass(frozen=True, slots=True)
class PatternModel:
    """How far the embeddings of a model have come (`tracedb.pattern_models`)."""

    model: str
    dimension: int
    pattern_count: int
    embedded_count: int
    outdated_count: int
    missing_count: int
    index_name: str | None


@dataclass(frozen=True, slots=True)
class PatternIndex:
    """An index of one tenant, and what was done to it, or is to be done: `action`."""

    action: str
    index_name: str
    tenant_id: UUID
    kind: str
    model: str
    row_count: int
