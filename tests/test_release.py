"""Releases: schema/ and migrations/ agree, every step goes back, and no release is ever edited."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlparse
from psycopg import sql

from servers import pg_dump, psql
from sources import contents, yoyo
from tracedb import ledger, resources
from tracedb.migrate import migrate, rollback
from tracedb.source import CHECKSUMS, Source

# the newest migration of each release; a released line never changes
RELEASES = {
    "0.1.0": "0001_initial",
    "0.2.0": "0004_bulk",
    "0.3.0": "0011_bulk_speed",
    "0.4.0": "0013_learning",
    "0.5.0": "0015_erasure",
}

ALL = [migration.id for migration in Source.read()]
SCRIPTS = Path(__file__).parents[1] / "scripts"
ROLES = """
    select r.rolname, r.rolsuper, r.rolcreaterole, r.rolbypassrls, r.rolcanlogin, r.rolinherit,
        array(
            select m.roleid::regrole::text from pg_auth_members m where m.member = r.oid order by 1
        )
    from pg_roles r
    where r.rolname ~ '^tracedb_(owner|service|app|reader|maintainer)$'
    order by r.rolname
"""


def schema_dump(dsn: str) -> str:
    """All that is in schema tracedb but the ledger."""
    tables = (f"--exclude-table=tracedb.{table}" for table in resources.LEDGER)
    return pg_dump(dsn, "--schema-only", "--schema=tracedb", *tables)


def dump(dsn: str) -> str:
    """The same, and the extensions and roles beside it."""
    with psycopg.connect(dsn) as conn:
        extensions = conn.execute("select extname, extversion from pg_extension order by 1")
        aside = [*extensions.fetchall(), *conn.execute(ROLES).fetchall()]
    return schema_dump(dsn) + "\n".join(map(str, aside))


def same(one: str, other: str) -> None:
    """Fail with the lines that differ, not with both dumps."""
    differing = list(difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=2))
    assert differing == []


@pytest.fixture
def with_ledger(empty_database: str) -> str:
    """A database with a ledger and nothing else."""
    with ledger.session(empty_database, wait=True, say=print):
        pass
    return empty_database


# schema/ and migrations/


def test_psql_over_the_schema_and_migrate_give_the_same_database(
    empty_database: str, database: str
) -> None:
    for path in resources.schema_files():
        psql(empty_database, "-f", str(path))

    same(dump(empty_database), dump(database))


def test_plain_yoyo_and_migrate_give_the_same_database(empty_database: str, database: str) -> None:
    yoyo(empty_database, resources.folder("migrations"))

    same(dump(empty_database), dump(database))


def test_loading_the_schema_again_changes_nothing(database: str) -> None:
    before = dump(database)

    for path in resources.schema_files():
        psql(database, "-f", str(path))

    same(before, dump(database))


def test_applying_each_migration_again_at_its_place_changes_nothing(with_ledger: str) -> None:
    for migration in Source.read():
        migrate(with_ledger, to=migration.id)
        before = dump(with_ledger)
        together = ["--single-transaction"] if migration.is_transactional else []
        psql(with_ledger, *together, "-f", str(migration.path))
        same(before, dump(with_ledger))


@pytest.mark.parametrize("id", ALL)
def test_each_migration_rolls_back_to_the_dump_before_it(with_ledger: str, id: str) -> None:
    if earlier := ALL[: ALL.index(id)]:
        migrate(with_ledger, to=earlier[-1])
    before = schema_dump(with_ledger)

    migrate(with_ledger, to=id)
    assert schema_dump(with_ledger) != before
    assert rollback(with_ledger) == [id]

    same(before, schema_dump(with_ledger))


def test_plain_yoyo_rolls_everything_back(empty_database: str) -> None:
    yoyo(empty_database, resources.folder("migrations"))
    yoyo(empty_database, resources.folder("migrations"), "rollback", "--all")

    assert set(contents(empty_database)) <= {"schema tracedb", "grants on schema tracedb"}


# upgrades


def load(dsn: str) -> None:
    """Records of every type for two tenants who use the same ids, as any release takes them."""
    trace = {"trace_id": "0198c2b0-0000-7000-8000-000000000001"}
    part = {**trace, "started_at": "2026-01-05T10:00:01Z", "name": "part", "status": "ok"}
    batch = [
        {**trace, "type": "trace", "started_at": "2026-01-05T10:00:00Z", "prompt": "hello"},
        {**part, "type": "span", "span_id": "0000000000000001", "operation_type": "llm"},
        {**part, "type": "hook", "span_id": "0000000000000002", "hook_type": "pre"},
        {**part, "type": "endpoint_call", "span_id": "0000000000000003", "service": "search"},
        {**part, "type": "routing_decision", "span_id": "0000000000000004", "selected_agent": "a"},
    ]
    with psycopg.connect(dsn) as conn:
        for name in ("one", "two"):
            row = conn.execute(
                "insert into tracedb.tenants (name) values (%s) returning tenant_id", [name]
            ).fetchone()
            assert row is not None
            answer = conn.execute(
                "select tracedb.ingest(%s::json, %s)", [json.dumps(batch), row[0]]
            ).fetchone()
            assert answer is not None
            assert answer[0]["rejected"] == []
            assert answer[0]["inserted"] == len(batch)


def rows(dsn: str, columns: dict[str, list[str]] | None = None) -> dict[str, list[Any]]:
    """Every row of every table, as JSON, sorted; only of the given tables and columns if given."""
    found: dict[str, list[Any]] = {}
    with psycopg.connect(dsn) as conn:
        for table, names in (columns or columns_of(conn)).items():
            query = sql.SQL("select to_jsonb(t) from (select {} from tracedb.{}) t").format(
                sql.SQL(", ").join(map(sql.Identifier, names)), sql.Identifier(table)
            )
            found[table] = sorted((row for (row,) in conn.execute(query)), key=json.dumps)
    return found


def columns_of(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    found = conn.execute(
        """
        select c.relname, array_agg(a.attname::text order by a.attnum)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        where
            c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
            and not c.relispartition and c.relname <> all (%s)
        group by c.relname
        """,
        [list(resources.LEDGER)],
    )
    return dict(found.fetchall())


@pytest.mark.parametrize("how", ["tracedb", "yoyo"])
@pytest.mark.parametrize("release", RELEASES)
def test_an_upgrade_from_each_release_keeps_every_row(
    empty_database: str, database: str, release: str, how: str
) -> None:
    folder = resources.folder("migrations")
    if how == "yoyo":
        yoyo(empty_database, folder, "apply", "--revision", RELEASES[release])
    else:
        migrate(empty_database, to=RELEASES[release])
    load(empty_database)
    with psycopg.connect(empty_database) as conn:
        columns = columns_of(conn)
    # which tables there are is the release's own affair
    columns["partition_policies"].remove("parents")
    before = rows(empty_database, columns)

    if how == "yoyo":
        yoyo(empty_database, folder)
    else:
        migrate(empty_database)

    assert len(before["execution_traces"]) == 2
    assert len(before["trace_payloads"]) == 2
    after = rows(empty_database, columns)
    kept = {table: [row for row in after[table] if row in before[table]] for table in before}
    assert kept == before
    same(dump(empty_database), dump(database))
    with psycopg.connect(empty_database) as conn:
        counted = conn.execute(
            "select t.name, array_agg(u.kind order by u.kind) from tracedb.tenants as t,"
            " tracedb.usage_series('2026-01-01', '2026-02-01', 'total', t.tenant_id) as u"
            " group by 1"
        ).fetchall()
    assert sorted(counted) == [("one", ["call", "request"]), ("two", ["call", "request"])]


# freezing


def test_released_migrations_are_frozen() -> None:
    source = Source.read()
    released = ALL[: ALL.index(list(RELEASES.values())[-1]) + 1]

    frozen = {f"{id}{suffix}" for id in released for suffix in (".sql", ".rollback.sql")}

    assert set(source.released()) == frozen
    assert source.edited() == []


def test_the_checksums_are_those_of_sha256sum() -> None:
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS],
        check=True,
        cwd=resources.folder("migrations"),
    )


def test_freezing_refuses_an_edited_release(tmp_path: Path) -> None:
    folder = shutil.copytree(resources.folder("migrations"), tmp_path / "migrations")
    frozen = (folder / CHECKSUMS).read_text()
    with (folder / "0001_initial.sql").open("a") as file:
        file.write("-- edited\n")

    result = subprocess.run([SCRIPTS / "freeze-migrations", folder], check=False)

    assert result.returncode != 0
    assert (folder / CHECKSUMS).read_text() == frozen


# how a migration is written


def broken_rules(path: Path) -> Iterator[str]:
    """What is wrong with a migration or rollback file, beyond what Source refuses anyway."""
    raw = path.read_bytes()
    text = raw.decode()
    is_rollback = path.name.endswith(".rollback.sql")
    header = re.match(r"(--.*\n)*", text)
    leading = header[0] if header else ""
    statements = [without_comments(each) for each in sqlparse.split(text)]
    statements = [each for each in statements if each]
    is_transactional = not re.search(r"^-- transactional: *false$", leading, re.MULTILINE)
    scope = "set local " if is_transactional else "set "
    roles = [each for each in statements if re.match(r"(re)?set role\b", each)]

    if b"\r" in raw or raw.startswith(b"\xef\xbb\xbf"):
        yield "carriage returns or a byte order mark"
    if is_rollback and text.startswith("-- irreversible: "):
        return
    if not re.match(rf"-- {re.escape(path.name)}: \S.*[.;,\w]\n", text):
        yield "first line"
    if re.search(r"^\s*/\*", text, re.MULTILINE):
        yield "block comment"
    if re.search(r"^-- *(transactional|depends) *:", text[len(leading) :], re.MULTILINE):
        yield "directive below the header"
    if any(re.match(r"(begin|start|commit|end|rollback|savepoint)\b", each) for each in statements):
        yield "transaction control"
    for setting in ("lock_timeout", "statement_timeout"):
        if not any(each.startswith(f"{scope}{setting} ") for each in statements[:3]):
            yield setting
    if not is_rollback and (
        "select set_config('citus.multi_shard_modify_mode', 'sequential', true);" not in statements
    ):
        yield "sequential mode"
    build = re.compile(r"(create|create unique|drop) index concurrently\b")
    if any(build.match(each) for each in statements) is is_transactional:
        yield "concurrently if and only if not transactional"
    if any("concurrently if not exists" in each for each in statements):
        yield "accepts an invalid index"
    if roles and not (roles[-1].startswith("reset") and len(roles) % 2 == 0):
        yield "role not reset"


def without_comments(statement: str) -> str:
    lines = (line for line in statement.splitlines() if not line.lstrip().startswith("--"))
    return " ".join(" ".join(lines).split())


@pytest.mark.lint
@pytest.mark.parametrize("id", ALL)
def test_migrations_keep_the_rules(id: str) -> None:
    migration = Source.read()[id]
    at = ALL.index(id)
    previous = f"-- depends: {ALL[at - 1]}" if at else ""

    assert int(id[:4]) == at + 1
    assert migration.rollback_path.exists()
    assert previous in migration.path.read_text().split("\n\n")[0]
    assert list(broken_rules(migration.path)) == []
    assert list(broken_rules(migration.rollback_path)) == []


@pytest.mark.lint
def test_every_rule_finds_its_fault(tmp_path: Path) -> None:
    good = (
        "-- 0002_x.sql: what it does.\n\n"
        "select set_config('citus.multi_shard_modify_mode', 'sequential', true);\n"
        "set local lock_timeout = '2s';\nset local statement_timeout = '5min';\n"
    )
    path = tmp_path / "0002_x.sql"
    faults = {
        "first line": good.replace("0002_x.sql", "0003_x.sql"),
        "carriage returns or a byte order mark": "\ufeff" + good,
        "block comment": good + "/* a */ select 1;",
        "directive below the header": good + "-- transactional: false\n",
        "transaction control": good + "commit;",
        "lock_timeout": good.replace("lock_timeout", "other"),
        "statement_timeout": good.replace("set local statement", "set statement"),
        "sequential mode": good.replace("sequential", "parallel"),
        "concurrently if and only if not transactional": good + "create index concurrently a on b;",
        "accepts an invalid index": good + "create index concurrently if not exists a on b (c);",
        "role not reset": good + "set role tracedb_owner;",
    }

    path.write_text(good)
    assert list(broken_rules(path)) == []
    for rule, text in faults.items():
        path.write_text(text)
        assert rule in list(broken_rules(path))


@pytest.mark.lint
def test_a_new_migration_follows_the_rules_and_the_order(tmp_path: Path) -> None:
    folder = shutil.copytree(resources.folder("migrations"), tmp_path / "migrations")

    for name in ("add_this", "drop_that"):
        subprocess.run([SCRIPTS / "new-migration", name, folder], check=True)

    source = Source.read(folder)
    *_, this, that = source
    number = len(ALL) + 1
    assert (this.id, that.id) == (f"{number:04}_add_this", f"{number + 1:04}_drop_that")
    assert f"-- depends: {this.id}\n" in that.path.read_text()
    for path in (this.path, this.rollback_path, that.path, that.rollback_path):
        assert list(broken_rules(path)) == []


@pytest.mark.lint
@pytest.mark.parametrize("name", ["", "Capital", "with-dash", "with space", "1st"])
def test_a_new_migration_needs_a_name_in_snake_case(tmp_path: Path, name: str) -> None:
    result = subprocess.run([SCRIPTS / "new-migration", name, tmp_path], check=False)

    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []
