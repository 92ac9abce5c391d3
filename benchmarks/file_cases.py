"""What is raced with files: each case takes the contestants and an effort and returns tables; it prints nothing.

Every store has a folder of its own within one temporary folder, and is set and asked the same keys and values. What is
read was written just before: it comes from the page cache, not from the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Allow, Table
from .contestants import Contestant
from .file_contestants import DECORATED, INDEXED, SHARED, STORES
from .timing import apart, fills, over, race, turns, writes

__all__ = ["CASES", "FileEffort", "file_system"]

MICRO = 1e-3  # of what a batch returns
BIG = random.Random(7).randbytes(1 << 20)


@dataclass(frozen=True)
class FileEffort:
    """How long to measure.

    Attributes:
        rounds: of the batches.
        keys: of the small values.
        large: of the large values.
        again: how often a batch sets each key that is there.
        opened: entries of the file that is opened.
        indexed: sizes at which the index is measured.
        processes: fresh processes for each contestant, where a case wants those.
        written: keys that each writing process sets.
        writings: how often the processes write.
    """

    rounds: int
    keys: int
    large: int
    again: int
    opened: int
    indexed: tuple[int, ...]
    processes: int
    written: int
    writings: int


def small(x: Any) -> dict[str, Any]:
    """Return a small dict."""
    return {"id": x, "name": f"user{x}", "tags": ["a", "b"], "score": x * 1.5}


def large(x: Any) -> dict[str, Any]:
    """Return a dict with a million bytes in it."""
    return {"id": x, "data": BIG}


def file_system() -> str:
    """Return the kind of the file system that has the temporary folders."""
    folder = os.path.realpath(tempfile.gettempdir())
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    # The longest mount point that the folder is in; of several at the same place the last one is what is seen.
    kinds = {line.split()[1]: line.split()[2] for line in mounts.read_text().splitlines()}
    return kinds[max((each for each in kinds if Path(folder).is_relative_to(each)), key=len)]


@contextlib.contextmanager
def _folders() -> Iterator[Callable[[], str]]:
    """Give a function that makes another empty folder, within one that is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="memo-benchmarks-") as root:
        yield lambda: tempfile.mkdtemp(dir=root)


def _new(contestant: Contestant, folder: Callable[[], str], *arguments: Any) -> tuple[Any, Any]:
    """Return what opens a contestant in a new folder, and what closes it and removes that folder.

    Nothing is left for the system to write to the disk while the next one is timed.
    """
    made: list[str] = []

    def make() -> Any:
        made.append(folder())
        return contestant.make(made[-1], *arguments)

    def close(opened: Any) -> None:
        contestant.close(opened)
        shutil.rmtree(made.pop())

    return make, close


def _add(table: Table, best: dict[str, float]) -> None:
    table.add({name: value * MICRO for name, value in best.items()})


async def _stores(
    table: Table, pairs: Sequence[tuple[str, Any]], again: int, rounds: int, contestants: Sequence[Contestant]
) -> None:
    """Add three columns: keys that are new, keys that are there, and what is read of them."""
    keys = [key for key, _ in pairs]
    with _folders() as folder:
        _add(table, await race({each.name: writes(*_new(each, folder), pairs) for each in contestants}, rounds))
        opened = {each.name: each.make(folder()) for each in contestants}
        for store in opened.values():
            store.fill(list(pairs))
        rewrites = {name: writes(_giving(store), _nothing, [*pairs] * again) for name, store in opened.items()}
        _add(table, await race(rewrites, max(3, rounds // 3)))
        for name, store in opened.items():
            assert all(store.get(key) == value for key, value in pairs), f"{name} has lost a value"
        _add(table, await race({name: over(store.get, keys) for name, store in opened.items()}, 2 * rounds))
        for store in opened.values():
            store.close()


def _giving(store: Any) -> Callable[[], Any]:
    return lambda: store


def _nothing(store: Any) -> None:
    pass


_AGAIN = """The second column sets keys that have values. memo's log has garbage then, and the compactions that a round
begins are in its time, to their ends."""


async def small_values(effort: FileEffort, allowed: Allow) -> list[Table]:
    """Small dicts, by key."""
    table = Table(
        "small",
        f"small dicts, {effort.keys:,} keys, µs per operation",
        "µs",
        ("set", "set again", "get"),
        remarks=(_AGAIN,),
    )
    pairs = [(f"user:{x}", small(x)) for x in range(effort.keys)]
    await _stores(table, pairs, effort.again, effort.rounds, allowed(STORES))
    return [table]


async def large_values(effort: FileEffort, allowed: Allow) -> list[Table]:
    """Values of 1 MB, by key."""
    tables = []
    for case, title, value in (
        ("large", "dicts with 1 MB of bytes", large),
        ("bytes", "plain bytes, 1 MB", lambda x: BIG),
    ):
        table = Table(
            case,
            f"{title}, {effort.large} keys, µs per operation",
            "µs",
            ("set", "set again", "get"),
            remarks=(_AGAIN,),
        )
        pairs = [(f"image:{x}", value(x)) for x in range(effort.large)]
        await _stores(table, pairs, 4, effort.rounds, allowed(STORES))
        tables.append(table)
    return tables


async def decorated(effort: FileEffort, allowed: Allow) -> list[Table]:
    """Calls of decorated functions."""
    table = Table(
        "decorated",
        f"sync function of an int, {effort.keys:,} different calls, µs per call",
        "µs",
        ("hit", "miss with fill", "hit, 1 MB", "miss with fill, 1 MB"),
    )
    for function, number in ((small, effort.keys), (large, effort.large)):
        with _folders() as folder:
            cached = {each.name: each.make(folder(), function) for each in allowed(DECORATED)}
            for name, call in cached.items():
                assert all(call(x) == function(x) for x in [*range(number), 0]), f"{name} returns something else"
            _add(table, await race({name: over(call, range(number)) for name, call in cached.items()}, effort.rounds))
            for each in allowed(DECORATED):
                each.close(cached[each.name])
        with _folders() as folder:
            batches = {
                each.name: fills(*_new(each, folder, function), min(number, 500), 1, coroutine=False)
                for each in allowed(DECORATED)
            }
            _add(table, await race(batches, max(3, effort.rounds // 3)))
    return [table]


async def opening(effort: FileEffort, allowed: Allow) -> list[Table]:
    """Opening a file with many entries, in a fresh process."""
    table = Table(
        "open",
        "opening what another process has filled, and one get, in a fresh process, ms",
        "ms",
        (f"{effort.opened:,} entries",),
        remarks=(
            """memo reads all keys into memory when it opens a file, and later only what has been appended; the others
            look for a key when they are asked.""",
        ),
    )
    for name, runs in _filled("open", STORES, effort.opened, effort.processes, allowed).items():
        table.rows[name] = [min(each["seconds"] for each in runs) * 1e3]
    return [table]


async def index(effort: FileEffort, allowed: Allow) -> list[Table]:
    """The memory that the keys take."""
    table = Table(
        "index",
        "memory per key, beside the key's text, bytes",
        "bytes",
        tuple(f"{size:,} keys" for size in effort.indexed),
        remarks=(
            """Growth that tracemalloc sees while the file is opened, without the sizes of the keys. Python's dict
            doubles just before the first size.""",
            """diskcache and joblib keep no keys in memory.""",
        ),
    )
    for size in effort.indexed:
        runs = _filled("index", INDEXED, size, 1, allowed)
        table.add({name: found["bytes"] for name, (found,) in runs.items()})
    return [table]


def _filled(
    what: str, contestants: Sequence[Contestant], size: int, processes: int, allowed: Allow
) -> dict[str, list[dict[str, Any]]]:
    """Fill each contestant, and let fresh processes measure what there is."""
    results: dict[str, list[dict[str, Any]]] = {}
    with _folders() as folder:
        paths = {each.name: folder() for each in allowed(contestants)}
        for name, path in paths.items():
            apart("file_isolated", "fill", name, path, size)
        for turn in range(processes):
            for name in turns(list(paths), turn):
                results.setdefault(name, []).append(apart("file_isolated", what, name, paths[name], size))
    return results


async def processes(effort: FileEffort, allowed: Allow) -> list[Table]:
    """Processes that write into one store."""
    rate = Table(
        "processes",
        f"processes that set {effort.written:,} small dicts each at once, thousand sets per second of all together",
        "k sets/s",
        ("one process", "four processes"),
        more_is_better=True,
    )
    lost = Table("lost", "records that are not there afterwards, of all rounds", "records", rate.columns)
    names = [each.name for each in allowed(SHARED)]
    for count in (1, 4):
        best, missing = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for turn in range(effort.writings):
            for name in turns(names, turn):
                with _folders() as folder:
                    path = folder()
                    seconds = _written(name, path, effort.written, count)
                    best[name] = max(best[name], effort.written * count / seconds / 1e3)
                    found = apart("file_isolated", "check", name, path, effort.written * count)
                    missing[name] += found["missing"]
        rate.add(best)
        lost.add(missing)
    return [rate, lost]


def _written(name: str, path: str, number: int, count: int) -> float:
    """Return the seconds from the first set to the last one of several processes that begin together."""
    command = [sys.executable, "-m", "benchmarks.file_isolated", "write", name, path, str(number)]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen([*command, str(each)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for each in range(count)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()  # it is ready
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        found = [json.loads(writer.communicate()[0]) for writer in writers]
    return max(each["ended"] for each in found) - min(each["started"] for each in found)


CASES = {
    "small": small_values,
    "large": large_values,
    "decorated": decorated,
    "open": opening,
    "index": index,
    "processes": processes,
}
