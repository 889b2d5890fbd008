"""Totals over traces: in all, by agent, by route and of a user, compared with sums made here."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

import tracedb
from records import NOON, ingest, span, trace, trace_id
from servers import as_role
from tracedb import queries

Conn = psycopg.Connection[Any]
AS_OF = NOON + timedelta(days=7)


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@dataclass(frozen=True)
class Made:
    """A trace as it was made, with what it adds to a total."""

    started_at: datetime
    user: str | None
    agent: str | None
    route: str | None
    nested: bool
    failed: bool
    duration: int | None
    cost: Decimal | None
    tokens: int | None
    unknown: bool


def make(rng: random.Random, number: int, since: datetime) -> tuple[list[dict[str, Any]], Made]:
    """A trace of the 9 days from `since` on; every third is nested in one that reports no cost."""
    started = since + timedelta(minutes=rng.randrange(9 * 24 * 60))
    id = trace_id(f"a{number}", started)
    nested = number % 3 == 2
    status = rng.choice(["ok", "ok", "error", "timeout", "cancelled", "running"])
    duration = None if status == "running" else rng.randrange(9000)
    reported = rng.choice([None, None, Decimal("0.5")])
    spans = [
        (rng.choice([None, Decimal("0.1"), Decimal("0.03")]), rng.randrange(99))
        for _ in range(rng.randrange(3))
    ]
    user, agent = rng.choice(["mia", "leo", None]), rng.choice(["bot", "clerk", None])
    route = rng.choice(["A", "B", None])
    records = [
        trace(
            trace_id=id,
            started_at=started.isoformat(),
            status=status,
            duration_ms=duration,
            user_id=user,
            agent_id=agent,
            route=route,
            cost_usd=None if reported is None else str(reported),
            parent_trace_id=trace_id("silent", since) if nested else None,
        ),
        *(
            span(
                place,
                trace_id=id,
                started_at=started.isoformat(),
                ended_at=None,
                cost_usd=None if cost is None else str(cost),
                input_tokens=tokens,
            )
            for place, (cost, tokens) in enumerate(spans, start=1)
        ),
    ]
    known = [cost for cost, _ in spans if cost is not None]
    return records, Made(
        started_at=started,
        user=user,
        agent=agent,
        route=route,
        nested=nested,
        failed=status in ("error", "timeout"),
        duration=duration,
        cost=reported if reported is not None else sum(known, Decimal()) if known else None,
        tokens=sum(tokens for _, tokens in spans) if spans else None,
        unknown=reported is None and (not spans or len(known) < len(spans)),
    )


def fill(conn: Conn, tenant: UUID, since: datetime) -> list[Made]:
    rng = random.Random(5)
    made = [make(rng, number, since) for number in range(120)]
    records = [record for records, _ in made for record in records]
    silent = trace(
        trace_id=trace_id("silent", since), started_at=since.isoformat(), status="cancelled"
    )
    assert ingest(conn, tenant, [silent, *records])["rejected"] == []
    mute = Made(since, None, None, None, False, False, None, None, None, True)
    return [mute, *(each for _, each in made)]


def total(values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def percentile(durations: Iterable[int | None], share: float) -> float | None:
    """As percentile_cont has it: between the two nearest."""
    known = sorted(value for value in durations if value is not None)
    if not known:
        return None
    place = share * (len(known) - 1)
    low, high = known[math.floor(place)], known[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def percentiles(of: Sequence[Made], rel: float = 1e-6) -> list[Any]:
    durations = [made.duration for made in of]
    return [pytest.approx(percentile(durations, share), rel=rel) for share in (0.5, 0.95, 0.99)]


def groups(made: Sequence[Made], key: Callable[[Made], str | None]) -> list[tuple[Any, ...]]:
    shown = []
    for name in {key(each) for each in made}:
        of = [each for each in made if key(each) == name]
        shown.append(
            (
                name,
                sum(not each.nested for each in of),
                len(of),
                sum(each.failed for each in of),
                total(each.tokens for each in of) or 0,
                total(each.cost for each in of),
                sum(each.unknown for each in of),
                *percentiles(of, rel=0.01),
            )
        )
    return sorted(shown, key=lambda group: (-group[2], group[0] is None, group[0]))


def shown(found: Iterable[tracedb.AnalyticsGroup]) -> list[tuple[Any, ...]]:
    return [
        (
            *(group.name, group.requests, group.executions, group.errors, group.input_tokens),
            *(group.cost_usd, group.unknown_cost_count),
            *(group.p50_duration_ms, group.p95_duration_ms, group.p99_duration_ms),
        )
        for group in found
    ]


def test_totals_are_those_of_the_traces_and_groups_add_up(conn: Conn, tenant: UUID) -> None:
    everything = fill(conn, tenant, NOON - timedelta(days=1))
    made = [each for each in everything if AS_OF - timedelta(days=7) <= each.started_at < AS_OF]
    requests = [each for each in made if not each.nested]
    assert len(everything) > len(made) > 50

    with as_role(conn, "tracedb_app", tenant):
        found = tracedb.run(conn, queries.get_analytics(7, AS_OF), tenant)

    assert (found.since, found.until) == (NOON, AS_OF)
    assert (found.total_requests, found.total_executions) == (len(requests), len(made))
    assert found.total_errors == sum(each.failed for each in requests)
    assert found.total_cost_usd == total(each.cost for each in made)
    assert found.total_input_tokens == total(each.tokens for each in made)
    assert found.unknown_cost_count == sum(each.unknown for each in made)
    figures = [found.p50_duration_ms, found.p95_duration_ms, found.p99_duration_ms]
    assert figures == percentiles(requests, rel=0.01)
    assert shown(found.by_agent) == groups(made, lambda each: each.agent)
    assert shown(found.by_route) == groups(made, lambda each: each.route)
    for by in (found.by_agent, found.by_route):
        assert sum(group.requests for group in by) == found.total_requests
        assert total(group.cost_usd for group in by) == found.total_cost_usd


def test_a_user_has_the_figures_of_all_its_traces(conn: Conn, tenant: UUID) -> None:
    made = [each for each in fill(conn, tenant, NOON) if each.user == "mia"]
    requests = [each for each in made if not each.nested]

    with as_role(conn, "tracedb_reader", tenant):
        found = tracedb.run(conn, queries.get_user_analytics("mia"), tenant)
        assert tracedb.run(conn, queries.get_user_analytics("nobody"), tenant) is None

    assert found is not None
    assert found.user_id == "mia"
    assert (found.total_requests, found.total_executions) == (len(requests), len(made))
    assert found.total_errors == sum(each.failed for each in requests)
    assert found.total_cost_usd == total(each.cost for each in made)
    assert found.total_input_tokens == total(each.tokens for each in made)
    assert found.unknown_cost_count == sum(each.unknown for each in made)
    figures = [found.p50_duration_ms, found.p95_duration_ms, found.p99_duration_ms]
    assert figures == percentiles(requests)
    started = [each.started_at for each in made]
    assert (found.first_started_at, found.last_started_at) == (min(started), max(started))


def test_the_views_agree_with_the_functions(conn: Conn, tenant: UUID) -> None:
    fill(conn, tenant, datetime.now(UTC).replace(microsecond=0) - timedelta(days=9))

    def view(name: str) -> list[dict[str, Any]]:
        query = psycopg.sql.SQL("select * from tracedb.{} where tenant_id = %s")
        name_ = psycopg.sql.Identifier(name)
        return conn.cursor(row_factory=dict_row).execute(query.format(name_), [tenant]).fetchall()

    found = tracedb.run(conn, queries.get_analytics(), tenant)
    agents, users = view("agent_traces_analytics"), view("user_request_analytics")

    for by, field in ((found.by_agent, "agent_id"), (found.by_route, "route")):
        for group in by:
            rows = [row for row in agents if row[field] == group.name]
            assert sum(row["request_count"] for row in rows) == group.requests
            assert sum(row["execution_count"] for row in rows) == group.executions
            assert sum(row["error_count"] for row in rows) == group.errors
            assert total(row["cost_usd"] for row in rows) == group.cost_usd
            assert sum(row["unknown_cost_count"] for row in rows) == group.unknown_cost_count
    mia = tracedb.run(conn, queries.get_user_analytics("mia"), tenant)
    assert mia is not None
    (row,) = (row for row in users if row["user_id"] == "mia")
    assert {name: getattr(mia, name) for name in row if name != "tenant_id"} == {
        name: value for name, value in row.items() if name != "tenant_id"
    }
    assert {row["user_id"] for row in users} == {"mia", "leo", None}


def test_what_an_execution_above_reports_includes_those_below(conn: Conn, tenant: UUID) -> None:
    def at_noon(key: str, parent: str | None = None, **fields: Any) -> dict[str, Any]:
        above = {"parent_trace_id": trace_id(parent)} if parent else {}
        return trace(trace_id=trace_id(key), **above, **fields)

    ingest(
        conn,
        tenant,
        [
            at_noon("request", cost_usd="10", agent_id="head", user_id="mia"),
            at_noon("helper", "request", cost_usd="4", agent_id="helper", user_id="mia"),
            at_noon("deep", "helper", cost_usd="2", agent_id="helper"),
            at_noon("silent", agent_id="head", user_id="mia"),
            at_noon("priced", "silent", cost_usd="1.5", agent_id="helper", user_id="mia"),
        ],
    )

    found = tracedb.run(conn, queries.get_analytics(7, AS_OF), tenant)
    mia = tracedb.run(conn, queries.get_user_analytics("mia"), tenant)

    assert found.total_cost_usd == Decimal("11.5")
    costs = {group.name: group.cost_usd for group in found.by_agent}
    assert costs == {"head": Decimal(10), "helper": Decimal("1.5")}
    assert (found.total_requests, found.unknown_cost_count) == (2, 1)
    assert mia is not None
    assert mia.total_cost_usd == Decimal("11.5")


def test_nothing_recorded_is_no_money_and_no_groups(database: str, tenant: UUID) -> None:
    async def ask() -> tracedb.Analytics:
        async with await tracedb.connect_async(database) as db:
            return await db.tenant(tenant).get_analytics(days=30)

    found = asyncio.run(ask())

    assert (found.total_requests, found.total_cost_usd, found.p99_duration_ms) == (0, None, None)
    assert (found.by_agent, found.by_route) == ((), ())
    assert found.until - found.since == timedelta(days=30)
