"""The commands about the archive: list, verify, restore, query."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from tracedb.cli import answer, say
from tracedb.cli_retention import add_store, day
from tracedb.cli_traces import moment

if TYPE_CHECKING:
    from tracedb.archive import Recorded
    from tracedb.cli import Subparsers

# a hundred years
_MAX_DAYS = 36_525


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    command = subparsers.add_parser(
        "archive", help="what retention has archived: list, verify (weekly), restore, query"
    )
    acts = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = acts.add_parser("list", help="show the files, the newest first")
    verify = acts.add_parser(
        "verify",
        help="read the files and compare them with their manifests and records",
        description="Reads every file and compares it with its manifest and with what the database"
        " recorded. Exits with 3 if one is damaged or gone, or if the store has one that was never"
        " recorded (left by a run that was killed, or of another database).",
    )
    verify.add_argument("--dry-run", action="store_true", help="only list what would be read")
    restoring = acts.add_parser(
        "restore",
        help="bring rows back: of a time, a tenant or one trace",
        description="Brings archived rows back into their tables, in one transaction, or copies"
        " them into another schema. What is there already stays as it is.",
    )
    query = acts.add_parser(
        "query",
        help="ask the files in SQL (DuckDB), without restoring them",
        description="Runs SQL over the files; each table of the archive is a view of its name."
        " Needs the extra archive.",
    )
    query.add_argument("sql", metavar="SQL")
    for each in (listing, verify, query):
        each.add_argument("--table", metavar="NAME", help="only this table")
    for each in (listing, verify, restoring, query):
        each.add_argument(
            "--since", type=moment, metavar="TIME", help="of ids from an ISO 8601 time, or 90d, on"
        )
        each.add_argument("--until", type=moment, metavar="TIME", help="and before such a time")
        each.add_argument("--tenant", metavar="T", help="of this tenant_id or external id")
        add_store(each)
    restoring.add_argument("--family", default="traces", help="of tables (default: traces)")
    restoring.add_argument("--trace", type=UUID, metavar="ID", help="only this trace; --tenant too")
    restoring.add_argument(
        "--into", metavar="SCHEMA", help="copy into tables of this schema instead"
    )
    restoring.add_argument(
        "--keep-days", type=int, default=7, metavar="N", help="stays at least N days (default: 7)"
    )
    restoring.add_argument("--reason", default="asked for", help="for the receipt")
    restoring.add_argument("--dry-run", action="store_true", help="only list what would be read")
    listing.set_defaults(run=_list)
    verify.set_defaults(run=_verify)
    restoring.set_defaults(run=_restore)
    query.set_defaults(run=_query)


def _list(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.demo import tenant_id_of

    with connect(args.dsn, max_size=1) as db:
        found = db.archives(
            table_name=args.table,
            since=args.since,
            until=args.until,
            tenant_id=tenant_id_of(db, args.tenant) if args.tenant else None,
        )
    return _listed(args, found)


def _listed(args: argparse.Namespace, found: Sequence[Recorded]) -> int:
    lines = (
        f"{each.table_name:26}{day(each.from_time)} to {day(each.to_time)}"
        f"  {each.row_count:>12,} rows  {each.file_bytes:>14,} bytes  {each.state:8}{each.uri}"
        for each in found
    )
    answer(args, [asdict(each) for each in found], lines)
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.dry_run:
        return _list(args)

    from tracedb import archive as archiving
    from tracedb import connect
    from tracedb.demo import tenant_id_of
    from tracedb.errors import ArchiveDamaged, StoreFailed
    from tracedb.maintenance import recorded
    from tracedb.query import run
    from tracedb.stores import open_store

    findings = []
    with (
        connect(args.dsn, max_size=1) as db,
        db.connection() as conn,
        recorded(conn, "archive") as result,
    ):
        wanted = archiving.archives(
            table_name=args.table,
            since=args.since,
            until=args.until,
            tenant_id=tenant_id_of(db, args.tenant) if args.tenant else None,
        )
        found = run(conn, wanted)
        for each in found:
            try:
                store = open_store(args.store or each.store)
                archiving.check(store, archiving.opened(store, each))
            except (ArchiveDamaged, StoreFailed) as error:
                findings.append(str(error))
        if args.store:
            known = {each.file for each in run(conn, archiving.archives())}
            findings += [
                f"{name}: was never recorded"
                for name in open_store(args.store).names()
                if name.removesuffix(archiving.MANIFEST) not in known
            ]
        result.figures = {"files": len(found), "findings": len(findings)}
        if findings:
            result.outcome, result.error = "findings", "; ".join(findings[:10])
    lines = findings or [f"{len(found)} files are what they were"]
    answer(args, {"files": len(found), "findings": findings}, lines)
    return 3 if findings else 0


def _restore(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.demo import tenant_id_of
    from tracedb.errors import InvalidInput
    from tracedb.restore import Wanted, archives, restore, restore_into
    from tracedb.stores import open_store

    if not 0 <= args.keep_days <= _MAX_DAYS:
        raise InvalidInput.of("keep-days", f"must be from 0 to {_MAX_DAYS:,}")
    with connect(args.dsn, max_size=2) as db:
        tenant_id = tenant_id_of(db, args.tenant) if args.tenant else None
        if args.trace:
            if tenant_id is None:
                raise InvalidInput.of("tenant", "say whose trace it is: --tenant")
            wanted = Wanted.trace(args.trace, tenant_id)
        elif args.since is None or args.until is None:
            raise InvalidInput.of("since, until", "say of which time, or which --trace")
        else:
            wanted = Wanted(args.family, args.since, args.until, tenant_id)
        store = open_store(args.store) if args.store else None
        with db.connection() as conn:
            if args.dry_run:
                return _listed(args, archives(conn, wanted))
            if args.into:
                counts = restore_into(conn, wanted, args.into, store, progress=_say_file)
            else:
                receipts = restore(
                    conn,
                    wanted,
                    store,
                    keep=timedelta(days=args.keep_days),
                    reason=args.reason,
                    progress=_say_file,
                )
                counts = {each.table_name: each.row_count for each in receipts}
    answer(args, counts, (f"{count:>12,} rows of {table}" for table, count in counts.items()))
    return 0


def _say_file(archive: Recorded) -> None:
    if sys.stderr.isatty():
        say(f"{archive.row_count:,} rows read of {archive.file}")


def _query(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.ask import ask, key_columns, tables_of
    from tracedb.demo import tenant_id_of
    from tracedb.stores import open_store

    with connect(args.dsn, max_size=1) as db:
        found = db.archives(
            state="removed",
            table_name=args.table,
            since=args.since,
            until=args.until,
            tenant_id=tenant_id_of(db, args.tenant) if args.tenant else None,
        )
        keys = {table: db.run(key_columns(table)) for table in tables_of(found)}
    store = open_store(args.store) if args.store else None
    columns, rows = ask(found, keys, args.sql, store)
    lines = ["  ".join(columns), *("  ".join(map(str, row)) for row in rows)]
    answer(args, [dict(zip(columns, row, strict=True)) for row in rows], lines)
    return 0
