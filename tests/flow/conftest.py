"""What tests of flights share: threads that cannot hang a run, waiting for a state, and what must be left behind."""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from memo import MemoryStore, cache_aside, drivers

PATIENCE = 20.0
"""Seconds after which something that should have happened counts as a hang: a net, never a measurement."""


@pytest.fixture(autouse=True)
def _no_hang():
    """A hang that no timeout in the test catches shows all stacks and ends the run."""
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


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
def result() -> Callable[[Future[Any]], Any]:
    """Return a function that gives the result of a thread, or fails if there is none in good time."""
    return lambda future: future.result(PATIENCE)


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


class Inside:
    """A look behind a decorated function: its flights and leases."""

    def __init__(self, function: Any) -> None:
        self.memoized = function._self_memoized

    @property
    def space(self) -> Any:
        return self.memoized.attached()

    @property
    def flights(self) -> dict[Any, Any]:
        return self.space.flights

    def followers(self) -> int:
        """How many calls wait for a flight now."""
        return sum(len(flight.wakers) for flight in list(self.flights.values()))

    def clean(self, leases: bool = True) -> None:
        """Assert that nothing is left of loads that are over."""
        assert self.flights == {}
        assert not [task for task in drivers._loads if not task.done() and self.memoized.name in task.get_name()]
        if leases:
            assert self.space.leases == {}


@pytest.fixture
def look() -> type[Inside]:
    return Inside


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(cleanup_interval=None)


class Source:
    """A source of truth: each read notes the version at once, and may then be held at a gate before it returns it."""

    def __init__(self) -> None:
        self.version = 0
        self.reads = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def hold(self) -> None:
        self.gate.clear()

    def read(self, *_: Any) -> int:
        with self._lock:
            self.reads += 1
        version, gate = self.version, self.gate
        self.entered.release()
        assert gate.wait(PATIENCE)
        return version

    async def aread(self, *_: Any) -> int:
        self.reads += 1
        version, gate = self.version, self.gate
        self.entered.release()
        while not gate.is_set():
            await asyncio.sleep(0)
        return version

    def arrived(self, count: int = 1) -> None:
        """Wait until `count` more reads have begun."""
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def cached(store: MemoryStore) -> Callable[..., Any]:
    """Decorate with the test's store."""
    return lambda function, **options: cache_aside(**{"store": store, **options})(function)


@pytest.fixture
async def quiet_loop():
    """The running loop, which must have nothing to complain about: no task or exception that was never looked at."""
    loop = asyncio.get_running_loop()
    complaints: list[str] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(f"{context['message']}: {context}"))
    yield loop
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
    others = [task for task in asyncio.all_tasks() if task.get_name().startswith("memo load")]
    assert others == []
