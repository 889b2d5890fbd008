"""The command that shows tracedb to a newcomer: demo."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracedb.cli import answer, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tracedb.cli import Subparsers
    from tracedb.demo import AgentRow, Report, SimilarRow, TenantReport, TraceRow, Track
    from tracedb.records import Record
    from tracedb.rows import Receipt


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser(
        "demo",
        help="agent runs in a database in a minute, and what they tell",
        description="Start the embedded server (or use --dsn, TRACEDB_DSN or DATABASE_URL), build"
        " the schema, load agent runs and show them: a generated workload of three tenants, or"
        " the runs of tau2-bench result files. Run again, it shows the same figures.",
    )
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help=".json or .json.gz")
    command.add_argument(
        "--stop", action="store_true", help="stop the embedded server; its data stays"
    )
    command.add_argument(
        "--embedder",
        metavar="E",
        help="find learned patterns by meaning too: minilm, or MODULE:NAME of an embedder of yours",
    )
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return _stop(args) if args.stop else _demo(args)


def _stop(args: argparse.Namespace) -> int:
    from tracedb.server import locate

    server = locate()
    was_running = server.running
    server.stop()
    what = "stopped the server of" if was_running else "no server was running in"
    answer(args, {"stopped": was_running}, [f"{what} {server.data_dir}"])
    return 0


@dataclass(frozen=True, slots=True)
class _Place:
    """The demo's database, and how to reach it from the command line."""

    conninfo: str
    shown: str
    # what to set so that the commands below find it; None if it is found as it is
    export: str | None
    psql: str
    is_embedded: bool


def _demo(args: argparse.Namespace) -> int:
    from tracedb import connect, demo
    from tracedb.cli_patterns import embedder_named
    from tracedb.migrate import migrate
    from tracedb.tau2 import read

    files = [read(path) for path in args.files]
    embedder = embedder_named(args.embedder) if args.embedder else None
    if not args.json:
        from tracedb.render import console

        out = console()  # says what is missing before any work is done
    place = _place(args.dsn)
    migrate(place.conninfo, progress=say)
    with connect(place.conninfo) as db:
        if files:
            tenants = [demo.files_tenant(db)]
            receipts = demo.load_files(db, tenants[0].tenant_id, files)
            receipt = sum(receipts[1:], receipts[0])
        else:
            with _progress() as track:
                tenants, receipt = demo.load_workload(db, track)
        demo.learn(db, tenants, embedder)
        question = demo.FILES_QUESTION if files else demo.QUESTION
        report = demo.report(db, tenants, question, embedder)
    next_steps = _next_steps(place, report)
    if args.json:
        data = {
            "database": place.shown,
            "loaded": asdict(receipt),
            **asdict(report),
            "next": next_steps,
        }
        answer(args, data, [])
        return 0
    _show(out, report, receipt, exact=bool(files))
    _show_place(out, place, next_steps)
    return 0


def _place(dsn: str | None) -> _Place:
    """The database that was named, or that of the embedded server, started if need be."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    from tracedb import dsn as where

    conninfo = where.resolve(dsn)
    if conninfo:
        given = conninfo_to_dict(conninfo)
        given.pop("password", None)
        shown = make_conninfo("", **given)
        export = f"export TRACEDB_DSN={shlex.quote(shown)}" if dsn else None
        return _Place(conninfo, shown, export, _psql(None, shown), is_embedded=False)

    from tracedb.server import locate, start

    if not locate().running:
        say(f"starting the embedded PostgreSQL in {locate().data_dir}")
    server = start()
    export = f"export TRACEDB_DSN={shlex.quote(server.dsn)}"
    psql = _psql(server.bin_dir, server.dsn)
    return _Place(server.dsn, server.dsn, export, psql, is_embedded=True)


def _psql(bin_dir: Path | None, dsn: str) -> str:
    program = "psql"
    if bin_dir is not None and shutil.which("psql") is None:
        program = str(bin_dir / "psql")
    return f"{shlex.quote(program)} {shlex.quote(dsn)}"


@contextmanager
def _progress() -> Iterator[Track]:
    """A progress bar on stderr where somebody watches."""
    if not sys.stderr.isatty():
        yield lambda records, total: records
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading agent runs", total=None)

        def track(records: Iterable[Record], total: int) -> Iterator[Record]:
            for record in records:
                yield record
                progress.update(task, total=total, advance=1)

        yield track


def _command() -> str:
    """How this program was called, for the reader to type."""
    called = Path(sys.argv[0])
    if called.name != "tracedb":
        return f"{shlex.quote(sys.executable)} -m tracedb"
    found = shutil.which("tracedb")
    if found and Path(found).resolve() == called.resolve():
        return "tracedb"
    return shlex.quote(os.path.relpath(called))


def _next_steps(place: _Place, report: Report) -> list[str]:
    from tracedb.demo import query_to_try

    command = _command()
    steps = [place.export] if place.export else []
    examples = [row.trace_id for row in report.failed[:1] or report.slowest[:1]]
    steps += [f"{command} trace {trace_id}" for trace_id in examples]
    query = query_to_try(report.tenants[0].tenant.tenant_id)
    steps.append(f'{place.psql} -c "{query}"')
    steps.append(f"{command} doctor")
    if place.is_embedded:
        # make says so to what it runs
        steps.append("make demo-stop" if "MAKELEVEL" in os.environ else f"{command} demo --stop")
    return steps


def _show(out: Console, report: Report, receipt: Receipt, *, exact: bool) -> None:
    from tracedb.render import count, heading, tree

    known = f", {count(receipt.duplicates)} already there" if receipt.duplicates else ""
    out.print(f"{count(receipt.inserted + receipt.merged)} records of agent runs loaded{known}")
    for tenant in report.tenants:
        _show_agents(out, tenant, exact=exact)
    if report.slowest:
        heading(out, "Slowest")
        _show_slowest(out, report.slowest)
    if report.failed:
        kinds = ", ".join(f"{count(n)} {kind}" for kind, n in report.failure_kinds.items())
        heading(out, "Failed, newest first", kinds)
        _show_failed(out, report.failed)
    if report.similar:
        heading(out, "Learned patterns", f"for: {report.question}")
        _show_similar(out, report.similar)
    if report.tree:
        root = report.tree[0]
        heading(out, "One trace as a tree", str(root.trace_id))
        tree(out, report.tree)


def _show_agents(out: Console, report: TenantReport, *, exact: bool) -> None:
    from rich.text import Text

    from tracedb.render import (
        Row,
        clean,
        count,
        duration,
        heading,
        moment,
        percent,
        short_count,
        table,
    )

    total = report.agents[-1]
    rows = []
    for row in report.agents:
        name = "all requests" if row.agent_id is None else clean(row.agent_id)
        figures = (
            count(row.trace_count),
            percent(row.success_rate),
            duration(row.median_duration_ms),
            duration(row.p95_duration_ms),
            short_count(row.input_tokens),
            short_count(row.output_tokens),
            _cost(row, exact=exact),
        )
        label = Text(f"{name} (nested)" if row.is_nested else name)
        rows.append(Row(label, figures, style="bold" if row is total else ""))
    span = f"{moment(total.first_started_at)} to {moment(total.last_started_at)} UTC"
    heading(out, f"Agents of {clean(report.tenant.name)}", span)
    table(out, ("agent", "runs", "success", "p50", "p95", "tokens in", "out", "cost $"), rows)
    if any(row.is_nested for row in report.agents):
        out.print("nested runs are part of the figures of the requests they serve", style="dim")
    if total.unknown_cost_count:
        out.print(f"the cost of {count(total.unknown_cost_count)} runs is unknown", style="dim")


def _cost(row: AgentRow, *, exact: bool) -> str:
    from tracedb.render import UNKNOWN, money

    if row.cost_usd is None:
        return UNKNOWN
    amount = money(row.cost_usd) if exact else f"{row.cost_usd:.2f}"
    return f"≥ {amount}" if row.unknown_cost_count else amount


def _show_slowest(out: Console, rows: Sequence[TraceRow]) -> None:
    from tracedb.render import Row, duration, moment, money, table

    shown = [
        Row(_name(row), (moment(row.started_at), duration(row.duration_ms), money(row.cost_usd)))
        for row in rows
    ]
    table(out, ("  trace", "started", "took", "cost $"), shown, droppable="started")


def _show_failed(out: Console, rows: Sequence[TraceRow]) -> None:
    from tracedb.render import Row, duration, moment, table

    shown = [
        Row(
            _name(row),
            (moment(row.started_at), duration(row.duration_ms)),
            ": ".join(filter(None, (row.error_type, row.error_message))),
        )
        for row in rows
    ]
    table(out, ("  trace", "started", "took"), shown, droppable="started")


def _show_similar(out: Console, rows: Sequence[SimilarRow]) -> None:
    from textwrap import shorten

    from tracedb.render import clean

    for row in rows:
        out.print(f"  {clean(shorten(row.prompt, 76, placeholder='...'))}")
        done = " > ".join([row.agent_id or "?", *row.tools])
        out.print(f"    {clean(shorten(done, 74, placeholder='...'))}", style="dim")


def _name(row: TraceRow) -> Text:
    from tracedb.render import clean, mark

    return mark(row.status).append(f" {row.trace_id}  {clean(row.agent_id or '')}", "default")


def _show_place(out: Console, place: _Place, next_steps: Sequence[str]) -> None:
    from tracedb.render import heading

    heading(out, "The database")
    out.print(f"  {place.shown}", soft_wrap=True)
    heading(out, "Try next")
    for step in next_steps:
        out.print(f"  {step}", soft_wrap=True)
