"""What a store is: the interface for people, and `Space`, a decorated function's part of it; nothing is kept here.

Every method has an async twin with an `a` in front. The twins here run the sync side in a worker thread, which is
right for a store that only knows how to block; a store that does not block, or that can await, writes its own.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from ..clock import seconds
from ..entry import DEFAULT, Default, Lease, Reading
from ..errors import OptionError
from ..flight import Flight
from ..keys import CallKeys
from ..stats import Counter, StoreStats

__all__ = [
    "Duration",
    "Space",
    "Store",
    "Ttl",
    "checked_amount",
    "checked_key",
    "checked_tags",
    "checked_ttl",
    "stores",
]

Duration = float | timedelta
Ttl = Duration | Default | None
T = TypeVar("T")
S = TypeVar("S", bound="Store")


def checked_key(key: object) -> str:
    """Return `key` as plain text (of a subclass, the text), or raise OptionError."""
    if not isinstance(key, str):
        raise OptionError(f"key={key!r}: a store's keys are text; fn.key_for(...) gives that of a decorated call")
    return key if type(key) is str else str.__str__(key)


def checked_tags(tags: Iterable[object]) -> tuple[str, ...]:
    """Return `tags` if all of them are text, else raise OptionError."""
    given = tuple(tags)
    for tag in given:
        if not isinstance(tag, str) or not tag:
            raise OptionError(f"tags={given!r}: a tag is text that is not empty, not {tag!r}")
    return tuple(dict.fromkeys(checked_key(tag) for tag in given))


def checked_amount(amount: Any) -> Any:
    """Return `amount` if it can be added to a number, else raise OptionError."""
    if type(amount) not in (int, float):
        raise OptionError(f"amount={amount!r}: allowed are int and float")
    return amount


def checked_ttl(ttl: object, name: str = "ttl") -> float | None:
    """Return a ttl in seconds, or None for "never expires"; anything out of range raises OptionError."""
    return None if ttl is None else seconds(ttl, name)


class Space(ABC):
    """What one decorated function, or one instance of a method's class, has in a store.

    The algorithm reads and writes only through this. A key is what `CallKeys` makes: text, or a raw tuple where the
    store said `raw`. Every method but `fill` and `release` is also what a helper of the decorated function does.
    """

    __slots__ = ()

    flights: dict[Any, Flight]
    """The loads in progress, by key: private to this space, so that two functions never meet."""

    local: bool = False
    """Whether the sync side never blocks, so that an event loop may call it."""

    asks_again: bool = True
    """Whether a load whose look has failed still tries to take a lease; False where each question has a deadline that
    callers wait for. True lets a load replace what cannot be read."""

    default_ttl: float | None = None
    """The store's, in seconds: what DEFAULT stands for; None: it never expires."""

    raw: bool = False
    """Whether keys may be raw tuples; elsewhere they are text."""

    instance: str | None = None
    """How the instance that this space is of is written in a key's text; None: it is the function's own space."""

    @abstractmethod
    def read(self, key: Any) -> Reading:
        """Return the value at `key` if it may be served, and the lease that stands there if any."""

    def look(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Reading:
        """Do what `read` does for a call of which the tags are known.

        Where the caller leads, that is, loads if there is nothing, a store to which each question is a round trip may
        take the lease at once, and says so in the reading.
        """
        return self.read(key)

    def alone(self, lease: Any) -> bool:
        """Whether no other load of this process can have used a lease that a look has taken; else it looks again.

        It is asked when the caller's flight is registered.
        """
        return False

    @abstractmethod
    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        """Return what `read` does, with a lease where there is no value; `renew`: with a new lease in any case."""

    @abstractmethod
    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store `value` if `lease` still stands at `key`, in one atomic step; return whether it was stored.

        `ttl` is seconds, None, DEFAULT or a `Life`, which has windows beside its ttl. None as the answer says that it
        was not stored for another reason, which the store has counted.
        """

    @abstractmethod
    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Take `lease` away if it still stands, and with `remove` the value at `key` too."""

    @abstractmethod
    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store `value` whatever is there, and void the lease."""

    @abstractmethod
    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and void the lease; return whether there was a value."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove everything in this space, those of instances included, and void all leases."""

    @abstractmethod
    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING; nothing is counted or moved."""

    @abstractmethod
    def left(self, key: Any) -> float | None:
        """Return the seconds that the value at `key` has left: None: there is none; infinity: it never expires."""

    @abstractmethod
    def of(self, instance: object) -> Space:
        """Return the space of an instance that counts by identity, or raise UnkeyableError."""

    def join(self, hits: Counter, misses: Counter) -> bool:
        """Count the function's calls as the store's from now on; return False if the space is the store's no longer.

        `Store.attach` has done so for a new space; this is for one to which its function comes back.
        """
        return True

    def leave(self) -> None:  # noqa: B027 - a store whose server counts has nothing to do
        """Count the function's calls no longer: it is with another store, and may come back. The entries stay."""

    # Several keys at once, for functions of many ids. A store to which each key is a round trip does better than these.

    def read_many(self, keys: Sequence[Any]) -> list[Any]:
        """Do what `read` does with each key; return the answers in that order.

        From the first failure on the answers are that error: a store that is down is not asked again and again.
        """
        return _until_failure(self.read, [(key,) for key in keys])

    def look_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `look` does with each key and its tags for one who does not lead; return as `read_many` does."""
        return self.read_many([key for key, _ in calls])

    def take_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]], renew: bool) -> list[Any]:
        """Do what `take` does with each key and its tags; return the answers as `read_many` does."""
        return _until_failure(self.take, [(*call, renew) for call in calls])

    def fill_many(self, fills: Sequence[tuple[Any, Any, Any, Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `fill` does with each key, lease, value, ttl and tags; return the answers in that order.

        The answer for a fill that failed is its error: one value that cannot be stored does not hinder the others.
        """
        return [_tried(self.fill, fill) for fill in fills]

    def release_many(self, releases: Sequence[tuple[Any, Any, bool]]) -> list[Any]:
        """Do what `release` does with each key, lease and `remove`; return the answers as `read_many` does."""
        return _until_failure(self.release, releases)

    def remove_many(self, keys: Sequence[Any]) -> int:
        """Remove several values and void the leases; return how many values there were.

        Raises:
            Exception: the first that a removal raised, after all have been tried.
        """
        answers = [_tried(self.remove, (key,)) for key in keys]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return sum(answers)

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        """Perform a method of the sync side for an async caller; what never blocks is better called directly."""
        return await asyncio.to_thread(method, *args)

    async def aread(self, key: Any) -> Reading:
        """Do what `read` does, awaited."""
        return await self._run(self.read, key)

    async def alook(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Reading:
        """Do what `look` does, awaited."""
        return await self.aread(key)

    async def atake(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        """Do what `take` does, awaited."""
        return await self._run(self.take, key, tags, renew)

    async def afill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Do what `fill` does, awaited."""
        return await self._run(self.fill, key, lease, value, ttl, tags)

    async def arelease(self, key: Any, lease: Any, remove: bool) -> None:
        """Do what `release` does, awaited."""
        await self._run(self.release, key, lease, remove)

    async def aput(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Do what `put` does, awaited."""
        await self._run(self.put, key, value, ttl, tags)

    async def aremove(self, key: Any) -> bool:
        """Do what `remove` does, awaited."""
        return await self._run(self.remove, key)

    async def aremove_all(self) -> None:
        """Do what `remove_all` does, awaited."""
        await self._run(self.remove_all)

    async def apeek(self, key: Any) -> Any:
        """Do what `peek` does, awaited."""
        return await self._run(self.peek, key)

    async def aleft(self, key: Any) -> float | None:
        """Do what `left` does, awaited."""
        return await self._run(self.left, key)

    async def aread_many(self, keys: Sequence[Any]) -> list[Any]:
        """Do what `read_many` does, awaited."""
        return await self._run(self.read_many, keys)

    async def alook_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `look_many` does, awaited."""
        return await self.aread_many([key for key, _ in calls])

    async def atake_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]], renew: bool) -> list[Any]:
        """Do what `take_many` does, awaited."""
        return await self._run(self.take_many, calls, renew)

    async def afill_many(self, fills: Sequence[tuple[Any, Any, Any, Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `fill_many` does, awaited."""
        return await self._run(self.fill_many, fills)

    async def arelease_many(self, releases: Sequence[tuple[Any, Any, bool]]) -> list[Any]:
        """Do what `release_many` does, awaited."""
        return await self._run(self.release_many, releases)

    async def aremove_many(self, keys: Sequence[Any]) -> int:
        """Do what `remove_many` does, awaited."""
        return await self._run(self.remove_many, keys)


def _tried(method: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        return method(*args)
    except Exception as error:  # noqa: BLE001 - it is the answer
        return error


def _until_failure(method: Callable[..., Any], calls: Sequence[Sequence[Any]]) -> list[Any]:
    answers: list[Any] = []
    for call in calls:
        answers.append(_tried(method, call))
        if isinstance(answers[-1], Exception):
            return answers + answers[-1:] * (len(calls) - len(answers))
    return answers


# All stores that are alive, weakly, by id: a plain dict, whose values are listed in one step while they come and go.
_stores: dict[int, weakref.ref[Store]] = {}


def stores() -> list[Store]:
    """Return every store that is alive, in the order in which they were made."""
    return [store for reference in list(_stores.values()) if (store := reference()) is not None]


class Store(ABC):
    """Where entries live; one object serves sync and async callers, any number of functions and plain keys.

    Keys are text. Durations are seconds (int or float, more than 0) or a timedelta; None never expires and DEFAULT is
    the store's `default_ttl`. Patterns are globs; `escape_pattern` makes a literal one.
    """

    shared: bool = True
    """Whether other processes may read it: then a name must tell functions apart, and identity means nothing."""

    fleet: bool = False
    """Whether it can have one process load for all: `single_flight="fleet"`."""

    # Not in `__init__`, which a subclass of somebody else's may not call.
    def __new__(cls: type[S], *args: Any, **kwargs: Any) -> S:
        """Return a new store, which `stores` lists as long as it lives."""
        store = super().__new__(cls)
        _stores[id(store)] = weakref.ref(store, partial(_stores.pop, id(store)))
        return store

    @abstractmethod
    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> Space:
        """Return the space of a decorated function.

        Args:
            keys: of the function.
            hits: its hits, which count as this store's too.
            misses: its misses, likewise.
            owner: the decorated function, held weakly: when it dies, its entries may go.
        """

    @abstractmethod
    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`."""

    @abstractmethod
    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Store a value; whatever was at `key` is gone, and no load that began before fills it."""

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Remove the value at `key`; return whether there was one."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`."""

    @abstractmethod
    def increment(self, key: str, amount: float = 1) -> Any:
        """Add to the number at `key` in one atomic step and return the sum; a missing key starts at `amount`.

        The time that the value has left does not change.

        Raises:
            ValueError: what is there is not a number.
        """

    @abstractmethod
    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys that match, in no particular order."""

    @abstractmethod
    def delete_pattern(self, pattern: str) -> int:
        """Remove the values whose keys match; return how many there were."""

    @abstractmethod
    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are there, by key."""

    @abstractmethod
    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Store several values."""

    @abstractmethod
    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove several values; return how many there were."""

    @abstractmethod
    def ttl(self, key: str) -> float | None:
        """Return the seconds that the value at `key` has left: None: there is none; infinity: it never expires."""

    @abstractmethod
    def expire(self, key: str, ttl: Ttl) -> bool:
        """Give the value at `key` a new ttl from now; return whether there was one."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything that is this store's."""

    @abstractmethod
    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags; no load that began before fills one."""

    @abstractmethod
    def stats(self) -> StoreStats:
        """Return what has been counted; reading it changes nothing."""

    def close(self) -> None:  # noqa: B027 - most stores have nothing to close
        """Give back what the store holds outside of memory; a closed store may be used again."""

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        """Perform a method of the sync side for an async caller; what never blocks is better called directly."""
        return await asyncio.to_thread(method, *args)

    async def aget(self, key: str, default: Any = None) -> Any:
        """Do what `get` does, awaited."""
        return await self._run(self.get, key, default)

    async def aset(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Do what `set` does, awaited."""
        await self._run(self.set, key, value, ttl)

    async def adelete(self, key: str) -> bool:
        """Do what `delete` does, awaited."""
        return await self._run(self.delete, key)

    async def aexists(self, key: str) -> bool:
        """Do what `exists` does, awaited."""
        return await self._run(self.exists, key)

    async def aincrement(self, key: str, amount: float = 1) -> Any:
        """Do what `increment` does, awaited."""
        return await self._run(self.increment, key, amount)

    async def akeys(self, pattern: str = "*") -> list[str]:
        """Do what `keys` does, awaited."""
        return await self._run(self.keys, pattern)

    async def adelete_pattern(self, pattern: str) -> int:
        """Do what `delete_pattern` does, awaited."""
        return await self._run(self.delete_pattern, pattern)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Do what `get_many` does, awaited."""
        return await self._run(self.get_many, keys)

    async def aset_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Do what `set_many` does, awaited."""
        await self._run(self.set_many, values, ttl)

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """Do what `delete_many` does, awaited."""
        return await self._run(self.delete_many, keys)

    async def attl(self, key: str) -> float | None:
        """Do what `ttl` does, awaited."""
        return await self._run(self.ttl, key)

    async def aexpire(self, key: str, ttl: Ttl) -> bool:
        """Do what `expire` does, awaited."""
        return await self._run(self.expire, key, ttl)

    async def aclear(self) -> None:
        """Do what `clear` does, awaited."""
        await self._run(self.clear)

    async def ainvalidate_tags(self, *tags: str) -> None:
        """Do what `invalidate_tags` does, awaited."""
        await self._run(self.invalidate_tags, *tags)

    async def astats(self) -> StoreStats:
        """Do what `stats` does, awaited."""
        return await self._run(self.stats)

    async def aclose(self) -> None:
        """Do what `close` does, awaited."""
        await self._run(self.close)
