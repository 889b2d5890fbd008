"""A folder of migrations: what is in it, in which order, and whether a released file was edited."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from tracedb import resources
from tracedb.errors import MigrationError, NotFound, SourceInvalid

CHECKSUMS = "CHECKSUMS"

_NAME = re.compile(r"\d{4}_[a-z0-9_]+(\.rollback)?\.sql")
_CHECKSUM_LINE = re.compile(r"(?P<sha256>[0-9a-f]{64}) [ *](?P<name>\S+)")
_IRREVERSIBLE = re.compile(r"\A-- irreversible: (?P<reason>.*)")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file, with the steps that yoyo cut it into."""

    id: str
    path: Path
    sha256: str
    steps: Any
    """yoyo's Migration (yoyo has no types)"""

    @property
    def is_transactional(self) -> bool:
        return bool(self.steps.use_transactions)

    @property
    def rollback_path(self) -> Path:
        return self.path.with_suffix(".rollback.sql")


@dataclass(frozen=True, slots=True)
class Source:
    """The migrations of a folder in the order they are applied."""

    folder: Path
    migrations: tuple[Migration, ...]

    @classmethod
    def read(cls, folder: Path | None = None) -> Source:
        """The given folder, or the one that came with this package."""
        folder = folder or resources.folder("migrations")
        if not folder.is_dir():
            raise SourceInvalid(f"no such folder of migrations: {folder}")
        for path in sorted([*folder.glob("*.sql"), *folder.glob("*.py")]):
            if not _NAME.fullmatch(path.name):
                raise SourceInvalid(f"{path} is not named as a migration of tracedb is")
        # imported here, so that `tracedb --help` does not wait for it
        from yoyo.exceptions import BadMigration
        from yoyo.migrations import read_migrations, topological_sort

        found = read_migrations(escape(str(folder)))
        try:
            for each in found:
                each.load()
            ordered = list(topological_sort(found))
        except BadMigration as error:
            raise SourceInvalid(f"{folder}: {error}") from error
        if not ordered:
            raise SourceInvalid(f"no migrations in {folder}")
        return cls(
            folder,
            tuple(
                Migration(each.id, Path(each.path), _sha256(Path(each.path)), each)
                for each in ordered
            ),
        )

    def __iter__(self) -> Iterator[Migration]:
        return iter(self.migrations)

    def __contains__(self, id: str) -> bool:
        return any(migration.id == id for migration in self.migrations)

    def __getitem__(self, id: str) -> Migration:
        """The migration of this id, or of this number."""
        for migration in self.migrations:
            if id == migration.id or migration.id.startswith(f"{id}_"):
                return migration
        raise NotFound(f"there is no migration {id} in {self.folder}")

    def up_to(self, id: str | None) -> tuple[Migration, ...]:
        """All of them, or the ones up to and including `id`."""
        if id is None:
            return self.migrations
        return self.migrations[: self.migrations.index(self[id]) + 1]

    def released(self) -> dict[str, str]:
        """File name to sha256, as CHECKSUMS says (`sha256sum -c` reads it too)."""
        path = self.folder / CHECKSUMS
        if not path.exists():
            return {}
        lines = [_CHECKSUM_LINE.fullmatch(line) for line in path.read_text().splitlines()]
        if None in lines:
            raise SourceInvalid(f"{path} is not a list of sha256sum")
        return {line["name"]: line["sha256"] for line in lines if line}

    def edited(self) -> list[str]:
        """Names of released files that are gone or differ from CHECKSUMS."""
        return [
            name
            for name, sha256 in self.released().items()
            if not (self.folder / name).exists() or _sha256(self.folder / name) != sha256
        ]

    def edited_since(self, recorded: Mapping[str, str]) -> list[str]:
        """Names of files that differ from what a database recorded when it applied them."""
        return [
            migration.path.name
            for migration in self.migrations
            if recorded.get(migration.id, migration.sha256) != migration.sha256
        ]

    def refuse_irreversible(self, ids: list[str]) -> None:
        """yoyo un-records a migration without a rollback file and undoes nothing."""
        for id in ids:
            path = self[id].rollback_path
            if not path.exists():
                raise MigrationError(f"{id} cannot be rolled back: {path.name} is missing")
            reason = _IRREVERSIBLE.match(path.read_text(encoding="utf-8"))
            if reason:
                raise MigrationError(f"{id} cannot be rolled back: {reason['reason']}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
