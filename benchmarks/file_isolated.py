"""What needs a process of its own with a file: opening, the index, one of many writers. Prints JSON for `file_cases`.

The arguments are what to do, a contestant, its folder, a number of entries, and for one of several writers its own.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import tracemalloc
from typing import Any

from .contestants import Contestant, missing
from .file_cases import small
from .file_contestants import INDEXED, STORES

__all__ = ["main"]


def _pair(x: int) -> tuple[str, Any]:
    return f"user:{x}", small(x)


def fill(contestant: Contestant, folder: str, number: int) -> dict[str, Any]:
    """Store so many entries in an empty folder."""
    store = contestant.make(folder)
    store.fill([_pair(x) for x in range(number)])
    count = store.count()
    store.close()
    assert count == number, f"{contestant.name} has {count} of {number} entries"
    return {"count": count}


def opening(contestant: Contestant, folder: str, number: int) -> dict[str, Any]:
    """Return the seconds for opening the store and one get."""
    assert missing(contestant) is None  # the import is no part of it
    key, value = _pair(number // 2)
    started = time.perf_counter()
    store = contestant.make(folder)
    found = store.get(key)
    elapsed = time.perf_counter() - started
    assert found == value
    assert store.count() == number
    store.close()
    return {"seconds": elapsed}


def index(contestant: Contestant, folder: str, number: int) -> dict[str, Any]:
    """Return the bytes that an open store takes for each key beside its text."""
    assert missing(contestant) is None  # the import is no part of it
    texts = sum(sys.getsizeof(_pair(x)[0]) for x in range(number))
    gc.collect()
    tracemalloc.start()
    store = contestant.make(folder)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.count() == number
    store.close()
    return {"bytes": (grown - texts) / number}


def write(contestant: Contestant, folder: str, number: int, writer: int) -> dict[str, Any]:
    """Say that all is ready, wait for a line, and set so many keys that no other writer sets."""
    store = contestant.make(folder)
    pairs = [_pair(x) for x in range(writer * number, (writer + 1) * number)]
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()  # the same clock for all processes
    for key, value in pairs:
        store.set(key, value)
    ended = time.monotonic()
    store.close()
    return {"started": started, "ended": ended}


def check(contestant: Contestant, folder: str, number: int) -> dict[str, Any]:
    """Return how many entries are missing or have another value than was set."""
    store = contestant.make(folder)
    lost = sum(store.get(key) != value for key, value in map(_pair, range(number)))
    store.close()
    return {"missing": lost}


def main() -> None:
    """Do what the command line asks for."""
    what, name, folder, *numbers = sys.argv[1:]
    contestant = next(each for each in (*STORES, *INDEXED) if each.name == name)
    work = {"fill": fill, "open": opening, "index": index, "write": write, "check": check}[what]
    print(json.dumps(work(contestant, folder, *map(int, numbers))))


if __name__ == "__main__":
    main()
