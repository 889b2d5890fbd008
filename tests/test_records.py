"""Records on their way to the database: what is mended, what is refused, how they are batched."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgvector import Vector

from tracedb import records
from tracedb.errors import InvalidInput
from tracedb.records import as_json, batches

CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE

DEEP: Any = None
for _ in range(100_000):
    DEEP = [DEEP]


def test_python_values_are_written_as_the_database_reads_them() -> None:
    text = as_json(
        {
            "trace_id": UUID(int=1),
            "started_at": datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2))),
            "cost_usd": Decimal("0.10000000000000000000001"),
            "span_id": b"\0\1\2\3\4\5\6\7",
            "tags": {"b", "a"},
            "doc_sources": ("x", "y"),
            "request_embedding": Vector([1, 2]),
            "name": "naïve 😀",
        }
    )

    assert json.loads(text) == {
        "trace_id": "00000000-0000-0000-0000-000000000001",
        "started_at": "2026-01-02T03:00:00+02:00",
        "cost_usd": "0.10000000000000000000001",
        "span_id": "0001020304050607",
        "tags": ["a", "b"],
        "doc_sources": ["x", "y"],
        "request_embedding": [1.0, 2.0],
        "name": "naïve 😀",
    }


@pytest.mark.parametrize(
    ("raw", "mended"),
    [
        ("a\0b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        ("\\u0000", "\\u0000"),
        ("plain", "plain"),
    ],
)
def test_text_that_postgresql_cannot_store_is_mended(raw: str, mended: str) -> None:
    assert json.loads(as_json({"name": raw, "attributes": {raw: [raw]}})) == {
        "name": mended,
        "attributes": {mended: [mended]},
    }


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"cost_usd": float("nan")}, "cost_usd: must be a finite number, not nan"),
        (
            {"attributes": {"a": [1, float("inf")]}},
            "attributes.a[1]: must be a finite number, not inf",
        ),
        (
            {"started_at": datetime(2026, 1, 1)},
            "started_at: must be an aware datetime (with its time zone)",
        ),
        ({"attributes": {"f": open}}, "attributes.f: a builtin_function_or_method is not JSON"),
        ({"attributes": {(1, 2): 3}}, "attributes: keys must be text, not tuple"),
        ({"attributes": {"n": 10**5000}}, "attributes.n: numbers within 1e308"),
        ({"context": CYCLE}, "context: nested less than 100 levels deep"),
        ({"attributes": DEEP}, "attributes: nested less than 100 levels deep"),
        ({"input": "x" * 100_000_000}, "record: at most 20 MiB as JSON"),
    ],
    ids=[
        "nan",
        "infinity",
        "naive",
        "function",
        "key",
        "number",
        "cycle",
        "depth",
        "size",
    ],
)
def test_what_cannot_be_sent_is_refused_by_field_and_rule(
    record: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        as_json(record)

    assert str(error.value) == reason


def test_a_refused_record_keeps_its_place_and_costs_its_neighbours_nothing() -> None:
    good = {"type": "trace"}

    (batch,) = batches([good, {"cost_usd": float("nan")}, good])

    assert json.loads(batch.json) == [good, good]
    assert batch.positions == (0, 2)
    assert [(item.index, item.reason) for item in batch.rejected] == [
        (1, "cost_usd: must be a finite number, not nan")
    ]


def test_batches_are_cut_by_number_and_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 3)
    monkeypatch.setattr(records, "MAX_BATCH_BYTES", 100)
    small, large = {"n": 1}, {"n": "x" * 90}

    cut = [json.loads(batch.json) for batch in batches([small] * 4 + [large, large])]

    assert cut == [[small] * 3, [small], [large], [large]]
    assert list(batches([])) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_whatever_comes_becomes_json_or_is_refused(record: dict[str, Any]) -> None:
    try:
        text = as_json(record)
    except InvalidInput:
        return
    text.encode()
    assert "\\u0000" not in text.replace("\\\\", "")
    json.loads(text, parse_constant=pytest.fail)


def test_times_keep_their_offset() -> None:
    assert json.loads(as_json({"started_at": datetime(2026, 1, 1, tzinfo=UTC)})) == {
        "started_at": "2026-01-01T00:00:00+00:00"
    }
