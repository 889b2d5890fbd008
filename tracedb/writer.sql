-- writer.sql: what a writer's own connection says (tracedb/link.py).

-- name: control
select 1;

-- name: begin
-- Waiting for a lock ends before the statement does, and that before the writer hangs up.
select
    set_config('lock_timeout', %(lock_timeout)s, true),
    set_config('statement_timeout', %(statement_timeout)s, true),
    tracedb.set_tenant(%(tenant_id)s),
    tracedb.touch_writer(
        %(writer_id)s, %(service)s, %(highest_no)s, %(closed)s, %(tenant_id)s
    ),
    exists (
        select from tracedb.ingest_writers as w
        where w.tenant_id = %(tenant_id)s and w.writer_id = %(writer_id)s
            and w.settled @> %(numbers)s::int8multirange
    ) as settled;

-- name: store
select jsonb_array_length(
    tracedb.ingest_from(
        %(writer_id)s, %(numbers)s::bigint[], %(batch)s::json, %(tenant_id)s
    ) -> 'rejected'
);

-- name: store_rows
-- how many of the numbers were settled before
select tracedb.record_delivery(
    %(writer_id)s, %(numbers)s::int8multirange, 'stored', %(tenant_id)s
)
from tracedb.store_rows(
    %(trace_keys)s, %(traces)s, %(stubs)s, %(routing_decisions)s, %(hooks)s, %(endpoint_calls)s,
    %(spans)s, %(payloads)s, %(texts)s, %(platform_events)s, %(cost_events)s,
    %(agent_executions)s, %(tenant_id)s
);

-- name: drop
select tracedb.record_delivery(
    %(writer_id)s, %(numbers)s::int8multirange, 'dropped', %(tenant_id)s
);

-- name: bury
select tracedb.bury(
    %(writer_id)s, %(number)s, %(record)s, %(reason)s, %(sqlstate)s, %(tenant_id)s
);
