"""No stale fill across processes: what was loaded before an invalidation anywhere is never what later calls read.

Two store objects on one file share nothing but the file, so they stand for two processes; at the end are real ones.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import race
from memo import MISSING, PickleFileStore, aside, cache_aside
from memo.aside import BEHIND, Call, Fill, Plan, Read, Take, Wait
from memo.entry import Reading
from memo.flight import Flight, Outcome
from memo.stats import FunctionCounters
from memo.testing import ManualClock
from schedules import schedules

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"


class Handle:
    """One process's store and function."""

    def __init__(self, world: World, options: dict[str, Any]) -> None:
        self.store = PickleFileStore(world.path, clock=world.clock)
        self.store._compaction.consider = lambda: None  # a schedule is to be the same each time
        decorate = cache_aside(store=self.store, namespace="explored", **options)
        self.f: Any = decorate(lambda x: world.version)
        self.space = self.f._self_memoized.attached()
        policy = self.f._self_memoized.plan.policy
        self.plan = Plan("explored", lambda x: None, policy, FunctionCounters("explored"), True, None)


INVALIDATIONS: dict[str, Callable[[Handle, int, int], object]] = {
    "key": lambda at, x, version: at.f.invalidate(x),
    "tag": lambda at, x, version: at.store.invalidate_tags("t"),
    "whole function": lambda at, x, version: at.f.invalidate_all(),
    "clear": lambda at, x, version: at.store.clear(),
    "delete": lambda at, x, version: at.store.delete(at.f.key_for(x)),
    "pattern": lambda at, x, version: at.store.delete_pattern(f"*({x})"),
    "set": lambda at, x, version: at.f.set(version, x),
    "set by key": lambda at, x, version: at.store.set(at.f.key_for(x), "somebody else's"),
}


class World:
    """A source whose value is its version, two handles, and callers on either that are half-way.

    It serves for many schedules, each of which has a key of its own.
    """

    def __init__(self, path: Path, stale: bool = False, awaits: bool = False, split: bool = False) -> None:
        self.path = path
        self.clock = ManualClock(start=1_000.0)
        self.stale = stale  # every schedule begins with a stale entry, inside of its window
        self.split = split  # between what a take reads and its lease others may come
        self.loop = asyncio.new_event_loop() if awaits else None
        options: dict[str, Any] = {"ttl": 10, "stale_while_revalidate": 1_000_000} if stale else {"ttl": None}
        self.handles = [Handle(self, {"tags": ("t",), **options}) for _ in range(2)]
        self.version = 0
        self.floor = 0  # the version of the source when the latest invalidation returned
        self.x = 0

    def close(self) -> None:
        for handle in self.handles:
            handle.store.close()
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def next(self) -> None:
        if self.handles[0].store.stats().file_size > 20_000:
            self.handles[0].store.clear()
            self.handles[0].store.compact()
        self.x += 1
        self.key = self.handles[0].f.key_for(self.x)
        self.floor = self.version
        if self.stale:
            self.handles[0].f.set(self.version, self.x)
            self.clock.advance(11)

    def caller(self, number: int, kind: str) -> Generator[Callable[[], bool] | None, None, int]:
        """One call by a handle; between two of its steps it yields None, or what it waits for."""
        at, floor = self.handles[number], self.floor
        flight = Flight(at.space, self.key, (self.x,), {}, ("t",), None)
        if kind == "refresh":
            steps = aside.refresh(at.plan, flight)
        elif kind == "behind":
            steps = aside.behind(at.plan, flight)
        else:
            steps = aside.lookup(at.plan, flight, None, inline=True)
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
            elif type(command) is Take and self.split and not command.renew:
                answer = at.space.read(self.key)
                if answer.value is MISSING or answer.due:
                    yield None
                    answer = Reading(MISSING, at.store._leases.take(self.key, ("t",), at.space, False))
                yield None
            else:
                answer = self.perform(at.space, flight, command)
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

    def perform(self, space: Any, flight: Flight, command: Any) -> Any:
        if type(command) is Read:
            return self.done(space, "read", flight.key)
        if type(command) is Take:
            return self.done(space, "take", flight.key, flight.tags, command.renew)
        if type(command) is Fill:
            return self.done(space, "fill", flight.key, command.lease, command.value, command.ttl, flight.tags)
        if command is BEHIND:
            return None  # who refreshes is an actor of its own
        return self.done(space, "release", flight.key, command.lease, command.remove)

    def done(self, space: Any, name: str, *args: Any) -> Any:
        if self.loop is None:
            return getattr(space, name)(*args)
        return self.loop.run_until_complete(getattr(space, f"a{name}")(*args))

    def writer(self, number: int, how: str) -> Generator[None, None, None]:
        """Change the source, then invalidate, by a handle."""
        self.version += 1
        yield
        INVALIDATIONS[how](self.handles[number], self.x, self.version)
        self.floor = self.version

    def compaction(self, number: int) -> Generator[None, None, None]:
        yield
        assert self.handles[number].store.compact()

    def reopening(self, number: int) -> Generator[None, None, None]:
        yield
        self.handles[number].store.close()

    def filler(self, number: int) -> Generator[None, None, None]:
        """Let another key's record come in between, which nobody's lease is about."""
        yield
        self.handles[number].store.set("another", self.version)


def explore(world: World, make: Callable[[World], list[Any]], preemptions: int) -> int:
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
                assert handle.store._leases._standing == {}
                stored = handle.f.peek(world.x)
                assert stored is MISSING or stored >= world.floor
    finally:
        world.close()
    return count


@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize(
    ("kind", "writer", "caller"), [("lookup", 1, 0), ("lookup", 1, 1), ("lookup", 0, 1), ("refresh", 1, 1)]
)
def test_in_no_interleaving_of_two_processes_is_a_call_given_what_an_invalidation_overtook(
    path, how, kind, writer, caller
):
    """Load, invalidation and get, by either: reading, joining, taking the lease, calling, filling."""

    def make(world: World) -> list[Any]:
        return [world.caller(0, kind), world.writer(writer, how), world.caller(caller, "lookup")]

    assert explore(World(path, split=True), make, 4 if NIGHTLY else 2) > 100


@pytest.mark.parametrize("between", ["compaction", "reopening", "filler"])
@pytest.mark.parametrize("by", [0, 1])
@pytest.mark.parametrize("how", ["key", "tag"])
def test_nor_when_the_file_is_rewritten_or_opened_anew_in_between(path, between, by, how, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no machine loses its power in here

    def make(world: World) -> list[Any]:
        other = getattr(world, between)(by)
        return [world.caller(0, "lookup"), world.writer(1, how), other, world.caller(1 - by, "lookup")]

    assert explore(World(path), make, 3 if NIGHTLY else 1) > 20


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_nor_does_a_refresh_behind_callers_store_what_another_process_has_invalidated(path, how):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "behind"), world.writer(1, how), world.caller(1, "lookup"), world.caller(1, "behind")]

    assert explore(World(path, stale=True), make, 3 if NIGHTLY else 1) > 20


@pytest.mark.parametrize("how", ["key", "tag", "clear"])
def test_nor_does_a_load_that_two_processes_invalidate(path, how):
    def make(world: World) -> list[Any]:
        def writers() -> Generator[None, None, None]:
            yield from world.writer(1, how)
            yield
            yield from world.writer(0, how)

        return [world.caller(0, "lookup"), writers(), world.caller(1, "lookup")]

    assert explore(World(path, split=True), make, 4 if NIGHTLY else 2) > 100


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_nor_awaited(path, how):
    def make(world: World) -> list[Any]:
        return [world.caller(0, "lookup"), world.writer(1, how), world.caller(1, "lookup")]

    assert explore(World(path, awaits=True), make, 3 if NIGHTLY else 1) > 20


def test_an_eviction_by_another_process_voids_a_refresh_that_is_under_way(make):
    """The entry was there when the load began; it is evicted, so what the load brings is not stored."""
    mine, others = make(max_size=2), make(max_size=2)
    steps: list[Any] = []

    @cache_aside(store=mine, namespace="evicted", ttl=None)
    def f(x):
        while steps:
            steps.pop()()
        return x

    f(1)
    steps.append(lambda: [others.set(key, 0) for key in ("a", "b")])
    assert f.refresh(1) == 1
    assert f.stats().refused_fills == 1
    assert f.peek(1) is MISSING
    assert sorted(mine.keys()) == sorted(others.keys()) == ["a", "b"]


@pytest.mark.parametrize("step", range(4))
def test_a_refresh_after_another_processs_invalidation_is_stored(make, step):
    """What was done before the load began does not void it, though this process had not read of it yet."""
    mine, others = make(), make()
    f = cache_aside(store=mine, namespace="refreshed", ttl=None, tags=("t",))(lambda x: next(numbers))
    g = cache_aside(store=others, namespace="refreshed", ttl=None, tags=("t",))(lambda x: -1)
    numbers = itertools.count()
    f(1)
    (lambda: g.invalidate(1), others.clear, g.invalidate_all, lambda: others.invalidate_tags("t"))[step]()
    assert f.refresh(1) == 1
    assert f.peek(1) == g.peek(1) == 1
    assert f.stats().refused_fills == 0


def test_an_invalidation_voids_a_load_also_where_anothers_value_stands(make):
    """Two functions of other names render one key: an invalidation leaves the other's value, and stops the load."""
    mine, others = make(), make()
    version = [0]
    during: list[Any] = []

    def load(x):
        now = version[0]
        while during:
            during.pop()()
        return now

    f = cache_aside(store=mine, ttl=None, key="shared:{x}")(load)
    same = cache_aside(store=others, ttl=None, key="shared:{x}")(load)
    others.set("shared:1", "a plain value")
    assert f.key_for(1) == "shared:1"

    def overtake() -> None:
        version[0] = 1
        assert same.invalidate(1) is False

    during.append(overtake)
    assert f(1) == 0
    assert mine.get("shared:1") == "a plain value"
    assert f(1) == same(1) == 1


# -- real processes ----------------------------------------------------------------------------------------------------

RACER = """
from memo import PickleFileStore
def begin(me, path):
    return PickleFileStore(path, max_size=None if me % 2 else 1_000, timeout=60), {"ttl": None}
def between(turn, store):
    if turn % 500 == 250:
        store.compact()
    if turn % 500 == 400:
        store.close()
"""


@pytest.mark.parametrize("processes", [2, 4])
def test_real_processes_in_a_race_are_never_given_anything_stale(path, tmp_path, processes):
    turns, patience = (100_000, 3_000) if NIGHTLY else (3_000, 120)
    race.run(RACER, tmp_path, processes, turns, path, patience=patience)
