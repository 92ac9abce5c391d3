"""State machines that compare a store with a model too simple to be wrong; none looks inside one.

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

from ..entry import DEFAULT, MISSING
from ..stores import Store
from .clock import ManualClock
from .sides import Awaiting, Blocking, Loader

__all__ = ["SharedMachine", "StoreMachine"]

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
        raise NotImplementedError  # whoever tests a store says which one

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
