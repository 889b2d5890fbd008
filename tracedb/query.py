"""A statement as a value, and the two drivers that execute it: all I/O of the data layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.pq import TransactionStatus
from psycopg.rows import BaseRowFactory

from tracedb import resources
from tracedb.errors import NotMigrated, TracedbError, error_class

T = TypeVar("T")
Row = TypeVar("Row")


def statement(name: str, file: str = "queries.sql") -> LiteralString:
    """A named statement of a .sql file of this package: ours, and therefore literal."""
    return resources.statements(file)[name]


SET_TENANT = statement("set_tenant")

# Each try ends because another transaction got on, so that a few will do.
ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """A statement bound to its arguments, and how its rows become the answer. Does no I/O.

    The tenant it runs for is added to the arguments as `tenant_id`. A statement that sets its
    tenant itself may be `alone`: without a transaction around it a single record costs less.
    """

    sql: LiteralString
    args: Mapping[str, object]
    row: BaseRowFactory[Any]
    answer: Callable[[Sequence[Any]], T]
    # what to answer without a database, where no rows are not an answer
    without: Callable[[], T] | None = None
    alone: bool = False

    def empty(self) -> T:
        """What a graceful client answers when the database does not."""
        return self.answer(()) if self.without is None else self.without()


def many(rows: Sequence[Row]) -> list[Row]:
    """The answer is all rows."""
    return list(rows)


def one(rows: Sequence[Row]) -> Row:
    """The answer is the only row."""
    (row,) = rows
    return row


def maybe(rows: Sequence[Row]) -> Row | None:
    """The answer is the only row, or None."""
    return rows[0] if rows else None


def nothing() -> Any:
    """The answer without a database is None."""
    return None


def run(conn: Connection[Any], query: Query[T], tenant_id: UUID | None = None) -> T:
    """Execute a query as a tenant: in one round trip, or in the transaction that is open.

    A transaction of its own that lost to another one (a deadlock, a serialization failure) is
    tried again: the database undid it whole.
    """
    with typed_errors():
        if conn.info.transaction_status != TransactionStatus.IDLE:
            with conn.transaction():
                return query.answer(_begin(conn, query, tenant_id).fetchall())
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                if query.alone and conn.autocommit:
                    cursor = _execute(conn, query, tenant_id)
                    break
                with conn.pipeline(), conn.transaction():
                    cursor = _begin(conn, query, tenant_id)
                break
            except psycopg.Error as error:
                # what fails in a pipeline takes the rest of it along, the transaction's end too
                if not conn.closed:
                    conn.rollback()
                if not (attempts_left and _is_passing(error)):
                    raise
        return query.answer(cursor.fetchall())


async def run_async(
    conn: AsyncConnection[Any], query: Query[T], tenant_id: UUID | None = None
) -> T:
    """`run` for asyncio."""
    with typed_errors():
        if conn.info.transaction_status != TransactionStatus.IDLE:
            async with conn.transaction():
                return query.answer(await (await _begin_async(conn, query, tenant_id)).fetchall())
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                if query.alone and conn.autocommit:
                    cursor = await _execute_async(conn, query, tenant_id)
                    break
                async with conn.pipeline(), conn.transaction():
                    cursor = await _begin_async(conn, query, tenant_id)
                break
            except psycopg.Error as error:
                if not conn.closed:
                    await conn.rollback()
                if not (attempts_left and _is_passing(error)):
                    raise
        return query.answer(await cursor.fetchall())


def _begin(conn: Connection[Any], query: Query[Any], tenant_id: UUID | None) -> Cursor[Any]:
    if tenant_id is not None:
        conn.execute(SET_TENANT, {"tenant_id": tenant_id})
    return _execute(conn, query, tenant_id)


def _execute(conn: Connection[Any], query: Query[Any], tenant_id: UUID | None) -> Cursor[Any]:
    cursor = conn.cursor(row_factory=query.row)
    return cursor.execute(query.sql, {**query.args, "tenant_id": tenant_id})


async def _begin_async(
    conn: AsyncConnection[Any], query: Query[Any], tenant_id: UUID | None
) -> AsyncCursor[Any]:
    if tenant_id is not None:
        await conn.execute(SET_TENANT, {"tenant_id": tenant_id})
    return await _execute_async(conn, query, tenant_id)


async def _execute_async(
    conn: AsyncConnection[Any], query: Query[Any], tenant_id: UUID | None
) -> AsyncCursor[Any]:
    cursor = conn.cursor(row_factory=query.row)
    return await cursor.execute(query.sql, {**query.args, "tenant_id": tenant_id})


def _is_passing(error: psycopg.Error) -> bool:
    return (error.sqlstate or "").startswith("40")


@contextmanager
def typed_errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise typed(error) from error


def typed(error: psycopg.Error) -> TracedbError:
    """The error of our tree for one of the database: its message and hint, without row values.

    Of a violated constraint the message is what the schema says of it: the field and the rule.
    """
    text = error.diag.message_primary or str(error)
    if isinstance(error, psycopg.errors.CheckViolation):
        text = resources.rules().get(error.diag.constraint_name or "", text)
    if error.diag.message_hint:
        text = f"{text}. {error.diag.message_hint}"
    kind = error_class(error)
    return kind(f"{kind()} ({text})" if kind is NotMigrated else text)
