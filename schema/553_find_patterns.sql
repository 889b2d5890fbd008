-- 553_find_patterns.sql: what worked before, found again, scored and explained.

set role tracedb_owner;

create or replace function tracedb.pattern_weights(
    has_embedding boolean,
    has_words boolean,
    context jsonb,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns double precision[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    s constant tracedb.pattern_settings := tracedb.pattern_settings(pattern_weights.tenant_id);
    weights double precision[] := array[
        case when has_embedding then s.semantic_weight else 0 end,
        case when has_words then s.keyword_weight else 0 end,
        case when context ? 'intent' then s.intent_weight else 0 end,
        case when context - 'intent' <> '{}' then s.context_weight else 0 end,
        s.history_weight
    ];
begin
    return array(
        select coalesce(w / nullif((select sum(v) from unnest(weights) as v), 0), 0)
        from unnest(weights) with ordinality as u (w, place)
        order by place);
end $$;

comment on function tracedb.pattern_weights(boolean, boolean, jsonb, uuid) is
    'What semantic, keyword, intent, context and history count in a search: as set for the tenant. '
    'A part that the search says nothing of counts nothing, and the others share its weight. '
    'Internal.';

create or replace function tracedb.scored_patterns(
    pattern_ids uuid[],
    embedding halfvec,
    model text,
    words tsquery,
    context jsonb,
    weights double precision[],
    as_of timestamptz,
    tenant_id uuid
)
returns setof tracedb.scored_pattern
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    wanted_intent constant text := lower(context ->> 'intent');
    labels constant jsonb := context - 'intent';
begin
    return query
    select
        p.pattern_id,
        -- as shown, so that the parts of the explanation give it
        round((weights[1] * v.semantic + weights[2] * v.keyword + weights[3] * v.intent
            + weights[4] * v.context + weights[5] * v.history)::numeric, 6)::double precision,
        h.use_successes + h.use_failures > 0,
        h.lower_bound,
        jsonb_build_object(
            'semantic', v.semantic, 'keyword', v.keyword, 'intent', v.intent,
            'context', v.context, 'history', v.history,
            'weights', jsonb_build_object(
                'semantic', weights[1], 'keyword', weights[2], 'intent', weights[3],
                'context', weights[4], 'history', weights[5]),
            'evidence', jsonb_build_object(
                'successes', h.successes, 'trials', h.trials, 'lower_bound', h.lower_bound,
                'decay', h.decay))
    from tracedb.success_patterns as p
    join tracedb.pattern_history(pattern_ids, as_of, scored_patterns.tenant_id) as h
        on h.pattern_id = p.pattern_id
    left join tracedb.likenesses(embedding, model, pattern_ids, scored_patterns.tenant_id) as e
        on e.pattern_id = p.pattern_id
    cross join lateral (
        select
            greatest(0, least(1, coalesce(e.likeness, 0))) as semantic,
            coalesce(tracedb.word_share(words, p.search), 0) as keyword,
            coalesce(lower(p.intent) = wanted_intent, false)::integer as intent,
            coalesce((
                select avg((
                    p.context || jsonb_build_object('agent_id', p.agent_id, 'route', p.route)
                    @> jsonb_build_object(l.key, l.value))::integer)
                from jsonb_each(labels) as l
            ), 0)::double precision as context,
            h.lower_bound * h.decay as history
    ) as v
    where p.tenant_id = scored_patterns.tenant_id and p.pattern_id = any (pattern_ids);
end $$;

comment on function tracedb.scored_patterns(
    uuid[], halfvec, text, tsquery, jsonb, double precision[], timestamptz, uuid
) is
    'Patterns with their scores and what these are made of; find_patterns says how. Internal.';

create or replace function tracedb.embedding_to_search(
    embedding real[],
    inout model text,
    tenant_id uuid,
    out unit halfvec,
    out dimension integer,
    out has_index boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    models text[];
begin
    unit := tracedb.unit_vector(embedding);
    if model is null then
        models := array(
            select m.model from tracedb.embedding_models(embedding_to_search.tenant_id) as m);
        if cardinality(models) > 1 then
            raise exception using errcode = 'TD002',
                message = 'model: required, one of ' || array_to_string(models, ', ');
        end if;
        model := models[1];
    end if;
    select e.dimension into dimension
    from tracedb.pattern_embeddings as e
    where e.tenant_id = embedding_to_search.tenant_id and e.model = embedding_to_search.model
    order by e.pattern_id  -- along the key, however the planner guesses
    limit 1;
    if dimension <> cardinality(embedding) then
        raise exception using errcode = 'TD002', message = format(
            'embedding: must have %s dimensions, as those of model "%s" have', dimension, model);
    end if;
    has_index := exists (
        select
        from tracedb.pattern_indexes as i
        where i.tenant_id = embedding_to_search.tenant_id and i.kind = 'vectors'
            and i.model = embedding_to_search.model
            and i.dimension = embedding_to_search.dimension
            and to_regclass('tracedb.' || quote_ident(i.index_name)) is not null
    );
end $$;

comment on function tracedb.embedding_to_search(real[], text, uuid) is
    'An embedding as it is searched: of length 1, with its model (the only one, if none is named), '
    'the dimension of that (null: no pattern has an embedding of it) and whether the tenant has an '
    'index of it. Raises TD002 "field: rule". Internal.';

create or replace function tracedb.find_patterns(
    embedding real[] default null,
    query text default null,
    context jsonb default '{}',
    k integer default 5,
    min_score double precision default null,
    model text default null,
    seed bigint default null,
    as_of timestamptz default now(),
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    rank bigint,
    pattern_id uuid,
    score double precision,
    prompt text,
    intent text,
    agent_id text,
    route text,
    tool_sequence text[],
    confidence double precision,
    explored boolean,
    mode text,
    explanation jsonb
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    tenant constant uuid := find_patterns.tenant_id;
    s constant tracedb.pattern_settings := tracedb.pattern_settings(tenant);
    least_score constant double precision := coalesce(min_score, s.min_score);
    unit tracedb.pattern_embeddings.embedding%type;
    dimension integer;
    has_index boolean;
    words text[] := '{}';
    rare text[] := '{}';
    weights double precision[];
    most_without double precision;  -- score of a pattern without an embedding or a rare word
    how text := 'keyword';
    pool integer := greatest(50, 4 * k);
    cut integer := pool;
    near tracedb.near_pattern[] := '{}';
    named tracedb.near_pattern[] := '{}';
    others uuid[];
    ids uuid[];
    scored tracedb.scored_pattern[];
    chance double precision;
    untried bigint;
begin
    if embedding is null and query is null then
        raise exception using errcode = 'TD002', message = 'embedding, query: at least one';
    end if;
    if k is null or k not between 1 and 100 then
        raise exception using errcode = 'TD002', message = 'k: must be from 1 to 100';
    end if;
    if (least_score between 0 and 1) is not true then
        raise exception using errcode = 'TD002', message = 'min_score: must be from 0 to 1';
    end if;
    if jsonb_typeof(context) is distinct from 'object' then
        raise exception using errcode = 'TD002', message = 'context: must be an object';
    end if;
    if embedding is not null then
        select e.unit, e.model, e.dimension, e.has_index into unit, model, dimension, has_index
        from tracedb.embedding_to_search(embedding, find_patterns.model, tenant) as e;
    end if;
    if query is not null then
        -- the longest of a very long text, of which a tsvector holds no more than a megabyte
        words := array(
            select w
            from unnest(tsvector_to_array(
                tracedb.pattern_document(left(query, 100000), null, '{}'))) as w
            order by length(w) desc, w
            limit 64);
        rare := array(
            select unnest(words)
            except
            select unnest(i.common_words)
            from tracedb.pattern_indexes as i
            where i.tenant_id = tenant and i.kind = 'words' and i.model = '');
        if rare = '{}' and dimension is null then
            rare := words;  -- slow, but nothing else would find anything
        end if;
    end if;
    weights := tracedb.pattern_weights(dimension is not null, words <> '{}', context, tenant);
    most_without := 1 - weights[1] - weights[2] + weights[2] * coalesce(
        1 - cardinality(rare) / nullif(cardinality(words), 0)::double precision, 0);

    loop
        if dimension is not null then
            how := case when has_index and pool <= 1000 then 'hnsw' else 'exact' end;
            if how = 'hnsw' then
                near := array(
                    select n::tracedb.near_pattern
                    from tracedb.nearest_by_index(unit, model, dimension, pool, tenant) as n
                    order by n.likeness desc, n.pattern_id);
                if cardinality(near) < pool then
                    how := 'exact';
                end if;
            end if;
            if how = 'exact' then
                near := array(
                    select n::tracedb.near_pattern
                    from tracedb.nearest_by_scan(unit, model, pool, tenant) as n
                    order by n.likeness desc, n.pattern_id);
            end if;
        end if;
        if rare <> '{}' then
            named := array(
                select n::tracedb.near_pattern
                from tracedb.patterns_with_words(words, rare, pool, tenant) as n
                order by n.likeness desc, n.pattern_id);
        end if;
        -- Cut by reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a cosine and a
        -- share of words have no common scale, places have.
        ids := array(
            select f.pattern_id
            from (
                select n.pattern_id, 1.0 / (60 + n.place) as share
                from unnest(near) with ordinality as n (pattern_id, likeness, place)
                union all
                select n.pattern_id, 1.0 / (60 + n.place)
                from unnest(named) with ordinality as n (pattern_id, likeness, place)
                union all
                select o, 0 from unnest(others) as o
            ) as f
            group by f.pattern_id
            order by sum(f.share) desc, f.pattern_id
            limit cut);
        scored := array(
            select p::tracedb.scored_pattern
            from tracedb.scored_patterns(
                ids, unit, model, tracedb.word_query(words), context, weights, as_of, tenant) as p
            join unnest(ids) with ordinality as i (pattern_id, place)
                on i.pattern_id = p.pattern_id
            where p.score >= least_score
            order by p.score desc, i.place);
        exit when cardinality(scored) >= k;
        -- Too few are good enough: look on while there are more, and one of them may be.
        if cardinality(near) < pool and cardinality(named) < pool
            and (cut is null or cardinality(ids) < cut)
        then
            exit when others is not null or least_score > most_without + 1e-6;
            others := array(
                select n.pattern_id
                from tracedb.patterns_with_words(words, words, pool, tenant) as n
                where cardinality(rare) < cardinality(words)  -- slow, but there is nothing better
                union
                (
                    -- what has none of the words, but the intent, or has no embedding yet
                    select p.pattern_id
                    from tracedb.success_patterns as p
                    cross join lateral (
                        select coalesce(
                            lower(p.intent) = lower(find_patterns.context ->> 'intent'), false)
                            as is_wanted
                    ) as i
                    where p.tenant_id = tenant and p.retired_at is null
                        and p.pattern_id <> all (ids) and (dimension is not null or i.is_wanted)
                    order by i.is_wanted desc, p.pattern_id desc
                    limit pool
                ));
            continue;
        end if;
        exit when cut is null and least_score > greatest(most_without,
            1 - weights[1] - weights[2]
            + weights[2] * case when cardinality(named) = pool then named[pool].likeness else 0 end)
            + weights[1] * case
                when cardinality(near) = pool then greatest(0, near[pool].likeness) else 0
            end;
        if cut is null then
            pool := pool * 8;
        end if;
        cut := null;
    end loop;

    -- One search in so many gives its last place to the best pattern that nobody has tried, unless
    -- one is among the first k anyway.
    chance := case
        when seed is null then random()
        else ('x' || left(md5(seed::text), 8))::bit(32)::bigint / 4294967296.0
    end;
    if chance < s.explore_share then
        select min(p.place) into untried
        from unnest(scored) with ordinality as p (
            pattern_id, score, is_tried, confidence, explanation, place)
        where not p.is_tried;
    end if;
    return query
    select
        least(f.place, k), p.pattern_id, f.score, p.prompt, p.intent, p.agent_id, p.route,
        p.tool_sequence, f.confidence, f.place > k, how,
        f.explanation || jsonb_build_object(
            'semantic_place', array_position(near_ids, p.pattern_id),
            'keyword_place', array_position(named_ids, p.pattern_id))
    from unnest(scored) with ordinality as f (
        pattern_id, score, is_tried, confidence, explanation, place)
    join tracedb.success_patterns as p on p.tenant_id = tenant and p.pattern_id = f.pattern_id
    cross join (select array(select n.pattern_id from unnest(near) as n),
        array(select n.pattern_id from unnest(named) as n)) as l (near_ids, named_ids)
    where f.place <= k - coalesce(untried > k, false)::integer or f.place = untried
    order by f.place;
end $$;

comment on function tracedb.find_patterns(
    real[], text, jsonb, integer, double precision, text, bigint, timestamptz, uuid
) is
    'The k patterns (1 to 100) that fit best what is asked: by its embedding, by its text (query), '
    'or both. Candidates are the nearest by cosine and those with most of the words, fused by '
    'their places; their score is the weighted mean of semantic (cosine), keyword (share of the '
    'words), intent (context''s intent is the pattern''s), context (share of the other labels of '
    'context that agent_id, route or the pattern''s context has) and history (lower confidence '
    'bound of success, decayed with age: pattern_history); what the search says nothing of does '
    'not count. explanation has the parts, their weights, the evidence and the places. Those below '
    'min_score (default: the tenant''s setting) are left out, never fewer than k while k others '
    'fit: where candidates are too few, others of the intent are taken as well, and what has no '
    'embedding of the model yet. model says whose embeddings are searched (needed where there are '
    'several). In a share of the searches (explore_share; the same seed decides the same) the last '
    'place goes to the best untried pattern: explored. mode tells how embeddings were searched: '
    'exact (each one), hnsw (the tenant''s own index, ensure_pattern_indexes), or keyword (not at '
    'all).';

reset role;
