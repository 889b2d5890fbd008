"""tracedb remembers in PostgreSQL what AI agents did, what it cost and what worked."""

from __future__ import annotations

from importlib.metadata import version

from tracedb.backlog import Stats
from tracedb.client import AsyncTenant, AsyncTraceDB, Tenant, TraceDB, connect, connect_async
from tracedb.errors import (
    ConnectionFailed,
    InvalidInput,
    NotMigrated,
    PermissionDenied,
    TenantMissing,
    TracedbError,
)
from tracedb.pack import Limits
from tracedb.query import Query, run, run_async
from tracedb.rows import (
    AgentPerformance,
    AgentReport,
    Analytics,
    AnalyticsGroup,
    ChurnRisk,
    DashboardSummary,
    DeadLetter,
    EndpointReliability,
    ErrorGroup,
    FeatureAdoption,
    Folded,
    HookPerformance,
    Receipt,
    Rejection,
    Requeued,
    TenantHealth,
    TraceChange,
    TracePage,
    TraceSummary,
    TreeNode,
    Usage,
    UsageDifference,
    UsagePattern,
    UserAnalytics,
    WriterLosses,
)
from tracedb.tracing import current_span, span, trace, traced
from tracedb.writer import AsyncWriter, Writer, get_writer, set_writer

__version__ = version("tracedb")

__all__ = [
    "AgentPerformance",
    "AgentReport",
    "Analytics",
    "AnalyticsGroup",
    "AsyncTenant",
    "AsyncTraceDB",
    "AsyncWriter",
    "ChurnRisk",
    "ConnectionFailed",
    "DashboardSummary",
    "DeadLetter",
    "EndpointReliability",
    "ErrorGroup",
    "FeatureAdoption",
    "Folded",
    "HookPerformance",
    "InvalidInput",
    "Limits",
    "NotMigrated",
    "PermissionDenied",
    "Query",
    "Receipt",
    "Rejection",
    "Requeued",
    "Stats",
    "Tenant",
    "TenantHealth",
    "TenantMissing",
    "TraceChange",
    "TraceDB",
    "TracePage",
    "TraceSummary",
    "TracedbError",
    "TreeNode",
    "Usage",
    "UsageDifference",
    "UsagePattern",
    "UserAnalytics",
    "Writer",
    "WriterLosses",
    "__version__",
    "connect",
    "connect_async",
    "current_span",
    "get_writer",
    "run",
    "run_async",
    "set_writer",
    "span",
    "trace",
    "traced",
]
