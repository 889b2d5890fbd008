"""The health checks: all is well after migrating, and each fault is found by its check."""

from __future__ import annotations

import json

import psycopg
import pytest

from records import ingest, trace
from tracedb.cli import main
from tracedb.doctor import examine

FAULTS = {
    "row_security": (
        "alter table tracedb.llm_spans no force row level security",
        "llm_spans: row-level security is not forced",
    ),
    "grants": (
        "grant select on tracedb.llm_spans_default to tracedb_app",
        "llm_spans_default: SELECT for tracedb_app",
    ),
    "partitions_ahead": (
        "do $$ declare p text; begin for p in select partition from tracedb.partitions"
        " where parent = 'llm_spans' and not is_default loop"
        " execute format('drop table tracedb.%I', p); end loop; end $$",
        "llm_spans: partitions end before they begin",
    ),
    "losses": (
        "select tracedb.touch_writer('0000000c-0000-4000-8000-000000000000', null, 3, true,"
        " '0000000a-0000-4000-8000-000000000000')",
        "writer 0000000c-0000-4000-8000-000000000000"
        " of tenant 0000000a-0000-4000-8000-000000000000: 3 missing, 0 dropped",
    ),
    "indexes": (
        "update pg_index set indisvalid = false"
        " where indexrelid = 'tracedb.execution_traces_default_pkey'::regclass",
        "tracedb.execution_traces_default_pkey is invalid",
    ),
}


def test_a_migrated_database_is_healthy(database: str) -> None:
    unwell = {d.check.name: d.findings for d in examine(database) if not d.ok}

    # the older of the two servers we test with may lack the newest fixes
    assert unwell.keys() <= {"server_version", "vector_extension"}


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found_by_its_check(database: str, check: str) -> None:
    fault, finding = FAULTS[check]
    with psycopg.connect(database) as conn:
        conn.execute(fault)

    (diagnosis,) = (d for d in examine(database) if d.check.name == check)

    assert finding in diagnosis.findings


def test_rows_in_a_default_partition_are_found(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(database) as conn:
        old = trace(trace_id=None, external_id="old", started_at="2001-01-01T00:00:00Z")
        tenant = "00000000-0000-4000-8000-000000000001"
        ingest(conn, tenant, [old])  # type: ignore[arg-type]

    code = main(["--dsn", database, "doctor"])

    assert code == 3
    shown = capsys.readouterr().out
    assert "execution_traces: 1 rows in the default partition" in shown
    assert "drain_default_partitions()" in shown


def test_dead_letters_are_found(database: str) -> None:
    with psycopg.connect(database) as conn:
        ids = ["0000000c-0000-4000-8000-000000000000", "0000000a-0000-4000-8000-000000000000"]
        conn.execute("select tracedb.touch_writer(%s, null, 1, true, %s)", ids)
        conn.execute("select tracedb.bury(%s, 1, '{}', 'type: required', null, %s)", ids)

    (diagnosis,) = (d for d in examine(database) if d.check.name == "losses")

    assert diagnosis.findings == (f"1 dead letters of tenant {ids[1]}",)


def test_an_unmigrated_database_is_not_healthy(
    empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--dsn", empty_database, "--json", "doctor"])

    assert code == 3
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "0001_initial is not applied" in checks["migrations"]["findings"]
    assert "does not exist" in checks["default_partitions"]["skipped"]
