"""Tables and trees for the terminal, by rich: as wide as it is, and plain text into a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from tracedb.errors import ExtraMissing
from tracedb.rows import TreeNode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

UNKNOWN = "unknown"
MOST_NODES = 200

MARKS = {
    "ok": ("✓", "green"),
    "error": ("✗", "red"),
    "timeout": ("✗", "red"),
    "cancelled": ("-", "yellow"),
    "running": ("…", "cyan"),
}
_KINDS = {"routing_decision": "route", "endpoint_call": "call", "retrieval": "search"}
_BAR, _FAINT_BAR = "█", "░"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"
# deeper than this a line shows its depth and the nearest guides
_MOST_LEVELS = 8
# room for names, beside which the figures stand
_NARROWEST_LABEL, _NARROWEST_BAR, _WIDEST_BAR = 28, 8, 40


def console() -> Console:
    """Where answers for people go; without colours or other escapes if nobody watches it."""
    try:
        from rich.console import Console
    except ImportError:
        raise ExtraMissing(
            "tables and trees need the package rich: pip install 'tracedb[cli]'"
        ) from None
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these letters shows others
    # rich's own NO_COLOR leaves bold and dim, which are escapes as well
    plain = False if "NO_COLOR" in os.environ else None
    return Console(highlight=False, markup=False, force_terminal=plain)


def clean(text: str) -> str:
    """Recorded text in one line, without what would move the cursor or recolour the terminal."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\ufffd" for c in line)


def duration(milliseconds: float | None) -> str:
    """A duration with two or three digits that count, such as `850 ms` or `24m 58s`."""
    if milliseconds is None:
        return UNKNOWN
    if 0 < milliseconds < 9.95:
        return f"{milliseconds:.1f} ms"
    if milliseconds < 999.5:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}m {rest:02}s"
    return f"{minutes // 60}h {minutes % 60:02}m"


def money(amount: Decimal | None, places: int | None = None) -> str:
    """US dollars with all digits there are, or rounded to so many places and then marked ≈."""
    if amount is None:
        return UNKNOWN
    if places is not None and amount != (rounded := round(amount, places)):
        return f"≈{rounded:f}"
    digits = f"{amount:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def short_count(number: int | None) -> str:
    """A count in at most five characters, such as `847`, `6.4k` or `1.2M`."""
    if number is None:
        return UNKNOWN
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 99.95 else f"{scaled:.0f}{unit}"
    return str(number)


def size(number_of_bytes: float) -> str:
    """Bytes as PostgreSQL shows them, in powers of 1024, such as `640 B`, `12 kB` or `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number_of_bytes < 999.5 or unit == "TB":
            break
        number_of_bytes /= 1024
    return f"{number_of_bytes:.{1 if unit != 'B' and number_of_bytes < 9.95 else 0}f} {unit}"


def bar(share: float, cells: int) -> str:
    """A bar of so many cells at most, to an eighth of a cell; something is never nothing."""
    eighths = max(round(share * cells * 8), 1 if share > 0 else 0)
    return _BAR * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[float]) -> str:
    """Values as a line of blocks, a cell each: the highest is full, and only 0 is a gap."""
    most = max(values, default=0)
    return "".join(
        " " if value <= 0 else _LEVELS[min(int(value / most * len(_LEVELS)), len(_LEVELS) - 1)]
        for value in values
    )


def percent(share: float | None) -> str:
    if share is None:
        return UNKNOWN
    # never "100 %" of something that failed, nor "0 %" of something that worked
    shown = min(max(share * 100, 0.1 if share else 0), 99.9 if share < 1 else 100)
    return f"{shown:.1f}%" if shown % 1 and not 1 <= shown <= 99 else f"{shown:.0f}%"


def moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def heading(out: Console, title: str, remark: str = "") -> None:
    from rich.text import Text

    out.print()
    line = Text(title, style="bold")
    if remark:
        line.append(f"  {remark}", style="dim")
    out.print(line)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: what it is about, its figures, and a remark on a line of its own."""

    label: Text
    figures: tuple[str, ...]
    remark: str = ""
    style: str = ""


def table(out: Console, titles: Sequence[str], rows: Sequence[Row], *, droppable: str = "") -> None:
    """Labels with their figures beside them, or below them where both together are too wide.

    The droppable column goes if that is enough to keep the rest beside.
    """
    from rich.text import Text

    lines = [tuple(titles[1:]), *(row.figures for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = max(len(titles[0]), *(row.label.cell_len for row in rows))
    free = out.width - room - sum(widths) - 2 * len(widths)
    if free < 0 and droppable:
        place = list(titles).index(droppable) - 1
        if free + widths[place] + 2 >= 0:
            free += widths.pop(place) + 2
            lines = [line[:place] + line[place + 1 :] for line in lines]
    beside = free >= 0

    def cells(figures: Sequence[str]) -> str:
        columns = zip(figures, widths, strict=True)
        return "".join("  " + figure.rjust(width) for figure, width in columns)

    def put(text: Text, style: str = "") -> None:
        text.stylize_before(style)
        text.truncate(out.width, overflow="ellipsis")
        out.print(text, soft_wrap=True)

    header, *figures = lines
    put(Text((titles[0].ljust(room) if beside else "") + cells(header)), "dim")
    for row, line in zip(rows, figures, strict=True):
        if beside:
            row.label.truncate(room, pad=True)
            put(row.label.append(cells(line)), row.style)
        else:
            put(row.label, row.style)
            put(Text(cells(line)), row.style)
        if row.remark:
            put(Text(f"  {clean(row.remark)}"), "red")


def mark(status: str) -> Text:
    from rich.text import Text

    glyph, style = MARKS.get(status, ("?", "yellow"))
    return Text(glyph, style=style)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The time axis of a tree: from the first start to the last end, in cells of a bar."""

    begins_at: datetime
    microseconds: float
    cells: int

    @classmethod
    def of(cls, nodes: Sequence[TreeNode], cells: int) -> _Axis:
        begins_at = min(node.started_at for node in nodes)
        ends_at = max(node.ended_at or node.started_at for node in nodes)
        return cls(begins_at, max((ends_at - begins_at).total_seconds() * 1e6, 1), cells)

    def bar(self, node: TreeNode) -> str:
        """A bar from start to end, at least a cell; a dot where the end is not known."""
        start = (node.started_at - self.begins_at).total_seconds() * 1e6 / self.microseconds
        at = min(int(start * self.cells), self.cells - 1)
        if node.duration_us is None:
            return (" " * at + "·").ljust(self.cells)
        length = max(round(node.duration_us / self.microseconds * self.cells), 1)
        length = min(length, self.cells - at)
        glyph = _BAR if node.on_critical_path else _FAINT_BAR
        return (" " * at + glyph * length).ljust(self.cells)


def tree(out: Console, nodes: Sequence[TreeNode], *, show_all: bool = False) -> None:
    """A trace as a tree: a node a line, and below it the error it ended in."""
    from rich.text import Text

    shown = nodes if show_all else nodes[:MOST_NODES]
    guides = _guides(nodes)[: len(shown)]
    figures = [_figures(node) for node in shown]
    titles = ("took", "self", "tokens", "cost $")
    widths = [max(map(len, column)) for column in zip(titles, *figures, strict=True)]
    labels = [_label(node, guide) for node, guide in zip(shown, guides, strict=True)]
    free = out.width - sum(widths) - len(widths) - 1
    bar_cells = min(max(free // 4, _NARROWEST_BAR), _WIDEST_BAR)
    if free - bar_cells < _NARROWEST_LABEL:
        bar_cells = _NARROWEST_BAR
    longest = max((label.cell_len for label in labels), default=0)
    room = max(min(longest, free - bar_cells - 1), 8)
    axis = _Axis.of(nodes, bar_cells)

    cells = zip(titles, widths, strict=True)
    columns = " ".join(title.rjust(width) for title, width in cells)
    out.print(Text(f"{'':{room}} {'':{bar_cells}} {columns}", style="dim"), soft_wrap=True)
    for node, label, guide, row in zip(shown, labels, guides, figures, strict=True):
        label.truncate(room, overflow="ellipsis", pad=True)
        style = "bold cyan" if node.on_critical_path else "cyan"
        line = label.append(" ").append(axis.bar(node), style=style)
        for figure, width in zip(row, widths, strict=True):
            line.append(" " + figure.rjust(width))
        out.print(line, soft_wrap=True)
        if node.error and node.status != "ok":
            under = guide.replace("├─ ", "│  ").replace("└─ ", "   ")
            below = Text(f"{under}  {clean(node.error)}", style="red")
            below.truncate(out.width, overflow="ellipsis")
            out.print(below, soft_wrap=True)
    _legend(out, nodes, shown, is_rounded=any("≈" in row[-1] for row in figures))


def _legend(
    out: Console, nodes: Sequence[TreeNode], shown: Sequence[TreeNode], *, is_rounded: bool
) -> None:
    from rich.text import Text

    remarks = [f"{_BAR} decided how long it took", f"{_FAINT_BAR} did not"]
    if any(node.is_orphan for node in shown):
        remarks.append("orphan: its parent was not recorded")
    if any(node.duration_us is None for node in shown):
        remarks.append("· end unknown")
    if is_rounded:
        remarks.append("≈ rounded")
    out.print(Text(", ".join(remarks), style="dim"))
    if len(shown) < len(nodes):
        missing = len(nodes) - len(shown)
        out.print(Text(f"and {missing:,} more of {len(nodes):,} nodes: --all shows them"))


def _guides(nodes: Sequence[TreeNode]) -> list[str]:
    """The lines that join each node to its parent: of the nearest levels, if there are many."""
    last_child = {node.parent_no: node.node_no for node in nodes}
    # what stands before the children of a node
    before: dict[int | None, str] = {}
    guides = []
    for node in nodes:
        if node.parent_no is None:
            before[node.node_no] = ""
            guides.append("")
            continue
        is_last = last_child[node.parent_no] == node.node_no
        above = before[node.parent_no]
        skipped = f"⋯{node.depth} " if node.depth > _MOST_LEVELS else ""
        guides.append(skipped + above + ("└─ " if is_last else "├─ "))
        before[node.node_no] = (above + ("   " if is_last else "│  "))[-3 * (_MOST_LEVELS - 2) :]
    return guides


def _label(node: TreeNode, guide: str) -> Text:
    from rich.text import Text

    label = Text().append(guide, "dim").append_text(mark(node.status))
    kind = _KINDS.get(node.node_type, node.node_type)
    label.append(f" {kind}", "magenta")
    name = clean(node.name or "")
    if name and name != kind:
        label.append(f" {name}", "bold" if node.on_critical_path else "")
    if node.is_orphan:
        label.append(" (orphan)", "yellow")
    said = node.model or (node.agent_id if node.node_type == "trace" else None)
    if said:
        label.append(f" {clean(said)}", "dim")
    return label


def _figures(node: TreeNode) -> tuple[str, str, str, str]:
    def took(microseconds: int | None) -> str:
        return "" if microseconds is None else duration(microseconds / 1000)

    # of a leaf all time is its own
    own = took(node.self_us) if node.self_us != node.duration_us else ""
    tokens = ""
    if node.input_tokens is not None or node.output_tokens is not None:
        tokens = f"{short_count(node.input_tokens)}→{short_count(node.output_tokens)}"
    cost = "" if node.cost_usd is None else money(node.cost_usd, 7)
    return took(node.duration_us), own, tokens, cost
