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
    -- The session's login counts as well as the current role, so "set role" cannot shed a binding;
    -- and so does the role that was set, which a function with its owner's rights cannot shed.
    -- Memberships that give neither inheritance nor "set role" do not bind: they are what a
    -- CREATEROLE administrator of PostgreSQL 16 and later holds in every role it made (read
    -- through jsonb because earlier versions lack the two columns).
    return coalesce((
        with recursive held as (
            select r.oid
            from pg_catalog.pg_roles as r
            where r.rolname in (current_user, session_user, current_setting('role'))
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
    bound uuid[];
    claims constant text := nullif(current_setting('request.jwt.claims', true), '');
begin
    -- Most servers have no such role, and a write under a policy asks for each row.
    if exists (
        select from pg_catalog.pg_roles as r
        where r.rolname >= 'tracedb_tenant_' and r.rolname < 'tracedb_tenant`'
    ) then
        bound := tracedb.bound_tenant_ids();
        if cardinality(bound) > 0 then
            -- Bound to two tenants is a mistake: no tenant is safer than a guess.
            return case when cardinality(bound) = 1 then bound[1] end;
        end if;
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
