"""Stores by URL, memo's own and those that other distributions register; what may be a password is never shown.

A distribution registers a scheme by an entry point of the group "memo.stores": its name is the scheme and its value a
callable `(url, *, prefix, default_ttl) -> Store`. It is imported when the first store of that scheme is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from .clock import seconds
from .errors import OptionError, StoreError
from .stores import MemoryStore, NullStore, Store

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "check_url", "make_store"]

GROUP: Final = "memo.stores"
"""The group of entry points that add schemes."""


def check_url(url: str, given: str) -> None:
    """Raise OptionError if no store can be made for a URL; nothing is made or imported.

    Args:
        url: what was given.
        given: as what, for the error: "store=".

    >>> check_url("memory://?max_size=100", "store=")
    >>> check_url("redis://:secret@host", "store=")
    Traceback (most recent call last):
        ...
    memo.errors.OptionError: store='redis:...': this scheme is not known: allowed are 'memory://' and 'null://'
    """
    parts = _parts(url, given)
    if parts.scheme in _OPTIONS:
        _options(parts, given)
    else:
        _entry_point(parts, given)


def make_store(url: str, prefix: str, default_ttl: float | None) -> Store:
    """Return a new store for a URL.

    Args:
        url: which has been checked.
        prefix: what begins each key, where a store shares its keys' space with others; "" for nothing.
        default_ttl: seconds, for a URL that does not say it; None: what is stored never expires.

    Raises:
        OptionError: what is registered for the scheme cannot be imported, or is not what makes a store.
        StoreError: it failed.
    """
    parts = _parts(url, "store=")
    if parts.scheme == "memory":
        return MemoryStore(**{"default_ttl": default_ttl, **_options(parts, "store=")})
    if parts.scheme == "null":
        return NullStore()
    point = _entry_point(parts, "store=")
    what = f"store={_shown(parts)!r}: {point.value!r}, which {_distribution(point)!r} registers for this scheme,"
    try:
        factory = point.load()
    except Exception as error:
        raise OptionError(f"{what} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(factory):
        raise OptionError(f"{what} cannot be called: it has to be a callable (url, *, prefix, default_ttl) -> Store")
    try:
        store = factory(url, prefix=prefix, default_ttl=default_ttl)
    except OptionError:
        raise
    except Exception as error:
        # Not its text: that may hold the URL.
        raise StoreError(f"{what} failed ({type(error).__name__})") from error
    if not isinstance(store, Store):
        raise OptionError(f"{what} returned a {type(store).__name__}, which is no memo.Store")
    return store


def _parts(url: str, given: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise OptionError(f"{given} is no URL: allowed are {_schemes()}") from None
    if not parts.scheme or "://" not in url:
        raise OptionError(f"{given}{_shown(parts)!r} is no URL: allowed are {_schemes()}")
    return parts


def _shown(parts: SplitResult) -> str:
    return f"{parts.scheme}:..." if parts.scheme else "..."


def _listed(texts: list[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


# -- memo's own --------------------------------------------------------------------------------------------------------


def _options(parts: SplitResult, given: str) -> dict[str, Any]:
    shown, scheme, known = f"{given}{_shown(parts)!r}", parts.scheme, _OPTIONS[parts.scheme]
    if parts.netloc or parts.path or parts.fragment:
        raise OptionError(f"{shown}: a {scheme} URL has no host and no path: '{scheme}://?name=value'")
    pairs = dict(parse_qsl(parts.query, keep_blank_values=True))
    if pairs.keys() - known.keys():
        # Not its name: that may be the rest of a password with a '?' or '&' in it.
        allowed = f"allowed are {_listed(list(map(repr, known)))}" if known else f"a {scheme} URL has none"
        raise OptionError(f"{shown}: there is an option that is not known: {allowed}")
    options = {name: known[name](f"{shown}: {name}={text!r}", text) for name, text in pairs.items()}
    if options:
        MemoryStore(**{**options, "cleanup_interval": None})  # checks the values
    return options


def _whole(shown: str, text: str) -> int | None:
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"{shown}: allowed are a whole number and 'none'") from None


def _number(shown: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        return seconds(float(text), "ttl")
    except ValueError:
        raise OptionError(f"{shown}: allowed are seconds, more than 0, and 'none'") from None


_OPTIONS: Final[dict[str, dict[str, Callable[[str, str], Any]]]] = {
    "memory": {"max_size": _whole, "default_ttl": _number, "cleanup_interval": _number},
    "null": {},
}


# -- other distributions' ----------------------------------------------------------------------------------------------


def _entry_point(parts: SplitResult, given: str) -> EntryPoint:
    from importlib.metadata import entry_points  # slow, and only for what is not memo's

    found = {point.value: point for point in entry_points(group=GROUP, name=parts.scheme)}
    if not found:
        raise OptionError(f"{given}{_shown(parts)!r}: this scheme is not known: allowed are {_schemes()}")
    if len(found) > 1:
        names = sorted(map(_distribution, found.values()))
        raise OptionError(
            f"{given}{_shown(parts)!r}: {_listed(list(map(repr, names)))} register this scheme: uninstall all but one"
        )
    return next(iter(found.values()))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "a distribution"


def _schemes() -> str:
    from importlib.metadata import entry_points  # as above

    added = {point.name for point in entry_points(group=GROUP)} - _OPTIONS.keys()
    return _listed([f"'{scheme}://'" for scheme in [*_OPTIONS, *sorted(added)]])
