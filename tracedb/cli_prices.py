"""The commands about prices: prices sync, list, set and unpriced; reprice."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tracedb.cli import answer
from tracedb.cli_traces import decimal, moment

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import Tenant, TraceDB
    from tracedb.money_rows import ModelPrice, Repricing

_BATCH = 500

# the options that are prices in US dollars: their field, what they are for
_PRICES = {
    "input": ("input_usd_per_mtok", "a million input tokens"),
    "cache-read": ("cache_read_usd_per_mtok", "a million tokens read from a cache"),
    "cache-write": ("cache_write_usd_per_mtok", "a million tokens written to a cache"),
    "output": ("output_usd_per_mtok", "a million output tokens"),
    "reasoning": ("reasoning_usd_per_mtok", "a million reasoning tokens"),
    "request": ("request_usd", "a call"),
}


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    tenant = os.environ.get("TRACEDB_TENANT")
    whose = "only its calls (default: TRACEDB_TENANT, else all that this role sees)"
    prices = subparsers.add_parser("prices", help="what models cost: sync, list or set it")
    acts = prices.add_subparsers(title="actions", metavar="ACTION", required=True)
    sync = acts.add_parser(
        "sync",
        help="take prices over from the installed genai-prices",
        description="Takes prices over from the installed genai-prices: every model of its list,"
        " and the names by which calls without a price go. Prices somebody has set are left alone.",
    )
    _add_dry_run(sync)
    sync.set_defaults(run=_sync)
    listing = acts.add_parser("list", help="show the price list, superseded prices too")
    listing.add_argument("--model", metavar="M", help="only of a model")
    _add_tenant(listing, "its own prices (default: those of all tenants)")
    listing.set_defaults(run=_list)
    setting = acts.add_parser(
        "set",
        help="record a price",
        description="Records a price in US dollars, valid from a time on until another is.",
    )
    setting.add_argument("model", metavar="MODEL", help="the name that calls give")
    setting.add_argument("--provider", metavar="P", help="of a provider (default: of any)")
    setting.add_argument(
        "--from", dest="valid_from", type=moment, required=True, metavar="TIME", help="ISO 8601"
    )
    for option, (field, help) in _PRICES.items():
        setting.add_argument(f"--{option}", dest=field, type=decimal, metavar="USD", help=help)
    _add_tenant(setting, "for it alone (default: for all tenants)")
    _add_dry_run(setting)
    setting.set_defaults(run=_set)
    unpriced = acts.add_parser("unpriced", help="models whose calls have no known cost")
    _add_tenant(unpriced, whose, tenant)
    unpriced.set_defaults(run=_unpriced)

    reprice = subparsers.add_parser(
        "reprice",
        help="adjust what stored calls cost to the prices known now",
        description="Adjusts what stored calls cost to the prices known now. Nothing is rewritten,"
        " and costs that were reported stay.",
    )
    for option, help in (
        ("since", "calls from a time on, or so long ago: 7d"),
        ("until", "before"),
    ):
        reprice.add_argument(f"--{option}", type=moment, metavar="TIME", help=help)
    _add_tenant(reprice, whose, tenant)
    _add_dry_run(reprice)
    reprice.set_defaults(run=_reprice)


def _add_tenant(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    parser.add_argument(
        "--tenant", metavar="T", default=default, help=f"a tenant_id or external id: {help}"
    )


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")


def _sync(args: argparse.Namespace) -> int:
    from tracedb import connect, prices

    listed = prices.snapshot()
    with connect(args.dsn, max_size=1) as db:
        sync = prices.plan(listed, db.model_prices(), db.unpriced_names())
        added = 0
        if args.dry_run:
            added = sum(len(entry["tiers"]) for entry in sync.entries)
        else:
            for first in range(0, len(sync.entries), _BATCH):
                added += db.set_prices(sync.entries[first : first + _BATCH])
    unknown = [asdict(name) for name in sync.unknown]
    answer(
        args,
        {
            "dry_run": args.dry_run,
            "added": added,
            "models": sync.models,
            "skipped": sync.skipped,
            "kept": sync.kept,
            "unknown": unknown,
        },
        [
            f"{added} prices {'to add' if args.dry_run else 'added'}; {sync.models} models are"
            f" listed, {sync.skipped} more without a price we could use, {sync.kept} set by others",
            *(
                "no price: " + " ".join(str(part) for part in name.values() if part)
                for name in unknown
            ),
        ],
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        found = _whose(db, args.tenant).model_prices(args.model)
    answer(args, [asdict(price) for price in found], [_line(price) for price in found] or ["none"])
    return 0


def _line(price: ModelPrice) -> str:
    tier = f" from {price.min_input_tokens:,} input tokens on" if price.min_input_tokens else ""
    costs = ", ".join(
        f"{option} {value.normalize():f}"
        for option, (field, _) in _PRICES.items()
        if (value := getattr(price, field)) is not None and (value or option != "request")
    )
    provider = "any" if price.provider is None else price.provider or "none named"
    revision = f" (revision {price.revision})" if price.revision > 1 else ""
    return (
        f"{provider}  {price.model}  {price.valid_from:%Y-%m-%d}{revision}{tier}:"
        f" {costs or 'unknown'}  [{price.source}]"
    )


def _set(args: argparse.Namespace) -> int:
    from tracedb import connect

    tier: dict[str, Decimal] = {
        field: value for field, _ in _PRICES.values() if (value := getattr(args, field)) is not None
    }
    entry: dict[str, Any] = {
        "provider": args.provider,
        "model": args.model,
        "valid_from": args.valid_from,
        "source": "set by hand",
        "tiers": [tier],
    }
    added = 0
    if not args.dry_run:
        with connect(args.dsn, max_size=1) as db:
            added = _whose(db, args.tenant).set_prices([entry])
    said = "not set: a dry run" if args.dry_run else "set" if added else "known already"
    answer(args, {"dry_run": args.dry_run, "added": added, "entry": entry}, [said])
    return 0


def _unpriced(args: argparse.Namespace) -> int:
    from tracedb import connect

    found = []
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            found += [
                {"tenant_id": tenant.tenant_id, **asdict(row)} for row in tenant.unpriced_usage()
            ]
    lines = [
        f"{row['tenant_id']}  {row['provider'] or '-'}  {row['model'] or '-'}:"
        f" {row['call_count']:,} calls ({row['call_count_without_usage']:,} without tokens),"
        f" {row['input_tokens'] or 0:,} tokens in, {row['output_tokens'] or 0:,} out,"
        f" {row['first_started_at']:%Y-%m-%d} to {row['last_started_at']:%Y-%m-%d}"
        for row in found
    ]
    answer(args, found, lines or ["every call has a known cost"])
    return 0


def _reprice(args: argparse.Namespace) -> int:
    from tracedb import connect

    found = []
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            parts = list(_parts(tenant, args))
            models: dict[tuple[str | None, str | None], Decimal] = {}
            for model in (model for part in parts for model in part.by_model):
                name = (model.provider, model.model)
                models[name] = models.get(name, Decimal(0)) + model.difference_usd
            found.append(
                {
                    "tenant_id": tenant.tenant_id,
                    "dry_run": args.dry_run,
                    "examined": sum(part.examined for part in parts),
                    "adjusted": sum(part.adjusted for part in parts),
                    "difference_usd": sum((part.difference_usd for part in parts), Decimal(0)),
                    "by_model": [
                        {"provider": provider, "model": model, "difference_usd": usd}
                        for (provider, model), usd in models.items()
                    ],
                }
            )
    done = "to adjust" if args.dry_run else "adjusted"
    lines = [
        line
        for row in found
        for line in (
            f"{row['tenant_id']}: {row['adjusted']:,} of {row['examined']:,} calls {done},"
            f" {row['difference_usd']:+f} USD",
            *(
                f"    {model['provider'] or '-'}  {model['model'] or '-'}:"
                f" {model['difference_usd']:+f} USD"
                for model in row["by_model"]
            ),
        )
    ]
    answer(args, found, lines or ["no calls"])
    return 0


def _parts(tenant: Tenant, args: argparse.Namespace) -> Iterator[Repricing]:
    """Reprice all there is, a transaction's worth at a time."""
    cursor = None
    while True:
        part = tenant.reprice(args.since, args.until, dry_run=args.dry_run, cursor=cursor)
        yield part
        cursor = part.cursor
        if cursor is None:
            return


def _whose(db: TraceDB, name: str | None) -> TraceDB | Tenant:
    from tracedb.demo import tenant_id_of

    return db if name is None else db.tenant(tenant_id_of(db, name))


def _tenants(db: TraceDB, name: str | None) -> list[Tenant]:
    from tracedb.demo import tenant_id_of

    if name is not None:
        return [db.tenant(tenant_id_of(db, name))]
    return [db.tenant(tenant_id) for tenant_id in db.tenants_with_spans()]
