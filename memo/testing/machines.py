"""State machines that compare a store with a model too simple to be wrong; only `check_memory_store` looks inside one.

::

    class MyMachine(StoreMachine):
        def make_store(self, clock):
            return MyStore(clock=clock, default_ttl=self.DEFAULT_TTL)

    TestMyStore = MyMachine.TestCase
"""

from __future__ import annotations

import copy
import math
from fnmatch import fnmatchcase
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ..entry import DEFAULT, MISSING, TaggedEntry, TaggedLease
from ..stores import MemoryStore, Store
from .clock import ManualClock
from .contract import Awaiting, Blocking, Loader

__all__ = ["LruMachine", "SharedMachine", "StoreMachine", "check_memory_store"]

KEYS = ("", "a", "b", "a*", "n[1]")
PATTERNS = ("*", "a*", "?", "a[*]", "n[1]", "n[[]1]", "machine.*", "*(1)", "x")
ARGUMENTS = (0, 1, None)
TAGS = ("all", "x:0", "x:1", "x:None", "unknown")
VALUES = (None, False, 0, 1, 2.5, "", "text", b"\x00", [1], {"a": [None, {"b": (1,)}]})
TICKS = (0, 1, 1, 2, 5)
TTLS = (DEFAULT, None, 1, 2, 4)

_keys = st.sampled_from(KEYS)
_ttls = st.sampled_from(TTLS)
_arguments = st.sampled_from(ARGUMENTS)


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


class Seat:
    """A store, two decorated functions on it, and the reads that it is to have counted."""

    def __init__(self, side: Blocking, one: Loader, two: Loader) -> None:
        self.side = side
        self.one = one
        self.two = two
        self.hits = self.misses = 0

    def shut(self) -> None:
        """Close the store and the loop."""
        self.side.close()
        self.side.shut()


class StoreMachine(RuleBasedStateMachine):
    """The interface of a store, and two decorated functions on it, against a dict and a clock.

    Attributes:
        awaits: use the methods with an `a` in front, and decorate `async def`s.
        copies: the store keeps copies: whatever a caller changes in a value is not seen by others.
        empties: the store empties itself when it sees its clock run backwards.
    """

    DEFAULT_TTL = 3
    awaits = False
    copies = False
    empties = True

    def make_store(self, clock: ManualClock) -> Store:
        """Return an empty store on that clock whose default ttl is DEFAULT_TTL."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(1_000.0)
        self.model: dict[str, tuple[Any, float, tuple[str, ...]]] = {}  # value, the moment of its end, tags
        self.begin()

    def begin(self) -> None:
        """Begin with an empty store, or several that share what they keep."""
        self.sit(self.seat("the only one"))

    def seat(self, name: str) -> Seat:
        """Return a new place to use a store from; the functions' results name it."""
        side = (Awaiting if self.awaits else Blocking)(self.make_store(self.clock))
        return Seat(
            side,
            Loader(
                side,
                "machine.one",
                ttl=DEFAULT,
                tags=("all", "x:{x}"),
                result=lambda x, load: f"{x!r} of load {load} by {name}",
            ),
            Loader(side, "machine.two", ttl=2, key="two:{x}", cache_none=True, result=lambda x, load: [x, load, name]),
        )

    def sit(self, seat: Seat) -> None:
        """Let what follows be done from there."""
        self.seated = seat
        self.side, self.one, self.two = seat.side, seat.one, seat.two
        self.calls = [(function, x) for function in (self.one, self.two) for x in ARGUMENTS]

    def bystander(self, function: Loader) -> Loader:
        """Return the function whose store, or helper, invalidates in the middle of a load."""
        return function

    def sides(self) -> list[Blocking]:
        """Return all that see the clock."""
        return [self.side]

    def teardown(self) -> None:
        """Close the store and the loop."""
        self.seated.shut()

    # -- the model ---------------------------------------------------------------------------------------------------

    def _alive(self) -> dict[str, Any]:
        self.model = {key: each for key, each in self.model.items() if self.clock.now < each[1]}
        return {key: each[0] for key, each in self.model.items()}

    def _until(self, ttl: Any) -> float:
        length = self.DEFAULT_TTL if ttl is DEFAULT else ttl
        return math.inf if length is None else self.clock.now + length

    def _put(self, key: str, value: Any, ttl: Any, tags: tuple[str, ...] = ()) -> None:
        self.model[key] = copy.deepcopy(value), self._until(ttl), tags

    def _drop(self, keys: list[str]) -> int:
        return sum(self.model.pop(key, None) is not None for key in keys)

    def _spoil(self, value: Any) -> None:
        """Change a value that is the caller's own, as far as it lets itself be changed."""
        if self.copies and isinstance(value, list):
            value.append("spoilt")
        elif self.copies and isinstance(value, dict):
            value["a"].append("spoilt")

    @staticmethod
    def _tags(function: Loader, x: Any) -> tuple[str, ...]:
        return ("all", f"x:{x}") if function.fn.key_for(x).startswith("machine.one") else ()

    # -- plain keys --------------------------------------------------------------------------------------------------

    @rule(key=_keys, value=st.sampled_from(VALUES), ttl=_ttls)
    def set(self, key: str, value: Any, ttl: Any) -> None:
        """Store a value."""
        mine = copy.deepcopy(value)
        self.side.set(key, mine, ttl)
        self._spoil(mine)
        self._put(key, value, ttl)

    @rule(keys=st.lists(_keys, max_size=3), value=st.sampled_from(VALUES), ttl=_ttls)
    def set_many(self, keys: list[str], value: Any, ttl: Any) -> None:
        """Store several values."""
        self.side.set_many({key: copy.deepcopy(value) for key in keys}, ttl)
        for key in keys:
            self._put(key, value, ttl)

    @rule(key=_keys, amount=st.sampled_from((1, -2, 0.5)))
    def increment(self, key: str, amount: Any) -> None:
        """Add to a number, or meet what is none."""
        there = self._alive().get(key, MISSING)
        if there is MISSING:
            assert self.side.increment(key, amount) == amount
            self._put(key, amount, DEFAULT)
        elif type(there) in (int, float):
            assert self.side.increment(key, amount) == there + amount
            self.model[key] = (there + amount, *self.model[key][1:])
        else:
            try:
                self.side.increment(key, amount)
            except ValueError:
                return
            raise AssertionError(f"{there!r} was incremented")

    # -- any key -----------------------------------------------------------------------------------------------------

    def _any_key(self, data: Any) -> str:
        keys: list[str] = [*KEYS, *(function.key(x) for function, x in self.calls)]
        key: str = data.draw(st.sampled_from(keys))
        return key

    @rule(data=st.data())
    def get(self, data: Any) -> None:
        """Read a value."""
        key = self._any_key(data)
        expected = self._alive().get(key, MISSING)
        found = self.side.get(key, MISSING)
        self._same(found, expected)
        self._spoil(found)
        self.seated.hits += expected is not MISSING
        self.seated.misses += expected is MISSING

    @rule(data=st.data(), count=st.integers(0, 3))
    def get_many(self, data: Any, count: int) -> None:
        """Read several values."""
        keys = [self._any_key(data) for _ in range(count)]
        expected = {key: value for key, value in self._alive().items() if key in keys}
        assert self.side.get_many(keys) == expected
        self.seated.hits += sum(key in expected for key in keys)
        self.seated.misses += sum(key not in expected for key in keys)

    @rule(data=st.data())
    def delete(self, data: Any) -> None:
        """Remove a value."""
        key = self._any_key(data)
        self._alive()
        assert self.side.delete(key) is bool(self._drop([key]))

    @rule(data=st.data(), count=st.integers(0, 3))
    def delete_many(self, data: Any, count: int) -> None:
        """Remove several values."""
        keys = [self._any_key(data) for _ in range(count)]
        self._alive()
        assert self.side.delete_many(keys) == self._drop(keys)

    @rule(data=st.data(), ttl=_ttls)
    def expire(self, data: Any, ttl: Any) -> None:
        """Give a value a new ttl."""
        key = self._any_key(data)
        there = key in self._alive()
        assert self.side.expire(key, ttl) is there
        if there:
            value, _, tags = self.model[key]
            self.model[key] = value, self._until(ttl), tags

    @rule(pattern=st.sampled_from(PATTERNS))
    def list_keys(self, pattern: str) -> None:
        """List the keys that match."""
        assert sorted(self.side.keys(pattern)) == sorted(k for k in self._alive() if fnmatchcase(k, pattern))

    @rule(pattern=st.sampled_from(PATTERNS))
    def delete_pattern(self, pattern: str) -> None:
        """Remove the values whose keys match."""
        matching = [key for key in self._alive() if fnmatchcase(key, pattern)]
        assert self.side.delete_pattern(pattern) == self._drop(matching)

    @rule(thinned=st.integers(0, 2))
    def clear(self, thinned: int) -> None:
        """Remove everything, one time in three."""
        if thinned == 0:
            self.side.clear()
            self.model.clear()

    @rule(tags=st.lists(st.sampled_from(TAGS), max_size=2))
    def invalidate_tags(self, tags: list[str]) -> None:
        """Remove what bears one of the tags."""
        self.side.invalidate_tags(*tags)
        self.model = {key: each for key, each in self.model.items() if not {*tags} & {*each[2]}}

    # -- decorated functions -----------------------------------------------------------------------------------------

    def _call(self, data: Any) -> tuple[Loader, Any, str]:
        function, x = data.draw(st.sampled_from(self.calls))
        return function, x, function.key(x)

    @rule(data=st.data())
    def call(self, data: Any) -> None:
        """Call a function: what the model has, or a new load."""
        function, x, key = self._call(data)
        there = self._alive().get(key, MISSING)
        loads = function.loads
        found = function(x)
        if there is MISSING:
            assert function.loads == loads + 1, "it did not load"
            assert found == function._result(x, loads + 1)
            self._put(key, found, DEFAULT if function is self.one else 2, self._tags(function, x))
            self.seated.misses += 1
        else:
            assert function.loads == loads, "it loaded what was there"
            self._same(found, there)
            self.seated.hits += 1
        self._spoil(found)

    @rule(data=st.data(), command=st.sampled_from(("delete", "pattern", "tag", "clear", "invalidate", "all", "set")))
    def call_while_it_is_invalidated(self, data: Any, command: str) -> None:
        """Call a function and, if it loads, invalidate its key in the middle: the result is not stored."""
        function, x, key = self._call(data)
        there = self._alive().get(key, MISSING)
        if there is not MISSING or (command == "tag" and function is self.two):
            return
        function.by = self.bystander(function)
        function.during = {
            "delete": ("delete", key),
            "pattern": ("delete_pattern", "*"),
            "tag": ("invalidate_tags", f"x:{x}"),
            "clear": ("clear",),
            "invalidate": ("fn.invalidate", x),
            "all": ("fn.invalidate_all",),
            "set": ("fn.set", ["set"], x),
        }[command]
        function(x)
        self.seated.misses += 1
        tags = self._tags(function, x)
        if command in ("pattern", "clear"):
            self.model.clear()
        elif command == "tag":
            self.model = {k: each for k, each in self.model.items() if tags[1] not in each[2]}
        elif command == "all":
            own = {each.key(argument) for each, argument in self.calls if each is function}
            self.model = {k: each for k, each in self.model.items() if k not in own}
        elif command == "set":
            self._put(key, ["set"], DEFAULT if function is self.one else 2, tags)

    @rule(data=st.data())
    def invalidate(self, data: Any) -> None:
        """Forget one call."""
        function, x, key = self._call(data)
        self._alive()
        assert function.invalidate(x) is bool(self._drop([key]))

    @rule(data=st.data())
    def invalidate_all(self, data: Any) -> None:
        """Forget all calls of one function."""
        function, _, _ = self._call(data)
        function.invalidate_all()
        self._drop([each.key(x) for each, x in self.calls if each is function])

    @rule(data=st.data())
    def refresh(self, data: Any) -> None:
        """Load whatever is there."""
        function, x, key = self._call(data)
        found = function.refresh(x)
        assert found == function._result(x, function.loads)
        self._put(key, found, DEFAULT if function is self.one else 2, self._tags(function, x))

    @rule(data=st.data())
    def set_result(self, data: Any) -> None:
        """Store a value as a call's result."""
        function, x, key = self._call(data)
        function.set(["set"], x)
        self._put(key, ["set"], DEFAULT if function is self.one else 2, self._tags(function, x))

    # -- time --------------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass for the store and the model."""
        self.clock.advance(seconds)

    @rule(ticks=st.sampled_from(TICKS))
    def pass_time(self, ticks: int) -> None:
        """Let some ticks pass."""
        self.advance(ticks)

    @rule(ticks=st.sampled_from((1, 1_000)))
    def turn_the_clock_back(self, ticks: int) -> None:
        """Let the clock run backwards, and the store see it."""
        if self.empties:
            self.clock.advance(-ticks)
            for side in self.sides():
                assert not side.exists("a")
            self.model.clear()

    # -- agreement ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _same(found: Any, expected: Any) -> None:
        assert found == expected
        assert type(found) is type(expected)

    @invariant()
    def agrees_on_what_is_there(self) -> None:
        """Every key, absent ones too, exists or not, and has the time left that the model says."""
        alive = self._alive()
        for key in [*KEYS, *(function.key(x) for function, x in self.calls)]:
            left = self.model[key][1] - self.clock.now if key in alive else None
            assert self.side.ttl(key) == left, f"the time left of {key!r}"
        for function, x in self.calls:
            self._same(function.peek(x), alive.get(function.key(x), MISSING))

    @invariant()
    def counts_every_read(self) -> None:
        """Reads are counted once each; asking does not change the counters."""
        counted = self.side.stats()
        assert (counted.hits, counted.misses) == (self.seated.hits, self.seated.misses)


class SharedMachine(StoreMachine):
    """Two stores that share what they keep, as two processes have them; each step is done by either.

    `make_store` is called for each. Only the one that has made a step is asked about it: the other has not looked since
    its own last step, as a process has not that does something else.
    """

    def begin(self) -> None:
        """Begin with two."""
        self.seats = [self.seat("one"), self.seat("another")]
        self.sit(self.seats[0])

    @initialize(turns=st.integers(0, 2**80 - 1))
    def who_is_when_at_turn(self, turns: int) -> None:
        """Choose, bit by bit, who makes each step."""
        self.turns = turns

    def turn(self) -> int:
        """Return whose the next turn is."""
        self.turns, number = self.turns >> 1, self.turns & 1
        return number

    def bystander(self, function: Loader) -> Loader:
        """Return the same function of either process."""
        seat = self.seats[self.turn()]
        return seat.one if function is self.one else seat.two

    def sides(self) -> list[Blocking]:
        """Return both: each empties the store when it sees the clock run backwards."""
        return [seat.side for seat in self.seats]

    @invariant()
    def then_it_is_anybodys_turn(self) -> None:
        """Go on with either, after what is checked after each step."""
        self.sit(self.seats[self.turn()])

    def reseat(self) -> None:
        """Let a new process be in the place of the one whose turn it is, which is gone."""
        number = self.seats.index(self.seated)
        self.names += 1
        self.seats[number] = self.seat(f"number {self.names}")
        self.sit(self.seats[number])

    names = 2

    def teardown(self) -> None:
        """Close the stores and the loops."""
        for seat in self.seats:
            seat.shut()


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
