"""Time partitions: made ahead, equal for a whole family, and free of rows that came too early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from uuid import UUID

import psycopg
import pytest

from servers import as_role
from two_tenants import A, B, events, records, uuid7

# Far from the partitions that the migration makes.
WEDNESDAY = datetime(2030, 1, 2, 15, tzinfo=UTC)

PARENTS = [
    "agent_routing_decisions",
    "endpoint_calls",
    "execution_traces",
    "hook_executions",
    "learned_traces",
    "llm_spans",
    "span_cost_adjustments",
    "trace_payloads",
    "usage_contributions",
]
EVENTS = ["agent_executions", "platform_events", "tenant_cost_events"]
EVERY = sorted([*PARENTS, *EVENTS, "pattern_usage_log"])

Connection = psycopg.Connection[Any]


def connect(database: str, *, autocommit: bool = False) -> Connection:
    """A session that never waits for ever."""
    return psycopg.connect(database, autocommit=autocommit, options="-c lock_timeout=20s")


@pytest.fixture
def conn(database: str, executor: ThreadPoolExecutor) -> Iterator[Connection]:
    """Closed before the threads are waited for, since they may be waiting for its locks."""
    with connect(database) as conn:
        yield conn


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def ensure(conn: Connection, as_of: datetime, since: datetime | None = None) -> list[str]:
    return [
        name for (name,) in conn.execute("select tracedb.ensure_partitions(%s, %s)", [as_of, since])
    ]


def drain(conn: Connection, max_periods: int = 10) -> list[str]:
    return [
        name
        for (name,) in conn.execute("select tracedb.drain_default_partitions(%s)", [max_periods])
    ]


def use(conn: Connection, width: str, ahead: int) -> None:
    conn.execute(
        "update tracedb.partition_policies set width = %s, ahead_periods = %s", [width, ahead]
    )


def bounds(conn: Connection, parent: str, since: datetime) -> list[tuple[datetime, datetime]]:
    """The periods from some time on, in order."""
    return conn.execute(
        "select from_time, to_time from tracedb.partitions"
        " where parent = %s and not is_default and to_time > %s order by 1",
        [parent, since],
    ).fetchall()


def strays(conn: Connection) -> dict[str, int]:
    return {
        parent: found
        for parent, found in conn.execute("select * from tracedb.default_partition_rows()")
        if found
    }


def write(conn: Connection, at: datetime, number: int = 1, tenant: UUID = A) -> None:
    """A folded trace with a part of every type, beginning then."""
    items = records(tenant, at, {"trace_id": str(uuid7(at, number))}, number)
    row = conn.execute(
        "select tracedb.ingest(%s::json, %s)", [json.dumps(items), tenant]
    ).fetchone()
    assert row is not None
    assert (row[0]["inserted"], row[0]["rejected"]) == (6, [])
    conn.execute("select count(*) from tracedb.fold_usage()")
    conn.execute(
        "insert into tracedb.span_cost_adjustments"
        " (tenant_id, trace_id, span_id, span_updated_at, cost_usd, reason)"
        " values (%s, %s, '\\x0000000000000001', %s, 1, 'test')",
        [tenant, uuid7(at, number), at],
    )
    conn.execute(
        "insert into tracedb.learned_traces"
        " (tenant_id, trace_id, subject, learned_id, occurrences, successes)"
        " values (%s, %s, 'error', %s, 1, 0)",
        [tenant, uuid7(at, number), uuid7(at, number)],
    )


def rows(traces: int) -> dict[str, int]:
    """How many rows of each table that many calls of `write` make."""
    twice = ("trace_payloads", "usage_contributions")
    return {parent: traces * (2 if parent in twice else 1) for parent in PARENTS}


def contents(conn: Connection) -> dict[str, list[Any]]:
    return {
        parent: conn.execute(
            f"select to_jsonb(t) from tracedb.{parent} as t order by t::text".encode()
        ).fetchall()
        for parent in PARENTS
    }


def days(*dates: str) -> list[datetime]:
    return [datetime.fromisoformat(f"{date}T00:00:00+00:00") for date in dates]


# --- made ahead ---


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        ("day", days("2030-01-02", "2030-01-03", "2030-01-04", "2030-01-05")),
        ("week", days("2029-12-31", "2030-01-07", "2030-01-14", "2030-01-21")),
        ("month", days("2030-01-01", "2030-02-01", "2030-03-01", "2030-04-01")),
    ],
)
def test_partitions_are_made_for_now_and_ahead(
    conn: Connection, width: str, expected: list[datetime]
) -> None:
    use(conn, width, ahead=2)
    made = ensure(conn, WEDNESDAY)

    assert len(made) == 3 * len(EVERY)
    for parent in EVERY:
        assert bounds(conn, parent, WEDNESDAY - timedelta(days=3)) == list(pairwise(expected))


def test_making_them_again_makes_nothing(conn: Connection) -> None:
    assert ensure(conn, datetime.now(UTC)) == []
    assert ensure(conn, WEDNESDAY) != []
    assert ensure(conn, WEDNESDAY) == []
    assert ensure(conn, WEDNESDAY + timedelta(days=1), since=WEDNESDAY) == []


def test_a_week_later_one_more_week_is_made(conn: Connection) -> None:
    ensure(conn, WEDNESDAY)

    assert sorted(ensure(conn, WEDNESDAY + timedelta(days=7))) == [
        f"{parent}_p20300204" for parent in EVERY
    ]


def test_partitions_are_made_from_a_time_in_the_past(conn: Connection) -> None:
    use(conn, "week", ahead=1)
    ensure(conn, WEDNESDAY, since=WEDNESDAY - timedelta(days=20))

    mondays = days(
        "2029-12-10", "2029-12-17", "2029-12-24", "2029-12-31", "2030-01-07", "2030-01-14"
    )
    assert bounds(conn, "llm_spans", mondays[0]) == list(pairwise(mondays))


@pytest.mark.parametrize(("before", "after"), [("week", "month"), ("month", "day")])
def test_a_new_width_fills_only_what_is_not_covered(
    conn: Connection, before: str, after: str
) -> None:
    use(conn, before, ahead=1)
    ensure(conn, WEDNESDAY)
    old = bounds(conn, "llm_spans", WEDNESDAY)
    use(conn, after, ahead=60 if after == "day" else 2)
    ensure(conn, WEDNESDAY)

    new = bounds(conn, "llm_spans", datetime(2029, 12, 30, tzinfo=UTC))
    assert set(old) < set(new)
    assert [end for _, end in new[:-1]] == [begin for begin, _ in new[1:]], "no gap, no overlap"
    assert new[-1][1] > WEDNESDAY + timedelta(days=58)
    assert all(bounds(conn, parent, new[0][0]) == new for parent in PARENTS)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Kolkata", "Pacific/Kiritimati"])
def test_bounds_are_days_in_utc_whatever_the_session(conn: Connection, zone: str) -> None:
    use(conn, "day", ahead=1)
    conn.execute("select set_config('timezone', %s, false)", [zone])
    made = ensure(conn, datetime(2030, 1, 2, 23, 30, tzinfo=UTC))

    assert "llm_spans_p20300102" in made
    assert "llm_spans_p20300103" in made
    assert [begin.astimezone(UTC) for begin, _ in bounds(conn, "llm_spans", WEDNESDAY)] == days(
        "2030-01-02", "2030-01-03"
    )
    assert conn.execute("show timezone").fetchone() == (zone,)


def test_every_event_table_is_in_a_family_and_has_a_default_partition(conn: Connection) -> None:
    partitioned = conn.execute(
        "select c.relname::text from pg_class as c join pg_partitioned_table as p"
        " on p.partrelid = c.oid where c.relnamespace = 'tracedb'::regnamespace"
        " and p.partstrat = 'r' order by 1"
    ).fetchall()
    watched = conn.execute(
        "select parent from tracedb.partitions where is_default order by 1"
    ).fetchall()

    assert partitioned == watched == [(parent,) for parent in EVERY]


def test_all_tables_of_a_family_have_the_same_bounds(conn: Connection) -> None:
    use(conn, "month", ahead=3)
    ensure(conn, WEDNESDAY, since=WEDNESDAY - timedelta(days=90))
    begin = datetime(1970, 1, 1, tzinfo=UTC)

    assert len(bounds(conn, "llm_spans", begin)) > 8
    for parent in PARENTS:
        assert bounds(conn, parent, begin) == bounds(conn, "llm_spans", begin), parent


def test_a_new_partition_is_closed_and_indexed_like_its_parent(conn: Connection) -> None:
    for partition in ensure(conn, WEDNESDAY):
        parent = partition.rpartition("_p")[0]
        row = conn.execute(
            "select c.relrowsecurity, c.relforcerowsecurity, c.relowner::regrole::text, c.relacl,"
            " (select count(*) from pg_index where indrelid = c.oid and indisvalid),"
            " (select count(*) from pg_index where indrelid = i.inhparent and indisvalid)"
            " from pg_class as c join pg_inherits as i on i.inhrelid = c.oid"
            " where c.oid = %s::regclass and i.inhparent = %s::regclass",
            [f"tracedb.{partition}", f"tracedb.{parent}"],
        ).fetchone()
        assert row is not None
        *security, indexes, parent_indexes = row
        assert security == [True, True, "tracedb_owner", None], partition
        assert indexes == parent_indexes > 0, partition


# --- who may ---


def test_the_maintainer_makes_and_drains_partitions(conn: Connection) -> None:
    write(conn, WEDNESDAY)
    write(conn, WEDNESDAY + timedelta(days=100))
    with as_role(conn, "tracedb_maintainer"):
        assert strays(conn) == rows(2)
        assert ensure(conn, WEDNESDAY) != []
        assert strays(conn) == rows(1)
        assert drain(conn) != []
        assert strays(conn) == {}


@pytest.mark.parametrize(
    ("role", "call"),
    [
        *product(
            ["tracedb_app", "tracedb_reader", "tracedb_service"],
            [
                "ensure_partitions()",
                "drain_default_partitions()",
                "create_partition('llm_spans', now(), now())",
                "cover_period(null, now())",
            ],
        ),
        *product(["tracedb_app", "tracedb_reader"], ["default_partition_rows()"]),
    ],
)
def test_nobody_else_does(conn: Connection, role: str, call: str) -> None:
    with as_role(conn, role, A), pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(f"select tracedb.{call}".encode())


# --- rows that came before their partition ---


def test_rows_outside_all_partitions_are_kept_and_counted(conn: Connection) -> None:
    assert strays(conn) == {}
    write(conn, WEDNESDAY, 1)
    write(conn, WEDNESDAY, 2, tenant=B)

    assert strays(conn) == rows(2)


def test_making_their_partition_moves_them(conn: Connection) -> None:
    write(conn, WEDNESDAY)
    write(conn, WEDNESDAY, tenant=B)
    before = contents(conn)
    ensure(conn, WEDNESDAY)

    assert strays(conn) == {}
    assert contents(conn) == before
    assert conn.execute(
        "select distinct tableoid::regclass::text from tracedb.llm_spans"
    ).fetchall() == [("tracedb.llm_spans_p20291231",)]


def test_draining_moves_rows_of_many_periods_a_few_at_a_time(conn: Connection) -> None:
    use(conn, "week", ahead=1)
    for week in range(5):
        write(conn, WEDNESDAY + timedelta(weeks=week), number=week + 1)
    before = contents(conn)

    assert sorted(drain(conn, max_periods=2)) == sorted(
        f"{parent}_p{monday}" for parent in PARENTS for monday in ("20291231", "20300107")
    )
    assert strays(conn) == rows(3)
    assert len(drain(conn, max_periods=2)) == 2 * len(PARENTS)
    assert len(drain(conn, max_periods=2)) == len(PARENTS)
    assert drain(conn) == []
    assert strays(conn) == {}
    assert contents(conn) == before


def test_events_are_drained_by_their_own_family(conn: Connection) -> None:
    answer = conn.execute(
        "select tracedb.ingest(%s::json, %s)", [json.dumps(events(A, WEDNESDAY, 1)), A]
    ).fetchone()
    assert answer is not None
    assert answer[0]["inserted"] == 3
    assert strays(conn) == dict.fromkeys(EVENTS, 1)

    assert sorted(drain(conn)) == [f"{parent}_p20291231" for parent in EVENTS]
    assert strays(conn) == {}


def test_draining_reaches_rows_that_only_a_part_has(conn: Connection) -> None:
    """A trace that is old and a span that is older lie in different periods."""
    write(conn, WEDNESDAY)
    conn.execute("delete from tracedb.execution_traces")
    conn.execute("delete from tracedb.llm_spans")

    assert len(drain(conn)) == len(PARENTS)
    assert strays(conn) == {}


@pytest.mark.parametrize("width", ["day", "week", "month"])
def test_the_first_and_the_last_possible_time_can_be_drained(conn: Connection, width: str) -> None:
    use(conn, width, ahead=1)
    write(conn, datetime(1970, 1, 1, tzinfo=UTC), 1)
    write(conn, datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC), 2)
    before = contents(conn)

    assert len(drain(conn)) == 2 * len(PARENTS)
    assert strays(conn) == {}
    assert contents(conn) == before


def test_an_id_beyond_all_times_is_refused(conn: Connection) -> None:
    """It would ask for partitions without end, also when written past ingest."""
    with (
        as_role(conn, "tracedb_app", A),
        pytest.raises(psycopg.errors.CheckViolation, match="traces_have_uuid7_ids"),
    ):
        conn.execute(
            "insert into tracedb.execution_traces (tenant_id, trace_id, status, started_at)"
            " values (%s, 'ffffffff-ffff-7fff-bfff-ffffffffffff', 'ok', now())",
            [A],
        )


# --- several at once ---


def wait_for_lock(conn: Connection, waiting: Connection) -> None:
    """Until the other session waits for a lock."""
    for _ in range(100_000):
        if conn.execute(
            "select 1 from pg_locks where pid = %s and not granted", [waiting.info.backend_pid]
        ).fetchone():
            return
    raise AssertionError("it does not wait")


def test_one_session_at_a_time_manages_partitions(conn: Connection, database: str) -> None:
    with connect(database) as other:
        assert ensure(conn, WEDNESDAY) != []
        assert ensure(other, WEDNESDAY) == []
        assert drain(other) == []
        conn.commit()
        assert ensure(other, WEDNESDAY) == []
        assert ensure(other, WEDNESDAY + timedelta(days=7)) != []


def test_a_row_that_is_committed_while_its_partition_is_made_is_moved(
    conn: Connection, database: str, executor: ThreadPoolExecutor
) -> None:
    with connect(database) as writer, connect(database, autocommit=True) as watch:
        write(writer, WEDNESDAY)
        made = executor.submit(ensure, conn, WEDNESDAY)
        wait_for_lock(watch, conn)
        writer.commit()

        assert len(made.result()) == 5 * len(EVERY)
        conn.commit()
        assert strays(conn) == {}
        assert {parent: len(found) for parent, found in contents(conn).items()} == rows(1)


@pytest.mark.parametrize("item", range(6))
def test_a_record_that_waits_for_its_partition_is_stored_in_it(
    conn: Connection, database: str, executor: ThreadPoolExecutor, item: int
) -> None:
    """Not refused as one that no longer fits the default partition, which it was meant for."""
    record = records(A, WEDNESDAY, {"trace_id": str(uuid7(WEDNESDAY, 1))}, 1)[item]
    with connect(database) as writer, connect(database, autocommit=True) as watch:
        ensure(conn, WEDNESDAY)
        written = executor.submit(
            writer.execute, "select tracedb.ingest(%s::json, %s)", [json.dumps(record), A]
        )
        wait_for_lock(watch, writer)
        conn.commit()

        row = written.result().fetchone()
        assert row is not None
        assert (row[0]["inserted"], row[0]["rejected"]) == (1, [])
        writer.commit()
        assert strays(conn) == {}


def test_a_long_reader_makes_it_give_up_instead_of_holding_writers_up(
    conn: Connection, database: str
) -> None:
    with connect(database) as reader:
        reader.execute("select count(*) from tracedb.llm_spans")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            ensure(conn, WEDNESDAY)
        conn.rollback()
        reader.rollback()

        assert ensure(conn, WEDNESDAY) != []


def test_nothing_is_lost_while_partitions_are_made_and_drained_under_writers(
    conn: Connection, database: str, executor: ThreadPoolExecutor
) -> None:
    writers, weeks = 4, 12
    use(conn, "week", ahead=2)
    conn.commit()

    def write_all(writer: int) -> None:
        with connect(database, autocommit=True) as own:
            for week in range(weeks):
                write(own, WEDNESDAY + timedelta(weeks=week), number=writer)

    running: list[Future[None]] = [executor.submit(write_all, n) for n in range(1, writers + 1)]
    week = 0
    while any(not future.done() for future in running):
        try:
            drain(conn, max_periods=1)
            ensure(conn, WEDNESDAY + timedelta(weeks=week % weeks))
            conn.commit()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            conn.rollback()
        week += 1
    for future in running:
        future.result()
    while drain(conn):
        conn.commit()
    conn.execute("select count(*) from tracedb.fold_usage()")  # what each left to another

    assert strays(conn) == {}
    stored = {parent: len(found) for parent, found in contents(conn).items()}
    assert stored == rows(writers * weeks)
