"""The command that examines a database: doctor."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tracedb.cli import answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedb.cli import Subparsers
    from tracedb.doctor import Diagnosis


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    doctor = subparsers.add_parser(
        "doctor", help="check versions, roles, row-level security, partitions (exit 3 on findings)"
    )
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from tracedb.doctor import examine
    from tracedb.errors import DriftFound

    diagnoses = examine(args.dsn)
    healthy = all(diagnosis.ok for diagnosis in diagnoses)
    data = {
        "healthy": healthy,
        "checks": [
            {
                "name": diagnosis.check.name,
                "ok": diagnosis.ok,
                "findings": list(diagnosis.findings),
                "skipped": diagnosis.skipped,
                "advice": None if diagnosis.ok else diagnosis.check.advice,
            }
            for diagnosis in diagnoses
        ],
    }
    answer(args, data, _lines(diagnoses))
    return 0 if healthy else DriftFound.exit_code


def _lines(diagnoses: list[Diagnosis]) -> Iterator[str]:
    for diagnosis in diagnoses:
        mark = "ok  " if diagnosis.ok else "--  " if diagnosis.skipped else "BAD "
        yield f"{mark} {diagnosis.check.promise}"
        if diagnosis.skipped:
            yield f"       not checked: {diagnosis.skipped}"
        for finding in diagnosis.findings:
            yield f"       {finding}"
        if diagnosis.findings:
            yield f"       advice: {diagnosis.check.advice}"
