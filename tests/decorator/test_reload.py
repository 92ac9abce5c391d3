"""Functions that are defined again: in a reloaded module, in a notebook, under one name."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from memo import MISSING, MemoryStore, cache_aside

SOURCE = """
from memo import cache_aside
import shelf_of_test
calls = []
@cache_aside(store=shelf_of_test.store)
def fn(a):
    calls.append(a)
    return {version!r}
class Owner:
    @cache_aside(store=shelf_of_test.store)
    def m(self, a):
        return {version!r}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import types

    shelf: Any = types.ModuleType("shelf_of_test")
    shelf.store = MemoryStore()
    monkeypatch.setitem(sys.modules, "shelf_of_test", shelf)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "reloaded_of_test.py").write_text(SOURCE.format(version="old"))
    made = importlib.import_module("reloaded_of_test")
    made.path_of_test = tmp_path / "reloaded_of_test.py"
    yield made
    del sys.modules["reloaded_of_test"]


def test_a_reloaded_function_does_not_see_the_results_of_the_old_one(module: Any) -> None:
    store = module.fn.store
    owner = module.Owner()
    assert (module.fn(1), owner.m(1)) == ("old", "old")
    module.path_of_test.write_text(SOURCE.format(version="renewed"))
    importlib.invalidate_caches()
    importlib.reload(module)
    assert module.fn(1) == "renewed"
    assert module.Owner().m(1) == "renewed"
    assert owner.m(1) == "old", "an instance from before has the class from before"
    assert store.get(module.fn.key_for(1)) == "renewed"


def test_the_entries_of_the_old_function_go_with_it(module: Any) -> None:
    store = module.fn.store
    module.fn(1)
    module.fn(2)
    assert len(store) == 2
    importlib.reload(module)
    gc.collect()
    module.fn(3)
    assert store.keys() == [module.fn.key_for(3)]


def test_a_function_redefined_as_in_a_notebook_starts_empty() -> None:
    namespace: dict[str, Any] = {"cache_aside": cache_aside, "__name__": "__main__"}
    exec("@cache_aside\ndef fn(a): return 'one'", namespace)
    first = namespace["fn"]
    assert first(1) == "one"
    exec("@cache_aside\ndef fn(a): return 'two'", namespace)
    assert namespace["fn"](1) == "two"
    assert first(1) == "one"
    assert namespace["fn"].key_for(1) == first.key_for(1) == "__main__.fn(1)"


def test_two_functions_with_one_name_never_share() -> None:
    store = MemoryStore()
    fns: list[Any] = [cache_aside(store=store, namespace="one.name")(lambda a, n=n: (n, a)) for n in range(5)]
    for number, fn in enumerate(fns):
        assert fn(1) == (number, 1)
    assert [fn.peek(1) for fn in fns] == [(n, 1) for n in range(5)]
    assert len(store) == 5
    fns[2].invalidate(1)
    assert [fn.peek(1) is MISSING for fn in fns] == [False, False, True, False, False]
    fns[0].set("given", 1)
    assert fns[1](1) == (1, 1)


def test_what_the_store_is_told_by_a_shared_text_is_for_all_of_them() -> None:
    """An invalidation by text cannot say which of them it means, so it means all."""
    store = MemoryStore()
    one: Any = cache_aside(store=store, namespace="one.name")(lambda a: "one")
    two: Any = cache_aside(store=store, namespace="one.name")(lambda a: "two")
    one(1)
    two(1)
    assert store.keys() == ["one.name(1)"]
    assert store.delete("one.name(1)")
    assert one.peek(1) is two.peek(1) is MISSING
