"""Erasure reaches the archives, and a restore does not bring back who was erased."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

import tracedb
from test_erasure import MARKER, USER, hits, records_of
from test_retention import NOW, OLD, admin, conn, done, store
from tracedb import archive as archiving
from tracedb import erased_archives, erasure, retention
from tracedb.ask import ask, key_columns
from tracedb.client import Tenant
from tracedb.errors import InvalidInput
from tracedb.query import run
from tracedb.restore import Wanted, peek, restore, restore_into
from tracedb.retention import run_retention
from tracedb.stores import DirectoryStore

__all__ = ["admin", "conn", "store"]  # fixtures

Connection = psycopg.Connection[Any]
EVENTS = ("platform_events", "tenant_cost_events", "agent_executions")
FAMILIES = ("traces", "events")
SINCE, UNTIL = OLD - timedelta(days=8), OLD + timedelta(days=8)


class Killed(BaseException):
    """The end of a process."""


@pytest.fixture
def tenant(database: str) -> Iterator[Tenant]:
    with tracedb.connect(database) as db:
        yield db.tenant(uuid4())


@pytest.fixture
def archived(
    request: pytest.FixtureRequest,
    conn: Connection,
    admin: Connection,
    store: DirectoryStore,
    tenant: Tenant,
) -> Path:
    """What USER and others did in two weeks long ago is in archives, and some of USER is not."""
    neighbour = Tenant(tenant._connection, uuid4())
    for number, each in enumerate((tenant, neighbour)):
        each.ingest(records_of(f"other {number}", 100, "someone else", OLD))
    tenant.ingest(records_of(USER, 200, MARKER, OLD))
    # its texts are archived, it is not
    tenant.ingest(records_of(USER, 300, MARKER, NOW - timedelta(days=40)))
    admin.execute("select count(*) from tracedb.drain_default_partitions()")
    for table in EVENTS:
        run(conn, retention.set_retention(table, keep=timedelta(days=90), action="archive"))
    texts = retention.set_retention("trace_payloads", keep=timedelta(days=20), action="archive")
    run(conn, texts)
    done(run_retention(conn, store, format=getattr(request, "param", "csv")))
    tenant.ingest(records_of(USER, 400, MARKER, NOW - timedelta(hours=3)))
    assert set(hits(admin, "someone else")) == {"tracedb.trace_ids"}
    return store.root


def rows(conn: Connection, store: DirectoryStore) -> Counter[tuple[Any, ...]]:
    """Every archived row, each file compared with its manifest."""
    found: Counter[tuple[Any, ...]] = Counter()
    for each in run(conn, archiving.archives()):
        of_file = list(archiving.rows(store, archiving.opened(store, each)))
        assert len(of_file) == each.row_count
        found.update((each.table_name, *row) for row in of_file)
    return found


def marked(root: Path) -> list[Path]:
    """The files that have the marker in them."""
    return [
        path
        for path in root.rglob("*")
        if path.is_file()
        and MARKER.encode()
        in (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    ]


@pytest.mark.parametrize("archived", ["csv", "parquet"], indirect=True)
def test_archives_are_written_anew_without_the_user(
    conn: Connection, admin: Connection, store: DirectoryStore, tenant: Tenant, archived: Path
) -> None:
    before = rows(conn, store)
    theirs = {row for row in before if any(MARKER in str(value) for value in row)}
    exported = list(erasure.export_user(tenant, USER))
    assert sum("archive" in each for each in exported) >= len(theirs) > 10

    receipt = erasure.erase_user(tenant, USER)

    assert marked(archived) == []
    assert hits(admin, MARKER) == {}
    after = rows(conn, store)
    assert not [row for row in after if any(MARKER in str(value) for value in row)]
    lost = before - after
    assert not {row for row in lost if "someone else" in map(str, row)}
    assert theirs <= set(lost)
    # amounts stay, as nobody's
    assert {row[0] for row in after - before} == {"tenant_cost_events"}
    assert len(after - before) == 2
    assert receipt.elsewhere["archives"] == {
        "files": len({row[0] for row in lost}) + 1,  # texts are in two
        "rows": lost.total(),
    }
    recorded = {each.file for each in run(conn, archiving.archives())}
    assert {name.removesuffix(archiving.MANIFEST) for name in store.names()} == recorded
    assert list(erasure.export_user(tenant, USER)) == []

    for family in FAMILIES:
        restore(conn, Wanted(family, SINCE, UNTIL))
    assert hits(admin, MARKER) == {}
    found = hits(admin, "someone else")
    assert found.pop("tracedb.trace_ids") == 2
    assert sum(found.values()) == sum("someone else" in " ".join(map(str, r)) for r in before)
    assert erasure.erase_user(tenant, USER).elsewhere["archives"] == {}


def test_wherever_it_is_killed_asking_again_finishes(
    conn: Connection,
    admin: Connection,
    store: DirectoryStore,
    tenant: Tenant,
    archived: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert marked(archived)
    others = Counter(
        {row: n for row, n in rows(conn, store).items() if "someone else" in map(str, row)}
    )

    def dies(*_: Any) -> None:
        raise Killed

    for module, name in (
        (archiving, "check"),
        (archiving, "write_manifest"),
        (DirectoryStore, "remove"),
        (erased_archives, "_remove_old"),
        (erasure, "_steps"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dies)
            with pytest.raises(Killed):
                erasure.erase_user(tenant, USER)
        assert others - rows(conn, store) == Counter()
        (unfinished,) = tenant.run(erasure.erasures())
        assert unfinished.finished_at is None

    receipt = erasure.erase_user(tenant, USER)

    assert receipt.erasure_id == unfinished.erasure_id
    assert marked(archived) == []
    assert hits(admin, MARKER) == {}
    assert others - rows(conn, store) == Counter()


def test_a_restore_of_what_was_not_written_anew_leaves_the_user_out(
    conn: Connection, admin: Connection, store: DirectoryStore, tenant: Tenant, archived: Path
) -> None:
    """As when an archive was away: the tombstone of the user is all there is."""
    with tenant._connection() as own, own.transaction():
        own.execute("select tracedb.begin_erasure(%s, false, %s)", [USER, tenant.tenant_id])
    admin.execute("delete from tracedb.erased_traces")
    for table in ("execution_traces", "llm_spans", "trace_payloads", *EVENTS):
        admin.execute(
            f"delete from tracedb.{table} where tenant_id = %s".encode(), [tenant.tenant_id]
        )
    admin.execute("delete from tracedb.trace_ids")
    for table in ("hook_executions", "endpoint_calls", "agent_routing_decisions"):
        admin.execute(f"delete from tracedb.{table}".encode())

    with peek(conn, Wanted("traces", SINCE, UNTIL)) as seen:
        found = seen.execute("select name from tracedb.execution_traces").fetchall()
        assert Counter(found) == {("someone else",): 2, (None,): 2}
    restore_into(admin, Wanted("traces", SINCE, UNTIL), "side")
    assert admin.execute("select count(*) from side.llm_spans").fetchone() == (2,)
    for family in FAMILIES:
        restore(conn, Wanted(family, SINCE, UNTIL))

    assert hits(admin, MARKER) == {}
    spent = admin.execute(
        "select count(*), sum(cost_usd), count(user_id), count(trace_id)"
        " from tracedb.tenant_cost_events where tenant_id = %s",
        [tenant.tenant_id],
    ).fetchone()
    assert spent == (4, 20, 2, 2)


def test_the_archives_of_a_tenant_go_with_it(
    conn: Connection,
    admin: Connection,
    store: DirectoryStore,
    tenant: Tenant,
    archived: Path,
    tmp_path: Path,
) -> None:
    before = rows(conn, store)
    own = str(tenant.tenant_id)
    archived.rename(tmp_path / "elsewhere")
    with pytest.raises(tracedb.TracedbError, match="store"):
        erasure.erase_tenant(tenant)
    assert [each.phase for each in tenant.run(erasure.erasures())] == ["settle"]
    moved = DirectoryStore(tmp_path / "elsewhere")

    assert erasure.erase_tenant(tenant, store=moved).finished_at is not None

    assert rows(conn, moved) == Counter({r: n for r, n in before.items() if own not in r})
    assert not [path for path in tmp_path.rglob("*") if own in path.name]
    restore(conn, Wanted("traces", SINCE, UNTIL), moved)
    assert hits(admin, MARKER) == {}


def test_an_archive_of_which_nothing_is_left_can_be_read(
    conn: Connection, admin: Connection, store: DirectoryStore, tenant: Tenant
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER, OLD))
    admin.execute("select count(*) from tracedb.drain_default_partitions()")
    done(run_retention(conn, store))
    erasure.erase_user(tenant, USER)

    found = run(conn, archiving.archives(table_name="llm_spans"))
    keys = {"llm_spans": run(conn, key_columns("llm_spans"))}
    assert ask(found, keys, "select count(*) from llm_spans") == (["count_star()"], [(0,)])
    assert {each.row_count for each in restore(conn, Wanted("traces", SINCE, UNTIL))} == {0}


def test_a_tenants_own_archives_are_missed_when_their_store_is_away(
    conn: Connection, admin: Connection, store: DirectoryStore, tenant: Tenant
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER, NOW - timedelta(days=40)))
    admin.execute("select count(*) from tracedb.drain_default_partitions()")
    rule = retention.set_retention(
        "execution_traces", timedelta(days=20), tenant_id=tenant.tenant_id
    )
    run(conn, rule)
    done(run_retention(conn, store))
    away = store.root.rename(store.root.with_name("away"))

    with pytest.raises(tracedb.TracedbError, match="is no directory"):
        erasure.erase_tenant(tenant)

    away.rename(store.root)
    erasure.erase_tenant(tenant)
    assert store.names() == []


def test_what_is_held_is_not_erased_by_accident(conn: Connection, tenant: Tenant) -> None:
    tenant.ingest(records_of(USER, 100, MARKER))
    run(conn, retention.set_legal_hold("platform_events", "case 7"), tenant.tenant_id)

    with pytest.raises(InvalidInput, match="held"):
        erasure.erase_user(tenant, USER)
    assert tenant.run(erasure.erasures()) == []
    assert erasure.erase_user(tenant, USER, despite_hold=True).counts["llm_spans"] == 1


def test_nothing_is_archived_while_somebody_is_erased(conn: Connection, tenant: Tenant) -> None:
    conn.execute("select pg_advisory_lock(hashtextextended('tracedb.job/retention', 0))")
    with pytest.raises(tracedb.errors.AlreadyRunning, match="retention"):
        erasure.erase_user(tenant, USER)
