"""A clock that stands still until it is told to go on; it never reads the time of day."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """A clock for tests: give it to a store as `clock=`, and move it.

    Args:
        start: the first reading, in seconds.

    >>> clock = ManualClock()
    >>> clock.advance(10)
    >>> clock.monotonic()
    10.0
    """

    def __init__(self, start: float = 0.0) -> None:
        self.now = float(start)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; a negative number is a clock that runs backwards."""
        self.now += seconds

    def monotonic(self) -> float:
        """Return the reading."""
        return self.now

    def time(self) -> float:
        """Return the reading, as seconds since 1970."""
        return self.now
