"""What the README shows works as it is written there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import psycopg

import tracedb
from servers import psql

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found[number]


def test_the_eight_lines_of_python_run(database: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", block("python")],
        env={**os.environ, "TRACEDB_DSN": database},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "AgentPerformance(" in result.stdout
    assert "agent_id='helpdesk'" in result.stdout
    assert "TreeNode(node_no=1" in result.stdout


def test_recording_from_a_service_runs(database: str, tmp_path: Path) -> None:
    shown = re.sub(r'"postgresql://[^"]*"', repr(database), block("python", 1))
    shown = re.sub(r'"/var/[^"]*"', repr(str(tmp_path)), shown)
    result = subprocess.run(
        [sys.executable, "-c", shown], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")
    with psycopg.connect(database) as conn:
        found = conn.execute("select stored, closed from tracedb.ingest_writers").fetchall()
    assert found == [(3, True)]


def run(shown: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", shown],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_tracing_code_that_has_none_runs(database: str) -> None:
    tenant = "5c1e3a52-8d4b-4d0e-9b57-0d6a3f0e1c11"

    shown = run(block("python", 2), TRACEDB_DSN=database, TRACEDB_TENANT_ID=tenant)

    with tracedb.connect(database) as db:
        nodes = db.tenant(UUID(tenant)).trace_tree(UUID(shown.strip()))
    assert [(node.name, node.node_type, node.input_tokens) for node in nodes] == [
        ("question", "trace", None),
        ("search", "retrieval", None),
        ("answer", "llm", 12),
    ]


def test_a_service_without_a_database_runs(tmp_path: Path) -> None:
    # the log's last resort is stderr
    shown = "import logging\nlogging.disable()\n" + block("python", 3)

    assert run(shown, TRACEDB_DSN=f"host={tmp_path}") == (
        "[]\n{'connect': 1, 'ensure_tenant': 1, 'agent_performance': 1}\n"
    )


def test_what_calls_cost_runs(database: str) -> None:
    assert run(block("python", 4), TRACEDB_DSN=database) == "0.00015200 []\nprice differs\n"


def test_a_budget_is_spent(database: str) -> None:
    assert run(block("python", 5), TRACEDB_DSN=database) == "9.98\n"


def test_a_pattern_is_found_again(database: str) -> None:
    shown = run(block("python", 6), TRACEDB_DSN=database)

    assert shown.startswith("0.666667 ['find_booking', 'cancel_booking', 'refund'] {")
    assert shown.endswith("\n1\n")


def test_what_is_learned_is_used(database: str) -> None:
    (shown,) = (
        each
        for each in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "log_pattern_use" in each
    )
    assert run(shown, TRACEDB_DSN=database) == "2 1 1.0\n"


def test_the_same_in_sql_runs(database: str) -> None:
    shown = psql(database, input=block("sql"))

    assert '"inserted": 1' in shown
    assert "helpdesk" in shown
    assert "0.0021" in shown


def test_the_files_the_readme_points_to_exist() -> None:
    paths = re.findall(r"`((?:tests|scripts|schema|migrations|tracedb)/[\w./-]*)`", README)

    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_record_types_of_the_readme_are_those_of_the_schema(database: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", README, re.MULTILINE)
    shown = {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}
    with psycopg.connect(database) as conn:
        rows_known = conn.execute("select type, required from tracedb.record_types()").fetchall()
    known: dict[str, list[str]] = dict(rows_known)

    assert {name: shown.get(name) for name in known} == known


def test_cron_makes_partitions_and_drains_the_default_ones(database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("update tracedb.partition_policies set ahead_periods = 6")
    command = Path(sys.executable).with_name("tracedb")
    cron = {**os.environ, "TRACEDB_DSN": database, "TRACEDB": str(command)}

    runs = [
        subprocess.run(
            [ROOT / "scripts" / "partitions"], env=cron, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]

    assert runs[0].count("made llm_spans_p") == 2
    assert runs[1] == "nothing to do\n"
