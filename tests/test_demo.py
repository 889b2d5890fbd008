"""The commands a newcomer meets first: demo, import and trace."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import tracedb
from benchmark_files import REAL, tau2_document, tau_document, write
from records import span, trace, trace_id
from tracedb import demo
from tracedb.cli import main
from tracedb.demo_tenants import TENANTS

Capture = pytest.CaptureFixture[str]
A, B = UUID(int=0xA << 64), UUID(int=0xB << 64)


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACEDB_DSN", "DATABASE_URL", "TRACEDB_TENANT", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


def command(capsys: Capture, *args: str | Path, code: int = 0) -> str:
    """What a command prints on stdout (on stderr, if it is to fail)."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == code
    out, err = capsys.readouterr()
    return err if code else out


def answer(capsys: Capture, *args: str | Path) -> Any:
    return json.loads(command(capsys, *args, "--json"), parse_float=Decimal)


def rows(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


def acting_as(dsn: str, role: str) -> str:
    return make_conninfo(dsn, options=f"-c role={role}")


def test_the_demo_shows_the_same_figures_when_run_again(database: str, capsys: Capture) -> None:
    first = answer(capsys, "demo", "--dsn", database)
    again = answer(capsys, "demo", "--dsn", database)

    loaded, known = first.pop("loaded"), again.pop("loaded")
    assert loaded["inserted"] == loaded["received"] > 9_000
    assert known == loaded | {"inserted": 0, "duplicates": loaded["received"]}
    assert first == again


def test_the_workload_stays_where_it_was_first_loaded(database: str) -> None:
    first_day = datetime(2026, 2, 3, 9, tzinfo=UTC)
    with psycopg.connect(database) as conn:
        for tenant in TENANTS:
            conn.execute(
                "insert into tracedb.tenants (external_id, name, created_at) values (%s, %s, %s)",
                (tenant.external_id, tenant.name, first_day),
            )
    with tracedb.connect(database) as db:
        demo.load_workload(db, lambda records, total: records)

    newest = "select max(ended_at), max(started_at) from tracedb.execution_traces"
    (ended_at, started_at), *_ = rows(database, newest)
    assert ended_at <= first_day
    assert (first_day - started_at).days < 2


def test_the_demo_agrees_with_the_views(database: str, capsys: Capture) -> None:
    report = answer(capsys, "demo", "--dsn", database)

    shown = {
        (tenant["tenant"]["tenant_id"], agent["agent_id"]): (
            agent["trace_count"],
            agent["success_rate"],
            agent["p95_duration_ms"],
            agent["cost_usd"],
        )
        for tenant in report["tenants"]
        for agent in tenant["agents"]
        if agent["agent_id"] is not None
    }
    performance = rows(
        database,
        "select tenant_id, agent_id, trace_count, success_rate, p95_duration_ms, cost_usd::text"
        " from tracedb.agent_performance",
    )
    assert shown == {
        (str(tenant_id), agent_id): (
            count,
            pytest.approx(Decimal(repr(rate))),
            pytest.approx(Decimal(repr(p95))),
            cost,
        )
        for tenant_id, agent_id, count, rate, p95, cost in performance
    }
    totals = rows(
        database,
        "select tenant_id::text, count(*), sum(cost_usd)::text from tracedb.trace_summary"
        " where parent_trace_id is null group by tenant_id",
    )
    for tenant in report["tenants"]:
        total = tenant["agents"][-1]
        assert (tenant["tenant"]["tenant_id"], total["trace_count"], total["cost_usd"]) in totals


def test_the_demo_fits_a_narrow_terminal_and_tells_what_to_do_next(
    database: str, capsys: Capture
) -> None:
    shown = command(capsys, "demo", "--dsn", database)

    figures, after = shown.split("\nThe database\n")
    assert all(len(line) <= 80 for line in figures.splitlines())
    for text in (
        "Agents of Acme Retail",
        "order-agent",
        "Slowest",
        "Failed",
        "for: My order has not come. Where is it?",
        "    order-agent > lookup_order",
        "One trace as a tree",
    ):
        assert text in figures
    assert "\x1b" not in shown
    export, show_trace, *_ = [line.strip() for line in after.split("Try next\n")[1].splitlines()]
    assert export.startswith("export TRACEDB_DSN=")
    assert show_trace.split()[-2] == "trace"
    assert "trace" in command(capsys, *shlex.split(show_trace)[-2:], "--dsn", database)


def test_the_demo_never_shows_a_password(database: str, capsys: Capture) -> None:
    # where the server asks for none, any will do
    password = str(conninfo_to_dict(database).get("password") or "pass-word-marker")

    assert main(["demo", "--dsn", make_conninfo(database, password=password)]) == 0

    assert password not in "".join(capsys.readouterr())


def test_the_demo_of_files_shows_their_tenant_alone(
    database: str, capsys: Capture, tmp_path: Path
) -> None:
    files = [write(tmp_path, tau2_document()), write(tmp_path, tau_document(), "old.json")]
    generated = answer(capsys, "demo", "--dsn", database)

    report = answer(capsys, "demo", "--dsn", database, *files)

    (tenant,) = report["tenants"]
    assert tenant["tenant"]["external_id"] == "tau2-bench"
    agents = {row["agent_id"]: row for row in tenant["agents"]}
    assert agents.keys() == {"llm_agent think-1", "old", None}
    assert agents["llm_agent think-1"]["cost_usd"] == "0.3"
    assert agents["llm_agent think-1"]["unknown_cost_count"] == 1
    assert (agents["old"]["cost_usd"], agents["old"]["p95_duration_ms"]) == (None, None)
    assert answer(capsys, "demo", "--dsn", database)["tenants"] == generated["tenants"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real runs are not here")
def test_the_demo_of_real_files_shows_every_digit_of_their_costs(
    database: str, capsys: Capture
) -> None:
    files = sorted(REAL.glob("tau2/*.json"))
    costs: dict[str, Decimal] = {}
    for file in files:
        document = json.loads(file.read_text(), parse_float=Decimal)
        model = document["info"]["agent_info"]["llm"].split("/")[-1]
        for run in document["simulations"]:
            costs[model] = costs.get(model, Decimal(0)) + run["agent_cost"] + run["user_cost"]

    shown = command(capsys, "demo", "--dsn", database, *files)

    lines = shown.splitlines()
    for model, cost in costs.items():
        name = next(n for n, line in enumerate(lines) if line == f"llm_agent {model}")
        assert lines[name + 1].split()[-1] == f"{cost.normalize():f}"


def test_a_file_that_is_not_of_the_form_leaves_the_demo_undone(
    empty_database: str, capsys: Capture, tmp_path: Path
) -> None:
    bad = write(tmp_path, tau2_document() | {"info": None})

    said = command(capsys, "demo", "--dsn", empty_database, bad, code=1)

    assert said == "tracedb: shop.json: info: required\n"
    assert rows(empty_database, "select to_regnamespace('tracedb')") == [(None,)]


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the embedded server of this test has its data; root's server user can reach it."""
    from tracedb import server

    scratch = Path(tempfile.mkdtemp(prefix="tracedb-"))
    scratch.chmod(0o755)
    monkeypatch.setattr(server, "default_data_dir", lambda: scratch / "data")
    try:
        yield scratch / "data"
    finally:
        server.locate(scratch / "data").stop()
        shutil.rmtree(scratch)


def test_without_a_dsn_the_demo_has_a_server_of_its_own_until_it_is_stopped(
    data_dir: Path, capsys: Capture, tmp_path: Path
) -> None:
    report = answer(capsys, "demo", write(tmp_path, tau2_document()))

    assert str(data_dir) in report["database"]
    export, *_, stop = report["next"]
    dsn = shlex.split(export)[1].removeprefix("TRACEDB_DSN=")
    assert rows(dsn, "select count(*) from tracedb.execution_traces") == [(2,)]
    assert stop.endswith(" demo --stop")
    assert answer(capsys, "demo", "--stop") == {"stopped": True}
    assert answer(capsys, "demo", "--stop") == {"stopped": False}
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)


def test_an_import_says_what_came_of_each_file(
    database: str, capsys: Capture, tmp_path: Path
) -> None:
    files = [write(tmp_path, tau2_document()), write(tmp_path, tau_document(), "old.json")]

    first = answer(capsys, "import", "tau2", "--dsn", database, *files)
    again = command(capsys, "import", "tau2", "--dsn", database, *files)

    figures = {"traces": 2, "spans": 9, "tool_calls": 3, "successes": 1, "cost_usd": None}
    stored = {"received": 11, "inserted": 11, "merged": 0, "duplicates": 0}
    assert first["files"][0] == {"file": "shop.json", **figures, **stored}
    assert again.splitlines()[:2] == [
        "shop.json: 2 traces (1 succeeded), 9 spans (3 tool calls), cost unknown;"
        " 0 records new, 11 already there",
        "old.json: 2 traces (1 succeeded), 8 spans (2 tool calls), cost unknown;"
        " 0 records new, 10 already there",
    ]


def test_one_bad_file_keeps_the_others_out(database: str, capsys: Capture, tmp_path: Path) -> None:
    good = write(tmp_path, tau2_document())
    bad = write(tmp_path, {"info": {}}, "bad.json")

    said = command(capsys, "import", "tau2", "--dsn", database, good, bad, code=1)

    assert said == "tracedb: bad.json: info.environment_info: required\n"
    assert rows(database, "select count(*) from tracedb.execution_traces") == [(0,)]


@pytest.mark.parametrize("role", ["tracedb_service", "tracedb_app"])
def test_an_import_needs_no_more_than_the_right_to_write(
    database: str, capsys: Capture, tmp_path: Path, role: str
) -> None:
    path = write(tmp_path, tau2_document())

    answer(capsys, "import", "tau2", "--dsn", acting_as(database, role), "--tenant", str(A), path)

    assert rows(database, "select distinct tenant_id from tracedb.llm_spans") == [(A,)]


def test_an_import_registers_the_tenant_it_names(
    database: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tau2_document())
    monkeypatch.setenv("TRACEDB_TENANT", "lab-2")

    for option in ([], ["--tenant", "lab-1"]):
        answer(capsys, "import", "tau2", "--dsn", database, path, *option)

    names = "select external_id from tracedb.tenants order by 1"
    assert rows(database, names) == [("lab-1",), ("lab-2",)]


@pytest.fixture
def shared_trace(database: str) -> str:
    """A database in which tenants A and B both have the trace "request-1"."""
    with tracedb.connect(database) as db:
        for tenant in (A, B):
            header = trace(name="ask", agent_id="bot", prompt="why?", cost_usd="0.1230")
            part = span(1, name="chat", status="error", status_message="too\x1b[2J long")
            for record in (header, part):
                record |= {"trace_id": None, "external_id": "request-1"}
            db.tenant(tenant).ingest([header, part])
        db.tenant(A).ingest([trace()])
    return database


def test_a_trace_is_found_by_its_id_and_drawn(shared_trace: str, capsys: Capture) -> None:
    shown = command(capsys, "trace", trace_id(), "--dsn", shared_trace)

    assert f"trace    {trace_id()}" in shown
    assert "took" in shown


def test_a_trace_is_found_by_the_recorders_own_id(shared_trace: str, capsys: Capture) -> None:
    options = ("--dsn", shared_trace, "--tenant", str(A))

    shown = command(capsys, "trace", "request-1", *options)
    data = answer(capsys, "trace", "request-1", *options)

    assert "prompt   why?" in shown
    assert "cost $   0.123" in shown
    assert "✗ llm chat" in shown
    assert "\x1b" not in shown
    assert data["tenant_id"] == str(A)
    assert data["trace"]["external_id"] == "request-1"
    assert [node["node_type"] for node in data["tree"]] == ["trace", "llm"]


def test_a_trace_of_several_tenants_is_not_guessed(
    shared_trace: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = command(capsys, "trace", "request-1", "--dsn", shared_trace, code=1)
    monkeypatch.setenv("TRACEDB_TENANT", str(B))

    assert "several tenants have a trace request-1" in said
    assert str(A) in said
    assert answer(capsys, "trace", "request-1", "--dsn", shared_trace)["tenant_id"] == str(B)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "there is no trace nothing"),
        (("request-2", "--tenant", str(A)), f"tenant {A} has no trace request-2"),
        (("request-1", "--tenant", "nobody"), "there is no tenant nobody"),
    ],
)
def test_a_trace_that_is_not_there_is_said_so(
    shared_trace: str, capsys: Capture, args: tuple[str, ...], message: str
) -> None:
    assert message in command(capsys, "trace", *args, "--dsn", shared_trace, code=1)


def test_a_role_of_one_tenant_sees_no_trace_of_another(shared_trace: str, capsys: Capture) -> None:
    dsn = acting_as(shared_trace, "tracedb_reader")

    said = command(capsys, "trace", "request-1", "--dsn", dsn, code=1)
    data = answer(capsys, "trace", "request-1", "--dsn", dsn, "--tenant", str(A))

    assert "there is no trace request-1" in said
    assert data["tenant_id"] == str(A)


def test_the_query_to_try_works(database: str, capsys: Capture, tmp_path: Path) -> None:
    report = answer(capsys, "demo", "--dsn", database, write(tmp_path, tau2_document()))

    psql = next(step for step in report["next"] if "psql" in step)
    assert rows(database, shlex.split(psql)[-1]) == [("llm_agent think-1", 2, 0.5, Decimal("0.3"))]
