"""Code is traced by a `with` or a decorator, sync and async, and notices nothing of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

import tracedb
from tracedb.recorder import Recorder, TenantId
from writers import writer


class Notebook(Recorder):
    """Keeps what is recorded, in order."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.tenants: list[TenantId] = []

    def record(self, record: dict[str, Any], tenant_id: TenantId = None) -> bool:
        self.records.append(record)
        self.tenants.append(tenant_id)
        return True

    def refuse(self) -> None:
        raise AssertionError

    def tenant_of(self, record: Mapping[str, Any], tenant_id: TenantId) -> UUID | None:
        return None

    def tree(self) -> dict[str, str | None]:
        """The name of each record, and that of what it is in."""
        ids = {r.get("span_id") or r["trace_id"]: r["name"] for r in self.records}
        return {
            r["name"]: ids.get(
                r.get("parent_span_id")
                or (r["trace_id"] if r["type"] == "span" else r.get("parent_trace_id"))
            )
            for r in self.records
        }

    def named(self, name: str) -> dict[str, Any]:
        (record,) = [record for record in self.records if record["name"] == name]
        return record


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """What is recorded without naming a writer."""
    notebook = Notebook()
    tracedb.set_writer(notebook)  # type: ignore[arg-type]
    yield notebook
    tracedb.set_writer(None)


def times(record: Mapping[str, Any]) -> tuple[datetime, datetime]:
    return datetime.fromisoformat(record["started_at"]), datetime.fromisoformat(record["ended_at"])


def test_spans_are_nested_in_a_trace(notebook: Notebook) -> None:
    with tracedb.trace("request", user_id="u1", session_id="s1") as t:
        with tracedb.span("search", operation_type="retrieval"):
            pass
        with tracedb.span("answer", operation_type="llm", request_model="m") as s:
            s.set(input_tokens=10, cost_usd="0.5", provider=None)
            with tracedb.span("tool"):
                assert tracedb.current_span().trace_id == t.trace_id
        t.set(output="done")

    assert notebook.tree() == {
        "search": "request",
        "tool": "answer",
        "answer": "request",
        "request": None,
    }
    trace = notebook.named("request")
    assert (trace["type"], trace["user_id"], trace["output"]) == ("trace", "u1", "done")
    assert trace["trace_id"] == str(t.trace_id)
    assert t.span_id is None
    answer = notebook.named("answer")
    assert answer["span_id"] == s.span_id
    assert {name: answer.get(name) for name in ("input_tokens", "cost_usd", "provider")} == {
        "input_tokens": 10,
        "cost_usd": "0.5",
        "provider": None,
    }
    assert {r["status"] for r in notebook.records} == {"ok"}
    started, ended = times(trace)
    for part in notebook.records:
        assert started <= times(part)[0] <= times(part)[1] <= ended
    assert trace["trace_id"][:8] == f"{int(started.timestamp() * 1000):012x}"[:8]


def test_a_trace_in_a_trace_is_a_nested_execution(notebook: Notebook) -> None:
    with (
        tracedb.trace("outer") as outer,
        tracedb.span("step") as step,
        tracedb.trace("inner", agent_id="bot") as inner,
        tracedb.trace("innermost"),
    ):
        assert inner.trace_id != outer.trace_id

    record = notebook.named("inner")
    assert record["parent_trace_id"] == record["root_trace_id"] == str(outer.trace_id)
    assert record["parent_span_id"] == step.span_id
    innermost = notebook.named("innermost")
    assert innermost["parent_trace_id"] == str(inner.trace_id)
    assert innermost["root_trace_id"] == str(outer.trace_id)
    assert "parent_span_id" not in innermost


def test_a_span_without_a_trace_makes_one(notebook: Notebook) -> None:
    with tracedb.span("step", operation_type="tool") as s:
        pass

    assert [r["type"] for r in notebook.records] == ["span", "trace"]
    assert {r["name"] for r in notebook.records} == {"step"}
    assert {r["trace_id"] for r in notebook.records} == {str(s.trace_id)}


def test_the_writer_and_the_tenant_are_inherited(notebook: Notebook) -> None:
    other, tenant, inner_tenant = Notebook(), uuid4(), uuid4()

    with (
        tracedb.trace("a", writer=other, tenant_id=tenant),
        tracedb.span("b"),
        tracedb.span("c", writer=notebook, tenant_id=inner_tenant),
    ):
        pass

    assert [r["name"] for r in other.records] == ["b", "a"]
    assert other.tenants == [tenant, tenant]
    assert notebook.tenants == [inner_tenant]


class Refusal(Exception):
    """An error of the traced code."""


ERRORS: dict[str, tuple[BaseException, str, str]] = {
    "error": (ValueError("bad"), "error", "ValueError"),
    "own": (Refusal("bad"), "error", f"{__name__}.Refusal"),
    "timeout": (TimeoutError("bad"), "timeout", "TimeoutError"),
    "cancelled": (asyncio.CancelledError("bad"), "cancelled", "asyncio.exceptions.CancelledError"),
    "cancelled future": (
        concurrent.futures.CancelledError("bad"),
        "cancelled",
        "concurrent.futures._base.CancelledError",
    ),
    "interrupt": (KeyboardInterrupt("bad"), "cancelled", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_recorded_and_goes_on_unchanged(case: str, notebook: Notebook) -> None:
    error, status, kind = ERRORS[case]

    with pytest.raises(type(error)) as raised, tracedb.trace("t"), tracedb.span("s"):
        raise error

    assert raised.value is error
    assert raised.value.__cause__ is raised.value.__context__ is None
    span, trace = notebook.records
    assert (span["status"], span["error_type"], span["status_message"]) == (status, kind, "bad")
    assert (trace["status"], trace["error_type"], trace["error_message"]) == (status, kind, "bad")
    assert tracedb.current_span().trace_id is None


def test_an_error_that_is_handled_is_of_its_span_only(notebook: Notebook) -> None:
    with tracedb.trace("t"):
        with pytest.raises(Refusal), tracedb.span("s"):
            raise Refusal
        with tracedb.span("status") as s:
            s.set(status="timeout")

    assert [r["status"] for r in notebook.records] == ["error", "timeout", "ok"]


@tracedb.traced
def plain(x: int, *, y: int = 1) -> int:
    """Adds."""
    return x + y


@tracedb.traced(operation_type="llm", name="model", request_model="m")
async def model(x: int) -> int:
    await asyncio.sleep(0)
    tracedb.current_span().set(input_tokens=x)
    return x


@tracedb.traced
def items(n: int) -> Iterator[int]:
    with tracedb.span("within"):
        for x in range(n):
            with tracedb.span(f"item {x}"):
                pass
            yield x


@tracedb.traced
async def items_async(n: int) -> AsyncIterator[int]:
    with tracedb.span("within"):
        for x in range(n):
            await asyncio.sleep(0)
            with tracedb.span(f"item {x}"):
                pass
            yield x


def test_a_traced_function_is_the_same_function(notebook: Notebook) -> None:
    assert plain(1, y=2) == 3
    assert plain.__doc__ == "Adds."
    assert str(inspect.signature(plain)) == "(x: 'int', *, y: 'int' = 1) -> 'int'"
    assert inspect.iscoroutinefunction(model)
    assert inspect.isgeneratorfunction(items)
    assert inspect.isasyncgenfunction(items_async)


def test_a_call_is_a_trace_or_a_span_of_one(notebook: Notebook) -> None:
    plain(1)
    assert [(r["type"], r["name"]) for r in notebook.records] == [("trace", "plain")]

    notebook.records.clear()
    assert asyncio.run(model(7)) == 7
    assert [(r["type"], r["name"]) for r in notebook.records] == [
        ("span", "model"),
        ("trace", "model"),
    ]
    assert notebook.records[0]["input_tokens"] == 7
    assert notebook.records[0]["request_model"] == "m"

    notebook.records.clear()
    with tracedb.trace("t"):
        plain(1)
    assert notebook.tree() == {"plain": "t", "t": None}
    assert notebook.named("plain")["operation_type"] == "other"


def test_methods_and_recursion_are_traced(notebook: Notebook) -> None:
    class Agent:
        @tracedb.traced
        def run(self, depth: int) -> int:
            return depth and self.run(depth - 1)

    assert Agent().run(2) == 0
    assert [r["type"] for r in notebook.records] == ["span", "span", "trace"]
    assert notebook.records[0]["name"].endswith("Agent.run")


def test_tasks_have_their_own_spans(notebook: Notebook) -> None:
    meeting: list[asyncio.Event] = []

    async def task(n: int) -> None:
        with tracedb.span(f"task {n}"):
            meeting[n].set()
            await asyncio.gather(*(event.wait() for event in meeting))
            with tracedb.span(f"step {n}"):
                await asyncio.to_thread(plain, n)

    async def main() -> None:
        meeting[:] = [asyncio.Event() for _ in range(3)]
        with tracedb.trace("t"):
            await asyncio.gather(*(task(n) for n in range(3)))

    asyncio.run(main())

    assert [notebook.tree()[f"step {n}"] for n in range(3)] == ["task 0", "task 1", "task 2"]
    spans = {r["span_id"]: r["name"] for r in notebook.records if r["type"] == "span"}
    assert sorted(spans[r["parent_span_id"]] for r in notebook.records if r["name"] == "plain") == [
        "step 0",
        "step 1",
        "step 2",
    ]


def test_a_task_that_is_cancelled_is_recorded_so(notebook: Notebook) -> None:
    async def main() -> None:
        began = asyncio.Event()

        @tracedb.traced
        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(wait())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert [r["status"] for r in notebook.records] == ["cancelled"]


def test_a_thread_begins_without_a_trace_unless_it_is_given_one(notebook: Notebook) -> None:
    with tracedb.trace("t"):
        for run in (plain, contextvars.copy_context().run):
            args = (1,) if run is plain else (plain, 1)
            thread = threading.Thread(target=run, args=args)
            thread.start()
            thread.join()

    assert [r["type"] for r in notebook.records] == ["trace", "span", "trace"]


def test_a_generator_is_current_only_while_it_runs(notebook: Notebook) -> None:
    with tracedb.trace("t"):
        seen = []
        for x in items(2):
            with tracedb.span(f"consumer {x}"):
                seen.append(x)

    assert seen == [0, 1]
    assert notebook.tree() == EXPECTED_TREE


EXPECTED_TREE = {
    "item 0": "within",
    "consumer 0": "t",
    "item 1": "within",
    "consumer 1": "t",
    "within": "items",
    "items": "t",
    "t": None,
}


def test_an_async_generator_is_current_only_while_it_runs(notebook: Notebook) -> None:
    async def main() -> None:
        with tracedb.trace("t"):
            async for x in items_async(2):
                with tracedb.span(f"consumer {x}"):
                    pass

    asyncio.run(main())

    tree = notebook.tree()
    assert tree.pop("items_async") == "t"
    assert tree.pop("within") == "items_async"
    assert tree == {k: v for k, v in EXPECTED_TREE.items() if k not in ("items", "within")}


@tracedb.traced
def talk() -> Generator[Any, Any, list[Any]]:
    heard: list[Any] = []
    while True:
        try:
            heard.append((yield heard[-1:]))
        except ValueError as error:
            heard.append(error)
            if len(heard) > 2:
                return heard


def test_a_generator_hears_what_it_is_told(notebook: Notebook) -> None:
    error = ValueError("x")
    generator: Any = talk()

    assert next(generator) == []
    assert generator.send("a") == ["a"]
    assert generator.throw(error) == [error]
    with pytest.raises(StopIteration) as end:
        generator.throw(error)
    assert end.value.value == ["a", error, error]
    assert notebook.records[0]["status"] == "ok"


def test_an_async_generator_hears_what_it_is_told(notebook: Notebook) -> None:
    @tracedb.traced
    async def talk() -> Any:
        heard = None
        while heard != "end":
            try:
                heard = yield heard
            except ValueError:
                heard = "error"

    async def main() -> None:
        generator = talk()
        assert await anext(generator) is None
        assert await generator.asend("a") == "a"
        assert await generator.athrow(ValueError()) == "error"
        with pytest.raises(StopAsyncIteration):
            await generator.asend("end")

    asyncio.run(main())
    assert [r["status"] for r in notebook.records] == ["ok"]


def test_a_generator_that_is_left_is_recorded(notebook: Notebook) -> None:
    closed = []

    @tracedb.traced
    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    generator: Any = endless()
    next(generator)
    generator.close()

    assert closed == [True]
    assert notebook.records[0]["status"] == "cancelled"


def test_an_async_generator_that_fails_is_recorded(notebook: Notebook) -> None:
    @tracedb.traced
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise Refusal("bad")

    async def main() -> None:
        generator = failing()
        async for _ in generator:
            pass

    with pytest.raises(Refusal):
        asyncio.run(main())
    assert notebook.records[0]["error_message"] == "bad"


class Broken(Recorder):
    """A writer whose every call fails, which a writer's calls never do."""

    def save_trace(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("marker-of-a-person")

    save_span = save_trace


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "act", [lambda: plain(1), lambda: list(items(2)), lambda: asyncio.run(model(1))]
)
def test_recording_raises_nothing(act: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    with tracedb.trace("t", writer=Broken()):
        act()

    assert "tracedb: not recorded, because of ValueError" in caplog.text
    assert "marker-of-a-person" not in caplog.text


def test_settings_that_make_no_writer_raise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tracedb.set_writer(None)
    monkeypatch.setenv("TRACEDB_TENANT_ID", "no uuid")

    assert plain(1) == 2


def test_an_error_that_cannot_be_read_is_recorded(notebook: Notebook) -> None:
    with pytest.raises(Unspeakable), tracedb.trace("t" * 10_000):
        raise Unspeakable

    assert notebook.records[0]["error_message"] == "(unreadable)"
    assert len(notebook.records[0]["name"]) == 256


def test_outside_of_a_trace_setting_fields_is_nothing(notebook: Notebook) -> None:
    tracedb.current_span().set(input_tokens=1)

    assert notebook.records == []


def fail(writer: tracedb.Writer) -> None:
    with tracedb.trace("request", writer=writer, external_id="r1"):
        with tracedb.span("answer", operation_type="llm") as s:
            s.set(input_tokens=10, output="password=hunter2")
        with tracedb.trace("nested"), tracedb.span("deep"):
            raise Refusal("the api_key=abcdef was refused")


def test_what_is_traced_is_stored(database: str) -> None:
    tenant = uuid4()
    with writer(database, tenant) as ours:
        with pytest.raises(Refusal):
            fail(ours)
        assert ours.flush_all(30)
        assert ours.stats().dead == 0

    with tracedb.connect(database) as db:
        acme = db.tenant(tenant)
        found = acme.find_trace("r1")
        assert found is not None
        nodes = acme.trace_tree(found)
        document = str(acme.get_trace(found))
    assert [(n.name, n.depth, n.status) for n in nodes] == [
        ("request", 0, "error"),
        ("answer", 1, "ok"),
        ("nested", 1, "error"),
        ("deep", 2, "error"),
    ]
    assert nodes[0].error == "the api_key=[redacted] was refused"
    assert "hunter2" not in document
