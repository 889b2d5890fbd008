"""The command for whoever runs the database: stats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tracedb import operations as ops
    from tracedb.cli import Subparsers
    from tracedb.client import TraceDB

_BAR_CELLS = 16


def add_parser(subparsers: Subparsers) -> None:
    """Register the command."""
    command = subparsers.add_parser(
        "stats",
        help="sizes, growth, partitions, delays and losses: what an operator looks at",
        description="Sizes, growth, partitions, ingest, losses and indexes of all tenants. Needs a"
        " login in tracedb_maintainer or tracedb_service. Row counts are the server's estimates.",
    )
    command.add_argument(
        "--days", type=_days, default=14, metavar="N", help="show the requests of N days (14)"
    )
    command.add_argument(
        "--bloat",
        action="store_true",
        help="look for bloat with pgstattuple, which reads tables, where it is installed",
    )
    command.set_defaults(run=_stats)


def _days(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 366):
        raise argparse.ArgumentTypeError("must be from 1 to 366")
    return int(text)


@dataclass(frozen=True, slots=True)
class _Found:
    """All that is shown; the keys of --json are these names."""

    daily_requests: list[ops.DailyRequests]
    table_sizes: list[ops.TableSize]
    storage_forecast: list[ops.StorageForecast]
    trace_storage: list[ops.TraceStorage]
    partition_headroom: list[ops.PartitionHeadroom]
    ingest_lag: list[ops.IngestLag]
    change_backlog: list[ops.ChangeBacklog]
    writer_losses: list[ops.ServiceLosses]
    index_usage: list[ops.IndexUsage]
    table_bloat: list[ops.TableBloat]


def _stats(args: argparse.Namespace) -> int:
    from tracedb import connect
    from tracedb.cli import answer

    if not args.json:
        from tracedb.render import console

        out = console()  # says what is missing before any work is done
    with connect(args.dsn, max_size=1) as db:
        found = _find(db, args)
    if args.json:
        answer(args, asdict(found), [])
    else:
        _show(out, found)
    return 0


def _find(db: TraceDB, args: argparse.Namespace) -> _Found:
    from tracedb import operations

    return _Found(
        daily_requests=db.run(operations.daily_requests(args.days)),
        table_sizes=db.run(operations.table_sizes()),
        storage_forecast=db.run(operations.storage_forecast()),
        trace_storage=db.run(operations.trace_storage()),
        partition_headroom=db.run(operations.partition_headroom()),
        ingest_lag=db.run(operations.ingest_lag()),
        change_backlog=db.run(operations.change_backlog()),
        writer_losses=db.run(operations.writer_losses()),
        index_usage=db.run(operations.index_usage()),
        table_bloat=db.run(operations.table_bloat(exact=args.bloat)),
    )


def _show(out: Console, found: _Found) -> None:
    _show_requests(out, found)
    _show_tables(out, found)
    _show_weeks(out, found)
    _show_partitions(out, found.partition_headroom)
    _show_ingest(out, found)
    _show_writers(out, found.writer_losses)
    _show_unused(out, found.index_usage)


def _table(out: Console, titles: Sequence[str], lines: Sequence[tuple[str, ...]]) -> None:
    """A table of texts; the first of each line is its label."""
    from rich.text import Text

    from tracedb.render import Row, clean, table

    table(out, titles, [Row(Text(clean(label)), tuple(figures)) for label, *figures in lines])


def _show_requests(out: Console, found: _Found) -> None:
    from tracedb.render import count, heading, percent, sparkline

    requests = [day.request_count for day in found.daily_requests]
    errors = [day.error_count for day in found.daily_requests]
    heading(out, "Requests", f"{len(requests)} days, today last")
    out.print(f"  {sparkline(requests)}  {count(sum(requests))}, {count(requests[-1])} today")
    if sum(errors):
        share = percent(sum(errors) / sum(requests))
        out.print(f"  {sparkline(errors)}  {count(sum(errors))} failed ({share})")


def _show_tables(out: Console, found: _Found) -> None:
    from tracedb.render import bar, count, heading, percent, size

    total = sum(table.total_bytes for table in found.table_sizes)
    bloat = {table.table_name: table for table in found.table_bloat}
    heading(out, "Storage", size(total))
    rows = [
        (
            table.table_name,
            count(table.row_estimate),
            size(table.total_bytes),
            size(table.index_bytes),
            "" if table.bytes_per_row is None else size(table.bytes_per_row),
            percent(bloat[table.table_name].bloat_fraction or 0.0),
            bar(table.total_bytes / total, _BAR_CELLS).ljust(_BAR_CELLS),
        )
        for table in found.table_sizes
        if table.row_estimate or table.total_bytes > total / 20
    ]
    _table(out, ("table", "rows", "size", "indexes", "a row", "bloat", ""), rows)
    forecast = found.storage_forecast
    growth = sum(table.bytes_per_day for table in forecast)
    in_30_days = sum(table.bytes_in_30_days for table in forecast)
    in_90_days = sum(table.bytes_in_90_days for table in forecast)
    out.print(
        f"{size(growth)} a day: {size(in_30_days)} in 30 days, {size(in_90_days)} in 90 days, if"
        " nothing is removed",
        style="dim",
    )


def _show_weeks(out: Console, found: _Found) -> None:
    from tracedb.render import bar, count, heading, size

    periods = [period for period in found.trace_storage if period.trace_count]
    if not periods:
        return
    most = max(period.total_bytes for period in periods)
    heading(out, "Traces by partition", "with all their parts and texts")
    rows = [
        (
            f"{period.from_time:%Y-%m-%d}",
            count(period.trace_count),
            size(period.total_bytes),
            size(period.bytes_per_trace or 0),
            bar(period.total_bytes / most, _BAR_CELLS).ljust(_BAR_CELLS),
        )
        for period in periods[-_BAR_CELLS:]
    ]
    _table(out, ("from", "traces", "size", "a trace", ""), rows)


def _show_partitions(out: Console, found: list[ops.PartitionHeadroom]) -> None:
    from tracedb.render import count, heading

    heading(out, "Partitions")
    nearest = min(found, key=lambda table: table.headroom_seconds)
    strays = sum(table.default_rows for table in found)
    number = sum(table.partition_count for table in found)
    until = "nowhere" if nearest.covered_until is None else f"{nearest.covered_until:%Y-%m-%d}"
    out.print(
        f"  {count(number)}, of {len(found)} tables, until {until}"
        f" ({nearest.headroom_seconds / 86_400:.0f} days ahead)"
    )
    if strays:
        out.print(
            f"  {count(strays)} rows in default partitions: run tracedb partitions", style="red"
        )


def _show_ingest(out: Console, found: _Found) -> None:
    from tracedb.render import count, duration, heading

    heading(out, "Ingest", "rows whose ids are of the last hour")
    by_table: dict[str, list[ops.IngestLag]] = {}
    for lag in found.ingest_lag:
        by_table.setdefault(lag.table_name, []).append(lag)
    rows = [
        (
            name,
            count(sum(lag.row_count for lag in lags)),
            str(len(lags)),
            duration(min(lag.lag_seconds for lag in lags) * 1000),
            duration(max(lag.p95_delay_seconds for lag in lags) * 1000),
        )
        for name, lags in by_table.items()
    ]
    if rows:
        _table(out, ("table", "rows", "tenants", "newest ago", "worst p95 delay"), rows)
    else:
        out.print("  none")
    changes = sum(backlog.change_count for backlog in found.change_backlog)
    if changes:
        oldest = min(backlog.oldest_at for backlog in found.change_backlog)
        out.print(f"  {count(changes)} changes not folded since {oldest:%Y-%m-%d %H:%M}")


def _show_writers(out: Console, found: list[ops.ServiceLosses]) -> None:
    from tracedb.render import count, heading

    heading(out, "Writers")
    if not found:
        out.print("  none")
        return
    by_service: dict[str, list[ops.ServiceLosses]] = {}
    for losses in found:
        by_service.setdefault(losses.service or "(no name)", []).append(losses)
    figures = ("accepted", "stored", "pending", "dead", "requeued", "dropped", "lost")
    rows = [
        (
            service,
            count(sum(one.living_count for one in all_of)),
            *(count(sum(getattr(one, figure) for one in all_of)) for figure in figures),
        )
        for service, all_of in by_service.items()
    ]
    _table(out, ("service", "living", *figures), rows)


def _show_unused(out: Console, found: list[ops.IndexUsage]) -> None:
    from tracedb.render import heading, size

    unused = [index for index in found if index.is_unused]
    if not unused:
        return
    since = unused[0].counted_since
    heading(out, "Indexes never used", f"since {since:%Y-%m-%d}" if since else "")
    _table(
        out,
        ("index", "of", "size"),
        [(index.index_name, index.table_name, size(index.index_bytes)) for index in unused],
    )
