-- 200_success_patterns.sql: what worked before, and how often it was tried.

set role tracedb_owner;

create or replace function tracedb.pattern_document(
    prompt text, intent text, keywords text[]
)
returns tsvector
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select strip(to_tsvector(
        'english', concat_ws(' ', prompt, intent, array_to_string(keywords, ' '))))
$$;

comment on function tracedb.pattern_document(text, text, text[]) is
    'The words a pattern is found by: of its prompt, intent and keywords, stemmed, without stop '
    'words and positions. Words that are not English stay nearly as they are. Internal.';

create table if not exists tracedb.success_patterns (
    tenant_id          uuid        not null,
    pattern_id         uuid        not null default tracedb.new_id(),
    signature          uuid        not null,
    prompt             text        not null,
    prompt_hash        uuid        not null generated always as (md5(prompt)::uuid) stored,
    -- Null in these: not known.
    intent             text,
    agent_id           text,
    route              text,
    keywords           text[]      not null default '{}',
    routing            jsonb       not null default '{}',
    hook_sequence      jsonb       not null default '[]',
    endpoint_sequence  jsonb       not null default '[]',
    tool_sequence      text[]      not null default '{}',
    intelligence_functions text[]  not null default '{}',
    context            jsonb       not null default '{}',
    performance        jsonb       not null default '{}',
    success_score      double precision,
    trace_count        bigint      not null default 0,
    success_count      bigint      not null default 0,
    use_count          bigint      not null default 0,
    use_successes      bigint      not null default 0,
    use_failures       bigint      not null default 0,
    -- Null: no trace, or no use, so far.
    first_seen_at      timestamptz,
    last_seen_at       timestamptz,
    last_used_at       timestamptz,
    source_trace_ids   uuid[]      not null default '{}',
    -- Null: in force.
    retired_at         timestamptz,
    retired_reason     text,
    metadata           jsonb       not null default '{}',
    search             tsvector    not null
        generated always as (tracedb.pattern_document(prompt, intent, keywords)) stored,
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    constraint success_patterns_pkey primary key (tenant_id, pattern_id),
    constraint success_patterns_signature unique (tenant_id, signature),
    constraint pattern_has_a_prompt check (prompt <> '' and length(prompt) <= 8000),
    constraint pattern_lists_are_bounded check (
        cardinality(keywords) <= 64 and cardinality(tool_sequence) <= 256
        and cardinality(intelligence_functions) <= 256 and cardinality(source_trace_ids) <= 16
    ),
    constraint pattern_labels_are_bounded
        check (length(intent) <= 200 and length(agent_id) <= 200 and length(route) <= 200),
    constraint pattern_sequences_are_arrays check (
        jsonb_typeof(hook_sequence) = 'array' and jsonb_typeof(endpoint_sequence) = 'array'
    ),
    constraint pattern_documents_are_objects check (
        jsonb_typeof(routing) = 'object' and jsonb_typeof(context) = 'object'
        and jsonb_typeof(performance) = 'object' and jsonb_typeof(metadata) = 'object'
    ),
    constraint pattern_json_readable check (
        tracedb.is_readable(routing) and tracedb.is_readable(hook_sequence)
        and tracedb.is_readable(endpoint_sequence) and tracedb.is_readable(context)
        and tracedb.is_readable(performance) and tracedb.is_readable(metadata)
    ),
    constraint pattern_score_is_fraction check (success_score between 0 and 1),
    constraint pattern_counts_agree check (
        success_count >= 0 and success_count <= trace_count
        and use_successes >= 0 and use_failures >= 0
        and use_successes + use_failures <= use_count
    ),
    constraint pattern_seen_in_order check (first_seen_at <= last_seen_at),
    constraint pattern_times_in_range check (
        first_seen_at >= '1970-01-01 00:00:00+00' and first_seen_at < '2200-01-01 00:00:00+00'
        and last_seen_at >= '1970-01-01 00:00:00+00' and last_seen_at < '2200-01-01 00:00:00+00'
    )
);

-- The few that searches leave out.
create index if not exists success_patterns_retired_idx
on tracedb.success_patterns (tenant_id, pattern_id) where retired_at is not null;

comment on table tracedb.success_patterns is
    'A way of doing something that worked: what was asked, which agent did it with which hooks, '
    'endpoints and tools, what that took, and how often it worked since. Learned from traces '
    '(extract_patterns) or saved by hand (save_pattern); found by find_patterns.';
comment on column tracedb.success_patterns.signature is
    'A hash (pattern_signature) of what makes two patterns the same one: found again, it is '
    'counted and not stored twice.';
comment on column tracedb.success_patterns.prompt is
    'What was asked, as one who asked it said it: the text that is embedded and searched.';
comment on column tracedb.success_patterns.prompt_hash is
    'The MD5 of prompt: an embedding of another text than this is out of date.';
comment on column tracedb.success_patterns.intent is
    'What the prompt wants, as the recorder classified it.';
comment on column tracedb.success_patterns.routing is
    'How the agent was chosen: reason and confidence, as the routing decision had them.';
comment on column tracedb.success_patterns.hook_sequence is
    'The hooks in order: [{"hook_type": ..., "tool_name": ..., "script": ...}, ...].';
comment on column tracedb.success_patterns.endpoint_sequence is
    'The calls of services in order: [{"service": ..., "method": ..., "path": ..., '
    '"duration_ms": ...}, ...].';
comment on column tracedb.success_patterns.tool_sequence is
    'The names of the tools called, in order.';
comment on column tracedb.success_patterns.context is
    'Where it worked, as labels (channel, source, ...) that the context of a search is compared '
    'with.';
comment on column tracedb.success_patterns.performance is
    'What it took: {"n": ..., "p50_ms": ..., "p95_ms": ..., "tokens": ..., "cost_usd": "..."}.';
comment on column tracedb.success_patterns.success_score is
    'The mean score (score_trace) of the traces it was learned from; null: saved by hand.';
comment on column tracedb.success_patterns.trace_count is
    'Traces it was learned from; success_count of these succeeded.';
comment on column tracedb.success_patterns.use_count is
    'Uses that fold_pattern_usage has added; use_successes and use_failures of these are known '
    'to have ended so. pattern_history adds the uses that are not folded yet.';
comment on column tracedb.success_patterns.source_trace_ids is
    'A few of the traces it was learned from.';
comment on column tracedb.success_patterns.retired_at is
    'Since when it is not found any more.';
comment on column tracedb.success_patterns.search is
    'The words it is found by (pattern_document).';
comment on constraint pattern_has_a_prompt on tracedb.success_patterns is
    'prompt: required, at most 8000 characters';
comment on constraint pattern_lists_are_bounded on tracedb.success_patterns is
    'keywords, tool_sequence, intelligence_functions, source_trace_ids: at most 64, 256, 256, 16';
comment on constraint pattern_labels_are_bounded on tracedb.success_patterns is
    'intent, agent_id, route: at most 200 characters';
comment on constraint pattern_sequences_are_arrays on tracedb.success_patterns is
    'hook_sequence, endpoint_sequence: must be an array';
comment on constraint pattern_documents_are_objects on tracedb.success_patterns is
    'routing, context, performance, metadata: must be an object';
comment on constraint pattern_json_readable on tracedb.success_patterns is
    'routing, hook_sequence, endpoint_sequence, context, performance, metadata: nested less than '
    '100 levels deep, numbers within 1e308';
comment on constraint pattern_score_is_fraction on tracedb.success_patterns is
    'success_score: must be from 0 to 1';
comment on constraint pattern_counts_agree on tracedb.success_patterns is
    'success_count, trace_count, use_successes, use_failures, use_count: must not be negative, '
    'nor the parts more than the whole';
comment on constraint pattern_seen_in_order on tracedb.success_patterns is
    'last_seen_at: must not be before first_seen_at';
comment on constraint pattern_times_in_range on tracedb.success_patterns is
    'first_seen_at, last_seen_at: must lie between 1970 and 2200';

reset role;
