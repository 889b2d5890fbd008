"""The two colours of the client: a database, and a tenant of it, each over a psycopg pool."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Self, TypeVar, overload
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from tracedb import (
    archive,
    learning,
    maintenance,
    money,
    patterns,
    queries,
    restore,
    retention,
    storing,
)
from tracedb import dsn as where
from tracedb.errors import ConnectionFailed, InvalidInput, TenantMissing
from tracedb.query import Query, run, run_async
from tracedb.records import Record
from tracedb.rows import Receipt
from tracedb.writer import AsyncWriter, Writer

if TYPE_CHECKING:
    from tracedb.graceful import AsyncGracefulTraceDB, GracefulTraceDB

P = ParamSpec("P")
T = TypeVar("T")

# of psycopg.connect, not of libpq
_PSYCOPG_SETTINGS = ("autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory")

Connecting = Callable[[], AbstractContextManager[Connection[TupleRow]]]
AsyncConnecting = Callable[[], AbstractAsyncContextManager[AsyncConnection[TupleRow]]]


class Call(Generic[P, T]):
    """A query function as a method of both colours: one runs it, the other is awaited."""

    def __init__(self, query: Callable[P, Query[T]]) -> None:
        self.query = query
        self.__doc__ = query.__doc__

    @overload
    def __get__(self, caller: None, owner: type) -> Self: ...
    @overload
    def __get__(self, caller: TraceDB | Tenant, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(
        self, caller: AsyncTraceDB | AsyncTenant, owner: type
    ) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, caller: Any, owner: type) -> Any:
        if caller is None:
            return self

        @wraps(self.query)
        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return caller.run(self.query(*args, **kwargs))

        return call


class TenantCalls:
    """What both colours of a tenant can be asked; see tracedb/queries.py, money.py and others."""

    find_trace = Call(queries.find_trace)
    get_trace = Call(queries.get_trace)
    trace_tree = Call(queries.trace_tree)
    trace_summary = Call(queries.trace_summary)
    find_traces = Call(queries.find_traces)
    get_user_traces = Call(queries.get_user_traces)
    get_traces_by_route = Call(queries.get_traces_by_route)
    get_traces_by_agent = Call(queries.get_traces_by_agent)
    get_error_traces = Call(queries.get_error_traces)
    get_slow_queries = Call(queries.get_slow_queries)
    get_research_triggers = Call(queries.get_research_triggers)
    get_analytics = Call(queries.get_analytics)
    get_user_analytics = Call(queries.get_user_analytics)
    usage_series = Call(queries.usage_series)
    usage_differences = Call(queries.usage_differences)
    agent_report = Call(queries.agent_report)
    get_agent_success_rate = Call(queries.get_agent_success_rate)
    get_tenant_health = Call(queries.get_tenant_health)
    get_churn_risk = Call(queries.get_churn_risk)
    get_usage_patterns = Call(queries.get_usage_patterns)
    get_feature_adoption = Call(queries.get_feature_adoption)
    changes_cursor = Call(queries.changes_cursor)
    changes_since = Call(queries.changes_since)
    agent_performance = Call(queries.agent_performance)
    hook_performance_summary = Call(queries.hook_performance_summary)
    endpoint_reliability = Call(queries.endpoint_reliability)
    error_analysis = Call(queries.error_analysis)
    dashboard_summary = Call(queries.dashboard_summary)
    loss_report = Call(queries.loss_report)
    dead_letters = Call(queries.dead_letters)
    requeue_dead_letters = Call(queries.requeue_dead_letters)
    purge_dead_letters = Call(queries.purge_dead_letters)
    set_prices = Call(money.set_prices)
    model_prices = Call(money.model_prices)
    unpriced_usage = Call(money.unpriced_usage)
    reprice = Call(money.reprice)
    reconcile_invoice = Call(money.reconcile_invoice)
    get_tenant_daily_cost = Call(money.get_tenant_daily_cost)
    get_cost_breakdown = Call(money.get_cost_breakdown)
    set_budget = Call(money.set_budget)
    remove_budget = Call(money.remove_budget)
    get_budget_status = Call(money.get_budget_status)
    check_budgets = Call(money.check_budgets)
    reserve_budget = Call(money.reserve_budget)
    settle_budget = Call(money.settle_budget)
    release_budget = Call(money.release_budget)
    forecast_costs = Call(money.forecast_costs)
    save_pattern = Call(patterns.save_pattern)
    get_pattern = Call(patterns.get_pattern)
    list_patterns = Call(patterns.list_patterns)
    retire_pattern = Call(patterns.retire_pattern)
    find_patterns = Call(patterns.find_patterns)
    replay_plan = Call(patterns.replay_plan)
    pattern_settings = Call(patterns.pattern_settings)
    set_pattern_settings = Call(patterns.set_pattern_settings)
    patterns_to_embed = Call(patterns.patterns_to_embed)
    put_embeddings = Call(patterns.put_embeddings)
    pattern_models = Call(patterns.pattern_models)
    drop_embedding_model = Call(patterns.drop_embedding_model)
    score_trace = Call(learning.score_trace)
    extract_patterns = Call(learning.extract_patterns)
    learn_chains = Call(learning.learn_chains)
    learn_errors = Call(learning.learn_errors)
    agent_chains = Call(learning.agent_chains)
    error_patterns = Call(learning.error_patterns)
    set_error_fix = Call(learning.set_error_fix)
    log_pattern_use = Call(learning.log_pattern_use)
    log_pattern_outcome = Call(learning.log_pattern_outcome)
    pattern_effectiveness = Call(learning.pattern_effectiveness)
    pattern_lift = Call(learning.pattern_lift)
    evaluate_routing = Call(learning.evaluate_routing)
    prune_patterns = Call(learning.prune_patterns)
    where_is_trace = Call(restore.where_is_trace)


class DatabaseCalls:
    """What both colours of a database can be asked, without a tenant."""

    ensure_tenant = Call(queries.ensure_tenant)
    ensure_partitions = Call(queries.ensure_partitions)
    drain_default_partitions = Call(queries.drain_default_partitions)
    tenants_with_writers = Call(queries.tenants_with_writers)
    fold_usage = Call(queries.fold_usage)
    unfolded_changes = Call(queries.unfolded_changes)
    set_prices = Call(money.set_prices)
    model_prices = Call(money.model_prices)
    unpriced_names = Call(money.unpriced_names)
    tenants_with_spans = Call(money.tenants_with_spans)
    wanted_pattern_indexes = Call(patterns.wanted_pattern_indexes)
    ensure_pattern_indexes = Call(patterns.ensure_pattern_indexes)
    fold_pattern_usage = Call(learning.fold_pattern_usage)
    uncounted_uses = Call(learning.uncounted_uses)
    unlearned_changes = Call(learning.unlearned_changes)
    tenants_to_learn = Call(learning.tenants_to_learn)
    tenants_with_patterns = Call(learning.tenants_with_patterns)
    set_retention = Call(retention.set_retention)
    remove_retention = Call(retention.remove_retention)
    set_legal_hold = Call(retention.set_legal_hold)
    retention_policies = Call(retention.retention_policies)
    retention_plan = Call(retention.retention_plan)
    retention_receipts = Call(retention.retention_receipts)
    archives = Call(archive.archives)
    maintenance_runs = Call(maintenance.maintenance_runs)
    maintenance_advice = Call(maintenance.maintenance_advice)


class TraceDB(DatabaseCalls):
    """A tracedb database, over a psycopg pool. `connect` makes one; a pool of your own does too.

    Safe to share between threads. Close it, or use it as a context manager.
    """

    def __init__(self, pool: ConnectionPool[Connection[TupleRow]]) -> None:
        self.pool = pool

    def tenant(self, tenant_id: UUID) -> Tenant:
        """The database as one tenant sees it."""
        return Tenant(self.connection, tenant_id)

    def run(self, query: Query[T]) -> T:
        """Execute a query for no tenant in particular."""
        with self.connection() as conn:
            return run(conn, query)

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        """A connection of the pool; ConnectionFailed if there is none in time."""
        try:
            conn = self.pool.getconn(self._patience())
        except psycopg.OperationalError as error:
            raise ConnectionFailed(str(error)) from error
        try:
            yield conn
        finally:
            self.pool.putconn(conn)

    def _patience(self) -> float | None:
        """Seconds to wait for a connection; None: as many as the pool says."""
        return None

    def writer(self, **settings: Any) -> Writer:
        """A writer into this database, over a connection of its own; see `tracedb.Writer`."""
        return Writer(**_writer_settings(self.pool, settings))

    def close(self) -> None:
        """Close the pool; calls after this raise ConnectionFailed."""
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tenant(TenantCalls):
    """What one tenant may do. Each call is a transaction of its own, in which the tenant is set."""

    def __init__(self, connection: Connecting, tenant_id: UUID) -> None:
        self.tenant_id = _tenant_id(tenant_id)
        self._connection = connection

    def run(self, query: Query[T]) -> T:
        """Execute a query as this tenant."""
        with self._connection() as conn:
            return run(conn, query, self.tenant_id)

    def ingest(self, records: Iterable[Record]) -> Receipt:
        """Store records (dicts with a "type"; see `tracedb.ingest`), 1,000 a transaction.

        Any order, any number of times: what is already there is counted as a duplicate, and a
        record that breaks a rule is rejected with its reason while its neighbours are stored.
        """
        return sum(
            (self._store(portion, first) for first, portion in storing.portions(records)), Receipt()
        )

    def _store(self, portion: Sequence[Record], first: int) -> Receipt:
        with self._connection() as conn:
            return storing.store(conn, self.tenant_id, portion, first)

    @contextmanager
    def transaction(self) -> Iterator[Tenant]:
        """This tenant with all calls in one transaction, undone if the block raises."""
        with self._connection() as conn, conn.transaction():
            yield Tenant(lambda: nullcontext(conn), self.tenant_id)


class AsyncTraceDB(DatabaseCalls):
    """`TraceDB` for asyncio; `connect_async` makes one."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        self.pool = pool

    def tenant(self, tenant_id: UUID) -> AsyncTenant:
        """The database as one tenant sees it."""
        return AsyncTenant(self.connection, tenant_id)

    async def run(self, query: Query[T]) -> T:
        """Execute a query for no tenant in particular."""
        async with self.connection() as conn:
            return await run_async(conn, query)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[TupleRow]]:
        """A connection of the pool; ConnectionFailed if there is none in time."""
        try:
            conn = await self.pool.getconn(self._patience())
        except psycopg.OperationalError as error:
            raise ConnectionFailed(str(error)) from error
        try:
            yield conn
        finally:
            await self.pool.putconn(conn)

    def _patience(self) -> float | None:
        """Seconds to wait for a connection; None: as many as the pool says."""
        return None

    def writer(self, **settings: Any) -> AsyncWriter:
        """A writer into this database, over a connection of its own; see `tracedb.Writer`."""
        return AsyncWriter(**_writer_settings(self.pool, settings))

    async def close(self) -> None:
        """Close the pool; calls after this raise ConnectionFailed."""
        await self.pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncTenant(TenantCalls):
    """`Tenant` for asyncio."""

    def __init__(self, connection: AsyncConnecting, tenant_id: UUID) -> None:
        self.tenant_id = _tenant_id(tenant_id)
        self._connection = connection

    async def run(self, query: Query[T]) -> T:
        """Execute a query as this tenant."""
        async with self._connection() as conn:
            return await run_async(conn, query, self.tenant_id)

    async def ingest(self, records: Iterable[Record]) -> Receipt:
        """Store records; see `Tenant.ingest`."""
        receipt = Receipt()
        for first, portion in storing.portions(records):
            receipt += await self._store(portion, first)
        return receipt

    async def _store(self, portion: Sequence[Record], first: int) -> Receipt:
        async with self._connection() as conn:
            return await storing.store_async(conn, self.tenant_id, portion, first)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncTenant]:
        """This tenant with all calls in one transaction, undone if the block raises."""
        async with self._connection() as conn, conn.transaction():
            yield AsyncTenant(lambda: nullcontext(conn), self.tenant_id)


@overload
def connect(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: Literal[False] = False,
) -> TraceDB: ...
@overload
def connect(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: Literal[True],
) -> GracefulTraceDB: ...
def connect(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: bool = False,
) -> TraceDB:
    """Open a database: `dsn`, else TRACEDB_DSN, else DATABASE_URL, else libpq's PG* variables.

    `max_size` connections at most, each waited for at most `timeout` seconds. Switch prepared
    statements off behind a transaction-pooling proxy that does not know them (PgBouncer < 1.22).
    Raises ConnectionFailed at once if nothing answers; with `graceful` it raises nothing, then or
    later, and counts what is not done (see `tracedb/graceful.py`).
    """
    conninfo = where.resolve(dsn)
    settings = _pool_settings(max_size, timeout, prepared_statements, graceful)
    if not graceful:
        where.connect(conninfo).close()
        return TraceDB(ConnectionPool(conninfo, open=True, **settings))

    from tracedb.graceful import Grace, GracefulTraceDB

    grace = Grace()
    with grace.absorbing("connect"):
        where.connect(conninfo).close()
    return GracefulTraceDB(ConnectionPool(conninfo, open=True, **settings), grace)


@overload
async def connect_async(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: Literal[False] = False,
) -> AsyncTraceDB: ...
@overload
async def connect_async(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: Literal[True],
) -> AsyncGracefulTraceDB: ...
async def connect_async(
    dsn: str | None = None,
    *,
    max_size: int = 10,
    timeout: float = 10.0,
    prepared_statements: bool = True,
    graceful: bool = False,
) -> AsyncTraceDB:
    """`connect` for asyncio."""
    conninfo = where.resolve(dsn)
    settings = _pool_settings(max_size, timeout, prepared_statements, graceful)
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]]
    if not graceful:
        await to_thread(lambda: where.connect(conninfo).close())
        pool = AsyncConnectionPool(conninfo, open=False, **settings)
        await pool.open()
        return AsyncTraceDB(pool)

    from tracedb.graceful import AsyncGracefulTraceDB, Grace

    grace = Grace()
    with grace.absorbing("connect"):
        await to_thread(lambda: where.connect(conninfo).close())
    pool = AsyncConnectionPool(conninfo, open=False, **settings)
    await pool.open()
    return AsyncGracefulTraceDB(pool, grace)


def _pool_settings(
    max_size: int, timeout: float, prepared_statements: bool, graceful: bool
) -> dict[str, Any]:
    return {
        "kwargs": _connection_settings(prepared_statements),
        "min_size": 1,
        "max_size": max_size,
        "timeout": timeout,
        # the pool tries again ever more rarely, and anew for the next call when it has given up
        "reconnect_timeout": 10.0 if graceful else 300.0,
        "name": "tracedb",
    }


def _writer_settings(
    pool: ConnectionPool[Any] | AsyncConnectionPool[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a writer that connects as the pool does, and those given."""
    conninfo, kwargs = pool.conninfo, pool.kwargs or {}
    if callable(conninfo) or callable(kwargs):
        # whatever they compute may be of use for a minute only
        raise InvalidInput.of("writer", "this pool computes where it connects: make a Writer")
    known = {key: value for key, value in kwargs.items() if key not in _PSYCOPG_SETTINGS}
    return {
        "conninfo": make_conninfo(conninfo, **known),
        "prepared_statements": kwargs.get("prepare_threshold", 5) is not None,
        **settings,
    }


def _connection_settings(prepared_statements: bool) -> dict[str, Any]:
    # autocommit: transactions are explicit, and a read leaves none open
    return {"autocommit": True, "prepare_threshold": 5 if prepared_statements else None}


def _tenant_id(tenant_id: object) -> UUID:
    if tenant_id is None:
        raise TenantMissing
    try:
        return tenant_id if isinstance(tenant_id, UUID) else UUID(str(tenant_id))
    except ValueError:
        raise InvalidInput.of("tenant_id", f"must be a UUID, not {tenant_id!r}") from None
