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
