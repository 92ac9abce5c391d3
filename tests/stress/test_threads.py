"""Many threads at once, the interpreter switching between them as often as it can: counts and values stay exact."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from memo import MemoryStore, cache_aside
from memo.testing import ManualClock

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
THREADS = 32
TURNS = 20_000 if NIGHTLY else 4_000
PATIENCE = 3_600 if NIGHTLY else 120


@pytest.fixture(autouse=True)
def _restless():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def crowd(body: Callable[[int], Any], threads: int = THREADS) -> list[Any]:
    """Run `body(number)` in threads that start together; return their results, or raise their first error."""
    barrier = threading.Barrier(threads)
    results: list[Any] = [None] * threads
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(PATIENCE)
            results[number] = body(number)
        except BaseException as error:
            errors.append(error)

    members = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for member in members:
        member.start()
    for member in members:
        member.join(PATIENCE)
        assert not member.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def left_behind(f: Any) -> tuple[int, int]:
    space = f._self_memoized.attached()
    return len(space.flights), len(space.leases)


def test_hits_and_misses_are_the_calls():
    f = cache_aside(store=MemoryStore(cleanup_interval=None))(lambda x: x)

    def body(number):
        chance = random.Random(number)
        for _ in range(TURNS):
            x = chance.randrange(50)
            assert f(x) == x

    crowd(body)
    stats = f.stats()
    assert stats.hits + stats.misses == THREADS * TURNS
    assert stats.loads == 50
    assert f.store.stats().hits + f.store.stats().misses == THREADS * TURNS
    assert left_behind(f) == (0, 0)


@pytest.mark.parametrize("tags", [(), ("t", "x:{x}")], ids=["plain", "tagged"])
def test_everything_at_once(tags):
    store = MemoryStore(max_size=20, cleanup_interval=None, clock=(clock := ManualClock()))
    f = cache_aside(store=store, ttl=5, tags=tags)(lambda x: ("value", x))
    calls = [0] * THREADS

    def body(number):
        chance = random.Random(number)
        for _ in range(TURNS // 2):
            x = chance.randrange(40)
            what = chance.random()
            if what < 0.8:
                assert f(x) == ("value", x)
                calls[number] += 1
            elif what < 0.85:
                f.invalidate(x)
            elif what < 0.88:
                assert f.refresh(x) == ("value", x)
            elif what < 0.91:
                f.set(("value", x), x)
            elif what < 0.93:
                assert f.peek(x) in (("value", x), f.peek(10_000))
            elif what < 0.95:
                store.invalidate_tags("t", "x:3")
            elif what < 0.97:
                clock.advance(0.5)
            elif what < 0.98:
                f.invalidate_all()
            elif what < 0.99:
                store.cleanup()
            else:
                store.delete_pattern("*(1)")

    crowd(body)
    stats, stored = f.stats(), store.stats()
    assert stats.hits + stats.misses == sum(calls)
    assert stored.size == len(store) == len(store._shelf.order) <= 20
    # What a newer entry took the place of is in no other count.
    assert stored.sets >= stored.deletes + stored.evictions + stored.expirations + stored.size
    assert left_behind(f) == (0, 0)
    store.clear()
    assert len(store) == 0
    assert store._shelf.tags == {}
    assert len(f._self_memoized.attached()) == 0


def test_loads_of_one_key_never_overlap():
    """Whoever comes while one is under way waits for it."""
    running = [0] * 4
    most = [0] * 4

    def load(x):
        running[x] += 1
        most[x] = max(most[x], running[x])
        for _ in range(20):
            pass
        running[x] -= 1

    f = cache_aside(store=MemoryStore(cleanup_interval=None))(load)  # None is not kept: every call misses

    def body(number):
        chance = random.Random(number)
        for _ in range(TURNS // 4):
            f(chance.randrange(4))

    crowd(body)
    assert most == [1] * 4
    stats = f.stats()
    assert stats.misses == THREADS * (TURNS // 4)
    assert stats.loads <= stats.misses
    assert left_behind(f) == (0, 0)


def test_an_error_reaches_all_who_wait_and_hangs_nobody():
    def load(x):
        raise LookupError(x)

    f = cache_aside(store=MemoryStore(cleanup_interval=None))(load)

    def body(number):
        for turn in range(TURNS // 8):
            with pytest.raises(LookupError):
                f(turn % 3)

    crowd(body)
    assert f.stats().misses == THREADS * (TURNS // 8)
    assert left_behind(f) == (0, 0)


def test_followers_that_give_up_at_the_moment_of_landing():
    f = cache_aside(store=MemoryStore(cleanup_interval=None), wait_timeout=1e-4)(lambda x: sum(range(200)))

    def body(number):
        for turn in range(TURNS // 4):
            assert f(turn % 2) == 19_900
            f.invalidate(turn % 2)

    crowd(body, 16)
    assert left_behind(f) == (0, 0)


def test_never_stale_after_an_invalidation_that_returned():
    """Each key has one writer, which knows what must be seen at least; all others read."""
    keys = 8
    versions, floors = [0] * keys, [0] * keys
    f = cache_aside(store=MemoryStore(cleanup_interval=None), tags=("k:{x}",))(lambda x: versions[x])

    def body(number):
        chance = random.Random(number)
        stale = 0
        for _ in range(TURNS // 2):
            if number < keys:
                versions[number] += 1
                if number % 2:
                    f.invalidate(number)
                else:
                    f.store.invalidate_tags(f"k:{number}")
                floors[number] = versions[number]
                stale += f(number) < versions[number]
            else:
                x = chance.randrange(keys)
                floor = floors[x]
                stale += f(x) < floor
        return stale

    assert sum(crowd(body)) == 0
    assert left_behind(f) == (0, 0)


def test_loops_in_many_threads_share_loads_and_cancel_at_will():
    async def load(x):
        await asyncio.sleep(0)
        return x

    f = cache_aside(store=MemoryStore(cleanup_interval=None))(load)

    def body(number):
        async def main():
            chance = random.Random(number)
            served = 0
            for _ in range(TURNS // 16):
                x = chance.randrange(3)
                calls = [asyncio.ensure_future(f(x)) for _ in range(3)]
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    chance.choice(calls).cancel()
                await asyncio.wait(calls)
                for call in calls:
                    if not call.cancelled():
                        assert call.result() == x
                        served += 1
                if chance.random() < 0.3:
                    await f.invalidate(x)
            return served

        return asyncio.run(main())

    assert sum(crowd(body, 8)) > 0
    assert left_behind(f) == (0, 0)
