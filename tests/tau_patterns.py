"""Whether patterns of real runs are found again: `tests/tau_patterns.py FILE [--embedder E]`.

FILE is a file of the older tau-bench (a list of runs, each with a task and a trial). The runs of
trials 0 to 2 are imported, with what the user said in them as prompt, and patterns are learned from
them; then each task of trial 3 that has a pattern is searched by its instruction, a text that no
pattern holds. The second search is by what the user of trial 3 said. Needs the extras embedded and
minilm.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any
from uuid import UUID

import tracedb
from tracedb import server
from tracedb.cli_patterns import embedder_named
from tracedb.demo import cover
from tracedb.embeddings import Embedder
from tracedb.migrate import migrate
from tracedb.records import Record
from tracedb.runs import RunFile
from tracedb.tau2 import read

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
    """The tools that the agent called, in order; several calls of one in a row are one step."""
    names = (
        call["function"]["name"]
        for message in run["traj"]
        for call in message.get("tool_calls") or ()
    )
    return [name for name, _ in groupby(names)]


def learn(
    tenant: tracedb.Tenant, file: RunFile, runs: list[Run], prompt: Callable[[Run], str]
) -> dict[UUID, int]:
    """Import the runs of the first trials and learn from them; the task of each pattern."""
    of_record = {(str(run["task_id"]), run["trial"]): run for run in runs}
    tasks: dict[str, int] = {}
    records: list[Record] = []
    for record in file.records:
        if record["type"] == "trace":
            run = of_record[record["context"]["task_id"], record["context"]["trial"]]
            if run["trial"] < 3:
                tasks[record["external_id"]] = run["task_id"]
                records.append({**record, "prompt": prompt(run)})
        elif record["external_id"] in tasks:
            records.append(record)
    assert not tenant.ingest(records).rejected
    while (learned := tenant.extract_patterns()) and learned.examined:
        pass
    of_trace = {tenant.find_trace(external_id): task for external_id, task in tasks.items()}
    documents = [tenant.get_pattern(row.pattern_id) for row in tenant.list_patterns(1000)]
    return {
        UUID(document["pattern_id"]): of_trace[UUID(document["source_trace_ids"][0])]
        for document in documents
        if document
    }


def asked(
    tenant: tracedb.Tenant,
    embedder: Embedder,
    tasks: dict[UUID, int],
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
        best = found[0].tool_sequence if found else []
        yield run, [tasks[pattern.pattern_id] for pattern in found], best


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


def results(
    db: tracedb.TraceDB, path: Path, embedder: Embedder
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What was searched by what, by which part of it, and the figures."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as lines:
        runs: list[Run] = json.load(lines)
    file = read(path)
    cover(db, file.times)
    for what, prompt, search in (
        ("what users said, by instructions", said, instruction),
        ("what users said, by what users said", said, said),
        ("instructions, by the same instructions", instruction, instruction),
    ):
        tenant_id = db.ensure_tenant(what)
        assert tenant_id is not None
        tenant = db.tenant(tenant_id)
        tasks = learn(tenant, file, runs, prompt)
        tracedb.embed_patterns(tenant, embedder)
        held = [run for run in runs if run["trial"] == 3 and run["task_id"] in tasks.values()]
        for by in ("meaning and words", "meaning", "words"):
            yield what, by, report(list(asked(tenant, embedder, tasks, held, search, by=by)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--embedder", default="minilm", metavar="E")
    options = parser.parse_args()
    embedder = embedder_named(options.embedder)
    with tempfile.TemporaryDirectory(prefix="tracedb-tau-") as folder:
        Path(folder).chmod(0o755)  # the server may run as another OS user
        with server.start(Path(folder) / "data") as running:
            migrate(running.dsn)
            with tracedb.connect(running.dsn) as db:
                for what, by, figures in results(db, options.file, embedder):
                    shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
                    print(f"{what}, {by}: {shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
