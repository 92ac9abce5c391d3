"""A memory store seen from within: a walk of its every relation, and a state machine over its order of use.

It is the one module of `memo.testing` that looks inside of a store.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ..entry import TaggedEntry, TaggedLease
from ..stores import MemoryStore
from .clock import ManualClock
from .sides import Blocking, Loader

__all__ = ["LruMachine", "check_memory_store"]


def check_memory_store(store: MemoryStore, *, leases: int | None = 0, interrupted: bool = False) -> None:
    """Walk every internal relation of a memory store; an AssertionError says which one does not hold.

    Args:
        store: the store.
        leases: how many stand, which is the number of loads in progress; None: any number.
        interrupted: an operation was broken off, which may leave corpses (entries that no longer count, where a table
            or a tag leads) but nothing else.
    """
    shelf = store._shelf
    _check_lock_is_free(shelf.lock)
    tables = [each for table in list(shelf.tables) for each in (table, *table.instances.values())]
    ids = {id(table) for table in tables} | {id(death.table) for death in shelf.dead}  # these wait for the next writer
    for entry in shelf.order:
        # A load that is under way when its instance's table is let go fills a table that nobody finds.
        let_go = interrupted and entry.space.parent is not None
        assert let_go or id(entry.space) in ids, f"the entry at {entry.key!r} is in a table that is gone"
        assert entry.space.get(entry.key) is entry, f"the entry at {entry.key!r} is not where its key leads"
    assert len(shelf.order) <= shelf.max_size
    expected: dict[str, set[Any]] = {}
    standing = 0
    for table in tables:
        for key, entry in table.items():
            assert entry.space is table
            assert entry.key == key
            assert interrupted or entry in shelf.order, f"there is a corpse at {key!r}"
            if isinstance(entry, TaggedEntry) and entry in shelf.order:
                for tag in entry.tags:
                    expected.setdefault(tag, set()).add(entry)
        for key, lease in table.leases.items():
            standing += 1
            if isinstance(lease, TaggedLease):
                assert lease.space is table
                assert lease.key == key
                for tag in lease.tags:
                    expected.setdefault(tag, set()).add(lease)
    assert leases is None or standing == leases, f"{standing} leases stand, not {leases}"
    if interrupted:
        for tag, bearers in expected.items():
            assert bearers <= shelf.tags.get(tag, set()), f"the tag {tag!r} does not lead to all that bear it"
    else:
        assert shelf.tags == expected, "the tags do not lead to exactly those that bear them"


def _check_lock_is_free(lock: Any) -> None:
    assert not lock._is_owned(), "this thread holds the lock"
    assert lock.acquire(timeout=10), "another thread holds the lock"
    lock.release()


class LruMachine(RuleBasedStateMachine):
    """A memory store of one to four entries against a list in the order of use: every victim is the right one."""

    def make_store(self, max_size: int, clock: ManualClock) -> MemoryStore:
        """Return an empty store."""
        return MemoryStore(max_size=max_size, clock=clock, cleanup_interval=None)

    @initialize(max_size=st.sampled_from((1, 2, 3, 4)))
    def start(self, max_size: int) -> None:
        """Begin with an empty store."""
        self.clock = ManualClock(1_000.0)
        self.max_size = max_size
        self.store = self.make_store(max_size, self.clock)
        side = Blocking(self.store)
        self.functions = [
            Loader(side, "lru.one", tags=("odd:{x}",), ttl=None),
            Loader(side, "lru.two", key="two:{x}", ttl=3),
        ]
        self.order: list[str] = []  # least recently used first
        self.ends: dict[str, float] = {}
        self.values: dict[str, Any] = {}
        self.counted = {"hits": 0, "misses": 0, "sets": 0, "deletes": 0, "evictions": 0, "expirations": 0}
        self.number = 0

    # -- the model ---------------------------------------------------------------------------------------------------

    def _expired(self, key: str) -> bool:
        return key in self.order and self.clock.now >= self.ends[key]

    def _meet(self, key: str) -> bool:
        """Return whether the key is there; what is over is removed by the read that meets it."""
        if self._expired(key):
            self.order.remove(key)
            self.counted["expirations"] += 1
        return key in self.order

    def _touch(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)

    def _write(self, key: str, value: Any, ttl: float | None) -> None:
        if key in self.order:
            self.order.remove(key)
        elif len(self.order) == self.max_size:
            del self.order[0]
            self.counted["evictions"] += 1
        self.order.append(key)
        self.ends[key] = math.inf if ttl is None else self.clock.now + ttl
        self.values[key] = value
        self.counted["sets"] += 1

    def _remove(self, key: str) -> bool:
        if key not in self.order:
            return False
        self.counted["expirations" if self._expired(key) else "deletes"] += 1
        found = not self._expired(key)
        self.order.remove(key)
        return found

    # -- rules -------------------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from("abcdef"), ttl=st.sampled_from((None, 1, 2)))
    def set(self, key: str, ttl: Any) -> None:
        """Store a value that no other has."""
        self.number += 1
        self.store.set(key, self.number, ttl)
        self._write(key, self.number, ttl)

    @rule(key=st.sampled_from("abcdef"))
    def get(self, key: str) -> None:
        """Read a value."""
        there = self._meet(key)
        assert self.store.get(key) == (self.values[key] if there else None)
        self.counted["hits" if there else "misses"] += 1
        if there:
            self._touch(key)

    @rule(key=st.sampled_from("abcdef"))
    def look(self, key: str) -> None:
        """Ask without using."""
        there = self._meet(key)
        assert self.store.exists(key) is there
        assert (self.store.ttl(key) is not None) is there

    @rule(key=st.sampled_from("abcdef"))
    def delete(self, key: str) -> None:
        """Remove a value."""
        assert self.store.delete(key) is self._remove(key)

    @rule(key=st.sampled_from("abcdef"), ttl=st.sampled_from((None, 1, 2)))
    def expire(self, key: str, ttl: Any) -> None:
        """Give a value a new ttl, which counts as a use."""
        there = key in self.order and not self._expired(key)
        assert self.store.expire(key, ttl) is there
        if there:
            self.ends[key] = math.inf if ttl is None else self.clock.now + ttl
            self._touch(key)

    @rule(key=st.sampled_from("abcdef"))
    def increment(self, key: str) -> None:
        """Add one, which counts as a write and keeps the ttl."""
        there = key in self.order and not self._expired(key)
        total = self.values[key] + 1 if there else 1
        end = self.ends[key] if there else math.inf
        assert self.store.increment(key) == total
        self._write(key, total, None)
        self.ends[key] = end

    @rule(which=st.integers(0, 1), x=st.integers(0, 2))
    def call(self, which: int, x: int) -> None:
        """Call a function, whose entries are in the same order as all others."""
        function = self.functions[which]
        key, loads = function.key(x), function.loads
        there = key in self.order and not self._expired(key)
        if there:
            assert function(x) == self.values[key]
            self._touch(key)
        else:
            self._meet(key)  # the second look removes what is over
            value = function(x)
            self._write(key, value, 3 if which else None)
        self.counted["hits" if there else "misses"] += 1
        assert function.loads == loads + (not there)

    @rule(x=st.integers(0, 2))
    def invalidate_tags(self, x: int) -> None:
        """Remove what bears a tag."""
        self.store.invalidate_tags(f"odd:{x}")
        key = self.functions[0].key(x)
        if key in self.order:
            self.order.remove(key)
            self.counted["deletes"] += 1

    @rule()
    def cleanup(self) -> None:
        """Remove what is over."""
        over = [key for key in self.order if self._expired(key)]
        assert self.store.cleanup() == len(over)
        self.order = [key for key in self.order if key not in over]
        self.counted["expirations"] += len(over)

    @rule(ticks=st.sampled_from((1, 1, 2)))
    def pass_time(self, ticks: int) -> None:
        """Let some ticks pass."""
        self.clock.advance(ticks)

    @invariant()
    def agrees_on_the_order(self) -> None:
        """The same keys in the same order, the same counts, and nothing inconsistent within."""
        entries = self.store._shelf.order
        assert [entry.space.text_of(entry.key) for entry in entries] == self.order
        counted = self.store.stats()
        assert {name: getattr(counted, name) for name in self.counted} == self.counted
        assert counted.size == len(self.order) == len(self.store)
        check_memory_store(self.store)
