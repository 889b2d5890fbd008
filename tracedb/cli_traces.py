"""The command that lists traces by what they say: traces."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from tracedb.cli import add_tenant, answer, one_tenant

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.rows import TracePage, TraceSummary

STATUSES = ("running", "ok", "error", "timeout", "cancelled")

# the options that are fields of the filter: their name, what they ask for
_TEXTS = {
    "user": ("user_id", "of a user"),
    "session": ("session_id", "of a session"),
    "route": ("route", "of a route"),
    "agent": ("agent_id", "of an agent"),
    "error-type": ("error_type", "that failed so"),
    "tag": ("tag", "with a tag"),
    "model": ("model", "with a span of a model"),
    "operation": ("operation_type", "with a span of a type, such as llm or tool"),
    "conversation": ("conversation_id", "with a span of a conversation"),
    "message": ("message_id", "with a span of a message"),
}


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser(
        "traces",
        help="list traces, newest first",
        description="Lists traces, newest first. A search by anything but the user or failures"
        " (--status error timeout) goes back 30 days unless --since says otherwise.",
    )
    add_tenant(command)
    for option, (field, help) in _TEXTS.items():
        command.add_argument(f"--{option}", dest=field, metavar="X", help=help)
    command.add_argument("--status", nargs="+", choices=STATUSES, help="with one of these")
    command.add_argument(
        "--research",
        dest="research_triggered",
        action="store_const",
        const=True,
        help="that triggered research",
    )
    for option, metavar, type_, help in (
        ("since", "TIME", moment, "from an ISO 8601 time on, or so long ago: 36h, 7d"),
        ("until", "TIME", moment, "before such a time"),
        ("min-duration-ms", "N", int, "that took N milliseconds or longer"),
        ("max-duration-ms", "N", int, "that took N milliseconds or less"),
        ("min-cost-usd", "N", decimal, "that cost N dollars or more"),
        ("max-cost-usd", "N", decimal, "that cost N dollars or less"),
    ):
        command.add_argument(f"--{option}", metavar=metavar, type=type_, help=help)
    command.add_argument("--limit", type=int, default=20, metavar="N", help="at most N (20)")
    command.add_argument("--cursor", metavar="C", help="go on where a page ended")
    command.set_defaults(run=_traces)


def moment(text: str) -> datetime:
    """A time as people write it: ISO 8601 (UTC unless it says otherwise), or so long ago."""
    if ago := re.fullmatch(r"(\d{1,6})([hd])", text):
        unit = timedelta(hours=1) if ago[2] == "h" else timedelta(days=1)
        try:
            return datetime.now(UTC) - int(ago[1]) * unit
        except OverflowError:
            raise argparse.ArgumentTypeError(f"{text!r} is too long ago") from None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no ISO 8601 time, nor like 7d") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def decimal(text: str) -> Decimal:
    """A number as people write it."""
    try:
        return Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _traces(args: argparse.Namespace) -> int:
    from tracedb.queries import TraceFilter

    asked = {name: getattr(args, name) for name in TraceFilter.__annotations__}
    with one_tenant(args) as tenant:
        page = tenant.find_traces(limit=args.limit, cursor=args.cursor, **asked)
    if args.json:
        found = [asdict(trace) for trace in page.traces]
        for trace in found:
            trace["parent_span_id"] = trace["parent_span_id"] and trace["parent_span_id"].hex()
        answer(args, {"traces": found, "cursor": page.cursor}, [])
    else:
        _show(page)
    return 0


def _show(page: TracePage) -> None:
    from rich.text import Text

    from tracedb.render import Row, console, duration, mark, moment, money, table

    def label(trace: TraceSummary) -> Text:
        from tracedb.render import clean

        said = trace.agent_id or trace.route or trace.name or ""
        return mark(trace.status).append(f" {trace.trace_id}  {clean(said)}", "default")

    out = console()
    if not page.traces:
        out.print("no traces")
        return
    rows = [
        Row(
            label(trace),
            (moment(trace.started_at), duration(trace.duration_ms), money(trace.cost_usd, 7)),
            ": ".join(filter(None, (trace.error_type, trace.error_message))),
        )
        for trace in page.traces
    ]
    table(out, ("  trace", "started", "took", "cost $"), rows, droppable="started")
    if page.cursor:
        out.print(Text(f"older ones: --cursor {page.cursor}", style="dim"), soft_wrap=True)
