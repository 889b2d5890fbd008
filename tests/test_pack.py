"""What a recording call makes of a record: JSON, without secrets, within caps, in bounded time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracedb.pack
from records import counts, ingest, one_of_each, span
from tracedb.errors import InvalidInput
from tracedb.pack import CUT, Limits, pack
from tracedb.records import as_json
from tracedb.redaction import is_secret_name, may_hold_secret

SMALL = Limits(value_bytes=1024, record_bytes=4096)
# 100 levels may each say that they were cut
MARKERS = 10_000


def packed(record: Any, limits: Limits | None = None) -> Any:
    return json.loads(pack(record, limits or Limits()).text)


@pytest.mark.parametrize(
    "record",
    [
        *one_of_each(),
        {
            "started_at": datetime(2026, 1, 1, tzinfo=UTC),
            "trace_id": UUID(int=1),
            "cost_usd": Decimal("0.10000000000000000001"),
            "span_id": b"\0\1\2\3\4\5\6\7",
            "tags": {"b", "a"},
            "doc_sources": ("x", "y\0\ud800"),
            "attributes": {1: None, "n": [True, 10**300, 1e300]},
        },
    ],
    ids=lambda record: record.get("type", "values"),
)
def test_a_record_without_secrets_is_written_as_ever(record: dict[str, Any]) -> None:
    assert json.loads(pack(record, Limits()).text) == json.loads(as_json(record))
    # the slow way as well
    assert packed({"note": "password=x", **record}) == {
        "note": "password=[redacted]",
        **json.loads(as_json(record)),
    }


def test_what_changes_later_changes_nothing() -> None:
    record = span(attributes={"list": [1]})
    before = deepcopy(record)

    text = pack(record, Limits()).text
    record["attributes"]["list"].append(2)

    assert json.loads(text) == before


SECRET = "sk-marker0123456789abcdef"


@pytest.mark.parametrize(
    ("value", "redacted"),
    [
        ({"api_key": "marker"}, {"api_key": "[redacted]"}),
        ({"password": 12345}, {"password": "[redacted]"}),
        ({"credentials": {"user": "marker"}}, {"credentials": "[redacted]"}),
        (
            {"password": None, "token": True, "a": ["x"]},
            {"password": None, "token": True, "a": ["x"]},
        ),
        (
            [["Authorization", "marker"], ["Host", "h"]],
            [["Authorization", "[redacted]"], ["Host", "h"]],
        ),
        ([(b"cookie", b"marker")], [[b"cookie".hex(), "[redacted]"]]),
        (
            [{"name": "Set-Cookie", "value": "marker"}, {"name": "Host", "value": "h"}],
            [{"name": "Set-Cookie", "value": "[redacted]"}, {"name": "Host", "value": "h"}],
        ),
        (
            {"key": "x-api-key", "value": {"stringValue": "marker"}},
            {"key": "x-api-key", "value": "[redacted]"},
        ),
        ({SECRET: 1}, {"sk-[redacted]": 1}),
        (b"password=marker", "[redacted]"),
        (f"\n{SECRET}\n", "\nsk-[redacted]\n"),
        ('{"password": "marker", "city": "Rome"}', '{"password": "[redacted]", "city": "Rome"}'),
        (
            '{"city":  "Rome", "token_count": 5, "x": ":"}',
            '{"city":  "Rome", "token_count": 5, "x": ":"}',
        ),
        ('{"p\\u0061ssword": "marker"}', '{"password": "[redacted]"}'),
        (
            '{"password": "marker", "password": null}',
            '{"password": "[redacted]", "password": null}',
        ),
        (
            json.dumps(json.dumps({"a": json.dumps({"secret": {"b": "marker"}})})),
            json.dumps(json.dumps({"a": json.dumps({"secret": "[redacted]"})})),
        ),
    ],
)
def test_a_secret_is_replaced_wherever_it_is(value: Any, redacted: Any) -> None:
    assert packed(span(attributes={"a": [value]}, input=value)) == json.loads(
        as_json(span(attributes={"a": [redacted]}, input=redacted))
    )


def test_redaction_can_be_switched_off() -> None:
    record = span(attributes={"password": "x", "text": SECRET})

    assert json.loads(pack(record, Limits(), redact_defaults=False).text) == record


def test_a_text_is_cut_where_its_bytes_end() -> None:
    record = packed(span(output="é" * 1000, name="n" * 1024), SMALL)

    assert record["output"] == "é" * 512 + "...[cut by tracedb: 1024 of 2000 bytes]"
    assert record["name"] == "n" * 1024
    nul = packed(span(output="\0" * 400), SMALL)["output"]
    assert nul == "\ufffd" * 341 + "...[cut by tracedb: 1023 of 1200 bytes]"


def test_a_secret_is_not_cut_in_two() -> None:
    text = "x" * 1010 + " " + SECRET

    assert packed(span(output=text), SMALL)["output"].startswith("x" * 1010 + " sk-[redacted")


def test_lists_and_objects_keep_their_first_entries() -> None:
    result = pack(
        span(input=list(range(10**6)), attributes={str(n): n for n in range(10**6)}), Limits()
    )

    record = json.loads(result.text)
    assert result.cut == 2
    assert record["input"][:3] == [0, 1, 2]
    assert record["input"][-1][CUT] == (
        f"...[cut by tracedb: {len(record['input']) - 1} of 1000000 entries]"
    )
    assert "of 1000000 entries" in record["attributes"][CUT]


def test_large_fields_do_not_crowd_out_small_ones() -> None:
    large = {f"large{n}": ["x" * 1000] for n in range(20)}

    record = packed({**large, **span()}, SMALL)

    assert {name: record[name] for name in span()} == span()
    assert set(record) == set(large) | set(span())


class Unspeakable:
    def __str__(self) -> str:
        raise ZeroDivisionError("marker")

    __repr__ = __str__


class Endless(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return (str(n) for n in iter(int, 1))

    def __len__(self) -> int:
        return 2


class Odd(str):
    def __len__(self) -> int:
        raise ZeroDivisionError("marker")

    def __getitem__(self, key: Any) -> str:
        raise ZeroDivisionError("marker")


def deep() -> Any:
    value: Any = None
    for _ in range(100_000):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value += [value] * 1000
    return value


HOSTILE: dict[str, tuple[Callable[[], Any], str | None]] = {
    "2 GB of text": (lambda: "x" * 2**31, None),
    "1 GB of bytes": (lambda: bytes(2**30), None),
    "a million keys": (lambda: {str(n): n for n in range(10**6)}, None),
    "a million texts": (lambda: [str(n) for n in range(10**6)], None),
    "a million numbers": (lambda: [1.5] * 10**6, None),
    "a large set": (lambda: set(range(10**5)), None),
    "an endless mapping": (Endless, None),
    "a long key": (lambda: {"k" * 10**8: 1}, None),
    "nested 100,000 deep": (deep, "input: nested less than 100 levels deep"),
    "a wide cycle": (cycle, "input: nested less than 100 levels deep"),
    "an object": (Unspeakable, "input: a Unspeakable is not JSON"),
    "objects in a set": (
        lambda: {Unspeakable(), Unspeakable()},
        "record: cannot be read (ZeroDivisionError)",
    ),
    "an odd text": (lambda: Odd("abc"), None),
    "an endless number": (lambda: 10**5000, "input: numbers within 1e308"),
    "NaN": (lambda: [float("nan")], "input[0]: must be a finite number, not nan"),
    "a naive time": (
        lambda: datetime(2026, 1, 1),
        "input: must be an aware datetime (with its time zone)",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_value_is_cut_or_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is bounded by the number of values and characters that are looked at."""
    make, reason = HOSTILE[case]
    value = make()
    looked_at = 0

    def counted(*args: Any) -> Any:
        nonlocal looked_at
        looked_at += 1
        return original(*args)

    original = tracedb.pack._Copy._value
    monkeypatch.setattr(tracedb.pack._Copy, "_value", counted)

    if reason is None:
        result = pack(span(input=value), Limits())
        assert len(result.text) < 2**21
        assert result.cut == (0 if case == "an odd text" else 1)
        assert json.loads(result.text)["span_id"] == span()["span_id"]
    else:
        with pytest.raises(InvalidInput) as error:
            pack(span(input=value), Limits())
        assert str(error.value) == reason
    assert looked_at <= tracedb.pack.MAX_VALUES + 10


@pytest.mark.parametrize("record", [5, None, "x", [("type", "span")], {n: n for n in range(2000)}])
def test_what_is_no_record_is_refused(record: Any) -> None:
    with pytest.raises(InvalidInput, match="record: "):
        pack(record, Limits())


def test_limits_are_checked() -> None:
    with pytest.raises(InvalidInput, match="value_bytes: at least 1024"):
        Limits(value_bytes=10)


def test_a_reason_names_no_secret() -> None:
    with pytest.raises(InvalidInput) as error:
        pack(span(attributes={SECRET: float("nan")}), Limits())

    assert str(error.value) == "attributes.sk-[redacted]: must be a finite number, not nan"


# hypothesis knows the words that the package has
def is_plain(text: str) -> bool:
    return not may_hold_secret(text) and not is_secret_name(text)


KEYS = st.text().filter(is_plain)
TEXTS = KEYS | st.text().map(lambda text: text * 300).filter(is_plain)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=20,
)
MARKER = "marker0123456789abcdef"
# ways to hide the marker next to a value that is otherwise arbitrary
PLANTS: list[Callable[[Any], Any]] = [
    lambda value: {"other": value, "apiKey": MARKER},
    lambda value: {"password": [MARKER, value]},
    lambda value: [value, f"\nsk-{MARKER}\n"],
    lambda value: [value, ["Cookie", MARKER], MARKER[::-1]],
    lambda value: {"text": f"{value}\npassword={MARKER}\n{value}"},
    lambda value: {"text": f"{value}\npostgres://u:{MARKER}@h/d {value}"},
    lambda value: json.dumps([{"token": MARKER}, value], default=str),
    lambda value: json.dumps({"x": json.dumps([value, f"secret: {MARKER}"], default=str)}),
    lambda value: f"data: {json.dumps({'secret': MARKER, 'other': value}, default=str)}\n\n",
    lambda value: [value, f"password: {MARKER}".encode()],
]
PLANTED = st.recursive(
    st.builds(lambda plant, value: plant(value), st.sampled_from(PLANTS), VALUES),
    lambda inner: (
        st.builds(lambda value, other: [value, other], inner, VALUES)
        | st.builds(lambda key, value: {key: value}, st.text(), inner)
    ),
    max_leaves=3,
)


def test_whatever_comes_is_storable_within_the_caps_and_without_secrets(
    conn: psycopg.Connection[Any],
) -> None:
    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(KEYS, VALUES, max_size=4), PLANTED, st.sampled_from([SMALL, Limits()]))
    def holds(fields: dict[str, Any], value: Any, limits: Limits) -> None:
        record = {**fields, "input": value}
        before = deepcopy(record)

        result = pack(record, limits)

        assert record == before
        assert MARKER not in result.text
        assert "\n" not in result.text
        assert len(result.text.encode()) <= limits.record_bytes + MARKERS
        for text in texts(json.loads(result.text)):
            assert len(text.encode()) <= limits.value_bytes + 100
        conn.execute("select %s::jsonb", [result.text])

    holds()


def texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for key, item in value.items():
                yield key
                yield from texts(item)
        case list():
            for item in value:
                yield from texts(item)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_is_no_secret_and_small_stays_equal(record: dict[str, Any]) -> None:
    expected = as_json(record)

    assert packed(record) == json.loads(expected)
    assert packed({"note": "password=x", **record}) == {
        "note": "password=[redacted]",
        **json.loads(expected),
    }


def test_what_was_cut_is_still_ingested(conn: psycopg.Connection[Any]) -> None:
    records = [
        span(1, input="x" * 10**7, attributes={str(n): n for n in range(10**5)}),
        span(2, events=[{"n": n} for n in range(10**5)]),
    ]

    answer = ingest(conn, uuid4(), [json.loads(pack(item, Limits()).text) for item in records])

    assert counts(answer) == (2, 0, 0, 0)
