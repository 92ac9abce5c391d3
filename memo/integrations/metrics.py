"""Which metrics there are, and their sums by function, which never go down; it knows no system that they go to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .. import stats
from ..forks import fork_safe_lock
from ..report import by_name
from ..stats import FunctionCounters, FunctionStats

__all__ = ["METRICS", "Metric", "Totals"]


@dataclass(frozen=True)
class Metric:
    """One counter of every function.

    Attributes:
        name: without a system's prefixes and suffixes.
        unit: "s", or in braces what is counted.
        help: what it counts.
        label: what tells a function's values apart; None: it has one value.
        values: returns a function's values by that, by "" if there is one.
    """

    name: str
    unit: str
    help: str
    label: str | None
    values: Callable[[FunctionStats], dict[str, float]]


METRICS: Final = (
    Metric(
        "calls",
        "{call}",
        "Calls of the function: result is hit (answered from the store) or miss.",
        "result",
        lambda row: {"hit": row.hits, "miss": row.misses},
    ),
    Metric("loads", "{load}", "Runs of the function that ended with a result.", None, lambda row: {"": row.loads}),
    Metric("load_time", "s", "Time that these runs took.", None, lambda row: {"": row.load_seconds}),
    Metric("waits", "{wait}", "Waits for another caller's load.", None, lambda row: {"": row.waits}),
    Metric(
        "stale_hits",
        "{call}",
        "Calls answered with a value whose time was over.",
        None,
        lambda row: {"": row.stale_hits},
    ),
    Metric("refreshes", "{refresh}", "Refreshes that began in the background.", None, lambda row: {"": row.refreshes}),
    Metric(
        "refused_fills",
        "{result}",
        "Results not stored because the key was touched while they were loaded.",
        None,
        lambda row: {"": row.refused_fills},
    ),
    Metric(
        "uncached_results",
        "{result}",
        "Results not stored because of the options, by reason.",
        "reason",
        lambda row: dict(row.uncached_by),
    ),
    Metric(
        "errors",
        "{error}",
        "Failures that did not reach a caller, by kind.",
        "kind",
        lambda row: dict(row.errors),
    ),
)


class Totals:
    """The sums of all functions by name, which never go down.

    A function that the garbage collector has taken goes on with what it had counted when it was last looked at: what it
    counted after that is lost. Keeping its counters instead would let a process that decorates again and again grow.
    """

    def __init__(self) -> None:
        # Guards the two below, and is held while they are read and replaced: of two readers the later one must not
        # leave behind older numbers than the earlier one has reported.
        self._lock = fork_safe_lock(outer=True)
        self._alive: dict[weakref.ref[FunctionCounters], tuple[str, FunctionStats]] = {}  # as of the last look
        self._gone: dict[str, FunctionStats] = {}

    def read(self) -> dict[str, FunctionStats]:
        """Return what has been counted since the process began, by the function's qualified name."""
        with self._lock:
            alive = {weakref.ref(each): (each.name, each.snapshot()) for each in stats.functions()}
            ended = [last for reference, last in self._alive.items() if reference not in alive]
            self._gone = by_name([*self._gone.items(), *ended])
            self._alive = alive
            return by_name([*self._gone.items(), *alive.values()])
