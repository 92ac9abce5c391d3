"""The algorithm as a state machine: calls held half-way, one command at a time, and anyone may move next.

`perform` has a command's effect and keeps its answer, `deliver` sends the answer: between the two, others move. A rule
that did both would hide the gap between a read and the join that it leads to.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memo import MISSING, MemoryStore, aside, cache_aside
from memo.aside import GONE, TIMED_OUT, Call, Fill, Load, Plan, Read, Release, Take, Wait
from memo.entry import ABSENT, UNREAD
from memo.flight import Failure, Flight, Outcome, TaskFlight
from memo.policy import Policy
from memo.stats import FunctionCounters
from memo.testing import ManualClock

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
KEYS = (0, 1)
WHICH = st.sampled_from([0, 0, 0, 0, 1])
DOWN = [(), (), (), (Read,), (Take,), (Fill,), (Release,), (Fill, Release)]
TTL = 3
MOST = 3
"""Calls in flight at a time."""


class Raised(Exception):
    """What the user's function raises."""


class Loop:
    """An event loop, in so far as a flight asks about one."""

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True


def died() -> Outcome:
    return Failure.of(asyncio.CancelledError())


class Actor:
    """One generator of the algorithm's and what its driver would be doing for it now."""

    steps: Any
    flight: Any
    renew = False

    def __init__(self, world: World, x: int) -> None:
        self.world = world
        self.x = x
        self.command: Any = None
        self.answer: Any = None
        self.performed = True  # the first delivery starts the generator
        self.waits_for: Any = None
        self.there = False  # a value was stored when a Take was performed that was to look for one
        self.took = 0  # how many refreshes had taken their lease when this did
        self.outcome: Any = None  # of its Call
        world.actors.append(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.x}: {type(self.command).__name__}{' performed' * self.performed}"

    def blocked(self) -> bool:
        return not self.performed and self.waits_for is not None and self.waits_for.outcome is None

    def loading(self) -> bool:
        return type(self.command) is Call

    def perform(self) -> None:
        if type(self.command) is Call:
            self.answer = self.outcome = self.world.call(self.x)
        else:
            self.there = (
                type(self.command) is Take
                and not self.command.renew
                and Take not in self.world.down
                and self.world.stored(self.x) is not MISSING
            )
            self.answer = self.world.perform(self, self.command)
        self.performed = True

    def send(self) -> bool:
        """Deliver the answer; return whether there is another command."""
        try:
            self.command = self.steps.send(self.answer)
        except StopIteration as stop:
            self.answer = stop.value
            return False
        assert not (self.there and type(self.command) is Call), f"{self}: it loads what it could have found"
        self.performed = False
        if type(self.command) is Call:
            self.world.check_loads(self.x)
        return True


class Lookup(Actor):
    """A call of the function, by the blocking driver (inline) or the awaiting one."""

    def __init__(self, world: World, x: int) -> None:
        super().__init__(world, x)
        self.inline = world.inline
        self.floor = world.floor[x]
        self.reads = 0
        call = (world.space, world.keys[x], (x,), {}, world.tags, None)
        self.flight = Flight(*call) if self.inline else TaskFlight(*call, loop=Loop())
        self.steps = self._steps()
        self.deliver()

    def _steps(self) -> Any:
        first = None
        if self.world.shortcut and self.inline and self.world.stored(self.x) is MISSING:
            # Generated code has looked, and left the rest to the driver.
            first = ABSENT
            self.reads = 1
            self.world.lookups += 1
        return aside.lookup(self.world.plan, self.flight, first, self.inline)

    def perform(self) -> None:
        if type(self.command) in (Wait, Load):
            self.answer = self.waits_for.outcome
            assert self.answer is not None
            self.leave()
            self.performed = True
            return
        super().perform()
        if self.answer is UNREAD:
            self.floor = -1  # who could not even read has no promise from when the value is

    def leave(self) -> None:
        flight, self.waits_for = self.waits_for, None
        if not self.inline:
            flight.leave()

    def deliver(self) -> None:
        world = self.world
        if type(self.command) is Read:
            world.lookups += not self.reads  # the first read decides between hit and miss
            self.reads += 1
        if not self.send():
            self.end(self.answer)
        elif type(self.command) is Wait:
            flight = self.command.flight
            if self.inline or flight.enter():
                self.waits_for = flight
            else:
                self.answer, self.performed = GONE, True
        elif type(self.command) is Load:
            if self.command.joinable:
                self.waits_for = self.flight
                self.flight.task = Task(world, self)
            else:
                # It shares with nobody, so its load runs in the caller's own task.
                self.steps.close()
                self.steps, self.answer = aside.load(world.plan, self.flight, renew=False), None
                self.deliver()

    def end(self, outcome: Outcome) -> None:
        world = self.world
        if self.inline or self.flight.task is None:
            self.flight.settle(outcome)
        world.actors.remove(self)
        if isinstance(outcome.error, asyncio.CancelledError):
            assert self.flight.task.killed, f"{self} is cancelled, though neither it nor its load was"
            return
        if outcome.error is not None:
            assert type(outcome.error) is Raised
            return
        assert outcome.value in world.returned[self.x], f"{self}: nobody ever returned {outcome.value}"
        assert outcome.value >= self.floor, f"{self} is given {outcome.value}, older than {self.floor}"

    def give_up(self) -> None:
        """Its `wait_timeout` is over."""
        self.world.more[self.x] += 1
        self.leave()
        self.answer, self.performed = TIMED_OUT, True

    def interrupt(self) -> None:
        """Its driver closes the generator and settles what is its own."""
        if self.waits_for is not None:
            self.leave()
        if self.inline or self.flight.task is None:
            self.world.may_leave_a_lease.add(self.flight.key)
            self.flight.settle(died())
        self.steps.close()
        self.world.actors.remove(self)


class Refresh(Lookup):
    renew = True

    def _steps(self) -> Any:
        self.world.more[self.x] += 1
        if self.inline:
            return aside.refresh(self.world.plan, self.flight)
        return self._led()

    def _led(self) -> Any:
        return (yield Load(joinable=True))  # the awaiting driver gives the whole of it to a task


class Task(Actor):
    """The load of an awaited call: cancelled only where it awaits the user's function."""

    def __init__(self, world: World, call: Lookup) -> None:
        super().__init__(world, call.x)
        self.flight = call.flight
        self.renew = call.renew
        if call.renew:
            self.steps = aside.refresh(world.plan, self.flight)
        else:
            self.steps = aside.load(world.plan, self.flight, renew=False)
        self.cancelled = False
        self.killed = False  # by someone else than those who wait for it

    def loading(self) -> bool:
        return super().loading() and not self.cancelled

    def cancel(self) -> None:
        self.cancelled = True
        if self.command is None:
            # Its first step never comes; the callback of the task settles the flight.
            self.steps.close()
            self.end(died())

    def kill(self) -> None:
        self.killed = True
        self.cancel()

    def perform(self) -> None:
        if type(self.command) is Call and self.cancelled:
            self.answer, self.performed = died(), True
        else:
            super().perform()

    def deliver(self) -> None:
        if not self.send():
            self.end(self.answer)

    def end(self, outcome: Outcome) -> None:
        self.flight.settle(outcome)
        self.world.actors.remove(self)


class World:
    """A memory store, a source that returns its version, and calls in flight."""

    def __init__(self, tagged: bool, inline: bool, shortcut: bool = False) -> None:
        self.shortcut = shortcut  # the first look is made before the algorithm starts
        self.inline = inline  # a plain function, run by the blocking driver; else a coroutine function
        self.clock = ManualClock(start=100)
        self.store = MemoryStore(clock=self.clock, cleanup_interval=None)
        self.tags = ("t",) if tagged else ()
        self.f: Any = cache_aside(store=self.store, namespace="machine", tags=self.tags, ttl=TTL)(lambda x: x)
        self.space = self.f._self_memoized.attached()
        self.keys = {x: self.f._self_memoized._raw(x) for x in KEYS}
        policy = Policy(TTL, False, lambda value: value % 5, "machine")
        self.plan = Plan("machine", lambda x: None, policy, FunctionCounters("machine"), True, None)
        self.actors: list[Any] = []
        self.version = dict.fromkeys(KEYS, 1)
        self.floor = dict.fromkeys(KEYS, 0)  # the source's version when the latest invalidation returned
        self.more = dict.fromkeys(KEYS, 0)  # loads that may run beside the first
        self.returned: dict[int, set[int]] = {x: set() for x in KEYS}
        self.refreshes = dict.fromkeys(KEYS, 0)
        self.loads = 0
        self.raises = False
        self.down: set[type] = set()
        self.lookups = 0  # those that have found out whether they are hits
        self.may_leave_a_lease: set[Any] = set()  # keys whose leader had no chance to give it back

    def call(self, x: int) -> Outcome:
        self.loads += 1
        if self.raises:
            return Failure.of(Raised())
        self.returned[x].add(self.version[x])
        return Outcome(self.version[x])

    def stored(self, x: int) -> Any:
        return self.f.peek(x)

    def perform(self, actor: Actor, command: Any) -> Any:
        space, flight = self.space, actor.flight
        if type(command) in self.down:
            if type(command) is Release:
                self.may_leave_a_lease.add(flight.key)
            return UNREAD if type(command) in (Read, Take) else None
        if type(command) is Read:
            return space.read(flight.key)
        if type(command) is Take:
            self.refreshes[actor.x] += actor.renew
            actor.took = self.refreshes[actor.x]
            return space.take(flight.key, flight.tags, command.renew)
        if type(command) is Fill:
            stored = space.fill(flight.key, command.lease, command.value, command.ttl, flight.tags)
            assert not stored or actor.took == self.refreshes[actor.x], f"{actor} overwrites a later refresh"
            return stored
        assert type(command) is Release
        stands = space.leases.get(flight.key) is command.lease
        answer = space.release(flight.key, command.lease, command.remove)
        result = MISSING if actor.outcome is None else actor.outcome.value
        if stands and result is not MISSING and not result % 5:
            assert self.stored(actor.x) is MISSING, f"{actor}: its result is not kept, and an older one stays"
        return answer

    def invalidate(self, how: str, x: int) -> None:
        touched = (x,) if how in ("key", "set") else KEYS
        for each in touched:
            self.version[each] += 1
            self.more[each] += 1
        if how == "key":
            self.f.invalidate(x)
        elif how == "set":
            self.returned[x].add(self.version[x])
            self.f.set(self.version[x], x)
        elif how == "all":
            self.f.invalidate_all()
        elif how == "clear":
            self.store.clear()
        elif how == "pattern":
            self.store.delete_pattern("machine(*")
        else:
            self.store.invalidate_tags("t")
            if not self.tags:
                return
        for each in touched:
            self.floor[each] = self.version[each]

    # -- who may move ------------------------------------------------------------------------------------------------

    def calls(self) -> list[Any]:
        return [actor for actor in self.actors if isinstance(actor, Lookup)]

    def tasks(self) -> list[Any]:
        return [actor for actor in self.actors if isinstance(actor, Task) and not actor.cancelled]

    def performable(self) -> list[Any]:
        return [actor for actor in self.actors if not actor.performed and not actor.blocked()]

    def deliverable(self) -> list[Any]:
        return [actor for actor in self.actors if actor.performed]

    def movable(self) -> list[Any]:
        return [actor for actor in self.actors if not actor.blocked()]

    def waiting(self) -> list[Any]:
        return [actor for actor in self.calls() if type(actor.command) is Wait and actor.blocked()]

    def move(self, actor: Any, count: int) -> bool:
        """Let one perform and deliver so often; return False if it waits or has ended before."""
        for _ in range(count):
            if actor not in self.actors or actor.blocked():
                return False
            if actor.performed:
                actor.deliver()
            else:
                actor.perform()
        return True

    def finish(self, actor: Any) -> None:
        """Run one to its end, or until it waits."""
        assert not self.move(actor, 100), f"{actor} goes round in circles"

    # -- what always holds -------------------------------------------------------------------------------------------

    def check(self) -> None:
        counters, flights, space = self.plan.counters, self.space.flights, self.space
        assert counters.hits.value + counters.misses.value == self.lookups
        led = {id(actor.flight) for actor in self.actors if isinstance(actor, Task)}
        led |= {id(actor.flight) for actor in self.calls() if actor.flight.outcome is None and not actor.waits_for}
        for key, flight in flights.items():
            assert flight.key == key
            assert flight.outcome is None, "a landed flight is still registered"
            assert id(flight) in led, "nobody leads a flight that is registered"
        for actor in self.actors:
            assert not actor.blocked() or id(actor.waits_for) in led, f"{actor} waits for a flight that nobody leads"
        assert self.movable() or not self.actors
        for x in KEYS:
            stored = self.stored(x)
            if stored is not MISSING:
                assert stored in self.returned[x]
                assert stored >= self.floor[x], f"{stored} is stored at {x}, older than {self.floor[x]}"
            if not any(actor.x == x for actor in self.actors):
                self.more[x] = 0
        if not self.actors:
            assert flights == {}
            assert space.leases.keys() <= self.may_leave_a_lease

    def check_loads(self, x: int) -> None:
        loading = sum(actor.loading() for actor in self.actors if actor.x == x)
        assert loading <= 1 + self.more[x], f"{loading} loads of {x} at a time"

    def end(self) -> None:
        """Let everyone who is left get to an end."""
        while self.actors:
            movable = self.movable()
            assert movable, f"all wait: {self.actors}"
            self.finish(movable[0])
            self.check()


class AsideMachine(RuleBasedStateMachine):
    world: World

    @initialize(tagged=st.booleans(), inline=st.booleans(), shortcut=st.booleans())
    def make(self, tagged: bool, inline: bool, shortcut: bool) -> None:
        self.world = World(tagged, inline, shortcut)

    def pick(self, data: st.DataObject, actors: list[Any]) -> Any:
        index = data.draw(st.integers(0, len(actors) - 1), label="index")
        note(str(actors[index]))
        return actors[index]

    @precondition(lambda self: len(self.world.calls()) < MOST)
    @rule(x=WHICH)
    def start(self, x: int) -> None:
        Lookup(self.world, x)

    @precondition(lambda self: len(self.world.calls()) < MOST)
    @rule(x=WHICH)
    def start_refresh(self, x: int) -> None:
        Refresh(self.world, x)

    @precondition(lambda self: self.world.performable())
    @rule(data=st.data())
    def perform(self, data: st.DataObject) -> None:
        self.pick(data, self.world.performable()).perform()

    @precondition(lambda self: self.world.deliverable())
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.pick(data, self.world.deliverable()).deliver()

    @precondition(lambda self: self.world.movable())
    @rule(data=st.data(), count=st.integers(2, 7))
    def walk(self, data: st.DataObject, count: int) -> None:
        """Several performs and deliveries of one at a time, so that whole loads are common."""
        self.world.move(self.pick(data, self.world.movable()), count)

    @precondition(lambda self: self.world.movable())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.world.finish(self.pick(data, self.world.movable()))

    @precondition(lambda self: self.world.actors)
    @rule(data=st.data(), how=st.sampled_from(["interrupt", "kill", "give up"]))
    def leave(self, data: st.DataObject, how: str) -> None:
        if how == "interrupt" and self.world.calls():
            self.pick(data, self.world.calls()).interrupt()
        elif how == "kill" and self.world.tasks():
            self.pick(data, self.world.tasks()).kill()
        elif how == "give up" and self.world.waiting():
            self.pick(data, self.world.waiting()).give_up()

    @rule(how=st.sampled_from(["key", "key", "set", "all", "clear", "pattern", "tag"]), x=WHICH)
    def invalidate(self, how: str, x: int) -> None:
        self.world.invalidate(how, x)

    @rule(
        change=st.one_of(
            st.tuples(st.just("source"), WHICH),
            st.tuples(st.just("clock"), st.integers(1, TTL)),
            st.tuples(st.just("raises"), st.sampled_from([False, False, True])),
            st.tuples(st.just("down"), st.sampled_from(DOWN)),
        )
    )
    def world_changes(self, change: tuple[str, Any]) -> None:
        what, value = change
        if what == "source":
            self.world.version[value] += 1
        elif what == "clock":
            self.world.clock.advance(value)
        elif what == "raises":
            self.world.raises = value
        else:
            self.world.down = set(value)
            for x in KEYS:
                self.world.more[x] += bool(value)  # who cannot read must load

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end()


TestAsideMachine = AsideMachine.TestCase
TestAsideMachine.settings = settings(max_examples=settings().max_examples * 2)

MOVES = {"start": 5, "refresh": 1, "perform": 3, "deliver": 3, "walk": 5, "finish": 4, "leave": 1, "invalidate": 3}


def wander(chance: random.Random) -> None:
    """One random walk with the moves of the machine, which is ten times as fast as one that can be shrunk."""
    world = World(chance.random() < 0.5, chance.random() < 0.5, chance.random() < 0.5)
    world.raises = chance.random() < 0.1
    world.down = set(chance.choice(DOWN)) if chance.random() < 0.2 else set()
    slack = 99 if world.down else 0
    for move in chance.choices(list(MOVES), list(MOVES.values()), k=30):
        x = int(chance.random() < 0.1)
        for key in KEYS:
            world.more[key] += slack
        if move in ("start", "refresh"):
            if len(world.calls()) < MOST:
                (Lookup if move == "start" else Refresh)(world, x)
        elif move == "invalidate":
            world.invalidate(chance.choice(["key", "key", "set", "all", "clear", "pattern", "tag"]), x)
            if chance.random() < 0.2:
                world.clock.advance(chance.randint(1, TTL))
        elif move == "leave":
            how = chance.choice(["interrupt", "kill", "give_up"])
            who = {"interrupt": world.calls, "kill": world.tasks, "give_up": world.waiting}[how]()
            if who:
                getattr(chance.choice(who), how)()
        else:
            able = {"perform": world.performable, "deliver": world.deliverable}.get(move, world.movable)()
            if able and move == "walk":
                world.move(chance.choice(able), chance.randint(2, 8))
            elif able and move == "finish":
                world.finish(chance.choice(able))
            elif able:
                getattr(chance.choice(able), move)()
        world.check()
    world.end()


def test_no_random_walk_breaks_it():
    for seed in range(500_000 if NIGHTLY else 5_000):
        try:
            wander(random.Random(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


# -- scripts that these have found, each for one thing that must not be left out ---------------------------------------

BOTH = pytest.mark.parametrize("inline", [True, False], ids=["blocking", "awaiting"])


def at(command: type, performed: bool) -> Callable[[Any], bool]:
    return lambda actor: type(actor.command) is command and actor.performed == performed


LOOKED = at(Take, performed=True)
CALLING = at(Call, performed=False)
RETURNED = at(Call, performed=True)


def ahead(call: Lookup, reached: Callable[[Any], bool]) -> Lookup:
    """Move a call, or its task if it has one, until that has got so far."""
    world = call.world
    for _ in range(20):
        mover = getattr(call.flight, "task", None) or call
        if reached(mover):
            return call
        assert world.move(mover, 1)
    raise AssertionError(f"{call} does not get there")


def land(call: Lookup) -> None:
    while call in call.world.actors:
        call.world.finish(call)
        for task in call.world.tasks():
            if task.flight is call.flight:
                call.world.finish(task)


def registered(actor: Any) -> bool:
    return actor.world.space.flights.get(actor.flight.key) is actor.flight


def joins(late: Lookup) -> None:
    late.world.finish(late)
    assert late.blocked()
    assert late.waits_for is not late.flight


@BOTH
def test_the_second_look_finds_what_landed_between_read_and_join(inline):
    world = World(False, inline)
    one, two = Lookup(world, 0), Lookup(world, 0)
    one.perform()
    land(two)
    world.end()
    assert (world.loads, world.lookups) == (1, 2)
    assert one not in world.actors


@BOTH
@pytest.mark.parametrize("how", ["key", "set", "all", "clear", "pattern", "tag"])
@pytest.mark.parametrize("kind", [Lookup, Refresh])
def test_a_fill_is_refused_after_an_invalidation(inline, how, kind):
    world = World(True, inline)
    call = ahead(kind(world, 0), RETURNED)
    assert world.loads == 1
    world.invalidate(how, 0)
    world.check()
    world.finish(call)
    world.end()
    assert world.stored(0) == (world.version[0] if how == "set" else MISSING)


@BOTH
@pytest.mark.parametrize("how", ["key", "all", "clear", "pattern", "tag"])
def test_a_caller_after_an_invalidation_does_not_join_the_load_from_before(inline, how):
    world = World(True, inline)
    ahead(Lookup(world, 0), RETURNED)
    world.invalidate(how, 0)
    world.finish(Lookup(world, 0))
    world.end()
    assert world.loads == 2
    assert world.stored(0) == world.version[0]


@BOTH
def test_a_caller_whose_read_is_older_than_the_lease_reads_again_and_joins(inline):
    world = World(False, inline)
    early = Lookup(world, 0)
    early.perform()
    ahead(Lookup(world, 0), CALLING)
    joins(early)
    world.end()
    assert world.loads == 1


@BOTH
def test_a_caller_joins_a_flight_whose_load_has_not_begun(inline):
    world = World(False, inline)
    ahead(Lookup(world, 0), registered)
    joins(Lookup(world, 0))
    world.end()
    assert world.loads == 1


@BOTH
def test_what_a_second_look_found_is_the_leaders_alone(inline):
    world = World(False, inline)
    leader, another = Lookup(world, 0), Lookup(world, 0)
    leader.perform()
    land(another)
    ahead(leader, LOOKED)
    world.invalidate("key", 0)
    joins(Lookup(world, 0))
    world.end()
    assert world.stored(0) == world.version[0] == 2


@BOTH
def test_a_refresh_voids_the_lease_of_a_load_from_before_it(inline):
    world = World(False, inline)
    old = ahead(Lookup(world, 0), RETURNED)
    world.version[0] += 1
    land(Refresh(world, 0))
    assert world.stored(0) == 2
    world.finish(old)
    world.end()
    assert world.stored(0) == 2


@BOTH
def test_a_refresh_stands_in_the_place_of_the_flight_from_before_it(inline):
    """Whoever comes while it loads waits for it and not for the older load, and does not load beside both."""
    world = World(False, inline)
    ahead(Lookup(world, 0), RETURNED)
    world.version[0] += 1
    ahead(Refresh(world, 0), RETURNED)
    joins(Lookup(world, 0))
    world.end()
    assert world.loads == 2
    assert world.stored(0) == 2


@BOTH
def test_a_result_that_is_not_kept_takes_the_older_one_away(inline):
    world = World(False, inline)
    world.finish(Lookup(world, 0))
    world.end()
    assert world.stored(0) == 1
    world.version[0] = 5
    Refresh(world, 0)
    world.end()
    assert world.stored(0) is MISSING


@BOTH
def test_a_load_that_raises_gives_its_lease_back(inline):
    world = World(False, inline)
    world.raises = True
    Lookup(world, 0)
    world.end()
    world.check()
    assert world.space.leases == {}


@BOTH
def test_a_lookup_that_is_interrupted_anywhere_keeps_nobody_waiting(inline):
    for steps in range(8):
        world = World(False, inline)
        call = Lookup(world, 0)
        for _ in range(steps):
            world.move(getattr(call.flight, "task", None) or call, 1)
        other = Lookup(world, 0)
        world.finish(other)
        if call in world.actors:
            call.interrupt()
        world.check()
        world.end()
        assert world.stored(0) == 1


def test_a_flight_that_everyone_left_is_replaced_before_its_load_is_cancelled():
    world = World(False, False)
    call = ahead(Lookup(world, 0), CALLING)
    call.interrupt()
    assert world.space.flights == {}
    (dying,) = world.actors
    assert dying.cancelled
    late = ahead(Lookup(world, 0), CALLING)
    assert late.flight is not dying.flight
    world.end()
    assert world.loads == 1
