"""What needs a process of its own: memory, and the pauses of a large store. Run by `cases`, prints JSON."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .contestants import SYNC, Contestant

__all__ = ["main"]

TTL = 3600.0


def _one(x: Any) -> int:
    return 1


def _resident() -> int:
    """Return the bytes of memory that this process holds."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 1024 * int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(os.getpid())], text=True))


def memory(contestant: Contestant, sizes: list[int]) -> dict[str, Any]:
    """Return the mean bytes per entry over several sizes."""
    cached = contestant.make(_one, max(sizes) + 1_000, TTL)
    first = 1_000
    for x in range(first):  # everything is imported, and the first tables are made
        cached(x)
    gc.collect()
    before, x = _resident(), first
    found = []
    for size in sorted(sizes):
        for x in range(x, first + size):  # noqa: B020 - it goes on where it stopped
            cached(x)
        x += 1
        gc.collect()
        found.append((_resident() - before) / size)
    contestant.close(cached)
    return {"bytes": sum(found) / len(found)}


def _large_dicts(least: int) -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, dict) and dict.__len__(each) >= least]


def _inserts(cached: Any, xs: range, dicts: list[Any]) -> tuple[int, int | None]:
    """Return the longest insert during which no dict changed its size, and the longest during which one did."""
    clock, sizeof = time.thread_time_ns, dict.__sizeof__  # of an OrderedDict too, its table only
    quiet, resize = 0, None
    sizes = sum(map(sizeof, dicts))
    for x in xs:
        started = clock()
        cached(x)
        took = clock() - started
        now = sum(map(sizeof, dicts))
        if now != sizes:
            sizes = now
            resize = max(took, resize or 0)
        elif took > quiet:
            quiet = took
    return quiet, resize


def pauses(contestant: Contestant, sizes: list[int]) -> dict[str, Any]:
    """Return the longest inserts in milliseconds."""
    (size,) = sizes
    cached = contestant.make(_one, size, TTL)
    for x in range(1_000):
        cached(x)
    gc.collect()
    gc.freeze()
    gc.disable()
    growing = max(each or 0 for each in _inserts(cached, range(1_000, size), []))
    gc.unfreeze()
    dicts = _large_dicts(size // 2)
    gc.freeze()
    quiet, resize = _inserts(cached, range(size, 2 * size), dicts)
    gc.unfreeze()
    started = time.thread_time_ns()
    gc.collect()
    collection = time.thread_time_ns() - started
    contestant.close(cached)
    found = {"quiet": quiet, "resize": resize, "growing": growing, "gc": collection}
    return {key: None if value is None else value / 1e6 for key, value in found.items()}


def main() -> None:
    """Measure what the command line asks for."""
    what, name, *sizes = sys.argv[1:]
    contestant = next(each for each in SYNC if each.name == name)
    measure = {"memory": memory, "pauses": pauses}[what]
    print(json.dumps(measure(contestant, [int(size) for size in sizes])))


if __name__ == "__main__":
    main()
