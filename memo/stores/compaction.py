"""Rewrites a log file without its garbage, beside those who use it: nobody waits for it, and nothing is lost by it.

1. What lives is copied into a new file, `.NAME.compact` in the same folder, whose lock says who is compacting.
2. What others append to the old file meanwhile is copied, too, again and again, until there is little left.
3. The old file is locked, the rest is copied, and the new file takes the old one's name. It is locked already, so that
   nobody appends to it before the copy is whole; whoever waits for the old one's lock finds it replaced.

A process that is killed in here leaves the old file as it was, and a new one that the next compaction begins again.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from ..forks import fork_safe_lock
from .access import FAILURES
from .frames import HEAD, Kind, decode_text, encode_text
from .logfile import LogFile, Piece, store_error
from .replay import TOLERANCE, Item, Leases, View

if TYPE_CHECKING:
    from .file import PickleFileStore

__all__ = ["Compaction"]

SMALLEST: Final = 1 << 20
"""Bytes of garbage below which a file is not worth a rewrite."""

_BATCH: Final = 1 << 20
"""Bytes that are copied with one write."""

_FEW: Final = 1 << 16
"""Bytes that may be left to copy when the old file is locked, which takes some milliseconds."""


class _Stopped(Exception):
    """The compaction is no longer wanted, or somebody else's."""


class Compaction:
    """Says when a store's file is rewritten, and does it; one for each store and process."""

    def __init__(self, store: PickleFileStore) -> None:
        self._store = weakref.ref(store)
        # Held while a file is opened, so that no fork comes in between, and while the thread is started, so that who
        # stops it finds it started.
        self._lock = fork_safe_lock()
        self._thread: threading.Thread | None = None
        # No threading.Event: a Ctrl-C within one may leave its lock held for ever.
        self._stopped = False
        self._next = 0  # the size from which on the garbage is looked at again,
        self._file = b""  # of the file with this id
        self.count = 0

    # -- when --------------------------------------------------------------------------------------------------------

    def consider(self) -> None:
        """Rewrite the file in a thread if there is reason to; to find that there is none takes no time."""
        store = self._store()
        view = None if store is None else store._view
        if view is None or view.size < 2 * SMALLEST or self._thread is not None:
            return
        if view.size < self._next and view.log.identity.file_id == self._file:
            return
        with self._lock:
            if self._thread is None:
                self._stopped = False
                self._thread = threading.Thread(target=self._run, name="memo-compaction", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no more threads, or the interpreter is ending
                    self._thread = None
                except BaseException:  # Ctrl-C; if the thread runs all the same, it is left to itself
                    self._thread = None
                    raise

    def _run(self) -> None:
        store = self._store()
        try:
            if store is not None and self._worth(store):
                self._compact(store)
                self._worth(store)  # of the new file, to know when to look again
        except _Stopped:
            pass
        except FAILURES as error:
            assert store is not None
            store._failed("compact", error)
        finally:
            self._thread = None

    def _worth(self, store: PickleFileStore) -> bool:
        """Return whether garbage outweighs what lives, and note when to look again."""
        store.cleanup()
        with store._lock:
            view = store._view
            if view is None:
                return False
            live = view.index.live
            garbage = view.size - view.log.first - live
            self._file = view.log.identity.file_id
            if garbage > live + SMALLEST and view.log.writable:
                self._next = view.size + max(SMALLEST, live)  # if it fails, not at once again
                return True
            # What lives now may have expired by then: so not much later, however much of it there is.
            self._next = view.size + max(SMALLEST, min(live - garbage, view.size // 4))
            return False

    def now(self) -> bool:
        """Rewrite the file now, unless another thread or process does; return whether that was done."""
        store = self._store()
        assert store is not None
        self._stopped = False
        try:
            self._compact(store)
        except _Stopped:
            return False
        except (OSError, MemoryError) as error:
            raise store_error(store.path, error) from error
        return True

    def stop(self) -> None:
        """Break off a compaction that is under way, and wait until it is over."""
        self._stopped = True
        with self._lock:
            thread = self._thread
        # A signal handler may find one that this very thread was just starting.
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join()

    # -- how ---------------------------------------------------------------------------------------------------------

    def _compact(self, store: PickleFileStore) -> None:
        folder, name = os.path.split(store.path)
        with contextlib.ExitStack() as stack:
            try:
                with self._lock:
                    old = View(LogFile(store.path, store._keys), Leases(), store.max_size is not None)
            except BlockingIOError:
                raise _Stopped from None  # another process is making the file: there is nothing in it yet
            stack.callback(self._close, old.log)
            if not old.log.writable:
                raise _Stopped
            with self._lock:
                new = LogFile.begin(os.path.join(folder, f".{name}.compact"), store._keys)
            if new is None:
                raise _Stopped  # another process is compacting
            try:
                target = View(new, Leases(), store.max_size is not None)
                self._copy_living(store, old, target)
                self._copy_rest(store, old, target)
                os.fsync(new.fd)
                self._put_in_place(store, old, target)
            except BaseException:
                if new.path != store.path:  # else it is the file that all use
                    _remove(new)
                self._close(new)
                raise
        _sync_folder(folder)
        self.count += 1

    def _close(self, log: LogFile) -> None:
        with self._lock:  # as for opening: no fork may come between what is closed and what says so
            log.close()

    def _put_in_place(self, store: PickleFileStore, old: View, target: View) -> None:
        """Copy what is left, with the old file locked, and let the new file be the one that all use."""
        new = target.log
        self._lock_old(store, old)
        # The store's own threads wait for it, a moment: they go on with what this View knows already.
        with store._lock:
            self._copy(store, old, target, final=True)
            if old.log.size() is None or new.size() is None:
                raise _Stopped  # somebody has replaced one of them: that is not undone
            os.rename(new.path, store.path)
            new.path = store.path
            new.unlock()
            old.log.unlock()
            store._adopt(old, target)

    def _lock_old(self, store: PickleFileStore, old: View) -> None:
        pause, waited = 0.001, 0.0
        while not old.log.try_lock():
            if waited >= store._timeout or self._stopped:
                raise _Stopped
            time.sleep(pause)  # in a thread of its own: no caller waits for this
            waited += pause

    def _copy_living(self, store: PickleFileStore, old: View, target: View) -> None:
        """Copy what lives in the old file as it is now."""
        self._follow(store, old, None, final=False)
        now, index = store._clock.time(), old.index
        places = []
        for key in index.listed():
            spot = index.find(key)
            if spot is not None and now < spot.kept_until:
                places.append((spot.offset, spot.length, key))
        places.sort()  # the order of the writes is that of use to other processes
        batch = _Batch(target)
        for offset, length, key in places:
            self._go_on()
            batch.add(_value(old.log, offset, length, key))
        batch.flush()

    def _copy_rest(self, store: PickleFileStore, old: View, target: View) -> None:
        """Copy what others append meanwhile, until there is little left, or no less than there was."""
        before = math.inf
        while True:
            start = old.position
            self._copy(store, old, target, final=False)
            size = old.position - start
            if size <= _FEW or size > before / 2:
                return
            before = size

    def _copy(self, store: PickleFileStore, old: View, target: View, final: bool) -> None:
        """Copy what was appended since."""
        batch = _Batch(target)
        self._follow(store, old, batch, final)
        batch.flush()

    def _follow(self, store: PickleFileStore, old: View, batch: _Batch | None, final: bool) -> None:
        """Read what was appended to the old file since, and write it into a batch if there is one."""
        size, now = old.log.size(), store._clock.time()
        if size is None or size < old.position:
            raise _Stopped  # it was replaced or cut off: that is not undone
        for piece in old.log.scan(old.position, size, final):
            self._go_on()
            told = old.follow(piece, now)
            if batch is not None:
                batch.add(_same(old.log, piece, now) if told else Item(Kind.CLEAR))
        if old.log.suspect:
            raise _Stopped  # something that cannot be read stands at the end: who writes next says what it is

    def _go_on(self) -> None:
        if self._stopped:
            raise _Stopped


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


def _same(log: LogFile, piece: Piece, now: float) -> Item | None:
    """Return a record that says the same as a stretch of the old file; None: that says nothing."""
    head = piece.head
    if head is None:
        return None  # torn
    key = decode_text(piece.key)
    if head.kind == Kind.VALUE:
        # What is hidden by a value that cannot be read, or that a clock in the future has made, stays hidden.
        current = head.made <= now + TOLERANCE
        value = _value(log, piece.offset, piece.end - piece.offset, key) if current else None
        return value or Item(Kind.DELETE, key)
    return Item(Kind(head.kind), key, piece.meta, b"", head.flags, head.made, head.until)


def _remove(new: LogFile) -> None:
    with contextlib.suppress(*FAILURES):
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
