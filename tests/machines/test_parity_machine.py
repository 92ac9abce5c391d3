"""One script of calls through a plain function and a coroutine function: nothing that can be seen differs."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from memo import MemoryStore, RecursiveLoadError, cache_aside
from memo.testing import ManualClock

ARGUMENTS = st.sampled_from([0, 1, 2, 1.0, True, "1", [1], (1, "a")])


class Raised(Exception):
    pass


class Origin:
    """What both functions return next: a pure function of how often they were called."""

    def __init__(self) -> None:
        self.calls = 0
        self.mood = "value"

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.mood == "raise":
            raise Raised(self.calls)
        if self.mood == "none":
            return None
        if self.mood == "once":
            return iter([]) if self.calls < 0 else (each for each in [])
        return self.calls


class Side:
    """One of the two, with a store of its own."""

    def __init__(self, options: dict[str, Any], max_size: int, loop: asyncio.AbstractEventLoop | None) -> None:
        self.clock = ManualClock(start=50)
        self.store = MemoryStore(max_size=max_size, clock=self.clock, cleanup_interval=None)
        self.origin = origin = Origin()
        self.loop = loop
        if loop is None:

            def load(x: Any, y: int = 0) -> Any:
                if origin.mood == "recurse":
                    return self.f(x, y)
                if origin.mood == "invalidate":
                    self.f.invalidate(x, y)
                return origin(x)

        else:

            async def load(x: Any, y: int = 0) -> Any:
                if origin.mood == "recurse":
                    return await self.f(x, y)
                if origin.mood == "invalidate":
                    await self.f.invalidate(x, y)
                return origin(x)

        self.f: Any = cache_aside(store=self.store, namespace="parity", **options)(load)

    def do(self, action: Any) -> Any:
        """Return what an action returns or raises, in a form that compares."""
        try:
            result = action(self)
            if self.loop is not None and asyncio.iscoroutine(result):
                result = self.loop.run_until_complete(result)
        except Exception as error:
            return type(error), str(error)
        return result

    def state(self) -> dict[str, Any]:
        stats, keys = dataclasses.asdict(self.f.stats()), self.store.keys()
        del stats["load_seconds"]
        return {
            "function": stats,
            "store": dataclasses.asdict(self.store.stats()),
            "keys": [(key, self.store.ttl(key)) for key in keys],
            "order": [(entry.key, entry.value, entry.fresh_until) for entry in self.store._shelf.order],
            "tags": {tag: len(bearers) for tag, bearers in self.store._shelf.tags.items()},
            "calls": self.origin.calls,
            "flights": len(self.f._self_memoized.attached().flights),
            "leases": len(self.f._self_memoized.attached().leases),
        }


class ParityMachine(RuleBasedStateMachine):
    @initialize(
        max_size=st.integers(1, 4),
        tags=st.sampled_from([(), ("t",), ("t", "y:{y}")]),
        ttl=st.sampled_from([None, 3, lambda value: value % 3]),
        cache_none=st.booleans(),
        key=st.sampled_from([None, "k:{y}"]),
        single_flight=st.sampled_from(["process", None]),
    )
    def make(self, max_size: int, single_flight: str | None, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        options["single_flight"] = single_flight
        self.alone = single_flight is None
        self.sides = [Side(options, max_size, None), Side(options, max_size, self.loop)]

    def both(self, action: Any) -> None:
        plain, awaited = [side.do(action) for side in self.sides]
        assert plain == awaited, f"{plain!r} and {awaited!r}"

    @rule(x=ARGUMENTS, y=st.integers(0, 1))
    def call(self, x: Any, y: int) -> None:
        self.both(lambda side: side.f(x, y=y))

    @rule(x=ARGUMENTS)
    def call_with_the_default(self, x: Any) -> None:
        self.both(lambda side: side.f(x))

    @rule(x=ARGUMENTS)
    def refresh(self, x: Any) -> None:
        self.both(lambda side: side.f.refresh(x))

    @rule(x=ARGUMENTS)
    def peek(self, x: Any) -> None:
        self.both(lambda side: side.f.peek(x))

    @rule(x=ARGUMENTS)
    def ttl_left(self, x: Any) -> None:
        self.both(lambda side: side.f.ttl_left(x))

    @rule(x=ARGUMENTS)
    def key_for(self, x: Any) -> None:
        self.both(lambda side: side.f.key_for(x))

    @rule(x=ARGUMENTS, value=st.sampled_from([100, 101, None, "text"]))
    def set(self, x: Any, value: Any) -> None:
        self.both(lambda side: side.f.set(value, x))

    @rule(x=ARGUMENTS)
    def invalidate(self, x: Any) -> None:
        self.both(lambda side: side.f.invalidate(x))

    @rule(how=st.sampled_from(["all", "clear", "tag", "other tag", "pattern"]))
    def invalidate_many(self, how: str) -> None:
        self.both(
            {
                "all": lambda side: side.f.invalidate_all(),
                "clear": lambda side: side.store.clear(),
                "tag": lambda side: side.store.invalidate_tags("t"),
                "other tag": lambda side: side.store.invalidate_tags("y:1"),
                "pattern": lambda side: side.store.delete_pattern("*1*"),
            }[how]
        )

    @rule(x=ARGUMENTS)
    def through_the_store(self, x: Any) -> None:
        self.both(lambda side: side.store.get(side.f.key_for(x), "nothing"))
        self.both(lambda side: side.store.delete(side.f.key_for(x)))

    @rule()
    def a_call_that_binds_nothing(self) -> None:
        self.both(lambda side: side.f())
        self.both(lambda side: side.f.invalidate(1, 2, 3))
        self.both(lambda side: side.f(object()))

    @rule(ticks=st.integers(1, 3))
    def clock_moves(self, ticks: int) -> None:
        for side in self.sides:
            side.clock.advance(ticks)

    @rule(mood=st.sampled_from(["value", "value", "none", "raise", "once", "invalidate", "recurse"]))
    def origin_changes(self, mood: str) -> None:
        if mood == "recurse" and self.alone:
            mood = "value"  # without single flight it is endless, as it is without a cache
        for side in self.sides:
            side.origin.mood = mood

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "sides"):
            plain, awaited = [side.state() for side in self.sides]
            assert plain == awaited
            assert plain["flights"] == plain["leases"] == 0

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()


TestParityMachine = ParityMachine.TestCase


def test_a_recursion_is_the_same_error_on_both_sides():
    """The script is here too, so that the mood is known to be reached."""
    loop = asyncio.new_event_loop()
    for side in (Side({}, 4, None), Side({}, 4, loop)):
        side.origin.mood = "recurse"
        kind, text = side.do(lambda side: side.f(1))
        assert kind is RecursiveLoadError
        assert "waits for its own result" in text
    loop.close()
