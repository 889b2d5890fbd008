"""The recording calls: which record each makes, its ids and times, and what never happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from records import NOON, at, trace_id
from tracedb.recorder import Recorder, TenantId

TENANT = UUID("0000000a-0000-4000-8000-000000000000")


class Notebook(Recorder):
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.refused = 0

    def record(self, record: dict[str, Any], tenant_id: TenantId = None) -> bool:
        self.records.append(record)
        return True

    def refuse(self) -> None:
        self.refused += 1

    def tenant_of(self, record: Mapping[str, Any], tenant_id: TenantId) -> UUID | None:
        return TENANT

    @property
    def only(self) -> dict[str, Any]:
        (record,) = self.records
        return record


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


def test_a_trace_gets_an_id_of_its_own_time(notebook: Notebook) -> None:
    made = notebook.save_trace(started_at=at(5), agent_id="bot")

    assert isinstance(made, UUID)
    assert made.version == 7
    assert made.int >> 80 == int((NOON + timedelta(milliseconds=5)).timestamp() * 1000)
    assert UUID(notebook.only.pop("trace_id")) == made
    assert notebook.only == {"type": "trace", "started_at": at(5), "agent_id": "bot"}


def test_a_trace_without_a_time_starts_now(notebook: Notebook) -> None:
    before = datetime.now(UTC)
    made = notebook.save_trace()

    assert before <= datetime.fromisoformat(notebook.only["started_at"]) <= datetime.now(UTC)
    assert made is not None
    assert made.int >> 80 >= int(before.timestamp() * 1000)


def test_a_mapping_and_keywords_make_one_record(notebook: Notebook) -> None:
    given = {"trace_id": trace_id(), "started_at": at(), "agent_id": "a", "user_id": "u"}

    assert notebook.save_trace(given, agent_id="b") == UUID(trace_id())
    assert notebook.only == given | {"type": "trace", "agent_id": "b"}
    assert given["agent_id"] == "a"


def test_a_request_id_is_an_external_id_and_a_retry_has_the_same_trace(notebook: Notebook) -> None:
    ids = notebook.save_traces_batch(
        [{"request_id": "r1", "started_at": at()}] * 2 + [{"request_id": "r2", "started_at": at()}]
    )

    assert ids[0] == ids[1] != ids[2]
    assert [record["external_id"] for record in notebook.records] == ["r1", "r1", "r2"]


@pytest.mark.parametrize(
    ("given", "split"),
    [
        ({}, (500, 0)),
        ({"input_tokens": 300}, (300, 200)),
        ({"output_tokens": 300}, (200, 300)),
        ({"output_tokens": 600}, (0, 600)),
        ({"input_tokens": 1, "output_tokens": 2}, (1, 2)),
    ],
)
def test_a_total_of_tokens_is_split_as_far_as_it_is_known(
    notebook: Notebook, given: dict[str, Any], split: tuple[int, int]
) -> None:
    notebook.save_trace(tokens_used=500, context={"a": 1}, **given)

    assert (notebook.only["input_tokens"], notebook.only["output_tokens"]) == split
    assert notebook.only["context"] == {"a": 1, "tokens_used": 500}


def test_an_estimated_cost_counts_if_there_is_no_other(notebook: Notebook) -> None:
    notebook.save_trace(estimated_cost_usd=0.002)
    notebook.save_trace(estimated_cost_usd=0.002, cost_usd="0.003")
    notebook.save_traces_batch([{"estimated_cost_usd": 0.002, "tokens_used": 5}])

    assert [record["cost_usd"] for record in notebook.records] == [0.002, "0.003", 0.002]
    assert notebook.records[2]["input_tokens"] == 5


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ("save_span", "span"),
        ("save_routing_decision", "routing_decision"),
        ("save_hook", "hook"),
        ("save_endpoint_call", "endpoint_call"),
    ],
)
def test_a_part_gets_a_span_id(notebook: Notebook, call: str, kind: str) -> None:
    made = getattr(notebook, call)(trace_id=trace_id(), started_at=at())
    given = getattr(notebook, call)(
        trace_id=trace_id(), started_at=at(), span_id="00000000000000ab"
    )

    assert given == "00000000000000ab"
    assert len(made) == 16
    assert int(made, 16) > 0
    assert notebook.records[0] == {
        "type": kind,
        "trace_id": trace_id(),
        "started_at": at(),
        "span_id": made,
    }


def test_a_payload_is_accepted_and_dated(notebook: Notebook) -> None:
    assert notebook.save_payload(trace_id=trace_id(), kind="prompt", content="why?") is True
    assert "recorded_at" in notebook.only


@pytest.mark.parametrize("kind", ["platform_event", "cost_event", "agent_execution"])
def test_an_event_with_a_key_has_the_id_that_the_database_makes(
    notebook: Notebook, conn: psycopg.Connection[Any], kind: str
) -> None:
    call: Callable[..., UUID | None] = getattr(notebook, f"log_{kind}")
    keyed = call("a", "b", time=at(7), event_key="k1")
    free = call("a", "b", time=at(7))
    rows = [
        conn.execute(
            "select tracedb.event_id_of(jsonb_build_object('type', %s::text, 'occurred_at', "
            "%s::text, 'event_key', %s::text, 'event_id', %s::text), %s)",
            [kind, at(7), record.get("event_key"), record.get("event_id"), TENANT],
        ).fetchone()
        for record in notebook.records
    ]

    assert rows == [(keyed,), (free,)]


def test_an_event_has_the_fields_of_the_call(notebook: Notebook) -> None:
    notebook.log_platform_event("user_query", "user_behavior", {"mode": "1"}, user_id="u")
    notebook.log_cost_event(
        cost_type="llm", cost_usd=0.012, service="openai", quantity=300, service_tier="gpt-4"
    )
    notebook.log_agent_execution("ask-expert-v1", success=True, quality_score=0.92)
    for record in notebook.records:
        del record["event_id"], record["occurred_at"]

    assert notebook.records == [
        {
            "type": "platform_event",
            "event_type": "user_query",
            "event_category": "user_behavior",
            "event_data": {"mode": "1"},
            "user_id": "u",
        },
        {
            "type": "cost_event",
            "cost_type": "llm",
            "cost_usd": 0.012,
            "service": "openai",
            "quantity": 300,
            "service_tier": "gpt-4",
        },
        {
            "type": "agent_execution",
            "agent_id": "ask-expert-v1",
            "success": True,
            "quality_score": 0.92,
        },
    ]


CALLS = [
    name
    for name in vars(Recorder)
    if name.startswith(("save_", "log_")) and name != "save_traces_batch"
]
TIMES = ("started_at", "occurred_at", "recorded_at")
IDS = ("trace_id", "span_id", "event_id", "event_key", "external_id")
FIELDS = (*TIMES, *IDS, "tokens_used", "estimated_cost_usd", "context")


@given(call=st.sampled_from(CALLS), value=st.from_type(type).flatmap(st.from_type))
def test_no_call_raises_whatever_it_is_given(call: str, value: object) -> None:
    notebook = Notebook()
    method: Callable[..., Any] = getattr(notebook, call)

    method()
    method(value)
    for field in FIELDS:
        method(**{field: value})
    # not the value itself: it may be an iterator without an end
    notebook.save_traces_batch([value])  # type: ignore[list-item]

    assert len(notebook.records) + notebook.refused >= len(FIELDS) + 3


@given(
    milliseconds=st.integers(min_value=0, max_value=7_000_000_000_000), key=st.text() | st.none()
)
def test_every_id_is_a_uuid7(milliseconds: int, key: str | None) -> None:
    notebook = Notebook()
    started = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    made = notebook.save_trace(started_at=started, external_id=key)

    assert made is not None
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == milliseconds
