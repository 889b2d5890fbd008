"""Connection strings: every form libpq knows, in their order, and no password shown."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from servers import Server
from tracedb.dsn import connect, describe, redact, resolve, scrub
from tracedb.errors import ConnectionFailed, InvalidInput

SECRET = "h0rse;ba'tt ery"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACEDB_DSN", "DATABASE_URL", "PGPASSWORD", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgres://ann:secret@db.example:5433/app?sslmode=require",
        "postgresql://ann:secret@db.example:5433/app?sslmode=require",
        "postgresql+psycopg://ann:secret@db.example:5433/app?sslmode=require",
        "host=db.example port=5433 dbname=app user=ann password=secret sslmode=require",
    ],
)
def test_every_form_means_the_same(dsn: str) -> None:
    assert conninfo_to_dict(resolve(dsn)) == {
        "host": "db.example",
        "port": "5433",
        "dbname": "app",
        "user": "ann",
        "password": "secret",
        "sslmode": "require",
    }


def test_the_argument_comes_first_then_tracedb_dsn_then_database_url_then_libpq(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve() == ""
    monkeypatch.setenv("DATABASE_URL", "dbname=third")
    assert resolve() == "dbname=third"
    monkeypatch.setenv("TRACEDB_DSN", "dbname=second")
    assert resolve() == "dbname=second"
    assert resolve("dbname=first") == "dbname=first"
    monkeypatch.setenv("TRACEDB_DSN", "  ")
    assert resolve("") == "dbname=third"


def test_odd_passwords_survive() -> None:
    quoted = SECRET.replace("'", "\\'")

    assert conninfo_to_dict(resolve(f"password='{quoted}'"))["password"] == SECRET
    for text in ("p%40s%2Fs%3A%3F", "p%40s%2Fs:?"):
        assert conninfo_to_dict(resolve(f"postgresql://a:{text}@h/d"))["password"] == "p@s/s:?"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://ann:s3cr@t@db.example/app",
        "postgresql://ann:s3cr/t@db.example/app",
        "postgresql://ann:s3cr%t@db.example/app",
        "host=db.example password=s3cr pass s3cr",
        "postgresql://ann:s3cr@db.example/app?nonsense=s3cr",
    ],
)
def test_a_malformed_string_is_refused_without_quoting_it(dsn: str) -> None:
    with pytest.raises(InvalidInput) as error:
        resolve(dsn)

    assert "s3cr" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:secret@h/d failed", "postgresql://ann:***@h/d failed"),
        ("postgresql://ann:se:cr@et@h/d", "postgresql://ann:***@h/d"),
        ("user=ann password=secret host=h", "user=ann password=*** host=h"),
        (r"password='se \' cret' host=h", "password=*** host=h"),
        ("postgresql://h/d?password=secret&user=ann", "postgresql://h/d?password=***&user=ann"),
        ("nothing to hide at host=h", "nothing to hide at host=h"),
    ],
)
def test_passwords_are_redacted_in_any_text(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_a_known_password_is_redacted_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "from_env")

    shown = scrub("role secret and from_env said no", "user=ann password=secret")

    assert shown == "role *** and *** said no"


@pytest.mark.parametrize(
    ("conninfo", "shown"),
    [
        ("host=h port=5433 dbname=d user=u password=secret", "h:5433/d as u"),
        ("host=/run/pg dbname=d", "/run/pg/d"),
        ("service=billing password=secret", "service billing"),
    ],
)
def test_a_database_is_described_without_its_password(
    conninfo: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)

    assert describe(conninfo) == shown


def test_a_failed_connection_says_why_and_where_and_hides_the_password(server: Server) -> None:
    dsn = server.dsn("no_such_database", password=SECRET)

    with pytest.raises(ConnectionFailed, match="no_such_database") as error:
        connect(dsn)

    assert error.value.exit_code == 4
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_a_service_file_is_honoured(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{key}={value}" for key, value in conninfo_to_dict(server.admin_dsn).items()]
    (tmp_path / "services").write_text("\n".join(["[of_a_test]", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    with connect(resolve("service=of_a_test")) as conn:
        assert conn.info.dbname == server.admin.info.dbname
