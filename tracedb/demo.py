"""What the demo loads, and what it finds: the figures, not their looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import workload
from tracedb.client import Tenant, TraceDB
from tracedb.demo_tenants import TENANTS
from tracedb.errors import NotATenant, PermissionDenied, TracedbError
from tracedb.query import Query, many, maybe, statement
from tracedb.records import Record
from tracedb.rows import Receipt, TreeNode
from tracedb.runs import RunFile, store

T = TypeVar("T")
Track = Callable[[Sequence[Record]], Iterable[Record]]

FILES_TENANT = ("tau2-bench", "tau2-bench runs")
MOST_ROWS = 6
# Weeks of data to make partitions for at once; what lies further apart is drained a week at a time.
_WIDEST_SPAN = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class TenantRow:
    tenant_id: UUID
    external_id: str
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AgentRow:
    """How an agent did; its nested executions are a row of their own. The total has no agent."""

    agent_id: str | None
    is_nested: bool
    trace_count: int
    success_count: int
    success_rate: float | None
    median_duration_ms: float | None
    p95_duration_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: Decimal | None
    unknown_cost_count: int
    first_started_at: datetime
    last_started_at: datetime


@dataclass(frozen=True, slots=True)
class TraceRow:
    tenant_id: UUID
    trace_id: UUID
    name: str | None
    agent_id: str | None
    status: str
    error_type: str | None
    error_message: str | None
    started_at: datetime
    duration_ms: int | None
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class FailureKind:
    kind: str
    trace_count: int


@dataclass(frozen=True, slots=True)
class TenantReport:
    """A tenant with its agents, the total last."""

    tenant: TenantRow
    agents: list[AgentRow]


@dataclass(frozen=True, slots=True)
class Report:
    """What a newcomer came for."""

    tenants: list[TenantReport]
    slowest: list[TraceRow]
    failed: list[TraceRow]
    failure_kinds: list[FailureKind]
    tree: list[TreeNode]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tenant_named(external_id: str) -> Query[TenantRow | None]:
    """The tenant of a caller's own tenant id."""
    args = {"external_id": external_id}
    return Query(statement("tenant_named", "demo.sql"), args, class_row(TenantRow), maybe)


def trace_anywhere(id: str) -> Query[list[tuple[UUID, UUID]]]:
    """The tenants and trace_ids of an id, in all tenants that the role may see."""
    from psycopg.rows import tuple_row

    return Query(statement("trace_anywhere", "demo.sql"), {"id": id}, tuple_row, many)


def agents() -> Query[list[AgentRow]]:
    return Query(statement("agents", "demo.sql"), {}, class_row(AgentRow), many)


def slowest(max_rows: int = MOST_ROWS) -> Query[list[TraceRow]]:
    args = {"max_rows": max_rows}
    return Query(statement("slowest", "demo.sql"), args, class_row(TraceRow), many)


def failed(max_rows: int = MOST_ROWS) -> Query[list[TraceRow]]:
    """The newest failures."""
    args = {"max_rows": max_rows}
    return Query(statement("failed", "demo.sql"), args, class_row(TraceRow), many)


def failure_kinds() -> Query[list[FailureKind]]:
    return Query(statement("failure_kinds", "demo.sql"), {}, class_row(FailureKind), many)


def showcase() -> Query[UUID | None]:
    return Query(statement("showcase", "demo.sql"), {}, scalar_row, maybe)


def tenant_id_of(db: TraceDB, name: str) -> UUID:
    """The tenant_id that a text means: itself, or the tenant of that external id."""
    try:
        return UUID(name)
    except ValueError:
        row = db.run(tenant_named(name))
    if row is None:
        raise NotATenant(f"there is no tenant {name} (or this role may not see it)")
    return row.tenant_id


def cover(db: TraceDB, first_at: datetime, last_at: datetime) -> None:
    """Make the partitions of a time, where the role may and the time is not too long."""
    if last_at - first_at <= _WIDEST_SPAN:
        _if_allowed(lambda: db.ensure_partitions(last_at, first_at))


def drain(db: TraceDB) -> None:
    """Empty the default partitions of what no partition was made for, where the role may."""
    _if_allowed(lambda: db.drain_default_partitions())


def _if_allowed(work: Callable[[], object]) -> None:
    try:
        work()
    except PermissionDenied:
        return  # the maintainer's job, which comes later; until then the default partition has it


def load_workload(db: TraceDB, track: Track) -> tuple[list[TenantRow], Receipt]:
    """Load the generated workload, unless it is there: the two weeks before it first was loaded.

    That moment is remembered as the registration of its tenants, so loading again, next week as
    well, makes the same records, and they are known.
    """
    for tenant in TENANTS:
        db.ensure_tenant(tenant.external_id, tenant.name)
    tenants = [_registered(db, tenant.external_id) for tenant in TENANTS]
    as_of = min(tenant.created_at for tenant in tenants).astimezone(UTC)
    cover(db, as_of - timedelta(days=workload.DAYS), as_of)
    records = list(track(list(workload.generate(as_of))))
    receipt = Receipt()
    for row in tenants:
        theirs = [record for external_id, record in records if external_id == row.external_id]
        receipt += db.tenant(row.tenant_id).ingest(theirs)
    return tenants, receipt


def load_files(
    db: TraceDB, files: Sequence[RunFile], tenant: Tenant
) -> list[Receipt]:
    """Store files, each whole or not at all; what became of each."""
    for file in files:
        if file.records:
            cover(db, *file.span_of_time())
    receipts = [store(tenant, file) for file in files]
    drain(db)
    return receipts
