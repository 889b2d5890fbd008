"""Delivery when the database is away, refuses, or falls silent: nothing lost, nothing twice."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import psycopg
import pytest

import tracedb
from proxy import proxy
from records import span, trace_id
from tracedb.lanes import Slab
from tracedb.records import as_json
from writers import dead_letters, losses, names, save, wait_until, writer

# Wraps the function that stores, so that a record can do harm there; there is no other.
SABOTAGE = """
do $$ begin
    execute (
        select 'drop function ' || p.oid::regprocedure
        from pg_proc as p where p.proname = 'store_rows');
end $$;
alter function tracedb.ingest_from(uuid, bigint[], json, uuid) rename to ingest_from_;
create function tracedb.ingest_from(writer_id uuid, numbers bigint[], batch json, tenant_id uuid)
returns jsonb language plpgsql as $$
begin
    if batch::text ~ 'slow' then
        perform pg_sleep(60);
    elsif batch::text ~ 'too much' then
        raise exception using errcode = '54000', message = 'too much';
    elsif batch::text ~ 'orphan' then
        raise exception using errcode = '23503', message = 'no parent';
    elsif batch::text ~ 'forbidden' and to_regclass('public.mended') is null then
        raise insufficient_privilege;
    end if;
    return tracedb.ingest_from_(writer_id, numbers, batch, tenant_id);
end $$;
"""


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture
def sabotage(database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute(SABOTAGE)


@contextmanager
def without(dsn: str, change: str, undo: str) -> Iterator[None]:
    """The database as it is after a change, for the length of the block."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(change.encode())
        try:
            yield
        finally:
            conn.execute(undo.encode())


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tracedb"]


def test_records_travel_as_rows(database: str, tenant: UUID) -> None:
    with (
        without(
            database,
            "alter function tracedb.ingest_from rename to elsewhere",
            "alter function tracedb.elsewhere rename to ingest_from",
        ),
        writer(database, tenant) as ours,
    ):
        made = ours.save_trace(request_id="req-7", prompt={"text": "Is it?"})
        ours.save_span(trace_id=made, operation_type="llm", name="a", cost_usd=0.1)
        ours.log_platform_event("login", "security", event_key="k-1")
        assert ours.flush_all(30)
        assert ours.stats().stored == 3

    (report,) = losses(database, tenant)
    assert (report.stored, report.missing, report.repeated) == (3, 0, 0)
    with tracedb.connect(database) as db:
        assert db.tenant(tenant).find_trace("req-7") == made


def test_a_number_that_is_settled_is_not_stored_again(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        save(ours, "a")
        assert ours.flush_all(30)
        (lane,) = ours._backlog.own_lanes()
        lane.highest = 2
        texts = [as_json(span(n, name="again")).encode() for n in (1, 2)]
        # the first alone, and then with one that is not settled
        assert ours._link.deliver(lane, [(1, texts[0], Slab())], [], False) == 0
        assert names(database, tenant) == ["a"]
        batch = [(1, texts[0], Slab()), (2, texts[1], Slab())]
        assert ours._link.deliver(lane, batch, [], False) == 0

    (report,) = losses(database, tenant)
    assert (report.accepted, report.stored, report.repeated) == (2, 2, 2)


@pytest.mark.usefixtures("sabotage")
@pytest.mark.parametrize("bad", [1, 5, 20])
def test_bad_records_cost_the_good_ones_nothing(database: str, tenant: UUID, bad: int) -> None:
    with writer(database, tenant) as ours:
        for n in range(100):
            save(ours, f"{n:03}", attributes={"is": "too much" if n % (100 // bad) == 0 else "ok"})
        assert ours.flush_all(30)
        stats = ours.stats()

    letters = dead_letters(database, tenant)
    assert (stats.stored, stats.dead, stats.pending) == (100 - bad, bad, 0)
    assert names(database, tenant) == [f"{n:03}" for n in range(100) if n % (100 // bad)]
    assert {(letter.reason, letter.sqlstate) for letter in letters} == {("too much", "54000")}
    assert sorted(letter.record_no for letter in letters) == list(range(1, 101, 100 // bad))
    assert all('"too much"' in letter.record for letter in letters)


def test_a_record_that_breaks_a_rule_is_a_dead_letter_with_the_rule(
    database: str, tenant: UUID
) -> None:
    with writer(database, tenant) as ours:
        save(ours, "good")
        save(ours, "bad", cost_usd=-1)
        save(ours, "odd", no_such_field=1)
        assert ours.flush_all(30)
        assert (ours.stats().stored, ours.stats().dead) == (1, 2)

    assert sorted(letter.reason for letter in dead_letters(database, tenant)) == [
        "cost_usd: must be at least 0 and less than 1e15, and a number",
        "no_such_field: unknown field of a span",
    ]


def test_a_text_that_is_not_json_is_isolated(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        save(ours, "good")
        ours._backlog.add(tenant, b"{not json")
        ours._backlog.add(tenant, b"\xff\xfe")
        save(ours, "fine")
        assert ours.flush_all(30)

    assert names(database, tenant) == ["fine", "good"]
    assert [letter.record_no for letter in dead_letters(database, tenant)] == [2, 3]


def test_what_is_not_json_in_the_call_is_a_dead_letter_with_its_ids(
    database: str, tenant: UUID
) -> None:
    with writer(database, tenant) as ours:
        save(ours, "good")
        secret = "password=hunter2"
        made = save(ours, "bad", attributes={"x": float("nan")}, external_id=secret)
        assert made is not None
        assert ours.flush_all(30)

    (letter,) = dead_letters(database, tenant)
    assert letter.reason == "attributes.x: must be a finite number, not nan"
    assert made in letter.record
    assert "hunter2" not in letter.record
    assert names(database, tenant) == ["good"]


@pytest.mark.usefixtures("sabotage")
def test_a_record_that_is_too_slow_twice_is_buried(database: str, tenant: UUID) -> None:
    with writer(database, tenant, write_timeout=0.5) as ours:
        for name in ("a", "slow", "z"):
            save(ours, name)
        assert ours.flush_all(60)

    assert names(database, tenant) == ["a", "z"]
    assert [letter.sqlstate for letter in dead_letters(database, tenant)] == ["57014"]


@pytest.mark.usefixtures("sabotage")
def test_a_record_without_its_parent_is_tried_a_few_times(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        for name in ("a", "orphan", "z"):
            save(ours, name)
        assert ours.flush_all(60)

    assert names(database, tenant) == ["a", "z"]
    assert [letter.reason for letter in dead_letters(database, tenant)] == ["no parent"]


def test_a_record_that_breaks_every_connection_is_buried(database: str, tenant: UUID) -> None:
    with proxy(database) as between:
        # the dead letter holds the same text, and cannot be sent either
        between.rule = lambda data: None if b"killer" in data else data
        with writer(between.dsn, tenant) as ours:
            for name in ("a", "b", "killer", "y", "z"):
                save(ours, name)
            assert ours.flush_all(60)
            assert (ours.stats().stored, ours.stats().dead) == (4, 1)

    (letter,) = dead_letters(database, tenant)
    assert names(database, tenant) == ["a", "b", "y", "z"]
    assert letter.record_no == 3
    assert letter.reason == "record: the connection was lost each time it was sent"
    assert "tracedb_lost" in letter.record


def test_a_flapping_network_buries_nothing(database: str, tenant: UUID) -> None:
    with proxy(database) as between, writer(between.dsn, tenant, flush_records=1) as ours:
        over = threading.Event()

        def flap() -> None:
            for _ in range(400):
                over.wait(0.005)
                between.break_all()

        flapping = threading.Thread(target=flap)
        flapping.start()
        for n in range(50):
            save(ours, f"{n:02}")
            ours.flush_all(0.05)
        flapping.join()
        assert ours.flush_all(60)
        assert (ours.stats().stored, ours.stats().dead) == (50, 0)

    assert len(names(database, tenant)) == 50


def test_silence_is_noticed_and_what_was_sent_is_sent_again(database: str, tenant: UUID) -> None:
    with (
        proxy(f"{database} connect_timeout=2") as between,
        writer(between.dsn, tenant, write_timeout=1.0) as ours,
    ):
        save(ours, "before")
        assert ours.flush_all(30)
        between.swallow()
        save(ours, "meanwhile")
        assert not ours.flush_all(1.5)
        between.heal()
        assert ours.flush_all(30)

    assert names(database, tenant) == ["before", "meanwhile"]


def test_a_killed_backend_costs_nothing(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours, psycopg.connect(database, autocommit=True) as admin:
        for n in range(20):
            save(ours, f"{n:02}")
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            assert ours.flush_all(30)

    (report,) = losses(database, tenant)
    assert names(database, tenant) == [f"{n:02}" for n in range(20)]
    assert (report.stored, report.dead, report.missing) == (20, 0, 0)


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (
            "revoke execute on function tracedb.ingest_from from tracedb_service",
            "grant execute on function tracedb.ingest_from to tracedb_service",
        ),
        (
            "alter table tracedb.ingest_writers rename to hidden",
            "alter table tracedb.hidden rename to ingest_writers",
        ),
        (
            "alter role tracedb_test_held set default_transaction_read_only = on",
            "alter role tracedb_test_held reset default_transaction_read_only",
        ),
    ],
    ids=["permission", "table", "read-only"],
)
def test_what_somebody_has_to_mend_is_held_and_told_once(
    database: str, tenant: UUID, caplog: pytest.LogCaptureFixture, change: str, undo: str
) -> None:
    login = "tracedb_test_held"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"drop role if exists {login}".encode())
        admin.execute(f"create role {login} login in role tracedb_service".encode())
    with (
        caplog.at_level(logging.WARNING, "tracedb"),
        writer(database + f" user={login}", tenant) as ours,
    ):
        with without(database, change, undo):
            save(ours, "marker-of-a-record")
            assert not ours.flush_all(0.5)
            wait_until(lambda: len(lines(caplog)) == 1)
            assert ours.stats().pending == 1
        assert ours.flush_all(60)
        wait_until(lambda: len(lines(caplog)) == 2)

    told = lines(caplog)
    assert names(database, tenant) == ["marker-of-a-record"]
    assert "records are kept in memory" in told[0]
    assert told[1].endswith("well again")
    assert not any("marker" in line for line in told)


@pytest.mark.usefixtures("sabotage")
def test_the_trouble_of_one_tenant_holds_no_other(database: str, tenant: UUID) -> None:
    other = uuid4()
    with writer(database, None) as ours:
        for n in range(10):
            ours.record(span(n + 1, name="forbidden"), tenant)
            ours.record(span(n + 1, name="free"), other)
        assert not ours.flush_all(0.5)
        wait_until(lambda: ours.stats().stored == 10)
        assert names(database, other) == ["free"] * 10
        with psycopg.connect(database) as conn:
            conn.execute("create table public.mended ()")
        assert ours.flush_all(60)

    assert names(database, tenant) == ["forbidden"] * 10


def test_a_database_that_is_away_is_waited_for(tenant: UUID, database: str) -> None:
    with proxy(database) as between, writer(between.dsn, tenant) as ours:
        between.rule = lambda data: None
        for n in range(50):
            assert save(ours, f"{n:02}") is not None
        assert not ours.flush_all(0.5)
        between.rule = lambda data: data
        assert ours.flush_all(30)

    assert names(database, tenant) == [f"{n:02}" for n in range(50)]


def test_dropped_numbers_are_reported(database: str, tenant: UUID) -> None:
    with writer(database, tenant, queue_records=5) as ours:
        accepted = [save(ours, f"{n}") is not None for n in range(8)]
        assert ours.flush_all(30)
        assert save(ours, "again") is not None
        stats = ours.close()

    (report,) = losses(database, tenant)
    assert accepted == [True] * 5 + [False] * 3
    assert (stats.accepted, stats.stored, stats.dropped) == (9, 6, 3)
    assert (report.accepted, report.stored, report.dropped) == (9, 6, 3)
    assert (report.missing, report.closed) == (0, True)


def test_prepared_statements_that_a_pooler_lost_are_done_without(
    database: str, tenant: UUID
) -> None:
    with writer(database, tenant) as ours:
        for n in range(10):
            save(ours, f"{n:02}")
            assert ours.flush_all(30)
        conn = ours._link._conn
        assert conn is not None
        conn.execute("deallocate all")
        conn.commit()
        save(ours, "10")
        assert ours.flush_all(30)

    assert names(database, tenant) == [f"{n:02}" for n in range(11)]


def test_a_mistake_of_ours_does_not_end_the_delivery(
    database: str, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writer(database, tenant) as ours:
        with monkeypatch.context() as broken:
            broken.setattr(ours._backlog, "take", lambda everything: 1 / 0)
            save(ours, "a")
            assert not ours.flush_all(0.3)
        assert ours.flush_all(30)

    assert names(database, tenant) == ["a"]


def test_the_highest_number_is_told_with_each_delivery(database: str, tenant: UUID) -> None:
    with writer(database, tenant) as ours:
        save(ours, "a")
        assert ours.flush_all(30)
        (report,) = losses(database, tenant)
        assert (report.accepted, report.closed, report.service) == (1, False, None)


def test_a_large_backlog_goes_in_batches_by_count_and_size(database: str, tenant: UUID) -> None:
    text = as_json(span(1, input="x" * 3_000_000)).encode()
    with writer(database, tenant) as ours:
        for n in range(2500):
            save(ours, f"{n:04}")
        for _ in range(4):
            ours._backlog.add(tenant, text)
        assert ours.flush_all(60)
        assert ours.stats() == tracedb.Stats(accepted=2504, stored=2504)

    assert len(names(database, tenant)) == 2501
    assert trace_id() in text.decode()
