"""The store in one file, which processes share and which survives them: what a caller asks, done on the log.

Every operation first reads what other processes have appended. What changes the file is done under the file's lock,
which nobody holds while any code of the user's runs, and which is tried for no longer than `timeout`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ..clock import SYSTEM, checked_clock, seconds
from ..entry import DEFAULT, MISSING, Life
from ..errors import OptionError, StoreError
from ..forks import fork_safe_lock, in_child
from ..keys import CallKeys
from ..stats import Counter, StoreStats, logger
from .base import Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl, stores
from .books import Books
from .compaction import Compaction
from .filespace import FileSpace
from .frames import LARGEST, Content, Flags, Kind, Windows, encode_meta, encode_text, encode_texts, signing_keys
from .index import Spot
from .logfile import LARGE, LOCKS, LogFile
from .patterns import compile_pattern
from .replay import TOLERANCE, Item, Leases, View

__all__ = ["FileStats", "PickleFileStore", "checked_path"]

T = TypeVar("T")
Dumped = tuple[tuple[bytes, ...], int]  # a pickle in pieces, and what is known of it

FIRST_PAUSE, LONGEST_PAUSE = 0.0002, 0.01
"""Seconds between two looks whether another process has let go of the file's lock."""

_CHUNK: Final = 1_000
"""Keys that are looked at before another thread has its turn."""


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


class PickleFileStore(Store):
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
        if not LOCKS:  # pragma: no cover - Windows
            raise OptionError("PickleFileStore needs flock, which this system does not have: use MemoryStore")
        if max_size is not None and (type(max_size) is not int or max_size < 1):
            raise OptionError(f"max_size={max_size!r}: allowed are whole numbers from 1 on, and None for any number")
        self.path = checked_path(path)
        self.max_size = max_size
        self.default_ttl = checked_ttl(default_ttl, "default_ttl")
        self._timeout = seconds(timeout, "timeout")
        self._keys = signing_keys(secret)
        self._clock = checked_clock(clock)
        self._books = Books()
        # Guards everything below, and is held for each step on the file: no other thread uses the descriptor meanwhile.
        self._lock = fork_safe_lock()
        # Held within it. Only this very thread can meet it held: a signal handler, a finalizer or a log handler that
        # has come in the middle of an operation.
        self._inside = threading.Lock()
        self._leases = Leases()
        self._view: View | None = None
        self._latest, self._skew = -math.inf, -math.inf  # of the clock: the wall's, and that minus the monotonic one
        self._owes = False  # a clock has run backwards, and the others have not been told yet
        self._sets = self._deletes = self._evictions = self._expirations = self._corrupt = 0
        self._errors: dict[str, int] = {}
        self._compaction = Compaction(self)
        try:
            self._reading(lambda: None)
        except OSError as error:
            self._failed("open", error)  # a full disk, say: it may pass

    def __repr__(self) -> str:
        return f"PickleFileStore({self.path!r}, max_size={self.max_size}, default_ttl={self.default_ttl})"

    # -- the file; the lock is held where nothing else is said -------------------------------------------------------

    def _reading(self, work: Callable[[], T]) -> T:
        """Do `work` when all that is in the file has been read. The lock is not held.

        Raises:
            StoreError: the file must not be used, or another operation of this very thread is under way.
            OSError: it cannot be read.
        """
        with self._lock:
            self._once()
            with self._inside:
                self._look()
                answer = work()
        if self._owes:
            self._pay()
        return answer

    def _pay(self) -> None:
        """Tell the other processes that a clock has run backwards, if that can be done now. The lock is not held."""
        with contextlib.suppress(StoreError):
            self._writing(lambda: None)

    def _writing(self, work: Callable[[], T]) -> T:
        """Do `work` when all that is in the file has been read and nobody else can write. The lock is not held.

        Raises:
            StoreError: the file cannot be locked, read or written.
        """
        pause, waited = FIRST_PAUSE, 0.0
        try:
            while True:
                with self._lock:
                    self._once()
                    with self._inside:
                        view = self._look_locked()
                        if view is not None:
                            try:
                                answer = work()
                            finally:
                                try:
                                    view.log.unlock()
                                except KeyboardInterrupt:
                                    view.log.unlock()
                                    raise
                            break
                if waited >= self._timeout:
                    raise StoreError(
                        f"{self.path!r} could not be locked within {self._timeout:g} s: another process holds the lock"
                    )
                # The sum of the pauses, since a test may have stopped the clock.
                time.sleep(pause)
                waited, pause = waited + pause, min(pause * 2, LONGEST_PAUSE)
        except OSError as error:
            raise StoreError(f"{self.path!r}: {error.strerror or type(error).__name__}") from error
        self._books.bury()
        self._compaction.consider()
        return answer

    def _once(self) -> None:
        if self._inside.locked():
            raise StoreError(f"{self.path!r} is in use by this very thread, in the middle of another operation")

    def _look(self) -> View:
        """Read what others have appended."""
        view = self._view
        size = None if view is None else view.log.size()
        if view is None or size is None or size < view.position:
            view = self._open()
            size = view.log.size()
            if size is None:
                raise StoreError(f"{self.path!r} is being replaced again and again")
        now = self._now(view)
        if size != view.size or view.log.suspect:
            view.catch_up(size, now, final=False)
            if view.log.suspect:
                # It cannot be a record that is being written. Who holds the lock knows what it is.
                if not view.log.try_lock():
                    raise StoreError(f"{self.path!r} has something at its end that cannot be read just now")
                try:
                    view.catch_up(view.log.size() or size, now, final=True)
                finally:
                    view.log.unlock()
        return view

    def _look_locked(self) -> View | None:
        """Take the file's lock and read all that is there; return None if that cannot be done just now."""
        view = self._view
        if view is None or view.log.fd < 0:
            view = self._open()
        log = view.log
        if not log.try_lock():
            return None
        try:
            # Only now: whoever held the lock may have put another file in the place of this one.
            size = log.size()
            if size is None or size < view.position:
                log.unlock()
                self._open()
                return None
            now = self._now(view)
            if size != view.position:
                view.catch_up(size, now, final=True)
            if self._owes:
                view.append([Item(Kind.CLEAR)])
                self._owes = False
        except BaseException:
            log.unlock()
            raise
        return view

    def _open(self) -> View:
        """Open the file that is there now. All leases are void: what has happened to it meanwhile is not known."""
        before, self._view = self._view, None
        self._leases.clear()
        log = LogFile(self.path, self._keys)
        if before is not None:
            before.log.close()
            if before.log.same(log) and (log.size() or 0) >= before.position:
                before.log = log  # a child of fork: what its parent had read is right
                self._view = before
                return before
        view = self._view = View(log, self._leases, self.max_size is not None)
        return view

    def _now(self, view: View) -> float:
        """Return the time; where the clock has run backwards, nothing in the file has an end that means anything."""
        clock = self._clock
        now: float = clock.time()
        skew = now - clock.monotonic()
        if now < self._latest - TOLERANCE or skew < self._skew - TOLERANCE:
            view.index.clear()
            view.leases.clear()
            self._owes, self._skew = True, skew
        elif skew > self._skew:
            self._skew = skew
        self._latest = now
        return now

    def _alive(self, key: str) -> Spot | None:
        """Return what the index says of a key whose ttl is not over."""
        spot = self._kept(key)
        return spot if spot is not None and self._latest < spot.fresh_until else None

    def _kept(self, key: str) -> Spot | None:
        """Return what the index says of a key that is of some use; what is over is taken out."""
        assert self._view is not None
        index = self._view.index
        spot = index.find(key)
        if spot is not None and self._latest >= spot.kept_until:
            index.drop(key)
            self._expirations += 1
            return None
        return spot

    def _content(self, key: str, spot: Spot) -> Content | None:
        """Return what the file has at a key; None, and the key leads nowhere, if that is not as it was written."""
        assert self._view is not None
        content = self._view.log.content(spot.offset, spot.length, encode_text(key))
        if content is None:
            self._view.index.drop(key)
            self._spoilt()
        else:
            self._view.index.use(key)
        return content

    def _spoilt(self) -> None:
        self._corrupt += 1
        if self._corrupt == 1:
            logger.warning("%r: a value is not as it was written, or cannot be unpickled, and is a miss", self.path)

    def _failed(self, name: str, error: Exception) -> None:
        """Count what fails without failing the caller; log the first of each kind."""
        count = self._errors[name] = self._errors.get(name, 0) + 1
        if count == 1:
            logger.warning("%r: %s failed (%s: %s)", self.path, name, type(error).__name__, error)

    # -- values ------------------------------------------------------------------------------------------------------

    def _found(self, key: str, owner: str | None) -> tuple[Spot, Content, float] | None:
        """Return what is kept at a key, unpickled by nobody yet, and the time; None as `owner` is anyone's."""
        # What `_reading` does, written out: this is the way of every hit.
        with self._lock:
            self._once()
            with self._inside:
                view, found = self._look(), None
                spot = self._kept(key)
                if spot is not None and (self._latest < spot.fresh_until if owner is None else spot.owner == owner):
                    content = view.log.content(spot.offset, spot.length, encode_text(key))
                    if content is None:
                        view.index.drop(key)
                        self._spoilt()
                    else:
                        view.index.use(key)
                        found = spot, content, self._latest
        if self._owes:
            self._pay()
        return found

    def _loaded(self, content: Content) -> Any:
        """Return the value of a record, MISSING if it cannot be unpickled. The lock is not held: it is anyone's code."""
        try:
            value = pickle.loads(content[1])  # noqa: S301 - verified if there is a secret
        except Exception:  # noqa: BLE001 - what cannot be read is not there
            self._spoilt()
            return MISSING
        view = self._view
        if view is not None:
            view.log.done(content)
        return value

    def _dumped(self, value: Any) -> Dumped:
        """Return the pickle of a value, and what is known of it. The lock is not held: it is anyone's code."""
        pieces: list[Any] = []
        try:
            pickle.Pickler(_Pieces(pieces.append), pickle.HIGHEST_PROTOCOL).dump(value)
        except Exception as error:
            raise StoreError(
                f"a {type(value).__module__}.{type(value).__qualname__} cannot be pickled, and so cannot be stored in "
                f"a file ({type(error).__name__}: {error})"
            ) from error
        if len(pieces) > 1:
            # A bytearray is the user's own, who may change it.
            pieces = [piece if type(piece) is bytes else bytes(piece) for piece in pieces]
            length = sum(map(len, pieces))
            if length > LARGEST:
                raise StoreError(f"a pickle of {length} bytes is too large: allowed are {LARGEST}")
        return tuple(pieces), Flags.NUMBER if type(value) in (int, float) else 0

    def _item(self, key: str, dumped: Dumped, ttl: Any, tags: tuple[str, ...], owner: str) -> Item:
        """Return the record of a value that is stored now."""
        now = self._latest
        life = ttl if isinstance(ttl, Life) else None
        length = self.default_ttl if ttl is DEFAULT else ttl if life is None else life.ttl
        until = math.inf if length is None else now + length
        windows = None
        if life is not None and length is not None:
            windows = Windows(until - life.early, until + life.stale, until + life.kept)
        flags, meta = encode_meta(owner, tags, windows)
        return Item(Kind.VALUE, key, meta, dumped[0], flags | dumped[1], now, until)

    def _append(self, items: Sequence[Item]) -> None:
        """Append records of values, and remove what there is no room for any more."""
        assert self._view is not None
        view, index = self._view, self._view.index
        view.append(items)
        self._sets += len(items)
        if self.max_size is None or len(index) <= self.max_size:
            return
        index.sweep()
        victims = []
        for key in index.listed()[: max(0, len(index) - self.max_size)]:
            spot = self._kept(key)
            if spot is not None:
                victims.append(Item(Kind.DELETE, key))
        if victims:
            view.append(victims)
            self._evictions += len(victims)

    def _store(
        self, values: Sequence[tuple[str, Dumped]], ttl: Any, tags: tuple[str, ...], owner: str, lease: Any = None
    ) -> bool:
        """Store values, with a lease only if that stands. The lock is not held.

        Raises:
            StoreError: nothing is stored; what was there is not found by this store any more.
        """

        def work() -> bool:
            if lease is not None and not self._leases.stands(values[0][0], lease):
                return False
            self._append([self._item(key, dumped, ttl, tags, owner) for key, dumped in values])
            return True

        try:
            return self._writing(work)
        except StoreError:
            for key, _ in values:
                self._let_go(key, lease)
            raise

    def _let_go(self, key: str, lease: Any) -> None:
        """Find nothing at a key any more, since what was to be there instead could not be stored.

        Args:
            key: the key.
            lease: only if that stands; None: in any case.
        """
        with self._lock:
            if lease is None or self._leases.stands(key, lease):
                self._leases.void(key)
                if self._view is not None and not self._inside.locked():
                    self._view.index.drop(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`; it becomes the most recently used one in this process."""
        key = checked_key(key)
        value: Any = MISSING
        try:
            found = self._found(key, None)
            if found is not None:
                value = self._loaded(found[1])
        except (StoreError, OSError) as error:
            self._failed("get", error)
        (self._books.misses if value is MISSING else self._books.hits).tick()
        return default if value is MISSING else value

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

    def _remove(self, keys: Sequence[str], owner: str | None) -> int:
        """Remove values that are this owner's, None: anyone's, and void the leases; the file's lock is held."""
        assert self._view is not None
        count, items = 0, []
        for key in keys:
            spot = self._kept(key)
            if spot is not None and owner is not None and spot.owner != owner:
                self._leases.void(key)
                continue
            count += spot is not None and self._latest < spot.fresh_until
            items.append(Item(Kind.DELETE, key))
        if items:
            self._view.append(items)
        self._deletes += count
        return count

    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`."""
        key = checked_key(key)
        return self._asked("exists", lambda: self._alive(key) is not None, False)

    def ttl(self, key: str) -> float | None:
        """Return the seconds that the value at `key` has left; None: there is none; infinity: it never expires."""
        return self._left(checked_key(key), None)

    def _left(self, key: str, owner: str | None) -> float | None:
        def work() -> float | None:
            spot = self._alive(key)
            if spot is None or (owner is not None and spot.owner != owner):
                return None
            return spot.fresh_until - self._latest

        return self._asked("ttl", work, None)

    def _asked(self, name: str, work: Callable[[], T], otherwise: T) -> T:
        try:
            return self._reading(work)
        except (StoreError, OSError) as error:
            self._failed(name, error)
            return otherwise

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

    def _copied(self, key: str, spot: Spot, dumped: Dumped, until: float) -> Item:
        """Return the record of an entry with another value or another end; its windows are as long as before."""
        assert self._view is not None
        windows, ends = None, spot.fresh_until
        if not math.isinf(until) and not math.isinf(ends):
            late = until - ends
            windows = Windows(spot.due + late, spot.stale_until + late, spot.kept_until + late)
            if windows == (until, until, until):
                windows = None
        flags, meta = encode_meta(spot.owner, self._view.index.tags(key), windows)
        return Item(Kind.VALUE, key, meta, dumped[0], flags | dumped[1], self._latest, until)

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

    def _living(self) -> list[str]:
        """Return the keys of all that has time left. The lock is not held."""
        keys = self._reading(lambda: self._view.index.listed() if self._view is not None else [])
        alive: list[str] = []
        for start in range(0, len(keys), _CHUNK):
            with self._lock:
                if self._view is not None and not self._inside.locked():
                    alive += [key for key in keys[start : start + _CHUNK] if self._alive(key) is not None]
        return alive

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys that match, those of decorated functions as `key_for` writes them, in no particular order."""
        matches = compile_pattern(pattern).match
        try:
            return [key for key in self._living() if matches(key)]
        except (StoreError, OSError) as error:
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

    def _forget(self, item: Item, gone: Callable[[str], bool]) -> int:
        assert self._view is not None
        count = sum(gone(key) and self._alive(key) is not None for key in self._view.index.listed())
        self._view.append([item])
        self._deletes += count
        return count

    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags, at a cost that does not grow with their number.

        Raises:
            StoreError: they may still be there.
        """
        named = checked_tags(tags)
        if named:
            self._invalidate(Item(Kind.TAGS, meta=encode_texts(named)))

    def _invalidate(self, item: Item) -> None:
        def work() -> None:
            assert self._view is not None
            self._view.append([item])

        self._writing(work)

    def cleanup(self) -> int:
        """Take out what is over, which else is done when it is met; return how much there was."""
        before = self._expirations
        with contextlib.suppress(StoreError, OSError):
            self._living()
        return self._expirations - before

    def compact(self) -> bool:
        """Rewrite the file without its garbage, now; return whether that was done.

        Raises:
            StoreError: the file cannot be read or written.
        """
        return self._compaction.now()

    def _adopt(self, old: View, target: View) -> None:
        """Go on with the file that a compaction has just put in the place of another one; it knows what is in both."""
        with self._lock:
            mine = self._view
            if mine is None or not mine.log.same(old.log) or self._inside.locked():
                target.log.close()
                return
            if self.max_size is not None:
                mine.catch_up(old.position, self._clock.time(), final=True)
                for key in mine.index.listed():
                    target.index.use(key)
            self._leases.clear()
            target.leases = self._leases
            target.torn, target.damaged = mine.torn, mine.damaged
            self._view = target
            mine.log.close()

    def stats(self) -> FileStats:
        """Return what has been counted in this process; `size` is how many entries the file has."""
        with contextlib.suppress(StoreError, OSError):
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
        self._compaction.stop()
        with self._lock:
            self._once()
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

    def _quick(self, key: str) -> bool:
        """Return whether a read of a key takes no longer than a look into a file."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            view = self._view
            if view is None or self._inside.locked():
                return False
            size = view.log.size()
            spot = view.index.find(key)
            return size is not None and 0 <= size - view.size < LARGE and (spot is None or spot.length < LARGE)
        except OSError:
            return False
        finally:
            self._lock.release()

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


class _Pieces:
    """Takes a pickle piece by piece: what is large in a value comes as it is, without being copied."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


def checked_path(path: Any) -> str:
    """Return the absolute form of a path, the folder of which is there, else raise OptionError."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or not os.fspath(path):
        raise OptionError(f"path={path!r}: allowed are text and a pathlib.Path")
    text = os.fspath(path)
    if "\x00" in text:
        raise OptionError(f"path={path!r}: a path has no NUL in it")
    absolute = Path(os.path.abspath(text))
    if not absolute.parent.is_dir():
        raise OptionError(f"path={text!r}: the folder {str(absolute.parent)!r} is not there: make it first")
    return str(absolute)


def _in_child() -> None:
    for store in stores():
        if isinstance(store, PickleFileStore):
            store._compaction = Compaction(store)  # its thread is the parent's


in_child(_in_child)
