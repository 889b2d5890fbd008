"""Learning from traces: scores, patterns, chains of agents, errors by fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tracedb
from benchmark_files import REAL
from records import NOON, at, ingest, span, trace, trace_id
from servers import as_role
from tracedb import runs, tau2

Connection = psycopg.Connection[Any]
Records = Sequence[Mapping[str, Any]]

SUBJECTS = ("extract_patterns", "learn_chains", "learn_errors")


@pytest.fixture
def conn(database: str) -> Any:
    """The administrator, a transaction a statement: only what is committed is followed."""
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


def value(conn: Connection, statement: str, *params: Any) -> Any:
    row = conn.execute(statement.encode(), params).fetchone()
    assert row is not None
    return row[0]


def learn(
    conn: Connection, tenant: UUID, subject: str = "extract_patterns", max_traces: int = 1000
) -> int:
    """Learn all there is; how many changes of counts that made."""
    changed = 0
    while True:
        row = conn.execute(
            f"select examined, changed from tracedb.{subject}(null, %s, null, %s)".encode(),
            [max_traces, tenant],
        ).fetchone()
        assert row is not None
        if row[0] == 0:
            return changed
        changed += row[1]


def learn_all(conn: Connection, tenant: UUID, max_traces: int = 1000) -> None:
    for subject in SUBJECTS:
        learn(conn, tenant, subject, max_traces)


def patterns(conn: Connection, tenant: UUID) -> list[dict[str, Any]]:
    found = conn.execute(
        "select to_jsonb(p) from tracedb.success_patterns as p where tenant_id = %s"
        " order by signature",
        [tenant],
    )
    return [row[0] for row in found]


def learned(conn: Connection, tenant: UUID) -> dict[str, list[Any]]:
    """All that was learned, less what differs by tenant or by the time of learning."""
    return {
        table: [
            row[0]
            for row in conn.execute(
                "select to_jsonb(t) - '{tenant_id,pattern_id,cursor,created_at,updated_at}'::text[]"
                f" from tracedb.{table} as t where t.tenant_id = %s order by 1".encode(),
                [tenant],
            )
        ]
        for table in (
            "success_patterns",
            "agent_chaining_patterns",
            "error_patterns",
            "learned_traces",
        )
    }


def asked(
    key: str, prompt: str, status: str = "ok", tools: Sequence[str] = (), **fields: Any
) -> list[dict[str, Any]]:
    """A request that has ended, and its calls of tools."""
    id = trace_id(key)
    return [
        trace(trace_id=id, prompt=prompt, status=status, ended_at=at(100), **fields),
        *(
            span(
                number,
                trace_id=id,
                operation_type="tool",
                tool_name=tool,
                started_at=at(number),
                ended_at=at(number),
            )
            for number, tool in enumerate(tools, start=1)
        ),
    ]


# --- scores -------------------------------------------------------------------------------------


def test_a_criterion_that_is_not_known_counts_neither_way(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("a", "?", context={"user_confirmed": False}))
    score = value(conn, "select tracedb.score_trace(%s, %s)", trace_id("a"), tenant)
    met = {c["name"]: c["met"] for c in score["criteria"]}
    assert met == {
        "completed": True,
        "no_errors": True,
        "hooks_succeeded": None,
        "quality_gates": None,
        "in_time": True,
        "intelligence": None,
        "user_confirmed": False,
    }
    assert score["known_weight"] == pytest.approx(0.65)
    assert score["score"] == pytest.approx(0.60 / 0.65)
    assert sum(c["share"] for c in score["criteria"]) == pytest.approx(1)
    assert score["is_success"] is True
    assert value(conn, "select tracedb.score_trace(%s, %s)", trace_id("none"), tenant) is None


def test_without_a_criterion_that_is_known_there_is_no_score(conn: Connection) -> None:
    tenant = uuid4()
    criteria = ("completed", "no_errors", "hooks_succeeded", "in_time", "intelligence")
    weights = dict.fromkeys([f"{name}_weight" for name in (*criteria, "user_confirmed")], 0)
    conn.execute(
        "select tracedb.set_pattern_settings(%s, %s)",
        [json.dumps({**weights, "quality_gates_weight": 1}), tenant],
    )
    ingest(conn, tenant, asked("a", "?"))

    learn(conn, tenant)

    score = value(conn, "select tracedb.score_trace(%s, %s)", trace_id("a"), tenant)
    assert (score["known_weight"], score["score"]) == (0, None)
    assert patterns(conn, tenant) == []


HOOK = {"type": "hook", "hook_type": "pre_tool_use", "started_at": at(), "ended_at": at(1)}


CRITERIA: list[tuple[dict[str, Any], list[dict[str, Any]], str, bool | None]] = [
    ({"status": "cancelled"}, [], "completed", False),
    ({"status": "running", "ended_at": None}, [], "completed", None),
    ({"error_type": "late"}, [], "no_errors", False),
    ({}, [span(1, status="error")], "no_errors", False),
    # the same tool worked later
    (
        {},
        [
            span(1, status="error", tool_name="t", started_at=at(1)),
            span(2, tool_name="t", started_at=at(2)),
        ],
        "no_errors",
        True,
    ),
    ({}, [{**HOOK, "span_id": f"{1:016x}", "status": "error"}], "hooks_succeeded", False),
    ({}, [{**HOOK, "span_id": f"{1:016x}", "outcome": "blocked"}], "hooks_succeeded", True),
    ({}, [{**HOOK, "span_id": f"{1:016x}"}], "quality_gates", None),
    (
        {},
        [{**HOOK, "span_id": f"{1:016x}", "quality_gates": {"lint": True, "n": 3}}],
        "quality_gates",
        True,
    ),
    (
        {},
        [
            {**HOOK, "span_id": f"{1:016x}", "quality_gates": {"lint": "passed"}},
            {**HOOK, "span_id": f"{2:016x}", "quality_gates": {"tests": {"ok": False}}},
        ],
        "quality_gates",
        False,
    ),
    ({"ended_at": at(30_001)}, [], "in_time", False),
    (
        {},
        [{**HOOK, "span_id": f"{1:016x}", "intelligence_functions": ["search"]}],
        "intelligence",
        True,
    ),
    ({}, [{**HOOK, "span_id": f"{1:016x}"}], "intelligence", False),
    ({"docs_retrieved": 2}, [], "intelligence", True),
    ({"context": {"reward": 1}}, [], "user_confirmed", True),
    ({"context": {"reward": 0.5}}, [], "user_confirmed", False),
    ({"context": {"user_confirmed": "maybe"}}, [], "user_confirmed", None),
]


def test_what_each_criterion_means(conn: Connection) -> None:
    for header, parts, criterion, met in CRITERIA:
        tenant = uuid4()
        whole = {"status": "ok", "ended_at": at(100), **header}
        own = [{"trace_id": trace_id(), **part} for part in parts]
        assert ingest(conn, tenant, [trace(**whole), *own])["rejected"] == []
        scored = value(
            conn,
            f"select {criterion} from tracedb.score_traces(array[%s]::uuid[], %s)",
            trace_id(),
            tenant,
        )
        assert scored is met, (header, parts, criterion)


def test_a_tenant_weighs_criteria_as_it_likes_and_learns_anew(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("a", "Where is it?", context={"user_confirmed": False}))
    learn(conn, tenant)
    assert len(patterns(conn, tenant)) == 1
    weights = dict.fromkeys(("completed", "no_errors", "hooks_succeeded", "quality_gates"), 0)
    chosen: dict[str, float] = {f"{name}_weight": weight for name, weight in weights.items()}
    chosen |= {"in_time_weight": 0.2, "intelligence_weight": 0, "user_confirmed_weight": 0.8}
    conn.execute("select tracedb.set_pattern_settings(%s, %s)", [json.dumps(chosen), tenant])
    learn(conn, tenant)
    assert len(patterns(conn, tenant)) == 1, "settings are no change of a trace"
    looked = conn.execute(
        "select examined, changed from tracedb.extract_patterns(%s, tenant_id => %s)",
        [NOON - timedelta(days=1), tenant],
    ).fetchone()
    assert looked == (1, 1)
    assert patterns(conn, tenant) == [], "the only trace of it is no success any more"


# --- patterns -----------------------------------------------------------------------------------


def test_a_pattern_is_what_was_asked_and_how_it_was_done(conn: Connection) -> None:
    tenant = uuid4()
    id = trace_id("a")
    call = {"type": "endpoint_call", "trace_id": id, "service": "search", "method": "GET"}
    ingest(
        conn,
        tenant,
        [
            *asked(
                "a",
                " Please refund order 12 \n",
                tools=["find", "find", "refund", "find"],
                agent_id="helpdesk",
                route="/chat",
                intent={"name": "refund"},
                tags=["Shop"],
                channel="web",
                duration_ms=100,
                cost_usd="0.1",
                input_tokens=100,
                output_tokens=20,
            ),
            {
                **HOOK,
                "trace_id": id,
                "span_id": f"{11:016x}",
                "tool_name": "find",
                "intelligence_functions": ["lookup"],
            },
            *(
                {
                    **call,
                    "span_id": f"{number:016x}",
                    "path": f"/orders/{number}?q=1",
                    "started_at": at(number),
                    "duration_ms": number,
                }
                for number in (21, 22)
            ),
            {
                "type": "routing_decision",
                "trace_id": id,
                "span_id": f"{31:016x}",
                "selected_agent": "helpdesk",
                "reason": "it is about money",
                "total_confidence": 0.75,
                "attributes": {"strategy": "semantic"},
                "started_at": at(),
            },
        ],
    )
    assert learn(conn, tenant) == 1
    (pattern,) = patterns(conn, tenant)
    assert {name: pattern[name] for name in ("prompt", "intent", "agent_id", "route")} == {
        "prompt": "Please refund order 12",
        "intent": "refund",
        "agent_id": "helpdesk",
        "route": "/chat",
    }
    assert pattern["keywords"] == ["refund", "shop", "please", "order"]
    assert pattern["tool_sequence"] == ["find", "refund", "find"]
    assert pattern["hook_sequence"] == [{"hook_type": "pre_tool_use", "tool_name": "find"}]
    assert pattern["endpoint_sequence"] == [
        {"service": "search", "method": "GET", "path": "/orders/{id}", "duration_ms": 21}
    ]
    assert pattern["intelligence_functions"] == ["lookup"]
    assert pattern["routing"]["strategy"] == "semantic"
    assert pattern["context"] == {"channel": "web"}
    assert pattern["performance"] == {
        "n": 1,
        "p50_ms": 100,
        "p95_ms": 100,
        "tokens": 120,
        "cost_usd": "0.1",
    }
    assert (pattern["trace_count"], pattern["success_count"]) == (1, 1)
    assert pattern["source_trace_ids"] == [id]


def test_failures_count_whenever_they_come_and_alone_make_no_pattern(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it", "error") + asked("2", "other", "timeout"))
    learn(conn, tenant)
    assert patterns(conn, tenant) == []
    ingest(conn, tenant, asked("3", "do  IT"))
    learn(conn, tenant)
    ingest(conn, tenant, asked("4", "Do it", "error"))
    learn(conn, tenant)
    (pattern,) = patterns(conn, tenant)
    assert (pattern["trace_count"], pattern["success_count"]) == (3, 1)


TRACES = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["Refund it", "Track it"]),
            "status": st.sampled_from(["ok", "ok", "error"]),
            "tools": st.lists(st.sampled_from(["find", "pay"]), max_size=2),
            "failing": st.sampled_from([None, "no such order 7", "no such order 8", "timed out"]),
            "nested": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        }
    ),
    min_size=1,
    max_size=4,
)


def stories(drawn: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of such traces, some of which are reported as running first."""
    found = []
    for number, each in enumerate(drawn):
        when = NOON + timedelta(seconds=number)
        id = trace_id(f"t{number}", when)
        common: dict[str, Any] = {"trace_id": id, "started_at": when.isoformat()}
        end = {"ended_at": (when + timedelta(seconds=number + 1)).isoformat()}
        found.append({"type": "trace", **common, "status": "running", "agent_id": "root"})
        found.append(
            {
                "type": "trace",
                **common,
                **end,
                "agent_id": "root",
                "prompt": each["prompt"],
                "status": each["status"],
                "cost_usd": "0.1",
            }
        )
        for place, tool in enumerate(each["tools"]):
            started = (when + timedelta(milliseconds=place)).isoformat()
            found.append(
                {
                    "type": "span",
                    "trace_id": id,
                    "span_id": f"{place + 1:016x}",
                    "operation_type": "tool",
                    "tool_name": tool,
                    "started_at": started,
                    "ended_at": started,
                }
            )
        if each["failing"]:
            found.append(
                {
                    "type": "span",
                    **common,
                    **end,
                    "span_id": f"{99:016x}",
                    "operation_type": "llm",
                    "request_model": "m",
                    "status": "error",
                    "status_message": each["failing"],
                }
            )
        parent = id
        for place, agent in enumerate(each["nested"]):
            started_at = when + timedelta(milliseconds=place + 10)
            nested = trace_id(f"n{number}{place}", started_at)
            found.append(
                {
                    "type": "trace",
                    "trace_id": nested,
                    "parent_trace_id": parent,
                    "started_at": started_at.isoformat(),
                    "duration_ms": 1,
                    "agent_id": agent,
                }
            )
            parent = nested
    return found


@given(data=st.data(), drawn=TRACES)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=set(Phase) - {Phase.shrink, Phase.explain},  # it would take minutes
)
def test_what_is_learned_depends_on_the_traces_alone(
    conn: Connection, data: st.DataObject, drawn: list[Mapping[str, Any]]
) -> None:
    """Not on their order, on how often they came, nor on when and how many a time was learned."""
    records = stories(drawn)
    at_once, piecemeal = uuid4(), uuid4()
    ingest(conn, at_once, records)
    learn_all(conn, at_once)

    rest = data.draw(st.permutations(records + records[: len(records) // 2]))
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        ingest(conn, piecemeal, rest[:size])
        rest = rest[size:]
        for subject in data.draw(st.lists(st.sampled_from(SUBJECTS), max_size=2)):
            conn.execute(
                f"select tracedb.{subject}(%s, %s, null, %s)".encode(),
                [
                    data.draw(st.sampled_from([None, NOON - timedelta(days=1)])),
                    data.draw(st.integers(1, 5)),
                    piecemeal,
                ],
            )
    learn_all(conn, piecemeal, data.draw(st.integers(1, 5)))
    assert learned(conn, piecemeal) == learned(conn, at_once)

    learn_all(conn, piecemeal)
    for subject in SUBJECTS:
        conn.execute(
            f"select tracedb.{subject}(%s, tenant_id => %s)".encode(),
            [NOON - timedelta(days=1), piecemeal],
        )
    assert learned(conn, piecemeal) == learned(conn, at_once), "learning again changed it"


def test_what_was_learned_outlives_the_traces(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it") + asked("2", "Do it", "error"))
    learn_all(conn, tenant)
    for table in ("execution_traces", "trace_payloads"):
        conn.execute(f"delete from tracedb.{table} where tenant_id = %s".encode(), [tenant])
    ids = [trace_id("1"), trace_id("2")]
    conn.execute("select tracedb.note_changes(%s::uuid[], %s)", [ids, tenant])
    before = patterns(conn, tenant)
    learn_all(conn, tenant)
    assert patterns(conn, tenant) == before
    assert before[0]["trace_count"] == 2
    conn.execute("delete from tracedb.learned_traces where tenant_id = %s", [tenant])
    ingest(conn, tenant, asked("3", "Do it"))
    learn(conn, tenant)
    assert patterns(conn, tenant)[0]["trace_count"] == 3


def test_learning_goes_on_over_what_was_saved_by_hand(conn: Connection) -> None:
    """Which may say that there were fewer traces than are taken back now."""
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it") + asked("2", "Do it"))
    learn(conn, tenant)
    saved = json.dumps({"prompt": "Do it", "keywords": ["k"], "trace_count": 1})
    conn.execute("select tracedb.save_pattern(%s, %s)", [saved, tenant])
    ingest(conn, tenant, asked("1", "Do it", "error") + asked("2", "Do that"))
    learn(conn, tenant)
    ingest(conn, tenant, asked("3", "Do it"))
    learn(conn, tenant)
    found = {p["prompt"]: (p["trace_count"], p["success_count"]) for p in patterns(conn, tenant)}
    assert found == {"Do it": (1, 1), "Do that": (1, 1)}


def test_what_was_retired_by_hand_is_not_learned_as_new(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it"))
    learn(conn, tenant)
    (before,) = patterns(conn, tenant)
    conn.execute("select tracedb.retire_pattern(%s, 'wrong', %s)", [before["pattern_id"], tenant])
    for key, status in (("1", "error"), ("2", "ok")):
        ingest(conn, tenant, asked(key, "Do it", status))
        learn(conn, tenant)
    (found,) = patterns(conn, tenant)
    assert found["retired_reason"] == "wrong"
    assert (found["trace_count"], found["success_count"]) == (2, 1)


def test_a_pattern_keeps_the_traces_whose_prompts_have_expired(conn: Connection) -> None:
    """Retention may remove texts before the traces, which are written again or looked at again."""
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it", name="chat") + asked("2", "Do it", name="chat"))
    learn(conn, tenant)
    (before,) = patterns(conn, tenant)
    conn.execute("delete from tracedb.trace_payloads where tenant_id = %s", [tenant])
    ingest(conn, tenant, [trace(trace_id=trace_id("1"), context={"user_confirmed": False})])
    conn.execute(
        "select tracedb.set_pattern_settings(%s, %s)", ['{"success_threshold": 0.98}', tenant]
    )
    for since in (None, NOON - timedelta(days=1)):
        conn.execute("select tracedb.extract_patterns(%s, tenant_id => %s)", [since, tenant])
    (found,) = patterns(conn, tenant)
    assert found["pattern_id"] == before["pattern_id"]
    assert (found["prompt"], found["trace_count"], found["success_count"]) == ("Do it", 2, 1)


def test_no_change_is_passed_over_whatever_the_order_of_ids(conn: Connection) -> None:
    tenant = uuid4()
    for seconds in (5, 3, 4, 1, 2):
        id = trace_id(f"{seconds}", NOON + timedelta(seconds=seconds))
        ingest(conn, tenant, [trace(trace_id=id, prompt="Do it", status="ok", ended_at=at(9000))])
    learn(conn, tenant, max_traces=2)
    assert patterns(conn, tenant)[0]["trace_count"] == 5
    reached = value(
        conn, "select cursor from tracedb.learning_progress where tenant_id = %s", tenant
    )
    last = value(
        conn,
        "select (array_agg(next_cursor))[count(*)]"
        " from (select next_cursor from tracedb.changes_since(tenant_id => %s)) as c",
        tenant,
    )
    assert reached == last


def test_absurd_figures_stop_nothing(conn: Connection) -> None:
    tenant, most = uuid4(), 2**63 - 1
    ingest(conn, tenant, asked("1", "Do it", input_tokens=most, output_tokens=most))
    learn_all(conn, tenant)
    assert patterns(conn, tenant)[0]["performance"]["tokens"] == most


def test_tokens_that_nobody_reported_are_not_known(conn: Connection) -> None:
    tenant = uuid4()
    requests = [
        trace(status="ok", agent_id="a", prompt="p", duration_ms=10),
        trace(
            trace_id=trace_id("nested"),
            status="ok",
            agent_id="b",
            parent_trace_id=trace_id(),
            duration_ms=5,
        ),
    ]
    ingest(conn, tenant, requests)

    learn_all(conn, tenant)

    tokens = "select subject, tokens from tracedb.learned_traces where tenant_id = %s order by 1"
    assert conn.execute(tokens, [tenant]).fetchall() == [("chain", None), ("pattern", None)]


def test_a_cursor_of_another_server_counts_nothing_twice(conn: Connection) -> None:
    tenant = uuid4()
    ingest(conn, tenant, asked("1", "Do it"))
    learn(conn, tenant)
    conn.execute(
        "update tracedb.learning_progress set cursor = '1/1/' || %s || '/0' where tenant_id = %s",
        [str(uuid4()), tenant],
    )
    ingest(conn, tenant, asked("2", "Do it"))
    learn(conn, tenant)
    assert patterns(conn, tenant)[0]["trace_count"] == 2


def test_one_learns_for_a_tenant_at_a_time_and_only_the_maintainer(
    conn: Connection, database: str
) -> None:
    tenant, other = uuid4(), uuid4()
    for each in (tenant, other):
        ingest(conn, each, asked("1", "Do it"))
    with psycopg.connect(database) as busy:
        busy.execute("select tracedb.extract_patterns(tenant_id => %s)", [tenant])
        query = "select examined from tracedb.extract_patterns(tenant_id => %s)"
        assert conn.execute(query, [tenant]).fetchall() == []
        with as_role(conn, "tracedb_maintainer"):
            assert conn.execute(query, [other]).fetchone() == (1,)
    with as_role(conn, "tracedb_app", tenant), pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(query, [tenant])


# --- chains and errors --------------------------------------------------------------------------


def test_a_chain_is_the_agents_in_the_order_of_their_start(conn: Connection) -> None:
    tenant = uuid4()

    def run(key: str, status: str, *nested: tuple[str, str, int]) -> list[dict[str, Any]]:
        ids = {"": trace_id(key)}
        made = [trace(trace_id=ids[""], agent_id="lead", status=status, duration_ms=100)]
        for name, parent, start in nested:
            ids[name] = trace_id(f"{key}/{name}")
            made.append(
                trace(
                    trace_id=ids[name],
                    parent_trace_id=ids[parent],
                    agent_id=name.rstrip("'"),
                    started_at=at(start),
                    duration_ms=5,
                    cost_usd="0.25",
                )
            )
        return made

    # a deeper one that starts earlier comes first; the same agent again in a row is one step
    ingest(conn, tenant, run("1", "ok", ("b", "", 3), ("a", "b", 1), ("b'", "", 4)))
    ingest(conn, tenant, run("2", "error", ("a", "", 1), ("b", "", 2)))
    ingest(conn, tenant, run("3", "ok"))
    learn(conn, tenant, "learn_chains")
    (chain,) = conn.execute(
        "select agent_sequence, trace_count, success_count, success_rate, p50_duration_ms,"
        " mean_cost_usd from tracedb.agent_chains where tenant_id = %s",
        [tenant],
    ).fetchall()
    assert chain[:5] == (["lead", "a", "b"], 2, 1, 0.5, 100)
    assert str(chain[5]) == "0.5", "what b reports includes a"


def errors(conn: Connection, tenant: UUID) -> list[tuple[Any, ...]]:
    return conn.execute(
        "select template, operation, error_type, agent_id, tool, occurrences, trace_count"
        " from tracedb.error_patterns where tenant_id = %s order by 1",
        [tenant],
    ).fetchall()


def test_errors_are_counted_by_what_they_say_and_where(conn: Connection) -> None:
    tenant = uuid4()
    for key, number in (("1", 17), ("2", 4711)):
        failed = [
            span(
                place,
                trace_id=trace_id(key),
                operation_type="tool",
                tool_name="pay",
                status="error",
                error_type="Declined",
                status_message=f"card {number}{place} of 'Ann' declined",
            )
            for place in range(1, 3)
        ]
        ingest(conn, tenant, [*asked(key, "?", agent_id="shop"), *failed])
    call = {"type": "endpoint_call", "trace_id": trace_id("1"), "span_id": f"{9:016x}"}
    call |= {"service": "bank", "method": "PUT", "path": "/cards/123", "started_at": at()}
    ingest(conn, tenant, [{**call, "status": "error", "status_code": 503}])
    learn(conn, tenant, "learn_errors")
    assert errors(conn, tenant) == [
        ("", "endpoint", "HTTP 503", "shop", "bank PUT /cards/{id}", 1, 1),
        ("card <n> of <text> declined", "tool", "Declined", "shop", "pay", 4, 2),
    ]
    fingerprint = value(conn, "select fingerprint from tracedb.error_patterns where tool = 'pay'")
    with as_role(conn, "tracedb_app", tenant):
        said = "select tracedb.set_error_fix(%s, %s)"
        assert value(conn, said, fingerprint, "Ask for another card.") is True
        assert value(conn, said, uuid4(), "?") is False
    # the call has worked after all, as a later report says; what somebody wrote down stays
    ingest(conn, tenant, [{**call, "status": "ok", "ended_at": at(9), "status_code": 200}])
    learn(conn, tenant, "learn_errors")
    assert len(errors(conn, tenant)) == 1
    fix = value(conn, "select known_fix from tracedb.error_patterns where tenant_id = %s", tenant)
    assert fix == "Ask for another card."


FILLERS: dict[str, st.SearchStrategy[str]] = {
    "<n>": st.integers(0, 10**9).map(str) | st.decimals(0, 999, places=2).map(str),
    "<id>": st.uuids().map(str)
    | st.integers(10**6, 10**12).map(lambda n: f"req_{n}")
    | st.integers(2**31, 2**60).map(lambda n: f"0x{n:x}"),
    "<path>": st.sampled_from(
        ["/usr/lib/x.py", "C:\\temp\\a b.txt"[:9], "~/notes/a.md", "src/a.py"]
    ),
    "<text>": st.sampled_from(["'a b'", '"x: 1"', "`tmp`", "''"]),
    "<url>": st.sampled_from(["https://a.example/b?c=1", "postgresql://h:5432/db"]),
    "<email>": st.sampled_from(["a@b.example", "ann.lee+x@mail.example.org"]),
    "<time>": st.datetimes().map(lambda t: t.replace(year=2026).isoformat(" ", "seconds"))
    | st.dates().map(str),
}
WORDS = st.sampled_from(["no", "such", "order", "can't", "reach", "of", "user:", "(refused)"])


@given(
    words=st.lists(WORDS, min_size=1, max_size=6),
    fillers=st.lists(st.sampled_from(sorted(FILLERS)), max_size=4),
    data=st.data(),
    noise=st.text(max_size=60),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_template_keeps_the_words_and_folds_the_rest(
    conn: Connection, words: list[str], fillers: list[str], data: st.DataObject, noise: str
) -> None:
    parts = []
    for place, word in enumerate(words):
        parts.append(word)
        if place < len(fillers):
            # a word before the next, so that no two numbers meet
            parts += [fillers[place], "in"]
    message = " ".join(
        data.draw(FILLERS[part]) if part in FILLERS else part for part in parts
    ).replace(" ", data.draw(st.sampled_from([" ", "  ", "\n"])))
    template = "select tracedb.error_template(%s)"
    assert value(conn, template, message) == " ".join(parts)

    folded = value(conn, template, noise.replace("\0", ""))
    assert not any(character in "0123456789" for character in folded)
    assert len(folded) <= 500


# --- real runs ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.exists(), reason="needs the shared benchmark files")
def test_patterns_of_real_runs(database: str) -> None:
    """Of 200 runs of an airline's agent, the 84 that succeeded; 4 had an error left in the end."""
    file = tau2.read(REAL / "tau" / "airline_gpt-4o.json.gz")
    with tracedb.connect(database) as db, db.connection() as conn:
        tenant = db.tenant(db.ensure_tenant("tau"))
        runs.store(tenant, file)
        learn_all(conn, tenant.tenant_id)
        found = patterns(conn, tenant.tenant_id)
        assert sum(pattern["success_count"] for pattern in found) == 80
        assert all(pattern["tool_sequence"] or pattern["prompt"] for pattern in found)
        assert (
            value(
                conn,
                "select sum(trace_count) from tracedb.error_patterns where operation = 'trace'",
            )
            == 116
        )
        top = conn.execute(
            "select template, tool, occurrences from tracedb.error_patterns"
            " where operation = 'tool' order by occurrences desc limit 1"
        ).fetchone()
        assert top == (
            "Error: payment amount does not add up, total price is <n>, but paid <n>",
            "book_reservation",
            24,
        )
