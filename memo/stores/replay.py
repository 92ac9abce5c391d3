"""A log as far as it has been read: its index, what is to be skipped, and the leases that what was read voids.

Whoever uses a View has a lock for it; nothing of the user's runs in here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ..entry import TaggedLease
from .frames import Flags, Kind, Payload, decode_meta, decode_text, decode_texts, encode_text
from .index import Index
from .logfile import LogFile, Piece
from .patterns import compile_pattern

__all__ = ["Item", "Leases", "View"]

_VALUE: Final = int(Kind.VALUE)

TOLERANCE: Final = 0.5
"""Seconds by which a clock may run backwards, or a record be of the future, before that means something."""


class Item(NamedTuple):
    """A record that is to be appended."""

    kind: Kind
    key: str = ""
    meta: bytes = b""
    payload: Payload = ()
    flags: int = 0
    made: float = 0.0
    until: float = math.inf


class Leases:
    """The leases of one store that stand, by key; another process's records void them as this one's do."""

    def __init__(self) -> None:
        self._standing: dict[str, TaggedLease] = {}

    def get(self, key: str, space: Any) -> TaggedLease | None:
        """Return the lease of a space that stands at a key."""
        lease = self._standing.get(key)
        return lease if lease is not None and lease.space is space else None

    def take(self, key: str, tags: tuple[str, ...], space: Any, renew: bool) -> TaggedLease:
        """Return the lease that stands at a key, a new one if none does or if `renew`."""
        lease = None if renew else self.get(key, space)
        if lease is None:
            lease = self._standing[key] = TaggedLease(space, key, tags)
        else:
            # Parameters left out of the key may give one key other tags: an invalidation of any voids it.
            lease.tags = tuple(dict.fromkeys(lease.tags + tags))
        return lease

    def stands(self, key: str, lease: Any) -> bool:
        """Return whether that very lease stands."""
        return self._standing.get(key) is lease

    def void(self, key: str) -> None:
        """Take away the lease at a key."""
        self._standing.pop(key, None)

    def void_if(self, which: Callable[[TaggedLease], object]) -> None:
        """Take away the leases for which `which` is true."""
        for key in [key for key, lease in self._standing.items() if which(lease)]:
            del self._standing[key]

    def clear(self) -> None:
        """Take all away."""
        self._standing.clear()


class View:
    """What this process knows of one log file.

    Args:
        log: the file.
        leases: those that a record voids which is read or written.
        ordered: keep the keys in the order of use.
    """

    def __init__(self, log: LogFile, leases: Leases, ordered: bool) -> None:
        self.log = log
        self.leases = leases
        self.index = Index(ordered)
        self.position = self.size = log.first
        self.gap = 0  # bytes before `position` that are the beginnings of records whose writers were killed
        self._last: tuple[int, int | bytes | memoryview] | None = None  # where the latest record ends, check or seal
        self.early: set[str] = set()  # keys of records that a clock in the future has made
        self.torn = self.damaged = 0  # how many stretches could not be read: beginnings, and for any other reason

    def catch_up(self, size: int, now: float, final: bool) -> None:
        """Read what others have appended.

        Args:
            size: of the file.
            now: by the wall clock; what was made after it has no end that means anything.
            final: the lock is held.
        """
        for piece in self.log.scan(self.position, size, final):
            self.follow(piece, now)
        self.size = size

    def continues(self) -> bool:
        """Return whether the file still is as it was read: not cut off by somebody, and then written on."""
        if self._last is None:
            return self.log.intact()
        end, seal = self._last
        return self.log.ends_with(self.log.identity.seal(seal) if isinstance(seal, int) else seal, end)

    def follow(self, piece: Piece, now: float) -> bool:
        """Let the index and the leases be as a stretch of the log says, which follows on what was read.

        Returns:
            False: it could not be read, for another reason than that its writer was killed.
        """
        told = True
        # One record at a time: where a Ctrl-C comes in between, the next reading begins with the same record.
        if piece.head is not None and self._read(piece, now):
            self.gap = 0
            self._last = piece.end, piece.head.check
        elif piece.torn:
            self.torn += 1
            self.gap += piece.end - piece.offset
        else:
            # It may have been an invalidation of anything that stands before it.
            told = False
            self.damaged += 1
            self.gap = 0
            self.index.clear()
            self.leases.clear()
        self.position = piece.end
        return told

    def _read(self, piece: Piece, now: float) -> bool:
        head = piece.head
        assert head is not None
        current = head.made <= now + TOLERANCE
        try:
            if current and head.kind == _VALUE and not head.flags & Flags.RICH:  # nearly all of a log is that
                key = decode_text(piece.key)
                self.leases.void(key)
                owner = decode_text(piece.meta) if piece.meta else ""
                self.index.put(key, piece.offset, piece.end - piece.offset, owner, head.until, (), None)
                return True
            item = Item(Kind(head.kind), decode_text(piece.key), piece.meta, b"", head.flags, head.made, head.until)
            self._enter(item, piece.offset, piece.end - piece.offset, current)
        except (ValueError, struct.error):
            return False  # checked and yet nonsense: somebody has made it so
        return True

    def _enter(self, item: Item, offset: int, length: int, current: bool) -> None:
        """Let the index and the leases be as a record says."""
        kind, key, index = item.kind, item.key, self.index
        if kind is Kind.VALUE:
            self.leases.void(key)
            if not current:
                index.drop(key)
                self.early.add(key)
            elif item.flags & Flags.RICH:
                owner, tags, windows = decode_meta(item.meta)
                index.put(key, offset, length, owner, item.until, tags, windows)
            else:
                index.put(key, offset, length, decode_text(item.meta), item.until, (), None)
        elif kind is Kind.DELETE:
            self.leases.void(key)
            index.drop(key)
        elif kind is Kind.VOID:
            self.leases.void(key)
        elif kind is Kind.PATTERN:
            matches = compile_pattern(key).match
            self.leases.void_if(lambda lease: matches(lease.key))
            index.drop_matching(matches)
        elif kind is Kind.TAGS:
            tags = decode_texts(item.meta)
            named = set(tags)
            self.leases.void_if(lambda lease: not named.isdisjoint(lease.tags))
            index.mark_tags(tags, offset)
        elif kind is Kind.OWNER:
            self.leases.void_if(lambda lease: lease.space.owner == key)
            index.mark_owner(key, offset)
        else:
            self.leases.clear()
            index.clear()

    def append(self, items: Sequence[Item]) -> None:
        """Append records; the lock is held, and all that stands in the file was read.

        Raises:
            OSError: not everything could be written; the next reading finds what was.
        """
        offset, gap = self.position, self.gap
        pieces: list[bytes | memoryview] = []
        placed = []
        for item in items:
            record = self.log.identity.record(
                offset,
                gap,
                item.kind,
                item.flags,
                encode_text(item.key),
                item.meta,
                item.payload,
                item.made,
                item.until,
            )
            length = sum(map(len, record))
            placed.append((item, offset, length))
            pieces += record
            offset, gap = offset + length, 0
        if self.gap:
            self.log.note(self.position - self.gap, self.position)
        self.log.append(pieces)
        for item, start, length in placed:
            self._enter(item, start, length, current=True)
            self.position = self.size = start + length
            self.gap = 0
        self._last = self.position, record[-1]
