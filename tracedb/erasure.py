"""Erasing a user or a tenant, for good and with a receipt; and all that is held about a user.

The server erases in steps, each a transaction (`tracedb.erase_step`), so that whatever interrupts
an erasure, asking for it again goes on with it. None of this is graceful: what was not erased must
not look as if it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import erased_archives, spooled
from tracedb.client import Tenant
from tracedb.erased_archives import Erasing
from tracedb.errors import AlreadyRunning
from tracedb.maintenance import only_one
from tracedb.query import SET_TENANT, Query, many, one, run, statement, typed_errors
from tracedb.stores import Store

_FILE = "erasure.sql"
# Between two looks at what is still being written, in seconds.
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Erasure:
    """The receipt of an erasure, and how far it is.

    `subject_hash` is SHA-256 over the tenant, the kind and the user, in hex; the user's id is not
    kept. `counts` are rows by table, `elsewhere` what was erased outside the database.
    """

    tenant_id: UUID
    erasure_id: UUID
    kind: Literal["user", "tenant"]
    subject_hash: str
    requested_by: str
    begun_at: datetime
    finished_at: datetime | None
    phase: str
    counts: dict[str, int]
    elsewhere: dict[str, dict[str, int]]


Progress = Callable[[Erasure], None]


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """How many rows of a table an erasure would find."""

    table_name: str
    row_count: int


def erasure_plan(user_id: str | None) -> Query[list[PlannedRows]]:
    """What erasing a user (None: the tenant) would find now (`tracedb.erasure_plan`)."""
    return Query(
        statement("erasure_plan", _FILE), {"user_id": user_id}, class_row(PlannedRows), many
    )


def begin_erasure(user_id: str | None, *, despite_hold: bool = False) -> Query[UUID]:
    """Begin to erase, or find what was begun: its id (`tracedb.begin_erasure`)."""
    args = {"user_id": user_id, "despite_hold": despite_hold}
    return Query(statement("begin_erasure", _FILE), args, scalar_row, one)


def erase_step(erasure_id: UUID, user_id: str | None, max_rows: int = 500) -> Query[Erasure]:
    """Go on with an erasure for a transaction (`tracedb.erase_step`)."""
    args = {"erasure_id": erasure_id, "user_id": user_id, "max_rows": max_rows}
    return Query(statement("erase_step", _FILE), args, class_row(Erasure), one)


def erasures() -> Query[list[Erasure]]:
    """The receipts of a tenant, oldest first."""
    return Query(statement("erasures", _FILE), {}, class_row(Erasure), many)


def note_erased(erasure_id: UUID, place: str, counts: Mapping[str, int]) -> Query[None]:
    """Add to a receipt what was erased outside the database (`tracedb.note_erased`)."""
    args = {"erasure_id": erasure_id, "place": place, "counts": json.dumps(counts)}
    return Query(statement("note_erased", _FILE), args, scalar_row, lambda _: None)


def user_keys(user_id: str) -> Query[set[str]]:
    """The keys by which records name the traces of a user, nested ones and foreign ids too."""
    return Query(statement("user_keys", _FILE), {"user_id": user_id}, scalar_row, set)


def erase_user(
    tenant: Tenant,
    user_id: str,
    *,
    spool: Path | None = None,
    store: Store | None = None,
    despite_hold: bool = False,
    patience: float = 60.0,
    progress: Progress = lambda _: None,
) -> Erasure:
    """Erase a user: all rows, texts and dead letters, archives, what waits in a spool; the receipt.

    Totals and amounts stay, as nobody's. From the first moment on records of the user of a time
    before it are refused wherever they come from, so that no replay brings the user back; new ones
    are stored. Interrupted, the same call goes on. Archives are looked for where they were written,
    or in `store`. AlreadyRunning if retention runs, if transactions that may write of the user do
    not end within `patience` seconds, or if a writer that lives holds the spool: then the same call
    again finishes. InvalidInput under a legal hold, unless told `despite_hold`.
    """
    return _erase(tenant, user_id, spool, store, despite_hold, patience, progress)


def erase_tenant(
    tenant: Tenant,
    *,
    spool: Path | None = None,
    store: Store | None = None,
    despite_hold: bool = False,
    patience: float = 60.0,
    progress: Progress = lambda _: None,
) -> Erasure:
    """Erase all that a tenant has, totals too, but for the receipt; as `erase_user`."""
    return _erase(tenant, None, spool, store, despite_hold, patience, progress)


def _erase(
    tenant: Tenant,
    user_id: str | None,
    spool: Path | None,
    store: Store | None,
    despite_hold: bool,
    patience: float,
    progress: Progress,
) -> Erasure:
    # Nothing is archived meanwhile; and all is done on one connection, for a pool may have no more.
    with tenant._connection() as conn, only_one(conn, "retention"):
        own = Tenant(lambda: nullcontext(conn), tenant.tenant_id)
        erasure_id = own.run(begin_erasure(user_id, despite_hold=despite_hold))
        erasing = Erasing(conn, own.tenant_id, user_id, store)
        for place, counts in erased_archives.erase(erasing, erasure_id).items():
            own.run(note_erased(erasure_id, "archives", {place: counts}))
        held: list[Path] = []
        if spool is not None:
            erased = spooled.erase(spool, own, user_id)
            held = erased.held
            own.run(note_erased(erasure_id, "spool", erased.counts()))
        erasure = _steps(own, erasure_id, user_id, patience, progress)
    if held:
        raise AlreadyRunning(
            "all is erased but the spool of a writer that lives: end it, or let it deliver, and"
            f" ask again ({', '.join(map(str, held))})"
        )
    return erasure


def _steps(
    tenant: Tenant, erasure_id: UUID, user_id: str | None, patience: float, progress: Progress
) -> Erasure:
    give_up_at = time.monotonic() + patience
    while True:
        erasure = tenant.run(erase_step(erasure_id, user_id))
        if erasure.phase == "done":
            return erasure
        progress(erasure)
        if erasure.phase != "settle":
            give_up_at = time.monotonic() + patience
        elif time.monotonic() > give_up_at:
            raise AlreadyRunning(
                f"transactions that began before the erasure {erasure_id} have not ended; ask for"
                " it again when they have"
            )
        else:
            time.sleep(_PAUSE)


def check_erasable(tenant: Tenant, user_id: str | None, *, despite_hold: bool = False) -> None:
    """Raise what an erasure would raise before it begins: under a hold, as a role that may not."""
    with tenant._connection() as conn, conn.transaction(force_rollback=True):
        run(conn, begin_erasure(user_id, despite_hold=despite_hold), tenant.tenant_id)


def export_user(
    tenant: Tenant, user_id: str, *, spool: Path | None = None, store: Store | None = None
) -> Iterator[dict[str, Any]]:
    """All that is held about a user: {"table", "row"} each, with "archive" if it is archived.

    Of a spool {"spool", "record"}. Rows are read as they are asked for (`tracedb.held_about`):
    traces of the user with all their parts and what is nested in them, events, dead letters.
    Values of archived rows are text, as PostgreSQL writes them.
    """
    with tenant._connection() as conn, typed_errors(), conn.transaction():
        args: dict[str, Any] = {"user_id": user_id, "tenant_id": tenant.tenant_id}
        conn.execute(SET_TENANT, args)
        cursor = conn.cursor(row_factory=scalar_row)
        args["trace_ids"] = cursor.execute(statement("traces_of_user", _FILE), args).fetchall()
        keys = set(cursor.execute(statement("user_keys", _FILE), args).fetchall())
        tables = cursor.execute(statement("tables_about_users", _FILE)).fetchall()
        for table in tables:
            with conn.cursor("held_about", row_factory=scalar_row) as rows:
                rows.execute(statement("held_about", _FILE), {**args, "table_name": table})
                for row in rows:
                    yield {"table": table, "row": row}
        known = set(map(str, args["trace_ids"]))
        erasing = Erasing(conn, tenant.tenant_id, user_id, store, known)
        for archive, archived in erased_archives.rows(erasing):
            yield {"table": archive.table_name, "row": archived, "archive": archive.file}
    if spool is not None:
        for folder, record in spooled.of_user(spool, tenant.tenant_id, user_id, keys):
            yield {"spool": str(folder), "record": record}


def as_lines(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What `export_user` gives as JSON lines."""
    for each in found:
        yield json.dumps(each, ensure_ascii=False, default=str) + "\n"
