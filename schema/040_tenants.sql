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
comment on constraint tenant_external_id_fits on tracedb.tenants is
    'external_id: from 1 to 1024 bytes';
comment on constraint tenant_name_fits on tracedb.tenants is
    'name: from 1 to 1024 bytes';

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
