"""Cancelling a caller is that caller's affair: no other is cancelled, kept waiting or given a wrong answer."""

from __future__ import annotations

import asyncio
import random

import pytest

from memo import MISSING, drivers


class Held:
    """An async source whose reads last until they are let go, and which sees how each ended."""

    def __init__(self):
        self.gates = []
        self.ended = []

    async def __call__(self, x):
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        number = len(self.gates)
        try:
            await gate
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return number

    def let_go(self):
        for gate in self.gates:
            if not gate.done():
                gate.set_result(None)


@pytest.fixture
def held(cached):
    held = Held()

    async def load(x):
        return await held(x)

    held.f = cached(load)
    return held


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def start(f, count):
    calls = [asyncio.create_task(f(7)) for _ in range(count)]
    await turns()
    return calls


async def test_cancelling_the_first_caller_cancels_no_other(held, look, quiet_loop):
    leader, *others = await start(held.f, 5)
    leader.cancel()
    await turns()
    assert leader.cancelled()
    held.let_go()
    assert await asyncio.gather(*others) == [1] * 4
    assert held.ended == ["done"]
    assert await held.f.peek(7) == 1
    look(held.f).clean()


async def test_cancelling_a_waiter_cancels_no_other(held, look, quiet_loop):
    leader, waiter, last = await start(held.f, 3)
    waiter.cancel()
    await turns()
    assert waiter.cancelled()
    held.let_go()
    assert await asyncio.gather(leader, last) == [1, 1]
    assert held.ended == ["done"]
    look(held.f).clean()


async def test_when_the_last_waiter_leaves_the_load_is_cancelled_and_nothing_is_stored(held, look, quiet_loop):
    calls = await start(held.f, 3)
    for call in calls:
        call.cancel()
    await turns()
    assert held.ended == ["cancelled"]
    look(held.f).clean()
    assert await held.f.peek(7) is MISSING
    (call,) = await start(held.f, 1)
    held.let_go()
    assert await call == 2


async def test_the_flight_is_replaced_before_its_load_is_cancelled(held, look, quiet_loop):
    """A caller that comes between the two must not join a load that is about to die."""
    (first,) = await start(held.f, 1)
    (doomed,) = look(held.f).flights.values()
    cancel = doomed.task.cancel
    order = []

    class Task:
        def cancel(self):
            order.append(list(look(held.f).flights.values()))
            return cancel()

    doomed.task = Task()
    first.cancel()
    await turns()
    assert order == [[]]
    (second,) = await start(held.f, 1)
    held.let_go()
    assert await second == 2
    assert held.ended == ["cancelled", "done"]
    look(held.f).clean()


async def test_a_caller_that_comes_while_an_abandoned_load_is_dying_loads_afresh(held, look, quiet_loop):
    async def stubborn(x):
        try:
            return await held(x)
        except asyncio.CancelledError:
            await turns(20)
            raise

    f = held.f
    f._self_memoized.plan = f._self_memoized.plan.__class__(**{**vars(f._self_memoized.plan), "function": stubborn})
    (first,) = await start(f, 1)
    first.cancel()
    await turns(2)
    (second,) = await start(f, 1)
    assert len(held.gates) == 2
    held.let_go()
    assert await second == 2
    await turns(30)
    look(f).clean()
    assert await f.peek(7) == 2


async def test_a_function_that_swallows_its_cancellation_does_no_harm(cached, look, quiet_loop):
    entered = asyncio.Event()

    async def stubborn(x):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"

    f = cached(stubborn)
    call = asyncio.create_task(f(7))
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await turns()
    look(f).clean()


async def test_a_failed_old_load_leaves_the_newer_value(cached, look, quiet_loop):
    """An old load that fails, or succeeds, after an invalidation must not touch what a newer one has stored."""
    gates = []

    async def load(x):
        gate = quiet_loop.create_future()
        gates.append(gate)
        return await gate

    f = cached(load, ttl=60)
    for end in (lambda gate: gate.set_exception(ValueError("late")), lambda gate: gate.set_result("late")):
        gates.clear()
        await f.invalidate(7)
        (old,) = await start(f, 1)
        await f.invalidate(7)
        (new,) = await start(f, 1)
        gates[1].set_result("new")
        assert await new == "new"
        left = await f.ttl_left(7)
        end(gates[0])
        await asyncio.wait([old])
        old.exception()
        assert await f.peek(7) == "new"
        assert await f.ttl_left(7) <= left
        look(f).clean()


async def test_a_task_that_is_cancelled_before_it_starts_leaves_nothing(held, look, quiet_loop):
    await held.f.invalidate(7)
    call = asyncio.create_task(held.f(7))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert held.gates == []
    look(held.f).clean()


async def test_a_load_that_is_cancelled_as_it_starts_leaves_nothing(held, look, quiet_loop):
    await held.f.invalidate(7)
    call = asyncio.create_task(held.f(7))
    await asyncio.sleep(0)  # the caller has made the load's task, which has not run yet
    assert held.gates == []
    assert len(look(held.f).flights) == 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await turns()
    assert held.ended == ["cancelled"]
    look(held.f).clean()


async def test_a_load_whose_task_is_cancelled_from_outside_before_it_starts_has_a_successor(held, look, quiet_loop):
    await held.f.invalidate(7)
    leader = asyncio.create_task(held.f(7))
    follower = asyncio.create_task(held.f(7))
    await asyncio.sleep(0)
    (flight,) = look(held.f).flights.values()
    flight.task.cancel()
    await turns()
    assert leader.cancelled()
    held.let_go()
    assert await follower == 1
    look(held.f).clean()


async def test_a_load_whose_task_is_cancelled_from_outside_has_a_successor(held, look, quiet_loop):
    leader, *followers = await start(held.f, 3)
    (flight,) = look(held.f).flights.values()
    flight.task.cancel()
    await turns()
    assert leader.cancelled()
    held.let_go()
    assert await asyncio.gather(*followers) == [2, 2]
    assert held.ended == ["cancelled", "done"]
    look(held.f).clean()


async def test_a_refresh_that_is_cancelled_leaves_the_value(held, look, quiet_loop):
    (call,) = await start(held.f, 1)
    held.let_go()
    assert await call == 1
    refresh = asyncio.create_task(held.f.refresh(7))
    await turns()
    refresh.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refresh
    await turns()
    assert await held.f(7) == 1
    look(held.f).clean()


async def test_a_refresh_that_is_cancelled_before_its_load_starts_leaves_nothing(held, look, quiet_loop):
    await held.f.invalidate(7)
    refresh = asyncio.create_task(held.f.refresh(7))
    await asyncio.sleep(0)
    refresh.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refresh
    await turns()
    look(held.f).clean()


@pytest.mark.parametrize("helper", ["__call__", "refresh"])
async def test_a_loop_that_takes_no_tasks_any_more_leaves_no_flight(held, look, helper):
    await held.f.invalidate(7)
    loop = asyncio.get_running_loop()

    def refuse(loop, coro, **kwargs):
        raise RuntimeError("no more tasks")

    loop.set_task_factory(refuse)
    try:
        with pytest.raises(RuntimeError, match="no more tasks"):
            await getattr(held.f, helper)(7)
    finally:
        loop.set_task_factory(None)
    look(held.f).clean()


async def test_wait_for_ends_only_its_own_caller(held, look, quiet_loop):
    (patient,) = await start(held.f, 1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(held.f(7), 0.001)
    held.let_go()
    assert await patient == 1
    assert held.ended == ["done"]
    look(held.f).clean()


@pytest.mark.skipif(not hasattr(asyncio, "timeout"), reason="asyncio.timeout came with Python 3.11")
@pytest.mark.parametrize("options", [{}, {"single_flight": None}], ids=["flight", "alone"])
async def test_asyncio_timeout_is_a_timeout_and_no_cancellation(cached, look, quiet_loop, options):
    async def load(x):
        await asyncio.Event().wait()

    f = cached(load, **options)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await f(7)
    assert not asyncio.current_task().cancelling()
    await turns()
    look(f).clean()


async def test_cancelling_any_callers_at_any_moment_serves_the_rest(cached, look, quiet_loop):
    """Random schedules: who is not cancelled is answered, with what the origin returned, and nothing is left."""
    for seed in range(300):
        chance = random.Random(seed)
        loads = []

        async def load(x, chance=chance, loads=loads):
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            loads.append("done")
            return len(loads)

        f = cached(load)
        calls = []
        doomed = set()
        for _ in range(chance.randrange(1, 12)):
            calls.append(asyncio.create_task(f.refresh(7) if chance.random() < 0.1 else f(7)))
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            if chance.random() < 0.6:
                victim = chance.choice(calls)
                if not victim.done():
                    victim.cancel()
                    doomed.add(victim)
            if chance.random() < 0.1:
                await f.invalidate(7)
        done, pending = await asyncio.wait(calls, timeout=20)
        assert not pending, seed
        for call in done:
            if call not in doomed:
                assert call.result() in range(1, len(loads) + 1), seed
        await turns()
        look(f).clean()
        stats = f.stats()
        assert stats.loads == len(loads)
    assert not [task for task in drivers._loads if not task.done()]
