"""A store that fails, delays and corrupts on demand, around one that does not; it never waits longer than it is told.

What may go wrong is an operation: a method of the store, or of the part that a decorated function has in it. Both
sides, blocking and awaited, meet the same faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections import Counter as Tally
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from ..clock import seconds
from ..entry import DEFAULT, MISSING, Lease, Reading
from ..errors import OptionError, StoreError
from ..forks import fork_safe_lock
from ..keys import CallKeys
from ..stats import Counter, StoreStats
from ..stores.base import Space, Store, Ttl
from .clock import ManualClock

__all__ = ["FaultyStore"]

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which an event that was given as a gate counts as forgotten: a net under a test that would hang."""

_OF_FUNCTIONS = ("read", "take", "fill", "release", "put", "remove", "remove_all", "peek", "left")
_OF_STORES = (
    *("get", "set", "delete", "exists", "increment", "keys", "delete_pattern", "get_many", "set_many", "delete_many"),
    *("ttl", "expire", "clear", "invalidate_tags", "stats", "close"),
)
_READS = ("get", "get_many", "read", "take", "peek")


_FAIL, _DELAY, _CORRUPT = "fail", "delay", "corrupt"


class _Fault:
    """What is to go wrong, at which operations, and how often still."""

    def __init__(self, kind: str, what: Any, operations: tuple[str, ...], times: Any, after: bool = False) -> None:
        if times is not None and (type(times) is not int or times < 1):
            raise OptionError(f"times={times!r}: allowed are an int of at least 1, and None for every time")
        self.kind = kind
        self.what = what  # the error, the gate or the change
        self.operations = set(operations)
        self.left = times
        self.after = after


class _Faults:
    """The faults of one store, and the calls of its operations."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.calls: Tally[str] = Tally()
        self.faults: list[_Fault] = []
        self.lock = fork_safe_lock()  # guards the two above

    def due(self, name: str, after: bool) -> Iterator[_Fault]:
        """Yield what goes wrong with an operation now; one that comes after an error is for the next time."""
        with self.lock:
            found = [each for each in self.faults if each.after is after and name in each.operations]
        for each in found:
            with self.lock:
                if each.left == 0:
                    continue  # another thread has had the last one
                if each.left is not None:
                    each.left -= 1
            yield each

    def steps(self, name: str, args: tuple[Any, ...]) -> Generator[Any, Any, Any]:
        """Yield, one by one, what is to be done for an operation, and return its result.

        That is a method and its arguments, as a tuple, whose result is sent back; an error to raise; or a gate.
        """
        with self.lock:
            self.calls[name] += 1
        changes = []
        for fault in self.due(name, False):
            if fault.kind is _CORRUPT and fault.what is not None:
                changes.append(fault.what)
            else:
                yield self._step(name, fault, args)
        result = yield name, *args
        for change in changes:
            result = _changed(result, change)
        for fault in self.due(name, True):
            yield self._step(name, fault, args)
        return result

    def _step(self, name: str, fault: _Fault, args: tuple[Any, ...]) -> Any:
        if fault.kind is _CORRUPT:  # as stores do with what they cannot decode
            return {"get": "delete", "get_many": "delete_many"}.get(name, "remove"), args[0]
        return StoreError(f"{name} fails on demand") if fault.what is None else fault.what

    # -- the drivers of `steps` --------------------------------------------------------------------------------------

    def perform(self, name: str, target: Any, args: tuple[Any, ...]) -> Any:
        """Perform an operation of `target` and what goes wrong with it."""
        steps = self.steps(name, args)
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, tuple):
                answer = getattr(target, step[0])(*step[1:])
            elif _is_error(step):
                raise step
            else:
                self._pass(name, step)

    async def aperform(self, name: str, target: Any, args: tuple[Any, ...]) -> Any:
        """Do what `perform` does, awaited."""
        steps = self.steps(name, args)
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, tuple):
                answer = await getattr(target, f"a{step[0]}")(*step[1:])
            elif _is_error(step):
                raise step
            else:
                await self._apass(name, step)

    def _pass(self, name: str, gate: Any) -> None:
        if isinstance(gate, float):
            self.clock.advance(gate)
        elif isinstance(gate, threading.Event):
            _opened(name, gate.wait(PATIENCE))
        elif isinstance(gate, asyncio.Event):
            raise OptionError(f"{name}: an asyncio.Event is a gate for awaited operations only; take a threading.Event")
        else:
            answer = gate()
            if inspect.isawaitable(answer):
                if inspect.iscoroutine(answer):
                    answer.close()  # else Python warns, beside the error, that it was never awaited
                raise OptionError(f"{name}: the gate must be awaited, and this operation is not; take a plain function")

    async def _apass(self, name: str, gate: Any) -> None:
        if isinstance(gate, threading.Event):
            _opened(name, await asyncio.to_thread(gate.wait, PATIENCE))
        elif isinstance(gate, asyncio.Event):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(gate.wait(), PATIENCE)
            _opened(name, gate.is_set())
        elif isinstance(gate, float):
            self.clock.advance(gate)
        else:
            answer = gate()
            if inspect.isawaitable(answer):
                await answer


def _opened(name: str, opened: bool) -> None:
    if not opened:
        raise TimeoutError(f"{name}: the event that delay() was given as a gate was not set within {PATIENCE:.0f} s")


def _is_error(step: Any) -> bool:
    return isinstance(step, BaseException) or (isinstance(step, type) and issubclass(step, BaseException))


def _changed(result: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(result, Lease):
        return result
    if isinstance(result, Reading):
        value, stale = [each if each is MISSING else change(each) for each in (result.value, result.stale)]
        return Reading(value, result.lease, result.due, result.late, stale, result.held, result.taken)
    if isinstance(result, dict):
        return {key: change(value) for key, value in result.items()}
    return result if result is MISSING else change(result)


class FaultyStore(Store):
    """Does what `inner` does, except for what it is told to do wrong.

    Operations are named as methods are: those of stores (`get`, `set`, `delete`, ...), and those of decorated
    functions: `read` and `take` (a lookup: the first look, and the second, which takes the lease), `fill` and `release`
    (after the load), `put` (`fn.set`), `remove` (`fn.invalidate`), `remove_all`, `peek` and `left` (`fn.ttl_left`).
    The awaited side meets the faults of the same names. Faults come in the order in which they were asked for.

    Args:
        inner: the store that does the work.
        clock: what `delay` with a duration moves: that of the inner store.

    Attributes:
        inner: as given.
        calls: how often each operation was called, by name; those that failed too.

    >>> from memo import MemoryStore, cache_aside
    >>> faulty = FaultyStore(MemoryStore())
    >>> @cache_aside(store=faulty)
    ... def square(x):
    ...     return x * x
    >>> faulty.fail("read", "take", error=OSError("down"), times=2)
    >>> square(3), square(3), square(3)
    (9, 9, 9)
    >>> square.stats().errors, square.stats().hits
    ({'read': 1, 'take': 1}, 1)
    """

    OPERATIONS = tuple(sorted(_OF_STORES + _OF_FUNCTIONS))
    """The names of all operations."""

    def __init__(self, inner: Store, clock: ManualClock | None = None) -> None:
        if not isinstance(inner, Store):
            raise OptionError(f"inner={inner!r}: allowed is a store, such as MemoryStore()")
        if clock is not None and not callable(getattr(clock, "advance", None)):
            raise OptionError(f"clock={clock!r}: allowed is one with advance(seconds), such as ManualClock()")
        self.inner = inner
        self.shared = inner.shared
        self.fleet = inner.fleet
        self._faults = _Faults(clock)
        self._spaces: list[_FaultySpace] = []  # a function that comes back finds its own

    def __repr__(self) -> str:
        return f"FaultyStore({self.inner!r})"

    # -- faults ------------------------------------------------------------------------------------------------------

    @property
    def calls(self) -> Tally[str]:
        """How often each operation was called, by name."""
        with self._faults.lock:
            return self._faults.calls.copy()

    def _checked(self, operations: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
        for name in operations:
            if name not in allowed:
                raise OptionError(f"no operation {name!r}: allowed are {', '.join(sorted(allowed))}")
        return operations or allowed

    def _add(self, fault: _Fault) -> None:
        with self._faults.lock:
            self._faults.faults.append(fault)

    def fail(
        self,
        *operations: str,
        error: BaseException | type[BaseException] | None = None,
        times: int | None = None,
        after: bool = False,
    ) -> None:
        """Let operations raise an error, until `heal`.

        Args:
            operations: their names; none: all.
            error: what they raise; None: a StoreError.
            times: how often, all these operations together; None: every time.
            after: do what is asked, and raise then: as when a reply is lost.

        Raises:
            OptionError: there is no such operation, or an argument is out of range.
        """
        names = self._checked(operations, self.OPERATIONS)
        if error is not None and not _is_error(error):
            raise OptionError(f"error={error!r}: allowed are an exception, a class of exceptions, and None")
        self._add(_Fault(_FAIL, error, names, times, after))

    def delay(self, operation: str, gate: Any, *, times: int | None = None, after: bool = False) -> None:
        """Let an operation pass a gate before it is done, until `heal`.

        Args:
            operation: its name.
            gate: an event (of threading, or for the awaited side of asyncio), which is waited for; a duration, which
                passes on the clock; or a function without arguments, which is called (and awaited on the awaited side,
                if that is what it returns).
            times: how often; None: every time.
            after: do what is asked first, and hold back the answer.

        Raises:
            OptionError: there is no such operation, or an argument is out of range.
        """
        names = self._checked((operation,), self.OPERATIONS)
        if isinstance(gate, (int, float, timedelta)):
            gate = seconds(gate, "gate")
            if self._faults.clock is None:
                raise OptionError(f"gate={gate!r}: on which clock? FaultyStore(MemoryStore(clock=clock), clock=clock)")
        elif _is_error(gate) or not (isinstance(gate, (threading.Event, asyncio.Event)) or callable(gate)):
            raise OptionError(f"gate={gate!r}: allowed are an event, a duration and a function without arguments")
        self._add(_Fault(_DELAY, gate, names, times, after))

    def corrupt(self, *operations: str, change: Callable[[Any], Any] | None = None, times: int | None = None) -> None:
        """Let operations that return values return others, until `heal`.

        Args:
            operations: their names, of `get`, `get_many`, `read`, `take` and `peek`; none: all of these.
            change: makes the value that is returned of the one that is stored; what it raises, the operation raises.
                None: what is stored cannot be decoded, so the store removes it and answers that nothing is there.
            times: how often, all these operations together; None: every time.

        Raises:
            OptionError: there is no such operation, or an argument is out of range.
        """
        names = self._checked(operations, _READS)
        if change is not None and not callable(change):
            raise OptionError(f"change={change!r}: allowed are a function of the value, and None")
        self._add(_Fault(_CORRUPT, change, names, times))

    def heal(self, *operations: str) -> None:
        """Let operations do what they should again; none: all of them."""
        names = self._checked(operations, self.OPERATIONS)
        with self._faults.lock:
            for fault in self._faults.faults:
                fault.operations.difference_update(names)
            self._faults.faults = [fault for fault in self._faults.faults if fault.operations]

    # -- what a store does -------------------------------------------------------------------------------------------

    def _do(self, name: str, *args: Any) -> Any:
        return self._faults.perform(name, self.inner, args)

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        result: T = await self._faults.aperform(method.__name__, self.inner, args)
        return result

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> Space:
        """Return the inner store's space of a function, with the faults in front of it."""
        space = _FaultySpace(self.inner.attach(keys, hits, misses, owner), self._faults)
        self._spaces.append(space)
        return space

    def get(self, key: str, default: Any = None) -> Any:
        """Do what the inner store does, or what goes wrong."""
        value = self._do("get", key, MISSING)
        return default if value is MISSING else value

    async def aget(self, key: str, default: Any = None) -> Any:
        """Do what `get` does, awaited."""
        value = await self._run(self.get, key, MISSING)
        return default if value is MISSING else value

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Do what the inner store does, or what goes wrong."""
        self._do("set", key, value, ttl)

    def delete(self, key: str) -> bool:
        """Do what the inner store does, or what goes wrong."""
        return self._do("delete", key)  # type: ignore[no-any-return]

    def exists(self, key: str) -> bool:
        """Do what the inner store does, or what goes wrong."""
        return self._do("exists", key)  # type: ignore[no-any-return]

    def increment(self, key: str, amount: float = 1) -> Any:
        """Do what the inner store does, or what goes wrong."""
        return self._do("increment", key, amount)

    def keys(self, pattern: str = "*") -> list[str]:
        """Do what the inner store does, or what goes wrong."""
        return self._do("keys", pattern)  # type: ignore[no-any-return]

    def delete_pattern(self, pattern: str) -> int:
        """Do what the inner store does, or what goes wrong."""
        return self._do("delete_pattern", pattern)  # type: ignore[no-any-return]

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Do what the inner store does, or what goes wrong."""
        return self._do("get_many", list(keys))  # type: ignore[no-any-return]

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Do what `get_many` does, awaited."""
        return await self._run(self.get_many, list(keys))

    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Do what the inner store does, or what goes wrong."""
        self._do("set_many", values, ttl)

    def delete_many(self, keys: Iterable[str]) -> int:
        """Do what the inner store does, or what goes wrong."""
        return self._do("delete_many", keys)  # type: ignore[no-any-return]

    def ttl(self, key: str) -> float | None:
        """Do what the inner store does, or what goes wrong."""
        return self._do("ttl", key)  # type: ignore[no-any-return]

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Do what the inner store does, or what goes wrong."""
        return self._do("expire", key, ttl)  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Do what the inner store does, or what goes wrong."""
        self._do("clear")

    def invalidate_tags(self, *tags: str) -> None:
        """Do what the inner store does, or what goes wrong."""
        self._do("invalidate_tags", *tags)

    def stats(self) -> StoreStats:
        """Do what the inner store does, or what goes wrong."""
        return self._do("stats")  # type: ignore[no-any-return]

    def close(self) -> None:
        """Do what the inner store does, or what goes wrong."""
        self._do("close")


class _Looking:
    """The reads of a space for calls that are going to load: what fails, is delayed or corrupted is a read."""

    def __init__(self, inner: Space) -> None:
        self.read, self.aread = inner.look, inner.alook
        self.remove, self.aremove = inner.remove, inner.aremove  # of what cannot be decoded


class _FaultySpace(Space):
    """A function's part of the inner store, with the faults in front of it.

    It is never local, so that an async function goes through the awaited side, where a gate can be waited for.
    """

    def __init__(self, inner: Space, faults: _Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.flights = inner.flights
        self.raw = inner.raw
        self.asks_again = inner.asks_again
        self.default_ttl = inner.default_ttl
        self.instance = inner.instance

    def _do(self, name: str, *args: Any) -> Any:
        return self._faults.perform(name, self._inner, args)

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        if method.__name__ not in _OF_FUNCTIONS:  # several keys at once, which is each of them by itself
            return await asyncio.to_thread(method, *args)
        result: T = await self._faults.aperform(method.__name__, self._inner, args)
        return result

    def read(self, key: Any) -> Reading:
        return self._do("read", key)  # type: ignore[no-any-return]

    def look(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Reading:
        reading: Reading = self._faults.perform("read", _Looking(self._inner), (key, tags, leads))
        return reading

    async def alook(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Reading:
        reading: Reading = await self._faults.aperform("read", _Looking(self._inner), (key, tags, leads))
        return reading

    def alone(self, lease: Any) -> bool:
        return self._inner.alone(lease)

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        return self._do("take", key, tags, renew)  # type: ignore[no-any-return]

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        return self._do("fill", key, lease, value, ttl, tags)  # type: ignore[no-any-return]

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        self._do("release", key, lease, remove)

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        self._do("put", key, value, ttl, tags)

    def remove(self, key: Any) -> bool:
        return self._do("remove", key)  # type: ignore[no-any-return]

    def remove_all(self) -> None:
        self._do("remove_all")

    def peek(self, key: Any) -> Any:
        return self._do("peek", key)

    def left(self, key: Any) -> float | None:
        return self._do("left", key)  # type: ignore[no-any-return]

    def of(self, instance: object) -> Space:
        # Made anew each time: what must be one for each instance, its loads in progress, is the inner space's.
        return _FaultySpace(self._inner.of(instance), self._faults)

    def join(self, hits: Counter, misses: Counter) -> bool:
        return self._inner.join(hits, misses)

    def leave(self) -> None:
        self._inner.leave()
