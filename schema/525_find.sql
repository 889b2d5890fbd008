-- 525_find.sql: traces by what they say, the newest first.

set role tracedb_owner;

-- "create type" knows no "if not exists".
do $$
begin
    if to_regtype('tracedb.trace_filter') is null then
        create type tracedb.trace_filter as (
            since              timestamptz,
            until              timestamptz,
            user_id            text,
            session_id         text,
            route              text,
            agent_id           text,
            status             text[],
            error_type         text,
            tag                text,
            research_triggered boolean,
            min_duration_ms    bigint,
            max_duration_ms    bigint,
            model              text,
            operation_type     text,
            conversation_id    text,
            message_id         text,
            min_cost_usd       numeric,
            max_cost_usd       numeric
        );
    end if;
    if to_regtype('tracedb.found_trace') is null then
        create type tracedb.found_trace as (
            tenant_id               uuid,
            trace_id                uuid,
            root_trace_id           uuid,
            parent_trace_id         uuid,
            parent_span_id          bytea,
            external_id             text,
            session_id              text,
            user_id                 text,
            source                  text,
            channel                 text,
            message_type            text,
            name                    text,
            intent                  jsonb,
            route                   text,
            agent_id                text,
            status                  text,
            error_type              text,
            error_message           text,
            started_at              timestamptz,
            ended_at                timestamptz,
            duration_ms             bigint,
            llm_calls               bigint,
            input_tokens            bigint,
            output_tokens           bigint,
            cost_usd                numeric,
            docs_retrieved          bigint,
            doc_sources             text[],
            research_triggered      boolean,
            kb_enrichment_triggered boolean,
            tags                    text[],
            context                 jsonb,
            span_count              bigint,
            error_count             bigint,
            unpriced_count          bigint,
            cursor                  text
        );
    end if;
end $$;

comment on type tracedb.trace_filter is
    'What find_traces takes as filter, field by field. Null: anything. All bounds but until are '
    'inclusive; model is the one that was asked for, or the one that answered.';
comment on type tracedb.found_trace is
    'A row of trace_summary, and the cursor that goes on after it.';

create or replace function tracedb.read_trace_filter(filter jsonb)
returns tracedb.trace_filter
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    statuses constant text[] := array['running', 'ok', 'error', 'timeout', 'cancelled'];
    field record;
    rule text;
begin
    if jsonb_typeof(filter) <> 'object' then
        raise exception using errcode = 'TD002', message = 'filter: must be an object';
    end if;
    -- A null says nothing. One status is a list of one.
    filter := jsonb_strip_nulls(filter);
    if jsonb_typeof(filter -> 'status') = 'string' then
        filter := filter || jsonb_build_object('status', jsonb_build_array(filter -> 'status'));
    end if;
    for field in
        select f.key, f.value, f.value #>> '{}' as text_value, jsonb_typeof(f.value) as type
        from jsonb_each(filter) as f
        order by f.key
    loop
        rule := case
            when field.key in ('since', 'until') then
                case when field.type <> 'string' or field.text_value !~
                    '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?(Z|[+-]\d\d(:?\d\d)?)$'
                    then 'must be an ISO 8601 time with its offset from UTC, such as '
                        '2026-01-31T12:00:00Z' end
            when field.key in (
                'user_id', 'session_id', 'route', 'agent_id', 'error_type', 'tag', 'model',
                'operation_type', 'conversation_id', 'message_id'
            ) then
                case when field.type <> 'string' then 'must be text' end
            when field.key = 'status' then
                case when field.type <> 'array' or not field.value <@ to_jsonb(statuses)
                    then 'must be running, ok, error, timeout or cancelled, or a list of them' end
            when field.key = 'research_triggered' then
                case when field.type <> 'boolean' then 'must be true or false' end
            when field.key in ('min_duration_ms', 'max_duration_ms') then
                case when field.type <> 'number' or field.text_value !~ '^\d{1,18}$'
                    then 'must be a whole number, at least 0' end
            when field.key in ('min_cost_usd', 'max_cost_usd') then
                -- text too: many a language has no other exact fractions
                case when field.text_value !~ '^\d{1,15}([.]\d+)?$' or field.type = 'array'
                    then 'must be a number, at least 0 and less than 1e15' end
            else 'unknown field of a filter'
        end;
        if rule is not null then
            raise exception using errcode = 'TD002', message = field.key || ': ' || rule;
        end if;
        begin
            perform jsonb_populate_record(null::tracedb.trace_filter,
                jsonb_build_object(field.key, field.value));
        exception
            when data_exception then
                raise exception using errcode = 'TD002', message = field.key || ': ' || sqlerrm;
        end;
    end loop;
    return jsonb_populate_record(null::tracedb.trace_filter, filter);
end $$;

comment on function tracedb.read_trace_filter(jsonb) is
    'A filter with its types; raises TD002 "field: rule" for what it does not know. Internal.';

-- No "set" clause: it would keep this from being inlined, and it is asked of every row.
create or replace function tracedb.header_matches(
    t tracedb.execution_traces, f tracedb.trace_filter
)
returns boolean
language sql immutable parallel safe
as $$
    select ((f).since is null or (t).started_at operator(pg_catalog.>=) (f).since)
        and ((f).until is null or (t).started_at operator(pg_catalog.<) (f).until)
        and ((f).user_id is null or (t).user_id operator(pg_catalog.=) (f).user_id)
        and ((f).session_id is null or (t).session_id operator(pg_catalog.=) (f).session_id)
        and ((f).route is null or (t).route operator(pg_catalog.=) (f).route)
        and ((f).agent_id is null or (t).agent_id operator(pg_catalog.=) (f).agent_id)
        and ((f).status is null or (t).status operator(pg_catalog.=) any ((f).status))
        and ((f).error_type is null or (t).error_type operator(pg_catalog.=) (f).error_type)
        and ((f).tag is null or (f).tag operator(pg_catalog.=) any ((t).tags))
        and ((f).research_triggered is null
            or (t).research_triggered operator(pg_catalog.=) (f).research_triggered)
        and ((f).min_duration_ms is null
            or (t).duration_ms operator(pg_catalog.>=) (f).min_duration_ms)
        and ((f).max_duration_ms is null
            or (t).duration_ms operator(pg_catalog.<=) (f).max_duration_ms)
$$;

comment on function tracedb.header_matches(tracedb.execution_traces, tracedb.trace_filter) is
    'Whether a trace''s own row is as the filter wants it; its parts are not looked at. Internal.';

create or replace function tracedb.trace_ids_before(
    f tracedb.trace_filter, lowest uuid, before uuid, max_rows integer, tenant_id uuid
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Planned anew for each call, every partition takes longer than reading a page.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- One statement for each index there is: under row-level security an index is entered by a
    -- plain comparison or not at all.
    if f.user_id is not null then
        return array(
            select t.trace_id
            from tracedb.execution_traces as t
            where t.tenant_id = trace_ids_before.tenant_id and t.user_id = f.user_id
                and t.trace_id >= lowest and t.trace_id < before
                and tracedb.header_matches(t, f)
            order by t.trace_id desc
            limit max_rows
        );
    end if;
    if f.status <@ array['error', 'timeout'] then
        return array(
            select t.trace_id
            from tracedb.execution_traces as t
            where t.tenant_id = trace_ids_before.tenant_id and t.status in ('error', 'timeout')
                and t.trace_id >= lowest and t.trace_id < before
                and tracedb.header_matches(t, f)
            order by t.trace_id desc
            limit max_rows
        );
    end if;
    return array(
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = trace_ids_before.tenant_id
            and t.trace_id >= lowest and t.trace_id < before
            and tracedb.header_matches(t, f)
        order by t.trace_id desc
        limit max_rows
    );
end $$;

comment on function
tracedb.trace_ids_before(tracedb.trace_filter, uuid, uuid, integer, uuid) is
    'The newest traces below an id whose own rows match, newest first. Internal.';

create or replace function tracedb.traces_with_parts(
    f tracedb.trace_filter, ids uuid[], tenant_id uuid
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    -- A list of ids prunes no partitions in a generic plan; their range does.
    newest constant uuid := ids[1];
    oldest constant uuid := ids[cardinality(ids)];
begin
    if num_nonnulls(f.model, f.operation_type, f.conversation_id, f.message_id) > 0 then
        ids := array(
            select distinct s.trace_id
            from tracedb.llm_spans as s
            where s.tenant_id = traces_with_parts.tenant_id and s.trace_id = any(ids)
                and s.trace_id between oldest and newest
                and (f.model is null or f.model in (s.request_model, s.response_model))
                and (f.operation_type is null or s.operation_type = f.operation_type)
                and (f.conversation_id is null or s.conversation_id = f.conversation_id)
                and (f.message_id is null or s.message_id = f.message_id)
            order by s.trace_id desc
        );
    end if;
    if num_nonnulls(f.min_cost_usd, f.max_cost_usd) > 0 then
        ids := array(
            select s.trace_id
            from unnest(ids) as i (id)
            join tracedb.trace_summary as s on s.trace_id = i.id
            where s.tenant_id = traces_with_parts.tenant_id
                and (f.min_cost_usd is null or s.cost_usd >= f.min_cost_usd)
                and (f.max_cost_usd is null or s.cost_usd <= f.max_cost_usd)
            order by s.trace_id desc
        );
    end if;
    return ids;
end $$;

comment on function tracedb.traces_with_parts(tracedb.trace_filter, uuid[], uuid) is
    'Those of the traces (newest first) that have a span as the filter wants it and cost what it '
    'says. Internal.';

create or replace function tracedb.find_traces(
    filter jsonb default '{}',
    max_rows integer default 100,
    cursor text default null,
    offset_rows integer default 0,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    f tracedb.trace_filter := tracedb.read_trace_filter(coalesce(filter, '{}'));
    has_part_filter constant boolean := num_nonnulls(f.model, f.operation_type, f.conversation_id,
        f.message_id, f.min_cost_usd, f.max_cost_usd) > 0;
    wanted constant bigint := max_rows::bigint + offset_rows;
    lowest uuid;
    before uuid;
    step integer;
    ids uuid[];
    found uuid[] := '{}';
begin
    if max_rows is null or max_rows not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000';
    end if;
    if offset_rows is null or offset_rows not between 0 and 100000 then
        raise exception using errcode = 'TD002', message = 'offset_rows: must be from 0 to 100000';
    end if;
    if cursor !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
        raise exception using errcode = 'TD002',
            message = 'cursor: must be one that find_traces has given';
    end if;

    -- No index finds these: the search has an end.
    if f.since is null and f.user_id is null
        and (f.status <@ array['error', 'timeout']) is not true
        and jsonb_strip_nulls(filter) - array['until'] <> '{}'
    then
        f.since := coalesce(f.until, as_of) - interval '30 days';
    end if;
    -- The id is the clock, to the day; started_at is exact.
    lowest := coalesce(tracedb.uuid_floor(f.since - interval '1 day'),
        '00000000-0000-0000-0000-000000000000');
    before := least(tracedb.uuid_floor(f.until + interval '1 day'), cursor::uuid,
        'ffffffff-ffff-ffff-ffff-ffffffffffff');
    step := case when has_part_filter then greatest(wanted, 500) else wanted end;
    while cardinality(found) < wanted loop
        ids := tracedb.trace_ids_before(f, lowest, before, step, find_traces.tenant_id);
        exit when ids = '{}';
        before := ids[cardinality(ids)];
        if has_part_filter then
            found := found || tracedb.traces_with_parts(f, ids, find_traces.tenant_id);
        else
            found := ids;
        end if;
        exit when cardinality(ids) < step;
    end loop;

    found := found[offset_rows + 1:wanted];
    return query
    select
        s.tenant_id, s.trace_id, s.root_trace_id, s.parent_trace_id, s.parent_span_id,
        s.external_id, s.session_id, s.user_id, s.source, s.channel, s.message_type, s.name,
        s.intent, s.route, s.agent_id, s.status, s.error_type, s.error_message, s.started_at,
        s.ended_at, s.duration_ms, s.llm_calls, s.input_tokens, s.output_tokens, s.cost_usd,
        s.docs_retrieved, s.doc_sources, s.research_triggered, s.kb_enrichment_triggered, s.tags,
        s.context, s.span_count, s.error_count, s.unpriced_count, s.trace_id::text
    from unnest(found) as f (id)
    join tracedb.trace_summary as s on s.trace_id = f.id
    where s.tenant_id = find_traces.tenant_id
    order by s.trace_id desc;
end $$;

comment on function tracedb.find_traces(jsonb, integer, text, integer, timestamptz, uuid) is
    'The traces that match a filter, newest first (by trace_id), at most max_rows (1 to 1000). The '
    'filter is an object of any of: since, until (of started_at), user_id, session_id, route, '
    'agent_id, status (one or a list), error_type, tag, research_triggered, min_duration_ms, '
    'max_duration_ms, min_cost_usd, max_cost_usd (bounds included), and, of any one span, model, '
    'operation_type, conversation_id, message_id. The next page: the same call with the cursor of '
    'the last row. offset_rows skips rows (slower than a cursor). A search that names neither '
    'since, nor user_id, nor only failures as status goes back 30 days from until or as_of, unless '
    'nothing else is asked either. Raises TD002 "field: rule".';

reset role;
