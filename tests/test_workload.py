"""The generated workload: reproducible, sound, and rich enough to show everything."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tracedb import workload
from tracedb.demo_tenants import TENANTS
from tracedb.records import as_json

AS_OF = datetime(2026, 3, 20, 15, 30, 12, 345678, tzinfo=UTC)

Made = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def made() -> Made:
    return [(tenant, dict(record)) for tenant, record in workload.generate(AS_OF)]


def of_type(made: Made, type: str) -> list[dict[str, Any]]:
    return [record for _, record in made if record["type"] == type]


def test_the_same_moment_and_seed_make_the_same_records(made: Made) -> None:
    assert list(workload.generate(AS_OF)) == made


def test_another_seed_makes_other_records(made: Made) -> None:
    ids = {record["trace_id"] for _, record in made}

    assert ids.isdisjoint(record["trace_id"] for _, record in workload.generate(AS_OF, seed=1))


def test_there_is_enough_of_everything(made: Made) -> None:
    types = Counter(record["type"] for _, record in made)
    traces = of_type(made, "trace")

    assert 1_400 <= types["trace"] <= 1_700
    assert 9_000 <= types.total() <= 12_000
    assert types.keys() == {"trace", "span", "hook", "endpoint_call", "routing_decision"}
    assert {tenant for tenant, _ in made} == {tenant.external_id for tenant in TENANTS}
    assert {trace.get("route") for trace in traces} == {"A", "B", "C", "D", None}
    assert {trace["status"] for trace in traces} == {"ok", "error", "timeout"}
    assert any("parent_trace_id" in trace for trace in traces)
    assert any(trace.get("research_triggered") for trace in traces)
    assert {hook["outcome"] for hook in of_type(made, "hook")} == {"allowed", "blocked", "modified"}
    assert any(call["retries"] for call in of_type(made, "endpoint_call"))
    assert {c["status"] for c in of_type(made, "endpoint_call")} == {"ok", "error", "timeout"}


def test_everything_happens_in_the_two_weeks_before_the_moment(made: Made) -> None:
    starts = [record["started_at"] for _, record in made]

    assert min(starts) >= AS_OF - timedelta(days=workload.DAYS)
    assert max(record["ended_at"] for _, record in made) <= AS_OF
    assert all(record["started_at"] <= record["ended_at"] for _, record in made)


def test_ids_are_clocks_and_name_one_thing(made: Made) -> None:
    keys = Counter((record["trace_id"], record.get("span_id")) for _, record in made)

    assert keys.most_common(1)[0][1] == 1
    for trace in of_type(made, "trace"):
        assert trace["trace_id"].version == 7
        milliseconds = trace["trace_id"].int >> 80
        assert milliseconds == round(trace["started_at"].timestamp() * 1000)


def test_every_part_hangs_from_a_part_that_exists(made: Made) -> None:
    spans = defaultdict(set)
    for _, record in made:
        spans[record["trace_id"]].add(record.get("span_id"))

    for _, record in made:
        trace_id = record.get("parent_trace_id", record["trace_id"])
        assert record.get("parent_span_id") in spans[trace_id] | {None}


def test_parts_lie_within_their_parents(made: Made) -> None:
    times = {
        (record["trace_id"], record.get("span_id")): (record["started_at"], record["ended_at"])
        for _, record in made
    }

    for _, record in made:
        trace_id = record.get("parent_trace_id", record["trace_id"])
        begins, ends = times[trace_id, record.get("parent_span_id")]
        assert begins <= record["started_at"] <= record["ended_at"] <= ends


def test_a_trace_reports_what_its_model_calls_took_nested_ones_too(made: Made) -> None:
    root_of = {
        trace["trace_id"]: trace.get("root_trace_id", trace["trace_id"])
        for trace in of_type(made, "trace")
    }
    calls = defaultdict(list)
    for span in of_type(made, "span"):
        is_usage = span["operation_type"] in ("llm", "embedding") and span.get("input_tokens")
        if is_usage:
            calls[root_of[span["trace_id"]]].append(span)

    roots = [trace for trace in of_type(made, "trace") if "root_trace_id" not in trace]
    for trace in roots:
        theirs = calls[trace["trace_id"]]
        costs = [span["cost_usd"] for span in theirs]
        assert trace["input_tokens"] == sum(span["input_tokens"] for span in theirs)
        assert trace["llm_calls"] == len(theirs)
        assert trace["cost_usd"] == (None if None in costs else sum(costs))
    assert any(trace["cost_usd"] is None for trace in roots)


def test_every_record_can_be_written_as_json(made: Made) -> None:
    assert all(as_json(record).startswith("{") for _, record in made)
