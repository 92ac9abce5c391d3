"""The store in one file, which processes share and which survives them: what callers may ask of it.

Every operation first reads what other processes have appended; nothing in here touches the file itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..clock import SYSTEM, checked_clock, seconds
from ..entry import DEFAULT, MISSING
from ..errors import OptionError, StoreError
from ..forks import in_child
from ..keys import CallKeys
from ..serializers.signing import signing_keys
from ..stats import Counter, StoreStats
from .access import FAILURES, checked_path
from .base import Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl, stores
from .compaction import Compaction
from .entries import Dumped, FileEntries
from .filespace import FileSpace
from .frames import PURPOSE, Flags, Kind, encode_texts
from .logfile import LOCKS
from .patterns import compile_pattern
from .replay import Item

__all__ = ["FileStats", "PickleFileStore"]


@dataclass(frozen=True)
class FileStats(StoreStats):
    """What happened in one file store, as far as this process has had a part in it.

    Attributes:
        file_size: bytes of the file when it was last looked at.
        live_size: bytes of it that are not garbage.
        torn: stretches that were skipped because a process was killed while it wrote them.
        damaged: stretches that could not be read for any other reason; what was written before one is not served.
        corrupt: values that were not as they were written, or could not be unpickled, and so were misses.
        compactions: how often this process has rewritten the file.
        errors: operations that failed without failing the caller, by name.
    """

    file_size: int = 0
    live_size: int = 0
    torn: int = 0
    damaged: int = 0
    corrupt: int = 0
    compactions: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class PickleFileStore(FileEntries, Store):
    """Keeps values in one file, an append-only log of pickles, which any number of processes share.

    Each process sees what the others have set, deleted and invalidated at its next operation, and no load that began
    before an invalidation in any of them is stored. A process that is killed loses at most what it was just writing.
    Keys are kept in memory, values are read from the file. When garbage outweighs what lives, one process rewrites the
    file, in a background thread.

    Where the file cannot be used, reads find nothing and `set` stores nothing, which is counted and logged once; what
    was to be removed and could not be is a StoreError. Unpickling runs code that the file names: without `secret` who
    can write the file can run code in every process that reads it. It is made readable by its owner only.

    Args:
        path: of the file; it is made if it is missing, its folder is not.
        max_size: how many entries there may be; beyond that the process that sets removes the one whose last write by
            anyone, or last read in that process, is the longest ago. None: any number.
        default_ttl: seconds or a timedelta for what is stored without a ttl; None: it never expires.
        secret: bytes or text of at least 16 bytes that sign every record: nothing is unpickled that was not written by
            who knows it. A list: the first one signs, all verify.
        timeout: seconds or a timedelta for which an operation tries to lock the file.
        clock: an object with `monotonic()` and `time()`, such as the time module.

    Raises:
        OptionError: an argument is out of range, the folder is missing, or the system has no file locks.
        StoreError: what is at `path` must not be used: not memo's, of a newer format, a link, another user's, or signed
            otherwise.

    >>> import os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> store = PickleFileStore(os.path.join(folder.name, "cache.memo"), default_ttl=60)
    >>> store.set("a", {1, 2})
    >>> another = PickleFileStore(os.path.join(folder.name, "cache.memo"))
    >>> another.get("a")
    {1, 2}
    >>> store.close(); another.close(); folder.cleanup()
    """

    shared = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_size: int | None = None,
        default_ttl: Any = None,
        secret: Any = None,
        timeout: Any = 0.25,
        clock: Any = SYSTEM,
    ) -> None:
        if not LOCKS:
            raise OptionError("PickleFileStore needs flock, which this system does not have: use MemoryStore")
        if max_size is not None and (type(max_size) is not int or max_size < 1):
            raise OptionError(f"max_size={max_size!r}: allowed are whole numbers from 1 on, and None for any number")
        checked = checked_path(path)
        self.default_ttl = checked_ttl(default_ttl, "default_ttl")
        super().__init__(
            checked, max_size, signing_keys(secret, PURPOSE), seconds(timeout, "timeout"), checked_clock(clock)
        )
        self._compaction = Compaction(self)
        try:
            self._reading(lambda: None)
        except (OSError, MemoryError) as error:
            self._failed("open", error)  # a full disk, say: it may pass

    def __repr__(self) -> str:
        return f"PickleFileStore({self.path!r}, max_size={self.max_size}, default_ttl={self.default_ttl})"

    # -- values ------------------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`; it becomes the most recently used one in this process."""
        if type(key) is not str:
            key = checked_key(key)
        try:
            found = self._found(key, None)
            if found is not None and (value := self._loaded(found[1])) is not MISSING:
                self._books.hits.tick()
                return value
        except FAILURES as error:
            self._failed("get", error)
        self._books.misses.tick()
        return default

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Store a value; whatever was at `key` is gone, and no load that began before fills it.

        Where the file cannot be written nothing is stored, which is counted in `stats` and logged once.

        Raises:
            StoreError: the value cannot be pickled.
        """
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        self._set([(checked_key(key), self._dumped(value))], length)

    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Store several values with one write; what is not allowed is found before anything is stored."""
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        for key in values:
            checked_key(key)
        if values:
            self._set([(checked_key(key), self._dumped(value)) for key, value in values.items()], length)

    def _set(self, values: Sequence[tuple[str, Dumped]], length: Any) -> None:
        try:
            self._store(values, length, (), "")
        except StoreError as error:
            self._failed("set", error)

    def delete(self, key: str) -> bool:
        """Remove the value at `key`; return whether there was one.

        Raises:
            StoreError: it may still be there.
        """
        return self.delete_many([key]) > 0

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove several values with one write; return how many there were.

        Raises:
            StoreError: they may still be there.
        """
        given = list(dict.fromkeys([checked_key(key) for key in keys]))
        return self._writing(lambda: self._remove(given, None)) if given else 0

    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`."""
        key = checked_key(key)
        return self._asked("exists", lambda: self._alive(key) is not None, False)

    def ttl(self, key: str) -> float | None:
        """Return the seconds that the value at `key` has left; None: there is none; infinity: it never expires."""
        return self._left(checked_key(key), None)

    def increment(self, key: str, amount: float = 1) -> Any:
        """Add to the number at `key` in one step for all processes; a missing key starts at `amount`.

        Raises:
            ValueError: what is there is not a number.
            OptionError: the amount is none.
            StoreError: the file cannot be written.
        """
        key = checked_key(key)
        checked_amount(amount)

        def work() -> Any:
            spot = self._alive(key)
            content = None if spot is None else self._content(key, spot)
            if spot is None or content is None:
                self._append([self._item(key, self._dumped(amount), DEFAULT, (), "")])
                return amount
            if not content[0] & Flags.NUMBER:
                raise ValueError(f"increment({key!r}): what is there is not a number")
            total = pickle.loads(content[1]) + amount  # noqa: S301 - of a number: no code but pickle's own
            self._append([self._copied(key, spot, self._dumped(total), spot.fresh_until)])
            return total

        return self._writing(work)

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Give the value at `key` a new ttl from now, and windows as long as before; return whether there was one.

        Raises:
            StoreError: the file cannot be written.
        """
        key, length = checked_key(key), self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)

        def work() -> bool:
            spot = self._alive(key)
            content = None if spot is None else self._content(key, spot)
            if spot is None or content is None:
                return False
            until = math.inf if length is None else self._latest + length
            number = content[0] & Flags.NUMBER
            self._append([self._copied(key, spot, ((bytes(content[1]),), number), until)])
            return True

        return self._writing(work)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are there, by key."""
        found = [(key, self.get(key, MISSING)) for key in keys]
        return {key: value for key, value in found if value is not MISSING}

    # -- many at once ------------------------------------------------------------------------------------------------

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys that match, those of decorated functions as `key_for` writes them, in no particular order."""
        matches = compile_pattern(pattern).match
        try:
            return [key for key in self._living() if matches(key)]
        except FAILURES as error:
            self._failed("keys", error)
            return []

    def delete_pattern(self, pattern: str) -> int:
        """Remove the values whose keys match, and let no load under way fill one; return how many there were.

        Raises:
            StoreError: they may still be there.
        """
        matches = compile_pattern(pattern).match
        return self._writing(lambda: self._forget(Item(Kind.PATTERN, pattern), lambda key: bool(matches(key))))

    def clear(self) -> None:
        """Remove everything, and let no load that is under way in any process fill anything.

        Raises:
            StoreError: it may still be there.
        """
        self._writing(lambda: self._forget(Item(Kind.CLEAR), lambda key: True))

    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags, at a cost that does not grow with their number.

        Raises:
            StoreError: they may still be there.
        """
        named = checked_tags(tags)
        if named:
            self._invalidate(Item(Kind.TAGS, meta=encode_texts(named)))

    def cleanup(self) -> int:
        """Take out what is over, which else is done when it is met; return how much there was."""
        before = self._expirations
        with contextlib.suppress(*FAILURES):
            self._living()
        return self._expirations - before

    def compact(self) -> bool:
        """Rewrite the file without its garbage, now; return whether that was done.

        Raises:
            StoreError: the file cannot be read or written.
        """
        return self._compaction.now()

    def stats(self) -> FileStats:
        """Return what has been counted in this process; `size` is how many entries the file has."""
        with contextlib.suppress(*FAILURES):
            self._reading(lambda: self._view.index.sweep() if self._view is not None else 0)
        hits, misses = self._books.totals()
        with self._lock:
            view = self._view
            return FileStats(
                hits=hits,
                misses=misses,
                sets=self._sets,
                deletes=self._deletes,
                evictions=self._evictions,
                expirations=self._expirations,
                size=0 if view is None else len(view.index),
                max_size=self.max_size,
                file_size=0 if view is None else view.size,
                live_size=0 if view is None else view.index.live,
                torn=0 if view is None else view.torn,
                damaged=0 if view is None else view.damaged,
                corrupt=self._corrupt,
                compactions=self._compaction.count,
                errors=dict(self._errors),
            )

    def close(self) -> None:
        """Close the file, after a compaction that is under way has been broken off; it is opened again when needed."""
        with self._lock:
            self._once()  # else the compaction might wait for this very thread
        self._compaction.stop()
        with self._lock:
            view, self._view = self._view, None
            self._leases.clear()
            if view is not None:
                view.log.close()

    # -- decorated functions -----------------------------------------------------------------------------------------

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> FileSpace:
        """Return the space of a decorated function."""
        space = FileSpace(self, keys)
        self._books.open(space, owner, (hits, misses))
        return space

    # -- awaiting: what is small and needs no waiting is done at once, all else in a worker thread -------------------

    async def aget(self, key: str, default: Any = None) -> Any:
        """Do what `get` does, awaited."""
        if self._quick(checked_key(key)):
            return self.get(key, default)
        return await asyncio.to_thread(self.get, key, default)

    async def aexists(self, key: str) -> bool:
        """Do what `exists` does, awaited."""
        if self._quick(checked_key(key)):
            return self.exists(key)
        return await asyncio.to_thread(self.exists, key)

    async def attl(self, key: str) -> float | None:
        """Do what `ttl` does, awaited."""
        if self._quick(checked_key(key)):
            return self.ttl(key)
        return await asyncio.to_thread(self.ttl, key)


def _in_child() -> None:
    for store in stores():
        if isinstance(store, PickleFileStore):
            store._compaction = Compaction(store)  # its thread is the parent's


in_child(_in_child)
