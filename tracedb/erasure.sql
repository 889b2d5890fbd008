-- erasure.sql: the statements of tracedb/erasure.py.

-- name: erasure_plan
select p.table_name, p.row_count
from tracedb.erasure_plan(%(user_id)s, %(tenant_id)s) as p;

-- name: begin_erasure
select tracedb.begin_erasure(%(user_id)s, %(despite_hold)s, %(tenant_id)s);

-- name: erase_step
select
    e.tenant_id, e.erasure_id, e.kind, encode(e.subject_hash, 'hex') as subject_hash,
    e.requested_by, e.begun_at, e.finished_at, e.phase, e.counts, e.elsewhere
from tracedb.erase_step(%(erasure_id)s, %(user_id)s, %(max_rows)s, %(tenant_id)s) as e;

-- name: erasures
select
    e.tenant_id, e.erasure_id, e.kind, encode(e.subject_hash, 'hex') as subject_hash,
    e.requested_by, e.begun_at, e.finished_at, e.phase, e.counts, e.elsewhere
from tracedb.erasures as e
where e.tenant_id = %(tenant_id)s
order by e.begun_at, e.erasure_id;

-- name: note_erased
select tracedb.note_erased(%(erasure_id)s, %(place)s, %(counts)s::jsonb, %(tenant_id)s);

-- name: erase_spooled
select tracedb.erase_spooled(
    %(writer_id)s, %(numbers)s::bigint[], %(records)s::text[], %(tenant_id)s
);

-- name: traces_of_user
select unnest(tracedb.traces_of_user(%(user_id)s, %(tenant_id)s));

-- name: user_keys
select replace(i::text, '-', '')
from unnest(tracedb.traces_of_user(%(user_id)s, %(tenant_id)s)) as i
union
select m.external_id
from tracedb.trace_ids as m
where m.tenant_id = %(tenant_id)s
    and m.trace_id = any(tracedb.traces_of_user(%(user_id)s, %(tenant_id)s));

-- name: tables_about_users
select s.table_name
from tracedb.subject_tables() as s
where tracedb.subject_condition(s.trace_column, s.user_column, s.record_column) <> ''
order by 1;

-- name: held_about
select h.* from tracedb.held_about(
    %(user_id)s, %(table_name)s, %(trace_ids)s, %(tenant_id)s
) as h;

-- name: erased_traces
select t.trace_id from tracedb.erased_traces as t where t.tenant_id = %(tenant_id)s;

-- name: personal_columns
-- of tables whose rows stay
select s.table_name, s.personal || s.trace_column as columns
from tracedb.subject_tables() as s
where s.deed = 'money';

-- name: collect_archived
select tracedb.collect_archived(
    %(erasure_id)s, %(trace_ids)s, %(foreign_ids)s::text[], %(tenant_id)s
);

-- name: replace_archive
select tracedb.replace_archive(
    %(archive)s::jsonb, %(contents)s::jsonb, %(erasure_id)s, %(tenant_id)s
);

-- name: old_files
select unnest(e.files) from tracedb.erasures as e where e.tenant_id = %(tenant_id)s;

-- name: forget_file
select tracedb.forget_file(%(uri)s, %(tenant_id)s);
