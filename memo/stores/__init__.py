"""Where entries live; nothing here calls a decorated function."""

from .base import Space, Store
from .custom import CustomStore
from .file import PickleFileStore
from .memory import MemoryStore
from .null import NullStore
from .patterns import escape_pattern
from .records import Record
from .redis import RedisStore

__all__ = [
    "CustomStore",
    "MemoryStore",
    "NullStore",
    "PickleFileStore",
    "Record",
    "RedisStore",
    "Space",
    "Store",
    "escape_pattern",
]
