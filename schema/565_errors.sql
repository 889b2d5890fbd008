-- 565_errors.sql: errors by fingerprint, learned from all that failed.

set role tracedb_owner;

create or replace function tracedb.learn_errors(
    since timestamptz default null,
    max_traces integer default 1000,
    after uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (examined bigint, changed bigint, last_trace_id uuid)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    ids uuid[];
    first_id uuid;
    last_id uuid;
    lines tracedb.learned_traces[];
    errors jsonb;
    changes tracedb.learned_change[];
    news tracedb.learned_news[];
begin
    select b.examined, b.trace_ids, b.last_trace_id into examined, ids, last_trace_id
    from tracedb.traces_to_learn('error', since, max_traces, after, tenant) as b;
    if examined is null then
        return;
    end if;
    ids := array(select i from unnest(ids) as i order by i);
    first_id := ids[1];
    last_id := ids[cardinality(ids)];

    with headers as (
        select t.trace_id, t.status, t.error_type, t.agent_id, t.error_message
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
    ),
    failures as (
        select
            t.trace_id, 'trace' as operation, t.error_type, t.agent_id, null as tool,
            t.error_message as message
        from headers as t
        where t.status in ('error', 'timeout')
        union all
        select
            s.trace_id, s.operation_type, s.error_type, coalesce(s.agent_id, t.agent_id),
            coalesce(s.tool_name, s.response_model, s.request_model, s.name), s.status_message
        from tracedb.llm_spans as s
        left join headers as t on t.trace_id = s.trace_id
        where s.tenant_id = tenant and s.trace_id = any(ids)
            and s.trace_id between first_id and last_id and s.status in ('error', 'timeout')
        union all
        select
            h.trace_id, 'hook', h.error_type, t.agent_id,
            concat_ws(' ', h.hook_type, coalesce(h.name, h.script), h.tool_name), h.error_message
        from tracedb.hook_executions as h
        left join headers as t on t.trace_id = h.trace_id
        where h.tenant_id = tenant and h.trace_id = any(ids)
            and h.trace_id between first_id and last_id and h.status in ('error', 'timeout')
        union all
        select
            e.trace_id, 'endpoint', coalesce(e.error_type, 'HTTP ' || e.status_code, e.status),
            t.agent_id, concat_ws(' ', e.service, e.method, tracedb.endpoint_template(e.path)),
            e.error_message
        from tracedb.endpoint_calls as e
        left join headers as t on t.trace_id = e.trace_id
        where e.tenant_id = tenant and e.trace_id = any(ids)
            and e.trace_id between first_id and last_id and e.status in ('error', 'timeout')
        union all
        select r.trace_id, 'routing', r.error_type, r.selected_agent, r.name, r.error_message
        from tracedb.agent_routing_decisions as r
        where r.tenant_id = tenant and r.trace_id = any(ids)
            and r.trace_id between first_id and last_id and r.status in ('error', 'timeout')
    ),
    named as (
        select
            f.trace_id, l.*, left(f.message, 500) as message,
            md5(jsonb_build_array(
                l.template, l.operation, l.error_type, l.agent_id, l.tool)::text)::uuid
                as fingerprint
        from failures as f
        cross join lateral (
            select
                coalesce(tracedb.error_template(f.message), '') as template, f.operation,
                left(f.error_type, 200) as error_type, left(f.agent_id, 200) as agent_id,
                left(nullif(f.tool, ''), 200) as tool
        ) as l
    ),
    by_trace as (
        select n.trace_id, n.fingerprint, count(*) as occurrences
        from named as n
        group by n.trace_id, n.fingerprint
    ),
    described as (
        select
            n.fingerprint, n.template, n.operation, n.error_type, n.agent_id, n.tool,
            min(n.message) as message
        from named as n
        group by n.fingerprint, n.template, n.operation, n.error_type, n.agent_id, n.tool
    )
    select
        array(
            select row(
                tenant, b.trace_id, 'error', b.fingerprint, b.occurrences, 0, null, null, null,
                null, null)::tracedb.learned_traces
            from by_trace as b
        ),
        (select jsonb_object_agg(d.fingerprint, to_jsonb(d)) from described as d)
    into lines, errors;

    changes := array(select c from tracedb.note_learned('error', ids, lines, tenant) as c);
    news := array(
        select n
        from tracedb.newest_learned(array(select c.learned_id from unnest(changes) as c), tenant)
            as n
    );
    update tracedb.error_patterns as p
    set occurrences = p.occurrences + c.occurrences,
        trace_count = p.trace_count + c.traces,
        first_seen_at = case
            when c.first_taken <= p.first_seen_at then coalesce(n.first_seen_at, p.first_seen_at)
            else least(p.first_seen_at, n.first_seen_at)
        end,
        last_seen_at = coalesce(n.last_seen_at, p.last_seen_at),
        sample_message = least(p.sample_message, errors -> p.fingerprint::text ->> 'message'),
        sample_trace_ids = coalesce(n.source_trace_ids, '{}'),
        updated_at = now()
    from unnest(changes) as c
    join unnest(news) as n on n.learned_id = c.learned_id
    where p.tenant_id = tenant and p.fingerprint = c.learned_id;

    insert into tracedb.error_patterns (
        tenant_id, fingerprint, template, operation, error_type, agent_id, tool, occurrences,
        trace_count, first_seen_at, last_seen_at, sample_message, sample_trace_ids
    )
    select
        tenant, c.learned_id, e.template, e.operation, e.error_type, e.agent_id, e.tool,
        c.occurrences, c.traces, n.first_seen_at, n.last_seen_at, e.message, n.source_trace_ids
    from unnest(changes) as c
    join unnest(news) as n on n.learned_id = c.learned_id
    cross join lateral jsonb_to_record(errors -> c.learned_id::text) as e (
        template text, operation text, error_type text, agent_id text, tool text, message text
    )
    where c.traces > 0
        and not exists (
            select from tracedb.error_patterns as k
            where k.tenant_id = tenant and k.fingerprint = c.learned_id
        )
    on conflict do nothing;

    -- Of a report that was replaced; a fix that somebody wrote down stays.
    delete from tracedb.error_patterns as p
    using unnest(changes) as c
    where p.tenant_id = tenant and p.fingerprint = c.learned_id and p.trace_count = 0
        and p.known_fix is null;

    changed := cardinality(changes);
    return next;
end $$;

comment on function tracedb.learn_errors(timestamptz, integer, uuid, uuid) is
    'Learns error_patterns from traces and parts that ended in error or timeout: what was said '
    '(error_template), and where: operation, error_type (of an endpoint its HTTP status, if it has '
    'none), agent and tool. Called as extract_patterns is.';

create or replace function tracedb.set_error_fix(
    fingerprint uuid, known_fix text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.error_patterns as e
    set known_fix = set_error_fix.known_fix,
        fix_set_at = case when set_error_fix.known_fix is not null then now() end,
        updated_at = now()
    where e.tenant_id = set_error_fix.tenant_id and e.fingerprint = set_error_fix.fingerprint;
    return found;
end $$;

comment on function tracedb.set_error_fix(uuid, text, uuid) is
    'Writes down what helps against an error (null: nothing is known any more); whether there is '
    'such an error.';

reset role;
