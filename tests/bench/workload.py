"""The records that the ingest benchmark stores: the same ones in every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

PARTS = 6  # of each trace, beside its header
_FIRST = datetime(2026, 1, 5, tzinfo=UTC)
_DAYS = 7
_TENANTS = 8
_USERS = 2_000
_VOCABULARY = """
    agent answer balance booking call cancel check confirm context customer date delay detail email
    error fare flight found hotel input item latency order passenger payment policy price query
    reason refund request reservation response result retry route seat search select session status
    summary ticket tool total update user value window
"""
_WORDS = _VOCABULARY.split()


def tenants() -> list[UUID]:
    return [UUID(int=0x7E_0000 + n) for n in range(_TENANTS)]


def batches(traces: int, size: int) -> Iterator[tuple[UUID, str]]:
    """A tenant and a JSON array of up to `size` records, in the order in which they happened."""
    for tenant, records in record_batches(traces, size):
        yield tenant, f"[{','.join(map(json.dumps, records))}]"


def record_batches(traces: int, size: int) -> Iterator[tuple[UUID, list[dict[str, Any]]]]:
    """A tenant and up to `size` of its records, in the order in which they happened."""
    waiting: dict[UUID, list[dict[str, Any]]] = {tenant: [] for tenant in tenants()}
    for tenant, records in _records(traces):
        for record in records:
            waiting[tenant].append(record)
            if len(waiting[tenant]) == size:
                yield tenant, waiting[tenant]
                waiting[tenant] = []
    for tenant, rest in waiting.items():
        if rest:
            yield tenant, rest


def span() -> tuple[datetime, datetime]:
    """The first and the last moment of the data."""
    return _FIRST, _FIRST + timedelta(days=_DAYS)


def _records(traces: int) -> Iterator[tuple[UUID, list[dict[str, Any]]]]:
    random = Random(1)
    all_tenants = tenants()
    for n in range(traces):
        started_at = _FIRST + timedelta(days=_DAYS) * n / traces
        trace_id = _uuid7(started_at, random)
        tenant = all_tenants[min(int(random.expovariate(0.5)), _TENANTS - 1)]
        yield (
            tenant,
            [
                _trace(trace_id, started_at, random),
                _routing_decision(trace_id, started_at, random),
                _hook(trace_id, started_at, random),
                _endpoint_call(trace_id, started_at, random),
                *(_span(trace_id, started_at, no, random) for no in (4, 5, 6)),
            ],
        )


def _trace(trace_id: str, at: datetime, random: Random) -> dict[str, Any]:
    failed = random.random() < 0.03
    return {
        "type": "trace",
        "trace_id": trace_id,
        "session_id": f"session-{random.randrange(10_000)}",
        "user_id": f"user-{random.randrange(_USERS)}",
        "source": "api",
        "channel": random.choice(("web", "slack", "email")),
        "name": "answer a request",
        "route": random.choice(("booking", "refund", "status", "smalltalk")),
        "agent_id": f"agent-{random.randrange(12)}",
        "status": "error" if failed else "ok",
        "error_type": "UpstreamTimeout" if failed else None,
        "started_at": at.isoformat(),
        "duration_ms": random.randrange(200, 20_000),
        "tags": ["bench", random.choice(_WORDS)],
        "context": {"note": _text(random, 300)},
    }


def _routing_decision(trace_id: str, at: datetime, random: Random) -> dict[str, Any]:
    scores = [round(random.random(), 3) for _ in range(3)]
    return {
        "type": "routing_decision",
        **_part(trace_id, at, 1, random),
        "selected_agent": "agent-1",
        "reason": _text(random, 900),
        "total_confidence": max(scores),
        "candidates": [{"agent": f"agent-{n}", "score": score} for n, score in enumerate(scores)],
    }


def _hook(trace_id: str, at: datetime, random: Random) -> dict[str, Any]:
    return {
        "type": "hook",
        **_part(trace_id, at, 2, random),
        "hook_type": "pre_tool_use",
        "tool_name": "search",
        "quality_gates": {"lint": True, "budget": random.random() < 0.9},
        "outcome": "allowed",
        "attributes": {"note": _text(random, 1_000)},
    }


def _endpoint_call(trace_id: str, at: datetime, random: Random) -> dict[str, Any]:
    return {
        "type": "endpoint_call",
        **_part(trace_id, at, 3, random),
        "service": "reservations",
        "method": "GET",
        "path": "/v1/reservations",
        "status_code": 200,
        "request": {"query": _text(random, 200)},
        "response": {"items": [_text(random, 200) for _ in range(4)]},
    }


def _span(trace_id: str, at: datetime, no: int, random: Random) -> dict[str, Any]:
    model = random.choice(("gpt-4.1-mini", "claude-haiku"))
    return {
        "type": "span",
        **_part(trace_id, at, no, random),
        "operation_type": "llm",
        "provider": "openai" if model.startswith("gpt") else "anthropic",
        "request_model": model,
        "response_model": model,
        "input_tokens": random.randrange(200, 8_000),
        "output_tokens": random.randrange(20, 900),
        "cost_usd": f"{random.random() / 50:.7f}",
        "attributes": {
            "gen_ai.request.temperature": 0.2,
            "gen_ai.input.messages": [
                {"role": role, "content": _text(random, 380)} for role in ("system", "user", "tool")
            ],
        },
    }


def _part(trace_id: str, at: datetime, no: int, random: Random) -> dict[str, Any]:
    started_at = at + timedelta(milliseconds=20 * no)
    return {
        "trace_id": trace_id,
        "span_id": f"{random.getrandbits(60) << 4 | no:016x}",
        "name": f"step {no}",
        "started_at": started_at.isoformat(),
        "ended_at": (started_at + timedelta(milliseconds=random.randrange(1, 900))).isoformat(),
    }


def _uuid7(at: datetime, random: Random) -> str:
    milliseconds = int(at.timestamp() * 1000)
    bits = milliseconds << 80 | 7 << 76 | random.getrandbits(12) << 64
    return str(UUID(int=bits | 0b10 << 62 | random.getrandbits(62)))


def _text(random: Random, length: int) -> str:
    return " ".join(random.choices(_WORDS, k=length // 7))
