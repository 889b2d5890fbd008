"""tracedb remembers in PostgreSQL what AI agents did, what it cost and what worked."""

from __future__ import annotations

from importlib.metadata import version

from tracedb.client import AsyncTenant, AsyncTraceDB, Tenant, TraceDB, connect, connect_async
from tracedb.errors import (
    ConnectionFailed,
    InvalidInput,
    NotMigrated,
    PermissionDenied,
    TenantMissing,
    TracedbError,
)
from tracedb.query import Query, run, run_async
from tracedb.rows import (
    AgentPerformance,
    DashboardSummary,
    DeadLetter,
    EndpointReliability,
    ErrorGroup,
    HookPerformance,
    Receipt,
    Rejection,
    Requeued,
    TraceSummary,
    TreeNode,
    WriterLosses,
)

__version__ = version("tracedb")

__all__ = [
    "AgentPerformance",
    "AsyncTenant",
    "AsyncTraceDB",
    "ConnectionFailed",
    "DashboardSummary",
    "DeadLetter",
    "EndpointReliability",
    "ErrorGroup",
    "HookPerformance",
    "InvalidInput",
    "NotMigrated",
    "PermissionDenied",
    "Query",
    "Receipt",
    "Rejection",
    "Requeued",
    "Tenant",
    "TenantMissing",
    "TraceDB",
    "TraceSummary",
    "TracedbError",
    "TreeNode",
    "WriterLosses",
    "__version__",
    "connect",
    "connect_async",
    "run",
    "run_async",
]
