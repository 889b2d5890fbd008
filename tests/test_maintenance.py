"""The commands that cron runs: one at a time, each with a row that says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from test_retention import FAMILY, NOW, OLD, Connection, admin, contents, places, store, write
from tracedb import archive as archiving
from tracedb.cli import main
from tracedb.query import run
from tracedb.stores import DirectoryStore
from two_tenants import A

__all__ = ["admin", "store"]  # fixtures

ROOT = Path(__file__).resolve().parents[1]

Cli = Callable[..., tuple[int, Any]]


@pytest.fixture
def dsn(database: str) -> str:
    """As cron connects: a login that may act as the maintainer."""
    return make_conninfo(database, options="-c role=tracedb_maintainer")


@pytest.fixture
def cli(
    dsn: str,
    store: DirectoryStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Cli:
    """Runs a command; its exit code and its answer."""
    monkeypatch.setenv("TRACEDB_DSN", dsn)
    monkeypatch.setenv("TRACEDB_ARCHIVE", str(store.root))

    def call(*words: str) -> tuple[int, Any]:
        code = main([*words, "--json"])
        out = capsys.readouterr().out
        return code, json.loads(out) if out.startswith(("{", "[")) else out

    return call


def runs(admin: Connection) -> list[tuple[str, str]]:
    return admin.execute(
        "select job, outcome from tracedb.maintenance_runs order by started_at"
    ).fetchall()


def test_a_day_of_maintenance(
    cli: Cli, admin: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(admin, OLD), write(admin, NOW, 2)

    code, planned = cli("retention", "plan")
    assert code == 0
    assert planned[0]["tables"] == FAMILY
    assert cli("retention", "run", "--dry-run")[1][:1] == planned[:1]
    assert cli("partitions", "--dry-run")[0] == 0
    assert cli("rollups", "fold", "--dry-run")[1]["unfolded_changes"] == 2
    assert cli("patterns", "learn", "--dry-run")[1] == {"unlearned_changes": 2}
    assert cli("patterns", "fold", "--dry-run")[1] == {"uncounted_uses": 0}
    assert cli("patterns", "index", "--dry-run")[1] == []
    assert runs(admin) == []
    assert len(contents(admin)["execution_traces"]) == 2

    assert main(["maintain"]) == 0
    assert "rows removed" in capsys.readouterr().out
    assert runs(admin) == [
        ("partitions", "ok"),
        ("rollups", "ok"),
        ("pattern-uses", "ok"),
        ("learning", "ok"),
        ("pruning", "ok"),
        ("pattern-indexes", "ok"),
        ("retention", "ok"),
        ("archive", "ok"),
    ]
    assert [i for (i,) in admin.execute("select trace_id from tracedb.execution_traces")] == [new]
    code, files = cli("archive", "list")
    assert {each["table_name"] for each in files} <= set(FAMILY)
    assert cli("archive", "verify") == (0, {"files": len(files), "findings": []})
    assert cli("advice")[0] == 0
    code, shown = cli("runs", "--job", "retention")
    assert shown[0]["figures"]["rows_removed"] == sum(each["row_count"] for each in files)
    code, receipts = cli("retention", "receipts")
    assert len(receipts) == len(FAMILY)

    code, shown = cli("trace", str(old), "--tenant", str(A))
    assert code == 0
    assert str(old) in json.dumps(shown)
    assert len(shown["tree"]) > 1
    assert len(contents(admin)["execution_traces"]) == 1
    assert cli("maintain", "--dry-run")[1]["retention"][0]["how"] == "purge"
    assert cli("archive", "query", "select 'nan'::double as a") == (0, [{"a": "NaN"}])
    assert cli("archive", "restore", "--trace", str(old), "--tenant", str(A), "--dry-run") == (
        0,
        files,
    )
    code, said = cli("archive", "restore", "--since", "9d", "--until", "8d", "--dry-run")
    assert (code, said["error"]["message"]) == (1, "no archive has such rows")
    code, said = cli("archive", "restore", "--since", "9d", "--until", "8d", "--keep-days", "99999")
    assert said["error"]["message"] == "keep-days: must be from 0 to 36,525"
    code, counts = cli("archive", "restore", "--trace", str(old), "--tenant", str(A))
    assert (code, counts["execution_traces"]) == (0, 1)
    assert len(contents(admin)["execution_traces"]) == 2


def test_days_are_those_of_utc_wherever_the_session_is(
    database: str, admin: Connection, store: DirectoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    write(admin, OLD)
    options = "-c role=tracedb_maintainer -c timezone=America/New_York"
    dsn = make_conninfo(database, options=options)
    monday = OLD.date() - timedelta(days=OLD.weekday())
    week = f"{monday} to {monday + timedelta(days=7)}"

    assert main(["retention", "plan", "--dsn", dsn]) == 0
    assert main(["retention", "run", "--dsn", dsn, "--store", str(store.root)]) == 0
    assert main(["archive", "list", "--dsn", dsn]) == 0
    assert main(["retention", "receipts", "--dsn", dsn]) == 0

    lines = capsys.readouterr().out.splitlines()
    files = len(store.names()) // 2
    assert sum(week in line for line in lines) == 1 + files + len(FAMILY)
    assert all(f"/{monday:%Y%m%d}T000000_" in name for name in store.names())


def test_rules_are_set_and_shown(cli: Cli, admin: Connection) -> None:
    assert cli("retention", "set", "trace_payloads", "30d", "--action", "drop")[0] == 0
    assert cli("retention", "hold", "llm_spans", "a court asks", "--tenant", str(A))[0] == 0
    code, rules = cli("retention", "list")
    found = {(each["table_name"], each["tenant_id"]): each for each in rules}
    assert found["trace_payloads", None]["action"] == "drop"
    assert found["llm_spans", str(A)]["hold_reason"] == "a court asks"
    assert cli("retention", "unset", "llm_spans", "--tenant", str(A))[0] == 1  # it is held
    assert cli("retention", "release", "llm_spans", "--tenant", str(A))[0] == 0
    assert cli("retention", "unset", "llm_spans", "--tenant", str(A))[0] == 0
    code, answer = cli("retention", "set", "execution_traces", "1d")
    assert code == 1
    assert "keep: at least 2 days" in answer["error"]["message"]


def test_a_job_that_fails_says_so_and_removes_nothing(
    cli: Cli, admin: Connection, store: DirectoryStore
) -> None:
    write(admin, OLD)
    store.root.rmdir()

    code, answer = cli("retention", "run")

    assert code == 1
    assert "is no directory: make it, or mount it" in answer["errors"][0]
    assert runs(admin) == [("retention", "failed")]
    assert len(contents(admin)["execution_traces"]) == 1
    row = admin.execute("select error from tracedb.maintenance_runs").fetchone()
    assert row is not None
    assert str(store.root) in row[0]


def test_a_job_that_already_runs_is_left_alone(cli: Cli, admin: Connection) -> None:
    for job, command in (("retention", ("retention", "run")), ("partitions", ("partitions",))):
        admin.execute("select pg_advisory_lock(hashtextextended('tracedb.job/' || %s, 0))", [job])
        code, answer = cli(*command)
        assert code == 75
        assert answer["error"]["message"] == f"another session runs {job}"


def test_the_archive_is_verified(cli: Cli, admin: Connection, store: DirectoryStore) -> None:
    write(admin, OLD)
    assert cli("retention", "run")[0] == 0
    names = [name for name in store.names() if name.endswith(".gz")]
    (store.root / names[0]).unlink()
    path = store.root / names[1]
    path.write_bytes(path.read_bytes()[:-1])
    strays = ("traces/stray.csv.gz", "traces/killed.csv.gz.part")
    for name in strays:
        (store.root / name).write_bytes(b"")

    code, answer = cli("archive", "verify")

    assert code == 3
    assert len(answer["findings"]) == 4
    for name in (names[0], names[1], *strays):
        assert any(name in finding for finding in answer["findings"])
    assert runs(admin)[-1] == ("archive", "findings")


def test_a_script_calls_its_command(dsn: str, store: DirectoryStore) -> None:
    command = Path(sys.executable).with_name("tracedb")
    env = {**os.environ, "TRACEDB_DSN": dsn, "TRACEDB_ARCHIVE": str(store.root)}
    for script in ("retention", "archive", "advice", "fold-rollups"):
        done = subprocess.run(
            [ROOT / "scripts" / script, "--dry-run"],
            env=env | {"TRACEDB": str(command)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


KILLED = """
import os, signal, sys
import psycopg
from tracedb.retention import run_retention
from tracedb.stores import open_store

def step(name, planned):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    run_retention(conn, open_store(sys.argv[2]), step=step)
"""


def test_a_process_that_is_killed_leaves_every_row_in_one_place(
    dsn: str, cli: Cli, admin: Connection, store: DirectoryStore
) -> None:
    old = [write(admin, OLD, number) for number in (1, 2)]
    for boundary in ("finished", "retired"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, dsn, str(store.root), boundary], check=False
        )
        assert killed.returncode == -signal.SIGKILL
        with psycopg.connect(dsn, autocommit=True) as conn:
            assert places(conn, admin, store) == {str(i): 1 for i in old}

    assert cli("retention", "run")[0] == 0
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert places(conn, admin, store) == {str(i): 1 for i in old}
        assert {each.state for each in run(conn, archiving.archives())} == {"removed"}
    assert contents(admin)["execution_traces"] == []
