"""Whether patterns of real runs are found again: `tests/tau_patterns.py FILE [--embedder E]`.

FILE is a file of the older tau-bench (a list of runs, each with a task and a trial). Patterns are
saved from the successful runs of trials 0 to 2, with what the user said in them as prompt; then
each task of trial 3 that has a pattern is searched by its instruction, a text that no pattern
holds. The second search is by what the user of trial 3 said. Needs the extras embedded and minilm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean
from typing import Any

import tracedb
from tracedb import server
from tracedb.cli_patterns import embedder_named
from tracedb.embeddings import Embedder
from tracedb.migrate import migrate

Run = dict[str, Any]
K = 5


def instruction(run: Run) -> str:
    text: str = run["info"]["task"]["instruction"]
    return text


def said(run: Run) -> str:
    """What the user said, less the word that ends a conversation."""
    texts = (message["content"] for message in run["traj"] if message["role"] == "user")
    return "\n".join(text for text in texts if text and "###STOP###" not in text)


def tools(run: Run) -> list[str]:
    """The tools that the agent called, in order."""
    return [
        call["function"]["name"]
        for message in run["traj"]
        for call in message.get("tool_calls") or ()
    ]


def learn(tenant: tracedb.Tenant, runs: list[Run], prompt: Callable[[Run], str]) -> set[int]:
    """Save a pattern of each successful run of the first trials; the tasks that have one."""
    tasks = set()
    for run in runs:
        if run["trial"] < 3 and run["reward"] == 1:
            tenant.save_pattern(
                {
                    "prompt": prompt(run)[:8000],
                    "tool_sequence": tools(run)[:256],
                    "trace_count": 1,
                    "success_count": 1,
                    "metadata": {"task": run["task_id"], "trial": run["trial"]},
                }
            )
            tasks.add(run["task_id"])
    return tasks


def asked(
    tenant: tracedb.Tenant,
    embedder: Embedder,
    runs: list[Run],
    text: Callable[[Run], str],
    *,
    by: str,
) -> Iterator[tuple[Run, list[int], list[str]]]:
    """Each run with the tasks of the patterns found, best first, and the best one's tools."""
    for run, embedding in zip(runs, embedder.embed([text(run) for run in runs]), strict=True):
        found = tenant.find_patterns(
            embedding if by != "words" else None,
            text(run) if by != "meaning" else None,
            k=K,
            model=embedder.model,
            seed=1,
        )
        documents = [tenant.get_pattern(pattern.pattern_id) for pattern in found]
        tasks = [document["metadata"]["task"] for document in documents if document]
        yield run, tasks, found[0].tool_sequence if found else []


def report(results: list[tuple[Run, list[int], list[str]]]) -> dict[str, Any]:
    """How often the right task was found, and what the best pattern's tools were worth."""
    won = [(best, tools(run)) for run, _, best in results if run["reward"] == 1]
    return {
        "searches": len(results),
        "first": mean(tasks[:1] == [run["task_id"]] for run, tasks, _ in results),
        "among_5": mean(run["task_id"] in tasks for run, tasks, _ in results),
        "successful": len(won),
        "same_tools": mean(best == ours for best, ours in won),
        "same_set_of_tools": mean(set(best) == set(ours) for best, ours in won),
        "likeness_of_tools": mean(
            SequenceMatcher(None, best, ours, autojunk=False).ratio() for best, ours in won
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--embedder", default="minilm", metavar="E")
    options = parser.parse_args()
    opened = gzip.open if options.file.suffix == ".gz" else open
    with opened(options.file, "rt") as file:
        runs: list[Run] = json.load(file)
    embedder = embedder_named(options.embedder)
    with tempfile.TemporaryDirectory(prefix="tracedb-tau-") as folder:
        Path(folder).chmod(0o755)  # the server may run as another OS user
        with server.start(Path(folder) / "data") as running:
            migrate(running.dsn)
            with tracedb.connect(running.dsn) as db:
                for what, prompt, search in (
                    ("what users said, by instructions", said, instruction),
                    ("what users said, by what users said", said, said),
                    ("instructions, by the same instructions", instruction, instruction),
                ):
                    tenant_id = db.ensure_tenant(what)
                    assert tenant_id is not None
                    tenant = db.tenant(tenant_id)
                    tasks = learn(tenant, runs, prompt)
                    tracedb.embed_patterns(tenant, embedder)
                    held = [r for r in runs if r["trial"] == 3 and r["task_id"] in tasks]
                    print(f"{what}: {len(tasks)} tasks")
                    for by in ("meaning and words", "meaning", "words"):
                        found = report(list(asked(tenant, embedder, held, search, by=by)))
                        print(
                            f"  by {by}: "
                            + ", ".join(f"{name} {value:.3g}" for name, value in found.items()),
                            flush=True,
                        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
