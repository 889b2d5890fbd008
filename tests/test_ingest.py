"""The one way in: what is stored, in whatever order and how often records arrive."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from records import NOON, at, counts, ingest, one_of_each, span, stored, trace, trace_id
from servers import as_role

Conn = psycopg.Connection[Any]


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def value(conn: Conn, query: str, *args: Any) -> Any:
    row = conn.execute(query, args).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("role", ["tracedb_service", "tracedb_app"])
def test_a_batch_of_every_type_is_stored_and_stored_once(
    conn: Conn, tenant: UUID, role: str
) -> None:
    with as_role(conn, role, tenant):
        first = ingest(conn, tenant, one_of_each())
        before = stored(conn, tenant)
        again = ingest(conn, tenant, one_of_each())
        after = stored(conn, tenant)

    assert counts(first) == (6, 0, 0, 0)
    assert counts(again) == (0, 0, 6, 0)
    assert {table: len(rows) for table, rows in before.items()} == {
        "execution_traces": 1,
        "agent_routing_decisions": 1,
        "hook_executions": 1,
        "endpoint_calls": 1,
        "llm_spans": 1,
        "trace_payloads": 4,
    }
    assert after == before


def test_the_response_of_an_endpoint_call_is_no_payload(conn: Conn, tenant: UUID) -> None:
    call = one_of_each()[3] | {"response": {"hits": 3}, "output": "three hits"}
    ingest(conn, tenant, [call])

    rows = stored(conn, tenant)
    assert rows["endpoint_calls"][0]["response"] == {"hits": 3}
    assert [(row["kind"], row["content"]) for row in rows["trace_payloads"]] == [
        ("output", "three hits")
    ]


def test_a_repetition_writes_nothing_at_all(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, one_of_each())
    versions = "select array_agg(xmin::text || ctid::text) from tracedb.{} where tenant_id = %s"
    tables = ("execution_traces", "llm_spans", "trace_payloads")
    before = [value(conn, versions.format(table), tenant) for table in tables]
    conn.commit()

    ingest(conn, tenant, one_of_each())

    assert [value(conn, versions.format(table), tenant) for table in tables] == before


def test_two_tenants_may_use_the_same_ids(conn: Conn) -> None:
    one, other = uuid4(), uuid4()

    assert counts(ingest(conn, one, one_of_each())) == (6, 0, 0, 0)
    assert counts(ingest(conn, other, one_of_each())) == (6, 0, 0, 0)
    assert stored(conn, one) == stored(conn, other)


def test_without_a_tenant_nothing_is_stored_and_the_error_says_so(conn: Conn) -> None:
    with as_role(conn, "tracedb_app"), pytest.raises(psycopg.Error) as error:
        conn.execute("select tracedb.ingest(%s::json)", [json.dumps(one_of_each())])

    assert error.value.sqlstate == "TD001"
    assert "no tenant" in str(error.value)


def test_a_part_that_comes_first_makes_a_stub_that_its_trace_completes(
    conn: Conn, tenant: UUID
) -> None:
    ingest(conn, tenant, [span(1, started_at=at(20))])
    ingest(conn, tenant, [span(2, started_at=at(10))])
    stub = stored(conn, tenant)["execution_traces"][0]

    assert datetime.fromisoformat(stub["started_at"]) == NOON + timedelta(milliseconds=10)
    assert stub["status"] == "running"

    answer = ingest(conn, tenant, [trace(started_at=at(15), ended_at=at(200), agent_id="bot")])
    ingest(conn, tenant, [span(3, started_at=at(5))])
    whole = stored(conn, tenant)["execution_traces"][0]

    assert counts(answer) == (0, 1, 0, 0)
    assert datetime.fromisoformat(whole["started_at"]) == NOON + timedelta(milliseconds=15)
    assert (whole["status"], whole["agent_id"], whole["provisional"]) == ("ok", "bot", None)


@pytest.mark.parametrize("turn", [1, -1], ids=["started first", "finished first"])
def test_a_trace_may_come_as_started_and_as_finished(conn: Conn, tenant: UUID, turn: int) -> None:
    started = trace(
        status="running", agent_id="router", user_id="u1", context={"step": "begin", "a": 1}
    )
    finished = trace(
        ended_at=at(900), status="error", agent_id="billing", context={"step": "end", "b": 2}
    )

    for record in [started, finished][::turn]:
        ingest(conn, tenant, [record])

    (row,) = stored(conn, tenant)["execution_traces"]
    assert (row["status"], row["duration_ms"]) == ("error", 900)
    assert row["agent_id"] == "billing", "what the finished report says goes before"
    assert row["user_id"] == "u1", "what only the started report says stays"
    assert datetime.fromisoformat(row["started_at"]) == NOON
    assert row["context"] == {"step": "end", "a": 1, "b": 2}


@pytest.mark.parametrize("turn", [1, -1])
def test_the_times_of_a_trace_are_those_of_one_report(conn: Conn, tenant: UUID, turn: int) -> None:
    short = trace(started_at=at(0), ended_at=at(840))
    long = trace(started_at=at(5000), ended_at=at(9000))

    for record in [short, long][::turn]:
        ingest(conn, tenant, [record])

    (row,) = stored(conn, tenant)["execution_traces"]
    assert datetime.fromisoformat(row["started_at"]) == NOON + timedelta(seconds=5)
    assert row["duration_ms"] == 4000


def test_a_finished_span_replaces_a_running_one_and_not_the_other_way_round(
    conn: Conn, tenant: UUID
) -> None:
    running = span(1, ended_at=None, name="call")
    finished = span(1, ended_at=at(70), name="call grok", output_tokens=7)

    assert counts(ingest(conn, tenant, [running])) == (1, 0, 0, 0)
    assert stored(conn, tenant)["llm_spans"][0]["duration_us"] is None
    assert counts(ingest(conn, tenant, [finished])) == (0, 1, 0, 0)
    assert counts(ingest(conn, tenant, [running])) == (0, 0, 1, 0)
    (row,) = stored(conn, tenant)["llm_spans"]
    assert (row["status"], row["name"], row["duration_us"]) == ("ok", "call grok", 70_000)


def test_end_and_duration_give_each_other(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [span(1, ended_at=None, duration_us=1500), trace(duration_ms=30)])

    rows = stored(conn, tenant)
    assert datetime.fromisoformat(rows["llm_spans"][0]["ended_at"]) == NOON + timedelta(
        microseconds=1500
    )
    assert datetime.fromisoformat(rows["execution_traces"][0]["ended_at"]) == NOON + timedelta(
        milliseconds=30
    )
    assert rows["execution_traces"][0]["status"] == "ok"


# any order, any number of times

TEXTS = st.sampled_from(["", "a", "b", "é😀", "Z"])
MONEY = st.sampled_from(["0", "0.1", "0.10", "2"])


@st.composite
def trace_reports(draw: st.DrawFn) -> dict[str, Any]:
    status = draw(st.sampled_from(["running", "ok", "error", "timeout", "cancelled"]))
    start = draw(st.integers(0, 50))
    optional = {
        "agent_id": TEXTS,
        "name": TEXTS,
        "user_id": TEXTS,
        "error_type": TEXTS,
        "cost_usd": MONEY,
        "input_tokens": st.integers(0, 3),
        "llm_calls": st.integers(0, 3),
        "tags": st.lists(st.sampled_from("xyz"), max_size=3),
        "doc_sources": st.lists(st.sampled_from("pq"), max_size=2),
        "intent": st.sampled_from([{"a": 1}, [1, 2], "x", None]),
        "research_triggered": st.booleans(),
        "context": st.dictionaries(
            st.sampled_from("kl"), st.sampled_from([None, 1, "v", {"n": []}]), max_size=2
        ),
        "ended_at": st.integers(start, 90).map(at),
        "external_id": st.just("req-7"),
    }
    names = draw(st.sets(st.sampled_from(sorted(optional))))
    fields = {name: draw(optional[name]) for name in sorted(names)}
    if status == "running":
        fields.pop("ended_at", None)
    return trace(started_at=at(start), status=status, **fields)


@st.composite
def span_reports(draw: st.DrawFn) -> dict[str, Any]:
    start = draw(st.integers(0, 50))
    status = draw(st.sampled_from([None, "running", "ok", "error"]))
    return span(
        draw(st.integers(1, 2)),
        started_at=at(start),
        ended_at=None if status == "running" else draw(st.none() | st.integers(start, 90).map(at)),
        name=draw(TEXTS),
        cost_usd=draw(st.none() | MONEY),
        status=status,
        attributes=draw(st.dictionaries(st.sampled_from("kl"), st.integers(0, 2), max_size=2)),
    )


PAYLOADS = st.builds(
    lambda kind, content: {
        "type": "payload",
        "trace_id": trace_id(),
        "kind": kind,
        "content": content,
        "recorded_at": at(),
    },
    st.sampled_from(["prompt", "response"]),
    st.sampled_from(["short", "longer one", {"j": 1}]),
)


def test_any_order_any_batches_and_any_repetition_give_the_same_rows(conn: Conn) -> None:
    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )
    @given(
        records=st.lists(trace_reports() | span_reports() | PAYLOADS, min_size=1, max_size=7),
        data=st.data(),
    )
    def holds(records: list[dict[str, Any]], data: st.DataObject) -> None:
        shuffled = data.draw(st.permutations(records))
        repeated = shuffled + data.draw(st.lists(st.sampled_from(records), max_size=3))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(repeated)), max_size=4)))
        one, other = uuid4(), uuid4()

        whole = ingest(conn, one, records)
        pieces = [
            ingest(conn, other, repeated[start:end])
            for start, end in zip([0, *cuts], [*cuts, len(repeated)], strict=True)
        ]

        assert stored(conn, other) == stored(conn, one)
        assert whole["rejected"] == []
        for answer in (whole, *pieces):
            assert sum(counts(answer)) == answer["received"]
        before = stored(conn, one)
        assert counts(ingest(conn, one, records)) == (0, 0, len(records), 0)
        assert stored(conn, one) == before

    holds()


# foreign ids

OTEL = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_foreign_id_means_one_trace_in_either_spelling(conn: Conn, tenant: UUID) -> None:
    dashed = str(UUID(OTEL)).upper()
    ingest(conn, tenant, [span(1, trace_id=OTEL), span(2, trace_id=dashed)])
    ingest(conn, tenant, [trace(trace_id=OTEL, ended_at=at(9))])

    (row,) = stored(conn, tenant)["execution_traces"]
    assert row["external_id"] == OTEL
    assert value(conn, "select tracedb.uuid_time(%s)", row["trace_id"]) == NOON
    assert value(conn, "select tracedb.is_uuid7(%s)", row["trace_id"])
    for spelling in (OTEL, dashed, row["trace_id"]):
        assert (
            str(value(conn, "select tracedb.find_trace(%s, %s)", spelling, tenant))
            == (row["trace_id"])
        )
    assert value(conn, "select tracedb.find_trace('nobody', %s)", tenant) is None


def test_a_uuid7_of_another_time_is_a_foreign_id(conn: Conn, tenant: UUID) -> None:
    elsewhen = trace_id("old", NOON - timedelta(days=3000))
    ingest(conn, tenant, [trace(trace_id=elsewhen)])

    (row,) = stored(conn, tenant)["execution_traces"]
    assert row["trace_id"] != elsewhen
    assert row["external_id"] == elsewhen.replace("-", "")
    assert value(conn, "select tracedb.uuid_time(%s)", row["trace_id"]) == NOON


def test_a_late_part_finds_the_trace_that_has_its_id(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [trace()])
    late = (NOON + timedelta(days=40)).isoformat()
    ingest(conn, tenant, [span(1, started_at=late, ended_at=late)])

    rows = stored(conn, tenant)
    assert len(rows["execution_traces"]) == 1
    assert rows["llm_spans"][0]["trace_id"] == trace_id()


def test_a_record_with_both_ids_ties_them_together(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [span(1, trace_id=None, external_id="req-1")])
    ingest(conn, tenant, [trace(trace_id=OTEL, external_id="req-1")])
    ingest(conn, tenant, [span(2, trace_id=OTEL)])

    rows = stored(conn, tenant)
    assert len(rows["execution_traces"]) == 1
    assert len({row["trace_id"] for row in rows["llm_spans"]}) == 1


def test_a_trace_is_read_by_its_foreign_uuid_too(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [span(1, trace_id=OTEL)])

    assert value(conn, "select count(*) from tracedb.trace_tree(%s, %s)", OTEL, tenant) == 2
    assert value(conn, "select tracedb.get_trace(%s, %s)", OTEL, tenant)["spans"] != []


def test_nested_traces_name_their_parents_by_foreign_ids_too(conn: Conn, tenant: UUID) -> None:
    child = trace(trace_id=None, external_id="child", parent_trace_id=OTEL, started_at=at(5))
    ingest(conn, tenant, [child])
    ingest(conn, tenant, [trace(trace_id=OTEL)])

    parent = value(conn, "select tracedb.find_trace(%s, %s)", OTEL, tenant)
    assert value(
        conn, "select parent_trace_id from tracedb.execution_traces where external_id = 'child'"
    ) == (parent)


def test_many_writers_of_one_foreign_id_agree_on_one_trace(database: str, tenant: UUID) -> None:
    writers = 12
    barrier = threading.Barrier(writers)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with closing(psycopg.connect(database, autocommit=True)) as conn:
                barrier.wait()
                for turn in range(4):
                    keys = [f"{turn}-a", f"{turn}-b", f"{turn}-c"]
                    if number % 2:
                        keys.reverse()
                    answer = ingest(
                        conn,
                        tenant,
                        [span(number + 1, trace_id=None, external_id=key) for key in keys],
                    )
                    assert counts(answer) == (3, 0, 0, 0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    with closing(psycopg.connect(database)) as conn:
        rows = stored(conn, tenant)
    assert len(rows["execution_traces"]) == 12
    assert len(rows["llm_spans"]) == 12 * writers
    assert {row["trace_id"] for row in rows["llm_spans"]} == {
        row["trace_id"] for row in rows["execution_traces"]
    }


def test_who_waits_for_the_writer_of_a_foreign_id_takes_its_trace(
    database: str, tenant: UUID
) -> None:
    resolve = "select tracedb.resolve_traces(array[%s::jsonb], %s)"
    record = json.dumps(span(1, trace_id=None, external_id="req-1"))
    found: list[Any] = []

    def wait() -> None:
        with closing(psycopg.connect(database, autocommit=True)) as second:
            found.append(value(second, resolve, record, tenant))

    with closing(psycopg.connect(database)) as first:
        mine = value(first, resolve, record, tenant)
        thread = threading.Thread(target=wait)
        thread.start()
        with closing(psycopg.connect(database, autocommit=True)) as watcher:
            while not value(
                watcher,
                "select exists (select from pg_locks where locktype = 'transactionid'"
                " and not granted)",
            ):
                pass
        first.commit()
        thread.join()

    assert found == [mine]
    assert list(mine) == ["req-1"]


def test_many_writers_of_one_trace_lose_no_report(database: str, tenant: UUID) -> None:
    writers = 8
    barrier = threading.Barrier(writers)
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            with closing(psycopg.connect(database, autocommit=True)) as conn:
                barrier.wait()
                for turn in range(5):
                    ingest(conn, tenant, [trace(tags=[f"{number}-{turn}"], status="ok")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=[number]) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    with closing(psycopg.connect(database)) as conn:
        (row,) = stored(conn, tenant)["execution_traces"]
    assert len(row["tags"]) == writers * 5


def both(database: str, one: list[Any], other: list[Any], tenant: UUID) -> list[BaseException]:
    """Ingest two batches at the same moment, a few times; the errors."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(2)

    def write(batch: list[Any]) -> None:
        try:
            with closing(psycopg.connect(database, autocommit=True)) as conn:
                for turn in range(15):
                    ours = json.loads(json.dumps(batch).replace("TURN", str(turn)))
                    barrier.wait()
                    ingest(conn, tenant, ours)
        except BaseException as error:
            barrier.abort()
            errors.append(error)

    threads = [threading.Thread(target=write, args=[batch]) for batch in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def named(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {**record, "trace_id": None, "external_id": f"{name}-TURN"}


def test_batches_that_cross_do_not_wait_for_each_other(database: str, tenant: UUID) -> None:
    filler = [named(trace(prompt="x"), f"f{n}") for n in range(20)]
    payload = {"type": "payload", "kind": "prompt", "content": "p", "recorded_at": at()}
    one = [named(trace(prompt="a"), "x"), *filler, named(span(1), "y"), named(payload, "y")]
    other = [named(trace(prompt="b"), "y"), *filler[::-1], named(span(1), "x"), named(payload, "x")]

    assert both(database, one, other, tenant) == []


def test_a_payload_given_as_record_and_as_text_counts_once(
    conn: psycopg.Connection[Any],
) -> None:
    spans = [span(n, input="x" * (n % 7)) for n in range(1, 200)]
    payloads = [
        {
            "type": "payload",
            "trace_id": trace_id(),
            "span_id": part["span_id"],
            "kind": "input",
            "content": "y" * (n % 5),
            "recorded_at": at(),
        }
        for n, part in enumerate(spans)
    ]

    answer = ingest(conn, uuid4(), [*payloads, *spans])

    assert counts(answer) == (len(spans) + len(payloads), 0, 0, 0)
