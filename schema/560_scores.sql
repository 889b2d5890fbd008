-- 560_scores.sql: how well a trace went, by criteria that a tenant can weigh.

set role tracedb_owner;

create or replace function tracedb.gates_passed(quality_gates jsonb)
returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when quality_gates @? '$.** ? (@ == false
            || @ like_regex "^(failed|fail|error|false|no)$" flag "i")' then false
        when quality_gates @? '$.** ? (@ == true
            || @ like_regex "^(passed|pass|ok|success|true|yes)$" flag "i")' then true
    end
$$;

comment on function tracedb.gates_passed(jsonb) is
    'Whether all quality gates of a hook were passed, as its document says: a false or "failed" '
    '(fail, error, no) anywhere in it says no, else a true or "passed" (pass, ok, success, yes) '
    'says yes. Null if it says neither.';

create or replace function tracedb.score_traces(
    trace_ids uuid[], tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    trace_id uuid, completed boolean, no_errors boolean, hooks_succeeded boolean,
    quality_gates boolean, in_time boolean, intelligence boolean, user_confirmed boolean,
    known_weight double precision, score double precision
)
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
    settings constant tracedb.pattern_settings := tracedb.pattern_settings(tenant);
begin
    return query
    with parts as (
        select
            s.trace_id, s.status, s.started_at, s.operation_type as kind,
            coalesce(s.tool_name, s.name, s.request_model) as name, null::boolean as gates,
            s.operation_type = 'retrieval' and s.status = 'ok' as gathered
        from tracedb.llm_spans as s
        where s.tenant_id = tenant and s.trace_id = any(ids)
            and s.trace_id between first_id and last_id
        union all
        select
            h.trace_id, h.status, h.started_at, 'hook',
            concat_ws(' ', h.hook_type, h.name, h.tool_name, h.script),
            tracedb.gates_passed(h.quality_gates), cardinality(h.intelligence_functions) > 0
        from tracedb.hook_executions as h
        where h.tenant_id = tenant and h.trace_id = any(ids)
            and h.trace_id between first_id and last_id
        union all
        select
            e.trace_id, e.status, e.started_at, 'endpoint',
            concat_ws(' ', e.service, e.method, tracedb.endpoint_template(e.path)), null, false
        from tracedb.endpoint_calls as e
        where e.tenant_id = tenant and e.trace_id = any(ids)
            and e.trace_id between first_id and last_id
        union all
        select r.trace_id, r.status, r.started_at, 'routing', r.name, null, false
        from tracedb.agent_routing_decisions as r
        where r.tenant_id = tenant and r.trace_id = any(ids)
            and r.trace_id between first_id and last_id
    ),
    attempts as (
        select
            p.trace_id, p.kind,
            max(p.started_at) filter (where p.status in ('error', 'timeout')) as failed_at,
            max(p.started_at) filter (where p.status = 'ok') as worked_at,
            bool_and(p.status = 'ok') filter (where p.status <> 'running') as all_worked,
            bool_and(p.gates) as gates,
            bool_or(p.gathered) as gathered
        from parts as p
        group by p.trace_id, p.kind, p.name
    ),
    judged as (
        select
            a.trace_id,
            bool_or(a.failed_at >= coalesce(a.worked_at, '-infinity')) as has_failed,
            bool_and(a.all_worked) filter (where a.kind = 'hook') as hooks_worked,
            bool_and(a.gates) as gates,
            bool_or(a.gathered) as gathered,
            bool_or(a.kind in ('hook', 'retrieval')) as could_gather
        from attempts as a
        group by a.trace_id
    ),
    met as (
        select
            t.trace_id,
            case when t.status <> 'running' then t.status = 'ok' end as completed,
            case
                when t.status in ('error', 'timeout') or t.error_type is not null then false
                when t.status <> 'running' then not coalesce(j.has_failed, false)
            end as no_errors,
            j.hooks_worked as hooks_succeeded,
            j.gates as quality_gates,
            t.duration_ms <= settings.in_time_ms as in_time,
            case
                when j.gathered or t.docs_retrieved > 0 or cardinality(t.doc_sources) > 0
                    or t.research_triggered or t.kb_enrichment_triggered then true
                when j.could_gather or t.docs_retrieved = 0 then false
            end as intelligence,
            case
                when jsonb_typeof(t.context -> 'user_confirmed') = 'boolean'
                    then (t.context -> 'user_confirmed')::boolean
                when jsonb_typeof(t.context -> 'reward') = 'number'
                    then (t.context -> 'reward')::numeric >= 1
            end as user_confirmed,
            t.status <> 'running' as is_finished
        from tracedb.execution_traces as t
        left join judged as j on j.trace_id = t.trace_id
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
    )
    select
        m.trace_id, m.completed, m.no_errors, m.hooks_succeeded, m.quality_gates, m.in_time,
        m.intelligence, m.user_confirmed, w.known,
        -- the weights as given add up to 1 but for rounding
        case when m.is_finished and w.known > 0 then least(w.met / w.known, 1) end
    from met as m
    cross join lateral (
        select
            coalesce(sum(c.weight) filter (where c.met is not null), 0) as known,
            coalesce(sum(c.weight) filter (where c.met), 0) as met
        from (values
            (m.completed, settings.completed_weight),
            (m.no_errors, settings.no_errors_weight),
            (m.hooks_succeeded, settings.hooks_succeeded_weight),
            (m.quality_gates, settings.quality_gates_weight),
            (m.in_time, settings.in_time_weight),
            (m.intelligence, settings.intelligence_weight),
            (m.user_confirmed, settings.user_confirmed_weight)
        ) as c (met, weight)
    ) as w;
end $$;

comment on function tracedb.score_traces(uuid[], uuid) is
    'How well traces went, a row for each that there is: seven criteria, each true, false or null '
    '(unknown). score = weight of the criteria met / known_weight, the weight of those known, so '
    'an unknown one counts neither way; null while the trace runs. Weights are those of '
    'pattern_settings. completed: its status is ok. no_errors: no error_type, and no part whose '
    'last attempt (of that tool, model, hook or endpoint) failed. hooks_succeeded: all hooks ran '
    'well. quality_gates: gates_passed of all hooks that say. in_time: within in_time_ms. '
    'intelligence: documents were retrieved, or a hook ran intelligence functions. '
    'user_confirmed: context.user_confirmed, else whether context.reward is at least 1.';

create or replace function tracedb.score_trace(
    trace_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    settings constant tracedb.pattern_settings := tracedb.pattern_settings(tenant_id);
begin
    return (
        select jsonb_build_object(
            'trace_id', s.trace_id, 'score', s.score, 'known_weight', s.known_weight,
            'threshold', settings.success_threshold,
            'is_success', s.score >= settings.success_threshold,
            'criteria', (
                select jsonb_agg(jsonb_build_object(
                    'name', c.name, 'met', c.met, 'weight', c.weight,
                    'share', case when c.met is null then 0
                        else c.weight / nullif(s.known_weight, 0) end) order by c.place)
                from (values
                    (1, 'completed', s.completed, settings.completed_weight),
                    (2, 'no_errors', s.no_errors, settings.no_errors_weight),
                    (3, 'hooks_succeeded', s.hooks_succeeded, settings.hooks_succeeded_weight),
                    (4, 'quality_gates', s.quality_gates, settings.quality_gates_weight),
                    (5, 'in_time', s.in_time, settings.in_time_weight),
                    (6, 'intelligence', s.intelligence, settings.intelligence_weight),
                    (7, 'user_confirmed', s.user_confirmed, settings.user_confirmed_weight)
                ) as c (place, name, met, weight)
            )
        )
        from tracedb.score_traces(array[trace_id], tenant_id) as s
    );
end $$;

comment on function tracedb.score_trace(uuid, uuid) is
    'How well a trace went: {"trace_id", "score", "known_weight", "threshold", "is_success", '
    '"criteria": [{"name", "met", "weight", "share"}, ...]}. met is null for what is not known, '
    'and share is what the criterion counts once those are left out. score_traces says what each '
    'means. Null if there is no such trace.';

reset role;
