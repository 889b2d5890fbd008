"""How agents and tenants do: every formula worked out by hand on a small history."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import tracedb
from records import NOON, ingest, span, trace, trace_id
from servers import as_role
from tracedb import queries

Conn = psycopg.Connection[Any]
TODAY = NOON.replace(hour=0)  # a Wednesday


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def at(days: float, **fields: Any) -> dict[str, Any]:
    """A request so many days before today, that went well unless told otherwise."""
    when = TODAY - timedelta(days=days)
    id = trace_id("random", when)
    return trace(**{"trace_id": id, "started_at": when.isoformat(), "status": "ok", **fields})


def run(number: int, when: datetime = NOON, **fields: Any) -> dict[str, Any]:
    """A run of an agent, as its platform judged it."""
    return {
        "type": "agent_execution",
        "event_key": f"run-{number}",
        "occurred_at": when.isoformat(),
        "agent_id": "bot",
        "success": True,
        **fields,
    }


def test_agents_are_compared_by_what_is_sure(conn: Conn, tenant: UUID) -> None:
    noon = {"started_at": NOON.isoformat(), "agent_id": "bot"}
    records = [
        *(at(-0.5, **noon, duration_ms=100, cost_usd="0.25") for _ in range(3)),
        at(-0.5, **noon, status="error", duration_ms=900, cost_usd="0.25"),
        at(-0.5, **noon, status="running"),
        at(-0.5, started_at=NOON.isoformat(), agent_id="clerk"),
        at(9, agent_id="bot"),  # before the time
        *(run(number, success=number < 9, quality_score=0.5) for number in range(10)),
        run(10, quality_score=1.0, citation_accuracy=0.8, hallucination_detected=True),
        run(11, hallucination_detected=False),
        run(12, NOON - timedelta(days=9), success=False),
    ]
    assert ingest(conn, tenant, records)["rejected"] == []

    with as_role(conn, "tracedb_reader", tenant):
        until = NOON + timedelta(hours=1)
        bot, clerk = tracedb.run(
            conn, queries.agent_report(NOON - timedelta(hours=1), until), tenant
        )

    assert (bot.agent_id, bot.executions, bot.errors, bot.runs) == ("bot", 5, 1, 12)
    assert bot.success_rate == 0.75
    assert (bot.cost_usd, bot.unknown_cost_count) == (Decimal("1.00"), 1)
    assert bot.cost_per_success_usd == pytest.approx(Decimal(1) / 3)
    assert bot.p50_duration_ms == pytest.approx(100, rel=0.01)
    assert bot.run_success_rate == pytest.approx(11 / 12)
    assert bot.quality_score == pytest.approx((10 * 0.5 + 1) / 11)
    assert (bot.citation_accuracy, bot.hallucination_rate) == (0.8, 0.5)
    for end in (bot.run_success_rate_low, bot.run_success_rate_high):
        # the true rates from which 11 of 12 is just 1.96 standard errors away
        assert end is not None
        assert abs(11 / 12 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 12))
    assert (clerk.agent_id, clerk.success_rate, clerk.runs) == ("clerk", 1.0, 0)
    assert clerk.run_success_rate is None
    assert clerk.success_rate_low is not None
    assert clerk.success_rate_low < 0.75  # one of one is not sure


def test_the_success_rate_is_of_runs_or_else_of_traces(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn,
        tenant,
        [
            *(run(number, success=number < 3) for number in range(4)),
            at(-0.5, agent_id="bot", status="error", started_at=NOON.isoformat()),
            at(-0.5, agent_id="clerk", status="error", started_at=NOON.isoformat()),
            at(-0.5, agent_id="clerk", started_at=NOON.isoformat()),
        ],
    )

    def rate(agent: str, hours: int = 24, as_of: datetime = NOON + timedelta(hours=1)) -> Any:
        return tracedb.run(conn, queries.get_agent_success_rate(agent, hours, as_of), tenant)

    assert (rate("bot"), rate("clerk"), rate("nobody")) == (75.0, 50.0, None)
    assert rate("bot", 1, NOON + timedelta(hours=2)) is None
    with pytest.raises(tracedb.InvalidInput, match="hours: must be from 1"):
        rate("bot", 0)


def test_health_is_the_weighted_mean_of_what_is_known(conn: Conn, tenant: UUID) -> None:
    records = [
        # 21 days before the last 7: 2 requests on each of 14 days, of 100 ms
        *(at(day + 0.2, duration_ms=100) for day in range(7, 21) for _ in range(2)),
        # the last 7: one request on each of 4 days, of 200 ms, one of them failed
        *(at(day + 0.2, duration_ms=200) for day in range(3)),
        at(3.2, duration_ms=200, status="error"),
        at(-0.2, status="error"),  # today is not over
        run(1, TODAY - timedelta(days=1), quality_score=0.6),
    ]
    assert ingest(conn, tenant, records)["rejected"] == []

    def health() -> tracedb.TenantHealth:
        found = tracedb.run(conn, queries.get_tenant_health(NOON), tenant)
        assert found is not None
        return found

    found = health()
    assert (found.requests_7d, found.requests_28d) == (4, 32)
    assert (found.reliability, found.quality) == (0.75, 0.6)
    assert found.activity == pytest.approx(4 * 3 / 14)
    assert found.trend == pytest.approx(4 * 3 / 28)
    assert found.latency == pytest.approx(0.5, rel=0.02)
    assert found.latency is not None
    parts = [(0.35, 0.75), (0.2, 12 / 14), (0.2, 12 / 28), (0.1, found.latency), (0.15, 0.6)]
    assert found.score == pytest.approx(100 * sum(weight * value for weight, value in parts))


def test_health_compares_nothing_with_nothing(conn: Conn, tenant: UUID) -> None:
    nothing = tracedb.run(conn, queries.get_tenant_health(NOON), tenant)
    assert nothing is not None
    parts = [nothing.score, nothing.reliability, nothing.activity, nothing.trend]
    assert parts == [None] * 4

    ingest(conn, tenant, [at(1.5), at(2.5, status="error")])  # began this week
    found = tracedb.run(conn, queries.get_tenant_health(NOON), tenant)
    assert found is not None
    assert (found.score, found.reliability) == (50.0, 0.5)
    assert [found.activity, found.trend, found.latency, found.quality] == [None] * 4


def test_silence_is_judged_by_the_tenants_own_rhythm(conn: Conn, tenant: UUID) -> None:
    weekly = uuid4()
    ingest(conn, tenant, [at(day + 0.2) for day in range(5, 40)])  # daily, then 5 days nothing
    ingest(conn, weekly, [at(day + 0.2) for day in range(5, 40, 7)])

    def risk(of: UUID) -> tracedb.ChurnRisk | None:
        return tracedb.run(conn, queries.get_churn_risk(NOON), of)

    daily_risk, weekly_risk = risk(tenant), risk(weekly)
    assert daily_risk is not None
    assert weekly_risk is not None
    assert (daily_risk.days_silent, daily_risk.active_day_rate) == (5, 1.0)
    assert daily_risk.silence == pytest.approx(1 - 0.1**5)
    assert daily_risk.decline == pytest.approx(1 - 2 * 4 / 28)
    assert daily_risk.risk == pytest.approx(1 - 0.1**5 * (1 - (1 - 2 * 4 / 28) / 2))
    assert daily_risk.level == "high"
    assert weekly_risk.active_day_rate == pytest.approx(5 / 29)
    assert weekly_risk.silence == pytest.approx(1 - (24 / 29) ** 5)
    assert (weekly_risk.decline, weekly_risk.level) == (0, "medium")
    assert weekly_risk.last_active_day == TODAY - timedelta(days=6)
    assert risk(uuid4()) is None


def test_patterns_are_by_weekday_and_hour(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn,
        tenant,
        [
            *(at(7 * week + 1 - 9.5 / 24, cost_usd="1") for week in range(3)),  # Tuesdays, 9:30
            at(2, status="error"),  # Monday, midnight
            at(2, parent_trace_id=trace_id("above", TODAY), cost_usd="0.5"),
            at(60),
        ],
    )

    found = tracedb.run(conn, queries.get_usage_patterns(4, NOON), tenant)

    assert [(row.weekday, row.hour, row.requests, row.errors, row.cost_usd) for row in found] == [
        (1, 0, 1, 1, Decimal("0.5")),
        (2, 9, 3, 0, Decimal(3)),
    ]
    assert [row.share for row in found] == [0.25, 0.75]
    assert [row.requests_per_hour for row in found] == [0.25, 0.75]


def test_features_are_what_is_used_on_which_days(conn: Conn, tenant: UUID) -> None:
    first = at(1.2, route="new", agent_id="bot")
    ingest(
        conn,
        tenant,
        [
            first,
            at(2.2, route="old", agent_id="bot"),
            at(3.2, route="old"),
            *(at(9.2, route="old") for _ in range(4)),
            at(9.2, route="gone"),
            span(
                trace_id=first["trace_id"],
                started_at=first["started_at"],
                ended_at=None,
                request_model="m",
            ),
        ],
    )

    def features() -> dict[tuple[str, str], tracedb.FeatureAdoption]:
        found = tracedb.run(conn, queries.get_feature_adoption(7, NOON), tenant)
        return {(row.feature_type, row.feature): row for row in found}

    found = features()
    assert set(found) == {
        ("route", "new"),
        ("route", "old"),
        ("route", "gone"),
        ("agent", "bot"),
        ("model", "m"),
        ("operation", "llm"),
    }
    old, new, gone = (found["route", name] for name in ("old", "new", "gone"))
    assert (old.executions, old.executions_before, old.change) == (2, 4, -0.5)
    assert old.active_days == 2
    assert old.adoption == pytest.approx(2 / 3)
    assert [each.share for each in (old, new, gone)] == pytest.approx([2 / 3, 1 / 3, 0])
    assert (new.change, gone.executions, gone.change) == (None, 0, -1)
    assert new.first_used_day == TODAY - timedelta(days=2)
    assert found["agent", "bot"].share == 1


def test_bad_input_is_named(conn: Conn, tenant: UUID) -> None:
    with pytest.raises(tracedb.InvalidInput, match="weeks: must be"), conn.transaction():
        tracedb.run(conn, queries.get_usage_patterns(0), tenant)
    with pytest.raises(tracedb.InvalidInput, match="days: must be"), conn.transaction():
        tracedb.run(conn, queries.get_feature_adoption(0), tenant)


def test_the_async_client_answers_the_same(database: str, tenant: UUID) -> None:
    with psycopg.connect(database) as conn:
        ingest(conn, tenant, [at(1.5), at(2.5, agent_id="bot")])

    async def ask() -> tuple[Any, ...]:
        async with await tracedb.connect_async(database) as db:
            of = db.tenant(tenant)
            return (
                await of.get_tenant_health(NOON),
                await of.get_churn_risk(NOON),
                await of.agent_report(NOON - timedelta(days=7), NOON),
            )

    with tracedb.connect(database) as db:
        of = db.tenant(tenant)
        assert asyncio.run(ask()) == (
            of.get_tenant_health(NOON),
            of.get_churn_risk(NOON),
            of.agent_report(NOON - timedelta(days=7), NOON),
        )
