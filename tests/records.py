"""Records for tests to ingest: one of each type, and the calls that store and read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def at(milliseconds: int = 0) -> str:
    """A time after noon, as records have it."""
    return (NOON + timedelta(milliseconds=milliseconds)).isoformat()


def trace_id(key: str = "trace", when: datetime = NOON) -> str:
    """A UUIDv7 of that time, the same for the same key."""
    milliseconds = int(when.timestamp() * 1000)
    random = uuid4() if key == "random" else UUID(int=hash_of(key))
    return str(
        UUID(f"{milliseconds:012x}7{random.hex[:3]}8{random.hex[3:18]}"),
    )


def hash_of(key: str) -> int:
    return int.from_bytes(key.encode().ljust(16, b"\x2a")[:16], "big")


def trace(**fields: Any) -> dict[str, Any]:
    return {"type": "trace", "trace_id": trace_id(), "started_at": at(), **fields}


def span(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "type": "span",
        "trace_id": trace_id(),
        "span_id": f"{number:016x}",
        "operation_type": "llm",
        "started_at": at(),
        "ended_at": at(100),
        **fields,
    }


def one_of_each() -> list[dict[str, Any]]:
    """A trace with a part of every type."""
    part = {"trace_id": trace_id(), "started_at": at(), "ended_at": at(50)}
    return [
        trace(ended_at=at(200), agent_id="bot", user_id="u1", prompt="why?", cost_usd="0.25"),
        span(1, input={"messages": [1]}, output="because", cost_usd="0.125", input_tokens=10),
        {"type": "hook", "span_id": f"{2:016x}", "hook_type": "pre_tool_use", **part},
        {
            "type": "endpoint_call",
            "span_id": f"{3:016x}",
            "service": "search",
            "method": "GET",
            "path": "/q",
            "status_code": 200,
            **part,
        },
        {
            "type": "routing_decision",
            "span_id": f"{4:016x}",
            "selected_agent": "bot",
            "candidates": [{"agent": "bot", "score": 0.9}],
            "request_embedding": [0.5, 0.25],
            **part,
        },
        {
            "type": "payload",
            "trace_id": trace_id(),
            "kind": "response",
            "content": "so",
            "recorded_at": at(),
        },
    ]


def ingest(
    conn: psycopg.Connection[Any], tenant: UUID, records: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """What tracedb.ingest answers."""
    row = conn.execute(
        "select tracedb.ingest(%s::json, %s)", [json.dumps(list(records)), tenant]
    ).fetchone()
    assert row is not None
    answer: dict[str, Any] = row[0]
    return answer


def counts(answer: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Inserted, merged, duplicates, rejected."""
    return (
        answer["inserted"],
        answer["merged"],
        answer["duplicates"],
        len(answer["rejected"]),
    )


PARTS = (
    "agent_routing_decisions",
    "hook_executions",
    "endpoint_calls",
    "llm_spans",
    "trace_payloads",
)


def stored(conn: psycopg.Connection[Any], tenant: UUID) -> dict[str, list[Any]]:
    """Everything a tenant has, table by table, less what differs by tenant or time of arrival."""
    return {
        table: [
            row[0]
            for row in conn.execute(
                psycopg.sql.SQL(
                    "select to_jsonb(t) - '{{tenant_id,created_at,updated_at}}'::text[]"
                    " from tracedb.{} as t where t.tenant_id = %s order by 1"
                ).format(psycopg.sql.Identifier(table)),
                [tenant],
            )
        ]
        for table in ("execution_traces", *PARTS)
    }
