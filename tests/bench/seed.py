"""Fills a database with traces and six parts of each, made in SQL: the same in every run."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

TENANTS = 50
USERS = 2_000

# Tenants are skewed: the first of 50 has a seventh of the traces. Every twentieth trace is nested
# in the one before it. Costs and tokens are left to the spans.
_PLAN = """
create temporary table planned as
with numbered as (
    select
        i,
        i - (i %% 20 = 0)::integer as request,
        %(as_of)s::timestamptz - %(days)s * interval '1 day' * (%(traces)s - i) / %(traces)s as at
    from generate_series(1::bigint, %(traces)s) as i
),
chosen as (
    select
        n.*,
        floor(%(tenants)s * power((request * 2654435761 %% 1000003) / 1000003.0, 2))::integer
            as tenant_no,
        floor(%(users)s / %(tenants)s * (request * 40503 %% 65521) / 65521.0)::integer as user_no
    from numbered as n
)
select
    c.*,
    ('00000000-0000-4000-8000-' || lpad(to_hex(c.tenant_no), 12, '0'))::uuid as tenant_id,
    tracedb.uuid_from_key(c.at, c.i::text) as trace_id,
    case when %(slow_every)s = 0 then c.i %% 9000
        when c.i %% %(slow_every)s = 0 then 5000 + c.i %% 9000
        else c.i %% 5000 end as duration_ms,
    'user-' || c.tenant_no * (%(users)s / %(tenants)s) + c.user_no as user_id
from chosen as c
"""

_TRACES = """
insert into tracedb.execution_traces (
    tenant_id, trace_id, parent_trace_id, external_id, session_id, user_id, source, channel, name,
    route, agent_id, status, error_type, started_at, ended_at, duration_ms, context
)
select
    p.tenant_id, p.trace_id, parent.trace_id, case when p.i % 5 = 4 then 'request-' || p.i end,
    'session-' || p.i / 7, p.user_id, 'api', 'web', 'answer a request',
    (array['booking', 'refund', 'status', 'smalltalk'])[p.i % 4 + 1], 'agent-' || p.i % 12,
    case when p.i % 37 = 0 then 'error' else 'ok' end,
    case when p.i % 37 = 0 then 'UpstreamTimeout' end,
    p.at, p.at + p.duration_ms * interval '1 millisecond', p.duration_ms,
    jsonb_build_object('note', repeat(md5(p.i::text), 8))
from planned as p
left join planned as parent on parent.i = p.request and p.request < p.i
"""

_PARTS = {
    "agent_routing_decisions": (
        "selected_agent, total_confidence, candidates",
        '\'agent-1\', 0.9, \'[{"agent": "agent-1"}, {"agent": "agent-2"}]\'',
    ),
    "hook_executions": ("hook_type, tool_name, outcome", "'pre_tool_use', 'search', 'allowed'"),
    "endpoint_calls": ("service, method, path, status_code", "'orders', 'GET', '/v1', 200"),
    "llm_spans": (
        "operation_type, provider, request_model, input_tokens, output_tokens, cost_usd",
        "'llm', 'openai', 'gpt-4.1-mini', 100 + p.i % 5000, 10 + p.i % 500, (p.i % 700) * 0.000013",
    ),
}

_MAPPED = """
insert into tracedb.trace_ids (tenant_id, external_id, trace_id)
select p.tenant_id, 'request-' || p.i, p.trace_id from planned as p where p.i % 5 = 4
"""

_CHANGES = """
insert into tracedb.trace_changes (tenant_id, trace_ids)
select p.tenant_id, array_agg(p.trace_id) from planned as p group by p.tenant_id, p.i / 1000
"""

_PAYLOADS = """
insert into tracedb.trace_payloads (tenant_id, trace_id, kind, content, recorded_at)
select p.tenant_id, p.trace_id, 'prompt', repeat(md5(p.i::text), 20), p.at
from planned as p where p.i % 5 = 4
"""

_EVENTS = (
    """
    insert into tracedb.platform_events (
        tenant_id, event_id, occurred_at, event_type, event_category
    )
    select p.tenant_id, p.trace_id, p.at, 'user_query', 'user_behavior' from planned as p
    """,
    """
    insert into tracedb.tenant_cost_events (
        tenant_id, event_id, occurred_at, cost_type, service, cost_usd
    )
    select p.tenant_id, p.trace_id, p.at, 'llm', 'openai', 0.01 from planned as p
    """,
    """
    insert into tracedb.agent_executions (tenant_id, event_id, occurred_at, agent_id, success)
    select p.tenant_id, p.trace_id, p.at, 'agent-' || p.i % 12, true from planned as p
    """,
)


def tenant_id(number: int) -> UUID:
    return UUID(f"00000000-0000-4000-8000-{number:012x}")


def fill(
    conn: psycopg.Connection[Any],
    traces: int,
    *,
    as_of: datetime,
    days: int = 90,
    tenants: int = TENANTS,
    users: int = USERS,
    part_bytes: int = 1_300,
    spans: int = 3,
    slow_every: int = 0,
) -> None:
    """As a superuser, who is above row-level security; leaves a temporary table `planned`.

    Four of nine traces take 5 seconds or longer, or one of `slow_every`.
    """
    conn.execute("select set_config('synchronous_commit', 'off', false)")
    conn.execute(
        "select tracedb.ensure_partitions(%s, %s - %s * interval '1 day')", [as_of, as_of, days]
    )
    size = {"as_of": as_of, "days": days, "traces": traces, "tenants": tenants, "users": users}
    size |= {"slow_every": slow_every}
    with conn.transaction():
        psycopg.ClientCursor(conn).execute(_PLAN, size)
        for statement in (
            _TRACES,
            *_part_statements(part_bytes, spans),
            _MAPPED,
            _CHANGES,
            _PAYLOADS,
            *_EVENTS,
        ):
            conn.execute(statement)
    conn.autocommit = True
    conn.execute("vacuum (analyze)")


def _part_statements(size: int, spans: int) -> list[str]:
    statements = []
    first = 1
    for table, (columns, values) in _PARTS.items():
        each = spans if table == "llm_spans" else 1
        statements.append(
            f"insert into tracedb.{table} (tenant_id, trace_id, span_id, name, status, started_at,"
            f" ended_at, attributes, {columns}) "
            "select p.tenant_id, p.trace_id, decode(lpad(to_hex(part), 16, '0'), 'hex'), 'step',"
            " case when p.i % 41 = 0 then 'error' else 'ok' end, p.at + part * interval '20 ms',"
            " p.at + part * interval '40 ms',"
            f" jsonb_build_object('text', repeat(md5(p.i::text), {size // 32})), {values} "
            f"from planned as p cross join generate_series({first}, {first + each - 1}) as part"
        )
        first += each
    return statements
