-- 900_grants.sql: every grant, on one page. What is not here is not allowed.

-- Parents by name, never "all tables" and never a partition: a parent's policies do not protect a
-- partition that is queried directly. Nobody gets truncate, references or trigger, which ignore
-- row-level security.

-- On Supabase the API's roles act as ours; elsewhere they do not exist.
do $$
declare
    pair record;
begin
    for pair in
        select p.ours, p.theirs
        from (values
            ('tracedb_service', 'service_role'), ('tracedb_app', 'authenticated')
        ) as p (ours, theirs)
        join pg_catalog.pg_roles as r on r.rolname = p.theirs
        where not pg_catalog.pg_has_role(r.oid, p.ours, 'member')
    loop
        execute format('grant %I to %I', pair.ours, pair.theirs);
    end loop;
end $$;

set role tracedb_owner;

revoke all on all functions in schema tracedb from public;

grant usage on schema tracedb
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- Reading and writing
grant select, insert, update on
    tracedb.execution_traces,
    tracedb.agent_routing_decisions,
    tracedb.hook_executions,
    tracedb.endpoint_calls,
    tracedb.llm_spans,
    tracedb.trace_payloads,
    tracedb.platform_events,
    tracedb.tenant_cost_events,
    tracedb.agent_executions
to tracedb_service, tracedb_app;
grant select, insert, update on tracedb.ingest_writers to tracedb_service, tracedb_app;
grant select, insert, delete on tracedb.dead_letters to tracedb_service, tracedb_app;
grant select, insert on tracedb.trace_ids, tracedb.trace_changes to tracedb_service, tracedb_app;
grant select, insert, update on tracedb.tenants to tracedb_service;
grant select on tracedb.tenants to tracedb_app;
grant select, insert on tracedb.model_prices to tracedb_service, tracedb_maintainer;
grant select, insert on tracedb.span_cost_adjustments to tracedb_service;
grant select on tracedb.model_prices, tracedb.span_cost_adjustments to tracedb_app;
grant select, insert, update, delete on tracedb.budgets to tracedb_service;
grant select, insert, update on tracedb.budget_reservations to tracedb_service, tracedb_app;
grant select, insert on tracedb.budget_alerts to tracedb_service;
grant select on tracedb.budgets, tracedb.budget_alerts to tracedb_app;

grant select, insert, update on
    tracedb.success_patterns,
    tracedb.pattern_embeddings,
    tracedb.pattern_usage_log
to tracedb_service, tracedb_app;
grant delete on tracedb.success_patterns, tracedb.pattern_embeddings to tracedb_service;
grant select, insert, update on tracedb.pattern_settings to tracedb_service;
grant select on tracedb.pattern_settings to tracedb_app;
grant select on tracedb.pattern_indexes to tracedb_service, tracedb_app;

grant execute on function
    tracedb.ingest(json, uuid),
    tracedb.ingest_slice(text[], integer, integer, uuid),
    tracedb.store_records(text[], uuid),
    tracedb.note_changes(uuid[], uuid),
    tracedb.store_parts(text, jsonb[]),
    tracedb.store_traces(jsonb[]),
    tracedb.resolve_traces(jsonb[], uuid),
    tracedb.complete_record(jsonb, jsonb, uuid),
    tracedb.event_id_of(jsonb, uuid),
    tracedb.partition_key(text),
    tracedb.payload_of(jsonb, text, jsonb),
    tracedb.record_problem(jsonb, uuid),
    tracedb.stated_reason(text, text, text, text),
    tracedb.column_list(text, text, text[]),
    tracedb.union_of(jsonb, jsonb),
    tracedb.report_of(jsonb, integer),
    tracedb.merge_reports(jsonb, jsonb),
    tracedb.merged_report(jsonb),
    tracedb.trace_row_of(jsonb),
    tracedb.part_rank(jsonb),
    tracedb.priced_rows(jsonb[]),
    tracedb.store_again(text, anyarray, text, uuid),
    tracedb.store_rows(
        text[], tracedb.execution_traces[], tracedb.execution_traces[],
        tracedb.agent_routing_decisions[], tracedb.hook_executions[], tracedb.endpoint_calls[],
        tracedb.llm_spans[], tracedb.trace_payloads[], tracedb.trace_payloads[],
        tracedb.platform_events[], tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid)
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.touch_writer(uuid, text, bigint, boolean, uuid),
    tracedb.ingest_from(uuid, bigint[], json, uuid),
    tracedb.record_delivery(uuid, int8multirange, text, uuid),
    tracedb.bury(uuid, bigint, text, text, text, uuid),
    tracedb.requeue_dead_letters(uuid[], integer, uuid)
to tracedb_service, tracedb_app;
grant execute on function tracedb.ensure_tenant(text, text) to tracedb_service;

-- Patterns
grant execute on function
    tracedb.with_fields(anyelement, jsonb, text[]),
    tracedb.save_pattern(jsonb, uuid),
    tracedb.retire_pattern(uuid, text, uuid),
    tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid)
to tracedb_service, tracedb_app, tracedb_maintainer;
grant execute on function tracedb.set_pattern_settings(jsonb, uuid) to tracedb_service;
grant execute on function tracedb.drop_embedding_model(text, integer, uuid)
to tracedb_service, tracedb_maintainer;

-- Money
grant execute on function tracedb.set_prices(jsonb, uuid) to tracedb_service, tracedb_maintainer;
grant execute on function
    tracedb.reprice(timestamptz, timestamptz, boolean, text, integer, text, uuid),
    tracedb.set_budget(text, text, numeric, numeric, uuid),
    tracedb.remove_budget(text, uuid),
    tracedb.check_budgets(timestamptz, uuid)
to tracedb_service;
grant execute on function
    tracedb.lock_budgets(uuid),
    tracedb.reserve_budget(uuid, numeric, interval, uuid, uuid),
    tracedb.settle_budget(uuid, numeric, uuid, uuid),
    tracedb.release_budget(uuid, uuid)
to tracedb_service, tracedb_app;

-- Reading
grant select on
    tracedb.tenants,
    tracedb.execution_traces,
    tracedb.trace_ids,
    tracedb.trace_changes,
    tracedb.agent_routing_decisions,
    tracedb.hook_executions,
    tracedb.endpoint_calls,
    tracedb.llm_spans,
    tracedb.trace_payloads,
    tracedb.platform_events,
    tracedb.tenant_cost_events,
    tracedb.agent_executions,
    tracedb.ingest_writers,
    tracedb.dead_letters,
    tracedb.span_cost_adjustments,
    tracedb.budgets,
    tracedb.budget_reservations,
    tracedb.budget_alerts,
    tracedb.success_patterns,
    tracedb.pattern_embeddings,
    tracedb.pattern_settings,
    tracedb.pattern_indexes,
    tracedb.pattern_usage_log
to tracedb_reader, tracedb_maintainer;
grant select on tracedb.usage_rollups, tracedb.usage_contributions
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant select on tracedb.model_prices to tracedb_reader;
grant select on
    tracedb.priced_spans,
    tracedb.unpriced_usage,
    tracedb.cost_entries,
    tracedb.trace_summary,
    tracedb.trace_figures,
    tracedb.agent_performance,
    tracedb.hook_performance_summary,
    tracedb.endpoint_reliability,
    tracedb.error_analysis,
    tracedb.dashboard_summary,
    tracedb.agent_traces_analytics,
    tracedb.user_request_analytics
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.find_trace(text, uuid),
    tracedb.get_trace(uuid, uuid),
    tracedb.trace_tree(uuid, uuid),
    tracedb.trace_nodes(uuid, uuid),
    tracedb.nested_traces(uuid[], uuid, uuid),
    tracedb.critical_path(integer[], timestamptz[], timestamptz[]),
    tracedb.part_document(jsonb),
    tracedb.loss_report(uuid, uuid),
    tracedb.read_trace_filter(jsonb),
    tracedb.header_matches(tracedb.execution_traces, tracedb.trace_filter),
    tracedb.trace_ids_before(tracedb.trace_filter, uuid, uuid, integer, uuid),
    tracedb.traces_with_parts(tracedb.trace_filter, uuid[], uuid),
    tracedb.find_traces(jsonb, integer, text, integer, timestamptz, uuid),
    tracedb.find_recent(jsonb, integer, integer, timestamptz, uuid),
    tracedb.get_user_traces(text, integer, integer, timestamptz, timestamptz, uuid),
    tracedb.get_traces_by_route(text, integer, integer, timestamptz, uuid),
    tracedb.get_traces_by_agent(text, integer, integer, timestamptz, uuid),
    tracedb.get_error_traces(integer, integer, timestamptz, uuid),
    tracedb.get_slow_queries(bigint, integer, integer, timestamptz, uuid),
    tracedb.get_research_triggers(integer, integer, timestamptz, uuid),
    tracedb.changes_cursor(),
    tracedb.changes_since(text, integer, uuid),
    tracedb.get_analytics(integer, timestamptz, uuid),
    tracedb.get_user_analytics(text, uuid),
    tracedb.percentiles_ms(smallint[], bigint[], double precision[]),
    tracedb.percentiles_ms(tracedb.usage_contributions[], double precision[]),
    tracedb.usage_of_traces(uuid[], tstzmultirange, uuid),
    tracedb.added_usage(tracedb.usage_contributions[]),
    tracedb.negated_usage(tracedb.usage_contributions),
    tracedb.with_nested(uuid[], uuid),
    tracedb.usage_between(timestamptz, timestamptz, boolean, uuid),
    tracedb.usage_series(timestamptz, timestamptz, text, uuid),
    tracedb.usage_differences(timestamptz, timestamptz, uuid),
    tracedb.tenants_report(timestamptz, timestamptz),
    tracedb.wilson_interval(bigint, bigint),
    tracedb.agent_report(timestamptz, timestamptz, uuid),
    tracedb.get_agent_success_rate(text, integer, timestamptz, uuid),
    tracedb.daily_requests(integer, timestamptz, uuid),
    tracedb.get_tenant_health(timestamptz, uuid),
    tracedb.get_churn_risk(timestamptz, uuid),
    tracedb.get_usage_patterns(integer, timestamptz, uuid),
    tracedb.get_feature_adoption(integer, timestamptz, uuid),
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
        real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid),
    tracedb.price_of_class(bigint, numeric),
    tracedb.price_of_tokens(
        bigint, bigint, bigint, bigint, bigint, numeric, numeric, numeric, numeric, numeric, numeric
    ),
    tracedb.prices_of(text[], text[], text[], uuid),
    tracedb.span_costs(tracedb.llm_spans[], uuid),
    tracedb.reconcile_invoice(text, daterange, jsonb, numeric, uuid),
    tracedb.get_cost_breakdown(text, timestamptz, timestamptz, uuid),
    tracedb.get_tenant_daily_cost(uuid, date),
    tracedb.spent_since(timestamptz, timestamptz, uuid),
    tracedb.get_budget_status(timestamptz, uuid),
    tracedb.project_costs(numeric[], integer),
    tracedb.forecast_costs(text, timestamptz, integer, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- What policies, constraints and queries of every role call
grant execute on function
    tracedb.bound_tenant_ids(),
    tracedb.current_tenant_id(),
    tracedb.set_tenant(uuid),
    tracedb.uuid_floor(timestamptz),
    tracedb.uuid_time(uuid),
    tracedb.is_uuid7(uuid),
    tracedb.uuid_from_key(timestamptz, text),
    tracedb.new_id(),
    tracedb.is_readable(jsonb),
    tracedb.pattern_document(text, text, text[]),
    tracedb.usage_standing(text, boolean, boolean),
    tracedb.external_key(text),
    tracedb.record_types(),
    tracedb.number_count(int8multirange)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- Maintenance
grant execute on function tracedb.purge_dead_letters(timestamptz, integer, uuid)
to tracedb_service, tracedb_app, tracedb_maintainer;
grant delete on tracedb.dead_letters to tracedb_maintainer;
grant update (folded) on tracedb.trace_changes to tracedb_maintainer;
grant insert, delete on tracedb.usage_rollups, tracedb.usage_contributions to tracedb_maintainer;
grant execute on function
    tracedb.fold_usage(integer),
    tracedb.add_to_rollups(text, tracedb.usage_contributions[], uuid)
to tracedb_maintainer;
grant insert, update, delete on tracedb.success_patterns, tracedb.pattern_embeddings
to tracedb_maintainer;
grant update (counted, updated_at) on tracedb.pattern_usage_log to tracedb_maintainer;
grant select, update (width, ahead_periods) on tracedb.partition_policies
to tracedb_maintainer;
grant select on tracedb.partitions to tracedb_maintainer;
grant execute on function
    tracedb.ensure_partitions(timestamptz, timestamptz),
    tracedb.drain_default_partitions(integer),
    tracedb.default_partition_rows(),
    tracedb.ensure_pattern_indexes(integer, integer),
    tracedb.wanted_pattern_indexes()
to tracedb_maintainer;

-- Learning
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

-- Retention, archive, restore
grant select on
    tracedb.retention_policies,
    tracedb.archives,
    tracedb.retention_receipts,
    tracedb.maintenance_runs
to tracedb_service, tracedb_maintainer;
grant select on tracedb.archived_tenants, tracedb.change_horizons, tracedb.settled_costs
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function tracedb.where_is_trace(uuid, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant insert, update, delete on tracedb.retention_policies to tracedb_maintainer;
grant insert, update on tracedb.maintenance_runs to tracedb_maintainer;
grant execute on function
    tracedb.maintenance_advice(bigint),
    tracedb.purge_condition(text),
    tracedb.leading_table(text),
    tracedb.retention_rule(text, uuid),
    tracedb.held_tenants(text[], timestamptz, timestamptz, uuid[]),
    tracedb.has_other_tenants(text[], timestamptz, timestamptz, uuid[]),
    tracedb.retention_plan(timestamptz, boolean),
    tracedb.set_retention(text, interval, text, text, uuid),
    tracedb.remove_retention(text, uuid),
    tracedb.set_legal_hold(text, text, uuid),
    tracedb.sees_all_rows(text),
    tracedb.archive_contents(text, timestamptz, timestamptz, uuid, uuid[]),
    tracedb.slice_end(text, timestamptz, timestamptz, uuid, uuid[], integer),
    tracedb.has_unfolded(text, timestamptz, timestamptz),
    tracedb.record_archive(jsonb, jsonb),
    tracedb.discard_archive(uuid),
    tracedb.retire_partitions(
        text[], timestamptz, timestamptz, uuid[], timestamptz, boolean, interval),
    tracedb.drop_retired(),
    tracedb.delete_expired(
        text[], timestamptz, timestamptz, uuid, uuid[], uuid[], timestamptz, boolean),
    tracedb.purge_expired(text, integer, timestamptz, boolean),
    tracedb.cover_times(text, timestamptz, timestamptz),
    tracedb.open_staging(text),
    tracedb.restore_staged(
        text, text[], timestamptz, timestamptz, uuid, timestamptz, text)
to tracedb_maintainer;

-- Operations: sizes and delays of all tenants for those who see all tenants
grant select on
    tracedb.writer_losses,
    tracedb.change_backlog
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant select on tracedb.partition_policies, tracedb.partitions to tracedb_service;
grant execute on function tracedb.default_partition_rows() to tracedb_service;
grant execute on function tracedb.partition_key(text) to tracedb_maintainer;
grant select on
    tracedb.table_sizes,
    tracedb.index_usage,
    tracedb.partition_sizes,
    tracedb.partition_headroom,
    tracedb.trace_storage,
    tracedb.storage_forecast
to tracedb_service, tracedb_maintainer;
grant execute on function
    tracedb.estimated_rows(regclass),
    tracedb.table_bloat(boolean),
    tracedb.ingest_lag(timestamptz)
to tracedb_service, tracedb_maintainer;

-- Erasure: for whoever acts for every tenant; what must not come back is seen by all who write
grant select on tracedb.erasures
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant select on tracedb.erased_keys, tracedb.erased_traces
to tracedb_service, tracedb_app, tracedb_maintainer;
grant insert on tracedb.erased_keys, tracedb.erased_traces to tracedb_service, tracedb_app;
grant execute on function tracedb.tombstone(text, text, uuid)
to tracedb_service, tracedb_app, tracedb_maintainer;
grant execute on function
    tracedb.is_before(text, timestamptz),
    tracedb.without_erased(jsonb[], uuid),
    tracedb.names_erased(
        text[], tracedb.execution_traces[], tracedb.execution_traces[], tracedb.platform_events[],
        tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid),
    tracedb.purge_refused(uuid[], uuid)
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.readable_record(text),
    tracedb.subject_tables(),
    tracedb.subject_condition(text, text, text),
    tracedb.mentions(text, text, uuid[], uuid),
    tracedb.traces_of_user(text, uuid),
    tracedb.held_about(text, text, uuid[], uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.erasure_plan(text, uuid),
    tracedb.begin_erasure(text, boolean, uuid),
    tracedb.erase_step(uuid, text, integer, uuid),
    tracedb.note_erased(uuid, text, jsonb, uuid),
    tracedb.erase_spooled(uuid, bigint[], text[], uuid),
    tracedb.collect_archived(uuid, uuid[], text[], uuid),
    tracedb.replace_archive(jsonb, jsonb, uuid, uuid),
    tracedb.forget_file(text, uuid),
    tracedb.thin_erased(text[])
to tracedb_maintainer;

reset role;
