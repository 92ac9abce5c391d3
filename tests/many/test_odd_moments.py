"""Ctrl-C at any point, finalizers, loops that are gone, more durations than are kept: nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings

import pytest

from memo import MemoryStore, cache_aside_many, drivers, flight, stats


class Strike(BaseException):
    """Stands for KeyboardInterrupt where pytest itself would end at one that strays."""


def struck(operation, count):
    """Perform `operation`, interrupted where it enters or leaves a function for the `count`-th time; return whether."""
    left = count

    def profile(frame, event, arg):
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                raise Strike

    before = sys.getprofile()
    try:
        sys.setprofile(profile)
        operation()
    except Strike:
        return True
    finally:
        sys.setprofile(before)
    return False


OPERATIONS = {
    "all missing": lambda load: load([1, 2]),
    "one missing": lambda load: load([8, 1]),
    "one left out": lambda load: load([1, 99]),
    "hits": lambda load: load([8, 9]),
    "refresh": lambda load: load.refresh([8, 1]),
    "invalidate_many": lambda load: load.invalidate_many([8, 1]),
}


@pytest.fixture
def _no_strangers_in_collections():
    """Hypothesis times collections with a callback, and what strikes in there is lost."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


@pytest.mark.usefixtures("untraced", "_no_strangers_in_collections")
@pytest.mark.parametrize("tags", [(), ("t:{ids}",)], ids=["plain", "tagged"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_at_every_point(operation, tags):
    count = 0
    while True:
        count += 1
        store = MemoryStore(cleanup_interval=None)
        load = cache_aside_many(store=store, tags=tags)(lambda ids: {each: each * 10 for each in ids if each != 99})
        load([8, 9])
        space = load._self_memoized.attached()
        interrupted = struck(lambda load=load: OPERATIONS[operation](load), count)
        assert space.flights == {}
        assert flight.inside.get() is None
        for lock in (store._shelf.lock, flight._lock, stats._lock):
            assert not lock._is_owned()
        assert load([1, 8, 99, 2]) == {1: 10, 8: 80, 2: 20}
        assert load.invalidate_many([1, 2]) == 2
        load.invalidate_all()
        assert space.flights == space.leases == {}
        if not interrupted:
            break
    assert count > 5


def test_a_finalizer_may_load(store):
    """Up to Python 3.11 it must not set the context variable that says within which load it is."""

    @cache_aside_many(store=store)
    def load(ids):
        return dict.fromkeys(ids, "x")

    found = []

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            found.append(load([1, 2]))

    Cycle()
    gc.collect()
    assert found == [{1: "x", 2: "x"}]
    assert load.peek(1) == "x"


def test_a_load_whose_loop_was_closed_ends_in_the_collector_and_its_ids_can_be_loaded():
    began, ended = [], []

    @cache_aside_many(store=MemoryStore(cleanup_interval=None))
    async def load(ids):
        began.append(ids)
        try:
            if len(began) == 1:
                await asyncio.get_running_loop().create_future()
        finally:
            ended.append(ids)
        return dict.fromkeys(ids, "x")

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending!"
    call = loop.create_task(load([1, 2]))
    while not began:
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert asyncio.run(load([2, 1])) == {2: "x", 1: "x"}
    for task in list(drivers._loads):
        if task.get_loop() is loop:
            drivers._loads.discard(task)
            task._log_destroy_pending = False
    call._log_destroy_pending = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del call, task
        gc.collect()
    assert ended == [[2, 1], [1, 2]]
    assert flight.inside.get() is None


def test_durations_of_many_ids_are_added_up(store):
    load = cache_aside_many(store=store)(lambda ids: dict.fromkeys(ids, "x"))
    load(range(stats.FULL + 1))
    assert load._self_memoized.counters.durations == []
    assert load.stats().loads == stats.FULL + 1
    assert load.stats().load_seconds > 0
