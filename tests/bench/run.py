"""Runs the benchmarks on a server of its own: `make bench ARGS="--only ingest --json out.json"`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg

# Run as a program: its own folder is on the path, but not the one that holds the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tracedb.server
from bench import (  # noqa: F401  # they register their benchmarks
    bulk,
    erasure,
    ingest,
    learning,
    patterns,
    reads,
    retention,
    rollups,
    sized,
    writer,
)
from bench.harness import BENCHMARKS, Context, environment, run

# As on a small server of one's own; what a commit promises is kept.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "jit": "off",
    "max_locks_per_transaction": "1024",
}
QUICK = 0.01


def main() -> int:
    options = parser().parse_args()
    chosen = [ours for ours in BENCHMARKS if ours.name.startswith(tuple(options.only))]
    if not chosen:
        print(f"no benchmark is named {' or '.join(options.only)}", file=sys.stderr)
        return 2
    scale = QUICK if options.quick else options.scale
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-bench-"))
    scratch.chmod(0o755)  # the server may run as another OS user
    try:
        with tracedb.server.start(scratch / "data", settings=SETTINGS) as server:
            with psycopg.connect(server.dsn) as conn:
                document: dict[str, Any] = {"environment": environment(conn, scale, options.repeat)}
            context = Context(server.dsn, scale)
            results = []
            for ours in chosen:
                results.append(run(ours, context, options.repeat))
                print(results[-1].as_text(), end="\n\n", flush=True)
    finally:
        shutil.rmtree(scratch)
    if options.json:
        document["benchmarks"] = [result.as_dict() for result in results]
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = ", ".join(ours.name for ours in BENCHMARKS)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help=f"begins of: {names}"
    )
    parser.add_argument("--quick", action="store_true", help="a hundredth of the data")
    parser.add_argument("--scale", type=float, default=1.0, metavar="S", help="share of it (1)")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
