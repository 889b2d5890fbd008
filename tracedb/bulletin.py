"""What a writer tells the log: one line for every change of state, without a word of a record."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tracedb.backlog import Backlog
from tracedb.lanes import Lane

log = logging.getLogger("tracedb")

# What passes by itself is not worth a line until it failed so often.
PASSING_FAILURES = 5


class Bulletin:
    """Compares what is with what it said last."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._said: dict[str, str] = {}
        self._dropped = 0
        self._warned: set[str] = set()

    def update(self, down: str | None, lanes: Iterable[Lane]) -> None:
        backlog = self._backlog
        stats = backlog.stats()
        spool = backlog.spool
        keeping = "the spool" if spool else f"memory (at most {backlog.queue_records})"
        now: dict[str, str] = {}
        if down is not None:
            now["the database"] = f"{down}; records are kept in {keeping}"
        for lane in lanes:
            if lane.trouble and (lane.held or lane.backoff.failures >= PASSING_FAILURES):
                now[f"delivery ({lane.trouble})"] = f"fails; records are kept in {keeping}"
        if spool is not None and spool.trouble is not None:
            now["the spool"] = f"{spool.trouble}; records are kept in memory"
        if spool is not None and not spool.has_room(0):
            now["the spool"] = f"full ({spool.max_bytes} bytes)"
        if stats.dropped > self._dropped or ("the queue" in self._said and backlog.is_crowded):
            now["the queue"] = "full; records are dropped and counted"
        for subject, text in now.items():
            if subject not in self._said:
                log.warning("tracedb: %s: %s", subject, text)
        for subject in self._said:
            if subject not in now:
                log.warning("tracedb: %s: well again", subject)
        self._said = now
        self._dropped = stats.dropped
        self._once(stats.refused, "calls without a tenant or after close() are not recorded")
        self._once(stats.dead, "records were refused: tracedb dead-letters list")

    def _once(self, count: int, text: str) -> None:
        if count and text not in self._warned:
            self._warned.add(text)
            log.warning("tracedb: %s", text)
