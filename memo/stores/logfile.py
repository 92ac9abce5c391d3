"""One open log file: how it is opened safely, locked, read and appended to; it does not know what a record means.

Nothing here waits, and nothing takes a lock of this process: whoever opens or uses a LogFile has one, which no fork
leaves behind. So no fork comes between the opening of a file and the noting of it, after which a child closes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from ..errors import StoreError
from ..forks import in_child
from .frames import HEAD, HEADER, MAGIC, NOTE, SEAL, SYNC, Content, Head, Identity

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where PickleFileStore says that it needs locks
    fcntl = None  # type: ignore[assignment]  # a name for a module otherwise; LOCKS is asked before it is used

__all__ = ["LOCKS", "LogFile", "Piece", "store_error"]

LOCKS: Final = fcntl is not None
"""Whether this system has the locks that processes need to share a file."""

SMALLEST, WIDEST = 1 << 12, 1 << 20
"""Bytes that are read at once while a log is read through: few after a large record, more from one to the next."""

LARGE: Final = 1 << 16
"""Bytes from which on a record's payload is checked only once in a process, if the file is not signed."""

KEPT: Final = 1 << 23
"""Bytes of memory that are kept for large records between two reads."""

_FLAGS: Final = os.O_APPEND | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))


def store_error(path: str, error: OSError | MemoryError) -> StoreError:
    """Return what a caller is told of what the system has answered."""
    return StoreError(f"{path!r}: {getattr(error, 'strerror', None) or type(error).__name__}")


class Piece(NamedTuple):
    """A stretch of a log: a record, or something that cannot be read as one.

    Attributes:
        offset: where it begins.
        end: where the next one begins.
        head: None: it is no record.
        key: bytes of the record.
        meta: bytes of the record.
        torn: if it is no record, whether it is only the beginning of one, whose writer was killed.
    """

    offset: int
    end: int
    head: Head | None
    key: bytes = b""
    meta: bytes = b""
    torn: bool = False


class LogFile:
    """A log that is open, for reading and where possible for writing.

    Args:
        path: absolute, of a file that may be missing if its folder is there.
        keys: to sign and verify with; none: the file is not signed.

    Raises:
        StoreError: it must not be used.
        OSError: it cannot be opened.
    """

    first: Final = HEADER
    """Where the first record stands."""

    def __init__(self, path: str, keys: tuple[bytes, ...]) -> None:
        self.path = path
        self.writable = True
        self.suspect = False  # whether the last scan ended at what cannot be a record that is still being written
        self._prepare()
        self.fd = self._open()
        _logs[id(self)] = weakref.ref(self, partial(_logs.pop, id(self)))
        try:
            self._admit()
            self.identity = self._identify(keys)
        except BaseException:
            self.close()
            raise

    @classmethod
    def begin(cls, path: str, keys: tuple[bytes, ...]) -> LogFile | None:
        """Return a new log at `path`, locked, in the place of one that nobody has locked; None: somebody has.

        Raises:
            StoreError: what is there is not the beginning of a log.
            OSError: it cannot be made.
        """
        log = cls.__new__(cls)
        log.path, log.writable, log.suspect = path, True, False
        log._prepare()
        log.fd = log._open()
        _logs[id(log)] = weakref.ref(log, partial(_logs.pop, id(log)))
        try:
            log._admit()
            # Whoever held the lock may have given the file another name meanwhile: then it is no longer this one.
            if not log.try_lock() or not log._alone():
                log.close()
                return None
            data = os.pread(log.fd, HEADER, 0)
            if data[: len(MAGIC)] != MAGIC[: len(data)]:
                raise log._refuse("a file of somebody else's")
            try:
                log._new_header(keys)
            except BaseException:
                os.unlink(path)
                raise
        except BaseException:
            log.close()
            raise
        return log

    def _prepare(self) -> None:
        self._checked: set[int] = set()  # offsets of large records whose payload this process has checked
        self._buffer: Any = None  # for the next large record
        self._sought = (0, 0)  # behind which place there is no record, up to which place

    @classmethod
    def reading(cls, path: str) -> LogFile:
        """Return the log at `path` for who only lists what is in it: nothing is made, locked, verified or changed.

        Raises:
            StoreError: it is no log.
            OSError: it cannot be opened.
        """
        log = cls.__new__(cls)
        log.path, log.writable, log.suspect = path, False, False
        log._prepare()
        log.fd = log._open()
        _logs[id(log)] = weakref.ref(log, partial(_logs.pop, id(log)))
        try:
            if not stat.S_ISREG(os.fstat(log.fd).st_mode):
                raise log._refuse("no regular file")
            data = os.pread(log.fd, HEADER, 0)
            if not data or Identity.begun(data):
                raise StoreError(f"{path!r} is empty: the store that makes it has not written its header")
            log.identity = Identity.of(data, None, path)
        except BaseException:
            log.close()
            raise
        return log

    def same(self, other: LogFile) -> bool:
        """Return whether two have opened one file."""
        return (self._whose, self.identity.file_id) == (other._whose, other.identity.file_id)

    def __del__(self) -> None:
        """Close the file, if whoever had it was let go."""
        self.close()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self) -> int:
        try:
            if self.writable:
                # 0600 from the start: the process's umask can only take bits away.
                return os.open(self.path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            return os.open(self.path, os.O_RDONLY | _FLAGS)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refuse("a symbolic link") from None
            if error.errno == errno.EISDIR:
                raise self._refuse("a folder") from None
            if error.errno in (errno.ENXIO, errno.ENODEV):
                raise self._refuse("a socket or a device") from None
            if not self.writable or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self.writable = False
            try:
                return os.open(self.path, os.O_RDONLY | _FLAGS)
            except FileNotFoundError:
                raise error from None  # it is not there, and this is why it could not be made

    def _refuse(self, what: str) -> StoreError:
        return StoreError(f"{self.path!r} is {what}: allowed is a file of memo's own, or the name of a new one")

    def _admit(self) -> None:
        """Refuse what somebody else could have put there; the file itself is looked at, not what its name leads to."""
        found = os.fstat(self.fd)
        if not stat.S_ISREG(found.st_mode):
            raise self._refuse("no regular file")
        if found.st_uid != os.geteuid():
            raise self._refuse("another user's file")
        if found.st_mode & 0o022:
            raise self._refuse("a file that others may write, and so choose what is unpickled (chmod 600 helps)")
        if found.st_nlink > 1:
            raise self._refuse("a file with another name too (a hard link)")
        self._whose = found.st_ino, found.st_dev

    def _identify(self, keys: tuple[bytes, ...]) -> Identity:
        data = os.pread(self.fd, HEADER, 0)
        if (not data or Identity.begun(data)) and self.writable and self.try_lock():
            try:
                data = os.pread(self.fd, HEADER, 0)  # another process may have been faster
                if (not data or Identity.begun(data)) and self._alone():
                    data = self._new_header(keys)
            finally:
                self.unlock()
        if not data or Identity.begun(data):
            raise BlockingIOError(errno.EAGAIN, "another process is making the file just now", self.path)
        return Identity.of(data, keys, self.path)

    def _alone(self) -> bool:
        """Return whether the path is the only name of this file.

        When it was opened that may have been another one: 1. Somebody gives a file of his a second name, the path.
        2. It is opened. 3. He takes the path away from it. 4. It has one name, which is not the path.
        """
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(self.path)
            return (found.st_ino, found.st_dev, found.st_nlink) == (*self._whose, 1)
        return False

    def _new_header(self, keys: tuple[bytes, ...]) -> bytes:
        """Begin the file anew, of which nothing is of any use; the lock is held."""
        self.identity = Identity.new(keys)
        data = self.identity.header()
        os.ftruncate(self.fd, 0)
        os.fchmod(self.fd, 0o600)  # whatever the umask has taken away, and whoever has made the file
        self.append([data])
        return data

    def close(self) -> None:
        """Close the file; a lock that this process has on it is gone."""
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    # -- which file it is --------------------------------------------------------------------------------------------

    def size(self) -> int | None:
        """Return the size of the file at the path, if it is this one; None: it is not, or this is closed."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        # By number, of which the names are slower: this is part of every hit.
        inode, device = self._whose
        return found[6] if found[1] == inode and found[2] == device and self.fd >= 0 else None

    def intact(self) -> bool:
        """Return whether the file still begins as this one does: else something was written over it."""
        return self.identity.file_id in os.pread(self.fd, HEADER, 0)

    def try_lock(self) -> bool:
        """Take the lock that excludes all other processes, and other stores of this one; return whether it was free.

        Raises:
            StoreError: this file system has no such locks.
        """
        if self.fd < 0:
            raise OSError(errno.EBADF, "closed meanwhile: this is the child of a fork", self.path)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise StoreError(
                    f"{self.path!r} is on a file system without flock ({os.strerror(error.errno)}), so processes "
                    f"cannot share it: put it on a local disk"
                ) from error
            raise
        return True

    def unlock(self) -> None:
        """Let go of the lock; nothing happens if it is not held."""
        if self.fd >= 0:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            except OSError:
                self.close()  # this lets go of it in any case, and the next operation opens the file anew

    # -- reading -----------------------------------------------------------------------------------------------------

    def content(self, offset: int, length: int, key: bytes) -> Content | None:
        """Return what the record of the value at `key` holds; None: it is not as it was written.

        Args:
            offset: where it stands.
            length: bytes that it has.
            key: whose it has to be.
        """
        if length < LARGE:
            return self.identity.content(os.pread(self.fd, length, offset), offset, key, False)
        # Into memory that was used before: to be given so much anew by the system takes longer than to read it.
        buffer, self._buffer = self._buffer, None
        if buffer is None or len(buffer) < length:
            buffer = bytearray(length)
        data = memoryview(buffer)[:length]
        if os.preadv(self.fd, [data], offset) != length:
            return None
        content = self.identity.content(data, offset, key, offset in self._checked)
        if content is not None:
            self._checked.add(offset)
        return content

    def done(self, payload: memoryview) -> None:
        """Take back the memory in which a payload was returned, which nobody needs any more."""
        buffer: Any = payload.obj
        if type(buffer) is bytearray and len(buffer) <= KEPT:
            self._buffer = buffer

    def ends_with(self, seal: bytes | memoryview, end: int) -> bool:
        """Return whether the record with this seal still ends at a place."""
        return os.pread(self.fd, SEAL, end - SEAL) == seal

    def scan(self, start: int, size: int, final: bool) -> Iterator[Piece]:
        """Yield what stands from `start` to `size`, as far as it can be told.

        A beginning of a record at the end may be another process's that is still being written: it ends the scan, and
        so does what cannot be read there.

        Args:
            start: where a record begins.
            size: of the file.
            final: the lock is held, so that nobody is writing: what stands at the end is told, too.
        """
        identity = self.identity
        overhead = identity.overhead
        at, base, window, width = start, start, b"", SMALLEST
        while at < size:
            known = at - base
            if known + HEAD > len(window) and at + len(window) - known < size:
                base, known, window = at, 0, os.pread(self.fd, min(width, size - at), at)
                width = min(width * 2, WIDEST)
            head = identity.head(window, known, at) if known + HEAD <= len(window) else None
            if head is not None:
                end = at + overhead + head.key + head.meta + head.payload
                if end <= size:
                    if base + len(window) < end:
                        needed = HEAD + head.key + head.meta
                        if known + needed > len(window):
                            base, known, window = at, 0, os.pread(self.fd, needed, at)
                        seal = os.pread(self.fd, SEAL, end - SEAL)
                        width = SMALLEST
                    else:
                        seal = window[end - base - SEAL : end - base]
                    if identity.sealed(head, seal):
                        body = identity.body(head, window, known)
                        yield Piece(at, end, head, *body) if body is not None else Piece(at, end, None)
                        at = end
                        continue
            first, last = identity.noted(os.pread(self.fd, HEADER, 0))
            if last > size:
                first = last = 0  # the file was cut off since: the note says nothing of it
            if first <= at < last:
                yield Piece(at, last, None, torn=True)
                at = last
                continue
            found = self._next(at, size, final)
            if found is not None:
                # What its writer has found before it, with the lock held, it has declared.
                yield Piece(at, found[0], None, torn=found[1].gap >= found[0] - at)
                at = found[0]
                continue
            # If somebody had written behind it, that would have been noted.
            begun = last <= at and (self._begins(at, size) if head is None else end > size)
            if final:
                yield Piece(at, size, None, torn=begun)
            self.suspect = not begun and not final
            return
        self.suspect = False

    def _begins(self, at: int, size: int) -> bool:
        """Return whether the last bytes may be the beginning of a head."""
        begun = SYNC[: size - at]
        return size - at < HEAD and os.pread(self.fd, len(begun), at) == begun

    def _next(self, behind: int, size: int, final: bool) -> tuple[int, Head] | None:
        """Return offset and head of the first record behind what cannot be read."""
        # A record of many bytes that is being written is looked at again and again: only at what is new of it.
        base, width = behind + 1, SMALLEST
        if self._sought[0] == behind and self._sought[1] <= size and not final:
            base = self._sought[1]
        while size - base >= HEAD:
            window = os.pread(self.fd, min(width, size - base), base)
            width = min(width * 2, WIDEST)
            at = window.find(SYNC)
            while 0 <= at <= len(window) - HEAD:
                head = self.identity.head(window, at, base + at)
                if head is not None:
                    return base + at, head
                at = window.find(SYNC, at + 1)
            if len(window) < HEAD:
                return None  # the file has become shorter meanwhile
            base += len(window) - HEAD + 1
        self._sought = behind, base
        return None

    # -- writing -----------------------------------------------------------------------------------------------------

    def append(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write at the end; the lock is held.

        Raises:
            OSError: not everything could be written. What was stays, as the beginning of a record.
        """
        total = sum(map(len, pieces))
        written = os.writev(self.fd, pieces) if len(pieces) <= _MOST else os.write(self.fd, b"".join(pieces))
        if written != total:
            # A signal may have come in between, or the disk is full: that the next write says.
            rest = memoryview(b"".join(pieces))[written:]
            while rest:
                count = os.write(self.fd, rest)
                if not count:
                    raise OSError(errno.ENOSPC, "nothing more can be written", self.path)
                rest = rest[count:]

    def note(self, start: int, end: int) -> None:
        """Say in the header where the latest torn stretch stands; the lock is held, and nothing was written behind it.

        Raises:
            OSError: that cannot be said.
        """
        # With a descriptor of its own: what is written with the other one goes to the end, wherever it was meant for.
        fd = os.open(self.path, os.O_WRONLY | (_FLAGS & ~os.O_APPEND))
        try:
            found = os.fstat(fd)
            if (found.st_ino, found.st_dev) != self._whose:
                raise OSError(errno.ESTALE, "the file was replaced", self.path)
            os.pwrite(fd, self.identity.note(start, end), NOTE)
        finally:
            os.close(fd)


_MOST: Final = 1024  # IOV_MAX of Linux

_logs: dict[int, weakref.ref[LogFile]] = {}  # weakly, by id


def _in_child() -> None:
    # A descriptor that a child inherits holds the parent's lock, even when the parent is dead. Only closed: to unlock
    # would take the lock from the parent.
    for reference in list(_logs.values()):
        log = reference()
        if log is not None:
            log.close()


in_child(_in_child)
