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
