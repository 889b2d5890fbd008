"""A writer's life: in both colours, in threads, in children, and however its process ends."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

import tracedb
from records import trace_id
from writers import LATER, dead_letters, losses, names, run, save, wait_until, writer


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture
def default() -> Any:
    """Whatever the test makes the default writer, it is forgotten afterwards."""
    yield
    tracedb.set_writer(None)


@pytest.mark.parametrize("role", ["tracedb_service", "tracedb_app"])
def test_records_of_every_kind_arrive(database: str, tenant: UUID, role: str) -> None:
    as_role = make_conninfo(database, options=f"-c role={role}")
    with tracedb.connect(as_role) as db, db.writer(tenant_id=tenant, service="shop") as ours:
        trace = ours.save_trace(agent_id="bot", tokens_used=500, estimated_cost_usd=0.002)
        assert trace is not None
        parts = [
            ours.save_span(trace_id=trace, operation_type="llm"),
            ours.save_routing_decision(trace_id=trace, selected_agent="bot"),
            ours.save_hook(trace_id=trace, hook_type="pre_tool_use"),
            ours.save_endpoint_call(trace_id=trace, service="search"),
        ]
        assert ours.save_payload(trace_id=trace, kind="prompt", content="why?")
        events = [
            ours.log_platform_event("user_query", "user_behavior"),
            ours.log_cost_event("llm", 0.012, "openai"),
            ours.log_agent_execution("bot", True),
        ]
        assert ours.flush_all(30)
        assert ours.stats() == tracedb.Stats(accepted=9, stored=9)
        acme = db.tenant(tenant)
        nodes = acme.trace_tree(trace)
        (report,) = acme.loss_report()

    assert {node.span_id for node in nodes} == {None, *parts}
    assert (report.service, report.accepted, report.stored) == ("shop", 9, 9)
    with psycopg.connect(database) as conn:
        found = conn.execute(
            "select event_id from tracedb.platform_events union all "
            "select event_id from tracedb.tenant_cost_events union all "
            "select event_id from tracedb.agent_executions"
        ).fetchall()
    assert [row[0] for row in found] == events


def test_the_async_writer_records_without_await(database: str, tenant: UUID) -> None:
    async def serve() -> tracedb.Stats:
        async with (
            await tracedb.connect_async(database) as db,
            db.writer(tenant_id=tenant, flush_seconds=LATER) as ours,
        ):
            for n in range(20):
                save(ours, f"{n:02}")
            assert await ours.flush_all(30)
            assert await asyncio.to_thread(names, database, tenant) == [
                f"{n:02}" for n in range(20)
            ]
            save(ours, "20")
            return await ours.close()

    assert asyncio.run(serve()) == tracedb.Stats(accepted=21, stored=21)


def test_a_number_of_records_is_delivered_at_once(database: str, tenant: UUID) -> None:
    with writer(database, tenant, flush_records=10) as ours:
        for n in range(9):
            save(ours, f"{n}")
        wait_until(lambda: ours._delivery.is_started)
        assert ours.stats().pending == 9
        save(ours, "9")
        wait_until(lambda: ours.stats().pending == 0)

    assert len(names(database, tenant)) == 10


def test_a_few_records_are_delivered_in_time(database: str, tenant: UUID) -> None:
    with writer(database, tenant, flush_seconds=0.1) as ours:
        save(ours)
        wait_until(lambda: ours.stats().pending == 0)

    assert names(database, tenant) == ["a"]


def test_what_changes_after_the_call_changes_nothing(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        messages: list[str] = ["before"]
        fields = {"attributes": {"messages": messages}, "trace_id": trace_id()}
        ours.save_span(fields, operation_type="llm")
        messages.append("after")
        fields["attributes"] = {}

    with psycopg.connect(database) as conn:
        assert conn.execute("select attributes from tracedb.llm_spans").fetchone() == (
            {"messages": ["before"]},
        )


def test_a_call_names_its_tenant_or_its_record_does(database: str, tenant: UUID) -> None:
    other, third = uuid4(), uuid4()
    with writer(database, tenant) as ours:
        save(ours, "own")
        save(ours, "other", tenant_id=str(other))
        save(ours, "third", **{"tenant_id": third})

    assert [names(database, whose) for whose in (tenant, other, third)] == [
        ["own"],
        ["other"],
        ["third"],
    ]


def test_without_a_tenant_a_call_is_refused_and_counted(database: str) -> None:
    with writer(database, None) as ours:
        assert save(ours) is None
        assert save(ours, tenant_id="acme") is None
        assert ours.stats() == tracedb.Stats(refused=2)


def test_after_the_end_calls_are_refused_and_counted(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        save(ours)
    assert save(ours, "late") is None
    assert ours.close() == tracedb.Stats(accepted=1, stored=1, refused=1)
    assert names(database, tenant) == ["a"]


def test_closing_takes_no_longer_than_it_may(tmp_path: Path, tenant: UUID) -> None:
    nowhere = f"host={tmp_path} dbname=x"
    with writer(nowhere, tenant) as ours:
        save(ours)
        assert ours.close(timeout=0.1) == tracedb.Stats(accepted=1, pending=1)


def test_bad_settings_are_an_error_at_once(tenant: UUID) -> None:
    for setting in ("flush_records", "flush_seconds", "queue_records", "write_timeout"):
        with pytest.raises(tracedb.InvalidInput, match=f"{setting}: must be greater than 0"):
            tracedb.Writer("host=x", tenant_id=tenant, **{setting: 0})  # type: ignore[arg-type]
    with pytest.raises(tracedb.InvalidInput, match="tenant_id: must be a UUID"):
        tracedb.Writer("host=x", tenant_id="acme")


def test_a_pool_of_ones_own_makes_a_writer_too(database: str, tenant: UUID) -> None:
    with ConnectionPool(
        database, kwargs={"application_name": "mine", "prepare_threshold": None}, open=True
    ) as pool:
        with tracedb.TraceDB(pool).writer(tenant_id=tenant) as ours:
            save(ours)
            assert ours.flush_all(30)
            with psycopg.connect(database) as conn:
                found = conn.execute(
                    "select count(distinct pid) from pg_stat_activity "
                    "where application_name = 'mine'"
                ).fetchone()
            assert found == (len(pool._pool) + 1,)
        assert not ours._link.prepared_statements
    with (
        ConnectionPool(lambda: database, open=True) as computed,
        pytest.raises(tracedb.InvalidInput, match="writer: this pool computes"),
    ):
        tracedb.TraceDB(computed).writer()


@pytest.mark.usefixtures("default")
def test_the_process_has_a_writer(
    database: str, tenant: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEDB_DSN", database)
    monkeypatch.setenv("TRACEDB_TENANT_ID", str(tenant))
    monkeypatch.setenv("TRACEDB_SPOOL_DIR", str(tmp_path / "spool"))

    ours = tracedb.get_writer()
    assert isinstance(ours, tracedb.Writer)
    with ours:
        assert tracedb.get_writer() is ours
        save(ours)
        assert list(tmp_path.rglob("*.seg"))

    assert names(database, tenant) == ["a"]
    with writer(database, tenant) as other:
        tracedb.set_writer(other)
        assert tracedb.get_writer() is other


def test_threads_share_a_writer_and_the_sum_holds_at_every_moment(
    database: str, tenant: UUID
) -> None:
    bad = 7
    with writer(database, tenant, flush_records=50, queue_records=500) as ours:
        watching = threading.Event()

        def watch() -> None:
            while not watching.is_set():
                stats = ours.stats()
                sums.append(
                    stats.accepted == stats.stored + stats.dead + stats.dropped + stats.pending
                )

        def work(start: int) -> None:
            for n in range(start, start + 500):
                accepted.append(save(ours, f"{n:04}", cost_usd=-1 if n % 100 == bad else 1))

        sums: list[bool] = []
        accepted: list[str | None] = []
        watcher = threading.Thread(target=watch)
        workers = [threading.Thread(target=work, args=(n * 500,)) for n in range(4)]
        for thread in (watcher, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        assert ours.flush_all(60)
        watching.set()
        watcher.join()
        stats = ours.stats()

    (report,) = losses(database, tenant)
    assert sums
    assert all(sums)
    assert stats.accepted == 2000
    assert stats.dropped == accepted.count(None)
    assert stats.pending == 0
    assert (report.stored, report.dead, report.dropped) == (stats.stored, stats.dead, stats.dropped)
    assert (report.accepted, report.missing) == (2000, 0)
    assert len(names(database, tenant)) == stats.stored


# A redaction hook


def test_a_hook_says_what_may_be_stored(database: str, tenant: UUID, tmp_path: Path) -> None:
    def hide(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"name": record["name"].replace("marker", "***")}

    with writer(database, tenant, redact=hide, spool=tmp_path) as ours:
        for n in range(20):
            assert save(ours, f"marker {n:02}") is not None
        assert ours.stats().accepted == 20
        assert ours.flush_all(30)
        assert ours.stats() == tracedb.Stats(accepted=20, stored=20)

    assert names(database, tenant) == [f"*** {n:02}" for n in range(20)]


def test_what_a_hook_has_not_seen_is_nowhere(
    database: str, tenant: UUID, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    reached = threading.Event()

    def hang(record: dict[str, Any]) -> dict[str, Any]:
        reached.set()
        release.wait(30)
        raise ValueError(record["name"])

    def everything() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.rglob("*.*"))

    with writer(database, tenant, redact=hang, spool=tmp_path) as ours:
        save(ours, "marker")
        save(ours, "marker", attributes={"marker": float("nan")}, external_id="marker")
        assert reached.wait(30)
        assert ours.stats().pending == 2
        assert b"marker" not in everything()
        release.set()
        assert ours.flush_all(30)
        assert b"marker" not in everything()
        assert ours.stats() == tracedb.Stats(accepted=2, stored=1, dead=1)

    (letter,) = dead_letters(database, tenant)
    assert names(database, tenant) == ["[redacted: the redaction hook failed]"]
    assert "marker" not in letter.record + letter.reason
    assert "marker" not in caplog.text


def test_more_than_a_hook_can_do_is_dropped_and_counted(database: str, tenant: UUID) -> None:
    release = threading.Event()

    def wait(record: dict[str, Any]) -> dict[str, Any]:
        release.wait(30)
        return record

    with writer(database, tenant, redact=wait, queue_records=5) as ours:
        accepted = [save(ours) is not None for _ in range(8)]
        assert (ours.stats().pending, ours.stats().dropped) == (5, 3)
        release.set()
        assert ours.flush_all(30)

    (report,) = losses(database, tenant)
    assert accepted == [True] * 5 + [False] * 3
    assert (report.stored, report.dropped, report.missing) == (5, 3, 0)


# However a process ends


SERVICE = """
import os, signal, sys, tracedb
dsn, tenant, spool, end = sys.argv[1:]
writer = tracedb.Writer(
    dsn, tenant_id=tenant, spool=spool or None, flush_seconds=3600, flush_records=10**9
)
for n in range(500):
    writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name=f"{n:03}")
match end:
    case "exit": sys.exit(3)
    case "exception": raise ZeroDivisionError
    case "SIGTERM": os.kill(os.getpid(), signal.SIGTERM)
    case "SIGKILL": os.kill(os.getpid(), signal.SIGKILL)
    case "_exit": os._exit(0)
"""
ALL = [f"{n:03}" for n in range(500)]


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("end", ["end", "exit", "exception", "SIGTERM", "SIGKILL", "_exit"])
def test_what_survives_the_end_of_a_process(
    database: str, tenant: UUID, tmp_path: Path, end: str, spooled: bool
) -> None:
    spool = tmp_path / "spool"
    run(SERVICE, database, tenant, spool if spooled else "", end)

    orderly = end in ("end", "exit", "exception")
    assert names(database, tenant) == (ALL if orderly else [])
    if spooled:
        with writer(database, None, spool=spool) as heir:
            assert heir.flush_all(30)
            assert heir.stats().recovered == (0 if orderly else 500)
        assert names(database, tenant) == ALL
        (report,) = losses(database, tenant)
        assert (report.stored, report.missing, report.closed) == (500, 0, True)
        assert list(spool.iterdir()) == []


def test_the_end_of_a_process_waits_only_so_long(tmp_path: Path, tenant: UUID) -> None:
    ended = run(
        """
import sys, tracedb
writer = tracedb.Writer(sys.argv[1], tenant_id=sys.argv[2], exit_timeout=0.2)
writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name="marker")
""",
        f"host={tmp_path} dbname=x",
        tenant,
    )

    assert ended.returncode == 0
    assert "1 records are lost" in ended.stderr
    assert "marker" not in ended.stderr


def test_a_writer_that_is_first_used_at_the_end_still_delivers(database: str, tenant: UUID) -> None:
    ended = run(
        """
import atexit, sys, tracedb
writer = tracedb.Writer(sys.argv[1], tenant_id=sys.argv[2])
def last():
    writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name="last")
    writer.close()
atexit.register(last)
""",
        database,
        tenant,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(database, tenant) == ["last"]


# Children


FORKS = """
import os, sys, tracedb
dsn, tenant, spool, started = sys.argv[1:]
writer = tracedb.Writer(
    dsn, tenant_id=tenant, spool=spool or None, flush_seconds=3600, flush_records=10**9
)
def save(name):
    assert writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name=name)
if started:
    save("delivered before")
    assert writer.flush_all(30)
save("parent before")
pids = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        for n in range(5):
            save(f"child {child} {n}")
        assert writer.flush_all(30)
        save(f"child {child} last")
        sys.exit(0)  # as gunicorn's workers end
    pids.append(pid)
save("parent after")
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
"""


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("started", ["", "started"], ids=["before", "after"])
def test_every_child_delivers_its_own_once_and_the_parent_s_never(
    database: str, tenant: UUID, tmp_path: Path, started: str, spooled: bool
) -> None:
    spool = tmp_path / "spool"
    ended = run(FORKS, database, tenant, spool if spooled else "", started)
    children = [f"child {c} {n}" for c in range(4) for n in (*range(5), "last")]

    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(database, tenant) == sorted(
        [*children, "parent after", "parent before", *(["delivered before"] if started else [])]
    )
    reports = losses(database, tenant)
    assert len(reports) == 5
    assert [(report.missing, report.repeated, report.closed) for report in reports] == [
        (0, 0, True)
    ] * 5
    if spooled:
        assert list(spool.iterdir()) == []


def test_a_child_that_is_killed_leaves_its_spool_to_the_parent(
    database: str, tenant: UUID, tmp_path: Path
) -> None:
    ended = run(
        """
import os, signal, sys, tracedb
dsn, tenant, spool = sys.argv[1:]
writer = tracedb.Writer(dsn, tenant_id=tenant, spool=spool, flush_seconds=3600)
def save(name):
    assert writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name=name)
save("parent")
pid = os.fork()
if pid == 0:
    save("child")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
writer._delivery.adopt()  # as it does every minute
assert writer.flush_all(30)
assert writer.stats().recovered == 1
""",
        database,
        tenant,
        tmp_path / "spool",
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(database, tenant) == ["child", "parent"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_delivers_at_its_end(
    database: str, tenant: UUID, tmp_path: Path, method: str
) -> None:
    script = tmp_path / "service.py"
    script.write_text(
        """
import multiprocessing, sys, tracedb
dsn, tenant, method = sys.argv[1:]

def work(n):
    writer = tracedb.get_writer()
    assert writer.save_span(trace_id="0" * 31 + "1", operation_type="llm", name=f"child {n}")

if __name__ == "__main__":
    tracedb.get_writer().save_span(trace_id="0" * 31 + "1", operation_type="llm", name="parent")
    context = multiprocessing.get_context(method)
    children = [context.Process(target=work, args=(n,)) for n in range(2)]
    for child in children: child.start()
    for child in children: child.join()
    assert [child.exitcode for child in children] == [0, 0]
"""
    )
    environment = {"TRACEDB_DSN": database, "TRACEDB_TENANT_ID": str(tenant)}
    ended = run(script, database, tenant, method, environment=environment)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert names(database, tenant) == ["child 0", "child 1", "parent"]


# The spool


def test_two_processes_share_a_spool(database: str, tenant: UUID, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with (
        writer(database, tenant, spool=spool) as one,
        writer(database, tenant, spool=spool) as other,
    ):
        for n in range(10):
            save(one, f"one {n}")
            save(other, f"other {n}")
        for ours in (one, other):
            ours._delivery.adopt()
            assert ours.flush_all(30)
            assert ours.stats() == tracedb.Stats(accepted=10, stored=10)

    assert len(names(database, tenant)) == 20
    assert list(spool.iterdir()) == []


def test_damage_to_the_spool_costs_the_damaged_records_alone(
    database: str, tenant: UUID, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    run(SERVICE, database, tenant, spool, "SIGKILL")
    (segment,) = spool.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b'"name":"007"') + 3] ^= 1
    segment.write_bytes(data[:-10])
    (segment.parent / "000002.seg").write_bytes(b"")
    (segment.parent / "000003.seg").write_bytes(os.urandom(5000))
    (segment.parent / "README").write_text("not ours")

    with writer(database, None, spool=spool) as heir:
        assert heir.flush_all(30)
        assert heir.stats().recovered == 498

    assert names(database, tenant) == [name for name in ALL if name not in ("007", "499")]
    (report,) = losses(database, tenant)
    assert (report.accepted, report.missing, report.gaps) == (499, 1, ((8, 8),))
    assert (segment.parent / "README").read_text() == "not ours"
    assert b'"name"' in next((spool / "quarantine").glob("*-000001.bad")).read_bytes()
    assert list(spool.rglob("*.seg")) == []


def test_a_process_that_dies_while_it_recovers_leaves_the_rest(
    database: str, tenant: UUID, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    run(SERVICE, database, tenant, spool, "SIGKILL")
    run(
        """
import os, sys, tracedb
dsn, tenant, spool = sys.argv[1:]
writer = tracedb.Writer(dsn, spool=spool)
writer._backlog.settle = lambda *args: os._exit(1)  # delivered, and nobody knows
writer.flush_all(30)
""",
        database,
        tenant,
        spool,
    )
    assert names(database, tenant) == ALL
    with writer(database, None, spool=spool) as heir:
        assert heir.flush_all(30)

    (report,) = losses(database, tenant)
    assert names(database, tenant) == ALL
    assert (report.stored, report.repeated, report.missing) == (500, 500, 0)


def test_a_spool_that_cannot_be_written_is_told_once_and_done_without(
    database: str, tenant: UUID, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with writer(database, tenant, spool=tmp_path / "file" / "spool") as ours:
        for n in range(3):
            assert save(ours, f"{n}") is not None
            assert ours.flush_all(30)

    assert names(database, tenant) == ["0", "1", "2"]
    told = [r.getMessage() for r in caplog.records if "the spool" in r.getMessage()]
    assert told == ["tracedb: the spool: Not a directory; records are kept in memory"]


def test_an_outage_that_memory_cannot_hold_is_spooled(
    database: str, tenant: UUID, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with writer(f"host={tmp_path} dbname=x", tenant, spool=spool, queue_records=10) as ours:
        assert all(save(ours, f"{n:03}") for n in range(500))
        assert ours.stats() == tracedb.Stats(accepted=500, pending=500)
        ours.close(timeout=0)
    with writer(database, None, spool=spool, queue_records=10) as heir:
        assert heir.flush_all(30)

    (report,) = losses(database, tenant)
    assert names(database, tenant) == ALL
    assert (report.stored, report.repeated, report.missing) == (500, 0, 0)
