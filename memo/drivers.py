"""Runs the algorithm, blocking or awaiting: the only module that does either; it never decides what comes next.

Each driver sends the answers of commands back into a generator of `aside`. The user's function runs here, so that its
traceback holds no frame of the generator's, and its outcome goes back as a value.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from . import aside
from .aside import GONE, TIMED_OUT, Call, Fill, Lead, Plan, Read, Take, Wait
from .entry import ABSENT
from .flight import Failure, Flight, Outcome, TaskFlight, inside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .entry import Reading
    from .stores.base import Space

__all__ = ["Site", "lookup", "lookup_async", "refresh", "refresh_async"]

POLL = 0.25
"""Seconds after which a task that waits for another event loop's flight looks whether that loop still runs."""

_loads: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly; only the done callback removes one


class Site:
    """One call on its way through the algorithm: where its entry lives, and how to make the result."""

    __slots__ = ("args", "key", "kwargs", "space", "tags")

    def __init__(
        self, space: Space, key: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tags: tuple[str, ...]
    ) -> None:
        self.space = space
        self.key = key
        self.args = args
        self.kwargs = kwargs
        self.tags = tags


def _died() -> Outcome:
    """Return the outcome of a leader that was interrupted or cancelled before it had one."""
    return Failure(asyncio.CancelledError("the load was cancelled"))


# -- blocking ----------------------------------------------------------------------------------------------------------


def lookup(plan: Plan, site: Site, first: Reading | None) -> Any:
    """Return the result of one call, from the store, from another caller's load or from its own.

    Args:
        plan: of the decorated function.
        site: of the call.
        first: the algorithm's first read, if the caller has made it.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    mine = Flight(site.space.flights, site.key, inside.get())
    steps = aside.lookup(plan, mine, first)
    answer: Any = None
    outcome: Outcome | None = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Read:
                answer = _perform(plan, site, command)
            elif type(command) is Wait:
                answer = _wait(plan, command.flight)
            elif type(command) is Lead:
                answer = outcome = _load(plan, site, mine, renew=False)
            else:
                answer = _load(plan, site, Flight({}, site.key, mine.parent), renew=False)
    except StopIteration as stop:
        answer = stop.value
    finally:
        # Twice, because a KeyboardInterrupt may come out of the first.
        try:
            mine.settle(outcome or _died())
        finally:
            if mine.outcome is None:
                mine.settle(outcome or _died())
            steps.close()
    return answer.result()


def refresh(plan: Plan, site: Site) -> Any:
    """Load and store one call's result whatever is there, and return it; joins nobody's load."""
    mine = Flight(site.space.flights, site.key, inside.get())
    outcome: Outcome | None = None
    try:
        if plan.single_flight:
            mine.supersede()
        outcome = _load(plan, site, mine, renew=True)
    finally:
        mine.settle(outcome or _died())
    return outcome.result()


def _load(plan: Plan, site: Site, flight: Flight, renew: bool) -> Outcome:
    steps = aside.load(plan, flight, renew)
    answer: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is not Call:
                answer = _perform(plan, site, command)
                continue
            # Written out here: one frame less for each level of a recursive function.
            token = inside.set(flight)
            started = time.perf_counter()
            try:
                answer = Outcome(plan.function(*site.args, **site.kwargs))
                plan.counters.loaded(time.perf_counter() - started)
            except BaseException as error:  # noqa: BLE001 - it goes on as a value, raised by `Outcome.result`
                answer = Failure(error)
            finally:
                inside.reset(token)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
    finally:
        steps.close()


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


# -- awaiting ----------------------------------------------------------------------------------------------------------


async def lookup_async(plan: Plan, site: Site, first: Reading | None) -> Any:
    """Do what `lookup` does, awaiting: the load runs in a task of its own, so that a caller's cancellation is its own.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    mine = TaskFlight(site.space.flights, site.key, inside.get(), asyncio.get_running_loop())
    steps = aside.lookup(plan, mine, first)
    answer: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Read:
                answer = await _aperform(plan, site, command)
            elif type(command) is Wait:
                command.flight.wait_from(mine.parent, plan.name)
                try:
                    plan.counters.waits.tick()
                    answer = await _await(command.flight, plan.wait_timeout)
                finally:
                    command.flight.done_waiting(mine.parent)
            elif type(command) is Lead:
                answer = await _lead(plan, site, mine, renew=False)
            else:
                alone = TaskFlight({}, site.key, mine.parent, mine.loop)
                answer = await _load_async(plan, site, alone, renew=False)
    except StopIteration as stop:
        answer = stop.value
    finally:
        if mine.task is None:
            mine.settle(_died())  # it was not handed over to a task, which would settle it
        steps.close()
    return answer.result()


async def refresh_async(plan: Plan, site: Site) -> Any:
    """Do what `refresh` does, awaiting."""
    mine = TaskFlight(site.space.flights, site.key, inside.get(), asyncio.get_running_loop())
    try:
        if plan.single_flight:
            mine.supersede()
        outcome = await _lead(plan, site, mine, renew=True)
    finally:
        if mine.task is None:
            mine.settle(_died())
    return outcome.result()


async def _lead(plan: Plan, site: Site, flight: TaskFlight, renew: bool) -> Any:
    task = asyncio.create_task(_load_task(plan, site, flight, renew), name=f"memo load: {plan.name}")
    _loads.add(task)
    task.add_done_callback(partial(_landed, flight))
    flight.task = task
    return await _await(flight, None)


async def _load_task(plan: Plan, site: Site, flight: Flight, renew: bool) -> None:
    inside.set(flight)  # in the task's own copy of the context
    outcome: Outcome | None = None
    try:
        outcome = await _load_async(plan, site, flight, renew)
    finally:
        flight.settle(outcome or _died())
    if isinstance(outcome.error, (KeyboardInterrupt, SystemExit)):
        raise outcome.error  # the event loop lets these two through, and so stops


def _landed(flight: Flight, task: asyncio.Task[None]) -> None:
    # Also reached by a task that was cancelled before its first step, whose `finally` never ran.
    _loads.discard(task)
    flight.settle(_died())
    if not task.cancelled():
        task.exception()  # seen: waiters have it from the flight


async def _load_async(plan: Plan, site: Site, flight: Flight, renew: bool) -> Outcome:
    steps = aside.load(plan, flight, renew)
    answer: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Call:
                answer = await _acall(plan, site, flight)
            else:
                answer = await _aperform(plan, site, command)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
    finally:
        steps.close()


async def _acall(plan: Plan, site: Site, flight: Flight) -> Outcome:
    token = inside.set(flight)
    started = time.perf_counter()
    try:
        outcome = Outcome(await plan.function(*site.args, **site.kwargs))
        plan.counters.loaded(time.perf_counter() - started)
    except BaseException as error:  # noqa: BLE001 - as in _call
        outcome = Failure(error)
    finally:
        inside.reset(token)
    return outcome


async def _await(flight: TaskFlight, limit: float | None) -> Any:
    if not flight.enter():
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


def _perform(plan: Plan, site: Site, command: aside.StoreCommand) -> Any:
    space = site.space
    try:
        if type(command) is Read:
            return space.read(site.key)
        if type(command) is Take:
            return space.take(site.key, site.tags, command.renew)
        if type(command) is Fill:
            return space.fill(site.key, command.lease, command.value, command.ttl, site.tags)
        return space.release(site.key, command.lease, command.remove)
    except Exception as error:  # noqa: BLE001 - whatever a store raises, the call goes on
        return _failed(plan, command, error)


async def _aperform(plan: Plan, site: Site, command: aside.StoreCommand) -> Any:
    space = site.space
    if space.local:
        return _perform(plan, site, command)
    try:
        if type(command) is Read:
            return await space.aread(site.key)
        if type(command) is Take:
            return await space.atake(site.key, site.tags, command.renew)
        if type(command) is Fill:
            return await space.afill(site.key, command.lease, command.value, command.ttl, site.tags)
        return await space.arelease(site.key, command.lease, command.remove)
    except Exception as error:  # noqa: BLE001 - as in _perform
        return _failed(plan, command, error)


def _failed(plan: Plan, command: aside.StoreCommand, error: Exception) -> Any:
    kind = type(command).__name__.lower()
    plan.counters.error(kind, error, "the store failed, and the call goes on without it")
    return ABSENT if type(command) in (Read, Take) else None
