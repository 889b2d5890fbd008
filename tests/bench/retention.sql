-- retention.sql: a day of traces, each with 5 spans of about 0.7 KB and a text of 2 KB.

insert into tracedb.execution_traces
    (tenant_id, trace_id, name, agent_id, route, status, started_at, duration_ms, context)
select
    md5((n %% 50)::text)::uuid, tracedb.uuid_from_key(at, n::text), 'request', 'agent ' || n %% 9,
    'route ' || n %% 7, 'ok', at, n %% 3000, jsonb_build_object('n', n, 'key', md5(n::text))
from generate_series(1, %(traces)s) as n
cross join lateral (
    select %(day)s::timestamptz + n * interval '86399 seconds' / %(traces)s
) as a (at)
on conflict do nothing;
insert into tracedb.llm_spans
    (tenant_id, trace_id, span_id, name, operation_type, status, started_at, ended_at, provider,
    request_model, input_tokens, output_tokens, cost_usd, attributes)
select
    t.tenant_id, t.trace_id, int8send(s), 'call ' || s, 'llm', 'ok', t.started_at,
    t.started_at + s * interval '100 ms', 'openai', 'gpt-4o', s * 100, s * 10, s * 0.00123,
    jsonb_build_object('note', repeat(md5(t.trace_id::text || s), 12))
from tracedb.execution_traces as t
cross join generate_series(1, 5) as s
where t.trace_id >= tracedb.uuid_floor(%(day)s)
    and t.trace_id < tracedb.uuid_floor(%(day)s + interval '1 day')
on conflict do nothing;
insert into tracedb.trace_payloads (tenant_id, trace_id, kind, content, recorded_at)
select t.tenant_id, t.trace_id, 'prompt', repeat(md5(t.trace_id::text) || ' ', 60), t.started_at
from tracedb.execution_traces as t
where t.trace_id >= tracedb.uuid_floor(%(day)s)
    and t.trace_id < tracedb.uuid_floor(%(day)s + interval '1 day')
on conflict do nothing
