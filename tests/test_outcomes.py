"""Uses of patterns and how they ended: counts, effectiveness, lift, and what is given up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracedb
from records import NOON, at, ingest, trace, trace_id
from servers import as_role
from tracedb.cli import main

Connection = psycopg.Connection[Any]


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    """The administrator, a transaction a statement."""
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


def value(conn: Connection, statement: str, *params: Any) -> Any:
    row = conn.execute(statement.encode(), params).fetchone()
    assert row is not None
    return row[0]


def pattern(conn: Connection, tenant: UUID, prompt: str = "Refund it", **fields: Any) -> UUID:
    id: UUID = value(
        conn,
        "select tracedb.save_pattern(%s, %s)",
        json.dumps({"prompt": prompt, **fields}),
        tenant,
    )
    return id


def use(conn: Connection, tenant: UUID, trace: str, pattern_id: UUID, **fields: Any) -> None:
    _call(conn, "log_pattern_use", tenant, trace, pattern_id, fields)


def end(
    conn: Connection, tenant: UUID, trace: str, pattern_id: UUID, success: bool, **fields: Any
) -> None:
    _call(conn, "log_pattern_outcome", tenant, trace, pattern_id, {"success": success, **fields})


def _call(
    conn: Connection,
    function: str,
    tenant: UUID,
    trace: str,
    pattern_id: UUID,
    fields: dict[str, Any],
) -> None:
    named = {"trace_id": trace, "pattern_id": pattern_id, "tenant_id": tenant, **fields}
    arguments = ", ".join(f"{name} => %({name})s" for name in named)
    conn.execute(f"select tracedb.{function}({arguments})".encode(), named)


def fold(conn: Connection, max_uses: int = 10000) -> None:
    while conn.execute("select from tracedb.fold_pattern_usage(%s)", [max_uses]).fetchall():
        pass


def history(conn: Connection, tenant: UUID) -> dict[UUID, tuple[int, int, int]]:
    """Uses, successes and failures of each pattern, as readers see them."""
    found = conn.execute(
        "select pattern_id, use_count, use_successes, use_failures"
        " from tracedb.pattern_history(array(select pattern_id from tracedb.success_patterns"
        " where tenant_id = %s), tenant_id => %s)",
        [tenant, tenant],
    )
    return {row[0]: row[1:] for row in found}


def folded(conn: Connection, tenant: UUID) -> dict[UUID, tuple[int, int, int]]:
    found = conn.execute(
        "select pattern_id, use_count, use_successes, use_failures"
        " from tracedb.success_patterns where tenant_id = %s",
        [tenant],
    )
    return {row[0]: row[1:] for row in found}


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["use", "offer", "control", "end", "end", "fold"]),
        st.integers(0, 2),  # which trace
        st.integers(0, 1),  # which pattern
        st.booleans(),
        st.integers(0, 3),  # when it was known
    ),
    max_size=14,
)


@given(acts=ACTS)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_counts_are_exact_at_every_moment(
    conn: Connection, acts: list[tuple[str, int, int, bool, int]]
) -> None:
    """Whatever came first, or twice, and whenever it was folded."""
    tenant = uuid4()
    ids = [pattern(conn, tenant, f"prompt {n}") for n in range(2)]
    arms: dict[tuple[int, int], str] = {}
    ends: dict[tuple[int, int], tuple[int, bool]] = {}
    for act, t, p, success, minute in acts:
        if act == "fold":
            value(conn, "select count(*) from tracedb.fold_pattern_usage(2)")
        elif act == "end":
            when = NOON + timedelta(minutes=minute)
            end(conn, tenant, trace_id(f"t{t}"), ids[p], success, outcome_at=when)
            arms.setdefault((t, p), "use")
            if minute >= ends.get((t, p), (-1, False))[0]:
                ends[t, p] = minute, success
        else:
            arm = "control" if act == "control" else "pattern"
            use(conn, tenant, trace_id(f"t{t}"), ids[p], applied=act == "use", arm=arm)
            arms[t, p] = act
        expected = {
            id: (
                sum(arm == "use" for (_, p), arm in arms.items() if ids[p] == id),
                *(
                    sum(
                        arms[key] == "use" and ended == known
                        for key, (_, ended) in ends.items()
                        if ids[key[1]] == id
                    )
                    for known in (True, False)
                ),
            )
            for id in ids
        }
        assert history(conn, tenant) == expected
    fold(conn)
    assert acts == [] or folded(conn, tenant) == history(conn, tenant) == expected


def test_no_outcome_is_lost_between_folds(conn: Connection, database: str) -> None:
    """Four sessions log and change outcomes while two fold."""
    tenant = uuid4()
    ids = [pattern(conn, tenant, f"prompt {n}") for n in range(3)]

    def log(writer: int) -> None:
        with psycopg.connect(database, autocommit=True) as own:
            for n in range(40):
                # every row is changed by two writers
                key = trace_id(f"{writer // 2}-{n}")
                when = NOON + timedelta(seconds=writer)
                end(own, tenant, key, ids[n % 3], (n + writer) % 2 == 0, outcome_at=when)

    def folding(done: Callable[[], bool]) -> None:
        with psycopg.connect(database, autocommit=True) as own:
            while not done():
                own.execute("select from tracedb.fold_pattern_usage(7)")

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(log, n) for n in range(4)]
        folds = [pool.submit(folding, lambda: all(w.done() for w in writers)) for _ in range(2)]
        for each in [*writers, *folds]:
            each.result()
    # the later outcome of each pair of writers: 1 and 3
    known = Counter(((n % 3), (n + 1) % 2 == 0) for n in range(40) for _ in range(2))
    expected = {
        id: (known[p, True] + known[p, False], known[p, True], known[p, False])
        for p, id in enumerate(ids)
    }
    assert history(conn, tenant) == expected
    fold(conn)
    assert folded(conn, tenant) == expected


def test_counts_outlive_the_log(conn: Connection) -> None:
    tenant = uuid4()
    id = pattern(conn, tenant)
    use(conn, tenant, trace_id("a"), id)
    end(conn, tenant, trace_id("a"), id, True)
    with as_role(conn, "tracedb_maintainer"):
        fold(conn)
    conn.execute("delete from tracedb.pattern_usage_log where tenant_id = %s", [tenant])
    assert history(conn, tenant) == {id: (1, 1, 0)}


def test_what_a_use_took_is_compared_with_what_the_pattern_promised(conn: Connection) -> None:
    tenant = uuid4()
    id = pattern(conn, tenant, performance={"p50_ms": 100})
    for key, success, deviation, took in (("a", True, 0.25, 150), ("b", False, 0.75, 250)):
        with as_role(conn, "tracedb_app", tenant):
            conn.execute(
                "select tracedb.log_pattern_use(%s, %s, rank => 1, score => 0.9)",
                [trace_id(key), id],
            )
            conn.execute(
                "select tracedb.log_pattern_outcome(%s, %s, %s, %s, %s, feedback => 'so so')",
                [trace_id(key), id, success, deviation, took],
            )
    use(conn, tenant, trace_id("c"), id)
    found = conn.execute(
        "select use_count, use_successes, use_failures, success_rate, success_rate_low,"
        " mean_deviation, duration_ratio from tracedb.pattern_effectiveness where tenant_id = %s",
        [tenant],
    ).fetchall()
    assert found == [(3, 1, 1, 0.5, pytest.approx(0.0945, abs=1e-4), 0.5, 2.0)]


# --- lift ---------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_is_the_published_one(conn: Connection) -> None:
    """Table II of Newcombe (1998): 56/70 and 48/80, method 10."""
    found = value(conn, "select tracedb.newcombe_interval(56, 70, 48, 80)")
    assert found == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert value(conn, "select tracedb.newcombe_interval(1, 0, 1, 2)") is None


def lift(conn: Connection, tenant: UUID, min_traces: int = 20) -> list[dict[str, Any]]:
    found = conn.execute(
        "select to_jsonb(l) from tracedb.pattern_lift(null, %s, %s, %s, %s) as l",
        [NOON - timedelta(days=1), NOON + timedelta(days=1), min_traces, tenant],
    )
    return [row[0] for row in found]


def run(key: str, status: str, agent: str = "helpdesk") -> dict[str, Any]:
    return trace(trace_id=trace_id(key), agent_id=agent, status=status, ended_at=at(1000))


def test_where_patterns_were_held_back_the_arms_are_compared(conn: Connection) -> None:
    """Everybody for whom it was found counts, followed or not; both sides by the same measure."""
    tenant = uuid4()
    id = pattern(conn, tenant, agent_id="helpdesk")
    for n in range(20):
        use(conn, tenant, trace_id(f"w{n}"), id, applied=n % 2 == 0)
        use(conn, tenant, trace_id(f"wo{n}"), id, arm="control")
        # what is said of one side only is not compared with the scores of the other
        end(conn, tenant, trace_id(f"w{n}"), id, n < 2)
        traces = [run(f"w{n}", "ok" if n < 16 else "error")]
        ingest(conn, tenant, [*traces, run(f"wo{n}", "ok" if n < 8 else "error")])
    overall, own = lift(conn, tenant)
    assert own["pattern_id"] == str(id)
    for found in (overall, own):
        assert found["comparison"] == "randomised"
        assert found["reason"] is None
        counts = ("with_traces", "with_successes", "without_traces", "without_successes")
        assert [found[name] for name in counts] == [20, 16, 20, 8]
        assert found["difference"] == pytest.approx(0.4)
        low, high = value(conn, "select tracedb.newcombe_interval(16, 20, 8, 20)")
        assert (found["difference_low"], found["difference_high"]) == (low, high)
        assert low > 0
    refused = lift(conn, tenant, 21)[1]
    assert (refused["difference"], refused["difference_low"]) == (None, None)
    assert refused["reason"] == "20 traces with the pattern, 21 are needed"

    for n in range(20):  # said of both, it goes before the score
        end(conn, tenant, trace_id(f"wo{n}"), id, n < 12)
    for found in lift(conn, tenant):
        assert (found["with_successes"], found["without_successes"]) == (2, 12)


def test_all_together_leaves_out_what_was_held_back_from_nobody(conn: Connection) -> None:
    """It would count with the patterns only, however well its requests go anyway."""
    tenant = uuid4()
    held, never = (pattern(conn, tenant, prompt) for prompt in ("held back", "never"))
    for n in range(4):
        for key, id, arm, success in (
            ("w", held, "pattern", n < 2),
            ("wo", held, "control", n < 2),
            ("n", never, "pattern", True),
        ):
            use(conn, tenant, trace_id(f"{key}{n}"), id, arm=arm)
            end(conn, tenant, trace_id(f"{key}{n}"), id, success)
    overall = lift(conn, tenant, 4)[0]
    assert (overall["pattern_id"], overall["comparison"]) == (None, "randomised")
    assert (overall["with_traces"], overall["without_traces"]) == (4, 4)
    assert overall["difference"] == 0


@pytest.mark.parametrize(
    ("told", "expected"), [('"fast"', None), ("-5", 0), ("1e300", 2**63 - 1), ("41.5", 42)]
)
def test_any_time_that_a_pattern_names_can_be_logged(
    conn: Connection, told: str, expected: int | None
) -> None:
    tenant = uuid4()
    id = pattern(conn, tenant, performance={"p50_ms": json.loads(told)})
    use(conn, tenant, trace_id(), id)
    assert (
        value(
            conn,
            "select expected_duration_ms from tracedb.pattern_usage_log where tenant_id = %s",
            tenant,
        )
        == expected
    )


def test_without_a_control_arm_the_comparison_says_that_it_only_observed(
    conn: Connection,
) -> None:
    tenant = uuid4()
    id = pattern(conn, tenant, agent_id="helpdesk")
    traces = [run(f"w{n}", "ok" if n < 3 else "error") for n in range(4)]
    traces += [run(f"wo{n}", "ok" if n < 1 else "error") for n in range(4)]
    traces += [run(f"other{n}", "ok", agent="sales") for n in range(4)]
    ingest(conn, tenant, traces)
    for each in traces[:4]:
        use(conn, tenant, each["trace_id"], id)
        end(conn, tenant, each["trace_id"], id, True)  # both sides go by their score
    overall, own = lift(conn, tenant, 4)
    assert own["comparison"] == "observational"
    assert (own["with_rate"], own["without_rate"], own["difference"]) == (0.75, 0.25, 0.5)
    assert overall["difference"] is None
    assert overall["reason"] == "0 traces without it, 4 are needed"


# --- giving up ----------------------------------------------------------------------------------


def prune(conn: Connection, tenant: UUID, as_of: datetime, dry_run: bool) -> list[UUID]:
    with as_role(conn, "tracedb_maintainer"):
        return [
            row[0]
            for row in conn.execute(
                "select pattern_id from tracedb.prune_patterns(%s, 10, %s, %s)",
                [as_of, dry_run, tenant],
            )
        ]


def test_only_patterns_that_had_their_chance_are_given_up_with_a_receipt(
    conn: Connection,
) -> None:
    tenant = uuid4()
    bad, unlucky, good = (pattern(conn, tenant, name) for name in ("bad", "unlucky", "good"))
    for id, failures, successes in ((bad, 20, 2), (unlucky, 4, 0), (good, 5, 15)):
        for n in range(failures + successes):
            end(conn, tenant, trace_id(f"{n}"), id, n >= failures, outcome_at=NOON)
    late = NOON + timedelta(days=31)
    assert prune(conn, tenant, NOON + timedelta(days=29), True) == [], "used not long ago"
    assert prune(conn, tenant, late, True) == [bad]
    fold(conn)
    assert prune(conn, tenant, late, False) == [bad]
    assert prune(conn, tenant, late, False) == []
    receipts = conn.execute(
        "select pattern_id, uses, successes, failures, success_rate_high, reason"
        " from tracedb.pattern_prunings where tenant_id = %s",
        [tenant],
    ).fetchall()
    assert [row[:4] for row in receipts] == [(bad, 22, 2, 20)]
    upper = value(conn, "select tracedb.wilson_upper(2, 22)")
    assert receipts[0][4] == upper
    assert receipts[0][5] == (
        f"success of {100 * upper:.1f} % at most (2 of 22 uses with a known end, at least 5"
        " needed), below 50.0 %; not used for 30 days"
    )
    kept = conn.execute(
        "select pattern_id from tracedb.success_patterns"
        " where tenant_id = %s and retired_at is null order by prompt",
        [tenant],
    ).fetchall()
    assert kept == [(good,), (unlucky,)]


# --- in Python, and on the command line ---------------------------------------------------------


def test_both_colours_of_client_log_and_read(database: str) -> None:
    async def awaited(tenant: UUID, id: UUID) -> None:
        async with await tracedb.connect_async(database) as db:
            await db.tenant(tenant).log_pattern_outcome(UUID(trace_id()), id, True, quality=0.5)

    with tracedb.connect(database) as db:
        acme = db.tenant(db.ensure_tenant("acme"))
        id = acme.save_pattern({"prompt": "Refund it", "performance": {"p50_ms": 40}})
        assert id is not None
        acme.log_pattern_use(UUID(trace_id()), id, rank=1, score=0.5, score_parts={"semantic": 1})
        asyncio.run(awaited(acme.tenant_id, id))
        (known,) = acme.pattern_effectiveness()
        assert (known.use_count, known.success_rate, known.mean_quality) == (1, 1.0, 0.5)
        assert db.fold_pattern_usage() == [tracedb.FoldedUses(acme.tenant_id, 1, 1)]
        assert acme.pattern_effectiveness() == [known]
        with pytest.raises(tracedb.InvalidInput, match="deviation, quality: must be from 0 to 1"):
            acme.log_pattern_outcome(UUID(trace_id()), id, True, deviation=2)


def test_what_cron_and_people_run(
    database: str, capsys: pytest.CaptureFixture[str], conn: Connection
) -> None:
    def tracedb_(*words: str, code: int = 0) -> Any:
        assert main([*words, "--json", "--dsn", database]) == code
        return json.loads(capsys.readouterr().out)

    failed = {"status": "error", "error_message": "no order 7", "ended_at": at(5)}
    asked = {"prompt": "Refund it", "agent_id": "helpdesk"}
    tenant: UUID = value(conn, "select tracedb.ensure_tenant('acme')")
    records = [run("1", "ok") | asked, run("2", "ok") | asked | failed]
    chosen = {"type": "routing_decision", "trace_id": trace_id("1"), "span_id": f"{1:016x}"}
    records.append(chosen | {"selected_agent": "helpdesk", "started_at": at()})
    ingest(conn, tenant, records)

    found = tracedb_("patterns", "learn")
    assert (found["examined"], found["patterns"], found["errors"]) == (2, 1, 1)
    assert tracedb_("patterns", "learn")["examined"] == 0
    assert tracedb_("patterns", "learn", "--since", "2026-01-01")["patterns"] == 0
    (known,) = tracedb_("patterns", "effectiveness", "--tenant", "acme")
    assert (known["trace_count"], known["success_count"]) == (2, 1)
    assert tracedb_("patterns", "lift", "--tenant", "acme") == []
    end(conn, tenant, trace_id("1"), UUID(known["pattern_id"]), False)
    assert tracedb_("patterns", "fold") == {"uses": 1}
    assert tracedb_("patterns", "prune", "--dry-run") == {"dry_run": True, "pruned": []}
    (error,) = tracedb_("errors", "--tenant", "acme")
    assert error["template"] == "no order <n>"
    tracedb_("errors", "--tenant", "acme", "--fix", error["fingerprint"], "Look it up.")
    assert tracedb_("errors", "--tenant", "acme")[0]["known_fix"] == "Look it up."
    assert tracedb_("errors", "--tenant", "acme", "--unfixed") == []
    tracedb_("errors", "--tenant", "acme", "--fix", str(uuid4()), "?", code=1)
    value_ = tracedb_(
        "routing", "evaluate", "helpdesk=1", "--tenant", "acme", "--since", "2026-01-01", code=3
    )
    assert value_["reason"] == "1 of 1 decisions have no selection_probability"
    for policy in ("best", "helpdesk=nan"):
        refused = tracedb_("routing", "evaluate", policy, "--tenant", "acme", code=1)
        assert refused["error"]["message"].startswith("policy: neither greedy")

    with psycopg.connect(database) as busy:  # holds the tenant's lock
        busy.execute("select from tracedb.extract_patterns(tenant_id => %s)", [tenant])
        assert tracedb_("patterns", "learn", code=75)["busy"] == 1
    for words in (["errors"], ["patterns", "effectiveness"], ["patterns", "lift"]):
        assert main([*words, "--tenant", "acme", "--dsn", database]) == 0
    assert "no order <n>" in capsys.readouterr().out
