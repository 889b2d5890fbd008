"""The price list: taken over from genai-prices once, set by hand, and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from genai_prices import Usage, data_snapshot
from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import (
    ModelPrice as ListedPrice,
)
from genai_prices.types import (
    Tier as ListedTier,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clones import clone
from costing import Conn, call, counted, entry, set_prices
from records import NOON, ingest
from servers import Server
from tracedb import ModelName, money, prices, run
from tracedb.cli import main

TENANT = UUID("00000000-0000-4000-8000-0000000000c1")


def model(id: str, *listed: ConditionalPrice | ListedPrice) -> ModelInfo:
    only = listed[0]
    given = only if isinstance(only, ListedPrice) else list(listed)
    return ModelInfo(id=id, match=ClauseEquals(equals=id), prices=given)  # type: ignore[arg-type]


def usd(**classes: str | TieredPrices) -> ListedPrice:
    return ListedPrice(
        **{key: Decimal(v) if isinstance(v, str) else v for key, v in classes.items()}
    )


def since(day: date, price: ListedPrice) -> ConditionalPrice:
    return ConditionalPrice(StartDateConstraint(day), prices=price)


def a_list(*models: ModelInfo) -> DataSnapshot:
    maker = Provider(
        id="maker",
        name="Maker",
        api_pattern="maker",
        model_match=ClauseEquals(equals="m"),
        models=list(models),
    )
    return DataSnapshot(providers=[maker], from_auto_update=False)


# our formula against the package's own arithmetic


@pytest.fixture(scope="module")
def synced(server: Server, template: str) -> Iterator[Conn]:
    """A database with the whole list in it."""
    with clone(server, template) as dsn:
        assert main(["prices", "sync", "--dsn", dsn]) == 0
        with psycopg.connect(dsn, autocommit=True) as conn:
            yield conn


LISTED = [
    (provider, model)
    for provider in data_snapshot.get_snapshot().providers
    for model in provider.models
    if prices.timeline(model)
]
TOKENS = st.one_of(st.integers(0, 2_000), st.integers(0, 3_000_000))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_a_call_costs_what_the_package_says(synced: Conn, data: st.DataObject) -> None:
    provider, model = data.draw(st.sampled_from(LISTED), label="model")
    at = data.draw(st.datetimes(datetime(2023, 1, 1), datetime(2027, 1, 1))).replace(tzinfo=UTC)
    cache_read, cache_write = data.draw(TOKENS), data.draw(TOKENS)
    reasoning = data.draw(TOKENS)
    # what is in a class is also in the one around it
    input_tokens = cache_read + cache_write + data.draw(TOKENS)
    output_tokens = reasoning + data.draw(TOKENS)

    row = synced.execute(
        """
        select tracedb.price_of_tokens(%(i)s, %(cr)s, %(cw)s, %(o)s, %(r)s, p.input_usd_per_mtok,
            p.cache_read_usd_per_mtok, p.cache_write_usd_per_mtok, p.output_usd_per_mtok,
            p.reasoning_usd_per_mtok, p.request_usd), p.output_usd_per_mtok
        from tracedb.prices_of(
            array[%(provider)s], array[%(model)s], array[null], null) as p
        where p.valid_from <= %(at)s and %(at)s < p.valid_until
            and p.min_input_tokens <= %(i)s and %(i)s < p.until_input_tokens
        """,
        {
            "provider": provider.id,
            "model": model.id,
            "at": at,
            "i": input_tokens,
            "cr": cache_read,
            "cw": cache_write,
            "o": output_tokens,
            "r": reasoning,
        },
    ).fetchone()
    usage = Usage(
        input_tokens=input_tokens,
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_tokens=output_tokens,
        output_reasoning_tokens=reasoning,
    )
    theirs = model.calc_price(usage, provider, genai_request_timestamp=at)

    assert row is not None
    if row[0] is None:
        # the package takes a class without a price to be free, we take it to be unknown
        listed = theirs.model_price
        assert (output_tokens and listed.output_mtok is None) or (
            input_tokens and listed.input_mtok is None
        )
    else:
        assert row[0] == theirs.total_price


def test_a_second_sync_writes_nothing(synced: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    dsn = synced.info.dsn
    before = synced.execute("select count(*), max(price_id) from tracedb.model_prices").fetchone()

    assert main(["prices", "sync", "--dsn", dsn, "--json"]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["added"] == 0
    assert shown["models"] == len(LISTED) > 1000
    after = synced.execute("select count(*), max(price_id) from tracedb.model_prices").fetchone()
    assert after == before


# what of the list is taken over


def synced_with(conn: Conn, listed: DataSnapshot, *names: ModelName) -> prices.Sync:
    """Take it over, and see that nothing is left to do."""
    known = run(conn, money.model_prices())
    sync = prices.plan(listed, known, names)
    set_prices(conn, *sync.entries)
    known = run(conn, money.model_prices())
    assert prices.plan(listed, known, names).entries == []
    return sync


def input_prices(conn: Conn, model: str, *days: date) -> list[Decimal | None]:
    found = []
    for day in days:
        row = conn.execute(
            "select input_usd_per_mtok"
            " from tracedb.prices_of(array['maker'], array[%(model)s], array[null], null)"
            " where valid_from <= %(at)s and %(at)s < valid_until and min_input_tokens = 0",
            {"model": model, "at": datetime.combine(day, time(), UTC)},
        ).fetchone()
        found.append(row and row[0])
    return found


def test_prices_by_date_and_by_size(conn: Conn) -> None:
    tiered = TieredPrices(base=Decimal(3), tiers=[ListedTier(start=200_000, price=Decimal(6))])
    synced_with(
        conn,
        a_list(
            model(
                "m",
                ConditionalPrice(prices=usd(input_mtok="1", requests_kcount="5")),
                since(date(2026, 5, 1), usd(input_mtok=tiered, output_mtok="2")),
            )
        ),
    )

    rows = conn.execute(
        "select valid_from, min_input_tokens, input_usd_per_mtok, output_usd_per_mtok, request_usd"
        " from tracedb.model_prices order by 1, 2"
    ).fetchall()

    may = datetime(2026, 5, 1, tzinfo=UTC)
    assert rows == [
        (prices.EPOCH, 0, 1, None, Decimal("0.005")),
        (may, 0, 3, 2, 0),
        (may, 200_001, 6, 2, 0),
    ]


def test_what_our_classes_cannot_tell_is_left_out(conn: Conn) -> None:
    peak = TimeOfDateConstraint(start_time=time(1), end_time=time(2))
    sync = synced_with(
        conn,
        a_list(
            model("free", usd()),
            model("speech", usd(audio_hours="1")),
            model(
                "by the clock",
                ConditionalPrice(prices=usd(input_mtok="1")),
                ConditionalPrice(peak, prices=usd(input_mtok="2")),
            ),
            model("m", usd(input_mtok="1")),
        ),
        ModelName("maker", "speech", None),
    )

    assert (sync.models, sync.skipped) == (1, 3)
    assert sync.unknown == [ModelName("maker", "speech", None)]


def test_a_changed_list_is_taken_over_whole(conn: Conn) -> None:
    """New dates, dates that went, and prices that were corrected, also those of the past."""
    march, june, july = date(2026, 3, 1), date(2026, 6, 1), date(2026, 7, 1)
    days = (date(2026, 1, 1), march, june, july)

    def listed(first: str, **by_day: str) -> DataSnapshot:
        dates = {"march": march, "june": june, "july": july}
        return a_list(
            model(
                "m",
                ConditionalPrice(prices=usd(input_mtok=first)),
                *(since(dates[day], usd(input_mtok=price)) for day, price in by_day.items()),
            )
        )

    for changed, expected, added in (
        (listed("1"), [1, 1, 1, 1], 1),
        (listed("1", june="2"), [1, 1, 2, 2], 1),
        (listed("1", march="3", june="2"), [1, 3, 2, 2], 1),
        (listed("1", march="3", june="4"), [1, 3, 4, 4], 1),
        (listed("5", march="3", june="4", july="6"), [5, 3, 4, 6], 2),
        (listed("5"), [5, 5, 5, 5], 3),
    ):
        sync = synced_with(conn, changed)
        assert input_prices(conn, "m", *days) == expected
        assert len(sync.entries) == added


def test_prices_set_by_hand_are_left_alone(conn: Conn) -> None:
    set_prices(conn, entry("m", provider="maker", input=9))

    sync = synced_with(conn, a_list(model("m", usd(input_mtok="1"))))

    assert (sync.entries, sync.kept) == ([], 1)


def test_names_of_calls_are_resolved_by_the_package(conn: Conn) -> None:
    """The model that answered before the one asked for; a later sync keeps them up to date."""
    names = [
        ModelName("maker", "asked", "M"),
        ModelName("maker", "m", "unheard-of"),
        ModelName(None, "m", None),
        ModelName("nobody", "m", None),
    ]
    sync = synced_with(conn, a_list(model("m", usd(input_mtok="1"))), *names)
    later = synced_with(conn, a_list(model("m", usd(input_mtok="2"))))

    assert sync.unknown == [names[3]]
    assert [(e["provider"], e["model"]) for e in sync.entries] == [
        ("", "m"),
        ("maker", "M"),
        ("maker", "m"),
    ]
    assert len(later.entries) == 3
    found = conn.execute(
        "select distinct on (provider, model) input_usd_per_mtok from tracedb.model_prices"
        " order by provider, model, revision desc"
    ).fetchall()
    assert found == [(2,), (2,), (2,)]


# set_prices


def test_the_same_price_twice_is_one(conn: Conn) -> None:
    assert set_prices(conn, entry(input="0.10"), entry("large", input=1)) == 2
    assert set_prices(conn, entry(input="0.1")) == 0
    assert set_prices(conn, entry(input="0.2")) == 1
    assert set_prices(conn, entry(input="0.1")) == 1
    assert set_prices(conn, entry(input="0.1"), tenant=TENANT) == 1
    found = conn.execute(
        "select revision, input_usd_per_mtok from tracedb.model_prices"
        " where model = 'small' and tenant_id is null order by 1"
    ).fetchall()
    assert found == [(1, Decimal("0.1")), (2, Decimal("0.2")), (3, Decimal("0.1"))]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1, "prices: must be objects"),
        ({}, "model: required"),
        (entry(valid_from=None), "valid_from: required"),
        (entry(source=None), "source: required"),
        (entry(tiers=[]), "tiers: must be an array of at least one"),
        (entry(input=-1), "price_is_money"),
        (entry(input="NaN"), "price_is_money"),
        (entry(valid_from="1969-01-01T00:00:00Z"), "price_time_in_range"),
    ],
)
def test_what_is_no_price(conn: Conn, given: Any, message: str) -> None:
    with pytest.raises(psycopg.Error, match=message):
        set_prices(conn, given)


# the command line


def test_the_way_from_unpriced_to_priced(
    database: str, conn: Conn, capsys: pytest.CaptureFixture[str]
) -> None:
    tenant = uuid4()
    ingest(conn, tenant, [call(1, request_model="gpt-4o-mini"), call(2, request_model="house")])
    conn.commit()

    def shown(*args: str) -> Any:
        assert main([*args, "--dsn", database, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    unpriced = shown("prices", "unpriced")
    dry = shown("prices", "sync", "--dry-run")
    assert shown("prices", "list") == []
    synced = shown("prices", "sync")
    house = ("prices", "set", "house", "--from", "2026-01-01", "--input", "1", "--output", "2")
    not_set = shown(*house, "--dry-run")
    first = shown(*house)
    again = shown(*house)
    own = shown(*house[:-1], "3", "--tenant", str(tenant))
    listed = shown("prices", "list", "--model", "house")
    would = shown("reprice", "--dry-run")
    done = shown("reprice", "--tenant", str(tenant))
    left = shown("prices", "unpriced")

    assert [(row["model"], row["call_count"]) for row in unpriced] == [
        ("gpt-4o-mini", 1),
        ("house", 1),
    ]
    assert dry["added"] == synced["added"] > 1000
    assert synced["unknown"] == [
        {"provider": "openai", "request_model": "house", "response_model": None}
    ]
    assert [answer["added"] for answer in (not_set, first, again, own)] == [0, 1, 0, 1]
    assert [row["output_usd_per_mtok"] for row in listed] == ["2"]
    assert would[0] | {"dry_run": False} == done[0]
    assert done[0]["adjusted"] == 2
    assert left == []
    # 1000 in, 100 out: the list's price, and the tenant's own
    assert counted(conn, tenant) == [Decimal("0.00021"), Decimal("0.0013")]


def test_what_people_read(database: str, conn: Conn, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(conn, TENANT, [call(started_at=NOON.isoformat())])
    conn.commit()

    def shown(*args: str) -> str:
        assert main([*args, "--dsn", database]) == 0
        return capsys.readouterr().out

    assert shown("prices", "list") == "none\n"
    assert shown("prices", "unpriced") == (
        f"{TENANT}  openai  small: 1 calls (0 without tokens), 1,000 tokens in, 100 out,"
        " 2026-03-04 to 2026-03-04\n"
    )
    assert shown("prices", "set", "small", "--from", "2026-01-01", "--input", "0.50") == "set\n"
    assert shown("prices", "list") == "any  small  2026-01-01: input 0.5  [set by hand]\n"
    shown("prices", "set", "small", "--from", "2026-01-01", "--input", "1", "--output", "5")
    assert shown("reprice", "--since", "2026-03-01") == (
        f"{TENANT}: 1 of 1 calls adjusted, +0.001500 USD\n    openai  small: +0.001500 USD\n"
    )
    assert shown("prices", "unpriced") == "every call has a known cost\n"


def test_without_the_package_it_says_how_to_get_it(
    database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "genai_prices.data_snapshot", None)

    assert main(["prices", "sync", "--dsn", database]) == 1
    assert "pip install 'tracedb[prices]'" in capsys.readouterr().err


def test_a_price_of_tomorrow_waits(conn: Conn) -> None:
    tomorrow = NOON + timedelta(days=1)
    set_prices(conn, entry(input=1, output=0), entry(input=5, output=0, valid_from=str(tomorrow)))

    ingest(
        conn,
        TENANT,
        [call(), call(2, started_at=tomorrow.isoformat(), ended_at=None, duration_us=1)],
    )

    assert counted(conn, TENANT) == [Decimal("0.001"), Decimal("0.005")]
