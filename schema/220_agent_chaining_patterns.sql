-- 220_agent_chaining_patterns.sql: agents that call one another, and how well that works.

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

reset role;
