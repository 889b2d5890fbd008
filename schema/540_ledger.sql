-- 540_ledger.sql: storing for a writer: every numbered record stored, dead or dropped, and counted.

set role tracedb_owner;

create or replace function tracedb.touch_writer(
    writer_id uuid, service text, highest_no bigint, closed boolean,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if tenant_id is null then
        raise exception using
            errcode = 'TD001',
            message = 'no tenant is set',
            hint = 'Call tracedb.set_tenant() in this transaction, or pass tenant_id.';
    end if;
    insert into tracedb.ingest_writers as w (tenant_id, writer_id, service, highest_no, closed)
    values (
        touch_writer.tenant_id, touch_writer.writer_id, touch_writer.service,
        touch_writer.highest_no, touch_writer.closed)
    on conflict (tenant_id, writer_id) do update set
        service = coalesce(excluded.service, w.service),
        highest_no = greatest(w.highest_no, excluded.highest_no),
        closed = excluded.closed,
        last_seen_at = now();
end $$;

comment on function tracedb.touch_writer(uuid, text, bigint, boolean, uuid) is
    'Says that a writer lives, the highest number it has given out, and whether it is done. The '
    'first statement of a delivery: it makes deliveries of one writer wait for each other.';

create or replace function tracedb.record_delivery(
    writer_id uuid, numbers int8multirange, outcome text,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    fresh int8multirange;
    fresh_count bigint;
begin
    if outcome is null or outcome not in ('stored', 'dead', 'dropped') then
        raise exception using
            errcode = 'TD002', message = 'outcome: must be one of stored, dead, dropped';
    end if;
    select numbers - w.settled into fresh
    from tracedb.ingest_writers as w
    where w.tenant_id = record_delivery.tenant_id and w.writer_id = record_delivery.writer_id
    for update;
    if not found then
        raise exception using
            errcode = 'TD002', message = 'writer_id: unknown; call tracedb.touch_writer first';
    end if;
    fresh_count := tracedb.number_count(fresh);
    update tracedb.ingest_writers as w set
        settled = w.settled + fresh,
        highest_no = greatest(w.highest_no, upper(fresh) - 1),
        stored = w.stored + case outcome when 'stored' then fresh_count else 0 end,
        dead = w.dead + case outcome when 'dead' then fresh_count else 0 end,
        dropped = case outcome when 'dropped' then w.dropped + fresh else w.dropped end,
        repeated = w.repeated + tracedb.number_count(numbers) - fresh_count,
        last_seen_at = now()
    where w.tenant_id = record_delivery.tenant_id and w.writer_id = record_delivery.writer_id;
    return tracedb.number_count(numbers) - fresh_count;
end $$;

comment on function tracedb.record_delivery(uuid, int8multirange, text, uuid) is
    'Settles numbers of a writer as stored, dead or dropped, in the transaction that made it so. '
    'A number is settled once; returns how many were settled before.';

create or replace function tracedb.bury(
    writer_id uuid, record_no bigint, record text, reason text, sqlstate_ text,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    repeated bigint;
begin
    repeated := tracedb.record_delivery(
        writer_id, int8multirange(int8range(record_no, record_no, '[]')), 'dead', tenant_id);
    -- Of somebody who was erased nothing is kept; the number counts as dead even so.
    if repeated = 0 and not (
        exists (select from tracedb.erased_keys as e where e.tenant_id = bury.tenant_id)
        and tracedb.without_erased(array[tracedb.readable_record(record)], tenant_id) = '{}'
    ) then
        insert into tracedb.dead_letters (
            tenant_id, writer_id, record_no, record, reason, sqlstate)
        values (
            bury.tenant_id, bury.writer_id, bury.record_no, bury.record, bury.reason,
            bury.sqlstate_)
        on conflict do nothing;
    end if;
    return repeated;
end $$;

comment on function tracedb.bury(uuid, bigint, text, text, text, uuid) is
    'Keeps a record that cannot be stored as a dead letter, unless it is of somebody who was '
    'erased. Returns 1 if its number was settled before, and then does nothing.';

create or replace function tracedb.ingest_from(
    writer_id uuid, numbers bigint[], batch json,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    tenant constant uuid := tenant_id;
    writer constant uuid := writer_id;
    given constant int8multirange := (
        select range_agg(int8range(n.record_no, n.record_no, '[]'))
        from unnest(numbers) as n (record_no)
    );
    answer jsonb;
    refused record;
    stored int8multirange;
    repeated bigint := 0;
begin
    if json_typeof(batch) is distinct from 'array'
        or json_array_length(batch) is distinct from cardinality(numbers)
    then
        raise exception using
            errcode = 'TD002', message = 'numbers: must be one for each record of the batch';
    end if;
    -- What was delivered before, whole, need not be looked at: the numbers say what became of it.
    if exists (
        select from tracedb.ingest_writers as w
        where w.tenant_id = tenant and w.writer_id = writer and w.settled @> given
    ) then
        repeated := tracedb.record_delivery(writer, given, 'stored', tenant);
        answer := (
            select coalesce(jsonb_agg(jsonb_build_object(
                'index', array_position(numbers, d.record_no) - 1, 'reason', d.reason)), '[]')
            from tracedb.dead_letters as d
            where d.tenant_id = tenant and d.writer_id = writer and d.record_no = any(numbers)
        );
        return jsonb_build_object(
            'received', repeated, 'inserted', 0, 'merged', 0,
            'duplicates', repeated - jsonb_array_length(answer),
            'rejected', answer, 'repeated', repeated);
    end if;
    answer := tracedb.ingest(batch, tenant_id);
    for refused in
        select numbers[(r ->> 'index')::integer + 1] as record_no,
            batch ->> (r ->> 'index')::integer as item,
            r ->> 'reason' as reason
        from jsonb_array_elements(answer -> 'rejected') as r
    loop
        repeated := repeated + tracedb.bury(
            writer_id, refused.record_no, refused.item, refused.reason, null, tenant_id);
    end loop;
    select range_agg(int8range(n.record_no, n.record_no, '[]')) into stored
    from unnest(numbers) with ordinality as n (record_no, place)
    where not answer -> 'rejected' @> jsonb_build_array(jsonb_build_object('index', place - 1));
    repeated := repeated
        + tracedb.record_delivery(writer_id, coalesce(stored, '{}'), 'stored', tenant_id);
    return answer || jsonb_build_object('repeated', repeated);
end $$;

comment on function tracedb.ingest_from(uuid, bigint[], json, uuid) is
    'Ingests records of a writer: the answer of tracedb.ingest, and in "repeated" how many of the '
    'numbers were settled before. Rejected records become dead letters; all of it in one '
    'transaction. A batch whose numbers are all settled is not looked at.';

create or replace function tracedb.requeue_dead_letters(
    dead_letter_ids uuid[] default null, max_rows integer default 1000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    letter record;
    refused text;
    requeued bigint := 0;
    kept jsonb := '[]';
begin
    -- As a delivery does, the writers first: so neither it nor another requeue can be waited for
    -- in a circle, and no letter is taken twice.
    perform w.writer_id
    from tracedb.ingest_writers as w
    where w.tenant_id = requeue_dead_letters.tenant_id and exists (
        select from tracedb.dead_letters as d
        where d.tenant_id = w.tenant_id and d.writer_id = w.writer_id
            and (dead_letter_ids is null or d.dead_letter_id = any(dead_letter_ids))
    )
    order by w.writer_id
    for update;
    for letter in
        select d.dead_letter_id, d.writer_id, d.record
        from tracedb.dead_letters as d
        where d.tenant_id = requeue_dead_letters.tenant_id
            and (dead_letter_ids is null or d.dead_letter_id = any(dead_letter_ids))
        order by d.dead_letter_id
        limit max_rows
    loop
        begin
            refused := tracedb.ingest(letter.record::json, tenant_id) -> 'rejected' -> 0
                ->> 'reason';
        exception
            when data_exception or program_limit_exceeded then
                refused := sqlerrm;
        end;
        if refused is null then
            delete from tracedb.dead_letters as d
            where d.tenant_id = requeue_dead_letters.tenant_id
                and d.dead_letter_id = letter.dead_letter_id;
            update tracedb.ingest_writers as w set requeued = w.requeued + 1
            where w.tenant_id = requeue_dead_letters.tenant_id
                and w.writer_id = letter.writer_id;
            requeued := requeued + 1;
        else
            kept := kept || jsonb_build_object(
                'dead_letter_id', letter.dead_letter_id, 'reason', refused);
        end if;
    end loop;
    return jsonb_build_object('requeued', requeued, 'kept', kept);
end $$;

comment on function tracedb.requeue_dead_letters(uuid[], integer, uuid) is
    'Tries dead letters again (those named, or all; oldest first, at most max_rows). Returns '
    '{"requeued", "kept": [{"dead_letter_id", "reason"}]}: what is refused again is kept.';

create or replace function tracedb.purge_dead_letters(
    before timestamptz, max_rows integer default 10000,
    tenant_id uuid default tracedb.current_tenant_id()
)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    purged bigint;
begin
    with doomed as (
        select d.dead_letter_id
        from tracedb.dead_letters as d
        where d.tenant_id = purge_dead_letters.tenant_id and d.created_at < before
        order by d.dead_letter_id
        limit max_rows
    )
    delete from tracedb.dead_letters as d
    using doomed
    where d.tenant_id = purge_dead_letters.tenant_id
        and d.dead_letter_id = doomed.dead_letter_id;
    get diagnostics purged = row_count;
    return purged;
end $$;

comment on function tracedb.purge_dead_letters(timestamptz, integer, uuid) is
    'Deletes dead letters made before a time, oldest first, at most max_rows; returns how many. '
    'The ledger goes on counting them as dead.';

create or replace function tracedb.loss_report(
    of_writer uuid default null, tenant_id uuid default tracedb.current_tenant_id()
)
returns table (
    writer_id uuid, service text, started_at timestamptz, last_seen_at timestamptz,
    closed boolean, accepted bigint, stored bigint, dead bigint, dropped bigint,
    requeued bigint, repeated bigint, missing bigint, gaps int8multirange
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select w.writer_id, w.service, w.created_at, w.last_seen_at, w.closed, w.highest_no,
        w.stored, w.dead, tracedb.number_count(w.dropped), w.requeued, w.repeated,
        tracedb.number_count(g.gaps), g.gaps
    from tracedb.ingest_writers as w
    cross join lateral (
        select int8multirange(int8range(1, w.highest_no, '[]')) - w.settled as gaps
        where w.highest_no > 0
        union all
        select '{}' where w.highest_no = 0
    ) as g
    where w.tenant_id = loss_report.tenant_id
        and w.writer_id = coalesce(of_writer, w.writer_id)
    order by w.created_at, w.writer_id;
end $$;

comment on function tracedb.loss_report(uuid, uuid) is
    'What became of the records of each writer: accepted = stored + dead + dropped + missing. '
    'Missing numbers, listed in gaps, were given out and have not arrived: they are on their way '
    'while the writer lives or its spool waits, and lost otherwise.';

reset role;
