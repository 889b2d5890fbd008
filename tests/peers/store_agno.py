"""Worker: stores the spans through agno's PostgresDb, as its own exporter does."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from agno.db.postgres import PostgresDb
from agno.tracing.schemas import Span, create_trace_from_spans

from peers.worker import Batch, Send, work


def prepare(batches: list[Batch]) -> Send:
    database = PostgresDb(db_url=os.environ["AGNO_DATABASE_URL"])
    spans = [converted(span) for batch in batches for span in batch]
    traces = [list(trace) for _, trace in groupby(spans, key=lambda span: span.trace_id)]

    def send() -> int:
        for trace in traces:
            database.upsert_trace(create_trace_from_spans(trace))
            database.create_spans(trace)
        return len(spans)

    return send


def converted(span: dict[str, Any]) -> Any:
    start, end = (datetime.fromtimestamp(span[key] / 1e9, UTC) for key in ("start", "end"))
    return Span(
        span_id=span["span_id"],
        trace_id=span["trace_id"],
        parent_span_id=span["parent_span_id"],
        name=span["name"],
        span_kind="INTERNAL",
        status_code="OK",
        status_message=None,
        start_time=start,
        end_time=end,
        duration_ms=(span["end"] - span["start"]) // 1_000_000,
        attributes=span["attributes"],
        created_at=datetime.now(UTC),
    )


if __name__ == "__main__":
    work(prepare)
