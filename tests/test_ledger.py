"""The ingest ledger: every numbered record is stored, dead or dropped, once, and counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from records import span, trace, trace_id
from servers import as_role
from tracedb import connect, queries, run
from tracedb.cli import main
from tracedb.rows import WriterLosses

Conn = psycopg.Connection[Any]
GOOD, BAD = trace(), trace(status="unheard-of")


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture
def writer() -> UUID:
    return uuid4()


def touch(conn: Conn, tenant: UUID, writer: UUID, highest: int, closed: bool = False) -> None:
    conn.execute(
        "select tracedb.touch_writer(%s, 'api', %s, %s, %s)", [writer, highest, closed, tenant]
    )


def deliver(
    conn: Conn, tenant: UUID, writer: UUID, batch: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    row = conn.execute(
        "select tracedb.ingest_from(%s, %s, %s, %s)",
        [writer, list(batch), json.dumps(list(batch.values())), tenant],
    ).fetchone()
    assert row is not None
    answer: dict[str, Any] = row[0]
    return answer


def report(conn: Conn, tenant: UUID, writer: UUID) -> WriterLosses:
    (losses,) = run(conn, queries.loss_report(writer), tenant)
    assert losses.accepted == losses.stored + losses.dead + losses.dropped + losses.missing
    return losses


@pytest.mark.parametrize("role", ["tracedb_service", "tracedb_app"])
def test_what_is_stored_dead_dropped_and_missing_adds_up(
    conn: Conn, tenant: UUID, writer: UUID, role: str
) -> None:
    with as_role(conn, role, tenant):
        touch(conn, tenant, writer, 10)
        answer = deliver(conn, tenant, writer, {1: GOOD, 2: BAD, 3: span(1), 7: span(2)})
        conn.execute(
            "select tracedb.record_delivery(%s, '{[5,5]}', 'dropped', %s)", [writer, tenant]
        )
        losses = report(conn, tenant, writer)
        letters = run(conn, queries.dead_letters(), tenant)

    assert answer["inserted"] == 3
    assert answer["repeated"] == 0
    assert (losses.accepted, losses.stored, losses.dead, losses.dropped) == (10, 3, 1, 1)
    assert (losses.missing, losses.gaps) == (5, ((4, 4), (6, 6), (8, 10)))
    assert (losses.service, losses.closed) == ("api", False)
    (letter,) = letters
    assert (letter.writer_id, letter.record_no, letter.sqlstate) == (writer, 2, None)
    assert json.loads(letter.record) == BAD
    assert letter.reason == "status: must be running, ok, error, timeout or cancelled"


def test_a_delivery_seen_before_changes_nothing_and_is_counted(
    conn: Conn, tenant: UUID, writer: UUID
) -> None:
    touch(conn, tenant, writer, 3)
    batch = {1: GOOD, 2: BAD, 3: span(1)}
    deliver(conn, tenant, writer, batch)

    again = deliver(conn, tenant, writer, batch)

    assert (again["inserted"], again["repeated"]) == (0, 3)
    losses = report(conn, tenant, writer)
    assert (losses.stored, losses.dead, losses.repeated, losses.gaps) == (2, 1, 3, ())
    assert len(run(conn, queries.dead_letters(), tenant)) == 1


def test_a_number_keeps_its_first_fate(conn: Conn, tenant: UUID, writer: UUID) -> None:
    touch(conn, tenant, writer, 1)
    deliver(conn, tenant, writer, {1: GOOD})

    row = conn.execute(
        "select tracedb.bury(%s, 1, '{}', 'record: lost', '08006', %s)", [writer, tenant]
    ).fetchone()

    assert row == (1,)
    assert run(conn, queries.dead_letters(), tenant) == []
    assert report(conn, tenant, writer).stored == 1


def test_what_is_settled_is_not_looked_at_again(conn: Conn, tenant: UUID, writer: UUID) -> None:
    touch(conn, tenant, writer, 2)
    deliver(conn, tenant, writer, {1: GOOD, 2: BAD})

    again = deliver(conn, tenant, writer, {1: span(1), 2: span(2)})

    assert (again["received"], again["duplicates"], again["repeated"]) == (2, 1, 2)
    assert [refused["index"] for refused in again["rejected"]] == [1]
    assert conn.execute("select count(*) from tracedb.llm_spans").fetchone() == (0,)


def test_numbers_of_two_tenants_and_of_two_writers_are_their_own(
    conn: Conn, tenant: UUID, writer: UUID
) -> None:
    other_tenant, other_writer = uuid4(), uuid4()
    for whose, by in ((tenant, writer), (other_tenant, writer), (tenant, other_writer)):
        touch(conn, whose, by, 2)
        deliver(conn, whose, by, {1: GOOD})

    assert report(conn, tenant, writer).gaps == ((2, 2),)
    assert len(run(conn, queries.loss_report(), tenant)) == 2
    assert len(run(conn, queries.loss_report(), other_tenant)) == 1


def test_the_highest_number_never_falls_and_a_closed_writer_says_so(
    conn: Conn, tenant: UUID, writer: UUID
) -> None:
    touch(conn, tenant, writer, 5)
    touch(conn, tenant, writer, 2, closed=True)

    losses = report(conn, tenant, writer)

    assert (losses.accepted, losses.closed) == (5, True)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("ingest_from(%(w)s, '{1,2}', '[{}]', %(t)s)", "numbers: must be one for each record"),
        ("ingest_from(%(w)s, '{1}', '{}', %(t)s)", "numbers: must be one for each record"),
        ("record_delivery(%(w)s, '{[1,1]}', 'sold', %(t)s)", "outcome: must be one of"),
        ("record_delivery(gen_random_uuid(), '{[1,1]}', 'dead', %(t)s)", "writer_id: unknown"),
        ("touch_writer(%(w)s, null, 1, false, null)", "no tenant is set"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(
    conn: Conn, tenant: UUID, writer: UUID, call: str, reason: str
) -> None:
    touch(conn, tenant, writer, 2)
    with pytest.raises(psycopg.Error, match=reason):
        conn.execute(f"select tracedb.{call}".encode(), {"w": writer, "t": tenant})


def test_a_ledger_that_does_not_add_up_is_refused_by_the_database(
    conn: Conn, tenant: UUID, writer: UUID
) -> None:
    touch(conn, tenant, writer, 2)
    deliver(conn, tenant, writer, {1: GOOD})
    with as_role(conn, "tracedb_app", tenant), pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("update tracedb.ingest_writers set stored = stored + 1")


@given(
    deliveries=st.lists(
        st.tuples(
            st.sampled_from(["stored", "dead", "dropped"]),
            st.sets(st.integers(1, 30), max_size=8),
        ),
        max_size=8,
    )
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_deliveries_in_any_order_add_up(
    conn: Conn, deliveries: list[tuple[str, set[int]]]
) -> None:
    tenant, writer = uuid4(), uuid4()
    touch(conn, tenant, writer, 30)
    fate: dict[int, str] = {}
    repeated = 0
    for outcome, numbers in deliveries:
        ranges = "{" + ",".join(f"[{n},{n}]" for n in numbers) + "}"
        conn.execute(
            "select tracedb.record_delivery(%s, %s::int8multirange, %s, %s)",
            [writer, ranges, outcome, tenant],
        )
        repeated += len(numbers & fate.keys())
        fate = dict.fromkeys(numbers, outcome) | fate

    losses = report(conn, tenant, writer)

    assert losses.repeated == repeated
    for outcome in ("stored", "dead", "dropped"):
        assert getattr(losses, outcome) == list(fate.values()).count(outcome)
    listed = {n for first, last in losses.gaps for n in range(first, last + 1)}
    assert listed == set(range(1, 31)) - fate.keys()


def bury_some(conn: Conn, tenant: UUID, writer: UUID, records: Iterable[str]) -> None:
    touch(conn, tenant, writer, 10)
    for number, record in enumerate(records, start=1):
        conn.execute(
            "select tracedb.bury(%s, %s, %s, 'record: lost', '08006', %s)",
            [writer, number, record, tenant],
        )


def test_requeued_letters_are_stored_and_the_others_kept_with_their_reason(
    conn: Conn, tenant: UUID, writer: UUID
) -> None:
    with as_role(conn, "tracedb_app", tenant):
        bury_some(conn, tenant, writer, [json.dumps(GOOD), json.dumps(BAD), "no json"])
        outcome = run(conn, queries.requeue_dead_letters(), tenant)
        left = run(conn, queries.dead_letters(), tenant)
        stored = run(conn, queries.find_trace(trace_id()), tenant)
        losses = report(conn, tenant, writer)

    assert outcome.requeued == 1
    assert [outcome.kept[letter.dead_letter_id].split(":")[0] for letter in left] == [
        "status",
        "invalid input syntax for type json",
    ]
    assert str(stored) == trace_id()
    assert (losses.dead, losses.requeued) == (3, 1)


def test_only_the_named_letters_are_requeued(conn: Conn, tenant: UUID, writer: UUID) -> None:
    bury_some(conn, tenant, writer, [json.dumps(GOOD), json.dumps(span())])
    first, second = run(conn, queries.dead_letters(), tenant)

    run(conn, queries.requeue_dead_letters([second.dead_letter_id]), tenant)

    assert run(conn, queries.dead_letters(), tenant) == [first]
    assert run(conn, queries.dead_letters(after=first.dead_letter_id), tenant) == []


def test_purged_letters_stay_counted_as_dead(conn: Conn, tenant: UUID, writer: UUID) -> None:
    bury_some(conn, tenant, writer, ["one", "two"])
    conn.execute("update tracedb.dead_letters set created_at = '2026-01-01Z' where record = 'one'")
    with as_role(conn, "tracedb_maintainer"):
        row = conn.execute(
            "select tracedb.purge_dead_letters('2026-02-01Z', tenant_id => %s)", [tenant]
        ).fetchone()

    assert row == (1,)
    assert [letter.record for letter in run(conn, queries.dead_letters(), tenant)] == ["two"]
    assert report(conn, tenant, writer).dead == 2


def test_the_command_lists_requeues_and_purges(
    database: str, tenant: UUID, writer: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    def tracedb(*args: str) -> str:
        assert main(["--dsn", database, *args]) == 0
        return capsys.readouterr().out

    assert tracedb("dead-letters", "list") == "no dead letters\n"
    with psycopg.connect(database) as conn:
        bury_some(conn, tenant, writer, [json.dumps(GOOD), json.dumps(BAD), "hopeless"])

    listed = json.loads(tracedb("dead-letters", "list", "--json"))
    listed.sort(key=lambda letter: letter["record_no"])  # made in one millisecond, perhaps
    assert [letter["record_no"] for letter in listed] == [1, 2, 3]
    assert listed[0]["tenant_id"] == str(tenant)
    assert len(json.loads(tracedb("dead-letters", "list", "--max", "1", "--json"))) == 1
    assert "record: lost" in tracedb("dead-letters", "list", "--tenant", str(tenant))
    assert tracedb("dead-letters", "requeue", listed[1]["dead_letter_id"]).startswith("0 stored")
    assert tracedb("dead-letters", "requeue").startswith("1 stored, 2 kept\n")
    assert tracedb("dead-letters", "purge", "--before", "2026-01-01") == "0 purged\n"
    assert tracedb("dead-letters", "purge", "--before", "now") == "2 purged\n"
    assert "accepted 10: 0 stored, 3 dead (1 requeued), 0 dropped, 7 missing" in tracedb("losses")


def test_losses_of_a_closed_writer_are_findings(
    database: str, tenant: UUID, writer: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    with connect(database) as db, db.connection() as conn:
        touch(conn, tenant, writer, 4)
        deliver(conn, tenant, writer, {2: GOOD})
        assert main(["losses", "--dsn", database]) == 0
        touch(conn, tenant, writer, 4, closed=True)
    capsys.readouterr()

    assert main(["losses", "--dsn", database, "--writer", str(writer), "--json"]) == 3

    (row,) = json.loads(capsys.readouterr().out)
    assert (row["missing"], row["gaps"]) == (3, [[1, 1], [3, 4]])
