"""The null store keeps nothing, refuses what every store refuses, and still lets one call load for all."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from memo import DEFAULT, MISSING, NullStore, OptionError, UnkeyableError, cache_aside
from memo.testing.plain import BAD_DURATIONS, GOOD_DURATIONS
from memo.testing.sides import Awaiting, Blocking, Loader

SAFETY = 60


@pytest.fixture(params=[Blocking, Awaiting], ids=["sync", "async"])
def side(request):
    side = request.param(NullStore())
    yield side
    side.close()
    side.shut()


def test_it_keeps_nothing(side):
    side.set("a", 1)
    side.set_many({"b": 2})
    assert side.get("a") is None
    assert side.get("a", "default") == "default"
    assert side.get_many(["a", "b"]) == {}
    assert side.exists("a") is False
    assert side.ttl("a") is None
    assert side.expire("a", 10) is False
    assert side.expire("a", None) is False
    assert side.expire("a", DEFAULT) is False
    assert side.delete("a") is False
    assert side.delete_many(["a", "b"]) == 0
    assert side.keys() == []
    assert side.delete_pattern("*") == 0
    assert side.increment("a", 5) == side.increment("a", 5) == 5
    side.invalidate_tags("a")
    side.clear()


def test_it_counts_nothing(side):
    side.set("a", 1)
    side.get("a")
    counted = side.stats()
    assert (counted.hits, counted.misses, counted.sets, counted.size, counted.max_size) == (0, 0, 0, 0, 0)


def test_its_repr_is_how_it_is_made():
    assert repr(NullStore()) == "NullStore()"


@pytest.mark.parametrize("key", [None, 1, b"a"])
def test_a_key_that_is_no_text_is_refused(side, key):
    for call in (
        lambda: side.get(key),
        lambda: side.set(key, 1),
        lambda: side.delete(key),
        lambda: side.exists(key),
        lambda: side.increment(key),
        lambda: side.ttl(key),
        lambda: side.expire(key, 1),
        lambda: side.get_many([key]),
        lambda: side.set_many({key: 1}),
        lambda: side.delete_many([key]),
    ):
        with pytest.raises(OptionError, match="text"):
            call()


@pytest.mark.parametrize("ttl", BAD_DURATIONS, ids=repr)
def test_durations_that_are_refused(side, ttl):
    for call in (
        lambda: side.set("a", 1, ttl),
        lambda: side.set_many({"a": 1}, ttl),
        lambda: side.expire("a", ttl),
        lambda: Loader(side, "null", ttl=ttl),
    ):
        with pytest.raises(OptionError, match="ttl"):
            call()


@pytest.mark.parametrize("ttl", GOOD_DURATIONS, ids=repr)
def test_durations_that_are_allowed(side, ttl):
    side.set("a", 1, ttl)
    side.set_many({"a": 1}, ttl)
    side.expire("a", ttl)


def test_other_arguments_are_checked_too(side):
    for call in (lambda: side.keys(1), lambda: side.delete_pattern(b"*"), lambda: side.invalidate_tags("")):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(OptionError, match="amount"):
        side.increment("a", "1")


def test_every_call_of_a_decorated_function_loads(side):
    load = Loader(side, "null", tags=("t",))
    assert load(1) == "1 of load 1"
    assert load(1) == "1 of load 2"
    assert load.peek(1) is MISSING
    assert load.ttl_left(1) is None
    load.set("value", 1)
    assert load(1) == "1 of load 3"
    assert load.refresh(1) == "1 of load 4"
    assert load.invalidate(1) is False
    load.invalidate_all()
    counted = load.fn.stats()
    assert (counted.hits, counted.misses, counted.loads, counted.refused_fills) == (0, 3, 4, 0)


def test_a_result_that_a_store_would_refuse_is_counted_as_refused(side):
    load = Loader(side, "null")
    load.during = ("fn.invalidate", 1)
    load(1)
    assert load.fn.stats().refused_fills == 1


def test_a_result_that_is_not_kept_is_released(side):
    load = Loader(side, "null", result=lambda x, load: None)
    assert load(1) is None
    assert load.fn.stats().uncached == 1


class Gated:
    """A decorated function whose loads wait for the test, by the number of the load."""

    def __init__(self, store, **options):
        self.started = [threading.Event() for _ in range(3)]
        self.gates = [threading.Event() for _ in range(3)]
        self.loads = 0

        def load(x):
            number = self.loads
            self.loads += 1
            self.started[number].set()
            assert self.gates[number].wait(SAFETY)
            return number

        self.fn = cache_aside(store=store, namespace="gated", **options)(load)


def in_thread(function, *args):
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    return thread, results


def wait_until_joined(function):
    """A caller that waits has been counted; nothing else tells from outside that it has joined."""
    ticks = 0
    while function.stats().waits == 0:
        ticks += 1
        assert ticks < 10_000_000
    return ticks


def test_one_load_serves_all_who_ask_meanwhile():
    gated = Gated(NullStore())
    leader, first = in_thread(gated.fn, 1)
    assert gated.started[0].wait(SAFETY)
    follower, second = in_thread(gated.fn, 1)
    wait_until_joined(gated.fn)
    gated.gates[0].set()
    for thread in leader, follower:
        thread.join(SAFETY)
    assert first == second == [0]
    assert gated.loads == 1


INVALIDATIONS = {
    "set": lambda store, fn: store.set("gated(1)", 1),
    "delete": lambda store, fn: store.delete("gated(1)"),
    "delete_pattern": lambda store, fn: store.delete_pattern("*"),
    "clear": lambda store, fn: store.clear(),
    "invalidate_tags": lambda store, fn: store.invalidate_tags("t"),
    "fn.invalidate": lambda store, fn: fn.invalidate(1),
    "fn.invalidate_all": lambda store, fn: fn.invalidate_all(),
    "fn.set": lambda store, fn: fn.set("value", 1),
}


@pytest.mark.parametrize("invalidation", INVALIDATIONS)
def test_nobody_joins_a_load_that_an_invalidation_has_doomed(invalidation):
    store = NullStore()
    gated = Gated(store, tags=("t",))
    leader, first = in_thread(gated.fn, 1)
    assert gated.started[0].wait(SAFETY)
    INVALIDATIONS[invalidation](store, gated.fn)
    later, second = in_thread(gated.fn, 1)
    assert gated.started[1].wait(SAFETY)
    for gate in gated.gates:
        gate.set()
    for thread in leader, later:
        thread.join(SAFETY)
    assert (first, second) == ([0], [1])


def test_tasks_share_a_load_too():
    store, loads = NullStore(), []

    async def main():
        gate = asyncio.Event()

        @cache_aside(store=store)
        async def load(x):
            loads.append(x)
            await gate.wait()
            return len(loads)

        tasks = [asyncio.create_task(load(1)) for _ in range(10)]
        while load.stats().misses < 10:
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*tasks) == [1] * 10
        await load.invalidate(1)
        assert await load(1) == 2

    asyncio.run(main())
    assert loads == [1, 1]


class Thing:
    @cache_aside(store=NullStore())
    def method(self, x):
        return (self, x)


def test_instances_do_not_share_and_are_not_kept():
    one, two = Thing(), Thing()
    assert one.method(1)[0] is one
    assert two.method(1)[0] is two
    space = Thing.method._self_memoized.space
    assert len(space._instances) == 2
    assert space.of(one) is space.of(one) is not space.of(two)
    reference = weakref.ref(one)
    del one
    gc.collect()
    assert reference() is None
    assert len(space._instances) == 1
    Thing.method.invalidate_all()
    assert len(space._instances) == 0


def test_an_instance_that_cannot_be_weakly_referenced_is_refused():
    class Slotted:
        __slots__ = ()

        @cache_aside(store=NullStore())
        def method(self):
            return 1

    with pytest.raises(UnkeyableError, match="weakly"):
        Slotted().method()


def test_the_default_name_of_it_in_a_url():
    load = cache_aside(store="null://")(lambda: 1)
    assert isinstance(load.store, NullStore)
