"""`close` and `aclose`: which stores they close, what waits for what, and that nothing ends by it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from typing import Any

import pytest

from memo import MISSING, MemoryStore, NullStore, Store, aclose, cache_aside, close, config, configure
from memo.background import background
from memo.testing import ManualClock

SAFETY = 30


def function(**options: Any) -> Any:
    return cache_aside(namespace="fn", **options)(lambda x: object())


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """The stores that were closed, by either way."""
    seen: list[Store] = []

    async def aclosing(store: Store) -> None:
        await asyncio.sleep(0)
        seen.append(store)

    for kind in MemoryStore, NullStore:
        monkeypatch.setattr(kind, "close", lambda store: seen.append(store))
        monkeypatch.setattr(kind, "aclose", aclosing)
    return seen


@pytest.fixture(params=["close", "aclose"])
def end(request: pytest.FixtureRequest) -> Any:
    return close if request.param == "close" else lambda: asyncio.run(aclose())


def test_every_store_that_was_made_is_closed_once_and_no_other(end: Any, closed: list[Store]) -> None:
    mine, handed = MemoryStore(), MemoryStore()
    configure(
        default="memory://?max_size=5",
        stores={"a": "null://", "same": "memory://?max_size=5", "mine": mine, "uncalled": "memory://?max_size=6"},
    )
    stores = [function(store=store).store for store in ("default", "a", "same", "mine", handed, "memory://?max_size=7")]
    end()
    assert set(closed) == set(stores) - {mine, handed}
    assert len(closed) == 3
    end()
    assert len(closed) == 3


def test_the_default_that_nothing_names_is_closed_too(end: Any, closed: list[Store]) -> None:
    store = function().store
    end()
    assert closed == [store]


def test_nothing_to_close_is_no_error(end: Any) -> None:
    end()
    configure(default=MemoryStore(), stores={"a": "null://"})
    end()


def test_the_next_call_makes_a_new_store_as_configured(end: Any) -> None:
    mine = MemoryStore()
    configure(default="memory://?max_size=5", stores={"mine": mine})
    fn, url, fixed, named = function(), function(store="memory://"), function(store=mine), function(store="mine")
    before = [each(1) for each in (fn, url, fixed, named)]
    stores = [each.store for each in (fn, url)]
    end()
    after = [each(1) for each in (fn, url, fixed, named)]
    assert [a is b for a, b in zip(after, before, strict=True)] == [False, False, True, True]
    assert fn.store.max_size == 5
    assert not {fn.store, url.store} & {*stores}
    gone = [weakref.ref(store) for store in stores]
    del stores
    gc.collect()
    assert [each() for each in gone] == [None, None]


def test_the_environment_is_read_again(end: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fn = function()
    assert fn.store.max_size == 10_000
    monkeypatch.setenv("MEMO_STORE", "memory://?max_size=7")
    end()
    assert fn.store.max_size == 7


def test_refreshes_behind_end_before_their_store_is_closed(
    end: Any, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, order = threading.Event(), threading.Event(), []
    monkeypatch.setattr(config, "make_store", lambda *args: MemoryStore(clock=clock))
    monkeypatch.setattr(MemoryStore, "close", lambda store: order.append(("closed", store.get("slow(1)"))))

    async def aclosing(store: MemoryStore) -> None:
        store.close()

    monkeypatch.setattr(MemoryStore, "aclose", aclosing)

    @cache_aside(ttl=10, stale_while_revalidate=10, store="memory://", namespace="slow")
    def slow(x: int) -> int:
        if order:
            begun.set()
            assert go.wait(SAFETY)
        order.append(("loaded", None))
        return len(order)

    slow(1)
    clock.advance(15)
    assert slow(1) == 1
    assert begun.wait(SAFETY)
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    go.set()
    thread.join(SAFETY)
    assert order == [("loaded", None), ("loaded", None), ("closed", 2)]


def test_one_store_that_fails_keeps_no_other_open(
    end: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [OSError("first hunter2"), ValueError("second hunter2")]
    raised, ended = list(errors), []

    def failing(store: Store) -> None:
        ended.append(store)
        if raised:
            raise raised.pop(0)

    async def afailing(store: Store) -> None:
        failing(store)

    monkeypatch.setattr(MemoryStore, "close", failing)
    monkeypatch.setattr(MemoryStore, "aclose", afailing)
    for size in range(1, 5):
        function(store=f"memory://?max_size={size}").store
    with caplog.at_level(logging.ERROR, logger="memo"), pytest.raises(OSError, match="first") as caught:
        end()
    assert caught.value is errors[0]
    assert len(ended) == 4
    assert "another store could not be closed (ValueError)" in caplog.text
    assert "hunter2" not in caplog.text
    end()  # they are forgotten all the same
    assert len(ended) == 4


def test_stores_are_closed_although_the_wait_for_refreshes_is_interrupted(
    end: Any, closed: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(timeout: Any = None) -> bool:
        raise LookupError("as a Ctrl-C would")

    store = function().store
    monkeypatch.setattr(background, "drain", interrupted)
    with pytest.raises(LookupError):
        end()
    assert closed == [store]


async def test_aclose_does_not_block_the_loop_while_refreshes_run(closed: list[Store]) -> None:
    go = threading.Event()
    assert background.submit("mark", lambda: go.wait(SAFETY))
    function().store
    task = asyncio.ensure_future(aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    assert closed == []
    go.set()
    await task
    assert len(closed) == 1


async def test_aclose_closes_stores_as_a_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may have to await, and its blocking way would stop the loop."""
    loops: list[Any] = []

    async def aclosing(store: Store) -> None:
        loops.append(asyncio.get_running_loop())

    monkeypatch.setattr(MemoryStore, "aclose", aclosing)
    monkeypatch.setattr(MemoryStore, "close", lambda store: 1 / 0)
    function().store
    await aclose()
    assert loops == [asyncio.get_running_loop()]


def test_close_while_threads_call_loses_no_call() -> None:
    functions = [function(), function(store="memory://?max_size=5")]
    over, called, failures = threading.Event(), threading.Event(), []

    def call() -> None:
        try:
            while not over.is_set():
                for each in functions:
                    assert type(each(1)) is object
                    each.peek(1)
                called.set()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        called.clear()
        close()
        assert called.wait(SAFETY)
    over.set()
    for thread in threads:
        thread.join(SAFETY)
    assert failures == []
    assert functions[0].peek(2) is MISSING
    assert functions[0].store is config.resolve_store("default")
    assert functions[1].store is config.resolve_store("memory://?max_size=5")


async def test_aclose_waits_for_the_refreshes_of_its_own_loop() -> None:
    clock = ManualClock()
    gate = asyncio.Event()
    ended: list[int] = []

    @cache_aside(ttl=10, stale_while_revalidate=10, store=MemoryStore(clock=clock, cleanup_interval=None))
    async def load(x: int) -> int:
        if ended:
            await gate.wait()
        ended.append(x)
        return len(ended)

    assert await load(1) == 1
    clock.advance(11)
    assert await load(1) == 1
    closing = asyncio.create_task(aclose())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    gate.set()
    await closing
    assert ended == [1, 1]
    assert await load(1) == 2
