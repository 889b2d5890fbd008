"""The command that shows one trace: trace."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from dataclasses import asdict
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from rich.console import Console

    from tracedb.cli import Subparsers
    from tracedb.client import Tenant, TraceDB
    from tracedb.rows import TraceSummary, TreeNode

_LONGEST_TEXT = 300


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser("trace", help="show a trace as a tree")
    command.add_argument("id", metavar="ID", help="a trace_id, or the recorder's own id")
    command.add_argument(
        "--tenant",
        metavar="T",
        help="whose trace it is: a tenant_id or external id (default: TRACEDB_TENANT, else it is"
        " looked for in all tenants that this role may see)",
    )
    command.add_argument("--all", action="store_true", help="show every node of a large trace")
    command.set_defaults(run=_trace)


def _trace(args: argparse.Namespace) -> int:
    from tracedb import Tenant, connect
    from tracedb.cli import answer, say
    from tracedb.errors import NotFound
    from tracedb.restore import Wanted, peek

    with connect(args.dsn, max_size=2) as db:
        tenant_id, trace_id = _find(db, args.id, args.tenant or os.environ.get("TRACEDB_TENANT"))
        tenant = db.tenant(tenant_id)
        summary, document, nodes = _read(tenant, trace_id)
        if summary is None and tenant.where_is_trace(trace_id):
            say("it is archived: reading it from there")
            with db.connection() as conn, peek(conn, Wanted.trace(trace_id, tenant_id)):
                archived = Tenant(lambda: nullcontext(conn), tenant_id)
                summary, document, nodes = _read(archived, trace_id)
    if summary is None or document is None:
        raise NotFound(f"there is no trace {args.id} any more")
    if args.json:
        tree = [asdict(node) for node in nodes]
        answer(args, {"tenant_id": tenant_id, **document, "tree": tree}, [])
        return 0

    from tracedb import render

    out = render.console()
    _header(out, summary, document)
    out.print()
    render.tree(out, nodes, show_all=args.all)
    return 0


def _read(
    tenant: Tenant, trace_id: UUID
) -> tuple[TraceSummary | None, dict[str, Any] | None, list[TreeNode]]:
    return tenant.trace_summary(trace_id), tenant.get_trace(trace_id), tenant.trace_tree(trace_id)


def _find(db: TraceDB, id: str, tenant: str | None) -> tuple[UUID, UUID]:
    """The tenant and the trace_id; NotFound if there is none, or more than one tenant has it."""
    from tracedb.demo import tenant_id_of, trace_anywhere
    from tracedb.errors import NotFound

    if tenant is not None:
        tenant_id = tenant_id_of(db, tenant)
        trace_id = db.tenant(tenant_id).find_trace(id)
        if trace_id is None and _is_uuid(id) and db.tenant(tenant_id).where_is_trace(UUID(id)):
            return tenant_id, UUID(id)
        if trace_id is None:
            raise NotFound(f"tenant {tenant} has no trace {id}")
        return tenant_id, trace_id
    found = db.run(trace_anywhere(id))
    if not found:
        raise NotFound(
            f"there is no trace {id} (a role that sees one tenant must name it: --tenant)"
        )
    if len(found) > 1:
        tenants = ", ".join(str(tenant_id) for tenant_id, _ in found)
        raise NotFound(f"several tenants have a trace {id}; say --tenant: {tenants}")
    return found[0]


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _header(out: Console, summary: TraceSummary, document: dict[str, Any]) -> None:
    from rich.text import Text

    from tracedb.render import UNKNOWN, clean, count, duration, mark, moment, money

    title = Text(clean(summary.name or "trace"), style="bold")
    title.append("  ").append_text(mark(summary.status)).append(f" {summary.status}")
    out.print(title)
    texts = {p["kind"]: p["content"] for p in document["payloads"] if p.get("span_id") is None}
    tokens = UNKNOWN
    if summary.input_tokens is not None or summary.output_tokens is not None:
        tokens = f"{count(summary.input_tokens)} in, {count(summary.output_tokens)} out"
    facts = {
        "trace": str(summary.trace_id),
        "known as": summary.external_id,
        "agent": summary.agent_id,
        "user": summary.user_id,
        "started": f"{moment(summary.started_at)} UTC",
        "took": duration(summary.duration_ms),
        "tokens": tokens,
        "cost $": money(summary.cost_usd),
        "error": ": ".join(filter(None, (summary.error_type, summary.error_message))),
        "prompt": texts.get("prompt"),
        "response": texts.get("response"),
    }
    for name, value in facts.items():
        if value:
            text = shorten(clean(value), _LONGEST_TEXT, placeholder=" …")
            indented = fill(f"{name:9}{text}", out.width, subsequent_indent=" " * 9)
            out.print(Text(indented), soft_wrap=True)
