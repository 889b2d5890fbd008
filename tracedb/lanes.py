"""Where accepted records wait: a lane for each tenant, and slabs that count what is unsettled."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from random import uniform
from threading import Lock
from time import monotonic
from uuid import UUID

from tracedb.spool import Folder, Segment

MAX_BATCH_RECORDS = 1000
MAX_BATCH_BYTES = 8 * 1024 * 1024

# What begins the text of a record that could not be written as JSON; its reason follows.
UNRECORDABLE = b'{"tracedb_unrecordable":'


@dataclass(slots=True, eq=False)
class Slab:
    """A stretch of accepted records: over when all of them are settled, and then its file goes."""

    segment: Segment | None = None
    unsettled: int = 0
    # Records that are in the file and not in memory, by lane.
    spilled: Counter[Lane] = field(default_factory=Counter)
    # Whether nobody has counted yet what the file holds.
    unread: bool = False
    # The adopted folder it is in; None: it holds records of this process.
    folder: Folder | None = None
    # When its file may be tried again after it could not be read.
    later: float = 0.0

    @property
    def is_over(self) -> bool:
        return not self.unsettled and not self.unread


@dataclass(slots=True)
class Suspect:
    """A record that failed alone: how often, and once it is judged, why it is buried."""

    failures: int = 0
    reason: str | None = None
    sqlstate: str | None = None
    # Whether it is judged because the connection was lost each time.
    loses_connections: bool = False
    # Whether its text cannot be sent either.
    unspeakable: bool = False


@dataclass(slots=True)
class Backoff:
    """When to try again: after 0.1 s, then twice as long each time, up to `longest`; less a bit."""

    failures: int = 0
    until: float = 0.0

    def fail(self, longest: float) -> None:
        self.failures += 1
        pause = min(longest, 0.1 * 2 ** min(self.failures - 1, 10))
        self.until = monotonic() + pause * uniform(0.5, 1)

    def reset(self) -> None:
        self.failures = 0
        self.until = 0.0


# number, JSON text, and the slab it counts for
Entry = tuple[int, bytes, Slab]


@dataclass(slots=True, eq=False)
class Lane:
    """The records of one writer for one tenant; the trouble of one lane does not hold another."""

    writer_id: UUID
    tenant_id: UUID
    service: str | None
    # The adopted folder its records come from; None: they are this process's own.
    folder: Folder | None = None
    highest: int = 0
    # Records that the delivery has not seen yet.
    fresh: list[Entry] = field(default_factory=list)
    # Ranges (first, last) of numbers whose records were given up.
    dropped: list[list[int]] = field(default_factory=list)
    # Whether the delivery will be told of it.
    active: bool = False
    # Whether its records have to wait until somebody does something.
    held: bool = False

    # The rest is the delivery's alone.
    queue: deque[Entry] = field(default_factory=deque)
    backoff: Backoff = field(default_factory=Backoff)
    limit: int = MAX_BATCH_RECORDS
    suspect: Suspect | None = None
    # What its last delivery failed of.
    trouble: str | None = None
    # Whether to tell the database that there will be no more, and whether it knows.
    ending: bool = False
    ended: bool = False

    @property
    def tenant(self) -> bytes:
        return self.tenant_id.hex.encode()

    def drop(self, number: int) -> None:
        """The record of that number was given up."""
        if self.dropped and self.dropped[-1][1] == number - 1:
            self.dropped[-1][1] = number
        else:
            self.dropped.append([number, number])

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self.dropped or (self.ending and not self.ended))

    def head(self) -> list[Entry]:
        """The next records to deliver together; one that is not JSON stands alone."""
        batch: list[Entry] = []
        size = 0
        for entry in islice(self.queue, self.limit):
            size += len(entry[1])
            odd = entry[1].startswith(UNRECORDABLE)
            if batch and (odd or size > MAX_BATCH_BYTES):
                break
            batch.append(entry)
            if odd:
                break
        return batch

    def advance(self, batch: list[Entry]) -> None:
        """These records of the head are settled."""
        for _ in batch:
            self.queue.popleft()
        self.limit = min(MAX_BATCH_RECORDS, self.limit * 2)
        self.suspect = None
        self.recover()

    def recover(self) -> None:
        """Its delivery works."""
        self.held = False
        self.trouble = None
        self.backoff.reset()


class Bell:
    """Wakes one thread. Ringing is one atomic step, so that a signal handler may do it too."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=max(seconds, 0))
