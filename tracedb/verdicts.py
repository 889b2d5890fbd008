"""What a failed delivery means, by SQLSTATE: who is at fault, and what becomes of the records."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about a failure; unless it may be the record's own fault, just try again."""

    name: str
    # How often a record may fail so, alone, before it becomes a dead letter; None: never.
    tries: int | None = None
    # Whether it concerns the database, and so every tenant.
    everyone: bool = False
    # Whether the connection is of no more use.
    reconnect: bool = False
    # Whether it stays so until somebody does something about it.
    lasting: bool = False


RETRY = Verdict("retry")
AWAY = Verdict("away", everyone=True, reconnect=True)
HOLD = Verdict("hold", lasting=True)
# A pooler that does not know prepared statements: the next connection does without.
UNPREPARED = Verdict("unprepared", everyone=True, reconnect=True, lasting=True)
POISON = Verdict("poison", tries=1)
SLOW = Verdict("slow", tries=2)
# A record may be what breaks the connection. The delivery makes a successful call between tries.
LOST = Verdict("lost", tries=3, everyone=True, reconnect=True)
# What it refers to may be on its way.
ORPHAN = Verdict("orphan", tries=5)

_BY_SQLSTATE = {
    "08": AWAY,
    "22": POISON,
    "23502": POISON,
    "23503": ORPHAN,
    "23505": POISON,
    "23514": POISON,
    "25006": AWAY,
    "25P03": AWAY,
    "25P04": AWAY,
    "26000": UNPREPARED,
    "40": RETRY,
    "42P05": UNPREPARED,
    "53": AWAY,
    "54": POISON,
    "55P03": RETRY,
    "57014": SLOW,
    "57P": AWAY,
    "58": AWAY,
    "TD002": POISON,
}


def verdict(error: Exception) -> Verdict:
    """The verdict on an error that a delivery raised. What nobody foresaw holds the records."""
    if not isinstance(error, psycopg.Error):
        # a value that cannot be sent; anything else is a mistake of ours
        return POISON if isinstance(error, TypeError | ValueError | RecursionError) else HOLD
    code = error.sqlstate
    if code is None:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return LOST
        return POISON if isinstance(error, psycopg.DataError) else HOLD
    if code == "23514" and not error.diag.constraint_name:
        # no partition takes the row, because one is being attached
        return RETRY
    matches = (_BY_SQLSTATE.get(code[:length]) for length in (5, 3, 2))
    return next((match for match in matches if match is not None), HOLD)
