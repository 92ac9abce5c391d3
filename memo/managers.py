"""The classic manager classes, for cache-aside without a decorator; they never take a lease in Redis.

A manager is given a client and asked for keys: what it then says to Redis is one GET, and one SET on a miss.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .classic import Ledger, checked_client, checked_source, checked_text, expiry, fetch, fetch_async
from .clock import seconds
from .desks import desk_of, guarded
from .errors import OptionError
from .stores.base import Duration

if TYPE_CHECKING:
    import redis
    import redis.asyncio

__all__ = ["AsyncCacheAsideManager", "CacheAsideManager", "CacheConfig", "CacheMetrics", "InstrumentedCacheManager"]

T = TypeVar("T")


@dataclass(frozen=True)
class CacheConfig:
    """Where Redis is, and how managers keep values there.

    Args:
        host: the server's name or address.
        port: its port.
        db: the number of its database.
        ttl: of what is cached, in seconds or as a timedelta; a call may give another.
        key_prefix: what all keys in Redis begin with.
        socket_timeout: seconds that the server may take for an answer.
        socket_connect_timeout: seconds that it may take for a connection.
        max_connections: how many a client may have open; None: any number.
        username: of the server's user, if it has users.
        password: if it has one; no repr shows it.

    Raises:
        OptionError: one of them is out of range.

    >>> CacheConfig(ttl=300).key_prefix
    'cache:'
    """

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    ttl: Duration = 60
    key_prefix: str = "cache:"
    socket_timeout: Duration = 5.0
    socket_connect_timeout: Duration = 5.0
    max_connections: int | None = field(default=None, kw_only=True)
    username: str | None = field(default=None, kw_only=True)
    password: str | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if not checked_text(self.host, "host"):
            raise OptionError("host='': allowed is a name or an address")
        _checked_number("port", self.port, 1, 65_535)
        _checked_number("db", self.db, 0, None)
        if self.max_connections is not None:
            _checked_number("max_connections", self.max_connections, 1, None)
        expiry(self.ttl)
        checked_text(self.key_prefix, "key_prefix")
        seconds(self.socket_timeout, "socket_timeout")
        seconds(self.socket_connect_timeout, "socket_connect_timeout")
        if self.username is not None:
            checked_text(self.username, "username")
        if self.password is not None and not isinstance(self.password, str):
            raise OptionError(f"password: allowed is text, not a {type(self.password).__name__}")

    def create_redis_client(self) -> redis.Redis:
        """Return a blocking client with these settings, without retries; it connects at its first command.

        Raises:
            ImportError: redis-py is not installed.
        """
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise _missing() from error
        return Redis(retry=Retry(NoBackoff(), 0), **self._settings())

    def create_async_redis_client(self) -> redis.asyncio.Redis:
        """Return a client of `redis.asyncio` with these settings, without retries; it connects at its first command.

        Raises:
            ImportError: redis-py is not installed.
        """
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise _missing() from error
        return Redis(retry=Retry(NoBackoff(), 0), **self._settings())

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "db": self.db,
            "socket_timeout": seconds(self.socket_timeout, "socket_timeout"),
            "socket_connect_timeout": seconds(self.socket_connect_timeout, "socket_connect_timeout"),
        }
        if self.max_connections is not None:
            settings["max_connections"] = self.max_connections
        if self.username or self.password:  # an empty password is none, as in redis-py itself
            from redis.credentials import UsernamePasswordCredentialProvider

            # Not as `password=`, which some releases of redis-py show in the client's repr.
            settings["credential_provider"] = UsernamePasswordCredentialProvider(self.username, self.password)
        return settings


def _checked_number(name: str, value: object, least: int, most: int | None) -> None:
    if type(value) is not int or value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise OptionError(f"{name}={value!r}: allowed is an int, {allowed}")


def _missing() -> ImportError:
    return ImportError('this needs redis-py: python -m pip install "memo-cache[redis]"')


class _Manager(Ledger):
    """What the managers have in common."""

    _awaits: bool

    def __init__(self, redis_client: Any, config: CacheConfig, logger: Any = None) -> None:
        if not isinstance(config, CacheConfig):
            raise OptionError(f"config={config!r}: allowed is a CacheConfig")
        checked_client(redis_client, self._awaits)
        if logger is not None and not callable(getattr(logger, "warning", None)):
            raise OptionError(f"logger={logger!r}: allowed are a logger, which has warning() and error(), and None")
        super().__init__(type(self).__name__, logger)
        self.config = config
        self._client = redis_client
        self._prefix = config.key_prefix
        self._expires = expiry(config.ttl)
        self._desk = desk_of(redis_client)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r})"  # not the client's, which may show a password

    def get_hit_ratio(self) -> float:
        """Return the share of the calls that were hits, 0.0 if there were none.

        >>> CacheAsideManager(object(), CacheConfig()).get_hit_ratio()
        0.0
        """
        with guarded:
            calls = self.hits + self.misses
            return self.hits / calls if calls else 0.0


class CacheAsideManager(_Manager):
    """Cache-aside over a blocking Redis client: what is in Redis, else what a data source says, kept for the next call.

    Concurrent misses of one key, in threads that use one client, make one call of the data source. Values are plain
    JSON in Redis, for any program to read. None is not cached.

    Args:
        redis_client: a `redis.Redis`, decoding its responses or not.
        config: the ttl and the prefix of keys.
        logger: what failures are logged to; None: the logger "memo".

    Attributes:
        hits: calls answered from Redis.
        misses: calls that asked the data source, or waited for another call that did.

    Raises:
        OptionError: an argument is not allowed.
    """

    _awaits = False

    def get(self, key: str, data_source: Callable[[str], T], ttl: Duration | None = None) -> T:
        """Return what Redis has at `key`, else what `data_source(key)` returns, which is put there.

        A hit is what JSON makes of the value: a tuple comes back as a list. If Redis fails, the data source is asked;
        what cannot be written as JSON is returned and not cached. Both are logged.

        Args:
            key: without the prefix.
            data_source: called with the key on a miss.
            ttl: in seconds or as a timedelta; None: the config's.

        Raises:
            BaseException: what the data source raised.
            OptionError: an argument is not allowed.
            RecursiveLoadError: the data source waits for its own result.
        """
        checked_source(data_source)
        name = self._prefix + checked_text(key, "key")
        expires = self._expires if ttl is None else expiry(ttl)
        result: T = fetch(self._desk, self._client, self, key, name, data_source, expires)
        return result

    def invalidate(self, key: str) -> bool:
        """Remove what Redis has at `key`; return whether there was anything.

        No call in this process that has asked a data source before puts its result there afterwards.

        Raises:
            Exception: what the client raised: then the key may still be there.
        """
        name = self._prefix + checked_text(key, "key")
        try:
            return self._desk.invalidate(self._client, name)
        except Exception:
            self._fault()
            raise


class AsyncCacheAsideManager(_Manager):
    """Do what `CacheAsideManager` does, awaited, over a client of `redis.asyncio`.

    Args:
        redis_client: a `redis.asyncio.Redis`, decoding its responses or not.
        config: as there.
        logger: as there.

    Attributes:
        hits: calls answered from Redis.
        misses: calls that asked the data source, or waited for another call that did.

    Raises:
        OptionError: an argument is not allowed.
    """

    _awaits = True

    async def get(self, key: str, data_source: Callable[[str], Awaitable[T]], ttl: Duration | None = None) -> T:
        """Return what Redis has at `key`, else what `await data_source(key)` returns, which is put there.

        The data source runs in a task of its own: a caller that is cancelled leaves it to the others that wait.

        Args:
            key: without the prefix.
            data_source: called with the key on a miss; it returns an awaitable.
            ttl: in seconds or as a timedelta; None: the config's.

        Raises:
            BaseException: what the data source raised.
            OptionError: an argument is not allowed.
            RecursiveLoadError: the data source waits for its own result.
        """
        checked_source(data_source)
        name = self._prefix + checked_text(key, "key")
        expires = self._expires if ttl is None else expiry(ttl)
        result: T = await fetch_async(self._desk, self._client, self, key, name, data_source, expires)
        return result

    async def invalidate(self, key: str) -> bool:
        """Do what `CacheAsideManager.invalidate` does, awaited."""
        name = self._prefix + checked_text(key, "key")
        try:
            return await self._desk.ainvalidate(self._client, name)
        except Exception:
            self._fault()
            raise


@dataclass
class CacheMetrics:
    """What has happened at an `InstrumentedCacheManager`; it goes on counting.

    Attributes:
        hits: calls answered from Redis.
        misses: calls that were not.
        errors: commands that failed, and values that JSON could not read or write.
        total_fetch_time_ms: milliseconds that the data sources took.
        fetches: how often one has returned; less than `misses` where calls have waited for another's.

    >>> CacheMetrics(hits=3, misses=1).hit_ratio
    0.75
    """

    hits: int = 0
    misses: int = 0
    errors: int = 0
    total_fetch_time_ms: float = 0.0
    fetches: int = 0

    @property
    def hit_ratio(self) -> float:
        """The share of the calls that were hits, 0.0 if there were none."""
        calls = self.hits + self.misses
        return self.hits / calls if calls else 0.0

    @property
    def avg_fetch_time_ms(self) -> float:
        """The milliseconds that a data source took on average, 0.0 if none was asked."""
        # One that was not counted here, but made from other figures, has a fetch for each miss.
        fetches = self.fetches or self.misses
        return self.total_fetch_time_ms / fetches if fetches else 0.0


class InstrumentedCacheManager(CacheAsideManager):
    """A `CacheAsideManager` that also counts errors and the time that data sources take.

    Args:
        redis_client: as there.
        config: as there.
        logger: as there.

    Attributes:
        metrics: a `CacheMetrics`; put a new one there to begin again.
        hits: as there.
        misses: as there.
    """

    metrics: CacheMetrics

    def __init__(self, redis_client: Any, config: CacheConfig, logger: Any = None) -> None:
        super().__init__(redis_client, config, logger)
        self.metrics = CacheMetrics()

    def _hit(self) -> None:
        with guarded:
            self.hits += 1
            self.metrics.hits += 1

    def _missed(self) -> None:
        with guarded:
            self.misses += 1
            self.metrics.misses += 1

    def _fault(self) -> None:
        with guarded:
            self.metrics.errors += 1

    def _fetched(self, took: float) -> None:
        with guarded:
            self.metrics.fetches += 1
            self.metrics.total_fetch_time_ms += took * 1000
