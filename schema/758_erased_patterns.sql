-- 758_erased_patterns.sql: what was learned, without those who were erased.

set role tracedb_owner;

create or replace function tracedb.erase_learned(trace_ids uuid[], tenant_id uuid)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := tenant_id;
    patterns tracedb.learned_change[];
    errors tracedb.learned_change[];
    by_hand bigint;
begin
    -- As learning does: nobody else changes meanwhile what is learned.
    perform pg_advisory_xact_lock(hashtextextended('tracedb.learn/' || tenant, 0));

    -- Taken back as a trace that turned out otherwise is, while the traces are still there.
    patterns := array(
        select c from tracedb.note_learned('pattern', trace_ids, '{}', tenant) as c
    );
    perform tracedb.update_patterns(patterns, '{}', tenant);
    -- Of nobody else, though it was used.
    delete from tracedb.success_patterns as p
    using unnest(patterns) as c
    where p.tenant_id = tenant and p.signature = c.learned_id and p.trace_count = 0
        and p.metadata @> '{"learned": true}';
    -- Where no trace is left to describe it by, nobody knows whose words these are.
    update tracedb.success_patterns as p
    set keywords = '{}', routing = '{}', context = '{}', updated_at = now()
    from unnest(patterns) as c
    where p.tenant_id = tenant and p.signature = c.learned_id
        and not exists (
            select from tracedb.learned_traces as l
            join tracedb.execution_traces as t
                on t.tenant_id = l.tenant_id and t.trace_id = l.trace_id
            where l.tenant_id = tenant and l.learned_id = p.signature and l.successes > 0
        );

    -- What somebody saved of these traces by hand.
    delete from tracedb.success_patterns as p
    where p.tenant_id = tenant and p.trace_count = 0
        and p.prompt_hash in (
            select md5(t.content)::uuid
            from tracedb.trace_payloads as t
            where t.tenant_id = tenant and t.trace_id = any(trace_ids) and t.kind = 'prompt'
        );
    get diagnostics by_hand = row_count;
    update tracedb.success_patterns as p
    set source_trace_ids = array(
            select i from unnest(p.source_trace_ids) as i where i <> all(trace_ids)
        ),
        updated_at = now()
    where p.tenant_id = tenant and p.source_trace_ids && trace_ids;

    errors := array(select c from tracedb.note_learned('error', trace_ids, '{}', tenant) as c);
    update tracedb.error_patterns as p
    set occurrences = p.occurrences + c.occurrences, trace_count = p.trace_count + c.traces,
        sample_message = null, updated_at = now(),
        sample_trace_ids = array(
            select i from unnest(p.sample_trace_ids) as i where i <> all(trace_ids)
        )
    from unnest(errors) as c
    where p.tenant_id = tenant and p.fingerprint = c.learned_id;
    delete from tracedb.error_patterns as p
    using unnest(errors) as c
    where p.tenant_id = tenant and p.fingerprint = c.learned_id and p.trace_count = 0;

    -- Names of agents, and how often: totals.
    update tracedb.agent_chaining_patterns as p
    set source_trace_ids = array(
            select i from unnest(p.source_trace_ids) as i where i <> all(trace_ids)
        ),
        updated_at = now()
    where p.tenant_id = tenant and p.source_trace_ids && trace_ids;

    return jsonb_build_object(
        'success_patterns', cardinality(patterns) + by_hand,
        'error_patterns', cardinality(errors));
end $$;

comment on function tracedb.erase_learned(uuid[], uuid) is
    'Takes traces out of what was learned of them: patterns and errors of nobody else go with '
    'their embeddings, others are counted and described without them; chains of agents stay. '
    'Returns how many it changed or deleted. Call it while the traces are there. Internal.';

reset role;
