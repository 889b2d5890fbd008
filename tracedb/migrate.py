"""Bringing a database to a version of the schema: one migrator at a time, restartable anywhere.

yoyo orders and splits the files and keeps the ledger; this module gives it one connection for
everything. The advisory lock, the migration and its ledger row live and die with it: a migration is
recorded in its own transaction, and a migrator that was killed holds the lock for as long as the
server still works for it. Migrate over a direct connection: behind a transaction-pooling proxy the
lock would exclude nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psycopg

from tracedb import dsn as where
from tracedb import ledger
from tracedb.errors import (
    ConnectionFailed,
    MigrationEdited,
    MigrationError,
    MigrationForeign,
    NotMigrated,
    TracedbError,
    error_class,
)
from tracedb.ledger import Backend
from tracedb.source import Migration, Source
from tracedb.verify import compare

Progress = Callable[[str], None]

# how often a migration is tried when the reason to fail is another session or the network
ATTEMPTS = 8

# lock not available, deadlock, serialization, "tuple concurrently updated" (grants from two places)
_CONTENTION = frozenset({"55P03", "40P01", "40001", "XX000"})

_pause = time.sleep


@dataclass(frozen=True, slots=True)
class Status:
    """Which migrations a database has, and what is wrong with them."""

    database: str
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    edited: tuple[str, ...]
    foreign: tuple[str, ...]
    invalid_indexes: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        """Everything is applied and nothing is wrong."""
        return not (self.pending or self.edited or self.foreign or self.invalid_indexes)

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "is_current": self.is_current}


def status(dsn: str | None = None, *, source: Path | None = None) -> Status:
    """What is applied and what is pending. Reads only: it creates nothing and takes no lock."""
    conninfo = where.resolve(dsn)
    ours = Source.read(source)
    with _reading(conninfo) as conn:
        applied = _applied(conn, ours)
        edited = ours.edited() + ours.edited_since(ledger.checksums(conn))
        return Status(
            database=where.describe(conninfo),
            applied=tuple(id for id in applied if id in ours),
            pending=tuple(migration.id for migration in ours if migration.id not in applied),
            edited=tuple(dict.fromkeys(edited)),
            foreign=tuple(id for id in applied if id not in ours),
            invalid_indexes=tuple(ledger.invalid_indexes(conn)),
        )


def migrate(
    dsn: str | None = None,
    *,
    source: Path | None = None,
    to: str | None = None,
    dry_run: bool = False,
    wait: bool = True,
    progress: Progress | None = None,
) -> list[str]:
    """Apply what is pending, up to and including `to`; the ids applied (or that would be)."""
    ours = Source.read(source)
    _refuse_edited(ours.edited())
    wanted = ours.up_to(to)
    say = progress or _silent
    if dry_run:
        with _reading(where.resolve(dsn)) as conn:
            applied = _checked(conn, ours)
            return [migration.id for migration in wanted if migration.id not in applied]

    before: set[str] | None = None

    def work(backend: Backend) -> list[str]:
        nonlocal before
        conn = backend.connection
        adopted = _adopt(backend, ours, is_shipped=source is None)
        if adopted:
            say(f"found already built: {', '.join(adopted)}")
        applied = _checked(conn, ours)
        if before is None:
            before = set(applied)
        for migration in wanted:
            if migration.id not in applied:
                say(f"applying {migration.id}")
                _process(backend, migration, "apply", ledger.record)
        ledger.share(conn)
        invalid = ledger.invalid_indexes(conn)
        if invalid:
            raise MigrationError(
                f"invalid indexes, to be dropped and built again: {', '.join(invalid)}"
            )
        return [id for id in ledger.applied(conn) if id not in before]

    return _run(where.resolve(dsn), work, wait=wait, say=say)


def rollback(
    dsn: str | None = None,
    *,
    source: Path | None = None,
    count: int | None = 1,
    to: str | None = None,
    dry_run: bool = False,
    wait: bool = True,
    progress: Progress | None = None,
) -> list[str]:
    """Undo the newest `count` migrations (None: all) or all after `to`; their ids, newest first."""
    ours = Source.read(source)
    _refuse_edited(ours.edited())
    kept = {migration.id for migration in ours.up_to(to)} if to is not None else set()
    say = progress or _silent

    def to_undo(applied: Iterable[str]) -> list[Migration]:
        newest_first = [each for each in reversed(ours.migrations) if each.id in set(applied)]
        if to is not None:
            return [each for each in newest_first if each.id not in kept]
        return newest_first[:count]

    if dry_run:
        with _reading(where.resolve(dsn)) as conn:
            return [migration.id for migration in to_undo(_checked(conn, ours))]

    doomed: list[str] | None = None

    def work(backend: Backend) -> list[str]:
        nonlocal doomed
        _adopt(backend, ours, is_shipped=source is None)
        applied = _checked(backend.connection, ours)
        if doomed is None:
            doomed = [migration.id for migration in to_undo(applied)]
            ours.refuse_irreversible(doomed)
        for id in doomed:
            if id in applied:
                say(f"rolling back {id}")
                _process(backend, ours[id], "rollback", ledger.forget)
        return doomed

    return _run(where.resolve(dsn), work, wait=wait, say=say)


def wait(
    dsn: str | None = None,
    *,
    timeout: float = 60,
    migrated: bool = False,
    source: Path | None = None,
    progress: Progress | None = None,
) -> str:
    """What the database is called, once it answers (and everything is applied); else why not."""
    conninfo = where.resolve(dsn)
    deadline = time.monotonic() + timeout
    while True:
        try:
            with where.connect(conninfo):
                pending = status(conninfo, source=source).pending if migrated else ()
            if not pending:
                return where.describe(conninfo)
            error: TracedbError = NotMigrated(f"not migrated yet: {', '.join(pending)}")
        except ConnectionFailed as failure:
            error = failure
        if time.monotonic() >= deadline:
            raise error
        if progress:
            progress(f"waiting: {error}")
            progress = None
        _pause(0.2)


def _adopt(backend: Backend, ours: Source, *, is_shipped: bool) -> list[str]:
    return ledger.adopt(backend, ours, lambda conn: is_shipped and not compare(conn))


def _applied(conn: ledger.Connection, ours: Source) -> list[str]:
    return ledger.applied(conn) or ledger.applied_elsewhere(conn, ours)


def _checked(conn: ledger.Connection, ours: Source) -> list[str]:
    """The ids applied, once it is sure that they are ours and unchanged."""
    applied = _applied(conn, ours)
    foreign = [id for id in applied if id not in ours]
    if foreign:
        raise MigrationForeign(
            f"the ledger in schema tracedb has migrations that are not in {ours.folder}:"
            f" {', '.join(foreign)} (applied by a newer version, or by another project)"
        )
    _refuse_edited(ours.edited_since(ledger.checksums(conn)))
    return applied


def _refuse_edited(names: list[str]) -> None:
    if names:
        raise MigrationEdited(f"changed after release or after being applied: {', '.join(names)}")


def _process(
    backend: Backend,
    migration: Migration,
    direction: Literal["apply", "rollback"],
    write_down: Callable[[Backend, Migration], None],
) -> None:
    backend.start_afresh()
    try:
        if migration.is_transactional:
            # its record is part of the transaction: there is no moment between to be killed in
            with backend.transaction():
                migration.steps.process_steps(backend, direction)
                write_down(backend, migration)
        else:
            migration.steps.process_steps(backend, direction)
            with backend.transaction():
                write_down(backend, migration)
    except psycopg.Error as error:
        error.add_note(f"in migration {migration.id}")
        raise


def _run(
    conninfo: str, work: Callable[[Backend], list[str]], *, wait: bool, say: Progress
) -> list[str]:
    """Do the work in a locked session, and again in a new one while the reason to fail may pass."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with ledger.session(conninfo, wait=wait, say=say) as backend:
                return work(backend)
        except ConnectionFailed as error:
            if attempt in (1, ATTEMPTS):
                raise
            reason = str(error)
        except psycopg.Error as error:
            reason = where.scrub(
                "\n  ".join([str(error), *getattr(error, "__notes__", [])]), conninfo
            )
            if attempt == ATTEMPTS or not _is_passing(error):
                raise MigrationError(reason) from error
        say(f"{reason}\ntrying again ({attempt} of {ATTEMPTS - 1})")
        _pause(min(0.1 * 2**attempt, 5))
    raise AssertionError("the last attempt returns or raises")


def _is_passing(error: psycopg.Error) -> bool:
    """Whether another session or the network was the reason."""
    code = error.sqlstate
    if code is None or code.startswith(("08", "57P")):
        return isinstance(error, psycopg.OperationalError)
    return code in _CONTENTION


@contextmanager
def _reading(conninfo: str) -> Iterator[ledger.Connection]:
    """A connection without a lock, whose errors are ours."""
    with where.connect(conninfo) as conn:
        try:
            yield conn
        except psycopg.Error as error:
            raise error_class(error)(where.scrub(str(error), conninfo)) from error


def _silent(message: str) -> None:
    """Progress for nobody."""
