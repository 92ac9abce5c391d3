"""`disabled` and `override`: what calls do for a time, in the whole process; neither touches an entry.

Several may be entered at once, in any threads and tasks, and be left in any order: the one that was entered last wins,
and when it is left, what remains holds again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from . import places
from .config import check_store, resolve_store
from .errors import OptionError
from .places import Mode
from .stores import Store

__all__ = ["Switch", "disabled", "override"]

F = TypeVar("F", bound=Callable[..., Any])


class Switch:
    """What `disabled` and `override` return: for a `with` block, or for each call of a function that it decorates."""

    def __init__(self, passing: bool, resolve: Callable[[], Store] | None = None) -> None:
        self._passing = passing
        self._resolve = resolve
        self._entered: list[Mode] = []  # by `with`, and not left yet

    def __enter__(self) -> None:
        layer = Mode(self._passing, self._resolve)
        self._entered.append(layer)
        try:
            places.enter(layer)
        except BaseException:
            self._entered.remove(layer)
            raise

    def __exit__(self, *exc: object) -> None:
        places.leave(self._entered.pop())

    def __call__(self, function: F) -> F:
        """Return the function, def or async def, with the switch on while it runs."""
        if isinstance(function, type) or not callable(function):
            raise OptionError(f"this decorates functions, not {function!r}: use it in a with statement")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise OptionError("this cannot decorate a generator function: use it in a with statement inside")
        again = partial(Switch, self._passing, self._resolve)  # calls may overlap: each has a switch of its own
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaiting(*args: Any, **kwargs: Any) -> Any:
                with again():
                    return await function(*args, **kwargs)

            return awaiting  # type: ignore[return-value]

        @functools.wraps(function)
        def calling(*args: Any, **kwargs: Any) -> Any:
            with again():
                return function(*args, **kwargs)

        return calling  # type: ignore[return-value]


@overload
def disabled() -> Switch: ...
@overload
def disabled(function: F, /) -> F: ...
def disabled(function: Any = None, /) -> Any:
    """Let every call of every decorated function go straight to the function.

    In the whole process: in all threads and tasks, not only in the block. Nothing is read, stored, counted or shared
    by such a call, and it does not even look at its key. Helpers act on the store as ever, so that what is invalidated
    meanwhile is not there afterwards. A load that is under way ends as it would have.

    Args:
        function: what is decorated, when there are no parentheses.

    Returns:
        A context manager that also decorates functions, def or async def.

    >>> from memo import cache_aside
    >>> @cache_aside(namespace="docs.doubled")
    ... def doubled(x):
    ...     print("doubling")
    ...     return 2 * x
    >>> doubled(1)
    doubling
    2
    >>> with disabled():
    ...     doubled(1)
    doubling
    2
    >>> doubled(1)
    2
    """
    switch = Switch(passing=True)
    return switch if function is None else switch(function)


def override(store: Store | str) -> Switch:
    """Let every decorated function use one store, whatever its `store=` says, for calls and helpers.

    In the whole process: in all threads and tasks, not only in the block. What is invalidated meanwhile is invalidated
    in that store alone. Afterwards each function is back in its own store, with the entries that it had there; coming
    back to the same store object finds what was left in it. Within `disabled` it switches caching on again.

    Args:
        store: a store, or the name or URL of one.

    Returns:
        A context manager that also decorates functions, def or async def.

    Raises:
        OptionError: it is none of these; a name that stands for no store is an error of the first call.

    >>> from memo import MemoryStore, cache_aside
    >>> @cache_aside(namespace="docs.halved")
    ... def halved(x):
    ...     return x / 2
    >>> with override(MemoryStore()):
    ...     halved(4), len(halved.store)
    (2.0, 1)
    >>> halved.peek(4)
    MISSING
    """
    check_store(store, "override()")
    return Switch(passing=False, resolve=partial(resolve_store, store))
