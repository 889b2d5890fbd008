"""Erasure reaches what was learned: it is as if only others had taught it."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import tracedb
from records import at, ingest, trace_id
from test_erasure import MARKER, USER, hits
from test_learning import learn_all, learned
from tracedb import erasure

Connection = psycopg.Connection[Any]


@pytest.fixture
def conn(database: str) -> Any:
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


def asked(user: str, key: str, prompt: str, said: str) -> list[dict[str, Any]]:
    """A request that worked, and one that failed with a message."""
    request = {"type": "trace", "user_id": user, "agent_id": "bot", "channel": "web"}
    return [
        {
            **request,
            **{"trace_id": trace_id(f"{user[:2]} {key}"), "prompt": prompt, "response": "done"},
            **{"started_at": at(), "ended_at": at(100), "context": {"who": f"of {user}"}},
        },
        {
            **request,
            **{"trace_id": trace_id(f"{user[:2]} not {key}"), "error_message": said},
            **{"started_at": at(200), "ended_at": at(300), "status": "error"},
        },
    ]


def test_what_was_learned_is_as_if_others_alone_had_taught_it(
    database: str, conn: Connection
) -> None:
    ours, theirs = uuid4(), uuid4()
    others = [
        *asked("other", "shared", "book a table", "no such table"),
        *asked("other", "own", "cancel it", "too late"),
    ]
    for tenant in (ours, theirs):
        ingest(conn, tenant, others)
    ingest(conn, ours, asked(USER, "own", f"I am {MARKER}", f"I am not {MARKER}"))
    ingest(conn, ours, asked(USER, "shared", "Book  a table", "no such table"))
    for tenant in (ours, theirs):
        learn_all(conn, tenant)
    by_hand = conn.execute(
        "select tracedb.save_pattern(%s::jsonb, %s)",
        [json.dumps({"prompt": f"I am {MARKER}", "agent_id": "saved by hand"}), ours],
    ).fetchone()
    assert by_hand is not None
    pattern = conn.execute(
        "select pattern_id from tracedb.success_patterns where prompt = 'cancel it'"
    ).fetchone()
    assert pattern is not None
    conn.execute(
        "insert into tracedb.pattern_usage_log (tenant_id, trace_id, pattern_id, feedback)"
        " values (%s, %s, %s, %s)",
        [ours, trace_id(f"{USER[:2]} own"), pattern[0], MARKER],
    )
    assert "tracedb.success_patterns" in hits(conn, MARKER)

    with tracedb.connect(database) as db:
        receipt = erasure.erase_user(db.tenant(ours), USER)

    assert hits(conn, MARKER) == {}
    assert receipt.counts["success_patterns"] == 3
    assert receipt.counts["pattern_usage_log"] == 1
    learn_all(conn, ours)
    assert of(conn, ours) == of(conn, theirs)


def of(conn: Connection, tenant: UUID) -> dict[str, list[Any]]:
    """What was learned; samples of errors go, whoever they were of, and chains are totals."""
    found = learned(conn, tenant)
    for error in found["error_patterns"]:
        error.pop("sample_message")
    return {
        table: sorted(found[table], key=str)
        for table in ("success_patterns", "error_patterns", "learned_traces")
    }
