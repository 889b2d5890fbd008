"""The benchmarks run, on a hundredth of their data, and report in the documented form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUN = Path(__file__).parent / "bench" / "run.py"


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *options], check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a quick run of the ingest benchmark says, as text and as JSON."""
    document = tmp_path_factory.mktemp("bench") / "report.json"
    result = bench("--quick", "--repeat", "2", "--only", "ingest", "--json", str(document))
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(document.read_text())


@pytest.mark.slow
def test_the_first_variant_is_what_the_others_are_compared_with(
    report: tuple[str, dict[str, Any]],
) -> None:
    (ingest,) = report[1]["benchmarks"]
    assert ingest["baseline"] == "copy"
    assert ingest["variants"]["copy"]["ratios"] == [1.0, 1.0]
    assert {len(variant["samples"]) for variant in ingest["variants"].values()} == {2}


@pytest.mark.slow
def test_a_ratio_is_of_samples_of_the_same_round(report: tuple[str, dict[str, Any]]) -> None:
    (ingest,) = report[1]["benchmarks"]
    variants, metric = ingest["variants"], ingest["metric"]
    for name in variants:
        assert variants[name]["ratios"] == [
            ours[metric] / copy[metric]
            for ours, copy in zip(
                variants[name]["samples"], variants["copy"]["samples"], strict=True
            )
        ]


@pytest.mark.slow
def test_the_environment_says_what_was_measured(report: tuple[str, dict[str, Any]]) -> None:
    environment = report[1]["environment"]
    assert environment["settings"]["fsync"] == "on"
    assert (environment["scale"], environment["repeat"]) == (0.01, 2)


@pytest.mark.slow
def test_the_text_names_every_variant_and_metric(report: tuple[str, dict[str, Any]]) -> None:
    text, document = report
    (ingest,) = document["benchmarks"]
    for name, variant in ingest["variants"].items():
        assert f"\n  {name} " in text
        assert all(f"\n      {metric} " in text for metric in variant["samples"][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"), [("reads.newest_of_user", "day_app"), ("sized", "plain")]
)
def test_reads_find_what_they_look_for(name: str, variant: str) -> None:
    # a read that finds nothing ends the run
    result = bench("--quick", "--repeat", "1", "--only", name)
    assert result.returncode == 0, result.stderr
    assert variant in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["writer", "bulk_1000"])
def test_what_is_recorded_and_sent_is_stored(name: str) -> None:
    # a variant that does not store all of it ends the run
    result = bench("--quick", "--repeat", "1", "--only", name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{name}: ")


def test_a_name_that_no_benchmark_has_is_a_usage_error() -> None:
    result = bench("--only", "nothing")
    assert result.returncode == 2
    assert result.stdout == ""
