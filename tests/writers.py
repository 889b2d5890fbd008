"""What tests of the writer have in common."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

import tracedb
from records import trace_id

# Long enough that a test never sees the clock deliver anything.
LATER = 3600.0


@contextmanager
def writer(dsn: str, tenant: UUID | None, **settings: Any) -> Iterator[tracedb.Writer]:
    """A writer that delivers when it is told to, and quickly."""
    quick = {"flush_seconds": LATER, "flush_records": 10**9, "exit_timeout": 20.0}
    with tracedb.Writer(dsn, tenant_id=tenant, **{**quick, **settings}) as writer:
        yield writer


def save(
    writer: tracedb.Writer | tracedb.AsyncWriter, name: str = "a", **fields: Any
) -> str | None:
    """A span of the trace of tests/records.py."""
    return writer.save_span(
        {"trace_id": trace_id(), "operation_type": "llm", "name": name, **fields}
    )


def names(dsn: str, tenant: UUID) -> list[str]:
    """The names of the spans that are stored, in order."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "select name from tracedb.llm_spans where tenant_id = %s order by name", [tenant]
        ).fetchall()
    return [row[0] for row in rows]


def losses(dsn: str, tenant: UUID) -> list[tracedb.WriterLosses]:
    with tracedb.connect(dsn) as db:
        return db.tenant(tenant).loss_report()


def dead_letters(dsn: str, tenant: UUID) -> list[tracedb.DeadLetter]:
    with tracedb.connect(dsn) as db:
        return db.tenant(tenant).dead_letters()


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Return as soon as the condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not come true in time")
        time.sleep(0.01)


def run(
    program: str | Path, *args: str | UUID | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python text or file in an interpreter of its own."""
    # from 3.12 on forking where there are threads is warned of
    options = ["-W", "ignore::DeprecationWarning", *(["-c"] if isinstance(program, str) else [])]
    return subprocess.run(
        [sys.executable, *options, *map(str, (program, *args))],
        env={**os.environ, **(environment or {})},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
