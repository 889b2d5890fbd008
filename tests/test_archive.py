"""An archive file is written whole or not at all, and read only as what it was."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import random
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import psycopg
import pyarrow as pa
import pytest
from isal import igzip
from pyarrow import parquet as pq
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

import two_tenants
from test_restore import PERIOD, odd
from test_retention import (
    FAMILY,
    OLD,
    Connection,
    admin,
    conn,
    contents,
    done,
    places,
    store,
    write,
)
from tracedb import archive as archiving
from tracedb import csvfile, parquetfile, retention
from tracedb.ask import ask, key_columns
from tracedb.errors import ArchiveDamaged, InvalidInput, StoreFailed
from tracedb.query import run
from tracedb.restore import restore
from tracedb.retention import run_retention
from tracedb.stores import DirectoryStore, ObjectStore, open_store
from two_tenants import A, B

__all__ = ["admin", "conn", "store"]  # fixtures


class Full(io.RawIOBase):
    """A file on a disk that is full."""

    def writable(self) -> bool:
        return True

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


class FullStore(DirectoryStore):
    def create(self, name: str) -> BinaryIO:
        super().create(name).close()
        return Full()  # type: ignore[return-value]


class Forgetful(DirectoryStore):
    """A store that keeps another byte than it was given."""

    def finish(self, name: str) -> None:
        raise AssertionError("nothing may get its name")

    def open(self, name: str) -> BinaryIO:
        data = self.root.joinpath(name).read_bytes()
        return io.BytesIO(data[:-1] + bytes([data[-1] ^ 1]))


FAULTS = {
    "a full disk": (FullStore, "No space left on device"),
    "a store that keeps something else": (Forgetful, "its SHA-256 is"),
}


def test_a_store_that_fails_keeps_the_rows_where_they_are(
    conn: Connection, admin: Connection, tmp_path: Path
) -> None:
    old = write(admin, OLD)
    (tmp_path / "archive").mkdir()
    for kind, message in FAULTS.values():
        report = run_retention(conn, kind(tmp_path / "archive"))

        assert message in report.failures[0].error
        assert [each for each in report.receipts if each.row_count] == []
        assert str(old) in contents(admin)["execution_traces"][0]
        assert run(conn, archiving.archives()) == []
        assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_written_or_is_gone(
    conn: Connection, admin: Connection, tmp_path: Path
) -> None:
    write(admin, OLD)
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        (tmp_path / "file").write_text("no directory")
        report = run_retention(conn, DirectoryStore(path))
        assert "is no directory: make it, or mount it" in report.failures[0].error
    (tmp_path / "shut" / "traces").mkdir(parents=True)
    (tmp_path / "shut" / "traces" / "execution_traces").write_text("in the way")
    report = run_retention(conn, DirectoryStore(tmp_path / "shut"))
    assert "store: cannot write traces/execution_traces/" in report.failures[0].error
    assert len(contents(admin)["execution_traces"]) == 1


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_an_object_store_is_a_store_like_another(
    conn: Connection, admin: Connection, tmp_path: Path, format: str
) -> None:
    (tmp_path / "bucket").mkdir()
    objects = ObjectStore(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "bucket", "x://b")
    odd(admin)
    admin.execute("select count(*) from tracedb.fold_usage()")
    before = contents(admin)

    done(run_retention(conn, objects, format=format))

    assert contents(admin)["execution_traces"] == []
    found = run(conn, archiving.archives())
    assert {each.store for each in found} == {"x://b"}
    assert {each.file for each in found} | {each.file + ".manifest.json" for each in found} == set(
        objects.names()
    )
    restore(conn, PERIOD, objects)
    assert contents(admin) == before
    columns, rows = ask(found, keys(conn), "select count(*) as n from llm_spans", objects)
    assert (columns, rows) == (["n"], [(1,)])


@pytest.mark.parametrize("packed", [gzip, igzip])
@pytest.mark.parametrize("read", [gzip, igzip])
def test_either_library_reads_what_the_other_packed(
    monkeypatch: pytest.MonkeyPatch, packed: ModuleType, read: ModuleType
) -> None:
    rows = [
        b"%d,%s\n" % (number, random.Random(number).randbytes(500).hex().encode())
        for number in range(2000)
    ]
    file = io.BytesIO()
    monkeypatch.setattr(csvfile, "library", packed)
    digest = csvfile.encode(rows, file, [])
    monkeypatch.setattr(csvfile, "library", read)

    assert digest == hashlib.sha256(b"".join(rows)).hexdigest()
    assert b"".join(csvfile.decode(io.BytesIO(file.getvalue()), [])) == b"".join(rows)
    for damaged in (file.getvalue()[:-100], file.getvalue()[:5000] + b"\0" * 99):
        with pytest.raises(csvfile.DAMAGES):
            list(csvfile.decode(io.BytesIO(damaged), []))


def keys(conn: Connection) -> dict[str, list[str]]:
    return {table: run(conn, key_columns(table)) for table in FAMILY}


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_files_are_asked_where_they_lie(
    conn: Connection, admin: Connection, store: DirectoryStore, format: str
) -> None:
    odd(admin)
    write(admin, OLD, 1, B)
    texts = admin.execute(
        "select tenant_id, trace_id, kind, content, recorded_at from tracedb.trace_payloads"
        " order by 1, 2, 3"
    ).fetchall()
    done(run_retention(conn, store, format=format))
    # the same rows once more, in newer files
    restore(conn, PERIOD)
    admin.execute("delete from tracedb.retention_receipts where action = 'restored'")
    done(run_retention(conn, store, format=format))
    found = run(conn, archiving.archives(state="removed"))

    _, rows = ask(
        found,
        keys(conn),
        "select tenant_id, trace_id, kind, content, recorded_at from trace_payloads"
        " order by 1, 2, 3",
    )

    assert rows == texts
    _, rows = ask(
        found,
        keys(conn),
        "select tenant_id, sum(s.cost_usd) from llm_spans as s join execution_traces as t"
        " using (tenant_id, trace_id) group by 1 order by 1",
    )
    assert [(tenant, float(cost)) for tenant, cost in rows] == [(A, 1.0), (B, 1.0)]
    with pytest.raises(InvalidInput, match="sql: "):
        ask(found, keys(conn), "select nothing")
    (store.root / found[0].file).write_bytes(b"")
    with pytest.raises(ArchiveDamaged, match=found[0].file):
        ask(found, keys(conn), "select 1")


def test_a_long_reader_delays_removing_and_nothing_else(
    conn: Connection,
    admin: Connection,
    store: DirectoryStore,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "ATTEMPTS", 2)
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)
    old = write(admin, OLD)
    events = json.dumps(two_tenants.events(A, OLD, 1))
    admin.execute("select tracedb.ingest(%s::json, %s)", [events, A])
    with psycopg.connect(database) as reader:
        reader.execute("select count(*) from tracedb.llm_spans, tracedb.platform_events")
        report = run_retention(conn, store)

    assert report.stray_rows == 3
    assert "in use by another session" in report.failures[0].error
    assert places(conn, admin, store) == {str(old): 1}
    files = store.names()

    assert done(run_retention(conn, store)).stray_rows == 0
    assert places(conn, admin, store) == {str(old): 1}
    assert contents(admin)["execution_traces"] == []
    assert store.names() == files  # what was archived is not archived again


def test_amounts_are_numbers_however_they_are_written() -> None:
    amounts = [
        "1.50",
        "0.25",
        "0.1000000000000000000000",
        "-0",
        "NaN",
        "",
        "0.00034649999999999997",
    ]
    columns = [{"name": "id", "type": "text"}, {"name": "usd", "type": "numeric"}]
    rows = [f'"x",{each}\n'.encode() for each in amounts]
    file = io.BytesIO()
    parquetfile.encode(rows, file, columns)

    found = pq.read_table(pa.py_buffer(file.getvalue()))["usd"].to_pylist()

    decimals = [Decimal(each) for each in ("1.5", "0.25", "0.1", "0")]
    assert found == [*decimals, None, None, Decimal("0.000346499999999999")]
    decoded = b"".join(parquetfile.decode(io.BytesIO(file.getvalue()), columns))
    assert list(csvfile.rows([decoded])) == [("x", each or None) for each in amounts]


def test_a_directory_of_any_name_is_found_again_and_missed_when_it_is_gone(
    conn: Connection, admin: Connection, tmp_path: Path
) -> None:
    odd_store = DirectoryStore(tmp_path / "my [archive] %20 *#1 é")
    odd_store.root.mkdir()
    write(admin, OLD)
    done(run_retention(conn, odd_store))

    restore(conn, PERIOD)

    assert len(contents(admin)["execution_traces"]) == 1
    found = run(conn, archiving.archives(table_name="llm_spans"))
    assert ask(found, keys(conn), "select count(*) from llm_spans")[1] == [(1,)]
    odd_store.root.rename(tmp_path / "unmounted")
    with pytest.raises(StoreFailed, match="is no directory"):
        odd_store.remove("traces/llm_spans/x.csv.gz")


def test_a_store_is_named_by_a_path_or_a_uri(tmp_path: Path) -> None:
    for where in (str(tmp_path), tmp_path.as_uri()):
        assert open_store(where).uri == tmp_path.as_uri()
    with pytest.raises(InvalidInput, match="store: must be a directory or a URI"):
        open_store("")
    with pytest.raises(InvalidInput, match="store: "):
        open_store("nonsense://x")
    with pytest.raises(InvalidInput, match="store: must hold no credentials"):
        open_store("s3://key:secret@bucket/prefix")
