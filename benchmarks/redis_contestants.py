"""The libraries in the Redis race, each as its own documentation shows it first; this module never measures.

A contestant takes the server's URL and returns what is called with a number: a user's, or for many at once a list of
them. What it has opened stays open until the process ends. "redis-py" is what one writes without a library: GET and
`json.loads`, and on a miss `json.dumps` and SET; nothing of it shares a load, notices an invalidation or a dead server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from .contestants import Contestant

__all__ = [
    "ASYNC",
    "ASYNC_MANAGERS",
    "ASYNC_MANY",
    "BARE",
    "HUNG",
    "MANAGERS",
    "MANY",
    "SYNC",
    "atake_user",
    "loads",
    "take_user",
]

BARE = "redis-py"
TTL = 600
PATIENCE = {"timeout": 5, "connect_timeout": 5}  # as redis-py's: on a busy machine no hit is to be a miss
Row = dict[str, Any]
loads = [0]  # how many there were


def take_user(x: int) -> Row:
    """Return a small dict."""
    loads[0] += 1
    return {"id": x, "name": f"user{x}", "tags": ["a", "b"], "score": x * 1.5}


async def atake_user(x: int) -> Row:
    """Return the same, awaited."""
    return take_user(x)


# -- functions that block ----------------------------------------------------------------------------------------------


def _memo(url: str) -> Any:
    import memo

    return memo.cache_aside(ttl=TTL, key="user:{x}", store=memo.RedisStore(url, **PATIENCE))(take_user)


def _bare(url: str) -> Any:
    import redis

    client = redis.Redis.from_url(url)

    def get(x: int) -> Any:
        key = f"bare:user:{x}"
        payload = client.get(key)
        if payload is None:
            value = take_user(x)
            client.set(key, json.dumps(value), ex=TTL)
            return value
        return json.loads(payload)

    return get


def _dogpile(url: str) -> Any:
    from dogpile.cache import make_region

    arguments = {"url": url, "redis_expiration_time": 2 * TTL}
    region = make_region().configure("dogpile.cache.redis", expiration_time=TTL, arguments=arguments)
    return region.cache_on_arguments()(take_user)


# -- and functions that await ------------------------------------------------------------------------------------------


def _memo_async(url: str) -> Any:
    import memo

    return memo.cache_aside(ttl=TTL, key="user:{x}", store=memo.RedisStore(url, **PATIENCE))(atake_user)


def _bare_async(url: str) -> Any:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)

    async def get(x: int) -> Any:
        key = f"bare:user:{x}"
        payload = await client.get(key)
        if payload is None:
            value = await atake_user(x)
            await client.set(key, json.dumps(value), ex=TTL)
            return value
        return json.loads(payload)

    return get


def _cashews(url: str) -> Any:
    import cashews

    cache = cashews.Cache()
    cache.setup(url, socket_timeout=PATIENCE["timeout"])
    return cache(ttl=TTL, key="cashews:{x}")(atake_user)


def _aiocache(url: str) -> Any:
    import aiocache
    from aiocache.serializers import JsonSerializer

    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    return aiocache.cached(
        ttl=TTL, cache=aiocache.RedisCache, endpoint=host, port=int(port), serializer=JsonSerializer()
    )(atake_user)


# -- the managers ------------------------------------------------------------------------------------------------------


def _config(url: str) -> Any:
    import memo

    return memo.CacheConfig(port=int(url.rpartition(":")[2].partition("/")[0]), ttl=TTL)


def _manager(url: str) -> Any:
    import memo

    config = _config(url)
    manager = memo.CacheAsideManager(config.create_redis_client(), config)

    def take(key: str) -> Row:
        return take_user(int(key.rpartition(":")[2]))

    return lambda x: manager.get(f"user:{x}", take)


def _manager_async(url: str) -> Any:
    import memo

    config = _config(url)
    manager = memo.AsyncCacheAsideManager(config.create_async_redis_client(), config)

    async def take(key: str) -> Row:
        return take_user(int(key.rpartition(":")[2]))

    async def get(x: int) -> Any:
        return await manager.get(f"user:{x}", take)

    return get


# -- many at once ------------------------------------------------------------------------------------------------------


def _memo_many(url: str) -> Any:
    import memo

    def take_users(xs: Iterable[int]) -> dict[int, Row]:
        return {x: take_user(x) for x in xs}

    return memo.cache_aside_many(ttl=TTL, key="many:{xs}", store=memo.RedisStore(url, **PATIENCE))(take_users)


def _bare_many(url: str) -> Any:
    import redis

    client = redis.Redis.from_url(url)

    def get(xs: Iterable[int]) -> dict[int, Any]:
        keys = [f"bare:user:{x}" for x in xs]
        found = dict(zip(xs, client.mget(keys), strict=True))
        for x, payload in found.items():
            if payload is None:
                client.set(f"bare:user:{x}", json.dumps(take_user(x)), ex=TTL)
        return {x: take_user(x) if payload is None else json.loads(payload) for x, payload in found.items()}

    return get


def _memo_many_async(url: str) -> Any:
    import memo

    async def take_users(xs: Iterable[int]) -> dict[int, Row]:
        return {x: take_user(x) for x in xs}

    return memo.cache_aside_many(ttl=TTL, key="amany:{xs}", store=memo.RedisStore(url, **PATIENCE))(take_users)


def _bare_many_async(url: str) -> Any:
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(url)

    async def get(xs: Iterable[int]) -> dict[int, Any]:
        keys = [f"bare:user:{x}" for x in xs]
        found = dict(zip(xs, await client.mget(keys), strict=True))
        for x, payload in found.items():
            if payload is None:
                await client.set(f"bare:user:{x}", json.dumps(take_user(x)), ex=TTL)
        return {x: take_user(x) if payload is None else json.loads(payload) for x, payload in found.items()}

    return get


# -- a server that hangs -----------------------------------------------------------------------------------------------


def _hung(url: str, **options: Any) -> Any:
    import memo

    return memo.cache_aside(ttl=TTL, key="user:{x}", store=memo.RedisStore(url, **options))(take_user)


def _hung_async(url: str, **options: Any) -> Any:
    import memo

    return memo.cache_aside(ttl=TTL, key="user:{x}", store=memo.RedisStore(url, **options))(atake_user)


# -- who takes part in what --------------------------------------------------------------------------------------------

_PICKLE = "pickle, trusted"


def _ours(make: Any, name: str = "memo", note: str = "") -> Contestant:
    return Contestant(name, "memo-cache", "memo", make, note=note)


def _theirs(make: Any, note: str = "GET, json.loads; SET, json.dumps") -> Contestant:
    return Contestant(BARE, "redis", "redis", make, note=note)


SYNC = (
    _ours(_memo),
    _theirs(_bare),
    Contestant("dogpile.cache", "dogpile.cache", "dogpile.cache", _dogpile, note=_PICKLE),
)
ASYNC = (
    _ours(_memo_async),
    _theirs(_bare_async),
    Contestant("cashews", "cashews", "cashews", _cashews, note=_PICKLE),
    Contestant("aiocache", "aiocache", "aiocache", _aiocache, note="JsonSerializer; no one load per key"),
)
MANAGERS = (_ours(_manager), _theirs(_bare))
ASYNC_MANAGERS = (_ours(_manager_async), _theirs(_bare_async))
MANY = (_ours(_memo_many), _theirs(_bare_many, "MGET, json.loads"))
ASYNC_MANY = (_ours(_memo_many_async), _theirs(_bare_many_async, "MGET, json.loads"))
HUNG = (_ours(_hung), _ours(_hung_async, "memo, async"))
