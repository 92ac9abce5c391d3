"""Event loops come and go: a flight whose loop is gone keeps nobody waiting, and nothing of memo is bound to a loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings

import pytest

from memo import MISSING, MemoryStore, cache_aside, drivers
from memo.testing import ManualClock


def test_a_hundred_loops_one_after_another(cached, look):
    calls = []

    async def load(x):
        await asyncio.sleep(0)
        calls.append(x)
        return x

    f = cached(load)

    async def main(turn):
        assert await asyncio.gather(f(turn), f(turn), f(0)) == [turn, turn, 0]

    for turn in range(100):
        asyncio.run(main(turn))
    assert sorted(calls) == list(range(100))
    assert f.stats().hits == 99
    look(f).clean()


def test_an_expiry_needs_no_loop():
    clock = ManualClock()
    calls = []

    async def load(x):
        calls.append(x)
        return len(calls)

    f = cache_aside(store=MemoryStore(clock=clock, cleanup_interval=None), ttl=10)(load)
    assert asyncio.run(f(7)) == 1
    clock.advance(10)
    assert asyncio.run(f(7)) == 2


def test_eight_threads_with_loops_of_their_own(cached, spawn, result, look):
    async def load(x):
        await asyncio.sleep(0)
        return x

    f = cached(load)
    barrier = threading.Barrier(8)

    async def main():
        barrier.wait(20)
        for turn in range(200):
            calls = [f(turn), f(turn + 1), f(turn)]
            assert await asyncio.gather(*calls) == [turn, turn + 1, turn]
            if turn % 7 == 0:
                await f.invalidate(turn)

    for run in [spawn(asyncio.run, main()) for _ in range(8)]:
        result(run)
    stats = f.stats()
    assert stats.hits + stats.misses == 8 * 200 * 3
    look(f).clean()


def test_a_loop_that_ends_releases_those_who_wait_in_others(cached, spawn, result, until, look):
    """`asyncio.run` cancels what is left in its loop, the load among it: a follower elsewhere loads instead."""
    turns = []
    leave = threading.Event()

    async def load(x):
        turns.append(x)
        if len(turns) == 1:
            await asyncio.Event().wait()
        return "value"

    f = cached(load)

    async def lead():
        call = asyncio.ensure_future(f(7))
        while not leave.is_set():
            await asyncio.sleep(0)
        assert not call.done()

    leader = spawn(asyncio.run, lead())
    until(lambda: turns)
    follower = spawn(asyncio.run, f(7))
    until(lambda: look(f).followers() == 2)
    leave.set()
    result(leader)
    assert result(follower) == "value"
    look(f).clean()


def stopped_with_a_load(f, started):
    """Return a loop that was stopped while a load of `f(7)` was under way in it."""
    loop = asyncio.new_event_loop()

    async def main():
        call = loop.create_task(f(7), name="memo load: the caller of the test")
        while not started():
            await asyncio.sleep(0)
        return call

    return loop, loop.run_until_complete(main())


def test_a_flight_whose_loop_was_stopped_is_replaced(cached, look):
    turns = []

    async def load(x):
        turns.append(x)
        if len(turns) == 1:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return "of the first loop"
        return "value"

    f = cached(load)
    loop, call = stopped_with_a_load(f, lambda: turns)
    assert len(look(f).flights) == 1
    assert asyncio.run(f(7)) == "value"
    # The first loop goes on: its load is returned to its own caller, and the lease that both had is used up.
    assert loop.run_until_complete(call) == "of the first loop"
    assert asyncio.run(f(7)) == "value"
    loop.close()
    look(f).clean()


def test_a_flight_whose_loop_was_closed_is_replaced(cached, look):
    """Closing a loop with tasks in it is a mistake that Python complains about, and not a reason to hang."""
    turns = []

    async def load(x):
        turns.append(x)
        if len(turns) == 1:
            await asyncio.Event().wait()
        return "value"

    f = cached(load)
    loop, call = stopped_with_a_load(f, lambda: turns)
    loop.set_exception_handler(lambda loop, context: None)  # "Task was destroyed but it is pending!"
    loop.close()
    assert asyncio.run(f(7)) == "value"
    assert asyncio.run(f(7)) == "value"
    for task in list(drivers._loads):
        if task.get_loop() is loop:
            drivers._loads.discard(task)
            task._log_destroy_pending = False
    call._log_destroy_pending = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del call, task
        gc.collect()


@pytest.mark.parametrize("limit", [None, 60])
def test_a_follower_notices_that_the_loop_it_waits_for_was_stopped(
    cached, spawn, result, until, look, monkeypatch, limit
):
    monkeypatch.setattr(drivers, "POLL", 0.001)
    turns = []

    async def load(x):
        turns.append(x)
        if len(turns) == 1:
            await asyncio.Event().wait()
        return "value"

    f = cached(load, wait_timeout=limit)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def lead():
        call = loop.create_task(f(7))
        while not turns:
            await asyncio.sleep(0)
        ready.set()
        while not f.stats().waits:
            await asyncio.sleep(0)
        return call

    leader = spawn(loop.run_until_complete, lead())
    assert ready.wait(20)
    follower = spawn(asyncio.run, f(7))
    call = result(leader)
    assert result(follower) == "value"
    assert f.stats().waits == 1
    call.cancel()
    loop.run_until_complete(asyncio.wait([call]))
    loop.close()
    look(f).clean()


def test_the_last_follower_in_another_loop_cancels_the_load_in_its_own(cached, spawn, result, until, look):
    """Its leader's caller has left; the load's task may be cancelled only from its own thread."""
    turns, ended, cancelled = [], [], []
    stop = threading.Event()

    class Watched:
        """A task that notes from where it is cancelled."""

        def __init__(self, task):
            self.task = task

        def cancel(self):
            cancelled.append(threading.get_ident())
            return self.task.cancel()

    leave = threading.Event()

    async def load(x):
        turns.append(x)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(threading.get_ident())
            raise

    f = cached(load)

    async def lead():
        call = asyncio.ensure_future(f(7))
        while not f.stats().waits:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not ended
        leave.set()
        while not stop.is_set():
            await asyncio.sleep(0)
        return threading.get_ident()

    async def follow():
        call = asyncio.ensure_future(f(7))
        while not leave.is_set():
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    leader = spawn(asyncio.run, lead())
    until(lambda: turns)
    (flight,) = look(f).flights.values()
    flight.task = Watched(flight.task)
    result(spawn(asyncio.run, follow()))
    until(lambda: ended)
    stop.set()
    assert cancelled == ended == [result(leader)]
    look(f).clean()


def test_a_waiter_that_leaves_a_flight_of_a_closed_loop_cancels_nothing(cached, look):
    async def load(x):
        return x

    f = cached(load)
    loop = asyncio.new_event_loop()

    async def flight():
        return f._self_memoized._flight(look(f).space, "key", (7,), {})

    dead = loop.run_until_complete(flight())
    dead.task = object()
    look(f).flights["key"] = dead
    loop.close()
    dead.leave()
    look(f).clean()


def test_waking_a_waiter_whose_loop_is_closed_does_nothing():
    loop = asyncio.new_event_loop()
    landed = loop.create_future()
    loop.close()
    drivers._wake(loop, threading.get_ident() + 1, landed)
    assert not landed.done()


def test_waking_a_waiter_twice_is_waking_it_once():
    loop = asyncio.new_event_loop()
    landed = loop.create_future()
    drivers._wake(loop, threading.get_ident(), landed)
    drivers._wake(loop, threading.get_ident(), landed)
    assert landed.done()
    loop.close()


def test_a_flight_that_landed_before_its_waiter_looked_is_not_waited_for(cached, look):
    """From another thread: the waiter adds its waker first and looks at the outcome then."""

    async def load(x):
        return x

    f = cached(load)

    async def main():
        flight = f._self_memoized._flight(look(f).space, "key", (7,), {})
        flight.settle(drivers._died())
        assert await drivers._await(flight, None) is flight.outcome
        assert flight.wakers == []

    asyncio.run(main())


async def test_an_abandoned_flight_is_not_joined_by_one_who_had_found_it_before(cached, look):
    async def load(x):
        return x

    f = cached(load)
    await f.invalidate(7)
    flight = f._self_memoized._flight(look(f).space, "key", (7,), {})
    flight.leave()
    assert not flight.enter()
    assert await drivers._await(flight, None) is drivers.GONE


def test_nothing_is_bound_to_a_loop_at_decoration(cached):
    async def load(x):
        return x

    f = cached(load)
    assert asyncio.run(f.peek(7)) is MISSING
    coroutine = f.invalidate(7)
    assert asyncio.run(coroutine) is False
