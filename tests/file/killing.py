"""A program that forks children which use one file, kills them with SIGKILL, and looks at what is left of it.

`test_kill.py` runs it: in a process of its own, which has one thread, and imports memo once for all children.

    python killing.py loop FOLDER KILLS SEED      at random moments
    python killing.py points FOLDER SCENARIO      at each system call of one operation, and within each write
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from memo import PickleFileStore

SECRET = b"a secret of the tests, 32 bytes."
SAFETY = 60  # seconds after which something hangs

Op = tuple[Any, ...]
State = dict[str, tuple[int, int]]  # by key: a number that is used once, and how many bytes follow it


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work` in a child with a descriptor to acknowledge on; return its id and the descriptor to read from."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    try:
        work(writer)
    except BaseException as error:
        os.write(2, f"child: {error!r}\n".encode())
        os._exit(3)
    os._exit(0)


def hear(reader: int) -> bytes:
    """Return what a child has said meanwhile, at least a byte, or nothing if it has ended."""
    assert select.select([reader], [], [], SAFETY)[0], "a child hangs"
    return os.read(reader, 1 << 16)


def bury(child: int, reader: int) -> bytes:
    """Return what a killed child had said."""
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"a child ended with {status}"
    said = b""
    while part := os.read(reader, 1 << 16):
        said += part
    os.close(reader)
    return said


# -- at random moments -----------------------------------------------------------------------------------------------


def plan(name: str, seed: str) -> Iterator[Op]:
    """What a child does, one operation after another; its keys begin with its name."""
    chance = random.Random(seed)
    keys = [f"{name}:{number}" for number in range(4)]
    while True:
        number = chance.getrandbits(60)
        size = chance.choice([10, 100, 5_000, 300_000, 2_000_000])
        yield chance.choice(
            [
                ("set", chance.choice(keys), (number, size)),
                ("set", chance.choice(keys), (number, size)),
                ("delete", chance.choice(keys)),
                ("many", {key: (number + index, size // 4) for index, key in enumerate(chance.sample(keys, 3))}),
                ("increment",),
                ("increment",),
                ("pattern", f"{name}:[01]"),
                ("compact",),
            ]
        )


def value(what: tuple[int, int]) -> tuple[int, bytes]:
    return what[0], b"x" * what[1]


def do(store: PickleFileStore, op: Op) -> None:
    if op[0] == "set":
        store.set(op[1], value(op[2]))
    elif op[0] == "delete":
        store.delete(op[1])
    elif op[0] == "many":
        store.set_many({key: value(what) for key, what in op[1].items()})
    elif op[0] == "increment":
        store.increment("n")
    elif op[0] == "pattern":
        store.delete_pattern(op[1])
    else:
        store.compact()
    assert not store.stats().errors, store.stats().errors


def after(state: State, op: Op) -> State:
    state = dict(state)
    if op[0] == "set":
        state[op[1]] = op[2]
    elif op[0] == "delete":
        state.pop(op[1], None)
    elif op[0] == "many":
        state.update(op[1])
    elif op[0] == "pattern":
        for key in [key for key in state if key[-1] in "01"]:
            del state[key]
    return state


def found(store: PickleFileStore, name: str) -> State:
    """What a store has of a child's keys."""
    there = store.get_many(store.keys(f"{name}:*"))
    assert all(rest == b"x" * len(rest) for _, rest in there.values())
    return {key: (number, len(rest)) for key, (number, rest) in there.items()}


def check(before: State, now: State, op: Op) -> bool:
    """All that was acknowledged is there, and the operation that was not is done or not done; return which."""
    done = after(before, op)
    if op[0] == "many":  # one write of several records
        assert before.keys() - op[1].keys() <= now.keys() <= done.keys(), (op, before, now)
        assert all(what in (before.get(key), done[key]) for key, what in now.items()), (op, before, now)
    else:
        assert now in (before, done), (op, before, now)
    return now != before


def loop(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    path = folder / "cache.memo"
    counts = {"kills": 0, "done": 0, "not done": 0, "torn": 0, "acknowledged": 0, "compactions": 0, "beginnings": 0}
    states: dict[str, State] = {"one": {}, "two": {}}
    total, secret = 0, None
    turn = 0
    while counts["kills"] < kills:
        turn += 1
        if turn % 20 == 0 or (path.exists() and path.stat().st_size > 1 << 26):
            path.unlink()
            states, total = {"one": {}, "two": {}}, 0
            secret = None if secret else SECRET
        counts["beginnings"] += not path.exists()
        names = chance.choice([["one"], ["two"], ["one", "two"]])
        children = []
        for name in names:
            plan_seed = f"{seed} {turn} {name}"

            def work(writer: int, name: str = name, plan_seed: str = plan_seed, secret: Any = secret) -> None:
                os.write(writer, b"r")
                store = PickleFileStore(path, secret=secret, timeout=SAFETY)
                for op in plan(name, plan_seed):
                    do(store, op)
                    os.write(writer, b".")

            children.append((name, plan_seed, *fork(work)))
        said = dict.fromkeys(names, b"")
        acknowledged = chance.choice([0, 0, 1, 2, 5])
        for name, _, _, reader in children:
            while len(said[name]) < 1 + acknowledged:
                part = hear(reader)
                assert part, "a child has ended"
                said[name] += part
        until = time.perf_counter() + chance.choice([0, chance.random() * 0.0005, chance.random() * 0.004])
        while time.perf_counter() < until:
            pass
        for _, _, child, _ in children:
            os.kill(child, signal.SIGKILL)
        counts["kills"] += len(children)
        for name, _, child, reader in children:
            said[name] += bury(child, reader)

        store = PickleFileStore(path, secret=secret)
        more = 0
        for name, plan_seed, _, _ in children:
            ops = plan(name, plan_seed)
            for _ in range(len(said[name]) - 1):
                op = next(ops)
                states[name] = after(states[name], op)
                total += op[0] == "increment"
                counts["acknowledged"] += 1
                counts["compactions"] += op[0] == "compact"
            op = next(ops)
            now = found(store, name)
            done = check(states[name], now, op)
            counts["done" if done else "not done"] += 1
            states[name] = now
            more += op[0] == "increment"
        count = store.get("n", 0)
        assert total <= count <= total + more, (total, count, more)
        total = count
        stats = store.stats()
        assert stats.damaged == stats.corrupt == 0, stats
        assert not stats.errors, stats
        counts["torn"] = max(counts["torn"], stats.torn)
        store.close()
    return counts


# -- at each system call ---------------------------------------------------------------------------------------------

CALLS = ("open", "close", "pread", "preadv", "write", "writev", "pwrite", "ftruncate", "fsync", "rename", "unlink")
LOOKS = ("lstat", "fstat")


def suicidal(moment: int, cut: Callable[[int], int]) -> None:
    """Let this process be killed in the middle of its system call with that number; the first one is 0."""
    count = 0

    def die() -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def patched(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count <= moment:
                return real(*args, **kwargs)
            if name in ("write", "pwrite"):
                real(args[0], bytes(args[1])[: cut(len(args[1]))], *args[2:])
            elif name == "writev":
                data = b"".join(args[1])
                write(args[0], data[: cut(len(data))])
            die()

        return call

    write = os.write
    for name in CALLS + LOOKS:
        setattr(os, name, patched(name, getattr(os, name)))
    fcntl.flock = patched("flock", fcntl.flock)


def begun(path: Path) -> None:
    """A file with this and that in it."""
    store = PickleFileStore(path)
    for key in "abc":
        store.set(key, key)
        store.set(key, key * 2)
    store.delete("b")
    store.increment("n", 5)
    store.close()


def torn(path: Path) -> None:
    begun(path)
    store = PickleFileStore(path)
    size = path.stat().st_size
    store.set("a", "x" * 1000)
    os.truncate(path, size + 300)
    store.close()


def left(path: Path) -> None:
    """A file beside which the beginning of a compaction was left."""
    begun(path)
    temporary = path.with_name(f".{path.name}.compact")
    temporary.write_bytes(path.read_bytes()[:150])
    temporary.chmod(0o600)


BEGUN = {"a": "aa", "c": "cc", "n": 5}
Scenario = tuple[Callable[[Path], Any], dict[str, Any], Callable[[PickleFileStore], Any], dict[str, Any]]
SCENARIOS: dict[str, Scenario] = {
    "the first opening": (lambda path: None, {}, lambda store: store.set("a", 1), {"a": 1}),
    "a set": (begun, BEGUN, lambda store: store.set("a", 1), {**BEGUN, "a": 1}),
    "a delete": (begun, BEGUN, lambda store: store.delete("a"), {"c": "cc", "n": 5}),
    "an increment": (begun, BEGUN, lambda store: store.increment("n"), {**BEGUN, "n": 6}),
    "a clear": (begun, BEGUN, lambda store: store.clear(), {}),
    "a set behind a torn record": (torn, BEGUN, lambda store: store.set("a", 1), {**BEGUN, "a": 1}),
    "a delete behind a torn record": (torn, BEGUN, lambda store: store.delete("a"), {"c": "cc", "n": 5}),
    "a compaction": (begun, BEGUN, lambda store: store.compact(), BEGUN),
    "a compaction of a file with a torn end": (torn, BEGUN, lambda store: store.compact(), BEGUN),
    "a compaction where another one was killed": (left, BEGUN, lambda store: store.compact(), BEGUN),
}
CUTS: tuple[Callable[[int], int], ...] = (
    lambda size: 0,
    lambda size: size // 2,
    lambda size: size - 1,
)


def points(folder: Path, name: str) -> dict[str, int]:
    prepare, before, work, done = SCENARIOS[name]
    kills = finished = 0
    outcomes = set()
    for number, cut in enumerate(CUTS):
        for moment in range(1_000):
            path = folder / f"{number}-{moment}.memo"
            prepare(path)

            def child(writer: int, path: Path = path, moment: int = moment, cut: Callable[[int], int] = cut) -> None:
                suicidal(moment, cut)
                work(PickleFileStore(path))
                for name in CALLS:  # whatever comes after it is none of its own
                    setattr(os, name, None)
                os.kill(os.getpid(), signal.SIGTERM)

            process, reader = fork(child)
            _, status = os.waitpid(process, 0)
            os.close(reader)
            assert status in (signal.SIGKILL, signal.SIGTERM), f"{moment}: the child ended with {status}"
            for attempt in range(3):
                store = PickleFileStore(path)
                there = store.get_many(key for key in store.keys("*") if key != "new")
                assert there in ([done] if status == signal.SIGTERM else [before, done]), (moment, there)
                outcomes.add(there == done)
                if attempt == 0 and number % 2:
                    assert store.compact()
                else:
                    store.set("new", attempt)
                    assert store.get("new") == attempt, store.stats()
                stats = store.stats()
                assert stats.damaged == stats.corrupt == 0, (moment, stats)
                assert not stats.errors, (moment, stats)
                store.close()
            for each in folder.iterdir():
                each.unlink()
            if status == signal.SIGTERM:
                finished += 1
                break
            kills += 1
    assert finished == len(CUTS)
    return {"kills": kills, "outcomes": len(outcomes)}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    answer = loop(Path(where), int(rest[0]), int(rest[1])) if what == "loop" else points(Path(where), rest[0])
    print(json.dumps(answer))
