"""Every object of the schema as the catalog lists it, with the grants it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, partition or view."""

    name: str
    kind: str  # event, tenant, setting, partition, ledger or view; anything else has no rule
    has_tenant: bool
    granted: frozenset[tuple[str, str]]  # role, verb

    @property
    def is_closed(self) -> bool:
        """Whether nobody at all reaches it."""
        return self.kind in ("partition", "ledger")


@dataclass(frozen=True, slots=True)
class Function:
    """A function or aggregate, with the names and types of its arguments."""

    name: str
    short_name: str
    kind: str
    volatile: bool
    arguments: tuple[tuple[str, str], ...]
    defaults: int
    granted: frozenset[str]


RELATIONS = """
select
    c.oid::regclass::text,
    case
        when c.relname ~ '^(_yoyo_|yoyo_lock$|_migration_)' then 'ledger'
        when c.relispartition then 'partition'
        -- partitioned as well, but no record of anybody's
        when c.relname in ('usage_contributions', 'learned_traces', 'pattern_embeddings')
            then 'tenant'
        when c.relkind = 'p' then 'event'
        when c.relkind = 'r' then case when t.has_tenant then 'tenant' else 'setting' end
        when c.relkind = 'v' then 'view'
        else format('relation of kind "%s"', c.relkind)
    end,
    t.has_tenant,
    array(
        select r.rolname || ' ' || lower(a.privilege_type)
        from aclexplode(c.relacl) as a
        join pg_catalog.pg_roles as r on r.oid = a.grantee
        where a.grantee <> c.relowner and r.rolname ~ '^tracedb_'
    )
from pg_catalog.pg_class as c
cross join lateral (
    select exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = c.oid and a.attname = 'tenant_id'
    ) as has_tenant
) as t
where c.relnamespace = 'tracedb'::regnamespace and c.relkind not in ('i', 'I', 'c', 't', 'S')
order by 1
"""

FUNCTIONS = """
select
    p.oid::regprocedure::text,
    p.proname,
    p.prokind,
    p.provolatile = 'v',
    coalesce(p.proargnames[:p.pronargs], '{}'),
    array(
        select format_type(t.type, null)
        from unnest(p.proargtypes::oid[]) with ordinality as t(type, place)
        order by t.place
    ),
    p.pronargdefaults,
    array(
        select r.rolname
        from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
        join pg_catalog.pg_roles as r on r.oid = a.grantee
        where a.grantee <> p.proowner
    )
from pg_catalog.pg_proc as p
where p.pronamespace = 'tracedb'::regnamespace
order by 1
"""


def relations(conn: Connection) -> list[Relation]:
    return [
        Relation(name, kind, has_tenant, frozenset(tuple(g.split(" ", 1)) for g in granted))
        for name, kind, has_tenant, granted in conn.execute(RELATIONS)
    ]


def functions(conn: Connection) -> list[Function]:
    return [
        Function(
            name,
            short_name,
            kind,
            volatile,
            # An aggregate's arguments have no names.
            tuple(zip(names or [""] * len(types), types, strict=True)),
            defaults,
            frozenset(granted),
        )
        for name, short_name, kind, volatile, names, types, defaults, granted in conn.execute(
            FUNCTIONS
        )
    ]
