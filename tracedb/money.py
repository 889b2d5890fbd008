"""One typed function for every statement of money.sql: prices, what calls cost, invoices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import rows
from tracedb.answers import as_json, figures_of
from tracedb.query import Query, many, one, statement

_FILE = "money.sql"


def set_prices(prices: Iterable[Mapping[str, Any]]) -> Query[int]:
    """Add entries to the price list: the tenant's own, or that of all tenants; how many rows.

    An entry has `provider` (None: any), `model`, `valid_from`, `source` and `tiers`, each of them
    with the fields of `ModelPrice` in US dollars. What is known already adds nothing; see
    `tracedb.set_prices`. Calls that are stored keep their cost until `reprice`.
    """
    args = {"prices": json.dumps(list(prices), default=as_json)}
    return Query(statement("set_prices", _FILE), args, scalar_row, one, lambda: 0)


def model_prices(model: str | None = None) -> Query[list[rows.ModelPrice]]:
    """The price list, superseded rows too: the tenant's own, or that of all tenants."""
    row = class_row(rows.ModelPrice)
    return Query(statement("model_prices", _FILE), {"model": model}, row, many)


def unpriced_names() -> Query[list[rows.ModelName]]:
    """The names that calls without a price give, of all tenants that this role sees."""
    return Query(statement("unpriced_names", _FILE), {}, class_row(rows.ModelName), many)


def tenants_with_spans() -> Query[list[UUID]]:
    """The tenants that have spans, as far as this role sees them."""
    return Query(statement("tenants_with_spans", _FILE), {}, scalar_row, many)


def unpriced_usage() -> Query[list[rows.UnpricedUsage]]:
    """The models whose calls have no known cost, the most called first."""
    return Query(statement("unpriced_usage", _FILE), {}, class_row(rows.UnpricedUsage), many)


def reprice(
    since: datetime | None = None,
    until: datetime | None = None,
    *,
    dry_run: bool = True,
    reason: str = "by the prices known later",
    max_spans: int = 10_000,
    cursor: str | None = None,
) -> Query[rows.Repricing]:
    """Adjust what calls cost to the prices known now, or only say what would change.

    Calls from `since` on and before `until`, at most `max_spans` of them: go on with the answer's
    cursor until it is None. Nothing is rewritten, reported costs stay, and a second run finds
    nothing (`tracedb.reprice`).
    """

    def repricing(found: Sequence[str]) -> rows.Repricing:
        figures = figures_of(one(found))
        by_model = tuple(rows.RepricedModel(**model) for model in figures.pop("by_model"))
        return rows.Repricing(**figures, by_model=by_model)

    args = {
        "since": since,
        "until": until,
        "dry_run": dry_run,
        "reason": reason,
        "max_spans": max_spans,
        "cursor": cursor,
    }
    return Query(
        statement("reprice", _FILE), args, scalar_row, repricing, lambda: rows.Repricing(dry_run)
    )


def reconcile_invoice(
    provider: str,
    first_day: date,
    last_day: date,
    lines: Iterable[Mapping[str, Any]],
    *,
    tolerance_usd: Decimal | str = "0.01",
) -> Query[rows.Reconciliation | None]:
    """Compare a provider's invoice with the calls that were traced (`tracedb.reconcile_invoice`).

    Both days (UTC) are included. A line has `model` and any of `day`, `amount_usd`, `calls`,
    `input_tokens`, `output_tokens`, `cache_read_tokens`, `cache_write_tokens`, `reasoning_tokens`.
    A graceful client answers None without a database.
    """

    def reconciliation(found: Sequence[str]) -> rows.Reconciliation:
        figures = figures_of(one(found))
        known = {field.name for field in fields(rows.InvoiceLine)} - {"day"}
        compared = tuple(
            rows.InvoiceLine(
                day=line["day"] and date.fromisoformat(line["day"]),
                **{name: line[name] for name in known},
            )
            for line in figures.pop("lines")
        )
        return rows.Reconciliation(**figures, lines=compared)

    args = {
        "provider": provider,
        "first_day": first_day,
        "last_day": last_day,
        "lines": json.dumps(list(lines), default=as_json),
        "tolerance_usd": tolerance_usd,
    }
    return Query(
        statement("reconcile_invoice", _FILE), args, scalar_row, reconciliation, lambda: None
    )
