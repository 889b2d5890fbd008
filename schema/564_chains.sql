-- 564_chains.sql: agents that call one another, learned from nested executions.

set role tracedb_owner;

create or replace function tracedb.learn_chains(
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
    threshold constant double precision := (tracedb.pattern_settings(tenant)).success_threshold;
    ids uuid[];
    lines tracedb.learned_traces[];
    sequences jsonb;
    changes tracedb.learned_change[];
    news tracedb.learned_news[];
begin
    select b.examined, b.trace_ids, b.last_trace_id into examined, ids, last_trace_id
    from tracedb.traces_to_learn('chain', since, max_traces, after, tenant) as b;
    if examined is null then
        return;
    end if;
    -- What is written of a nested execution changes the chain of its request.
    ids := tracedb.with_nested(array(
        with recursive above as (
            select i as trace_id from unnest(ids) as i
            union
            select t.parent_trace_id
            from above as a
            join tracedb.execution_traces as t
                on t.tenant_id = tenant and t.trace_id = a.trace_id
                and t.parent_trace_id is not null
        )
        select a.trace_id from above as a
    ), tenant);

    with recursive below as (
        select t.trace_id as root_id, t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between ids[1] and ids[cardinality(ids)]
            and t.parent_trace_id is null and t.status <> 'running'
            -- most requests have nothing nested in them
            and exists (
                select from tracedb.execution_traces as n
                where n.tenant_id = tenant and n.parent_trace_id = t.trace_id
            )
        union
        select b.root_id, t.trace_id
        from below as b
        join tracedb.execution_traces as t
            on t.tenant_id = tenant and t.parent_trace_id = b.trace_id
    ),
    steps as (
        select
            b.root_id, t.agent_id, row_number() over w as place,
            lag(t.agent_id) over w as before
        from below as b
        join tracedb.execution_traces as t on t.tenant_id = tenant and t.trace_id = b.trace_id
        where t.agent_id is not null
        window w as (
            partition by b.root_id order by t.trace_id <> b.root_id, t.started_at, t.trace_id
        )
    ),
    chains as (
        select
            s.root_id,
            (array_agg(s.agent_id order by s.place))[:256] as agents
        from steps as s
        where s.agent_id is distinct from s.before
        group by s.root_id
        having count(*) > 1
    ),
    sums as (
        select
            b.root_id,
            tracedb.bounded_tokens(sum(f.input_tokens) + sum(f.output_tokens)) as tokens,
            sum(f.cost_usd) as cost_usd
        from below as b
        join tracedb.trace_figures as f on f.tenant_id = tenant and f.trace_id = b.trace_id
        where b.root_id in (select c.root_id from chains as c)
        group by b.root_id
    ),
    named as (
        select c.*, md5(to_jsonb(c.agents)::text)::uuid as chain_id from chains as c
    )
    select
        array_agg(
            row(
                tenant, n.root_id, 'chain', n.chain_id, 1, (s.score >= threshold)::integer,
                s.score, t.duration_ms, m.tokens, m.cost_usd, null)::tracedb.learned_traces),
        jsonb_object_agg(n.chain_id, n.agents)
    into lines, sequences
    from named as n
    join sums as m on m.root_id = n.root_id
    join tracedb.execution_traces as t on t.tenant_id = tenant and t.trace_id = n.root_id
    join tracedb.score_traces(array(select c.root_id from chains as c), tenant) as s
        on s.trace_id = n.root_id
    where s.score is not null;

    changes := array(select c from tracedb.note_learned('chain', ids, lines, tenant) as c);
    news := array(
        select n
        from tracedb.newest_learned(array(select c.learned_id from unnest(changes) as c), tenant)
            as n
    );
    update tracedb.agent_chaining_patterns as p
    set trace_count = p.trace_count + c.traces,
        success_count = p.success_count + c.successes,
        -- kept while its newest traces all failed, unless there was no success after all
        performance = case
            when n.newest_success is null and c.first_taken is null then p.performance
            else n.performance
        end,
        first_seen_at = case
            when c.first_taken <= p.first_seen_at then coalesce(n.first_seen_at, p.first_seen_at)
            else least(p.first_seen_at, n.first_seen_at)
        end,
        last_seen_at = coalesce(n.last_seen_at, p.last_seen_at),
        source_trace_ids = coalesce(n.source_trace_ids, '{}'),
        updated_at = now()
    from unnest(changes) as c
    join unnest(news) as n on n.learned_id = c.learned_id
    where p.tenant_id = tenant and p.chain_id = c.learned_id;

    insert into tracedb.agent_chaining_patterns (
        tenant_id, chain_id, agent_sequence, trace_count, success_count, performance,
        first_seen_at, last_seen_at, source_trace_ids
    )
    select
        tenant, c.learned_id,
        array(select jsonb_array_elements_text(sequences -> c.learned_id::text)),
        c.traces, c.successes, n.performance, n.first_seen_at, n.last_seen_at, n.source_trace_ids
    from unnest(changes) as c
    join unnest(news) as n on n.learned_id = c.learned_id
    where c.traces > 0
        and not exists (
            select from tracedb.agent_chaining_patterns as k
            where k.tenant_id = tenant and k.chain_id = c.learned_id
        )
    on conflict do nothing;

    delete from tracedb.agent_chaining_patterns as p
    using unnest(changes) as c
    where p.tenant_id = tenant and p.chain_id = c.learned_id and p.trace_count = 0;

    changed := cardinality(changes);
    return next;
end $$;

comment on function tracedb.learn_chains(timestamptz, integer, uuid, uuid) is
    'Learns agent_chaining_patterns from requests that have ended and have executions nested in '
    'them: their agents, the request''s own first, then those nested at any depth in the order of '
    'their start; an agent several times in a row is one step. Duration is the request''s, tokens '
    'and cost are of all of it. Called as extract_patterns is.';

create or replace view tracedb.agent_chains with (security_invoker = true) as
select
    c.tenant_id,
    c.chain_id,
    c.agent_sequence,
    c.trace_count,
    c.success_count,
    c.success_count::double precision / nullif(c.trace_count, 0) as success_rate,
    i.interval[1] as success_rate_low,
    i.interval[2] as success_rate_high,
    (c.performance ->> 'p50_ms')::double precision as p50_duration_ms,
    (c.performance ->> 'p95_ms')::double precision as p95_duration_ms,
    (c.performance ->> 'tokens')::bigint as mean_tokens,
    (c.performance ->> 'cost_usd')::numeric as mean_cost_usd,
    c.first_seen_at,
    c.last_seen_at,
    c.source_trace_ids
from tracedb.agent_chaining_patterns as c
cross join lateral tracedb.wilson_interval(c.success_count, c.trace_count) as i(interval);

comment on view tracedb.agent_chains is
    'A sequence of agents a row: how often requests went so, how often with success and what it '
    'took (of the newest successes), with the 95 % interval of its success rate '
    '(wilson_interval). Durations are in milliseconds.';

reset role;
