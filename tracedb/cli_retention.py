"""The commands about how long rows are kept: rules, the plan, and the run that cron makes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tracedb.cli import answer, say
from tracedb.cli_traces import moment

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import TraceDB
    from tracedb.retention import Planned, RetentionReceipt, Step

_UNITS = {"d": 1, "w": 7, "m": 30, "y": 365}


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    command = subparsers.add_parser(
        "retention", help="how long rows are kept: rules, plan, run (daily)"
    )
    acts = command.add_subparsers(title="actions", metavar="ACTION", required=True)

    plan = acts.add_parser("plan", help="what a run would do, and why; changes nothing")
    run = acts.add_parser(
        "run",
        help="archive and remove what is older than its rule",
        description="Archives what is older than its rule, reads the files back, and removes the"
        " rows: whole partitions at once, rows of single tenants in portions. A run that was killed"
        " is carried on by the next. Exits with 1 if something could not be removed (all of it is"
        " still there), with 75 if another session is at it.",
    )
    run.add_argument(
        "--minutes",
        type=float,
        default=60.0,
        metavar="N",
        help="begin nothing after N minutes (default: 60)",
    )
    run.add_argument("--dry-run", action="store_true", help="only show the plan")
    add_store(run)
    run.add_argument(
        "--format",
        choices=("csv", "parquet"),
        default="csv",
        help="of archive files; parquet needs the extra archive (default: csv)",
    )
    for each in (plan, run):
        each.add_argument("--as-of", type=moment, metavar="TIME", help="as if it were this time")
        each.add_argument(
            "--force", action="store_true", help="allow a time more than a day after the server's"
        )
    plan.set_defaults(run=_plan)
    run.set_defaults(run=_run)

    acts.add_parser("list", help="show the rules").set_defaults(run=_list)
    receipts = acts.add_parser("receipts", help="show what was removed and restored")
    receipts.add_argument("--max", type=int, default=100, metavar="N", help="at most N (100)")
    receipts.set_defaults(run=_receipts)

    rule = acts.add_parser("set", help="say how long a table's rows are kept")
    rule.add_argument("table", metavar="TABLE")
    rule.add_argument("keep", type=_keep, metavar="KEEP", help="such as 90d, 12w, 7y, or for-ever")
    rule.add_argument("--action", choices=("archive", "drop"), help="what becomes of older ones")
    rule.add_argument("--note", metavar="TEXT", help="why")
    rule.set_defaults(run=_set)
    unset = acts.add_parser("unset", help="take a rule away: without one, rows are kept for ever")
    unset.add_argument("table", metavar="TABLE")
    unset.set_defaults(run=_unset)
    hold = acts.add_parser("hold", help="remove nothing of a table, however old, until released")
    hold.add_argument("table", metavar="TABLE")
    hold.add_argument("reason", metavar="REASON")
    hold.set_defaults(run=_hold)
    release = acts.add_parser("release", help="end a hold")
    release.add_argument("table", metavar="TABLE")
    release.set_defaults(run=_hold, reason=None)
    for each in (rule, unset, hold, release):
        each.add_argument(
            "--tenant", metavar="T", help="of this tenant_id or external id (default: of all)"
        )


def add_store(parser: argparse.ArgumentParser) -> None:
    """The option of a command that reads or writes the archive."""
    parser.add_argument(
        "--store",
        metavar="WHERE",
        default=os.environ.get("TRACEDB_ARCHIVE"),
        help="the archive: a directory, or a URI such as s3://bucket/prefix (default:"
        " TRACEDB_ARCHIVE)",
    )


def _plan(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        planned = db.retention_plan(args.as_of, forced=args.force)
    answer(args, [asdict(each) for each in planned], map(_line, planned))
    return 0


def _run(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _plan(args)

    from tracedb import connect
    from tracedb.maintenance import recorded
    from tracedb.retention import run_retention
    from tracedb.stores import open_store

    store = open_store(args.store) if args.store else None
    with (
        connect(args.dsn, max_size=1) as db,
        db.connection() as conn,
        recorded(conn, "retention") as result,
        _watched() as step,
    ):
        report = run_retention(
            conn,
            store,
            as_of=args.as_of,
            forced=args.force,
            seconds=args.minutes * 60,
            format=args.format,
            step=step,
        )
        result.figures = report.figures
        if report.failures:
            result.outcome = "failed"
            result.error = "; ".join(sorted({each.error for each in report.failures}))
    for failure in report.failures:
        say(f"not removed: {failure.error}")
    figures = report.figures
    lines = [
        f"{figures['rows_removed']:,} rows removed, {figures['partitions_dropped']} partitions"
        f" dropped ({figures['bytes_freed']:,} bytes), {figures['archived_files']} files written"
        f" ({figures['archived_bytes']:,} bytes)",
        *(f"purged {count:,} of {table}" for table, count in report.purged.items()),
        *(f"kept: {_line(each)}" for each in report.blocked),
    ]
    if report.stray_rows:
        lines.append(f"{report.stray_rows:,} rows wait in default partitions: tracedb partitions")
    if report.unfinished:
        lines.append("its time was up before all was done")
    answer(args, {**figures, "errors": [each.error for each in report.failures]}, lines)
    return 1 if report.failures else 0


def _list(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        found = db.retention_policies()
    lines = (
        f"{each.table_name:24}{_days(each.keep):>12}  {each.action or '':8}"
        + (f"tenant {each.tenant_id}  " if each.tenant_id else "")
        + (f"partitions of a {each.width}, {each.ahead_periods} ahead  " if each.width else "")
        + (f"HELD: {each.hold_reason}  " if each.hold_reason else "")
        + (each.note or "")
        for each in found
    )
    answer(args, [asdict(each) for each in found], (line.rstrip() for line in lines))
    return 0


def _receipts(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        found = db.retention_receipts(args.max)
    lines = (
        f"{each.created_at:%F %T}  {each.action:9}{each.table_name} {_since(each)} to"
        f" {day(each.to_time)}: {each.row_count:,} rows, {each.reason}"
        for each in found
    )
    answer(args, [asdict(each) for each in found], lines)
    return 0


def _set(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        db.set_retention(
            args.table, args.keep, args.action, note=args.note, tenant_id=_tenant(db, args)
        )
    kept = _days(args.keep)
    answer(args, {"table_name": args.table, "keep": kept}, [f"{args.table} is kept: {kept}"])
    return 0


def _unset(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        was = db.remove_retention(args.table, tenant_id=_tenant(db, args))
    answer(args, {"removed": was}, ["removed" if was else "there was no such rule without a hold"])
    return 0 if was else 1


def _hold(args: argparse.Namespace) -> int:
    from tracedb import connect

    with connect(args.dsn, max_size=1) as db:
        was = db.set_legal_hold(args.table, args.reason, tenant_id=_tenant(db, args))
    said = "held" if args.reason else "released" if was else "was not held"
    answer(args, {"table_name": args.table, "held": bool(args.reason)}, [f"{args.table} {said}"])
    return 0


def _tenant(db: TraceDB, args: argparse.Namespace) -> UUID | None:
    from tracedb.demo import tenant_id_of

    return tenant_id_of(db, args.tenant) if args.tenant else None


@contextmanager
def _watched() -> Iterator[Step]:
    """Tell a person who watches how far the run is."""
    if not sys.stderr.isatty():
        yield lambda _step, _planned: None
        return
    from rich.console import Console

    with Console(stderr=True).status("planning") as status:
        yield lambda step, planned: status.update(
            f"{planned.tables[0]} {planned.from_time or ''}: {step}"
        )


def _line(planned: Planned) -> str:
    what = f"{planned.tables[0]}" + (f" +{n} tables" if (n := len(planned.tables) - 1) else "")
    size = f", about {planned.row_estimate:,} rows" if planned.row_estimate is not None else ""
    whose = f" of tenant {planned.tenant_id}" if planned.tenant_id else ""
    act = "archive and " if planned.archived else ""
    act += {"partition": "drop", "rows": "delete rows of", "purge": "purge"}[planned.how]
    why = f"; not now: {planned.blocked_by}" if planned.blocked_by else ""
    when = f"from {_since(planned)} to {day(planned.to_time)}"
    return f"{act} {what} {when}{whose}{size} ({planned.reason}{why})"


def _since(found: Planned | RetentionReceipt) -> str:
    return day(found.from_time) if found.from_time else "the beginning"


def day(at: datetime) -> str:
    """A day as partitions are cut, and as options are read: of UTC."""
    return f"{at.astimezone(UTC):%F}"


def _keep(text: str) -> timedelta | None:
    """A span as people write it."""
    if text == "for-ever":
        return None
    found = re.fullmatch(r"(\d{1,5})([dwmy])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 90d, 12w, 6m, 7y, or for-ever")
    return timedelta(days=int(found[1]) * _UNITS[found[2]])


def _days(keep: timedelta | None) -> str:
    return "for ever" if keep is None else f"{keep.days:,} days"
