"""Small folders of migrations for tests, and the plain yoyo command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from tracedb.verify import catalog


def add(folder: Path, id: str, sql: str, rollback: str | None = None) -> Path:
    """Write a migration, and its rollback twin if there is one."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{id}.sql"
    path.write_text(f"-- {id}.sql: part of a test.\n\n{sql}")
    if rollback is not None:
        (folder / f"{id}.rollback.sql").write_text(
            f"-- {id}.rollback.sql: undoes it.\n\n{rollback}"
        )
    return path


def two(folder: Path) -> Path:
    """Write two migrations: a table, and a column of it."""
    add(
        folder,
        "0001_account",
        "create table if not exists tracedb.account (id int primary key, name text);\n"
        "insert into tracedb.account values (1, 'a 100% %s sure') on conflict do nothing;",
        "drop table if exists tracedb.account;",
    )
    add(
        folder,
        "0002_age",
        "alter table tracedb.account add column if not exists age int;",
        "alter table tracedb.account drop column if exists age;",
    )
    return folder


def yoyo(dsn: str, folder: Path, *command: str, **query: str) -> None:
    """`yoyo apply --batch`, as somebody without tracedb's own command would type it."""
    verb, *options = command or ("apply",)
    target = ("--database", yoyo_uri(dsn, **query), str(folder))
    result = subprocess.run(
        [sys.executable, "-m", "yoyo", verb, "--batch", "--no-config-file", *options, *target],
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"yoyo ended with {result.returncode}: {result.stderr}")


def yoyo_uri(dsn: str, **query: str) -> str:
    """The URI by which yoyo uses psycopg 3."""
    given = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    secret = quote(given.get("password", ""), safe="")
    query |= {"host": given["host"], "port": given.get("port", "5432")}
    user, name = quote(given["user"], safe=""), given["dbname"]
    return f"postgresql+psycopg://{user}:{secret}@/{name}?{urlencode(query)}"


def contents(dsn: str) -> dict[str, str]:
    """Every object of schema tracedb."""
    with psycopg.connect(dsn) as conn:
        return catalog(conn)


def value(dsn: str, query: str) -> Any:
    """The first column of the first row."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(query).fetchone()
        return row and row[0]
