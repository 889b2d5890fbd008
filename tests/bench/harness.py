"""Registers benchmarks, runs their variants in turn and reports medians and paired ratios."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tracedb.migrate import migrate

# What one run of a variant measured, by metric.
Sample = dict[str, float]
Variant = Callable[[], Sample]
# The variants of a benchmark; the others are compared with the first.
Variants = Mapping[str, Variant]


@dataclass(slots=True)
class Context:
    """What a benchmark's set-up needs: a server, the scale, and databases made once a run."""

    dsn: str
    scale: float
    _databases: dict[str, str] = field(default_factory=dict)

    def scaled(self, size: int) -> int:
        return max(1, round(size * self.scale))

    def database(self, name: str, fill: Callable[[psycopg.Connection[Any]], None]) -> str:
        """The DSN of a migrated database, filled when it is first asked for."""
        if name not in self._databases:
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            target = make_conninfo(self.dsn, dbname=name)
            migrate(target)
            with timed(f"filling {name}"), psycopg.connect(target, autocommit=True) as conn:
                fill(conn)
                conn.execute("checkpoint")
            self._databases[name] = target
        return self._databases[name]


Generator = Callable[[Context], Iterator[Variants]]
Setup = Callable[[Context], AbstractContextManager[Variants]]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named comparison; `metric` is what its ratios are of."""

    name: str
    about: str
    metric: str
    setup: Setup


@dataclass(frozen=True, slots=True)
class Result:
    """The samples of every variant, one a repetition."""

    benchmark: Benchmark
    samples: dict[str, list[Sample]]

    @property
    def baseline(self) -> str:
        return next(iter(self.samples))

    def ratios(self, variant: str) -> list[float]:
        """To the baseline of the same repetition, which had the same neighbours on the machine."""
        metric = self.benchmark.metric
        pairs = zip(self.samples[variant], self.samples[self.baseline], strict=True)
        return [ours[metric] / theirs[metric] for ours, theirs in pairs]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.benchmark.name,
            "about": self.benchmark.about,
            "metric": self.benchmark.metric,
            "baseline": self.baseline,
            "variants": {
                name: {"samples": samples, "ratios": self.ratios(name)}
                for name, samples in self.samples.items()
            },
        }

    def as_text(self) -> str:
        ours = self.benchmark
        lines = [f"{ours.name}: {ours.about}"]
        for variant, samples in self.samples.items():
            ratio = spread(self.ratios(variant))
            lines.append(f"  {variant:<14} {ratio:>22} x {self.baseline} ({ours.metric})")
            lines += [
                f"      {metric:<26} {spread([sample[metric] for sample in samples])}"
                for metric in samples[0]
            ]
        return "\n".join(lines)


BENCHMARKS: list[Benchmark] = []


def benchmark(name: str, *, metric: str) -> Callable[[Generator], None]:
    """Register a set-up: a generator that yields the variants once, then cleans up."""

    def register(setup: Generator) -> None:
        about = (setup.__doc__ or "").strip()
        BENCHMARKS.append(Benchmark(name, about, metric, contextmanager(setup)))

    return register


def run(ours: Benchmark, context: Context, repeat: int) -> Result:
    """Every variant once a repetition (A B A B ...), so that a slow minute slows all of them."""
    with ours.setup(context) as variants:
        samples: dict[str, list[Sample]] = {name: [] for name in variants}
        for number in range(1, repeat + 1):
            for name, variant in variants.items():
                with timed(f"{ours.name} {number}/{repeat}: {name}"):
                    samples[name].append(variant())
    return Result(ours, samples)


def spread(values: list[float]) -> str:
    """The median, and what it lies between."""
    low, middle, high = min(values), median(values), max(values)
    return f"{number(middle)} [{number(low)}..{number(high)}]"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def environment(conn: psycopg.Connection[Any], scale: float, repeat: int) -> dict[str, Any]:
    settings = conn.execute(
        "select name, current_setting(name) from unnest(%s::text[]) as name",
        [["server_version", "shared_buffers", "max_wal_size", "fsync", "jit"]],
    ).fetchall()
    return {
        "settings": dict(settings),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "scale": scale,
        "repeat": repeat,
    }


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say on stderr what is going on, and how long it took."""
    print(f"{what} ... ", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:.1f} s", file=sys.stderr)
