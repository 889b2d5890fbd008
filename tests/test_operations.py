"""What operators see of sizes, growth, indexes, delays and losses, and who else sees it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from records import ingest, span, trace, trace_id
from servers import as_role
from tracedb import operations as ops
from tracedb.cli import main
from tracedb.query import Query, run

ACME = UUID("0000000a-0000-4000-8000-000000000000")
OTHER = UUID("0000000b-0000-4000-8000-000000000000")
OPERATORS = ("tracedb_maintainer", "tracedb_service")
QUERIES: tuple[Query[Any], ...] = (
    ops.table_sizes(),
    ops.index_usage(),
    ops.partition_sizes(),
    ops.partition_headroom(),
    ops.trace_storage(),
    ops.storage_forecast(),
    ops.table_bloat(),
    ops.ingest_lag(),
)


def store(
    conn: psycopg.Connection[Any], when: datetime, count: int = 1, tenant: UUID = ACME
) -> None:
    """Traces of a time, each with a span."""
    records = []
    for number in range(count):
        at = when + timedelta(milliseconds=number)
        id = trace_id("random", at)
        records += [
            trace(trace_id=id, started_at=at.isoformat(), ended_at=at.isoformat()),
            span(trace_id=id, started_at=at.isoformat(), ended_at=at.isoformat()),
        ]
    assert ingest(conn, tenant, records)["rejected"] == []


def settle(conn: psycopg.Connection[Any]) -> None:
    """Commit, and let the server count what was written."""
    conn.commit()
    conn.execute("select pg_stat_force_next_flush()")
    conn.commit()


def now() -> datetime:
    return datetime.now(UTC)


def test_a_table_counts_with_all_its_partitions(conn: psycopg.Connection[Any]) -> None:
    conn.execute("select tracedb.ensure_partitions(since => %s)", [now() - timedelta(days=21)])
    for days in (0, 7, 14):
        store(conn, now() - timedelta(days=days), 10)
    settle(conn)

    sizes = {size.table_name: size for size in run(conn, ops.table_sizes())}

    spans = sizes["llm_spans"]
    assert spans.row_estimate == sizes["execution_traces"].row_estimate == 30
    assert spans.partition_count > 4
    assert spans.total_bytes == spans.table_bytes + spans.index_bytes
    assert spans.bytes_per_row == spans.total_bytes / 30
    in_all = conn.execute(
        "select sum(pg_total_relation_size(relid)) from pg_partition_tree('tracedb.llm_spans')"
    ).fetchone()
    assert in_all == (spans.total_bytes,)
    assert not [name for name in sizes if "yoyo" in name or "_p2" in name]


def test_rows_that_were_counted_before_a_crash_are_known_from_analyze(
    conn: psycopg.Connection[Any],
) -> None:
    store(conn, now(), 5)
    settle(conn)
    conn.execute("analyze tracedb.execution_traces")
    conn.execute("select pg_stat_reset()")
    settle(conn)

    sizes = {size.table_name: size.row_estimate for size in run(conn, ops.table_sizes())}

    assert (sizes["execution_traces"], sizes["llm_spans"]) == (5, 0)


def test_scans_of_an_index_count_in_all_partitions(conn: psycopg.Connection[Any]) -> None:
    store(conn, now(), 3)
    settle(conn)
    conn.execute("set enable_seqscan = off")
    before = {index.index_name: index for index in run(conn, ops.index_usage())}
    for _ in range(2):
        conn.execute(
            "select from tracedb.execution_traces"
            " where tenant_id = %s and status in ('error', 'timeout') order by trace_id desc",
            [ACME],
        )
    settle(conn)

    after = {index.index_name: index for index in run(conn, ops.index_usage())}

    name = "execution_traces_failed_idx"
    assert after[name].table_name == "execution_traces"
    assert (before[name].scan_count, before[name].is_unused) == (0, True)
    assert after[name].scan_count >= 2
    assert not after[name].is_unused
    # a key is of use even if nobody searches by it
    assert not before["platform_events_pkey"].is_unused


def test_partitions_know_their_age_and_their_rows(conn: psycopg.Connection[Any]) -> None:
    store(conn, now(), 4)
    settle(conn)

    found = [size for size in run(conn, ops.partition_sizes()) if size.parent == "llm_spans"]

    default, current, ahead, *_ = found
    assert (default.is_default, default.age, default.from_time) == (True, None, None)
    assert current.age is not None
    assert timedelta(0) <= current.age < timedelta(days=7)
    assert (current.row_estimate, ahead.row_estimate) == (4, 0)
    assert ahead.age is not None
    assert ahead.age < timedelta(0)
    assert current.total_bytes >= current.table_bytes + current.index_bytes > 0


def test_headroom_is_the_time_until_rows_go_to_the_default_partition(
    conn: psycopg.Connection[Any],
) -> None:
    store(conn, now() + timedelta(days=900))

    found = {table.parent: table for table in run(conn, ops.partition_headroom())}

    assert found["llm_spans"].default_rows == 1
    assert found["hook_executions"].default_rows == 0
    headroom = timedelta(seconds=found["llm_spans"].headroom_seconds)
    assert timedelta(days=21) < headroom <= timedelta(days=35)


def test_without_partitions_there_is_no_headroom(conn: psycopg.Connection[Any]) -> None:
    for (name,) in conn.execute(
        "select partition from tracedb.partitions where parent = 'llm_spans' and not is_default"
    ).fetchall():
        conn.execute(psycopg.sql.SQL("drop table tracedb.{}").format(psycopg.sql.Identifier(name)))

    found = {table.parent: table for table in run(conn, ops.partition_headroom())}

    assert found["llm_spans"].headroom_seconds == 0


def test_bytes_a_day_are_those_of_the_partitions_that_have_rows(
    conn: psycopg.Connection[Any],
) -> None:
    conn.execute("select tracedb.ensure_partitions(since => %s)", [now() - timedelta(days=70)])
    for days in (60, 14, 7, 0):
        store(conn, now() - timedelta(days=days), 50)
    settle(conn)

    forecast = {table.table_name: table for table in run(conn, ops.storage_forecast())}
    partitions = [size for size in run(conn, ops.partition_sizes()) if size.parent == "llm_spans"]
    counted = [
        size
        for size in partitions
        if size.age is not None and timedelta(0) <= size.age < timedelta(days=21)
    ]

    # the oldest one is too long ago, and the empty week before the first one is not counted
    assert [size.row_estimate for size in counted] == [50, 50, 50]
    spans = forecast["llm_spans"]
    age = counted[0].age
    assert age is not None
    per_day = sum(size.total_bytes for size in counted) / (age / timedelta(days=1))
    assert spans.bytes_per_day == pytest.approx(per_day, rel=1e-6)
    assert spans.bytes_in_30_days == pytest.approx(spans.total_bytes + 30 * per_day, abs=1)
    assert spans.bytes_in_90_days == pytest.approx(spans.total_bytes + 90 * per_day, abs=1)
    # what has no partitions grows as the traces do
    changes = forecast["trace_changes"]
    traces_per_day = 150 / (age / timedelta(days=1))
    expected = changes.total_bytes * traces_per_day / 200
    assert changes.bytes_per_day == pytest.approx(expected, rel=1e-6)


def test_an_empty_database_does_not_grow(conn: psycopg.Connection[Any]) -> None:
    assert {table.bytes_per_day for table in run(conn, ops.storage_forecast())} == {0}
    assert {period.bytes_per_trace for period in run(conn, ops.trace_storage())} == {None}


def test_bytes_per_trace_are_those_of_all_its_parts(conn: psycopg.Connection[Any]) -> None:
    store(conn, now(), 20)
    settle(conn)

    (period,) = run(conn, ops.trace_storage())

    assert period.from_time <= now() < period.to_time
    assert period.trace_count == 20
    current = [
        size.total_bytes
        for size in run(conn, ops.partition_sizes())
        if size.from_time == period.from_time and size.family == "traces"
    ]
    assert period.total_bytes == sum(current)
    assert period.bytes_per_trace == sum(current) / 20


def test_dead_rows_are_bloat(conn: psycopg.Connection[Any]) -> None:
    store(conn, now(), 40)
    settle(conn)
    conn.execute("delete from tracedb.llm_spans where get_byte(span_id, 7) = 1")
    settle(conn)

    found = {table.table_name: table for table in run(conn, ops.table_bloat())}

    assert {table.method for table in found.values()} == {"statistics"}
    spans = found["llm_spans"]
    assert (spans.dead_rows, spans.free_bytes) == (40, None)
    # there is nothing but dead rows
    assert (spans.dead_bytes, spans.bloat_fraction) == (spans.table_bytes, 1.0)
    assert found["execution_traces"].bloat_fraction == 0


def test_bloat_is_read_by_pgstattuple_where_it_is_and_may_be_called(
    conn: psycopg.Connection[Any],
) -> None:
    if not conn.execute(
        "select 1 from pg_available_extensions where name = 'pgstattuple'"
    ).fetchone():
        pytest.skip("the server has no pgstattuple")
    store(conn, now(), 40)
    settle(conn)
    conn.execute("create schema aside; create extension pgstattuple schema aside")

    exact = {table.table_name: table for table in run(conn, ops.table_bloat(exact=True))}
    plain = {table.table_name: table for table in run(conn, ops.table_bloat())}
    with as_role(conn, "tracedb_maintainer"):
        refused = {table.method for table in run(conn, ops.table_bloat(exact=True))}

    assert exact["llm_spans"].method == "pgstattuple"
    assert (exact["llm_spans"].free_bytes or 0) > 0
    assert plain["llm_spans"].method == "statistics"
    assert refused == {"statistics"}


def test_lag_is_told_by_table_and_tenant(conn: psycopg.Connection[Any]) -> None:
    """How long ago the newest row came, and how long rows take to come."""
    clock = conn.execute("select now()").fetchone()
    assert clock is not None
    store(conn, clock[0] - timedelta(minutes=3))
    store(conn, clock[0] - timedelta(minutes=5))
    store(conn, clock[0] - timedelta(minutes=20), tenant=OTHER)
    store(conn, clock[0] - timedelta(hours=30), tenant=uuid4())

    found = {
        (lag.table_name, lag.tenant_id): lag
        for lag in run(conn, ops.ingest_lag(clock[0] - timedelta(hours=1)))
    }

    assert {table for table, _ in found} == {"execution_traces", "llm_spans"}
    assert {tenant for _, tenant in found} == {ACME, OTHER}
    lag = found["llm_spans", ACME]
    assert (lag.row_count, lag.lag_seconds) == (2, 0)
    assert lag.newest_event_at == clock[0] - timedelta(minutes=3)
    assert lag.newest_row_at == clock[0]
    assert lag.p50_delay_seconds == 240
    assert lag.p95_delay_seconds == pytest.approx(294)
    assert found["execution_traces", OTHER].p50_delay_seconds == 20 * 60


def test_what_is_stored_before_it_ends_is_not_late(conn: psycopg.Connection[Any]) -> None:
    clock = conn.execute("select now()").fetchone()
    assert clock is not None
    at = clock[0] - timedelta(seconds=10)
    running = trace(trace_id=trace_id("r", at), started_at=at.isoformat(), status="running")
    ingest(conn, ACME, [running])
    ended = {**running, "status": "ok", "ended_at": (at + timedelta(hours=2)).isoformat()}
    ingest(conn, ACME, [ended])

    (lag,) = run(conn, ops.ingest_lag())

    assert lag.p95_delay_seconds == 10


def test_records_are_pending_while_their_writer_lives(conn: psycopg.Connection[Any]) -> None:
    living, closed, silent = (uuid4() for _ in range(3))
    for writer, is_closed in ((living, False), (closed, True), (silent, False)):
        conn.execute(
            "select tracedb.touch_writer(%s, 'shop', 10, %s, %s)", [writer, is_closed, ACME]
        )
        conn.execute(
            "select tracedb.record_delivery(%s, '{[1,5)}', 'stored', %s),"
            " tracedb.record_delivery(%s, '{[5,7)}', 'dropped', %s)",
            [writer, ACME, writer, ACME],
        )
        conn.execute("select tracedb.bury(%s, 7, '{}', 'type: x', null, %s)", [writer, ACME])
    conn.execute(
        "update tracedb.ingest_writers set last_seen_at = now() - interval '2 days'"
        " where writer_id = %s",
        [silent],
    )

    (shop,) = run(conn, ops.writer_losses())

    assert (shop.tenant_id, shop.service) == (ACME, "shop")
    assert (shop.writer_count, shop.living_count, shop.accepted) == (3, 1, 30)
    assert (shop.stored, shop.dropped, shop.dead) == (12, 6, 3)
    assert (shop.pending, shop.lost) == (3, 6)
    assert shop.accepted == shop.stored + shop.dead + shop.dropped + shop.pending + shop.lost


def test_a_tenant_sees_its_own_losses_and_changes(conn: psycopg.Connection[Any]) -> None:
    for tenant in (ACME, OTHER):
        conn.execute("select tracedb.touch_writer(%s, null, 1, true, %s)", [uuid4(), tenant])
        store(conn, now(), 2, tenant=tenant)

    with as_role(conn, "tracedb_reader", ACME):
        (losses,) = run(conn, ops.writer_losses())
        (backlog,) = run(conn, ops.change_backlog())

    assert losses.tenant_id == backlog.tenant_id == ACME
    assert (backlog.change_count, backlog.trace_count) == (1, 2)


@pytest.mark.parametrize("role", OPERATORS)
def test_operators_see_all_of_it(conn: psycopg.Connection[Any], role: str) -> None:
    store(conn, now(), tenant=ACME)
    store(conn, now(), tenant=OTHER)
    with as_role(conn, role):
        assert all(run(conn, query) for query in QUERIES)
        assert {lag.tenant_id for lag in run(conn, ops.ingest_lag())} == {ACME, OTHER}
        assert len(run(conn, ops.change_backlog())) == 2


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.sql.split("tracedb.")[1][:20])
def test_tenants_do_not_learn_how_much_others_do(conn: psycopg.Connection[Any], query: Any) -> None:
    for role in ("tracedb_app", "tracedb_reader"):
        with as_role(conn, role, ACME), pytest.raises(Exception, match="permission denied"):
            run(conn, query)


def test_requests_are_counted_by_the_day_they_began(conn: psycopg.Connection[Any]) -> None:
    today = now().replace(hour=0, minute=0, second=0, microsecond=0)
    store(conn, today, 3)
    store(conn, today - timedelta(milliseconds=1))
    nested = trace(
        trace_id=trace_id("nested", today),
        parent_trace_id=trace_id("above", today),
        started_at=today.isoformat(),
    )
    failed = trace(
        trace_id=trace_id("f", today), started_at=today.isoformat(), status="error", duration_ms=1
    )
    ingest(conn, ACME, [nested, failed])

    found = run(conn, ops.daily_requests(3))

    assert [(day.request_count, day.error_count) for day in found] == [(0, 0), (1, 0), (4, 1)]
    assert found[-1].day == today.date()


# tracedb stats


def test_stats_show_what_is_there(
    database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with psycopg.connect(database) as conn:
        store(conn, now(), 7)
        store(conn, now() + timedelta(days=900))
        conn.execute("select tracedb.touch_writer(%s, 'shop', 12, true, %s)", [uuid4(), ACME])
        settle(conn)

    assert main(["--dsn", database, "stats"]) == 0
    shown = capsys.readouterr().out

    for expected in (
        r"Requests  14 days, today last\n +█  7, 7 today\n",
        r"llm_spans +8 +\d+ kB",
        r" a day: .* in 30 days, .* in 90 days",
        r"Traces by partition",
        r"2 rows in default partitions: run tracedb partitions\n",
        r"execution_traces +8 +1 +\d",
        r"shop +0 +12 +0 +0 +0 +0 +0 +12\n",
        r"Indexes never used",
        r"execution_traces_failed_idx +execution_traces",
    ):
        assert re.search(expected, shown), expected


def test_stats_of_an_empty_database(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", database, "stats"]) == 0

    assert "0, 0 today" in capsys.readouterr().out


def test_stats_as_json(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(database) as conn:
        store(conn, now(), 7)
        settle(conn)

    assert main(["--dsn", database, "--json", "stats", "--days", "2", "--bloat"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [day["request_count"] for day in found["daily_requests"]][-1:] == [7]
    assert len(found["daily_requests"]) == 2
    assert {"table_sizes", "storage_forecast", "ingest_lag", "writer_losses"} <= set(found)
    spans = next(table for table in found["table_sizes"] if table["table_name"] == "llm_spans")
    assert spans["row_estimate"] == 7


def test_stats_are_not_for_tenants(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", f"{database} options='-c role=tracedb_reader'", "stats"]) == 1
    assert "permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "367", "-1", "x"])
def test_days_that_are_no_days(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        main(["stats", f"--days={days}"])
    assert usage.value.code == 2
    assert "must be from 1 to 366" in capsys.readouterr().err
