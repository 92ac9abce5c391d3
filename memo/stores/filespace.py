"""The part of a file store that belongs to one decorated function; it opens nothing and keeps no value."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..entry import ABSENT, MISSING, Reading
from ..errors import StoreError
from .base import Space
from .frames import Kind
from .replay import Item

if TYPE_CHECKING:
    from ..flight import Flight
    from ..keys import CallKeys
    from ..stats import Counter
    from .file import PickleFileStore

__all__ = ["FileSpace"]


class FileSpace(Space):
    """A decorated function's part of a file store; its entries are those that bear its name."""

    __slots__ = ("__weakref__", "_keys", "_store", "deaths", "default_ttl", "flights", "instance", "owner")

    def __init__(self, store: PickleFileStore, keys: CallKeys) -> None:
        self._store = store
        self._keys = keys
        self.owner = keys.label
        self.instance = None
        self.default_ttl = store.default_ttl
        self.flights: dict[Any, Flight] = {}
        self.deaths: tuple[Any, ...] = ()

    def _found(self, key: str) -> tuple[Reading, Any]:
        """Return the reading at `key`, and the value that is there at all."""
        store = self._store
        try:
            found = store._found(key, self.owner)
        except OSError as error:
            raise StoreError(f"{store.path!r}: {error.strerror or type(error).__name__}") from error
        # After the file was read: what was in it has voided the lease if it was to.
        lease = store._leases.get(key, self)
        value = MISSING if found is None else store._loaded(found[1])
        if found is None or value is MISSING:
            return (ABSENT if lease is None else Reading(MISSING, lease)), MISSING
        spot, _, now = found
        if now < spot.due:
            return Reading(value), value
        if now < spot.stale_until:
            return Reading(value, lease, True, now >= spot.fresh_until), value
        return Reading(MISSING, lease, False, False, value), MISSING

    def read(self, key: Any) -> Reading:
        """Return the value at `key` or the lease that stands there."""
        return self._found(key)[0]

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Return the value at `key`, else a lease: the one that stands there or a new one."""
        if not renew:
            try:
                reading = self.read(key)
                if reading.value is not MISSING and not reading.due:
                    return reading
            except StoreError:
                pass  # what is appended from now on voids the lease; a file that is opened anew voids it, too
        with self._store._lock:
            return Reading(MISSING, self._store._leases.take(key, tags, self, renew))

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store a value if the lease stands; if it fails, neither old value nor lease stays."""
        store = self._store
        try:
            dumped = store._dumped(value)
        except StoreError:
            store._let_go(key, lease)
            raise
        return store._store([(key, dumped)], ttl, tags, self.owner, lease)

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Take a lease away if it still stands, and with `remove` the value too."""
        store = self._store
        if remove:
            store._writing(lambda: store._leases.stands(key, lease) and store._remove([key], self.owner))
            return
        with store._lock:
            if store._leases.stands(key, lease):
                store._leases.void(key)

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store a value and void the lease."""
        self._store._store([(key, self._store._dumped(value))], ttl, tags, self.owner)

    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and void the lease; what is there under another's name stays."""
        return self._store._writing(lambda: self._store._remove([key], self.owner)) > 0

    def remove_all(self) -> None:
        """Remove everything that bears this function's name."""
        self._store._invalidate(Item(Kind.OWNER, self.owner))

    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING."""
        reading, value = self._found(key)
        return MISSING if reading.late else value

    def left(self, key: Any) -> float | None:
        """Return the seconds that the value at `key` has left."""
        return self._store._left(key, self.owner)

    def of(self, instance: object) -> Space:
        """Refuse an instance that counts by identity: it means nothing in another process."""
        raise self._keys.refuse_identity(instance)

    def join(self, hits: Counter, misses: Counter) -> bool:
        """Count the function's calls as the store's from now on; return False if the function's death was noticed."""
        if self.deaths:
            self._store._books.count(self, (hits, misses))
        return bool(self.deaths)

    def leave(self) -> None:
        """Count the function's calls no longer; what it had here stays."""
        self._store._books.count(self, ())

    async def aread(self, key: Any) -> Reading:
        """Do what `read` does, awaited."""
        return self.read(key) if self._store._quick(key) else await asyncio.to_thread(self.read, key)

    async def atake(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Do what `take` does, awaited."""
        if self._store._quick(key):
            return self.take(key, tags, renew)
        return await asyncio.to_thread(self.take, key, tags, renew)
