"""What a store is asked by calls for many ids: each thing once for all ids; and what its failures do."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest

from memo import MISSING, MemoryStore, cache_aside_many
from memo.entry import Lease, Reading
from memo.stores.base import Space

from .conftest import DictStore


class Bulk(Space):
    """A dict that notes what it is asked, and fails where it is told; its loops are those that every space has."""

    __slots__ = ("asked", "broken", "entries", "flights", "leases", "threads")

    def __init__(self):
        self.asked, self.broken, self.threads = [], {}, set()
        self.entries, self.flights, self.leases = {}, {}, {}

    def note(self, *what):
        self.asked.append(what)
        self.threads.add(threading.current_thread())
        if what in self.broken or what[:1] in self.broken:
            raise self.broken.get(what) or self.broken[what[:1]]

    def read(self, key):
        self.note("read", key)
        return Reading(self.entries.get(key, MISSING), self.leases.get(key))

    def take(self, key, tags, renew):
        self.note("take", key)
        if key in self.entries and not renew:
            return Reading(self.entries[key])
        self.leases[key] = Lease()
        return self.leases[key]

    def fill(self, key, lease, value, ttl, tags):
        self.note("fill", key)
        if self.leases.pop(key, None) is not lease:
            return False
        self.entries[key] = value
        return True

    def release(self, key, lease, remove):
        self.note("release", key)
        if self.leases.get(key) is lease:
            del self.leases[key]
            if remove:
                self.entries.pop(key, None)

    def remove(self, key):
        self.note("remove", key)
        self.leases.pop(key, None)
        return self.entries.pop(key, None) is not None

    def put(self, key, value, ttl, tags):
        raise NotImplementedError

    remove_all = peek = left = of = put


class BulkStore(DictStore):
    def attach(self, keys, hits, misses, owner):
        self.space = Bulk()
        return self.space


@pytest.fixture
def bulk() -> BulkStore:
    return BulkStore()


def verbs(store):
    return [what[0] for what in store.space.asked]


def test_everything_is_asked_in_bulk(bulk, source):
    load = cache_aside_many(store=bulk, key="{ids}")(source.load)
    load([])  # finds the store
    assert load([1, 2, 9]) == {1: "one", 2: "two"}
    assert bulk.space.asked == [
        *[("read", key) for key in "129"],
        *[("take", key) for key in "129"],
        *[("fill", key) for key in "12"],
        ("release", "9"),
    ]


@pytest.fixture
def counted(monkeypatch):
    """What was asked of spaces in bulk, with the number of keys."""
    asked = []

    def count(name):
        method = getattr(Space, name)

        def counting(self, items, *options):
            asked.append((name, len(items)))
            return method(self, items, *options)

        monkeypatch.setattr(Space, name, counting)

    for verb in ("read", "take", "fill", "release", "remove"):
        count(f"{verb}_many")
        count(f"a{verb}_many")
    return asked


def test_one_call_asks_each_thing_once(bulk, source, counted):
    load = cache_aside_many(store=bulk)(source.load)
    load([1, 2, 9])
    assert sorted(counted) == [("fill_many", 2), ("read_many", 3), ("release_many", 1), ("take_many", 3)]
    counted.clear()
    load([1, 2])
    assert counted == [("read_many", 2)]
    counted.clear()
    assert load.invalidate_many([1, 2, 3]) == 2
    assert counted == [("remove_many", 3)]


def test_ids_that_render_alike_are_removed_once(bulk, counted):
    load = cache_aside_many(store=bulk, key="{ids}")(lambda ids: dict.fromkeys(ids, "x"))
    load([7, "7"])
    assert load.invalidate_many(["7", 7]) == 1
    assert counted[-1] == ("remove_many", 1)


async def test_one_call_asks_each_thing_once_async(bulk, source, counted):
    load = cache_aside_many(store=bulk)(source.aload)
    assert await load([1, 2, 9]) == {1: "one", 2: "two"}
    asked = [each for each in counted if each[0].startswith("a")]
    assert sorted(asked) == [("afill_many", 2), ("aread_many", 3), ("arelease_many", 1), ("atake_many", 3)]
    assert await load.invalidate_many([1, 2, 3]) == 2
    assert counted[-2:] == [("aremove_many", 3), ("remove_many", 3)]
    assert threading.main_thread() not in bulk.space.threads  # what may block is not done on the loop


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_store_that_is_down_is_asked_once_and_the_function_is_called(bulk, source):
    load = cache_aside_many(store=bulk)(source.load)
    load([])
    bulk.space.broken = {("read",): OSError("down"), ("take",): OSError("down")}
    assert load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}
    assert verbs(bulk) == ["read", "take"]
    assert load.stats().errors == {"read": 1, "take": 1}
    assert source.asked == [[1, 2, 3]]


async def test_a_store_that_is_down_is_asked_once_and_the_function_is_called_async(bulk, source):
    load = cache_aside_many(store=bulk)(source.aload)
    await load([])
    bulk.space.broken = {("read",): OSError("down"), ("take",): OSError("down")}
    assert await load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}
    assert verbs(bulk) == ["read", "take"]
    assert load.stats().errors == {"read": 1, "take": 1}


def test_a_store_that_is_slow_to_fail_is_not_asked_again(bulk, source, monkeypatch):
    load = cache_aside_many(store=bulk)(source.load)
    load([])
    monkeypatch.setattr(type(bulk.space), "asks_again", False)
    bulk.space.broken = {("read",): OSError("down")}
    assert load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}
    assert verbs(bulk) == ["read"]
    assert source.asked == [[1, 2, 3]]


async def test_a_store_that_is_slow_to_fail_is_not_asked_again_async(bulk, source, monkeypatch):
    load = cache_aside_many(store=bulk)(source.aload)
    await load([])
    monkeypatch.setattr(type(bulk.space), "asks_again", False)
    bulk.space.broken = {("read",): OSError("down")}
    assert await load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}
    assert verbs(bulk) == ["read"]
    assert source.asked == [[1, 2, 3]]


@pytest.mark.parametrize("verb", ["read_many", "take_many", "fill_many", "release_many"])
def test_a_bulk_method_of_a_stores_own_may_raise(bulk, source, verb, monkeypatch):
    load = cache_aside_many(store=bulk)(source.load)
    monkeypatch.setattr(Bulk, verb, lambda self, items, *options: 1 / 0, raising=False)
    assert load([1, 9]) == {1: "one"}
    assert load.stats().errors == {verb.removesuffix("_many"): 1}


@pytest.mark.parametrize("verb", ["aread_many", "atake_many", "afill_many", "arelease_many"])
async def test_a_bulk_method_of_a_stores_own_may_raise_async(bulk, source, verb, monkeypatch):
    async def fail(self, items, *options):
        raise OSError("down")

    load = cache_aside_many(store=bulk)(source.aload)
    monkeypatch.setattr(Bulk, verb, fail, raising=False)
    assert await load([1, 9]) == {1: "one"}
    assert load.stats().errors == {verb[1:].removesuffix("_many"): 1}


def test_keys_that_were_read_before_a_failure_are_served(bulk, source):
    load = cache_aside_many(store=bulk, key="{ids}")(source.load)
    load([1, 2])
    bulk.space.broken = {("read", "2"): OSError("down")}
    assert load([1, 2, 3]) == {1: "one", 2: "two", 3: "three"}
    assert load.stats().hits == 1
    assert load.stats().errors == {"read": 1}
    assert ("read", "3") not in bulk.space.asked


def test_a_value_that_cannot_be_stored_does_not_hinder_the_others(source):
    store = MemoryStore(cleanup_interval=None, serializer=pickle)
    source.values[2] = lambda: None
    load = cache_aside_many(store=store)(source.load)
    assert list(load([1, 2, 3])) == [1, 2, 3]
    assert load.peek(1) == "one"
    assert load.peek(2) is MISSING
    assert load.peek(3) == "three"
    assert load.stats().errors == {"fill": 1}
    assert load._self_memoized.attached().leases == {}


def test_leases_that_were_taken_before_a_failure_are_used_or_given_back(bulk, source):
    load = cache_aside_many(store=bulk, key="{ids}")(source.load)
    load([])
    bulk.space.broken = {("take", "2"): OSError("down")}
    load([1, 2, 3])
    assert bulk.space.leases == {}
    assert bulk.space.entries == {"1": "one"}
    source.error = LookupError("no")
    bulk.space.entries.clear()
    with pytest.raises(LookupError):
        load([1, 2])
    assert bulk.space.leases == {}


def test_removing_several_tries_all_before_it_raises(bulk, source):
    load = cache_aside_many(store=bulk, key="{ids}")(source.load)
    load([1, 2, 3])
    error = OSError("down")
    bulk.space.broken = {("remove", "1"): error, ("remove", "3"): OSError("later")}
    with pytest.raises(OSError, match="down") as caught:
        load.invalidate_many([1, 2, 3])
    assert caught.value is error
    assert bulk.space.entries.keys() == {"1", "3"}


def test_a_custom_store_that_goes_down_and_comes_back(source):
    store = DictStore()
    load = cache_aside_many(store=store)(source.load)
    load([1])
    store.down = True
    assert load([1, 2]) == {1: "one", 2: "two"}
    store.down = False
    assert load([2, 1]) == {2: "two", 1: "one"}
    assert source.asked == [[1], [1, 2], [2]]


def test_many_ids_are_one_thread_hop_each_way(source):
    """Not one for each id: the loop of a blocking store runs within one worker."""
    store = DictStore()
    hops = []
    to_thread = asyncio.to_thread

    async def counting(method, *args):
        hops.append(method.__name__)
        return await to_thread(method, *args)

    load = cache_aside_many(store=store)(source.aload)
    asyncio.to_thread = counting
    try:
        asyncio.run(load(range(1, 101)))
    finally:
        asyncio.to_thread = to_thread
    assert hops == ["read_many", "take_many", "fill_many", "release_many"]
