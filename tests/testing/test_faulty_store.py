"""The store that fails, delays and corrupts on demand: it does what it is told, and cached functions live with it."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import settings

from memo import (
    MISSING,
    CustomStore,
    MemoryStore,
    NullStore,
    OptionError,
    Store,
    StoreError,
    UnkeyableError,
    cache_aside,
    override,
)
from memo.stats import Counter
from memo.stores.base import Space
from memo.testing import FaultyStore, StoreContract, StoreMachine
from memo.testing import faulty as faulty_module

PATIENCE = 30.0
"""Seconds after which something that should have happened counts as a hang."""


class DictStore(CustomStore):
    """Shared in name only, so that what is refused on shared stores is refused here."""

    def __init__(self, **options):
        super().__init__(**options)
        self.records = {}

    def load_record(self, key):
        return self.records.get(key)

    def save_record(self, key, record):
        self.records[key] = record

    def remove_record(self, key):
        self.records.pop(key, None)

    def record_keys(self):
        return self.records


class TestFaultlessMemoryStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return FaultyStore(MemoryStore(clock=clock, default_ttl=default_ttl, cleanup_interval=None))


class TestFaultlessCustomStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return FaultyStore(DictStore(clock=clock, default_ttl=default_ttl))


class FaultlessMachine(StoreMachine):
    def make_store(self, clock):
        return FaultyStore(MemoryStore(clock=clock, default_ttl=self.DEFAULT_TTL, cleanup_interval=None))


class AwaitedFaultlessMachine(FaultlessMachine):
    awaits = True


TestFaultlessMachine = FaultlessMachine.TestCase
TestAwaitedFaultlessMachine = AwaitedFaultlessMachine.TestCase
TestFaultlessMachine.settings = settings(max_examples=settings().max_examples // 2)
TestAwaitedFaultlessMachine.settings = settings(max_examples=settings().max_examples // 4)  # it takes twice as long


@pytest.fixture
def faulty(clock):
    return FaultyStore(MemoryStore(clock=clock, cleanup_interval=None), clock=clock)


@pytest.fixture(params=["sync", "async"])
def side(request, faulty):
    """The store's methods, and cached functions, through one side; every call is a plain one here."""

    class Side:
        awaits = request.param == "async"

        def __getattr__(self, name):
            return lambda *args: self.run(getattr(faulty, f"a{name}" if self.awaits else name), *args)

        def run(self, function, *args):
            if not self.awaits:
                return function(*args)

            async def awaited():
                return await function(*args)

            return asyncio.run(awaited())

        def cached(self, load, **options):
            async def aload(x):
                return load(x)

            return cache_aside(store=faulty, **{"ttl": None, **options})(aload if self.awaits else load)

    return Side()


# -- what it can be told -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tell", "message"),
    [
        (lambda f: f.fail("reed"), r"no operation 'reed': allowed are clear, close, delete, .*, read, "),
        (lambda f: f.fail("aget"), "no operation 'aget'"),
        (lambda f: f.heal("get", "reed"), "no operation 'reed'"),
        (lambda f: f.delay("reed", lambda: None), "no operation 'reed'"),
        (lambda f: f.corrupt("set"), "no operation 'set': allowed are get, get_many, peek, read, take$"),
        (lambda f: f.fail("get", times=0), "times=0: allowed are an int of at least 1"),
        (lambda f: f.fail("get", times=True), "times=True"),
        (lambda f: f.corrupt(times=1.0), r"times=1\.0"),
        (lambda f: f.fail(error="down"), "error='down': allowed are an exception"),
        (lambda f: f.fail(error=int), "error=.*int"),
        (lambda f: f.delay("get", 0), "gate=0"),
        (lambda f: f.delay("get", True), "gate=True"),
        (lambda f: f.delay("get", math.nan), "gate=nan"),
        (lambda f: f.delay("get", "5"), "gate='5': allowed are an event, a duration and a function"),
        (lambda f: f.delay("get", None), "gate=None"),
        (lambda f: f.delay("get", OSError), "gate=.*OSError"),
        (lambda f: f.corrupt(change=1), "change=1: allowed are a function of the value"),
        (lambda f: FaultyStore(f.inner).delay("get", 5), r"gate=5\.0: on which clock"),
        (lambda f: FaultyStore("memory://"), "inner='memory://': allowed is a store"),
        (lambda f: FaultyStore(f.inner, clock=5), "clock=5: allowed is one with advance"),
    ],
)
def test_what_it_cannot_be_told_is_an_error_that_says_what_is_allowed(faulty, tell, message):
    with pytest.raises(OptionError, match=message):
        tell(faulty)
    faulty.set("a", 1)
    assert faulty.get("a") == 1


def test_there_is_an_operation_for_every_method_of_stores_and_spaces():
    """A method that is added to either must be able to fail, too."""
    own = {name for kind in (Store, Space) for name in vars(kind) if not name.startswith("_")}
    twins = {name for name in own if name[0] == "a" and name[1:] in own}
    not_io = {
        "alone",
        "asks_again",
        "attach",
        "of",
        "join",
        "leave",
        "shared",
        "flights",
        "local",
        "raw",
        "instance",
        "default_ttl",
        "fleet",
        "look",
    }
    per_key = {name for name in vars(Space) if name.endswith("_many")}  # each key is an operation of its own
    assert own - twins - not_io - per_key == set(FaultyStore.OPERATIONS)


def test_it_says_what_it_is_around(faulty):
    assert repr(faulty) == f"FaultyStore({faulty.inner!r})"
    assert faulty.shared is False
    assert FaultyStore(DictStore()).shared is True


def test_calls_are_counted_by_name_those_that_fail_too(faulty, side):
    side.set("a", 1)
    faulty.fail("get", times=1)
    with pytest.raises(StoreError):
        side.get("a")
    side.get("a")
    f = side.cached(lambda x: x)
    side.run(f, 1)
    assert faulty.calls == {"set": 1, "get": 2, "read": 1, "take": 1, "fill": 1}
    faulty.calls.clear()  # a copy
    assert faulty.calls["get"] == 2


# -- failures ----------------------------------------------------------------------------------------------------------

OF_STORES = {
    "get": ("a",),
    "set": ("a", 1),
    "delete": ("a",),
    "exists": ("a",),
    "increment": ("a",),
    "keys": (),
    "delete_pattern": ("*",),
    "get_many": (["a"],),
    "set_many": ({"a": 1},),
    "delete_many": (["a"],),
    "ttl": ("a",),
    "expire": ("a", 5),
    "clear": (),
    "invalidate_tags": ("t",),
    "stats": (),
    "close": (),
}


@pytest.mark.parametrize("name", OF_STORES)
def test_each_operation_of_a_store_fails_by_its_name_on_both_sides(faulty, side, name):
    error = OSError("down")
    faulty.fail(name, error=error, times=2)
    for _ in range(2):
        with pytest.raises(OSError, match="down") as caught:
            getattr(side, name)(*OF_STORES[name])
        assert caught.value is error
    getattr(side, name)(*OF_STORES[name])
    assert faulty.calls == {name: 3}


def test_without_names_everything_fails_until_it_is_healed(faulty, side):
    faulty.fail()
    for name, arguments in OF_STORES.items():
        with pytest.raises(StoreError, match=f"^{name} fails on demand$"):
            getattr(side, name)(*arguments)
    faulty.heal("get", "set")
    side.set("a", 1)
    assert side.get("a") == 1
    with pytest.raises(StoreError):
        side.exists("a")
    faulty.heal()
    assert side.exists("a") is True


def test_errors_come_in_the_order_in_which_they_were_asked_for(faulty, side):
    faulty.fail("get", error=OSError, times=1)
    faulty.fail("get", error=StopIteration, times=1)
    with pytest.raises(OSError):
        side.get("a")
    with pytest.raises(StopIteration if not side.awaits else RuntimeError):
        side.get("a")
    assert side.get("a") is None


def test_times_are_of_all_the_operations_together(faulty, side):
    faulty.fail("get", "exists", times=2)
    for name in "get", "exists":
        with pytest.raises(StoreError):
            getattr(side, name)("a")
    assert side.get("a") is None


def test_a_reply_that_is_lost_is_an_error_after_the_deed(faulty, side):
    faulty.fail("set", error=TimeoutError, after=True, times=1)
    with pytest.raises(TimeoutError):
        side.set("a", 1)
    assert side.get("a") == 1


def test_threads_get_exactly_as_many_failures_as_were_asked_for(faulty):
    faulty.fail("get", times=50)

    def fails(_):
        try:
            faulty.get("a")
        except StoreError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(fails, range(400))) == 50
    assert faulty.calls["get"] == 400


# -- delays ------------------------------------------------------------------------------------------------------------


def test_a_duration_passes_on_the_clock(faulty, side, clock):
    faulty.delay("get", 5, times=1)
    faulty.delay("get", timedelta(seconds=2))
    side.set("a", 1, 10)
    before = clock.now
    assert side.get("a") == 1
    assert clock.now == before + 7
    assert side.get("a") == 1
    assert clock.now == before + 9
    assert side.get("a") is None


def test_an_answer_that_is_late_is_the_one_from_before(faulty, side, clock):
    side.set("a", 1, 10)
    faulty.delay("get", 60, after=True)
    assert side.get("a") == 1
    assert side.get("a") is None


def test_an_event_is_waited_for(faulty, side):
    """Whoever asks is held where the gate is; what is done meanwhile comes first."""
    arrived, gate = threading.Event(), threading.Event()
    faulty.delay("get", arrived.set)
    faulty.delay("get", gate)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(side.get, "a")
        assert arrived.wait(PATIENCE)
        faulty.set("a", "meanwhile")
        gate.set()
        assert waiting.result(PATIENCE) == "meanwhile"


async def test_an_event_of_asyncio_is_waited_for_on_the_awaited_side(faulty):
    gate = asyncio.Event()
    faulty.delay("get", gate)
    waiting = asyncio.create_task(faulty.aget("a"))
    await asyncio.sleep(0)
    assert faulty.calls["get"] == 1
    await faulty.aset("a", "meanwhile")
    gate.set()
    assert await waiting == "meanwhile"


def test_an_event_of_asyncio_is_no_gate_for_the_blocking_side(faulty):
    faulty.delay("get", asyncio.Event())
    with pytest.raises(OptionError, match=r"get: an asyncio\.Event .* take a threading\.Event"):
        faulty.get("a")


def test_an_event_that_is_never_set_is_an_error_and_no_hang(faulty, side, monkeypatch):
    monkeypatch.setattr(faulty_module, "PATIENCE", 0.01)
    faulty.delay("get", threading.Event())
    with pytest.raises(TimeoutError, match="get: the event that delay"):
        side.get("a")


async def test_an_event_of_asyncio_that_is_never_set_is_an_error_and_no_hang(faulty, monkeypatch):
    monkeypatch.setattr(faulty_module, "PATIENCE", 0.01)
    faulty.delay("get", asyncio.Event())
    with pytest.raises(TimeoutError, match="get: the event that delay"):
        await faulty.aget("a")


def test_a_function_is_called_in_the_middle(faulty, side):
    faulty.delay("get", lambda: faulty.set("a", "in the middle"))
    assert side.get("a") == "in the middle"


async def test_a_coroutine_function_is_awaited_in_the_middle(faulty):
    faulty.delay("get", lambda: faulty.aset("a", "in the middle"))
    assert await faulty.aget("a") == "in the middle"


def test_what_must_be_awaited_is_no_gate_for_the_blocking_side(faulty):
    faulty.delay("get", lambda: faulty.aset("a", 1), times=1)
    with pytest.raises(OptionError, match="get: the gate must be awaited"):
        faulty.get("a")

    class Awaitable:
        def __await__(self):
            yield

    faulty.delay("get", Awaitable)
    with pytest.raises(OptionError, match="get: the gate must be awaited"):
        faulty.get("a")


# -- corruption --------------------------------------------------------------------------------------------------------


def test_a_value_that_was_changed_is_what_is_read(faulty, side):
    side.set_many({"a": 1, "b": None})
    faulty.corrupt(change=lambda value: ("changed", value))
    assert side.get("a") == ("changed", 1)
    assert side.get("b") == ("changed", None)
    assert side.get("c", "default") == "default"
    assert side.get_many(iter(["a", "c"])) == {"a": ("changed", 1)}
    faulty.heal()
    assert side.get("a") == 1


def test_a_value_that_cannot_be_decoded_is_not_there_and_removed(faulty, side):
    side.set_many({"a": 1, "b": 2, "c": 3})
    faulty.corrupt("get", times=1)
    faulty.corrupt("get_many", times=1)
    assert side.get("a", "default") == "default"
    assert side.get_many(["a", "b"]) == {}
    faulty.heal()
    assert side.keys() == ["c"]


def test_what_a_change_raises_the_read_raises(faulty, side):
    side.set("a", 1)
    faulty.corrupt("get", change=lambda value: pickle.loads(b"damaged"))
    with pytest.raises(pickle.UnpicklingError):
        side.get("a")


# -- cached functions --------------------------------------------------------------------------------------------------


def test_a_store_that_is_down_is_a_miss_and_counted(faulty, side):
    loads = []
    f = side.cached(lambda x: loads.append(x) or x)
    faulty.fail()
    assert [side.run(f, 7), side.run(f, 7)] == [7, 7]
    assert loads == [7, 7]
    assert f.stats().errors == {"read": 2, "take": 2}
    faulty.heal()
    assert [side.run(f, 7), side.run(f, 7)] == [7, 7]
    assert f.stats().hits == 1


def test_a_fill_that_fails_returns_the_result(faulty, side):
    f = side.cached(lambda x: x)
    faulty.fail("fill", error=OSError("full"), times=1)
    assert side.run(f, 7) == 7
    assert f.stats().errors == {"fill": 1}
    assert side.run(f.peek, 7) is MISSING
    assert [side.run(f, 7), side.run(f, 7)] == [7, 7]
    assert f.stats().hits == 1


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("remove", lambda f: (f.invalidate, 7)),
        ("remove_all", lambda f: (f.invalidate_all,)),
        ("put", lambda f: (f.set, 1, 7)),
        ("peek", lambda f: (f.peek, 7)),
        ("left", lambda f: (f.ttl_left, 7)),
    ],
)
def test_what_a_helper_could_not_do_is_raised(faulty, side, operation, call):
    f = side.cached(lambda x: x)
    side.run(f, 7)
    faulty.fail(operation)
    with pytest.raises(StoreError, match=f"^{operation} fails on demand$"):
        side.run(*call(f))
    faulty.heal()
    assert side.run(f.peek, 7) == 7


def test_an_invalidation_of_a_store_that_is_down_is_raised(faulty, side):
    f = side.cached(lambda x: x, tags=("t",))
    side.run(f, 7)
    faulty.fail("invalidate_tags", "clear", "delete_pattern", "delete")
    for name, arguments in ("invalidate_tags", ("t",)), ("clear", ()), ("delete_pattern", ("*",)), ("delete", ("a",)):
        with pytest.raises(StoreError):
            getattr(side, name)(*arguments)
    assert side.run(f.peek, 7) == 7


def test_a_result_that_is_not_kept_is_returned_though_its_lease_cannot_be_given_back(faulty, side):
    f = side.cached(lambda x: None)
    faulty.fail("release")
    assert side.run(f, 7) is None
    assert f.stats().errors == {"release": 1}


def test_a_result_that_cannot_be_decoded_is_loaded_again(faulty, side):
    loads = []
    f = side.cached(lambda x: loads.append(x) or len(loads))
    assert side.run(f, 7) == 1
    faulty.corrupt("read", times=1)
    assert side.run(f, 7) == 2
    assert side.run(f, 7) == 2
    assert f.stats().errors == {}


def test_a_result_that_cannot_be_decoded_at_the_second_look_is_loaded_again(faulty, side):
    loads = []
    f = side.cached(lambda x: loads.append(x) or len(loads))
    assert side.run(f, 7) == 1
    faulty.fail("read", times=1)
    faulty.corrupt("take", times=1)
    assert side.run(f, 7) == 2
    assert side.run(f, 7) == 2


def test_a_result_that_was_changed_is_what_a_hit_returns(faulty, side):
    f = side.cached(lambda x: x)
    side.run(f, 7)
    faulty.corrupt("read", "take", "peek", change=str)
    assert side.run(f, 7) == "7"
    assert side.run(f.peek, 7) == "7"
    assert side.run(f.peek, 8) is MISSING
    assert side.run(f, 8) == 8


def test_a_stale_result_may_be_changed_too(faulty, side, clock):
    fails = []

    def load(x):
        if fails:
            raise OSError
        return x

    f = side.cached(load, ttl=10, stale_if_error=10)
    side.run(f, 7)
    fails.append(True)
    clock.advance(10)
    faulty.corrupt("read", change=str)
    assert side.run(f, 7) == "7"


def test_an_invalidation_just_before_a_fill_wins(faulty, side):
    """The gate is where the load has ended and its result is not stored yet."""
    loads = []
    f = side.cached(lambda x: loads.append(x) or len(loads))
    faulty.delay("fill", lambda: f.invalidate(7), times=1)
    assert side.run(f, 7) == 1
    assert f.stats().refused_fills == 1
    assert side.run(f, 7) == 2
    assert side.run(f, 7) == 2


def test_a_fill_that_is_held_back_makes_nobody_else_wait_for_another_key(faulty):
    arrived, gate = threading.Event(), threading.Event()
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    faulty.delay("fill", arrived.set)
    faulty.delay("fill", gate, times=1)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(f, 1)
        assert arrived.wait(PATIENCE)
        assert f(2) == 2
        gate.set()
        assert held.result(PATIENCE) == 1


async def test_the_event_loop_goes_on_while_a_read_is_held_back(faulty):
    async def load(x):
        return x

    f = cache_aside(store=faulty, ttl=None)(load)
    arrived, gate = asyncio.Event(), threading.Event()
    faulty.delay("read", arrived.set)
    faulty.delay("read", gate, times=1)
    held = asyncio.create_task(f(1))
    await asyncio.wait_for(arrived.wait(), PATIENCE)
    assert await f(2) == 2
    gate.set()
    assert await held == 1


def test_an_interruption_in_the_store_is_the_callers(faulty):
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    faulty.fail("fill", error=KeyboardInterrupt, times=1)
    with pytest.raises(KeyboardInterrupt):
        f(7)
    assert [f(7), f(7)] == [7, 7]


def test_methods_have_faults_for_each_instance(faulty):
    class Shop:
        @cache_aside(store=faulty, ttl=None)
        def price(self, item):
            return [item]

    one, two = Shop(), Shop()
    assert one.price(1) is one.price(1)
    assert one.price(1) is not two.price(1)
    faulty.fail("read", "take")
    assert one.price(1) is not one.price(1)
    assert Shop.price.stats().errors == {"read": 2, "take": 2}


def test_an_instance_has_one_load_at_a_time_and_the_key_that_the_store_lists(faulty):
    arrived, gate = threading.Event(), threading.Event()

    class Shop:
        @cache_aside(store=faulty, ttl=None)
        def price(self, item):
            arrived.set()
            gate.wait(PATIENCE)
            return [item]

    shop = Shop()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shop.price, 1)
        assert arrived.wait(PATIENCE)
        second = pool.submit(shop.price, 1)
        deadline = time.monotonic() + PATIENCE
        while Shop.price.stats().waits == 0 and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        assert Shop.price.stats().waits == 1
        gate.set()
        assert first.result(PATIENCE) is second.result(PATIENCE)
    assert faulty.keys() == [shop.price.key_for(1)]


def test_the_default_ttl_is_that_of_the_inner_store(clock):
    store = FaultyStore(MemoryStore(default_ttl=10, clock=clock, cleanup_interval=None))
    f = cache_aside(store=store, stale_if_error=5)(lambda x: x)
    f(1)
    assert f.ttl_left(1) == 10


def test_a_function_that_comes_back_finds_what_it_left(faulty):
    f = cache_aside(ttl=None)(lambda x: [x])
    with override(faulty):
        found = f(1)
    gc.collect()
    assert f(1) is not found
    with override(faulty):
        assert f(1) is found
    assert f._self_memoized.attached().raw is True
    assert faulty.attach(f._self_memoized.keys, Counter(), Counter(), f).raw is True


def test_several_keys_at_once_are_operations_of_their_own(faulty):
    space = cache_aside(store=faulty, ttl=None)(lambda x: x)._self_memoized.attached()
    faulty.fail("read", times=1)
    answers = space.read_many([(int, 1), (int, 2)])
    assert [type(answer) for answer in answers] == [StoreError, StoreError]
    assert faulty.calls == {"read": 1}


async def test_several_keys_at_once_are_operations_of_their_own_async(faulty):
    space = cache_aside(store=faulty, ttl=None)(lambda x: x)._self_memoized.attached()
    faulty.fail("read", times=1)
    answers = await space.aread_many([(int, 1), (int, 2)])
    assert [type(answer) for answer in answers] == [StoreError, StoreError]
    assert faulty.calls == {"read": 1}


def test_a_shared_store_refuses_what_it_refuses_without_faults():
    class Shop:
        @cache_aside(store=FaultyStore(DictStore()), ttl=None)
        def price(self, item):
            return item

    with pytest.raises(UnkeyableError):
        Shop().price(1)


def test_calls_count_while_the_function_is_with_the_store(faulty):
    f = cache_aside(store=faulty, ttl=None)(lambda x: x)
    space, counters = f._self_memoized.attached(), f._self_memoized.counters
    f(1)
    space.leave()
    f(1)
    assert faulty.stats().hits == 0
    assert space.join(counters.hits, counters.misses) is True
    f(1)
    assert faulty.stats().hits == 1


def test_a_store_that_keeps_nothing_may_fail_too():
    faulty = FaultyStore(NullStore())
    f = cache_aside(store=faulty)(lambda x: x)
    faulty.fail()
    assert f(1) == 1
    assert f.stats().errors == {"read": 1, "take": 1}
