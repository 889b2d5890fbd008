"""The commands that build, undo and check the schema: migrate, rollback, status, verify, wait."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tracedb.cli import answer, say
from tracedb.errors import DriftFound, TracedbError

if TYPE_CHECKING:
    from tracedb.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    migrate = subparsers.add_parser("migrate", help="bring the database up to date")
    migrate.add_argument("--to", metavar="ID", help="stop after this migration (id or number)")
    _add_running(migrate)
    migrate.set_defaults(run=_migrate)

    rollback = subparsers.add_parser("rollback", help="undo the newest migration, with its data")
    which = rollback.add_mutually_exclusive_group()
    which.add_argument("--count", type=_positive, default=1, metavar="N", help="undo the newest N")
    which.add_argument("--to", metavar="ID", help="undo all that came after this one")
    which.add_argument("--all", action="store_true", help="undo everything")
    rollback.add_argument("--yes", action="store_true", help="do not ask")
    _add_running(rollback)
    rollback.set_defaults(run=_rollback)

    status = subparsers.add_parser("status", help="list the migrations, applied and pending")
    status.add_argument(
        "--exit-code", action="store_true", help="exit 3 unless everything is applied and unedited"
    )
    status.set_defaults(run=_status)

    verify = subparsers.add_parser(
        "verify", help="compare the database with the schema it should have (exit 3 on drift)"
    )
    verify.set_defaults(run=_verify)

    wait = subparsers.add_parser("wait", help="wait until the server answers")
    wait.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    wait.add_argument("--migrated", action="store_true", help="and until everything is applied")
    wait.set_defaults(run=_wait)


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument(
        "--no-wait", action="store_true", help="exit 75 if another migration is running"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _migrate(args: argparse.Namespace) -> int:
    from tracedb.migrate import migrate

    ids = migrate(args.dsn, to=args.to, dry_run=args.dry_run, wait=not args.no_wait, progress=say)
    verb = "would apply" if args.dry_run else "applied"
    data = {"dry_run": args.dry_run, "applied": ids}
    answer(args, data, [f"{verb} {id}" for id in ids] or ["nothing to apply"])
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from tracedb.migrate import rollback

    which = {"count": None if args.all else args.count, "to": args.to}
    if not args.dry_run and not args.yes:
        _ask(args, rollback(args.dsn, **which, dry_run=True))
    ids = rollback(args.dsn, **which, dry_run=args.dry_run, wait=not args.no_wait, progress=say)
    verb = "would roll back" if args.dry_run else "rolled back"
    data = {"dry_run": args.dry_run, "rolled_back": ids}
    answer(args, data, [f"{verb} {id}" for id in ids] or ["nothing to roll back"])
    return 0


def _ask(args: argparse.Namespace, ids: list[str]) -> None:
    from tracedb import dsn

    if not ids:
        return
    if not sys.stdin.isatty():
        raise TracedbError("rollback deletes data: say --yes where nobody can be asked")
    say(f"This undoes {', '.join(ids)} in {dsn.describe(dsn.resolve(args.dsn))}, with the data.")
    print("Type yes to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "yes":
        raise TracedbError("nothing was rolled back")


def _status(args: argparse.Namespace) -> int:
    from tracedb.migrate import status

    now = status(args.dsn)
    marks = {
        "applied": now.applied,
        "pending": now.pending,
        "edited": now.edited,
        "foreign": now.foreign,
        "invalid index": now.invalid_indexes,
    }
    lines = [f"{mark:14}{name}" for mark, names in marks.items() for name in names]
    answer(args, now.as_dict(), [now.database, *lines])
    return DriftFound.exit_code if args.exit_code and not now.is_current else 0


def _verify(args: argparse.Namespace) -> int:
    from tracedb.verify import verify

    differences = verify(args.dsn)
    data = {"differences": [asdict(difference) for difference in differences]}
    answer(args, data, [str(each) for each in differences] or ["the schema is as expected"])
    return DriftFound.exit_code if differences else 0


def _wait(args: argparse.Namespace) -> int:
    from tracedb.migrate import wait

    database = wait(args.dsn, timeout=args.timeout, migrated=args.migrated, progress=say)
    answer(args, {"database": database}, [f"{database} is ready"])
    return 0
