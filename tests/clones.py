"""Databases cloned from the template that live longer than one test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg import sql

from servers import Server


@contextmanager
def clone(server: Server, template: str) -> Iterator[str]:
    """The DSN of a migrated database, dropped at the end of the block."""
    name = sql.Identifier(f"tracedb_test_{secrets.token_hex(8)}")
    server.admin.execute(
        sql.SQL("create database {} template {} strategy file_copy").format(
            name, sql.Identifier(template)
        )
    )
    try:
        yield server.dsn(name.as_string().strip('"'))
    finally:
        server.admin.execute(sql.SQL("drop database if exists {} with (force)").format(name))
