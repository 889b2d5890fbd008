-- 508_tombstones.sql: records of those who were erased stay out.

set role tracedb_owner;

-- No "set" clause: it would keep this from being inlined, and there are several a record.
create or replace function tracedb.tombstone(kind text, key text, tenant_id uuid)
returns bytea
language sql immutable parallel safe
as $$
    select pg_catalog.sha256(pg_catalog.convert_to(
        tenant_id::pg_catalog.text operator(pg_catalog.||) '/' operator(pg_catalog.||) kind
            operator(pg_catalog.||) '/' operator(pg_catalog.||) key,
        'UTF8'))
$$;

comment on function tracedb.tombstone(text, text, uuid) is
    'What is kept of an erased user (kind user), tenant (key: empty) or foreign trace id (kind '
    'trace): SHA-256 over the tenant, the kind and the key. Null for a null.';

create or replace function tracedb.is_before(record_time text, moment timestamptz)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
begin
    return coalesce(record_time::timestamptz < moment, true);
exception
    when data_exception then return true;
end $$;

comment on function tracedb.is_before(text, timestamptz) is
    'Whether a record is of a time before that moment; one without a readable time is. Internal.';

create or replace function tracedb.readable_record(record text)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    answer jsonb := '{}';
    field text;
begin
    return replace(record, '\u0000', '')::jsonb;
exception
    when data_exception or program_limit_exceeded then
        -- What says whose it is can be read even so.
        foreach field in array array[
            'type', 'user_id', 'trace_id', 'external_id', 'parent_trace_id', 'root_trace_id',
            'started_at', 'occurred_at', 'recorded_at'
        ] loop
            begin
                answer := answer || jsonb_strip_nulls(jsonb_build_object(field, ('"' || replace(
                    (regexp_match(record, format('"%s"\s*:\s*"((?:[^"\\]|\\.)*)"', field)))[1],
                    '\u0000', '') || '"')::jsonb));
            exception
                when data_exception then null;
            end;
        end loop;
        return answer;
end $$;

comment on function tracedb.readable_record(text) is
    'A record, given as JSON, as far as it can be read: of what the server cannot take as jsonb '
    'the fields that say whose it is. Internal.';

create or replace function tracedb.without_erased(records jsonb[], tenant_id uuid)
returns jsonb[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    kept jsonb[] := records;
    headers jsonb[];
    erasure_ids uuid[];
    marked uuid[];
    all_marked uuid[] := '{}';
begin
    -- A header that is refused makes its trace an erased one, with all that names it: other
    -- records of this batch, others to come, and parts that came before it.
    loop
        select
            array_agg(f.item order by f.place) filter (where f.erasure_id is null),
            array_agg(f.item order by f.place) filter (where f.is_header),
            array_agg(f.erasure_id order by f.place) filter (where f.is_header)
        into kept, headers, erasure_ids
        from (
            select
                n.item, n.place, e.erasure_id,
                e.erasure_id is not null and n.item ->> 'type' = 'trace' as is_header
            from (
                select
                    r as item, place,
                    coalesce(r ->> 'started_at', r ->> 'occurred_at', r ->> 'recorded_at') as at,
                    array(
                        select tracedb.external_key(k)
                        from unnest(array[
                            r ->> 'trace_id', r ->> 'external_id', r ->> 'parent_trace_id',
                            r ->> 'root_trace_id'
                        ]) as k
                        where k is not null
                    ) as keys
                from unnest(kept) with ordinality as u (r, place)
            ) as n
            cross join lateral (
                select coalesce(
                    (
                        select e.erasure_id
                        from tracedb.erased_keys as e
                        where e.tenant_id = tenant
                            and e.key_hash = any(array[
                                tracedb.tombstone('tenant', '', tenant),
                                tracedb.tombstone('user', n.item ->> 'user_id', tenant)
                            ] || array(
                                select tracedb.tombstone('trace', k, tenant)
                                from unnest(n.keys) as k
                            ))
                            and (e.kind = 'trace' or tracedb.is_before(n.at, e.erased_at))
                        limit 1
                    ), (
                        select t.erasure_id
                        from tracedb.erased_traces as t
                        where t.tenant_id = tenant and t.trace_id = any(array(
                            select k::uuid from unnest(n.keys) as k where k ~ '^[0-9a-f]{32}$'
                        ))
                        limit 1
                    )
                ) as erasure_id
            ) as e
        ) as f;
        exit when headers is null;

        with named as (
            select distinct on (key) tracedb.external_key(k) as key, h.erasure_id
            from unnest(headers, erasure_ids) as h (item, erasure_id)
            cross join lateral unnest(array[
                h.item ->> 'trace_id', h.item ->> 'external_id'
            ]) as k
            where k is not null
            order by key, erasure_id
        ),
        keys as (
            insert into tracedb.erased_keys (tenant_id, key_hash, kind, erasure_id, erased_at)
            select tenant, tracedb.tombstone('trace', n.key, tenant), 'trace', n.erasure_id, now()
            from named as n
            order by 2
            on conflict do nothing
        ),
        traces as (
            insert into tracedb.erased_traces (tenant_id, trace_id, erasure_id)
            select tenant, i.trace_id, min(i.erasure_id::text)::uuid
            from (
                select m.trace_id, n.erasure_id
                from named as n
                join tracedb.trace_ids as m on m.tenant_id = tenant and m.external_id = n.key
                union all
                select n.key::uuid, n.erasure_id
                from named as n
                where n.key ~ '^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$'
            ) as i
            group by i.trace_id
            order by i.trace_id
            on conflict do nothing
            returning trace_id
        )
        select array_agg(t.trace_id) into marked from traces as t;
        all_marked := all_marked || marked;
    end loop;
    if cardinality(all_marked) > 0 then
        perform tracedb.purge_refused(all_marked, tenant);
    end if;
    return coalesce(kept, '{}');
end $$;

comment on function tracedb.without_erased(jsonb[], uuid) is
    'The records of a batch that are not of an erased user, tenant or trace. A trace whose own '
    'record is refused becomes an erased one: parts of it that came before are deleted. Internal.';

create or replace function tracedb.names_erased(
    trace_keys text[],
    traces tracedb.execution_traces[],
    stubs tracedb.execution_traces[],
    platform_events tracedb.platform_events[],
    cost_events tracedb.tenant_cost_events[],
    agent_executions tracedb.agent_executions[],
    tenant_id uuid
)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
begin
    return exists (
        select from unnest(trace_keys) as k
        join tracedb.erased_traces as t on t.tenant_id = tenant and t.trace_id = k::uuid
    ) or exists (
        with given as (
            select r.user_id, r.started_at as at from unnest(traces || stubs) as r
            union all
            select r.user_id, r.occurred_at from unnest(platform_events) as r
            union all
            select r.user_id, r.occurred_at from unnest(cost_events) as r
            union all
            select r.user_id, r.occurred_at from unnest(agent_executions) as r
        )
        select from (
            select tracedb.tombstone('tenant', '', tenant) as key_hash, min(g.at) as at
            from given as g
            union all
            select tracedb.tombstone('user', g.user_id, tenant), min(g.at)
            from given as g
            group by g.user_id
            union all
            select tracedb.tombstone('trace', k, tenant), null from unnest(trace_keys) as k
            union all
            select tracedb.tombstone('trace', r.external_id, tenant), null
            from unnest(traces) as r
        ) as i
        join tracedb.erased_keys as e on e.tenant_id = tenant and e.key_hash = i.key_hash
        where e.kind = 'trace' or i.at < e.erased_at
    );
end $$;

comment on function tracedb.names_erased(
    text[], tracedb.execution_traces[], tracedb.execution_traces[], tracedb.platform_events[],
    tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid
) is
    'Whether a batch of store_rows may have anything of an erased user, tenant or trace: then it '
    'is for ingest to sort out. Internal.';

reset role;
