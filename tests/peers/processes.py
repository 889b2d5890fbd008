"""The processes of one system: its environment, its server, the workers that feed it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from peers.systems import System

_HERE = Path(__file__).parent
_START_SECONDS = 120.0
_IDLE_SECONDS = 60.0
_STAT = Path("/proc/stat")
_QUIET = 0.1


class Unavailable(Exception):
    """A system cannot be installed, started or fed; the others are measured without it."""


def install(system: System, scratch: Path, timeout: float) -> Path:
    """The Python of the system's environment, made unless it is there with the same packages."""
    if system.requirements is None:
        return Path(sys.executable)
    wanted = _HERE / system.requirements
    folder = scratch / f"env-{system.name}"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    if installed.exists() and installed.read_text() == wanted.read_text():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"not installed within {timeout:.0f} s") from None
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip() or "no reason given").splitlines()[-1]
            raise Unavailable(f"not installed: {reason}") from None
    installed.write_text(wanted.read_text())
    return python


class Site:
    """A system with a database of its own. Close it, or use it as a context manager."""

    def __init__(self, system: System, python: Path, dsn: str, folder: Path) -> None:
        """`dsn` is what the system connects with; the folder is made if it is missing."""
        self.system = system
        self.folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._port = _free_port()
        words = {
            "place": sqlalchemy_place(dsn),
            "dsn": dsn,
            "port": str(self._port),
            "grpc_port": str(_free_port()),
            "folder": str(folder),
            "bin": str(python.parent),
        }
        self._python = python
        self._command = [word.format_map(words) for word in system.server]
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(_HERE.parent),
            **{key: value.format_map(words) for key, value in system.environment.items()},
        }

    def start(self) -> None:
        """Start the server, if the system has one, and wait until it listens."""
        if not self._command:
            return
        self._server = self._process(self._command)
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(self._port):
            if self._server.poll() is not None:
                raise Unavailable(f"its server ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"its server does not listen after {_START_SECONDS:.0f} s")
            time.sleep(0.1)

    @contextmanager
    def worker(self, spans: Path) -> Iterator[Worker]:
        """A worker that has these spans ready; it ends with the block."""
        command = [str(self._python), "-m", self.system.worker, str(spans)]
        process = self._process(command, talks=True)
        try:
            worker = Worker(process)
            if worker.answer() != "ready":
                raise Unavailable(f"its worker ended: {self._last_words()}")
            yield worker
        finally:
            _kill(process)

    def kill_receiver(self, worker: Worker) -> None:
        """Kill -9 whatever acknowledged the spans: the server's processes, else the worker."""
        _kill(self._server or worker.process)
        self._server = None

    def close(self) -> None:
        """Stop the server in good order."""
        if self._server is not None and self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGTERM)
            try:
                self._server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                _kill(self._server)
        self._server = None

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _process(self, command: list[str], talks: bool = False) -> subprocess.Popen[bytes]:
        """In a group of its own, which is killed as a whole; what it says goes to a log."""
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else log,
                stderr=log,
                start_new_session=True,
            )

    def _last_words(self) -> str:
        log = self.folder / "log.txt"
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no reason given'} ({log})"


class Worker:
    """A process that waits for the word; see worker.py."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def send(self) -> int:
        """Have everything handed over; how many spans were acknowledged."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        answer = self.answer()
        if not answer.isdigit():
            raise Unavailable("its worker ended while it handed over the spans; see its log")
        return int(answer)

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()


def stored(conn: psycopg.Connection[tuple[int]], table: str) -> int:
    """How many rows of a table others can see; 0 while there is none."""
    known = conn.execute("select count(to_regclass(%s))", [table]).fetchone()
    if known == (0,):
        return 0
    row = conn.execute(
        sql.SQL("select count(*) from {}").format(sql.Identifier(*table.split(".")))
    ).fetchone()
    assert row is not None
    return row[0]


def wait_until_alone(conn: psycopg.Connection[tuple[int]]) -> None:
    """Wait until nothing that a killed process had begun in this database still runs."""
    deadline = time.monotonic() + _IDLE_SECONDS
    while True:
        others = conn.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and backend_type = 'client backend' and pid <> pg_backend_pid()"
        ).fetchone()
        if others == (0,):
            return
        if time.monotonic() > deadline:
            raise Unavailable("somebody is still connected to its database")
        time.sleep(0.05)


def wait_for_quiet(at_most: float) -> float:
    """Wait until others leave the machine alone; the share of its CPUs that was busy last.

    Only where there is a /proc; elsewhere the answer is -1, at once.
    """
    deadline = time.monotonic() + at_most
    while _STAT.exists():
        before = _cpu_times()
        time.sleep(0.5)
        busy, total = (now - then for now, then in zip(_cpu_times(), before, strict=True))
        if busy < _QUIET * total or time.monotonic() > deadline:
            return busy / total
    return -1.0


def _cpu_times() -> tuple[int, int]:
    """Busy and all ticks of all CPUs so far."""
    user, nice, system, idle, iowait, *rest = map(int, _STAT.read_text().split("\n")[0].split()[1:])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + iowait


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def sqlalchemy_place(dsn: str) -> str:
    """`user:password@/database?host=...&port=...`: what SQLAlchemy wants after the driver."""
    given: dict[str, str] = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    user, secret = quote(given.get("user", "")), quote(given.get("password", ""), safe="")
    where = {key: value for key, value in given.items() if key in ("host", "port")}
    login = f"{user}:{secret}" if secret else user
    return f"{login}@/{quote(given.get('dbname', ''))}?{urlencode(where, safe='/')}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
