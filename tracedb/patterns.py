"""One typed function for every statement of patterns.sql: saving, finding, embedding patterns.

Embeddings are any iterables of numbers; tracedb/embeddings.py makes them with an embedder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import pattern_rows as rows
from tracedb.answers import as_json
from tracedb.query import Query, many, maybe, nothing, one, statement
from tracedb.rows import Json

_FILE = "patterns.sql"


def save_pattern(pattern: Mapping[str, Any]) -> Query[UUID | None]:
    """Store a pattern given by hand, and its id; the same one again takes its place.

    The keys are columns of `tracedb.success_patterns`; `prompt` is required. A graceful client
    answers None without a database.
    """
    args = {"pattern": json.dumps(dict(pattern), default=_as_json)}
    return Query(statement("save_pattern", _FILE), args, scalar_row, one, nothing)


def get_pattern(pattern_id: UUID) -> Query[Json | None]:
    """A pattern as a document, with its history and models; None if there is none."""
    args = {"pattern_id": pattern_id}
    return Query(statement("get_pattern", _FILE), args, scalar_row, maybe)


def list_patterns(max_rows: int = 100, before: UUID | None = None) -> Query[list[rows.Pattern]]:
    """The patterns, retired ones too, newest first; on from the last one of a page: `before`."""
    args = {"max_rows": max_rows, "before": before}
    return Query(statement("list_patterns", _FILE), args, class_row(rows.Pattern), many)


def retire_pattern(pattern_id: UUID, reason: str) -> Query[bool]:
    """Take a pattern out of all searches and keep it; False if there is none in force."""
    args = {"pattern_id": pattern_id, "reason": reason}
    return Query(statement("retire_pattern", _FILE), args, scalar_row, one, lambda: False)


def find_patterns(
    embedding: Iterable[float] | None = None,
    query: str | None = None,
    context: Mapping[str, Any] | None = None,
    *,
    k: int = 5,
    min_score: float | None = None,
    model: str | None = None,
    seed: int | None = None,
    as_of: datetime | None = None,
) -> Query[list[rows.FoundPattern]]:
    """The `k` patterns (1 to 100) that fit best: by an embedding, by a text (`query`), or both.

    `context` may name the `intent` wanted, and labels (agent_id, route, channel, ...) of where this
    is asked. `model` says whose embeddings are searched, where there are several. The same `seed`
    explores the same. How patterns are found and scored: `tracedb.find_patterns`.
    """
    args = {
        "embedding": None if embedding is None else _array(embedding),
        "query": query,
        "context": json.dumps(dict(context or {}), default=_as_json),
        "k": k,
        "min_score": min_score,
        "model": model,
        "seed": seed,
        "as_of": as_of,
    }
    return Query(statement("find_patterns", _FILE), args, class_row(rows.FoundPattern), many)


def replay_plan(pattern_id: UUID, as_of: datetime | None = None) -> Query[Json | None]:
    """How to do again what a pattern did (`tracedb.replay_plan`), as a document; None: no such one.

    Agent, hooks, intelligence functions, endpoints with their usual times, tools, what it is
    expected to take, and how sure it is to work.
    """
    args = {"pattern_id": pattern_id, "as_of": as_of}
    return Query(statement("replay_plan", _FILE), args, scalar_row, maybe)


def pattern_settings() -> Query[dict[str, float]]:
    """How the tenant's patterns are scored, found and judged, by name (`pattern_settings`)."""
    return Query(statement("pattern_settings", _FILE), {}, scalar_row, one, dict)


def set_pattern_settings(settings: Mapping[str, float]) -> Query[dict[str, float]]:
    """Change some of `pattern_settings`, and all of them as they are then."""
    args = {"settings": json.dumps(dict(settings), default=_as_json)}
    return Query(statement("set_pattern_settings", _FILE), args, scalar_row, one, dict)


def patterns_to_embed(
    model: str, max_rows: int = 100, after: UUID | None = None
) -> Query[list[rows.PatternToEmbed]]:
    """Patterns that have no embedding by a model, or one of another text; on from `after`."""
    args = {"model": model, "max_rows": max_rows, "after": after}
    row = class_row(rows.PatternToEmbed)
    return Query(statement("patterns_to_embed", _FILE), args, row, many)


def put_embeddings(
    model: str,
    pattern_ids: Sequence[UUID],
    embeddings: Sequence[Iterable[float]],
    prompt_hashes: Sequence[UUID],
) -> Query[int]:
    """Store embeddings of patterns by a model, with the prompt_hash of what was embedded; how many.

    Those of other models stay. See `tracedb.put_embeddings`.
    """
    args = {
        "model": model,
        "pattern_ids": list(pattern_ids),
        "embeddings": "{" + ",".join(map(_array, embeddings)) + "}",
        "prompt_hashes": list(prompt_hashes),
    }
    return Query(statement("put_embeddings", _FILE), args, scalar_row, one, lambda: 0)


def pattern_models() -> Query[list[rows.PatternModel]]:
    """How far the embeddings of each model have come."""
    return Query(statement("pattern_models", _FILE), {}, class_row(rows.PatternModel), many)


def drop_embedding_model(model: str, max_rows: int = 10_000) -> Query[int]:
    """Remove embeddings of a model, at most `max_rows`; how many. 0: none is left."""
    args = {"model": model, "max_rows": max_rows}
    return Query(statement("drop_embedding_model", _FILE), args, scalar_row, one, lambda: 0)


def wanted_pattern_indexes() -> Query[list[rows.PatternIndex]]:
    """What `ensure_pattern_indexes` would build or drop (`tracedb.wanted_pattern_indexes`)."""
    row = class_row(rows.PatternIndex)
    return Query(statement("wanted_pattern_indexes", _FILE), {}, row, many)


def ensure_pattern_indexes(
    max_indexes: int = 10, max_memory_mb: int = 1024
) -> Query[list[rows.PatternIndex]]:
    """Build, drop and refresh the indexes that tenants with many patterns have for themselves.

    Needs tracedb_maintainer. Writers of embeddings wait while one is built, searches do not; see
    `tracedb.ensure_pattern_indexes`.
    """
    args = {"max_indexes": max_indexes, "max_memory_mb": max_memory_mb}
    row = class_row(rows.PatternIndex)
    return Query(statement("ensure_pattern_indexes", _FILE), args, row, many)


def _array(embedding: Iterable[float]) -> str:
    """Numbers as an array of PostgreSQL; what is wrong with them the database says."""
    return "{" + ",".join(repr(float(number)) for number in embedding) + "}"


def _as_json(value: object) -> Any:
    return str(value) if isinstance(value, UUID) else as_json(value)
