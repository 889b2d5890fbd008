"""Reading one trace whole: its tree, its document, its summary; and what dashboards show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import class_row, dict_row

from records import at, ingest, one_of_each, span, trace, trace_id
from servers import as_role
from tracedb.rows import TreeNode

Conn = psycopg.Connection[Any]


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


def tree(conn: Conn, tenant: UUID, key: str = "trace") -> list[TreeNode]:
    cursor = conn.cursor(row_factory=class_row(TreeNode))
    query = "select * from tracedb.trace_tree(%s, %s)"
    return cursor.execute(query, [trace_id(key), tenant]).fetchall()


def step(number: int, start: int, end: int | None, parent: int | None = None) -> dict[str, Any]:
    return span(
        number,
        name=f"s{number}",
        started_at=at(start),
        ended_at=None if end is None else at(end),
        parent_span_id=None if parent is None else f"{parent:016x}",
    )


def view(conn: Conn, name: str, tenant: UUID) -> list[dict[str, Any]]:
    query = psycopg.sql.SQL("select * from tracedb.{} where tenant_id = %s").format(
        psycopg.sql.Identifier(name)
    )
    return conn.cursor(row_factory=dict_row).execute(query, [tenant]).fetchall()


def test_parts_and_nested_executions_form_one_tree(conn: Conn, tenant: UUID) -> None:
    nested = {"trace_id": trace_id("nested")}
    ingest(
        conn,
        tenant,
        [
            trace(ended_at=at(1200), name="request"),
            step(1, 0, 1000),
            step(2, 100, 400, parent=1),
            step(3, 300, 700, parent=1),
            step(4, 750, 900, parent=1),
            trace(
                parent_trace_id=trace_id(),
                parent_span_id=f"{3:016x}",
                started_at=at(310),
                ended_at=at(650),
                name="nested",
            )
            | nested,
            {
                "type": "hook",
                "span_id": f"{1:016x}",
                "hook_type": "pre_tool_use",
                "name": "hook",
                "started_at": at(320),
                "ended_at": at(330),
            }
            | nested,
        ],
    )

    nodes = tree(conn, tenant)

    shown = [(n.depth, n.name, n.duration_us, n.self_us, n.on_critical_path) for n in nodes]
    assert shown == [
        (0, "request", 1_200_000, 200_000, True),
        (1, "s1", 1_000_000, 250_000, True),
        (2, "s2", 300_000, 300_000, False),
        (2, "s3", 400_000, 60_000, True),
        (3, "nested", 340_000, 330_000, True),
        (4, "hook", 10_000, 10_000, True),
        (2, "s4", 150_000, 150_000, True),
    ]
    assert [n.node_no for n in nodes] == list(range(1, 8))
    assert [n.parent_no for n in nodes] == [None, 1, 2, 2, 4, 5, 2]
    assert not any(n.is_orphan for n in nodes)
    assert tree(conn, tenant, "nested")[0].name == "nested", "a nested trace is a tree of its own"


def test_who_names_no_known_parent_hangs_from_the_trace_as_an_orphan(
    conn: Conn, tenant: UUID
) -> None:
    circle = [step(6, 10, 20, parent=7), step(7, 30, 40, parent=8), step(8, 35, 38, parent=6)]
    ingest(conn, tenant, [step(5, 1, 2, parent=99), *circle, step(9, 50, 60, parent=9)])

    nodes = {n.name: n for n in tree(conn, tenant)}

    assert nodes["s5"].is_orphan
    assert (nodes["s5"].depth, nodes["s9"].depth) == (1, 1)
    assert nodes["s9"].is_orphan
    assert len(nodes) == 6, "a circle of spans is cut, and none of it lost"
    assert sum(nodes[name].is_orphan for name in ("s6", "s7", "s8")) == 1


def test_what_still_runs_has_no_duration(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [trace(), step(1, 0, None), step(2, 5, 50, parent=1)])

    root, running, done = tree(conn, tenant)

    assert (root.duration_us, running.duration_us, running.self_us) == (None, None, None)
    assert done.duration_us == 45_000
    assert done.on_critical_path


def test_an_unknown_trace_has_no_nodes_and_no_document(conn: Conn, tenant: UUID) -> None:
    assert tree(conn, tenant) == []
    assert conn.execute("select tracedb.get_trace(%s, %s)", [trace_id(), tenant]).fetchone() == (
        None,
    )


def naive_self_time(node: dict[str, Any], children: list[dict[str, Any]]) -> int:
    covered = {
        moment for c in children for moment in range(max(c["s"], node["s"]), min(c["e"], node["e"]))
    }
    return int(node["e"] - node["s"] - len(covered)) * 1000


def test_the_tree_holds_every_node_once_and_times_add_up(conn: Conn) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40), st.integers(0, 40)), max_size=12)
    )
    def holds(raw: list[tuple[int, int, int]]) -> None:
        tenant = uuid4()
        spans = [
            {"no": no, "parent": parent, "s": min(a, b), "e": max(a, b)}
            for no, (parent, a, b) in enumerate(raw, start=1)
        ]
        ingest(
            conn,
            tenant,
            [trace(ended_at=at(40))]
            + [step(s["no"], s["s"], s["e"], parent=s["parent"] or None) for s in spans],
        )

        nodes = tree(conn, tenant)

        assert sorted(str(n.name) for n in nodes[1:]) == sorted(f"s{s['no']}" for s in spans)
        by_no = {n.node_no: n for n in nodes}
        times = {f"s{s['no']}": s for s in spans} | {None: {"s": 0, "e": 40}}
        for node in nodes:
            if node.parent_no is not None:
                assert node.depth == by_no[node.parent_no].depth + 1
                assert node.parent_no < node.node_no
            mine = times[node.name if node.span_id else None]
            children = [times[n.name] for n in nodes if n.parent_no == node.node_no]
            assert node.self_us == naive_self_time(mine, children)
            if node.on_critical_path and node.parent_no is not None:
                assert by_no[node.parent_no].on_critical_path
        # the nodes of the path, without what their children on the path took, fill the whole
        on_path = [n for n in nodes if n.on_critical_path]
        assert on_path[0].parent_no is None

    holds()


def test_ten_thousand_spans_in_a_chain_are_one_tree(conn: Conn, tenant: UUID) -> None:
    chain = [step(n, n, 20_000 - n, parent=n - 1 or None) for n in range(1, 10_001)]
    ingest(conn, tenant, [trace(ended_at=at(20_000)), *chain])

    nodes = tree(conn, tenant)

    assert [n.depth for n in nodes] == list(range(10_001))
    assert all(n.on_critical_path for n in nodes)


def test_the_document_has_all_of_a_trace(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [*one_of_each(), trace(parent_trace_id=trace_id()) | other("child")])

    row = conn.execute("select tracedb.get_trace(%s, %s)", [trace_id(), tenant]).fetchone()

    assert row is not None
    document = row[0]
    assert document["trace"]["agent_id"] == "bot"
    assert document["trace"]["cost_usd"] == 0.25
    assert "error_type" not in document["trace"], "what is null is left out"
    assert "tenant_id" not in document["trace"]
    assert document["nested_trace_ids"] == [trace_id("child")]
    assert document["spans"][0]["span_id"] == f"{1:016x}"
    assert document["routing_decisions"][0]["request_embedding"] == [0.5, 0.25]
    assert document["routing_decisions"][0]["candidates"] == [{"agent": "bot", "score": 0.9}]
    assert [hook["hook_type"] for hook in document["hooks"]] == ["pre_tool_use"]
    assert [call["service"] for call in document["endpoint_calls"]] == ["search"]
    texts = {(p["span_id"], p["kind"]): p["content"] for p in document["payloads"]}
    assert texts == {
        (None, "prompt"): "why?",
        (None, "response"): "so",
        (f"{1:016x}", "input"): '{"messages": [1]}',
        (f"{1:016x}", "output"): "because",
    }


def other(key: str) -> dict[str, Any]:
    return {"trace_id": trace_id(key)}


def test_nulls_inside_documents_stay(conn: Conn, tenant: UUID) -> None:
    ingest(conn, tenant, [trace(context={"a": None, "b": {"c": None}})])

    row = conn.execute("select tracedb.get_trace(%s, %s)", [trace_id(), tenant]).fetchone()

    assert row is not None
    assert row[0]["trace"]["context"] == {"a": None, "b": {"c": None}}


def test_the_summary_counts_reported_figures_or_else_the_leaves(conn: Conn, tenant: UUID) -> None:
    leaves = [
        span(1, operation_type="agent", cost_usd="9", input_tokens=900),
        span(2, cost_usd="0.1", input_tokens=10, parent_span_id=f"{1:016x}"),
        span(3, operation_type="embedding", cost_usd="0.02", input_tokens=5, status="error"),
        span(4, operation_type="tool", cost_usd="7"),
    ]
    ingest(
        conn,
        tenant,
        [
            *leaves,
            trace(cost_usd="0.5") | other("reported"),
            *({**leaf, **other("reported")} for leaf in leaves),
            trace() | other("unpriced"),
            span(1, cost_usd=None) | other("unpriced"),
            span(1, cost_usd="0.3") | other("partly"),
            span(2, cost_usd=None) | other("partly"),
            trace() | other("empty"),
        ],
    )

    rows = {str(row["trace_id"]): row for row in view(conn, "trace_summary", tenant)}

    summed, reported = rows[trace_id()], rows[trace_id("reported")]
    assert (summed["cost_usd"], summed["input_tokens"]) == (Decimal("0.12"), 15)
    assert (summed["span_count"], summed["error_count"], summed["llm_calls"]) == (4, 1, 2)
    assert (reported["cost_usd"], reported["input_tokens"]) == (Decimal("0.5"), 15)
    assert rows[trace_id("unpriced")]["cost_usd"] is None, "unknown is not 0"
    assert rows[trace_id("empty")]["cost_usd"] is None
    assert rows[trace_id("partly")]["cost_usd"] == Decimal("0.3")
    assert [row["unpriced_count"] for row in (summed, reported, rows[trace_id("partly")])] == [
        0,
        0,
        1,
    ], "a sum that lacks something says so"
    assert rows[trace_id("empty")]["root_trace_id"] == UUID(trace_id("empty"))


def test_views_agree_with_what_was_recorded(conn: Conn, tenant: UUID) -> None:
    day = datetime.now(UTC) - timedelta(hours=3)

    def when(milliseconds: int) -> str:
        return (day + timedelta(milliseconds=milliseconds)).isoformat()

    records: list[dict[str, Any]] = []
    for number in range(1, 21):
        ids = {"trace_id": trace_id(f"v{number}", day)}
        failed = number > 18
        records += [
            trace(
                started_at=when(0),
                ended_at=when(number * 100),
                agent_id="bot",
                user_id=f"u{number % 4}",
                status="error" if failed else "ok",
                error_type="Boom" if failed else None,
                error_message=f"boom {number}" if failed else None,
                cost_usd="0.1" if number > 1 else None,
            )
            | ids,
            {
                "type": "hook",
                "span_id": f"{1:016x}",
                "hook_type": "pre_tool_use",
                "name": "guard",
                "outcome": "blocked" if number == 1 else "allowed",
                "started_at": when(0),
                "ended_at": when(number),
            }
            | ids,
            {
                "type": "endpoint_call",
                "span_id": f"{2:016x}",
                "service": "search",
                "method": "GET",
                "path": "/q",
                "status_code": 503 if number == 5 else 404 if number == 6 else 200,
                "status": "error" if number in (5, 6) else "ok",
                "retries": 2 if number == 5 else 0,
                "started_at": when(0),
                "ended_at": when(10),
            }
            | ids,
        ]
    ingest(conn, tenant, records)

    with as_role(conn, "tracedb_reader", tenant):
        (agent,) = view(conn, "agent_performance", tenant)
        (hook,) = view(conn, "hook_performance_summary", tenant)
        (endpoint,) = view(conn, "endpoint_reliability", tenant)
        errors = {
            (row["node_type"], row["error_type"]): row
            for row in view(conn, "error_analysis", tenant)
        }
        (board,) = view(conn, "dashboard_summary", tenant)

    assert (agent["agent_id"], agent["trace_count"], agent["success_rate"]) == ("bot", 20, 0.9)
    assert (agent["mean_duration_ms"], agent["median_duration_ms"]) == (1050, 1050)
    assert agent["p95_duration_ms"] == pytest.approx(1905)
    assert (agent["cost_usd"], agent["unknown_cost_count"]) == (Decimal("1.9"), 1)
    assert (hook["execution_count"], hook["blocked_count"], hook["success_rate"]) == (20, 1, 1)
    assert (endpoint["call_count"], endpoint["success_rate"]) == (20, 0.9)
    assert (endpoint["client_error_count"], endpoint["server_error_count"]) == (1, 1)
    assert endpoint["retry_count"] == 2
    assert errors["trace", "Boom"]["error_count"] == 2
    assert errors["trace", "Boom"]["last_message"] in ("boom 19", "boom 20")
    assert errors["endpoint_call", "HTTP 503"]["trace_count"] == 1
    assert (board["trace_count_24h"], board["error_count_7d"]) == (20, 2)
    assert (board["cost_usd_7d"], board["user_count_7d"]) == (Decimal("1.9"), 4)
    assert board["unknown_cost_count_7d"] == 1


def test_the_dashboard_counts_nested_money_once(conn: Conn, tenant: UUID) -> None:
    hour = datetime.now(UTC) - timedelta(hours=1)

    def at_hour(key: str, **fields: Any) -> dict[str, Any]:
        return {
            "type": "trace",
            "trace_id": trace_id(key, hour),
            "started_at": hour.isoformat(),
            "duration_ms": 5,
            **fields,
        }

    def below(key: str, **fields: Any) -> dict[str, Any]:
        return {"parent_trace_id": trace_id(key, hour), **fields}

    def paid(key: str, cost: str | None) -> dict[str, Any]:
        return {**span(1, cost_usd=cost, started_at=hour.isoformat()), "ended_at": None} | {
            "trace_id": trace_id(key, hour)
        }

    ingest(
        conn,
        tenant,
        [
            at_hour("silent"),
            paid("silent", "1"),
            at_hour("below silent", **below("silent")),
            paid("below silent", "0.5"),
            at_hour("reporting", cost_usd="10", input_tokens=7),
            at_hour("below reporting", **below("reporting"), cost_usd="4", input_tokens=3),
            at_hour("deep", **below("below reporting")),
            paid("deep", "2"),
            at_hour("unpriced", **below("silent")),
            paid("unpriced", None),
        ],
    )

    (board,) = view(conn, "dashboard_summary", tenant)
    assert board["cost_usd_7d"] == Decimal("11.5")
    assert board["input_tokens_7d"] == 7
    assert (board["trace_count_7d"], board["unknown_cost_count_7d"]) == (2, 1)
