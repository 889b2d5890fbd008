"""The user's redaction hook fails closed, whatever it does."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from records import counts, ingest, one_of_each, span
from tracedb import hook as hooks
from tracedb.hook import MAX_HUNG, NOTE, HookCounts, RedactionHook
from tracedb.masking import masked
from tracedb.pack import Limits, pack
from two_tenants import A, all_records

WAIT = 30
MARKER = "marker-of-a-person"


class Results:
    """What a hook made of records, in order."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.changed = threading.Condition()

    def done(self, text: str) -> None:
        with self.changed:
            self.found.append(json.loads(text))
            self.changed.notify_all()

    def wait(self, number: int) -> list[dict[str, Any]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.found) >= number, WAIT)
            return self.found


@pytest.fixture
def results() -> Results:
    return Results()


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """What a hanging function waits for; set at the end, so that its thread ends."""
    event = threading.Event()
    yield event
    event.set()


def text(number: int = 1, **fields: Any) -> str:
    return pack(span(number, **fields), Limits()).text


def test_records_go_through_in_order(results: Results) -> None:
    def upper(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "output": record["output"].upper()}

    hook = RedactionHook(upper)

    assert all(hook.submit(text(n, output=f"text {n}"), results.done) for n in range(1, 101))
    assert hook.close(WAIT)
    assert results.found == [span(n, output=f"TEXT {n}") for n in range(1, 101)]
    assert hook.counts() == HookCounts(passed=100, masked=0)


def raises(record: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(MARKER)


def ends_the_thread(record: dict[str, Any]) -> dict[str, Any]:
    raise SystemExit(MARKER)


def changes_and_raises(record: dict[str, Any]) -> dict[str, Any]:
    record["name"] = MARKER
    raise KeyError(MARKER)


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "raises": (raises, "raised ValueError"),
    "ends the thread": (ends_the_thread, "raised SystemExit"),
    "changes and raises": (changes_and_raises, "raised KeyError"),
    "returns nothing": (lambda record: record.clear(), "returned no record of the same type"),
    "returns text": (lambda record: MARKER, "returned no record of the same type"),
    "returns another type": (
        lambda record: {**record, "type": "trace"},
        "returned no record of the same type",
    ),
    "returns no JSON": (lambda record: {**record, "name": object()}, "returned what is not JSON"),
    "returns NaN": (lambda record: {**record, MARKER: float("nan")}, "returned what is not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_hook_that_fails_masks_the_record(
    case: str, results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    function, reason = BAD[case]
    hook = RedactionHook(function)

    for number in (1, 2):
        assert hook.submit(text(number, output=MARKER, user_id=MARKER), results.done)

    assert hook.close(WAIT)
    assert [item["span_id"] for item in results.found] == [f"{1:016x}", f"{2:016x}"]
    assert results.found[0] == span(1, output=NOTE, user_id=NOTE)
    assert hook.counts() == HookCounts(passed=0, masked=2)
    assert [record.getMessage() for record in caplog.records] == [
        f"the redaction hook {reason}: records are kept without their texts"
    ]
    assert MARKER not in caplog.text


def test_what_the_hook_returns_is_redacted_and_capped_as_well(results: Results) -> None:
    hook = RedactionHook(
        lambda record: {**record, "output": "x" * 2000, "input": "password=hunter2"},
        Limits(value_bytes=1024),
    )

    hook.submit(text(), results.done)

    assert hook.close(WAIT)
    assert results.found[0]["input"] == "password=[redacted]"
    assert results.found[0]["output"].endswith("...[cut by tracedb: 1024 of 2000 bytes]")


def test_a_record_that_takes_too_long_is_masked_and_the_next_goes_on(
    results: Results, hang: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(record: dict[str, Any]) -> dict[str, Any]:
        if record["output"] == MARKER:
            hang.wait()
        return record

    hook = RedactionHook(slow, timeout=0.05)

    for number, output in enumerate(["a", MARKER, "b"], start=1):
        hook.submit(text(number, output=output), results.done)

    assert [item["output"] for item in results.wait(3)] == ["a", NOTE, "b"]
    assert hook.close(WAIT)
    assert hook.counts() == HookCounts(passed=2, masked=1)
    assert "the redaction hook takes longer than 0.05 s" in caplog.text


def test_no_more_threads_are_started_while_three_hang(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = threading.Semaphore(0)
    hang = threading.Event()

    def hanging(record: dict[str, Any]) -> dict[str, Any]:
        entered.release()
        hang.wait()
        return record

    hook = RedactionHook(hanging, timeout=0.05)
    for number in range(1, 11):
        hook.submit(text(number, output=MARKER), results.done)

    found = results.wait(10)
    assert [item["span_id"] for item in found] == [f"{n:016x}" for n in range(1, 11)]
    assert {item["output"] for item in found} == {NOTE}
    # as many have entered as may hang, and no other
    assert [entered.acquire(blocking=False) for _ in range(MAX_HUNG + 1)] == [True] * 3 + [False]

    hang.set()
    for _ in range(1000):
        hook.submit(text(11, output="b"), results.done)
        if results.wait(1) and entered.acquire(timeout=0.1):
            break
    assert hook.close(WAIT)
    assert results.found[-1]["output"] == "b", "threads that came back make room"


def test_closing_waits_no_longer_than_it_is_told(results: Results, hang: threading.Event) -> None:
    entered = threading.Event()

    def hanging(record: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        hang.wait()
        return record

    hook = RedactionHook(hanging, timeout=WAIT)
    for number in range(1, 4):
        hook.submit(text(number, output=MARKER), results.done)
    assert entered.wait(WAIT)

    assert not hook.close(0)
    assert [(item["span_id"], item["output"]) for item in results.found] == [
        (f"{number:016x}", NOTE) for number in range(1, 4)
    ]
    assert not hook.submit(text(4), results.done)
    assert hook.close(0)


def test_what_is_too_much_is_not_accepted(results: Results, hang: threading.Event) -> None:
    def waiting(record: dict[str, Any]) -> dict[str, Any]:
        hang.wait()
        return record

    hook = RedactionHook(waiting, timeout=WAIT, capacity=2)

    assert [hook.submit(text(n), results.done) for n in (1, 2, 3)] == [True, True, False]
    hang.set()
    assert hook.close(WAIT)
    assert len(results.found) == 2


def test_where_no_thread_can_be_started_records_are_masked(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_threads(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_threads)
    hook = RedactionHook(lambda record: record)

    hook.submit(text(1, output=MARKER), results.done)
    hook.submit(text(2, output=MARKER), results.done)

    assert hook.close(0)
    assert [item["output"] for item in results.found] == [NOTE, NOTE]


def test_an_error_of_the_receiver_stops_nothing(
    results: Results, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(text: str) -> None:
        raise OSError(MARKER)

    hook = RedactionHook(lambda record: record)
    hook.submit(text(1), lose)
    hook.submit(text(2), results.done)

    assert hook.close(WAIT)
    assert len(results.found) == 1
    assert "a redacted record was lost: OSError" in caplog.text
    assert MARKER not in caplog.text


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_child_begins_with_an_empty_hook(results: Results, hang: threading.Event) -> None:
    parent = os.getpid()

    def in_the_parent_only(record: dict[str, Any]) -> dict[str, Any]:
        if os.getpid() == parent:
            hang.wait()
        return record

    hook = RedactionHook(in_the_parent_only, timeout=WAIT)
    hook.submit(text(1), results.done)
    hook.submit(text(2), results.done)

    child = os.fork()
    if not child:
        hook.after_fork()
        hook.submit(text(3), results.done)
        closed = hook.close(WAIT)
        os._exit(0 if closed and [r["span_id"] for r in results.found] == [f"{3:016x}"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    hang.set()
    assert hook.close(WAIT)
    assert len(results.found) == 2


def test_every_field_is_known_to_the_mask(conn: psycopg.Connection[Any]) -> None:
    rows = conn.execute(
        "select distinct field, a.atttypid::regtype::text"
        " from tracedb.record_types() as t cross join unnest(t.fields) as field"
        " left join pg_attribute as a on a.attname = field"
        " and a.attrelid = ('tracedb.' || t.table_name)::regclass"
    ).fetchall()
    assert rows
    for field, kind in rows:
        left = masked({field: 1}, NOTE)
        match kind:
            case "bigint" | "integer" | "double precision" | "numeric":
                assert left == {field: 1}, "figures stay"
            case "boolean":
                assert masked({field: True}, NOTE) == {field: True}
            case "jsonb" | "text[]" | "vector":
                assert left in ({}, {field: NOTE}), "documents and lists go"
            case "text" | None:
                assert left != {field: 1}
                assert masked({field: MARKER}, NOTE) != {field: MARKER}


def test_masked_records_are_accepted(conn: psycopg.Connection[Any]) -> None:
    records = all_records(A)
    types = conn.execute("select type from tracedb.record_types()").fetchall()
    assert {record["type"] for record in records} == {name for (name,) in types}

    answer = ingest(conn, A, [masked(record, NOTE) for record in records])

    assert answer["rejected"] == []
    assert sum(counts(answer)) == len(records)


def test_the_callers_own_keys_stay_apart() -> None:
    one, same, other = (masked({"external_id": key}, NOTE)["external_id"] for key in "aab")

    assert one == same != other


FIELDS = sorted({name for record in one_of_each() for name in record} | {"external_id", "cost_usd"})


@given(st.dictionaries(st.sampled_from(FIELDS), st.text(min_size=1).map(lambda t: t + MARKER)))
def test_the_mask_shows_nothing_of_a_text(record: Mapping[str, Any]) -> None:
    assert MARKER not in json.dumps(masked(record, NOTE))


def test_the_log_is_the_packages() -> None:
    assert hooks.logger is logging.getLogger("tracedb")
