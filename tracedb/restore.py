"""Restoring archived rows: of a time, a tenant or one trace, into their tables or a side schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection, sql
from psycopg.rows import class_row, dict_row, scalar_row

from tracedb import archive as archiving
from tracedb import csvfile
from tracedb.archive import FILE, Archive, Recorded
from tracedb.errors import ArchiveDamaged, InvalidInput, NotFound
from tracedb.query import Query, many, one, run, statement, typed_errors
from tracedb.retention import RetentionReceipt
from tracedb.stores import Store, open_store

# what is brought back stays at least so long
KEEP = timedelta(days=7)

Progress = Callable[[Recorded], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which archived rows: of a family, with ids of a time; of one tenant, or one trace of it."""

    family: str
    since: datetime
    until: datetime
    tenant_id: UUID | None = None
    id: UUID | None = None

    def has_all_of(self, archive: Recorded) -> bool:
        """Whether every row of an archive is wanted."""
        return (
            (self.tenant_id, self.id) == (None, None)
            and self.since <= archive.from_time
            and archive.to_time <= self.until
        )

    @classmethod
    def trace(cls, trace_id: UUID, tenant_id: UUID) -> Wanted:
        """One trace with its parts."""
        at = datetime.fromtimestamp((trace_id.int >> 80) / 1000, UTC)
        return cls("traces", at, at + timedelta(milliseconds=1), tenant_id, trace_id)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trace is: "stored", or "archived" (if it ever was, in that archive)."""

    place: str
    table_name: str
    archive_id: UUID | None


def where_is_trace(trace_id: UUID) -> Query[list[Place]]:
    """Where a trace, or what was archived of it, is (`tracedb.where_is_trace`)."""
    args = {"trace_id": trace_id}
    return Query(statement("where_is_trace", FILE), args, class_row(Place), many)


def restore(
    conn: Connection[Any],
    wanted: Wanted,
    store: Store | None = None,
    *,
    keep: timedelta = KEEP,
    reason: str = "asked for",
    progress: Progress = lambda _: None,
) -> list[RetentionReceipt]:
    """Bring archived rows back into their tables, in one transaction; a receipt for each table.

    What is there already stays as it is, and totals stay what they are. No retention run removes
    the rows again before `keep` is over. Archives are looked for where they were written, or in
    `store`. Raises NotFound if no archive has such rows, ArchiveDamaged if a file is not what its
    manifest says (then nothing is restored), InvalidInput if it has columns that the table lacks.
    """
    found = archives(conn, wanted)
    # of no other time is a partition made, or anything kept
    periods = sorted(
        {(max(wanted.since, each.from_time), min(wanted.until, each.to_time)) for each in found}
    )
    wanted = replace(wanted, since=periods[0][0], until=max(until for _, until in periods))
    for since, until in periods:
        args = {"family": wanted.family, "from_time": since, "to_time": until}
        run(conn, Query(statement("cover_times", FILE), args, scalar_row, many))
    with typed_errors(), conn.transaction():
        return _store(conn, wanted, found, store, keep, reason, progress)


@contextmanager
def peek(
    conn: Connection[Any], wanted: Wanted, store: Store | None = None
) -> Iterator[Connection[Any]]:
    """The database as if the rows were restored, for the block: then all of it is undone."""
    found = archives(conn, wanted)
    with conn.transaction():
        with typed_errors():
            _store(conn, wanted, found, store, KEEP, "read", lambda _: None)
        yield conn
        raise psycopg.Rollback


def restore_into(
    conn: Connection[Any],
    wanted: Wanted,
    schema: str,
    store: Store | None = None,
    *,
    progress: Progress = lambda _: None,
) -> dict[str, int]:
    """Copy archived rows into tables of a schema beside tracedb's; how many rows by table.

    The schema and its tables are made as needed, as the caller's own: it needs no right but that.
    """
    if schema == "tracedb":
        raise InvalidInput.of("schema", "must be another one than tracedb")
    found = archives(conn, wanted)
    stored: dict[str, int] = {}
    with typed_errors(), conn.transaction():
        conn.execute(_sql("exact_text"))
        conn.execute(_composed("side_schema", schema=schema))
        tables = _tables(found)
        names = {
            table: {"schema": schema, "table": table, "staging": f"restore_{table}"}
            for table in tables
        }
        for table in tables:
            for name in ("side_table", "side_guard", "side_staging"):
                conn.execute(_composed(name, **names[table]))
            _stage(conn, wanted, table, names[table]["staging"], found, store, progress)
        conn.execute(_sql("thin_erased"), {"tables": tables})
        for table in tables:
            stored[table] = conn.execute(_composed("side_store", **names[table])).rowcount
    return stored


def archives(conn: Connection[Any], wanted: Wanted) -> list[Recorded]:
    """The archives that have what is wanted, the newest first; NotFound if there is none."""
    if wanted.since >= wanted.until:
        raise InvalidInput.of("until", "must be after since")
    found = run(
        conn,
        archiving.archives(
            state="removed",
            family=wanted.family,
            since=wanted.since,
            until=wanted.until,
            tenant_id=wanted.tenant_id,
        ),
    )
    if not found:
        raise NotFound("no archive has such rows")
    return found


def _store(
    conn: Connection[Any],
    wanted: Wanted,
    found: Sequence[Recorded],
    store: Store | None,
    keep: timedelta,
    reason: str,
    progress: Progress,
) -> list[RetentionReceipt]:
    conn.execute(_sql("exact_text"))
    tables = _tables(found)
    for table in tables:
        staging = run(conn, Query(_sql("open_staging"), {"table_name": table}, scalar_row, one))
        _stage(conn, wanted, table, staging, found, store, progress)
    args = {
        "family": wanted.family,
        "tables": tables,
        "from_time": wanted.since,
        "to_time": wanted.until,
        "of_tenant": wanted.tenant_id,
        "keep_until": datetime.now(UTC) + keep,
        "reason": reason,
    }
    return run(conn, Query(_sql("restore_staged"), args, class_row(RetentionReceipt), many))


def _stage(
    conn: Connection[Any],
    wanted: Wanted,
    table: str,
    staging: str,
    found: Iterable[Recorded],
    store: Store | None,
    progress: Progress,
) -> None:
    """Copy what is wanted into a staging table, the newest archive first: of two rows it wins."""
    args = {"table_name": table}
    cursor = conn.cursor(row_factory=dict_row)
    known = {each["name"] for each in cursor.execute(_sql("columns"), args).fetchall()}
    of_table = [recorded for recorded in found if recorded.table_name == table]
    for recorded in of_table:
        of_archive = store or open_store(recorded.store)
        archive = archiving.opened(of_archive, recorded)
        if unknown := sorted(set(archive.column_names) - known):
            raise InvalidInput.of(
                archive.file, f"has columns that {table} does not have: {', '.join(unknown)}"
            )
        _copy_in(conn, wanted, staging, of_archive, archive)
        progress(recorded)
    if all(wanted.has_all_of(recorded) for recorded in of_table):
        return
    key = conn.cursor(row_factory=scalar_row).execute(_sql("partition_key"), args).fetchone()
    conn.execute(
        sql.SQL(_sql("thin_staging")).format(
            staging=sql.Identifier(staging),
            key=sql.Identifier(key or ""),
            since=sql.Literal(wanted.since),
            until=sql.Literal(wanted.until),
            tenant_id=sql.Literal(wanted.tenant_id),
            id=sql.Literal(wanted.id),
        )
    )


def _copy_in(
    conn: Connection[Any], wanted: Wanted, staging: str, store: Store, archive: Archive
) -> None:
    query = sql.SQL(_sql("copy_in")).format(
        staging=sql.Identifier(staging),
        columns=sql.SQL(", ").join(map(sql.Identifier, archive.column_names)),
    )
    rows = archiving.portions(store, archive)
    if mark := wanted.id or wanted.tenant_id:
        # a first look at the text; thin_staging looks at the columns
        text = str(mark).encode()
        rows = csvfile.portions(each for each in csvfile.records(rows) if text in each)
    with conn.cursor() as cursor:
        with cursor.copy(query) as copy:
            for portion in rows:
                copy.write(portion)
        if not mark and cursor.rowcount != archive.row_count:
            raise ArchiveDamaged(
                f"{archive.file}: has {cursor.rowcount} rows, but its manifest says"
                f" {archive.row_count}"
            )


def _tables(found: Iterable[Recorded]) -> list[str]:
    return sorted({each.table_name for each in found})


def _sql(name: str) -> Any:
    return statement(name, FILE)


def _composed(name: str, **names: str) -> sql.Composed:
    return sql.SQL(_sql(name)).format(**{key: sql.Identifier(n) for key, n in names.items()})
