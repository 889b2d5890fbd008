"""Which tenant a statement acts for: by bound role, then token, then setting, else none."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from clones import clone
from servers import Server

BOUND, OTHER, TOKEN, SETTING = (uuid4() for _ in range(4))
BINDING = {tenant: f"tracedb_tenant_{tenant}" for tenant in (BOUND, OTHER)}

Login = Callable[..., psycopg.Connection[Any]]


@pytest.fixture(scope="module")
def database(server: Server, template: str) -> Iterator[str]:
    with clone(server, template) as dsn:
        yield dsn


@pytest.fixture
def login(server: Server, database: str) -> Iterator[Login]:
    """Makes a login that is a member of roles, each made if missing, and connects as it."""
    with ExitStack() as cleanup:
        made: set[str] = set()

        def make(name: str, options: str = "") -> sql.Identifier:
            if name not in made and not name.startswith(("tracedb_app", "tracedb_reader")):
                server.admin.execute(
                    sql.SQL("create role {} " + options).format(sql.Identifier(name))
                )
                cleanup.callback(
                    server.admin.execute, sql.SQL("drop role {}").format(sql.Identifier(name))
                )
                made.add(name)
            return sql.Identifier(name)

        def grant(role: str, member: str, how: str = "") -> None:
            server.admin.execute(sql.SQL("grant {} to {} " + how).format(make(role), make(member)))

        def connect(*member_of: str, how: str = "") -> psycopg.Connection[Any]:
            """`how` qualifies the first membership; "role/role" nests the second in the first."""
            name = f"tracedb_test_{uuid4().hex[:8]}"
            make(name, "login password 'secret'")
            grant("tracedb_app", name)
            for path in member_of:
                member = name
                for role in path.split("/"):
                    grant(role, member, how)
                    member = role
            dsn = psycopg.conninfo.make_conninfo(database, user=name, password="secret")
            return cleanup.enter_context(psycopg.connect(dsn))

        yield connect


def tenant(conn: psycopg.Connection[Any]) -> UUID | None:
    row = conn.execute("select tracedb.current_tenant_id()").fetchone()
    assert row is not None
    found: UUID | None = row[0]
    return found


def say(
    conn: psycopg.Connection[Any],
    *,
    claims: str | dict[str, object] = "",
    setting: UUID | str | None = None,
) -> None:
    """Set the token and the setting for the rest of the transaction."""
    conn.execute(
        "select set_config('request.jwt.claims', %s, true),"
        " set_config('tracedb.tenant_id', %s, true)",
        [claims if isinstance(claims, str) else json.dumps(claims), str(setting or "")],
    )


# --- the bound role ---


def test_a_login_bound_to_a_tenant_acts_for_it(login: Login) -> None:
    assert tenant(login(BINDING[BOUND])) == BOUND


def test_set_role_does_not_shed_the_binding(login: Login) -> None:
    conn = login(BINDING[BOUND], "tracedb_reader")
    conn.execute("set role tracedb_reader")
    say(conn, setting=SETTING)

    assert tenant(conn) == BOUND


def test_an_unbound_login_is_untouched_by_the_binding_of_another(login: Login) -> None:
    assert (tenant(login()), tenant(login(BINDING[BOUND]))) == (None, BOUND)


def test_a_superuser_that_becomes_a_bound_role_acts_for_its_tenant(
    login: Login, conn: psycopg.Connection[Any]
) -> None:
    bound = login(BINDING[BOUND])
    conn.execute(sql.SQL("set local role {}").format(sql.Identifier(bound.info.user)))

    assert tenant(conn) == BOUND


def test_a_binding_holds_through_another_role(login: Login) -> None:
    assert tenant(login(f"tracedb_test_team/{BINDING[BOUND]}")) == BOUND


def test_two_bindings_mean_no_tenant(login: Login) -> None:
    conn = login(BINDING[BOUND], BINDING[OTHER])
    say(conn, claims={"tenant_id": str(BOUND)}, setting=BOUND)

    assert tenant(conn) is None


def test_the_same_binding_by_two_ways_is_one(login: Login) -> None:
    assert tenant(login(BINDING[BOUND], f"tracedb_test_team/{BINDING[BOUND]}")) == BOUND


def test_being_able_to_grant_a_binding_does_not_bind(login: Login) -> None:
    """What a CREATEROLE administrator holds in every role it made."""
    conn = login(BINDING[BOUND], how="with admin true, inherit false, set false")

    assert tenant(conn) is None
    say(conn, setting=SETTING)
    assert tenant(conn) == SETTING


@pytest.mark.parametrize("how", ["inherit false, set true", "inherit true, set false"])
def test_a_membership_that_gives_either_right_binds(login: Login, how: str) -> None:
    assert tenant(login(BINDING[BOUND], how=f"with {how}")) == BOUND


def test_a_binding_is_read_in_either_case(login: Login) -> None:
    assert tenant(login(f"tracedb_tenant_{str(BOUND).upper()}")) == BOUND


@pytest.mark.parametrize("suffix", ["acme", f"{BOUND}x", str(BOUND)[:-1], ""])
def test_a_misspelt_binding_opens_nothing(login: Login, suffix: str) -> None:
    conn = login(f"tracedb_tenant_{suffix}")
    say(conn, claims={"tenant_id": str(TOKEN)}, setting=SETTING)

    assert tenant(conn) is None


# --- the token ---


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"tenant_id": str(TOKEN)}, TOKEN),
        ({"app_metadata": {"tenant_id": str(TOKEN)}}, TOKEN),
        ({"tenant_id": str(TOKEN), "app_metadata": {"tenant_id": str(OTHER)}}, TOKEN),
        ({"tenant_id": None, "app_metadata": {"tenant_id": str(TOKEN)}}, TOKEN),
        ({"tenant_id": str(TOKEN), "user_metadata": {"tenant_id": str(OTHER)}}, TOKEN),
        ({"user_metadata": {"tenant_id": str(OTHER)}}, None),
        ({"sub": "somebody", "role": "authenticated"}, None),
        ({"tenant_id": "acme"}, None),
        ({"tenant_id": ""}, None),
        ({"tenant_id": 5}, None),
        ({"tenant_id": [str(TOKEN)]}, None),
        ({"tenant_id": "acme", "app_metadata": {"tenant_id": str(TOKEN)}}, None),
        ({"app_metadata": str(TOKEN)}, None),
        ({"app_metadata": None}, None),
        ("{}", None),
        ("{", None),
        ("null", None),
        ("[1]", None),
        (f'"{TOKEN}"', None),
        (str(TOKEN), None),
        (" ", None),
        ('{"tenant_id": "\\u0000"}', None),
        ('{"tenant_id": "\\ud800"}', None),
    ],
)
def test_where_there_is_a_token_only_the_token_counts(
    login: Login, claims: str | dict[str, object], expected: UUID | None
) -> None:
    conn = login()
    say(conn, claims=claims, setting=SETTING)

    assert tenant(conn) == expected


def test_a_token_nested_too_deep_is_an_error(login: Login) -> None:
    conn = login()
    say(conn, claims='{"a":' * 100_000 + "1" + "}" * 100_000, setting=SETTING)

    with pytest.raises(psycopg.errors.StatementTooComplex):
        tenant(conn)


# --- the setting ---


def test_without_anything_there_is_no_tenant_and_no_row(
    login: Login, conn: psycopg.Connection[Any]
) -> None:
    ingest(conn, SETTING)
    conn.commit()
    app = login()

    assert tenant(app) is None
    assert traces(app) == 0
    app.execute("select tracedb.set_tenant(%s)", [SETTING])
    assert traces(app) == 1


@pytest.mark.parametrize("setting", ["acme", "0", f"{SETTING},{OTHER}", "%"])
def test_a_malformed_setting_is_an_error(login: Login, setting: str) -> None:
    conn = login()
    say(conn, setting=setting)

    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        traces(conn)


def test_set_tenant_ends_with_its_transaction(login: Login) -> None:
    conn = login()
    for end in (conn.commit, conn.rollback):
        conn.execute("select tracedb.set_tenant(%s)", [SETTING])
        assert tenant(conn) == SETTING
        end()
        assert tenant(conn) is None
        conn.commit()


def test_set_tenant_in_autocommit_is_gone_at_once(login: Login) -> None:
    conn = login()
    conn.autocommit = True
    conn.execute("select tracedb.set_tenant(%s)", [SETTING])

    assert tenant(conn) is None


def test_set_tenant_is_undone_with_its_savepoint(login: Login) -> None:
    conn = login()
    conn.execute("select tracedb.set_tenant(%s)", [SETTING])
    with conn.transaction(force_rollback=True):
        conn.execute("select tracedb.set_tenant(%s)", [OTHER])
        assert tenant(conn) == OTHER

    assert tenant(conn) == SETTING


def test_set_tenant_can_be_unset(login: Login) -> None:
    conn = login()
    conn.execute("select tracedb.set_tenant(%s)", [SETTING])
    conn.execute("select tracedb.set_tenant(null)")

    assert tenant(conn) is None


def test_set_tenant_takes_nothing_but_a_uuid(login: Login) -> None:
    conn = login()
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        conn.execute("select tracedb.set_tenant(%s)", ["' or true --"])


# --- every conflict between them ---


@pytest.mark.parametrize(
    ("bound", "claims", "setting"),
    list(
        itertools.product(
            [(), (BOUND,), (BOUND, OTHER)],
            ["", json.dumps({"tenant_id": str(TOKEN)}), '{"sub": "x"}', "{"],
            [None, SETTING],
        )
    ),
    ids=lambda value: str(len(value)) if isinstance(value, tuple) else str(value)[:12] or "none",
)
def test_the_stronger_word_counts(
    login: Login, bound: tuple[UUID, ...], claims: str, setting: UUID | None
) -> None:
    conn = login(*(BINDING[tenant] for tenant in bound))
    say(conn, claims=claims, setting=setting)

    if bound:
        expected = bound[0] if len(bound) == 1 else None
    elif claims:
        expected = TOKEN if str(TOKEN) in claims else None
    else:
        expected = setting
    assert tenant(conn) == expected


def test_a_bound_tenant_reads_and_writes_its_own_rows_and_no_others(
    login: Login, conn: psycopg.Connection[Any]
) -> None:
    ingest(conn, OTHER)
    conn.commit()
    bound = login(BINDING[BOUND])
    say(bound, claims={"tenant_id": str(OTHER)}, setting=OTHER)

    assert traces(bound) == 0
    ingest(bound, BOUND)
    assert traces(bound) == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        ingest(bound, OTHER)


def ingest(conn: psycopg.Connection[Any], tenant_id: UUID) -> None:
    trace = {"type": "trace", "external_id": "one", "started_at": "2026-01-31T12:00:00Z"}
    conn.execute("select tracedb.ingest(%s::json, %s)", [json.dumps(trace), tenant_id])


def traces(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("select count(*) from tracedb.execution_traces").fetchone()
    assert row is not None
    count: int = row[0]
    return count


MINE, THEIRS = uuid4(), uuid4()


def test_a_type_of_ones_own_does_not_change_what_functions_cast_to(
    conn: psycopg.Connection[Any],
) -> None:
    """Unless a search path names pg_temp it is searched first."""
    role = f"tracedb_tenant_{MINE}"
    conn.execute(f'create role "{role}" in role tracedb_app'.encode())
    conn.execute(f'set local role "{role}"'.encode())
    for attack in (
        f"create type pg_temp.uuid as enum ('{THEIRS}')",
        "create function pg_temp.mk(text) returns pg_temp.uuid language sql"
        f" as $$ select '{THEIRS}'::pg_temp.uuid $$",
        "create cast (text as pg_temp.uuid) with function pg_temp.mk(text)",
    ):
        conn.execute(attack.encode())

    found = conn.execute("select tracedb.current_tenant_id()::text").fetchone()

    assert found == (str(MINE),)


def test_a_domain_of_ones_own_does_not_run_as_the_owner(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "select tracedb.ingest(%s::json, %s)",
        [
            '[{"type": "trace", "external_id": "old", "started_at": "2001-01-01T00:00:00Z"}]',
            MINE,
        ],
    )
    conn.execute("set local role tracedb_maintainer")
    for attack in (
        "create function pg_temp.evil(text) returns boolean language plpgsql as $$ begin"
        " if current_user = 'tracedb_owner' then"
        " execute 'grant truncate on tracedb.execution_traces to tracedb_maintainer'; end if;"
        " return true; end $$",
        "create domain pg_temp.text as pg_catalog.text check (pg_temp.evil(value))",
    ):
        conn.execute(attack.encode())

    drained = conn.execute("select tracedb.drain_default_partitions()").fetchall()

    assert drained != []
    assert conn.execute(
        "select has_table_privilege('tracedb_maintainer', 'tracedb.execution_traces', 'truncate')"
    ).fetchone() == (False,)
