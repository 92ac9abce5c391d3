"""A store that fails never makes a call worse: the function is called, once per key; only helpers report it."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest

from memo import MISSING, MemoryStore, StoreError, cache_aside
from memo.stores.base import Space, Store
from memo.stores.tables import Table


class Broken(StoreError):
    pass


class Fragile(Space):
    """Does what a memory store's space does, except for what is in `down`."""

    raw = True

    def __init__(self, inner: Table, down: set[str], local: bool) -> None:
        self.inner = inner
        self.flights = {}
        self.down = down
        self.local = local

    def _do(self, name, *args):
        if name in self.down or "all" in self.down:
            raise Broken(name)
        return getattr(self.inner, name)(*args)

    def read(self, key):
        return self._do("read", key)

    def take(self, key, tags, renew):
        return self._do("take", key, tags, renew)

    def fill(self, key, lease, value, ttl, tags):
        return self._do("fill", key, lease, value, ttl, tags)

    def release(self, key, lease, remove):
        return self._do("release", key, lease, remove)

    def put(self, key, value, ttl, tags):
        return self._do("put", key, value, ttl, tags)

    def remove(self, key):
        return self._do("remove", key)

    def remove_all(self):
        return self._do("remove_all")

    def peek(self, key):
        return self._do("peek", key)

    def left(self, key):
        return self._do("left", key)

    def of(self, instance):
        return self._do("of", instance)


class FragileStore(MemoryStore):
    """A memory store whose functions' spaces fail on demand."""

    def __init__(self, local=True):
        super().__init__(cleanup_interval=None)
        self.down = set()
        self._local = local

    def attach(self, *args):
        return Fragile(super().attach(*args), self.down, self._local)


@pytest.fixture(params=[True, False], ids=["local", "remote"])
def fragile(request):
    """Remote: the async driver goes through the awaited side, which here is a worker thread."""
    return FragileStore(request.param)


def test_a_store_is_not_made_without_all_its_methods():
    with pytest.raises(TypeError):
        Store()
    with pytest.raises(TypeError):
        Space()


def test_when_everything_fails_the_function_is_called(fragile):
    calls = []
    f = cache_aside(store=fragile)(lambda x: calls.append(x) or x)
    fragile.down.add("all")
    assert [f(7), f(7)] == [7, 7]
    assert calls == [7, 7]
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 2, 2)
    assert stats.errors == {"read": 2, "take": 2}
    assert f._self_memoized.space.flights == {}


async def test_when_everything_fails_the_function_is_called_async(fragile):
    calls = []

    async def load(x):
        calls.append(x)
        return x

    f = cache_aside(store=fragile)(load)
    fragile.down.add("all")
    assert [await f(7), await f(7)] == [7, 7]
    assert calls == [7, 7]
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 2, 2)
    assert stats.errors == {"read": 2, "take": 2}
    assert f._self_memoized.space.flights == {}


def test_when_everything_fails_a_refresh_calls_the_function(fragile):
    f = cache_aside(store=fragile)(lambda x: x)
    fragile.down.add("all")
    assert f.refresh(7) == 7
    assert f.stats().errors == {"take": 1}


async def test_when_everything_fails_a_refresh_calls_the_function_async(fragile):
    async def load(x):
        return x

    f = cache_aside(store=fragile)(load)
    fragile.down.add("all")
    assert await f.refresh(7) == 7
    assert f.stats().errors == {"take": 1}


def test_when_everything_fails_single_flight_still_protects_the_origin(fragile, spawn, result, until, source):
    f = cache_aside(store=fragile)(source.read)
    fragile.down.add("all")
    source.hold()
    calls = [spawn(f, 7) for _ in range(32)]
    until(lambda: f.stats().waits == 31)
    source.gate.set()
    assert [result(call) for call in calls] == [0] * 32
    assert source.reads == 1
    assert f._self_memoized.space.flights == {}


async def test_when_everything_fails_single_flight_still_protects_the_origin_async(fragile, source, quiet_loop):
    f = cache_aside(store=fragile)(source.aread)
    fragile.down.add("all")
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(32)]
    while f.stats().waits < 31:
        await asyncio.sleep(0.001)  # the awaited side runs in worker threads
    source.gate.set()
    assert await asyncio.gather(*calls) == [0] * 32
    assert source.reads == 1
    assert f._self_memoized.space.flights == {}


def test_the_functions_own_error_is_what_arrives(fragile):
    f = cache_aside(store=fragile)(lambda x: 1 / 0)
    fragile.down.add("all")
    with pytest.raises(ZeroDivisionError):
        f(7)


def test_an_error_is_not_kept_from_the_caller_by_a_release_that_fails(fragile):
    f = cache_aside(store=fragile)(lambda x: 1 / 0)
    fragile.down.add("release")
    with pytest.raises(ZeroDivisionError):
        f(7)
    assert f.stats().errors == {"release": 1}


def test_a_result_that_is_not_kept_is_returned_though_its_release_fails(fragile):
    f = cache_aside(store=fragile)(lambda x: None)
    fragile.down.add("release")
    assert f(7) is None
    assert f.stats().errors == {"release": 1}


async def test_a_result_that_is_not_kept_is_returned_though_its_release_fails_async(fragile):
    async def load(x):
        return None

    f = cache_aside(store=fragile)(load)
    fragile.down.add("release")
    assert await f(7) is None
    assert f.stats().errors == {"release": 1}


def test_a_fill_that_fails_leaves_no_lease(fragile):
    f = cache_aside(store=fragile)(lambda x: x)
    fragile.down.add("fill")
    assert f(7) == 7
    assert f.stats().errors == {"fill": 1}
    assert f.stats().refused_fills == 0
    assert f._self_memoized.space.inner.leases == {}
    fragile.down.clear()
    assert f(7) == 7
    assert f.peek(7) == 7


async def test_a_fill_that_fails_leaves_no_lease_async(fragile):
    async def load(x):
        return x

    f = cache_aside(store=fragile)(load)
    fragile.down.add("fill")
    assert await f(7) == 7
    assert f.stats().errors == {"fill": 1}
    assert f._self_memoized.space.inner.leases == {}
    fragile.down.clear()
    assert await f(7) == 7
    assert await f(7) == 7
    assert (f.stats().hits, f.stats().loads) == (1, 2)


def test_a_value_that_the_serializer_refuses_is_returned_and_leaves_no_lease(look):

    f = cache_aside(store=MemoryStore(serializer=pickle, cleanup_interval=None))(lambda x: threading.Lock())
    assert type(f(7)).__name__ == "lock"
    assert f.stats().errors == {"fill": 1}
    assert f.peek(7) is MISSING
    look(f).clean()


def test_a_read_that_fails_once_is_a_miss_and_the_second_look_finds_the_value(fragile):
    f = cache_aside(store=fragile)(lambda x: pytest.fail("loaded"))
    f.set("value", 7)
    fragile.down.add("read")
    assert f(7) == "value"
    assert (f.stats().hits, f.stats().misses) == (0, 1)
    assert f.stats().errors == {"read": 1}


@pytest.fixture
def _slow_to_fail(monkeypatch):
    monkeypatch.setattr(Fragile, "asks_again", False)


@pytest.mark.usefixtures("_slow_to_fail")
def test_a_store_whose_read_has_failed_is_asked_nothing_more_in_that_call(fragile):
    """Else a server that hangs would keep one call waiting for several timeouts."""
    f = cache_aside(store=fragile)(lambda x: "loaded")
    f.set("value", 7)
    fragile.down.add("read")
    assert f(7) == "loaded"
    assert (f.stats().hits, f.stats().misses, f.stats().loads) == (0, 1, 1)
    assert f.stats().errors == {"read": 1}
    fragile.down.clear()
    assert f(7) == "value"


@pytest.mark.usefixtures("_slow_to_fail")
async def test_a_store_whose_read_has_failed_is_asked_nothing_more_in_that_call_async(fragile):
    async def load(x):
        return "loaded"

    f = cache_aside(store=fragile)(load)
    await f.set("value", 7)
    fragile.down.add("read")
    assert await f(7) == "loaded"
    assert (f.stats().hits, f.stats().misses, f.stats().loads) == (0, 1, 1)
    assert f.stats().errors == {"read": 1}
    fragile.down.clear()
    assert await f(7) == "value"


@pytest.mark.usefixtures("_slow_to_fail")
def test_a_read_that_fails_is_not_repeated_for_a_load_that_is_under_way(fragile, spawn, result, source):
    """That load has the lease of a store that was well; whether anything touched the key since cannot be asked."""
    f = cache_aside(store=fragile)(source.read)
    f.invalidate(7)
    source.hold()
    leader = spawn(f, 7)
    source.arrived()
    fragile.down.add("read")
    other = spawn(f, 7)
    source.arrived()
    source.gate.set()
    assert (result(leader), result(other)) == (0, 0)
    assert f.stats().errors == {"read": 1}
    fragile.down.clear()
    assert f(7) == 0
    assert source.reads == 2


def test_a_caller_after_an_invalidation_does_not_join_a_load_that_could_not_take_a_lease(
    fragile, spawn, result, source
):
    """Its lease is unknown, and so is whether anything touched the key since."""
    f = cache_aside(store=fragile)(source.read)
    f.invalidate(7)
    source.hold()
    fragile.down.add("take")
    doomed = spawn(f, 7)
    source.arrived()
    fragile.down.clear()
    source.version = 1
    f.invalidate(7)
    held, source.gate = source.gate, threading.Event()
    source.gate.set()
    assert f(7) == 1
    held.set()
    assert result(doomed) == 0
    assert f(7) == 1


HELPERS = {
    "invalidate": lambda f: f.invalidate(7),
    "invalidate_all": lambda f: f.invalidate_all(),
    "set": lambda f: f.set("v", 7),
    "peek": lambda f: f.peek(7),
    "ttl_left": lambda f: f.ttl_left(7),
}


@pytest.mark.parametrize("helper", HELPERS)
def test_helpers_report_what_could_not_be_done(fragile, helper):
    """An invalidation that is swallowed is a stale value for as long as the entry lives."""
    f = cache_aside(store=fragile)(lambda x: x)
    fragile.down.add("all")
    with pytest.raises(Broken):
        HELPERS[helper](f)


@pytest.mark.parametrize("helper", HELPERS)
async def test_helpers_report_what_could_not_be_done_async(fragile, helper):
    async def load(x):
        return x

    f = cache_aside(store=fragile)(load)
    fragile.down.add("all")
    with pytest.raises(Broken):
        await HELPERS[helper](f)


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interruption_within_the_store_is_no_failure_of_the_store(error, look):
    class Interrupting(Fragile):
        def _do(self, name, *args):
            if self.down:
                self.down.clear()
                raise error
            return super()._do(name, *args)

    class Interrupted(FragileStore):
        def attach(self, *args):
            return Interrupting(MemoryStore.attach(self, *args), self.down, True)

    store = Interrupted()
    f = cache_aside(store=store)(lambda x: x)
    f.invalidate(7)
    store.down.add("next")
    with pytest.raises(error):
        f(7)
    assert f._self_memoized.space.flights == {}
    assert f(7) == 7


async def test_a_remote_space_serves_hits_misses_and_helpers(source):
    """The whole of the awaited side, over worker threads."""
    store = FragileStore(local=False)
    f = cache_aside(store=store, tags=("t",))(source.aread)
    assert [await f(7), await f(7)] == [0, 0]
    assert await f.peek(7) == 0
    assert await f.ttl_left(7) == float("inf")
    source.version = 1
    store.invalidate_tags("t")
    assert await f(7) == 1
    assert await f.invalidate(7) is True
    await f.set(5, 7)
    assert await f(7) == 5
    assert await f.refresh(7) == 1
    await f.invalidate_all()
    assert await f.peek(7) is MISSING
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(5)]
    while f.stats().waits < 4:
        await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert f._self_memoized.space.flights == {}
    source.gate.set()
    assert await f(7) == 1


class Fatal(BaseException):
    """What no one catches."""


@pytest.mark.parametrize("helper", ["__call__", "refresh"])
async def test_what_nobody_catches_reaches_the_caller_as_it_is_and_not_as_a_cancellation(helper, quiet_loop):
    """A task that is given a CancelledError though nobody has cancelled it ends without a word."""

    class Failing(Fragile):
        def take(self, key, tags, renew):
            raise Fatal

    class FatalStore(FragileStore):
        def attach(self, *args):
            return Failing(MemoryStore.attach(self, *args), self.down, True)

    async def load(x):
        return x

    f = cache_aside(store=FatalStore())(load)
    calls = [asyncio.ensure_future(getattr(f, helper)(7)) for _ in range(3)]
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [Fatal] * 3
    assert f._self_memoized.space.flights == {}
