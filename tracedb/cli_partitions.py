"""The command that cron runs for partitions: makes them ahead of need, empties the default ones."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tracedb.cli import answer

if TYPE_CHECKING:
    from tracedb.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    partitions = subparsers.add_parser(
        "partitions", help="make partitions ahead of need and empty the default ones (daily)"
    )
    partitions.add_argument(
        "--max-periods",
        type=int,
        default=60,
        metavar="N",
        help="make partitions for at most N periods of rows that came before theirs (default: 60)",
    )
    partitions.set_defaults(run=_partitions)


def _partitions(args: argparse.Namespace) -> int:
    from tracedb.client import connect

    with connect(args.dsn, max_size=1) as db:
        made = db.ensure_partitions()
        drained = db.drain_default_partitions(args.max_periods)
    data = {"made": made, "drained": drained}
    lines = [f"made {name}" for name in made] + [f"drained into {name}" for name in drained]
    answer(args, data, lines or ["nothing to do"])
    return 0
