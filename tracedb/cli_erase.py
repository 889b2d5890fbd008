"""The commands about persons: erase user, erase tenant, erase list; export-user."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tracedb.cli import USAGE, add_tenant, answer, one_tenant, say

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import Tenant
    from tracedb.erasure import Erasure
    from tracedb.stores import Store


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    erase = subparsers.add_parser("erase", help="erase a user or a tenant, with a receipt")
    acts = erase.add_subparsers(title="actions", metavar="ACTION", required=True)
    user = acts.add_parser(
        "user",
        help="erase a user",
        description="Erases all that is held about a user: traces with their parts and what is"
        " nested in them, events, dead letters, archived rows. Totals and amounts stay, as"
        " nobody's. Records of the user of a time before this are refused from now on."
        " Interrupted, the same command goes on. Backups, the write-ahead log and pages that are"
        " not vacuumed yet keep what they had.",
    )
    user.add_argument("user_id", metavar="USER", help="the user_id that records give")
    tenant = acts.add_parser(
        "tenant",
        help="erase a tenant whole",
        description="Erases all that a tenant has, totals too. The receipt stays. Records of a time"
        " before this are refused from now on.",
    )
    listing = acts.add_parser("list", help="the receipts of a tenant, oldest first")
    export = subparsers.add_parser(
        "export-user",
        help="all that is held about a user, as JSON lines",
        description="Writes all that is held about a user as JSON lines: the table and the row of"
        " each.",
    )
    export.add_argument("user_id", metavar="USER", help="the user_id that records give")
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="where to (default: standard output)"
    )
    for command in (user, tenant, listing, export):
        add_tenant(command)
    for command in (user, tenant, export):
        command.add_argument(
            "--spool", type=Path, metavar="DIR", help="in the spool of writers, too"
        )
        command.add_argument(
            "--store",
            metavar="WHERE",
            help="the directory or URI where archives are (default: where they were written)",
        )
    for command in (user, tenant):
        command.add_argument(
            "--dry-run", action="store_true", help="only say how many rows it would be"
        )
        command.add_argument("--despite-hold", action="store_true", help="also under a legal hold")
        command.add_argument("--yes", action="store_true", help="do not ask first")
        command.add_argument(
            "--patience",
            type=float,
            default=60.0,
            metavar="S",
            help="wait S seconds for transactions that are writing (default: 60)",
        )
        command.set_defaults(run=_erase)
    tenant.set_defaults(user_id=None)
    listing.set_defaults(run=_list)
    export.set_defaults(run=_export)


def _erase(args: argparse.Namespace) -> int:
    from tracedb import erasure

    with one_tenant(args) as tenant:
        if args.dry_run:
            return _plan(args, tenant)
        if not args.yes and not _agreed(args):
            say("nothing was erased: say --yes, or answer yes")
            return USAGE
        given = {
            "spool": args.spool,
            "store": _store(args),
            "despite_hold": args.despite_hold,
            "patience": args.patience,
            "progress": _progress,
        }
        done = (
            erasure.erase_tenant(tenant, **given)
            if args.user_id is None
            else erasure.erase_user(tenant, args.user_id, **given)
        )
    answer(args, asdict(done), _receipt(done))
    return 0


def _plan(args: argparse.Namespace, tenant: Tenant) -> int:
    from tracedb import erasure

    erasure.check_erasable(tenant, args.user_id, despite_hold=args.despite_hold)
    found = tenant.run(erasure.erasure_plan(args.user_id))
    rows = {each.table_name: each.row_count for each in found}
    plan: dict[str, object] = {"dry_run": True, "rows": rows}
    lines = [f"{count:>12,}  {table}" for table, count in rows.items()]
    if args.user_id is not None:
        # of a tenant, whatever is in its archives goes
        held = Counter(
            "spool" if "spool" in each else "archives"
            for each in erasure.export_user(
                tenant, args.user_id, spool=args.spool, store=_store(args)
            )
            if "spool" in each or "archive" in each
        )
        plan |= held
        lines += [f"{count:>12,}  in the {place}" for place, count in held.items()]
    answer(args, plan, lines or ["nothing is held"])
    return 0


def _store(args: argparse.Namespace) -> Store | None:
    from tracedb.stores import open_store

    return None if args.store is None else open_store(args.store)


def _agreed(args: argparse.Namespace) -> bool:
    if not sys.stdin.isatty():
        return False
    whom = "all of the tenant" if args.user_id is None else "the user"
    say(f"Erase {whom} for good? (yes)")
    return sys.stdin.readline().strip().lower() == "yes"


def _progress(done: Erasure) -> None:
    if sys.stderr.isatty():
        say(f"{done.phase}: {sum(done.counts.values()):,} rows")


def _receipt(done: Erasure) -> list[str]:
    finished = f"{done.finished_at:%Y-%m-%d %H:%M:%S}" if done.finished_at else "not finished"
    return [
        f"{done.erasure_id}  {done.kind} {done.subject_hash[:16]}…  begun"
        f" {done.begun_at:%Y-%m-%d %H:%M:%S} by {done.requested_by}, {finished}",
        *(f"{count:>12,}  {table}" for table, count in sorted(done.counts.items())),
        *(
            f"{count:>12,}  {name} ({place})"
            for place, counts in sorted(done.elsewhere.items())
            for name, count in sorted(counts.items())
        ),
    ]


def _list(args: argparse.Namespace) -> int:
    from tracedb import erasure

    with one_tenant(args) as tenant:
        found = tenant.run(erasure.erasures())
    lines = [line for each in found for line in _receipt(each)]
    answer(args, [asdict(each) for each in found], lines or ["nobody was erased"])
    return 0


def _export(args: argparse.Namespace) -> int:
    from tracedb import erasure
    from tracedb.errors import TracedbError

    with one_tenant(args) as tenant:
        lines = erasure.as_lines(
            erasure.export_user(tenant, args.user_id, spool=args.spool, store=_store(args))
        )
        if args.output is None:
            sys.stdout.writelines(lines)
            return 0
        try:
            with args.output.open("x", encoding="utf-8") as file:
                file.writelines(lines)
        except OSError as error:
            raise TracedbError(f"{args.output}: {error.strerror or error}") from error
    return 0
