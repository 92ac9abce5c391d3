"""How the race is timed: batches, in rounds that every contestant runs once, and the minimum of each.

A neighbour on the machine, a warm or a throttled core changes everything by tens of percent within seconds. Interleaved
rounds let that hit all contestants alike, and the minimum is what the code costs when nothing came in between.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

__all__ = ["Batch", "apart", "awaited", "calls", "fills", "over", "race", "threaded", "turns", "writes"]

Batch = Callable[[], Any]


def turns(names: Sequence[str], turn: int) -> list[str]:
    """Return who runs when in one round: nobody always comes after the same one who left the caches cold."""
    start = turn // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


async def race(
    batches: dict[str, Batch], rounds: int, choose: Callable[[list[float]], float] = min
) -> dict[str, float]:
    """Return of each contestant what `choose` makes of its batches.

    Args:
        batches: by contestant; each returns nanoseconds per call, or an awaitable of that.
        rounds: how often each is run.
        choose: the minimum, or the median where another process has its part in the time.
    """
    found: dict[str, list[float]] = {name: [] for name in batches}
    for turn in range(rounds):
        for name in turns(list(batches), turn):
            result = batches[name]()
            found[name].append(await result if inspect.isawaitable(result) else result)
    return {name: choose(values) for name, values in found.items()}


def calls(statement: str, number: int, **names: Any) -> Batch:
    """Return a batch that runs a statement; the overhead of the call stays in, that of the loop is a few ns."""
    setup = "; ".join(f"{name} = _{name}" for name in names)  # locals are what a caller would use in a loop
    timer = timeit.Timer(statement, setup, globals={f"_{name}": value for name, value in names.items()})
    return lambda: timer.timeit(number) / number * 1e9


def over(function: Any, arguments: Sequence[Any]) -> Batch:
    """Return a batch that calls a function with one argument after the other."""
    batch = calls("for x in arguments: function(x)", 1, function=function, arguments=arguments)
    return lambda: batch() / len(arguments)


def awaited(cached: Any, argument: Any, number: int) -> Callable[[], Awaitable[float]]:
    """Return a batch that awaits the same call again and again, within the loop that runs already."""

    async def batch() -> float:
        gc.disable()
        started = time.perf_counter()
        for _ in itertools.repeat(None, number):
            await cached(argument)
        elapsed = time.perf_counter() - started
        gc.enable()
        return elapsed / number * 1e9

    return batch


def fills(
    make: Callable[[], Any], close: Callable[[Any], object], number: int, before: int, *, coroutine: bool
) -> Callable[[], Awaitable[float]]:
    """Return a batch of calls with new arguments, each of which loads and stores; the cache is new in each batch.

    The garbage collector stays on: what a library leaves to it is part of the price.

    Args:
        make: returns the cached function.
        close: frees it.
        number: calls that are timed.
        before: calls with other new arguments that are not: with as many as the size, the timed ones evict.
        coroutine: it must be awaited.
    """

    async def batch() -> float:
        cached = make()
        for x in range(before):
            result = cached(x)
            if coroutine:
                await result
        gc.collect()
        news = range(before, before + number)
        started = time.perf_counter()
        if coroutine:
            for x in news:
                await cached(x)
        else:
            for x in news:
                cached(x)
        elapsed = time.perf_counter() - started
        close(cached)
        return elapsed / number * 1e9

    return batch


def writes(make: Callable[[], Any], close: Callable[[Any], object], pairs: Sequence[tuple[str, Any]]) -> Batch:
    """Return a batch that sets pairs of keys and values in what `make` returns; the garbage collector stays on.

    What a store does in the background because of them is in the time: it is nobody else's.
    """

    def batch() -> float:
        store = make()
        write = store.set
        gc.collect()
        started = time.perf_counter()
        for key, value in pairs:
            write(key, value)
        store.settle()
        elapsed = time.perf_counter() - started
        close(store)
        return elapsed / len(pairs) * 1e9

    return batch


def apart(module: str, *arguments: object) -> dict[str, Any]:
    """Return what a module of this package prints as JSON in a fresh process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def threaded(cached: Any, arguments: Sequence[Sequence[Any]], number: int) -> Batch:
    """Return a batch in which as many threads as there are sequences of arguments call at once.

    It returns nanoseconds of wall time per call of all threads together.
    """

    def batch() -> float:
        start = threading.Barrier(len(arguments) + 1)

        def work(mine: Sequence[Any]) -> None:
            start.wait()
            for x in itertools.islice(itertools.cycle(mine), number):
                cached(x)

        threads = [threading.Thread(target=work, args=(mine,)) for mine in arguments]
        for thread in threads:
            thread.start()
        gc.disable()
        start.wait()
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        gc.enable()
        return elapsed / (number * len(arguments)) * 1e9

    return batch
