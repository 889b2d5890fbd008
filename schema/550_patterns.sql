-- 550_patterns.sql: settings and history of patterns; patterns saved by hand.

set role tracedb_owner;

-- Wilson score interval, one side: E. B. Wilson, "Probable inference, the law of succession, and
-- statistical inference", J. Am. Stat. Assoc. 22 (1927). The counts may be weighted, so they need
-- not be whole. Names in such a body are looked up when it is made, so it needs no search_path, and
-- without one it is inlined where it runs for each row.
create or replace function tracedb.wilson_lower(
    successes double precision, trials double precision, z double precision default 1.645
)
returns double precision
language sql immutable parallel safe
return case when trials > 0 then greatest(0, (
    successes / trials + z * z / (2 * trials)
    - z * sqrt(greatest(0, successes / trials * (1 - successes / trials) / trials)
        + z * z / (4 * trials * trials))
) / (1 + z * z / trials)) else 0 end;

comment on function tracedb.wilson_lower(double precision, double precision, double precision) is
    'The lower end of the Wilson interval of a success rate: what it surely is at least, 0 without '
    'trials. z 1.645 is 95 % sure on this side.';

create or replace function tracedb.wilson_upper(
    successes double precision, trials double precision, z double precision default 1.645
)
returns double precision
language sql immutable parallel safe
return 1 - tracedb.wilson_lower(trials - successes, trials, z);

comment on function tracedb.wilson_upper(double precision, double precision, double precision) is
    'The upper end of the Wilson interval of a success rate: what it surely is at most, 1 without '
    'trials.';

create or replace function tracedb.pattern_settings(
    tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.pattern_settings
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    settings tracedb.pattern_settings;
begin
    select s.* into settings
    from tracedb.pattern_settings as s
    where s.tenant_id = pattern_settings.tenant_id;
    if not found then
        settings.tenant_id := pattern_settings.tenant_id;
        settings.semantic_weight := 0.40;
        settings.keyword_weight := 0.20;
        settings.intent_weight := 0.20;
        settings.context_weight := 0.10;
        settings.history_weight := 0.10;
        settings.min_score := 0;
        settings.explore_share := 0.05;
        settings.half_life_days := 90;
        settings.confidence_z := 1.645;
        settings.learned_weight := 0.5;
        settings.exact_search_limit := 16000000;  -- some 10 ms (tests/bench/README.md)
        settings.word_search_limit := 1000;
        settings.completed_weight := 0.25;
        settings.no_errors_weight := 0.25;
        settings.hooks_succeeded_weight := 0.15;
        settings.quality_gates_weight := 0.15;
        settings.in_time_weight := 0.10;
        settings.intelligence_weight := 0.05;
        settings.user_confirmed_weight := 0.05;
        settings.success_threshold := 0.7;
        settings.in_time_ms := 30000;
        settings.prune_min_uses := 5;
        settings.prune_max_success := 0.5;
        settings.prune_idle_days := 30;
    end if;
    return settings;
end $$;

comment on function tracedb.pattern_settings(uuid) is
    'How a tenant''s patterns are scored, found and judged: what set_pattern_settings has set, or '
    'the defaults.';

create or replace function tracedb.with_fields(
    base anyelement, fields jsonb, served text[], out changed anyelement
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    field record;
begin
    changed := base;
    if jsonb_typeof(fields) is distinct from 'object' then
        raise exception using errcode = 'TD002', message = 'fields: must be an object';
    end if;
    for field in select e.key, e.value from jsonb_each(fields) as e loop
        if field.key = any (served) or not to_jsonb(base) ? field.key then
            raise exception using errcode = 'TD002', message = field.key || ': no such field';
        end if;
        begin
            changed := jsonb_populate_record(changed, jsonb_build_object(field.key, field.value));
        exception
            when data_exception or program_limit_exceeded then
                raise exception using errcode = 'TD002', message = field.key || ': ' || sqlerrm;
        end;
    end loop;
end $$;

comment on function tracedb.with_fields(anyelement, jsonb, text[]) is
    'A row with what an object says of its columns. Raises TD002 "field: rule" for what is no '
    'column, or of those that the server writes, or of the wrong type. Internal.';

create or replace function tracedb.set_pattern_settings(
    settings jsonb, tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.pattern_settings
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    changed tracedb.pattern_settings := tracedb.with_fields(
        tracedb.pattern_settings(set_pattern_settings.tenant_id), settings,
        array['tenant_id', 'created_at', 'updated_at']);
begin
    changed.created_at := now();
    changed.updated_at := now();
    execute format(
        'insert into tracedb.pattern_settings as s select ($1).* '
        'on conflict (tenant_id) do update set %s returning s.*',
        (
            select string_agg(format('%1$I = excluded.%1$I', k.key), ', ')
            from (
                select jsonb_object_keys(settings) as key union all select 'updated_at'
            ) as k
        ))
    into changed
    using changed;
    return changed;
end $$;

comment on function tracedb.set_pattern_settings(jsonb, uuid) is
    'Changes settings of a tenant, given as an object of columns of pattern_settings, and returns '
    'all of them. Raises TD002 "field: rule", or the check constraint whose comment says the rule.';

create or replace function tracedb.pattern_signature(
    prompt text,
    intent text,
    agent_id text,
    route text,
    hook_sequence jsonb,
    endpoint_sequence jsonb,
    tool_sequence text[]
)
returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select md5(jsonb_build_array(
        lower(btrim(regexp_replace(prompt, '\s+', ' ', 'g'))), intent, agent_id, route,
        (
            select jsonb_agg(
                jsonb_build_array(h.hook -> 'hook_type', h.hook -> 'tool_name', h.hook -> 'script')
                order by h.place)
            from jsonb_path_query(hook_sequence, '$[*]') with ordinality as h (hook, place)
        ),
        (
            select jsonb_agg(
                jsonb_build_array(c.call -> 'service', c.call -> 'method', c.call -> 'path')
                order by c.place)
            from jsonb_path_query(endpoint_sequence, '$[*]') with ordinality as c (call, place)
        ),
        tool_sequence
    )::text)::uuid
$$;

comment on function tracedb.pattern_signature(text, text, text, text, jsonb, jsonb, text[]) is
    'What makes two patterns the same one: the prompt (less case and white space), intent, agent, '
    'route, and the sequences of hooks, endpoints and tools, without their times.';

create or replace function tracedb.save_pattern(
    pattern jsonb, tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    p tracedb.success_patterns := jsonb_populate_record(null::tracedb.success_patterns, '{
        "keywords": [], "routing": {}, "hook_sequence": [], "endpoint_sequence": [],
        "tool_sequence": [], "intelligence_functions": [], "context": {}, "performance": {},
        "trace_count": 0, "success_count": 0, "source_trace_ids": [], "metadata": {}}');
    id uuid;
begin
    p := tracedb.with_fields(p, pattern, array[
        'tenant_id', 'pattern_id', 'signature', 'prompt_hash', 'use_count', 'use_successes',
        'use_failures', 'last_used_at', 'retired_at', 'retired_reason', 'search', 'created_at',
        'updated_at']);
    if p.prompt is null then
        raise exception using errcode = 'TD002', message = 'prompt: required';
    end if;
    insert into tracedb.success_patterns as s (
        tenant_id, signature, prompt, intent, agent_id, route, keywords, routing, hook_sequence,
        endpoint_sequence, tool_sequence, intelligence_functions, context, performance,
        success_score, trace_count, success_count, first_seen_at, last_seen_at, source_trace_ids,
        metadata
    )
    values (
        save_pattern.tenant_id,
        tracedb.pattern_signature(p.prompt, p.intent, p.agent_id, p.route, p.hook_sequence,
            p.endpoint_sequence, p.tool_sequence),
        p.prompt, p.intent, p.agent_id, p.route, p.keywords, p.routing, p.hook_sequence,
        p.endpoint_sequence, p.tool_sequence, p.intelligence_functions, p.context, p.performance,
        p.success_score, p.trace_count, p.success_count, p.first_seen_at, p.last_seen_at,
        p.source_trace_ids, p.metadata
    )
    on conflict (tenant_id, signature) do update set
        prompt = excluded.prompt, keywords = excluded.keywords, routing = excluded.routing,
        hook_sequence = excluded.hook_sequence, endpoint_sequence = excluded.endpoint_sequence,
        intelligence_functions = excluded.intelligence_functions, context = excluded.context,
        performance = excluded.performance, success_score = excluded.success_score,
        trace_count = excluded.trace_count, success_count = excluded.success_count,
        first_seen_at = excluded.first_seen_at, last_seen_at = excluded.last_seen_at,
        source_trace_ids = excluded.source_trace_ids, metadata = excluded.metadata,
        retired_at = null, retired_reason = null, updated_at = excluded.updated_at
    returning s.pattern_id into id;
    return id;
end $$;

comment on function tracedb.save_pattern(jsonb, uuid) is
    'Stores a pattern given by hand, as an object of columns of success_patterns (prompt is '
    'required), and returns its id. The same one again (pattern_signature) takes the place of the '
    'first, keeps its id and its uses, and is found again if it was retired.';

create or replace function tracedb.retire_pattern(
    pattern_id uuid, reason text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.success_patterns as p
    set retired_at = now(), retired_reason = reason, updated_at = now()
    where p.tenant_id = retire_pattern.tenant_id and p.pattern_id = retire_pattern.pattern_id
        and p.retired_at is null;
    return found;
end $$;

comment on function tracedb.retire_pattern(uuid, text, uuid) is
    'Takes a pattern out of all searches and keeps it; false if there is no such pattern in force.';

create or replace function tracedb.pattern_history(
    pattern_ids uuid[],
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    pattern_id uuid,
    trace_count bigint,
    success_count bigint,
    use_count bigint,
    use_successes bigint,
    use_failures bigint,
    last_used_at timestamptz,
    last_evidence_at timestamptz,
    successes double precision,
    trials double precision,
    lower_bound double precision,
    upper_bound double precision,
    decay double precision
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    settings constant tracedb.pattern_settings :=
        tracedb.pattern_settings(pattern_history.tenant_id);
begin
    return query
    with tail as (
        select
            u.pattern_id,
            sum((s.now <> 'none')::integer - (u.counted <> 'none')::integer) as uses,
            sum((s.now = 'success')::integer - (u.counted = 'success')::integer) as successes,
            sum((s.now = 'failure')::integer - (u.counted = 'failure')::integer) as failures,
            max(u.used_at) filter (where s.now <> 'none') as used_at
        from tracedb.pattern_usage_log as u
        cross join lateral (
            select tracedb.usage_standing(u.arm, u.applied, u.success) as now
        ) as s
        where u.tenant_id = pattern_history.tenant_id
            and u.pattern_id = any (pattern_ids)
            and u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
        group by u.pattern_id
    ),
    counts as (
        select
            p.pattern_id, p.trace_count, p.success_count,
            p.use_count + coalesce(t.uses, 0) as use_count,
            p.use_successes + coalesce(t.successes, 0) as use_successes,
            p.use_failures + coalesce(t.failures, 0) as use_failures,
            greatest(p.last_used_at, t.used_at) as last_used_at,
            greatest(p.last_seen_at, p.last_used_at, t.used_at) as last_evidence_at
        from tracedb.success_patterns as p
        left join tail as t on t.pattern_id = p.pattern_id
        where p.tenant_id = pattern_history.tenant_id
            and p.pattern_id = any (pattern_ids)
    )
    select
        c.*, e.successes, e.trials,
        tracedb.wilson_lower(e.successes, e.trials, settings.confidence_z),
        tracedb.wilson_upper(e.successes, e.trials, settings.confidence_z),
        -- without evidence nothing fades
        coalesce(0.5 ^ least(greatest(0, extract(epoch from as_of - c.last_evidence_at))
            / (86400 * settings.half_life_days), 1000)::double precision, 1)
    from counts as c
    cross join lateral (
        select
            c.use_successes + settings.learned_weight * c.success_count as successes,
            c.use_successes + c.use_failures + settings.learned_weight * c.trace_count as trials
        offset 0  -- reckoned once, not wherever the interval names it
    ) as e;
end $$;

comment on function tracedb.pattern_history(uuid[], timestamptz, uuid) is
    'How patterns have done: what is counted in success_patterns and the uses that are not counted '
    'yet, so exact at every moment. Evidence is every use with a known outcome, and every trace a '
    'pattern was learned from, which counts learned_weight of a use; lower_bound and upper_bound '
    'are the Wilson interval of its success rate; decay is 0.5 to the power of (time since the '
    'last evidence / half_life_days).';

create or replace function tracedb.get_pattern(
    pattern_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return (
        select to_jsonb(p) - array['tenant_id', 'search'] || jsonb_build_object(
            'use_count', h.use_count, 'use_successes', h.use_successes,
            'use_failures', h.use_failures, 'last_used_at', h.last_used_at,
            'confidence', h.lower_bound, 'decay', h.decay,
            'models', array(
                select e.model
                from tracedb.pattern_embeddings as e
                where e.tenant_id = get_pattern.tenant_id and e.pattern_id = p.pattern_id
                    and e.content_hash = p.prompt_hash
                order by 1
            ))
        from tracedb.success_patterns as p
        cross join lateral tracedb.pattern_history(
            array[p.pattern_id], tenant_id => get_pattern.tenant_id) as h
        where p.tenant_id = get_pattern.tenant_id and p.pattern_id = get_pattern.pattern_id
    );
end $$;

comment on function tracedb.get_pattern(uuid, uuid) is
    'A pattern with its history and the models it has an embedding of; null if there is none.';

create or replace function tracedb.list_patterns(
    max_rows integer default 100,
    before uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.success_patterns
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if max_rows is null or max_rows not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000';
    end if;
    return query
    select p.*
    from tracedb.success_patterns as p
    where p.tenant_id = list_patterns.tenant_id
        and p.pattern_id < coalesce(before, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    order by p.pattern_id desc
    limit max_rows;
end $$;

comment on function tracedb.list_patterns(integer, uuid, uuid) is
    'The patterns of a tenant, retired ones too, newest first, at most max_rows (1 to 1000). The '
    'next page: before the last pattern_id of this one.';

create or replace function tracedb.replay_plan(
    pattern_id uuid,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return (
        select jsonb_build_object(
            'pattern_id', p.pattern_id, 'prompt', p.prompt, 'intent', p.intent,
            'agent_id', p.agent_id, 'route', p.route, 'routing', p.routing,
            'hooks', p.hook_sequence, 'intelligence_functions', p.intelligence_functions,
            'endpoints', p.endpoint_sequence, 'tools', p.tool_sequence,
            'expected', p.performance,
            'confidence', jsonb_build_object(
                'lower_bound', h.lower_bound, 'upper_bound', h.upper_bound,
                'successes', h.successes, 'trials', h.trials, 'decay', h.decay,
                'last_evidence_at', h.last_evidence_at),
            'source_trace_ids', p.source_trace_ids, 'retired_at', p.retired_at)
        from tracedb.success_patterns as p
        cross join lateral tracedb.pattern_history(
            array[p.pattern_id], as_of, replay_plan.tenant_id) as h
        where p.tenant_id = replay_plan.tenant_id and p.pattern_id = replay_plan.pattern_id
    );
end $$;

comment on function tracedb.replay_plan(uuid, timestamptz, uuid) is
    'How to do again what a pattern did: the agent, its hooks, the intelligence functions, the '
    'endpoints with their usual times, the tools in order, what it is expected to take '
    '(performance), and how sure it is to work (pattern_history); null if there is no such '
    'pattern.';

reset role;
