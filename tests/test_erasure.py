"""Erasing a user or a tenant: nothing of them is left anywhere, nothing of others is touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracedb
from objects import relations
from records import ingest
from servers import as_role
from tracedb import erasure, spool
from tracedb.cli import main
from tracedb.client import Tenant
from tracedb.errors import InvalidInput
from writers import dead_letters, losses, writer

Connection = psycopg.Connection[Any]
Records = Sequence[Mapping[str, Any]]

MARKER = "marker-7f3a@example.org"
USER = f"{MARKER} é"
# of the hour before, so that totals have it whole
NOON = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


def at(seconds: float = 0, since: datetime = NOON) -> str:
    return (since + timedelta(seconds=seconds)).isoformat()


def uuid7(number: int, at: datetime = NOON) -> str:
    return str(UUID(int=int(at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number))


@pytest.fixture
def tenant_id() -> UUID:
    return uuid4()


@pytest.fixture
def tenant(database: str, tenant_id: UUID) -> Iterator[Tenant]:
    with tracedb.connect(database) as db:
        yield db.tenant(tenant_id)


def records_of(user: str, first: int, mark: str, when: datetime = NOON) -> list[dict[str, Any]]:
    """All kinds of records of a user, with `mark` wherever it fits: trace `first` and a nested."""
    top, nested = uuid7(first, when), uuid7(first + 1, when)
    part = {"trace_id": top, "started_at": at(1, when), "ended_at": at(2, when), "name": mark}
    event = {"occurred_at": at(2, when), "user_id": user, "session_id": mark, "trace_id": top}
    return [
        {
            **{"type": "trace", "trace_id": top, "user_id": user, "started_at": at(0, when)},
            **{"duration_ms": 90, "session_id": mark, "name": mark, "intent": {"said": mark}},
            **{"error_message": mark, "doc_sources": [mark], "tags": [mark], "prompt": mark},
            **{"context": {"who": mark}, "agent_id": "bot", "external_id": f"ext {first} {mark}"},
        },
        # of a trace of theirs, though it does not say so
        {
            **{
                "type": "trace",
                "trace_id": nested,
                "parent_trace_id": top,
                "started_at": at(1, when),
            },
            **{"ended_at": at(2, when), "response": f"of {mark}", "cost_usd": "0.5"},
        },
        {
            **{"type": "span", **part, "span_id": f"{first:016x}", "operation_type": "llm"},
            **{"cost_usd": "0.25", "input": mark, "attributes": {"a": mark}},
            **{"status_message": mark, "events": [mark], "links": [mark], "message_id": mark},
        },
        {
            **{"type": "hook", **part, "span_id": f"{first + 1:016x}", "hook_type": "pre"},
            **{"script": mark, "quality_gates": {mark: 1}, "modifications": {mark: 1}},
        },
        {
            **{"type": "endpoint_call", **part, "span_id": f"{first + 2:016x}", "service": "s"},
            **{"path": f"/{mark}", "request": mark, "response": {"r": mark}},
        },
        {
            **{"type": "routing_decision", **part, "span_id": f"{first + 3:016x}"},
            **{"selected_agent": "bot", "reason": mark, "candidates": [{"agent": mark}]},
        },
        {"type": "platform_event", **event, "event_key": f"p{first}", "event_type": "login"}
        | {"event_category": "security", "event_data": {"m": mark}, "metadata": {"m": mark}},
        {"type": "cost_event", **event, "event_key": f"c{first} {mark}", "cost_type": "llm"}
        | {"service": "s", "cost_usd": "7", "metadata": {"m": mark}},
        {"type": "cost_event", **event, "event_key": f"d{first} {mark}", "cost_type": "storage"}
        | {"service": "s", "cost_usd": "3", "metadata": {"m": mark}},
        {"type": "agent_execution", **event, "event_key": f"a{first}", "agent_id": "bot"}
        | {"success": True, "error_message": mark, "metadata": {"m": mark}},
    ]


def hits(conn: Connection, marker: str, tenant_id: UUID | None = None) -> dict[str, int]:
    """The rows of each table, partitions included, in whose text the marker is."""
    conn.rollback()
    found = {}
    for relation in relations(conn):
        if relation.kind in ("view", "ledger") or relation.name.startswith("tracedb.yoyo"):
            continue
        row = conn.execute(
            f"select count(*) from only {relation.name} as t"
            " where strpos(t::text, %s) > 0 or strpos(to_jsonb(t)::text, %s) > 0".encode(),
            [marker, marker],
        ).fetchone()
        assert row is not None
        if row[0]:
            found[relation.name] = row[0]
    conn.rollback()
    return found


def everything(conn: Connection, *but: str) -> dict[str, Counter[str]]:
    """All rows of all tables as text."""
    conn.rollback()
    rows = {
        relation.name: Counter(
            text for (text,) in conn.execute(f"select t::text from only {relation.name} t".encode())
        )
        for relation in relations(conn)
        if relation.kind not in ("view", "ledger") and relation.name.split(".")[-1] not in but
    }
    conn.rollback()
    return {name: found for name, found in rows.items() if found}


def naming(tenant_id: UUID, rows: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Those of them that are a tenant's."""
    own = {
        table: Counter({row: n for row, n in found.items() if str(tenant_id) in row})
        for table, found in rows.items()
    }
    return {table: found for table, found in own.items() if found}


def costs(conn: Connection, tenant_id: UUID) -> list[Any]:
    """What the tenant spent, by day and agent; what its totals are; what its budget says."""
    conn.rollback()
    later = NOON + timedelta(hours=2)
    answers = [
        conn.execute(query, {"t": tenant_id, "a": NOON - timedelta(days=1), "b": later}).fetchall()
        for query in (
            "select key, cost_usd from tracedb.get_cost_breakdown('day', %(a)s, %(b)s, %(t)s)",
            "select key, cost_usd from tracedb.get_cost_breakdown('agent', %(a)s, %(b)s, %(t)s)",
            "select to_jsonb(u) from tracedb.usage_series(%(a)s, %(b)s, 'hour', %(t)s) u",
            "select to_jsonb(u) from tracedb.usage_series(%(a)s, %(b)s, 'day', %(t)s) u",
            "select spent_usd, unknown_cost_count"
            " from tracedb.spent_since(date_trunc('day', %(a)s), %(b)s, %(t)s)",
        )
    ]
    assert conn.execute(
        "select count(*) from tracedb.usage_differences(%s, %s, %s)",
        [NOON - timedelta(days=1), later, tenant_id],
    ).fetchone() == (0,)
    conn.rollback()
    return answers


def fold(conn: Connection) -> None:
    while conn.execute("select * from tracedb.fold_usage()").fetchall():
        conn.commit()
    conn.commit()


def left_behind(root: Path, tenant_id: UUID, records: Records) -> UUID:
    """The spool of a writer that was killed with these records; its id."""
    ours = spool.Spool(root, uuid4(), "shop", 10**9)
    for first in range(0, len(records), 4):
        segment = ours.new_segment()
        assert segment is not None
        for number, record in enumerate(records[first : first + 4], start=first + 1):
            text = json.dumps(record).encode()
            assert ours.append(segment, number, tenant_id.hex.encode(), text)
        segment.close()
    ours.after_fork()
    return ours.writer_id


def deliver(dsn: str, tenant_id: UUID, root: Path) -> None:
    """Let a new writer deliver what others have left."""
    with writer(dsn, tenant_id, spool=root) as ours:
        assert ours.flush_all(30)
    assert list(root.glob("*-*")) == []


def test_nothing_of_a_user_is_left_and_totals_stay(conn: Connection, tenant: Tenant) -> None:
    tenant_id = tenant.tenant_id
    tenant.ingest(records_of("other", 100, "someone else"))
    assert tenant.ingest(records_of(USER, 200, MARKER)).inserted == 10
    fold(conn)
    tenant.ingest(records_of(USER, 300, MARKER))  # what is not folded yet
    writer_id = uuid4()
    conn.execute("select tracedb.touch_writer(%s, 's', 3, true, %s)", [writer_id, tenant_id])
    for number, letter in enumerate(
        [
            {"type": "span", "trace_id": uuid7(300), "name": f"of {MARKER}"},
            {"type": "trace", "user_id": USER, "name": f"of {MARKER}"},
            {"type": "trace", "external_id": "x", "name": "somebody else's"},
        ],
        start=1,
    ):
        conn.execute(
            "select tracedb.bury(%s, %s, %s, 'reason', null, %s)",
            [writer_id, number, json.dumps(letter), tenant_id],
        )
    for id, cost in ((uuid7(200), None), (uuid7(201), 2), (uuid7(100), 4)):
        conn.execute(
            "select tracedb.reserve_budget(%(id)s, 1, trace_id => %(id)s, tenant_id => %(t)s)",
            {"id": id, "t": tenant_id},
        )
        if cost:
            conn.execute(
                "select tracedb.settle_budget(%s, %s, tenant_id => %s)", [id, cost, tenant_id]
            )
    conn.commit()
    before = costs(conn, tenant_id)
    others = tenant.run(erasure.erasure_plan("other"))
    plan = {each.table_name: each.row_count for each in tenant.run(erasure.erasure_plan(USER))}
    cursor = tenant.changes_cursor()

    receipt = erasure.erase_user(tenant, USER)

    assert hits(conn, MARKER) == {}
    assert receipt.finished_at is not None
    assert receipt.counts == {t: n for t, n in plan.items() if t != "usage_contributions"}
    assert (receipt.counts["execution_traces"], receipt.counts["dead_letters"]) == (4, 2)
    assert costs(conn, tenant_id) == before
    fold(conn)
    assert costs(conn, tenant_id) == before
    assert tenant.run(erasure.erasure_plan(USER)) == []
    assert tenant.run(erasure.erasure_plan("other")) == others
    assert tenant.run(erasure.erasures()) == [receipt]
    assert len(dead_letters(conn.info.dsn, tenant_id)) == 1
    told = {change.trace_id for change in tenant.changes_since(cursor)}
    assert told == {UUID(uuid7(number)) for number in (200, 201, 300, 301)}


def test_a_dry_run_changes_nothing(
    database: str, conn: Connection, tenant: Tenant, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    before = everything(conn)

    args = ["--dsn", database, "--json", "erase", "user", USER, "--tenant", str(tenant.tenant_id)]
    assert main([*args, "--dry-run"]) == 0

    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (rows["execution_traces"], rows["trace_payloads"], rows["platform_events"]) == (2, 3, 1)
    assert main(args) == 2  # nobody there who could say yes
    assert everything(conn) == before
    conn.execute("select tracedb.set_legal_hold('llm_spans', 'case 7', null)")
    conn.commit()
    capsys.readouterr()
    assert main([*args, "--dry-run"]) == 1
    assert "its rows are held" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main([*args, "--dry-run", "--despite-hold"]) == 0


def test_wherever_it_is_interrupted_asking_again_finishes(conn: Connection, tenant: Tenant) -> None:
    others = records_of("other", 90, "someone else")
    tenant.ingest(others)
    fold(conn)
    kept = tenant.run(erasure.erasure_plan("other"))
    for steps in range(100):
        user = f"{USER} {steps}"
        for number in range(3):
            tenant.ingest(records_of(user, 10000 + 10 * steps + 2 * number, MARKER))
        before = costs(conn, tenant.tenant_id)
        id = tenant.run(erasure.begin_erasure(user))
        phases = [tenant.run(erasure.erase_step(id, user, max_rows=1)).phase for _ in range(steps)]
        with tenant.transaction() as whole:
            whole.run(erasure.erase_step(id, user, max_rows=1))
            raise psycopg.Rollback  # as a kill in the middle of the step would

        receipt = erasure.erase_user(tenant, user)

        assert hits(conn, MARKER) == {}
        assert costs(conn, tenant.tenant_id) == before
        (first, *more) = [each for each in tenant.run(erasure.erasures()) if each.erasure_id >= id]
        assert first.counts["execution_traces"] == 6
        assert (first.counts["tenant_cost_events"], first.counts["platform_events"]) == (6, 3)
        if "done" in phases:
            # of a user that was erased already there is a new receipt
            assert (more, receipt.counts) == ([receipt], {})
            break
        assert (first, more) == (receipt, [])
    assert set(phases) == {"collect", "settle", "rows", "traces", "done"}
    assert tenant.run(erasure.erasure_plan("other")) == kept


def test_what_was_being_written_when_it_began_is_found(
    database: str, conn: Connection, tenant: Tenant
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    with psycopg.connect(database) as late:
        ingest(late, tenant.tenant_id, records_of(USER, 300, MARKER))
        late.execute("select tracedb.set_tenant(%s)", [tenant.tenant_id])
        id = tenant.run(erasure.begin_erasure(USER))
        phases = [tenant.run(erasure.erase_step(id, USER)).phase for _ in range(20)]
        assert phases[-1] == "settle"
        with pytest.raises(tracedb.errors.AlreadyRunning):
            erasure.erase_user(tenant, USER, patience=0)
        late.commit()
    receipt = erasure.erase_user(tenant, USER)
    assert receipt.counts["execution_traces"] == 4
    assert hits(conn, MARKER) == {}


# Ways back into the database.
BACK: dict[str, Callable[[str, Tenant, Records, Path], object]] = {
    "rows": lambda dsn, tenant, records, root: tenant.ingest(records),
    "last first": lambda dsn, tenant, records, root: [
        tenant.ingest([r]) for r in reversed(records)
    ],
    "json": lambda dsn, tenant, records, root: _ingest(dsn, tenant, records),
    "writer": lambda dsn, tenant, records, root: _replay(dsn, tenant, records, root),
}


def _ingest(dsn: str, tenant: Tenant, records: Records) -> None:
    with psycopg.connect(dsn) as conn:
        assert ingest(conn, tenant.tenant_id, records)["rejected"] == []


def _replay(dsn: str, tenant: Tenant, records: Records, root: Path) -> None:
    left_behind(root, tenant.tenant_id, records)
    deliver(dsn, tenant.tenant_id, root)


@pytest.mark.parametrize(
    ("how", "known"),
    [("rows", True), *((how, False) for how in BACK)],
    ids=["stored before", *BACK],
)
def test_a_replay_does_not_bring_the_user_back(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path, how: str, known: bool
) -> None:
    theirs = records_of(USER, 200, MARKER)
    foreign = {"external_id": f"ext {MARKER}", "started_at": at(3)}
    theirs += [
        {"type": "trace", **foreign, "user_id": USER, "ended_at": at(4)},
        {"type": "span", **foreign, "span_id": f"{9:016x}", "operation_type": "llm"}
        | {"name": MARKER, "started_at": at(8)},
    ]
    if known:
        tenant.ingest(theirs)
    erasure.erase_user(tenant, USER)
    if known:
        conn.execute("delete from tracedb.trace_changes")
        conn.commit()
    before = everything(conn, "erasures", "erased_keys", "erased_traces", "ingest_writers")
    others = records_of("other", 100, "someone else")

    BACK[how](database, tenant, [*theirs, *others], tmp_path)

    assert hits(conn, MARKER) == {}
    assert dead_letters(database, tenant.tenant_id) == []
    found = tenant.run(erasure.erasure_plan("other"))
    assert {each.table_name: each.row_count for each in found}["execution_traces"] == 2
    for ledger in losses(database, tenant.tenant_id):
        assert (ledger.stored, ledger.missing, ledger.dead) == (ledger.accepted, 0, 0)
    erasure.erase_user(tenant, "other")
    fold(conn)
    conn.execute("delete from tracedb.trace_changes")
    conn.execute("delete from tracedb.usage_rollups")
    conn.execute("delete from tracedb.tenant_cost_events")
    conn.commit()
    for table in ("trace_changes", "usage_rollups", "tenant_cost_events"):
        before.pop(f"tracedb.{table}", None)
    after = everything(conn, "erasures", "erased_keys", "erased_traces", "ingest_writers")
    assert {t: n for t, n in after.items() if "cost_events" not in t} == {
        t: n for t, n in before.items() if "cost_events" not in t
    }


def test_who_comes_back_is_stored_again(conn: Connection, tenant: Tenant) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    erasure.erase_user(tenant, USER)
    later = datetime.now(UTC) + timedelta(seconds=1)
    new = {"type": "trace", "trace_id": uuid7(1, later), "started_at": later, "user_id": USER}
    event = {"type": "platform_event", "event_key": "new", "occurred_at": later, "user_id": USER}

    receipt = tenant.ingest([new, {**event, "event_type": "a", "event_category": "b"}])

    assert (receipt.inserted, receipt.duplicates) == (2, 0)
    assert len(tenant.get_user_traces(USER)) == 1
    assert erasure.erase_user(tenant, USER).counts == {"execution_traces": 1, "platform_events": 1}
    assert hits(conn, MARKER) == {}


def test_what_cannot_be_stored_is_not_kept_as_a_dead_letter(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path
) -> None:
    bad: Records = [
        {"type": "trace", "trace_id": uuid7(200), "user_id": USER, "started_at": "yesterday"},
        {"type": "trace", "trace_id": "bad", "user_id": USER, "started_at": at(), "name": MARKER},
        {"type": "trace", "user_id": USER, "started_at": at(), "name": f"{MARKER} \0"},
        {"type": "trace", "trace_id": uuid7(201), "user_id": USER, "unknown": 1e400},
        {"type": "trace", "user_id": "other", "name": "kept"},
    ]
    erasure.erase_user(tenant, USER)

    left_behind(tmp_path, tenant.tenant_id, bad)
    deliver(database, tenant.tenant_id, tmp_path)

    assert hits(conn, MARKER) == {}
    assert [
        json.loads(letter.record)["name"] for letter in dead_letters(database, tenant.tenant_id)
    ] == ["kept"]
    (ledger,) = losses(database, tenant.tenant_id)
    assert (ledger.accepted, ledger.missing) == (5, 0)
    assert tenant.requeue_dead_letters().requeued == 0


def test_a_user_named_by_a_number_and_one_without_a_name(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path
) -> None:
    tenant.ingest([{"type": "trace", "trace_id": uuid7(200), "user_id": 42, "started_at": at()}])
    bad = {"type": "trace", "user_id": 42, "name": MARKER}
    left_behind(tmp_path, tenant.tenant_id, [bad, {"type": "trace", "user_id": "4", "name": ""}])
    spooled = erasure.export_user(tenant, "42", spool=tmp_path)
    assert [each["record"] for each in spooled if "spool" in each] == [bad]
    deliver(database, tenant.tenant_id, tmp_path)
    assert hits(conn, MARKER) == {"tracedb.dead_letters": 1}

    with pytest.raises(InvalidInput, match="user_id: must not be empty"):
        erasure.erase_user(tenant, "")
    with pytest.raises(InvalidInput, match="user_id: must not be empty"):
        tenant.run(erasure.erasure_plan(""))
    counts = erasure.erase_user(tenant, "42").counts

    assert counts == {"execution_traces": 1, "dead_letters": 1}
    assert len(dead_letters(database, tenant.tenant_id)) == 1


def test_a_dead_letter_of_who_was_erased_does_not_come_back(
    conn: Connection, tenant: Tenant
) -> None:
    """One that came to light only by what was erased later."""
    record = {"type": "trace", "trace_id": uuid7(200), "started_at": at(), "user_id": USER}
    conn.execute("select tracedb.touch_writer(%s, 's', 1, true, %s)", [uuid4(), tenant.tenant_id])
    conn.execute(
        "insert into tracedb.dead_letters (tenant_id, writer_id, record_no, record, reason)"
        " select tenant_id, writer_id, 1, %s, 'late' from tracedb.ingest_writers",
        [json.dumps(record)],
    )
    conn.execute("update tracedb.ingest_writers set dead = 1, settled = '{[1,1]}'")
    conn.execute(
        "insert into tracedb.erased_traces (tenant_id, trace_id, erasure_id) values (%s, %s, %s)",
        [tenant.tenant_id, uuid7(200), uuid4()],
    )
    conn.execute(
        "insert into tracedb.erased_keys values (%s, 'x', 'user', %s, now())",
        [tenant.tenant_id, uuid4()],
    )
    conn.commit()

    assert tenant.requeue_dead_letters().requeued == 1

    assert hits(conn, MARKER) == {}
    assert tenant.dead_letters() == []


def test_a_spool_is_rewritten_without_the_user(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path
) -> None:
    theirs = records_of(USER, 200, MARKER)
    others = records_of("other", 100, "someone else")
    tenant.ingest(theirs[:1])  # by which its parts are known
    mixed = [record for pair in zip(theirs, others, strict=True) for record in pair]
    dead = left_behind(tmp_path, tenant.tenant_id, mixed)
    left_behind(tmp_path, tenant.tenant_id, theirs)
    live = spool.Spool(tmp_path, uuid4(), "shop", 10**9)
    held = live.new_segment()
    assert held is not None
    line = json.dumps(theirs[0]).encode()
    assert live.append(held, 1, tenant.tenant_id.hex.encode(), line)
    for path in sorted(tmp_path.glob(f"{dead}/*.seg"))[:1]:
        damaged = b"00000000 7 what was " + json.dumps(USER).encode()
        path.write_bytes(path.read_bytes() + damaged + b"\n" + b"00000000 of others\n")
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "a-1.bad").write_bytes(damaged + b"\nof others\n")
    (tmp_path / str(dead) / "notes.txt").write_text("not ours")

    with pytest.raises(tracedb.errors.AlreadyRunning, match=str(live.writer_id)):
        erasure.erase_user(tenant, USER, spool=tmp_path)
    live.close()
    receipt = erasure.erase_user(tenant, USER, spool=tmp_path)

    assert [
        p for p in tmp_path.rglob("*") if p.is_file() and b"marker-7f3a" in p.read_bytes()
    ] == []
    first, second = tenant.run(erasure.erasures())
    assert first.elsewhere["spool"]["records"] == 20
    assert first.elsewhere["spool"]["damaged_lines"] == 2
    assert (second, second.elsewhere["spool"]) == (receipt, {"segments": 1, "records": 1})
    with writer(database, tenant.tenant_id, spool=tmp_path) as ours:
        assert ours.flush_all(30)
    assert tenant.run(erasure.erasure_plan(USER)) == []
    rows = {e.table_name: e.row_count for e in tenant.run(erasure.erasure_plan("other"))}
    assert (rows["execution_traces"], rows["platform_events"], rows["llm_spans"]) == (2, 1, 1)
    assert hits(conn, MARKER) == {}
    for ledger in losses(database, tenant.tenant_id):
        assert ledger.missing == 0


def test_a_tenant_goes_whole_and_stays_away(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path
) -> None:
    with tracedb.connect(database) as db:
        neighbour = db.tenant(uuid4())
        theirs = records_of(USER, 200, MARKER)
        for each in (tenant, neighbour):
            each.ingest(records_of("other", 100, "someone else"))
            conn.execute(
                "insert into tracedb.tenants (tenant_id, name) values (%s, %s)",
                [each.tenant_id, "t"],
            )
            conn.execute("select tracedb.set_budget('b', 'day', 0, 1, %s)", [each.tenant_id])
            conn.execute("select tracedb.check_budgets(tenant_id => %s)", [each.tenant_id])
            conn.commit()
        tenant.ingest(theirs)
        fold(conn)
        kept = naming(neighbour.tenant_id, everything(conn))
        left_behind(tmp_path, tenant.tenant_id, theirs)
        erasure.erase_user(tenant, USER)

        receipt = erasure.erase_tenant(tenant)

        left = everything(conn)
        own = {t: sum(str(tenant.tenant_id) in row for row in rows) for t, rows in left.items()}
        assert {t: n for t, n in own.items() if n} == {
            "tracedb.erasures": 2,
            "tracedb.erased_keys": 1,
        }
        assert hits(conn, MARKER) == {}
        assert naming(neighbour.tenant_id, left) == kept
        assert tenant.run(erasure.erasures())[1] == receipt
        assert receipt.counts["tenants"] == 1

        deliver(database, tenant.tenant_id, tmp_path)
        assert tenant.ingest(theirs).duplicates == len(theirs)
        assert hits(conn, MARKER) == {}
        assert {e.table_name for e in tenant.run(erasure.erasure_plan(None))} == {
            "erasures",
            "erased_keys",
            "erased_traces",
            "ingest_writers",
        }


SHAPES = st.lists(
    st.tuples(st.sampled_from(["u", "v", None]), st.integers(-1, 5)), min_size=1, max_size=7
)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(shape=SHAPES, folded=st.booleans())
def test_what_is_of_others_is_as_it_was(
    conn: Connection, tenant: Tenant, shape: list[tuple[str | None, int]], folded: bool
) -> None:
    """Traces with any users, nested in any order."""
    mine = Tenant(tenant._connection, uuid4())
    ids = [uuid7(place + 1) for place in range(len(shape))]
    parents: list[int | None] = [
        above if 0 <= above < len(ids) and above != place else None
        for place, (_, above) in enumerate(shape)
    ]
    theirs: set[int] = {place for place, (user, _) in enumerate(shape) if user == "u"}
    for _ in ids:
        theirs |= {place for place, above in enumerate(parents) if above in theirs}
    records: list[dict[str, Any]] = []
    for place, (user, _) in enumerate(shape):
        above = parents[place]
        records += [
            {"type": "trace", "trace_id": ids[place], "user_id": user, "started_at": at(place)}
            | {"parent_trace_id": None if above is None else ids[above], "prompt": f"p{place}"}
            | {"cost_usd": "1" if place % 3 == 0 else None, "duration_ms": 1},
            {"type": "span", "trace_id": ids[place], "span_id": f"{place + 1:016x}"}
            | {"operation_type": "llm", "started_at": at(place), "cost_usd": "0.1"},
        ]
    mine.ingest(records)
    if folded:
        fold(conn)
    totals = costs(conn, mine.tenant_id)
    before = everything(conn)

    receipt = erasure.erase_user(mine, "u")

    after = everything(conn)
    assert receipt.counts.get("execution_traces", 0) == len(theirs)
    gone = [ids[place] for place in theirs]
    for table in ("execution_traces", "llm_spans", "trace_payloads"):
        assert {
            row: n
            for name, found in after.items()
            if name.startswith(f"tracedb.{table}")
            for row, n in found.items()
        } == {
            row: n
            for name, found in before.items()
            if name.startswith(f"tracedb.{table}")
            for row, n in found.items()
            if str(mine.tenant_id) not in row or not any(f",{id}," in row[:80] for id in gone)
        }
    assert costs(conn, mine.tenant_id) == totals


def test_an_export_is_all_that_would_be_erased(
    database: str, conn: Connection, tenant: Tenant, tmp_path: Path
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER) + records_of("other", 100, "someone else"))
    left_behind(tmp_path / "spool", tenant.tenant_id, records_of(USER, 300, MARKER))
    left_behind(tmp_path / "spool", tenant.tenant_id, records_of("other", 400, "else"))
    plan = {each.table_name: each.row_count for each in tenant.run(erasure.erasure_plan(USER))}
    args = ["--dsn", database, "export-user", USER, "--tenant", str(tenant.tenant_id)]
    args += ["--spool", str(tmp_path / "spool"), "--output", str(tmp_path / "out")]

    assert main(args) == 0
    assert main(args) == 1  # nothing is overwritten

    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert Counter(line["table"] for line in lines if "table" in line) == plan
    assert sum("spool" in line for line in lines) == 10
    assert "someone else" not in (tmp_path / "out").read_text()
    marked = sum(MARKER in json.dumps(line) for line in lines if "table" in line)
    assert marked == sum(hits(conn, MARKER).values())
    erasure.erase_user(tenant, USER)
    assert list(erasure.export_user(tenant, USER)) == []


def test_only_the_maintainer_erases(conn: Connection, tenant: Tenant) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    for role in ("tracedb_app", "tracedb_reader", "tracedb_service"):
        for call in (
            "tracedb.begin_erasure('u')",
            "tracedb.erase_step(tracedb.new_id(), 'u')",
            "tracedb.erase_spooled(tracedb.new_id(), '{}', '{}')",
            "tracedb.note_erased(tracedb.new_id(), 'spool', '{}')",
        ):
            with (
                pytest.raises(psycopg.errors.InsufficientPrivilege),
                as_role(conn, role, tenant.tenant_id),
            ):
                conn.execute(f"select {call}".encode())
    with as_role(conn, "tracedb_maintainer", tenant.tenant_id):
        row = conn.execute("select tracedb.begin_erasure(%s)", [USER]).fetchone()
        assert row is not None
        # one that names a user who was not erased does not go on with it
        with pytest.raises(psycopg.Error, match="user_id: not the one"), conn.transaction():
            conn.execute("select tracedb.erase_step(%s, 'v')", row)
    # what an application could do: give its own traces tombstones, which purges none of them
    with as_role(conn, "tracedb_app", tenant.tenant_id):
        conn.execute(
            "insert into tracedb.erased_traces select tenant_id, trace_id, trace_id"
            " from tracedb.execution_traces on conflict do nothing"
        )
        conn.execute(
            "select tracedb.purge_refused(array_agg(trace_id), %s) from tracedb.execution_traces",
            [tenant.tenant_id],
        )
        assert conn.execute("select count(*) from tracedb.execution_traces").fetchone() == (2,)


def test_what_was_refused_is_purged_for_its_own_tenant_alone(
    conn: Connection, tenant: Tenant
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    erasure.erase_user(tenant, USER)
    row = conn.execute("select min(trace_id::text)::uuid from tracedb.erased_traces").fetchone()
    assert row is not None
    conn.execute(
        "insert into tracedb.hook_executions ("
        " tenant_id, trace_id, span_id, hook_type, status, started_at)"
        " values (%s, %s, '\\x00000000000000b1', 'stop', 'ok', now())",
        [tenant.tenant_id, *row],
    )
    purge = "select tracedb.purge_refused(array[%s::uuid], %s)"
    with as_role(conn, "tracedb_app", uuid4()):
        conn.execute(purge, [*row, tenant.tenant_id])
    assert conn.execute("select count(*) from tracedb.hook_executions").fetchone() == (1,)
    with as_role(conn, "tracedb_app", tenant.tenant_id):
        conn.execute(purge, [*row, tenant.tenant_id])
    assert conn.execute("select count(*) from tracedb.hook_executions").fetchone() == (0,)


def test_the_command_gives_a_receipt(
    database: str, conn: Connection, tenant: Tenant, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant.ingest(records_of(USER, 200, MARKER))
    common = ["--dsn", database, "--json", "erase"]
    whose = ["--tenant", str(tenant.tenant_id)]

    assert main([*common, "user", USER, "--yes", *whose]) == 0
    receipt = json.loads(capsys.readouterr().out)
    assert main([*common, "list", *whose]) == 0
    assert json.loads(capsys.readouterr().out) == [receipt]
    assert receipt["counts"]["llm_spans"] == 1
    assert main(["--dsn", database, "erase", "list", *whose]) == 0
    assert receipt["erasure_id"] in capsys.readouterr().out
    assert main([*common, "tenant", "--yes", *whose]) == 0
    assert hits(conn, MARKER) == {}
