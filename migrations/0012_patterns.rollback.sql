-- 0012_patterns.rollback.sql: removes patterns, embeddings and uses WITH WHAT THEY HOLD.

select set_config('citus.multi_shard_modify_mode', 'sequential', true);
set local lock_timeout = '2s';
set local statement_timeout = '5min';

set role tracedb_owner;

create or replace function tracedb.wilson_interval(successes bigint, trials bigint)
returns double precision[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select case when trials > 0 then array[
        greatest(0, (p + z2 / (2 * n) - r) / (1 + z2 / n)),
        least(1, (p + z2 / (2 * n) + r) / (1 + z2 / n))
    ] end
    from (
        select
            n, p, z2, sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) as r
        from (
            select
                trials::double precision as n,
                successes / nullif(trials, 0)::double precision as p,
                3.841458820694124::double precision as z2  -- 1.96 squared: 95 %
        ) as a
    ) as b
$$;

drop function tracedb.word_share(tsquery, tsvector);
drop function tracedb.word_query(text[]);
drop function tracedb.with_fields(anyelement, jsonb, text[]);
drop function tracedb.wilson_upper(double precision, double precision, double precision);
drop function tracedb.wilson_lower(double precision, double precision, double precision);
drop function tracedb.wanted_pattern_indexes();
drop function tracedb.vector_schema();
drop function tracedb.unit_vector(real[]);
drop function tracedb.set_pattern_settings(jsonb, uuid);
drop function tracedb.scored_patterns(
        uuid[], halfvec, text, tsquery, jsonb, double precision[], timestamptz, uuid);
drop function tracedb.save_pattern(jsonb, uuid);
drop function tracedb.retire_pattern(uuid, text, uuid);
drop function tracedb.replay_plan(uuid, timestamptz, uuid);
drop function tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid);
drop function tracedb.patterns_with_words(text[], text[], integer, uuid);
drop function tracedb.patterns_to_embed(text, integer, uuid, uuid);
drop function tracedb.pattern_weights(boolean, boolean, jsonb, uuid);
drop function tracedb.pattern_signature(text, text, text, text, jsonb, jsonb, text[]);
drop function tracedb.pattern_settings(uuid);
drop function tracedb.pattern_models(uuid);
drop function tracedb.pattern_history(uuid[], timestamptz, uuid);
drop function tracedb.nearest_by_scan(halfvec, text, integer, uuid);
drop function tracedb.nearest_by_index(halfvec, text, integer, integer, uuid);
drop function tracedb.may_see(uuid);
drop function tracedb.list_patterns(integer, uuid, uuid);
drop function tracedb.likenesses(halfvec, text, uuid[], uuid);
drop function tracedb.get_pattern(uuid, uuid);
drop function tracedb.find_patterns(
        real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid);
drop function tracedb.ensure_pattern_indexes(integer, integer);
drop function tracedb.embeddings_partition(uuid);
drop function tracedb.embedding_to_search(real[], text, uuid);
drop function tracedb.embedding_models(uuid);
drop function tracedb.drop_embedding_model(text, integer, uuid);
drop function tracedb.common_pattern_words(uuid);
drop function tracedb.build_pattern_index(uuid, text, text, smallint, bigint);
drop type tracedb.scored_pattern;
drop type tracedb.near_pattern;
drop table tracedb.pattern_usage_log;
drop table tracedb.pattern_embeddings;
drop table tracedb.pattern_indexes;
drop table tracedb.pattern_settings;
drop table tracedb.success_patterns;
drop function tracedb.pattern_document(text, text, text[]);
drop function tracedb.usage_standing(text, boolean, boolean);
delete from tracedb.partition_policies where family = 'pattern_usage';

create or replace function tracedb.bound_tenant_ids()
returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- The session's login counts as well as the current role, so "set role" cannot shed a binding.
    -- Memberships that give neither inheritance nor "set role" do not bind: they are what a
    -- CREATEROLE administrator of PostgreSQL 16 and later holds in every role it made (read
    -- through jsonb because earlier versions lack the two columns).
    return coalesce((
        with recursive held as (
            select r.oid
            from pg_catalog.pg_roles as r
            where r.rolname in (current_user, session_user)
            union
            select m.roleid
            from held
            join pg_catalog.pg_auth_members as m on m.member = held.oid
            where coalesce(pg_catalog.to_jsonb(m) ->> 'inherit_option', 'true') = 'true'
                or coalesce(pg_catalog.to_jsonb(m) ->> 'set_option', 'true') = 'true'
        )
        -- A name without a uuid in it binds to no tenant (null), so that a slip in it opens
        -- nothing.
        select array_agg(distinct case
            when r.rolname ~* '^tracedb_tenant_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                then substr(r.rolname, 16)::uuid
        end)
        from held
        join pg_catalog.pg_roles as r on r.oid = held.oid
        where r.rolname ~ '^tracedb_tenant_'
    ), '{}');
end $$;

comment on constraint tenant_external_id_fits on tracedb.tenants is null;
comment on constraint tenant_name_fits on tracedb.tenants is null;
comment on constraint partition_width_known on tracedb.partition_policies is null;
comment on constraint partition_ahead_bounded on tracedb.partition_policies is null;

reset role;
