"""Reads the older tau-bench files: a list of runs, each with its reward and its messages.

Such a file knows no times and no costs, so durations, tokens and costs stay null. A trace must have
a start, and messages an order: run n of the file starts n * 10 minutes after 2024-06-01T00:00:00Z
and its message m m seconds later, and the trace's context says `"synthetic_times": true`. The file
does not name the agent either: its own name does ("airline_gpt-4o" of airline_gpt-4o.json.gz). A
run is named by file, task, trial and a hash of its contents, so importing again stores nothing new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tracedb.fields import Field
from tracedb.runs import RunFile, ToolCalls, span_id

_EPOCH = datetime(2024, 6, 1, tzinfo=UTC)
_RUN = timedelta(minutes=10)
_MESSAGE = timedelta(seconds=1)

_NAMES = {"assistant": "agent", "user": "user simulator"}


def read_runs(document: Field, path: Path) -> RunFile:
    """The runs of a document that is a list."""
    agent_id = path.name.split(".json")[0]
    seen: dict[tuple[str, str], str] = {}
    file = RunFile(path.name)
    for n, run in enumerate(document):
        task_id, trial = run["task_id"].label(), run["trial"].label()
        if (task_id, trial) in seen:
            raise run["trial"].wrong(f"{seen[task_id, trial]} is the same trial of task {task_id}")
        seen[task_id, trial] = run.path
        trace = _trace(run, agent_id, _EPOCH + n * _RUN)
        spans = list(_spans(run, agent_id, trace["external_id"], trace["started_at"]))
        trace["llm_calls"] = sum(span["operation_type"] == "llm" for _, span in spans)
        file.add(run, trace, spans)
    return file


def _trace(run: Field, agent_id: str, started_at: datetime) -> dict[str, Any]:
    task_id, trial = run["task_id"].label(), run["trial"].label()
    task = run["info"]["task"]
    reward = run["reward"].number()
    contents = json.dumps(run.json(), sort_keys=True)
    digest = hashlib.sha256(contents.encode(errors="replace")).hexdigest()[:8]
    answers = [m["content"] for m in run["traj"] if m["role"].value == "assistant"]
    context = {
        "task_id": task_id,
        "trial": run["trial"].json(),
        "reward": run["reward"].json(),
        "synthetic_times": True,
    }
    if run["info"]["user_cost"]:
        # of the simulated user alone; what the agent cost is unknown
        context["user_cost"] = run["info"]["user_cost"].money()
    return {
        "type": "trace",
        "external_id": f"{agent_id}/task-{task_id}/trial-{trial}/{digest}",
        "name": f"task {task_id}",
        "source": "tau-bench",
        "user_id": task["user_id"].label() if task["user_id"] else None,
        "agent_id": agent_id,
        "status": "error" if reward < 1 else "ok",
        "error_type": "task_failed" if reward < 1 else None,
        "error_message": f"reward {reward}" if reward < 1 else None,
        "started_at": started_at,
        "cost_usd": None,
        "tags": ["tau-bench"],
        "context": context,
        "prompt": task["instruction"].text(),
        "response": next((a.text() for a in reversed(answers) if a.value), None),
    }


def _spans(
    run: Field, agent_id: str, run_id: str, started_at: datetime
) -> Iterator[tuple[str, dict[str, Any]]]:
    tools = ToolCalls()
    for n, message in enumerate(run["traj"]):
        at = started_at + n * _MESSAGE
        content = message["content"].text() if message["content"] else None
        role = message["role"].text()
        if role == "tool":
            tools.answer(message["tool_call_id"], _result(content))
        elif role in _NAMES:
            calls = list(message["tool_calls"]) if message["tool_calls"] else []
            span = {
                "type": "span",
                "external_id": run_id,
                "span_id": span_id(run_id, n),
                "operation_type": "llm",
                "name": _NAMES[role],
                "agent_id": agent_id if role == "assistant" else None,
                "message_id": str(n),
                "conversation_id": run_id,
                "status": "ok",
                "started_at": at,
                "output": _output(content, calls),
            }
            yield message.path, span
            for k, call in enumerate(calls):
                function = call["function"]
                tool = {
                    "external_id": run_id,
                    "span_id": span_id(run_id, n, k),
                    "parent_span_id": span["span_id"],
                    "tool_name": function["name"].label(),
                    "agent_id": agent_id,
                    "started_at": at,
                    "input": function["arguments"].text(),
                }
                tools.ask(call, call["id"], tool)
        elif role != "system":
            raise message["role"].wrong("must be system, user, assistant or tool")
    yield from tools.spans


def _output(content: str | None, calls: list[Field]) -> Any:
    if not calls:
        return content
    said = {"content": content, "tool_calls": [call.json() for call in calls]}
    return {name: part for name, part in said.items() if part}


def _result(content: str | None) -> dict[str, Any]:
    # the only sign of failure that this format has
    failed = content is not None and content.startswith("Error")
    return {
        "status": "error" if failed else "ok",
        "error_type": "tool_error" if failed else None,
        "status_message": content if failed else None,
        "output": content,
    }
