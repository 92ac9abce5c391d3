"""The store that keeps nothing: for switching a cache off by configuration; single-flight still works over it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from ..entry import DEFAULT, MISSING, Lease, Reading
from ..errors import UnkeyableError
from ..flight import Flight
from ..keys import CallKeys
from ..stats import Counter, StoreStats
from .base import Space, Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl
from .patterns import compile_pattern

__all__ = ["NullStore"]

T = TypeVar("T")


class NullSpace(Space):
    """A function's part of a store that keeps nothing."""

    __slots__ = ("__weakref__", "_death", "_instances", "_lease", "flights", "instance")

    local = True

    def __init__(self) -> None:
        self.flights: dict[Any, Flight] = {}
        # One lease for all keys, replaced by every invalidation: a caller that comes after one joins no load from
        # before. That it also keeps callers of other keys from joining costs a load, never a wrong answer.
        self._lease = Lease()
        self._instances: dict[int, NullSpace] = {}  # by id; an instance's death takes it out
        self._death: weakref.ref[Any] | None = None
        self.instance: str | None = None

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        return method(*args)

    def read(self, key: Any) -> Reading:
        """Return nothing, and the lease."""
        return Reading(MISSING, self._lease)

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Return nothing, and the lease."""
        return Reading(MISSING, self._lease)

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Keep nothing; return whether a store would have."""
        return lease is self._lease

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Do nothing."""

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Keep nothing; let nobody join a load that began before."""
        self._lease = Lease()

    def remove(self, key: Any) -> bool:
        """Let nobody join a load that began before; there was no value."""
        self._lease = Lease()
        return False

    def remove_all(self) -> None:
        """Let nobody join a load that began before."""
        self._lease = Lease()
        self._instances.clear()

    def peek(self, key: Any) -> Any:
        """Return MISSING."""
        return MISSING

    def left(self, key: Any) -> float | None:
        """Return None."""
        return None

    def of(self, instance: object) -> NullSpace:
        """Return the space of an instance, so that two instances never share a load."""
        space = self._instances.get(id(instance))
        if space is not None:
            return space
        space = NullSpace()
        space.instance = "<instance>"
        try:
            space._death = weakref.ref(instance, partial(self._instances.pop, id(instance)))
        except TypeError:
            raise UnkeyableError(f"{type(instance).__qualname__} cannot be weakly referenced") from None
        return self._instances.setdefault(id(instance), space)


class NullStore(Store):
    """Keeps nothing, and checks its arguments as every store does.

    >>> store = NullStore()
    >>> store.set("a", 1)
    >>> store.get("a", "nothing")
    'nothing'
    """

    shared = False

    def __init__(self) -> None:
        self._spaces: weakref.WeakSet[NullSpace] = weakref.WeakSet()

    def __repr__(self) -> str:
        return "NullStore()"

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        return method(*args)

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> NullSpace:
        """Return a space that keeps nothing."""
        space = NullSpace()
        self._spaces.add(space)
        return space

    def get(self, key: str, default: Any = None) -> Any:
        """Return `default`."""
        checked_key(key)
        return default

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Keep nothing."""
        checked_key(key)
        if ttl is not DEFAULT:
            checked_ttl(ttl)
        self.clear()

    def delete(self, key: str) -> bool:
        """Return False: there was nothing."""
        checked_key(key)
        self.clear()
        return False

    def exists(self, key: str) -> bool:
        """Return False."""
        checked_key(key)
        return False

    def increment(self, key: str, amount: float = 1) -> Any:
        """Return `amount`: a missing key starts there, and this one is always missing."""
        checked_key(key)
        return checked_amount(amount)

    def keys(self, pattern: str = "*") -> list[str]:
        """Return nothing."""
        compile_pattern(pattern)
        return []

    def delete_pattern(self, pattern: str) -> int:
        """Return 0."""
        compile_pattern(pattern)
        self.clear()
        return 0

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return nothing."""
        for key in keys:
            checked_key(key)
        return {}

    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Keep nothing."""
        for key, value in values.items():
            self.set(key, value, ttl)

    def delete_many(self, keys: Iterable[str]) -> int:
        """Return 0."""
        return sum([self.delete(key) for key in keys])

    def ttl(self, key: str) -> float | None:
        """Return None: there is nothing."""
        checked_key(key)
        return None

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Return False: there was nothing."""
        checked_key(key)
        if ttl is not DEFAULT:
            checked_ttl(ttl)
        return False

    def clear(self) -> None:
        """Let nobody join a load that began before."""
        for space in list(self._spaces):
            space.remove_all()

    def invalidate_tags(self, *tags: str) -> None:
        """Let nobody join a load that began before."""
        checked_tags(tags)
        self.clear()

    def stats(self) -> StoreStats:
        """Return zeros."""
        return StoreStats(hits=0, misses=0, sets=0, deletes=0, evictions=0, expirations=0, size=0, max_size=0)
