"""What was archived comes back equal, and is counted once."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers import as_role
from test_retention import (
    FAMILY,
    NOW,
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
from tracedb import csvfile, retention
from tracedb.errors import ArchiveDamaged, InvalidInput, NotFound
from tracedb.query import run
from tracedb.restore import Wanted, peek, restore, restore_into, where_is_trace
from tracedb.retention import run_retention
from tracedb.stores import DirectoryStore
from two_tenants import A, B

__all__ = ["admin", "conn", "store"]  # fixtures

PERIOD = Wanted("traces", OLD - timedelta(days=8), OLD + timedelta(days=8))

ODD = """
insert into tracedb.execution_traces
    (tenant_id, trace_id, name, agent_id, status, started_at, tags, context, cost_usd)
values (%(tenant)s, %(id)s, '', '{"a",\\N}', 'ok', %(at)s,
    array['', 'a,b', 'q"q', E'\\n', 'NULL', '\\N'],
    '{"n": 1.50, "big": 12345678901234567890.123, "s": "\\\\u00e9 \\"", "null": null}',
    0.000000000000000000000000001);
insert into tracedb.trace_payloads (tenant_id, trace_id, kind, content, recorded_at)
values (%(tenant)s, %(id)s, 'prompt', E'\\\\.\\nline\\r\\n"x", \\t é 漢 \\U0001F600', %(at)s),
    (%(tenant)s, %(id)s, 'response', '', %(at)s);
insert into tracedb.agent_routing_decisions
    (tenant_id, trace_id, span_id, selected_agent, started_at, request_embedding)
values (%(tenant)s, %(id)s, '\\x00ff0a0d22275c2c', 'x', %(at)s, '[1e-7,-65504,0.333]')
"""


def odd(admin: Connection, tenant: UUID = A) -> UUID:
    """A trace of values that a careless format would change."""
    id = write(admin, OLD, 7, tenant)
    other = UUID(int=id.int + 1)
    for part in ODD.split(";\n"):
        admin.execute(part.encode(), {"tenant": tenant, "id": other, "at": OLD})
    admin.execute("select tracedb.note_changes(%s, %s)", [[other], tenant])
    return other


def totals(admin: Connection) -> list[Any]:
    admin.execute("select count(*) from tracedb.fold_usage()")
    return contents(admin, "usage_rollups")["usage_rollups"]


@pytest.fixture(params=["csv", "parquet"])
def format(request: pytest.FixtureRequest) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return str(request.param)


def test_a_period_comes_back_equal_and_is_counted_once(
    conn: Connection, admin: Connection, store: DirectoryStore, format: str
) -> None:
    odd(admin)
    write(admin, OLD, 1, B)
    counted = totals(admin)
    before = contents(admin)
    assert len(before["agent_routing_decisions"]) == 3
    done(run_retention(conn, store, format=format))
    assert contents(admin)["execution_traces"] == []

    receipts = restore(conn, PERIOD)

    assert contents(admin) == before
    assert {each.table_name: each.row_count for each in receipts} == {
        table: len(rows) for table, rows in before.items() if rows
    }
    assert totals(admin) == counted
    for tenant in (A, B):
        assert admin.execute(
            "select count(*) from tracedb.usage_differences(%s, %s, %s)",
            [OLD - timedelta(days=9), NOW, tenant],
        ).fetchone() == (0,)
    # again changes nothing, and no run takes it away before its time
    assert sum(each.row_count for each in restore(conn, PERIOD)) == 0
    report = done(run_retention(conn, store))
    assert report.receipts == []
    assert report.blocked[0].blocked_by
    assert "restored, and kept until" in report.blocked[0].blocked_by
    assert contents(admin) == before

    done(run_retention(conn, store, as_of=NOW + timedelta(days=8), forced=True, format=format))
    assert contents(admin)["execution_traces"] == []
    assert totals(admin) == counted


def test_one_trace_or_one_tenant_comes_back_alone(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    first, second = write(admin, OLD, 1), write(admin, OLD, 2)
    write(admin, OLD, 3, B)
    before = contents(admin)
    done(run_retention(conn, store))

    restore(conn, Wanted.trace(first, A))
    rows = contents(admin)
    assert [i for (i,) in admin.execute("select trace_id from tracedb.execution_traces")] == [first]
    assert all(set(rows[table]) <= set(before[table]) for table in FAMILY[:6])

    restore(conn, Wanted("traces", PERIOD.since, PERIOD.until, tenant_id=A))
    found = admin.execute("select trace_id, tenant_id from tracedb.execution_traces order by 1")
    assert found.fetchall() == [(first, A), (second, A)]
    with pytest.raises(NotFound, match="no archive has such rows"):
        restore(conn, Wanted("traces", PERIOD.since, PERIOD.until, tenant_id=UUID(int=9)))


def test_a_restore_makes_and_keeps_no_more_than_there_is(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, OLD)
    done(run_retention(conn, store))
    made = "select parent, partition from tracedb.partitions except select * from before"
    admin.execute("create temp table before as select parent, partition from tracedb.partitions")
    all_times = Wanted("traces", OLD - timedelta(days=900), NOW + timedelta(days=900))

    receipts = restore(conn, all_times)

    assert {parent for parent, _ in admin.execute(made)} == set(FAMILY)
    assert len(admin.execute(made).fetchall()) == len(FAMILY)
    (since,) = {each.from_time for each in receipts}
    assert since is not None
    assert OLD - timedelta(days=7) < since <= OLD
    with pytest.raises(InvalidInput, match="until: must be after since"):
        restore(conn, Wanted("traces", PERIOD.until, PERIOD.since))


def test_only_what_was_staged_by_the_owner_is_stored(conn: Connection) -> None:
    """What the caller made would run, or be written anywhere, with the owner's rights."""
    conn.execute(
        "create temp table restore_tenants as select gen_random_uuid() as tenant_id, 'x' as name"
    )
    with pytest.raises(psycopg.Error, match="tables: must be those that open_staging"):
        conn.execute(
            "select tracedb.restore_staged('traces', array['tenants'], now(), now(), null, now(),"
            " 'x')"
        )


def test_an_archived_trace_is_found_and_read_without_being_restored(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    old, new = write(admin, OLD, 1), write(admin, NOW, 2)
    document = admin.execute("select tracedb.get_trace(%s, %s)", [old, A]).fetchone()
    done(run_retention(conn, store))

    for role in ("tracedb_app", "tracedb_reader"):
        for tenant, found in ((A, 6), (B, 0)):
            with as_role(admin, role, tenant):
                places = run(admin, where_is_trace(old), tenant)
            assert [each.place for each in places] == ["archived"] * len(places)
            assert len(places) >= found
            assert bool(places) == bool(found)
    (place,) = run(conn, where_is_trace(new), A)
    assert (place.place, place.archive_id) == ("stored", None)

    with peek(conn, Wanted.trace(old, A)):
        assert conn.execute("select tracedb.get_trace(%s, %s)", [old, A]).fetchone() == document
    assert conn.execute("select tracedb.get_trace(%s, %s)", [old, A]).fetchone() == (None,)


def test_a_side_schema_gets_a_copy(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    id = odd(admin)
    before = contents(admin)
    done(run_retention(conn, store))

    stored = restore_into(admin, PERIOD, "look")

    assert stored["execution_traces"] == 2
    for table in ("execution_traces", "trace_payloads", "agent_routing_decisions"):
        rows = admin.execute(f"select t::text from look.{table} as t order by 1".encode())
        assert [row for (row,) in rows] == before[table]
    assert contents(admin)["execution_traces"] == []
    assert str(id)
    with (
        as_role(admin, "tracedb_app", B),
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        admin.execute("select * from look.execution_traces")
    with pytest.raises(InvalidInput, match="schema: must be another"):
        restore_into(admin, PERIOD, "tracedb")


def test_a_column_added_since_gets_its_default_and_one_removed_is_refused(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, OLD)
    done(run_retention(conn, store))
    admin.execute("alter table tracedb.hook_executions add column novel text not null default 'n'")
    restore(conn, PERIOD)
    assert admin.execute("select novel from tracedb.hook_executions").fetchall() == [("n",)]

    admin.execute("delete from tracedb.retention_receipts where action = 'restored'")
    done(run_retention(conn, store))
    admin.execute("alter table tracedb.hook_executions drop column novel")
    with pytest.raises(InvalidInput, match=r"columns that hook_executions does not have: novel"):
        restore(conn, PERIOD)
    assert contents(admin)["execution_traces"] == []


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a changed byte": (
        lambda data: data[:40] + bytes([data[40] ^ 0xFF]) + data[41:],
        "its SHA-256 is",
    ),
    "a truncated file": (lambda data: data[:-9], "bytes, but its manifest says"),
    "an empty file": (lambda _: b"", "has 0 bytes"),
}


def test_a_damaged_file_or_manifest_is_told_by_name_and_restores_nothing(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, OLD)
    done(run_retention(conn, store))
    (name,) = (n for n in store.names() if "llm_spans" in n and n.endswith(".gz"))
    path, manifest = store.root / name, store.root / (name + archiving.MANIFEST)
    data, text = path.read_bytes(), manifest.read_text()
    for damage, message in FAULTS.values():
        path.write_bytes(damage(data))
        with pytest.raises(ArchiveDamaged, match=message) as error:
            restore(conn, PERIOD)
        assert name in str(error.value)
    path.write_bytes(data)
    for change, message in (
        (json.dumps(json.loads(text) | {"row_count": 99}), "its manifest says row_count 99"),
        (json.dumps(json.loads(text) | {"sha256": "0"}), "its manifest says sha256 0"),
        ("{", "is no manifest"),
        (json.dumps(json.loads(text) | {"archive_id": 7}), "is no manifest"),
        (text.replace('"provider"', '"operation_type "'), "other columns"),
    ):
        manifest.write_text(change)
        with pytest.raises(ArchiveDamaged, match=message) as error:
            restore(conn, PERIOD)
        assert name in str(error.value)
    assert contents(admin)["execution_traces"] == []


values = st.one_of(
    st.none(), st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
)


@given(st.lists(st.tuples(values, values, st.just("x")), max_size=8), st.integers(1, 9))
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_csv_rows_are_read_as_they_were_written(
    rows: list[tuple[str | None, ...]], size: int
) -> None:
    text = b"".join(map(csvfile.row, rows))
    pieces = [text[at : at + size] for at in range(0, len(text), size)]

    assert list(csvfile.rows(pieces)) == rows


def test_rows_of_a_file_are_what_the_server_wrote(
    conn: Connection, admin: Connection, store: DirectoryStore
) -> None:
    """The reader of rows agrees with COPY about nulls, quotes and line breaks."""
    odd(admin)
    part = archiving.Part("traces", "trace_payloads", PERIOD.since, PERIOD.until)
    archive = archiving.archive_part(conn, store, part)
    assert archive is not None
    wanted = admin.execute(
        "select content, kind from tracedb.trace_payloads order by trace_id, kind, span_id"
    ).fetchall()

    names = archive.column_names
    found = [dict(zip(names, row, strict=True)) for row in archiving.rows(store, archive)]
    assert sorted((row["content"], row["kind"]) for row in found) == sorted(wanted)
    again = b"".join(map(csvfile.row, archiving.rows(store, archive)))
    assert list(csvfile.rows([again])) == [tuple(row.values()) for row in found]
    assert run(conn, retention.retention_receipts()) == []
    assert datetime.now(UTC) > archive.created_at
    assert Path(store.root / archive.manifest).exists()
    assert places(conn, admin, store)
