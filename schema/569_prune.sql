-- 569_prune.sql: giving up patterns that do not work.

set role tracedb_owner;

create or replace function tracedb.prune_patterns(
    as_of timestamptz default now(),
    max_patterns integer default 1000,
    dry_run boolean default true,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    pattern_id uuid, reason text, uses bigint, successes bigint, failures bigint,
    success_rate_high double precision, last_used_at timestamptz
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    settings constant tracedb.pattern_settings := tracedb.pattern_settings(tenant);
begin
    if as_of is null then
        raise exception using errcode = 'TD002', message = 'as_of: must be given';
    end if;
    if max_patterns is null or max_patterns < 1 then
        raise exception using errcode = 'TD002', message = 'max_patterns: must be at least 1';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    if not dry_run then
        -- Those who fold and learn write the same patterns.
        perform pg_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0));
    end if;
    return query
    with hopeless as materialized (
        select
            p.pattern_id, h.use_count as uses, h.use_successes as successes,
            h.use_failures as failures, w.high, h.last_used_at,
            format(
                'success of %s %% at most (%s of %s uses with a known end, at least %s needed), '
                'below %s %%; not used for %s days', round((100 * w.high)::numeric, 1),
                h.use_successes, h.use_successes + h.use_failures, settings.prune_min_uses,
                round((100 * settings.prune_max_success)::numeric, 1), settings.prune_idle_days)
                as reason
        from tracedb.success_patterns as p
        join tracedb.pattern_history(array(
            select a.pattern_id from tracedb.success_patterns as a
            where a.tenant_id = tenant and a.retired_at is null
        ), as_of, tenant) as h on h.pattern_id = p.pattern_id
        cross join lateral tracedb.wilson_upper(
            h.use_successes, h.use_successes + h.use_failures, settings.confidence_z) as w(high)
        where p.tenant_id = tenant and p.retired_at is null
            and h.use_successes + h.use_failures >= settings.prune_min_uses
            and w.high < settings.prune_max_success
            and h.last_used_at < as_of - settings.prune_idle_days * interval '1 day'
        order by p.pattern_id
        limit max_patterns
    ),
    retired as (
        update tracedb.success_patterns as p
        set retired_at = now(), retired_reason = h.reason, updated_at = now()
        from hopeless as h
        where not dry_run and p.tenant_id = tenant and p.pattern_id = h.pattern_id
            and p.retired_at is null
        returning p.pattern_id
    ),
    receipts as (
        insert into tracedb.pattern_prunings (
            tenant_id, pattern_id, reason, uses, successes, failures, success_rate_high,
            last_used_at
        )
        select
            tenant, h.pattern_id, h.reason, h.uses, h.successes, h.failures, h.high, h.last_used_at
        from hopeless as h
        join retired as r on r.pattern_id = h.pattern_id
        on conflict do nothing
    )
    select
        h.pattern_id, h.reason, h.uses, h.successes, h.failures, h.high, h.last_used_at
    from hopeless as h
    where dry_run or exists (select from retired as r where r.pattern_id = h.pattern_id);
end $$;

comment on function tracedb.prune_patterns(timestamptz, integer, boolean, uuid) is
    'Retires patterns that do not work, at most max_patterns a call, with a receipt for each in '
    'pattern_prunings; with dry_run it only says which. By pattern_settings: those of at least '
    'prune_min_uses uses with a known end (fewer are no fair chance), whose success rate lies '
    'below prune_max_success even at its upper confidence bound (wilson_upper), and that have not '
    'been used in the prune_idle_days before as_of. They are retired and not deleted: the log '
    'keeps its meaning, and the next trace of that kind does not bring the pattern back as new.';

reset role;
