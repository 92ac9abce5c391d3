"""The libraries in the race, each decorated as its own documentation shows first; this module never measures.

A contestant takes a function, a size and a ttl and returns the cached function. Where a library has no ttl or no size,
it goes without, and its note says so. Libraries are imported when they are used, so a missing one is only missing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

__all__ = ["ASYNC", "METHOD", "SYNC", "Contestant", "missing", "version"]

Decorate = Callable[[Any, int, float], Any]


@dataclass(frozen=True)
class Contestant:
    """One way to cache a function.

    Attributes:
        name: as the tables have it.
        distribution: what pip installs; empty: it is Python's own.
        module: what is imported.
        make: from a function, a size and a ttl to the cached function; for a method from a size and a ttl to an
            instance whose `get` is cached. `file_contestants` says what it is for files.
        close: what frees the cached function's threads and memory, where letting go of it is not enough.
        note: in what it differs from the others.
    """

    name: str
    distribution: str
    module: str
    make: Callable[..., Any]
    close: Callable[[Any], object] = lambda cached: None
    note: str = ""


def missing(contestant: Contestant) -> str | None:
    """Return why a contestant cannot take part, or None."""
    try:
        importlib.import_module(contestant.module)
    except ImportError as error:
        return f"{contestant.distribution or contestant.module} is not installed ({error})"
    return None


def version(contestant: Contestant) -> str:
    """Return the version of what is installed."""
    if not contestant.distribution:
        return f"Python {sys.version.split()[0]}"
    return f"{contestant.distribution} {importlib.metadata.version(contestant.distribution)}"


# -- plain functions, sync and async -----------------------------------------------------------------------------------


def _memo(function: Any, size: int, ttl: float) -> Any:
    import memo

    return memo.cache_aside(ttl=ttl, store=memo.MemoryStore(max_size=size))(function)


def _lru(function: Any, size: int, ttl: float) -> Any:
    return functools.lru_cache(maxsize=size)(function)


def _lru_typed(function: Any, size: int, ttl: float) -> Any:
    return functools.lru_cache(maxsize=size, typed=True)(function)


def _cachetools(function: Any, size: int, ttl: float) -> Any:
    import cachetools

    return cachetools.cached(cachetools.TTLCache(size, ttl), lock=threading.RLock())(function)


def _cachebox(function: Any, size: int, ttl: float) -> Any:
    import cachebox

    return cachebox.cached(cachebox.TTLCache(size, ttl))(function)


def _moka(function: Any, size: int, ttl: float) -> Any:
    import moka_py

    return moka_py.cached(maxsize=size, ttl=ttl)(function)


def _theine(function: Any, size: int, ttl: float) -> Any:
    import theine

    return theine.Memoize(size, timedelta(seconds=ttl))(function)


def _close_theine(cached: Any) -> None:
    cached._cache.close()
    cached._cache.clear()


def _dogpile(function: Any, size: int, ttl: float) -> Any:
    from dogpile.cache import make_region

    return make_region().configure("dogpile.cache.memory", expiration_time=ttl).cache_on_arguments()(function)


def _async_lru(function: Any, size: int, ttl: float) -> Any:
    import async_lru

    return async_lru.alru_cache(maxsize=size, ttl=ttl)(function)


def _cashews(function: Any, size: int, ttl: float) -> Any:
    import cashews

    cache = cashews.Cache()
    cache.setup("mem://", size=size)
    return cache(ttl=ttl)(function)


def _aiocache(function: Any, size: int, ttl: float) -> Any:
    import aiocache

    return aiocache.cached(ttl=ttl, cache=aiocache.SimpleMemoryCache)(function)


# -- methods -----------------------------------------------------------------------------------------------------------


def _in_class(decorate: Decorate) -> Callable[[int, float], Any]:
    def make(size: int, ttl: float) -> Any:
        def get(self: Any, x: Any) -> Any:
            return x

        return type("Owner", (), {"get": decorate(get, size, ttl)})()

    return make


def _cachedmethod(size: int, ttl: float) -> Any:
    import cachetools

    class Owner:
        def __init__(self) -> None:
            self.cache: Any = cachetools.TTLCache(size, ttl)

        @cachetools.cachedmethod(lambda self: self.cache)
        def get(self, x: Any) -> Any:
            return x

    return Owner()


def _cachebox_method(size: int, ttl: float) -> Any:
    import cachebox

    class Owner:
        def __init__(self) -> None:
            self.cache: Any = cachebox.TTLCache(size, ttl)

        @cachebox.cached(lambda self: self.cache)
        def get(self, x: Any) -> Any:
            return x

    return Owner()


# -- who takes part in what --------------------------------------------------------------------------------------------

_NO_TTL = "no ttl"
_KEEPS_ALL = "no maximum size: it never evicts"

SYNC = (
    Contestant("memo", "memo-cache", "memo", _memo),
    Contestant("lru_cache", "", "functools", _lru, note=_NO_TTL),
    Contestant("lru_cache typed", "", "functools", _lru_typed, note=_NO_TTL),
    Contestant("cachetools TTLCache, lock", "cachetools", "cachetools", _cachetools),
    Contestant("cachebox TTLCache", "cachebox", "cachebox", _cachebox, note="evicts the first in, not the least used"),
    Contestant("moka-py", "moka-py", "moka_py", _moka, note="may decline to keep a new entry (TinyLFU)"),
    Contestant("theine", "theine", "theine", _theine, _close_theine, "may decline to keep a new entry (TinyLFU)"),
    Contestant("dogpile.cache memory", "dogpile.cache", "dogpile.cache", _dogpile, note=_KEEPS_ALL),
)

METHOD = (
    Contestant("memo", "memo-cache", "memo", _in_class(_memo)),
    Contestant("lru_cache", "", "functools", _in_class(_lru), note=f"{_NO_TTL}; keeps instances alive"),
    Contestant("lru_cache typed", "", "functools", _in_class(_lru_typed), note=f"{_NO_TTL}; keeps instances alive"),
    Contestant("cachetools cachedmethod", "cachetools", "cachetools", _cachedmethod, note="no lock"),
    Contestant("cachebox TTLCache", "cachebox", "cachebox", _cachebox_method, note="one cache for each instance"),
    Contestant("moka-py", "moka-py", "moka_py", _in_class(_moka), note="keeps instances alive"),
    Contestant("theine", "theine", "theine", _in_class(_theine), note="keeps instances alive"),
    Contestant(
        "dogpile.cache memory", "dogpile.cache", "dogpile.cache", _in_class(_dogpile), note="shared by instances"
    ),
)

ASYNC = (
    Contestant("memo", "memo-cache", "memo", _memo),
    Contestant("async-lru", "async-lru", "async_lru", _async_lru),
    Contestant("cachebox TTLCache", "cachebox", "cachebox", _cachebox, note="evicts the first in, not the least used"),
    Contestant("moka-py", "moka-py", "moka_py", _moka, note="one load per key is not the default"),
    Contestant("theine", "theine", "theine", _theine, _close_theine),
    Contestant("cashews mem://", "cashews", "cashews", _cashews, note="cancelling the first caller cancels all"),
    Contestant("aiocache memory", "aiocache", "aiocache", _aiocache, note=_KEEPS_ALL),
)
