"""Which store a name or a URL stands for, by `configure` and the environment; nothing is made before it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple

from . import drivers, places
from .background import background
from .clock import seconds
from .errors import OptionError
from .forks import fork_safe_lock
from .stats import logger
from .stores import MemoryStore, Store
from .urls import check_url, make_store

__all__ = ["aclose", "check_store", "close", "configure", "resolve_store"]

DEFAULT_NAME: Final = "default"


class _Settings(NamedTuple):
    stores: dict[str, Store | str]  # by name; one that is missing here may be in the environment
    prefix: str | None
    ttl: float | None


_NOTHING: Final = _Settings({}, None, None)

# Guards everything below. Not held while a store is made or closed.
_lock = fork_safe_lock(outer=True)
_said = _NOTHING  # by `configure`
_current: _Settings | None = None  # that and the environment, read when the first store is needed
_made_for: tuple[str | None, float | None] = (None, None)  # prefix and ttl of all stores in _stores
_stores: dict[str, Store] = {}  # what was made, by URL; "default": the default store where nothing names one
_asked: set[str] = set()  # URLs that functions name themselves


def configure(
    default: Store | str | None = None,
    stores: Mapping[str, Store | str] | None = None,
    prefix: str | None = None,
    ttl: float | timedelta | None = None,
) -> None:
    """Say, for the whole process, which stores the decorated functions use.

    Each call replaces what the earlier ones said. Functions may have been decorated and called before: those that go
    by a name or a URL find their store anew at their next call, those with a store object keep it. A store whose URL,
    prefix and ttl stay the same stays the same store with its entries. Any other one is let go, not closed: if nobody
    else holds it, a memory store's entries are gone. Loads that are under way end in the store they began with.

    Args:
        default: a store, or the URL of one, for functions that name none; None: MEMO_STORE, else a MemoryStore.
        stores: more of them by name, for `store="name"`.
        prefix: what begins each key in stores whose keys are not theirs alone; None: MEMO_PREFIX, else nothing. Stores
            in memory and in a file have no use for it: whatever is in there is theirs.
        ttl: seconds or a timedelta, the `default_ttl` of stores made from URLs that name none; None: MEMO_TTL, else
            what they store never expires.

    Raises:
        OptionError: an entry is not allowed; nothing has changed then.

    >>> configure(stores={"small": "memory://?max_size=100"}, ttl=60)
    >>> store = resolve_store("small")
    >>> store.max_size, store.default_ttl
    (100, 60.0)
    >>> configure()
    """
    global _said, _current
    named: dict[str, Store | str] = {}
    if default is not None:
        named[DEFAULT_NAME] = _checked(default, "default=")
    if stores is not None:
        if not isinstance(stores, Mapping):
            raise OptionError(f"stores= is of type {type(stores).__name__}: allowed is a dict from names to stores")
        for name, store in stores.items():
            if not isinstance(name, str) or not name.isidentifier() or name == DEFAULT_NAME:
                # Not the name: it may be a URL, in the wrong place.
                raise OptionError(
                    "stores= has a name that is not allowed: allowed are identifiers other than 'default'"
                )
            named[name] = _checked(store, f"stores[{name!r}]=")
    said = _Settings(named, _checked_prefix(prefix, "prefix"), None if ttl is None else seconds(ttl, "ttl"))
    with _lock:
        _said, _current = said, None
    places.resettle()


def check_store(store: Any, name: str) -> None:
    """Raise OptionError if `store` cannot be one: neither a Store, nor a name, nor a URL of a scheme that is known.

    Whether a name stands for a store is seen at the first call: it may be configured later.

    Args:
        store: what was given as `store=`.
        name: the decorated function, for the error.
    """
    if isinstance(store, str) and store.isidentifier():
        return
    try:
        _checked(store, "store=")
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from None


def _checked(store: Any, given: str) -> Store | str:
    if isinstance(store, Store):
        return store
    if isinstance(store, (list, tuple)):
        raise OptionError(f"{given} is a {type(store).__name__}: tiers of several stores are not there yet: give one")
    if not isinstance(store, str):
        raise OptionError(
            f"{given} is of type {type(store).__name__}: allowed are a store, such as MemoryStore(), or 'memory://'"
        )
    check_url(store, given)
    return store


def _checked_prefix(prefix: Any, given: str) -> str | None:
    if prefix is not None and not (
        isinstance(prefix, str) and not set(prefix) & set("*?[]\\") and prefix.isprintable()
    ):
        raise OptionError(f"{given}={prefix!r}: allowed is text without any of *?[]\\ and control characters")
    return prefix


def resolve_store(store: Store | str) -> Store:
    """Return the store that a name or URL stands for, made now if need be: one URL is one store, whoever names it.

    Raises:
        OptionError: no store has that name, a variable of the environment is not allowed, or the store cannot be made.
        StoreError: another distribution's factory failed.

    >>> resolve_store("memory://?max_size=100") is resolve_store("memory://?max_size=100")
    True
    """
    if isinstance(store, Store):
        return store
    while True:
        victims: list[Store] = []
        with _lock:
            settings = _settled(victims)
            found = _named(store, settings)
            if isinstance(found, Store):
                return found
            if found == store and found != DEFAULT_NAME:
                _asked.add(found)
            made = _stores.get(found)
        del victims
        if made is not None:
            return made
        if found == DEFAULT_NAME:
            made = MemoryStore(default_ttl=settings.ttl)
        else:
            made = make_store(found, settings.prefix or "", settings.ttl)
        with _lock:
            kept = _stores.setdefault(found, made) if _current is settings else None
        if kept is made:
            return made
        # Another thread was faster, or what was said has changed meanwhile.
        with contextlib.suppress(Exception):
            made.close()


def _named(store: str, settings: _Settings) -> Store | str:
    """Return the store or the URL that a name stands for, or the URL as it is."""
    if not store.isidentifier():
        return store
    if store not in settings.stores and store != DEFAULT_NAME:
        names = ", ".join(map(repr, sorted({DEFAULT_NAME, *settings.stores})))
        raise OptionError(
            f"store={store!r}: no store of that name is configured, only {names}: "
            f"memo.configure(stores={{{store!r}: ...}}) adds it"
        )
    return settings.stores.get(store, DEFAULT_NAME)


def _settled(victims: list[Store]) -> _Settings:
    """Return what holds: what was said and, where that is nothing, the environment. The lock is held."""
    global _current, _made_for
    if _current is None:
        stores, prefix, ttl = dict(_said.stores), _said.prefix, _said.ttl
        url = os.environ.get("MEMO_STORE", "")
        if DEFAULT_NAME not in stores and url:
            check_url(url, "MEMO_STORE=")
            stores[DEFAULT_NAME] = url
        if prefix is None:
            prefix = _checked_prefix(os.environ.get("MEMO_PREFIX", ""), "MEMO_PREFIX")
        if ttl is None and os.environ.get("MEMO_TTL", ""):
            ttl = _seconds_of("MEMO_TTL")
        kept = {url for url in stores.values() if isinstance(url, str)} | _asked
        if DEFAULT_NAME not in stores:
            kept.add(DEFAULT_NAME)
        if _made_for != (prefix, ttl):
            kept = set()
        victims.extend(_stores.pop(url) for url in _stores.keys() - kept)
        _made_for = (prefix, ttl)
        _current = _Settings(stores, prefix, ttl)
    return _current


def _seconds_of(variable: str) -> float:
    text = os.environ[variable]
    try:
        return seconds(float(text), variable)
    except ValueError:  # an OptionError is one
        raise OptionError(f"{variable}={text!r}: allowed are seconds, more than 0") from None


def close() -> None:
    """Close every store that memo has made for a name or a URL, after the background refreshes that are under way.

    Stores that were handed in as objects are left to whoever made them. Functions find new stores at their next call,
    so closing is no end; what a memory store had is gone. On an event loop use `aclose`.

    Raises:
        Exception: what the first store that failed has raised; the others are closed all the same.
    """
    made = _let_go()
    errors: list[Exception] = []
    try:
        background.drain()
    finally:
        for store in made:
            try:
                store.close()
            except Exception as error:  # noqa: BLE001, PERF203 - the others are to be closed, too
                _failed(errors, error)
    if errors:
        raise errors[0]


async def aclose() -> None:
    """Do what `close` does, awaited; refreshes that run in this event loop are waited for, too."""
    made = _let_go()
    errors: list[Exception] = []
    try:
        await drivers.drain_async()
        await asyncio.to_thread(background.drain)
    finally:
        for store in made:
            try:
                await store.aclose()
            except Exception as error:  # noqa: BLE001, PERF203 - as in close
                _failed(errors, error)
    if errors:
        raise errors[0]


def _let_go() -> list[Store]:
    """Forget all stores that were made, so that the next call makes them anew; return them."""
    global _current
    with _lock:
        made = list(_stores.values())
        _stores.clear()
        _asked.clear()
        _current = None
    places.resettle()
    return made


def _failed(errors: list[Exception], error: Exception) -> None:
    if errors:
        logger.error("another store could not be closed (%s)", type(error).__name__)
    errors.append(error)
