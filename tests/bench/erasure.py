"""Measures erasing a user, and what being able to costs those who write."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import psycopg

from bench import seed, workload
from bench.bulk import Conn, _ready, _run
from bench.harness import Context, Sample, Variants, benchmark
from bench.ingest import costs, empty, partitions
from bench.reads import AS_OF, DAYS
from tracedb import TraceDB, connect, erasure

TRACES = 160_000
OF_USER = 1_000
USERS = 20
WRITTEN = 6_000
TENANT = seed.tenant_id(0)
_CHECK = re.compile(r"    if exists \(select from tracedb\.erased_keys .*?    end if;\n", re.DOTALL)


def _fill(traces: int, of_user: int, conn: Conn) -> None:
    seed.fill(conn, traces, as_of=AS_OF, days=DAYS, part_bytes=300)
    conn.execute(
        "with theirs as ("
        "    select trace_id, (row_number() over (order by md5(trace_id::text)) - 1) / %s as no"
        "    from tracedb.execution_traces where tenant_id = %s and parent_trace_id is null"
        ") "
        "update tracedb.execution_traces as t set user_id = 'erased-' || theirs.no"
        " from theirs where t.tenant_id = %s and t.trace_id = theirs.trace_id and theirs.no < %s",
        [of_user, TENANT, TENANT, USERS],
    )
    while conn.execute("select 1 from tracedb.fold_usage(20000)").fetchone():
        pass
    conn.execute("vacuum (analyze)")


@benchmark("erasure.user", metric="seconds")
def user(context: Context) -> Iterator[Variants]:
    """A user of 1,000 traces among 1 M parts erased, against DELETE from each table by hand."""
    traces, of_user = max(context.scaled(TRACES), 200), max(context.scaled(OF_USER), 2)
    dsn = context.database("bench_erasure", partial(_fill, traces, of_user))
    users = (f"erased-{number}" for number in count())
    with psycopg.connect(dsn, autocommit=True) as conn, connect(dsn, max_size=1) as db:
        yield {
            "delete": lambda: _deleted(conn, next(users)),
            "erase": lambda: _erased(db, next(users)),
        }


def _deleted(conn: Conn, user_id: str) -> Sample:
    """What a careful administrator would do, who knows the tables of a trace."""
    start = time.perf_counter()
    rows = 0
    with conn.transaction():
        ids = conn.execute("select tracedb.traces_of_user(%s, %s)", [user_id, TENANT]).fetchone()
        assert ids is not None
        tables = conn.execute(
            "select table_name from tracedb.subject_tables() where deed = 'traces'"
        ).fetchall()
        for (table,) in tables:
            delete = f"delete from tracedb.{table} where tenant_id = %s and trace_id = any(%s)"
            rows += conn.execute(delete.encode(), [TENANT, ids[0]]).rowcount
    return {"seconds": time.perf_counter() - start, "rows": rows}


def _erased(db: TraceDB, user_id: str) -> Sample:
    start = time.perf_counter()
    receipt = erasure.erase_user(db.tenant(TENANT), user_id)
    return {
        "seconds": time.perf_counter() - start,
        "rows": sum(receipt.counts.values()),
        "traces": receipt.counts["execution_traces"],
    }


@benchmark("erasure.writing", metric="backend_cpu_us_per_row")
def writing(context: Context) -> Iterator[Variants]:
    """The bulk path in batches of 1,000: without a look for tombstones, with none, with 1,000."""
    traces = context.scaled(WRITTEN)
    dsn = context.database("bench_bulk", partitions)
    with psycopg.connect(dsn, autocommit=True) as conn:
        ready = _ready(conn, list(workload.record_batches(traces, 1_000)))
        row = conn.execute(
            "select pg_get_functiondef(oid) from pg_proc where proname = 'store_rows'"
        ).fetchone()
        assert row is not None
        looking = row[0]
        blind, found = _CHECK.subn("", looking.replace("perform pg_current_xact_id();", ""))
        assert found == 1

        def measured(function: str, traces_erased: int) -> Sample:
            empty(conn)
            conn.execute(function.encode())
            conn.execute("truncate tracedb.erased_keys, tracedb.erased_traces")
            if traces_erased:
                for tenant in {tenant for tenant, _ in ready}:
                    _bury(conn, tenant, traces_erased)
                conn.execute("vacuum (analyze) tracedb.erased_keys, tracedb.erased_traces")
            with psycopg.connect(dsn, autocommit=True) as writer:
                writer.execute("set role tracedb_service")
                with costs(writer, traces) as sample:
                    _run(writer, ready)
            conn.execute(looking.encode())
            return sample

        yield {
            "blind": lambda: measured(blind, 0),
            "none_erased": lambda: measured(looking, 0),
            "erased": lambda: measured(looking, 1_000),
        }


def _bury(conn: Conn, tenant: Any, traces: int) -> None:
    conn.execute(
        "insert into tracedb.erased_keys"
        " select %(t)s, tracedb.tombstone('user', 'nobody-' || i, %(t)s), 'user', %(t)s, now()"
        " from generate_series(1, 10) as i",
        {"t": tenant},
    )
    conn.execute(
        "insert into tracedb.erased_traces select %(t)s, tracedb.new_id(), %(t)s, false"
        " from generate_series(1, %(n)s)",
        {"t": tenant, "n": traces},
    )
