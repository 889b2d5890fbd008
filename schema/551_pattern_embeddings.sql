-- 551_pattern_embeddings.sql: embeddings of patterns, model by model, without a gap.

set role tracedb_owner;

create or replace function tracedb.vector_schema()
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select n.nspname
        from pg_catalog.pg_extension as e
        join pg_catalog.pg_namespace as n on n.oid = e.extnamespace
        where e.extname = 'vector'
    );
end $$;

comment on function tracedb.vector_schema() is
    'The schema in which the provider has installed pgvector. Internal.';

create or replace function tracedb.unit_vector(embedding real[], out unit halfvec)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    length double precision;
begin
    if coalesce(cardinality(embedding), 0) not between 1 and 3072 then
        raise exception using errcode = 'TD002',
            message = 'embedding: must have from 1 to 3072 dimensions';
    end if;
    execute format(
        'select %1$I.l2_normalize($1::%1$I.vector)::%1$I.halfvec, '
        '%1$I.vector_norm($1::%1$I.vector)', tracedb.vector_schema())
    into unit, length
    using embedding;
    if length = 0 then
        raise exception using errcode = 'TD002', message = 'embedding: must not be all zeros';
    end if;
exception
    when data_exception then
        raise exception using errcode = 'TD002',
            message = 'embedding: must be finite numbers: ' || sqlerrm;
end $$;

comment on function tracedb.unit_vector(real[]) is
    'An embedding scaled to length 1, in half precision. Raises TD002 "field: rule" for what is '
    'none: no numbers, NaN, infinite, all zeros. Internal.';

create or replace function tracedb.embedding_models(
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (model text, dimension smallint)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    -- from one model to the next along the key, not over all embeddings
    with recursive m as (
        (
            select e.model, e.dimension
            from tracedb.pattern_embeddings as e
            where e.tenant_id = embedding_models.tenant_id
            order by e.model
            limit 1
        )
        union all
        select n.model, n.dimension
        from m
        cross join lateral (
            select e.model, e.dimension
            from tracedb.pattern_embeddings as e
            where e.tenant_id = embedding_models.tenant_id and e.model > m.model
            order by e.model
            limit 1
        ) as n
    )
    select m.model, m.dimension from m;
end $$;

comment on function tracedb.embedding_models(uuid) is
    'The models that a tenant has embeddings of, and their dimensions.';

create or replace function tracedb.patterns_to_embed(
    model text,
    max_rows integer default 100,
    after uuid default null,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (pattern_id uuid, prompt text, prompt_hash uuid, embedding real[])
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if max_rows is null or max_rows not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000';
    end if;
    return query
    select p.pattern_id, p.prompt, p.prompt_hash, k.embedding
    from tracedb.success_patterns as p
    left join tracedb.pattern_embeddings as e
        on e.tenant_id = p.tenant_id and e.model = patterns_to_embed.model
            and e.pattern_id = p.pattern_id
    left join lateral (
        select same.embedding::real[]
        from tracedb.pattern_embeddings as same
        where same.tenant_id = patterns_to_embed.tenant_id
            and same.model = patterns_to_embed.model and same.content_hash = p.prompt_hash
        limit 1
    ) as k (embedding) on true
    where p.tenant_id = patterns_to_embed.tenant_id and p.retired_at is null
        and p.pattern_id > coalesce(after, '00000000-0000-0000-0000-000000000000')
        and e.content_hash is distinct from p.prompt_hash
    order by p.pattern_id
    limit max_rows;
end $$;

comment on function tracedb.patterns_to_embed(text, integer, uuid, uuid) is
    'Patterns that have no embedding by a model, or one of another text, at most max_rows (1 to '
    '1000), from the one after "after" on. embedding is that of another pattern with the same text '
    'and model: put it instead of embedding the text again; null: there is none.';

create or replace function tracedb.put_embeddings(
    model text,
    pattern_ids uuid[],
    embeddings real[],
    prompt_hashes uuid[],
    tenant_id uuid default tracedb.current_tenant_id()
)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    given constant integer := array_length(embeddings, 2);
    kept smallint;
    stored integer;
begin
    if cardinality(pattern_ids) = 0 then
        return 0;
    end if;
    if array_ndims(embeddings) is distinct from 2
        or array_length(embeddings, 1) is distinct from cardinality(pattern_ids)
        or cardinality(prompt_hashes) is distinct from cardinality(pattern_ids)
    then
        raise exception using errcode = 'TD002', message =
            'embeddings, prompt_hashes: must be as many as pattern_ids, and all of one dimension';
    end if;
    if not exists (
        select from tracedb.pattern_embeddings as e
        where e.tenant_id = put_embeddings.tenant_id and e.model = put_embeddings.model
    ) then
        -- One is the first of a model, and the others see its dimension.
        perform pg_advisory_xact_lock(
            hashtextextended(format('tracedb.model/%s/%s', put_embeddings.tenant_id, model), 0));
    end if;
    select e.dimension into kept
    from tracedb.pattern_embeddings as e
    where e.tenant_id = put_embeddings.tenant_id and e.model = put_embeddings.model
    order by e.pattern_id  -- along the key, however the planner guesses
    limit 1;
    if kept <> given then
        raise exception using errcode = 'TD002', message = format(
            'embeddings: must have %s dimensions, as those of model "%s" have', kept, model);
    end if;
    insert into tracedb.pattern_embeddings as e (
        tenant_id, model, pattern_id, dimension, content_hash, embedding
    )
    select distinct on (p.pattern_id)
        p.tenant_id, put_embeddings.model, p.pattern_id, given, g.prompt_hash,
        tracedb.unit_vector(array(select unnest(embeddings[g.place:g.place])))
    from unnest(pattern_ids, prompt_hashes) with ordinality as g (pattern_id, prompt_hash, place)
    join tracedb.success_patterns as p
        on p.tenant_id = put_embeddings.tenant_id and p.pattern_id = g.pattern_id
    on conflict (tenant_id, model, pattern_id) do update set
        dimension = excluded.dimension, content_hash = excluded.content_hash,
        embedding = excluded.embedding, updated_at = excluded.updated_at;
    get diagnostics stored = row_count;
    return stored;
end $$;

comment on function tracedb.put_embeddings(text, uuid[], real[], uuid[], uuid) is
    'Stores the embeddings (a row each, all of one dimension) of patterns by a model, with the '
    'prompt_hash of what was embedded, and returns how many: patterns that are gone are left out. '
    'Those of other models stay, so searches by them find all there is. Raises TD002 "field: '
    'rule".';

create or replace function tracedb.pattern_models(
    tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    model text,
    dimension smallint,
    pattern_count bigint,
    embedded_count bigint,
    outdated_count bigint,
    missing_count bigint,
    index_name text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with patterns as (
        select count(*) as number
        from tracedb.success_patterns as p
        where p.tenant_id = pattern_models.tenant_id and p.retired_at is null
    ),
    embedded as (
        select
            e.model, min(e.dimension) as dimension, count(*) as number,
            count(*) filter (where e.content_hash <> p.prompt_hash) as outdated
        from tracedb.pattern_embeddings as e
        join tracedb.success_patterns as p
            on p.tenant_id = e.tenant_id and p.pattern_id = e.pattern_id
        where e.tenant_id = pattern_models.tenant_id and p.retired_at is null
        group by e.model
    )
    select
        e.model, e.dimension, p.number, e.number, e.outdated, p.number - e.number, i.index_name
    from embedded as e
    cross join patterns as p
    left join tracedb.pattern_indexes as i
        on i.tenant_id = pattern_models.tenant_id and i.kind = 'vectors' and i.model = e.model
    order by e.model;
end $$;

comment on function tracedb.pattern_models(uuid) is
    'How far each model has come: patterns in force, how many have an embedding of it (of another '
    'text than they have now: outdated), how many have none, and the index of its own, if any.';

create or replace function tracedb.drop_embedding_model(
    model text,
    max_rows integer default 10000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    gone integer;
begin
    if max_rows is null or max_rows not between 1 and 1000000 then
        raise exception using errcode = 'TD002', message = 'max_rows: must be from 1 to 1000000';
    end if;
    delete from tracedb.pattern_embeddings as e
    where e.tenant_id = drop_embedding_model.tenant_id and e.model = drop_embedding_model.model
        and e.pattern_id = any (array(
            select d.pattern_id
            from tracedb.pattern_embeddings as d
            where d.tenant_id = drop_embedding_model.tenant_id
                and d.model = drop_embedding_model.model
            limit max_rows
        ));
    get diagnostics gone = row_count;
    return gone;
end $$;

comment on function tracedb.drop_embedding_model(text, integer, uuid) is
    'Removes the embeddings of a model, at most max_rows a call, and returns how many: call it '
    'until it returns 0. ensure_pattern_indexes then drops its index.';

reset role;
