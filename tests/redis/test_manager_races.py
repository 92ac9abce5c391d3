"""Managers under threads, tasks, cancellation and forks: one load for concurrent misses, and no stale fill."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest
import redis

from memo import RecursiveLoadError, desks
from memo.functions import get_cached_data, invalidate_cache, invalidate_pattern
from memo.managers import AsyncCacheAsideManager, CacheAsideManager, CacheConfig, InstrumentedCacheManager

PATIENCE = 20.0
MANY = 1_000


@pytest.fixture
def spawn():
    """Calls a function in a thread of its own."""
    started = []

    def start(function, *args):
        future = Future()
        context = contextvars.copy_context()

        def body():
            try:
                future.set_result(context.run(function, *args))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=body, daemon=True)
        started.append(thread)
        thread.start()
        return future

    yield start
    deadline = time.monotonic() + PATIENCE  # for all of them
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))


@pytest.fixture(autouse=True)
def _no_polling(monkeypatch):
    """Who waits for a SET is woken, and does not find out by looking again and again."""
    monkeypatch.setattr(desks, "POLL", 10 * PATIENCE)


def reached(state):
    """Wait for a state that another thread brings about."""
    deadline, pause = time.monotonic() + PATIENCE, threading.Event()
    while not state():
        assert time.monotonic() < deadline, "the awaited state was not reached"
        pause.wait(0.001)


class Gate:
    """Where a thread says that it has arrived, and waits until it is let go."""

    def __init__(self):
        self.arrived, self.let = threading.Event(), threading.Event()

    def __call__(self):
        self.arrived.set()
        assert self.let.wait(PATIENCE)


class Client:
    """A client over a dict, which notes what is done, and runs what a test has put before or after a command."""

    def __init__(self):
        self.data = {}
        self.log = []
        self.before, self.after = {}, {}

    def _do(self, name, key, action):
        self.before.pop(name, lambda: None)()
        self.log.append(f"{name} {key}")
        answer = action()
        self.after.pop(name, lambda: None)()
        return answer

    def get(self, key):
        return self._do("get", key, lambda: self.data.get(key))

    def set(self, key, payload, ex=None, px=None):
        return self._do("set", key, lambda: self.data.__setitem__(key, payload))

    def delete(self, *keys):
        return self._do("delete", " ".join(keys), lambda: sum(self.data.pop(key, None) is not None for key in keys))

    def scan_iter(self, match, count):
        return iter(list(self.data))


class AsyncClient(Client):
    """The same, awaited."""

    async def _do(self, name, key, action):
        await self.before.pop(name, lambda: asyncio.sleep(0))()
        self.log.append(f"{name} {key}")
        answer = action()
        await self.after.pop(name, lambda: asyncio.sleep(0))()
        return answer


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def manager(client):
    return CacheAsideManager(client, CacheConfig())


def never(key):
    raise AssertionError("loaded again")


async def anever(key):
    raise AssertionError("loaded again")


# -- one load ----------------------------------------------------------------------------------------------------------


def test_a_thousand_threads_make_one_load(manager, client, spawn):
    start, loads, gate = threading.Barrier(MANY), [], Gate()

    def source(key):
        loads.append(key)
        gate()
        return {"loaded": len(loads)}

    def call():
        start.wait(PATIENCE)
        return manager.get("k", source)

    calls = [spawn(call) for _ in range(MANY)]
    reached(lambda: client.log.count("get cache:k") == MANY)
    gate.let.set()
    assert {str(each.result(PATIENCE)) for each in calls} == {"{'loaded': 1}"}
    assert (len(loads), client.log.count("set cache:k")) == (1, 1)
    assert (manager.hits, manager.misses) == (0, MANY)


@pytest.mark.parametrize("value", [{"a": 1}, object()], ids=["written", "not written"])
def test_a_thousand_threads_make_one_load_however_soon_it_is_over(manager, client, spawn, value):
    loads, together = [], threading.Barrier(MANY)
    client.get = lambda key: together.wait(PATIENCE) and None

    def source(key):
        loads.append(key)
        return value

    calls = [spawn(manager.get, "k", source) for _ in range(MANY)]
    assert all(each.result(PATIENCE) is value for each in calls)
    assert len(loads) == 1


async def test_a_thousand_tasks_make_one_load():
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    loads = []

    async def source(key):
        loads.append(key)
        while client.log.count("get cache:k") < MANY:
            await asyncio.sleep(0)
        return 7

    assert await asyncio.gather(*[manager.get("k", source) for _ in range(MANY)]) == [7] * MANY
    assert (len(loads), client.log.count("set cache:k")) == (1, 1)
    assert (manager.hits, manager.misses) == (0, MANY)
    assert await manager.get("k", anever) == 7


def test_a_get_that_found_nothing_before_another_call_filled_the_key_does_not_load_again(manager, client, spawn):
    gate = Gate()
    client.after["get"] = gate  # 1. A's GET finds nothing
    late = spawn(manager.get, "k", never)
    assert gate.arrived.wait(PATIENCE)
    assert manager.get("k", len) == 1  # 2. B's load fills the key, and its flight is over
    gate.let.set()
    assert late.result(PATIENCE) == 1  # 3. A finds no flight
    assert client.log == ["get cache:k", "get cache:k", "set cache:k"]
    assert (manager.hits, manager.misses) == (0, 2)


async def test_a_get_that_found_nothing_before_another_task_filled_the_key_does_not_load_again():
    client, gate = AsyncClient(), asyncio.Event()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    client.after["get"] = gate.wait
    late = asyncio.create_task(manager.get("k", anever))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    async def source(key):
        return 1

    assert await manager.get("k", source) == 1
    gate.set()
    assert await late == 1


def test_a_value_that_landed_is_not_for_calls_that_came_later(manager, client, spawn):
    """Whose GET finds nothing, since it has expired: though an older call has kept the seat warm all the while."""
    gate = Gate()
    client.after["get"] = gate
    older = spawn(manager.get, "k", never)
    assert gate.arrived.wait(PATIENCE)
    assert manager.get("k", lambda key: "old") == "old"
    client.data.clear()  # its ttl is over
    assert manager.get("k", lambda key: "new") == "new"
    gate.let.set()
    assert older.result(PATIENCE) == "new"


def test_a_value_that_was_invalidated_is_not_for_calls_that_were_there_before(manager, client, spawn):
    gate = Gate()
    client.after["get"] = gate
    older = spawn(manager.get, "k", lambda key: "new")
    assert gate.arrived.wait(PATIENCE)
    assert manager.get("k", lambda key: "old") == "old"
    assert manager.invalidate("k")
    gate.let.set()
    assert older.result(PATIENCE) == "new"


def test_all_that_use_one_client_share_their_loads(client, spawn):
    managers = [CacheAsideManager(client, CacheConfig()), InstrumentedCacheManager(client, CacheConfig(ttl=5))]
    gate = Gate()
    leader = spawn(managers[0].get, "k", lambda key: gate() or 1)
    assert gate.arrived.wait(PATIENCE)
    followers = [spawn(managers[1].get, "k", never), spawn(get_cached_data, client, "k", never)]
    reached(lambda: client.log.count("get cache:k") == 3)
    gate.let.set()
    assert [each.result(PATIENCE) for each in [leader, *followers]] == [1, 1, 1]
    assert managers[1].metrics.misses == 1
    assert managers[1].metrics.fetches == 0


def test_two_clients_share_nothing(client, manager, spawn):
    gate = Gate()
    leader = spawn(manager.get, "k", lambda key: gate() or 1)
    assert gate.arrived.wait(PATIENCE)
    assert CacheAsideManager(Client(), CacheConfig()).get("k", lambda key: 2) == 2
    gate.let.set()
    assert leader.result(PATIENCE) == 1


def test_followers_get_the_leaders_error(manager, client, spawn):
    gate, error = Gate(), LookupError("nobody")

    def source(key):
        gate()
        raise error

    calls = [spawn(manager.get, "k", source) for _ in range(5)]
    reached(lambda: client.log.count("get cache:k") == 5)
    reached(lambda: sum(len(flight.wakers) for flight in desks.desk_of(client).flights.values()) == 4)
    gate.let.set()
    assert {each.exception(PATIENCE) for each in calls} == {error}
    assert manager.get("k", len) == 1


def test_a_leader_that_is_interrupted_leaves_the_load_to_another(manager, client, spawn):
    gate = Gate()

    def source(key):
        gate()
        raise SystemExit

    leader = spawn(manager.get, "k", source)
    assert gate.arrived.wait(PATIENCE)
    follower = spawn(manager.get, "k", len)
    reached(lambda: any(flight.wakers for flight in desks.desk_of(client).flights.values()))
    gate.let.set()
    assert isinstance(leader.exception(PATIENCE), SystemExit)
    assert follower.result(PATIENCE) == 1


def test_a_source_that_asks_for_its_own_key_is_an_error_and_no_deadlock(manager):
    with pytest.raises(RecursiveLoadError):
        manager.get("k", lambda key: manager.get("k", len))
    assert manager.get("a", lambda key: manager.get("b", len)) == 1


async def test_a_task_whose_source_asks_for_its_own_key_is_an_error_and_no_deadlock():
    manager = AsyncCacheAsideManager(AsyncClient(), CacheConfig())

    async def source(key):
        return await manager.get("k", source)

    with pytest.raises(RecursiveLoadError):
        await manager.get("k", source)


async def test_a_caller_that_is_cancelled_leaves_the_load_to_the_others():
    manager = AsyncCacheAsideManager(AsyncClient(), CacheConfig())
    begun, go = asyncio.Event(), asyncio.Event()

    async def source(key):
        begun.set()
        await go.wait()
        return 1

    leader = asyncio.create_task(manager.get("k", source))
    await begun.wait()
    follower = asyncio.create_task(manager.get("k", anever))
    await asyncio.sleep(0.0)
    while manager.misses < 2:
        await asyncio.sleep(0)
    leader.cancel()
    go.set()
    assert await follower == 1
    with pytest.raises(asyncio.CancelledError):
        await leader


# -- no stale fill -----------------------------------------------------------------------------------------------------


def test_a_load_that_began_before_an_invalidation_fills_nothing(manager, client, spawn):
    for invalidate in (
        lambda: manager.invalidate("k"),
        lambda: invalidate_cache(client, "k"),
        lambda: invalidate_pattern(client, "cache:*"),
    ):
        gate = Gate()
        load = spawn(manager.get, "k", lambda key, gate=gate: gate() or "old")
        assert gate.arrived.wait(PATIENCE)
        invalidate()
        gate.let.set()
        assert load.result(PATIENCE) == "old"
    assert not [line for line in client.log if line.startswith("set")]


def test_a_call_after_an_invalidation_joins_no_load_from_before(manager, client, spawn):
    gate = Gate()
    load = spawn(manager.get, "k", lambda key: gate() or "old")
    assert gate.arrived.wait(PATIENCE)
    manager.invalidate("k")
    assert manager.get("k", lambda key: "new") == "new"
    gate.let.set()
    assert load.result(PATIENCE) == "old"
    assert manager.get("k", never) == "new"


async def test_a_task_whose_load_began_before_an_invalidation_fills_nothing_and_is_joined_by_nobody():
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    begun, go = asyncio.Event(), asyncio.Event()

    async def old(key):
        begun.set()
        await go.wait()
        return "old"

    async def new(key):
        return "new"

    load = asyncio.create_task(manager.get("k", old))
    await begun.wait()
    assert await manager.invalidate("k") is False
    assert await manager.get("k", new) == "new"
    go.set()
    assert await load == "old"
    assert await manager.get("k", anever) == "new"


@pytest.mark.parametrize("pattern", [False, True])
def test_an_invalidation_waits_for_a_set_that_is_on_its_way(manager, client, spawn, pattern):
    gate = Gate()
    client.before["set"] = gate
    load = spawn(manager.get, "k", lambda key: "old")
    assert gate.arrived.wait(PATIENCE)
    remove = spawn(invalidate_pattern, client, "*") if pattern else spawn(manager.invalidate, "k")
    seat = manager._desk.seats["cache:k"]
    reached(lambda: seat.lease is None)
    # What comes now joins no load from before, though that has not ended.
    assert manager.get("k", lambda key: "newer") == "newer"
    gate.let.set()
    assert load.result(PATIENCE) == "old"
    assert remove.result(PATIENCE) == 1
    assert [line for line in client.log if not line.startswith("get")] == ["set cache:k", "delete cache:k"]


def test_what_was_invalidated_on_its_way_is_not_for_calls_that_came_after_that(manager, client, spawn):
    sending, reading = Gate(), Gate()
    client.before["set"] = sending
    load = spawn(manager.get, "k", lambda key: "old")
    assert sending.arrived.wait(PATIENCE)
    remove = spawn(manager.invalidate, "k")
    seat = manager._desk.seats["cache:k"]
    reached(lambda: seat.lease is None)
    client.after["get"] = reading
    later = spawn(manager.get, "k", lambda key: "new")  # finds nothing yet
    assert reading.arrived.wait(PATIENCE)
    sending.let.set()
    assert (load.result(PATIENCE), remove.result(PATIENCE)) == ("old", True)
    reading.let.set()
    assert later.result(PATIENCE) == "new"


def test_an_invalidation_does_not_wait_for_the_set_of_another_key(manager, client, spawn):
    gate = Gate()
    client.before["set"] = gate
    load = spawn(manager.get, "k", len)
    assert gate.arrived.wait(PATIENCE)
    assert manager.invalidate("other") is False
    gate.let.set()
    assert load.result(PATIENCE) == 1


def test_an_invalidation_within_the_threads_own_set_is_made_up_for(manager, client):
    """A signal handler or a finalizer may come in there, and cannot wait."""
    client.before["set"] = lambda: client.log.append(f"invalidated: {manager.invalidate('k')}")
    assert manager.get("k", lambda key: "old") == "old"
    assert client.data == {}
    assert client.log == ["get cache:k", "delete cache:k", "invalidated: False", "set cache:k", "delete cache:k"]


def test_a_set_that_fails_is_over_too(manager, client):
    def fail():
        raise redis.TimeoutError

    client.before["set"] = fail
    assert manager.get("k", len) == 1
    assert manager.invalidate("k") is False


async def test_a_set_that_has_begun_goes_on_when_its_load_is_cancelled_and_an_invalidation_waits_for_it():
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    sending, go = asyncio.Event(), asyncio.Event()

    async def gate():
        sending.set()
        await go.wait()

    async def source(key):
        return "old"

    client.before["set"] = gate
    call = asyncio.create_task(manager.get("k", source))
    await sending.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    remove = asyncio.create_task(manager.invalidate("k"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert client.log == ["get cache:k"]
    go.set()
    assert await remove is True
    assert client.log == ["get cache:k", "set cache:k", "delete cache:k"]


async def test_a_set_that_fails_after_its_load_was_cancelled_troubles_nobody(caplog):
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    sending, go = asyncio.Event(), asyncio.Event()
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))

    async def gate():
        sending.set()
        await go.wait()
        raise redis.TimeoutError

    async def source(key):
        return "old"

    client.before["set"] = gate
    call = asyncio.create_task(manager.get("k", source))
    await sending.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go.set()
    assert await manager.invalidate("k") is False
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


def test_an_invalidation_does_not_wait_for_a_set_of_an_event_loop_that_is_gone():
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())

    async def source(key):
        return "old"

    async def gate():
        sending.set()
        await asyncio.Event().wait()

    client.before["set"] = gate
    loop = asyncio.new_event_loop()
    sending = asyncio.Event()
    call = loop.create_task(manager.get("k", source))
    loop.run_until_complete(sending.wait())
    assert manager._desk.seats["cache:k"].filling is not None
    assert asyncio.run(manager.invalidate("k")) is False
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(call, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_an_invalidation_in_another_event_loop_waits_for_a_set_too(spawn):
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    gate = Gate()

    async def held():
        await asyncio.to_thread(gate)

    async def source(key):
        return "old"

    client.before["set"] = held
    load = spawn(lambda: asyncio.run(manager.get("k", source)))
    assert gate.arrived.wait(PATIENCE)
    seat = manager._desk.seats["cache:k"]
    remove = spawn(lambda: asyncio.run(manager.invalidate("k")))
    reached(lambda: seat.lease is None)
    gate.let.set()
    assert load.result(PATIENCE) == "old"
    assert remove.result(PATIENCE) is True
    assert client.log == ["get cache:k", "set cache:k", "delete cache:k"]


async def test_a_task_for_a_set_that_cannot_be_made_is_a_set_that_failed(monkeypatch, caplog):
    client = AsyncClient()
    manager = AsyncCacheAsideManager(client, CacheConfig())
    loop = asyncio.get_running_loop()
    made = loop.create_task

    def create_task(coroutine, **options):
        if coroutine.__qualname__.endswith("_aset"):
            raise MemoryError
        return made(coroutine, **options)

    async def source(key):
        return 1

    monkeypatch.setattr(loop, "create_task", create_task)
    assert await manager.get("k", source) == 1
    assert "write (MemoryError)" in caplog.text
    assert await manager.invalidate("k") is False


@pytest.mark.parametrize("rounds", [20_000 if os.environ.get("MEMO_PROFILE") == "nightly" else 400])
def test_readers_beside_a_writer_never_read_what_it_has_invalidated(redis_server, spawn, rounds):
    client = redis_server.client()
    manager = CacheAsideManager(client, CacheConfig())
    version, done, stale = 0, threading.Event(), []

    def source(key):
        return version

    def read():
        while not done.is_set():
            least = seen
            got = manager.get("k", source)
            if got < least:
                stale.append((got, least))

    seen = 0
    readers = [spawn(read) for _ in range(4)]
    try:
        for _ in range(rounds):
            version += 1
            manager.invalidate("k")
            seen = version  # from now on nobody who begins may read less
            got = manager.get("k", source)
            if got < version:
                stale.append((got, version))
    finally:
        done.set()
    for reader in readers:
        reader.result(PATIENCE)
    assert stale == []


async def test_tasks_beside_a_writer_never_read_what_it_has_invalidated(redis_server):
    version, done, stale, seen = 0, False, [], 0

    async def source(key):
        found = version
        await asyncio.sleep(0)
        return found

    async def read():
        while not done:
            least = seen
            got = await manager.get("k", source)
            if got < least:
                stale.append((got, least))

    async with redis_server.async_client() as client:
        manager = AsyncCacheAsideManager(client, CacheConfig())
        readers = [asyncio.create_task(read()) for _ in range(4)]
        for _ in range(300):
            version += 1
            await manager.invalidate("k")
            seen = version
            if await manager.get("k", source) < version:
                stale.append(version)
        done = True
        await asyncio.gather(*readers)
    assert stale == []


# -- what is left behind -----------------------------------------------------------------------------------------------


def test_nothing_is_left_of_calls_that_are_over(manager, client):
    desk = desks.desk_of(client)
    manager.get("a", len)
    manager.get("a", never)
    manager.get("b", lambda key: None)
    with pytest.raises(ZeroDivisionError):
        manager.get("c", lambda key: 1 / 0)
    manager.invalidate("a")
    assert (desk.seats, desk.flights) == ({}, {})


def test_a_client_that_is_gone_leaves_nothing():
    client = Client()
    manager = CacheAsideManager(client, CacheConfig())
    manager.get("k", len)
    ident = id(client)
    assert ident in desks._desks
    del client, manager
    gc.collect()
    assert ident not in desks._desks


def test_what_was_under_way_in_a_parent_fills_nothing_in_its_child(manager, client):
    """What a fork does, without one."""
    assert manager.get("k", lambda key: desks._child() or 1) == 1
    assert client.data == {}
    assert manager.get("k", len) == 1
    assert client.data == {"cache:k": "1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_of_fork_waits_for_nothing_of_its_parents(manager, client, spawn, untraced):
    gate = Gate()
    client.before["set"] = gate
    load = spawn(manager.get, "k", lambda key: "parent")
    assert gate.arrived.wait(PATIENCE)

    def fork_within(key):
        """What the child's own load had begun before is not stored."""
        nonlocal child
        child = os.fork()
        return "before" if child == 0 else "parent"

    child = None
    value = manager.get("within", fork_within)
    if child == 0:
        code = 1
        try:
            manager.invalidate("k")  # the parent's SET is none of its own
            loaded = manager.get("k", lambda key: "child")
            code = 0 if (value, loaded) == ("before", "child") and "cache:within" not in client.data else 2
        finally:
            os._exit(code)
    safety = threading.Timer(PATIENCE, os.kill, (child, signal.SIGKILL))
    safety.start()
    _, status = os.waitpid(child, 0)
    safety.cancel()
    assert status == 0
    gate.let.set()
    assert (load.result(PATIENCE), value) == ("parent", "parent")
    assert "cache:within" in client.data
