"""Processes that race on one store: each changes its own key of a source and invalidates it, and all call all keys.

A test says how a process begins: a script that defines `begin(me, *args)`, which returns the store and the options of
the function, and `between(turn, store)`, which is called after each turn. This module asks that nobody was ever given
what an invalidation had overtaken.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import memo

RACER = """
import os, random, struct, sys
from memo import cache_aside
truth, me, processes, rounds = os.open(sys.argv[1], os.O_RDWR), *map(int, sys.argv[2:5])
number = struct.Struct("<q")
# Of each key two numbers: the source's version, and that of the latest invalidation that has returned. Process k
# alone writes those of key k, in one step each.
def read(at):
    return number.unpack(os.pread(truth, 8, at * 8))[0]
def write(at, value):
    os.pwrite(truth, number.pack(value), at * 8)
store, options = begin(me, *sys.argv[5:])
@cache_aside(store=store, namespace="race", tags=("all", "t{x}"), **options)
def f(x):
    version = read(2 * x)
    if chance.random() < 0.3:
        os.sched_yield()
    return version
chance = random.Random(me)
ways = [
    lambda: f.invalidate(me), lambda: f.invalidate(me), lambda: store.invalidate_tags(f"t{me}"),
    f.invalidate_all, store.clear, lambda: store.delete_pattern(f"*({me})"), lambda: store.delete(f.key_for(me)),
    lambda: f.set(read(2 * me), me), lambda: store.invalidate_tags("all"),
]
print("ready", flush=True)
sys.stdin.readline()
stale = 0
for turn in range(rounds):
    for _ in range(4):
        x = chance.randrange(processes)
        floor = read(2 * x + 1)
        stale += (f.refresh if chance.random() < 0.05 else f)(x) < floor
    write(2 * me, turn + 1)
    chance.choice(ways)()
    write(2 * me + 1, turn + 1)
    between(turn, store)
counts = f.stats()
print(stale, counts.refused_fills, counts.hits, sum(counts.errors.values()))
"""


def run(script: str, folder: Path, processes: int, turns: int, *args: object, patience: float) -> None:
    """Let so many processes take so many turns together, and check what they say of them.

    Args:
        script: defines `begin` and `between`.
        folder: where the source is kept.
        processes: how many.
        turns: of all of them together.
        args: passed on to `begin`, as text.
        patience: the seconds that they are given at most.
    """
    truth = folder / "truth"
    truth.write_bytes(bytes(16 * processes))
    environment = {**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    racers = []
    try:
        for me in range(processes):
            arguments = map(str, (truth, me, processes, turns // processes, *args))
            command = [sys.executable, "-W", "error", "-c", script + RACER, *arguments]
            racers.append(subprocess.Popen(command, env=environment, **pipes))
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=patience)[0].split() for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    stale, refused, hits, errors = (sum(int(answer[at]) for answer in answers) for at in range(4))
    assert (stale, errors) == (0, 0)
    assert refused > 0, "no load was ever overtaken"
    assert hits > 0
