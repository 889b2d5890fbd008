"""What the demo loads, and what it finds: the figures, not their looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from psycopg.rows import class_row, scalar_row, tuple_row

from tracedb import workload
from tracedb.client import Tenant, TraceDB
from tracedb.demo_tenants import TENANTS
from tracedb.embeddings import Embedder, embed_patterns
from tracedb.errors import NotATenant, PermissionDenied, TracedbError
from tracedb.query import Query, many, maybe, statement
from tracedb.records import Record
from tracedb.rows import Receipt, TreeNode
from tracedb.runs import RunFile, store

# passes records on and shows how far along they are, given how many there are in all
Track = Callable[[Iterable[Record], int], Iterable[Record]]

FILES_TENANT = "tau2-bench"
# what is asked of the patterns that were learned
QUESTION = "My order has not come. Where is it?"
FILES_QUESTION = "I would like to cancel my flight."
MOST_ROWS = 6
# A file may hold one run of 1970: better drained than given fifty years of partitions.
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
class SimilarRow:
    """A pattern that was learned, and found for a question: who did it, with which tools."""

    prompt: str
    agent_id: str | None
    tools: list[str]


@dataclass(frozen=True, slots=True)
class Report:
    """What a newcomer came for."""

    tenants: list[TenantReport]
    slowest: list[TraceRow]
    failed: list[TraceRow]
    failure_kinds: dict[str, int]
    tree: list[TreeNode]
    question: str
    similar: list[SimilarRow]


def tenant_named(external_id: str) -> Query[TenantRow | None]:
    """The tenant of a caller's own tenant id."""
    args = {"external_id": external_id}
    return Query(statement("tenant_named", "demo.sql"), args, class_row(TenantRow), maybe)


def trace_anywhere(id: str) -> Query[list[tuple[UUID, UUID]]]:
    """The tenants and trace_ids of an id, in all tenants that the role may see."""
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


def query_to_try(tenant_id: UUID) -> str:
    """A query in one line, to type into psql."""
    lines = statement("shown_to_try", "demo.sql").splitlines()
    text = " ".join(line for line in lines if line and not line.startswith("--"))
    return text.format(tenant_id=tenant_id)


def tenant_id_of(db: TraceDB, name: str) -> UUID:
    """The tenant_id that a text means: itself, or the tenant of that external id."""
    try:
        return UUID(name)
    except ValueError:
        row = db.run(tenant_named(name))
    if row is None:
        raise NotATenant(f"there is no tenant {name} (or this role may not see it)")
    return row.tenant_id


def cover(db: TraceDB, times: Collection[datetime]) -> None:
    """Make the partitions for these times, if they are not too far apart and the role may."""
    if times and max(times) - min(times) <= _WIDEST_SPAN:
        # who may not: the rows wait in the default partition for the maintainer's job
        with suppress(PermissionDenied):
            db.ensure_partitions(max(times), min(times))


def load_workload(db: TraceDB, track: Track) -> tuple[list[TenantRow], Receipt]:
    """Load the generated workload: the two weeks before it was loaded for the first time.

    That moment is remembered as the registration of its tenants, so loading it again, next week as
    well, makes the same records, and all of them are known.
    """
    for tenant in TENANTS:
        db.ensure_tenant(tenant.external_id, tenant.name)
    tenants = [_registered(db, tenant.external_id) for tenant in TENANTS]
    as_of = min(tenant.created_at for tenant in tenants).astimezone(UTC)
    cover(db, (as_of - timedelta(days=workload.DAYS), as_of))
    ids = {tenant.external_id: tenant.tenant_id for tenant in tenants}
    records: dict[UUID, list[Record]] = {id: [] for id in ids.values()}
    for external_id, record in workload.generate(as_of):
        records[ids[external_id]].append(record)
    total = sum(map(len, records.values()))
    receipt = Receipt()
    for tenant_id, theirs in records.items():
        receipt += db.tenant(tenant_id).ingest(track(theirs, total))
    if receipt.rejected:
        raise TracedbError(f"the workload does not fit the schema: {receipt.rejected[0].reason}")
    return tenants, receipt


def load_files(db: TraceDB, tenant_id: UUID, files: Sequence[RunFile]) -> list[Receipt]:
    """Store files, each whole or not at all; what became of each."""
    for file in files:
        cover(db, file.times)
    receipts = [store(db.tenant(tenant_id), file) for file in files]
    with suppress(PermissionDenied):
        db.drain_default_partitions()
    return receipts


def learn(db: TraceDB, tenants: Sequence[TenantRow], embedder: Embedder | None) -> None:
    """Learn patterns from what was loaded, as far as this role may; embed those of the first."""
    with suppress(PermissionDenied):
        for tenant in tenants:
            scope = db.tenant(tenant.tenant_id)
            while (learned := scope.extract_patterns()) and learned.examined:
                pass
    if embedder is not None:
        embed_patterns(db.tenant(tenants[0].tenant_id), embedder)


def similar(
    tenant: Tenant, question: str, embedder: Embedder | None, max_rows: int = 3
) -> list[SimilarRow]:
    """The patterns that fit a question best: by its words, and with an embedder by its meaning."""
    given = None if embedder is None else embedder.embed([question])[0]
    model = None if embedder is None else embedder.model
    found = tenant.find_patterns(given, question, k=max_rows, model=model, seed=1)
    return [SimilarRow(row.prompt, row.agent_id, row.tool_sequence) for row in found]


def report(
    db: TraceDB, tenants: Sequence[TenantRow], question: str, embedder: Embedder | None = None
) -> Report:
    """The figures of these tenants, and what the first one's patterns say to a question."""
    scopes = [db.tenant(tenant.tenant_id) for tenant in tenants]
    slow = [row for scope in scopes for row in scope.run(slowest())]
    fail = [row for scope in scopes for row in scope.run(failed())]
    kinds: Counter[str] = Counter()
    for scope in scopes:
        kinds.update({kind.kind: kind.trace_count for kind in scope.run(failure_kinds())})
    example = scopes[0].run(showcase())
    return Report(
        tenants=[
            TenantReport(tenant, scope.run(agents()))
            for tenant, scope in zip(tenants, scopes, strict=True)
        ],
        slowest=sorted(slow, key=lambda row: row.duration_ms or 0, reverse=True)[:MOST_ROWS],
        failed=sorted(fail, key=lambda row: row.trace_id, reverse=True)[:MOST_ROWS],
        failure_kinds=dict(kinds.most_common()),
        tree=scopes[0].trace_tree(example) if example else [],
        question=question,
        similar=similar(scopes[0], question, embedder),
    )


def files_tenant(db: TraceDB) -> TenantRow:
    """The tenant of the demo's files, registered if new."""
    db.ensure_tenant(FILES_TENANT)
    return _registered(db, FILES_TENANT)


def _registered(db: TraceDB, external_id: str) -> TenantRow:
    row = db.run(tenant_named(external_id))
    if row is None:
        raise NotATenant(f"this role may not see the tenant {external_id}")
    return row
