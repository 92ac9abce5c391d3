"""The part of a file store that belongs to one decorated function; it opens nothing and keeps no value."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..entry import ABSENT, MISSING, Reading
from ..errors import StoreError
from ..serializers import function_serializer
from .access import FAILURES
from .base import Space
from .entries import Dumped
from .frames import Kind
from .logfile import store_error
from .replay import Item

if TYPE_CHECKING:
    from ..flight import Flight
    from ..keys import CallKeys
    from ..stats import Counter
    from .file import PickleFileStore

__all__ = ["FileSpace"]


class FileSpace(Space):
    """A decorated function's part of a file store; its entries are those that bear its name."""

    __slots__ = (
        "__weakref__",
        "_keys",
        "_serializer",
        "_store",
        "deaths",
        "default_ttl",
        "flights",
        "instance",
        "owner",
    )

    def __init__(self, store: PickleFileStore, keys: CallKeys) -> None:
        self._store = store
        self._keys = keys
        self._serializer = function_serializer(keys, None)  # the function's own, if it has one
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
        except BlockingIOError:
            found = None  # another process is making the file: there is nothing in it yet
        except (OSError, MemoryError) as error:
            raise store_error(store.path, error) from error
        # After the file was read: what was in it has voided the lease if it was to.
        return self._judged(key, found, store._leases.get(key, self))

    def _judged(self, key: str, found: Any, lease: Any) -> tuple[Reading, Any]:
        """Return the reading of what the file has, and the value that is there at all. The lock is not held."""
        value = MISSING if found is None else self._store._loaded(found[1], key, self._serializer)
        if value is MISSING:
            return (ABSENT if lease is None else Reading(MISSING, lease)), MISSING
        spot, _, now = found
        if now < spot.due:
            return Reading(value), value
        if now < spot.stale_until:
            return Reading(value, lease, True, now >= spot.fresh_until), value
        return Reading(MISSING, lease, False, False, value), MISSING

    def _dumped(self, key: str, value: Any) -> Dumped:
        if self._serializer is not None:
            value = self._serializer.dumps(value, key)
        return self._store._dumped(value, self._serializer)

    def read(self, key: Any) -> Reading:
        """Return the value at `key` or the lease that stands there."""
        return self._found(key)[0]

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Return the value at `key`, else a lease: the one that stands there or a new one."""
        try:
            if renew:
                self._store._reading(_nothing)  # what others have done until now does not void it
            else:
                reading = self.read(key)
                if reading.value is not MISSING and not reading.due:
                    return reading
        except FAILURES:
            pass  # what has not been read yet voids the lease; a file that is opened anew voids it, too
        with self._store._lock:
            return Reading(MISSING, self._store._leases.take(key, tags, self, renew))

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store a value if the lease stands; if it fails, neither old value nor lease stays."""
        (answer,) = self.fill_many([(key, lease, value, ttl, tags)])
        if isinstance(answer, Exception):
            raise answer
        stored: bool = answer
        return stored

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Take a lease away if it still stands, and with `remove` the value too."""
        store = self._store
        if not remove:
            with store._lock:
                if store._leases.stands(key, lease):
                    store._leases.void(key)
            return
        try:
            if store._reading(lambda: store._kept(key)) is not None:
                store._writing(lambda: store._leases.stands(key, lease) and store._remove([key], self.owner))
        except (OSError, MemoryError) as error:
            raise store_error(store.path, error) from error
        finally:
            store._let_go(key, lease)

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store a value and void the lease."""
        self._store._store([(key, self._dumped(key, value))], ttl, tags, self.owner)

    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and void the lease; what is there under another's name stays."""
        return self.remove_many([key]) > 0

    # Several keys at once: one reading of the file, and one write with one lock.

    def read_many(self, keys: Sequence[Any]) -> list[Any]:
        """Return what stands at each key; what fails is the answer for all."""
        try:
            return [reading for reading, _ in self._looked_up(keys, use=True)]
        except StoreError as error:
            return [error] * len(keys)

    def _looked_up(self, keys: Sequence[str], use: bool) -> list[tuple[Reading, Any]]:
        """Return what `_found` does for each key; with `use` the keys become the most recently used ones."""
        store = self._store

        def look() -> list[Any]:
            found = []
            for key in keys:
                spot = store._kept(key)
                content = store._content(key, spot) if spot is not None and spot.owner == self.owner else None
                there = None if content is None else (spot, content, store._latest)
                found.append((there, store._leases.get(key, self)))
                if use and content is not None:
                    store._use(key)
            return found

        try:
            found = store._reading(look)
        except BlockingIOError:
            return [(ABSENT, MISSING)] * len(keys)
        except (OSError, MemoryError) as error:
            raise store_error(store.path, error) from error
        return [self._judged(key, *each) for key, each in zip(keys, found, strict=True)]

    def take_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]], renew: bool) -> list[Any]:
        """Do what `take` does with each key and its tags."""
        store = self._store
        answers: list[Any] = [ABSENT] * len(calls)
        if renew:
            with contextlib.suppress(*FAILURES):
                store._reading(_nothing)
        else:
            answers = self.read_many([key for key, _ in calls])
        with store._lock:
            for index, (key, tags) in enumerate(calls):
                reading = answers[index]
                if isinstance(reading, Exception) or reading.value is MISSING or reading.due:
                    answers[index] = Reading(MISSING, store._leases.take(key, tags, self, renew))
        return answers

    def fill_many(self, fills: Sequence[tuple[Any, Any, Any, Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `fill` does with each key, lease, value, ttl and tags, as one write; an error is an answer, too."""
        store = self._store
        answers: list[Any] = [False] * len(fills)
        dumped: dict[int, Any] = {}
        for index, (key, lease, value, _, _) in enumerate(fills):
            try:
                dumped[index] = self._dumped(key, value)
            except StoreError as error:  # noqa: PERF203 - it concerns one of many
                store._let_go(key, lease)
                answers[index] = error

        def work() -> None:
            items = []
            for index, pickled in dumped.items():
                key, lease, _, ttl, tags = fills[index]
                if store._leases.stands(key, lease):
                    items.append(store._item(key, pickled, ttl, tags, self.owner))
                    answers[index] = True
            if items:
                store._append(items)

        try:
            if dumped:
                store._writing(work)
        except StoreError as error:
            for index in dumped:
                store._let_go(*fills[index][:2])
                answers[index] = error
        return answers

    def remove_many(self, keys: Sequence[Any]) -> int:
        """Remove several values and void the leases with one write; return how many values there were."""
        return self._store._writing(lambda: self._store._remove(keys, self.owner)) if keys else 0

    def remove_all(self) -> None:
        """Remove everything that bears this function's name."""
        self._store._invalidate(Item(Kind.OWNER, self.owner))

    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING."""
        ((reading, value),) = self._looked_up([key], use=False)
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


def _nothing() -> None:
    """Have nothing to do when all that is in the file has been read."""
