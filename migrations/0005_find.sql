-- 0005_find.sql: finding traces, totals over them, and what changed since.
--
-- depends: 0004_bulk

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

-- A row a batch, not a row or a column a trace: that costs ingest next to nothing, covers parts as
-- well, and updates nothing.
create table if not exists tracedb.trace_changes (
    tenant_id  uuid        not null,
    written_by xid8        not null default pg_current_xact_id(),
    change_id  uuid        not null default tracedb.new_id(),
    trace_ids  uuid[]      not null,
    created_at timestamptz not null default now(),
    folded     boolean     not null default false,
    constraint trace_changes_pkey primary key (tenant_id, written_by, change_id),
    constraint change_names_traces check (cardinality(trace_ids) > 0)
);

-- What fold_usage has yet to do, and readers of totals add themselves: seldom more than a minute's.
create index if not exists trace_changes_unfolded_idx
on tracedb.trace_changes (tenant_id, created_at) where not folded;

comment on table tracedb.trace_changes is
    'The traces that a batch named, in its own transaction; changes_since reads it. A trace that a '
    'batch named may be unchanged (a repetition).';
comment on column tracedb.trace_changes.written_by is
    'The transaction. A reader goes as far as all older ones have ended, so that none of them can '
    'appear behind it.';
comment on column tracedb.trace_changes.folded is
    'Whether usage_rollups have what these traces add to them; fold_usage sets it.';
comment on constraint change_names_traces on tracedb.trace_changes is
    'trace_ids: at least one';

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

create or replace function tracedb.get_user_traces(
    user_id text,
    max_rows integer default 10,
    offset_rows integer default 0,
    start_date timestamptz default null,
    end_date timestamptz default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if user_id is null then
        raise exception using errcode = 'TD002', message = 'user_id: required';
    end if;
    return query
    select * from tracedb.find_traces(
        jsonb_build_object('user_id', user_id, 'since', start_date, 'until', end_date),
        max_rows, offset_rows => offset_rows, tenant_id => tenant_id);
end $$;

comment on function
tracedb.get_user_traces(text, integer, integer, timestamptz, timestamptz, uuid) is
    'The newest traces of a user, from start_date on and before end_date (null: no bound).';

create or replace function tracedb.find_recent(
    filter jsonb, max_rows integer, days integer, as_of timestamptz, tenant_id uuid
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if days is null or days not between 1 and 36500 then
        raise exception using errcode = 'TD002', message = 'days: must be from 1 to 36500';
    end if;
    return query
    select * from tracedb.find_traces(
        filter || jsonb_build_object('since', as_of - days * interval '1 day', 'until', as_of),
        max_rows, tenant_id => tenant_id);
end $$;

comment on function tracedb.find_recent(jsonb, integer, integer, timestamptz, uuid) is
    'find_traces over the days before as_of. Internal.';

create or replace function tracedb.get_traces_by_route(
    route text,
    max_rows integer default 10,
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if route is null then
        raise exception using errcode = 'TD002', message = 'route: required';
    end if;
    return query
    select * from tracedb.find_recent(
        jsonb_build_object('route', route), max_rows, days, as_of, tenant_id);
end $$;

comment on function tracedb.get_traces_by_route(text, integer, integer, timestamptz, uuid) is
    'The newest traces of a route in the days before as_of.';

create or replace function tracedb.get_traces_by_agent(
    agent_id text,
    max_rows integer default 10,
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if agent_id is null then
        raise exception using errcode = 'TD002', message = 'agent_id: required';
    end if;
    return query
    select * from tracedb.find_recent(
        jsonb_build_object('agent_id', agent_id), max_rows, days, as_of, tenant_id);
end $$;

comment on function tracedb.get_traces_by_agent(text, integer, integer, timestamptz, uuid) is
    'The newest traces of an agent, nested executions too, in the days before as_of.';

create or replace function tracedb.get_error_traces(
    max_rows integer default 10,
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select * from tracedb.find_recent(
        '{"status": ["error", "timeout"]}', max_rows, days, as_of, tenant_id);
end $$;

comment on function tracedb.get_error_traces(integer, integer, timestamptz, uuid) is
    'The newest traces that failed (status error or timeout) in the days before as_of.';

create or replace function tracedb.get_slow_queries(
    threshold_ms bigint default 5000,
    max_rows integer default 10,
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select * from tracedb.find_recent(
        jsonb_build_object('min_duration_ms', threshold_ms), max_rows, days, as_of, tenant_id);
end $$;

comment on function tracedb.get_slow_queries(bigint, integer, integer, timestamptz, uuid) is
    'The newest traces that took threshold_ms or longer, in the days before as_of.';

create or replace function tracedb.get_research_triggers(
    max_rows integer default 10,
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.found_trace
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select * from tracedb.find_recent(
        '{"research_triggered": true}', max_rows, days, as_of, tenant_id);
end $$;

comment on function tracedb.get_research_triggers(integer, integer, timestamptz, uuid) is
    'The newest traces that triggered research, in the days before as_of.';

create or replace function tracedb.note_changes(trace_ids uuid[], tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if cardinality(trace_ids) > 0 then
        insert into tracedb.trace_changes (tenant_id, trace_ids)
        values (note_changes.tenant_id, note_changes.trace_ids)
        on conflict do nothing;
    end if;
end $$;

comment on function tracedb.note_changes(uuid[], uuid) is
    'Tells changes_since of traces that this transaction writes. Whatever writes traces or their '
    'parts calls it. Internal.';

create or replace function tracedb.changes_cursor()
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return concat_ws('/', (pg_control_system()).system_identifier,
        pg_snapshot_xmin(pg_current_snapshot()), '00000000-0000-0000-0000-000000000000', 0);
end $$;

comment on function tracedb.changes_cursor() is
    'A cursor for changes_since that skips what has been written so far: take it, read all there '
    'is, then follow the changes.';

create or replace function tracedb.changes_since(
    cursor text default null,
    max_rows integer default 1000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (trace_id uuid, changed_at timestamptz, next_cursor text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    server constant text := (pg_control_system()).system_identifier;
    -- Every older transaction has ended, so what it wrote is here to be seen. Younger ones, even
    -- committed ones, wait: an older one could still appear before them.
    horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
    parts constant text[] := string_to_array(cursor, '/');
    last_written_by xid8 := '0';
    last_change_id uuid := '00000000-0000-0000-0000-000000000000';
    last_place bigint := 0;
begin
    if max_rows is null or max_rows not between 1 and 10000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 10000';
    end if;
    if cursor is not null then
        if cursor !~ '^\d{1,20}/\d{1,19}/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/\d{1,9}$' then
            raise exception using errcode = 'TD002',
                message = 'cursor: must be one that changes_since or changes_cursor has given';
        end if;
        last_written_by := parts[2]::xid8;
        last_change_id := parts[3];
        last_place := parts[4];
        -- Transactions are numbered by the server, so another one's cursor means nothing here.
        if parts[1] <> server
            or last_written_by > pg_snapshot_xmax(pg_current_snapshot())
        then
            raise exception using errcode = 'TD002',
                message = 'cursor: of another server, or of a state it has lost',
                hint = 'Take a new one from tracedb.changes_cursor() and read everything again.';
        end if;
    end if;
    return query
    select u.trace_id, c.created_at,
        concat_ws('/', server, c.written_by, c.change_id, u.place)
    from (
        select c.*
        from tracedb.trace_changes as c
        where c.tenant_id = changes_since.tenant_id and c.written_by < horizon
            and (c.written_by, c.change_id) >= (last_written_by, last_change_id)
        order by c.written_by, c.change_id
        limit max_rows + 1  -- each but the first has at least one trace to show
    ) as c
    cross join lateral unnest(c.trace_ids) with ordinality as u (trace_id, place)
    where (c.written_by, c.change_id, u.place) > (last_written_by, last_change_id, last_place)
    order by c.written_by, c.change_id, u.place
    limit max_rows;
end $$;

comment on function tracedb.changes_since(text, integer, uuid) is
    'The traces that were written, or parts of which were, since a cursor (null: since the first '
    'that is known), in the order of their transactions, at most max_rows (1 to 10000). Go on with '
    'the next_cursor of the last row; without a row, with the same again. No committed change is '
    'ever skipped, whatever ran at the same time: what is younger than the oldest transaction that '
    'still writes anywhere on the server waits for it. A trace may be named more than once.';

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

create or replace view tracedb.trace_figures with (security_invoker = true) as
select
    t.tenant_id,
    t.trace_id,
    t.user_id,
    t.agent_id,
    t.route,
    t.started_at,
    t.duration_ms,
    t.status,
    t.status in ('error', 'timeout') as has_failed,
    t.parent_trace_id is null as is_request,
    case when not a.has_tokens then t.input_tokens end as input_tokens,
    case when not a.has_tokens then t.output_tokens end as output_tokens,
    case when not a.has_cost then t.cost_usd end as cost_usd,
    not a.has_cost and (t.cost_usd is null or t.unpriced_count > 0) as is_cost_unknown
from tracedb.trace_summary as t
-- What an execution reports for itself as a whole includes those nested in it; their own figures
-- count where none above them reported any. A circle of parents ends by itself: "union".
cross join lateral (
    with recursive above as (
        select t.parent_trace_id as trace_id, false as has_cost, false as has_tokens
        union
        select p.parent_trace_id, p.cost_usd is not null, p.input_tokens is not null
        from above
        join tracedb.execution_traces as p
            on p.tenant_id = t.tenant_id and p.trace_id = above.trace_id
    )
    select bool_or(above.has_cost) as has_cost, bool_or(above.has_tokens) as has_tokens
    from above
) as a;

comment on view tracedb.trace_figures is
    'What each trace adds to a total. A request is a trace that is not nested. Tokens and cost are '
    'those of trace_summary, but null where an execution above reported its own, which include '
    'them: so every sum over traces counts them once. is_cost_unknown: the cost is not known, or '
    'only in part. Every total of tracedb is a sum over these rows.';

create or replace view tracedb.dashboard_summary with (security_invoker = true) as
select
    t.tenant_id,
    count(*) filter (where t.is_request) as trace_count_7d,
    count(*) filter (where t.is_request and r.is_of_today) as trace_count_24h,
    count(*) filter (where t.is_request and t.has_failed) as error_count_7d,
    count(*) filter (where t.is_request and t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.is_request and t.status <> 'running'), 0)
        as success_rate_7d,
    percentile_cont(0.5) within group (order by t.duration_ms)
        filter (where t.is_request) as median_duration_ms_7d,
    percentile_cont(0.95) within group (order by t.duration_ms)
        filter (where t.is_request) as p95_duration_ms_7d,
    sum(t.input_tokens)::bigint as input_tokens_7d,
    sum(t.output_tokens)::bigint as output_tokens_7d,
    sum(t.cost_usd) as cost_usd_7d,
    sum(t.cost_usd) filter (where r.is_of_today) as cost_usd_24h,
    count(distinct t.user_id) as user_count_7d,
    count(distinct t.agent_id) as agent_count_7d,
    max(t.started_at) as last_started_at,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count_7d
from tracedb.trace_figures as t
cross join lateral (select t.started_at >= now() - interval '1 day' as is_of_today) as r
-- The id is the clock, to the day; started_at is exact.
where t.trace_id >= tracedb.uuid_floor(now() - interval '8 days')
    and t.started_at >= now() - interval '7 days'
group by t.tenant_id;

comment on view tracedb.dashboard_summary is
    'A tenant a row, over the requests (traces that are not nested) of the last 7 days and 24 '
    'hours: how many, how well, how fast (milliseconds), users and agents, and the tokens and cost '
    'of these and of what is nested in them. unknown_cost_count_7d counts traces whose cost is '
    'unknown, or known only in part.';

create or replace view tracedb.agent_traces_analytics with (security_invoker = true) as
select
    t.tenant_id,
    t.agent_id,
    t.route,
    count(*) filter (where t.is_request) as request_count,
    count(*) as execution_count,
    count(*) filter (where t.has_failed) as error_count,
    count(*) filter (where t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.status <> 'running'), 0) as success_rate,
    avg(t.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by t.duration_ms) as p50_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms) as p95_duration_ms,
    percentile_cont(0.99) within group (order by t.duration_ms) as p99_duration_ms,
    sum(t.input_tokens)::bigint as input_tokens,
    sum(t.output_tokens)::bigint as output_tokens,
    sum(t.cost_usd) as cost_usd,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
    max(t.started_at) as last_started_at
from tracedb.trace_figures as t
-- The id is the clock, to the day; started_at is exact.
where t.trace_id >= tracedb.uuid_floor(now() - interval '8 days')
    and t.started_at >= now() - interval '7 days'
group by t.tenant_id, t.agent_id, t.route;

comment on view tracedb.agent_traces_analytics is
    'An agent and route a row, over the last 7 days: executions, nested ones too (of them '
    'request_count are not), failures, durations in milliseconds, tokens and cost. agent_id and '
    'route are null where traces name none, so that costs add up. get_analytics answers the same '
    'for any time.';

create or replace view tracedb.user_request_analytics with (security_invoker = true) as
select
    t.tenant_id,
    t.user_id,
    count(*) filter (where t.is_request) as total_requests,
    count(*) as total_executions,
    count(*) filter (where t.is_request and t.has_failed) as total_errors,
    sum(t.input_tokens)::bigint as total_input_tokens,
    sum(t.output_tokens)::bigint as total_output_tokens,
    sum(t.cost_usd) as total_cost_usd,
    count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
    percentile_cont(0.5) within group (order by t.duration_ms)
        filter (where t.is_request) as p50_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms)
        filter (where t.is_request) as p95_duration_ms,
    percentile_cont(0.99) within group (order by t.duration_ms)
        filter (where t.is_request) as p99_duration_ms,
    min(t.started_at) as first_started_at,
    max(t.started_at) as last_started_at
from tracedb.trace_figures as t
group by t.tenant_id, t.user_id;

comment on view tracedb.user_request_analytics is
    'A user a row, over all retained traces: requests (traces that are not nested), how many of '
    'them failed and how long they took in milliseconds, and the tokens and cost of these and of '
    'the nested executions that name the same user. user_id is null for traces that name none.';

create or replace function tracedb.get_analytics(
    days integer default 7,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    since constant timestamptz := as_of - days * interval '1 day';
begin
    if days is null or days not between 1 and 36500 then
        raise exception using errcode = 'TD002', message = 'days: must be from 1 to 36500';
    end if;
    return (
        with figures as (
            select
                grouping(t.agent_id) as all_agents,
                grouping(t.route) as all_routes,
                t.agent_id,
                t.route,
                count(*) filter (where t.is_request) as requests,
                count(*) filter (where t.is_request and t.has_failed) as failed_requests,
                count(*) as executions,
                count(*) filter (where t.has_failed) as errors,
                sum(t.input_tokens) as input_tokens,
                sum(t.output_tokens) as output_tokens,
                sum(t.cost_usd) as cost_usd,
                count(*) filter (where t.is_cost_unknown) as unknown_cost_count,
                percentile_cont(array[0.5, 0.95, 0.99]) within group (order by t.duration_ms)
                    as percentiles,
                percentile_cont(array[0.5, 0.95, 0.99]) within group (order by t.duration_ms)
                    filter (where t.is_request) as request_percentiles
            from tracedb.trace_figures as t
            where t.tenant_id = get_analytics.tenant_id
                -- the id is the clock, to the day; started_at is exact
                and t.trace_id >= tracedb.uuid_floor(since - interval '1 day')
                and t.trace_id < tracedb.uuid_floor(as_of + interval '1 day')
                and t.started_at >= since and t.started_at < as_of
            group by grouping sets ((), (t.agent_id), (t.route))
        ),
        shown as (
            select f.*, jsonb_build_object(
                'requests', f.requests, 'executions', f.executions, 'errors', f.errors,
                'input_tokens', f.input_tokens, 'output_tokens', f.output_tokens,
                'cost_usd', f.cost_usd, 'unknown_cost_count', f.unknown_cost_count,
                'p50_duration_ms', f.percentiles[1], 'p95_duration_ms', f.percentiles[2],
                'p99_duration_ms', f.percentiles[3]) as document
            from figures as f
        )
        select jsonb_build_object(
            'since', since, 'until', as_of,
            'total_requests', s.requests, 'total_executions', s.executions,
            'total_errors', s.failed_requests, 'total_input_tokens', s.input_tokens,
            'total_output_tokens', s.output_tokens, 'total_cost_usd', s.cost_usd,
            'unknown_cost_count', s.unknown_cost_count,
            'p50_duration_ms', s.request_percentiles[1],
            'p95_duration_ms', s.request_percentiles[2],
            'p99_duration_ms', s.request_percentiles[3],
            'by_agent', coalesce((
                select jsonb_agg(jsonb_build_object('agent_id', a.agent_id) || a.document
                    order by a.executions desc, a.agent_id)
                from shown as a where a.all_agents = 0
            ), '[]'),
            'by_route', coalesce((
                select jsonb_agg(jsonb_build_object('route', r.route) || r.document
                    order by r.executions desc, r.route)
                from shown as r where r.all_routes = 0
            ), '[]'))
        from shown as s
        where s.all_agents = 1 and s.all_routes = 1
    );
end $$;

comment on function tracedb.get_analytics(integer, timestamptz, uuid) is
    'The days before as_of as one document: {"since", "until", "total_requests", '
    '"total_executions", "total_errors", "total_input_tokens", "total_output_tokens", '
    '"total_cost_usd", "unknown_cost_count", "p50_duration_ms", "p95_duration_ms", '
    '"p99_duration_ms", "by_agent": [...], "by_route": [...]}. Requests are traces that are not '
    'nested; of them are total_errors and the percentiles. A group (its agent_id or route is null '
    'where traces name none) has requests, executions, errors, input_tokens, output_tokens, '
    'cost_usd, unknown_cost_count and percentiles, the last ones and errors of all its executions, '
    'nested ones too; requests, executions, tokens and cost of the groups add up to the totals. '
    'Money is null where none is known. Rules of money: trace_figures.';

create or replace function tracedb.get_user_analytics(
    user_id text, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
begin
    return (
        select to_jsonb(a) - 'tenant_id'
        from tracedb.user_request_analytics as a
        where a.tenant_id = get_user_analytics.tenant_id
            and a.user_id = get_user_analytics.user_id
    );
end $$;

comment on function tracedb.get_user_analytics(text, uuid) is
    'A user over all retained traces, as one document: the row of user_request_analytics. Null if '
    'no trace names the user.';

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
    policy record;
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for a new policy
    for policy in
        select
            r.role_name, r.command,
            format('trace_changes_%s_%s', substr(r.role_name, 9), r.command) as name,
            concat(
                ' using (' || r.visible || ')', ' with check (' || r.writable || ')'
            ) as conditions
        from (values
            -- role, command, rows it sees, rows it may write
            ('tracedb_owner', 'all', 'true', 'true'),
            ('tracedb_service', 'select', 'true', null),
            ('tracedb_service', 'insert', null, 'true'),
            ('tracedb_app', 'select', own_rows, null),
            ('tracedb_app', 'insert', null, own_rows),
            ('tracedb_reader', 'select', own_rows, null),
            ('tracedb_maintainer', 'select', 'true', null)
        ) as r (role_name, command, visible, writable)
    loop
        execute format('drop policy if exists %I on tracedb.trace_changes', policy.name);
        execute format('create policy %I on tracedb.trace_changes for %s to %I%s',
            policy.name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.trace_changes enable row level security;
alter table tracedb.trace_changes force row level security;

revoke all on function
    tracedb.read_trace_filter(jsonb),
    tracedb.header_matches(tracedb.execution_traces, tracedb.trace_filter),
    tracedb.trace_ids_before(tracedb.trace_filter, uuid, uuid, integer, uuid),
    tracedb.traces_with_parts(tracedb.trace_filter, uuid[], uuid),
    tracedb.find_traces(jsonb, integer, text, integer, timestamptz, uuid),
    tracedb.get_user_traces(text, integer, integer, timestamptz, timestamptz, uuid),
    tracedb.find_recent(jsonb, integer, integer, timestamptz, uuid),
    tracedb.get_traces_by_route(text, integer, integer, timestamptz, uuid),
    tracedb.get_traces_by_agent(text, integer, integer, timestamptz, uuid),
    tracedb.get_error_traces(integer, integer, timestamptz, uuid),
    tracedb.get_slow_queries(bigint, integer, integer, timestamptz, uuid),
    tracedb.get_research_triggers(integer, integer, timestamptz, uuid),
    tracedb.note_changes(uuid[], uuid),
    tracedb.changes_cursor(),
    tracedb.changes_since(text, integer, uuid),
    tracedb.get_analytics(integer, timestamptz, uuid),
    tracedb.get_user_analytics(text, uuid)
from public;
grant select, insert on tracedb.trace_changes to tracedb_service, tracedb_app;
grant select on tracedb.trace_changes to tracedb_reader, tracedb_maintainer;
grant select on
    tracedb.trace_figures,
    tracedb.agent_traces_analytics,
    tracedb.user_request_analytics
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function tracedb.note_changes(uuid[], uuid) to tracedb_service, tracedb_app;
grant execute on function
    tracedb.read_trace_filter(jsonb),
    tracedb.header_matches(tracedb.execution_traces, tracedb.trace_filter),
    tracedb.trace_ids_before(tracedb.trace_filter, uuid, uuid, integer, uuid),
    tracedb.traces_with_parts(tracedb.trace_filter, uuid[], uuid),
    tracedb.find_traces(jsonb, integer, text, integer, timestamptz, uuid),
    tracedb.get_user_traces(text, integer, integer, timestamptz, timestamptz, uuid),
    tracedb.find_recent(jsonb, integer, integer, timestamptz, uuid),
    tracedb.get_traces_by_route(text, integer, integer, timestamptz, uuid),
    tracedb.get_traces_by_agent(text, integer, integer, timestamptz, uuid),
    tracedb.get_error_traces(integer, integer, timestamptz, uuid),
    tracedb.get_slow_queries(bigint, integer, integer, timestamptz, uuid),
    tracedb.get_research_triggers(integer, integer, timestamptz, uuid),
    tracedb.changes_cursor(),
    tracedb.changes_since(text, integer, uuid),
    tracedb.get_analytics(integer, timestamptz, uuid),
    tracedb.get_user_analytics(text, uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.trace_changes');
