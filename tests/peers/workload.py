"""The spans that every system is given: the same ones in every run, other ones in every round."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

# As JSON carries it: ids are hex digits, times nanoseconds, attributes flat, as in OpenTelemetry.
Span = dict[str, Any]

SPANS_PER_TRACE = 6
TENANT = UUID(int=0x7E_0000)
# OpenTelemetry's batch processor sends up to 512 spans at once; here no trace is cut in two.
_TRACES_PER_BATCH = 85
_FIRST = datetime(2026, 1, 5, tzinfo=UTC)
_ROUND = timedelta(hours=1)
_MODELS = {"gpt-4.1-mini": "openai", "claude-haiku": "anthropic"}
_VOCABULARY = """
    agent answer balance booking call cancel check confirm context customer date delay detail email
    error fare flight found hotel input item latency order passenger payment policy price query
    reason refund request reservation response result retry route seat search select session status
"""
_WORDS = _VOCABULARY.split()


def batches(spans: int, round: int) -> list[list[Span]]:
    """Whole traces of six spans of about 1.4 KB, as an exporter would send them."""
    traces = list(_traces(spans // SPANS_PER_TRACE, round))
    return [
        [span for trace in traces[n : n + _TRACES_PER_BATCH] for span in trace]
        for n in range(0, len(traces), _TRACES_PER_BATCH)
    ]


def interval(round: int) -> tuple[datetime, datetime]:
    """What the spans of a round lie in, and those of no other."""
    return _FIRST + round * _ROUND, _FIRST + (round + 1) * _ROUND


def write(file: Path, batches: list[list[Span]]) -> None:
    """One batch a line, for the workers."""
    file.write_text("".join(f"{json.dumps(batch)}\n" for batch in batches))


def as_records(batch: list[Span]) -> list[dict[str, Any]]:
    """The same spans as records of tracedb, and the header of each trace before its root."""
    return [record for span in batch for record in _records(span)]


def _records(span: Span) -> Iterator[dict[str, Any]]:
    attributes = span["attributes"]
    trace_id = str(UUID(span["trace_id"]))
    times = {"started_at": _time(span["start"]), "ended_at": _time(span["end"])}
    if span["parent_span_id"] is None:
        yield {
            "type": "trace",
            "trace_id": trace_id,
            "name": span["name"],
            "session_id": attributes["session.id"],
            "user_id": attributes["user.id"],
            "status": "ok",
            **times,
        }
    yield {
        "type": "span",
        "trace_id": trace_id,
        "span_id": span["span_id"],
        "parent_span_id": span["parent_span_id"],
        "name": span["name"],
        "operation_type": attributes["openinference.span.kind"].lower(),
        "provider": attributes["llm.provider"],
        "request_model": attributes["llm.model_name"],
        "input_tokens": attributes["llm.token_count.prompt"],
        "output_tokens": attributes["llm.token_count.completion"],
        "attributes": attributes,
        **times,
    }


def _traces(count: int, round: int) -> Iterator[list[Span]]:
    random = Random(round)
    first, last = interval(round)
    for n in range(count):
        yield _trace(first + (last - first) * 0.9 * n / count, random)


def _trace(at: datetime, random: Random) -> list[Span]:
    # A UUIDv7 is a valid trace id of OpenTelemetry too.
    bits = int(at.timestamp() * 1000) << 80 | 7 << 76 | random.getrandbits(12) << 64
    trace_id = f"{bits | 0b10 << 62 | random.getrandbits(62):032x}"
    ids = [f"{random.getrandbits(60) << 4 | no + 1:016x}" for no in range(SPANS_PER_TRACE)]
    context = {
        "session.id": f"session-{random.randrange(10_000)}",
        "user.id": f"user-{random.randrange(2_000)}",
    }
    return [
        _span(trace_id, id, ids[0] if no else None, at, no, context, random)
        for no, id in enumerate(ids)
    ]


def _span(
    trace_id: str,
    span_id: str,
    parent: str | None,
    at: datetime,
    no: int,
    context: dict[str, str],
    random: Random,
) -> Span:
    start = int(at.timestamp() * 1e6) * 1000 + no * 1_000_000
    model = random.choice(list(_MODELS))
    prompt, completion = random.randrange(200, 8_000), random.randrange(20, 900)
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_span_id": parent,
        "name": f"step {no}" if parent else "answer a request",
        "start": start,
        "end": start + random.randrange(1_000, 900_000) * 1000,
        "attributes": {
            "openinference.span.kind": "LLM" if parent else "AGENT",
            "llm.provider": _MODELS[model],
            "llm.model_name": model,
            "llm.token_count.prompt": prompt,
            "llm.token_count.completion": completion,
            "llm.token_count.total": prompt + completion,
            "input.value": _text(random, 550),
            "output.value": _text(random, 450),
            **context,
        },
    }


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat()


def _text(random: Random, length: int) -> str:
    return " ".join(random.choices(_WORDS, k=length // 7))
