"""Compares tracedb with other tracing stores: spans a second, and spans lost to kill -9."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

# Run as a program: its own folder is on the path, but not the one that holds the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tracedb.server
from bench.harness import environment, spread, timed
from bench.run import SETTINGS
from peers import workload
from peers.processes import Site, Unavailable, install, stored, wait_for_quiet, wait_until_alone
from peers.systems import OURS, PEERS, TRACEDB, System
from tracedb.migrate import migrate

Conn = psycopg.Connection[Any]

COPY = "copy"
_TABLES = ("execution_traces", "llm_spans")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line asked for."""

    spans: int
    repeat: int
    kill_spans: int
    kill_after: float
    settle: float
    quiet: float
    timeout: float


@dataclass(slots=True)
class Report:
    """What was measured, by system, a sample a round; and what was not, and why."""

    speed: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    kills: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        lines = ["spans a second until visible in the database (x: tracedb's, of the same round)"]
        for name, samples in self.speed.items():
            rates = spread([sample["spans_per_s"] for sample in samples])
            acknowledged = spread([sample["acknowledged_s"] for sample in samples])
            ratio = spread(self.ratios(name))
            lines.append(f"  {name:<16} {rates:<28} x {ratio:<22} acknowledged in {acknowledged} s")
        busy = [sample["busy_before"] for samples in self.speed.values() for sample in samples]
        lines.append(f"  share of the CPUs that others used before a sample: {spread(busy)}")
        lines.append("kill -9 of the receiver after its last acknowledgement")
        for name, kills in self.kills.items():
            lines += [
                f"  {name:<16} acknowledged {kill['acknowledged']:,}, then there "
                f"{kill['stored_at_kill']:,}, after a restart {kill['stored']:,}: "
                f"lost {kill['lost']:,}"
                for kill in kills
            ]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)

    def ratios(self, name: str) -> list[float]:
        """How many times faster tracedb was, in each round that this system finished."""
        pairs = zip(self.speed[TRACEDB.name], self.speed[name], strict=False)
        return [ours["spans_per_s"] / theirs["spans_per_s"] for ours, theirs in pairs]


def main() -> int:
    options = parser().parse_args()
    plan = Plan(
        spans=options.spans,
        repeat=options.repeat,
        kill_spans=options.kill_spans,
        kill_after=options.kill_after,
        settle=options.settle,
        quiet=options.quiet,
        timeout=options.timeout,
    )
    wanted = options.peers.split(",") if options.peers else []
    if unknown := set(wanted) - {peer.name for peer in PEERS}:
        print(f"no such peer: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    options.scratch.mkdir(parents=True, exist_ok=True)
    options.scratch.chmod(0o755)  # the server may run as another OS user
    report = Report()
    pythons: dict[str, Path] = {}
    systems = [*OURS, *(peer for peer in PEERS if peer.name in wanted)]
    for system in systems:
        with skipping(system, report), timed(f"installing {system.name}"):
            pythons[system.name] = install(system, options.scratch, options.install_timeout)
    with ExitStack() as stack:
        dsn = options.dsn or stack.enter_context(throwaway_server(options.scratch))
        with psycopg.connect(dsn) as conn:
            about = environment(conn, 1.0, plan.repeat)
        # kept until the next run, for the logs
        folder = options.scratch / "last-run"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        sites: list[tuple[Site, Conn]] = []
        for system in systems:
            if system.name in pythons:
                with skipping(system, report), timed(f"starting {system.name}"):
                    place = stack.enter_context(database(dsn, system))
                    login = _login(place, system)
                    site = Site(system, pythons[system.name], login, folder / system.name)
                    stack.enter_context(site).start()
                    sites.append((site, stack.enter_context(_connected(place))))
        limit = stack.enter_context(_connected(stack.enter_context(database(dsn, None))))
        compare(sites, limit, plan, report, folder)
    print(report.text())
    if options.json:
        document = {
            "environment": about,
            "spans": plan.spans,
            "kill_spans": plan.kill_spans,
            "kill_after": plan.kill_after,
            "packages": {name: _packages(name) for name in pythons},
            "speed": report.speed,
            "kills": report.kills,
            "skipped": report.skipped,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def compare(
    sites: list[tuple[Site, Conn]], limit: Conn, plan: Plan, report: Report, folder: Path
) -> None:
    """Every system once a round, so that a slow minute of the machine slows all of them."""
    alive = list(sites)
    file = folder / "spans.jsonl"
    # The first round makes tables, plans and caches; it does not count.
    for round in range(plan.repeat + 1):
        spans = plan.spans if round else min(plan.spans, 600)
        workload.write(file, workload.batches(spans, round))
        for site, conn in list(alive):
            name = site.system.name
            with skipping(site.system, report, alive), timed(f"round {round}, {name}"):
                sample = speed(site, conn, file, _count(spans), plan)
                if round:
                    report.speed.setdefault(name, []).append(sample)
            if site.system is TRACEDB and round:
                with timed(f"round {round}, {COPY}"):
                    sample = copied(conn, limit, round, _count(spans), plan)
                    report.speed.setdefault(COPY, []).append(sample)
    for round in range(plan.repeat + 1, 2 * plan.repeat + 1):
        workload.write(file, workload.batches(plan.kill_spans, round))
        for site, conn in list(alive):
            name = site.system.name
            with skipping(site.system, report, alive), timed(f"kill {round - plan.repeat}, {name}"):
                report.kills.setdefault(name, []).append(killed(site, conn, file, plan))


def speed(site: Site, conn: Conn, file: Path, spans: int, plan: Plan) -> dict[str, float]:
    """Hand over the spans, and wait until all of them are visible to another connection."""
    table = site.system.table
    with site.worker(file) as worker:
        conn.execute("checkpoint")
        busy = wait_for_quiet(plan.quiet)
        before = stored(conn, table)
        start = time.perf_counter()
        acknowledged = worker.send()
        answered = time.perf_counter() - start
        if acknowledged != spans:
            raise Unavailable(f"acknowledged {acknowledged} of {spans} spans; see its log")
        while (there := stored(conn, table) - before) < spans:
            taken = time.perf_counter() - start
            if taken > plan.timeout:
                raise Unavailable(f"{there} of {spans} spans visible after {taken:.0f} s")
            time.sleep(max(0.005, taken / 100))
        taken = time.perf_counter() - start
    return {
        "spans_per_s": spans / taken,
        "acknowledged_s": answered,
        "durable_s": taken,
        "busy_before": busy,
    }


def copied(conn: Conn, limit: Conn, round: int, spans: int, plan: Plan) -> dict[str, float]:
    """The rows that tracedb made of the same spans, by binary COPY: what no client can beat."""
    data = {table: _copied_out(conn, table, round) for table in _TABLES}
    limit.execute("checkpoint")
    busy = wait_for_quiet(plan.quiet)
    start = time.perf_counter()
    with limit.transaction(), limit.cursor() as cursor:
        for table, rows in data.items():
            into = sql.SQL("copy tracedb.{} from stdin (format binary)")
            with cursor.copy(into.format(sql.Identifier(table))) as copy:
                copy.write(rows)
    taken = time.perf_counter() - start
    with limit.cursor() as cursor:
        first, last = workload.interval(round)
        there = cursor.execute(
            "select count(*) from tracedb.llm_spans where started_at >= %s and started_at < %s",
            [first, last],
        ).fetchone()
    if there != (spans,):
        raise RuntimeError(f"COPY stored {there} of {spans} spans")
    return {
        "spans_per_s": spans / taken,
        "acknowledged_s": taken,
        "durable_s": taken,
        "busy_before": busy,
    }


def killed(site: Site, conn: Conn, file: Path, plan: Plan) -> dict[str, int]:
    """Kill the receiver after its last acknowledgement, restart it, and count what is there."""
    table = site.system.table
    before = stored(conn, table)
    with site.worker(file) as worker:
        acknowledged = worker.send()
        time.sleep(plan.kill_after)
        site.kill_receiver(worker)
    wait_until_alone(conn)
    at_kill = stored(conn, table) - before
    site.start()
    there = at_kill
    changed = time.monotonic()
    while there < acknowledged and time.monotonic() - changed < plan.settle:
        time.sleep(0.2)
        if (now := stored(conn, table) - before) != there:
            there, changed = now, time.monotonic()
    return {
        "acknowledged": acknowledged,
        "stored_at_kill": at_kill,
        "stored": there,
        "lost": acknowledged - there,
    }


@contextmanager
def skipping(
    system: System, report: Report, alive: list[tuple[Site, Conn]] | None = None
) -> Iterator[None]:
    """Go on without a system that cannot be had, and say why; without tracedb there is no point."""
    try:
        yield
    except Unavailable as error:
        if system is TRACEDB:
            raise SystemExit(f"tracedb: {error}") from error
        print(f"skipped: {error}", file=sys.stderr)
        report.skipped[system.name] = str(error)
        if alive is not None:
            alive[:] = [(site, conn) for site, conn in alive if site.system is not system]


@contextmanager
def throwaway_server(scratch: Path) -> Iterator[str]:
    """The DSN of an embedded server of this run's own, as `make bench` starts it."""
    folder = Path(tempfile.mkdtemp(prefix="server-", dir=scratch))
    folder.chmod(0o755)
    try:
        with tracedb.server.start(folder / "data", settings=SETTINGS) as server:
            yield server.dsn
    finally:
        shutil.rmtree(folder)


@contextmanager
def database(dsn: str, system: System | None) -> Iterator[str]:
    """The DSN of a new database for a system, or for the limit; dropped at the end."""
    name = f"peers_{system.name if system else COPY}_{token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    target = make_conninfo(dsn, dbname=name)
    try:
        if system is None or system in OURS:
            migrate(target)
            with psycopg.connect(target) as conn:
                first, last = workload.interval(0)[0], workload.interval(1000)[1]
                conn.execute("select tracedb.ensure_partitions(%s, %s)", [last, first])
        yield target
    finally:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ",".join(peer.name for peer in PEERS)
    add = parser.add_argument
    add("--spans", type=int, default=6_000, metavar="N", help="spans a round (6000)")
    add("--repeat", type=int, default=3, metavar="N", help="rounds of each test (3)")
    add("--kill-spans", type=int, default=3_000, metavar="N", help="spans a kill (3000)")
    add(
        "--kill-after",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="from the last acknowledgement to kill -9 (1)",
    )
    add(
        "--settle",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="a restarted system that stored nothing for so long will not (15)",
    )
    add(
        "--quiet",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="wait at most so long for a machine that is idle, before each sample (20)",
    )
    add("--peers", default=names, metavar="NAMES", help=f"which ones ({names}); '' for none")
    add("--dsn", help="a superuser of the server to use (default: an embedded one)")
    add(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()) / "tracedb-peers",
        metavar="FOLDER",
        help="where the peers are installed, and stay (%(default)s)",
    )
    add("--install-timeout", type=float, default=600.0, metavar="SECONDS", help="a peer (600)")
    add("--timeout", type=float, default=300.0, metavar="SECONDS", help="a round of one (300)")
    add("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser


def _count(spans: int) -> int:
    """Only whole traces are made."""
    return spans // workload.SPANS_PER_TRACE * workload.SPANS_PER_TRACE


def _login(dsn: str, system: System) -> str:
    """tracedb works as its service role, under row-level security; peers own their database."""
    return make_conninfo(dsn, options="-c role=tracedb_service") if system in OURS else dsn


def _connected(dsn: str) -> Conn:
    return psycopg.connect(dsn, autocommit=True)


def _copied_out(conn: Conn, table: str, round: int) -> bytes:
    query = sql.SQL(
        "copy (select * from tracedb.{} where started_at >= {} and started_at < {})"
        " to stdout (format binary)"
    )
    first, last = (time.isoformat() for time in workload.interval(round))
    with conn.cursor().copy(query.format(sql.Identifier(table), first, last)) as copy:
        return b"".join(copy)


def _packages(name: str) -> list[str]:
    """The pinned packages of a peer; of tracedb none."""
    files = [peer.requirements for peer in PEERS if peer.name == name and peer.requirements]
    return [line for file in files for line in (Path(__file__).parent / file).read_text().split()]


if __name__ == "__main__":
    sys.exit(main())
