"""Whatever happens, in whatever order: accepted = stored + dead + dropped + pending."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tracedb import spool as spools
from tracedb.backlog import Backlog, Reservation
from tracedb.lanes import Entry, Lane
from tracedb.spool import Spool, read

TENANTS = [UUID(int=n) for n in (1, 2, 3)]


def backlog(spool: Spool | None = None, **changes: Any) -> Backlog:
    settings: dict[str, Any] = {"flush_records": 5, "queue_records": 10, "queue_bytes": 1000}
    return Backlog(uuid4(), "shop", spool, **{**settings, **changes})


class Life(RuleBasedStateMachine):
    """A backlog, and a model of it that knows each number's fate."""

    @initialize(spool_bytes=st.sampled_from([0, 400, 3000, 10**6]))
    def begin(self, spool_bytes: int) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.root = Path(self.scratch.name) / "spool"
        spool = Spool(self.root, uuid4(), "shop", spool_bytes) if spool_bytes else None
        self.backlog = backlog(spool)
        self.lanes: set[Lane] = set()
        self.numbers = dict.fromkeys(TENANTS, 0)
        self.waiting: set[tuple[UUID, int]] = set()
        self.settled: set[tuple[UUID, int]] = set()
        self.dropped: set[tuple[UUID, int]] = set()
        self.stored = self.dead = 0
        self.reserved: list[Reservation] = []

    def teardown(self) -> None:
        if hasattr(self, "scratch"):
            if self.backlog.spool is not None:
                self.backlog.close()
                self.backlog.spool.close()
            self.scratch.cleanup()

    @rule(tenant=st.sampled_from(TENANTS), size=st.integers(1, 300), times=st.integers(1, 8))
    def record(self, tenant: UUID, size: int, times: int) -> None:
        for _ in range(times):
            self.numbers[tenant] += 1
            key = (tenant, self.numbers[tenant])
            text = b"%d %b" % (self.numbers[tenant], b"x" * size)
            (self.waiting if self.backlog.add(tenant, text) else self.dropped).add(key)

    @rule(tenant=st.sampled_from(TENANTS))
    def reserve(self, tenant: UUID) -> None:
        """A record is with the redaction hook."""
        reservation = self.backlog.reserve(tenant)
        assert reservation is not None
        self.numbers[tenant] += 1
        self.reserved.append(reservation)
        self.waiting.add((tenant, self.numbers[tenant]))

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), size=st.none() | st.integers(1, 300))
    def fill(self, data: st.DataObject, size: int | None) -> None:
        """The hook is done with it, or has no room."""
        place = data.draw(st.integers(0, len(self.reserved) - 1))
        reservation = self.reserved.pop(place)
        lane, number, _ = reservation
        text = None if size is None else b"%d %b" % (number, b"x" * size)
        if not self.backlog.fill(reservation, text):
            self.waiting.remove((lane.tenant_id, number))
            self.dropped.add((lane.tenant_id, number))

    @rule(everything=st.booleans())
    def take(self, everything: bool) -> None:
        self.lanes.update(self.backlog.take(everything))

    @rule(data=st.data(), outcome=st.sampled_from(["stored", "dead"]))
    def deliver(self, data: st.DataObject, outcome: str) -> None:
        lanes = [lane for lane in self.lanes if lane.queue]
        if not lanes:
            return
        lane = data.draw(st.sampled_from(sorted(lanes, key=lambda lane: lane.tenant_id)))
        batch = lane.head()[: data.draw(st.integers(1, 10))]
        lane.advance(batch)
        dead = len(batch) if outcome == "dead" else 0
        for segment in self.backlog.settle(lane, batch, dead):
            segment.remove()
        self.dead += dead
        self.stored += len(batch) - dead
        for number, text, _ in batch:
            assert text.startswith(b"%d " % number)
            assert (lane.tenant_id, number) in self.waiting
            self.waiting.remove((lane.tenant_id, number))
            self.settled.add((lane.tenant_id, number))

    @rule()
    def read_back(self) -> None:
        slab = self.backlog.spilled()
        if slab is not None:
            assert slab.segment is not None
            contents = read(slab.segment)
            assert contents is not None
            self.lanes.update(self.backlog.load(slab, contents))

    @rule(tenant=st.sampled_from(TENANTS), held=st.booleans())
    def hold(self, tenant: UUID, held: bool) -> None:
        for lane in self.lanes:
            if lane.tenant_id == tenant:
                lane.held = held

    @rule()
    def flush(self) -> None:
        assert self.backlog.flush(timeout=0) == (not self.waiting)

    @precondition(lambda self: self.backlog.spool is not None)
    @rule(seconds=st.sampled_from([0.0, 1e9]))
    def disk_fails(self, seconds: float) -> None:
        """The folder becomes a place where no file can be made, or a good one again."""
        spool = self.backlog.spool
        assert spool is not None
        spool.trouble = "no" if seconds else None
        spool._retry_at = seconds

    @rule(tenant=st.sampled_from(TENANTS))
    def report_dropped(self, tenant: UUID) -> None:
        for lane in self.lanes:
            if lane.tenant_id == tenant:
                ranges = self.backlog.take_dropped(lane)
                for first, last in ranges:
                    for number in range(first, last + 1):
                        assert (tenant, number) in self.dropped
                self.backlog.return_dropped(lane, ranges)

    @invariant()
    def every_number_has_one_fate(self) -> None:
        if not hasattr(self, "backlog"):
            return
        stats = self.backlog.stats()
        assert stats.accepted == sum(self.numbers.values())
        assert (stats.stored, stats.dead) == (self.stored, self.dead)
        assert (stats.dropped, stats.pending) == (len(self.dropped), len(self.waiting))
        assert stats.accepted == stats.stored + stats.dead + stats.dropped + stats.pending
        assert self.waiting | self.settled | self.dropped == {
            (tenant, number + 1) for tenant in TENANTS for number in range(self.numbers[tenant])
        }

    @invariant()
    def files_are_no_more_than_what_waits(self) -> None:
        if not hasattr(self, "backlog") or self.backlog.spool is None:
            return
        files = list(self.root.rglob("*.seg"))
        assert sum(path.stat().st_size for path in files) == self.backlog.spool.size
        # each of the two open ones, and those with something in them
        assert len(files) <= 2 + len(self.waiting)


TestLife = pytest.mark.slow(Life.TestCase)
TestLife.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "SEGMENT_BYTES", 600)


def drained(ours: Backlog) -> list[Entry]:
    """All that is in memory or can be read back, settled."""
    entries: list[Entry] = []
    lanes = set(ours.take(True))
    while True:
        slab = ours.spilled()
        if slab is not None and slab.segment is not None:
            contents = read(slab.segment)
            assert contents is not None
            lanes.update(ours.load(slab, contents))
        busy = [lane for lane in lanes if lane.queue]
        if not busy:
            return entries
        for lane in busy:
            batch = lane.head()
            lane.advance(batch)
            entries += batch
            for segment in ours.settle(lane, batch):
                segment.remove()


def test_a_full_queue_drops_the_newest_and_knows_its_numbers() -> None:
    ours = backlog(queue_records=3)
    accepted = [ours.add(TENANTS[0], b"{}") for _ in range(8)]
    (lane,) = ours.take(True)

    assert accepted == [True] * 3 + [False] * 5
    assert ours.take_dropped(lane) == [[4, 8]]
    assert ours.stats().dropped == 5


def test_a_queue_is_bounded_in_bytes_too() -> None:
    ours = backlog(queue_bytes=100)

    assert [ours.add(TENANTS[0], b"x" * 60) for _ in range(2)] == [True, False]


def test_with_a_spool_what_is_too_much_for_memory_waits_on_disk(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 10**6), queue_records=4)
    assert all(ours.add(TENANTS[n % 2], b"%d" % n) for n in range(100))

    assert ours.stats().pending == 100
    assert sorted(int(text) for _, text, _ in drained(ours)) == list(range(100))
    assert ours.stats().stored == 100


def test_a_full_spool_drops_what_memory_cannot_take(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 1000), queue_records=4)
    accepted = [ours.add(TENANTS[0], b"x" * 100) for _ in range(50)]
    stats = ours.stats()

    assert accepted.count(False) == stats.dropped > 30
    assert stats.accepted == stats.pending + stats.dropped == 50
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) < 1300


def test_a_held_tenant_leaves_half_of_the_queue_to_the_others() -> None:
    ours = backlog(queue_records=10)
    ours.add(TENANTS[0], b"{}")
    (lane,) = ours.take(True)
    lane.held = True

    assert [ours.add(TENANTS[0], b"{}") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [ours.add(TENANTS[1], b"{}") for _ in range(6)] == [True] * 5 + [False]


def test_records_of_a_held_tenant_stay_on_disk_while_others_are_read(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 10**6), queue_records=4)
    for n in range(20):
        ours.add(TENANTS[n % 2], b"%d" % n)
    lanes = ours.take(True)
    (held,) = (lane for lane in lanes if lane.tenant_id == TENANTS[0])
    held.held = True
    (free,) = (lane for lane in lanes if lane.tenant_id == TENANTS[1])
    ours.settle(free, list(free.queue))
    free.queue.clear()
    ours.settle(held, list(held.queue))
    held.queue.clear()

    assert {int(text) % 2 for _, text, _ in drained(ours)} == {1}
    assert ours.stats().pending == 8
    held.held = False
    assert {int(text) % 2 for _, text, _ in drained(ours)} == {0}
    assert ours.stats().pending == 0


def test_a_damaged_line_of_a_file_that_is_read_back_is_counted(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 10**6), queue_records=1)
    for _ in range(4):
        ours.add(TENANTS[0], b'{"a":1}')
    path = max(tmp_path.rglob("*.seg"))
    path.write_bytes(path.read_bytes().replace(b'"a":1', b'"a":2', 1))
    drained(ours)
    stats = ours.stats()

    assert (stats.stored, stats.dropped, stats.pending) == (3, 1, 0)


def test_a_file_that_somebody_removed_is_counted(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 10**6), queue_records=1)
    for _ in range(4):
        ours.add(TENANTS[0], b"{}")
    max(tmp_path.rglob("*.seg")).unlink()
    (lane,) = ours.take(True)
    ours.settle(lane, list(lane.queue))
    slab = ours.spilled()
    assert slab is not None
    ours.give_up(slab)
    stats = ours.stats()

    assert (stats.stored, stats.dropped, stats.pending) == (1, 3, 0)


def test_a_file_in_use_is_emptied_when_all_in_it_is_settled(tmp_path: Path) -> None:
    ours = backlog(Spool(tmp_path, uuid4(), None, 10**6))
    ours.add(TENANTS[0], b'{"user":"somebody"}')
    drained(ours)

    (path,) = tmp_path.rglob("*.seg")
    assert b"somebody" not in path.read_bytes()
    ours.close()
    assert list(tmp_path.rglob("*.seg")) == []


def test_nothing_is_numbered_after_the_end() -> None:
    ours = backlog()
    ours.close()

    assert not ours.add(TENANTS[0], b"{}")
    assert ours.stats().refused == 1
    assert ours.stats().accepted == 0
