"""Maintenance jobs: one run of each at a time, and a row in `maintenance_runs` for every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, scalar_row
from psycopg.types.json import Jsonb

from tracedb.errors import AlreadyRunning, TracedbError
from tracedb.query import Query, many, one, run, statement

_FILE = "retention.sql"


@dataclass(frozen=True, slots=True)
class MaintenanceRun:
    """A run of a job; `ended_at` None: it still runs, or was killed."""

    run_id: UUID
    job: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str
    figures: dict[str, Any]
    error: str | None
    run_by: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What maintenance would do good; see `tracedb.maintenance_advice`."""

    object: str
    advice: str
    reason: str
    command: str


@dataclass(slots=True)
class Outcome:
    """What a job has to say of its run: its figures, and whether it found something wrong."""

    figures: dict[str, Any] = field(default_factory=dict)
    outcome: str = "ok"
    error: str | None = None


def maintenance_runs(job: str | None = None, limit: int = 100) -> Query[list[MaintenanceRun]]:
    """What maintenance did, the newest run first; of one job, or of all."""
    args = {"job": job, "limit": limit}
    return Query(statement("maintenance_runs", _FILE), args, class_row(MaintenanceRun), many)


def maintenance_advice(min_bytes: int = 64 << 20) -> Query[list[Advice]]:
    """What vacuum, analyze or reindex would do good (`tracedb.maintenance_advice`)."""
    return Query(
        statement("maintenance_advice", _FILE), {"min_bytes": min_bytes}, class_row(Advice), many
    )


@contextmanager
def only_one(conn: Connection[Any], job: str) -> Iterator[None]:
    """Keep other runs of a job out; AlreadyRunning if there is one."""
    if not _ask(conn, "try_job_lock", {"job": job}):
        raise AlreadyRunning(f"another session runs {job}")
    try:
        yield
    finally:
        if not conn.closed:
            _ask(conn, "end_job_lock", {"job": job})


@contextmanager
def recorded(conn: Connection[Any], job: str) -> Iterator[Outcome]:
    """Write down a run of a job and how it ended; nothing on a replica."""
    result = Outcome()
    if _ask(conn, "in_recovery"):
        yield result
        return
    run_id = _ask(conn, "begin_run", {"job": job})
    try:
        yield result
    except BaseException as error:
        result.outcome, result.error = "failed", f"{type(error).__name__}: {error}"
        with suppress(TracedbError):  # of a connection that is gone
            _end(conn, run_id, result)
        raise
    _end(conn, run_id, result)


def _end(conn: Connection[Any], run_id: UUID, result: Outcome) -> None:
    figures = Jsonb(result.figures, dumps=lambda value: json.dumps(value, default=str))
    args = {
        "run_id": run_id,
        "outcome": result.outcome,
        "figures": figures,
        "error": result.error,
    }
    _ask(conn, "end_run", args)


def _ask(conn: Connection[Any], name: str, args: dict[str, Any] | None = None) -> Any:
    return run(conn, Query(statement(name, _FILE), args or {}, scalar_row, one))
