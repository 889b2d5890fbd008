"""What a failed delivery means, for every class of SQLSTATE and every other error."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tracedb.verdicts import (
    AWAY,
    HOLD,
    LOST,
    ORPHAN,
    POISON,
    RETRY,
    SLOW,
    UNPREPARED,
    Verdict,
    verdict,
)


def raised(conn: psycopg.Connection[Any], sqlstate: str, constraint: str = "") -> psycopg.Error:
    """What psycopg raises for an error of the server."""
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(
            f"do $$ begin raise exception using errcode = '{sqlstate}', message = 'no', "
            f"constraint = '{constraint}'; end $$"
        )
    conn.rollback()
    return caught.value


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("08006", AWAY),
        ("22P02", POISON),
        ("22021", POISON),
        ("23502", POISON),
        ("23503", ORPHAN),
        ("23505", POISON),
        ("25006", AWAY),
        ("25P03", AWAY),
        ("25P04", AWAY),
        ("26000", UNPREPARED),
        ("28P01", HOLD),
        ("3D000", HOLD),
        ("40001", RETRY),
        ("40P01", RETRY),
        ("42501", HOLD),
        ("42703", HOLD),
        ("42804", HOLD),
        ("42883", HOLD),
        ("42P01", HOLD),
        ("42P05", UNPREPARED),
        ("53100", AWAY),
        ("53300", AWAY),
        ("54000", POISON),
        ("54001", POISON),
        ("55P03", RETRY),
        ("57014", SLOW),
        ("57P01", AWAY),
        ("57P03", AWAY),
        ("58030", AWAY),
        ("TD001", HOLD),
        ("XX000", HOLD),
        ("ZZ999", HOLD),
    ],
)
def test_the_database_s_errors(
    conn: psycopg.Connection[Any], sqlstate: str, expected: Verdict
) -> None:
    assert verdict(raised(conn, sqlstate)) is expected


def test_a_check_that_is_no_constraint_is_a_partition_being_attached(
    conn: psycopg.Connection[Any],
) -> None:
    assert verdict(raised(conn, "23514", constraint="trace_ends_after_start")) is POISON
    assert verdict(raised(conn, "23514")) is RETRY


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), LOST),
        (psycopg.InterfaceError("the connection is closed"), LOST),
        (psycopg.DataError("NUL"), POISON),
        (psycopg.ProgrammingError("no"), HOLD),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), POISON),
        (TypeError(), POISON),
        (RecursionError(), POISON),
        (KeyError(), HOLD),
        (MemoryError(), HOLD),
    ],
)
def test_errors_of_this_side(error: Exception, expected: Verdict) -> None:
    assert verdict(error) is expected


def test_only_what_may_be_a_record_s_fault_ever_buries_it() -> None:
    verdicts = (AWAY, HOLD, LOST, ORPHAN, POISON, RETRY, SLOW, UNPREPARED)

    assert {found.name: found.tries for found in verdicts if found.tries is not None} == {
        "poison": 1,
        "slow": 2,
        "lost": 3,
        "orphan": 5,
    }
