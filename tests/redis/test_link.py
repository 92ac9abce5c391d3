"""The way to a server: what is taken for one, when it is left alone, and what callers are told of its errors."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback

import pytest
import redis
import redis.asyncio
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    DataError,
    InvalidResponse,
    MaxConnectionsError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    SlotNotCoveredError,
)

from memo import OptionError, RedisStore, StoreError, cache_aside
from memo.stores.redis import breaker as breaker_module
from memo.stores.redis import wire as wire_module
from memo.stores.redis.breaker import FIRST, LONGEST, TOLERATED, Breaker
from memo.stores.redis.commands import Refusal, WrongAnswer, check
from memo.stores.redis.link import Link
from memo.stores.redis.protocol import FILL
from memo.stores.redis.wire import Wire, connection_options, hung_up, refusal, refused

SECRET = "s3cret-canary"


def soon():
    return time.monotonic() + 20


@pytest.fixture
def now(monkeypatch):
    """The time of breaker and deadlines, as a list that tests change."""
    time = [1000.0]
    monkeypatch.setattr(breaker_module.time, "monotonic", lambda: time[0])
    return time


# -- what is taken for a server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis://127.0.0.1:1/0", "rediss://127.0.0.1:1/0", "unix:///nowhere?db=0"])
def test_constructing_never_connects(monkeypatch, scheme):
    def refuse(*_):
        raise AssertionError("it connects")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("threading.Thread.start", refuse)
    RedisStore(scheme).close()


@pytest.mark.parametrize(
    "server",
    [
        f"http://user:{SECRET}@host:6379",
        f"redis://user:{SECRET}@host:port/0",
        f"redis://:{SECRET}@host/0?max_connections=many",
        f"redis://:{SECRET}@host/0?max_connections=-1",
        f"redis://:{SECRET}@host/0?no_such_option=1",
        f"redis://:{SECRET}@host/0?decode_responses=True",
        f"{SECRET}",
    ],
)
def test_a_url_that_is_none_is_refused_and_not_shown(server):
    with pytest.raises(OptionError) as caught:
        RedisStore(server)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("server", [7, None, object(), (), ("redis://localhost",), [redis.Redis()]])
def test_what_is_no_server_is_refused(server):
    with pytest.raises(OptionError, match="no Redis server"):
        RedisStore(server)


@pytest.mark.parametrize("library", [redis, redis.asyncio])
def test_a_client_that_decodes_and_a_pipeline_are_refused(library):
    with pytest.raises(OptionError, match="decode_responses"):
        RedisStore(library.Redis(decode_responses=True))
    with pytest.raises(OptionError, match="no Redis server"):
        RedisStore(library.Redis().pipeline())


def test_a_client_that_is_refused_does_not_show_its_password():
    with pytest.raises(OptionError) as caught:
        RedisStore(redis.ConnectionPool(password=SECRET))
    assert SECRET not in str(caught.value)


def test_a_url_says_how_many_connections_there_may_be():
    assert connection_options("redis://h/0?max_connections=3", 5, False)[2] == 3
    assert connection_options("redis://h/0", 5, False)[2] == wire_module.MOST
    assert connection_options("redis://h/0", 5, True)[2] == wire_module.MOST


def test_without_redis_py_the_error_says_how_to_install_it(monkeypatch):
    def missing(name):
        error = ModuleNotFoundError("no module")
        error.name = name
        real = __import__

        def imported(module, *args):
            if module.endswith("awire"):
                raise error
            return real(module, *args)

        return imported

    monkeypatch.setattr("builtins.__import__", missing("redis.asyncio"))
    with pytest.raises(OptionError, match=r"memo-cache\[redis\]"):
        RedisStore()
    monkeypatch.undo()
    monkeypatch.setattr("builtins.__import__", missing("something"))
    with pytest.raises(ModuleNotFoundError):
        RedisStore()


# -- clients that somebody else has made -------------------------------------------------------------------------------


def test_a_blocking_client_serves_those_who_await_too(redis_server):
    client = redis_server.client()
    store = RedisStore(client)
    store.set("k", [1])

    async def main():
        assert await store.aget("k") == [1]
        assert await store.adelete("k")
        await store.aclose()

    asyncio.run(main())
    assert store.get("k") is None
    store.close()
    assert client.ping()  # it is not ours to close


async def test_an_awaiting_client_alone_is_used_and_cannot_block(redis_server):
    async with redis_server.async_client() as client:
        store = RedisStore(client)
        await store.aset("k", [1])
        assert await store.aget("k") == [1]
        with pytest.raises(StoreError, match="as a tuple"):
            store.delete("k")
        assert store.get("k", "default") == "default"
        await store.aclose()
        store.close()
        assert await client.ping()


async def test_a_tuple_of_both_clients_serves_both(redis_server):
    async with redis_server.async_client() as client:
        store = RedisStore((redis_server.client(), client))
        store.set("k", [1])
        assert await store.aget("k") == [1]
        store._link.forget()  # both look after themselves
        assert await store.adelete("k")


async def test_clients_keep_the_interface_of_a_store(redis_server):
    async with redis_server.async_client() as client:
        store = RedisStore((redis_server.client(), client))
        store.set_many({"a": 1, "b": 2}, ttl=None)
        assert store.get_many(["a", "b", "c"]) == {"a": 1, "b": 2} == await store.aget_many(["a", "b", "c"])
        assert store.increment("a") == 2
        assert await store.aincrement("a") == 3
        assert sorted(store.keys()) == ["a", "b"] == sorted(await store.akeys())
        assert store.expire("a", 100)
        assert await store.aexpire("b", 100)
        assert 90 < store.ttl("a") <= 100
        assert store.expire("a", None)
        store.invalidate_tags("t")
        await store.ainvalidate_tags("t")
        assert store.delete_pattern("a") == 1
        await store.aclear()
        assert store.keys() == []


# -- errors ------------------------------------------------------------------------------------------------------------

ERRORS = [
    redis.ConnectionError(f"to {SECRET}"),
    redis.TimeoutError(SECRET),
    AuthenticationError(SECRET),
    BusyLoadingError(SECRET),
    MaxConnectionsError(SECRET),
    InvalidResponse(SECRET),
    DataError(SECRET),
    RedisClusterException(SECRET),
    SlotNotCoveredError(SECRET),
    OSError(5, SECRET),
    ConnectionResetError(SECRET),
    TimeoutError(SECRET),
    asyncio.TimeoutError(SECRET),
    asyncio.IncompleteReadError(SECRET.encode(), 100),
    UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
    ValueError(SECRET),
    AttributeError(SECRET),
    TypeError(SECRET),
    RuntimeError(f"Event loop is closed {SECRET}"),
    RecursionError(SECRET),
    MemoryError(SECRET),
    KeyError(SECRET),
]


class Failing:
    """In the place of connections: raises what it is told to."""

    def __init__(self, error):
        self.error = error
        self.calls = 0

    def call(self, commands, deadline):
        self.calls += 1
        raise self.error

    def forget(self):
        """As connections do, in a child of fork."""


class AwaitedFailing(Failing):
    async def call(self, commands, deadline):
        return super().call(commands, deadline)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_every_error_of_a_client_reaches_callers_as_one_without_secrets(error, caplog):
    caplog.set_level(logging.DEBUG)
    store = RedisStore(f"redis://user:{SECRET}@127.0.0.1:1/0")
    store._link._wire, store._link._awire = Failing(error), AwaitedFailing(error)
    assert store.get(SECRET, "default") == "default"
    assert await store.aget(SECRET, "default") == "default"
    store.set(SECRET, SECRET)
    await store.aset(SECRET, SECRET)
    for loud in (lambda: store.delete(SECRET), lambda: store.invalidate_tags(SECRET), store.clear):
        with pytest.raises(StoreError) as caught:
            loud()
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    with pytest.raises(StoreError) as caught:
        await store.adelete(SECRET)
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in caplog.text + repr(store) + repr(store.stats())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_what_ends_a_caller_is_no_failure_of_the_server(interrupt):
    link = Link("redis://127.0.0.1:1/0", 0.25, 5)
    link._wire, link._awire = Failing(interrupt()), AwaitedFailing(interrupt())
    for _ in range(TOLERATED + 1):
        with pytest.raises(interrupt):
            link.call([("GET", b"k")], loud=False, deadline=soon())
    if interrupt is asyncio.CancelledError:
        with pytest.raises(interrupt):
            await link.acall([("GET", b"k")], loud=False, deadline=soon())
    assert not link.breaker.open


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (NoScriptError("No matching script."), "NOSCRIPT"),
        (NoPermissionError("this user has no permissions"), "NOPERM"),
        (ReadOnlyError("You can't write against a read only replica."), "READONLY"),
        (ResponseError("OOM command not allowed"), "OOM"),
        (ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE"),
        (ResponseError("unknown command 'x'"), "ERR"),
        (ResponseError(f"{SECRET} is no word of a server"), "ERR"),
        (ResponseError(""), "ERR"),
    ],
)
def test_of_a_refusal_only_its_first_word_is_kept(error, kind):
    assert refusal(error).kind == kind


def test_what_is_no_answer_in_a_clients_answers_is_raised():
    assert refused([b"v", None, 7]) == [b"v", None, 7]
    assert [each.kind for each in refused([ResponseError("OOM command not allowed")] * 2)] == ["OOM", "OOM"]
    with pytest.raises(BusyLoadingError):
        refused([b"v", BusyLoadingError("Redis is loading the dataset in memory")])


def test_only_a_protocol_error_ends_a_connection():
    assert hung_up([b"v", ResponseError("Protocol error: invalid bulk length")])
    assert not hung_up([ResponseError("WRONGTYPE Protocol error")])
    assert not hung_up([b"Protocol error"])
    assert not hung_up([])


@pytest.mark.parametrize(
    ("command", "right", "wrong"),
    [
        (("GET", b"k"), [b"", None, Refusal("X")], [1, [], [b""], True]),
        (("MGET", b"k", b"l"), [[b"", None], Refusal("X")], [b"", [], [b""], [b"", 1], None]),
        (("GETRANGE", b"k", 0, 1), [b""], [None, 1]),
        (("SET", b"k", b"v"), [b"OK", True, None], [1, []]),
        (("PTTL", b"k"), [-1], [None, b"1"]),
        (("UNLINK", b"k"), [0], [None, b"1"]),
        (("PEXPIRE", b"k", 1), [0, True], [None, b"1"]),
        (("PERSIST", b"k"), [0, False], [None, b"1"]),
        (
            ("SCAN", 0),
            [[b"0", []], [0, [b"k"]], Refusal("X")],
            [b"", [], [b"x", []], [b"0", b"k"], [b"0", [1]], [[], []]],
        ),
        (FILL(b"k", b"", b"", 0), [1, b"id"], [None, []]),
        (("PING",), [b"PONG", None, 1], []),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_an_answer_that_cannot_be_one_to_the_command_is_none(command, right, wrong):
    for reply in right:
        check([command], [reply])
    for reply in wrong:
        with pytest.raises(WrongAnswer):
            check([command], [reply])


# -- scripts that the server does not know -----------------------------------------------------------------------------


class Forgetful:
    """In the place of connections: knows no script by its digest."""

    def __init__(self):
        self.asked = []

    def call(self, commands, deadline):
        self.asked.append((commands, deadline))
        return [Refusal("NOSCRIPT") if command[0] == "EVALSHA" else b"OK" for command in commands]


class AwaitedForgetful(Forgetful):
    async def call(self, commands, deadline):
        return super().call(commands, deadline)


async def test_a_script_that_the_server_does_not_know_is_sent_in_full_once_within_the_same_deadline():
    link = Link("redis://127.0.0.1:1/0", 0.25, 5)
    link._wire, link._awire = Forgetful(), AwaitedForgetful()
    commands = [("GET", b"k"), FILL(b"k", b"id", b"data", 0)]
    replies = link.call(list(commands), loud=False, deadline=soon())
    assert replies == [b"OK", b"OK"] == await link.acall(list(commands), loud=False, deadline=soon())
    for wire in (link._wire, link._awire):
        (first, deadline), (second, again) = wire.asked
        assert first == commands
        assert second == [("EVAL", FILL.source, 1, b"k", b"id", b"data", 0)]
        assert deadline == again


# -- the deadline of an operation --------------------------------------------------------------------------------------


class Slow:
    """In the place of connections: each round trip takes a while of a clock that tests turn, and finds nothing.

    Args:
        now: the clock.
        takes: seconds.
        pages: that SCAN gives.
    """

    def __init__(self, now, takes, pages=1):
        self.now, self.takes, self.pages = now, takes, pages
        self.asked = []

    def call(self, commands, deadline):
        self.asked.append(([command[0] for command in commands], deadline))
        assert len(self.asked) < 100, "it does not end"
        self.now[0] += self.takes
        return [self.answer(*command) for command in commands]

    def answer(self, name, key, *rest):
        if name == "SCAN":
            return [int(key) + 1 if int(key) + 1 < self.pages else 0, [b"cache:k%d" % int(key)]]
        taken = None if key == b"cache:taken" else b"OK"
        return {"GET": None, "SET": taken, "GETRANGE": b"x", "PTTL": 5, "UNLINK": 1, "EVALSHA": 0}[name]


class AwaitedSlow(Slow):
    async def call(self, commands, deadline):
        return super().call(commands, deadline)


def called(store, name, *args):
    """Call a store's method, blocking and awaited; return what came of either, and what the two wires were asked."""
    results = []
    for call in (
        lambda: getattr(store, name)(*args),
        lambda: asyncio.run(getattr(store, f"a{name}")(*args)),
    ):
        try:
            results.append(call())
        except StoreError as error:
            results.append(error)
    return results, [store._link._wire.asked, store._link._awire.asked]


def slow_store(now, takes, pages=1):
    store = RedisStore("redis://127.0.0.1:1/0", timeout=1)
    store._link._wire, store._link._awire = Slow(now, takes, pages), AwaitedSlow(now, takes, pages)
    return store


def test_a_lookup_of_two_round_trips_has_one_deadline_and_the_fill_its_own(now):
    store = slow_store(now, 0.4)
    begin = now[0]

    @cache_aside(store=store, key="blocking")
    def load():
        return 7

    @cache_aside(store=store, key="awaited")
    async def aload():
        return 7

    assert load() == 7 == asyncio.run(aload())
    trips = [["GET", "GET", "SET"], ["SET", "GET"], ["EVALSHA", "EVALSHA"]]  # the look, its missing stamp, the fill
    for wire in (store._link._wire, store._link._awire):
        assert [names for names, _ in wire.asked] == trips
        assert [deadline for _, deadline in wire.asked] == pytest.approx([begin + 1, begin + 1, begin + 1.8])
        begin += 1.2


def test_an_operation_that_goes_on_and_on_ends_with_its_time_and_opens_no_breaker(now):
    store = slow_store(now, 0.3)
    results, asked = called(store, "increment", "taken")  # each time somebody has come in between
    for result, trips in zip(results, asked, strict=True):
        assert isinstance(result, StoreError)
        assert "in time" in str(result)
        assert len(trips) == 4  # the fifth would begin after the end
        assert len({deadline for _, deadline in trips}) == 1
    assert not store._link.breaker._failures  # every question that was sent was answered


@pytest.mark.parametrize(
    ("name", "args", "result"),
    [
        ("keys", (), {"k0", "k1", "k2", "k3", "k4"}),
        ("delete_pattern", ("*",), 5),
        ("clear", (), None),
        ("stats", (), 5),
    ],
)
def test_what_asks_for_all_keys_has_a_deadline_for_each_round_trip(now, name, args, result):
    store = slow_store(now, 0.9, pages=5)
    results, asked = called(store, name, *args)
    for each in results:
        assert (each.size if name == "stats" else set(each) if name == "keys" else each) == result
    times = [deadline for trips in asked for _, deadline in trips]
    assert times == pytest.approx([1001 + 0.9 * number for number in range(len(times))])
    assert len(times) >= 10


async def test_the_deadline_holds_for_a_blocking_client_of_those_who_await(now):
    store = slow_store(now, 0.1)
    store._link._awire = None
    assert await store.aget("k") is None
    assert store._link._wire.asked == [(["GET"], pytest.approx(1001.0))]


# -- the breaker -------------------------------------------------------------------------------------------------------


def opened():
    breaker = Breaker()
    for _ in range(TOLERATED):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_the_breaker_opens_after_three_failures_in_a_row(now):
    breaker = Breaker()
    for _ in range(TOLERATED - 1):
        breaker.failed()
    breaker.succeeded()
    for _ in range(TOLERATED - 1):
        breaker.failed()
    assert breaker.allows()
    assert not breaker.open
    breaker.failed()
    assert breaker.open
    assert not breaker.allows()


def test_one_probe_at_a_time_is_let_through(now):
    breaker = opened()
    now[0] += FIRST - 0.01
    assert not breaker.allows()
    now[0] += 0.01
    allowed = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait(10)
        allowed.append(breaker.allows())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(allowed) == [False] * 7 + [True]
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()
    assert breaker.allows()


def test_each_probe_that_fails_doubles_the_pause_up_to_a_limit(now):
    breaker = opened()
    pause = FIRST
    for _ in range(8):
        now[0] += pause
        assert breaker.allows()
        breaker.failed()
        pause = min(2 * pause, LONGEST)
        now[0] += pause - 0.01
        assert not breaker.allows()
        now[0] += 0.01 - pause
    assert pause == LONGEST
    now[0] += pause
    assert breaker.allows()
    breaker.succeeded()
    assert breaker._pause == FIRST  # the next outage begins anew


def test_a_probe_that_never_says_how_it_went_is_followed_by_another(now):
    breaker = opened()
    now[0] += FIRST
    assert breaker.allows()
    assert not breaker.allows()
    now[0] += FIRST
    assert breaker.allows()


def test_many_failures_at_once_make_no_longer_pause_than_three(now):
    breaker = opened()
    for _ in range(100):
        breaker.failed()
    now[0] += FIRST
    assert breaker.allows()


def test_invalidations_are_tried_all_the_same_and_close_the_breaker(now):
    link = Link("redis://127.0.0.1:1/0", 0.25, 5)
    link._wire = Failing(OSError("down"))
    for _ in range(10):
        with pytest.raises(StoreError):
            link.call([("GET", b"k")], loud=False, deadline=soon())
    assert link._wire.calls == TOLERATED
    for _ in range(10):
        with pytest.raises(StoreError, match="OSError"):
            link.call([("UNLINK", b"k")], loud=True, deadline=soon())
    assert link._wire.calls == TOLERATED + 10
    link._wire = Forgetful()
    link.call([("UNLINK", b"k")], loud=True, deadline=soon())
    assert link.call([("GET", b"k")], loud=False, deadline=soon()) == [b"OK"]


def test_a_pool_that_is_exhausted_does_not_open_the_breaker():
    link = Link("redis://127.0.0.1:1/0", 0.25, 5)
    link._wire = Failing(StoreError(wire_module.BUSY))
    for _ in range(10):
        with pytest.raises(StoreError, match="in use"):
            link.call([("GET", b"k")], loud=False, deadline=soon())
    assert link._wire.calls == 10


def test_a_link_can_be_closed_and_forgotten_before_it_was_used():
    link = Link("redis://127.0.0.1:1/0", 0.25, 5)
    assert isinstance(link._wire, Wire)
    link.close()
    link.forget()
    asyncio.run(link.aclose())
    blocking = Link(redis.Redis(), 0.25, 5)
    blocking.close()
    blocking.forget()
    asyncio.run(blocking.aclose())
