"""The health checks of a tracedb database, and what to do about what they find."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow, scalar_row

from tracedb import dsn as where
from tracedb import migrate
from tracedb.errors import TracedbError
from tracedb.query import statement, typed
from tracedb.resources import LEDGER


@dataclass(frozen=True, slots=True)
class Check:
    """A check: the statement of doctor.sql of that name, what it makes sure of, what else to do."""

    name: str
    promise: str
    advice: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a check found: nothing if all is well. `skipped` is why it could not be made."""

    check: Check
    findings: tuple[str, ...]
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        return not self.findings and self.skipped is None


MIGRATIONS = Check(
    "migrations",
    "every migration is applied, unedited and ours",
    "run `tracedb migrate`; for edited or foreign ones install the tracedb that applied them",
)

CHECKS = (
    Check(
        "server_version",
        "the server has its security fixes",
        "update PostgreSQL to its newest minor release (15 or later)",
    ),
    Check(
        "vector_extension",
        "pgvector is installed, 0.8.2 or later",
        "install the new pgvector, then `alter extension vector update`",
    ),
    Check(
        "roles",
        "the five roles exist and cannot pass row-level security",
        "run `tracedb migrate`; then `alter role ... nosuperuser nobypassrls nologin`, and revoke "
        "tracedb_owner from roles that services use",
    ),
    Check(
        "row_security",
        "row-level security is enabled and forced on every table and partition",
        "`alter table tracedb.... enable row level security, force row level security`, and find "
        "out who switched it off",
    ),
    Check(
        "grants",
        "nobody is granted a partition, and the public nothing",
        "`revoke all on tracedb.... from ...`: partitions have no policies of their own",
    ),
    Check(
        "partitions_ahead",
        "partitions exist for this period and the next",
        "run `select tracedb.ensure_partitions()` daily",
    ),
    Check(
        "default_partitions",
        "the default partitions are empty",
        "run `select tracedb.drain_default_partitions()` until it returns nothing",
    ),
    Check(
        "rollups",
        "usage is folded into its totals within an hour",
        "run `tracedb rollups fold` every minute: answers are exact without it, but slower",
    ),
    Check(
        "losses",
        "no record is lost, dropped or a dead letter",
        "`tracedb losses` and `tracedb dead-letters list` say which; dead letters can be requeued "
        "or purged",
    ),
    Check(
        "indexes",
        "every index is valid",
        "`drop index concurrently ...` and build it again with `create index concurrently`",
    ),
)


def examine(dsn: str | None = None) -> list[Diagnosis]:
    """Make every check; ConnectionFailed if nothing answers."""
    conninfo = where.resolve(dsn)
    with where.connect(conninfo) as conn:
        found = [_diagnosis(conn, check) for check in CHECKS]
    return [_migrations(conninfo), *found]


def _diagnosis(conn: psycopg.Connection[TupleRow], check: Check) -> Diagnosis:
    try:
        cursor = conn.cursor(row_factory=scalar_row)
        rows = cursor.execute(statement(check.name, "doctor.sql"), {"ledger": list(LEDGER)})
        return Diagnosis(check, tuple(str(row) for row in rows))
    except psycopg.errors.Error as error:
        return Diagnosis(check, (), skipped=str(typed(error)))


def _migrations(conninfo: str) -> Diagnosis:
    try:
        found = migrate.status(conninfo)
    except TracedbError as error:
        return Diagnosis(MIGRATIONS, (), skipped=str(error))
    return Diagnosis(
        MIGRATIONS,
        (
            *(f"{name} is not applied" for name in found.pending),
            *(f"{name} was edited after its release" for name in found.edited),
            *(f"{name} is not one of ours" for name in found.foreign),
        ),
    )
