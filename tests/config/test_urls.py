"""Schemes that other distributions register: real ones, installed in a folder on `sys.path`."""

from __future__ import annotations

import importlib
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from memo import MemoryStore, OptionError, StoreError, cache_aside, configure
from memo.config import check_store

MODULE = """
from memo import MemoryStore, NullStore, OptionError

imported = []
asked = []
closed = []


class Mine(MemoryStore):
    def close(self):
        closed.append(self)


def factory(url, *, prefix, default_ttl):
    asked.append((url, prefix, default_ttl))
    return Mine(default_ttl=default_ttl)


def refusing(url, *, prefix, default_ttl):
    raise OptionError("mine: there is no such host")


def failing(url, *, prefix, default_ttl):
    raise ConnectionError(f"cannot reach {url}")


def returning(url, *, prefix, default_ttl):
    return {}


number = 5
"""


class Installed:
    """A folder in which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, distribution: str, *entries: str) -> None:
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[memo.stores]\n" + "\n".join(entries) + "\n")
        importlib.invalidate_caches()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    (tmp_path / "memo_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("memo_mine", "memo_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Installed(tmp_path)


@pytest.fixture
def mine(installed: Installed) -> Any:
    installed.add("memo-mine", "mine = memo_mine:factory")
    return installed


def cached(store: str) -> Any:
    return cache_aside(store=store, namespace="fn")(lambda a: object())


def test_a_scheme_that_a_distribution_registers_makes_its_stores(mine: Any) -> None:
    configure(stores={"elsewhere": "mine://user:secret@host/0?x=1"}, prefix="app:", ttl=60)
    fn, named = cached("mine://host"), cached("elsewhere")
    assert "memo_mine" not in sys.modules  # decorated and configured, and nothing imported
    assert fn(1) is fn(1)
    module = sys.modules["memo_mine"]
    assert type(fn.store) is module.Mine
    assert fn.store.default_ttl == 60
    assert named.store is not fn.store
    assert cached("elsewhere").store is named.store
    assert module.asked == [("mine://host", "app:", 60.0), ("mine://user:secret@host/0?x=1", "app:", 60.0)]


def test_nothing_said_is_no_prefix_and_no_ttl(mine: Any) -> None:
    cached("mine://host")(1)
    assert sys.modules["memo_mine"].asked == [("mine://host", "", None)]


def test_the_environment_says_prefix_and_default(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMO_STORE", "mine://there")
    monkeypatch.setenv("MEMO_PREFIX", "env:")
    cached("default")(1)
    assert sys.modules["memo_mine"].asked == [("mine://there", "env:", None)]


def test_a_scheme_is_found_whatever_its_case(mine: Any) -> None:
    cached("MINE://host")(1)
    assert sys.modules["memo_mine"].asked == [("MINE://host", "", None)]


def test_memos_own_schemes_are_not_looked_up(installed: Installed) -> None:
    installed.add("memo-thief", "memory = memo_mine:factory", "null = memo_mine:factory")
    assert type(cached("memory://").store) is MemoryStore
    cached("null://")(1)
    assert "memo_mine" not in sys.modules


def test_the_metadata_of_distributions_is_read_for_other_schemes_only() -> None:
    script = """
import sys, memo
fn = memo.cache_aside(store="memory://?max_size=5")(len)
memo.configure(default="memory://", stores={"off": "null://"})
fn("abc")
memo.cache_aside(len)("abc")
print("importlib.metadata" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(_loaded_by_dependencies())


def _loaded_by_dependencies() -> bool:
    """Whether what memo is built on imports it anyway."""
    script = "import sys, wrapt, msgspec, asyncio, logging; print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_an_error_lists_what_is_registered(mine: Any) -> None:
    mine.add("memo-other", "other = memo_mine:factory")
    known = "'memory://', 'null://', 'file://', 'redis://', 'rediss://', 'unix://'"
    with pytest.raises(OptionError, match=rf"allowed are {known}, 'mine://' and 'other://'$"):
        check_store("etcd://host", "fn")


def refused(url: str) -> OptionError | StoreError:
    fn = cached(url)  # what is registered is known to be there, and no more
    with pytest.raises((OptionError, StoreError)) as caught:
        fn(1)
    assert "hunter2" not in str(caught.value)
    with pytest.raises((OptionError, StoreError)):
        fn(1)  # and again, not something worse
    return caught.value


def test_what_cannot_be_imported_is_a_clear_error_of_the_first_call(installed: Installed) -> None:
    (installed.folder / "memo_broken.py").write_text("import no_such_module_of_memo\n")
    installed.add("memo-broken", "broken = memo_broken:factory", "gone = memo_mine:nowhere")
    error = refused("broken://:hunter2@host")
    assert str(error).endswith(
        "<lambda>: store='broken:...': 'memo_broken:factory', which 'memo-broken' registers for this scheme, cannot be "
        "imported (ModuleNotFoundError: No module named 'no_such_module_of_memo')"
    )
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert "AttributeError" in str(refused("gone://host"))


def test_what_is_no_factory_is_a_clear_error(installed: Installed) -> None:
    installed.add("memo-mine", "number = memo_mine:number", "returning = memo_mine:returning")
    assert "cannot be called: it has to be a callable (url, *, prefix, default_ttl) -> Store" in str(
        refused("number://:hunter2@host")
    )
    assert "returned a dict, which is no memo.Store" in str(refused("returning://:hunter2@host"))


def test_a_factory_that_fails_is_named_without_what_it_says(installed: Installed) -> None:
    """Its text may hold the URL; who wants to know looks at the cause."""
    installed.add("memo-mine", "failing = memo_mine:failing")
    error = refused("failing://:hunter2@host")
    assert type(error) is StoreError
    assert str(error).startswith("store='failing:...': 'memo_mine:failing', which 'memo-mine' registers")
    assert str(error).endswith(", failed (ConnectionError)")
    assert isinstance(error.__cause__, ConnectionError)


def test_a_factory_may_refuse_in_its_own_words(installed: Installed) -> None:
    installed.add("memo-mine", "refusing = memo_mine:refusing")
    error = refused("refusing://host")
    assert str(error).endswith("<lambda>: mine: there is no such host")


def test_two_distributions_that_register_one_scheme_are_told(mine: Any) -> None:
    mine.add("memo-too", "mine = memo_mine:other")
    with pytest.raises(OptionError, match=r"^fn: store='mine:\.\.\.': 'memo-mine' and 'memo-too' register this scheme"):
        check_store("mine://:hunter2@host", "fn")


def test_two_distributions_that_register_the_same_factory_are_one(mine: Any) -> None:
    mine.add("memo-too", "mine = memo_mine:factory")
    cached("mine://host")(1)
    assert len(sys.modules["memo_mine"].asked) == 1


@pytest.mark.parametrize("where", ["store", "default", "stores", "environment", "override"])
def test_no_password_is_shown_wherever_a_url_is_refused(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from memo import override

    def give(url: Any) -> Any:
        if where == "environment":
            monkeypatch.setenv("MEMO_STORE", url)
            configure()
            return cached("default")(1)
        return {
            "store": lambda: cached(url),
            "default": lambda: configure(default=url),
            "stores": lambda: configure(stores={"a": url}),
            "override": lambda: override(url),
        }[where]()

    for url in ("etcd://:hunter2@host", "memory://:hunter2@?max_size=5", "memory://?x&hunter2=5", "http://[hunter2"):
        with pytest.raises(OptionError) as caught:
            give(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))
