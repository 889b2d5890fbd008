"""Graceful mode: without a database nothing is raised, and all that was not done is counted."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4

import psycopg
import pytest

import tracedb
from records import NOON, one_of_each, span, trace, trace_id
from servers import Server
from tracedb.client import Call, DatabaseCalls, TenantCalls
from tracedb.query import Query
from tracedb.records import batches

# an answer, and what an empty database says
EMPTY: dict[str, Any] = {
    "find_trace": None,
    "get_trace": None,
    "trace_summary": None,
    "dashboard_summary": None,
    "ensure_tenant": None,
    "requeue_dead_letters": tracedb.Requeued(0, {}),
    "purge_dead_letters": 0,
    "find_traces": tracedb.TracePage((), None),
    "get_analytics": tracedb.Analytics(NOON - timedelta(days=7), NOON),
    "get_user_analytics": None,
    "changes_cursor": None,
    "get_agent_success_rate": None,
    "get_tenant_health": None,
    "get_churn_risk": None,
    "unfolded_changes": 0,
    "set_prices": 0,
    "reprice": tracedb.Repricing(dry_run=True),
    "reconcile_invoice": None,
    **dict.fromkeys(("get_tenant_daily_cost", "set_budget", "forecast_costs"), None),
    **dict.fromkeys(("remove_budget", "settle_budget", "release_budget"), False),
    "reserve_budget": True,
    "set_error_fix": False,
    **dict.fromkeys(("score_trace", "extract_patterns", "learn_chains", "learn_errors"), None),
    **dict.fromkeys(("log_pattern_use", "log_pattern_outcome", "evaluate_routing"), None),
    **dict.fromkeys(("save_pattern", "get_pattern", "replay_plan"), None),
    "retire_pattern": False,
    **{name: {} for name in ("pattern_settings", "set_pattern_settings")},
    **dict.fromkeys(("put_embeddings", "drop_embedding_model"), 0),
    **dict.fromkeys(("unlearned_changes", "uncounted_uses"), 0),
    **dict.fromkeys(("remove_retention", "set_legal_hold"), False),
}
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("external_id", "user_id", "route", "agent_id"), "x"),
    "trace_id": UUID(trace_id()),
    "as_of": NOON,
    "since": NOON,
    "fingerprint": UUID(int=1),
    "known_fix": "x",
    "success": True,
    "policy": "greedy",
    "provider": "openai",
    "by": "day",
    "name": "x",
    "period": "month",
    "reservation_id": UUID(int=1),
    **dict.fromkeys(("table_name", "reason"), "x"),
    **dict.fromkeys(("amount_usd", "cost_usd"), Decimal(1)),
    **dict.fromkeys(("first_day", "last_day"), NOON.date()),
    **dict.fromkeys(("prices", "lines"), ()),
    "pattern": {"prompt": "x"},
    "pattern_id": UUID(int=1),
    **dict.fromkeys(("reason", "model"), "x"),
    "settings": {"min_score": 0.5},
    **dict.fromkeys(("pattern_ids", "embeddings", "prompt_hashes"), ()),
}


def arguments(query: Callable[..., Any]) -> dict[str, Any]:
    """What a call must be given, and the time it is to answer for."""
    return {
        name: ARGUMENTS[name]
        for name, parameter in inspect.signature(query).parameters.items()
        if name == "as_of"
        or (parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD)
    }


def calls(owner: type) -> dict[str, dict[str, Any]]:
    return {
        name: arguments(value.query)
        for name, value in vars(owner).items()
        if isinstance(value, Call)
    }


Act = Callable[[str, Callable[[Any], Coroutine[Any, Any, Any]]], Any]


class Sync:
    """A client of the sync colour whose calls can be awaited."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if name == "tenant":
            return lambda tenant_id: Sync(value(tenant_id))
        if name == "transaction":
            return lambda: Block(value())
        if not callable(value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            return value(*args, **kwargs)

        return call


class Block:
    """A block of the sync colour."""

    def __init__(self, block: Any) -> None:
        self._block = block

    async def __aenter__(self) -> Sync:
        return Sync(self._block.__enter__())

    async def __aexit__(self, *error: Any) -> Any:
        return self._block.__exit__(*error)


@pytest.fixture(params=["sync", "async"])
def act(request: pytest.FixtureRequest) -> Act:
    """Does something with a graceful client of one colour or the other."""

    def act(dsn: str, what: Callable[[Any], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        async def doing() -> Any:
            if request.param == "sync":
                with tracedb.connect(dsn, graceful=True, **settings) as db:
                    return await what(Sync(db))
            async with await tracedb.connect_async(dsn, graceful=True, **settings) as async_db:
                return await what(async_db)

        return asyncio.run(doing())

    return act


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the package warned of."""
    caplog.set_level(logging.INFO, "tracedb")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "tracedb"]


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """Where no database is."""
    return f"host={tmp_path} dbname=x password=secret-marker"


AWAY = (
    "going on without the database, and counting what is not done:"
    " ConnectionFailed: No connection to the database."
)


def test_every_call_answers_as_an_empty_database_would(
    act: Act, nowhere: str, warnings: Callable[[], list[str]]
) -> None:
    async def what(db: Any) -> tuple[dict[str, Any], dict[str, int]]:
        acme = db.tenant(uuid4())
        found = {name: await getattr(db, name)(**a) for name, a in calls(DatabaseCalls).items()}
        found |= {name: await getattr(acme, name)(**a) for name, a in calls(TenantCalls).items()}
        return found, db.not_done

    found, not_done = act(nowhere, what)

    assert len(found) > 10
    assert found == {name: EMPTY.get(name, []) for name in found}
    asked = Counter([*calls(DatabaseCalls), *calls(TenantCalls)])
    assert not_done == {"connect": 1, **asked}
    assert warnings() == [AWAY]


def test_every_query_says_what_an_empty_database_would() -> None:
    for owner in (DatabaseCalls, TenantCalls):
        for name, given in calls(owner).items():
            query: Query[Any] = vars(owner)[name].query(**given)
            assert query.empty() == EMPTY.get(name, [])


def test_records_that_are_not_stored_are_rejected(act: Act, nowhere: str) -> None:
    records = [span(n) for n in range(1001)]
    records[3] = span(3, cost_usd=float("nan"))

    async def what(db: Any) -> Any:
        return await db.tenant(uuid4()).ingest(records), db.not_done

    receipt, not_done = act(nowhere, what)

    assert (receipt.received, receipt.inserted) == (1001, 0)
    assert [item.index for item in receipt.rejected] == list(range(1001))
    assert {item.reason for item in receipt.rejected} == {
        "record: not stored, without a database",
        "cost_usd: must be a finite number, not nan",
    }
    assert not_done["ingest"] == len(list(batches(records))) == 2


def test_a_tenant_that_could_not_be_registered_has_nothing(act: Act, nowhere: str) -> None:
    async def what(db: Any) -> Any:
        acme = db.tenant(await db.ensure_tenant("org_1"))
        return await acme.agent_performance(), await acme.find_trace("x"), db.not_done

    assert act(nowhere, what) == (
        [],
        None,
        {"connect": 1, "ensure_tenant": 1, "agent_performance": 1, "find_trace": 1},
    )


def test_nobody_gets_the_rows_of_a_tenant_that_could_not_be_registered(
    act: Act, database: str
) -> None:
    async def what(db: Any) -> Any:
        return await db.tenant(None).ingest(one_of_each())

    assert act(database, what).inserted == 0
    with psycopg.connect(database) as conn:
        assert conn.execute("select count(*) from tracedb.execution_traces").fetchone() == (0,)


def test_with_a_database_it_is_a_client_like_any_other(
    act: Act, database: str, warnings: Callable[[], list[str]]
) -> None:
    async def what(db: Any) -> Any:
        acme = db.tenant(await db.ensure_tenant("org_1"))
        receipt = await acme.ingest(one_of_each())
        async with acme.transaction() as inside:
            await inside.ingest([trace(external_id="r1", trace_id=None)])
        return receipt.inserted, await acme.find_trace("r1") is not None, db.not_done

    assert act(database, what) == (6, True, {})
    assert warnings() == []


def test_a_database_without_the_schema(
    act: Act, empty_database: str, warnings: Callable[[], list[str]]
) -> None:
    async def what(db: Any) -> Any:
        acme = db.tenant(uuid4())
        return await acme.agent_performance(), await acme.trace_tree(uuid4()), db.not_done

    assert act(empty_database, what) == ([], [], {"agent_performance": 1, "trace_tree": 1})
    assert len(warnings()) == 1
    assert "run `tracedb migrate`" in warnings()[0]


def test_a_role_without_the_right(
    act: Act, database: str, warnings: Callable[[], list[str]]
) -> None:
    async def what(db: Any) -> Any:
        acme = db.tenant(uuid4())
        for _ in range(3):
            assert (await acme.ingest(one_of_each())).inserted == 0
            assert await acme.agent_performance() == []
        return db.not_done

    assert act(f"{database} options='-c role=tracedb_reader'", what) == {"ingest": 3}
    assert warnings() == [
        "going on without ingest, and counting what is not done:"
        " PermissionDenied: This role may not do that."
    ]


def test_arguments_that_the_database_refuses(
    act: Act, database: str, warnings: Callable[[], list[str]]
) -> None:
    async def what(db: Any) -> Any:
        return await db.tenant(uuid4()).trace_tree("marker of a person"), db.not_done

    assert act(database, what) == ([], {"trace_tree": 1})
    assert "marker" not in str(warnings())


@pytest.mark.parametrize("tenant_id", ["acme", "", 5])
def test_what_is_wrong_in_the_program_is_raised(act: Act, nowhere: str, tenant_id: Any) -> None:
    async def what(db: Any) -> NoReturn:
        db.tenant(tenant_id)
        raise AssertionError

    with pytest.raises(tracedb.InvalidInput, match="tenant_id: must be a UUID"):
        act(nowhere, what)
    with pytest.raises(tracedb.InvalidInput, match="dsn: not a PostgreSQL connection string"):
        act("no connection string", what)


def test_a_pool_without_a_free_connection(database: str) -> None:
    with tracedb.connect(database, graceful=True, max_size=1, timeout=0.05) as db:
        acme = db.tenant(uuid4())
        with db.connection():
            assert acme.agent_performance() == []
        assert db.not_done == {"agent_performance": 1}
        assert db.ensure_tenant("org_1") is not None
        assert db.not_done == {"agent_performance": 1}


def test_a_pool_that_is_closed(act: Act, database: str) -> None:
    async def what(db: Any) -> Any:
        await db.close()
        return await db.tenant(uuid4()).agent_performance(), db.not_done

    assert act(database, what) == ([], {"agent_performance": 1})


def test_a_connection_that_breaks_is_replaced(
    act: Act, server: Server, database: str, warnings: Callable[[], list[str]]
) -> None:
    tenant = uuid4()

    async def what(db: Any) -> Any:
        acme = db.tenant(tenant)
        await acme.ingest(one_of_each())
        kill(server, database)
        assert await acme.find_trace(trace_id()) is None
        missed = db.not_done
        for _ in range(1000):
            if found := await acme.find_trace(trace_id()):
                break
        return missed, found

    missed, found = act(database, what)

    assert missed == {"find_trace": 1}
    assert found == UUID(trace_id())
    assert warnings() == [AWAY, "find_trace: done again"]


def kill(server: Server, database: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(database)["dbname"]
    server.admin.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s", [name]
    )


def test_a_transaction_that_cannot_begin_lets_the_block_run(act: Act, nowhere: str) -> None:
    async def what(db: Any) -> Any:
        ran = False
        async with db.tenant(uuid4()).transaction() as inside:
            assert (await inside.ingest([trace()])).inserted == 0
            ran = True
        return ran, db.not_done

    assert act(nowhere, what) == (True, {"connect": 1, "transaction": 1, "ingest": 1})


def test_a_transaction_that_cannot_commit_is_counted(
    act: Act, server: Server, database: str
) -> None:
    tenant = uuid4()

    async def what(db: Any) -> Any:
        async with db.tenant(tenant).transaction() as inside:
            assert (await inside.ingest([trace()])).inserted == 1
            kill(server, database)
            assert await inside.agent_performance() == []
        return db.not_done

    assert act(database, what) == {"agent_performance": 1, "transaction": 1}


def test_a_call_that_fails_in_a_transaction_costs_the_others_nothing(
    act: Act, database: str
) -> None:
    async def what(db: Any) -> Any:
        acme = db.tenant(uuid4())
        async with acme.transaction() as inside:
            await inside.ingest([trace(external_id="r1")])
            assert await inside.trace_tree("no uuid") == []
        return await acme.find_trace("r1"), db.not_done

    assert act(database, what) == (UUID(trace_id()), {"trace_tree": 1})


@pytest.mark.parametrize("there", [True, False])
def test_what_the_block_raises_undoes_the_transaction_and_goes_on(
    act: Act, database: str, nowhere: str, there: bool
) -> None:
    tenant = uuid4()

    async def what(db: Any) -> NoReturn:
        async with db.tenant(tenant).transaction() as inside:
            await inside.ingest([trace(external_id="r1")])
            raise tracedb.InvalidInput("of the block")

    with pytest.raises(tracedb.InvalidInput, match="of the block"):
        act(database if there else nowhere, what)
    with tracedb.connect(database) as db:
        assert db.tenant(tenant).find_trace("r1") is None


def test_counts_are_exact_between_threads(nowhere: str) -> None:
    with tracedb.connect(nowhere, graceful=True) as db:
        acme = db.tenant(uuid4())
        threads = [
            threading.Thread(target=lambda: [acme.find_trace("x") for _ in range(5)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert db.not_done == {"connect": 1, "find_trace": 40}
