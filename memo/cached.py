"""The types of what the decorators return, for annotations; what type checkers see of them is in the stub beside."""

from __future__ import annotations

from typing import Generic, ParamSpec, TypeVar

__all__ = ["Cached", "CachedMany", "CachedManyNamed"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Cached(Generic[P, R]):
    """A decorated function, called with `P` and returning `R`: for annotations such as ``Cached[[int], User]``.

    `cache_aside` returns a wrapper that looks like the function itself; this class only names its type.
    """


class CachedMany(Generic[P, R]):
    """The type of a decorated function of many ids: ``CachedMany[[list[int]], dict[int, User]]`` in annotations.

    `cache_aside_many` returns a wrapper that looks like the function itself; this class only names its type.
    """


class CachedManyNamed(Generic[P, R]):
    """The type of a decorated function of many ids of which `ids=` names the parameter."""
