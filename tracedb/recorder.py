"""The recording calls, by their names: each makes a record of its arguments and hands it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import wraps
from hashlib import md5
from os import register_at_fork
from random import Random
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

Fields = Mapping[str, Any]
TenantId = UUID | str | None
P = ParamSpec("P")
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

# Not the module's own, which a program may seed; a child must not repeat its parent's ids.
_random = Random()
register_at_fork(after_in_child=_random.seed)


def _quiet(call: Callable[P, T]) -> Callable[P, T | None]:
    """The call, refused and counted if its arguments make no sense at all."""

    @wraps(call)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return call(*args, **kwargs)
        except Exception:
            cast(Recorder, args[0]).refuse()
            return None

    return quiet


class Recorder:
    """Calls that record. None of them waits, raises, or keeps a reference to what it is given.

    Each takes the fields of its record type (`tracedb.record_types()`) as keywords, or as a mapping
    in its first argument, or both; `tenant_id` names the tenant if it is not the writer's own. Ids
    and times that are missing are made in the call. What comes back is the record's id, or None if
    it was not accepted. A record that breaks a rule is accepted, and becomes a dead letter.
    """

    def record(self, record: dict[str, Any], tenant_id: TenantId = None) -> bool:
        """Take a record as it is (see `tracedb.ingest`); False if it was not accepted."""
        raise NotImplementedError

    def refuse(self) -> None:
        """Count a call that no record could be made of."""
        raise NotImplementedError

    def tenant_of(self, record: Fields, tenant_id: TenantId) -> UUID | None:
        """Whose record it is: as the call says, or the record, or the writer."""
        raise NotImplementedError

    @_quiet
    def save_trace(
        self,
        trace: Fields | None = None,
        *,
        tokens_used: int | None = None,
        estimated_cost_usd: Any = None,
        tenant_id: TenantId = None,
        **fields: Any,
    ) -> UUID | None:
        """Record a request or an agent's execution; its trace_id.

        `request_id` is its external_id. `estimated_cost_usd` is its cost if there is no `cost_usd`.
        What of the total `tokens_used` is not given as input_tokens or output_tokens counts as
        input, so that sums are right; the total is kept in `context.tokens_used`.
        """
        record = _record("trace", trace, fields)
        if "request_id" in record:
            record.setdefault("external_id", record.pop("request_id"))
        estimate = record.pop("estimated_cost_usd", estimated_cost_usd)
        if estimate is not None and record.get("cost_usd") is None:
            record["cost_usd"] = estimate
        total = record.pop("tokens_used", tokens_used)
        if total is not None:
            _count_tokens(record, total)
        at = _time(record, "started_at")
        trace_id = record.get("trace_id")
        if trace_id is None:
            external_id = record.get("external_id")
            # made of its key, so that a retry has the same
            key = external_id and f"{self.tenant_of(record, tenant_id)}/{external_id}"
            trace_id = record["trace_id"] = id_at(at, key)
        return _uuid(trace_id) if self.record(record, tenant_id) else None

    @_quiet
    def save_span(
        self, span: Fields | None = None, *, tenant_id: TenantId = None, **fields: Any
    ) -> str | None:
        """Record a call of a model or tool, a retrieval, a step of an agent; its span_id."""
        return self._part(_record("span", span, fields), tenant_id)

    @_quiet
    def save_routing_decision(
        self, decision: Fields | None = None, *, tenant_id: TenantId = None, **fields: Any
    ) -> str | None:
        """Record which agent was chosen, and from which candidates; its span_id."""
        return self._part(_record("routing_decision", decision, fields), tenant_id)

    @_quiet
    def save_hook(
        self, hook: Fields | None = None, *, tenant_id: TenantId = None, **fields: Any
    ) -> str | None:
        """Record one run of a hook; its span_id."""
        return self._part(_record("hook", hook, fields), tenant_id)

    @_quiet
    def save_endpoint_call(
        self, call: Fields | None = None, *, tenant_id: TenantId = None, **fields: Any
    ) -> str | None:
        """Record one call of a service; its span_id."""
        return self._part(_record("endpoint_call", call, fields), tenant_id)

    @_quiet
    def save_payload(
        self, payload: Fields | None = None, *, tenant_id: TenantId = None, **fields: Any
    ) -> bool:
        """Record a text or document of a trace or span; whether it was accepted."""
        record = _record("payload", payload, fields)
        _time(record, "recorded_at")
        return self.record(record, tenant_id)

    @_quiet
    def log_platform_event(
        self,
        event_type: str | None = None,
        event_category: str | None = None,
        event_data: Fields | None = None,
        *,
        tenant_id: TenantId = None,
        **fields: Any,
    ) -> UUID | None:
        """Record anything that happened (`time`: its occurred_at); its event_id."""
        given = {"event_type": event_type, "event_category": event_category}
        return self._event("platform_event", given | {"event_data": event_data} | fields, tenant_id)

    @_quiet
    def log_cost_event(
        self,
        cost_type: str | None = None,
        cost_usd: Any = None,
        service: str | None = None,
        *,
        tenant_id: TenantId = None,
        **fields: Any,
    ) -> UUID | None:
        """Record what a tenant was charged for (cost None: unknown); its event_id."""
        given = {"cost_type": cost_type, "cost_usd": cost_usd, "service": service}
        return self._event("cost_event", given | fields, tenant_id)

    @_quiet
    def log_agent_execution(
        self,
        agent_id: str | None = None,
        success: bool | None = None,
        *,
        tenant_id: TenantId = None,
        **fields: Any,
    ) -> UUID | None:
        """Record a run of an agent, as it was judged; its event_id."""
        given = {"agent_id": agent_id, "success": success}
        return self._event("agent_execution", given | fields, tenant_id)

    def save_traces_batch(
        self, traces: Iterable[Fields], *, tenant_id: TenantId = None
    ) -> list[UUID | None]:
        """`save_trace` for each of them; their trace_ids, None where one was not accepted."""
        ids: list[UUID | None] = []
        try:
            for trace in traces:
                ids.append(self.save_trace(trace, tenant_id=tenant_id))
        except Exception:
            self.refuse()
        return ids

    def _part(self, record: dict[str, Any], tenant_id: TenantId) -> str | None:
        span_id = record.get("span_id")
        if span_id is None:
            span_id = record["span_id"] = new_span_id()
        if record.get("started_at") is None:
            record["started_at"] = datetime.now(UTC).isoformat()
        return str(span_id) if self.record(record, tenant_id) else None

    def _event(self, kind: str, fields: dict[str, Any], tenant_id: TenantId) -> UUID | None:
        record = {"type": kind, **fields}
        if "time" in record:
            record.setdefault("occurred_at", record.pop("time"))
        at = _time(record, "occurred_at")
        event_id = record.get("event_id")
        if event_id is None:
            key = record.get("event_key")
            if key is None:
                event_id = record["event_id"] = id_at(at, None)
            else:
                # the database makes it, and so
                event_id = id_at(at, f"{self.tenant_of(record, tenant_id)}/{kind}/{key}")
        return _uuid(event_id) if self.record(record, tenant_id) else None


def new_trace_id(at: datetime) -> UUID:
    """A random UUIDv7 of this time."""
    return UUID(id_at((at - _EPOCH) // _MILLISECOND, None))


def new_span_id() -> str:
    """Eight random bytes, not all 0, as hex digits."""
    return f"{_random.getrandbits(63) + 1:016x}"


def _record(kind: str, given: Fields | None, fields: dict[str, Any]) -> dict[str, Any]:
    """A record of the given fields; `fields` is the call's own dictionary."""
    record = fields if given is None else {**given, **fields}
    record["type"] = kind
    return record


def _count_tokens(record: dict[str, Any], total: int) -> None:
    """Split a total into input and output, as far as it is known."""
    known_input, known_output = record.get("input_tokens"), record.get("output_tokens")
    if known_output is None:
        known_output = 0 if known_input is None else max(total - known_input, 0)
        record["output_tokens"] = known_output
    if known_input is None:
        record["input_tokens"] = max(total - known_output, 0)
    record["context"] = {**(record.get("context") or {}), "tokens_used": total}


def _time(record: dict[str, Any], field: str) -> int:
    """The milliseconds since 1970 of a time of the record, which is now if it has none."""
    at = record.get(field)
    if at is None:
        at = datetime.now(UTC)
        record[field] = at.isoformat()
    try:
        if isinstance(at, str):
            at = datetime.fromisoformat(at)
        return (at - _EPOCH) // _MILLISECOND
    except (TypeError, ValueError):
        # no time at all, as the database will say
        return (datetime.now(UTC) - _EPOCH) // _MILLISECOND


def id_at(milliseconds: int, key: str | None) -> str:
    """The UUIDv7 of a time: random, or the one that `tracedb.uuid_from_key` makes of a key."""
    clock = f"{min(max(milliseconds, 0), 2**48 - 1):012x}7"
    if key is None:
        bits = _random.getrandbits(74)
        return f"{clock}{bits >> 62:03x}{(bits & (2**62 - 1)) | 2**63:016x}"
    digits = md5(key.encode(errors="replace"), usedforsecurity=False).hexdigest()
    return f"{clock}{digits[:3]}{'89ab'[int(digits[30:], 16) % 4]}{digits[3:18]}"


def _uuid(given: object) -> UUID | None:
    """An id as it is stored; None for one that the database will refuse."""
    if isinstance(given, UUID):
        return given
    try:
        return UUID(str(given))
    except ValueError:
        return None
