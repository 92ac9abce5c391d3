"""Sharing: each process sees at its next operation what others have done, and the next run what this one has."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import functools
import os
import threading
from typing import Any

import pytest

import memo
from memo import MISSING, OptionError, PickleFileStore, StoreError, UnkeyableError, cache_aside, cache_aside_many
from memo.stores import access, logfile
from memo.stores.filespace import FileSpace
from memo.stores.logfile import LogFile
from memo.stores.replay import View

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"


@pytest.fixture
def real(path):
    """A store on the real clock, which other processes have too."""
    store = PickleFileStore(path, timeout=60)
    yield store
    store.close()


def shared(store: Any, loads: list[Any]) -> Any:
    """Return the function that the other process has, too."""

    @cache_aside(store=store, namespace="shared", tags=("all", "t{x}"), ttl=None)
    def f(x):
        loads.append(x)
        return f"{x} of this"

    return f


# -- what others do is seen --------------------------------------------------------------------------------------------


def test_each_process_sees_what_another_has_set_and_removed(real, another):
    other = another()
    real.set("a", [1])
    assert other("store.get('a')") == [1]
    other("store.set('a', 'theirs')")
    assert real.get("a") == "theirs"
    assert other("store.delete('a')") is True
    assert (real.get("a"), real.exists("a"), real.ttl("a")) == (None, False, None)
    other("store.set_many({'k1': 1, 'k2': 2, 'm': 3})")
    assert sorted(real.keys()) == ["k1", "k2", "m"]
    assert other("store.delete_pattern('k*')") == 2
    assert real.keys() == ["m"]
    real.set("x", 1)
    assert sorted(other("store.keys()")) == ["m", "x"]
    other("store.clear()")
    assert real.keys() == []
    assert real.stats().size == 0
    assert other("store.stats().hits") == 1


def test_each_process_sees_anothers_results_and_invalidations(real, another):
    other, loads = another(), []
    f = shared(real, loads)
    assert other("f(1)") == "1 of another"
    assert f(1) == "1 of another"
    assert (f(2), other("f(2)")) == ("2 of this", "2 of this")
    assert (loads, other("loads")) == ([2], [1])
    for invalidate in (
        "f.invalidate(2)",
        "store.invalidate_tags('t2')",
        "store.invalidate_tags('all')",
        "f.invalidate_all()",
        "store.delete(f.key_for(2))",
    ):
        f(2)
        assert f.peek(2) == "2 of this"
        other(invalidate)
        assert f.peek(2) is MISSING
        assert f.ttl_left(2) is None
    assert other("f.set('given', 3)") is None
    assert f(3) == "given"
    assert other("f.refresh(3)") == "3 of another"
    assert f(3) == "3 of another"


def test_each_process_sees_anothers_evictions(path, another):
    other = another(max_size=2)
    store = PickleFileStore(path, max_size=2)
    for number in range(4):
        other(f"store.set('k{number}', {number})")
    assert sorted(store.keys()) == ["k2", "k3"]
    assert store.get("k2") == 2
    store.set("k4", 4)
    assert sorted(other("store.keys()")) == ["k2", "k4"], "what this one has read lately stays"
    assert store.stats().evictions == 1
    assert other("store.stats().evictions") == 2
    store.close()


def test_what_expires_does_so_for_all_and_is_renewed_for_all(real, another):
    other = another()
    other("store.set('a', 1, 3600)")
    assert 3590 < real.ttl("a") <= 3600
    real.expire("a", 60)
    assert 50 < other("store.ttl('a')") <= 60
    other("store.set('b', 1, 1e-6)")
    assert real.get("b") is None
    assert real.ttl("a") is not None


def test_each_process_sees_that_another_has_rewritten_or_reopened_the_file(real, another):
    other = another()
    real.set_many({"a": 1, "b": 2})
    real.delete("b")
    assert other("store.compact()") is True
    assert real.get("a") == 1
    real.set("c", 3)
    assert other("store.get('c')") == 3
    other("store.close()")
    assert other("store.get('c')") == 3
    assert real.compact()
    assert other("(store.get('a'), store.get('b'), store.get('c'))") == (1, None, 3)


COUNT = """
import sys, threading
from memo import PickleFileStore
store = PickleFileStore(sys.argv[1], timeout=60)
print("ready", flush=True)
sys.stdin.readline()
def count():
    for _ in range(int(sys.argv[2])):
        store.increment("count")
        store.increment("half", 0.5)
threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(dict(store.stats().errors))
"""


def test_increment_is_exact_over_processes_and_threads(path, launch, real):
    rounds = 2_000 if NIGHTLY else 60
    processes = [launch(COUNT, path, rounds) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=300)[0] == "{}\n"
    assert real.get("count") == 4 * 3 * rounds
    assert real.get("half") == 4 * 3 * rounds / 2


def test_two_processes_that_fill_one_key_leave_one_whole_value(real, another):
    """The one whose load began first is overtaken by the other's fill, and is not stored."""
    other = another()
    begun, go_on = threading.Event(), threading.Event()

    @cache_aside(store=real, namespace="shared", tags=("all", "t{x}"), ttl=None)
    def f(x):
        begun.set()
        assert go_on.wait(20)
        return f"{x} of this"

    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(f(1)))
    thread.start()
    assert begun.wait(20)
    assert other("f(1)") == "1 of another"
    go_on.set()
    thread.join(20)
    assert answers == ["1 of this"]
    assert f(1) == other("f(1)") == "1 of another"
    assert f.stats().refused_fills == 1


# -- from run to run ---------------------------------------------------------------------------------------------------

SCRIPT = """
import dataclasses, sys
from memo import PickleFileStore, cache_aside, cache_aside_many
store = PickleFileStore(sys.argv[1])
loads = 0
def loaded():
    global loads
    loads += 1
@cache_aside(store=store)
def f(x, *, y={"a": {1, 2}}):
    loaded()
    return {x: y}
@cache_aside_many(store=store)
def many(ids):
    loaded()
    return {each: str(each) for each in ids}
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    @cache_aside(store=store)
    def method(self, y):
        loaded()
        return self.x + y
    @cache_aside(store=store)
    @classmethod
    def of_class(cls, y):
        loaded()
        return cls.__name__, y
    @cache_aside(store=store)
    @staticmethod
    def static(y):
        loaded()
        return y
print(f(1), f("1"), f(x=1, y=None), many([1, 2]), Point(1).method(2), Point(3).method(2))
print(Point.of_class(1), Point.static(1))
print(loads)
"""


def test_a_script_that_is_run_again_loads_nothing(path, launch):
    first = launch(SCRIPT, path).communicate(timeout=60)[0].splitlines()
    second = launch(SCRIPT, path).communicate(timeout=60)[0].splitlines()
    assert first[:2] == second[:2]
    assert (first[2:], second[2:]) == (["8"], ["0"])


def test_what_has_expired_between_two_runs_is_loaded_again(make, clock):
    loads = []
    for expected in (1, 1, 2):
        store = make()
        cache_aside(store=store, namespace="f", ttl=10)(lambda x: loads.append(x))
        f = cache_aside(store=store, namespace="f", ttl=10)(lambda x: loads.append(x) or x)
        f(1)
        assert len(loads) == expected
        store.close()
        clock.advance(6)


# -- decorated functions -----------------------------------------------------------------------------------------------


class Plain:
    """Its instances count by identity."""

    def m(self, x: int) -> int:
        return x

    @staticmethod
    def s(x: int) -> int:
        return x

    @classmethod
    def c(cls, x: int) -> str:
        return f"{cls.__name__} {x}"


class Derived(Plain):
    pass


@dataclasses.dataclass(frozen=True)
class Point:
    x: int


def test_an_instance_that_counts_by_identity_is_refused_with_the_ways_out(store):
    class Owner(Plain):
        m = cache_aside(store=store)(Plain.m)

    with pytest.raises(UnkeyableError, match="counts by identity") as refused:
        Owner().m(1)
    for way in "__cache_key__", "frozen dataclass", "key=", "ignore=":
        assert way in str(refused.value)
    assert store.keys() == []


def test_a_lambda_or_a_closure_without_a_name_is_refused(store):
    captured = 1

    def closure(x: int) -> int:
        return x + captured

    for function in (lambda x: x), closure, functools.partial(Plain.s):
        with pytest.raises(OptionError, match="give it key= or namespace="):
            cache_aside(store=store)(function)(1)
        assert cache_aside(store=store, namespace="mine")(function)(1) in (1, 2)
        cache_aside(store=store, namespace="mine")(function).invalidate_all()
    assert store.keys() == []


def test_classmethods_are_told_apart_by_class_and_staticmethods_are_not(store):
    of_class = cache_aside(store=store, namespace="c")(classmethod(Plain.c.__func__))
    Plain.cached, Plain.static = of_class, cache_aside(store=store, namespace="s")(staticmethod(Plain.s))
    try:
        assert (Plain.cached(1), Derived.cached(1), Derived().cached(1)) == ("Plain 1", "Derived 1", "Derived 1")
        assert Plain.static(1) == Derived.static(1) == 1
    finally:
        del Plain.cached, Plain.static
    assert len(store.keys()) == 3


def test_two_functions_whose_keys_are_one_text_see_each_others_entries_as_misses(store):
    @cache_aside(store=store, key="k:{x}", ttl=None)
    def one(x):
        return "one"

    @cache_aside(store=store, key="k:{x}", ttl=None)
    def two(x):
        return "two"

    assert one.key_for(1) == two.key_for(1)
    assert (one(1), two(1), one(1), two(1)) == ("one", "two", "one", "two")
    assert one.peek(1) is MISSING
    assert one.ttl_left(1) is None
    assert one.invalidate(1) is False
    assert two.peek(1) == "two"
    one.invalidate_all()
    assert two(1) == "two"
    assert two.stats().hits == 1
    assert one.stats().hits == 0


def test_a_plain_value_at_a_functions_key_is_a_miss_for_it(store):
    f = cache_aside(store=store, namespace="f", ttl=None)(lambda x: x)
    store.set(f.key_for(1), "plain")
    assert f.peek(1) is MISSING
    assert f.invalidate(1) is False
    assert store.get(f.key_for(1)) == "plain"
    f.invalidate_all()
    assert store.get(f.key_for(1)) == "plain"
    assert f(1) == 1
    assert store.get(f.key_for(1)) == 1
    assert store.increment(f.key_for(1)) == 2
    assert f(1) == 2, "what is there is still the function's"


def test_statistics_count_this_processs_functions_and_reads(store, make):
    elsewhere = make()
    f = cache_aside(store=store, namespace="f", ttl=None)(lambda x: x)
    f(1), f(1), f(2), store.get("a"), store.set("a", 1), store.get("a"), elsewhere.get("a")
    counted = store.stats()
    assert (counted.hits, counted.misses, counted.sets, counted.size) == (2, 3, 3, 3)
    assert (elsewhere.stats().hits, elsewhere.stats().size) == (1, 3)
    assert counted.file_size == os.path.getsize(store.path)
    assert 0 < counted.live_size < counted.file_size
    store.delete("a")
    assert store.stats().deletes == 1
    assert store.stats().size == 2
    del f
    store.set("b", 1)
    assert (store.stats().hits, store.stats().misses) == (2, 3), "what was counted stays"


def test_disabled_overridden_and_configured(store, make, path, tmp_path):
    loads = []
    f = cache_aside(namespace="f", ttl=None)(lambda x: loads.append(x) or x)
    memo.configure(default=store)
    f(1), f(1)
    assert loads == [1]
    assert f.store is store
    with memo.disabled():
        f(1)
        assert loads == [1, 1]
    elsewhere = make(tmp_path / "elsewhere.memo")
    with memo.override(elsewhere):
        f(1), f(1)
        assert loads == [1, 1, 1]
        assert elsewhere.keys() == store.keys() == ["f(1)"]
    f(1)
    assert loads == [1, 1, 1]
    memo.close()
    assert f(1) == 1
    assert loads == [1, 1, 1], "a closed store may be used again"


# -- many ids ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def appends(monkeypatch):
    """How often was something written, and how often was the file's lock taken."""
    counted = {"append": 0, "try_lock": 0}

    def counting(name: str) -> Any:
        function = getattr(logfile.LogFile, name)

        def method(*args: Any) -> Any:
            counted[name] += 1
            return function(*args)

        return method

    for name in counted:
        monkeypatch.setattr(logfile.LogFile, name, counting(name))
    return counted


def test_many_ids_are_read_without_a_lock_and_written_with_one(make, appends):
    store, asked = make(), []

    @cache_aside_many(store=store, namespace="many", ttl=None, tags=("t{ids}",))
    def many(ids):
        asked.append(list(ids))
        return {each: [each] for each in ids if each != 13}

    appends.update(append=0, try_lock=0)
    assert many([1, 2, 3, 13]) == {1: [1], 2: [2], 3: [3]}
    assert appends == {"append": 1, "try_lock": 1}
    assert many([3, 2, 1]) == {3: [3], 2: [2], 1: [1]}
    assert appends == {"append": 1, "try_lock": 1}
    assert many([1, 4]) == {1: [1], 4: [4]}
    assert asked == [[1, 2, 3, 13], [4]]
    appends.update(append=0, try_lock=0)
    assert many.invalidate_many([1, 2, 99]) == 2
    assert appends == {"append": 1, "try_lock": 1}
    assert many.refresh([3, 4]) == {3: [3], 4: [4]}
    assert appends == {"append": 2, "try_lock": 2}
    assert many.invalidate_many([]) == 0
    make().invalidate_tags("t3")
    assert many([3, 4]) == {3: [3], 4: [4]}
    assert asked[-1] == [3]


async def test_many_ids_awaited(store):
    asked = []

    @cache_aside_many(store=store, namespace="many", ttl=None)
    async def many(ids):
        asked.append(list(ids))
        await asyncio.sleep(0)
        return {each: each for each in ids}

    assert await many([1, 2]) == await many([2, 1]) == {1: 1, 2: 2}
    assert await many.invalidate_many([1]) == 1
    assert await many.refresh([2]) == {2: 2}
    assert await many([1, 2]) == {1: 1, 2: 2}
    assert asked == [[1, 2], [2], [1]]


def test_of_many_ids_what_another_process_invalidates_during_the_load_is_not_stored(store, make):
    other = make()
    during = [lambda: other.delete("many(2)")]

    @cache_aside_many(store=store, namespace="many", ttl=None)
    def many(ids):
        while during:
            during.pop()()
        return {each: each for each in ids}

    assert many([1, 2, 3]) == {1: 1, 2: 2, 3: 3}
    assert [many.peek(each) for each in (1, 2, 3)] == [1, MISSING, 3]
    assert many.stats().refused_fills == 1


def test_of_many_ids_one_value_that_cannot_be_stored_does_not_hinder_the_others(store):
    values: dict[int, Any] = {1: 1, 2: threading.Lock(), 3: 3}
    many = cache_aside_many(store=store, namespace="many", ttl=None)(lambda ids: {each: values[each] for each in ids})
    assert many([1, 2, 3]) == values
    assert [many.peek(each) for each in (1, 2, 3)] == [1, MISSING, 3]
    assert many.stats().errors == {"fill": 1}
    assert store._leases._standing == {}
    assert cache_aside_many(store=store, namespace="locks", ttl=None)(lambda ids: {2: values[2]})([2]) == {2: values[2]}


@pytest.mark.parametrize("error", [OSError(5, "broken"), StoreError("down"), BlockingIOError(), MemoryError()])
def test_many_ids_are_loaded_where_the_file_cannot_be_read(store, monkeypatch, error):
    many = cache_aside_many(store=store, namespace="many", ttl=None)(lambda ids: dict.fromkeys(ids, 1))
    single = cache_aside(store=store, namespace="single", ttl=None)(lambda x: x)

    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(logfile.LogFile, "size", fail)
    assert many([1, 2]) == {1: 1, 2: 1}
    assert many.refresh([1]) == {1: 1}
    assert (single(1), single.refresh(1)) == (1, 1)
    if not isinstance(error, BlockingIOError):
        assert set(many.stats().errors) == {"read", "fill"}
        assert single.stats().errors == {"read": 1, "fill": 2}
        with pytest.raises(StoreError):
            many.peek(1)
        with pytest.raises(StoreError):
            many.invalidate(1)
    assert store._leases._standing == {}
    monkeypatch.undo()
    assert many([1, 2]) == {1: 1, 2: 1}
    assert many.peek(1) == 1


def test_of_many_ids_what_another_process_has_just_loaded_is_not_loaded_again(store, make, monkeypatch):
    """It landed between the first look and the second one."""
    asked = []

    def load(ids):
        asked.append(list(ids))
        return {each: each for each in ids}

    many = cache_aside_many(store=store, namespace="many", ttl=None)(load)
    theirs = cache_aside_many(store=make(), namespace="many", ttl=None)(load)
    take_many = FileSpace.take_many

    def after_another(self: Any, calls: Any, renew: bool) -> Any:
        monkeypatch.setattr(FileSpace, "take_many", take_many)
        theirs([2])
        return take_many(self, calls, renew)

    monkeypatch.setattr(FileSpace, "take_many", after_another)
    assert many([1, 2]) == {1: 1, 2: 2}
    assert asked == [[2], [1]]


async def test_a_large_value_is_read_in_a_worker_thread(store):
    calls = []

    @cache_aside(store=store, namespace="large", ttl=None)
    async def large(x):
        calls.append(x)
        return bytes(200_000)

    for _ in range(3):
        assert await large(1) == bytes(200_000)
    assert await large.refresh(1) == await store.aget("large(1)") == bytes(200_000)
    assert calls == [1, 1]
    await large.invalidate(1)
    store.set("large(1)", bytes(200_000))
    assert await large(1) == bytes(200_000)
    assert calls == [1, 1, 1], "it is another's"


def test_a_space_whose_function_is_gone_counts_no_more(store):
    f = cache_aside(store=store, namespace="f", ttl=None)(lambda x: x)
    f(1)
    space, counters = f._self_memoized.attached(), f._self_memoized.counters
    assert space.join(counters.hits, counters.misses)
    del f
    store.set("a", 1)
    assert not space.join(counters.hits, counters.misses)
    assert (store.stats().hits, store.stats().misses) == (0, 1)


def test_who_has_read_much_and_comes_too_late_for_the_lock_then_waits_for_it(store, make, path, monkeypatch):
    """1. the lock is free, and much is to be read   2. it is let go for that   3. another takes it   4. a wait."""
    other = make()
    store.set("a", "old")
    other.set("much", bytes(1_000))
    monkeypatch.setattr(access, "LARGE", 500)
    log, real_lock, real_append = store._view.log, LogFile.try_lock, View.append
    tries, held = [], []

    def try_lock(self):
        if self is not log:
            return real_lock(self)
        tries.append(len(tries) != 1 and real_lock(self))
        return tries[-1]

    def append(self, items):
        with open(path) as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(self)
        real_append(self, items)

    monkeypatch.setattr(LogFile, "try_lock", try_lock)
    monkeypatch.setattr(View, "append", append)
    store.set("a", "new")
    assert tries == [True, False, True]
    assert held == [store._view]
    assert (other.get("a"), store.get("much")) == ("new", bytes(1_000))


@pytest.mark.parametrize("tag", ["of:1", "of:2"])
def test_a_lease_that_two_loads_share_bears_the_tags_of_both(store, tag):
    """A parameter that is left out of the key may give one key two tags."""
    space = cache_aside(store=store, namespace="f")(lambda x: x)._self_memoized.attached()
    first = space.take("key", ("of:1",), False)
    assert space.take("key", ("of:2",), False).lease is first.lease
    store.invalidate_tags(tag)
    assert space.fill("key", first.lease, "old", None, ()) is False


# -- a result that is not kept -----------------------------------------------------------------------------------------


def test_a_result_that_is_not_kept_writes_nothing_where_nothing_was(store, appends):
    f = cache_aside(store=store, namespace="f", ttl=None)(lambda x: None)
    appends.update(append=0, try_lock=0)
    for _ in range(3):
        assert f(1) is None
    assert appends == {"append": 0, "try_lock": 0}
    assert store._leases._standing == {}


def test_a_result_that_is_not_kept_takes_away_what_it_would_have_replaced(store, make, monkeypatch):
    answers: list[Any] = [1, None, 1, None]
    f = cache_aside(store=store, namespace="f", ttl=None)(lambda x: answers.pop(0))
    assert f(1) == 1
    assert f.refresh(1) is None
    assert f.peek(1) is make().get("f(1)", MISSING) is MISSING
    assert f(1) == 1

    def fail(*args: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(PickleFileStore, "_look", fail)
        assert f.refresh(1) is None
    assert f.stats().errors["release"] == 1
    assert f.peek(1) is MISSING, "this process does not find it again"
    assert store._leases._standing == {}
