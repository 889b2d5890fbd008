-- 160_ingest_ledger.sql: what became of every record a writer accepted.

set role tracedb_owner;

create or replace function tracedb.number_count(numbers int8multirange)
returns bigint
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(sum(upper(r) - lower(r)), 0)::bigint from unnest(numbers) as r
$$;

comment on function tracedb.number_count(int8multirange) is
    'How many numbers a set of ranges holds.';

create table if not exists tracedb.ingest_writers (
    tenant_id    uuid           not null,
    writer_id    uuid           not null,
    -- Null: the writer did not say.
    service      text,
    highest_no   bigint         not null default 0,
    -- Every number is settled once, so a writer without losses has a single range here.
    settled      int8multirange not null default '{}',
    dropped      int8multirange not null default '{}',
    stored       bigint         not null default 0,
    dead         bigint         not null default 0,
    requeued     bigint         not null default 0,
    repeated     bigint         not null default 0,
    closed       boolean        not null default false,
    created_at   timestamptz    not null default now(),
    last_seen_at timestamptz    not null default now(),
    constraint ingest_writers_pkey primary key (tenant_id, writer_id),
    constraint writer_numbers_start_at_1 check (lower(settled) >= 1),
    constraint writer_settled_was_given_out check (upper(settled) - 1 <= highest_no),
    constraint writer_ledger_adds_up check (
        stored + dead + tracedb.number_count(dropped) = tracedb.number_count(settled)
    ),
    constraint writer_requeued_were_dead check (requeued between 0 and dead)
);

comment on table tracedb.ingest_writers is
    'A writer (one process, one tenant) and what became of the records it numbered 1, 2, 3, ... '
    'Written in the transaction that stores the records.';
comment on column tracedb.ingest_writers.highest_no is
    'The highest number known to have been given out.';
comment on column tracedb.ingest_writers.settled is
    'The numbers whose fate is known: stored, dead or dropped.';
comment on column tracedb.ingest_writers.dropped is
    'The numbers the writer gave up because its queue was full.';
comment on column tracedb.ingest_writers.stored is
    'Records in the tables, without those requeued from the dead letters, and with those that an '
    'erasure took out again, or kept out.';
comment on column tracedb.ingest_writers.dead is
    'Records that became dead letters, requeued and purged ones included.';
comment on column tracedb.ingest_writers.requeued is
    'Dead letters that were stored later.';
comment on column tracedb.ingest_writers.repeated is
    'Deliveries of records that were settled already (after a lost reply or a replay); they '
    'changed nothing.';
comment on column tracedb.ingest_writers.closed is
    'Whether the writer said that it was done: it gives out no more numbers.';
comment on constraint writer_numbers_start_at_1 on tracedb.ingest_writers is
    'settled: numbers start at 1';
comment on constraint writer_settled_was_given_out on tracedb.ingest_writers is
    'settled: no number beyond highest_no';
comment on constraint writer_ledger_adds_up on tracedb.ingest_writers is
    'stored, dead, dropped: must add up to what is settled';
comment on constraint writer_requeued_were_dead on tracedb.ingest_writers is
    'requeued: at most the dead';

create table if not exists tracedb.dead_letters (
    tenant_id      uuid        not null,
    dead_letter_id uuid        not null default tracedb.new_id(),
    writer_id      uuid        not null,
    record_no      bigint      not null,
    record         text        not null,
    reason         text        not null,
    -- Null: refused by the rules of a record, not by an error of the database.
    sqlstate       text,
    created_at     timestamptz not null default now(),
    constraint dead_letters_pkey primary key (tenant_id, dead_letter_id),
    constraint dead_letters_number unique (tenant_id, writer_id, record_no)
);

comment on table tracedb.dead_letters is
    'Records that cannot be stored as they are, each with the reason. requeue_dead_letters tries '
    'them again, purge_dead_letters gives them up.';
comment on column tracedb.dead_letters.record is
    'The record as JSON, as the writer would have sent it: redacted and capped.';
comment on column tracedb.dead_letters.reason is
    'Why it was refused, as "field: rule" where one field is at fault.';

reset role;
