"""What tests of code that uses memo need; it may import anything, and nothing in memo imports it.

The store contract needs pytest and the state machines need Hypothesis, so those are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .clock import ManualClock
from .data import MockDataStore
from .faulty import FaultyStore

if TYPE_CHECKING:
    from .contract import StoreContract
    from .lru import LruMachine, check_memory_store
    from .machines import SharedMachine, StoreMachine

__all__ = [
    "FaultyStore",
    "LruMachine",
    "ManualClock",
    "MockDataStore",
    "SharedMachine",
    "StoreContract",
    "StoreMachine",
    "check_memory_store",
]

_MODULES = {
    "StoreContract": "contract",
    "StoreMachine": "machines",
    "SharedMachine": "machines",
    "LruMachine": "lru",
    "check_memory_store": "lru",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    for module in "plain", "contract", "machines", "lru":
        if f"{__name__}.{module}" not in sys.modules:
            pytest.register_assert_rewrite(f"{__name__}.{module}")  # so that a failure shows both sides
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
