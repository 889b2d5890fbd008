-- 700_retention_plan.sql: what the rules are, and what a retention run would do.

set role tracedb_owner;

-- What has no partitions: when a row of it is old enough, and whether it may go.
create or replace function tracedb.purge_condition(table_name text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select c.condition
    from (values
        ('trace_changes', 't.created_at < $1 and t.folded'),
        ('maintenance_runs', 't.started_at < $1 and t.ended_at is not null'),
        ('dead_letters', 't.created_at < $1'),
        ('ingest_writers', 't.last_seen_at < $1 and t.closed'),
        ('trace_ids', 't.trace_id < tracedb.uuid_floor($1)')
    ) as c (table_name, condition)
    where c.table_name = purge_condition.table_name
$$;

comment on function tracedb.purge_condition(text) is
    'Which rows t of a table without partitions are older than $1 and may be removed; null if none '
    'ever may. Internal: see purge_expired.';

create or replace function tracedb.leading_table(table_name text)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            -- the parts of a trace go with it; events stand alone
            when tracedb.partition_key(p.parents[1]) = 'trace_id' then p.parents[1]
            else leading_table.table_name
        end
        from tracedb.partition_policies as p
        where leading_table.table_name = any(p.parents)
    );
end $$;

comment on function tracedb.leading_table(text) is
    'The table whose rule counts where a partitioned one has none: execution_traces for the parts '
    'of traces, else itself; null for what has no partitions. Internal.';

create or replace function tracedb.retention_rule(table_name text, tenant_id uuid)
returns tracedb.retention_policies
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    rule tracedb.retention_policies;
    leader constant text := tracedb.leading_table(table_name);
begin
    select
        null, retention_rule.tenant_id, retention_rule.table_name,
        (array_agg(p.keep order by p.place)
            filter (where p.keep is not null and p.is_rule))[1],
        (array_agg(p.action order by p.place)
            filter (where p.action is not null and p.is_rule))[1],
        (array_agg(p.hold_reason order by p.place) filter (where p.hold_reason is not null))[1],
        null, null
    into rule
    from (
        select
            r.*,
            r.table_name in (retention_rule.table_name, leader) as is_rule,
            case when r.table_name = retention_rule.table_name then 0 else 2 end
                + case when r.tenant_id is null then 1 else 0 end as place
        from tracedb.retention_policies as r
        where (r.tenant_id is null or r.tenant_id = retention_rule.tenant_id)
            and (
                r.table_name in (retention_rule.table_name, leader)
                -- where a part is held, so is its trace
                or (
                    leader = retention_rule.table_name and r.hold_reason is not null
                    and tracedb.partition_key(leader) = 'trace_id'
                    and tracedb.leading_table(r.table_name) = leader
                )
            )
    ) as p;
    return rule;
end $$;

comment on function tracedb.retention_rule(text, uuid) is
    'The rule that counts for a table and tenant (null: for tenants without one of their own): '
    'keep, action and hold_reason, each of the first that says it: the tenant''s for the table, '
    'that of all tenants, the tenant''s for the leading table, that of all tenants.';

create or replace function tracedb.held_tenants(
    relations text[], from_time timestamptz, to_time timestamptz, tenant_ids uuid[]
)
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_name text;
    found uuid[];
    held uuid[] := '{}';
begin
    foreach table_name in array relations loop
        execute format(
            'select array(select i from unnest($1) as i where exists ('
            'select from tracedb.%1$I as t where t.tenant_id = i and t.%2$I >= $2 '
            'and t.%2$I < $3))', table_name, tracedb.partition_key(table_name))
        into found
        using tenant_ids, tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time);
        held := held || found;
    end loop;
    return array(select distinct i from unnest(held) as i order by i);
end $$;

comment on function tracedb.held_tenants(text[], timestamptz, timestamptz, uuid[]) is
    'Which of these tenants have rows of that time in any of the tables. Internal.';

create or replace function tracedb.has_other_tenants(
    relations text[], from_time timestamptz, to_time timestamptz, except_tenants uuid[]
)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    table_name text;
    found boolean;
begin
    foreach table_name in array relations loop
        execute format(
            'select exists (select from tracedb.%1$I as t where t.%2$I >= $1 and t.%2$I < $2 '
            'and t.tenant_id <> all($3))', table_name, tracedb.partition_key(table_name))
        into found
        using tracedb.uuid_floor(from_time), tracedb.uuid_floor(to_time), except_tenants;
        if found then
            return true;
        end if;
    end loop;
    return false;
end $$;

comment on function tracedb.has_other_tenants(text[], timestamptz, timestamptz, uuid[]) is
    'Whether tenants but these have rows of that time in any of the tables. Internal.';

create or replace function tracedb.retention_plan(
    as_of timestamptz default now(), forced boolean default false
)
returns table (
    family text, tables text[], archived text[], tenant_id uuid, except_tenants uuid[],
    from_time timestamptz, to_time timestamptz, how text, row_estimate bigint, bytes bigint,
    reason text, blocked_by text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
#variable_conflict use_column
declare
    leader record;
    period record;
    rule tracedb.retention_policies;
    own tracedb.retention_policies;
    special uuid[];
    present uuid[];
    restored record;
    tenant uuid;
    cutoff timestamptz;
    kept text[];
begin
    if as_of is null or not isfinite(as_of) then
        raise exception using errcode = 'TD002', message = 'as_of: must be a time';
    end if;
    if as_of > now() + interval '1 day' and not forced then
        raise exception using errcode = 'TD002',
            message = 'as_of: more than a day after the server''s clock',
            hint = 'If both clocks are right, force it.';
    end if;
    for leader in
        select
            p.family, t.table_name, a.above,
            -- a trace goes with all its parts
            case when a.above <> t.table_name or tracedb.partition_key(a.above) <> 'trace_id'
                then array[t.table_name] else p.parents
            end as members
        from tracedb.partition_policies as p
        cross join lateral (
            select distinct r.table_name
            from tracedb.retention_policies as r
            where r.table_name = any(p.parents) and r.keep is not null
        ) as t
        cross join lateral (select tracedb.leading_table(t.table_name) as above) as a
        order by p.family, a.above <> t.table_name, t.table_name
    loop
        rule := tracedb.retention_rule(leader.table_name, null);
        special := array(
            select distinct r.tenant_id
            from tracedb.retention_policies as r
            where r.tenant_id is not null
                and (r.table_name in (leader.table_name, leader.above)
                    or r.table_name = any(leader.members))
            union
            select r.tenant_id
            from tracedb.retention_receipts as r
            where r.family = leader.family and r.keep_until > as_of and r.tenant_id is not null
        );
        for period in
            select
                p.from_time, p.to_time,
                array_agg(p.parent order by array_position(leader.members, p.parent)) as tables,
                sum(tracedb.estimated_rows(format('tracedb.%I', p.partition)::regclass))::bigint
                    as row_estimate,
                sum(pg_total_relation_size(format('tracedb.%I', p.partition)::regclass))::bigint
                    as bytes
            from tracedb.partitions as p
            where p.parent = any(leader.members) and not p.is_default and p.from_time < as_of
            group by p.from_time, p.to_time
            having leader.table_name = any(array_agg(p.parent))
            order by p.from_time
        loop
            -- what is removed whole takes its parts along
            continue when leader.above <> leader.table_name and period.to_time
                <= as_of - (tracedb.retention_rule(leader.above, null)).keep;
            family := leader.family;
            tables := period.tables;
            from_time := period.from_time;
            to_time := period.to_time;
            tenant_id := null;
            except_tenants := '{}';
            blocked_by := null;
            present := '{}';
            kept := '{}';
            if cardinality(special) > 0 then
                present := tracedb.held_tenants(tables, from_time, to_time, special);
            end if;
            if to_time <= as_of - rule.keep then
                archived := array(
                    select t from unnest(tables) with ordinality as u (t, place)
                    where (tracedb.retention_rule(t, null)).action = 'archive' order by place);
                select r.* into restored
                from tracedb.retention_receipts as r
                where r.family = leader.family and r.keep_until > as_of and r.tenant_id is null
                    and r.from_time < period.to_time and r.to_time > period.from_time
                order by r.keep_until desc limit 1;
                foreach tenant in array present loop
                    own := tracedb.retention_rule(leader.table_name, tenant);
                    if own.hold_reason is not null then
                        kept := kept || format('%s: legal hold: %s', tenant, own.hold_reason);
                    elsif to_time > as_of - own.keep then
                        kept := kept || format('%s: kept for %s', tenant, own.keep);
                    elsif exists (
                        select from tracedb.retention_receipts as r
                        where r.tenant_id = tenant and r.family = leader.family
                            and r.keep_until > as_of and r.from_time < period.to_time
                            and r.to_time > period.from_time
                    ) then
                        kept := kept || format('%s: restored', tenant);
                    else
                        continue;
                    end if;
                    except_tenants := except_tenants || tenant;
                end loop;
                how := case when cardinality(except_tenants) > 0 then 'rows' else 'partition' end;
                row_estimate := period.row_estimate;
                bytes := period.bytes;
                reason := concat_ws('; ',
                    format('older than %s', rule.keep),
                    'stays for ' || nullif(array_to_string(kept, ', '), ''));
                blocked_by := case
                    when rule.hold_reason is not null then 'legal hold: ' || rule.hold_reason
                    when restored.keep_until is not null then
                        format('restored, and kept until %s', restored.keep_until)
                    when exists (
                        select from tracedb.partitions as o
                        where o.parent = any(leader.members)
                            and o.from_time < period.to_time and o.to_time > period.from_time
                            and (o.from_time, o.to_time) <> (period.from_time, period.to_time)
                    ) then 'partitions of the family that differ in bounds'
                    when how = 'rows' and not tracedb.has_other_tenants(
                        tables, from_time, to_time, except_tenants)
                    then 'nothing but what is kept is left'
                end;
                return next;
                continue;
            end if;
            -- Not old enough for all: those with a shorter rule of their own.
            foreach tenant in array present loop
                own := tracedb.retention_rule(leader.table_name, tenant);
                -- For ever, or not shorter.
                continue when own.keep is null or own.keep >= rule.keep;
                cutoff := least(period.to_time, date_trunc('day', as_of - own.keep));
                continue when cutoff <= period.from_time;
                continue when tracedb.held_tenants(
                    period.tables, period.from_time, cutoff, array[tenant]) = '{}';
                tenant_id := tenant;
                to_time := cutoff;
                how := 'rows';
                row_estimate := null;
                bytes := null;
                archived := array(
                    select t from unnest(tables) with ordinality as u (t, place)
                    where (tracedb.retention_rule(t, tenant)).action = 'archive' order by place);
                reason := format('older than the %s of this tenant', own.keep);
                blocked_by := case
                    when own.hold_reason is not null then 'legal hold: ' || own.hold_reason
                    when exists (
                        select from tracedb.retention_receipts as r
                        where coalesce(r.tenant_id, tenant) = tenant and r.family = leader.family
                            and r.keep_until > as_of and r.from_time < period.to_time
                            and r.to_time > period.from_time
                    ) then 'restored'
                end;
                return next;
            end loop;
        end loop;
    end loop;

    tenant_id := null;
    except_tenants := '{}';
    archived := '{}';
    from_time := null;
    bytes := null;
    row_estimate := null;
    how := 'purge';
    for family, to_time, reason, blocked_by in
        select r.table_name, as_of - r.keep, format('older than %s', r.keep),
            'legal hold: ' || r.hold_reason
        from tracedb.retention_policies as r
        where r.tenant_id is null and r.keep is not null
            and tracedb.purge_condition(r.table_name) is not null
        order by r.table_name
    loop
        tables := array[family];
        return next;
    end loop;
end $$;

comment on function tracedb.retention_plan(timestamptz, boolean) is
    'What a retention run would do, changing nothing: a row for each period of partitions that is '
    'old enough (how: partition, dropped whole; or rows, where other tenants'' rows stay: '
    'except_tenants), for each tenant whose own rule is shorter (rows, tenant_id), and for each '
    'table without partitions (purge). archived: those of the tables that are archived before; '
    'reason: the rule; blocked_by: why it is not done, null if it is. row_estimate and bytes are '
    'of whole partitions. as_of must not be more than a day after the server''s clock, unless '
    'forced.';

create or replace function tracedb.set_retention(
    table_name text,
    keep interval default null,
    action text default null,
    note text default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns tracedb.retention_policies
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    leader constant text := tracedb.leading_table(table_name);
    tied constant text[] := array['llm_spans', 'span_cost_adjustments', 'usage_contributions'];
    rule tracedb.retention_policies;
    problem text := case
        when table_name is null then 'table_name: must be given'
        when table_name = any(tied) then
            'table_name: goes with execution_traces, whose totals it makes up: set that'
        when leader is null and tracedb.purge_condition(table_name) is null then
            'table_name: has no rows that grow old'
        when leader is null and tenant_id is not null then
            'tenant_id: this table has one rule for all tenants'
        when leader is null and action = 'archive' then
            'action: this table cannot be archived'
        when action not in ('archive', 'drop') then 'action: must be archive or drop'
        when keep < interval '2 days' then
            'keep: at least 2 days, so that a clock a day wrong removes nothing of today'
        when keep > interval '1000 years' then 'keep: at most 1000 years'
        when leader <> table_name
            and keep > (tracedb.retention_rule(leader, tenant_id)).keep
            then format('keep: at most that of %s, with which it goes', leader)
    end;
begin
    if problem is not null then
        raise exception using errcode = 'TD002', message = problem;
    end if;
    insert into tracedb.retention_policies as r (tenant_id, table_name, keep, action, note)
    values (
        set_retention.tenant_id, set_retention.table_name, set_retention.keep,
        coalesce(set_retention.action, case when set_retention.tenant_id is null then coalesce(
            (tracedb.retention_rule(set_retention.table_name, null)).action, 'drop') end),
        set_retention.note)
    on conflict (tenant_id, table_name) do update
    set keep = excluded.keep, action = excluded.action,
        note = coalesce(excluded.note, r.note), updated_at = now()
    returning r.* into rule;
    return rule;
end $$;

comment on function tracedb.set_retention(text, interval, text, text, uuid) is
    'Says how long a table''s rows are kept (null: for ever, or for a tenant as for all) and '
    'whether they are archived or dropped then; of all tenants if none is set or given. A hold '
    'stays as it is. Tables: those with partitions, and trace_changes, trace_ids, dead_letters, '
    'ingest_writers and maintenance_runs (drop only).';

create or replace function tracedb.remove_retention(
    table_name text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    delete from tracedb.retention_policies as r
    where r.table_name = remove_retention.table_name
        and r.tenant_id is not distinct from remove_retention.tenant_id
        and r.hold_reason is null;
    return found;
end $$;

comment on function tracedb.remove_retention(text, uuid) is
    'Takes a rule away, and says whether there was one; not one with a hold: release that first. '
    'Without a rule of all tenants a table is kept for ever.';

create or replace function tracedb.set_legal_hold(
    table_name text, reason text, tenant_id uuid default tracedb.current_tenant_id()
)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if tracedb.leading_table(table_name) is null then
        raise exception using errcode = 'TD002',
            message = 'table_name: must be one with partitions';
    end if;
    if reason = '' then
        raise exception using errcode = 'TD002', message = 'reason: must say why';
    end if;
    insert into tracedb.retention_policies as r (tenant_id, table_name, hold_reason)
    select set_legal_hold.tenant_id, set_legal_hold.table_name, set_legal_hold.reason
    where set_legal_hold.reason is not null
    on conflict (tenant_id, table_name) do update
    set hold_reason = excluded.hold_reason, updated_at = now();
    if found or reason is not null then
        return true;
    end if;
    update tracedb.retention_policies as r
    set hold_reason = null, updated_at = now()
    where r.table_name = set_legal_hold.table_name
        and r.tenant_id is not distinct from set_legal_hold.tenant_id
        and r.hold_reason is not null;
    return found;
end $$;

comment on function tracedb.set_legal_hold(text, text, uuid) is
    'Holds the rows of a table, and of a trace all of it, so that nothing removes them however old '
    'they are: of all tenants if none is set or given. A null reason releases the hold; false: '
    'there was none.';

reset role;
