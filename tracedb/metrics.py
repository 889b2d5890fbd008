"""The metrics of a database for Prometheus, read from it at every scrape.

Named as Prometheus wants it: base units in the name, `_total` for what only grows, and no tenant as
a label unless asked for. What is counted over the last hours is a gauge and says `recent`. Needs a
login in tracedb_maintainer or tracedb_service, and the package prometheus-client.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from threading import Lock
from time import monotonic
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from tracedb import dsn as where
from tracedb.errors import TracedbError
from tracedb.link import PatientConnection, Silence
from tracedb.query import statement, typed

_log = logging.getLogger("tracedb")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: the column of a statement that has its value, and those that are its labels.

    `labels` maps a label to its column, `fixed` to a value. Names of counters end in _total.
    """

    name: str
    help: str
    column: str
    labels: Mapping[str, str]
    fixed: Mapping[str, str]

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


def _family(
    name: str, column: str, help: str, *labels: str, fixed: Mapping[str, str] | None = None
) -> Family:
    columns = {label: _COLUMNS.get(label, label) for label in labels}
    return Family(f"tracedb_{name}", help, column, columns, fixed or {})


_COLUMNS = {"table": "table_name", "index": "index_name"}
_LOST = "Records that writers gave a number and that have not arrived"

# by the statement of metrics.sql that answers them
FAMILIES: Mapping[str, Sequence[Family]] = {
    "backlog": (
        _family("change_backlog", "change_count", "Changes that no total has yet."),
        _family(
            "change_backlog_oldest_timestamp_seconds",
            "oldest_at",
            "When the oldest of these was written.",
        ),
    ),
    "writers": (
        _family(
            "writer_records_accepted_total",
            "accepted",
            "Records that writers are known to have accepted.",
            "service",
        ),
        *(
            _family(
                "writer_records_total",
                outcome,
                "What became of records of writers; requeued ones were dead before.",
                "service",
                fixed={"outcome": outcome},
            )
            for outcome in ("stored", "dead", "requeued", "dropped")
        ),
        _family("writer_records_pending", "pending", f"{_LOST}; their writer lives.", "service"),
        _family("writer_records_lost", "lost", f"{_LOST}; their writer is gone.", "service"),
        _family(
            "writers_living",
            "living_count",
            "Writers that are open and were heard of within a day.",
            "service",
        ),
    ),
    "dead_letters": (
        _family("dead_letters", "letter_count", "Records that could not be stored, and are kept."),
    ),
    "partitions": (
        _family(
            "partition_headroom_seconds",
            "headroom_seconds",
            "How far ahead of now partitions are made.",
            "table",
        ),
    ),
    "default_partitions": (
        _family(
            "default_partition_rows",
            "stray_rows",
            "Rows in the default partition, where none should be.",
            "table",
        ),
    ),
    "tables": (
        _family("table_rows", "row_estimate", "Rows of a table, about.", "table"),
        _family("table_dead_rows", "dead_rows", "Dead rows that wait for vacuum.", "table"),
        _family(
            "table_bytes",
            "table_bytes",
            "Bytes on disk of a table with all its partitions.",
            "table",
            fixed={"part": "table"},
        ),
        _family("table_bytes", "index_bytes", "", "table", fixed={"part": "indexes"}),
    ),
    "indexes": (
        _family("index_scans_total", "scan_count", "Scans of an index.", "table", "index"),
    ),
    "requests": (
        _family(
            "recent_requests",
            "request_count",
            "Requests (traces that are not nested) begun in the last tracedb_recent_seconds.",
            "status",
        ),
        _family(
            "recent_executions",
            "execution_count",
            "Traces, nested ones too, begun in the last tracedb_recent_seconds.",
            "status",
        ),
    ),
    "durations": (
        _family(
            "recent_request_duration_seconds",
            "seconds",
            "Quantiles of the durations of these requests.",
            "quantile",
        ),
    ),
    "usage": (
        _family(
            "recent_tokens",
            "input_tokens",
            "Tokens of the traces begun in the last tracedb_recent_seconds.",
            fixed={"direction": "input"},
        ),
        _family("recent_tokens", "output_tokens", "", fixed={"direction": "output"}),
        _family("recent_cost_usd", "cost_usd", "Cost of these traces in US dollars, as known."),
        _family(
            "recent_unpriced_traces",
            "unpriced_count",
            "Those of these traces whose cost is unknown, or known only in part.",
        ),
    ),
    "ingest": (
        _family(
            "recent_rows",
            "row_count",
            "Rows whose ids are of the last tracedb_recent_seconds.",
            "table",
        ),
        _family(
            "ingest_lag_seconds",
            "lag_seconds",
            "Seconds since the newest of these rows was stored.",
            "table",
        ),
        _family(
            "ingest_delay_p95_seconds",
            "p95_delay_seconds",
            "How long these rows took from their end to being stored, p95 of the worst tenant.",
            "table",
        ),
    ),
}


class DatabaseCollector(Collector):
    """Reads all metrics at every scrape, over a connection of its own, in bounded time.

    A statement that fails costs its own metrics and no others; without a database there is
    `tracedb_up 0`. Both are counted in `tracedb_scrape_errors_total`, and nothing is raised.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        window: timedelta = timedelta(hours=1),
        per_tenant: bool = False,
        timeout: float = 8.0,
    ) -> None:
        given = conninfo_to_dict(conninfo)
        given.setdefault("application_name", "tracedb metrics")
        given.setdefault("connect_timeout", max(2, int(timeout)))
        self._conninfo = make_conninfo("", **given)
        self._window = window
        self._per_tenant = per_tenant
        self._timeout = timeout
        self._lock = Lock()
        self._errors: Counter[str] = Counter(dict.fromkeys(("connect", *FAMILIES), 0))
        self._said: dict[str, str] = {}
        # what the last scrape came to
        self.is_up = False
        self.failed: list[str] = []

    def collect(self) -> Iterator[Metric]:
        """One scrape at a time: two would only ask the same of the database twice."""
        with self._lock:
            began = monotonic()
            found = self._read(began + self._timeout)
            yield from found
            yield from self._about_this(monotonic() - began)

    def _read(self, deadline: float) -> list[Metric]:
        self.failed = []
        self.is_up = False
        found: list[Metric] = []
        try:
            with where.connect(self._conninfo, kind=PatientConnection) as conn:
                self.is_up = True
                self._said.pop("connect", None)
                # a transaction for each statement, whose settings end with it
                conn.autocommit = False
                for name in FAMILIES:
                    found += self._section(conn, name, deadline)
        except TracedbError as error:
            self._fail("connect", error)
        except psycopg.Error as error:
            self._fail("connect", typed(error))
        return found

    def _section(self, conn: PatientConnection, name: str, deadline: float) -> Iterator[Metric]:
        # half of what is left, so that one that hangs leaves time for the others
        left = (deadline - monotonic()) / 2
        try:
            if left <= 0:
                raise TracedbError(f"no answer within {self._timeout:g} s")
            rows = self._answer(conn, name, left)
        except Silence as error:
            # what was asked may be answered yet, which nobody waits for
            conn.close()
            self._fail(name, typed(error))
            raise
        except (TracedbError, psycopg.Error) as error:
            self._fail(name, typed(error) if isinstance(error, psycopg.Error) else error)
            conn.rollback()
            return
        self._said.pop(name, None)
        yield from _metrics(FAMILIES[name], rows)

    def _answer(self, conn: PatientConnection, name: str, seconds: float) -> list[Row]:
        # the server gives up first
        conn.patience = seconds + 0.5
        limit = {"milliseconds": str(max(1, int(seconds * 1000)))}
        conn.execute(statement("limits", "metrics.sql"), limit)
        cursor = conn.cursor(row_factory=dict_row).execute(
            statement(name, "metrics.sql"),
            {"window": self._window, "per_tenant": self._per_tenant},
        )
        rows = cursor.fetchall()
        conn.rollback()
        return list(rows)

    def _fail(self, name: str, error: TracedbError) -> None:
        self.failed.append(name)
        self._errors[name] += 1
        # the same error at every scrape is said once
        if self._said.get(name) != str(error):
            self._said[name] = str(error)
            _log.warning("metrics: %s: %s", name, error)

    def _about_this(self, seconds: float) -> Iterator[Metric]:
        for name, help, value in (
            ("tracedb_up", "Whether the database answered.", float(self.is_up)),
            ("tracedb_recent_seconds", "What recent means.", self._window.total_seconds()),
            ("tracedb_scrape_duration_seconds", "How long this scrape took.", seconds),
        ):
            yield GaugeMetricFamily(name, help, value)
        errors = CounterMetricFamily(
            "tracedb_scrape_errors", "Questions the database did not answer.", labels=["query"]
        )
        for query, count in self._errors.items():
            errors.add_metric([query], count)
        yield errors
        about = GaugeMetricFamily("tracedb_info", "What made this.", labels=["version"])
        about.add_metric([version("tracedb")], 1)
        yield about


def _metrics(families: Sequence[Family], rows: Sequence[Row]) -> Iterator[Metric]:
    made: dict[str, Metric] = {}
    for family in families:
        kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
        metric = made.setdefault(family.name, kind(family.name, family.help))
        for row in rows:
            if row[family.column] is not None:
                labels = {label: row[column] for label, column in family.labels.items()}
                if row.get("tenant_id") is not None:
                    labels["tenant_id"] = str(row["tenant_id"])
                metric.add_sample(family.name, {**labels, **family.fixed}, row[family.column])
    yield from made.values()


def registry(collector: DatabaseCollector) -> CollectorRegistry:
    """A registry with nothing else in it."""
    made = CollectorRegistry()
    made.register(collector)
    return made
