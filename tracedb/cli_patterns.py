"""The commands about patterns: patterns find, list, show, embed, index, models and settings."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tracedb import cli_learning
from tracedb.cli import add_tenant, answer, one_tenant, say
from tracedb.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import Tenant
    from tracedb.embeddings import Embedder
    from tracedb.pattern_rows import FoundPattern, Pattern, PatternModel

_TEXT = 70  # characters of a prompt in a line


def add_parser(subparsers: Subparsers) -> None:
    """Register the commands."""
    patterns = subparsers.add_parser(
        "patterns", help="what worked before: find, show, embed it; its settings"
    )
    acts = patterns.add_subparsers(title="actions", metavar="ACTION", required=True)
    find = acts.add_parser(
        "find",
        help="find what fits a request",
        description="Finds the patterns that fit a request best: by its words, and with --embedder"
        " by its meaning. Says of each what its score is made of.",
    )
    find.add_argument("text", metavar="TEXT", help="what is asked")
    find.add_argument("--intent", metavar="I", help="the intent it should have")
    find.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a label of where it is asked, such as agent_id=helpdesk (may be repeated)",
    )
    find.add_argument("-k", type=int, default=5, metavar="N", help="so many (default: 5)")
    find.add_argument("--min-score", type=float, metavar="S", help="0 to 1 (default: as is set)")
    find.add_argument("--seed", type=int, metavar="N", help="explore as with this seed")
    _add_embedder(find, "search by meaning too")
    find.set_defaults(run=_find)
    listing = acts.add_parser("list", help="list the patterns, newest first, retired ones too")
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="(default: 100)")
    listing.set_defaults(run=_list)
    show = acts.add_parser("show", help="show a pattern: what it did, how sure it is to work")
    show.add_argument("pattern_id", type=UUID, metavar="PATTERN_ID")
    show.add_argument("--replay", action="store_true", help="only what to do to repeat it")
    show.set_defaults(run=_show)
    embed = acts.add_parser(
        "embed",
        help="embed the patterns that lack an embedding",
        description="Embeds every pattern that lacks an embedding by this model. May be broken off"
        " and run again; searches by other models go on meanwhile.",
    )
    _add_embedder(embed, "whose embeddings", default="minilm")
    embed.add_argument(
        "--batch", type=int, default=100, metavar="N", help="in a transaction (default: 100)"
    )
    embed.add_argument("--dry-run", action="store_true", help="only say how many lack one")
    embed.set_defaults(run=_embed)
    models = acts.add_parser("models", help="show how far the embeddings of each model have come")
    models.add_argument("--drop", metavar="MODEL", help="remove the embeddings of a model")
    models.set_defaults(run=_models)
    settings = acts.add_parser("settings", help="show or change how patterns are scored and found")
    settings.add_argument("changes", nargs="*", metavar="NAME=NUMBER", help="settings to change")
    settings.set_defaults(run=_settings)
    for action in (find, listing, show, embed, models, settings):
        add_tenant(action)
    index = acts.add_parser(
        "index",
        help="build or drop the indexes of tenants with many patterns (daily)",
        description="Builds an index of its own for each tenant with more patterns than are"
        " searched without, and drops those that are needed no more. Writers of embeddings wait"
        " while one is built, searches do not. Run it daily, as a role in tracedb_maintainer.",
    )
    index.add_argument(
        "--max-indexes", type=int, default=10, metavar="N", help="so many at most (default: 10)"
    )
    index.add_argument(
        "--memory",
        type=int,
        default=1024,
        metavar="MB",
        help="maintenance_work_mem for each (default: 1024)",
    )
    index.add_argument("--dry-run", action="store_true", help="only say which")
    index.set_defaults(run=_index)
    cli_learning.add_pattern_actions(acts)


def _add_embedder(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    parser.add_argument(
        "--embedder",
        metavar="E",
        default=default,
        help=f"{help}: minilm, or MODULE:NAME of an embedder of yours"
        + (f" (default: {default})" if default else ""),
    )


def embedder_named(name: str) -> Embedder:
    """`minilm`, or what MODULE:NAME makes when it is called."""
    if name == "minilm":
        from tracedb.embeddings import MiniLM

        return MiniLM()
    module, colon, attribute = name.partition(":")
    try:
        from importlib import import_module

        if not colon:
            raise ImportError(f"{name!r} is neither minilm nor MODULE:NAME")
        made: Embedder = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise InvalidInput.of("embedder", str(error)) from error
    return made


def _find(args: argparse.Namespace) -> int:
    from tracedb.embeddings import checked

    context: dict[str, Any] = dict(_pair(label) for label in args.label)
    if args.intent is not None:
        context["intent"] = args.intent
    embedding = model = None
    if args.embedder is not None:
        embedder = embedder_named(args.embedder)
        (embedding,), model = checked(embedder, [args.text]), embedder.model
    with one_tenant(args) as tenant:
        found = tenant.find_patterns(
            embedding,
            args.text,
            context,
            k=args.k,
            min_score=args.min_score,
            model=model,
            seed=args.seed,
        )
    lines = [line for pattern in found for line in _found(pattern)]
    answer(args, [asdict(pattern) for pattern in found], lines or ["nothing fits"])
    return 0


def _found(pattern: FoundPattern) -> Iterator[str]:
    weights = pattern.explanation["weights"]
    parts = (
        f"{part} {pattern.explanation[part]:.2f} x {weight:.2f}"
        for part, weight in weights.items()
        if weight
    )
    why = "  [its turn to be tried]" if pattern.explored else ""
    yield (
        f"{pattern.rank}. {pattern.score:.3f}  {pattern.pattern_id}  {_short(pattern.prompt)}{why}"
    )
    yield f"    {', '.join(parts)}; {pattern.mode}"
    yield f"    {pattern.agent_id or '-'}: {' > '.join(pattern.tool_sequence) or 'no tools'}"


def _list(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        found = tenant.list_patterns(args.limit)
    answer(args, [asdict(pattern) for pattern in found], map(_line, found) if found else ["none"])
    return 0


def _line(pattern: Pattern) -> str:
    retired = f"  [retired: {pattern.retired_reason}]" if pattern.retired_at else ""
    return (
        f"{pattern.pattern_id}  learned from {pattern.trace_count}, used {pattern.use_count}"
        f" ({pattern.use_successes} worked), at least {pattern.confidence:.0%}"
        f"  {_short(pattern.prompt)}{retired}"
    )


def _show(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        call = tenant.replay_plan if args.replay else tenant.get_pattern
        found = call(args.pattern_id)
    if found is None:
        raise NotFound(f"the tenant has no pattern {args.pattern_id}")
    answer(args, found, [json.dumps(found, indent=2, ensure_ascii=False)])
    return 0


def _embed(args: argparse.Namespace) -> int:
    from tracedb.embeddings import embed_patterns

    embedder = embedder_named(args.embedder)

    def progress(stored: int) -> None:
        if sys.stderr.isatty():
            say(f"{stored:,} embedded")

    with one_tenant(args) as tenant:
        stored = 0
        if not args.dry_run:
            stored = embed_patterns(tenant, embedder, batch=args.batch, progress=progress)
        lacking = _lacking(tenant, embedder.model)
    answer(
        args,
        {
            "dry_run": args.dry_run,
            "model": embedder.model,
            "embedded": stored,
            "lacking": lacking,
        },
        [f"{embedder.model}: {stored:,} patterns embedded, {lacking:,} without"],
    )
    return 0


def _lacking(tenant: Tenant, model: str) -> int:
    count, after = 0, None
    while found := tenant.patterns_to_embed(model, 1000, after):
        count, after = count + len(found), found[-1].pattern_id
    return count


def _models(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        removed = 0
        while args.drop is not None and (gone := tenant.drop_embedding_model(args.drop)):
            removed += gone
        found = tenant.pattern_models()
    lines = [f"{removed:,} embeddings of {args.drop} removed"] if args.drop is not None else []
    lines += map(_coverage, found)
    answer(
        args, {"removed": removed, "models": [asdict(m) for m in found]}, lines or ["no embeddings"]
    )
    return 0


def _coverage(model: PatternModel) -> str:
    return (
        f"{model.model}: {model.dimension} dimensions, {model.embedded_count:,} of"
        f" {model.pattern_count:,} patterns ({model.outdated_count:,} outdated),"
        f" {f'index {model.index_name}' if model.index_name else 'searched exactly'}"
    )


def _settings(args: argparse.Namespace) -> int:
    changes = {}
    for name, value in map(_pair, args.changes):
        try:
            changes[name] = json.loads(value)
            if not isfinite(changes[name]):
                raise ValueError
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput.of(name, f"must be a number, not {value!r}") from error
    with one_tenant(args) as tenant:
        settings = tenant.set_pattern_settings(changes) if changes else tenant.pattern_settings()
    answer(args, settings, (f"{name} = {value}" for name, value in settings.items()))
    return 0


def _index(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.maintenance import recorded

    with connect(args.dsn, max_size=2) as db:
        if args.dry_run:
            done = db.wanted_pattern_indexes()
        else:
            with db.connection() as conn, recorded(conn, "pattern-indexes") as result:
                done = db.ensure_pattern_indexes(args.max_indexes, args.memory)
                result.figures = dict(Counter(index.action for index in done))
    lines = [
        f"{index.action}: {index.index_name} ({index.row_count:,} {index.kind} of tenant"
        f" {index.tenant_id}{f', {index.model}' if index.model else ''})"
        for index in done
    ]
    answer(args, [asdict(index) for index in done], lines or ["nothing to do"])
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InvalidInput.of(text, "must be NAME=VALUE")
    return name, value


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT else f"{line[: _TEXT - 3]}..."
