"""A Redis server as a store, for functions that block and functions that await; the extra `redis` is needed."""

from .store import RedisStore

__all__ = ["RedisStore"]
