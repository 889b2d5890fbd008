-- 050_ids.sql: ids that are clocks (UUIDv7, RFC 9562 section 5.7).

set role tracedb_owner;

create or replace function tracedb.uuid_floor(at timestamptz)
returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (
        lpad(to_hex(least(greatest(
            floor(extract(epoch from at) * 1000), 0), 281474976710655)::bigint), 12, '0')
        || '7000' || '8000' || '000000000000'
    )::uuid
$$;

comment on function tracedb.uuid_floor(timestamptz) is
    'The smallest UUIDv7 of that millisecond: "trace_id >= uuid_floor(t)" is a time filter that '
    'prunes partitions. Before 1970 it is the smallest of all, after the year 10889 that of the '
    'last millisecond.';

create or replace function tracedb.uuid_time(id uuid)
returns timestamptz
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select timestamptz 'epoch'
        + ('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint
        * interval '1 millisecond'
$$;

comment on function tracedb.uuid_time(uuid) is
    'The time in a UUIDv7, to the millisecond. Meaningless for other versions.';

-- No "set" clause on this one: it would keep the planner from inlining it into the check
-- constraints of every event table, which call it for each row.
create or replace function tracedb.is_uuid7(id uuid)
returns boolean
language sql immutable parallel safe
as $$
    select (pg_catalog.get_byte(pg_catalog.uuid_send(id), 6) operator(pg_catalog.&) 240)
        operator(pg_catalog.=) 112
        and (pg_catalog.get_byte(pg_catalog.uuid_send(id), 8) operator(pg_catalog.&) 192)
        operator(pg_catalog.=) 128
$$;

comment on function tracedb.is_uuid7(uuid) is
    'Whether version and variant bits say UUIDv7. A random UUID passes in about 1.6 % of cases, so '
    'this alone does not make an id a clock.';

create or replace function tracedb.uuid_from_key(at timestamptz, key text)
returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
    select (
        substr(replace(tracedb.uuid_floor(at)::text, '-', ''), 1, 12)
        || '7' || substr(md5(key), 1, 3)
        -- variant bits 10: the first digit of this group is 8, 9, a or b
        || substr('89ab', get_byte(decode(md5(key), 'hex'), 15) % 4 + 1, 1)
        || substr(md5(key), 4, 15)
    )::uuid
$$;

comment on function tracedb.uuid_from_key(timestamptz, text) is
    'The UUIDv7 of a record that brings its own time and key: time bits from the time, random bits '
    'from the key''s hash. A retry makes the same id without a lookup.';

create or replace function tracedb.new_id()
returns uuid
language plpgsql volatile parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Decided at run time so that the definition is the same on every server version.
    if current_setting('server_version_num')::integer >= 180000 then
        return uuidv7();
    end if;
    return tracedb.uuid_from_key(clock_timestamp(), gen_random_uuid()::text);
end $$;

comment on function tracedb.new_id() is
    'A new UUIDv7: the server''s own from PostgreSQL 18 on, made in SQL before that.';

create or replace function tracedb.is_readable(value jsonb)
returns boolean
language sql immutable parallel safe
as $$
    select value is null
        or value operator(pg_catalog.=) '{}' or value operator(pg_catalog.=) '[]'
        or (
            not value operator(pg_catalog.@?) 'strict $.**{100}'
            and not value operator(pg_catalog.@?) 'strict $.** ? (@ > 1e308 || @ < -1e308)'
        )
$$;

comment on function tracedb.is_readable(jsonb) is
    'Whether clients can read the document back: nested less than 100 levels deep and without '
    'numbers beyond 1e308. PostgreSQL stores both, but JSON readers raise on them.';

reset role;
