"""The bulk path stores what tracedb.ingest stores, and gives the same answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from records import NOON, at, one_of_each, span, trace, trace_id
from servers import as_role
from test_bad_records import BAD
from tracedb import Receipt, connect_async, queries, storing
from tracedb.bulk import Layout
from tracedb.query import run
from tracedb.records import as_json, batches

Conn = psycopg.Connection[Any]
Records = Sequence[Any]

TENANT = UUID("7e7e7e7e-0000-4000-8000-000000000001")
TABLES = (
    *("execution_traces", "trace_ids", "agent_routing_decisions", "hook_executions"),
    *("endpoint_calls", "llm_spans", "trace_payloads", "platform_events"),
    *("tenant_cost_events", "agent_executions"),
)


def rows(conn: Conn) -> dict[str, list[Any]]:
    """Everything there is, less the times of arrival."""
    return {
        table: conn.execute(
            sql.SQL(
                "select (to_jsonb(t) - '{{created_at,updated_at}}'::text[])::text"
                " from tracedb.{} as t order by 1"
            ).format(sql.Identifier(table))
        ).fetchall()
        for table in TABLES
    }


def by_ingest(conn: Conn, batch: Records) -> Receipt:
    answers = (run(conn, queries.ingest(part), TENANT) for part in batches(batch))
    return sum(answers, Receipt())


def outcome(
    conn: Conn, given: Sequence[Records], store: Callable[[Conn, Records], Receipt]
) -> tuple[list[Receipt], dict[str, list[Any]]]:
    """What the answers are and what is stored, undone."""
    with conn.transaction(force_rollback=True):
        answers = [store(conn, batch) for batch in given]
        return answers, rows(conn)


def by_rows(conn: Conn, batch: Records) -> Receipt:
    return storing.store(conn, TENANT, batch)


@pytest.fixture
def layout(conn: Conn) -> Layout:
    found = run(conn, storing.bulk_layout())
    assert found is not None
    return found


def event(type: str = "platform_event", number: int = 1, **fields: Any) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "platform_event": {"event_type": "login", "event_category": "security"},
        "cost_event": {"cost_type": "llm", "service": "openai", "cost_usd": 0.0000015},
        "agent_execution": {"agent_id": "bot", "success": True},
    }
    return {
        "type": type,
        "event_id": trace_id(f"event {number}"),
        "occurred_at": at(),
        **own[type],
        **fields,
    }


PLAIN: dict[str, Records] = {
    "one of each": one_of_each()[:5],
    "a payload": one_of_each()[5:],
    "a document as payload": [span(input={"b": [1, 2.50], "a": None}, output=[])],
    "parts before their trace": [span(1, started_at=at(20)), span(2, started_at=at(10))],
    "a running trace": [trace(status="running", user_id="u", context={"a": 1}, tags=["b", "a"])],
    "no end": [trace(), span(ended_at=None)],
    "an end": [trace(ended_at=at(1234)), span(ended_at=at(3), started_at=at())],
    "a duration": [trace(duration_ms=1500), span(ended_at=None, duration_us=1)],
    "half a millisecond": [trace(ended_at="2026-03-04T12:00:00.000500Z")],
    "sets": [trace(tags=["z", "B", "a", "z"], doc_sources=["b", "ä", "a"])],
    "what says nothing": [trace(intent=[], tags=[], research_triggered=False, context={})],
    "an intent": [trace(intent={"b": 1, "a": [0.10, 1e-7]})],
    "null": [trace(intent=None, tags=None, prompt=None, status=None, tenant_id=None)],
    "its own tenant": [trace(tenant_id=str(TENANT).upper())],
    "spellings of an id": [trace(), span(trace_id=trace_id().replace("-", "").upper())],
    "times": [
        span(1, started_at="2026-03-04T14:00:00.5+02:00", ended_at=None),
        span(2, started_at="2026-03-04 12:00:00Z", ended_at="2026-03-04T12:00:00.123Z"),
    ],
    "costs": [
        span(n, cost_usd=cost)
        for n, cost in enumerate((0, 1, 0.1, 1e-7, 12345678.9, "0.10", "00012.5000"), start=1)
    ],
    "confidences": [one_of_each()[4] | {"total_confidence": 1, "trigger_confidence": 0.1}],
    "a vector": [one_of_each()[4] | {"request_embedding": [0.1, -2, 0.0023064255, 1e-5]}],
    "lists of names": [one_of_each()[2] | {"intelligence_functions": ["a,b", '"', "", "{}"]}],
    "events": [event(), event("cost_event"), event("agent_execution", trace_id=trace_id())],
    "keyed events": [
        event(event_id=None, event_key="order 7"),
        event("cost_event", event_id=None, event_key="order 7"),
        event("agent_execution", event_id="{5F0C9A7E-0000-4000-8000-000000000001}"[1:-1]),
    ],
    "a request id": [
        trace(external_id="req-7"),
        span(),
        trace(trace_id=trace_id("b"), external_id="é"),
    ],
    "nested traces": [
        trace(),
        trace(
            trace_id=trace_id("child"),
            parent_trace_id=trace_id(),
            root_trace_id=trace_id(),
            parent_span_id="00000000000000aB",
        ),
    ],
    "given twice": [trace(name="a"), trace(name="b"), span(), span(), span(name="x")],
}


@pytest.mark.parametrize("case", PLAIN)
def test_rows_are_what_ingest_makes_of_the_records(conn: Conn, layout: Layout, case: str) -> None:
    batch = PLAIN[case]
    texts = [as_json(record).encode() for record in batch]

    def by_texts(conn: Conn, batch: Records) -> Receipt:
        found = layout.rows_of_texts(texts, TENANT)
        assert found is not None
        return run(conn, storing.store_rows(found), TENANT)

    assert layout.rows(batch, TENANT) is not None
    expected = outcome(conn, [batch, batch], by_ingest)
    assert outcome(conn, [batch, batch], by_rows) == expected
    assert outcome(conn, [batch, batch], by_texts) == expected


def test_a_request_id_that_means_another_trace_is_seen(conn: Conn) -> None:
    first = [trace(external_id="req-7")]
    other = [trace(trace_id=trace_id("b"), external_id="req-7"), span(trace_id=trace_id("b"))]

    expected = outcome(conn, [first, other, [span(2, trace_id=trace_id("b"))]], by_ingest)
    assert outcome(conn, [first, other, [span(2, trace_id=trace_id("b"))]], by_rows) == expected
    assert outcome(conn, [[*first, *other]], by_rows) == outcome(
        conn, [[*first, *other]], by_ingest
    )


def test_a_large_batch_is_stored_as_a_small_one_is(conn: Conn) -> None:
    """In pieces, each of which has its traces whole."""
    ids = [trace_id(f"t{n}") for n in range(300)]
    batch = [
        *(span(n, trace_id=id) for id in ids for n in (1, 2)),
        *(trace(trace_id=id.upper()) for id in ids),
        event(),
    ]
    # one is seen here, the other by the server
    bad = [[*batch[:-1], span(3, cost_usd=-1)], [*batch[:-1], span(3, status="odd")]]
    parts = [batch[::7], batch, *bad]

    with as_role(conn, "tracedb_app", TENANT):
        assert outcome(conn, parts, by_rows) == outcome(conn, parts, by_ingest)
        # what is there already, and in a transaction
        assert by_rows(conn, batch).inserted == len(batch)
        assert by_rows(conn, batch).duplicates == len(batch)


async def ingested(dsn: str, batch: Records) -> list[Receipt]:
    async with await connect_async(dsn) as db:
        ours = db.tenant(TENANT)
        return [await ours.ingest(batch), await ours.ingest(batch[:-1])]


def test_a_large_batch_over_asyncio(database: str) -> None:
    batch = [span(n, trace_id=trace_id(f"t{n}")) for n in range(1, 1000)]

    bad, again = asyncio.run(
        ingested(f"{database} options='-c role=tracedb_app'", [*batch, span(1, status="odd")])
    )

    assert (bad.received, bad.inserted, len(bad.rejected)) == (1000, 999, 1)
    assert again == Receipt(999, duplicates=999)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_refused_in_the_words_of_ingest(conn: Conn, case: str) -> None:
    bad, _ = BAD[case]
    batch = [trace(), span(101), bad, span(102)]

    assert outcome(conn, [batch], by_rows) == outcome(conn, [batch], by_ingest)


IDS = st.sampled_from([trace_id("a"), trace_id("b"), trace_id("c").upper()])
TIMES = st.integers(-3000, 3000).map(at)
SPANS = st.integers(1, 3).map(lambda n: f"{n:016x}")
STATUSES = st.sampled_from(["ok", "error", "running", "cancelled", None])
LABELS = st.sampled_from(["a", "b", "ä", "", "x" * 80]) | st.none()
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0.1, 1e-9, 2.0]) | LABELS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LABELS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.text(max_size=3), DOCUMENTS, max_size=3)
COUNTS = st.integers(0, 2**40) | st.none()
COSTS = (
    st.decimals(0, 10**6, places=7).map(str) | st.floats(0, 10**6) | st.integers(0, 9) | st.none()
)
RUNS = {"ended_at": TIMES | st.none(), "status": STATUSES, "name": LABELS}
PART = {"trace_id": IDS, "span_id": SPANS, "started_at": TIMES, "input": DOCUMENTS, **RUNS}
EVENT = {
    "event_id": IDS,
    "event_key": LABELS,
    "occurred_at": TIMES,
    "trace_id": IDS | st.none(),
    "metadata": OBJECTS,
}
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "trace": {
        "trace_id": IDS,
        "started_at": TIMES,
        **RUNS,
        "duration_ms": st.integers(0, 5000) | st.none(),
        "parent_trace_id": IDS | st.none(),
        "user_id": LABELS,
        "external_id": st.sampled_from([None, None, "req-1", "req-2"]),
        "intent": DOCUMENTS,
        "context": OBJECTS,
        "cost_usd": COSTS,
        "tags": st.lists(LABELS.filter(bool), max_size=3) | st.none(),
        "research_triggered": st.booleans() | st.none(),
        "prompt": DOCUMENTS,
        "response": LABELS,
    },
    "span": {
        **PART,
        "operation_type": st.just("llm"),
        "duration_us": st.integers(0, 5_000_000) | st.none(),
        "input_tokens": COUNTS,
        "cost_usd": COSTS,
        "attributes": OBJECTS,
        "events": st.lists(DOCUMENTS, max_size=2),
    },
    "hook": {**PART, "hook_type": LABELS.filter(bool), "exit_code": st.integers(0, 9)},
    "endpoint_call": {**PART, "service": LABELS.filter(bool), "response": DOCUMENTS},
    "routing_decision": {
        **PART,
        "selected_agent": LABELS.filter(bool),
        "total_confidence": st.floats(0, 1),
        "request_embedding": st.lists(st.floats(-9, 9), min_size=1, max_size=3) | st.none(),
    },
    "payload": {
        "trace_id": IDS,
        "span_id": SPANS | st.none(),
        "kind": st.sampled_from(["prompt", "input", "output"]),
        "content": LABELS.filter(bool),
        "recorded_at": TIMES,
    },
    "platform_event": {
        **EVENT,
        "event_type": LABELS.filter(bool),
        "event_category": LABELS.filter(bool),
        "event_data": OBJECTS,
    },
    "cost_event": {
        **EVENT,
        "cost_type": st.sampled_from(["llm", "storage"]),
        "service": LABELS.filter(bool),
        "cost_usd": COSTS,
        "quantity": COSTS,
    },
    "agent_execution": {**EVENT, "agent_id": LABELS.filter(bool), "success": st.booleans()},
}
ODD: st.SearchStrategy[Any] = (
    DOCUMENTS
    | st.text()
    | st.sampled_from([trace_id("d", NOON - timedelta(days=9)), "ticket-1", "2026-03-04", 2**70])
)


@st.composite
def records(draw: st.DrawFn, *, odd: bool) -> Any:
    """A record of any type; an odd one may have any value in any field, of any type of record."""
    type_ = draw(st.sampled_from(sorted(FIELDS)))
    fields = {"type": type_, **draw(st.fixed_dictionaries(FIELDS[type_]))}
    if odd and draw(st.integers(0, 3)) == 0:
        names = sorted({*fields, "external_id", "event_key", "tenant_id"})
        fields |= draw(st.dictionaries(st.sampled_from(names), ODD, max_size=2))
    return fields


def repeats(batch: Records) -> bool:
    """Whether a part, payload or event is given twice: which of the two counts is left open."""
    keys = [
        str([r["type"], r.get("trace_id"), r.get("span_id"), r.get("kind")]).lower()
        if "event_id" not in r
        else str([r["type"], r["event_id"]]).lower()
        for r in batch
        if r["type"] != "trace"
    ]
    return len(set(keys)) < len(keys)


@pytest.mark.parametrize("odd", [False, True], ids=["plain", "odd"])
@pytest.mark.parametrize("role", ["tracedb_app", "tracedb_service"])
def test_any_batches_leave_the_same_rows_and_answers(
    conn: Conn, layout: Layout, role: str, odd: bool
) -> None:
    """Repeated, reordered, unfinished, partly bad: always as tracedb.ingest has it."""
    as_rows: list[bool] = []

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.lists(records(odd=odd), max_size=6), min_size=1, max_size=3))
    def holds(given: list[Records]) -> None:
        with as_role(conn, role, TENANT):
            answers, there = outcome(conn, given, by_rows)
            expected, stored = outcome(conn, given, by_ingest)
        assert there == stored
        as_rows.extend(layout.rows(batch, TENANT) is not None for batch in given)
        for batch, answer, wanted in zip(given, answers, expected, strict=True):
            if repeats(batch):
                assert answer.merged + answer.duplicates == wanted.merged + wanted.duplicates
                assert (answer.inserted, answer.rejected) == (wanted.inserted, wanted.rejected)
            else:
                assert answer == wanted

    holds()
    assert sum(as_rows) > len(as_rows) / (4 if odd else 2)


def test_a_table_with_another_column_gets_json(conn: Conn) -> None:
    storing.store(conn, TENANT, [trace()])
    conn.execute("alter table tracedb.llm_spans add column extra text")

    # first with the layout that was read before, then with the new one
    assert storing.store(conn, TENANT, [span(1)]).inserted == 1
    assert storing.store(conn, TENANT, [span(2)]).inserted == 1
    assert run(conn, storing.bulk_layout()) is None


def test_a_server_that_cannot_store_rows_gets_json(conn: Conn) -> None:
    conn.execute(
        "do $$ begin execute (select 'drop function ' || p.oid::regprocedure"
        " from pg_proc as p where p.proname = 'store_rows'); end $$"
    )

    assert run(conn, storing.bulk_layout()) is None
    assert storing.store(conn, TENANT, [trace(), span()]).inserted == 2
