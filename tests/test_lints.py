"""The house rules, asked of the catalog (tests/lints) and of the files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from clones import clone
from servers import Server
from tracedb import resources

pytestmark = pytest.mark.lint

ROOT = Path(__file__).parent.parent
LINTS = {path.stem: path for path in sorted((ROOT / "tests" / "lints").glob("*.sql"))}
SQL_FILES = sorted([*(ROOT / "schema").glob("*.sql"), *LINTS.values()])


@pytest.fixture(scope="module")
def database(server: Server, template: str) -> Iterator[str]:
    """One database for the whole module: what a test breaks is rolled back."""
    with clone(server, template) as dsn:
        yield dsn


def findings(conn: psycopg.Connection[Any], lint: str) -> dict[str, str]:
    return dict(conn.execute(LINTS[lint].read_text().encode()).fetchall())


@pytest.mark.parametrize("lint", LINTS)
def test_the_schema_keeps_the_rule(conn: psycopg.Connection[Any], lint: str) -> None:
    assert findings(conn, lint) == {}


# lint, a statement that breaks its rule, the object it must name
FAULTS = [
    (
        "rls_not_forced",
        "alter table tracedb.llm_spans_default no force row level security",
        "tracedb.llm_spans_default",
    ),
    ("rls_not_forced", "create table tracedb.t (like tracedb.llm_spans)", "tracedb.t"),
    (
        "policy_without_condition",
        "create policy p on tracedb.tenants for update to tracedb_app using (false)",
        "p on tracedb.tenants",
    ),
    (
        "policy_without_condition",
        "create policy p on tracedb.tenants for select to tracedb_app",
        "p on tracedb.tenants",
    ),
    (
        "policy_role_matrix",
        "create policy p on tracedb.tenants for all to tracedb_app using (false)",
        "tracedb.tenants",
    ),
    (
        "policy_role_matrix",
        "create policy p on tracedb.tenants for delete using (false)",
        "p on tracedb.tenants",
    ),
    (
        "policy_role_matrix",
        "create policy p on tracedb.tenants as restrictive for delete to tracedb_app using (false)",
        "p on tracedb.tenants",
    ),
    (
        "policy_differs_from_grant",
        "grant delete on tracedb.llm_spans to tracedb_app",
        "tracedb.llm_spans",
    ),
    (
        "policy_differs_from_grant",
        "revoke select on tracedb.trace_ids from tracedb_reader",
        "tracedb.trace_ids",
    ),
    (
        "policy_with_subselect",
        "create policy p on tracedb.tenants for delete to tracedb_app"
        " using (tenant_id = (select tracedb.current_tenant_id()))",
        "p on tracedb.tenants",
    ),
    (
        "policy_always_true",
        "create policy p on tracedb.tenants for insert to tracedb_app with check (true)",
        "p on tracedb.tenants",
    ),
    (
        "policy_not_by_tenant",
        "create policy p on tracedb.tenants for delete to tracedb_app"
        " using (tenant_id = tracedb.current_tenant_id() or external_id is null)",
        "p on tracedb.tenants",
    ),
    ("no_primary_key", "create table tracedb.t (id int)", "tracedb.t"),
    ("unclassified_column", "create table tracedb.t (tenant_id uuid)", "tracedb.t"),
    (
        "unclassified_column",
        "alter table tracedb.llm_spans add column said jsonb",
        "tracedb.llm_spans.said",
    ),
    (
        "unclassified_column",
        "alter table tracedb.trace_ids drop column external_id cascade",
        "tracedb.trace_ids.external_id",
    ),
    (
        "tenant_not_first",
        "create index i on tracedb.trace_ids (trace_id, tenant_id)",
        "tracedb.i",
    ),
    (
        "tenant_not_first",
        "alter table tracedb.trace_ids add constraint k unique (trace_id)",
        "tracedb.k",
    ),
    (
        "unnamed_constraint",
        "alter table tracedb.trace_ids add check (external_id <> '')",
        "trace_ids_external_id_check on tracedb.trace_ids",
    ),
    (
        "constraint_name_twice",
        "alter table tracedb.tenants add constraint span_status_known check (name <> '')",
        "span_status_known",
    ),
    (
        "constraint_without_reason",
        "comment on constraint span_status_known on tracedb.llm_spans is null",
        "span_status_known on tracedb.llm_spans",
    ),
    (
        "constraint_without_reason",
        "comment on constraint span_status_known on tracedb.llm_spans is 'state: must be known'",
        "span_status_known on tracedb.llm_spans",
    ),
    ("missing_comment", "comment on schema tracedb is null", "schema tracedb"),
    ("missing_comment", "comment on table tracedb.tenants is null", "tracedb.tenants"),
    ("missing_comment", "comment on view tracedb.trace_summary is null", "tracedb.trace_summary"),
    ("missing_comment", "comment on function tracedb.new_id() is null", "tracedb.new_id()"),
    (
        "missing_comment",
        "comment on aggregate tracedb.merged_report(jsonb) is null",
        "tracedb.merged_report(jsonb)",
    ),
    ("missing_comment", "comment on type tracedb.tree_node is null", "tracedb.tree_node"),
    (
        "function_search_path",
        "alter function tracedb.new_id() reset search_path",
        "tracedb.new_id()",
    ),
    (
        "function_search_path",
        "alter function tracedb.new_id() set search_path = tracedb",
        "tracedb.new_id()",
    ),
    ("security_definer", "alter function tracedb.new_id() security definer", "tracedb.new_id()"),
    (
        "security_definer",
        "grant execute on function tracedb.default_partition_rows() to public",
        "tracedb.default_partition_rows()",
    ),
    (
        "view_not_invoker",
        "alter view tracedb.trace_summary reset (security_invoker)",
        "tracedb.trace_summary",
    ),
    (
        "view_not_invoker",
        "create materialized view tracedb.m as select * from tracedb.tenants",
        "tracedb.m",
    ),
    ("public_grant", "grant usage on schema tracedb to public", "schema tracedb"),
    ("public_grant", "grant select on tracedb.tenants to public", "tracedb.tenants"),
    ("public_grant", "grant select (name) on tracedb.tenants to public", "tracedb.tenants.name"),
    ("public_grant", "create function tracedb.f() returns int return 1", "tracedb.f()"),
    (
        "partition_grant",
        "grant select on all tables in schema tracedb to tracedb_reader",
        "tracedb.llm_spans_default",
    ),
    ("dangerous_grant", "grant truncate on tracedb.llm_spans to tracedb_app", "tracedb.llm_spans"),
    (
        "dangerous_grant",
        "grant select on tracedb.llm_spans to tracedb_app with grant option",
        "tracedb.llm_spans",
    ),
    (
        "varchar",
        "alter table tracedb.tenants add column plan varchar(9)",
        "tracedb.tenants.plan",
    ),
    (
        "timestamp_without_zone",
        "alter table tracedb.tenants add column seen_at timestamp",
        "tracedb.tenants.seen_at",
    ),
    ("enum", "create type tracedb.mood as enum ('ok')", "tracedb.mood"),
    (
        "foreign_key_on_event_table",
        "alter table tracedb.llm_spans add constraint f foreign key (tenant_id)"
        " references tracedb.tenants",
        "f on tracedb.llm_spans",
    ),
    (
        "foreign_key_without_index",
        "create table tracedb.t (tenant_id uuid references tracedb.tenants)",
        "t_tenant_id_fkey on tracedb.t",
    ),
    (
        "trigger_on_tenant_table",
        "create trigger t before update on tracedb.trace_ids for each row"
        " execute function suppress_redundant_updates_trigger()",
        "t on tracedb.trace_ids",
    ),
    (
        "trigger_on_tenant_table",
        "create rule r as on update to tracedb.trace_ids do instead nothing",
        "r on tracedb.trace_ids",
    ),
    (
        "invalid_index",
        "update pg_index set indisvalid = false"
        " where indexrelid = 'tracedb.tenants_pkey'::regclass",
        "tracedb.tenants_pkey",
    ),
    (
        "duplicate_index",
        "create index i on tracedb.trace_ids (tenant_id, external_id)",
        "tracedb.trace_ids",
    ),
    (
        "function_without_grant",
        "create function tracedb.f() returns int return 1;"
        "revoke execute on function tracedb.f() from public",
        "tracedb.f()",
    ),
    ("not_owned", "create view tracedb.v as select 1 as one", "tracedb.v"),
    ("powerful_role", "alter role tracedb_reader login", "tracedb_reader"),
    ("powerful_role", "grant tracedb_owner to tracedb_app", "tracedb_app"),
]


@pytest.mark.parametrize(
    ("lint", "statement", "object"), FAULTS, ids=[f"{fault[0]}-{fault[2]}" for fault in FAULTS]
)
def test_a_planted_fault_is_found(
    conn: psycopg.Connection[Any], lint: str, statement: str, object: str
) -> None:
    assert object not in findings(conn, lint)

    conn.execute(statement.encode())
    found = findings(conn, lint)
    conn.rollback()

    assert object in found


def test_a_column_computed_when_read_is_found(
    conn: psycopg.Connection[Any], server: Server
) -> None:
    if server.major < 18:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    conn.execute(
        "alter table tracedb.tenants add column shout text generated always as (upper(name))"
    )

    assert "tracedb.tenants.shout" in findings(conn, "virtual_column")


def test_every_lint_has_a_planted_fault() -> None:
    assert set(LINTS) == {fault[0] for fault in FAULTS} | {"virtual_column"}


def test_the_rules_read_from_the_files_are_those_of_the_database(
    conn: psycopg.Connection[Any],
) -> None:
    rows = conn.execute(
        """
        select distinct conname::text, obj_description(oid, 'pg_constraint')
        from pg_constraint
        where connamespace = 'tracedb'::regnamespace and contype = 'c' and coninhcount = 0
        """
    ).fetchall()
    assert resources.rules() == dict(rows)


def test_record_types_have_the_columns_of_their_tables(conn: psycopg.Connection[Any]) -> None:
    """What a record may say is what its table has, besides what the server fills in."""
    served = {"tenant_id", "created_at", "updated_at", "provisional"}
    served |= {"price_id", "computed_cost_usd"}
    texts = {"prompt", "response", "input", "output"}  # stored as payloads
    types = conn.execute("select type, table_name, fields from tracedb.record_types()").fetchall()
    assert len(types) == 9

    for type_, table, fields in types:
        columns = {
            name
            for (name,) in conn.execute(
                "select attname from pg_attribute where attrelid = %s::regclass"
                " and attnum > 0 and not attisdropped",
                [f"tracedb.{table}"],
            )
        }
        pseudo = {"external_id"} | (texts if type_ != "payload" else set())
        assert set(fields) - pseudo == columns - served - pseudo, type_
        assert len(fields) == len(set(fields)), type_


def code(path: Path) -> str:
    """The SQL of a file without its comments, strings and quoted names."""
    text = re.sub(
        r"'(?:[^']|'')*'|--[^\n]*", lambda m: "''" if m[0][0] == "'" else "", path.read_text()
    )
    return re.sub(r'"[^"\n]*"', '""', text)


@pytest.mark.parametrize("path", SQL_FILES, ids=lambda path: path.name)
def test_an_sql_file_keeps_the_style(path: Path) -> None:
    lines = path.read_text().split("\n")

    assert re.fullmatch(rf"-- {re.escape(path.name)}: \S.*", lines[0])
    assert [line for line in lines if len(line) > 100] == []
    assert [line for line in lines if line != line.rstrip() or "\t" in line] == []
    assert lines[-1] == "", "the file ends with a newline"
    assert "/*" not in code(path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "schema").glob("*.sql")), ids=lambda path: path.name
)
def test_a_schema_file_is_lower_case_and_acts_as_the_owner(path: Path) -> None:
    text = code(path)

    assert re.findall(r"\b[A-Z]+\b", text) == []
    roles = re.findall(r"^(set role tracedb_owner|reset role);$", text, re.MULTILINE)
    assert roles == ["set role tracedb_owner", "reset role"] * (len(roles) // 2)
    if (
        re.search(r"^(create|grant|comment on) (?!schema)", text, re.MULTILINE)
        and path.name[:3] > "020"
    ):
        assert roles, "objects belong to tracedb_owner"
    if roles:
        assert text.rstrip().endswith("reset role;")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "schema").glob("*.sql")), ids=lambda path: path.name
)
def test_every_constraint_is_named(path: Path) -> None:
    named = r"constraint \w+\s+"
    anonymous = r"(?<!with )(?:check|primary key|unique|foreign key|exclude)\s*\("

    assert re.findall(anonymous, re.sub(rf"{named}{anonymous}", "", code(path))) == []
    assert "references" not in re.sub(rf"{named}foreign key[^;]*?references", "", code(path))


def strings(path: Path) -> Iterator[str]:
    """The string literals of a Python file that are not docstrings."""
    for node in ast.walk(ast.parse(path.read_text())):
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Constant)
                and isinstance(child.value, str)
                and not isinstance(node, ast.Expr)
            ):
                yield child.value


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tracedb").rglob("*.py")), ids=lambda path: path.name
)
def test_sql_lives_in_sql_files(path: Path) -> None:
    statement = r"\s*(select|insert into|update \S+ set|delete from|with \w+ as)\s"

    assert [text for text in strings(path) if re.match(statement, text)] == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    texts = {
        path: path.read_text()
        for folder in ("schema", "migrations", "tracedb", "tests", "scripts", ".")
        for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*"))
        if path.is_file() and path.suffix not in (".pyc", ".gz")
    }
    assert len(texts) > 50

    machine = re.compile(r"(?<![\w.])/(?:work|root|Users|tmp)/\w+")
    assert {
        str(path): machine.findall(text) for path, text in texts.items() if machine.search(text)
    } == {}
