"""`increment`: one atomic step, whatever else happens."""

from __future__ import annotations

import json
import math
import pickle
import threading

import pytest

from memo import MemoryStore, OptionError

SERIALIZERS = [None, pickle, json]


@pytest.fixture(params=SERIALIZERS, ids=["by reference", "pickle", "json"])
def store(request, clock):
    return MemoryStore(clock=clock, cleanup_interval=None, serializer=request.param)


def test_a_missing_key_starts_at_the_amount(store):
    assert store.increment("a") == 1
    assert store.increment("b", 5) == 5
    assert store.increment("c", -0.5) == -0.5
    assert store.get_many("abc") == {"a": 1, "b": 5, "c": -0.5}


def test_the_sum_is_returned_and_stored(store):
    store.set("a", 40)
    assert store.increment("a", 2) == 42
    assert store.get("a") == 42
    assert store.increment("a", 0.5) == 42.5
    assert store.increment("a", -42.5) == 0


def test_integers_do_not_overflow(store):
    store.set("a", 2**64)
    assert store.increment("a", 2**64) == 2**65


def test_the_ttl_stays(store, clock):
    store.set("a", 1, 10)
    clock.advance(9)
    store.increment("a")
    assert store.ttl("a") == 1
    clock.advance(1)
    assert store.get("a") is None


def test_an_expired_number_starts_again(store, clock):
    store.set("a", 41, 10)
    clock.advance(10)
    assert store.increment("a") == 1
    assert store.ttl("a") == math.inf


def test_a_new_number_has_the_default_ttl(clock):
    store = MemoryStore(clock=clock, default_ttl=10)
    store.increment("a")
    clock.advance(5)
    store.increment("a")
    assert store.ttl("a") == 5


@pytest.mark.parametrize("value", [None, True, False, "", "1", [], [1], {}, {"a": 1}])
def test_what_is_no_number_is_an_error_and_stays(store, value):
    store.set("a", value, 10)
    with pytest.raises(ValueError, match="not a number"):
        store.increment("a")
    assert store.get("a") == value
    assert store.ttl("a") == 10


@pytest.mark.parametrize("amount", [None, True, "1", 1j, [1]])
def test_an_amount_that_is_no_number_is_refused(store, amount):
    with pytest.raises(OptionError, match="amount"):
        store.increment("a", amount)
    assert store.keys() == []


def test_it_counts_as_a_set_and_as_no_read(store):
    store.increment("a")
    store.increment("a")
    counted = store.stats()
    assert (counted.sets, counted.hits, counted.misses, counted.size) == (2, 0, 0, 1)


def test_eight_threads_lose_nothing(store):
    gate = threading.Barrier(8)
    totals: list[int] = []

    def work():
        gate.wait(60)
        totals.extend([store.increment("a") for _ in range(250)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(totals) == list(range(1, 2_001))
    assert store.get("a") == 2_000


class Interfering:
    """A serializer in the middle of which somebody else does something: between the look and the step."""

    def __init__(self):
        self.then = None

    def _interfere(self):
        then, self.then = self.then, None
        if then is not None:
            then()

    def loads(self, data):
        value = pickle.loads(data)
        self._interfere()
        return value

    def dumps(self, value):
        data = pickle.dumps(value)
        self._interfere()
        return data


@pytest.mark.parametrize(
    ("before", "meanwhile", "total"),
    [
        (1, lambda store: store.set("a", 10), 11),
        (1, lambda store: store.increment("a"), 3),
        (1, lambda store: store.delete("a"), 1),
        (1, lambda store: store.clear(), 1),
        (None, lambda store: store.set("a", 10), 11),
        (None, lambda store: store.increment("a", 5), 6),
    ],
)
def test_a_number_that_changes_meanwhile_is_looked_at_again(before, meanwhile, total):
    serializer = Interfering()
    store = MemoryStore(serializer=serializer)
    if before is not None:
        store.set("a", before)
    serializer.then = lambda: meanwhile(store)
    assert store.increment("a") == total
    assert store.get("a") == total


def test_a_number_that_is_evicted_meanwhile_starts_again():
    serializer = Interfering()
    store = MemoryStore(serializer=serializer, max_size=1)
    store.set("a", 41)
    serializer.then = lambda: store.set("b", 1)
    assert store.increment("a") == 1


def test_a_ttl_that_changes_meanwhile_is_the_one_that_stays(clock):
    serializer = Interfering()
    store = MemoryStore(serializer=serializer, clock=clock)
    store.set("a", 1, 10)
    serializer.then = lambda: store.expire("a", 99)
    store.increment("a")
    assert store.ttl("a") == 99
