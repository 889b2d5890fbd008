"""Where the database is: finding the connection string, opening it, showing no password of it."""

from __future__ import annotations

import os
import re
from typing import TypeVar, overload

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow

from tracedb.errors import ConnectionFailed, InvalidInput

C = TypeVar("C", bound=psycopg.Connection[TupleRow])

# Without it a lost packet on the way to a firewall hides for two minutes.
CONNECT_TIMEOUT = 10

_SCHEME = re.compile(r"^\s*(?:postgres|postgresql)(?:\+psycopg[23]?)?://", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"\w+://[^@/]*[@/][^?]*@")
# In an URI a password ends at the last `@` before the host, and may hold anything but white space.
_URI_PASSWORD = re.compile(r"(://[^\s:/@?#]*:)[^\s]*(?=@)")
_KEY_PASSWORD = re.compile(
    r"\b((?:ssl)?password\s*[=:]\s*)('(?:\\.|[^'\\])*'|[^\s&]+)", re.IGNORECASE
)


def resolve(dsn: str | None = None) -> str:
    """A libpq string: the argument, else TRACEDB_DSN, else DATABASE_URL, else '' (libpq's PG*)."""
    for name, text in (
        ("dsn", dsn),
        ("TRACEDB_DSN", os.environ.get("TRACEDB_DSN")),
        ("DATABASE_URL", os.environ.get("DATABASE_URL")),
    ):
        if text and text.strip():
            return _checked(name, _SCHEME.sub("postgresql://", text.strip()))
    return ""


def _checked(name: str, conninfo: str) -> str:
    # libpq would take the rest of such a password for the host, and print it in its error
    if _AMBIGUOUS.match(conninfo):
        raise InvalidInput.of(name, "write @ : / ? # in user and password as %40 %3A %2F %3F %23")
    try:
        return make_conninfo(conninfo)
    except psycopg.ProgrammingError as error:
        # libpq quotes the text it stumbled over, which may be the password
        reason = str(error).split('"')[0].strip().rstrip(":")
    raise InvalidInput.of(name, f"not a PostgreSQL connection string ({reason})")


def redact(text: str) -> str:
    """The text with every password in it replaced by ***."""
    return _KEY_PASSWORD.sub(r"\1***", _URI_PASSWORD.sub(r"\1***", text))


def scrub(text: str, conninfo: str) -> str:
    """The text without the passwords of this conninfo and of the environment, in any form."""
    given = conninfo_to_dict(conninfo)
    secrets = (given.get("password"), given.get("sslpassword"), os.environ.get("PGPASSWORD"))
    for secret in secrets:
        if secret:
            text = text.replace(str(secret), "***")
    return redact(text)


def describe(conninfo: str) -> str:
    """`host:port/database as user`, as libpq would connect, for people to read."""
    given = {key: str(value) for key, value in conninfo_to_dict(conninfo).items()}
    if "service" in given:
        return f"service {given['service']}"
    host = given.get("host") or os.environ.get("PGHOST") or "local socket"
    port = given.get("port") or os.environ.get("PGPORT")
    user = given.get("user") or os.environ.get("PGUSER")
    database = given.get("dbname") or os.environ.get("PGDATABASE") or user or "default database"
    place = f"{host}:{port}" if port and not host.startswith("/") else host
    return f"{place}/{database}" + (f" as {user}" if user else "")


@overload
def connect(
    conninfo: str, *, cursor_factory: type[psycopg.Cursor[TupleRow]] = psycopg.Cursor
) -> psycopg.Connection[TupleRow]: ...
@overload
def connect(conninfo: str, *, kind: type[C]) -> C: ...
def connect(
    conninfo: str,
    *,
    cursor_factory: type[psycopg.Cursor[TupleRow]] = psycopg.Cursor,
    kind: type[psycopg.Connection[TupleRow]] = psycopg.Connection,
) -> psycopg.Connection[TupleRow]:
    """An autocommit connection, or ConnectionFailed with the reason and no password."""
    given = conninfo_to_dict(conninfo)
    given.setdefault("application_name", "tracedb")
    # routers forget a connection that is silent while the server builds an index
    given.setdefault("keepalives_idle", 30)
    if "PGCONNECT_TIMEOUT" not in os.environ:
        given.setdefault("connect_timeout", CONNECT_TIMEOUT)
    try:
        return kind.connect(
            make_conninfo("", **given), autocommit=True, cursor_factory=cursor_factory
        )
    except psycopg.OperationalError as error:
        reason = scrub(str(error), conninfo).strip()
    raise ConnectionFailed(f"no connection to {describe(conninfo)}: {reason}")
