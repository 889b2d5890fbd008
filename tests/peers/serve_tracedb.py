"""A small service that takes records by HTTP and records them through a writer with a spool."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import tracedb
from peers.workload import TENANT


class Handler(BaseHTTPRequestHandler):
    """Answers 200 once the writer has accepted every record of the request."""

    protocol_version = "HTTP/1.1"
    writer: tracedb.Writer

    def do_POST(self) -> None:
        records = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        accepted = all(self.writer.record(record) for record in records)
        self.send_response(200 if accepted else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, *_: object) -> None:
        pass


def main() -> None:
    with (
        tracedb.connect() as db,
        db.writer(tenant_id=TENANT, spool=os.environ["TRACEDB_SPOOL_DIR"]) as writer,
    ):
        Handler.writer = writer
        with ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler) as server:
            server.serve_forever()


if __name__ == "__main__":
    main()
