"""Whether a result is kept, and for how long; this module reads no clock and touches no store."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from .clock import seconds
from .entry import DEFAULT, Life
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
        jitter: shorten each ttl by a random share of it, up to this one.
        stale_while_revalidate: seconds after the ttl in which a result is served, and refreshed behind it.
        stale_if_error: seconds after the ttl in which a result is served in the place of an error.
        early_refresh: beta of XFetch (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede
            Prevention", VLDB 2015): above 1 refreshes come earlier, below 1 later; 0: none before the ttl is over.

    Raises:
        OptionError: an option is out of range.

    >>> Policy(60, False, None, "f").judge("value")
    60.0
    """

    __slots__ = ("_cache_if", "_early", "_jitter", "_name", "_stale", "_ttl", "_ttl_of", "cache_none", "kept", "plain")

    def __init__(
        self,
        ttl: Any,
        cache_none: bool,
        cache_if: Callable[[Any], object] | None,
        name: str,
        jitter: Any = 0,
        stale_while_revalidate: Any = 0,
        stale_if_error: Any = 0,
        early_refresh: Any = 0,
    ) -> None:
        self._name = name
        self._jitter = _share(jitter, "jitter", name, 1.0)
        self._early = _share(early_refresh, "early_refresh", name, _MAX_BETA)
        self._stale = _window(stale_while_revalidate, "stale_while_revalidate", name)
        self.kept = max(self._stale, _window(stale_if_error, "stale_if_error", name))
        self.plain = not (self._jitter or self._early or self.kept)  # what `judge` returns is all
        if ttl is None and not self.plain:
            raise OptionError(
                f"{name}: ttl=None never ends, so jitter, early_refresh and the stale windows have no meaning beside "
                f"it: give a ttl"
            )
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

    @property
    def windows(self) -> bool:
        """Whether what was stored may be served or kept otherwise than by its ttl alone."""
        return bool(self._early or self.kept)

    def life(self, ttl: Any, default_ttl: float | None, took: float) -> Any:
        """Return how long a result lives: what `judge` said, with jitter and windows.

        XFetch refreshes at a read at time t if t - took * beta * log(random) >= end. That number is drawn here, once
        for each entry, and not at each read: a read at t refreshes with the same probability, exp(-(end - t) / (took *
        beta)), and a hit costs a comparison as before.

        Args:
            ttl: seconds, None or DEFAULT.
            default_ttl: the store's, in seconds, or None.
            took: how long the load took, in seconds.
        """
        if ttl is DEFAULT:
            ttl = default_ttl
        if ttl is None:
            return None
        if self._jitter:
            ttl *= 1.0 - self._jitter * random.random()  # noqa: S311 - no secret
        if not self.windows:
            return ttl
        early = -took * self._early * math.log(1.0 - random.random()) if self._early else 0.0  # noqa: S311
        return Life(ttl, min(early, ttl), self._stale, self.kept)


_MAX_BETA: Final = 1_000.0


def _share(value: Any, which: str, name: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise OptionError(f"{name}: {which}={value!r}: allowed is a number from 0 (off) to {most:g}")
    return float(value)


def _window(value: Any, which: str, name: str) -> float:
    return 0.0 if value == 0 and not isinstance(value, bool) else seconds(value, f"{name}: {which}")


def _check_callable(option: Any, which: str, name: str) -> None:
    if not callable(option) or inspect.iscoroutinefunction(option):
        raise OptionError(f"{name}: {which}={option!r}: allowed is a plain function of the result")
