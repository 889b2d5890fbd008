"""Measures the reads asked most at a size, at a tenth of it, and in the plain layout of plain.sql.

BENCH_ROWS spans, 10 a trace, of 50 tenants in 90 days; under row-level security, as a tenant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from bench import seed
from bench.harness import Context, Variants, benchmark
from bench.reads import AS_OF, DAYS, Subject, measured

SPANS = 10  # of a trace
ROWS = int(os.environ.get("BENCH_ROWS", "200000"))
LEAST = 100_000  # a tenth of fewer has no failure in a week
CALLS = 300
_PLAIN = Path(__file__).with_name("plain.sql")


def _fill(traces: int, plain: bool, conn: psycopg.Connection[Any]) -> None:
    seed.fill(conn, traces, as_of=AS_OF, days=DAYS, part_bytes=300, spans=SPANS, slow_every=50)
    conn.execute(
        "insert into tracedb.tenants (tenant_id, name)"
        " select distinct tenant_id, tenant_id::text from planned"
    )
    while conn.execute("select 1 from tracedb.fold_usage(20000)").fetchone():
        pass
    conn.execute("vacuum (analyze) tracedb.usage_rollups, tracedb.usage_contributions")
    if plain:
        conn.execute(_PLAIN.read_bytes())
        conn.execute("vacuum (analyze)")


def filled(context: Context, share: int = 1) -> str:
    """The DSN of a database of the whole size, or of one so many times smaller."""
    traces = max(context.scaled(ROWS), LEAST) // SPANS // share
    return context.database(f"bench_sized_{traces}", partial(_fill, traces, share == 1))


def _variants(context: Context, query: str, plainly: str) -> Iterator[Variants]:
    with ExitStack() as stack:
        variants = {}
        for name, share, text in (("tenth", 10, query), ("whole", 1, query), ("plain", 1, plainly)):
            conn = stack.enter_context(psycopg.connect(filled(context, share), autocommit=True))
            subjects = subjects_of(conn)
            conn.execute("set role tracedb_app")
            variants[name] = partial(measured, conn, text, subjects)
        yield variants


def subjects_of(conn: psycopg.Connection[Any]) -> list[Subject]:
    """Traces drawn at random, so that large tenants come up more often; always the same ones."""
    found = conn.execute(
        "select t.tenant_id, t.trace_id, t.user_id, md5(t.trace_id::text)::uuid"
        " from tracedb.execution_traces as t"
        " where t.user_id is not null order by md5(t.trace_id::text) limit %s",
        [CALLS],
    ).fetchall()
    return [dict(zip(("tenant", "trace", "user", "id"), row, strict=True)) for row in found]


@benchmark("sized.get_trace", metric="p50_ms")
def get_trace(context: Context) -> Iterator[Variants]:
    """One trace with all its parts as a document."""
    yield from _variants(
        context,
        "select tracedb.get_trace(%(trace)s, %(tenant)s)",
        "select to_jsonb(t)"
        " || jsonb_build_object('spans', (select jsonb_agg(to_jsonb(p) order by p.started_at)"
        "     from plain.llm_traces as p where p.trace_id = t.id))"
        " || jsonb_build_object('decisions', (select jsonb_agg(to_jsonb(p))"
        "     from plain.agent_routing_decisions as p where p.trace_id = t.id))"
        " || jsonb_build_object('hooks', (select jsonb_agg(to_jsonb(p))"
        "     from plain.hook_executions as p where p.trace_id = t.id))"
        " || jsonb_build_object('calls', (select jsonb_agg(to_jsonb(p))"
        "     from plain.endpoint_calls as p where p.trace_id = t.id))"
        " from plain.execution_traces as t where t.id = %(id)s",
    )


@benchmark("sized.newest_of_user", metric="p50_ms")
def newest_of_user(context: Context) -> Iterator[Variants]:
    """The newest 10 traces of a user; ours with the sums over their spans."""
    yield from _variants(
        context,
        "select * from tracedb.get_user_traces(%(user)s, tenant_id => %(tenant)s)",
        "select * from plain.execution_traces where user_id = %(user)s"
        " order by started_at desc limit 10",
    )


@benchmark("sized.errors", metric="p50_ms")
def errors(context: Context) -> Iterator[Variants]:
    """The newest 10 failures of 7 days; ours with the sums over their spans."""
    yield from _variants(
        context,
        "select * from tracedb.get_error_traces(tenant_id => %(tenant)s)",
        "select * from plain.execution_traces where status in ('error', 'timeout')"
        " and started_at >= now() - interval '7 days' order by started_at desc limit 10",
    )


@benchmark("sized.slow", metric="p50_ms")
def slow(context: Context) -> Iterator[Variants]:
    """The newest 10 traces of 7 days that took 5 s, one of fifty; ours with the sums of spans."""
    yield from _variants(
        context,
        "select * from tracedb.get_slow_queries(tenant_id => %(tenant)s)",
        "select * from plain.execution_traces where duration_ms >= 5000"
        " and started_at >= now() - interval '7 days' order by started_at desc limit 10",
    )
