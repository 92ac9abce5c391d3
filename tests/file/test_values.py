"""Values that cannot be pickled or read again, or are very large: callers have their results, and no wrong one."""

from __future__ import annotations

import asyncio
import contextvars
import io
import os
import socket
import sqlite3
import sys
import threading
import types
import weakref

import pytest

from memo import PickleFileStore, StoreError, cache_aside
from memo.stores import compaction, entries

SECRET = b"a secret of the tests, 32 bytes."


class Raising:
    """Cannot be pickled: its own code says so, and shows what nobody is to read in a log."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Junk:
    def __reduce__(self):
        return 7, ()


class Unnamed:
    def __reduce__(self):
        return "VALUE-canary"


def local():
    class Local:
        pass

    return Local()


def deep():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def traceback_of():
    try:
        raise ValueError
    except ValueError as error:
        return error.__traceback__


UNPICKLABLE = {
    "lock": threading.Lock,
    "reentrant lock": threading.RLock,
    "condition": threading.Condition,
    "thread": threading.current_thread,
    "lambda": lambda: lambda: None,
    "local function": lambda: local.__get__(1).__func__.__class__(local.__code__, {}, "not this one"),
    "local class's": local,
    "module": lambda: os,
    "frame": sys._getframe,
    "traceback": traceback_of,
    "file": lambda: open(os.devnull),  # noqa: SIM115
    "text stream": lambda: io.TextIOWrapper(io.BytesIO()),
    "socket": socket.socket,
    "memoryview": lambda: memoryview(b"VALUE-canary"),
    "weak reference": lambda: weakref.ref(Raising),
    "dict view": lambda: {"VALUE-canary": 1}.keys(),
    "context variable": lambda: contextvars.ContextVar("VALUE-canary"),
    "database connection": lambda: sqlite3.connect(":memory:"),
    "future": lambda: asyncio.Future(loop=asyncio.new_event_loop()),
    "mapping proxy": lambda: types.MappingProxyType({"VALUE-canary": 1}),
    "deep": deep,
    "raises ValueError": lambda: Raising(ValueError("VALUE-canary")),
    "raises MemoryError": lambda: Raising(MemoryError()),
    "raises RecursionError": lambda: Raising(RecursionError("VALUE-canary")),
    "raises StopIteration": lambda: Raising(StopIteration("VALUE-canary")),
    "reduces to junk": Junk,
    "reduces to a name that is none": Unnamed,
}


def close(value):
    if isinstance(value, asyncio.Future):
        value.get_loop().close()
    elif value is not os and hasattr(value, "close"):
        value.close()


@pytest.mark.parametrize("name", UNPICKLABLE)
@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_what_cannot_be_pickled_is_returned_and_not_stored(path, make, caplog, name, secret):
    value = UNPICKLABLE[name]()
    store = make(secret=secret)
    f = cache_aside(store=store, namespace="f")(lambda x: value)
    try:
        assert f("KEY-canary") is value
        assert f("KEY-canary") is value
        assert f.stats().errors == {"fill": 2}
        assert len(caplog.messages) == 1
        assert "canary" not in caplog.text
        size = path.stat().st_size
        with pytest.raises(StoreError, match=r"cannot be pickled, and so cannot be stored in a file"):
            store.set("a", value)
        with pytest.raises(StoreError, match=r"cannot be pickled"):
            store.set_many({"a": 1, "b": value})
        assert path.stat().st_size == size
        assert store.keys() == []
    finally:
        close(value)


def test_a_result_that_cannot_be_stored_leaves_nothing_older_to_serve(store):
    results = ["old", lambda: "new", "newer"]
    f = cache_aside(store=store, namespace="f")(lambda: results.pop(0))
    assert f() == "old"
    assert f.refresh()() == "new"
    assert f() == "newer"


# -- reading again ----------------------------------------------------------------------------------------------------


class Stubborn:
    """Was pickled, and cannot be unpickled any more."""

    error: BaseException | None = None

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        if type(self).error is not None:
            raise type(self).error


@pytest.fixture
def stubborn():
    yield Stubborn
    Stubborn.error = None


ERRORS = [
    ValueError("VALUE-canary"), KeyError("VALUE-canary"), ImportError("VALUE-canary"), AttributeError("VALUE-canary"),
    RecursionError("VALUE-canary"), MemoryError(), StopIteration(), EOFError(), IndexError(), TypeError(),
    OSError(7, "VALUE-canary"), UnicodeDecodeError("utf-8", b"", 0, 1, "VALUE-canary"), OverflowError(), SystemError(),
    StoreError("VALUE-canary"), BlockingIOError(11, "VALUE-canary"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_cannot_be_unpickled_is_a_miss_that_is_counted_and_said_once(store, caplog, stubborn, error):
    f = cache_aside(store=store, namespace="f")(lambda: stubborn())
    store.set("a", stubborn())
    f()
    stubborn.error = error
    assert store.get("a") is None
    assert store.get("a", 7) == 7
    assert store.get_many(["a"]) == {}
    assert store.exists("a")  # for it is there, and nobody unpickles it to see that
    assert f.stats().misses == 1
    assert type(f()) is stubborn
    assert (f.stats().misses, f.stats().errors) == (2, {})
    assert store.stats().errors == {}
    assert store.stats().corrupt >= 4
    assert len(caplog.messages) == 1
    assert "canary" not in caplog.text
    stubborn.error = None
    assert type(store.get("a")) is stubborn


def test_what_a_keyboard_interrupt_breaks_off_is_no_miss(store, stubborn):
    store.set("a", stubborn())
    stubborn.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        store.get("a")
    stubborn.error = None
    assert type(store.get("a")) is stubborn
    assert store.stats().corrupt == 0


def test_a_value_whose_class_is_gone_is_a_miss(store, monkeypatch):
    module = types.ModuleType("memo_test_of_a_module_that_goes")
    exec("class Gone:\n    def __init__(self): self.a = 1", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    f = cache_aside(store=store, namespace="f")(lambda: module.Gone())
    store.set("a", module.Gone())
    assert f().a == f().a == 1
    assert store.get("a").a == 1
    gone, module.Gone = module.Gone, None
    assert store.get("a") is None
    monkeypatch.delitem(sys.modules, module.__name__)
    assert store.get("a") is None
    assert store.stats().corrupt == 2
    module.Gone = gone
    assert f().a == 1
    assert store.stats().corrupt > 2
    store.set("a", "another")
    assert store.get("a") == "another"


def test_user_code_runs_while_no_lock_is_held(path, store, make):
    """Neither the store's own nor the file's: another thread and another store go on in the middle of it."""
    another, seen = make(timeout=5), []

    class Value:
        def __reduce__(self):
            look("pickling")
            return look, ("unpickling",)

    def look(what):
        answers = []
        thread = threading.Thread(target=lambda: answers.append((store.increment("n"), another.increment("n"))))
        thread.start()
        thread.join(20)
        seen.append((what, len(answers)))

    globals()["look"] = look
    look.__qualname__, look.__module__ = "look", __name__
    sys.modules.setdefault(__name__, types.ModuleType(__name__)).look = look
    store.set("a", Value())
    store.get("a")
    f = cache_aside(store=store, namespace="f")(lambda: Value())
    f(), f()
    assert {what for what, _ in seen} == {"pickling", "unpickling"}
    assert all(count == 1 for _, count in seen)


# -- very large ones --------------------------------------------------------------------------------------------------


def test_a_value_of_100_megabytes_is_stored_and_read(path, monkeypatch):
    monkeypatch.setattr(compaction, "SMALLEST", 1 << 40)  # none but the one below
    store, value = PickleFileStore(path), os.urandom(1_000) * 100_000
    store.set("a", value)
    store.set("b", 1)
    assert store.get("a") == value
    other = PickleFileStore(path)
    assert other.get("a") == value
    assert other.delete("a")
    assert store.get_many("ab") == {"b": 1}
    assert store.compact()
    assert path.stat().st_size < 1_000
    store.close(), other.close()


def test_a_value_over_the_limit_is_refused_before_it_is_written(path, store, monkeypatch):
    monkeypatch.setattr(entries, "LARGEST", 200_000)
    store.set("a", "old")
    f = cache_aside(store=store, namespace="f")(lambda size: bytes(size))
    size = path.stat().st_size
    with pytest.raises(StoreError, match=r"a pickle of \d+ bytes is too large: allowed are 200000"):
        store.set("a", bytes(200_001))
    assert len(f(200_001)) == 200_001
    assert f.stats().errors == {"fill": 1}
    assert path.stat().st_size == size
    assert store.get("a") == "old"
    store.set("a", bytes(199_900))
    assert len(store.get("a")) == 199_900


# -- what is said -----------------------------------------------------------------------------------------------------


def test_no_log_line_has_a_key_a_value_or_the_secret(path, make, caplog, stubborn, monkeypatch):
    caplog.set_level(0)
    secret = "SECRET-canary, long enough"
    store = make(secret=secret, timeout=0.001)
    f = cache_aside(store=store, namespace="f", tags=("TAG-canary",))(lambda x: stubborn())
    store.set("KEY-canary", stubborn()), f("KEY-canary")
    stubborn.error = ValueError("VALUE-canary")
    store.get("KEY-canary"), f("KEY-canary")
    another = make(secret=secret)
    assert another._view.log.try_lock()
    store.set("KEY-canary", "VALUE-canary"), f("KEY-canary another")
    for loud in lambda: store.delete("KEY-canary"), lambda: store.increment("KEY-canary"), lambda: f.invalidate("KEY"):
        with pytest.raises(StoreError) as caught:
            loud()
        assert "canary" not in str(caught.value)
    another._view.log.unlock()
    data = bytearray(path.read_bytes())
    data[100:110] = b"\0" * 10
    path.write_bytes(data)
    make(secret=secret).get("KEY-canary")
    os.rename(path, path.with_name("away"))
    path.mkdir()
    store.get("KEY-canary"), store.exists("KEY-canary"), store.ttl("KEY-canary"), store.keys("KEY-canary*")
    store.set("KEY-canary", "VALUE-canary"), f("KEY-canary")
    assert len(caplog.messages) >= 6
    assert any("damaged" in line for line in caplog.messages)
    assert "canary" not in caplog.text.replace(f"{path.parent}", "")
