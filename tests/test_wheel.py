"""The wheel carries all that an installation needs to migrate a database."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_an_installed_wheel_migrates_a_database(tmp_path: Path, empty_database: str) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert (site / "tracedb" / "py.typed").exists()
    assert len(list((site / "tracedb" / "grafana").glob("*.json"))) == 5
    env = {**os.environ, "PYTHONPATH": str(site), "TRACEDB_DSN": empty_database}

    for command in ("migrate", "verify", "doctor"):
        result = subprocess.run(
            [sys.executable, "-m", "tracedb", command],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
    where = subprocess.run(
        [sys.executable, "-c", "from tracedb import resources; print(resources.folder('schema'))"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()) == site / "tracedb" / "_sql" / "schema"
