"""What a custom store keeps at a key, and the part of such a store that belongs to one decorated function.

Nothing here knows how records are kept: that is for the store's subclass to say, and the store asks it.
"""

from __future__ import annotations

import math
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..entry import ABSENT, MISSING, Life, Reading, TaggedLease
from ..errors import StoreError, UnkeyableError
from .base import Space

if TYPE_CHECKING:
    from ..flight import Flight
    from ..keys import CallKeys
    from ..stats import Counter
    from .custom import CustomStore

__all__ = ["Record", "RecordSpace", "made"]


class Record(NamedTuple):
    """What a custom store keeps at a key: a plain tuple, so that `Record(*row)` makes it again.

    Times are readings of the store's clock in seconds; infinity: never.

    Attributes:
        value: what is kept; what the serializer made of it, if the store has one.
        owner: the decorated function whose result it is; "": it is a plain key's.
        tags: those that it bears.
        made: when it was stored or given a new ttl.
        due: from when on a hit also refreshes it.
        fresh_until: when its ttl is over.
        stale_until: until when it may be served while it is refreshed.
        kept_until: from when on it is of no use.
    """

    value: Any
    owner: str
    tags: tuple[str, ...]
    made: float
    due: float
    fresh_until: float
    stale_until: float
    kept_until: float


def made(value: Any, owner: str, tags: tuple[str, ...], now: float, ttl: Any) -> Record:
    """Return a record that is made now; `ttl` is seconds, None or a Life."""
    life = ttl if isinstance(ttl, Life) else None
    length = ttl if life is None else life.ttl
    end = math.inf if length is None else now + length
    early, stale, kept = (0.0, 0.0, 0.0) if life is None else (life.early, life.stale, life.kept)
    return Record(value, owner, tags, now, end - early, end, end + stale, end + kept)


class RecordSpace(Space):
    """A decorated function's part of a custom store, or an instance's."""

    __slots__ = (
        "__weakref__",
        "_instances",
        "_store",
        "deaths",
        "default_ttl",
        "flights",
        "instance",
        "keys",
        "owner",
        "serializer",
    )

    def __init__(
        self, store: CustomStore, keys: CallKeys, owner: str, serializer: Any, instance: str | None = None
    ) -> None:
        self._store = store
        self.keys = keys
        self.serializer = serializer
        self.owner = owner  # as records have it; that of an instance begins with its function's and "("
        self.instance = instance
        self.default_ttl = store.default_ttl
        self.flights: dict[Any, Flight] = {}
        self._instances: dict[int, RecordSpace] = {}  # by id; an instance's death takes it out, before another has it
        self.deaths: tuple[Any, ...] = ()

    def _found(self, key: str) -> tuple[Reading, Any]:
        """Return the reading at `key`, and the value that is there at all."""
        store = self._store
        with store._lock:
            record, now = store._look(key)
            lease = store._leases.get(key)
        if lease is not None and lease.space is not self:
            lease = None
        value = (
            MISSING if record is None or record.owner != self.owner else store._decoded(key, record, self.serializer)
        )
        if record is None or value is MISSING:
            return (ABSENT if lease is None else Reading(MISSING, lease)), MISSING
        if now < record.due:
            return Reading(value), value
        if now < record.stale_until:
            return Reading(value, lease, True, now >= record.fresh_until), value
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
                pass  # a record that cannot be read must not keep the result of this load from taking its place
        leases = self._store._leases
        with self._store._lock:
            lease = leases.get(key)
            if renew or lease is None or lease.space is not self:
                lease = leases[key] = TaggedLease(self, key, tags)
            else:
                # Parameters left out of the key may give one key other tags: an invalidation of any voids it.
                lease.tags = tuple(dict.fromkeys(lease.tags + tags))
        return Reading(MISSING, lease)

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store a value if the lease stands; if it fails, neither old value nor lease stays."""
        return self._store._write(key, value, ttl, tags, self.owner, lease, self.serializer)

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Take a lease away if it still stands, and with `remove` the value too."""
        with self._store._lock:
            if self._store._leases.get(key) is lease:
                self.remove(key) if remove else self._store._leases.pop(key)

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store a value and void the lease."""
        self._store._write(key, value, ttl, tags, self.owner, None, self.serializer)

    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and void the lease; what is there under another's name stays."""
        with self._store._lock:
            self._store._leases.pop(key, None)
            return self._store._remove(key, self.owner)

    def remove_all(self) -> None:
        """Remove everything here and of instances."""
        store = self._store
        with store._lock:
            store._void(lambda lease: self._has(lease.space.owner))
            store._sweep(lambda record: self._has(record.owner), "" if self.keys.explicit else f"{self.keys.label}(")

    def _has(self, owner: str) -> bool:
        return owner == self.owner or owner.startswith(f"{self.owner}(")

    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING."""
        reading, value = self._found(key)
        return MISSING if reading.late else value

    def left(self, key: Any) -> float | None:
        """Return the seconds that the value at `key` has left."""
        return self._store._left(key, self.owner)

    def of(self, instance: object) -> RecordSpace:
        """Return the space of an instance, which is held weakly; on a store that others share it is refused."""
        store, ident = self._store, id(instance)
        if store.shared:
            raise self.keys.refuse_identity(instance)
        space = self._instances.get(ident)
        if space is not None:
            return space
        kind = type(instance)
        text = f"<{kind.__module__}.{kind.__qualname__} #{store._numbers.tick()}>"
        space = RecordSpace(store, self.keys, f"{self.owner}({text}", self.serializer, text)
        try:
            store._books.watch(space, instance)
            # Two references, since a callback in C can do one thing only: this one frees the address.
            space.deaths += (weakref.ref(instance, partial(self._instances.pop, ident)),)
        except TypeError:
            raise UnkeyableError(
                f"{self.keys.name}: {kind.__module__}.{kind.__qualname__} counts by identity but cannot be weakly "
                f"referenced, so it would never be freed: add '__weakref__' to its __slots__, or __cache_key__() to it"
            ) from None
        return self._instances.setdefault(ident, space)

    def join(self, hits: Counter, misses: Counter) -> bool:
        """Count the function's calls as the store's from now on; return False if the function's death was noticed."""
        if self.deaths:
            self._store._books.count(self, (hits, misses))
        return bool(self.deaths)

    def leave(self) -> None:
        """Count the function's calls no longer; what it had here stays."""
        self._store._books.count(self, ())
