"""Following what is written: every committed change is seen, whatever commits when."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import tracedb
from records import at, ingest, span, trace, trace_id
from servers import as_role
from tracedb.rows import TraceChange

Conn = psycopg.Connection[Any]
WRITERS = 16


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture
def reader(database: str, tenant: UUID) -> Iterator[tracedb.Tenant]:
    with tracedb.connect(database, max_size=1) as db:
        yield db.tenant(tenant)


class Follower:
    """Reads on from where it was, in small pages, until there is no more."""

    def __init__(self, reader: tracedb.Tenant, limit: int = 3) -> None:
        self.reader = reader
        self.limit = limit
        self.cursor: str | None = None
        self.seen: set[str] = set()

    def read(self) -> list[str]:
        found = []
        while changes := self.reader.changes_since(self.cursor, self.limit):
            self.cursor = changes[-1].next_cursor
            found += [str(change.trace_id) for change in changes]
        self.seen.update(found)
        return found


def settle(dsn: str) -> None:
    """Wait for what else the server writes (statistics, say): changes wait for it too."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        (mine,) = conn.execute("select pg_current_xact_id()::text").fetchone() or ("",)
        query = "select pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8"
        deadline = time.monotonic() + 30
        while conn.execute(query, [mine]).fetchone() != (True,):
            assert time.monotonic() < deadline, "a transaction stayed open"


def write(conn: Conn, tenant: UUID, *keys: str) -> None:
    assert ingest(conn, tenant, [trace(trace_id=trace_id(key)) for key in keys])["rejected"] == []


def test_none_is_skipped_whatever_order_16_writers_commit_in(
    database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    rng = random.Random(16)
    follower = Follower(reader)
    committed: set[str] = set()
    lost_by_others = 0
    newest_seen = "0"
    with ExitStack() as stack:
        writers = [stack.enter_context(psycopg.connect(database)) for _ in range(WRITERS)]
        for turn in range(4):
            keys = {n: f"{turn}/{n}" for n in rng.sample(range(WRITERS), WRITERS)}
            for n, key in keys.items():
                write(writers[n], tenant, key)
            for n in rng.sample(range(WRITERS), WRITERS):
                if rng.random() < 0.2:
                    writers[n].rollback()
                else:
                    writers[n].commit()
                    committed.add(trace_id(keys[n]))
                follower.read()
                # what a reader would do who believes that the order of numbers is that of commits
                query = (
                    "select max(written_by)::text, count(*) filter (where written_by < %s)"
                    " from tracedb.trace_changes"
                )
                with psycopg.connect(database) as conn:
                    newest, behind = conn.execute(query, [newest_seen]).fetchone() or ("0", 0)
                lost_by_others += behind
                newest_seen = newest or "0"

    settle(database)
    follower.read()
    assert follower.seen == committed
    assert lost_by_others, "else any reader would have passed"


def test_none_is_skipped_while_16_writers_write_at_once(
    database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    begin = threading.Barrier(WRITERS + 1)
    done = threading.Event()

    def write_some(writer: int) -> set[str]:
        rng = random.Random(writer)
        committed: set[str] = set()
        with psycopg.connect(database) as conn:
            begin.wait()
            for turn in range(12):
                keys = [f"{writer}/{turn}/{n}" for n in range(rng.randrange(1, 5))]
                write(conn, tenant, *keys)
                if rng.random() < 0.2:
                    conn.rollback()
                else:
                    conn.commit()
                    committed.update(map(trace_id, keys))
        return committed

    def follow() -> Follower:
        follower = Follower(reader, limit=5)
        begin.wait()
        while not done.is_set():
            follower.read()
        settle(database)
        follower.read()
        return follower

    with ThreadPoolExecutor(WRITERS + 1) as executor:
        following = executor.submit(follow)
        writing = [executor.submit(write_some, n) for n in range(WRITERS)]
        try:
            committed = set().union(*(future.result() for future in writing))
        finally:
            done.set()
        follower = following.result()

    assert len(committed) > 100
    assert follower.seen == committed


def test_an_older_transaction_that_still_writes_holds_younger_ones_back(
    database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    follower = Follower(reader)
    with psycopg.connect(database) as older, psycopg.connect(database) as younger:
        write(older, tenant, "older")
        write(younger, tenant, "younger")
        younger.commit()
        assert follower.read() == []
        older.commit()
        settle(database)
        assert follower.read() == [trace_id("older"), trace_id("younger")]
    assert follower.read() == []


def test_a_part_changes_its_trace(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    follower = Follower(reader)
    for record in (
        trace(),
        span(1),
        trace(ended_at=at(5)),
        {"type": "payload", "trace_id": trace_id(), "kind": "prompt", "content": "why?"}
        | {"recorded_at": at()},
    ):
        ingest(conn, tenant, [record])
        conn.commit()
        settle(database)
        assert follower.read() == [trace_id()]


def test_what_the_bulk_path_stores_is_seen(
    database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    whole, bare = trace_id("whole"), trace_id("bare")
    records = [trace(trace_id=whole), span(1, trace_id=whole), span(2, trace_id=bare)]
    follower = Follower(reader)

    with tracedb.connect(f"{database} options='-c role=tracedb_app'", max_size=1) as db:
        assert db.tenant(tenant).ingest(records).inserted == 3
        settle(database)
        assert set(follower.read()) == {whole, bare}

        assert db.tenant(tenant).ingest([span(3, trace_id=whole)]).inserted == 1
        settle(database)
        assert follower.read() == [whole]


def test_what_is_refused_and_what_only_names_a_trace_changes_nothing(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    refused = trace(trace_id=trace_id("refused"), cost_usd=-1)
    event = {"type": "platform_event", "event_key": "e", "trace_id": trace_id("named")}
    event |= {"event_type": "a", "event_category": "b", "occurred_at": at()}
    keys = [f"kept {n}" for n in range(5)]
    kept = [trace(trace_id=trace_id(key)) for key in keys]
    answer = ingest(conn, tenant, [*kept[:3], refused, event, *kept[3:]])
    conn.commit()
    settle(database)

    assert len(answer["rejected"]) == 1
    assert sorted(Follower(reader).read()) == sorted(map(trace_id, keys))


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_pages_of_any_size_go_through_large_batches(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant, limit: int
) -> None:
    for batch in range(3):
        write(conn, tenant, *(f"{batch}/{n}" for n in range(8)))
        write(conn, tenant, f"{batch}/more")
        conn.commit()
    settle(database)

    found = Follower(reader, limit).read()

    assert len(found) == len(set(found)) == 27


def test_a_cursor_of_now_skips_what_was_before(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    write(conn, tenant, "before")
    conn.commit()
    settle(database)
    follower = Follower(reader)
    follower.cursor = reader.changes_cursor()
    write(conn, tenant, "after")
    conn.commit()
    settle(database)

    assert follower.read() == [trace_id("after")]


def test_what_was_open_at_a_cursor_of_now_comes_after_it(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    write(conn, tenant, "open")
    follower = Follower(reader)
    follower.cursor = reader.changes_cursor()
    conn.commit()
    settle(database)

    assert follower.read() == [trace_id("open")]


def test_each_tenant_follows_its_own(conn: Conn, database: str, tenant: UUID) -> None:
    other = uuid4()
    write(conn, tenant, "mine")
    write(conn, other, "theirs")
    conn.commit()
    settle(database)

    for role in ("tracedb_app", "tracedb_reader"):
        with as_role(conn, role, tenant):
            assert [str(c.trace_id) for c in changes(conn, tenant)] == [trace_id("mine")]
            assert changes(conn, other) == []


def changes(conn: Conn, tenant: UUID) -> list[TraceChange]:
    found = conn.execute("select * from tracedb.changes_since(null, 100, %s)", [tenant])
    return [TraceChange(*row) for row in found]


def test_a_cursor_that_means_nothing_here_is_refused(
    conn: Conn, database: str, tenant: UUID, reader: tracedb.Tenant
) -> None:
    write(conn, tenant, "one")
    conn.commit()
    settle(database)
    server, xid, *rest = reader.changes_since()[0].next_cursor.split("/")

    elsewhere = "/".join([str(int(server) + 1), xid, *rest])
    never_given = "/".join([server, str(int(xid) + 10_000_000), *rest])
    for cursor in (elsewhere, never_given):
        with pytest.raises(tracedb.InvalidInput, match=r"^cursor: of another server"):
            reader.changes_since(cursor)
    for cursor in ("", "7", json.dumps({"x": 1}), f"{server}/{xid}", f"{server}/'/{rest[0]}/1"):
        with pytest.raises(tracedb.InvalidInput, match=r"^cursor: must be one that"):
            reader.changes_since(cursor)
