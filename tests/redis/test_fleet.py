"""single_flight="fleet": one load for all processes on a server, and nobody waits for longer than he may."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import memo
from memo import (
    MISSING,
    MemoryStore,
    NullStore,
    OptionError,
    PickleFileStore,
    RedisStore,
    StoreError,
    aside,
    cache_aside,
)
from memo.aside import CALL, LONGEST_LEAD, LONGEST_PAUSE, LOOK, TAKE, Fill, Pause, Plan, Release, Wait
from memo.entry import UNREAD, Reading
from memo.flight import Failure, Flight, Found, Outcome
from memo.policy import Policy
from memo.stats import FunctionCounters
from memo.stores.redis import protocol

WAIT = 30.0


@pytest.fixture
def make(redis_server):
    made = []

    def make(**options):
        made.append(RedisStore(redis_server.url, **{"timeout": 20, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def launch():
    started = []

    def launch(script, *args):
        environment = {**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, "-W", "error", "-c", script, *map(str, args)]
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


class Process:
    """A store and a function of its own: what another process would have."""

    def __init__(self, store: RedisStore, load: Callable[[Any], Any], **options: Any) -> None:
        self.store = store
        options = {"ttl": 60, "namespace": "fleet", "single_flight": "fleet", **options}
        self.f: Any = cache_aside(store=store, **options)(load)


class Gate:
    """A load that says that it runs, and goes on when it may."""

    def __init__(self, answer: Any = "loaded") -> None:
        self.answer = answer
        self.entered, self.open = threading.Event(), threading.Event()
        self.loads = 0

    def __call__(self, x):
        self.loads += 1
        self.entered.set()
        assert self.open.wait(WAIT)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Threads:
    """Calls in threads of their own."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(16)

    def __call__(self, function: Any, *args: Any) -> Future[Any]:
        return self.pool.submit(function, *args)


@pytest.fixture
def begin():
    threads = Threads()
    yield threads
    threads.pool.shutdown()


def paused(process: Process) -> threading.Event:
    """An event that is set when a call of that process waits for another process."""
    waits = threading.Event()
    tick = process.f._self_memoized.counters.waits.tick

    def seen():
        waits.set()
        return tick()

    process.f._self_memoized.counters.waits.tick = seen
    return waits


# -- one load ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trip", [1, 2])
def test_who_never_heard_that_it_had_a_lease_does_not_wait_for_it_later(make, monkeypatch, trip):
    """1. a placeholder is put   2. the answer, or that to the next question, comes too late   3. it is called again."""
    one = Process(make(), lambda x: x, wait_timeout=1)
    link, trips = one.store._link, []
    if trip == 1:
        one.f(0)  # now the function's stamp is there: a look is one round trip
    call = link.call

    def lose(*args):
        replies = call(*args)
        trips.append(args)
        if len(trips) == trip:
            raise StoreError("the server has not answered in time")
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(link, "call", lose)
        assert one.f(1) == 1
    assert len(trips) == trip
    assert one.f.peek(1) is MISSING
    waits = paused(one)
    assert one.f(1) == 1
    assert not waits.is_set()
    assert one.f.peek(1) == 1


@pytest.mark.parametrize("take", [None, 30.0])
def test_of_a_look_whose_answer_never_came_the_placeholder_is_remembered_if_it_puts_one(make, take):
    store = make()
    steps = store._steps.look("k", "f", (), b'["f"]', take, False)
    commands = steps.send(None)
    steps.close()
    assert list(store._steps._lost) == [command[2][7:] for command in commands if command[0] == "SET"]
    assert len(store._steps._lost) == (take is not None)


FLEET = """
import asyncio, sys, threading
from memo import RedisStore, cache_aside
import redis
server = redis.Redis.from_url(sys.argv[1])
store = RedisStore(sys.argv[1], timeout=20)
def load(x):
    server.incr("loads")
    server.blpop("go", timeout=30)
    server.rpush("go", 1)
    return x * 2
@cache_aside(store=store, namespace="fleet", single_flight="fleet", ttl=60)
def f(x):
    return load(x)
@cache_aside(store=store, namespace="fleet", single_flight="fleet", ttl=60)
async def af(x):
    return await asyncio.to_thread(load, x)
print("ready", flush=True)
sys.stdin.readline()
results = []
async def tasks():
    results.extend(await asyncio.gather(*[af(21) for _ in range(3)]))
    await store.aclose()
threads = [threading.Thread(target=lambda: results.append(f(21))) for _ in range(3)]
threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
for each in threads:
    each.start()
for each in threads:
    each.join()
print(results, f.stats().loads + af.stats().loads, flush=True)
store.close()
server.close()
"""


def test_three_processes_with_threads_and_tasks_load_once(redis_server, launch):
    racers = [launch(FLEET, redis_server.url) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    client = redis_server.client(socket_timeout=60)
    while not client.get("loads"):
        pass
    client.rpush("go", 1)
    answers = [racer.communicate(timeout=60)[0] for racer in racers]
    assert all(answer.startswith(str([42] * 6)) for answer in answers), answers
    assert client.get("loads") == b"1"
    assert sum(int(answer.split()[-1]) for answer in answers) == 1


def test_what_was_invalidated_by_a_tag_is_loaded_once(make, begin):
    """The dead value still stands there: the first who claims it loads, and the others wait."""
    gate = Gate()
    one, two = (Process(make(), gate, tags=("t",)) for _ in range(2))
    gate.open.set()
    one.f(1)
    gate.entered.clear()
    gate.open.clear()
    two.store.invalidate_tags("t")
    waits = paused(two)
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    second = begin(two.f, 1)
    assert waits.wait(WAIT)
    gate.open.set()
    assert first.result(WAIT) == second.result(WAIT) == "loaded"
    assert gate.loads == 2
    assert two.f.stats().waits == 1


@pytest.mark.parametrize("stands", ["plain", "list", "another function's", "damaged"])
def test_so_is_what_stands_in_the_place_of_a_value(redis_server, make, begin, stands):
    gate = Gate()
    one, two = (Process(make(), gate, key="k:{x}") for _ in range(2))
    client, key = redis_server.client(), "cache:k:1"
    if stands == "plain":
        one.store.set("k:1", [1])
    elif stands == "list":
        client.rpush(key, 1)
    elif stands == "damaged":
        client.set(key, b"#memo1 no header at all")
    else:
        cache_aside(store=one.store, namespace="another", key="k:{x}", ttl=60)(lambda x: 5)(1)
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    waits = paused(two)
    second = begin(two.f, 1)
    assert waits.wait(WAIT)
    gate.open.set()
    assert first.result(WAIT) == second.result(WAIT) == "loaded"
    assert gate.loads == 1
    assert two.f(1) == "loaded"


def test_an_owner_that_raises_lets_the_next_one_load_at_once(redis_server, make, begin):
    broken, gate = Gate(KeyError("no")), Gate()
    one, two = Process(make(), broken), Process(make(), gate)
    first = begin(one.f, 1)
    assert broken.entered.wait(WAIT)
    waits = paused(two)
    second = begin(two.f, 1)
    assert waits.wait(WAIT)
    broken.open.set()
    gate.open.set()
    with pytest.raises(KeyError):
        first.result(WAIT)
    assert second.result(WAIT) == "loaded"
    assert redis_server.client().get("cache:" + one.f.key_for(1)).endswith(b'"loaded"')


def test_so_does_one_whose_result_is_not_kept(redis_server, make, begin):
    gate, other = Gate(None), Gate()
    one, two = Process(make(), gate), Process(make(), other)
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    waits = paused(two)
    second = begin(two.f, 1)
    assert waits.wait(WAIT)
    gate.open.set()
    other.open.set()
    assert first.result(WAIT) is None
    assert second.result(WAIT) == "loaded"


def test_what_is_served_in_the_place_of_an_error_leaves_no_lease_behind(redis_server, make):
    """The look for it is made by one who is not going to load."""

    def fail(x):
        raise KeyError(x)

    one = Process(make(), fail, stale_if_error=60)
    with pytest.raises(KeyError):
        one.f(1)
    assert redis_server.client().keys("cache:fleet*") == []


@pytest.mark.parametrize("awaits", [False, True])
def test_who_has_waited_for_as_long_as_he_may_loads_by_himself(make, begin, awaits):
    gate = Gate("late")
    one, two = Process(make(), gate), Process(make(), lambda x: "own", wait_timeout=0.05)

    async def load(x):
        return "own"

    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    if awaits:
        two = Process(two.store, load, wait_timeout=0.05)

        async def call():
            try:
                return await two.f(1)
            finally:
                await two.store.aclose()

        assert asyncio.run(call()) == "own"
    else:
        assert two.f(1) == "own"
    assert two.f.stats().waits == 1
    # The first of the two to fill wins; the other's fill is refused.
    assert (asyncio.run(_peek(two)) if awaits else two.f.peek(1)) == "own"
    gate.open.set()
    assert first.result(WAIT) == "late"
    assert one.f.stats().refused_fills == 1
    assert one.f(1) == "own"


async def _peek(process: Process) -> Any:
    try:
        return await process.f.peek(1)
    finally:
        await process.store.aclose()


OWNER = """
import sys
from memo import RedisStore, cache_aside
@cache_aside(store=RedisStore(sys.argv[1], timeout=20), namespace="fleet", single_flight="fleet", ttl=60)
def f(x):
    print("loading", flush=True)
    sys.stdin.readline()
    return "dead"
f(1)
"""


def test_a_killed_owner_is_waited_for_until_its_placeholder_is_over(redis_server, make, launch, begin):
    owner = launch(OWNER, redis_server.url)
    assert owner.stdout.readline() == "loading\n"
    two = Process(make(), lambda x: "alive")
    waits = paused(two)
    call = begin(two.f, 1)
    assert waits.wait(WAIT)
    owner.kill()
    owner.communicate()
    client, key = redis_server.client(), "cache:" + two.f.key_for(1)
    assert 0 < client.pttl(key) <= protocol.LONGEST_FLEET_LOAD * 1000
    assert not call.done()
    client.pexpire(key, 1)  # its time is over
    assert call.result(WAIT) == "alive"
    assert two.f(1) == "alive"


def test_the_late_fill_of_one_that_was_only_slow_is_refused(redis_server, make, begin):
    gate = Gate("late")
    one, two = Process(make(), gate), Process(make(), lambda x: "in time")
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    redis_server.client().unlink("cache:" + one.f.key_for(1))
    assert two.f(1) == "in time"
    gate.open.set()
    assert first.result(WAIT) == "late"
    assert one.f(1) == "in time"
    assert one.f.stats().refused_fills == 1


def test_of_a_stale_value_one_process_makes_the_refresh_and_the_others_serve_it(redis_server, make, begin):
    gate = Gate("new")
    options = {"ttl": 10, "stale_while_revalidate": 100}
    one, two = Process(make(), gate, **options), Process(make(), gate, **options)
    one.f.set("old", 1)
    client, key = redis_server.client(), "cache:" + one.f.key_for(1)
    client.pexpire(key, 50_000)
    assert one.f(1) == "old"
    assert gate.entered.wait(WAIT)
    assert client.get(key).startswith(b"#memo1+")
    for _ in range(3):
        assert two.f(1) == "old"
    assert two.f.stats().refreshes == 0
    gate.open.set()
    memo.background.background.drain()
    assert one.f(1) == two.f(1) == "new"
    assert gate.loads == 1
    assert client.get(key).startswith(b"#memo1 ")


def test_a_refresh_that_fails_lets_another_process_try(redis_server, make):
    broken = Gate(KeyError("no"))
    broken.open.set()
    options = {"ttl": 10, "stale_while_revalidate": 100}
    one, two = Process(make(), broken, **options), Process(make(), lambda x: "new", **options)
    one.f.set("old", 1)
    client, key = redis_server.client(), "cache:" + one.f.key_for(1)
    client.pexpire(key, 50_000)
    assert one.f(1) == "old"
    memo.background.background.drain()
    assert client.get(key).startswith(b"#memo1 ")
    assert two.f(1) == "old"
    memo.background.background.drain()
    assert one.f(1) == two.f(1) == "new"


def test_what_is_kept_for_an_error_is_loaded_once_and_served_when_that_fails(redis_server, make, begin):
    gate = Gate(KeyError("no"))
    options = {"ttl": 10, "stale_if_error": 100}
    one, two = Process(make(), gate, **options), Process(make(), lambda x: "new", **options)
    one.f.set("old", 1)
    client, key = redis_server.client(), "cache:" + one.f.key_for(1)
    client.pexpire(key, 50_000)
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    waits = paused(two)
    second = begin(two.f, 1)
    assert waits.wait(WAIT)
    gate.open.set()
    assert first.result(WAIT) == "old"
    assert second.result(WAIT) == "new"


def test_refresh_loads_at_once_and_is_the_one_that_is_stored(redis_server, make, begin):
    gate = Gate("earlier")
    one, two = Process(make(), gate), Process(make(), lambda x: "refreshed")
    first = begin(one.f, 1)
    assert gate.entered.wait(WAIT)
    assert two.f.refresh(1) == "refreshed"
    gate.open.set()
    assert first.result(WAIT) == "earlier"
    assert one.f(1) == two.f(1) == "refreshed"


def test_a_claimed_value_is_refreshed_by_refresh_all_the_same(redis_server, make):
    one, two = Process(make(), lambda x: "one"), Process(make(), lambda x: "two")
    assert one.f(1) == "one"
    assert two.f.refresh(1) == "two"
    assert redis_server.client().get("cache:" + one.f.key_for(1)).startswith(b"#memo1 ")
    assert one.f(1) == "two"


# -- other stores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [MemoryStore(), NullStore()])
def test_where_there_is_one_process_only_it_is_the_fleet(store, begin):
    gate = Gate()
    f = cache_aside(store=store, single_flight="fleet", ttl=60)(gate.__call__)
    calls = [begin(f, 1) for _ in range(4)]
    assert gate.entered.wait(WAIT)
    gate.open.set()
    assert {call.result(WAIT) for call in calls} == {"loaded"}


def test_a_file_has_no_fleet_and_says_what_has(tmp_path):
    f = cache_aside(store=PickleFileStore(tmp_path / "cache"), namespace="f", single_flight="fleet")(lambda x: x)
    with pytest.raises(OptionError, match=r"single_flight='fleet' needs .* RedisStore: .* single_flight='process'"):
        f(1)


def test_a_function_of_many_ids_has_none_either():
    with pytest.raises(OptionError, match=r"single_flight='fleet'.*allowed are 'process' and None"):
        memo.cache_aside_many(single_flight="fleet")(lambda ids: {})


@pytest.mark.parametrize("bad", ["Fleet", "", 1, True])
def test_what_is_no_such_option_is_refused(bad):
    with pytest.raises(OptionError, match=r"allowed are 'process', 'fleet' and None"):
        cache_aside(single_flight=bad)(lambda x: x)


# -- the algorithm, step by step ---------------------------------------------------------------------------------------


class Table:
    def __init__(self) -> None:
        self.flights: dict[Any, Any] = {}
        self.default_ttl = None


def plan(wait_timeout: float | None = None, **options: Any) -> Plan:
    policy = Policy(60, False, None, "f", **options)
    return Plan("f", lambda x: x, policy, FunctionCounters("f"), True, wait_timeout, fleet=True)


def flight(space: Any) -> Flight:
    return Flight(space, "k", (1,), {}, (), None)


HELD = Reading(MISSING, "theirs", held=True)


def pauses(steps: Any, readings: Any) -> tuple[list[float], Any]:
    """Answer each look with the next reading; return how long was paused, and the first other command."""
    lengths: list[float] = []
    command = steps.send(None)
    while True:
        if command is TAKE:
            answer = next(readings)
        elif type(command) is Pause:
            lengths.append(command.seconds)
            answer = None
        else:
            return lengths, command
        command = steps.send(answer)


def test_a_look_that_took_the_lease_makes_no_second_one():
    space = Table()
    mine = flight(space)
    steps = aside.lookup(plan(), mine, None, inline=True)
    assert steps.send(None) is aside.READ
    assert steps.send(Reading(MISSING, "mine", taken=True)) is CALL
    assert mine.lease == "mine"
    command = steps.send(Outcome(5))
    assert type(command) is Fill
    assert command.lease == "mine"


def test_who_has_taken_the_lease_joins_nobody_and_reads_no_second_time():
    """The other flight's lease is gone, begun or not: else this caller's would stay, and a fleet wait for it."""
    for begun in (False, True):
        space = Table()
        other, mine = flight(space), flight(space)
        other.begun, other.lease = begun, "void"
        space.flights["k"] = other
        steps = aside.lookup(plan(), mine, None, inline=True)
        steps.send(None)
        assert steps.send(Reading(MISSING, "mine", taken=True)) is CALL
        assert space.flights["k"] is mine


def test_not_even_if_the_other_lands_at_that_moment():
    space = Table()
    mine = flight(space)

    class Landing(Flight):
        """It is gone when it is to be replaced."""

    other = Landing(space, "k", (1,), {}, (), None)
    space.flights["k"] = other
    steps = aside.lookup(plan(), mine, None, inline=True)
    steps.send(None)
    replace, tries = Flight.replace, []

    def late(self: Flight, gone: Flight) -> bool:
        tries.append(gone)
        space.flights.pop("k")
        return replace(self, gone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flight, "replace", late)
        assert steps.send(Reading(MISSING, "mine", taken=True)) is CALL
    assert tries == [other]
    assert mine.lease == "mine"


def test_while_another_process_loads_it_looks_again_ever_less_often():
    p = plan()
    steps = aside.load(p, flight(Table()), renew=False)
    readings = iter([HELD] * 12 + [Reading("there")])
    lengths: list[float] = []
    with pytest.raises(StopIteration) as stop:
        command = steps.send(None)
        while True:
            if type(command) is Pause:
                lengths.append(command.seconds)
            command = steps.send(next(readings) if command is TAKE else None)
    assert type(stop.value.value) is Found
    assert stop.value.value.value == "there"
    assert len(lengths) == 12
    assert lengths == sorted(lengths)
    assert lengths[0] == 0.01
    assert lengths[-1] == LONGEST_PAUSE
    assert p.counters.waits.value == 1, "one call that waits, however often it looks"


def test_it_waits_for_exactly_as_long_as_it_may():
    mine = flight(Table())
    lengths, command = pauses(aside.load(plan(0.33), mine, renew=False), iter(lambda: HELD, None))
    assert sum(lengths) == pytest.approx(0.33)
    assert command is CALL
    assert mine.lease == "theirs", "with what stands there"


def test_it_does_not_wait_for_ever_for_one_and_the_same_load():
    lengths, command = pauses(aside.load(plan(), flight(Table()), renew=False), iter(lambda: HELD, None))
    assert LONGEST_LEAD <= sum(lengths) < LONGEST_LEAD + 2 * LONGEST_PAUSE
    assert command is CALL


def test_but_for_each_of_several():
    readings = (Reading(MISSING, f"of owner {number // 100}", held=True) for number in range(500))
    lengths, command = pauses(aside.load(plan(), flight(Table()), renew=False), _then(readings, Reading(MISSING, "me")))
    assert len(lengths) == 500
    assert sum(lengths) > LONGEST_LEAD
    assert command is CALL


def _then(readings: Any, last: Reading) -> Any:
    yield from readings
    while True:
        yield last


def test_if_the_store_fails_meanwhile_it_loads_and_stores_nothing():
    steps = aside.load(plan(), flight(Table()), renew=False)
    lengths, command = pauses(steps, iter([HELD, UNREAD]))
    assert len(lengths) == 1
    assert command is CALL
    with pytest.raises(StopIteration):
        steps.send(Outcome(5))


def test_a_refresh_waits_for_nobody():
    steps = aside.refresh(plan(), flight(Table()))
    assert steps.send(None).renew
    assert steps.send(HELD) is CALL


def test_who_has_waited_within_the_process_does_not_wait_for_others_again():
    space = Table()
    other, mine = flight(space), flight(space)
    space.flights["k"] = other
    steps = aside.lookup(plan(0.1), mine, None, inline=True)
    steps.send(None)
    assert type(steps.send(HELD)) is Wait
    assert steps.send(aside.TIMED_OUT) is CALL
    assert mine.lease == "theirs"


def test_the_look_for_what_is_kept_takes_no_lease():
    steps = aside.lookup(plan(stale_if_error=5), flight(Table()), None, inline=True)
    steps.send(None)
    assert steps.send(Reading(MISSING, "mine", taken=True)) is CALL
    command = steps.send(Failure.of(KeyError()))
    assert type(command) is Release
    command = steps.send(None)
    assert command is LOOK
    assert not command.leads
    with pytest.raises(StopIteration) as stop:
        steps.send(Reading(MISSING, None, stale="old"))
    assert stop.value.value.value == "old"
