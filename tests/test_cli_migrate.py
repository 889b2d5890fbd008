"""The commands around the schema: their answers, exit codes, and silence about passwords."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from servers import Server
from sources import value
from tracedb import ledger, resources
from tracedb.cli import main
from tracedb.source import Source

MARKER = "pass-word-marker"


def tracedb(
    *args: str, dsn: str = "", stdin: int | None = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell would, with the DSN in the environment."""
    return subprocess.run(
        [sys.executable, "-m", "tracedb", *args],
        check=False,
        stdin=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "TRACEDB_DSN": dsn},
    )


def answer(*args: str, dsn: str) -> Any:
    result = tracedb(*args, "--json", dsn=dsn)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_migrate_applies_and_answers_what(empty_database: str) -> None:
    everything = [migration.id for migration in Source.read()]

    assert answer("migrate", "--dry-run", dsn=empty_database)["applied"] == everything
    assert answer("migrate", dsn=empty_database)["applied"] == everything
    assert answer("migrate", dsn=empty_database)["applied"] == []


def test_the_answer_goes_to_stdout_and_talk_to_stderr(empty_database: str) -> None:
    result = tracedb("migrate", "--to", "0001", dsn=empty_database)

    assert result.stdout == "applied 0001_initial\n"
    assert result.stderr == "applying 0001_initial\n"


def test_common_options_may_stand_on_either_side_of_the_command(database: str) -> None:
    before = tracedb("--json", "--dsn", database, "status")
    after = tracedb("status", "--dsn", database, "--json")

    assert json.loads(before.stdout) == json.loads(after.stdout)


def test_status_exits_3_only_when_asked_and_something_is_pending(
    empty_database: str, database: str
) -> None:
    assert tracedb("status", dsn=empty_database).returncode == 0
    assert tracedb("status", "--exit-code", dsn=empty_database).returncode == 3
    assert tracedb("status", "--exit-code", dsn=database).returncode == 0
    assert "pending       0001_initial" in tracedb("status", dsn=empty_database).stdout
    assert answer("status", dsn=database)["is_current"] is True


def test_verify_exits_3_on_drift_and_names_it(database: str) -> None:
    assert tracedb("verify", dsn=database).returncode == 0

    with psycopg.connect(database) as conn:
        conn.execute("comment on table tracedb.tenants is 'changed by hand'")
    result = tracedb("verify", "--json", dsn=database)

    assert result.returncode == 3
    [difference] = json.loads(result.stdout)["differences"]
    assert difference["object"] == "comment on tracedb.tenants"
    assert difference["found"] == "changed by hand"


def test_rollback_without_a_terminal_needs_a_yes(database: str) -> None:
    refused = tracedb("rollback", "--all", dsn=database)
    would = tracedb("rollback", "--all", "--dry-run", dsn=database)
    done = tracedb("rollback", "--all", "--yes", dsn=database)

    assert (refused.returncode, would.returncode, done.returncode) == (1, 0, 0)
    assert "--yes" in refused.stderr
    assert "would roll back 0001_initial" in would.stdout
    assert "rolled back 0001_initial" in done.stdout
    assert value(database, "select to_regclass('tracedb.tenants')") is None


@pytest.mark.parametrize(("reply", "code"), [("yes\n", 0), ("y\n", 1), ("\n", 1)])
def test_rollback_asks_a_person_and_takes_only_yes(database: str, reply: str, code: int) -> None:
    person, terminal = pty.openpty()
    os.write(person, reply.encode())

    result = tracedb("rollback", "--all", dsn=database, stdin=terminal)
    os.close(person)
    os.close(terminal)

    assert result.returncode == code
    assert "0001_initial" in result.stderr
    rolled_back = value(database, "select to_regclass('tracedb.tenants')") is None
    assert rolled_back is (code == 0)


@pytest.mark.parametrize(
    "args",
    [
        ["rollback", "--count", "0"],
        ["rollback", "--count", "2", "--all"],
        ["migrate", "--nonsense"],
        [],
    ],
)
def test_wrong_usage_exits_2(args: list[str]) -> None:
    assert tracedb(*args).returncode == 2


def test_an_unknown_migration_exits_1_and_names_it(empty_database: str) -> None:
    result = tracedb("migrate", "--to", "0999", dsn=empty_database)

    assert result.returncode == 1
    assert "there is no migration 0999" in result.stderr


def test_no_connection_exits_4_with_the_reason_in_json_too(server: Server) -> None:
    result = tracedb("status", "--json", dsn=server.dsn("no_such_database"))

    assert result.returncode == 4
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "ConnectionFailed"
    assert "no_such_database" in error["message"]


def test_a_second_migrator_that_may_not_wait_exits_75(empty_database: str) -> None:
    with psycopg.connect(empty_database) as other:
        other.execute(resources.statements("ledger.sql")["lock"], ledger._LOCK)
        result = tracedb("migrate", "--no-wait", dsn=empty_database)

    assert result.returncode == 75
    assert "another migration is running" in result.stderr


def test_wait_is_ready_at_once_where_all_is_applied(database: str) -> None:
    assert tracedb("wait", "--migrated", dsn=database).returncode == 0


def test_wait_gives_up_with_the_reason(empty_database: str, server: Server) -> None:
    absent = tracedb("wait", "--timeout", "0", dsn=server.dsn("no_such_database"))
    pending = tracedb("wait", "--timeout", "0", "--migrated", dsn=empty_database)

    assert (absent.returncode, pending.returncode) == (4, 1)
    assert "not migrated yet: 0001_initial" in pending.stderr


def test_a_reader_that_leaves_early_is_no_error(database: str) -> None:
    read, write = os.pipe()
    os.close(read)

    result = subprocess.run(
        [sys.executable, "-m", "tracedb", "status"],
        check=False,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRACEDB_DSN": database},
    )
    os.close(write)

    assert result.stderr == ""
    assert result.returncode == 141


def test_help_does_not_wait_for_the_migration_library() -> None:
    code = "import sys; from tracedb.cli import _parser; _parser(); print(*sys.modules)"

    result = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)

    assert {b"yoyo", b"sqlparse"} & set(result.stdout.split()) == set()


COMMANDS = (
    ["migrate"],
    ["migrate", "--dry-run"],
    ["status"],
    ["verify"],
    ["wait", "--timeout", "0"],
    ["rollback", "--all", "--yes"],
)


@pytest.mark.parametrize(
    "dsn",
    [
        f"dbname=no_such_database password={MARKER}",
        f"user=no_such_role password={MARKER}",
        f"postgresql://someone:{MARKER}@127.0.0.1:1/nothing",
        f"postgresql://someone:{MARKER}@x@127.0.0.1:1/nothing",
        f"postgresql://someone:{MARKER}/x@127.0.0.1:1/nothing",
        f"host=127.0.0.1 password={MARKER} nonsense",
        f"host=127.0.0.1 password={MARKER} {MARKER}=1",
        f"host=127.0.0.1 port={MARKER} password={MARKER}",
    ],
)
def test_no_failure_prints_the_password(
    server: Server,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not dsn.startswith(("host", "postgresql")):
        dsn = server.dsn(**{str(key): str(to) for key, to in conninfo_to_dict(dsn).items()})
    for command in COMMANDS:
        for json_option in ([], ["--json"]):
            monkeypatch.setenv("TRACEDB_DSN", dsn)
            by_environment = main([*command, *json_option])
            monkeypatch.delenv("TRACEDB_DSN")
            by_argument = main([*command, *json_option, "--dsn", dsn])

            assert by_environment == by_argument != 0
    printed = capsys.readouterr()
    assert MARKER not in printed.out + printed.err


def test_no_success_prints_the_password(
    server: Server, empty_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    role = "tracedb_test_marker"
    server.admin.execute(f"create role {role} superuser login password '{MARKER}'")
    name = str(conninfo_to_dict(empty_database)["dbname"])
    try:
        for command in COMMANDS:
            assert main([*command, "--dsn", server.dsn(name, user=role, password=MARKER)]) in (0, 3)
    finally:
        with psycopg.connect(empty_database) as conn:
            conn.execute(f"drop owned by {role} cascade")
        server.admin.execute(f"drop role {role}")
    printed = capsys.readouterr()
    assert MARKER not in printed.out + printed.err
