"""The commands about maintenance as a whole: all jobs once, what they did, what else is advised."""

from __future__ import annotations

import argparse
import io
import json
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING

from tracedb.cli import answer, main, say

if TYPE_CHECKING:
    from tracedb.cli import Subparsers

# what `maintain` runs, in this order; each is a job of cron too
JOBS: dict[str, tuple[str, ...]] = {
    "partitions": ("partitions",),
    "rollups": ("rollups", "fold"),
    "uses of patterns": ("patterns", "fold"),
    "learning": ("patterns", "learn"),
    "pruning": ("patterns", "prune"),
    "indexes of patterns": ("patterns", "index"),
    "retention": ("retention", "run"),
    "archive": ("archive", "verify"),
}


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    maintain = subparsers.add_parser(
        "maintain",
        help="run every maintenance job once, one after the other",
        description=f"Runs {', '.join(JOBS)} and advice, one after the other. One that fails does"
        " not keep the others from running. Exits with the highest of their exit codes.",
    )
    maintain.add_argument("--dry-run", action="store_true", help="only say what each would do")
    maintain.set_defaults(run=_maintain)
    advice = subparsers.add_parser(
        "advice", help="what vacuum, analyze or a reindex would do good (weekly)"
    )
    advice.add_argument(
        "--min-mb",
        type=int,
        default=64,
        metavar="N",
        help="of tables and indexes of at least N MB (default: 64)",
    )
    advice.add_argument("--dry-run", action="store_true", help="the same: it changes nothing")
    advice.set_defaults(run=_advice)
    runs = subparsers.add_parser("runs", help="what maintenance did, the newest first")
    runs.add_argument("--job", metavar="NAME", help="only this job")
    runs.add_argument("--max", type=int, default=50, metavar="N", help="at most N (50)")
    runs.set_defaults(run=_runs)


def _maintain(args: argparse.Namespace) -> int:
    common = ["--dsn", args.dsn] if args.dsn else []
    common += ["--json"] if args.json else []
    dry = ["--dry-run"] if args.dry_run else []
    commands = {name: [*command, *dry] for name, command in JOBS.items()} | {"advice": ["advice"]}
    answers: dict[str, object] = {}
    worst = 0
    for name, command in commands.items():
        say(f"{name}:")
        # with --json, the answers of all are one document
        with redirect_stdout(io.StringIO()) if args.json else nullcontext() as said:
            worst = max(worst, main([*common, *command]))
        if said is not None:
            answers[name] = json.loads(said.getvalue() or "null")
    answer(args, answers, ())
    return worst


def _advice(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        found = db.maintenance_advice(args.min_mb << 20)
    lines = [f"{each.command};  -- {each.reason}" for each in found]
    answer(args, [asdict(each) for each in found], lines or ["nothing to advise"])
    return 3 if found else 0


def _runs(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        found = db.maintenance_runs(args.job, args.max)
    lines = (
        f"{each.started_at:%F %T}  {each.job:12}{each.outcome:9}"
        + (f"{(each.ended_at - each.started_at).total_seconds():8.1f} s  " if each.ended_at else "")
        + "  ".join(f"{key}={value}" for key, value in each.figures.items())
        + (f"  {each.error}" if each.error else "")
        for each in found
    )
    answer(args, [asdict(each) for each in found], lines)
    return 0
