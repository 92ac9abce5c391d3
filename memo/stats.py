"""What is counted, exactly and without locks where it matters; this module never decides what counts as what.

Counting is by lookups: every call of a decorated function is one hit or one miss, a caller that waits for another's
load is a miss, and the algorithm's second look, `peek` and a store's own reads count nothing.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from .errors import SerializationError
from .forks import fork_safe_lock

__all__ = ["FULL", "Counter", "FunctionCounters", "FunctionStats", "StoreStats", "functions", "logger"]

logger = logging.getLogger("memo")

FULL: Final = 500
"""Durations that may wait to be added up."""

# All counters that are alive, weakly, by id: a plain dict, whose values are listed in one step while they come and go.
_functions: dict[int, weakref.ref[FunctionCounters]] = {}

# Guards what FunctionCounters adds up; one for all, since it is held for an addition only.
_lock = fork_safe_lock()


class Counter:
    """A counter that threads may advance without a lock: `itertools.count` steps atomically, in C.

    >>> calls = Counter()
    >>> calls.tick(), calls.tick(), calls.value, calls.value
    (0, 1, 2, 2)
    """

    __slots__ = ("count", "tick")

    def __init__(self, start: int = 0) -> None:
        self.count = itertools.count(start)  # `next(count)` is the fastest way to advance it
        self.tick = self.count.__next__

    @property
    def value(self) -> int:
        """How often `tick` was called; reading it does not advance it, as `next` would."""
        return int(repr(self.count)[len("count(") : -1])


@dataclass(frozen=True)
class FunctionStats:
    """What happened to one decorated function's calls since it was decorated.

    Attributes:
        hits: calls answered from the store.
        misses: calls that loaded or waited for a load; hits + misses is the number of calls.
        loads: how often the function itself ran to its end, refreshes included.
        load_seconds: the time that it took in these.
        waits: calls that waited for another caller's load.
        refused_fills: results that were not stored because the key was touched while they were loaded.
        uncached_by: results that were not stored because of the options or because they could not be, by reason: "none"
            (None without `cache_none`), "cache_if", "ttl" (0 or less), "error" (a callable option raised), "left_out"
            (an id that a function of many ids has not found).
        stale_hits: calls answered with a value whose time was over: a hit where a refresh follows, a miss where the
            function was called and raised.
        refreshes: background refreshes that began.
        errors: failures that did not reach the caller, by kind.
    """

    hits: int
    misses: int
    loads: int
    load_seconds: float
    waits: int
    refused_fills: int
    uncached_by: dict[str, int] = field(default_factory=dict)
    stale_hits: int = 0
    refreshes: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def hit_ratio(self) -> float:
        """Hits among all calls, 0.0 if there were none."""
        calls = self.hits + self.misses
        return self.hits / calls if calls else 0.0

    @property
    def uncached(self) -> int:
        """Results that were not stored because of the options or because they could not be."""
        return sum(self.uncached_by.values())

    @property
    def time_saved(self) -> float:
        """Seconds that the hits would have taken at the mean duration of a load."""
        return self.hits * self.load_seconds / self.loads if self.loads else 0.0


@dataclass(frozen=True)
class StoreStats:
    """What happened in one store.

    Attributes:
        hits: reads that found a value, by `get`, `get_many` and decorated functions' calls.
        misses: reads that found none.
        sets: values written.
        deletes: values removed by a delete, an invalidation or a clear.
        evictions: values removed because the store was full.
        expirations: values removed because their time was over.
        size: values now in the store, expired ones that have not been met yet included.
        max_size: how many there may be; None: any number.
    """

    hits: int
    misses: int
    sets: int
    deletes: int
    evictions: int
    expirations: int
    size: int
    max_size: int | None

    @property
    def hit_ratio(self) -> float:
        """Hits among all reads, 0.0 if there were none."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else 0.0


class FunctionCounters:
    """The live counters of one decorated function."""

    __slots__ = (
        "__weakref__",
        "_errors",
        "_load_seconds",
        "_loads",
        "_uncached",
        "durations",
        "hits",
        "misses",
        "name",
        "refreshes",
        "refused",
        "stale",
        "waits",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.hits = Counter()
        self.misses = Counter()
        self.waits = Counter()
        self.refused = Counter()
        self.stale = Counter()
        self.refreshes = Counter()
        self.durations: list[float] = []  # of loads that ended; appended to without a lock, in one step in C
        self._loads = 0  # how many were in `durations` before; this and the two below are guarded by _lock
        self._load_seconds = 0.0
        self._errors: dict[str, int] = {}
        self._uncached: dict[str, int] = {}
        _functions[id(self)] = weakref.ref(self, partial(_functions.pop, id(self)))

    def uncached(self, reason: str) -> None:
        """Count a result that is not stored."""
        with _lock:
            self._uncached[reason] = self._uncached.get(reason, 0) + 1

    def add_up(self) -> None:
        """Move what is in `durations` to the sums; others may append meanwhile."""
        with _lock:
            count = len(self.durations)
            done = self.durations[:count]
            del self.durations[:count]
            self._loads += count
            self._load_seconds += sum(done)

    def error(self, kind: str, error: BaseException, advice: str) -> None:
        """Count a failure that does not reach the caller; log the first of each kind, without arguments or values."""
        if isinstance(error, SerializationError):
            advice = f"{error!s:.500}"  # it shows no value, and says where the trouble is and what to do
        with _lock:
            count = self._errors[kind] = self._errors.get(kind, 0) + 1
        if count == 1:
            try:
                logger.warning("%s: %s (%s); %s", self.name, kind, type(error).__name__, advice)
            except Exception:  # noqa: BLE001 - a logging handler that fails must not fail the call
                with _lock:
                    self._errors["logging"] = self._errors.get("logging", 0) + 1

    def snapshot(self) -> FunctionStats:
        """Return the counters as they are now."""
        self.add_up()
        with _lock:
            loads, load_seconds, errors = self._loads, self._load_seconds, dict(self._errors)
            uncached = dict(self._uncached)
        return FunctionStats(
            hits=self.hits.value,
            misses=self.misses.value,
            loads=loads,
            load_seconds=load_seconds,
            waits=self.waits.value,
            refused_fills=self.refused.value,
            uncached_by=uncached,
            stale_hits=self.stale.value,
            refreshes=self.refreshes.value,
            errors=errors,
        )


def functions() -> list[FunctionCounters]:
    """Return the counters of every decorated function that is alive, in the order in which they were decorated."""
    return [counters for reference in list(_functions.values()) if (counters := reference()) is not None]
