"""What is raced at a Redis server: each case takes the contestants and an effort and returns tables; it prints nothing.

Half of the time of a hit is the server's and the system's, which nobody here can help, and which is never twice the
same: so it is the median of very many batches that counts. They are so short that most of them fit between two moments
at which a busy system takes the processor away.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .cases import Allow, Table
from .contestants import Contestant
from .redis_contestants import ASYNC, ASYNC_MANAGERS, ASYNC_MANY, HUNG, MANAGERS, MANY, SYNC, loads, take_user
from .redis_server import Server, running
from .timing import Batch, race

__all__ = ["CASES", "RedisEffort"]

MICRO = 1e-3  # of what a batch returns
USERS = range(100)
TIMEOUT = 0.25


@dataclass(frozen=True)
class RedisEffort:
    """How long to measure.

    Attributes:
        rounds: of the batches.
        calls: in a batch, beside a first one that is not timed; one, where it is many at once.
        hung: calls of each contestant at a server that hangs.
    """

    rounds: int
    calls: int
    hung: int


def _blocking(call: Any, arguments: Callable[[], Sequence[Any]]) -> Batch:
    """Return a batch that calls with one argument after the other; the garbage collector stays on.

    The first call is not timed: it brings back into the processor's caches what the contestant before has driven out.
    """

    def batch() -> float:
        first, *news = arguments()
        call(first)
        started = time.perf_counter()
        for x in news:
            call(x)
        return (time.perf_counter() - started) / len(news) * 1e9

    return batch


def _awaiting(call: Any, arguments: Callable[[], Sequence[Any]]) -> Batch:
    """Return the same, awaited within the loop that runs already."""

    async def batch() -> float:
        first, *news = arguments()
        await call(first)
        started = time.perf_counter()
        for x in news:
            await call(x)
        return (time.perf_counter() - started) / len(news) * 1e9

    return batch


async def _race(table: Table, batches: dict[str, Batch], rounds: int) -> None:
    gc.collect()
    found = await race(batches, rounds, median)
    table.add({name: value * MICRO for name, value in found.items()})


async def _calls(server: Server, contestants: Sequence[Contestant], coroutine: bool) -> dict[str, Any]:
    """Return what is called, by contestant, when each has shown that it returns what was loaded, from Redis too."""
    made = {each.name: each.make(server.url) for each in contestants}
    for name, call in made.items():
        for x in [*USERS, *USERS]:
            found = await call(x) if coroutine else call(x)
            assert found == take_user(x), f"{name} returns something else"
    return made


@contextlib.contextmanager
def _hitting(number: int) -> Iterator[None]:
    """See that what is measured is hits; the median forgives one in a hundred that a busy machine has made a miss."""
    before = loads[0]
    yield
    assert loads[0] - before <= number / 100, f"{loads[0] - before} of {number} hits were none"


async def _hits(table: Table, calls: dict[str, Any], effort: RedisEffort, coroutine: bool) -> None:
    batch = _awaiting if coroutine else _blocking
    turns = {name: itertools.cycle(USERS) for name in calls}

    def users(name: str) -> Callable[[], Sequence[int]]:
        return lambda: list(itertools.islice(turns[name], 1 + effort.calls))

    with _hitting(len(calls) * effort.rounds * (1 + effort.calls)):
        await _race(table, {name: batch(call, users(name)) for name, call in calls.items()}, effort.rounds)


async def _misses(table: Table, calls: dict[str, Any], effort: RedisEffort, coroutine: bool) -> None:
    batch = _awaiting if coroutine else _blocking

    def news(count: Any) -> Callable[[], Sequence[int]]:
        return lambda: list(itertools.islice(count, 1 + effort.calls))

    batches = {name: batch(call, news(itertools.count(1_000))) for name, call in calls.items()}
    await _race(table, batches, effort.rounds)


_MISS = "The function returns a small dict at once, so this is what is added to a load."


async def sync(effort: RedisEffort, allowed: Allow) -> list[Table]:
    """Calls of sync functions."""
    table = Table("sync", "sync function of an int, µs per call", "µs", ("hit", "miss with fill"), remarks=(_MISS,))
    with running() as server:
        calls = await _calls(server, allowed(SYNC), coroutine=False)
        await _hits(table, calls, effort, coroutine=False)
        await _misses(table, calls, effort, coroutine=False)
    return [table]


async def asynchronous(effort: RedisEffort, allowed: Allow) -> list[Table]:
    """Awaited calls within one running loop."""
    table = Table(
        "async", "async function of an int, µs per awaited call", "µs", ("hit", "miss with fill"), remarks=(_MISS,)
    )
    with running() as server:
        calls = await _calls(server, allowed(ASYNC), coroutine=True)
        await _hits(table, calls, effort, coroutine=True)
        await _misses(table, calls, effort, coroutine=True)
    return [table]


async def managers(effort: RedisEffort, allowed: Allow) -> list[Table]:
    """Hits of the classic managers, over clients of redis-py."""
    table = Table("managers", "hit of a manager's get, µs per call", "µs", ("sync", "async"))
    with running() as server:
        for contestants, coroutine in ((MANAGERS, False), (ASYNC_MANAGERS, True)):
            calls = await _calls(server, allowed(contestants), coroutine)
            await _hits(table, calls, effort, coroutine)
    return [table]


async def many(effort: RedisEffort, allowed: Allow) -> list[Table]:
    """Hits of a hundred ids at once."""
    table = Table("many", f"{len(USERS)} hits at once, µs per call", "µs", ("sync", "async"))
    ids = list(USERS)
    with running() as server:
        for contestants, coroutine in ((MANY, False), (ASYNC_MANY, True)):
            calls = {each.name: each.make(server.url) for each in allowed(contestants)}
            for name, call in calls.items():
                for _ in range(2):
                    found = await call(ids) if coroutine else call(ids)
                    assert found == {x: take_user(x) for x in ids}, f"{name} returns something else"
            batch, times = _awaiting if coroutine else _blocking, [ids, ids]
            batches = {name: batch(call, lambda times=times: times) for name, call in calls.items()}
            with _hitting(len(calls) * effort.rounds * len(times) * len(ids)):
                await _race(table, batches, effort.rounds)
    return [table]


async def hung(effort: RedisEffort, allowed: Allow) -> list[Table]:
    """Calls while the server accepts connections and answers nothing."""
    number = effort.hung
    alone = Table(
        "hung",
        f"{number:,} calls while the server hangs, timeout={TIMEOUT}, ms per call",
        "ms",
        ("longest", "99.9 %", "longest, breaker open", "99.9 %, breaker open", "median, breaker open"),
        remarks=(
            """One call after the other. The first three wait for their time; then the breaker is open, and the
            function is called at once.""",
        ),
    )
    asked = Table(
        "asked",
        f"{number:,} calls, each of which waits for its time, timeout={_SHORT}, ms per call",
        "ms",
        ("longest", "99.9 %", "median"),
        remarks=(
            """No breaker is open here: there is a new store after every third call. What a call takes longer than its
            timeout is the scheduler's and the function's.""",
        ),
    )
    logging.getLogger("memo").addHandler(logging.NullHandler())  # the one line that each store writes
    with running() as server:
        for contestant in allowed(HUNG):
            call = contestant.make(server.url, timeout=TIMEOUT)
            await _asked(call, 7)
            server.pause()
            spent = [await _asked(call, x) for x in range(number)]
            server.resume()
            rest = spent[3:]
            alone.rows[contestant.name] = [max(spent), _high(spent), max(rest), _high(rest), median(rest)]
        server.pause()
        for contestant in allowed(HUNG):
            spent = []
            for x in range(number):
                if x % 3 == 0:
                    call = contestant.make(server.url, timeout=_SHORT, connect_timeout=_SHORT)
                spent.append(await _asked(call, x))
            asked.rows[contestant.name] = [max(spent), _high(spent), median(spent)]
        server.resume()
    return [alone, asked]


_SHORT = 0.02


async def _asked(call: Any, x: int) -> float:
    """Return the milliseconds that a call takes."""
    started = time.perf_counter()
    found = call(x)
    value = await found if asyncio.iscoroutine(found) else found
    elapsed = time.perf_counter() - started
    assert value == take_user(x)
    return elapsed * 1e3


def _high(values: Sequence[float]) -> float:
    """Return what 99.9 % of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 999 // 1000) - 1)]


CASES = {"sync": sync, "async": asynchronous, "managers": managers, "many": many, "hung": hung}
