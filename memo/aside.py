"""The cache-aside algorithm, once, without I/O: generators that yield what is to be done; this module does none of it.

The lookup, told as a story:

1. Read. What is fresh is served; what is stale but inside its window is served too, and refreshed behind the caller's
   back, one refresh for each key; likewise what is fresh and due for an early refresh.
2. Absent: join the flight for this key if its load has not begun, or if its lease is the one that this caller's own
   read saw; if unsure read once more; otherwise start a new flight in its place. Whoever joined waits for the outcome.
3. Whoever started it takes a lease and looks once more, since another flight may have just landed:

   a. A reads, finds nothing   b. B's load fills the key, B's flight settles and is gone   c. A finds no flight and
   starts one. Without the second look A would load again what is already there.

4. The function is called.
5. The policy says whether the result is kept. The store refuses it if the lease was voided in the meantime.
6. The flight settles, whatever happened, and everyone returns. Where the function raised, each of them looks once more:
   what is still kept for this case is served in the place of the error, unless it was invalidated meanwhile.

A user's error is never raised in here: it arrives and leaves as an `Outcome`, since a StopIteration thrown into a
generator would come out as a RuntimeError. What a driver is asked to do is one of the small commands below.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final, final

import msgspec

from .entry import ABSENT, MISSING, UNREAD, Lease, Reading
from .flight import Failure, Flight, Found, Outcome, Stale
from .policy import NotKept, Policy
from .stats import FunctionCounters

__all__ = [
    "BEHIND",
    "CALL",
    "GONE",
    "LOOK",
    "READ",
    "RENEW",
    "TAKE",
    "TIMED_OUT",
    "Behind",
    "Call",
    "Fill",
    "Load",
    "Pause",
    "Plan",
    "Read",
    "Release",
    "StoreCommand",
    "Take",
    "Wait",
    "behind",
    "load",
    "lookup",
    "refresh",
]


@dataclass(frozen=True)
class Plan:
    """What the algorithm knows of one decorated function."""

    name: str
    function: Callable[..., Any]
    policy: Policy
    counters: FunctionCounters
    single_flight: bool
    wait_timeout: float | None
    fleet: bool = False


@final
class Read:
    """Read the key; the answer is a Reading."""

    __slots__ = ("leads",)

    def __init__(self, leads: bool) -> None:
        self.leads = leads  # whoever reads is going to load if there is nothing


@final
class Take:
    """Read the key and take the lease that stands there, a new one if none does; the answer is a Reading."""

    __slots__ = ("renew",)

    def __init__(self, renew: bool) -> None:
        self.renew = renew  # take a new lease even if a value or another lease is there, and void that


@final
class Call:
    """Call the user's function; the answer is an Outcome."""


@final
class Fill(msgspec.Struct, eq=False):
    """Store a value if the lease still stands; the answer is whether it did, or None if the store failed."""

    lease: Any
    value: Any
    ttl: Any


@final
class Release:
    """Give back a lease that is not going to be used; the answer is ignored."""

    __slots__ = ("lease", "remove")

    def __init__(self, lease: Any, remove: bool) -> None:
        self.lease = lease
        self.remove = remove  # also remove the value that the result would have replaced


@final
class Behind:
    """Refresh the key behind the caller's back, if nobody does already; the answer is ignored."""


@final
class Load:
    """Perform `load` for the caller; the answer is its Outcome."""

    __slots__ = ("joinable", "lease")

    def __init__(self, joinable: bool, lease: Any = None) -> None:
        self.joinable = joinable  # the caller's flight is registered, and others may be waiting for it
        self.lease = lease  # as for `load`


@final
class Pause:
    """Wait some seconds, for what another process does; the answer is ignored."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


@final
class Wait:
    """Wait for a flight; the answer is its Outcome, TIMED_OUT or GONE."""

    __slots__ = ("flight",)

    def __init__(self, flight: Flight) -> None:
        self.flight = flight


READ: Final = Read(leads=True)
LOOK: Final = Read(leads=False)
TAKE: Final = Take(renew=False)
RENEW: Final = Take(renew=True)
CALL: Final = Call()
BEHIND: Final = Behind()

TIMED_OUT: Final = object()
"""The answer to Wait when the limit is over or the wait could never end: load without waiting."""

GONE: Final = object()
"""The answer to Wait when the flight will not land: look again."""

_ONE_SHOT: Final = frozenset({CoroutineType, GeneratorType, AsyncGeneratorType})

FIRST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 0.2
"""Seconds between two looks whether another process has finished its load."""

LONGEST_LEAD: Final = 30.0
"""Seconds for which one load of another process is waited for, where `wait_timeout` says nothing."""

StoreCommand = Read | Take | Fill | Release
Command = StoreCommand | Call | Load | Wait | Behind | Pause
Perform = Callable[[Plan, Flight, StoreCommand], Any]


def lookup(
    plan: Plan, mine: Flight, first: Reading | None, inline: bool, perform: Perform | None = None
) -> Generator[Command, Any, Outcome]:
    """Look one call up; return its outcome.

    Args:
        plan: of the decorated function.
        mine: the call; the driver settles it.
        first: the first read, if it has been made already and has found no value.
        inline: the caller itself performs its load; False: a Load command asks for it, so that the load can outlive
            the caller.
        perform: as for `load`.
    """
    if first is not None:
        # Before the flight is registered: where there is room for this call, there is room for those that free the key.
        plan.counters.misses.tick()
    # Nearly every miss: nothing is there and nobody is loading. The rest would come to the same.
    likely = inline and first is ABSENT and plan.single_flight
    if likely and mine.space.flights.setdefault(mine.key, mine) is mine:
        return load(plan, mine, renew=False, perform=perform)
    return _lookup(plan, mine, first, inline)


def _lookup(plan: Plan, mine: Flight, first: Reading | None, inline: bool) -> Generator[Command, Any, Outcome]:
    reading: Reading
    if first is not None:
        reading = first
    else:
        reading = yield READ
        if reading.value is not MISSING:
            plan.counters.hits.tick()
            return (yield from _served(plan, reading))
        plan.counters.misses.tick()
    doubted: Flight | None = None
    joinable, over = plan.single_flight, False
    space = mine.space
    flights = space.flights
    while joinable:
        flight: Flight = flights.setdefault(mine.key, mine)
        if flight is mine:
            break
        if reading.taken:
            mine.lease = reading.lease  # if it still stands, it is to be given back as this caller's own
            if plan.fleet:
                # If that flight has not begun, it waits for this very lease as for another process's.
                if mine.replace(flight):
                    break
                continue
        if flight.may_join(reading):
            answer = yield Wait(flight)
            if answer is TIMED_OUT:
                joinable, over = False, True
                break
            if mine.lease is not None:
                # The flight may have been the first to see this caller's lease, and have loaded with it. If it has not
                # filled the key, nobody else gives the lease back.
                yield Release(mine.lease, remove=False)
                mine.lease = None
            # A leader that was interrupted or cancelled leaves no outcome for others: they elect a new one.
            if answer is not GONE and not answer.private:
                return (yield from _rescued(plan, answer))
        elif (flight is doubted or (reading is UNREAD and not space.asks_again)) and mine.replace(flight):
            break
        else:
            # The read may be older than the flight's lease, also where it has made one itself that is gone by now: only
            # one made after the flight was seen can tell.
            doubted = flight
        reading = yield READ
        if reading.value is not MISSING:
            return (yield from _served(plan, reading))
    # Where the read itself has made the lease there was nothing, and if nobody has borrowed it nobody has landed with
    # it. And who has waited as long as he may does not begin to wait for other processes.
    lease = None
    if reading is UNREAD and not space.asks_again:
        lease = reading.lease  # one call waits for one deadline
    elif plan.fleet:
        lease = reading.lease if reading.taken or over else None
    elif reading.taken:
        if space.alone(reading.lease):
            lease = reading.lease
        else:
            mine.lease = reading.lease  # as above
    outcome: Outcome = (yield from load(plan, mine, False, None, lease)) if inline else (yield Load(joinable, lease))
    return (yield from _rescued(plan, outcome))


def _served(plan: Plan, reading: Reading) -> Generator[Command, Any, Outcome]:
    """Serve what was read; refresh it if that is due."""
    if reading.due:
        if reading.late:
            plan.counters.stale.tick()
        yield BEHIND
    return Outcome(reading.value)


def _rescued(plan: Plan, outcome: Outcome) -> Generator[Command, Any, Outcome]:
    """Return the outcome of a load, or in the place of an error what is kept for that case.

    It is read only now: a key that was invalidated during the load has nothing left to serve.
    """
    error = outcome.error
    if type(outcome) is Stale:
        plan.counters.stale.tick()  # for one who joined; the leader has counted itself
    if error is None or outcome.private or not plan.policy.kept:
        return outcome
    reading: Reading = yield LOOK
    value = reading.stale if reading.value is MISSING else reading.value
    if value is MISSING:
        return outcome
    plan.counters.stale.tick()
    plan.counters.error("load", error, "the function raised, and an older result is served in its place")
    return Stale(value)


def refresh(plan: Plan, mine: Flight) -> Generator[Command, Any, Outcome]:
    """Load one call whatever is there, in the place of a flight that may be there; return its outcome."""
    if plan.single_flight:
        mine.supersede()
    return (yield from load(plan, mine, renew=True))


def behind(plan: Plan, flight: Flight) -> Generator[Command, Any, Outcome]:
    """Refresh one key that somebody was served from, unless somebody else is loading it; return the outcome."""
    if not flight.register():
        return Found(MISSING)
    return (yield from load(plan, flight, renew=False))


def load(
    plan: Plan, flight: Flight, renew: bool, perform: Perform | None = None, lease: Any = None
) -> Generator[Command, Any, Outcome]:
    """Load one key; return the outcome.

    Args:
        plan: of the decorated function.
        flight: the call; the lease that its load has begun with is written on it.
        renew: load even if there is a value, and let no load that began earlier fill the key.
        perform: how the driver performs a Take or a Fill, if it need not suspend for that; None: they are yielded.
        lease: one that the caller's read has made, or UNREAD's if that failed; None: it is taken here.
    """
    if lease is None:
        take = RENEW if renew else TAKE
        reading: Reading | Lease = (yield take) if perform is None else perform(plan, flight, take)
        if plan.fleet and not renew:
            reading = yield from _led_elsewhere(plan, reading)
        if reading.value is not MISSING:
            return Found(reading.value)
        lease = reading if type(reading) is Lease else reading.lease
    # The lease before `begun`: a caller that reads them the other way round never sees a load without its lease.
    if flight.lease is not None and flight.lease == lease:
        lease = flight.lease  # the caller's own, as the lookup has noted
    flight.lease = lease
    flight.begun = True
    if lease is UNREAD.lease:
        lease = None
    outcome: Outcome = yield CALL
    counters, value = plan.counters, outcome.value
    if outcome.error is None and type(value) in _ONE_SHOT:
        outcome = Failure.of(_one_shot(plan.name, value))
    if outcome.error is not None:
        if lease is not None:
            yield Release(lease, remove=False)
        return outcome
    try:
        ttl = plan.policy.judge(value)
    except Exception as error:  # noqa: BLE001 - the result is there, whatever the user's callable does
        counters.error("policy", error, "the result is returned and not stored: mend the callable given as option")
        ttl = NotKept("error")
    if type(ttl) is NotKept:
        counters.uncached(ttl.reason)
        if lease is not None:
            yield Release(lease, remove=True)
    elif lease is not None:
        if not plan.policy.plain:
            ttl = plan.policy.life(ttl, flight.space.default_ttl, flight.took)
        fill = Fill(lease, value, ttl)
        stored: bool | None = (yield fill) if perform is None else perform(plan, flight, fill)
        if stored is None:
            yield Release(lease, remove=False)
        elif not stored:
            counters.refused.tick()
    return outcome


def _led_elsewhere(plan: Plan, reading: Any) -> Generator[Command, Any, Any]:
    """Wait while another process loads the key; return the reading with which to go on.

    It is not told when that process is done, so it looks, ever less often. For one and the same load it does not wait
    for ever: its process may have been killed. With what then stands there it loads by itself.
    """
    pause, limit = FIRST_PAUSE, plan.wait_timeout
    waited = waited_for_this = 0.0
    if type(reading) is Reading and reading.held:
        plan.counters.waits.tick()
    while type(reading) is Reading and reading.held and waited_for_this < LONGEST_LEAD:
        if limit is not None:
            if waited >= limit:
                break
            pause = min(pause, limit - waited)
        yield Pause(pause)
        lease = reading.lease
        reading = yield TAKE
        waited, waited_for_this = waited + pause, waited_for_this + pause if reading.lease == lease else 0.0
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return reading


def _one_shot(name: str, value: Any) -> TypeError:
    if isinstance(value, CoroutineType):
        value.close()  # else Python warns that it was never awaited
    return TypeError(
        f"{name} returned a {type(value).__name__}, which can be used only once and so cannot be cached: "
        f"return a list, or decorate an `async def`"
    )
