"""What Prometheus gets: the figures of the database, in its conventions, whatever goes wrong."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID, uuid4

import psycopg
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy import proxy
from records import ingest, span, trace, trace_id
from servers import Server
from tracedb.cli import main
from tracedb.metrics import FAMILIES, DatabaseCollector, registry

ROOT = Path(__file__).resolve().parent.parent
ACME = UUID("0000000a-0000-4000-8000-000000000000")
OTHER = UUID("0000000b-0000-4000-8000-000000000000")
NOW = datetime.now(UTC)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Every sample by name and labels; a malformed or repeated one is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def scraped(dsn: str, **settings: Any) -> Samples:
    return parsed(generate_latest(registry(DatabaseCollector(dsn, **settings))).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"tracedb_{name}", frozenset(labels.items())]


def failures(samples: Samples) -> dict[str, float]:
    """The queries that failed, and how often."""
    return {
        dict(labels)["query"]: count
        for (name, labels), count in samples.items()
        if name == "tracedb_scrape_errors_total" and count
    }


def request(minutes_ago: float, **fields: Any) -> dict[str, Any]:
    at = NOW - timedelta(minutes=minutes_ago)
    given = {"trace_id": trace_id("random", at), "started_at": at.isoformat(), "status": "ok"}
    return trace(**given | fields)


@pytest.fixture
def filled(conn: psycopg.Connection[Any], database: str) -> str:
    """Requests of two tenants, one of them nested, one too old, one in no partition."""
    done = [
        request(minutes, duration_ms=1000 * minutes, input_tokens=10, output_tokens=1, cost_usd="1")
        for minutes in (1, 2, 3)
    ]
    failed = request(4, status="error", duration_ms=4000, cost_usd="0.25")
    nested = request(5, parent_trace_id=done[0]["trace_id"], cost_usd="100", duration_ms=9000)
    unpriced = request(6, status="timeout", duration_ms=5000)
    call = span(1, trace_id=unpriced["trace_id"], started_at=unpriced["started_at"], ended_at=None)
    old = request(90, cost_usd="1000", duration_ms=1)
    ingest(conn, ACME, [*done, failed, nested, old])
    ingest(conn, OTHER, [unpriced, call])
    ingest(conn, OTHER, [request(-60 * 24 * 900, status="running")])
    for service, writer in (("shop", uuid4()), (None, uuid4())):
        conn.execute("select tracedb.touch_writer(%s, %s, 9, true, %s)", [writer, service, ACME])
        conn.execute("select tracedb.record_delivery(%s, '{[1,6)}', 'stored', %s)", [writer, ACME])
        conn.execute("select tracedb.bury(%s, 6, '{}', 'type: x', null, %s)", [writer, ACME])
    conn.commit()
    conn.execute("select pg_stat_force_next_flush()")
    conn.commit()
    return database


def test_metrics_are_the_figures_of_the_last_hour(filled: str) -> None:
    found = scraped(filled)

    assert failures(found) == {}
    assert value(found, "up") == 1
    statuses = {
        status: value(found, "recent_requests", status=status)
        for status in ("running", "ok", "error", "timeout", "cancelled")
    }
    # one of them is yet to come
    assert statuses == {"running": 0, "ok": 3, "error": 1, "timeout": 1, "cancelled": 0}
    assert value(found, "recent_executions", status="ok") == 4
    assert value(found, "recent_request_duration_seconds", quantile="0.5") == 3
    assert value(found, "recent_request_duration_seconds", quantile="0.95") == pytest.approx(4.8)
    assert value(found, "recent_tokens", direction="input") == 30
    assert value(found, "recent_tokens", direction="output") == 3
    # that of the nested one is in its parent's
    assert value(found, "recent_cost_usd") == 3.25
    assert value(found, "recent_unpriced_traces") == 1
    assert value(found, "recent_rows", table="llm_spans") == 1
    assert value(found, "default_partition_rows", table="execution_traces") == 1
    assert value(found, "dead_letters") == 2
    assert value(found, "writer_records_total", service="shop", outcome="stored") == 5
    assert value(found, "writer_records_total", service="", outcome="dead") == 1
    assert value(found, "writer_records_lost", service="shop") == 3
    assert value(found, "writers_living", service="shop") == 0
    assert value(found, "change_backlog") == 3
    assert value(found, "table_rows", table="execution_traces") == 8
    assert value(found, "table_bytes", table="llm_spans", part="indexes") > 0
    assert 21 < value(found, "partition_headroom_seconds", table="llm_spans") / 86_400 <= 35
    assert value(found, "ingest_lag_seconds", table="llm_spans") >= 0
    assert value(found, "ingest_delay_p95_seconds", table="llm_spans") >= 360
    oldest = value(found, "change_backlog_oldest_timestamp_seconds")
    assert abs(oldest - NOW.timestamp()) < 3600


def test_recent_is_as_long_as_one_says(filled: str) -> None:
    found = scraped(filled, window=timedelta(minutes=150))

    assert value(found, "recent_seconds") == 9000
    assert value(found, "recent_requests", status="ok") == 4
    assert value(found, "recent_cost_usd") == 1003.25


def test_no_tenant_is_named_unless_asked_for(filled: str) -> None:
    everybody = scraped(filled)
    found = scraped(filled, per_tenant=True)

    assert {"tenant_id"} & {name for _, labels in everybody for name, _ in labels} == set()
    assert str(ACME) not in str(everybody)
    assert failures(found) == {}
    assert value(found, "recent_requests", status="ok", tenant_id=str(ACME)) == 3
    assert value(found, "recent_requests", status="timeout", tenant_id=str(OTHER)) == 1
    assert value(found, "recent_cost_usd", tenant_id=str(OTHER)) == 0
    assert value(found, "dead_letters", tenant_id=str(ACME)) == 2
    assert value(found, "change_backlog", tenant_id=str(OTHER)) == 2
    assert value(found, "ingest_lag_seconds", table="llm_spans", tenant_id=str(OTHER)) >= 0
    assert (
        value(found, "writer_records_total", service="shop", outcome="stored", tenant_id=str(ACME))
        == 5
    )


def test_nothing_recorded_is_zero_and_not_absent(database: str) -> None:
    found = scraped(database)

    assert failures(found) == {}
    for name in ("recent_cost_usd", "recent_unpriced_traces", "dead_letters", "change_backlog"):
        assert value(found, name) == 0
    assert value(found, "recent_requests", status="error") == 0
    assert not [key for key in found if "duration_seconds" in key[0] and "recent" in key[0]]
    assert [key for key in scraped(database, per_tenant=True) if "tenant_id" in dict(key[1])] == []


def test_names_are_as_prometheus_wants_them(filled: str) -> None:
    text = generate_latest(registry(DatabaseCollector(filled))).decode()
    families = list(text_string_to_metric_families(text))

    assert len(families) > 25
    for family in families:
        assert re.fullmatch(r"tracedb_[a-z0-9_]+", family.name)
        assert family.documentation.endswith("."), family.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|days|kb|mb)(_|$)", family.name)
        is_counter = {sample.name.endswith("_total") for sample in family.samples}
        assert is_counter == {family.type == "counter"}, family.name


@pytest.mark.parametrize("role", ["tracedb_maintainer", "tracedb_service"])
def test_operators_roles_may_read_all_of_it(filled: str, role: str) -> None:
    found = scraped(f"{filled} options='-c role={role}'")

    assert failures(found) == {}
    assert found.keys() == scraped(filled).keys()
    assert value(found, "recent_cost_usd") == 3.25


def test_what_a_role_may_not_see_costs_only_its_own_metrics(
    filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--dsn", f"{filled} options='-c role=tracedb_reader'", "metrics"])

    assert code == 1
    found = parsed(capsys.readouterr().out)
    assert set(failures(found)) == {
        "partitions",
        "default_partitions",
        "tables",
        "indexes",
        "ingest",
    }
    assert value(found, "up") == 1
    # no tenant is set, so there are none
    assert value(found, "recent_requests", status="ok") == 0


def test_what_takes_too_long_is_left_out(filled: str) -> None:
    with psycopg.connect(filled) as other:
        other.execute("lock table tracedb.execution_traces in access exclusive mode")
        found = scraped(filled, timeout=1.0)

    assert "requests" in failures(found)
    assert value(found, "dead_letters") == 2


def test_a_network_that_goes_away_in_the_middle(filled: str) -> None:
    with proxy(filled) as between:

        def rule(data: bytes) -> bytes:
            if b"default_partition_rows" in data:
                between.swallow()
            return data

        between.rule = rule
        collector = DatabaseCollector(between.dsn, timeout=1.0)
        found = parsed(generate_latest(registry(collector)).decode())

        between.rule = lambda data: data
        between.heal()
        again = parsed(generate_latest(registry(collector)).decode())

    assert failures(found) == {"default_partitions": 1, "connect": 1}
    assert value(found, "dead_letters") == 2
    assert not [name for name, _ in found if name == "tracedb_table_bytes"]
    assert failures(again) == failures(found)
    assert value(again, "default_partition_rows", table="execution_traces") == 1


def test_every_scrape_counts_its_errors(tmp_path: Path) -> None:
    made = registry(DatabaseCollector(f"host={tmp_path} password=secret-marker"))

    texts = [generate_latest(made).decode() for _ in range(3)]

    assert [failures(parsed(text)) for text in texts] == [{"connect": n} for n in (1, 2, 3)]
    assert value(parsed(texts[-1]), "up") == 0
    assert "secret-marker" not in str(texts)


def test_a_database_that_is_no_tracedb(empty_database: str) -> None:
    found = scraped(empty_database)

    assert set(failures(found)) == set(FAMILIES)
    assert value(found, "up") == 1


# tracedb metrics


def test_metrics_are_printed(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dsn", filled, "metrics", "--hours", "2.5", "--per-tenant"]) == 0

    found = parsed(capsys.readouterr().out)
    assert value(found, "recent_requests", status="ok", tenant_id=str(ACME)) == 4


def test_without_a_database_metrics_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dsn", f"host={tmp_path}", "metrics"]) == 4

    assert value(parsed(capsys.readouterr().out), "up") == 0


def test_a_text_file_is_replaced_at_once(filled: str, tmp_path: Path) -> None:
    path = tmp_path / "tracedb.prom"
    path.write_text("old")
    with path.open() as reader:
        assert main(["--dsn", filled, "metrics", "--textfile", str(path)]) == 0
        # who has the old one open goes on reading it
        assert reader.read() == "old"

    assert value(parsed(path.read_text()), "up") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_file_says_that_the_database_is_away(tmp_path: Path) -> None:
    path = tmp_path / "tracedb.prom"

    assert main(["--dsn", f"host={tmp_path}", "metrics", "--textfile", str(path)]) == 4

    assert value(parsed(path.read_text()), "up") == 0


def test_a_text_file_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "missing" / "tracedb.prom"

    assert main(["--dsn", f"host={tmp_path}", "metrics", "--textfile", str(path)]) == 1
    assert "No such file or directory" in capsys.readouterr().err


def test_an_address_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        assert main(["--dsn", f"host={tmp_path}", "metrics", "--serve", address]) == 1
    assert f"{address}: " in capsys.readouterr().err


@contextmanager
def serving(dsn: str, *options: str) -> Iterator[str]:
    """The address of a running `tracedb metrics --serve`."""
    command = [sys.executable, "-m", "tracedb", "--dsn", dsn, "metrics", *options]
    with subprocess.Popen(
        [*command, "--serve", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            match = re.search(r"http://\S+", said)
            assert match is not None, said
            yield match[0]
        finally:
            process.terminate()
            process.stderr.read()


def fetched(address: str) -> Samples:
    with urlopen(address, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return parsed(answer.read().decode())


def test_metrics_are_served_and_outlive_a_killed_connection(server: Server, filled: str) -> None:
    with serving(filled) as address:
        assert value(fetched(address), "recent_requests", status="ok") == 3
        name = psycopg.conninfo.conninfo_to_dict(filled)["dbname"]
        server.admin.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s",
            [name],
        )
        again = fetched(address)

    assert value(again, "up") == 1
    assert failures(again) == {}


def test_the_server_outlives_its_database(tmp_path: Path) -> None:
    with serving(f"host={tmp_path}") as address:
        found = [fetched(address) for _ in range(2)]

    assert [value(samples, "up") for samples in found] == [0, 0]
    assert [failures(samples) for samples in found] == [{"connect": 1}, {"connect": 2}]


@pytest.mark.parametrize(
    "options",
    [
        ["--serve", "9187"],
        ["--serve", "localhost:"],
        ["--serve", "localhost:70000"],
        ["--serve", "localhost:1", "--textfile", "x"],
        ["--hours", "0"],
        ["--hours", "nan"],
        ["--timeout", "-1"],
    ],
)
def test_options_that_make_no_sense(options: list[str]) -> None:
    with pytest.raises(SystemExit) as usage:
        main(["metrics", *options])
    assert usage.value.code == 2


def test_without_the_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    assert main(["metrics"]) == 1
    assert "pip install 'tracedb[metrics]'" in capsys.readouterr().err


def test_other_commands_do_without_the_package() -> None:
    code = (
        "import sys, tracedb.cli; tracedb.cli._parser();"
        " assert not [name for name in sys.modules if name.startswith('prometheus')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_names_only_metrics_that_there_are(filled: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^### Prometheus\n(.*?)^##", readme, re.MULTILINE | re.DOTALL)
    shown = {
        name
        for line in re.findall(r"^(?:\| `|- expr: ).*", section, re.MULTILINE)
        for name in re.findall(r"tracedb_\w+", line)
    }
    known = {name for name, _ in scraped(filled)}

    assert len(shown) > 10
    assert shown - known == set()
