"""Which store a name or a URL stands for; nothing is opened before the first call that needs it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .clock import seconds
from .errors import OptionError
from .forks import fork_safe_lock
from .stores import MemoryStore, NullStore, Store

__all__ = ["check_store", "resolve_store"]

# Guards _stores.
_lock = fork_safe_lock(outer=True)
_stores: dict[str, Store] = {}


def check_store(store: Any, name: str) -> None:
    """Raise OptionError if `store` cannot be one: neither a Store nor a name or URL that is known here.

    Args:
        store: what was given as `store=`.
        name: the decorated function, for the error.
    """
    if isinstance(store, Store):
        return
    if not isinstance(store, str):
        raise OptionError(
            f"{name}: store= is of type {type(store).__name__}: allowed are a store, such as MemoryStore(), or 'memory://'"
        )
    try:
        _parsed(store)
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from None


def resolve_store(store: Store | str) -> Store:
    """Return the store that a name or URL stands for: one URL is one store, however many functions name it.

    >>> resolve_store("memory://?max_size=100") is resolve_store("memory://?max_size=100")
    True
    """
    if isinstance(store, Store):
        return store
    made = _stores.get(store)
    if made is None:
        kind, options = _parsed(store)
        with _lock:
            made = _stores.get(store)
            if made is None:
                made = _stores[store] = kind(**options)
    return made


def _parsed(url: str) -> tuple[type[Store], dict[str, Any]]:
    if url == "default":
        return MemoryStore, {}
    try:
        parts = urlsplit(url)
    except ValueError:
        raise OptionError("store= is no URL: allowed are 'default', 'memory://' and 'null://'") from None
    # The rest of a URL may hold a password.
    shown = url if url.isidentifier() else f"{parts.scheme}:..."
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known: dict[str, Any] = {}
    if parts.scheme == "memory":
        known = {"max_size": _whole, "default_ttl": _number, "cleanup_interval": _number}
    elif parts.scheme != "null":
        raise OptionError(f"store={shown!r}: allowed are 'default', 'memory://' and 'null://'")
    if "://" not in url or parts.netloc or parts.path or parts.fragment:
        raise OptionError(
            f"store={shown!r}: a {parts.scheme} URL has no host and no path: '{parts.scheme}://?name=value'"
        )
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise OptionError(f"store={shown!r}: no option is called {unknown[0]!r}; allowed are {sorted(known)}")
    kind: type[Store] = MemoryStore if parts.scheme == "memory" else NullStore
    values = {name: known[name](shown, name, text) for name, text in options.items()}
    kind(**values) if kind is NullStore else MemoryStore(**{**values, "cleanup_interval": None})  # checks the values
    return kind, values


def _whole(shown: str, name: str, text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"store={shown!r}: {name}={text!r}: allowed are a whole number and 'none'") from None


def _number(shown: str, name: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        return seconds(float(text), name)
    except ValueError:
        raise OptionError(f"store={shown!r}: {name}={text!r}: allowed are seconds, more than 0, and 'none'") from None
