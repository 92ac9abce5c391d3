"""The hits and misses of a store: its own reads', and those of the decorated functions that are with it."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from ..forks import fork_safe_lock
from ..stats import Counter

__all__ = ["Books", "Death"]


class Death(weakref.ref[Any]):
    """A weak reference to a function; its callback is `deque.append`, which runs no Python code."""

    __slots__ = ("space",)
    space: Any


class Books:
    """Counts what the functions count for as long as they are with the store, and keeps it when they are gone."""

    def __init__(self) -> None:
        # Guards the three below.
        self._lock = fork_safe_lock()
        self._functions: dict[Any, tuple[Counter, ...]] = {}  # by space: hits and misses; none: it is elsewhere
        self._past = [0, 0]  # those of functions that are gone or elsewhere
        self._dead: deque[Death] = deque()
        self.hits, self.misses = Counter(), Counter()

    def open(self, space: Any, owner: object, counters: tuple[Counter, ...]) -> None:
        """Count a new function's calls until its owner dies."""
        self.watch(space, owner)
        self.count(space, counters)

    def watch(self, space: Any, owner: object) -> None:
        """Note when the owner of a space dies; the space holds what says so in `deaths`.

        Raises:
            TypeError: the owner cannot be weakly referenced.
        """
        death = Death(owner, self._dead.append)
        death.space = space
        space.deaths = (death,)

    def count(self, space: Any, counters: tuple[Counter, ...]) -> None:
        """Count what a function's counters count from now on, or with none no longer."""
        with self._lock:
            # What they had before counts for the store that the function was with then.
            for sign, each in (1, self._functions.get(space, ())), (-1, counters):
                for index, counter in enumerate(each):
                    self._past[index] += sign * counter.value
            self._functions[space] = counters

    def bury(self) -> list[Any]:
        """Let go the spaces whose owners have died; return them."""
        buried = []
        while self._dead:
            try:
                space = self._dead.popleft().space
            except IndexError:  # another thread was faster
                break
            self.count(space, ())
            space.deaths = ()
            with self._lock:
                self._functions.pop(space, None)
            buried.append(space)
        return buried

    def totals(self) -> tuple[int, int]:
        """Return hits and misses."""
        with self._lock:
            counters = [each for each in self._functions.values() if each]
            return (
                self.hits.value + self._past[0] + sum(each[0].value for each in counters),
                self.misses.value + self._past[1] + sum(each[1].value for each in counters),
            )
