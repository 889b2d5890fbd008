"""The command for Prometheus: metrics."""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tracedb.cli import say

if TYPE_CHECKING:
    from tracedb.cli import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser(
        "metrics",
        help="metrics for Prometheus: print them, serve them, or write them to a file",
        description="Prints the metrics of a database as Prometheus reads them, for all tenants."
        " Needs a login in tracedb_maintainer or tracedb_service. Exits with 4 if the database does"
        " not answer (tracedb_up is 0 then) and with 1 if it does not answer all.",
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--serve", type=_address, metavar="HOST:PORT", help="serve them at http://HOST:PORT/metrics"
    )
    where.add_argument(
        "--textfile",
        type=Path,
        metavar="PATH",
        help="replace this file (*.prom) with them at once, for node_exporter's textfile collector",
    )
    command.add_argument(
        "--hours", type=_positive, default=1.0, metavar="N", help="what is recent: N hours (1)"
    )
    command.add_argument(
        "--timeout",
        type=_positive,
        default=8.0,
        metavar="S",
        help="answer within S seconds, with what is known by then (8)",
    )
    command.add_argument(
        "--per-tenant", action="store_true", help="tell tenants apart, by the label tenant_id"
    )
    command.set_defaults(run=_metrics)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 65_536):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9187")
    return host.strip("[]"), int(port)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 10_000:
        raise argparse.ArgumentTypeError("must be more than 0, and 10000 at most")
    return number


def _metrics(args: argparse.Namespace) -> int:
    from tracedb import dsn
    from tracedb.errors import ConnectionFailed, ExtraMissing, TracedbError

    try:
        import prometheus_client
    except ImportError:
        raise ExtraMissing(
            "metrics need the package prometheus-client: pip install 'tracedb[metrics]'"
        ) from None

    from tracedb.metrics import DatabaseCollector, registry

    collector = DatabaseCollector(
        dsn.resolve(args.dsn),
        window=timedelta(hours=args.hours),
        per_tenant=args.per_tenant,
        timeout=args.timeout,
    )
    try:
        if args.serve:
            host, port = args.serve
            server, thread = prometheus_client.start_http_server(port, host, registry(collector))
            shown = f"[{host}]" if ":" in host else host
            say(f"serving http://{shown}:{server.server_port}/metrics")
            thread.join()
            return 0
        if args.textfile:
            prometheus_client.write_to_textfile(str(args.textfile), registry(collector))
    except OSError as error:
        what = error.filename or ":".join(map(str, args.serve or ()))
        raise TracedbError(f"{what}: {error.strerror}") from error
    if not args.textfile:
        sys.stdout.write(prometheus_client.generate_latest(registry(collector)).decode())
    if not collector.is_up:
        return ConnectionFailed.exit_code
    return 1 if collector.failed else 0
