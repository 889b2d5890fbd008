"""Writers: recording that is never in the way, and delivery that loses nothing it accepted."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from time import monotonic
from typing import Any, Self
from uuid import UUID, uuid4

from tracedb import dsn as where
from tracedb.backlog import Backlog, Stats
from tracedb.delivery import Delivery
from tracedb.errors import InvalidInput
from tracedb.hook import NOTE, Function, RedactionHook
from tracedb.link import Link
from tracedb.masking import masked
from tracedb.pack import Limits, pack
from tracedb.recorder import Recorder, TenantId
from tracedb.spool import Spool

log = logging.getLogger("tracedb")

# What tells a record that is not JSON apart, in its dead letter.
_IDS = ("type", "trace_id", "external_id", "span_id", "event_id", "event_key", "started_at")


class WriterCore(Recorder):
    """What both colours of a writer have in common."""

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        tenant_id: TenantId = None,
        service: str | None = None,
        spool: str | os.PathLike[str] | None = None,
        flush_records: int = 100,
        flush_seconds: float = 5.0,
        queue_records: int = 10_000,
        queue_bytes: int = 64 * 1024 * 1024,
        spool_bytes: int = 1024 * 1024 * 1024,
        write_timeout: float = 10.0,
        exit_timeout: float = 10.0,
        limits: Limits | None = None,
        redact: Function | None = None,
        prepared_statements: bool = True,
    ) -> None:
        """Connects when there is something to deliver. Raises InvalidInput for bad settings only.

        Records are delivered when `flush_records` of a tenant wait, or after `flush_seconds`. At
        most `queue_records` (and `queue_bytes`) wait in memory. `spool` is a folder in which
        records outlive the process, up to `spool_bytes`. A server that is silent for
        `write_timeout` seconds is given up and tried again. Leaving the program takes at most
        `exit_timeout` seconds. `limits` cap the bytes of a text and of a record. `redact` gets each
        record as a dict, without known secrets, in a thread of its own, and answers what of it may
        be stored; only then is the record spooled. If it fails, the texts of the record are masked.
        """
        for name, value in (
            ("flush_records", flush_records),
            ("flush_seconds", flush_seconds),
            ("queue_records", queue_records),
            ("queue_bytes", queue_bytes),
            ("spool_bytes", spool_bytes),
            ("write_timeout", write_timeout),
        ):
            if value <= 0:
                raise InvalidInput.of(name, "must be greater than 0")
        self.tenant_id = None if tenant_id is None else _tenant(tenant_id)
        if tenant_id is not None and self.tenant_id is None:
            raise InvalidInput.of("tenant_id", f"must be a UUID, not {tenant_id!r}")
        self.service = service
        self.exit_timeout = exit_timeout
        self._conninfo = where.resolve(conninfo)
        self._spool = Path(spool).absolute() if spool else None
        self._spool_bytes = spool_bytes
        self._flush_records = flush_records
        self._flush_seconds = flush_seconds
        self._queue_records = queue_records
        self._queue_bytes = queue_bytes
        self._write_timeout = write_timeout
        self._limits = limits or Limits()
        self._prepared_statements = prepared_statements
        self._hook = RedactionHook(redact, self._limits, capacity=queue_records) if redact else None
        self._closing = threading.Lock()
        self._begin()
        _writers[self] = None
        if self._spool is not None:
            self._delivery.adopt()
            self._start()

    def _begin(self) -> None:
        """Make the parts that belong to one process, and to one numbering of records."""
        self.writer_id = uuid4()
        spool = None
        if self._spool is not None:
            spool = Spool(self._spool, self.writer_id, self.service, self._spool_bytes)
        self._backlog = Backlog(
            self.writer_id,
            self.service,
            spool,
            flush_records=self._flush_records,
            queue_records=self._queue_records,
            queue_bytes=self._queue_bytes,
        )
        self._link = Link(
            self._conninfo,
            write_timeout=self._write_timeout,
            prepared_statements=self._prepared_statements,
        )
        self._delivery = Delivery(self._backlog, self._link, flush_seconds=self._flush_seconds)

    def record(self, record: dict[str, Any], tenant_id: TenantId = None) -> bool:
        """Take a record as it is (see `tracedb.ingest`); False if it was not accepted."""
        try:
            tenant = self.tenant_of(record, tenant_id)
            if tenant is None:
                self._backlog.refuse()
                return False
            try:
                packed = pack(record, self._limits)
            except InvalidInput as error:
                accepted = self._backlog.add(tenant, self._unrecordable(record, str(error)))
            else:
                if self._hook is None:
                    accepted = self._backlog.add(tenant, packed.data)
                else:
                    accepted = self._redact(self._hook, tenant, packed.text)
            if not self._delivery.is_started:
                self._start()
            return accepted
        except Exception:
            self._backlog.refuse()
            return False

    def _redact(self, hook: RedactionHook, tenant_id: UUID, text: str) -> bool:
        """Number a record and keep it once the hook is done with it."""
        backlog = self._backlog
        reservation = backlog.reserve(tenant_id)
        if reservation is None:
            return False
        if not hook.submit(text, lambda clean: backlog.fill(reservation, clean.encode())):
            return backlog.fill(reservation, None)
        return True

    def _unrecordable(self, record: Mapping[str, Any], reason: str) -> bytes:
        """What can be told of a record that is not JSON; begins as lanes.UNRECORDABLE says."""
        ids: Mapping[str, Any] = {
            key: str(record[key])[:1024] for key in _IDS if record.get(key) is not None
        }
        if self._hook is None:
            clean = json.loads(pack({"reason": reason, "record": ids}, self._limits).text)
            ids, reason = clean["record"], clean["reason"]
        else:
            # the path of a field is the caller's own words too
            ids, reason = masked(ids, NOTE), "record: cannot be written as JSON"
        return json.dumps(
            {"tracedb_unrecordable": reason, "record": ids}, separators=(",", ":")
        ).encode()

    def refuse(self) -> None:
        """Count a call that no record could be made of."""
        self._backlog.refuse()

    def tenant_of(self, record: Mapping[str, Any], tenant_id: TenantId) -> UUID | None:
        """Whose record it is: as the call says, or the record, or the writer."""
        given = tenant_id if tenant_id is not None else record.get("tenant_id")
        return self.tenant_id if given is None else _tenant(given)

    def stats(self) -> Stats:
        """What became of the records so far."""
        return self._backlog.stats()

    def _start(self) -> None:
        if not self._delivery.is_started:
            _leave_orderly()
            self._delivery.start()

    def _flush(self, timeout: float | None) -> bool:
        self._start()
        return self._backlog.flush(timeout)

    def _close(self, timeout: float | None) -> Stats:
        deadline = monotonic() + (self.exit_timeout if timeout is None else timeout)
        with self._closing:
            if self in _writers:
                if self._hook is not None:
                    # the delivery needs time too
                    self._hook.close(max(deadline - monotonic(), 0) / 2)
                self._backlog.close()
                self._start()
                delivered = self._delivery.join(max(deadline - monotonic(), 0))
                self._delivery.stop(timeout=0)
                if self._backlog.spool is not None:
                    self._backlog.spool.close()
                del _writers[self]
                pending = 0 if delivered else self.stats().pending
                if pending:
                    kept = "wait in the spool" if self._spool else "are lost"
                    log.warning("tracedb: closed too early: %s records %s", pending, kept)
        return self.stats()

    def _after_fork(self) -> None:
        """In the child: a writer of its own, with nothing in it."""
        # Whatever the parent holds is the parent's: its connection must not even be closed here.
        _of_parents.append((self._link, self._delivery, self._backlog))
        if self._backlog.spool is not None:
            self._backlog.spool.after_fork()
        if self._hook is not None:
            self._hook.after_fork()
        self._closing = threading.Lock()
        self._begin()


class Writer(WriterCore):
    """Records in the background; see `Recorder` for the calls. Close it, or use it in a `with`.

    Safe to share between threads, and in a forked child it goes on as a writer of its own.
    """

    def flush_all(self, timeout: float | None = None) -> bool:
        """Wait until all that was accepted before is settled; False if it takes too long."""
        return self._flush(timeout)

    def close(self, timeout: float | None = None) -> Stats:
        """Deliver what is left, for `timeout` seconds (default: exit_timeout) at most, and end."""
        return self._close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncWriter(WriterCore):
    """`Writer` for asyncio: its recording calls are the same, and need no await."""

    async def flush_all(self, timeout: float | None = None) -> bool:
        """Wait until all that was accepted before is settled; False if it takes too long."""
        return await asyncio.to_thread(self._flush, timeout)

    async def close(self, timeout: float | None = None) -> Stats:
        """Deliver what is left, for `timeout` seconds (default: exit_timeout) at most, and end."""
        return await asyncio.to_thread(self._close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


_writers: dict[WriterCore, None] = {}
_of_parents: list[object] = []
_default: Writer | AsyncWriter | None = None
_choosing = threading.Lock()


def get_writer() -> Writer | AsyncWriter:
    """The writer of this process, made when it is first asked for.

    Its database is TRACEDB_DSN, DATABASE_URL or PG*, its tenant TRACEDB_TENANT_ID and its spool
    TRACEDB_SPOOL_DIR, if they are set. It does not raise because the database is away.
    """
    global _default
    with _choosing:
        if _default is None:
            _default = Writer(
                tenant_id=os.environ.get("TRACEDB_TENANT_ID") or None,
                spool=os.environ.get("TRACEDB_SPOOL_DIR") or None,
            )
        return _default


def set_writer(writer: Writer | AsyncWriter | None) -> None:
    """Make this the writer of the process; the one before is not closed."""
    global _default
    with _choosing:
        _default = writer


def _after_fork() -> None:
    global _choosing
    _choosing = threading.Lock()
    for writer in list(_writers):
        writer._after_fork()


def _close_all() -> None:
    for writer in list(_writers):
        writer._close(None)


def _leave_orderly() -> None:
    """Close what is open when the interpreter ends, also that of a child of multiprocessing."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)
    Finalize(None, _close_all, exitpriority=100)


os.register_at_fork(after_in_child=_after_fork)


def _tenant(tenant_id: object) -> UUID | None:
    """A tenant's id; None if it is none."""
    return tenant_id if isinstance(tenant_id, UUID) else _parsed(str(tenant_id))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
