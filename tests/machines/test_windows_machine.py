"""Stale windows against a model: what is served when, by whom it is refreshed, and what an invalidation leaves."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from memo import MISSING, MemoryStore, cache_aside, drivers
from memo.testing import ManualClock

KEYS = st.sampled_from([1, 2])
TTL, STALE, ERROR = 10, 5, 8


class Down(Exception):
    pass


class ByHand:
    """In the place of the queue: jobs run when the machine says so."""

    def __init__(self):
        self.jobs = {}

    def submit(self, mark, job):
        return self.jobs.setdefault(mark, job) is job


class Windows(RuleBasedStateMachine):
    """A function with both windows; refreshes begin, and invalidations come in the middle of them, at any moment."""

    def __init__(self):
        super().__init__()
        self.clock = ManualClock(start=1_000.0)
        self.queue = ByHand()
        self.before = drivers.background
        drivers.background = self.queue
        self.store = self.make_store()
        self.version = 0  # of the source: every answer is another one
        self.failing = False
        self.calls = 0
        self.during = None  # what happens in the middle of the next load
        self.model = {}  # key: value, time of the fill
        self.pending = set()
        options = {"ttl": TTL, "stale_while_revalidate": STALE, "stale_if_error": ERROR, "tags": ("t{x}",)}

        def load(x):
            self.calls += 1
            self.version += 1
            if self.during is not None:
                during, self.during = self.during, None
                self.forget(x, during)
            if self.failing:
                raise Down
            return self.version

        self.source, self.options = load, options
        self.load = self.decorated(self.store)

    def make_store(self):
        return MemoryStore(clock=self.clock, cleanup_interval=None)

    def decorated(self, store):
        return cache_aside(store=store, namespace="windows", **self.options)(self.source)

    def invalidator(self):
        """Who invalidates: a store and a function on it."""
        return self.store, self.load

    def teardown(self):
        drivers.background = self.before

    def age(self, x):
        return self.clock.monotonic() - self.model[x][1] if x in self.model else float("inf")

    # -- what happens to the source and to time

    @rule()
    def it_fails_or_recovers(self):
        self.failing = not self.failing

    @rule(how=st.sampled_from(["key", "tag", "function", "clear"]))
    def the_next_load_is_overtaken_by_an_invalidation(self, how):
        self.during = how

    # -- what users do

    def loaded(self, x):
        """What a load leaves in the model, from its begin to its end; returns whether it succeeded."""
        overtaken = self.overtaken
        if not self.failing and not overtaken:
            self.model[x] = (self.version, self.clock.monotonic())
        return not self.failing

    @property
    def overtaken(self):
        return self.was_during and self.during is None

    @rule(x=KEYS, by=st.sampled_from([0, 1, 4, 5, 6, 8, 9]))
    def call(self, x, by):
        self.clock.advance(by)
        age, calls, old = self.age(x), self.calls, self.model.get(x, (MISSING,))[0]
        self.was_during = self.during is not None
        try:
            answer = self.load(x)
        except Down:
            answer = Down
        if age < TTL + STALE:
            assert answer == old
            assert self.calls == calls
            if age >= TTL:
                self.pending.add(x)
            return
        assert self.calls == calls + 1
        rescue = old if age < TTL + ERROR and x in self.model else Down
        if self.loaded(x):
            assert answer == self.version
        else:
            assert answer == rescue

    @rule(x=KEYS, how=st.sampled_from(["key", "tag", "function", "clear"]))
    def invalidate(self, x, how):
        self.forget(x, how)

    def forget(self, x, how):
        store, load = self.invalidator()
        if how == "key":
            assert load.invalidate(x) is (self.age(x) < TTL)
        elif how == "tag":
            store.invalidate_tags(f"t{x}")
        elif how == "function":
            load.invalidate_all()
        else:
            store.clear()
        for each in (x,) if how in ("key", "tag") else (1, 2):
            self.model.pop(each, None)

    @rule(x=KEYS)
    def set(self, x):
        self.version += 1
        self.load.set(self.version, x)
        self.model[x] = (self.version, self.clock.monotonic())

    @rule(x=KEYS, by=st.sampled_from([9, 10, 14]))
    def call_twice(self, x, by):
        """The first finds or loads; the second is often in a window."""
        self.call(x, 0)
        self.call(x, by)

    @rule(x=KEYS)
    def refresh(self, x):
        self.was_during = self.during is not None
        try:
            assert self.load.refresh(x) == self.version
        except Down:
            pass
        self.loaded(x)

    @rule()
    def sweep(self):
        gone = [x for x in self.model if self.age(x) >= TTL + max(STALE, ERROR)]
        self.store.cleanup()
        for x in gone:
            del self.model[x]

    # -- the refreshes behind

    def argument(self, mark):
        return mark[1]

    @precondition(lambda self: self.queue.jobs)
    @rule()
    def a_refresh_runs(self):
        (mark, job) = next(iter(self.queue.jobs.items()))
        x = self.argument(mark)
        calls = self.calls
        self.was_during = self.during is not None
        needed = self.age(x) >= TTL
        job()
        del self.queue.jobs[mark]
        self.pending.discard(x)
        assert self.calls == calls + needed
        if needed:
            self.loaded(x)

    @invariant()
    def the_store_is_as_the_model_says(self):
        for x in (1, 2):
            fresh = self.age(x) < TTL
            assert self.load.peek(x) == (self.model[x][0] if fresh else MISSING)
            assert self.store.get(self.load.key_for(x), MISSING) == (self.model[x][0] if fresh else MISSING)
            left = self.load.ttl_left(x)
            assert left == (pytest.approx(TTL - self.age(x)) if fresh else None)
        assert {self.argument(mark) for mark in self.queue.jobs} == self.pending
        stats = self.load.stats()
        assert stats.refreshes >= len(self.pending)
        assert self.load._self_memoized.space.flights == {}


WindowsTest = Windows.TestCase
