"""A store of somebody else's: the blocking side is enough, and the contract says whether it is right."""

from __future__ import annotations

import math
import os
import threading

import pytest
from hypothesis import settings

from memo import DEFAULT, MISSING
from memo.entry import Lease, Reading
from memo.errors import OptionError
from memo.stats import Counter, StoreStats
from memo.stores.base import Space, Store, checked_amount, checked_key, checked_tags, checked_ttl
from memo.stores.patterns import compile_pattern
from memo.testing import StoreContract, StoreMachine


class PlainSpace(Space):
    """A function's part of a PlainStore: its keys are texts."""

    __slots__ = ("flights", "leases", "store")

    def __init__(self, store):
        self.store = store
        self.flights = {}
        self.leases = {}  # by key: the lease and its tags

    def read(self, key):
        with self.store.lock:
            value = self.store.find(key)
            return Reading(value, self.leases.get(key, (None,))[0] if value is MISSING else None)

    def take(self, key, tags, renew):
        with self.store.lock:
            value = MISSING if renew else self.store.find(key)
            if value is not MISSING:
                return Reading(value)
            if renew or key not in self.leases:
                self.leases[key] = (Lease(), tags)
            return Reading(MISSING, self.leases[key][0])

    def fill(self, key, lease, value, ttl, tags):
        with self.store.lock:
            if self.leases.get(key, (None,))[0] is not lease:
                return False
            self.put(key, value, ttl, tags)
            return True

    def release(self, key, lease, remove):
        with self.store.lock:
            if self.leases.get(key, (None,))[0] is lease:
                del self.leases[key]
                if remove:
                    self.store.drop(key)

    def put(self, key, value, ttl, tags):
        self.store.write(key, value, ttl, tags, self)

    def remove(self, key):
        return self.store.delete(key)

    def remove_all(self):
        with self.store.lock:
            self.leases.clear()
            for key in [key for key, entry in self.store.entries.items() if entry[3] is self]:
                self.store.drop(key)

    def peek(self, key):
        with self.store.lock:
            return self.store.find(key)

    def left(self, key):
        return self.store.ttl(key)

    def of(self, instance):
        raise NotImplementedError


class PlainStore(Store):
    """A dict under a lock: as simple as a store can be."""

    def __init__(self, clock, default_ttl=None):
        self.clock, self.default_ttl = clock, checked_ttl(default_ttl, "default_ttl")
        self.lock = threading.RLock()
        self.entries = {}  # value, end, tags, space
        self.spaces = []
        self.hits, self.misses = Counter(), Counter()
        self.counters = []
        self.latest = -math.inf

    def attach(self, keys, hits, misses, owner):
        space = PlainSpace(self)
        self.spaces.append(space)
        self.counters.append((hits, misses))
        return space

    def find(self, key):
        now = self.clock.monotonic()
        if now < self.latest:
            self.clear()
        self.latest = now
        entry = self.entries.get(checked_key(key))
        return entry[0] if entry is not None and now < entry[1] else MISSING

    def drop(self, key):
        there = self.find(key) is not MISSING
        self.entries.pop(key, None)
        for space in self.spaces:
            space.leases.pop(key, None)
        return there

    def write(self, key, value, ttl, tags, space):
        length = self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)
        with self.lock:
            self.drop(checked_key(key))
            end = math.inf if length is None else self.clock.monotonic() + length
            self.entries[key] = (value, end, tags, space)

    def get(self, key, default=None):
        with self.lock:
            value = self.find(key)
        (self.misses if value is MISSING else self.hits).tick()
        return default if value is MISSING else value

    def set(self, key, value, ttl=DEFAULT):
        self.write(key, value, ttl, (), None)

    def delete(self, key):
        with self.lock:
            return self.drop(key)

    def exists(self, key):
        with self.lock:
            return self.find(key) is not MISSING

    def increment(self, key, amount=1):
        checked_amount(amount)
        with self.lock:
            number = self.find(key)
            if number is MISSING:
                self.set(key, amount)
                return amount
            if type(number) not in (int, float):
                raise ValueError("not a number")
            self.entries[key] = (number + amount, *self.entries[key][1:])
            return number + amount

    def keys(self, pattern="*"):
        matches = compile_pattern(pattern).match
        with self.lock:
            return [key for key in list(self.entries) if matches(key) and self.find(key) is not MISSING]

    def delete_pattern(self, pattern):
        matches = compile_pattern(pattern).match
        with self.lock:
            for space in self.spaces:
                space.leases = {key: lease for key, lease in space.leases.items() if not matches(key)}
            return sum([self.drop(key) for key in self.keys(pattern)])

    def get_many(self, keys):
        found = [(key, self.get(key, MISSING)) for key in keys]
        return {key: value for key, value in found if value is not MISSING}

    def set_many(self, values, ttl=DEFAULT):
        for key in values:
            checked_key(key)
        if ttl is not DEFAULT:
            checked_ttl(ttl)
        for key, value in values.items():
            self.set(key, value, ttl)

    def delete_many(self, keys):
        return sum([self.delete(key) for key in [checked_key(key) for key in keys]])

    def ttl(self, key):
        with self.lock:
            return None if self.find(key) is MISSING else self.entries[key][1] - self.clock.monotonic()

    def expire(self, key, ttl):
        length = self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)
        with self.lock:
            if self.find(key) is MISSING:
                return False
            value, _, tags, space = self.entries[key]
            end = math.inf if length is None else self.clock.monotonic() + length
            self.entries[key] = (value, end, tags, space)
            return True

    def clear(self):
        with self.lock:
            self.entries.clear()
            for space in self.spaces:
                space.leases.clear()

    def invalidate_tags(self, *tags):
        dropped = set(checked_tags(tags))
        with self.lock:
            for key in [key for key, entry in self.entries.items() if dropped & {*entry[2]}]:
                self.drop(key)
            for space in self.spaces:
                space.leases = {key: lease for key, lease in space.leases.items() if not dropped & {*lease[1]}}

    def stats(self):
        hits = self.hits.value + sum(hits.value for hits, _ in self.counters)
        misses = self.misses.value + sum(misses.value for _, misses in self.counters)
        return StoreStats(
            hits=hits,
            misses=misses,
            sets=0,
            deletes=0,
            evictions=0,
            expirations=0,
            size=len(self.entries),
            max_size=None,
        )


class TestPlainStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return PlainStore(clock, default_ttl)


class PlainMachine(StoreMachine):
    def make_store(self, clock):
        return PlainStore(clock, self.DEFAULT_TTL)


class AwaitedPlainMachine(PlainMachine):
    """Through worker threads: the async side that a store has without writing one."""

    awaits = True


TestPlainMachine = PlainMachine.TestCase
TestAwaitedPlainMachine = AwaitedPlainMachine.TestCase
if os.environ.get("MEMO_PROFILE") != "nightly":
    TestPlainMachine.settings = settings(max_examples=30)
    TestAwaitedPlainMachine.settings = settings(max_examples=10)  # each step waits for a thread


def test_a_subclass_without_all_methods_is_no_store():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Store,), {"get": lambda self, key: None})()


def test_the_checks_are_those_of_every_store():
    with pytest.raises(OptionError):
        checked_tags(("a", 1))
