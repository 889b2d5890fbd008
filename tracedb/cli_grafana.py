"""The command that puts the dashboards where Grafana finds them: grafana."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracedb.cli import Subparsers

SOURCE = Path(__file__).resolve().parent / "grafana"


def add_parser(subparsers: Subparsers) -> None:
    """Register the command and its actions."""
    command = subparsers.add_parser("grafana", help="dashboards for Grafana, over PostgreSQL")
    acts = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    export = acts.add_parser(
        "export",
        help="write the dashboards and what provisions them",
        description="Writes DIR/dashboards/*.json, which Grafana also imports one by one, and"
        " DIR/provisioning, for GF_PATHS_PROVISIONING. Files of these names are replaced.",
    )
    export.add_argument("folder", type=Path, metavar="DIR", help="made if it is not there")
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from tracedb.cli import answer
    from tracedb.errors import TracedbError

    folder: Path = args.folder.resolve()
    texts = {
        folder / "dashboards" / path.name: path.read_text(encoding="utf-8")
        for path in sorted(SOURCE.glob("*.json"))
    }
    provider = (SOURCE / "dashboards.yaml").read_text(encoding="utf-8")
    place = json.dumps(str(folder / "dashboards"), ensure_ascii=False)  # as YAML quotes it too
    texts |= {
        folder / "provisioning" / "dashboards" / "tracedb.yaml": provider.replace(
            "DASHBOARDS_FOLDER", place
        ),
        folder / "provisioning" / "datasources" / "tracedb.yaml": (
            SOURCE / "datasource.yaml"
        ).read_text(encoding="utf-8"),
    }
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TracedbError(f"{error.filename}: {error.strerror}") from error
    answer(args, {"written": [str(path) for path in texts]}, [f"wrote {path}" for path in texts])
    return 0
