"""A user's redaction function, which may raise, hang or return nonsense, and harms nothing by it.

`RedactionHook(function)` runs `function(record: dict) -> dict` in a daemon thread of its own, on
records that are packed already, one at a time and in the order of their submission:

    hook = RedactionHook(function, limits, timeout=1.0, capacity=10_000)
    accepted = hook.submit(text, done)   # never blocks, never raises; False: full or closed
    whole = hook.close(timeout)          # False: what was left had to be masked
    hook.after_fork()                    # in the child: an empty hook without threads
    hook.counts()                        # HookCounts(passed, masked)

For each accepted text `done(text)` is called exactly once, in the order of submission, by a thread
of the hook's or by the one that closes it, with no lock of the hook's held. (Where no thread can be
started, as at the end of the interpreter, `submit` itself calls it, with a masked record.) Only
then may the text be spooled or sent: until then a record is in memory only.

It fails closed. When the function raises, takes longer than `timeout`, returns anything but a
record of the same type, or returns what cannot be packed, `done` gets the masked record
(`tracedb/masking.py`). A thread that hangs is left behind and another takes its place; while three
hang no more are started and every record is masked. Of a failure its kind is logged, once.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Condition, Lock, Thread
from time import monotonic
from typing import Any

from tracedb.errors import InvalidInput
from tracedb.masking import masked
from tracedb.pack import Limits, pack
from tracedb.records import as_json

logger = logging.getLogger("tracedb")

Function = Callable[[dict[str, Any]], Mapping[str, Any]]
Done = Callable[[str], object]

NOTE = "[redacted: the redaction hook failed]"
MAX_HUNG = 3


@dataclass(frozen=True, slots=True)
class HookCounts:
    """How many records the function let through, and how many were masked instead."""

    passed: int
    masked: int


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    text: str
    done: Done


class RedactionHook:
    """See the module's description."""

    def __init__(
        self,
        function: Function,
        limits: Limits | None = None,
        *,
        timeout: float = 1.0,
        capacity: int = 10_000,
    ) -> None:
        self._function = function
        self._limits = limits or Limits()
        self._timeout = timeout
        self._capacity = capacity
        self._reset()

    def _reset(self) -> None:
        lock = Lock()
        self._lock = lock
        # for the worker: there is an item; for the watchdog: look again; for close: all is done
        self._more, self._look, self._settled = Condition(lock), Condition(lock), Condition(lock)
        self._queue: deque[_Item] = deque()
        self._unsettled = 0
        self._closed = False
        self._is_watched = False
        self._is_watch_idle = False
        # The worker of another generation than this was left behind.
        self._generation = 0
        self._has_worker = False
        self._current: _Item | None = None
        self._since = 0.0
        self._hung = 0
        # that all is well is no news
        self._told = {""}
        self._passed = self._masked = 0

    def submit(self, text: str, done: Done) -> bool:
        """Redact a packed record in the background, then call `done` with what became of it."""
        with self._lock:
            if self._closed or self._unsettled >= self._capacity:
                return False
            self._unsettled += 1
            self._queue.append(_Item(text, done))
            if self._is_watched:
                self._more.notify()
                if not self._has_worker:
                    self._look.notify()
                return True
            self._is_watched = True
        if not _start(self._watch):
            self._is_watched = False
            self._mask_the_rest()
        return True

    def counts(self) -> HookCounts:
        """What became of the records so far."""
        with self._lock:
            return HookCounts(self._passed, self._masked)

    def close(self, timeout: float) -> bool:
        """Accept nothing more; after `timeout` seconds mask what is left. False if anything was."""
        with self._lock:
            self._closed = True
            self._more.notify_all()
            self._look.notify_all()
            if self._settled.wait_for(lambda: self._unsettled == 0, timeout):
                return True
        self._mask_the_rest()
        return False

    def after_fork(self) -> None:
        """Forget, in the child of a fork, the parent's records, threads and locks."""
        self._reset()

    # the worker: a thread that runs the user's function

    def _work(self, generation: int) -> None:
        while item := self._next(generation):
            text, trouble = self._apply(item.text)
            with self._lock:
                if self._generation != generation:
                    # too late: the watchdog has dealt with it
                    self._hung -= 1
                    self._look.notify()
                    return
                self._current = None
            self._settle(item, text, trouble)

    def _next(self, generation: int) -> _Item | None:
        with self._lock:
            while self._generation == generation:
                if self._queue:
                    self._current, self._since = self._queue.popleft(), monotonic()
                    if self._is_watch_idle:
                        self._look.notify()
                    return self._current
                if self._closed:
                    break
                self._more.wait()
            return None

    def _apply(self, text: str) -> tuple[str, str]:
        """The redacted record, or the masked one and the kind of the failure."""
        try:
            record = json.loads(text)
            kind = record.get("type")
            result = self._function(record)
            if not isinstance(result, Mapping) or result.get("type") != kind:
                return _mask(text), "returned no record of the same type"
            return pack(result, self._limits).text, ""
        except InvalidInput:
            return _mask(text), "returned what is not JSON"
        except BaseException as error:  # SystemExit as well: it would end the thread
            return _mask(text), f"raised {type(error).__name__}"

    # the watchdog: a thread that masks what the worker does not get done

    def _watch(self) -> None:
        while item := self._overdue():
            self._settle(item, _mask(item.text), f"takes longer than {self._timeout} s")

    def _overdue(self) -> _Item | None:
        """Wait for a record that the function has had for too long; None when all is over."""
        with self._lock:
            while self._current or self._queue or not self._closed:
                if self._current:
                    left = self._since + self._timeout - monotonic()
                    if left <= 0:
                        return self._leave_behind()
                    self._look.wait(left)
                elif not self._has_worker and not self._start_worker() and self._queue:
                    return self._queue.popleft()
                else:
                    self._is_watch_idle = True
                    self._look.wait()
                    self._is_watch_idle = False
            return None

    def _leave_behind(self) -> _Item | None:
        """What the worker is at, if anything; it will find that it is the worker no more."""
        item, self._current = self._current, None
        self._generation += 1
        self._has_worker = False
        self._hung += item is not None
        return item

    def _start_worker(self) -> bool:
        self._has_worker = self._hung < MAX_HUNG and _start(self._work, self._generation)
        return self._has_worker

    def _mask_the_rest(self) -> None:
        with self._lock:
            item = self._leave_behind()
            items = [item] if item else []
            items += self._queue
            self._queue.clear()
            self._look.notify_all()
            self._more.notify_all()
        for item in items:
            self._settle(item, _mask(item.text), "has no time left")

    def _settle(self, item: _Item, text: str, trouble: str) -> None:
        with self._lock:
            is_news = trouble not in self._told
            self._told.add(trouble)
            if trouble:
                self._masked += 1
            else:
                self._passed += 1
        if is_news:
            logger.warning("the redaction hook %s: records are kept without their texts", trouble)
        try:
            item.done(text)
        except Exception as error:
            logger.error("a redacted record was lost: %s", type(error).__name__)
        with self._lock:
            self._unsettled -= 1
            self._settled.notify_all()
            if self._closed:
                self._look.notify()


def _mask(text: str) -> str:
    return as_json(masked(json.loads(text), NOTE))


def _start(target: Callable[..., None], *args: object) -> bool:
    """Whether a thread could be started; at the end of the interpreter none can."""
    try:
        Thread(target=target, args=args, name="tracedb-redaction", daemon=True).start()
    except RuntimeError:
        return False
    return True
