"""Whether a result is kept, and for how long; this module reads no clock and touches no store."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .clock import seconds
from .entry import DEFAULT
from .errors import OptionError

__all__ = ["NotKept", "Policy"]


@dataclass(frozen=True)
class NotKept:
    """What `Policy.judge` says of a result that is returned but not stored.

    Attributes:
        reason: as `FunctionStats.uncached` counts it.
    """

    reason: str


_NONE, _CACHE_IF, _TTL = NotKept("none"), NotKept("cache_if"), NotKept("ttl")


class Policy:
    """The freshness options of one decorated function.

    Args:
        ttl: seconds, a timedelta, None (never expires), DEFAULT (the store's) or a callable of the result.
        cache_none: keep None too; as the cache-aside pattern has it, None means "not found" and is not kept.
        cache_if: keep only results for which this is true; None: all.
        name: what errors call the function.

    Raises:
        OptionError: an option is out of range.

    >>> Policy(60, False, None, "f").judge("value")
    60.0
    """

    __slots__ = ("_cache_if", "_name", "_ttl", "_ttl_of", "cache_none")

    def __init__(self, ttl: Any, cache_none: bool, cache_if: Callable[[Any], object] | None, name: str) -> None:
        self._name = name
        if not isinstance(cache_none, bool):
            raise OptionError(f"{name}: cache_none={cache_none!r}: allowed are True and False")
        if cache_if is not None:
            _check_callable(cache_if, "cache_if", name)
        self.cache_none = cache_none
        self._cache_if = cache_if
        self._ttl_of: Callable[[Any], Any] | None = None
        self._ttl: Any = DEFAULT
        if ttl is None or ttl is DEFAULT:
            self._ttl = ttl
        elif callable(ttl):
            _check_callable(ttl, "ttl", name)
            self._ttl_of = ttl
        else:
            self._ttl = seconds(ttl, f"{name}: ttl")

    def judge(self, value: Any) -> Any:
        """Return the ttl for a result (seconds, None or DEFAULT), or a NotKept.

        Raises:
            Exception: whatever a callable of the user's raises.
        """
        if value is None and not self.cache_none:
            return _NONE
        if self._cache_if is not None and not self._cache_if(value):
            return _CACHE_IF
        if self._ttl_of is None:
            return self._ttl
        ttl = self._ttl_of(value)
        if ttl is None or ttl is DEFAULT:
            return ttl
        length = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if isinstance(length, (int, float)) and not isinstance(length, bool) and length <= 0:
            return _TTL
        return seconds(ttl, f"{self._name}: the result of ttl")


def _check_callable(option: Any, which: str, name: str) -> None:
    if not callable(option) or inspect.iscoroutinefunction(option):
        raise OptionError(f"{name}: {which}={option!r}: allowed is a plain function of the result")
