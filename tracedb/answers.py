"""From what SQL answers to typed values, and from values to the JSON that SQL takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from tracedb.errors import InvalidInput
from tracedb.rows import TraceSummary


def summaries(found: Sequence[dict[str, Any]]) -> list[TraceSummary]:
    """Rows of find_traces without their cursors."""
    return [TraceSummary(**{name: row[name] for name in row if name != "cursor"}) for row in found]


def as_json(value: object) -> str:
    """A value of a filter as JSON has it: money keeps its digits."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    raise InvalidInput.of("filter", f"cannot hold {value!r}")


def figures_of(text: str) -> dict[str, Any]:
    """A document of figures: times and durations typed, money as decimals."""

    def typed(figures: dict[str, Any]) -> dict[str, Any]:
        return {name: _figure(name, value) for name, value in figures.items()}

    document: dict[str, Any] = json.loads(text, parse_float=Decimal, object_hook=typed)
    return document


def _figure(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in ("since", "until") or name.endswith("_at"):
        return datetime.fromisoformat(value)
    if name.endswith("_ms"):
        return float(value)
    return Decimal(value) if name.endswith(("_usd", "_wape", "_mape")) else value
