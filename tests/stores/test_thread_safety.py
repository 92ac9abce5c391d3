"""Threads, finalizers, signal handlers and Ctrl-C: no exception, no lock left held, nothing inconsistent within."""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from memo import MISSING, MemoryStore, SnapshotError, cache_aside
from memo.testing import ManualClock, check_memory_store

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"

SAFETY = 60
"""Seconds after which a test that hangs fails; nothing waits for them."""


@pytest.fixture
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class World:
    """A store with something of every kind in it."""

    def __init__(self, folder, serializer=None, max_size=8):
        self.clock = ManualClock(1_000.0)
        self.store = MemoryStore(
            max_size=max_size, clock=self.clock, cleanup_interval=None, default_ttl=50, serializer=serializer
        )
        self.plain = cache_aside(store=self.store, namespace="plain")(lambda x: ["plain", x])
        self.tagged = cache_aside(store=self.store, namespace="tagged", tags=("all", "x:{x}"))(lambda x: ["tagged", x])

        class Thing:
            @cache_aside(store=self.store)
            def method(self, x):
                return ["method", x]

        self.thing = Thing()
        self.method = self.thing.method
        self.path = str(folder / "saved")
        if not os.path.exists(self.path):
            self.store.save(self.path)
        self.store.set("number", 1, 5)
        self.store.set("text", "text")
        self.store.set("over", 1, 1)
        self.plain(1)
        self.tagged(1)
        self.method(1)
        self.store.set("old", 1)
        self.clock.advance(1)


OPERATIONS = {
    "get": lambda w: w.store.get("text"),
    "get absent": lambda w: w.store.get("absent"),
    "get expired": lambda w: w.store.get("over"),
    "get of a function": lambda w: w.store.get("tagged(1)"),
    "get_many": lambda w: w.store.get_many(["text", "over", "absent"]),
    "set": lambda w: w.store.set("text", "new"),
    "set new": lambda w: w.store.set("new", "new", 5),
    "set evicting": lambda w: [w.store.set(f"new {n}", n) for n in range(3)],
    "set_many": lambda w: w.store.set_many({"text": 1, "new": 2}),
    "delete": lambda w: w.store.delete("text"),
    "delete of a function": lambda w: w.store.delete("tagged(1)"),
    "delete_many": lambda w: w.store.delete_many(["text", "over", "tagged(1)"]),
    "exists": lambda w: [w.store.exists("text"), w.store.exists("over")],
    "increment": lambda w: w.store.increment("number"),
    "increment new": lambda w: w.store.increment("new"),
    "ttl": lambda w: w.store.ttl("number"),
    "expire": lambda w: w.store.expire("number", 9),
    "keys": lambda w: w.store.keys(),
    "delete_pattern": lambda w: w.store.delete_pattern("t*"),
    "clear": lambda w: w.store.clear(),
    "invalidate_tags": lambda w: w.store.invalidate_tags("x:1"),
    "cleanup": lambda w: w.store.cleanup(),
    "stats": lambda w: w.store.stats(),
    "save": lambda w: w.store.save(w.path),
    "load": lambda w: w.store.load(w.path),
    "repr": lambda w: [repr(w.store), len(w.store)],
    "hit": lambda w: w.plain(1),
    "miss": lambda w: w.plain(2),
    "miss evicting": lambda w: [w.plain(x) for x in range(5, 8)],
    "tagged hit": lambda w: w.tagged(1),
    "tagged miss": lambda w: w.tagged(2),
    "tagged miss evicting": lambda w: [w.tagged(x) for x in range(5, 8)],
    "method miss": lambda w: w.method(2),
    "new instance": lambda w: type(w.thing)().method(3),
    "writing after a death": lambda w: [type(w.thing)().method(3), w.store.set("text", 1)],
    "refresh": lambda w: w.tagged.refresh(1),
    "invalidate": lambda w: w.tagged.invalidate(1),
    "invalidate_all": lambda w: w.tagged.invalidate_all(),
    "invalidate_all of methods": lambda w: type(w.thing).method.invalidate_all(),
    "peek": lambda w: w.tagged.peek(1),
    "function.set": lambda w: w.tagged.set("set", 1),
    "a clock that ran backwards": lambda w: [w.clock.advance(-500), w.store.get("text")],
}


@pytest.fixture
def quick_disk(monkeypatch):
    """Nothing here is about what a crash of the machine leaves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def at_event(number, action, operation, world):
    """Perform an operation, and `action` at its event of that number; return how many events there were.

    Events are calls and returns, of Python and of C functions: where the interpreter looks for signals.
    """
    seen = 0

    def watch(frame, event, arg):
        nonlocal seen
        if _is_no_moment(frame, event, arg):
            return
        seen += 1
        if seen == number:
            action(world)

    sys.setprofile(watch)
    try:
        operation(world)
    finally:
        sys.setprofile(None)
    return seen


def _is_no_moment(frame, event, arg):
    """Whether the interpreter does not look for signals there, or it is in code that is not ours (files, pickle)."""
    return (
        f"{os.sep}memo{os.sep}" not in frame.f_code.co_filename
        # Before what ends a `with` and a `finally`, of a lock and of a context variable: it looks after these.
        or (event == "c_call" and getattr(arg, "__name__", "") in ("__exit__", "set"))
        or (event in ("call", "return") and frame.f_code.co_flags & inspect.CO_GENERATOR)  # maybe it is being closed
    )


def interrupt(world):
    sys.setprofile(None)
    raise KeyboardInterrupt


@pytest.mark.parametrize("serializer", [None, pickle] if NIGHTLY else [None], ids=repr)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("quick_disk")
def test_ctrl_c_at_any_moment_leaves_the_lock_free_and_the_store_sound(tmp_path, operation, serializer):
    number, left = 0, 1
    while left:
        number += 1
        world = World(tmp_path, serializer)
        try:
            left = at_event(number, interrupt, OPERATIONS[operation], world) >= number
        except (KeyboardInterrupt, SnapshotError):
            pass
        check_memory_store(world.store, leases=None, interrupted=True)
        # It goes on working, and nobody waits for what was broken off.
        for each in OPERATIONS["tagged miss evicting"], OPERATIONS["set evicting"], OPERATIONS[operation]:
            each(world)
        world.store.invalidate_tags("all")
        assert world.tagged.peek(5) is MISSING
        check_memory_store(world.store, leases=None, interrupted=True)
        world.store.clear()
        check_memory_store(world.store)
        assert world.plain(1) == ["plain", 1]
    assert number > 2


class Once:
    """Does something at a moment inside of an operation, as a signal handler would; never from within itself."""

    def __init__(self, act):
        self.act = act
        self.error = None

    def __call__(self, world):
        watch = sys.getprofile()
        sys.setprofile(None)
        try:
            self.act(world)
        except BaseException as error:
            self.error = error
        sys.setprofile(watch)


HANDLERS = {
    "read": lambda w: [w.store.get("text"), w.store.get("over"), w.plain(1), w.tagged(1), w.store.keys(), w.tagged(50)],
    "write": lambda w: [w.store.set("text", 2), w.store.set("handler", 1), w.tagged.set(1, 1), w.plain(50)],
    "clear": lambda w: w.store.clear(),
    "delete": lambda w: [
        w.store.stats(),
        w.store.cleanup(),
        w.store.delete_pattern("t*"),
        w.store.invalidate_tags("all"),
        w.plain.invalidate_all(),
    ],
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.usefixtures("quick_disk")
def test_a_signal_handler_at_any_moment_may_use_the_store(tmp_path, operation, handler):
    number, left = 0, 1
    while left:
        number += 1
        world = World(tmp_path)
        act = Once(HANDLERS[handler])
        left = at_event(number, act, OPERATIONS[operation], world) >= number
        assert act.error is None
        # One entry more for a moment, if the handler stored one between the making of room and its use.
        world.store._shelf.max_size += 1
        check_memory_store(world.store, leases=None, interrupted=True)
        world.store._shelf.max_size -= 1
        OPERATIONS["set evicting"](world)
        check_memory_store(world.store, leases=None, interrupted=True)
        world.store.clear()
        check_memory_store(world.store)


INVALIDATIONS = {
    "key": lambda w: w.tagged.invalidate(2),
    "tag": lambda w: w.store.invalidate_tags("x:2"),
    "function": lambda w: w.tagged.invalidate_all(),
    "pattern": lambda w: w.store.delete_pattern("tagged(2)"),
    "clear": lambda w: w.store.clear(),
}


@pytest.mark.parametrize("invalidation", INVALIDATIONS)
@pytest.mark.parametrize("operation", ["call", "refresh"])
def test_an_invalidation_at_any_moment_after_the_load_began_wins(tmp_path, invalidation, operation):
    """Between any two steps of a fill, too: no load that began before it is ever served after it."""
    number, left, late = 0, 1, 0
    while left:
        number += 1
        world = World(tmp_path)
        doomed = []

        def invalidate(world, doomed=doomed):
            INVALIDATIONS[invalidation](world)
            doomed.append(world.tagged.stats().loads == 2)

        act = Once(invalidate)
        load = world.tagged if operation == "call" else world.tagged.refresh
        left = at_event(number, act, lambda world, load=load: load(2), world) >= number
        assert act.error is None
        if doomed == [True]:
            late += 1
            assert world.tagged.peek(2) is MISSING
        check_memory_store(world.store, leases=None, interrupted=True)
    assert late > 10


@pytest.mark.usefixtures("untraced")
def test_real_signals_may_use_the_store(tmp_path):
    """Whatever the interpreter makes of the moments that the tests above enumerate."""
    world = World(tmp_path)
    handled = []

    def handle(number, frame):
        handled.append(number)
        world.store.get("text")
        world.store.set("handler", len(handled))
        world.tagged(len(handled) % 3 + 10)
        if len(handled) % 7 == 0:
            world.store.invalidate_tags("x:11")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        round_number = 0
        while len(handled) < 200:
            round_number += 1
            for operation in OPERATIONS:
                if operation not in ("save", "load"):
                    OPERATIONS[operation](world)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    world.store.set("end", 1)
    check_memory_store(world.store, interrupted=True)


# -- user code and the lock ------------------------------------------------------------------------------------------


class Witness:
    """Asks, from another thread, whether the store's lock is free at a moment at which user code runs."""

    def __init__(self):
        self.lock = None
        self.moments = []
        self._pool = ThreadPoolExecutor(1)

    def __call__(self, what):
        if self.lock is not None:
            self.moments.append((what, self._pool.submit(self._try).result(SAFETY)))

    def _try(self):
        free = self.lock.acquire(blocking=False)
        if free:
            self.lock.release()
        return free

    def close(self):
        self.lock = None
        self._pool.shutdown()


@pytest.fixture
def witness():
    witness = Witness()
    yield witness
    witness.close()


@pytest.mark.parametrize("serialized", [False, True])
def test_user_code_never_runs_while_the_lock_is_held(tmp_path, witness, serialized):
    """Else a value's finalizer, or a slow serializer, could bring every other thread to a halt, or for ever."""

    class Clock(ManualClock):
        def monotonic(self):
            witness("clock")
            return super().monotonic()

        def time(self):
            witness("clock")
            return super().time()

    class Serializer:
        @staticmethod
        def dumps(value):
            witness("dumps")
            return value

        @staticmethod
        def loads(value):
            witness("loads")
            return value

    class Key(str):
        def __eq__(self, other):
            witness("key == key")
            return str.__eq__(self, other)

        def __hash__(self):
            witness("hash(key)")
            return str.__hash__(self)

        def __str__(self):
            witness("str(key)")
            return "wrong"

    class Value:
        def __eq__(self, other):
            witness("value == value")
            return True

        def __hash__(self):
            witness("hash(value)")
            return 1

        def __reduce__(self):
            witness("value.__reduce__")
            return str, ()

        def __del__(self):
            witness("value.__del__")

    class Argument:
        def __init__(self, number):
            self.number = number

        def __cache_key__(self):
            witness("__cache_key__")
            return self.number

        def __eq__(self, other):
            witness("argument == argument")
            return self.number == other.number

        def __hash__(self):
            witness("hash(argument)")
            return hash(self.number)

    clock = Clock(1_000.0)
    store = MemoryStore(
        max_size=4, clock=clock, cleanup_interval=None, serializer=Serializer if serialized else None, default_ttl=50
    )
    witness.lock = store._shelf.lock
    load = cache_aside(store=store, namespace="load", tags=("all",))(lambda x: Value())
    key, other = Key("key"), Key("other")
    path = tmp_path / "saved"

    def fill():
        store.set(key, Value(), 5)
        store.set_many({other: Value()})
        load(1)
        load(Argument(2))

    for action in (
        lambda: store.set(key, Value()),
        lambda: [store.get(key), store.get_many([key, other]), store.exists(key), store.ttl(key)],
        lambda: store.expire(key, 7),
        lambda: [load(1), load(Argument(2)), load.peek(Argument(2))],
        lambda: load.refresh(Argument(2)),
        lambda: load.set(Value(), Argument(2)),
        lambda: [store.set(str(number), Value()) for number in range(5)],
        lambda: [store.delete(key), store.delete_many([other])],
        lambda: [store.keys(), store.delete_pattern("*")],
        lambda: store.clear(),
        lambda: store.invalidate_tags(Key("all")),
        lambda: [load.invalidate(Argument(2)), load.invalidate_all()],
        lambda: [clock.advance(5), store.cleanup()],
        lambda: [clock.advance(50), store.get(key), store.exists(other), load(1)],
        lambda: [clock.advance(-500), store.get(key)],
        lambda: [store.delete(key), store.increment(key), store.increment(key)],
        lambda: [store.save(path), store.load(path)],
    ):
        fill()
        action()
        gc.collect()
    store.set("a", Value())
    assert [what for what, free in witness.moments if not free] == []
    seen = {what for what, _ in witness.moments}
    assert seen >= {"clock", "value.__del__", "value.__reduce__", "__cache_key__"}
    assert ({"dumps", "loads"} <= seen) is serialized


def test_a_str_subclass_is_the_text_that_it_holds():
    class Key(str):
        def __eq__(self, other):
            return False

        __hash__ = str.__hash__

        def __str__(self):
            return "wrong"

    store = MemoryStore()
    store.set(Key("a"), 1)
    store.increment(Key("a"))
    assert store.get("a") == store.get(Key("a")) == 2
    assert [type(key) for key in store.keys()] == [str]  # noqa: SIM118 - a store is no dict
    assert store.delete(Key("a"))


@pytest.mark.usefixtures("untraced")
def test_finalizers_may_use_the_store():
    """Those of victims, and those that the collector runs at any allocation, whatever the store is about to do."""
    store = MemoryStore(max_size=20, cleanup_interval=None)
    load = cache_aside(store=store, namespace="load", tags=("all", "x:{x}"))(lambda x: Value(x))
    freed = []
    depth = 0

    class Value:
        def __init__(self, number, cyclic=False):
            self.number = number
            self.cycle = self if cyclic else None

        def __del__(self):
            nonlocal depth
            freed.append(self.number)
            if depth < 3:
                depth += 1
                try:
                    store.get(f"key {self.number}")
                    store.set(f"freed {self.number % 10}", self.number)
                    store.get("load(1)")
                    if self.number % 50 == 0:
                        store.clear()
                    elif self.number % 20 == 0:
                        store.invalidate_tags("all")
                finally:
                    depth -= 1

    before = gc.get_threshold()
    try:
        for number in range(600):
            gc.set_threshold(1 + number % 9)  # so that the garbage is found now in this allocation, now in that one
            Value(number, cyclic=True)
            store.set(f"key {number % 30}", Value(number))
            Value(number + 1, cyclic=True)
            load(number % 7)
            if number % 40 == 0:
                Value(number, cyclic=True)
                store.keys()
                Value(number, cyclic=True)
                store.invalidate_tags("x:3")
                Value(number, cyclic=True)
                load.invalidate_all()
                Value(number, cyclic=True)
                store.cleanup()
                store.stats()
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert len(freed) > 1_000
    store.set("end", 1)
    check_memory_store(store, interrupted=True)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [8, 16])
@pytest.mark.usefixtures("eager_switches")
def test_all_operations_from_many_threads(tmp_path, workers):
    world = World(tmp_path)
    store = world.store
    operations = [
        *(
            OPERATIONS[name]
            for name in OPERATIONS
            if name not in ("save", "load", "increment new", "a clock that ran backwards")
        ),
        lambda w: [w.store.get(key) for key in w.store.keys()],  # noqa: SIM118
        lambda w: w.clock.advance(1),
    ]
    gate = threading.Barrier(workers)
    failures = []

    def work(seed):
        gate.wait(SAFETY)
        try:
            for step in range(40 if not NIGHTLY else 2_000):
                number = seed * 31 + step * 17
                operations[number % len(operations)](world)
                store.set(f"key {number % 12}", number)
                world.tagged(number % 6)
                if number % 10 == 0:
                    store.save(tmp_path / f"saved {seed}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
    store.set("end", 1)
    check_memory_store(store, interrupted=True)
    counted = store.stats()
    assert counted.size == len(store._shelf.order) <= 8
    assert sorted(store.keys()) == sorted(
        {e.space.text_of(e.key) for e in store._shelf.order if e.fresh_until > 1e9}
        | {e.space.text_of(e.key) for e in store._shelf.order if e.fresh_until > world.clock.now}
    )
    store.invalidate_tags("all")
    assert all(world.tagged.peek(x) is MISSING for x in range(8))
    store.clear()
    check_memory_store(store)


def test_a_load_that_starts_while_all_are_invalidated_disturbs_nothing():
    """A miss takes its lease without the lock, so nothing may walk along the leases meanwhile."""
    store = MemoryStore()
    load = cache_aside(store=store, namespace="load")(lambda x: x)
    space = load._self_memoized.attached()
    for x in range(5):
        space.take(((int, x),), (), False)
    shelf, untagged = store._shelf, []

    class Untagging(type(shelf)):
        __slots__ = ()

        def untag(self, item):
            untagged.append(item)
            space.take(f"another {len(untagged)}", (), False)

    shelf.__class__ = Untagging
    load.invalidate_all()
    assert len(untagged) == 5


# -- what nobody may be able to fill up ------------------------------------------------------------------------------


def test_a_flood_of_new_keys_leaves_nothing_behind_but_max_size_entries():
    store = MemoryStore(max_size=100, cleanup_interval=None)
    found = cache_aside(store=store, namespace="found", tags=("all", "x:{x}"))(lambda x: x)
    absent = cache_aside(store=store, namespace="absent")(lambda x: None)
    failing = cache_aside(store=store, namespace="failing", tags=("x:{x}",))(lambda x: 1 // 0)
    for x in range(200_000 if NIGHTLY else 20_000):
        found(x)
        absent(x)
        with pytest.raises(ZeroDivisionError):
            failing(x)
        store.get(f"key {x}")
    check_memory_store(store)
    assert len(store) == 100
    assert set(store._shelf.tags) == {"all", *(f"x:{entry.value}" for entry in store._shelf.order)}
    for function in found, absent, failing:
        space = function._self_memoized.space
        assert len(space.flights) == len(space.leases) == 0
        assert len(space) <= 100
    # The fast path for all keys that were ever seen would be a leak as well.
    assert len(store._shelf.tables) == 4


def test_a_flood_of_values_that_cannot_be_stored_leaves_nothing_behind():
    store = MemoryStore(serializer=pickle)
    load = cache_aside(store=store, namespace="load", tags=("x:{x}",))(lambda x: lambda: x)
    for x in range(100):
        assert load(x)() == x
    check_memory_store(store)
    assert len(store) == 0
    assert load.stats().errors == {"fill": 100}


def test_a_refresh_whose_result_cannot_be_stored_leaves_nothing_older_to_serve():
    store = MemoryStore(serializer=pickle)
    results = ["old", lambda: "new", "newer"]
    load = cache_aside(store=store, namespace="load")(lambda: results.pop(0))
    assert load() == "old"
    assert load.refresh()() == "new"
    assert load() == "newer"


def test_a_flood_of_instances_leaves_nothing_behind():
    store = MemoryStore(cleanup_interval=None)

    class Thing:
        @cache_aside(store=store, tags=("t",))
        def method(self, x):
            return x

    references = []
    for x in range(2_000):
        thing = Thing()
        thing.method(x)
        references.append(weakref.ref(thing))
    del thing
    assert not any(reference() for reference in references)
    store.set("next writer", 1)
    assert len(store) == 1
    assert len(Thing.method._self_memoized.space.instances) == 0
    check_memory_store(store)


# -- what an invalidation costs --------------------------------------------------------------------------------------


def operations_of(action):
    """Count the calls of Python and C functions, which is what an operation costs on any machine."""
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("others", [0, 5_000])
def test_an_invalidation_costs_what_it_drops_however_much_else_there_is(others):
    store = MemoryStore(max_size=None, cleanup_interval=None)
    load = cache_aside(store=store, namespace="load", tags=("x:{x}",))(lambda x, y: y)
    other = cache_aside(store=store, namespace="other", tags=("y:{y}",))(lambda y: y)
    for y in range(others):
        other(y)
        load(y + 100, y)
    costs = []
    for count in 1, 10, 100:
        for y in range(count):
            load(1, y)
        costs.append(operations_of(lambda: store.invalidate_tags("x:1")))
    assert costs[0] < 60
    assert costs[1] < 10 * costs[0]
    assert costs[2] < 100 * costs[0]
    assert operations_of(lambda: store.invalidate_tags("nobody")) < 40
    other.invalidate_all()
    assert operations_of(lambda: other.invalidate_all()) < 40


def test_a_plain_hit_pays_nothing_for_tags():
    store = MemoryStore()
    plain = cache_aside(store=store, namespace="plain")(lambda x: x)
    tagged = cache_aside(store=store, namespace="tagged", tags=("all", "x:{x}"))(lambda x: x)
    for function in plain, tagged:
        function(1)
        function(1)
    assert operations_of(lambda: tagged(1)) == operations_of(lambda: plain(1))
