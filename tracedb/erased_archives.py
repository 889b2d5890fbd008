"""Archived rows of a user or a tenant: found, exported, and erased by writing the file anew.

A new file is written, read back, named and recorded before the old one is deleted; until that is
done the receipt names the old one, so that whatever interrupts it, asking again finishes. Rows of
others are copied as they are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection
from psycopg.rows import scalar_row, tuple_row

from tracedb import archive as archiving
from tracedb import csvfile
from tracedb.archive import MANIFEST, Archive, Recorded
from tracedb.query import Query, many, run, statement
from tracedb.stores import PART, Store, open_store

Row = dict[str, str | None]
_HEADERS = "execution_traces"


@dataclass(slots=True)
class Erasing:
    """Whose rows: of a user (None: the tenant whole), and of these traces."""

    conn: Connection[Any]
    tenant_id: UUID
    user_id: str | None
    # where the archives are, if not where they were written
    store: Store | None
    trace_ids: set[str] = field(default_factory=set)

    def is_theirs(self, row: Mapping[str, str | None]) -> bool:
        return row["tenant_id"] == str(self.tenant_id) and (
            self.user_id is None
            or row.get("user_id") == self.user_id
            or row.get("trace_id") in self.trace_ids
        )

    def ask(self, name: str, **args: object) -> list[Any]:
        query = Query(statement(name, "erasure.sql"), args, scalar_row, many)
        return run(self.conn, query, self.tenant_id)

    def recorded(self) -> list[Recorded]:
        return run(self.conn, archiving.archives(tenant_id=self.tenant_id))

    def opened(self, recorded: Recorded) -> tuple[Store, Archive]:
        store = self.store or open_store(recorded.store)
        return store, archiving.opened(store, recorded)


def erase(erasing: Erasing, erasure_id: UUID) -> dict[str, int]:
    """Erase from all archives of the tenant; how many rows of how many files.

    The caller keeps retention from running meanwhile.
    """
    _remove_old(erasing)
    for recorded in erasing.recorded():
        # what it has is still in its table: retention will archive it again, without them
        if recorded.state == "written" and run(
            erasing.conn, archiving.discard(recorded.archive_id)
        ):
            _remove(erasing.store or open_store(recorded.store), recorded.file)
    if erasing.user_id is not None:
        # texts and other parts may be archived before their trace is
        stored = erasing.ask("traces_of_user", user_id=erasing.user_id)
        erasing.trace_ids |= set(map(str, stored))
        foreign_ids = collect(erasing)
        erasing.ask(
            "collect_archived",
            erasure_id=erasure_id,
            trace_ids=sorted(map(UUID, erasing.trace_ids)),
            foreign_ids=sorted(foreign_ids),
        )
        erasing.trace_ids |= set(map(str, erasing.ask("erased_traces")))
    columns: Query[list[tuple[str, list[str]]]] = Query(
        statement("personal_columns", "erasure.sql"), {}, tuple_row, many
    )
    found = run(erasing.conn, columns)
    kept_tables = dict(found)
    counts = {"files": 0, "rows": 0}
    for recorded in erasing.recorded():
        if recorded.tenant_id is not None and erasing.user_id is None:
            _remove(erasing.store or open_store(recorded.store), recorded.file)
            rows = recorded.row_count
        else:
            rows = _rewrite(erasing, erasure_id, recorded, kept_tables)
        counts = {"files": counts["files"] + bool(rows), "rows": counts["rows"] + rows}
    return counts


def collect(erasing: Erasing) -> set[str]:
    """Add the archived traces of the user, and those nested in them; their foreign ids."""
    above: dict[str, set[str]] = {}
    foreign: dict[str, str] = {}
    found = set(erasing.trace_ids)
    for recorded in erasing.recorded():
        if recorded.table_name != _HEADERS:
            continue
        for row in _own_rows(erasing, recorded):
            id = row["trace_id"]
            assert id is not None
            if (parent := row["parent_trace_id"]) is not None:
                above.setdefault(parent, set()).add(id)
            if (external_id := row["external_id"]) is not None:
                foreign[id] = external_id
            if row["user_id"] == erasing.user_id:
                found.add(id)
    new = found
    while new:
        new = {nested for id in new for nested in above.get(id, ())} - found
        found |= new
    erasing.trace_ids |= found
    return {foreign[id] for id in found if id in foreign}


def rows(erasing: Erasing) -> Iterator[tuple[Recorded, Row]]:
    """Every archived row of theirs, values as PostgreSQL writes them as text."""
    collect(erasing)
    for recorded in erasing.recorded():
        for row in _own_rows(erasing, recorded):
            if erasing.is_theirs(row):
                yield recorded, row


def _own_rows(erasing: Erasing, recorded: Recorded) -> Iterator[Row]:
    """The rows of the tenant."""
    store, archive = erasing.opened(recorded)
    for record in csvfile.records(archiving.portions(store, archive)):
        row = _parsed(erasing, archive, record)
        if row is not None:
            yield row


def _parsed(erasing: Erasing, archive: Archive, record: bytes) -> Row | None:
    """A row of the tenant; of others it is not worth the parsing."""
    if str(erasing.tenant_id).encode() not in record:
        return None
    (values,) = csvfile.rows([record])
    row = dict(zip(archive.column_names, values, strict=True))
    return row if row["tenant_id"] == str(erasing.tenant_id) else None


def _rewrite(
    erasing: Erasing,
    erasure_id: UUID,
    recorded: Recorded,
    kept_tables: Mapping[str, Collection[str]],
) -> int:
    """Write an archive anew if it has anything of theirs; how many rows."""
    if not any(erasing.is_theirs(row) for row in _own_rows(erasing, recorded)):
        return 0
    store, old = erasing.opened(recorded)
    key = "event_id" if recorded.family == "events" else "trace_id"
    place = old.column_names.index(key)
    blanks = kept_tables.get(recorded.table_name)
    nothing = {
        column["name"]: "{}" if column["type"] == "jsonb" else None for column in old.columns
    }
    theirs = 0
    all_rows, own_rows = _Tally(), _Tally()

    def kept() -> Iterator[bytes]:
        nonlocal theirs
        for record in csvfile.records(archiving.portions(store, old)):
            row = _parsed(erasing, old, record)
            if row is not None and erasing.is_theirs(row):
                theirs += 1
                if blanks is None or erasing.user_id is None:
                    continue
                row |= {name: nothing[name] for name in blanks}
                record = csvfile.row(list(row.values()))
            (values,) = csvfile.rows([record])
            all_rows.add(values[place])
            if row is not None:
                own_rows.add(values[place])
            yield record

    stem, _, suffix = old.file.rpartition("_")
    name = f"{stem}_{uuid4().hex[:12]}.{suffix.partition('.')[2]}"
    new = archiving.write(store, replace(old, file=name), kept())
    archiving.check(store, new, new.file + PART)
    store.finish(new.file)
    new = replace(new, row_count=all_rows.count, first_id=all_rows.first, last_id=all_rows.last)
    archiving.write_manifest(store, new)
    erasing.ask(
        "replace_archive",
        erasure_id=erasure_id,
        archive=json.dumps(asdict(new) | {"uri": f"{store.uri}/{new.file}"}, default=str),
        contents=json.dumps(own_rows.as_contents()),
    )
    _remove_old(erasing)
    return theirs


@dataclass(slots=True)
class _Tally:
    """How many rows, from which id to which."""

    count: int = 0
    first: UUID | None = None
    last: UUID | None = None

    def add(self, id: str | None) -> None:
        assert id is not None
        this = UUID(id)
        self.count += 1
        self.first = this if self.first is None else min(this, self.first)
        self.last = this if self.last is None else max(this, self.last)

    def as_contents(self) -> list[dict[str, object]]:
        """As `tracedb.replace_archive` takes it; nothing if there are none."""
        ids = {"first_id": str(self.first), "last_id": str(self.last)}
        return [{"row_count": self.count, **ids}] if self.count else []


def _remove_old(erasing: Erasing) -> None:
    """Delete the files that were written anew."""
    for uri in erasing.ask("old_files"):
        *store, family, table, name = uri.split("/")
        _remove(erasing.store or open_store("/".join(store)), f"{family}/{table}/{name}")
        erasing.ask("forget_file", uri=uri)


def _remove(store: Store, file: str) -> None:
    store.remove(file)
    store.remove(file + MANIFEST)
