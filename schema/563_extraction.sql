-- 563_extraction.sql: patterns of traces that succeeded.

set role tracedb_owner;

-- "create type" knows no "if not exists".
do $$
begin
    if to_regtype('tracedb.trace_pattern') is null then
        create type tracedb.trace_pattern as (
            trace_id               uuid,
            signature              uuid,
            prompt                 text,
            intent                 text,
            agent_id               text,
            route                  text,
            keywords               text[],
            routing                jsonb,
            hook_sequence          jsonb,
            endpoint_sequence      jsonb,
            tool_sequence          text[],
            intelligence_functions text[],
            context                jsonb,
            score                  double precision,
            duration_ms            bigint,
            tokens                 bigint,
            cost_usd               numeric,
            has_prompt             boolean
        );
    end if;
end $$;

comment on type tracedb.trace_pattern is
    'What a trace would be as a pattern (columns as in success_patterns), and what it took; '
    'has_prompt is false where its name or intent stands for the prompt.';

create or replace function tracedb.patterns_of_traces(
    trace_ids uuid[], tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.trace_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    ids constant uuid[] := array(select distinct i from unnest(trace_ids) as i order by i);
    first_id constant uuid := ids[1];
    last_id constant uuid := ids[cardinality(ids)];
begin
    return query
    with headers as (
        select t.*, tracedb.intent_label(t.intent) as label
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
            and t.parent_trace_id is null and t.status <> 'running'
    ),
    prompts as (
        select
            p.trace_id,
            left(regexp_replace(left(p.content, 9000), '^\s+|\s+$', '', 'g'), 8000) as content
        from tracedb.trace_payloads as p
        where p.tenant_id = tenant and p.trace_id = any(ids)
            and p.trace_id between first_id and last_id
            and p.span_id = '\x0000000000000000' and p.kind = 'prompt'
    ),
    -- A step that is repeated in a row is one step.
    tools as (
        select s.trace_id, array_agg(s.tool_name order by s.place) as names
        from (
            select
                s.trace_id, s.tool_name, row_number() over w as place,
                lag(s.tool_name) over w as before
            from tracedb.llm_spans as s
            where s.tenant_id = tenant and s.trace_id = any(ids)
                and s.trace_id between first_id and last_id
                and s.operation_type = 'tool' and s.tool_name is not null
            window w as (partition by s.trace_id order by s.started_at, s.span_id)
        ) as s
        where s.tool_name is distinct from s.before
        group by s.trace_id
    ),
    hooks as (
        select
            h.trace_id,
            jsonb_agg(h.step order by h.place) filter (where h.step is distinct from h.before)
                as steps
        from (
            select
                h.trace_id, h.step, row_number() over w as place, lag(h.step) over w as before
            from (
                select h.trace_id, h.started_at, h.span_id, jsonb_strip_nulls(jsonb_build_object(
                    'hook_type', left(h.hook_type, 200), 'tool_name', left(h.tool_name, 200),
                    'script', left(h.script, 200))) as step
                from tracedb.hook_executions as h
                where h.tenant_id = tenant and h.trace_id = any(ids)
                    and h.trace_id between first_id and last_id
            ) as h
            window w as (partition by h.trace_id order by h.started_at, h.span_id)
        ) as h
        where h.place <= 256
        group by h.trace_id
    ),
    gathering as (
        select h.trace_id, array_agg(distinct left(f.name, 200)) as names
        from tracedb.hook_executions as h
        cross join lateral unnest(h.intelligence_functions) as f(name)
        where h.tenant_id = tenant and h.trace_id = any(ids)
            and h.trace_id between first_id and last_id
        group by h.trace_id
    ),
    endpoints as (
        select
            e.trace_id,
            jsonb_agg(
                e.step || jsonb_strip_nulls(jsonb_build_object('duration_ms', e.duration_ms))
                order by e.place) as steps
        from (
            select
                e.trace_id, e.step, e.duration_ms, row_number() over w as place,
                lag(e.step) over w as before
            from (
                select
                    e.trace_id, e.started_at, e.span_id, e.duration_ms,
                    jsonb_strip_nulls(jsonb_build_object(
                        'service', left(e.service, 200), 'method', left(e.method, 200),
                        'path', tracedb.endpoint_template(e.path))) as step
                from tracedb.endpoint_calls as e
                where e.tenant_id = tenant and e.trace_id = any(ids)
                    and e.trace_id between first_id and last_id
            ) as e
            window w as (partition by e.trace_id order by e.started_at, e.span_id)
        ) as e
        where e.step is distinct from e.before and e.place <= 256
        group by e.trace_id
    ),
    decisions as (
        select distinct on (r.trace_id)
            r.trace_id, r.selected_agent,
            jsonb_strip_nulls(jsonb_build_object(
                'selected_agent', left(r.selected_agent, 200),
                'strategy', left(r.attributes ->> 'strategy', 200),
                'reason', left(r.reason, 500), 'confidence', r.total_confidence)) as routing
        from tracedb.agent_routing_decisions as r
        where r.tenant_id = tenant and r.trace_id = any(ids)
            and r.trace_id between first_id and last_id
        order by r.trace_id, r.started_at, r.span_id
    ),
    usage as (
        select
            s.trace_id,
            sum(s.input_tokens) as input_tokens,
            sum(s.output_tokens) as output_tokens,
            sum(s.cost_usd) as cost_usd
        from tracedb.priced_spans as s
        where s.tenant_id = tenant and s.trace_id = any(ids)
            and s.trace_id between first_id and last_id and s.is_leaf
        group by s.trace_id
    ),
    joined as (
        select
            t.trace_id, coalesce(nullif(p.content, ''), t.name, t.label) as prompt, t.label,
            left(coalesce(t.agent_id, d.selected_agent), 200) as agent_id,
            left(t.route, 200) as route, t.tags, coalesce(d.routing, '{}') as routing,
            coalesce(h.steps, '[]') as hook_sequence, coalesce(e.steps, '[]') as endpoint_sequence,
            coalesce(o.names[:256], '{}') as tool_sequence,
            coalesce(g.names[:256], '{}') as intelligence_functions,
            jsonb_strip_nulls(jsonb_build_object(
                'channel', t.channel, 'source', t.source, 'message_type', t.message_type))
                as context,
            t.duration_ms,
            tracedb.bounded_tokens(
                coalesce(t.input_tokens, u.input_tokens)
                + coalesce(t.output_tokens, u.output_tokens)) as tokens,
            coalesce(t.cost_usd, u.cost_usd) as cost_usd,
            coalesce(p.content, '') <> '' as has_prompt
        from headers as t
        left join prompts as p using (trace_id)
        left join tools as o using (trace_id)
        left join hooks as h using (trace_id)
        left join gathering as g using (trace_id)
        left join endpoints as e using (trace_id)
        left join decisions as d using (trace_id)
        left join usage as u using (trace_id)
    )
    select
        j.trace_id,
        tracedb.pattern_signature(
            j.prompt, j.label, j.agent_id, j.route, j.hook_sequence, j.endpoint_sequence,
            j.tool_sequence),
        j.prompt, j.label, j.agent_id, j.route,
        tracedb.prompt_keywords(j.prompt, array_prepend(j.label, j.tags)), j.routing,
        j.hook_sequence, j.endpoint_sequence, j.tool_sequence, j.intelligence_functions, j.context,
        s.score, j.duration_ms, j.tokens, j.cost_usd, j.has_prompt
    from joined as j
    join tracedb.score_traces(ids, tenant) as s using (trace_id)
    where j.prompt <> '' and s.score is not null;
end $$;

comment on function tracedb.patterns_of_traces(uuid[], uuid) is
    'What these traces would be as patterns, as far as they are requests (not nested) that have '
    'ended and that say what was asked: by their prompt, else by their name or intent. A hook, '
    'call or tool repeated in a row is one step; routing is that of the first decision; tokens '
    'and cost are those of trace_summary. Internal.';

create or replace function tracedb.update_patterns(
    changes tracedb.learned_change[], shapes tracedb.trace_pattern[], tenant_id uuid
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    news constant tracedb.learned_news[] := array(
        select n
        from tracedb.newest_learned(array(select c.learned_id from unnest(changes) as c), tenant)
            as n
    );
    -- A pattern is described by the newest trace that succeeded, seldom one that is not in shapes.
    described constant tracedb.trace_pattern[] := shapes || array(
        select p
        from tracedb.patterns_of_traces(array(
            select n.newest_success
            from unnest(news) as n
            left join unnest(shapes) as f on f.trace_id = n.newest_success
            where n.newest_success is not null and f.trace_id is null
        ), tenant) as p
    );
begin
    update tracedb.success_patterns as p
    set prompt = least(p.prompt, d.prompt),
        keywords = coalesce(d.keywords, p.keywords),
        routing = coalesce(d.routing, p.routing),
        hook_sequence = coalesce(d.hook_sequence, p.hook_sequence),
        endpoint_sequence = coalesce(d.endpoint_sequence, p.endpoint_sequence),
        tool_sequence = coalesce(d.tool_sequence, p.tool_sequence),
        intelligence_functions = coalesce(d.intelligence_functions, p.intelligence_functions),
        context = coalesce(d.context, p.context),
        -- kept while its newest traces all failed, unless there was no success after all
        performance = case
            when n.newest_success is null and c.first_taken is null then p.performance
            else n.performance
        end,
        success_score = coalesce(n.score, p.success_score),
        -- less was saved by hand, perhaps, than is taken back
        trace_count = greatest(0, p.trace_count + c.traces),
        success_count = least(
            greatest(0, p.trace_count + c.traces), greatest(0, p.success_count + c.successes)),
        first_seen_at = case
            when c.first_taken <= p.first_seen_at then n.first_seen_at
            else least(p.first_seen_at, n.first_seen_at)
        end,
        last_seen_at = coalesce(n.last_seen_at, p.last_seen_at),
        source_trace_ids = coalesce(n.source_trace_ids, '{}'),
        updated_at = now()
    from unnest(changes) as c
    join unnest(news) as n on n.learned_id = c.learned_id
    left join unnest(described) as d
        on d.trace_id = n.newest_success and d.signature = n.learned_id
    where p.tenant_id = tenant and p.signature = c.learned_id;

    insert into tracedb.success_patterns as p (
        tenant_id, signature, prompt, intent, agent_id, route, keywords, routing, hook_sequence,
        endpoint_sequence, tool_sequence, intelligence_functions, context, performance,
        success_score, trace_count, success_count, first_seen_at, last_seen_at, source_trace_ids,
        metadata
    )
    select
        tenant, n.learned_id, d.prompt, d.intent, d.agent_id, d.route, d.keywords, d.routing,
        d.hook_sequence, d.endpoint_sequence, d.tool_sequence, d.intelligence_functions,
        d.context, n.performance, n.score, a.traces, a.successes, n.first_seen_at, n.last_seen_at,
        n.source_trace_ids, '{"learned": true}'
    from unnest(news) as n
    join unnest(described) as d on d.trace_id = n.newest_success and d.signature = n.learned_id
    -- Failures that came before the first success count as well.
    cross join lateral (
        select count(*) as traces, sum(l.successes)::bigint as successes
        from tracedb.learned_traces as l
        where l.tenant_id = tenant and l.learned_id = n.learned_id
    ) as a
    where not exists (
        select from tracedb.success_patterns as k
        where k.tenant_id = tenant and k.signature = n.learned_id
    )
    -- Somebody saves the same by hand meanwhile.
    on conflict (tenant_id, signature) do update
    set trace_count = p.trace_count + excluded.trace_count,
        success_count = p.success_count + excluded.success_count,
        first_seen_at = excluded.first_seen_at,
        last_seen_at = excluded.last_seen_at,
        source_trace_ids = excluded.source_trace_ids,
        updated_at = excluded.updated_at;

    -- Of a trace that has turned out otherwise since, and that nobody has used.
    delete from tracedb.success_patterns as p
    using unnest(changes) as c
    where p.tenant_id = tenant and p.signature = c.learned_id and p.success_count = 0
        and p.use_count = 0 and p.metadata @> '{"learned": true}' and p.retired_at is null
        and not exists (
            select from tracedb.pattern_usage_log as u
            where u.tenant_id = tenant and u.pattern_id = p.pattern_id
                and u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
        );
end $$;

comment on function tracedb.update_patterns(
    tracedb.learned_change[], tracedb.trace_pattern[], uuid
) is
    'Adds changes to success_patterns, and describes each by its newest success: one of those '
    'shapes, or read again. A pattern begins with its first success and counts the failures before '
    'it. Internal.';

create or replace function tracedb.extract_patterns(
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
    shapes tracedb.trace_pattern[];
    changes tracedb.learned_change[];
begin
    select b.examined, b.trace_ids, b.last_trace_id into examined, ids, last_trace_id
    from tracedb.traces_to_learn('pattern', since, max_traces, after, tenant) as b;
    if examined is null then
        return;
    end if;
    shapes := array(select p from tracedb.patterns_of_traces(ids, tenant) as p);
    changes := array(
        select c
        from tracedb.note_learned('pattern', ids, array(
            select row(
                tenant, f.trace_id, 'pattern', coalesce(k.learned_id, f.signature), 1,
                (f.score >= threshold)::integer, f.score, f.duration_ms, f.tokens, f.cost_usd,
                f.has_prompt or k.has_prompt is true)::tracedb.learned_traces
            from unnest(shapes) as f
            -- A trace whose prompt has expired since stays with the pattern it has.
            left join tracedb.learned_traces as k
                on k.tenant_id = tenant and k.trace_id = f.trace_id and k.subject = 'pattern'
                and k.has_prompt and not f.has_prompt
        ), tenant) as c
    );
    perform tracedb.update_patterns(changes, shapes, tenant);
    changed := cardinality(changes);
    return next;
end $$;

comment on function tracedb.extract_patterns(timestamptz, integer, uuid, uuid) is
    'Learns success_patterns from requests that have ended and what they were asked (their prompt, '
    'else name or intent). Those of the same signature are one pattern: a trace whose score '
    '(score_trace) reaches success_threshold makes it or confirms it, any other counts against it. '
    'Each call takes the traces of about max_traces (1 to 10000) changes further on: call it, a '
    'transaction a call, until examined is 0. With since it looks again at the traces from that '
    'time on instead, after the last_trace_id of the call before (after settings have changed). A '
    'trace counts once, however often it is looked at, and anew if it is written again. changed '
    'says of how many patterns the counts changed. No row: a replica, or another session learns '
    'for this tenant.';

reset role;
