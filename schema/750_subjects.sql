-- 750_subjects.sql: which columns say something of a person, and how they are found.

set role tracedb_owner;

-- A lint fails for a table of tenants, or a column of it that can hold text, that is not here.
create or replace function tracedb.subject_tables()
returns table (
    table_name text, deed text, trace_column text, user_column text, record_column text,
    personal text[], impersonal text[]
)
language sql immutable parallel safe
as $$
    values
    ('execution_traces', 'traces', 'trace_id', 'user_id', null::text, array[
        'external_id', 'session_id', 'user_id', 'name', 'intent', 'error_message', 'doc_sources',
        'tags', 'context', 'provisional'
    ], array[
        'parent_span_id', 'source', 'channel', 'message_type', 'route', 'agent_id', 'status',
        'error_type'
    ]),
    ('trace_payloads', 'traces', 'trace_id', null, null,
        array['content'], array['span_id', 'kind', 'content_type']),
    ('agent_routing_decisions', 'traces', 'trace_id', null, null, array[
        'name', 'reason', 'candidates', 'request_embedding', 'error_message', 'attributes'
    ], array[
        'span_id', 'parent_span_id', 'selected_agent', 'embedding_model', 'status', 'error_type'
    ]),
    ('hook_executions', 'traces', 'trace_id', null, null, array[
        'name', 'script', 'quality_gates', 'modifications', 'error_message', 'attributes'
    ], array[
        'span_id', 'parent_span_id', 'hook_type', 'tool_name', 'intelligence_functions',
        'outcome', 'status', 'error_type'
    ]),
    ('endpoint_calls', 'traces', 'trace_id', null, null, array[
        'name', 'path', 'request', 'response', 'error_message', 'attributes'
    ], array[
        'span_id', 'parent_span_id', 'service', 'method', 'hook_span_id', 'status', 'error_type'
    ]),
    ('llm_spans', 'traces', 'trace_id', null, null, array[
        'name', 'status_message', 'message_id', 'conversation_id', 'attributes', 'events', 'links'
    ], array[
        'span_id', 'parent_span_id', 'operation_type', 'status', 'error_type', 'provider',
        'request_model', 'response_model', 'agent_id', 'tool_name'
    ]),
    ('span_cost_adjustments', 'traces', 'trace_id', null, null,
        array['reason'], array['span_id']),
    ('usage_contributions', 'traces', 'trace_id', null, null, array[]::text[], array[
        'kind', 'agent_id', 'route', 'provider', 'model', 'operation_type', 'duration_buckets',
        'duration_counts'
    ]),
    ('pattern_usage_log', 'traces', 'trace_id', null, null,
        array['score_parts', 'feedback'], array['arm', 'counted']),
    ('learned_traces', 'traces', 'trace_id', null, null, array[]::text[], array['subject']),
    -- See erase_learned.
    ('success_patterns', 'learned', 'source_trace_ids', null, null, array[
        'prompt', 'intent', 'keywords', 'routing', 'hook_sequence', 'endpoint_sequence', 'context',
        'metadata', 'search'
    ], array[
        'agent_id', 'route', 'tool_sequence', 'intelligence_functions', 'performance',
        'source_trace_ids', 'retired_reason'
    ]),
    ('pattern_embeddings', 'learned', null, null, null, array['embedding'], array['model']),
    ('error_patterns', 'learned', 'sample_trace_ids', null, null, array[
        'template', 'sample_message', 'known_fix'
    ], array['operation', 'error_type', 'agent_id', 'tool', 'sample_trace_ids']),
    ('agent_chaining_patterns', 'learned', 'source_trace_ids', null, null,
        array[]::text[], array['agent_sequence', 'performance', 'source_trace_ids']),
    ('platform_events', 'rows', 'trace_id', 'user_id', null, array[
        'event_key', 'user_id', 'session_id', 'event_data', 'metadata'
    ], array['event_type', 'event_category']),
    ('agent_executions', 'rows', 'trace_id', 'user_id', null, array[
        'event_key', 'user_id', 'session_id', 'error_message', 'metadata'
    ], array['agent_id', 'agent_type', 'error_type']),
    -- What a tenant was charged stays, as nobody's: see erase_costs.
    ('tenant_cost_events', 'money', 'trace_id', 'user_id', null, array[
        'event_key', 'user_id', 'session_id', 'metadata'
    ], array['cost_type', 'service', 'service_tier']),
    ('budget_reservations', 'money', 'trace_id', null, null,
        array[]::text[], array['status']),
    ('dead_letters', 'rows', null, null, 'record',
        array['record', 'reason'], array['sqlstate']),
    ('trace_ids', 'rows', 'trace_id', null, null, array['external_id'], array[]::text[]),
    -- Ids of traces that are gone tell followers that they are.
    ('trace_changes', 'kept', null, null, null, array[]::text[], array['trace_ids']),
    ('erasures', 'kept', null, null, null, array[]::text[], array[
        'kind', 'subject_hash', 'requested_by', 'phase', 'position', 'counts', 'elsewhere',
        'files'
    ]),
    ('retention_policies', 'kept', null, null, null,
        array[]::text[], array['table_name', 'action', 'hold_reason', 'note']),
    ('archives', 'kept', null, null, null, array[]::text[], array[
        'except_tenants', 'family', 'table_name', 'state', 'uri', 'format', 'sha256',
        'schema_version', 'columns', 'created_by'
    ]),
    ('archived_tenants', 'kept', null, null, null, array[]::text[], array['table_name']),
    ('retention_receipts', 'kept', null, null, null, array[]::text[], array[
        'action', 'family', 'table_name', 'reason', 'created_by'
    ]),
    ('change_horizons', 'kept', null, null, null, array[]::text[], array[]::text[]),
    ('settled_costs', 'kept', null, null, null, array[]::text[], array[]::text[]),
    ('erased_keys', 'kept', null, null, null, array[]::text[], array['key_hash', 'kind']),
    ('erased_traces', 'kept', null, null, null, array[]::text[], array[]::text[]),
    ('learning_progress', 'kept', null, null, null,
        array[]::text[], array['subject', 'cursor']),
    ('pattern_prunings', 'kept', null, null, null, array[]::text[], array['reason']),
    ('pattern_settings', 'kept', null, null, null, array[]::text[], array[]::text[]),
    ('pattern_indexes', 'kept', null, null, null,
        array[]::text[], array['kind', 'model', 'index_name', 'common_words']),
    ('usage_rollups', 'kept', null, null, null, array[]::text[], array[
        'width', 'kind', 'agent_id', 'route', 'provider', 'model', 'operation_type',
        'duration_buckets', 'duration_counts'
    ]),
    ('ingest_writers', 'kept', null, null, null,
        array[]::text[], array['service', 'settled', 'dropped']),
    ('budgets', 'kept', null, null, null, array[]::text[], array['name', 'period']),
    ('budget_alerts', 'kept', null, null, null, array[]::text[], array['threshold']),
    ('model_prices', 'kept', null, null, null,
        array[]::text[], array['provider', 'model', 'source']),
    ('tenants', 'kept', null, null, null, array[]::text[], array['external_id', 'name'])
$$;

comment on function tracedb.subject_tables() is
    'Every table of tenants: what erasing a user does to it (deed: traces and rows delete what is '
    'found by trace_column, user_column or in the JSON of record_column; money keeps the amount; '
    'learned keeps what others taught as well; kept has nobody in it), the columns in which a '
    'person may be found, and those that are '
    'reviewed to hold none. Erasure, its plan and the export of a person follow it.';

create or replace function tracedb.mentions(
    record text, user_id text, trace_ids uuid[], tenant_id uuid
)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    item constant jsonb := tracedb.readable_record(record);
begin
    return
        strpos(record, to_jsonb(user_id)::text) > 0
        -- or spelled with escapes
        or strpos(item::text, to_jsonb(user_id)::text) > 0
        -- or as a number, which is stored as text
        or item ->> 'user_id' = user_id
        or exists (
            select from unnest(array[
                item ->> 'trace_id', item ->> 'external_id', item ->> 'parent_trace_id',
                item ->> 'root_trace_id'
            ]) as k
            left join tracedb.trace_ids as m
                on m.tenant_id = mentions.tenant_id and m.external_id = tracedb.external_key(k)
            where m.trace_id = any(trace_ids)
                or tracedb.external_key(k) = any(array(
                    select replace(i::text, '-', '') from unnest(trace_ids) as i
                ))
        );
end $$;

comment on function tracedb.mentions(text, text, uuid[], uuid) is
    'Whether a record, given as JSON, has the user as one of its values, or is of one of these '
    'traces. Internal.';

create or replace function tracedb.subject_condition(
    trace_column text, user_column text, record_column text
)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select concat_ws(' or ',
        't.' || quote_ident(user_column) || ' = $2',
        't.' || quote_ident(trace_column)
            || case when trace_column like '%\_ids' then ' && $3' else ' = any($3)' end,
        'tracedb.mentions(t.' || quote_ident(record_column) || ', $2, $3, $1)')
$$;

comment on function tracedb.subject_condition(text, text, text) is
    'The condition, on a table t, for what is held about a user ($2) with these traces ($3) of a '
    'tenant ($1). Internal.';

create or replace function tracedb.traces_of_user(
    user_id text, tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return tracedb.with_nested(array(
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = traces_of_user.tenant_id and t.user_id = traces_of_user.user_id
    ), tenant_id);
end $$;

comment on function tracedb.traces_of_user(text, uuid) is
    'The traces of a user and all that are nested in them, whoever these name.';

create or replace function tracedb.held_about(
    user_id text,
    table_name text,
    trace_ids uuid[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    spec record;
begin
    select s.* into spec
    from tracedb.subject_tables() as s
    where s.table_name = held_about.table_name
        and tracedb.subject_condition(s.trace_column, s.user_column, s.record_column) <> '';
    if spec is null then
        raise exception using errcode = 'TD002',
            message = 'table_name: must be one that says something of a person';
    end if;
    return query execute format(
        'select to_jsonb(t) - ''tenant_id'' from tracedb.%I as t where t.tenant_id = $1 and (%s)',
        spec.table_name,
        tracedb.subject_condition(spec.trace_column, spec.user_column, spec.record_column))
    using tenant_id, user_id, trace_ids;
end $$;

comment on function tracedb.held_about(text, text, uuid[], uuid) is
    'The rows of a table (see subject_tables) that are held about a user with these traces '
    '(traces_of_user), each as an object: what an erasure would find there.';

create or replace function tracedb.erasure_plan(
    user_id text default null, tenant_id uuid default tracedb.current_tenant_id()
)
returns table (table_name text, row_count bigint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    spec record;
    trace_ids constant uuid[] := tracedb.traces_of_user(user_id, tenant_id);
begin
    if tenant_id is null then
        raise exception using errcode = 'TD001', message = 'no tenant is set';
    end if;
    if user_id = '' then
        raise exception using errcode = 'TD002', message = 'user_id: must not be empty';
    end if;
    for spec in
        select s.* from tracedb.subject_tables() as s
        where user_id is null
            or tracedb.subject_condition(s.trace_column, s.user_column, s.record_column) <> ''
    loop
        table_name := spec.table_name;
        execute format(
            'select count(*) from tracedb.%I as t where t.tenant_id = $1 and (%s)',
            spec.table_name,
            case when user_id is null then 'true' else tracedb.subject_condition(
                spec.trace_column, spec.user_column, spec.record_column) end)
        into row_count
        using tenant_id, user_id, trace_ids;
        if row_count > 0 then
            return next;
        end if;
    end loop;
end $$;

comment on function tracedb.erasure_plan(text, uuid) is
    'How many rows of each table erasing a user (null: the whole tenant) would find now.';

reset role;
