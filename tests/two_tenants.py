"""Two tenants that use the same ids, with rows of every record type in every kind of partition."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

A = UUID("0000000a-0000-4000-8000-000000000000")
B = UUID("0000000b-0000-4000-8000-000000000000")


def uuid7(at: datetime, number: int) -> UUID:
    """The id of a trace that started at that time."""
    return UUID(int=int(at.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | number)


NOW = datetime.now(UTC).replace(microsecond=0)
SHARED = uuid7(NOW, 1)
ONLY = {A: uuid7(NOW, 10), B: uuid7(NOW, 11)}
FOREIGN = {A: "only-a", B: "only-b"}
FRESH = NOW - timedelta(days=40)  # its partitions are made by fill()
WRITER = uuid7(NOW, 20)  # numbers records of both
STRAY = datetime(2150, 1, 1, tzinfo=UTC)  # has no partition but the default one


def records(tenant: UUID, at: datetime, name: dict[str, str], number: int) -> list[dict[str, Any]]:
    """A failed trace with one part of every type, told by `name`: a trace_id or external_id."""
    whose = "A" if tenant == A else "B"
    common = {**name, "started_at": at.isoformat(), "status": "error", "error_type": f"of {whose}"}
    part = {**common, "duration_ms": 5}
    span_id = f"{number:016x}"
    return [
        {
            "type": "trace",
            **common,
            "duration_ms": 9,
            "name": f"of {whose}",
            "agent_id": f"agent of {whose}",
            "user_id": f"user of {whose}",
            "route": f"route of {whose}",
            "research_triggered": True,
            "prompt": f"said by {whose}",
        },
        {"type": "routing_decision", **part, "span_id": span_id, "selected_agent": whose},
        {"type": "hook", **part, "span_id": f"1{span_id[1:]}", "hook_type": whose},
        {"type": "endpoint_call", **part, "span_id": f"2{span_id[1:]}", "service": whose},
        {
            "type": "span",
            **common,
            "span_id": f"3{span_id[1:]}",
            "operation_type": "llm",
            "request_model": whose,
            "cost_usd": 1,
        },
        {
            "type": "payload",
            **name,
            "recorded_at": at.isoformat(),
            "span_id": span_id,
            "kind": "input",
            "content": whose,
        },
    ]


def events(tenant: UUID, at: datetime, number: int) -> list[dict[str, Any]]:
    """An event of every type, with the same key for both tenants."""
    whose = "A" if tenant == A else "B"
    event = {"event_key": f"key-{number}", "occurred_at": at.isoformat(), "user_id": whose}
    return [
        {"type": "platform_event", **event, "event_type": whose, "event_category": whose},
        {"type": "cost_event", **event, "cost_type": "llm", "service": whose, "cost_usd": 1},
        {"type": "agent_execution", **event, "agent_id": whose, "success": True},
    ]


def all_records(tenant: UUID) -> list[dict[str, Any]]:
    """What the tenant stores: shared ids in three kinds of partition, and some of its own."""
    named = [
        (NOW, {"trace_id": str(SHARED)}),
        (NOW, {"external_id": "shared"}),
        (FRESH, {"trace_id": str(uuid7(FRESH, 2))}),
        (STRAY, {"trace_id": str(uuid7(STRAY, 3))}),
        (NOW, {"trace_id": str(ONLY[tenant])}),
        (NOW, {"external_id": FOREIGN[tenant]}),
    ]
    return [
        record
        for number, (at, name) in enumerate(named, start=1)
        for record in [*records(tenant, at, name, number), *events(tenant, at, number)]
    ]


def price(model: str, usd: int = 1) -> dict[str, Any]:
    """An entry for `tracedb.set_prices`."""
    return {
        "provider": "general",
        "model": model,
        "valid_from": FRESH.isoformat(),
        "source": "test",
        "tiers": [{"input_usd_per_mtok": usd, "output_usd_per_mtok": usd}],
    }


def fill(conn: psycopg.Connection[Any]) -> None:
    """Give both tenants rows in every table, in new, old and default partitions."""
    conn.execute("select count(*) from tracedb.ensure_partitions(since => %s)", [FRESH])
    conn.execute("select tracedb.set_prices(%s)", [json.dumps([price("general")])])
    for tenant, name in ((A, "a"), (B, "b")):
        conn.execute(
            "insert into tracedb.tenants (tenant_id, external_id, name) values (%s, %s, %s)",
            [tenant, name, name],
        )
        answer = conn.execute(
            "select tracedb.ingest(%s::json, %s)", [json.dumps(all_records(tenant)), tenant]
        ).fetchone()
        assert answer is not None
        assert answer[0]["rejected"] == []
        assert answer[0]["inserted"] == len(all_records(tenant))
        for writer in (WRITER, uuid7(NOW, 21 if tenant == A else 22)):
            conn.execute("select tracedb.touch_writer(%s, %s, 5, true, %s)", [writer, name, tenant])
            refused = {"type": "trace", "external_id": f"refused of {name}"}
            answer = conn.execute(
                "select tracedb.ingest_from(%s, %s, %s, %s)",
                [writer, [1, 3], json.dumps([all_records(tenant)[0], refused]), tenant],
            ).fetchone()
            assert answer is not None
            assert len(answer[0]["rejected"]) == 1
        _spend(conn, tenant)
        _learn(conn, tenant)
        _learn_from_traces(conn, tenant)
        _erase(conn, tenant)
    _retain(conn)
    conn.execute("select count(*) from tracedb.fold_usage()")
    conn.execute("select count(*) from tracedb.ensure_pattern_indexes()")
    for tenant in (A, B):  # what is not folded yet
        conn.execute(
            "select tracedb.ingest(%s::json, %s)", [json.dumps(all_records(tenant)[:1]), tenant]
        )


def _retain(conn: psycopg.Connection[Any]) -> None:
    """Rules of each tenant, and what retention would have written of it."""
    for tenant in (A, B):
        shared = {
            "archive_id": str(ONLY[tenant]),
            "tenant_id": str(tenant),
            "family": "traces",
            "table_name": "llm_spans",
            "from_time": FRESH.isoformat(),
            "to_time": NOW.isoformat(),
            "row_count": 1,
            "row_hash": 1,
            "uri": "file:///archive/traces/llm_spans/x",
            "format": "csv",
            "file_bytes": 1,
            "sha256": "0" * 64,
            "schema_version": "x",
            "columns": [],
        }
        contents = [{**shared, "first_id": str(SHARED), "last_id": str(SHARED)}]
        for statement, arguments in (
            (
                "select tracedb.set_retention('execution_traces', '9999 days', tenant_id => %s)",
                [tenant],
            ),
            ("select tracedb.record_archive(%s, %s)", [json.dumps(shared), json.dumps(contents)]),
            (
                "insert into tracedb.retention_receipts (tenant_id, action, family, table_name,"
                " from_time, to_time, row_count, reason)"
                " values (%s, 'deleted', 'traces', 'llm_spans', %s, %s, 1, 'test')",
                [tenant, FRESH, NOW],
            ),
            (
                "insert into tracedb.change_horizons (tenant_id, purged_until) values (%s, '3')",
                [tenant],
            ),
            (
                "insert into tracedb.settled_costs (tenant_id, entry_id) values (%s, %s), (%s, %s)",
                [tenant, SHARED, tenant, ONLY[tenant]],
            ),
        ):
            conn.execute(statement, arguments)
    conn.execute("insert into tracedb.maintenance_runs (job) values ('test')")


def _spend(conn: psycopg.Connection[Any], tenant: UUID) -> None:
    """Calls without a cost, one of which gets its price afterwards."""
    whose = "A" if tenant == A else "B"
    own = price(f"own of {whose}", 1 if tenant == A else 2)
    common = {"type": "span", "operation_type": "llm", "provider": "general", "duration_us": 5}
    calls = [
        {
            **common,
            "trace_id": str(trace_id),
            "span_id": f"{number:016x}",
            "started_at": at.isoformat(),
            "request_model": model,
            "input_tokens": 1000,
            "output_tokens": 100,
        }
        for at, trace_id in (
            (NOW, SHARED),
            (NOW, ONLY[tenant]),
            (FRESH, uuid7(FRESH, 2)),
            (STRAY, uuid7(STRAY, 3)),
        )
        for number, model in ((0x501, "unknown"), (0x502, own["model"]))
    ]
    for statement, argument in (
        ("select tracedb.ingest(%s::json, %s)", calls),
        ("select tracedb.set_prices(%s, %s)", [own, price("own", 1 if tenant == A else 2)]),
    ):
        conn.execute(statement, [json.dumps(argument), tenant])
    answer = conn.execute(
        "select tracedb.reprice(dry_run => false, tenant_id => %s)", [tenant]
    ).fetchone()
    assert answer is not None
    assert answer[0]["adjusted"] == 4
    for name in ("shared", f"of {whose}"):
        conn.execute("select tracedb.set_budget(%s, 'month', 0.001, 1000, %s)", [name, tenant])
    conn.execute("select tracedb.check_budgets(tenant_id => %s)", [tenant])
    for reservation in (SHARED, ONLY[tenant]):
        conn.execute("select tracedb.reserve_budget(%s, 1, tenant_id => %s)", [reservation, tenant])


def _learn(conn: psycopg.Connection[Any], tenant: UUID) -> None:
    """Patterns, one with an id that both tenants have, with embeddings and uses."""
    whose = "A" if tenant == A else "B"
    for pattern_id in (SHARED, ONLY[tenant]):
        conn.execute(
            "insert into tracedb.success_patterns (tenant_id, pattern_id, signature, prompt,"
            " intent, agent_id, tool_sequence, trace_count, success_count, last_seen_at)"
            " values (%s, %s, %s, %s, %s, %s, '{search}', 4, 3, %s)",
            [
                tenant,
                pattern_id,
                pattern_id,
                f"said by {whose}",
                f"of {whose}",
                f"agent of {whose}",
                NOW,
            ],
        )
        for model in ("shared", f"of {whose}"):
            conn.execute(
                "insert into tracedb.pattern_embeddings"
                " (tenant_id, model, pattern_id, dimension, content_hash, embedding)"
                " values (%s, %s, %s, 3, %s, %s)",
                [tenant, model, pattern_id, pattern_id, "[1,0,0]" if tenant == A else "[0,1,0]"],
            )
        for trace_id in (SHARED, uuid7(FRESH, 2), uuid7(STRAY, 3)):
            conn.execute(
                "insert into tracedb.pattern_usage_log"
                " (tenant_id, trace_id, pattern_id, used_at, success) values (%s, %s, %s, %s, %s)",
                [tenant, trace_id, pattern_id, NOW, tenant == A],
            )
    for text in ("said by A", "said by B"):  # both have both
        conn.execute("select tracedb.save_pattern(%s, %s)", [json.dumps({"prompt": text}), tenant])
    # so small a size that both have indexes of their own, and nothing is left to chance
    changes = {"explore_share": 0, "exact_search_limit": 0, "word_search_limit": 0}
    if tenant == B:
        changes["half_life_days"] = 10
    conn.execute("select tracedb.set_pattern_settings(%s, %s)", [json.dumps(changes), tenant])


def _learn_from_traces(conn: psycopg.Connection[Any], tenant: UUID) -> None:
    """What was learned from traces, how far, and what was given up."""
    whose = "A" if tenant == A else "B"
    for subject in ("extract_patterns", "learn_errors"):
        conn.execute(
            f"select tracedb.{subject}(%s, tenant_id => %s)".encode(),
            [FRESH - timedelta(days=1), tenant],
        )
    for chain_id in (SHARED, ONLY[tenant]):
        conn.execute(
            "insert into tracedb.agent_chaining_patterns (tenant_id, chain_id, agent_sequence,"
            " trace_count, success_count, first_seen_at, last_seen_at)"
            " values (%s, %s, %s, 2, 1, %s, %s)",
            [tenant, chain_id, [f"agent of {whose}", "other"], NOW, NOW],
        )
        conn.execute(
            "insert into tracedb.pattern_prunings (tenant_id, pruning_id, pattern_id, reason, uses,"
            " successes, failures, success_rate_high, last_used_at)"
            " values (%s, %s, %s, %s, 5, 0, 5, 0.1, %s)",
            [tenant, chain_id, chain_id, f"of {whose}", NOW],
        )
    for subject in ("pattern",) if tenant == A else ("pattern", "chain"):
        conn.execute(
            "insert into tracedb.learning_progress (tenant_id, subject, cursor)"
            " values (%s, %s, %s)",
            [tenant, subject, whose],
        )


def _erase(conn: psycopg.Connection[Any], tenant: UUID) -> None:
    """Somebody who was erased, with a trace."""
    conn.execute(
        "insert into tracedb.erased_traces (tenant_id, trace_id, erasure_id)"
        " select %(tenant)s, %(trace)s, tracedb.begin_erasure('gone', true, %(tenant)s)",
        {"tenant": tenant, "trace": uuid7(NOW, 30 if tenant == A else 31)},
    )
