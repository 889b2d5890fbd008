"""Tracing for code that has none yet: `trace`, `span` and `traced`, sync and async.

What is current is told by a context variable: a task of asyncio and `asyncio.to_thread` inherit it,
a thread of one's own begins without. Each trace and span is recorded when it ends, with times of
one reading of the wall clock and the monotonic clock. Nothing here raises into the traced code, and
what that code raises is recorded and goes on unchanged.
"""

from __future__ import annotations

import concurrent.futures
import logging
from asyncio import CancelledError
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from time import perf_counter_ns
from typing import Any, ClassVar, Self, TypeVar, overload
from uuid import UUID

from tracedb import writer as writers
from tracedb.recorder import Recorder, TenantId, new_span_id, new_trace_id

log = logging.getLogger("tracedb")

F = TypeVar("F", bound=Callable[..., Any])

# as labels in the schema: at most 1024 bytes
_LONGEST_NAME = 256
_LONGEST_MESSAGE = 10_000
_CANCELLED = (CancelledError, concurrent.futures.CancelledError)


class _Clock:
    """One reading of the wall clock, and what has passed since by the monotonic one."""

    def __init__(self) -> None:
        self._at = datetime.now(UTC)
        self._ticks = perf_counter_ns()

    def now(self) -> datetime:
        return self._at + timedelta(microseconds=(perf_counter_ns() - self._ticks) // 1000)


class Activity:
    """A trace or a span while it lasts. Use it once, in a `with`.

    `trace_id` and `span_id` (None for a trace) are known from its beginning.
    """

    _message_field: ClassVar[str]

    def __init__(
        self, name: str, writer: Recorder | None, tenant_id: TenantId, fields: dict[str, Any]
    ) -> None:
        self.name = name
        self.trace_id: UUID | None = None
        self.span_id: str | None = None
        self._root_trace_id: UUID | None = None
        self._writer = writer
        self._tenant_id = tenant_id
        self._fields = fields
        self._outer: Activity | None = None
        self._clock: _Clock
        self._started_at: datetime

    def set(self, **fields: Any) -> None:
        """Add fields to the record, such as `input_tokens=812, cost_usd="0.0021"`."""
        self._fields.update(fields)

    def __enter__(self) -> Self:
        outer = self._outer = self._within(_current.get())
        if outer is not None:
            self._writer = self._writer or outer._writer
            self._tenant_id = self._tenant_id or outer._tenant_id
        self._clock = _Clock() if outer is None else outer._clock
        self._started_at = self._clock.now()
        self._begin(outer)
        _current.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _current.set(self._outer)
        try:
            self._save(self._writer or writers.get_writer(), self._record(error))
        except Exception as failure:
            log.warning("tracedb: not recorded, because of %s", type(failure).__name__)

    def _within(self, outer: Activity | None) -> Activity | None:
        return outer

    def _begin(self, outer: Activity | None) -> None:
        raise NotImplementedError

    def _save(self, writer: Recorder, record: dict[str, Any]) -> None:
        raise NotImplementedError

    def _record(self, error: BaseException | None) -> dict[str, Any]:
        record = {
            "name": str(self.name)[:_LONGEST_NAME],
            "status": "ok",
            "started_at": self._started_at.isoformat(),
            "ended_at": self._clock.now().isoformat(),
            **{name: item for name, item in self._fields.items() if item is not None},
            "trace_id": str(self.trace_id),
        }
        if self._outer is not None and self._outer.span_id is not None:
            record["parent_span_id"] = self._outer.span_id
        if error is not None:
            record["status"] = _status(error)
            record["error_type"] = _type(error)
            record[self._message_field] = _message(error)
        return record


class Trace(Activity):
    """A request, or within another trace the execution of an agent; `trace` makes one."""

    _message_field = "error_message"

    def _begin(self, outer: Activity | None) -> None:
        self.trace_id = new_trace_id(self._started_at)
        self._root_trace_id = self.trace_id if outer is None else outer._root_trace_id

    def _save(self, writer: Recorder, record: dict[str, Any]) -> None:
        if self._outer is not None:
            record["parent_trace_id"] = str(self._outer.trace_id)
            record["root_trace_id"] = str(self._root_trace_id)
        writer.save_trace(record, tenant_id=self._tenant_id)


class Span(Activity):
    """A step of a trace; `span` makes one. Without a trace it makes one of the same name."""

    _message_field = "status_message"
    _own_trace: Trace | None = None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        if self._own_trace is not None:
            self._own_trace.__exit__(kind, error, traceback)

    def _within(self, outer: Activity | None) -> Activity | None:
        if outer is None:
            self._own_trace = Trace(self.name, self._writer, self._tenant_id, {})
            outer = self._own_trace.__enter__()
        return outer

    def _begin(self, outer: Activity | None) -> None:
        assert outer is not None
        self.trace_id, self._root_trace_id = outer.trace_id, outer._root_trace_id
        self.span_id = new_span_id()

    def _save(self, writer: Recorder, record: dict[str, Any]) -> None:
        record = {"operation_type": "other", **record, "span_id": self.span_id}
        writer.save_span(record, tenant_id=self._tenant_id)


_current: ContextVar[Activity | None] = ContextVar("tracedb_current", default=None)


def trace(
    name: str, *, writer: Recorder | None = None, tenant_id: TenantId = None, **fields: Any
) -> Trace:
    """Trace a request: `with tracedb.trace("checkout", user_id="u1") as t:`.

    `fields` are those of a trace (`user_id`, `session_id`, `agent_id`, `prompt`, ...; see
    `tracedb.record_types()`). Within another trace it is an execution nested in it. Recorded by
    `writer`, else by that of the trace around it, else by `tracedb.get_writer()`; the tenant
    likewise.
    """
    return Trace(name, writer, tenant_id, fields)


def span(
    name: str, *, writer: Recorder | None = None, tenant_id: TenantId = None, **fields: Any
) -> Span:
    """Trace a step: `with tracedb.span("search", operation_type="retrieval") as s:`.

    `fields` are those of a span (`operation_type`, `request_model`, `input`, ...).
    """
    return Span(name, writer, tenant_id, fields)


def current_span() -> Activity:
    """The innermost span or trace, to `set` fields of; one that nobody records if there is none."""
    return _current.get() or Span("", None, None, {})


@overload
def traced(function: F, /) -> F: ...
@overload
def traced(
    *,
    name: str | None = None,
    operation_type: str | None = None,
    writer: Recorder | None = None,
    tenant_id: TenantId = None,
    **fields: Any,
) -> Callable[[F], F]: ...
def traced(
    function: Any = None,
    /,
    *,
    name: str | None = None,
    operation_type: str | None = None,
    writer: Recorder | None = None,
    tenant_id: TenantId = None,
    **fields: Any,
) -> Any:
    """Trace each call of a function, a coroutine function or a generator of either kind.

    A call within a trace is a span of it. Another is a trace, with a span in it if there is an
    `operation_type`. Arguments and results are not recorded: `current_span().set(input=...)`.
    """

    def decorate(function: Any) -> Any:
        def begin() -> Activity:
            called = name or function.__qualname__
            if operation_type is None and _current.get() is None:
                return Trace(called, writer, tenant_id, dict(fields))
            return Span(called, writer, tenant_id, {"operation_type": operation_type, **fields})

        return wraps(function)(_wrapper(function, begin))

    return decorate if function is None else decorate(function)


def _wrapper(function: Callable[..., Any], begin: Callable[[], Activity]) -> Callable[..., Any]:
    """A function of the same kind that does the same within an activity."""
    if isasyncgenfunction(function):

        async def generate_async(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            generator = function(*args, **kwargs)
            with _Generating(begin()) as inside:
                resume, value = generator.asend, None
                while True:
                    try:
                        with inside:
                            item = await resume(value)
                    except StopAsyncIteration:
                        return
                    try:
                        resume, value = generator.asend, (yield item)
                    except GeneratorExit:
                        with inside:
                            await generator.aclose()
                        raise
                    except BaseException as error:
                        resume, value = generator.athrow, error

        return generate_async

    if isgeneratorfunction(function):

        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator = function(*args, **kwargs)
            with _Generating(begin()) as inside:
                resume, value = generator.send, None
                while True:
                    try:
                        with inside:
                            item = resume(value)
                    except StopIteration as end:
                        return end.value
                    try:
                        resume, value = generator.send, (yield item)
                    except GeneratorExit:
                        with inside:
                            generator.close()
                        raise
                    except BaseException as error:
                        resume, value = generator.throw, error

        return generate

    if iscoroutinefunction(function):

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with begin():
                return await function(*args, **kwargs)

        return call_async

    def call(*args: Any, **kwargs: Any) -> Any:
        with begin():
            return function(*args, **kwargs)

    return call


class _Inside:
    """What is current while a generator runs, which is not so between its items."""

    def __init__(self, activity: Activity) -> None:
        self._current: Activity | None = activity
        self._outside: Activity | None = None

    def __enter__(self) -> None:
        self._outside = _current.get()
        _current.set(self._current)

    def __exit__(self, *_: object) -> None:
        self._current = _current.get()
        _current.set(self._outside)


class _Generating:
    """The life of an activity that its generator's consumer does not see."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    def __enter__(self) -> _Inside:
        outside = _current.get()
        self._activity.__enter__()
        _current.set(outside)
        return _Inside(self._activity)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        outside = _current.get()
        self._activity.__exit__(kind, error, traceback)
        _current.set(outside)


def _status(error: BaseException) -> str:
    if isinstance(error, _CANCELLED) or not isinstance(error, Exception):
        return "cancelled"
    return "timeout" if isinstance(error, TimeoutError) else "error"


def _type(error: BaseException) -> str:
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    return name[:_LONGEST_NAME]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_LONGEST_MESSAGE]
    except Exception:
        return "(unreadable)"
