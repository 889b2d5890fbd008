-- 240_learning.sql: what has been learned from which trace, and what was given up.

set role tracedb_owner;

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

reset role;
