-- 526_named_queries.sql: the searches asked most, by name.

set role tracedb_owner;

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

reset role;
