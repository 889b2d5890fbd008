"""Asking archive files in SQL where they lie: DuckDB over Parquet and CSV; needs `archive`."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from psycopg.rows import scalar_row

from tracedb import archive as archiving
from tracedb.archive import FILE, Archive, Recorded
from tracedb.errors import ExtraMissing, InvalidInput, NotFound
from tracedb.query import Query, many, statement
from tracedb.stores import DirectoryStore, Store, open_store

# of PostgreSQL's types, as DuckDB names them; the others are text
_TYPES = {
    "uuid": "uuid",
    "bigint": "bigint",
    "integer": "integer",
    "smallint": "smallint",
    "double precision": "double",
    "boolean": "boolean",
    "numeric": "decimal(38, 18)",
    "timestamp with time zone": "timestamptz",
    "jsonb": "json",
}


def key_columns(table_name: str) -> Query[list[str]]:
    """The columns of a table's key."""
    args = {"table_name": table_name}
    return Query(statement("key_columns", FILE), args, scalar_row, many)


def ask(
    found: Sequence[Recorded],
    keys: Mapping[str, Sequence[str]],
    question: str,
    store: Store | None = None,
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and rows that SQL over archives answers; each table is a view of its name.

    `found` is the newest first: of a row that is in several (restored and archived again) that one
    counts, by the columns of `keys`. Files are compared with their manifests before they are read;
    those of an object store are fetched for the time of the question.
    """
    try:
        import duckdb
    except ImportError:
        raise ExtraMissing(
            "asking the archive needs duckdb: pip install 'tracedb[archive]'"
        ) from None
    if not found:
        raise NotFound("there are no such archives")
    tables: defaultdict[str, list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="tracedb-") as scratch, duckdb.connect() as duck:
        duck.execute("set timezone = 'UTC'")
        for place, recorded in enumerate(found):
            of_archive = store or open_store(recorded.store)
            archive = archiving.opened(of_archive, recorded)
            archiving.check_bytes(of_archive, archive)
            path = _local(of_archive, archive, Path(scratch))
            view = f'"file {place}"'
            duck.execute(_view(archive, path, view, place))
            tables[recorded.table_name].append(_format("of_file", view=view))
        for table, files in tables.items():
            duck.execute(
                _format(
                    "of_table",
                    view=_name(table),
                    files=" union all by name ".join(files),
                    keys=", ".join(map(_name, keys[table])),
                )
            )
        try:
            answer = duck.execute(question)
            columns = [each[0] for each in answer.description or ()]
            return columns, answer.fetchall()
        except duckdb.Error as error:
            raise InvalidInput.of("sql", str(error)) from error


def _view(archive: Archive, path: Path, view: str, place: int) -> str:
    names = archive.column_names
    if archive.format == "parquet":
        return _format("parquet_file", view=view, place=place, path=_file(path))
    typed = (
        f"try_cast({_name(each['name'])} as {_TYPES.get(each['type'], 'text')})"
        f" as {_name(each['name'])}"
        for each in archive.columns
    )
    return _format(
        "csv_file",
        view=view,
        place=place,
        path=_file(path),
        columns=", ".join(typed),
        texts="{" + ", ".join(f"{_text(name)}: 'varchar'" for name in names) + "}",
    )


def _local(store: Store, archive: Archive, scratch: Path) -> Path:
    if isinstance(store, DirectoryStore):
        return store.root / archive.file
    path = scratch / archive.file.replace("/", "_")
    with store.open(archive.file) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return path


def _format(name: str, **parts: object) -> str:
    text: str = statement(name, "ask.sql")
    for key, value in parts.items():
        text = text.replace("{" + key + "}", str(value))
    return text


def _file(path: Path) -> str:
    return _text(glob.escape(str(path)))


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def tables_of(found: Iterable[Recorded]) -> list[str]:
    """The tables that archives are of."""
    return sorted({each.table_name for each in found})
