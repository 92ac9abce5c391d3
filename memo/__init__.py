"""memo: decorator-driven memoization, for def and async def, over pluggable stores."""

from .cached import Cached, CachedMany, CachedManyNamed
from .clock import WallClock
from .config import aclose, close, configure
from .decorator import cache_aside
from .entry import DEFAULT, MISSING
from .errors import (
    InvalidationError,
    MemoError,
    OptionError,
    RecursiveLoadError,
    SerializationError,
    SnapshotError,
    StoreError,
    UnkeyableError,
)
from .functions import (
    deserialize_compressed,
    deserialize_json,
    deserialize_msgpack,
    get_cached_data,
    get_data_with_fallback,
    get_multiple_cached,
    get_ttl,
    invalidate_cache,
    invalidate_pattern,
    refresh_ttl,
    retry_operation,
    serialize_compressed,
    serialize_json,
    serialize_msgpack,
    set_ttl,
    update_data_with_invalidation,
)
from .invalidating import invalidates
from .keys import register_key_type
from .managers import AsyncCacheAsideManager, CacheAsideManager, CacheConfig, CacheMetrics, InstrumentedCacheManager
from .many import cache_aside_many
from .report import Report, report
from .serializers import CompressedSerializer, JSONSerializer, MessagePackSerializer, PickleSerializer
from .stores import CustomStore, MemoryStore, NullStore, PickleFileStore, Record, RedisStore, Store, escape_pattern
from .switching import disabled, override

__version__ = "0.1.0.dev0"

__all__ = [
    "DEFAULT",
    "MISSING",
    "AsyncCacheAsideManager",
    "CacheAsideManager",
    "CacheConfig",
    "CacheMetrics",
    "Cached",
    "CachedMany",
    "CachedManyNamed",
    "CompressedSerializer",
    "CustomStore",
    "InstrumentedCacheManager",
    "InvalidationError",
    "JSONSerializer",
    "MemoError",
    "MemoryStore",
    "MessagePackSerializer",
    "NullStore",
    "OptionError",
    "PickleFileStore",
    "PickleSerializer",
    "Record",
    "RecursiveLoadError",
    "RedisStore",
    "Report",
    "SerializationError",
    "SnapshotError",
    "Store",
    "StoreError",
    "UnkeyableError",
    "WallClock",
    "__version__",
    "aclose",
    "cache_aside",
    "cache_aside_many",
    "close",
    "configure",
    "deserialize_compressed",
    "deserialize_json",
    "deserialize_msgpack",
    "disabled",
    "escape_pattern",
    "get_cached_data",
    "get_data_with_fallback",
    "get_multiple_cached",
    "get_ttl",
    "invalidate_cache",
    "invalidate_pattern",
    "invalidates",
    "override",
    "refresh_ttl",
    "register_key_type",
    "report",
    "retry_operation",
    "serialize_compressed",
    "serialize_json",
    "serialize_msgpack",
    "set_ttl",
    "update_data_with_invalidation",
]
