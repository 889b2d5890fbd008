-- 0006_cost.rollback.sql: removes prices, adjustments and computed costs WITH WHAT THEY HOLD.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create or replace view tracedb.trace_summary with (security_invoker = true) as
select
    t.tenant_id,
    t.trace_id,
    coalesce(t.root_trace_id, case when t.parent_trace_id is null then t.trace_id end)
        as root_trace_id,
    t.parent_trace_id,
    t.parent_span_id,
    t.external_id,
    t.session_id,
    t.user_id,
    t.source,
    t.channel,
    t.message_type,
    t.name,
    t.intent,
    t.route,
    t.agent_id,
    t.status,
    t.error_type,
    t.error_message,
    t.started_at,
    t.ended_at,
    t.duration_ms,
    coalesce(t.llm_calls, s.llm_calls) as llm_calls,
    coalesce(t.input_tokens, s.input_tokens) as input_tokens,
    coalesce(t.output_tokens, s.output_tokens) as output_tokens,
    coalesce(t.cost_usd, s.cost_usd) as cost_usd,
    t.docs_retrieved,
    t.doc_sources,
    t.research_triggered,
    t.kb_enrichment_triggered,
    t.tags,
    t.context,
    s.span_count + r.part_count + h.part_count + e.part_count as span_count,
    s.error_count + r.error_count + h.error_count + e.error_count as error_count,
    case when t.cost_usd is null then s.unpriced_count else 0 end as unpriced_count
from tracedb.execution_traces as t
left join lateral (
    select
        count(*) as span_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count,
        -- Only leaves: an agent's span may repeat the usage of the calls below it. A sum of
        -- nothing, or of unknown costs alone, stays null.
        count(*) filter (where p.operation_type in ('llm', 'embedding', 'rerank')) as llm_calls,
        sum(p.input_tokens) filter (where p.operation_type in ('llm', 'embedding', 'rerank'))
            ::bigint as input_tokens,
        sum(p.output_tokens) filter (where p.operation_type in ('llm', 'embedding', 'rerank'))
            ::bigint as output_tokens,
        sum(p.cost_usd) filter (where p.operation_type in ('llm', 'embedding', 'rerank'))
            as cost_usd,
        count(*) filter (where p.operation_type in ('llm', 'embedding', 'rerank')
            and p.cost_usd is null) as unpriced_count
    from tracedb.llm_spans as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as s on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.agent_routing_decisions as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as r on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.hook_executions as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as h on true
left join lateral (
    select
        count(*) as part_count,
        count(*) filter (where p.status in ('error', 'timeout')) as error_count
    from tracedb.endpoint_calls as p
    where p.tenant_id = t.tenant_id and p.trace_id = t.trace_id
) as e on true;

create or replace function tracedb.trace_nodes(
    root_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.trace_node
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    all_ids uuid[] := array[root_id];
    new_ids uuid[] := all_ids;
    last_id uuid;
begin
    -- A level at a time; an id seen before would be a cycle.
    while cardinality(new_ids) > 0 loop
        new_ids := array(
            select id
            from unnest(tracedb.nested_traces(new_ids, root_id, trace_nodes.tenant_id)) as id
            where id <> all(all_ids)
        );
        all_ids := all_ids || new_ids;
    end loop;
    -- A list of ids prunes no partitions once the plan is a generic one; their range does.
    all_ids := array(select id from unnest(all_ids) as id order by id);
    last_id := all_ids[cardinality(all_ids)];

    return query
    select 'trace', t.trace_id, null::bytea, t.parent_trace_id, t.parent_span_id,
        coalesce(t.name, t.route, t.agent_id), t.status, t.started_at, t.ended_at, t.agent_id,
        null, t.input_tokens, t.output_tokens, t.cost_usd, coalesce(t.error_message, t.error_type)
    from tracedb.execution_traces as t
    where t.tenant_id = trace_nodes.tenant_id and t.trace_id = any(all_ids)
        and t.trace_id between all_ids[1] and last_id;

    return query
    select s.operation_type, s.trace_id, s.span_id, s.trace_id, s.parent_span_id,
        coalesce(s.name, s.tool_name, s.operation_type), s.status, s.started_at, s.ended_at,
        s.agent_id, coalesce(s.response_model, s.request_model), s.input_tokens, s.output_tokens,
        s.cost_usd, coalesce(s.status_message, s.error_type)
    from tracedb.llm_spans as s
    where s.tenant_id = trace_nodes.tenant_id and s.trace_id = any(all_ids)
        and s.trace_id between all_ids[1] and last_id;

    return query
    select 'routing_decision', r.trace_id, r.span_id, r.trace_id, r.parent_span_id,
        coalesce(r.name, r.selected_agent), r.status, r.started_at, r.ended_at, r.selected_agent,
        null, null::bigint, null::bigint, null::numeric, coalesce(r.error_message, r.error_type)
    from tracedb.agent_routing_decisions as r
    where r.tenant_id = trace_nodes.tenant_id and r.trace_id = any(all_ids)
        and r.trace_id between all_ids[1] and last_id;

    return query
    select 'hook', h.trace_id, h.span_id, h.trace_id, h.parent_span_id,
        coalesce(h.name, concat_ws(' ', h.hook_type, h.tool_name)), h.status, h.started_at,
        h.ended_at, null, null, null::bigint, null::bigint, null::numeric,
        coalesce(h.error_message, h.error_type)
    from tracedb.hook_executions as h
    where h.tenant_id = trace_nodes.tenant_id and h.trace_id = any(all_ids)
        and h.trace_id between all_ids[1] and last_id;

    return query
    select 'endpoint_call', e.trace_id, e.span_id, e.trace_id,
        coalesce(e.parent_span_id, e.hook_span_id),
        coalesce(e.name, concat_ws(' ', e.service, e.method, e.path)), e.status, e.started_at,
        e.ended_at, null, null, null::bigint, null::bigint, null::numeric,
        coalesce(e.error_message, e.error_type,
            case when e.status_code >= 400 then 'HTTP ' || e.status_code end)
    from tracedb.endpoint_calls as e
    where e.tenant_id = trace_nodes.tenant_id and e.trace_id = any(all_ids)
        and e.trace_id between all_ids[1] and last_id;
end $$;

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
begin
    inserted := 0;
    merged := 0;
    if tenant is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
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
            insert into tracedb.llm_spans
            select
                tenant, r.trace_id, r.span_id, r.parent_span_id, r.name, r.operation_type, r.status,
                r.error_type, r.status_message, r.started_at, r.ended_at, r.duration_us, r.provider,
                r.request_model, r.response_model, r.input_tokens, r.output_tokens,
                r.cache_read_tokens, r.cache_write_tokens, r.reasoning_tokens, r.cost_usd,
                r.price_id, r.agent_id, r.tool_name, r.message_id, r.conversation_id, r.attributes,
                r.events, r.links, now(), now()
            from unnest(spans) as r;
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
    if texts is not null then
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
    fixed constant text[] := array['tenant_id', 'created_at', 'updated_at'];
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
        'select array_agg(to_jsonb(g.r) || $5) '
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

create or replace function tracedb.store_parts(
    table_name text, part_rows jsonb[], out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    -- The key without the tenant, which every row of a batch shares. Rows are inserted in its
    -- order, so that two batches cannot wait for each other.
    key constant text[] := case tracedb.partition_key(table_name)
        when 'event_id' then array['event_id']
        else array['trace_id', 'span_id']
    end || case when table_name = 'trace_payloads' then array['kind'] else '{}' end;
    fixed constant text[] := array['tenant_id', 'created_at'] || key;
    made bigint;
    -- The batch's stretch of ids, so that the update is planned for its partitions alone.
    first_id uuid;
    last_id uuid;
begin
    execute format(
        'with made as ( '
        '    insert into tracedb.%1$I '
        '    select part.* from unnest($1) as r '
        '    cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
        '    order by %2$s '
        '    on conflict do nothing '
        '    returning %3$s '
        '), records as ( '
        '    select distinct %2$s from unnest($1) as r '
        '    cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
        '    where r ? ''type'' '
        ') '
        'select (select count(*) from made), (select count(*) from made join records using (%3$s))',
        table_name,
        (select string_agg('part.' || k, ', ') from unnest(key) as k),
        (select string_agg(k, ', ') from unnest(key) as k))
    into made, inserted
    using part_rows;
    merged := 0;
    if made < cardinality(part_rows) then
        select min(replace(r ->> key[1], '-', '')), max(replace(r ->> key[1], '-', ''))
        into first_id, last_id
        from unnest(part_rows) as r;
        execute format(
            'with changed as ( '
            '    update tracedb.%1$I as t set (%2$s) = row(%3$s) '
            '    from ( '
            '        select distinct on (%4$s) part.*, '
            '            tracedb.part_rank(to_jsonb(part)) as part_rank, r ? ''type'' as is_record '
            '        from unnest($1) as r '
            '        cross join lateral jsonb_populate_record(null::tracedb.%1$I, r) as part '
            '        order by %4$s, part_rank desc, is_record desc '
            '    ) as part '
            '    where t.tenant_id = $2 and (%5$s) = (%4$s) and t.%6$I between $3 and $4 '
            '        and tracedb.part_rank(to_jsonb(t)) < part.part_rank '
            '    returning part.is_record '
            ') '
            'select count(*) filter (where is_record) from changed',
            table_name,
            tracedb.column_list(table_name, '', fixed),
            tracedb.column_list(table_name, 'part.', fixed),
            (select string_agg('part.' || k, ', ') from unnest(key) as k),
            (select string_agg('t.' || k, ', ') from unnest(key) as k),
            key[1])
        into merged
        using part_rows, (part_rows[1] ->> 'tenant_id')::uuid, first_id, last_id;
        -- A record and a text of one key: the record may be inserted for the text and come back.
        merged := least(merged,
            (select count(*) from unnest(part_rows) as r where r ? 'type') - inserted);
    end if;
end $$;

create or replace function tracedb.part_rank(part_row jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_array(
        coalesce(part_row ->> 'status', 'ok') <> 'running',
        extract(epoch from (part_row ->> 'ended_at')::timestamptz),
        length(part_row ->> 'content'),
        part_row - array['created_at', 'updated_at']
    )
$$;

drop function tracedb.reconcile_invoice(text, daterange, jsonb, numeric, uuid);
drop function tracedb.reprice(timestamptz, timestamptz, boolean, text, integer, text, uuid);
drop function tracedb.set_prices(jsonb, uuid);
drop function tracedb.priced_rows(jsonb[]);
drop function tracedb.span_costs(tracedb.llm_spans[], uuid);
drop function tracedb.prices_of(text[], text[], text[], uuid);
drop function tracedb.price_of_tokens(
    bigint, bigint, bigint, bigint, bigint, numeric, numeric, numeric, numeric, numeric, numeric
);
drop function tracedb.price_of_class(bigint, numeric);
drop view tracedb.unpriced_usage;
drop view tracedb.priced_spans;
drop type tracedb.span_cost;
drop table tracedb.span_cost_adjustments;
drop table tracedb.model_prices;

update tracedb.partition_policies
set parents = array_remove(parents, 'span_cost_adjustments')
where family = 'traces';

alter table tracedb.llm_spans drop column computed_cost_usd;

comment on column tracedb.llm_spans.cost_usd is
    'Cost in US dollars; null if unknown, which is not 0.';
comment on column tracedb.llm_spans.price_id is null;

reset role;
