"""The comparison with other tracing stores gives all the same spans and counts them right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import tracedb
from peers import workload
from peers.processes import Unavailable, install, sqlalchemy_place, stored
from peers.systems import TRACEDB, System
from servers import Server

RUN = Path(__file__).parent / "peers" / "run.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *options], check=False, capture_output=True, text=True
    )


def test_a_round_is_the_same_in_every_run_and_unlike_the_next() -> None:
    ids = [
        {(span["trace_id"], span["span_id"]) for batch in batches for span in batch}
        for batches in (workload.batches(1_200, 1), workload.batches(1_200, 2))
    ]
    assert workload.batches(1_200, 1) == workload.batches(1_200, 1)
    assert [len(each) for each in ids] == [1_200, 1_200]
    assert not ids[0] & ids[1]


def test_a_batch_is_of_whole_traces_and_no_larger_than_an_exporter_sends() -> None:
    batches = workload.batches(1_200, 1)

    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == 1_200
    assert max(sizes) <= 512
    traces = [{span["trace_id"] for span in batch} for batch in batches]
    assert sum(map(len, traces)) == len(set().union(*traces)) == 200


def test_every_span_is_a_record_and_every_trace_has_its_header(database: str) -> None:
    (batch,) = workload.batches(60, 1)
    with tracedb.connect(database) as db:
        receipt = db.tenant(workload.TENANT).ingest(workload.as_records(batch))
    with psycopg.connect(database) as conn:
        first, last = workload.interval(1)
        inside = conn.execute(
            "select count(*) from tracedb.llm_spans where started_at between %s and %s",
            [first, last],
        ).fetchone()
        there = stored(conn, TRACEDB.table)

    assert (receipt.inserted, receipt.rejected) == (70, ())
    assert inside == (60,)
    assert there == 60


def test_a_table_that_is_not_there_yet_holds_nothing(database: str) -> None:
    with psycopg.connect(database) as conn:
        assert stored(conn, "ai.agno_spans") == 0


def test_peers_are_told_the_same_database() -> None:
    dsn = "host=/run/pg port=5433 user=a dbname=b password='p@s/s' options='-c jit=off'"

    assert sqlalchemy_place(dsn) == "a:p%40s%2Fs@/b?host=/run/pg&port=5433"


@pytest.mark.slow
def test_a_peer_that_cannot_be_installed_says_why(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("./nowhere\n")
    peer = System("peer", "", "public.spans", "peers.send_otlp", requirements=str(requirements))

    with pytest.raises(Unavailable, match=r"not installed: .*nowhere"):
        install(peer, tmp_path, 60)


@pytest.mark.slow
def test_tracedb_alone_is_measured_killed_and_counted(server: Server, tmp_path: Path) -> None:
    document = tmp_path / "report.json"
    result = run(
        *("--peers", "", "--dsn", server.admin_dsn, "--scratch", str(tmp_path / "scratch")),
        *("--spans", "60", "--kill-spans", "60", "--kill-after", "0", "--repeat", "1"),
        *("--quiet", "0", "--json", str(document)),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(document.read_text())

    assert report["skipped"] == {}
    assert set(report["speed"]) == {"tracedb", "copy", "tracedb_service"}
    assert {len(samples) for samples in report["speed"].values()} == {1}
    kills = [kill for kills in report["kills"].values() for kill in kills]
    assert [(kill["acknowledged"], kill["stored"], kill["lost"]) for kill in kills] == [
        (60, 60, 0)
    ] * 2
    assert "lost 0" in result.stdout


def test_a_name_that_no_peer_has_is_a_usage_error() -> None:
    result = run("--peers", "nothing")
    assert result.returncode == 2
    assert result.stdout == ""
