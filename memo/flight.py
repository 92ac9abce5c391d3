"""Who waits for whom: one load per key at a time, without a wait that cannot end; this module never loads anything.

A `Flight` is one load in progress. Whoever finds its key absent either starts one or waits for the one that is there.
What waiters hold is only a wake-up; the outcome stays on the flight, so that no exception is ever "never retrieved"
and a waiter that leaves takes nothing away.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from threading import get_ident as _get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from .entry import MISSING, Reading
from .errors import RecursiveLoadError
from .forks import LOCKED, fork_safe_lock, in_child

if TYPE_CHECKING:
    import asyncio

__all__ = ["STARTED", "Failure", "Flight", "Found", "Outcome", "Stale", "TaskFlight", "collecting", "inside", "phase"]

inside: ContextVar[Flight | None] = ContextVar("memo_inside", default=None)
"""The innermost load that the current code runs within; with `Flight.parent` a chain of all of them."""

STARTED: Final = "a"
"""In `phase` while the garbage collector runs, in whatever thread."""

# The letters of the collector's last callback, "start" or "stop", the arguments of the last one of each, and the same
# in each thread: written by methods in C, since a Ctrl-C that arrives in a callback in Python is lost.
phase: set[str] = set()
_phases: dict[str, object] = {}
_here = threading.local()


def collecting() -> bool:
    """Return whether the garbage collector runs in this thread: a finalizer's call must not set `inside`.

    Up to Python 3.11 a collection may begin in the middle of setting any context variable (python/cpython#148891):

    1. `ContextVar.set`, anyone's, begins to copy the context's table   2. the collector runs, and a finalizer calls a
    cached function   3. `inside.set` there replaces the table and frees it   4. the first one reads what is freed: a
    crash

    Later Pythons run the collector between two bytecodes only, and nothing is noted there.
    """
    return STARTED in phase and getattr(_here, "start", None) is _phases["start"]


# The first one empties the set: no letter is a key of the second argument.
_NOTES: tuple[Any, ...] = (phase.intersection_update, phase.update, _phases.__setitem__, partial(setattr, _here))
gc.callbacks.extend(_NOTES if sys.version_info < (3, 12) else ())

# Guards every flight's `waiting`, `abandoned` and `origins`; without a GIL also the removal of a flight from its table
# and its exchange for another, which else are one step each.
# Never held while anything waits or while user code runs; re-entrant, because a signal handler may call a cached
# function between two bytecodes of ours.
_lock = fork_safe_lock()

# Its one value is replaced in a forked child: a flight of another process image has no leader here.
_process = {"image": object()}


class Outcome(msgspec.Struct, eq=False):
    """How a load ended, as a value."""

    error: ClassVar[BaseException | None] = None
    private: ClassVar[bool] = False
    """Whether it is the leader's alone: waiters do not inherit it but look again."""

    value: Any

    def result(self) -> Any:
        """Return the value, or raise the error."""
        return self.value


class Found(Outcome, eq=False):
    """The outcome of a leader whose second look found a value, so that it has not loaded at all.

    1. the leader looks and finds the value   2. it is invalidated   3. a caller comes, and joins since no load has
    begun. It must not be given what was there before it came; if that still stands, it finds it by itself.
    """

    private: ClassVar[bool] = True


class Stale(Outcome, eq=False):
    """The outcome of a leader that was served an older result in the place of an error."""


class Failure(Outcome, eq=False, kw_only=True):
    """The outcome of a load that raised: the error, with the traceback that it had when it left the load."""

    error: BaseException  # type: ignore[misc]  # of the instance here, and of the class there
    private: bool  # type: ignore[misc]  # likewise of the instance: an error may be its own fate or everyone's
    traceback: TracebackType | None
    context: BaseException | None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the outcome for an error that the driver has caught."""
        return cls(
            MISSING,
            error=error,
            private=not isinstance(error, Exception),  # it was interrupted or cancelled: its own fate
            # The first link is the driver's own frame: what the user debugs begins behind it.
            traceback=error.__traceback__.tb_next if error.__traceback__ is not None else None,
            context=error.__context__,
        )

    def result(self) -> Any:
        """Raise the error, which grows neither in traceback nor in context however often that is done."""
        error = self.error
        try:
            raise error.with_traceback(self.traceback)
        finally:
            error.__context__ = self.context
            del error, self  # a traceback holds this frame: without this, frame and error would hold each other


class Flight(msgspec.Struct, eq=False, weakref=True):
    """One call on its way, and the load in progress that it becomes if it leads.

    Every caller that does not hit has one. It is registered, so that others can join it, when it stands at its key in
    `space.flights`; `dict.setdefault` registers it, in one step in C, where there was none.
    """

    loop: ClassVar[asyncio.AbstractEventLoop | None] = None
    """The event loop of the task that loads; None: a thread does."""

    space: Any  # where the call's entry lives; `space.flights` is the table of this flight
    key: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tags: tuple[str, ...]
    parent: Flight | None
    lease: Any = None
    begun: bool = False  # True: `lease` is what the load has; written by the leader alone, `lease` first
    took: float = 0.0  # seconds that the function ran, once it has
    outcome: Outcome | None = None  # written once, by `settle`, before it wakes anyone
    process: object = msgspec.field(default_factory=partial(_process.get, "image"))
    thread: int = msgspec.field(default_factory=_get_ident)
    wakers: list[Callable[[], object]] = []  # appended to before `outcome` is looked at
    origins: tuple[Flight, ...] = ()  # flights whose loads wait for this one; guarded by _lock

    def replace(self, other: Flight) -> bool:
        """Put this flight in the place of `other`; False if `other` no longer stands there."""
        with _lock:
            flights, key = self.space.flights, self.key
            if key in flights and flights[key] is other:  # no call, as in `settle`
                flights[key] = self
                return True
            return False

    def register(self) -> bool:
        """Put this flight at its key if there is none that lives; return whether it stands there."""
        other = self.space.flights.setdefault(self.key, self)
        return other is self or (other.dead() and self.replace(other))

    def supersede(self) -> None:
        """Put this flight in the place of whatever stands there: a refresh joins nobody."""
        with _lock:
            self.space.flights[self.key] = self

    def may_join(self, reading: Reading) -> bool:
        """Whether a caller with that reading may have this flight's result.

        It may if the load has not begun, or if it has the lease that the caller's own read saw: then nothing touched
        the key between the two. A load that an invalidation has doomed has another one:

        1. A reads, finds nothing, takes lease 1, begins its load   2. the source changes, the key is invalidated
        3. B reads and sees no lease 1   4. B joins A and is given the old value   <- what this prevents
        """
        # `begun` before `lease`: the leader writes them in the other order.
        return not self.dead() and (not self.begun or self.lease == reading.lease)

    def dead(self) -> bool:
        """Whether nobody will ever settle this flight: it is another process's."""
        return self.process is not _process["image"]

    def settle(self, outcome: Outcome) -> None:
        """Free the key, then tell everyone; further calls change nothing.

        The outcome is written before the wakers are looked at, and a waiter adds its waker before it looks at the
        outcome, so one of the two always sees the other:

        1. waiter appends its waker            1. leader writes the outcome
        2. leader writes the outcome     or    2. leader finds no waker
        3. leader wakes it                     3. waiter appends its waker, sees the outcome, does not sleep
        """
        flights, key, wakers = self.space.flights, self.key, self.wakers
        if LOCKED:
            with _lock:
                if flights.get(key) is self:
                    del flights[key]
        elif key in flights and flights[key] is self:  # no call from here on, and so one step for other threads
            del flights[key]
        if self.outcome is None:
            self.outcome = outcome
        if wakers:
            # None is taken away before it was called: an interruption in between would lose it.
            for wake in tuple(wakers):
                try:
                    wake()
                except RuntimeError:  # noqa: PERF203 - it was called before an interruption of the first attempt
                    pass
            wakers.clear()

    def wait_from(self, origin: Flight | None, name: str) -> None:
        """Note that a load within `origin` is about to wait for this flight; taken back by `done_waiting`.

        The flights that cannot end before the caller goes on are its own chain, and the chain of whoever waits for
        one of those, and so on. If this flight is among them, the wait would never end.

        Raises:
            RecursiveLoadError: the wait closes a cycle.
        """
        if origin is None:
            return
        with _lock:
            held: set[Flight] = set()
            todo = [origin]
            while todo:
                link: Flight | None = todo.pop()
                # A settled flight ends the chain: what still runs within it is a task that nobody waits for.
                while link is not None and link.outcome is None and link not in held:
                    held.add(link)
                    todo.extend(link.origins)
                    link = link.parent
            if self in held:
                raise RecursiveLoadError(
                    f"{name}: this call waits for its own result: its load leads back to a call of the same key"
                )
            self.origins = (*self.origins, origin)

    def done_waiting(self, origin: Flight | None) -> None:
        """Take back `wait_from`."""
        if origin is not None:
            with _lock:
                left = list(self.origins)
                left.remove(origin)
                self.origins = tuple(left)


class TaskFlight(Flight, eq=False, kw_only=True):
    """A flight whose load runs in a task of an event loop; it lives as long as someone awaits it."""

    loop: asyncio.AbstractEventLoop  # type: ignore[misc]  # of the instance here, and of the class there
    task: asyncio.Task[None] | None = None
    # Tasks that await the outcome, from the start the one whose call it is: were it counted only when it awaits,
    # one that joins from another loop and leaves at once would be the last. Guarded by _lock.
    waiting: int = 1
    abandoned: bool = False  # nobody awaits it any more; guarded by _lock

    def dead(self) -> bool:
        """Whether nobody will ever settle this flight: its process or its event loop is gone."""
        return super().dead() or self.loop.is_closed() or not self.loop.is_running()

    def enter(self) -> bool:
        """Count a task that is going to await this flight; False: it was abandoned and its load is being cancelled."""
        with _lock:
            if not self.abandoned:
                self.waiting += 1
            return not self.abandoned

    def leave(self) -> None:
        """Take back `enter`; when the last one leaves before the outcome, cancel the load.

        1. the key is freed   2. the load is cancelled. In the other order a caller that came in between would join
        a load that is about to die.
        """
        with _lock:
            self.waiting -= 1
            if self.waiting or self.outcome is not None:
                return
            self.abandoned = True
            flights, key = self.space.flights, self.key
            if key in flights and flights[key] is self:  # no call, as in `settle`
                del flights[key]
        if self.task is None or self.loop.is_closed():
            return
        if self.thread == _get_ident():
            self.task.cancel()
        else:
            self.loop.call_soon_threadsafe(self.task.cancel)


def _child() -> None:
    _process["image"] = object()
    phase.clear()  # if a collection ran, it was elsewhere


in_child(_child)
