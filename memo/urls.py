"""Stores by URL, memo's own and those that other distributions register; what may be a password is never shown.

A distribution registers a scheme by an entry point of the group "memo.stores": its name is the scheme and its value a
callable `(url, *, prefix, default_ttl) -> Store`. It is imported when the first store of that scheme is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .clock import seconds
from .errors import OptionError, StoreError
from .serializers import network_serializer
from .stores import MemoryStore, NullStore, PickleFileStore, RedisStore, Store
from .stores.access import checked_path
from .stores.logfile import LOCKS

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "check_url", "file_path", "make_store"]

GROUP: Final = "memo.stores"
"""The group of entry points that add schemes."""


def check_url(url: str, given: str) -> None:
    """Raise OptionError if no store can be made for a URL; nothing is made, opened or imported.

    Args:
        url: what was given.
        given: as what, for the error: "store=".

    >>> check_url("memory://?max_size=100", "store=")
    >>> check_url("http://:secret@host", "store=")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    memo.errors.OptionError: store='http:...': this scheme is not known: allowed are 'memory://', 'null://', ...
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
        prefix: what begins each key, where a store shares its keys' space with others; "" for nothing, or the store's
            own default.
        default_ttl: seconds, for a URL that does not say it; None: what is stored never expires, or lives for as long
            as the store's own default says.

    Raises:
        OptionError: what is registered for the scheme cannot be imported, or is not what makes a store; the folder of a
            file is missing; redis-py is, or does not know an option.
        StoreError: it failed; the file must not be used.
    """
    parts = _parts(url, "store=")
    if parts.scheme == "memory":
        return MemoryStore(**{"default_ttl": default_ttl, **_options(parts, "store=")})
    if parts.scheme == "null":
        return NullStore()
    if parts.scheme in _REDIS:
        given = {"prefix": prefix, "default_ttl": default_ttl}  # what says nothing leaves the store's own default
        said = {name: value for name, value in given.items() if value not in ("", None)}
        try:
            return RedisStore(_server(parts), **{**said, **_options(parts, "store=")})
        except OptionError as error:
            raise OptionError(f"store={_shown(parts)!r}: {error}") from None
    if parts.scheme == "file":
        return PickleFileStore(_path(parts, "store="), **{"default_ttl": default_ttl, **_options(parts, "store=")})
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


def file_path(url: str, given: str) -> str:
    """Return the path that a file URL names; its options are not looked at.

    >>> file_path("file:///var/cache/a%20b.memo?max_size=5", "FILE=")
    '/var/cache/a b.memo'
    """
    return _path(_parts(url, given), given)


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
    if scheme == "file":
        if not LOCKS:
            raise OptionError(f"{shown}: a file store needs flock, which this system does not have: use 'memory://'")
        _path(parts, given)
    elif scheme in _REDIS:
        _check_redis(parts, shown)
    elif parts.netloc or parts.path or parts.fragment:
        raise OptionError(f"{shown}: a {scheme} URL has no host and no path: '{scheme}://?name=value'")
    pairs = dict(parse_qsl(parts.query, keep_blank_values=True))
    if scheme == "file" and "secret" in pairs:
        raise OptionError(
            f"{shown}: a secret does not belong into a URL, which settings and logs show: "
            f"give a store, PickleFileStore(path, secret=...)"
        )
    if scheme in _REDIS:
        pairs = {name: text for name, text in pairs.items() if name in known}
    elif pairs.keys() - known.keys():
        # Not its name: that may be the rest of a password with a '?' or '&' in it.
        allowed = f"allowed are {_listed(list(map(repr, known)))}" if known else f"a {scheme} URL has none"
        raise OptionError(f"{shown}: there is an option that is not known: {allowed}")
    return {name: known[name](f"{shown}: {name}={text!r}", text) for name, text in pairs.items()}


def _server(parts: SplitResult) -> str:
    """Return a Redis URL without the options that are memo's: the rest is for the client library."""
    pieces = parts.query.split("&")
    rest = "&".join(piece for piece in pieces if unquote(piece.partition("=")[0]) not in _NETWORK)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{rest}" if rest else "")


def _check_redis(parts: SplitResult, shown: str) -> None:
    """Raise OptionError for what can be seen without the client library, which says the rest when a store is made."""
    if parts.fragment:
        raise OptionError(f"{shown}: a '#' in a Redis URL, as in a password, is written as '%23'")
    try:
        _ = parts.port  # which is read now
    except ValueError:
        raise OptionError(f"{shown}: the port of a Redis URL is a number from 0 to 65535") from None
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise OptionError(f"{shown}: a unix URL has the absolute path of a socket: 'unix:///run/redis.sock?db=0'")
    elif not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
        raise OptionError(f"{shown}: after the host of a Redis URL comes the number of a database: '/0'")


def _path(parts: SplitResult, given: str) -> str:
    """Return the path of a file URL, whose folder is there."""
    shown = f"{given}{_shown(parts)!r}"
    if parts.netloc or not parts.path or parts.path.endswith("/"):
        raise OptionError(f"{shown}: a file URL has no host and an absolute path: 'file:///folder/name.memo'")
    if parts.fragment:
        raise OptionError(f"{shown}: a '#' in the path of a file URL is written as '%23'")
    try:
        return checked_path(unquote(parts.path, errors="surrogateescape"))  # as os.fsdecode has it
    except OptionError as error:
        raise OptionError(f"{shown}: {error}") from None


def _count(shown: str, text: str) -> int | None:
    if text == "none":
        return None
    try:
        count = int(text)
    except ValueError:
        raise OptionError(f"{shown}: allowed are a whole number and 'none'") from None
    if count < 1:
        raise OptionError(f"{shown}: allowed are whole numbers from 1 on, and 'none'")
    return count


def _seconds(shown: str, text: str) -> float:
    try:
        return seconds(float(text), "ttl")
    except ValueError:
        raise OptionError(f"{shown}: allowed are seconds, more than 0") from None


def _seconds_or_none(shown: str, text: str) -> float | None:
    if text == "none":
        return None
    try:
        return _seconds(shown, text)
    except OptionError as error:
        raise OptionError(f"{error}, and 'none'") from None


def _prefix(shown: str, text: str) -> str:
    if not text or not text.isprintable():
        raise OptionError(f"{shown}: allowed is text that is not empty, without control characters")
    return text


def _serializer(shown: str, text: str) -> str:
    name = text.replace(" ", "+")  # as a query has it, "json+gzip" is "json gzip"
    try:
        network_serializer(name)
    except OptionError as error:
        raise OptionError(f"{shown}: {error}") from None
    return name


def _yes_or_no(shown: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise OptionError(f"{shown}: allowed are 'true' and 'false'")
    return text == "true"


_NETWORK: Final[dict[str, Callable[[str, str], Any]]] = {
    "default_ttl": _seconds_or_none,
    "timeout": _seconds,
    "connect_timeout": _seconds,
    "retry_invalidations": _yes_or_no,
    "serializer": _serializer,
    "prefix": _prefix,
}
"""Of a Redis URL; all others are the client library's."""

_REDIS: Final = ("redis", "rediss", "unix")

_OPTIONS: Final[dict[str, dict[str, Callable[[str, str], Any]]]] = {
    "memory": {"max_size": _count, "default_ttl": _seconds_or_none, "cleanup_interval": _seconds_or_none},
    "null": {},
    "file": {"max_size": _count, "default_ttl": _seconds_or_none, "timeout": _seconds},
    **dict.fromkeys(_REDIS, _NETWORK),
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
