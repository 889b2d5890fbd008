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
comment on constraint partition_width_known on tracedb.partition_policies is
    'width: must be day, week or month';
comment on constraint partition_ahead_bounded on tracedb.partition_policies is
    'ahead_periods: must be from 1 to 400';

insert into tracedb.partition_policies (family, parents)
values ('traces', array[
    'execution_traces', 'trace_payloads', 'agent_routing_decisions', 'hook_executions',
    'endpoint_calls', 'llm_spans', 'span_cost_adjustments', 'usage_contributions',
    'learned_traces'
]), ('events', array['platform_events', 'tenant_cost_events', 'agent_executions']),
    ('pattern_usage', array['pattern_usage_log'])
on conflict (family) do nothing;

create or replace function tracedb.partition_key(parent text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return substring(
        pg_get_partkeydef(('tracedb.' || quote_ident(parent))::regclass) from '\((.*)\)');
end $$;

comment on function tracedb.partition_key(text) is
    'The column by which a table is partitioned: trace_id or event_id. Internal.';

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
        'with moved as (delete from tracedb.%1$I where %2$I >= $1 and %2$I < $2 returning *) '
        'insert into tracedb.%3$I select * from moved',
        parent || '_default', tracedb.partition_key(parent), partition)
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
                    'select %1$I from tracedb.%2$I order by 1 limit 1',
                    tracedb.partition_key(parent), parent || '_default')
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
