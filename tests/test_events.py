"""Events of a tenant: platform events, cost events, agent executions."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from records import NOON, at, counts, ingest, trace_id
from servers import as_role

Conn = psycopg.Connection[Any]
TABLES = {
    "platform_event": "platform_events",
    "cost_event": "tenant_cost_events",
    "agent_execution": "agent_executions",
}
NEEDED: dict[str, dict[str, Any]] = {
    "platform_event": {"event_type": "user_query", "event_category": "user_behavior"},
    "cost_event": {"cost_type": "llm", "service": "openai"},
    "agent_execution": {"agent_id": "ask-expert-v1", "success": True},
}


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def event(type: str, **fields: Any) -> dict[str, Any]:
    return {"type": type, "occurred_at": at(), "event_key": "k1", **NEEDED[type], **fields}


def stored(conn: Conn, type: str, tenant: UUID) -> list[dict[str, Any]]:
    query = sql.SQL("select * from tracedb.{} where tenant_id = %s order by event_id").format(
        sql.Identifier(TABLES[type])
    )
    return conn.cursor(row_factory=dict_row).execute(query, [tenant]).fetchall()


@pytest.mark.parametrize("role", ["tracedb_service", "tracedb_app"])
@pytest.mark.parametrize("type", TABLES)
def test_an_event_is_stored_once_by_its_key_and_time(
    conn: Conn, tenant: UUID, type: str, role: str
) -> None:
    with as_role(conn, role, tenant):
        first = ingest(conn, tenant, [event(type), event(type, event_key="k2")])
        again = ingest(conn, tenant, [event(type)])
        rows = stored(conn, type, tenant)

    assert counts(first) == (2, 0, 0, 0)
    assert counts(again) == (0, 0, 1, 0)
    assert {row["event_key"] for row in rows} == {"k1", "k2"}
    for row in rows:
        found = conn.execute("select tracedb.uuid_time(%s)", [row["event_id"]]).fetchone()
        assert found == (NOON,)


def test_the_same_key_of_two_tenants_or_types_is_two_events(conn: Conn, tenant: UUID) -> None:
    other = uuid4()
    ingest(conn, tenant, [event(type) for type in TABLES])
    ingest(conn, other, [event(type) for type in TABLES])

    ids = {
        row["event_id"]
        for type in TABLES
        for whose in (tenant, other)
        for row in stored(conn, type, whose)
    }
    assert len(ids) == 6


def test_an_id_of_ones_own_is_kept_if_it_is_a_clock(conn: Conn, tenant: UUID) -> None:
    mine, random = trace_id(), str(uuid4())
    for id in (mine, random, random):
        ingest(conn, tenant, [event("cost_event", event_id=id, event_key=None)])

    ids = [str(row["event_id"]) for row in stored(conn, "cost_event", tenant)]
    assert mine in ids
    assert random not in ids
    assert len(ids) == 2


def test_an_event_may_name_a_trace_and_makes_no_stub_of_it(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [event("platform_event", external_id="req-1")])
    ingest(
        conn,
        tenant,
        [{"type": "trace", "external_id": "req-1", "started_at": at(), "ended_at": at(5)}],
    )

    (row,) = stored(conn, "platform_event", tenant)
    assert conn.execute("select tracedb.find_trace('req-1', %s)", [tenant]).fetchone() == (
        row["trace_id"],
    )
    traces = conn.execute(
        "select status from tracedb.execution_traces where tenant_id = %s", [tenant]
    ).fetchall()
    assert traces == [("ok",)]


def test_the_fields_of_the_mission_are_kept(conn: Conn, tenant: UUID) -> None:
    ingest(
        conn,
        tenant,
        [
            event("cost_event", cost_usd="0.012", quantity=300, service_tier="gpt-4", user_id="u"),
            event(
                "agent_execution",
                agent_type="ask_expert",
                execution_time_ms=2100,
                quality_score=0.92,
                citation_accuracy=0.96,
                hallucination_detected=False,
                cost_usd="0.012",
                total_tokens=300,
            ),
            event("platform_event", event_data={"query": "?"}, metadata={"mode": "1"}),
        ],
    )

    (cost,) = stored(conn, "cost_event", tenant)
    (run,) = stored(conn, "agent_execution", tenant)
    (seen,) = stored(conn, "platform_event", tenant)
    assert (str(cost["cost_usd"]), cost["quantity"], cost["service_tier"]) == (
        "0.012",
        300,
        "gpt-4",
    )
    assert (run["quality_score"], run["citation_accuracy"], run["total_tokens"]) == (
        0.92,
        0.96,
        300,
    )
    assert run["hallucination_detected"] is False
    assert (seen["event_data"], seen["metadata"]) == ({"query": "?"}, {"mode": "1"})


BAD = {
    "no id": (event("cost_event", event_key=None), "event_id: required (or event_key)"),
    "malformed id": (event("cost_event", event_id="x"), "event_id: must be a UUID"),
    "no time": (event("cost_event", occurred_at=None), "occurred_at: required"),
    "naive time": (
        event("cost_event", occurred_at="2026-01-01T00:00:00"),
        "occurred_at: must be an ISO 8601 time",
    ),
    "early time": (
        event("cost_event", occurred_at="1960-01-01T00:00:00Z"),
        "occurred_at: must lie between 1970 and 2200",
    ),
    "unknown type": (event("cost_event", cost_type="gas"), "cost_type: must be llm, embedding"),
    "negative cost": (event("cost_event", cost_usd=-1), "cost_usd: must be at least 0"),
    "NaN quantity": (event("cost_event", quantity="NaN"), "quantity: must be at least 0"),
    "score over 1": (event("agent_execution", quality_score=1.1), "quality_score, citation_acc"),
    "no agent": (event("agent_execution", agent_id=None), "agent_id: required"),
    "list as data": (event("platform_event", event_data=[]), "event_data, metadata: must be obj"),
    "unknown field": (event("platform_event", cost_usd=1), "cost_usd: unknown field of a platf"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_event_is_named_and_costs_its_neighbours_nothing(
    conn: Conn, tenant: UUID, case: str
) -> None:
    bad, reason = BAD[case]

    answer = ingest(conn, tenant, [event("cost_event"), bad, event("platform_event")])

    assert counts(answer) == (2, 0, 0, 1)
    assert answer["rejected"][0]["index"] == 1
    assert answer["rejected"][0]["reason"].startswith(reason)
