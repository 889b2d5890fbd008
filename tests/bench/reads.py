"""Measures the documented reads at size: weekly and daily partitions, with and without RLS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from statistics import quantiles
from typing import Any

import psycopg
from psycopg import sql

from bench import seed
from bench.harness import Context, Sample, Variants, benchmark

TRACES = 200_000
DAYS = 90
# The dashboard looks back from now, so the data ends now; apart from that it is the same each time.
AS_OF = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
# whether row-level security applies depends on the role
ROLES = {"app": "tracedb_app", "no_rls": "postgres"}
Subject = dict[str, Any]


def _fill(width: str, traces: int, conn: psycopg.Connection[Any]) -> None:
    conn.execute("update tracedb.partition_policies set width = %s", [width])
    seed.fill(conn, traces, as_of=AS_OF, days=DAYS)


def _variants(context: Context, query: str, calls: int) -> Iterator[Variants]:
    traces = context.scaled(TRACES)
    with ExitStack() as stack:
        variants = {}
        for width in ("week", "day"):
            dsn = context.database(f"bench_{width}", partial(_fill, width, traces))
            for name, role in ROLES.items():
                conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
                subjects = _subjects(conn, calls)
                conn.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
                variants[f"{width}_{name}"] = partial(measured, conn, query, subjects)
        yield variants


def _subjects(conn: psycopg.Connection[Any], calls: int) -> list[Subject]:
    """Traces drawn at random, so that large tenants come up more often; always the same ones."""
    found = conn.execute(
        "select t.tenant_id, t.trace_id, t.user_id from tracedb.execution_traces as t"
        " where t.user_id is not null order by md5(t.trace_id::text) limit %s",
        [calls],
    ).fetchall()
    return [dict(zip(("tenant", "trace", "user"), row, strict=True)) for row in found]


def measured(conn: psycopg.Connection[Any], query: str, subjects: list[Subject]) -> Sample:
    milliseconds = []
    found = 0
    for subject in subjects:
        conn.execute("select set_config('tracedb.tenant_id', %s, false)", [str(subject["tenant"])])
        start = time.perf_counter()
        rows = conn.execute(query, subject, prepare=True).fetchall()
        milliseconds.append((time.perf_counter() - start) * 1000)
        found += len(rows)
    if not found:
        raise RuntimeError(f"nothing found by {query}")
    twentieths = quantiles(milliseconds, n=20)
    return {"p50_ms": twentieths[9], "p95_ms": twentieths[18], "calls": len(subjects)}


@benchmark("reads.get_trace", metric="p50_ms")
def get_trace(context: Context) -> Iterator[Variants]:
    """One trace with all its parts as a document."""
    yield from _variants(context, "select tracedb.get_trace(%(trace)s, %(tenant)s)", 300)


@benchmark("reads.trace_tree", metric="p50_ms")
def trace_tree(context: Context) -> Iterator[Variants]:
    """One trace and its nested executions as a tree."""
    yield from _variants(context, "select * from tracedb.trace_tree(%(trace)s, %(tenant)s)", 300)


@benchmark("reads.newest_of_user", metric="p50_ms")
def newest_of_user(context: Context) -> Iterator[Variants]:
    """The newest 10 traces of a user, headers only."""
    yield from _variants(
        context,
        "select * from tracedb.execution_traces where tenant_id = %(tenant)s"
        " and user_id = %(user)s order by trace_id desc limit 10",
        300,
    )


@benchmark("reads.newest_summaries_of_user", metric="p50_ms")
def newest_summaries_of_user(context: Context) -> Iterator[Variants]:
    """The newest 10 traces of a user, with their counts and costs."""
    yield from _variants(
        context,
        "select * from tracedb.trace_summary where tenant_id = %(tenant)s"
        " and user_id = %(user)s order by trace_id desc limit 10",
        300,
    )


@benchmark("reads.agent_performance", metric="p50_ms")
def agent_performance(context: Context) -> Iterator[Variants]:
    """The agents of a tenant, over all its traces."""
    query = "select * from tracedb.agent_performance where tenant_id = %(tenant)s"
    yield from _variants(context, query, 20)


@benchmark("reads.dashboard_summary", metric="p50_ms")
def dashboard_summary(context: Context) -> Iterator[Variants]:
    """The last 7 days of a tenant."""
    query = "select * from tracedb.dashboard_summary where tenant_id = %(tenant)s"
    yield from _variants(context, query, 50)


@benchmark("reads.get_user_traces", metric="p50_ms")
def get_user_traces(context: Context) -> Iterator[Variants]:
    """The newest 10 traces of a user, found by the function."""
    query = "select * from tracedb.get_user_traces(%(user)s, tenant_id => %(tenant)s)"
    yield from _variants(context, query, 300)


@benchmark("reads.get_error_traces", metric="p50_ms")
def get_error_traces(context: Context) -> Iterator[Variants]:
    """The newest 10 failures of 7 days."""
    query = "select * from tracedb.get_error_traces(tenant_id => %(tenant)s)"
    yield from _variants(context, query, 300)


@benchmark("reads.get_slow_queries", metric="p50_ms")
def get_slow_queries(context: Context) -> Iterator[Variants]:
    """The newest 10 slow traces of 7 days."""
    query = "select * from tracedb.get_slow_queries(tenant_id => %(tenant)s)"
    yield from _variants(context, query, 300)


@benchmark("reads.get_analytics", metric="p50_ms")
def get_analytics(context: Context) -> Iterator[Variants]:
    """The totals of 7 days, from raw rows."""
    yield from _variants(context, "select tracedb.get_analytics(tenant_id => %(tenant)s)", 50)
