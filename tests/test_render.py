"""Tables and trees in the terminal: what they say, in any width, to people and into pipes."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tracedb import render
from tracedb.errors import ExtraMissing
from tracedb.rows import TreeNode

START = datetime(2026, 3, 1, tzinfo=UTC)
TRACE = UUID("01957000-0000-7000-8000-000000000001")


def node(no: int, parent: int | None = None, depth: int = 0, **fields: Any) -> TreeNode:
    """A node that runs from `begin` to `end`, in seconds after the start (end None: unknown)."""
    begin, end = fields.pop("begin", 0.0), fields.pop("end", 10.0)
    took = None if end is None else round((end - begin) * 1_000_000)
    values: dict[str, Any] = {
        "node_type": "llm" if parent else "trace",
        "trace_id": TRACE,
        "span_id": f"{no:016x}" if parent else None,
        "name": f"node {no}",
        "status": "ok",
        "started_at": START + timedelta(seconds=begin),
        "ended_at": None if end is None else START + timedelta(seconds=end),
        "duration_us": took,
        "self_us": took,
        "on_critical_path": False,
        "is_orphan": False,
        "agent_id": None,
        "model": None,
        "input_tokens": None,
        "output_tokens": None,
        "cost_usd": None,
        "error": None,
    }
    return TreeNode(node_no=no, parent_no=parent, depth=depth, **values | fields)


def drawn(nodes: Sequence[TreeNode], width: int = 80, *, show_all: bool = False) -> list[str]:
    out = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    render.tree(out, nodes, show_all=show_all)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_a_tree_shows_what_there_is_to_know_of_each_node() -> None:
    nodes = [
        node(1, name="book", agent_id="agent-a", on_critical_path=True, self_us=2_000_000),
        node(
            2, 1, 1, name="chat", model="m-1", begin=0, end=4, status="error", error="too long",
            input_tokens=1200, output_tokens=34, cost_usd=Decimal("0.0017304"),
        ),
        node(3, 1, 1, name="find", node_type="tool", begin=4, end=10, on_critical_path=True),
    ]  # fmt: skip

    header, trace, chat, error, find, legend = drawn(nodes, 72)
    assert header.split() == ["took", "self", "tokens", "cost", "$"]
    assert trace.split() == ["✓", "trace", "book", "agent-a", "█" * 10, "10.0", "s", "2.0", "s"]
    assert chat.split()[1:] == [
        "✗",
        "llm",
        "chat",
        "m-1",
        "░░░░",
        "4.0",
        "s",
        "1.2k→34",
        "0.0017304",
    ]
    assert error == "│    too long"
    assert find.startswith("└─ ✓ tool find")
    assert find.index("█") > chat.rindex("░"), "it began when the other had ended"
    assert legend == "█ decided how long it took, ░ did not"


def test_an_orphan_and_an_unknown_end_are_marked_and_explained() -> None:
    lines = drawn([node(1), node(2, 1, 1, is_orphan=True, end=None, status="running")], 100)

    assert "… llm node 2 (orphan)" in lines[2]
    assert "·" in lines[2]
    assert lines[-1].endswith("orphan: its parent was not recorded, · end unknown")


def test_a_large_tree_is_cut_with_a_count_unless_all_is_asked_for() -> None:
    nodes = [node(1), *(node(no, 1, 1) for no in range(2, 10_001))]

    short, whole = drawn(nodes), drawn(nodes, show_all=True)

    assert len(short) == render.MOST_NODES + 3
    assert short[-1] == "and 9,800 more of 10,000 nodes: --all shows them"
    assert len(whole) == 10_000 + 2
    assert "└─ ✓ llm node 10000" in whole[-2]


def test_a_tree_ten_thousand_deep_is_drawn() -> None:
    nodes = [node(1), *(node(no, no - 1, no - 1) for no in range(2, 10_001))]

    assert drawn(nodes, show_all=True)[-2].startswith("⋯9999 ")


texts = st.text(max_size=60)


@given(
    width=st.integers(60, 200),
    name=texts,
    model=st.none() | texts,
    error=st.none() | texts,
    cost=st.none() | st.decimals(0, 10**6, places=12),
    tokens=st.none() | st.integers(0, 10**15),
    begin=st.floats(0, 1e6),
    took=st.none() | st.floats(0, 1e6),
    status=st.sampled_from(["ok", "error", "timeout", "cancelled", "running"]),
)
def test_no_line_is_wider_than_the_terminal_nor_commands_it(
    width: int,
    name: str,
    model: str | None,
    error: str | None,
    cost: Decimal | None,
    tokens: int | None,
    begin: float,
    took: float | None,
    status: str,
) -> None:
    end = None if took is None else begin + took
    fields = {"name": name, "model": model, "error": error, "cost_usd": cost, "status": status}
    lines = drawn(
        [node(1), node(2, 1, 1, begin=begin, end=end, input_tokens=tokens, **fields)], width
    )

    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (None, "unknown"),
        (0, "0 ms"),
        (0.24, "0.2 ms"),
        (9.96, "10 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (99_940, "99.9 s"),
        (1_497_950, "24m 58s"),
        (7_260_000, "2h 01m"),
    ],
)
def test_durations_have_the_digits_that_count(milliseconds: float | None, shown: str) -> None:
    assert render.duration(milliseconds) == shown


@pytest.mark.parametrize(
    ("amount", "places", "shown"),
    [
        (None, None, "unknown"),
        ("0", None, "0"),
        ("0.0", None, "0"),
        ("0.0795290000000000018", None, "0.0795290000000000018"),
        ("0.0795290000000000018", 7, "≈0.0795290"),
        ("0.0172400", 7, "0.01724"),
        ("1E-7", None, "0.0000001"),
        ("1200", None, "1200"),
    ],
)
def test_money_hides_no_digit(amount: str | None, places: int | None, shown: str) -> None:
    assert render.money(None if amount is None else Decimal(amount), places) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "unknown"),
        (0, "0%"),
        (0.0001, "0.1%"),
        (0.375, "38%"),
        (0.9999, "99.9%"),
        (1, "100%"),
    ],
)
def test_a_share_is_0_or_100_percent_only_if_it_is(share: float | None, shown: str) -> None:
    assert render.percent(share) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(None, "unknown"), (847, "847"), (6_400, "6.4k"), (99_960, "100k"), (1_200_000, "1.2M")],
)
def test_counts_are_short(number: int | None, shown: str) -> None:
    assert render.short_count(number) == shown


def tabled(width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    rows = [
        render.Row(Text("a rather long label"), ("2026-01-01", "7 s"), remark="it\nbroke"),
        render.Row(Text("b"), ("2026-01-02", "10 s")),
    ]
    render.table(out, ("what", "started", "took"), rows, droppable="started")
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_a_table_puts_figures_beside_labels_where_there_is_room() -> None:
    assert tabled(40) == [
        "what                    started  took",
        "a rather long label  2026-01-01   7 s",
        "  it broke",
        "b                    2026-01-02  10 s",
    ]


def test_a_narrower_table_drops_a_column_and_then_puts_figures_below() -> None:
    assert tabled(30)[1] == "a rather long label   7 s"
    assert tabled(20)[1:3] == ["a rather long label", "  2026-01-01   7 s"]


PROGRAM = """
from rich.text import Text
from tracedb import render
out = render.console()
render.heading(out, "Title", "remark")
out.print(render.mark("error"))
"""


def output(*, to_terminal: bool, **env: str) -> str:
    master, slave = pty.openpty()
    try:
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            check=True,
            stdin=slave,
            stdout=slave if to_terminal else subprocess.PIPE,
            env={"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **env},
        )
        return str(os.read(master, 10_000) if to_terminal else result.stdout, "utf-8")
    finally:
        os.close(master)
        os.close(slave)


def test_only_a_terminal_gets_colours_and_not_if_it_wants_none() -> None:
    assert "\x1b[" in output(to_terminal=True)
    assert "\x1b" not in output(to_terminal=True, NO_COLOR="1")
    assert "\x1b" not in output(to_terminal=False)


def test_letters_that_the_terminal_does_not_know_are_replaced() -> None:
    assert output(to_terminal=False, PYTHONIOENCODING="ascii").split() == ["Title", "remark", "?"]


def test_without_rich_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)

    with pytest.raises(ExtraMissing, match=r"pip install 'tracedb\[cli\]'"):
        render.console()


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (10_200, "10 kB"),
        (1_023_000, "999 kB"),
        (1_024_000, "1.0 MB"),
        (3 * 1024**3, "3.0 GB"),
        (5_000 * 1024**4, "5000 TB"),
    ],
)
def test_a_size_has_two_or_three_digits(number: int, shown: str) -> None:
    assert render.size(number) == shown


def test_a_bar_is_as_long_as_its_share() -> None:
    bars = [render.bar(share, 8) for share in (0, 1e-9, 0.5, 0.515625, 1)]

    assert bars == ["", "▏", "████", "████▏", "████████"]


@given(st.lists(st.integers(0, 10**9), max_size=40))
def test_a_sparkline_has_a_cell_for_every_value(values: list[int]) -> None:
    line = render.sparkline(values)

    assert len(line) == len(values)
    assert [cell == " " for cell in line] == [value == 0 for value in values]
    shown = sorted(zip(values, line, strict=True))
    assert [cell for _, cell in shown] == sorted(cell for _, cell in shown)
    assert not any(values) or shown[-1][1] == "█"
