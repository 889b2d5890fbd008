"""What a writer accepted and has not settled yet: numbered, bounded and counted.

Shared by the calls that record and the thread that delivers, under one lock that is held for
microseconds. Nothing here waits for the database, and nothing logs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from threading import Condition, RLock
from time import monotonic
from uuid import UUID

from tracedb.lanes import Bell, Entry, Lane, Slab
from tracedb.slabs import Slabs
from tracedb.spool import Contents, Folder, Segment, Spool


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the records of this writer: accepted = stored + dead + dropped + pending.

    `recovered` counts records of earlier processes, found in the spool and settled by this one.
    `refused` counts calls that could not be numbered: no tenant, or the writer was closed.
    """

    accepted: int = 0
    stored: int = 0
    dead: int = 0
    dropped: int = 0
    pending: int = 0
    recovered: int = 0
    refused: int = 0


# A numbered record without its text: its lane, its number, and the slab it counts for meanwhile.
Reservation = tuple[Lane, int, Slab]


class Backlog:
    """The numbered records of one writer. See the module."""

    def __init__(
        self,
        writer_id: UUID,
        service: str | None,
        spool: Spool | None,
        *,
        flush_records: int,
        queue_records: int,
        queue_bytes: int,
    ) -> None:
        self.writer_id = writer_id
        self.service = service
        self.spool = spool
        self.flush_records = flush_records
        self.queue_records = queue_records
        self.queue_bytes = queue_bytes
        self.bell = Bell()
        self.closed = False
        # by writer and tenant; the delivery's alone
        self.adopted_lanes: dict[tuple[UUID, UUID], Lane] = {}
        # A signal handler or a finalizer may record while its thread is in here.
        self._lock = RLock()
        self._settled = Condition(self._lock)
        self._flushing = 0
        self._hurry = False
        self._lanes: dict[UUID, Lane] = {}
        self._active: list[Lane] = []
        self._slabs = Slabs(spool)
        self._reserved = 0
        self._queued = 0
        self._queued_bytes = 0
        self._accepted = 0
        self._stored = 0
        self._dead = 0
        self._dropped = 0
        self._recovered = 0
        self._refused = 0

    # The calls that record

    def add(self, tenant_id: UUID, text: bytes) -> bool:
        """Number a record and keep it, in the spool if there is one; False if it was dropped."""
        with self._lock:
            if self.closed:
                self._refused += 1
                return False
            return self._keep(*self._numbered(tenant_id), text)

    def reserve(self, tenant_id: UUID) -> Reservation | None:
        """Number a record whose text comes later; None after the end."""
        with self._lock:
            if self.closed:
                self._refused += 1
                return None
            slab = self._slabs.in_memory()
            slab.unsettled += 1
            self._reserved += 1
            return *self._numbered(tenant_id), slab

    def fill(self, reservation: Reservation, text: bytes | None) -> bool:
        """Keep a record that was numbered before, or give it up; False if it was dropped."""
        lane, number, slab = reservation
        with self._lock:
            kept = self._drop(lane, number) if text is None else self._keep(lane, number, text)
            slab.unsettled -= 1
            self._reserved -= 1
            self._remove_over([slab])
            return kept

    def _numbered(self, tenant_id: UUID) -> tuple[Lane, int]:
        lane = self._lanes.get(tenant_id)
        if lane is None:
            lane = self._lanes[tenant_id] = Lane(self.writer_id, tenant_id, self.service)
        number = lane.highest + 1
        lane.highest = number
        self._accepted += 1
        return lane, number

    def _keep(self, lane: Lane, number: int, text: bytes) -> bool:
        size = len(text)
        # What waits for one tenant leaves room for the others.
        room = self.queue_records >> 1 if lane.held else self.queue_records
        fits = self._queued < room and self._queued_bytes + size <= self.queue_bytes
        slab = self._slabs.on_disk(lane, number, text, mirrored=fits) if self.spool else None
        if slab is None:
            if not fits:
                return self._drop(lane, number)
            slab = self._slabs.in_memory()
        slab.unsettled += 1
        if not fits:
            slab.spilled[lane] += 1
            return True
        lane.fresh.append((number, text, slab))
        self._queued += 1
        self._queued_bytes += size
        self._activate(lane)
        if len(lane.fresh) == self.flush_records:
            self.bell.ring()
        elif self._queued == (self.queue_records >> 1) + 1:
            self._hurry = True
            self.bell.ring()
        return True

    def _drop(self, lane: Lane, number: int) -> bool:
        lane.drop(number)
        self._dropped += 1
        self._activate(lane)
        return False

    def _activate(self, lane: Lane) -> None:
        if not lane.active:
            lane.active = True
            self._active.append(lane)

    def refuse(self) -> None:
        """Count a call that could not be numbered."""
        with self._lock:
            self._refused += 1

    def stats(self) -> Stats:
        with self._lock:
            return Stats(
                self._accepted,
                self._stored,
                self._dead,
                self._dropped,
                self._slabs.pending,
                self._recovered,
                self._refused,
            )

    def flush(self, timeout: float | None) -> bool:
        """Wait until all that was accepted before is settled; False if it took too long."""
        deadline = None if timeout is None else monotonic() + timeout
        with self._lock:
            # what is only reserved comes to lie in a slab of the second round
            rounds = 2 if self._reserved else 1
            return all(self._flush(deadline) for _ in range(rounds))

    def _flush(self, deadline: float | None) -> bool:
        self._slabs.seal()
        waited_for = self._slabs.every()
        self._flushing += 1
        self._hurry = True
        self.bell.ring()
        try:
            while not all(slab.is_over for slab in waited_for):
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    return False
                self._settled.wait(left)
            return True
        finally:
            self._flushing -= 1

    def close(self) -> None:
        """Number no more records."""
        with self._lock:
            self.closed = True
            self._slabs.seal()
            self._hurry = True
            self.bell.ring()

    # The thread that delivers

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits."""
        return self._flushing > 0 or self.closed

    @property
    def is_crowded(self) -> bool:
        """Whether there is not much room left in memory."""
        return self._queued > self.queue_records >> 1 or self._queued_bytes > self.queue_bytes >> 1

    @property
    def is_settled(self) -> bool:
        with self._lock:
            return self._slabs.are_over

    def take_hurry(self) -> bool:
        """Whether everything is to be delivered now; asked once."""
        with self._lock:
            hurry, self._hurry = self._hurry, False
        return hurry

    def take(self, everything: bool) -> list[Lane]:
        """The lanes with something to deliver, their records moved to the lane's queue."""
        with self._lock:
            ripe = [
                lane for lane in self._active if everything or len(lane.fresh) >= self.flush_records
            ]
            taken = [lane.fresh for lane in ripe]
            for lane in ripe:
                lane.fresh = []
                lane.active = False
            self._active = [lane for lane in self._active if lane.active]
        for lane, entries in zip(ripe, taken, strict=True):
            lane.queue.extend(entries)
        return ripe

    def take_dropped(self, lane: Lane) -> list[list[int]]:
        """The ranges of dropped numbers to report; `return_dropped` if that failed."""
        with self._lock:
            dropped, lane.dropped = lane.dropped, []
        return dropped

    def return_dropped(self, lane: Lane, dropped: list[list[int]]) -> None:
        with self._lock:
            lane.dropped = dropped + lane.dropped

    def settle(self, lane: Lane, batch: list[Entry], dead: int = 0) -> list[Segment]:
        """Count records as stored, or as dead; the files that are over, to be removed."""
        counts = Counter([slab for _, _, slab in batch])
        size = sum([len(text) for _, text, _ in batch])
        with self._lock:
            if lane.folder is None:
                self._stored += len(batch) - dead
                self._dead += dead
            else:
                self._recovered += len(batch)
            self._queued -= len(batch)
            self._queued_bytes -= size
            for slab, count in counts.items():
                slab.unsettled -= count
            return self._over(list(counts))

    def own_lanes(self) -> list[Lane]:
        """Every lane that this writer gave numbers to."""
        with self._lock:
            return list(self._lanes.values())

    def adopt(self, folder: Folder) -> None:
        """Take over the records of a writer that is gone."""
        with self._lock:
            self._slabs.adopt(folder)

    def is_over(self, folder: Folder) -> bool:
        """Whether all records of an adopted folder are settled."""
        with self._lock:
            return not any(slab.folder is folder for slab in self._slabs.every())

    def spilled(self) -> Slab | None:
        """A slab with records to be read back, if there is room for them in memory."""
        with self._lock:
            return None if self.is_crowded else self._slabs.spilled()

    def load(self, slab: Slab, contents: Contents) -> list[Lane]:
        """Queue the records of a file that are not in memory; those of held lanes stay there."""
        entries: dict[Lane, list[Entry]] = {}
        for number, tenant_id, text in contents.records:
            lane = self._lane_of(slab, tenant_id, contents.service)
            lane.highest = max(lane.highest, number)
            entries.setdefault(lane, []).append((number, text, slab))
        with self._lock:
            if slab.unread:
                slab.unread = False
                slab.spilled.update({lane: len(found) for lane, found in entries.items()})
                slab.unsettled = slab.spilled.total()
            loaded = [lane for lane in slab.spilled if not lane.held]
            for lane in loaded:
                count = slab.spilled.pop(lane)
                found = entries.get(lane, [])
                # A damaged line is lost; the ledger shows its number as missing.
                slab.unsettled -= count - len(found)
                if slab.folder is None:
                    self._dropped += count - len(found)
                self._queued += len(found)
                self._queued_bytes += sum([len(text) for _, text, _ in found])
            self._remove_over([slab])
        for lane in loaded:
            lane.queue.extend(entries.get(lane, []))
        return loaded

    def give_up(self, slab: Slab) -> None:
        """The file is gone, or none of ours and left alone."""
        with self._lock:
            if slab.folder is None:
                self._dropped += slab.spilled.total()
            slab.unsettled -= slab.spilled.total()
            slab.spilled.clear()
            slab.unread = False
            if slab.is_over:
                self._slabs.forget(slab)
            self._settled.notify_all()

    def _lane_of(self, slab: Slab, tenant_id: UUID, service: str | None) -> Lane:
        if slab.folder is None:
            return self._lanes[tenant_id]
        key = (slab.folder.writer_id, tenant_id)
        if key not in self.adopted_lanes:
            self.adopted_lanes[key] = Lane(*key, service, slab.folder)
        return self.adopted_lanes[key]

    def _over(self, slabs: list[Slab]) -> list[Segment]:
        """Tell who waits for them that slabs are over; their files, to be removed."""
        files = self._slabs.take_over(slabs)
        if self._flushing:
            self._settled.notify_all()
        return files

    def _remove_over(self, slabs: list[Slab]) -> None:
        for segment in self._over(slabs):
            segment.remove()
