-- plain.sql: the same rows as the mission's documents lay them out: tables without partitions,
-- random keys, an index for each of user, times, status and references, row-level security.

create schema plain;

create function plain.key_of(id uuid, part bytea default null) returns uuid
language sql immutable parallel safe
return md5(id::text || coalesce(encode(part, 'hex'), ''))::uuid;

create table plain.execution_traces as
select
    plain.key_of(t.trace_id) as id, t.tenant_id, t.session_id, t.user_id, t.source, t.channel,
    t.name, t.route, t.agent_id, t.status, t.error_type, t.started_at, t.ended_at, t.duration_ms,
    t.context, t.created_at,
    (
        select p.content
        from tracedb.trace_payloads as p
        where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id and p.kind = 'prompt'
    ) as prompt
from tracedb.execution_traces as t;

create table plain.llm_traces as
select
    plain.key_of(s.trace_id, s.span_id) as id, plain.key_of(s.trace_id) as trace_id, s.tenant_id,
    s.name, s.operation_type, s.status, s.started_at, s.ended_at, s.duration_us, s.provider,
    s.request_model, s.input_tokens, s.output_tokens, s.cost_usd, s.attributes, s.created_at
from tracedb.llm_spans as s;

create table plain.agent_routing_decisions as
select
    plain.key_of(s.trace_id, s.span_id) as id, plain.key_of(s.trace_id) as trace_id, s.tenant_id,
    s.name, s.selected_agent, s.total_confidence, s.candidates, s.status, s.started_at, s.ended_at,
    s.attributes, s.created_at
from tracedb.agent_routing_decisions as s;

create table plain.hook_executions as
select
    plain.key_of(s.trace_id, s.span_id) as id, plain.key_of(s.trace_id) as trace_id, s.tenant_id,
    s.name, s.hook_type, s.tool_name, s.outcome, s.status, s.started_at, s.ended_at, s.attributes,
    s.created_at
from tracedb.hook_executions as s;

create table plain.endpoint_calls as
select
    plain.key_of(s.trace_id, s.span_id) as id, plain.key_of(s.trace_id) as trace_id, s.tenant_id,
    s.name, s.service, s.method, s.path, s.status_code, s.status, s.started_at, s.ended_at,
    s.attributes, s.created_at
from tracedb.endpoint_calls as s;

do $$
declare
    wanted record;
begin
    for wanted in
        select c.relname, a.attname
        from pg_class as c
        join pg_attribute as a on a.attrelid = c.oid
        where c.relnamespace = 'plain'::regnamespace and c.relkind = 'r'
            and a.attname in (
                'id', 'trace_id', 'tenant_id', 'user_id', 'session_id', 'agent_id', 'status',
                'started_at', 'created_at')
    loop
        execute format(
            case when wanted.attname = 'id' then 'alter table plain.%1$I add primary key (id)'
            else 'create index on plain.%1$I (%2$I)' end,
            wanted.relname, wanted.attname);
    end loop;
    for wanted in
        select c.relname from pg_class as c
        where c.relnamespace = 'plain'::regnamespace and c.relkind = 'r'
    loop
        execute format('alter table plain.%I enable row level security', wanted.relname);
        execute format(
            'create policy own on plain.%I using (tenant_id = '
            'nullif(current_setting(''tracedb.tenant_id'', true), '''')::uuid)', wanted.relname);
    end loop;
end $$;

grant usage on schema plain to tracedb_app;
grant select on all tables in schema plain to tracedb_app;
