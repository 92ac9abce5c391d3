"""The cache-aside algorithm at a client that somebody hands in: one GET, and one SET on a miss; it never asks it more.

A `Visit` is what the algorithm takes for a function's part of a store. It keeps its leases at the `desks`, and so its
reads after the first one, which the algorithm makes where it is unsure, ask nobody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import msgspec

from . import drivers
from .aside import Plan
from .clock import seconds
from .desks import Desk, Filling, Seat, guarded
from .entry import ABSENT, DEFAULT, MISSING, Lease, Reading
from .errors import OptionError
from .flight import Flight, TaskFlight, inside
from .policy import Policy
from .stats import Counter, logger

__all__ = [
    "Ledger",
    "Visit",
    "checked_client",
    "checked_source",
    "checked_text",
    "expiry",
    "fetch",
    "fetch_async",
    "found",
]

LINES_APART: Final = 60.0
"""Seconds between two log lines of one kind: an outage must not fill a disk."""

_encode: Final = json.JSONEncoder(allow_nan=False).encode
_decode: Final = msgspec.json.Decoder().decode  # of what it can read it makes the same as `json`, in half the time
_POLICY: Final = Policy(DEFAULT, cache_none=False, cache_if=None, name="the classic interface")


def checked_text(value: object, name: str) -> str:
    """Return `value` if it is text, else raise OptionError."""
    if not isinstance(value, str):
        raise OptionError(f"{name}={value!r}: allowed is text")
    return value


def checked_source(source: object) -> None:
    """Raise OptionError if `source` cannot be called."""
    if not callable(source):
        raise OptionError(f"data_source={source!r}: allowed is a function of the key")


def checked_client(client: object, awaits: bool) -> None:
    """Raise OptionError if `client` is known to be of the other kind: awaited, where it should block, or vice versa."""
    # If it is a client of redis-py, that is imported.
    blocking = getattr(sys.modules.get("redis"), "Redis", ())
    awaiting = getattr(sys.modules.get("redis.asyncio"), "Redis", ())
    if client is None or isinstance(client, blocking if awaits else awaiting):
        allowed = "redis.asyncio.Redis" if awaits else "redis.Redis"
        given = "None" if client is None else f"a {type(client).__module__}.{type(client).__qualname__}"
        raise OptionError(f"redis_client: {given} was given, allowed is a {allowed}")


def expiry(ttl: Any) -> dict[str, int]:
    """Return a ttl as what SET is told of it.

    >>> expiry(60), expiry(0.5)
    ({'ex': 60}, {'px': 500})
    """
    length = seconds(ttl, "ttl")
    return {"ex": int(length)} if length.is_integer() else {"px": max(1, round(length * 1000))}


class Ledger:
    """What is counted and logged of calls.

    Attributes:
        hits: calls answered from Redis.
        misses: calls that asked the data source, or waited for another call that did.
    """

    hits: int
    misses: int

    def __init__(self, name: str, log: Any = None) -> None:
        self.hits = 0
        self.misses = 0
        self._name = name
        self._log = logger if log is None else log
        self._failures: dict[str, tuple[float, int]] = {}  # by kind: when a line was written, failures since then

    def _hit(self) -> None:
        with guarded:
            self.hits += 1

    def _missed(self) -> None:
        with guarded:
            self.misses += 1

    def _fetched(self, took: float) -> None:
        """Hear how many seconds a data source took that has returned."""

    def _fault(self) -> None:
        """Hear that something has failed."""

    def _failed(self, kind: str, error: BaseException, advice: str, level: int = logging.WARNING) -> None:
        """Log a failure, without keys and values; at most one line for each kind and minute."""
        self._fault()
        now = time.monotonic()
        with guarded:
            last, unsaid = self._failures.get(kind, (None, 0))
            silent = last is not None and 0 <= now - last < LINES_APART
            self._failures[kind] = (now if last is None or not silent else last, unsaid + 1 if silent else 0)
        if not silent:
            since = f" ({unsaid} more since the last line)" if unsaid else ""
            try:
                write = self._log.error if level == logging.ERROR else self._log.warning
                write("%s: %s (%s)%s; %s", self._name, kind, type(error).__name__, since, advice)
            except Exception:  # noqa: BLE001, S110 - a logger that fails must not fail the call
                pass


class _Uncounted:
    """What the algorithm takes for a function's counters: it passes failures on, and counts nothing."""

    __slots__ = ("_ledger",)

    hits = misses = waits = refused = stale = refreshes = Counter()
    durations: deque[float] = deque(maxlen=1)

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def uncached(self, reason: str) -> None:
        """Let None not be cached."""

    def error(self, kind: str, error: BaseException, advice: str) -> None:
        """Pass a failure of SET on."""
        self._ledger._failed("write", error, "the result is returned and not cached")


_sets: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks weakly


class Visit:
    """One call at one key: what the algorithm takes for a space of a store.

    Args:
        desk: of the client.
        client: what commands are given to.
        ledger: where the call counts.
        key: as Redis has it.
        expires: what SET is told of the ttl.
        seat: of the key; whoever has entered it leaves it.
        seen: how many loads had landed there before GET.
        down: GET failed, and so there is no SET: what is down is not asked twice in one call.
    """

    __slots__ = ("client", "desk", "down", "expires", "flights", "key", "ledger", "seat", "seen")

    local = False
    default_ttl = None

    def __init__(
        self,
        desk: Desk,
        client: Any,
        ledger: Ledger,
        key: str,
        expires: dict[str, int],
        seat: Seat,
        seen: int,
        down: bool,
    ) -> None:
        self.client = client
        self.ledger = ledger
        self.key = key
        self.expires = expires
        self.desk = desk
        self.flights = desk.flights
        self.seat = seat
        self.seen = seen
        self.down = down

    def load(self, key: str, source: Callable[[str], Any]) -> Any:
        """Return what the data source says of `key`, from this call's load or from one that another has begun."""
        flight = Flight(self, self.key, (key,), {}, (), inside.get())
        try:
            return drivers.run(self._plan(source), flight, ABSENT)
        finally:
            self._note(flight)
            del flight  # an error's traceback holds this frame, which must not hold the error

    async def aload(self, key: str, source: Callable[[str], Awaitable[Any]]) -> Any:
        """Do what `load` does, awaited."""
        loop = asyncio.get_running_loop()
        flight = TaskFlight(self, self.key, (key,), {}, (), inside.get(), loop=loop)
        try:
            return await drivers.lookup_async(self._plan(source), flight, ABSENT)
        finally:
            self._note(flight)
            del flight  # as in load

    def _note(self, flight: Flight) -> None:
        outcome = flight.outcome
        if flight.begun and outcome is not None and outcome.error is None:  # this call's own data source has returned
            self.ledger._fetched(flight.took)

    def _plan(self, source: Callable[[str], Any]) -> Plan:
        return Plan(self.ledger._name, source, _POLICY, cast(Any, _Uncounted(self.ledger)), True, None)

    # -- what the algorithm asks ---------------------------------------------------------------------------------------

    def look(self, key: str, tags: tuple[str, ...], leads: bool = True) -> Reading:
        """Return what has landed since the call began, and the lease that stands there; Redis is not asked again."""
        with guarded:
            seat = self.seat
            return Reading(MISSING if seat.landed == self.seen else seat.value, seat.lease)

    def take(self, key: str, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        """Return what has landed since the call began, or the lease, a new one if there is none."""
        with guarded:
            reading = self.look(key, tags)
            if reading.value is not MISSING:
                return reading
            if self.seat.lease is None:
                self.seat.lease = Lease()
            return self.seat.lease

    def release(self, key: str, lease: Any, remove: bool) -> None:
        """Do nothing: what Redis has at the key is left alone, and the lease will do for the next load."""

    def fill(self, key: str, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """SET the value if the lease still stands; return whether it did, or None if it is not to be stored."""
        payload = self._payload(value)
        if payload is None:
            self._land(lease, value)
            return None
        filling = self._begin(lease, None)
        if filling is None:
            return False
        try:
            self.client.set(key, payload, **self.expires)
        finally:
            self._end(filling, lease, value)
        if filling.overtaken:
            self.client.delete(key)
        return True

    async def alook(self, key: str, tags: tuple[str, ...], leads: bool = True) -> Reading:
        """Do what `look` does."""
        return self.look(key, tags)

    async def atake(self, key: str, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        """Do what `take` does."""
        return self.take(key, tags, renew)

    async def arelease(self, key: str, lease: Any, remove: bool) -> None:
        """Do nothing, as `release`."""

    async def afill(self, key: str, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Do what `fill` does, awaited; a SET that has begun goes on though the load is cancelled.

        Cut off in its midst, it might land after the DEL of an invalidation that came later.
        """
        payload = self._payload(value)
        if payload is None:
            self._land(lease, value)
            return None
        loop = asyncio.get_running_loop()
        filling = self._begin(lease, loop)
        if filling is None:
            return False
        command = self._aset(key, payload)
        try:
            task = loop.create_task(command)
        except BaseException:
            command.close()
            self._end(filling, lease, value)
            raise
        _sets.add(task)
        # Not in the coroutine itself, which a task that is cancelled before its first step never enters.
        task.add_done_callback(partial(self._landed, filling, lease, value))
        error = await asyncio.shield(task)
        if error is not None:
            raise error
        return True

    async def _aset(self, key: str, payload: str) -> Exception | None:
        try:
            answer = self.client.set(key, payload, **self.expires)
            if hasattr(answer, "__await__"):  # a stand-in made by AsyncMock(spec=...) may answer at once
                await answer
        except Exception as error:  # noqa: BLE001 - whoever would hear of it may have been cancelled
            return error
        return None

    def _landed(self, filling: Filling, lease: Any, value: Any, task: asyncio.Task[Any]) -> None:
        _sets.discard(task)
        self._end(filling, lease, value)

    # -- the steps of a fill -------------------------------------------------------------------------------------------

    def _payload(self, value: Any) -> str | None:
        if self.down:
            return None
        try:
            return _encode(value)
        except Exception as error:  # noqa: BLE001 - whatever it is that JSON has no words for
            self.ledger._failed("encode", error, "JSON has no such value: the result is returned and not cached")
            return None

    def _begin(self, lease: Any, loop: asyncio.AbstractEventLoop | None) -> Filling | None:
        with guarded:
            seat = self.seat
            # Its lease is gone; or the seat is, with those of the process that forked this one.
            if seat.lease is not lease or seat.filling is not None or self.desk.seats.get(self.key) is not seat:
                return None
            seat.filling = filling = Filling(loop)
            seat.calls += 1
            return filling

    def _end(self, filling: Filling, lease: Any, value: Any) -> None:
        filling.over = True  # at first, and by no call: a Ctrl-C finds no place to come in before it
        with guarded:
            self.seat.filling = None
            self._land(lease, value)
            self.desk.leave(self.key, self.seat)
        filling.end()

    def _land(self, lease: Any, value: Any) -> None:
        """Let calls that began before, and have found nothing, have the value, if it was not invalidated."""
        with guarded:
            seat = self.seat
            if seat.lease is lease:
                seat.lease = None
                seat.value = value
                seat.landed += 1


def found(ledger: Ledger, payload: Any) -> Any:
    """Return the value in what GET returned, or None if there is none; count a hit or a miss."""
    value = None
    if payload is not None:
        try:
            value = _decode(payload)
        except Exception:  # noqa: BLE001 - NaN, for one
            try:
                value = json.loads(payload)
            except Exception as error:  # noqa: BLE001 - whatever it is that stands there, it is no value
                ledger._failed("decode", error, "what stands at the key is not JSON, and counts as a miss")
    if value is None:
        ledger._missed()
    else:
        ledger._hit()
    return value


def fetch(
    desk: Desk,
    client: Any,
    ledger: Ledger,
    key: str,
    name: str,
    source: Callable[[str], Any],
    expires: dict[str, int],
) -> Any:
    """Return what Redis has, or what the data source says.

    Args:
        desk: of the client.
        client: what commands are given to.
        ledger: where the call counts.
        key: what the data source is asked for.
        name: the key as Redis has it.
        source: the data source.
        expires: what SET is told of the ttl.
    """
    seat = desk.enter(name)
    try:
        seen, down, payload = seat.landed, False, None
        try:
            payload = client.get(name)
        except Exception as error:  # noqa: BLE001 - of whatever class: not all of the client's are RedisErrors
            down = True
            ledger._failed("read", error, "the data source is asked, and its result is not cached")
        value = found(ledger, payload)
        if value is None:
            return Visit(desk, client, ledger, name, expires, seat, seen, down).load(key, source)
        return value
    finally:
        desk.leave(name, seat)


async def fetch_async(
    desk: Desk,
    client: Any,
    ledger: Ledger,
    key: str,
    name: str,
    source: Callable[[str], Awaitable[Any]],
    expires: dict[str, int],
) -> Any:
    """Do what `fetch` does, awaited."""
    seat = desk.enter(name)
    try:
        seen, down, payload = seat.landed, False, None
        try:
            payload = client.get(name)
            if hasattr(payload, "__await__"):  # a stand-in made by AsyncMock(spec=...) may answer at once
                payload = await payload
        except Exception as error:  # noqa: BLE001 - as in fetch
            down, payload = True, None
            ledger._failed("read", error, "the data source is asked, and its result is not cached")
        value = found(ledger, payload)
        if value is None:
            return await Visit(desk, client, ledger, name, expires, seat, seen, down).aload(key, source)
        return value
    finally:
        desk.leave(name, seat)
