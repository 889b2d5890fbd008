"""Worker: stores the spans through `Tenant.ingest`, a call a batch."""

from __future__ import annotations

import tracedb
from peers.worker import Batch, Send, work
from peers.workload import TENANT, as_records


def prepare(batches: list[Batch]) -> Send:
    tenant = tracedb.connect(max_size=1).tenant(TENANT)
    calls = [as_records(batch) for batch in batches]

    def send() -> int:
        for records in calls:
            receipt = tenant.ingest(records)
            if receipt.inserted != len(records):
                raise RuntimeError(f"of {len(records)} records {receipt}")
        return sum(len(batch) for batch in batches)

    return send


if __name__ == "__main__":
    work(prepare)
