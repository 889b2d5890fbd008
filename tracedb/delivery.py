"""The thread that brings accepted records to the database, whatever state that is in."""

from __future__ import annotations

import json
import logging
import threading
from time import monotonic

import psycopg

from tracedb.backlog import Backlog
from tracedb.bulletin import Bulletin
from tracedb.errors import ConnectionFailed
from tracedb.lanes import UNRECORDABLE, Backoff, Entry, Lane, Suspect
from tracedb.link import Link
from tracedb.spool import Folder, read
from tracedb.verdicts import AWAY, HOLD, LOST, POISON, RETRY, UNPREPARED, Verdict, verdict

log = logging.getLogger("tracedb")

LONGEST_PAUSE = 30.0
# While somebody waits for it.
LONGEST_URGENT_PAUSE = 1.0
ADOPT_SECONDS = 60.0


class Delivery:
    """Delivers a backlog over a link. All of it runs on one thread."""

    def __init__(self, backlog: Backlog, link: Link, *, flush_seconds: float) -> None:
        self._backlog = backlog
        self._link = link
        self._flush_seconds = flush_seconds
        self._backoff = Backoff()
        self._busy: dict[Lane, None] = {}
        self._folders: list[Folder] = []
        self._sweep_at = monotonic() + flush_seconds
        self._adopt_at = 0.0
        self._down: str | None = None
        # A lane whose head was lost alone.
        self._doubted: tuple[Lane, Verdict, Exception] | None = None
        self._bulletin = Bulletin(backlog)
        self._stopping = False
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, unless it runs. An interpreter that shuts down starts none."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self.run, name="tracedb-writer", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return
                self._thread = thread

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    def stop(self, timeout: float) -> None:
        """End the thread, at once; waits for it, but not longer than this."""
        self._stopping = True
        self._backlog.bell.ring()
        if self._thread is not None:
            self._thread.join(timeout)

    def join(self, timeout: float) -> bool:
        """Wait until a closed backlog is delivered and everybody was told; False if it was not."""
        if self._thread is None:
            self.run(monotonic() + timeout)
            return self._is_done()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def run(self, deadline: float = float("inf")) -> None:
        """Deliver until the backlog is closed and empty, or it is stopped, or it is too late."""
        while not (self._stopping or self._is_done() or monotonic() >= deadline):
            self._backlog.bell.wait(min(self._pause(), deadline - monotonic()))
            try:
                self._turn()
            except Exception as error:
                # a mistake of ours must not end the thread; its text might quote a record
                log.error("tracedb: the writer failed (%s) and goes on", type(error).__name__)
                self._backoff.fail(LONGEST_PAUSE)
        self._link.close()

    def _is_done(self) -> bool:
        return (
            self._backlog.closed
            and not self._folders
            and self._backlog.is_settled
            and all(lane.ended for lane in self._backlog.own_lanes())
        )

    def _pause(self) -> float:
        """Seconds until there is something to do."""
        now = monotonic()
        times = [self._sweep_at] if self._backlog.closed else [self._sweep_at, self._adopt_at]
        if self._busy:
            lanes = min(lane.backoff.until for lane in self._busy)
            times.append(max(lanes, self._backoff.until))
        return min(times) - now

    def _turn(self) -> None:
        now = monotonic()
        hurry = self._backlog.take_hurry()
        if hurry:
            self._backoff.until = 0.0
            for lane in self._busy:
                lane.backoff.until = 0.0
        everything = hurry or now >= self._sweep_at
        if everything:
            self._sweep_at = now + self._flush_seconds
        self._add(self._backlog.take(everything))
        if now >= self._adopt_at and not self._backlog.closed:
            self.adopt()
        for lane in list(self._busy):
            if not self._is_connected():
                break
            if lane.backoff.until <= monotonic():
                self._deliver(lane)
            if not lane.has_work:
                del self._busy[lane]
        self._read_back()
        self._say_farewell()
        # an idle connection that was cut is not worth a line
        down = self._down if self._backoff.failures > 1 else None
        self._bulletin.update(down, self._busy)

    def _add(self, lanes: list[Lane]) -> None:
        self._busy.update(dict.fromkeys(lanes))

    def adopt(self) -> None:
        """Take over what writers that are gone left in the spool."""
        self._adopt_at = monotonic() + ADOPT_SECONDS
        for folder in self._backlog.spool.adopt() if self._backlog.spool else []:
            self._backlog.adopt(folder)
            self._folders.append(folder)

    def _read_back(self) -> None:
        """Read records back that are in the spool and not in memory."""
        spool = self._backlog.spool
        while spool is not None and (slab := self._backlog.spilled()) is not None:
            assert slab.segment is not None
            try:
                contents = read(slab.segment)
            except FileNotFoundError:
                contents = None
            except OSError as error:
                spool.trouble = error.strerror
                slab.later = monotonic() + ADOPT_SECONDS
                continue
            if contents is None:
                self._backlog.give_up(slab)
                continue
            if contents.damaged:
                spool.quarantine(slab.segment, contents.damaged)
            lanes = self._backlog.load(slab, contents)
            self._add(lanes)
            if lanes:
                break

    def _say_farewell(self) -> None:
        """Tell the database which writers are done: this one, and those of adopted folders."""
        if self._backlog.closed and self._backlog.is_settled:
            ending = self._backlog.own_lanes()
            for lane in ending:
                lane.ending = True
            self._add([lane for lane in ending if lane.has_work])
        for folder in list(self._folders):
            if not self._backlog.is_over(folder):
                continue
            lanes = [lane for lane in self._backlog.adopted_lanes.values() if lane.folder is folder]
            for lane in lanes:
                lane.ending = True
            self._add([lane for lane in lanes if lane.has_work])
            if all(lane.ended for lane in lanes):
                self._folders.remove(folder)
                for lane in lanes:
                    del self._backlog.adopted_lanes[lane.writer_id, lane.tenant_id]
                if self._backlog.spool is not None:
                    self._backlog.spool.release(folder)

    def _is_connected(self) -> bool:
        if self._link.is_open:
            return True
        if self._backoff.until > monotonic():
            return False
        try:
            self._link.open(proven=self._doubted is not None)
        except (ConnectionFailed, psycopg.Error) as error:
            # on one line, and without a password
            told = " ".join(str(error).split())
            self._down = told if isinstance(error, ConnectionFailed) else _name(error)
            self._fail(self._backoff)
        else:
            if self._doubted is not None:
                self._suspect(*self._doubted)
        # What is lost even without the record says nothing about it.
        self._doubted = None
        return self._link.is_open

    def _deliver(self, lane: Lane) -> None:
        batch = lane.head()
        if lane.suspect is not None and lane.suspect.reason is not None:
            self._bury(lane, batch[0], lane.suspect)
            return
        if batch and batch[0][1].startswith(UNRECORDABLE):
            lane.suspect = Suspect(reason=_stated_reason(batch[0][1]))
            return
        dropped = self._backlog.take_dropped(lane)
        try:
            dead = self._link.deliver(lane, batch, dropped, lane.ending)
        except Exception as error:
            self._backlog.return_dropped(lane, dropped)
            self._failed(lane, batch, error)
            return
        lane.ended = lane.ending
        self._delivered(lane, batch, dead)

    def _bury(self, lane: Lane, entry: Entry, suspect: Suspect) -> None:
        number, text, _ = entry
        if suspect.unspeakable:
            text = json.dumps({"tracedb_lost": f"{len(text)} bytes"}).encode()
        assert suspect.reason is not None
        try:
            self._link.bury(
                lane, number, text.decode(errors="replace"), suspect.reason, suspect.sqlstate
            )
        except Exception as error:
            judgement = self._judge(lane, error)
            if judgement.tries is not None and (judgement is not LOST or suspect.loses_connections):
                lane.held = suspect.unspeakable
                suspect.unspeakable = True
        else:
            self._delivered(lane, [entry], dead=1)

    def _delivered(self, lane: Lane, batch: list[Entry], dead: int) -> None:
        self._backoff.reset()
        self._down = None
        if batch:
            lane.advance(batch)
            for segment in self._backlog.settle(lane, batch, dead):
                segment.remove()
        else:
            lane.recover()

    def _failed(self, lane: Lane, batch: list[Entry], error: Exception) -> None:
        judgement = self._judge(lane, error)
        if judgement.tries is None or not batch:
            return
        if len(batch) > 1:
            # half as many, until the one that is at fault stands alone; then twice as many again
            lane.limit = len(batch) // 2
            return
        if judgement is LOST:
            # the next connection says whether it was the record
            self._doubted = lane, judgement, error
        else:
            self._suspect(lane, judgement, error)

    def _suspect(self, lane: Lane, judgement: Verdict, error: Exception) -> None:
        """The head of the lane failed alone, by its own fault as it seems."""
        if lane.suspect is None:
            lane.suspect = Suspect()
        lane.suspect.failures += 1
        if judgement.tries is not None and lane.suspect.failures >= judgement.tries:
            lane.suspect.reason = _reason(error)
            lane.suspect.sqlstate = getattr(error, "sqlstate", None)
            lane.suspect.loses_connections = judgement is LOST

    def _judge(self, lane: Lane, error: Exception) -> Verdict:
        """What the error means; waits accordingly."""
        judgement = verdict(error)
        if judgement.tries is not None and not self._link.blames_records:
            judgement = AWAY if judgement is LOST else HOLD if judgement is POISON else RETRY
        if judgement.reconnect:
            self._link.close()
        if judgement is UNPREPARED:
            self._link.prepared_statements = False
        if judgement.everyone:
            self._down = _name(error)
            if judgement is LOST:
                self._backoff.until = monotonic() + 0.1
            else:
                self._fail(self._backoff)
        elif judgement is not POISON:
            lane.held = judgement.lasting
            lane.trouble = _name(error)
            self._fail(lane.backoff)
        return judgement

    def _fail(self, backoff: Backoff) -> None:
        backoff.fail(LONGEST_URGENT_PAUSE if self._backlog.is_urgent else LONGEST_PAUSE)


def _name(error: Exception) -> str:
    """The kind of an error; its message might quote a record."""
    code = getattr(error, "sqlstate", None)
    return f"{code} {type(error).__name__}" if code else type(error).__name__


def _stated_reason(text: bytes) -> str:
    """Why the call could not write the record as JSON."""
    try:
        return str(json.loads(text)["tracedb_unrecordable"])
    except (ValueError, KeyError):
        return "record: not JSON"


def _reason(error: Exception) -> str:
    """Why a record is dead, for the dead letter that holds it."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    if isinstance(error, psycopg.OperationalError):
        return "record: the connection was lost each time it was sent"
    return f"record: cannot be sent ({type(error).__name__})"
