"""Runs the algorithm for several ids, blocking or awaiting; like `drivers`, of which it is a part, it decides nothing.

The blocking one does everything in its caller's thread. The awaiting one has the load of a batch run in a task of its
own, which lives as long as somebody awaits any id of it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import Any

from . import aside, aside_many
from .aside import TIMED_OUT, Call, Load, Plan
from .aside_many import Batch, Bulk, Several, answers, chained, weave
from .drivers import _DIED, _await, _died, _forget, _land, _loads
from .entry import UNREAD
from .flight import Failure, Flight, Outcome, TaskFlight, collecting, inside
from .forks import fork_safe_lock
from .stats import FULL

__all__ = ["BatchFlight", "TaskBatch", "run_many", "run_many_async"]

# Guards every TaskBatch's `waiting` and `abandoned`; held for an addition only.
_lock = fork_safe_lock()


def _counted(plan: Plan, flights: list[Any], started: float) -> None:
    """Count a load for each id, with its share of the time: what a hit of one id saves."""
    share = (time.perf_counter() - started) / len(flights)
    plan.counters.durations.extend([share] * len(flights))
    if len(plan.counters.durations) > FULL:
        plan.counters.add_up()


# -- blocking ----------------------------------------------------------------------------------------------------------


def run_many(plan: Plan, batch: Batch, renew: bool) -> dict[Any, Any]:
    """Return the results by id, from the store, from other callers' loads and from one own load.

    Args:
        plan: of the decorated function.
        batch: the call.
        renew: load and store all ids whatever is there, and join nobody's load.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    steps: Any = (aside_many.refresh if renew else aside_many.lookup)(plan, batch, inline=True)
    answer: Any = None
    failure: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Bulk:
                answer = _perform(plan, batch, command)
            else:
                answer = (_call if command.kind is Call else _wait)(plan, batch, command)
    except StopIteration as stop:
        failure = stop.value
    finally:
        batch.settle(_DIED)  # what `weave` has not settled: a KeyboardInterrupt came in between
        steps.close()
    if failure is None:
        return batch.result()
    try:
        return failure.result()  # type: ignore[no-any-return]  # it raises
    finally:
        del batch, steps, failure, answer, command  # the error's traceback holds this frame: no cycle


def _call(plan: Plan, batch: Batch, command: Several) -> list[Outcome]:
    flights = command.flights
    args, kwargs = batch.call([flight.args[0] for flight in flights])
    entered = not collecting()
    try:
        if entered:
            inside.set(chained(flights))
        started = time.perf_counter()
        result = plan.function(*args, **kwargs)
        _counted(plan, flights, started)
        return answers(plan.name, flights, result)
    except BaseException as error:  # noqa: BLE001 - it goes on as a value, raised by `Outcome.result`
        return [Failure.of(error)] * len(flights)
    finally:
        if entered:
            inside.set(batch.origin)
        del batch, command, flights  # an error's traceback leads to this frame, and the flights lead to the error


def _wait(plan: Plan, batch: Batch, command: Several) -> list[Any]:
    """Wait for several flights, one after the other, for `wait_timeout` altogether."""
    limit = plan.wait_timeout
    deadline = 0.0 if limit is None else time.monotonic() + limit
    landed = []
    for each in command.commands:
        left = -1 if limit is None else max(0.0, deadline - time.monotonic())
        landed.append(_wait_for(plan, batch.origin, each.flight, left))
    return landed


def _wait_for(plan: Plan, origin: Flight | None, flight: Flight, left: float) -> Any:
    flight.wait_from(origin, plan.name)
    try:
        if flight.thread == threading.get_ident():
            return TIMED_OUT  # this very thread is to settle it: a signal handler or a finalizer has come in between
        plan.counters.waits.tick()
        wake = threading.Lock()
        wake.acquire()
        flight.wakers.append(wake.release)
        if flight.outcome is None and not wake.acquire(timeout=left):
            _forget(flight, wake.release)
            return TIMED_OUT
        return flight.outcome
    finally:
        flight.done_waiting(origin)


# -- awaiting ----------------------------------------------------------------------------------------------------------


class TaskBatch(Batch):
    """A call for several ids in an event loop; its load lives as long as somebody awaits any id of it.

    The flights of its ids share one task, so they are abandoned together or not at all: were one given up while
    another is awaited, its load would still run, and the next caller would begin a second one.
    """

    __slots__ = ("abandoned", "loading", "loop", "task", "thread", "waiting")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loop = asyncio.get_running_loop()
        self.thread = threading.get_ident()
        self.task: asyncio.Task[None] | None = None  # that of the current load
        self.loading: set[TaskFlight] = set()  # flights that were handed over to a task, which settles them
        self.waiting = 1  # tasks that await something of it, the caller's own from the start; guarded by _lock
        self.abandoned = False  # nobody awaits it any more; guarded by _lock

    def enter(self) -> bool:
        """Count a task that is going to await one of its ids; False: it was abandoned."""
        with _lock:
            if not self.abandoned:
                self.waiting += 1
            return not self.abandoned

    def leave(self) -> None:
        """Take back `enter`; when the last one leaves, free the keys, then cancel the load that may be running."""
        with _lock:
            self.waiting -= 1
            if self.waiting:
                return
            self.abandoned = True
        flights = list(self.flights.values())
        self.flights.clear()  # they hold this: no cycle
        self.loading.clear()
        for flight in flights:
            TaskFlight.leave(flight)
        if self.task is None or self.loop.is_closed():
            return
        if self.thread == threading.get_ident():
            self.task.cancel()
        else:
            self.loop.call_soon_threadsafe(self.task.cancel)


class BatchFlight(TaskFlight, eq=False, kw_only=True):
    """The flight of one id of a batch."""

    batch: TaskBatch

    def enter(self) -> bool:
        """Count a task that is going to await this flight, and so the whole batch."""
        return self.batch.enter()

    def leave(self) -> None:
        """Take back `enter`."""
        self.batch.leave()


async def run_many_async(plan: Plan, batch: TaskBatch, renew: bool) -> dict[Any, Any]:
    """Do what `run_many` does, awaiting: the load runs in a task of its own, so a caller's cancellation is its own.

    Raises:
        BaseException: what the function raised.
        RecursiveLoadError: the call waits for itself.
    """
    steps: Any = (aside_many.refresh if renew else aside_many.lookup)(plan, batch, inline=False)
    answer: Any = None
    failure: Any = None
    found: dict[Any, Any] = {}
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Bulk:
                answer = await _aperform(plan, batch, command)
            elif command.kind is Load:
                answer = await _lead(plan, batch, command)
            else:
                answer = await _await_many(plan, batch, command)
    except StopIteration as stop:
        failure = stop.value
        if failure is None:
            found = batch.result()  # now: the last one who leaves takes the flights away
    finally:
        for flight in list(batch.flights.values()):
            if flight not in batch.loading:
                flight.settle(_DIED)  # it was not handed over to a task, which would settle it
        batch.leave()
        steps.close()
    if failure is None:
        return found
    try:
        return failure.result()  # type: ignore[no-any-return]  # it raises
    finally:
        del batch, steps, failure, answer, command, flight  # as in run_many


async def _lead(plan: Plan, batch: TaskBatch, command: Several) -> list[Any]:
    landed: asyncio.Future[None] = batch.loop.create_future()
    flights = command.flights
    load = _load_task(plan, batch, command)
    try:
        batch.task = asyncio.create_task(load, name=f"memo load: {plan.name}")
    except BaseException:
        load.close()  # else Python warns, beside the error, that it was never awaited
        raise
    batch.loading.update(flights)
    _loads.add(batch.task)
    batch.task.add_done_callback(partial(_landed, flights, landed))
    await landed
    return [flight.outcome for flight in flights]


def _landed(flights: list[Any], landed: asyncio.Future[None], task: asyncio.Task[None]) -> None:
    _loads.discard(task)
    error = None if task.cancelled() else task.exception()  # seen: waiters have it from the flights
    for flight in flights:
        if flight.outcome is None:
            # Cancelled before its first step, or what failed is not the function: at the recursion limit, for one.
            flight.settle(_died() if error is None else Failure.of(error))
    _land(landed)


async def _load_task(plan: Plan, batch: TaskBatch, which: Several) -> None:
    if which.commands:
        pairs = zip(which.flights, which.commands, strict=True)
        loads = {flight: aside.load(plan, flight, False, lease=each.lease) for flight, each in pairs}
    else:  # a refresh
        loads = {flight: aside.refresh(plan, flight) for flight in which.flights}
    steps: Any = weave(loads)
    answer: Any = None
    failure: Any = None
    try:
        while True:
            command = steps.send(answer)
            if type(command) is Bulk:
                answer = await _aperform(plan, batch, command)
            else:
                answer = await _acall(plan, batch, command)
    except StopIteration as stop:
        failure = stop.value
    finally:
        steps.close()
    error = None if failure is None else failure.error
    del batch, which, loads, steps, failure, answer, command  # as in run_many
    try:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error  # the event loop lets these two through, and so stops
    finally:
        del error


async def _acall(plan: Plan, batch: Batch, command: Several) -> list[Outcome]:
    flights = command.flights
    args, kwargs = batch.call([flight.args[0] for flight in flights])
    innermost = chained(flights)
    try:
        inside.set(innermost)
        started = time.perf_counter()
        result = await plan.function(*args, **kwargs)
        _counted(plan, flights, started)
        return answers(plan.name, flights, result)
    except BaseException as error:  # noqa: BLE001 - as in _call
        return [Failure.of(error)] * len(flights)
    finally:
        # If its loop is gone, the collector closes it, in whatever context that comes in.
        if not collecting() and inside.get() is innermost:
            inside.set(batch.origin)
        del batch, command, flights, innermost  # as in _call


async def _await_many(plan: Plan, batch: TaskBatch, command: Several) -> list[Any]:
    """Await several flights, one after the other, for `wait_timeout` altogether."""
    limit, loop = plan.wait_timeout, batch.loop
    deadline = 0.0 if limit is None else loop.time() + limit
    landed = []
    for each in command.commands:
        each.flight.wait_from(batch.origin, plan.name)
        try:
            plan.counters.waits.tick()
            left = None if limit is None else max(0.0, deadline - loop.time())
            landed.append(await _await(each.flight, left))
        finally:
            each.flight.done_waiting(batch.origin)
    return landed


# -- the store: a failure of its own is counted, and the call goes on without it ---------------------------------------


def _perform(plan: Plan, batch: Batch, command: Bulk) -> list[Any]:
    try:
        found = getattr(batch.space, f"{command.verb}_many")(command.items, *command.options)
    except Exception as error:  # noqa: BLE001 - whatever a store raises, the call goes on
        found = [error] * len(command.items)
    return _checked(plan, command, found)


async def _aperform(plan: Plan, batch: Batch, command: Bulk) -> list[Any]:
    if batch.space.local:
        return _perform(plan, batch, command)
    try:
        found = await getattr(batch.space, f"a{command.verb}_many")(command.items, *command.options)
    except Exception as error:  # noqa: BLE001 - as in _perform
        found = [error] * len(command.items)
    return _checked(plan, command, found)


def _checked(plan: Plan, command: Bulk, found: list[Any]) -> list[Any]:
    """Count the errors among the answers, each once however many keys it concerns, and put nothing in their place."""
    errors = {id(each): each for each in found if isinstance(each, Exception)}
    for error in errors.values():
        kind = "read" if command.verb == "look" else command.verb  # as the functions of one id count it
        plan.counters.error(kind, error, "the store failed, and the call goes on without it")
    if not errors:
        return found
    nothing = UNREAD if command.verb in ("look", "take") else None
    return [nothing if isinstance(each, Exception) else each for each in found]
