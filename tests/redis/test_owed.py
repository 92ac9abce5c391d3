"""`retry_invalidations=True`: a removal that gets no answer waits, and is done before anything else is asked."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
import weakref
from typing import Any

import pytest

from memo import MISSING, OptionError, RedisStore, StoreError, cache_aside, configure, invalidates
from memo.stores.redis import owed as owed_module
from memo.stores.redis.commands import Refusal

LONG = 20.0


class Line:
    """In the place of a store's wires: what is sent through a line that is cut gets no answer."""

    def __init__(self, store: RedisStore) -> None:
        self.cut = False
        self.sent: list[list[Any]] = []  # command names, for each time
        self.before: list[Any] = []  # called once each, before something is sent
        link = store._link
        self._wire, self._awire = link._wire, link._awire
        link._wire, link._awire = _Blocking(self), _Awaited(self)

    def passes(self, commands: Any) -> None:
        if self.before:
            self.before.pop()()
        self.sent.append([command[0] for command in commands])
        if self.cut:
            raise TimeoutError


class _Blocking:
    def __init__(self, line: Line) -> None:
        self.line, self.real = line, line._wire

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def call(self, commands: Any, deadline: float) -> Any:
        self.line.passes(commands)
        return self.real.call(commands, deadline)


class _Awaited(_Blocking):
    def __init__(self, line: Line) -> None:
        self.line, self.real = line, line._awire

    async def call(self, commands: Any, deadline: float) -> Any:  # type: ignore[override]  # it is awaited
        self.line.passes(commands)
        return await self.real.call(commands, deadline)


@pytest.fixture(params=[False, True], ids=["blocking", "awaited"])
def do(request):
    """Call a method of a store or a function, blocking or awaited."""

    def call(target: Any, name: str, *args: Any) -> Any:
        if not request.param:
            return getattr(target, name)(*args)

        async def main() -> Any:
            return await getattr(target, f"a{name}" if isinstance(target, RedisStore) else name)(*args)

        return asyncio.run(main())

    call.awaited = request.param
    return call


@pytest.fixture
def _idle_thread(monkeypatch):
    """The thread sleeps for ever, so that only what is asked next can remove anything."""
    monkeypatch.setattr(owed_module, "PAUSE", 3600)


@pytest.fixture
def store(redis_server):
    made = RedisStore(redis_server.url, timeout=LONG, retry_invalidations=True)
    yield made
    made.close()


@pytest.fixture
def other(redis_server):
    """Another process's store, in effect."""
    made = RedisStore(redis_server.url, timeout=LONG)
    yield made
    made.close()


@pytest.fixture
def line(store):
    return Line(store)


def function(do: Any, store: RedisStore, calls: list[int]) -> Any:
    def load(x: int) -> int:
        calls.append(x)
        return len(calls)

    async def aload(x: int) -> int:
        return load(x)

    return cache_aside(store=store, key="f:{x}", ttl=100, tags=("t",))(aload if do.awaited else load)


INVALIDATE = {
    "the key": lambda do, store, f: do(f, "invalidate", 7),
    "all": lambda do, store, f: do(f, "invalidate_all"),
    "a tag": lambda do, store, f: do(store, "invalidate_tags", "t"),
    "a deletion": lambda do, store, f: do(store, "delete", "f:7"),
    "several deletions": lambda do, store, f: do(store, "delete_many", ["f:7", "f:8"]),
}


@pytest.mark.usefixtures("_idle_thread")
@pytest.mark.parametrize("how", INVALIDATE)
def test_what_got_no_answer_is_removed_before_anything_else_is_asked(do, store, line, other, how, caplog):
    calls: list[int] = []
    f = function(do, store, calls)
    assert do(f, "__call__", 7) == 1
    line.cut = True
    assert not INVALIDATE[how](do, store, f)
    assert do(f, "__call__", 7) == 2, "nothing is stored meanwhile, and nothing old is served"
    line.cut = False
    assert do(store, "get", "elsewhere") is None
    assert other.get("f:7") is None
    assert do(f, "__call__", 7) == 3
    assert do(f, "__call__", 7) == 3
    assert store.stats().waiting == 0
    (said,) = [line for line in caplog.messages if "invalidation" in line]
    assert said == (
        "Redis: an invalidation has got no answer (the Redis server has not answered (TimeoutError)): it waits, and is "
        "tried again"
    )


@pytest.mark.usefixtures("_idle_thread")
def test_the_read_that_follows_finds_nothing_old_though_it_is_the_first_that_is_answered(do, store, line):
    calls: list[int] = []
    f = function(do, store, calls)
    do(f, "__call__", 7)
    line.cut = True
    do(f, "invalidate", 7)
    line.cut = False
    assert do(f, "peek", 7) is MISSING
    assert line.sent[-1][0] == "UNLINK"
    do(f, "peek", 7)
    assert "UNLINK" not in line.sent[-1], "once is enough"


@pytest.mark.usefixtures("_idle_thread")
def test_the_newest_wins(do, store, line, other):
    """What is set after the invalidation stays."""
    store.set("k", "old")
    line.cut = True
    assert do(store, "delete", "k") is False
    assert do(store, "delete", "k") is False
    assert store._link.owed is not None
    assert len(store._link.owed) == 1
    line.cut = False
    do(store, "set", "k", "new")
    assert do(store, "get", "k") == "new"
    store._link.settle()
    assert other.get("k") == "new"


@pytest.mark.usefixtures("_idle_thread")
def test_what_is_invalidated_once_more_while_it_is_removed_is_removed_once_more(store, line):
    """The answer to the first attempt says nothing of what was stored between the two."""
    owed = store._link.owed
    line.cut = True
    store.delete("k")
    line.cut = False
    line.before = [lambda: owed.add([store._steps.full("k")])]
    store.get("elsewhere")
    assert len(owed) == 1
    store.get("elsewhere")
    assert len(owed) == 0


@pytest.mark.usefixtures("_idle_thread")
def test_a_load_that_began_before_is_not_stored(do, store, line):
    calls: list[int] = []

    def load(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            line.cut = True
            store.invalidate_tags("t")
            line.cut = False
        return len(calls)

    async def aload(x: int) -> int:
        return load(x)

    f = cache_aside(store=store, key="f:{x}", ttl=100, tags=("t",))(aload if do.awaited else load)
    assert do(f, "__call__", 7) == 1
    assert do(f, "__call__", 7) == 2
    assert do(f, "__call__", 7) == 2


@pytest.mark.usefixtures("_idle_thread")
def test_a_server_that_is_left_alone_is_not_asked_to_remove_either(do, store, line):
    line.cut = True
    for _ in range(3):
        do(store, "get", "k")
    assert store._link.breaker.open
    asked = len(line.sent)
    assert do(store, "delete", "k") is False
    assert len(line.sent) == asked
    assert len(store._link.owed) == 1
    with pytest.raises(StoreError):
        do(store, "increment", "n")
    assert len(line.sent) == asked + 1, "what cannot wait asks all the same"


@pytest.mark.usefixtures("_idle_thread")
def test_what_cannot_be_known_in_advance_is_an_error_as_ever(do, store, line):
    """Which keys match a pattern only the server can say."""
    line.cut = True
    for name, *args in ("delete_pattern", "*"), ("clear",), ("increment", "n"), ("expire", "k", 5):
        with pytest.raises(StoreError):
            do(store, name, *args)
    assert len(store._link.owed) == 0


def test_without_being_asked_for_it_is_an_error(do, redis_server):
    store = RedisStore(redis_server.url, timeout=LONG)
    line = Line(store)
    line.cut = True
    with pytest.raises(StoreError):
        do(store, "delete", "k")
    line.cut = False
    assert store.stats().waiting == 0
    store.close()


@pytest.mark.usefixtures("_idle_thread")
def test_more_than_can_wait_is_an_error_and_loses_nothing(do, store, line, monkeypatch):
    monkeypatch.setattr(owed_module, "MOST", 2)
    line.cut = True
    do(store, "delete_many", ["a", "b"])
    with pytest.raises(StoreError, match="2 keys wait"):
        do(store, "delete", "c")
    do(store, "delete", "a")
    line.cut = False
    assert sorted(key for key, _ in store._link.owed.waiting()) == [b"cache:a", b"cache:b"]


@pytest.mark.usefixtures("_idle_thread")
def test_while_the_server_refuses_to_remove_nothing_is_read(do, store, line, monkeypatch):
    """It would be what was invalidated. A replica is such a server."""
    store.set("k", "old")
    line.cut = True
    do(store, "delete", "k")
    line.cut = False

    def refusing(replies: list[Any]) -> list[Any]:
        return [Refusal("READONLY"), *replies[1:]]

    real = line._wire.call, line._awire.call

    async def awaited(commands: Any, deadline: float) -> Any:
        return refusing(await real[1]([("PING",), *commands[1:]], deadline))

    monkeypatch.setattr(
        line._wire, "call", lambda commands, deadline: refusing(real[0]([("PING",), *commands[1:]], deadline))
    )
    monkeypatch.setattr(line._awire, "call", awaited)
    assert do(store, "get", "k", "default") == "default"
    assert len(store._link.owed) == 1
    monkeypatch.undo()
    assert do(store, "get", "k", "default") == "default"
    assert len(store._link.owed) == 0


# -- the thread --------------------------------------------------------------------------------------------------------


@pytest.fixture
def _restless_thread(monkeypatch):
    monkeypatch.setattr(owed_module, "PAUSE", 0.001)


def comes(condition: Any) -> bool:
    until = time.monotonic() + LONG
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)  # another thread is waited for, and has no gate
    return bool(condition())


@pytest.mark.usefixtures("_restless_thread")
def test_while_nobody_asks_for_anything_a_thread_tries_again_and_ends(store, line, other):
    store.set("k", "old")
    line.cut = True
    store.delete("k")
    thread = store._link.owed._thread
    asked = len(line.sent)
    store._link.breaker.succeeded()
    assert comes(lambda: len(line.sent) > asked + 2)
    line.cut = False
    store._link.breaker.succeeded()
    thread.join(LONG)
    assert not thread.is_alive()
    assert other.get("k") is None
    line.cut = True
    store.delete("k")
    assert store._link.owed._thread is not thread, "the next time there is another one"
    line.cut = False


@pytest.mark.usefixtures("_restless_thread")
def test_the_thread_keeps_no_store_alive(redis_server):
    store = RedisStore(redis_server.url, timeout=LONG, retry_invalidations=True)
    line = Line(store)
    line.cut = True
    store.delete("k")
    thread, gone = store._link.owed._thread, weakref.ref(store._link)
    del store, line
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    assert gone() is None


def test_an_attempt_for_a_store_that_is_gone_is_the_last():
    class Sender:
        def attempt(self) -> None:
            raise AssertionError

    sender = Sender()
    owed = owed_module.Owed(sender.attempt)
    del sender
    assert owed.again() is False


def test_where_no_thread_can_be_started_it_waits_for_what_is_asked_next(store, line, other, monkeypatch):
    def fail(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    store.set("k", "old")
    line.cut = True
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert store.delete("k") is False
    assert store._link.owed._thread is None
    line.cut = False
    store.get("elsewhere")
    assert other.get("k") is None


@pytest.mark.usefixtures("_idle_thread")
def test_closing_tries_once_more(do, store, line, other):
    store.set("k", "old")
    line.cut = True
    do(store, "delete", "k")
    do(store, "close")
    assert len(store._link.owed) == 1
    line.cut = False
    do(store, "close")
    assert len(store._link.owed) == 0
    assert other.get("k") is None


@pytest.mark.usefixtures("_idle_thread", "untraced")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_of_fork_reads_nothing_old_either(store, line):
    store.set("k", "old")
    line.cut = True
    store.delete("k")
    line.cut = False
    child = os.fork()
    if not child:
        os._exit(0 if store._link.owed._thread is None and store.get("k") is None else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.usefixtures("_idle_thread")
def test_a_child_of_fork_has_a_thread_of_its_own(store, line):
    """The parent's is not there, and nobody else would try again."""
    line.cut = True
    store.delete("k")
    of_the_parent = store._link.owed._thread
    store._link.forget()  # as in a child
    store.delete("k")
    assert store._link.owed._thread not in (None, of_the_parent)


# -- where it is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, "yes", None])
def test_it_is_true_or_false(given):
    with pytest.raises(OptionError, match=r"retry_invalidations=.*allowed are True and False"):
        RedisStore(retry_invalidations=given)


def test_a_url_may_ask_for_it(redis_server):
    for text, expected in ("true", True), ("false", False):
        configure(f"{redis_server.url}?retry_invalidations={text}")
        f = cache_aside(namespace="f")(lambda x: x)
        assert (f.store._link.owed is not None) is expected
    with pytest.raises(OptionError, match=r"retry_invalidations='1': allowed are 'true' and 'false'"):
        configure(f"{redis_server.url}?retry_invalidations=1")


@pytest.mark.usefixtures("_idle_thread")
def test_a_writer_goes_on_and_its_invalidation_comes_later(store, line, caplog):
    caplog.set_level(logging.WARNING)
    f = cache_aside(store=store, key="f:{x}", ttl=100)(lambda x: x)
    f(7)

    @invalidates(f, call=lambda x: (x,))
    def write(x: int) -> str:
        return "written"

    line.cut = True
    assert write(7) == "written"
    line.cut = False
    assert f.peek(7) is MISSING
