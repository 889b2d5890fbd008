"""What another way of routing would have been worth, from the decisions that were made."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import timedelta
from math import sqrt
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from records import NOON, at, ingest, trace, trace_id
from tracedb.errors import InvalidInput, error_class

Connection = psycopg.Connection[Any]


def decision(
    key: str,
    agent: str,
    probability: float | None,
    status: str = "ok",
    candidates: Sequence[tuple[str, float, float | None]] = (),
    **fields: Any,
) -> list[dict[str, Any]]:
    """A trace that was routed so, and how it ended."""
    id = trace_id(key)
    shown = [
        {"agent": name, "score": score} | ({} if p is None else {"probability": p})
        for name, score, p in candidates
    ]
    return [
        trace(trace_id=id, status=status, ended_at=at(100), **fields),
        {
            "type": "routing_decision",
            "trace_id": id,
            "span_id": f"{1:016x}",
            "selected_agent": agent,
            "started_at": at(),
            "candidates": shown,
            **({} if probability is None else {"selection_probability": probability}),
        },
    ]


def evaluate(
    conn: Connection,
    tenant: UUID,
    policy: Any,
    reward: str = "success",
    min_effective: int = 2,
) -> dict[str, Any]:
    row = conn.execute(
        "select to_jsonb(r) from tracedb.evaluate_routing(%s, %s, %s, %s, %s, %s) as r",
        [
            json.dumps(policy),
            NOON - timedelta(days=1),
            NOON + timedelta(days=1),
            reward,
            min_effective,
            tenant,
        ],
    ).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


BOTH = [("a", 0.9, 0.5), ("b", 0.6, 0.5)]
UNEVEN = [("a", 0.9, 0.8), ("b", 0.6, 0.2)]


def test_estimates_are_those_computed_by_hand(conn: Connection) -> None:
    tenant = uuid4()
    ingest(
        conn,
        tenant,
        [
            *decision("1", "a", 0.8, "ok", UNEVEN),
            *decision("2", "a", 0.8, "error", UNEVEN),
            *decision("3", "b", 0.2, "ok", UNEVEN),
            *decision("4", "a", 0.8, "ok", UNEVEN),
        ],
    )
    found = evaluate(conn, tenant, {"a": 0.4, "b": 0.6})
    # weights .4/.8 = .5, .5, .6/.2 = 3, .5; rewards 1, 0, 1, 1
    weights, rewards = [0.5, 0.5, 3.0, 0.5], [1, 0, 1, 1]
    products = [w * r for w, r in zip(weights, rewards, strict=True)]
    ips = sum(products) / 4
    error = sqrt(sum((p - ips) ** 2 for p in products) / 3 / 4)
    snips = sum(products) / 4.5
    spread = sqrt(sum((w * (r - snips)) ** 2 for w, r in zip(weights, rewards, strict=True))) / 4.5
    assert found == {
        "decisions": 4,
        "rewarded": 4,
        "effective": pytest.approx(4.5**2 / 9.75),
        "unsupported": 0,
        "logged_value": 0.75,
        "ips": pytest.approx(ips),
        "ips_low": pytest.approx(ips - 1.96 * error),
        "ips_high": pytest.approx(ips + 1.96 * error),
        "snips": pytest.approx(snips),
        "snips_low": pytest.approx(snips - 1.96 * spread),
        "snips_high": pytest.approx(snips + 1.96 * spread),
        "reason": None,
    }


def test_greedy_takes_the_highest_score_and_shares_ties(conn: Connection) -> None:
    tenant = uuid4()
    ingest(
        conn,
        tenant,
        [
            *decision("1", "a", 0.5, "ok", BOTH, cost_usd="0.5"),
            *decision("2", "b", 0.5, "ok", BOTH, cost_usd="9"),
            *decision("3", "b", 0.5, "ok", [("a", 0.7, 0.5), ("b", 0.7, 0.5)], cost_usd="2"),
            *decision("4", "a", 0.5, "ok", BOTH, cost_usd="0.5"),
        ],
    )
    found = evaluate(conn, tenant, "greedy", "cost")
    # weights 1/.5 = 2, 0, .5/.5 = 1, 2
    assert found["snips"] == pytest.approx((2 * 0.5 + 1 * 2 + 2 * 0.5) / 5)
    assert evaluate(conn, tenant, "greedy", "duration")["snips"] == pytest.approx(100)


def test_where_the_true_value_is_known_the_intervals_cover_it(conn: Connection) -> None:
    """Two agents, two kinds of request; the router prefers one, the policy the other."""
    tenant = uuid4()
    draw = random.Random(20261121)
    works = {("easy", "a"): 0.9, ("easy", "b"): 0.6, ("hard", "a"): 0.2, ("hard", "b"): 0.7}
    records = []
    for n in range(1500):
        kind = draw.choice(["easy", "hard"])
        p = 0.7 if kind == "easy" else 0.4  # of a
        chosen, probability = ("a", p) if draw.random() < p else ("b", 1 - p)
        status = "ok" if draw.random() < works[kind, chosen] else "error"
        # the scores would choose rightly
        scores = (0.9, 0.1) if kind == "easy" else (0.1, 0.9)
        candidates = [("a", scores[0], p), ("b", scores[1], 1 - p)]
        records += decision(f"{n}", chosen, probability, status, candidates)
    ingest(conn, tenant, records)
    greedy = evaluate(conn, tenant, "greedy")
    fixed = evaluate(conn, tenant, {"a": 0.2, "b": 0.8})
    for found, true in ((greedy, 0.8), (fixed, 0.5 * (0.18 + 0.48) + 0.5 * (0.04 + 0.56))):
        assert found["reason"] is None
        for name in ("ips", "snips"):
            assert found[f"{name}_low"] < true < found[f"{name}_high"]
            assert found[f"{name}_high"] - found[f"{name}_low"] < 0.15
    # the naive answer, the success of those who went where the policy says, would be wrong
    assert fixed["logged_value"] == pytest.approx(0.634, abs=0.03)
    assert 0 < greedy["effective"] < 1500


REFUSED: list[tuple[list[dict[str, Any]], Any, str]] = [
    ([], {"a": 1}, "no decision of a trace with a known success"),
    (
        decision("1", "a", 0.5, candidates=BOTH) + decision("2", "a", None, candidates=BOTH),
        {"a": 1},
        "1 of 2 decisions have no selection_probability",
    ),
    (
        decision("1", "a", 0.5, candidates=BOTH) + decision("2", "a", 0.5),
        "greedy",
        "1 of 2 decisions have no candidate with a score",
    ),
    # a router that never tried b cannot tell what b is worth
    (
        decision("1", "a", 1, candidates=[("a", 0.9, 1), ("b", 0.5, 0)])
        + decision("2", "a", 1, candidates=[("a", 0.9, 1), ("b", 0.5, None)]),
        {"a": 0.75, "b": 0.25},
        "no overlap: 25.0 % of what this policy would choose, the router never could"
        " (by the probabilities of the candidates)",
    ),
    (
        decision("1", "a", 0.5, candidates=BOTH) + decision("2", "b", 0.5, candidates=BOTH),
        {"b": 1},
        "too little overlap: the decisions are worth 1.0 of this policy's own, 2 are needed",
    ),
]


def test_it_refuses_to_guess(conn: Connection) -> None:
    for records, policy, reason in REFUSED:
        tenant = uuid4()
        ingest(conn, tenant, records)
        found = evaluate(conn, tenant, policy)
        assert found["reason"] == reason
        assert {found[name] for name in ("ips", "ips_low", "snips", "snips_high")} == {None}


WRONG = [
    ({"a": 0.5}, "success", "policy: probabilities must add up to 1"),
    ({}, "success", "policy: probabilities must add up to 1"),
    ({"a": 2, "b": -1}, "success", "policy: probabilities must be numbers from 0 to 1"),
    ({"a": "1"}, "success", "policy: probabilities must be numbers from 0 to 1"),
    ("best", "success", 'policy: must be {"agent": probability, ...} or "greedy"'),
    ("greedy", "luck", "reward: must be success, score, cost or duration"),
]


def test_a_policy_that_is_none_is_named(conn: Connection) -> None:
    for policy, reward, message in WRONG:
        with pytest.raises(psycopg.Error) as raised, conn.transaction():
            evaluate(conn, uuid4(), policy, reward)
        assert raised.value.diag.message_primary == message
        assert error_class(raised.value) is InvalidInput
