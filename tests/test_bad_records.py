"""What is wrong with a record is named, and costs its neighbours nothing."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from records import at, counts, ingest, one_of_each, span, stored, trace, trace_id
from servers import as_role

Conn = psycopg.Connection[Any]


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def value(conn: Conn, query: str, *args: Any) -> Any:
    row = conn.execute(query, args).fetchone()
    assert row is not None
    return row[0]


LONG = "x" * 1025
DEEP: Any = 1
for _ in range(101):
    DEEP = [DEEP]

BAD: dict[str, tuple[dict[str, Any] | Any, str]] = {
    "not an object": (5, "record: must be an object, not number"),
    "no type": ({"trace_id": trace_id()}, "type: must be one of trace, "),
    "unknown type": (span(type="sapn"), "type: must be one of trace, "),
    "unknown field": (span(agnet_id="x"), "agnet_id: unknown field of a span"),
    "another tenant": (span(tenant_id=str(uuid4())), "tenant_id: must be the tenant"),
    "no id": (span(trace_id=None), "trace_id: required (or external_id)"),
    "no span id": (span(span_id=None), "span_id: required"),
    "no time": (span(started_at=None), "started_at: required"),
    "malformed trace id": (span(trace_id="abc"), "trace_id: must be a UUID"),
    "malformed parent": (trace(parent_trace_id="abc"), "parent_trace_id: must be a UUID"),
    "malformed span id": (span(span_id="xyz"), "span_id: must be 16 hex digits"),
    "span id of zeros": (span(span_id="0" * 16), "span_id: must be 16 hex digits, not all 0"),
    "malformed pattern id": (
        one_of_each()[4] | {"pattern_id": "abc"},
        "pattern_id: invalid input syntax for type uuid",
    ),
    "naive time": (span(started_at="2026-03-04T12:00:00"), "started_at: must be an ISO 8601 time"),
    "word as time": (span(started_at="yesterday"), "started_at: must be an ISO 8601 time"),
    "infinite time": (span(ended_at="infinity"), "ended_at: must be an ISO 8601 time"),
    "month 13": (span(started_at="2026-13-04T12:00:00Z"), "started_at: date/time field value out"),
    "before 1970": (
        span(started_at="1969-12-31T23:59:59Z", external_id="e", trace_id=None),
        "at: must lie between 1970 and 2200",
    ),
    "after 2200": (
        trace(ended_at="2200-01-01T00:00:00Z"),
        "started_at, ended_at: must lie between 1970 and 2200",
    ),
    "year 9999": (
        trace(external_id="e", trace_id=None, started_at="9999-01-01T00:00:00Z"),
        "started_at, ended_at: must lie between 1970 and 2200",
    ),
    "end before start": (span(ended_at=at(-1)), "ended_at: must not be before started_at"),
    "end of what still runs": (
        span(status="running"),
        "ended_at, duration_us: must not be given while status is running",
    ),
    "negative duration": (span(duration_us=-1), "duration_us: must not be negative"),
    "negative tokens": (span(input_tokens=-1), "input_tokens, output_tokens, cache_read_tokens"),
    "tokens as text": (span(input_tokens="many"), "input_tokens: invalid input syntax for type"),
    "tokens in halves": (span(input_tokens=1.5), "input_tokens: invalid input syntax for type"),
    "too many tokens": (span(input_tokens=2**63), 'input_tokens: value "9223372036854775808" is'),
    "negative cost": (span(cost_usd=-0.1), "cost_usd: must be at least 0"),
    "NaN cost": (span(cost_usd="NaN"), "cost_usd: must be at least 0"),
    "infinite cost": (span(cost_usd="Infinity"), "cost_usd: must be at least 0"),
    "unknown status": (span(status="fine"), "status: must be running, ok, error"),
    "unknown operation": (span(operation_type="chat"), "operation_type: must be llm, embedding"),
    "long label": (trace(user_id=LONG), "external_id, session_id, user_id"),
    "long external id": (
        span(trace_id=None, external_id="x" * 1025),
        "external_id: 1 to 1024 bytes",
    ),
    "deep document": (span(attributes={"a": DEEP}), "attributes, events, links: nested less"),
    "huge number": (span(attributes={"a": 10**400}), "attributes, events, links: nested less"),
    "list as context": (trace(context=[1]), "context: must be an object"),
    "endless": (trace(duration_ms=10**18), "duration_ms: must be less than 300 years"),
    "list as object": (span(attributes=[]), "attributes: must be an object"),
    "text as list": (trace(tags="x"), "tags: malformed array literal"),
    "word as flag": (trace(research_triggered="maybe"), "research_triggered: invalid input syntax"),
    "HTTP status 999": (one_of_each()[3] | {"status_code": 999}, "status_code: must be from 100"),
    "confidence over 1": (
        one_of_each()[4] | {"total_confidence": 1.5},
        "total_confidence: must be from 0 to 1",
    ),
    "impossible choice": (
        one_of_each()[4] | {"selection_probability": 0},
        "selection_probability: must be above 0",
    ),
    "malformed vector": (one_of_each()[4] | {"request_embedding": ["a"]}, "request_embedding: "),
    "unknown payload": (one_of_each()[5] | {"kind": "note"}, "kind: must be prompt, response"),
    "NUL": (span(name="a\0b"), "record: not storable as JSON: unsupported Unicode escape"),
    "lone surrogate": (span(name="\ud800"), "record: not storable as JSON: invalid input syntax"),
    "event without an id": (
        {
            **{"type": "agent_execution", "agent_id": "bot", "success": True},
            **{"event_id": None, "event_key": None, "occurred_at": at()},
        },
        "event_id: required (or event_key)",
    ),
    "large payload": (
        one_of_each()[5] | {"content": "x" * 16_777_217},
        "content: at most 16 MiB",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named_and_costs_its_neighbours_nothing(
    conn: Conn, tenant: UUID, case: str
) -> None:
    bad, reason = BAD[case]
    batch = [trace(), span(101), bad, span(102)]

    answer = ingest(conn, tenant, batch)

    assert counts(answer) == (3, 0, 0, 1)
    assert answer["rejected"][0]["index"] == 2
    assert reason in answer["rejected"][0]["reason"]
    rows = stored(conn, tenant)
    assert [row["span_id"][-2:] for row in rows["llm_spans"]] == ["65", "66"]
    assert len(rows["execution_traces"]) == 1
    assert value(conn, "select count(*) from tracedb.trace_ids where tenant_id = %s", tenant) == 0


def test_a_hundred_megabytes_are_refused_alone(conn: Conn, tenant: UUID) -> None:
    batch = [trace(), span(1, input="x" * 100_000_000), span(2)]

    answer = ingest(conn, tenant, batch)

    assert counts(answer) == (2, 0, 0, 1)
    assert answer["rejected"] == [{"index": 1, "reason": "record: at most 20 MiB as JSON"}]


def test_every_bad_record_of_a_batch_is_named(conn: Conn, tenant: UUID) -> None:
    small = {name: case for name, case in BAD.items() if name != "large payload"}
    batch = [record for bad, _ in small.values() for record in (bad, trace())]

    answer = ingest(conn, tenant, batch)

    assert [item["index"] for item in answer["rejected"]] == list(range(0, 2 * len(small), 2))
    for item, (_, reason) in zip(answer["rejected"], small.values(), strict=True):
        assert reason in item["reason"]
    assert counts(answer) == (1, 0, len(small) - 1, len(small))


def test_what_is_wrong_with_the_whole_batch_is_raised(conn: Conn, tenant: UUID) -> None:
    with as_role(conn, "tracedb_app", uuid4()), pytest.raises(psycopg.errors.InsufficientPrivilege):
        ingest(conn, tenant, one_of_each())
    with as_role(conn, "tracedb_reader", tenant), pytest.raises(psycopg.Error) as error:
        ingest(conn, tenant, one_of_each())
    assert error.value.sqlstate == "42501"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_whatever_comes_is_stored_and_readable_or_named(conn: Conn) -> None:
    fields = sorted({name for record in one_of_each() for name in record} - {"type"})

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        tenant = uuid4()
        record = data.draw(st.sampled_from(one_of_each()))
        wrong = data.draw(st.dictionaries(st.sampled_from(fields) | st.text(), JSON, max_size=3))

        answer = ingest(conn, tenant, [span(99), record | wrong, span(98)])

        assert sum(counts(answer)) == 3
        assert counts(answer)[0] >= 2
        for item in answer["rejected"]:
            assert item["index"] == 1
            assert ": " in item["reason"]
        for row in stored(conn, tenant)["execution_traces"]:
            conn.execute("select tracedb.get_trace(%s, %s)", [row["trace_id"], tenant]).fetchall()
            conn.execute(
                "select * from tracedb.trace_tree(%s, %s)", [row["trace_id"], tenant]
            ).fetchall()

    holds()
