"""The fast way in: records as rows in PostgreSQL's binary format, for `tracedb.store_rows`.

Rows are made here of what is certain; a batch with anything else in it goes to `tracedb.ingest` as
JSON, which stores the same rows, only slower. So this module decides nothing: it completes records
as `tracedb.complete_record` does, and what becomes of rows that exist already is the server's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper, PyFormat
from psycopg.pq import Format

from tracedb import binary
from tracedb.binary import DAY, NULL, Doubtful, Encoder, Labels, microseconds
from tracedb.columns import ARRAYS, COLUMNS, DEFAULTS, TYPES
from tracedb.records import Record

# The columns that more is done about than to encode a field, in the order in which it is done. The
# start of a run brings the next two with it, its end and its duration.
_PART = ("trace_id", "span_id", "status", "started_at")
_EVENT = ("event_id", "event_key", "occurred_at", "trace_id")
_MADE = {
    "execution_traces": (
        *("trace_id", "root_trace_id", "parent_trace_id", "external_id"),
        *("status", "started_at"),
    ),
    "agent_routing_decisions": _PART,
    "hook_executions": _PART,
    "endpoint_calls": _PART,
    "llm_spans": _PART,
    "trace_payloads": ("trace_id", "span_id", "kind", "content", "content_type", "recorded_at"),
    "platform_events": _EVENT,
    "tenant_cost_events": _EVENT,
    "agent_executions": _EVENT,
}
_WITH_START = ("ended_at", "duration_ms", "duration_us")
# Fields that every record may have, and need not be columns.
_COMMON = ("type", "tenant_id", "external_id")
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
# Columns of traces with a form of their own: see tracedb.report_of.
_FORMS = {"intent": "intent", "context": "object", "tags": "set", "doc_sources": "set"}
# as tracedb.store_traces would leave it
_STUB = b'\1{"status": 0, "started_at": 0}'
# JSON may spell a byte with six, and the server refuses a record of more than 20 MiB.
_MOST_RECORD_BYTES = 3 * 1024 * 1024
_LONGEST = 10**16  # microseconds
# So many sets of fields are remembered of a table.
_SHAPES = 1000
_OIDS = {
    **{"bool": 16, "bytea": 17, "int8": 20, "int4": 23, "text": 25, "float8": 701, "_text": 1009},
    **{"timestamptz": 1184, "numeric": 1700, "uuid": 2950, "jsonb": 3802},
}
_length = struct.Struct(">i").pack
_time = struct.Struct(">iq").pack
_UUID = _length(16)
_SPAN = _length(8)
_NO_SPAN = _SPAN + bytes(8)
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


@dataclass(frozen=True, slots=True)
class _Shape:
    """How the records of a table that have the same fields become rows."""

    # of each field, in the record's order; None: it is not simply encoded
    encoders: tuple[Encoder | None, ...]
    # The row, with gaps for what was made and what was encoded; `arrange` puts that in order.
    template: bytes
    arrange: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
    texts: tuple[str, ...]
    # Whether it says of which tenant or foreign id it is.
    claims: bool

    def row(self, made: Sequence[bytes], fields: Sequence[bytes]) -> bytes:
        row = self.template % self.arrange((*made, *fields))
        if len(row) > _MOST_RECORD_BYTES:
            raise Doubtful
        return row


class _Table:
    """How the rows of a table are written as elements of an array."""

    def __init__(self, name: str, columns: str, vector_oid: int) -> None:
        pairs = [column.split(" ") for column in columns.split(", ")]
        self.columns = [column for column, _ in pairs]
        oids = _OIDS | {"vector": vector_oid}
        self._heads = {column: struct.pack(">I", oids[type_]) for column, type_ in pairs}
        self._count = struct.pack(">i", len(pairs))
        self._made = _MADE[name]
        self._texts = _TEXTS.get(name, ())
        run = [column for column in _WITH_START if column in self.columns]
        self._empty: dict[str, bytes] = {}
        self._encoders: dict[str, Encoder | None] = dict.fromkeys(
            (*_COMMON, *self._texts, *_MADE[name], *run)
        )
        for column, type_ in pairs:
            default = DEFAULTS.get(column)
            empty = NULL if default is None else binary.field(type_)(default)
            self._empty[column] = empty
            if column in self._encoders or column in _OF_SERVER:
                continue
            if type_ == "text" and column not in _LONG:
                self._encoders[column] = Labels().__getitem__
            else:
                self._encoders[column] = binary.field(_FORMS.get(column, type_), empty)
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self.label = Labels().__getitem__
        if run:
            _, self._duration = run
            self._unit = 1 if self._duration == "duration_us" else 1000
            self._run_heads = [self._heads[column] for column in run]
            head = f"{len(self._run_heads[0])}s"
            self._run = struct.Struct(f">iq{head}iq{head}iq").pack

    def shape(self, names: tuple[str, ...]) -> _Shape:
        found = self._shapes.get(names)
        if found is None:
            if len(self._shapes) == _SHAPES:
                self._shapes.clear()
            encoders = tuple(self._encoders[name] for name in names)
            encoded = [
                name for name, encode in zip(names, encoders, strict=True) if encode is not None
            ]
            found = self._shapes[names] = _Shape(
                encoders,
                *self._template((*self._made, *encoded)),
                tuple(kind for kind in self._texts if kind in names),
                "tenant_id" in names or "external_id" in names,
            )
        return found

    def stub(self, trace_id: bytes, begun: int) -> bytes:
        """The row of a trace that only parts are known of."""
        template, arrange = self._template(("trace_id", "status", "started_at", "provisional"))
        provisional = _length(len(_STUB)) + _STUB
        return template % arrange((trace_id, *self.run({}, begun), provisional))

    def _template(
        self, given: Sequence[str]
    ) -> tuple[bytes, Callable[[tuple[bytes, ...]], tuple[bytes, ...]]]:
        """The row with gaps for these columns, and what arranges their values."""
        template = [self._count]
        order = []
        columns = iter(self.columns)
        for column in columns:
            template.append(self._heads[column].replace(b"%", b"%%"))
            if column in given:
                template.append(b"%b")
                order.append(given.index(column))
            else:
                template.append(self._empty[column].replace(b"%", b"%%"))
            if column == "started_at":
                next(columns)
                next(columns)
        return b"".join(template), itemgetter(*order)

    def run(self, record: Record, start: int) -> tuple[bytes, bytes]:
        """The status, and the three fields of the times.

        The end is made of the duration or the duration of the end; without both it still runs.
        """
        end = record.get("ended_at")
        duration = record.get(self._duration)
        status = record.get("status")
        if end is not None:
            end = microseconds(end)
        if duration is not None:
            if type(duration) is not int or not 0 <= duration * self._unit < _LONGEST:
                raise Doubtful
            if end is None:
                end = start + duration * self._unit
        elif end is not None:
            duration = max((end - start + self._unit // 2) // self._unit, 0)
        ended, lasted = self._run_heads
        if end is None:
            times = b"".join((_time(8, start), ended, NULL, lasted, NULL))
        else:
            times = self._run(8, start, ended, 8, end, lasted, 8, duration)
        if status is None:
            status = "running" if end is None else "ok"
        return self.label(status), times


class Layout:
    """How records become rows of one database."""

    @classmethod
    def read(cls, found: Sequence[Mapping[str, Any]]) -> Layout | None:
        """From the rows of the query `bulk_layout`; None if the tables are not as known here."""
        if {row["table_name"]: row["columns"] for row in found} != COLUMNS:
            return None
        return cls(found)

    def __init__(self, found: Sequence[Mapping[str, Any]]) -> None:
        self._oids = {row["table_name"]: (row["row_oid"], row["array_oid"]) for row in found}
        tables = {
            row["table_name"]: _Table(row["table_name"], row["columns"], row["vector_oid"])
            for row in found
        }
        self._tables = {array: tables[table] for array, table in ARRAYS.items()}

    def rows(self, records: Iterable[Record], tenant_id: UUID) -> Rows | None:
        """The records as rows; None if only `tracedb.ingest` can tell what they mean."""
        batch = _Batch(self._tables, tenant_id)
        try:
            for record in records:
                batch.add(record)
            return batch.rows(self._oids)
        except _DOUBTS:
            return None

    def rows_of_texts(self, texts: Iterable[bytes], tenant_id: UUID) -> Rows | None:
        """`rows` of records given as their JSON texts."""
        return self.rows((binary.parsed(text) for text in texts), tenant_id)


class _Id(NamedTuple):
    field: bytes
    time: int
    key: str


class _Ids(dict[object, _Id]):
    """Trace ids by their spelling: as a field, the time in it, and as `tracedb.external_key`."""

    def __missing__(self, spelled: object) -> _Id:
        raw = binary.uuid(spelled)
        if not binary.is_uuid7(raw):
            raise Doubtful
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

    def __init__(self, tables: Mapping[str, _Table], tenant_id: UUID) -> None:
        self._tenant_id = str(tenant_id)
        self._received = 0
        self._ids = _Ids()
        self._tables = tables
        self._rows: dict[str, list[bytes]] = {array: [] for array in ARRAYS}
        self._kinds = {
            type_: (
                tables[array],
                self._rows[array].append,
                _MAKERS.get(type_, _Batch._part),
            )
            for type_, (array, _) in TYPES.items()
        }
        self._texts = tables["texts"]
        self._reported: set[bytes] = set()
        # when the earliest part of each trace began
        self._begun: dict[bytes, int] = {}

    def add(self, record: Record) -> None:
        table, keep, make = self._kinds[record["type"]]
        shape = table.shape(tuple(record))
        fields = [
            encode(value)
            for encode, value in zip(shape.encoders, record.values(), strict=True)
            if encode is not None
        ]
        if shape.claims:
            self._check(record)
        keep(shape.row(make(self, record, table, shape), fields))
        self._received += 1

    def rows(self, oids: Mapping[str, tuple[int, int]]) -> Rows:
        if self._rows["payloads"] and self._rows["texts"]:
            # one may be given as both, and only the former counts
            payloads = set(map(_PLACES["trace_payloads"], self._rows["payloads"]))
            if not payloads.isdisjoint(map(_PLACES["trace_payloads"], self._rows["texts"])):
                raise Doubtful
        for trace_id, begun in self._begun.items():
            if trace_id not in self._reported:
                self._rows["stubs"].append(self._tables["stubs"].stub(trace_id, begun))
        arguments: dict[str, object] = dict.fromkeys(ARRAYS)
        for array, rows in self._rows.items():
            table = ARRAYS[array]
            if rows:
                arguments[array] = _array(*oids[table], sorted(rows, key=_PLACES[table]))
        arguments["trace_keys"] = [known.key for known in self._ids.values()]
        return Rows(self._received, arguments)

    def _check(self, record: Record) -> None:
        tenant_id = record.get("tenant_id")
        if tenant_id is not None and str(tenant_id).lower() != self._tenant_id:
            raise Doubtful
        if record.get("external_id") is not None and record["type"] != "trace":
            raise Doubtful

    def _trace(self, record: Record, table: _Table, shape: _Shape) -> tuple[bytes, ...]:
        start = microseconds(record["started_at"])
        trace_id = self._ids.near(record["trace_id"], start)
        above = [
            NULL if value is None else self._ids.near(value, start)
            for value in (record.get("root_trace_id"), record.get("parent_trace_id"))
        ]
        external_id = record.get("external_id")
        if external_id is not None and binary.is_id(external_id):
            # it may be that of another record
            raise Doubtful
        self._reported.add(trace_id)
        self._add_texts(record, shape.texts, trace_id, _NO_SPAN, start)
        return (trace_id, *above, table.label(external_id), *table.run(record, start))

    def _part(self, record: Record, table: _Table, shape: _Shape) -> tuple[bytes, ...]:
        start = microseconds(record["started_at"])
        trace_id = self._ids.near(record["trace_id"], start)
        span_id = _SPAN + binary.span_id(record["span_id"])
        if start < self._begun.get(trace_id, _LONGEST):
            self._begun[trace_id] = start
        if shape.texts:
            self._add_texts(record, shape.texts, trace_id, span_id, start)
        return (trace_id, span_id, *table.run(record, start))

    def _payload(self, record: Record, table: _Table, shape: _Shape) -> tuple[bytes, ...]:
        at = microseconds(record["recorded_at"])
        trace_id = self._ids.near(record["trace_id"], at)
        given = record.get("span_id")
        span_id = _NO_SPAN if given is None else _SPAN + binary.span_id(given)
        if record["kind"] is None or record["content"] is None:
            raise Doubtful
        content_type = record.get("content_type")
        if at < self._begun.get(trace_id, _LONGEST):
            self._begun[trace_id] = at
        return (
            *(trace_id, span_id, table.label(record["kind"]), binary.text_field(record["content"])),
            table.label("text/plain" if content_type is None else content_type),
            _time(8, at),
        )

    def _event(self, record: Record, table: _Table, shape: _Shape) -> tuple[bytes, ...]:
        at = microseconds(record["occurred_at"])
        given, key, trace_id = (record.get(f) for f in ("event_id", "event_key", "trace_id"))
        event_id = None if given is None else binary.uuid(given)
        if event_id is None or not (
            binary.is_uuid7(event_id) and -DAY <= binary.uuid_time(event_id) - at <= DAY
        ):
            # as tracedb.event_id_of makes it
            of = key if event_id is None else UUID(bytes=event_id)
            if of is None:
                raise Doubtful
            event_id = binary.uuid_from_key(at, f"{self._tenant_id}/{record['type']}/{of}")
        return (
            *(_UUID + event_id, table.label(key), _time(8, at)),
            NULL if trace_id is None else self._ids.near(trace_id, at),
        )

    def _add_texts(
        self, record: Record, kinds: Sequence[str], trace_id: bytes, span_id: bytes, at: int
    ) -> None:
        """The texts given with a record; without content_type the content is a JSON document."""
        shape = self._texts.shape(())
        for kind in kinds:
            value = record[kind]
            if value is None:
                continue
            if type(value) is str:
                content, content_type = binary.text_field(value), "text/plain"
            else:
                document = binary.jsonb(value)[1:]
                content, content_type = _length(len(document)) + document, None
            if len(content) > _MOST_RECORD_BYTES // 2:
                raise Doubtful
            label = self._texts.label
            made = (trace_id, span_id, label(kind), content, label(content_type), _time(8, at))
            self._rows["texts"].append(shape.row(made, ()))


_MAKERS = {
    "trace": _Batch._trace,
    "payload": _Batch._payload,
    "platform_event": _Batch._event,
    "cost_event": _Batch._event,
    "agent_execution": _Batch._event,
}
# Where a row of an array has its key: number of columns, tenant_id, the id, the span's id, the
# first letter of the kind.
_PLACES: dict[str, Callable[[bytes], bytes]] = {
    table: itemgetter(
        slice(61 if "kind" in _MADE[table] else 52 if "span_id" in _MADE[table] else 36)
    )
    for table in COLUMNS
}


def _array(row_oid: int, array_oid: int, rows: Sequence[bytes]) -> Array:
    """Rows, sorted by their key; those of one key stay in the order they came in."""
    pieces = [struct.pack(">iiIii", 1, 0, row_oid, len(rows), 1)]
    for row in rows:
        pieces += (_length(len(row)), row)
    return Array(array_oid, b"".join(pieces))
