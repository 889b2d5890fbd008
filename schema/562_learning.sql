-- 562_learning.sql: what every subject of learning has in common.

-- Learning follows the changes of a tenant (changes_since), so whatever is written late is learned
-- when it comes. What a trace adds is kept in learned_traces as long as the trace: learned again,
-- it adds the difference. So what is learned does not depend on the order in which traces came, on
-- how often they were looked at, or how many at a time.

set role tracedb_owner;

create or replace function tracedb.traces_to_learn(
    subject text, since timestamptz, max_traces integer, after uuid, tenant_id uuid,
    out examined bigint, out trace_ids uuid[], out last_trace_id uuid
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    topic constant text := subject;
    from_cursor text;
    next_cursor text;
begin
    if max_traces is null or max_traces not between 1 and 10000 then
        raise exception using errcode = 'TD002', message = 'max_traces: must be from 1 to 10000';
    end if;
    if pg_is_in_recovery()
        or not pg_try_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0))
    then
        return;
    end if;
    if since is not null then
        trace_ids := array(
            select t.trace_id
            from tracedb.execution_traces as t
            where t.tenant_id = tenant and t.trace_id >= tracedb.uuid_floor(since)
                and t.trace_id > coalesce(after, '00000000-0000-0000-0000-000000000000')
            order by t.trace_id
            limit max_traces
        );
        examined := cardinality(trace_ids);
        last_trace_id := trace_ids[examined];
        return;
    end if;
    from_cursor := (
        select p.cursor from tracedb.learning_progress as p
        where p.tenant_id = tenant and p.subject = topic
    );
    loop
        begin
            select
                count(*), array_agg(distinct c.trace_id),
                (array_agg(c.next_cursor order by c.place desc))[1]
            into examined, trace_ids, next_cursor
            from tracedb.changes_since(from_cursor, max_traces, tenant)
                with ordinality as c (trace_id, changed_at, next_cursor, place);
            exit;
        exception
            -- of another server: a restored database learns from its first change again
            when sqlstate 'TD002' then
                if from_cursor is null then
                    raise;
                end if;
                from_cursor := null;
        end;
    end loop;
    if examined > 0 then
        insert into tracedb.learning_progress (tenant_id, subject, cursor)
        values (tenant, topic, next_cursor)
        on conflict (tenant_id, subject) do update
        set cursor = excluded.cursor, updated_at = excluded.updated_at;
    end if;
end $$;

comment on function tracedb.traces_to_learn(text, timestamptz, integer, uuid, uuid) is
    'The traces a call of learning looks at: those of the next changes, and the cursor goes on; or '
    'those from since on and after an id, and it stays. examined is null on a replica and while '
    'another session learns for the tenant, which this one then does until its transaction ends. '
    'Internal.';

-- "create type" knows no "if not exists".
do $$
begin
    if to_regtype('tracedb.learned_change') is null then
        create type tracedb.learned_change as (
            learned_id  uuid,
            occurrences bigint,
            traces      bigint,
            successes   bigint,
            first_added timestamptz,
            first_taken timestamptz
        );
    end if;
    if to_regtype('tracedb.learned_news') is null then
        create type tracedb.learned_news as (
            learned_id       uuid,
            newest_success   uuid,
            source_trace_ids uuid[],
            performance      jsonb,
            score            double precision,
            first_seen_at    timestamptz,
            last_seen_at     timestamptz
        );
    end if;
end $$;

comment on type tracedb.learned_change is
    'What learning changes of a pattern, chain or error: the differences of its counts, and the '
    'time of the first trace that was added, and taken away.';
comment on type tracedb.learned_news is
    'What the newest traces of a pattern, chain or error say of it: the newest that succeeded, '
    'samples (5 of those, of an error 5 of all), their mean score, and what those that succeeded '
    'took: {"n", "p50_ms", "p95_ms", "tokens", "cost_usd"}, the last two as means, money as exact '
    'text of at most 12 decimals; and the times of the first and the last of all.';

create or replace function tracedb.note_learned(
    subject text, trace_ids uuid[], lines tracedb.learned_traces[], tenant_id uuid
)
returns setof tracedb.learned_change
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    topic constant text := subject;
    ids constant uuid[] := array(select distinct i from unnest(trace_ids) as i order by i);
    first_id constant uuid := ids[1];
    last_id constant uuid := ids[cardinality(ids)];
    -- A trace that retention has dropped has been learned all the same.
    present constant uuid[] := array(
        select t.trace_id
        from tracedb.execution_traces as t
        where t.tenant_id = tenant and t.trace_id = any(ids)
            and t.trace_id between first_id and last_id
        order by t.trace_id
    );
    taken tracedb.learned_traces[];
    given tracedb.learned_traces[];
begin
    with gone as (
        delete from tracedb.learned_traces as l
        where l.tenant_id = tenant and l.trace_id = any(present)
            and l.trace_id between first_id and last_id and l.subject = topic
            -- looked up in a hash, however many lines there are
            and l not in (select n from unnest(lines) as n)
        returning l
    )
    select array_agg(g.l) into taken from gone as g;
    with stored as (
        insert into tracedb.learned_traces as l
        select n.* from unnest(lines) as n
        on conflict do nothing
        returning l
    )
    select array_agg(s.l) into given from stored as s;
    return query
    select
        d.learned_id, sum(d.sign * d.occurrences)::bigint, sum(d.sign)::bigint,
        sum(d.sign * d.successes)::bigint,
        min(tracedb.uuid_time(d.trace_id)) filter (where d.sign > 0),
        min(tracedb.uuid_time(d.trace_id)) filter (where d.sign < 0)
    from (
        select g.*, 1 as sign from unnest(given) as g
        union all
        select t.*, -1 from unnest(taken) as t
    ) as d
    group by d.learned_id;
end $$;

comment on function tracedb.note_learned(text, uuid[], tracedb.learned_traces[], uuid) is
    'Makes lines all that these traces have added, and returns what that changes, a row for each '
    'pattern, chain or error. The caller holds the tenant''s lock. Internal.';

create or replace function tracedb.newest_learned(learned_ids uuid[], tenant_id uuid)
returns setof tracedb.learned_news
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    select
        i.learned_id, n.newest_success,
        -- of an error none succeeds
        (coalesce(n.success_ids, n.trace_ids))[:5],
        jsonb_strip_nulls(jsonb_build_object(
            'n', n.successes, 'p50_ms', n.percentiles[1], 'p95_ms', n.percentiles[2],
            'tokens', round(n.tokens)::bigint,
            -- as text: a JSON number is read as a binary fraction
            'cost_usd', trim_scale(round(n.cost_usd, 12))::text)),
        n.score, tracedb.uuid_time(f.trace_id), tracedb.uuid_time(n.trace_ids[1])
    from unnest(learned_ids) as i(learned_id)
    cross join lateral (
        select
            (array_agg(l.trace_id order by l.trace_id desc) filter (where l.successes > 0))[1]
                as newest_success,
            array_agg(l.trace_id order by l.trace_id desc) filter (where l.successes > 0)
                as success_ids,
            array_agg(l.trace_id order by l.trace_id desc) as trace_ids,
            count(*) filter (where l.successes > 0) as successes,
            percentile_cont(array[0.5, 0.95]) within group (order by l.duration_ms)
                filter (where l.successes > 0) as percentiles,
            avg(l.tokens) filter (where l.successes > 0) as tokens,
            avg(l.cost_usd) filter (where l.successes > 0) as cost_usd,
            avg(l.score) as score
        from (
            select l.*
            from tracedb.learned_traces as l
            where l.tenant_id = newest_learned.tenant_id and l.learned_id = i.learned_id
            order by l.trace_id desc
            limit 200
        ) as l
    ) as n
    left join lateral (
        select l.trace_id
        from tracedb.learned_traces as l
        where l.tenant_id = newest_learned.tenant_id and l.learned_id = i.learned_id
        order by l.trace_id
        limit 1
    ) as f on true;
end $$;

comment on function tracedb.newest_learned(uuid[], uuid) is
    'What the newest 200 traces of each pattern, chain or error say of it; a row for each, empty '
    'where it has none. Internal.';

-- Absurd numbers must not stop all learning.
create or replace function tracedb.bounded_tokens(tokens numeric)
returns bigint
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return case when tokens is not null then least(tokens, 9223372036854775807)::bigint end;

comment on function tracedb.bounded_tokens(numeric) is
    'The tokens, or the most that a bigint can say; null if they are not known. Internal.';

reset role;
