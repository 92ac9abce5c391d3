"""The type of what `cache_aside` returns, for annotations; what type checkers see of it is in the stub beside it."""

from __future__ import annotations

from typing import Generic, ParamSpec, TypeVar

__all__ = ["Cached"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Cached(Generic[P, R]):
    """A decorated function, called with `P` and returning `R`: for annotations such as ``Cached[[int], User]``.

    `cache_aside` returns a wrapper that looks like the function itself; this class only names its type.
    """
