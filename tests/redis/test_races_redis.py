"""One writer and processes full of readers on one server: after an invalidation nobody is given anything older.

The writer changes a source, invalidates what was made of it, and only then says so. Readers look at what it has said
before each call: what they are given then must not be older. `test_no_stale_fill_redis.py` has every interleaving of
two callers, and a race in which all invalidate; here the loads of threads and of tasks are overtaken by one way of
invalidating at a time, which alone keeps what they made from being served.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import memo

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
ROUNDS = 100_000 if NIGHTLY else 400
"""Of each of the races; the writer takes half of them blocking and half awaiting."""
PATIENCE = 3_000.0 if NIGHTLY else 120.0

RACER = """
import asyncio, os, random, struct, sys, threading
from memo import RedisStore, cache_aside
url, truth, role, how, rounds = sys.argv[1], os.open(sys.argv[2], os.O_RDWR), *sys.argv[3:5], int(sys.argv[5])
number = struct.Struct("<q")
# Three numbers, each written in one step: the source's version, and what it was when the latest invalidation began that
# has returned, by the writer alone, who makes it LAST at the end; and whether a reader has seen enough.
LAST = 2 ** 62
def read(at):
    return number.unpack(os.pread(truth, 8, at * 8))[0]
def write(at, value):
    os.pwrite(truth, number.pack(value), at * 8)
store = RedisStore(url, timeout=60)
chance = random.Random(role)
options = {"store": store, "namespace": "race", "ttl": 600, "tags": ("t",) if how == "tag" else ()}
if "fleet" in role:
    options["single_flight"] = "fleet"
@cache_aside(**options)
def f():
    version = read(0)
    if chance.random() < 0.3:
        os.sched_yield()
    return version
@cache_aside(**options)
async def g():
    version = read(0)
    if chance.random() < 0.3:
        await asyncio.sleep(0)
    return version
tallies = []
def reader():
    calls = stale = 0
    while (floor := read(1)) < LAST:
        stale += f() < floor
        calls += 1
        if stale:
            write(2, 1)
    tallies.append((calls, stale))
async def areader():
    calls = stale = 0
    while (floor := read(1)) < LAST:
        stale += await g() < floor
        calls += 1
        if stale:
            write(2, 1)
    tallies.append((calls, stale))
def writer():
    ways = {"key": f.invalidate, "tag": lambda: store.invalidate_tags("t"), "all": f.invalidate_all}
    for turn in range(1, rounds + 1):
        write(0, turn)
        ways[how]()
        write(1, turn)
        if turn % 3 == 0:
            f()  # now there is something to be invalidated
        if read(2):
            break
async def awriter():
    ways = {"key": g.invalidate, "tag": lambda: store.ainvalidate_tags("t"), "all": g.invalidate_all}
    for turn in range(rounds + 1, 2 * rounds + 1):
        write(0, turn)
        await ways[how]()
        write(1, turn)
        if turn % 3 == 0:
            await g()
        if read(2):
            break
async def tasks(function, count):
    await asyncio.gather(*(function() for _ in range(count)))
print("ready", flush=True)
sys.stdin.readline()
if role == "writer":
    writer()
    asyncio.run(awriter())
    write(1, LAST)
elif "tasks" in role:
    asyncio.run(tasks(areader, 2))
else:
    threads = [threading.Thread(target=reader) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
counts = [f.stats(), g.stats()]
print(sum(calls for calls, _ in tallies), sum(stale for _, stale in tallies), sum(each.hits for each in counts),
      sum(each.refused_fills for each in counts), sum(sum(each.errors.values()) for each in counts))
"""

# The code broken on purpose, before the racers begin: what a load has made is stored whatever has happened meanwhile.
MUTANTS = {
    # Whatever stands at the key.
    "key": """
from memo.stores.redis.leases import EntrySteps
def fill(self, *args):
    steps = right(self, *args)
    commands = steps.send(None)
    _, _, _, full, _, data, *_ = commands[0]
    replies = yield [("SET", full, data), *commands[1:]]
    try:
        steps.send([1, *replies[1:]])
    except StopIteration as stop:
        return stop.value
right, EntrySteps.fill = EntrySteps.fill, fill
""",
    # With the stamps that there are when it is stored, not when it began.
    "tag": """
from memo.stores.redis.leases import EntrySteps, RedisLease
def fill(self, key, owner, tags, named, lease, payload, ttl):
    stamp_keys = self.stamp_keys(owner, tags)
    stamps = yield [("GET", each) for each in stamp_keys]
    stamps = yield from self._stamped(stamp_keys, stamps)
    lease = RedisLease(lease.id, b",".join(stamps))
    return (yield from right(self, key, owner, tags, named, lease, payload, ttl))
right, EntrySteps.fill = EntrySteps.fill, fill
""",
}
MUTANTS["all"] = MUTANTS["tag"]


def race(server: Any, folder: Path, how: str, roles: tuple[str, ...], rounds: int, broken: str = "") -> dict[str, int]:
    """Let a writer and readers run until the writer has taken its rounds; return what they counted together."""
    truth = folder / "truth"
    truth.write_bytes(bytes(24))
    environment = {**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    racers = []
    try:
        for role in ("writer", *roles):
            arguments = map(str, (server.url, truth, role, how, rounds // 2))
            command = [sys.executable, "-W", "error", "-c", broken + RACER, *arguments]
            racers.append(subprocess.Popen(command, env=environment, **pipes))
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in reversed(racers):  # the writer last
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=PATIENCE)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    names = ("calls", "stale", "hits", "refused", "errors")
    try:
        rows = [[int(each) for each in answer.split()] for answer in answers]
        return dict(zip(names, map(sum, zip(*rows, strict=True)), strict=True))
    except ValueError:
        pytest.fail("a racer has failed:\n" + "\n".join(answers))


@pytest.mark.parametrize("how", ["key", "tag", "all"])
def test_after_an_invalidation_no_reader_in_any_process_is_given_anything_older(redis_server, tmp_path, how):
    counted = race(redis_server, tmp_path, how, ("threads", "tasks"), ROUNDS)
    assert (counted["stale"], counted["errors"]) == (0, 0)
    assert counted["hits"] > 0, "nothing was ever found"
    assert counted["refused"] > 0 or how != "key", "no load was ever overtaken"


def test_nor_where_one_process_loads_for_all(redis_server, tmp_path):
    counted = race(redis_server, tmp_path, "key", ("threads of a fleet", "tasks of a fleet"), ROUNDS)
    assert (counted["stale"], counted["errors"]) == (0, 0)
    assert counted["hits"] > 0
    assert counted["refused"] > 0


@pytest.mark.parametrize("how", ["key", "tag", "all"])
def test_the_race_is_lost_where_a_fill_does_not_look_at_what_the_load_began_with(redis_server, tmp_path, how):
    counted = race(redis_server, tmp_path, how, ("threads", "tasks"), 20_000, MUTANTS[how])
    assert counted["stale"] > 0
