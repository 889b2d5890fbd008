"""The commands about patterns, as a person and as a program use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

import tracedb
from tracedb.cli import main
from tracedb.verify import verify

TENANT = UUID("00000000-0000-4000-8000-0000000000d1")
EMBEDDER = ["--embedder", "words:HashedWords"]
Cli = Callable[..., Any]


@pytest.fixture
def cli(database: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command for the tenant: its answer as text or, with --json, as a document."""

    def run(*args: str, code: int = 0, tenant: bool = True) -> Any:
        given = ["--dsn", database, "patterns", *args]
        assert main([*given, "--tenant", str(TENANT)] if tenant else given) == code
        out = capsys.readouterr()
        return json.loads(out.out) if "--json" in args else out.out + out.err

    return run


@pytest.fixture
def patterns(database: str) -> list[UUID]:
    with tracedb.connect(database, max_size=1) as db:
        tenant = db.tenant(TENANT)
        saved = [
            tenant.save_pattern({"prompt": text, "tool_sequence": ["find", "act"]})
            for text in ("cancel the flight", "book a hotel", "cancel the hotel")
        ]
    return [pattern_id for pattern_id in saved if pattern_id is not None]


def test_patterns_are_found_with_their_reasons(cli: Cli, patterns: list[UUID]) -> None:
    assert cli("embed", *EMBEDDER, "--dry-run").startswith("hashed: 0 patterns embedded, 3 without")
    assert cli("embed", *EMBEDDER, "--json") == {
        "dry_run": False,
        "model": "hashed",
        "embedded": 3,
        "lacking": 0,
    }

    found = cli("find", "cancel my flight", *EMBEDDER, "--seed", "1", "-k", "2", "--json")
    assert [row["prompt"] for row in found] == ["cancel the flight", "cancel the hotel"]
    text = cli("find", "cancel my flight", "--label", "agent_id=x", "--intent", "i", "--seed", "1")
    assert text.startswith("1. ")
    assert "keyword 1.00 x 0.33" in text
    assert "find > act" in text
    assert cli("find", "nonsense") == "nothing fits\n"


def test_patterns_are_listed_and_shown(cli: Cli, patterns: list[UUID]) -> None:
    assert [row["pattern_id"] for row in cli("list", "--json")] == [
        str(pattern_id) for pattern_id in reversed(patterns)
    ]
    assert "book a hotel" in cli("list", "--limit", "2")
    assert cli("show", str(patterns[0]), "--json")["prompt"] == "cancel the flight"
    assert cli("show", str(patterns[0]), "--replay", "--json")["tools"] == ["find", "act"]
    assert "the tenant has no pattern" in cli("show", str(uuid4()), code=1)


def test_settings_are_shown_and_changed(cli: Cli) -> None:
    assert "half_life_days = 90" in cli("settings")
    assert cli("settings", "min_score=0.4", "explore_share=0", "--json")["min_score"] == 0.4
    for value in ("high", "NaN", "null"):
        assert "min_score: must be a number" in cli("settings", f"min_score={value}", code=1)
    assert "wrong: no such field" in cli("settings", "wrong=1", code=1)
    assert "must be NAME=VALUE" in cli("settings", "min_score", code=1)


def test_a_number_that_is_too_large_is_no_lack_of_a_schema(cli: Cli) -> None:
    for option in ("-k", "--seed"):
        assert "out of range" in cli("find", "x", option, "9" * 30, code=1)


def test_indexes_and_models(cli: Cli, database: str, patterns: list[UUID]) -> None:
    cli("embed", *EMBEDDER)
    assert "searched exactly" in cli("models")
    assert cli("index", tenant=False) == "nothing to do\n"

    cli("settings", "exact_search_limit=0", "word_search_limit=0")
    assert cli("index", tenant=False).count("built: ") == 2
    assert "index pattern_embeddings_hnsw_" in cli("models")
    # no drift, and nothing to complain of
    assert verify(database) == []

    assert "3 embeddings of hashed removed" in cli("models", "--drop", "hashed")
    assert "dropped: " in cli("index", tenant=False)


def test_an_embedder_that_is_none_is_named(cli: Cli) -> None:
    assert "embedder: 'nonsense' is neither minilm nor MODULE:NAME" in cli(
        "embed", "--embedder", "nonsense", code=1
    )
    assert "embedder: " in cli("embed", "--embedder", "words:Nothing", code=1)
