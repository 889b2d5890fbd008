"""The fast way in: records as rows in PostgreSQL's binary format, for `tracedb.store_rows`.

Rows are made here of what is certain; a batch with anything else in it goes to `tracedb.ingest` as
JSON, which stores the same rows, only slower. So this module decides nothing: it completes records
as `tracedb.complete_record` does, and what becomes of rows that exist already is the server's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper, PyFormat
from psycopg.pq import Format

from tracedb import binary
from tracedb.binary import DAY, Doubtful, Encoder, JsonText, Labels, microseconds
from tracedb.columns import ARRAYS, COLUMNS, DEFAULTS, TYPES
from tracedb.records import Record

# Fields with a rule of their own (None below), and columns that are the server's.
_APART = frozenset(
    (
        *("tenant_id", "trace_id", "root_trace_id", "parent_trace_id", "span_id"),
        *("event_id", "kind", "content", "content_type", "recorded_at", "occurred_at"),
        *("started_at", "ended_at", "duration_ms", "duration_us", "status"),
        *("intent", "context", "tags", "doc_sources", "external_id"),
    )
)
# What a role that row-level security leaves alone copies into the tables. Traces may need merging,
# and texts the server's hand.
_COPIED = frozenset(ARRAYS) - {"traces", "stubs", "payloads", "texts"}
_COPY_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_END = b"\xff\xff"
# Fields that are no columns: every record's, and texts.
_NO_COLUMNS = ("type", "external_id")
_TEXTS = {
    "execution_traces": ("prompt", "response"),
    **dict.fromkeys(
        ("agent_routing_decisions", "hook_executions", "endpoint_calls", "llm_spans"),
        ("input", "output"),
    ),
}
_OF_SERVER = frozenset({"created_at", "updated_at", "price_id", "computed_cost_usd", "provisional"})
# Texts that come again only by chance.
_LONG = frozenset({"reason", "error_message", "status_message", "script"})
# Arrays that are no JSON documents.
_LISTS = frozenset({"tags", "doc_sources", "intelligence_functions", "request_embedding"})
_NO_SPAN = bytes(8)
# as tracedb.store_traces would leave it
_STUB = b'\1{"status": 0, "started_at": 0}'
# JSON may spell a byte with six, and the server refuses a record of more than 20 MiB.
_MOST_RECORD_BYTES = 3 * 1024 * 1024
_LONGEST = 10**16  # microseconds
_OIDS = {
    **{"bool": 16, "bytea": 17, "int8": 20, "int4": 23, "text": 25, "float8": 701, "_text": 1009},
    **{"timestamptz": 1184, "numeric": 1700, "uuid": 2950, "jsonb": 3802},
}
_length = struct.Struct(">i").pack
_time = struct.Struct(">q").pack
_UUID = struct.pack(">Ii", _OIDS["uuid"], 16)
_SPAN = struct.pack(">Ii", _OIDS["bytea"], 8)
_TIME = struct.pack(">Ii", _OIDS["timestamptz"], 8)
_INT8 = struct.pack(">Ii", _OIDS["int8"], 8)
_JSONB = struct.pack(">I", _OIDS["jsonb"])
_NULL = _length(-1)
# What a value of another kind makes the functions here and in tracedb/binary.py raise.
_DOUBTS = (
    *(Doubtful, LookupError, TypeError, ValueError, AttributeError, ArithmeticError),
    *(RecursionError, StopIteration, struct.error),
)


@dataclass(frozen=True, slots=True)
class Array:
    """An array of rows, as it is sent."""

    oid: int
    data: bytes


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: Array, format: PyFormat) -> tuple[type, int]:  # type: ignore[override]
        return (Array, obj.oid)

    def upgrade(self, obj: Array, format: PyFormat) -> Dumper:
        dumper = _ArrayDumper(Array)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: Array) -> Buffer:
        return obj.data


psycopg.adapters.register_dumper(Array, _ArrayDumper)


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as the arguments of `tracedb.store_rows`."""

    received: int
    arguments: Mapping[str, object]
    copied: int
    copies: tuple[tuple[str, Sequence[str], bytes], ...]
    """What is to be copied besides, `copied` records: tables, their columns and the data."""


class _Table:
    """How the rows of a table are written: the place of each field, and the row without any."""

    def __init__(
        self,
        columns: str,
        texts: Sequence[str],
        oids: Mapping[str, int],
        row_oid: int,
        array_oid: int,
    ) -> None:
        self.texts = texts
        # number of columns, tenant_id, the id, the span's id, the first letter of the kind
        self._key = itemgetter(
            slice(36 if " span_id" not in columns else 61 if "kind" in columns else 52)
        )
        self._row_oid = row_oid
        self._array_oid = array_oid
        pairs = [column.split(" ") for column in columns.split(", ")]
        self.empty = [_length(len(pairs))]
        # the server's columns at the end are not copied
        reported = columns[: columns.index(", created_at")].split(", ")
        self.copied = [column.split(" ")[0] for column in reported]
        self.copy_count = struct.pack(">h", len(self.copied))
        self.place: dict[str, int] = {}
        self.encoders: dict[str, Encoder] = {}
        for place, (name, type_) in enumerate(pairs, start=1):
            head = struct.pack(">I", oids[type_])
            if type_ == "text" and name not in _LONG:
                encode: Encoder = Labels(head).__getitem__
            else:
                encode = binary.field(head, type_)
            self.place[name] = place
            self.encoders[name] = encode
            default = DEFAULTS.get(name)
            self.empty.append(head + _NULL if default is None else encode(default))
        self.started_at = self.place.get("started_at", 0)
        self.duration = "duration_us" if "duration_us" in self.place else "duration_ms"
        self.unit = 1 if self.duration == "duration_us" else 1000
        self.status = self.place.get("status", 0)
        self.labels = Labels(struct.pack(">I", oids["text"]))
        self.fields: dict[str, tuple[int, Encoder] | None] = {
            name: None if name in _APART else (self.place[name], encode)
            for name, encode in self.encoders.items()
            if name not in _OF_SERVER
        }
        self.fields |= dict.fromkeys((*_NO_COLUMNS, *texts))

    def array(self, rows: list[bytes]) -> Array:
        """The rows, sorted by their key; those of one key stay in the order they came in."""
        pieces = [struct.pack(">iiIii", 1, 0, self._row_oid, len(rows), 1)]
        for row in sorted(rows, key=self._key):
            pieces += (_length(len(row)), row)
        return Array(self._array_oid, b"".join(pieces))


class Layout:
    """How records become rows of one database."""

    @classmethod
    def read(cls, found: Sequence[Mapping[str, Any]]) -> Layout | None:
        """From the rows of the query `bulk_layout`; None if the tables are not as known here."""
        if {row["table_name"]: row["columns"] for row in found} != COLUMNS:
            return None
        return cls(found)

    def __init__(self, found: Sequence[Mapping[str, Any]]) -> None:
        self.may_copy = all(row["may_copy"] for row in found)
        # how many portions are not to be copied
        self.copy_pause = 0
        self._tables = {
            row["table_name"]: _Table(
                row["columns"],
                _TEXTS.get(row["table_name"], ()),
                _OIDS | {"vector": row["vector_oid"]},
                row["row_oid"],
                row["array_oid"],
            )
            for row in found
        }

    def rows(self, records: Iterable[Record], tenant_id: UUID, copies: bool = False) -> Rows | None:
        """The records as rows; None if only `tracedb.ingest` can tell what they mean.

        With `copies` most of them are left to `copy`, which row-level security forbids.
        """
        batch = _Batch(self._tables, tenant_id, copies)
        try:
            for record in records:
                batch.add(record)
            return batch.rows()
        except _DOUBTS:
            return None

    def rows_of_texts(self, texts: Iterable[str], tenant_id: UUID) -> Rows | None:
        """`rows` of records given as their JSON texts."""
        return self.rows((binary.parsed(text, _LISTS) for text in texts), tenant_id)


class _Id(NamedTuple):
    field: bytes
    time: int
    key: str


class _Ids(dict[object, _Id]):
    """Trace ids by their spelling: as a field, the time in it, and as `tracedb.external_key`."""

    def __missing__(self, spelled: object) -> _Id:
        raw = binary.uuid7(spelled)
        found = _Id(_UUID + raw, binary.uuid_time(raw), raw.hex())
        self[spelled] = found
        return found

    def near(self, spelled: object, time: int) -> bytes:
        """The field of an id; doubtful if its time is not the record's: then it may be foreign."""
        found = self[spelled]
        if not -DAY <= found.time - time <= DAY:
            raise Doubtful
        return found.field


class _Batch:
    """Records on their way to being rows."""

    def __init__(self, tables: Mapping[str, _Table], tenant_id: UUID, copies: bool) -> None:
        self._tenant_id = str(tenant_id)
        self._tenant_field = _length(16) + tenant_id.bytes
        self._copied = _COPIED if copies else frozenset()
        self._received = 0
        self._ids = _Ids()
        self._tables = {array: tables[table] for array, table in ARRAYS.items()}
        self._rows: dict[str, list[bytes]] = {array: [] for array in ARRAYS}
        self._kinds = {
            type_: (
                self._tables[array],
                self._rows[array],
                array in self._copied,
                _FINISHERS.get(type_, _Batch._finish_part),
            )
            for type_, (array, _) in TYPES.items()
        }
        self._reported: set[bytes] = set()
        # when the earliest part of each trace began
        self._begun: dict[bytes, int] = {}

    def add(self, record: Record) -> None:
        table, rows, copied, finish = self._kinds[record["type"]]
        row = table.empty.copy()
        fields = table.fields
        for name, value in record.items():
            field = fields[name]
            if field is not None and value is not None:
                row[field[0]] = field[1](value)
        finish(self, record, row, table)
        if record.get("external_id") is not None:
            raise Doubtful
        tenant_id = record.get("tenant_id")
        if tenant_id is not None and str(tenant_id).lower() != self._tenant_id:
            raise Doubtful
        if copied:
            # without the types, and without the server's columns at the end
            given = row[2 : len(table.copied) + 1]
            row = [table.copy_count, self._tenant_field, *[field[4:] for field in given]]
        written = b"".join(row)
        if len(written) > _MOST_RECORD_BYTES:
            raise Doubtful
        rows.append(written)
        self._received += 1

    def rows(self) -> Rows:
        if self._rows["payloads"] and self._rows["texts"]:
            # one may be given as both, and only the former counts
            raise Doubtful
        stub = self._tables["stubs"]
        for trace_id, begun in self._begun.items():
            if trace_id not in self._reported:
                row = stub.empty.copy()
                row[stub.place["trace_id"]] = trace_id
                row[stub.place["status"]] = stub.encoders["status"]("running")
                row[stub.place["started_at"]] = _TIME + _time(begun)
                row[stub.place["provisional"]] = _JSONB + _length(len(_STUB)) + _STUB
                self._rows["stubs"].append(b"".join(row))
        arguments: dict[str, object] = {
            array: self._tables[array].array(rows) if rows and array not in self._copied else None
            for array, rows in self._rows.items()
        }
        arguments["trace_keys"] = [known.key for known in self._ids.values()]
        copies = tuple(
            (
                ARRAYS[array],
                self._tables[array].copied,
                b"".join([_COPY_HEAD, *sorted(self._rows[array]), _COPY_END]),
            )
            for array in ARRAYS
            if array in self._copied and self._rows[array]
        )
        copied = sum(len(self._rows[array]) for array in self._copied)
        return Rows(self._received, arguments, copied, copies)

    def _finish_trace(self, record: Record, row: list[bytes], table: _Table) -> None:
        start = microseconds(record["started_at"])
        trace_id = self._ids.near(record["trace_id"], start)
        place, encoders = table.place, table.encoders
        row[place["trace_id"]] = trace_id
        for name in ("parent_trace_id", "root_trace_id"):
            if (value := record.get(name)) is not None:
                row[place[name]] = self._ids.near(value, start)
        # What says nothing is not stored, and sets are sorted: see tracedb.report_of.
        for name in ("tags", "doc_sources"):
            if (value := record.get(name)) is not None:
                if type(value) is not list:
                    raise Doubtful
                row[place[name]] = encoders[name](sorted(set(value)))
        if (value := record.get("context")) is not None:
            if not (type(value) is dict or (type(value) is JsonText and value[0] == "{")):
                raise Doubtful
            row[place["context"]] = encoders["context"](value)
        if (value := record.get("intent")) is not None:
            written = encoders["intent"](value)
            if not written.endswith((b"\1[]", b"\1false")):
                row[place["intent"]] = written
        self._complete(record, row, table, start)
        self._reported.add(trace_id)
        self._add_texts(record, table.texts, trace_id, _NO_SPAN, start)

    def _finish_part(self, record: Record, row: list[bytes], table: _Table) -> None:
        start = microseconds(record["started_at"])
        trace_id = self._ids.near(record["trace_id"], start)
        span_id = binary.span_id(record["span_id"])
        row[2] = trace_id
        row[3] = _SPAN + span_id
        self._complete(record, row, table, start)
        if start < self._begun.get(trace_id, _LONGEST):
            self._begun[trace_id] = start
        self._add_texts(record, table.texts, trace_id, span_id, start)

    def _finish_payload(self, record: Record, row: list[bytes], table: _Table) -> None:
        at = microseconds(record["recorded_at"])
        trace_id = self._ids.near(record["trace_id"], at)
        given = record.get("span_id")
        span_id = _NO_SPAN if given is None else binary.span_id(given)
        content, content_type = record["content"], record.get("content_type")
        if content_type is None:
            content_type = "text/plain"
        if type(content) is not str or type(content_type) is not str:
            raise Doubtful
        row[1:] = self._payload(trace_id, span_id, record["kind"], content, content_type, at)
        if at < self._begun.get(trace_id, _LONGEST):
            self._begun[trace_id] = at

    def _finish_event(self, record: Record, row: list[bytes], table: _Table) -> None:
        at = microseconds(record["occurred_at"])
        raw = binary.uuid7(record["event_id"])
        if not -DAY <= binary.uuid_time(raw) - at <= DAY:
            raise Doubtful
        row[2] = _UUID + raw
        row[4] = _TIME + _time(at)
        if (value := record.get("trace_id")) is not None:
            row[table.place["trace_id"]] = self._ids.near(value, at)

    def _complete(self, record: Record, row: list[bytes], table: _Table, start: int) -> None:
        """The end from the duration or the duration from the end; without both it still runs."""
        end = record.get("ended_at")
        unit = table.unit
        duration = record.get(table.duration)
        place = table.started_at
        if end is not None:
            end = microseconds(end)
        if duration is not None:
            if type(duration) is not int or not 0 <= duration * unit < _LONGEST:
                raise Doubtful
            if end is None:
                end = start + duration * unit
        elif end is not None:
            duration = max((end - start + unit // 2) // unit, 0)
        row[place] = _TIME + _time(start)
        if end is not None:
            row[place + 1] = _TIME + _time(end)
            row[place + 2] = _INT8 + _time(duration)
        status = record.get("status")
        if status is None:
            status = "running" if end is None else "ok"
        row[table.status] = table.labels[status]

    def _add_texts(
        self, record: Record, kinds: Sequence[str], trace_id: bytes, span_id: bytes, at: int
    ) -> None:
        for kind in kinds:
            value = record.get(kind)
            if value is None:
                continue
            if type(value) is str:
                row = self._payload(trace_id, span_id, kind, value, "text/plain", at)
            else:
                document = binary.jsonb(value)[1:].decode()
                row = self._payload(trace_id, span_id, kind, document, None, at)
            if sum(map(len, row)) > _MOST_RECORD_BYTES // 2:
                raise Doubtful
            self._rows["texts"].append(self._tables["texts"].empty[0] + b"".join(row))

    def _payload(
        self,
        trace_id: bytes,
        span_id: bytes,
        kind: str,
        content: str,
        content_type: str | None,
        at: int,
    ) -> list[bytes]:
        """The fields of a payload; without content_type the content is a JSON document."""
        table = self._tables["texts"]
        encoders = table.encoders
        row = table.empty[1:]
        row[1:4] = (trace_id, _SPAN + span_id, encoders["kind"](kind))
        row[4] = encoders["content"](content)
        if content_type is not None:
            row[5] = encoders["content_type"](content_type)
        row[6] = _TIME + _time(at)
        return row


_FINISHERS = {
    "trace": _Batch._finish_trace,
    "payload": _Batch._finish_payload,
    "platform_event": _Batch._finish_event,
    "cost_event": _Batch._finish_event,
    "agent_execution": _Batch._finish_event,
}
