"""A load that raises: everyone who waits has the error, nobody is left waiting, and nothing of it stays."""

from __future__ import annotations

import asyncio
import gc
import operator
import threading
import traceback
import weakref

import pytest

from memo import MISSING
from memo.flight import Failure


class Deliberate(Exception):
    pass


FATAL = [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit]


def depth(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def test_followers_get_the_same_error_object(cached, spawn, until, look, source):
    f = cached(lambda x: (source.read(), 1 / 0))
    source.hold()
    calls = [spawn(f, 7) for _ in range(64)]
    until(lambda: f.stats().waits == 63)
    source.gate.set()
    errors = {id(call.exception(20)) for call in calls}
    assert len(errors) == 1
    assert isinstance(calls[0].exception(), ZeroDivisionError)
    assert source.reads == 1
    assert f.peek(7) is MISSING
    look(f).clean()
    with pytest.raises(ZeroDivisionError):
        f(7)
    assert source.reads == 2


async def test_followers_get_the_same_error_object_async(cached, look, source, quiet_loop):
    async def load(x):
        await source.aread()
        return 1 / 0

    f = cached(load)
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(64)]
    while f.stats().waits < 63:
        await asyncio.sleep(0)
    source.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert len({id(error) for error in errors}) == 1
    assert isinstance(errors[0], ZeroDivisionError)
    assert source.reads == 1
    assert await f.peek(7) is MISSING
    look(f).clean()
    with pytest.raises(ZeroDivisionError):
        await f(7)
    assert source.reads == 2


async def test_an_error_that_nobody_asks_for_any_more_is_not_complained_about(cached, look, source, quiet_loop):
    async def load(x):
        try:
            await source.aread()
        finally:
            raise Deliberate

    f = cached(load)
    source.hold()
    call = asyncio.create_task(f(7))
    while not source.reads:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    source.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    look(f).clean()


def test_an_outcome_that_is_raised_a_thousand_times_does_not_grow():
    """A follower raises the object that another has raised: each starts from the traceback of the load."""

    def load():
        raise Deliberate

    try:
        load()
    except Deliberate as error:
        outcome = Failure.of(error)
    depths = set()
    for _ in range(1_000):
        try:
            raise KeyError("what the caller handles at the moment")
        except KeyError:
            with pytest.raises(Deliberate) as caught:
                outcome.result()
        assert caught.value.__context__ is None
        depths.add(depth(caught.value))
    assert len(depths) == 1


async def test_an_error_that_many_tasks_raise_does_not_grow(cached, source, quiet_loop):
    async def load(x):
        await source.aread()
        raise Deliberate

    f = cached(load)
    source.hold()
    depths, contexts = [], []

    async def ask():
        try:
            raise KeyError("the caller handles something else")
        except KeyError:
            try:
                await f(7)
            except Deliberate as error:
                depths.append(depth(error))
                contexts.append(error.__context__)

    calls = [asyncio.create_task(ask()) for _ in range(1_000)]
    while f.stats().waits < 999:
        await asyncio.sleep(0)
    source.gate.set()
    await asyncio.gather(*calls)
    assert len(depths) == 1_000
    assert len(set(depths[1:])) == 1  # all followers alike; the leader's call is one frame longer or shorter
    assert abs(depths[0] - depths[1]) <= 1
    assert set(contexts) == {None}


def test_the_traceback_leads_into_the_function(cached):
    def load(x):
        return {}["not there"]

    f = cached(load)
    with pytest.raises(KeyError) as caught:
        f(7)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "load"
    assert "_run" not in [frame.name for frame in frames]


async def test_the_traceback_leads_into_the_function_async(cached):
    async def load(x):
        return {}["not there"]

    f = cached(load)
    with pytest.raises(KeyError) as caught:
        await f(7)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "load"
    assert "_load_async" not in [frame.name for frame in frames]


def test_the_functions_own_context_and_cause_stay(cached):
    def load(x):
        try:
            {}["first"]
        except KeyError as error:
            raise Deliberate from error

    f = cached(load)
    for _ in range(3):
        with pytest.raises(Deliberate) as caught:
            f(7)
        assert isinstance(caught.value.__context__, KeyError)
        assert caught.value.__cause__ is caught.value.__context__


@pytest.mark.parametrize("renew", [False, True], ids=["lookup", "refresh"])
def test_a_builtin_that_raises_has_no_frame_of_its_own(cached, renew):
    f = cached(operator.index)
    with pytest.raises(TypeError):
        (f.refresh if renew else f)("no number")


class Local:
    pass


@pytest.mark.parametrize("helper", ["__call__", "refresh"])
def test_the_frames_of_a_failed_load_die_without_the_collector(cached, helper):
    """A failed request's locals may hold a connection or a megabyte."""
    refs = []

    def load(x):
        local = Local()
        refs.append(weakref.ref(local))
        raise Deliberate(x)

    f = cached(load)
    gc.disable()
    try:
        with pytest.raises(Deliberate):
            getattr(f, helper)(7)
        assert refs[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("helper", ["__call__", "refresh"])
async def test_the_frames_of_a_failed_load_die_without_the_collector_async(cached, helper):
    refs = []

    async def load(x):
        local = Local()
        refs.append(weakref.ref(local))
        raise Deliberate(x)

    f = cached(load)
    gc.disable()
    try:
        with pytest.raises(Deliberate):
            await getattr(f, helper)(7)
        for _ in range(3):
            await asyncio.sleep(0)
        assert refs[0]() is None
    finally:
        gc.enable()


def test_the_frames_of_a_failed_load_die_when_its_followers_are_done(cached, spawn, result, until, look, source):
    refs = []

    def load(x):
        local = Local()
        refs.append(weakref.ref(local))
        source.read()
        raise Deliberate(x)

    def ask():
        try:
            f(7)
        except Deliberate:
            return "failed"

    f = cached(load)
    source.hold()
    gc.disable()
    try:
        calls = [spawn(ask) for _ in range(8)]
        until(lambda: look(f).followers() == 7)
        source.gate.set()
        assert [result(call) for call in calls] == ["failed"] * 8
        until(lambda: refs[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("fatal", FATAL)
def test_followers_of_a_leader_that_was_interrupted_elect_another(cached, spawn, until, look, source, fatal):
    first = threading.Event()

    def load(x):
        if not first.is_set():
            first.set()
            source.read()
            raise fatal("of the leader")
        return "value"

    f = cached(load)
    source.hold()
    leader = spawn(f, 7)
    source.arrived()
    followers = [spawn(f, 7) for _ in range(8)]
    until(lambda: look(f).followers() == 8)
    source.gate.set()
    assert type(leader.exception(20)) is fatal
    assert [call.result(20) for call in followers] == ["value"] * 8
    assert f.stats().loads == 1
    look(f).clean()


@pytest.mark.parametrize("fatal", [asyncio.CancelledError, GeneratorExit])
async def test_followers_of_a_leader_that_was_interrupted_elect_another_async(cached, look, source, quiet_loop, fatal):
    first = True

    async def load(x):
        nonlocal first
        if first:
            first = False
            await source.aread()
            raise fatal("of the leader")
        return "value"

    f = cached(load)
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(9)]
    while f.stats().waits < 8:
        await asyncio.sleep(0)
    source.gate.set()
    done, _ = await asyncio.wait(calls, timeout=20)
    assert len(done) == 9
    leader, *followers = calls
    assert leader.cancelled() if fatal is asyncio.CancelledError else type(leader.exception()) is fatal
    assert [call.result() for call in followers] == ["value"] * 8
    look(f).clean()


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_interruption_in_an_async_load_stops_its_loop(cached, look, fatal):
    """As it does when any other task raises it; the key is free and the next loop loads."""
    interrupted = []

    async def load(x):
        if not interrupted:
            interrupted.append(x)
            raise fatal("stop")
        return "value"

    f = cached(load)

    async def main():
        await asyncio.gather(f(7), f(7))

    with pytest.raises(fatal):
        asyncio.run(main())
    look(f).clean()
    assert asyncio.run(f(7)) == "value"


@pytest.mark.parametrize("error", [StopIteration(1), StopAsyncIteration(2), RuntimeError("x"), Deliberate()], ids=repr)
@pytest.mark.parametrize("helper", ["__call__", "refresh"])
def test_any_error_arrives_unchanged(cached, look, error, helper):
    """A StopIteration thrown into a generator would come out as a RuntimeError."""

    def load(x):
        raise error

    f = cached(load)
    with pytest.raises(type(error)) as caught:
        getattr(f, helper)(7)
    assert caught.value is error
    look(f).clean()


@pytest.mark.parametrize("error", [StopAsyncIteration(2), RuntimeError("x"), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("helper", ["__call__", "refresh"])
async def test_any_error_arrives_unchanged_async(cached, look, error, helper):
    async def load(x):
        raise error

    f = cached(load)
    with pytest.raises(type(error)) as caught:
        await getattr(f, helper)(7)
    assert caught.value is error
    look(f).clean()


async def test_a_stop_iteration_is_what_python_makes_of_it_in_a_coroutine(cached, look):
    async def load(x):
        raise StopIteration(1)

    f = cached(load)
    with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
        await f(7)
    look(f).clean()


def test_a_failed_refresh_leaves_the_value(cached, look):
    answers = ["value"]
    f = cached(lambda x: answers.pop())
    assert f(7) == "value"
    with pytest.raises(IndexError):
        f.refresh(7)
    assert f(7) == "value"
    look(f).clean()
