"""Prices learnt later, and invoices: adjustments that add up, differences that are explained."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costing import Conn, call, counted, entry, reprice, set_prices
from records import NOON, at, ingest, trace_id
from servers import as_role
from tracedb import InvoiceLine, Reconciliation, money, run

SMALL = entry("small", input="0.15", output="0.6")
SMALL_COST = Decimal("0.00021")


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def adjustments(conn: Conn, tenant: UUID) -> list[tuple[Any, ...]]:
    return conn.execute(
        "select previous_cost_usd, cost_usd, reason from tracedb.span_cost_adjustments"
        " where tenant_id = %s order by adjustment_id",
        [tenant],
    ).fetchall()


def calls_of_days(days: int) -> list[dict[str, Any]]:
    """A call a day, each in a trace of its own, at noon."""
    return [
        call(
            trace_id=trace_id(f"day {day}", NOON + timedelta(days=day)),
            started_at=(NOON + timedelta(days=day)).isoformat(),
            ended_at=None,
            duration_us=1,
        )
        for day in range(days)
    ]


def test_what_is_learnt_later_is_appended(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [call(1), call(2, cost_usd=1), call(3, request_model="x")])
    spans = conn.execute("select * from tracedb.llm_spans order by span_id").fetchall()
    conn.commit()
    cursor = conn.execute("select tracedb.changes_cursor()").fetchone()
    set_prices(conn, SMALL)

    dry = reprice(conn, tenant)
    untouched = counted(conn, tenant)
    real = reprice(conn, tenant, dry_run=False, reason="a price was missing")
    again = reprice(conn, tenant, dry_run=False)
    conn.commit()

    assert dry == {
        "dry_run": True,
        "examined": 2,
        "adjusted": 1,
        "previous_cost_usd": None,
        "cost_usd": SMALL_COST,
        "difference_usd": SMALL_COST,
        "by_model": [
            {
                "provider": "openai",
                "model": "small",
                "spans": 1,
                "previous_cost_usd": None,
                "cost_usd": SMALL_COST,
                "difference_usd": SMALL_COST,
            }
        ],
        "cursor": None,
    }
    assert untouched == [None, 1, None]
    assert real == dry | {"dry_run": False}
    assert (again["examined"], again["adjusted"], again["by_model"]) == (2, 0, [])
    assert counted(conn, tenant) == [SMALL_COST, 1, None]
    assert adjustments(conn, tenant) == [(None, SMALL_COST, "a price was missing")]
    assert conn.execute("select * from tracedb.llm_spans order by span_id").fetchall() == spans
    assert cursor is not None
    changed = conn.execute(
        "select trace_id from tracedb.changes_since(%s, tenant_id => %s)", [cursor[0], tenant]
    ).fetchall()
    assert changed == [(UUID(trace_id()),)]


def test_a_corrected_price_adjusts_an_adjusted_call(conn: Conn, tenant: UUID) -> None:
    set_prices(conn, SMALL)
    ingest(conn, tenant, [call()])
    for usd in (1, 2):
        set_prices(conn, entry(input=usd, output=0))
        reprice(conn, tenant, dry_run=False)
    set_prices(conn, entry(input=3))  # and nobody knows what output costs
    reprice(conn, tenant, dry_run=False)

    assert [row[:2] for row in adjustments(conn, tenant)] == [
        (SMALL_COST, Decimal("0.001")),
        (Decimal("0.001"), Decimal("0.002")),
        (Decimal("0.002"), None),
    ]
    assert counted(conn, tenant) == [None]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    max_spans=st.integers(1, 12),
    since=st.integers(0, 10),
    until=st.integers(0, 10),
    changed=st.integers(0, 10),
)
def test_it_goes_on_where_it_ended(
    conn: Conn, max_spans: int, since: int, until: int, changed: int
) -> None:
    days = 10
    with conn.transaction(force_rollback=True):
        tenant = uuid4()
        set_prices(conn, SMALL)
        ingest(conn, tenant, calls_of_days(days))
        start = NOON + timedelta(days=changed)
        set_prices(conn, entry(input="2.15", output="0.6", valid_from=start.isoformat()))
        bounds = {
            "since": NOON + timedelta(days=since),
            "until": NOON + timedelta(days=until),
            "dry_run": False,
            "max_spans": max_spans,
        }
        adjusted, examined, cursor = 0, 0, None
        while True:
            part = reprice(conn, tenant, cursor=cursor, **bounds)
            assert part["examined"] <= max_spans
            assert part["difference_usd"] == part["adjusted"] * Decimal("0.002")
            adjusted += part["adjusted"]
            examined += part["examined"]
            cursor = part["cursor"]
            if cursor is None:
                break
        found = counted(conn, tenant)

    within = range(since, until)
    assert examined == len(within)
    assert adjusted == len([day for day in within if day >= changed])
    assert found == [
        SMALL_COST + (Decimal("0.002") if day in within and day >= changed else 0)
        for day in range(days)
    ]


def test_two_cannot_reprice_at_once(database: str, tenant: UUID) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        set_prices(one, SMALL)
        reprice(one, tenant, dry_run=False)

        with pytest.raises(psycopg.errors.LockNotAvailable, match="another session reprices"):
            reprice(other, tenant, dry_run=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_spans": 0}, "max_spans: must be from 1 to 100000"),
        ({"cursor": "x"}, "cursor: must be one that reprice has given"),
    ],
)
def test_what_reprice_refuses(
    conn: Conn, tenant: UUID, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(psycopg.Error, match=message):
        reprice(conn, tenant, **settings)


def test_only_the_trusted_role_adjusts(conn: Conn, tenant: UUID) -> None:
    set_prices(conn, SMALL)
    with as_role(conn, "tracedb_service", tenant):
        ingest(conn, tenant, [call()])
        set_prices(conn, entry(input=1, output=0))
        assert reprice(conn, tenant, dry_run=False)["adjusted"] == 1
    for role in ("tracedb_app", "tracedb_reader", "tracedb_maintainer"):
        with as_role(conn, role, tenant):
            assert counted(conn, tenant) == [Decimal("0.001")]
            with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
                reprice(conn, tenant, dry_run=False)


# invoices

MARCH = (date(2026, 3, 1), date(2026, 3, 31))


def reconcile(conn: Conn, tenant: UUID, *lines: dict[str, Any], **settings: Any) -> Reconciliation:
    found = run(conn, money.reconcile_invoice("openai", *MARCH, lines, **settings), tenant)
    assert found is not None
    assert found.difference_usd == found.invoiced_usd - found.traced_usd
    assert found.difference_usd == sum(line.difference_usd for line in found.lines)
    return found


def only(found: Reconciliation) -> InvoiceLine:
    (line,) = found.lines
    return line


@pytest.mark.parametrize(
    ("line", "outcome", "reason"),
    [
        ({"amount_usd": "2"}, "matched", None),
        ({"amount_usd": "2.01"}, "matched", None),
        ({"amount_usd": "1.99"}, "matched", None),
        ({"amount_usd": "2", "day": "2026-03-04"}, "matched", None),
        ({"amount_usd": "2", "input_tokens": 1}, "matched", None),
        ({"input_tokens": 2000, "output_tokens": 200, "calls": 2}, "matched", None),
        ({"amount_usd": "2.0101"}, "amount_differs", "price or usage differs"),
        ({"amount_usd": "3", "input_tokens": 2000}, "amount_differs", "price differs"),
        ({"amount_usd": "3", "input_tokens": 3000}, "amount_differs", "usage differs"),
        ({"calls": 3}, "amount_differs", "usage differs"),
    ],
)
def test_a_line_is_compared(
    conn: Conn, tenant: UUID, line: dict[str, Any], outcome: str, reason: str | None
) -> None:
    ingest(conn, tenant, [call(1, cost_usd=1), call(2, cost_usd=1)])

    found = only(reconcile(conn, tenant, {"model": "small", **line}))

    assert (found.outcome, found.reason) == (outcome, reason)
    assert found.traced_usd == 2


def test_calls_without_a_price_explain_a_difference(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [call(1, cost_usd=1), call(2)])

    found = reconcile(conn, tenant, {"model": "small", "amount_usd": 2})

    assert only(found).reason == "calls without a known price"
    assert found.traced_usd == 1
    assert found.unpriced_calls == 1


def test_what_only_one_side_knows(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn,
        tenant,
        [
            call(1, cost_usd=1, request_model="ours"),
            call(2, cost_usd=1, provider="azure"),
            call(3, cost_usd=1, operation_type="agent"),
            call(
                4,
                cost_usd=1,
                external_id="april",
                trace_id=None,
                started_at="2026-04-01T00:00Z",
                ended_at=None,
                duration_us=1,
            ),
        ],
    )

    found = reconcile(conn, tenant, {"model": "theirs", "amount_usd": "4"})

    assert {(line.model, line.outcome, line.difference_usd) for line in found.lines} == {
        ("theirs", "missing_in_traces", Decimal(4)),
        ("ours", "missing_in_invoice", Decimal(-1)),
    }
    assert (found.missing_in_traces, found.missing_in_invoice) == (1, 1)
    assert found.invoiced_usd == 4
    assert found.traced_usd == 1


def test_lines_are_by_day_or_for_the_period(conn: Conn, tenant: UUID) -> None:
    """A call belongs to the line of its day, else to the model's line without a day."""
    ingest(conn, tenant, [record | {"cost_usd": "1"} for record in calls_of_days(3)])
    days = [(NOON + timedelta(days=day)).date() for day in range(3)]

    dated = reconcile(
        conn, tenant, *({"model": "small", "day": day, "amount_usd": 1} for day in days[:2])
    )
    mixed = reconcile(
        conn,
        tenant,
        {"model": "small", "day": days[0], "amount_usd": "0.5"},
        {"model": "small", "day": days[0], "amount_usd": "0.5"},
        {"model": "small", "amount_usd": 2},
    )

    assert {(line.day, line.outcome) for line in dated.lines} == {
        (days[0], "matched"),
        (days[1], "matched"),
        (days[2], "missing_in_invoice"),
    }
    assert {(line.day, line.outcome) for line in mixed.lines} == {
        (days[0], "matched"),
        (None, "matched"),
    }


def test_an_invoice_may_use_either_name_of_a_model(conn: Conn, tenant: UUID) -> None:
    names = {"request_model": "asked", "response_model": "answered"}
    ingest(conn, tenant, [call(1, cost_usd=1, **names), call(2, cost_usd=1, **names)])

    for name in names.values():
        found = reconcile(conn, tenant, {"model": name, "amount_usd": 2})
        assert [(line.model, line.outcome) for line in found.lines] == [(name, "matched")]


def test_another_tenants_calls_are_not_ours(conn: Conn, tenant: UUID) -> None:
    ingest(conn, uuid4(), [call(cost_usd=1)])

    with as_role(conn, "tracedb_reader", tenant):
        found = reconcile(conn, tenant, {"model": "small", "amount_usd": 1})

    assert only(found).outcome == "missing_in_traces"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{}], "model: required"),
        ([{"model": "x", "day": "2026-04-01"}], "day: must lie in the period"),
        ([{"model": "x", "cost": 1}], "lines: a field that no line has"),
        ([1], "lines: must be objects"),
    ],
)
def test_what_an_invoice_cannot_say(
    conn: Conn, tenant: UUID, lines: list[Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        reconcile(conn, tenant, *lines)


def test_the_tolerance_is_ones_own(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [call(cost_usd=1, started_at=at())])

    found = reconcile(conn, tenant, {"model": "small", "amount_usd": 2}, tolerance_usd=Decimal(1))

    assert only(found).outcome == "matched"
