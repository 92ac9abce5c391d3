"""Several calls for many ids at once: no stale fill, one load per id at a time, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref

import pytest

from memo import MISSING, MemoryStore, NullStore, RecursiveLoadError, cache_aside_many, drivers
from memo.aside import Plan
from memo.testing import ManualClock

PATIENCE = 20.0


def waits(function):
    return function.stats().waits


# -- no stale fill -----------------------------------------------------------------------------------------------------

INVALIDATIONS = {
    "invalidate": lambda load, store: load.invalidate(1),
    "invalidate_many": lambda load, store: load.invalidate_many([1, 9]),
    "invalidate_all": lambda load, store: load.invalidate_all(),
    "set": lambda load, store: load.set("uno", 1),
    "tag": lambda load, store: store.invalidate_tags("name:1"),
    "delete": lambda load, store: store.delete(load.key_for(1)),
    "pattern": lambda load, store: store.delete_pattern("*(1)"),
    "clear": lambda load, store: store.clear(),
}


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_an_id_that_is_invalidated_during_the_load_is_not_stored(how, store, source, spawn):
    load = cache_aside_many(store=store, tags=("name:{ids}",))(source.load)
    gate = source.hold(1)
    caller = spawn(load, [1, 2])
    source.arrived()
    source.values[1] = "uno"
    INVALIDATIONS[how](load, store)
    gate.set()
    assert caller.result(PATIENCE) == {1: "one", 2: "two"}  # it came before
    assert load.peek(1) == ("uno" if how == "set" else MISSING)
    assert load([1]) == {1: "uno"}
    assert load.peek(2) == (MISSING if how in ("invalidate_all", "clear") else "two") or how in ("invalidate_all",)
    assert load.stats().refused_fills == (2 if how in ("invalidate_all", "clear") else 1)


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_an_id_that_is_invalidated_during_the_load_is_not_stored_async(how, store, source, reach):
    load = cache_aside_many(store=store, tags=("name:{ids}",))(source.aload)
    gate = source.hold(1)
    caller = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    source.values[1] = "uno"
    done = INVALIDATIONS[how](load, store)
    if asyncio.iscoroutine(done):
        await done
    gate.set()
    assert await caller == {1: "one", 2: "two"}
    assert await load([1]) == {1: "uno"}
    assert load.stats().refused_fills == (2 if how in ("invalidate_all", "clear") else 1)


def test_a_call_after_the_invalidation_does_not_join_the_doomed_load(store, source, spawn):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    early = spawn(load, [1, 2])
    source.arrived()
    source.values[1] = "uno"
    load.invalidate(1)
    late = spawn(load, [3, 1, 2])  # 2 is joined, 1 is not
    source.arrived()
    assert source.asked == [[1, 2], [3, 1]]
    gate.set()
    assert early.result(PATIENCE) == {1: "one", 2: "two"}
    assert late.result(PATIENCE) == {3: "three", 1: "uno", 2: "two"}
    assert load([1]) == {1: "uno"}


async def test_a_call_after_the_invalidation_does_not_join_the_doomed_load_async(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    early = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    source.values[1] = "uno"
    await load.invalidate(1)
    late = asyncio.create_task(load([3, 1, 2]))
    await reach(lambda: len(source.asked) == 2)
    assert source.asked == [[1, 2], [3, 1]]
    gate.set()
    assert await early == {1: "one", 2: "two"}
    assert await late == {3: "three", 1: "uno", 2: "two"}
    assert await load([1]) == {1: "uno"}
    assert rest(load) == []


def test_a_refresh_takes_the_place_of_a_load_that_began_before(store, source, spawn):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    early = spawn(load, [1, 2])
    source.arrived()
    source.values[2] = "dos"
    assert load.refresh([2]) == {2: "dos"}
    gate.set()
    assert early.result(PATIENCE) == {1: "one", 2: "two"}
    assert load([1, 2]) == {1: "one", 2: "dos"}


# -- one load per id at a time -----------------------------------------------------------------------------------------


def test_ids_that_another_call_is_loading_are_waited_for(store, source, spawn, until, rest):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    first = spawn(load, [1, 2])
    source.arrived()
    second = spawn(load, [2, 3, 1])
    source.arrived()
    until(lambda: waits(load) == 1)
    assert source.asked == [[1, 2], [3]]
    assert load.peek(3) == "three"  # its own load is settled and stored before it waits
    gate.set()
    assert first.result(PATIENCE) == {1: "one", 2: "two"}
    assert list(second.result(PATIENCE).items()) == [(2, "two"), (3, "three"), (1, "one")]
    assert waits(load) == 2
    assert rest(load) == []


async def test_ids_that_another_call_is_loading_are_waited_for_async(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    second = asyncio.create_task(load([2, 3, 1]))
    await reach(lambda: waits(load) == 1)
    assert source.asked == [[1, 2], [3]]
    assert await load.peek(3) == "three"
    gate.set()
    assert await first == {1: "one", 2: "two"}
    assert list((await second).items()) == [(2, "two"), (3, "three"), (1, "one")]
    assert rest(load) == []


def test_two_calls_with_overlapping_ids_never_wait_for_each_other_for_ever(spawn, source, rest):
    """The interleaving of aside_many: each has registered one id before it finds the other's taken."""
    store = MemoryStore(cleanup_interval=None)
    load = cache_aside_many(store=store)(source.load)
    load([3])
    space = load._self_memoized.attached()
    both = threading.Barrier(2)
    flights = space.flights = Interleaved(both)
    one, two = spawn(load, [1, 2]), spawn(load, [2, 1])
    assert one.result(PATIENCE) == {1: "one", 2: "two"}
    assert two.result(PATIENCE) == {2: "two", 1: "one"}
    assert sorted(source.asked[1:]) == [[1], [2]]
    assert flights == {}
    assert space.leases == {}


class Interleaved(dict):
    """A table of flights at which two threads take turns: both register one id, then both look at their second."""

    def __init__(self, both):
        super().__init__()
        self.both = both
        self.mine = threading.local()

    def setdefault(self, key, flight):
        found = super().setdefault(key, flight)
        self.mine.looks = getattr(self.mine, "looks", 0) + 1
        if self.mine.looks <= 2:
            self.both.wait(PATIENCE)
        return found


async def test_overlapping_tasks_load_each_id_once(store, source, rest):
    load = cache_aside_many(store=store)(source.aload)
    found = await asyncio.gather(load([1, 2]), load([2, 3]), load([3, 1]), load([1, 2, 3]))
    assert found == [
        {1: "one", 2: "two"},
        {2: "two", 3: "three"},
        {3: "three", 1: "one"},
        {1: "one", 2: "two", 3: "three"},
    ]
    assert sorted(each for ids in source.asked for each in ids) == [1, 2, 3]
    assert rest(load) == []


def test_without_single_flight_every_call_loads_what_it_misses(store, source, spawn):
    load = cache_aside_many(store=store, single_flight=None)(source.load)
    gate = source.hold(1)
    calls = [spawn(load, [1, 2]), spawn(load, [1, 2])]
    source.arrived(2)
    gate.set()
    assert [call.result(PATIENCE) for call in calls] == [{1: "one", 2: "two"}] * 2
    assert waits(load) == 0
    assert load.refresh([1]) == {1: "one"}


async def test_without_single_flight_every_task_loads_what_it_misses(store, source, reach, rest):
    load = cache_aside_many(store=store, single_flight=None)(source.aload)
    gate = source.hold(1)
    calls = [asyncio.create_task(load([1, 2])), asyncio.create_task(load([1, 2]))]
    await reach(lambda: source.asked == [[1, 2], [1, 2]])
    gate.set()
    assert await asyncio.gather(*calls) == [{1: "one", 2: "two"}] * 2
    assert await load.refresh([1]) == {1: "one"}
    assert rest(load) == []


def test_what_another_call_has_stored_since_the_first_read_is_not_loaded_again(source):
    """1. A reads, finds nothing   2. B loads and stores 1, and is gone   3. A's take finds it, and loads only 2."""
    store = MemoryStore(cleanup_interval=None)
    load = cache_aside_many(store=store)(source.load)
    space = load._self_memoized.attached()

    class Late(dict):
        def setdefault(self, key, flight):
            if not source.asked:
                source.asked.append("B")
                space.flights = {}
                load([1])
                space.flights = self
            return super().setdefault(key, flight)

    space.flights = Late()
    assert load([1, 2]) == {1: "one", 2: "two"}
    assert source.asked == ["B", [1], [2]]


def test_ids_of_one_call_that_are_joined_from_several_others(store, source, spawn, until):
    load = cache_aside_many(store=store)(source.load)
    gates = [source.hold(each) for each in (1, 2, 3)]
    calls = []
    for each in (1, 2, 3):
        calls.append(spawn(load, [each]))
        source.arrived()
    joined = spawn(load, [1, 2, 3])
    until(lambda: waits(load) == 1)
    gates[2].set()
    gates[1].set()
    gates[0].set()
    assert joined.result(PATIENCE) == {1: "one", 2: "two", 3: "three"}
    assert len(source.asked) == 3
    assert [call.result(PATIENCE) for call in calls]


def test_an_id_that_was_left_out_is_left_out_for_those_who_joined(store, source, spawn, until):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(9)
    first = spawn(load, [9, 1])
    source.arrived()
    second = spawn(load, [1, 9])
    until(lambda: waits(load) == 1)
    gate.set()
    assert first.result(PATIENCE) == second.result(PATIENCE) == {1: "one"}
    assert source.asked == [[9, 1]]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_all_who_joined_get_the_same_error(store, source, spawn, until, rest):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    source.error = LookupError("no")
    first = spawn(load, [1, 2])
    source.arrived()
    error, source.error = source.error, None
    second = spawn(load, [2, 3])
    source.arrived()
    until(lambda: waits(load) == 1)
    gate.set()
    assert first.exception(PATIENCE) is error
    assert second.exception(PATIENCE) is error
    assert load.peek(3) == "three"  # its own load had succeeded
    assert load([1, 2]) == {1: "one", 2: "two"}
    assert rest(load) == []


async def test_all_who_joined_get_the_same_error_async(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    error = source.error = LookupError("no")
    first = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    source.error = None
    second = asyncio.create_task(load([2, 3]))
    await reach(lambda: waits(load) == 1)
    gate.set()
    found = await asyncio.gather(first, second, return_exceptions=True)
    assert found == [error, error]
    assert await load.peek(3) == "three"
    assert rest(load) == []


def test_one_that_has_failed_waits_for_nobody(store, source, spawn, rest):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    first = spawn(load, [1])
    source.arrived()
    source.error = LookupError("no")
    with pytest.raises(LookupError):
        load([1, 2])  # the gate is still closed
    assert waits(load) == 0
    source.error = None
    gate.set()
    assert first.result(PATIENCE) == {1: "one"}
    assert rest(load) == []


async def test_one_that_has_failed_waits_for_nobody_async(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = asyncio.create_task(load([1]))
    await reach(lambda: source.asked)
    source.error = LookupError("no")
    with pytest.raises(LookupError):
        await load([1, 2])
    assert waits(load) == 0
    gate.set()
    assert await first == {1: "one"}
    assert rest(load) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_those_who_joined_a_load_that_was_interrupted_load_by_themselves(error, store, source, spawn, until, rest):
    load = cache_aside_many(store=store)(source.load)
    gate = source.hold(1)
    source.error = error()
    first = spawn(load, [1, 2])
    source.arrived()
    source.error = None
    second = spawn(load, [2, 3])
    until(lambda: waits(load) == 1)
    gate.set()
    assert type(first.exception(PATIENCE)) is error
    assert second.result(PATIENCE) == {2: "two", 3: "three"}
    assert source.asked == [[1, 2], [3], [2]]
    assert rest(load) == []


class Loud(Exception):
    alive = weakref.WeakSet()

    def __init__(self):
        self.alive.add(self)


@pytest.fixture
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_error_is_freed_with_its_caller(store, uncollected):
    @cache_aside_many(store=store)
    def load(ids):
        raise Loud

    with pytest.raises(Loud):
        load([1, 2])
    assert list(Loud.alive) == []


async def test_an_error_is_freed_with_its_caller_async(uncollected):
    @cache_aside_many(store=MemoryStore(cleanup_interval=None))
    async def load(ids):
        raise Loud

    with pytest.raises(Loud):
        await load([1, 2])
    await asyncio.sleep(0)
    assert list(Loud.alive) == []


async def test_a_batch_is_freed_with_its_callers(uncollected):
    """Its flights hold it, and it lets them go when the last one leaves."""

    class Value:
        alive = weakref.WeakSet()

    @cache_aside_many(store=NullStore())
    async def load(ids):
        value = Value()
        Value.alive.add(value)
        return dict.fromkeys(ids, value)

    await asyncio.gather(load([1, 2]), load([2, 3]))
    await asyncio.sleep(0)
    assert list(Value.alive) == []


def test_the_traceback_shows_the_users_code_and_does_not_grow(store):
    lengths = []

    @cache_aside_many(store=store)
    def load(ids):
        raise LookupError

    load.peek(1)
    for _ in range(3):
        with pytest.raises(LookupError) as caught:
            load([1])
        assert caught.traceback[-1].name == "load"
        lengths.append(len(caught.traceback))
    assert lengths[1:] == [6, 6]  # the very first call finds the store


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_a_caller_that_is_cancelled_harms_nobody(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    second = asyncio.create_task(load([2]))
    await reach(lambda: waits(load) == 1)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    gate.set()
    assert await second == {2: "two"}
    assert source.asked == [[1, 2]]
    assert await load.peek(1) == "one"  # the batch is loaded as a whole
    assert rest(load) == []


async def test_a_new_caller_joins_the_load_of_one_that_was_cancelled_while_others_wait(store, source, reach, rest):
    """Had the first id been given up with its caller, it would be loaded twice at a time."""
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    second = asyncio.create_task(load([2]))
    await reach(lambda: waits(load) == 1)
    first.cancel()
    await asyncio.wait([first])
    third = asyncio.create_task(load([1]))
    await reach(lambda: waits(load) == 2)
    gate.set()
    assert await third == {1: "one"}
    assert await second == {2: "two"}
    assert source.asked == [[1, 2]]
    assert rest(load) == []


async def test_when_nobody_waits_any_more_the_load_is_cancelled_and_its_ids_are_free(store, reach, rest):
    ends = []

    @cache_aside_many(store=store)
    async def load(ids):
        try:
            if not ends:
                ends.append("began")
                await asyncio.Event().wait()
            return dict.fromkeys(ids, "x")
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    calls = [asyncio.create_task(load([1, 2]))]
    await reach(lambda: ends)
    calls.append(asyncio.create_task(load([2])))
    await reach(lambda: waits(load) == 1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert await load([1, 2]) == {1: "x", 2: "x"}
    await reach(lambda: ends == ["began", "cancelled"])
    await reach(lambda: rest(load) == [])


async def test_ids_of_an_abandoned_load_are_free_before_it_has_ended(store, reach):
    begun, gate = [], asyncio.Event()

    @cache_aside_many(store=store)
    async def load(ids):
        begun.append(ids)
        if len(begun) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await gate.wait()  # it takes its time to clean up
        return dict.fromkeys(ids, "x")

    call = asyncio.create_task(load([1, 2]))
    await reach(lambda: begun)
    call.cancel()
    await asyncio.wait([call])
    assert load._self_memoized.attached().flights == {}
    assert await load([2, 1]) == {2: "x", 1: "x"}
    gate.set()


async def test_those_who_joined_a_load_whose_task_is_cancelled_load_by_themselves(store, source, reach, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = asyncio.create_task(load([1, 2]))
    await reach(lambda: source.asked)
    second = asyncio.create_task(load([2, 3]))
    await reach(lambda: waits(load) == 1)
    (task,) = [task for task in drivers._loads if not task.done()]
    gate.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == {2: "two", 3: "three"}
    assert rest(load) == []


async def test_a_load_that_is_cancelled_before_its_first_step_leaves_nothing_behind(source, rest):
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    before = set(drivers._loads)
    call = asyncio.create_task(load([1, 2]))
    await asyncio.sleep(0)
    (task,) = drivers._loads - before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert source.asked == []
    assert rest(load) == []


@pytest.mark.parametrize("joined", [False, True])
async def test_a_caller_that_is_cancelled_before_its_load_began_leaves_nothing_behind(source, reach, rest, joined):
    """While a store that takes its time is read for the second time, ids are registered and not handed over."""
    store = MemoryStore(cleanup_interval=None)
    load = cache_aside_many(store=store)(source.aload)
    space = load._self_memoized.attached()
    reading = asyncio.Event()

    class Slow(type(space)):
        __slots__ = ()
        local = False

        async def aread_many(self, keys):
            found = self.read_many(keys)
            if keys == [2]:
                reading.set()
                await asyncio.Event().wait()
            return found

    gate = source.hold(2)
    early = asyncio.create_task(load([2]))
    await reach(lambda: source.asked)
    space.__class__ = Slow
    space.remove(2)  # the next caller doubts that load, and reads 2 once more
    late = asyncio.create_task(load([1, 2]))
    await reading.wait()
    assert 1 in space.flights
    follower = asyncio.create_task(load([1])) if joined else None
    if joined:
        await reach(lambda: waits(load) == 1)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    if follower is not None:
        assert await follower == {1: "one"}  # it is told, and looks again
    assert 1 not in space.flights
    gate.set()
    assert await early == {2: "two"}
    assert rest(load) == []


async def test_a_task_that_cannot_be_made_leaves_nothing_behind(source, rest, monkeypatch):
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)

    def refuse(coroutine, **_):
        raise RuntimeError("shutting down")

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "create_task", refuse)
        with pytest.raises(RuntimeError, match="shutting down"):
            await load([1, 2])
        with pytest.raises(RuntimeError, match="shutting down"):
            await load.refresh([1, 2])
    assert rest(load) == []
    assert await load([1, 2]) == {1: "one", 2: "two"}


async def test_a_load_task_that_fails_by_itself_gives_its_error_to_all(source, rest, monkeypatch):
    """At the recursion limit, for one, what fails is not the function."""
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    monkeypatch.setattr("memo.drivers_many._acall", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await load([1, 2])
    assert load._self_memoized.attached().flights == {}


def test_an_interruption_of_the_load_itself_stops_the_loop(source):
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    source.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(load([1]))
    source.error = None
    assert asyncio.run(load([1])) == {1: "one"}


def test_an_interruption_of_the_load_stops_the_loop_though_its_caller_goes_on(source):
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    source.error = KeyboardInterrupt()

    async def main():
        with contextlib.suppress(BaseException):
            await load([1])

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


# -- recursion ---------------------------------------------------------------------------------------------------------


def test_a_load_that_wants_one_of_its_own_ids_raises(store, rest):
    @cache_aside_many(store=store)
    def load(ids):
        if 1 in ids:
            load([3, 2])
        return dict.fromkeys(ids, "x")

    with pytest.raises(RecursiveLoadError, match="load"):
        load([1, 2])
    assert load.peek(3) == "x"
    assert rest(load) == []


async def test_a_load_that_wants_one_of_its_own_ids_raises_async(store, rest):
    @cache_aside_many(store=store)
    async def load(ids):
        if 1 in ids:
            await asyncio.gather(load([3, 2]))
        return dict.fromkeys(ids, "x")

    with pytest.raises(RecursiveLoadError, match="load"):
        await load([1, 2])
    assert await load.peek(3) == "x"
    assert rest(load) == []


def test_a_load_may_want_other_ids(store):
    @cache_aside_many(store=store)
    def factorials(ids):
        below = factorials([each - 1 for each in ids if each > 0])
        return {each: each * below[each - 1] if each else 1 for each in ids}

    assert factorials([5]) == {5: 120}
    assert factorials([5, 6]) == {5: 120, 6: 720}


def test_two_threads_whose_loads_want_each_others_ids(store, spawn):
    begun = threading.Barrier(2)

    @cache_aside_many(store=store)
    def load(ids):
        if ids == [1, 10] or ids == [2, 20]:
            begun.wait(PATIENCE)
            return {**dict.fromkeys(ids, "x"), **load([2 if ids[0] == 1 else 1])}
        return dict.fromkeys(ids, "x")

    calls = [spawn(load, [1, 10]), spawn(load, [2, 20])]
    errors = [call.exception(PATIENCE) for call in calls]
    assert any(isinstance(error, RecursiveLoadError) for error in errors)
    assert all(error is None or isinstance(error, RecursiveLoadError) for error in errors)


def test_a_call_inside_a_load_is_inside_of_all_its_ids(store, spawn):
    """The chain of flights ends when the load is over: the next call is inside of nothing."""

    @cache_aside_many(store=store)
    def load(ids):
        errors = []
        for each in ids:
            with pytest.raises(RecursiveLoadError):
                load([each])
            errors.append(each)
        return dict.fromkeys(ids, tuple(errors))

    assert load([1, 2, 3]) == dict.fromkeys([1, 2, 3], (1, 2, 3))
    assert load([4, 1]) == {4: (4,), 1: (1, 2, 3)}


async def test_a_call_inside_a_load_is_inside_of_all_its_ids_async(store):
    @cache_aside_many(store=store)
    async def load(ids):
        for each in ids:
            with pytest.raises(RecursiveLoadError):
                await load([each])
        return dict.fromkeys(ids, "x")

    assert await load([1, 2, 3]) == dict.fromkeys([1, 2, 3], "x")


def test_a_signal_handler_that_wants_an_id_that_its_thread_is_loading_loads_by_itself(store, source, monkeypatch):
    """It comes in between the registration and the load, and cannot wait for its own thread."""
    load = cache_aside_many(store=store, wait_timeout=None)(source.load)
    inner = []
    call = drivers_many_call()

    def interrupted(plan: Plan, batch, command):
        monkeypatch.setattr("memo.drivers_many._call", call)
        inner.append(load([1]))
        return call(plan, batch, command)

    monkeypatch.setattr("memo.drivers_many._call", interrupted)
    assert load([1, 2]) == {1: "one", 2: "two"}
    assert inner == [{1: "one"}]


def drivers_many_call():
    from memo import drivers_many

    return drivers_many._call


# -- wait_timeout ------------------------------------------------------------------------------------------------------


def test_who_has_waited_long_enough_loads_what_is_left_by_itself(store, source, spawn, rest):
    load = cache_aside_many(store=store, wait_timeout=0.01)(source.load)
    gates = [source.hold(1), source.hold(2)]
    early = []
    for each in (1, 2):
        early.append(spawn(load, [each]))
        source.arrived()
    source.gates.clear()
    assert load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}  # one timeout for both
    assert source.asked == [[1], [2], [3], [1, 2]]
    for gate in gates:
        gate.set()
    assert [call.result(PATIENCE) for call in early] == [{1: "one"}, {2: "two"}]
    assert rest(load) == []


class Hasty:
    """A clock that goes on by 100 seconds at each look."""

    now = 0.0

    @classmethod
    def monotonic(cls):
        cls.now += 100
        return cls.now

    perf_counter = monotonic


def test_the_limit_is_for_all_waits_together(store, source, spawn, until, monkeypatch):
    load = cache_aside_many(store=store, wait_timeout=150)(source.load)
    gates = [source.hold(1), source.hold(2)]
    early = []
    for each in (1, 2):
        early.append(spawn(load, [each]))
        source.arrived()
    source.gates.clear()
    monkeypatch.setattr("memo.drivers_many.time", Hasty)
    late = spawn(load, [1, 2])
    until(lambda: waits(load) == 1)
    gates[0].set()  # 50 seconds are left for this one, and none for the next
    assert late.result(PATIENCE) == {1: "one", 2: "two"}
    gates[1].set()
    assert [call.result(PATIENCE) for call in early] == [{1: "one"}, {2: "two"}]


def test_each_id_has_its_share_of_a_loads_time(store, source, monkeypatch):
    monkeypatch.setattr("memo.drivers_many.time", Hasty)
    load = cache_aside_many(store=store)(source.load)
    load([1, 2, 3, 9])
    load([1, 2])
    stats = load.stats()
    assert (stats.loads, stats.load_seconds, stats.time_saved) == (4, 100, 50)


async def test_who_has_waited_long_enough_loads_what_is_left_by_itself_async(store, source, reach, rest):
    load = cache_aside_many(store=store, wait_timeout=0.01)(source.aload)
    gate = threading.Event()
    source.gates = {1: gate, 2: gate}
    early = [asyncio.create_task(load([1])), asyncio.create_task(load([2]))]
    await reach(lambda: len(source.asked) == 2)
    late = asyncio.create_task(load([1, 2, 3]))
    await reach(lambda: len(source.asked) == 4)
    assert source.asked[2:] == [[3], [1, 2]]
    gate.set()
    assert await late == {1: "one", 2: "two", 3: "three"}
    assert await asyncio.gather(*early) == [{1: "one"}, {2: "two"}]
    assert rest(load) == []


# -- event loops -------------------------------------------------------------------------------------------------------


def test_tasks_of_other_loops_join(store, source, spawn, until, rest):
    load = cache_aside_many(store=store)(source.aload)
    gate = source.hold(1)
    first = spawn(lambda: asyncio.run(load([1, 2])))
    source.arrived()
    second = spawn(lambda: asyncio.run(load([2, 3])))
    until(lambda: waits(load) == 1)
    gate.set()
    assert first.result(PATIENCE) == {1: "one", 2: "two"}
    assert second.result(PATIENCE) == {2: "two", 3: "three"}
    assert source.asked == [[1, 2], [3]]
    until(lambda: rest(load) == [])


def test_the_last_one_who_leaves_from_another_loop_cancels_the_load(source, spawn, until, rest):
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    source.hold(1)
    going = threading.Event()

    async def first():
        call = asyncio.create_task(load([1, 2]))
        await asyncio.sleep(0)
        while waits(load) == 0:
            await asyncio.sleep(0)
        call.cancel()
        while not going.is_set():
            await asyncio.sleep(0)
        return call.cancelled()

    async def second():
        call = asyncio.create_task(load([2]))
        while not cancelled():
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

    def cancelled():
        flight = load._self_memoized.attached().flights.get(1)
        return flight is not None and flight.batch.waiting == 1 and waits(load) == 1

    leader = spawn(lambda: asyncio.run(first()))
    source.arrived()
    follower = spawn(lambda: asyncio.run(second()))
    follower.result(PATIENCE)
    until(lambda: rest(load) == [])
    going.set()
    assert leader.result(PATIENCE) is True


def test_a_loop_that_is_gone_leaves_ids_that_others_can_load(store, source):
    load = cache_aside_many(store=store)(source.aload)
    source.hold(1)
    loop = asyncio.new_event_loop()
    task = loop.create_task(load([1, 2]))
    while not source.asked:
        loop.run_until_complete(asyncio.sleep(0))
    source.gates.clear()
    assert asyncio.run(load([1, 2])) == {1: "one", 2: "two"}
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


async def test_an_abandoned_load_is_joined_by_nobody(source, reach):
    """Between the moment at which it is given up and the one at which its ids are free."""
    load = cache_aside_many(store=MemoryStore(cleanup_interval=None))(source.aload)
    source.hold(1)
    first = asyncio.create_task(load([1]))
    await reach(lambda: source.asked)
    flight = load._self_memoized.attached().flights[1]
    first.cancel()
    await asyncio.wait([first])
    assert flight.enter() is False
    source.gates.clear()
    assert await load([1]) == {1: "one"}


def test_loads_are_told_apart_by_time_only_where_a_ttl_says_so(source):
    clock = ManualClock()
    load = cache_aside_many(store=MemoryStore(clock=clock, cleanup_interval=None), ttl=10)(source.load)
    load([1])
    clock.advance(5)
    load([1, 2])
    clock.advance(5)
    load([1, 2])
    assert source.asked == [[1], [2], [1]]
