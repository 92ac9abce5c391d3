"""The stores in the file race, each as its own documentation shows it first; this module never measures.

For the race a contestant takes a folder and returns an open `FileStore`, for the decorated case a folder and a function
and returns the cached function. Nothing has a ttl, since shelve has none: what a ttl costs the others is left out.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .contestants import Contestant

__all__ = ["DECORATED", "INDEXED", "SHARED", "STORES", "FileStore"]

SECRET = bytes(range(32))


@dataclass(frozen=True)
class FileStore:
    """An open store: the functions of its own that do what the race asks for, nothing wrapped around them.

    Attributes:
        set: from a key and a value to nothing.
        get: from a key to its value.
        fill: stores many pairs in the fastest way that it has.
        close: closes it.
        count: returns how many entries it has.
        settle: waits until nothing of it is done in the background.
    """

    set: Callable[[str, Any], object]
    get: Callable[[str], Any]
    fill: Callable[[list[tuple[str, Any]]], object]
    close: Callable[[], object]
    count: Callable[[], int]
    settle: Callable[[], object] = lambda: None


def _close(store: FileStore) -> None:
    store.close()


def _memo(folder: str, **options: Any) -> FileStore:
    import memo

    store = memo.PickleFileStore(os.path.join(folder, "cache.memo"), **options)
    return FileStore(
        store.set,
        store.get,
        lambda pairs: store.set_many(dict(pairs)),
        store.close,
        lambda: store.stats().size,
        _compacted,
    )


def _compacted() -> None:
    for thread in threading.enumerate():
        if thread.name == "memo-compaction":
            thread.join()


def _memo_signed(folder: str) -> FileStore:
    return _memo(folder, secret=SECRET)


def _memo_bounded(folder: str) -> FileStore:
    return _memo(folder, max_size=10_000_000)


def _diskcache(folder: str) -> FileStore:
    import diskcache

    cache = diskcache.Cache(folder)

    def fill(pairs: Iterable[tuple[str, Any]]) -> None:
        with cache.transact():
            for key, value in pairs:
                cache.set(key, value)

    return FileStore(cache.set, cache.get, fill, cache.close, cache.__len__)


def _shelve(folder: str) -> FileStore:
    import shelve

    shelf = shelve.open(os.path.join(folder, "shelf"))  # noqa: SIM115 - it is closed by who asked for it
    return FileStore(shelf.__setitem__, shelf.__getitem__, shelf.update, shelf.close, shelf.__len__)


def _dbm() -> str:
    """Return which of Python's dbm modules shelve uses for a new file here."""
    import dbm
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "shelf")
        dbm.open(path, "c").close()
        return dbm.whichdb(path) or "an unknown dbm"


# -- decorated functions -----------------------------------------------------------------------------------------------


def _memo_decorated(folder: str, function: Any, **options: Any) -> Any:
    import memo

    return memo.cache_aside(store=memo.PickleFileStore(os.path.join(folder, "cache.memo"), **options))(function)


def _memo_decorated_signed(folder: str, function: Any) -> Any:
    return _memo_decorated(folder, function, secret=SECRET)


def _close_memo(cached: Any) -> None:
    cached.store.close()


def _diskcache_decorated(folder: str, function: Any) -> Any:
    import diskcache

    cache = diskcache.Cache(folder)
    cached = cache.memoize()(function)
    cached.close = cache.close
    return cached


def _joblib(folder: str, function: Any) -> Any:
    import joblib

    return joblib.Memory(folder, verbose=0).cache(function)


# -- who takes part in what --------------------------------------------------------------------------------------------

_DISKCACHE = "SQLite; values over 32 kB in files; evicts from 1 GB on"
_JOBLIB = "two files for each call; no key, no ttl, no maximum size"

_MEMO = Contestant("memo", "memo-cache", "memo", _memo, _close)
_SIGNED = Contestant("memo with a secret", "memo-cache", "memo", _memo_signed, _close, "every record signed")
_PEER = Contestant("diskcache", "diskcache", "diskcache", _diskcache, _close, _DISKCACHE)
_SHELF = Contestant("shelve", "", "shelve", _shelve, _close, f"over {_dbm()}; no sharing, no ttl, no maximum size")

STORES = (_MEMO, _SIGNED, _PEER, _SHELF)

SHARED = (_MEMO, _SIGNED, _PEER)

INDEXED = (
    _MEMO,
    Contestant("memo with max_size", "memo-cache", "memo", _memo_bounded, _close, "keeps the order of use"),
)

DECORATED = (
    Contestant("memo", "memo-cache", "memo", _memo_decorated, _close_memo),
    Contestant("memo with a secret", "memo-cache", "memo", _memo_decorated_signed, _close_memo, "every record signed"),
    Contestant(
        "diskcache",
        "diskcache",
        "diskcache",
        _diskcache_decorated,
        lambda cached: cached.close(),
        "memoize: threads load the same key at once",
    ),
    Contestant("joblib", "joblib", "joblib", _joblib, note=_JOBLIB),
)
