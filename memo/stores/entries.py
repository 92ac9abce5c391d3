"""Values as records: made, found, replaced and removed on behalf of a store and of its functions' spaces.

Pickling and unpickling run code of the user's, and so are done where no lock is held.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ..entry import DEFAULT, MISSING, Life
from ..errors import StoreError
from ..serializers import is_foreign, refuse_foreign
from .access import FAILURES, FileAccess
from .frames import LARGEST, Content, Flags, Kind, Windows, encode_meta, encode_text
from .index import Spot
from .replay import Item

__all__ = ["Dumped", "FileEntries"]

T = TypeVar("T")

Dumped = tuple[tuple[bytes, ...], int]
"""A pickle in pieces, and what is known of it."""

_CHUNK: Final = 1_000
"""Keys that are looked at before another thread has its turn."""


class FileEntries(FileAccess):
    """What a file has at its keys; where nothing else is said the lock is held."""

    default_ttl: float | None

    def _found(self, key: str, owner: str | None) -> tuple[Spot, Content, float] | None:
        """Return what is kept at a key, unpickled by nobody yet, and the time; None as `owner` is anyone's."""
        found = None
        # What `_reading` does, written out: this is the way of every hit. Where nothing is to be read there is nothing
        # either that a signal handler could meet half done.
        with self._lock:
            view = self._view
            if view is None or view.log.suspect or view.log.size() != view.size or self._inside.locked():
                self._once()
                with self._inside:
                    view = self._look()
            else:
                self._now(view)
            index, now = view.index, self._latest
            spot = index.find(key)
            if spot is not None and now >= spot.fresh_until and now >= spot.kept_until:
                spot = self._kept(key)
            if spot is not None and (now < spot.fresh_until if owner is None else spot.owner == owner):
                content = view.log.content(
                    spot.offset, spot.length, key.encode() if key.isascii() else encode_text(key)
                )
                if content is None:
                    index.drop(key)
                    self._spoilt()
                else:
                    if self.max_size is not None:
                        index.use(key)
                    found = spot, content, now
        if self._owes or self._afterwards:
            self._settle()
        return found

    def _loaded(self, content: Content, key: str = "", serializer: Any = None) -> Any:
        """Return a record's value, MISSING if it cannot be unpickled. The lock is not held: that is anyone's code.

        Args:
            content: the record's.
            key: where it is.
            serializer: of the function whose it is, if that has one of its own: its bytes are what was pickled.
        """
        try:
            value = pickle.loads(content[1])  # noqa: S301 - verified if there is a secret
            if serializer is not None:
                value = serializer.loads(value, key)
            elif is_foreign(value, None):
                value = MISSING
        except Exception:  # noqa: BLE001 - what cannot be read is not there
            self._spoilt()
            self._tell()
            return MISSING
        if type(content[1]) is memoryview and (view := self._view) is not None:
            view.log.done(content[1])
        return value

    def _dumped(self, value: Any, serializer: Any = None) -> Dumped:
        """Return the pickle of a value, and what is known of it. The lock is not held: it is anyone's code.

        Args:
            value: what is to be kept.
            serializer: of the function whose it is, if that has made it.
        """
        refuse_foreign(value, serializer)
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
        for key in index.oldest(max(0, len(index) - self.max_size)):
            spot = self._kept(key)
            if spot is not None:
                victims.append(Item(Kind.DELETE, key))
        if victims:
            view.append(victims)
            self._evictions += len(victims)

    def _store(self, values: Sequence[tuple[str, Dumped]], ttl: Any, tags: tuple[str, ...], owner: str) -> None:
        """Store values. The lock is not held.

        Raises:
            StoreError: nothing is stored; what was there is not found by this store any more.
        """

        def work() -> None:
            self._append([self._item(key, dumped, ttl, tags, owner) for key, dumped in values])

        try:
            self._writing(work)
        except StoreError:
            for key, _ in values:
                self._let_go(key, None)
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
                if self._inside.locked():  # by this very thread, of which an operation was interrupted
                    self._afterwards.append(partial(self._let_go, key, None))
                elif self._view is not None:
                    self._view.index.drop(key)

    def _remove(self, keys: Sequence[str], owner: str | None) -> int:
        """Remove values that are this owner's, None: anyone's, and void the leases; the file's lock is held."""
        assert self._view is not None
        count, items = 0, []
        for key in keys:
            spot = self._kept(key)
            if spot is not None and owner is not None and spot.owner != owner:
                items.append(Item(Kind.VOID, key))
                continue
            count += spot is not None and self._latest < spot.fresh_until
            items.append(Item(Kind.DELETE, key))
        self._view.append(items)
        self._deletes += count
        return count

    def _forget(self, item: Item, gone: Callable[[str], bool]) -> int:
        assert self._view is not None
        count = sum(gone(key) and self._alive(key) is not None for key in self._view.index.listed())
        self._view.append([item])
        self._deletes += count
        return count

    def _invalidate(self, item: Item) -> None:
        def work() -> None:
            assert self._view is not None
            self._view.append([item])

        self._writing(work)

    def _asked(self, name: str, work: Callable[[], T], otherwise: T) -> T:
        try:
            return self._reading(work)
        except FAILURES as error:
            self._failed(name, error)
            return otherwise

    def _left(self, key: str, owner: str | None) -> float | None:
        def work() -> float | None:
            spot = self._alive(key)
            if spot is None or (owner is not None and spot.owner != owner):
                return None
            return spot.fresh_until - self._latest

        return self._asked("ttl", work, None)

    def _living(self) -> list[str]:
        """Return the keys of all that has time left. The lock is not held."""
        keys = self._reading(lambda: self._view.index.listed() if self._view is not None else [])
        alive: list[str] = []
        for start in range(0, len(keys), _CHUNK):
            with self._lock, self._inside:  # free: within another operation of this thread `_reading` has raised
                if self._view is not None:  # another thread has closed it meanwhile
                    alive += [key for key in keys[start : start + _CHUNK] if self._alive(key) is not None]
        return alive


class _Pieces:
    """Takes a pickle piece by piece: what is large in a value comes as it is, without being copied."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write
