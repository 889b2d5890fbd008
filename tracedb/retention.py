"""Retention: the rules, the plan, and a run that archives, verifies and removes what is old.

Every step is a transaction or a file of its own, so that a run that was killed is carried on by the
next: what is archived already is not archived again, and what is out of its table is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import class_row, scalar_row

from tracedb import archive as archiving
from tracedb import learning, queries
from tracedb.archive import Part
from tracedb.errors import (
    ArchiveDamaged,
    InvalidInput,
    NotFolded,
    RetentionRefused,
    StoreFailed,
    TracedbError,
)
from tracedb.maintenance import only_one
from tracedb.query import Query, many, one, run, statement
from tracedb.stores import Store, open_store

FILE = "retention.sql"

# rows of the leading table that are deleted in one transaction, where partitions stay
SLICE = 10_000
PURGE = 10_000
# of another session: a reader that goes on for long keeps a partition until the next run
ATTEMPTS = 20
PAUSE_S = 0.25
CLOCKS_AGREE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule: how long a table's rows are kept. `tenant_id` None: of all tenants.

    `family`, `width` and `ahead_periods` are those of its partitions, None where it has none.
    """

    table_name: str
    tenant_id: UUID | None
    keep: timedelta | None
    action: str | None
    hold_reason: str | None
    note: str | None
    updated_at: datetime
    family: str | None
    width: str | None
    ahead_periods: int | None


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do with one period, tenant or table; see `tracedb.retention_plan`."""

    family: str
    tables: list[str]
    archived: list[str]
    tenant_id: UUID | None
    except_tenants: list[UUID]
    from_time: datetime | None
    to_time: datetime
    how: Literal["partition", "rows", "purge"]
    row_estimate: int | None
    bytes: int | None
    reason: str
    blocked_by: str | None


@dataclass(frozen=True, slots=True)
class RetentionReceipt:
    """What was removed, or brought back; see the table `retention_receipts`.

    `from_time` None: from the beginning on.
    """

    receipt_id: UUID
    tenant_id: UUID | None
    action: str
    family: str
    table_name: str
    from_time: datetime | None
    to_time: datetime
    row_count: int
    bytes: int | None
    archive_id: UUID | None
    keep_until: datetime | None
    reason: str
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What was not removed, and why: everything of it is still there."""

    planned: Planned
    error: str


@dataclass(slots=True)
class Report:
    """What a run did. `unfinished`: its time was up before the plan was done."""

    receipts: list[RetentionReceipt] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    blocked: list[Planned] = field(default_factory=list)
    purged: dict[str, int] = field(default_factory=dict)
    archived_files: int = 0
    archived_bytes: int = 0
    dropped: list[str] = field(default_factory=list)
    stray_rows: int = 0
    unfinished: bool = False
    replica: bool = False

    @property
    def figures(self) -> dict[str, Any]:
        """In numbers, for `maintenance_runs`."""
        return {
            "rows_removed": sum(each.row_count for each in self.receipts),
            "bytes_freed": sum(each.bytes or 0 for each in self.receipts),
            "partitions_dropped": len(self.dropped),
            "archived_files": self.archived_files,
            "archived_bytes": self.archived_bytes,
            "purged": self.purged,
            "blocked": len(self.blocked),
            "failed": len(self.failures),
            "stray_rows": self.stray_rows,
            "unfinished": self.unfinished,
        }


def set_retention(
    table_name: str,
    keep: timedelta | None = None,
    action: Literal["archive", "drop"] | None = None,
    *,
    note: str | None = None,
    tenant_id: UUID | None = None,
) -> Query[Any]:
    """Say how long a table's rows are kept, of all tenants or of one (`tracedb.set_retention`)."""
    args = {
        "table_name": table_name,
        "keep": keep,
        "action": action,
        "note": note,
        "of_tenant": tenant_id,
    }
    return Query(statement("set_retention", FILE), args, scalar_row, many)


def remove_retention(table_name: str, *, tenant_id: UUID | None = None) -> Query[bool]:
    """Take a rule away; whether there was one (`tracedb.remove_retention`)."""
    args = {"table_name": table_name, "of_tenant": tenant_id}
    return Query(statement("remove_retention", FILE), args, scalar_row, one, lambda: False)


def set_legal_hold(
    table_name: str, reason: str | None, *, tenant_id: UUID | None = None
) -> Query[bool]:
    """Hold a table's rows, or with no reason release them (`tracedb.set_legal_hold`)."""
    args = {"table_name": table_name, "reason": reason, "of_tenant": tenant_id}
    return Query(statement("set_legal_hold", FILE), args, scalar_row, one, lambda: False)


def retention_policies() -> Query[list[Policy]]:
    """Every rule, with the partitions of its table."""
    return Query(statement("retention_policies", FILE), {}, class_row(Policy), many)


def retention_plan(as_of: datetime | None = None, *, forced: bool = False) -> Query[list[Planned]]:
    """What a run would do; nothing is changed (`tracedb.retention_plan`)."""
    args = {"as_of": as_of, "forced": forced}
    return Query(statement("retention_plan", FILE), args, class_row(Planned), many)


def retention_receipts(limit: int = 100) -> Query[list[RetentionReceipt]]:
    """What was removed and restored, the newest first."""
    row = class_row(RetentionReceipt)
    return Query(statement("retention_receipts", FILE), {"limit": limit}, row, many)


Step = Callable[[str, Planned], None]


def run_retention(
    conn: Connection[Any],
    store: Store | None = None,
    *,
    as_of: datetime | None = None,
    forced: bool = False,
    seconds: float = 3600.0,
    format: str = "csv",
    slice_rows: int = SLICE,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    step: Step = lambda _step, _planned: None,
) -> Report:
    """Remove what the plan says, archiving first what is to be archived; see `Report`.

    Without a store nothing that is to be archived is removed. Begins nothing after `seconds`.
    Raises AlreadyRunning if another session is at it, InvalidInput if the clocks of this machine
    and the server disagree; what fails of the plan is in the report, and the rest goes on. `step`
    is told of every step that is done, by name.
    """
    stop = time.monotonic() + seconds
    report = Report()
    with only_one(conn, "retention"):
        if _ask(conn, "in_recovery"):
            report.replica = True
            return report
        now: datetime = _ask(conn, "server_now")
        if abs(clock() - now) > CLOCKS_AGREE:
            raise InvalidInput.of(
                "clock", f"this machine says {clock():%F %T%z}, the server {now:%F %T%z}"
            )
        as_of = as_of or now
        _drop_retired(conn, report)
        _drain(conn, stop)
        report.stray_rows = _ask(conn, "stray_rows")
        run_ = _Run(conn, store, as_of, forced, format, slice_rows, step, stop, report)
        for planned in run(conn, retention_plan(as_of, forced=forced)):
            if planned.blocked_by is not None:
                report.blocked.append(planned)
            elif time.monotonic() >= stop:
                report.unfinished = True
                break
            else:
                run_.remove(planned)
    return report


@dataclass(slots=True)
class _Run:
    """A run under way."""

    conn: Connection[Any]
    store: Store | None
    as_of: datetime
    forced: bool
    format: str
    slice_rows: int
    step: Step
    stop: float
    report: Report

    def remove(self, planned: Planned) -> None:
        try:
            self.step("planned", planned)
            {"partition": self._partition, "rows": self._rows, "purge": self._purge}[planned.how](
                planned
            )
        except TracedbError as error:
            self.report.failures.append(Failure(planned, str(error)))
            if self.conn.closed:
                raise

    def _partition(self, planned: Planned) -> None:
        assert planned.from_time is not None
        part = _part_of(planned, planned.from_time, planned.to_time)
        self._fold(planned, part)
        archives = self._archived(planned, part)
        args = self._args(part, planned.tables, archives)
        self._removed(planned, part, "retire_partitions", args)
        self.step("retired", planned)
        _drop_retired(self.conn, self.report)
        self.step("dropped", planned)

    def _rows(self, planned: Planned) -> None:
        """Slice after slice; each is archived and deleted before the next one is begun."""
        assert planned.from_time is not None
        begin = planned.from_time
        while begin < planned.to_time:
            rest = _part_of(planned, begin, planned.to_time)
            args = self._args(rest, planned.tables, ()) | {
                "table_name": planned.tables[0],
                "max_rows": self.slice_rows,
            }
            if not _ask(self.conn, "rows_left", args):
                return
            if time.monotonic() >= self.stop:
                self.report.unfinished = True
                return
            part = replace(rest, to_time=_ask(self.conn, "slice_end", args))
            self._fold(planned, part)
            archives = self._archived(planned, part)
            args = self._args(part, planned.tables, archives)
            self._removed(planned, part, "delete_expired", args)
            self.step("deleted", planned)
            begin = part.to_time

    def _purge(self, planned: Planned) -> None:
        (table_name,) = planned.tables
        args = {
            "table_name": table_name,
            "max_rows": PURGE,
            "as_of": self.as_of,
            "forced": self.forced,
        }
        while time.monotonic() < self.stop and (gone := _ask(self.conn, "purge_expired", args)):
            self.report.purged[table_name] = self.report.purged.get(table_name, 0) + gone

    def _fold(self, planned: Planned, part: Part) -> None:
        """Until totals have all that is about to go."""
        args = {
            "table_name": part.table_name,
            "from_time": part.from_time,
            "to_time": part.to_time,
        }
        while _ask(self.conn, "has_unfolded", args):
            if part.table_name == "pattern_usage_log":
                folded = bool(run(self.conn, learning.fold_pattern_usage()))
            else:
                folded = bool(run(self.conn, queries.fold_usage()))
            if not folded:
                raise NotFolded(
                    f"{part.table_name} from {part.from_time:%F}: another session folds its totals"
                )
        self.step("folded", planned)

    def _archived(self, planned: Planned, part: Part) -> list[archiving.Recorded]:
        """The archives of a part: those that an earlier run has left, and new ones."""
        if not planned.archived:
            return []
        if self.store is None:
            raise StoreFailed(
                "store: there is none to archive to: name a directory or URI (--store,"
                " TRACEDB_ARCHIVE)"
            )
        left = run(
            self.conn,
            archiving.archives(
                state="written", family=part.family, since=part.from_time, until=part.to_time
            ),
        )
        for table in planned.archived:
            one_table = replace(part, table_name=table)
            # each is looked at: those that do not count are forgotten
            if [each for each in left if self._is_left(each, one_table)]:
                continue
            written = archiving.archive_part(
                self.conn,
                self.store,
                one_table,
                self.format,
                lambda step: self.step(step, planned),
            )
            if written is not None:
                self.report.archived_files += 1
                self.report.archived_bytes += written.file_bytes
        return [
            each
            for each in run(self.conn, archiving.archives(state="written", family=part.family))
            if any(_is_of(each, replace(part, table_name=table)) for table in planned.archived)
        ]

    def _args(
        self, part: Part, tables: Sequence[str], archives: Sequence[archiving.Recorded]
    ) -> dict[str, Any]:
        return {
            "tables": list(tables),
            "from_time": part.from_time,
            "to_time": part.to_time,
            "of_tenant": part.tenant_id,
            "except_tenants": list(part.except_tenants),
            "archive_ids": [each.archive_id for each in archives],
            "as_of": self.as_of,
            "forced": self.forced,
        }

    def _removed(self, planned: Planned, part: Part, name: str, args: dict[str, Any]) -> None:
        """Run the removing function; waits for those who are in its way, apart from its locks."""
        query: Query[list[RetentionReceipt]] = Query(
            statement(name, FILE), args, class_row(RetentionReceipt), many
        )
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                receipts = run(self.conn, query)
                self.report.receipts += receipts
                return
            except NotFolded:
                if not attempts_left:
                    raise
                self._fold(planned, part)
            except RetentionRefused:
                # what changed is archived anew by the next run
                for each in run(self.conn, archiving.archives(state="written")):
                    if each.archive_id in args["archive_ids"]:
                        self._discard(each)
                raise
            except TracedbError as error:
                cause = error.__cause__
                if not isinstance(cause, psycopg.errors.LockNotAvailable):
                    raise
                if not attempts_left or time.monotonic() >= self.stop:
                    raise RetentionRefused(
                        f"{part.table_name} from {part.from_time:%F}: in use by another session"
                    ) from error
                time.sleep(PAUSE_S)

    def _is_left(self, archive: archiving.Recorded, part: Part) -> bool:
        """Whether an archive that an earlier run has left is of a part, and still whole.

        One that is damaged or gone, or has the same rows cut otherwise, is forgotten.
        """
        if archive.table_name != part.table_name or not _may_share(archive, part):
            return False
        if _is_of(archive, part):
            with suppress(ArchiveDamaged, StoreFailed):
                store = self._store_of(archive)
                archiving.check(store, archiving.opened(store, archive))
                return True
        self._discard(archive)
        return False

    def _discard(self, archive: archiving.Recorded) -> None:
        if run(self.conn, archiving.discard(archive.archive_id)):
            archiving.forget(self._store_of(archive), archive.file)

    def _store_of(self, archive: archiving.Recorded) -> Store:
        if self.store is not None and archive.store == self.store.uri:
            return self.store
        return open_store(archive.store)


def _part_of(planned: Planned, from_time: datetime, to_time: datetime) -> Part:
    return Part(
        planned.family,
        planned.tables[0],
        from_time,
        to_time,
        planned.tenant_id,
        tuple(planned.except_tenants),
    )


def _is_of(archive: archiving.Recorded, part: Part) -> bool:
    return (
        archive.table_name == part.table_name
        and archive.from_time == part.from_time
        and archive.to_time == part.to_time
        and archive.tenant_id == part.tenant_id
        and tuple(archive.except_tenants) == part.except_tenants
    )


def _may_share(archive: archiving.Recorded, part: Part) -> bool:
    """Whether an archive of that time may have rows of the tenants of a part."""
    return None in (archive.tenant_id, part.tenant_id) or archive.tenant_id == part.tenant_id


def _drain(conn: Connection[Any], stop: float) -> None:
    """Empty the default partitions; what a long reader keeps there is reported."""
    try:
        while run(conn, queries.drain_default_partitions(10)) and time.monotonic() < stop:
            pass
    except TracedbError as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise


def _drop_retired(conn: Connection[Any], report: Report) -> None:
    dropped = run(conn, Query(statement("drop_retired", FILE), {}, scalar_row, many))
    report.dropped += [name.removesuffix("_retired") for name in dropped]


def _ask(conn: Connection[Any], name: str, args: dict[str, Any] | None = None) -> Any:
    return run(conn, Query(statement(name, FILE), args or {}, scalar_row, one))
