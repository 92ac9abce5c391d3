"""A load that waits for itself is an error, never a hang; recursion over other keys works."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import sys
import threading

import pytest

from memo import NullStore, RecursiveLoadError, cache_aside

PATIENCE = 20


@pytest.fixture
def answer(spawn):
    """Call in a thread, so that a hang is a failure of this test alone."""
    return lambda function, *args: spawn(function, *args).result(PATIENCE)


def test_directly(cached, answer, look):
    f = cached(lambda x: f(x))
    with pytest.raises(RecursiveLoadError, match="waits for its own result"):
        answer(f, 1)
    look(f).clean()


def test_the_error_names_the_function_and_is_a_recursion_error(cached, answer):
    f = cached(lambda x: f(x))
    with pytest.raises(RecursionError, match=r"test_recursion.*lambda"):
        answer(f, 1)


def test_over_the_null_store(answer):
    f = cache_aside(store=NullStore())(lambda x: f(x))
    with pytest.raises(RecursiveLoadError):
        answer(f, 1)


def test_via_a_helper_function(cached, answer, look):
    def helper(x):
        return f(x)

    f = cached(lambda x: helper(x))
    with pytest.raises(RecursiveLoadError):
        answer(f, 1)
    look(f).clean()


def test_via_a_second_cached_function(cached, answer, look):
    f = cached(lambda x: g(x))
    g = cached(lambda x: f(x))
    with pytest.raises(RecursiveLoadError):
        answer(f, 1)
    look(f).clean()
    look(g).clean()


def test_stacked_decorators_are_no_recursion(cached, answer):
    f = cached(cached(lambda x: x))
    assert answer(f, 1) == 1


def test_a_function_may_catch_it_and_answer(cached, answer):
    def load(x):
        try:
            return f(x)
        except RecursiveLoadError:
            return "caught"

    f = cached(load)
    assert answer(f, 1) == "caught"
    assert answer(f, 1) == "caught"
    assert f.stats().hits == 1


def test_a_refresh_in_its_own_load_ends_at_the_recursion_limit_and_not_in_a_hang(cached, answer, look):
    f = cached(lambda x: f.refresh(x))
    with pytest.raises(RecursionError):
        answer(f, 1)
    assert look(f).flights == {}


def test_without_single_flight_it_is_what_it_is_without_a_cache(cached, answer, look):
    f = cached(lambda x: f(x), single_flight=None)
    with pytest.raises(RecursionError) as caught:
        answer(f, 1)
    assert not isinstance(caught.value, RecursiveLoadError)
    look(f)


def test_a_thread_that_the_load_started_without_its_context_is_told_by_the_wait_timeout(cached, answer):
    """memo cannot see who waits for a thread; `wait_timeout` ends what is then no visible cycle."""

    def load(x):
        if threading.current_thread().name == "inner":
            return "inner"
        got = []
        thread = threading.Thread(target=lambda: got.append(f(x)), name="inner", daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return got[0]

    f = cached(load, wait_timeout=0.01)
    assert answer(f, 1) == "inner"


def test_two_threads_that_want_each_others_keys(cached, spawn, look):
    meet = threading.Barrier(2)

    def load(x):
        meet.wait(PATIENCE)
        return f(1 - x)

    f = cached(load)
    calls = [spawn(f, 0), spawn(f, 1)]
    errors = [call.exception(PATIENCE) for call in calls]
    assert [type(error) for error in errors] == [RecursiveLoadError] * 2
    look(f).clean()


def test_three_threads_in_a_ring_one_of_which_gives_way(cached, spawn, look):
    meet = threading.Barrier(3)

    def load(x):
        meet.wait(PATIENCE)
        try:
            return f((x + 1) % 3)
        except RecursiveLoadError:
            return f"from {x}"

    f = cached(load)
    calls = [spawn(f, x) for x in range(3)]
    results = {call.result(PATIENCE) for call in calls}
    assert len(results) == 1
    look(f).clean()


def test_a_diamond_is_no_cycle(cached, spawn, result, until, look, source):
    """Two loads that wait for a third one: nothing leads back."""
    source.hold()
    bottom = cached(source.read)
    left = cached(lambda x: bottom(x))
    right = cached(lambda x: bottom(x))
    calls = [spawn(left, 1), spawn(right, 1), spawn(left, 1), spawn(right, 1)]
    until(lambda: look(bottom).followers() == 1 and look(left).followers() == look(right).followers() == 1)
    source.gate.set()
    assert [result(call) for call in calls] == [0] * 4
    assert source.reads == 1


async def test_directly_async(cached, look, quiet_loop):
    async def load(x):
        return await f(x)

    f = cached(load)
    with pytest.raises(RecursiveLoadError):
        await asyncio.wait_for(f(1), PATIENCE)
    look(f).clean()


async def test_via_a_second_cached_function_async(cached, look, quiet_loop):
    async def load_f(x):
        return await g(x)

    async def load_g(x):
        return await f(x)

    f, g = cached(load_f), cached(load_g)
    with pytest.raises(RecursiveLoadError):
        await asyncio.wait_for(f(1), PATIENCE)
    look(f).clean()
    look(g).clean()


@pytest.mark.parametrize("spread", ["gather", "create_task", "shield"])
async def test_via_other_tasks(cached, look, quiet_loop, spread):
    async def load(x):
        if spread == "gather":
            return (await asyncio.gather(f(x), asyncio.sleep(0)))[0]
        if spread == "shield":
            return await asyncio.shield(f(x))
        return await asyncio.create_task(f(x))

    f = cached(load)
    with pytest.raises(RecursiveLoadError):
        await asyncio.wait_for(f(1), PATIENCE)
    look(f).clean()


async def test_two_tasks_that_want_each_others_keys(cached, look, quiet_loop):
    arrived = []

    async def load(x):
        arrived.append(x)
        while len(arrived) < 2:
            await asyncio.sleep(0)
        return await f(1 - x)

    f = cached(load)
    calls = [asyncio.create_task(f(0)), asyncio.create_task(f(1))]
    _, pending = await asyncio.wait(calls, timeout=PATIENCE)
    assert not pending
    assert [type(call.exception()) for call in calls] == [RecursiveLoadError] * 2
    look(f).clean()


async def test_a_task_that_a_load_left_behind_is_free_of_it(cached, look, quiet_loop):
    """It still carries the load that started it, which has landed: nobody waits for the task any more."""
    behind = []

    async def load(x):
        if not behind:
            behind.append(asyncio.create_task(later(x)))
        return x

    async def later(x):
        while await f.peek(x) != x:
            await asyncio.sleep(0)
        await f.invalidate(x)
        return await f(x)

    f = cached(load)
    assert await f(1) == 1
    assert await asyncio.wait_for(behind[0], PATIENCE) == 1


async def test_a_task_that_an_inner_load_left_behind_may_wait_for_the_outer_one(cached, look, quiet_loop):
    """The outer load waits for the inner one no more, and so not for what that left behind."""
    behind = []

    async def inner(x):
        behind.append(asyncio.create_task(later()))

    async def outer(x):
        await f(x)
        while look(g).followers() < 2:
            await asyncio.sleep(0)
        return "outer"

    async def later():
        while look(f).flights:
            await asyncio.sleep(0)
        return await g(1)

    f, g = cached(inner), cached(outer)
    assert await asyncio.wait_for(g(1), PATIENCE) == "outer"
    assert await asyncio.wait_for(behind[0], PATIENCE) == "outer"


def test_who_gave_up_waiting_may_be_waited_for(cached, spawn, result, until, look):
    """A waits for B and gives up; then B waits for A: each wait is over before it could close a cycle."""
    gave_up = threading.Event()

    def load_f(x):
        assert g(x) == "alone"
        gave_up.set()
        until(lambda: look(f).followers() == 1)
        return "f"

    def load_g(x):
        if threading.current_thread().name == "first":
            return "alone"
        assert gave_up.wait(PATIENCE)
        return f(x)

    def first():
        threading.current_thread().name = "first"
        return f(1)

    f, g = cached(load_f), cached(load_g, wait_timeout=0.01)
    second = spawn(g, 1)
    until(lambda: look(g).flights)
    call = spawn(first)
    assert result(call) == "f"
    assert result(second) == "f"


def test_other_keys_work_to_a_sixth_of_the_recursion_limit(cached, answer):
    f = cached(lambda n: 0 if n == 0 else 1 + f(n - 1))
    depth = (sys.getrecursionlimit() - 50) // 6  # some is spent at the top and at the bottom
    assert answer(f, depth) == depth
    assert f.stats().loads == depth + 1


async def test_other_keys_work_deeper_for_tasks(cached, quiet_loop):
    async def load(n):
        return 0 if n == 0 else 1 + await f(n - 1)

    f = cached(load)
    depth = sys.getrecursionlimit() * 2
    assert await f(depth) == depth


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
async def test_a_recursion_of_eager_tasks_that_is_too_deep_is_a_recursion_error(cached, look, quiet_loop):
    quiet_loop.set_task_factory(asyncio.eager_task_factory)

    async def load(n):
        return await f(n + 1)

    f = cached(load)
    with pytest.raises(RecursionError):
        await f(0)
    for _ in range(5):
        await asyncio.sleep(0)
    look(f).clean(leases=False)


def test_a_recursion_that_is_too_deep_leaves_no_flight(cached, answer, look):
    """At every alignment of the frames: the step that frees the key needs room, too."""

    def at(spare):
        f = cached(lambda n: f(n + 1))
        f.invalidate(0)
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack(0)) + 150 + spare)
        try:
            f(0)
        except RecursionError:
            pass
        finally:
            sys.setrecursionlimit(before)
        assert look(f).flights == {}, spare
        return f.stats().misses

    depths = [answer(at, spare) for spare in range(24)]
    assert len(set(depths)) > 2
    assert min(depths) > 15


def test_a_finalizer_that_calls_the_function_during_its_load(cached, answer, look):
    """A collection may come in the middle of anything."""
    seen = []

    class Dying:
        def __del__(self):
            try:
                seen.append(f(1))
            except RecursiveLoadError as error:
                seen.append(type(error))

    def load(x):
        Dying()
        return "value"

    f = cached(load)
    assert answer(f, 1) == "value"
    assert seen == [RecursiveLoadError]
    look(f).clean()


def test_a_finalizer_of_the_value_that_a_fill_replaces(cached, answer, look):
    seen = []

    class Value:
        def __del__(self):
            seen.append(type(f(1)))

    f = cached(lambda x: Value())
    answer(f, 1)
    answer(f.refresh, 1)
    assert seen == [Value]
    f.store.clear()
    look(f)


def test_a_logging_handler_that_calls_the_function_during_its_load(cached, answer, look):
    """The policy fails and memo logs it, outside of the function but before the flight lands."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(f(1))

    def fail(value):
        raise ValueError("policy")

    f = cached(lambda x: "value", ttl=fail)
    logger = logging.getLogger("memo")
    handler = Handler()
    logger.addHandler(handler)
    try:
        assert answer(f, 1) == "value"
    finally:
        logger.removeHandler(handler)
    assert seen == ["value"]
    assert f.stats().errors == {"policy": 2}
    look(f).clean()


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signals on this system")
def test_a_signal_handler_that_calls_the_function_at_any_moment(cached, look):
    """Handlers run in the main thread between two bytecodes, of memo's too, and that thread is the flight's leader."""
    assert threading.current_thread() is threading.main_thread()
    seen = []

    def handler(*_):
        try:
            seen.append(f(len(seen) % 3))
        except RecursiveLoadError:
            seen.append("recursive")

    f = cached(lambda x: x)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        turn = 0
        while len(seen) < 300:
            turn += 1
            assert f(turn % 3) == turn % 3
            f.invalidate(turn % 3)
            if turn % 5 == 0:
                f.refresh(turn % 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert look(f).flights == {}
    for x in range(3):
        assert f(x) == x
    look(f).clean()


def test_a_handler_that_comes_while_its_own_thread_leads_loads_by_itself(cached, answer, look):
    """It cannot wait for the thread that it has interrupted. The function is not running: this is no recursion."""
    seen = []
    f = cached(lambda x: "value")
    f.invalidate(1)
    space = look(f).space

    class Leases(dict):
        def setdefault(self, key, lease):
            space.leases = {}
            seen.append(f(1))
            return space.leases.setdefault(key, lease)

    space.leases = Leases()
    assert answer(f, 1) == "value"
    assert seen == ["value"]
    look(f)
