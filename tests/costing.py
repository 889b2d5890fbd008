"""Prices for tests, and what calls cost by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from records import span

Conn = psycopg.Connection[Any]


def entry(model: str = "small", **fields: Any) -> dict[str, Any]:
    """An entry of the price list; `input`, `output` and so on are a single tier's prices."""
    classes = ("input", "cache_read", "cache_write", "output", "reasoning")
    tier = {f"{name}_usd_per_mtok": fields.pop(name) for name in classes if name in fields}
    return {
        "provider": "openai",
        "model": model,
        "valid_from": "2026-01-01T00:00:00Z",
        "source": "test",
        "tiers": [tier],
        **fields,
    }


def set_prices(conn: Conn, *entries: Mapping[str, Any], tenant: UUID | None = None) -> int:
    row = conn.execute(
        "select tracedb.set_prices(%s, %s)", [json.dumps(entries, default=str), tenant]
    ).fetchone()
    assert row is not None
    added: int = row[0]
    return added


def call(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A finished call of the model `small`, of 1000 tokens in and 100 out."""
    usage = {"input_tokens": 1000, "output_tokens": 100}
    return span(number, **{"provider": "openai", "request_model": "small", **usage, **fields})


def costs(conn: Conn, tenant: UUID) -> list[tuple[Decimal | None, Decimal | None, Decimal | None]]:
    """What each span was reported to cost, is computed to, and counts as."""
    return conn.execute(
        "select reported_cost_usd, computed_cost_usd, cost_usd from tracedb.priced_spans"
        " where tenant_id = %s order by trace_id, span_id",
        [tenant],
    ).fetchall()


def counted(conn: Conn, tenant: UUID) -> list[Decimal | None]:
    return [cost for _, _, cost in costs(conn, tenant)]


def reprice(conn: Conn, tenant: UUID, **settings: Any) -> dict[str, Any]:
    settings["tenant_id"] = tenant
    named = ", ".join(f"{name} => %({name})s" for name in settings)
    row = conn.execute(f"select tracedb.reprice({named})::text".encode(), settings).fetchone()
    assert row is not None
    answer: dict[str, Any] = json.loads(row[0], parse_float=Decimal)
    return answer
