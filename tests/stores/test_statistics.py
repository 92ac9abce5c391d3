"""What is counted is exact, per function and per store, under threads; looking at it changes nothing."""

from __future__ import annotations

import gc
import pickle
import threading
from collections import deque

import pytest

from memo import MISSING, MemoryStore, cache_aside
from memo.stats import Counter
from memo.stores.books import Books
from memo.testing import check_memory_store


def counts(store):
    counted = store.stats()
    return {
        name: getattr(counted, name)
        for name in ("hits", "misses", "sets", "deletes", "evictions", "expirations", "size")
        if getattr(counted, name)
    }


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None, max_size=3)


def test_a_new_store_has_counted_nothing(store):
    assert counts(store) == {}
    assert store.stats().hit_ratio == 0.0


STEPS = {
    "a read that finds": (lambda s: s.get("a"), {"hits": 1}),
    "a read that finds none": (lambda s: s.get("x"), {"misses": 1}),
    "a None that is found": (lambda s: [s.set("n", None), s.get("n")], {"sets": 1, "hits": 1, "size": 1}),
    "many reads": (lambda s: s.get_many(["a", "x", "b", "a"]), {"hits": 3, "misses": 1}),
    "a new value": (lambda s: s.set("c", 1), {"sets": 1, "size": 1}),
    "a replaced value": (lambda s: s.set("a", 1), {"sets": 1}),
    "many values": (lambda s: s.set_many({"a": 1, "c": 1}), {"sets": 2, "size": 1}),
    "an increment": (lambda s: s.increment("a"), {"sets": 1}),
    "an eviction": (lambda s: s.set_many({"c": 1, "d": 1}), {"sets": 2, "evictions": 1, "size": 1}),
    "a delete": (lambda s: s.delete("a"), {"deletes": 1, "size": -1}),
    "a delete of nothing": (lambda s: s.delete("x"), {}),
    "many deletes": (lambda s: s.delete_many(["a", "x", "b", "a"]), {"deletes": 2, "size": -2}),
    "a pattern": (lambda s: s.delete_pattern("a*"), {"deletes": 1, "size": -1}),
    "a clear": (lambda s: s.clear(), {"deletes": 2, "size": -2}),
    "questions": (lambda s: [s.exists("a"), s.exists("x"), s.ttl("a"), s.keys(), s.expire("a", 9), len(s)], {}),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_counts_what_it_did(store, step):
    store.set_many({"a": 1, "b": 2})
    before = counts(store)
    action, difference = STEPS[step]
    action(store)
    after = counts(store)
    assert {k: after.get(k, 0) - before.get(k, 0) for k in {*after, *before}} == {
        **dict.fromkeys({*after, *before}, 0),
        **difference,
    }


@pytest.mark.parametrize(
    ("meet", "expirations", "also"),
    [
        (lambda s: s.get("a"), 1, {"misses": 1}),
        (lambda s: s.exists("a"), 1, {}),
        (lambda s: s.delete("a"), 1, {}),
        (lambda s: s.delete_pattern("*"), 2, {}),
        (lambda s: s.cleanup(), 2, {}),
        (lambda s: s.set("a", 1), 0, {"sets": 3}),
        (lambda s: s.keys(), 0, {}),
    ],
    ids=["get", "exists", "delete", "delete_pattern", "cleanup", "set", "keys"],
)
def test_an_expiration_counts_once_when_it_is_met(store, clock, meet, expirations, also):
    store.set_many({"a": 1, "b": 1}, 1)
    clock.advance(1)
    assert counts(store) == {"sets": 2, "size": 2}
    meet(store)
    expected = {"sets": 2, "size": 2 - expirations, "expirations": expirations, **also}
    assert counts(store) == {name: count for name, count in expected.items() if count}


def test_what_is_counted_adds_up(store, clock):
    for number in range(10):
        store.set(str(number), number, 5 if number % 2 else None)
    store.delete("9")
    clock.advance(5)
    store.get("7")
    counted = store.stats()
    assert counted.sets == counted.size + counted.deletes + counted.evictions + counted.expirations


def test_reading_statistics_changes_nothing(store):
    """A peer advanced its counters when they were read."""
    load = cache_aside(store=store)(lambda x: x)
    load(1)
    load(1)
    store.get("x")
    first, own = store.stats(), load.stats()
    for _ in range(20):
        assert store.stats() == first
        assert load.stats() == own


def test_a_functions_calls_count_for_it_and_for_its_store(store):
    f = cache_aside(store=store, namespace="f")(lambda x: x)
    g = cache_aside(store=store, namespace="g")(lambda x: x)
    for x in 1, 1, 1, 2:
        f(x)
    g(1)
    store.get("x")
    assert (f.stats().hits, f.stats().misses) == (2, 2)
    assert (g.stats().hits, g.stats().misses) == (0, 1)
    assert (store.stats().hits, store.stats().misses) == (2, 4)
    assert store.stats().hit_ratio == 2 / 6


def test_helpers_count_no_reads(store):
    load = cache_aside(store=store)(lambda x: x)
    load.peek(1)
    load.set(1, 1)
    load.peek(1)
    load.ttl_left(1)
    load.refresh(1)
    load.invalidate(1)
    load.invalidate_all()
    assert (store.stats().hits, store.stats().misses) == (0, 0)
    assert (load.stats().hits, load.stats().misses, load.stats().loads) == (0, 0, 1)


def test_an_invalidation_counts_what_it_removes(store):
    load = cache_aside(store=store, tags=("t",))(lambda x: x)
    load(1)
    load(2)
    load.invalidate(1)
    load.invalidate(1)
    assert store.stats().deletes == 1
    store.invalidate_tags("t", "t")
    assert store.stats().deletes == 2
    load(1)
    load.invalidate_all()
    assert store.stats().deletes == 3


def test_a_dead_functions_calls_still_count(store):
    load = cache_aside(store=store)(lambda x: x)
    load(1)
    load(1)
    del load
    gc.collect()
    assert counts(store) == {"hits": 1, "misses": 1, "sets": 1, "size": 1}
    store.set("a", 1)
    assert counts(store) == {"hits": 1, "misses": 1, "sets": 2, "deletes": 1, "size": 1}


def test_misses_and_undecodable_values_of_a_serializer(clock):
    class Broken:
        dumps = staticmethod(pickle.dumps)

        @staticmethod
        def loads(data):
            raise EOFError

    store = MemoryStore(serializer=Broken, clock=clock)
    store.set("a", 1)
    assert store.get("a") is None
    assert counts(store) == {"misses": 1, "sets": 1, "deletes": 1}


@pytest.mark.parametrize("serializer", [None, pickle], ids=["fast hits", "hits through the algorithm"])
def test_counts_are_exact_under_threads(serializer):
    store = MemoryStore(max_size=50, serializer=serializer)
    f = cache_aside(store=store, namespace="f")(lambda x: x)
    g = cache_aside(store=store, namespace="g")(lambda x: x)
    workers, rounds = 8, 400
    gate = threading.Barrier(workers)
    deleted = []

    def work(seed):
        gate.wait(60)
        for step in range(rounds):
            number = (seed * 7 + step * 13) % 40
            f(number)
            g(number)
            store.set(str(number), number)
            store.get(str((number * 3) % 40))
            deleted.append(store.delete(str(number)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    calls = workers * rounds
    for function in f, g:
        assert function.stats().hits + function.stats().misses == calls
    counted = store.stats()
    assert counted.hits + counted.misses == 3 * calls
    assert counted.deletes == sum(deleted)
    assert counted.size == len(store) <= 50
    # Every load is one set, and so is every set; what replaced a value is the rest.
    assert counted.sets == calls + f.stats().loads + g.stats().loads
    replaced = counted.sets - counted.size - counted.deletes - counted.evictions - counted.expirations
    assert 0 <= replaced < calls


def test_invalidating_a_method_counts_and_removes_the_entries_of_all_instances():
    store = MemoryStore()

    class Thing:
        during = ()

        @cache_aside(store=store, tags=("t",))
        def method(self, x):
            for each in self.during:
                each()
            return x

    one, two = Thing(), Thing()
    one.method(1)
    two.method(1)
    Thing.method.invalidate_all()
    assert counts(store) == {"misses": 2, "sets": 2, "deletes": 2}
    two.during = (Thing.method.invalidate_all,)
    two.method(1)
    assert two.method.peek(1) is MISSING
    assert one.method(1) == one.method(1) == 1
    check_memory_store(store)


def test_a_function_that_another_thread_lets_go_first_is_let_go_once():
    """1. both see that a function has died   2. the other takes it   3. this one finds none left."""

    class Owner:
        pass

    class Space:
        deaths = ()

    class Raced(deque):
        def popleft(self):
            if len(self) == 1:
                taken.append(super().popleft())
            return super().popleft()

    books, space, owner, taken = Books(), Space(), Owner(), []
    books._dead = Raced()
    books.open(space, owner, (Counter(), Counter()))
    del owner
    gc.collect()
    assert books.bury() == []
    assert [each.space for each in taken] == [space]
    assert space in books._functions, "the other one does that"
