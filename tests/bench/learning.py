"""Measures what learning from traces costs, and what logging the use of patterns costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg

from bench import seed
from bench.harness import Context, Sample, Variants, benchmark

TRACES = 10_000
USES = 1_000
PATTERNS = 200
AS_OF = datetime(2026, 11, 1, tzinfo=UTC)
TENANT = seed.tenant_id(0)

Conn = psycopg.Connection[Any]

# The same rows, read as learning reads them, and nothing made of them.
_AGGREGATE = """
select count(*), max(t.n), max(s.n), max(h.n), max(e.n), max(r.n), max(p.n)
from tracedb.{0} as t0
cross join lateral (select t0.duration_ms as n) as t
left join (
    select trace_id, count(*) + count(tool_name) + sum(length(status)) as n from tracedb.llm_spans
    where tenant_id = %(t)s group by trace_id
) as s using (trace_id)
left join (
    select trace_id, count(*) + count(script) + sum(length(status)) as n
    from tracedb.hook_executions where tenant_id = %(t)s group by trace_id
) as h using (trace_id)
left join (
    select trace_id, count(*) + count(path) + sum(length(status)) as n
    from tracedb.endpoint_calls where tenant_id = %(t)s group by trace_id
) as e using (trace_id)
left join (
    select trace_id, count(*) + count(reason) + sum(length(status)) as n
    from tracedb.agent_routing_decisions where tenant_id = %(t)s group by trace_id
) as r using (trace_id)
left join (
    select trace_id, sum(length(content)) as n from tracedb.trace_payloads
    where tenant_id = %(t)s group by trace_id
) as p using (trace_id)
where t0.tenant_id = %(t)s
""".replace("{0}", "execution_traces")


@benchmark("learning.extraction", metric="traces_per_s")
def extraction(context: Context) -> Iterator[Variants]:
    """10,000 traces of 6 parts, a fifth with prompts of their own: read, learned, learned again."""
    traces = context.scaled(TRACES)
    dsn = context.database(
        "bench_learning", partial(seed.fill, traces=traces, as_of=AS_OF, days=14, tenants=1)
    )
    with ExitStack() as stack:
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))

        def rate(act: Callable[[], object], forget: bool = True) -> Sample:
            if forget:
                conn.execute(
                    "truncate tracedb.learned_traces, tracedb.learning_progress,"
                    " tracedb.agent_chaining_patterns, tracedb.error_patterns,"
                    " tracedb.success_patterns, tracedb.pattern_embeddings"
                )
            conn.execute("set role tracedb_maintainer")
            began = time.perf_counter()
            act()
            took = time.perf_counter() - began
            conn.execute("reset role")
            return {"traces_per_s": traces / took, "seconds": took}

        def learn(*subjects: str, since: datetime | None = None) -> None:
            for subject in subjects:
                after = None
                while True:
                    call = (
                        f"select examined, last_trace_id from tracedb.{subject}(%s, 1000, %s, %s)"
                    )
                    row = conn.execute(call.encode(), [since, after, TENANT]).fetchone()
                    assert row is not None
                    if row[0] == 0:
                        break
                    after = row[1]

        since = datetime(2026, 1, 1, tzinfo=UTC)
        yield {
            "aggregate": lambda: rate(lambda: conn.execute(_AGGREGATE, {"t": TENANT}).fetchall()),
            "patterns": lambda: rate(lambda: learn("extract_patterns")),
            "chains": lambda: rate(lambda: learn("learn_chains")),
            "errors": lambda: rate(lambda: learn("learn_errors")),
            # every trace is looked at again, and nothing changes
            "again": lambda: rate(lambda: learn("extract_patterns", since=since), forget=False),
        }


@benchmark("learning.outcomes", metric="calls_per_s")
def outcomes(context: Context) -> Iterator[Variants]:
    """Uses and outcomes of 200 patterns, a transaction each, as a tenant; then folding them."""
    calls = context.scaled(USES)
    dsn = context.database("bench_outcomes", _patterns)
    with psycopg.connect(dsn) as conn:
        conn.execute("select tracedb.ensure_partitions()")
        patterns = [id for (id,) in conn.execute("select pattern_id from tracedb.success_patterns")]

    def log(statement: str) -> Sample:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("truncate tracedb.pattern_usage_log")
            conn.execute("update tracedb.success_patterns set use_count = 0, use_successes = 0")
            ids = [
                id
                for (id,) in conn.execute(
                    "select tracedb.new_id() from generate_series(1, %s)", [calls]
                )
            ]
            conn.execute("set role tracedb_app")
            began = time.perf_counter()
            for n, id in enumerate(ids):
                with conn.pipeline(), conn.transaction():
                    conn.execute("select tracedb.set_tenant(%s)", [TENANT])
                    conn.execute(statement.encode(), [TENANT, id, patterns[n % len(patterns)]])
            took = time.perf_counter() - began
            conn.execute("set role tracedb_maintainer")
            began = time.perf_counter()
            conn.execute("select from tracedb.fold_pattern_usage(100000)")
            folding = time.perf_counter() - began
        return {"calls_per_s": calls / took, "folded_per_s": calls / folding}

    yield {
        "insert": partial(
            log,
            "insert into tracedb.pattern_usage_log (tenant_id, trace_id, pattern_id)"
            " values (%s, %s, %s)",
        ),
        "use": partial(
            log, "select tracedb.log_pattern_use(tenant_id => %s, trace_id => %s, pattern_id => %s)"
        ),
        "outcome": partial(
            log,
            "select tracedb.log_pattern_outcome(tenant_id => %s, trace_id => %s,"
            " pattern_id => %s, success => true)",
        ),
    }


def _patterns(conn: Conn) -> None:
    for n in range(PATTERNS):
        conn.execute(
            "insert into tracedb.success_patterns (tenant_id, signature, prompt)"
            " values (%s, %s, %s)",
            [TENANT, uuid4(), f"prompt {n}"],
        )
