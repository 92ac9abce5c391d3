"""What goes wrong with one server, for those who block and those who await.

There is no error where nothing is at stake, one where something was to be removed, an end in time, and a way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings

import pytest
import redis

from memo import MISSING, RedisStore, StoreError, cache_aside, escape_pattern
from memo.stores.redis import breaker as breaker_module

LONG = 20.0
"""Seconds after which a test that hangs fails."""

SECRET = "s3cret-canary"


class Side:
    """Calls a store's methods, blocking or awaited."""

    def __init__(self, awaited):
        self.awaited = awaited
        self.loop = asyncio.new_event_loop()

    def __call__(self, store, name, *args, **kwargs):
        if not self.awaited:
            return getattr(store, name)(*args, **kwargs)
        return self.loop.run_until_complete(getattr(store, f"a{name}")(*args, **kwargs))

    def function(self, store, **options):
        """A decorated function that counts its calls, and a way to call it."""
        calls = []

        def load(number: int) -> list[int]:
            calls.append(number)
            return [number]

        async def aload(number: int) -> list[int]:
            return load(number)

        options = {"store": store, "key": "f:{number}", "ttl": 100, "tags": ("t",), **options}
        cached = cache_aside(**options)(aload if self.awaited else load)
        if not self.awaited:
            return cached, calls, lambda work: work
        return cached, calls, self.loop.run_until_complete

    def close(self):
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(params=["blocking", "awaited"])
def side(request):
    made = Side(request.param == "awaited")
    yield made
    made.close()


@pytest.fixture
def stores():
    made = []

    def make(server, **options):
        made.append(RedisStore(server if isinstance(server, str) else server.url, **{"timeout": 5, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def patient(monkeypatch):
    """No breaker opens."""
    monkeypatch.setattr(breaker_module, "TOLERATED", 10**9)


def fails_open_and_loud(side, store):
    """Reads and sets fail nobody, and whatever removes says that it could not."""
    assert side(store, "get", "k", "default") == "default"
    assert side(store, "get_many", ["k"]) == {}
    assert not side(store, "exists", "k")
    assert side(store, "ttl", "k") is None
    side(store, "set", "k", 1)
    side(store, "set_many", {"k": 1})
    for name, *args in (
        ("delete", "k"),
        ("delete_many", ["k"]),
        ("invalidate_tags", "t"),
        ("delete_pattern", "*"),
        ("clear",),
        ("increment", "k"),
        ("expire", "k", 5),
    ):
        with pytest.raises(StoreError):
            side(store, name, *args)
    cached, calls, run = side.function(store)
    assert [run(cached(each)) for each in (1, 1, 2)] == [[1], [1], [2]]
    assert calls == [1, 1, 2]
    with pytest.raises(StoreError):
        run(cached.invalidate(1))
    with pytest.raises(StoreError):
        run(cached.invalidate_all())


def works(side, store):
    """Everything is as if nothing had been."""
    side(store, "set", "k", {"a": 1})
    assert side(store, "get", "k") == {"a": 1}
    cached, calls, run = side.function(store)
    assert [run(cached(each)) for each in (1, 1)] == [[1], [1]]
    assert calls == [1]
    assert run(cached.invalidate(1))
    assert run(cached(1)) == [1]
    side(store, "invalidate_tags", "t")
    assert run(cached(1)) == [1]
    assert calls == [1, 1, 1]
    assert side(store, "delete", "k")
    side(store, "clear")
    assert side(store, "keys") == []


def closes(breaker):
    """As if the pause were over."""
    breaker._again = 0.0


# -- the server is not there -------------------------------------------------------------------------------------------


def test_down_at_the_start_and_used_as_soon_as_it_is_there(side, stores, redis_server):
    redis_server.kill()
    store = stores(redis_server)
    for _ in range(3):
        fails_open_and_loud(side, store)
    assert store._link.breaker.open
    redis_server.start()
    closes(store._link.breaker)
    assert side(store, "get", "k") is None  # the probe
    works(side, store)


def test_killed_between_lease_and_fill_and_restarted_empty_nothing_is_filled(side, stores, redis_server):
    store = stores(redis_server)
    calls = []

    def load(number: int) -> int:
        calls.append(number)
        if len(calls) == 1:
            redis_server.restart()
        return number

    async def aload(number: int) -> int:
        return load(number)

    cached = cache_aside(store=store, key="f:{number}")(aload if side.awaited else load)
    run = side.loop.run_until_complete if side.awaited else lambda result: result
    assert run(cached(1)) == 1
    assert redis_server.client().keys("*f:1*") == []
    closes(store._link.breaker)
    assert [run(cached(1)), run(cached(1))] == [1, 1]
    assert calls == [1, 1]


def test_killed_and_restarted_while_it_is_used(side, stores, redis_server):
    store = stores(redis_server)
    for _ in range(3):
        works(side, store)
        redis_server.restart()
        side(store, "get", "k")  # this one may find out
        works(side, store)


# -- the server does not answer ----------------------------------------------------------------------------------------


def test_hung_and_going_on(side, stores, redis_server, patient):
    store = stores(redis_server, timeout=0.05)
    side(store, "get", "k")
    redis_server.pause()
    begin = time.monotonic()
    fails_open_and_loud(side, store)
    assert time.monotonic() - begin < LONG
    redis_server.resume()
    store._link._timeout = LONG
    works(side, store)


def test_paused_by_a_client_and_going_on(side, stores, redis_server, patient):
    store = stores(redis_server, timeout=0.05)
    redis_server.client().client_pause(60_000)
    fails_open_and_loud(side, store)
    redis_server.restart()  # a pause holds up whoever would end it
    store._link._timeout = LONG
    side(store, "get", "k")  # this one may find out
    works(side, store)


def test_dripping_a_byte_at_a_time_it_is_waited_for_no_longer_than_the_timeout(side, stores, redis_server, peers):
    stop = threading.Event()

    def drip(data, send):
        for byte in data:
            send(bytes([byte]))
            if stop.wait(0.02):
                return

    peer = peers.between(redis_server, drip)
    store = stores(peer.url, timeout=0.3, connect_timeout=LONG)
    redis_server.client().set("cache:k", b'"' + b"x" * 100_000 + b'"')
    begin = time.monotonic()
    assert side(store, "get", "k") is None
    assert side(store, "get", "k") is None
    assert time.monotonic() - begin < LONG  # the value takes half an hour
    stop.set()


def test_a_lookup_of_two_round_trips_has_one_timeout_for_both(side, stores, redis_server, peers):
    """Each answer takes more than half of it: one is in time, and the second one's is not waited for."""
    slow, never = threading.Event(), threading.Event()

    def delay(data, send):
        if slow.is_set():
            never.wait(0.3)
        send(data)

    store = stores(peers.between(redis_server, delay).url, timeout=LONG)
    cached, calls, run = side.function(store)
    errors = cached.stats().errors
    client = redis_server.client()
    assert run(cached(1)) == [1]
    slow.set()
    client.delete("cache:~tag:t")
    assert run(cached(2)) == [2]
    assert client.get("cache:f:2").startswith(b"#memo1 ")
    assert cached.stats().errors == errors
    client.delete("cache:~tag:t")
    store._link._timeout = 0.5
    assert run(cached(3)) == [3]
    assert calls == [1, 2, 3]
    # A second look may be one round trip, and then what was loaded is stored.
    assert cached.stats().errors["read"] > errors.get("read", 0)


def test_loading_its_data_it_answers_nothing_else(side, stores, peers):
    def loading(connection):
        while connection.recv(65536):
            connection.sendall(b"-LOADING Redis is loading the dataset in memory\r\n")

    store = stores(peers.serving(loading).url)
    fails_open_and_loud(side, store)


# -- the server refuses ------------------------------------------------------------------------------------------------


def test_out_of_memory_reads_go_on_and_every_invalidation_works(side, stores, redis_server):
    store = stores(redis_server)
    cached, calls, run = side.function(store)
    client = redis_server.client()
    for forget in (
        lambda: run(cached.invalidate(1)),
        lambda: run(cached.invalidate_all()),
        lambda: side(store, "invalidate_tags", "t"),
        lambda: side(store, "delete_pattern", "f:*"),
        lambda: side(store, "clear"),
    ):
        client.config_set("maxmemory", 0)
        calls.clear()
        side(store, "set", "k", "v")
        run(cached(1))
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        try:
            assert side(store, "get", "k") == "v"
            assert run(cached(1)) == [1]
            assert calls == [1]
            side(store, "set", "other", "v")
            assert side(store, "get", "other") is None
            assert run(cached(2)) == [2]
            forget()
            assert run(cached(1)) == [1]
            assert calls == [1, 2, 1]
        finally:
            client.config_set("maxmemory", 0)
    assert side(store, "get", "k") is None
    assert store._errors["set"] == 5
    assert not store._link.breaker.open


def test_where_memory_runs_out_all_the_time_nothing_that_was_invalidated_is_served(side, stores, redis_servers):
    """The server takes keys and stamps as it likes: entries, functions' stamps and tags'."""
    server = redis_servers("--maxmemory-policy", "allkeys-random")
    store, client, generator = stores(server), server.client(), random.Random(5)
    version = dict.fromkeys(range(40), 0)

    def load(number: int) -> list[object]:
        return [version[number], "x" * 20_000]

    async def aload(number: int) -> list[object]:
        return load(number)

    tags = ("{number}", "all")
    cached = cache_aside(store=store, key="f:{number}", ttl=100, tags=tags)(aload if side.awaited else load)
    run = side.loop.run_until_complete if side.awaited else lambda result: result
    invalidations = [
        lambda number: run(cached.invalidate(number)),
        lambda number: side(store, "invalidate_tags", str(number)),
        lambda number: side(store, "delete", f"f:{number}"),
        lambda number: side(store, "invalidate_tags", "all"),
        lambda number: run(cached.invalidate_all()),
    ]
    run(cached(0))
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)  # that is some fifteen entries
    for _ in range(3000):
        number = generator.randrange(40)
        if generator.random() < 0.2:
            version[number] += 1
            generator.choices(invalidations, [10, 10, 10, 1, 1])[0](number)
        assert run(cached(number))[0] == version[number]
    assert client.info("stats")["evicted_keys"] > 20
    assert cached.stats().hits > 20


def test_scripts_are_flushed_before_each_operation(side, stores, redis_server):
    store = stores(redis_server)
    cached, calls, run = side.function(store)
    client = redis_server.client()
    for number in range(60):
        client.script_flush()
        assert run(cached(number)) == [number]
        client.script_flush()
        assert run(cached(number)) == [number]
        client.script_flush()
        assert side(store, "increment", "n") == number + 1
    assert calls == list(range(60))
    assert store._errors == {}


def test_something_of_another_type_at_a_key_is_a_miss_and_replaced_by_a_fill(side, stores, redis_server):
    store = stores(redis_server)
    client = redis_server.client()
    cached, calls, run = side.function(store)
    for put in (lambda key: client.rpush(key, "x"), lambda key: client.hset(key, "x", "y")):
        put("cache:k")
        assert side(store, "get", "k", "default") == "default"
        assert not side(store, "exists", "k")
        side(store, "delete", "k")
        assert client.exists("cache:k") == 0
        put("cache:f:1")
        calls.clear()
        assert [run(cached(1)), run(cached(1))] == [[1], [1]]
        assert calls == [1]
        run(cached.invalidate(1))
        assert client.exists("cache:f:1") == 0
    assert not store._link.breaker.open


def test_who_may_only_read_reads_and_is_told_what_was_not_removed(side, stores, redis_server, caplog):
    client = redis_server.client()
    allowed = {"keys": ["*"], "categories": ["+@read", "+@connection"]}
    client.acl_setuser("reader", enabled=True, passwords=[f"+{SECRET}"], **allowed)
    store = stores(redis_server.url.replace("//", f"//reader:{SECRET}@"))
    try:
        client.set("cache:k", "[1]")
        assert side(store, "get", "k") == [1]
        side(store, "set", "k", 2)
        assert side(store, "get", "k") == [1]
        for name, *args in (("delete", "k"), ("invalidate_tags", "t"), ("clear",)):
            with pytest.raises(StoreError, match="NOPERM"):
                side(store, name, *args)
        cached, calls, run = side.function(store)
        assert [run(cached(1)), run(cached(1))] == [[1], [1]]
        assert calls == [1, 1]
        assert not store._link.breaker.open  # it answers
        assert SECRET not in caplog.text
        assert len([each for each in caplog.records if each.name == "memo" and "set failed" in each.message]) == 1
    finally:
        client.acl_deluser("reader")


def test_who_may_run_no_script_loads_again_and_again_and_invalidates(side, stores, redis_server):
    client = redis_server.client()
    client.acl_setuser("plain", enabled=True, passwords=["+x"], keys=["*"], categories=["+@all", "-@scripting"])
    store = stores(redis_server.url.replace("//", "//plain:x@"))
    try:
        side(store, "set", "k", [1])
        assert side(store, "get", "k") == [1]
        cached, calls, run = side.function(store)
        assert [run(cached(1)), run(cached(1))] == [[1], [1]]
        assert calls == [1, 1]
        allowed, _, _ = side.function(stores(redis_server))
        assert run(allowed(2)) == [2]
        assert run(cached(2)) == [2]
        assert calls == [1, 1], "what others have stored is served"
        assert run(cached.invalidate(2))
        assert run(allowed.peek(2)) is MISSING
        run(allowed(2))
        side(store, "invalidate_tags", "t")
        assert run(allowed.peek(2)) is MISSING
        run(allowed(2))
        run(cached.invalidate_all())
        assert run(allowed.peek(2)) is MISSING
        assert side(store, "delete", "k")
        side(store, "clear")
        assert client.keys("*") == []
        assert not store._link.breaker.open
    finally:
        client.acl_deluser("plain")


KEYS = ["a\r\nb", "\r\n$5\r\nFLUSHALL\r\n", "\x00", " ", "\udc80", "é{x}", "*?[a-z]^\\", "x" * 5000]


def test_a_key_of_any_characters_is_that_key_and_no_other(side, stores, redis_server):
    store, client = stores(redis_server), redis_server.client()
    for number, key in enumerate(KEYS):
        side(store, "set", key, number)
    assert sorted(client.keys("*")) == sorted(b"cache:" + key.encode("utf-8", "surrogatepass") for key in KEYS)
    assert sorted(side(store, "keys")) == sorted(KEYS)
    assert side(store, "get_many", KEYS) == {key: number for number, key in enumerate(KEYS)}
    assert side(store, "delete_pattern", escape_pattern(KEYS[6])) == 1
    for key in KEYS:
        assert side(store, "delete", key) is (key != KEYS[6])
    assert client.keys("*") == []


@pytest.mark.parametrize("who", ["", f"default:{SECRET}-wrong@", f"nobody:{SECRET}@"])
def test_whoever_the_server_does_not_know_fails_open_and_loud_without_a_password_in_sight(
    side, stores, redis_servers, caplog, who
):
    caplog.set_level(logging.DEBUG)
    server = redis_servers("--requirepass", "right")
    store = stores(server.url.replace("//", f"//{who}"))
    fails_open_and_loud(side, store)
    with pytest.raises(StoreError) as caught:
        side(store, "delete", "k")
    assert SECRET not in caplog.text + str(caught.value) + repr(store)
    works(side, stores(server.url.replace("//", "//:right@")))


def test_no_more_clients_are_let_in(side, stores, redis_servers, patient):
    server = redis_servers("--maxclients", "2")
    clients = [server.client(), server.client()]
    for each in clients:
        each.ping()
    store = stores(server)
    fails_open_and_loud(side, store)
    server.close_clients()
    for _ in range(1000):
        if side(store, "get", "k", "default") is None:  # pragma: no branch - when the server has noticed
            break
    works(side, stores(f"{server.url}?max_connections=1"))


def test_a_value_too_large_is_not_stored_and_opens_no_breaker(side, stores, redis_servers):
    server = redis_servers("--proto-max-bulk-len", "1mb")
    store = stores(server)
    cached = []

    def load() -> str:
        cached.append(1)
        return "x" * 2**21

    async def aload() -> str:
        return load()

    function = cache_aside(store=store, key="large")(aload if side.awaited else load)
    run = side.loop.run_until_complete if side.awaited else lambda result: result
    for _ in range(5):
        side(store, "set", "k", "x" * 2**21)
        assert side(store, "get", "k") is None
        assert run(function()) == "x" * 2**21
    assert len(cached) == 5
    assert not store._link.breaker.open
    works(side, store)


@pytest.mark.parametrize("seed", range(8))
def test_a_peer_that_says_anything_fails_open_and_loud(side, stores, peers, patient, seed):
    generator = random.Random(seed)
    pieces = [b"$3\r\nabc\r\n", b":1\r\n", b"*0\r\n", b"+OK\r\n", b"*2\r\n", b"$-1\r\n", b"_\r\n", b"%1\r\n", b"#t\r\n"]

    def say(connection):
        while connection.recv(65536):
            data = b"".join(generator.choice([*pieces, generator.randbytes(9)]) for _ in range(4))
            connection.sendall(data + b"\x00not a reply\r\n")
            connection.shutdown(1)

    store = stores(peers.serving(say).url, timeout=0.5, connect_timeout=0.5)
    fails_open_and_loud_or_garbage(side, store)


def fails_open_and_loud_or_garbage(side, store):
    """Whatever was answered, no error but those of memo's own reaches a caller."""
    side(store, "get", "k", "default")
    side(store, "get_many", ["k", "l"])
    side(store, "set", "k", 1)
    side(store, "keys")
    for name, *args in (("delete", "k"), ("clear",), ("invalidate_tags", "t"), ("increment", "k"), ("expire", "k", 5)):
        with contextlib.suppress(StoreError, ValueError):
            side(store, name, *args)
    cached, _, run = side.function(store)
    assert run(cached(1)) == [1]


# -- the server goes on, and refuses for a while -----------------------------------------------------------------------


def comes(condition):
    """Wait until that is so: a server does it by itself, and tells nobody."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.01)):
        with contextlib.suppress(redis.RedisError):
            if condition():
                return True
        pause.wait(0.01)
    return False


def refuses(client, word):
    """Return whether a server answers a write so."""
    try:
        client.set("anything", 1)
    except redis.RedisError as error:
        return word in str(error)
    return False


def test_busy_in_a_script_it_answers_nothing_and_goes_on_when_that_is_ended(side, stores, redis_servers):
    server = redis_servers("--lua-time-limit", "5")
    store = stores(server)
    works(side, store)
    client = server.client()

    def loop():
        with contextlib.suppress(redis.RedisError):
            server.client(socket_timeout=3 * LONG).eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        assert comes(lambda: refuses(client, "BUSY"))
        fails_open_and_loud(side, store)
        with pytest.raises(StoreError, match=r"refuses \(BUSY\)"):
            side(store, "delete", "k")
        assert not store._link.breaker.open, "it answers"
    finally:
        client.script_kill()
        thread.join(LONG)
    works(side, store)


def reads_and_stores_nothing(side, store, cached, calls, run, word):
    """What is stored is served; whatever would change something is not done, and an error where that matters."""
    calls.clear()
    assert side(store, "get", "kept") == "v"
    assert side(store, "get_many", ["kept", "other"]) == {"kept": "v"}
    assert run(cached(7)) == [7]
    assert calls == [], "it was stored"
    side(store, "set", "kept", "w")
    assert side(store, "get", "kept") == "v"
    assert [run(cached(8)), run(cached(8))] == [[8], [8]]
    assert calls == [8, 8], "it could not be stored"
    for name, *args in (
        ("delete", "kept"),
        ("invalidate_tags", "t"),
        ("delete_pattern", "*"),
        ("clear",),
        ("increment", "n"),
        ("expire", "kept", 5),
    ):
        with pytest.raises(StoreError, match=rf"refuses \({word}\)"):
            side(store, name, *args)
    for invalidate in (lambda: cached.invalidate(7), cached.invalidate_all):
        with pytest.raises(StoreError, match=rf"refuses \({word}\)"):
            run(invalidate())
    assert run(cached(7)) == [7]
    assert calls == [8, 8]
    assert not store._link.breaker.open, "it answers"


def test_unable_to_save_it_serves_what_it_has_and_says_what_was_not_removed(side, stores, redis_servers):
    server = redis_servers()
    store, client = stores(server), server.client()
    client.config_set("save", "3600 1")  # on the command line 6.2 wants it in another form
    cached, calls, run = side.function(store)
    side(store, "set", "kept", "v")
    run(cached(7))
    shutil.rmtree(server.folder)
    client.bgsave()
    assert comes(lambda: refuses(client, "MISCONF"))
    reads_and_stores_nothing(side, store, cached, calls, run, "MISCONF")
    client.config_set("stop-writes-on-bgsave-error", "no")
    works(side, store)


def test_demoted_to_a_replica_it_serves_what_it_has_and_says_what_was_not_removed(side, stores, redis_servers):
    primary, server = redis_servers("--repl-diskless-sync-delay", "0"), redis_servers()
    store, client = stores(server), server.client()
    works(side, store)
    before = stores(primary)
    cached, calls, run = side.function(before)
    side(before, "set", "kept", "v")
    run(cached(7))
    client.replicaof("127.0.0.1", primary.port)
    assert comes(lambda: client.info("replication")["master_link_status"] == "up")
    cached, calls, run = side.function(store)
    reads_and_stores_nothing(side, store, cached, calls, run, "READONLY")
    client.replicaof("NO", "ONE")
    assert side(store, "get", "kept") == "v"
    works(side, store)


def test_loading_its_data_for_a_long_time_it_is_used_as_soon_as_it_is_done(side, stores, redis_servers):
    server = redis_servers("--appendonly", "yes", "--appendfsync", "no")
    store = stores(server)
    side(store, "set", "kept", "v", None)
    with server.client().pipeline(transaction=False) as filling:
        for number in range(100_000):
            filling.set(f"filler{number}", "x")
        filling.execute()
    server.kill()
    # Microseconds for each key: more than 10 s in all. It answers after every thousand keys.
    server.options = (*server.options, "--key-load-delay", "50")
    thread = threading.Thread(target=server.start)
    thread.start()
    client = server.client(socket_timeout=1)
    assert comes(lambda: refuses(client, "loading"))
    fails_open_and_loud(side, store)
    assert refuses(client, "loading")
    assert comes(lambda: client.config_set("key-load-delay", 0))
    thread.join(LONG)
    closes(store._link.breaker)
    assert side(store, "get", "kept") == "v"
    works(side, store)


# -- many callers at once while the server ends, or hangs --------------------------------------------------------------


class Crowd:
    """Threads and tasks that call a store and a function on it again and again, until they are told to stop."""

    def __init__(self, store):
        self.store, self.wrong, self.rounds, self.stop = store, [], 0, threading.Event()
        self.f = cache_aside(store=store, key="f:{number}", ttl=100)(lambda number: [number])
        self.g = cache_aside(store=store, key="g:{number}", ttl=100)(self._later)
        self.threads = [threading.Thread(target=self._guarded, args=(self._block,)) for _ in range(4)]
        self.threads.append(threading.Thread(target=self._guarded, args=(lambda: asyncio.run(self._tasks()),)))
        for thread in self.threads:
            thread.start()

    @staticmethod
    async def _later(number):
        return [number]

    def _guarded(self, work):
        try:
            work()
        except BaseException as error:
            self.wrong.append(error)

    def _check(self, *found):
        for number, value in found:
            if value not in (None, [number]):
                self.wrong.append((number, value))
        self.rounds += 1

    def _block(self):
        while not self.stop.is_set():
            for number in range(20):
                self.store.set(f"k{number}", [number])
                self._check((number, self.store.get(f"k{number}")), (number, self.f(number)))
                with contextlib.suppress(StoreError):
                    self.f.invalidate(number)

    async def _tasks(self):
        async def task():
            while not self.stop.is_set():
                for number in range(20):
                    await self.store.aset(f"k{number}", [number])
                    self._check((number, await self.store.aget(f"k{number}")), (number, await self.g(number)))
                    with contextlib.suppress(StoreError):
                        await self.g.invalidate(number)

        await asyncio.gather(*(task() for _ in range(8)))

    def go_on(self, count=200):
        """Wait until they have done some more."""
        goal = self.rounds + count
        assert comes(lambda: self.rounds >= goal or self.wrong)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert self.wrong == []


def all_works(store):
    """Everything is as if nothing had been, for those who block and those who await, once each has found out."""
    for awaited in (False, True):
        side = Side(awaited)
        for _ in range(3):
            closes(store._link.breaker)
            side(store, "get", "k")
        works(side, store)
        side.close()


def test_killed_amid_many_calls_and_restarted_again_and_again_nobody_sees_an_error(stores, redis_servers):
    server = redis_servers()
    store = stores(server, timeout=LONG)
    crowd = Crowd(store)
    try:
        for _ in range(4):
            crowd.go_on()
            server.kill()
            crowd.go_on()
            server.start()
            closes(store._link.breaker)
            crowd.go_on()
    finally:
        crowd.end()
    all_works(store)


def test_hung_amid_many_calls_and_going_on_each_answer_belongs_to_its_question(stores, redis_servers, patient):
    server = redis_servers()
    store = stores(server, timeout=0.05, connect_timeout=LONG)
    crowd = Crowd(store)
    try:
        for _ in range(4):
            crowd.go_on()
            server.pause()
            crowd.go_on(30)
            server.resume()
            crowd.go_on()
    finally:
        server.resume()
        crowd.end()
    store._link._timeout = LONG
    all_works(store)


# -- the ways to connect -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("parser", ["default", "python"])
def test_either_protocol_with_and_without_hiredis(side, stores, redis_server, protocol, parser):
    if int(redis.__version__.partition(".")[0]) < 5 and protocol == "3":
        protocol = "2"  # it knows no other
    query = f"?protocol={protocol}" if int(redis.__version__.partition(".")[0]) >= 5 else ""
    store = stores(redis_server.url + query)
    if parser == "python":
        if query:
            from redis._parsers import _AsyncRESP2Parser, _RESP2Parser
        else:
            from redis.asyncio.connection import PythonParser as _AsyncRESP2Parser
            from redis.connection import PythonParser as _RESP2Parser
        store._link._wire._options["parser_class"] = _RESP2Parser
        store._link._awire._options["parser_class"] = _AsyncRESP2Parser
    works(side, store)


def test_over_a_unix_socket(side, stores, redis_server):
    works(side, stores(redis_server.unix_url))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The paths of a key and a certificate that it has signed itself, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


@pytest.fixture
def encrypted(redis_server, peers, certificate):
    """A peer that passes on to the server what it hears over TLS."""
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def serve(plain):
        port = redis_server.port
        with (
            context.wrap_socket(plain, server_side=True) as connection,
            socket.create_connection(("127.0.0.1", port)) as upstream,
        ):
            threading.Thread(target=answers, args=(connection, upstream), daemon=True).start()
            try:
                while data := connection.recv(65536):
                    upstream.sendall(data)
            finally:
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)  # or the thread that waits for its answers keeps it open

    def answers(connection, upstream):
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                connection.sendall(data)

    peer = peers.serving(serve)
    peer.url = peer.url.replace("redis://", "rediss://")
    return peer


def test_over_tls(side, stores, encrypted, certificate):
    store = stores(f"{encrypted.url}?ssl_ca_certs={certificate[1]}")
    works(side, store)
    large = "x" * 2**20
    side(store, "set", "k", large)
    assert side(store, "get", "k") == large


def test_over_tls_a_loop_that_is_just_closed_leaves_nothing_behind(stores, encrypted, certificate):
    store = stores(f"{encrypted.url}?ssl_ca_certs={certificate[1]}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(store.aset("k", number))
            loop.close()
            gc.collect()
        (pool,) = store._link._awire._pools.values()
        assert pool._all
        store._link.forget()
        assert not pool._all
        gc.collect()


def test_a_certificate_that_nobody_trusts_is_refused(side, stores, encrypted, redis_server):
    fails_open_and_loud(side, stores(encrypted.url))
    fails_open_and_loud(side, stores(redis_server.url.replace("redis://", "rediss://"), timeout=0.05))


# -- answers to others -------------------------------------------------------------------------------------------------


async def test_under_thousands_of_cancellations_each_answer_belongs_to_its_question(redis_server, peers, patient):
    generator = random.Random(7)

    def delay(data, send):
        time.sleep(generator.random() / 2000)  # a slow network, between any two bytes
        cut = generator.randrange(len(data) + 1)
        send(data[:cut])
        send(data[cut:])

    peer = peers.between(redis_server, delay)
    store = RedisStore(f"{peer.url}?max_connections=8", timeout=LONG)
    await store.aset_many({f"k{number}": number for number in range(20)})
    assert len(await store.aget_many([f"k{number}" for number in range(20)])) == 20
    answered = cancelled = 0
    for _ in range(60):
        numbers = [generator.randrange(20) for _ in range(40)]
        tasks = [asyncio.ensure_future(store.aget(f"k{number}")) for number in numbers]
        for task in tasks:
            if generator.random() < 0.9:
                for _ in range(generator.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
        for number, outcome in zip(numbers, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                cancelled += 1
            else:
                assert outcome == number
                answered += 1
    assert cancelled > 1000
    assert answered > 100
    (pool,) = store._link._awire._pools.values()
    assert len(pool._all) <= 8
    assert not pool._waiters
    await store.aclose()
