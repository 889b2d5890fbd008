"""No tenant can read, write or infer another's rows, by any object of the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

import actors
import matrix
import objects
import two_tenants
from clones import clone
from servers import Server, as_role
from two_tenants import A, B


@pytest.fixture(scope="module")
def database(server: Server, template: str) -> Iterator[str]:
    """Two tenants with the same ids; what a test changes is rolled back."""
    with clone(server, template) as dsn, actors.roles(server.admin):
        with psycopg.connect(dsn) as conn:
            two_tenants.fill(conn)
        yield dsn


def test_no_tenant_notices_another_through_anything(conn: psycopg.Connection[Any]) -> None:
    assert matrix.findings(conn) == []


def test_the_matrix_covers_every_object(conn: psycopg.Connection[Any]) -> None:
    kinds = [relation.kind for relation in objects.relations(conn)]

    assert {"event", "tenant", "setting", "partition", "view", "ledger"} == set(kinds)
    assert kinds.count("event") == 11
    assert kinds.count("partition") > 6 * 10  # those that fill() made among them
    assert len(objects.functions(conn)) > 40


def test_rows_lie_in_new_old_and_default_partitions(conn: psycopg.Connection[Any]) -> None:
    for (table,) in conn.execute("select unnest(parents) from tracedb.partition_policies"):
        filled = conn.execute(
            sql.SQL(
                "select count(distinct tableoid),"
                " bool_or(tableoid::regclass::text ~ '_default$') from {}"
            ).format(sql.Identifier("tracedb", table))
        ).fetchone()
        assert filled == (3, True), table


# what is broken, and the object that the matrix must name
FAULTS = {
    "a dropped policy": (
        "drop policy llm_spans_app_select on tracedb.llm_spans",
        "tracedb.llm_spans",
    ),
    "a partition without row-level security": (
        "alter table tracedb.llm_spans_default disable row level security;"
        "grant select on tracedb.llm_spans_default to tracedb_reader",
        "tracedb.llm_spans_default",
    ),
    "a partition that is granted": (
        "grant select on tracedb.hook_executions_default to tracedb_app",
        "tracedb.hook_executions_default",
    ),
    "a table without row-level security": (
        "alter table tracedb.trace_ids disable row level security",
        "tracedb.trace_ids",
    ),
    "a policy that is always true": (
        "drop policy tenants_app_select on tracedb.tenants;"
        "create policy p on tracedb.tenants for select to tracedb_app using (true)",
        "tracedb.tenants",
    ),
    "a policy that lets rows be given away": (
        "alter policy endpoint_calls_app_update on tracedb.endpoint_calls with check (true)",
        "tracedb.endpoint_calls",
    ),
    "a policy that lets anybody's rows be written": (
        "alter policy trace_ids_app_insert on tracedb.trace_ids with check (true)",
        "tracedb.trace_ids",
    ),
    "a view with its owner's rights": (
        "alter view tracedb.trace_summary set (security_invoker = false)",
        "tracedb.trace_summary",
    ),
    "a view that counts with its owner's rights": (
        "create view tracedb.v as select tracedb.current_tenant_id() as tenant_id, count(*)"
        " from tracedb.llm_spans; alter view tracedb.v owner to tracedb_owner;"
        "grant select on tracedb.v to tracedb_reader",
        "tracedb.v",
    ),
    "a function that counts with its owner's rights": (
        "create function tracedb.f() returns bigint language sql stable security definer"
        " return (select count(*) from tracedb.execution_traces);"
        "alter function tracedb.f() owner to tracedb_owner;"
        "revoke execute on function tracedb.f() from public;"
        "grant execute on function tracedb.f() to tracedb_reader",
        "tracedb.f()",
    ),
    "a function that tells whether an id is taken": (
        "create function tracedb.f(trace_id uuid) returns void language plpgsql stable"
        " security definer as $$ begin"
        " if exists (select from tracedb.llm_spans as s where s.trace_id = f.trace_id)"
        " then raise unique_violation; end if; end $$;"
        "alter function tracedb.f(uuid) owner to tracedb_owner;"
        "revoke execute on function tracedb.f(uuid) from public;"
        "grant execute on function tracedb.f(uuid) to tracedb_app",
        "tracedb.f(uuid)",
    ),
    "a function that changes rows of others": (
        "create function tracedb.f() returns void language sql volatile security definer"
        " begin atomic update tracedb.tenants set name = 'x'; end;"
        "alter function tracedb.f() owner to tracedb_owner;"
        "revoke execute on function tracedb.f() from public;"
        "grant execute on function tracedb.f() to tracedb_app",
        "tracedb.f()",
    ),
    "a function that everybody may call": (
        "create function tracedb.f() returns int return 1;grant usage on schema tracedb to public",
        "tracedb.f()",
    ),
    "a key without the tenant": (
        "alter table tracedb.trace_ids add constraint k unique (external_id, trace_id)",
        "tracedb.trace_ids",
    ),
    "a right that a function needs within": (
        "revoke execute on function tracedb.partition_key(text) from tracedb_maintainer",
        "tracedb.ingest_lag(timestamp with time zone)",
    ),
    "a right to delete": (
        "grant delete on tracedb.llm_spans to tracedb_app",
        "tracedb.llm_spans",
    ),
    "a right to truncate": (
        "grant truncate on tracedb.trace_ids to tracedb_maintainer",
        "tracedb.trace_ids",
    ),
    "a setting that tenants may read": (
        "grant select on tracedb.partition_policies to tracedb_app;"
        "create policy p on tracedb.partition_policies for select to tracedb_app using (true)",
        "tracedb.partition_policies",
    ),
    "a table about which nothing was decided": (
        "create table tracedb.t (tenant_id uuid primary key)",
        "tracedb.t",
    ),
    "a view about which nothing was decided": (
        "create view tracedb.v with (security_invoker = true) as select 1 as one",
        "tracedb.v",
    ),
    "a kind of relation without a rule": (
        "create materialized view tracedb.m as select * from tracedb.llm_spans;"
        "grant select on tracedb.m to tracedb_reader",
        "tracedb.m",
    ),
    "a setting that outdoes a bound role": (
        "create or replace function tracedb.bound_tenant_ids() returns uuid[]"
        " language sql stable return '{}'::uuid[]",
        "tracedb.llm_spans",
    ),
}


@pytest.mark.parametrize(("statement", "object"), FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_is_found(
    conn: psycopg.Connection[Any], statement: str, object: str
) -> None:
    conn.execute(statement.encode())
    found = matrix.findings(conn, only=object)
    conn.rollback()

    assert [finding for finding in found if object in finding] != []
    assert all(object in finding for finding in found)


def test_a_detached_partition_shows_no_rows_of_others(conn: psycopg.Connection[Any]) -> None:
    """Also when it gets the grants that its parent had."""
    parent, partition = "tracedb.llm_spans", "tracedb.llm_spans_default"
    conn.execute(f"alter table {parent} detach partition {partition}".encode())
    conn.execute(f"grant select, update on {partition} to tracedb_app, tracedb_reader".encode())

    assert conn.execute(f"select count(*) from {partition}".encode()).fetchone() == (6,)
    for role in ("tracedb_app", "tracedb_reader"):
        for tenant in (A, None):
            with as_role(conn, role, tenant):
                rows = conn.execute(f"select * from {partition}".encode()).fetchall()
                assert rows == [], (role, tenant)


def test_a_copy_of_a_table_is_closed_to_everybody(conn: psycopg.Connection[Any]) -> None:
    conn.execute("set local role tracedb_owner")
    conn.execute("create table tracedb.copy (like tracedb.llm_spans including all)")
    conn.execute("insert into tracedb.copy select * from tracedb.llm_spans on conflict do nothing")
    conn.execute("reset role")

    for actor in actors.ACTORS:
        probe = matrix.Probe(actor, "tracedb.copy", "select", "select * from tracedb.copy")
        assert matrix.attempt(conn, probe).sqlstate == "42501", actor.name


def test_both_tenants_own_the_same_id(conn: psycopg.Connection[Any]) -> None:
    """A takes B's id first; B's row is stored all the same."""
    at = two_tenants.NOW
    name = {"trace_id": str(two_tenants.uuid7(at, 99))}
    for tenant in (A, B):
        with as_role(conn, "tracedb_app", tenant):
            answer = conn.execute(
                "select tracedb.ingest(%s::json)",
                [json.dumps(two_tenants.records(tenant, at, name, 99))],
            ).fetchone()
            assert answer is not None
            assert answer[0]["inserted"] == 6

    rows = conn.execute(
        "select tenant_id, user_id from tracedb.execution_traces where trace_id = %s order by 1",
        [name["trace_id"]],
    ).fetchall()
    assert rows == [(A, "user of A"), (B, "user of B")]


def test_a_part_of_anothers_trace_becomes_a_part_of_ones_own(
    conn: psycopg.Connection[Any],
) -> None:
    """Whether B has a trace of that id or not, A gets a trace of its own for it."""
    answers = []
    for trace_id in (two_tenants.ONLY[B], two_tenants.uuid7(two_tenants.NOW, 98)):
        with as_role(conn, "tracedb_app", A):
            child = two_tenants.records(A, two_tenants.NOW, {"trace_id": str(trace_id)}, 98)[4]
            answers.append(
                conn.execute("select tracedb.ingest(%s::json)", [json.dumps(child)]).fetchone()
            )
            assert conn.execute(
                "select tenant_id, user_id from tracedb.execution_traces where trace_id = %s",
                [trace_id],
            ).fetchall() == [(A, None)]

    assert answers[0] == answers[1]


def test_copying_a_table_in_is_refused(conn: psycopg.Connection[Any]) -> None:
    with as_role(conn, "tracedb_app", A), pytest.raises(psycopg.errors.FeatureNotSupported):
        conn.execute("copy tracedb.llm_spans from stdin")
