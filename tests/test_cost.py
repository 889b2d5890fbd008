"""What calls cost: the formula, the price of their time, and what becomes of it later."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costing import Conn, call, costs, counted, entry, reprice, set_prices
from records import NOON, at, counts, ingest, span, trace, trace_id
from servers import as_role
from tracedb import storing

Store = Callable[[Conn, UUID, list[dict[str, Any]]], Any]
SMALL = entry("small", input="0.15", output="0.6")
SMALL_COST = Decimal("0.00021")  # of a call() by it


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def by_rows(conn: Conn, tenant: UUID, records: list[dict[str, Any]]) -> tuple[int, int, int]:
    receipt = storing.store(conn, tenant, records)
    return receipt.inserted, receipt.merged, receipt.duplicates


def by_json(conn: Conn, tenant: UUID, records: list[dict[str, Any]]) -> tuple[int, int, int]:
    return counts(ingest(conn, tenant, records))[:3]


@pytest.fixture(params=[by_rows, by_json])
def store(request: pytest.FixtureRequest) -> Store:
    """Both ways in."""
    way: Store = request.param
    return way


# the formula


def price(
    conn: Conn, tokens: tuple[int | None, ...], usd: tuple[str | None, ...]
) -> Decimal | None:
    row = conn.execute(
        "select tracedb.price_of_tokens(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [*tokens, *usd],
    ).fetchone()
    assert row is not None
    found: Decimal | None = row[0]
    return found


@pytest.mark.parametrize(
    ("tokens", "usd", "cost"),
    [
        # input, cache read, cache write, output, reasoning; then their prices and that of a call
        ((1000, 0, 0, 100, 0), ("3", None, None, "15", None, "0"), "0.0045"),
        # cached tokens are part of the input and are not paid twice
        ((1000, 600, 100, 0, 0), ("3", "0.3", "3.75", "15", None, "0"), "0.001455"),
        # without a price of its own a class is paid like what includes it
        ((1000, 600, 100, 0, 0), ("3", None, None, "15", None, "0"), "0.003"),
        ((0, 0, 0, 100, 40), ("3", None, None, "15", None, "0"), "0.0015"),
        ((0, 0, 0, 100, 40), ("3", None, None, "15", "20", "0"), "0.0017"),
        ((0, 0, 0, 0, 0), ("3", None, None, "15", None, "0.005"), "0.005"),
        # an embedding has no output
        ((1000, None, None, None, None), ("0.1", None, None, None, None, "0"), "0.0001"),
        ((1000, None, None, None, None), ("0.1", None, None, "0", None, "0"), "0.0001"),
        # nothing is known of what costs something
        ((1000, None, None, None, None), ("0.1", None, None, "1", None, "0"), None),
        ((None, None, None, 100, None), ("0.1", None, None, "1", None, "0"), None),
        ((None, None, None, None, None), ("0", None, None, "0", None, "0"), "0"),
        # tokens of a class that nobody has a price for
        ((1000, 0, 0, 100, 0), ("3", None, None, None, None, "0"), None),
        ((1000, 0, 0, 0, 0), (None, None, None, "15", None, "0"), None),
        # more cached than there is
        ((1000, 900, 200, 0, 0), ("3", "0.3", "3.75", "15", None, "0"), None),
        # digits beyond those of a double
        (
            (123456789012, 0, 0, 1, 0),
            ("0.123456789", None, None, "0.000000001", None, "0"),
            "15241.578751672002469",
        ),
    ],
)
def test_each_token_is_paid_once(
    conn: Conn, tokens: tuple[int | None, ...], usd: tuple[str | None, ...], cost: str | None
) -> None:
    assert price(conn, tokens, usd) == (None if cost is None else Decimal(cost))


# the price of a call


def test_a_call_costs_what_its_price_says(conn: Conn, tenant: UUID, store: Store) -> None:
    set_prices(conn, SMALL, entry("embedder", input=1))

    store(
        conn,
        tenant,
        [
            call(1),
            call(2, cost_usd="0.5"),
            call(3, request_model="unheard-of"),
            call(4, provider="azure"),
            call(5, operation_type="agent"),
            call(6, operation_type="embedding", request_model="embedder", output_tokens=None),
        ],
    )

    assert costs(conn, tenant) == [
        (None, SMALL_COST, SMALL_COST),
        # the reported one counts, and both are kept
        (Decimal("0.5"), SMALL_COST, Decimal("0.5")),
        (None, None, None),
        (None, None, None),
        # an agent's span repeats what its children used
        (None, None, None),
        (None, Decimal("0.001"), Decimal("0.001")),
    ]
    assert conn.execute("select count(*), count(price_id) from tracedb.llm_spans").fetchone() == (
        6,
        3,
    )


@pytest.mark.parametrize(
    ("started", "cost"),
    [
        ("2025-12-31T23:59:59.999999Z", None),
        ("2026-01-01T00:00:00Z", 1),
        ("2026-06-30T23:59:59.999999+00:00", 1),
        ("2026-07-01T01:59:59.999999+02:00", 1),
        ("2026-07-01T02:00:00+02:00", 2),
    ],
)
def test_the_price_is_that_of_the_start(
    conn: Conn, tenant: UUID, store: Store, started: str, cost: int | None
) -> None:
    set_prices(conn, entry(input=1000, output=0))
    set_prices(conn, entry(input=2000, output=0, valid_from="2026-07-01T00:00:00Z"))

    store(
        conn,
        tenant,
        [call(external_id="x", trace_id=None, started_at=started, ended_at=None, duration_us=1)],
    )

    assert counted(conn, tenant) == [cost]


@pytest.mark.parametrize(
    ("tokens", "cost"), [(0, 0), (200_000, 200), (200_001, 400_002), (500_000, 4_500_000)]
)
def test_a_tier_is_for_all_tokens_of_a_call_that_reaches_it(
    conn: Conn, tenant: UUID, store: Store, tokens: int, cost: int
) -> None:
    tiers = [(0, 1_000), (200_001, 2_000_000), (500_000, 9_000_000)]
    set_prices(
        conn,
        entry(tiers=[{"min_input_tokens": n, "input_usd_per_mtok": usd} for n, usd in tiers]),
    )

    store(conn, tenant, [call(input_tokens=tokens, output_tokens=0)])

    assert counted(conn, tenant) == [cost]


def test_the_nearest_price_goes_first(conn: Conn, tenant: UUID, store: Store) -> None:
    """The tenant's own, then the model that answered, then the provider; and each by its time."""

    def flat(model: str, usd: int, **fields: Any) -> dict[str, Any]:
        return entry(model, input=usd * 1000, output=0, **fields)

    asked: dict[str, Any] = {"request_model": "asked", "response_model": "answered"}
    expected: list[int] = []
    for added, owner in (
        (flat("asked", 1, provider=None), None),
        (flat("asked", 2), None),
        (flat("answered", 3, provider=None), None),
        (flat("answered", 4), None),
        (flat("asked", 5, provider=None), tenant),
        (flat("answered", 6), tenant),
        (flat("answered", 7, valid_from="2026-03-04T11:59:59Z"), tenant),
        # the future, another provider, another tenant
        (flat("answered", 8, valid_from="2026-03-04T12:00:01Z"), tenant),
        (flat("answered", 9, provider="azure"), tenant),
        (flat("answered", 10), uuid4()),
    ):
        set_prices(conn, added, tenant=owner)
        usd = int(added["tiers"][0]["input_usd_per_mtok"]) // 1000
        expected.append(min(usd, 7))
        store(conn, tenant, [call(len(expected), **asked)])

    assert counted(conn, tenant) == expected


def test_calls_without_a_provider_have_a_price_of_their_own(
    conn: Conn, tenant: UUID, store: Store
) -> None:
    set_prices(conn, entry(provider="", input=1000, output=0))

    store(conn, tenant, [call(1, provider=None), call(2)])

    assert counted(conn, tenant) == [1, None]


def test_another_tenants_price_is_not_seen(conn: Conn, tenant: UUID) -> None:
    other = uuid4()
    set_prices(conn, SMALL)
    set_prices(conn, entry(input=1, output=1), tenant=other)

    with as_role(conn, "tracedb_app", tenant):
        by_json(conn, tenant, [call()])
        found = counted(conn, tenant)
        seen = conn.execute("select tenant_id from tracedb.model_prices").fetchall()
    with as_role(conn, "tracedb_app", tenant), pytest.raises(psycopg.errors.InsufficientPrivilege):
        set_prices(conn, SMALL, tenant=tenant)

    assert found == [SMALL_COST]
    assert seen == [(None,)]


@pytest.mark.parametrize("field", ["price_id", "computed_cost_usd"])
def test_no_record_says_what_is_computed(
    conn: Conn, tenant: UUID, store: Store, field: str
) -> None:
    set_prices(conn, SMALL)
    if store is by_json:
        answer = ingest(conn, tenant, [call(**{field: 1})])
        rejected = [item["reason"] for item in answer["rejected"]]
    else:
        rejected = [r.reason for r in storing.store(conn, tenant, [call(**{field: 1})]).rejected]

    assert rejected == [f"{field}: unknown field of a span"]


# later reports, repetitions, and prices that change


def test_a_repetition_after_a_change_of_price_changes_nothing(
    conn: Conn, tenant: UUID, store: Store
) -> None:
    calls = [call(1), call(2, cost_usd=1), call(3, request_model="new")]
    set_prices(conn, SMALL)
    store(conn, tenant, calls)
    before = conn.execute("select * from tracedb.llm_spans order by span_id").fetchall()
    set_prices(conn, entry(input=7, output=7), entry("new", input=7, output=7))

    again = store(conn, tenant, calls)

    assert again == (0, 0, 3)
    assert conn.execute("select * from tracedb.llm_spans order by span_id").fetchall() == before


def test_a_later_report_is_priced_anew(conn: Conn, tenant: UUID, store: Store) -> None:
    set_prices(conn, SMALL)
    store(conn, tenant, [call(ended_at=None, output_tokens=None)])
    running = counted(conn, tenant)
    set_prices(conn, entry(input=1, output=1))

    merged = store(conn, tenant, [call()])

    assert running == [None]
    assert merged == (0, 1, 0)
    assert counted(conn, tenant) == [Decimal("0.0011")]


def test_an_adjustment_is_of_one_report(conn: Conn, tenant: UUID, store: Store) -> None:
    store(conn, tenant, [call(ended_at=None)])
    set_prices(conn, SMALL)
    adjusted = reprice(conn, tenant, dry_run=False)
    running = counted(conn, tenant)
    conn.commit()

    store(conn, tenant, [call(input_tokens=2000)])

    assert adjusted["adjusted"] == 1
    assert running == [SMALL_COST]
    assert counted(conn, tenant) == [Decimal("0.00036")]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_both_ways_in_price_alike(conn: Conn, data: st.DataObject) -> None:
    models = st.sampled_from(["small", "large", "other", None])
    tokens = st.one_of(st.none(), st.integers(0, 400_000))
    calls = [
        span(
            number,
            trace_id=trace_id(when=NOON),
            operation_type=data.draw(st.sampled_from(["llm", "embedding", "tool"])),
            provider=data.draw(st.sampled_from(["openai", "azure", None])),
            request_model=data.draw(models),
            response_model=data.draw(models),
            **{
                name: data.draw(tokens)
                for name in (
                    *("input_tokens", "output_tokens", "cache_read_tokens"),
                    *("cache_write_tokens", "reasoning_tokens"),
                )
            },
        )
        for number in range(1, data.draw(st.integers(1, 5)) + 1)
    ]
    usd = st.one_of(st.none(), st.decimals(0, 100, places=4))
    found = []
    with conn.transaction(force_rollback=True):
        tenant = uuid4()
        set_prices(
            conn,
            *(
                entry(
                    model,
                    provider=provider,
                    tiers=[
                        {
                            "min_input_tokens": least,
                            **{
                                f"{name}_usd_per_mtok": data.draw(usd)
                                for name in ("input", "cache_read", "cache_write", "output")
                            },
                        }
                        for least in (0, 200_001)
                    ],
                )
                for model, provider in (("small", "openai"), ("small", None), ("large", "openai"))
            ),
        )
        for store in (by_rows, by_json):
            with conn.transaction(force_rollback=True):
                store(conn, tenant, calls)
                found.append(
                    conn.execute(
                        "select span_id, price_id, computed_cost_usd from tracedb.llm_spans"
                        " order by span_id"
                    ).fetchall()
                )

    assert found[0] == found[1]
    assert len(found[0]) == len(calls)


# totals


def test_totals_count_what_was_computed(conn: Conn, tenant: UUID, store: Store) -> None:
    set_prices(conn, SMALL)
    store(
        conn,
        tenant,
        [
            trace(ended_at=at(200), agent_id="bot"),
            call(1),
            call(2, cost_usd="0.5"),
            call(3, request_model="unheard-of"),
        ],
    )

    row = conn.execute(
        "select cost_usd, unpriced_count from tracedb.trace_summary where tenant_id = %s", [tenant]
    ).fetchone()
    tree = conn.execute(
        "select sum(cost_usd) from tracedb.trace_tree(%s, %s)", [trace_id(), tenant]
    ).fetchone()

    assert row == (Decimal("0.50021"), 1)
    assert tree == (Decimal("0.50021"),)


def test_usage_without_a_price_is_listed(conn: Conn, tenant: UUID) -> None:
    set_prices(conn, SMALL)
    by_json(
        conn,
        tenant,
        [
            call(1),
            call(2, request_model="x", response_model="x-2", cache_read_tokens=10),
            call(3, request_model="x", response_model="x-2", started_at=at(50)),
            call(4, request_model="x", input_tokens=None, output_tokens=None),
            call(5, request_model="x", cost_usd=1),
            call(6, request_model="x", operation_type="agent"),
        ],
    )

    found = conn.execute(
        "select provider, model, call_count, call_count_without_usage, input_tokens,"
        " cache_read_tokens, output_tokens, last_started_at - first_started_at"
        " from tracedb.unpriced_usage where tenant_id = %s order by model",
        [tenant],
    ).fetchall()

    assert [row[:7] for row in found] == [
        ("openai", "x", 1, 1, None, None, None),
        ("openai", "x-2", 2, 0, 2000, 10, 200),
    ]
    assert found[1][7].total_seconds() == 0.05


def test_reported_costs_stay_as_they_are(conn: Conn, tenant: UUID, store: Store) -> None:
    reported = [call(n, cost_usd=f"0.{n}") for n in range(1, 4)]
    store(conn, tenant, reported)
    set_prices(conn, SMALL)

    answer = reprice(conn, tenant, dry_run=False)

    assert (answer["examined"], answer["adjusted"]) == (0, 0)
    assert counted(conn, tenant) == [Decimal("0.1"), Decimal("0.2"), Decimal("0.3")]
