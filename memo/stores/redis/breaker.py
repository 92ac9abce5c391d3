"""Says when a server that does not answer is not asked; it asks nobody itself."""

from __future__ import annotations

import time
from typing import Final

from ...forks import fork_safe_lock

__all__ = ["Breaker"]

TOLERATED: Final = 3
"""Failures in a row after which the server is not asked for a while."""

FIRST, LONGEST = 0.5, 10.0
"""Seconds until it is asked again, by one caller; twice as many after each time that this fails."""


class Breaker:
    """Counts failures in a row; open, it lets one caller through at a time, after ever longer pauses.

    The time is the process's own and no store's clock: it says how long a real server was left alone.
    """

    def __init__(self) -> None:
        # Guards the fields below.
        self._lock = fork_safe_lock()
        self._failures = 0
        self._pause = FIRST
        self._again = 0.0  # from when on the next caller may ask; of the monotonic clock
        self._probing = False  # whether one was let through and has not said yet how it went

    def allows(self) -> bool:
        """Return whether the server may be asked now; who is told so says how it went."""
        if self._failures < TOLERATED:
            return True
        with self._lock:
            now = time.monotonic()
            if self._failures >= TOLERATED and now < self._again:
                return False
            # This caller is the probe. If it never says how it went, the next one is due after the same pause.
            self._again = now + self._pause
            self._probing = True
            return True

    def succeeded(self) -> None:
        """The server has answered."""
        if self._failures:
            with self._lock:
                self._failures, self._pause, self._probing = 0, FIRST, False

    def failed(self) -> None:
        """The server has not answered."""
        with self._lock:
            self._failures += 1
            if self._failures < TOLERATED:
                return
            if self._probing:
                self._pause = min(self._pause * 2, LONGEST)
            elif self._failures > TOLERATED:
                return  # one of many that were under way when it opened, or of those who ask all the same
            self._again = time.monotonic() + self._pause
            self._probing = False

    @property
    def open(self) -> bool:
        """Whether the server is left alone."""
        return self._failures >= TOLERATED
