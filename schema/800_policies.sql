-- 800_policies.sql: every row-level-security policy, on one page.

-- A tenant sees and writes its own rows; without a tenant there are none. Trusted ingest and
-- maintenance reach all tenants by policy, because BYPASSRLS cannot be had on managed servers. The
-- owner has a policy too: row-level security is forced, and its functions move rows.
--
-- One permissive policy a role and command, named <table>_<role>_<command>. The tenant is compared
-- by a direct call: Citus cannot distribute a policy with a sub-select, and the planner folds the
-- call into any query that names its tenant. Partitions get row-level security and no policy, so
-- that queried directly they show nothing to anybody; only the default ones, in which the owner's
-- functions look for strays, have the owner's.

set role tracedb_owner;

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    -- the general price list is everybody's to read
    own_and_general_rows constant text := 'tenant_id is null or ' || own_rows;
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
            ('event', 'execution_traces'), ('event', 'trace_payloads'),
            ('event', 'agent_routing_decisions'), ('event', 'hook_executions'),
            ('event', 'endpoint_calls'), ('event', 'llm_spans'),
            ('event', 'platform_events'), ('event', 'tenant_cost_events'),
            ('event', 'agent_executions'),
            ('total', 'usage_rollups'), ('total', 'usage_contributions'),
            ('default', 'execution_traces_default'), ('default', 'trace_payloads_default'),
            ('default', 'agent_routing_decisions_default'), ('default', 'hook_executions_default'),
            ('default', 'endpoint_calls_default'), ('default', 'llm_spans_default'),
            ('default', 'platform_events_default'), ('default', 'tenant_cost_events_default'),
            ('default', 'agent_executions_default'), ('default', 'usage_contributions_default'),
            ('price', 'model_prices'),
            ('adjustment', 'span_cost_adjustments'),
            ('budget', 'budgets'),
            ('reservation', 'budget_reservations'),
            ('alert', 'budget_alerts'),
            ('pattern', 'success_patterns'), ('pattern', 'pattern_embeddings'),
            ('pattern setting', 'pattern_settings'),
            ('pattern index', 'pattern_indexes'),
            ('pattern use', 'pattern_usage_log'),
            ('default', 'pattern_usage_log_default'),
            ('learned', 'learned_traces'), ('learned', 'learning_progress'),
            ('learned', 'agent_chaining_patterns'),
            ('error', 'error_patterns'),
            ('pruning', 'pattern_prunings'),
            ('default', 'learned_traces_default'),
            ('default', 'span_cost_adjustments_default'),
            ('ledger', 'ingest_writers'),
            ('letter', 'dead_letters'),
            ('feed', 'trace_changes'),
            ('id map', 'trace_ids'),
            ('tenant', 'tenants'),
            ('tombstone', 'erased_keys'), ('tombstone', 'erased_traces'),
            ('rule', 'retention_policies'),
            ('receipt', 'archives'), ('receipt', 'retention_receipts'),
            ('trail', 'archived_tenants'), ('trail', 'change_horizons'), ('trail', 'erasures'),
            ('trail', 'settled_costs'),
            ('run', 'maintenance_runs'),
            ('setting', 'partition_policies')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('event', 'tracedb_owner', 'all', 'true', 'true'),
            ('event', 'tracedb_service', 'select', 'true', null),
            ('event', 'tracedb_service', 'insert', null, 'true'),
            ('event', 'tracedb_service', 'update', 'true', 'true'),
            ('event', 'tracedb_app', 'select', own_rows, null),
            ('event', 'tracedb_app', 'insert', null, own_rows),
            ('event', 'tracedb_app', 'update', own_rows, own_rows),
            ('event', 'tracedb_reader', 'select', own_rows, null),
            ('event', 'tracedb_maintainer', 'select', 'true', null),

            ('default', 'tracedb_owner', 'all', 'true', 'true'),

            ('price', 'tracedb_owner', 'all', 'true', 'true'),
            ('price', 'tracedb_service', 'select', 'true', null),
            ('price', 'tracedb_service', 'insert', null, 'true'),
            ('price', 'tracedb_app', 'select', own_and_general_rows, null),
            ('price', 'tracedb_reader', 'select', own_and_general_rows, null),
            ('price', 'tracedb_maintainer', 'select', 'true', null),
            ('price', 'tracedb_maintainer', 'insert', null, 'true'),

            ('adjustment', 'tracedb_owner', 'all', 'true', 'true'),
            ('adjustment', 'tracedb_service', 'select', 'true', null),
            ('adjustment', 'tracedb_service', 'insert', null, 'true'),
            ('adjustment', 'tracedb_app', 'select', own_rows, null),
            ('adjustment', 'tracedb_reader', 'select', own_rows, null),
            ('adjustment', 'tracedb_maintainer', 'select', 'true', null),

            ('budget', 'tracedb_owner', 'all', 'true', 'true'),
            ('budget', 'tracedb_service', 'select', 'true', null),
            ('budget', 'tracedb_service', 'insert', null, 'true'),
            ('budget', 'tracedb_service', 'update', 'true', 'true'),
            ('budget', 'tracedb_service', 'delete', 'true', null),
            ('budget', 'tracedb_app', 'select', own_rows, null),
            ('budget', 'tracedb_reader', 'select', own_rows, null),
            ('budget', 'tracedb_maintainer', 'select', 'true', null),

            ('reservation', 'tracedb_owner', 'all', 'true', 'true'),
            ('reservation', 'tracedb_service', 'select', 'true', null),
            ('reservation', 'tracedb_service', 'insert', null, 'true'),
            ('reservation', 'tracedb_service', 'update', 'true', 'true'),
            ('reservation', 'tracedb_app', 'select', own_rows, null),
            ('reservation', 'tracedb_app', 'insert', null, own_rows),
            ('reservation', 'tracedb_app', 'update', own_rows, own_rows),
            ('reservation', 'tracedb_reader', 'select', own_rows, null),
            ('reservation', 'tracedb_maintainer', 'select', 'true', null),

            ('alert', 'tracedb_owner', 'all', 'true', 'true'),
            ('alert', 'tracedb_service', 'select', 'true', null),
            ('alert', 'tracedb_service', 'insert', null, 'true'),
            ('alert', 'tracedb_app', 'select', own_rows, null),
            ('alert', 'tracedb_reader', 'select', own_rows, null),
            ('alert', 'tracedb_maintainer', 'select', 'true', null),

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
            ('pattern use', 'tracedb_maintainer', 'update', 'true', 'true'),

            ('learned', 'tracedb_owner', 'all', 'true', 'true'),
            ('learned', 'tracedb_service', 'select', 'true', null),
            ('learned', 'tracedb_app', 'select', own_rows, null),
            ('learned', 'tracedb_reader', 'select', own_rows, null),
            ('learned', 'tracedb_maintainer', 'select', 'true', null),
            ('learned', 'tracedb_maintainer', 'insert', null, 'true'),
            ('learned', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('learned', 'tracedb_maintainer', 'delete', 'true', null),

            ('error', 'tracedb_owner', 'all', 'true', 'true'),
            ('error', 'tracedb_service', 'select', 'true', null),
            ('error', 'tracedb_service', 'update', 'true', 'true'),
            ('error', 'tracedb_app', 'select', own_rows, null),
            ('error', 'tracedb_app', 'update', own_rows, own_rows),
            ('error', 'tracedb_reader', 'select', own_rows, null),
            ('error', 'tracedb_maintainer', 'select', 'true', null),
            ('error', 'tracedb_maintainer', 'insert', null, 'true'),
            ('error', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('error', 'tracedb_maintainer', 'delete', 'true', null),

            ('pruning', 'tracedb_owner', 'all', 'true', 'true'),
            ('pruning', 'tracedb_service', 'select', 'true', null),
            ('pruning', 'tracedb_app', 'select', own_rows, null),
            ('pruning', 'tracedb_reader', 'select', own_rows, null),
            ('pruning', 'tracedb_maintainer', 'select', 'true', null),
            ('pruning', 'tracedb_maintainer', 'insert', null, 'true'),

            ('ledger', 'tracedb_owner', 'all', 'true', 'true'),
            ('ledger', 'tracedb_service', 'select', 'true', null),
            ('ledger', 'tracedb_service', 'insert', null, 'true'),
            ('ledger', 'tracedb_service', 'update', 'true', 'true'),
            ('ledger', 'tracedb_app', 'select', own_rows, null),
            ('ledger', 'tracedb_app', 'insert', null, own_rows),
            ('ledger', 'tracedb_app', 'update', own_rows, own_rows),
            ('ledger', 'tracedb_reader', 'select', own_rows, null),
            ('ledger', 'tracedb_maintainer', 'select', 'true', null),

            ('letter', 'tracedb_owner', 'all', 'true', 'true'),
            ('letter', 'tracedb_service', 'select', 'true', null),
            ('letter', 'tracedb_service', 'insert', null, 'true'),
            ('letter', 'tracedb_service', 'delete', 'true', null),
            ('letter', 'tracedb_app', 'select', own_rows, null),
            ('letter', 'tracedb_app', 'insert', null, own_rows),
            ('letter', 'tracedb_app', 'delete', own_rows, null),
            ('letter', 'tracedb_reader', 'select', own_rows, null),
            ('letter', 'tracedb_maintainer', 'select', 'true', null),
            ('letter', 'tracedb_maintainer', 'delete', 'true', null),

            ('feed', 'tracedb_owner', 'all', 'true', 'true'),
            ('feed', 'tracedb_service', 'select', 'true', null),
            ('feed', 'tracedb_service', 'insert', null, 'true'),
            ('feed', 'tracedb_app', 'select', own_rows, null),
            ('feed', 'tracedb_app', 'insert', null, own_rows),
            ('feed', 'tracedb_reader', 'select', own_rows, null),
            ('feed', 'tracedb_maintainer', 'select', 'true', null),
            ('feed', 'tracedb_maintainer', 'update', 'true', 'true'),

            ('total', 'tracedb_owner', 'all', 'true', 'true'),
            ('total', 'tracedb_service', 'select', 'true', null),
            ('total', 'tracedb_app', 'select', own_rows, null),
            ('total', 'tracedb_reader', 'select', own_rows, null),
            ('total', 'tracedb_maintainer', 'select', 'true', null),
            ('total', 'tracedb_maintainer', 'insert', null, 'true'),
            ('total', 'tracedb_maintainer', 'delete', 'true', null),

            ('id map', 'tracedb_owner', 'all', 'true', 'true'),
            ('id map', 'tracedb_service', 'select', 'true', null),
            ('id map', 'tracedb_service', 'insert', null, 'true'),
            ('id map', 'tracedb_app', 'select', own_rows, null),
            ('id map', 'tracedb_app', 'insert', null, own_rows),
            ('id map', 'tracedb_reader', 'select', own_rows, null),
            ('id map', 'tracedb_maintainer', 'select', 'true', null),

            ('tenant', 'tracedb_owner', 'all', 'true', 'true'),
            ('tenant', 'tracedb_service', 'select', 'true', null),
            ('tenant', 'tracedb_service', 'insert', null, 'true'),
            ('tenant', 'tracedb_service', 'update', 'true', 'true'),
            ('tenant', 'tracedb_app', 'select', own_rows, null),
            ('tenant', 'tracedb_reader', 'select', own_rows, null),
            ('tenant', 'tracedb_maintainer', 'select', 'true', null),

            ('tombstone', 'tracedb_owner', 'all', 'true', 'true'),
            ('tombstone', 'tracedb_service', 'select', 'true', null),
            ('tombstone', 'tracedb_service', 'insert', null, 'true'),
            ('tombstone', 'tracedb_app', 'select', own_rows, null),
            ('tombstone', 'tracedb_app', 'insert', null, own_rows),
            ('tombstone', 'tracedb_maintainer', 'select', 'true', null),

            ('rule', 'tracedb_owner', 'all', 'true', 'true'),
            ('rule', 'tracedb_service', 'select', 'true', null),
            ('rule', 'tracedb_maintainer', 'select', 'true', null),
            ('rule', 'tracedb_maintainer', 'insert', null, 'true'),
            ('rule', 'tracedb_maintainer', 'update', 'true', 'true'),
            ('rule', 'tracedb_maintainer', 'delete', 'true', null),

            ('receipt', 'tracedb_owner', 'all', 'true', 'true'),
            ('receipt', 'tracedb_service', 'select', 'true', null),
            ('receipt', 'tracedb_maintainer', 'select', 'true', null),

            ('trail', 'tracedb_owner', 'all', 'true', 'true'),
            ('trail', 'tracedb_service', 'select', 'true', null),
            ('trail', 'tracedb_app', 'select', own_rows, null),
            ('trail', 'tracedb_reader', 'select', own_rows, null),
            ('trail', 'tracedb_maintainer', 'select', 'true', null),

            ('run', 'tracedb_owner', 'all', 'true', 'true'),
            ('run', 'tracedb_service', 'select', 'true', null),
            ('run', 'tracedb_maintainer', 'select', 'true', null),
            ('run', 'tracedb_maintainer', 'insert', null, 'true'),
            ('run', 'tracedb_maintainer', 'update', 'true', 'true'),

            ('setting', 'tracedb_owner', 'all', 'true', 'true'),
            ('setting', 'tracedb_service', 'select', 'true', null),
            ('setting', 'tracedb_maintainer', 'select', 'true', null),
            ('setting', 'tracedb_maintainer', 'update', 'true', 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

-- Also on partitions: neither attaching nor detaching gives or takes it.
do $$
declare
    table_name regclass;
begin
    for table_name in
        select c.oid
        from pg_catalog.pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
            and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
            and not (c.relrowsecurity and c.relforcerowsecurity)
    loop
        execute format('alter table %s enable row level security', table_name);
        execute format('alter table %s force row level security', table_name);
    end loop;
end $$;

reset role;
