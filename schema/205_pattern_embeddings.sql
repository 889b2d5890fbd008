-- 205_pattern_embeddings.sql: the patterns' embeddings, of any number of models side by side.

set role tracedb_owner;

create table if not exists tracedb.pattern_embeddings (
    tenant_id    uuid        not null,
    model        text        not null,
    pattern_id   uuid        not null,
    dimension    smallint    not null,
    content_hash uuid        not null,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),
    -- Half precision: 2 bytes a number find the same neighbours as 4 (tests/bench). Kept in the
    -- row, where reading it costs a fourth of what it does in TOAST. The type is not
    -- schema-qualified because providers install the extension in different schemas.
    embedding    halfvec     not null,
    constraint pattern_embeddings_pkey primary key (tenant_id, model, pattern_id),
    constraint pattern_embeddings_pattern foreign key (tenant_id, pattern_id)
        references tracedb.success_patterns on delete cascade,
    constraint embedding_names_its_model check (model <> '' and length(model) <= 200),
    -- What fits a page beside its key.
    constraint embedding_has_its_dimension
        check (dimension between 1 and 3072 and dimension = vector_dims(embedding))
) partition by hash (tenant_id);

alter table tracedb.pattern_embeddings alter column embedding set storage plain;

-- An exact search reads every embedding of a tenant: among those of a 64th of the tenants they lie
-- several times closer together than among those of all.
do $$
begin
    perform set_config('client_min_messages', 'warning', true);  -- no notice for one that is there
    for i in 0 .. 63 loop
        execute format(
            'create table if not exists tracedb.%I partition of tracedb.pattern_embeddings '
            'for values with (modulus 64, remainder %s)', 'pattern_embeddings_' || i, i);
        execute format(
            'alter table tracedb.%I enable row level security', 'pattern_embeddings_' || i);
        execute format(
            'alter table tracedb.%I force row level security', 'pattern_embeddings_' || i);
    end loop;
end $$;

-- The embeddings of one pattern, also for the foreign key.
create index if not exists pattern_embeddings_pattern_idx
on tracedb.pattern_embeddings (tenant_id, pattern_id);

-- An embedding of the same text by the same model, so that no text is embedded twice.
create index if not exists pattern_embeddings_content_idx
on tracedb.pattern_embeddings (tenant_id, model, content_hash);

comment on table tracedb.pattern_embeddings is
    'The embedding of a pattern''s prompt by a model. A new model is built beside the one in use '
    '(patterns_to_embed, put_embeddings); searches name the model they want.';
comment on column tracedb.pattern_embeddings.embedding is
    'Scaled to length 1: only directions are compared, and half precision then holds any of them.';
comment on column tracedb.pattern_embeddings.content_hash is
    'The MD5 of the text that was embedded: where it is not the prompt_hash of the pattern any '
    'more, the embedding is out of date.';
comment on constraint embedding_names_its_model on tracedb.pattern_embeddings is
    'model: required, at most 200 characters';
comment on constraint embedding_has_its_dimension on tracedb.pattern_embeddings is
    'dimension: must be from 1 to 3072, and what the embedding has';

reset role;
