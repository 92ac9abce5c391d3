"""What tests of code that uses memo need; it may import anything, and nothing in memo imports it.

The store contract needs pytest and the state machines need Hypothesis, so those are imported when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .clock import ManualClock

if TYPE_CHECKING:
    from .contract import StoreContract
    from .machines import LruMachine, StoreMachine

__all__ = ["LruMachine", "ManualClock", "StoreContract", "StoreMachine"]

_MODULES = {"StoreContract": "contract", "StoreMachine": "machines", "LruMachine": "machines"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = f"{__name__}.{_MODULES[name]}"
    if _MODULES[name] == "contract":
        import pytest

        pytest.register_assert_rewrite(module)  # so that a failure shows both sides
    return getattr(import_module(module), name)
