"""What a process knows of a client that somebody hands in, and of its keys; this module gives it one command: DEL.

Redis holds no lease: leases and loads in progress are of this process and of one client. All that is known of a key
stands on its seat, which is there while some call is at that key. What one process promises of it:

1. A's load begins, with the seat's lease   2. the source changes   3. B invalidates: it takes the lease away, then DEL
4. A's load ends, and finds its lease gone: no SET

1. A's load has ended, and its SET is on the way   2. the source changes   3. B takes the lease away, and waits until
that SET is over, then DEL

1. C's GET finds nothing   2. A's SET, and A's flight is over   3. C finds no flight, and would load again what has just
been loaded: but the seat has A's value, and C has noted, before its GET, how many had landed there
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from threading import get_ident
from typing import Any, Final

from .entry import MISSING, Lease
from .flight import Flight
from .forks import fork_safe_lock, in_child

__all__ = ["Desk", "Filling", "Seat", "asettle", "desk_of", "guarded", "settle"]

POLL: Final = 0.25
"""Seconds after which one who waits for another event loop's SET looks whether that loop still runs."""

guarded: Final = fork_safe_lock()
"""Guards every seat's fields, the tables of seats, and what ledgers count; never held while a client is used."""


class Filling:
    """A SET on its way: whoever invalidates its key waits until it is over."""

    __slots__ = ("loop", "over", "overtaken", "thread", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.loop = loop
        self.thread = get_ident()
        self.overtaken = False  # written by the thread of the SET alone: an invalidation came in its midst
        self.over = False
        self.waiters: list[Future[None]] = []  # appended to before `over` is looked at, and read after it is written

    def wait(self) -> Future[None]:
        """Return what is done when this is over, or is already."""
        waiter: Future[None] = Future()
        self.waiters.append(waiter)
        return waiter

    def end(self) -> None:
        """Wake everyone who waits, after `over` was written."""
        for waiter in self.waiters:
            waiter.set_result(None)

    def pending(self) -> bool:
        """Whether it is not over, and somebody is going to say so: its event loop is not gone."""
        return not self.over and (self.loop is None or (self.loop.is_running() and not self.loop.is_closed()))


class Seat:
    """What calls at one key have in common while there are any; guarded by `guarded`."""

    __slots__ = ("calls", "filling", "landed", "lease", "value")

    def __init__(self) -> None:
        self.calls = 0  # that are at the key, and SETs on their way there; with the last one the seat goes
        self.lease: Lease | None = None  # that of the load in progress; an invalidation takes it away
        self.filling: Filling | None = None  # None: no SET is on its way
        self.landed = 0  # loads that have ended with their lease
        self.value: Any = MISSING  # of the last one, unless it was invalidated; only for calls that began before it


class Desk:
    """What this process knows of one client."""

    __slots__ = ("__weakref__", "flights", "seats")

    def __init__(self) -> None:
        self.flights: dict[str, Flight] = {}  # the loads in progress, by key as Redis has it
        self.seats: dict[str, Seat] = {}

    def enter(self, key: str) -> Seat:
        """Return the seat of a key, for a call that is going to `leave` it."""
        with guarded:
            seat = self.seats.get(key)
            if seat is None:
                self.seats[key] = seat = Seat()
            seat.calls += 1
            return seat

    def leave(self, key: str, seat: Seat) -> None:
        """Take back `enter`."""
        with guarded:
            seat.calls -= 1
            if not seat.calls and self.seats.get(key) is seat:
                del self.seats[key]

    def void(self, key: str | None = None) -> list[Filling]:
        """Let no load that has begun fill a key, None: any key; return the SETs that are on their way.

        Those are to be waited for before DEL.
        """
        with guarded:
            found = list(self.seats.values()) if key is None else [self.seats.get(key)]
            fillings = []
            for seat in found:
                if seat is not None:
                    seat.lease = None
                    seat.value = MISSING
                    if seat.filling is not None:
                        fillings.append(seat.filling)
            return fillings

    def invalidate(self, client: Any, key: str) -> bool:
        """Void the loads of a key, then DEL; return whether there was anything."""
        settle(self.void(key))
        return bool(client.delete(key))

    async def ainvalidate(self, client: Any, key: str) -> bool:
        """Do what `invalidate` does, awaited."""
        await asettle(self.void(key))
        answer = client.delete(key)
        # A stand-in made by AsyncMock(spec=...) may answer at once.
        return bool(await answer if hasattr(answer, "__await__") else answer)


def settle(fillings: Sequence[Filling]) -> None:
    """Wait until those SETs are over."""
    for filling in fillings:
        if filling.thread == get_ident():
            # In the midst of this thread's own SET: a signal handler or a finalizer. It cannot wait, so the SET is
            # followed by a DEL.
            filling.overtaken = True
            continue
        over = filling.wait()
        while filling.pending():
            wait_for([over], timeout=POLL)


async def asettle(fillings: Sequence[Filling]) -> None:
    """Do what `settle` does, awaited."""
    for filling in fillings:
        over = asyncio.wrap_future(filling.wait())
        while filling.pending():
            await asyncio.wait([over], timeout=POLL)


# By the client's id; its death takes it out before another object can have that id.
_desks: dict[int, tuple[weakref.ref[Any], Desk]] = {}


def desk_of(client: Any) -> Desk:
    """Return the desk of a client; one that cannot be weakly referenced has a new one for each that asks."""
    ident = id(client)
    found = _desks.get(ident)
    if found is None:
        try:
            death = weakref.ref(client, partial(_desks.pop, ident))
        except TypeError:
            return Desk()
        found = _desks.setdefault(ident, (death, Desk()))
    return found[1]


def _child() -> None:
    for _, desk in list(_desks.values()):
        desk.seats.clear()  # a SET on its way is the parent's


in_child(_child)
