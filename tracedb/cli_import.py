"""The command that brings in runs recorded elsewhere: import."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import TraceDB
    from tracedb.rows import Receipt
    from tracedb.runs import RunFile


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser(
        "import",
        help="store benchmark runs: import tau2 FILE...",
        description="Store the runs of tau2-bench or tau-bench result files. All files are checked"
        " before any is stored, and each is stored whole or not at all; again, nothing new comes.",
    )
    command.add_argument("format", choices=["tau2"], help="what wrote the files")
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".json or .json.gz")
    command.add_argument(
        "--tenant",
        metavar="T",
        help="whose runs they are: a tenant_id, or an external id, which is registered if new"
        " (default: TRACEDB_TENANT, else tau2-bench)",
    )
    command.set_defaults(run=_import)


def _import(args: argparse.Namespace) -> int:
    from tracedb import connect, demo
    from tracedb.cli import answer
    from tracedb.tau2 import read

    files = [read(path) for path in args.files]
    with connect(args.dsn) as db:
        tenant_id = _tenant(db, args.tenant)
        receipts = demo.load_files(db, tenant_id, files)
    done = list(zip(files, receipts, strict=True))
    data = {"tenant_id": tenant_id, "files": [_summary(*each) for each in done]}
    lines = [_line(*each) for each in done]
    answer(args, data, [*lines, f"tenant {tenant_id}"])
    return 0


def _tenant(db: TraceDB, name: str | None) -> UUID:
    from tracedb.demo import FILES_TENANT

    name = name or os.environ.get("TRACEDB_TENANT") or FILES_TENANT
    try:
        return UUID(name)
    except ValueError:
        return db.ensure_tenant(name)


def _summary(file: RunFile, receipt: Receipt) -> dict[str, object]:
    return {
        "file": file.name,
        "traces": file.traces,
        "spans": file.spans,
        "tool_calls": file.tool_calls,
        "successes": file.successes,
        "cost_usd": file.cost_usd,
        "received": receipt.received,
        "inserted": receipt.inserted,
        "merged": receipt.merged,
        "duplicates": receipt.duplicates,
    }


def _line(file: RunFile, receipt: Receipt) -> str:
    from tracedb.render import clean, count, money

    cost = f"${money(file.cost_usd)}" if file.cost_usd is not None else "cost unknown"
    return (
        f"{clean(file.name)}: {count(file.traces)} traces ({count(file.successes)} succeeded),"
        f" {count(file.spans)} spans ({count(file.tool_calls)} tool calls), {cost};"
        f" {count(receipt.inserted + receipt.merged)} records new,"
        f" {count(receipt.duplicates)} already there"
    )
