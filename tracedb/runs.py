"""Benchmark runs as records: what the readers of both formats share, and storing a file whole."""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, Inexact
from typing import Any

from tracedb.client import Tenant
from tracedb.errors import InvalidInput
from tracedb.fields import Field
from tracedb.records import Record
from tracedb.rows import Receipt

_EXACT = Context(prec=300, traps=[Inexact])


@dataclass(slots=True)
class RunFile:
    """The records of a file, the path in it that each came from, and the sums over all of it."""

    name: str
    records: list[Record] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    traces: int = 0
    spans: int = 0
    tool_calls: int = 0
    successes: int = 0
    costs: list[Decimal | None] = field(default_factory=list)

    @property
    def cost_usd(self) -> Decimal | None:
        """What all runs cost together; None if that of one is unknown."""
        return exact_sum(self.costs)

    @property
    def times(self) -> list[datetime]:
        return [record["started_at"] for record in self.records]

    def add(self, run: Field, trace: Record, spans: Iterable[tuple[str, Record]]) -> None:
        """A run: its trace, and its spans with the paths they came from."""
        self.records.append(trace)
        self.origins.append(run.path)
        self.traces += 1
        self.successes += trace["status"] == "ok"
        self.costs.append(trace["cost_usd"])
        for path, span in spans:
            self.records.append(span)
            self.origins.append(path)
            self.spans += 1
            self.tool_calls += span["operation_type"] == "tool"


def exact_sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    """The sum to the last digit; None if an amount is unknown, or if there is none."""
    total: Decimal | None = None
    for amount in amounts:
        if amount is None:
            return None
        total = amount if total is None else _EXACT.add(total, amount)
    return total


def span_id(run_id: str, *position: int) -> str:
    """The id of a part of a run, the same at every import."""
    return hashlib.sha256(repr((run_id, position)).encode()).hexdigest()[:16]


class ToolCalls:
    """The tool spans of a run: a call waits for the result that carries its id."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, Any]]] = []
        # an id may come again, or be empty: the oldest call that waits is meant
        self._waiting: defaultdict[str, deque[dict[str, Any]]] = defaultdict(deque)

    def ask(self, call: Field, id: Field, span: dict[str, Any]) -> None:
        """A call, as a span that is cancelled unless a result comes."""
        call_id = id.text()
        span |= {
            "type": "span",
            "operation_type": "tool",
            "status": "cancelled",
            "attributes": {"call_id": call_id},
        }
        self.spans.append((call.path, span))
        self._waiting[call_id].append(span)

    def answer(self, id: Field, result: dict[str, Any]) -> None:
        """The result of the oldest call of that id."""
        queue = self._waiting[id.text()]
        if not queue:
            raise id.wrong("no tool call before it has this id")
        queue.popleft().update(result)


def store(tenant: Tenant, file: RunFile) -> Receipt:
    """Store all records of a file in one transaction, or none of them (InvalidInput)."""
    with tenant.transaction() as whole:
        receipt = whole.ingest(file.records)
        if receipt.rejected:
            first = receipt.rejected[0]
            raise InvalidInput.of(f"{file.name}: {file.origins[first.index]}", first.reason)
    return receipt
