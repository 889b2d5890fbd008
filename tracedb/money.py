"""One typed function for every statement of money.sql: prices, what calls cost, invoices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from psycopg.rows import class_row, scalar_row

from tracedb import money_rows as rows
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


def get_tenant_daily_cost(date: date | None = None) -> Query[Decimal | None]:
    """What the tenant spent on a day (UTC; default: today); None if nothing is known."""
    args = {"date": date}
    return Query(statement("get_tenant_daily_cost", _FILE), args, scalar_row, one, lambda: None)


def get_cost_breakdown(
    by: Literal["day", "user", "agent", "model"], since: datetime, until: datetime | None = None
) -> Query[list[rows.CostShare]]:
    """What the tenant spent from `since` on and before `until` (default: now), the most first.

    Every breakdown has the same total; what counts says `tracedb.cost_entries`.
    """
    args = {"by": by, "since": since, "until": until}
    return Query(statement("get_cost_breakdown", _FILE), args, class_row(rows.CostShare), many)


def set_budget(
    name: str,
    period: Literal["day", "week", "month"],
    soft_limit_usd: Decimal | None = None,
    hard_limit_usd: Decimal | None = None,
) -> Query[UUID | None]:
    """Give the tenant a budget (in UTC), or change the one of that name; its id.

    A graceful client answers None without a database.
    """
    args = {
        "name": name,
        "period": period,
        "soft_limit_usd": soft_limit_usd,
        "hard_limit_usd": hard_limit_usd,
    }
    return Query(statement("set_budget", _FILE), args, scalar_row, one, lambda: None)


def remove_budget(name: str) -> Query[bool]:
    """Take a budget away, with its alerts; whether there was one."""
    args = {"name": name}
    return Query(statement("remove_budget", _FILE), args, scalar_row, one, lambda: False)


def get_budget_status(as_of: datetime | None = None) -> Query[list[rows.BudgetStatus]]:
    """How each budget stands in its period around `as_of` (default: now)."""
    row = class_row(rows.BudgetStatus)
    return Query(statement("get_budget_status", _FILE), {"as_of": as_of}, row, many)


def check_budgets(as_of: datetime | None = None) -> Query[list[rows.BudgetAlert]]:
    """Record the limits that spending has reached; those that are new, once a period."""
    row = class_row(rows.BudgetAlert)
    return Query(statement("check_budgets", _FILE), {"as_of": as_of}, row, many)


def reserve_budget(
    reservation_id: UUID,
    amount_usd: Decimal,
    *,
    trace_id: UUID | None = None,
    ttl: timedelta = timedelta(minutes=10),
) -> Query[bool]:
    """Set money aside before a call; False if a hard limit is in the way: do not make the call.

    The id is of your choice (`uuid.uuid4()`); asked for again it is the same reservation. Settle or
    release it, or it counts for `ttl`. However many sessions reserve, together they never exceed a
    hard limit (`tracedb.reserve_budget`). A graceful client answers True without a database: a
    budget is no reason to stop then.
    """
    args = {
        "reservation_id": reservation_id,
        "amount_usd": amount_usd,
        "ttl": ttl,
        "trace_id": trace_id,
    }
    return Query(statement("reserve_budget", _FILE), args, scalar_row, one, lambda: True)


def settle_budget(
    reservation_id: UUID, cost_usd: Decimal, *, trace_id: UUID | None = None
) -> Query[bool]:
    """Say what the call cost; it counts until its trace says so itself. False: no such one open."""
    args = {"reservation_id": reservation_id, "cost_usd": cost_usd, "trace_id": trace_id}
    return Query(statement("settle_budget", _FILE), args, scalar_row, one, lambda: False)


def release_budget(reservation_id: UUID) -> Query[bool]:
    """Give back what was reserved for a call that was not made. False: no such one open."""
    args = {"reservation_id": reservation_id}
    return Query(statement("release_budget", _FILE), args, scalar_row, one, lambda: False)


def forecast_costs(
    period: Literal["day", "week", "month"] = "month",
    as_of: datetime | None = None,
    *,
    history_days: int = 84,
) -> Query[rows.CostForecast | None]:
    """What the tenant will have spent at the end of the period, and how far off that usually is.

    Formulas and errors are those of `tracedb.forecast_costs`. A graceful client answers None
    without a database.
    """

    def forecast(found: Sequence[str]) -> rows.CostForecast:
        return rows.CostForecast(**figures_of(one(found)))

    args = {"period": period, "as_of": as_of, "history_days": history_days}
    return Query(statement("forecast_costs", _FILE), args, scalar_row, forecast, lambda: None)
