-- 0013_learning.rollback.sql: forgets chains and errors, and from which traces was learned. Patterns
-- and their uses stay.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

drop view tracedb.pattern_effectiveness;
drop view tracedb.agent_chains;
drop function tracedb.error_template(text);
drop function tracedb.endpoint_template(text);
drop function tracedb.intent_label(jsonb);
drop function tracedb.gates_passed(jsonb);
drop function tracedb.score_traces(uuid[], uuid);
drop function tracedb.score_trace(uuid, uuid);
drop function tracedb.newcombe_interval(bigint, bigint, bigint, bigint);
drop function tracedb.pattern_lift(uuid, timestamptz, timestamptz, integer, uuid);
drop function tracedb.policy_shares(jsonb, jsonb);
drop function tracedb.evaluate_routing(jsonb, timestamptz, timestamptz, text, integer, uuid);
drop function tracedb.log_pattern_use(
    uuid, uuid, boolean, text, boolean, integer, double precision, jsonb, bigint, timestamptz, uuid
);
drop function tracedb.log_pattern_outcome(
    uuid, uuid, boolean, double precision, bigint, double precision, text, timestamptz, uuid
);
drop function tracedb.set_error_fix(uuid, text, uuid);
drop function tracedb.bounded_tokens(numeric);
drop function tracedb.prompt_keywords(text, text[]);
drop function tracedb.traces_to_learn(text, timestamptz, integer, uuid, uuid);
drop function tracedb.note_learned(text, uuid[], tracedb.learned_traces[], uuid);
drop function tracedb.newest_learned(uuid[], uuid);
drop function tracedb.patterns_of_traces(uuid[], uuid);
drop function tracedb.update_patterns(tracedb.learned_change[], tracedb.trace_pattern[], uuid);
drop function tracedb.extract_patterns(timestamptz, integer, uuid, uuid);
drop function tracedb.learn_chains(timestamptz, integer, uuid, uuid);
drop function tracedb.learn_errors(timestamptz, integer, uuid, uuid);
drop function tracedb.fold_pattern_usage(integer);
drop function tracedb.prune_patterns(timestamptz, integer, boolean, uuid);
drop type tracedb.trace_pattern;
drop type tracedb.learned_news;
drop type tracedb.learned_change;
update tracedb.partition_policies
set parents = array_remove(parents, 'learned_traces')
where family = 'traces';
drop table tracedb.pattern_prunings;
drop table tracedb.learned_traces;
drop table tracedb.learning_progress;
drop table tracedb.error_patterns;
drop table tracedb.agent_chaining_patterns;

reset role;
