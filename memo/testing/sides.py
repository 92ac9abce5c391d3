"""A store seen through its blocking or its awaiting side, and functions cached in it; nothing is judged here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from ..decorator import cache_aside
from ..stores import Store

__all__ = ["Awaiting", "Blocking", "Loader"]


class Blocking:
    """A store seen through its plain methods."""

    awaits = False

    def __init__(self, store: Store) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a cached function or one of its helpers."""
        return function(*args)

    def shut(self) -> None:
        """Give back what this holds."""


class Awaiting(Blocking):
    """A store seen through its methods with an `a` in front, from code that cannot await; it owns an event loop."""

    awaits = True

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Awaitable[Any]] = getattr(self.store, f"a{name}")

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.run(partial(method, *args, **kwargs))

        return call

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call and await a cached function, one of its helpers or a method."""

        async def awaited() -> Any:
            return await function(*args)

        return self._loop.run_until_complete(awaited())

    def shut(self) -> None:
        """Close the loop, and the threads that a store's own default twins run in."""
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class Loader:
    """A cached function of one argument, on either side, that counts its loads.

    Args:
        side: the store, and whether the function is an `async def`.
        name: the namespace of the function's keys.
        result: what a load returns, of the argument and the number of the load; by default that pair as text.
        options: of `cache_aside`.

    Attributes:
        loads: how often the function ran.
        during: what is done in the middle of the next load, as `(method, *arguments)`: one of the store's, or with
            "fn." in front a helper of the function's.
        by: whose store or function that is.
    """

    def __init__(
        self, side: Blocking, name: str, result: Callable[[Any, int], Any] | None = None, **options: Any
    ) -> None:
        self.side = side
        self.loads = 0
        self.during: tuple[Any, ...] | None = None
        self.by = self
        self._result = result or (lambda x, load: f"{x!r} of load {load}")
        options = {"store": side.store, "namespace": name, "ttl": None, **options}

        if side.awaits:

            async def aload(x: Any) -> Any:
                step = self._begin()
                if step is not None:
                    await self._method(step[0], "a")(*step[1:])
                return self._result(x, self.loads)

            self.fn: Any = cache_aside(**options)(aload)
        else:

            def load(x: Any) -> Any:
                step = self._begin()
                if step is not None:
                    self._method(step[0], "")(*step[1:])
                return self._result(x, self.loads)

            self.fn = cache_aside(**options)(load)

    def _begin(self) -> tuple[Any, ...] | None:
        self.loads += 1
        step, self.during = self.during, None
        return step

    def _method(self, name: str, prefix: str) -> Any:
        if name.startswith("fn."):
            return getattr(self.by.fn, name.removeprefix("fn."))
        return getattr(self.by.side.store, prefix + name)

    def __call__(self, x: Any) -> Any:
        """Call the function and return its result."""
        return self.side.run(self.fn, x)

    def key(self, x: Any) -> str:
        """Return the text of a call's key."""
        key: str = self.fn.key_for(x)
        return key

    def __getattr__(self, name: str) -> Any:
        helper = getattr(self.fn, name)
        return partial(self.side.run, helper)
