"""Measures what totals save those who read them, and what keeping them costs those who write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg

from bench import workload
from bench.harness import Context, Sample, Variants, benchmark
from bench.ingest import clocks, costs, empty, partitions
from bench.reads import measured
from bench.sized import filled, subjects_of
from tracedb import storing

TRACES = 6_000
CALLS = 20
Conn = psycopg.Connection[Any]

# what get_analytics answers, counted from the traces themselves, found by the tenant's key
_RAW = """
    select grouping(agent_id, route), agent_id, route, count(*),
        count(*) filter (where has_failed), sum(input_tokens), sum(output_tokens), sum(cost_usd),
        count(*) filter (where is_cost_unknown),
        percentile_cont(array[0.5, 0.95, 0.99]) within group (order by duration_ms)
    from tracedb.trace_figures
    where tenant_id = %(tenant)s
        and trace_id >= tracedb.uuid_floor(now() - interval '8 days')
        and started_at >= now() - interval '7 days'
    group by grouping sets ((), (agent_id), (route))
"""


@benchmark("rollups.tenant", metric="p50_ms")
def tenant(context: Context) -> Iterator[Variants]:
    """The totals of a tenant's last 7 days, by agent and route: folded, and from its traces."""
    yield from _variants(
        context, "tracedb_app", "select tracedb.get_analytics(tenant_id => %(tenant)s)", _RAW, CALLS
    )


@benchmark("rollups.all_tenants", metric="p50_ms")
def all_tenants(context: Context) -> Iterator[Variants]:
    """Tenants compared over the last 7 days, as the service: folded, and from their traces."""
    yield from _variants(
        context,
        "tracedb_service",
        "select * from tracedb.tenants_report(now() - interval '7 days')",
        """
        select tenant_id, count(*) filter (where is_request), count(*),
            count(*) filter (where is_request and has_failed), sum(input_tokens),
            sum(output_tokens), sum(cost_usd), count(*) filter (where is_cost_unknown),
            percentile_cont(array[0.5, 0.95, 0.99]) within group (order by duration_ms)
                filter (where is_request)
        from tracedb.trace_figures
        where trace_id >= tracedb.uuid_floor(now() - interval '8 days')
            and started_at >= date_trunc('hour', now()) - interval '7 days'
        group by tenant_id
        """,
        2,
    )


def _variants(context: Context, role: str, folded: str, raw: str, calls: int) -> Iterator[Variants]:
    with ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(filled(context), autocommit=True))
        subjects = subjects_of(conn)
        conn.execute(psycopg.sql.SQL("set role {}").format(psycopg.sql.Identifier(role)))
        yield {
            "raw": partial(measured, conn, raw, subjects[:calls]),
            "folded": partial(measured, conn, folded, subjects[: 5 * calls]),
        }


@benchmark("rollups.upkeep", metric="rows_per_s")
def upkeep(context: Context) -> Iterator[Variants]:
    """Tenant.ingest in batches of 1,000 as the service, alone and while another session folds."""
    traces = context.scaled(TRACES)
    dsn = context.database("bench_bulk", partitions)
    batches = list(workload.record_batches(traces, 1_000))

    def ingest(fold: bool) -> Sample:
        done = threading.Event()
        with psycopg.connect(dsn, autocommit=True) as conn:
            empty(conn)
            conn.execute("set role tracedb_service")
            with psycopg.connect(dsn, autocommit=True) as folder:
                folder.execute("set role tracedb_maintainer")
                *_, before, _ = clocks(folder)
                thread = threading.Thread(target=_fold_until, args=(folder, done))
                with costs(conn, traces) as sample:
                    if fold:
                        thread.start()
                    for tenant_id, records in batches:
                        storing.store(conn, tenant_id, records)
                if fold:
                    done.set()
                    thread.join()
                *_, after, _ = clocks(folder)
                rows = traces * (workload.PARTS + 1)
                sample["folding_cpu_us_per_row"] = (after - before) / rows * 1e6
        return sample

    yield {"alone": partial(ingest, False), "folding": partial(ingest, True)}


def _fold_until(conn: Conn, done: threading.Event) -> None:
    """Once a second, far more often than cron does it, and then whatever is left."""
    while not done.wait(1):
        conn.execute("select count(*) from tracedb.fold_usage()")
    while conn.execute("select 1 from tracedb.fold_usage()").fetchone():
        pass
