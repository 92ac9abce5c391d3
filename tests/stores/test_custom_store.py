"""A store of somebody else's: four blocking methods are enough, and the contract says whether they are right."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import pickle
import threading

import pytest
from hypothesis import settings

from memo import MISSING, CustomStore, OptionError, Record, Store, StoreError, UnkeyableError, WallClock, cache_aside
from memo.errors import SerializationError
from memo.testing import ManualClock, StoreContract, StoreMachine

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as a hang."""


class DictStore(CustomStore):
    """The smallest one: a dict, which only this process knows."""

    shared = False

    def __init__(self, **options):
        super().__init__(**options)
        self.records = {}

    def load_record(self, key):
        return self.records.get(key)

    def save_record(self, key, record):
        self.records[key] = record

    def remove_record(self, key):
        return self.records.pop(key, None)

    def record_keys(self):
        return self.records


class PickledStore(DictStore):
    """Bytes, as a store that others share has them, and a dict that outlives the store."""

    shared = True

    def __init__(self, records=None, **options):
        super().__init__(**options)
        self.records = {} if records is None else records

    def load_record(self, key):
        data = self.records.get(key)
        return None if data is None else pickle.loads(data)

    def save_record(self, key, record):
        self.records[key] = pickle.dumps(record)


class FragileStore(DictStore):
    """Fails at what is in `down`, and does `then` before it does anything else."""

    def __init__(self, **options):
        super().__init__(**options)
        self.down = set()
        self.asked = []
        self.then = None

    def _check(self, name):
        self.asked.append(name)
        then, self.then = self.then, None
        if then is not None:
            then()
        if name in self.down:
            raise OSError(name)

    def load_record(self, key):
        self._check("load_record")
        return super().load_record(key)

    def save_record(self, key, record):
        self._check("save_record")
        super().save_record(key, record)

    def remove_record(self, key):
        self._check("remove_record")
        super().remove_record(key)

    def record_keys(self):
        self._check("record_keys")
        yield from list(super().record_keys())


class TestDictStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return DictStore(clock=clock, default_ttl=default_ttl)


class TestPickledStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return PickledStore(clock=clock, default_ttl=default_ttl)


class TestDictStoreWithASerializer(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return DictStore(clock=clock, default_ttl=default_ttl, serializer=pickle)


class DictMachine(StoreMachine):
    def make_store(self, clock):
        return DictStore(clock=clock, default_ttl=self.DEFAULT_TTL)


class AwaitedDictMachine(DictMachine):
    """Through worker threads: the async side that a store has without writing one."""

    awaits = True


class PickledMachine(StoreMachine):
    copies = True

    def make_store(self, clock):
        return PickledStore(clock=clock, default_ttl=self.DEFAULT_TTL)


class SerializingMachine(StoreMachine):
    copies = True

    def make_store(self, clock):
        return DictStore(clock=clock, default_ttl=self.DEFAULT_TTL, serializer=pickle)


TestDictMachine = DictMachine.TestCase
TestAwaitedDictMachine = AwaitedDictMachine.TestCase
TestPickledMachine = PickledMachine.TestCase
TestSerializingMachine = SerializingMachine.TestCase
if os.environ.get("MEMO_PROFILE") != "nightly":
    TestDictMachine.settings = TestPickledMachine.settings = TestSerializingMachine.settings = settings(max_examples=30)
    TestAwaitedDictMachine.settings = settings(max_examples=8)  # each step waits for a thread


@pytest.fixture
def store(clock):
    return FragileStore(clock=clock)


# -- construction ------------------------------------------------------------------------------------------------------


def test_a_subclass_without_all_methods_is_no_store():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Store,), {"get": lambda self, key: None})()
    with pytest.raises(TypeError, match=r"load_record.*record_keys.*remove_record.*save_record"):
        CustomStore()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": 1}, "monotonic"),
        ({"clock": None}, "monotonic"),
        ({"serializer": "jason"}, "dumps and loads"),
        ({"default_ttl": 0}, "default_ttl"),
    ],
)
def test_options_that_are_not_allowed(options, message):
    with pytest.raises(OptionError, match=message):
        DictStore(**options)


def test_its_text_says_no_key_and_no_value():
    store = DictStore(default_ttl=5)
    store.set("secret", "secret")
    assert repr(store) == "DictStore(default_ttl=5.0)"


def test_a_record_that_is_none_is_an_error_that_says_what_is_allowed(store):
    store.records["a"] = ("a", "tuple")
    with pytest.raises(StoreError, match=r"FragileStore\.load_record returned a tuple: allowed are None and a Record"):
        store.get("a")


def test_a_record_survives_as_the_row_that_it_is(store):
    store.set("a", 1, 10)
    row = list(store.records["a"])
    store.records["a"] = Record(*row)
    assert store.get("a") == 1
    assert store.ttl("a") == 10


# -- failures ----------------------------------------------------------------------------------------------------------

CALLS = {
    "get": (lambda s: s.get("a"), {"load_record"}),
    "exists": (lambda s: s.exists("a"), {"load_record"}),
    "ttl": (lambda s: s.ttl("a"), {"load_record"}),
    "expire": (lambda s: s.expire("a", 5), {"load_record", "save_record"}),
    "increment": (lambda s: s.increment("a"), {"load_record", "save_record"}),
    "set": (lambda s: s.set("a", 2), {"save_record"}),
    "delete": (lambda s: s.delete("a"), {"remove_record"}),
    "delete_many": (lambda s: s.delete_many(["a"]), {"remove_record"}),
    "delete_pattern": (lambda s: s.delete_pattern("*"), {"record_keys", "remove_record"}),
    "invalidate_tags": (lambda s: s.invalidate_tags("t"), {"record_keys"}),
    "clear": (lambda s: s.clear(), {"record_keys", "remove_record"}),
    "keys": (lambda s: s.keys(), {"record_keys"}),
    "cleanup": (lambda s: s.cleanup(), {"record_keys"}),
    "stats": (lambda s: s.stats(), {"record_keys"}),
}


@pytest.mark.parametrize(("call", "method"), [(call, method) for call in CALLS for method in sorted(CALLS[call][1])])
def test_what_the_four_methods_raise_is_reported_with_its_cause(store, call, method):
    store.set("a", 1)
    store.down.add(method)
    with pytest.raises(StoreError, match=rf"^FragileStore\.{method} failed: OSError$") as caught:
        CALLS[call][0](store)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_store_error_of_the_subclass_arrives_as_it_is(store):
    mine = StoreError("mine")

    def fail():
        raise mine

    store.then = fail
    with pytest.raises(StoreError) as caught:
        store.get("a")
    assert caught.value is mine


def test_reads_and_fills_that_fail_are_counted_and_the_call_goes_on(store):
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    store.down |= {"load_record", "save_record"}
    assert [f(1), f(1)] == [1, 1]
    assert f.stats().errors == {"read": 2, "fill": 2}
    assert (f.stats().hits, f.stats().misses) == (0, 2)
    store.down.clear()
    assert [f(1), f(1)] == [1, 1]
    assert f.stats().hits == 1


async def test_reads_and_fills_that_fail_are_counted_and_the_call_goes_on_async(store):
    async def load(x):
        return x

    f = cache_aside(store=store, ttl=None)(load)
    store.down |= {"load_record", "save_record"}
    assert [await f(1), await f(1)] == [1, 1]
    assert f.stats().errors == {"read": 2, "fill": 2}
    store.down.clear()
    assert [await f(1), await f(1)] == [1, 1]
    assert f.stats().hits == 1


def test_an_invalidation_that_fails_is_reported_and_has_voided_the_lease(store):
    """What could not be removed is loud; what could be promised, that no load under way is stored, is kept."""
    calls = []

    def load(x):
        calls.append(x)
        if len(calls) == 1:
            store.down.add("remove_record")
            with pytest.raises(StoreError):
                f.invalidate(x)
            store.down.clear()
        return x

    f = cache_aside(store=store, ttl=None)(load)
    f(1)
    assert f.stats().refused_fills == 1
    assert store.records == {}


def test_a_record_that_cannot_be_loaded_is_replaced_by_the_next_call():
    store = PickledStore()
    f = cache_aside(store=store, ttl=None, namespace="damaged")(lambda x: x)
    f(1)
    store.records["damaged(1)"] = b"damaged"
    assert f(1) == 1
    assert f.stats().errors == {"read": 1}
    assert [f(1), f(1)] == [1, 1]
    assert f.stats().errors == {"read": 1}


@pytest.mark.parametrize(
    "invalidate",
    [
        lambda store, f: store.delete("damaged(1)"),
        lambda store, f: store.delete_pattern("damaged*"),
        lambda store, f: store.invalidate_tags("t"),
        lambda store, f: store.clear(),
        lambda store, f: f.invalidate(1),
        lambda store, f: f.invalidate_all(),
        lambda store, f: store.cleanup(),
    ],
)
def test_a_record_that_cannot_be_loaded_is_removed_by_whatever_might_concern_it(invalidate):
    store = PickledStore()
    f = cache_aside(store=store, ttl=None, namespace="damaged", tags=("t",))(lambda x: x)
    f(1)
    store.records["damaged(1)"] = b"damaged"
    invalidate(store, f)
    assert store.records == {}


def test_a_record_that_cannot_be_loaded_hides_no_other_key():
    store = PickledStore()
    store.set("a", 1)
    store.records["b"] = b"damaged"
    assert store.keys() == ["a"]


def test_a_value_that_the_serializer_cannot_read_is_a_miss_and_goes():
    store = DictStore(serializer=pickle)
    f = cache_aside(store=store, ttl=None, namespace="damaged")(lambda x: x)
    f(1)
    store.set("a", 1)
    for key, record in store.records.items():
        store.records[key] = record._replace(value=b"damaged")
    assert f(1) == 1
    assert f.stats().misses == 2
    assert store.get("a", MISSING) is MISSING
    assert list(store.records) == ["damaged(1)"]
    assert f(1) == 1
    assert f.stats().hits == 1


def test_increment_of_a_value_that_the_serializer_cannot_read_starts_again():
    store = DictStore(serializer=pickle)
    store.increment("a", 5)
    store.records["a"] = store.records["a"]._replace(value=b"damaged")
    assert store.increment("a") == 1


def test_a_value_that_the_serializer_refuses_leaves_what_is_there_or_nothing():
    store = DictStore(serializer=pickle)
    store.set("a", 1)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        store.set("a", threading.Lock())
    assert store.get("a") == 1
    results = [1, threading.Lock()]
    f = cache_aside(store=store, ttl=None)(lambda x: results.pop(0))
    f(1)
    f.refresh(1)
    assert f.stats().errors == {"fill": 1}
    assert f.peek(1) is MISSING
    assert store._leases == {}


def test_a_write_that_fails_does_not_leave_the_old_value(store):
    store.set("a", "old")
    store.down.add("save_record")
    with pytest.raises(StoreError):
        store.set("a", "new")
    assert store.records == {}


def test_a_write_and_a_removal_that_fail_report_the_write(store):
    store.set("a", "old")
    store.down |= {"save_record", "remove_record"}
    with pytest.raises(StoreError, match="save_record"):
        store.set("a", "new")


def test_a_fill_and_all_else_that_fails_is_one_failure_to_the_caller(store):
    f = cache_aside(store=store, ttl=None)(lambda x: store.down.update({"save_record", "remove_record"}) or x)
    assert f(1) == 1
    assert f.stats().errors == {"fill": 1}
    assert store._leases == {}


# -- leases, owners, instances -----------------------------------------------------------------------------------------


def test_a_clock_that_runs_backwards_during_a_load_keeps_its_result_out(store, clock):
    f = cache_aside(store=store, ttl=10)(lambda x: clock.advance(-1))
    g = cache_aside(store=store, ttl=10, cache_none=True)(lambda x: clock.advance(-1))
    f(1)
    g(1)
    assert g.stats().refused_fills == 1
    assert store.records == {}


def test_expiry_during_a_load_lets_its_result_be_stored(store, clock):
    f = cache_aside(store=store, ttl=10)(lambda x: x)
    f(1)
    clock.advance(10)
    g = cache_aside(store=store, ttl=10)(lambda x: store.exists(f.key_for(1)) or x)
    assert g(1) == 1
    assert g.peek(1) == 1


def test_two_functions_of_one_name_never_share():
    store = DictStore()
    first = cache_aside(store=store, ttl=None, namespace="same")(lambda x: "first")
    second = cache_aside(store=store, ttl=None, namespace="same")(lambda x: "second")
    assert [first(1), second(1), first(1), second(1)] == ["first", "second"] * 2
    assert second.invalidate(1) is True
    assert first.peek(1) is MISSING
    assert first(1) == "first"
    assert second.invalidate(1) is False
    second.invalidate_all()
    assert first.peek(1) == "first"


def test_the_time_that_another_functions_result_has_left_is_nobody_elses():
    store = DictStore()
    first = cache_aside(store=store, ttl=10, namespace="same")(lambda x: "first")
    second = cache_aside(store=store, ttl=10, namespace="same")(lambda x: "second")
    first(1)
    assert first.ttl_left(1) is not None
    assert second.ttl_left(1) is None


def test_leases_are_one_for_each_function_and_new_where_that_is_asked_for():
    store = DictStore()
    first = cache_aside(store=store, namespace="same")(lambda x: x)._self_memoized.attached()
    second = cache_aside(store=store, namespace="same")(lambda x: x)._self_memoized.attached()
    lease = first.take("key", (), False).lease
    assert first.take("key", (), False).lease is lease
    assert first.read("key").lease is lease
    assert second.read("key").lease is None
    renewed = first.take("key", (), True).lease
    assert renewed is not lease
    assert first.fill("key", lease, "old", None, ()) is False
    others = second.take("key", (), False).lease
    assert others is not renewed
    assert first.fill("key", renewed, "old", None, ()) is False
    assert second.fill("key", others, "new", None, ()) is True


def test_a_fill_that_fails_has_taken_its_lease_away():
    space = cache_aside(store=DictStore(serializer=pickle))(lambda x: x)._self_memoized.attached()
    lease = space.take("key", (), False).lease
    with pytest.raises(SerializationError, match="cannot keep a _thread"):
        space.fill("key", lease, threading.Lock(), None, ())
    assert space.read("key").lease is None


def test_what_is_removed_is_counted_if_it_had_time_left(clock):
    store = DictStore(clock=clock)
    store.set_many({"a": 1, "b": 2}, 10)
    store.delete("a")
    store.delete("a")
    clock.advance(10)
    store.delete("b")
    counted = store.stats()
    assert (counted.deletes, counted.expirations) == (1, 1)


def test_a_method_that_is_gone_leaves_no_entries_of_its_instances():
    store = DictStore()

    class Item:
        pass

    price = cache_aside(store=store, ttl=None)(lambda self: 1)
    price._self_memoized.method = True
    item = Item()
    price(item)
    assert len(store.records) == 1
    del price
    gc.collect()
    store.set("a", 1)
    assert list(store.records) == ["a"]


def test_a_load_of_another_function_of_that_key_takes_the_lease_away():
    store = DictStore()

    def outer(x):
        second(x)
        return "first"

    first = cache_aside(store=store, ttl=None, namespace="same")(outer)
    second = cache_aside(store=store, ttl=None, namespace="same")(lambda x: "second")
    assert first(1) == "first"
    assert first.stats().refused_fills == 1
    assert second.peek(1) == "second"


def test_a_read_that_fails_once_is_a_miss_and_the_second_look_finds_the_value(store):
    f = cache_aside(store=store, ttl=None)(lambda x: pytest.fail("loaded"))
    f.set("value", 7)

    def fail():
        raise OSError

    store.then = fail
    assert f(7) == "value"
    assert (f.stats().hits, f.stats().misses) == (0, 1)
    assert f.stats().errors == {"read": 1}


@pytest.mark.parametrize("tag", ["of:1", "of:2"])
def test_a_lease_that_two_loads_share_bears_the_tags_of_both(tag):
    """A parameter that is left out of the key may give one key two tags."""
    store = DictStore()
    space = cache_aside(store=store)(lambda x: x)._self_memoized.attached()
    first = space.take("key", ("of:1",), False)
    assert space.take("key", ("of:2",), False).lease is first.lease
    store.invalidate_tags(tag)
    assert space.fill("key", first.lease, "old", None, ()) is False


def test_a_later_process_finds_what_an_earlier_one_has_stored():
    """On the wall clock: a monotonic one means nothing to another process."""
    clock = ManualClock(1_000.0)
    records = {}
    first = cache_aside(store=PickledStore(records, clock=clock), ttl=10, namespace="same")(lambda x: "first")
    assert first(1) == "first"
    second = cache_aside(store=PickledStore(records, clock=clock), ttl=10, namespace="same")(lambda x: "second")
    assert second(1) == "first"
    assert second.ttl_left(1) == 10
    clock.advance(10)
    assert second(1) == "second"


def test_a_shared_store_reads_the_wall_and_one_of_this_process_does_not():
    class Clock(WallClock):
        def time(self):
            return 5_000.0

        def monotonic(self):
            return 7.0

    shared, own = PickledStore(clock=Clock()), DictStore(clock=Clock())
    shared.set("a", 1, 10)
    own.set("a", 1, 10)
    assert pickle.loads(shared.records["a"]).fresh_until == 5_010
    assert own.records["a"].fresh_until == 17


def test_a_record_from_what_is_now_the_future_is_not_there(clock):
    """A clock was put back while no process ran: such a record would outlive its ttl."""
    records = {}
    PickledStore(records, clock=clock).set("a", 1, 10)
    clock.advance(-5)
    later = PickledStore(records, clock=clock)
    assert later.get("a") is None
    assert later.keys() == []
    clock.advance(5)
    assert later.get("a") == 1


def test_instances_have_entries_of_their_own_and_leave_with_later_writes():
    store = DictStore()

    class Shop:
        @cache_aside(store=store, ttl=None)
        def price(self, item):
            return [item]

    one, two = Shop(), Shop()
    assert one.price(1) is one.price(1)
    assert one.price(1) is not two.price(1)
    assert one.price.invalidate(1) is True
    assert one.price.peek(1) is MISSING
    assert two.price.peek(1) == [1]
    one.price(1)
    del one
    gc.collect()
    for number in range(4):
        store.set(f"other{number}", 1)
    assert store.keys("*Shop*") == [two.price.key_for(1)]
    Shop.price.invalidate_all()
    assert two.price.peek(1) is MISSING
    assert len(store.keys()) == 4


def test_an_instance_without_weak_references_is_refused():
    class Slotted:
        __slots__ = ()

        @cache_aside(store=DictStore(), ttl=None)
        def price(self, item):
            return item

    with pytest.raises(UnkeyableError, match="__weakref__"):
        Slotted().price(1)


def test_a_shared_store_refuses_instances_that_count_by_identity():
    class Shop:
        @cache_aside(store=PickledStore(), ttl=None)
        def price(self, item):
            return item

    with pytest.raises(UnkeyableError, match="counts by identity, which another process cannot know"):
        Shop().price(1)


def test_calls_count_while_the_function_is_with_the_store():
    store = DictStore()
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    space, counters = f._self_memoized.attached(), f._self_memoized.counters
    f(1)
    space.leave()
    f(1)
    f(1)
    assert (store.stats().hits, store.stats().misses) == (0, 1)
    assert space.join(counters.hits, counters.misses) is True
    assert space.join(counters.hits, counters.misses) is True
    f(1)
    assert (store.stats().hits, store.stats().misses) == (1, 1)
    assert f.stats().hits == 3
    del f
    gc.collect()
    store.set("a", 1)
    assert space.join(counters.hits, counters.misses) is False
    assert (store.stats().hits, store.stats().misses) == (1, 1)


def test_a_function_that_is_gone_leaves_its_counts_and_not_its_entries():
    store = DictStore()
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    f(1)
    f(1)
    del f
    gc.collect()
    store.set("a", 1)
    assert store.keys() == ["a"]
    assert (store.stats().hits, store.stats().misses) == (1, 1)
    assert store._books._functions == {}


def test_a_shared_store_keeps_the_entries_of_a_function_that_is_gone():
    store = PickledStore()
    f = cache_aside(store=store, ttl=None, namespace="gone")(lambda x: x)
    f(1)
    del f
    gc.collect()
    store.set("a", 1)
    assert sorted(store.keys()) == ["a", "gone(1)"]
    assert store._books._functions == {}


def test_the_records_of_the_dead_are_looked_for_once_in_as_many_writes_as_there_are_records():
    store = FragileStore()
    for number in range(100):
        store.set(f"key{number}", number)

    class Shop:
        @cache_aside(store=store, ttl=None)
        def price(self, item):
            return item

    for number in range(100):
        Shop().price(number)
    looks = store.asked.count("record_keys")
    assert looks <= 6
    assert len(store.records) < 250


def test_what_fails_while_the_dead_are_looked_for_is_nobodys_failure(store):
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    f(1)
    del f
    gc.collect()
    store.down.add("record_keys")
    store.set("a", 1)
    store.down.clear()
    assert len(store.records) == 2
    store.set("b", 1)
    assert sorted(store.records) == ["a", "b"]


def test_cleanup_removes_what_is_over_and_nothing_else(clock):
    store = DictStore(clock=clock)
    store.set_many({"a": 1, "b": 2}, 10)
    store.set("c", 3)
    assert store.cleanup() == 0
    clock.advance(10)
    assert store.stats().size == 3
    assert store.cleanup() == 2
    assert list(store.records) == ["c"]
    assert store.stats().expirations == 2


# -- windows -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_for_an_error_is_served_in_its_place_and_for_nothing_else(clock):
    store = DictStore(clock=clock)
    fails = []

    def load(x):
        if fails:
            raise OSError
        return x

    f = cache_aside(store=store, ttl=10, stale_if_error=5)(load)
    f(1)
    fails.append(True)
    clock.advance(10)
    assert f.peek(1) is MISSING
    assert store.get(f.key_for(1)) is None
    assert f(1) == 1
    clock.advance(5)
    with pytest.raises(OSError):
        f(1)
    assert store.records == {}


async def test_a_stale_result_is_served_and_refreshed(clock):
    store = DictStore(clock=clock)
    loads = []

    async def load(x):
        loads.append(x)
        return len(loads)

    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5)(load)
    assert await f(1) == 1
    clock.advance(10)
    assert await f(1) == 1
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while await f.peek(1) is MISSING and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.001)
    assert await f(1) == 2
    assert f.stats().stale_hits == 1


def test_a_new_ttl_moves_the_windows_too(clock):
    store = DictStore(clock=clock)
    f = cache_aside(store=store, ttl=10, stale_while_revalidate=5, stale_if_error=7)(lambda x: x)
    f(1)
    clock.advance(4)
    assert store.expire(f.key_for(1), 20) is True
    record = store.records[f.key_for(1)]
    assert record[3:] == (1_004, 1_024, 1_024, 1_029, 1_031)
    assert store.expire(f.key_for(1), None) is True
    assert store.records[f.key_for(1)].kept_until == math.inf
    assert store.expire(f.key_for(1), 5) is True
    assert store.records[f.key_for(1)].kept_until == 1_009


# -- threads and processes ---------------------------------------------------------------------------------------------


def test_counts_are_exact_under_threads():
    store = DictStore()
    f = cache_aside(store=store, ttl=None, single_flight=None)(lambda x: x)
    gate = threading.Barrier(4)

    found = []

    def work():
        gate.wait(PATIENCE)
        for number in range(200):
            store.set(f"a{number % 7}", number)
            found.append(store.get(f"a{number % 5}", MISSING) is not MISSING)
            f(number % 3)
            removed.append(store.delete(f"a{number % 7}"))

    removed = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    counted, calls = store.stats(), f.stats()
    assert calls.hits + calls.misses == len(found) == len(removed) == 800
    assert counted.hits == sum(found) + calls.hits
    assert counted.hits + counted.misses == 1_600
    assert counted.sets == 800 + calls.loads - calls.refused_fills
    assert counted.deletes == sum(removed)
    assert counted.size == len(store.records) == 3


def test_increment_with_a_serializer_is_atomic():
    """The serializer runs outside of the lock: what another thread wrote meanwhile is seen, and added to again."""
    store = None

    class Meddling:
        meddled = False

        def dumps(self, value):
            if not self.meddled:
                self.meddled = True
                store.increment("a", 10)
            return pickle.dumps(value)

        loads = staticmethod(pickle.loads)

    store = DictStore(serializer=Meddling())
    assert store.increment("a") == 11
    assert store.get("a") == 11


def test_serializers_run_without_the_lock():
    store = None
    owned = []

    class Watching:
        @staticmethod
        def dumps(value):
            owned.append(store._lock._is_owned())
            return pickle.dumps(value)

        @staticmethod
        def loads(data):
            owned.append(store._lock._is_owned())
            return pickle.loads(data)

    store = DictStore(serializer=Watching())
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    f(1)
    f(1)
    f.peek(1)
    store.set("a", 1)
    store.increment("a")
    store.get("a")
    assert owned == [False] * 8  # what is filled is read again


def test_a_function_that_comes_does_not_wait_for_a_record_that_is_written(store):
    """The first call of any function holds a lock that all first calls want."""
    arrived, gate = threading.Event(), threading.Event()

    def hold():
        arrived.set()
        gate.wait(PATIENCE)

    store.then = hold
    writer = threading.Thread(target=store.set, args=("a", 1))
    writer.start()
    assert arrived.wait(PATIENCE)
    f = cache_aside(store=store, ttl=None)(lambda x: x)
    other = threading.Thread(target=f._self_memoized.attached)
    other.start()
    other.join(PATIENCE)
    alive = other.is_alive()
    gate.set()
    writer.join(PATIENCE)
    assert not alive


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_the_child_of_a_fork_finds_the_lock_free(untraced, store):
    """The fork waits until the other thread has done its write, and so has the child a whole store."""
    arrived, gate, forked = threading.Event(), threading.Event(), []

    def hold():
        arrived.set()
        gate.wait(PATIENCE)

    store.then = hold
    writer = threading.Thread(target=store.set, args=("a", 1))
    writer.start()
    assert arrived.wait(PATIENCE)

    def fork():
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os._exit(0 if store.get("a") == 1 and store.increment("a") == 2 else 1)
            os._exit(2)
        forked.append(child)

    forker = threading.Thread(target=fork)
    forker.start()
    gate.set()
    forker.join(PATIENCE)
    writer.join(PATIENCE)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == 0
    assert store.get("a") == 1


async def test_the_awaited_side_leaves_the_event_loop_free(store):
    """While one call is in the store, the loop goes on: it is the loop that opens the gate."""
    gate = threading.Event()
    store.then = lambda: gate.wait(PATIENCE)
    waiting = asyncio.create_task(store.aget("a"))
    await asyncio.sleep(0)
    gate.set()
    assert await waiting is None
