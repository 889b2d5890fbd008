-- 202_pattern_settings.sql: how a tenant's patterns are scored, found and judged.

set role tracedb_owner;

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

reset role;
