"""Totals of usage: equal to the traces to the last digit, whatever is folded and whenever."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

import tracedb
from records import NOON, ingest, span, trace, trace_id
from servers import as_role
from tracedb.cli import main

Conn = psycopg.Connection[Any]
FROM = NOON - timedelta(days=2)
TO = NOON + timedelta(days=2)


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def fold(conn: Conn, max_traces: int = 5000) -> int:
    """How many traces one call folded, as the role that cron has."""
    with as_role(conn, "tracedb_maintainer"):
        row = conn.execute(
            "select coalesce(sum(traces), 0) from tracedb.fold_usage(%s)", [max_traces]
        )
        return int(one(row))


def fold_all(conn: Conn) -> None:
    while fold(conn):
        pass


def one(cursor: psycopg.Cursor[Any]) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def differences(
    conn: Conn, tenant: UUID, since: datetime = FROM, until: datetime = TO
) -> list[Any]:
    return conn.execute(
        "select starts_at, rolled_up::text, counted::text"
        " from tracedb.usage_differences(%s, %s, %s)",
        [since, until, tenant],
    ).fetchall()


def series(
    conn: Conn, tenant: UUID, width: str = "total", since: datetime = FROM, until: datetime = TO
) -> list[tuple[Any, ...]]:
    """Kind, model, executions, errors, cost and input tokens, by hour, day or in total."""
    return conn.execute(
        "select starts_at, kind, agent_id, model, executions, errors, costed, cost_usd,"
        " input_tokens from tracedb.usage_series(%s, %s, %s, %s)"
        " order by 1, 2, 3 nulls last, 4 nulls last",
        [since, until, width, tenant],
    ).fetchall()


def raw(conn: Conn, tenant: UUID, since: datetime, until: datetime) -> dict[str, Any]:
    """The same figures straight from the tables, by queries of their own."""
    traces = conn.execute(
        """
        select count(*) filter (where is_request), count(*) filter (where not is_request),
            count(*) filter (where has_failed), coalesce(sum(cost_usd), 0), count(cost_usd),
            coalesce(sum(input_tokens), 0), count(*) filter (where is_cost_unknown),
            coalesce(sum(duration_ms), 0)
        from tracedb.trace_figures
        where tenant_id = %s and started_at >= %s and started_at < %s
        """,
        [tenant, since, until],
    ).fetchone()
    calls = conn.execute(
        """
        select count(*), count(*) filter (where status in ('error', 'timeout')),
            coalesce(sum(cost_usd) filter (where is_leaf), 0),
            count(cost_usd) filter (where is_leaf),
            count(*) filter (where is_leaf and cost_usd is null),
            coalesce(sum(input_tokens) filter (where is_leaf), 0),
            coalesce(sum(reasoning_tokens) filter (where is_leaf), 0),
            coalesce(sum(duration_us), 0), count(duration_us)
        from tracedb.priced_spans
        where tenant_id = %s and started_at >= %s and started_at < %s
        """,
        [tenant, since, until],
    ).fetchone()
    return {"traces": traces, "calls": calls}


def rolled_up(conn: Conn, tenant: UUID, width: str, since: datetime, until: datetime) -> Any:
    """The figures of `raw`, from the totals."""
    traces = conn.execute(
        """
        select coalesce(sum(executions) filter (where kind = 'request'), 0)::bigint,
            coalesce(sum(executions) filter (where kind = 'nested'), 0)::bigint,
            coalesce(sum(errors), 0)::bigint, coalesce(sum(cost_usd), 0),
            coalesce(sum(costed), 0)::bigint, coalesce(sum(input_tokens), 0),
            coalesce(sum(unpriced), 0)::bigint, coalesce(sum(duration_us), 0) / 1000
        from tracedb.usage_series(%s, %s, %s, %s) where kind <> 'call'
        """,
        [since, until, width, tenant],
    ).fetchone()
    calls = conn.execute(
        """
        select coalesce(sum(executions), 0)::bigint, coalesce(sum(errors), 0)::bigint,
            coalesce(sum(cost_usd), 0), coalesce(sum(costed), 0)::bigint,
            coalesce(sum(unpriced), 0)::bigint, coalesce(sum(input_tokens), 0),
            coalesce(sum(reasoning_tokens), 0), coalesce(sum(duration_us), 0),
            coalesce(sum((select sum(n) from unnest(duration_counts) as n)), 0)::bigint
        from tracedb.usage_series(%s, %s, %s, %s) where kind = 'call'
        """,
        [since, until, width, tenant],
    ).fetchone()
    return {"traces": traces, "calls": calls}


# one thing after the other, whatever it is

names = st.sampled_from("abcde")
times = st.integers(-40 * 60, 40 * 60).map(lambda minutes: NOON + timedelta(minutes=minutes))
money = st.sampled_from([None, "0", "0.000000000001", "1.10", "0.3333333333333333333333"])
tokens = st.one_of(st.none(), st.integers(0, 10**12))
labels = st.sampled_from([None, "bot", "clerk"])
statuses = st.sampled_from(["ok", "error", "timeout", "cancelled", "running"])


def about(name: str) -> dict[str, Any]:
    return {"trace_id": trace_id(name)}


def finished(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}


traces = st.builds(
    lambda name, parent, at, status, cost, used, agent, took: finished(
        trace(
            **about(name),
            parent_trace_id=trace_id(parent) if parent else None,
            started_at=at.isoformat(),
            status=status,
            duration_ms=None if status == "running" else took,
            cost_usd=cost,
            input_tokens=used,
            agent_id=agent,
        )
    ),
    names,
    st.one_of(st.none(), names),
    times,
    statuses,
    money,
    tokens,
    labels,
    st.integers(0, 10**7),
)
spans = st.builds(
    lambda name, number, operation, at, status, cost, used, model, took: finished(
        span(
            number,
            **about(name),
            operation_type=operation,
            started_at=at.isoformat(),
            ended_at=None,
            duration_us=None if status == "running" else took,
            status=status,
            cost_usd=cost,
            input_tokens=used,
            reasoning_tokens=used,
            request_model=model,
        )
    ),
    names,
    st.integers(1, 3),
    st.sampled_from(["llm", "embedding", "agent", "tool"]),
    times,
    statuses,
    money,
    tokens,
    labels,
    st.integers(0, 10**9),
)
steps = st.one_of(
    st.lists(st.one_of(traces, spans), min_size=1, max_size=6),
    st.integers(1, 3),  # fold about so many traces
    names,  # erase that trace
)
bounds = st.tuples(times, times).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(steps, max_size=8), bounds)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
def test_totals_equal_the_traces_whatever_happens_in_whatever_order(
    conn: Conn, done: Sequence[Any], within: tuple[datetime, datetime]
) -> None:
    conn.rollback()  # the last example
    tenant = uuid4()
    for step in done:
        if isinstance(step, int):
            fold(conn, step)
        elif isinstance(step, str):
            erase(conn, tenant, trace_id(step))
        else:
            ingest(conn, tenant, step)
        assert differences(conn, tenant) == []
        assert differences(conn, tenant, *within) == []

    for since, until in ((FROM, TO), within):
        for width in ("hour", "day", "total"):
            assert rolled_up(conn, tenant, width, since, until) == raw(conn, tenant, since, until)
    fold_all(conn)
    assert rolled_up(conn, tenant, "total", *within) == raw(conn, tenant, *within)
    assert one(conn.execute("select count(*) from tracedb.trace_changes where not folded")) == 0


def erase(conn: Conn, tenant: UUID, id: str) -> None:
    """As an erasure does it, which says so to the totals."""
    for table in ("execution_traces", "llm_spans", "trace_payloads"):
        conn.execute(
            sql.SQL("delete from tracedb.{} where tenant_id = %s and trace_id = %s").format(
                sql.Identifier(table)
            ),
            [tenant, id],
        )
    conn.execute("select tracedb.note_changes(array[%s::uuid], %s)", [id, tenant])


def test_a_trace_that_moves_takes_its_figures_along(conn: Conn, tenant: UUID) -> None:
    late, early = NOON + timedelta(hours=3), NOON
    running = trace(started_at=late.isoformat(), status="running", agent_id="bot")
    ingest(conn, tenant, [running, span(cost_usd="2")])
    fold_all(conn)
    before = series(conn, tenant, "hour")

    done = trace(started_at=early.isoformat(), agent_id="clerk", duration_ms=5, status="ok")
    ingest(conn, tenant, [done])
    unfolded = series(conn, tenant, "hour")
    fold_all(conn)

    assert [(row[0], row[1], row[2]) for row in before] == [
        (NOON, "call", "bot"),
        (late, "request", "bot"),
    ]
    assert [(row[0], row[1], row[2]) for row in unfolded] == [
        (NOON, "call", "clerk"),
        (NOON, "request", "clerk"),
    ]
    assert series(conn, tenant, "hour") == unfolded
    assert differences(conn, tenant) == []


def test_what_a_parent_reports_later_takes_its_childrens_place(conn: Conn, tenant: UUID) -> None:
    child = trace(
        trace_id=trace_id("child"),
        parent_trace_id=trace_id(),
        started_at=(NOON + timedelta(days=1)).isoformat(),
        cost_usd="3",
    )
    ingest(conn, tenant, [child, trace(status="running")])
    fold_all(conn)
    assert [row[7] for row in series(conn, tenant) if row[6]] == [Decimal(3)]

    ingest(conn, tenant, [trace(cost_usd="10", status="ok")])

    for _ in range(2):  # not folded, and folded
        assert [(row[1], row[7]) for row in series(conn, tenant) if row[6]] == [
            ("request", Decimal(10))
        ]
        fold_all(conn)


def test_totals_outlive_the_traces(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn, tenant, [trace(cost_usd="1.5", duration_ms=40), span(cost_usd="1", span_id="a" * 16)]
    )
    fold_all(conn)
    before = [series(conn, tenant, width) for width in ("hour", "day", "total")]
    months = one(conn.execute("select count(*) from tracedb.usage_contributions"))

    # as retention does it: the partitions go, nothing else
    for table in ("execution_traces", "llm_spans", "usage_contributions"):
        conn.execute(sql.SQL("truncate tracedb.{}").format(sql.Identifier(table)))

    assert months == 2
    assert [series(conn, tenant, width) for width in ("hour", "day", "total")] == before
    ingest(conn, tenant, [span(2, cost_usd="0.25")])
    for _ in range(2):
        assert sum(row[7] for row in series(conn, tenant) if row[1] == "call") == Decimal("1.25")
        fold_all(conn)


def test_percentiles_are_within_one_percent(conn: Conn, tenant: UUID) -> None:
    rng = random.Random(11)
    shares = [0.0, 0.5, 0.9, 0.95, 0.99, 1.0]
    for durations in (
        [0],
        [1, 1_000_000_000],
        [rng.randrange(10) for _ in range(50)],
        [int(rng.lognormvariate(6, 2)) for _ in range(500)],
    ):
        of = uuid4()
        ingest(
            conn,
            of,
            [
                trace(trace_id=trace_id(f"{number}"), duration_ms=duration)
                for number, duration in enumerate(durations)
            ],
        )
        fold(conn, 1)
        found = one(
            conn.execute(
                "select tracedb.percentiles_ms(array_agg(u), %s::float8[])"
                " from tracedb.usage_series(%s, %s, 'hour', %s) as u",
                [shares, FROM, TO, of],
            )
        )
        exact = one(
            conn.execute(
                "select percentile_cont(%s::float8[]) within group (order by d)"
                " from unnest(%s::bigint[]) as d",
                [shares, durations],
            )
        )
        assert found == [pytest.approx(value, rel=0.01) for value in exact]


def test_folding_is_bounded_and_goes_on_where_it_stopped(conn: Conn, tenant: UUID) -> None:
    for number in range(5):
        ingest(conn, tenant, [trace(trace_id=trace_id(f"{number}"), cost_usd="1")])

    folded = [fold(conn, 2) for _ in range(4)]

    assert folded == [2, 2, 1, 0]
    assert [row[4:8] for row in series(conn, tenant)] == [(5, 0, 5, Decimal(5))]


def test_folding_again_writes_nothing(conn: Conn, tenant: UUID) -> None:
    records = [trace(cost_usd="1"), span()]
    ingest(conn, tenant, records)
    fold_all(conn)

    def versions() -> list[Any]:
        return conn.execute(
            "select xmin::text, ctid::text from tracedb.usage_rollups"
            " union all select xmin::text, ctid::text from tracedb.usage_contributions"
            " order by 1, 2"
        ).fetchall()

    before = versions()
    ingest(conn, tenant, records)
    assert fold(conn) == 1
    assert versions() == before


def test_a_tenant_that_another_session_folds_is_left_to_it(database: str, tenant: UUID) -> None:
    other = uuid4()
    with psycopg.connect(database) as first, psycopg.connect(database) as second:
        for each in (tenant, other):
            ingest(first, each, [trace(cost_usd="1")])
        first.commit()
        first.execute(
            "select pg_advisory_xact_lock(hashtextextended('tracedb.fold/' || %s, 0))", [tenant]
        )

        assert fold(second) == 1
        assert [row[7] for row in series(second, tenant)] == [Decimal(1)]
        first.rollback()
        assert fold(second) == 1
        assert fold(second) == 0


def test_totals_add_up_while_writers_write_and_two_fold(database: str, tenant: UUID) -> None:
    writers, each = 4, 30

    def write(writer: int) -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            for number in range(each):
                key = trace_id(f"{number % 10}")  # shared by all writers
                records = [
                    trace(trace_id=key),
                    span(1 + writer * 100 + number, trace_id=key, cost_usd="1"),
                ]
                assert ingest(conn, tenant, records)["rejected"] == []

    def keep_folding(_: int) -> None:
        with psycopg.connect(database, autocommit=True) as conn:
            for _ in range(40):
                conn.execute("select tracedb.fold_usage(3)")

    def watch() -> list[int]:
        seen = []
        with psycopg.connect(database, autocommit=True) as conn:
            for _ in range(30):
                row = conn.execute(
                    "select (select sum(executions) from tracedb.usage_series(%s, %s, 'hour', %s)"
                    " where kind = 'call'), (select count(*) from tracedb.llm_spans)",
                    [FROM, TO, tenant],
                ).fetchone()
                assert row is not None
                assert (row[0] or 0) == row[1]
                seen.append(row[1])
        return seen

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(write, writer) for writer in range(writers)]
        done += [pool.submit(keep_folding, number) for number in range(2)]
        seen = pool.submit(watch)
        for task in done:
            task.result()
        assert seen.result() == sorted(seen.result())

    with psycopg.connect(database) as conn:
        fold_all(conn)
        assert differences(conn, tenant) == []
        (calls,) = (row for row in series(conn, tenant) if row[1] == "call")
        assert calls[4] == writers * each
        assert calls[7] == writers * each


def test_a_tenant_reads_its_own_totals_and_changes_none(conn: Conn, tenant: UUID) -> None:
    other = uuid4()
    for each in (tenant, other):
        ingest(conn, each, [trace(cost_usd="1", agent_id=f"of {each}")])
    fold(conn, 1)

    with as_role(conn, "tracedb_app", tenant):
        assert [row[2] for row in series(conn, tenant)] == [f"of {tenant}"]
        assert series(conn, other) == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            conn.execute("select tracedb.fold_usage()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            conn.execute("delete from tracedb.usage_rollups")


def test_tenants_are_compared_over_whole_hours(conn: Conn) -> None:
    folded, unfolded, both = (uuid4() for _ in range(3))

    def records(number: int) -> list[dict[str, Any]]:
        return [
            trace(
                trace_id=trace_id(f"{number} {minutes}"),
                started_at=(NOON + timedelta(minutes=minutes)).isoformat(),
                duration_ms=100 * number + minutes,
                status="error" if minutes == 70 else "ok",
                cost_usd=None if minutes == 90 else f"0.{number}",
                input_tokens=7,
            )
            for minutes in (-30, 5, 70, 90, 26 * 60, 30 * 60)
        ]

    for number, tenant in ((1, folded), (2, both)):
        ingest(conn, tenant, records(number)[:3])
    fold_all(conn)
    ingest(conn, folded, records(1)[3:])
    ingest(conn, both, records(2)[3:])
    fold_all(conn)
    ingest(conn, both, [trace(trace_id=trace_id("2 5"), agent_id="late")])
    ingest(conn, unfolded, records(3))

    def report() -> dict[UUID, tuple[Any, ...]]:
        since, until = NOON + timedelta(minutes=20), NOON + timedelta(hours=29, minutes=20)
        found = conn.execute("select * from tracedb.tenants_report(%s, %s)", [since, until])
        return {row[0]: row[1:] for row in found}

    found = report()
    assert set(found) == {folded, unfolded, both}
    for tenant, cost in ((folded, "0.3"), (both, "0.6"), (unfolded, "0.9")):
        assert found[tenant][:7] == (4, 4, 1, 28, 0, Decimal(cost), 1)
    assert found[unfolded][7] == pytest.approx(380, rel=0.01)
    fold_all(conn)
    assert report() == found
    with as_role(conn, "tracedb_reader", both):
        assert report() == {both: found[both]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("usage_series(null)", "since, until: must be given"),
        ("tenants_report(null)", "since, until: must be given"),
        ("usage_series(now(), now(), 'week')", "width: must be hour, day or total"),
        ("fold_usage(0)", "max_traces: must be at least 1"),
    ],
)
def test_bad_input_is_named(conn: Conn, call: str, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message):
        conn.execute(sql.SQL("select tracedb.{}").format(sql.SQL(call)))


def test_hours_are_those_of_utc(conn: Conn, tenant: UUID) -> None:
    at = datetime(2026, 3, 4, 23, 45, tzinfo=UTC)
    conn.execute("set local timezone = 'Asia/Kathmandu'")  # 5:45 ahead
    ingest(conn, tenant, [trace(started_at=at.isoformat(), trace_id=trace_id("late", at))])
    fold_all(conn)

    assert [row[0] for row in series(conn, tenant, "hour")] == [at.replace(minute=0)]
    assert [row[0] for row in series(conn, tenant, "day")] == [at.replace(hour=0, minute=0)]


# the commands that cron and operators run


def test_the_command_folds_until_nothing_is_left(
    database: str, tenant: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database) as conn:
        for number in range(3):
            ingest(conn, tenant, [trace(trace_id=trace_id(f"{number}"), cost_usd="0.1")])

    args = ["--dsn", database, "rollups", "fold", "--json"]
    assert main([*args, "--max-traces", "2"]) == 0
    assert json.loads(capsys.readouterr().out) == {"changes": 3, "traces": 3, "unfolded_changes": 0}
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out) == {"changes": 0, "traces": 0, "unfolded_changes": 0}


def test_the_command_says_that_another_session_folds(
    database: str, tenant: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database) as conn:
        ingest(conn, tenant, [trace()])
        conn.commit()
        conn.execute(
            "select pg_advisory_xact_lock(hashtextextended('tracedb.fold/' || %s, 0))", [tenant]
        )
        assert main(["--dsn", database, "rollups", "fold"]) == 75
    assert capsys.readouterr().out == "0 changes of 0 traces folded, 1 left\n"


def test_the_command_finds_a_total_that_is_wrong(
    database: str, tenant: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--dsn", database, "rollups", "verify", "--tenant", str(tenant)]
    args += ["--since", FROM.isoformat(), "--until", TO.isoformat()]
    with psycopg.connect(database) as conn:
        ingest(conn, tenant, [trace(cost_usd="1")])
        fold_all(conn)
    assert main(args) == 0
    assert capsys.readouterr().out == "every total is what its traces say\n"

    with psycopg.connect(database) as conn:
        conn.execute("update tracedb.usage_rollups set cost_usd = cost_usd + 0.000000000001")
    assert main([*args, "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)
    assert found["starts_at"].startswith("2026-03-04 12:00")
    assert found["rolled_up"] != found["counted"]


def test_python_reads_the_series_in_both_colours(database: str, tenant: UUID) -> None:
    with psycopg.connect(database) as conn:
        ingest(
            conn,
            tenant,
            [
                trace(duration_ms=100, agent_id="bot"),
                span(cost_usd="0.5", input_tokens=7, request_model="m", duration_us=50),
            ],
        )

    async def ask() -> list[tracedb.Usage]:
        async with await tracedb.connect_async(database) as db:
            assert [folded.traces for folded in await db.fold_usage()] == [1]
            return await db.tenant(tenant).usage_series(FROM, TO, "day")

    with tracedb.connect(database) as db:
        before = db.tenant(tenant).usage_series(FROM, TO, "day")
    after = asyncio.run(ask())

    assert before == after
    call, request = after
    assert (call.kind, call.model, call.agent_id, call.executions) == ("call", "m", "bot", 1)
    assert (call.cost_usd, call.input_tokens, call.unpriced) == (Decimal("0.5"), 7, 0)
    assert call.p50_duration_ms == pytest.approx(0.05, rel=0.01)
    assert (request.kind, request.executions) == ("request", 1)
    assert request.p99_duration_ms == pytest.approx(100, rel=0.01)
    assert request.starts_at == NOON.replace(hour=0)
