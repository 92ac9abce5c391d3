"""How a file store gets at its file: reading what others have appended, locking, opening anew; it knows no values.

What is done for a reading needs no file lock. What changes the file is done under the file's lock, which nobody holds
while any code of the user's runs, and which is tried for no longer than `timeout`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from ..errors import OptionError, StoreError
from ..forks import fork_safe_lock, lock_within
from ..stats import logger
from .books import Books
from .frames import Content, Kind, encode_text
from .index import Spot
from .logfile import LARGE, LogFile, store_error
from .replay import TOLERANCE, Item, Leases, View

if TYPE_CHECKING:
    from .compaction import Compaction

__all__ = ["FAILURES", "FileAccess", "checked_path"]

T = TypeVar("T")

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.01
"""Seconds between two looks whether another process has let go of the file's lock: time for a few dozen sets of that
one, which cost it less in a row than one at a time."""

FEW: Final = 1 << 12
"""Bytes of others' that are not worth a look of their own while the lock is not had: more of them cost less at once."""

_TRIES: Final = 20
"""How often a file is opened whose name another one has got just then."""

LONGEST_NAME: Final = 246
"""Bytes of a file's name: most systems allow 255, and that of a compaction's file has 9 more."""

FAILURES: Final = (StoreError, OSError, MemoryError)
"""What comes of a file that cannot be used, or of a lack of memory: to a reader it is as if nothing were there."""


class FileAccess:
    """What a store knows of its file, and the ways to it; where nothing else is said the lock is held.

    Args:
        path: of the file, checked.
        max_size: None: the order of use is not kept.
        keys: that sign and verify; none: the file is not signed.
        timeout: seconds for which the file's lock is tried.
        clock: checked.
    """

    _compaction: Compaction

    def __init__(self, path: str, max_size: int | None, keys: tuple[bytes, ...], timeout: float, clock: Any) -> None:
        self.path = path
        self.max_size = max_size
        self._timeout = timeout
        self._keys = keys
        self._clock = clock
        self._books = Books()
        # Guards everything below, and is held for each step on the file: no other thread uses the descriptor meanwhile.
        self._lock = fork_safe_lock()
        # Held within it. Only this very thread can meet it held: a signal handler, a finalizer or a log handler that
        # has come in the middle of an operation.
        self._inside = lock_within()
        self._leases = Leases()
        self._view: View | None = None
        self._latest, self._skew = -math.inf, -math.inf  # of the clock: the wall's, and that minus the monotonic one
        # A clock has run backwards, now or before a record was met that is of the future; others were not told yet.
        self._owes = self._ran_back = False
        self._sets = self._deletes = self._evictions = self._expirations = self._corrupt = 0
        self._errors: dict[str, int] = {}
        # What has to wait until no lock is held: log handlers are anyone's code, and have locks of their own.
        self._afterwards: deque[Callable[[], object]] = deque()

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
        if self._owes or self._afterwards:
            self._settle()
        return answer

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
                        # Twice, because a Ctrl-C may come before the first; what was never locked may be unlocked.
                        try:
                            try:
                                view = self._look_locked()
                                if view is not None:
                                    answer = work()
                            except BlockingIOError:  # another process is making the file
                                view = None
                            finally:
                                self._unlock()
                        except BaseException:
                            self._unlock()
                            raise
                if view is not None:
                    break
                if waited >= self._timeout:
                    raise StoreError(
                        f"{self.path!r} could not be locked within {self._timeout:g} s: another process holds the lock"
                    )
                # The sum of the pauses, since a test may have stopped the clock.
                time.sleep(pause)
                waited, pause = waited + pause, min(pause * 2, LONGEST_PAUSE)
        except (OSError, MemoryError) as error:
            raise store_error(self.path, error) from error
        self._books.bury()
        self._compaction.consider()
        if self._afterwards:
            self._tell()
        return answer

    def _unlock(self) -> None:
        if self._view is not None:
            self._view.log.unlock()

    def _once(self) -> None:
        if self._inside.locked():
            raise StoreError(f"{self.path!r} is in use by this very thread, in the middle of another operation")

    def _look(self) -> View:
        """Read what others have appended."""
        try:
            return self._look_once()
        except BlockingIOError:  # somebody has written over the file, or is just making it: once more
            return self._look_once()

    def _look_once(self) -> View:
        view = self._view
        size = None if view is None else view.log.size()
        if view is None or size is None or size < view.position:
            # A compaction may give the name to another file between the opening and the look; not many in a row do.
            for _ in range(_TRIES):
                view = self._open()
                size = view.log.size()
                if size is not None:
                    break
            else:
                raise StoreError(f"{self.path!r} is being replaced again and again")
        now = self._now(view)
        if size != view.size or view.log.suspect:
            self._catch_up(view, size, now, final=False)
            if view.log.suspect:
                try:
                    self._look_closely(view, size, now)
                except BaseException:
                    view.log.unlock()
                    raise
            if view.early and view.log.writable:
                self._owes = True
        return view

    def _look_closely(self, view: View, size: int, now: float) -> None:
        """Read what stands at the end and cannot be a record that is being written: who holds the lock knows it."""
        try:
            if not view.log.try_lock():
                raise StoreError(f"{self.path!r} has something at its end that cannot be read just now")
            self._catch_up(view, view.log.size() or size, now, final=True)
        finally:
            view.log.unlock()

    def _catch_up(self, view: View, size: int, now: float, final: bool) -> None:
        before = view.damaged
        if view.continues():
            view.catch_up(size, now, final)
            if view.damaged == before:
                return
            if not before:
                self._later("%r is damaged: what was written before that is not served")
            if view.log.intact():
                return
        self._lose(view)

    def _lose(self, view: View) -> NoReturn:
        self._view = None
        view.log.close()
        raise BlockingIOError(errno.EAGAIN, "somebody has cut the file off, or written over it", self.path)

    def _look_locked(self) -> View | None:
        """Take the file's lock and read all that is there; return None if that cannot be done just now."""
        view = self._view
        if view is None or view.log.fd < 0:
            view = self._open()
        elif not view.log.writable:  # but meanwhile it may be
            view = self._open()
            if not view.log.writable:
                raise OSError(errno.EROFS, "the file may only be read", self.path)
        log = view.log
        if not log.try_lock():
            # What others write is read while they write: not later, when they have to wait for that.
            size = log.size()
            if size is not None and size - view.position > FEW:
                self._catch_up(view, size, self._now(view), final=False)
            return None
        # Only now: whoever held the lock may have put another file in the place of this one.
        size = log.size()
        if size is not None and size - view.position > LARGE:
            log.unlock()  # as above: so much is not read with the lock held
            self._catch_up(view, size, self._now(view), final=False)
            if not log.try_lock():
                return None
            size = log.size()
        if size is None or size < view.position:
            log.unlock()
            self._open()
            return None
        now = self._now(view)
        if size != view.position:
            self._catch_up(view, size, now, final=True)
        elif not view.continues():
            self._lose(view)
        if self._owes or view.early:
            # What was made in the future would come to life when its time has come.
            early = [Item(Kind.DELETE, key) for key in view.early if view.index.find(key) is None]
            view.append([Item(Kind.CLEAR)] if self._ran_back else early)
            view.early.clear()
            self._owes = self._ran_back = False
        return view

    def _open(self) -> View:
        """Open the file that is there now. All leases are void: what has happened to it meanwhile is not known."""
        before, self._view = self._view, None
        self._leases.clear()
        known = before is not None and (before.log.fd < 0 or not before.log.writable)
        try:
            log = LogFile(self.path, self._keys)
        finally:
            # Only now, so that no other file can have had its number.
            if before is not None:
                before.log.close()
        if before is not None and known and before.log.same(log) and (log.size() or 0) >= before.position:
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
            self._owes = self._ran_back = True
            self._skew = skew
        elif skew > self._skew:
            self._skew = skew
        self._latest = now
        return now

    def _settle(self) -> None:
        """Do what had to wait, and tell others that a clock has run backwards if that can be done now.

        The lock is not held.
        """
        self._tell()
        if self._owes:
            with contextlib.suppress(StoreError):
                self._writing(lambda: None)

    def _tell(self) -> None:
        """Do what had to wait. The lock is not held."""
        with contextlib.suppress(IndexError):  # another thread may be faster
            while self._afterwards:
                self._afterwards.popleft()()

    def _later(self, message: str, *args: object) -> None:
        """Have something logged when no lock is held."""
        self._afterwards.append(partial(self._warn, message, *args))

    def _warn(self, message: str, *args: object) -> None:
        try:
            logger.warning(message, self.path, *args)
        except Exception:  # noqa: BLE001 - a logging handler that fails must not fail the caller
            with self._lock:
                self._errors["logging"] = self._errors.get("logging", 0) + 1

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

    def _use(self, key: str) -> None:
        """Let a key be the most recently used one, in this process."""
        assert self._view is not None
        self._view.index.use(key)

    def _content(self, key: str, spot: Spot) -> Content | None:
        """Return what the file has at a key; None, and the key leads nowhere, if that is not as it was written."""
        assert self._view is not None
        content = self._view.log.content(spot.offset, spot.length, encode_text(key))
        if content is None:
            self._view.index.drop(key)
            self._spoilt()
        return content

    def _spoilt(self) -> None:
        with self._lock:
            self._corrupt += 1
            if self._corrupt == 1:
                self._later("%r: a value is not as it was written, or cannot be unpickled, and is a miss")

    def _failed(self, name: str, error: Exception) -> None:
        """Count what fails without failing the caller, and log the first of each kind. The lock is not held."""
        if isinstance(error, BlockingIOError):
            return  # another process is making the file: there is nothing in it yet
        with self._lock:
            count = self._errors[name] = self._errors.get(name, 0) + 1
            if count == 1:
                self._later("%r: %s failed (%s: %s)", name, type(error).__name__, error)
            inside = self._inside.locked()  # this very thread is, in a signal handler, say: then its operation logs it
        if not inside:
            self._tell()

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


def checked_path(path: Any) -> str:
    """Return the absolute form of a path, the folder of which is there, else raise OptionError."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or not os.fspath(path):
        raise OptionError(f"path={path!r}: allowed are text and a pathlib.Path")
    text = os.fspath(path)
    if "\x00" in text:
        raise OptionError(f"path={path!r}: a path has no NUL in it")
    absolute = os.path.abspath(text)
    folder, name = os.path.split(absolute)
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise OptionError(
            f"path={path!r} cannot be a file's name: this system encodes it as {error.encoding}"
        ) from None
    if length > LONGEST_NAME:
        raise OptionError(f"path={path!r} cannot be a file's name: allowed are {LONGEST_NAME} bytes")
    if not os.path.isdir(folder):
        raise OptionError(f"path={text!r}: the folder {folder!r} is not there: make it first")
    return absolute
