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
