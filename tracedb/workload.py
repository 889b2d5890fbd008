"""Generates the demo's workload: two weeks of agent runs of three tenants, the same for a seed.

Every trace has a random generator of its own, seeded by its number, and ids made of its time and a
hash: the same `as_of` and seed give the same records, whoever generates them. Costs and tokens of a
trace cover its nested executions, as a recorder at the top would report them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

from tracedb.demo_tenants import PRICES, TENANTS, DemoTenant, Tool, Topic
from tracedb.records import Record

DAYS = 14
TRACES = 1300

# Eleven in the morning to four in the afternoon is busiest, and weekends are quiet.
_HOURS = (1, 1, 1, 1, 1, 2, 3, 5, 8, 10, 11, 12, 11, 12, 12, 11, 10, 8, 6, 5, 4, 3, 2, 1)
_WEEKEND_SHARE = 0.35
_INCIDENT_HOURS = (70, 62)  # before as_of: the payments service was down


_ROUTES = {"A": 0.34, "B": 0.28, "C": 0.28, "D": 0.10}
_CHANNELS = {"web": 0.5, "slack": 0.3, "api": 0.2}
_NESTED_AGENT = "research-agent"


@dataclass(slots=True)
class _Usage:
    """What the model calls of a trace took; the cost of a call may be unknown."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = Decimal(0)

    def add(self, calls: int, given: int, made: int, cost: Decimal | None) -> None:
        self.calls += calls
        self.input_tokens += given
        self.output_tokens += made
        self.cost_usd = None if cost is None or self.cost_usd is None else self.cost_usd + cost


@dataclass(slots=True)
class _Run:
    """A trace in the making: a clock that the parts move on, and the parts so far."""

    rng: Random
    key: str
    agent: str
    model: str
    topic: Topic
    number: str
    started_at: datetime
    is_incident: bool
    now: datetime = field(init=False)
    records: list[Record] = field(default_factory=list)
    usage: _Usage = field(default_factory=_Usage)
    failure: tuple[str, str, str] | None = None  # status, error type, message
    ids: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.now = self.started_at

    @property
    def trace_id(self) -> UUID:
        return _uuid7(self.started_at, self.key)

    def part(self, type: str, seconds: float, **fields: Any) -> str:
        """Append a part that takes this long from now on; its span id."""
        span_id = _digest(f"{self.key}/{next(self.ids)}")[:16]
        started_at = self.now
        self.now += timedelta(microseconds=round(seconds * 1_000_000))
        record = {"type": type, "trace_id": self.trace_id, "span_id": span_id, **fields}
        self.records.append({"started_at": started_at, "ended_at": self.now, **record})
        return span_id

    def llm(self, given: int, *, parent: str | None = None, text: str | None = None) -> str:
        """A call of the model, with a long tail of latency and the occasional refusal."""
        made = max(8, round(self.rng.lognormvariate(4.6, 0.7)))
        seconds = 0.25 + made * self.rng.lognormvariate(-4.3, 0.5)
        provider, *_ = PRICES[self.model]
        cost = _cost(self.model, given, made)
        if self.rng.random() < 0.012:
            self.fail("error", "rate_limited", f"{provider}: 429 too many requests")
        status, error_type, message = self.failure or ("ok", None, None)
        if status == "ok":
            self.usage.add(1, given, made, cost)
        return self.part(
            "span",
            seconds,
            parent_span_id=parent,
            operation_type="llm",
            name="chat",
            agent_id=self.agent,
            provider=provider,
            request_model=self.model,
            input_tokens=given if status == "ok" else None,
            output_tokens=made if status == "ok" else None,
            cost_usd=cost if status == "ok" else None,
            status=status,
            error_type=error_type,
            status_message=message,
            output=text if status == "ok" else None,
        )

    def fail(self, status: str, error_type: str, message: str) -> None:
        self.failure = (status, error_type, message)


def generate(as_of: datetime, seed: int = 0) -> Iterator[tuple[str, Record]]:
    """The records of the two weeks before `as_of`, each with its tenant's external id."""
    for number in range(TRACES):
        rng = Random(f"{seed}/{number}")
        (tenant,) = rng.choices(TENANTS, [tenant.share for tenant in TENANTS])
        for record in _request(rng, tenant, f"{seed}/{number}", _moment(rng, as_of), as_of):
            yield tenant.external_id, record


def _moment(rng: Random, as_of: datetime) -> datetime:
    """A time in the two weeks before `as_of`, likelier in working hours."""
    while True:
        at = as_of - timedelta(seconds=120 + rng.random() * (DAYS * 86_400 - 120))
        likelihood = _HOURS[at.hour] / max(_HOURS)
        if at.weekday() >= 5:
            likelihood *= _WEEKEND_SHARE
        if rng.random() < likelihood:
            # ids are clocks of whole milliseconds
            return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _request(
    rng: Random, tenant: DemoTenant, key: str, at: datetime, as_of: datetime
) -> list[Record]:
    """All records of one request, its nested executions among them."""
    agent, model, failure_rate = rng.choices(tenant.agents, (0.65, 0.35))[0]
    (route,) = rng.choices(list(_ROUTES), list(_ROUTES.values()))
    topic = rng.choice(tenant.topics)
    first, last = (as_of - timedelta(hours=hours) for hours in _INCIDENT_HOURS)
    run = _Run(
        rng, key, agent, model, topic, str(rng.randrange(1000, 9999)), at, first <= at < last
    )
    _route(run, tenant, route)
    documents: list[str] = []
    if route in "BD":
        documents = _retrieve(run)
    if route in "CD":
        _work(run)
    if route == "D" and run.failure is None:
        _delegate(run)
    if run.failure is None:
        if rng.random() < failure_rate:
            run.fail("error", "answer_rejected", "the answer failed the policy check")
        elif rng.random() < 0.01:
            run.fail("timeout", "deadline_exceeded", "no answer within 30 s")
    if run.failure is None or run.failure[1] == "answer_rejected":
        failure, run.failure = run.failure, None
        run.llm(_given(rng, route), text=topic.answer.format(n=run.number))
        run.failure = run.failure or failure
    elif run.failure[0] == "timeout":
        run.now += timedelta(seconds=30)
    session = rng.randrange(400)
    header = _header(run) | {
        "name": topic.intent.replace("_", " "),
        "session_id": f"session-{session}",
        "user_id": f"user-{session % 60}",
        "source": "demo",
        "channel": rng.choices(list(_CHANNELS), list(_CHANNELS.values()))[0],
        "message_type": "question",
        "intent": {"name": topic.intent, "confidence": round(0.6 + 0.4 * rng.random(), 2)},
        "route": route,
        "docs_retrieved": len(documents) if documents else None,
        "doc_sources": documents,
        "research_triggered": route == "D",
        "kb_enrichment_triggered": route == "B" and rng.random() < 0.1,
        "tags": ["demo", *(["incident"] if run.is_incident else [])],
        "context": {"app_version": "2.4.1" if at < as_of - timedelta(days=5) else "2.5.0"},
        "prompt": topic.question.format(n=run.number),
    }
    return [header, *run.records]


def _header(run: _Run) -> dict[str, Any]:
    """The record of the trace itself, once its parts are known."""
    status, error_type, message = run.failure or ("ok", None, None)
    return {
        "type": "trace",
        "trace_id": run.trace_id,
        "agent_id": run.agent,
        "status": status,
        "error_type": error_type,
        "error_message": message,
        "started_at": run.started_at,
        "ended_at": run.now,
        "llm_calls": run.usage.calls,
        "input_tokens": run.usage.input_tokens,
        "output_tokens": run.usage.output_tokens,
        "cost_usd": run.usage.cost_usd,
        "response": run.topic.answer.format(n=run.number) if status == "ok" else None,
    }


def _route(run: _Run, tenant: DemoTenant, route: str) -> None:
    """The router's decision, with the agents it could have taken."""
    rng = run.rng
    others = sorted({agent for agent, *_ in tenant.agents} - {run.agent})
    score = 0.55 + 0.44 * rng.random()
    rest = 1 - score
    candidates = [{"agent": run.agent, "score": round(score, 3), "probability": round(score, 3)}]
    for other in others:
        share = round(rest / len(others), 3)
        candidates.append({"agent": other, "score": share, "probability": share})
    run.part(
        "routing_decision",
        0.004 + rng.random() * 0.03,
        selected_agent=run.agent,
        reason=f"{run.topic.intent.replace('_', ' ')} is handled by {run.agent}, route {route}",
        trigger_confidence=round(score, 3),
        context_confidence=round(0.5 + rng.random() / 2, 3),
        capability_confidence=round(0.6 + 0.4 * rng.random(), 3),
        historical_confidence=round(0.4 + 0.6 * rng.random(), 3),
        total_confidence=round(score, 3),
        candidates=candidates,
        selection_probability=round(score, 3),
        cache_hit=rng.random() < 0.2,
    )


def _retrieve(run: _Run) -> list[str]:
    """A retrieval with its embedding; the documents found."""
    found = list(run.topic.documents)
    began = run.now
    given = run.rng.randrange(12, 60)
    # who keeps the questions in-house keeps them there for the search as well
    model = "bge-m3" if PRICES[run.model][1] is None else "text-embedding-3-small"
    cost = _cost(model, given, 0)
    run.now += timedelta(milliseconds=2)
    run.part(
        "span",
        0.03 + run.rng.lognormvariate(-3, 0.6),
        operation_type="embedding",
        name="question",
        provider=PRICES[model][0],
        request_model=model,
        input_tokens=given,
        output_tokens=0,
        cost_usd=cost,
    )
    run.usage.add(1, given, 0, cost)
    run.now += timedelta(seconds=0.01 + run.rng.lognormvariate(-3.5, 0.8))
    ended, run.now = run.now, began
    retrieval = run.part(
        "span",
        (ended - began).total_seconds(),
        operation_type="retrieval",
        name="knowledge base",
        input=run.topic.question.format(n=run.number),
        output=found,
    )
    # the embedding is part of it
    run.records[-2] = {**run.records[-2], "parent_span_id": retrieval}
    return found


def _work(run: _Run) -> None:
    """The agent's loop, a step a tool."""
    for n, tool in enumerate(run.topic.tools, start=1):
        began, place = run.now, len(run.records)
        step = run.part("span", 0, operation_type="agent", name=f"step {n}", agent_id=run.agent)
        _step(run, step, tool)
        run.records[place] = {**run.records[place], "started_at": began, "ended_at": run.now}
        if run.failure:
            return


def _step(run: _Run, step: str, tool: Tool) -> None:
    """The model asks for a tool, hooks look at the call and the result, a service answers."""
    run.llm(_given(run.rng, "C"), parent=step, text=f"calling {tool[0]}")
    if run.failure is None:
        _guard(run, step, tool[0])
    if run.failure is None:
        _call_tool(run, step, tool)
    if run.failure is None:
        is_changed = run.rng.random() < 0.15
        run.part(
            "hook",
            0.002 + run.rng.random() * 0.008,
            parent_span_id=step,
            hook_type="post_tool_use",
            name="redact-output",
            tool_name=tool[0],
            script="hooks/redact.py",
            outcome="modified" if is_changed else "allowed",
            modifications={"fields": ["email"]} if is_changed else {},
            exit_code=0,
        )


def _guard(run: _Run, parent: str, tool: str) -> None:
    """The hook before a tool call, which may forbid it."""
    is_blocked = run.rng.random() < 0.02
    run.part(
        "hook",
        0.003 + run.rng.lognormvariate(-5, 0.7),
        parent_span_id=parent,
        hook_type="pre_tool_use",
        name="policy-guard",
        tool_name=tool,
        script="hooks/guard.py",
        intelligence_functions=["check_limits", "check_scope"],
        quality_gates={"limits": not is_blocked, "scope": True},
        outcome="blocked" if is_blocked else "allowed",
        exit_code=2 if is_blocked else 0,
    )
    if is_blocked:
        run.fail("error", "blocked_by_hook", f"policy-guard does not allow {tool}")


def _call_tool(run: _Run, parent: str, tool: Tool) -> None:
    """A tool span around its endpoint call, which may fail and be repeated."""
    name, service, method, path = tool
    rng = run.rng
    is_down = run.is_incident and service == "payments"
    seconds = 0.04 + rng.lognormvariate(-2.2, 0.9)
    retries, status = 0, "ok"
    code: int | None = 200
    if is_down or rng.random() < 0.06:
        retries = 3 if is_down else rng.randrange(1, 4)
        seconds += 0.8 * retries
        if is_down or rng.random() < 0.35:
            status, code = rng.choice((("error", 503), ("error", 500), ("timeout", None)))
            seconds += 10 if status == "timeout" else 0
    error = f"{service}: {'no answer in 10 s' if code is None else f'HTTP {code}'}"
    began = run.now
    call = run.part(
        "endpoint_call",
        seconds,
        service=service,
        method=method,
        path=path,
        status_code=code,
        retries=retries,
        status=status,
        error_type=None if status == "ok" else "upstream_unavailable",
        error_message=None if status == "ok" else f"{error} after {retries} retries",
        request={"reference": run.number},
        response={"reference": run.number, "found": True} if status == "ok" else None,
    )
    ended, run.now = run.now + timedelta(milliseconds=1), began
    span = run.part(
        "span",
        (ended - began).total_seconds(),
        parent_span_id=parent,
        operation_type="tool",
        tool_name=name,
        name=name,
        agent_id=run.agent,
        status=status,
        error_type=None if status == "ok" else "tool_error",
        status_message=None if status == "ok" else error,
        input={"reference": run.number},
        output={"found": True} if status == "ok" else None,
        attributes={"call": call},
    )
    run.records[-2] = {**run.records[-2], "parent_span_id": span}
    if status != "ok":
        run.fail(status, "tool_failed", f"{name}: {error}")


def _delegate(run: _Run) -> None:
    """Nested executions: research agents that run beside each other, each a trace of its own."""
    began = run.now
    supervisor = run.part("span", 0, operation_type="agent", name="research", agent_id=run.agent)
    place = len(run.records) - 1
    ended = began
    for n in range(run.rng.randrange(1, 4)):
        started_at = began + timedelta(milliseconds=5 * (n + 1))
        nested = replace(
            run,
            key=f"{run.key}/{n}",
            agent=_NESTED_AGENT,
            model="gpt-4o-mini",
            started_at=started_at,
            records=[],
            usage=_Usage(),
            ids=itertools.count(),
        )
        _retrieve(nested)
        nested.llm(_given(run.rng, "D"), text="notes on " + run.topic.intent)
        header = _header(nested) | {
            "name": f"research {run.topic.intent.replace('_', ' ')}",
            "root_trace_id": run.trace_id,
            "parent_trace_id": run.trace_id,
            "parent_span_id": supervisor,
            "source": "demo",
            "tags": ["demo"],
        }
        run.records += [header, *nested.records]
        usage = nested.usage
        run.usage.add(usage.calls, usage.input_tokens, usage.output_tokens, usage.cost_usd)
        ended = max(ended, nested.now)
    run.now = ended + timedelta(milliseconds=3)
    run.records[place] = {**run.records[place], "ended_at": run.now}


def _given(rng: Random, route: str) -> int:
    """Input tokens of a call: a long tail, more where there is more to read."""
    return round(rng.lognormvariate({"A": 6.3, "B": 7.4, "C": 7.0, "D": 7.9}[route], 0.5))


def _cost(model: str, given: int, made: int) -> Decimal | None:
    _, for_input, for_output = PRICES[model]
    if for_input is None or for_output is None:
        return None
    return (given * for_input + made * for_output) / 1_000_000


def _digest(key: str) -> str:
    return hashlib.sha256(f"tracedb demo {key}".encode()).hexdigest()


def _uuid7(at: datetime, key: str) -> UUID:
    """The id of a time and a key, as tracedb.uuid_from_key makes it: a retry makes the same."""
    digits = _digest(key)
    milliseconds = round(at.timestamp() * 1000)
    variant = "89ab"[int(digits[0], 16) % 4]
    return UUID(f"{milliseconds:012x}7{digits[1:4]}{variant}{digits[4:19]}")
