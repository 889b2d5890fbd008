"""Where the SQL is: schema/ and migrations/ (of a wheel or a checkout), and our own statements."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tracedb.errors import SourceInvalid

# the tables of yoyo and of tracedb/ledger.py, which are in schema tracedb and no part of it
LEDGER = ("_yoyo_migration", "_yoyo_log", "_yoyo_version", "yoyo_lock", "_migration_checksum")

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The path of `schema` or `migrations`."""
    for root in (_PACKAGE / "_sql", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise SourceInvalid(f"the folder {name}/ is missing from this installation of tracedb")


def schema_files() -> list[Path]:
    """The files of schema/ in load order."""
    return sorted(folder("schema").glob("[0-9]*.sql"))


def text(file: str) -> str:
    """A .sql file of this package."""
    return (_PACKAGE / file).read_text(encoding="utf-8")


@cache
def statements(file: str) -> dict[str, str]:
    """The named statements of a .sql file of this package; `-- name: x` begins each."""
    parts = re.split(r"^-- name: (\w+)\n", text(file), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@cache
def rules() -> dict[str, str]:
    """What schema/ says of each check constraint, by name: the field and the rule."""
    found = re.findall(
        r"^comment on constraint (\w+) on tracedb\.\w+ is((?:\s+'(?:[^']|'')*')+);",
        "".join(path.read_text(encoding="utf-8") for path in schema_files()),
        re.MULTILINE,
    )
    return {
        name: "".join(re.findall(r"'((?:[^']|'')*)'", said)).replace("''", "'")
        for name, said in found
    }
