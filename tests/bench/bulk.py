"""Measures the bulk path against binary COPY of the same rows in the same batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from bench import workload
from bench.harness import Context, Sample, Variants, benchmark
from bench.ingest import TABLES, copied_out, costs, empty, partitions
from tracedb import Receipt, storing
from tracedb.bulk import Rows
from tracedb.columns import COLUMNS, TYPES
from tracedb.query import run

TRACES = 6_000
SINGLES = 300
Conn = psycopg.Connection[Any]
Batches = list[tuple[UUID, list[dict[str, Any]]]]
Act = Callable[[], int]
# A column's type, and how its value is made of what a record has.
CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "uuid": UUID,
    "bytea": bytes.fromhex,
    "timestamptz": datetime.fromisoformat,
    "numeric": Decimal,
    "jsonb": Jsonb,
}


@benchmark("bulk_1000", metric="rows_per_s")
def bulk_1000(context: Context) -> Iterator[Variants]:
    """Tenant.ingest in batches of 1,000 against COPY from the same dicts."""
    yield from _variants(context, 1_000)


@benchmark("bulk_100", metric="rows_per_s")
def bulk_100(context: Context) -> Iterator[Variants]:
    """Tenant.ingest in batches of 100 against COPY from the same dicts."""
    yield from _variants(context, 100)


@benchmark("bulk_two", metric="rows_per_s")
def bulk_two(context: Context) -> Iterator[Variants]:
    """The same batches of 1,000, made to rows beforehand, on one and on two connections."""
    traces = context.scaled(TRACES)
    dsn = context.database("bench_bulk", partitions)
    with psycopg.connect(dsn, autocommit=True) as conn:
        ready = _ready(conn, list(workload.record_batches(traces, 1_000)))
        yield {
            name: partial(_side_by_side, conn, dsn, ready, count, traces)
            for name, count in (("one", 1), ("two", 2))
        }


@benchmark("bulk_single", metric="rows_per_s")
def bulk_single(context: Context) -> Iterator[Variants]:
    """Tenant.ingest of one span of a known trace against a prepared INSERT of it."""
    traces = context.scaled(SINGLES)
    dsn = context.database("bench_bulk", partitions)
    with psycopg.connect(dsn, autocommit=True) as conn:
        every = list(workload.record_batches(traces, 1))
        known = [(tenant, batch) for tenant, batch in every if batch[0]["type"] == "trace"]
        spans = [(tenant, batch) for tenant, batch in every if batch[0]["type"] == "span"]
        yield {
            "insert": partial(_single, conn, known, len(spans), partial(_insert, conn, spans)),
            "ingest": partial(_single, conn, known, len(spans), partial(_store, conn, spans)),
        }


def _variants(context: Context, size: int) -> Iterator[Variants]:
    traces = context.scaled(TRACES)
    dsn = context.database("bench_bulk", partitions)
    with psycopg.connect(dsn, autocommit=True) as conn:
        batches = list(workload.record_batches(traces, size))
        ready = _ready(conn, batches)
        prepared = _copies(conn, ready)
        roles = {"service": "tracedb_service", "app": "tracedb_app", "superuser": "postgres"}
        measured = partial(_measured, dsn, traces)
        yield {
            "copy": partial(measured, "postgres", lambda conn: _copy(conn, batches), replay=False),
            **{
                name: partial(measured, role, lambda conn: _store(conn, batches))
                for name, role in roles.items()
            },
            "ready_copy": partial(
                measured, "postgres", lambda conn: _copy_ready(conn, prepared), replay=False
            ),
            **{
                f"ready_{name}": partial(measured, roles[name], lambda conn: _run(conn, ready))
                for name in ("service", "app")
            },
        }


def _measured(
    dsn: str, traces: int, role: str, act: Callable[[Conn], int], *, replay: bool = True
) -> Sample:
    """The first write, and then the same once more."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        empty(conn)
        conn.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        with costs(conn, traces) as sample:
            inserted = act(conn)
        if inserted != traces * (workload.PARTS + 1):
            raise RuntimeError(f"only {inserted} records were inserted")
        if replay:
            with costs(conn, traces) as again:
                if act(conn):
                    raise RuntimeError("records were inserted twice")
            sample |= {f"replay_{metric}": value for metric, value in again.items()}
            sample["replay_per_first"] = again["rows_per_s"] / sample["rows_per_s"]
    return sample


def _store(conn: Conn, batches: Batches) -> int:
    return sum((storing.store(conn, *batch) for batch in batches), Receipt()).inserted


def _run(conn: Conn, ready: list[tuple[UUID, Rows]]) -> int:
    """Store rows that were made beforehand."""
    return sum(run(conn, storing.store_rows(rows), tenant).inserted for tenant, rows in ready)


def _ready(conn: Conn, batches: Batches) -> list[tuple[UUID, Rows]]:
    layout = run(conn, storing.bulk_layout())
    assert layout is not None
    ready = [(tenant, layout.rows(records, tenant)) for tenant, records in batches]
    return [(tenant, rows) for tenant, rows in ready if rows is not None]


def _copy(conn: Conn, batches: Batches) -> int:
    """COPY as one would write it: values as the driver wants them, a table after the other."""
    for tenant, records in batches:
        with conn.transaction(), conn.cursor() as cursor:
            for type_, (_, table) in TYPES.items():
                ours = [record for record in records if record["type"] == type_]
                if not ours:
                    continue
                names = [name for name in ours[0] if name != "type"]
                types = dict(column.split(" ") for column in COLUMNS[table].split(", "))
                kinds = [types[name].replace("_text", "text[]") for name in names]
                converts = [CONVERSIONS.get(types[name]) for name in names]
                # what every row needs, and no record says
                more = ["tenant_id"] if "status" in names else ["tenant_id", "status"]
                into = sql.SQL("copy tracedb.{} ({}) from stdin (format binary)").format(
                    sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, names + more))
                )
                rest = (tenant, "ok")[: len(more)]
                with cursor.copy(into) as copy:
                    copy.set_types([*kinds, *("uuid", "text")[: len(more)]])
                    for record in ours:
                        copy.write_row(
                            [
                                value if convert is None or value is None else convert(value)
                                for value, convert in zip(
                                    [record[name] for name in names], converts, strict=True
                                )
                            ]
                            + list(rest)
                        )
    return sum(len(records) for _, records in batches)


def _copies(conn: Conn, ready: list[tuple[UUID, Rows]]) -> list[tuple[int, dict[str, bytes]]]:
    """The rows of each batch as COPY has them."""
    empty(conn)
    found = []
    for tenant, rows in ready:
        with conn.transaction(force_rollback=True):
            run(conn, storing.store_rows(rows), tenant)
            # a stub would stand where a later batch copies the trace
            conn.execute("delete from tracedb.execution_traces where provisional is not null")
            data = {table: copied_out(conn, table) for table in TABLES}
        found.append((rows.received, data))
    return found


def _copy_ready(conn: Conn, prepared: list[tuple[int, dict[str, bytes]]]) -> int:
    for _, tables in prepared:
        with conn.transaction(), conn.cursor() as cursor:
            for table, data in tables.items():
                if len(data) > 21:  # more than head and end
                    into = sql.SQL("copy tracedb.{} from stdin (format binary)")
                    with cursor.copy(into.format(sql.Identifier(table))) as copy:
                        copy.write(data)
    return sum(received for received, _ in prepared)


def _side_by_side(
    conn: Conn, dsn: str, ready: list[tuple[UUID, Rows]], count: int, traces: int
) -> Sample:
    empty(conn)
    others = [psycopg.connect(dsn, autocommit=True) for _ in range(count)]
    for other in others:
        other.execute("set role tracedb_service")
    threads = [
        threading.Thread(target=_run, args=[other, ready[n::count]])
        for n, other in enumerate(others)
    ]
    with costs(conn, traces) as sample:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for other in others:
        other.close()
    return sample


def _single(conn: Conn, known: Batches, count: int, act: Act) -> Sample:
    empty(conn)
    conn.execute("set role tracedb_service")
    _store(conn, known)
    with costs(conn, 1) as sample:
        act()
    conn.execute("reset role")
    # for each span, not for each record of a trace
    factor = count / (workload.PARTS + 1)
    return {
        metric: value * factor if metric == "rows_per_s" else value / factor
        for metric, value in sample.items()
    }


def _insert(conn: Conn, spans: Batches) -> int:
    types = dict(column.split(" ") for column in COLUMNS["llm_spans"].split(", "))
    names = [name for name in spans[0][1][0] if name != "type"]
    into = sql.SQL("insert into tracedb.llm_spans ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, ["tenant_id", *names])),
        sql.SQL(", ").join([sql.Placeholder()] * (len(names) + 1)),
    )
    for tenant, (record,) in spans:
        values = [CONVERSIONS.get(types[name], lambda same: same)(record[name]) for name in names]
        conn.execute(into, [tenant, *values], prepare=True)
    return len(spans)
