"""Reads result files of tau2-bench: a simulation becomes a trace, its messages the spans.

- The trace is named by the simulation's id (`external_id`). Its agent is the implementation and the
  model ("llm_agent grok-3-mini"), so that two models are two agents. It succeeded if its reward is
  at least 1; else `error_type` is `task_failed`, or the termination reason if the talk was cut off.
- An assistant message is an `llm` span of the agent's model, a user message one of the simulated
  user's, from the end of the message before to its own timestamp. Its input, the talk so far, is
  the outputs of the spans before it and not stored again.
  Of what the provider returned (`raw_data`) its reasoning is kept. A canned greeting, without usage
  and at no cost, is such a span as well and counts among the trace's `llm_calls`; a system message
  is none.
- A tool call and its result are one `tool` span below the message that asked for it; a call that
  got no result is `cancelled`.
- Times without an offset are UTC. "xai/grok-3-mini" is the model grok-3-mini of provider xai.
- Money keeps the digits of the file: a trace costs `agent_cost + user_cost`, unknown if one is.

The older tau-bench files are read as well; see tracedb/tau.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tracedb import tau
from tracedb.errors import InvalidInput
from tracedb.fields import Field, read_document
from tracedb.runs import RunFile, ToolCalls, exact_sum, span_id

# Ends of a talk that its parties chose; any other end cut it off.
_CHOSEN_ENDS = frozenset({"agent_stop", "user_stop"})


def read(path: Path) -> RunFile:
    """The runs of a tau2-bench or tau-bench result file, checked from end to end.

    Raises InvalidInput, which names the file and the field that is missing or wrong.
    """
    try:
        document = read_document(path)
        if isinstance(document.value, list):
            return tau.read_runs(document, path)
        return _read_results(document, path)
    except OSError as error:
        raise InvalidInput.of(str(path), error.strerror or str(error)) from None
    except InvalidInput as error:
        raise InvalidInput.of(path.name, str(error)) from None


@dataclass(frozen=True, slots=True)
class _Party:
    """A side of the talk: the agent, or the simulated user."""

    name: str
    agent_id: str
    provider: str | None
    model: str | None

    @classmethod
    def of(cls, info: Field, name: str) -> _Party:
        implementation = info["implementation"].label()
        if not info["llm"]:
            return cls(name, implementation, None, None)
        provider, slash, model = info["llm"].label().partition("/")
        if not slash:
            provider, model = "", provider
        return cls(name, f"{implementation} {model}", provider or None, model)


def _read_results(document: Field, path: Path) -> RunFile:
    info = document["info"].required()
    domain = info["environment_info"]["domain_name"].label()
    parties = {
        "assistant": _Party.of(info["agent_info"], "agent"),
        "user": _Party.of(info["user_info"], "user simulator"),
    }
    tasks = {task["id"].label(): task for task in document["tasks"]}
    seen: dict[str, str] = {}
    file = RunFile(path.name)
    for simulation in document["simulations"]:
        id = simulation["id"].label()
        if id in seen:
            raise simulation["id"].wrong(f"{seen[id]} has the same")
        seen[id] = simulation.path
        task = tasks.get(simulation["task_id"].label())
        trace = _trace(simulation, domain, parties["assistant"], task)
        spans = list(_spans(simulation, parties))
        usage = [span for _, span in spans if span["operation_type"] == "llm"]
        trace |= {
            "llm_calls": len(usage),
            "input_tokens": _known_sum(span["input_tokens"] for span in usage),
            "output_tokens": _known_sum(span["output_tokens"] for span in usage),
            "response": _last_answer(simulation),
        }
        trace["prompt"] = trace["prompt"] or _first_question(simulation)
        file.add(simulation, trace, spans)
    return file


def _trace(simulation: Field, domain: str, agent: _Party, task: Field | None) -> dict[str, Any]:
    started_at = simulation["start_time"].time()
    ended_at = simulation["end_time"].time()
    if ended_at < started_at:
        raise simulation["end_time"].wrong("must not be before start_time")
    reward = simulation["reward_info"]["reward"].number()
    ending = simulation["termination_reason"].label()
    failed = reward < 1
    task_id = simulation["task_id"].label()
    costs = (simulation["agent_cost"], simulation["user_cost"])
    return {
        "type": "trace",
        "external_id": simulation["id"].label(),
        "name": f"{domain} task {task_id}",
        "source": "tau2-bench",
        "agent_id": agent.agent_id,
        "status": "error" if failed else "ok",
        "error_type": (None if not failed else "task_failed" if ending in _CHOSEN_ENDS else ending),
        "error_message": _shortfall(simulation["reward_info"], reward) if failed else None,
        "started_at": started_at,
        "ended_at": ended_at,
        "duration_ms": simulation["duration"].milliseconds(),
        "cost_usd": exact_sum(cost.money() if cost else None for cost in costs),
        "tags": [domain, "tau2-bench"],
        "context": {
            "domain": domain,
            "task_id": task_id,
            "trial": simulation["trial"].json(),
            "seed": simulation["seed"].json(),
            "reward": simulation["reward_info"]["reward"].json(),
            "termination_reason": ending,
        },
        "prompt": task["user_scenario"]["instructions"].json() if task else None,
    }


def _shortfall(reward_info: Field, reward: Decimal) -> str:
    """Why the task counts as failed, as far as the file says."""
    info = reward_info["info"]
    note = info.value.get("note") if isinstance(info.value, dict) else None
    if isinstance(note, str):
        return note
    parts = reward_info["reward_breakdown"].json() or {}
    named = ", ".join(f"{name} {value}" for name, value in parts.items())
    return f"reward {reward}" + (f" ({named})" if named else "")


def _spans(simulation: Field, parties: dict[str, _Party]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The spans with the paths of the messages they come from."""
    run_id = simulation["id"].label()
    now = simulation["start_time"].time()
    tools = ToolCalls()
    for n, message in enumerate(simulation["messages"]):
        at = message["timestamp"].time()
        role = message["role"].text()
        if role == "tool":
            tools.answer(message["id"], _result(message, at))
        elif role in parties:
            span = _message_span(message, parties[role], min(now, at), at)
            span |= {
                "external_id": run_id,
                "span_id": span_id(run_id, n),
                "conversation_id": run_id,
                "message_id": str(n),
            }
            yield message.path, span
            for k, call in enumerate(_calls(message)):
                tool = {
                    "external_id": run_id,
                    "span_id": span_id(run_id, n, k),
                    "parent_span_id": span["span_id"],
                    "tool_name": call["name"].label(),
                    "agent_id": span["agent_id"],
                    "started_at": at,
                    "input": call["arguments"].json(),
                }
                tools.ask(call, call["id"], tool)
        elif role != "system":
            raise message["role"].wrong("must be assistant, user, tool or system")
        now = max(now, at)
    yield from tools.spans


def _message_span(
    message: Field, party: _Party, started_at: datetime, ended_at: datetime
) -> dict[str, Any]:
    usage = message["usage"]
    return {
        "type": "span",
        "operation_type": "llm",
        "name": party.name,
        "agent_id": party.agent_id,
        "provider": party.provider,
        "request_model": party.model,
        "status": "ok",
        "started_at": started_at,
        "ended_at": ended_at,
        "input_tokens": usage["prompt_tokens"].tokens() if usage else None,
        "output_tokens": usage["completion_tokens"].tokens() if usage else None,
        "cost_usd": message["cost"].money() if message["cost"] else None,
        "output": _output(message),
    }


def _output(message: Field) -> Any:
    """What the model said: text, or an object if it also thought or called tools."""
    content = message["content"].text() if message["content"] else None
    raw = message["raw_data"].json()
    said = raw.get("message") if isinstance(raw, dict) else None
    reasoning = said.get("reasoning_content") if isinstance(said, dict) else None
    calls = [call.json() for call in _calls(message)]
    if not reasoning and not calls:
        return content
    parts = {"content": content, "reasoning": reasoning, "tool_calls": calls}
    return {name: part for name, part in parts.items() if part}


def _calls(message: Field) -> list[Field]:
    return list(message["tool_calls"]) if message["tool_calls"] else []


def _result(message: Field, at: datetime) -> dict[str, Any]:
    content = message["content"].text() if message["content"] else None
    failed = message["error"].value is True
    return {
        "status": "error" if failed else "ok",
        "error_type": "tool_error" if failed else None,
        "status_message": content if failed else None,
        "ended_at": at,
        "output": content,
    }


def _known_sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _first_question(simulation: Field) -> str | None:
    return next(_texts(simulation, "user"), None)


def _last_answer(simulation: Field) -> str | None:
    return next(reversed(list(_texts(simulation, "assistant"))), None)


def _texts(simulation: Field, role: str) -> Iterator[str]:
    for message in simulation["messages"]:
        if message["role"].value == role and message["content"].value:
            yield message["content"].text()
