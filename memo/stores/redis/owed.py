"""Invalidations that a server has not answered: which keys are still to be removed; this module sends nothing."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ...forks import fork_safe_lock
from .commands import Command

__all__ = ["MOST", "Owed"]

MOST: Final = 1000
"""Keys that can wait; further invalidations fail."""

PAUSE: Final = 0.5
"""Seconds between two attempts of the thread."""


class Owed:
    """Keys of the server that are to be removed as soon as it answers, a stamp for all that bears it.

    Whatever this process asks next is asked after them, on the same connection:

    1. K is invalidated, the server hangs   2. it answers again   3. K is read: UNLINK K, GET K find nothing

    So this process never reads what it has invalidated, and what it sets after that stays: the newest wins. While
    nobody asks for anything a thread does.

    Args:
        attempt: try to send them, and nothing else.
    """

    def __init__(self, attempt: Callable[[], object]) -> None:
        self._attempt = weakref.WeakMethod(attempt)
        # Guards the two below. The same key once more is another entry: an answer to an earlier attempt leaves it.
        self._lock = fork_safe_lock()
        self._keys: dict[bytes, object] = {}
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: Iterable[bytes]) -> bool:
        """Let keys wait; return False, and none does, if there are too many."""
        with self._lock:
            added = {**self._keys, **{key: object() for key in keys}}
            if len(added) > MOST:
                return False
            self._keys = added
            self._start()
            return True

    def _start(self) -> None:
        """Have a thread try again and again. The lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(weakref.ref(self),), name="memo-redis", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter is ending: then only what is asked next helps
                self._thread = None

    def waiting(self) -> list[tuple[bytes, object]]:
        """Return what is to be sent before anything else."""
        return list(self._keys.items())

    def paid(self, removed: Iterable[tuple[bytes, object]]) -> None:
        """Let what has been removed wait no longer, unless it was invalidated once more meanwhile."""
        done = dict(removed)
        with self._lock:
            self._keys = {key: entry for key, entry in self._keys.items() if done.get(key) is not entry}

    def again(self) -> bool:
        """Try to send them; return False, and the thread ends, if none is left."""
        attempt = self._attempt()
        if attempt is None:
            return False  # the store is gone
        attempt()
        with self._lock:
            if not self._keys:
                self._thread = None
            return bool(self._keys)

    def forget_thread(self) -> None:
        """Go on without the thread, which is the parent's of a fork; the parent sends what waits there."""
        self._thread = None


def first(owed: Sequence[tuple[bytes, object]], commands: Sequence[Command]) -> list[Command]:
    """Return commands with the removal of those keys before them."""
    return [*(("UNLINK", key) for key, _ in owed), *commands]


def _work(reference: weakref.ref[Owed]) -> None:
    going: Any = True
    while going:
        time.sleep(PAUSE)  # in a thread of its own: no caller waits for this
        owed = reference()
        going = owed is not None and owed.again()
        del owed
