"""Which store a name or a URL stands for."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from memo import MemoryStore, NullStore, OptionError, cache_aside, configure
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
        ("a b", r"^m\.fn: store='\.\.\.' is no URL: allowed are 'memory://', 'null://', .* and 'unix://'$"),
        ("memory:", r"^m\.fn: store='memory:\.\.\.' is no URL"),
        ("http://[", r"^m\.fn: store= is no URL: allowed are 'memory://', 'null://', .* and 'unix://'$"),
        (
            "etcd://host",
            r"^m\.fn: store='etcd:\.\.\.': this scheme is not known: allowed are 'memory://', 'null://', .* and 'unix://'$",
        ),
        ("memory://host", r"a memory URL has no host and no path: 'memory://\?name=value'"),
        ("null:///path", r"a null URL has no host and no path: 'null://\?name=value'"),
        (
            "memory://?size=5",
            r"'memory:\.\.\.': there is an option that is not known: allowed are 'max_size', 'default_ttl' and",
        ),
        ("null://?max_size=5", r"there is an option that is not known: a null URL has none$"),
        ("memory://?max_size=x", r"store='memory:\.\.\.': max_size='x': allowed are a whole number and 'none'"),
        ("memory://?max_size=0", r"^m\.fn: store='memory:\.\.\.': max_size='0': allowed are whole numbers from 1 on"),
        ("memory://?default_ttl=x", r"default_ttl='x': allowed are seconds, more than 0, and 'none'"),
        ("memory://?cleanup_interval=0", r"cleanup_interval='0': allowed are seconds, more than 0, and 'none'"),
        (None, r"^m\.fn: store= is of type NoneType: allowed are a store, such as MemoryStore\(\), or 'memory://'"),
        (MemoryStore, r"^m\.fn: store= is of type ABCMeta"),
        (["memory://"], r"^m\.fn: store= is a list: tiers of several stores are not there yet"),
    ],
)
def test_what_is_no_store_is_refused_and_what_is_allowed_is_told(store: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_store(store, "m.fn")


def test_the_name_of_an_option_that_is_not_known_is_not_shown() -> None:
    """It may be the rest of a password that has a '?' or '&' in it."""
    for url in ("memory://?max_size=5&hunter2", "memory://?hunter2=1", "null://?hunter2"):
        with pytest.raises(OptionError) as caught:
            check_store(url, "fn")
        assert "hunter2" not in str(caught.value)


def test_a_name_may_be_configured_later_so_only_its_first_call_asks_for_it() -> None:
    fn: Any = cache_aside(store="disk", namespace="fn")(lambda a: a)
    for _ in range(2):
        with pytest.raises(
            OptionError,
            match=r"<lambda>: store='disk': no store of that name is configured, only 'default': "
            r"memo\.configure\(stores=\{'disk': \.\.\.\}\) adds it$",
        ):
            fn(1)
    configure(stores={"disk": "null://", "other": "null://"})
    assert fn(1) == 1
    assert type(fn.store) is NullStore
    other: Any = cache_aside(store="dusk")(lambda a: a)
    with pytest.raises(OptionError, match=r"only 'default', 'disk', 'other': "):
        other.peek(1)
