"""A KeyboardInterrupt at any point of any operation: no key is stuck, no lock is held, no count is off."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import signal
import sys
import threading

import pytest

from memo import MISSING, MemoryStore, cache_aside, flight, stats

PATIENCE = 20


@pytest.fixture(autouse=True)
def _no_strangers_in_collections():
    """Hypothesis times collections with a callback, and what strikes in there is lost: Python reports and drops it."""
    before = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = before


class Strike(BaseException):
    """Stands for KeyboardInterrupt where pytest itself would end at one that strays."""


def interrupting(count: int, error: type[BaseException]):
    """Return a profiler that raises at the `count`-th point at which the interpreter looks for signals.

    These are where a function is entered and where one in C has returned. (It also does at the end of each turn of a
    loop, which a profiler does not see, and before neither a call in C nor a return.)
    """
    left = count

    def profile(frame, event, arg):
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                raise error

    return profile


def struck(operation, count, error=Strike):
    """Perform `operation`, interrupted at its `count`-th point; return whether there was one."""
    before = sys.getprofile()
    try:
        sys.setprofile(interrupting(count, error))
        operation()
    except error:
        return True
    finally:
        sys.setprofile(before)
    return False


class World:
    def __init__(self, tags=(), max_size=10):
        self.store = MemoryStore(max_size=max_size, cleanup_interval=None)
        self.version = 0
        self.f = cache_aside(store=self.store, tags=tags, namespace="struck")(lambda x: (x, self.version))
        self.space = self.f._self_memoized.attached()
        self.calls = 0

    def check(self):
        """Assert that an interruption left nothing behind that a later call could suffer from."""
        f, shelf = self.f, self.store._shelf
        for lock in (shelf.lock, flight._lock, stats._lock):
            assert not lock._is_owned()
        assert self.space.flights == {}
        for entry in list(shelf.order):
            assert entry.space.get(entry.key) is entry
        assert self.store.stats().size == len(shelf.order) == len(self.store) <= self.store.max_size
        for x in (7, 8):
            answer = f(x)
            assert answer[0] == x
            assert f.peek(x) == answer
        self.version += 1
        self.store.invalidate_tags("t")
        if self.f._self_memoized._tags:
            assert f(7) == (7, self.version)
        f.invalidate(7)
        assert f.peek(7) is MISSING
        assert f(7) == (7, self.version)
        f.invalidate_all()
        assert len(self.store) == 0
        assert f(8) == (8, self.version)
        assert shelf.order.keys() == {self.space[key] for key in self.space}
        assert self.space.flights == self.space.leases == {}


OPERATIONS = {
    "miss": lambda w: w.f(7),
    "hit": lambda w: (w.f(8), w.f(8)),
    "hit by an encoded key": lambda w: (w.f([8]), w.f([8])),
    "refresh": lambda w: w.f.refresh(8),
    "invalidate": lambda w: w.f.invalidate(8),
    "invalidate_all": lambda w: w.f.invalidate_all(),
    "invalidate_tags": lambda w: w.store.invalidate_tags("t"),
    "set": lambda w: w.f.set((7, 0), 7),
    "set over": lambda w: w.f.set((8, 0), 8),
    "peek": lambda w: w.f.peek(8),
    "clear": lambda w: w.store.clear(),
    "stats": lambda w: w.f.stats(),
}


@pytest.mark.parametrize("tags", [(), ("t", "x:{x}")], ids=["plain", "tagged"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_at_every_point(operation, tags):
    count = 1
    while True:
        world = World(tags)
        world.f(8)
        hits, misses = world.f.stats().hits, world.f.stats().misses
        interrupted = struck(lambda world=world: OPERATIONS[operation](world), count)
        counted = world.f.stats()
        assert counted.hits + counted.misses - hits - misses <= 2
        world.check()
        if not interrupted:
            break
        count += 1
    assert count > 1


@pytest.mark.parametrize("tags", [(), ("t",)], ids=["plain", "tagged"])
def test_interrupted_at_every_point_of_a_miss_that_evicts(tags):
    count = 1
    while True:
        world = World(tags, max_size=2)
        world.f(8), world.f(9)
        interrupted = struck(lambda world=world: world.f(7), count)
        world.check()
        if not interrupted:
            break
        count += 1
    assert count > 20


@pytest.mark.parametrize("operation", ["miss", "refresh"])
def test_interrupted_at_every_point_after_the_function_with_others_waiting(spawn, until, look, operation):
    """The leader is to settle, whatever comes: its followers have the value or load it themselves."""
    count, struck_at_least_once = 1, False
    while True:
        world = World()
        f = world.f
        state = {"armed": True}

        def load(x, world=world, state=state, count=count):
            if state.pop("armed", False):
                until(lambda: look(world.f).followers() == 3)
                sys.setprofile(interrupting(count, Strike))
            return x, 0

        world.f._self_memoized.plan.__dict__["function"] = load

        def lead(f=f):
            try:
                (f if operation == "miss" else f.refresh)(7)
            except Strike:
                return "struck"
            finally:
                sys.setprofile(None)

        leader = spawn(lead)
        until(lambda f=f, leader=leader: look(f).flights or leader.done())
        followers = [spawn(f, 7) for _ in range(3)]
        for follower in followers:
            assert follower.result(PATIENCE) == (7, 0)
        interrupted = leader.result(PATIENCE)
        assert look(f).flights == {}
        assert not flight._lock._is_owned()
        if interrupted is None:
            break
        struck_at_least_once = True
        count += 1
    assert struck_at_least_once
    assert count > 10


def test_an_interruption_while_a_follower_is_woken_wakes_it_all_the_same(cached, look):
    """And one that was woken before is woken again, which is nothing."""
    f = cached(lambda x: x)
    f.invalidate(7)
    mine = f._self_memoized._flight(look(f).space, "key", (7,), {})
    locks = [threading.Lock() for _ in range(3)]
    for lock in locks:
        lock.acquire()

    def interrupted():
        if interrupted in mine.wakers and not struck_once:
            struck_once.append(1)
            raise Strike

    struck_once = []
    mine.wakers.extend([locks[0].release, interrupted, locks[1].release, locks[2].release])
    outcome = flight.Outcome(7)
    with pytest.raises(Strike):
        mine.settle(outcome)
    assert mine.outcome is outcome
    assert [lock.locked() for lock in locks] == [False, True, True]
    mine.settle(outcome)
    assert [lock.locked() for lock in locks] == [False, False, False]
    assert mine.wakers == []


def test_an_interrupted_follower_leaves_the_flight_to_the_others(spawn, until, look, source, cached):
    f = cached(source.read, wait_timeout=60)
    source.hold()
    leader = spawn(f, 7)
    source.arrived()
    for count in range(1, 60):
        if not struck(lambda: f.invalidate(8), count):
            break
    errors = []

    def follow(count):
        try:
            sys.setprofile(interrupting(count, Strike))
            f(7)
        except Strike:
            errors.append(count)
        finally:
            sys.setprofile(None)

    followers = [spawn(follow, count) for count in range(1, 40)]
    until(lambda: all(each.done() for each in followers) or look(f).followers())
    until(lambda: len(errors) + look(f).followers() >= 39)
    source.gate.set()
    assert leader.result(PATIENCE) == 0
    for follower in followers:
        follower.result(PATIENCE)
    assert errors
    assert look(f).flights == {}
    assert f(7) == 0


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such signals on this system")
@pytest.mark.parametrize("tags", [(), ("t",)], ids=["plain", "tagged"])
def test_real_signals(tags):
    """As Ctrl-C comes, hundreds of times, in the middle of everything."""
    world = World(tags)
    chance = random.Random(7)
    state = {"armed": False, "struck": 0}

    def handler(*_):
        if state["armed"]:
            state["armed"] = False
            state["struck"] += 1
            raise Strike

    names = sorted(OPERATIONS)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        while state["struck"] < 1_000:
            operation = OPERATIONS[chance.choice(names)]
            struck_before = state["struck"]
            try:
                state["armed"] = True
                for _ in range(50):
                    operation(world)
                state["armed"] = False
            except Strike:
                pass
            state["armed"] = False
            if state["struck"] > struck_before:
                world.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    world.check()


@pytest.mark.usefixtures("untraced")
def test_a_leader_that_is_killed_by_an_asynchronous_exception_keeps_nobody_waiting(
    spawn, until, look, cached, monkeypatch
):
    """As thread pools with time limits do it: at any bytecode of the leader's."""
    reported = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
    chance = random.Random(11)
    for turn in range(150):
        f = cached(lambda x: sum(range(50)) and x)
        f.invalidate(7)
        turns = []

        def lead(f=f, turns=turns):
            while True:
                turns.append(1)
                for x in range(5):
                    f(x)
                    f.invalidate(x)

        thread = threading.Thread(target=lead, daemon=True)
        thread.start()
        until(lambda turns=turns: turns)
        followers = [spawn(lambda f=f: [f(x % 5) for x in range(60)]) for _ in range(2)]
        for _ in range(chance.randrange(3_000)):
            pass
        assert kill(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)) == 1
        for follower in followers:
            assert follower.result(PATIENCE) == [x % 5 for x in range(60)], turn
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert look(f).flights == {}
    assert reported == [SystemExit] * 150


def test_an_interruption_of_the_loop_leaves_no_flight(cached, look):
    """`asyncio.run` under Ctrl-C: the loop cancels what is left in it, the load too."""

    async def load(x):
        raise KeyboardInterrupt

    f = cached(load)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(f(7))
    look(f).clean()
