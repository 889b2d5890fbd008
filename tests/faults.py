"""Events offered to a writer, and what became of them: for the fault suite and the soak."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from pathlib import Path
from uuid import UUID

import psycopg

import tracedb.server
from tracedb import TracedbError, Writer
from tracedb.server import EmbeddedServer

CATEGORY = "fault"


@dataclass(slots=True)
class Offered:
    """The events one process offered, by number, and how long each call took."""

    writer: Writer
    numbers: Iterator[int] = field(default_factory=count)
    offered: int = 0
    seconds: list[float] = field(default_factory=list)

    def offer(self, events: int = 1) -> None:
        for number in (next(self.numbers) for _ in range(events)):
            start = time.perf_counter()
            self.writer.log_platform_event(
                event_type="offered",
                event_category=CATEGORY,
                event_data={"n": number, "text": "x" * 1000},
            )
            self.seconds.append(time.perf_counter() - start)
            self.offered += 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What was offered and what is in the table; times of the call in microseconds."""

    offered: int
    stored: int
    duplicate: int
    missing: int
    p50_us: float = 0
    p99_us: float = 0
    max_us: float = 0

    def __str__(self) -> str:
        return (
            f"offered {self.offered:,}, stored {self.stored:,}, duplicate {self.duplicate},"
            f" missing {self.missing}; call p50 {self.p50_us:.0f} us, p99 {self.p99_us:.0f} us,"
            f" max {self.max_us:.0f} us"
        )


def figures(dsn: str, tenant: UUID, offered: Offered) -> Figures:
    """Compare what was offered with the table."""
    stored = numbers(dsn, tenant)
    return Figures(
        offered.offered,
        len(stored),
        len(stored) - len(set(stored)),
        len(set(range(offered.offered)) - set(stored)),
        *percentiles(sorted(seconds * 1e6 for seconds in offered.seconds)),
    )


def percentiles(ranked: Sequence[float]) -> tuple[float, float, float]:
    """The 50th, the 99th and the 100th percentile of sorted values; 0 if there are none."""

    def percentile(share: float) -> float:
        return ranked[ceil(share * len(ranked)) - 1] if ranked else 0

    return percentile(0.5), percentile(0.99), percentile(1)


def numbers(dsn: str, tenant: UUID) -> list[int]:
    """The numbers of the stored events, one a row."""
    with psycopg.connect(dsn) as conn:
        found = conn.execute(
            "select (event_data ->> 'n')::integer from tracedb.platform_events"
            " where tenant_id = %s and event_category = %s",
            [tenant, CATEGORY],
        ).fetchall()
    return [number for (number,) in found]


def terminate_writers(admin: psycopg.Connection[object]) -> int:
    """Kill the server side of every writer's connection; how many there were."""
    row = admin.execute(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name = 'tracedb writer'"
    ).fetchone()
    assert isinstance(row, tuple)
    return int(row[0])


def kill(server: EmbeddedServer) -> None:
    """End the server as a power failure of its process would: kill -9."""
    pid = int((server.data_dir / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)


def tries(seconds: float, what: str) -> Iterator[None]:
    """Go on trying until the time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
    raise AssertionError(f"not within {seconds} s: {what}")


def start_again(data_dir: Path, settings: dict[str, str], bin_dir: Path) -> EmbeddedServer:
    """Start a killed server; its children may still be going."""
    for _ in tries(60, "the server starts again"):
        with suppress(TracedbError):
            return tracedb.server.start(data_dir, settings=settings, bin_dir=bin_dir)
    raise AssertionError
