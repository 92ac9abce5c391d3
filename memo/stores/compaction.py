"""Rewrites a log file without its garbage, beside those who use it: nobody waits for it, and nothing is lost by it.

1. What lives is copied into a new file, `.NAME.compact` in the same folder, whose lock says who is compacting.
2. What others append to the old file meanwhile is copied, too, again and again, until there is little left.
3. The old file is locked, the rest is copied, and the new file takes the old one's name. It is locked already, so that
   nobody appends to it before the copy is whole; whoever waits for the old one's lock finds it replaced.

A process that is killed in here leaves the old file as it was, and a new one that the next compaction begins again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

from ..errors import StoreError
from ..forks import fork_safe_lock
from .frames import HEAD, Flags, Kind, encode_text
from .logfile import LogFile, Piece
from .replay import Item, Leases, View

if TYPE_CHECKING:
    from .file import PickleFileStore

__all__ = ["Compaction"]

SMALLEST: Final = 1 << 16
"""Bytes of garbage below which a file is not worth a rewrite."""

_BATCH: Final = 1 << 20
"""Bytes that are copied with one write."""

_FEW: Final = 1 << 16
"""Bytes that may be left to copy when the old file is locked."""


class _Stopped(Exception):
    """The compaction is no longer wanted, or somebody else's."""


class Compaction:
    """Says when a store's file is rewritten, and does it; one for each store and process."""

    def __init__(self, store: PickleFileStore) -> None:
        self._store = weakref.ref(store)
        # Guards the fields below. Not held while anything is done.
        self._lock = fork_safe_lock()
        self._thread: threading.Thread | None = None
        self._next = 2 * SMALLEST  # the file's size from which on the garbage is looked at again
        self._stopped = threading.Event()
        self.count = 0

    # -- when --------------------------------------------------------------------------------------------------------

    def consider(self) -> None:
        """Rewrite the file in a thread if there is reason to; to find that there is none takes no time."""
        store = self._store()
        view = None if store is None else store._view
        if view is None or view.size < self._next or self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                self._stopped.clear()
                self._thread = threading.Thread(target=self._run, name="memo-compaction", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter is ending
                    self._thread = None

    def _run(self) -> None:
        store = self._store()
        try:
            if store is not None and self._worth(store):
                self._compact(store)
                self._worth(store)
        except (StoreError, OSError, _Stopped) as error:
            if store is not None and not isinstance(error, _Stopped):
                store._failed("compact", error)
        finally:
            self._thread = None

    def _worth(self, store: PickleFileStore) -> bool:
        """Return whether garbage outweighs what lives; if not, say when to look again."""
        store.cleanup()
        with store._lock:
            view = store._view
            if view is None:
                return False
            live = view.index.live
            garbage = view.size - view.log.first - live
            if garbage > live + SMALLEST and view.log.writable:
                self._next = view.size + SMALLEST  # if it fails, not at once again
                return True
            self._next = view.size + max(SMALLEST, live - garbage)
            return False

    def now(self) -> bool:
        """Rewrite the file now, unless another thread or process does; return whether that was done."""
        store = self._store()
        assert store is not None
        self._stopped.clear()
        try:
            self._compact(store)
        except _Stopped:
            return False
        except OSError as error:
            raise StoreError(f"{store.path!r}: {error.strerror or type(error).__name__}") from error
        return True

    def stop(self) -> None:
        """Break off a compaction that is under way, and wait until it is over."""
        thread = self._thread
        self._stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- how ---------------------------------------------------------------------------------------------------------

    def _compact(self, store: PickleFileStore) -> None:
        folder, name = os.path.split(store.path)
        temporary = os.path.join(folder, f".{name}.compact")
        with contextlib.ExitStack() as stack:
            old = View(LogFile(store.path, store._keys), Leases(), store.max_size is not None)
            stack.callback(old.log.close)
            if not old.log.writable:
                raise _Stopped
            new = LogFile.begin(temporary, store._keys)
            if new is None:
                raise _Stopped  # another process is compacting
            kept = stack.enter_context(contextlib.ExitStack())
            kept.callback(new.close)
            kept.callback(_remove, new)
            target = View(new, Leases(), store.max_size is not None)
            size = self._copy_living(store, old, target)
            while True:
                before = size
                size = self._copy_rest(store, old, target, final=False)
                if size - before <= _FEW:
                    break
            os.fsync(new.fd)
            self._lock_old(store, old)
            self._copy_rest(store, old, target, final=True)
            if old.log.size() is None:
                raise _Stopped  # somebody has replaced it: that is not undone
            os.rename(temporary, store.path)
            kept.pop_all()  # it is the file now
            new.path = store.path
            new.unlock()
            old.log.unlock()
            _sync_folder(folder)
        self.count += 1
        store._adopt(old.log, target)

    def _lock_old(self, store: PickleFileStore, old: View) -> None:
        pause, waited = 0.001, 0.0
        while not old.log.try_lock():
            if waited >= store._timeout or self._stopped.wait(pause):
                raise _Stopped
            waited += pause

    def _copy_living(self, store: PickleFileStore, old: View, target: View) -> int:
        """Copy what lives in the old file as it is now; return up to where that was read."""
        now = store._clock.time()
        size = old.log.size()
        if size is None:
            raise _Stopped
        old.catch_up(size, now, final=False)
        spots = []
        for key in old.index.listed():
            spot = old.index.find(key)
            if spot is not None and now < spot.kept_until:
                spots.append((spot.offset, spot.length, key))
        spots.sort()
        batch = _Batch(target)
        for offset, length, key in spots:
            if self._stopped.is_set():
                raise _Stopped
            batch.add(_value(old.log, offset, length, key))
        batch.flush()
        return old.position

    def _copy_rest(self, store: PickleFileStore, old: View, target: View, final: bool) -> int:
        """Copy what was appended since; return up to where that was read."""
        size = old.log.size()
        if size is None or self._stopped.is_set():
            raise _Stopped
        batch = _Batch(target)
        now = store._clock.time()
        for piece in old.log.scan(old.position, size, final):
            old.follow(piece, now)
            batch.add(_same(old.log, piece))
        batch.flush()
        if old.log.suspect:
            raise _Stopped
        return old.position


class _Batch:
    """Records on their way into a file."""

    def __init__(self, target: View) -> None:
        self._target = target
        self._items: list[Item] = []
        self._bytes = 0

    def add(self, item: Item | None) -> None:
        """Append a record, some time."""
        if item is not None:
            self._items.append(item)
            self._bytes += HEAD + len(item.payload)
            if self._bytes > _BATCH:
                self.flush()

    def flush(self) -> None:
        """Append what was not appended yet."""
        if self._items:
            self._target.append(self._items)
        self._items, self._bytes = [], 0


def _value(log: LogFile, offset: int, length: int, key: str) -> Item | None:
    """Return the record of a value; None: it is not as it was written."""
    data = os.pread(log.fd, length, offset)
    content = log.identity.content(data, offset, encode_text(key), checked=False)
    if content is None:
        if log.identity.keys and log.identity.intact(data, offset):
            raise _Stopped  # signed with a secret that is not ours: who cannot verify it must not drop it
        return None
    head = log.identity.head(data, 0, offset)
    assert head is not None
    start = HEAD + head.key
    return Item(Kind.VALUE, key, data[start : start + head.meta], content[1], head.flags, head.made, head.until)


def _same(log: LogFile, piece: Piece) -> Item | None:
    """Return a record that says the same as a stretch of the old file; None: that says nothing."""
    head = piece.head
    if head is None:
        return None if piece.torn else Item(Kind.CLEAR)
    key = piece.key.decode("utf-8", "surrogatepass")
    if head.kind == Kind.VALUE:
        # What is hidden by a value that cannot be read stays hidden.
        return _value(log, piece.offset, piece.end - piece.offset, key) or Item(Kind.DELETE, key)
    return Item(Kind(head.kind), key, piece.meta, b"", Flags(head.flags), head.made, head.until)


def _remove(new: LogFile) -> None:
    with contextlib.suppress(OSError):
        if new.size() is not None:
            os.unlink(new.path)


def _sync_folder(folder: str) -> None:
    # Without this a crash of the machine may bring the old file back; where folders cannot be opened, it may.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
