"""Every documented query reads only the partitions and indexes it says, under row-level security.

Plans are judged by what they read: the scans that PostgreSQL counts per relation within a
transaction. That reaches the statements inside functions as well, with whatever plan they had.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bench import seed
from servers import Server, as_role

TRACES = 40_000
WEEKS = 13
TENANTS = 20
ASKING = seed.tenant_id(TENANTS // 2)
# 8 days touch at most 3 weeks (with a day on either side of the ids too), 31 days at most 6
LIMITS = {"recent": 3, "month": 6, "all": WEEKS + 1}

# How often this transaction has scanned each partition and index so far, and the rows it got. Small
# partitions (to come, or of a week that has only begun) are rightly read as a whole.
_READ = """
select c.relname, c.relkind = 'i', coalesce(root.relname, c.relname),
    pg_stat_get_xact_numscans(c.oid), pg_stat_get_xact_tuples_returned(c.oid)
from pg_class as c
left join pg_index as i on i.indexrelid = c.oid
join pg_class as held on held.oid = coalesce(i.indrelid, c.oid) and held.reltuples > 500
left join pg_class as root on root.oid = pg_partition_root(c.oid)
where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'i')
"""


# Every other call has a cost that was computed and adjusted, instead of a reported one.
_ADJUSTED = (
    """
    update tracedb.llm_spans set cost_usd = null, computed_cost_usd = cost_usd
    where get_byte(span_id, 7) % 2 = 1
    """,
    """
    insert into tracedb.span_cost_adjustments (
        tenant_id, trace_id, span_id, span_updated_at, cost_usd, previous_cost_usd, reason
    )
    select tenant_id, trace_id, span_id, updated_at, computed_cost_usd + 1, computed_cost_usd, ''
    from tracedb.llm_spans where cost_usd is null
    """,
    "vacuum analyze tracedb.llm_spans, tracedb.span_cost_adjustments",
)

# What was learned of 500 things, of every trace a little, and how far for many more tenants.
_LEARNED = (
    """
    insert into tracedb.learned_traces (
        tenant_id, trace_id, subject, learned_id, occurrences, successes
    )
    select
        tenant_id, trace_id, 'error',
        md5((row_number() over (partition by tenant_id order by trace_id) % 500)::text)::uuid, 1, 0
    from tracedb.execution_traces
    """,
    """
    insert into tracedb.error_patterns (
        tenant_id, fingerprint, template, operation, occurrences, trace_count, first_seen_at,
        last_seen_at
    )
    select t.tenant_id, md5(n::text)::uuid, 'no', 'llm', 1, 1, now(), now()
    from (select distinct tenant_id from tracedb.execution_traces) as t
    cross join generate_series(1, 500) as n
    """,
    """
    insert into tracedb.agent_chaining_patterns (
        tenant_id, chain_id, agent_sequence, trace_count, success_count, first_seen_at, last_seen_at
    )
    select tenant_id, fingerprint, '{a,b}', 1, 1, now(), now() from tracedb.error_patterns
    """,
    """
    insert into tracedb.pattern_prunings (
        tenant_id, pattern_id, reason, uses, successes, failures, success_rate_high, last_used_at
    )
    select tenant_id, fingerprint, 'no', 5, 0, 5, 0.1, now() from tracedb.error_patterns
    """,
    """
    insert into tracedb.learning_progress (tenant_id, subject, cursor)
    select t, s, '' from (
        select distinct tenant_id from tracedb.execution_traces
        union all
        select gen_random_uuid() from generate_series(1, 500)
    ) as t(t)
    cross join unnest(array['pattern', 'chain', 'error']) as s
    """,
    "vacuum analyze tracedb.learned_traces, tracedb.error_patterns,"
    " tracedb.agent_chaining_patterns, tracedb.pattern_prunings, tracedb.learning_progress",
)

# Patterns of every tenant, a twentieth of them retired, with embeddings and uses over the weeks;
# and of 400 tenants who share a partition with the one that asks.
_PATTERNS = (
    f"""
    insert into tracedb.success_patterns (tenant_id, pattern_id, signature, prompt, retired_at)
    select t.tenant_id, tracedb.uuid_from_key('2026-01-01', n::text), gen_random_uuid(),
        format('word%s thing%s', n, n % 7), case when n % 20 = 0 then now() end
    from (select distinct tenant_id, 500 as patterns from tracedb.execution_traces union all (
        select md5(n::text)::uuid, 25
        from generate_series(1, 40000) as n
        where satisfies_hash_partition('tracedb.pattern_embeddings'::regclass, 64, (
            select i from generate_series(0, 63) as i
            where satisfies_hash_partition(
                'tracedb.pattern_embeddings'::regclass, 64, i, '{ASKING}'::uuid)
        ), md5(n::text)::uuid) limit 400
    )) as t
    cross join lateral generate_series(1, t.patterns) as n
    """,
    """
    insert into tracedb.pattern_embeddings (
        tenant_id, model, pattern_id, dimension, content_hash, embedding
    )
    select tenant_id, 'm', pattern_id, 256, prompt_hash,
        (array_fill(1::real, array[255]) || (row_number() over (order by signature))::real)::halfvec
    from tracedb.success_patterns
    """,
    """
    insert into tracedb.pattern_usage_log (
        tenant_id, trace_id, pattern_id, used_at, success, counted
    )
    select tenant_id, trace_id, tracedb.uuid_from_key('2026-01-01', n::text), started_at, true,
        case when n = 1 then 'open' else 'success' end
    from tracedb.execution_traces
    cross join lateral (select 1 + abs(hashtext(trace_id::text)) % 500 as n) as r
    """,
    "vacuum analyze tracedb.success_patterns, tracedb.pattern_embeddings,"
    " tracedb.pattern_usage_log",
)


@dataclass(frozen=True, slots=True)
class Query:
    """A documented query, and how many partitions it may read through which index.

    Where two indexes do equally well ("one|other"), the plan may take either.
    """

    name: str
    text: str
    indexes: dict[str, str]

    @property
    def statement(self) -> str:
        return re.sub(r":'(\w+)'", r"%(\1)s", self.text)

    def documented(self, index: str) -> str:
        """The index as the file has it, perhaps beside an equal one."""
        return next((names for names in self.indexes if index in names.split("|")), index)

    def limit(self, names: str) -> int:
        partitions = self.indexes[names]
        return LIMITS.get(partitions) or int(partitions)


@dataclass(frozen=True, slots=True)
class Reads:
    """What one execution read: partitions by index, and partitions without any."""

    indexes: dict[str, int]
    sequential: list[str]


@dataclass(frozen=True, slots=True)
class Data:
    """A filled database, and the tenant, user and trace that the queries are about."""

    dsn: str
    params: dict[str, str]


def documented() -> list[Query]:
    found = re.findall(
        r"^-- (\w+): [^\n]+\n((?:-- {5}[\w|]+ \w+\n)+)(.+?;)$",
        Path(__file__).with_name("plans.sql").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return [
        Query(name, text, dict(re.findall(r"([\w|]+) (\w+)\n", indexes)))
        for name, indexes, text in found
    ]


QUERIES = documented()


@pytest.fixture(scope="module")
def data(server: Server, template: str) -> Iterator[Data]:
    name = f"tracedb_plans_{secrets.token_hex(4)}"
    server.admin.execute(
        sql.SQL("create database {} template {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
    )
    try:
        with psycopg.connect(server.dsn(name), autocommit=True) as conn:
            seed.fill(
                conn,
                TRACES,
                as_of=datetime.now(UTC),
                days=WEEKS * 7,
                tenants=TENANTS,
                users=TENANTS * 40,
                part_bytes=640,
            )
            for statement in (*_ADJUSTED, *_PATTERNS, *_LEARNED):
                conn.execute(statement)
            while conn.execute("select 1 from tracedb.fold_usage(20000)").fetchone():
                pass
            conn.execute("vacuum analyze tracedb.usage_rollups, tracedb.usage_contributions")
            yield Data(server.dsn(name), _subject(conn))
    finally:
        server.admin.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        )


def _subject(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """A tenant of middling size, a trace of it that started another, its user; a late session.

    And a moment in an hour of which totals need a part: a trace with an adjusted cost came before.
    """
    row = conn.execute(
        """
        select t.tenant_id::text, t.trace_id::text, t.user_id, t.external_id, (
            select n.session_id from tracedb.execution_traces as n
            where n.tenant_id = t.tenant_id order by n.trace_id desc limit 1
        ), (
            select (max(n.started_at) + interval '1 second')::text
            from tracedb.span_cost_adjustments as a
            join tracedb.execution_traces as n using (tenant_id, trace_id)
            where n.tenant_id = t.tenant_id
                and date_trunc('hour', n.started_at)
                    = date_trunc('hour', n.started_at + interval '1 second')
        )
        from tracedb.execution_traces as t
        join tracedb.execution_traces as nested on nested.parent_trace_id = t.trace_id
        where t.tenant_id = %s and t.external_id is not null
            -- or the tree would lie in two partitions
            and date_trunc('week', t.started_at, 'UTC')
                = date_trunc('week', nested.started_at, 'UTC')
        order by t.trace_id offset 10 limit 1
        """,
        [ASKING],
    ).fetchone()
    assert row is not None
    names = ("tenant", "trace", "user", "external", "session", "moment")
    return dict(zip(names, row, strict=True))


@pytest.fixture
def app(data: Data) -> Iterator[psycopg.Connection[Any]]:
    """A tenant's own connection: row-level security applies, statistics do not run ahead."""
    with (
        psycopg.connect(data.dsn) as conn,
        as_role(conn, "tracedb_app", data.params["tenant"]),
    ):
        yield conn


def reads(conn: psycopg.Connection[Any], query: Query, params: dict[str, str]) -> Reads:
    def counters() -> dict[str, tuple[Any, ...]]:
        return {row[0]: row for row in conn.execute(_READ)}

    before = counters()
    assert conn.execute(query.statement, params).fetchall(), (
        "a query without a result shows nothing"
    )
    indexes: Counter[str] = Counter()
    sequential = []
    for name, is_index, parent, scans, rows in counters().values():
        if is_index and scans > before[name][3]:
            indexes[query.documented(parent)] += 1
        if not is_index and rows > before[name][4]:
            sequential.append(name)
    return Reads(dict(indexes), sequential)


@pytest.mark.parametrize("plan", ["custom", "generic"])
@pytest.mark.parametrize("query", QUERIES, ids=[query.name for query in QUERIES])
def test_a_documented_query_reads_only_the_partitions_and_indexes_it_says(
    app: psycopg.Connection[Any], data: Data, query: Query, plan: str
) -> None:
    app.execute("select set_config('plan_cache_mode', %s, true)", [f"force_{plan}_plan"])
    found = reads(app, query, data.params)
    assert found.sequential == []
    assert set(found.indexes) == set(query.indexes)
    assert [
        f"{index}: {partitions}"
        for index, partitions in found.indexes.items()
        if partitions > query.limit(index)
    ] == []


@pytest.mark.parametrize("query", QUERIES, ids=[query.name for query in QUERIES])
def test_every_index_is_entered_by_its_tenant(
    app: psycopg.Connection[Any], data: Data, query: Query
) -> None:
    row = app.execute(f"explain (format json) {query.statement}", data.params).fetchone()
    assert row is not None
    conditions = [
        node.get("Index Cond", "")
        for node in nodes(row[0][0]["Plan"])
        if re.search("Index (Only )?Scan$", node["Node Type"])
    ]
    assert [text for text in conditions if "tenant_id =" not in text] == []
    # a function's plans are its own; what it may read is counted above
    assert conditions or re.search(r"from tracedb\.\w+\(|select tracedb\.", query.text)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def test_every_index_serves_a_documented_query(data: Data) -> None:
    used = {index for query in QUERIES for names in query.indexes for index in names.split("|")}
    with psycopg.connect(data.dsn) as conn:
        unused = [
            index
            for (index,) in conn.execute(
                """
                select i.relname
                from pg_index as x
                join pg_class as i on i.oid = x.indexrelid
                join pg_class as t on t.oid = x.indrelid
                where t.relnamespace = 'tracedb'::regnamespace and not t.relispartition
                    and t.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'
                    -- keys of ordinary tables are there for what they forbid
                    and not (t.relkind = 'r' and x.indisunique)
                """
            )
            if index not in used
        ]
    assert unused == []


def test_the_reader_of_plans_takes_every_query_of_the_file() -> None:
    text = Path(__file__).with_name("plans.sql").read_text()
    assert len(QUERIES) == text.count(";\n") > 20


def test_a_sequential_scan_is_noticed(data: Data) -> None:
    unindexed = Query("", "select from tracedb.execution_traces where source = 'api';", {})
    with psycopg.connect(data.dsn) as superuser:
        assert len(reads(superuser, unindexed, data.params).sequential) >= WEEKS
