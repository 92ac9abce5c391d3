"""What is raced: each case takes the contestants and an effort and returns tables of numbers; it prints nothing."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .contestants import ASYNC, METHOD, SYNC, Contestant
from .timing import apart, awaited, calls, fills, over, race, threaded

__all__ = ["CASES", "Allow", "Effort", "Table"]

TTL = 60.0
LONG_TTL = 3600.0  # where filling takes so long that entries would expire meanwhile
SIZE = 10_000
MILLION = 1_000_000
THREADS = 8


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: of the short batches.
        fills: rounds of the batches that fill a cache.
        processes: fresh processes for each contestant, where a case wants those.
        scale: sizes at which hits are timed.
        pauses: entries among which the longest insert is looked for.
        entries: sizes over which the bytes per entry are averaged.
    """

    rounds: int
    fills: int
    processes: int
    scale: tuple[int, ...]
    pauses: int
    entries: tuple[int, ...]


@dataclass
class Table:
    """Numbers of one case.

    Attributes:
        case: its name.
        title: what was measured.
        unit: of the numbers.
        columns: what was varied.
        rows: by contestant, a number for each column, or None.
        more_is_better: for throughput.
        remarks: what a reader must know.
    """

    case: str
    title: str
    unit: str
    columns: tuple[str, ...]
    rows: dict[str, list[float | None]] = field(default_factory=dict)
    more_is_better: bool = False
    remarks: tuple[str, ...] = ()

    def add(self, values: dict[str, float]) -> None:
        """Add a column."""
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)

    def value(self, name: str, column: str) -> float | None:
        """Return one number, or None if it was not measured."""
        return self.rows[name][self.columns.index(column)] if name in self.rows and column in self.columns else None


Allow = Callable[[Sequence[Contestant]], list[Contestant]]


def _one(x: Any) -> Any:
    return x


def _two(x: Any, y: Any) -> Any:
    return x


async def _aone(x: Any) -> Any:
    return x


async def hit(effort: Effort, allowed: Allow) -> list[Table]:
    """Calls of sync functions whose result is there."""
    table = Table("hit", "hit of a sync function, ns per call", "ns", ("int", "str", "two arguments", "keyword"))
    variants = [
        ("f(7)", _one, (7,), {}),
        ("f('user:7')", _one, ("user:7",), {}),
        ("f(7, 'eu')", _two, (7, "eu"), {}),
        ("f(x=7)", _one, (), {"x": 7}),
    ]
    for statement, function, args, kwargs in variants:
        batches, closers = {}, []
        for contestant in allowed(SYNC):
            cached = contestant.make(function, SIZE, TTL)
            for x in range(100):
                cached(*(x, "eu")[: len(args) or 1])
            cached(*args, **kwargs)
            batches[contestant.name] = calls(statement, 10_000, f=cached)
            closers.append((contestant.close, cached))
        table.add(await race(batches, effort.rounds))
        for close, cached in closers:
            close(cached)
    return [table]


async def method(effort: Effort, allowed: Allow) -> list[Table]:
    """Calls of methods whose result is there."""
    table = Table("method", "hit of a method, ns per call", "ns", ("int",))
    batches = {}
    for contestant in allowed(METHOD):
        owner = contestant.make(SIZE, TTL)
        for x in range(100):
            owner.get(x)
        batches[contestant.name] = calls("o.get(7)", 10_000, o=owner)
    table.add(await race(batches, effort.rounds))
    return [table]


async def asynchronous(effort: Effort, allowed: Allow) -> list[Table]:
    """Awaited calls within one running loop."""
    table = Table("async", "async function, ns per awaited call", "ns", ("hit", "miss with fill"))
    batches, closers = {}, []
    for contestant in allowed(ASYNC):
        cached = contestant.make(_aone, SIZE, TTL)
        for x in range(100):
            await cached(x)
        batches[contestant.name] = awaited(cached, 7, 3_000)
        closers.append((contestant.close, cached))
    table.add(await race(batches, effort.rounds))
    for close, cached in closers:
        close(cached)
    table.add(await race(_fillers(allowed(ASYNC), _aone, MILLION, 5_000, 10, coroutine=True), effort.fills))
    return [table]


async def miss(effort: Effort, allowed: Allow) -> list[Table]:
    """Calls that load and store, in a store far from full and in a full one."""
    table = Table(
        "miss",
        "miss with fill of a sync function, ns per call",
        "ns",
        ("far from full", "at capacity"),
        remarks=("The function returns its argument, so this is what the libraries add to a load.",),
    )
    table.add(await race(_fillers(allowed(SYNC), _one, MILLION, 20_000, 10, coroutine=False), effort.fills))
    table.add(await race(_fillers(allowed(SYNC), _one, 1_000, 20_000, 1_000, coroutine=False), effort.fills))
    return [table]


def _fillers(
    contestants: Sequence[Contestant], function: Any, size: int, number: int, before: int, *, coroutine: bool
) -> dict[str, Any]:
    def maker(contestant: Contestant) -> Callable[[], Any]:
        return lambda: contestant.make(function, size, TTL)

    return {each.name: fills(maker(each), each.close, number, before, coroutine=coroutine) for each in contestants}


async def threads(effort: Effort, allowed: Allow) -> list[Table]:
    """Hits from several threads at once."""
    table = Table(
        "threads",
        f"{THREADS} threads that hit at once, million calls per second of all together",
        "M calls/s",
        ("one key", "1000 keys"),
        more_is_better=True,
    )
    chooser = random.Random(7)
    for keys in (1, 1_000):
        arguments = [[chooser.randrange(keys) for _ in range(keys)] for _ in range(THREADS)]
        batches, closers = {}, []
        for contestant in allowed(SYNC):
            cached = contestant.make(_one, SIZE, TTL)
            for x in range(1_000):
                cached(x)
            batches[contestant.name] = threaded(cached, arguments, 5_000)
            closers.append((contestant.close, cached))
        best = await race(batches, max(3, effort.rounds // 2))
        table.add({name: 1e3 / value for name, value in best.items()})
        for close, cached in closers:
            close(cached)
    return [table]


async def scale(effort: Effort, allowed: Allow) -> list[Table]:
    """Hits in stores of different sizes; here the sizes of one contestant are interleaved, not the contestants."""
    columns = tuple(f"{size:,} entries" for size in effort.scale)
    hot = Table("scale", "hit of one hot key among so many entries, ns per call", "ns", columns)
    spread = Table(
        "scale",
        "hit of random keys among so many entries, ns per call",
        "ns",
        columns,
        remarks=("Random keys leave the processor's caches: that is the price of memory, not of a library.",),
    )
    chooser = random.Random(7)
    for contestant in allowed(SYNC):
        hots, spreads, closers = {}, {}, []
        for size, column in zip(effort.scale, columns, strict=True):
            cached = contestant.make(_one, size, LONG_TTL)
            for x in range(size):
                cached(x)
            xs = [chooser.randrange(size) for _ in range(50_000)]
            cached(xs[0])  # a library that declines new entries keeps it now, if ever
            hots[column] = calls("f(x)", 10_000, f=cached, x=xs[0])
            spreads[column] = over(cached, xs)
            closers.append(cached)
        gc.collect()
        best, best_spread = await race(hots, effort.rounds), await race(spreads, max(3, effort.rounds // 5))
        hot.rows[contestant.name] = [best[column] for column in columns]
        spread.rows[contestant.name] = [best_spread[column] for column in columns]
        for cached in closers:
            contestant.close(cached)
        del cached, closers, hots, spreads
        gc.collect()
    return [hot, spread]


async def memory(effort: Effort, allowed: Allow) -> list[Table]:
    """What an entry takes, in a fresh process for each contestant."""
    table = Table(
        "memory",
        "memory per entry, bytes",
        "bytes",
        ("bytes",),
        remarks=(
            """Growth of the resident memory of a fresh process, the argument's int included: tracemalloc would not see
            what libraries written in Rust allocate.""",
            f"""Mean over {", ".join(f"{size:,}" for size in effort.entries)} entries: tables double in size, and one
            number would depend on how long ago the last doubling was.""",
        ),
    )
    results = _isolated("memory", allowed, effort.processes, *effort.entries)
    table.rows = {name: [min(each["bytes"] for each in runs)] for name, runs in results.items()}
    return [table]


async def pauses(effort: Effort, allowed: Allow) -> list[Table]:
    """The longest single insert, in a fresh process for each contestant."""
    size = effort.pauses
    table = Table(
        "pauses",
        f"longest single insert at {size:,} entries, ms of processor time",
        "ms",
        ("no dict resized", "a dict resized", "while growing", "garbage collection"),
        remarks=(
            f"""The first column is the longest of {size:,} inserts at capacity, each of which evicts, without those
            in which one of the process's large dicts changed its size. These are the second column. The third is the
            longest on the way from 1,000 to {size:,} entries, resizes included.""",
            """A library that keeps its entries outside of Python's dicts has no second column: its resizes are in the
            first.""",
            """The garbage collector is off in these three; the last column is one full collection with that many
            entries, which Python runs now and then.""",
            """Processor time of the inserting thread, least of several processes: that leaves the neighbours out.""",
        ),
    )
    results = _isolated("pauses", allowed, effort.processes, size)
    for name, runs in results.items():
        lowest = [[run[key] for run in runs if run[key] is not None] for key in ("quiet", "resize", "growing", "gc")]
        table.rows[name] = [min(found) if found else None for found in lowest]
    return [table]


def _isolated(what: str, allowed: Allow, processes: int, *sizes: int) -> dict[str, list[dict[str, Any]]]:
    """Run one contestant after the other in processes of their own, in rounds."""
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(processes):
        for contestant in allowed(SYNC):
            found = apart("isolated", what, contestant.name, *sizes)
            results.setdefault(contestant.name, []).append(found)
    return results


CASES = {
    "hit": hit,
    "method": method,
    "async": asynchronous,
    "miss": miss,
    "threads": threads,
    "scale": scale,
    "memory": memory,
    "pauses": pauses,
}
