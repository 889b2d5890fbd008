-- 345_rollups.sql: hourly and daily totals, and what each trace added to them.

set role tracedb_owner;

create table if not exists tracedb.usage_rollups (
    tenant_id          uuid        not null,
    width              text        not null,
    starts_at          timestamptz not null,
    series_id          uuid        not null,
    kind               text        not null,
    -- Null in a label: the trace or call names none.
    agent_id           text,
    route              text,
    provider           text,
    model              text,
    operation_type     text,
    executions         bigint      not null,
    errors             bigint      not null,
    successes          bigint      not null,
    running            bigint      not null,
    input_tokens       numeric     not null,
    output_tokens      numeric     not null,
    cache_read_tokens  numeric     not null,
    cache_write_tokens numeric     not null,
    reasoning_tokens   numeric     not null,
    cost_usd           numeric     not null,
    costed             bigint      not null,
    unpriced           bigint      not null,
    duration_us        numeric     not null,
    duration_buckets   smallint[]  not null,
    duration_counts    bigint[]    not null,
    constraint usage_rollups_pkey primary key (tenant_id, width, starts_at, series_id),
    constraint rollup_width_known check (width in ('hour', 'day', 'erased')),
    constraint rollup_kind_known check (kind in ('request', 'nested', 'call')),
    constraint rollup_buckets_have_counts
        check (cardinality(duration_buckets) = cardinality(duration_counts))
);

-- What a trace adds to each hour, so that folding it again adds only the difference. It goes with
-- the trace's partition; the totals stay.
create table if not exists tracedb.usage_contributions (
    tenant_id          uuid        not null,
    trace_id           uuid        not null,
    starts_at          timestamptz not null,
    series_id          uuid        not null,
    kind               text        not null,
    -- Null in a label: the trace or call names none.
    agent_id           text,
    route              text,
    provider           text,
    model              text,
    operation_type     text,
    executions         bigint      not null,
    errors             bigint      not null,
    successes          bigint      not null,
    running            bigint      not null,
    input_tokens       numeric     not null,
    output_tokens      numeric     not null,
    cache_read_tokens  numeric     not null,
    cache_write_tokens numeric     not null,
    reasoning_tokens   numeric     not null,
    cost_usd           numeric     not null,
    costed             bigint      not null,
    unpriced           bigint      not null,
    duration_us        numeric     not null,
    duration_buckets   smallint[]  not null,
    duration_counts    bigint[]    not null,
    constraint usage_contributions_pkey primary key (tenant_id, trace_id, starts_at, series_id),
    constraint contribution_kind_known check (kind in ('request', 'nested', 'call')),
    constraint contribution_buckets_have_counts
        check (cardinality(duration_buckets) = cardinality(duration_counts))
) partition by range (trace_id);

create table if not exists tracedb.usage_contributions_default
partition of tracedb.usage_contributions default;

-- The traces that have anything in an hour, of which a total may need a part.
create index if not exists usage_contributions_starts_at_idx
on tracedb.usage_contributions (tenant_id, starts_at, trace_id);

comment on table tracedb.usage_rollups is
    'Totals of an hour or a day (UTC) and a series: traces (kind request, or nested) by agent and '
    'route, and calls (spans) by agent, route, provider, model and operation. Written by '
    'fold_usage alone; what is not folded yet is missing here: usage_between and usage_series add '
    'it, and are exact at every moment.';
comment on column tracedb.usage_rollups.width is
    'hour or day; or erased: what of an hour was of traces that were erased, so that totals can '
    'still be compared with traces (usage_differences).';
comment on column tracedb.usage_rollups.starts_at is
    'The beginning of the hour or day, by the started_at of the trace or of the call.';
comment on column tracedb.usage_rollups.series_id is
    'A hash of kind and labels (usage_series_id), so that labels may be null and of any length.';
comment on column tracedb.usage_rollups.kind is
    'request: traces that are not nested; nested: the other traces; call: spans. Calls are no '
    'addition to traces, but another look at them.';
comment on column tracedb.usage_rollups.executions is
    'How many traces or calls; errors, successes and running are of these.';
comment on column tracedb.usage_rollups.input_tokens is
    'Of traces as trace_figures has it, of calls of the leaf operations; unknown counts as 0. The '
    'other classes are known of calls only. Cached tokens are part of input_tokens, reasoning '
    'tokens of output_tokens.';
comment on column tracedb.usage_rollups.cost_usd is
    'In US dollars, by the rules of trace_figures, or of the leaf calls. 0 of costed 0 is unknown.';
comment on column tracedb.usage_rollups.costed is
    'How many of the executions have a cost in cost_usd.';
comment on column tracedb.usage_rollups.unpriced is
    'How many have a cost that is unknown, or known only in part.';
comment on column tracedb.usage_rollups.duration_us is
    'Sum of the known durations, in microseconds; duration_counts says how many there are.';
comment on column tracedb.usage_rollups.duration_buckets is
    'The buckets (duration_bucket) that durations fell into, in ascending order.';
comment on column tracedb.usage_rollups.duration_counts is
    'How many durations fell into each of duration_buckets.';
comment on constraint rollup_width_known on tracedb.usage_rollups is
    'width: must be hour, day or erased';
comment on constraint rollup_kind_known on tracedb.usage_rollups is
    'kind: must be request, nested or call';
comment on constraint rollup_buckets_have_counts on tracedb.usage_rollups is
    'duration_counts: one for each of duration_buckets';

comment on table tracedb.usage_contributions is
    'What each trace has added to the hours of usage_rollups (columns as there).';
comment on constraint contribution_kind_known on tracedb.usage_contributions is
    'kind: must be request, nested or call';
comment on constraint contribution_buckets_have_counts on tracedb.usage_contributions is
    'duration_counts: one for each of duration_buckets';

reset role;
