-- 0001_initial.sql: the schema of release 0.1.0, the files of schema/ in number order.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '5s';
set local statement_timeout = '10min';

-- 000_extensions.sql: pgvector, the one extension tracedb needs.

-- Guarded by the catalog, not by "if not exists": on managed servers only the provider may create
-- the extension, and even the guarded form then asks for its owner. The schema is named because
-- the migration's search_path would otherwise put the type into tracedb.
do $$
begin
    if not exists (select from pg_catalog.pg_extension where extname = 'vector') then
        create extension vector with schema public;
    end if;
end $$;

-- 010_roles.sql: the five roles everything is granted to.

-- Roles belong to the cluster, so another database's migration may be creating them right now.
do $$
declare
    role_name text;
begin
    foreach role_name in array array[
        'tracedb_owner',        -- owns every object; nobody logs in as it
        'tracedb_service',      -- trusted ingest and background work: any tenant, append and read
        'tracedb_app',          -- reads and writes one tenant
        'tracedb_reader',       -- reads one tenant
        'tracedb_maintainer'    -- partitions, retention, archive, rollups
    ] loop
        if not exists (select from pg_catalog.pg_roles where rolname = role_name) then
            begin
                execute format('create role %I nologin', role_name);
            exception
                when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;

    -- Making objects on the owner's behalf needs membership; a CREATEROLE administrator does not
    -- inherit from the roles it creates (PostgreSQL 16 and later) until it grants itself that.
    if not pg_catalog.pg_has_role(current_user, 'tracedb_owner', 'usage') then
        execute format('grant tracedb_owner to %I', current_user);
    end if;
end $$;

-- 020_schema.sql: the schema, and nothing for everybody.

create schema if not exists tracedb;
alter schema tracedb owner to tracedb_owner;
revoke all on schema tracedb from public;
comment on schema tracedb is
    'What AI agents did, what it cost and what worked. Tables, views and functions are the API.';

-- Functions are executable by everybody unless told otherwise; 900_grants.sql grants one by one.
alter default privileges for role tracedb_owner revoke execute on functions from public;

-- Where the extension lives outside public (Supabase keeps it in "extensions"), the owner must be
-- able to name its types.
do $$
declare
    vector_schema text := (
        select n.nspname
        from pg_catalog.pg_extension as e
        join pg_catalog.pg_namespace as n on n.oid = e.extnamespace
        where e.extname = 'vector'
    );
begin
    if not pg_catalog.has_schema_privilege('tracedb_owner', vector_schema, 'usage') then
        execute format('grant usage on schema %I to tracedb_owner', vector_schema);
    end if;
end $$;

-- 030_tenancy.sql: which tenant a statement acts for.

set role tracedb_owner;

-- Every function fixes its search path to pg_catalog and puts pg_temp last. An empty path would not
-- do: unless it is named, pg_temp is searched first, and a caller's temporary type "uuid" would
-- decide what these functions cast to.

create or replace function tracedb.bound_tenant_ids()
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Most servers have no such role, and a write under a policy asks for each row.
    if not exists (
        select from pg_catalog.pg_roles as r
        where r.rolname >= 'tracedb_tenant_' and r.rolname < 'tracedb_tenant`'
    ) then
        return '{}';
    end if;
    -- The session's login counts as well as the current role, so "set role" cannot shed a binding.
    -- Memberships that give neither inheritance nor "set role" do not bind: they are what a
    -- CREATEROLE administrator of PostgreSQL 16 and later holds in every role it made (read
    -- through jsonb because earlier versions lack the two columns).
    return coalesce((
        with recursive held as (
            select r.oid
            from pg_catalog.pg_roles as r
            where r.rolname in (current_user, session_user)
            union
            select m.roleid
            from held
            join pg_catalog.pg_auth_members as m on m.member = held.oid
            where coalesce(pg_catalog.to_jsonb(m) ->> 'inherit_option', 'true') = 'true'
                or coalesce(pg_catalog.to_jsonb(m) ->> 'set_option', 'true') = 'true'
        )
        -- A name without a uuid in it binds to no tenant (null), so that a slip in it opens
        -- nothing.
        select array_agg(distinct case
            when r.rolname ~* '^tracedb_tenant_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                then substr(r.rolname, 16)::uuid
        end)
        from held
        join pg_catalog.pg_roles as r on r.oid = held.oid
        where r.rolname ~ '^tracedb_tenant_'
    ), '{}');
end $$;

comment on function tracedb.bound_tenant_ids() is
    'Tenants that the login or the current role is bound to: the uuids in the names of the roles '
    'tracedb_tenant_<uuid> it is a member of (null for a name without a uuid). Empty for an '
    'unbound role.';

create or replace function tracedb.current_tenant_id()
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    bound constant uuid[] := tracedb.bound_tenant_ids();
    claims constant text := nullif(current_setting('request.jwt.claims', true), '');
begin
    if cardinality(bound) > 0 then
        -- Bound to two tenants is a mistake: no tenant is safer than a guess.
        return case when cardinality(bound) = 1 then bound[1] end;
    end if;
    if claims is not null then
        -- Where there is a token only the token counts. user_metadata is the user's own to write.
        begin
            return coalesce(
                claims::jsonb ->> 'tenant_id',
                claims::jsonb -> 'app_metadata' ->> 'tenant_id'
            )::uuid;
        exception
            when data_exception then return null;
        end;
    end if;
    return nullif(current_setting('tracedb.tenant_id', true), '')::uuid;
end $$;

comment on function tracedb.current_tenant_id() is
    'The tenant this statement acts for, or null (then no row is visible and none can be '
    'written). In this order: the one tenant the role is bound to (see bound_tenant_ids); the '
    'tenant_id, or app_metadata.tenant_id, of request.jwt.claims; the setting tracedb.tenant_id '
    '(see set_tenant).';

create or replace function tracedb.set_tenant(tenant_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Citus forwards "set local" to its workers when told to; set_config() it never forwards.
    if current_setting('citus.version', true) is not null then
        perform set_config('citus.propagate_set_commands', 'local', true);
    end if;
    execute format('set local tracedb.tenant_id = %L', coalesce(tenant_id::text, ''));
end $$;

comment on function tracedb.set_tenant(uuid) is
    'Sets the tenant until the end of the transaction (null: none). Call it as a statement of its '
    'own in an explicit transaction. It overrides neither a bound role nor a token.';

create or replace function tracedb.co_locate(new_table regclass)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    distributed boolean := false;
begin
    if to_regclass('pg_catalog.pg_dist_partition') is not null then
        execute 'select exists (select from pg_catalog.pg_dist_partition where logicalrelid = $1)'
        into distributed
        using to_regclass('tracedb.execution_traces');
        if distributed then
            execute 'select create_distributed_table($1, ''tenant_id'', '
                'colocate_with => ''tracedb.execution_traces'')'
            using new_table;
        end if;
    end if;
    return distributed;
end $$;

comment on function tracedb.co_locate(regclass) is
    'Distributes a new tenant table beside execution_traces where the schema runs distributed on '
    'Citus; does nothing elsewhere. Every migration that adds a tenant table ends with it.';

reset role;

-- 040_tenants.sql: who the data belongs to.

set role tracedb_owner;

create table if not exists tracedb.tenants (
    tenant_id   uuid        not null default gen_random_uuid(),
    -- Null for a tenant that only ever uses our own id.
    external_id text,
    name        text        not null,
    created_at  timestamptz not null default now(),
    constraint tenants_pkey primary key (tenant_id),
    -- A caller's id names one tenant. Only trusted roles insert here, so the key leaks nothing.
    constraint tenants_external_id_key unique (external_id),
    constraint tenant_external_id_fits check (octet_length(external_id) between 1 and 1024),
    constraint tenant_name_fits check (octet_length(name) between 1 and 1024)
);

comment on table tracedb.tenants is
    'A tenant. Event tables do not refer to it, so a tenant may write before it is registered.';
comment on column tracedb.tenants.external_id is
    'The caller''s own id of the tenant, such as "org_2abc"; ensure_tenant maps it.';

create or replace function tracedb.ensure_tenant(external_id text, name text default null)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    found_id uuid;
begin
    if external_id is null then
        raise exception using errcode = 'TD002', message = 'external_id: required';
    end if;
    select t.tenant_id into found_id
    from tracedb.tenants as t
    where t.external_id = ensure_tenant.external_id;
    if found_id is null then
        insert into tracedb.tenants (external_id, name)
        values (ensure_tenant.external_id, coalesce(ensure_tenant.name, ensure_tenant.external_id))
        on conflict do nothing;
        select t.tenant_id into found_id
        from tracedb.tenants as t
        where t.external_id = ensure_tenant.external_id;
    end if;
    return found_id;
end $$;

comment on function tracedb.ensure_tenant(text, text) is
    'The tenant_id of a caller''s own tenant id, registered if new. Safe under concurrent calls; '
    'the name is used only on registration.';

reset role;

-- 050_ids.sql: ids that are clocks (UUIDv7, RFC 9562 section 5.7).

set role tracedb_owner;

create or replace function tracedb.uuid_floor(at timestamptz)
returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (
        lpad(to_hex(least(greatest(
            floor(extract(epoch from at) * 1000), 0), 281474976710655)::bigint), 12, '0')
        || '7000' || '8000' || '000000000000'
    )::uuid
$$;

comment on function tracedb.uuid_floor(timestamptz) is
    'The smallest UUIDv7 of that millisecond: "trace_id >= uuid_floor(t)" is a time filter that '
    'prunes partitions. Before 1970 it is the smallest of all, after the year 10889 that of the '
    'last millisecond.';

create or replace function tracedb.uuid_time(id uuid)
returns timestamptz
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select timestamptz 'epoch'
        + ('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint
        * interval '1 millisecond'
$$;

comment on function tracedb.uuid_time(uuid) is
    'The time in a UUIDv7, to the millisecond. Meaningless for other versions.';

-- No "set" clause on this one: it would keep the planner from inlining it into the check
-- constraints of every event table, which call it for each row.
create or replace function tracedb.is_uuid7(id uuid)
returns boolean
language sql immutable parallel safe
as $$
    select (pg_catalog.get_byte(pg_catalog.uuid_send(id), 6) operator(pg_catalog.&) 240)
        operator(pg_catalog.=) 112
        and (pg_catalog.get_byte(pg_catalog.uuid_send(id), 8) operator(pg_catalog.&) 192)
        operator(pg_catalog.=) 128
$$;

comment on function tracedb.is_uuid7(uuid) is
    'Whether version and variant bits say UUIDv7. A random UUID passes in about 1.6 % of cases, so '
    'this alone does not make an id a clock.';

create or replace function tracedb.uuid_from_key(at timestamptz, key text)
returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (
        substr(replace(tracedb.uuid_floor(at)::text, '-', ''), 1, 12)
        || '7' || substr(md5(key), 1, 3)
        -- variant bits 10: the first digit of this group is 8, 9, a or b
        || substr('89ab', get_byte(decode(md5(key), 'hex'), 15) % 4 + 1, 1)
        || substr(md5(key), 4, 15)
    )::uuid
$$;

comment on function tracedb.uuid_from_key(timestamptz, text) is
    'The UUIDv7 of a record that brings its own time and key: time bits from the time, random bits '
    'from the key''s hash. A retry makes the same id without a lookup.';

create or replace function tracedb.new_id()
returns uuid
language plpgsql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Decided at run time so that the definition is the same on every server version.
    if current_setting('server_version_num')::integer >= 180000 then
        return uuidv7();
    end if;
    return tracedb.uuid_from_key(clock_timestamp(), gen_random_uuid()::text);
end $$;

comment on function tracedb.new_id() is
    'A new UUIDv7: the server''s own from PostgreSQL 18 on, made in SQL before that.';

create or replace function tracedb.is_readable(value jsonb)
returns boolean
language sql immutable parallel safe
as $$
    select value is null or (
        not value operator(pg_catalog.@?) 'strict $.**{100}'
        and not value operator(pg_catalog.@?) 'lax $.** ? (@ > 1e308 || @ < -1e308)'
    )
$$;

comment on function tracedb.is_readable(jsonb) is
    'Whether clients can read the document back: nested less than 100 levels deep and without '
    'numbers beyond 1e308. PostgreSQL stores both, but JSON readers raise on them.';

reset role;

-- 060_partitions.sql: time partitions of the event tables, made ahead of need.

set role tracedb_owner;

create table if not exists tracedb.partition_policies (
    family        text     not null,
    parents       text[]   not null,
    width         text     not null default 'week',
    ahead_periods smallint not null default 4,
    constraint partition_policies_pkey primary key (family),
    constraint partition_width_known check (width in ('day', 'week', 'month')),
    constraint partition_ahead_bounded check (ahead_periods between 1 and 400)
);

comment on table tracedb.partition_policies is
    'How wide the partitions of a family of tables are (day, week or month, in UTC) and how many '
    'periods ahead they are made. One row serves a whole family, so that a trace and all its parts '
    'lie in partitions of the same bounds. A new width applies to periods not yet covered.';

insert into tracedb.partition_policies (family, parents)
values ('traces', array[
    'execution_traces', 'trace_payloads', 'agent_routing_decisions', 'hook_executions',
    'endpoint_calls', 'llm_spans'
])
on conflict (family) do nothing;

create or replace view tracedb.partitions with (security_invoker = true) as
select
    f.family,
    parent.relname::text as parent,
    part.relname::text as partition,
    b.bound = 'DEFAULT' as is_default,
    tracedb.uuid_time(substring(b.bound from 'FROM \(''([0-9a-f-]{36})''\)')::uuid) as from_time,
    tracedb.uuid_time(substring(b.bound from 'TO \(''([0-9a-f-]{36})''\)')::uuid) as to_time
from tracedb.partition_policies as f
cross join unnest(f.parents) as p(name)
join pg_catalog.pg_class as parent
    on parent.relname = p.name and parent.relnamespace = 'tracedb'::regnamespace
join pg_catalog.pg_inherits as i on i.inhparent = parent.oid
join pg_catalog.pg_class as part on part.oid = i.inhrelid
cross join lateral (
    select pg_catalog.pg_get_expr(part.relpartbound, part.oid) as bound
) as b;

comment on view tracedb.partitions is
    'Every partition with the time it covers (from inclusive, to exclusive).';

create or replace function tracedb.create_partition(
    parent text, from_time timestamptz, to_time timestamptz
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
-- Below deadlock_timeout: of a reader and this, it is this that gives up.
set lock_timeout = '900ms'
as $$
declare
    partition constant text := parent || to_char(from_time, '"_p"YYYYMMDD');
    lowest constant uuid := tracedb.uuid_floor(from_time);
    highest constant uuid := tracedb.uuid_floor(to_time);
begin
    -- Made apart and attached: "create ... partition of" would lock the parent exclusively.
    execute format(
        'create table tracedb.%I (like tracedb.%I including defaults including constraints '
        'including generated including indexes including storage)', partition, parent);
    -- Rows that came before their partition wait in the default one, which must be free of them
    -- before this one can be attached. Attaching locks it anyway; locked before we look, nobody can
    -- add such a row in between.
    execute format('lock table tracedb.%I in access exclusive mode', parent || '_default');
    execute format(
        'with moved as (delete from tracedb.%I where trace_id >= $1 and trace_id < $2 '
        'returning *) insert into tracedb.%I select * from moved', parent || '_default', partition)
    using lowest, highest;
    -- Nothing of this is inherited, and a detached partition keeps only what it has itself.
    execute format('alter table tracedb.%I enable row level security', partition);
    execute format('alter table tracedb.%I force row level security', partition);
    execute format(
        'alter table tracedb.%I attach partition tracedb.%I for values from (%L) to (%L)',
        parent, partition, lowest, highest);
    return partition;
end $$;

comment on function tracedb.create_partition(text, timestamptz, timestamptz) is
    'Makes and attaches one partition and moves the rows of its range out of the default '
    'partition. Internal: ensure_partitions and drain_default_partitions decide what is missing.';

create or replace function tracedb.cover_period(policy tracedb.partition_policies, at timestamptz)
returns setof text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    parent_name text;
    gap tstzrange;
    period constant tstzrange := tstzrange(
        -- the first week begins in 1969, before which there are no ids
        greatest(date_trunc(policy.width, at), timestamptz 'epoch'),
        date_trunc(policy.width, at) + ('1 ' || policy.width)::interval
    );
begin
    foreach parent_name in array policy.parents loop
        -- What is left of the period after a change of width, or after a half-finished run.
        for gap in
            select unnest(tstzmultirange(period) - coalesce((
                select range_agg(tstzrange(p.from_time, p.to_time))
                from tracedb.partitions as p
                where p.parent = parent_name and not p.is_default
            ), '{}'))
        loop
            return next tracedb.create_partition(parent_name, lower(gap), upper(gap));
        end loop;
    end loop;
end $$;

comment on function tracedb.cover_period(tracedb.partition_policies, timestamptz) is
    'Makes what is missing of the period around a time, for every table of the family. Internal.';

create or replace function tracedb.ensure_partitions(
    as_of timestamptz default now(), since timestamptz default null
)
returns setof text
language plpgsql volatile
security definer  -- attaching needs the parents' owner; the maintainer is only granted this call
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    policy tracedb.partition_policies;
    at timestamptz;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.partitions')) then
        raise notice 'another session is managing partitions';
        return;
    end if;
    for policy in select p.* from tracedb.partition_policies as p order by p.family loop
        for at in
            select generate_series(
                date_trunc(policy.width, coalesce(since, as_of)),
                as_of + policy.ahead_periods * ('1 ' || policy.width)::interval,
                ('1 ' || policy.width)::interval
            )
        loop
            return query select c from tracedb.cover_period(policy, at) as c;
        end loop;
    end loop;
end $$;

comment on function tracedb.ensure_partitions(timestamptz, timestamptz) is
    'Makes every missing partition from "since" (default: the period of as_of) to the policy''s '
    'number of periods after as_of, and returns their names. Run it daily; running it again makes '
    'nothing. Does nothing on a replica or while another session does the same.';

create or replace function tracedb.drain_default_partitions(max_periods integer default 10)
returns setof text
language plpgsql volatile
security definer  -- as ensure_partitions
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    policy tracedb.partition_policies;
    parent text;
    lowest uuid;
    periods integer := 0;
begin
    if pg_is_in_recovery() then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.partitions')) then
        raise notice 'another session is managing partitions';
        return;
    end if;
    for policy in select p.* from tracedb.partition_policies as p order by p.family loop
        foreach parent in array policy.parents loop
            while periods < max_periods loop
                execute format(
                    'select trace_id from tracedb.%I order by trace_id limit 1',
                    parent || '_default')
                into lowest;
                exit when lowest is null;
                periods := periods + 1;
                return query
                select c from tracedb.cover_period(policy, tracedb.uuid_time(lowest)) as c;
            end loop;
        end loop;
    end loop;
end $$;

comment on function tracedb.drain_default_partitions(integer) is
    'Moves rows that came before their partition out of the default partitions: makes the '
    'partitions they belong to, at most max_periods periods a call, and returns their names. '
    'Run it until it returns nothing.';

create or replace function tracedb.default_partition_rows()
returns table (parent text, stray_rows bigint)
language plpgsql stable
security definer  -- counts across tenants; shows a number a table and no row
set search_path = pg_catalog, pg_temp
as $$
declare
    default_partition record;
begin
    for default_partition in
        select p.parent, p.partition from tracedb.partitions as p where p.is_default order by 1
    loop
        parent := default_partition.parent;
        execute format('select count(*) from tracedb.%I', default_partition.partition)
        into stray_rows;
        return next;
    end loop;
end $$;

comment on function tracedb.default_partition_rows() is
    'How many rows wait in each default partition. Anything but 0 is a finding: a write outside '
    'the range ensure_partitions has made; drain_default_partitions moves it.';

reset role;

-- 100_execution_traces.sql: one request, or one nested agent execution.

set role tracedb_owner;

create table if not exists tracedb.execution_traces (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    -- Null: not reported. A trace without a parent is its own root.
    root_trace_id   uuid,
    -- Null: not nested. The parent, and the part of the parent that started this execution.
    parent_trace_id uuid,
    parent_span_id  bytea,
    -- Null: the recorder used our own id.
    external_id     text,
    -- Null in any column from here on: not reported.
    session_id      text,
    user_id         text,
    source          text,
    channel         text,
    message_type    text,
    name            text,
    intent          jsonb,
    route           text,
    agent_id        text,
    status          text        not null,
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    llm_calls       bigint,
    input_tokens    bigint,
    output_tokens   bigint,
    cost_usd        numeric,
    docs_retrieved  bigint,
    doc_sources     text[]      not null default '{}',
    research_triggered      boolean not null default false,
    kb_enrichment_triggered boolean not null default false,
    tags            text[]      not null default '{}',
    context         jsonb       not null default '{}',
    -- Null: every value is from a finished report. Else a rank per field: 0 inferred from a part
    -- that came before its trace, 1 from the report of a running trace. See merge_reports.
    provisional     jsonb,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint execution_traces_pkey primary key (tenant_id, trace_id),
    constraint traces_have_uuid7_ids check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint trace_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint trace_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint trace_ends_after_start check (ended_at >= started_at),
    -- Else an early report's end could be merged with a later report's start.
    constraint trace_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint trace_duration_not_negative check (duration_ms >= 0),
    constraint trace_parent_span_is_8_bytes check (octet_length(parent_span_id) = 8),
    constraint trace_counts_not_negative check (
        llm_calls >= 0 and input_tokens >= 0 and output_tokens >= 0 and docs_retrieved >= 0
    ),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint trace_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    -- An index entry holds at most 2704 bytes; without a rule a long label would be refused by
    -- the index, with a message that names no field.
    constraint trace_labels_fit check (
        octet_length(external_id) <= 1024 and octet_length(session_id) <= 1024
        and octet_length(user_id) <= 1024 and octet_length(source) <= 1024
        and octet_length(channel) <= 1024 and octet_length(message_type) <= 1024
        and octet_length(name) <= 1024 and octet_length(route) <= 1024
        and octet_length(agent_id) <= 1024 and octet_length(error_type) <= 1024
    ),
    constraint trace_json_readable
        check (tracedb.is_readable(intent) and tracedb.is_readable(context)),
    constraint trace_context_is_object check (jsonb_typeof(context) = 'object'),
    constraint trace_provisional_is_object check (jsonb_typeof(provisional) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.execution_traces_default
partition of tracedb.execution_traces default;

-- The newest of a user: order comes from the id.
create index if not exists execution_traces_user_id_idx
on tracedb.execution_traces (tenant_id, user_id, trace_id desc);

-- Nested executions of a trace, for trace_tree.
create index if not exists execution_traces_parent_trace_id_idx
on tracedb.execution_traces (tenant_id, parent_trace_id, trace_id)
where parent_trace_id is not null;

-- The newest failures; few rows, so a partial index.
create index if not exists execution_traces_failed_idx
on tracedb.execution_traces (tenant_id, trace_id desc)
where status in ('error', 'timeout');

comment on table tracedb.execution_traces is
    'One request or (nested) agent execution. Its text is in trace_payloads, its parts in '
    'agent_routing_decisions, hook_executions, endpoint_calls and llm_spans.';
comment on column tracedb.execution_traces.trace_id is
    'A UUIDv7: also the clock, the order and the partition key.';
comment on column tracedb.execution_traces.external_id is
    'The recorder''s own id, if it is not a UUIDv7 of its time; see trace_ids.';
comment on column tracedb.execution_traces.cost_usd is
    'Cost in US dollars of the trace as a whole, as its recorder reported it; null if it did not. '
    'Nothing updates it from spans: trace_summary counts spans where this is null.';
comment on column tracedb.execution_traces.status is
    'running, ok, error, timeout or cancelled.';
comment on constraint traces_have_uuid7_ids on tracedb.execution_traces is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint trace_status_known on tracedb.execution_traces is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint trace_time_in_range on tracedb.execution_traces is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint trace_ends_after_start on tracedb.execution_traces is
    'ended_at: must not be before started_at';
comment on constraint trace_running_has_no_end on tracedb.execution_traces is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint trace_duration_not_negative on tracedb.execution_traces is
    'duration_ms: must not be negative';
comment on constraint trace_parent_span_is_8_bytes on tracedb.execution_traces is
    'parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint trace_counts_not_negative on tracedb.execution_traces is
    'llm_calls, input_tokens, output_tokens, docs_retrieved: must not be negative';
comment on constraint trace_cost_is_money on tracedb.execution_traces is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint trace_labels_fit on tracedb.execution_traces is
    'external_id, session_id, user_id, source, channel, message_type, name, route, agent_id, '
    'error_type: at most 1024 bytes each';
comment on constraint trace_json_readable on tracedb.execution_traces is
    'intent, context: nested less than 100 levels deep, numbers within 1e308';
comment on constraint trace_provisional_is_object on tracedb.execution_traces is
    'provisional: must be an object';
comment on constraint trace_context_is_object on tracedb.execution_traces is
    'context: must be an object';

reset role;

-- 105_trace_ids.sql: foreign trace ids and the one trace each of them means.

set role tracedb_owner;

-- Not partitioned: a partitioned table could not promise one row an external id.
create table if not exists tracedb.trace_ids (
    tenant_id   uuid not null,
    external_id text not null,
    trace_id    uuid not null,
    constraint trace_ids_pkey primary key (tenant_id, external_id),
    constraint trace_ids_external_id_fits check (octet_length(external_id) between 1 and 1024),
    constraint trace_ids_trace_id_is_uuid7 check (tracedb.is_uuid7(trace_id))
);

comment on table tracedb.trace_ids is
    'A foreign id (an OpenTelemetry trace id, a request id) and the trace it means. The key makes '
    'concurrent writers agree. 128-bit ids are kept as 32 hex digits without dashes.';
comment on constraint trace_ids_external_id_fits on tracedb.trace_ids is
    'external_id: 1 to 1024 bytes';
comment on constraint trace_ids_trace_id_is_uuid7 on tracedb.trace_ids is
    'trace_id: must be a UUIDv7';

-- No "set" clause: it would keep this from being inlined, and ingest calls it several times a
-- record.
create or replace function tracedb.external_key(id text)
returns text
language sql immutable parallel safe
as $$
    select case
        when id operator(pg_catalog.~*)
            '^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$'
            then pg_catalog.lower(pg_catalog.replace(id, '-', ''))
        else id
    end
$$;

comment on function tracedb.external_key(text) is
    'The form in which trace_ids keeps a foreign id: 128-bit ids without dashes and in lower case, '
    'so that a trace is found by either spelling; anything else as it is.';

reset role;

-- 110_agent_routing_decisions.sql: which agent was chosen, and why.

set role tracedb_owner;

create table if not exists tracedb.agent_routing_decisions (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    selected_agent  text        not null,
    reason          text,
    trigger_confidence    double precision,
    context_confidence    double precision,
    capability_confidence double precision,
    historical_confidence double precision,
    total_confidence      double precision,
    candidates      jsonb       not null default '[]',
    selection_probability double precision,
    cache_hit       boolean     not null default false,
    pattern_id      uuid,
    -- Of any dimension; the type is not schema-qualified because providers install the extension
    -- in different schemas.
    request_embedding vector,
    embedding_model text,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint agent_routing_decisions_pkey primary key (tenant_id, trace_id, span_id),
    constraint routing_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint routing_span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint routing_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint routing_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint routing_ends_after_start check (ended_at >= started_at),
    constraint routing_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint routing_duration_not_negative check (duration_ms >= 0),
    constraint routing_confidence_is_fraction check (
        trigger_confidence between 0 and 1 and context_confidence between 0 and 1
        and capability_confidence between 0 and 1 and historical_confidence between 0 and 1
        and total_confidence between 0 and 1
    ),
    -- 0 would say the choice was impossible, and off-policy evaluation divides by it.
    constraint routing_probability_is_positive
        check (selection_probability > 0 and selection_probability <= 1),
    constraint routing_candidates_is_array check (jsonb_typeof(candidates) = 'array'),
    constraint routing_attributes_is_object check (jsonb_typeof(attributes) = 'object'),
    constraint routing_json_readable
        check (tracedb.is_readable(candidates) and tracedb.is_readable(attributes))
) partition by range (trace_id);

create table if not exists tracedb.agent_routing_decisions_default
partition of tracedb.agent_routing_decisions default;

comment on table tracedb.agent_routing_decisions is
    'One routing decision: the agent chosen, the confidence it was chosen with and the candidates '
    'it was chosen from.';
comment on column tracedb.agent_routing_decisions.candidates is
    'The agents considered: [{"agent": ..., "score": ..., "probability": ...}, ...].';
comment on column tracedb.agent_routing_decisions.selection_probability is
    'The probability with which the router made this choice (1 if it was deterministic).';
comment on column tracedb.agent_routing_decisions.total_confidence is
    'The confidence the router acted on, 0 to 1; the four columns before it are its parts.';
comment on constraint routing_trace_id_is_uuid7 on tracedb.agent_routing_decisions is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint routing_span_ids_are_8_bytes on tracedb.agent_routing_decisions is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint routing_status_known on tracedb.agent_routing_decisions is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint routing_time_in_range on tracedb.agent_routing_decisions is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint routing_ends_after_start on tracedb.agent_routing_decisions is
    'ended_at: must not be before started_at';
comment on constraint routing_running_has_no_end on tracedb.agent_routing_decisions is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint routing_duration_not_negative on tracedb.agent_routing_decisions is
    'duration_ms: must not be negative';
comment on constraint routing_confidence_is_fraction on tracedb.agent_routing_decisions is
    'trigger_confidence, context_confidence, capability_confidence, historical_confidence, '
    'total_confidence: must be from 0 to 1';
comment on constraint routing_probability_is_positive on tracedb.agent_routing_decisions is
    'selection_probability: must be above 0 and at most 1';
comment on constraint routing_candidates_is_array on tracedb.agent_routing_decisions is
    'candidates: must be an array';
comment on constraint routing_attributes_is_object on tracedb.agent_routing_decisions is
    'attributes: must be an object';
comment on constraint routing_json_readable on tracedb.agent_routing_decisions is
    'candidates, attributes: nested less than 100 levels deep, numbers within 1e308';

reset role;

-- 120_hook_executions.sql: one run of a hook around a tool or a prompt.

set role tracedb_owner;

create table if not exists tracedb.hook_executions (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    hook_type       text        not null,
    tool_name       text,
    script          text,
    intelligence_functions text[] not null default '{}',
    quality_gates   jsonb       not null default '{}',
    modifications   jsonb       not null default '{}',
    outcome         text,
    exit_code       integer,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint hook_executions_pkey primary key (tenant_id, trace_id, span_id),
    constraint hook_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint hook_span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint hook_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint hook_outcome_known check (outcome in ('allowed', 'blocked', 'modified', 'skipped')),
    constraint hook_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint hook_ends_after_start check (ended_at >= started_at),
    constraint hook_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint hook_duration_not_negative check (duration_ms >= 0),
    constraint hook_json_readable check (
        tracedb.is_readable(quality_gates) and tracedb.is_readable(modifications)
        and tracedb.is_readable(attributes)
    ),
    constraint hook_attributes_is_object check (jsonb_typeof(attributes) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.hook_executions_default
partition of tracedb.hook_executions default;

comment on table tracedb.hook_executions is
    'One run of a hook: what triggered it, what it checked, changed and decided.';
comment on column tracedb.hook_executions.hook_type is
    'When it ran, such as pre_tool_use, post_tool_use or user_prompt_submit.';
comment on column tracedb.hook_executions.outcome is
    'allowed, blocked, modified or skipped: the decision, whereas status tells whether the hook '
    'itself worked.';
comment on constraint hook_trace_id_is_uuid7 on tracedb.hook_executions is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint hook_span_ids_are_8_bytes on tracedb.hook_executions is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint hook_status_known on tracedb.hook_executions is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint hook_outcome_known on tracedb.hook_executions is
    'outcome: must be allowed, blocked, modified or skipped';
comment on constraint hook_time_in_range on tracedb.hook_executions is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint hook_ends_after_start on tracedb.hook_executions is
    'ended_at: must not be before started_at';
comment on constraint hook_running_has_no_end on tracedb.hook_executions is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint hook_duration_not_negative on tracedb.hook_executions is
    'duration_ms: must not be negative';
comment on constraint hook_json_readable on tracedb.hook_executions is
    'quality_gates, modifications, attributes: nested less than 100 levels deep, numbers within '
    '1e308';
comment on constraint hook_attributes_is_object on tracedb.hook_executions is
    'attributes: must be an object';

reset role;

-- 130_endpoint_calls.sql: one call of a service endpoint.

set role tracedb_owner;

create table if not exists tracedb.endpoint_calls (
    tenant_id       uuid        not null,
    trace_id        uuid        not null,
    span_id         bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id  bytea,
    name            text,
    service         text        not null,
    method          text,
    path            text,
    status_code     integer,
    retries         integer     not null default 0,
    request         jsonb,
    response        jsonb,
    -- Null: not made by a hook.
    hook_span_id    bytea,
    status          text        not null default 'ok',
    error_type      text,
    error_message   text,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    duration_ms     bigint,
    attributes      jsonb       not null default '{}',
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint endpoint_calls_pkey primary key (tenant_id, trace_id, span_id),
    constraint endpoint_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint endpoint_span_ids_are_8_bytes check (
        octet_length(span_id) = 8 and octet_length(parent_span_id) = 8
        and octet_length(hook_span_id) = 8
    ),
    constraint endpoint_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint endpoint_status_code_is_http check (status_code between 100 and 599),
    constraint endpoint_retries_not_negative check (retries >= 0),
    constraint endpoint_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint endpoint_ends_after_start check (ended_at >= started_at),
    constraint endpoint_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint endpoint_duration_not_negative check (duration_ms >= 0),
    constraint endpoint_json_readable check (
        tracedb.is_readable(request) and tracedb.is_readable(response)
        and tracedb.is_readable(attributes)
    ),
    constraint endpoint_attributes_is_object check (jsonb_typeof(attributes) = 'object')
) partition by range (trace_id);

create table if not exists tracedb.endpoint_calls_default
partition of tracedb.endpoint_calls default;

comment on table tracedb.endpoint_calls is
    'One call of a service endpoint, with request and response as the recorder sanitised them.';
comment on column tracedb.endpoint_calls.retries is
    'How often the call was repeated before this result; 0 if the first attempt counted.';
comment on column tracedb.endpoint_calls.hook_span_id is
    'The hook execution that made the call.';
comment on constraint endpoint_trace_id_is_uuid7 on tracedb.endpoint_calls is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint endpoint_span_ids_are_8_bytes on tracedb.endpoint_calls is
    'span_id, parent_span_id, hook_span_id: must be 8 bytes (16 hex digits)';
comment on constraint endpoint_status_known on tracedb.endpoint_calls is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint endpoint_status_code_is_http on tracedb.endpoint_calls is
    'status_code: must be from 100 to 599';
comment on constraint endpoint_retries_not_negative on tracedb.endpoint_calls is
    'retries: must not be negative';
comment on constraint endpoint_time_in_range on tracedb.endpoint_calls is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint endpoint_ends_after_start on tracedb.endpoint_calls is
    'ended_at: must not be before started_at';
comment on constraint endpoint_running_has_no_end on tracedb.endpoint_calls is
    'ended_at, duration_ms: must not be given while status is running';
comment on constraint endpoint_duration_not_negative on tracedb.endpoint_calls is
    'duration_ms: must not be negative';
comment on constraint endpoint_json_readable on tracedb.endpoint_calls is
    'request, response, attributes: nested less than 100 levels deep, numbers within 1e308';
comment on constraint endpoint_attributes_is_object on tracedb.endpoint_calls is
    'attributes: must be an object';

reset role;

-- 140_llm_spans.sql: one span of the tree: a model call, a tool call, an agent's step.

set role tracedb_owner;

create table if not exists tracedb.llm_spans (
    tenant_id          uuid        not null,
    trace_id           uuid        not null,
    span_id            bytea       not null,
    -- Null: directly below the trace. Null in other columns: not reported.
    parent_span_id     bytea,
    name               text,
    operation_type     text        not null,
    status             text        not null default 'ok',
    error_type         text,
    status_message     text,
    started_at         timestamptz not null,
    ended_at           timestamptz,
    duration_us        bigint,
    provider           text,
    request_model      text,
    response_model     text,
    input_tokens       bigint,
    output_tokens      bigint,
    cache_read_tokens  bigint,
    cache_write_tokens bigint,
    reasoning_tokens   bigint,
    cost_usd           numeric,
    -- Null: the cost is the provider's own, or unknown.
    price_id           bigint,
    agent_id           text,
    tool_name          text,
    message_id         text,
    conversation_id    text,
    attributes         jsonb       not null default '{}',
    events             jsonb       not null default '[]',
    links              jsonb       not null default '[]',
    created_at         timestamptz not null default now(),
    updated_at         timestamptz not null default now(),
    constraint llm_spans_pkey primary key (tenant_id, trace_id, span_id),
    constraint span_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint span_ids_are_8_bytes
        check (octet_length(span_id) = 8 and octet_length(parent_span_id) = 8),
    constraint span_operation_type_known check (operation_type in (
        'llm', 'embedding', 'rerank',  -- the leaves: only these count towards tokens and cost
        'tool', 'retrieval', 'agent', 'chain', 'guardrail', 'evaluator', 'other'
    )),
    constraint span_status_known
        check (status in ('running', 'ok', 'error', 'timeout', 'cancelled')),
    constraint span_time_in_range check (
        started_at >= '1970-01-01 00:00:00+00' and started_at < '2200-01-01 00:00:00+00'
        and ended_at < '2200-01-01 00:00:00+00'
    ),
    constraint span_ends_after_start check (ended_at >= started_at),
    constraint span_running_has_no_end check (status <> 'running' or ended_at is null),
    constraint span_duration_not_negative check (duration_us >= 0),
    constraint span_tokens_not_negative check (
        input_tokens >= 0 and output_tokens >= 0 and cache_read_tokens >= 0
        and cache_write_tokens >= 0 and reasoning_tokens >= 0
    ),
    -- The upper bound also keeps out NaN and Infinity, which sort above every number.
    constraint span_cost_is_money check (cost_usd >= 0 and cost_usd < 1e15),
    constraint span_attributes_is_object check (jsonb_typeof(attributes) = 'object'),
    constraint span_events_links_are_arrays
        check (jsonb_typeof(events) = 'array' and jsonb_typeof(links) = 'array'),
    constraint span_json_readable check (
        tracedb.is_readable(attributes) and tracedb.is_readable(events)
        and tracedb.is_readable(links)
    )
) partition by range (trace_id);

create table if not exists tracedb.llm_spans_default
partition of tracedb.llm_spans default;

comment on table tracedb.llm_spans is
    'One span of a trace: a call of a model or a tool, a retrieval, a step of an agent.';
comment on column tracedb.llm_spans.span_id is
    '8 bytes, as in OpenTelemetry; unique within its trace.';
comment on column tracedb.llm_spans.operation_type is
    'llm, embedding, rerank, tool, retrieval, agent, chain, guardrail, evaluator or other. Only '
    'the first three count towards tokens and cost: the others may repeat their children''s usage.';
comment on column tracedb.llm_spans.input_tokens is
    'All input tokens, cached ones (cache_read_tokens, cache_write_tokens) included.';
comment on column tracedb.llm_spans.output_tokens is
    'All output tokens, reasoning_tokens included.';
comment on column tracedb.llm_spans.cost_usd is
    'Cost in US dollars; null if unknown, which is not 0.';
comment on column tracedb.llm_spans.duration_us is
    'Duration in microseconds.';
comment on constraint span_trace_id_is_uuid7 on tracedb.llm_spans is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint span_ids_are_8_bytes on tracedb.llm_spans is
    'span_id, parent_span_id: must be 8 bytes (16 hex digits)';
comment on constraint span_operation_type_known on tracedb.llm_spans is
    'operation_type: must be llm, embedding, rerank, tool, retrieval, agent, chain, guardrail, '
    'evaluator or other';
comment on constraint span_status_known on tracedb.llm_spans is
    'status: must be running, ok, error, timeout or cancelled';
comment on constraint span_time_in_range on tracedb.llm_spans is
    'started_at, ended_at: must lie between 1970 and 2200';
comment on constraint span_ends_after_start on tracedb.llm_spans is
    'ended_at: must not be before started_at';
comment on constraint span_running_has_no_end on tracedb.llm_spans is
    'ended_at, duration_us: must not be given while status is running';
comment on constraint span_duration_not_negative on tracedb.llm_spans is
    'duration_us: must not be negative';
comment on constraint span_tokens_not_negative on tracedb.llm_spans is
    'input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, reasoning_tokens: must '
    'not be negative';
comment on constraint span_cost_is_money on tracedb.llm_spans is
    'cost_usd: must be at least 0 and less than 1e15, and a number';
comment on constraint span_attributes_is_object on tracedb.llm_spans is
    'attributes: must be an object';
comment on constraint span_events_links_are_arrays on tracedb.llm_spans is
    'events, links: must be arrays';
comment on constraint span_json_readable on tracedb.llm_spans is
    'attributes, events, links: nested less than 100 levels deep, numbers within 1e308';

reset role;

-- 150_trace_payloads.sql: the bulky text of a trace or of one of its parts.

set role tracedb_owner;

-- Apart from the headers so that lists stay narrow, and so that text can expire sooner.
create table if not exists tracedb.trace_payloads (
    tenant_id    uuid        not null,
    trace_id     uuid        not null,
    -- Eight zero bytes (no valid span id): the payload of the trace as a whole.
    span_id      bytea       not null default '\x0000000000000000',
    kind         text        not null,
    content      text        not null,
    content_type text        not null default 'text/plain',
    recorded_at  timestamptz not null,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),
    constraint trace_payloads_pkey primary key (tenant_id, trace_id, span_id, kind),
    constraint payload_trace_id_is_uuid7 check (
        tracedb.is_uuid7(trace_id) and trace_id < '0699eeb8-0400-7000-8000-000000000000'
    ),
    constraint payload_span_id_is_8_bytes check (octet_length(span_id) = 8),
    constraint payload_kind_known check (kind in ('prompt', 'response', 'input', 'output')),
    constraint payload_content_fits check (octet_length(content) <= 16777216),
    constraint payload_content_type_known
        check (content_type in ('text/plain', 'application/json')),
    constraint payload_time_in_range check (
        recorded_at >= '1970-01-01 00:00:00+00' and recorded_at < '2200-01-01 00:00:00+00'
    )
) partition by range (trace_id);

create table if not exists tracedb.trace_payloads_default
partition of tracedb.trace_payloads default;

comment on table tracedb.trace_payloads is
    'The text or JSON of a trace (prompt, response) or of a part (input, output).';
comment on column tracedb.trace_payloads.content is
    'The text itself, or the JSON document as text where content_type is application/json. At '
    'most 16 MiB.';
comment on constraint payload_trace_id_is_uuid7 on tracedb.trace_payloads is
    'trace_id: must be a UUIDv7 of a time before 2200';
comment on constraint payload_span_id_is_8_bytes on tracedb.trace_payloads is
    'span_id: must be 8 bytes (16 hex digits)';
comment on constraint payload_kind_known on tracedb.trace_payloads is
    'kind: must be prompt, response, input or output';
comment on constraint payload_content_fits on tracedb.trace_payloads is
    'content: at most 16 MiB (16777216 bytes)';
comment on constraint payload_content_type_known on tracedb.trace_payloads is
    'content_type: must be text/plain or application/json';
comment on constraint payload_time_in_range on tracedb.trace_payloads is
    'recorded_at: must lie between 1970 and 2200';

reset role;

-- 500_merge.sql: what becomes of two reports of the same thing.

set role tracedb_owner;

-- Reports arrive in any order, more than once, and from many processes. The same trace must come
-- of it every time, so merging is a least upper bound: commutative, associative, idempotent.
-- Per field the value of the higher rank wins: 2 from a finished report, 1 from a running one,
-- 0 inferred from a part that came before its trace. Between values of one rank:
--     tags, doc_sources           the union
--     started_at                  of the report that ended later, with its end and duration: times
--                                 of two reports would contradict each other
--     status                      the worse (ok, cancelled, timeout, error)
--     everything else             the greater, in jsonb's order
-- Fields of context have ranks of their own, as "context.<key>".

create or replace function tracedb.union_of(one jsonb, other jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_agg(distinct element order by element)
    from jsonb_array_elements(one || other) as element
$$;

comment on function tracedb.union_of(jsonb, jsonb) is
    'The elements of two JSON arrays, sorted and without repetitions. Internal.';

create or replace function tracedb.report_of(trace_row jsonb, rank integer default 2)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(field.key, jsonb_build_array(
        coalesce((trace_row -> 'provisional' ->> field.key)::integer, rank), field.value
    )), '{}')
    from (
        select f.key, case
            when f.key in ('tags', 'doc_sources') then tracedb.union_of(f.value, '[]')
            else f.value
        end as value
        from jsonb_each(trace_row - array[
            'started_at', 'ended_at', 'duration_ms', 'context', 'provisional', 'tenant_id',
            'trace_id', 'created_at', 'updated_at'
        ]) as f
        -- What says nothing ranks nowhere: nulls, empty lists, flags that were not raised.
        where f.value not in ('null', '[]', 'false')
        union all
        select 'started_at', jsonb_build_object(
            'started_at', trace_row -> 'started_at',
            'ended_at', trace_row -> 'ended_at',
            'duration_ms', trace_row -> 'duration_ms')
        union all
        select 'context.' || c.key, c.value
        from jsonb_each(coalesce(nullif(trace_row -> 'context', 'null'), '{}')) as c
    ) as field
$$;

comment on function tracedb.report_of(jsonb, integer) is
    'What a row of execution_traces (as jsonb) says: {"field": [rank, value], ...}. The rank is '
    'that of fields the row does not list as provisional. Internal.';

create or replace function tracedb.merge_reports(one jsonb, other jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(field.key, case
        when field.b is null or field.a -> 0 > field.b -> 0 then field.a
        when field.a is null or field.b -> 0 > field.a -> 0 then field.b
        when field.key in ('tags', 'doc_sources')
            then jsonb_build_array(field.a -> 0, tracedb.union_of(field.a -> 1, field.b -> 1))
        when field.key = 'started_at' then (
            select t
            from unnest(array[field.a, field.b]) as t
            -- as times: the order of jsonb strings depends on the database's collation
            order by
                (t -> 1 ->> 'ended_at')::timestamptz desc nulls last,
                (t -> 1 ->> 'started_at')::timestamptz,
                t -> 1 -> 'duration_ms' desc
            limit 1
        )
        when field.key = 'status' then (
            select s from unnest(array[field.a, field.b]) as s
            order by array_position(
                array['running', 'ok', 'cancelled', 'timeout', 'error'], s ->> 1) desc
            limit 1
        )
        else greatest(field.a, field.b)
    end), '{}')
    from (
        select k as key, one -> k as a, other -> k as b
        from jsonb_object_keys(one || other) as k
    ) as field
$$;

comment on function tracedb.merge_reports(jsonb, jsonb) is
    'The least upper bound of two reports of one trace, each as report_of gives it: the same '
    'whatever the order, and unchanged by a repetition. Internal.';

create or replace function tracedb.trace_row_of(report jsonb)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
            'doc_sources', '[]'::jsonb, 'tags', '[]'::jsonb,
            'research_triggered', false, 'kb_enrichment_triggered', false
        )
        || coalesce(jsonb_object_agg(f.key, f.value -> 1)
            filter (where f.key not like 'context.%' and f.key <> 'started_at'), '{}')
        || coalesce(report -> 'started_at' -> 1, '{}')
        || jsonb_build_object(
            'context', coalesce(jsonb_object_agg(substr(f.key, 9), f.value -> 1)
                filter (where f.key like 'context.%'), '{}'),
            'provisional', jsonb_object_agg(f.key, f.value -> 0)
                filter (where f.value -> 0 < '2')
        )
    from jsonb_each(report) as f
$$;

comment on function tracedb.trace_row_of(jsonb) is
    'A report as a row of execution_traces (as jsonb, without keys and server times). Internal.';

create or replace aggregate tracedb.merged_report(jsonb) (
    sfunc = tracedb.merge_reports,
    stype = jsonb,
    initcond = '{}'
);

comment on aggregate tracedb.merged_report(jsonb) is
    'merge_reports over a set of reports. Internal.';

-- A part is reported whole: its finished report says all its running one said. So the later
-- report replaces the earlier one, and of two finished reports any fixed order will do.
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

comment on function tracedb.part_rank(jsonb) is
    'Sorts reports of the same part (rows as jsonb): a finished one after a running one, then the '
    'one that ended later, then the longer payload. The greatest is kept. Internal.';

reset role;

-- 510_ingest.sql: the one way in: any mix of records, in any order, any number of times.

set role tracedb_owner;

create or replace function tracedb.record_types()
returns table (type text, table_name text, fields text[], required text[], defaults jsonb)
language sql immutable parallel safe
as $$
    values
    ('trace', 'execution_traces', array[
        'trace_id', 'root_trace_id', 'parent_trace_id', 'parent_span_id', 'external_id',
        'session_id', 'user_id', 'source', 'channel', 'message_type', 'name', 'intent', 'route',
        'agent_id', 'status', 'error_type', 'error_message', 'started_at', 'ended_at',
        'duration_ms', 'llm_calls', 'input_tokens', 'output_tokens', 'cost_usd',
        'docs_retrieved', 'doc_sources', 'research_triggered', 'kb_enrichment_triggered', 'tags',
        'context', 'prompt', 'response'
    ], array['started_at'], '{}'::pg_catalog.jsonb),
    ('routing_decision', 'agent_routing_decisions', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'selected_agent',
        'reason', 'trigger_confidence', 'context_confidence', 'capability_confidence',
        'historical_confidence', 'total_confidence', 'candidates', 'selection_probability',
        'cache_hit', 'pattern_id', 'request_embedding', 'embedding_model', 'status',
        'error_type', 'error_message', 'started_at', 'ended_at', 'duration_ms', 'attributes',
        'input', 'output'
    ], array['span_id', 'selected_agent', 'started_at'],
    '{"candidates": [], "cache_hit": false, "attributes": {}}'),
    ('hook', 'hook_executions', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'hook_type', 'tool_name',
        'script', 'intelligence_functions', 'quality_gates', 'modifications', 'outcome',
        'exit_code', 'status', 'error_type', 'error_message', 'started_at', 'ended_at',
        'duration_ms', 'attributes', 'input', 'output'
    ], array['span_id', 'hook_type', 'started_at'],
    '{"intelligence_functions": [], "quality_gates": {}, "modifications": {}, "attributes": {}}'),
    ('endpoint_call', 'endpoint_calls', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'service', 'method',
        'path', 'status_code', 'retries', 'request', 'response', 'hook_span_id', 'status',
        'error_type', 'error_message', 'started_at', 'ended_at', 'duration_ms', 'attributes',
        'input', 'output'
    ], array['span_id', 'service', 'started_at'], '{"retries": 0, "attributes": {}}'),
    ('span', 'llm_spans', array[
        'trace_id', 'external_id', 'span_id', 'parent_span_id', 'name', 'operation_type',
        'status', 'error_type', 'status_message', 'started_at', 'ended_at', 'duration_us',
        'provider', 'request_model', 'response_model', 'input_tokens', 'output_tokens',
        'cache_read_tokens', 'cache_write_tokens', 'reasoning_tokens', 'cost_usd', 'agent_id',
        'tool_name', 'message_id', 'conversation_id', 'attributes', 'events', 'links', 'input',
        'output'
    ], array['span_id', 'operation_type', 'started_at'],
    '{"attributes": {}, "events": [], "links": []}'),
    ('payload', 'trace_payloads', array[
        'trace_id', 'external_id', 'span_id', 'kind', 'content', 'content_type', 'recorded_at'
    ], array['kind', 'content', 'recorded_at'], '{"span_id": "0000000000000000"}')
$$;

comment on function tracedb.record_types() is
    'The record types ingest takes: their table, the fields a record may have, the ones it must '
    'have besides trace_id or external_id, and the values of fields left out. prompt, response, '
    'input and output are stored as payloads of that kind.';

create or replace function tracedb.record_problem(item jsonb, tenant_id uuid)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    id_form constant text := '^([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$';
    span_form constant text := '^(?!0{16})[0-9a-f]{16}$';
    time_form constant text := '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d([.]\d+)?)?'
        '(Z|[+-]\d\d(:?\d\d)?)$';
    spec record;
    field text;
begin
    if jsonb_typeof(item) <> 'object' then
        return format('record: must be an object, not %s', jsonb_typeof(item));
    end if;
    select t.* into spec from tracedb.record_types() as t where t.type = item ->> 'type';
    if spec is null then
        return format('type: must be one of trace, routing_decision, hook, endpoint_call, span, '
            'payload, not %s', coalesce(item ->> 'type', 'null'));
    end if;
    if item - array['type', 'tenant_id'] - spec.fields <> '{}' then
        select min(k) into field
        from jsonb_object_keys(item - array['type', 'tenant_id'] - spec.fields) as k;
        return format('%s: unknown field of a %s', field, spec.type);
    end if;
    if lower(item ->> 'tenant_id') <> tenant_id::text then
        return 'tenant_id: must be the tenant the batch is ingested for';
    end if;
    if coalesce(item ->> 'trace_id', item ->> 'external_id') is null then
        return 'trace_id: required (or external_id)';
    end if;
    foreach field in array spec.required loop
        if item ->> field is null then
            return format('%s: required', field);
        end if;
    end loop;
    field := case
        when item ->> 'trace_id' !~* id_form then 'trace_id'
        when item ->> 'root_trace_id' !~* id_form then 'root_trace_id'
        when item ->> 'parent_trace_id' !~* id_form then 'parent_trace_id'
    end;
    if field is not null then
        return format('%s: must be a UUID or 32 hex digits (other keys go into external_id)',
            field);
    end if;
    field := case
        when item ->> 'span_id' !~* span_form then 'span_id'
        when item ->> 'parent_span_id' !~* span_form then 'parent_span_id'
        when item ->> 'hook_span_id' !~* span_form then 'hook_span_id'
    end;
    if field is not null then
        return format('%s: must be 16 hex digits, not all 0', field);
    end if;
    field := case
        when item ->> 'started_at' !~ time_form then 'started_at'
        when item ->> 'ended_at' !~ time_form then 'ended_at'
        when item ->> 'recorded_at' !~ time_form then 'recorded_at'
    end;
    if field is not null then
        return format('%s: must be an ISO 8601 time with its offset from UTC, such as '
            '2026-01-31T12:00:00Z', field);
    end if;
    if jsonb_typeof(item -> 'context') not in ('object', 'null') then
        return 'context: must be an object';
    end if;
    -- 300 years: what is longer cannot be added to a time
    if item @? '$.duration_ms ? (@ > 1e13)' or item @? '$.duration_us ? (@ > 1e16)' then
        return format('%s: must be less than 300 years',
            case when item ? 'duration_us' then 'duration_us' else 'duration_ms' end);
    end if;
    return null;
end $$;

comment on function tracedb.record_problem(jsonb, uuid) is
    'What is wrong with the form of a record, as "field: rule", or null. Ranges and the like are '
    'the tables'' constraints. Internal.';

create or replace function tracedb.stated_reason(
    item text, sqlstate_ text, message text, constraint_ text
)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    spec record;
    field record;
begin
    if constraint_ <> '' then
        return coalesce((
            select obj_description(c.oid, 'pg_constraint')
            from pg_catalog.pg_constraint as c
            where c.conname = constraint_ and c.connamespace = 'tracedb'::regnamespace
                and obj_description(c.oid, 'pg_constraint') is not null
            limit 1
        ), message);
    end if;
    if sqlstate_ = 'TD002' then
        return message;
    end if;
    -- A value of the wrong type: the server's message names the value, so find its field.
    begin
        select t.* into spec from tracedb.record_types() as t
        where t.type = item::jsonb ->> 'type';
    exception
        when data_exception or program_limit_exceeded then
            return 'record: not storable as JSON: ' || message;
    end;
    for field in select f.key, f.value from jsonb_each(item::jsonb - 'span_id') as f loop
        begin
            execute format('select jsonb_populate_record(null::tracedb.%I, $1)', spec.table_name)
            using jsonb_build_object(field.key, field.value);
        exception
            when data_exception or program_limit_exceeded then
                return field.key || ': ' || sqlerrm;
        end;
    end loop;
    return message;
end $$;

comment on function tracedb.stated_reason(text, text, text, text) is
    'Why a record was refused, as "field: rule", from the error its storing raised. Internal.';

create or replace function tracedb.resolve_traces(records jsonb[], tenant_id uuid)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    keys text[];
    mapped jsonb;
    -- Between these lie the ids that may be traces of ours; what is looked up outside a range has
    -- to be looked up in every partition.
    first_id uuid;
    last_id uuid;
    missing jsonb;
begin
    select array_agg(distinct k.key) into keys
    from unnest(records) as r
    cross join lateral unnest(array[
        tracedb.external_key(r ->> 'external_id'), tracedb.external_key(r ->> 'trace_id'),
        tracedb.external_key(r ->> 'parent_trace_id'), tracedb.external_key(r ->> 'root_trace_id')
    ]) as k(key)
    where k.key is not null;
    select min(k), max(k) into first_id, last_id
    from unnest(keys) as k
    where k ~ '^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$';

    select coalesce(jsonb_object_agg(m.external_id, m.trace_id), '{}') into mapped
    from tracedb.trace_ids as m
    where m.tenant_id = resolve_traces.tenant_id and m.external_id = any(keys);

    -- An unmapped id is ours if it is a UUIDv7 of the record's own time, or if we have a trace of
    -- that id. Any other is foreign and gets a trace, once: writers of the same key meet at the
    -- table's key, and who came second takes the first one's trace.
    with named as (
        select
            tracedb.external_key(r ->> 'external_id') as external_key,
            tracedb.external_key(r ->> 'trace_id') as id_key,
            coalesce(r ->> 'started_at', r ->> 'recorded_at')::timestamptz as at
        from unnest(records) as r
        union all
        select null, tracedb.external_key(p.id), (r ->> 'started_at')::timestamptz
        from unnest(records) as r
        cross join lateral unnest(array[
            r ->> 'parent_trace_id', r ->> 'root_trace_id'
        ]) as p(id)
        where p.id is not null
    ),
    our_ids as (
        select n.id_key
        from named as n
        where n.id_key is not null and tracedb.is_uuid7(n.id_key::uuid)
            and tracedb.uuid_time(n.id_key::uuid)
                between n.at - interval '1 day' and n.at + interval '1 day'
        union
        select replace(t.trace_id::text, '-', '')
        from tracedb.execution_traces as t
        where t.tenant_id = resolve_traces.tenant_id and t.trace_id = any(array(
            select n.id_key::uuid from named as n where tracedb.is_uuid7(n.id_key::uuid)
        ))
        and t.trace_id between first_id and last_id
    ),
    -- The trace an external id means: what it or an id given beside it already means.
    external_traces as (
        select n.external_key, coalesce(
            (mapped ->> n.external_key)::uuid,
            min((mapped ->> n.id_key))::uuid,
            min(o.id_key)::uuid,
            tracedb.uuid_from_key(min(n.at), resolve_traces.tenant_id || n.external_key)
        ) as trace_id
        from named as n
        left join our_ids as o using (id_key)
        where n.external_key is not null
        group by n.external_key
    ),
    id_traces as (
        select n.id_key, coalesce(
            min(e.trace_id::text)::uuid,
            min(o.id_key)::uuid,
            tracedb.uuid_from_key(min(n.at), resolve_traces.tenant_id || n.id_key)
        ) as trace_id
        from named as n
        left join our_ids as o using (id_key)
        left join external_traces as e using (external_key)
        where n.id_key is not null
        group by n.id_key
    )
    select jsonb_object_agg(k.key, k.trace_id) into missing
    from (
        select e.external_key as key, e.trace_id from external_traces as e
        union all
        select i.id_key, i.trace_id from id_traces as i where i.id_key::uuid <> i.trace_id
    ) as k
    where not mapped ? k.key;

    if missing is not null then
        -- In order, so that two batches cannot wait for each other.
        insert into tracedb.trace_ids (tenant_id, external_id, trace_id)
        select resolve_traces.tenant_id, m.key, m.value::uuid
        from jsonb_each_text(missing) as m
        order by m.key
        on conflict do nothing;

        select coalesce(jsonb_object_agg(m.external_id, m.trace_id), '{}') into mapped
        from tracedb.trace_ids as m
        where m.tenant_id = resolve_traces.tenant_id and m.external_id = any(keys);
    end if;
    return mapped;
end $$;

comment on function tracedb.resolve_traces(jsonb[], uuid) is
    'Maps the foreign ids among the keys by which records name traces and returns the mapping '
    '{"key": "trace_id"}; a key that is not in it is a trace id itself. Internal.';

create or replace function tracedb.payload_of(
    item jsonb, kind text, content jsonb
)
returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select jsonb_build_object(
        'trace_id', item -> 'trace_id',
        'tenant_id', item -> 'tenant_id',
        'created_at', item -> 'created_at',
        'updated_at', item -> 'updated_at',
        'span_id', coalesce(item -> 'span_id', '"\\x0000000000000000"'),
        'recorded_at', coalesce(item -> 'recorded_at', item -> 'started_at'),
        'kind', kind,
        'content', content #>> '{}',
        'content_type', coalesce(item ->> 'content_type', case
            when jsonb_typeof(content) = 'string' then 'text/plain' else 'application/json'
        end)
    )
$$;

comment on function tracedb.payload_of(jsonb, text, jsonb) is
    'The trace_payloads row (as jsonb) of a text or document given with a record. Internal.';

create or replace function tracedb.complete_record(item jsonb, mapped jsonb, tenant_id uuid)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    spec record;
    external_key constant text := tracedb.external_key(item ->> 'external_id');
    id_key constant text := tracedb.external_key(item ->> 'trace_id');
    duration_field text := 'duration_ms';
    per_second integer := 1000;
    started_at constant timestamptz := item ->> 'started_at';
    ended_at timestamptz := item ->> 'ended_at';
    duration bigint;
    status text;
begin
    select t.* into spec from tracedb.record_types() as t where t.type = item ->> 'type';
    -- What is null was left out; most records have nothing of the kind.
    if item @? 'strict $.* ? (@ == null)' then
        select jsonb_object_agg(f.key, f.value) into item
        from jsonb_each(item) as f
        where f.value <> 'null';
    end if;
    item := spec.defaults || item;
    if started_at is not null then
        if spec.type = 'span' then
            duration_field := 'duration_us';
            per_second := 1000000;
        end if;
        -- Either of end and duration gives the other; without both it is still running. An end
        -- before the start is left to the table's constraint, whose message names it.
        duration := coalesce((item ->> duration_field)::bigint, case
            when ended_at is not null then greatest(
                round(extract(epoch from ended_at - started_at) * per_second), 0)
        end);
        ended_at := coalesce(ended_at,
            started_at + duration * (interval '1 second' / per_second));
        status := coalesce(item ->> 'status',
            case when ended_at is null then 'running' else 'ok' end);
    end if;
    item := item || jsonb_strip_nulls(jsonb_build_object(
        'tenant_id', tenant_id,
        'trace_id', coalesce(mapped ->> external_key, mapped ->> id_key, id_key),
        -- Not a column of the parts, but the name of the stub a part may make of its trace.
        'external_id', coalesce(external_key, case when mapped ? id_key then id_key end),
        'parent_trace_id', coalesce(
            mapped ->> tracedb.external_key(item ->> 'parent_trace_id'),
            item ->> 'parent_trace_id'),
        'root_trace_id', coalesce(
            mapped ->> tracedb.external_key(item ->> 'root_trace_id'),
            item ->> 'root_trace_id'),
        'span_id', '\x' || lower(item ->> 'span_id'),
        'parent_span_id', '\x' || lower(item ->> 'parent_span_id'),
        'hook_span_id', '\x' || lower(item ->> 'hook_span_id'),
        'ended_at', ended_at,
        duration_field, duration,
        'status', status,
        'created_at', now(),
        'updated_at', now()
    ));
    if spec.type = 'payload' then
        item := item || tracedb.payload_of(item, item ->> 'kind', item -> 'content');
    end if;
    return item;
end $$;

comment on function tracedb.complete_record(jsonb, jsonb, uuid) is
    'A checked record with its ids resolved and what was left out filled in, as a row of its '
    'table. Internal.';

create or replace function tracedb.column_list(table_name text, prefix text, except_for text[])
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select string_agg(prefix || quote_ident(a.attname), ', ' order by a.attnum)
        from pg_catalog.pg_attribute as a
        where a.attrelid = ('tracedb.' || quote_ident(table_name))::regclass
            and a.attnum > 0 and not a.attisdropped and a.attname <> all(except_for)
    );
end $$;

comment on function tracedb.column_list(text, text, text[]) is
    'The columns of a table as a list in SQL, each after the prefix. Internal.';

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
    key constant text[] := case table_name
        when 'trace_payloads' then array['trace_id', 'span_id', 'kind']
        else array['trace_id', 'span_id']
    end;
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
        select min(replace(r ->> 'trace_id', '-', '')), max(replace(r ->> 'trace_id', '-', ''))
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
            '    where t.tenant_id = $2 and (%5$s) = (%4$s) and t.trace_id between $3 and $4 '
            '        and tracedb.part_rank(to_jsonb(t)) < part.part_rank '
            '    returning part.is_record '
            ') '
            'select count(*) filter (where is_record) from changed',
            table_name,
            tracedb.column_list(table_name, '', fixed),
            tracedb.column_list(table_name, 'part.', fixed),
            (select string_agg('part.' || k, ', ') from unnest(key) as k),
            (select string_agg('t.' || k, ', ') from unnest(key) as k))
        into merged
        using part_rows, (part_rows[1] ->> 'tenant_id')::uuid, first_id, last_id;
    end if;
end $$;

comment on function tracedb.store_parts(text, jsonb[]) is
    'Stores complete rows (as jsonb) of one of the part tables: new ones are inserted, and a later '
    'report replaces an earlier one (see part_rank). Rows without a type are texts given with '
    'other records, which the counts leave out. Internal.';

create or replace function tracedb.store_traces(
    trace_rows jsonb[], out inserted bigint, out merged bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    fixed constant text[] := array['tenant_id', 'trace_id', 'created_at', 'updated_at'];
    tenant constant uuid := trace_rows[1] ->> 'tenant_id';
    reports jsonb[];
    made bigint;
begin
    -- Rows go through the table's type first, so that equal values are spelled equally.
    select array_agg(
        jsonb_build_object(
            'trace_id', f.trace_id, 'report', f.report, 'is_record', f.is_record)
        order by f.trace_id)
    into reports
    from (
        select
            row.trace_id,
            tracedb.merged_report(tracedb.report_of(
                to_jsonb(row), case when row.status = 'running' then 1 else 2 end)) as report,
            bool_or(row.provisional is null) as is_record
        from unnest(trace_rows) as r
        cross join lateral jsonb_populate_record(null::tracedb.execution_traces, r) as row
        group by row.trace_id
    ) as f;

    with made as (
        insert into tracedb.execution_traces
        select row.*
        from unnest(reports) as r
        cross join lateral jsonb_populate_record(null::tracedb.execution_traces,
            tracedb.trace_row_of(r -> 'report') || jsonb_build_object(
                'tenant_id', tenant, 'trace_id', r -> 'trace_id',
                'created_at', now(), 'updated_at', now())) as row
        on conflict do nothing
        returning trace_id
    )
    select count(*), count(*) filter (where (r ->> 'is_record')::boolean) into made, inserted
    from made
    join unnest(reports) as r on (r ->> 'trace_id')::uuid = made.trace_id;
    merged := 0;
    if made < cardinality(reports) then
        execute format(
            'with changed as ( '
            '    update tracedb.execution_traces as t set updated_at = now(), (%1$s) = ( '
            '        select %1$s from jsonb_populate_record(null::tracedb.execution_traces, '
            '            tracedb.trace_row_of(tracedb.merge_reports( '
            '                tracedb.report_of(to_jsonb(t)), r -> ''report''))) '
            '    ) '
            '    from unnest($1) as r '
            '    where t.tenant_id = $2 and t.trace_id = (r ->> ''trace_id'')::uuid '
            '        and t.trace_id between $3 and $4 '
            '        and tracedb.merge_reports(tracedb.report_of(to_jsonb(t)), r -> ''report'') '
            '            <> tracedb.report_of(to_jsonb(t)) '
            '    returning (r ->> ''is_record'')::boolean as is_record '
            ') '
            'select count(*) filter (where is_record) from changed',
            tracedb.column_list('execution_traces', '', fixed))
        into merged
        using reports, tenant, (reports[1] ->> 'trace_id')::uuid,
            (reports[cardinality(reports)] ->> 'trace_id')::uuid;
    end if;
end $$;

comment on function tracedb.store_traces(jsonb[]) is
    'Stores complete rows (as jsonb) of execution_traces: new ones are inserted, others merged '
    'into what is there (see merge_reports). Rows with provisional fields are stubs, which the '
    'counts leave out. Internal.';

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
            where r ->> 'type' <> 'trace'
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
end $$;

comment on function tracedb.store_records(text[], uuid) is
    'Stores a slice of a batch whole, or raises for the first record that is not right. Internal.';

create or replace function tracedb.ingest_slice(
    texts text[], first integer, last integer, tenant_id uuid,
    out inserted bigint, out merged bigint, out rejected jsonb
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    middle constant integer := (first + last) / 2;
    state text;
    message text;
    constraint_ text;
    one record;
    other record;
begin
    begin
        select s.inserted, s.merged, '[]'::jsonb into inserted, merged, rejected
        from tracedb.store_records(texts[first:last], tenant_id) as s;
        return;
    exception
        -- Only what is wrong with the data; anything else (a lock, a right, a full disk) is about
        -- the whole batch and is raised.
        when data_exception or integrity_constraint_violation or program_limit_exceeded
            or sqlstate 'TD002'
        then
            get stacked diagnostics
                state = returned_sqlstate,
                message = message_text,
                constraint_ = constraint_name;
    end;
    if first = last then
        inserted := 0;
        merged := 0;
        rejected := jsonb_build_array(jsonb_build_object(
            'index', first - 1,
            'reason', tracedb.stated_reason(texts[first], state, message, constraint_)));
        return;
    end if;
    -- The bad record is isolated by halving: its neighbours cost it a few statements, not their
    -- place in the database.
    one := tracedb.ingest_slice(texts, first, middle, tenant_id);
    other := tracedb.ingest_slice(texts, middle + 1, last, tenant_id);
    inserted := one.inserted + other.inserted;
    merged := one.merged + other.merged;
    rejected := one.rejected || other.rejected;
end $$;

comment on function tracedb.ingest_slice(text[], integer, integer, uuid) is
    'Stores the records first..last of a batch, halving the slice around records that are refused. '
    'Internal.';

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
    'hook, endpoint_call, span, payload) and the fields of that type (see record_types). Records '
    'may come in any order and any number of times; parts may come before their trace. Returns '
    '{"received", "inserted", "merged", "duplicates", "rejected": [{"index", "reason"}]}: merged '
    'records changed what was there, duplicates changed nothing, and a rejected one, named by its '
    'position from 0 with the field and the rule it broke, costs its neighbours nothing. Raises '
    'TD001 without a tenant.';

reset role;

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

-- 600_views.sql: what dashboards read.

-- Every view reads with its caller's rights and shows the tenant in its first column: name it
-- ("where tenant_id = ..."), and the plan starts at the tenant's rows.

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

comment on view tracedb.trace_summary is
    'A trace a row: its header, how many parts it has and how many of them failed, and its tokens '
    'and cost: as reported for the trace where they were, else summed over its leaf spans (null if '
    'neither is known). unpriced_count says how many leaf spans are missing from such a sum, '
    'because their cost is unknown. Histories, analytics and money read from here.';

create or replace view tracedb.agent_performance with (security_invoker = true) as
select
    t.tenant_id,
    t.agent_id,
    count(*) as trace_count,
    count(*) filter (where t.status = 'running') as running_count,
    count(*) filter (where t.status = 'ok') as success_count,
    count(*) filter (where t.status = 'ok')::double precision
        / nullif(count(*) filter (where t.status <> 'running'), 0) as success_rate,
    avg(t.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by t.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by t.duration_ms) as p95_duration_ms,
    sum(t.input_tokens)::bigint as input_tokens,
    sum(t.output_tokens)::bigint as output_tokens,
    sum(t.cost_usd) as cost_usd,
    count(*) filter (where t.cost_usd is null or t.unpriced_count > 0) as unknown_cost_count,
    max(t.started_at) as last_started_at
from tracedb.trace_summary as t
where t.agent_id is not null
group by t.tenant_id, t.agent_id;

comment on view tracedb.agent_performance is
    'An agent a row, over all retained traces: success rate of the finished ones (0 to 1), '
    'duration in milliseconds, tokens and cost, and how many traces have a cost that is unknown or '
    'only known in part. Nested executions count for their own agent.';

create or replace view tracedb.hook_performance_summary with (security_invoker = true) as
select
    h.tenant_id,
    h.hook_type,
    coalesce(h.name, h.script) as name,
    h.tool_name,
    count(*) as execution_count,
    count(*) filter (where h.status = 'ok')::double precision
        / nullif(count(*) filter (where h.status <> 'running'), 0) as success_rate,
    count(*) filter (where h.outcome = 'blocked') as blocked_count,
    count(*) filter (where h.outcome = 'modified') as modified_count,
    avg(h.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by h.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by h.duration_ms) as p95_duration_ms,
    max(h.started_at) as last_started_at
from tracedb.hook_executions as h
group by h.tenant_id, h.hook_type, coalesce(h.name, h.script), h.tool_name;

comment on view tracedb.hook_performance_summary is
    'A hook (type, name, tool) a row: how often it ran, worked (0 to 1), blocked or modified, and '
    'how long it took in milliseconds.';

create or replace view tracedb.endpoint_reliability with (security_invoker = true) as
select
    e.tenant_id,
    e.service,
    e.method,
    e.path,
    count(*) as call_count,
    count(*) filter (where e.status = 'ok')::double precision
        / nullif(count(*) filter (where e.status <> 'running'), 0) as success_rate,
    count(*) filter (where e.status_code between 400 and 499) as client_error_count,
    count(*) filter (where e.status_code >= 500) as server_error_count,
    count(*) filter (where e.status = 'timeout') as timeout_count,
    sum(e.retries) as retry_count,
    avg(e.duration_ms)::double precision as mean_duration_ms,
    percentile_cont(0.5) within group (order by e.duration_ms) as median_duration_ms,
    percentile_cont(0.95) within group (order by e.duration_ms) as p95_duration_ms,
    max(e.started_at) filter (where e.status in ('error', 'timeout')) as last_failed_at
from tracedb.endpoint_calls as e
group by e.tenant_id, e.service, e.method, e.path;

comment on view tracedb.endpoint_reliability is
    'An endpoint (service, method, path) a row: how often it was called and worked (0 to 1), how '
    'it failed, and how long it took in milliseconds.';

create or replace view tracedb.error_analysis with (security_invoker = true) as
select
    f.tenant_id,
    f.node_type,
    f.origin,
    f.error_type,
    count(*) as error_count,
    count(distinct f.trace_id) as trace_count,
    min(f.started_at) as first_seen_at,
    max(f.started_at) as last_seen_at,
    (array_agg(f.error_message order by f.started_at desc)
        filter (where f.error_message is not null))[1] as last_message,
    (array_agg(f.trace_id order by f.started_at desc))[1] as last_trace_id
from (
    select
        t.tenant_id, 'trace' as node_type, coalesce(t.agent_id, t.route, t.name) as origin,
        coalesce(t.error_type, t.status) as error_type, t.error_message, t.trace_id, t.started_at
    from tracedb.execution_traces as t
    where t.status in ('error', 'timeout')
    union all
    select
        s.tenant_id, 'span', coalesce(s.tool_name, s.response_model, s.request_model, s.name),
        coalesce(s.error_type, s.status), s.status_message, s.trace_id, s.started_at
    from tracedb.llm_spans as s
    where s.status in ('error', 'timeout')
    union all
    select
        r.tenant_id, 'routing_decision', r.selected_agent,
        coalesce(r.error_type, r.status), r.error_message, r.trace_id, r.started_at
    from tracedb.agent_routing_decisions as r
    where r.status in ('error', 'timeout')
    union all
    select
        h.tenant_id, 'hook', coalesce(h.name, h.script, h.hook_type),
        coalesce(h.error_type, h.status), h.error_message, h.trace_id, h.started_at
    from tracedb.hook_executions as h
    where h.status in ('error', 'timeout')
    union all
    select
        e.tenant_id, 'endpoint_call', concat_ws(' ', e.service, e.method, e.path),
        coalesce(e.error_type, 'HTTP ' || e.status_code, e.status), e.error_message, e.trace_id,
        e.started_at
    from tracedb.endpoint_calls as e
    where e.status in ('error', 'timeout')
) as f
group by f.tenant_id, f.node_type, f.origin, f.error_type;

comment on view tracedb.error_analysis is
    'A kind of failure a row: where it happens (node_type and origin: an agent, a model or tool, a '
    'hook, an endpoint), how often, in how many traces, since when, and the newest example.';

create or replace view tracedb.dashboard_summary with (security_invoker = true) as
select
    t.tenant_id,
    count(*) filter (where r.is_request) as trace_count_7d,
    count(*) filter (where r.is_request and r.is_of_today) as trace_count_24h,
    count(*) filter (where r.is_request and t.status in ('error', 'timeout')) as error_count_7d,
    count(*) filter (where r.is_request and t.status = 'ok')::double precision
        / nullif(count(*) filter (where r.is_request and t.status <> 'running'), 0)
        as success_rate_7d,
    percentile_cont(0.5) within group (order by t.duration_ms)
        filter (where r.is_request) as median_duration_ms_7d,
    percentile_cont(0.95) within group (order by t.duration_ms)
        filter (where r.is_request) as p95_duration_ms_7d,
    sum(t.input_tokens) filter (where not a.has_tokens)::bigint as input_tokens_7d,
    sum(t.output_tokens) filter (where not a.has_tokens)::bigint as output_tokens_7d,
    sum(t.cost_usd) filter (where not a.has_cost) as cost_usd_7d,
    sum(t.cost_usd) filter (where not a.has_cost and r.is_of_today) as cost_usd_24h,
    count(distinct t.user_id) as user_count_7d,
    count(distinct t.agent_id) as agent_count_7d,
    max(t.started_at) as last_started_at,
    count(*) filter (
        where not a.has_cost and (t.cost_usd is null or t.unpriced_count > 0)
    ) as unknown_cost_count_7d
from tracedb.trace_summary as t
cross join lateral (
    select
        t.parent_trace_id is null as is_request,
        t.started_at >= now() - interval '1 day' as is_of_today
) as r
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
) as a
-- The id is the clock, to the day; started_at is exact.
where t.trace_id >= tracedb.uuid_floor(now() - interval '8 days')
    and t.started_at >= now() - interval '7 days'
group by t.tenant_id;

comment on view tracedb.dashboard_summary is
    'A tenant a row, over the requests (traces that are not nested) of the last 7 days and 24 '
    'hours: how many, how well, how fast (milliseconds), users and agents, and the tokens and cost '
    'of these and of what is nested in them. unknown_cost_count_7d counts traces whose cost is '
    'unknown, or known only in part.';

reset role;

-- 800_policies.sql: every row-level-security policy, on one page.

-- A tenant sees and writes its own rows; without a tenant there are none. Trusted ingest and
-- maintenance reach all tenants by policy, because BYPASSRLS cannot be had on managed servers. The
-- owner has a policy too: row-level security is forced, and its functions move rows.
--
-- One permissive policy a role and command, named <table>_<role>_<command>. The tenant is compared
-- by a direct call: Citus cannot distribute a policy with a sub-select, and the planner folds the
-- call into any query that names its tenant. Partitions get row-level security and no policy, so
-- that queried directly they show nothing to anybody; only the default ones, in which the owner's
-- functions look for strays, have the owner's.

set role tracedb_owner;

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
            ('event', 'execution_traces'), ('event', 'trace_payloads'),
            ('event', 'agent_routing_decisions'), ('event', 'hook_executions'),
            ('event', 'endpoint_calls'), ('event', 'llm_spans'),
            ('default', 'execution_traces_default'), ('default', 'trace_payloads_default'),
            ('default', 'agent_routing_decisions_default'), ('default', 'hook_executions_default'),
            ('default', 'endpoint_calls_default'), ('default', 'llm_spans_default'),
            ('id map', 'trace_ids'),
            ('tenant', 'tenants'),
            ('setting', 'partition_policies')
        ) as c (class, table_name)
        join (values
            -- class, role, command, rows it sees, rows it may write
            ('event', 'tracedb_owner', 'all', 'true', 'true'),
            ('event', 'tracedb_service', 'select', 'true', null),
            ('event', 'tracedb_service', 'insert', null, 'true'),
            ('event', 'tracedb_service', 'update', 'true', 'true'),
            ('event', 'tracedb_app', 'select', own_rows, null),
            ('event', 'tracedb_app', 'insert', null, own_rows),
            ('event', 'tracedb_app', 'update', own_rows, own_rows),
            ('event', 'tracedb_reader', 'select', own_rows, null),
            ('event', 'tracedb_maintainer', 'select', 'true', null),

            ('default', 'tracedb_owner', 'all', 'true', 'true'),

            ('id map', 'tracedb_owner', 'all', 'true', 'true'),
            ('id map', 'tracedb_service', 'select', 'true', null),
            ('id map', 'tracedb_service', 'insert', null, 'true'),
            ('id map', 'tracedb_app', 'select', own_rows, null),
            ('id map', 'tracedb_app', 'insert', null, own_rows),
            ('id map', 'tracedb_reader', 'select', own_rows, null),
            ('id map', 'tracedb_maintainer', 'select', 'true', null),

            ('tenant', 'tracedb_owner', 'all', 'true', 'true'),
            ('tenant', 'tracedb_service', 'select', 'true', null),
            ('tenant', 'tracedb_service', 'insert', null, 'true'),
            ('tenant', 'tracedb_service', 'update', 'true', 'true'),
            ('tenant', 'tracedb_app', 'select', own_rows, null),
            ('tenant', 'tracedb_reader', 'select', own_rows, null),
            ('tenant', 'tracedb_maintainer', 'select', 'true', null),

            ('setting', 'tracedb_owner', 'all', 'true', 'true'),
            ('setting', 'tracedb_maintainer', 'select', 'true', null),
            ('setting', 'tracedb_maintainer', 'update', 'true', 'true')
        ) as r (class, role_name, command, visible, writable) on r.class = c.class
    loop
        execute format('drop policy if exists %I on tracedb.%I', policy.name, policy.table_name);
        execute format('create policy %I on tracedb.%I for %s to %I%s',
            policy.name, policy.table_name, policy.command, policy.role_name, policy.conditions);
    end loop;
end $$;

-- Also on partitions: neither attaching nor detaching gives or takes it.
do $$
declare
    table_name regclass;
begin
    for table_name in
        select c.oid
        from pg_catalog.pg_class as c
        where c.relnamespace = 'tracedb'::regnamespace and c.relkind in ('r', 'p')
            and c.relname !~ '^(_yoyo_|yoyo_lock$|_migration_)'  -- the migrator's own
            and not (c.relrowsecurity and c.relforcerowsecurity)
    loop
        execute format('alter table %s enable row level security', table_name);
        execute format('alter table %s force row level security', table_name);
    end loop;
end $$;

reset role;

-- 900_grants.sql: every grant, on one page. What is not here is not allowed.

-- Parents by name, never "all tables" and never a partition: a parent's policies do not protect a
-- partition that is queried directly. Nobody gets truncate, references or trigger, which ignore
-- row-level security.

-- On Supabase the API's roles act as ours; elsewhere they do not exist.
do $$
declare
    pair record;
begin
    for pair in
        select p.ours, p.theirs
        from (values
            ('tracedb_service', 'service_role'), ('tracedb_app', 'authenticated')
        ) as p (ours, theirs)
        join pg_catalog.pg_roles as r on r.rolname = p.theirs
        where not pg_catalog.pg_has_role(r.oid, p.ours, 'member')
    loop
        execute format('grant %I to %I', pair.ours, pair.theirs);
    end loop;
end $$;

set role tracedb_owner;

revoke all on all functions in schema tracedb from public;

grant usage on schema tracedb
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- Reading and writing
grant select, insert, update on
    tracedb.execution_traces,
    tracedb.agent_routing_decisions,
    tracedb.hook_executions,
    tracedb.endpoint_calls,
    tracedb.llm_spans,
    tracedb.trace_payloads
to tracedb_service, tracedb_app;
grant select, insert on tracedb.trace_ids to tracedb_service, tracedb_app;
grant select, insert, update on tracedb.tenants to tracedb_service;
grant select on tracedb.tenants to tracedb_app;

grant execute on function
    tracedb.ingest(json, uuid),
    tracedb.ingest_slice(text[], integer, integer, uuid),
    tracedb.store_records(text[], uuid),
    tracedb.store_parts(text, jsonb[]),
    tracedb.store_traces(jsonb[]),
    tracedb.resolve_traces(jsonb[], uuid),
    tracedb.complete_record(jsonb, jsonb, uuid),
    tracedb.payload_of(jsonb, text, jsonb),
    tracedb.record_problem(jsonb, uuid),
    tracedb.stated_reason(text, text, text, text),
    tracedb.column_list(text, text, text[]),
    tracedb.union_of(jsonb, jsonb),
    tracedb.report_of(jsonb, integer),
    tracedb.merge_reports(jsonb, jsonb),
    tracedb.merged_report(jsonb),
    tracedb.trace_row_of(jsonb),
    tracedb.part_rank(jsonb)
to tracedb_service, tracedb_app;
grant execute on function tracedb.ensure_tenant(text, text) to tracedb_service;

-- Reading
grant select on
    tracedb.tenants,
    tracedb.execution_traces,
    tracedb.trace_ids,
    tracedb.agent_routing_decisions,
    tracedb.hook_executions,
    tracedb.endpoint_calls,
    tracedb.llm_spans,
    tracedb.trace_payloads
to tracedb_reader, tracedb_maintainer;
grant select on
    tracedb.trace_summary,
    tracedb.agent_performance,
    tracedb.hook_performance_summary,
    tracedb.endpoint_reliability,
    tracedb.error_analysis,
    tracedb.dashboard_summary
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;
grant execute on function
    tracedb.find_trace(text, uuid),
    tracedb.get_trace(uuid, uuid),
    tracedb.trace_tree(uuid, uuid),
    tracedb.trace_nodes(uuid, uuid),
    tracedb.nested_traces(uuid[], uuid, uuid),
    tracedb.critical_path(integer[], timestamptz[], timestamptz[]),
    tracedb.part_document(jsonb)
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- What policies, constraints and queries of every role call
grant execute on function
    tracedb.bound_tenant_ids(),
    tracedb.current_tenant_id(),
    tracedb.set_tenant(uuid),
    tracedb.uuid_floor(timestamptz),
    tracedb.uuid_time(uuid),
    tracedb.is_uuid7(uuid),
    tracedb.uuid_from_key(timestamptz, text),
    tracedb.new_id(),
    tracedb.is_readable(jsonb),
    tracedb.external_key(text),
    tracedb.record_types()
to tracedb_service, tracedb_app, tracedb_reader, tracedb_maintainer;

-- Maintenance
grant select, update (width, ahead_periods) on tracedb.partition_policies
to tracedb_maintainer;
grant select on tracedb.partitions to tracedb_maintainer;
grant execute on function
    tracedb.ensure_partitions(timestamptz, timestamptz),
    tracedb.drain_default_partitions(integer),
    tracedb.default_partition_rows()
to tracedb_maintainer;

reset role;

-- 910_first_partitions.sql: the partitions of the first weeks.

select tracedb.ensure_partitions();
