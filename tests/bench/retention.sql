-- retention.sql: a day of traces, each with 5 spans of about 1.7 KB and a text of 2 KB, of words
-- that compress as language does.

create temporary table if not exists sentences (number integer primary key, words text);
insert into sentences
select
    n, string_agg(substr(md5(p.word::text), 1, 3 + p.word %% 7), ' ' order by w)
from generate_series(0, 999) as n
cross join generate_series(1, 75) as w
-- a few words are said often, most of them seldom
cross join lateral (
    select (2000 * power((hashint4(n * 100 + w) & 65535) / 65536.0, 3))::integer
) as p (word)
group by n
on conflict do nothing;

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
    jsonb_build_object('said', concat_ws(' ', a.words, b.words, c.words))
from tracedb.execution_traces as t
cross join generate_series(1, 5) as s
cross join lateral (select md5(t.trace_id::text || s)) as h (hash)
join sentences as a on a.number = ('x' || substr(h.hash, 1, 4))::bit(16)::integer %% 1000
join sentences as b on b.number = ('x' || substr(h.hash, 5, 4))::bit(16)::integer %% 1000
join sentences as c on c.number = ('x' || substr(h.hash, 9, 4))::bit(16)::integer %% 1000
where t.trace_id >= tracedb.uuid_floor(%(day)s)
    and t.trace_id < tracedb.uuid_floor(%(day)s + interval '1 day')
on conflict do nothing;
insert into tracedb.trace_payloads (tenant_id, trace_id, kind, content, recorded_at)
select t.tenant_id, t.trace_id, 'prompt', string_agg(s.words, ' '), t.started_at
from tracedb.execution_traces as t
cross join generate_series(1, 16, 4) as place
join sentences as s
    on s.number = ('x' || substr(md5(t.trace_id::text), place, 4))::bit(16)::integer %% 1000
where t.trace_id >= tracedb.uuid_floor(%(day)s)
    and t.trace_id < tracedb.uuid_floor(%(day)s + interval '1 day')
group by t.tenant_id, t.trace_id, t.started_at
on conflict do nothing
