"""The fault suite for longer: `make soak ARGS="--minutes 60"`.

Runs services that record through a writer with a spool, on a server of its own behind a proxy, and
does to them what happens in production. Prints for each scenario how many events were offered,
stored, doubled and missing, and how long a call took. Exits with 1 if anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

# Run as a program: its own folder is on the path, but not the one that holds the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tracedb.server
from faults import (
    Figures,
    Offered,
    kill,
    numbers,
    percentiles,
    start_again,
    terminate_writers,
    tries,
)
from proxy import Proxy, proxy
from tracedb import Writer
from tracedb.migrate import migrate

SETTINGS = {"fsync": "off", "synchronous_commit": "on", "max_locks_per_transaction": "256"}
DELIVERED_WITHIN = 300.0


@dataclass(slots=True)
class Service:
    """A process that offers events through a writer with a spool, at a rate, until it is ended."""

    dsn: str
    tenant: UUID
    spool: Path
    rate: float
    process: subprocess.Popen[str] = field(init=False)
    listener: threading.Thread = field(init=False)
    first: int = 0
    acknowledged: set[int] = field(default_factory=set)
    # how many calls took so many microseconds, to two digits
    calls: Counter[float] = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)

    def start(self) -> None:
        command = [sys.executable, __file__, "--service", self.dsn, str(self.tenant)]
        self.process = subprocess.Popen(
            [*command, str(self.spool), str(self.rate), str(self.first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.listener = threading.Thread(target=self._listen, args=[self.process, self.first])
        self.listener.start()

    def _listen(self, process: subprocess.Popen[str], first: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith("\n"):
                return  # it died in the middle of it
            said = json.loads(line)
            self.acknowledged.update(range(first, said["next"]))
            first = said["next"]
            self.first = first + 1000  # leaves room for what was not yet acknowledged
            if "rss" in said:
                self.resident.append(said["rss"])
                self.calls += Counter({float(us): n for us, n in said["calls"].items()})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.join()

    def again(self) -> None:
        """Kill it, and start it on the same spool."""
        self.kill()
        self.start()

    def end(self) -> None:
        """Let it close its writer."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(DELIVERED_WITHIN)
        self.listener.join()

    def outcome(self, dsn: str) -> Figures:
        stored = numbers(dsn, self.tenant)
        found = set(stored)
        return Figures(
            len(self.acknowledged),
            len(stored),
            len(stored) - len(found),
            len(self.acknowledged - found),
            *percentiles(sorted(self.calls.elements())),
        )


def serve(dsn: str, tenant: str, spool: str, rate: str, first: str) -> None:
    """The service: events at a steady rate, with a line about each, until stdin closes."""
    over = threading.Event()

    def listen() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=listen, daemon=True).start()
    with Writer(dsn, tenant_id=tenant, spool=spool, service="soak", write_timeout=5.0) as writer:
        events = Offered(writer)
        events.numbers = iter(range(int(first), sys.maxsize))
        told = start = time.monotonic()
        while not over.is_set():
            events.offer()
            now = time.monotonic()
            said: dict[str, Any] = {"next": int(first) + events.offered}
            if now - told >= 0.2:
                told = now
                calls = Counter(f"{seconds * 1e6:.2g}" for seconds in events.seconds)
                said |= {"rss": _resident(), "calls": calls}
                events.seconds.clear()
            print(json.dumps(said), flush=True)
            over.wait(max(0.0, start + events.offered / float(rate) - time.monotonic()))


def _resident() -> int:
    """Bytes of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Scene:
    """A server behind a proxy, and what can be done to it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.server = tracedb.server.start(scratch / "data", settings=SETTINGS)
        migrate(self.server.dsn)
        self.admin_dsn = self.server.dsn

    @contextmanager
    def service(self, rate: float) -> Iterator[tuple[Service, Proxy]]:
        with proxy(self.admin_dsn) as way:
            spool = Path(tempfile.mkdtemp(dir=self.scratch))
            service = Service(way.dsn, uuid4(), spool, rate)
            service.start()
            yield service, way
            way.heal()
            service.end()
            # what a killed service left is delivered by the next one
            with Writer(self.admin_dsn, tenant_id=service.tenant, spool=spool):
                for _ in tries(DELIVERED_WITHIN, "everything is delivered"):
                    if service.acknowledged <= set(numbers(self.admin_dsn, service.tenant)):
                        break
                    time.sleep(0.2)

    def restart(self, how: Callable[[], object]) -> None:
        how()
        time.sleep(1)
        self.server = start_again(self.scratch / "data", SETTINGS, self.server.bin_dir)

    def terminate(self) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as admin:
            terminate_writers(admin)


Scenario = Callable[[Scene, argparse.Namespace], Figures]


def outage(scene: Scene, options: argparse.Namespace) -> Figures:
    """The database is down for a minute, at 100 events a second."""
    with scene.service(100) as (service, way):
        time.sleep(2)
        way.refuse()
        time.sleep(60 * options.scale)
    return service.outcome(scene.admin_dsn)


def black_hole(scene: Scene, options: argparse.Namespace) -> Figures:
    """The network swallows everything for half a minute."""
    with scene.service(100) as (service, way):
        time.sleep(2)
        way.swallow()
        time.sleep(30 * options.scale)
    return service.outcome(scene.admin_dsn)


def lost_replies(scene: Scene, options: argparse.Namespace) -> Figures:
    """A hundred replies to commits are lost."""
    chance = random.Random(options.seed)
    with scene.service(1000) as (service, way):
        for lost in range(round(100 * options.scale)):
            way.lose_commit_replies(1)
            for _ in tries(DELIVERED_WITHIN, "a reply is lost"):
                if way.lost_replies > lost:
                    break
                time.sleep(0.01)
            # one in a row: after many, the writer would wait for half a minute each time
            time.sleep(chance.uniform(0.2, 0.5))
    return service.outcome(scene.admin_dsn)


def writer_kills(scene: Scene, options: argparse.Namespace) -> Figures:
    """The service is killed with -9 a hundred times, at random moments."""
    chance = random.Random(options.seed)
    with scene.service(1000) as (service, _):
        for _ in range(round(100 * options.scale)):
            time.sleep(chance.uniform(0.3, 1.5))
            service.again()
    return service.outcome(scene.admin_dsn)


def connection_kills(scene: Scene, options: argparse.Namespace) -> Figures:
    """Two hundred times the server side of the connection is killed."""
    chance = random.Random(options.seed)
    with scene.service(1000) as (service, _):
        for _ in range(round(200 * options.scale)):
            time.sleep(chance.uniform(0.0, 0.2))
            scene.terminate()
    return service.outcome(scene.admin_dsn)


def mixed(scene: Scene, options: argparse.Namespace) -> Figures:
    """For as many minutes as told, at 50 events a second, every minute one of all faults."""
    chance = random.Random(options.seed)
    end = time.monotonic() + options.minutes * 60
    with scene.service(50) as (service, way):
        faults: list[Callable[[], object]] = [
            way.refuse,
            way.swallow,
            way.break_all,
            scene.terminate,
            lambda: way.lose_commit_replies(3),
            lambda: scene.restart(scene.server.stop),
            lambda: scene.restart(lambda: kill(scene.server)),
            service.again,
        ]
        while time.monotonic() < end:
            pause = min(60.0, max(1.0, end - time.monotonic()))
            time.sleep(pause / 2)
            chance.choice(faults)()
            time.sleep(pause / 2)
            way.heal()
    third = max(1, len(service.resident) // 3)
    # the most of each, since a process that was killed and its backlog begin small again
    early, late = max(service.resident[:third]), max(service.resident[-third:])
    print(f"  memory {early / 2**20:.1f} MiB in the first third, {late / 2**20:.1f} in the last")
    return service.outcome(scene.admin_dsn)


SCENARIOS: tuple[Scenario, ...] = (
    outage,
    black_hole,
    lost_replies,
    writer_kills,
    connection_kills,
    mixed,
)


def main() -> int:
    if sys.argv[1:2] == ["--service"]:
        serve(*sys.argv[2:])
        return 0
    options = _parser().parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-soak-"))
    scratch.chmod(0o755)
    bad = 0
    scene = Scene(scratch)
    try:
        for scenario in SCENARIOS:
            if options.only and scenario.__name__ not in options.only:
                continue
            print(f"{scenario.__name__}: {scenario.__doc__}", flush=True)
            outcome = scenario(scene, options)
            bad += outcome.duplicate + outcome.missing
            print(f"  {outcome}", flush=True)
    finally:
        scene.server.stop()
        shutil.rmtree(scratch)
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    names = [scenario.__name__ for scenario in SCENARIOS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--minutes", type=float, default=5, metavar="N", help="of mixed (5)")
    parser.add_argument("--scale", type=float, default=1, metavar="X", help="of all others (1)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the random moments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
