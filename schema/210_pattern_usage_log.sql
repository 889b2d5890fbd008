-- 210_pattern_usage_log.sql: where patterns were used, and how that ended.

set role tracedb_owner;

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

reset role;
