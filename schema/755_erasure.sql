-- 755_erasure.sql: erasing a user, or a tenant, in steps that can be interrupted.

-- The maintainer's alone, who acts for every tenant. The functions work with their owner's rights,
-- because nobody else may delete events.

set role tracedb_owner;

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

reset role;
