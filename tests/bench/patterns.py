"""Measures how patterns are found: who finds which neighbours how fast, and what indexes cost."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from bench.harness import Context, Sample, Variants, benchmark, timed
from bench.ingest import clocks

PATTERNS = 200_000
SMALL = 5_000  # the second largest tenant; what is left goes to 48 others
TENANTS = 50
CLUSTERS = 2_000
SUBSPACE = 64
QUERIES = 100
K = 10
MODEL = "bench"
MEMORY_MB = 2048

Conn = psycopg.Connection[Any]
Vector = list[float]
Make = Callable[[random.Random], tuple[int, Vector]]


def tenant_id(number: int) -> UUID:
    return UUID(int=0xBE << 120 | 4 << 76 | 2 << 62 | number)


LARGE_TENANT, SMALL_TENANT = tenant_id(0), tenant_id(1)


@benchmark("patterns.384", metric="p50_ms")
def aligned_384(context: Context) -> Iterator[Variants]:
    """Neighbours of 384 dimensions in clusters, found exactly, by own index and by shared ones."""
    yield from _variants(context, 384, aligned)


@benchmark("patterns.hard384", metric="p50_ms")
def hard_384(context: Context) -> Iterator[Variants]:
    """The same where neighbours do not lie in clusters."""
    yield from _variants(context, 384, unaligned)


@benchmark("patterns.1536", metric="p50_ms")
def aligned_1536(context: Context) -> Iterator[Variants]:
    """Neighbours of 1536 dimensions in clusters."""
    yield from _variants(context, 1536, aligned)


@benchmark("patterns.hard1536", metric="p50_ms")
def hard_1536(context: Context) -> Iterator[Variants]:
    """The same where neighbours do not lie in clusters."""
    yield from _variants(context, 1536, unaligned)


def aligned(dimension: int) -> Make:
    """Points around cluster centres: half as far from theirs as that is from the origin."""
    source = random.Random(dimension)
    centres = [_normal(source, dimension) for _ in range(CLUSTERS)]
    noise = _normal(source, 200_000)

    def make(chance: random.Random) -> tuple[int, Vector]:
        cluster = chance.randrange(CLUSTERS)
        start = chance.randrange(len(noise) - dimension)
        shift = noise[start : start + dimension]
        return cluster, [c + 0.5 * n for c, n in zip(centres[cluster], shift, strict=True)]

    return make


def unaligned(dimension: int) -> Make:
    """Points of a subspace that all clusters share, further apart in it than the clusters are."""
    source = random.Random(-dimension)
    centres = [_normal(source, dimension) for _ in range(CLUSTERS)]
    axes = [_normal(source, dimension) for _ in range(SUBSPACE)]
    shifts = []
    for _ in range(256):
        weights = _normal(source, SUBSPACE)
        columns = zip(*axes, strict=True)
        shifts.append([sum(map(float.__mul__, weights, column)) / 8 for column in columns])

    def make(chance: random.Random) -> tuple[int, Vector]:
        cluster = chance.randrange(CLUSTERS)
        (p, one), (q, two), (r, three) = (
            (chance.gauss(0, 1), shifts[chance.randrange(256)]) for _ in range(3)
        )
        return cluster, [
            0.5 * c + p * x + q * y + r * z
            for c, x, y, z in zip(centres[cluster], one, two, three, strict=True)
        ]

    return make


def _normal(source: random.Random, count: int) -> Vector:
    return [source.gauss(0, 1) for _ in range(count)]


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def _words(chance: random.Random, cluster: int) -> str:
    """A dozen words: some that everybody uses, some of the cluster, some of few."""
    common = (f"common{int(chance.paretovariate(1)) % 200}" for _ in range(6))
    topic = (f"topic{cluster}x{chance.randrange(6)}" for _ in range(3))
    rare = (f"rare{chance.randrange(50_000)}" for _ in range(3))
    return " ".join((*common, *topic, *rare))


def _fill(context: Context, dimension: int, make: Make, conn: Conn) -> None:
    patterns = context.scaled(PATTERNS)
    large, small = patterns // 2, min(SMALL, patterns // 8)
    chance = random.Random(7)
    owners = [0] * large + [1] * small
    owners += [2 + n % (TENANTS - 2) for n in range(patterns - large - small)]
    chance.shuffle(owners)  # a page has rows of several tenants
    conn.execute(
        sql.SQL(
            "create table bench_vectors (tenant_id uuid, pattern_id uuid, embedding halfvec({0}));"
            "alter table bench_vectors alter embedding set storage plain;"
            "create table bench_floats (pattern_id uuid, embedding vector({0}));"
        ).format(sql.Literal(dimension))
    )
    for first in range(0, patterns, 2_000):
        keys, texts, vectors = [], [], []
        for number, owner in enumerate(owners[first : first + 2_000], first + 1):
            cluster, vector = make(chance)
            keys.append((tenant_id(owner), UUID(int=number)))
            texts.append(_words(chance, cluster))
            vectors.append(_unit(vector))
        _copy(conn, keys, texts, vectors)
    conn.execute(
        "insert into bench_vectors"
        " select tenant_id, pattern_id, embedding from tracedb.pattern_embeddings"
    )
    conn.execute(
        "vacuum analyze tracedb.success_patterns, tracedb.pattern_embeddings, bench_vectors"
    )


def _copy(
    conn: Conn, keys: Sequence[tuple[UUID, UUID]], texts: Sequence[str], vectors: Sequence[Vector]
) -> None:
    with conn.cursor() as cursor:
        with cursor.copy(
            "copy tracedb.success_patterns"
            " (tenant_id, pattern_id, signature, prompt, trace_count, success_count) from stdin"
        ) as copy:
            for (tenant, pattern), text in zip(keys, texts, strict=True):
                copy.write_row((tenant, pattern, pattern, text, 4, 3))
        with cursor.copy(
            "copy tracedb.pattern_embeddings"
            " (tenant_id, model, pattern_id, dimension, content_hash, embedding)"
            " from stdin (format binary)"
        ) as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for (tenant, pattern), text, vector in zip(keys, texts, vectors, strict=True):
                copy.write(_binary_row(tenant, pattern, text, vector))
            copy.write(struct.pack(">h", -1))
        with cursor.copy("copy bench_floats from stdin") as copy:
            for (tenant, pattern), vector in zip(keys, vectors, strict=True):
                if tenant == SMALL_TENANT:
                    copy.write_row((pattern, str(vector)))


def _binary_row(tenant: UUID, pattern: UUID, text: str, vector: Vector) -> bytes:
    fields = (
        tenant.bytes,
        MODEL.encode(),
        pattern.bytes,
        struct.pack(">h", len(vector)),
        hashlib.md5(text.encode()).digest(),
        struct.pack(f">hh{len(vector)}e", len(vector), 0, *vector),
    )
    return struct.pack(">h", len(fields)) + b"".join(
        struct.pack(">i", len(field)) + field for field in fields
    )


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched: a vector, as text of an array, and words that go with it."""

    vector: str
    words: str


@dataclass(frozen=True, slots=True)
class Search:
    """A way to search: a statement, and what is set for it."""

    statement: str
    settings: str = ""


_SCAN = Search(
    "select pattern_id from tracedb.nearest_by_scan("
    "%(vector)s::real[]::halfvec, 'bench', 10, %(tenant)s)"
)
_FIND = Search(
    "select pattern_id from tracedb.find_patterns(%(vector)s::real[], %(words)s, k => 10,"
    " model => 'bench', seed => 1, tenant_id => %(tenant)s)"
)
_FLOATS = Search(
    "select pattern_id from bench_floats order by embedding <=> %(vector)s::real[]::vector limit 10"
)
# Nothing else to choose: what the index finds is what is measured.
_FORCED = "set enable_seqscan = off; set enable_sort = off; set hnsw.ef_search = 40"
_SHARED = Search(
    "select pattern_id from bench_vectors where tenant_id = %(tenant)s"
    " order by embedding <=> %(vector)s::real[]::halfvec limit 10",
    _FORCED,
)
_ITERATIVE = Search(
    "select pattern_id from (select pattern_id, embedding <=> %(vector)s::real[]::halfvec as far"
    " from bench_vectors where tenant_id = %(tenant)s"
    " order by embedding <=> %(vector)s::real[]::halfvec limit 10) as n order by far",
    f"{_FORCED}; set hnsw.iterative_scan = relaxed_order",
)


def _own(dimension: int) -> Search:
    return Search(
        "select pattern_id from tracedb.nearest_by_index(%(vector)s::real[]::halfvec, 'bench',"
        f" {dimension}, 50, %(tenant)s) order by likeness desc limit 10"
    )


def _variants(context: Context, dimension: int, kind: Callable[[int], Make]) -> Iterator[Variants]:
    make = kind(dimension)
    dsn = context.database(
        f"bench_patterns_{kind.__name__}_{dimension}", partial(_fill, context, dimension, make)
    )
    queries = _queries(make)
    with ExitStack() as stack:
        admin, app = (stack.enter_context(psycopg.connect(dsn, autocommit=True)) for _ in range(2))
        app.execute("set role tracedb_app")
        with timed("the true neighbours"):
            truth = {
                tenant: [ids for _, ids in _asked(admin, _SHARED, queries, tenant)]
                for tenant in (SMALL_TENANT, LARGE_TENANT)
            }
            floats = [ids for _, ids in _asked(admin, _FLOATS, queries, SMALL_TENANT)]
        costs = _build(admin, dimension)

        def searched(conn: Conn, search: Search, tenant: UUID) -> Sample:
            *_, before, _ = clocks(conn)
            asked = _asked(conn, search, queries, tenant)
            *_, after, _ = clocks(conn)
            cuts = quantiles((ms for ms, _ in asked), n=20)
            found = [ids for _, ids in asked]
            sample = {
                "p50_ms": cuts[9],
                "p95_ms": cuts[18],
                "backend_cpu_ms": (after - before) / QUERIES * 1e3,
                "short_lists": sum(len(ids) < K for ids in found),
            }
            if search is not _FIND:  # which does not rank by nearness alone
                sample["recall_at_10"] = _recall(found, truth[tenant])
            if search is _SCAN and tenant == SMALL_TENANT:
                sample["recall_of_floats"] = _recall(found, floats)
            return sample

        def shared(index: str) -> Sample:
            """An index of all tenants: as a small tenant finds with it, and as the large one."""
            sample = _indexed(admin, "shared", f"bench_vectors using {index}")
            found = searched(admin, _SHARED, SMALL_TENANT)
            others = {"large": searched(admin, _SHARED, LARGE_TENANT)}
            if index.startswith("hnsw"):
                others["iterative"] = searched(admin, _ITERATIVE, SMALL_TENANT)
            admin.execute("drop index shared")
            for name, other in others.items():
                sample |= {f"{name}_{metric}": value for metric, value in other.items()}
            return found | sample

        yield {
            "small": partial(searched, app, _SCAN, SMALL_TENANT),
            "small_find": partial(searched, app, _FIND, SMALL_TENANT),
            "large_scan": partial(searched, app, _SCAN, LARGE_TENANT),
            "large_own": lambda: searched(app, _own(dimension), LARGE_TENANT) | costs,
            "large_find": partial(searched, app, _FIND, LARGE_TENANT),
            "shared_hnsw": partial(shared, "hnsw (embedding halfvec_cosine_ops)"),
            "shared_ivfflat": partial(
                shared, "ivfflat (embedding halfvec_cosine_ops) with (lists = 200)"
            ),
        }


def _recall(found: Sequence[list[UUID]], true: Sequence[list[UUID]]) -> float:
    hits = sum(len(set(f) & set(t)) for f, t in zip(found, true, strict=True))
    return hits / sum(map(len, true))


def _queries(make: Make) -> list[Query]:
    chance = random.Random(11)
    made = []
    for _ in range(QUERIES):
        cluster, vector = make(chance)
        made.append(Query("{" + str(_unit(vector))[1:-1] + "}", _words(chance, cluster)))
    return made


def _asked(
    conn: Conn, search: Search, queries: Sequence[Query], tenant: UUID
) -> list[tuple[float, list[UUID]]]:
    """Milliseconds and answers, in a transaction each, as the client does it."""
    conn.execute("reset all")
    if search.settings:
        conn.execute(search.settings.encode())
    if conn.info.parameter_status("is_superuser") == "off":
        conn.execute("select set_config('tracedb.tenant_id', %s, false)", [str(tenant)])
    asked = []
    for query in queries:
        args = {"vector": query.vector, "words": query.words, "tenant": tenant}
        begin = time.perf_counter()
        rows = conn.execute(search.statement.encode(), args).fetchall()
        asked.append(((time.perf_counter() - begin) * 1e3, [pattern_id for (pattern_id,) in rows]))
    return asked


def _build(admin: Conn, dimension: int) -> Sample:
    """The large tenant's own index, as it is made, and one in full precision to compare with."""
    costs: Sample = {}
    if dimension <= 2000:  # more has no index in full precision
        full = _indexed(
            admin,
            "of_floats",
            f"tracedb.{_partition(admin)} using hnsw ((embedding::vector({dimension}))"
            f" vector_cosine_ops) where tenant_id = '{LARGE_TENANT}'",
        )
        costs = {f"floats_{metric}": value for metric, value in full.items()}
        admin.execute("drop index tracedb.of_floats")
    limit = json.dumps({"exact_search_limit": 0, "word_search_limit": 500})
    admin.execute("select tracedb.set_pattern_settings(%s, %s)", [limit, LARGE_TENANT])
    begin = time.perf_counter()
    ((name,),) = admin.execute(
        "select index_name from tracedb.ensure_pattern_indexes(1, %s)", [MEMORY_MB]
    ).fetchall()
    costs["build_s"] = time.perf_counter() - begin
    costs["index_mb"] = _size(admin, f"tracedb.{name}")
    begin = time.perf_counter()
    ((name,),) = admin.execute(
        "select index_name from tracedb.ensure_pattern_indexes(1, %s)", [MEMORY_MB]
    ).fetchall()
    costs["words_build_s"] = time.perf_counter() - begin
    costs["words_index_mb"] = _size(admin, f"tracedb.{name}")
    admin.execute("select count(*) from tracedb.ensure_pattern_indexes(1000)")  # of the others
    admin.execute("vacuum analyze tracedb.success_patterns, tracedb.pattern_embeddings")
    return costs


def _indexed(admin: Conn, name: str, on: str) -> Sample:
    admin.execute(f"set maintenance_work_mem = '{MEMORY_MB}MB'".encode())
    begin = time.perf_counter()
    with timed(f"building {name} on {on}"):
        admin.execute(f"create index {name} on {on}".encode())
    seconds = time.perf_counter() - begin
    schema = on.split(".")[0] + "." if "." in on.split(" ")[0] else ""
    return {"build_s": seconds, "index_mb": _size(admin, schema + name)}


def _partition(admin: Conn) -> str:
    """The table with the embeddings of the large tenant."""
    row = admin.execute("select tracedb.embeddings_partition(%s)", [LARGE_TENANT]).fetchone()
    assert row is not None
    return str(row[0])


def _size(admin: Conn, index: str) -> float:
    row = admin.execute("select pg_relation_size(%s::regclass) / 2 ^ 20", [index]).fetchone()
    assert row is not None
    return float(row[0])
