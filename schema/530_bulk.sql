-- 530_bulk.sql: the fast way in for rows that a client has made itself; see tracedb/bulk.py.

set role tracedb_owner;

-- Rows that are not there yet are inserted as they are; that is nearly all of them, nearly always.
-- What happens to the others is decided where ingest decides it, in store_traces and store_parts.
-- Every table has its insert written out, because a dynamic one is planned each time: at 100 rows a
-- batch that took a third of the server's time.

create or replace function tracedb.store_again(
    table_name text, given anyarray, record_type text, tenant_id uuid,
    out inserted bigint, out merged bigint, out replayed boolean
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    key constant text[] := case
        when tracedb.partition_key(table_name) = 'event_id' then array['event_id']
        when table_name = 'execution_traces' then array['trace_id']
        when table_name = 'trace_payloads' then array['trace_id', 'span_id', 'kind']
        else array['trace_id', 'span_id']
    end;
    -- what the server says of a row is no part of the report
    fixed constant text[] := array[
        'tenant_id', 'created_at', 'updated_at', 'price_id', 'computed_cost_usd'
    ];
    first_id uuid;
    last_id uuid;
    same text;
    others jsonb[];
begin
    inserted := 0;
    merged := 0;
    -- The rows come sorted, so the first and the last bound the partitions that are looked at.
    execute format('select ($1[1]).%1$I, ($1[cardinality($1)]).%1$I', key[1])
    into first_id, last_id
    using given;
    same := format(
        '( '
        '    select record_image_eq(row(%1$s), row(%2$s)) from tracedb.%3$I as t '
        '    where t.tenant_id = $2 and (%4$s) = (%5$s) '
        '        and t.%6$I between $3 and $4 '
        ')',
        tracedb.column_list(table_name, 'r.', fixed),
        tracedb.column_list(table_name, 't.', fixed),
        table_name,
        (select string_agg('t.' || k, ', ') from unnest(key) as k),
        (select string_agg('r.' || k, ', ') from unnest(key) as k),
        key[1]);
    execute format('select bool_and(%s is true) from unnest($1) as r', same)
    into replayed
    using given, tenant_id, first_id, last_id;
    if replayed then
        return;
    end if;
    execute format(
        'select array_agg(to_jsonb(g.r) - array[''price_id'', ''computed_cost_usd''] || $5) '
        'from ( '
        '    select r, %s as same, count(*) over (partition by %s) > 1 as repeated '
        '    from unnest($1) as r '
        ') as g '
        'where g.same is not true or g.repeated',
        same, (select string_agg('r.' || k, ', ') from unnest(key) as k))
    into others
    using given, tenant_id, first_id, last_id, jsonb_strip_nulls(jsonb_build_object(
        'type', record_type, 'tenant_id', tenant_id, 'created_at', now(), 'updated_at', now()));
    if table_name = 'execution_traces' then
        select s.inserted, s.merged into inserted, merged
        from tracedb.store_traces(others) as s;
    else
        select s.inserted, s.merged into inserted, merged
        from tracedb.store_parts(table_name, others) as s;
    end if;
end $$;

comment on function tracedb.store_again(text, anyarray, text, uuid) is
    'Stores rows of a table, sorted by its key, some of which are stored already. Those that are '
    'stored just so are left alone (replayed: all of them); the others go the way of ingest, as '
    'records of that type. Internal.';

create or replace function tracedb.store_rows(
    trace_keys text[],
    traces tracedb.execution_traces[],
    stubs tracedb.execution_traces[],
    routing_decisions tracedb.agent_routing_decisions[],
    hooks tracedb.hook_executions[],
    endpoint_calls tracedb.endpoint_calls[],
    spans tracedb.llm_spans[],
    payloads tracedb.trace_payloads[],
    texts tracedb.trace_payloads[],
    platform_events tracedb.platform_events[],
    cost_events tracedb.tenant_cost_events[],
    agent_executions tracedb.agent_executions[],
    tenant_id uuid default tracedb.current_tenant_id(),
    out inserted bigint,
    out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
-- Plans are kept, also from when a table was small: rows are always looked up by their key.
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
-- or the planner would read every check constraint of the partitions for nothing
set constraint_exclusion = off
as $$
declare
    tenant constant uuid := store_rows.tenant_id;
    stored record;
    -- The rows of the last table were all stored before: the next ones are looked up first.
    replayed boolean := false;
    costs tracedb.span_cost[];
begin
    inserted := 0;
    merged := 0;
    if tenant is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    -- From its first write on, an erasure waits for this transaction.
    perform pg_current_xact_id();
    if exists (select from tracedb.erased_keys as e where e.tenant_id = tenant)
        and tracedb.names_erased(
            trace_keys, traces, stubs, platform_events, cost_events, agent_executions, tenant)
    then
        raise exception using errcode = 'TD003', message = 'record: of somebody who was erased';
    end if;
    if traces is not null then
        insert into tracedb.trace_ids (tenant_id, external_id, trace_id)
        select tenant, r.external_id, r.trace_id
        from unnest(traces) as r
        where r.external_id is not null
        order by r.external_id
        on conflict do nothing;
        if exists (
            select from unnest(traces) as r
            join tracedb.trace_ids as m using (external_id)
            where m.tenant_id = tenant and m.trace_id <> r.trace_id
        ) then
            raise exception using errcode = 'TD003', message = 'trace_id: means another trace';
        end if;
    end if;
    if exists (
        select from tracedb.trace_ids as m
        where m.tenant_id = tenant and m.external_id = any(trace_keys)
    ) then
        raise exception using errcode = 'TD003', message = 'trace_id: means another trace';
    end if;

    -- Every part has its trace among these two, also a part that is copied beside this call.
    perform tracedb.note_changes(array(
        select r.trace_id from unnest(traces) as r
        union
        select r.trace_id from unnest(stubs) as r
    ), tenant);

    -- A stub is needed where the trace is unknown, or known by a stub that begins later.
    if stubs is not null then
        select array_agg(s) into stubs
        from unnest(stubs) as s
        left join (
            select t.trace_id, t.started_at, t.provisional
            from tracedb.execution_traces as t
            where t.tenant_id = tenant and t.trace_id = any(array(
                select k.trace_id from unnest(stubs) as k
            ))
            and t.trace_id between (stubs[1]).trace_id and (stubs[cardinality(stubs)]).trace_id
        ) as t using (trace_id)
        where t.trace_id is null
            or t.provisional ->> 'started_at' = '0' and t.started_at > s.started_at;
        if stubs is not null then
            select array_agg(r order by r.trace_id) into traces
            from unnest(traces || stubs) as r;
        end if;
    end if;
    if traces is not null then
        begin
            insert into tracedb.execution_traces
            select
                tenant, r.trace_id, r.root_trace_id, r.parent_trace_id, r.parent_span_id,
                r.external_id, r.session_id, r.user_id, r.source, r.channel, r.message_type,
                r.name, r.intent, r.route, r.agent_id, r.status, r.error_type, r.error_message,
                r.started_at, r.ended_at, r.duration_ms, r.llm_calls, r.input_tokens,
                r.output_tokens, r.cost_usd, r.docs_retrieved,
                case
                    when cardinality(r.doc_sources) < 2 then r.doc_sources
                    else array(select distinct d from unnest(r.doc_sources) as d order by d)
                end,
                r.research_triggered, r.kb_enrichment_triggered,
                case
                    when cardinality(r.tags) < 2 then r.tags
                    else array(select distinct t from unnest(r.tags) as t order by t)
                end,
                r.context,
                case
                    when r.status = 'running' and r.provisional is null
                        then tracedb.trace_row_of(tracedb.report_of(to_jsonb(r), 1))
                            -> 'provisional'
                    else r.provisional
                end,
                now(), now()
            from unnest(traces) as r;
            inserted := inserted
                + (select count(*) from unnest(traces) as r where r.provisional is null);
        exception
            when unique_violation then
                stored := tracedb.store_again('execution_traces', traces, null, tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if routing_decisions is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.agent_routing_decisions
            select
                tenant, r.trace_id, r.span_id, r.parent_span_id, r.name, r.selected_agent, r.reason,
                r.trigger_confidence, r.context_confidence, r.capability_confidence,
                r.historical_confidence, r.total_confidence, r.candidates, r.selection_probability,
                r.cache_hit, r.pattern_id, r.request_embedding, r.embedding_model, r.status,
                r.error_type, r.error_message, r.started_at, r.ended_at, r.duration_ms,
                r.attributes, now(), now()
            from unnest(routing_decisions) as r;
            inserted := inserted + cardinality(routing_decisions);
        exception
            when unique_violation then
                stored := tracedb.store_again(
                    'agent_routing_decisions', routing_decisions, 'routing_decision', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if hooks is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.hook_executions
            select
                tenant, r.trace_id, r.span_id, r.parent_span_id, r.name, r.hook_type, r.tool_name,
                r.script, r.intelligence_functions, r.quality_gates, r.modifications, r.outcome,
                r.exit_code, r.status, r.error_type, r.error_message, r.started_at, r.ended_at,
                r.duration_ms, r.attributes, now(), now()
            from unnest(hooks) as r;
            inserted := inserted + cardinality(hooks);
        exception
            when unique_violation then
                stored := tracedb.store_again('hook_executions', hooks, 'hook', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if endpoint_calls is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.endpoint_calls
            select
                tenant, r.trace_id, r.span_id, r.parent_span_id, r.name, r.service, r.method,
                r.path, r.status_code, r.retries, r.request, r.response, r.hook_span_id, r.status,
                r.error_type, r.error_message, r.started_at, r.ended_at, r.duration_ms,
                r.attributes, now(), now()
            from unnest(endpoint_calls) as r;
            inserted := inserted + cardinality(endpoint_calls);
        exception
            when unique_violation then
                stored := tracedb.store_again(
                    'endpoint_calls', endpoint_calls, 'endpoint_call', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if spans is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            costs := tracedb.span_costs(spans, tenant);
            insert into tracedb.llm_spans
            select
                tenant, r.trace_id, r.span_id, r.parent_span_id, r.name, r.operation_type, r.status,
                r.error_type, r.status_message, r.started_at, r.ended_at, r.duration_us, r.provider,
                r.request_model, r.response_model, r.input_tokens, r.output_tokens,
                r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.cost_usd,
                r.known_price_id, r.agent_id, r.tool_name, r.message_id, r.conversation_id,
                r.attributes, r.events, r.links, now(), now(), r.known_cost_usd
            from rows from (unnest(spans), unnest(costs)) as r;
            inserted := inserted + cardinality(spans);
        exception
            when unique_violation then
                stored := tracedb.store_again('llm_spans', spans, 'span', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if payloads is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.trace_payloads
            select
                tenant, r.trace_id, r.span_id, r.kind, r.content, r.content_type, r.recorded_at,
                now(), now()
            from unnest(payloads) as r;
            inserted := inserted + cardinality(payloads);
        exception
            when unique_violation then
                stored := tracedb.store_again('trace_payloads', payloads, 'payload', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if texts is not null then
        -- A document given with a record is kept as the server spells it.
        if exists (select from unnest(texts) as r where r.content_type is null) then
            texts := array(
                select row(
                    null, r.trace_id, r.span_id, r.kind,
                    case when r.content_type is null then r.content::jsonb::text else r.content end,
                    coalesce(r.content_type, 'application/json'), r.recorded_at, null, null
                )::tracedb.trace_payloads
                from unnest(texts) as r
            );
        end if;
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.trace_payloads
            select
                tenant, r.trace_id, r.span_id, r.kind, r.content, r.content_type, r.recorded_at,
                now(), now()
            from unnest(texts) as r;
        exception
            when unique_violation then
                stored := tracedb.store_again('trace_payloads', texts, null, tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if platform_events is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.platform_events
            select
                tenant, r.event_id, r.event_key, r.occurred_at, r.user_id, r.session_id, r.trace_id,
                r.event_type, r.event_category, r.event_data, r.metadata, now(), now()
            from unnest(platform_events) as r;
            inserted := inserted + cardinality(platform_events);
        exception
            when unique_violation then
                stored := tracedb.store_again(
                    'platform_events', platform_events, 'platform_event', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if cost_events is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.tenant_cost_events
            select
                tenant, r.event_id, r.event_key, r.occurred_at, r.user_id, r.session_id, r.trace_id,
                r.cost_type, r.cost_usd, r.quantity, r.service, r.service_tier, r.metadata, now(),
                now()
            from unnest(cost_events) as r;
            inserted := inserted + cardinality(cost_events);
        exception
            when unique_violation then
                stored := tracedb.store_again(
                    'tenant_cost_events', cost_events, 'cost_event', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;

    if agent_executions is not null then
        begin
            if replayed then
                raise unique_violation;
            end if;
            insert into tracedb.agent_executions
            select
                tenant, r.event_id, r.event_key, r.occurred_at, r.user_id, r.session_id, r.trace_id,
                r.agent_id, r.agent_type, r.execution_time_ms, r.success, r.error_type,
                r.error_message, r.quality_score, r.citation_accuracy, r.hallucination_detected,
                r.cost_usd, r.total_tokens, r.metadata, now(), now()
            from unnest(agent_executions) as r;
            inserted := inserted + cardinality(agent_executions);
        exception
            when unique_violation then
                stored := tracedb.store_again(
                    'agent_executions', agent_executions, 'agent_execution', tenant);
                inserted := inserted + stored.inserted;
                merged := merged + stored.merged;
                replayed := stored.replayed;
        end;
    end if;
end $$;

comment on function tracedb.store_rows(
    text[], tracedb.execution_traces[], tracedb.execution_traces[],
    tracedb.agent_routing_decisions[], tracedb.hook_executions[], tracedb.endpoint_calls[],
    tracedb.llm_spans[], tracedb.trace_payloads[], tracedb.trace_payloads[],
    tracedb.platform_events[], tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid
) is
    'Stores rows that say what ingest would have made of a batch of records, each array sorted by '
    'the key of its table; tenant_id and the server''s times are filled in. Stubs are what parts '
    'say of traces that the batch has no record of; texts are payloads given with other records '
    '(without content_type: a JSON document). '
    'Counts records as ingest does, and raises where ingest would have rejected one, or TD003 if '
    'one of the trace_keys (32 hex digits) is a foreign id or a record is of somebody who was '
    'erased: then ingest is to be called. Internal.';

reset role;
