"""Measures what a recording call costs its caller while the delivery runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

import tracedb
from bench.harness import Context, Sample, Variants, benchmark
from bench.pack import RECORD

TENANT = UUID("0000000a-0000-4000-8000-000000000000")
BURSTS = 60
# Long enough that the first calls, with cold caches after the pause, are not what p99 shows.
CALLS = 350
BURSTS_A_SECOND = 4
SPOOLED = 9000

FIELDS = {key: value for key, value in RECORD.items() if key not in ("type", "span_id")}


@benchmark("writer", metric="p99_us")
def writer(context: Context) -> Iterator[Variants]:
    """save_span of a 1.5 KB record, 1,400 a second, while they are delivered, against json.dumps.

    Of the wall clock; cpu_p99_us is what the calling thread itself spent, in whatever company.
    """
    dsn = context.database("bench_writer", lambda conn: None)
    as_service = make_conninfo(dsn, options="-c role=tracedb_service")
    bursts = context.scaled(BURSTS)
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-bench-"))
    try:
        yield {
            "json.dumps": partial(_dumped, bursts),
            "memory": partial(_recorded, as_service, bursts, None),
            "spool": partial(_recorded, as_service, bursts, scratch),
        }
    finally:
        shutil.rmtree(scratch)


@benchmark("writer.replay", metric="records_per_s")
def replay(context: Context) -> Iterator[Variants]:
    """A spool delivered by the next process, and once more as if nobody knew that it was."""
    dsn = context.database("bench_writer", lambda conn: None)
    as_service = make_conninfo(dsn, options="-c role=tracedb_service")
    records = context.scaled(SPOOLED)
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-bench-"))
    try:
        yield {
            "first": partial(_delivered, as_service, records, scratch, known=False),
            "again": partial(_delivered, as_service, records, scratch, known=True),
        }
    finally:
        shutil.rmtree(scratch)


def _delivered(dsn: str, records: int, scratch: Path, *, known: bool) -> Sample:
    left, copy = scratch / "left", scratch / "copy"
    nowhere = make_conninfo(dsn, host="/nonexistent")
    with tracedb.Writer(nowhere, tenant_id=TENANT, spool=left, exit_timeout=0.01) as ours:
        for _ in range(records):
            ours.save_span(dict(FIELDS))
    shutil.copytree(left, copy)
    if known:
        _emptied(dsn, left)
    sample = _emptied(dsn, copy)
    shutil.rmtree(left)
    shutil.rmtree(copy)
    return {
        "records_per_s": records / sample["seconds"],
        "wal_bytes": sample["wal_bytes"] / records,
    }


def _emptied(dsn: str, spool: Path) -> Sample:
    """Deliver what lies in the spool."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        before = _wal_bytes(conn)
        begin = time.perf_counter()
        with tracedb.Writer(dsn, tenant_id=TENANT, spool=spool, exit_timeout=60) as ours:
            ours.flush_all()
        seconds = time.perf_counter() - begin
        if any(spool.rglob("*.seg")):
            raise RuntimeError("not all was delivered")
        return {"seconds": seconds, "wal_bytes": _wal_bytes(conn) - before}


def _wal_bytes(conn: psycopg.Connection[Any]) -> float:
    row = conn.execute("select pg_current_wal_lsn() - '0/0'").fetchone()
    assert row is not None
    return float(row[0])


def _dumped(bursts: int) -> Sample:
    lines: list[str] = []
    return _timed(lambda fields: lines.append(json.dumps(fields)), bursts)


def _recorded(dsn: str, bursts: int, spool: Path | None) -> Sample:
    with tracedb.Writer(dsn, tenant_id=TENANT, spool=spool) as ours:
        ours.save_span(FIELDS)
        ours.flush_all()
        with psycopg.connect(dsn, autocommit=True) as conn:
            before, backend = time.process_time(), _backend_seconds(conn)
            sample = _timed(ours.save_span, bursts)
            ours.flush_all()
            parts = bursts * CALLS
            sample["app_cpu_us_per_part"] = (time.process_time() - before) / parts * 1e6
            sample["backend_cpu_us_per_part"] = (_backend_seconds(conn) - backend) / parts * 1e6
    stats = ours.stats()
    if stats.stored != stats.accepted or stats.refused:
        raise RuntimeError(f"not all was stored: {stats}")
    return sample


def _timed(call: Callable[[dict[str, Any]], Any], bursts: int) -> Sample:
    wall: list[int] = []
    cpu: list[int] = []
    begin = time.perf_counter()
    for number in range(bursts):
        time.sleep(max(begin + number / BURSTS_A_SECOND - time.perf_counter(), 0))
        for _ in range(CALLS):
            fields = dict(FIELDS)
            started, started_cpu = time.perf_counter_ns(), time.thread_time_ns()
            call(fields)
            cpu.append(time.thread_time_ns() - started_cpu)
            wall.append(time.perf_counter_ns() - started)
    return {
        "p50_us": _quantile(wall, 0.5),
        "p99_us": _quantile(wall, 0.99),
        "max_us": _quantile(wall, 1),
        "cpu_p50_us": _quantile(cpu, 0.5),
        "cpu_p99_us": _quantile(cpu, 0.99),
    }


def _quantile(nanoseconds: list[int], share: float) -> float:
    return sorted(nanoseconds)[min(int(len(nanoseconds) * share), len(nanoseconds) - 1)] / 1000


def _backend_seconds(conn: psycopg.Connection[Any]) -> float:
    """What the writer's own backend has used."""
    row = conn.execute(
        "select pid from pg_stat_activity "
        "where datname = current_database() and pid <> pg_backend_pid() "
        "and application_name = 'tracedb writer'"
    ).fetchone()
    assert row is not None
    # utime and stime, counted from behind the program's name
    stat = Path(f"/proc/{row[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
