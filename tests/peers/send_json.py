"""Worker: posts the spans as JSON records to the service in serve_tracedb.py."""

from __future__ import annotations

import json

from peers.worker import Batch, Send, posting, work
from peers.workload import as_records


def prepare(batches: list[Batch]) -> Send:
    bodies = [json.dumps(as_records(batch)).encode() for batch in batches]
    requests = [(len(batch), body) for batch, body in zip(batches, bodies, strict=True)]
    return posting("application/json", requests)


if __name__ == "__main__":
    work(prepare)
