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
from .invalidating import invalidates
from .keys import register_key_type
from .many import cache_aside_many
from .report import Report, report
from .serializers import CompressedSerializer, JSONSerializer, MessagePackSerializer, PickleSerializer
from .stores import CustomStore, MemoryStore, NullStore, PickleFileStore, Record, Store, escape_pattern
from .switching import disabled, override

__version__ = "0.1.0.dev0"

__all__ = [
    "DEFAULT",
    "MISSING",
    "Cached",
    "CachedMany",
    "CachedManyNamed",
    "CompressedSerializer",
    "CustomStore",
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
    "disabled",
    "escape_pattern",
    "invalidates",
    "override",
    "register_key_type",
    "report",
]
