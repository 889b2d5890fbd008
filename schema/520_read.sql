-- 520_read.sql: one trace, whole.

set role tracedb_owner;

create or replace function tracedb.find_trace(
    external_id text, tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    key constant text := tracedb.external_key(external_id);
begin
    return coalesce(
        (
            select m.trace_id
            from tracedb.trace_ids as m
            where m.tenant_id = find_trace.tenant_id and m.external_id = key
        ),
        (
            select t.trace_id
            from tracedb.execution_traces as t
            where t.tenant_id = find_trace.tenant_id
                and t.trace_id = case when key ~ '^[0-9a-f]{32}$' then key::uuid end
        )
    );
end $$;

comment on function tracedb.find_trace(text, uuid) is
    'The trace_id of a foreign id (either spelling of a 128-bit one), or of a trace_id itself; '
    'null if there is no such trace.';

-- "create type" knows no "if not exists".
do $$
begin
    if to_regtype('tracedb.trace_node') is null then
        create type tracedb.trace_node as (
            node_type       text,
            trace_id        uuid,
            span_id         bytea,
            parent_trace_id uuid,
            parent_span_id  bytea,
            name            text,
            status          text,
            started_at      timestamptz,
            ended_at        timestamptz,
            agent_id        text,
            model           text,
            input_tokens    bigint,
            output_tokens   bigint,
            cost_usd        numeric,
            error           text
        );
    end if;
    if to_regtype('tracedb.tree_node') is null then
        create type tracedb.tree_node as (
            node_no          integer,
            parent_no        integer,
            depth            integer,
            node_type        text,
            trace_id         uuid,
            span_id          text,
            name             text,
            status           text,
            started_at       timestamptz,
            ended_at         timestamptz,
            duration_us      bigint,
            self_us          bigint,
            on_critical_path boolean,
            is_orphan        boolean,
            agent_id         text,
            model            text,
            input_tokens     bigint,
            output_tokens    bigint,
            cost_usd         numeric,
            error            text
        );
    end if;
end $$;

comment on type tracedb.trace_node is
    'A node of a trace''s tree before it has its place: a trace (no span_id) or a part of one.';
comment on type tracedb.tree_node is
    'A node in its place: numbered depth first from 1, with its parent''s number and its depth. '
    'Durations are in microseconds, span_id is 16 hex digits (null for a trace).';

create or replace function tracedb.nested_traces(
    parent_ids uuid[], root_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- It may read every partition since the root's; planned anew for each id, that takes longer than
-- the reading.
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    -- Nested executions are not older than the root, but for the day ids and clocks may differ.
    oldest constant uuid := tracedb.uuid_floor(
        greatest(tracedb.uuid_time(root_id) - interval '1 day', timestamptz 'epoch'));
begin
    return array(
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = nested_traces.tenant_id
            and t.parent_trace_id = any(parent_ids)
            and t.trace_id >= oldest
        order by t.trace_id
    );
end $$;

comment on function tracedb.nested_traces(uuid[], uuid, uuid) is
    'The executions that the given ones, all of the tree of root_id, started directly. Internal.';

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
    from tracedb.priced_spans as s
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

comment on function tracedb.trace_nodes(uuid, uuid) is
    'The nodes of a trace''s tree in no order: the trace, its nested executions and all their '
    'parts. Internal: trace_tree gives them their places.';

create or replace function tracedb.critical_path(
    parents integer[], starts timestamptz[], ends timestamptz[]
)
returns boolean[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    on_path boolean[] := array_fill(false, array[cardinality(parents)]);
    -- The children of a node as a list, the one that ended last first.
    last_child integer[] := array_fill(null::integer, array[cardinality(parents)]);
    earlier_sibling integer[] := last_child;
    -- Still to be followed: nodes, and the time up to which each decided.
    stack integer[] := array[1];
    limits timestamptz[] := array[ends[1]];
    height integer := 1;
    node integer;
    child integer;
    cursor_at timestamptz;
    child_end timestamptz;
begin
    for node in
        select n.no from unnest(starts, ends) with ordinality as n (start_at, end_at, no)
        where n.no > 1
        order by n.end_at, n.start_at, n.no desc
    loop
        earlier_sibling[node] := last_child[parents[node]];
        last_child[parents[node]] := node;
    end loop;

    -- From the end backwards: the child that ended last held its parent up, and before it began,
    -- the one that had ended by then.
    while height > 0 loop
        node := stack[height];
        cursor_at := limits[height];
        height := height - 1;
        on_path[node] := true;
        child := last_child[node];
        -- A child may outlive its parent; what it did after that decided nothing.
        child_end := cursor_at;
        while child is not null loop
            child_end := least(ends[child], child_end);
            if child_end <= cursor_at and starts[child] < cursor_at then
                height := height + 1;
                stack[height] := child;
                limits[height] := child_end;
                cursor_at := starts[child];
            end if;
            child := earlier_sibling[child];
        end loop;
    end loop;
    return on_path;
end $$;

comment on function tracedb.critical_path(integer[], timestamptz[], timestamptz[]) is
    'Which nodes of a tree decided how long it took: those that could not have been slower without '
    'delaying the end of node 1. parents[n] is the number of n''s parent, null for node 1. '
    'Internal.';

create or replace function tracedb.trace_tree(
    trace_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns setof tracedb.tree_node
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    root_id constant uuid := tracedb.find_trace(trace_id::text, tenant_id);
    -- By start time, the root first. Every array below is indexed like this one.
    nodes tracedb.trace_node[];
    parents integer[];
    orphans boolean[];
    starts timestamptz[];
    ends timestamptz[];
    size integer;
    walked integer[];
    first_child integer[];
    next_sibling integer[];
    depths integer[];
    places integer[];
    self_times interval[];
    covered timestamptz;
    node integer;
    child integer;
    place integer := 0;
begin
    select array_agg(n order by
        n.trace_id = root_id and n.span_id is null desc,
        n.started_at, n.span_id is not null, n.trace_id, n.span_id, n.node_type)
    into nodes
    from tracedb.trace_nodes(root_id, trace_tree.tenant_id) as n;
    size := cardinality(nodes);
    if size is null then
        return;
    end if;

    -- The parent is the span a node names; else the trace it is a part of or nested in. Who names
    -- a span that is not there (yet) is an orphan. What still runs ends, for now, with the last
    -- event of the tree.
    with placed as (
        select
            u.trace_id, u.span_id, u.parent_trace_id, u.parent_span_id, u.started_at, u.ended_at,
            u.no::integer as no
        from unnest(nodes) with ordinality as u (
            node_type, trace_id, span_id, parent_trace_id, parent_span_id, name, status,
            started_at, ended_at, agent_id, model, input_tokens, output_tokens, cost_usd, error, no
        )
    ),
    spans as (
        select p.trace_id, p.span_id, min(p.no) as no
        from placed as p where p.span_id is not null group by 1, 2
    ),
    traces as (
        select p.trace_id, p.no from placed as p where p.span_id is null
    )
    select
        array_agg(case when p.no > 1 then coalesce(s.no, t.no, 1) end order by p.no),
        array_agg(p.no > 1 and p.parent_span_id is not null and s.no is null order by p.no),
        array_agg(p.started_at order by p.no),
        array_agg(coalesce(p.ended_at, (
            select greatest(max(l.started_at), max(l.ended_at)) from placed as l
        )) order by p.no)
    into parents, orphans, starts, ends
    from placed as p
    left join spans as s
        on s.trace_id = p.parent_trace_id and s.span_id = p.parent_span_id and s.no <> p.no
    left join traces as t on t.trace_id = p.parent_trace_id and t.no <> p.no;

    -- Spans that name each other in a circle hang from nothing: cut it where the walk closes it.
    walked := array_fill(0, array[size]);
    walked[1] := 1;
    for node in 2..size loop
        child := node;
        while walked[child] = 0 loop
            walked[child] := node;
            child := parents[child];
            if walked[child] = node then
                parents[child] := 1;
                orphans[child] := true;
            end if;
        end loop;
    end loop;

    first_child := array_fill(null::integer, array[size]);
    next_sibling := first_child;
    for node in reverse size..2 loop
        next_sibling[node] := first_child[parents[node]];
        first_child[parents[node]] := node;
    end loop;

    -- Self time: what no child covers. Children are in order of their start.
    self_times := array_fill(null::interval, array[size]);
    for node in 1..size loop
        self_times[node] := ends[node] - starts[node];
        covered := starts[node];
        child := first_child[node];
        while child is not null loop
            if least(ends[child], ends[node]) > greatest(starts[child], covered) then
                self_times[node] := self_times[node]
                    - (least(ends[child], ends[node]) - greatest(starts[child], covered));
                covered := least(ends[child], ends[node]);
            end if;
            child := next_sibling[child];
        end loop;
    end loop;

    -- Depth first, parents before children.
    places := array_fill(0, array[size]);
    depths := places;
    node := 1;
    while node is not null loop
        place := place + 1;
        places[node] := place;
        child := first_child[node];
        if child is not null then
            depths[child] := depths[node] + 1;
            node := child;
        else
            while node is not null and next_sibling[node] is null loop
                node := parents[node];
            end loop;
            if node is not null then
                depths[next_sibling[node]] := depths[node];
                node := next_sibling[node];
            end if;
        end if;
    end loop;

    return query
    select
        places[u.no], places[parents[u.no]], depths[u.no],
        u.node_type, u.trace_id, encode(u.span_id, 'hex'), u.name, u.status,
        u.started_at, u.ended_at,
        (extract(epoch from u.ended_at - u.started_at) * 1000000)::bigint,
        case when u.ended_at is not null then
            (extract(epoch from self_times[u.no]) * 1000000)::bigint
        end,
        c.on_path[u.no], orphans[u.no],
        u.agent_id, u.model, u.input_tokens, u.output_tokens, u.cost_usd, u.error
    from unnest(nodes) with ordinality as u (
        node_type, trace_id, span_id, parent_trace_id, parent_span_id, name, status, started_at,
        ended_at, agent_id, model, input_tokens, output_tokens, cost_usd, error, no
    )
    cross join (select tracedb.critical_path(parents, starts, ends) as on_path) as c
    order by places[u.no];
end $$;

comment on function tracedb.trace_tree(uuid, uuid) is
    'The whole trace as one tree, depth first: the trace, its routing decisions, hooks, endpoint '
    'calls and spans, and its nested executions with theirs. node_type is trace, routing_decision, '
    'hook, endpoint_call or a span''s operation type; self_us is the part of the duration that no '
    'child covers; on_critical_path marks the nodes that decided how long the whole took; an '
    'orphan names a parent span that is not there. Empty if there is no such trace; a foreign UUID '
    'will do as trace_id.';

create or replace function tracedb.part_document(part_row jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_strip_nulls(part_row - array['tenant_id', 'provisional'])
        || coalesce((
            select jsonb_object_agg(f.key, case f.key
                -- bytea and vector are text in jsonb: "\x..." and "[...]"
                when 'request_embedding' then (f.value #>> '{}')::jsonb
                else to_jsonb(substr(f.value #>> '{}', 3))
            end)
            from jsonb_each(part_row) as f
            where f.key in ('span_id', 'parent_span_id', 'hook_span_id', 'request_embedding')
                and f.value <> 'null'
        ), '{}')
        -- documents are the recorder's own; nulls inside them stay
        || coalesce((
            select jsonb_object_agg(f.key, f.value)
            from jsonb_each(part_row) as f
            where jsonb_typeof(f.value) in ('object', 'array') and f.key <> 'provisional'
        ), '{}')
$$;

comment on function tracedb.part_document(jsonb) is
    'A row (as jsonb) as get_trace shows it: without the tenant and without columns that are null, '
    'span ids as 16 hex digits. Internal.';

create or replace function tracedb.get_trace(
    trace_id uuid, tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    id constant uuid := tracedb.find_trace(trace_id::text, tenant);
begin
    return (
        select jsonb_build_object(
            'trace', tracedb.part_document(to_jsonb(t)),
            'nested_trace_ids', to_jsonb(tracedb.nested_traces(array[id], id, tenant)),
            'routing_decisions', coalesce((
                select jsonb_agg(tracedb.part_document(to_jsonb(p))
                    order by p.started_at, p.span_id)
                from tracedb.agent_routing_decisions as p
                where p.tenant_id = tenant and p.trace_id = id
            ), '[]'),
            'hooks', coalesce((
                select jsonb_agg(tracedb.part_document(to_jsonb(p))
                    order by p.started_at, p.span_id)
                from tracedb.hook_executions as p
                where p.tenant_id = tenant and p.trace_id = id
            ), '[]'),
            'endpoint_calls', coalesce((
                select jsonb_agg(tracedb.part_document(to_jsonb(p))
                    order by p.started_at, p.span_id)
                from tracedb.endpoint_calls as p
                where p.tenant_id = tenant and p.trace_id = id
            ), '[]'),
            'spans', coalesce((
                select jsonb_agg(tracedb.part_document(to_jsonb(p))
                    order by p.started_at, p.span_id)
                from tracedb.llm_spans as p
                where p.tenant_id = tenant and p.trace_id = id
            ), '[]'),
            'payloads', coalesce((
                select jsonb_agg(tracedb.part_document(to_jsonb(p))
                    || case when p.span_id = '\x0000000000000000'
                        then '{"span_id": null}'::jsonb else '{}' end
                    order by p.recorded_at, p.span_id, p.kind)
                from tracedb.trace_payloads as p
                where p.tenant_id = tenant and p.trace_id = id
            ), '[]')
        )
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = id
    );
end $$;

comment on function tracedb.get_trace(uuid, uuid) is
    'The assembled trace as one document: {"trace", "nested_trace_ids", "routing_decisions", '
    '"hooks", "endpoint_calls", "spans", "payloads"}, parts by start time, columns that are null '
    'left out. Null if there is no such trace; a foreign UUID will do as trace_id.';

reset role;
