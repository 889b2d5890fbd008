"""Measures what removing, archiving and restoring a day costs, and whom it keeps waiting."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from bench.harness import Context, Sample, Variants, benchmark
from tracedb import archive as archiving
from tracedb.query import run
from tracedb.restore import Wanted, restore
from tracedb.retention import run_retention
from tracedb.stores import DirectoryStore

# of a day; each has 5 spans and a text: 1.3 GB
TRACES = 100_000
Conn = psycopg.Connection[Any]

DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=10)
TABLES = ("execution_traces", "llm_spans", "trace_payloads")
FILL = Path(__file__).with_name("retention.sql").read_text().split(";\n")


def prepared(conn: Conn) -> None:
    """Partitions of a day, seven of them with rows."""
    conn.execute("update tracedb.partition_policies set width = 'day'")
    conn.execute("select tracedb.set_retention('execution_traces', '5 days', 'archive')")


def filled(conn: Conn, traces: int, day: datetime = DAY) -> None:
    """Make that day what it was before a sample: full, and nothing else old."""
    conn.execute("delete from tracedb.retention_receipts")
    conn.execute("delete from tracedb.archives")
    conn.execute("select count(*) from tracedb.ensure_partitions()")
    conn.execute(
        "select count(*) from tracedb.cover_times('traces', %s, %s)", [day, day + timedelta(days=1)]
    )
    for table in TABLES:
        conn.execute(
            f"delete from tracedb.{table} where trace_id >= tracedb.uuid_floor(%s)"
            " and trace_id < tracedb.uuid_floor(%s)".encode(),
            [day, day + timedelta(days=1)],
        )
    for statement in FILL:
        conn.execute(statement.encode(), {"day": day, "traces": traces})
    conn.execute("vacuum analyze tracedb.llm_spans")
    conn.execute("checkpoint")


@contextmanager
def measured(conn: Conn, dsn: str = "") -> Iterator[Sample]:
    """Seconds and WAL; with a DSN, the longest that somebody waits who writes to today."""
    sample: Sample = {}
    done = threading.Event()
    waits = [0.0]

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as writer:
            while not done.wait(0.001):
                start = time.perf_counter()
                writer.execute(
                    "insert into tracedb.execution_traces (tenant_id, trace_id, started_at, status)"
                    " values (gen_random_uuid(), tracedb.new_id(), now(), 'ok')"
                )
                waits.append(time.perf_counter() - start)

    thread = threading.Thread(target=write)
    if dsn:
        thread.start()
    before = _wal(conn)
    start = time.perf_counter()
    yield sample
    sample["seconds"] = time.perf_counter() - start
    sample["wal_mb"] = (_wal(conn) - before) / 1e6
    done.set()
    if dsn:
        thread.join()
    sample["longest_wait_ms"] = max(waits) * 1e3


def _wal(conn: Conn) -> int:
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])


@benchmark("retention.remove", metric="seconds")
def remove(context: Context) -> Iterator[Variants]:
    """A day removed: DELETE ... RETURNING into an archive table, dropped, archived and dropped."""
    dsn = context.database("bench_retention", prepared)
    traces = context.scaled(TRACES)
    with psycopg.connect(dsn, autocommit=True) as conn:

        def delete() -> Sample:
            filled(conn, traces)
            for table in TABLES:
                conn.execute(f"drop table if exists public.old_{table}".encode())
                conn.execute(f"create table public.old_{table} (like tracedb.{table})".encode())
            with measured(conn) as sample:
                for table in TABLES:
                    conn.execute(
                        f"with gone as (delete from tracedb.{table}"
                        " where trace_id >= tracedb.uuid_floor(%s)"
                        " and trace_id < tracedb.uuid_floor(%s) returning *)"
                        f" insert into public.old_{table} select * from gone".encode(),
                        [DAY, DAY + timedelta(days=1)],
                    )
            start = time.perf_counter()
            conn.execute(f"vacuum {', '.join(f'tracedb.{table}' for table in TABLES)}".encode())
            sample["vacuum_s"] = time.perf_counter() - start
            return sample

        def drop(writer: str = "") -> Sample:
            """The steps that remove, without the run around them."""
            filled(conn, traces)
            conn.execute("select tracedb.set_retention('execution_traces', '5 days', 'drop')")
            row = conn.execute(
                "select tables from tracedb.retention_plan() where how = 'partition'"
            ).fetchone()
            assert row is not None
            with measured(conn, writer) as sample:
                conn.execute(
                    "select count(*) from tracedb.retire_partitions(%s, %s, %s, '{}')",
                    [row[0], DAY, DAY + timedelta(days=1)],
                )
                conn.execute("select count(*) from tracedb.drop_retired()")
            return sample

        def whole_run(action: str) -> Sample:
            filled(conn, traces)
            conn.execute("select tracedb.set_retention('execution_traces', '5 days', %s)", [action])
            with tempfile.TemporaryDirectory() as folder, measured(conn) as sample:
                report = run_retention(conn, DirectoryStore(Path(folder)))
            assert not report.failures, report.failures
            if action == "archive":
                assert sum(each.row_count for each in report.receipts) == 7 * traces
            return sample

        yield {
            "delete": delete,
            "drop": drop,
            "drop_beside_writer": partial(drop, dsn),
            "run_drop": partial(whole_run, "drop"),
            "run_archive": partial(whole_run, "archive"),
        }


@benchmark("retention.archive", metric="mb_per_s")
def archive(context: Context) -> Iterator[Variants]:
    """A day of spans as CSV: COPY into a file, and a verified archive of it."""
    dsn = context.database("bench_retention", prepared)
    traces = context.scaled(TRACES)
    part = archiving.Part("traces", "llm_spans", DAY, DAY + timedelta(days=1))
    with psycopg.connect(dsn, autocommit=True) as conn:
        filled(conn, traces)
        size = [0]

        def copy() -> Sample:
            start = time.perf_counter()
            with tempfile.TemporaryFile() as file, conn.cursor() as cursor:
                with cursor.copy(
                    f"copy (select * from tracedb.llm_spans where trace_id >="
                    f" tracedb.uuid_floor('{DAY}') and trace_id <"
                    f" tracedb.uuid_floor('{part.to_time}')) to stdout (format csv)".encode()
                ) as rows:
                    for row in rows:
                        file.write(row)
                size[0] = file.tell()
            return {"mb_per_s": size[0] / 1e6 / (time.perf_counter() - start)}

        def archived(format: str, *, verify: bool) -> Sample:
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                seconds = [0.0]

                def step(name: str) -> None:
                    if name == "written":
                        seconds[0] = time.perf_counter() - start

                written = archiving.archive_part(
                    conn, DirectoryStore(Path(folder)), part, format, step
                )
                seconds[0] = time.perf_counter() - start if verify else seconds[0]
                assert written is not None
                run(conn, archiving.discard(written.archive_id))
            return {
                "mb_per_s": size[0] / 1e6 / seconds[0],
                "times_smaller": size[0] / written.file_bytes,
            }

        yield {
            "copy": copy,
            "csv_written": partial(archived, "csv", verify=False),
            "csv_verified": partial(archived, "csv", verify=True),
            "parquet_verified": partial(archived, "parquet", verify=True),
        }


@benchmark("retention.restore", metric="rows_per_s")
def restoring(context: Context) -> Iterator[Variants]:
    """A day restored: COPY of the same rows into the tables, and from its archive."""
    dsn = context.database("bench_retention", prepared)
    traces = context.scaled(TRACES)
    with psycopg.connect(dsn, autocommit=True) as conn:

        def emptied(store: DirectoryStore) -> dict[str, bytes]:
            """The rows of the day as CSV; they are archived now, and gone."""
            filled(conn, traces)
            conn.execute("select tracedb.set_retention('execution_traces', '5 days', 'archive')")
            texts = {}
            for table in TABLES:
                with conn.cursor().copy(
                    f"copy (select * from tracedb.{table} where trace_id <"
                    f" tracedb.uuid_floor('{DAY + timedelta(days=1)}'))"
                    " to stdout (format csv)".encode()
                ) as rows:
                    texts[table] = b"".join(map(bytes, rows))
            assert not run_retention(conn, store).failures
            conn.execute(
                "select count(*) from tracedb.cover_times('traces', %s, %s)",
                [DAY, DAY + timedelta(days=1)],
            )
            return texts

        def sampled(seconds: float) -> Sample:
            return {"rows_per_s": 7 * traces / seconds}

        def copy() -> Sample:
            with tempfile.TemporaryDirectory() as folder:
                texts = emptied(DirectoryStore(Path(folder)))
                start = time.perf_counter()
                with conn.transaction():
                    for table, text in texts.items():
                        with conn.cursor().copy(
                            f"copy tracedb.{table} from stdin (format csv)".encode()
                        ) as rows:
                            rows.write(text)
                return sampled(time.perf_counter() - start)

        def restored() -> Sample:
            with tempfile.TemporaryDirectory() as folder:
                store = DirectoryStore(Path(folder))
                emptied(store)
                start = time.perf_counter()
                restore(conn, Wanted("traces", DAY, DAY + timedelta(days=1)), store)
                return sampled(time.perf_counter() - start)

        yield {"copy": copy, "restore": restored}


@benchmark("retention.memory", metric="peak_mb")
def memory(context: Context) -> Iterator[Variants]:
    """Peak memory of a process that archives the spans of 0.3 GB; of ten times as much."""
    dsn = context.database("bench_retention", prepared)
    traces = context.scaled(TRACES)
    with psycopg.connect(dsn, autocommit=True) as conn:

        def peak(traces: int) -> Sample:
            filled(conn, traces)
            shown = subprocess.run(
                [sys.executable, "-m", "bench.retention", dsn],
                cwd=Path(__file__).parents[1],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            return {"peak_mb": float(shown)}

        yield {"small": partial(peak, traces // 4), "large": partial(peak, traces * 10 // 4)}


def _archive_alone(dsn: str) -> None:
    part = archiving.Part("traces", "llm_spans", DAY, DAY + timedelta(days=1))
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        tempfile.TemporaryDirectory() as folder,
    ):
        written = archiving.archive_part(conn, DirectoryStore(Path(folder)), part)
        assert written is not None
        run(conn, archiving.discard(written.archive_id))
    # of this process alone: what getrusage tells begins with the size of who started it
    status = dict(
        line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
    print(int(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    _archive_alone(sys.argv[1])
