"""A state machine over calls for many ids: one call at a time against a model, and many at a time against promises."""

from __future__ import annotations

import asyncio
import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from memo import MISSING, MemoryStore, cache_aside_many
from memo.testing import ManualClock

from .conftest import DictStore, left_behind

IDS = (1, 2, 3)
TTL = 4
ids_lists = st.lists(st.sampled_from(IDS), max_size=5)


class Alone(RuleBasedStateMachine):
    """The model: what is stored, until when; what the source has; and what the function was last asked."""

    awaits = False

    @initialize(custom=st.booleans(), none=st.booleans())
    def begin(self, custom, none):
        self.loop = asyncio.new_event_loop()
        self.clock = ManualClock()
        store = DictStore(clock=self.clock) if custom else MemoryStore(clock=self.clock, cleanup_interval=None)
        self.source = dict.fromkeys(IDS, 0)
        self.stored = {}
        self.failing = False
        self.asked = []
        self.hits = self.misses = 0
        self.none = none

        def load(ids):
            self.asked.append(ids)
            if self.failing:
                raise LookupError
            return {each: self.source[each] for each in ids if each in self.source}

        async def aload(ids):
            await asyncio.sleep(0)
            return load(ids)

        self.load = cache_aside_many(ttl=TTL, store=store, cache_none=none, tags=("t:{ids}",))(
            aload if self.awaits else load
        )

    def run(self, result):
        async def wait():
            return await result

        return self.loop.run_until_complete(wait()) if asyncio.iscoroutine(result) else result

    def alive(self):
        now = self.clock.monotonic()
        return {each: value for each, (value, end) in self.stored.items() if now < end}

    def keep(self, loaded):
        for each in loaded:
            self.stored.pop(each, None)
            if each in self.source and (self.source[each] is not None or self.none):
                self.stored[each] = (self.source[each], self.clock.monotonic() + TTL)

    def called(self, call, missing, expected):
        self.asked.clear()
        try:
            found = self.run(call())
        except LookupError:
            assert self.failing
            assert self.asked == [missing]
            return
        assert self.asked == ([missing] if missing else [])
        assert not (missing and self.failing)
        self.keep(missing)
        assert list(found.items()) == [(each, value) for each, value in expected if value is not MISSING]

    @rule(ids=ids_lists)
    def call(self, ids):
        there, unique = self.alive(), list(dict.fromkeys(ids))
        missing = [each for each in unique if each not in there]
        self.hits += len(unique) - len(missing)
        self.misses += len(missing)
        expected = [(each, there.get(each, self.source.get(each, MISSING))) for each in unique]
        self.called(lambda: self.load(ids), missing, expected)

    @rule(ids=ids_lists)
    def refresh(self, ids):
        unique = list(dict.fromkeys(ids))
        expected = [(each, self.source.get(each, MISSING)) for each in unique]
        self.called(lambda: self.load.refresh(ids), unique, expected)

    @rule(each=st.sampled_from(IDS), what=st.sampled_from(["value", "none", "gone"]))
    def change(self, each, what):
        if what == "gone":
            self.source.pop(each, None)
        else:
            self.source[each] = None if what == "none" else max([*filter(None, self.source.values()), 0]) + 1

    @rule()
    def fail_or_recover(self):
        self.failing = not self.failing

    @rule(ticks=st.integers(1, TTL))
    def advance(self, ticks):
        self.clock.advance(ticks)

    @rule(each=st.sampled_from(IDS))
    def invalidate(self, each):
        assert self.run(self.load.invalidate(each)) is (each in self.alive())
        self.stored.pop(each, None)

    @rule(ids=ids_lists)
    def invalidate_many(self, ids):
        assert self.run(self.load.invalidate_many(ids)) == len(self.alive().keys() & {*ids})
        for each in ids:
            self.stored.pop(each, None)

    @rule()
    def invalidate_all(self):
        self.run(self.load.invalidate_all())
        self.stored.clear()

    @rule(each=st.sampled_from(IDS))
    def invalidate_tag(self, each):
        self.load.store.invalidate_tags(f"t:{each}")
        self.stored.pop(each, None)

    @rule(each=st.sampled_from(IDS))
    def put(self, each):
        self.run(self.load.set(77, each))
        self.stored[each] = (77, self.clock.monotonic() + TTL)

    @invariant()
    def agrees(self):
        there = self.alive()
        assert {each: self.run(self.load.peek(each)) for each in IDS} == {
            each: there.get(each, MISSING) for each in IDS
        }
        stats = self.load.stats()
        assert (stats.hits, stats.misses) == (self.hits, self.misses)
        assert left_behind(self.load) == []

    def teardown(self):
        if hasattr(self, "loop"):
            self.loop.close()


class AloneAwaited(Alone):
    awaits = True


class Together(RuleBasedStateMachine):
    """Many calls at a time, each load held until it is let go. Every value is the version that the source had.

    Promised: no call is given a version older than the one that was there when it was made and invalidated for; what
    is stored is never older than the last write; no id has two loads that may fill it; everyone comes to an end.
    """

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore(cleanup_interval=None)
        self.version = dict.fromkeys(IDS, 0)
        self.calls = []  # task, and the versions when it was made
        self.loads = []  # future that lets it go, ids

        @cache_aside_many(store=self.store)
        async def load(ids):
            found = {each: self.version[each] for each in ids}
            gate = self.loop.create_future()
            self.loads.append((gate, ids))
            try:
                await gate
            finally:
                self.loads.remove((gate, ids))
            return found

        self.load = load

    def turn(self):
        async def rounds():
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(rounds())

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), refresh=st.integers(0, 5))
    def start(self, ids, refresh):
        if len(self.calls) < 4:
            call = self.load.refresh(ids) if refresh == 0 else self.load(ids)
            self.calls.append((self.loop.create_task(call), dict(self.version), ids))
            self.turn()

    @precondition(lambda self: self.loads)
    @rule(data=st.data(), how=st.sampled_from(["end", "end", "end", "raise", "die"]))
    def let_go(self, data, how):
        gate, _ = data.draw(st.sampled_from(self.loads))
        if how == "end":
            gate.set_result(None)
        else:
            gate.set_exception(LookupError() if how == "raise" else asyncio.CancelledError())
        self.turn()
        self.look()

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data):
        call = data.draw(st.sampled_from(self.calls))
        call[0].cancel()
        self.turn()
        self.look()

    @rule(each=st.sampled_from(IDS), how=st.sampled_from(["invalidate", "invalidate_many", "invalidate_all"]))
    def write(self, each, how):
        self.version[each] += 1
        argument = {"invalidate": (each,), "invalidate_many": ([each],), "invalidate_all": ()}[how]
        self.loop.run_until_complete(getattr(self.load, how)(*argument))
        self.look()

    def look(self):
        for call in list(self.calls):
            task, versions, ids = call
            if not task.done():
                continue
            self.calls.remove(call)
            if not task.cancelled() and task.exception() is None:
                assert list(task.result()) == list(dict.fromkeys(ids))
                assert all(task.result()[each] >= versions[each] for each in ids)

    @invariant()
    def nothing_old_is_stored(self):
        space = self.load._self_memoized.attached()
        for each in IDS:
            assert space.peek(each) in (MISSING, self.version[each])
            assert each not in space.flights or space.flights[each].outcome is None

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        for _ in range(50):
            for gate, _ in list(self.loads):
                if not gate.done():
                    gate.set_result(None)
            self.turn()
        self.look()
        assert self.calls == []  # nobody waits for ever
        assert left_behind(self.load) == []
        self.loop.close()


TestAlone = Alone.TestCase
TestAloneAwaited = AloneAwaited.TestCase
TestTogether = Together.TestCase
if os.environ.get("MEMO_PROFILE") != "nightly":
    TestAlone.settings = settings(max_examples=40)
    TestAloneAwaited.settings = settings(max_examples=25)
    TestTogether.settings = settings(max_examples=100)
