"""Retention removes what its rules say, once it is archived and counted, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

import two_tenants
from servers import as_role
from tracedb import archive as archiving
from tracedb import retention
from tracedb.errors import AlreadyRunning, InvalidInput, PermissionDenied
from tracedb.query import run
from tracedb.retention import Planned, Report, run_retention
from tracedb.stores import DirectoryStore, Store
from two_tenants import A, B, uuid7

Connection = psycopg.Connection[Any]

# in the partitions of weeks that are long over
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=120)
FAMILY = [
    "execution_traces",
    "trace_payloads",
    "agent_routing_decisions",
    "hook_executions",
    "endpoint_calls",
    "llm_spans",
    "span_cost_adjustments",
    "usage_contributions",
    "learned_traces",
]


class Killed(BaseException):
    """The end of a process, as far as it can be had without one."""


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "archive").mkdir()
    return DirectoryStore(tmp_path / "archive")


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    """A login that may act as the maintainer, as cron has it."""
    with psycopg.connect(
        database, autocommit=True, options="-c role=tracedb_maintainer -c lock_timeout=20s"
    ) as conn:
        yield conn


@pytest.fixture
def admin(database: str) -> Iterator[Connection]:
    with psycopg.connect(database, autocommit=True, options="-c lock_timeout=20s") as conn:
        yield conn


def write(admin: Connection, at: datetime, number: int = 1, tenant: UUID = A) -> UUID:
    """A trace with a part of every type, in a partition of its week."""
    items = two_tenants.records(tenant, at, {"trace_id": str(uuid7(at, number))}, number)
    answer = admin.execute(
        "select tracedb.ingest(%s::json, %s)", [json.dumps(items), tenant]
    ).fetchone()
    assert answer is not None
    assert answer[0]["rejected"] == []
    admin.execute("select count(*) from tracedb.drain_default_partitions()")
    return uuid7(at, number)


def contents(admin: Connection, *tables: str) -> dict[str, list[str]]:
    return {
        table: [
            row
            for (row,) in admin.execute(
                f"select t::text from tracedb.{table} as t order by 1".encode()
            )
        ]
        for table in tables or FAMILY
    }


def archived(conn: Connection, store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """The values of every row that is in an archive and nowhere else."""
    found: dict[str, list[tuple[Any, ...]]] = {table: [] for table in FAMILY}
    for each in run(conn, archiving.archives(state="removed")):
        found.setdefault(each.table_name, []).extend(
            archiving.rows(store, archiving.opened(store, each))
        )
    return found


def places(conn: Connection, admin: Connection, store: Store) -> dict[str, int]:
    """How often each trace is in a table or in an archive that is the place of its rows."""
    ids = [str(i) for (i,) in admin.execute("select trace_id from tracedb.execution_traces")]
    ids += [str(row[1]) for row in archived(conn, store)["execution_traces"]]
    return {i: ids.count(i) for i in ids}


def requests(admin: Connection, tenant: UUID) -> int:
    """How many requests the totals of a tenant count."""
    row = admin.execute(
        "select sum(executions)::int from tracedb.usage_rollups"
        " where width = 'day' and kind = 'request' and tenant_id = %s",
        [tenant],
    ).fetchone()
    assert row is not None
    return int(row[0])


def charges(admin: Connection) -> tuple[Decimal, Decimal]:
    """What A was charged up to a month after the old traces, by two ways."""
    since, until = OLD - timedelta(days=30), OLD + timedelta(days=30)
    row = admin.execute(
        """
        select (
            select sum(d.cost_usd)
            from tracedb.get_cost_breakdown('day', %(since)s, %(until)s, %(a)s) as d
        ), s.spent_usd
        from tracedb.spent_since(%(since)s, %(until)s, %(a)s) as s
        """,
        {"since": since, "until": until, "a": A},
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def done(report: Report) -> Report:
    assert report.failures == []
    return report


def test_what_is_old_is_archived_and_dropped_and_totals_stay(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    old, new = write(admin, OLD), write(admin, NOW, 2)
    before = admin.execute("select count(*) from tracedb.trace_changes where not folded").fetchone()
    assert before == (2,)
    rows = contents(admin)

    report = done(run_retention(conn, store))

    left = admin.execute("select trace_id from tracedb.execution_traces").fetchall()
    assert left == [(new,)]
    files = archived(conn, store)
    for table in ("execution_traces", "llm_spans", "trace_payloads", "hook_executions"):
        assert len(files[table]) == sum(str(old) in row for row in rows[table]) > 0, table
    assert len(files["usage_contributions"]) > 0  # what was folded before it went
    admin.execute("select count(*) from tracedb.fold_usage()")
    assert admin.execute(
        "select count(*) from tracedb.usage_differences(%s, %s, %s)",
        [NOW - timedelta(days=30), NOW + timedelta(days=1), A],
    ).fetchone() == (0,)
    assert requests(admin, A) == 2
    assert {each.action for each in report.receipts} == {"dropped"}
    assert {each.table_name for each in report.receipts if each.row_count} <= set(FAMILY)
    (receipt,) = (
        each
        for each in run(conn, retention.retention_receipts())
        if each.table_name == "execution_traces" and each.row_count
    )
    assert receipt.row_count == 1
    assert receipt.created_by
    assert admin.execute(
        "select count(*) from pg_class where relname ~ '_retired$'"
    ).fetchone() == (0,)
    assert done(run_retention(conn, store)).receipts == []


STEPS = ["planned", "folded", "written", "finished", "recorded", "retired", "dropped"]


def test_what_was_charged_for_a_trace_is_not_charged_again_once_it_is_gone(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    old = write(admin, OLD)
    charged = [
        {
            "type": "cost_event",
            "event_id": str(uuid7(OLD, number)),
            "occurred_at": OLD.isoformat(),
            "cost_type": cost_type,
            "service": "some",
            "cost_usd": 7,
            "trace_id": str(trace_id),
        }
        for number, cost_type, trace_id in (
            (21, "llm", old),  # the trace says what it cost
            (22, "storage", old),
            (23, "llm", uuid7(OLD, 29)),  # a trace that never came
        )
    ]
    answer = admin.execute(
        "select tracedb.ingest(%s::json, %s) -> 'rejected'", [json.dumps(charged), A]
    ).fetchone()
    assert answer == ([],)
    admin.execute(
        "insert into tracedb.budget_reservations (tenant_id, trace_id, amount_usd, settled_usd,"
        " status, reserved_at, expires_at) values (%s, %s, 5, 5, 'settled', %s, %s)",
        [A, old, OLD, OLD + timedelta(minutes=1)],
    )
    before = charges(admin)
    assert before[0] > 14

    done(run_retention(conn, store))

    assert contents(admin, "execution_traces") == {"execution_traces": []}
    assert charges(admin) == before


def test_uses_of_patterns_are_counted_before_they_go(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    at = NOW - timedelta(days=200)
    row = admin.execute(
        """select tracedb.save_pattern('{"prompt": "cancel my flight"}', %s)""", [A]
    ).fetchone()
    assert row is not None
    admin.execute("select count(*) from tracedb.ensure_partitions(now(), %s)", [at])
    admin.execute(
        "insert into tracedb.pattern_usage_log (tenant_id, trace_id, pattern_id, used_at, success)"
        " values (%s, %s, %s, %s, true)",
        [A, uuid7(at, 1), row[0], at],
    )

    done(run_retention(conn, store))

    assert contents(admin, "pattern_usage_log") == {"pattern_usage_log": []}
    counts = admin.execute("select use_count, use_successes from tracedb.success_patterns")
    assert counts.fetchall() == [(1, 1)]


def test_a_run_that_was_killed_is_carried_on(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    everywhere = {str(write(admin, NOW, 1)): 1}
    for number, boundary in enumerate(STEPS, start=1):
        old = [write(admin, OLD, 10 * number + n, tenant) for n, tenant in ((1, A), (2, B))]
        everywhere |= {str(i): 1 for i in old}

        def die(step: str, _: Planned, at: str = boundary) -> None:
            if step == at:
                raise Killed

        with pytest.raises(Killed):
            run_retention(conn, store, step=die)
        assert places(conn, admin, store) == everywhere, boundary
        files = len(run(conn, archiving.archives()))

        done(run_retention(conn, store))
        assert places(conn, admin, store) == everywhere, boundary
        assert admin.execute(
            "select (select count(*) from tracedb.execution_traces),"
            " (select count(*) from pg_class where relname ~ '_retired$')"
        ).fetchone() == (1, 0), boundary
        if boundary in ("retired", "dropped"):
            # what was archived is not archived again
            assert len(run(conn, archiving.archives())) == files


def test_what_an_earlier_run_left_counts_only_if_it_is_there_and_whole(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    def die(step: str, _: Planned) -> None:
        if step == "recorded":
            raise Killed

    def lose(path: Path) -> None:
        path.unlink()

    def empty(path: Path) -> None:
        path.write_bytes(b"")

    traces = set()
    for number, fault in enumerate((lose, empty), start=1):
        traces.add(str(write(admin, OLD, number)))
        before = set(store.names())
        with pytest.raises(Killed):
            run_retention(conn, store, step=die)
        (name,) = (name for name in set(store.names()) - before if name.endswith(".gz"))
        fault(store.root / name)
        done(run_retention(conn, store))
        assert places(conn, admin, store) == dict.fromkeys(traces, 1)
    traces.add(str(write(admin, OLD, 3)))
    with pytest.raises(Killed):
        run_retention(conn, store, step=die)
    run(conn, retention.set_retention("execution_traces", timedelta(days=300), tenant_id=B))
    traces.add(str(write(admin, OLD, 4, B)))

    done(run_retention(conn, store))

    assert places(conn, admin, store) == dict.fromkeys(traces, 1)
    found = run(conn, archiving.archives())
    assert {each.state for each in found} == {"removed"}
    assert {name.removesuffix(archiving.MANIFEST) for name in store.names()} == {
        each.file for each in found
    }


def test_a_retired_partition_that_is_in_use_is_dropped_by_the_next_run(
    conn: Connection, admin: Connection, database: str, store: DirectoryStore
) -> None:
    write(admin, OLD, 1)

    def die(step: str, _: Planned) -> None:
        if step == "retired":
            raise Killed

    with pytest.raises(Killed):
        run_retention(conn, store, step=die)
    retired = f"execution_traces_p{OLD - timedelta(days=OLD.weekday()):%Y%m%d}"
    with psycopg.connect(database) as reader:
        reader.execute(f"lock table tracedb.{retired}_retired in access share mode".encode())
        dropped = set(done(run_retention(conn, store)).dropped)

    assert dropped == {f"{table}{retired.removeprefix('execution_traces')}" for table in FAMILY} - {
        retired
    }
    assert done(run_retention(conn, store)).dropped == [retired]


CHANGES = {
    "updated": "update tracedb.llm_spans set name = 'x' where trace_id = %s",
    "deleted": "delete from tracedb.hook_executions where trace_id = %s",
    "added": "insert into tracedb.trace_payloads (tenant_id, trace_id, kind, content, recorded_at)"
    " select tenant_id, trace_id, 'response', 'late', started_at from tracedb.execution_traces"
    " where trace_id = %s",
}


def test_a_row_that_changes_after_it_was_archived_keeps_all_of_it(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    everywhere: dict[str, int] = {}
    for number, change in enumerate(CHANGES, start=1):
        old = write(admin, OLD, number)
        everywhere[str(old)] = 1
        changed: list[int] = []

        def interfere(
            step: str, _: Planned, change: str = change, old: UUID = old, to: list[int] = changed
        ) -> None:
            # after the last of its tables was archived; nothing was adjusted, nothing learned
            written = run(conn, archiving.archives(state="written"))
            if step == "recorded" and len(written) == len(FAMILY) - 2:
                to.append(admin.execute(CHANGES[change].encode(), [old]).rowcount)

        report = run_retention(conn, store, step=interfere)

        assert changed == [1]
        (failure,) = report.failures
        assert "changed since it was archived" in failure.error
        assert places(conn, admin, store) == everywhere
        # and nothing pretends to be its archive
        assert run(conn, archiving.archives(state="written")) == []
        known = {each.file for each in run(conn, archiving.archives())}
        assert {name for name in store.names() if name.endswith(".gz")} == known

        done(run_retention(conn, store))
        assert contents(admin)["execution_traces"] == []
        assert places(conn, admin, store) == everywhere


def hold(conn: Connection, reason: str | None = "a court asks", tenant: UUID | None = A) -> None:
    run(conn, retention.set_legal_hold("execution_traces", reason, tenant_id=tenant))


def test_a_tenant_that_is_held_or_kept_longer_stays_and_the_others_go(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    held, gone = write(admin, OLD, 1, A), write(admin, OLD, 2, B)
    hold(conn)
    (planned,) = (
        each
        for each in run(conn, retention.retention_plan())
        if each.how == "rows" and each.except_tenants
    )
    assert f"{A}: legal hold: a court asks" in planned.reason

    report = done(run_retention(conn, store, slice_rows=1))

    assert {each.action for each in report.receipts if each.row_count} == {"deleted"}
    assert [i for (i,) in admin.execute("select trace_id from tracedb.execution_traces")] == [held]
    assert places(conn, admin, store) == {str(held): 1, str(gone): 1}
    assert {tuple(each.except_tenants) for each in run(conn, archiving.archives())} == {(A,)}

    again = done(run_retention(conn, store))
    assert again.receipts == []
    assert {each.blocked_by for each in again.blocked} == {"nothing but what is kept is left"}

    hold(conn, None)
    run(
        conn,
        retention.set_retention("execution_traces", timedelta(days=9999), tenant_id=A),
    )
    assert done(run_retention(conn, store)).receipts == []
    assert run(conn, retention.remove_retention("execution_traces", tenant_id=A))
    done(run_retention(conn, store))
    assert contents(admin)["execution_traces"] == []
    assert places(conn, admin, store) == {str(held): 1, str(gone): 1}


def test_a_hold_set_while_a_run_goes_on_counts(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    old = write(admin, OLD)

    def interfere(step: str, _: Planned) -> None:
        if step == "finished":
            admin.execute("select tracedb.set_legal_hold('execution_traces', 'now', %s)", [A])

    report = run_retention(conn, store, step=interfere)

    assert "the plan has changed" in report.failures[0].error
    assert places(conn, admin, store) == {str(old): 1}
    assert len(contents(admin)["execution_traces"]) == 1


def test_a_hold_that_ended_leaves_the_rules_as_they_were(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, NOW, 2, B)
    run(conn, retention.set_retention("execution_traces", None, "drop"))
    run(conn, retention.set_retention("execution_traces", timedelta(days=20), tenant_id=A))
    for tenant in (B, None):
        for reason in ("case 12", None):
            for table in ("execution_traces", "trace_payloads"):
                run(conn, retention.set_legal_hold(table, reason, tenant_id=tenant))

    assert [each.how for each in run(conn, retention.retention_plan())] == ["purge", "purge"]
    done(run_retention(conn, store))

    assert len(contents(admin)["execution_traces"]) == 1
    run(conn, retention.set_retention("execution_traces", timedelta(days=20)))
    write(admin, OLD)
    (planned, *_) = run(conn, retention.retention_plan())
    assert planned.archived == []


def test_a_tenant_with_a_shorter_rule_loses_its_rows_in_portions(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    at = NOW - timedelta(days=30)
    for number in range(5):
        write(admin, at + timedelta(seconds=number), 10 + number, A)
    other, fresh = write(admin, at, 1, B), write(admin, NOW, 2, A)
    run(
        conn,
        retention.set_retention("execution_traces", timedelta(days=20), tenant_id=A),
    )

    report = done(run_retention(conn, store, slice_rows=2))

    slices = [each for each in report.receipts if each.table_name == "execution_traces"]
    assert [each.row_count for each in slices if each.row_count] == [2, 2, 1]
    assert {each.tenant_id for each in slices} == {A}
    ids = {i for (i,) in admin.execute("select trace_id from tracedb.execution_traces")}
    assert ids == {other, fresh}
    assert set(places(conn, admin, store).values()) == {1}
    assert len(places(conn, admin, store)) == 7
    admin.execute("select count(*) from tracedb.fold_usage()")
    assert requests(admin, A) == 6


def test_texts_expire_before_their_headers(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    trace = write(admin, NOW - timedelta(days=60))
    run(conn, retention.set_retention("trace_payloads", timedelta(days=14), "drop"))

    done(run_retention(conn, store))

    rows = contents(admin)
    assert rows["trace_payloads"] == []
    assert len(rows["execution_traces"]) == 1
    assert str(trace) in rows["execution_traces"][0]
    assert store.names() == []


def test_one_run_at_a_time(
    conn: Connection, admin: Connection, store: DirectoryStore, database: str
) -> None:
    write(admin, OLD)

    def second(step: str, _: Planned) -> None:
        with (
            psycopg.connect(database, autocommit=True) as other,
            pytest.raises(AlreadyRunning),
        ):
            run_retention(other, store)

    done(run_retention(conn, store, step=second))
    assert contents(admin)["execution_traces"] == []


def test_without_a_store_nothing_that_is_to_be_archived_goes(
    conn: Connection, admin: Connection
) -> None:
    old = write(admin, OLD)

    report = run_retention(conn, None)

    assert "store: there is none" in report.failures[0].error
    assert str(old) in contents(admin)["execution_traces"][0]


def test_a_clock_that_is_a_day_wrong_removes_nothing_of_today(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    admin.execute("update tracedb.partition_policies set width = 'day'")
    today = write(admin, NOW)
    run(conn, retention.set_retention("execution_traces", timedelta(days=2)))
    tomorrow = NOW + timedelta(days=1)

    with pytest.raises(InvalidInput, match=r"clock: this machine says .*, the server"):
        run_retention(conn, store, clock=lambda: tomorrow)
    with pytest.raises(InvalidInput, match="as_of: more than a day after the server's clock"):
        run_retention(conn, store, as_of=NOW + timedelta(days=2))
    # even if the server's own clock is the wrong one
    done(run_retention(conn, store, as_of=tomorrow - timedelta(minutes=1)))

    assert str(today) in contents(admin)["execution_traces"][0]
    with pytest.raises(InvalidInput, match="keep: at least 2 days"):
        run(conn, retention.set_retention("execution_traces", timedelta(days=1)))


def test_events_of_1970_and_2100_are_neither_lost_nor_in_the_way(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    for number, at in enumerate((datetime(1970, 1, 2, tzinfo=UTC), NOW)):
        items = two_tenants.records(A, at, {"trace_id": str(uuid7(at, number))}, number + 1)
        admin.execute("select tracedb.ingest(%s::json, %s)", [json.dumps(items), A])
    far = datetime(2100, 1, 1, tzinfo=UTC)
    items = two_tenants.records(A, far, {"trace_id": str(uuid7(far, 9))}, 9)
    admin.execute("select tracedb.ingest(%s::json, %s)", [json.dumps(items), A])
    everywhere = {str(uuid7(datetime(1970, 1, 2, tzinfo=UTC), 0)): 1}
    everywhere |= {str(uuid7(NOW, 1)): 1, str(uuid7(far, 9)): 1}

    report = done(run_retention(conn, store))

    assert report.stray_rows == 0  # drained
    assert places(conn, admin, store) == everywhere
    assert len(contents(admin)["execution_traces"]) == 2
    assert {each.from_time and each.from_time.year for each in report.receipts} == {1970}


RULES: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown table": (
        lambda: retention.set_retention("nothing", timedelta(days=9)),
        "table_name: has no rows that grow old",
    ),
    "a part of the totals": (
        lambda: retention.set_retention("llm_spans", timedelta(days=9)),
        "table_name: goes with execution_traces",
    ),
    "an unknown action": (
        lambda: retention.set_retention("platform_events", timedelta(days=9), "x"),  # type: ignore[arg-type]
        "action: must be archive or drop",
    ),
    "texts kept longer than headers": (
        lambda: retention.set_retention("trace_payloads", timedelta(days=91)),
        "keep: at most that of execution_traces",
    ),
    "an archive of what has no partitions": (
        lambda: retention.set_retention("trace_changes", timedelta(days=9), "archive"),
        "action: this table cannot be archived",
    ),
    "a tenant's rule for what has one rule": (
        lambda: retention.set_retention("dead_letters", timedelta(days=9), tenant_id=A),
        "tenant_id: this table has one rule",
    ),
    "a hold without a reason": (
        lambda: retention.set_legal_hold("execution_traces", ""),
        "reason: must say why",
    ),
}


def test_a_rule_that_makes_no_sense_is_refused(conn: Connection) -> None:
    for query, message in RULES.values():
        with pytest.raises(InvalidInput, match=message):
            run(conn, query())


def test_the_rules_of_the_mission_are_there_and_shown_with_their_partitions(
    conn: Connection,
) -> None:
    found = {each.table_name: each for each in run(conn, retention.retention_policies())}

    assert {name: (each.keep, each.action) for name, each in found.items()} == {
        "execution_traces": (timedelta(days=90), "archive"),
        "pattern_usage_log": (timedelta(days=180), "drop"),
        "platform_events": (timedelta(days=3 * 365), "archive"),
        "agent_executions": (timedelta(days=3 * 365), "archive"),
        "tenant_cost_events": (timedelta(days=7 * 365), "archive"),
        "trace_changes": (timedelta(days=90), "drop"),
        "maintenance_runs": (timedelta(days=90), "drop"),
    }
    traces = found["execution_traces"]
    assert (traces.family, traces.width, traces.ahead_periods) == ("traces", "week", 4)


def test_a_follower_whose_changes_were_purged_is_told(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    start = admin.execute("select tracedb.changes_cursor()").fetchone()
    assert start is not None
    for number in (1, 2):
        write(admin, NOW, number)
    last = admin.execute(
        "select next_cursor from tracedb.changes_since(tenant_id => %s) offset 1", [A]
    ).fetchone()
    assert last is not None
    admin.execute("update tracedb.trace_changes set created_at = created_at - interval '1 year'")

    report = done(run_retention(conn, store))
    assert report.purged == {}  # what is not folded stays
    admin.execute("select count(*) from tracedb.fold_usage()")
    report = done(run_retention(conn, store))

    assert report.purged == {"trace_changes": 2}
    (receipt,) = run(conn, retention.retention_receipts())
    assert (receipt.action, receipt.from_time, receipt.row_count) == ("purged", None, 2)
    with (
        as_role(admin, "tracedb_reader", A),
        pytest.raises(psycopg.Error, match="cursor: older than the changes that are kept"),
    ):
        admin.execute("select * from tracedb.changes_since(%s, 10, %s)", [start[0], A])
    write(admin, NOW, 3)
    with as_role(admin, "tracedb_reader", A):
        found = admin.execute(
            "select trace_id from tracedb.changes_since(%s, 10, %s)", [last[0], A]
        ).fetchall()
    assert found == [(uuid7(NOW, 3),)]


def test_a_role_that_sees_only_some_rows_archives_nothing(
    admin: Connection, store: DirectoryStore, database: str
) -> None:
    write(admin, OLD)
    # as if somebody had granted the jobs to a tenant's role
    admin.execute(
        "grant execute on all functions in schema tracedb to tracedb_app;"
        "grant select on tracedb.archives to tracedb_app"
    )
    part = archiving.Part("traces", "execution_traces", OLD - timedelta(days=9), NOW)
    options = f"-c role=tracedb_app -c tracedb.tenant_id={B}"
    with (
        psycopg.connect(database, autocommit=True, options=options) as filtered,
        pytest.raises(PermissionDenied, match="row-level security hides rows from this role"),
    ):
        archiving.archive_part(filtered, store, part)

    assert store.names() == []


def test_time_that_is_up_ends_a_run_between_two_steps(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, OLD)

    report = run_retention(conn, store, seconds=0)

    assert report.unfinished
    assert report.receipts == []
    assert len(contents(admin)["execution_traces"]) == 1
