"""The delivery's own connection; every wait on it ends in time, even if the network is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg.types.json import Json

from tracedb import dsn as where
from tracedb.lanes import Entry, Lane
from tracedb.query import statement
from tracedb.storing import forget_layout, is_for_ingest, layout_of, sqlstate

T = TypeVar("T")

CONTROL = statement("control", "writer.sql")
BEGIN = statement("begin", "writer.sql")
STORE = statement("store", "writer.sql")
STORE_ROWS = statement("store_rows", "writer.sql")
DROP = statement("drop", "writer.sql")
BURY = statement("bury", "writer.sql")

# So many are decoded before other threads may go on; each time costs as much as decoding a record.
YIELD_RECORDS = 16

# A connection that lasts so long, with so many calls, is not lost by itself all the time.
PROOFS = 10
PROOF_SECONDS = 0.02


class Silence(psycopg.OperationalError):
    """The server did not answer in time; the connection is given up."""


class PatientConnection(psycopg.Connection[TupleRow]):
    """A connection that waits for an answer `patience` seconds and no longer."""

    patience = 10.0

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._in_time(gen), *args, **kwargs)

    def _in_time(self, gen: PQGen[T]) -> PQGen[T]:
        # psycopg asks again every tenth of a second, whether or not there is an answer
        deadline = monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and monotonic() >= deadline:
                    raise Silence(f"no answer for {self.patience} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: T = end.value
            return answer


class Link:
    """At most one connection, opened when it is needed."""

    def __init__(self, conninfo: str, *, write_timeout: float, prepared_statements: bool) -> None:
        given = conninfo_to_dict(conninfo)
        given.setdefault("application_name", "tracedb writer")
        self.conninfo = make_conninfo("", **given)
        self.prepared_statements = prepared_statements
        self._write_timeout = write_timeout
        self._conn: PatientConnection | None = None
        # Whether the last failure came from what was sent of the records themselves.
        self.blames_records = False

    @property
    def is_open(self) -> bool:
        return self._conn is not None

    def open(self, *, proven: bool = False) -> None:
        """Connect, and see that the server answers; that it goes on answering, if `proven`.

        Raises ConnectionFailed or psycopg's error.
        """
        conn = where.connect(self.conninfo, kind=PatientConnection)
        conn.patience = self._write_timeout
        conn.prepare_threshold = 5 if self.prepared_statements else None
        try:
            conn.execute(CONTROL)
            for _ in range(PROOFS if proven else 0):
                sleep(PROOF_SECONDS)
                conn.execute(CONTROL)
            conn.autocommit = False
        except psycopg.Error:
            conn.close()
            raise
        self._conn = conn

    def close(self) -> None:
        if self._conn is not None:
            conn, self._conn = self._conn, None
            conn.close()

    def deliver(
        self, lane: Lane, batch: Sequence[Entry], dropped: Sequence[Sequence[int]], ends: bool
    ) -> int:
        """Store records, and say which numbers were dropped, in one transaction.

        Returns how many of the records became dead letters.
        """
        try:
            return self._deliver(lane, batch, dropped, ends, _store)
        except _ForIngest:
            return self._deliver(lane, batch, dropped, ends, _ingest)

    def _deliver(
        self,
        lane: Lane,
        batch: Sequence[Entry],
        dropped: Sequence[Sequence[int]],
        ends: bool,
        store: Callable[[PatientConnection, Lane, Sequence[Entry]], int],
    ) -> int:
        with self._transaction(lane, ends, batch) as (conn, settled):
            dead = 0
            if batch and settled:
                # the numbers alone say what became of the records
                dead = _ingest(conn, lane, [(number, b"0", slab) for number, _, slab in batch])
            elif batch:
                self.blames_records = True
                dead = store(conn, lane, batch)
                self.blames_records = False
            if dropped:
                conn.execute(DROP, _of(lane, numbers=_ranges(dropped)))
        return dead

    def bury(self, lane: Lane, number: int, text: str, reason: str, sqlstate: str | None) -> None:
        """Keep a record as a dead letter."""
        with self._transaction(lane, ends=False) as (conn, _):
            self.blames_records = True
            conn.execute(
                BURY, _of(lane, number=number, record=text, reason=reason, sqlstate=sqlstate)
            )
            self.blames_records = False

    @contextmanager
    def _transaction(
        self, lane: Lane, ends: bool, batch: Sequence[Entry] = ()
    ) -> Iterator[tuple[PatientConnection, bool]]:
        """Yields the connection, and whether every number of the batch was settled before."""
        self.blames_records = False
        conn = self._conn
        if conn is None:
            raise psycopg.InterfaceError("not connected")
        patience = self._write_timeout * 1000
        try:
            row = conn.execute(
                BEGIN,
                _of(
                    lane,
                    numbers=_ranges(_numbers(batch)),
                    lock_timeout=f"{patience * 0.5:.0f}ms",
                    statement_timeout=f"{patience * 0.8:.0f}ms",
                    service=lane.service,
                    highest_no=lane.highest,
                    closed=ends,
                ),
            ).fetchone()
            assert row is not None
            yield conn, row[-1]
            conn.commit()
        except Silence:
            self.close()
            raise
        except BaseException:
            try:
                conn.rollback()
            except psycopg.Error:
                self.close()
            raise


class _ForIngest(Exception):
    """Something may be wrong with a record, or one was settled before: for `ingest_from` to say."""


def _store(conn: PatientConnection, lane: Lane, batch: Sequence[Entry]) -> int:
    """Store (number, JSON text) records in the open transaction; how many became dead letters."""
    layout = layout_of(conn)
    rows = layout and layout.rows_of_texts(_yielding(batch), lane.tenant_id)
    if not rows:
        return _ingest(conn, lane, batch)
    try:
        row = conn.execute(
            STORE_ROWS, _of(lane, numbers=_ranges(_numbers(batch)), **rows.arguments)
        ).fetchone()
    except psycopg.Error as error:
        if not is_for_ingest(sqlstate(error)):
            raise
        forget_layout(conn, error)
        raise _ForIngest from error
    assert row is not None
    if row[0]:
        raise _ForIngest
    return 0


def _ingest(conn: PatientConnection, lane: Lane, batch: Sequence[Entry]) -> int:
    """`_store` for records of any kind."""
    numbers = ",".join([str(number) for number, _, _ in batch])
    texts = b"[%b]" % b",".join([text for _, text, _ in batch])
    row = conn.execute(
        STORE, _of(lane, numbers=f"{{{numbers}}}", batch=Json(texts, dumps=_as_it_is))
    ).fetchone()
    assert row is not None
    dead: int = row[0]
    return dead


def _yielding(batch: Sequence[Entry]) -> Iterator[bytes]:
    """The texts; a thread that records may go on after every few."""
    for place, (_, text, _) in enumerate(batch):
        if not place % YIELD_RECORDS:
            sleep(0)
        yield text


def _numbers(batch: Sequence[Entry]) -> list[tuple[int, int]]:
    if batch and batch[-1][0] - batch[0][0] + 1 == len(batch):
        return [(batch[0][0], batch[-1][0])]
    return [(number, number) for number, _, _ in batch]


def _ranges(numbers: Sequence[Sequence[int]]) -> str:
    return f"{{{','.join(f'[{first},{last}]' for first, last in numbers)}}}"


def _of(lane: Lane, **args: object) -> dict[str, object]:
    return {"writer_id": lane.writer_id, "tenant_id": lane.tenant_id, **args}


def _as_it_is(text: bytes) -> bytes:
    return text
