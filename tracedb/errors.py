"""The one tree of errors that tracedb raises, and which database error becomes which of them."""

from __future__ import annotations

import inspect

import psycopg


class TracedbError(Exception):
    """tracedb could not do what was asked."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class ConnectionFailed(TracedbError):
    """No connection to the database."""

    exit_code = 4


class ExtraMissing(TracedbError):
    """This needs a library that is not installed; it comes with an extra of tracedb."""


class InvalidInput(TracedbError):
    """A value breaks a rule."""

    @classmethod
    def of(cls, field: str, rule: str) -> InvalidInput:
        return cls(f"{field}: {rule}")


class NotFound(TracedbError):
    """There is no such thing for this tenant."""


class TenantMissing(TracedbError):
    """No tenant is set, so there is nothing to read or write: name one first."""


class NotATenant(TracedbError):
    """There is no such tenant."""


class PermissionDenied(TracedbError):
    """This role may not do that."""


class NotMigrated(TracedbError):
    """The database has no tracedb schema, or an older one: run `tracedb migrate`."""


class MigrationError(TracedbError):
    """A migration failed; what it had begun was rolled back."""


class SourceInvalid(MigrationError):
    """The folder holds no migrations."""


class MigrationEdited(MigrationError):
    """A migration was changed after its release or after it was applied."""


class MigrationForeign(MigrationError):
    """The ledger names migrations that this version of tracedb does not have."""


class RetentionRefused(TracedbError):
    """The rows are not as they were archived, or the plan has changed: nothing was removed."""


class NotFolded(RetentionRefused):
    """Totals have yet to count these traces: nothing was removed."""


class StoreFailed(TracedbError):
    """The archive's store cannot be written or read."""


class ArchiveDamaged(TracedbError):
    """An archive file is not what its manifest says."""


class AlreadyRunning(TracedbError):
    """Another one of these is running."""

    exit_code = 75


class DriftFound(TracedbError):
    """The database is not as expected."""

    exit_code = 3


BY_SQLSTATE: dict[str, type[TracedbError]] = {
    "08": ConnectionFailed,
    "22": InvalidInput,
    "23": InvalidInput,
    "28": ConnectionFailed,
    "3D": ConnectionFailed,
    "42501": PermissionDenied,
    "42883": NotMigrated,
    "42P01": NotMigrated,
    "3F000": NotMigrated,
    "57P": ConnectionFailed,
    "P0002": NotFound,
    # raised by the functions of schema/
    "TD001": TenantMissing,
    "TD002": InvalidInput,
    "TD003": RetentionRefused,
    "TD004": NotFolded,
}


def error_class(error: psycopg.Error) -> type[TracedbError]:
    """The class for a database error: by SQLSTATE, or its longest prefix that we know."""
    code = error.sqlstate
    if code is None:
        # raised on this side: the connection is gone, or a value cannot be sent
        if isinstance(error, psycopg.OperationalError):
            return ConnectionFailed
        return InvalidInput if isinstance(error, psycopg.DataError) else TracedbError
    matches = (BY_SQLSTATE.get(code[:length]) for length in (5, 3, 2))
    return next((match for match in matches if match is not None), TracedbError)
