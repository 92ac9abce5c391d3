"""A data store for examples and tests: a dict that is as slow as it is told to be and counts what it is asked.

It is what stands behind a cache, and knows nothing of memo.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import OptionError
from ..stats import Counter

__all__ = ["MockDataStore"]


class MockDataStore:
    """A dict behind a latency, with the names that data sources have in the cache-aside pattern.

    Args:
        latency_ms: milliseconds that each call takes, 0 or more.
        data: what is there at first; it is copied.
        sleep: what is called with the latency in seconds, and awaited on the awaited side if that is what it returns;
            `ManualClock().advance` lets no real time pass. None: `time.sleep` and `asyncio.sleep`.

    Attributes:
        latency_ms: as given; it may be changed.
        data: what is there.

    Raises:
        OptionError: an argument is out of range.

    >>> source = MockDataStore(latency_ms=0, data={"a": 1})
    >>> source.get("a"), source.get("b"), source.reads
    (1, None, 2)
    """

    def __init__(
        self,
        latency_ms: float = 100,
        data: Mapping[str, Any] | None = None,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        if type(latency_ms) not in (int, float) or not 0 <= latency_ms < float("inf"):
            raise OptionError(f"latency_ms={latency_ms!r}: allowed are milliseconds, 0 or more")
        if sleep is not None and not callable(sleep):
            raise OptionError(f"sleep={sleep!r}: allowed are a function of seconds, and None")
        self.latency_ms = latency_ms
        self.data: dict[str, Any] = dict(data or {})
        self._reads, self._updates, self._deletes = Counter(), Counter(), Counter()
        self._sleep = sleep

    @property
    def reads(self) -> int:
        """Calls of `get`."""
        return self._reads.value

    @property
    def updates(self) -> int:
        """Calls of `update`."""
        return self._updates.value

    @property
    def deletes(self) -> int:
        """Calls of `delete`."""
        return self._deletes.value

    @property
    def calls(self) -> int:
        """How often it was asked for anything."""
        return self.reads + self.updates + self.deletes

    def _wait(self) -> None:
        (self._sleep or time.sleep)(self.latency_ms / 1000)

    async def _await(self) -> None:
        waited = (self._sleep or asyncio.sleep)(self.latency_ms / 1000)
        if inspect.isawaitable(waited):
            await waited

    # Each counts before it waits, so that a test sees a call that is under way, and looks after it: what another caller
    # changes meanwhile is seen.

    def get(self, key: str) -> Any:
        """Return what is at `key`, or None."""
        self._reads.tick()
        self._wait()
        return self.data.get(key)

    def update(self, key: str, value: Any) -> None:
        """Put `value` at `key`."""
        self._updates.tick()
        self._wait()
        self.data[key] = value

    def delete(self, key: str) -> bool:
        """Remove what is at `key`; return whether there was anything."""
        self._deletes.tick()
        self._wait()
        return self.data.pop(key, self) is not self

    async def aget(self, key: str) -> Any:
        """Do what `get` does, awaited."""
        self._reads.tick()
        await self._await()
        return self.data.get(key)

    async def aupdate(self, key: str, value: Any) -> None:
        """Do what `update` does, awaited."""
        self._updates.tick()
        await self._await()
        self.data[key] = value

    async def adelete(self, key: str) -> bool:
        """Do what `delete` does, awaited."""
        self._deletes.tick()
        await self._await()
        return self.data.pop(key, self) is not self
