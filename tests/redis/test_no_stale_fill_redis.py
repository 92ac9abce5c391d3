"""No stale fill across processes on one server: what an invalidation has overtaken is never what later calls read.

Two store objects share nothing but the server, so they stand for two processes; at the end are real ones. What a store
does is a generator of round trips (`steps`), so any other's step may come between two of them here, or between two
commands of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

import race
from memo import MISSING, RedisStore, aside, cache_aside
from memo.aside import BEHIND, Call, Fill, Pause, Plan, Read, Release, Take, Wait
from memo.flight import Flight, Outcome
from memo.stats import FunctionCounters
from memo.stores.patterns import compile_pattern
from memo.stores.redis.commands import Refusal
from schedules import schedules

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"


Turns = Iterator[Callable[[], bool] | None]


class Handle:
    """One process's store and function."""

    def __init__(self, world: World, options: dict[str, Any], fleet: bool) -> None:
        self.store = RedisStore(world.server.url, timeout=20)
        single_flight = "fleet" if fleet else "process"
        decorate = cache_aside(store=self.store, namespace="explored", single_flight=single_flight, **options)
        self.f: Any = decorate(lambda x: world.version)
        self.space = self.f._self_memoized.attached()
        policy = self.f._self_memoized.plan.policy
        self.plan = Plan("explored", lambda x: None, policy, FunctionCounters("explored"), True, None, fleet)


# Each as the steps that the method takes, and what a client's command does at once.
INVALIDATIONS: dict[str, Callable[[World, Handle], Any]] = {
    "key": lambda world, at: at.store._delete([world.key]),
    "tag": lambda world, at: at.store._steps.forget(at.store._steps.stamp_keys("", ("t",))[1:]),
    "function": lambda world, at: at.store._steps.forget(at.store._steps.stamp_keys(at.space.owner, ())),
    "pattern": lambda world, at: at.store._delete_pattern(compile_pattern("expl*").match),
    "clear": lambda world, at: at.store._clear(),
    "put": lambda world, at: at.space._put(world.key, world.version, 60, ("t",)),
    "set": lambda world, at: at.store._set({world.key: "somebody else's"}, 60),
    "flush": lambda world, at: world.client.flushall(),
}

MISHAPS: dict[str, Callable[[World], Any]] = {
    "the key is evicted": lambda world: world.client.unlink(world.full),
    "the function's stamp is evicted": lambda world: world.client.unlink("cache:~fn:explored"),
    "the tag's stamp is evicted": lambda world: world.client.unlink("cache:~tag:t"),
    "a placeholder expires": lambda world: world.placeholder() and world.client.unlink(world.full),
    "all scripts are forgotten": lambda world: world.client.script_flush(),
}


class World:
    """A source whose value is its version, two handles, and callers on either that are half-way."""

    def __init__(self, server: Any, start: str = "nothing", fleet: bool = False, apart: bool = False) -> None:
        self.server, self.client = server, server.client()
        self.start = start
        self.fleet = fleet
        self.apart = apart  # others may come between two commands of one round trip
        self.key, self.full = "explored(1)", "cache:explored(1)"
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 1_000} if start == "stale" else {"ttl": 60}
        self.handles = [Handle(self, {"tags": ("t",), **options}, fleet) for _ in range(2)]
        self.version = self.floor = 0  # of the source, and when the latest invalidation returned

    def close(self) -> None:
        for handle in self.handles:
            handle.store.close()

    def next(self) -> None:
        self.client.flushall()
        self.floor = self.version
        for at in reversed(self.handles):
            at.space._timed = False  # every schedule begins with what nobody knows to have windows
        if self.start == "plain":
            at.store.set(self.key, "plain")
        elif self.start != "nothing":
            at.f.set(self.version, 1)
            if self.start == "stale":
                self.client.pexpire(self.full, 900_000)
            elif self.start == "dead":
                at.store.invalidate_tags("t")
            elif self.start == "without stamps":
                self.client.unlink("cache:~tag:t", "cache:~fn:explored")

    def placeholder(self) -> bool:
        return (self.client.get(self.full) or b"").startswith(b"#memo1-")

    def turns(self, at: Handle, steps: Any) -> Generator[Any, None, Any]:
        """Take steps of a store, one round trip or command at a time."""
        replies: Any = None
        while True:
            try:
                commands = steps.send(replies)
            except StopIteration as stop:
                return stop.value
            if not self.apart:
                yield None
                replies = at.store._link.call(commands, True, at.store._link.deadline(0))
                continue
            replies = []
            for command in commands:
                yield None
                replies += at.store._link.call([command], True, at.store._link.deadline(0))

    def caller(self, number: int, kind: str) -> Generator[Callable[[], bool] | None, None, int]:
        """One call by a handle; between two of its steps it yields None, or what it waits for."""
        at, floor = self.handles[number], self.floor
        flight = Flight(at.space, self.key, (1,), {}, ("t",), None)
        if kind == "refresh":
            steps = aside.refresh(at.plan, flight)
        elif kind == "behind":
            steps = aside.behind(at.plan, flight)
        else:
            steps = aside.lookup(at.plan, flight, None, inline=True)
        answer: Any = None
        while True:
            try:
                command = steps.send(answer)
            except StopIteration as stop:
                outcome = stop.value
                break
            if type(command) is Wait:
                awaited = command.flight
                yield lambda awaited=awaited: awaited.outcome is not None
                answer = awaited.outcome
            elif type(command) is Pause:
                before = self.client.get(self.full) or b""
                if before.startswith((b"#memo1-", b"#memo1+")):
                    yield lambda before=before: self.client.get(self.full) != before
                answer = None
            elif type(command) is Call:
                yield None
                answer = Outcome(self.version)
            elif command is BEHIND:
                answer = None  # who refreshes is an actor of its own
            else:
                answer = yield from self.turns(at, self.steps(at, flight, command))
        flight.settle(outcome)
        if kind == "behind":
            return -1  # nobody is given it
        assert outcome.value >= floor, f"{kind} was given {outcome.value}, older than {floor}"
        return outcome.value

    def steps(self, at: Handle, flight: Flight, command: Any) -> Any:
        if type(command) is Read:
            return at.space._look(self.key, ("t",), command.leads)
        if type(command) is Take:
            return at.space._take(self.key, ("t",), command.renew)
        if type(command) is Fill:
            return at.space._fill(self.key, command.lease, command.value, command.ttl, ("t",))
        assert type(command) is Release
        return at.space._steps.release(self.key, command.lease, command.remove)

    def writer(self, number: int, how: str) -> Turns:
        """Change the source, then invalidate, by a handle."""
        self.version += 1
        version = self.version
        yield None
        steps = INVALIDATIONS[how](self, self.handles[number])
        if isinstance(steps, Generator):
            yield from self.turns(self.handles[number], steps)
        self.floor = version

    def mishap(self, what: str) -> Turns:
        yield None
        MISHAPS[what](self)


def explore(world: World, make: Callable[[World], list[Any]], preemptions: int, orphans: bool = False) -> int:
    """Check every schedule's end; return how many there were."""
    count = 0

    def actors() -> list[Any]:
        world.next()
        return make(world)

    try:
        for _ in schedules(actors, preemptions):
            count += 1
            for handle in world.handles:
                assert handle.space.flights == {}
                stored = handle.f.peek(1)
                assert stored is MISSING or stored >= world.floor, f"{stored} is stored, older than {world.floor}"
            assert orphans or not world.placeholder(), "nobody is loading, and a placeholder says so"
    finally:
        world.close()
    return count


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize(
    ("kind", "writer", "caller"), [("lookup", 1, 0), ("lookup", 1, 1), ("lookup", 0, 1), ("refresh", 1, 1)]
)
def test_in_no_interleaving_of_two_processes_is_a_call_given_what_an_invalidation_overtook(
    redis_server, how, kind, writer, caller
):
    def make(world: World) -> list[Any]:
        return [world.caller(0, kind), world.writer(writer, how), world.caller(caller, "lookup")]

    assert explore(World(redis_server), make, 3 if NIGHTLY else 1) > 10


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize("start", ["dead", "plain", "without stamps", "fresh"])
def test_nor_whatever_stands_there_at_first(redis_server, how, start):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "lookup"), world.writer(1, how), world.caller(0, "lookup")]

    assert explore(World(redis_server, start), make, 3 if NIGHTLY else 1) > 10


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_nor_if_others_come_between_two_commands_of_one_round_trip(redis_server, how):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "lookup"), world.writer(1, how), world.caller(1, "lookup")]

    assert explore(World(redis_server, apart=True), make, 2 if NIGHTLY else 1) > 20


@pytest.mark.parametrize("what", MISHAPS)
@pytest.mark.parametrize("how", ["key", "tag"])
def test_nor_if_the_server_loses_something_meanwhile(redis_server, how, what):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "lookup"), world.writer(1, how), world.mishap(what), world.caller(1, "lookup")]

    assert explore(World(redis_server), make, 2 if NIGHTLY else 1) > 20


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize("fleet", [False, True])
def test_nor_does_a_refresh_behind_callers_store_what_another_process_has_invalidated(redis_server, how, fleet):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "behind"), world.writer(1, how), world.caller(1, "lookup"), world.caller(1, "behind")]

    assert explore(World(redis_server, "stale", fleet), make, 2 if NIGHTLY else 1) > 20


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize("start", ["nothing", "dead", "plain"])
def test_nor_where_one_process_loads_for_all(redis_server, how, start):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "lookup"), world.writer(1, how), world.caller(1, "lookup")]

    assert explore(World(redis_server, start, fleet=True), make, 3 if NIGHTLY else 1) > 10


def test_a_load_that_a_tag_has_overtaken_is_joined_by_nobody_who_comes_later(redis_server):
    """What its lease is has not changed; the stamps beside it have."""
    world = World(redis_server)
    world.next()
    one, seen = world.handles[0], []

    def load(x):
        if not seen:
            seen.append(one.space.flights[world.key])
            world.handles[1].store.invalidate_tags("t")
            reading = one.space.look(world.key, ("t",))
            assert reading.held
            assert reading.lease.id == seen[0].lease.id
            assert not seen[0].may_join(reading)
        return x

    f = cache_aside(store=one.store, namespace="explored", tags=("t",), ttl=60)(load)
    one.space = f._self_memoized.attached()
    assert f(1) == 1
    assert f.peek(1) is MISSING
    world.close()


def test_a_stamp_that_is_gone_as_soon_as_it_was_made_equals_no_other(make_steps):
    """Two that meet that one after the other do not join each other."""
    leases = [make_steps(), make_steps()]
    assert leases[0] != leases[1]


@pytest.fixture
def make_steps(redis_server):
    store = RedisStore(redis_server.url, timeout=20)

    def look():
        steps = store._steps.look("k", "f", (), b'["f"]', 60.0, False)
        replies = None
        try:
            while True:
                commands = steps.send(replies)
                replies = store._link.call(commands, True, store._link.deadline(0))
                if commands[0][0] == "SET":
                    replies[1] = None  # it was invalidated between SET and GET
                    redis_server.client().unlink("cache:~fn:f")
        except StopIteration as stop:
            lease = stop.value.lease
            assert lease.stamps
            return lease.stamps

    yield look
    store.close()


def test_a_lease_is_given_back_where_the_stamps_cannot_be_made(redis_server):
    store = RedisStore(redis_server.url, timeout=20)
    steps = store._steps.look("k", "f", (), b'["f"]', 60.0, False)
    store._link.call(steps.send(None), True, store._link.deadline(0))
    client = redis_server.client()
    mine = client.get("cache:k")
    assert mine.startswith(b"#memo1-")
    steps = store._steps.look("k", "f", (), b'["f"]', 60.0, False)
    commands = steps.send(None)
    client.unlink("cache:k")
    commands = steps.send(store._link.call(commands, True, store._link.deadline(0)))
    commands = steps.send([Refusal("OOM")] * len(commands))
    replies = store._link.call(commands, True, store._link.deadline(0))
    with pytest.raises(Refusal, match="OOM"):
        steps.send(replies)
    assert client.get("cache:k") is None
    store.close()


# -- real processes ----------------------------------------------------------------------------------------------------

RACER = """
from memo import RedisStore
def begin(me, url, fleet):
    return RedisStore(url, timeout=60), {"ttl": 600, "single_flight": fleet}
def between(turn, store):
    pass
"""


@pytest.mark.parametrize(("processes", "fleet"), [(3, "process"), (2, "fleet")])
def test_real_processes_in_a_race_are_never_given_anything_stale(redis_server, tmp_path, processes, fleet):
    turns, patience = (100_000, 3_000) if NIGHTLY else (1_500, 120)
    race.run(RACER, tmp_path, processes, turns, redis_server.url, fleet, patience=patience)
