"""Time as a parameter: what a clock is, and durations in seconds; this module never waits.

A clock is anything with `monotonic()` and `time()`, as the standard library's `time` module has them. That module is
the default and is always read through its attributes, so that freezegun, which replaces them, reaches memo.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from types import ModuleType
from typing import Any, Final, Protocol

from .errors import OptionError

__all__ = ["MAX_SECONDS", "SYSTEM", "Clock", "WallClock", "checked_clock", "seconds"]

MAX_SECONDS: Final = 100 * 366 * 86_400.0
"""A century: longer lives are a mistake in units, and milliseconds beyond 2**63 are an error in Redis."""


class Clock(Protocol):
    """Where a store reads the time: seconds that only grow, and seconds since 1970."""

    def monotonic(self) -> float:
        """Return seconds on a scale of no particular beginning that does not run backwards."""

    def time(self) -> float:
        """Return seconds since 1970, as a clock on the wall shows them; used only for what outlives the process."""


SYSTEM: Final[ModuleType] = time
"""The default clock: the `time` module itself."""


class WallClock:
    """A clock that takes both readings from the wall, for tools that move only `time.time` (time-machine).

    A step of the wall clock backwards empties a store on such a clock: no entry may outlive its ttl.

    >>> WallClock().monotonic() > 0
    True
    """

    def monotonic(self) -> float:
        """Return seconds since 1970, in the place of the monotonic clock."""
        return time.time()

    def time(self) -> float:
        """Return seconds since 1970."""
        return time.time()


def checked_clock(clock: Any) -> Any:
    """Return `clock` if it has both readings, else raise OptionError."""
    if not (callable(getattr(clock, "monotonic", None)) and callable(getattr(clock, "time", None))):
        raise OptionError(f"clock={clock!r}: a clock has monotonic() and time(), as the time module has them")
    return clock


def seconds(value: Any, name: str) -> float:
    """Return a duration as seconds.

    Args:
        value: seconds (int or float, more than 0) or a timedelta.
        name: what the duration is called in the error.

    Raises:
        OptionError: it is 0, negative, NaN, infinite, longer than a century, a bool, text or anything else.

    >>> seconds(timedelta(minutes=1), "ttl")
    60.0
    """
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    else:
        raise OptionError(f"{name}={value!r}: allowed are seconds (int or float, more than 0) or a timedelta")
    if not 0 < number <= MAX_SECONDS:
        hint = "; None means that it never ends" if number > 0 else ""
        raise OptionError(f"{name}={value!r}: allowed are more than 0 and at most {MAX_SECONDS:.0f} seconds{hint}")
    return number
