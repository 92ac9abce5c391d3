"""Which store a name or a URL stands for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from memo import MemoryStore, NullStore, OptionError, cache_aside
from memo.config import check_store, resolve_store


def test_a_store_stands_for_itself() -> None:
    for store in (MemoryStore(), NullStore()):
        check_store(store, "fn")
        assert resolve_store(store) is store


def test_the_default_is_one_memory_store() -> None:
    store = resolve_store("default")
    assert type(store) is MemoryStore
    assert resolve_store("default") is store
    assert (store.max_size, store.default_ttl, store.cleanup_interval) == (10_000, None, 60)


@pytest.mark.parametrize(
    ("url", "max_size", "default_ttl", "cleanup_interval"),
    [
        ("memory://", 10_000, None, 60),
        ("memory://?", 10_000, None, 60),
        ("memory://?max_size=5", 5, None, 60),
        ("memory://?max_size=none", None, None, 60),
        ("memory://?default_ttl=2.5&cleanup_interval=1e2", 10_000, 2.5, 100),
        ("memory://?cleanup_interval=none&default_ttl=none&max_size=7", 7, None, None),
        ("MEMORY://?max_size=5", 5, None, 60),
    ],
)
def test_a_memory_url_says_what_the_store_is_like(
    url: str, max_size: Any, default_ttl: Any, cleanup_interval: Any
) -> None:
    check_store(url, "fn")
    store: Any = resolve_store(url)
    assert type(store) is MemoryStore
    assert (store.max_size, store.default_ttl, store.cleanup_interval) == (max_size, default_ttl, cleanup_interval)


def test_a_null_url() -> None:
    check_store("null://", "fn")
    assert type(resolve_store("null://")) is NullStore


def test_one_url_is_one_store() -> None:
    assert resolve_store("memory://?max_size=5") is resolve_store("memory://?max_size=5")
    assert resolve_store("memory://?max_size=5") is not resolve_store("memory://?max_size=6")
    assert resolve_store("memory://") is not resolve_store("default")


def test_one_url_is_one_store_for_threads_that_ask_at_once() -> None:
    gate = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        gate.wait(10)
        found.append(resolve_store("memory://?max_size=5"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_store_that_another_thread_made_meanwhile_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look without the lock and the look with it."""
    from memo import config

    made = MemoryStore()

    class Lock:
        def __enter__(self) -> None:
            config._stores["memory://"] = made

        def __exit__(self, *exc: object) -> None: ...

    monkeypatch.setattr(config, "_lock", Lock())
    assert resolve_store("memory://") is made


def test_checking_opens_nothing() -> None:
    from memo import config

    for url in ("default", "memory://?max_size=5", "null://"):
        check_store(url, "fn")
    cache_aside(store="memory://?max_size=5")(len)
    assert config._stores == {}


def test_a_decorated_function_finds_its_store_at_the_first_call() -> None:
    from memo import config

    fn: Any = cache_aside(store="memory://?max_size=5")(len)
    assert config._stores == {}
    fn("abc")
    assert fn.store is resolve_store("memory://?max_size=5")


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("nope", r"^m\.fn: store='nope': allowed are 'default', 'memory://' and 'null://'$"),
        ("redis://host", r"^m\.fn: store='redis:\.\.\.': allowed are"),
        ("memory://host", r"a memory URL has no host and no path: 'memory://\?name=value'"),
        ("null:///path", r"a null URL has no host and no path: 'null://\?name=value'"),
        (
            "memory://?size=5",
            r"is called 'size'; allowed are \['cleanup_interval', 'default_ttl', 'max_size'\]",
        ),
        ("null://?max_size=5", r"no option is called 'max_size'; allowed are \[\]"),
        ("memory://?max_size=x", r"max_size='x': allowed are a whole number and 'none'"),
        ("memory://?max_size=0", r"^m\.fn: max_size=0: allowed is an int of at least 1"),
        ("memory://?default_ttl=x", r"default_ttl='x': allowed are seconds, more than 0, and 'none'"),
        ("memory://?cleanup_interval=0", r"cleanup_interval='0': allowed are seconds, more than 0, and 'none'"),
        ("http://[", r"^m\.fn: store= is no URL"),
        (None, r"^m\.fn: store= is of type NoneType: allowed are a store, such as MemoryStore\(\), or 'memory://'"),
        (MemoryStore, r"^m\.fn: store= is of type ABCMeta"),
    ],
)
def test_what_is_no_store_is_refused_and_what_is_allowed_is_told(store: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_store(store, "m.fn")
