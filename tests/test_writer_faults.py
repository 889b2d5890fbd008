"""The writer under fire: whatever happens to the database or to it, nothing is lost or doubled.

Each test prints what it measured in the report's last lines; `make soak` does the same for longer.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

import servers
import tracedb.server
from faults import Figures, Offered, figures, kill, numbers, start_again, terminate_writers, tries
from proxy import Proxy, proxy
from tracedb import Writer, connect
from tracedb.migrate import migrate

Report = Callable[[str, object], None]
SETTLED = 60.0


@pytest.fixture
def tenant() -> UUID:
    return uuid4()


@pytest.fixture
def through(database: str) -> Iterator[Proxy]:
    with proxy(database) as ours:
        yield ours


@pytest.fixture
def admin(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn


def writer(dsn: str, tenant: UUID, **settings: Any) -> Writer:
    """A writer that delivers soon and gives up on a silent server soon."""
    soon: dict[str, Any] = {"flush_seconds": 0.05, "write_timeout": 1.0}
    return Writer(dsn, tenant_id=tenant, **soon | settings)


def settle(ours: Writer) -> None:
    assert ours.flush_all(SETTLED)
    stats = ours.stats()
    assert stats.pending == 0
    assert stats.accepted == stats.stored + stats.dead + stats.dropped


def losses(dsn: str, tenant: UUID) -> tuple[int, int, int]:
    """What the ledger says of all writers together: missing, dead, dropped."""
    with connect(dsn, max_size=1) as db:
        found = db.tenant(tenant).loss_report()
    return (
        sum(row.missing for row in found),
        sum(row.dead for row in found),
        sum(row.dropped for row in found),
    )


def whole(seen: Figures) -> bool:
    return seen.stored == seen.offered and seen.duplicate == seen.missing == 0


# bars 13, 15, 16: the network


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
def test_an_outage_costs_nothing_and_the_caller_does_not_notice(
    database: str, through: Proxy, tenant: UUID, tmp_path: Path, spooled: bool, report: Report
) -> None:
    with writer(through.dsn, tenant, spool=tmp_path if spooled else None) as ours:
        events = Offered(ours)
        events.offer(100)
        through.refuse()
        events.offer(2000)
        through.heal()
        settle(ours)

    seen = figures(database, tenant, events)
    report("database down", seen)
    assert whole(seen)
    assert losses(database, tenant) == (0, 0, 0)


def test_a_service_starts_without_its_database(database: str, through: Proxy, tenant: UUID) -> None:
    through.refuse()
    with writer(through.dsn, tenant) as ours:
        events = Offered(ours)
        events.offer(50)
        through.heal()
        settle(ours)

    assert whole(figures(database, tenant, events))


def test_lost_replies_to_commits_double_nothing(
    database: str, through: Proxy, tenant: UUID, report: Report
) -> None:
    with writer(through.dsn, tenant) as ours:
        events = Offered(ours)
        for _ in range(30):
            through.lose_commit_replies(1)
            events.offer(20)
            settle(ours)

    seen = figures(database, tenant, events)
    report(f"{through.lost_replies} lost commit replies", seen)
    assert through.lost_replies == 30
    assert whole(seen)
    with connect(database, max_size=1) as db:
        (row,) = db.tenant(tenant).loss_report()
    assert (row.missing, row.dead) == (0, 0)
    assert row.repeated >= 20 * 30


def test_a_silent_network_is_noticed_within_the_write_timeout(
    database: str, through: Proxy, tenant: UUID, report: Report
) -> None:
    with writer(through.dsn, tenant) as ours:
        events = Offered(ours)
        events.offer(100)
        settle(ours)
        before = through.connections
        through.swallow()
        events.offer(100)
        for _ in tries(SETTLED, "the writer gives up the silent connection"):
            if through.connections > before:
                break
        through.heal()
        settle(ours)

    seen = figures(database, tenant, events)
    report("black hole", seen)
    assert whole(seen)


# bars 14, 17: kills


SERVICE = """
import sys
from pathlib import Path
from faults import Offered
from tracedb import Writer

dsn, tenant, spool, first = sys.argv[1:]
with Writer(dsn, tenant_id=tenant, spool=Path(spool), flush_seconds=0.01) as writer:
    events = Offered(writer)
    events.numbers = iter(range(int(first), 10**9))
    while True:
        events.offer()
        print(int(first) + events.offered, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_acknowledged(
    database: str, tenant: UUID, tmp_path: Path, report: Report
) -> None:
    chance = random.Random(14)
    first = 0
    acknowledged: set[int] = set()
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", SERVICE, database, str(tenant), str(tmp_path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        ) as service:
            assert service.stdout is not None
            for _ in range(chance.randint(1, 1500)):
                end = int(service.stdout.readline())
            service.kill()
            # it may have got on before it died; what it said then was acknowledged as well
            said = service.stdout.read().split()
            end = int(said[-1]) if said else end
        acknowledged |= set(range(first, end))
        first = end + 10  # leaves room for events that were recorded and not yet acknowledged
    with writer(database, tenant, spool=tmp_path) as ours:
        for _ in tries(SETTLED, "what was left behind is delivered"):
            if acknowledged <= set(numbers(database, tenant)):
                break
        settle(ours)

    stored = numbers(database, tenant)
    report(
        "kill -9 of the writer, 10 times",
        f"acknowledged {len(acknowledged):,}, stored {len(stored):,},"
        f" missing {len(acknowledged - set(stored))},"
        f" duplicate {len(stored) - len(set(stored))}",
    )
    assert len(stored) == len(set(stored))
    assert losses(database, tenant) == (0, 0, 0)


@pytest.mark.slow
def test_killed_connections_lose_nothing(
    database: str, admin: psycopg.Connection[Any], tenant: UUID, report: Report
) -> None:
    chance = random.Random(17)
    killed = 0
    with writer(database, tenant) as ours:
        events = Offered(ours)
        for _ in range(30):
            before = ours.stats().stored
            for _ in tries(SETTLED, "there is a working connection to kill"):
                stats = ours.stats()
                if stats.pending < 1000:
                    events.offer(chance.randint(1, 5))
                if stats.stored > before and (terminated := terminate_writers(admin)):
                    killed += terminated
                    break
        settle(ours)

    seen = figures(database, tenant, events)
    report(f"{killed} killed connections", seen)
    assert whole(seen)
    assert losses(database, tenant) == (0, 0, 0)


@pytest.fixture
def own_server(pytestconfig: pytest.Config) -> Iterator[Restarts]:
    """A server that a test may stop and kill, durable as far as a killed process goes."""
    package = servers.EMBEDDED[pytestconfig.getoption("--pg")]
    if find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-"))
    scratch.chmod(0o755)
    ours = Restarts(scratch / "data", servers.packaged_programs(package))
    try:
        ours.start()
        migrate(ours.dsn)
        yield ours
    finally:
        tracedb.server.locate(ours.data_dir, bin_dir=ours.bin_dir).stop()
        shutil.rmtree(scratch)


class Restarts:
    """A server of one's own."""

    def __init__(self, data_dir: Path, bin_dir: Path) -> None:
        self.data_dir, self.bin_dir = data_dir, bin_dir

    def start(self) -> None:
        # the log is written to the file before a commit returns; that the file outlives a power cut
        # is not what is tried here
        settings = {"fsync": "off", "synchronous_commit": "on"}
        self.server = start_again(self.data_dir, settings, self.bin_dir)
        self.dsn = self.server.dsn

    @contextmanager
    def down(self, how: str) -> Iterator[None]:
        if how == "killed":
            kill(self.server)
        else:
            self.server.stop()
        yield
        self.start()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_restarted_server_loses_nothing(
    own_server: Restarts, tenant: UUID, how: str, report: Report
) -> None:
    with writer(own_server.dsn, tenant) as ours:
        events = Offered(ours)
        for _ in range(3):
            events.offer(300)
            with own_server.down(how):
                events.offer(300)
            events.offer(300)
        settle(ours)

    seen = figures(own_server.dsn, tenant, events)
    report(f"server {how} 3 times", seen)
    assert whole(seen)
    assert losses(own_server.dsn, tenant) == (0, 0, 0)


# bars 20, 21: what the database refuses


@pytest.mark.parametrize("bad", [1, 5, 20, 100])
def test_poison_is_isolated_and_its_neighbours_are_stored(
    database: str, tenant: UUID, bad: int
) -> None:
    not_an_object: Any = ["an", "array"]
    with writer(database, tenant) as ours:
        for number in range(100):
            ours.log_platform_event(
                event_type="offered",
                event_category="fault",
                event_data={"n": number} if number >= bad else not_an_object,
            )
        settle(ours)
        stats = ours.stats()

    assert (stats.stored, stats.dead) == (100 - bad, bad)
    assert sorted(numbers(database, tenant)) == list(range(bad, 100))
    with connect(database, max_size=1) as db:
        letters = db.tenant(tenant).dead_letters()
    assert [letter.reason for letter in letters] == ["event_data, metadata: must be objects"] * bad


LOGIN = "tracedb_test_writer"


@pytest.fixture
def login(database: str, admin: psycopg.Connection[Any]) -> Iterator[str]:
    """The DSN of a login that is an app."""
    admin.execute(f"drop role if exists {LOGIN}".encode())
    admin.execute(f"create role {LOGIN} login password 'secret'".encode())
    admin.execute(f"grant tracedb_app to {LOGIN}".encode())
    yield psycopg.conninfo.make_conninfo(database, user=LOGIN, password="secret")
    admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [LOGIN]
    )
    admin.execute(f"drop owned by {LOGIN}".encode())
    admin.execute(f"drop role {LOGIN}".encode())


def raising(sqlstate: str) -> tuple[str, str]:
    """Have the ledger's table raise an error of the server that is hard to come by."""
    return (
        "create function public.fail() returns trigger language plpgsql as $$ begin"
        f" raise exception using errcode = '{sqlstate}', message = 'induced'; end $$;"
        " grant execute on function public.fail() to public;"
        " create trigger fail before insert or update on tracedb.ingest_writers"
        " for each row execute function public.fail()",
        "drop trigger fail on tracedb.ingest_writers; drop function public.fail()",
    )


TROUBLES: dict[str, tuple[str, str]] = {
    "permission revoked": (
        "revoke insert on tracedb.platform_events from tracedb_app",
        "grant insert on tracedb.platform_events to tracedb_app",
    ),
    "table missing": (
        "alter table tracedb.platform_events rename to elsewhere",
        "alter table tracedb.elsewhere rename to platform_events",
    ),
    "function missing": (
        "alter function tracedb.record_delivery rename to elsewhere",
        "alter function tracedb.elsewhere rename to record_delivery",
    ),
    "read-only": (
        f"alter role {LOGIN} set default_transaction_read_only = on",
        f"alter role {LOGIN} reset default_transaction_read_only",
    ),
    "too many connections": (
        f"alter role {LOGIN} connection limit 0",
        f"alter role {LOGIN} connection limit -1",
    ),
    "login refused": (f"alter role {LOGIN} nologin", f"alter role {LOGIN} login"),
    "disk full": raising("53100"),
    "out of memory": raising("53200"),
    "deadlock": raising("40P01"),
    "lock not available": raising("55P03"),
    "internal error": raising("XX000"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_will_pass_is_waited_for_and_told_once(
    database: str,
    admin: psycopg.Connection[Any],
    login: str,
    tenant: UUID,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin, end = (statement.encode() for statement in TROUBLES[trouble])
    with writer(login, tenant) as ours:
        ours.log_platform_event(event_type="offered", event_category="fault", event_data={"n": 0})
        settle(ours)
        admin.execute(begin)
        terminate_writers(admin)
        caplog.clear()
        for number in range(1, 50):
            ours.log_platform_event(
                event_type="offered", event_category="fault", event_data={"n": number}
            )
        assert not ours.flush_all(0.5)
        assert ours.stats().pending == 49
        told = [record for record in caplog.records if record.name == "tracedb"]
        admin.execute(end)
        settle(ours)

    # that another transaction was in the way is worth a line only if it stays so
    assert len(told) == (trouble not in ("deadlock", "lock not available"))
    assert sorted(numbers(database, tenant)) == list(range(50))
    assert losses(database, tenant) == (0, 0, 0)


def test_a_tenant_in_trouble_does_not_hold_the_others(
    database: str, admin: psycopg.Connection[Any], tenant: UUID
) -> None:
    held = uuid4()
    admin.execute(
        sql.SQL(
            "create function public.fail() returns trigger language plpgsql as $$ begin"
            " if new.tenant_id = {} then"
            " raise exception using errcode = '42501', message = 'induced'; end if;"
            " return new; end $$;"
            " create trigger fail before insert or update on tracedb.ingest_writers"
            " for each row execute function public.fail()"
        ).format(sql.Literal(held))
    )
    with writer(database, tenant) as ours:
        for number in range(20):
            for whose in (held, tenant):
                ours.log_platform_event(
                    event_type="offered",
                    event_category="fault",
                    event_data={"n": number},
                    tenant_id=whose,
                )
        for _ in tries(SETTLED, "the other tenant's events are stored"):
            if len(numbers(database, tenant)) == 20:
                break
        assert numbers(database, held) == []
        admin.execute("drop trigger fail on tracedb.ingest_writers")
        settle(ours)

    assert sorted(numbers(database, held)) == list(range(20))
