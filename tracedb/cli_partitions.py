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
    partitions.add_argument(
        "--dry-run", action="store_true", help="say what would be made, and make nothing"
    )
    partitions.set_defaults(run=_partitions)


def _partitions(args: argparse.Namespace) -> int:
    from tracedb import queries
    from tracedb.client import connect
    from tracedb.maintenance import Outcome, only_one, recorded
    from tracedb.query import run

    with (
        connect(args.dsn, max_size=1) as db,
        db.connection() as conn,
        only_one(conn, "partitions"),
        # what a dry run makes is taken back with its locks
        conn.transaction(force_rollback=True)
        if args.dry_run
        else recorded(conn, "partitions") as result,
    ):
        made = run(conn, queries.ensure_partitions())
        drained = run(conn, queries.drain_default_partitions(args.max_periods))
        if isinstance(result, Outcome):
            result.figures = {"made": len(made), "drained": len(drained)}
    data = {"made": made, "drained": drained}
    lines = [f"made {name}" for name in made] + [f"drained into {name}" for name in drained]
    answer(args, data, lines or ["nothing to do"])
    return 0
