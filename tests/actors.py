"""Everybody who can be connected: each role, for a tenant or for none, by each way of saying so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from two_tenants import A, B

BOUND = "tracedb_test_bound"
STRANGER = "tracedb_test_stranger"


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody, and the one tenant whose rows are theirs (None: nobody's; trusted: everybody's)."""

    name: str
    role: str
    grants: str | None
    setting: UUID | None = None
    claims: str = ""
    tenant: UUID | None = None
    trusted: bool = False


ACTORS = (
    Actor("app as A", "tracedb_app", "tracedb_app", setting=A, tenant=A),
    Actor("app without a tenant", "tracedb_app", "tracedb_app"),
    Actor(
        "app with A's token and B's setting",
        "tracedb_app",
        "tracedb_app",
        setting=B,
        claims=json.dumps({"tenant_id": str(A)}),
        tenant=A,
    ),
    Actor(
        "app with a token of no tenant and B's setting",
        "tracedb_app",
        "tracedb_app",
        setting=B,
        claims='{"sub": "somebody"}',
    ),
    Actor("reader as A", "tracedb_reader", "tracedb_reader", setting=A, tenant=A),
    Actor("reader without a tenant", "tracedb_reader", "tracedb_reader"),
    Actor("role bound to A", BOUND, "tracedb_app", tenant=A),
    Actor("role bound to A with B's setting", BOUND, "tracedb_app", setting=B, tenant=A),
    Actor(
        "role bound to A with B's token",
        BOUND,
        "tracedb_app",
        claims=json.dumps({"tenant_id": str(B)}),
        tenant=A,
    ),
    Actor("stranger", STRANGER, None, setting=A),
    Actor("service as A", "tracedb_service", "tracedb_service", setting=A, trusted=True),
    Actor("service without a tenant", "tracedb_service", "tracedb_service", trusted=True),
    Actor("maintainer", "tracedb_maintainer", "tracedb_maintainer", trusted=True),
)


@contextmanager
def roles(admin: psycopg.Connection[Any]) -> Iterator[None]:
    """The roles that the schema does not bring: one bound to tenant A, and one without rights."""
    made = (f"tracedb_tenant_{A}", BOUND, STRANGER)
    for name in made:
        admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))
        admin.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
    try:
        admin.execute(
            sql.SQL("grant tracedb_app, {} to {}").format(
                sql.Identifier(made[0]), sql.Identifier(BOUND)
            )
        )
        yield
    finally:
        for name in made:
            admin.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))
