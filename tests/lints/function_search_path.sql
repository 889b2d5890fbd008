-- function_search_path.sql: functions fix their search_path, so that no caller can put its own
-- operators or tables in their way.

select
    p.oid::regprocedure::text as object,
    'search_path is not fixed as pg_catalog, pg_temp' as detail
from pg_catalog.pg_proc as p
where p.pronamespace = 'tracedb'::regnamespace
    and p.prokind <> 'a'
    and not coalesce(p.proconfig @> array['search_path=pg_catalog, pg_temp'], false)
    -- reviewed: pure, every name in them qualified, and inlined where they run for each row
    and p.oid <> all (array[
        to_regprocedure('tracedb.is_uuid7(uuid)'), to_regprocedure('tracedb.is_readable(jsonb)'),
        to_regprocedure('tracedb.external_key(text)'), to_regprocedure('tracedb.record_types()'),
        to_regprocedure('tracedb.tombstone(text, text, uuid)'),
        to_regprocedure('tracedb.subject_tables()'),
        to_regprocedure('tracedb.price_of_class(bigint, numeric)'),
        to_regprocedure('tracedb.usage_standing(text, boolean, boolean)'),
        to_regprocedure('tracedb.word_share(tsquery, tsvector)'),
        to_regprocedure(
            'tracedb.wilson_lower(double precision, double precision, double precision)'),
        to_regprocedure(
            'tracedb.wilson_upper(double precision, double precision, double precision)'),
        to_regprocedure('tracedb.price_of_tokens(bigint, bigint, bigint, bigint, bigint, numeric, '
            'numeric, numeric, numeric, numeric, numeric)'),
        to_regprocedure(
            'tracedb.header_matches(tracedb.execution_traces, tracedb.trace_filter)')
    ]::oid[])
