"""What a log file says is there, in memory: where each key's record is and until when; no value, and no I/O.

For a plain entry that is one int beside the key's text, in which offset, length, owner and end are packed: 48 bytes,
and as much again for its part of the dict. Only what has tags or windows has an object of its own.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

import msgspec

from .frames import Windows

__all__ = ["Index", "Rich", "Spot"]

_DOUBLE: Final = struct.Struct("<d")
_BITS: Final = struct.Struct("<Q")
_NEVER: Final[int] = _BITS.unpack(_DOUBLE.pack(math.inf))[0]

# The parts of a packed place, from the right: 64 bits of a double, 24 of the owner's number, 32 of the length, and the
# offset has the rest.
_OWNER: Final = 64
_LENGTH: Final = 88
_OFFSET: Final = 120


class Rich(msgspec.Struct, eq=False, gc=False):
    """What the index has at the key of an entry with tags or windows."""

    place: int
    tags: tuple[str, ...]
    windows: Windows | None


class Spot(msgspec.Struct, frozen=True, gc=False):
    """What the index says of one key.

    Attributes:
        place: packed; another one means that the key was written meanwhile.
        offset: of its record in the file.
        length: of its record, in bytes.
        owner: whose entry it is.
        fresh_until: when its ttl is over.
        windows: its other times; None: it has none.
    """

    place: int
    offset: int
    length: int
    owner: str
    fresh_until: float
    windows: Windows | None

    @property
    def due(self) -> float:
        """From when on a hit also refreshes it."""
        return self.fresh_until if self.windows is None else self.windows.due

    @property
    def stale_until(self) -> float:
        """Until when it may be served while it is refreshed."""
        return self.fresh_until if self.windows is None else self.windows.stale_until

    @property
    def kept_until(self) -> float:
        """From when on it is of no use."""
        return self.fresh_until if self.windows is None else self.windows.kept_until


class Index:
    """The keys of a log, as far as it was read. Whoever uses one has a lock for it.

    Args:
        ordered: keep the keys in the order of use, which costs some memory for each.
    """

    def __init__(self, ordered: bool) -> None:
        # In the order of use if it is ordered, which is one dict of two kinds.
        self._order: OrderedDict[str, int | Rich] | None = OrderedDict() if ordered else None
        self._places: dict[str, int | Rich] = {} if self._order is None else self._order
        self._owners = [""]  # by number
        self._numbers: dict[str, int] = {"": 0}
        # Where the latest invalidation of an owner or a tag stands: what stands before it is gone. So that one costs
        # nothing for each entry, its entries are taken out when they are met.
        self._owner_marks: dict[int, int] = {}
        self._tag_marks: dict[str, int] = {}
        self._settled = True  # no mark was set since the last sweep
        self.live = 0  # bytes of the records that the index leads to

    def __len__(self) -> int:
        return len(self._places)

    # -- what the log says -------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        offset: int,
        length: int,
        owner: str,
        until: float,
        tags: tuple[str, ...],
        windows: Windows | None,
    ) -> None:
        """Let a key lead to a record, which becomes the most recently used one."""
        number = self._numbers.get(owner)
        if number is None:
            self._owners.append(owner)  # first: a Ctrl-C in between leaves no number without an owner
            number = self._numbers[owner] = len(self._owners) - 1
        bits = _NEVER if until == math.inf else _BITS.unpack(_DOUBLE.pack(until))[0]
        place = offset << _OFFSET | length << _LENGTH | number << _OWNER | bits
        before = self._places.get(key) if self._order is None else self._order.pop(key, None)
        if before is not None:
            self.live -= _length(before)
        self._places[key] = place if not tags and windows is None else Rich(place, tags, windows)
        self.live += length

    def drop(self, key: str) -> bool:
        """Let a key lead nowhere; return whether it led somewhere."""
        before = self._places.pop(key, None)
        if before is None:
            return False
        self.live -= _length(before)
        return True

    def drop_matching(self, matches: Callable[[str], object]) -> None:
        """Let the keys lead nowhere for which `matches` is true."""
        for key in [key for key in self._places if matches(key)]:
            self.drop(key)

    def mark_owner(self, owner: str, offset: int) -> None:
        """Let nothing lead anywhere that is this owner's and stands before `offset`."""
        number = self._numbers.get(owner)
        if number is not None:
            self._owner_marks[number] = offset
            self._settled = False

    def mark_tags(self, tags: tuple[str, ...], offset: int) -> None:
        """Let nothing lead anywhere that bears one of the tags and stands before `offset`."""
        for tag in tags:
            self._tag_marks[tag] = offset
        self._settled = False

    def clear(self) -> None:
        """Let nothing lead anywhere."""
        self._places.clear()
        self._owner_marks.clear()
        self._tag_marks.clear()
        self._settled = True
        self.live = 0

    # -- what is asked -----------------------------------------------------------------------------------------------

    def find(self, key: str) -> Spot | None:
        """Return what is known of a key; what an invalidation has taken away is taken out."""
        found = self._places.get(key)
        if found is None:
            return None
        if isinstance(found, int):
            place, rich, windows = found, None, None
        else:
            place, rich, windows = found.place, found, found.windows
        offset, number = place >> _OFFSET, place >> _OWNER & 0xFFFFFF
        if (self._owner_marks or self._tag_marks) and self._marked(offset, number, rich):
            self.drop(key)
            return None
        bits = place & 0xFFFFFFFFFFFFFFFF
        until: float = math.inf if bits == _NEVER else _DOUBLE.unpack(_BITS.pack(bits))[0]
        return Spot(place, offset, place >> _LENGTH & 0xFFFFFFFF, self._owners[number], until, windows)

    def _marked(self, offset: int, number: int, rich: Any) -> bool:
        return offset < self._owner_marks.get(number, 0) or (
            rich is not None and any(offset < self._tag_marks.get(tag, 0) for tag in rich.tags)
        )

    def tags(self, key: str) -> tuple[str, ...]:
        """Return the tags of the entry at a key."""
        found = self._places.get(key)
        return found.tags if isinstance(found, Rich) else ()

    def use(self, key: str) -> None:
        """Let a key be the most recently used one."""
        if self._order is not None and key in self._order:
            self._order.move_to_end(key)

    def listed(self) -> list[str]:
        """Return all keys, in the order of use if that is kept; in one step for other threads."""
        return list(self._places)

    def oldest(self, count: int) -> list[str]:
        """Return that many of the least recently used keys."""
        return list(islice(self._places, count))

    def sweep(self) -> int:
        """Take out all that invalidations have taken away; return how much that was. Nothing to do costs nothing."""
        if self._settled:
            return 0
        before = len(self._places)
        for key in self.listed():
            self.find(key)
        self._settled = True
        return before - len(self._places)


def _length(found: int | Rich) -> int:
    place = found if isinstance(found, int) else found.place
    return place >> _LENGTH & 0xFFFFFFFF
