"""What an operator asks of a database: sizes, growth, indexes, delays, losses.

A typed function for every statement of operations.sql, for `TraceDB.run`. Sizes and delays are of
all tenants and need a login in tracedb_maintainer or tracedb_service. Sizes are in bytes, durations
in seconds; row counts are the server's estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from psycopg.rows import class_row

from tracedb.query import Query, many, statement

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with all its partitions (`tracedb.table_sizes`); table_bytes has TOAST in it."""

    table_name: str
    partition_count: int
    row_estimate: int
    dead_rows: int
    table_bytes: int
    index_bytes: int
    total_bytes: int
    bytes_per_row: float | None


@dataclass(frozen=True, slots=True)
class IndexUsage:
    """An index with those of all partitions (`tracedb.index_usage`)."""

    table_name: str
    index_name: str
    is_unique: bool
    scan_count: int
    entries_read: int
    index_bytes: int
    is_unused: bool
    counted_since: datetime | None


@dataclass(frozen=True, slots=True)
class PartitionSize:
    """A partition (`tracedb.partition_sizes`); the default one has no times and no age."""

    family: str
    parent: str
    partition: str
    is_default: bool
    from_time: datetime | None
    to_time: datetime | None
    age: timedelta | None
    row_estimate: int
    dead_rows: int
    table_bytes: int
    index_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class PartitionHeadroom:
    """Until when a table has partitions, and how many rows wait in its default one."""

    family: str
    parent: str
    partition_count: int
    covered_until: datetime | None
    headroom_seconds: float
    default_rows: int


@dataclass(frozen=True, slots=True)
class TraceStorage:
    """The traces of a period of partitions, with all their parts (`tracedb.trace_storage`)."""

    from_time: datetime
    to_time: datetime
    trace_count: int
    total_bytes: int
    bytes_per_trace: float | None


@dataclass(frozen=True, slots=True)
class StorageForecast:
    """How a table grows if that goes on as it did (`tracedb.storage_forecast`)."""

    table_name: str
    total_bytes: int
    bytes_per_day: float
    bytes_in_30_days: int
    bytes_in_90_days: int


@dataclass(frozen=True, slots=True)
class TableBloat:
    """What of a table is not in use (`tracedb.table_bloat`), and how that was found out."""

    table_name: str
    table_bytes: int
    dead_rows: int
    dead_bytes: int
    free_bytes: int | None
    bloat_fraction: float | None
    method: str


@dataclass(frozen=True, slots=True)
class IngestLag:
    """How fresh the rows of a table and tenant are (`tracedb.ingest_lag`)."""

    table_name: str
    tenant_id: UUID
    row_count: int
    newest_event_at: datetime
    newest_row_at: datetime
    lag_seconds: float
    p50_delay_seconds: float
    p95_delay_seconds: float


@dataclass(frozen=True, slots=True)
class ServiceLosses:
    """What became of the records of a service's writers (`tracedb.writer_losses`).

    accepted = stored + dead + dropped + pending + lost; requeued ones were dead before.
    """

    tenant_id: UUID
    service: str | None
    writer_count: int
    living_count: int
    accepted: int
    stored: int
    dead: int
    requeued: int
    dropped: int
    pending: int
    lost: int
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class ChangeBacklog:
    """The changes of a tenant that no total has yet (`tracedb.change_backlog`)."""

    tenant_id: UUID
    change_count: int
    trace_count: int
    oldest_at: datetime
    newest_at: datetime


@dataclass(frozen=True, slots=True)
class DailyRequests:
    """The requests that began on a day (UTC), nested executions not counted."""

    day: date
    request_count: int
    error_count: int


def _rows(name: str, row: type[T], **args: object) -> Query[list[T]]:
    return Query(statement(name, "operations.sql"), args, class_row(row), many)


def table_sizes() -> Query[list[TableSize]]:
    """Every table, the largest first."""
    return _rows("table_sizes", TableSize)


def index_usage() -> Query[list[IndexUsage]]:
    """Every index, the largest first."""
    return _rows("index_usage", IndexUsage)


def partition_sizes() -> Query[list[PartitionSize]]:
    """Every partition, oldest first within its table, after the default one."""
    return _rows("partition_sizes", PartitionSize)


def partition_headroom() -> Query[list[PartitionHeadroom]]:
    """Every partitioned table."""
    return _rows("partition_headroom", PartitionHeadroom)


def trace_storage() -> Query[list[TraceStorage]]:
    """Every period that has begun, oldest first."""
    return _rows("trace_storage", TraceStorage)


def storage_forecast() -> Query[list[StorageForecast]]:
    """Every table, the one that will be largest first."""
    return _rows("storage_forecast", StorageForecast)


def table_bloat(*, exact: bool = False) -> Query[list[TableBloat]]:
    """Every table, the worst first; `exact` reads tables by pgstattuple where that is possible."""
    return _rows("table_bloat", TableBloat, exact=exact)


def ingest_lag(since: datetime | None = None) -> Query[list[IngestLag]]:
    """Every table and tenant with rows whose ids are not older than `since` (an hour)."""
    return _rows("ingest_lag", IngestLag, since=since)


def writer_losses() -> Query[list[ServiceLosses]]:
    """Every service of the tenants that this role sees, the worst first."""
    return _rows("writer_losses", ServiceLosses)


def change_backlog() -> Query[list[ChangeBacklog]]:
    """The tenants that this role sees, the largest backlog first."""
    return _rows("change_backlog", ChangeBacklog)


def daily_requests(days: int = 14) -> Query[list[DailyRequests]]:
    """The last days, today included, oldest first, over the tenants that this role sees."""
    return _rows("daily_requests", DailyRequests, days=days)
