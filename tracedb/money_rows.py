"""What the queries of tracedb/money.py answer: one frozen dataclass for each shape of row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from tracedb.rows import Json


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """A row of `tracedb.model_prices`, in US dollars a million tokens; None: no price of its own.

    `provider` is None for any, empty for calls that name none. Of several revisions of one
    `valid_from` the highest counts; `min_input_tokens` tells the tiers of an entry.
    """

    price_id: int
    provider: str | None
    model: str
    valid_from: datetime
    revision: int
    min_input_tokens: int
    input_usd_per_mtok: Decimal | None
    cache_read_usd_per_mtok: Decimal | None
    cache_write_usd_per_mtok: Decimal | None
    output_usd_per_mtok: Decimal | None
    reasoning_usd_per_mtok: Decimal | None
    request_usd: Decimal
    source: str


@dataclass(frozen=True, slots=True)
class ModelName:
    """What a call says of its model."""

    provider: str | None
    request_model: str | None
    response_model: str | None


@dataclass(frozen=True, slots=True)
class UnpricedUsage:
    """Calls of a model without a known cost (`tracedb.unpriced_usage`)."""

    provider: str | None
    model: str | None
    call_count: int
    call_count_without_usage: int
    input_tokens: int | None
    cache_read_tokens: int | None
    cache_write_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    first_started_at: datetime
    last_started_at: datetime


@dataclass(frozen=True, slots=True)
class RepricedModel:
    """What changes for calls of a model (`tracedb.reprice`), in US dollars."""

    provider: str | None
    model: str | None
    spans: int
    previous_cost_usd: Decimal | None
    cost_usd: Decimal | None
    difference_usd: Decimal


@dataclass(frozen=True, slots=True)
class Repricing:
    """What `tracedb.reprice` changed, or would; the sums are over the adjusted calls."""

    dry_run: bool
    examined: int = 0
    adjusted: int = 0
    previous_cost_usd: Decimal | None = None
    cost_usd: Decimal | None = None
    difference_usd: Decimal = Decimal(0)
    by_model: tuple[RepricedModel, ...] = ()
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """A model (and day) of an invoice against what was traced.

    `outcome` is matched, amount_differs (then `reason` says why), missing_in_traces or
    missing_in_invoice; `difference_usd` is invoiced less traced.
    """

    model: str | None
    day: date | None
    outcome: str
    reason: str | None
    invoiced_usd: Decimal | None
    traced_usd: Decimal | None
    difference_usd: Decimal
    unpriced_calls: int
    invoiced: dict[str, Json] | None
    traced: dict[str, Json] | None


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """An invoice against what was traced (`tracedb.reconcile_invoice`): totals, and every line."""

    provider: str
    since: datetime
    until: datetime
    invoiced_usd: Decimal
    traced_usd: Decimal
    difference_usd: Decimal
    unpriced_calls: int
    matched: int
    amount_differs: int
    missing_in_traces: int
    missing_in_invoice: int
    lines: tuple[InvoiceLine, ...]


@dataclass(frozen=True, slots=True)
class CostShare:
    """What was spent on a day, by a user, an agent or a model (`tracedb.get_cost_breakdown`)."""

    key: str | None
    cost_usd: Decimal | None
    trace_cost_usd: Decimal | None
    event_cost_usd: Decimal | None
    item_count: int
    unknown_cost_count: int


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """How a budget stands (`tracedb.get_budget_status`); `state` is ok, soft or hard."""

    budget_id: UUID
    name: str
    period: str
    period_start: datetime
    period_end: datetime
    soft_limit_usd: Decimal | None
    hard_limit_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    remaining_usd: Decimal | None
    state: str
    unknown_cost_count: int


@dataclass(frozen=True, slots=True)
class BudgetAlert:
    """That spending reached a limit; `threshold` is soft or hard."""

    name: str
    period_start: datetime
    threshold: str
    limit_usd: Decimal
    spent_usd: Decimal


@dataclass(frozen=True, slots=True)
class CostForecast:
    """What a period will have cost by two formulas, and their errors on past days.

    Errors are shares (0.1 is 10 %) over `backtests` past days; None: no history to go by. See
    `tracedb.forecast_costs`.
    """

    period: str
    since: datetime
    until: datetime
    spent_usd: Decimal
    days_left: int
    history_days: int
    run_rate_usd: Decimal | None
    seasonal_usd: Decimal | None
    backtests: int
    run_rate_wape: Decimal | None
    run_rate_mape: Decimal | None
    seasonal_wape: Decimal | None
    seasonal_mape: Decimal | None
    better: str | None
