"""The part of a Redis store that belongs to one decorated function; it asks the server only through the store."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from ...entry import ABSENT, MISSING, Reading
from ...errors import SerializationError
from ..base import Space
from . import protocol
from .leases import RedisLease, Seen, Standing, Steps, check
from .protocol import Plain
from .steps import StoreSteps, together

if TYPE_CHECKING:
    from ...flight import Flight
    from ...keys import CallKeys
    from ...stats import Counter
    from .store import RedisStore

__all__ = ["RedisSpace"]


class RedisSpace(Space):
    """A decorated function's part of a Redis store; its entries are those that bear its name."""

    asks_again = False  # what cannot be read is no failure here, but a miss

    __slots__ = (
        "__weakref__",
        "_codec",
        "_keys",
        "_lent",
        "_longest",
        "_plain",
        "_steps",
        "_store",
        "_timed",
        "deaths",
        "default_ttl",
        "flights",
        "instance",
        "owner",
    )

    def __init__(self, store: RedisStore, keys: CallKeys, codec: Any) -> None:
        self._store = store
        self._steps: StoreSteps = store._steps
        self._keys = keys
        self._codec = codec
        self.owner = keys.label
        self._plain = protocol.names(self.owner, ())
        self._longest = protocol.LONGEST_FLEET_LOAD if keys.fleet else protocol.LONGEST_LOAD  # seconds
        self._timed = False  # whether an entry with windows was met: then how long one has left is asked at once
        self._lent = object()  # another one each time that a load of this process may use a lease that it has not made
        self.instance = None
        self.default_ttl = store.default_ttl
        self.flights: dict[Any, Flight] = {}
        self.deaths: tuple[Any, ...] = ()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _named(self, tags: tuple[str, ...]) -> bytes:
        return protocol.names(self.owner, tags) if tags else self._plain

    def _look(self, key: str, tags: tuple[str, ...], take: bool, counts: bool = True) -> Steps[Reading]:
        """Return the reading of a call's key."""
        longest = self._longest if take else None
        beside = self._lent  # before anything is sent
        seen = yield from self._steps.look(key, self.owner, tags, self._named(tags), longest, self._timed)
        if not isinstance(seen, Seen):
            return self._plainly(key, seen)
        if seen.strange and counts:
            self._store._strange(self.owner)
        if seen.lease is not None:
            seen.lease.beside = beside
        return self._reading(key, seen)

    def _look_many(self, calls: Sequence[tuple[str, tuple[str, ...]]]) -> Steps[list[Any]]:
        """Return the readings of several calls' keys, which take nothing."""
        kinds = {tags: self._named(tags) for tags in {tags for _, tags in calls}}
        named = [kinds[tags] for _, tags in calls]
        seen = yield from self._steps.look_many(calls, self.owner, named, self._timed)
        readings = []
        for (key, _), each in zip(calls, seen, strict=True):
            if isinstance(each, Seen):
                if each.strange:
                    self._store._strange(self.owner)
                readings.append(self._reading(key, each))
            else:
                readings.append(self._plainly(key, each))
        return readings

    def _plainly(self, key: str, seen: Plain) -> Reading:
        data, at = seen
        try:
            return Reading(self._codec.loads(data[at:], key))
        except SerializationError:  # what cannot be read is not there, and the next load replaces it
            self._store._failed("decoding", None)
            entry = protocol.parse(data)
            return Reading(MISSING, RedisLease(entry.id, entry.stamps) if isinstance(entry, protocol.Entry) else None)

    def _reading(self, key: str, seen: Seen) -> Reading:
        if seen.standing is None:
            if seen.lease is None:
                return ABSENT
            return Reading(MISSING, seen.lease, taken=seen.lease.mine, held=seen.held)
        entry, left = seen.standing.entry, seen.standing.left
        lease = RedisLease(entry.id, entry.stamps)
        try:
            value = self._codec.loads(entry.payload, key)
        except SerializationError:  # what cannot be read is not there, and the next load replaces it
            self._store._failed("decoding", None)
            return Reading(MISSING, lease)
        if entry.windows is None:
            # A value without windows is served as it is, by whomever it is being refreshed.
            return Reading(value)
        self._timed = True
        if left > entry.windows.early:
            return Reading(value)
        if left + entry.windows.stale > 0:
            # Of a fleet one process refreshes it, and the others serve it on.
            return Reading(value, lease, not entry.claimed, left <= 0)
        return Reading(MISSING, lease, False, False, value, held=entry.claimed)

    def _take(self, key: str, tags: tuple[str, ...], renew: bool) -> Steps[Reading]:
        fleet = self._keys.fleet
        if renew:
            lease = yield from self._steps.renew(key, self.owner, tags, self._longest, fleet)
            return Reading(MISSING, lease)
        reading = yield from self._look(key, tags, take=True, counts=False)  # the first look has counted
        if reading.value is not MISSING and not reading.due:
            return reading
        lease = reading.lease
        if lease is not None and not reading.taken:
            self._lent = object()
        if not fleet or lease is None or reading.taken or reading.held:
            return Reading(MISSING, lease, taken=reading.taken, held=reading.held)
        # What others may refresh, too, is claimed: the first to do so loads for all, and the rest look again.
        served = reading.due or reading.stale is not MISSING
        claimed = yield from self._steps.claim(key, lease, served, self._longest)
        return Reading(MISSING, lease, held=True) if claimed is None else Reading(MISSING, claimed, taken=True)

    def _fill(self, key: str, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> Steps[bool]:
        payload = self._codec.dumps(value, key)
        stored = yield from self._steps.fill(key, self.owner, tags, self._named(tags), lease, payload, ttl)
        if stored:
            self._store._sets.tick()
        return stored

    def _put(self, key: str, value: Any, ttl: Any, tags: tuple[str, ...]) -> Steps[None]:
        payload = self._codec.dumps(value, key)
        yield from self._steps.put(key, self.owner, tags, self._named(tags), payload, ttl)
        self._store._sets.tick()

    def _found(self, key: str) -> Steps[Any]:
        """Return the fresh value at a key, whatever tags it bears, or MISSING."""
        full = self._steps.full(key)
        (found,) = yield [("GET", full)]
        check([found])
        (worth,) = yield from self._steps.valid([(full, found)])
        if not isinstance(worth, Standing) or worth.left <= 0 or not protocol.bears(worth.entry.names, self.owner):
            return MISSING
        try:
            return self._codec.loads(worth.entry.payload, key)
        except SerializationError:
            return MISSING

    # -- blocking ----------------------------------------------------------------------------------------------------

    def read(self, key: Any) -> Reading:
        """Return the value at `key` of a call without tags, or the lease that stands there."""
        return self._store._walk(self._look(key, (), take=False))

    def look(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Reading:
        """Return the value at `key`, else a lease, which is taken in the same round trip if the caller leads."""
        return self._store._walk(self._look(key, tags, take=leads))

    def alone(self, lease: Any) -> bool:
        """Whether no load of this process can have used a lease that a look has taken.

        1. A's look puts a placeholder; the answer is slow   2. B looks, sees it, and loads with it: it may be another
        process's   3. B's flight has landed and is gone   4. A has its answer and starts a flight. What it has put
        there has become B's result: it has to look again. `_lent` was another one before 1, and B's flight goes only
        after it was changed in 2.
        """
        return lease.beside is self._lent

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Return the value at `key`, else a lease: the one that stands there or a new one."""
        return self._store._walk(self._take(key, tags, renew))

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store a value if what the lease saw still stands."""
        return self._store._walk(self._fill(key, lease, value, ttl, tags))

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Remove a placeholder if it still stands, and with `remove` the value too."""
        self._store._walk(self._steps.release(key, lease, remove))

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store a value, whatever stands there."""
        self._store._loud(self._put(key, value, ttl, tags))

    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and the lease of every load."""
        return self._store._loud(self._store._delete([key])) > 0

    def remove_all(self) -> None:
        """Remove everything that bears this function's name, by removing its stamp."""
        self._store._loud(self._steps.forget(self._steps.stamp_keys(self.owner, ())))

    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING."""
        return self._store._walk(self._found(key))

    def left(self, key: Any) -> float | None:
        """Return the seconds that the value at `key` has left."""
        return self._store._walk(self._steps.left(key))

    # Several keys at once: all of them in one round trip.

    def look_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]]) -> list[Any]:
        """Return the values at the keys of calls with tags; nothing is taken."""
        return self._store._walk(self._look_many(calls))

    def read_many(self, keys: Sequence[Any]) -> list[Any]:
        """Return the values at the keys of calls without tags."""
        return self.look_many([(key, ()) for key in keys])

    def take_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]], renew: bool) -> list[Any]:
        """Do what `take` does with each key and its tags."""
        return self._store._walk(together([self._take(key, tags, renew) for key, tags in calls]))

    def fill_many(self, fills: Sequence[tuple[Any, Any, Any, Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `fill` does with each key, lease, value, ttl and tags; an error is an answer, too."""
        return self._store._walk(together([self._fill(*fill) for fill in fills]))

    def release_many(self, releases: Sequence[tuple[Any, Any, bool]]) -> list[Any]:
        """Do what `release` does with each key, lease and `remove`."""
        return self._store._walk(together([self._steps.release(*release) for release in releases]))

    def remove_many(self, keys: Sequence[Any]) -> int:
        """Remove several values and the leases of all loads; return how many values there were."""
        return self._store._loud(self._store._delete(list(dict.fromkeys(keys)))) if keys else 0

    # -- awaiting ----------------------------------------------------------------------------------------------------

    async def aread(self, key: Any) -> Reading:
        """Do what `read` does, awaited."""
        return await self._store._awalk(self._look(key, (), take=False))

    def alook(self, key: Any, tags: tuple[str, ...], leads: bool = True) -> Coroutine[Any, Any, Reading]:
        """Do what `look` does, awaited."""
        return self._store._awalk(self._look(key, tags, take=leads))

    async def atake(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        """Do what `take` does, awaited."""
        return await self._store._awalk(self._take(key, tags, renew))

    async def afill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Do what `fill` does, awaited."""
        return await self._store._awalk(self._fill(key, lease, value, ttl, tags))

    async def arelease(self, key: Any, lease: Any, remove: bool) -> None:
        """Do what `release` does, awaited."""
        await self._store._awalk(self._steps.release(key, lease, remove))

    async def aput(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Do what `put` does, awaited."""
        await self._store._aloud(self._put(key, value, ttl, tags))

    async def aremove(self, key: Any) -> bool:
        """Do what `remove` does, awaited."""
        return await self._store._aloud(self._store._delete([key])) > 0

    async def aremove_all(self) -> None:
        """Do what `remove_all` does, awaited."""
        await self._store._aloud(self._steps.forget(self._steps.stamp_keys(self.owner, ())))

    async def apeek(self, key: Any) -> Any:
        """Do what `peek` does, awaited."""
        return await self._store._awalk(self._found(key))

    async def aleft(self, key: Any) -> float | None:
        """Do what `left` does, awaited."""
        return await self._store._awalk(self._steps.left(key))

    async def alook_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `look_many` does, awaited."""
        return await self._store._awalk(self._look_many(calls))

    async def aread_many(self, keys: Sequence[Any]) -> list[Any]:
        """Do what `read_many` does, awaited."""
        return await self.alook_many([(key, ()) for key in keys])

    async def atake_many(self, calls: Sequence[tuple[Any, tuple[str, ...]]], renew: bool) -> list[Any]:
        """Do what `take_many` does, awaited."""
        return await self._store._awalk(together([self._take(key, tags, renew) for key, tags in calls]))

    async def afill_many(self, fills: Sequence[tuple[Any, Any, Any, Any, tuple[str, ...]]]) -> list[Any]:
        """Do what `fill_many` does, awaited."""
        return await self._store._awalk(together([self._fill(*fill) for fill in fills]))

    async def arelease_many(self, releases: Sequence[tuple[Any, Any, bool]]) -> list[Any]:
        """Do what `release_many` does, awaited."""
        return await self._store._awalk(together([self._steps.release(*release) for release in releases]))

    async def aremove_many(self, keys: Sequence[Any]) -> int:
        """Do what `remove_many` does, awaited."""
        return (await self._store._aloud(self._store._delete(list(dict.fromkeys(keys))))) if keys else 0

    # -- the rest ----------------------------------------------------------------------------------------------------

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
