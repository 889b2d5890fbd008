"""Finding traces: any filter, any page size, the named queries, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracedb
from clones import clone
from records import NOON, ingest, span, trace, trace_id
from servers import Server, as_role
from tracedb import queries
from tracedb.cli import main

Conn = psycopg.Connection[Any]
TENANT = UUID("00000000-0000-4000-8000-0000000000f1")
OTHER = UUID("00000000-0000-4000-8000-0000000000f2")
AS_OF = NOON + timedelta(days=60)
HEADER_TEXTS: dict[str, list[str | None]] = {
    "user_id": ["mia", "leo", "zoe", None],
    "session_id": ["s1", "s2", None],
    "route": ["A", "B", "C", None],
    "agent_id": ["bot", "clerk", None],
    "error_type": ["Boom", "Bang", None],
}
SPAN_TEXTS = {
    "request_model": ["small", "large", None],
    "response_model": ["small-2", "large", None],
    "conversation_id": ["c1", "c2", None],
    "message_id": ["m1", "m2", None],
}


def some_records(rng: random.Random, key: str) -> list[dict[str, Any]]:
    """A trace of any time in 60 days, with spans; what it says is drawn from few values."""
    started = NOON + timedelta(minutes=rng.randrange(60 * 24 * 60))
    # a clock that is not quite that of the recorder
    id = trace_id(key, started + timedelta(hours=rng.choice([0, 0, -20, 20])))
    status = rng.choice(["running", "ok", "ok", "ok", "error", "timeout", "cancelled"])
    records = [
        trace(
            trace_id=id,
            started_at=started.isoformat(),
            status=status,
            duration_ms=None if status == "running" else rng.choice([0, 10, 400, 5000, 7000]),
            tags=rng.sample(["x", "y", "z"], rng.randrange(3)),
            research_triggered=rng.random() < 0.3,
            cost_usd=rng.choice([None, None, "0", "0.25", "1"]),
            **{field: rng.choice(values) for field, values in HEADER_TEXTS.items()},
        )
    ]
    for number in range(1, rng.randrange(1, 4)):
        records.append(
            span(
                number,
                trace_id=id,
                started_at=started.isoformat(),
                ended_at=started.isoformat(),
                operation_type=rng.choice(["llm", "tool"]),
                cost_usd=rng.choice([None, "0.1", "0.25"]),
                **{field: rng.choice(values) for field, values in SPAN_TEXTS.items()},
            )
        )
    return records


@pytest.fixture(scope="module")
def filled(server: Server, template: str) -> Iterator[str]:
    """A database with traces of two tenants; nothing in this module changes it."""
    rng = random.Random(4)
    with clone(server, template) as dsn:
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "select count(*) from tracedb.ensure_partitions(%s, %s)",
                [AS_OF, NOON - timedelta(days=1)],
            )
            for tenant in (TENANT, OTHER):
                records = [r for n in range(150) for r in some_records(rng, f"t{n}")]
                assert ingest(conn, tenant, records)["rejected"] == []
        yield dsn


@pytest.fixture
def app(filled: str) -> Iterator[Conn]:
    """A tenant's own connection, under row-level security."""
    with psycopg.connect(filled) as conn, as_role(conn, "tracedb_app", TENANT):
        yield conn


Stored = list[tuple[tracedb.TraceSummary, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def stored(filled: str) -> Stored:
    """All traces of the tenant with their spans, newest first."""
    with psycopg.connect(filled) as conn, as_role(conn, "tracedb_app", TENANT):
        return everything(conn)


def everything(conn: Conn) -> Stored:
    found = conn.execute("select * from tracedb.trace_summary order by trace_id desc")
    names = [column.name for column in found.description or []]
    summaries = [tracedb.TraceSummary(**dict(zip(names, row, strict=True))) for row in found]
    spans: dict[UUID, list[dict[str, Any]]] = {}
    for id, span_ in conn.execute("select trace_id, to_jsonb(s) from tracedb.llm_spans as s"):
        spans.setdefault(id, []).append(span_)
    return [(summary, spans.get(summary.trace_id, [])) for summary in summaries]


def is_wanted(t: tracedb.TraceSummary, spans: list[dict[str, Any]], filter: dict[str, Any]) -> bool:
    """What a filter means, said once more."""

    def span_fits(s: dict[str, Any]) -> bool:
        return all(
            field not in filter or s[field] == filter[field]
            for field in ("operation_type", "conversation_id", "message_id")
        ) and (
            "model" not in filter or filter["model"] in (s["request_model"], s["response_model"])
        )

    def within(value: Any, low: str, high: str) -> bool:
        if not filter.keys() & {low, high}:
            return True
        return value is not None and bool(
            filter.get(low, value) <= value <= filter.get(high, value)
        )

    statuses = filter.get("status", t.status)
    asks_spans = filter.keys() & {"model", "operation_type", "conversation_id", "message_id"}
    return (
        ("since" not in filter or t.started_at >= filter["since"])
        and ("until" not in filter or t.started_at < filter["until"])
        and all(field not in filter or getattr(t, field) == filter[field] for field in HEADER_TEXTS)
        and (t.status == statuses or t.status in statuses)
        and ("tag" not in filter or filter["tag"] in t.tags)
        and t.research_triggered == filter.get("research_triggered", t.research_triggered)
        and within(t.duration_ms, "min_duration_ms", "max_duration_ms")
        and within(t.cost_usd, "min_cost_usd", "max_cost_usd")
        and (not asks_spans or any(map(span_fits, spans)))
    )


def expected(stored: Stored, filter: dict[str, Any]) -> list[UUID]:
    statuses = filter.get("status", "ok")
    fails = {statuses} if isinstance(statuses, str) else set(statuses)
    of_few = "user_id" in filter or fails <= {"error", "timeout"}
    if "since" not in filter and filter.keys() - {"until"} and not of_few:
        filter = {**filter, "since": filter.get("until", AS_OF) - timedelta(days=30)}
    return [t.trace_id for t, spans in stored if is_wanted(t, spans, filter)]


def texts(values: list[str | None]) -> st.SearchStrategy[str]:
    return st.sampled_from([value for value in values if value] + ["nothing has this"])


times = st.integers(-2, 62).map(lambda days: NOON + timedelta(days=days))
durations = st.sampled_from([0, 9, 10, 400, 5000, 8000])
costs = st.sampled_from([Decimal(0), Decimal("0.1"), Decimal("0.25"), Decimal("0.35"), Decimal(2)])
statuses = st.sampled_from(["running", "ok", "error", "timeout", "cancelled"])
filters = st.fixed_dictionaries(
    {},
    optional={
        **{field: texts(values) for field, values in HEADER_TEXTS.items()},
        "since": times,
        "until": times,
        "status": statuses | st.lists(statuses, min_size=1, max_size=3),
        "tag": st.sampled_from(["x", "y", "nothing has this"]),
        "research_triggered": st.booleans(),
        "min_duration_ms": durations,
        "max_duration_ms": durations,
        "min_cost_usd": costs,
        "max_cost_usd": costs,
        "model": texts(["small", "small-2", "large"]),
        "operation_type": st.sampled_from(["llm", "tool", "rerank"]),
        "conversation_id": texts(SPAN_TEXTS["conversation_id"]),
        "message_id": texts(SPAN_TEXTS["message_id"]),
    },
)
# all fields at once find nothing: most filters have few
few = filters.flatmap(
    lambda drawn: st.sets(st.sampled_from(sorted(drawn) or [""]), max_size=3).map(
        lambda names: {name: drawn[name] for name in names if name}
    )
)


def test_any_filter_in_pages_of_any_size_finds_what_it_says(app: Conn, stored: Stored) -> None:
    found_at_all = 0

    @settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
    @given(filter=few | filters, size=st.integers(1, 40), skip=st.integers(0, 5))
    def holds(filter: dict[str, Any], size: int, skip: int) -> None:
        nonlocal found_at_all
        wanted = expected(stored, filter)
        found: list[UUID] = []
        cursor = None
        while True:
            page = tracedb.run(
                app,
                queries.find_traces(
                    limit=size,
                    cursor=cursor,
                    offset=0 if cursor else skip,
                    as_of=AS_OF,
                    **filter,
                ),
                TENANT,
            )
            found += [t.trace_id for t in page.traces]
            cursor = page.cursor
            if cursor is None:
                break
        assert found == wanted[skip:]
        found_at_all += len(found)

    holds()
    assert found_at_all > 1000, "filters that find nothing show nothing"


def test_rows_are_those_of_the_summary(app: Conn, stored: Stored) -> None:
    page = tracedb.run(app, queries.find_traces(limit=1000), TENANT)

    assert list(page.traces) == [summary for summary, _ in stored]
    assert {summary.tenant_id for summary in page.traces} == {TENANT}


def test_nothing_of_another_tenant_is_found(filled: str) -> None:
    with psycopg.connect(filled) as conn, as_role(conn, "tracedb_app", TENANT):
        assert tracedb.run(conn, queries.find_traces(limit=1)) == tracedb.TracePage((), None)
        found = conn.execute("select count(*) from tracedb.find_traces(tenant_id => %s)", [OTHER])
        assert found.fetchone() == (0,)


def test_offset_and_cursor_are_the_same_pages(app: Conn, stored: Stored) -> None:
    ids = [t.trace_id for t, _ in stored]
    after = tracedb.run(app, queries.find_traces(limit=7), TENANT).cursor

    for page in (
        queries.find_traces(limit=7, offset=7),
        queries.find_traces(limit=7, cursor=after),
    ):
        assert [t.trace_id for t in tracedb.run(app, page, TENANT).traces] == ids[7:14]


def test_the_named_queries_are_filters(app: Conn, stored: Stored) -> None:
    def ids(query: tracedb.Query[list[tracedb.TraceSummary]]) -> list[UUID]:
        return [t.trace_id for t in tracedb.run(app, query, TENANT)]

    month = {"since": AS_OF - timedelta(days=30), "until": AS_OF}
    first, last = NOON + timedelta(days=3), NOON + timedelta(days=50)
    days: dict[str, Any] = {"limit": 1000, "days": 30, "as_of": AS_OF}
    named: list[tuple[tracedb.Query[list[tracedb.TraceSummary]], dict[str, Any]]] = [
        (queries.get_user_traces("mia", limit=1000), {"user_id": "mia"}),
        (
            queries.get_user_traces("mia", 1000, 0, first, last),
            {"user_id": "mia", "since": first, "until": last},
        ),
        (queries.get_traces_by_route("C", **days), {"route": "C", **month}),
        (queries.get_traces_by_agent("bot", **days), {"agent_id": "bot", **month}),
        (queries.get_error_traces(**days), {"status": ["error", "timeout"], **month}),
        (queries.get_slow_queries(**days), {"min_duration_ms": 5000, **month}),
        (queries.get_slow_queries(400, **days), {"min_duration_ms": 400, **month}),
        (queries.get_research_triggers(**days), {"research_triggered": True, **month}),
    ]
    for query, filter in named:
        wanted = expected(stored, filter)
        assert wanted
        assert ids(query) == wanted

    mias = ids(queries.get_user_traces("mia", limit=1000))
    assert ids(queries.get_user_traces("mia", limit=3, offset=2)) == mias[2:5]
    assert len(ids(queries.get_user_traces("mia"))) == 10
    assert (
        ids(queries.get_error_traces(limit=2, days=30, as_of=AS_OF))
        == ids(queries.get_error_traces(**days))[:2]
    )


REFUSED: dict[str, tuple[Any, str]] = {
    "no object": ([], "filter: must be an object"),
    "unknown": ({"colour": "red"}, "colour: unknown field of a filter"),
    "number as text": ({"user_id": 7}, "user_id: must be text"),
    "list of users": ({"user_id": ["mia"]}, "user_id: must be text"),
    "unknown status": ({"status": "lost"}, "status: must be running, ok, error"),
    "status in a list": ({"status": ["ok", "lost"]}, "status: must be running, ok, error"),
    "status an object": ({"status": {"ok": 1}}, "status: must be running, ok, error"),
    "time without offset": ({"since": "2026-01-01T00:00:00"}, "since: must be an ISO 8601 time"),
    "time a number": ({"until": 1767225600}, "until: must be an ISO 8601 time"),
    "no such day": ({"until": "2026-02-31T00:00:00Z"}, "until: date/time field value out of range"),
    "duration below 0": ({"min_duration_ms": -1}, "min_duration_ms: must be a whole number"),
    "half a millisecond": ({"max_duration_ms": 0.5}, "max_duration_ms: must be a whole number"),
    "duration as text": ({"max_duration_ms": "5"}, "max_duration_ms: must be a whole number"),
    "cost below 0": ({"min_cost_usd": -0.5}, "min_cost_usd: must be a number, at least 0"),
    "cost not a number": ({"max_cost_usd": "NaN"}, "max_cost_usd: must be a number, at least 0"),
    "research in words": ({"research_triggered": "yes"}, "research_triggered: must be true or"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_filter_is_refused_by_its_field(app: Conn, case: str) -> None:
    filter, message = REFUSED[case]

    with pytest.raises(psycopg.Error, match=f"^{message}") as error:
        app.execute("select tracedb.find_traces(%s)", [json.dumps(filter)])

    assert error.value.sqlstate == "TD002"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (queries.find_traces(limit=0), "max_rows: must be from 1 to 1000"),
        (queries.find_traces(limit=1001), "max_rows: must be from 1 to 1000"),
        (queries.find_traces(offset=-1), "offset_rows: must be from 0 to 100000"),
        (queries.find_traces(cursor="' or true"), "cursor: must be one that find_traces has given"),
        (queries.get_error_traces(days=0), "days: must be from 1 to 36500"),
        (queries.get_analytics(days=0), "days: must be from 1 to 36500"),
        (queries.changes_since(limit=0), "max_rows: must be from 1 to 10000"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(
    app: Conn, query: tracedb.Query[Any], message: str
) -> None:
    with pytest.raises(tracedb.InvalidInput, match=f"^{message}"):
        tracedb.run(app, query, TENANT)


def test_what_a_filter_cannot_hold_is_refused_before_it_is_sent() -> None:
    with pytest.raises(tracedb.InvalidInput, match=r"^filter: cannot hold"):
        queries.find_traces(tag=object())  # type: ignore[arg-type]


def test_the_command_lists_pages(
    filled: str, stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> str:
        assert main(["traces", "--tenant", str(TENANT), "--dsn", filled, *args]) == 0
        return capsys.readouterr().out

    asked = ["--user", "mia", "--status", "ok", "error", "--limit", "4"]
    first = json.loads(run(*asked, "--json"))
    second = json.loads(run(*asked, "--json", "--cursor", first["cursor"]))

    wanted = expected(stored, {"user_id": "mia", "status": ["ok", "error"]})
    listed = [t["trace_id"] for t in first["traces"] + second["traces"]]
    assert listed == [str(id) for id in wanted[:8]]

    shown = run(*asked)
    assert all(str(id) in shown for id in wanted[:4])
    assert f"--cursor {wanted[3]}" in shown
    assert run("--user", "nobody") == "no traces\n"
    since = (NOON + timedelta(days=59)).isoformat()
    late = json.loads(run("--since", since, "--json"))["traces"]
    assert late
    assert all(datetime.fromisoformat(t["started_at"]) >= NOON + timedelta(days=59) for t in late)


@pytest.mark.parametrize("time", ["yesterday", "7w", "999999d"])
def test_the_command_refuses_what_is_no_time(time: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["traces", "--tenant", str(TENANT), "--since", time])

    assert exit.value.code == 2
    assert "--since" in capsys.readouterr().err
