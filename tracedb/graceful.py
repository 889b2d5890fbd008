"""The client for services that must run without a database too: nothing is raised, all is counted.

`tracedb.connect(graceful=True)` gives one. A call that the database does not do, for whatever
reason, answers as an empty database would (`Query.empty`), is counted by its name in `not_done`,
and is told of in the log once, until it works again. While nothing answers, a call does not wait
for the connection that the pool is trying to make.

Raised is what is wrong in the program itself, with a database or without: a connection string that
is none, a tenant id that is no UUID, arguments that a function does not have. So is what goes wrong
in a block of `connection()`, which is psycopg's own.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from threading import Lock
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from tracedb import resources, storing
from tracedb.client import (
    AsyncConnecting,
    AsyncTenant,
    AsyncTraceDB,
    Connecting,
    Tenant,
    TraceDB,
)
from tracedb.errors import ConnectionFailed, NotMigrated, TracedbError
from tracedb.query import Query, typed
from tracedb.records import Record
from tracedb.rows import Receipt

log = logging.getLogger("tracedb")

T = TypeVar("T")

# seconds that a call waits for a connection while there is none
PATIENCE = 0.05
# of an unregistered tenant, for which nothing can be done
NO_TENANT = UUID(int=0)

# each statement has the name of its call
_NAMES = {
    sql: name
    for file in (
        "queries.sql",
        "money.sql",
        "patterns.sql",
        "learning.sql",
        "retention.sql",
        "archive.sql",
    )
    for name, sql in resources.statements(file).items()
}
# what is wrong for all calls alike
_COMMON = (ConnectionFailed, NotMigrated)


class Grace:
    """Counts what was not done, and logs when that begins and ends. Safe between threads."""

    def __init__(self) -> None:
        self.not_done: Counter[str] = Counter()
        self.is_away = False
        self._lock = Lock()
        # what is wrong with which call; "" stands for all of them
        self._troubles: dict[str, str] = {}

    @contextmanager
    def absorbing(self, name: str) -> Iterator[None]:
        """Count a call whose block fails instead of raising its error."""
        try:
            yield
        except Exception as error:
            self.missed(name, error)
        else:
            self.did(name)

    def missed(self, name: str, error: Exception) -> None:
        """Count a call that was not done."""
        known = typed(error) if isinstance(error, psycopg.Error) else error
        is_common = isinstance(known, _COMMON)
        # the text may quote what it is about
        kind = type(known)
        trouble = kind.__name__
        if isinstance(known, TracedbError):
            trouble += f": {inspect.getdoc(kind)}"
        with self._lock:
            self.not_done[name] += 1
            self.is_away = isinstance(known, ConnectionFailed)
            scope = "" if is_common else name
            is_news = self._troubles.get(scope) != trouble
            self._troubles[scope] = trouble
        if is_news:
            what = "the database" if is_common else name
            log.warning("going on without %s, and counting what is not done: %s", what, trouble)

    def did(self, name: str) -> None:
        """Note that a call was done."""
        with self._lock:
            self.is_away = False
            ended = [scope for scope in ("", name) if self._troubles.pop(scope, None)]
        if ended:
            log.info("%s: done again", name)

    def patience(self) -> float | None:
        """How long to wait for a connection; None: as long as the pool says."""
        return PATIENCE if self.is_away else None


def _name(query: Query[Any]) -> str:
    return _NAMES.get(query.sql, "run")


class GracefulTraceDB(TraceDB):
    """`TraceDB` that raises nothing; see the module's description."""

    def __init__(self, pool: ConnectionPool[Connection[TupleRow]], grace: Grace) -> None:
        super().__init__(pool)
        self._grace = grace

    @property
    def not_done(self) -> dict[str, int]:
        """How many calls were not done, by name (of `ingest`: batches of up to 1,000 records)."""
        return dict(self._grace.not_done)

    def tenant(self, tenant_id: UUID | None) -> GracefulTenant:
        """The database as one tenant sees it; None, as `ensure_tenant` may answer, sees nothing."""
        if tenant_id is None:
            return GracefulTenant(_nobody, NO_TENANT, self._grace)
        return GracefulTenant(self.connection, tenant_id, self._grace)

    def run(self, query: Query[T]) -> T:
        """Execute a query for no tenant in particular."""
        with self._grace.absorbing(_name(query)):
            return super().run(query)
        return query.empty()

    def _patience(self) -> float | None:
        return self._grace.patience()


class GracefulTenant(Tenant):
    """`Tenant` that raises nothing."""

    def __init__(self, connection: Connecting, tenant_id: UUID, grace: Grace) -> None:
        super().__init__(connection, tenant_id)
        self._grace = grace

    def run(self, query: Query[T]) -> T:
        """Execute a query as this tenant."""
        with self._grace.absorbing(_name(query)):
            return super().run(query)
        return query.empty()

    def _store(self, portion: Sequence[Record], first: int) -> Receipt:
        with self._grace.absorbing("ingest"):
            return super()._store(portion, first)
        return storing.not_stored(portion, first)

    @contextmanager
    def transaction(self) -> Iterator[GracefulTenant]:
        """All calls in one transaction; counted as not done if it cannot begin or commit.

        The block runs in any case. What it raises itself undoes the transaction and goes on.
        """
        began = failed = False
        try:
            with self._connection() as conn, conn.transaction():
                began = True
                try:
                    yield GracefulTenant(lambda: nullcontext(conn), self.tenant_id, self._grace)
                except BaseException:
                    failed = True
                    raise
                _check(conn)
        except Exception as error:
            if failed:
                raise
            self._grace.missed("transaction", error)
        else:
            self._grace.did("transaction")
        if not began:
            yield GracefulTenant(_nobody, self.tenant_id, self._grace)


class AsyncGracefulTraceDB(AsyncTraceDB):
    """`GracefulTraceDB` for asyncio."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], grace: Grace) -> None:
        super().__init__(pool)
        self._grace = grace

    @property
    def not_done(self) -> dict[str, int]:
        """How many calls were not done, by name (of `ingest`: batches of up to 1,000 records)."""
        return dict(self._grace.not_done)

    def tenant(self, tenant_id: UUID | None) -> AsyncGracefulTenant:
        """The database as one tenant sees it; None, as `ensure_tenant` may answer, sees nothing."""
        if tenant_id is None:
            return AsyncGracefulTenant(_nobody_async, NO_TENANT, self._grace)
        return AsyncGracefulTenant(self.connection, tenant_id, self._grace)

    async def run(self, query: Query[T]) -> T:
        """Execute a query for no tenant in particular."""
        with self._grace.absorbing(_name(query)):
            return await super().run(query)
        return query.empty()

    def _patience(self) -> float | None:
        return self._grace.patience()


class AsyncGracefulTenant(AsyncTenant):
    """`GracefulTenant` for asyncio."""

    def __init__(self, connection: AsyncConnecting, tenant_id: UUID, grace: Grace) -> None:
        super().__init__(connection, tenant_id)
        self._grace = grace

    async def run(self, query: Query[T]) -> T:
        """Execute a query as this tenant."""
        with self._grace.absorbing(_name(query)):
            return await super().run(query)
        return query.empty()

    async def _store(self, portion: Sequence[Record], first: int) -> Receipt:
        with self._grace.absorbing("ingest"):
            return await super()._store(portion, first)
        return storing.not_stored(portion, first)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncGracefulTenant]:
        """All calls in one transaction; see `GracefulTenant.transaction`."""
        began = failed = False
        try:
            async with self._connection() as conn, conn.transaction():
                began = True
                try:
                    yield AsyncGracefulTenant(
                        lambda: nullcontext(conn), self.tenant_id, self._grace
                    )
                except BaseException:
                    failed = True
                    raise
                _check(conn)
        except Exception as error:
            if failed:
                raise
            self._grace.missed("transaction", error)
        else:
            self._grace.did("transaction")
        if not began:
            yield AsyncGracefulTenant(_nobody_async, self.tenant_id, self._grace)


def _check(conn: Connection[Any] | AsyncConnection[Any]) -> None:
    # psycopg ends the transaction of a lost connection without a word
    if conn.closed:
        raise ConnectionFailed


@contextmanager
def _nobody() -> Iterator[Connection[TupleRow]]:
    raise ConnectionFailed
    yield  # it is a generator


@asynccontextmanager
async def _nobody_async() -> AsyncIterator[AsyncConnection[TupleRow]]:
    raise ConnectionFailed
    yield
