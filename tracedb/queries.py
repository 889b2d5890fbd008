"""One typed function for every statement of queries.sql."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypedDict, Unpack
from uuid import UUID

from psycopg.rows import class_row, dict_row, scalar_row

from tracedb import rows
from tracedb.answers import as_json, figures_of, summaries
from tracedb.query import Query, many, maybe, nothing, one, statement
from tracedb.records import Batch


class TraceFilter(TypedDict, total=False):
    """What `find_traces` can be asked for; a field left out, or None, asks for nothing.

    Times are of `started_at`: `since` is inclusive, `until` is not; the other bounds are. `status`
    is one or a list. `model` (asked for, or that answered), `operation_type`, `conversation_id` and
    `message_id` are of any one span; costs are those of `trace_summary`.
    """

    since: datetime | None
    until: datetime | None
    user_id: str | None
    session_id: str | None
    route: str | None
    agent_id: str | None
    status: str | Sequence[str] | None
    error_type: str | None
    tag: str | None
    research_triggered: bool | None
    min_duration_ms: int | None
    max_duration_ms: int | None
    model: str | None
    operation_type: str | None
    conversation_id: str | None
    message_id: str | None
    min_cost_usd: Decimal | str | None
    max_cost_usd: Decimal | str | None


def ingest(batch: Batch) -> Query[rows.Receipt]:
    """Store a batch of records (`tracedb.ingest`); what was refused on this side is added."""

    def receipt(found: Sequence[dict[str, Any]]) -> rows.Receipt:
        row = one(found)
        refused = [
            rows.Rejection(batch.positions[item["index"]], item["reason"])
            for item in row["rejected"]
        ]
        return rows.Receipt(
            received=row["received"] + len(batch.rejected),
            inserted=row["inserted"],
            merged=row["merged"],
            duplicates=row["duplicates"],
            rejected=tuple(sorted([*refused, *batch.rejected], key=lambda r: r.index)),
        )

    def without() -> rows.Receipt:
        lost = [
            rows.Rejection(index, "record: not stored, without a database")
            for index in batch.positions
        ]
        rejected = tuple(sorted([*lost, *batch.rejected], key=lambda r: r.index))
        return rows.Receipt(received=len(rejected), rejected=rejected)

    return Query(statement("ingest"), {"batch": batch.json}, dict_row, receipt, without)


def find_trace(external_id: str | UUID) -> Query[UUID | None]:
    """The trace_id of a foreign id, in either spelling, or of a trace_id; None if there is none."""
    args = {"external_id": str(external_id)}
    return Query(statement("find_trace"), args, scalar_row, one, nothing)


def get_trace(trace_id: UUID) -> Query[dict[str, Any] | None]:
    """The assembled trace as one document (`tracedb.get_trace`); its fractions are `Decimal`."""

    def document(found: Sequence[str | None]) -> dict[str, Any] | None:
        text = one(found)
        return None if text is None else json.loads(text, parse_float=Decimal)

    return Query(statement("get_trace"), {"trace_id": trace_id}, scalar_row, document, nothing)


def trace_tree(trace_id: UUID) -> Query[list[rows.TreeNode]]:
    """The trace with all its parts and nested executions, depth first; [] if there is none."""
    row = class_row(rows.TreeNode)
    return Query(statement("trace_tree"), {"trace_id": trace_id}, row, many)


def trace_summary(trace_id: UUID) -> Query[rows.TraceSummary | None]:
    """The header of a trace with its tokens, cost and part counts; None if there is none."""
    row = class_row(rows.TraceSummary)
    return Query(statement("trace_summary"), {"trace_id": trace_id}, row, maybe)


def find_traces(
    *,
    limit: int = 100,
    cursor: str | None = None,
    offset: int = 0,
    as_of: datetime | None = None,
    **filter: Unpack[TraceFilter],
) -> Query[rows.TracePage]:
    """Traces that match a filter, newest first, a page of at most 1000 (`tracedb.find_traces`).

    The next page is the same call with the cursor of this one. Fields are those of `TraceFilter`. A
    search that names neither `since`, nor `user_id`, nor only failures as `status` goes back 30
    days from `until` or `as_of` (default: now). Raises InvalidInput "field: rule".
    """

    def page(found: Sequence[dict[str, Any]]) -> rows.TracePage:
        after = found[-1]["cursor"] if len(found) == limit else None
        return rows.TracePage(tuple(summaries(found)), after)

    args = {
        "filter": json.dumps(filter, default=as_json),
        "limit": limit,
        "cursor": cursor,
        "offset": offset,
        "as_of": as_of,
    }
    return Query(statement("find_traces"), args, dict_row, page)


def get_user_traces(
    user_id: str,
    limit: int = 10,
    offset: int = 0,
    start_date: datetime | None = None,
    end_date: datetime | None = None,
) -> Query[list[rows.TraceSummary]]:
    """The newest traces of a user, from `start_date` on and before `end_date`."""
    args = {
        "user_id": user_id,
        "limit": limit,
        "offset": offset,
        "start_date": start_date,
        "end_date": end_date,
    }
    return Query(statement("get_user_traces"), args, dict_row, summaries)


def get_traces_by_route(
    route: str, limit: int = 10, days: int = 7, as_of: datetime | None = None
) -> Query[list[rows.TraceSummary]]:
    """The newest traces of a route in the days before `as_of` (default: now)."""
    args = {"route": route, "limit": limit, "days": days, "as_of": as_of}
    return Query(statement("get_traces_by_route"), args, dict_row, summaries)


def get_traces_by_agent(
    agent_id: str, limit: int = 10, days: int = 7, as_of: datetime | None = None
) -> Query[list[rows.TraceSummary]]:
    """The newest traces of an agent, nested ones too, in the days before `as_of` (now)."""
    args = {"agent_id": agent_id, "limit": limit, "days": days, "as_of": as_of}
    return Query(statement("get_traces_by_agent"), args, dict_row, summaries)


def get_error_traces(
    limit: int = 10, days: int = 7, as_of: datetime | None = None
) -> Query[list[rows.TraceSummary]]:
    """The newest traces that failed (error or timeout) in the days before `as_of` (now)."""
    args = {"limit": limit, "days": days, "as_of": as_of}
    return Query(statement("get_error_traces"), args, dict_row, summaries)


def get_slow_queries(
    threshold_ms: int = 5000, limit: int = 10, days: int = 7, as_of: datetime | None = None
) -> Query[list[rows.TraceSummary]]:
    """The newest traces that took `threshold_ms` or longer, in the days before `as_of` (now)."""
    args = {"threshold_ms": threshold_ms, "limit": limit, "days": days, "as_of": as_of}
    return Query(statement("get_slow_queries"), args, dict_row, summaries)


def get_research_triggers(
    limit: int = 10, days: int = 7, as_of: datetime | None = None
) -> Query[list[rows.TraceSummary]]:
    """The newest traces that triggered research, in the days before `as_of` (default: now)."""
    args = {"limit": limit, "days": days, "as_of": as_of}
    return Query(statement("get_research_triggers"), args, dict_row, summaries)


def get_analytics(days: int = 7, as_of: datetime | None = None) -> Query[rows.Analytics]:
    """Totals, by agent and by route, of the days before `as_of` (default: now)."""

    def analytics(found: Sequence[str]) -> rows.Analytics:
        figures = figures_of(one(found))
        for groups, field in (("by_agent", "agent_id"), ("by_route", "route")):
            figures[groups] = tuple(
                rows.AnalyticsGroup(name=group.pop(field), **group) for group in figures[groups]
            )
        return rows.Analytics(**figures)

    def without() -> rows.Analytics:
        until = as_of or datetime.now(UTC)
        return rows.Analytics(since=until - timedelta(days=days), until=until)

    args = {"days": days, "as_of": as_of}
    return Query(statement("get_analytics"), args, scalar_row, analytics, without)


def get_user_analytics(user_id: str) -> Query[rows.UserAnalytics | None]:
    """A user over all retained traces; None if no trace names the user."""

    def analytics(found: Sequence[str | None]) -> rows.UserAnalytics | None:
        text = one(found)
        return None if text is None else rows.UserAnalytics(**figures_of(text))

    args = {"user_id": user_id}
    return Query(statement("get_user_analytics"), args, scalar_row, analytics, nothing)


def changes_cursor() -> Query[str]:
    """A cursor for `changes_since` that skips what has been written so far.

    A graceful client answers None without a database, with which `changes_since` skips nothing.
    """
    return Query(statement("changes_cursor"), {}, scalar_row, one, nothing)


def changes_since(cursor: str | None = None, limit: int = 1000) -> Query[list[rows.TraceChange]]:
    """Traces written since a cursor, or parts of them (`tracedb.changes_since`).

    Go on with the `next_cursor` of the last one; if there is none, with the same again. No
    committed change is ever skipped; a trace may be named more than once.
    """
    args = {"cursor": cursor, "limit": limit}
    return Query(statement("changes_since"), args, class_row(rows.TraceChange), many)


def agent_performance() -> Query[list[rows.AgentPerformance]]:
    """How each agent did, the busiest first."""
    return Query(statement("agent_performance"), {}, class_row(rows.AgentPerformance), many)


def hook_performance_summary() -> Query[list[rows.HookPerformance]]:
    """How each hook did, the busiest first."""
    return Query(statement("hook_performance_summary"), {}, class_row(rows.HookPerformance), many)


def endpoint_reliability() -> Query[list[rows.EndpointReliability]]:
    """How each endpoint did, the busiest first."""
    return Query(statement("endpoint_reliability"), {}, class_row(rows.EndpointReliability), many)


def error_analysis() -> Query[list[rows.ErrorGroup]]:
    """The kinds of failure, the most frequent first."""
    return Query(statement("error_analysis"), {}, class_row(rows.ErrorGroup), many)


def dashboard_summary() -> Query[rows.DashboardSummary | None]:
    """The tenant's last 7 days; None if it had no request in them."""
    return Query(statement("dashboard_summary"), {}, class_row(rows.DashboardSummary), maybe)


def ensure_tenant(external_id: str, name: str | None = None) -> Query[UUID]:
    """The tenant_id of a caller's own tenant id, registered if new.

    A graceful client answers None without a database, and takes it for a tenant that has nothing.
    """
    args = {"external_id": external_id, "name": name}
    return Query(statement("ensure_tenant"), args, scalar_row, one, nothing)


def ensure_partitions(
    as_of: datetime | None = None, since: datetime | None = None
) -> Query[list[str]]:
    """Make the partitions from `since` (default: now) to the policy's reach after `as_of`."""
    args = {"as_of": as_of, "since": since}
    return Query(statement("ensure_partitions"), args, scalar_row, many)


def drain_default_partitions(max_periods: int = 10) -> Query[list[str]]:
    """Move rows out of the default partitions; the names of the partitions made for them."""
    args = {"max_periods": max_periods}
    return Query(statement("drain_default_partitions"), args, scalar_row, many)


def loss_report(writer_id: UUID | None = None) -> Query[list[rows.WriterLosses]]:
    """What became of the records of each writer, or of one (`tracedb.loss_report`)."""

    def losses(found: Sequence[dict[str, Any]]) -> list[rows.WriterLosses]:
        return [
            rows.WriterLosses(
                **{**row, "gaps": tuple((gap.lower, gap.upper - 1) for gap in row["gaps"])}
            )
            for row in found
        ]

    return Query(statement("loss_report"), {"writer_id": writer_id}, dict_row, losses)


def dead_letters(max_rows: int = 100, after: UUID | None = None) -> Query[list[rows.DeadLetter]]:
    """Dead letters, oldest first; to go on, name the last one's id."""
    args = {"max_rows": max_rows, "after": after}
    return Query(statement("dead_letters"), args, class_row(rows.DeadLetter), many)


def requeue_dead_letters(
    dead_letter_ids: Sequence[UUID] | None = None, max_rows: int = 1000
) -> Query[rows.Requeued]:
    """Try dead letters again: these, or the oldest (`tracedb.requeue_dead_letters`)."""

    def requeued(found: Sequence[dict[str, Any]]) -> rows.Requeued:
        row = one(found)
        kept = {UUID(item["dead_letter_id"]): item["reason"] for item in row["kept"]}
        return rows.Requeued(row["requeued"], kept)

    ids = None if dead_letter_ids is None else list(dead_letter_ids)
    args = {"dead_letter_ids": ids, "max_rows": max_rows}
    return Query(
        statement("requeue_dead_letters"), args, dict_row, requeued, lambda: rows.Requeued(0, {})
    )


def purge_dead_letters(before: datetime | None = None, max_rows: int = 10_000) -> Query[int]:
    """Give up dead letters made before a time (default: now); how many."""
    args = {"before": before, "max_rows": max_rows}
    return Query(statement("purge_dead_letters"), args, scalar_row, one, lambda: 0)


def tenants_with_writers() -> Query[list[UUID]]:
    """The tenants that have a ledger, as far as this role sees them."""
    return Query(statement("tenants_with_writers"), {}, scalar_row, many)


def usage_series(
    since: datetime, until: datetime | None = None, width: Literal["hour", "day", "total"] = "hour"
) -> Query[list[rows.Usage]]:
    """Usage from `since` to `until` (default: now) by hour, day or in total, exact at any moment.

    A row for each kind, agent, route, provider, model and operation (`tracedb.usage_series`).
    """
    args = {"since": since, "until": until, "width": width}
    return Query(statement("usage_series"), args, class_row(rows.Usage), many)


def usage_differences(
    since: datetime, until: datetime | None = None
) -> Query[list[rows.UsageDifference]]:
    """Where totals are not what their traces add up to (`tracedb.usage_differences`)."""
    args = {"since": since, "until": until}
    return Query(statement("usage_differences"), args, class_row(rows.UsageDifference), many)


def fold_usage(max_traces: int = 5000) -> Query[list[rows.Folded]]:
    """Bring totals up to what is committed, about so many traces' worth (`tracedb.fold_usage`).

    What was folded, tenant by tenant; nothing once nothing is left.
    """
    args = {"max_traces": max_traces}
    return Query(statement("fold_usage"), args, class_row(rows.Folded), many)


def unfolded_changes() -> Query[int]:
    """How many changes are not folded into the totals yet, as far as this role sees them."""
    return Query(statement("unfolded_changes"), {}, scalar_row, one, lambda: 0)


def agent_report(since: datetime, until: datetime | None = None) -> Query[list[rows.AgentReport]]:
    """Agents compared over a time, the most surely successful first (`tracedb.agent_report`)."""
    args = {"since": since, "until": until}
    return Query(statement("agent_report"), args, class_row(rows.AgentReport), many)


def get_agent_success_rate(
    agent_id: str, hours: int = 24, as_of: datetime | None = None
) -> Query[float | None]:
    """How many per cent (0 to 100) of an agent's runs in these hours were a success.

    None without any (`tracedb.get_agent_success_rate`).
    """
    args = {"agent_id": agent_id, "hours": hours, "as_of": as_of}
    return Query(statement("get_agent_success_rate"), args, scalar_row, one, nothing)


def get_tenant_health(as_of: datetime | None = None) -> Query[rows.TenantHealth | None]:
    """How well the tenant fares, 0 to 100, and why (`tracedb.get_tenant_health`)."""
    args = {"as_of": as_of}
    return Query(statement("get_tenant_health"), args, class_row(rows.TenantHealth), maybe)


def get_churn_risk(as_of: datetime | None = None) -> Query[rows.ChurnRisk | None]:
    """How likely it looks that the tenant leaves (`tracedb.get_churn_risk`).

    None if it had no request in 90 days.
    """
    args = {"as_of": as_of}
    return Query(statement("get_churn_risk"), args, class_row(rows.ChurnRisk), maybe)


def get_usage_patterns(
    weeks: int = 4, as_of: datetime | None = None
) -> Query[list[rows.UsagePattern]]:
    """Requests by weekday and hour of UTC (`tracedb.get_usage_patterns`)."""
    args = {"weeks": weeks, "as_of": as_of}
    return Query(statement("get_usage_patterns"), args, class_row(rows.UsagePattern), many)


def get_feature_adoption(
    days: int = 28, as_of: datetime | None = None
) -> Query[list[rows.FeatureAdoption]]:
    """Which routes, agents, models and operations are used (`tracedb.get_feature_adoption`)."""
    args = {"days": days, "as_of": as_of}
    return Query(statement("get_feature_adoption"), args, class_row(rows.FeatureAdoption), many)
