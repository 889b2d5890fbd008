"""The commands about totals of usage: folding, which cron runs, and comparing them with traces."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from tracedb.cli import ALREADY_RUNNING, add_tenant, answer, one_tenant, say
from tracedb.cli_traces import moment

if TYPE_CHECKING:
    from tracedb.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    rollups = subparsers.add_parser(
        "rollups", help="totals of usage: fold what is new (every minute), compare with traces"
    )
    acts = rollups.add_subparsers(title="actions", metavar="ACTION", required=True)
    fold = acts.add_parser(
        "fold",
        help="fold what was written into hourly and daily totals",
        description="Folds what was written into hourly and daily totals, a transaction a portion,"
        " until nothing is left. Answers are exact without it, but slower. Exits with 75 if"
        " another session is at it.",
    )
    fold.add_argument(
        "--seconds",
        type=float,
        default=50.0,
        metavar="N",
        help="begin no portion after N seconds (default: 50)",
    )
    fold.add_argument(
        "--max-traces",
        type=int,
        default=5000,
        metavar="N",
        help="fold about N traces in a transaction (default: 5000)",
    )
    fold.add_argument(
        "--dry-run", action="store_true", help="say how much there is to fold, and fold nothing"
    )
    fold.set_defaults(run=_fold)
    verify = acts.add_parser(
        "verify",
        help="compare totals with the traces they were counted from",
        description="Compares totals with the traces they were counted from, which must all be"
        " retained for that time. Exits with 3 if any differs.",
    )
    add_tenant(verify)
    for option, default, help in (
        ("since", "7d", "from an ISO 8601 time on, or so long ago: 36h, 7d (default: 7d)"),
        ("until", None, "before such a time (default: now)"),
    ):
        verify.add_argument(f"--{option}", metavar="TIME", type=moment, default=default, help=help)
    verify.set_defaults(run=_verify)


def _fold(args: argparse.Namespace) -> int:
    from tracedb import connect, queries
    from tracedb.maintenance import recorded
    from tracedb.query import run

    changes = traces = 0
    stop = time.monotonic() + args.seconds
    with connect(args.dsn, max_size=1) as db, db.connection() as conn:
        before = left = run(conn, queries.unfolded_changes())
        if before and not args.dry_run:
            with recorded(conn, "rollups") as result:
                while time.monotonic() < stop and (
                    folded := run(conn, queries.fold_usage(args.max_traces))
                ):
                    changes += sum(tenant.changes for tenant in folded)
                    traces += sum(tenant.traces for tenant in folded)
                    if sys.stderr.isatty():
                        say(f"{traces:,} traces folded")
                left = run(conn, queries.unfolded_changes())
                result.figures = {"changes": changes, "traces": traces, "unfolded_changes": left}
    answer(
        args,
        {"changes": changes, "traces": traces, "unfolded_changes": left},
        [f"{changes:,} changes of {traces:,} traces folded, {left:,} left"],
    )
    return ALREADY_RUNNING if before and left and not changes and not args.dry_run else 0


def _verify(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        found = tenant.usage_differences(args.since, args.until)
    lines = [
        f"{each.starts_at:%Y-%m-%d %H:%M}"
        f"\n    total    {each.rolled_up}\n    counted  {each.counted}"
        for each in found
    ]
    answer(args, [asdict(each) for each in found], lines or ["every total is what its traces say"])
    return 3 if found else 0
