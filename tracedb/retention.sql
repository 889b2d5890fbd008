-- retention.sql: the statements of tracedb/retention.py and maintenance.py.

-- name: set_retention
select * from tracedb.set_retention(
    %(table_name)s, %(keep)s, %(action)s, %(note)s, %(of_tenant)s
);

-- name: remove_retention
select tracedb.remove_retention(%(table_name)s, %(of_tenant)s);

-- name: set_legal_hold
select tracedb.set_legal_hold(%(table_name)s, %(reason)s, %(of_tenant)s);

-- name: retention_policies
select
    r.table_name, r.tenant_id, r.keep, r.action, r.hold_reason, r.note, r.updated_at, p.family,
    p.width, p.ahead_periods
from tracedb.retention_policies as r
left join tracedb.partition_policies as p on r.table_name = any(p.parents)
order by p.family nulls last, r.table_name, r.tenant_id nulls first;

-- name: retention_plan
select * from tracedb.retention_plan(coalesce(%(as_of)s, now()), %(forced)s);

-- name: retention_receipts
select
    r.receipt_id, r.tenant_id, r.action, r.family, r.table_name,
    nullif(r.from_time, '-infinity') as from_time, r.to_time,
    r.row_count, r.bytes, r.archive_id, r.keep_until, r.reason, r.created_at, r.created_by
from tracedb.retention_receipts as r
order by r.created_at desc, r.receipt_id desc
limit %(limit)s;

-- name: has_unfolded
select tracedb.has_unfolded(%(table_name)s, %(from_time)s, %(to_time)s);

-- name: rows_left
select case
    when %(of_tenant)s::uuid is null then tracedb.has_other_tenants(
        %(tables)s, %(from_time)s, %(to_time)s, %(except_tenants)s)
    else tracedb.held_tenants(
        %(tables)s, %(from_time)s, %(to_time)s, array[%(of_tenant)s]::uuid[]) <> '{}'
end;

-- name: slice_end
select tracedb.slice_end(
    %(table_name)s, %(from_time)s, %(to_time)s, %(of_tenant)s, %(except_tenants)s, %(max_rows)s
);

-- name: retire_partitions
select * from tracedb.retire_partitions(
    %(tables)s, %(from_time)s, %(to_time)s, %(archive_ids)s, %(as_of)s, %(forced)s
);

-- name: drop_retired
select tracedb.drop_retired();

-- name: delete_expired
select * from tracedb.delete_expired(
    %(tables)s, %(from_time)s, %(to_time)s, %(of_tenant)s, %(except_tenants)s, %(archive_ids)s,
    %(as_of)s, %(forced)s
);

-- name: purge_expired
select tracedb.purge_expired(%(table_name)s, %(max_rows)s, %(as_of)s, %(forced)s);

-- name: stray_rows
select coalesce(sum(d.stray_rows), 0)::bigint from tracedb.default_partition_rows() as d;

-- name: server_now
select now();

-- name: in_recovery
select pg_is_in_recovery();

-- name: try_job_lock
select pg_try_advisory_lock(hashtextextended('tracedb.job/' || %(job)s, 0));

-- name: end_job_lock
select pg_advisory_unlock(hashtextextended('tracedb.job/' || %(job)s, 0));

-- name: begin_run
insert into tracedb.maintenance_runs (job) values (%(job)s) returning run_id;

-- name: end_run
update tracedb.maintenance_runs
set ended_at = now(), outcome = %(outcome)s, figures = %(figures)s, error = %(error)s
where run_id = %(run_id)s
returning run_id;

-- name: maintenance_runs
select r.run_id, r.job, r.started_at, r.ended_at, r.outcome, r.figures, r.error, r.run_by
from tracedb.maintenance_runs as r
where %(job)s::text is null or r.job = %(job)s
order by r.started_at desc, r.run_id desc
limit %(limit)s;

-- name: maintenance_advice
select * from tracedb.maintenance_advice(%(min_bytes)s);
