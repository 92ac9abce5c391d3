"""Which store a decorated function is with, and how all functions change that at once; no call is looked up here.

A function finds its store at its first call. The code for its calls is then generated, and put on the wrapper's class,
so that a hit asks nothing about any of this. Whoever changes what holds for all functions (`memo.configure`,
`memo.disabled`, `memo.override`) takes that code away again, and each function finds its way anew at its next call:

1. `space` is None   2. the code of the first call is installed   3. code that somebody still holds (a bound method)
leads to `_elsewhere`   4. when that is done for all functions, the new mode is there

A call that meets any of these steps ends in `placed` or `prepare`, which wait for the lock and look again. In this
order there is never a space without its code, which would send a first call round and round. A load that is under way
holds its space and ends there.
"""

from __future__ import annotations

import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .clock import SYSTEM
from .errors import OptionError
from .forks import LOCKED, fork_safe_lock
from .stores.base import Space, Store
from .stores.tables import Table

if TYPE_CHECKING:
    from .aside import Plan
    from .keys import CallKeys
    from .stats import FunctionCounters

__all__ = ["Mode", "Place", "Placed", "enter", "leave", "resettle"]


class Mode:
    """What holds for all functions; replaced and never changed, so that who has seen another one knows to look again.

    Args:
        passing: calls go straight to the function.
        resolve: returns the store that all functions use; None: each its own.
    """

    __slots__ = ("passing", "resolve")

    def __init__(self, passing: bool = False, resolve: Callable[[], Store] | None = None) -> None:
        self.passing = passing
        self.resolve = resolve


# Guards the two below, and which store each function is with and what is installed for its calls.
_lock = fork_safe_lock(outer=True)
_layers: list[Mode] = []  # what was entered and not left yet: the last one wins
_mode = Mode()

# All functions that are alive, weakly, by id: a plain dict, whose values are listed in one step while they come and go.
_functions: dict[int, weakref.ref[Placed]] = {}

_NOWHERE: dict[Any, Any] = {}
"""Where code looks that was made for a store that its function is not with: nothing is ever in it."""


def enter(layer: Mode) -> None:
    """Let `layer` hold for all functions, until `leave` or until another one is entered.

    Its `passing` counts while it is the last one; its `resolve`, if any, while it is the last one that has any.
    """
    with _lock:
        _layers.append(layer)
        try:
            _change()
        except BaseException:  # a Ctrl-C: whoever did not enter is not going to leave
            _layers.remove(layer)
            _change()
            raise


def leave(layer: Mode) -> None:
    """Take back one `enter`; what remains holds again, whatever was entered meanwhile."""
    with _lock:
        _layers.remove(layer)
        try:
            _change()
        except BaseException:  # a Ctrl-C: nobody would come back to finish it
            _change()
            raise


def resettle() -> None:
    """Have every function that goes by a name or a URL find its store anew at its next call."""
    global _mode
    with _lock:
        for function in _alive():
            if function.named or _mode.resolve is not None:
                function.detach()
            if function.named:
                function.own = None
        _mode = Mode(_mode.passing, _mode.resolve)  # who is about to attach one of the old stores looks again


def _change() -> None:
    """Let what the layers say hold for all functions. The lock is held."""
    global _mode
    passing = bool(_layers) and _layers[-1].passing
    resolve = next((layer.resolve for layer in reversed(_layers) if layer.resolve is not None), None)
    if passing is _mode.passing and resolve is _mode.resolve:
        return
    for function in _alive():
        function.detach()
    _mode = Mode(passing, resolve)


def _alive() -> list[Placed]:
    return [function for reference in list(_functions.values()) if (function := reference()) is not None]


class Place:
    """One function's place in one store: its space there, and the generated code that looks in it."""

    __slots__ = ("bound", "call", "space", "store")

    def __init__(self, store: Store, space: Space, call: Callable[..., Any], bound: Callable[..., Any] | None) -> None:
        self.store = store
        self.space = space
        self.call = call
        self.bound = bound

    def lead(self, miss: Callable[..., Any], here: bool) -> None:
        """Have the code look in the space, or nowhere, and then call `miss`.

        Bound methods keep the code that was there when they were made. So the code itself must be told.
        """
        if isinstance(self.space, Table) and here:
            found = {"find": self.space.get, "tables": self.space.instances, "miss": miss}
        else:
            # `miss` first: code that looked nowhere must not say that it looked in the space.
            found = {"miss": miss, "find": _NOWHERE.get, "tables": _NOWHERE}
        for code in (self.call, self.bound):
            closure: Any = None if code is None else code.__closure__
            names = () if code is None else code.__code__.co_freevars
            for part, value in found.items():
                for name, cell in zip(names, closure or (), strict=True):
                    if name.endswith(part):
                        cell.cell_contents = value


class Placed(ABC):
    """The side of a decorated function that knows its store; what a call is and does is for the subclass to say.

    Args:
        resolve: returns the function's own store, when that is needed.
        named: it goes by a name or a URL, which may come to stand for another store.
    """

    name: str
    is_async: bool
    keys: CallKeys
    plan: Plan
    counters: FunctionCounters
    method: bool
    first: str | None

    def __init__(self, resolve: Callable[[], Store], named: bool) -> None:
        self._resolve = resolve
        self.named = named
        # What the lock guards: the place that calls use; the one in the function's own store, kept while another store
        # is used for a time; and the spaces of before, by id of the store, neither of which is kept alive.
        self._place: Place | None = None
        self.own: Place | None = None
        self._spaces: dict[int, tuple[weakref.ref[Store], weakref.ref[Space]]] = {}
        self.space: Space | None = None  # of that place; read without the lock
        self.settled = False  # it was with a store, at some time
        self._installed = False
        self.wrapper: weakref.ref[Any] = lambda: None  # type: ignore[assignment]  # set by the decorator
        # Likewise: puts code in the place of the wrapper's and of its bound methods'; None: that of the first call.
        self.install: Callable[[Any, Any], None] = lambda call, bound: None
        _functions[id(self)] = weakref.ref(self, partial(_functions.pop, id(self)))

    @property
    def through(self) -> Callable[..., Any]:
        """What a call goes to while calls pass through."""
        return self.plan.function

    @abstractmethod
    def miss(self, bound: bool, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Any) -> Any:
        """Do what generated code left over."""

    # -- finding the store ---------------------------------------------------------------------------------------------

    def attached(self) -> Space:
        """Return the function's space; at the first call, find the store and generate the code for it.

        Raises:
            OptionError: the store is shared and nothing tells this function from others there, or its name stands for
                none.
        """
        space = self.space
        return self.placed().space if space is None else space

    def placed(self) -> Place:
        """Return the function's place, as `attached` does."""
        while True:
            place = self._place
            if place is not None and self.space is not None:
                return place
            mode = _mode
            store = self._found(mode)
            with _lock:
                if _mode is mode and self.space is None:
                    self._attach(store, mode)

    def prepare(self) -> bool:
        """Put the code for calls in the place of the first call's: the store's or, in passing, the function itself.

        Returns:
            Whether this call passes. A bound method keeps the code that it was made with, so in passing that stays the
            first call's, which asks again at each call: the function itself would pass for ever.
        """
        while True:
            mode = _mode
            if not mode.passing:
                self.attached()
            with _lock:
                if _mode is mode:
                    if mode.passing and not self._installed:
                        self._install(self.through, None)
                    return mode.passing

    def _found(self, mode: Mode) -> Store:
        try:
            store = self._resolve() if mode.resolve is None else mode.resolve()
        except OptionError as error:
            raise OptionError(f"{self.name}: {error}") from error.__cause__
        if store.shared and self.keys.anonymous is not None:
            raise OptionError(
                f"{self.name}: on a store that other processes share a function is told apart by its name, and "
                f"{self.keys.anonymous}: give it key= or namespace="
            )
        if store.shared and self.keys.fleet and not store.fleet:
            raise OptionError(
                f"{self.name}: single_flight='fleet' needs a store that can have one process load for all, a "
                f"RedisStore: give that, or single_flight='process'"
            )
        return store

    # -- coming and going: the lock is held ----------------------------------------------------------------------------

    def _attach(self, store: Store, mode: Mode) -> None:
        hits, misses = self.counters.hits, self.counters.misses
        place = self.own if self.own is not None and self.own.store is store else None
        space = self._space_in(store) if place is None else place.space
        if space is None or not space.join(hits, misses):
            owner = self.wrapper()
            if owner is None:  # its class has lost it, and a bound method is still there
                owner = self
            space, place = store.attach(self.keys, hits, misses, owner), None
            if self.space is not None:  # a finalizer's call has come in between
                space.leave()
                return
            self._remember(store, space)
        if not self.settled:
            self._raw = self.keys.binding.raw(skip_first=False)
            if self.first is not None:
                self._raw_rest = self.keys.binding.raw(skip_first=True)
            self.settled = True
        if place is None:
            place = Place(store, space, self._call_for(space), self._bound_call_for(space))
        elif not mode.passing:
            place.lead(self.miss, here=True)
        if mode.resolve is None:
            self.own = place
        self._place = place
        if not mode.passing:
            self._install(place.call, place.bound)
        self.space = space

    def detach(self) -> None:
        """Be with no store until the next call."""
        place = self._place
        self.space = None
        if self._installed:
            self.install(None, None)
            self._installed = False
        if place is not None:
            place.lead(self._elsewhere, here=False)
            place.space.leave()
            self._place = None  # last: what was interrupted is done again

    def _install(self, call: Callable[..., Any], bound: Callable[..., Any] | None) -> None:
        self._installed = True
        self.install(call, bound)

    def _space_in(self, store: Store) -> Space | None:
        known = self._spaces.get(id(store))
        return None if known is None else known[1]()

    def _remember(self, store: Store, space: Space) -> None:
        try:
            forget = partial(self._spaces.pop, id(store))
            self._spaces[id(store)] = weakref.ref(store, forget), weakref.ref(space)
        except TypeError:  # a space with slots: it cannot be referenced weakly
            pass

    def _elsewhere(self, bound: bool, args: tuple[Any, ...], kwargs: dict[str, Any] | None, key: Any) -> Any:
        """Do what `miss` does for code that was made for a store that the function is not with now."""
        if _mode.passing:
            return self.through(*args, **(kwargs or {}))
        return self.miss(bound, args, kwargs, None)

    # -- the code for a store ------------------------------------------------------------------------------------------

    def _parts(self, space: Table) -> dict[str, Any]:
        shelf = space.shelf
        return {
            "state": shelf,
            "time": time if shelf.clock is SYSTEM else shelf.clock,
            "touch": shelf.order.move_to_end,
            "hits": self.counters.hits.count,
            "lock": shelf.lock,
        }

    def _fast(self, space: Space) -> bool:
        return isinstance(space, Table) and space.serializer is None and not self.keys.explicit

    def _call_for(self, space: Space) -> Callable[..., Any]:
        fast = self._fast(space) and not self.method
        parts: dict[str, Any] = {"miss": self.miss}
        if fast:
            assert isinstance(space, Table)
            parts |= {"find": space.get, **self._parts(space)}
        return self.keys.binding.call(
            parts,
            fast=fast,
            windows=self.plan.policy.windows,
            locked=LOCKED,
            bound=False,
            coroutine=self.is_async,
        )

    def _bound_call_for(self, space: Space) -> Callable[..., Any] | None:
        if self.first is None:
            return None
        fast = self._fast(space) and self.first not in self.keys.binding.ignored
        parts: dict[str, Any] = {"miss": self.miss}
        if fast:
            assert isinstance(space, Table)
            parts |= {"tables": space.instances, **self._parts(space)}
        return self.keys.binding.call(
            parts,
            fast=fast,
            windows=self.plan.policy.windows,
            locked=LOCKED,
            bound=True,
            coroutine=self.is_async,
        )
