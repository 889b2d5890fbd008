-- 0015_erasure.rollback.sql: removes receipts and tombstones: A REPLAY BRINGS BACK WHO WAS ERASED.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create or replace function tracedb.store_records(
    texts text[], tenant_id uuid, out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    items jsonb[];
    problem text;
    mapped jsonb;
    spec record;
    batch jsonb[];
    stored record;
    -- The batch's stretch of ids, outside of which no partition is looked at.
    first_id uuid;
    last_id uuid;
begin
    if exists (select from unnest(texts) as t where octet_length(t) > 20971520) then
        raise exception using errcode = 'TD002', message = 'record: at most 20 MiB as JSON';
    end if;
    items := array(select t::jsonb from unnest(texts) as t);
    select tracedb.record_problem(r, store_records.tenant_id) into problem
    from unnest(items) as r
    where tracedb.record_problem(r, store_records.tenant_id) is not null
    limit 1;
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;

    mapped := tracedb.resolve_traces(items, tenant_id);
    items := array(
        select tracedb.complete_record(r, mapped, store_records.tenant_id)
        from unnest(items) as r
    );

    -- Every table is visited once and in the order of its key, so that two batches cannot wait for
    -- each other. First the traces: records of them, and stubs for parts whose trace is unknown so
    -- far, which the trace's own record completes; a stub starts with the earliest part.
    select min(replace(r ->> 'trace_id', '-', '')), max(replace(r ->> 'trace_id', '-', ''))
    into first_id, last_id
    from unnest(items) as r;
    batch := array(select r from unnest(items) as r where r ->> 'type' = 'trace') || array(
        select jsonb_strip_nulls(jsonb_build_object(
            'tenant_id', store_records.tenant_id, 'trace_id', p.trace_id,
            'external_id', p.external_id, 'started_at', p.at, 'status', 'running',
            'provisional', '{"external_id": 0, "started_at": 0, "status": 0}'::jsonb))
        from (
            select
                (r ->> 'trace_id')::uuid as trace_id,
                min(coalesce(r ->> 'started_at', r ->> 'recorded_at')::timestamptz) as at,
                min(r ->> 'external_id') as external_id
            from unnest(items) as r
            where r ? 'span_id'  -- parts have one; traces and events do not
            group by 1
        ) as p
        where not exists (
            select from tracedb.execution_traces as t
            where t.tenant_id = store_records.tenant_id and t.trace_id = p.trace_id
                and t.trace_id between first_id and last_id
                and coalesce(t.provisional ->> 'started_at', '2') <> '0'
        )
    );
    inserted := 0;
    merged := 0;
    if cardinality(batch) > 0 then
        stored := tracedb.store_traces(batch);
        inserted := stored.inserted;
        merged := stored.merged;
    end if;

    for spec in
        select t.type, t.table_name from tracedb.record_types() as t where t.type <> 'trace'
    loop
        batch := array(select r from unnest(items) as r where r ->> 'type' = spec.type);
        if spec.type = 'payload' then
            batch := batch || array(
                select tracedb.payload_of(r - 'content_type', f.kind, r -> f.kind)
                from unnest(items) as r
                cross join unnest(array['prompt', 'response', 'input', 'output']) as f(kind)
                -- an endpoint call's response is a column of its own
                where r ? f.kind and (r ->> 'type' = 'trace') = (f.kind in ('prompt', 'response'))
            );
        end if;
        if cardinality(batch) > 0 then
            stored := tracedb.store_parts(spec.table_name, batch);
            inserted := inserted + stored.inserted;
            merged := merged + stored.merged;
        end if;
    end loop;

    perform tracedb.note_changes(array(
        select distinct (r ->> 'trace_id')::uuid
        from unnest(items) as r
        -- an event may name a trace, but changes nothing of it
        where r ->> 'type' = 'trace' or r ? 'span_id'
    ), tenant_id);
end $$;

comment on function tracedb.store_records(text[], uuid) is
    'Stores a slice of a batch whole, or raises for the first record that is not right. Internal.';

create or replace function tracedb.ingest(
    batch json, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    texts text[];
    stored record;
begin
    if tenant_id is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    if batch is null then
        raise exception using errcode = 'TD002', message = 'batch: required';
    end if;
    texts := case
        when json_typeof(batch) = 'array'
            then array(select e::text from json_array_elements(batch) as e)
        else array[batch::text]
    end;
    if cardinality(texts) = 0 then
        return '{"received": 0, "inserted": 0, "merged": 0, "duplicates": 0, "rejected": []}';
    end if;
    stored := tracedb.ingest_slice(texts, 1, cardinality(texts), tenant_id);
    return jsonb_build_object(
        'received', cardinality(texts),
        'inserted', stored.inserted,
        'merged', stored.merged,
        'duplicates', cardinality(texts) - stored.inserted - stored.merged
            - jsonb_array_length(stored.rejected),
        'rejected', stored.rejected
    );
end $$;

comment on function tracedb.ingest(json, uuid) is
    'Stores a batch of records: a JSON array of objects with a "type" (trace, routing_decision, '
    'hook, endpoint_call, span, payload, platform_event, cost_event, agent_execution) and the '
    'fields of that type (see record_types). Records '
    'may come in any order and any number of times; parts may come before their trace. Returns '
    '{"received", "inserted", "merged", "duplicates", "rejected": [{"index", "reason"}]}: merged '
    'records changed what was there, duplicates changed nothing, and a rejected one, named by its '
    'position from 0 with the field and the rule it broke, costs its neighbours nothing. Raises '
    'TD001 without a tenant.';

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
    insert into tracedb.trace_ids (tenant_id, external_id, trace_id)
    select tenant, r.external_id, r.trace_id
    from unnest(traces) as r
    where r.external_id is not null
    order by r.external_id
    on conflict do nothing;
    if exists (
        select from tracedb.trace_ids as m
        where m.tenant_id = tenant and m.external_id = any(trace_keys)
    ) or exists (
        select from unnest(traces) as r
        join tracedb.trace_ids as m using (external_id)
        where m.tenant_id = tenant and m.trace_id <> r.trace_id
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
    'one of the trace_keys (32 hex digits) is a foreign id: then ingest is to be called. Internal.';

create or replace function tracedb.bury(
    writer_id uuid, record_no bigint, record text, reason text, sqlstate_ text,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    repeated bigint;
begin
    repeated := tracedb.record_delivery(
        writer_id, int8multirange(int8range(record_no, record_no, '[]')), 'dead', tenant_id);
    if repeated = 0 then
        insert into tracedb.dead_letters (
            tenant_id, writer_id, record_no, record, reason, sqlstate)
        values (
            bury.tenant_id, bury.writer_id, bury.record_no, bury.record, bury.reason,
            bury.sqlstate_)
        on conflict do nothing;
    end if;
    return repeated;
end $$;

comment on function tracedb.bury(uuid, bigint, text, text, text, uuid) is
    'Keeps a record that cannot be stored as a dead letter. Returns 1 if its number was settled '
    'before, and then does nothing.';

create or replace function tracedb.usage_differences(
    since timestamptz,
    until timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    starts_at timestamptz, series_id uuid, rolled_up tracedb.usage_contributions,
    counted tracedb.usage_contributions
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    trace_ids constant uuid[] := array(
        -- the id is the clock, to the day
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = tenant
            and t.trace_id >= tracedb.uuid_floor(since - interval '1 day')
            and t.trace_id < tracedb.uuid_floor(until + interval '1 day')
        union
        select c.trace_id
        from tracedb.usage_contributions as c
        where c.tenant_id = tenant
            and c.starts_at >= date_trunc('hour', since) and c.starts_at < until
        union
        select i.trace_id
        from tracedb.trace_changes as c
        cross join lateral unnest(c.trace_ids) as i(trace_id)
        where c.tenant_id = tenant and not c.folded
    );
begin
    return query
    select coalesce(r.starts_at, c.starts_at), coalesce(r.series_id, c.series_id), r, c
    from tracedb.usage_series(since, until, 'hour', tenant) as r
    full join tracedb.added_usage(array(
        select u
        from tracedb.usage_of_traces(
            trace_ids, tstzmultirange(tstzrange(since, until)), tenant) as u
    )) as c on c.starts_at = r.starts_at and c.series_id = r.series_id
    where r is distinct from c;
end $$;

comment on function tracedb.usage_differences(timestamptz, timestamptz, uuid) is
    'Where the totals of an hour and series are not what its traces add up to: none, if all is '
    'well. Only of use for a time whose traces are all retained: those that are gone still count '
    'in the totals.';

create or replace function tracedb.restore_staged(
    family text, tables text[], from_time timestamptz, to_time timestamptz, tenant_id uuid,
    keep_until timestamptz, reason text
)
returns setof tracedb.retention_receipts
language plpgsql volatile
security definer  -- writes rows of any tenant, as they were
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    relation text;
    storing text;
    stored bigint;
begin
    foreach relation in array tables loop
        if not exists (
            select from pg_class as c
            where c.oid = to_regclass('pg_temp.' || quote_ident('restore_' || relation))
                and c.relowner = current_user::text::regrole
        ) then
            raise exception using errcode = 'TD002',
                message = 'tables: must be those that open_staging was called for';
        end if;
    end loop;
    -- Who was erased since stays so: what restores of them goes here from the staging tables.
    foreach relation in array tables loop
        storing := format('insert into tracedb.%I select s.* from pg_temp.%I as s',
            relation, 'restore_' || relation);
        begin
            -- Mostly nothing of it is there, and looking for each row first costs a tenth more.
            execute storing;
            get diagnostics stored = row_count;
        exception
            when unique_violation then
                execute storing || ' on conflict do nothing';
                get diagnostics stored = row_count;
        end;
        return query
        insert into tracedb.retention_receipts as r (
            tenant_id, action, family, table_name, from_time, to_time, row_count, keep_until,
            reason
        )
        values (
            restore_staged.tenant_id, 'restored', restore_staged.family, relation,
            restore_staged.from_time, restore_staged.to_time, stored, restore_staged.keep_until,
            restore_staged.reason
        )
        returning r.*;
    end loop;
    if tracedb.partition_key(tables[1]) = 'trace_id' then
        execute (
            select format(
                'select count(tracedb.note_changes(c.ids, c.tenant_id)::text) from ( '
                'select i.tenant_id, array_agg(i.trace_id) as ids from ( '
                'select d.*, row_number() over (partition by d.tenant_id) / 1000 as portion '
                'from (%s) as d) as i group by i.tenant_id, i.portion) as c',
                string_agg(
                    format('select s.tenant_id, s.trace_id from pg_temp.%I as s', 'restore_' || t),
                    ' union '))
            from unnest(tables) as t
        );
    end if;
end $$;

comment on function tracedb.restore_staged(
    text, text[], timestamptz, timestamptz, uuid, timestamptz, text
) is
    'Stores the rows of the staging tables, all in the caller''s transaction; those that are there '
    'already stay as they are. Until keep_until no retention run removes the time again (of a '
    'tenant, or of all). Returns the receipts. What the traces added to totals comes back with '
    'them (usage_contributions), so that folding them again adds nothing.';

drop function tracedb.erase_learned(uuid[], uuid);
drop function tracedb.forget_file(text, uuid);
drop function tracedb.replace_archive(jsonb, jsonb, uuid, uuid);
drop function tracedb.collect_archived(uuid, uuid[], text[], uuid);
drop function tracedb.thin_erased(text[]);
drop function tracedb.erase_spooled(uuid, bigint[], text[], uuid);
drop function tracedb.note_erased(uuid, text, jsonb, uuid);
drop function tracedb.erase_step(uuid, text, integer, uuid);
drop function tracedb.erase_tenant_rows(tracedb.erasures, integer);
drop function tracedb.erase_user_rows(tracedb.erasures, text, integer);
drop function tracedb.erase_foreign_ids(uuid, uuid);
drop function tracedb.collect_erased(uuid[], uuid, uuid);
drop function tracedb.begin_erasure(text, boolean, uuid);
drop function tracedb.erase_reservations(uuid[], uuid);
drop function tracedb.erase_costs(text, uuid[], uuid, uuid, uuid);
drop function tracedb.purge_refused(uuid[], uuid);
drop function tracedb.erase_traces(uuid[], uuid, uuid);
drop function tracedb.add_counts(jsonb, jsonb);
drop function tracedb.erasure_plan(text, uuid);
drop function tracedb.held_about(text, text, uuid[], uuid);
drop function tracedb.traces_of_user(text, uuid);
drop function tracedb.subject_condition(text, text, text);
drop function tracedb.mentions(text, text, uuid[], uuid);
drop function tracedb.subject_tables();
drop function tracedb.names_erased(
        text[], tracedb.execution_traces[], tracedb.execution_traces[],
        tracedb.platform_events[], tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid);
drop function tracedb.without_erased(jsonb[], uuid);
drop function tracedb.readable_record(text);
drop function tracedb.is_before(text, timestamptz);
drop function tracedb.tombstone(text, text, uuid);

comment on column tracedb.ingest_writers.stored is
    'Records in the tables, without those requeued from the dead letters.';

drop table tracedb.erased_traces;
drop table tracedb.erased_keys;
drop table tracedb.erasures;
delete from tracedb.usage_rollups where width = 'erased';
alter table tracedb.usage_rollups drop constraint if exists rollup_width_known;
alter table tracedb.usage_rollups add constraint rollup_width_known
    check (width in ('hour', 'day')) not valid;
alter table tracedb.usage_rollups validate constraint rollup_width_known;
comment on column tracedb.usage_rollups.width is
    'hour or day.';
comment on constraint rollup_width_known on tracedb.usage_rollups is
    'width: must be hour or day';

reset role;
