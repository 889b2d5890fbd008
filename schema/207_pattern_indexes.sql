-- 207_pattern_indexes.sql: the indexes that large tenants have for themselves.

set role tracedb_owner;

create table if not exists tracedb.pattern_indexes (
    tenant_id    uuid        not null,
    kind         text        not null,
    model        text        not null,
    index_name   text        not null,
    -- Null: an index of words.
    dimension    smallint,
    row_count    bigint      not null,
    common_words text[]      not null default '{}',
    built_at     timestamptz not null default now(),
    constraint pattern_indexes_pkey primary key (tenant_id, kind, model),
    constraint pattern_index_kind_known check (kind in ('vectors', 'words')),
    constraint pattern_index_is_of_a_model
        check ((kind = 'vectors') = (model <> '') and (kind = 'vectors') = (dimension is not null))
);

comment on table tracedb.pattern_indexes is
    'The index that ensure_pattern_indexes has built for one tenant and model (kind vectors, on '
    'pattern_embeddings), or for the words of its patterns (kind words, on success_patterns; the '
    'model is empty). An index of all tenants would find a tenant few of its own neighbours.';
comment on column tracedb.pattern_indexes.row_count is
    'Rows when it was built.';
comment on column tracedb.pattern_indexes.common_words is
    'Of kind words: what stood in so many of the tenant''s patterns that it finds none of them.';
comment on constraint pattern_index_kind_known on tracedb.pattern_indexes is
    'kind: must be vectors or words';
comment on constraint pattern_index_is_of_a_model on tracedb.pattern_indexes is
    'model, dimension: of vectors, and of nothing else';

reset role;
