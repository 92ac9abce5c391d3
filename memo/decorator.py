"""`cache_aside`: the wrapper and its helpers; it never decides anything about keys, stores or loads.

The wrapper is a `wrapt.FunctionWrapper`, so that introspection sees the function. Each decorated function has a class
of its own: the generated `__call__` is put on it, and `__get__` returns memo's own bound object, which is made in half
the time of wrapt's.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

import wrapt

from .config import check_store, resolve_store
from .entry import DEFAULT, Default
from .errors import OptionError
from .keys import describe
from .memoized import Memoized
from .stats import FunctionStats
from .stores import Store

if TYPE_CHECKING:
    from .cached import Cached

__all__ = ["cache_aside"]

P = ParamSpec("P")
R = TypeVar("R")


class _Helpers:
    """The helpers, for the wrapper and for the object that a method's access returns."""

    __slots__ = ()

    def invalidate(self, /, *args: Any, **kwargs: Any) -> Any:
        """Forget one call's result, everywhere.

        A load of it that is under way is returned to those who wait for it and not stored, and nobody joins it now.

        Args:
            args: as in the call.
            kwargs: as in the call.

        Returns:
            Whether there was an entry; on an async function an awaitable of that.
        """
        memoized, args, bound = _parts(self, args)
        return memoized.invalidate(args, kwargs, bound)

    def invalidate_all(self) -> Any:
        """Forget all results of the function, those of all instances included."""
        return _parts(self, ())[0].invalidate_all()

    def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function and store its result in the place of what is there; return it.

        It joins nobody's load, and a load that began earlier does not overwrite its result.
        """
        memoized, args, bound = _parts(self, args)
        return memoized.refresh(args, kwargs, bound)

    def peek(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return one call's stored result, or MISSING; the function is not called and nothing is counted."""
        memoized, args, bound = _parts(self, args)
        return memoized.peek(args, kwargs, bound)

    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Store `value` as the result of one call, for the time that the options give it.

        Raises:
            OptionError: the options say that such a result is not kept.
        """
        memoized, args, bound = _parts(self, args)
        return memoized.set(value, args, kwargs, bound)

    def key_for(self, /, *args: Any, **kwargs: Any) -> str:
        """Return the key of one call, as the store's `keys()` lists it."""
        memoized, args, bound = _parts(self, args)
        return memoized.key_for(args, kwargs, bound)

    def ttl_left(self, /, *args: Any, **kwargs: Any) -> Any:
        """Return the seconds that one call's result has left; None: there is none; infinity: it never expires."""
        memoized, args, bound = _parts(self, args)
        return memoized.ttl_left(args, kwargs, bound)

    def stats(self) -> FunctionStats:
        """Return what has been counted for this function; reading it changes nothing."""
        return _parts(self, ())[0].stats()

    @property
    def store(self) -> Store:
        """The store in which the results are."""
        return _parts(self, ())[0].placed().store


class _Cached(_Helpers, wrapt.FunctionWrapper):  # type: ignore[type-arg]  # wrapt's own generics are not ours
    """The wrapper; each decorated function's is a subclass of it."""

    # Set by _wrap. An annotation here would hide the function's own `__annotations__`.
    _self_memoized = cast("Memoized", None)

    def __set_name__(self, owner: type, name: str) -> None:
        memoized = self._self_memoized
        # Not a plain function that a class merely mentions, as in `loader = load_user`.
        own = memoized.in_class or memoized.first in ("self", "cls")
        if memoized.kind == "function" and own and memoized.first is not None and not memoized.settled:
            memoized.method = True
        inner = getattr(type(self.__wrapped__), "__set_name__", None)
        if inner is not None:  # a stacked decorator's wrapper wants to know, too
            inner(self.__wrapped__, owner, name)

    # By reference, as a function: the same name finds the same wrapper.
    def __reduce_ex__(self, protocol: Any) -> str:
        return str(self.__qualname__)

    def __reduce__(self) -> str:
        return str(self.__qualname__)

    def __copy__(self) -> _Cached:
        return self

    def __deepcopy__(self, memo: Any) -> _Cached:
        return self

    def __repr__(self) -> str:
        return f"<cached {self._self_memoized.name}>"


class _Bound(_Helpers, partial[Any]):
    """What access to a cached method returns: generated code, and the instance or class that it is called on.

    A partial, because that is made and called in C.
    """

    __slots__ = ()

    _memoized = cast("Memoized", None)  # set by _wrap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memoized.plan.function, name)  # as a method does: __qualname__, __annotations__, ...

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        wrapper = self._memoized.wrapper()
        return self._memoized.plan.function if wrapper is None else wrapper

    @property
    def __wrapped__(self) -> Any:
        return types.MethodType(self._memoized.plan.function, self.args[0])

    # inspect.ismethod, iscoroutinefunction and signature take it for what it stands for.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return types.MethodType

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._memoized.plan.function.__doc__

    @property
    def __module__(self) -> str:  # type: ignore[override]
        return self._memoized.plan.function.__module__

    @property
    def __name__(self) -> str:
        return str(self._memoized.plan.function.__name__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.args[0] is self.args[0]

    def __hash__(self) -> int:
        return hash((id(self.args[0]), type(self)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (self.args[0], self._memoized.plan.function.__name__)

    def __repr__(self) -> str:
        return f"<cached {self._memoized.name} of {object.__repr__(self.args[0])}>"


def _parts(helper: Any, args: tuple[Any, ...]) -> tuple[Memoized, tuple[Any, ...], bool]:
    if isinstance(helper, _Cached):
        return helper._self_memoized, args, False
    return helper._memoized, (helper.args[0], *args), True


def _checked(function: Any, decorator: str, store: Any) -> None:
    """Raise OptionError if `function` is none, or `store` cannot be one."""
    inner = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
    if isinstance(inner, type) or not callable(inner):
        raise OptionError(
            f"{decorator} decorates functions and methods, not {inner!r}"
            + ("" if isinstance(inner, type) else f"; options are given by name, as in @{decorator}(ttl=60)")
        )
    check_store(store, describe(inner))


def _wrap(
    function: Any,
    options: dict[str, Any],
    memoize: type[Memoized] = Memoized,
    cached_class: type[_Cached] = _Cached,
    accessed_class: type[_Bound] = _Bound,
) -> Any:
    kind, inner = "function", function
    if isinstance(function, (classmethod, staticmethod)):
        kind, inner = type(function).__name__, function.__func__
    memoized = memoize(inner, kind, partial(resolve_store, options["store"]), options)

    # `type` would give the class a __doc__ and a __module__ of its own, which hide the properties.
    shown = {name: vars(_Bound)[name] for name in ("__doc__", "__module__")}
    bound_class: Any = type("Bound", (accessed_class,), {"__slots__": (), "_memoized": memoized, **shown})

    if kind == "staticmethod" or not hasattr(type(inner), "__get__"):  # Python binds no builtin and no callable object

        def get(self: Any, instance: Any, owner: Any = None) -> Any:
            return self

    elif kind == "classmethod":

        def get(self: Any, instance: Any, owner: Any = None) -> Any:
            return bound_class(bound, type(instance) if owner is None else owner)

    elif memoized.first == "cls":

        def get(self: Any, instance: Any, owner: Any = None) -> Any:
            if instance is None:
                return self
            if instance is owner:
                # A classmethod above us: up to Python 3.12 it asks us to bind, later it binds by itself.
                return types.MethodType(self, instance)
            return bound_class(bound, instance)

    else:

        def get(self: Any, instance: Any, owner: Any = None) -> Any:
            return self if instance is None else bound_class(bound, instance)

    def call(*args: Any, **kwargs: Any) -> Any:
        memoized.prepare()  # puts the generated code in the place of this
        return cls.__call__(*args, **kwargs)

    def first_bound_call(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        if memoized.prepare():
            return memoized.through(instance, *args, **kwargs)
        if bound is not first:
            return bound(instance, *args, **kwargs)
        if memoized.first is None:  # no parameter for the instance by name: it goes among the others
            return cls.__call__(instance, *args, **kwargs)
        return first_bound_call(instance, *args, **kwargs)  # all functions were switched in between

    async def first_async_call(instance: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await first_bound_call(instance, *args, **kwargs)

    # From Python 3.13 on, `inspect.iscoroutinefunction` looks into a partial before it asks whether that is a method.
    first: Callable[..., Any] = first_async_call if memoized.is_async else first_bound_call
    bound = first
    # A static method: the wrapper is not among the arguments, whatever the function's parameters are called.
    cls: Any = type("Cached", (cached_class,), {"__get__": get, "__call__": staticmethod(call)})

    def install(code: Any, bound_code: Any) -> None:
        nonlocal bound
        bound = first if bound_code is None else bound_code
        cls.__call__ = staticmethod(call if code is None else code)

    wrapper = cls(inner, call)
    wrapper._self_memoized = memoized
    memoized.wrapper = weakref.ref(wrapper)
    memoized.install = install
    return wrapper


@overload
def cache_aside(function: Callable[P, R], /) -> Cached[P, R]: ...
@overload
def cache_aside(
    *,
    ttl: float | timedelta | Default | Callable[[Any], float | timedelta | Default | None] | None = DEFAULT,
    key: str | Callable[..., str] | None = None,
    ignore: Iterable[str] = (),
    namespace: str | None = None,
    version: str | int | None = None,
    store: Store | str = "default",
    tags: tuple[str, ...] | list[str] = (),
    cache_none: bool = False,
    cache_if: Callable[[Any], object] | None = None,
    jitter: float = 0,
    stale_while_revalidate: float | timedelta = 0,
    stale_if_error: float | timedelta = 0,
    early_refresh: float = 0,
    single_flight: str | None = "process",
    wait_timeout: float | timedelta | None = None,
    serializer: Any = None,
) -> Callable[[Callable[P, R]], Cached[P, R]]: ...
def cache_aside(
    function: Any = None,
    /,
    *,
    ttl: Any = DEFAULT,
    key: Any = None,
    ignore: Any = (),
    namespace: Any = None,
    version: Any = None,
    store: Any = "default",
    tags: Any = (),
    cache_none: Any = False,
    cache_if: Any = None,
    jitter: Any = 0,
    stale_while_revalidate: Any = 0,
    stale_if_error: Any = 0,
    early_refresh: Any = 0,
    single_flight: Any = "process",
    wait_timeout: Any = None,
    serializer: Any = None,
) -> Any:
    """Keep a function's results in a store, by the arguments of its calls.

    For `def` and `async def`, functions, methods, classmethods and staticmethods. Two calls share a result only if
    their bound arguments are equal and of the same types. While one call loads a key, others of the same key wait for
    its result.

    Args:
        function: what is decorated, when no option is given.
        ttl: how long a result is kept: seconds (int or float, more than 0), a timedelta, None (it never expires),
            DEFAULT (the store's `default_ttl`), or a function of the result that returns one of these; 0 or less from
            it means that the result is not kept.
        key: what makes a call's key: a template over the parameters, such as "user:{user_id}", or a function of the
            call's arguments that returns text. The rendered text is the identity: calls that render alike share.
        ignore: names of parameters that the result does not depend on.
        namespace: in the place of the function's module and qualified name.
        version: told apart from other versions: change it when the function's results change their meaning.
        store: a store, or the name or URL of one; found at the first call.
        tags: names, or templates over the parameters; `store.invalidate_tags` drops all entries that bear one.
        cache_none: keep None too, which else means "not found" and is not kept.
        cache_if: keep only results for which this function of the result is true.
        jitter: shorten each ttl by a random share of it, up to this one (0 to 1), so that what was stored together does
            not expire together.
        stale_while_revalidate: seconds or a timedelta after the ttl in which a call is still answered with the old
            result, at once, while one refresh runs behind it (RFC 5861).
        stale_if_error: seconds or a timedelta after the ttl in which the old result is returned if the function raises
            an Exception (RFC 5861).
        early_refresh: beta of XFetch (Vattani et al., VLDB 2015): calls shortly before the end refresh behind the
            caller's back, the sooner the longer a load takes; 1 is the paper's choice, 0 is off.
        single_flight: "process": one load per key at a time; None: every caller that misses loads.
        wait_timeout: seconds after which a caller that waits for another's load loads by itself; None: no limit.
        serializer: in the place of the store's: a name, such as "msgpack", or an object with `dumps` and `loads`. Where
            the store has none, each caller gets a copy. Results that another one has written are not found.

    Returns:
        The function with the helpers `invalidate`, `invalidate_all`, `refresh`, `peek`, `set`, `key_for`, `ttl_left`,
        `stats` and `store`; on an async function those that touch the store are awaited.

    Raises:
        OptionError: an option is out of range, or the function cannot be cached (a generator, for one).

    >>> @cache_aside(ttl=60, namespace="docs.square")
    ... def square(x):
    ...     print("computing")
    ...     return x * x
    >>> square(3), square(x=3)
    computing
    (9, 9)
    >>> square.key_for(3)
    'docs.square(3)'
    >>> square.invalidate(3)
    True
    """
    options = {
        "ttl": ttl,
        "key": key,
        "ignore": ignore,
        "namespace": namespace,
        "version": version,
        "store": store,
        "tags": tags,
        "cache_none": cache_none,
        "cache_if": cache_if,
        "jitter": jitter,
        "stale_while_revalidate": stale_while_revalidate,
        "stale_if_error": stale_if_error,
        "early_refresh": early_refresh,
        "single_flight": single_flight,
        "wait_timeout": wait_timeout,
        "serializer": serializer,
    }

    def decorate(function: Any) -> Any:
        _checked(function, "cache_aside", store)
        return _wrap(function, options)

    return decorate if function is None else decorate(function)
