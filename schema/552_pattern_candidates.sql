-- 552_pattern_candidates.sql: patterns that are near in meaning, or have the words.

set role tracedb_owner;

do $$
begin
    if to_regtype('tracedb.near_pattern') is null then
        create type tracedb.near_pattern as (pattern_id uuid, likeness double precision);
    end if;
    if to_regtype('tracedb.scored_pattern') is null then
        create type tracedb.scored_pattern as (
            pattern_id uuid, score double precision, is_tried boolean, confidence double precision,
            explanation jsonb
        );
    end if;
end $$;

comment on type tracedb.near_pattern is
    'A pattern and how like what is searched it is, 0 to 1: a cosine, or a share of words.';
comment on type tracedb.scored_pattern is
    'A pattern, its score, whether any use of it has ended, and what its score is made of.';

-- For functions with their owner's rights, which no policy holds: the same rule as the policies.
create or replace function tracedb.may_see(tenant_id uuid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    caller constant name := coalesce(nullif(current_setting('role'), 'none'), session_user);
begin
    return coalesce(tenant_id = tracedb.current_tenant_id(), false) or (
        cardinality(tracedb.bound_tenant_ids()) = 0
        and (pg_has_role(caller, 'tracedb_service', 'usage')
            or pg_has_role(caller, 'tracedb_maintainer', 'usage')
            or pg_has_role(caller, 'tracedb_owner', 'usage'))
    );
end $$;

comment on function tracedb.may_see(uuid) is
    'Whether the policies let the caller (its role as it set it, or its login) see rows of a '
    'tenant, also when asked inside a function with its owner''s rights. Internal.';

create or replace function tracedb.word_query(words text[])
returns tsquery
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select string_agg('''' || replace(replace(w, '\', '\\'), '''', '''''') || '''', ' | ')::tsquery
    from unnest(words) as w
$$;

comment on function tracedb.word_query(text[]) is
    'A query for any of some lexemes; null for none. Internal.';

-- Of a document without positions ts_rank is the share of the words it has, times 6 / pi^2.
create or replace function tracedb.word_share(words tsquery, document tsvector)
returns double precision
language sql immutable parallel safe
return least(1, ts_rank('{1, 1, 1, 1}', document, words) * 1.6449340668482264::float8);

comment on function tracedb.word_share(tsquery, tsvector) is
    'The share of the words (of a query for any of them) that a document has. Internal.';

create or replace function tracedb.patterns_with_words(
    words text[], candidates text[], max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
security definer  -- row-level security lets no text search use an index; asks may_see instead
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if not tracedb.may_see(patterns_with_words.tenant_id) then
        return;
    end if;
    -- The tenant as a literal, so that the planner sees that its own index serves.
    return query execute format(
        'select p.pattern_id, tracedb.word_share($1, p.search) '
        'from tracedb.success_patterns as p '
        'where p.tenant_id = %L and p.retired_at is null and p.search @@ $2 '
        'order by 2 desc, 1 limit $3', patterns_with_words.tenant_id)
    using tracedb.word_query(words), tracedb.word_query(candidates), max_rows;
end $$;

comment on function tracedb.patterns_with_words(text[], text[], integer, uuid) is
    'The patterns of a tenant with any of the candidates (lexemes), by the share of the words that '
    'they have, the most first. Internal.';

create or replace function tracedb.nearest_by_scan(
    embedding halfvec, model text, max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    -- Of vectors of length 1 the distance has the order of the cosine, for half its time.
    return query execute format(
        'select n.pattern_id, 1 - n.distance ^ 2 / 2 from ( '
        '    select e.pattern_id, e.embedding operator(%I.<->) $1 as distance '
        '    from tracedb.pattern_embeddings as e '
        '    where e.tenant_id = $2 and e.model = $3 and not exists ('
        '        select from tracedb.success_patterns as p '
        '        where p.tenant_id = $2 and p.pattern_id = e.pattern_id '
        '            and p.retired_at is not null) '
        '    order by distance, pattern_id limit $4) as n', tracedb.vector_schema())
    using embedding, nearest_by_scan.tenant_id, nearest_by_scan.model, max_rows;
end $$;

comment on function tracedb.nearest_by_scan(halfvec, text, integer, uuid) is
    'The patterns in force whose embeddings are nearest, found by looking at every one. Internal.';

create or replace function tracedb.nearest_by_index(
    embedding halfvec, model text, dimension integer, max_rows integer, tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- Or the planner might read and sort all of them, which is what the index is there to save.
set enable_sort = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    -- Not as clauses of the function: only a superuser may create those while pgvector, whose
    -- settings they are, is not loaded.
    settings constant jsonb := jsonb_build_object(
        'hnsw.iterative_scan', coalesce(current_setting('hnsw.iterative_scan', true), 'off'),
        'hnsw.ef_search', coalesce(current_setting('hnsw.ef_search', true), '40'));
begin
    -- The index goes on giving until max_rows are found that the query keeps.
    perform set_config('hnsw.iterative_scan', 'relaxed_order', true),
        set_config('hnsw.ef_search', '200', true);
    -- Tenant and model as literals, so that the planner sees that the tenant's own index serves.
    return query execute format(
        'select e.pattern_id, '
        '    1 - (e.embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) $1::%1$I.halfvec(%2$s)) '
        'from tracedb.pattern_embeddings as e '
        'where e.tenant_id = %3$L and e.model = %4$L and not exists ('
        '    select from tracedb.success_patterns as p '
        '    where p.tenant_id = %3$L and p.pattern_id = e.pattern_id '
        '        and p.retired_at is not null) '
        'order by e.embedding::%1$I.halfvec(%2$s) operator(%1$I.<=>) $1::%1$I.halfvec(%2$s) '
        'limit $2', tracedb.vector_schema(), nearest_by_index.dimension,
        nearest_by_index.tenant_id, nearest_by_index.model)
    using embedding, max_rows;
    perform set_config(s.name, s.value, true) from jsonb_each_text(settings) as s (name, value);
end $$;

comment on function tracedb.nearest_by_index(halfvec, text, integer, integer, uuid) is
    'The same, by the index that ensure_pattern_indexes has built for the tenant and model: nearly '
    'always the nearest, in no order, and perhaps fewer than there are. Internal.';

create or replace function tracedb.likenesses(
    embedding halfvec, model text, pattern_ids uuid[], tenant_id uuid
)
returns setof tracedb.near_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query execute format(
        'select e.pattern_id, 1 - (e.embedding operator(%I.<=>) $1) '
        'from tracedb.pattern_embeddings as e '
        'where e.tenant_id = $2 and e.model = $3 and e.pattern_id = any ($4)',
        tracedb.vector_schema())
    using embedding, likenesses.tenant_id, likenesses.model, pattern_ids;
end $$;

comment on function tracedb.likenesses(halfvec, text, uuid[], uuid) is
    'How like an embedding those of some patterns are: the cosine. Internal.';

reset role;
