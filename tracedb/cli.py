"""The command line: finds the command, prints its answer, makes messages and exit codes of errors.

A subject brings its own commands: its module in `SUBJECTS` has `add_parser(subparsers)`, which sets
a default `run`, a function from the parsed arguments to an exit code. What is heavy is imported
inside `run`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from tracedb.errors import TracedbError, error_class

if TYPE_CHECKING:
    from tracedb.client import Tenant

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

SUBJECTS = (
    "tracedb.cli_migrate",
    "tracedb.cli_doctor",
    "tracedb.cli_partitions",
    "tracedb.cli_rollups",
    "tracedb.cli_demo",
    "tracedb.cli_import",
    "tracedb.cli_trace",
    "tracedb.cli_traces",
    "tracedb.cli_ledger",
    "tracedb.cli_stats",
    "tracedb.cli_metrics",
    "tracedb.cli_grafana",
    "tracedb.cli_prices",
    "tracedb.cli_cost",
    "tracedb.cli_patterns",
    "tracedb.cli_learning",
    "tracedb.cli_erase",
    "tracedb.cli_retention",
    "tracedb.cli_archive",
    "tracedb.cli_maintain",
)

USAGE = 2
ALREADY_RUNNING = 75
INTERRUPTED = 130
BROKEN_PIPE = 141

_EPILOG = (
    "exit codes: 0 ok, 1 failed, 2 usage, 3 drift or findings, 4 no connection, 75 already running"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader has left; the interpreter must not complain of it when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        return _fail(args, error)


def answer(args: argparse.Namespace, data: object, lines: Iterable[str]) -> None:
    """Print what a command found: one JSON document with --json, else lines for people."""
    if args.json:
        text = json.dumps(data, default=str, ensure_ascii=False)
        # what JSON has no number for, as NaN, is text
        data = json.loads(text, parse_constant=str)
        print(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        for line in lines:
            print(line)


def add_tenant(parser: argparse.ArgumentParser) -> None:
    """The option of a command that is about one tenant."""
    tenant = os.environ.get("TRACEDB_TENANT")
    parser.add_argument(
        "--tenant",
        metavar="T",
        default=tenant,
        required=tenant is None,
        help="a tenant_id or external id (default: TRACEDB_TENANT)",
    )


@contextmanager
def one_tenant(args: argparse.Namespace) -> Iterator[Tenant]:
    """The tenant that the option of `add_tenant` names, on a connection of its own."""
    from tracedb import connect
    from tracedb.demo import tenant_id_of

    with connect(args.dsn, max_size=1) as db:
        yield db.tenant(tenant_id_of(db, args.tenant))


def say(message: str) -> None:
    """Talk about the work; the answer alone goes to stdout."""
    print(message, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="tracedb",
        description="What AI agents did, what it cost and what worked, in PostgreSQL.",
        epilog=_EPILOG,
    )
    root.add_argument("--version", action="version", version=f"tracedb {version('tracedb')}")
    _add_common(root, dsn=None, json=False)
    subparsers = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for subject in SUBJECTS:
        import_module(subject).add_parser(subparsers)
    for command in _within(root):
        # allowed on either side of the command; what was said before it is not overridden
        _add_common(command, dsn=argparse.SUPPRESS, json=argparse.SUPPRESS)
    return root


def _within(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands and of their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from _within(command)


def _add_common(parser: argparse.ArgumentParser, *, dsn: object, json: object) -> None:
    parser.add_argument(
        "--dsn",
        default=dsn,
        help="the database, as a URI or libpq string; better in TRACEDB_DSN or DATABASE_URL if it"
        " has a password, since others can read a command line (default: those, then PG*)",
    )
    parser.add_argument("--json", action="store_true", default=json, help="answer in JSON")


def _fail(args: argparse.Namespace, error: Exception) -> int:
    """Say what went wrong if it is ours or the database's; anything else is a bug and shows."""
    from psycopg import Error

    from tracedb import dsn

    if isinstance(error, TracedbError):
        kind: type[TracedbError] = type(error)
    elif isinstance(error, Error):
        kind = error_class(error)
    else:
        raise error
    try:
        message = dsn.scrub(str(error), dsn.resolve(args.dsn))
    except TracedbError:
        message = dsn.redact(str(error))
    if args.json:
        print(json.dumps({"error": {"type": kind.__name__, "message": message}}))
    say(f"tracedb: {message}")
    return kind.exit_code
