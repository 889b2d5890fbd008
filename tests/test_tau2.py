"""Importing benchmark runs: what of a file is in the database, and which files are refused."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracedb
from benchmark_files import REAL, tau2_document, tau_document, write
from clones import clone
from costing import entry, reprice, set_prices
from servers import Server
from tracedb import demo
from tracedb.errors import InvalidInput
from tracedb.rows import Receipt
from tracedb.tau2 import read

TENANT = UUID("00000000-0000-4000-8000-00000000007a")
SPLITS: tuple[Literal["day", "user", "agent", "model"], ...] = ("day", "user", "agent", "model")

real_tau2 = pytest.mark.parametrize("path", sorted(REAL.glob("tau2/*.json")), ids=lambda p: p.stem)
real_tau = pytest.mark.parametrize("path", sorted(REAL.glob("tau/*.json.gz")), ids=lambda p: p.stem)


def load(dsn: str, *paths: Path) -> list[Receipt]:
    files = [read(path) for path in paths]
    with tracedb.connect(dsn) as db:
        return demo.load_files(db, TENANT, files)


def rows(dsn: str, query: str) -> list[Any]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query.encode()).fetchall()


def everything(dsn: str) -> list[Any]:
    """All that is stored, but for the times of storing."""
    tables = ("execution_traces", "llm_spans", "trace_payloads", "trace_ids")
    return [
        rows(
            dsn,
            f"select (to_jsonb(t) - array['created_at', 'updated_at'])::text"
            f" from tracedb.{table} as t order by 1",
        )
        for table in tables
    ]


@real_tau2
def test_a_real_file_is_in_the_database_to_the_last_digit(database: str, path: Path) -> None:
    document = json.loads(path.read_text(), parse_float=Decimal)
    load(database, path)

    found = {
        external_id: figures
        for external_id, *figures in rows(
            database,
            """
            select t.external_id, t.status, t.cost_usd, t.input_tokens, t.output_tokens,
                t.duration_ms, t.started_at at time zone 'UTC',
                (select count(*) from tracedb.llm_spans as s
                 where s.trace_id = t.trace_id and s.operation_type = 'llm'),
                (select count(*) from tracedb.llm_spans as s
                 where s.trace_id = t.trace_id and s.operation_type = 'tool'),
                (select sum(s.cost_usd) from tracedb.llm_spans as s where s.trace_id = t.trace_id)
            from tracedb.trace_summary as t
            """,
        )
    }
    expected = {}
    for simulation in document["simulations"]:
        messages = simulation["messages"]
        usage = [m["usage"] for m in messages if m.get("usage")]
        expected[simulation["id"].replace("-", "")] = [
            "ok" if simulation["reward_info"]["reward"] >= 1 else "error",
            simulation["agent_cost"] + simulation["user_cost"],
            sum(u["prompt_tokens"] for u in usage),
            sum(u["completion_tokens"] for u in usage),
            round(simulation["duration"] * 1000),
            datetime.fromisoformat(simulation["start_time"]),
            sum(m["role"] in ("assistant", "user") for m in messages),
            sum(len(m.get("tool_calls") or []) for m in messages),
            sum(m.get("cost") or 0 for m in messages),
        ]
    assert found == expected


@real_tau
def test_a_real_file_without_times_and_costs_has_none_in_the_database(
    database: str, path: Path
) -> None:
    runs = json.loads(gzip.decompress(path.read_bytes()))
    load(database, path)

    (traces,) = rows(
        database,
        """
        select count(*), count(*) filter (where status = 'ok'), count(cost_usd),
            count(input_tokens), count(duration_ms),
            count(*) filter (where context -> 'synthetic_times' = 'true')
        from tracedb.trace_summary
        """,
    )
    assert traces == (200, sum(run["reward"] >= 1 for run in runs), 0, 0, 0, 200)
    spans = rows(database, "select operation_type, count(*) from tracedb.llm_spans group by 1")
    roles = Counter(message["role"] for run in runs for message in run["traj"])
    assert dict(spans) == {"llm": roles["assistant"] + roles["user"], "tool": roles["tool"]}


@real_tau2
def test_prices_change_nothing_of_a_real_file(database: str, path: Path) -> None:
    """Its costs were reported, and stay."""
    load(database, path)
    costs = rows(database, "select trace_id, cost_usd from tracedb.trace_summary order by 1")
    stored = everything(database)
    with psycopg.connect(database) as conn:
        names = conn.execute("select distinct request_model from tracedb.priced_spans").fetchall()
        models = {name for (name,) in names if name is not None}
        set_prices(conn, *(entry(m, provider=None, input=7, output=7) for m in models))

    load(database, path)
    with psycopg.connect(database) as conn:
        answer = reprice(conn, TENANT, dry_run=False)

    assert models
    assert answer["adjusted"] == 0
    assert everything(database) == stored
    assert costs == rows(
        database, "select trace_id, cost_usd from tracedb.trace_summary order by 1"
    )


@real_tau2
def test_the_money_of_a_real_file_is_a_sum_over_the_file(database: str, path: Path) -> None:
    simulations = json.loads(path.read_text(), parse_float=Decimal)["simulations"]
    days: dict[str, Decimal] = {}
    for simulation in simulations:
        day = simulation["start_time"][:10]
        cost = simulation["agent_cost"] + simulation["user_cost"]
        days[day] = days.get(day, Decimal(0)) + cost
    load(database, path)

    with tracedb.connect(database) as db:
        tenant = db.tenant(TENANT)
        first = datetime.fromisoformat(min(days)).replace(tzinfo=UTC)
        until = datetime.fromisoformat(max(days)).replace(tzinfo=UTC) + timedelta(days=1)
        found = {by: tenant.get_cost_breakdown(by, first, until) for by in SPLITS}
        daily = {day: tenant.get_tenant_daily_cost(date.fromisoformat(day)) for day in days}

    assert {share.key: share.cost_usd for share in found["day"]} == daily == days
    assert {by: sum(share.cost_usd or 0 for share in shares) for by, shares in found.items()} == (
        dict.fromkeys(SPLITS, sum(days.values()))
    )


def percentile(values: list[int], share: float) -> Any:
    """As percentile_cont has it: between the two nearest."""
    values = sorted(values)
    low, rest = divmod(share * (len(values) - 1), 1)
    at, after = values[int(low)], values[min(int(low) + 1, len(values) - 1)]
    return pytest.approx(at + (after - at) * rest, rel=0.01)


@pytest.mark.skipif(not list(REAL.glob("tau2/*.json")), reason="the real files are not here")
def test_analytics_of_real_files_are_sums_over_the_files(database: str) -> None:
    paths = sorted(REAL.glob("tau2/*.json"))
    load(database, *paths)
    figures: dict[str, list[Any]] = {}
    starts = []
    for path in paths:
        document = json.loads(path.read_text(), parse_float=Decimal)
        agent = document["info"]["agent_info"]
        name = f"{agent['implementation']} {agent['llm'].split('/')[-1]}"
        for simulation in document["simulations"]:
            usage = [m["usage"] for m in simulation["messages"] if m.get("usage")]
            starts.append(datetime.fromisoformat(simulation["start_time"]).replace(tzinfo=UTC))
            figures.setdefault(name, []).append(
                (
                    simulation["reward_info"]["reward"] < 1,
                    simulation["agent_cost"] + simulation["user_cost"],
                    sum(u["prompt_tokens"] for u in usage),
                    sum(u["completion_tokens"] for u in usage),
                    round(simulation["duration"] * 1000),
                )
            )

    def sums(runs: list[Any]) -> list[Any]:
        failed, costs, tokens_in, tokens_out, durations = zip(*runs, strict=True)
        shares = [percentile(list(durations), share) for share in (0.5, 0.95, 0.99)]
        return [len(runs), sum(failed), sum(costs), sum(tokens_in), sum(tokens_out), *shares]

    with tracedb.connect(database) as db:
        found = db.tenant(TENANT).get_analytics(
            days=(max(starts) - min(starts)).days + 1, as_of=max(starts) + timedelta(seconds=1)
        )

    assert [
        *(found.total_requests, found.total_errors, found.total_cost_usd),
        *(found.total_input_tokens, found.total_output_tokens),
        *(found.p50_duration_ms, found.p95_duration_ms, found.p99_duration_ms),
    ] == sums([run for runs in figures.values() for run in runs])
    assert found.unknown_cost_count == 0
    by_agent = {
        group.name: [
            *(group.requests, group.errors, group.cost_usd, group.input_tokens),
            *(group.output_tokens, group.p50_duration_ms, group.p95_duration_ms),
            group.p99_duration_ms,
        ]
        for group in found.by_agent
    }
    assert by_agent == {name: sums(runs) for name, runs in figures.items()}
    assert [(group.name, group.requests) for group in found.by_route] == [(None, len(starts))]


@real_tau
def test_analytics_of_real_users_are_counts_over_the_file(database: str, path: Path) -> None:
    runs = json.loads(gzip.decompress(path.read_bytes()))
    load(database, path)
    rewards: dict[str, list[float]] = {}
    for run in runs:
        rewards.setdefault(run["info"]["task"]["user_id"], []).append(run["reward"])

    with tracedb.connect(database) as db:
        found = {user: db.tenant(TENANT).get_user_analytics(user) for user in rewards}

    assert {
        user: row and (row.total_requests, row.total_errors, row.unknown_cost_count)
        for user, row in found.items()
    } == {
        user: (len(of), sum(reward < 1 for reward in of), len(of)) for user, of in rewards.items()
    }
    assert {row and row.total_cost_usd for row in found.values()} == {None}


@real_tau2
def test_a_real_file_again_stores_nothing_new(database: str, path: Path) -> None:
    load(database, path)
    before = everything(database)
    (again,) = load(database, path)

    assert (again.inserted, again.merged) == (0, 0)
    assert again.duplicates == again.received > 0
    assert everything(database) == before


def test_a_simulation_is_a_trace_with_its_header(database: str, tmp_path: Path) -> None:
    load(database, write(tmp_path, tau2_document()))

    first, second = rows(
        database,
        """
        select external_id, name, agent_id, status, error_type, error_message, llm_calls,
            input_tokens, output_tokens, cost_usd::text, duration_ms, context
        from tracedb.execution_traces order by external_id
        """,
    )
    context = {"domain": "shop", "task_id": "7", "reward": 1.0, "termination_reason": "user_stop"}
    # 0.1 and 0.2 as floats add up to 0.30000000000000004
    assert first == (
        *("sim-1", "shop task 7", "llm_agent think-1", "ok", None, None, 3 + 1),
        *(90, 18, "0.3", 20000, context | {"trial": 0, "seed": 42}),
    )
    assert second[3:6] == ("error", "max_steps", "cut off")
    assert second[9] is None, "the cost is unknown if a part of it is"


def test_times_without_an_offset_are_utc_and_others_are_converted(
    database: str, tmp_path: Path
) -> None:
    load(database, write(tmp_path, tau2_document()))

    starts = rows(
        database, "select started_at at time zone 'UTC' from tracedb.execution_traces order by 1"
    )
    assert [str(at) for (at,) in starts] == ["2025-01-15 10:00:00", "2025-01-15 10:00:00"]


def test_a_message_is_a_span_from_the_end_of_the_one_before(database: str, tmp_path: Path) -> None:
    load(database, write(tmp_path, tau2_document()))

    spans = rows(
        database,
        """
        select name, provider, request_model, to_char(started_at at time zone 'UTC', 'SS.MS'),
            to_char(ended_at at time zone 'UTC', 'SS.MS'), input_tokens, cost_usd::text
        from tracedb.llm_spans
        where conversation_id = 'sim-1' order by message_id
        """,
    )
    agent, user = ("agent", "acme", "think-1"), ("user simulator", None, "tiny-2")
    assert spans == [
        (*agent, "00.000", "01.000", None, "0.0"),
        (*user, "01.000", "03.000", 10, "0.01"),
        (*agent, "03.000", "08.500", 30, "0.02"),
        (*agent, "10.000", "15.000", 50, "0.03"),
    ]


def test_parallel_calls_find_their_results_by_id(database: str, tmp_path: Path) -> None:
    load(database, write(tmp_path, tau2_document()))

    calls = rows(
        database,
        """
        select t.tool_name, t.status, t.status_message, t.duration_us, p.message_id, i.content,
            o.content
        from tracedb.llm_spans as t
        join tracedb.llm_spans as p on p.trace_id = t.trace_id and p.span_id = t.parent_span_id
        join tracedb.trace_payloads as i
            on i.trace_id = t.trace_id and i.span_id = t.span_id and i.kind = 'input'
        left join tracedb.trace_payloads as o
            on o.trace_id = t.trace_id and o.span_id = t.span_id and o.kind = 'output'
        where t.operation_type = 'tool' order by p.message_id desc, t.tool_name
        """,
    )
    no_item = "Error: no such item"
    assert calls == [
        ("find", "ok", None, 1_500_000, "2", '{"color": "blue"}', '{"item": 4}'),
        ("stock", "error", no_item, 500_000, "2", '{"item": 3.5}', no_item),
        ("find", "cancelled", None, None, "1", "{}", None),
    ]


def test_the_older_format_keeps_what_it_does_not_know_null(database: str, tmp_path: Path) -> None:
    load(database, write(tmp_path, tau_document(), "airline_gpt-4o.json"))

    traces = rows(
        database,
        """
        select agent_id, user_id, status, cost_usd, input_tokens, duration_ms,
            context ->> 'user_cost', started_at at time zone 'UTC'
        from tracedb.trace_summary order by started_at
        """,
    )
    known = ("airline_gpt-4o", "mia")
    unknown = (None, None, None, "0.0035475000000000003")
    assert [row[:-1] for row in traces] == [(*known, "error", *unknown), (*known, "ok", *unknown)]
    assert [str(row[-1]) for row in traces] == ["2024-06-01 00:00:00", "2024-06-01 00:10:00"]


@pytest.mark.parametrize("document", [tau2_document(), tau_document()], ids=["tau2", "tau"])
def test_importing_again_stores_nothing_new(
    database: str, tmp_path: Path, document: object
) -> None:
    path = write(tmp_path, document)
    load(database, path)
    before = everything(database)
    (again,) = load(database, path)

    assert (again.inserted, again.merged, again.duplicates) == (0, 0, again.received)
    assert everything(database) == before


def test_a_compressed_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    packed = tmp_path / "shop.json"
    packed.write_bytes(gzip.compress(json.dumps(tau2_document()).encode()))

    assert read(packed).records == read(write(tmp_path, tau2_document())).records


def test_an_import_leaves_the_default_partitions_empty(database: str, tmp_path: Path) -> None:
    far = tau2_document()
    far["simulations"][0] |= {"start_time": "1971-01-01T00:00:00"}
    load(database, write(tmp_path, far))

    left = rows(database, "select sum(stray_rows) from tracedb.default_partition_rows()")
    assert left == [(0,)]


DELETED = object()

FAULTS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "no info": (("info",), DELETED, "info: required"),
    "no simulations": (("simulations",), DELETED, "simulations: required"),
    "no tasks": (("tasks",), None, "tasks: required"),
    "no domain": (
        ("info", "environment_info"), {}, "info.environment_info.domain_name: required"
    ),
    "simulations no array": (
        ("simulations",), {}, "simulations: must be an array, not an object"
    ),
    "a simulation no object": (
        ("simulations", 1), "x", "simulations[1]: must be an object, not text"
    ),
    "no timestamp": (
        ("simulations", 0, "messages", 5, "timestamp"),
        DELETED,
        "simulations[0].messages[5].timestamp: required",
    ),
    "no time": (
        ("simulations", 0, "messages", 1, "timestamp"),
        "yesterday",
        "simulations[0].messages[1].timestamp: must be an ISO 8601 time",
    ),
    "before 1970": (
        ("simulations", 0, "start_time"),
        "1969-12-31T23:59:59",
        "simulations[0].start_time: must lie between 1970 and 2200",
    ),
    "before the calendar": (
        ("simulations", 0, "start_time"),
        "0001-01-01T00:00:00+14:00",
        "simulations[0].start_time: must be an ISO 8601 time",
    ),
    "ends before its start": (
        ("simulations", 0, "end_time"),
        "2025-01-15T09:00:00",
        "simulations[0].end_time: must not be before start_time",
    ),
    "negative cost": (
        ("simulations", 0, "agent_cost"),
        -1,
        "simulations[0].agent_cost: must be at least 0 and less than 1e15",
    ),
    "cost as text": (
        ("simulations", 0, "user_cost"),
        "0.1",
        "simulations[0].user_cost: must be a number, not text",
    ),
    "negative tokens": (
        ("simulations", 0, "messages", 1, "usage", "prompt_tokens"),
        -1,
        "simulations[0].messages[1].usage.prompt_tokens: must be a whole number, at least 0",
    ),
    "tokens a truth value": (
        ("simulations", 0, "messages", 1, "usage", "completion_tokens"),
        True,
        "simulations[0].messages[1].usage.completion_tokens: must be a whole number, at least 0",
    ),
    "no reward": (
        ("simulations", 1, "reward_info"), None, "simulations[1].reward_info: required"
    ),
    "unknown role": (
        ("simulations", 0, "messages", 0, "role"),
        "robot",
        "simulations[0].messages[0].role: must be assistant, user, tool or system",
    ),
    "result without a call": (
        ("simulations", 0, "messages", 3, "id"),
        "c9",
        "simulations[0].messages[3].id: no tool call before it has this id",
    ),
    "the same id twice": (
        ("simulations", 1, "id"), "sim-1", "simulations[1].id: simulations[0] has the same"
    ),
    "an endless id": (
        ("simulations", 1, "id"), "x" * 1025, "simulations[1].id: must have from 1 to 1024 bytes"
    ),
    "duration out of range": (
        ("simulations", 0, "duration"),
        1e80,
        "simulations[0].duration: must be a number of seconds, at least 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_of_the_form_is_refused_by_the_field(tmp_path: Path, fault: str) -> None:
    keys, value, message = FAULTS[fault]

    with pytest.raises(InvalidInput) as refusal:
        read(write(tmp_path, changed(tau2_document(), keys, value)))

    assert str(refusal.value) == f"shop.json: {message}"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ((1, "reward"), DELETED, "[1].reward: required"),
        ((1, "trial"), 0, "[1].trial: [0] is the same trial of task 3"),
        ((0, "info", "task"), DELETED, "[0].info.task: required"),
        ((0, "traj", 3, "tool_call_id"), "c9", "[0].traj[3].tool_call_id: no tool call"),
        ((0, "traj", 1, "role"), 7, "[0].traj[1].role: must be text, not a number"),
    ],
)
def test_an_older_file_that_is_not_of_the_form_is_refused_by_the_field(
    tmp_path: Path, keys: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape('shop.json: ' + message)}"):
        read(write(tmp_path, changed(tau_document(), keys, value)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"info": ', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"info": NaN}', "NaN is no number of JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"\x1f\x8b\x08broken", "not JSON"),
        (gzip.compress(b"[]" * 1000)[:-9], "not JSON"),
        (b"7", "must be an object, not a number"),
    ],
)
def test_what_is_not_json_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "shop.json"
    path.write_bytes(content)

    with pytest.raises(InvalidInput, match=rf"^shop\.json: document: .*{reason}"):
        read(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.json: No such file"):
        read(tmp_path / "nowhere.json")


def test_nothing_of_a_file_is_stored_if_the_database_refuses_a_record(
    database: str, tmp_path: Path
) -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    document = tau2_document()
    document["simulations"][1]["seed"] = deep
    before = everything(database)

    with pytest.raises(InvalidInput, match=r"^shop\.json: simulations\[1\]: .*context: nested"):
        load(database, write(tmp_path, document))

    assert everything(database) == before


def changed(document: Any, keys: tuple[str | int, ...], value: object) -> Any:
    document = copy.deepcopy(document)
    place = document
    for key in keys[:-1]:
        place = place[key]
    if value is DELETED:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return document


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of everything in a document."""
    if path:
        yield path
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in children:
        yield from places(item, (*path, key))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "2025-01-15T10:00:02", "\x00", "\ud800", "9999-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def shared_database(server: Server, template: str) -> Iterator[str]:
    with clone(server, template) as dsn:
        yield dsn


@pytest.mark.parametrize("make", [tau2_document, tau_document], ids=["tau2", "tau"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_mutated_file_is_stored_whole_or_refused_by_a_field_and_not_at_all(
    shared_database: str, make: Callable[[], Any], data: st.DataObject
) -> None:
    document = make()
    keys = data.draw(st.sampled_from(list(places(document))))
    value = data.draw(st.just(DELETED) | json_values)
    before = counts(shared_database)
    with TemporaryDirectory() as folder:
        path = write(Path(folder), changed(document, keys, value))
        refusal = receipt = None
        try:
            (receipt,) = load(shared_database, path)
        except InvalidInput as error:
            refusal = str(error)
        if receipt is None:
            assert re.match(r"shop\.json: [\w\[\].]+: .", refusal or "")
            assert counts(shared_database) == before
        else:
            assert receipt.rejected == ()
            assert receipt.received == len(read(path).records)


def counts(dsn: str) -> list[Any]:
    return rows(
        dsn,
        "select (select count(*) from tracedb.execution_traces),"
        " (select count(*) from tracedb.llm_spans), (select count(*) from tracedb.trace_payloads),"
        " (select max(updated_at) from tracedb.execution_traces)",
    )
