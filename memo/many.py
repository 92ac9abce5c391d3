"""`cache_aside_many`: functions of many ids, each of which is cached as a call of its own; it never runs a load."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from . import drivers_many
from .aside_many import Batch, ManyPolicy, picked
from .decorator import _Bound, _Cached, _checked, _parts, _wrap
from .drivers_many import BatchFlight, TaskBatch
from .entry import DEFAULT, Default
from .errors import OptionError, UnkeyableError
from .flight import Flight
from .memoized import Memoized
from .stores import Store

if TYPE_CHECKING:
    from .cached import CachedMany, CachedManyNamed
    from .stores.base import Space

__all__ = ["cache_aside_many"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = {"jitter": 0, "stale_while_revalidate": 0, "stale_if_error": 0, "early_refresh": 0}
"""What `cache_aside` has besides."""


class MemoizedMany(Memoized):
    """What memo knows of one function of many ids.

    An id's key, tags and entry are those of the call in which the id itself stands in the place of the ids: the key of
    7 reads `app.load(7)`. So all that `Memoized` does for one call serves for one id.
    """

    policy = ManyPolicy

    def __init__(
        self, function: Callable[..., Any], kind: str, resolve: Callable[[], Store], options: dict[str, Any]
    ) -> None:
        super().__init__(function, kind, resolve, options)
        self.keys.many = True
        if options["single_flight"] == "fleet":
            raise OptionError(
                f"{self.name}: single_flight='fleet': of a function of many ids allowed are 'process' and None: "
                f"two calls of two processes may want the same ids in another order"
            )
        binding, name = self.keys.binding, self.name
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        skip = kind == "classmethod" or (kind == "function" and self.first in ("self", "cls"))
        allowed = [each.name for each in binding.parameters if each.kind not in variable][1 if skip else 0 :]
        given = options["ids"]
        if given is not None and given not in allowed:
            raise OptionError(f"{name}: ids={given!r}: allowed is the name of one of its parameters, {allowed!r}")
        if not allowed:
            raise OptionError(f"{name}: a function of many ids has a parameter for them, as in def load(ids)")
        self.ids = ids = allowed[0] if given is None else given
        self._index = binding.positional.index(ids) if ids in binding.positional else None
        if ids in binding.defaults:
            raise OptionError(
                f"{name}: the parameter {ids!r} holds the ids, so it has no default: every call gives them"
            )
        template = self.keys.template
        if ids in binding.ignored or (template is not None and ids not in template.fields):
            raise OptionError(
                f"{name}: the parameter {ids!r} holds the ids, of which each has a key of its own: "
                f"{'key=' if template is not None else 'ignore='} must not leave it out; ids= names another parameter"
            )

    def _fast(self, space: Space) -> bool:
        return False

    # -- from a call to its ids ----------------------------------------------------------------------------------------

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        return (kwargs or {})[self.ids] if self._index is None else args[self._index]

    def _with(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a canonical call with another value in the place of the ids."""
        if self._index is None:
            return args, {**kwargs, self.ids: value}
        return (*args[: self._index], value, *args[self._index + 1 :]), kwargs

    def _several(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> list[Any]:
        """Return the ids of a call, each once."""
        given = self._given(args, kwargs)
        if isinstance(given, (str, bytes, bytearray)) or not isinstance(given, Iterable):
            raise UnkeyableError(
                f"{self.name}: the argument {self.ids!r} is of type {type(given).__name__}: it takes several ids, such "
                f"as a list of them, and one id as [id]"
            )
        ids = list(given)
        try:
            return list(dict.fromkeys(ids))
        except TypeError as error:
            raise UnkeyableError(
                f"{self.name}: the argument {self.ids!r}: an id is a key of the result, and one of these cannot be "
                f"({error})"
            ) from None

    def _spread(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> tuple[Any, ...]:
        """Return what a batch is made of."""
        ids = self._several(args, kwargs)
        space, keys = self._keys(ids, args, kwargs, bound)
        tags = partial(self._tags_for, args, kwargs) if self._tagged else None
        return space, keys, partial(self._with, args, kwargs), partial(self._fly, args, kwargs), tags

    def _keys(
        self, ids: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool
    ) -> tuple[Space, dict[Any, Any]]:
        """Return the space of a call and the keys of its ids.

        All must be of one space. `invalidate_all`, which gives an instance a new one, and `configure` may come between
        two of them: then it begins again.
        """
        if self.keys.template is not None:
            return self.attached(), self.keys.texts(args, kwargs, self.ids, ids)
        while True:
            space: Space | None = None
            keys = {}
            for each in ids:
                there, keys[each] = self.locate(*self._with(args, kwargs, each), bound)
                if space is not None and there is not space:
                    break
                space = there
            else:
                return self.attached() if space is None else space, keys

    def _tags_for(self, args: tuple[Any, ...], kwargs: dict[str, Any], each: Any) -> tuple[str, ...]:
        """Return the tags of one id's call."""
        return self.tags_of(*self._with(args, kwargs, each))

    def _fly(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Any, key: Any, each: Any) -> Any:
        """Make the flight of one id, which stands in the place of its arguments."""
        tags = self._tags_for(args, kwargs, each) if self._tagged else ()
        if self.is_async:
            return BatchFlight(batch.space, key, (each,), {}, tags, batch.origin, loop=batch.loop, batch=batch)
        return Flight(batch.space, key, (each,), {}, tags, batch.origin)

    @property
    def through(self) -> Callable[..., Any]:
        """What a call goes to while calls pass through: the function has a list, and its caller what a call returns."""
        name, function = self.name, self.plan.function

        def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any, Any]:
            canonical, named = self.keys.bind(*args, **kwargs)
            ids = self._several(canonical, named)
            return ids, *self._with(canonical, named or {}, ids)

        def call(*args: Any, **kwargs: Any) -> Any:
            ids, positional, named = given(args, kwargs)
            return picked(name, function(*positional, **named), ids) if ids else {}

        async def acall(*args: Any, **kwargs: Any) -> Any:
            ids, positional, named = given(args, kwargs)
            return picked(name, await function(*positional, **named), ids) if ids else {}

        return acall if self.is_async else call

    # -- calls and helpers ---------------------------------------------------------------------------------------------

    def miss(self, bound: bool, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Any) -> Any:
        """Return the results by id, or for an async function an awaitable of them."""
        spread = self._spread(args, kwargs or {}, bound)
        if self.is_async:
            return drivers_many.run_many_async(self.plan, TaskBatch(*spread), False)
        return drivers_many.run_many(self.plan, Batch(*spread), False)

    def _bind(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
        """Do what `Memoized._bind` does, for a helper that takes one id."""
        canonical, named = super()._bind(args, kwargs, bound)
        each = self._given(canonical, named)
        try:
            hash(each)
        except TypeError:
            raise UnkeyableError(
                f"{self.name}: the argument {self.ids!r} is of type {type(each).__name__}, which is no id: this helper "
                f"takes one id; refresh and invalidate_many take several"
            ) from None
        return canonical, named

    def places(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> tuple[Space, list[Any]]:
        """Return the space and the keys of a call in canonical form."""
        space, keys = self._keys(self._several(args, kwargs), args, kwargs, bound)
        return space, list(dict.fromkeys(keys.values()))

    def refresh(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Load the results of several ids and store them, whatever is there; return them."""
        canonical, named = super()._bind(args, kwargs, bound)
        spread = self._spread(canonical, named or {}, bound)
        if self.is_async:
            return self._refresh_many_async(spread)
        return drivers_many.run_many(self.plan, Batch(*spread), True)

    async def _refresh_many_async(self, spread: tuple[Any, ...]) -> Any:
        # The batch belongs to the event loop that awaits this, which need not run yet when the helper is called.
        return await drivers_many.run_many_async(self.plan, TaskBatch(*spread), True)

    def invalidate_many(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: bool) -> Any:
        """Remove the entries of several ids; return how many there were."""
        canonical, named = super()._bind(args, kwargs, bound)
        space, keys = self.places(canonical, named or {}, bound)
        return space.aremove_many(keys) if self.is_async else space.remove_many(keys)


class _Many:
    """The helper that only functions of many ids have."""

    __slots__ = ()

    def invalidate_many(self, /, *args: Any, **kwargs: Any) -> Any:
        """Forget the results of several ids, everywhere.

        Args:
            args: as in the call.
            kwargs: as in the call.

        Returns:
            How many there were; on an async function an awaitable of that.
        """
        memoized: Any
        memoized, args, bound = _parts(self, args)
        return memoized.invalidate_many(args, kwargs, bound)


class _CachedMany(_Many, _Cached):
    """The wrapper of a function of many ids."""


class _BoundMany(_Many, _Bound):
    """What access to a cached method of many ids returns."""

    __slots__ = ()


@overload
def cache_aside_many(function: Callable[P, R], /) -> CachedMany[P, R]: ...
@overload
def cache_aside_many(
    *,
    ids: None = None,
    ttl: float | timedelta | Default | Callable[[Any], float | timedelta | Default | None] | None = DEFAULT,
    key: str | Callable[..., str] | None = None,
    ignore: Iterable[str] = (),
    namespace: str | None = None,
    version: str | int | None = None,
    store: Store | str = "default",
    tags: tuple[str, ...] | list[str] = (),
    cache_none: bool = False,
    cache_if: Callable[[Any], object] | None = None,
    single_flight: str | None = "process",
    wait_timeout: float | timedelta | None = None,
    serializer: Any = None,
) -> Callable[[Callable[P, R]], CachedMany[P, R]]: ...
@overload
def cache_aside_many(
    *,
    ids: str,
    ttl: float | timedelta | Default | Callable[[Any], float | timedelta | Default | None] | None = DEFAULT,
    key: str | Callable[..., str] | None = None,
    ignore: Iterable[str] = (),
    namespace: str | None = None,
    version: str | int | None = None,
    store: Store | str = "default",
    tags: tuple[str, ...] | list[str] = (),
    cache_none: bool = False,
    cache_if: Callable[[Any], object] | None = None,
    single_flight: str | None = "process",
    wait_timeout: float | timedelta | None = None,
    serializer: Any = None,
) -> Callable[[Callable[P, R]], CachedManyNamed[P, R]]: ...
def cache_aside_many(
    function: Any = None,
    /,
    *,
    ids: Any = None,
    ttl: Any = DEFAULT,
    key: Any = None,
    ignore: Any = (),
    namespace: Any = None,
    version: Any = None,
    store: Any = "default",
    tags: Any = (),
    cache_none: Any = False,
    cache_if: Any = None,
    single_flight: Any = "process",
    wait_timeout: Any = None,
    serializer: Any = None,
) -> Any:
    """Keep the results of a function of many ids, id by id: a call loads, in one go, only those that are missing.

    For `def load(ids)` and `async def`, functions, methods, classmethods and staticmethods. The function is called with
    a list of the missing ids, in the order of the call, and returns a mapping from ids to values; it may leave out ids
    that it has not found. The caller gets a dict in the order of its own ids. The ids that other calls are loading are
    waited for, so that each id is loaded by one call at a time.

    Args:
        function: what is decorated, when no option is given.
        ids: the name of the parameter that holds the ids; None: the first one, after `self` or `cls`.
        ttl: as for `cache_aside`; a function gets the value of one id, and so does `cache_if`.
        key: as for `cache_aside`, of one id: in the place of the ids there is the id, as in "user:{ids}".
        ignore: names of parameters, beside the ids, that the results do not depend on.
        namespace: in the place of the function's module and qualified name.
        version: told apart from other versions.
        store: a store, or the name or URL of one; found at the first call.
        tags: as for `cache_aside`, of one id, as in "user:{ids}".
        cache_none: keep None too. Ids that the function leaves out are never kept.
        cache_if: keep only values for which this is true.
        single_flight: "process": one load per id at a time; None: every caller loads what it misses.
        wait_timeout: seconds after which a caller that waits for other calls' loads loads those ids by itself.
        serializer: as for `cache_aside`, of the value of one id.

    Returns:
        The function with the helpers of `cache_aside`, which take one id in the place of the ids, but for `refresh` and
        `invalidate_many`, which take several.

    Raises:
        OptionError: an option is out of range, or the function cannot be cached.

    >>> @cache_aside_many(ttl=60, namespace="docs.names")
    ... def names(ids):
    ...     print("loading", ids)
    ...     return {each: f"name {each}" for each in ids}
    >>> names([1, 2])
    loading [1, 2]
    {1: 'name 1', 2: 'name 2'}
    >>> names([3, 2, 1])
    loading [3]
    {3: 'name 3', 2: 'name 2', 1: 'name 1'}
    >>> names.key_for(3), names.invalidate(3), names.invalidate_many([1, 2, 3])
    ('docs.names(3)', True, 2)
    """
    options = {
        "ids": ids,
        "ttl": ttl,
        "key": key,
        "ignore": ignore,
        "namespace": namespace,
        "version": version,
        "store": store,
        "tags": tags,
        "cache_none": cache_none,
        "cache_if": cache_if,
        "single_flight": single_flight,
        "wait_timeout": wait_timeout,
        "serializer": serializer,
        **_OPTIONS,
    }

    def decorate(function: Any) -> Any:
        _checked(function, "cache_aside_many", store)
        return _wrap(function, options, MemoizedMany, _CachedMany, _BoundMany)

    return decorate if function is None else decorate(function)
