"""What tests of functions of many ids share: one way to call sync and async ones, sources with gates, threads."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from memo import CustomStore, MemoryStore, cache_aside_many, drivers
from memo.testing import ManualClock

PATIENCE = 20.0
"""Seconds after which something that should have happened counts as a hang: a net, never a measurement."""


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class DictStore(CustomStore):
    """A store of somebody else's, which blocks: functions reach it through text keys, and tasks through threads."""

    shared = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.records: dict[str, Any] = {}
        self.down = False

    def _up(self) -> None:
        if self.down:
            raise OSError("down")

    def load_record(self, key):
        self._up()
        return self.records.get(key)

    def save_record(self, key, record):
        self._up()
        self.records[key] = record

    def remove_record(self, key):
        self._up()
        self.records.pop(key, None)

    def record_keys(self):
        self._up()
        return list(self.records)


@pytest.fixture(params=["memory", "custom"])
def store(request, clock: ManualClock) -> Any:
    if request.param == "memory":
        return MemoryStore(cleanup_interval=None, clock=clock)
    return DictStore(clock=clock)


class Blocking:
    """A decorated function and its helpers, called from a thread without a running loop, whichever kind it is."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _finished(self.function(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        helper = getattr(self.function, name)
        return (lambda *args, **kwargs: _finished(helper(*args, **kwargs))) if callable(helper) else helper


def _finished(result: Any) -> Any:
    async def wait() -> Any:
        return await result

    return asyncio.run(wait()) if inspect.isawaitable(result) else result


@pytest.fixture(params=["def", "async def"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def many(kind: str, store: Any) -> Callable[..., Any]:
    """Return a function that decorates a plain loader, as the kind of function that the test is about."""

    def decorate(load: Callable[..., Any], **options: Any) -> Any:
        async def aload(ids):
            return load(ids)

        function = cache_aside_many(**{"store": store, **options})(load if kind == "def" else aload)
        return Blocking(function)

    return decorate


class Source:
    """A source of truth: a load notes what is there at once, and may then be held at a gate before it returns that."""

    def __init__(self, values: dict[Any, Any]) -> None:
        self.values = values
        self.asked: list[list[Any]] = []
        self.gates: dict[Any, threading.Event] = {}  # by first id of a load
        self.entered = threading.Semaphore(0)
        self.error: BaseException | None = None

    def hold(self, first: Any) -> threading.Event:
        return self.gates.setdefault(first, threading.Event())

    def _begin(self, ids: list[Any]) -> dict[Any, Any]:
        assert type(ids) is list
        self.asked.append(list(ids))
        self.entered.release()
        return {each: self.values[each] for each in ids if each in self.values}

    def load(self, ids):
        found, error = self._begin(ids), self.error
        if ids[0] in self.gates:
            assert self.gates[ids[0]].wait(PATIENCE)
        if error is not None:
            raise error
        return found

    async def aload(self, ids):
        found, error = self._begin(ids), self.error
        while ids[0] in self.gates and not self.gates[ids[0]].is_set():
            await asyncio.sleep(0)
        if error is not None:
            raise error
        return found

    def arrived(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)


@pytest.fixture
def source() -> Source:
    return Source({1: "one", 2: "two", 3: "three"})


@pytest.fixture
def spawn() -> Callable[..., Future[Any]]:
    """Return a function that calls another one in a thread of its own, in a copy of the current context."""

    def start(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        context = contextvars.copy_context()

        def body() -> None:
            try:
                value = context.run(function, *args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        threading.Thread(target=body, daemon=True).start()
        return future

    return start


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Return a function that waits until a state is reached that another thread brings about."""

    def wait(reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        pause = threading.Event()
        while not reached():
            assert time.monotonic() < deadline, "the awaited state was not reached"
            pause.wait(0.0005)

    return wait


async def turns(reached: Callable[[], object]) -> None:
    """Let the loop go round until a state is reached."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "the awaited state was not reached"
        await asyncio.sleep(0)


@pytest.fixture
def reach() -> Callable[..., Any]:
    return turns


def left_behind(function: Any) -> list[Any]:
    """What is left of loads that are over: flights, leases and tasks."""
    memoized = function._self_memoized
    space = memoized.attached()
    tasks = [task for task in drivers._loads if not task.done() and memoized.name in task.get_name()]
    leases = list(space.leases) if isinstance(getattr(space, "leases", None), dict) else []
    return [*space.flights, *leases, *tasks]


@pytest.fixture
def rest() -> Callable[[Any], list[Any]]:
    return left_behind
