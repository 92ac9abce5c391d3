"""What a store keeps and what a reader is told: sentinels, `Entry`, `Lease`, `Reading`; this module decides nothing."""

from __future__ import annotations

import enum
import math
from typing import Any, Final, Literal

import msgspec

__all__ = [
    "ABSENT",
    "DEFAULT",
    "MISSING",
    "UNREAD",
    "Default",
    "Entry",
    "Lease",
    "Life",
    "Missing",
    "Reading",
    "TaggedEntry",
    "TaggedLease",
    "WindowEntry",
]


class _Sentinel(enum.Enum):
    """Values that no user value equals: an enum, so that they are typed, pickle by name and print readably."""

    MISSING = "MISSING"
    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__  # an enum's own would print as `_Sentinel.MISSING`

    def __bool__(self) -> bool:
        # `if fn.peek(7):` must not take "nothing there" for a value.
        return self is not _Sentinel.MISSING


Missing = Literal[_Sentinel.MISSING]
Default = Literal[_Sentinel.DEFAULT]

MISSING: Final = _Sentinel.MISSING
"""What `peek` returns when there is nothing: distinct from None, which may be a cached value."""

DEFAULT: Final = _Sentinel.DEFAULT
"""As a ttl: the store's `default_ttl`."""


class Entry(msgspec.Struct, eq=False):  # a Struct is made in C, which is most of what an object costs
    """One stored value, by identity: two entries are equal only if they are the same object.

    The fields are exactly what a plain hit and an eviction need. One more would cost eight bytes for each of a
    million entries, so what only some entries have lives in subclasses.
    """

    space: Any  # the table that holds this entry, so that an eviction finds it
    key: Any
    value: Any
    fresh_until: float  # a reading of the store's clock; infinity: never expires

    def move(self, fresh_until: float) -> None:
        """Give it another end."""
        self.fresh_until = fresh_until

    @property
    def due(self) -> float:
        """From when on a hit also refreshes the entry."""
        return self.fresh_until

    @property
    def stale_until(self) -> float:
        """Until when the value may be served while it is refreshed."""
        return self.fresh_until

    @property
    def kept_until(self) -> float:
        """Until when the entry stays where it is."""
        return self.fresh_until


class TaggedEntry(Entry, eq=False):
    """An entry that bears tags, so that an invalidation of one finds it."""

    tags: tuple[str, ...]


class WindowEntry(TaggedEntry, eq=False):
    """An entry of a function with stale windows or early refresh: due <= fresh_until <= stale_until <= kept_until."""

    due: float
    stale_until: float
    kept_until: float

    @classmethod
    def with_windows(
        cls,
        space: Any,
        key: Any,
        value: Any,
        fresh_until: float,
        tags: tuple[str, ...],
        early: float,
        stale: float,
        kept: float,
    ) -> WindowEntry:
        """Return an entry whose windows begin that many seconds before and end that many after `fresh_until`."""
        return cls(space, key, value, fresh_until, tags, fresh_until - early, fresh_until + stale, fresh_until + kept)

    def windows(self) -> tuple[float, float, float] | None:
        """Return those lengths in seconds; None if it has no end and so no windows."""
        if math.isinf(self.fresh_until):
            return None
        return self.fresh_until - self.due, self.stale_until - self.fresh_until, self.kept_until - self.fresh_until

    def move(self, fresh_until: float) -> None:
        """Give it another end; the windows keep their lengths, and what never ends has none."""
        early, stale, kept = self.windows() or (0.0, 0.0, 0.0)
        self.fresh_until = fresh_until
        self.due = fresh_until - early
        self.stale_until = fresh_until + stale
        self.kept_until = fresh_until + kept


class Life(msgspec.Struct, frozen=True):
    """How long a result with windows lives, in seconds, where a plain one has its ttl alone.

    Attributes:
        ttl: until it is stale, from the fill on.
        early: a hit refreshes it that long before.
        stale: it is served, and refreshed, that long after.
        kept: it stays that long after, to be served when the function raises.
    """

    ttl: float
    early: float = 0.0
    stale: float = 0.0
    kept: float = 0.0


class Lease:
    """The right to fill one key, from before the load begins until anything else touches the key.

    A lease is valid while it stands at its key in the store, and a fill checks that atomically (Nishtala et al.,
    "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1). It has no content: it is equal only to itself, and what
    voids it takes it away. It is a Reading too: that of a key at which it stands.
    """

    __slots__ = ()

    value: Final = MISSING

    @property
    def lease(self) -> Lease:
        """Itself."""
        return self


class TaggedLease(Lease):
    """A lease for an entry that is going to bear tags, so that an invalidation of one finds it."""

    __slots__ = ("key", "space", "tags")

    def __init__(self, space: Any, key: Any, tags: tuple[str, ...]) -> None:
        self.space = space
        self.key = key
        self.tags = tags


class Reading(msgspec.Struct, eq=False):
    """What a store found at a key: a value or nothing, and the lease that stands there."""

    value: Any  # MISSING: nothing that may be served
    lease: Any = None  # compared with `==` to a flight's: the same means that no one touched the key in between
    due: bool = False  # the value may be served, and is to be refreshed
    late: bool = False  # the value may be served although its time is over
    stale: Any = MISSING  # what may be served in the place of an error
    held: bool = False  # another process may be loading the key
    taken: bool = False  # this very read has made the lease; others may have seen it before the answer came

    def __repr__(self) -> str:
        return f"Reading(value={type(self.value).__name__}, lease={self.lease!r})"


ABSENT: Final = Reading(MISSING)
"""The reading of a key at which nothing stands, no lease either."""

UNREAD: Final = Reading(MISSING, object())
"""The reading when the store failed. Its lease cannot be filled; it is not None, since a caller whose own read
succeeded must not take a load that has no lease for one that no invalidation has touched."""
