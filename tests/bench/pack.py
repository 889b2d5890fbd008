"""What a recording call spends on one record: `python tests/bench/pack.py`."""

from __future__ import annotations

import json
import sys
import timeit
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import at, trace_id
from tracedb.pack import Limits, pack

RECORD: dict[str, Any] = {
    "type": "span",
    "trace_id": trace_id(),
    "span_id": "00000000000000ab",
    "parent_span_id": "00000000000000aa",
    "name": "chat",
    "operation_type": "llm",
    "started_at": at(),
    "ended_at": at(840),
    "provider": "openai",
    "request_model": "gpt-4o",
    "response_model": "gpt-4o-2024-08-06",
    "input_tokens": 812,
    "output_tokens": 120,
    "cache_read_tokens": 0,
    "cost_usd": "0.00325",
    "agent_id": "helpdesk",
    "conversation_id": "c-1",
    "attributes": {"temperature": 0.2, "max_tokens": 512, "url": "https://api.example.com/v1/chat"},
    "input": {
        "messages": [
            {"role": "system", "content": "You are a helpful agent of the airline. " * 8},
            {"role": "user", "content": "I booked ABC123 from Paris to Rome. Change it, please."},
        ]
    },
    "output": "I can help you with that. " * 12,
}
CASES = {
    "nothing like a secret": RECORD,
    "a secret by name": RECORD | {"attributes": {"headers": {"Authorization": "Bearer abc"}}},
    "a secret in a text": RECORD | {"output": "Your password is set: password=hunter2"},
}


def main() -> None:
    print(f"{len(json.dumps(RECORD))} bytes")
    limits = Limits()
    for name, record in CASES.items():
        for what, call in (
            ("json.dumps", lambda record=record: json.dumps(record)),
            ("pack", lambda record=record: pack(record, limits)),
        ):
            best = min(timeit.repeat(call, number=5000, repeat=7)) / 5000
            print(f"{name:24}{what:12}{best * 1e6:8.1f} us")


if __name__ == "__main__":
    main()
