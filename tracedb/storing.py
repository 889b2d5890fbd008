"""How records get in: as rows where that is certain, else as JSON; the same in both colours."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn
from psycopg.rows import dict_row
from psycopg.waiting import Ready, Wait

from tracedb import queries
from tracedb.bulk import Layout, Rows
from tracedb.columns import COLUMNS
from tracedb.errors import TracedbError
from tracedb.query import Query, one, run, run_async, statement, typed_errors
from tracedb.records import MAX_RECORDS, Record, batches
from tracedb.rows import Receipt

# Queries that are made while the server is busy with those before.
Stream = Iterator[Query[Receipt]]
Steps = Generator[Query[Any] | Stream, Any, Receipt]

# A portion that is larger is sent in pieces, so that client and server work at the same time.
PIECE_RECORDS = 200


class _NotRows(TracedbError):
    """A record of the stream is for `tracedb.ingest`."""


# What the server of each connection takes; None: only JSON.
_layouts: WeakKeyDictionary[object, Layout | None] = WeakKeyDictionary()


def bulk_layout() -> Query[Layout | None]:
    """How rows are to be written for this server; None if it takes only JSON."""
    args = {"tables": list(COLUMNS)}
    return Query(statement("bulk_layout", "bulk.sql"), args, dict_row, Layout.read)


def layout_of(conn: Connection[Any]) -> Layout | None:
    """`bulk_layout` of this connection, which is asked for once."""
    if conn not in _layouts:
        query = bulk_layout()
        cursor = conn.cursor(row_factory=query.row).execute(query.sql, query.args)
        _layouts[conn] = query.answer(cursor.fetchall())
    return _layouts[conn]


def forget_layout(conn: object, error: BaseException | None) -> None:
    """Ask for it again if this error says that the tables have changed."""
    if sqlstate(error).startswith("42"):
        _layouts.pop(conn, None)


def store_rows(batch: Rows) -> Query[Receipt]:
    """Store a batch that was made to rows (`tracedb.store_rows`)."""

    def receipt(found: Sequence[dict[str, Any]]) -> Receipt:
        row = one(found)
        duplicates = batch.received - row["inserted"] - row["merged"]
        return Receipt(batch.received, row["inserted"], row["merged"], duplicates)

    return Query(
        statement("store_rows", "bulk.sql"), batch.arguments, dict_row, receipt, alone=True
    )


def portions(records: Iterable[Record]) -> Iterator[tuple[int, list[Record]]]:
    """Cut records into portions for one transaction each; with the position of the first."""
    rest = iter(records)
    first = 0
    while portion := list(islice(rest, MAX_RECORDS)):
        yield first, portion
        first += len(portion)


def store(
    conn: Connection[Any], tenant_id: UUID, records: Sequence[Record], first: int = 0
) -> Receipt:
    """Store a portion of records; `first` is the position of the first one in the call."""
    steps = _steps(conn, tenant_id, records, first)
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Query):
                    answer: Any = run(conn, step, tenant_id)
                else:
                    answer = _stream(conn, step, tenant_id)
            except TracedbError as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        receipt: Receipt = done.value
        return receipt


async def store_async(
    conn: AsyncConnection[Any], tenant_id: UUID, records: Sequence[Record], first: int = 0
) -> Receipt:
    """`store` for asyncio."""
    steps = _steps(conn, tenant_id, records, first)
    try:
        step = next(steps)
        while True:
            try:
                if isinstance(step, Query):
                    answer: Any = await run_async(conn, step, tenant_id)
                else:
                    answer = await _stream_async(conn, step, tenant_id)
            except TracedbError as error:
                step = steps.throw(error)
            else:
                step = steps.send(answer)
    except StopIteration as done:
        receipt: Receipt = done.value
        return receipt


def not_stored(records: Sequence[Record], first: int) -> Receipt:
    """The receipt of a portion that could not be stored, each record rejected."""
    empty = (queries.ingest(batch).empty() for batch in batches(records, first))
    return sum(empty, Receipt())


def _steps(conn: object, tenant_id: UUID, records: Sequence[Record], first: int) -> Steps:
    """What is to be done, each step after what came of the one before."""
    if conn not in _layouts:
        _layouts[conn] = yield bulk_layout()
    layout = _layouts[conn]
    pieces = _pieces(records)
    while layout is not None:
        try:
            if len(pieces) > 1:
                streamed: Receipt = yield _made(layout, pieces, tenant_id)
                return streamed
            rows = layout.rows(records, tenant_id)
            if rows is None:
                break
            receipt: Receipt = yield store_rows(rows)
            return receipt
        except _NotRows:
            break
        except TracedbError as error:
            state = sqlstate(error.__cause__)
            if len(pieces) > 1 and state.startswith("40"):
                # as one statement it is tried again
                pieces = [records]
                continue
            if not is_for_ingest(state):
                raise
            forget_layout(conn, error.__cause__)
            break
    receipt = Receipt()
    for batch in batches(records, first):
        receipt += yield queries.ingest(batch)
    return receipt


def _pieces(records: Sequence[Record]) -> list[Sequence[Record]]:
    """The records in the order of their traces, none of which is in two pieces.

    In that order no two portions can wait for each other.
    """
    if len(records) <= PIECE_RECORDS:
        return [records]
    try:
        keys = [
            str(record.get("trace_id") or record.get("event_id")).replace("-", "").lower()
            for record in records
        ]
    except AttributeError:
        return [records]
    pieces = []
    piece: list[Record] = []
    last = ""
    for key, place in sorted(zip(keys, range(len(keys)), strict=True)):
        if len(piece) >= PIECE_RECORDS and key != last:
            pieces.append(piece)
            piece = []
        piece.append(records[place])
        last = key
    return [*pieces, piece]


def _made(layout: Layout, pieces: Iterable[Sequence[Record]], tenant_id: UUID) -> Stream:
    for piece in pieces:
        rows = layout.rows(piece, tenant_id)
        if rows is None:
            raise _NotRows
        yield store_rows(rows)


def _stream(conn: Connection[Any], queries: Stream, tenant_id: UUID) -> Receipt:
    sent = []
    with typed_errors(), conn.pipeline() as pipeline, conn.transaction():
        try:
            for query in queries:
                cursor = conn.cursor(row_factory=query.row)
                args = {**query.args, "tenant_id": tenant_id}
                sent.append((query, cursor.execute(query.sql, args)))
                conn.wait(_flush(conn.pgconn))
        except BaseException:
            # what failed takes the rest of the pipeline along, the transaction's end too
            with suppress(psycopg.Error):
                pipeline.sync()
            raise
    return sum((query.answer(cursor.fetchall()) for query, cursor in sent), Receipt())


async def _stream_async(conn: AsyncConnection[Any], queries: Stream, tenant_id: UUID) -> Receipt:
    sent = []
    with typed_errors():
        async with conn.pipeline() as pipeline, conn.transaction():
            try:
                for query in queries:
                    cursor = conn.cursor(row_factory=query.row)
                    args = {**query.args, "tenant_id": tenant_id}
                    sent.append((query, await cursor.execute(query.sql, args)))
                    await conn.wait(_flush(conn.pgconn))
            except BaseException:
                with suppress(psycopg.Error):
                    await pipeline.sync()
                raise
        return sum([query.answer(await cursor.fetchall()) for query, cursor in sent], Receipt())


def _flush(pgconn: PGconn) -> PQGen[None]:
    """Hand all that is to be sent to the network: the driver leaves the last of it for later."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()


def sqlstate(error: BaseException | None) -> str:
    return (isinstance(error, psycopg.Error) and error.sqlstate) or ""


def is_for_ingest(state: str) -> bool:
    """Whether an SQLSTATE leaves it to `tracedb.ingest` to say what is wrong, if anything.

    That is so for what is about the data, and for a server whose tables or policies have changed;
    not for a right that is missing, or a pooler that does not know prepared statements.
    """
    return state == "TD003" or (
        state[:2] in ("0A", "22", "23", "42", "54") and state not in ("42501", "42P05")
    )
