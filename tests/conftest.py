"""One server a run, one migrated template, and for each test a database cloned from it."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import psycopg
import pytest
import sqlparse
from psycopg import sql

import servers
from servers import Server

SERVER = pytest.StashKey[Server]()
MEASURED = pytest.StashKey[list[str]]()

# yoyo takes a second to split the migrations into statements; tests read them hundreds of times.
_split = cache(sqlparse.split)


def _split_once(sql: str, encoding: str | None = None, strip_semicolon: bool = False) -> list[str]:
    return list(_split(sql, encoding, strip_semicolon))


sqlparse.split = _split_once


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tracedb")
    group.addoption(
        "--db",
        choices=("auto", "dsn", "docker", "embedded"),
        default="auto",
        help="the server: auto takes TRACEDB_TEST_DSN, else Docker, else the embedded one",
    )
    group.addoption(
        "--pg",
        type=int,
        choices=sorted(servers.EMBEDDED),
        default=18,
        help="the version of the Docker or embedded server",
    )


def pytest_configure(config: pytest.Config) -> None:
    # A run that is told to end (by a time limit, by CI) still stops its server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not (config.option.collectonly or config.option.help):
        config.stash[SERVER] = servers.start(config.getoption("--db"), config.getoption("--pg"))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [config.stash[SERVER].header()] if SERVER in config.stash else []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if measured := config.stash.get(MEASURED, []):
        terminalreporter.section("measured")
        for line in measured:
            terminalreporter.write_line(line)


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[[str, object], None]:
    """Print what a test measured at the end of the run."""
    measured = pytestconfig.stash.setdefault(MEASURED, [])
    return lambda what, figures: measured.append(f"{what}: {figures}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].stop()


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Server:
    return pytestconfig.stash[SERVER]


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """The name of a database migrated as users do it; nobody may stay connected to it."""
    from tracedb.migrate import migrate

    name = f"tracedb_template_{secrets.token_hex(4)}"
    _create(server, name)
    try:
        migrate(server.dsn(name))
        yield name
    finally:
        _drop(server, name)


@pytest.fixture
def database(server: Server, template: str) -> Iterator[str]:
    """The DSN of a migrated database that this test has to itself."""
    name = f"tracedb_test_{secrets.token_hex(8)}"
    _create(server, name, template)
    try:
        yield server.dsn(name)
    finally:
        _drop(server, name)


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The DSN of a database without anything in it, for tests of migrating."""
    name = f"tracedb_test_{secrets.token_hex(8)}"
    _create(server, name)
    try:
        yield server.dsn(name)
    finally:
        _drop(server, name)


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection[Any]]:
    """The administrator in the test's own database; act as others through `servers.as_role`."""
    with psycopg.connect(database) as conn:
        yield conn


def _create(server: Server, name: str, template: str | None = None) -> None:
    # Sorting and encoding are the same on every server. Copying files is several times faster than
    # writing every page to the log.
    how = (
        sql.SQL("template {} strategy file_copy").format(sql.Identifier(template))
        if template
        else sql.SQL("template template0 encoding 'UTF8' locale_provider libc locale 'C'")
    )
    server.admin.execute(sql.SQL("create database {} {}").format(sql.Identifier(name), how))


def _drop(server: Server, name: str) -> None:
    server.admin.execute(
        sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
    )
