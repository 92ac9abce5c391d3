"""No stale fill: a load that began before an invalidation never becomes what later calls read."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest

from memo import MISSING, MemoryStore, aside, cache_aside
from memo.aside import BEHIND, Call, Fill, Plan, Read, Take, Wait
from memo.entry import ABSENT
from memo.flight import Flight, Outcome
from memo.stats import FunctionCounters
from memo.testing import ManualClock
from schedules import schedules

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"

INVALIDATIONS: dict[str, Callable[[Any, Any, int], object]] = {
    "key": lambda f, store, x: f.invalidate(x),
    "tag": lambda f, store, x: store.invalidate_tags("t"),
    "whole function": lambda f, store, x: f.invalidate_all(),
    "clear": lambda f, store, x: store.clear(),
    "delete": lambda f, store, x: store.delete(f.key_for(x)),
    "pattern": lambda f, store, x: store.delete_pattern(f"*({x})"),
}

# -- every interleaving of a few callers, step by step -----------------------------------------------------------------


class World:
    """A source whose value is its version, a function that reads it, and callers that are half-way.

    It serves for many schedules, each of which has a key of its own.
    """

    def __init__(self, tags: tuple[str, ...], stale: bool = False) -> None:
        self.clock = ManualClock(start=1_000.0)
        self.stale = stale  # every schedule begins with a stale entry, inside of its window
        self.store = MemoryStore(clock=self.clock, cleanup_interval=None)
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 1_000_000} if stale else {"ttl": None}
        decorate = cache_aside(store=self.store, namespace="explored", tags=tags, **options)
        self.f: Any = decorate(lambda x: self.version)
        self.space = self.f._self_memoized.attached()
        self.tags = tags
        self.plan = Plan(
            "explored", lambda x: None, self.f._self_memoized.plan.policy, FunctionCounters("explored"), True, None
        )
        self.version = 0
        self.floor = 0  # the version of the source when the latest invalidation returned
        self.x = 0

    def next(self) -> None:
        self.store.clear()
        self.x += 1
        self.key = self.f._self_memoized._raw(self.x)
        self.floor = self.version
        if self.stale:
            self.f.set(self.version, self.x)
            self.clock.advance(11)

    def caller(self, kind: str) -> Generator[Callable[[], bool] | None, None, int]:
        """One call; between two of its steps it yields None, or what it waits for."""
        floor = self.floor
        flight = Flight(self.space, self.key, (self.x,), {}, self.tags, None)
        if kind == "refresh":
            steps = aside.refresh(self.plan, flight)
        elif kind == "behind":
            steps = aside.behind(self.plan, flight)
        elif kind == "lookup":
            steps = aside.lookup(self.plan, flight, None, inline=True)
        else:
            # Generated code looks first, and leaves to the algorithm only what is not there.
            entry = self.space.get(self.key)
            yield None
            if entry is not None and entry in self.store._shelf.order:
                assert entry.value >= floor
                return entry.value
            steps = aside.lookup(self.plan, flight, ABSENT, inline=True)
        try:
            command = steps.send(None)
        except StopIteration:
            assert kind == "behind"  # somebody else is loading it
            return -1
        answer: Any
        while True:
            if type(command) is Wait:
                awaited = command.flight
                yield lambda awaited=awaited: awaited.outcome is not None
                answer = awaited.outcome
            elif type(command) is Call:
                yield None
                answer = Outcome(self.version)
            else:
                answer = self.perform(flight, command)
                yield None
            try:
                command = steps.send(answer)
            except StopIteration as stop:
                outcome = stop.value
                break
            yield None
        flight.settle(outcome)
        if kind == "behind":
            return -1  # nobody is given it
        assert outcome.value >= floor, f"{kind} was given {outcome.value}, older than {floor}"
        return outcome.value

    def perform(self, flight: Flight, command: Any) -> Any:
        space = self.space
        if type(command) is Read:
            return space.read(flight.key)
        if type(command) is Take:
            return space.take(flight.key, flight.tags, command.renew)
        if type(command) is Fill:
            return space.fill(flight.key, command.lease, command.value, command.ttl, flight.tags)
        if command is BEHIND:
            return None  # who refreshes is an actor of its own
        return space.release(flight.key, command.lease, command.remove)

    def writer(self, invalidate: Callable[[Any, Any, int], object]) -> Generator[None, None, None]:
        """Change the source, then invalidate."""
        self.version += 1
        yield
        invalidate(self.f, self.store, self.x)
        self.floor = self.version


def explore(make: Callable[[World], list[Any]], tags: tuple[str, ...], preemptions: int, stale: bool = False) -> int:
    """Check every schedule's end; return how many there were."""
    world, count = World(tags, stale), 0

    def actors() -> list[Any]:
        world.next()
        return make(world)

    for _ in schedules(actors, preemptions):
        count += 1
        assert world.space.flights == {}
        assert world.space.leases == {}
        stored = world.f.peek(world.x)
        assert stored is MISSING or stored >= world.floor
    return count


@pytest.mark.parametrize("invalidation", INVALIDATIONS)
@pytest.mark.parametrize(
    ("loader", "caller"),
    [("lookup", "lookup"), ("refresh", "lookup"), ("direct call", "direct call"), ("refresh", "direct call")],
)
def test_in_no_interleaving_is_a_call_given_what_was_read_before_an_invalidation_that_it_came_after(
    invalidation, loader, caller
):
    """Load, invalidation and get, every order of their steps: reading, joining, taking the lease, calling, filling.

    Quick runs preempt up to three times; nightly ones as often as it goes, 160,000 orders for each case.
    """

    def make(world: World) -> list[Any]:
        return [world.caller(loader), world.writer(INVALIDATIONS[invalidation]), world.caller(caller)]

    count = explore(make, ("t",) if invalidation == "tag" else (), 99 if NIGHTLY else 3)
    assert count > 1_000


@pytest.mark.parametrize("invalidation", INVALIDATIONS)
def test_in_no_interleaving_does_a_refresh_behind_callers_store_what_an_invalidation_has_overtaken(invalidation):
    """Each begins with a stale entry; the refresh, an invalidation and a call, then the same with two refreshes."""

    def make(world: World) -> list[Any]:
        return [world.caller("behind"), world.writer(INVALIDATIONS[invalidation]), world.caller("lookup")]

    def twice(world: World) -> list[Any]:
        return [world.caller("behind"), *make(world)]

    tags = ("t",) if invalidation == "tag" else ()
    assert explore(make, tags, 99 if NIGHTLY else 3, stale=True) > 300
    assert explore(twice, tags, 3 if NIGHTLY else 1, stale=True) > 100


@pytest.mark.parametrize("kind", ["lookup", "direct call"])
def test_in_no_interleaving_do_three_callers_and_an_invalidation_disagree(kind):
    def make(world: World) -> list[Any]:
        callers = [world.caller(kind) for _ in range(3)]
        return [*callers, world.writer(INVALIDATIONS["key"])]

    assert explore(make, (), 3 if NIGHTLY else 2) > 1_000


def test_in_no_interleaving_do_two_invalidations_disagree():
    def make(world: World) -> list[Any]:
        def writers():
            yield from world.writer(INVALIDATIONS["key"])
            yield
            yield from world.writer(INVALIDATIONS["key"])

        return [world.caller("lookup"), writers(), world.caller("lookup")]

    assert explore(make, (), 4 if NIGHTLY else 3) > 1_000


def test_what_a_leaders_second_look_found_is_not_given_to_one_who_joined_after_its_invalidation():
    """Found by the search above: the flight's load has not begun, so it may be joined, but its look is over."""
    world = World(())
    world.next()
    leader, another, late = [world.caller("lookup") for _ in range(3)]
    next(leader)  # reads, finds nothing
    with pytest.raises(StopIteration):
        while True:
            next(another)  # loads the old value, lands and is gone
    next(leader)  # registers its flight
    next(leader)  # looks again and finds the old value
    list(world.writer(INVALIDATIONS["key"]))
    next(late)
    landed = next(late)  # joins
    assert landed is None or not landed()
    for actor in (leader, late):
        try:
            while True:
                next(actor)
        except StopIteration as stop:
            value = stop.value
    assert value == world.version == 1


# -- real threads and tasks, held in the middle of a load --------------------------------------------------------------


WRITES: dict[str, Callable[[Any, Any, int], object]] = {
    **INVALIDATIONS,
    "set": lambda f, store, x: f.set(f._self_memoized.plan.function.__self__.version, x),
}


def tagged(function: Any, store: MemoryStore) -> Any:
    return cache_aside(store=store, tags=("t",))(function)


@pytest.mark.parametrize("invalidation", WRITES)
@pytest.mark.parametrize("helper", ["__call__", "refresh"])
def test_a_load_that_a_write_overtook_is_returned_and_not_stored(
    store, spawn, result, source, look, invalidation, helper
):
    f = tagged(source.read, store)
    if helper == "refresh":
        f.set(-1, 7)
    source.hold()
    doomed = spawn(getattr(f, helper), 7)
    source.arrived()
    source.version = 1
    WRITES[invalidation](f, store, 7)
    held = source.gate
    source.gate = threading.Event()
    source.gate.set()
    assert f(7) == 1  # not the doomed load's, which it does not join
    held.set()
    assert result(doomed) == 0
    assert f(7) == f.peek(7) == 1
    assert f.stats().refused_fills == 1
    look(f).clean()


@pytest.mark.parametrize("invalidation", WRITES)
@pytest.mark.parametrize("helper", ["__call__", "refresh"])
async def test_a_load_that_a_write_overtook_is_returned_and_not_stored_async(
    store, source, look, quiet_loop, invalidation, helper
):
    f = tagged(source.aread, store)
    if helper == "refresh":
        await f.set(-1, 7)
    source.hold()
    doomed = asyncio.create_task(getattr(f, helper)(7))
    while not source.reads:
        await asyncio.sleep(0)
    source.version = 1
    done = WRITES[invalidation](f, store, 7)
    if asyncio.iscoroutine(done):
        await done
    held = source.gate
    source.gate = threading.Event()
    source.gate.set()
    assert await f(7) == 1
    held.set()
    assert await doomed == 0
    assert await f(7) == await f.peek(7) == 1
    assert f.stats().refused_fills == 1
    look(f).clean()


def test_who_was_waiting_already_is_given_the_overtaken_value(store, spawn, result, until, source, look):
    """They called before the invalidation; whoever calls after it waits for another load."""
    f = tagged(source.read, store)
    source.hold()
    early = [spawn(f, 7) for _ in range(5)]
    until(lambda: look(f).followers() == 4)
    old = source.gate
    source.gate = threading.Event()
    source.version = 1
    f.invalidate(7)
    source.arrived()
    late = [spawn(f, 7) for _ in range(5)]
    until(lambda: look(f).followers() == 4 and source.reads == 2)
    old.set()
    assert [result(call) for call in early] == [0] * 5
    source.gate.set()
    assert [result(call) for call in late] == [1] * 5
    assert source.reads == 2
    assert f(7) == 1
    look(f).clean()


def test_an_invalidation_by_the_load_itself_holds(store, source, look):
    def load(x):
        f.invalidate(x)
        return x

    f = tagged(load, store)
    assert f(7) == 7
    assert f.peek(7) is MISSING
    look(f).clean()


def test_a_refresh_that_another_overtook_does_not_overwrite_it(store, spawn, result, source, look):
    f = tagged(source.read, store)
    source.hold()
    old = spawn(f.refresh, 7)
    source.arrived()
    held, source.gate = source.gate, threading.Event()
    source.gate.set()
    source.version = 1
    assert f.refresh(7) == 1
    held.set()
    assert result(old) == 0
    assert f(7) == 1
    look(f).clean()


def test_a_lookups_load_does_not_overwrite_a_refresh_that_began_later(store, spawn, result, source, look):
    f = tagged(source.read, store)
    source.hold()
    old = spawn(f, 7)
    source.arrived()
    held, source.gate = source.gate, threading.Event()
    source.gate.set()
    source.version = 1
    assert f.refresh(7) == 1
    held.set()
    assert result(old) == 0
    assert f(7) == 1
    look(f).clean()


def test_a_method_of_an_instance_too(store, spawn, result, source):
    class Users:
        @cache_aside(store=store, tags=("t",))
        def get(self, x):
            return source.read()

    users = Users()
    for write in (
        lambda: users.get.invalidate(7),
        lambda: Users.get.invalidate_all(),
        lambda: store.invalidate_tags("t"),
        store.clear,
        lambda: store.delete(users.get.key_for(7)),
        lambda: store.delete_pattern("*"),
    ):
        write()
        source.hold()
        before = source.version
        doomed = spawn(users.get, 7)
        source.arrived()
        source.version += 1
        write()
        held, source.gate = source.gate, threading.Event()
        source.gate.set()
        assert users.get(7) == before + 1
        source.arrived()
        held.set()
        assert result(doomed) == before
        assert users.get(7) == before + 1


def test_a_hundred_thousand_races_are_never_stale(store, spawn, result):
    """Writers count the source up and invalidate; readers note its version before they call."""
    versions = [0] * 4
    locks = [threading.Lock() for _ in versions]
    done = [0] * 4  # the version of each key at its latest invalidation that has returned
    f = tagged(lambda x: versions[x], store)
    turns = 50_000 if NIGHTLY else 3_000
    barrier = threading.Barrier(4)

    def write(number):
        barrier.wait(20)
        for turn in range(turns):
            x = (turn + number) % 4
            with locks[x]:
                versions[x] += 1
                version = versions[x]
                if turn % 50 == 0:
                    store.invalidate_tags("t")
                elif turn % 51 == 0:
                    f.invalidate_all()
                elif turn % 3 == 0:
                    f.refresh(x)
                    continue  # no invalidation: the value is new, an older one may have been returned before
                else:
                    f.invalidate(x)
                done[x] = version

    def read(number):
        barrier.wait(20)
        stale = 0
        for turn in range(turns * 3):
            x = (turn + number) % 4
            floor = done[x]
            stale += f(x) < floor
        return stale

    writers = [spawn(write, number) for number in range(2)]
    readers = [spawn(read, number) for number in range(2)]
    for writer in writers:
        result(writer)
    assert [result(reader) for reader in readers] == [0, 0]
