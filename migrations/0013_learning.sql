-- 0013_learning.sql: what is learned from traces, whether it helps, and what routing is worth.
--
-- depends: 0012_patterns

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create table if not exists tracedb.agent_chaining_patterns (
    tenant_id        uuid        not null,
    chain_id         uuid        not null,
    agent_sequence   text[]      not null,
    trace_count      bigint      not null,
    success_count    bigint      not null,
    performance      jsonb       not null default '{}',
    first_seen_at    timestamptz not null,
    last_seen_at     timestamptz not null,
    source_trace_ids uuid[]      not null default '{}',
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    constraint agent_chaining_patterns_pkey primary key (tenant_id, chain_id),
    constraint chain_has_two_agents check (cardinality(agent_sequence) between 2 and 256),
    constraint chain_counts_agree check (success_count >= 0 and success_count <= trace_count),
    constraint chain_seen_in_order check (first_seen_at <= last_seen_at),
    constraint chain_performance_is_object check (jsonb_typeof(performance) = 'object')
);

comment on table tracedb.agent_chaining_patterns is
    'A sequence of agents: that of a request and those nested in it, in the order of their start. '
    'Written by learn_chains alone; agent_chains shows the rates.';
comment on column tracedb.agent_chaining_patterns.chain_id is
    'A hash of agent_sequence.';
comment on column tracedb.agent_chaining_patterns.agent_sequence is
    'The agents; one that runs several times in a row is named once.';
comment on column tracedb.agent_chaining_patterns.trace_count is
    'Requests that went so; success_count of these succeeded (score_trace).';
comment on column tracedb.agent_chaining_patterns.performance is
    'What the newest of those that succeeded took, as in success_patterns.';
comment on column tracedb.agent_chaining_patterns.source_trace_ids is
    'The newest of the requests, at most 5.';
comment on constraint chain_has_two_agents on tracedb.agent_chaining_patterns is
    'agent_sequence: 2 to 256 agents';
comment on constraint chain_counts_agree on tracedb.agent_chaining_patterns is
    'success_count: from 0 to trace_count';
comment on constraint chain_seen_in_order on tracedb.agent_chaining_patterns is
    'last_seen_at: must not be before first_seen_at';
comment on constraint chain_performance_is_object on tracedb.agent_chaining_patterns is
    'performance: must be an object';

create table if not exists tracedb.error_patterns (
    tenant_id        uuid        not null,
    fingerprint      uuid        not null,
    template         text        not null,
    operation        text        not null,
    -- Null in these: not reported.
    error_type       text,
    agent_id         text,
    tool             text,
    occurrences      bigint      not null,
    trace_count      bigint      not null,
    first_seen_at    timestamptz not null,
    last_seen_at     timestamptz not null,
    sample_message   text,
    sample_trace_ids uuid[]      not null default '{}',
    -- Null: nobody has set one.
    known_fix        text,
    fix_set_at       timestamptz,
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    constraint error_patterns_pkey primary key (tenant_id, fingerprint),
    constraint error_counts_agree check (trace_count >= 0 and occurrences >= trace_count),
    constraint error_seen_in_order check (first_seen_at <= last_seen_at),
    constraint error_texts_are_bounded check (
        length(template) <= 1000 and length(sample_message) <= 500
        and length(known_fix) between 1 and 8000
    ),
    constraint error_fix_has_a_time check ((known_fix is null) = (fix_set_at is null))
);

comment on table tracedb.error_patterns is
    'Errors by fingerprint: what was said, without numbers, ids, paths and quotes, and where. '
    'Counted by learn_errors; known_fix is set by set_error_fix.';
comment on column tracedb.error_patterns.fingerprint is
    'A hash of template, operation, error_type, agent_id and tool.';
comment on column tracedb.error_patterns.template is
    'The message as error_template has it; empty where the error came without one.';
comment on column tracedb.error_patterns.operation is
    'What failed: trace, routing, hook, endpoint, or the operation_type of a span.';
comment on column tracedb.error_patterns.tool is
    'The tool, model, hook or endpoint that failed.';
comment on column tracedb.error_patterns.occurrences is
    'How often, in trace_count traces.';
comment on column tracedb.error_patterns.first_seen_at is
    'The time of the first of the traces, by its id; last_seen_at: of the last.';
comment on column tracedb.error_patterns.sample_message is
    'One of the messages, as it was, cut at 500 characters.';
comment on column tracedb.error_patterns.sample_trace_ids is
    'The newest of the traces, at most 5.';
comment on constraint error_counts_agree on tracedb.error_patterns is
    'occurrences: at least trace_count, which is not negative';
comment on constraint error_seen_in_order on tracedb.error_patterns is
    'last_seen_at: must not be before first_seen_at';
comment on constraint error_texts_are_bounded on tracedb.error_patterns is
    'known_fix: 1 to 8000 characters; template, sample_message: at most 1000, 500';
comment on constraint error_fix_has_a_time on tracedb.error_patterns is
    'fix_set_at: given with known_fix';

create table if not exists tracedb.learning_progress (
    tenant_id  uuid        not null,
    subject    text        not null,
    cursor     text        not null,
    updated_at timestamptz not null default now(),
    constraint learning_progress_pkey primary key (tenant_id, subject),
    constraint learning_subject_known check (subject in ('pattern', 'chain', 'error'))
);

comment on table tracedb.learning_progress is
    'How far learning has followed the changes of a tenant (cursor of changes_since). What is in '
    'trace_changes behind it is not learned yet.';
comment on constraint learning_subject_known on tracedb.learning_progress is
    'subject: must be pattern, chain or error';

-- What a trace adds to a pattern, chain or error, so that learning it again adds only the
-- difference, in whatever order and however often. It goes with the trace's partition; the counts
-- stay.
create table if not exists tracedb.learned_traces (
    tenant_id   uuid        not null,
    trace_id    uuid        not null,
    subject     text        not null,
    learned_id  uuid        not null,
    occurrences bigint      not null,
    successes   bigint      not null,
    -- Null in these: not known, or nothing an error has.
    score       double precision,
    duration_ms bigint,
    tokens      bigint,
    cost_usd    numeric,
    has_prompt  boolean,
    constraint learned_traces_pkey primary key (tenant_id, trace_id, subject, learned_id),
    constraint learned_subject_known check (subject in ('pattern', 'chain', 'error')),
    constraint learned_counts_agree check (occurrences >= 1 and successes between 0 and occurrences)
) partition by range (trace_id);

create table if not exists tracedb.learned_traces_default
partition of tracedb.learned_traces default;

-- The newest traces of a pattern, chain or error.
create index if not exists learned_traces_learned_id_idx
on tracedb.learned_traces (tenant_id, learned_id, trace_id desc);

comment on table tracedb.learned_traces is
    'What each trace has added to what is learned: to one pattern (also where it failed, and '
    'before the pattern is known), to one chain of agents, to errors. Written by learning alone.';
comment on column tracedb.learned_traces.learned_id is
    'The signature of the pattern, the chain_id, or the fingerprint.';
comment on column tracedb.learned_traces.occurrences is
    'How often the error occurred; 1 for a pattern or chain.';
comment on column tracedb.learned_traces.successes is
    '1 if the trace succeeded (score_trace).';
comment on column tracedb.learned_traces.tokens is
    'Input and output tokens.';
comment on column tracedb.learned_traces.has_prompt is
    'Of a pattern: whether the trace had a prompt, which may expire before it does.';
comment on constraint learned_subject_known on tracedb.learned_traces is
    'subject: must be pattern, chain or error';
comment on constraint learned_counts_agree on tracedb.learned_traces is
    'successes: from 0 to occurrences, which is at least 1';

create table if not exists tracedb.pattern_prunings (
    tenant_id          uuid             not null,
    pruning_id         uuid             not null default tracedb.new_id(),
    pattern_id         uuid             not null,
    pruned_at          timestamptz      not null default now(),
    reason             text             not null,
    uses               bigint           not null,
    successes          bigint           not null,
    failures           bigint           not null,
    success_rate_high  double precision not null,
    last_used_at       timestamptz      not null,
    constraint pattern_prunings_pkey primary key (tenant_id, pruning_id),
    constraint pruning_counts_agree check (
        successes >= 0 and failures >= 0 and successes + failures <= uses
    )
);

comment on table tracedb.pattern_prunings is
    'A receipt for each pattern that prune_patterns has retired: why, by what counts.';
comment on column tracedb.pattern_prunings.reason is
    'The rule it fell under, with the figures of the policy at the time.';
comment on column tracedb.pattern_prunings.uses is
    'How often it was used; successes and failures of these are known to have ended so.';
comment on column tracedb.pattern_prunings.success_rate_high is
    'The upper confidence bound of its success rate (wilson_upper).';
comment on constraint pruning_counts_agree on tracedb.pattern_prunings is
    'successes, failures: must not be negative, nor more than uses';

create or replace function tracedb.error_template(message text)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    t text := regexp_replace(left(message, 2000), '\s+', ' ', 'g');
begin
    -- What holds other kinds in it goes first: an address before the numbers in it.
    t := regexp_replace(t, '[a-z][a-z0-9+.-]*://[^\s"''<>)\]]+', '<url>', 'gi');
    t := regexp_replace(t, '[^\s@<>"''(),;:=]+@[^\s@<>"''(),;:=]+\.[a-z]{2,}', '<email>', 'gi');
    t := regexp_replace(
        t, '\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?( ?(Z|[+-]\d\d(:?\d\d)?))?)?',
        '<time>', 'g');
    t := regexp_replace(t, '"[^"]*"|`[^`]*`|(?<![\w>])''[^'']*''(?![\w<])', '<text>', 'g');
    t := regexp_replace(
        t, '(?<![\w<>])(~|\.{1,2}|[A-Za-z]:)?[/\\][\w.@%+-]+([/\\][\w.@%+-]+)*[/\\]?'
        '|(?<![\w/<>.-])[\w.-]+(/[\w.-]+)+\.\w{1,5}(?!\w)', '<path>', 'g');
    -- A word with a digit in it is an id, but for a number with its unit ("30s").
    t := regexp_replace(
        t, '(?<![\w-])(?!-?\d+([.,]\d+)*[A-Za-z]{0,2}(?![\w-]))'
        '(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]+', '<id>', 'g');
    t := regexp_replace(t, '[-+]?\d+([.,:]\d+)*([A-Za-z]{1,2}(?!\w)|%)?', '<n>', 'g');
    t := regexp_replace(t, '<n>([ ,;:/.-]*<n>)+', '<n>', 'g');
    return btrim(left(btrim(t), 500));
end $$;

comment on function tracedb.error_template(text) is
    'A message without what differs from case to case: URLs, e-mail addresses, times, quoted '
    'texts, paths, ids (words with a digit in them) and numbers become <url>, <email>, <time>, '
    '<text>, <path>, <id> and <n>, white space one space. No digit is left. Of the first 2,000 '
    'characters, at most 500.';

create or replace function tracedb.endpoint_template(path text)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select left(regexp_replace(
        split_part(split_part(path, '?', 1), '#', 1),
        '(?<=/)(\d+|(?=[^/]*\d)[\w.~%-]{8,})(?=/|$)', '{id}', 'g'), 1024)
$$;

comment on function tracedb.endpoint_template(text) is
    'The path of an endpoint without its query, and with {id} for segments that are a number or '
    'look like an id (8 characters or more with a digit among them).';

create or replace function tracedb.intent_label(intent jsonb)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select left(nullif(btrim(case jsonb_typeof(intent)
        when 'string' then intent #>> '{}'
        when 'object' then coalesce(
            intent ->> 'intent', intent ->> 'name', intent ->> 'type', intent ->> 'label',
            intent ->> 'category', intent ->> 'primary')
    end), ''), 200)
$$;

comment on function tracedb.intent_label(jsonb) is
    'The intent of a trace as one label: the text itself, or what its document has as intent, '
    'name, type, label, category or primary. Null if it has none.';

-- Absurd numbers must not stop all learning.
create or replace function tracedb.bounded_tokens(tokens numeric)
returns bigint
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return case when tokens is not null then least(tokens, 9223372036854775807)::bigint end;

comment on function tracedb.bounded_tokens(numeric) is
    'The tokens, or the most that a bigint can say; null if they are not known. Internal.';

create or replace function tracedb.prompt_keywords(prompt text, labels text[])
returns text[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select k.word
        from (
            select lower(left(l.label, 200)) as word, l.place
            from unnest(labels) with ordinality as l (label, place)
            where l.label <> ''
            union all
            (
                select lower(p.token), 1000 + min(p.place)
                -- 1 and 2 are words: no numbers, addresses or white space
                from ts_parse('default', left(prompt, 4000))
                    with ordinality as p (kind, token, place)
                where p.kind in (1, 2) and length(p.token) between 3 and 50
                    and ts_lexize('pg_catalog.english_stem', lower(p.token)) <> '{}'
                group by lower(p.token)
                order by 2
                limit 32
            )
        ) as k
        group by k.word
        order by min(k.place)
        limit 48
    );
end $$;

comment on function tracedb.prompt_keywords(text, text[]) is
    'Labels, and after them the first words of a prompt that are not English stop words, in lower '
    'case and each once: at most 32 words, 48 in all.';

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

-- Learning follows the changes of a tenant (changes_since), so whatever is written late is learned
-- when it comes. What a trace adds is kept in learned_traces as long as the trace: learned again,
-- it adds the difference. So what is learned does not depend on the order in which traces came, on
-- how often they were looked at, or how many at a time.


create or replace function tracedb.traces_to_learn(
    subject text, since timestamptz, max_traces integer, after uuid, tenant_id uuid,
    out examined bigint, out trace_ids uuid[], out last_trace_id uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    topic constant text := subject;
    from_cursor text;
    next_cursor text;
begin
    if max_traces is null or max_traces not between 1 and 10000 then
        raise exception using errcode = 'TD002', message = 'max_traces: must be from 1 to 10000';
    end if;
    if pg_is_in_recovery()
        or not pg_try_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0))
    then
        return;
    end if;
    if since is not null then
        trace_ids := array(
            select t.trace_id
            from tracedb.execution_traces as t
            where t.tenant_id = tenant and t.trace_id >= tracedb.uuid_floor(since)
                and t.trace_id > coalesce(after, '00000000-0000-0000-0000-000000000000')
            order by t.trace_id
            limit max_traces
        );
        examined := cardinality(trace_ids);
        last_trace_id := trace_ids[examined];
        return;
    end if;
    from_cursor := (
        select p.cursor from tracedb.learning_progress as p
        where p.tenant_id = tenant and p.subject = topic
    );
    loop
        begin
            select
                count(*), array_agg(distinct c.trace_id),
                (array_agg(c.next_cursor order by c.place desc))[1]
            into examined, trace_ids, next_cursor
            from tracedb.changes_since(from_cursor, max_traces, tenant)
                with ordinality as c (trace_id, changed_at, next_cursor, place);
            exit;
        exception
            -- of another server: a restored database learns from its first change again
            when sqlstate 'TD002' then
                if from_cursor is null then
                    raise;
                end if;
                from_cursor := null;
        end;
    end loop;
    if examined > 0 then
        insert into tracedb.learning_progress (tenant_id, subject, cursor)
        values (tenant, topic, next_cursor)
        on conflict (tenant_id, subject) do update
        set cursor = excluded.cursor, updated_at = excluded.updated_at;
    end if;
end $$;

comment on function tracedb.traces_to_learn(text, timestamptz, integer, uuid, uuid) is
    'The traces a call of learning looks at: those of the next changes, and the cursor goes on; or '
    'those from since on and after an id, and it stays. examined is null on a replica and while '
    'another session learns for the tenant, which this one then does until its transaction ends. '
    'Internal.';

-- "create type" knows no "if not exists".
do $$
begin
    if to_regtype('tracedb.learned_change') is null then
        create type tracedb.learned_change as (
            learned_id  uuid,
            occurrences bigint,
            traces      bigint,
            successes   bigint,
            first_added timestamptz,
            first_taken timestamptz
        );
    end if;
    if to_regtype('tracedb.learned_news') is null then
        create type tracedb.learned_news as (
            learned_id       uuid,
            newest_success   uuid,
            source_trace_ids uuid[],
            performance      jsonb,
            score            double precision,
            first_seen_at    timestamptz,
            last_seen_at     timestamptz
        );
    end if;
end $$;

comment on type tracedb.learned_change is
    'What learning changes of a pattern, chain or error: the differences of its counts, and the '
    'time of the first trace that was added, and taken away.';
comment on type tracedb.learned_news is
    'What the newest traces of a pattern, chain or error say of it: the newest that succeeded, '
    'samples (5 of those, of an error 5 of all), their mean score, and what those that succeeded '
    'took: {"n", "p50_ms", "p95_ms", "tokens", "cost_usd"}, the last two as means, money as exact '
    'text of at most 12 decimals; and the times of the first and the last of all.';

create or replace function tracedb.note_learned(
    subject text, trace_ids uuid[], lines tracedb.learned_traces[], tenant_id uuid
)
returns setof tracedb.learned_change
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    topic constant text := subject;
    ids constant uuid[] := array(select distinct i from unnest(trace_ids) as i order by i);
    first_id constant uuid := ids[1];
    last_id constant uuid := ids[cardinality(ids)];
    -- A trace that retention has dropped has been learned all the same.
    present constant uuid[] := array(
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
        order by t.trace_id
    );
    taken tracedb.learned_traces[];
    given tracedb.learned_traces[];
begin
    with gone as (
        delete from tracedb.learned_traces as l
        where l.tenant_id = tenant and l.trace_id = any(present)
            and l.trace_id between first_id and last_id and l.subject = topic
            -- looked up in a hash, however many lines there are
            and l not in (select n from unnest(lines) as n)
        returning l
    )
    select array_agg(g.l) into taken from gone as g;
    with stored as (
        insert into tracedb.learned_traces as l
        select n.* from unnest(lines) as n
        on conflict do nothing
        returning l
    )
    select array_agg(s.l) into given from stored as s;
    return query
    select
        d.learned_id, sum(d.sign * d.occurrences)::bigint, sum(d.sign)::bigint,
        sum(d.sign * d.successes)::bigint,
        min(tracedb.uuid_time(d.trace_id)) filter (where d.sign > 0),
        min(tracedb.uuid_time(d.trace_id)) filter (where d.sign < 0)
    from (
        select g.*, 1 as sign from unnest(given) as g
        union all
        select t.*, -1 from unnest(taken) as t
    ) as d
    group by d.learned_id;
end $$;

comment on function tracedb.note_learned(text, uuid[], tracedb.learned_traces[], uuid) is
    'Makes lines all that these traces have added, and returns what that changes, a row for each '
    'pattern, chain or error. The caller holds the tenant''s lock. Internal.';

create or replace function tracedb.newest_learned(learned_ids uuid[], tenant_id uuid)
returns setof tracedb.learned_news
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    select
        i.learned_id, n.newest_success,
        -- of an error none succeeds
        (coalesce(n.success_ids, n.trace_ids))[:5],
        jsonb_strip_nulls(jsonb_build_object(
            'n', n.successes, 'p50_ms', n.percentiles[1], 'p95_ms', n.percentiles[2],
            'tokens', round(n.tokens)::bigint,
            -- as text: a JSON number is read as a binary fraction
            'cost_usd', trim_scale(round(n.cost_usd, 12))::text)),
        n.score, tracedb.uuid_time(f.trace_id), tracedb.uuid_time(n.trace_ids[1])
    from unnest(learned_ids) as i(learned_id)
    cross join lateral (
        select
            (array_agg(l.trace_id order by l.trace_id desc) filter (where l.successes > 0))[1]
                as newest_success,
            array_agg(l.trace_id order by l.trace_id desc) filter (where l.successes > 0)
                as success_ids,
            array_agg(l.trace_id order by l.trace_id desc) as trace_ids,
            count(*) filter (where l.successes > 0) as successes,
            percentile_cont(array[0.5, 0.95]) within group (order by l.duration_ms)
                filter (where l.successes > 0) as percentiles,
            avg(l.tokens) filter (where l.successes > 0) as tokens,
            avg(l.cost_usd) filter (where l.successes > 0) as cost_usd,
            avg(l.score) as score
        from (
            select l.*
            from tracedb.learned_traces as l
            where l.tenant_id = newest_learned.tenant_id and l.learned_id = i.learned_id
            order by l.trace_id desc
            limit 200
        ) as l
    ) as n
    left join lateral (
        select l.trace_id
        from tracedb.learned_traces as l
        where l.tenant_id = newest_learned.tenant_id and l.learned_id = i.learned_id
        order by l.trace_id
        limit 1
    ) as f on true;
end $$;

comment on function tracedb.newest_learned(uuid[], uuid) is
    'What the newest 200 traces of each pattern, chain or error say of it; a row for each, empty '
    'where it has none. Internal.';

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

-- A use is a row of its own, which use and outcome fill in whatever order they come. The counts of
-- a pattern are touched by fold_pattern_usage alone, which adds what a row stands for now less what
-- it was counted as before; readers add what is not folded yet (pattern_history).


create or replace function tracedb.log_pattern_use(
    trace_id uuid,
    pattern_id uuid,
    applied boolean default true,
    arm text default 'pattern',
    explored boolean default false,
    rank integer default null,
    score double precision default null,
    score_parts jsonb default '{}',
    expected_duration_ms bigint default null,
    used_at timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    insert into tracedb.pattern_usage_log as u (
        tenant_id, trace_id, pattern_id, applied, arm, explored, rank, score, score_parts,
        expected_duration_ms, used_at
    )
    values (
        tenant_id, trace_id, pattern_id, applied and arm is distinct from 'control', arm, explored,
        rank, score, score_parts,
        coalesce(expected_duration_ms, (
            select case when jsonb_typeof(p.performance -> 'p50_ms') = 'number' then least(
                greatest((p.performance -> 'p50_ms')::numeric, 0), 9223372036854775807)::bigint end
            from tracedb.success_patterns as p
            where p.tenant_id = log_pattern_use.tenant_id
                and p.pattern_id = log_pattern_use.pattern_id
        )),
        used_at
    )
    on conflict on constraint pattern_usage_log_pkey do update
    set applied = excluded.applied,
        arm = excluded.arm,
        explored = excluded.explored,
        rank = excluded.rank,
        score = excluded.score,
        score_parts = excluded.score_parts,
        expected_duration_ms = excluded.expected_duration_ms,
        used_at = least(u.used_at, excluded.used_at),
        updated_at = excluded.updated_at;
end $$;

comment on function tracedb.log_pattern_use(
    uuid, uuid, boolean, text, boolean, integer, double precision, jsonb, bigint, timestamptz, uuid
) is
    'Records that a pattern was found for a trace: followed (applied) or only offered, or held '
    'back for comparison (arm control); rank, score and score_parts as find_patterns gave them. '
    'expected_duration_ms is the median of the pattern unless given. The trace may come later, '
    'the outcome earlier; said again, what is said last counts, and the earliest used_at.';

create or replace function tracedb.log_pattern_outcome(
    trace_id uuid,
    pattern_id uuid,
    success boolean,
    deviation double precision default null,
    duration_ms bigint default null,
    quality double precision default null,
    feedback text default null,
    outcome_at timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    insert into tracedb.pattern_usage_log as u (
        tenant_id, trace_id, pattern_id, used_at, success, deviation, duration_ms, quality,
        feedback, outcome_at
    )
    values (
        tenant_id, trace_id, pattern_id, outcome_at, success, deviation, duration_ms, quality,
        feedback, outcome_at
    )
    on conflict on constraint pattern_usage_log_pkey do update
    set success = excluded.success,
        deviation = excluded.deviation,
        duration_ms = excluded.duration_ms,
        quality = excluded.quality,
        feedback = excluded.feedback,
        outcome_at = excluded.outcome_at,
        used_at = least(u.used_at, excluded.used_at),
        updated_at = excluded.updated_at
    where u.outcome_at is null or u.outcome_at <= excluded.outcome_at;
end $$;

comment on function tracedb.log_pattern_outcome(
    uuid, uuid, boolean, double precision, bigint, double precision, text, timestamptz, uuid
) is
    'Records how the use of a pattern ended: success (null: not known), how far it left the '
    'pattern (deviation, 0 to 1), how long it took, how good it was (quality, 0 to 1), what was '
    'said of it. It may come before the use; the outcome of the latest outcome_at counts, whole.';

create or replace function tracedb.fold_pattern_usage(max_uses integer default 10000)
returns table (tenant_id uuid, uses bigint, patterns bigint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant uuid;
    trace_ids uuid[];
    pattern_ids uuid[];
    counted text[];
    standing text[];
    used_at timestamptz[];
    remaining bigint := max_uses;
begin
    if max_uses is null or max_uses < 1 then
        raise exception using errcode = 'TD002', message = 'max_uses: must be at least 1';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    for tenant in
        select distinct u.tenant_id
        from tracedb.pattern_usage_log as u
        where u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
    loop
        exit when remaining <= 0;
        -- The one who learns writes the same patterns.
        continue when not pg_try_advisory_xact_lock(
            hashtextextended('tracedb.learn/' || tenant, 0));

        select
            array_agg(u.trace_id), array_agg(u.pattern_id), array_agg(u.counted),
            array_agg(u.standing), array_agg(u.used_at)
        into trace_ids, pattern_ids, counted, standing, used_at
        from (
            select u.*, tracedb.usage_standing(u.arm, u.applied, u.success) as standing
            from tracedb.pattern_usage_log as u
            where u.tenant_id = tenant
                and u.counted <> tracedb.usage_standing(u.arm, u.applied, u.success)
            order by u.pattern_id, u.trace_id
            limit remaining
            -- An outcome that comes meanwhile waits, and is folded next time.
            for update
        ) as u;
        continue when trace_ids is null;
        remaining := remaining - cardinality(trace_ids);

        update tracedb.pattern_usage_log as u
        set counted = k.standing, updated_at = now()
        from unnest(trace_ids, pattern_ids, standing) as k (trace_id, pattern_id, standing)
        where u.tenant_id = tenant and u.trace_id = k.trace_id and u.pattern_id = k.pattern_id;

        update tracedb.success_patterns as p
        set use_count = p.use_count + d.uses,
            use_successes = p.use_successes + d.successes,
            use_failures = p.use_failures + d.failures,
            last_used_at = greatest(p.last_used_at, d.last_used_at),
            updated_at = now()
        from (
            select
                k.pattern_id,
                sum((k.standing <> 'none')::integer - (k.counted <> 'none')::integer) as uses,
                sum((k.standing = 'success')::integer - (k.counted = 'success')::integer)
                    as successes,
                sum((k.standing = 'failure')::integer - (k.counted = 'failure')::integer)
                    as failures,
                max(k.used_at) filter (where k.standing <> 'none') as last_used_at
            from unnest(pattern_ids, counted, standing, used_at)
                as k (pattern_id, counted, standing, used_at)
            group by k.pattern_id
        ) as d
        where p.tenant_id = tenant and p.pattern_id = d.pattern_id;

        tenant_id := tenant;
        uses := cardinality(trace_ids);
        patterns := (select count(distinct i) from unnest(pattern_ids) as i);
        return next;
    end loop;
end $$;

comment on function tracedb.fold_pattern_usage(integer) is
    'Adds what was logged of uses and outcomes to the counts of success_patterns: at most max_uses '
    'rows, a row for each tenant it worked for. Run it, a transaction a call, until it returns '
    'nothing, every minute or so, and before partitions of pattern_usage_log are dropped. Tenants '
    'for which another session folds or learns are left to it; on a replica it does nothing.';

create or replace function tracedb.newcombe_interval(
    successes_1 bigint, trials_1 bigint, successes_2 bigint, trials_2 bigint
)
returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when trials_1 > 0 and trials_2 > 0 then array[
        a.p - b.p - sqrt(power(a.p - a.w[1], 2) + power(b.w[2] - b.p, 2)),
        a.p - b.p + sqrt(power(a.w[2] - a.p, 2) + power(b.p - b.w[1], 2))
    ] end
    from (
        select
            successes_1 / nullif(trials_1, 0)::double precision as p,
            tracedb.wilson_interval(successes_1, trials_1) as w
    ) as a
    cross join (
        select
            successes_2 / nullif(trials_2, 0)::double precision as p,
            tracedb.wilson_interval(successes_2, trials_2) as w
    ) as b
$$;

comment on function tracedb.newcombe_interval(bigint, bigint, bigint, bigint) is
    'The 95 % confidence interval, as [low, high], of the difference of two shares, the first less '
    'the second (Newcombe, Interval estimation for the difference between independent '
    'proportions, Statistics in Medicine 1998, method 10, from Wilson intervals). Null where '
    'either has no trials.';

create or replace view tracedb.pattern_effectiveness with (security_invoker = true) as
select
    p.tenant_id,
    p.pattern_id,
    p.intent,
    p.agent_id,
    p.prompt,
    h.use_count,
    h.use_successes,
    h.use_failures,
    h.use_successes::double precision / nullif(h.use_successes + h.use_failures, 0)
        as success_rate,
    i.interval[1] as success_rate_low,
    i.interval[2] as success_rate_high,
    l.mean_deviation,
    l.mean_quality,
    l.duration_ratio,
    h.trace_count,
    h.success_count,
    h.last_used_at,
    p.retired_at
from (select distinct s.tenant_id from tracedb.success_patterns as s) as o
cross join lateral tracedb.pattern_history(
    array(
        select a.pattern_id from tracedb.success_patterns as a where a.tenant_id = o.tenant_id
    ), now(), o.tenant_id) as h
join tracedb.success_patterns as p
    on p.tenant_id = o.tenant_id and p.pattern_id = h.pattern_id
cross join lateral tracedb.wilson_interval(
    h.use_successes, h.use_successes + h.use_failures) as i(interval)
left join (
    select
        u.tenant_id,
        u.pattern_id,
        avg(u.deviation) as mean_deviation,
        avg(u.quality) as mean_quality,
        sum(u.duration_ms) filter (where u.expected_duration_ms > 0)::double precision
            / nullif(sum(u.expected_duration_ms) filter (where u.duration_ms is not null), 0)
            as duration_ratio
    from tracedb.pattern_usage_log as u
    where u.arm = 'pattern' and u.applied
    group by u.tenant_id, u.pattern_id
) as l on l.tenant_id = p.tenant_id and l.pattern_id = p.pattern_id;

comment on view tracedb.pattern_effectiveness is
    'A pattern a row: its uses, how they ended, and the success rate (0 to 1) of those with a '
    'known end with its 95 % interval (wilson_interval); exact at every moment, folded or not. '
    'Of the uses that are still in the log (pattern_usage_log): mean deviation and quality, and '
    'duration_ratio, the time taken in parts of the time expected. trace_count and success_count '
    'are of the traces it was learned from.';

create or replace function tracedb.pattern_lift(
    of_pattern uuid default null,
    since timestamptz default now() - interval '90 days',
    until timestamptz default now(),
    min_traces integer default 20,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    pattern_id uuid, comparison text, with_traces bigint, with_successes bigint,
    without_traces bigint, without_successes bigint, with_rate double precision,
    without_rate double precision, difference double precision,
    difference_low double precision, difference_high double precision, reason text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    threshold constant double precision := (tracedb.pattern_settings(tenant)).success_threshold;
    lowest constant uuid := tracedb.uuid_floor(since);
    highest constant uuid := tracedb.uuid_floor(until);
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    if min_traces is null or min_traces < 1 then
        raise exception using errcode = 'TD002', message = 'min_traces: must be at least 1';
    end if;
    return query
    with uses as materialized (
        select u.trace_id, u.pattern_id, u.arm, u.applied, u.success
        from tracedb.pattern_usage_log as u
        where u.tenant_id = tenant and u.trace_id >= lowest and u.trace_id < highest
            and (of_pattern is null or u.pattern_id = of_pattern)
    ),
    patterns as (
        select
            u.pattern_id, p.agent_id, p.intent, bool_or(u.arm = 'control') as is_randomised,
            bool_or(u.arm = 'control' and u.success is not null) as has_outcomes
        from uses as u
        left join tracedb.success_patterns as p
            on p.tenant_id = tenant and p.pattern_id = u.pattern_id
        group by u.pattern_id, p.agent_id, p.intent
    ),
    alike as materialized (
        select t.trace_id, p.pattern_id
        from (
            select t.trace_id, left(t.agent_id, 200) as agent_id, l.label
            from tracedb.execution_traces as t
            cross join lateral tracedb.intent_label(t.intent) as l(label)
            where t.tenant_id = tenant and t.trace_id >= lowest and t.trace_id < highest
                and t.parent_trace_id is null and t.status <> 'running'
                and exists (
                    select from patterns as p
                    where not p.is_randomised
                        and p.agent_id is not distinct from left(t.agent_id, 200)
                        and p.intent is not distinct from l.label
                )
                and not exists (
                    select from tracedb.pattern_usage_log as u
                    where u.tenant_id = tenant and u.trace_id = t.trace_id
                )
            order by t.trace_id desc
            limit 10000
        ) as t
        join patterns as p
            on not p.is_randomised and p.agent_id is not distinct from t.agent_id
            and p.intent is not distinct from t.label
    ),
    scored as (
        select s.trace_id, s.score >= threshold as success
        from tracedb.score_traces(array(
            select u.trace_id from uses as u union select a.trace_id from alike as a
        ), tenant) as s
        where s.score is not null
    ),
    ends as (
        select
            u.pattern_id, 'randomised' as comparison, u.arm = 'pattern' as has_pattern,
            -- one measure for both: outcomes of one side and scores of the other differ anyway
            case when p.has_outcomes then coalesce(u.success, s.success) else s.success end
                as success
        from uses as u
        join patterns as p on p.pattern_id = u.pattern_id and p.is_randomised
        left join scored as s on s.trace_id = u.trace_id
        union all
        select u.pattern_id, 'observational', true, s.success
        from uses as u
        join patterns as p on p.pattern_id = u.pattern_id and not p.is_randomised
        join scored as s on s.trace_id = u.trace_id
        where u.applied
        union all
        select a.pattern_id, 'observational', false, s.success
        from alike as a
        join scored as s on s.trace_id = a.trace_id
        union all
        select null, 'randomised', t.has_pattern, coalesce(t.success, s.success)
        from (
            select
                u.trace_id, bool_or(u.arm = 'pattern') as has_pattern,
                bool_and(u.success) filter (where p.has_outcomes) as success
            from uses as u
            join patterns as p on p.pattern_id = u.pattern_id
            -- what was held back from nobody would count with the pattern alone
            where p.is_randomised or not exists (select from patterns as r where r.is_randomised)
            group by u.trace_id
        ) as t
        left join scored as s on s.trace_id = t.trace_id
        where of_pattern is null
    ),
    arms as (
        select
            e.pattern_id, e.comparison,
            count(e.success) filter (where e.has_pattern) as with_n,
            count(*) filter (where e.has_pattern and e.success) as with_k,
            count(e.success) filter (where not e.has_pattern) as without_n,
            count(*) filter (where not e.has_pattern and e.success) as without_k
        from ends as e
        group by e.pattern_id, e.comparison
    )
    select
        a.pattern_id, a.comparison, a.with_n, a.with_k, a.without_n, a.without_k,
        r.with_rate, r.without_rate,
        case when w.reason is null then r.with_rate - r.without_rate end,
        case when w.reason is null then i.interval[1] end,
        case when w.reason is null then i.interval[2] end,
        w.reason
    from arms as a
    cross join lateral (
        select
            a.with_k / nullif(a.with_n, 0)::double precision as with_rate,
            a.without_k / nullif(a.without_n, 0)::double precision as without_rate
    ) as r
    cross join lateral tracedb.newcombe_interval(a.with_k, a.with_n, a.without_k, a.without_n)
        as i(interval)
    cross join lateral (
        select case
            when a.with_n < min_traces then
                format('%s traces with the pattern, %s are needed', a.with_n, min_traces)
            when a.without_n < min_traces then
                format('%s traces without it, %s are needed', a.without_n, min_traces)
        end as reason
    ) as w
    order by a.pattern_id nulls first;
end $$;

comment on function tracedb.pattern_lift(uuid, timestamptz, timestamptz, integer, uuid) is
    'Whether a pattern helps: the success rate (0 to 1) of traces that had it less that of traces '
    'that had not, with the 95 % interval of the difference (newcombe_interval). A row of all '
    'patterns that were ever held back together (pattern_id null), and one for each pattern '
    '(of_pattern null: of all) used in traces of that time. comparison says how: randomised, where '
    'the log has a control arm: all for whom it was found, followed or not, against those from '
    'whom it was held back, all by their score (score_trace), or, where outcomes of both were '
    'logged, by these and else the score; observational, where it has none: traces that followed '
    'it against traces without any pattern, of the same agent and intent (of the newest 10,000), '
    'all by their score. That is no proof: the traces may differ in more than the pattern. With '
    'fewer than min_traces on a side there is no difference, but a reason.';

create or replace function tracedb.policy_shares(policy jsonb, candidates jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case
        when jsonb_typeof(policy) = 'object' then policy
        else (
            -- who has the highest score; several of them equally
            select jsonb_object_agg(b.agent, 1.0 / b.n)
            from (
                select c.agent, count(*) over () as n
                from (
                    select
                        e.candidate ->> 'agent' as agent,
                        rank() over (
                            order by max((e.candidate -> 'score')::double precision) desc) as place
                    from jsonb_array_elements(candidates) as e(candidate)
                    where jsonb_typeof(e.candidate -> 'score') = 'number'
                        and e.candidate ->> 'agent' is not null
                    group by e.candidate ->> 'agent'
                ) as c
                where c.place = 1
            ) as b
        )
    end
$$;

comment on function tracedb.policy_shares(jsonb, jsonb) is
    'With what probability a policy chooses each agent: {"agent": probability} as it is given, or '
    'for "greedy" by the scores of the candidates. Null if greedy and no candidate has a score. '
    'Internal.';

create or replace function tracedb.evaluate_routing(
    policy jsonb,
    since timestamptz default now() - interval '30 days',
    until timestamptz default now(),
    reward text default 'success',
    min_effective integer default 20,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    decisions bigint, rewarded bigint, effective double precision, unsupported double precision,
    logged_value double precision,
    ips double precision, ips_low double precision, ips_high double precision,
    snips double precision, snips_low double precision, snips_high double precision,
    reason text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    wanted constant text := reward;
    threshold constant double precision := (tracedb.pattern_settings(tenant)).success_threshold;
    lowest constant uuid := tracedb.uuid_floor(since);
    highest constant uuid := tracedb.uuid_floor(until);
    total double precision;
begin
    if since is null or until is null then
        raise exception using errcode = 'TD002', message = 'since, until: must be given';
    end if;
    if wanted is null or wanted not in ('success', 'score', 'cost', 'duration') then
        raise exception using errcode = 'TD002',
            message = 'reward: must be success, score, cost or duration';
    end if;
    if min_effective is null or min_effective < 2 then
        raise exception using errcode = 'TD002', message = 'min_effective: must be at least 2';
    end if;
    if jsonb_typeof(policy) = 'object' then
        if exists (
            select from jsonb_each(policy) as p
            where jsonb_typeof(p.value) <> 'number' or p.value::numeric not between 0 and 1
        ) then
            raise exception using errcode = 'TD002',
                message = 'policy: probabilities must be numbers from 0 to 1';
        end if;
        select sum(p.value::numeric) into total from jsonb_each(policy) as p;
        if total is null or abs(total - 1) > 1e-9 then
            raise exception using errcode = 'TD002',
                message = 'policy: probabilities must add up to 1';
        end if;
    elsif policy is distinct from '"greedy"' then
        raise exception using errcode = 'TD002',
            message = 'policy: must be {"agent": probability, ...} or "greedy"';
    end if;
    return query
    with first_decisions as materialized (
        select distinct on (r.trace_id)
            r.trace_id, r.selected_agent, r.selection_probability, r.candidates
        from tracedb.agent_routing_decisions as r
        where r.tenant_id = tenant and r.trace_id >= lowest and r.trace_id < highest
        order by r.trace_id, r.started_at, r.span_id
    ),
    rewards as (
        select
            s.trace_id,
            case wanted
                when 'success' then (s.score >= threshold)::integer::double precision
                when 'score' then s.score
                when 'cost' then t.cost_usd::double precision
                when 'duration' then t.duration_ms::double precision
            end as reward
        from tracedb.score_traces(array(select d.trace_id from first_decisions as d), tenant) as s
        left join tracedb.trace_summary as t
            on wanted in ('cost', 'duration') and t.tenant_id = tenant and t.trace_id = s.trace_id
        where s.score is not null
    ),
    samples as (
        select
            d.selection_probability as p, v.reward, a.shares,
            coalesce((a.shares ->> d.selected_agent)::double precision, 0)
                / d.selection_probability as weight,
            -- what the policy would choose, and the router could not have: there it has no record
            (
                select coalesce(sum(s.share::double precision), 0)
                from jsonb_each_text(a.shares) as s (agent, share)
                where s.share::double precision > 0 and s.agent <> d.selected_agent
                    and not exists (
                        select from jsonb_array_elements(d.candidates) as e(candidate)
                        where e.candidate ->> 'agent' = s.agent
                            and jsonb_typeof(e.candidate -> 'probability') = 'number'
                            and (e.candidate -> 'probability')::double precision > 0
                    )
            ) as unsupported
        from first_decisions as d
        join rewards as v on v.trace_id = d.trace_id and v.reward is not null
        cross join lateral tracedb.policy_shares(policy, d.candidates) as a(shares)
    ),
    sums as (
        select
            (select count(*) from first_decisions) as decisions,
            count(*) as n,
            count(*) filter (where s.p is null) as without_probability,
            count(*) filter (where s.shares is null) as without_score,
            avg(s.unsupported) as unsupported,
            avg(s.reward) as logged_value,
            sum(s.weight) as weights,
            sum(s.weight * s.weight) as squares,
            avg(s.weight * s.reward) as ips,
            stddev_samp(s.weight * s.reward) / sqrt(count(*)) as ips_error,
            sum(s.weight * s.reward) / nullif(sum(s.weight), 0) as snips
        from samples as s
    ),
    judged as (
        select
            t.*, t.weights * t.weights / nullif(t.squares, 0) as effective,
            (
                select sqrt(sum(power(s.weight * (s.reward - t.snips), 2))) / nullif(t.weights, 0)
                from samples as s
            ) as snips_error
        from sums as t
    ),
    answered as (
        select j.*, case
            when j.n = 0 then 'no decision of a trace with a known ' || wanted
            when j.without_probability > 0 then format(
                '%s of %s decisions have no selection_probability', j.without_probability, j.n)
            when j.without_score > 0 then format(
                '%s of %s decisions have no candidate with a score', j.without_score, j.n)
            when j.unsupported > 1e-9 then format(
                'no overlap: %s %% of what this policy would choose, the router never could (by '
                'the probabilities of the candidates)', round((100 * j.unsupported)::numeric, 1))
            when coalesce(j.effective, 0) < min_effective then format(
                'too little overlap: the decisions are worth %s of this policy''s own, %s are '
                'needed', round(coalesce(j.effective, 0)::numeric, 1), min_effective)
        end as reason
        from judged as j
    )
    select
        a.decisions, a.n, a.effective, a.unsupported, a.logged_value,
        v.ips, v.ips - 1.96 * v.ips_error, v.ips + 1.96 * v.ips_error,
        v.snips, v.snips - 1.96 * v.snips_error, v.snips + 1.96 * v.snips_error,
        a.reason
    from answered as a
    left join answered as v on v.reason is null;
end $$;

comment on function tracedb.evaluate_routing(
    jsonb, timestamptz, timestamptz, text, integer, uuid
) is
    'What routing by another policy would have been worth, from the decisions that were made (the '
    'first of each trace of that time) and the probability they were made with. The policy: '
    '{"agent": probability, ...}, the same for every request, or "greedy" by the scores of the '
    'candidates. The reward: success (1 if the score reaches the threshold) or score '
    '(score_trace), cost (US dollars) or duration (milliseconds). Each decision weighs w = '
    'policy''s probability / logged probability: ips = mean(w r) (Horvitz and Thompson, 1952), '
    'unbiased; snips = sum(w r) / sum(w) (Swaminathan and Joachims, The Self-Normalized Estimator '
    'for Counterfactual Learning, 2015), steadier; both with a normal 95 % interval, the second '
    'by the delta method. effective = sum(w)^2 / sum(w^2) (Kish, Survey Sampling, 1965): so many '
    'decisions of the policy itself would say as much. There is a reason and no number where a '
    'probability is missing, where the policy chooses agents that the router could not have '
    'chosen (unsupported: their mean share), and where effective is below min_effective. '
    'logged_value is what the routing in use had.';

create or replace function tracedb.prune_patterns(
    as_of timestamptz default now(),
    max_patterns integer default 1000,
    dry_run boolean default true,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    pattern_id uuid, reason text, uses bigint, successes bigint, failures bigint,
    success_rate_high double precision, last_used_at timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    settings constant tracedb.pattern_settings := tracedb.pattern_settings(tenant);
begin
    if as_of is null then
        raise exception using errcode = 'TD002', message = 'as_of: must be given';
    end if;
    if max_patterns is null or max_patterns < 1 then
        raise exception using errcode = 'TD002', message = 'max_patterns: must be at least 1';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    if not dry_run then
        -- Those who fold and learn write the same patterns.
        perform pg_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0));
    end if;
    return query
    with hopeless as materialized (
        select
            p.pattern_id, h.use_count as uses, h.use_successes as successes,
            h.use_failures as failures, w.high, h.last_used_at,
            format(
                'success of %s %% at most (%s of %s uses with a known end, at least %s needed), '
                'below %s %%; not used for %s days', round((100 * w.high)::numeric, 1),
                h.use_successes, h.use_successes + h.use_failures, settings.prune_min_uses,
                round((100 * settings.prune_max_success)::numeric, 1), settings.prune_idle_days)
                as reason
        from tracedb.success_patterns as p
        join tracedb.pattern_history(array(
            select a.pattern_id from tracedb.success_patterns as a
            where a.tenant_id = tenant and a.retired_at is null
        ), as_of, tenant) as h on h.pattern_id = p.pattern_id
        cross join lateral tracedb.wilson_upper(
            h.use_successes, h.use_successes + h.use_failures, settings.confidence_z) as w(high)
        where p.tenant_id = tenant and p.retired_at is null
            and h.use_successes + h.use_failures >= settings.prune_min_uses
            and w.high < settings.prune_max_success
            and h.last_used_at < as_of - settings.prune_idle_days * interval '1 day'
        order by p.pattern_id
        limit max_patterns
    ),
    retired as (
        update tracedb.success_patterns as p
        set retired_at = now(), retired_reason = h.reason, updated_at = now()
        from hopeless as h
        where not dry_run and p.tenant_id = tenant and p.pattern_id = h.pattern_id
            and p.retired_at is null
        returning p.pattern_id
    ),
    receipts as (
        insert into tracedb.pattern_prunings (
            tenant_id, pattern_id, reason, uses, successes, failures, success_rate_high,
            last_used_at
        )
        select
            tenant, h.pattern_id, h.reason, h.uses, h.successes, h.failures, h.high, h.last_used_at
        from hopeless as h
        join retired as r on r.pattern_id = h.pattern_id
        on conflict do nothing
    )
    select
        h.pattern_id, h.reason, h.uses, h.successes, h.failures, h.high, h.last_used_at
    from hopeless as h
    where dry_run or exists (select from retired as r where r.pattern_id = h.pattern_id);
end $$;

comment on function tracedb.prune_patterns(timestamptz, integer, boolean, uuid) is
    'Retires patterns that do not work, at most max_patterns a call, with a receipt for each in '
    'pattern_prunings; with dry_run it only says which. By pattern_settings: those of at least '
    'prune_min_uses uses with a known end (fewer are no fair chance), whose success rate lies '
    'below prune_max_success even at its upper confidence bound (wilson_upper), and that have not '
    'been used in the prune_idle_days before as_of. They are retired and not deleted: the log '
    'keeps its meaning, and the next trace of that kind does not bring the pattern back as new.';

update tracedb.partition_policies
set parents = parents || '{learned_traces}'
where family = 'traces' and not parents @> '{learned_traces}';

select tracedb.create_partition('learned_traces', p.from_time, p.to_time)
from tracedb.partitions as p
where p.parent = 'execution_traces' and not p.is_default
    and not exists (
        select
        from tracedb.partitions as c
        where c.parent = 'learned_traces' and c.from_time = p.from_time
    )
order by p.from_time;

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    policy record;
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for a new policy
    for policy in
        select
            c.table_name, r.role_name, r.command,
            format('%s_%s_%s', c.table_name, substr(r.role_name, 9), r.command) as name,
            concat(
                ' using (' || r.visible || ')', ' with check (' || r.writable || ')'
            ) as conditions
        from (values
            ('learned', 'learned_traces'), ('learned', 'learning_progress'),
            ('learned', 'agent_chaining_patterns'),
            ('error', 'error_patterns'),
            ('pruning', 'pattern_prunings'),
            ('default', 'learned_traces_default')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('default', 'tracedb_owner', 'all', 'true', 'true'),

            ('learned', 'tracedb_owner', 'all', 'true', 'true'),
            ('learned', 'tracedb_service', 'select', 'true', null),
            ('learned', 'tracedb_app', 'select', own_rows, null),
            ('learned', 'tracedb_reader', 'select', own_rows, null),
            ('learned', 'tracedb_maintainer', 'select', 'true', null),
            ('learned', 'tracedb_maintainer', 'insert', null, 'true'),
            ('learned', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('learned', 'tracedb_maintainer', 'delete', 'true', null),

            ('error', 'tracedb_owner', 'all', 'true', 'true'),
            ('error', 'tracedb_service', 'select', 'true', null),
            ('error', 'tracedb_service', 'update', 'true', 'true'),
            ('error', 'tracedb_app', 'select', own_rows, null),
            ('error', 'tracedb_app', 'update', own_rows, own_rows),
            ('error', 'tracedb_reader', 'select', own_rows, null),
            ('error', 'tracedb_maintainer', 'select', 'true', null),
            ('error', 'tracedb_maintainer', 'insert', null, 'true'),
            ('error', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('error', 'tracedb_maintainer', 'delete', 'true', null),

            ('pruning', 'tracedb_owner', 'all', 'true', 'true'),
            ('pruning', 'tracedb_service', 'select', 'true', null),
            ('pruning', 'tracedb_app', 'select', own_rows, null),
            ('pruning', 'tracedb_reader', 'select', own_rows, null),
            ('pruning', 'tracedb_maintainer', 'select', 'true', null),
            ('pruning', 'tracedb_maintainer', 'insert', null, 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.learned_traces enable row level security;
alter table tracedb.learned_traces force row level security;
alter table tracedb.learning_progress enable row level security;
alter table tracedb.learning_progress force row level security;
alter table tracedb.agent_chaining_patterns enable row level security;
alter table tracedb.agent_chaining_patterns force row level security;
alter table tracedb.error_patterns enable row level security;
alter table tracedb.error_patterns force row level security;
alter table tracedb.pattern_prunings enable row level security;
alter table tracedb.pattern_prunings force row level security;
alter table tracedb.learned_traces_default enable row level security;
alter table tracedb.learned_traces_default force row level security;

revoke all on function
    tracedb.error_template(text),
    tracedb.endpoint_template(text),
    tracedb.intent_label(jsonb),
    tracedb.gates_passed(jsonb),
    tracedb.score_traces(uuid[], uuid),
    tracedb.score_trace(uuid, uuid),
    tracedb.newcombe_interval(bigint, bigint, bigint, bigint),
    tracedb.pattern_lift(uuid, timestamptz, timestamptz, integer, uuid),
    tracedb.policy_shares(jsonb, jsonb),
    tracedb.evaluate_routing(jsonb, timestamptz, timestamptz, text, integer, uuid),
    tracedb.log_pattern_use(
        uuid, uuid, boolean, text, boolean, integer, double precision, jsonb, bigint,
        timestamptz, uuid),
    tracedb.log_pattern_outcome(
        uuid, uuid, boolean, double precision, bigint, double precision, text, timestamptz, uuid),
    tracedb.set_error_fix(uuid, text, uuid),
    tracedb.bounded_tokens(numeric),
    tracedb.prompt_keywords(text, text[]),
    tracedb.traces_to_learn(text, timestamptz, integer, uuid, uuid),
    tracedb.note_learned(text, uuid[], tracedb.learned_traces[], uuid),
    tracedb.newest_learned(uuid[], uuid),
    tracedb.patterns_of_traces(uuid[], uuid),
    tracedb.update_patterns(tracedb.learned_change[], tracedb.trace_pattern[], uuid),
    tracedb.extract_patterns(timestamptz, integer, uuid, uuid),
    tracedb.learn_chains(timestamptz, integer, uuid, uuid),
    tracedb.learn_errors(timestamptz, integer, uuid, uuid),
    tracedb.fold_pattern_usage(integer),
    tracedb.prune_patterns(timestamptz, integer, boolean, uuid)
from public;
grant select on
    tracedb.learned_traces,
    tracedb.learning_progress,
    tracedb.agent_chaining_patterns,
    tracedb.error_patterns,
    tracedb.pattern_prunings,
    tracedb.agent_chains,
    tracedb.pattern_effectiveness
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant update (known_fix, fix_set_at, updated_at) on tracedb.error_patterns
to tracedb_service, tracedb_app;
grant insert, update, delete on
    tracedb.learned_traces,
    tracedb.learning_progress,
    tracedb.agent_chaining_patterns,
    tracedb.error_patterns
to tracedb_maintainer;
grant insert on tracedb.pattern_prunings to tracedb_maintainer;
grant execute on function
    tracedb.error_template(text),
    tracedb.endpoint_template(text),
    tracedb.intent_label(jsonb),
    tracedb.gates_passed(jsonb),
    tracedb.score_traces(uuid[], uuid),
    tracedb.score_trace(uuid, uuid),
    tracedb.newcombe_interval(bigint, bigint, bigint, bigint),
    tracedb.pattern_lift(uuid, timestamptz, timestamptz, integer, uuid),
    tracedb.policy_shares(jsonb, jsonb),
    tracedb.evaluate_routing(jsonb, timestamptz, timestamptz, text, integer, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.log_pattern_use(
        uuid, uuid, boolean, text, boolean, integer, double precision, jsonb, bigint,
        timestamptz, uuid),
    tracedb.log_pattern_outcome(
        uuid, uuid, boolean, double precision, bigint, double precision, text, timestamptz, uuid),
    tracedb.set_error_fix(uuid, text, uuid)
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.bounded_tokens(numeric),
    tracedb.prompt_keywords(text, text[]),
    tracedb.traces_to_learn(text, timestamptz, integer, uuid, uuid),
    tracedb.note_learned(text, uuid[], tracedb.learned_traces[], uuid),
    tracedb.newest_learned(uuid[], uuid),
    tracedb.patterns_of_traces(uuid[], uuid),
    tracedb.update_patterns(tracedb.learned_change[], tracedb.trace_pattern[], uuid),
    tracedb.extract_patterns(timestamptz, integer, uuid, uuid),
    tracedb.learn_chains(timestamptz, integer, uuid, uuid),
    tracedb.learn_errors(timestamptz, integer, uuid, uuid),
    tracedb.fold_pattern_usage(integer),
    tracedb.prune_patterns(timestamptz, integer, boolean, uuid)
to tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.learned_traces');
select tracedb.co_locate('tracedb.learning_progress');
select tracedb.co_locate('tracedb.agent_chaining_patterns');
select tracedb.co_locate('tracedb.error_patterns');
select tracedb.co_locate('tracedb.pattern_prunings');
