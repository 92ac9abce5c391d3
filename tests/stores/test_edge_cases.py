"""Unusual values, keys, sizes and clocks."""

from __future__ import annotations

import math
import pickle
import time

import freezegun
import pytest
import time_machine

from memo import MISSING, MemoryStore, OptionError, UnkeyableError, WallClock, cache_aside
from memo.testing import ManualClock, check_memory_store


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None)


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", [None, pickle])
@pytest.mark.parametrize(
    "value", [None, False, 0, 0.0, "", b"", (), [], {}, set(), MISSING, ..., NotImplemented], ids=repr
)
def test_false_values_are_values(value, serializer):
    store = MemoryStore(serializer=serializer)
    store.set("a", value)
    assert store.exists("a")
    assert store.keys() == ["a"]
    if value is not MISSING:  # which says that there is none, to whoever reads it
        assert store.get("a", "default") == value
        assert store.get_many(["a"]) == {"a": value}
        assert store.stats().hits == 2
    assert store.delete("a")


class Strange:
    """Equal to everything and to nothing, true to nobody, and without a hash."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("compared")

    def __bool__(self):
        raise RuntimeError("asked whether it is true")

    def __len__(self):
        raise RuntimeError("measured")

    def __getattr__(self, name):
        raise RuntimeError(f"asked for {name}")


def test_values_are_never_looked_at(store):
    strange = Strange()
    store.set("a", strange)
    assert store.get("a") is strange
    load = cache_aside(store=store)(lambda: strange)
    assert load() is load() is load.peek() is strange
    store.get_many(["a"])
    store.keys()
    store.expire("a", 1)
    assert store.delete("a")
    store.clear()


@pytest.mark.parametrize("value", [math.nan, lambda: 1, object(), type, ValueError("x"), math, pytest], ids=repr)
def test_values_of_any_type_are_kept_by_reference(store, value):
    store.set("a", value)
    assert store.get("a") is value


def test_a_value_that_is_the_default(store):
    default = object()
    assert store.get("a", default) is default
    store.set("a", default)
    assert store.get("a", default) is default
    assert store.stats().hits == 1


def test_a_caller_who_changes_a_value_changes_it_for_all(store):
    """Documented: by reference, so a hit costs no copy; `serializer=` is the way out."""
    value = [1]
    store.set("a", value)
    value.append(2)
    store.get("a").append(3)
    assert store.get("a") == [1, 2, 3]
    load = cache_aside(store=store)(lambda: [1])
    load().append(2)
    assert load() == [1, 2]


def test_with_a_serializer_every_caller_has_a_copy_of_its_own():
    store = MemoryStore(serializer=pickle)
    value = [1]
    store.set("a", value)
    value.append(2)
    store.get("a").append(3)
    assert store.get("a") == [1]
    load = cache_aside(store=store)(lambda: [1])
    load().append(2)
    load().append(2)
    load.peek().append(2)
    assert load() == load.peek() == [1]


def test_a_value_that_cannot_be_serialized_is_an_error_and_leaves_what_was_there():
    store = MemoryStore(serializer=pickle)
    store.set("a", 1)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        store.set("a", lambda: 1)
    assert store.get("a") == 1
    check_memory_store(store)


@pytest.mark.parametrize("read", ["get", "call", "peek"])
def test_a_value_that_can_no_longer_be_decoded_is_absent(read):
    class Moody:
        broken = verify = False
        dumps = staticmethod(pickle.dumps)

        @classmethod
        def loads(cls, data):
            if cls.broken:
                raise ModuleNotFoundError("gone")
            return pickle.loads(data)

    store = MemoryStore(serializer=Moody)
    loads = []
    load = cache_aside(store=store, namespace="load", tags=("t",))(lambda: loads.append(1) or len(loads))
    load()
    Moody.broken = True
    if read == "call":
        assert load() == 2
        assert len(store) == 1
    else:
        assert (store.get("load()") if read == "get" else load.peek()) in (None, MISSING)
        assert len(store) == 0
    check_memory_store(store)


def test_a_value_that_breaks_between_two_looks_is_loaded_again():
    class Moody:
        broken = verify = False
        dumps = staticmethod(pickle.dumps)

        @classmethod
        def loads(cls, data):
            return 1 // 0 if cls.broken else pickle.loads(data)

    store = MemoryStore(serializer=Moody)
    load = cache_aside(store=store, namespace="load")(lambda: "value")
    load()
    space = load._self_memoized.space
    Moody.broken = True
    reading = space.take((), (), False)
    assert len(store) == 0
    assert space.fill((), getattr(reading, "lease", reading), "new", None, ()) is True


@pytest.mark.parametrize("serializer", [1, "pickles", object(), len])
def test_what_is_no_serializer_is_refused(serializer):
    with pytest.raises(OptionError, match="serializer"):
        MemoryStore(serializer=serializer)


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["", " ", "\x00", "\n", "\udc80", "\U0001f9ff", "é", "e\u0301", "k" * 1_000_000, "(", "f("]
)
def test_any_text_is_a_key(store, key):
    load = cache_aside(store=store, namespace="f")(lambda x: x)
    load(1)
    store.set(key, "value")
    assert store.get(key) == "value"
    assert store.exists(key)
    assert key in store.keys()  # noqa: SIM118 - a store is no dict
    assert store.ttl(key) == math.inf
    assert store.delete(key)
    assert not store.exists(key)


@pytest.mark.parametrize("key", [None, 0, 1.5, b"a", ("a",), ["a"], object()], ids=repr)
def test_a_key_that_is_no_text_is_refused(store, key):
    for call in (store.get, store.delete, store.exists, store.increment, store.ttl):
        with pytest.raises(OptionError, match="text"):
            call(key)
    for call in (lambda: store.set(key, 1), lambda: store.expire(key, 1), lambda: store.get_many([key])):
        with pytest.raises(OptionError, match="text"):
            call()
    with pytest.raises(OptionError):
        store.set_many({"a": 1, 2: 1})
    with pytest.raises(OptionError):
        store.delete_many(["a", 1])
    assert len(store) == 0


def test_delete_many_finds_a_bad_key_before_it_deletes_anything(store):
    store.set("a", 1)
    with pytest.raises(OptionError):
        store.delete_many(["a", 1])
    assert store.get("a") == 1


def test_a_plain_value_takes_the_place_of_a_functions_entry(store):
    load = cache_aside(store=store, namespace="load")(lambda x: "loaded")
    load(1)
    store.set("load(1)", "plain")
    assert load.peek(1) is MISSING
    assert store.get("load(1)") == "plain"
    assert store.keys() == ["load(1)"]
    assert load(1) == "loaded"
    assert store.delete("load(1)") is True
    assert store.keys() == []
    assert load.peek(1) is MISSING


KEYS_THAT_ARE_NO_CALLS = [
    "f",
    "f(",
    "f()",
    "f(1",
    "f(1,2)",
    "f(x=1)",
    "f( 1)",
    "f(1 )",
    "f(+1)",
    "f(0x1)",
    "f(1)x",
    "f(a)",
]


@pytest.mark.parametrize("key", KEYS_THAT_ARE_NO_CALLS)
def test_a_key_that_only_looks_like_a_call_is_a_plain_one(store, key):
    load = cache_aside(store=store, namespace="f")(lambda x: x)
    load(1)
    assert store.get(key) is None
    assert not store.exists(key)
    assert not store.delete(key)
    assert load.peek(1) == 1


@pytest.mark.parametrize(
    "argument", [1, -1, "a", "a,b)", b"\x00", None, True, 2.5, math.inf, -math.inf, 10**30, (1, [2]), "x" * 500]
)
def test_a_functions_entry_is_found_by_its_key_whatever_the_argument(store, argument):
    load = cache_aside(store=store, namespace="f")(lambda x, *rest, flag=None: "value")

    class Thing:
        @cache_aside(store=store)
        def method(self, x):
            return "value"

    thing = Thing()
    load(argument, argument, flag=argument)
    thing.method(argument)
    for key in load.key_for(argument, argument, flag=argument), thing.method.key_for(argument):
        assert key in store.keys()  # noqa: SIM118
        assert store.get(key) == "value"
        assert store.exists(key)
        assert store.ttl(key) == math.inf
        assert store.expire(key, 5)
        assert store.ttl(key) == 5
        assert store.delete(key)
    assert store.keys() == []


def test_an_instance_that_cannot_be_weakly_referenced_is_refused_with_the_ways_out(store):
    class Slotted:
        __slots__ = ()

        @cache_aside(store=store)
        def method(self):
            return 1

    with pytest.raises(UnkeyableError, match=r"__weakref__.*__cache_key__"):
        Slotted().method()


# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_store_of_one_entry():
    store = MemoryStore(max_size=1)
    load = cache_aside(store=store, namespace="load", tags=("t",))(lambda x: x)
    store.set("a", 1)
    store.set("a", 2)
    assert store.get("a") == 2
    store.set("b", 1)
    assert store.keys() == ["b"]
    load(1)
    assert store.keys() == ["load(1)"]
    load(1)
    load(2)
    assert store.keys() == ["load(2)"]
    assert store.increment("n") == 1
    assert store.increment("n") == 2
    assert len(store) == 1
    check_memory_store(store)


def test_a_recursive_function_on_a_store_of_one_entry():
    store = MemoryStore(max_size=1)

    @cache_aside(store=store)
    def factorial(n):
        return n * factorial(n - 1) if n else 1

    assert factorial(20) == math.factorial(20)
    assert len(store) == 1
    check_memory_store(store)


# -- clocks ----------------------------------------------------------------------------------------------------------

LOOKS = {
    "get": lambda store: store.get("a"),
    "exists": lambda store: store.exists("a"),
    "ttl": lambda store: store.ttl("a"),
    "keys": lambda store: store.keys(),
    "expire": lambda store: store.expire("a", 1),
    "increment": lambda store: store.increment("b"),
    "delete_pattern": lambda store: store.delete_pattern("x"),
    "delete": lambda store: store.delete("x") or store.exists("a"),
    "cleanup": lambda store: store.cleanup(),
    "set": lambda store: store.set("b", 1, 5),
    "invalidate_tags": lambda store: store.invalidate_tags("x"),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("back", [0.001, 86_400])
def test_a_clock_that_ran_backwards_empties_the_store(store, clock, look, back):
    """An entry from what is now the future would outlive its ttl."""
    load = cache_aside(store=store, namespace="load", tags=("t",))(lambda x: x)
    store.set("a", 1, 10)
    load(1)
    store.exists("a")
    clock.advance(-back)
    LOOKS[look](store)
    assert "a" not in store.keys()  # noqa: SIM118
    assert load.peek(1) is MISSING
    check_memory_store(store)


def test_a_function_sees_the_clock_run_backwards_at_its_next_call(store, clock):
    loads = []
    load = cache_aside(store=store, ttl=10)(lambda: loads.append(1) or len(loads))
    assert load() == 1
    assert load() == 1
    clock.advance(-1)
    assert load() == 2
    clock.advance(9)
    assert load() == 2


def test_no_load_that_began_before_the_clock_ran_backwards_is_stored(store, clock):
    during = [lambda: clock.advance(-500)]
    load = cache_aside(store=store, ttl=10)(lambda: [each() for each in during] and 1)
    store.set("a", 1, 5)
    load()
    assert load.peek() is MISSING
    check_memory_store(store)


def test_the_store_goes_on_after_the_clock_ran_backwards(store, clock):
    clock.advance(-900)
    store.set("a", 1, 10)
    clock.advance(9.5)
    assert store.get("a") == 1
    clock.advance(0.5)
    assert store.get("a") is None


def test_equal_timestamps_leave_the_order_to_the_order_of_use():
    """A clock that stands still, as a coarse one does between two ticks."""
    store = MemoryStore(max_size=3, clock=ManualClock(), default_ttl=10)
    for key in "abc":
        store.set(key, key)
    store.get("a")
    store.set("d", "d")
    store.set("e", "e")
    assert sorted(store.keys()) == ["a", "d", "e"]


def test_a_clock_at_zero_and_one_below_it():
    for start in 0.0, -1_000.0:
        clock = ManualClock(start)
        store = MemoryStore(clock=clock)
        store.set("a", 1, 10)
        assert store.get("a") == 1
        clock.advance(10)
        assert store.get("a") is None


def test_a_suspended_machine_makes_lives_longer_and_nothing_else(store, clock):
    """A monotonic clock that stands still while the machine sleeps: the documented cost of never reading the wall."""
    store.set("a", 1, 10)
    clock.advance(0)
    assert store.ttl("a") == 10


def test_the_wall_clock_is_not_read_by_what_stays_in_memory(clock, monkeypatch):
    monkeypatch.setattr(clock, "time", lambda: pytest.fail("the wall clock was read"))
    store = MemoryStore(clock=clock, default_ttl=5)
    store.set("a", 1)
    clock.advance(5)
    assert store.get("a") is None
    assert cache_aside(store=store)(lambda: 1)() == 1


@pytest.mark.parametrize("clock", [None, 1, object(), time.monotonic])
def test_what_is_no_clock_is_refused(clock):
    with pytest.raises(OptionError, match="clock"):
        MemoryStore(clock=clock)


def test_freezegun_reaches_a_store_and_a_function():
    """Peers read the clock through a name of their own, and never expire under freezegun."""
    with freezegun.freeze_time("2024-01-01") as frozen:
        store = MemoryStore(cleanup_interval=None)
        load = cache_aside(store=store, ttl=60)(lambda: object())
        store.set("a", 1, 60)
        first = load()
        frozen.tick(59.5)
        assert store.get("a") == 1
        assert store.ttl("a") == pytest.approx(0.5)
        assert load() is first
        frozen.tick(0.5)
        assert store.get("a") is None
        assert load.peek() is MISSING
        assert load() is not first


def test_freezing_and_thawing_a_store_that_was_there_before_only_empties_it():
    store = MemoryStore(cleanup_interval=None)
    store.set("a", 1, 60)
    with freezegun.freeze_time("2024-01-01") as frozen:
        store.set("b", 1, 60)
        assert store.get("b") == 1
        frozen.tick(60)
        assert store.get("b") is None
    store.set("c", 1, 60)
    assert store.get("c") == 1
    assert 59 < store.ttl("c") <= 60


def test_time_machine_with_a_wall_clock():
    with time_machine.travel(1_700_000_000, tick=False) as traveller:
        store = MemoryStore(clock=WallClock(), cleanup_interval=None)
        load = cache_aside(store=store, ttl=60)(lambda: object())
        store.set("a", 1, 60)
        first = load()
        traveller.shift(59.5)
        assert store.get("a") == 1
        assert load() is first
        traveller.shift(0.5)
        assert store.get("a") is None
        assert load() is not first
        store.set("b", 1, 60)
        traveller.shift(-3_600)
        assert store.get("b") is None
        assert len(store) == 0
