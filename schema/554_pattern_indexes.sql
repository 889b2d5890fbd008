-- 554_pattern_indexes.sql: indexes of their own for tenants with many patterns.

set role tracedb_owner;

create or replace function tracedb.wanted_pattern_indexes()
returns table (
    tenant_id uuid, kind text, model text, dimension smallint, row_count bigint, size_share numeric
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        c.tenant_id, c.kind, c.model, c.dimension, c.row_count,
        c.row_count * coalesce(c.dimension, 1)
            / (case c.kind when 'vectors' then s.exact_search_limit else s.word_search_limit end
                + 0.5)
    from (
        select e.tenant_id, 'vectors' as kind, e.model, e.dimension, count(*) as row_count
        from tracedb.pattern_embeddings as e
        group by e.tenant_id, e.model, e.dimension
        union all
        select p.tenant_id, 'words', '', null, count(*)
        from tracedb.success_patterns as p
        group by p.tenant_id
    ) as c
    cross join lateral tracedb.pattern_settings(c.tenant_id) as s;
end $$;

comment on function tracedb.wanted_pattern_indexes() is
    'What each tenant has to search, of embeddings a model and of words, and its size as a share '
    'of what it may be without an index: above 1 ensure_pattern_indexes builds one, below 0.5 it '
    'drops it.';

create or replace function tracedb.embeddings_partition(tenant_id uuid)
returns name
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select 'pattern_embeddings_' || i
        from generate_series(0, 63) as i
        where satisfies_hash_partition('tracedb.pattern_embeddings'::regclass, 64, i,
            embeddings_partition.tenant_id)
    );
end $$;

comment on function tracedb.embeddings_partition(uuid) is
    'The partition that has the embeddings of a tenant. Internal.';

create or replace function tracedb.build_pattern_index(
    tenant_id uuid, kind text, model text, dimension smallint, row_count bigint
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    index_name constant text := case kind
        when 'vectors' then 'pattern_embeddings_hnsw_' else 'success_patterns_words_'
    end || left(md5(concat_ws(' ', tenant_id, model)), 16);
begin
    if kind = 'vectors' then
        execute format(
            'create index %1$I on tracedb.%6$I '
            'using hnsw ((embedding::%2$I.halfvec(%3$s)) %2$I.halfvec_cosine_ops) '
            'where tenant_id = %4$L and model = %5$L',
            index_name, tracedb.vector_schema(), dimension, tenant_id, model,
            tracedb.embeddings_partition(tenant_id));
    else
        execute format(
            'create index %I on tracedb.success_patterns using gin (search) where tenant_id = %L',
            index_name, tenant_id);
    end if;
    insert into tracedb.pattern_indexes as i (
        tenant_id, kind, model, index_name, dimension, row_count, common_words
    )
    values (
        build_pattern_index.tenant_id, build_pattern_index.kind, build_pattern_index.model,
        index_name, build_pattern_index.dimension, build_pattern_index.row_count,
        case when build_pattern_index.kind = 'words'
            then tracedb.common_pattern_words(build_pattern_index.tenant_id) else '{}' end
    )
    on conflict (tenant_id, kind, model) do update set
        index_name = excluded.index_name, dimension = excluded.dimension,
        row_count = excluded.row_count, common_words = excluded.common_words,
        built_at = excluded.built_at;
    return index_name;
end $$;

comment on function tracedb.build_pattern_index(uuid, text, text, smallint, bigint) is
    'Builds an index of a tenant and enters it in pattern_indexes. Internal.';

create or replace function tracedb.common_pattern_words(tenant_id uuid)
returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return array(
        select w.word
        from ts_stat(format(
            'select search from tracedb.success_patterns where tenant_id = %L',
            common_pattern_words.tenant_id)) as w
        where w.ndoc > 500
        order by 1
    );
end $$;

comment on function tracedb.common_pattern_words(uuid) is
    'The words that more than 500 patterns of a tenant have: looking them all up and ranking them '
    'would cost a search more than the index saves. Internal.';

create or replace function tracedb.ensure_pattern_indexes(
    max_indexes integer default 10, max_memory_mb integer default 1024
)
returns table (
    action text, index_name text, tenant_id uuid, kind text, model text, row_count bigint
)
language plpgsql volatile
security definer  -- indexes are the owner's to make; the maintainer is only granted this call
set search_path = pg_catalog, pg_temp
-- Below deadlock_timeout: of a writer and this, it is this that gives up.
set lock_timeout = '900ms'
as $$
#variable_conflict use_column
declare
    it record;
    actions integer := 0;
begin
    if max_indexes is null or max_indexes not between 1 and 1000 then
        raise exception using errcode = 'TD002', message = 'max_indexes: must be from 1 to 1000';
    end if;
    if max_memory_mb is null or max_memory_mb not between 64 and 65536 then
        raise exception using errcode = 'TD002',
            message = 'max_memory_mb: must be from 64 to 65536';
    end if;
    if pg_is_in_recovery() then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('tracedb.pattern_indexes')) then
        raise notice 'another session is managing indexes of patterns';
        return;
    end if;
    perform set_config('maintenance_work_mem', max_memory_mb || 'MB', true);
    for it in
        select
            coalesce(w.tenant_id, i.tenant_id) as tenant_id, coalesce(w.kind, i.kind) as kind,
            coalesce(w.model, i.model) as model, w.dimension, coalesce(w.row_count, 0) as row_count,
            coalesce(w.size_share, 0) as size_share, i.index_name, i.dimension as built_dimension,
            i.row_count as built_rows,
            to_regclass('tracedb.' || quote_ident(i.index_name)) is not null as is_there
        from tracedb.wanted_pattern_indexes() as w
        full join tracedb.pattern_indexes as i
            on i.tenant_id = w.tenant_id and i.kind = w.kind and i.model = w.model
        where w.size_share > 1 or i.index_name is not null
        order by w.size_share desc nulls last, 1, 2, 3
    loop
        exit when actions >= max_indexes;
        action := case
            when it.index_name is null then 'built'
            when it.size_share < 0.5 then 'dropped'
            when it.size_share > 1 and (
                not it.is_there or it.dimension is distinct from it.built_dimension) then 'built'
            when it.kind = 'words' and it.row_count > 2 * it.built_rows then 'refreshed'
        end;
        continue when action is null;
        if it.is_there and action <> 'refreshed' then
            execute format('drop index tracedb.%I', it.index_name);
        end if;
        tenant_id := it.tenant_id;
        kind := it.kind;
        model := it.model;
        row_count := it.row_count;
        index_name := it.index_name;
        if action = 'built' then
            index_name := tracedb.build_pattern_index(
                it.tenant_id, it.kind, it.model, it.dimension, it.row_count);
        elsif action = 'dropped' then
            delete from tracedb.pattern_indexes as i
            where i.tenant_id = it.tenant_id and i.kind = it.kind and i.model = it.model;
        else
            update tracedb.pattern_indexes as i
            set row_count = it.row_count, built_at = now(),
                common_words = tracedb.common_pattern_words(it.tenant_id)
            where i.tenant_id = it.tenant_id and i.kind = it.kind and i.model = it.model;
        end if;
        actions := actions + 1;
        return next;
    end loop;
end $$;

comment on function tracedb.ensure_pattern_indexes(integer, integer) is
    'Builds an index for each tenant and model with more numbers to search than '
    'exact_search_limit, and for the words of each tenant with more patterns than '
    'word_search_limit; drops those of tenants with less than half of that; at most max_indexes a '
    'call, the largest first, with max_memory_mb for each. Returns what it did. While it builds, '
    'writers of the same partition of pattern_embeddings (or of success_patterns) wait, which are '
    'background work; searches do not. It gives up when it has to wait itself for longer than a '
    'second. Run it daily; does nothing on a replica or while another session does the same.';

reset role;
