"""Runs the algorithm, blocking or awaiting: the only module that does either; it never decides what comes next.

Each driver sends the answers of commands back into a generator of `aside`. The user's function runs here, so that its
traceback holds no frame of the generator's, and its outcome goes back as a value.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from . import aside
from .aside import BEHIND, CALL, GONE, READ, TIMED_OUT, Fill, Load, Pause, Plan, Read, Take, Wait
from .background import LONGEST, background
from .entry import UNREAD
from .flight import STARTED, Failure, Flight, Outcome, TaskFlight, collecting, inside, phase
from .stats import FULL

if TYPE_CHECKING:
    from .entry import Reading

__all__ = ["alook", "drain_async", "look", "lookup_async", "refresh_async", "renew", "renew_async", "run"]

POLL = 0.25
"""Seconds after which a task that waits for another event loop's flight looks whether that loop still runs."""

Way = Callable[[Plan, Flight], Generator[Any, Any, Outcome]]

_renewals: set[asyncio.Task[None]] = set()  # those among the following that nobody waits for
_loads: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly; only the done callback removes one


def _died() -> Outcome:
    """Return the outcome of a leader that was interrupted or cancelled before it had one."""
    return Failure.of(asyncio.CancelledError("the load was cancelled"))


# The same where its own exception is on its way, so that nobody raises this one: it is here already, since at the
# recursion limit there is no room to make one.
_DIED = _died()


# -- blocking ----------------------------------------------------------------------------------------------------------


def run(plan: Plan, mine: Flight, first: Reading | None, way: Way | None = None) -> Any:
    """Return the result of one call, from the store, from another caller's load or from its own.

    Args:
        plan: of the decorated function.
        mine: the call.
        first: the algorithm's first read, if the caller has made it.
        way: what is done instead of a lookup: `aside.refresh` or `aside.behind`.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    steps: Any = None
    answer: Any = None
    outcome: Any = None
    try:
        steps = aside.lookup(plan, mine, first, True, _perform) if way is None else way(plan, mine)
        while True:
            command = steps.send(answer)
            if command is CALL:
                # Written out here: one frame less for each level of a recursive function.
                durations = plan.counters.durations
                entered = STARTED not in phase or not collecting()
                try:
                    if entered:
                        inside.set(mine)
                    started = time.perf_counter()
                    args, named = mine.args, mine.kwargs
                    answer = Outcome(plan.function(*args, **named) if named else plan.function(*args))
                    mine.took = took = time.perf_counter() - started
                    durations.append(took)
                    if len(durations) > FULL:
                        plan.counters.add_up()
                except BaseException as error:  # noqa: BLE001 - it goes on as a value, raised by `Outcome.result`
                    answer = Failure.of(error)
                finally:
                    if entered:
                        inside.set(mine.parent)
            elif type(command) is Wait:
                answer = _wait(plan, command.flight)
            elif command is BEHIND:
                renew(plan, mine)
            elif type(command) is Pause:
                time.sleep(command.seconds)  # the algorithm asks for it: another process cannot wake this one
            else:
                answer = _perform(plan, mine, command)
    except StopIteration as stop:
        outcome = stop.value
    finally:
        # Twice, because a KeyboardInterrupt may come out of the first.
        try:
            mine.settle(outcome or _DIED)
        finally:
            if mine.outcome is None or mine.wakers:
                mine.settle(outcome or _DIED)
            if outcome is None and steps is not None:
                steps.close()
    if outcome.error is None:
        return outcome.value
    try:
        return outcome.result()
    finally:
        del mine, outcome, answer, command  # the error's traceback holds this frame, which must not hold the error


def renew(plan: Plan, served: Flight) -> None:
    """Refresh what a call was served, in a thread of its own; where there is too much to do it is left to a later call.

    Args:
        plan: of the decorated function.
        served: the call.
    """
    call = (served.space, served.key, served.args, served.kwargs, served.tags, None)
    if background.submit((served.space, served.key), partial(_renew, plan, call)):
        plan.counters.refreshes.tick()


def _renew(plan: Plan, call: tuple[Any, ...]) -> None:
    try:
        run(plan, Flight(*call), None, aside.behind)
    except BaseException as error:  # noqa: BLE001 - nobody waits for it; the stale result is served to its window's end
        plan.counters.error("refresh", error, "the refresh failed, and the older result is served meanwhile")


def _wait(plan: Plan, flight: Flight) -> Any:
    origin = inside.get()
    flight.wait_from(origin, plan.name)
    try:
        if flight.thread == threading.get_ident():
            # This very thread is to settle it: a signal handler or a finalizer has come in between. It cannot wait.
            return TIMED_OUT
        plan.counters.waits.tick()
        wake = threading.Lock()
        wake.acquire()
        flight.wakers.append(wake.release)
        if flight.outcome is None and not wake.acquire(timeout=-1 if plan.wait_timeout is None else plan.wait_timeout):
            _forget(flight, wake.release)
            return TIMED_OUT
        return flight.outcome
    finally:
        flight.done_waiting(origin)


def _forget(flight: Flight, waker: Any) -> None:
    try:
        flight.wakers.remove(waker)
    except ValueError:
        pass  # the flight landed meanwhile


def look(plan: Plan, space: Any, key: Any, tags: tuple[str, ...]) -> Reading:
    """Return the algorithm's first read of a call, for `run`; a hit needs no more."""
    try:
        reading: Reading = space.look(key, tags)
        return reading
    except Exception as error:  # noqa: BLE001 - as in _perform
        failed: Reading = _failed(plan, READ, error)
        return failed


# -- awaiting ----------------------------------------------------------------------------------------------------------


async def alook(plan: Plan, space: Any, key: Any, tags: tuple[str, ...]) -> Reading:
    """Do what `look` does, awaiting, for `lookup_async`."""
    try:
        reading: Reading = await space.alook(key, tags)
        return reading
    except Exception as error:  # noqa: BLE001 - as in _perform
        failed: Reading = _failed(plan, READ, error)
        return failed


async def lookup_async(plan: Plan, mine: TaskFlight, first: Reading | None) -> Any:
    """Do what `lookup` does, awaiting: the load runs in a task of its own, so that a caller's cancellation is its own.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    steps = aside.lookup(plan, mine, first, inline=False)
    answer: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Load:
                answer = await (
                    _lead(plan, mine, lease=command.lease)
                    if command.joinable
                    else _load_async(plan, mine, lease=command.lease)
                )
            elif command is BEHIND:
                renew_async(plan, mine)
            elif type(command) is Wait:
                command.flight.wait_from(mine.parent, plan.name)
                try:
                    plan.counters.waits.tick()
                    answer = await _await(cast(TaskFlight, command.flight), plan.wait_timeout)
                finally:
                    command.flight.done_waiting(mine.parent)
            else:
                answer = await _aperform(plan, mine, command)
    except StopIteration as stop:
        answer = stop.value
    finally:
        if mine.task is None:
            mine.settle(_DIED)  # it was not handed over to a task, which would settle it
        steps.close()
    if answer.error is None:
        return answer.value
    try:
        return answer.result()
    finally:
        del mine, answer, command  # as in lookup


async def refresh_async(plan: Plan, mine: TaskFlight) -> Any:
    """Do what `refresh` does, awaiting."""
    try:
        outcome = await _lead(plan, mine, aside.refresh)
    finally:
        if mine.task is None:
            mine.settle(_DIED)
    try:
        return outcome.result()
    finally:
        del mine, outcome  # as in lookup


def renew_async(plan: Plan, served: TaskFlight) -> None:
    """Refresh what a call was served, in a task of its own; where there is too much to do, leave it to a later call."""
    if len(_loads) >= LONGEST:
        # A loop that was closed in the middle of a load never says that its task is over.
        for task in [each for each in list(_loads) if each.get_loop().is_closed()]:
            _loads.discard(task)
            _renewals.discard(task)
        if len(_loads) >= LONGEST:
            return
    flight = TaskFlight(
        served.space, served.key, served.args, served.kwargs, served.tags, None, loop=asyncio.get_running_loop()
    )
    if flight.register():
        try:
            # In an empty context: a refresh borrows nothing of the request that happened to come at that moment.
            Context().run(_start, plan, flight, aside.behind)
        except BaseException:
            flight.settle(_died())
            raise
        assert flight.task is not None
        _renewals.add(flight.task)
        flight.task.add_done_callback(_renewals.discard)
        plan.counters.refreshes.tick()


async def drain_async() -> None:
    """Wait until the refreshes that run in this event loop, behind their callers' backs, are over."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in list(_renewals) if task.get_loop() is loop and task is not asyncio.current_task()]:
        await asyncio.wait(mine)


def _start(plan: Plan, flight: TaskFlight, way: Way | None, lease: Any = None) -> None:
    load = _load_task(plan, flight, way, lease)
    try:
        task = asyncio.create_task(load, name=f"memo load: {plan.name}")
    except BaseException:
        load.close()  # else Python warns, beside the error, that it was never awaited
        raise
    _loads.add(task)
    task.add_done_callback(partial(_landed, flight))
    flight.task = task


async def _lead(plan: Plan, flight: TaskFlight, way: Way | None = None, lease: Any = None) -> Any:
    _start(plan, flight, way, lease)
    return await _await(flight, None, entered=True)


async def _load_task(plan: Plan, flight: TaskFlight, way: Way | None, lease: Any) -> None:
    outcome = await _load_async(plan, flight, way, lease)
    flight.settle(outcome)
    error = outcome.error
    if way is aside.behind and error is not None and not outcome.private:
        plan.counters.error("refresh", error, "the refresh failed, and the older result is served meanwhile")
    del flight, outcome  # as in _run
    try:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error  # the event loop lets these two through, and so stops
    finally:
        del error


def _landed(flight: TaskFlight, task: asyncio.Task[None]) -> None:
    _loads.discard(task)
    error = None if task.cancelled() else task.exception()  # seen: waiters have it from the flight
    if flight.outcome is None:
        # Cancelled before its first step, or what failed is not the function: at the recursion limit, for one.
        flight.settle(_died() if error is None else Failure.of(error))


async def _load_async(plan: Plan, flight: TaskFlight, way: Way | None = None, lease: Any = None) -> Outcome:
    perform = _perform if flight.space.local else None
    steps = aside.load(plan, flight, False, perform, lease) if way is None else way(plan, flight)
    answer: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Pause:
                await asyncio.sleep(command.seconds)
                continue
            if command is not CALL:
                answer = await _aperform(plan, flight, command)
                continue
            try:
                inside.set(flight)
                started = time.perf_counter()
                answer = Outcome(await plan.function(*flight.args, **flight.kwargs))
                flight.took = took = time.perf_counter() - started
                plan.counters.durations.append(took)
                if len(plan.counters.durations) > FULL:
                    plan.counters.add_up()
            except BaseException as error:  # noqa: BLE001 - as in _run
                answer = Failure.of(error)
            finally:
                # If its loop is gone, the collector closes it, in whatever context that comes in.
                if not collecting() and inside.get() is flight:
                    inside.set(flight.parent)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        try:
            return outcome
        finally:
            del flight, outcome, answer  # as in _run
    finally:
        steps.close()


async def _await(flight: TaskFlight, limit: float | None, entered: bool = False) -> Any:
    if not entered and not flight.enter():
        return GONE
    loop = asyncio.get_running_loop()
    landed: asyncio.Future[None] = loop.create_future()
    waker = partial(_wake, loop, threading.get_ident(), landed)
    try:
        flight.wakers.append(waker)
        if flight.outcome is not None:
            return flight.outcome
        if limit is None and flight.loop is loop:
            await landed
            return flight.outcome
        deadline = None if limit is None else loop.time() + limit
        while not landed.done():
            if flight.dead():
                return GONE  # its loop was closed or stopped: nobody is going to wake anyone
            left = POLL if deadline is None else min(POLL, deadline - loop.time())
            if left <= 0:
                return TIMED_OUT
            await asyncio.wait([landed], timeout=left)
        return flight.outcome
    finally:
        _forget(flight, waker)
        flight.leave()


def _wake(loop: asyncio.AbstractEventLoop, thread: int, landed: asyncio.Future[None]) -> None:
    if thread == threading.get_ident():
        _land(landed)
    else:
        try:
            loop.call_soon_threadsafe(_land, landed)
        except RuntimeError:
            pass  # that loop is closed: its waiter is gone


def _land(landed: asyncio.Future[None]) -> None:
    if not landed.done():
        landed.set_result(None)


# -- the store: a failure of its own is counted, and the call goes on without it ---------------------------------------


def _perform(plan: Plan, flight: Flight, command: Any) -> Any:
    space = flight.space
    try:
        if type(command) is Take:
            return space.take(flight.key, flight.tags, command.renew)
        if type(command) is Fill:
            return space.fill(flight.key, command.lease, command.value, command.ttl, flight.tags)
        if type(command) is Read:
            return space.look(flight.key, flight.tags, command.leads)
        return space.release(flight.key, command.lease, command.remove)
    except Exception as error:  # noqa: BLE001 - whatever a store raises, the call goes on
        return _failed(plan, command, error)


async def _aperform(plan: Plan, flight: Flight, command: Any) -> Any:
    space = flight.space
    if space.local:
        return _perform(plan, flight, command)
    try:
        if type(command) is Take:
            return await space.atake(flight.key, flight.tags, command.renew)
        if type(command) is Fill:
            return await space.afill(flight.key, command.lease, command.value, command.ttl, flight.tags)
        if type(command) is Read:
            return await space.alook(flight.key, flight.tags, command.leads)
        return await space.arelease(flight.key, command.lease, command.remove)
    except Exception as error:  # noqa: BLE001 - as in _perform
        return _failed(plan, command, error)


def _failed(plan: Plan, command: Any, error: Exception) -> Any:
    kind = type(command).__name__.lower()
    plan.counters.error(kind, error, "the store failed, and the call goes on without it")
    return UNREAD if type(command) in (Read, Take) else None
