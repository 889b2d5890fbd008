"""The client in both colours: calls, tenants, transactions, errors."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg_pool import ConnectionPool

import tracedb
from records import at, one_of_each, span, trace, trace_id
from servers import Server
from tracedb import learning, money, patterns, queries, resources
from tracedb.client import Call, DatabaseCalls, TenantCalls

Act = Callable[[Callable[[Any], Any]], Any]


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture(params=["sync", "async"])
def act(request: pytest.FixtureRequest, database: str) -> Act:
    """Does something with a database in one colour or the other, and gives the answer."""
    if request.param == "sync":

        def act_sync(what: Callable[[Any], Any]) -> Any:
            with tracedb.connect(database) as db:
                return what(db)

        return act_sync

    def act_async(what: Callable[[Any], Any]) -> Any:
        async def doing() -> Any:
            async with await tracedb.connect_async(database) as db:
                return await what(db)

        return asyncio.run(doing())

    return act_async


def test_records_are_stored_and_read_back(act: Act, tenant: UUID) -> None:
    receipt = act(lambda db: db.tenant(tenant).ingest(one_of_each()))
    found = act(lambda db: db.tenant(tenant).find_trace(trace_id()))
    nodes = act(lambda db: db.tenant(tenant).trace_tree(found))
    document = act(lambda db: db.tenant(tenant).get_trace(found))
    summary = act(lambda db: db.tenant(tenant).trace_summary(found))

    assert receipt == tracedb.Receipt(received=6, inserted=6)
    assert found == UUID(trace_id())
    assert [node.node_type for node in nodes] == [
        "trace",
        "llm",
        "hook",
        "endpoint_call",
        "routing_decision",
    ]
    assert document["trace"]["cost_usd"] == Decimal("0.25")
    assert (summary.cost_usd, summary.span_count) == (Decimal("0.25"), 4)


def test_every_view_answers_typed_rows(act: Act, tenant: UUID) -> None:
    act(lambda db: db.tenant(tenant).ingest([*one_of_each(), span(9, status="error")]))

    def ask(name: str) -> Any:
        return act(lambda db: getattr(db.tenant(tenant), name)())

    names = (
        "agent_performance",
        "hook_performance_summary",
        "endpoint_reliability",
        "error_analysis",
    )
    answers = {name: ask(name) for name in names}

    assert {name: type(rows[0]) for name, rows in answers.items()} == {
        "agent_performance": tracedb.AgentPerformance,
        "hook_performance_summary": tracedb.HookPerformance,
        "endpoint_reliability": tracedb.EndpointReliability,
        "error_analysis": tracedb.ErrorGroup,
    }
    assert act(lambda db: db.tenant(uuid4()).dashboard_summary()) is None


def test_refused_records_are_named_by_their_place_in_the_call(act: Act, tenant: UUID) -> None:
    bad_here = span(1, cost_usd=float("nan"))
    bad_there = span(2, cost_usd=-1)

    receipt = act(
        lambda db: db.tenant(tenant).ingest(
            [bad_here] + [span(n) for n in range(10, 1010)] + [bad_there]
        )
    )

    assert (receipt.received, receipt.inserted) == (1002, 1000)
    assert [item.index for item in receipt.rejected] == [0, 1001]


def test_a_tenant_sees_only_its_own(act: Act, tenant: UUID) -> None:
    act(lambda db: db.tenant(tenant).ingest([trace(external_id="r1")]))

    assert act(lambda db: db.tenant(uuid4()).find_trace("r1")) is None
    assert act(lambda db: db.tenant(uuid4()).trace_tree(UUID(trace_id()))) == []


def test_tenants_are_registered_once(act: Act) -> None:
    first = act(lambda db: db.ensure_tenant("org_2abc", "Acme"))

    assert isinstance(first, UUID)
    assert act(lambda db: db.ensure_tenant("org_2abc")) == first


def test_partitions_are_made_and_drained(act: Act, tenant: UUID) -> None:
    old = "2019-05-06T00:00:00Z"
    act(
        lambda db: db.tenant(tenant).ingest([trace(trace_id=None, external_id="o", started_at=old)])
    )

    assert act(lambda db: db.ensure_partitions()) == []
    assert "execution_traces_p20190506" in act(lambda db: db.drain_default_partitions())
    assert act(lambda db: db.drain_default_partitions()) == []


def test_an_error_of_the_database_is_one_of_ours_and_the_connection_stays_good(
    act: Act, tenant: UUID
) -> None:
    def fail(db: Any) -> Any:
        return db.tenant(tenant).trace_tree("not a uuid")

    with pytest.raises(tracedb.InvalidInput, match="invalid input syntax for type uuid"):
        act(fail)

    assert act(lambda db: db.tenant(tenant).find_trace("x")) is None


def test_a_violated_rule_is_said_as_the_schema_says_it(database: str, tenant: UUID) -> None:
    with tracedb.connect(database) as db:
        with pytest.raises(tracedb.errors.InvalidInput, match=r"^success_score: must be from 0 to"):
            db.tenant(tenant).save_pattern({"prompt": "cancel it", "success_score": 7})
        with pytest.raises(tracedb.errors.InvalidInput, match=r"^name: required$"):
            db.tenant(tenant).set_budget("", "day", hard_limit_usd=Decimal(1))


def test_a_pool_of_one_survives_errors(database: str, tenant: UUID) -> None:
    with tracedb.connect(database, max_size=1) as db:
        one = db.tenant(tenant)
        for _ in range(3):
            with pytest.raises(tracedb.InvalidInput):
                one.trace_tree("not a uuid")  # type: ignore[arg-type]
            assert one.find_trace("x") is None


def test_a_pool_of_one_survives_errors_async(database: str, tenant: UUID) -> None:
    async def doing() -> None:
        async with await tracedb.connect_async(database, max_size=1) as db:
            one = db.tenant(tenant)
            for _ in range(3):
                with pytest.raises(tracedb.InvalidInput):
                    await one.trace_tree("not a uuid")  # type: ignore[arg-type]
                assert await one.find_trace("x") is None

    asyncio.run(doing())


def test_a_transaction_is_all_or_nothing(database: str, tenant: UUID) -> None:
    def store_and_fail(acme: tracedb.Tenant) -> None:
        with acme.transaction() as inside:
            inside.ingest([trace(external_id="r1")])
            assert inside.find_trace("r1") is not None
            raise ZeroDivisionError

    with tracedb.connect(database) as db:
        acme = db.tenant(tenant)
        with pytest.raises(ZeroDivisionError):
            store_and_fail(acme)
        assert acme.find_trace("r1") is None
        with acme.transaction() as inside:
            inside.ingest([trace(external_id="r1")])
            with pytest.raises(tracedb.InvalidInput):
                inside.trace_tree("not a uuid")  # type: ignore[arg-type]
            inside.ingest([trace(external_id="r1", ended_at=at(5))])
        assert acme.find_trace("r1") is not None


def test_a_transaction_is_all_or_nothing_async(database: str, tenant: UUID) -> None:
    async def store_and_fail(acme: tracedb.AsyncTenant) -> None:
        async with acme.transaction() as inside:
            await inside.ingest([trace(external_id="r1")])
            raise ZeroDivisionError

    async def doing() -> None:
        async with await tracedb.connect_async(database) as db:
            acme = db.tenant(tenant)
            with pytest.raises(ZeroDivisionError):
                await store_and_fail(acme)
            assert await acme.find_trace("r1") is None

    asyncio.run(doing())


def test_a_transaction_that_lost_to_another_is_tried_again(database: str, tenant: UUID) -> None:
    """Batches with a bad record are halved, and may then wait for each other in a circle."""
    batch = [trace(trace_id=None, external_id=f"r{n}") for n in range(40)] + [span(cost_usd=-1)]
    barrier = threading.Barrier(2)

    def write(records: list[dict[str, Any]]) -> list[tracedb.Receipt]:
        with tracedb.connect(database, max_size=1) as db:
            acme = db.tenant(tenant)
            receipts = []
            for turn in range(8):
                ours = [{**r, "tags": [f"{turn}{records[0]['type']}"]} for r in records[1:-1]]
                barrier.wait()
                receipts.append(acme.ingest([records[0], *ours, records[-1]]))
            return receipts

    with ThreadPoolExecutor(2) as executor:
        results = list(executor.map(write, [batch, batch[::-1]]))

    assert [len(receipt.rejected) for receipts in results for receipt in receipts] == [1] * 16


def test_no_tenant_is_an_error_before_any_statement(database: str) -> None:
    with tracedb.connect(database) as db:
        with pytest.raises(tracedb.TenantMissing):
            db.tenant(None)  # type: ignore[arg-type]
        with pytest.raises(tracedb.InvalidInput, match="tenant_id: must be a UUID"):
            db.tenant("acme")  # type: ignore[arg-type]


def test_a_role_without_the_right_is_told_so(server: Server, database: str, tenant: UUID) -> None:
    with tracedb.connect(f"{database} options='-c role=tracedb_reader'") as db:
        with pytest.raises(tracedb.PermissionDenied):
            db.tenant(tenant).ingest(one_of_each())
        assert db.tenant(tenant).agent_performance() == []


def test_a_database_without_the_schema_says_what_to_do(empty_database: str, tenant: UUID) -> None:
    with (
        tracedb.connect(empty_database) as db,
        pytest.raises(tracedb.NotMigrated, match="run `tracedb migrate`"),
    ):
        db.tenant(tenant).agent_performance()


def test_no_server_is_an_error_at_once(tmp_path: Any) -> None:
    nowhere = f"host={tmp_path} dbname=x password=secret-marker"

    with pytest.raises(tracedb.ConnectionFailed) as error:
        tracedb.connect(nowhere)
    with pytest.raises(tracedb.ConnectionFailed):
        asyncio.run(tracedb.connect_async(nowhere))

    assert "secret-marker" not in str(error.value)


def test_a_pool_of_ones_own_serves_as_well(database: str, tenant: UUID) -> None:
    with ConnectionPool(database, min_size=1, max_size=2, open=True) as pool:
        acme = tracedb.TraceDB(pool).tenant(tenant)

        assert acme.ingest(one_of_each()).inserted == 6
        assert acme.find_trace(trace_id()) is not None


def test_statements_are_not_prepared_where_that_is_switched_off(
    database: str, tenant: UUID
) -> None:
    with tracedb.connect(database, prepared_statements=False, max_size=1) as db:
        for _ in range(10):
            db.tenant(tenant).find_trace("x")
        with db.connection() as conn:
            row = conn.execute("select count(*) from pg_prepared_statements").fetchone()

    assert row == (0,)


def test_a_query_runs_on_any_connection(database: str, tenant: UUID) -> None:
    with psycopg.connect(database) as conn:
        tracedb.run(conn, queries.ensure_tenant("org_1"))
        assert tracedb.run(conn, queries.find_trace("x"), tenant) is None


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in (queries, money, patterns, learning):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                yield name, function


def test_every_statement_has_one_function_and_every_function_a_method() -> None:
    names = {name for name, _ in functions()}
    methods = {
        name
        for calls in (TenantCalls, DatabaseCalls)
        for name, value in vars(calls).items()
        if isinstance(value, Call)
    }

    files = ("queries.sql", "money.sql", "patterns.sql", "learning.sql")
    statements = {name for file in files for name in resources.statements(file)}
    assert statements == names | {"set_tenant"}
    assert names <= methods | {"ingest"}
    assert all(function.__doc__ for _, function in functions())
