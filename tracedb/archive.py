"""Archive files: writing one from a table, reading it back, its manifest and its record.

A file holds the rows of one table and range of ids as CSV (`csvfile`) or Parquet (`parquetfile`);
whatever it is, `portions` gives the CSV that COPY takes, and `rows` its values. Nothing is read
without being compared with the manifest beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from types import ModuleType
from typing import Any, BinaryIO, LiteralString, cast
from uuid import UUID, uuid4

from psycopg import Connection, sql
from psycopg.rows import class_row, dict_row, scalar_row
from psycopg.types.json import Jsonb

from tracedb import csvfile, resources
from tracedb.errors import (
    ArchiveDamaged,
    InvalidInput,
    PermissionDenied,
    RetentionRefused,
    StoreFailed,
)
from tracedb.query import Query, many, one, run, statement, typed_errors
from tracedb.stores import Store, failing

FILE = "archive.sql"
MANIFEST = ".manifest.json"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one table whose ids are of a time: of one tenant, of all, or of all but some."""

    family: str
    table_name: str
    from_time: datetime
    to_time: datetime
    tenant_id: UUID | None = None
    except_tenants: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class TenantRows:
    """How many rows of a tenant a part has, and from which id to which."""

    tenant: UUID
    row_count: int
    row_hash: int
    first_id: UUID
    last_id: UUID


@dataclass(frozen=True, slots=True)
class Archive:
    """A file, as its manifest and the table `archives` describe it. `file` is its name in a store.

    `sha256` is of the file's bytes, `content_sha256` of the CSV they decode to.
    """

    archive_id: UUID
    family: str
    table_name: str
    from_time: datetime
    to_time: datetime
    tenant_id: UUID | None
    except_tenants: tuple[UUID, ...]
    first_id: UUID | None
    last_id: UUID | None
    row_count: int
    row_hash: int
    file: str
    format: str
    file_bytes: int
    sha256: str
    content_sha256: str
    schema_version: str
    columns: tuple[dict[str, str], ...]
    created_at: datetime

    @property
    def manifest(self) -> str:
        """The manifest's name in the store."""
        return self.file + MANIFEST

    @property
    def column_names(self) -> list[str]:
        return [column["name"] for column in self.columns]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row of `archives`."""

    archive_id: UUID
    tenant_id: UUID | None
    except_tenants: list[UUID]
    family: str
    table_name: str
    from_time: datetime
    to_time: datetime
    first_id: UUID | None
    last_id: UUID | None
    row_count: int
    row_hash: int
    state: str
    uri: str
    format: str
    file_bytes: int
    sha256: str
    schema_version: str
    columns: list[dict[str, str]]
    created_at: datetime

    @property
    def file(self) -> str:
        """The file's name in its store: family, table and name."""
        return "/".join(self.uri.split("/")[-3:])

    @property
    def store(self) -> str:
        """The store it was written to."""
        return self.uri.removesuffix("/" + self.file)


def archives(
    *,
    state: str | None = None,
    family: str | None = None,
    table_name: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    tenant_id: UUID | None = None,
) -> Query[list[Recorded]]:
    """The archives, the newest first: of a state, table, time, or with rows of a tenant."""
    args = {
        "state": state,
        "family": family,
        "table_name": table_name,
        "since": since,
        "until": until,
        "of_tenant": tenant_id,
    }
    return Query(statement("archives", FILE), args, class_row(Recorded), many)


def discard(archive_id: UUID) -> Query[bool]:
    """Forget an archive whose rows are all still in their table (`tracedb.discard_archive`)."""
    return Query(statement("discard_archive", FILE), {"archive_id": archive_id}, scalar_row, one)


def archive_part(
    conn: Connection[Any],
    store: Store,
    part: Part,
    format: str = "csv",
    step: Callable[[str], None] = lambda _: None,
) -> Archive | None:
    """Write a part of a table to the store, read it back, give it its name and record it.

    None if there is no row to archive. Raises PermissionDenied as a role that row-level security
    filters, StoreFailed and ArchiveDamaged if the store does not keep what it is given; then
    nothing is left of it.
    """
    codec = codec_of(format)
    archive_id = uuid4()
    file = _name(part, archive_id) + codec.SUFFIX
    try:
        with typed_errors(), conn.transaction():
            archive, contents = _copy_out(conn, store, part, archive_id, file, format)
        if not contents:
            return None
        step("written")
        check(store, archive, file + ".part")
        store.finish(file)
        write_manifest(store, archive)
        step("finished")
        record(conn, store, archive, contents)
    except BaseException as error:
        if isinstance(error, Exception):
            forget(store, file)
        raise
    step("recorded")
    return archive


def write(
    store: Store, archive: Archive, rows: Iterable[bytes], *, codec: ModuleType | None = None
) -> Archive:
    """Write CSV rows (no header) as the file of an archive, under its temporary name.

    The answer has the file's own bytes and hashes; `check`, `Store.finish` and `write_manifest` it,
    then `record` it.
    """
    codec = codec or codec_of(archive.format)
    columns = list(archive.columns)
    counting = _Hashing(store.create(archive.file))
    with failing(f"cannot write {archive.file}"):
        try:
            content = codec.encode(rows, counting, columns)
        finally:
            counting.close()
    return replace(
        archive,
        file_bytes=counting.size,
        sha256=counting.digest.hexdigest(),
        content_sha256=content,
    )


def check(store: Store, archive: Archive, file: str | None = None) -> None:
    """Read a file whole and compare it with its manifest; ArchiveDamaged says what is wrong."""
    for _ in portions(store, archive, file):
        pass


def check_bytes(store: Store, archive: Archive, file: str | None = None) -> None:
    """Compare the bytes of a file with its manifest, without decoding them."""
    file = file or archive.file
    if (size := store.size(file)) != archive.file_bytes:
        raise ArchiveDamaged(
            f"{file}: has {size} bytes, but its manifest says {archive.file_bytes}"
        )
    with store.open(file) as raw:
        _compare(file, "SHA-256", _digest(raw, file), archive.sha256)


def portions(store: Store, archive: Archive, file: str | None = None) -> Iterator[bytes]:
    """The rows of a file as CSV without a header; ArchiveDamaged at the end if it is not whole."""
    file = file or archive.file
    codec = codec_of(archive.format)
    check_bytes(store, archive, file)
    content = hashlib.sha256()
    with store.open(file) as raw:
        try:
            # of a damage that the hash has not shown, which would be the store's
            for portion in codec.decode(raw, list(archive.columns)):
                content.update(portion)
                yield portion
        except codec.DAMAGES as error:
            raise ArchiveDamaged(f"{file}: cannot be decoded: {error}") from error
    _compare(file, "SHA-256 of its rows", content.hexdigest(), archive.content_sha256)


def rows(store: Store, archive: Archive) -> Iterator[tuple[str | None, ...]]:
    """The rows of a file, in the order of its columns, as PostgreSQL writes values as text."""
    found = 0
    for row in csvfile.rows(portions(store, archive)):
        found += 1
        yield row
    _compare(archive.file, "rows", found, archive.row_count)


def read_manifest(store: Store, file: str) -> Archive:
    """The manifest of a file; ArchiveDamaged if it is not there or cannot be read."""
    name = file + MANIFEST
    with store.open(name) as raw, failing(f"cannot read {name}"):
        text = raw.read()
    try:
        found = json.loads(text)
        archive = Archive(
            **{
                **found,
                **{key: UUID(found[key]) for key in ("archive_id",)},
                **{
                    key: UUID(found[key]) if found[key] else None
                    for key in ("tenant_id", "first_id", "last_id")
                },
                **{
                    key: datetime.fromisoformat(found[key])
                    for key in ("from_time", "to_time", "created_at")
                },
                "except_tenants": tuple(UUID(each) for each in found["except_tenants"]),
                "columns": tuple(found["columns"]),
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArchiveDamaged(f"{name}: is no manifest: {error}") from error
    if archive.file != file:
        raise ArchiveDamaged(f"{name}: is of another file: {archive.file}")
    return archive


def opened(store: Store, recorded: Recorded) -> Archive:
    """The manifest of a recorded archive; ArchiveDamaged if it says something else."""
    file = recorded.file
    archive = read_manifest(store, file)
    for name in ("archive_id", "table_name", "row_count", "format", "file_bytes", "sha256"):
        ours, theirs = getattr(recorded, name), getattr(archive, name)
        if ours != theirs:
            raise ArchiveDamaged(
                f"{file}: its manifest says {name} {theirs}, but {ours} was recorded"
            )
    if recorded.columns != list(archive.columns):
        raise ArchiveDamaged(f"{file}: its manifest says other columns than were recorded")
    return archive


def write_manifest(store: Store, archive: Archive) -> None:
    """Write the manifest beside its file."""
    text = json.dumps(asdict(archive), indent=1, default=_as_json)
    with failing(f"cannot write {archive.manifest}"), store.create(archive.manifest) as file:
        file.write(text.encode())
    store.finish(archive.manifest)


def record(
    conn: Connection[Any], store: Store, archive: Archive, contents: Sequence[TenantRows]
) -> None:
    """Add a file that was read back to the table `archives` (`tracedb.record_archive`)."""
    row = {
        key: value
        for key, value in asdict(archive).items()
        if key not in ("file", "content_sha256", "created_at")
    } | {"uri": f"{store.uri}/{archive.file}"}
    held = [{**asdict(each), "tenant_id": each.tenant} for each in contents]
    args = {"archive": Jsonb(row, dumps=_dumps), "contents": Jsonb(held, dumps=_dumps)}
    run(conn, Query(statement("record_archive", FILE), args, scalar_row, one))


def codec_of(format: str) -> ModuleType:
    """The module that reads and writes a format."""
    if format == "csv":
        return csvfile
    if format == "parquet":
        from tracedb import parquetfile

        return parquetfile
    raise InvalidInput.of("format", f"must be csv or parquet, not {format}")


def _copy_out(
    conn: Connection[Any], store: Store, part: Part, archive_id: UUID, file: str, format: str
) -> tuple[Archive, list[TenantRows]]:
    args = asdict(part) | {"except_tenants": list(part.except_tenants)}
    conn.execute(_sql("one_snapshot"))
    conn.execute(_sql("exact_text"))
    if not _scalar(conn, "sees_all_rows", args):
        raise PermissionDenied(
            f"{part.table_name}: row-level security hides rows from this role; an archive of it"
            " would lack them: use a login that may act as tracedb_maintainer"
        )
    columns = conn.cursor(row_factory=dict_row).execute(_sql("columns"), args).fetchall()
    contents = (
        conn.cursor(row_factory=class_row(TenantRows)).execute(_sql("contents"), args).fetchall()
    )
    row_hash = 0
    for tenant in contents:
        row_hash ^= tenant.row_hash
    archive = Archive(
        **args | {"except_tenants": part.except_tenants},
        archive_id=archive_id,
        first_id=min((tenant.first_id for tenant in contents), default=None),
        last_id=max((tenant.last_id for tenant in contents), default=None),
        row_count=sum(tenant.row_count for tenant in contents),
        row_hash=row_hash,
        file=file,
        format=format,
        file_bytes=0,
        sha256="",
        content_sha256="",
        schema_version=_schema_version(),
        columns=tuple(columns),
        created_at=datetime.now(UTC),
    )
    if not contents:
        return archive, contents
    query = sql.SQL(_sql("copy_out")).format(
        columns=sql.SQL(", ").join(sql.Identifier("t", each["name"]) for each in columns),
        table=sql.Identifier(part.table_name),
        key=sql.Identifier(_scalar(conn, "partition_key", args)),
        **{key: sql.Literal(args[key]) for key in ("from_time", "to_time", "tenant_id")},
        except_tenants=sql.Literal(list(part.except_tenants)),
    )
    with conn.cursor() as cursor:
        with cursor.copy(query) as copy:
            archive = write(store, archive, cast(Iterable[bytes], copy))
        copied = cursor.rowcount
    if copied != archive.row_count:
        raise RetentionRefused(
            f"{part.table_name}: {copied} rows were copied of {archive.row_count} that are there"
        )
    return archive, contents


@cache
def _schema_version() -> str:
    """The newest migration of this version of tracedb."""
    names = (path.stem for path in resources.folder("migrations").glob("[0-9]*.sql"))
    return max(name for name in names if not name.endswith(".rollback"))


def _name(part: Part, archive_id: UUID) -> str:
    """A new file for a part: nothing is ever overwritten."""
    since, until = (f"{at.astimezone(UTC):%Y%m%dT%H%M%S}" for at in (part.from_time, part.to_time))
    whose = f"_{part.tenant_id}" if part.tenant_id else ""
    return f"{part.family}/{part.table_name}/{since}_{until}{whose}_{archive_id.hex[:12]}"


def forget(store: Store, file: str) -> None:
    """Remove what was written of a file; a store that is gone keeps it."""
    with suppress(StoreFailed):
        store.remove(file)
        store.remove(file + MANIFEST)


class _Hashing(io.RawIOBase):
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _digest(raw: BinaryIO, file: str) -> str:
    digest = hashlib.sha256()
    with failing(f"cannot read {file}"):
        while portion := raw.read(csvfile.PORTION):
            digest.update(portion)
    return digest.hexdigest()


def _compare(file: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArchiveDamaged(f"{file}: its {what} is {found}, but its manifest says {expected}")


def _sql(name: str) -> LiteralString:
    return statement(name, FILE)


def _scalar(conn: Connection[Any], name: str, args: dict[str, Any]) -> Any:
    return conn.cursor(row_factory=scalar_row).execute(_sql(name), args).fetchone()


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _dumps(value: object) -> str:
    return json.dumps(value, default=_as_json)
