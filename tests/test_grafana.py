"""The dashboards: every query runs, for the roles they are for, and finds what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

import tracedb
from clones import clone
from grafana import Range, expand
from servers import Server, as_role
from tracedb import demo
from tracedb.cli import main
from tracedb.cli_grafana import SOURCE

DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(SOURCE.glob("*.json"))}
PANELS = [
    pytest.param(name, panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
QUERIES = [
    pytest.param(name, variable["query"], id=f"{name}-{variable['name']}")
    for name, dashboard in DASHBOARDS.items()
    for variable in dashboard["templating"]["list"]
    if variable["type"] == "query"
]
OPERATORS = {"operations"}
TYPE = "grafana-postgresql-datasource"
BOUND = "tracedb_test_grafana"
NOW = datetime.now(UTC)
SHOWN = Range(NOW - timedelta(days=14), NOW + timedelta(minutes=1))

Data = dict[str, Any]


@pytest.fixture(scope="module")
def data(server: Server, template: str) -> Iterator[Data]:
    """The demo's workload with events, writers and dead letters; a login bound to one tenant."""
    with clone(server, template) as dsn:
        with tracedb.connect(dsn) as db:
            tenants, _ = demo.load_workload(db, lambda records, _: records)
            first, *_ = tenants
            with db.connection() as conn:
                fill(conn, first)
            (trace,) = db.tenant(first.tenant_id).get_error_traces(1, 30)
        bound = f"tracedb_tenant_{first.tenant_id}"
        for role in (BOUND, bound):
            server.admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(role)))
            server.admin.execute(sql.SQL("create role {}").format(sql.Identifier(role)))
        try:
            server.admin.execute(
                sql.SQL("grant tracedb_reader, {} to {}").format(
                    sql.Identifier(bound), sql.Identifier(BOUND)
                )
            )
            yield {"dsn": dsn, "tenants": tenants, "trace": str(trace.trace_id)}
        finally:
            for role in (BOUND, bound):
                server.admin.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def fill(conn: psycopg.Connection[Any], tenant: demo.TenantRow) -> None:
    """What the workload has none of."""
    at = {"occurred_at": (NOW - timedelta(hours=3)).isoformat()}
    started = {"started_at": (NOW - timedelta(minutes=5)).isoformat()}
    records: list[dict[str, Any]] = [
        {"type": "cost_event", "cost_type": "llm", "service": "openai", "cost_usd": "1.5", **at},
        {"type": "agent_execution", "agent_id": "O'Brien", "success": True, **at}
        | {"quality_score": 0.75, "citation_accuracy": 1, "hallucination_detected": False},
        {"type": "trace", "agent_id": "O'Brien", "status": "ok", "duration_ms": 5, **started},
        {"type": "span", "span_id": "1" * 16, "operation_type": "llm", "input_tokens": 9, **started}
        | {"cache_read_tokens": 3, "ended_at": started["started_at"]},
    ]
    keyed = [
        {**record, "event_key": str(number)}
        if "occurred_at" in record
        else {**record, "external_id": "x"}
        for number, record in enumerate(records)
    ]
    row = conn.execute(
        "select tracedb.ingest(%s, %s)", [json.dumps(keyed), tenant.tenant_id]
    ).fetchone()
    assert row is not None
    assert row[0]["rejected"] == []
    writer = uuid4()
    conn.execute("select tracedb.touch_writer(%s, 'shop', 3, true, %s)", [writer, tenant.tenant_id])
    conn.execute(
        "select tracedb.bury(%s, 1, '{}', 'type: required', null, %s)", [writer, tenant.tenant_id]
    )
    conn.execute("analyze")


@pytest.fixture
def database(data: Data) -> str:
    """That of the module: nothing is changed."""
    dsn: str = data["dsn"]
    return dsn


def options(conn: psycopg.Connection[Any], dashboard: str, data: Data) -> dict[str, list[str]]:
    """The variables with all that can be chosen, found in their order as Grafana does."""
    found: dict[str, list[str]] = {"trace": [data["trace"]]}
    for variable in DASHBOARDS[dashboard]["templating"]["list"]:
        if variable["type"] == "query":
            rows = conn.execute(expand(variable["query"], SHOWN, found).encode()).fetchall()
            found[variable["name"]] = [value for _, value in rows]
    return found


def answer(
    conn: psycopg.Connection[Any], text: str, variables: dict[str, list[str]]
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and rows."""
    cursor = conn.execute(expand(text, SHOWN, variables).encode())
    assert cursor.description is not None
    return [column.name for column in cursor.description], cursor.fetchall()


def roles(dashboard: str) -> tuple[str, ...]:
    operators = ("tracedb_maintainer", "tracedb_service")
    return operators if dashboard in OPERATORS else (*operators, BOUND)


# every query


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_shows_what_is_there(
    conn: psycopg.Connection[Any], data: Data, dashboard: str, panel: dict[str, Any]
) -> None:
    for role in roles(dashboard):
        with as_role(conn, role):
            variables = options(conn, dashboard, data)
            for target in panel["targets"]:
                columns, rows = answer(conn, target["rawSql"], variables)
                assert rows, role
                assert len(columns) == len(set(columns))
                assert_fits(panel, target, columns, rows)


def assert_fits(
    panel: dict[str, Any], target: dict[str, Any], columns: list[str], rows: list[tuple[Any, ...]]
) -> None:
    """The answer is of the form that the kind of panel needs."""
    numbers = (int, float, Decimal)
    if panel["type"] == "timeseries":
        assert target["format"] == "time_series"
        assert columns[0] == "time"
        times = [row[0] for row in rows]
        assert all(isinstance(time, (*numbers, datetime)) for time in times)
        assert times == sorted(times)
        values = columns[1:]
        if "metric" in values:
            assert columns[1] == "metric"
            assert all(isinstance(row[1], str) and row[1] for row in rows)
            assert len({row[:2] for row in rows}) == len(rows)
            values = columns[2:]
        assert values
        for value in values:
            figures = [row[columns.index(value)] for row in rows]
            assert all(figure is None or isinstance(figure, numbers) for figure in figures)
            assert any(figure is not None for figure in figures), value
    elif panel["type"] == "stat":
        ((value,),) = rows
        assert isinstance(value, numbers)
    elif panel["type"] == "traces":
        wanted = ("traceID", "spanID", "parentSpanID", "operationName", "serviceName")
        assert tuple(columns[:5]) == wanted
        ids = {row[1] for row in rows}
        assert len(ids) == len(rows)
        assert {row[2] for row in rows} - ids == {None}
    else:
        assert target["format"] == "table"
        assert len(columns) > 1


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_units_are_of_columns_that_there_are(
    conn: psycopg.Connection[Any], data: Data, dashboard: str, panel: dict[str, Any]
) -> None:
    variables = options(conn, dashboard, data)
    columns, _ = answer(conn, panel["targets"][0]["rawSql"], variables)

    named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    assert named - set(columns) == set()


@pytest.mark.parametrize(("dashboard", "query"), QUERIES)
def test_a_variable_offers_what_is_there(
    conn: psycopg.Connection[Any], data: Data, dashboard: str, query: str
) -> None:
    for role in roles(dashboard):
        with as_role(conn, role):
            variables = options(conn, dashboard, data)
            columns, rows = answer(conn, query, variables)
            assert columns == ["__text", "__value"]
            assert rows
            assert len({value for _, value in rows}) == len(rows)


def test_a_bound_login_sees_one_tenant_and_operators_all(
    conn: psycopg.Connection[Any], data: Data
) -> None:
    with as_role(conn, BOUND):
        assert options(conn, "cost", data)["tenant"] == [str(data["tenants"][0].tenant_id)]
    with as_role(conn, "tracedb_maintainer"):
        everybody = options(conn, "cost", data)
        assert set(everybody["tenant"]) == {str(tenant.tenant_id) for tenant in data["tenants"]}
        assert "O'Brien" in everybody["agent"]


def test_a_tenant_that_is_not_chosen_is_not_counted(
    conn: psycopg.Connection[Any], data: Data
) -> None:
    requests = DASHBOARDS["overview"]["panels"][0]["targets"][0]["rawSql"]
    everybody = options(conn, "overview", data)
    counted = []
    for tenant in everybody["tenant"]:
        _, ((count,),) = answer(conn, requests, {**everybody, "tenant": [tenant]})
        counted.append(count)
    _, ((in_all,),) = answer(conn, requests, everybody)

    assert min(counted) > 0
    assert sum(counted) == in_all


@pytest.mark.parametrize(
    "trace", ["", "  ", "x' or true --", "01980000-0000-7000-8000-00000000000"]
)
def test_what_is_no_trace_id_shows_no_trace(
    conn: psycopg.Connection[Any], data: Data, trace: str
) -> None:
    (panel,) = (p for p in DASHBOARDS["overview"]["panels"] if p["type"] == "traces")
    variables = {**options(conn, "overview", data), "trace": [trace]}

    assert answer(conn, panel["targets"][0]["rawSql"], variables)[1] == []


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_panel_of_nothing_is_empty_and_no_error(
    conn: psycopg.Connection[Any], data: Data, dashboard: str, panel: dict[str, Any]
) -> None:
    nobody = {"tenant": [str(uuid4())], "agent": [""], "model": [""], "trace": [""]}

    _, rows = answer(conn, panel["targets"][0]["rawSql"], nobody)

    if dashboard not in OPERATORS:
        assert [row for row in rows if any(row)] == []


# how they are written


def sources(document: Any) -> Iterator[dict[str, Any]]:
    """Every datasource that is named anywhere."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == "datasource":
                yield value
            yield from sources(value)
    elif isinstance(document, list):
        for value in document:
            yield from sources(value)


def test_there_are_the_five_dashboards() -> None:
    assert set(DASHBOARDS) == {"overview", "cost", "performance", "agents", "operations"}
    assert {d["uid"] for d in DASHBOARDS.values()} == {f"tracedb-{name}" for name in DASHBOARDS}
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == 5


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_can_be_imported_anywhere(name: str) -> None:
    dashboard = DASHBOARDS[name]
    panels = dashboard["panels"]
    first, *others = dashboard["templating"]["list"]

    assert dashboard["id"] is None
    assert dashboard["schemaVersion"] >= 38
    assert (first["type"], first["query"]) == ("datasource", TYPE)
    found = list(sources(dashboard))
    # of each panel and its query, and of each variable that is a query
    assert len(found) == 2 * len(panels) + len([v for v in others if v["type"] == "query"])
    assert all(source == {"type": TYPE, "uid": "${datasource}"} for source in found)
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert len({panel["title"] for panel in panels if panel["type"] == "table"}) == len(
        [panel for panel in panels if panel["type"] == "table"]
    )
    for panel in panels:
        (target,) = panel["targets"]
        assert (target["rawQuery"], target["editorMode"]) == (True, "code")
        assert (
            panel["type"] == "traces"
            or panel["fieldConfig"]["defaults"].get("unit")
            or (panel["type"] == "table")
        )


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= 24 - place["w"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert cells & taken == set(), panel["title"]
        taken |= cells


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_a_query_quotes_what_is_chosen_and_names_the_time(
    dashboard: str, panel: dict[str, Any]
) -> None:
    for target in panel["targets"]:
        text = target["rawSql"]
        chosen = re.findall(r"\$\{?(?!__)(\w+)(:\w+)?", text)
        assert {how for _, how in chosen} <= {":sqlstring"}
        relations = set(re.findall(r"(?<!epoch )(?:from|join) (?:lateral )?(\w+)\.", text))
        assert relations == {"tracedb"}
        if re.search(r"from tracedb\.(?!trace_tree)\w+ as t\n", text) and "$__time" in text:
            # the tenant, and ids: else no partition is left out
            assert dashboard in OPERATORS or "t.tenant_id = any(array[${tenant:sqlstring}]" in text
            assert re.search(r"t\.\w+ >= tracedb\.uuid_floor\(\$__timeFrom\(\)", text)
            assert re.search(r"t\.\w+ < tracedb\.uuid_floor\(\$__timeTo\(\)", text)
            assert re.search(r"\$__timeFilter\(t\.\w+\)", text)
        elif "tracedb.usage_series(" in text:
            assert "unnest(array[${tenant:sqlstring}]::uuid[])" in text
            assert "$__timeFrom()::timestamptz, $__timeTo()::timestamptz" in text
        elif dashboard not in OPERATORS:
            assert panel["type"] == "traces"


@pytest.mark.parametrize(
    "text",
    ["select $__timeFilter(f(x))", "select $__nothing(x)", "select $tenant", "${tenant:raw}"],
)
def test_the_expander_knows_no_more_than_grafana(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        expand(text.replace("f(x))", "f(x)) $"), SHOWN, {"tenant": ["x"]})


def test_the_expander_writes_what_grafana_writes() -> None:
    shown = Range(datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC), "5m")
    text = (
        "$__timeGroupAlias(t.a, $__interval) $__timeGroup(b,'1h') $__timeFilter(c) $__timeTo()"
        " $__unixEpochFilter(d) ${x:sqlstring} ${x:csv}"
    )

    assert expand(text, shown, {"x": ["a", "O'B"]}) == (
        'floor(extract(epoch from t.a)/300)*300 AS "time"'
        " floor(extract(epoch from b)/3600)*3600"
        " c BETWEEN '2026-01-02T00:00:00.000000Z' AND '2026-01-03T00:00:00.000000Z'"
        " '2026-01-03T00:00:00.000000Z'"
        " d >= 1767312000 AND d <= 1767398400 'a','O''B' a,O'B"
    )


# tracedb grafana


def test_dashboards_are_exported_with_what_provisions_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'of "us"'

    for _ in range(2):
        assert main(["--json", "grafana", "export", str(folder)]) == 0
        written = json.loads(capsys.readouterr().out)["written"]

    assert sorted(written) == sorted(str(path) for path in folder.rglob("*") if path.is_file())
    exported = {path.stem: json.loads(path.read_text()) for path in folder.glob("dashboards/*")}
    assert exported == DASHBOARDS
    provider = (folder / "provisioning" / "dashboards" / "tracedb.yaml").read_text()
    (place,) = re.findall(r"^      path: (.*)$", provider, re.MULTILINE)
    assert json.loads(place) == str(folder / "dashboards")
    source = (folder / "provisioning" / "datasources" / "tracedb.yaml").read_text()
    assert f"type: {TYPE}" in source
    assert "password: $TRACEDB_GRAFANA_PASSWORD" in source


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    assert main(["grafana", "export", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err
