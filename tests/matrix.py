"""Who can do what to whose rows, tried on every object that the catalog lists.

Tenant A acts, tenant B is the one who must not be noticed. Whatever A tries is tried twice: with
B's rows there, and with them gone. If the two answers differ in a row, a count or an SQLSTATE, A
has learnt something of B. That needs no knowledge of what an object does, so objects added later
are covered by being there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

import psycopg
from psycopg import sql

from actors import ACTORS, Actor
from objects import Connection, Function, Relation, functions, relations
from two_tenants import FOREIGN, NOW, ONLY, SHARED, WRITER, A, B, price, records

# What each role may do to the tables that ingest writes. For any other object the grant itself is
# the decision, and only its reach is tried.
EVENT_RULES = {
    "tracedb_app": {"select", "insert", "update"},
    "tracedb_reader": {"select"},
    "tracedb_service": {"select", "insert", "update"},
    "tracedb_maintainer": {"select"},
}

# What is not ingest's to write, though it lies beside what is.
RULES = {
    "tracedb.span_cost_adjustments": {
        **{role: {"select"} for role in EVENT_RULES},
        "tracedb_service": {"select", "insert"},
    }
}
# Rows of no tenant are everybody's to read there.
GENERAL = {"tracedb.model_prices"}

# Answers that differ from call to call without telling anything.
RANDOM = {"new_id"}

_last_role: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()

DENIED = {"42501"}
# An aggregate or join view is refused by what it is before anybody asks for rights.
DENIED_ON_VIEWS = DENIED | {"55000", "0A000", "42809"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a statement answered: its rows and their number, or an SQLSTATE."""

    count: int = 0
    rows: tuple[str, ...] = ()
    sqlstate: str = ""

    def __str__(self) -> str:
        return self.sqlstate or f"{self.count} rows"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One act of one actor on one object."""

    actor: Actor
    object: str
    act: str
    statement: str
    params: tuple[Any, ...] = ()
    writes: bool = True


def attempt(conn: Connection, probe: Probe) -> Outcome:
    """Act, see what comes of it, and take it back."""
    with _savepoint(conn):
        _become(conn, probe.actor)
        return _outcome(conn, probe)


@contextmanager
def _savepoint(conn: Connection) -> Iterator[None]:
    conn.execute("savepoint probe")
    try:
        yield
    finally:
        conn.execute("rollback to savepoint probe; release savepoint probe")


def _become(conn: Connection, actor: Actor) -> None:
    """Act as somebody until the savepoint is rolled back to."""
    # An expression that one role could call is not checked again for the next one.
    if _last_role.get(conn) != actor.role:
        conn.execute("discard plans")
        _last_role[conn] = actor.role
    conn.execute(_identity(actor))


def _identity(actor: Actor) -> sql.Composed:
    # set_tenant() is one of the functions on trial, so it is not used here.
    return sql.SQL(
        "set local role {}; set local tracedb.tenant_id = {}; set local request.jwt.claims = {}"
    ).format(
        sql.Identifier(actor.role),
        sql.Literal(str(actor.setting or "")),
        sql.Literal(actor.claims),
    )


def _outcome(conn: Connection, probe: Probe) -> Outcome:
    try:
        cursor = conn.execute(probe.statement.encode(), probe.params or None)
        rows = tuple(sorted(map(repr, cursor.fetchall()))) if cursor.description else ()
        return Outcome(max(cursor.rowcount, 0), rows)
    except psycopg.Error as error:
        return Outcome(sqlstate=error.sqlstate or "connection lost")


def tenant_tables(conn: Connection) -> list[str]:
    """Every table that holds rows of tenants."""
    return [
        relation.name
        for relation in relations(conn)
        if relation.kind in ("event", "tenant") and relation.has_tenant
    ]


def fingerprints(conn: Connection, spared: UUID | None, tables: Iterable[str]) -> dict[str, str]:
    """By table, what changes with any row of any tenant but `spared`."""
    query = " union all ".join(
        f"select '{table}', md5(coalesce(string_agg(md5(t::text), '' order by md5(t::text)), ''))"
        f" from {table} as t where tenant_id is distinct from %(spared)s"
        for table in tables
    )
    return dict(conn.execute(query.encode(), {"spared": spared}).fetchall()) if query else {}


@contextmanager
def without(conn: Connection, *tenants: UUID) -> Iterator[None]:
    """The same database, had these tenants never written."""
    conn.execute("savepoint before")
    for table in tenant_tables(conn):
        conn.execute(f"delete from {table} where tenant_id = any(%s)".encode(), [list(tenants)])
    yield
    conn.execute("rollback to savepoint before; release savepoint before")


def findings(conn: Connection, only: str | None = None) -> list[str]:
    """What is wrong with the isolation of the tenants, object by object; nothing is changed.

    As the administrator of a database that `fill` was called on; `only` names one object.
    """
    trial = Trial(conn)
    problems = trial.problems
    tables = [each for each in relations(conn) if only in (None, each.name)]
    calls = [each for each in functions(conn) if only in (None, each.name)]
    for relation in tables:
        problems += _unsuited(conn, relation)
    problems += [
        f"{each.name}: no rule for its kind" for each in calls if each.kind not in ("f", "a")
    ]
    # by role, so that plans are made anew a few times only
    for actor in sorted(ACTORS, key=lambda actor: actor.role):
        for relation in tables:
            _try_relation(trial, relation, actor)
        for function in calls:
            if function.kind in ("f", "a"):
                _try_function(trial, function, actor)
    trial.compare()
    return problems


class Trial:
    """What was tried so far, what came of it, and who was found to be noticed or harmed by it."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.problems: list[str] = []
        self.answers: dict[Probe, Outcome] = {}
        self._tables = tenant_tables(conn)
        self._before = {tenant: fingerprints(conn, tenant, self._tables) for tenant in (A, None)}
        self._writes = _writes(conn)

    def attempt(self, probe: Probe) -> Outcome:
        """Act, see what comes of it and whether it changes rows of others, and take it back."""
        with _savepoint(self.conn):
            _become(self.conn, probe.actor)
            outcome = _outcome(self.conn, probe)
            if probe.writes and not outcome.sqlstate:
                self._look_for_changes(probe)
        return outcome

    def _look_for_changes(self, probe: Probe) -> None:
        writes = _writes(self.conn)
        written = [table for table in self._tables if writes[table] != self._writes[table]]
        self._writes = writes
        if written:
            self.conn.execute("set local role none")
            spared = probe.actor.tenant
            after = fingerprints(self.conn, spared, written)
            if any(after[table] != self._before[spared][table] for table in written):
                self.problems.append(
                    f"{probe.actor.name}: {probe.act} {probe.object}: changes rows of others"
                )

    def compare(self) -> None:
        """Act again where the others have no rows: the answers must be the same."""
        own = {actor: (B,) if actor.tenant else (A, B) for actor in ACTORS}
        for others in ((B,), (A, B)):
            with without(self.conn, *others):
                for probe, answer in self.answers.items():
                    if own[probe.actor] == others:
                        alone = attempt(self.conn, probe)
                        if alone != answer:
                            self.problems.append(
                                f"{probe.actor.name}: {probe.act} {probe.object}:"
                                f" {answer}, but {alone} when nobody else has rows"
                            )


def _writes(conn: Connection) -> dict[str, int]:
    """By table: another number after any write of this transaction, taken back or not."""
    return dict(
        conn.execute(
            "select coalesce(pg_partition_root(oid), oid)::regclass::text,"
            " sum(pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid)"
            " + pg_stat_get_xact_tuples_deleted(oid) + relfilenode::bigint)::bigint"  # or truncated
            " from pg_catalog.pg_class"
            " where relkind = 'r' and relnamespace = 'tracedb'::regnamespace group by 1"
        ).fetchall()
    )


def _unsuited(conn: Connection, relation: Relation) -> list[str]:
    """Why trying the relation would prove nothing."""
    if relation.kind not in ("event", "tenant", "setting", "partition", "ledger", "view"):
        return [f"{relation.name}: no rule for a {relation.kind}"]
    if relation.is_closed:
        return []
    problems = []
    if not relation.granted:
        problems.append(f"{relation.name}: granted to nobody: decide in 900_grants.sql")
    if relation.kind == "event" and not relation.has_tenant:
        problems.append(f"{relation.name}: partitioned without a tenant_id")
    for tenant in (A, B):
        if relation.has_tenant and _count(conn, relation, tenant) == 0:
            problems.append(f"{relation.name}: no row of {tenant}: let two_tenants.fill write some")
    return problems


def _expected(relation: Relation, actor: Actor, verb: str) -> str:
    """Whose rows the act reaches: denied, own (perhaps none), or all."""
    if relation.is_closed or actor.grants is None or verb == "truncate":
        return "denied"
    if relation.kind == "event":
        allowed = verb in RULES.get(relation.name, EVENT_RULES)[actor.grants]
    else:
        allowed = (actor.grants, verb) in relation.granted
        if not relation.has_tenant and not actor.trusted:
            # Nothing would keep tenants apart in it.
            allowed = False
    if not allowed:
        return "denied"
    return "all" if actor.trusted else "own"


def _count(conn: Connection, relation: Relation, tenant: UUID | None) -> int:
    """The rows of a tenant (None: of everybody), as the administrator counts them."""
    where = "where tenant_id = %s" if tenant else ""
    params = [tenant] if tenant else None
    row = conn.execute(f"select count(*) from {relation.name} {where}".encode(), params).fetchone()
    assert row is not None
    count: int = row[0]
    return count


def _general_count(conn: Connection, relation: Relation) -> int:
    row = conn.execute(
        f"select count(*) from {relation.name} where tenant_id is null".encode()
    ).fetchone()
    assert row is not None
    count: int = row[0]
    assert count > 0
    return count


def _try_relation(trial: Trial, relation: Relation, actor: Actor) -> None:
    """Try the five verbs."""
    conn = trial.conn
    name = relation.name
    columns = _columns(conn, relation)
    statements = {
        "select": f"select * from {name}",
        "insert": f"insert into {name} ({columns}) select {columns} from {name}"
        + ("" if relation.kind == "view" else " on conflict do nothing"),
        "update": f"update {name} set tenant_id = tenant_id",
        "delete": f"delete from {name}",
        "truncate": f"truncate {name}",
    }
    if not relation.has_tenant:
        column = _first_column(conn, relation)
        statements["update"] = f'update {name} set "{column}" = "{column}"'
    denied = DENIED_ON_VIEWS if relation.kind == "view" else DENIED
    for verb, statement in statements.items():
        expected = _expected(relation, actor, verb)
        probe = Probe(actor, name, verb, statement, writes=verb != "select" and expected == "own")
        outcome = trial.attempt(probe)
        if expected == "denied":
            right = outcome.sqlstate in denied
            wanted = "denied"
        elif verb == "insert":
            # every row is there already; with a foreign one among them it would be refused
            right = outcome == Outcome()
            wanted = "no error"
        else:
            tenant = None if expected == "all" else actor.tenant
            reach = 0 if expected == "own" and not tenant else _count(conn, relation, tenant)
            if expected == "own" and relation.name in GENERAL:
                reach += _general_count(conn, relation)
            right = not outcome.sqlstate and outcome.count == reach
            wanted = f"{reach} rows"
        if not right:
            trial.problems.append(f"{actor.name}: {verb} {name}: {outcome} instead of {wanted}")
        elif expected == "own":
            trial.answers[probe] = outcome
    if relation.kind in ("event", "tenant") and relation.has_tenant and not actor.trusted:
        _trespass(trial, relation, actor)


def _columns(conn: Connection, relation: Relation) -> str:
    """All columns that are written, not generated."""
    row = conn.execute(
        "select string_agg(quote_ident(attname), ', ' order by attnum)"
        " from pg_catalog.pg_attribute where attrelid = %s::regclass and attnum > 0"
        " and not attisdropped and attgenerated = ''",
        [relation.name],
    ).fetchone()
    assert row is not None
    columns: str = row[0]
    return columns


def _first_column(conn: Connection, relation: Relation) -> str:
    row = conn.execute(
        "select attname from pg_catalog.pg_attribute"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped order by attnum",
        [relation.name],
    ).fetchone()
    assert row is not None
    column: str = row[0]
    return column


def _trespass(trial: Trial, relation: Relation, actor: Actor) -> None:
    """Write rows of B, hand rows to B, take B's ids."""
    row = _row_only_b_has(trial.conn, relation)
    if row is None:
        trial.problems.append(
            f"{relation.name}: B has no row that A has not: let two_tenants.fill write one"
        )
        return
    theirs = json.loads(row)
    columns = _columns(trial.conn, relation)
    insert = (
        f"insert into {relation.name} ({columns})"
        f" select {columns} from json_populate_record(null::{relation.name}, %s)"
    )
    ours = json.dumps({**theirs, "tenant_id": str(A)})
    for act, statement, params in (
        ("insert B's row into", insert, (json.dumps(theirs),)),
        (
            "insert B's row, or do nothing, into",
            f"{insert} on conflict do nothing",
            (json.dumps(theirs),),
        ),
        ("give rows to B in", f"update {relation.name} set tenant_id = %s", (B,)),
    ):
        probe = Probe(actor, relation.name, act, statement, params)
        outcome = trial.answers[probe] = trial.attempt(probe)
        # Without rows there is nothing to give away.
        harmless = outcome == Outcome() and "give" in act and actor.tenant is None
        if outcome.sqlstate not in DENIED and not harmless:
            trial.problems.append(
                f"{actor.name}: {act} {relation.name}: {outcome} instead of denied"
            )
    for act, statement in (
        ("use B's ids in", insert),
        ("use B's ids, or do nothing, in", f"{insert} on conflict do nothing"),
    ):
        probe = Probe(actor, relation.name, act, statement, (ours,))
        trial.answers[probe] = trial.attempt(probe)


def _row_only_b_has(conn: Connection, relation: Relation) -> str | None:
    keys = [
        column
        for (column,) in conn.execute(
            "select a.attname from pg_catalog.pg_index as i"
            " join pg_catalog.pg_attribute as a"
            " on a.attrelid = i.indrelid and a.attnum = any(i.indkey)"
            " where i.indrelid = %s::regclass and i.indisprimary and a.attname <> 'tenant_id'",
            [relation.name],
        )
    ]
    same = " and ".join(["o.tenant_id = %(a)s", *(f'o."{key}" = t."{key}"' for key in keys)])
    unless = f"and not exists (select from {relation.name} as o where {same})" if keys else ""
    row = conn.execute(
        f"select row_to_json(t)::text from {relation.name} as t"
        f" where tenant_id = %(b)s {unless} order by t::text limit 1".encode(),
        {"a": A, "b": B},
    ).fetchone()
    return row and row[0]


@dataclass(frozen=True, slots=True)
class Target:
    """Whose rows a function is asked for: the tenant named, and the ids."""

    name: str
    tenant: UUID
    trace_id: UUID
    external_id: str
    number: int


TARGETS = (
    Target("B's own rows as B", B, ONLY[B], FOREIGN[B], 6),
    Target("B's own rows as A", A, ONLY[B], FOREIGN[B], 6),
    Target("shared ids as B", B, SHARED, "shared", 1),
    Target("shared ids as A", A, SHARED, "shared", 1),
)


def _try_function(trial: Trial, function: Function, actor: Actor) -> None:
    """Call it for B and for A, with B's ids and with shared ones."""
    allowed = actor.grants in function.granted
    for target in TARGETS if allowed and not actor.trusted else TARGETS[:1]:
        for left_out in {0, function.defaults}:
            probe = _call(trial.conn, function, actor, target, left_out)
            outcome = trial.attempt(probe)
            at_home = actor.trusted or target.tenant == actor.tenant
            if not allowed and outcome.sqlstate not in DENIED:
                trial.problems.append(
                    f"{actor.name}: {probe.act} {function.name}: {outcome}, not denied"
                )
            elif allowed and at_home and outcome.sqlstate in DENIED:
                trial.problems.append(f"{actor.name}: {probe.act} {function.name}: denied within")
            elif allowed and not actor.trusted and function.short_name not in RANDOM:
                trial.answers[probe] = outcome


def _call(
    conn: Connection, function: Function, actor: Actor, target: Target, left_out: int
) -> Probe:
    given = function.arguments[: len(function.arguments) - left_out]
    params = tuple(_value(conn, function, name, type_, target) for name, type_ in given)
    # the table that ("table_name", "text") below names
    types = [
        type_.replace("anyarray", "tracedb.llm_spans[]").replace(
            "anyelement", "tracedb.pattern_settings"
        )
        for _, type_ in given
    ]
    arguments = ", ".join(f"%s::{type_}" for type_ in types)
    called = f"tracedb.{function.short_name}({arguments})"
    return Probe(
        actor,
        function.name,
        f"call for {target.name}" + (", by default," if left_out else ""),
        f"select {called}" if function.kind == "a" else f"select * from {called}",
        params,
        writes=function.volatile and not actor.trusted,
    )


def _value(conn: Connection, function: Function, name: str, type_: str, target: Target) -> Any:
    """Something of the target's that fits the argument."""
    named, by_type = _values(conn, target)
    if (name, type_) in named:
        return named[name, type_]
    if type_ == "anyarray" or re.fullmatch(r"tracedb[.]\w+\[\]", type_):
        return _rows(conn, "llm_spans" if type_ == "anyarray" else type_[8:-2], target)
    if type_ not in by_type:
        raise AssertionError(f"{function.name}: no value to try {name} {type_} with: add one here")
    return by_type[type_]


@lru_cache(maxsize=len(TARGETS))
def _values(conn: Connection, target: Target) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """Values for arguments of a name and type, and of a type whatever their name."""
    wanted = {"trace_id": str(target.trace_id)}
    whose = "A" if target.tenant == A else "B"
    items = [json.dumps(r) for r in records(target.tenant, NOW, wanted, target.number)]
    named = {
        ("tenant_id", "uuid"): target.tenant,
        ("table_name", "text"): "llm_spans",
        ("parent", "text"): "llm_spans",
        ("item", "text"): items[0],
        ("texts", "text[]"): items,
        ("records", "jsonb[]"): items,
        ("item", "jsonb"): items[0],
        ("mapped", "jsonb"): json.dumps({target.external_id: str(target.trace_id)}),
        ("trace_rows", "jsonb[]"): [_row(conn, "execution_traces", target)],
        ("parents", "integer[]"): [None],
        ("writer_id", "uuid"): WRITER,
        ("of_writer", "uuid"): WRITER,
        ("numbers", "bigint[]"): list(range(1, len(items) + 1)),
        ("outcome", "text"): "stored",
        ("dead_letter_ids", "uuid[]"): _dead_letters(conn, target.tenant),
        ("before", "timestamp with time zone"): NOW + timedelta(days=1),
        ("filter", "jsonb"): json.dumps({"status": "error"}),
        ("cursor", "text"): None,
        ("offset_rows", "integer"): 0,
        ("lowest", "uuid"): UUID(int=0),
        ("before", "uuid"): UUID(int=2**128 - 1),
        ("user_id", "text"): f"user of {whose}",
        ("agent_id", "text"): f"agent of {whose}",
        ("route", "text"): f"route of {whose}",
        ("start_date", "timestamp with time zone"): NOW,
        ("end_date", "timestamp with time zone"): NOW + timedelta(days=1),
        ("since", "timestamp with time zone"): NOW - timedelta(days=1),
        ("until", "timestamp with time zone"): NOW + timedelta(days=1),
        ("dry_run", "boolean"): False,
        ("by", "text"): "model",
        ("period", "text"): "month",
        ("name", "text"): f"of {whose}",
        ("reservation_id", "uuid"): target.trace_id,
        ("daily", "numeric[]"): [1],
        ("history_days", "integer"): 7,
        ("date", "date"): NOW.date(),
        ("max_spans", "integer"): 100,
        ("part_rows", "jsonb[]"): [_row(conn, "llm_spans", target)],
        ("prices", "jsonb"): json.dumps([price(f"new of {whose}")]),
        ("lines", "jsonb"): json.dumps([{"model": whose, "amount_usd": 1}]),
        ("provider", "text"): "general",
        ("providers", "text[]"): ["general", "general"],
        ("request_models", "text[]"): ["own of A", "own of B"],
        ("response_models", "text[]"): [None, "own"],
        ("as_of", "timestamp with time zone"): NOW + timedelta(days=1),
        ("width", "text"): "hour",
        ("line", "tracedb.usage_contributions"): None,
        ("shares", "double precision[]"): [0.5],
        ("subject", "text"): "error",
        ("changes", "tracedb.learned_change[]"): "{}",
        ("shapes", "tracedb.trace_pattern[]"): "{}",
        ("fingerprint", "uuid"): _fingerprint(conn, target.tenant),
        ("arm", "text"): "pattern",
        ("rank", "integer"): 1,
        ("score_parts", "jsonb"): "{}",
        ("policy", "jsonb"): '"greedy"',
        ("candidates", "jsonb"): '[{"agent": "x", "score": 1}]',
        ("reward", "text"): "score",
        ("min_effective", "integer"): 2,
        ("model", "text"): "shared",
        ("query", "text"): f"said by {whose}",
        ("min_score", "double precision"): 0.0,
        ("context", "jsonb"): json.dumps({"intent": f"of {whose}"}),
        ("settings", "jsonb"): json.dumps({"min_score": 0.2}),
        ("fields", "jsonb"): json.dumps({"min_score": 0.2}),
        ("pattern", "jsonb"): json.dumps({"prompt": f"said by {whose}"}),
        ("hook_sequence", "jsonb"): "[]",
        ("endpoint_sequence", "jsonb"): "[]",
        ("embeddings", "real[]"): "{{1,0.5,0}}",
        ("words", "text[]"): ["said"],
        ("candidates", "text[]"): ["said"],
        ("dimension", "integer"): 3,
        ("kind", "text"): "vectors",
        ("after", "uuid"): UUID(int=0),
        ("max_memory_mb", "integer"): 64,
        ("relations", "text[]"): ["llm_spans"],
        ("tables", "text[]"): ["llm_spans"],
        ("family", "text"): "traces",
        ("action", "text"): "drop",
        ("keep", "interval"): timedelta(days=60),
        ("from_time", "timestamp with time zone"): NOW,
        ("to_time", "timestamp with time zone"): NOW + timedelta(days=1),
        ("archive_ids", "uuid[]"): [],
        ("except_tenants", "uuid[]"): [],
        ("tenant_ids", "uuid[]"): [A, B],
        ("archive", "jsonb"): json.dumps({"archive_id": str(target.trace_id)}),
        ("contents", "jsonb"): "[]",
    }
    by_type = {
        "uuid": target.trace_id,
        "uuid[]": [str(target.trace_id)],
        "text": target.external_id,
        "text[]": [target.external_id],
        "json": f"[{', '.join(items)}]",
        "jsonb": _row(conn, "llm_spans", target),
        "jsonb[]": [_row(conn, "llm_spans", target)],
        "integer": 1,
        "bigint": 1,
        "boolean": True,
        "int8multirange": "{[1,3]}",
        "tstzmultirange": "{(,)}",
        "integer[]": [1],
        "smallint[]": [1],
        "bigint[]": [1],
        "timestamp with time zone": NOW,
        "timestamp with time zone[]": [NOW],
        "numeric": 1,
        "interval": timedelta(minutes=1),
        "daterange": f"[{NOW.date()},{NOW.date() + timedelta(days=1)}]",
        "regclass": "tracedb.llm_spans",
        "tracedb.partition_policies": "(traces,{llm_spans},week,1)",
        "tracedb.execution_traces": None,
        "tracedb.trace_filter": None,
        "double precision": 0.5,
        "double precision[]": [0.4, 0.2, 0.2, 0.1, 0.1],
        "smallint": 3,
        "real[]": "{1,0.5,0}",
        "halfvec": "[1,0.5,0]",
        "tsquery": "said",
        "tsvector": "'said'",
        "anyelement": None,
        "tracedb.erasures": None,
    }
    return named, by_type


def _fingerprint(conn: Connection, tenant: UUID) -> UUID:
    """Of an error that only this tenant has."""
    row = conn.execute(
        "select fingerprint from tracedb.error_patterns where tenant_id = %s"
        " order by fingerprint limit 1",
        [tenant],
    ).fetchone()
    assert row is not None
    fingerprint: UUID = row[0]
    return fingerprint


def _dead_letters(conn: Connection, tenant: UUID) -> list[UUID]:
    found = conn.execute(
        "select dead_letter_id from tracedb.dead_letters where tenant_id = %s", [tenant]
    )
    return [letter for (letter,) in found.fetchall()]


@lru_cache(maxsize=256)
def _rows(conn: Connection, table: str, target: Target) -> str:
    """An array with that row of theirs, if the table has one of that trace."""
    row = conn.execute(
        f"select array_agg(t)::text from (select * from tracedb.{table} where trace_id = %s"
        " order by tenant_id = %s desc limit 1) as t".encode(),
        [target.trace_id, B],
    ).fetchone()
    assert row is not None
    rows: str = row[0] or "{}"
    return rows


def _row(conn: Connection, table: str, target: Target) -> str:
    """A row of B's (or, for shared ids, of the target's) that says it is the target's."""
    row = conn.execute(
        f"select to_jsonb(t) from tracedb.{table} as t where trace_id = %s"
        " order by tenant_id = %s desc limit 1".encode(),
        [target.trace_id, B],
    ).fetchone()
    assert row is not None
    return json.dumps({**row[0], "tenant_id": str(target.tenant)})
