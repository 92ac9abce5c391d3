"""A store that implements the whole interface by hand, as a third party may: a dict under a lock.

It is also the ground on which `test_planted_defects` plants defects, one line at a time.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

from memo import DEFAULT, MISSING
from memo.entry import Lease, Life, Reading
from memo.stats import Counter, StoreStats
from memo.stores.base import Space, Store, checked_amount, checked_key, checked_tags, checked_ttl
from memo.stores.patterns import compile_pattern


class Entry(NamedTuple):
    value: Any
    end: float
    tags: tuple
    space: Any
    life: Life


class PlainSpace(Space):
    """A function's part of a PlainStore: its keys are texts."""

    __slots__ = ("__weakref__", "flights", "leases", "store")

    def __init__(self, store):
        self.store = store
        self.flights = {}
        self.leases = {}  # by key: the lease and its tags

    @property
    def default_ttl(self):
        return self.store.default_ttl

    def read(self, key):
        with self.store.lock:
            entry, now = self.store.kept(key), self.store.latest
            lease = self.leases.get(key, (None,))[0]
        if entry is None or entry.space is not self:
            return Reading(MISSING, lease)
        if now < entry.end - entry.life.early:
            return Reading(entry.value)
        if now < entry.end + entry.life.stale:
            return Reading(entry.value, lease, True, now >= entry.end)
        return Reading(MISSING, lease, False, False, entry.value)

    def take(self, key, tags, renew):
        with self.store.lock:
            reading = self.read(key)
            if reading.value is not MISSING and not reading.due and not renew:
                return reading
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
            for key in [key for key, entry in self.store.entries.items() if entry.space is self]:
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
        self.entries = {}
        self.spaces = []
        self.hits, self.misses = Counter(), Counter()
        self.counters = []
        self.latest = -math.inf

    def attach(self, keys, hits, misses, owner):
        space = PlainSpace(self)
        self.spaces.append(space)
        self.counters.append((hits, misses))
        return space

    def now(self):
        now = self.clock.monotonic()
        if now < self.latest:
            self.clear()
        self.latest = now
        return now

    def kept(self, key):
        now = self.now()
        entry = self.entries.get(checked_key(key))
        return entry if entry is not None and now < entry.end + entry.life.kept else None

    def find(self, key):
        entry = self.kept(key)
        return entry.value if entry is not None and self.latest < entry.end else MISSING

    def drop(self, key):
        there = self.find(key) is not MISSING
        self.entries.pop(key, None)
        for space in self.spaces:
            space.leases.pop(key, None)
        return there

    def write(self, key, value, ttl, tags, space):
        life = ttl if isinstance(ttl, Life) else Life(self.length(ttl))
        with self.lock:
            self.drop(checked_key(key))
            end = math.inf if life.ttl is None else self.now() + life.ttl
            self.entries[key] = Entry(value, end, tags, space, life)

    def length(self, ttl):
        return self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)

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
            self.entries[key] = self.entries[key]._replace(value=number + amount)
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
            return sum([self.drop(key) for key in list(self.entries) if matches(key)])

    def get_many(self, keys):
        found = [(key, self.get(key, MISSING)) for key in keys]
        return {key: value for key, value in found if value is not MISSING}

    def set_many(self, values, ttl=DEFAULT):
        for key in values:
            checked_key(key)
        length = self.length(ttl)
        for key, value in values.items():
            self.set(key, value, length)

    def delete_many(self, keys):
        return sum([self.delete(key) for key in [checked_key(key) for key in keys]])

    def ttl(self, key):
        with self.lock:
            return None if self.find(key) is MISSING else self.entries[key].end - self.latest

    def expire(self, key, ttl):
        length = self.length(ttl)
        with self.lock:
            if self.find(key) is MISSING:
                return False
            end = math.inf if length is None else self.latest + length
            self.entries[key] = self.entries[key]._replace(end=end)
            return True

    def clear(self):
        with self.lock:
            self.entries.clear()
            for space in self.spaces:
                space.leases.clear()

    def invalidate_tags(self, *tags):
        dropped = set(checked_tags(tags))
        with self.lock:
            for key in [key for key, entry in self.entries.items() if dropped & {*entry.tags}]:
                self.drop(key)
            for space in self.spaces:
                space.leases = {key: lease for key, lease in space.leases.items() if not dropped & {*lease[1]}}

    def stats(self):
        return StoreStats(
            hits=self.hits.value + sum(hits.value for hits, _ in self.counters),
            misses=self.misses.value + sum(misses.value for _, misses in self.counters),
            sets=0,
            deletes=0,
            evictions=0,
            expirations=0,
            size=len(self.entries),
            max_size=None,
        )
