-- 0012_patterns.sql: success patterns, their embeddings and uses, and how they are found.
--
-- depends: 0011_bulk_speed

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

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

create table if not exists tracedb.pattern_settings (
    tenant_id              uuid             not null,
    semantic_weight        double precision not null,
    keyword_weight         double precision not null,
    intent_weight          double precision not null,
    context_weight         double precision not null,
    history_weight         double precision not null,
    min_score              double precision not null,
    explore_share          double precision not null,
    half_life_days         double precision not null,
    confidence_z           double precision not null,
    learned_weight         double precision not null,
    exact_search_limit     bigint           not null,
    word_search_limit      integer          not null,
    completed_weight       double precision not null,
    no_errors_weight       double precision not null,
    hooks_succeeded_weight double precision not null,
    quality_gates_weight   double precision not null,
    in_time_weight         double precision not null,
    intelligence_weight    double precision not null,
    user_confirmed_weight  double precision not null,
    success_threshold      double precision not null,
    in_time_ms             bigint           not null,
    prune_min_uses         integer          not null,
    prune_max_success      double precision not null,
    prune_idle_days        integer          not null,
    created_at             timestamptz      not null default now(),
    updated_at             timestamptz      not null default now(),
    constraint pattern_settings_pkey primary key (tenant_id),
    constraint settings_search_weights_add_up check (
        least(semantic_weight, keyword_weight, intent_weight, context_weight, history_weight) >= 0
        and abs(semantic_weight + keyword_weight + intent_weight + context_weight + history_weight
            - 1) < 1e-6
    ),
    constraint settings_success_weights_add_up check (
        least(completed_weight, no_errors_weight, hooks_succeeded_weight, quality_gates_weight,
            in_time_weight, intelligence_weight, user_confirmed_weight) >= 0
        and abs(completed_weight + no_errors_weight + hooks_succeeded_weight
            + quality_gates_weight + in_time_weight + intelligence_weight + user_confirmed_weight
            - 1) < 1e-6
    ),
    constraint settings_shares_are_fractions check (
        min_score between 0 and 1 and explore_share between 0 and 1
        and learned_weight between 0 and 1 and success_threshold between 0 and 1
        and prune_max_success between 0 and 1
    ),
    constraint settings_half_life_is_positive
        check (half_life_days > 0 and half_life_days <= 36500),
    constraint settings_z_is_usual check (confidence_z between 0 and 5),
    constraint settings_limits_are_bounded
        check (exact_search_limit between 0 and 1000000000 and word_search_limit >= 0),
    constraint settings_times_and_uses_are_bounded check (
        in_time_ms between 1 and 86400000 and prune_min_uses between 1 and 1000000
        and prune_idle_days between 1 and 36500
    )
);

comment on table tracedb.pattern_settings is
    'What a tenant has set for its patterns. Read it by pattern_settings(tenant_id), which has the '
    'defaults for a tenant without a row; write it by set_pattern_settings.';
comment on column tracedb.pattern_settings.semantic_weight is
    'What the likeness of embeddings counts in the score of find_patterns; the four after it: the '
    'words found, the same intent, the same context, and the history. They add up to 1.';
comment on column tracedb.pattern_settings.min_score is
    'The least score find_patterns shows, where the call names none.';
comment on column tracedb.pattern_settings.explore_share is
    'The share of searches that give their last place to a pattern nobody has tried yet.';
comment on column tracedb.pattern_settings.half_life_days is
    'After so many days without new evidence, history counts half.';
comment on column tracedb.pattern_settings.confidence_z is
    'Of the confidence bounds: 1.645 is 95 % on one side.';
comment on column tracedb.pattern_settings.learned_weight is
    'What one trace a pattern was learned from counts beside one use of it with a known outcome.';
comment on column tracedb.pattern_settings.exact_search_limit is
    'Numbers (embeddings x dimensions) up to which a search looks at every embedding of the '
    'tenant, and above which ensure_pattern_indexes builds the tenant an index of its own.';
comment on column tracedb.pattern_settings.word_search_limit is
    'Patterns up to which a search by words reads every pattern of the tenant, and above which '
    'ensure_pattern_indexes builds the tenant an index of its own.';
comment on column tracedb.pattern_settings.completed_weight is
    'What it counts in score_trace that a trace completed; the six after it likewise. They add '
    'up to 1.';
comment on column tracedb.pattern_settings.success_threshold is
    'The score of score_trace from which a trace counts as a success.';
comment on column tracedb.pattern_settings.in_time_ms is
    'A trace within so many milliseconds is in time.';
comment on column tracedb.pattern_settings.prune_min_uses is
    'Fewer uses than this are no fair chance: such a pattern is not pruned.';
comment on column tracedb.pattern_settings.prune_max_success is
    'A pattern whose success rate surely lies below this may be pruned,';
comment on column tracedb.pattern_settings.prune_idle_days is
    'once it has not been used for so many days.';
comment on constraint settings_search_weights_add_up on tracedb.pattern_settings is
    'semantic_weight, keyword_weight, intent_weight, context_weight, history_weight: must not be '
    'negative, and add up to 1';
comment on constraint settings_success_weights_add_up on tracedb.pattern_settings is
    'completed_weight, no_errors_weight, hooks_succeeded_weight, quality_gates_weight, '
    'in_time_weight, intelligence_weight, user_confirmed_weight: must not be negative, and add up '
    'to 1';
comment on constraint settings_shares_are_fractions on tracedb.pattern_settings is
    'min_score, explore_share, learned_weight, success_threshold, prune_max_success: must be from '
    '0 to 1';
comment on constraint settings_half_life_is_positive on tracedb.pattern_settings is
    'half_life_days: must be above 0 and at most 36500';
comment on constraint settings_z_is_usual on tracedb.pattern_settings is
    'confidence_z: must be from 0 to 5';
comment on constraint settings_limits_are_bounded on tracedb.pattern_settings is
    'exact_search_limit, word_search_limit: must not be negative, the first at most 1000000000';
comment on constraint settings_times_and_uses_are_bounded on tracedb.pattern_settings is
    'in_time_ms, prune_min_uses, prune_idle_days: must be positive, and at most 86400000, 1000000, '
    '36500';

create table if not exists tracedb.pattern_embeddings (
    tenant_id    uuid        not null,
    model        text        not null,
    pattern_id   uuid        not null,
    dimension    smallint    not null,
    content_hash uuid        not null,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),
    -- Half precision: 2 bytes a number find the same neighbours as 4 (tests/bench). Kept in the
    -- row, where reading it costs a fourth of what it does in TOAST. The type is not
    -- schema-qualified because providers install the extension in different schemas.
    embedding    halfvec     not null,
    constraint pattern_embeddings_pkey primary key (tenant_id, model, pattern_id),
    constraint pattern_embeddings_pattern foreign key (tenant_id, pattern_id)
        references tracedb.success_patterns on delete cascade,
    constraint embedding_names_its_model check (model <> '' and length(model) <= 200),
    -- What fits a page beside its key.
    constraint embedding_has_its_dimension
        check (dimension between 1 and 3072 and dimension = vector_dims(embedding))
) partition by hash (tenant_id);

alter table tracedb.pattern_embeddings alter column embedding set storage plain;

-- An exact search reads every embedding of a tenant: among those of a 64th of the tenants they lie
-- several times closer together than among those of all.
do $$
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for one that is there
    for i in 0 .. 63 loop
        execute format(
            'create table if not exists tracedb.%I partition of tracedb.pattern_embeddings '
            'for values with (modulus 64, remainder %s)', 'pattern_embeddings_' || i, i);
        execute format(
            'alter table tracedb.%I enable row level security', 'pattern_embeddings_' || i);
        execute format(
            'alter table tracedb.%I force row level security', 'pattern_embeddings_' || i);
    end loop;
end $$;

-- The embeddings of one pattern, also for the foreign key.
create index if not exists pattern_embeddings_pattern_idx
on tracedb.pattern_embeddings (tenant_id, pattern_id);

-- An embedding of the same text by the same model, so that no text is embedded twice.
create index if not exists pattern_embeddings_content_idx
on tracedb.pattern_embeddings (tenant_id, model, content_hash);

comment on table tracedb.pattern_embeddings is
    'The embedding of a pattern''s prompt by a model. A new model is built beside the one in use '
    '(patterns_to_embed, put_embeddings); searches name the model they want.';
comment on column tracedb.pattern_embeddings.embedding is
    'Scaled to length 1: only directions are compared, and half precision then holds any of them.';
comment on column tracedb.pattern_embeddings.content_hash is
    'The MD5 of the text that was embedded: where it is not the prompt_hash of the pattern any '
    'more, the embedding is out of date.';
comment on constraint embedding_names_its_model on tracedb.pattern_embeddings is
    'model: required, at most 200 characters';
comment on constraint embedding_has_its_dimension on tracedb.pattern_embeddings is
    'dimension: must be from 1 to 3072, and what the embedding has';

create table if not exists tracedb.pattern_indexes (
    tenant_id    uuid        not null,
    kind         text        not null,
    model        text        not null,
    index_name   text        not null,
    -- Null: an index of words.
    dimension    smallint,
    row_count    bigint      not null,
    common_words text[]      not null default '{}',
    built_at     timestamptz not null default now(),
    constraint pattern_indexes_pkey primary key (tenant_id, kind, model),
    constraint pattern_index_kind_known check (kind in ('vectors', 'words')),
    constraint pattern_index_is_of_a_model
        check ((kind = 'vectors') = (model <> '') and (kind = 'vectors') = (dimension is not null))
);

comment on table tracedb.pattern_indexes is
    'The index that ensure_pattern_indexes has built for one tenant and model (kind vectors, on '
    'pattern_embeddings), or for the words of its patterns (kind words, on success_patterns; the '
    'model is empty). An index of all tenants would find a tenant few of its own neighbours.';
comment on column tracedb.pattern_indexes.row_count is
    'Rows when it was built.';
comment on column tracedb.pattern_indexes.common_words is
    'Of kind words: what stood in so many of the tenant''s patterns that it finds none of them.';
comment on constraint pattern_index_kind_known on tracedb.pattern_indexes is
    'kind: must be vectors or words';
comment on constraint pattern_index_is_of_a_model on tracedb.pattern_indexes is
    'model, dimension: of vectors, and of nothing else';

-- No "set" clause on this one, as on is_uuid7: it is inlined. No generated column either, which
-- would keep rows from being moved from the default partition as they are.
create or replace function tracedb.usage_standing(arm text, applied boolean, success boolean)
returns text
language sql immutable parallel safe
as $$
    select case
        when arm operator(pg_catalog.=) 'control' or not applied then 'none'
        when success then 'success'
        when not success then 'failure'
        else 'open'
    end
$$;

comment on function tracedb.usage_standing(text, boolean, boolean) is
    'What a use counts as: none (held back, or not applied), open (no outcome yet), success or '
    'failure.';

create table if not exists tracedb.pattern_usage_log (
    tenant_id   uuid        not null,
    trace_id    uuid        not null,
    pattern_id  uuid        not null,
    used_at     timestamptz not null default now(),
    applied     boolean     not null default true,
    arm         text        not null default 'pattern',
    explored    boolean     not null default false,
    -- Null in these: not reported.
    rank        integer,
    score       double precision,
    score_parts jsonb       not null default '{}',
    expected_duration_ms bigint,
    -- Null in these: not known yet.
    success     boolean,
    deviation   double precision,
    duration_ms bigint,
    quality     double precision,
    feedback    text,
    outcome_at  timestamptz,
    counted     text        not null default 'none',
    created_at  timestamptz not null default now(),
    updated_at  timestamptz not null default now(),
    constraint pattern_usage_log_pkey primary key (tenant_id, trace_id, pattern_id),
    constraint usage_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint usage_times_in_range check (
        used_at >= '1970-01-01 00:00:00+00' and used_at < '2200-01-01 00:00:00+00'
        and outcome_at >= '1970-01-01 00:00:00+00' and outcome_at < '2200-01-01 00:00:00+00'
    ),
    constraint usage_arm_known check (arm in ('pattern', 'control')),
    constraint usage_control_is_not_applied check (arm = 'pattern' or not applied),
    constraint usage_rank_is_positive check (rank >= 1),
    constraint usage_shares_are_fractions
        check (score between 0 and 1 and deviation between 0 and 1 and quality between 0 and 1),
    constraint usage_durations_not_negative
        check (expected_duration_ms >= 0 and duration_ms >= 0),
    constraint usage_score_parts_is_object check (jsonb_typeof(score_parts) = 'object'),
    constraint usage_json_readable check (tracedb.is_readable(score_parts)),
    constraint usage_feedback_is_bounded check (length(feedback) <= 8000),
    constraint usage_counted_known check (counted in ('none', 'open', 'success', 'failure'))
) partition by range (trace_id);

create table if not exists tracedb.pattern_usage_log_default
partition of tracedb.pattern_usage_log default;

-- What the counts of a pattern do not hold yet: for fold_pattern_usage and pattern_history.
create index if not exists pattern_usage_log_uncounted_idx
on tracedb.pattern_usage_log (tenant_id, pattern_id)
where counted <> tracedb.usage_standing(arm, applied, success);

comment on table tracedb.pattern_usage_log is
    'One use of a pattern in a trace, and how it ended. Its partitions are kept longer than the '
    'traces'' (family pattern_usage).';
comment on column tracedb.pattern_usage_log.applied is
    'Whether the pattern was followed, not only offered.';
comment on column tracedb.pattern_usage_log.arm is
    'pattern, or control: the pattern was found and held back, for comparison.';
comment on column tracedb.pattern_usage_log.explored is
    'Whether it was found by its turn to be tried, not by its score.';
comment on column tracedb.pattern_usage_log.rank is
    'Its place among the patterns found, from 1.';
comment on column tracedb.pattern_usage_log.score_parts is
    'The explanation that find_patterns gave.';
comment on column tracedb.pattern_usage_log.deviation is
    'How far the trace left the pattern: 0 not at all, 1 altogether.';
comment on column tracedb.pattern_usage_log.quality is
    'How good the result was, 0 to 1, as judged by the caller.';
comment on column tracedb.pattern_usage_log.counted is
    'As what (usage_standing) the counts of its pattern have it. Written by fold_pattern_usage.';
comment on constraint usage_trace_id_is_uuid7 on tracedb.pattern_usage_log is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint usage_times_in_range on tracedb.pattern_usage_log is
    'used_at, outcome_at: must lie between 1970 and 2200';
comment on constraint usage_arm_known on tracedb.pattern_usage_log is
    'arm: must be pattern or control';
comment on constraint usage_control_is_not_applied on tracedb.pattern_usage_log is
    'applied: must be false of the control arm';
comment on constraint usage_rank_is_positive on tracedb.pattern_usage_log is
    'rank: must be at least 1';
comment on constraint usage_shares_are_fractions on tracedb.pattern_usage_log is
    'score, deviation, quality: must be from 0 to 1';
comment on constraint usage_durations_not_negative on tracedb.pattern_usage_log is
    'expected_duration_ms, duration_ms: must not be negative';
comment on constraint usage_score_parts_is_object on tracedb.pattern_usage_log is
    'score_parts: must be an object';
comment on constraint usage_json_readable on tracedb.pattern_usage_log is
    'score_parts: nested less than 100 levels deep, numbers within 1e308';
comment on constraint usage_feedback_is_bounded on tracedb.pattern_usage_log is
    'feedback: at most 8000 characters';
comment on constraint usage_counted_known on tracedb.pattern_usage_log is
    'counted: must be none, open, success or failure';

insert into tracedb.partition_policies (family, parents)
values ('pattern_usage', array['pattern_usage_log'])
on conflict (family) do nothing;

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

create or replace function tracedb.wilson_interval(successes bigint, trials bigint)
returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when trials > 0 then array[
        tracedb.wilson_lower(successes, trials, 1.959963984540054),  -- 95 %
        tracedb.wilson_upper(successes, trials, 1.959963984540054)
    ] end
$$;

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

create or replace function tracedb.vector_schema()
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select n.nspname
        from pg_catalog.pg_extension as e
        join pg_catalog.pg_namespace as n on n.oid = e.extnamespace
        where e.extname = 'vector'
    );
end $$;

comment on function tracedb.vector_schema() is
    'The schema in which the provider has installed pgvector. Internal.';

create or replace function tracedb.unit_vector(embedding real[], out unit halfvec)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    length double precision;
begin
    if coalesce(cardinality(embedding), 0) not between 1 and 3072 then
        raise exception using errcode = 'TD002',
            message = 'embedding: must have from 1 to 3072 dimensions';
    end if;
    execute format(
        'select %1$I.l2_normalize($1::%1$I.vector)::%1$I.halfvec, '
        '%1$I.vector_norm($1::%1$I.vector)', tracedb.vector_schema())
    into unit, length
    using embedding;
    if length = 0 then
        raise exception using errcode = 'TD002', message = 'embedding: must not be all zeros';
    end if;
exception
    when data_exception then
        raise exception using errcode = 'TD002',
            message = 'embedding: must be finite numbers: ' || sqlerrm;
end $$;

comment on function tracedb.unit_vector(real[]) is
    'An embedding scaled to length 1, in half precision. Raises TD002 "field: rule" for what is '
    'none: no numbers, NaN, infinite, all zeros. Internal.';

create or replace function tracedb.embedding_models(
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (model text, dimension smallint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    -- from one model to the next along the key, not over all embeddings
    with recursive m as (
        (
            select e.model, e.dimension
            from tracedb.pattern_embeddings as e
            where e.tenant_id = embedding_models.tenant_id
            order by e.model
            limit 1
        )
        union all
        select n.model, n.dimension
        from m
        cross join lateral (
            select e.model, e.dimension
            from tracedb.pattern_embeddings as e
            where e.tenant_id = embedding_models.tenant_id and e.model > m.model
            order by e.model
            limit 1
        ) as n
    )
    select m.model, m.dimension from m;
end $$;

comment on function tracedb.embedding_models(uuid) is
    'The models that a tenant has embeddings of, and their dimensions.';

create or replace function tracedb.patterns_to_embed(
    model text,
    max_rows integer default 100,
    after uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (pattern_id uuid, prompt text, prompt_hash uuid, embedding real[])
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if max_rows is null or max_rows not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000';
    end if;
    return query
    select p.pattern_id, p.prompt, p.prompt_hash, k.embedding
    from tracedb.success_patterns as p
    left join tracedb.pattern_embeddings as e
        on e.tenant_id = p.tenant_id and e.model = patterns_to_embed.model
            and e.pattern_id = p.pattern_id
    left join lateral (
        select same.embedding::real[]
        from tracedb.pattern_embeddings as same
        where same.tenant_id = patterns_to_embed.tenant_id
            and same.model = patterns_to_embed.model and same.content_hash = p.prompt_hash
        limit 1
    ) as k (embedding) on true
    where p.tenant_id = patterns_to_embed.tenant_id and p.retired_at is null
        and p.pattern_id > coalesce(after, '00000000-0000-0000-0000-000000000000')
        and e.content_hash is distinct from p.prompt_hash
    order by p.pattern_id
    limit max_rows;
end $$;

comment on function tracedb.patterns_to_embed(text, integer, uuid, uuid) is
    'Patterns that have no embedding by a model, or one of another text, at most max_rows (1 to '
    '1000), from the one after "after" on. embedding is that of another pattern with the same text '
    'and model: put it instead of embedding the text again; null: there is none.';

create or replace function tracedb.put_embeddings(
    model text,
    pattern_ids uuid[],
    embeddings real[],
    prompt_hashes uuid[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    given constant integer := array_length(embeddings, 2);
    kept smallint;
    stored integer;
begin
    if cardinality(pattern_ids) = 0 then
        return 0;
    end if;
    if array_ndims(embeddings) is distinct from 2
        or array_length(embeddings, 1) is distinct from cardinality(pattern_ids)
        or cardinality(prompt_hashes) is distinct from cardinality(pattern_ids)
    then
        raise exception using errcode = 'TD002', message =
            'embeddings, prompt_hashes: must be as many as pattern_ids, and all of one dimension';
    end if;
    if not exists (
        select from tracedb.pattern_embeddings as e
        where e.tenant_id = put_embeddings.tenant_id and e.model = put_embeddings.model
    ) then
        -- One is the first of a model, and the others see its dimension.
        perform pg_advisory_xact_lock(
            hashtextextended(format('tracedb.model/%s/%s', put_embeddings.tenant_id, model), 0));
    end if;
    select e.dimension into kept
    from tracedb.pattern_embeddings as e
    where e.tenant_id = put_embeddings.tenant_id and e.model = put_embeddings.model
    order by e.pattern_id  -- along the key, however the planner guesses
    limit 1;
    if kept <> given then
        raise exception using errcode = 'TD002', message = format(
            'embeddings: must have %s dimensions, as those of model "%s" have', kept, model);
    end if;
    insert into tracedb.pattern_embeddings as e (
        tenant_id, model, pattern_id, dimension, content_hash, embedding
    )
    select distinct on (p.pattern_id)
        p.tenant_id, put_embeddings.model, p.pattern_id, given, g.prompt_hash,
        tracedb.unit_vector(array(select unnest(embeddings[g.place:g.place])))
    from unnest(pattern_ids, prompt_hashes) with ordinality as g (pattern_id, prompt_hash, place)
    join tracedb.success_patterns as p
        on p.tenant_id = put_embeddings.tenant_id and p.pattern_id = g.pattern_id
    on conflict (tenant_id, model, pattern_id) do update set
        dimension = excluded.dimension, content_hash = excluded.content_hash,
        embedding = excluded.embedding, updated_at = excluded.updated_at;
    get diagnostics stored = row_count;
    return stored;
end $$;

comment on function tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid) is
    'Stores the embeddings (a row each, all of one dimension) of patterns by a model, with the '
    'prompt_hash of what was embedded, and returns how many: patterns that are gone are left out. '
    'Those of other models stay, so searches by them find all there is. Raises TD002 "field: '
    'rule".';

create or replace function tracedb.pattern_models(
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    model text,
    dimension smallint,
    pattern_count bigint,
    embedded_count bigint,
    outdated_count bigint,
    missing_count bigint,
    index_name text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with patterns as (
        select count(*) as number
        from tracedb.success_patterns as p
        where p.tenant_id = pattern_models.tenant_id and p.retired_at is null
    ),
    embedded as (
        select
            e.model, min(e.dimension) as dimension, count(*) as number,
            count(*) filter (where e.content_hash <> p.prompt_hash) as outdated
        from tracedb.pattern_embeddings as e
        join tracedb.success_patterns as p
            on p.tenant_id = e.tenant_id and p.pattern_id = e.pattern_id
        where e.tenant_id = pattern_models.tenant_id and p.retired_at is null
        group by e.model
    )
    select
        e.model, e.dimension, p.number, e.number, e.outdated, p.number - e.number, i.index_name
    from embedded as e
    cross join patterns as p
    left join tracedb.pattern_indexes as i
        on i.tenant_id = pattern_models.tenant_id and i.kind = 'vectors' and i.model = e.model
    order by e.model;
end $$;

comment on function tracedb.pattern_models(uuid) is
    'How far each model has come: patterns in force, how many have an embedding of it (of another '
    'text than they have now: outdated), how many have none, and the index of its own, if any.';

create or replace function tracedb.drop_embedding_model(
    model text,
    max_rows integer default 10000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    gone integer;
begin
    if max_rows is null or max_rows not between 1 and 1000000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000000';
    end if;
    delete from tracedb.pattern_embeddings as e
    where e.tenant_id = drop_embedding_model.tenant_id and e.model = drop_embedding_model.model
        and e.pattern_id = any (array(
            select d.pattern_id
            from tracedb.pattern_embeddings as d
            where d.tenant_id = drop_embedding_model.tenant_id
                and d.model = drop_embedding_model.model
            limit max_rows
        ));
    get diagnostics gone = row_count;
    return gone;
end $$;

comment on function tracedb.drop_embedding_model(text, integer, uuid) is
    'Removes the embeddings of a model, at most max_rows a call, and returns how many: call it '
    'until it returns 0. ensure_pattern_indexes then drops its index.';

do $$
begin
    if to_regtype('tracedb.near_pattern') is null then
        create type tracedb.near_pattern as (pattern_id uuid, likeness double precision);
    end if;
    if to_regtype('tracedb.scored_pattern') is null then
        create type tracedb.scored_pattern as (
            pattern_id uuid, score double precision, is_tried boolean, confidence double precision,
            explanation jsonb
        );
    end if;
end $$;

comment on type tracedb.near_pattern is
    'A pattern and how like what is searched it is, 0 to 1: a cosine, or a share of words.';
comment on type tracedb.scored_pattern is
    'A pattern, its score, whether any use of it has ended, and what its score is made of.';

-- For functions with their owner's rights, which no policy holds: the same rule as the policies.
create or replace function tracedb.may_see(tenant_id uuid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    caller constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    return coalesce(tenant_id = tracedb.current_tenant_id(), false) or (
        cardinality(tracedb.bound_tenant_ids()) = 0
        and (pg_has_role(caller, 'tracedb_service', 'usage')
            or pg_has_role(caller, 'tracedb_maintainer', 'usage')
            or pg_has_role(caller, 'tracedb_owner', 'usage'))
    );
end $$;

comment on function tracedb.may_see(uuid) is
    'Whether the policies let the caller (its role as it set it, or its login) see rows of a '
    'tenant, also when asked inside a function with its owner''s rights. Internal.';

create or replace function tracedb.word_query(words text[])
returns tsquery
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select string_agg('''' || replace(replace(w, '\', '\\'), '''', '''''') || '''', ' | ')::tsquery
    from unnest(words) as w
$$;

comment on function tracedb.word_query(text[]) is
    'A query for any of some lexemes; null for none. Internal.';

-- Of a document without positions ts_rank is the share of the words it has, times 6 / pi^2.
create or replace function tracedb.word_share(words tsquery, document tsvector)
returns double precision
language sql immutable parallel safe
return least(1, ts_rank('{1, 1, 1, 1}', document, words) * 1.6449340668482264::float8);

comment on function tracedb.word_share(tsquery, tsvector) is
    'The share of the words (of a query for any of them) that a document has. Internal.';

create or replace function tracedb.patterns_with_words(
    words text[], candidates text[], max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
security definer  -- row-level security lets no text search use an index; asks may_see instead
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not tracedb.may_see(patterns_with_words.tenant_id) then
        return;
    end if;
    -- The tenant as a literal, so that the planner sees that its own index serves.
    return query execute format(
        'select p.pattern_id, tracedb.word_share($1, p.search) '
        'from tracedb.success_patterns as p '
        'where p.tenant_id = %L and p.retired_at is null and p.search @@ $2 '
        'order by 2 desc, 1 limit $3', patterns_with_words.tenant_id)
    using tracedb.word_query(words), tracedb.word_query(candidates), max_rows;
end $$;

comment on function tracedb.patterns_with_words(text[], text[], integer, uuid) is
    'The patterns of a tenant with any of the candidates (lexemes), by the share of the words that '
    'they have, the most first. Internal.';

create or replace function tracedb.nearest_by_scan(
    embedding halfvec, model text, max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    -- Of vectors of length 1 the distance has the order of the cosine, for half its time.
    return query execute format(
        'select n.pattern_id, 1 - n.distance ^ 2 / 2 from ( '
        '    select e.pattern_id, e.embedding operator(%I.<->) $1 as distance '
        '    from tracedb.pattern_embeddings as e '
        '    where e.tenant_id = $2 and e.model = $3 and not exists ('
        '        select from tracedb.success_patterns as p '
        '        where p.tenant_id = $2 and p.pattern_id = e.pattern_id '
        '            and p.retired_at is not null) '
        '    order by distance, pattern_id limit $4) as n', tracedb.vector_schema())
    using embedding, nearest_by_scan.tenant_id, nearest_by_scan.model, max_rows;
end $$;

comment on function tracedb.nearest_by_scan(halfvec, text, integer, uuid) is
    'The patterns in force whose embeddings are nearest, found by looking at every one. Internal.';

create or replace function tracedb.nearest_by_index(
    embedding halfvec, model text, dimension integer, max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Or the planner might read and sort all of them, which is what the index is there to save.
set enable_sort = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    -- Not as clauses of the function: only a superuser may create those while pgvector, whose
    -- settings they are, is not loaded.
    settings constant jsonb := jsonb_build_object(
        'hnsw.iterative_scan', coalesce(current_setting('hnsw.iterative_scan', true), 'off'),
        'hnsw.ef_search', coalesce(current_setting('hnsw.ef_search', true), '40'));
begin
    -- The index goes on giving until max_rows are found that the query keeps.
    perform set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config('hnsw.ef_search', '200', true);
    -- Tenant and model as literals, so that the planner sees that the tenant's own index serves.
    return query execute format(
        'select e.pattern_id, '
        '    1 - (e.embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) $1::%1$I.halfvec(%2$s)) '
        'from tracedb.pattern_embeddings as e '
        'where e.tenant_id = %3$L and e.model = %4$L and not exists ('
        '    select from tracedb.success_patterns as p '
        '    where p.tenant_id = %3$L and p.pattern_id = e.pattern_id '
        '        and p.retired_at is not null) '
        'order by e.embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) $1::%1$I.halfvec(%2$s) '
        'limit $2', tracedb.vector_schema(), nearest_by_index.dimension,
        nearest_by_index.tenant_id, nearest_by_index.model)
    using embedding, max_rows;
    perform set_config(s.name, s.value, true) from jsonb_each_text(settings) as s (name, value);
end $$;

comment on function tracedb.nearest_by_index(halfvec, text, integer, integer, uuid) is
    'The same, by the index that ensure_pattern_indexes has built for the tenant and model: nearly '
    'always the nearest, in no order, and perhaps fewer than there are. Internal.';

create or replace function tracedb.likenesses(
    embedding halfvec, model text, pattern_ids uuid[], tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query execute format(
        'select e.pattern_id, 1 - (e.embedding operator(%I.<=>) $1) '
        'from tracedb.pattern_embeddings as e '
        'where e.tenant_id = $2 and e.model = $3 and e.pattern_id = any ($4)',
        tracedb.vector_schema())
    using embedding, likenesses.tenant_id, likenesses.model, pattern_ids;
end $$;

comment on function tracedb.likenesses(halfvec, text, uuid[], uuid) is
    'How like an embedding those of some patterns are: the cosine. Internal.';

create or replace function tracedb.pattern_weights(
    has_embedding boolean,
    has_words boolean,
    context jsonb,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns double precision[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    s constant tracedb.pattern_settings := tracedb.pattern_settings(pattern_weights.tenant_id);
    weights double precision[] := array[
        case when has_embedding then s.semantic_weight else 0 end,
        case when has_words then s.keyword_weight else 0 end,
        case when context ? 'intent' then s.intent_weight else 0 end,
        case when context - 'intent' <> '{}' then s.context_weight else 0 end,
        s.history_weight
    ];
begin
    return array(
        select coalesce(w / nullif((select sum(v) from unnest(weights) as v), 0), 0)
        from unnest(weights) with ordinality as u (w, place)
        order by place);
end $$;

comment on function tracedb.pattern_weights(boolean, boolean, jsonb, uuid) is
    'What semantic, keyword, intent, context and history count in a search: as set for the tenant. '
    'A part that the search says nothing of counts nothing, and the others share its weight. '
    'Internal.';

create or replace function tracedb.scored_patterns(
    pattern_ids uuid[],
    embedding halfvec,
    model text,
    words tsquery,
    context jsonb,
    weights double precision[],
    as_of timestamptz,
    tenant_id uuid
)
returns setof tracedb.scored_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    wanted_intent constant text := lower(context ->> 'intent');
    labels constant jsonb := context - 'intent';
begin
    return query
    select
        p.pattern_id,
        -- as shown, so that the parts of the explanation give it
        round((weights[1] * v.semantic + weights[2] * v.keyword + weights[3] * v.intent
            + weights[4] * v.context + weights[5] * v.history)::numeric, 6)::double precision,
        h.use_successes + h.use_failures > 0,
        h.lower_bound,
        jsonb_build_object(
            'semantic', v.semantic, 'keyword', v.keyword, 'intent', v.intent,
            'context', v.context, 'history', v.history,
            'weights', jsonb_build_object(
                'semantic', weights[1], 'keyword', weights[2], 'intent', weights[3],
                'context', weights[4], 'history', weights[5]),
            'evidence', jsonb_build_object(
                'successes', h.successes, 'trials', h.trials, 'lower_bound', h.lower_bound,
                'decay', h.decay))
    from tracedb.success_patterns as p
    join tracedb.pattern_history(pattern_ids, as_of, scored_patterns.tenant_id) as h
        on h.pattern_id = p.pattern_id
    left join tracedb.likenesses(embedding, model, pattern_ids, scored_patterns.tenant_id) as e
        on e.pattern_id = p.pattern_id
    cross join lateral (
        select
            greatest(0, least(1, coalesce(e.likeness, 0))) as semantic,
            coalesce(tracedb.word_share(words, p.search), 0) as keyword,
            coalesce(lower(p.intent) = wanted_intent, false)::integer as intent,
            coalesce((
                select avg((
                    p.context || jsonb_build_object('agent_id', p.agent_id, 'route', p.route)
                    @> jsonb_build_object(l.key, l.value))::integer)
                from jsonb_each(labels) as l
            ), 0)::double precision as context,
            h.lower_bound * h.decay as history
    ) as v
    where p.tenant_id = scored_patterns.tenant_id and p.pattern_id = any (pattern_ids);
end $$;

comment on function tracedb.scored_patterns(
    uuid[], halfvec, text, tsquery, jsonb, double precision[], timestamptz, uuid
) is
    'Patterns with their scores and what these are made of; find_patterns says how. Internal.';

create or replace function tracedb.embedding_to_search(
    embedding real[],
    inout model text,
    tenant_id uuid,
    out unit halfvec,
    out dimension integer,
    out has_index boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    models text[];
begin
    unit := tracedb.unit_vector(embedding);
    if model is null then
        models := array(
            select m.model from tracedb.embedding_models(embedding_to_search.tenant_id) as m);
        if cardinality(models) > 1 then
            raise exception using errcode = 'TD002',
                message = 'model: required, one of ' || array_to_string(models, ', ');
        end if;
        model := models[1];
    end if;
    select e.dimension into dimension
    from tracedb.pattern_embeddings as e
    where e.tenant_id = embedding_to_search.tenant_id and e.model = embedding_to_search.model
    order by e.pattern_id  -- along the key, however the planner guesses
    limit 1;
    if dimension <> cardinality(embedding) then
        raise exception using errcode = 'TD002', message = format(
            'embedding: must have %s dimensions, as those of model "%s" have', dimension, model);
    end if;
    has_index := exists (
        select
        from tracedb.pattern_indexes as i
        where i.tenant_id = embedding_to_search.tenant_id and i.kind = 'vectors'
            and i.model = embedding_to_search.model
            and i.dimension = embedding_to_search.dimension
            and to_regclass('tracedb.' || quote_ident(i.index_name)) is not null
    );
end $$;

comment on function tracedb.embedding_to_search(real[], text, uuid) is
    'An embedding as it is searched: of length 1, with its model (the only one, if none is named), '
    'the dimension of that (null: no pattern has an embedding of it) and whether the tenant has an '
    'index of it. Raises TD002 "field: rule". Internal.';

create or replace function tracedb.find_patterns(
    embedding real[] default null,
    query text default null,
    context jsonb default '{}',
    k integer default 5,
    min_score double precision default null,
    model text default null,
    seed bigint default null,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    rank bigint,
    pattern_id uuid,
    score double precision,
    prompt text,
    intent text,
    agent_id text,
    route text,
    tool_sequence text[],
    confidence double precision,
    explored boolean,
    mode text,
    explanation jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := find_patterns.tenant_id;
    s constant tracedb.pattern_settings := tracedb.pattern_settings(tenant);
    least_score constant double precision := coalesce(min_score, s.min_score);
    unit tracedb.pattern_embeddings.embedding%type;
    dimension integer;
    has_index boolean;
    words text[] := '{}';
    rare text[] := '{}';
    weights double precision[];
    most_without double precision;  -- score of a pattern without an embedding or a rare word
    how text := 'keyword';
    pool integer := greatest(50, 4 * k);
    cut integer := pool;
    near tracedb.near_pattern[] := '{}';
    named tracedb.near_pattern[] := '{}';
    others uuid[];
    ids uuid[];
    scored tracedb.scored_pattern[];
    chance double precision;
    untried bigint;
begin
    if embedding is null and query is null then
        raise exception using errcode = 'TD002', message = 'embedding, query: at least one';
    end if;
    if k is null or k not between 1 and 100 then
        raise exception using errcode = 'TD002', message = 'k: must be from 1 to 100';
    end if;
    if (least_score between 0 and 1) is not true then
        raise exception using errcode = 'TD002', message = 'min_score: must be from 0 to 1';
    end if;
    if jsonb_typeof(context) is distinct from 'object' then
        raise exception using errcode = 'TD002', message = 'context: must be an object';
    end if;
    if embedding is not null then
        select e.unit, e.model, e.dimension, e.has_index into unit, model, dimension, has_index
        from tracedb.embedding_to_search(embedding, find_patterns.model, tenant) as e;
    end if;
    if query is not null then
        -- the longest of a very long text, of which a tsvector holds no more than a megabyte
        words := array(
            select w
            from unnest(tsvector_to_array(
                tracedb.pattern_document(left(query, 100000), null, '{}'))) as w
            order by length(w) desc, w
            limit 64);
        rare := array(
            select unnest(words)
            except
            select unnest(i.common_words)
            from tracedb.pattern_indexes as i
            where i.tenant_id = tenant and i.kind = 'words' and i.model = '');
        if rare = '{}' and dimension is null then
            rare := words;  -- slow, but nothing else would find anything
        end if;
    end if;
    weights := tracedb.pattern_weights(dimension is not null, words <> '{}', context, tenant);
    most_without := 1 - weights[1] - weights[2] + weights[2] * coalesce(
        1 - cardinality(rare) / nullif(cardinality(words), 0)::double precision, 0);

    loop
        if dimension is not null then
            how := case when has_index and pool <= 1000 then 'hnsw' else 'exact' end;
            if how = 'hnsw' then
                near := array(
                    select n::tracedb.near_pattern
                    from tracedb.nearest_by_index(unit, model, dimension, pool, tenant) as n
                    order by n.likeness desc, n.pattern_id);
                if cardinality(near) < pool then
                    how := 'exact';
                end if;
            end if;
            if how = 'exact' then
                near := array(
                    select n::tracedb.near_pattern
                    from tracedb.nearest_by_scan(unit, model, pool, tenant) as n
                    order by n.likeness desc, n.pattern_id);
            end if;
        end if;
        if rare <> '{}' then
            named := array(
                select n::tracedb.near_pattern
                from tracedb.patterns_with_words(words, rare, pool, tenant) as n
                order by n.likeness desc, n.pattern_id);
        end if;
        -- Cut by reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a cosine and a
        -- share of words have no common scale, places have.
        ids := array(
            select f.pattern_id
            from (
                select n.pattern_id, 1.0 / (60 + n.place) as share
                from unnest(near) with ordinality as n (pattern_id, likeness, place)
                union all
                select n.pattern_id, 1.0 / (60 + n.place)
                from unnest(named) with ordinality as n (pattern_id, likeness, place)
                union all
                select o, 0 from unnest(others) as o
            ) as f
            group by f.pattern_id
            order by sum(f.share) desc, f.pattern_id
            limit cut);
        scored := array(
            select p::tracedb.scored_pattern
            from tracedb.scored_patterns(
                ids, unit, model, tracedb.word_query(words), context, weights, as_of, tenant) as p
            join unnest(ids) with ordinality as i (pattern_id, place)
                on i.pattern_id = p.pattern_id
            where p.score >= least_score
            order by p.score desc, i.place);
        exit when cardinality(scored) >= k;
        -- Too few are good enough: look on while there are more, and one of them may be.
        if cardinality(near) < pool and cardinality(named) < pool
            and (cut is null or cardinality(ids) < cut)
        then
            exit when others is not null or least_score > most_without + 1e-6;
            others := array(
                select n.pattern_id
                from tracedb.patterns_with_words(words, words, pool, tenant) as n
                where cardinality(rare) < cardinality(words)  -- slow, but there is nothing better
                union
                (
                    -- what has none of the words, but the intent, or has no embedding yet
                    select p.pattern_id
                    from tracedb.success_patterns as p
                    cross join lateral (
                        select coalesce(
                            lower(p.intent) = lower(find_patterns.context ->> 'intent'), false)
                            as is_wanted
                    ) as i
                    where p.tenant_id = tenant and p.retired_at is null
                        and p.pattern_id <> all (ids) and (dimension is not null or i.is_wanted)
                    order by i.is_wanted desc, p.pattern_id desc
                    limit pool
                ));
            continue;
        end if;
        exit when cut is null and least_score > greatest(most_without,
            1 - weights[1] - weights[2]
            + weights[2] * case when cardinality(named) = pool then named[pool].likeness else 0 end)
            + weights[1] * case
                when cardinality(near) = pool then greatest(0, near[pool].likeness) else 0
            end;
        if cut is null then
            pool := pool * 8;
        end if;
        cut := null;
    end loop;

    -- One search in so many gives its last place to the best pattern that nobody has tried, unless
    -- one is among the first k anyway.
    chance := case
        when seed is null then random()
        else ('x' || left(md5(seed::text), 8))::bit(32)::bigint / 4294967296.0
    end;
    if chance < s.explore_share then
        select min(p.place) into untried
        from unnest(scored) with ordinality as p (
            pattern_id, score, is_tried, confidence, explanation, place)
        where not p.is_tried;
    end if;
    return query
    select
        least(f.place, k), p.pattern_id, f.score, p.prompt, p.intent, p.agent_id, p.route,
        p.tool_sequence, f.confidence, f.place > k, how,
        f.explanation || jsonb_build_object(
            'semantic_place', array_position(near_ids, p.pattern_id),
            'keyword_place', array_position(named_ids, p.pattern_id))
    from unnest(scored) with ordinality as f (
        pattern_id, score, is_tried, confidence, explanation, place)
    join tracedb.success_patterns as p on p.tenant_id = tenant and p.pattern_id = f.pattern_id
    cross join (select array(select n.pattern_id from unnest(near) as n),
        array(select n.pattern_id from unnest(named) as n)) as l (near_ids, named_ids)
    where f.place <= k - coalesce(untried > k, false)::integer or f.place = untried
    order by f.place;
end $$;

comment on function tracedb.find_patterns(
    real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid
) is
    'The k patterns (1 to 100) that fit best what is asked: by its embedding, by its text (query), '
    'or both. Candidates are the nearest by cosine and those with most of the words, fused by '
    'their places; their score is the weighted mean of semantic (cosine), keyword (share of the '
    'words), intent (context''s intent is the pattern''s), context (share of the other labels of '
    'context that agent_id, route or the pattern''s context has) and history (lower confidence '
    'bound of success, decayed with age: pattern_history); what the search says nothing of does '
    'not count. explanation has the parts, their weights, the evidence and the places. Those below '
    'min_score (default: the tenant''s setting) are left out, never fewer than k while k others '
    'fit: where candidates are too few, others of the intent are taken as well, and what has no '
    'embedding of the model yet. model says whose embeddings are searched (needed where there are '
    'several). In a share of the searches (explore_share; the same seed decides the same) the last '
    'place goes to the best untried pattern: explored. mode tells how embeddings were searched: '
    'exact (each one), hnsw (the tenant''s own index, ensure_pattern_indexes), or keyword (not at '
    'all).';

create or replace function tracedb.wanted_pattern_indexes()
returns table (
    tenant_id uuid, kind text, model text, dimension smallint, row_count bigint, size_share numeric
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        c.tenant_id, c.kind, c.model, c.dimension, c.row_count,
        c.row_count * coalesce(c.dimension, 1)
            / (case c.kind when 'vectors' then s.exact_search_limit else s.word_search_limit end
                + 0.5)
    from (
        select e.tenant_id, 'vectors' as kind, e.model, e.dimension, count(*) as row_count
        from tracedb.pattern_embeddings as e
        group by e.tenant_id, e.model, e.dimension
        union all
        select p.tenant_id, 'words', '', null, count(*)
        from tracedb.success_patterns as p
        group by p.tenant_id
    ) as c
    cross join lateral tracedb.pattern_settings(c.tenant_id) as s;
end $$;

comment on function tracedb.wanted_pattern_indexes() is
    'What each tenant has to search, of embeddings a model and of words, and its size as a share '
    'of what it may be without an index: above 1 ensure_pattern_indexes builds one, below 0.5 it '
    'drops it.';

create or replace function tracedb.embeddings_partition(tenant_id uuid)
returns name
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select 'pattern_embeddings_' || i
        from generate_series(0, 63) as i
        where satisfies_hash_partition('tracedb.pattern_embeddings'::regclass, 64, i,
            embeddings_partition.tenant_id)
    );
end $$;

comment on function tracedb.embeddings_partition(uuid) is
    'The partition that has the embeddings of a tenant. Internal.';

create or replace function tracedb.build_pattern_index(
    tenant_id uuid, kind text, model text, dimension smallint, row_count bigint
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    index_name constant text := case kind
        when 'vectors' then 'pattern_embeddings_hnsw_' else 'success_patterns_words_'
    end || left(md5(concat_ws(' ', tenant_id, model)), 16);
begin
    if kind = 'vectors' then
        execute format(
            'create index %1$I on tracedb.%6$I '
            'using hnsw ((embedding::%2$I.halfvec(%3$s)) %2$I.halfvec_cosine_ops) '
            'where tenant_id = %4$L and model = %5$L',
            index_name, tracedb.vector_schema(), dimension, tenant_id, model,
            tracedb.embeddings_partition(tenant_id));
    else
        execute format(
            'create index %I on tracedb.success_patterns using gin (search) where tenant_id = %L',
            index_name, tenant_id);
    end if;
    insert into tracedb.pattern_indexes as i (
        tenant_id, kind, model, index_name, dimension, row_count, common_words
    )
    values (
        build_pattern_index.tenant_id, build_pattern_index.kind, build_pattern_index.model,
        index_name, build_pattern_index.dimension, build_pattern_index.row_count,
        case when build_pattern_index.kind = 'words'
            then tracedb.common_pattern_words(build_pattern_index.tenant_id) else '{}' end
    )
    on conflict (tenant_id, kind, model) do update set
        index_name = excluded.index_name, dimension = excluded.dimension,
        row_count = excluded.row_count, common_words = excluded.common_words,
        built_at = excluded.built_at;
    return index_name;
end $$;

comment on function tracedb.build_pattern_index(uuid, text, text, smallint, bigint) is
    'Builds an index of a tenant and enters it in pattern_indexes. Internal.';

create or replace function tracedb.common_pattern_words(tenant_id uuid)
returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select w.word
        from ts_stat(format(
            'select search from tracedb.success_patterns where tenant_id = %L',
            common_pattern_words.tenant_id)) as w
        where w.ndoc > 500
        order by 1
    );
end $$;

comment on function tracedb.common_pattern_words(uuid) is
    'The words that more than 500 patterns of a tenant have: looking them all up and ranking them '
    'would cost a search more than the index saves. Internal.';

create or replace function tracedb.ensure_pattern_indexes(
    max_indexes integer default 10, max_memory_mb integer default 1024
)
returns table (
    action text, index_name text, tenant_id uuid, kind text, model text, row_count bigint
)
language plpgsql volatile
security definer  -- indexes are the owner's to make; the maintainer is only granted this call
set search_path = pg_catalog, pg_temp
-- Below deadlock_timeout: of a writer and this, it is this that gives up.
set lock_timeout = '900ms'
as $$
#variable_conflict use_column
declare
    it record;
    actions integer := 0;
begin
    if max_indexes is null or max_indexes not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_indexes: must be from 1 to 1000';
    end if;
    if max_memory_mb is null or max_memory_mb not between 64 and 65536 then
        raise exception using errcode = 'TD002',
            message = 'max_memory_mb: must be from 64 to 65536';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.pattern_indexes')) then
        raise notice 'another session is managing indexes of patterns';
        return;
    end if;
    perform set_config('maintenance_work_mem', max_memory_mb || 'MB', true);
    for it in
        select
            coalesce(w.tenant_id, i.tenant_id) as tenant_id, coalesce(w.kind, i.kind) as kind,
            coalesce(w.model, i.model) as model, w.dimension, coalesce(w.row_count, 0) as row_count,
            coalesce(w.size_share, 0) as size_share, i.index_name, i.dimension as built_dimension,
            i.row_count as built_rows,
            to_regclass('tracedb.' || quote_ident(i.index_name)) is not null as is_there
        from tracedb.wanted_pattern_indexes() as w
        full join tracedb.pattern_indexes as i
            on i.tenant_id = w.tenant_id and i.kind = w.kind and i.model = w.model
        where w.size_share > 1 or i.index_name is not null
        order by w.size_share desc nulls last, 1, 2, 3
    loop
        exit when actions >= max_indexes;
        action := case
            when it.index_name is null then 'built'
            when it.size_share < 0.5 then 'dropped'
            when it.size_share > 1 and (
                not it.is_there or it.dimension is distinct from it.built_dimension) then 'built'
            when it.kind = 'words' and it.row_count > 2 * it.built_rows then 'refreshed'
        end;
        continue when action is null;
        if it.is_there and action <> 'refreshed' then
            execute format('drop index tracedb.%I', it.index_name);
        end if;
        tenant_id := it.tenant_id;
        kind := it.kind;
        model := it.model;
        row_count := it.row_count;
        index_name := it.index_name;
        if action = 'built' then
            index_name := tracedb.build_pattern_index(
                it.tenant_id, it.kind, it.model, it.dimension, it.row_count);
        elsif action = 'dropped' then
            delete from tracedb.pattern_indexes as i
            where i.tenant_id = it.tenant_id and i.kind = it.kind and i.model = it.model;
        else
            update tracedb.pattern_indexes as i
            set row_count = it.row_count, built_at = now(),
                common_words = tracedb.common_pattern_words(it.tenant_id)
            where i.tenant_id = it.tenant_id and i.kind = it.kind and i.model = it.model;
        end if;
        actions := actions + 1;
        return next;
    end loop;
end $$;

comment on function tracedb.ensure_pattern_indexes(integer, integer) is
    'Builds an index for each tenant and model with more numbers to search than '
    'exact_search_limit, and for the words of each tenant with more patterns than '
    'word_search_limit; drops those of tenants with less than half of that; at most max_indexes a '
    'call, the largest first, with max_memory_mb for each. Returns what it did. While it builds, '
    'writers of the same partition of pattern_embeddings (or of success_patterns) wait, which are '
    'background work; searches do not. It gives up when it has to wait itself for longer than a '
    'second. Run it daily; does nothing on a replica or while another session does the same.';

create or replace function tracedb.bound_tenant_ids()
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- The session's login counts as well as the current role, so "set role" cannot shed a binding;
    -- and so does the role that was set, which a function with its owner's rights cannot shed.
    -- Memberships that give neither inheritance nor "set role" do not bind: they are what a
    -- CREATEROLE administrator of PostgreSQL 16 and later holds in every role it made (read
    -- through jsonb because earlier versions lack the two columns).
    return coalesce((
        with recursive held as (
            select r.oid
            from pg_catalog.pg_roles as r
            where r.rolname in (current_user, session_user, current_setting('role'))
            union
            select m.roleid
            from held
            join pg_catalog.pg_auth_members as m on m.member = held.oid
            where coalesce(pg_catalog.to_jsonb(m) ->> 'inherit_option', 'true') = 'true'
                or coalesce(pg_catalog.to_jsonb(m) ->> 'set_option', 'true') = 'true'
        )
        -- A name without a uuid in it binds to no tenant (null), so that a slip in it opens
        -- nothing.
        select array_agg(distinct case
            when r.rolname ~* '^tracedb_tenant_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                then substr(r.rolname, 16)::uuid
        end)
        from held
        join pg_catalog.pg_roles as r on r.oid = held.oid
        where r.rolname ~ '^tracedb_tenant_'
    ), '{}');
end $$;

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
            ('pattern', 'success_patterns'),
            ('pattern', 'pattern_embeddings'),
            ('pattern setting', 'pattern_settings'),
            ('pattern index', 'pattern_indexes'),
            ('pattern use', 'pattern_usage_log'),
            ('default', 'pattern_usage_log_default')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('default', 'tracedb_owner', 'all', 'true', 'true'),

            ('pattern', 'tracedb_owner', 'all', 'true', 'true'),
            ('pattern', 'tracedb_service', 'select', 'true', null),
            ('pattern', 'tracedb_service', 'insert', null, 'true'),
            ('pattern', 'tracedb_service', 'update', 'true', 'true'),
            ('pattern', 'tracedb_service', 'delete', 'true', null),
            ('pattern', 'tracedb_app', 'select', own_rows, null),
            ('pattern', 'tracedb_app', 'insert', null, own_rows),
            ('pattern', 'tracedb_app', 'update', own_rows, own_rows),
            ('pattern', 'tracedb_reader', 'select', own_rows, null),
            ('pattern', 'tracedb_maintainer', 'select', 'true', null),
            ('pattern', 'tracedb_maintainer', 'insert', null, 'true'),
            ('pattern', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('pattern', 'tracedb_maintainer', 'delete', 'true', null),

            ('pattern setting', 'tracedb_owner', 'all', 'true', 'true'),
            ('pattern setting', 'tracedb_service', 'select', 'true', null),
            ('pattern setting', 'tracedb_service', 'insert', null, 'true'),
            ('pattern setting', 'tracedb_service', 'update', 'true', 'true'),
            ('pattern setting', 'tracedb_app', 'select', own_rows, null),
            ('pattern setting', 'tracedb_reader', 'select', own_rows, null),
            ('pattern setting', 'tracedb_maintainer', 'select', 'true', null),

            ('pattern index', 'tracedb_owner', 'all', 'true', 'true'),
            ('pattern index', 'tracedb_service', 'select', 'true', null),
            ('pattern index', 'tracedb_app', 'select', own_rows, null),
            ('pattern index', 'tracedb_reader', 'select', own_rows, null),
            ('pattern index', 'tracedb_maintainer', 'select', 'true', null),

            ('pattern use', 'tracedb_owner', 'all', 'true', 'true'),
            ('pattern use', 'tracedb_service', 'select', 'true', null),
            ('pattern use', 'tracedb_service', 'insert', null, 'true'),
            ('pattern use', 'tracedb_service', 'update', 'true', 'true'),
            ('pattern use', 'tracedb_app', 'select', own_rows, null),
            ('pattern use', 'tracedb_app', 'insert', null, own_rows),
            ('pattern use', 'tracedb_app', 'update', own_rows, own_rows),
            ('pattern use', 'tracedb_reader', 'select', own_rows, null),
            ('pattern use', 'tracedb_maintainer', 'select', 'true', null),
            ('pattern use', 'tracedb_maintainer', 'update', 'true', 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.success_patterns enable row level security;
alter table tracedb.success_patterns force row level security;

alter table tracedb.pattern_embeddings enable row level security;
alter table tracedb.pattern_embeddings force row level security;

alter table tracedb.pattern_settings enable row level security;
alter table tracedb.pattern_settings force row level security;

alter table tracedb.pattern_indexes enable row level security;
alter table tracedb.pattern_indexes force row level security;

alter table tracedb.pattern_usage_log enable row level security;
alter table tracedb.pattern_usage_log force row level security;

alter table tracedb.pattern_usage_log_default enable row level security;
alter table tracedb.pattern_usage_log_default force row level security;

revoke all on function
    tracedb.build_pattern_index(uuid, text, text, smallint, bigint),
    tracedb.common_pattern_words(uuid),
    tracedb.drop_embedding_model(text, integer, uuid),
    tracedb.embedding_models(uuid),
    tracedb.embedding_to_search(real[], text, uuid),
    tracedb.embeddings_partition(uuid),
    tracedb.ensure_pattern_indexes(integer, integer),
    tracedb.find_patterns(
        real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid),
    tracedb.get_pattern(uuid, uuid),
    tracedb.likenesses(halfvec, text, uuid[], uuid),
    tracedb.list_patterns(integer, uuid, uuid),
    tracedb.may_see(uuid),
    tracedb.nearest_by_index(halfvec, text, integer, integer, uuid),
    tracedb.nearest_by_scan(halfvec, text, integer, uuid),
    tracedb.pattern_document(text, text, text[]),
    tracedb.pattern_history(uuid[], timestamptz, uuid),
    tracedb.pattern_models(uuid),
    tracedb.pattern_settings(uuid),
    tracedb.pattern_signature(text, text, text, text, jsonb, jsonb, text[]),
    tracedb.pattern_weights(boolean, boolean, jsonb, uuid),
    tracedb.patterns_to_embed(text, integer, uuid, uuid),
    tracedb.patterns_with_words(text[], text[], integer, uuid),
    tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid),
    tracedb.replay_plan(uuid, timestamptz, uuid),
    tracedb.retire_pattern(uuid, text, uuid),
    tracedb.save_pattern(jsonb, uuid),
    tracedb.scored_patterns(
        uuid[], halfvec, text, tsquery, jsonb, double precision[], timestamptz, uuid),
    tracedb.set_pattern_settings(jsonb, uuid),
    tracedb.unit_vector(real[]),
    tracedb.usage_standing(text, boolean, boolean),
    tracedb.vector_schema(),
    tracedb.wanted_pattern_indexes(),
    tracedb.wilson_lower(double precision, double precision, double precision),
    tracedb.wilson_upper(double precision, double precision, double precision),
    tracedb.with_fields(anyelement, jsonb, text[]),
    tracedb.word_query(text[]),
    tracedb.word_share(tsquery, tsvector)
from public;
grant select, insert, update on
    tracedb.success_patterns,
    tracedb.pattern_embeddings,
    tracedb.pattern_usage_log
to tracedb_service, tracedb_app;
grant delete on tracedb.success_patterns, tracedb.pattern_embeddings
to tracedb_service;
grant select, insert, update on tracedb.pattern_settings
to tracedb_service;
grant select on tracedb.pattern_settings
to tracedb_app;
grant select on tracedb.pattern_indexes
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.with_fields(anyelement, jsonb, text[]),
    tracedb.save_pattern(jsonb, uuid),
    tracedb.retire_pattern(uuid, text, uuid),
    tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid)
to tracedb_service, tracedb_app, tracedb_maintainer;
grant execute on function tracedb.set_pattern_settings(jsonb, uuid)
to tracedb_service;
grant execute on function tracedb.drop_embedding_model(text, integer, uuid)
to tracedb_service, tracedb_maintainer;
grant select on
    tracedb.success_patterns,
    tracedb.pattern_embeddings,
    tracedb.pattern_settings,
    tracedb.pattern_indexes,
    tracedb.pattern_usage_log
to tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.wilson_lower(double precision, double precision, double precision),
    tracedb.wilson_upper(double precision, double precision, double precision),
    tracedb.pattern_settings(uuid),
    tracedb.pattern_signature(text, text, text, text, jsonb, jsonb, text[]),
    tracedb.pattern_history(uuid[], timestamptz, uuid),
    tracedb.get_pattern(uuid, uuid),
    tracedb.list_patterns(integer, uuid, uuid),
    tracedb.replay_plan(uuid, timestamptz, uuid),
    tracedb.vector_schema(),
    tracedb.unit_vector(real[]),
    tracedb.embedding_models(uuid),
    tracedb.patterns_to_embed(text, integer, uuid, uuid),
    tracedb.pattern_models(uuid),
    tracedb.may_see(uuid),
    tracedb.word_query(text[]),
    tracedb.word_share(tsquery, tsvector),
    tracedb.patterns_with_words(text[], text[], integer, uuid),
    tracedb.nearest_by_scan(halfvec, text, integer, uuid),
    tracedb.nearest_by_index(halfvec, text, integer, integer, uuid),
    tracedb.likenesses(halfvec, text, uuid[], uuid),
    tracedb.pattern_weights(boolean, boolean, jsonb, uuid),
    tracedb.scored_patterns(
        uuid[], halfvec, text, tsquery, jsonb, double precision[], timestamptz, uuid),
    tracedb.embedding_to_search(real[], text, uuid),
    tracedb.find_patterns(
        real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.pattern_document(text, text, text[]),
    tracedb.usage_standing(text, boolean, boolean)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant insert, update, delete on tracedb.success_patterns, tracedb.pattern_embeddings
to tracedb_maintainer;
grant update (counted, updated_at) on tracedb.pattern_usage_log
to tracedb_maintainer;
grant execute on function
    tracedb.ensure_pattern_indexes(integer, integer),
    tracedb.wanted_pattern_indexes()
to tracedb_maintainer;

comment on constraint tenant_external_id_fits on tracedb.tenants is
    'external_id: from 1 to 1024 bytes';
comment on constraint tenant_name_fits on tracedb.tenants is
    'name: from 1 to 1024 bytes';
comment on constraint partition_width_known on tracedb.partition_policies is
    'width: must be day, week or month';
comment on constraint partition_ahead_bounded on tracedb.partition_policies is
    'ahead_periods: must be from 1 to 400';

reset role;

select tracedb.ensure_partitions();

select tracedb.co_locate('tracedb.success_patterns');
select tracedb.co_locate('tracedb.pattern_embeddings');
select tracedb.co_locate('tracedb.pattern_settings');
select tracedb.co_locate('tracedb.pattern_indexes');
select tracedb.co_locate('tracedb.pattern_usage_log');
