"""What every worker does: get the spans ready, wait for the word, hand them over, say how many.

Workers are processes of their own, each run by the Python of the system that it feeds. This module
needs nothing but the standard library.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Batch = list[dict[str, Any]]
# Hands everything over, and answers how many spans were acknowledged.
Send = Callable[[], int]
# How many spans a request carries, and its body.
Request = tuple[int, bytes]

_CONNECTIONS = 2


def work(prepare: Callable[[list[Batch]], Send]) -> None:
    """Speak with `processes.Worker`: the file of spans is the first argument."""
    lines = Path(sys.argv[1]).read_text().splitlines()
    send = prepare([json.loads(line) for line in lines])
    print("ready", flush=True)
    sys.stdin.readline()
    print(send(), flush=True)
    # A worker that writes to the database itself is what the kill test kills.
    sys.stdin.readline()


def posting(content_type: str, requests: list[Request]) -> Send:
    """Post the requests over two connections, to the endpoint that the environment names.

    A span is acknowledged when its request is answered with a status of 2xx.
    """
    target = urlsplit(os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
    extra = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "")
    headers = {"Content-Type": content_type}
    headers |= dict(header.split("=", 1) for header in extra.split(",") if header)

    def post(share: list[Request]) -> int:
        acknowledged = 0
        connection = http.client.HTTPConnection(target.netloc, timeout=600)
        for spans, body in share:
            connection.request("POST", target.path, body, headers)
            response = connection.getresponse()
            answer = response.read()
            if 200 <= response.status < 300:
                acknowledged += spans
            else:
                print(response.status, answer[:500], file=sys.stderr)
        connection.close()
        return acknowledged

    def send() -> int:
        shares = [requests[n::_CONNECTIONS] for n in range(_CONNECTIONS)]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return sum(pool.map(post, shares))

    return send
