"""The file store against a model, used from two places at once: reopened, rewritten, and crashing at any write."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memo import PickleFileStore, StoreError
from memo.stores import logfile
from memo.stores.compaction import Compaction
from memo.testing import ManualClock, SharedMachine
from memo.testing.machines import KEYS, TAGS
from memo.testing.sides import Blocking, Loader
from siblings import module

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
SECRET = b"a secret of the tests, 32 bytes."


class Died(BaseException):
    """The process was killed."""


class Dying:
    """The system calls of a process that is killed at one of them, of which a part of what is to be written is done.

    Args:
        at: the number of the call, from 0 on.
        part: how much of a write is done, from 0 to 1.
    """

    def __init__(self, at: int, part: float) -> None:
        self.left, self.part = at, part
        self.died = self.whole = False  # `whole`: all of that write was done

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _step(self) -> bool:
        self.left -= 1
        self.died = self.left < 0
        return self.died

    def writev(self, fd: int, pieces: Any) -> int:
        return self.write(fd, b"".join(pieces))

    def write(self, fd: int, data: Any) -> int:
        if not self._step():
            return os.write(fd, data)
        count = round(self.part * len(data))
        os.write(fd, data[:count])
        self.whole = count == len(data)
        raise Died

    def fsync(self, fd: int) -> None:
        if self._step():
            raise Died

    def rename(self, old: str, new: str) -> None:
        if self.part > 0.5:
            os.rename(old, new)
        if self._step():
            raise Died
        if self.part <= 0.5:
            os.rename(old, new)

    def unlink(self, path: str) -> None:
        if not self.died:  # who is dead removes nothing
            os.unlink(path)


class dying:
    """Let this process be one that is killed at a system call; whether it was is told by what is returned."""

    def __init__(self, at: int, part: float) -> None:
        self.system = Dying(at, part)
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Dying:
        from memo.stores import compaction

        self.patch.setattr(logfile, "os", self.system)
        self.patch.setattr(compaction, "os", self.system)
        return self.system

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self.patch.undo()
        return kind is Died


@contextlib.contextmanager
def before(step: str, action: Any) -> Any:
    """Do something once before a step of a compaction."""
    left, patch = [action], pytest.MonkeyPatch()
    function = getattr(Compaction, step, None) or getattr(os, step)

    def hooked(*args: Any) -> Any:
        while left:
            left.pop()()
        return function(*args)

    if hasattr(Compaction, step):
        patch.setattr(Compaction, step, hooked)
    else:
        patch.setattr(os, step, hooked)
    try:
        yield
    finally:
        patch.undo()
    assert not left


class FileMachine(SharedMachine):
    """Two processes on one file."""

    copies = True
    secret: Any = None

    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        super().begin()

    def make_store(self, clock):
        path = os.path.join(self.folder.name, "cache.memo")
        return PickleFileStore(path, default_ttl=self.DEFAULT_TTL, secret=self.secret, clock=clock)

    def teardown(self):
        super().teardown()
        self.folder.cleanup()

    @rule()
    def close(self) -> None:
        """Close the store and go on with it."""
        self.side.close()

    @rule()
    def reopen(self) -> None:
        """Close the store; another process opens the file."""
        self.seated.shut()
        self.reseat()

    @rule()
    def compact(self) -> None:
        """Rewrite the file: nothing changes."""
        assert self.side.store.compact()

    @rule(data=st.data())
    def compact_during_a_load(self, data: Any) -> None:
        """Rewrite the file by either in the middle of a load: its result may be stored no more."""
        function, x, key = self._call(data)
        if key in self._alive():
            return
        function.by = self.bystander(function)
        function.during = ("compact",)
        function(x)
        self.seated.misses += 1

    @rule(
        step=st.sampled_from(("_copy_living", "_copy_rest", "_put_in_place", "rename")),
        command=st.sampled_from(("set", "delete", "clear", "tags")),
        key=st.sampled_from(KEYS),
    )
    def compact_while_another_writes(self, step: str, command: str, key: str) -> None:
        """Before any step of the one's compaction the other writes: what it is told was done is not lost."""
        store, other = (seat.side.store for seat in (self.seated, self.seats[1 - self.seats.index(self.seated)]))
        self._alive()

        def write() -> None:
            failures = other.stats().errors.get("set", 0)
            if command == "set":
                other.set(key, "set", None)
                if other.stats().errors.get("set", 0) == failures:
                    self._put(key, "set", None)
                return
            try:
                if command == "delete":
                    other.delete(key)
                    self._drop([key])
                elif command == "clear":
                    other.clear()
                    self.model.clear()
                else:
                    other.invalidate_tags("all")
                    self.model = {each: held for each, held in self.model.items() if "all" not in held[2]}
            except StoreError:  # it is told
                assert step == "rename"

        timeout, other._timeout = other._timeout, 1e-6
        with before(step, write):
            assert store.compact()
        other._timeout = timeout

    @rule(data=st.data(), part=st.sampled_from((0, 0.1, 0.5, 0.9, 0.999, 1)))
    def crash(self, data: Any, part: float) -> None:
        """Be killed in the middle of a write, of which a part is done: what it says is there wholly or not at all."""
        command = data.draw(st.sampled_from(("set", "delete", "clear", "tags", "increment", "invalidate_all")))
        key, tag = data.draw(st.sampled_from(KEYS)), data.draw(st.sampled_from(TAGS))
        store, before = self.seated.side.store, dict(self.model)
        there = self._alive().get(key)
        with dying(0, part) as system:
            if command == "set":
                store.set(key, "set")
                self._put(key, "set", self.DEFAULT_TTL)
            elif command == "delete":
                store.delete(key)
            elif command == "clear":
                store.clear()
            elif command == "tags":
                store.invalidate_tags(tag)
            elif command == "invalidate_all":
                self.one.fn._self_memoized.attached().remove_all()
            elif there is None or type(there) in (int, float):
                store.increment(key)
        if not system.died:
            assert command == "increment"
            return
        self.model = before
        if system.whole:
            if command == "set":
                self._put(key, "set", self.DEFAULT_TTL)
            elif command == "delete":
                self._drop([key])
            elif command == "clear":
                self.model.clear()
            elif command == "tags":
                self.model = {each: held for each, held in before.items() if tag not in held[2]}
            elif command == "invalidate_all":
                self._drop([each.key(x) for each, x in self.calls if each is self.one])
            elif there is None:
                self._put(key, 1, self.DEFAULT_TTL)
            else:
                self.model[key] = (there + 1, *before[key][1:])
        self.dead()

    @rule(at=st.integers(0, 4), part=st.sampled_from((0, 0.1, 0.5, 0.999, 1)))
    def crash_in_a_compaction(self, at: int, part: float) -> None:
        """Be killed at any of its writes, at the flush or at the renaming: nothing changes."""
        with dying(at, part) as system:
            self.side.store.compact()
        if system.died:
            self.dead()

    def dead(self) -> None:
        """Let what the system frees be free, and nothing more."""
        store = self.seated.side.store
        store._view.log.close()
        store._view = None
        self.seated.side.shut()
        self.reseat()


class SignedFileMachine(FileMachine):
    secret = SECRET


class AwaitedFileMachine(FileMachine):
    awaits = True

    @rule(data=st.data())
    def compact_during_a_load(self, data: Any) -> None:
        """Compaction has no twin to await."""


ALL = ("a", "b", "lru.one(0)", "lru.one(1)", "two:0", "two:1")


class RecencyMachine(RuleBasedStateMachine):
    """Two stores of one to four entries on one file, each with a list in the order of use, as it is to see it.

    What anyone writes is used last for both; what one reads, for itself. Who sets evicts what it has used least.
    """

    @initialize(max_size=st.integers(1, 4), secret=st.sampled_from((None, SECRET)), turns=st.integers(0, 2**80 - 1))
    def start(self, max_size: int, secret: Any, turns: int) -> None:
        self.clock, self.max_size, self.turns = ManualClock(1_000.0), max_size, turns
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "cache.memo")
        self.stores = [PickleFileStore(path, max_size, secret=secret, clock=self.clock) for _ in range(2)]
        self.functions = []
        for store in self.stores:
            side = Blocking(store)
            self.functions.append(
                (Loader(side, "lru.one", tags=("t{x}",), ttl=None), Loader(side, "lru.two", key="two:{x}", ttl=3))
            )
        self.orders: list[list[str]] = [[], []]  # least recently used first
        self.written: list[str] = []  # by last write
        self.ends: dict[str, float] = {}
        self.values: dict[str, Any] = {}
        self.evictions = [0, 0]
        self.number = 0
        self.me = 0

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    # -- the model ---------------------------------------------------------------------------------------------------

    @property
    def order(self) -> list[str]:
        return self.orders[self.me]

    @property
    def store(self) -> PickleFileStore:
        return self.stores[self.me]

    def _meet(self, key: str) -> bool:
        """Return whether the key is there; what is over is let go by the one that meets it."""
        if key in self.order and self.clock.now >= self.ends[key]:
            self.order.remove(key)
        return key in self.order

    def _use(self, key: str) -> None:
        self.order.remove(key)
        self.order.append(key)

    def _write(self, key: str, value: Any, end: float) -> None:
        self._drop(key)
        for order in (*self.orders, self.written):
            order.append(key)
        self.ends[key], self.values[key] = end, value
        for victim in self.order[: max(0, len(self.order) - self.max_size)]:
            if self._meet(victim):
                self._drop(victim)
                self.evictions[self.me] += 1

    def _drop(self, key: str) -> None:
        for order in (*self.orders, self.written):
            if key in order:
                order.remove(key)

    # -- rules -------------------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from("ab"), ttl=st.sampled_from((None, 1, 2)))
    def set(self, key: str, ttl: Any) -> None:
        self.number += 1
        self.store.set(key, self.number, ttl)
        self._write(key, self.number, math.inf if ttl is None else self.clock.now + ttl)

    @rule(key=st.sampled_from(ALL))
    def get(self, key: str) -> None:
        there = self._meet(key)
        assert self.store.get(key) == (self.values[key] if there else None), key
        if there:
            self._use(key)

    @rule(key=st.sampled_from(ALL))
    def look(self, key: str) -> None:
        """Ask without using."""
        there = self._meet(key)
        assert self.store.exists(key) is there
        assert (self.store.ttl(key) is not None) is there

    @rule(key=st.sampled_from(ALL))
    def delete(self, key: str) -> None:
        there = self._meet(key)
        assert self.store.delete(key) is there
        self._drop(key)

    @rule(key=st.sampled_from(ALL), ttl=st.sampled_from((None, 1, 2)))
    def expire(self, key: str, ttl: Any) -> None:
        there = self._meet(key)
        assert self.store.expire(key, ttl) is there
        if there:
            self._write(key, self.values[key], math.inf if ttl is None else self.clock.now + ttl)

    @rule(which=st.integers(0, 1), x=st.integers(0, 1))
    def call(self, which: int, x: int) -> None:
        function = self.functions[self.me][which]
        key, loads = function.key(x), function.loads
        there = self._meet(key)
        found = function(x)
        if there:
            assert found == self.values[key]
            self._use(key)
        else:
            self._write(key, found, self.clock.now + 3 if which else math.inf)
        assert function.loads == loads + (not there)

    @rule(which=st.integers(0, 1), x=st.integers(0, 1), by=st.integers(0, 1))
    def refresh_while_it_is_evicted(self, which: int, x: int, by: int) -> None:
        """The load is overtaken by an eviction of its key, or by a removal: it is not stored."""
        function, helper = self.functions[self.me][which], self.functions[by][which]
        key = function.key(x)
        fill = {f"filler {number}": number for number in range(self.max_size)}
        if not self._meet(key):
            return
        function.by, function.during = helper, ("set_many", fill, None)
        function.refresh(x)
        mine, self.me = self.me, by
        for each in fill:
            self._drop(each)
        for order in (*self.orders, self.written):
            order += fill
        self.ends |= dict.fromkeys(fill, math.inf)
        self.values |= fill
        for victim in self.order[: len(self.order) - self.max_size]:
            if self._meet(victim):
                self._drop(victim)
                self.evictions[by] += 1
        self.me = mine
        # Either all that was there was evicted, and so the load refused; the other's list may have had more in it.
        assert key not in self.orders[by]

    @rule(which=st.integers(0, 1), x=st.integers(0, 1))
    def peek(self, which: int, x: int) -> None:
        """Look at a value without using it."""
        function = self.functions[self.me][which]
        key = function.key(x)
        there = self._meet(key)
        assert (function.peek(x) == self.values[key]) if there else (not function.peek(x))

    @rule(x=st.integers(0, 1))
    def invalidate_tags(self, x: int) -> None:
        self.store.invalidate_tags(f"t{x}")
        self._drop(self.functions[0][0].key(x))

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.written, self.orders = [], [[], []]

    @rule()
    def compact(self) -> None:
        """What is over is gone; who has done it keeps its order, and the other one has that of the writes."""
        assert self.store.compact()
        alive = {key for key in self.order if self.clock.now < self.ends[key]}
        self.orders[self.me] = [key for key in self.order if key in alive]
        self.orders[1 - self.me] = [key for key in self.written if key in alive]

    @rule()
    def cleanup(self) -> None:
        over = [key for key in self.order if self.clock.now >= self.ends[key]]
        assert self.store.cleanup() == len(over)
        self.orders[self.me] = [key for key in self.order if key not in over]

    @rule(ticks=st.sampled_from((1, 1, 2)))
    def pass_time(self, ticks: int) -> None:
        self.clock.advance(ticks)

    @invariant()
    def it_agrees(self) -> None:
        """Who has made the step has the same keys in the same order."""
        counted = self.store.stats()
        assert self.store._view.index.listed() == self.order
        assert counted.size == len(self.order)
        assert counted.evictions == self.evictions[self.me]

    @invariant()
    def then_it_is_anybodys_turn(self) -> None:
        self.turns, self.me = self.turns >> 1, self.turns & 1


class FileWindows(module("machines/test_windows_machine.py").Windows):  # type: ignore[misc,name-defined]
    """Stale windows, with each invalidation by either of two processes; the file is rewritten and opened anew."""

    def make_store(self):
        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "cache.memo")
        self.another = PickleFileStore(path, clock=self.clock)
        return PickleFileStore(path, clock=self.clock)

    @initialize(turns=st.integers(0, 2**40 - 1))
    def who_is_when_at_turn(self, turns):
        self.turns = turns
        self.same = self.decorated(self.another)

    def invalidator(self):
        self.turns, number = self.turns >> 1, self.turns & 1
        return (self.another, self.same) if number else (self.store, self.load)

    def argument(self, mark):
        return {self.load.key_for(x): x for x in (1, 2)}[mark[1]]

    @rule(by=st.integers(0, 1))
    def compact(self, by):
        (self.store, self.another)[by].compact()
        self.model = {x: each for x, each in self.model.items() if self.age(x) < 18}

    @rule(by=st.integers(0, 1))
    def close(self, by):
        (self.store, self.another)[by].close()

    @precondition(lambda self: self.model)
    @rule(x=st.sampled_from([1, 2]))
    def the_other_sees_the_same(self, x):
        fresh = self.age(x) < 10
        assert bool(self.same.peek(x)) is fresh

    def teardown(self):
        super().teardown()
        self.store.close()
        self.another.close()
        self.folder.cleanup()


TestFileMachine = FileMachine.TestCase
TestSignedFileMachine = SignedFileMachine.TestCase
TestAwaitedFileMachine = AwaitedFileMachine.TestCase
TestRecency = RecencyMachine.TestCase
TestFileWindows = FileWindows.TestCase
if not NIGHTLY:
    TestFileMachine.settings = settings(max_examples=50)
    TestSignedFileMachine.settings = settings(max_examples=10)
    TestAwaitedFileMachine.settings = settings(max_examples=8)
    TestRecency.settings = settings(max_examples=60)
    TestFileWindows.settings = settings(max_examples=40)
