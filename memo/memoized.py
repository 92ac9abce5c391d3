"""One decorated function: its keys, its plan, its place in a store, and what its helpers do; it never wraps anything.

The wrapper's `__call__` is generated when the store is known, at the first call, and put on the wrapper's own class:
a hit in memory then costs one Python call. Until then, and for whatever the generated code cannot do, there is `miss`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from . import aside, drivers
from .aside import Plan
from .clock import seconds
from .entry import ABSENT, MISSING, Reading
from .errors import OptionError, UnkeyableError
from .flight import Flight, TaskFlight, inside
from .keys import CallKeys, describe, is_value_class
from .places import Placed
from .policy import NotKept, Policy
from .serializers import checked_serializer
from .stats import FunctionCounters, FunctionStats
from .stores.base import Space, Store
from .tags import Tags

__all__ = ["Memoized", "check_function"]

_NONE: dict[str, Any] = {}
"""The keyword arguments of a call without any; never changed."""


class Memoized(Placed):
    """What memo knows of one decorated function.

    Args:
        function: what is decorated, without classmethod or staticmethod.
        kind: "function", "classmethod" or "staticmethod".
        resolve: returns the store, when that is needed.
        options: those of `cache_aside`.

    Raises:
        OptionError: the function cannot be cached, or an option is out of range.
    """

    policy: type[Policy] = Policy
    """The class of its freshness options."""

    def __init__(
        self, function: Callable[..., Any], kind: str, resolve: Callable[[], Store], options: dict[str, Any]
    ) -> None:
        self.name = name = describe(function)
        self.kind = kind
        self.is_async = check_function(
            function, name, "cached, since what it returns can be used only once: return a list"
        )
        self.keys = CallKeys(
            function,
            key=options["key"],
            ignore=options["ignore"],
            namespace=options["namespace"],
            version=options["version"],
            name=name,
        )
        if options["single_flight"] not in ("process", "fleet", None):
            raise OptionError(
                f"{name}: single_flight={options['single_flight']!r}: allowed are 'process', 'fleet' and None"
            )
        self.keys.fleet = options["single_flight"] == "fleet"
        self.keys.serializer = options["serializer"]
        if options["serializer"] is not None:
            try:
                checked_serializer(options["serializer"])
            except OptionError as error:
                raise OptionError(f"{name}: {error}; None is the store's") from None
        wait_timeout = options["wait_timeout"]
        self.counters = FunctionCounters(name)
        self.plan = Plan(
            name=name,
            function=function,
            policy=self.policy(
                options["ttl"],
                options["cache_none"],
                options["cache_if"],
                name,
                options["jitter"],
                options["stale_while_revalidate"],
                options["stale_if_error"],
                options["early_refresh"],
            ),
            counters=self.counters,
            single_flight=options["single_flight"] is not None,
            fleet=self.keys.fleet,
            wait_timeout=None if wait_timeout is None else seconds(wait_timeout, f"{name}: wait_timeout"),
        )
        self._tags = Tags(options["tags"], self.keys.binding.names, name)
        self._tagged = bool(self._tags)
        positional = self.keys.binding.positional
        self.first = positional[0] if positional else None
        parent = name.rpartition(".")[0]
        self.in_class = "." in getattr(function, "__qualname__", "") and not parent.endswith("<locals>")
        # A function that was defined in a class and begins with `self` is a method, whoever stands in between.
        self.method = kind == "classmethod" or (
            kind == "function" and self.in_class and self.first in ("self", "cls") and bool(positional)
        )
        if kind == "classmethod" and not positional:
            raise OptionError(f"{name}: a classmethod has a first parameter for the class")
        super().__init__(resolve, named=isinstance(options["store"], str))

    # -- from a call to its place --------------------------------------------------------------------------------------

    def locate(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> tuple[Space, Any]:
        """Return the space and the key of a call in canonical form.

        Raises:
            UnkeyableError: an argument cannot be told apart safely.
        """
        space = self.attached()
        keys = self.keys
        if keys.explicit:
            return space, keys.text(args, kwargs)
        if self.method or (bound and self.first is not None):
            if not bound:
                self._check_class(args)
            return self._locate_of(space, args, kwargs)
        key = self._raw(*args, **kwargs) if space.raw else None
        return space, keys.text(args, kwargs) if key is None else key

    def places(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> tuple[Space, list[Any]]:
        """Return the space and the keys, here the only one, of a call in canonical form."""
        space, key = self.locate(args, kwargs, bound)
        return space, [key]

    def _locate_of(self, space: Space, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Space, Any]:
        """Do what `locate` does for a call whose first argument is an instance or a class."""
        keys, instance = self.keys, args[0]
        by_identity = self.first not in keys.binding.ignored and (
            space.local if isinstance(instance, type) else not is_value_class(type(instance))
        )
        if by_identity:
            own = space.of(instance)
            key = self._raw_rest(*args[1:], **kwargs) if own.raw else None
            return own, keys.text(args, kwargs, own.instance) if key is None else key
        return space, keys.text(args, kwargs)

    def _check_class(self, args: tuple[Any, ...]) -> None:
        if self.first == "cls" and self.kind == "function" and not isinstance(args[0] if args else None, type):
            given = f"not a {type(args[0]).__name__}" if args else "and there is none"
            raise UnkeyableError(
                f"{self.name}: its first argument must be the class, {given}: a helper reached through a "
                f"@classmethod that stands above @cache_aside does not know the class. Put @cache_aside above "
                f"@classmethod, or give the class first"
            )

    def tags_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call."""
        return self._tags.of(self.keys.values(args, kwargs))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def miss(self, bound: bool, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Any) -> Any:
        """Return the result, or for an async function an awaitable of it, of a call that generated code left over.

        Args:
            bound: the first argument is an instance (or a class).
            args: in canonical form.
            kwargs: likewise.
            key: the raw key, if generated code has one and has looked there; else None.
        """
        named = kwargs or _NONE
        space: Any = self.space
        tags: tuple[str, ...] | None = None
        # If generated code was wrong, since the entry came a moment later, the algorithm's second look will find it.
        first: Any = ABSENT
        # Generated code is there a moment before the space is, and runs to its end when another takes its place.
        if key is None or space is None or not space.raw:
            space, key = self.locate(args, named, bound)
            if space.local:
                try:
                    first = space.read(key)
                except Exception:  # noqa: BLE001 - the algorithm reads again, and counts it if that fails too
                    first = None
            elif self.is_async:
                return self._find(space, key, args, named)
            else:
                tags = self.tags_of(args, named) if self._tagged else ()
                first = drivers.look(self.plan, space, key, tags)
            if first is not None and first.value is not MISSING:
                self._hit(first, space, key, args, named)
                return _ready(first.value) if self.is_async else first.value
        if self.is_async:
            return drivers.lookup_async(self.plan, self._flight(space, key, args, named), first)
        if tags is None:
            tags = self.tags_of(args, named) if self._tagged else ()
        # The flight has no name here: this frame, in the traceback of an error, must not hold the error.
        return drivers.run(self.plan, Flight(space, key, args, named, tags, inside.get()), first)

    async def _find(self, space: Space, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do the rest of `miss` for a store that is awaited."""
        first = await drivers.alook(self.plan, space, key, self.tags_of(args, kwargs) if self._tagged else ())
        if first.value is MISSING:
            return await drivers.lookup_async(self.plan, self._flight(space, key, args, kwargs), first)
        self._hit(first, space, key, args, kwargs)
        return first.value

    def _hit(self, first: Reading, space: Space, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count a hit, which needs no flight."""
        self.counters.hits.tick()
        if first.due:
            self._renew(space, key, args, kwargs, first.late)

    def _renew(self, space: Space, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], late: bool) -> None:
        """Have a call's result refreshed behind its caller's back; that must not fail the call, which was served."""
        if late:
            self.counters.stale.tick()
        try:
            flight = self._flight(space, key, args, kwargs)
            (drivers.renew_async if self.is_async else drivers.renew)(self.plan, flight)
        except Exception as error:  # noqa: BLE001 - a tag's template, or an event loop that is about to close
            self.counters.error("refresh", error, "no refresh was begun, and the older result is served meanwhile")

    def _flight(self, space: Space, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tags = self.tags_of(args, kwargs) if self._tagged else ()
        if self.is_async:
            return TaskFlight(space, key, args, kwargs, tags, inside.get(), loop=asyncio.get_running_loop())
        return Flight(space, key, args, kwargs, tags, inside.get())

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        try:
            return self.keys.bind(*args, **kwargs)
        except TypeError:
            if self.method and not bound:
                self._check_class(args)  # what is missing may be the class
            raise

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> tuple[Space, Any]:
        """Return the space and the key of a call as it is written."""
        canonical, named = self._bind(args, kwargs, bound)
        return self.locate(canonical, named or _NONE, bound)

    def invalidate(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Remove the call's entry; return whether there was one."""
        space, key = self.place(args, kwargs, bound)
        return space.aremove(key) if self.is_async else space.remove(key)

    def invalidate_all(self) -> Any:
        """Remove all entries of the function."""
        space = self.attached()
        return space.aremove_all() if self.is_async else space.remove_all()

    def refresh(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Load the call's result and store it, whatever is there; return it."""
        canonical, named = self._bind(args, kwargs, bound)
        space, key = self.locate(canonical, named or _NONE, bound)
        if self.is_async:
            return self._refresh_async(space, key, canonical, named or _NONE)
        return drivers.run(self.plan, self._flight(space, key, canonical, named or _NONE), None, aside.refresh)

    async def _refresh_async(self, *call: Any) -> Any:
        # The flight belongs to the event loop that awaits this, which need not run yet when the helper is called.
        return await drivers.refresh_async(self.plan, self._flight(*call))

    def peek(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Return the call's stored result or MISSING."""
        space, key = self.place(args, kwargs, bound)
        return space.apeek(key) if self.is_async else space.peek(key)

    def set(self, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Store a value as the call's result; one that the options do not keep is an error."""
        canonical, named = self._bind(args, kwargs, bound)
        space, key = self.locate(canonical, named or _NONE, bound)
        tags = self.tags_of(canonical, named or _NONE) if self._tagged else ()
        ttl = self.plan.policy.judge(value)
        if isinstance(ttl, NotKept):
            raise OptionError(
                f"{self.name}.set({type(value).__name__}): cache_none, cache_if or ttl say that such a result is not "
                f"kept; invalidate() removes what is there"
            )
        if not self.plan.policy.plain:
            ttl = self.plan.policy.life(ttl, space.default_ttl, 0.0)
        return space.aput(key, value, ttl, tags) if self.is_async else space.put(key, value, ttl, tags)

    def key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> str:
        """Return the text of the call's key."""
        canonical, named = self._bind(args, kwargs, bound)
        space, _ = self.locate(canonical, named or _NONE, bound)
        return self.keys.text(canonical, named, space.instance)

    def ttl_left(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Return the seconds that the call's entry has left."""
        space, key = self.place(args, kwargs, bound)
        return space.aleft(key) if self.is_async else space.left(key)

    def stats(self) -> FunctionStats:
        """Return what has been counted."""
        return self.counters.snapshot()


async def _ready(value: Any) -> Any:
    return value


def check_function(function: Any, name: str, generators: str) -> bool:
    """Return whether it is a coroutine function; raise OptionError if it is a generator function.

    Args:
        function: what is decorated.
        name: what the error calls it.
        generators: what a generator function cannot be, why, and what to do.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    called = [inner, getattr(inner, "__call__", None)]  # noqa: B004 - of a callable object, to look at
    if any(inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each) for each in called):
        raise OptionError(f"{name}: a generator function cannot be {generators}")
    # A decorator in between may make a list of a generator, but not a plain function of a coroutine function.
    return any(inspect.iscoroutinefunction(each) for each in [*called, inspect.unwrap(inner)])
