-- 230_error_patterns.sql: errors that are the same one but for their numbers and names.

set role tracedb_owner;

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

reset role;
