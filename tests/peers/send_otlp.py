"""Worker: exports the spans by OTLP/HTTP, as binary protobuf. Needs opentelemetry-proto."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from peers.worker import Batch, Send, posting, work


def prepare(batches: list[Batch]) -> Send:
    return posting("application/x-protobuf", [(len(batch), encoded(batch)) for batch in batches])


def encoded(batch: Batch) -> bytes:
    resource = Resource(attributes=attributes({"service.name": "tracedb-peers"}))
    spans = ScopeSpans(spans=[message(span) for span in batch])
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[spans])]
    )
    return bytes(request.SerializeToString())


def message(span: dict[str, Any]) -> Any:
    return Span(
        trace_id=bytes.fromhex(span["trace_id"]),
        span_id=bytes.fromhex(span["span_id"]),
        parent_span_id=bytes.fromhex(span["parent_span_id"] or ""),
        name=span["name"],
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span["start"],
        end_time_unix_nano=span["end"],
        attributes=attributes(span["attributes"]),
        status=Status(code=Status.STATUS_CODE_OK),
    )


def attributes(values: dict[str, Any]) -> list[Any]:
    return [
        KeyValue(
            key=key,
            value=AnyValue(int_value=value)
            if isinstance(value, int)
            else AnyValue(string_value=value),
        )
        for key, value in values.items()
    ]


if __name__ == "__main__":
    work(prepare)
