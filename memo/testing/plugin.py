"""The pytest plugin: every test starts with empty stores, and fixtures switch caching off, move time, and count.

pytest finds it by itself where memo is installed; `-p no:memo` leaves it out. It touches no store of another process
unless the project's settings say `memo_clear_shared = true`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ..decorator import _parts
from ..errors import OptionError
from ..stats import FunctionCounters, FunctionStats, functions
from ..stores.base import stores

if TYPE_CHECKING:
    from .clock import ManualClock

__all__ = ["memo_clock", "memo_disabled", "memo_stats"]

_before = pytest.StashKey[dict[FunctionCounters, FunctionStats]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say what may stand in the project's settings."""
    parser.addini(
        "memo_clear_shared",
        "empty stores that other processes share, too, before every test (they are then the tests' own)",
        type="bool",
        default=False,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Empty all stores before anything of the test runs, its fixtures included."""
    _clear(bool(item.config.getini("memo_clear_shared")))
    if "memo_stats" in getattr(item, "fixturenames", ()):
        item.stash[_before] = _counted()


def _clear(shared: bool) -> None:
    for store in stores():
        # A store around another one passes on what it is told, and may be one that fails on demand.
        if getattr(store, "inner", None) is None and (shared or not store.shared):
            try:
                store.clear()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test would not start as it should
                pytest.fail(
                    f"memo could not empty a {type(store).__qualname__} before the test: "
                    f"{type(error).__name__}: {error}",
                    pytrace=False,
                )


def _counted() -> dict[FunctionCounters, FunctionStats]:
    return {counters: counters.snapshot() for counters in functions()}


@pytest.fixture
def memo_disabled() -> Iterator[None]:
    """Calls of cached functions go straight through, in all threads, until the test ends."""
    from ..switching import disabled

    with disabled():
        yield


@pytest.fixture
def memo_clock() -> Iterator[ManualClock]:
    """All cached functions run on a fresh memory store, whose clock this is: `memo_clock.advance(seconds)`."""
    from ..stores import MemoryStore
    from ..switching import override
    from .clock import ManualClock

    clock = ManualClock()
    with override(MemoryStore(clock=clock, cleanup_interval=None)):
        yield clock


@pytest.fixture
def memo_stats(request: pytest.FixtureRequest) -> Callable[[Any], FunctionStats]:
    """`memo_stats(fn)` is what has been counted for a cached function since the test began."""
    # A test that asks for the fixture by name only now has begun with it.
    before = request.node.stash.get(_before, None) or _counted()

    def since(function: Any) -> FunctionStats:
        try:
            counters = _parts(function, ())[0].counters
        except AttributeError:
            raise OptionError(f"memo_stats({function!r}): allowed is a function that memo has decorated") from None
        now, then = counters.snapshot(), before.get(counters)
        return now if then is None else _difference(now, then)

    return since


def _difference(now: FunctionStats, then: FunctionStats) -> FunctionStats:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(now):
        new, old = getattr(now, field.name), getattr(then, field.name)
        if isinstance(new, dict):
            kinds = {kind: count - old.get(kind, 0) for kind, count in new.items()}
            changes[field.name] = {kind: count for kind, count in kinds.items() if count}
        else:
            changes[field.name] = new - old
    return FunctionStats(**changes)
