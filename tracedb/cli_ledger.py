"""The commands about what writers could not store: dead-letters, losses."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tracedb.cli import answer

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import Tenant, TraceDB

_PAGE = 1000


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    letters = subparsers.add_parser(
        "dead-letters", help="records that could not be stored: list, requeue or purge them"
    )
    acts = letters.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = acts.add_parser("list", help="show them with their reasons, oldest first")
    listing.add_argument("--max", type=int, default=100, metavar="N", help="at most N (100)")
    listing.set_defaults(run=_list)
    requeue = acts.add_parser("requeue", help="try them again; what is refused again is kept")
    requeue.add_argument("ids", nargs="*", type=UUID, metavar="ID", help="only these (all)")
    requeue.set_defaults(run=_requeue)
    purge = acts.add_parser("purge", help="give them up")
    purge.add_argument(
        "--before",
        type=_moment,
        required=True,
        metavar="TIME",
        help="those made before this ISO 8601 time (UTC unless it says otherwise), or 'now'",
    )
    purge.set_defaults(run=_purge)

    losses = subparsers.add_parser(
        "losses",
        help="what became of every record, writer by writer",
        description="What became of every record, writer by writer. Missing records are on their"
        " way while their writer lives; exits with 3 if a closed writer misses some.",
    )
    losses.add_argument("--writer", type=UUID, metavar="ID", help="only this one")
    losses.set_defaults(run=_losses)
    for command in (listing, requeue, purge, losses):
        command.add_argument(
            "--tenant",
            metavar="T",
            default=os.environ.get("TRACEDB_TENANT"),
            help="a tenant_id or external id (default: TRACEDB_TENANT, else all that this role"
            " may see)",
        )


def _list(args: argparse.Namespace) -> int:
    from tracedb import connect

    found: list[dict[str, Any]] = []
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            found += [
                {"tenant_id": tenant.tenant_id, **asdict(letter)}
                for letter in tenant.dead_letters(args.max - len(found))
            ]
    lines = [
        f"{letter['dead_letter_id']}  {letter['created_at']:%Y-%m-%d %H:%M:%S}  {letter['reason']}"
        f"\n    {shorten(letter['record'], 200, placeholder=' …')}"
        for letter in found
    ]
    answer(args, found, lines or ["no dead letters"])
    return 0


def _requeue(args: argparse.Namespace) -> int:
    from tracedb import connect

    requeued = 0
    kept: dict[UUID, str] = {}
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            for ids in _pages(tenant, args.ids):
                outcome = tenant.requeue_dead_letters(ids)
                requeued += outcome.requeued
                kept |= outcome.kept
    lines = [f"{id}  {reason}" for id, reason in kept.items()]
    answer(
        args,
        {"requeued": requeued, "kept": {str(id): reason for id, reason in kept.items()}},
        [f"{requeued} stored, {len(kept)} kept", *lines],
    )
    return 0


def _pages(tenant: Tenant, ids: list[UUID]) -> Iterator[list[UUID]]:
    """The dead letters to try, a transaction's worth at a time."""
    if ids:
        yield ids
        return
    after = None
    while letters := tenant.dead_letters(_PAGE, after):
        after = letters[-1].dead_letter_id
        yield [letter.dead_letter_id for letter in letters]


def _purge(args: argparse.Namespace) -> int:
    from tracedb import connect

    purged = 0
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            while count := tenant.purge_dead_letters(args.before):
                purged += count
    answer(args, {"purged": purged}, [f"{purged} purged"])
    return 0


def _losses(args: argparse.Namespace) -> int:
    from tracedb import connect

    found = []
    with connect(args.dsn, max_size=1) as db:
        for tenant in _tenants(db, args.tenant):
            found += [
                {"tenant_id": tenant.tenant_id, **asdict(writer)}
                for writer in tenant.loss_report(args.writer)
            ]
    lines = [
        f"{row['writer_id']}  {row['service'] or '-'}  {'closed' if row['closed'] else 'open'}"
        f"  last seen {row['last_seen_at']:%Y-%m-%d %H:%M:%S}\n"
        f"    accepted {row['accepted']:,}: {row['stored']:,} stored, {row['dead']:,} dead"
        f" ({row['requeued']:,} requeued), {row['dropped']:,} dropped, {row['missing']:,} missing"
        f"; {row['repeated']:,} repeated"
        + "".join(f"\n    gap {first}-{last}" for first, last in row["gaps"])
        for row in found
    ]
    answer(args, found, lines or ["no writers"])
    return 3 if any(row["closed"] and row["missing"] for row in found) else 0


def _tenants(db: TraceDB, name: str | None) -> list[Tenant]:
    from tracedb.demo import tenant_id_of

    if name is not None:
        return [db.tenant(tenant_id_of(db, name))]
    return [db.tenant(tenant_id) for tenant_id in db.tenants_with_writers()]


def _moment(text: str) -> datetime | None:
    if text == "now":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 8601 time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
