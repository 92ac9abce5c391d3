"""The types of what `cache_aside` and `cache_aside_many` return, as type checkers see them; they do nothing.

One class for sync and async functions, and for a method's access too: `Cached[P, R]` is called with P and returns R,
and where R is a coroutine the helpers that touch the store are awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .entry import Missing
from .stats import FunctionStats
from .stores import Store

__all__ = ["Cached", "CachedMany", "CachedManyNamed"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)
T = TypeVar("T")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")

class Cached(Generic[P, R]):
    """A decorated function: called as before, and with helpers that take the call's own arguments."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    # A classmethod's first parameter takes the class, a method's the instance, a static method's neither of them. mypy
    # does not compare `self` here and takes the first that fits otherwise, hence the order: docs/limits.md.
    @overload
    def __get__(self: Cached[Concatenate[S, Q], T], instance: Any, owner: S) -> Cached[Q, T]: ...
    @overload
    def __get__(self: Cached[Concatenate[S, Q], T], instance: S, owner: Any) -> Cached[Q, T]: ...
    @overload
    def __get__(self, instance: Any, owner: Any) -> Cached[P, R]: ...
    @overload
    def invalidate(  # type: ignore[overload-overlap]
        self: Cached[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    @overload
    def invalidate_all(  # type: ignore[overload-overlap]
        self: Cached[P, Coroutine[Any, Any, T]],
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def invalidate_all(self) -> None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def peek(
        self: Cached[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T | Missing]: ...
    @overload
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | Missing: ...
    @overload
    def set(  # type: ignore[overload-overlap]
        self: Cached[P, Coroutine[Any, Any, T]], value: T, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def set(self: Cached[P, T], value: T, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def ttl_left(  # type: ignore[overload-overlap]
        self: Cached[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, float | None]: ...
    @overload
    def ttl_left(self, *args: P.args, **kwargs: P.kwargs) -> float | None: ...
    def key_for(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def stats(self) -> FunctionStats: ...
    @property
    def store(self) -> Store: ...

class CachedMany(Generic[P, R]):
    """A decorated function of many ids: the helpers take one id in the place of the first parameter.

    Its type is that of the mapping's keys: `Coroutine[Any, Any, Mapping[K, V]]` is what an async one returns.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __get__(self: CachedMany[Concatenate[S, Q], T], instance: Any, owner: S) -> CachedMany[Q, T]: ...
    @overload
    def __get__(self: CachedMany[Concatenate[S, Q], T], instance: S, owner: Any) -> CachedMany[Q, T]: ...
    @overload
    def __get__(self, instance: Any, owner: Any) -> CachedMany[P, R]: ...
    @overload
    def invalidate(
        self: CachedMany[Concatenate[Any, Q], Coroutine[Any, Any, Mapping[K, V]]],
        id: K,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, bool]: ...
    @overload
    def invalidate(
        self: CachedMany[Concatenate[Any, Q], Mapping[K, V]], id: K, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> bool: ...
    @overload
    def invalidate_many(  # type: ignore[overload-overlap]
        self: CachedMany[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, int]: ...
    @overload
    def invalidate_many(self, *args: P.args, **kwargs: P.kwargs) -> int: ...
    @overload
    def invalidate_all(  # type: ignore[overload-overlap]
        self: CachedMany[P, Coroutine[Any, Any, T]],
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def invalidate_all(self) -> None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def peek(
        self: CachedMany[Concatenate[Any, Q], Coroutine[Any, Any, Mapping[K, V]]],
        id: K,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, V | Missing]: ...
    @overload
    def peek(
        self: CachedMany[Concatenate[Any, Q], Mapping[K, V]], id: K, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> V | Missing: ...
    @overload
    def set(
        self: CachedMany[Concatenate[Any, Q], Coroutine[Any, Any, Mapping[K, V]]],
        value: V,
        id: K,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, None]: ...
    @overload
    def set(
        self: CachedMany[Concatenate[Any, Q], Mapping[K, V]], value: V, id: K, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> None: ...
    @overload
    def ttl_left(
        self: CachedMany[Concatenate[Any, Q], Coroutine[Any, Any, Mapping[K, V]]],
        id: K,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> Coroutine[Any, Any, float | None]: ...
    @overload
    def ttl_left(
        self: CachedMany[Concatenate[Any, Q], Mapping[K, V]], id: K, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> float | None: ...
    @overload
    def key_for(
        self: CachedMany[Concatenate[Any, Q], Coroutine[Any, Any, Mapping[K, V]]],
        id: K,
        /,
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> str: ...
    @overload
    def key_for(
        self: CachedMany[Concatenate[Any, Q], Mapping[K, V]], id: K, /, *args: Q.args, **kwargs: Q.kwargs
    ) -> str: ...
    def stats(self) -> FunctionStats: ...
    @property
    def store(self) -> Store: ...

class CachedManyNamed(Generic[P, R]):
    """The same where `ids=` names the parameter: which one that is has no type, so the helpers take anything."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __get__(self: CachedManyNamed[Concatenate[S, Q], T], instance: Any, owner: S) -> CachedManyNamed[Q, T]: ...
    @overload
    def __get__(self: CachedManyNamed[Concatenate[S, Q], T], instance: S, owner: Any) -> CachedManyNamed[Q, T]: ...
    @overload
    def __get__(self, instance: Any, owner: Any) -> CachedManyNamed[P, R]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def invalidate(self, *args: Any, **kwargs: Any) -> Any: ...
    def invalidate_many(self, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    def invalidate_all(self) -> Any: ...
    def peek(self, *args: Any, **kwargs: Any) -> Any: ...
    def set(self, value: Any, /, *args: Any, **kwargs: Any) -> Any: ...
    def ttl_left(self, *args: Any, **kwargs: Any) -> Any: ...
    def key_for(self, *args: Any, **kwargs: Any) -> str: ...
    def stats(self) -> FunctionStats: ...
    @property
    def store(self) -> Store: ...
