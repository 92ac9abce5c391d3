"""The Redis store against a model, used from two places at once that share nothing but the server."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from memo import MISSING, RedisStore
from memo.serializers import PickleSerializer
from memo.testing import ManualClock, SharedMachine
from memo.testing.machines import KEYS, TTLS, VALUES
from siblings import module

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
JSON = (None, False, 0, 1, 2.5, "", "text", [1], {"a": [None, {"b": [1]}]})

# Lets ARGV[1] milliseconds pass for all keys. What is left after that is a whole number of seconds for the model, so
# the time that the test itself has taken is given back.
PASS = """
local cursor = '0'
repeat
  local found = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = found[1]
  for _, key in ipairs(found[2]) do
    local left = redis.call('PTTL', key)
    if left >= 0 then
      left = left - ARGV[1]
      if left <= 0 then redis.call('UNLINK', key) else redis.call('PEXPIRE', key, math.ceil(left / 1000) * 1000) end
    end
  end
until cursor == '0'
"""

_server: list[Any] = []


@pytest.fixture(autouse=True)
def _a_server(redis_server):
    _server[:] = [redis_server, redis_server.client()]
    yield
    _server.clear()


class RedisMachine(SharedMachine):
    """Two processes on one server."""

    copies = True
    empties = False  # the server has a clock of its own
    serializer: Any = "json"

    def begin(self) -> None:
        _server[1].flushall()
        super().begin()

    def make_store(self, clock):
        return RedisStore(_server[0].url, default_ttl=self.DEFAULT_TTL, serializer=self.serializer, timeout=20)

    def teardown(self):
        for seat in self.seats:
            if self.awaits:  # as asyncio.run does; the one may have used the other's store, in the middle of a load
                seat.side._loop.run_until_complete(seat.side._loop.shutdown_asyncgens())
            seat.shut()

    def advance(self, seconds):
        super().advance(seconds)
        _server[1].eval(PASS, 0, int(seconds * 1000))

    def _values(self, data, keys):
        """Values that the serializer keeps."""
        value = data.draw(st.sampled_from(JSON if self.serializer == "json" else VALUES))
        return {key: copy.deepcopy(value) for key in keys}

    @rule(key=st.sampled_from(KEYS), value=st.data(), ttl=st.sampled_from(TTLS))
    def set(self, key, value, ttl):
        mine = self._values(value, [key])[key]
        self._put(key, mine, ttl)
        self.side.set(key, mine, ttl)
        self._spoil(mine)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3), value=st.data(), ttl=st.sampled_from(TTLS))
    def set_many(self, keys, value, ttl):
        values = self._values(value, keys)
        self.side.set_many(values, ttl)
        for key, each in values.items():
            self._put(key, each, ttl)

    @rule(data=st.data())
    def evict(self, data):
        """Let the server drop a key, for want of memory: what was there is absent."""
        key = self._any_key(data)
        _server[1].unlink(f"cache:{key}")
        self._drop([key])

    @rule(which=st.integers(0, 1))
    def evict_a_stamp(self, which):
        """Let it drop what the entries of a function, or of a tag, are compared with."""
        function = (self.one, self.two)[which]
        if _server[1].unlink(f"cache:~fn:{('machine.one', self.two.fn._self_memoized.keys.label)[which]}"):
            self._drop([each.key(x) for each, x in self.calls if each is function])

    @rule()
    def close(self):
        """Close the connections: they are made again."""
        self.side.close()

    @invariant()
    def agrees_on_what_is_there(self):
        alive = self._alive()
        _server[1].eval(PASS, 0, 0)
        for key in [*KEYS, *(function.key(x) for function, x in self.calls)]:
            left = self.side.ttl(key)
            if key not in alive:
                assert left is None, f"there is something at {key!r}"
                assert not self.side.exists(key)
            else:
                expected = self.model[key][1] - self.clock.now
                assert left == expected or expected - 0.9 < left <= expected, f"the time left of {key!r}"
        for function, x in self.calls:
            self._same(function.peek(x), alive.get(function.key(x), MISSING))


class PickleMachine(RedisMachine):
    serializer = PickleSerializer(secret=b"a secret of the tests, 32 bytes.")


class AwaitedMachine(RedisMachine):
    awaits = True


class AwaitedPickleMachine(PickleMachine):
    awaits = True


class ServerClock(ManualClock):
    """A clock whose time passes on the server."""

    def advance(self, seconds):
        super().advance(seconds)
        _server[1].eval(PASS, 0, int(seconds * 1000))


class RedisWindows(module("machines/test_windows_machine.py").Windows):  # type: ignore[misc,name-defined]
    """Stale windows that the server's PTTL tells, with each invalidation by either of two processes."""

    fleet = "process"

    def make_store(self):
        _server[1].flushall()
        self.clock = ServerClock(start=1_000.0)
        self.another = RedisStore(_server[0].url, timeout=20)
        return RedisStore(_server[0].url, timeout=20)

    def decorated(self, store):
        self.options["single_flight"] = self.fleet
        return super().decorated(store)

    @initialize(turns=st.integers(0, 2**40 - 1))
    def who_is_when_at_turn(self, turns):
        self.turns = turns
        self.same = self.decorated(self.another)

    def invalidator(self):
        self.turns, number = self.turns >> 1, self.turns & 1
        return (self.another, self.same) if number else (self.store, self.load)

    def argument(self, mark):
        return {self.load.key_for(x): x for x in (1, 2)}[mark[1]]

    @rule()
    def sweep(self):
        """The server does that."""

    @precondition(lambda self: self.model)
    @rule(x=st.sampled_from([1, 2]))
    def the_other_sees_the_same(self, x):
        assert bool(self.same.peek(x)) is (self.age(x) < 10)

    @invariant()
    def the_store_is_as_the_model_says(self):
        _server[1].eval(PASS, 0, 0)
        for x in (1, 2):
            age = self.age(x)
            expected = self.model[x][0] if age < 10 else MISSING
            assert self.load.peek(x) == expected
            assert self.store.get(self.load.key_for(x), MISSING) == expected
            left = self.load.ttl_left(x)
            assert (left is None) if age >= 10 else 10 - age - 0.9 < left <= 10 - age
        assert {self.argument(mark) for mark in self.queue.jobs} == self.pending
        assert self.load._self_memoized.space.flights == {}

    def teardown(self):
        super().teardown()
        self.store.close()
        self.another.close()


class FleetWindows(RedisWindows):
    """Where one process refreshes for all."""

    fleet = "fleet"


TestRedisMachine = RedisMachine.TestCase
TestPickleMachine = PickleMachine.TestCase
TestAwaitedMachine = AwaitedMachine.TestCase
TestAwaitedPickleMachine = AwaitedPickleMachine.TestCase
TestRedisWindows = RedisWindows.TestCase
TestFleetWindows = FleetWindows.TestCase
if not NIGHTLY:
    TestRedisMachine.settings = settings(max_examples=12)
    TestPickleMachine.settings = settings(max_examples=5)
    TestAwaitedMachine.settings = settings(max_examples=6)
    TestAwaitedPickleMachine.settings = settings(max_examples=4)
    TestRedisWindows.settings = settings(max_examples=10)
    TestFleetWindows.settings = settings(max_examples=10)
