"""One daemon thread that removes expired entries from all memory stores; it keeps none of them alive."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from ..forks import fork_safe_lock, in_child
from ..stats import logger

__all__ = ["Sweeper", "sweeper"]


class Sweepable(Protocol):
    """What the sweeper visits."""

    cleanup_interval: float | None

    def cleanup(self) -> int:
        """Remove what is expired; return how many."""


class Sweeper:
    """Visits each store every `cleanup_interval` seconds of real time.

    The thread starts with the first store, ends when no store is left, and starts again with the next one. A fork has
    no threads but one, so a child starts its own.
    """

    def __init__(self) -> None:
        # Guards the fields below. Not held while a store is visited.
        self._lock = fork_safe_lock()
        self._stores: weakref.WeakSet[Sweepable] = weakref.WeakSet()
        self._waited: weakref.WeakKeyDictionary[Sweepable, float] = weakref.WeakKeyDictionary()
        self._mark = 0.0  # up to this moment, of the monotonic clock, the time is in `_waited`
        self._thread: threading.Thread | None = None
        self._changed = threading.Event()
        in_child(self._forked)

    def add(self, store: Sweepable) -> None:
        """Visit `store` from now on, as long as it lives."""
        with self._lock:
            if self._thread is not None:
                self._count()
            self._stores.add(store)
            self._waited[store] = 0.0
            self._changed.set()
            self._start()

    def _start(self) -> None:
        if self._thread is None and self._stores:
            self._mark = time.monotonic()
            self._thread = threading.Thread(target=self._run, name="memo-sweeper", daemon=True)
            self._thread.start()

    def _forked(self) -> None:
        with self._lock:
            self._thread = None
            self._changed = threading.Event()
            self._start()

    def _run(self) -> None:
        pause = self.pause()
        while pause is not None:
            changed = self._changed.wait(pause)
            self._changed.clear()
            # Real time, so that a wake-up by a new store takes nothing from those that wait. But a whole pause is over
            # whatever the clock says: a test may have stopped it.
            self._count(0.0 if changed else pause)
            self.turn(0.0)
            pause = self.pause()

    def _count(self, at_least: float = 0.0) -> None:
        """Add the time since the last count to what each store has waited."""
        with self._lock:
            now = time.monotonic()
            passed = max(at_least, now - self._mark)
            self._mark = now
            for store in list(self._stores):
                self._waited[store] = self._waited.get(store, 0.0) + passed

    def pause(self) -> float | None:
        """Return the seconds to the next visit; None, and the thread is over, if there is no store."""
        with self._lock:
            left = [(store.cleanup_interval or 0.0) - self._waited.get(store, 0.0) for store in list(self._stores)]
            if not left:
                self._thread = None
                return None
            return max(0.01, min(left))

    def turn(self, waited: float) -> int:
        """Visit the stores whose time has come after `waited` more seconds; return how many entries were removed."""
        due = []
        with self._lock:
            for store in list(self._stores):
                total = self._waited.get(store, 0.0) + waited
                is_due = total >= (store.cleanup_interval or 0.0)
                self._waited[store] = 0.0 if is_due else total
                if is_due:
                    due.append(store)
        removed = 0
        while due:
            store = due.pop()
            try:
                removed += store.cleanup()
            except Exception:  # noqa: BLE001 - one store's trouble is not the others'
                logger.exception("a store's cleanup failed; the next one is in %s seconds", store.cleanup_interval)
            del store
        return removed


sweeper = Sweeper()
