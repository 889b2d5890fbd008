"""Small result files in the forms of tau2-bench and tau-bench, and where the real ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REAL = Path(__file__).parents[2] / "shared" / "data"


def tau2_document() -> dict[str, Any]:
    """Two simulations of a shop: one that succeeds with two calls at once, one that is cut off."""
    return {
        "timestamp": "2025-01-15T10:00:00",
        "info": {
            "agent_info": {"implementation": "llm_agent", "llm": "acme/think-1"},
            "user_info": {"implementation": "user_simulator", "llm": "tiny-2"},
            "environment_info": {"domain_name": "shop"},
        },
        "tasks": [{"id": "7", "user_scenario": {"instructions": "You want a blue lamp."}}],
        "simulations": [
            {
                "id": "sim-1",
                "task_id": "7",
                "start_time": "2025-01-15T10:00:00.000000",
                "end_time": "2025-01-15T10:00:20.000000",
                "duration": 19.9995,
                "termination_reason": "user_stop",
                "agent_cost": 0.1,
                "user_cost": 0.20000000000000001,
                "reward_info": {"reward": 1.0},
                "trial": 0,
                "seed": 42,
                "messages": [
                    _said("assistant", "2025-01-15T10:00:01", "Hello!", cost=0.0),
                    _said("user", "2025-01-15T10:00:03", "A blue lamp?", 0.01, (10, 4)),
                    _said(
                        "assistant",
                        "2025-01-15T10:00:08.5",
                        None,
                        0.02,
                        (30, 9),
                        [_call("c1", "find", color="blue"), _call("c2", "stock", item=3.5)],
                    ),
                    _result("c2", "2025-01-15T10:00:09", "Error: no such item", error=True),
                    _result("c1", "2025-01-15T10:00:10", '{"item": 4}'),
                    _said("assistant", "2025-01-15T10:00:15", "Here it is.", 0.03, (50, 5)),
                ],
            },
            {
                "id": "sim-2",
                "task_id": "7",
                "start_time": "2025-01-15T11:00:00+01:00",
                "end_time": "2025-01-15T11:00:05+01:00",
                "duration": 5,
                "termination_reason": "max_steps",
                "agent_cost": 0.5,
                "user_cost": None,
                "reward_info": {"reward": 0.0, "info": {"note": "cut off"}},
                "trial": 1,
                "seed": None,
                "messages": [
                    _said("user", "2025-01-15T11:00:02+01:00", "A lamp?", None, (10, 4)),
                    _said(
                        "assistant",
                        "2025-01-15T11:00:04+01:00",
                        "Wait.",
                        None,
                        (20, 8),
                        [_call("c1", "find")],
                    ),
                ],
            },
        ],
    }


def tau_document() -> list[dict[str, Any]]:
    """Two runs of one task: one that fails, one that succeeds."""
    return [
        {
            "task_id": 3,
            "trial": trial,
            "reward": float(trial),
            "info": {
                "task": {"user_id": "mia", "instruction": "You want a lamp."},
                "user_cost": 0.0035475000000000003,
            },
            "traj": [
                {"role": "system", "content": "Be polite."},
                {"role": "user", "content": "A lamp?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "function": {"name": "find", "arguments": '{"a": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "Error: none left"},
                {"role": "assistant", "content": "Sorry."},
            ],
        }
        for trial in (0, 1)
    ]


def write(folder: Path, document: object, name: str = "shop.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def _said(
    role: str,
    timestamp: str,
    content: str | None,
    cost: float | None,
    tokens: tuple[int, int] | None = None,
    tool_calls: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    return {
        "role": role,
        "timestamp": timestamp,
        "content": content,
        "cost": cost,
        "usage": tokens and {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
        "tool_calls": tool_calls,
        "raw_data": None,
    }


def _call(id: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id, "name": name, "arguments": arguments, "requestor": "assistant"}


def _result(id: str, timestamp: str, content: str, *, error: bool = False) -> dict[str, Any]:
    return {"role": "tool", "id": id, "timestamp": timestamp, "content": content, "error": error}
