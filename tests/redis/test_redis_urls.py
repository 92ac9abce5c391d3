"""redis://, rediss:// and unix:// wherever a URL is given: which options are memo's, and what is told of a bad one."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import memo
from memo import OptionError, RedisStore, cache_aside, configure, override, urls
from memo.config import check_store, resolve_store
from memo.stores.redis import link


def function(store: Any = "default") -> Any:
    @cache_aside(store=store, namespace="urls", ttl=60)
    def f(x):
        return x + 1

    return f


@pytest.fixture(autouse=True)
def _closed():
    yield
    memo.close()


def wire(store: RedisStore) -> Any:
    return store._link._awire


@pytest.mark.parametrize("which", ["url", "unix_url"])
@pytest.mark.parametrize("where", ["store", "default", "stores", "environment", "override"])
def test_a_url_is_a_redis_store(redis_server, monkeypatch, which, where):
    url = getattr(redis_server, which) + ("&" if "?" in getattr(redis_server, which) else "?") + "timeout=20"
    if where == "store":
        f = function(url)
    elif where == "default":
        configure(default=url)
        f = function()
    elif where == "stores":
        configure(stores={"there": url})
        f = function("there")
    elif where == "environment":
        monkeypatch.setenv("MEMO_STORE", url)
        f = function()
    else:
        f = override(url)(function())
    assert f(1) == f(1) == 2
    assert redis_server.client().keys("cache:urls*") == [b"cache:urls(1)"]


def test_what_the_url_says_is_the_stores_and_what_it_does_not_say_is_the_default(redis_server):
    plain = resolve_store(redis_server.url)
    assert isinstance(plain, RedisStore)
    assert (plain.prefix, plain.default_ttl, plain._timeout) == ("cache:", 60, 0.25)
    assert wire(plain).connect_timeout == 5
    options = "default_ttl=7&timeout=1.5&connect_timeout=2&serializer=msgpack%2Bgzip&prefix=a%3Ab%3A"
    said = resolve_store(f"{redis_server.url}?{options}")
    assert (said.prefix, said.default_ttl, said._timeout) == ("a:b:", 7, 1.5)
    assert wire(said).connect_timeout == 2
    assert repr(said._codec) == repr(RedisStore(serializer="msgpack+gzip")._codec)
    assert resolve_store(f"{redis_server.url}?default_ttl=none").default_ttl is None
    assert resolve_store(f"{redis_server.url}?serializer=json+zlib").prefix == "cache:"


def test_configure_gives_prefix_and_ttl_to_stores_that_do_not_say_theirs(redis_server, monkeypatch):
    configure(default=redis_server.url, prefix="app:", ttl=7)
    store = resolve_store("default")
    assert (store.prefix, store.default_ttl) == ("app:", 7)
    other = resolve_store(f"{redis_server.url}?prefix=own:&default_ttl=9")
    assert (other.prefix, other.default_ttl) == ("own:", 9)
    configure()
    monkeypatch.setenv("MEMO_STORE", redis_server.url)
    monkeypatch.setenv("MEMO_PREFIX", "env:")
    monkeypatch.setenv("MEMO_TTL", "8")
    store = resolve_store("default")
    assert (store.prefix, store.default_ttl) == ("env:", 8)


def test_all_other_options_are_the_client_librarys(redis_server):
    store = resolve_store(f"{redis_server.url}?client_name=a%26b&max_connections=3&timeout=20")
    store.set("k", 1)
    assert wire(store).limit == 3
    assert "a&b" in [each["name"] for each in redis_server.client().client_list()]


def test_with_tls_the_class_of_the_connections_is_another_one():
    store = resolve_store("rediss://localhost:1/0?ssl_cert_reqs=none")
    plain = resolve_store("redis://localhost:1/0")
    import redis.asyncio

    assert isinstance(wire(store).connection(), redis.asyncio.SSLConnection)
    assert not isinstance(wire(plain).connection(), redis.asyncio.SSLConnection)


def test_nothing_connects_before_the_first_call(closed_port, monkeypatch):
    calls = []
    monkeypatch.setattr(link.Link, "call", lambda self, commands, loud: calls.append(commands))
    url = f"redis://127.0.0.1:{closed_port}/0"
    check_store(url, "f")
    configure(default=url)
    function(url)
    assert resolve_store(url) is resolve_store(url)
    assert calls == []


def test_nothing_is_imported_before_the_first_call():
    script = (
        "import sys, memo\n"
        "memo.configure(default='redis://localhost:1/0', stores={'a': 'unix:///x?db=1'})\n"
        "def f(x): return x\n"
        "memo.cache_aside(store='rediss://localhost:1/0?serializer=json', namespace='f')(f)\n"
        "print('redis' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False"


BAD = [
    ("redis://:hunter2@host:hunter2/0", r"the port of a Redis URL is a number from 0 to 65535"),
    ("redis://:hunter2@host:66000/0", r"the port of a Redis URL is a number from 0 to 65535"),
    ("redis://:hun#ter2@host/0", r"a '#' in a Redis URL, as in a password, is written as '%23'"),
    ("redis://:hunter2@host/zero", r"after the host of a Redis URL comes the number of a database: '/0'"),
    ("redis://host?timeout=0", r"timeout='0': allowed are seconds, more than 0"),
    ("redis://host?timeout=soon", r"timeout='soon': allowed are seconds, more than 0"),
    ("redis://host?connect_timeout=-1", r"connect_timeout='-1': allowed are seconds, more than 0"),
    ("redis://host?default_ttl=x", r"default_ttl='x': allowed are seconds, more than 0, and 'none'"),
    ("redis://host?prefix=", r"prefix='': allowed is text that is not empty"),
    ("redis://host?prefix=a%0Ab", r"prefix='a\\nb': allowed is text that is not empty, without control characters"),
    ("redis://host?serializer=yaml", r"serializer='yaml'"),
    ("redis://host?serializer=pickle", r"whoever can write to the store could run code here"),
    ("unix://host/path", r"a unix URL has the absolute path of a socket"),
    ("unix://", r"a unix URL has the absolute path of a socket"),
]


@pytest.mark.parametrize(("url", "message"), BAD)
def test_what_is_wrong_is_told_at_decoration(url, message):
    with pytest.raises(OptionError, match=message):
        function(url)
    with pytest.raises(OptionError, match=message):
        configure(default=url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@host/0?no_such_option=hunter2",
        "redis://:hunter2@host/0?max_connections=hunter2",
        "redis://:hunter2@host/0?decode_responses=true",
    ],
)
def test_what_only_the_client_library_knows_is_told_by_the_first_call_without_passwords(url):
    f = function(url)
    with pytest.raises(OptionError, match=r"urls|store='redis:\.\.\.'") as caught:
        f(1)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", [url for url, _ in BAD if "hunter2" in url])
def test_no_password_is_shown(url):
    for give in (function, lambda url: configure(default=url), lambda url: configure(stores={"a": url})):
        with pytest.raises(OptionError) as caught:
            give(url)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_no_password_is_shown_by_a_store_or_by_its_failures(closed_port, caplog):
    store = resolve_store(f"redis://:hunter2@127.0.0.1:{closed_port}/0")
    assert "hunter2" not in repr(store)
    store.set("k", 1)
    with pytest.raises(memo.StoreError) as caught:
        store.delete("k")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in caplog.text


def test_a_password_with_every_character_reaches_the_client(redis_servers):
    server = redis_servers("--requirepass", "a:b@c/d?e#f%")
    url = f"redis://:a%3Ab%40c%2Fd%3Fe%23f%25@127.0.0.1:{server.port}/0?timeout=20"
    store = resolve_store(url)
    store.set("k", 1)
    assert store.get("k") == 1


REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


@pytest.mark.parametrize("name", list(urls._OPTIONS["redis"]))
def test_the_reference_has_every_option_of_a_redis_url(name):
    (row,) = [line for line in REFERENCE.read_text(encoding="utf-8").splitlines() if line.startswith("| `redis://")]
    assert f"`{name}`" in row
