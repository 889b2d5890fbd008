"""The commands about what a tenant spends: cost, budgets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from tracedb.cli import add_tenant, answer, one_tenant
from tracedb.cli_traces import decimal, moment

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.money_rows import BudgetStatus, CostForecast, CostShare

_WIDEST_BAR = 40


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    cost = subparsers.add_parser(
        "cost", help="what a tenant spent by day, user, agent or model, and will have spent"
    )
    cost.add_argument(
        "--by", choices=("day", "user", "agent", "model"), default="day", help="split (by day)"
    )
    cost.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        help="from an ISO 8601 time on, or so long ago: 36h, 7d (30 days)",
    )
    cost.add_argument("--until", type=moment, metavar="TIME", help="before such a time (now)")
    cost.set_defaults(run=_cost)

    budgets = subparsers.add_parser("budgets", help="limits of what a tenant spends")
    acts = budgets.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = acts.add_parser("list", help="show how each stands")
    listing.set_defaults(run=_list)
    setting = acts.add_parser("set", help="add one, or change the one of that name")
    setting.add_argument("name", metavar="NAME")
    setting.add_argument("--period", choices=("day", "week", "month"), required=True)
    setting.add_argument("--soft", type=decimal, metavar="USD", help="warn from here on")
    setting.add_argument("--hard", type=decimal, metavar="USD", help="reserve nothing beyond")
    setting.set_defaults(run=_set)
    removing = acts.add_parser("remove", help="take one away, with its alerts")
    removing.add_argument("name", metavar="NAME")
    removing.set_defaults(run=_remove)
    check = acts.add_parser(
        "check",
        help="record limits that spending has reached (for cron)",
        description="Records limits that spending has reached, each once a period; exits with 3 if"
        " one is new.",
    )
    check.set_defaults(run=_check)
    for command in (cost, listing, setting, removing, check):
        add_tenant(command)


def _cost(args: argparse.Namespace) -> int:
    since = args.since or datetime.now(UTC) - timedelta(days=30)
    with one_tenant(args) as tenant:
        shares = tenant.get_cost_breakdown(args.by, since, args.until)
        forecast = tenant.forecast_costs()
    if args.by == "day":
        shares = sorted(shares, key=lambda share: share.key or "")
    known = [share.cost_usd for share in shares if share.cost_usd is not None]
    total = sum(known, Decimal(0)) if known else None
    answer(
        args,
        {
            "by": args.by,
            "since": since,
            "until": args.until,
            "total_usd": total,
            "shares": [asdict(share) for share in shares],
            "forecast": forecast and asdict(forecast),
        },
        [*_lines(shares, args.by, total), *_outlook(forecast)],
    )
    return 0


def _lines(shares: Sequence[CostShare], by: str, total: Decimal | None) -> Iterator[str]:
    from tracedb.render import UNKNOWN, clean, money

    if not shares:
        yield "nothing was spent"
        return
    names = [UNKNOWN if share.key is None else clean(share.key) for share in shares]
    costs = [money(share.cost_usd, 6) for share in shares]
    most = max((share.cost_usd or Decimal(0) for share in shares), default=Decimal(0))
    name_width, cost_width = max(map(len, [by, *names])), max(map(len, ["cost $", *costs]))
    yield f"{by:<{name_width}}  {'cost $':>{cost_width}}"
    for share, name, cost in zip(shares, names, costs, strict=True):
        length = int((share.cost_usd or 0) / most * _WIDEST_BAR) if most else 0
        unknown = share.unknown_cost_count
        remark = f"  {unknown:,} of unknown cost" if unknown else ""
        yield f"{name:<{name_width}}  {cost:>{cost_width}}  {'█' * length}{remark}".rstrip()
    yield f"{'in all':<{name_width}}  {money(total, 6):>{cost_width}}"


def _outlook(forecast: CostForecast | None) -> Iterator[str]:
    from tracedb.render import money, percent

    if forecast is None or forecast.run_rate_usd is None:
        return
    yield f"this {forecast.period}: {money(forecast.spent_usd, 6)} so far;"
    for name, usd, error in (
        ("run rate", forecast.run_rate_usd, forecast.run_rate_wape),
        ("by weekday", forecast.seasonal_usd, forecast.seasonal_wape),
    ):
        off = f", off by {percent(float(error))} in the past" if error is not None else ""
        yield f"    {name}: {money(usd, 2)} in the end{off}"


def _list(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        found = tenant.get_budget_status()
    answer(args, [asdict(row) for row in found], [_line(row) for row in found] or ["no budgets"])
    return 0


def _line(row: BudgetStatus) -> str:
    from tracedb.render import UNKNOWN, money

    limits = [
        f"{name} {UNKNOWN if usd is None else money(usd)}"
        for name, usd in (("soft", row.soft_limit_usd), ("hard", row.hard_limit_usd))
    ]
    limit = row.hard_limit_usd if row.hard_limit_usd is not None else row.soft_limit_usd
    share = min(row.spent_usd / limit, Decimal(1)) if limit else Decimal(1)
    bar = "█" * int(share * 20)
    return (
        f"{row.name}  {bar:░<20}  {money(row.spent_usd, 6)} spent, {money(row.reserved_usd, 6)}"
        f" reserved this {row.period}; {', '.join(limits)}  [{row.state}]"
    )


def _set(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        id = tenant.set_budget(args.name, args.period, args.soft, args.hard)
    answer(args, {"budget_id": id}, ["set"])
    return 0


def _remove(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        removed = tenant.remove_budget(args.name)
    answer(args, {"removed": removed}, ["removed" if removed else "there is no such budget"])
    return 0 if removed else 1


def _check(args: argparse.Namespace) -> int:
    from tracedb.render import money

    with one_tenant(args) as tenant:
        found = tenant.check_budgets()
    lines = [
        f"{alert.name}: {money(alert.spent_usd, 6)} USD of {money(alert.limit_usd)}"
        f" ({alert.threshold})"
        for alert in found
    ]
    answer(args, [asdict(alert) for alert in found], lines or ["nothing new"])
    return 3 if found else 0
