"""What a log file holds, for people who look into it: keys and sizes; no value is unpickled, nothing locked or changed.

No secret is needed, and none is of use: what is listed was not verified. A store of somebody who has the secret finds
only what is.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import StoreError
from .frames import HEAD, VERSION
from .logfile import LOCKS, LogFile
from .replay import Leases, View

__all__ = ["FileContents", "FileEntry", "inspect_file"]


@dataclass(frozen=True)
class FileEntry:
    """One entry of a file, without its value.

    Attributes:
        key: as `store.keys()` has it.
        function: the decorated function whose result it is; empty: a plain key's.
        tags: that it bears.
        age: seconds since it was written or given a new ttl.
        left: seconds until its ttl is over; infinity: it never expires; 0 or less: only a stale window is left.
        size: bytes of its record.
    """

    key: str
    function: str
    tags: tuple[str, ...]
    age: float
    left: float
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON; a `left` of None means that it never expires."""
        left = None if math.isinf(self.left) else self.left
        return {**vars(self), "tags": list(self.tags), "left": left}


@dataclass(frozen=True)
class FileContents:
    """What a file holds.

    Attributes:
        path: of the file.
        version: of its format.
        signed: whether it takes a secret to use it.
        file_size: bytes of the file.
        live_size: bytes of the records of its entries.
        garbage_size: bytes that the next compaction leaves out, expired records among them.
        unread_size: bytes at the end that cannot be told yet: a process may be writing them.
        torn: stretches whose writer was killed in the middle.
        damaged: stretches that cannot be read for any other reason; what was written before one is not served.
        expired: entries whose time is over.
        entries: all others, in the order in which they were first written.
    """

    path: str
    version: int
    signed: bool
    file_size: int
    live_size: int
    garbage_size: int
    unread_size: int
    torn: int
    damaged: int
    expired: int
    entries: tuple[FileEntry, ...]


def inspect_file(path: str | os.PathLike[str], clock: Any = time) -> FileContents:
    """Return what a file of a `PickleFileStore` holds; nobody who uses it notices.

    Args:
        path: of the file.
        clock: an object with `time()`, such as the time module.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        StoreError: it is not memo's, of a newer format, no regular file, or just being made; or the system has no file
            locks, and so no such files.

    >>> import os, tempfile
    >>> from memo import PickleFileStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = PickleFileStore(os.path.join(folder, "cache.memo"))
    ...     store.set("a", {1, 2})
    ...     store.close()
    ...     found = inspect_file(store.path)
    >>> [entry.key for entry in found.entries], found.entries[0].left
    (['a'], inf)
    """
    if not LOCKS:
        raise StoreError("a file of PickleFileStore cannot be read here: this system has no flock")
    log = LogFile.reading(os.path.abspath(path))
    try:
        now = clock.time()
        size = os.fstat(log.fd).st_size
        view = View(log, Leases(), ordered=False)
        view.catch_up(size, now, final=False)
        everything = list(_entries(view, now))
    finally:
        log.close()
    entries = tuple(entry for entry in everything if entry is not None)
    live = sum(entry.size for entry in entries)
    return FileContents(
        path=log.path,
        version=VERSION,
        signed=bool(log.identity.keys),
        file_size=size,
        live_size=live,
        garbage_size=view.position - log.first - live,
        unread_size=size - view.position,
        torn=view.torn,
        damaged=view.damaged,
        expired=len(everything) - len(entries),
        entries=entries,
    )


def _entries(view: View, now: float) -> Iterator[FileEntry | None]:
    """Yield what the index leads to; None for an entry whose time is over."""
    for key in view.index.listed():
        spot = view.index.find(key)
        if spot is None:
            continue  # invalidated
        head = view.log.identity.head(os.pread(view.log.fd, HEAD, spot.offset), 0, spot.offset)
        if now >= spot.kept_until or head is None:  # None: the file has just changed beneath
            yield None
        else:
            tags, age = view.index.tags(key), max(0.0, now - head.made)
            yield FileEntry(key, spot.owner, tags, age, spot.fresh_until - now, spot.length)
