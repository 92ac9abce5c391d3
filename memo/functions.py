"""The classic functions, for cache-aside with a client at hand and no object of ours; nothing here keeps any state.

Calls that use one client share their loads, with each other and with the managers of that client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import weakref
import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec

from .classic import Ledger, Visit, checked_client, checked_source, checked_text, expiry, fetch, found
from .desks import desk_of, guarded, settle
from .errors import OptionError
from .stores.base import Duration

__all__ = [
    "deserialize_compressed",
    "deserialize_json",
    "deserialize_msgpack",
    "get_cached_data",
    "get_data_with_fallback",
    "get_multiple_cached",
    "get_ttl",
    "invalidate_cache",
    "invalidate_pattern",
    "refresh_ttl",
    "retry_operation",
    "serialize_compressed",
    "serialize_json",
    "serialize_msgpack",
    "set_ttl",
    "update_data_with_invalidation",
]

T = TypeVar("T")

BATCH: Final = 500
"""Keys that one DEL of `invalidate_pattern` names: enough to make round trips cheap, few enough to block nobody."""

LARGEST: Final = 64 * 1024 * 1024
"""Bytes that `deserialize_compressed` unpacks at most: a kilobyte may hold a megabyte of zeros."""

# What is logged of a client, by its desk; guarded by `guarded`.
_ledgers: weakref.WeakKeyDictionary[Any, Ledger] = weakref.WeakKeyDictionary()


def _ledger(client: Any) -> Ledger:
    desk = desk_of(client)
    with guarded:
        return _ledgers.setdefault(desk, Ledger("memo.functions"))


def _name(key: str, prefix: str) -> str:
    return checked_text(prefix, "prefix") + checked_text(key, "key")


# -- reading through the cache -----------------------------------------------------------------------------------------


def get_cached_data(
    client: Any, key: str, data_source: Callable[[str], T], ttl: Duration = 60, prefix: str = "cache:"
) -> T:
    """Return what Redis has at `prefix + key`, else what `data_source(key)` returns, which is put there.

    It does what `CacheAsideManager.get` does: concurrent misses of one key on one client make one call of the data
    source; None is not cached; a failure of Redis is logged, and the data source is asked.

    Args:
        client: a `redis.Redis`.
        key: without the prefix.
        data_source: called with the key on a miss.
        ttl: in seconds or as a timedelta.
        prefix: what the key in Redis begins with.

    Raises:
        BaseException: what the data source raised.
        OptionError: an argument is not allowed.
        RecursiveLoadError: the data source waits for its own result.
    """
    checked_client(client, awaits=False)
    checked_source(data_source)
    name, expires = _name(key, prefix), expiry(ttl)
    result: T = fetch(desk_of(client), client, _ledger(client), key, name, data_source, expires)
    return result


def get_data_with_fallback(
    client: Any, key: str, data_source: Callable[[str], T], ttl: Duration = 60, prefix: str = "cache:"
) -> T:
    """Do what `get_cached_data` does, which always falls back to the data source when Redis fails."""
    return get_cached_data(client, key, data_source, ttl, prefix)


async def get_multiple_cached(
    client: Any,
    keys: Iterable[str],
    data_source_coro: Callable[[str], Awaitable[T]],
    ttl: Duration = 60,
    prefix: str = "cache:",
) -> dict[str, T]:
    """Return the values of several keys: those that Redis has by one MGET, the others loaded concurrently.

    Each key that is missing is loaded as `AsyncCacheAsideManager.get` loads it.

    Args:
        client: a `redis.asyncio.Redis`.
        keys: without the prefix.
        data_source_coro: called with a key that is missing; it returns an awaitable.
        ttl: of what is loaded, in seconds or as a timedelta.
        prefix: what keys in Redis begin with.

    Returns:
        The values by key, without the prefix and in the order of `keys`; None where the data source says so.

    Raises:
        BaseException: what the data source raised first, in the order of `keys`, when all loads are over.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=True)
    checked_source(data_source_coro)
    if isinstance(keys, str):
        raise OptionError(f"keys={keys!r}: allowed are several keys, as a list")
    names, expires = {key: _name(key, prefix) for key in keys}, expiry(ttl)
    if not names:
        return {}
    desk, ledger = desk_of(client), _ledger(client)
    seats = {name: desk.enter(name) for name in names.values()}
    try:
        seen = {name: seat.landed for name, seat in seats.items()}
        down, payloads = False, [None] * len(names)
        try:
            answer = client.mget(list(names.values()))
            # A stand-in made by AsyncMock(spec=...) may answer at once.
            answers = list(await answer if hasattr(answer, "__await__") else answer)
            payloads = [answers[at] for at in range(len(names))]
        except Exception as error:  # noqa: BLE001 - of whatever class: not all of the client's are RedisErrors
            down = True
            ledger._failed("read", error, "the data source is asked, and its results are not cached")
        values = {key: found(ledger, payload) for key, payload in zip(names, payloads, strict=True)}
        missing = {key: names[key] for key, value in values.items() if value is None}
        loads = [
            Visit(desk, client, ledger, name, expires, seats[name], seen[name], down).aload(key, data_source_coro)
            for key, name in missing.items()
        ]
        results = await asyncio.gather(*loads, return_exceptions=True)
    finally:
        for name, seat in seats.items():
            desk.leave(name, seat)
    for result in results:
        if isinstance(result, BaseException):
            try:
                raise result
            finally:
                del result, results  # the error's traceback holds this frame, which must not hold the error
    return values | dict(zip(missing, results, strict=True))


# -- invalidating ------------------------------------------------------------------------------------------------------


def invalidate_cache(client: Any, key: str, prefix: str = "cache:") -> bool:
    """Remove what Redis has at `prefix + key`; return whether there was anything.

    No call in this process that has asked a data source before puts its result there afterwards.

    Args:
        client: a `redis.Redis`.
        key: without the prefix.
        prefix: what the key in Redis begins with.

    Raises:
        Exception: what the client raised: then the key may still be there.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=False)
    return desk_of(client).invalidate(client, _name(key, prefix))


def invalidate_pattern(client: Any, pattern: str) -> int:
    """Remove all keys of the database that match; return how many there were.

    It looks at all keys there are, by SCAN, and removes those that match in batches.

    Args:
        client: a `redis.Redis`.
        pattern: a glob of Redis's over whole keys, the prefix included: `"cache:user:*"`.

    Raises:
        Exception: what the client raised: then some of the keys may still be there.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=False)
    if not checked_text(pattern, "pattern"):
        raise OptionError("pattern='': allowed is a glob over whole keys, such as 'cache:user:*'")
    settle(desk_of(client).void())  # of all keys, for what Redis's globs match is for Redis to say
    count = 0
    batch: list[Any] = []
    for key in client.scan_iter(match=pattern, count=BATCH):
        batch.append(key)
        if len(batch) == BATCH:
            count += client.delete(*batch)
            batch = []
    if batch:
        count += client.delete(*batch)
    return count


def update_data_with_invalidation(
    client: Any, data_store: Any, key: str, new_value: Any, prefix: str = "cache:"
) -> bool:
    """Call `data_store.update(key, new_value)`, then remove what Redis has at `prefix + key`.

    Args:
        client: a `redis.Redis`.
        data_store: has `update(key, value)`.
        key: without the prefix.
        new_value: what is given to it.
        prefix: what the key in Redis begins with.

    Returns:
        Whether both were done. False: updated, but not invalidated, which is logged as an error: readers may be given
        the old value until its ttl is over.

    Raises:
        BaseException: what the data store raised; then nothing is removed.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=False)
    name = _name(key, prefix)
    data_store.update(key, new_value)
    try:
        desk_of(client).invalidate(client, name)
    except Exception as error:  # noqa: BLE001 - of whatever class
        advice = "the data store was updated, and what Redis has at the key is old: invalidate it again"
        _ledger(client)._failed("invalidate", error, advice, logging.ERROR)
        return False
    return True


# -- times to live -----------------------------------------------------------------------------------------------------


def set_ttl(client: Any, key: str, ttl: Duration, prefix: str = "cache:") -> bool:
    """Let what Redis has at `prefix + key` live for `ttl` from now on; return whether there is anything.

    Args:
        client: a `redis.Redis`.
        key: without the prefix.
        ttl: in seconds or as a timedelta.
        prefix: what the key in Redis begins with.

    Raises:
        Exception: what the client raised.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=False)
    expires = expiry(ttl)
    name = _name(key, prefix)
    return bool(client.expire(name, expires["ex"]) if "ex" in expires else client.pexpire(name, expires["px"]))


def get_ttl(client: Any, key: str, prefix: str = "cache:") -> int:
    """Return the whole seconds that what Redis has at `prefix + key` still lives, as Redis says it.

    Args:
        client: a `redis.Redis`.
        key: without the prefix.
        prefix: what the key in Redis begins with.

    Returns:
        Seconds; -1: it never expires; -2: there is nothing.

    Raises:
        Exception: what the client raised.
        OptionError: an argument is not allowed.
    """
    checked_client(client, awaits=False)
    ttl: int = client.ttl(_name(key, prefix))
    return ttl


def refresh_ttl(client: Any, key: str, ttl: Duration = 60, prefix: str = "cache:") -> bool:
    """Do what `set_ttl` does, with a default: called after each read, it lets what is in use live on."""
    return set_ttl(client, key, ttl, prefix)


# -- values as text and bytes ------------------------------------------------------------------------------------------


def serialize_json(value: Any) -> str:
    """Return a value as JSON, as the managers write it.

    Raises:
        TypeError, ValueError: JSON has no such value; NaN and infinity are no JSON either.

    >>> serialize_json({"id": 7, "tags": ("a", "b")})
    '{"id": 7, "tags": ["a", "b"]}'
    """
    return json.dumps(value, allow_nan=False)


def deserialize_json(payload: str | bytes) -> Any:
    """Return the value of JSON.

    Raises:
        ValueError: it is none.
    """
    return json.loads(payload)


def serialize_msgpack(value: Any) -> bytes:
    """Return a value as MessagePack.

    Raises:
        TypeError: MessagePack has no such value.

    >>> deserialize_msgpack(serialize_msgpack({"id": 7}))
    {'id': 7}
    """
    return msgspec.msgpack.encode(value)


def deserialize_msgpack(payload: bytes) -> Any:
    """Return the value of MessagePack.

    Raises:
        ValueError: it is none.
    """
    try:
        return msgspec.msgpack.decode(payload)
    except msgspec.MsgspecError as error:  # up to 0.20 it is no ValueError
        raise ValueError(f"this is no MessagePack: {error}") from error


def serialize_compressed(value: Any) -> bytes:
    """Return a value as JSON, compressed by zlib.

    Raises:
        TypeError, ValueError: JSON has no such value.

    >>> len(serialize_compressed([0] * 10_000)) < 100
    True
    """
    return zlib.compress(serialize_json(value).encode())


def deserialize_compressed(payload: bytes, max_size: int = LARGEST) -> Any:
    """Return the value of compressed JSON.

    Args:
        payload: compressed by zlib or gzip.
        max_size: bytes that it may unpack to.

    Raises:
        ValueError: it is none, or unpacks to more.
        OptionError: `max_size` is no size.
    """
    if type(max_size) is not int or max_size < 1:  # zlib takes 0 for no limit
        raise OptionError(f"max_size={max_size!r}: allowed is an int of at least 1, in bytes")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # of either header
    try:
        text = unpacker.decompress(payload, max_size)
    except zlib.error as error:
        raise ValueError(f"the payload is not compressed JSON: {error}") from None
    if not unpacker.eof:
        raise ValueError(f"the payload is cut off, or unpacks to more than {max_size} bytes")
    if unpacker.unused_data:
        raise ValueError("the payload has something behind it")
    return deserialize_json(text)


# -- trying again ------------------------------------------------------------------------------------------------------


def retry_operation(operation: Callable[[], T], max_retries: int = 3, backoff_ms: float = 100) -> T:
    """Return what `operation()` returns, called again while it raises.

    Args:
        operation: called without arguments.
        max_retries: how often it is called again, at most, after the first call.
        backoff_ms: milliseconds before the first retry; each further one waits twice as long.

    Raises:
        Exception: the last that the operation raised.
        OptionError: an argument is not allowed.

    >>> answers = iter([0, 2])
    >>> retry_operation(lambda: 1 / next(answers), backoff_ms=0)
    0.5
    """
    if not callable(operation):
        raise OptionError(f"operation={operation!r}: allowed is a function without parameters")
    if type(max_retries) is not int or max_retries < 0:
        raise OptionError(f"max_retries={max_retries!r}: allowed is an int, at least 0")
    if type(backoff_ms) not in (int, float) or not 0 <= backoff_ms < float("inf"):
        raise OptionError(f"backoff_ms={backoff_ms!r}: allowed are milliseconds, 0 or more")
    for retry in range(max_retries):
        try:
            return operation()
        except Exception:  # noqa: BLE001, PERF203 - the last call's is the caller's
            time.sleep(backoff_ms * 2**retry / 1000)  # that pause is what the caller asks for
    return operation()
