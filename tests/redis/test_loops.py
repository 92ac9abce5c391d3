"""Event loops, threads and processes come and go: each has connections of its own, and none is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings

import pytest

from memo import RedisStore, cache_aside
from memo.stores.redis import protocol

LONG = 20.0
"""Seconds after which a test that hangs fails."""


@pytest.fixture
def redis_server(redis_servers):
    """A server of the test's own: its connections are counted."""
    return redis_servers()


@pytest.fixture
def store(redis_server):
    made = RedisStore(redis_server.url, timeout=LONG)
    yield made
    made.close()


def comes_to(server, count):
    """Wait until the server has no more connections than that, but for the one that asks: it hears of an end later."""
    client = server.client()
    try:
        return any(len(client.client_list()) - 1 <= count for _ in range(10_000))
    finally:
        server.close_clients()


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


async def used(store, name="k"):
    """Use a store in several tasks; every answer is its question's."""
    await store.aset_many({f"{name}{number}": [name, number] for number in range(5)})
    found = await asyncio.gather(*(store.aget(f"{name}{number}") for number in range(5)))
    assert found == [[name, number] for number in range(5)]


def test_a_hundred_loops_in_a_row_leave_nothing_behind(store, redis_server):
    asyncio.run(used(store))
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(100):
            asyncio.run(used(store, f"n{number}-"))
            assert len(store._link._awire._pools) == 1
        assert descriptors() <= before
    assert comes_to(redis_server, 0)


def test_loops_in_many_threads_have_connections_of_their_own(store, redis_server):
    errors = []
    barrier = threading.Barrier(8)

    def run(name):
        try:
            barrier.wait(LONG)
            for number in range(5):
                asyncio.run(used(store, f"{name}-{number}-"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONG)
        assert not thread.is_alive()
    assert errors == []
    assert comes_to(redis_server, 0)


def closed_abruptly(store, name="k"):
    """Use a store in a loop that is closed without a shutdown of its async generators."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(used(store, name))
    loop.close()


def test_loops_that_are_just_closed_leave_nothing_behind(store, redis_server):
    closed_abruptly(store)
    closed_abruptly(store)
    before = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(30):
            closed_abruptly(store, f"n{number}-")
            assert len(store._link._awire._pools) == 1
        assert descriptors() <= before
        asyncio.run(used(store))
        gc.collect()
    assert comes_to(redis_server, 0)


@pytest.mark.skipif(
    sys.platform != "linux" or sys.implementation.name != "cpython", reason="uvloop is installed nowhere else"
)
def test_twenty_loops_of_uvloop_leave_nothing_behind_either(store, redis_server):
    import uvloop

    before = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(20):
            calls = []

            @cache_aside(store=store, key=f"uv{number}:{{x}}", ttl=100)
            async def load(x: int, calls: list[int] = calls) -> int:
                calls.append(x)
                return x

            async def main(load=load):
                await used(store, f"n{number}-")  # noqa: B023 - it runs at once
                assert await asyncio.gather(*(load(x) for x in (1, 1, 2))) == [1, 1, 2]
                assert await load(2) == 2

            loop = uvloop.new_event_loop()
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            assert sorted(calls) == [1, 2]
            assert len(store._link._awire._pools) == 1
            del loop
            if number == 2:
                before = descriptors()
        assert descriptors() <= before
        store.close()
        gc.collect()
    assert comes_to(redis_server, 0)


def test_closing_a_store_drops_what_closed_loops_have_left(store, redis_server):
    closed_abruptly(store)
    (pool,) = store._link._awire._pools.values()
    assert pool._all
    store.close()
    assert comes_to(redis_server, 0)


async def test_closing_from_another_thread_harms_no_call_of_a_loop(store, redis_server):
    await used(store)
    stop = []

    async def work():
        while not stop:
            await used(store)

    task = asyncio.ensure_future(work())
    for _ in range(20):
        await asyncio.to_thread(store.close)
    stop.append(True)
    await task
    await store.aclose()
    assert await asyncio.to_thread(comes_to, redis_server, 0)


async def test_an_awaited_close_ends_the_connections_of_this_loop(store, redis_server):
    await used(store)
    store.get("k0")
    await store.aclose()
    assert await asyncio.to_thread(comes_to, redis_server, 0)
    await used(store)
    await store.aclose()


async def test_a_loop_of_another_thread_that_ends_meanwhile_is_no_matter(store):
    thread = threading.Thread(target=lambda: asyncio.run(used(store, "other")))
    thread.start()
    await used(store)
    thread.join(LONG)
    await used(store)
    assert len(store._link._awire._pools) <= 2
    store.close()


def test_one_store_serves_threads_and_tasks_at_once(store, redis_server):
    calls = []

    @cache_aside(store=store, key="f:{number}", ttl=100)
    def blocking(number: int) -> int:
        calls.append(number)
        return number

    @cache_aside(store=store, key="g:{number}", ttl=100)
    async def awaited(number: int) -> int:
        calls.append(number)
        return number

    def threads():
        for number in range(30):
            assert blocking(number) == number

    async def tasks():
        for number in range(30):
            assert await awaited(number) == number

    async def main():
        await asyncio.gather(*(asyncio.to_thread(threads) for _ in range(3)), *(tasks() for _ in range(20)))

    asyncio.run(main())
    assert sorted(calls) == sorted(2 * [*range(30)]), "each function loads each key once"
    store.close()
    assert comes_to(redis_server, 0)


def in_threads(count, work):
    """Do work in several threads at once."""
    errors = []
    barrier = threading.Barrier(count)

    def run():
        try:
            barrier.wait(LONG)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONG)
        assert not thread.is_alive()
    assert errors == []


@pytest.mark.parametrize("who", ["threads", "tasks of a loop", "tasks of several loops"])
def test_whoever_asks_at_once_a_key_is_loaded_once(store, redis_server, who):
    calls = []

    @cache_aside(store=store, key="f:{number}", ttl=100)
    def blocking(number: int) -> int:
        calls.append(number)
        return number

    @cache_aside(store=store, key="g:{number}", ttl=100)
    async def awaited(number: int) -> int:
        calls.append(number)
        return number

    def work():
        assert [blocking(number) for number in range(30)] == [*range(30)]

    async def task():
        assert [await awaited(number) for number in range(30)] == [*range(30)]

    async def tasks():
        await asyncio.gather(*(task() for _ in range(10)))

    for _ in range(4):
        if who == "threads":
            in_threads(8, work)
        elif who == "tasks of a loop":
            asyncio.run(tasks())
        else:
            in_threads(3, lambda: asyncio.run(tasks()))
        assert sorted(calls) == [*range(30)]
        calls.clear()
        store.clear()


class Gates:
    """Stops round trips of some callers, until a test lets them go on.

    Args:
        store: whose round trips these are.
        stops: by the name of a thread, which may have a loop: the number of the round trip, and whether it is stopped
            "before" it is sent or "after" it was answered.
    """

    def __init__(self, store, stops):
        self.stops = stops
        self.counts = dict.fromkeys(stops, 0)
        self.reached = {name: threading.Event() for name in stops}
        self.open = {name: threading.Event() for name in stops}
        self.link = store._link
        self.call, self.acall = self.link.call, self.link.acall
        self.link.call, self.link.acall = self._call, self._acall

    def _stop(self, name, when):
        """Return the gate to wait for, if there is one now."""
        if name not in self.stops:
            return None
        self.counts[name] += when == "before"
        if self.stops[name] != (self.counts[name], when):
            return None
        self.reached[name].set()
        return self.open[name]

    def _call(self, *args):
        name = threading.current_thread().name
        for when in ("before", "after"):
            gate = self._stop(name, when)
            if gate:
                assert gate.wait(LONG)
            if when == "before":
                replies = self.call(*args)
        return replies

    async def _acall(self, *args):
        name = threading.current_thread().name  # each loop of these tests has a thread of its own
        for when in ("before", "after"):
            gate = self._stop(name, when)
            if gate:
                assert await asyncio.to_thread(gate.wait, LONG)
            if when == "before":
                replies = await self.acall(*args)
        return replies


class Callers:
    """Calls a function in a thread, or in a loop of a thread's own, of a name; and says what came of it."""

    def __init__(self, store, awaits, outcomes):
        self.calls, self.awaits, self.results, self.threads = [], awaits, {}, []
        outcomes = iter(outcomes)

        def load(number: int) -> int:
            self.calls.append(number)
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def aload(number: int) -> int:
            return load(number)

        self.f = cache_aside(store=store, key="f:{number}", ttl=100)(aload if awaits else load)

    def begin(self, name):
        def run():
            try:
                self.results[name] = asyncio.run(main()) if self.awaits else self.f(1)
            except Exception as error:
                self.results[name] = error

        async def main():
            return await self.f(1)

        thread = threading.Thread(target=run, name=name)
        self.threads.append(thread)
        thread.start()
        return thread

    def end(self):
        for thread in self.threads:
            thread.join(LONG)
            assert not thread.is_alive()


both = pytest.mark.parametrize("awaits", [False, True], ids=["blocking", "awaited"])


@both
def test_who_hears_late_of_its_lease_does_not_load_again_what_another_has_loaded_with_it(store, awaits):
    """1. A takes the lease, its answer is slow   2. B sees it and loads with it   3. B is gone   4. A is answered."""
    gates = Gates(store, {"A": (1, "after")})
    callers = Callers(store, awaits, [5, 6])
    callers.begin("A")
    assert gates.reached["A"].wait(LONG)
    callers.begin("B").join(LONG)
    assert callers.results == {"B": 5}
    gates.open["A"].set()
    callers.end()
    assert callers.results == {"A": 5, "B": 5}
    assert callers.calls == [1]


@both
def test_if_the_other_has_failed_it_loads_and_gives_its_lease_back_if_it_fails_too(store, redis_server, awaits):
    gates = Gates(store, {"A": (1, "after")})
    callers = Callers(store, awaits, [LookupError("B"), LookupError("A")])
    callers.begin("A")
    assert gates.reached["A"].wait(LONG)
    callers.begin("B").join(LONG)
    client = redis_server.client()
    assert client.get("cache:f:1").startswith(b"#memo1-"), "it is not B's to be given back"
    gates.open["A"].set()
    callers.end()
    assert {name: str(error) for name, error in callers.results.items()} == {"A": "A", "B": "B"}
    assert client.get("cache:f:1") is None


@both
@pytest.mark.parametrize("fails", [False, True])
def test_who_took_the_lease_joins_a_flight_that_has_not_begun(store, redis_server, awaits, fails):
    """1. A takes the lease, its answer is slow   2. B sees it and is about to look again   3. A is answered."""
    gates = Gates(store, {"A": (1, "after"), "B": (2, "before")})
    callers = Callers(store, awaits, [LookupError("once") if fails else 5, 6])
    set_another = callers.f.set(0, 2)  # now the function's stamp is there: a look is one round trip
    if awaits:
        asyncio.run(set_another)
    callers.begin("A")
    assert gates.reached["A"].wait(LONG)
    callers.begin("B")
    assert gates.reached["B"].wait(LONG)
    gates.open["A"].set()
    waited = threading.Event()
    for _ in range(10_000):
        if callers.f.stats().waits:
            break
        waited.wait(0.001)
    gates.open["B"].set()
    callers.end()
    assert callers.calls == [1]
    assert [str(callers.results[name]) for name in "AB"] == 2 * ["once" if fails else "5"]
    assert (redis_server.client().get("cache:f:1") is None) is fails, "what is left over was given back"


# -- processes ---------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def children(count, work):
    """Fork children that do some work; return their exit codes: 0 where it did not fail."""
    idents = []
    for number in range(count):
        ident = os.fork()
        if not ident:
            code = 1
            try:
                signal.alarm(60)
                work(number)
                code = 0
            except BaseException as error:
                print(f"child {number}: {error!r}", file=sys.stderr)
            finally:
                os._exit(code)
        idents.append(ident)
    return idents


def ended(idents):
    return [os.waitstatus_to_exitcode(os.waitpid(ident, 0)[1]) for ident in idents]


def read_and_write(store, name):
    for number in range(300):
        key = f"{name}:{number % 7}"
        store.set(key, [name, number])
        assert store.get(key) == [name, number]


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_no_child_gives_out_an_id_that_its_parent_gives_out(tmp_path):
    """Two loads with one lease would be one to the server: what was invalidated for one, the other could fill."""
    protocol.new_id()  # now some are made that nobody has yet

    def note(number):
        (tmp_path / str(number)).write_bytes(b"".join(protocol.new_id() for _ in range(200)))

    assert ended(children(2, note)) == [0, 0]
    note("parent")
    given = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    assert len({given[at : at + 12] for at in range(0, len(given), 12)}) == 600


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_children_and_parent_use_a_store_at_once(store, redis_server, untraced):
    store.set("parent", 1)
    ours = {connection for connection, _ in store._link._wire._idle}
    idents = children(4, lambda number: read_and_write(store, f"child{number}"))
    read_and_write(store, "parent")
    assert ended(idents) == [0, 0, 0, 0]
    # What the children have closed was their side only.
    assert ours & {connection for connection, _ in store._link._wire._idle}
    store.close()
    assert comes_to(redis_server, 0)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_under_load_neither_waits_nor_shares(store, untraced):
    stop = []
    errors = []

    def load(name):
        try:
            while not stop:
                read_and_write(store, name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(f"thread{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            assert ended(children(1, lambda number: read_and_write(store, f"child{os.getpid()}"))) == [0]
    finally:
        stop.append(True)
        for thread in threads:
            thread.join(LONG)
    assert errors == []


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_has_event_loops_of_its_own_and_the_parents_goes_on(store, redis_server, untraced):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(used(store))
    (pool,) = store._link._awire._pools.values()
    ours = set(pool._idle)
    assert ended(children(2, lambda number: asyncio.run(used(store, f"child{number}")))) == [0, 0]
    loop.run_until_complete(used(store))
    assert set(pool._idle) == ours
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert comes_to(redis_server, 0)


def test_a_store_that_was_refused_keeps_no_child_of_fork_from_forgetting_the_others(redis_server):
    from memo import OptionError, RedisStore
    from memo.stores.redis import store as module

    refused = RedisStore.__new__(RedisStore)
    with pytest.raises(OptionError):
        refused.__init__(redis_server.url, prefix="")
    module._in_child()
