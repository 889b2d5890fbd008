"""The commands about learning and outcomes: errors, routing evaluate, and of patterns learn, fold,
effectiveness, lift and prune.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from math import isfinite
from textwrap import shorten
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tracedb.cli import ALREADY_RUNNING, add_tenant, answer, one_tenant, say
from tracedb.cli_traces import moment

if TYPE_CHECKING:
    from tracedb.cli import Subparsers
    from tracedb.client import Tenant, TraceDB
    from tracedb.learning_rows import ErrorPattern, Learned, PatternLift, RoutingValue

REFUSED = 3

_TEXT = 70  # characters of a prompt or message in a line


def add_pattern_actions(acts: Subparsers) -> None:
    """Register the actions of `tracedb patterns` that are about learning and outcomes."""
    learn = acts.add_parser(
        "learn",
        help="learn patterns, chains and errors from what was written (every few minutes)",
        description="Learns success patterns, chains of agents and errors from what was written"
        " since the last time, a transaction a portion. Nothing counts twice. Exits with 75 if"
        " another session learns for every tenant that has something.",
    )
    _add_some_tenant(learn, "learn only for it")
    learn.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        help="look again at all traces from a time on, or so long ago (7d): after settings changed",
    )
    learn.add_argument(
        "--max-traces", type=int, default=1000, metavar="N", help="in a transaction (default: 1000)"
    )
    _add_seconds(learn)
    learn.add_argument("--dry-run", action="store_true", help="only say how much there is to learn")
    learn.set_defaults(run=_learn)
    fold = acts.add_parser(
        "fold",
        help="add logged uses and outcomes to the counts of patterns (every few minutes)",
        description="Adds logged uses and outcomes to the counts of patterns, a transaction a"
        " portion, until nothing is left. Answers are exact without it, but slower.",
    )
    fold.add_argument("--max-uses", type=int, default=10_000, metavar="N", help="in a transaction")
    _add_seconds(fold)
    fold.add_argument("--dry-run", action="store_true", help="only say how much there is to fold")
    fold.set_defaults(run=_fold)
    effectiveness = acts.add_parser("effectiveness", help="how patterns do, the most used first")
    effectiveness.add_argument("--limit", type=int, default=100, metavar="N", help="(default: 100)")
    add_tenant(effectiveness)
    effectiveness.set_defaults(run=_effectiveness)
    lift = acts.add_parser(
        "lift",
        help="whether patterns help: success with them against success without",
        description="Compares the success of traces that had a pattern with that of traces from"
        " which it was held back (arm control); where nothing was, with traces without any, which"
        " proves nothing.",
    )
    lift.add_argument("--pattern", type=UUID, metavar="ID", help="only this one")
    _add_times(lift, "90d")
    lift.add_argument(
        "--min-traces", type=int, default=20, metavar="N", help="on each side (default: 20)"
    )
    add_tenant(lift)
    lift.set_defaults(run=_lift)
    prune = acts.add_parser(
        "prune",
        help="retire patterns that had their chance and do not work (daily)",
        description="Retires patterns that had their chance and do not work, by the tenant's"
        " settings, and leaves a receipt of each.",
    )
    _add_some_tenant(prune, "only its patterns")
    prune.add_argument("--dry-run", action="store_true", help="only say which")
    prune.set_defaults(run=_prune)


def add_parser(subparsers: Subparsers) -> None:
    """Register the other commands."""
    errors = subparsers.add_parser(
        "errors",
        help="errors by fingerprint, the most frequent first; what helps against them",
        description="Lists errors that are the same one but for numbers, ids, paths and quotes, as"
        " `tracedb patterns learn` counted them.",
    )
    errors.add_argument(
        "--since", type=moment, metavar="TIME", help="seen from a time on, or so long ago: 7d"
    )
    errors.add_argument("--unfixed", action="store_true", help="only those without a known fix")
    errors.add_argument("--limit", type=int, default=50, metavar="N", help="(default: 50)")
    errors.add_argument(
        "--fix",
        nargs=2,
        metavar=("FINGERPRINT", "TEXT"),
        help="write down what helps against an error instead (empty text: nothing)",
    )
    add_tenant(errors)
    errors.set_defaults(run=_errors)
    routing = subparsers.add_parser("routing", help="what another way of routing would be worth")
    acts = routing.add_subparsers(title="actions", metavar="ACTION", required=True)
    evaluate = acts.add_parser(
        "evaluate",
        help="estimate it from the decisions that were made",
        description="Estimates from the decisions that were made, and the probability they were"
        " made with, what another policy would have been worth. Exits with 3 if they cannot tell.",
    )
    evaluate.add_argument(
        "policy",
        nargs="+",
        metavar="POLICY",
        help="greedy (the highest score), or AGENT=PROBABILITY for each agent",
    )
    _add_times(evaluate, "30d")
    evaluate.add_argument(
        "--reward", choices=("success", "score", "cost", "duration"), default="success"
    )
    evaluate.add_argument(
        "--min-effective",
        type=int,
        default=20,
        metavar="N",
        help="decisions that the logged ones must be worth (default: 20)",
    )
    add_tenant(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _add_some_tenant(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument(
        "--tenant",
        metavar="T",
        default=os.environ.get("TRACEDB_TENANT"),
        help=f"a tenant_id or external id: {help} (default: TRACEDB_TENANT, else all that this"
        " role sees)",
    )


def _add_seconds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        default=50.0,
        metavar="N",
        help="begin no portion after N seconds (default: 50)",
    )


def _add_times(parser: argparse.ArgumentParser, since: str) -> None:
    parser.add_argument(
        "--since",
        type=moment,
        default=since,
        metavar="TIME",
        help=f"from an ISO 8601 time on, or so long ago (default: {since})",
    )
    parser.add_argument(
        "--until", type=moment, metavar="TIME", help="before such a time (default: now)"
    )


def _tenants(
    db: TraceDB, name: str | None, all_of_them: Callable[[], list[UUID]]
) -> Iterator[Tenant]:
    from tracedb.demo import tenant_id_of

    for id in [tenant_id_of(db, name)] if name else all_of_them():
        yield db.tenant(id)


def _learn(args: argparse.Namespace) -> int:
    from tracedb import connect, learning
    from tracedb.maintenance import recorded
    from tracedb.query import run

    # one connection keeps the record of the run
    with connect(args.dsn, max_size=2) as db, db.connection() as conn:
        if args.dry_run:
            waiting = run(conn, learning.unlearned_changes())
            answer(args, {"unlearned_changes": waiting}, [f"{waiting:,} changes to learn from"])
            return 0
        with recorded(conn, "learning") as result:
            figures = result.figures = _learned(args, db)
    more = "" if figures["finished"] else "; there is more"
    answer(
        args,
        figures,
        [
            f"{figures['examined']:,} traces of {figures['tenants']:,} tenants examined:"
            f" {figures['patterns']:,} changes of patterns, {figures['chains']:,} of chains,"
            f" {figures['errors']:,} of errors{more}",
        ],
    )
    return ALREADY_RUNNING if figures["busy"] and figures["busy"] == figures["tenants"] else 0


def _learned(args: argparse.Namespace, db: TraceDB) -> dict[str, int]:
    """Learn until nothing is left or the time is up; what was done."""
    stop = time.monotonic() + args.seconds
    done = {"patterns": 0, "chains": 0, "errors": 0}
    traces = busy = tenants = 0
    for tenant in _tenants(db, args.tenant, db.tenants_to_learn):
        tenants += 1
        subjects: dict[str, Callable[..., Learned | None]] = {
            "patterns": tenant.extract_patterns,
            "chains": tenant.learn_chains,
            "errors": tenant.learn_errors,
        }
        for name, call in subjects.items():
            after = None
            while time.monotonic() < stop:
                learned = call(args.since, max_traces=args.max_traces, after=after)
                if learned is None:
                    busy += name == "patterns"
                    break
                if learned.examined == 0:
                    break
                after = learned.last_trace_id
                done[name] += learned.changed
                traces += learned.examined if name == "patterns" else 0
                if sys.stderr.isatty():
                    say(f"{name}: {done[name]:,} changed, {traces:,} traces examined")
    finished = time.monotonic() < stop
    return {"tenants": tenants, "busy": busy, "examined": traces, **done, "finished": finished}


def _fold(args: argparse.Namespace) -> int:
    from tracedb import connect, learning
    from tracedb.maintenance import recorded
    from tracedb.query import run

    stop = time.monotonic() + args.seconds
    uses = 0
    with connect(args.dsn, max_size=1) as db, db.connection() as conn:
        if args.dry_run:
            waiting = run(conn, learning.uncounted_uses())
            answer(args, {"uncounted_uses": waiting}, [f"{waiting:,} uses to fold"])
            return 0
        with recorded(conn, "pattern-uses") as result:
            while time.monotonic() < stop and (
                folded := run(conn, learning.fold_pattern_usage(args.max_uses))
            ):
                uses += sum(tenant.uses for tenant in folded)
                if sys.stderr.isatty():
                    say(f"{uses:,} uses folded")
            result.figures = {"uses": uses}
    answer(args, {"uses": uses}, [f"{uses:,} uses folded"])
    return 0


def _effectiveness(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        found = tenant.pattern_effectiveness(args.limit)
    lines = [
        f"{each.pattern_id}  {each.use_count:,} uses, {_rate(each.success_rate)}"
        f" ({_rate(each.success_rate_low)} to {_rate(each.success_rate_high)})"
        f"{'' if each.retired_at is None else ', retired'}"
        f"\n    {shorten(each.prompt, _TEXT, placeholder='...')}"
        for each in found
    ]
    answer(args, [asdict(each) for each in found], lines or ["no patterns"])
    return 0


def _lift(args: argparse.Namespace) -> int:
    with one_tenant(args) as tenant:
        found = tenant.pattern_lift(
            args.pattern, args.since, args.until, min_traces=args.min_traces
        )
    lines = [line for each in found for line in _lift_lines(each)]
    answer(args, [asdict(each) for each in found], lines or ["no pattern was used in that time"])
    return 0


def _lift_lines(lift: PatternLift) -> Iterator[str]:
    yield f"{lift.pattern_id or 'all patterns together'} ({lift.comparison})"
    for side, rate, good, all_ in (
        ("with", lift.with_rate, lift.with_successes, lift.with_traces),
        ("without", lift.without_rate, lift.without_successes, lift.without_traces),
    ):
        yield f"    {side:<8} {_rate(rate):>7}  ({good:,} of {all_:,})"
    if lift.difference is None:
        yield f"    no difference: {lift.reason}"
    else:
        low, high = lift.difference_low or 0, lift.difference_high or 0
        yield f"    difference {lift.difference:+.1%}  (95 %: {low:+.1%} to {high:+.1%})"


def _prune(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.maintenance import Outcome, recorded

    pruned: list[dict[str, Any]] = []
    with (
        connect(args.dsn, max_size=2) as db,
        db.connection() as conn,
        nullcontext(Outcome()) if args.dry_run else recorded(conn, "pruning") as result,
    ):
        for tenant in _tenants(db, args.tenant, db.tenants_with_patterns):
            while found := tenant.prune_patterns(dry_run=args.dry_run):
                pruned += [{"tenant_id": tenant.tenant_id, **asdict(each)} for each in found]
                if args.dry_run:
                    break
        result.figures = {"retired": len(pruned)}
    lines = [f"{each['tenant_id']}  {each['pattern_id']}: {each['reason']}" for each in pruned]
    answer(
        args,
        {"dry_run": args.dry_run, "pruned": pruned},
        [*lines, f"{len(pruned)} patterns {'to retire' if args.dry_run else 'retired'}"],
    )
    return 0


def _errors(args: argparse.Namespace) -> int:
    from tracedb.errors import InvalidInput, NotFound

    with one_tenant(args) as tenant:
        if args.fix:
            try:
                fingerprint = UUID(args.fix[0])
            except ValueError:
                raise InvalidInput.of("fingerprint", f"no UUID: {args.fix[0]}") from None
            if not tenant.set_error_fix(fingerprint, args.fix[1] or None):
                raise NotFound(f"no error {fingerprint}")
            answer(args, {"fingerprint": fingerprint}, [f"noted for {fingerprint}"])
            return 0
        found = tenant.error_patterns(args.since, unfixed=args.unfixed, max_rows=args.limit)
    lines = [line for each in found for line in _error_lines(each)]
    answer(args, [asdict(each) for each in found], lines or ["no errors"])
    return 0


def _error_lines(error: ErrorPattern) -> Iterator[str]:
    where = "  ".join(
        part for part in (error.operation, error.error_type, error.tool, error.agent_id) if part
    )
    yield f"{error.fingerprint}  {error.occurrences:,} times in {error.trace_count:,} traces"
    yield f"    {error.template or '(no message)'}"
    yield f"    {where}; last seen {error.last_seen_at:%Y-%m-%d %H:%M}"
    if error.known_fix:
        yield f"    fix: {error.known_fix}"


def _evaluate(args: argparse.Namespace) -> int:
    policy = _policy(args.policy)
    with one_tenant(args) as tenant:
        found = tenant.evaluate_routing(
            policy, args.since, args.until, reward=args.reward, min_effective=args.min_effective
        )
    assert found is not None  # only a graceful client has no answer
    answer(args, asdict(found), _value_lines(found, args.reward))
    return 0 if found.reason is None else REFUSED


def _policy(words: list[str]) -> Any:
    from tracedb.errors import InvalidInput

    if words == ["greedy"]:
        return "greedy"
    policy: dict[str, float] = {}
    for word in words:
        agent, _, probability = word.rpartition("=")
        try:
            policy[agent] = float(probability)
        except ValueError:
            agent = ""
        if not (agent and isfinite(policy[agent])):
            raise InvalidInput.of("policy", f"neither greedy nor AGENT=PROBABILITY: {word}")
    return policy


def _value_lines(value: RoutingValue, reward: str) -> Iterator[str]:
    yield f"{value.rewarded:,} of {value.decisions:,} decisions have a known {reward}"
    if value.logged_value is not None:
        yield f"as it was routed  {value.logged_value:.4f}"
    if value.reason is not None:
        yield f"no estimate: {value.reason}"
        return
    for name, estimate, low, high in (
        ("SNIPS", value.snips, value.snips_low, value.snips_high),
        ("IPS", value.ips, value.ips_low, value.ips_high),
    ):
        yield f"this policy       {estimate:.4f}  (95 %: {low:.4f} to {high:.4f}; {name})"
    yield f"worth {value.effective:.1f} decisions of its own"


def _rate(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate:.1%}"
