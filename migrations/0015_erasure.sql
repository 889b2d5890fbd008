-- 0015_erasure.sql: erasing a user or a tenant, and keeping them out.
--
-- depends: 0014_retention

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create table if not exists tracedb.erasures (
    tenant_id    uuid        not null,
    erasure_id   uuid        not null default tracedb.new_id(),
    kind         text        not null,
    subject_hash bytea       not null,
    requested_by text        not null default session_user,
    begun_at     timestamptz not null default now(),
    -- Null: not finished; erase_step goes on with it.
    finished_at  timestamptz,
    phase        text        not null,
    -- Where the phase is; null: at its beginning.
    position     text,
    -- Null: nothing is waited for yet.
    horizon      xid8,
    counts       jsonb       not null default '{}',
    elsewhere    jsonb       not null default '{}',
    files        text[]      not null default '{}',
    constraint erasures_pkey primary key (tenant_id, erasure_id),
    constraint erasure_kind_known check (kind in ('user', 'tenant')),
    constraint erasure_phase_known
        check (phase in ('collect', 'settle', 'rows', 'traces', 'done')),
    constraint erasure_ends_when_done check ((phase = 'done') = (finished_at is not null)),
    constraint erasure_counts_are_objects
        check (jsonb_typeof(counts) = 'object' and jsonb_typeof(elsewhere) = 'object')
);

comment on table tracedb.erasures is
    'The receipts of erasures, and how far each has come. Kept when a tenant is erased, too.';
comment on column tracedb.erasures.kind is
    'user, or tenant: all of it.';
comment on column tracedb.erasures.subject_hash is
    'The tombstone of the user (or tenant); the id itself is not kept.';
comment on column tracedb.erasures.phase is
    'collect (find the traces), settle (wait for what was being written), rows (what is no part '
    'of a trace, or all of a tenant), traces, done.';
comment on column tracedb.erasures.horizon is
    'Transactions before this one may not have seen the tombstones: what they wrote is looked for '
    'when they have ended.';
comment on column tracedb.erasures.counts is
    'Rows that were deleted, or made nobody''s, by table.';
comment on column tracedb.erasures.elsewhere is
    'What was done outside the database: {"spool": {...}, "archives": {...}}, counts by name.';
comment on column tracedb.erasures.files is
    'Files of archives that were written anew and are yet to be deleted.';
comment on constraint erasure_kind_known on tracedb.erasures is
    'kind: must be user or tenant';
comment on constraint erasure_phase_known on tracedb.erasures is
    'phase: must be collect, settle, rows, traces or done';
comment on constraint erasure_ends_when_done on tracedb.erasures is
    'finished_at: of an erasure that is done, and of no other';
comment on constraint erasure_counts_are_objects on tracedb.erasures is
    'counts, elsewhere: must be objects';

create table if not exists tracedb.erased_keys (
    tenant_id  uuid        not null,
    key_hash   bytea       not null,
    kind       text        not null,
    erasure_id uuid        not null,
    erased_at  timestamptz not null,
    constraint erased_keys_pkey primary key (tenant_id, key_hash),
    constraint erased_key_kind_known check (kind in ('user', 'tenant', 'trace'))
);

comment on table tracedb.erased_keys is
    'Tombstones: hashes (tombstone) of users and tenants, whose records of a time before erased_at '
    'are refused, and of foreign ids of erased traces, which are refused for ever.';
comment on constraint erased_key_kind_known on tracedb.erased_keys is
    'kind: must be user, tenant or trace';

create table if not exists tracedb.erased_traces (
    tenant_id  uuid    not null,
    trace_id   uuid    not null,
    erasure_id uuid    not null,
    pending    boolean not null default true,
    constraint erased_traces_pkey primary key (tenant_id, trace_id)
);

comment on table tracedb.erased_traces is
    'Tombstones of traces: whatever names one of them is refused. There is none without a row in '
    'erased_keys.';
comment on column tracedb.erased_traces.pending is
    'Whether its rows are yet to be deleted.';

-- The rule becomes wider, so nobody misses the old one; totals are few, and checked in no time.
-- squawk-ignore ban-drop-constraint
alter table tracedb.usage_rollups drop constraint if exists rollup_width_known;
-- squawk-ignore constraint-missing-not-valid
alter table tracedb.usage_rollups add constraint rollup_width_known
    check (width in ('hour', 'day', 'erased'));
comment on column tracedb.usage_rollups.width is
    'hour or day; or erased: what of an hour was of traces that were erased, so that totals can '
    'still be compared with traces (usage_differences).';
comment on constraint rollup_width_known on tracedb.usage_rollups is
    'width: must be hour, day or erased';

comment on column tracedb.ingest_writers.stored is
    'Records in the tables, without those requeued from the dead letters, and with those that an '
    'erasure took out again, or kept out.';

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

create or replace function tracedb.add_counts(one jsonb, other jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(k, coalesce((one ->> k)::bigint, 0)
        + coalesce((other ->> k)::bigint, 0)) , '{}')
    from jsonb_object_keys(one || other) as k
    where coalesce((one ->> k)::bigint, 0) + coalesce((other ->> k)::bigint, 0) > 0
$$;

comment on function tracedb.add_counts(jsonb, jsonb) is
    'Counts by name, added up; without those that are 0. Internal.';

create or replace function tracedb.erase_traces(
    trace_ids uuid[], erasure_id uuid, tenant_id uuid
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    ids uuid[];
    adds tracedb.usage_contributions[];
    difference tracedb.usage_contributions[];
    by_day tracedb.usage_contributions[] := '{}';
    line tracedb.usage_contributions;
    spec record;
    gone bigint;
    counts jsonb;
begin
    -- As fold_usage does: nobody else writes the tenant's totals meanwhile.
    perform pg_advisory_xact_lock(hashtextextended('tracedb.fold/' || tenant, 0));
    -- A tree goes whole, since what a trace adds to a total depends on those above it.
    ids := tracedb.with_nested(trace_ids, tenant);
    insert into tracedb.erased_traces as e (tenant_id, trace_id, erasure_id, pending)
    select tenant, i, erase_traces.erasure_id, false from unnest(ids) as i
    on conflict (tenant_id, trace_id) do update set pending = false;

    -- The totals get all these traces have to add, and keep it: fold_usage will find neither
    -- them nor what they added before.
    adds := array(select u from tracedb.usage_of_traces(ids, '{(,)}', tenant) as u);
    with taken as (
        delete from tracedb.usage_contributions as c
        where c.tenant_id = tenant and c.trace_id = any(ids)
            and c.trace_id between ids[1] and ids[cardinality(ids)]
        returning c
    )
    select array_agg(a) into difference
    from tracedb.added_usage(adds || array(
        select tracedb.negated_usage(t.c) from taken as t
    )) as a
    where a is distinct from tracedb.negated_usage(a);
    foreach line in array coalesce(difference, '{}') loop
        line.starts_at := date_trunc('day', line.starts_at);
        by_day := by_day || line;
    end loop;
    if difference is not null then
        perform tracedb.add_to_rollups('hour', difference, tenant);
        perform tracedb.add_to_rollups('day', by_day, tenant);
    end if;
    if cardinality(adds) > 0 then
        perform tracedb.add_to_rollups('erased', array(
            select a from tracedb.added_usage(adds) as a
        ), tenant);
    end if;

    counts := tracedb.erase_learned(ids, tenant);
    for spec in
        select s.table_name, s.trace_column
        from tracedb.subject_tables() as s
        where s.deed = 'traces' and s.table_name <> 'usage_contributions'
    loop
        execute format(
            'delete from tracedb.%1$I as t where t.tenant_id = $1 and t.%2$I = any($2) '
            'and t.%2$I between $3 and $4',
            spec.table_name, spec.trace_column)
        using tenant, ids, ids[1], ids[cardinality(ids)];
        get diagnostics gone = row_count;
        counts := counts || jsonb_build_object(spec.table_name, gone);
    end loop;
    counts := tracedb.add_counts(counts, '{}');
    if counts <> '{}' then
        perform tracedb.note_changes(ids, tenant);
    end if;
    return counts;
end $$;

comment on function tracedb.erase_traces(uuid[], uuid, uuid) is
    'Deletes traces, all that is nested in them and all their parts; totals keep what they added. '
    'Returns how many rows by table. Internal.';

create or replace function tracedb.purge_refused(trace_ids uuid[], tenant_id uuid)
returns void
language plpgsql volatile
security definer  -- ingest may not delete; only what has a tombstone and no header goes
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    erasure record;
    counts jsonb;
begin
    if not tracedb.may_see(purge_refused.tenant_id) then
        return;
    end if;
    for erasure in
        select e.erasure_id, array_agg(e.trace_id order by e.trace_id) as ids
        from tracedb.erased_traces as e
        where e.tenant_id = purge_refused.tenant_id and e.trace_id = any(trace_ids)
            and not exists (
                select from tracedb.execution_traces as t
                where t.tenant_id = e.tenant_id and t.trace_id = e.trace_id
                    and coalesce(t.provisional ->> 'status', '2') <> '0'
            )
        group by e.erasure_id
        order by e.erasure_id
    loop
        delete from tracedb.trace_ids as m
        using tracedb.execution_traces as t
        where t.tenant_id = purge_refused.tenant_id and t.trace_id = any(erasure.ids)
            and m.tenant_id = t.tenant_id and m.external_id = t.external_id
            and m.trace_id = t.trace_id;
        counts := tracedb.erase_traces(erasure.ids, erasure.erasure_id, tenant_id);
        -- Events that name these traces are not looked for here: the next erasure does.
        update tracedb.erased_traces as e set pending = true
        where e.tenant_id = purge_refused.tenant_id and e.trace_id = any(erasure.ids);
        continue when counts = '{}';
        update tracedb.erasures as r set counts = tracedb.add_counts(r.counts, counts)
        where r.tenant_id = purge_refused.tenant_id and r.erasure_id = erasure.erasure_id;
    end loop;
end $$;

comment on function tracedb.purge_refused(uuid[], uuid) is
    'Deletes what came of traces before their own record, which was refused: parts, nested traces '
    'and foreign ids. Internal.';

create or replace function tracedb.erase_costs(
    user_id text, trace_ids uuid[], first_id uuid, last_id uuid, tenant_id uuid
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    erased bigint;
begin
    with found as (
        select e.event_id, e.user_id = erase_costs.user_id as is_theirs, (
            select f.cost_usd is not null or not f.is_cost_unknown
            from tracedb.trace_figures as f
            where f.tenant_id = e.tenant_id and f.trace_id = e.trace_id
                and e.cost_type in ('llm', 'embedding')
            limit 1
        ) as is_known
        from tracedb.tenant_cost_events as e
        where e.tenant_id = erase_costs.tenant_id
            and e.event_id > first_id and e.event_id <= last_id
            and (e.user_id = erase_costs.user_id or e.trace_id = any(trace_ids))
    ),
    gone as (
        delete from tracedb.tenant_cost_events as e
        using found as f
        where e.tenant_id = erase_costs.tenant_id and e.event_id = f.event_id and f.is_known
        returning 1
    ),
    blank as (
        update tracedb.tenant_cost_events as e set
            user_id = case when f.is_theirs then null else e.user_id end,
            event_key = null, session_id = null, trace_id = null, metadata = '{}',
            updated_at = now()
        from found as f
        where e.tenant_id = erase_costs.tenant_id and e.event_id = f.event_id
            and f.is_known is not true
        returning 1
    )
    select (select count(*) from gone) + (select count(*) from blank) into erased;
    return erased;
end $$;

comment on function tracedb.erase_costs(text, uuid[], uuid, uuid, uuid) is
    'Takes a user, and what else could tell of one, out of cost events between two ids. The amount '
    'stays, unless it is in a trace''s (cost_entries), whose total keeps it. Internal.';

create or replace function tracedb.erase_reservations(trace_ids uuid[], tenant_id uuid)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    erased bigint;
begin
    perform tracedb.lock_budgets(tenant_id);
    with found as (
        select r.reservation_id, r.status = 'settled' and (
            select f.cost_usd is not null or not f.is_cost_unknown
            from tracedb.trace_figures as f
            where f.tenant_id = r.tenant_id and f.trace_id = r.trace_id
            limit 1
        ) as is_known
        from tracedb.budget_reservations as r
        where r.tenant_id = erase_reservations.tenant_id and r.trace_id = any(trace_ids)
    ),
    gone as (
        delete from tracedb.budget_reservations as r
        using found as f
        where r.tenant_id = erase_reservations.tenant_id
            and r.reservation_id = f.reservation_id and f.is_known
        returning 1
    ),
    blank as (
        update tracedb.budget_reservations as r set trace_id = null, updated_at = now()
        from found as f
        where r.tenant_id = erase_reservations.tenant_id
            and r.reservation_id = f.reservation_id and f.is_known is not true
        returning 1
    )
    select (select count(*) from gone) + (select count(*) from blank) into erased;
    return erased;
end $$;

comment on function tracedb.erase_reservations(uuid[], uuid) is
    'Takes the traces out of reservations: money that was settled counts on, unless it is in the '
    'trace''s total (spent_since). Internal.';

create or replace function tracedb.begin_erasure(
    user_id text default null, despite_hold boolean default false,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns uuid
language plpgsql volatile
security definer  -- tombstones and receipts are nobody's to write
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    wanted constant text := case when user_id is null then 'tenant' else 'user' end;
    hash constant bytea := tracedb.tombstone(wanted, coalesce(user_id, ''), tenant_id);
    id uuid;
begin
    if tenant is null then
        raise exception using errcode = 'TD001', message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    if user_id = '' then
        raise exception using errcode = 'TD002', message = 'user_id: must not be empty';
    end if;
    if not despite_hold and exists (
        select from tracedb.retention_policies as p
        where p.hold_reason is not null and (p.tenant_id is null or p.tenant_id = tenant)
    ) then
        raise exception using errcode = 'TD002', message = 'tenant_id: its rows are held',
            hint = 'Release the hold (set_legal_hold), or say despite_hold.';
    end if;
    -- Two who ask at once are given the same erasure.
    perform pg_advisory_xact_lock(hashtextextended('tracedb.erasure/' || tenant, 0));
    select e.erasure_id into id
    from tracedb.erasures as e
    where e.tenant_id = tenant and e.subject_hash = hash and e.finished_at is null;
    if id is null then
        insert into tracedb.erasures (tenant_id, kind, subject_hash, phase)
        values (tenant, wanted, hash, case wanted when 'user' then 'collect' else 'settle' end)
        returning erasure_id into id;
        -- What came back of the user's, by an event that named no user, is looked for again.
        update tracedb.erased_traces as t set erasure_id = id
        from tracedb.erased_keys as k
        where k.tenant_id = tenant and k.key_hash = hash
            and t.tenant_id = tenant and t.erasure_id = k.erasure_id and t.pending;
        insert into tracedb.erased_keys as k (tenant_id, key_hash, kind, erasure_id, erased_at)
        values (tenant, hash, wanted, id, now())
        on conflict (tenant_id, key_hash) do update set
            erasure_id = excluded.erasure_id, erased_at = excluded.erased_at;
    end if;
    return id;
end $$;

comment on function tracedb.begin_erasure(text, boolean, uuid) is
    'Begins to erase a user (null: the whole tenant), or finds the erasure that is not finished; '
    'returns its id. Refuses while a legal hold (set_legal_hold) is on any table of the tenant, '
    'unless told otherwise. Once this is committed, records of the user of a time before it are '
    'refused. Go on with erase_step until it says done.';

create or replace function tracedb.collect_erased(
    trace_ids uuid[], erasure_id uuid, tenant_id uuid
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    added bigint;
begin
    with traces as (
        insert into tracedb.erased_traces (tenant_id, trace_id, erasure_id)
        select collect_erased.tenant_id, i, collect_erased.erasure_id
        from unnest(tracedb.with_nested(trace_ids, tenant_id)) as i
        on conflict do nothing
        returning trace_id
    )
    select count(*) into added from traces;
    return added;
end $$;

comment on function tracedb.collect_erased(uuid[], uuid, uuid) is
    'Gives traces, and those nested in them, their tombstones; how many had none. Internal.';

create or replace function tracedb.erase_foreign_ids(erasure_id uuid, tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    insert into tracedb.erased_keys (tenant_id, key_hash, kind, erasure_id, erased_at)
    select
        m.tenant_id, tracedb.tombstone('trace', m.external_id, m.tenant_id), 'trace',
        e.erasure_id, now()
    from tracedb.trace_ids as m
    join tracedb.erased_traces as e on e.tenant_id = m.tenant_id and e.trace_id = m.trace_id
    where m.tenant_id = erase_foreign_ids.tenant_id
        and e.erasure_id = erase_foreign_ids.erasure_id
    order by 2
    on conflict do nothing;
end $$;

comment on function tracedb.erase_foreign_ids(uuid, uuid) is
    'Gives the foreign ids of an erasure''s traces their tombstones. Internal.';

create or replace function tracedb.erase_user_rows(
    erasure tracedb.erasures, user_id text, max_rows integer,
    out erased jsonb, out next_position text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    tenant constant uuid := erasure.tenant_id;
    at_table constant text := split_part(erasure.position, '/', 1);
    lowest constant uuid := '00000000-0000-0000-0000-000000000000';
    highest constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    first_id constant uuid := coalesce(
        nullif(split_part(erasure.position, '/', 2), '')::uuid, lowest);
    last_id uuid;
    spec record;
    trace_ids constant uuid[] := array(
        select t.trace_id
        from tracedb.erased_traces as t
        where t.tenant_id = tenant and t.erasure_id = erasure.erasure_id and t.pending
    );
    condition text;
    gone bigint;
begin
    -- A table once through, by its key where it is large.
    select s.*, tracedb.partition_key(s.table_name) as key into spec
    from tracedb.subject_tables() as s
    where s.deed in ('rows', 'money')
        and (erasure.position is null or s.table_name > at_table
            or s.table_name = at_table and first_id > lowest)
    order by s.table_name
    limit 1;
    if spec is null then
        return;
    end if;
    if spec.key = 'event_id' then
        execute format(
            'select t.event_id from tracedb.%I as t '
            'where t.tenant_id = $1 and t.event_id > $2 order by t.event_id offset $3 limit 1',
            spec.table_name)
        into last_id
        using tenant, first_id, max_rows;
    end if;
    next_position := spec.table_name || coalesce('/' || last_id, '');
    last_id := coalesce(last_id, highest);
    if spec.table_name = 'tenant_cost_events' then
        gone := tracedb.erase_costs(user_id, trace_ids, first_id, last_id, tenant);
    elsif spec.table_name = 'budget_reservations' then
        gone := tracedb.erase_reservations(trace_ids, tenant);
    else
        condition := tracedb.subject_condition(
            spec.trace_column, spec.user_column, spec.record_column);
        execute format(
            'delete from tracedb.%I as t where t.tenant_id = $1 and (%s)%s',
            spec.table_name, condition,
            case when spec.key = 'event_id' then ' and t.event_id > $4 and t.event_id <= $5'
                else ' and $4 < $5' end)
        using tenant, user_id, trace_ids, first_id, last_id;
        get diagnostics gone = row_count;
    end if;
    erased := jsonb_build_object(spec.table_name, gone);
end $$;

comment on function tracedb.erase_user_rows(tracedb.erasures, text, integer) is
    'Erases a user from the next part of the next table that is no part of a trace; next_position '
    'is null when there is none. Internal.';

create or replace function tracedb.erase_tenant_rows(
    erasure tracedb.erasures, max_rows integer, out erased jsonb, out next_position text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    spec record;
    bound text;
    gone bigint;
begin
    -- Its own row last: until then it is known whose the rest is.
    select s.table_name, a.attname, format_type(a.atttypid, null) as key_type into spec
    from tracedb.subject_tables() as s
    join pg_catalog.pg_index as i
        on i.indrelid = ('tracedb.' || quote_ident(s.table_name))::regclass and i.indisprimary
    left join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[1]
    where s.table_name <> 'erasures'
        and (erasure.position is null or (s.table_name = 'tenants', s.table_name)
            >= (erasure.position = 'tenants', erasure.position))
    order by s.table_name = 'tenants', s.table_name
    limit 1;
    if spec.attname is not null then
        execute format(
            'select t.%1$I::text from tracedb.%2$I as t where t.tenant_id = $1 '
            'order by t.%1$I offset $2 limit 1',
            spec.attname, spec.table_name)
        into bound
        using erasure.tenant_id, max_rows;
    end if;
    execute format(
        'delete from tracedb.%I as t where t.tenant_id = $1%s%s',
        spec.table_name,
        case when bound is not null
            then format(' and t.%I <= %L::%s', spec.attname, bound, spec.key_type) else '' end,
        case when spec.table_name = 'erased_keys'
            then format(' and t.erasure_id <> %L', erasure.erasure_id) else '' end)
    using erasure.tenant_id;
    get diagnostics gone = row_count;
    erased := jsonb_build_object(spec.table_name, gone);
    next_position := case
        when bound is not null then spec.table_name
        else (
            select s.table_name
            from tracedb.subject_tables() as s
            where s.table_name <> 'erasures' and (s.table_name = 'tenants', s.table_name)
                > (spec.table_name = 'tenants', spec.table_name)
            order by s.table_name = 'tenants', s.table_name
            limit 1
        )
    end;
end $$;

comment on function tracedb.erase_tenant_rows(tracedb.erasures, integer) is
    'Erases the next part of what a tenant has; next_position is null when that was the last. '
    'Internal.';

create or replace function tracedb.erase_step(
    erasure_id uuid,
    user_id text default null,
    max_rows integer default 500,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.erasures
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    e tracedb.erasures;
    found_ids uuid[];
    made record;
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 100000';
    end if;
    select r.* into e
    from tracedb.erasures as r
    where r.tenant_id = tenant and r.erasure_id = erase_step.erasure_id
    for update;
    if not found then
        raise exception using errcode = 'P0002', message = 'erasure_id: no erasure of this tenant';
    end if;
    if e.subject_hash is distinct from tracedb.tombstone(e.kind, coalesce(user_id, ''), tenant) then
        raise exception using errcode = 'TD002',
            message = 'user_id: not the one this erasure is of';
    end if;
    case e.phase
        when 'collect' then
            found_ids := array(
                select t.trace_id
                from tracedb.execution_traces as t
                where t.tenant_id = tenant and t.user_id = erase_step.user_id
                    and (e.position is null or t.trace_id < e.position::uuid)
                order by t.trace_id desc
                limit max_rows
            );
            e.position := found_ids[cardinality(found_ids)];
            if e.position is not null then
                perform tracedb.collect_erased(found_ids, e.erasure_id, tenant);
            else
                perform tracedb.erase_foreign_ids(e.erasure_id, tenant);
                e.phase := 'settle';
            end if;
        when 'settle' then
            if e.horizon is null then
                e.horizon := pg_snapshot_xmax(pg_current_snapshot());
            elsif pg_snapshot_xmin(pg_current_snapshot()) >= e.horizon then
                -- All that began before the tombstones were there has ended: if it left anything,
                -- that gets its tombstone, and again time to settle.
                e.phase := 'rows';
                if e.kind = 'user' and tracedb.collect_erased(array(
                    select t.trace_id
                    from tracedb.execution_traces as t
                    where t.tenant_id = tenant and t.user_id = erase_step.user_id
                    union
                    select t.trace_id
                    from tracedb.erased_traces as t
                    where t.tenant_id = tenant and t.erasure_id = e.erasure_id and t.pending
                ), e.erasure_id, tenant) > 0 then
                    perform tracedb.erase_foreign_ids(e.erasure_id, tenant);
                    e.phase := 'settle';
                    e.horizon := null;
                end if;
            end if;
        when 'rows' then
            if e.kind = 'user' then
                made := tracedb.erase_user_rows(e, user_id, max_rows * 100);
            else
                made := tracedb.erase_tenant_rows(e, max_rows * 10);
            end if;
            e.counts := tracedb.add_counts(e.counts, coalesce(made.erased, '{}'));
            e.position := made.next_position;
            if e.position is null then
                e.phase := case e.kind when 'user' then 'traces' else 'done' end;
            end if;
        when 'traces' then
            found_ids := array(
                select t.trace_id
                from tracedb.erased_traces as t
                where t.tenant_id = tenant and t.erasure_id = e.erasure_id and t.pending
                    and (e.position is null or t.trace_id > e.position::uuid)
                order by t.trace_id
                limit max_rows
            );
            e.position := found_ids[cardinality(found_ids)];
            if e.position is not null then
                e.counts := tracedb.add_counts(
                    e.counts, tracedb.erase_traces(found_ids, e.erasure_id, tenant));
            else
                e.phase := 'done';
            end if;
        else
            return e;
    end case;
    update tracedb.erasures as r set
        phase = e.phase, position = e.position, horizon = e.horizon, counts = e.counts,
        finished_at = case when e.phase = 'done' then clock_timestamp() end
    where r.tenant_id = tenant and r.erasure_id = e.erasure_id
    returning r.* into e;
    return e;
end $$;

comment on function tracedb.erase_step(uuid, text, integer, uuid) is
    'Goes on with an erasure, about max_rows traces (1 to 100000) or a hundred times as many '
    'events; user_id as begin_erasure was given it. Call it, a transaction a call, until the phase '
    'is done. In settle it waits for transactions that were writing when the tombstones came: '
    'call it again a little later.';

create or replace function tracedb.note_erased(
    erasure_id uuid, place text, counts jsonb,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.erasures as r set elsewhere = r.elsewhere || jsonb_build_object(
        place, tracedb.add_counts(coalesce(r.elsewhere -> place, '{}'), note_erased.counts))
    where r.tenant_id = note_erased.tenant_id and r.erasure_id = note_erased.erasure_id;
end $$;

comment on function tracedb.note_erased(uuid, text, jsonb, uuid) is
    'Adds to a receipt what was erased outside the database: the place (spool, archives) and '
    'counts by name.';

create or replace function tracedb.erase_spooled(
    writer_id uuid, numbers bigint[], records text[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint[]
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    kept bigint[];
    erased int8multirange;
begin
    if cardinality(numbers) is distinct from cardinality(records) then
        raise exception using
            errcode = 'TD002', message = 'numbers: must be one for each of the records';
    end if;
    select array_agg((r ->> '_number')::bigint) into kept
    from unnest(tracedb.without_erased(array(
        select coalesce(tracedb.readable_record(u.item), '{}')
            || jsonb_build_object('_number', u.record_no)
        from unnest(numbers, records) as u (record_no, item)
    ), tenant_id)) as r;
    select range_agg(int8range(n, n, '[]')) into erased
    from unnest(numbers) as n
    where n <> all(coalesce(kept, '{}'));
    if erased is not null then
        perform tracedb.touch_writer(writer_id, null, upper(erased) - 1, false, tenant_id);
        perform tracedb.record_delivery(writer_id, erased, 'stored', tenant_id);
    end if;
    return coalesce(kept, '{}');
end $$;

comment on function tracedb.erase_spooled(uuid, bigint[], text[], uuid) is
    'Which of a writer''s records that wait on disk (their numbers, and the records as JSON) are '
    'to be kept. The others are of somebody who was erased; the ledger counts them as if '
    'they had come: as stored.';

create or replace function tracedb.thin_erased(tables text[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    relation text;
    spec record;
    trace_ids uuid[] := '{}';
    tenant_ids uuid[] := '{}';
    -- the time of a row, where it has one of a user's
    at_column text;
begin
    if not exists (select from tracedb.erased_keys) then
        return;
    end if;
    if 'execution_traces' = any(tables) then
        -- Also what the erasure never saw, because no archive was at hand.
        with recursive gone as (
            select s.tenant_id, s.trace_id
            from pg_temp.restore_execution_traces as s
            where exists (
                select from tracedb.erased_keys as e
                where e.tenant_id = s.tenant_id and e.kind = 'user'
                    and e.key_hash = tracedb.tombstone('user', s.user_id, s.tenant_id)
                    and s.started_at < e.erased_at
            ) or exists (
                select from tracedb.erased_traces as t
                where t.tenant_id = s.tenant_id
                    and t.trace_id in (s.trace_id, s.parent_trace_id, s.root_trace_id)
            )
            union
            select s.tenant_id, s.trace_id
            from gone as g
            join pg_temp.restore_execution_traces as s
                on s.tenant_id = g.tenant_id and s.parent_trace_id = g.trace_id
        )
        select array_agg(g.trace_id), array_agg(g.tenant_id) into trace_ids, tenant_ids
        from gone as g;
    end if;
    foreach relation in array tables loop
        select s.* into spec from tracedb.subject_tables() as s where s.table_name = relation;
        -- Everything of an erased tenant; the id is the clock.
        execute format(
            'delete from pg_temp.%I as s using tracedb.erased_keys as e '
            'where e.tenant_id = s.tenant_id and e.kind = ''tenant'' '
            'and e.key_hash = tracedb.tombstone(''tenant'', '''', s.tenant_id) '
            'and s.%I < tracedb.uuid_floor(e.erased_at)',
            'restore_' || relation, tracedb.partition_key(relation));
        at_column := case
            when spec.user_column is null then null
            when spec.deed = 'traces' then 'started_at'
            else 'occurred_at'
        end;
        execute format(
            '%s where exists ( '
            '    select from unnest($1, $2) as g (trace_id, tenant_id) '
            '    where g.tenant_id = s.tenant_id and g.trace_id = s.%I '
            ') or exists ( '
            '    select from tracedb.erased_traces as t '
            '    where t.tenant_id = s.tenant_id and t.trace_id = s.%I '
            ') %s',
            case
                when spec.deed = 'money' then format('update pg_temp.%I as s set %s',
                    'restore_' || relation, (
                        select string_agg(format('%I = %s', c,
                            case c when 'metadata' then '''{}''' else 'null' end), ', ')
                        from unnest(spec.personal || spec.trace_column) as c
                    ))
                else format('delete from pg_temp.%I as s', 'restore_' || relation)
            end,
            spec.trace_column, spec.trace_column,
            case when at_column is not null then format(
                'or exists ( '
                '    select from tracedb.erased_keys as e '
                '    where e.tenant_id = s.tenant_id and e.kind = ''user'' '
                '        and e.key_hash = tracedb.tombstone(''user'', s.%I, s.tenant_id) '
                '        and s.%I < e.erased_at '
                ')', spec.user_column, at_column) end)
        using trace_ids, tenant_ids;
    end loop;
end $$;

comment on function tracedb.thin_erased(text[]) is
    'Takes those who were erased out of the staging tables of a restore (restore_<table>): their '
    'rows go, amounts become nobody''s.';

create or replace function tracedb.collect_archived(
    erasure_id uuid, trace_ids uuid[], foreign_ids text[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not exists (
        select from tracedb.erasures as e
        where e.tenant_id = collect_archived.tenant_id
            and e.erasure_id = collect_archived.erasure_id and e.finished_at is null
    ) then
        raise exception using errcode = 'P0002',
            message = 'erasure_id: no erasure that is going on';
    end if;
    perform tracedb.collect_erased(trace_ids, erasure_id, tenant_id);
    insert into tracedb.erased_keys (tenant_id, key_hash, kind, erasure_id, erased_at)
    select
        collect_archived.tenant_id,
        tracedb.tombstone('trace', i, collect_archived.tenant_id), 'trace',
        collect_archived.erasure_id, now()
    from unnest(foreign_ids) as i
    order by 2
    on conflict do nothing;
end $$;

comment on function tracedb.collect_archived(uuid, uuid[], text[], uuid) is
    'Gives traces that were found in archives, and their foreign ids, the tombstones of an '
    'erasure.';

create or replace function tracedb.replace_archive(
    archive jsonb, contents jsonb, erasure_id uuid,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as record_archive
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    anew constant tracedb.archives := jsonb_populate_record(null::tracedb.archives, archive);
    old_uri text;
begin
    select a.uri into old_uri
    from tracedb.archives as a
    where a.archive_id = anew.archive_id and a.state = 'removed'
    for update;
    if not found then
        raise exception using errcode = 'P0002',
            message = 'archive_id: no archive whose rows are nowhere else';
    end if;
    update tracedb.archives as a set
        uri = anew.uri, row_count = anew.row_count, first_id = anew.first_id,
        last_id = anew.last_id, file_bytes = anew.file_bytes, sha256 = anew.sha256
    where a.archive_id = anew.archive_id;
    delete from tracedb.archived_tenants as t
    where t.tenant_id = replace_archive.tenant_id and t.archive_id = anew.archive_id;
    insert into tracedb.archived_tenants
    select
        replace_archive.tenant_id, anew.archive_id, anew.table_name, c.row_count, c.first_id,
        c.last_id
    from jsonb_populate_recordset(null::tracedb.archived_tenants, contents) as c
    on conflict do nothing;
    update tracedb.erasures as e set files = array_append(e.files, old_uri)
    where e.tenant_id = replace_archive.tenant_id
        and e.erasure_id = replace_archive.erasure_id;
end $$;

comment on function tracedb.replace_archive(jsonb, jsonb, uuid, uuid) is
    'Records the file that an archive has now, without rows of somebody who was erased, and what '
    'it has left of the tenant; the receipt names the old file until it is deleted '
    '(forget_file).';

create or replace function tracedb.forget_file(
    uri text, tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
security definer  -- as begin_erasure
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    update tracedb.erasures as e set files = array_remove(e.files, forget_file.uri)
    where e.tenant_id = forget_file.tenant_id and forget_file.uri = any(e.files);
end $$;

comment on function tracedb.forget_file(text, uuid) is
    'Says that an old file of an archive is deleted.';

create or replace function tracedb.erase_learned(trace_ids uuid[], tenant_id uuid)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    patterns tracedb.learned_change[];
    errors tracedb.learned_change[];
    by_hand bigint;
begin
    -- As learning does: nobody else changes meanwhile what is learned.
    perform pg_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0));

    -- Taken back as a trace that turned out otherwise is, while the traces are still there.
    patterns := array(
        select c from tracedb.note_learned('pattern', trace_ids, '{}', tenant) as c
    );
    perform tracedb.update_patterns(patterns, '{}', tenant);
    -- Of nobody else, though it was used.
    delete from tracedb.success_patterns as p
    using unnest(patterns) as c
    where p.tenant_id = tenant and p.signature = c.learned_id and p.trace_count = 0
        and p.metadata @> '{"learned": true}';
    -- Where no trace is left to describe it by, nobody knows whose words these are.
    update tracedb.success_patterns as p
    set keywords = '{}', routing = '{}', context = '{}', updated_at = now()
    from unnest(patterns) as c
    where p.tenant_id = tenant and p.signature = c.learned_id
        and not exists (
            select from tracedb.learned_traces as l
            join tracedb.execution_traces as t
                on t.tenant_id = l.tenant_id and t.trace_id = l.trace_id
            where l.tenant_id = tenant and l.learned_id = p.signature and l.successes > 0
        );

    -- What somebody saved of these traces by hand.
    delete from tracedb.success_patterns as p
    where p.tenant_id = tenant and p.trace_count = 0
        and p.prompt_hash in (
            select md5(t.content)::uuid
            from tracedb.trace_payloads as t
            where t.tenant_id = tenant and t.trace_id = any(trace_ids) and t.kind = 'prompt'
        );
    get diagnostics by_hand = row_count;
    update tracedb.success_patterns as p
    set source_trace_ids = array(
            select i from unnest(p.source_trace_ids) as i where i <> all(trace_ids)
        ),
        updated_at = now()
    where p.tenant_id = tenant and p.source_trace_ids && trace_ids;

    errors := array(select c from tracedb.note_learned('error', trace_ids, '{}', tenant) as c);
    update tracedb.error_patterns as p
    set occurrences = p.occurrences + c.occurrences, trace_count = p.trace_count + c.traces,
        sample_message = null, updated_at = now(),
        sample_trace_ids = array(
            select i from unnest(p.sample_trace_ids) as i where i <> all(trace_ids)
        )
    from unnest(errors) as c
    where p.tenant_id = tenant and p.fingerprint = c.learned_id;
    delete from tracedb.error_patterns as p
    using unnest(errors) as c
    where p.tenant_id = tenant and p.fingerprint = c.learned_id and p.trace_count = 0;

    -- Names of agents, and how often: totals.
    update tracedb.agent_chaining_patterns as p
    set source_trace_ids = array(
            select i from unnest(p.source_trace_ids) as i where i <> all(trace_ids)
        ),
        updated_at = now()
    where p.tenant_id = tenant and p.source_trace_ids && trace_ids;

    return jsonb_build_object(
        'success_patterns', cardinality(patterns) + by_hand,
        'error_patterns', cardinality(errors));
end $$;

comment on function tracedb.erase_learned(uuid[], uuid) is
    'Takes traces out of what was learned of them: patterns and errors of nobody else go with '
    'their embeddings, others are counted and described without them; chains of agents stay. '
    'Returns how many it changed or deleted. Call it while the traces are there. Internal.';

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
    perform pg_current_xact_id();  -- from here on, an erasure waits for this transaction
    if exists (select from tracedb.erased_keys as e where e.tenant_id = store_records.tenant_id)
    then
        items := tracedb.without_erased(items, tenant_id);
    end if;
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
    'records changed what was there, duplicates changed nothing (nor do records of somebody who '
    'was erased since, which count with them), and a rejected one, named by its '
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
    -- Of somebody who was erased nothing is kept; the number counts as dead even so.
    if repeated = 0 and not (
        exists (select from tracedb.erased_keys as e where e.tenant_id = bury.tenant_id)
        and tracedb.without_erased(array[tracedb.readable_record(record)], tenant_id) = '{}'
    ) then
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
    'Keeps a record that cannot be stored as a dead letter, unless it is of somebody who was '
    'erased. Returns 1 if its number was settled before, and then does nothing.';

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
    ) || array(
        select row(
            e.tenant_id, null, e.starts_at, e.series_id, e.kind, e.agent_id, e.route, e.provider,
            e.model, e.operation_type, e.executions, e.errors, e.successes, e.running,
            e.input_tokens, e.output_tokens, e.cache_read_tokens, e.cache_write_tokens,
            e.reasoning_tokens, e.cost_usd, e.costed, e.unpriced, e.duration_us,
            e.duration_buckets, e.duration_counts
        )::tracedb.usage_contributions
        from tracedb.usage_rollups as e
        where e.tenant_id = tenant and e.width = 'erased'
            -- of a part of an hour there is nothing left
            and e.starts_at >= since and e.starts_at <= until - interval '1 hour'
    )) as c on c.starts_at = r.starts_at and c.series_id = r.series_id
    where r is distinct from c;
end $$;

comment on function tracedb.usage_differences(timestamptz, timestamptz, uuid) is
    'Where the totals of an hour and series are not what its traces add up to, with what those '
    'had added that were erased: none, if all is well. Only of use for a time whose other traces '
    'are all retained: those that are gone still count in the totals.';

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
    perform tracedb.thin_erased(tables);  -- who was erased since stays so
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

do $$
declare
    own_rows constant text := 'tenant_id = tracedb.current_tenant_id()';
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
            ('trail', 'erasures'),
            ('tombstone', 'erased_keys'), ('tombstone', 'erased_traces')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('tombstone', 'tracedb_owner', 'all', 'true', 'true'),
            ('tombstone', 'tracedb_service', 'select', 'true', null),
            ('tombstone', 'tracedb_service', 'insert', null, 'true'),
            ('tombstone', 'tracedb_app', 'select', own_rows, null),
            ('tombstone', 'tracedb_app', 'insert', null, own_rows),
            ('tombstone', 'tracedb_maintainer', 'select', 'true', null),
            ('trail', 'tracedb_owner', 'all', 'true', 'true'),
            ('trail', 'tracedb_service', 'select', 'true', null),
            ('trail', 'tracedb_app', 'select', own_rows, null),
            ('trail', 'tracedb_reader', 'select', own_rows, null),
            ('trail', 'tracedb_maintainer', 'select', 'true', null)
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

alter table tracedb.erasures enable row level security;
alter table tracedb.erasures force row level security;

alter table tracedb.erased_keys enable row level security;
alter table tracedb.erased_keys force row level security;

alter table tracedb.erased_traces enable row level security;
alter table tracedb.erased_traces force row level security;

revoke all on function
    tracedb.tombstone(text, text, uuid),
    tracedb.is_before(text, timestamptz),
    tracedb.readable_record(text),
    tracedb.without_erased(jsonb[], uuid),
    tracedb.names_erased(
        text[], tracedb.execution_traces[], tracedb.execution_traces[],
        tracedb.platform_events[], tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid),
    tracedb.subject_tables(),
    tracedb.mentions(text, text, uuid[], uuid),
    tracedb.subject_condition(text, text, text),
    tracedb.traces_of_user(text, uuid),
    tracedb.held_about(text, text, uuid[], uuid),
    tracedb.erasure_plan(text, uuid),
    tracedb.add_counts(jsonb, jsonb),
    tracedb.erase_traces(uuid[], uuid, uuid),
    tracedb.purge_refused(uuid[], uuid),
    tracedb.erase_costs(text, uuid[], uuid, uuid, uuid),
    tracedb.erase_reservations(uuid[], uuid),
    tracedb.begin_erasure(text, boolean, uuid),
    tracedb.collect_erased(uuid[], uuid, uuid),
    tracedb.erase_foreign_ids(uuid, uuid),
    tracedb.erase_user_rows(tracedb.erasures, text, integer),
    tracedb.erase_tenant_rows(tracedb.erasures, integer),
    tracedb.erase_step(uuid, text, integer, uuid),
    tracedb.note_erased(uuid, text, jsonb, uuid),
    tracedb.erase_spooled(uuid, bigint[], text[], uuid),
    tracedb.thin_erased(text[]),
    tracedb.collect_archived(uuid, uuid[], text[], uuid),
    tracedb.replace_archive(jsonb, jsonb, uuid, uuid),
    tracedb.forget_file(text, uuid),
    tracedb.erase_learned(uuid[], uuid)
from public;

-- For whoever acts for every tenant; what must not come back is seen by all who write
grant select on tracedb.erasures
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant select on tracedb.erased_keys, tracedb.erased_traces
to tracedb_service, tracedb_app, tracedb_maintainer;
grant insert on tracedb.erased_keys, tracedb.erased_traces to tracedb_service, tracedb_app;
grant execute on function tracedb.tombstone(text, text, uuid)
to tracedb_service, tracedb_app, tracedb_maintainer;
grant execute on function
    tracedb.is_before(text, timestamptz),
    tracedb.without_erased(jsonb[], uuid),
    tracedb.names_erased(
        text[], tracedb.execution_traces[], tracedb.execution_traces[], tracedb.platform_events[],
        tracedb.tenant_cost_events[], tracedb.agent_executions[], uuid),
    tracedb.purge_refused(uuid[], uuid)
to tracedb_service, tracedb_app;
grant execute on function
    tracedb.readable_record(text),
    tracedb.subject_tables(),
    tracedb.subject_condition(text, text, text),
    tracedb.mentions(text, text, uuid[], uuid),
    tracedb.traces_of_user(text, uuid),
    tracedb.held_about(text, text, uuid[], uuid)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.erasure_plan(text, uuid),
    tracedb.begin_erasure(text, boolean, uuid),
    tracedb.erase_step(uuid, text, integer, uuid),
    tracedb.note_erased(uuid, text, jsonb, uuid),
    tracedb.erase_spooled(uuid, bigint[], text[], uuid),
    tracedb.collect_archived(uuid, uuid[], text[], uuid),
    tracedb.replace_archive(jsonb, jsonb, uuid, uuid),
    tracedb.forget_file(text, uuid),
    tracedb.thin_erased(text[])
to tracedb_maintainer;

reset role;

select tracedb.co_locate('tracedb.erasures');
select tracedb.co_locate('tracedb.erased_keys');
select tracedb.co_locate('tracedb.erased_traces');
