"""What tenants spend: the same money whichever way it is split, limits that hold, forecasts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clones import clone
from costing import Conn, call
from records import NOON, at, ingest, trace, trace_id
from servers import Server, as_role
from tracedb import BudgetStatus, CostForecast, PermissionDenied, Query, money, run
from tracedb.cli import main

TODAY = NOON.date()


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def event(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "type": "cost_event",
        "event_key": f"event {number}",
        "occurred_at": at(),
        "cost_type": "llm",
        "service": "openai",
        "cost_usd": 1,
        **fields,
    }


def spent(conn: Conn, tenant: UUID, by: str) -> dict[str | None, Decimal | None]:
    found = run(
        conn,
        money.get_cost_breakdown(by, NOON - timedelta(days=400), NOON + timedelta(days=400)),  # type: ignore[arg-type]
        tenant,
    )
    return {share.key: share.cost_usd for share in found}


# what counts


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"cost_type": "storage"}, True),
        ({"trace_id": trace_id()}, False),
        ({"trace_id": trace_id(), "cost_type": "embedding"}, False),
        ({"trace_id": trace_id(), "cost_type": "compute"}, True),
        ({"trace_id": trace_id("unknown cost")}, True),
        ({"trace_id": trace_id("never recorded")}, True),
        # its cost is in that of the trace it is nested in
        ({"trace_id": trace_id("nested")}, False),
    ],
)
def test_a_cost_event_counts_where_no_trace_says_the_same(
    conn: Conn, tenant: UUID, fields: dict[str, Any], counts: bool
) -> None:
    ingest(
        conn,
        tenant,
        [
            trace(cost_usd=10),
            trace(trace_id=trace_id("nested"), parent_trace_id=trace_id()),
            trace(trace_id=trace_id("unknown cost")),
            event(**fields),
        ],
    )

    day = run(conn, money.get_tenant_daily_cost(TODAY), tenant)

    assert day == (11 if counts else 10)


def test_money_is_split_by_who_and_what(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn,
        tenant,
        [
            trace(user_id="mia", agent_id="bot"),
            call(1, cost_usd="0.25", response_model="small-2"),
            call(2, cost_usd="0.5", request_model="large"),
            call(3, request_model="large"),
            trace(trace_id=trace_id("whole"), user_id="leo", agent_id="bot", cost_usd=2),
            call(4, trace_id=trace_id("whole"), cost_usd=1),
            event(1, user_id="mia", service_tier="large", cost_usd=4),
            event(2, cost_type="storage", cost_usd=8, occurred_at="2026-03-05T00:00:00+00:00"),
            event(3, cost_usd=None),
        ],
    )

    assert spent(conn, tenant, "user") == {"mia": Decimal("4.75"), "leo": 2, None: 8}
    assert spent(conn, tenant, "agent") == {"bot": Decimal("2.75"), None: 12}
    # what was reported for a trace as a whole is no model's
    assert spent(conn, tenant, "model") == {
        "small-2": Decimal("0.25"),
        "large": Decimal("4.5"),
        "openai": None,
        None: 10,
    }
    assert spent(conn, tenant, "day") == {"2026-03-04": Decimal("6.75"), "2026-03-05": 8}
    days = [TODAY - timedelta(days=1), TODAY, TODAY + timedelta(days=1)]
    assert [run(conn, money.get_tenant_daily_cost(day), tenant) for day in days] == [
        None,
        Decimal("6.75"),
        8,
    ]


@pytest.fixture(scope="module")
def shared(server: Server, template: str) -> Iterator[Conn]:
    with clone(server, template) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        yield conn


def some_costs(rng: random.Random) -> list[dict[str, Any]]:
    """Traces, nested and not, some with a cost of their own, their calls, and events."""
    records: list[dict[str, Any]] = []
    for number in range(rng.randrange(1, 6)):
        key = f"trace {number}"
        parent = rng.choice([None, None, *(f"trace {n}" for n in range(number))])
        records.append(
            trace(
                trace_id=trace_id(key),
                parent_trace_id=parent and trace_id(parent),
                user_id=rng.choice(["mia", "leo", None]),
                agent_id=rng.choice(["bot", None]),
                cost_usd=rng.choice([None, None, 64, 128]),
            )
        )
        records += [
            call(
                100 * number + n,
                trace_id=trace_id(key),
                cost_usd=rng.choice([None, "0.5", 1, 2]),
                request_model=rng.choice(["small", "large"]),
                operation_type=rng.choice(["llm", "rerank", "agent"]),
            )
            for n in range(1, rng.randrange(1, 4))
        ]
        records.append(
            event(
                number,
                trace_id=rng.choice([None, trace_id(key)]),
                cost_usd=rng.choice([None, 256, 512]),
                cost_type=rng.choice(["llm", "embedding", "storage", "compute"]),
            )
        )
    return records


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_split_adds_up_to_the_same(shared: Conn, rng: random.Random) -> None:
    tenant = uuid4()
    ingest(shared, tenant, some_costs(rng))

    totals = {
        by: sum(cost or 0 for cost in spent(shared, tenant, by).values())
        for by in ("day", "user", "agent", "model")
    }
    traces = shared.execute(
        "select coalesce(sum(cost_usd), 0) from tracedb.trace_figures where tenant_id = %s",
        [tenant],
    ).fetchone()
    events = shared.execute(
        "select coalesce(sum(cost_usd), 0) from tracedb.cost_entries"
        " where tenant_id = %s and source = 'event'",
        [tenant],
    ).fetchone()

    assert traces is not None
    assert events is not None
    assert set(totals.values()) == {traces[0] + events[0]}


# budgets


def status(conn: Conn, tenant: UUID, as_of: datetime | None = None) -> BudgetStatus:
    (found,) = run(conn, money.get_budget_status(as_of), tenant)
    return found


def reserve(conn: Conn, tenant: UUID, usd: Any, **settings: Any) -> UUID | None:
    id = uuid4()
    return id if run(conn, money.reserve_budget(id, Decimal(usd), **settings), tenant) else None


@pytest.fixture
def budget(conn: Conn, tenant: UUID) -> UUID:
    """10 dollars a day, with a warning at 6."""
    found = run(conn, money.set_budget("daily", "day", Decimal(6), Decimal(10)), tenant)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", date(2026, 3, 4), date(2026, 3, 5)),
        ("week", date(2026, 3, 2), date(2026, 3, 9)),
        ("month", date(2026, 3, 1), date(2026, 4, 1)),
    ],
)
def test_a_budget_is_of_its_period(
    conn: Conn, tenant: UUID, period: Any, start: date, end: date
) -> None:
    run(conn, money.set_budget("b", period, Decimal(6), Decimal(10)), tenant)
    first = datetime(start.year, start.month, start.day, tzinfo=UTC)
    last = datetime(end.year, end.month, end.day, tzinfo=UTC) - timedelta(seconds=1)
    for number, (time, usd) in enumerate(
        [(first, 2), (last, 5), (first - timedelta(seconds=1), 100), (last + timedelta(1), 100)]
    ):
        ingest(conn, tenant, [event(number, occurred_at=time.isoformat(), cost_usd=usd)])

    noon, late = status(conn, tenant, NOON), status(conn, tenant, last)

    assert (noon.period_start.date(), noon.period_end.date()) == (start, end)
    assert [(s.spent_usd, s.remaining_usd, s.state) for s in (noon, late)] == [
        (Decimal(2), Decimal(8), "ok"),
        (Decimal(7), Decimal(3), "soft"),
    ]


def test_money_is_set_aside_and_settled(conn: Conn, tenant: UUID, budget: UUID) -> None:
    one, two = reserve(conn, tenant, 6), reserve(conn, tenant, 4)
    refused = reserve(conn, tenant, "0.01")
    assert one is not None
    assert two is not None
    settled = [run(conn, money.settle_budget(one, Decimal(1)), tenant) for _ in range(2)]
    released = [run(conn, money.release_budget(two), tenant) for _ in range(2)]
    unknown = run(conn, money.settle_budget(uuid4(), Decimal(1)), tenant)

    assert refused is None
    assert (settled, released, unknown) == ([True, False], [True, False], False)
    found = status(conn, tenant)
    assert [found.spent_usd, found.reserved_usd, found.remaining_usd] == [1, 0, 9]


def test_the_same_reservation_twice_is_one(conn: Conn, tenant: UUID, budget: UUID) -> None:
    id = uuid4()
    asked = [run(conn, money.reserve_budget(id, Decimal(7)), tenant) for _ in range(2)]
    held = status(conn, tenant).reserved_usd
    run(conn, money.release_budget(id), tenant)

    assert asked == [True, True]
    assert held == 7
    assert not run(conn, money.reserve_budget(id, Decimal(7)), tenant)


def test_what_was_not_settled_in_time_is_free_again(conn: Conn, tenant: UUID, budget: UUID) -> None:
    gone = reserve(conn, tenant, 10, ttl=timedelta(0))

    assert gone is not None
    assert reserve(conn, tenant, 10) is not None
    # and a late one still says what it cost
    assert run(conn, money.settle_budget(gone, Decimal(3)), tenant)
    assert status(conn, tenant).spent_usd == 3


def test_a_settled_call_counts_once(conn: Conn, tenant: UUID, budget: UUID) -> None:
    """As settled until its trace is there, then as the trace says."""
    now = datetime.now(UTC)
    id = trace_id(when=now)
    recorded = trace(trace_id=id, started_at=now.isoformat())
    reservation = reserve(conn, tenant, 5, trace_id=UUID(id))
    assert reservation is not None
    run(conn, money.settle_budget(reservation, Decimal(2)), tenant)

    settled = status(conn, tenant).spent_usd
    ingest(conn, tenant, [recorded])
    without_cost = status(conn, tenant).spent_usd
    ingest(conn, tenant, [recorded | {"cost_usd": 3}])
    traced = status(conn, tenant).spent_usd

    assert [settled, without_cost, traced] == [2, 2, 3]


def test_only_hard_limits_refuse(conn: Conn, tenant: UUID) -> None:
    run(conn, money.set_budget("soft", "day", Decimal(1), None), tenant)
    assert reserve(conn, tenant, 1000) is not None

    run(conn, money.set_budget("month", "month", None, Decimal(1001)), tenant)
    assert reserve(conn, tenant, 2) is None
    assert reserve(conn, tenant, 1) is not None
    assert run(conn, money.remove_budget("month"), tenant)
    assert reserve(conn, tenant, 2) is not None
    assert not run(conn, money.remove_budget("month"), tenant)


def test_sessions_at_once_never_exceed_the_limit(database: str, tenant: UUID) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        run(conn, money.set_budget("b", "day", None, Decimal(10)), tenant)

    def spend(number: int) -> Decimal:
        """Reserve and settle until nothing is left; what was settled."""
        rng = random.Random(number)
        total = Decimal(0)
        with psycopg.connect(database, autocommit=True) as own:
            while True:
                usd = Decimal(rng.randrange(1, 100)) / 100
                id = reserve(own, tenant, usd)
                if id is None:
                    return total
                if rng.random() < 0.3:
                    run(own, money.release_budget(id), tenant)
                else:
                    cost = usd * rng.randrange(50, 101) / 100
                    run(own, money.settle_budget(id, cost), tenant)
                    total += cost

    with ThreadPoolExecutor(8) as executor:
        settled = sum(executor.map(spend, range(8)))

    with psycopg.connect(database) as conn:
        found = status(conn, tenant)
    assert found.spent_usd == settled <= 10
    # each gave up only where its next call did not fit
    assert found.spent_usd > 8


def test_a_transaction_that_cannot_see_the_others_is_refused(database: str, tenant: UUID) -> None:
    with psycopg.connect(database) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(Exception, match="budgets need a read committed transaction"):
            reserve(conn, tenant, 1)


def test_crossing_a_limit_is_recorded_once_a_period(conn: Conn, tenant: UUID, budget: UUID) -> None:
    def alerts(usd: int, day: int) -> list[tuple[str, Decimal]]:
        time = NOON + timedelta(days=day)
        number = len(conn.execute("select from tracedb.tenant_cost_events").fetchall())
        ingest(conn, tenant, [event(number, occurred_at=time.isoformat(), cost_usd=usd)])
        found = run(conn, money.check_budgets(time), tenant)
        assert run(conn, money.check_budgets(time), tenant) == []
        return [(alert.threshold, alert.spent_usd) for alert in found]

    assert alerts(5, 0) == []
    assert alerts(1, 0) == [("soft", Decimal(6))]
    assert alerts(3, 0) == []
    assert alerts(3, 0) == [("hard", Decimal(12))]
    assert alerts(20, 1) == [("soft", Decimal(20)), ("hard", Decimal(20))]


def test_a_tenant_spends_within_limits_it_cannot_change(conn: Conn, tenant: UUID) -> None:
    run(conn, money.set_budget("b", "day", None, Decimal(10)), tenant)
    other = uuid4()
    run(conn, money.set_budget("b", "day", None, Decimal(10)), other)
    with as_role(conn, "tracedb_app", tenant):
        mine = reserve(conn, tenant, 10)
        assert mine is not None
        assert status(conn, tenant).remaining_usd == 0
        others = conn.execute(
            "select from tracedb.get_budget_status(tenant_id => %s)", [other]
        ).fetchall()
        assert others == []
    queries: list[Query[Any]] = [
        money.set_budget("b", "day", None, Decimal(100)),
        money.remove_budget("b"),
        money.check_budgets(),
    ]
    for query in queries:
        with as_role(conn, "tracedb_app", tenant), pytest.raises(PermissionDenied):
            run(conn, query, tenant)
    assert status(conn, other).remaining_usd == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("b", "year", None, Decimal(1)), "period: must be day, week or month"),
        (("b", "day", None, None), "soft_limit_usd, hard_limit_usd: at least one"),
        (("b", "day", Decimal(2), Decimal(1)), "must not exceed hard_limit_usd"),
        (("", "day", None, Decimal(1)), "name: required"),
    ],
)
def test_what_is_no_budget(conn: Conn, tenant: UUID, settings: Any, message: str) -> None:
    with pytest.raises(Exception, match="budget_|" + message):
        run(conn, money.set_budget(*settings), tenant)


# forecasts


def project(conn: Conn, daily: list[int], horizon: int) -> tuple[Any, Any]:
    row = conn.execute(
        "select run_rate_usd, seasonal_usd from tracedb.project_costs(%s::numeric[], %s)",
        [daily, horizon],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 31))
def test_the_formulas_are_those_documented(shared: Conn, daily: list[int], horizon: int) -> None:
    run_rate, seasonal = project(shared, daily, horizon)

    last = daily[-7:]
    expected = 0.0
    for ahead in range(len(daily), len(daily) + horizon):
        before = list(range(ahead % 7, len(daily), 7))[-4:]
        same = [daily[day] for day in before] or daily
        expected += sum(same) / len(same)
    assert float(run_rate) == pytest.approx(horizon * sum(last) / len(last), abs=1e-9)
    assert float(seasonal) == pytest.approx(expected, abs=1e-9)


def forecast(conn: Conn, tenant: UUID, as_of: datetime, period: Any = "month") -> CostForecast:
    found = run(conn, money.forecast_costs(period, as_of), tenant)
    assert found is not None
    return found


def spend(conn: Conn, tenant: UUID, first: date, costs: list[int]) -> None:
    days = (
        datetime(first.year, first.month, first.day, 9, tzinfo=UTC) + timedelta(days=day)
        for day in range(len(costs))
    )
    ingest(
        conn,
        tenant,
        [
            event(number, occurred_at=day.isoformat(), cost_usd=usd)
            for number, (day, usd) in enumerate(zip(days, costs, strict=True))
        ],
    )


def test_a_weekly_rhythm_is_foreseen(conn: Conn, tenant: UUID) -> None:
    """Ten on weekdays, nothing at weekends, from a Monday on."""
    first = date(2026, 1, 5)
    spend(conn, tenant, first, [10 if day % 7 < 5 else 0 for day in range(72)])

    found = forecast(conn, tenant, datetime(2026, 3, 18, 12, tzinfo=UTC))  # a Wednesday

    # 12 weekdays until the 17th, and 10 from the 18th on
    assert found.spent_usd == 120
    assert found.days_left == 14
    assert found.seasonal_usd == 220
    assert found.seasonal_wape == found.seasonal_mape == 0
    assert found.run_rate_usd == 120 + Decimal(14) * 50 / 7
    assert found.run_rate_wape == 0  # 14 days are two whole weeks
    assert found.backtests == 72 - 14 - 7 + 1
    week = forecast(conn, tenant, datetime(2026, 3, 18, 12, tzinfo=UTC), "week")
    assert [week.spent_usd, week.seasonal_usd, week.days_left] == [20, 50, 5]
    assert week.run_rate_wape is not None
    assert week.run_rate_wape > 0
    assert week.better == "seasonal"


def test_today_costs_at_least_what_it_has_cost(conn: Conn, tenant: UUID) -> None:
    spend(conn, tenant, date(2026, 3, 1), [1, 1, 1, 50])

    found = forecast(conn, tenant, datetime(2026, 3, 4, 12, tzinfo=UTC), "day")

    assert [found.spent_usd, found.run_rate_usd, found.seasonal_usd] == [50, 50, 50]
    assert found.backtests == 0
    assert found.better is None


def test_without_a_history_there_is_no_forecast(conn: Conn, tenant: UUID) -> None:
    nothing = forecast(conn, tenant, NOON)
    ingest(conn, tenant, [event()])
    only_today = forecast(conn, tenant, NOON + timedelta(minutes=1))

    assert [nothing.spent_usd, nothing.run_rate_usd, nothing.seasonal_usd] == [0, None, None]
    assert [only_today.spent_usd, only_today.run_rate_usd] == [1, None]


# the command line


def test_costs_and_budgets_on_the_command_line(
    database: str, conn: Conn, tenant: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    ingest(
        conn,
        tenant,
        [
            event(1, occurred_at=now.isoformat(), cost_usd="7.5", user_id="mia"),
            event(2, occurred_at=now.isoformat(), cost_usd="2.5", user_id="leo"),
        ],
    )
    conn.commit()

    def shown(*args: str, code: int = 0) -> str:
        assert main([*args, "--dsn", database, "--tenant", str(tenant)]) == code
        return capsys.readouterr().out

    by_user = shown("cost", "--by", "user")
    as_json = json.loads(shown("cost", "--by", "user", "--json"))
    assert "no budgets" in shown("budgets", "list")
    assert "set" in shown(
        "budgets", "set", "daily", "--period", "day", "--soft", "5", "--hard", "20"
    )
    listed = shown("budgets", "list")
    checked = shown("budgets", "check", code=3)
    again = shown("budgets", "check")
    removed = shown("budgets", "remove", "daily")
    shown("budgets", "remove", "daily", code=1)

    assert [line.split()[0] for line in by_user.splitlines()[1:3]] == ["mia", "leo"]
    assert [(row["key"], row["cost_usd"]) for row in as_json["shares"]] == [
        ("mia", "7.5"),
        ("leo", "2.5"),
    ]
    assert as_json["total_usd"] == "10.0"
    assert "daily" in listed
    assert "soft" in listed
    assert "daily: 10 USD of 5 (soft)" in checked.replace("10.0", "10")
    assert again == "nothing new\n"
    assert removed == "removed\n"
