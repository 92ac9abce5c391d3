"""Where entries live; nothing here calls a decorated function."""

from .base import Space, Store
from .memory import MemoryStore
from .null import NullStore
from .patterns import escape_pattern

__all__ = ["MemoryStore", "NullStore", "Space", "Store", "escape_pattern"]
