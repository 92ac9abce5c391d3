"""The type of what `cache_aside` returns, as type checkers see it; it has no behaviour of its own.

One class for sync and async functions, and for a method's access too: `Cached[P, R]` is called with P and returns R,
and where R is a coroutine the helpers that touch the store are awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from .entry import Missing
from .stats import FunctionStats
from .stores import Store

__all__ = ["Cached"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)
T = TypeVar("T")
S = TypeVar("S")

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
