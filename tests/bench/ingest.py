"""Measures how fast a workload gets into the event tables."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from bench import workload
from bench.harness import Context, Sample, Variants, benchmark

TRACES = 20_000
TABLES = (
    "execution_traces",
    "agent_routing_decisions",
    "hook_executions",
    "endpoint_calls",
    "llm_spans",
    "trace_payloads",
    "trace_ids",
    "trace_changes",
)
Batches = list[tuple[UUID, str]]


@benchmark("ingest", metric="rows_per_s")
def ingest(context: Context) -> Iterator[Variants]:
    """tracedb.ingest in JSON batches (role_size) against binary COPY of the same rows.

    COPY is refused under row-level security, so it runs as superuser; one COPY a table.
    """
    traces = context.scaled(TRACES)
    dsn = context.database("bench_ingest", partitions)
    with psycopg.connect(dsn, autocommit=True) as conn:
        batches = {size: list(workload.batches(traces, size)) for size in (100, 1_000)}
        _ingest(conn, "tracedb_service", batches[1_000])
        rows = {table: copied_out(conn, table) for table in TABLES}
        yield {
            "copy": partial(_copy, conn, rows, traces),
            "service_100": partial(_measured, conn, "tracedb_service", batches[100], traces),
            "service_1000": partial(_measured, conn, "tracedb_service", batches[1_000], traces),
            "app_1000": partial(_measured, conn, "tracedb_app", batches[1_000], traces),
        }


def partitions(conn: psycopg.Connection[Any]) -> None:
    first, last = workload.span()
    conn.execute("select tracedb.ensure_partitions(%s, %s)", [last, first])


def _copy(conn: psycopg.Connection[Any], rows: dict[str, bytes], traces: int) -> Sample:
    empty(conn)
    with costs(conn, traces) as sample, conn.transaction(), conn.cursor() as cursor:
        for table, data in rows.items():
            into = sql.SQL("copy tracedb.{} from stdin (format binary)").format(
                sql.Identifier(table)
            )
            with cursor.copy(into) as copy:
                copy.write(data)
    return sample


def _measured(conn: psycopg.Connection[Any], role: str, batches: Batches, traces: int) -> Sample:
    empty(conn)
    with costs(conn, traces) as first:
        _ingest(conn, role, batches)
    with costs(conn, traces) as again:
        duplicates = _ingest(conn, role, batches)["duplicates"]
    if duplicates != traces * (workload.PARTS + 1):
        raise RuntimeError(f"of a batch sent twice only {duplicates} records were duplicates")
    return first | {f"replay_{metric}": value for metric, value in again.items()}


def _ingest(conn: psycopg.Connection[Any], role: str, batches: Batches) -> dict[str, int]:
    """A transaction a batch, as a service does it."""
    totals = {"inserted": 0, "duplicates": 0}
    for tenant, records in batches:
        with conn.transaction():
            conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
            conn.execute("select tracedb.set_tenant(%s)", [tenant])
            row = conn.execute("select tracedb.ingest(%s::json, %s)", [records, tenant]).fetchone()
        assert row is not None
        if row[0]["rejected"]:
            raise RuntimeError(f"refused: {row[0]['rejected'][0]}")
        for key in totals:
            totals[key] += row[0][key]
    return totals


def copied_out(conn: psycopg.Connection[Any], table: str) -> bytes:
    query = sql.SQL("copy (select * from tracedb.{}) to stdout (format binary)")
    with conn.cursor().copy(query.format(sql.Identifier(table))) as copy:
        return b"".join(copy)


def empty(conn: psycopg.Connection[Any]) -> None:
    names = sql.SQL(", ").join(sql.Identifier("tracedb", table) for table in TABLES)
    conn.execute(sql.SQL("truncate {}").format(names))
    conn.execute("checkpoint")


@contextmanager
def costs(conn: psycopg.Connection[Any], traces: int) -> Iterator[Sample]:
    """What the block took, a row: headers and parts."""
    sample: Sample = {}
    rows = traces * (workload.PARTS + 1)
    before = clocks(conn)
    yield sample
    seconds, client, backend, wal = (
        now - then for now, then in zip(clocks(conn), before, strict=True)
    )
    sample["rows_per_s"] = rows / seconds
    sample["wal_bytes_per_row"] = wal / rows
    sample["client_cpu_us_per_row"] = client / rows * 1e6
    sample["backend_cpu_us_per_row"] = backend / rows * 1e6


def clocks(conn: psycopg.Connection[Any]) -> tuple[float, float, float, float]:
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    # utime and stime, counted from behind the program's name
    stat = Path(f"/proc/{conn.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    backend = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), backend, float(row[0])
