"""What other libraries were measured to get wrong: one test for each, with memo's right behaviour.

Missing numbers are about Redis, files, signed payloads or the marker of a crashed process.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memo
from memo import MISSING, MemoryStore, OptionError, RecursiveLoadError, UnkeyableError, cache_aside
from memo.testing import ManualClock

WAIT = 10
"""Seconds after which a test that should never wait gives up."""


def started(target: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


INVALIDATIONS: dict[str, Callable[[Any], Any]] = {
    "invalidate": lambda fn: fn.invalidate(1),
    "invalidate_all": lambda fn: fn.invalidate_all(),
    "tag": lambda fn: fn.store.invalidate_tags("tag"),
    "delete": lambda fn: fn.store.delete(fn.key_for(1)),
    "pattern": lambda fn: fn.store.delete_pattern("*"),
    "clear": lambda fn: fn.store.clear(),
}


@pytest.mark.parametrize("how", INVALIDATIONS)
def test_m01_stale_set(how: str) -> None:
    """The load starts, the source changes, the invalidation returns, the load ends: the next call must not see it."""
    source = {"value": "old"}
    reading, changed = threading.Event(), threading.Event()

    @cache_aside(store=MemoryStore(), tags=("tag",))
    def fn(a: int) -> str:
        value = source["value"]
        reading.set()
        assert changed.wait(WAIT)
        return value

    results: list[str] = []
    loader = started(lambda: results.append(fn(1)))
    assert reading.wait(WAIT)
    source["value"] = "new"
    INVALIDATIONS[how](fn)
    changed.set()
    loader.join(WAIT)
    assert results == ["old"]
    assert fn(1) == "new"


@pytest.mark.parametrize("how", INVALIDATIONS)
async def test_m01_stale_set_awaited(how: str) -> None:
    source = {"value": "old"}
    reading, changed = asyncio.Event(), asyncio.Event()

    @cache_aside(store=MemoryStore(), tags=("tag",))
    async def fn(a: int) -> str:
        value = source["value"]
        reading.set()
        await changed.wait()
        return value

    loader = asyncio.create_task(fn(1))
    await asyncio.wait_for(reading.wait(), WAIT)
    source["value"] = "new"
    done = INVALIDATIONS[how](fn)
    if asyncio.iscoroutine(done):
        await done
    joined = asyncio.create_task(fn(1))
    changed.set()
    assert await asyncio.wait_for(loader, WAIT) == "old"
    assert await asyncio.wait_for(joined, WAIT) == "new"
    assert await fn(1) == "new"


def test_m02_kwargs() -> None:
    """However a call is written, keyword-only arguments and omitted defaults included, it is one entry."""
    calls = []

    @cache_aside
    def fn(a: int, b: int = 2, *, c: int = 3) -> int:
        calls.append((a, b, c))
        return a

    forms: list[tuple[tuple[int, ...], dict[str, int]]] = [
        *(((1,), {}), ((), {"a": 1}), ((1, 2), {}), ((), {"b": 2, "a": 1}), ((), {"a": 1, "b": 2})),
        *(((1,), {"c": 3}), ((), {"c": 3, "b": 2, "a": 1})),
    ]
    for args, kwargs in forms:
        fn(*args, **kwargs)
    assert calls == [(1, 2, 3)]


def test_m03_key_collisions() -> None:
    @cache_aside
    def one(a: Any) -> Any:
        return a

    @cache_aside(key="{a}:{b}")
    def template(a: str, b: str) -> tuple[str, str]:
        return a, b

    @cache_aside
    def two(a: str, b: str) -> tuple[str, str]:
        return a, b

    for value in ("", None, (), [], ["p", "q"], "p:q", 1, "1", True, "true", "True"):
        assert one(value) == value
        assert type(one(value)) is type(value)
    for fn in (template, two):
        for pair in (("x:y", "z"), ("x", "y:z"), ("a b", "c"), ("a", "b c"), ("", "x"), ("x", "")):
            assert fn(*pair) == pair


def test_m04_elided_str() -> None:
    """Arrays whose printed form leaves the middle out are told apart by content."""
    numpy = pytest.importorskip("numpy")

    @cache_aside
    def fn(array: Any) -> float:
        return float(array.sum())

    zeros, one = numpy.zeros(5_000), numpy.zeros(5_000)
    one[2_500] = 1
    assert str(zeros) == str(one)
    assert (fn(zeros), fn(one)) == (0, 1)
    assert fn(numpy.zeros(5_000)) == 0
    assert fn.stats().hits == 1

    @cache_aside(key="{array}")
    def rendered(array: Any) -> float:
        return float(array.sum())

    assert (rendered(zeros), rendered(one)) == (0, 1)


def test_m05_hash_seed() -> None:
    script = (
        "from memo import cache_aside\n"
        "fn = cache_aside(namespace='ns')(lambda a: a)\n"
        "print(fn.key_for({'alpha', 'beta', 'gamma', 'delta'}), fn.key_for({'b': {'x', 'y'}, 'a': 1}))\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(memo.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert seen == {"ns({'alpha','beta','delta','gamma'}) ns({'a':1,'b':{'x','y'}})\n"}


def test_m06_identity_dependent_key() -> None:
    """Two equal strings are one, whether they are the same object or not."""
    calls = []

    @cache_aside
    def fn(a: Any, b: Any) -> int:
        calls.append(1)
        return len(calls)

    x = "shared"
    y = "".join(["sha", "red"])
    assert x is not y
    assert fn(x, x) == fn(x, y) == fn(y, x) == 1
    assert fn([x], [x]) == fn([x], [y]) == 2


@pytest.mark.parametrize("who", ["leader", "waiter"])
async def test_m07_async_cancel(who: str) -> None:
    """Cancelling one caller neither cancels nor poisons the others."""
    gate = asyncio.Event()
    calls = []

    @cache_aside
    async def fn(a: int) -> str:
        calls.append(a)
        await gate.wait()
        return "value"

    tasks = [asyncio.create_task(fn(1)) for _ in range(4)]
    while fn.stats().waits < 3:
        await asyncio.sleep(0)
    victim = tasks.pop(0 if who == "leader" else 2)
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    gate.set()
    assert await asyncio.wait_for(asyncio.gather(*tasks), WAIT) == ["value"] * 3
    assert await fn(1) == "value"
    assert calls == [1]


async def test_m07_everyone_cancelled() -> None:
    """Then the load is given up, and the next call begins anew."""
    calls = []

    @cache_aside
    async def fn(a: int) -> str:
        calls.append(a)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return "value"

    tasks = [asyncio.create_task(fn(1)) for _ in range(3)]
    while fn.stats().waits < 2:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await asyncio.wait_for(fn(1), WAIT) == "value"
    assert calls == [1, 1]


def test_m08_leader_raises() -> None:
    """Those who wait get the error, and it is not kept."""
    begun, gate = threading.Event(), threading.Event()
    calls = []

    @cache_aside
    def fn(a: int) -> str:
        calls.append(a)
        if len(calls) == 1:
            begun.set()
            assert gate.wait(WAIT)
            raise LookupError("broken")
        return "value"

    errors: list[BaseException] = []

    def call() -> None:
        try:
            fn(1)
        except LookupError as error:
            errors.append(error)

    threads = [started(call)]
    assert begun.wait(WAIT)
    threads += [started(call) for _ in range(3)]
    pause = threading.Event()
    while fn.stats().waits < 3:
        pause.wait(0.001)
    gate.set()
    for thread in threads:
        thread.join(WAIT)
    assert len(errors) == 4
    assert calls == [1]
    assert fn(1) == "value"


async def test_m08_leader_raises_awaited() -> None:
    calls = []

    @cache_aside
    async def fn(a: int) -> str:
        calls.append(a)
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise LookupError("broken")
        return "value"

    outcomes = await asyncio.wait_for(asyncio.gather(*(fn(1) for _ in range(4)), return_exceptions=True), WAIT)
    assert [type(outcome) for outcome in outcomes] == [LookupError] * 4
    assert await fn(1) == "value"
    assert calls == [1, 1]


def test_m09_same_key_re_entrancy() -> None:
    """A call that would wait for itself is an error at once, not a deadlock; other keys recurse freely."""

    @cache_aside
    def same(a: int) -> int:
        return same(a)

    @cache_aside
    def fibonacci(n: int) -> int:
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    with pytest.raises(RecursiveLoadError):
        same(1)
    assert fibonacci(60) == 1548008755920


async def test_m09_same_key_re_entrancy_awaited() -> None:
    @cache_aside
    async def same(a: int) -> int:
        return await same(a)

    with pytest.raises(RecursiveLoadError):
        await asyncio.wait_for(same(1), WAIT)


class Owner:
    def __init__(self, name: str) -> None:
        self.name = name

    @cache_aside
    def m(self, x: int) -> tuple[str, int]:
        return self.name, x

    @cache_aside
    @classmethod
    def cm(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


class Derived(Owner):
    pass


def test_m10_self_leak() -> None:
    owner = Owner("a")
    owner.m(5)
    owner.m.peek(5)
    freed = weakref.ref(owner)
    del owner
    assert freed() is None


def test_m11_method_collision() -> None:
    a, b, c = Owner("a"), Owner("b"), Derived("c")
    assert (a.m(5), b.m(5), c.m(5)) == (("a", 5), ("b", 5), ("c", 5))
    assert (Owner.cm(5), Derived.cm(5), c.cm(5)) == (("Owner", 5), ("Derived", 5), ("Derived", 5))
    assert (a.m(5), b.m(5), c.m(5)) == (("a", 5), ("b", 5), ("c", 5))


def test_m12_aliasing() -> None:
    """In memory values are shared by reference, and said to be; with a serializer each caller has a whole copy."""
    import pickle

    def fn(a: int) -> Any:
        return {"items": [a]}

    shared = cache_aside(store=MemoryStore())(fn)
    shared(1)["items"].append("mine")
    assert shared(1) == {"items": [1, "mine"]}
    copied = cache_aside(store=MemoryStore(serializer=pickle))(fn)
    for _ in range(2):
        copied(2)["items"].append("mine")
        copied.peek(2)["items"].append("mine")
    assert copied(2) == {"items": [2]}


def test_m13_freezegun() -> None:
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2024-01-01") as frozen:
        fn = cache_aside(ttl=10, store=MemoryStore(cleanup_interval=None))(lambda a: object())
        first = fn(1)
        frozen.tick(9.5)
        assert fn(1) is first
        frozen.tick(0.5)
        assert fn(1) is not first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_m14_fork_during_a_load() -> None:
    """In a process of its own, since a child of this one would carry the test run with it."""
    script = """
import os, threading
from memo import cache_aside
begun, gate = threading.Event(), threading.Event()
parent = os.getpid()
@cache_aside
def fn(a):
    if os.getpid() == parent:
        begun.set()
        gate.wait(60)
        return "parent"
    return "child"
loader = threading.Thread(target=fn, args=(1,))
loader.start()
begun.wait(60)
child = os.fork()
if child == 0:
    os._exit(0 if fn(1) == "child" and fn(1) == "child" else 1)
_, status = os.waitpid(child, 0)
gate.set()
loader.join(60)
print(os.waitstatus_to_exitcode(status), fn(1))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "0 parent\n"


def test_m16_glob_injection() -> None:
    """A value can reach no other entry, neither through a key, nor a pattern made of one, nor a tag."""
    store = MemoryStore()

    @cache_aside(store=store, key="user:{name}", tags=("user:{name}",))
    def fn(name: str) -> str:
        return name

    names = ["*", "?", "[a-z]", "ann", "bob", "a*", "{ann}"]
    for name in names:
        fn(name)
    assert len(store) == len(names)
    fn.invalidate("*")
    store.delete(fn.key_for("?"))
    store.delete_pattern(fn.key_for("[a-z]"))
    store.invalidate_tags("user:a*")
    assert sorted(store.keys()) == sorted(fn.key_for(name) for name in ("ann", "bob", "{ann}"))


async def test_m17_wrong_kind_of_function() -> None:
    """async def works like def, as often as it is awaited; generators are refused when they are decorated."""

    @cache_aside
    async def coroutine(a: int) -> int:
        return a

    assert await coroutine(1) == await coroutine(1) == 1
    assert coroutine.stats().hits == 1
    assert cache_aside(lambda a: a)(1) == 1

    def generator() -> Any:
        yield 1

    async def async_generator() -> Any:
        yield 1

    for refused in (generator, async_generator, functools.partial(generator)):
        with pytest.raises(OptionError, match="only once"):
            cache_aside(refused)


_TYPED = """
from collections.abc import Callable
from memo import cache_aside

@cache_aside(ttl=60)
def fn(a: int, b: str = "") -> list[str]:
    return [b] * a

@cache_aside
async def afn(a: int) -> int:
    return a

class Owner:
    @cache_aside
    def m(self, x: int) -> str:
        return str(x)

r1: list[str] = fn(1, b="x")
r2: bool = fn.invalidate(1)
r3: str = fn.key_for(1, "x")
r4: str = Owner().m(5)
r5: bool = Owner().m.invalidate(5)
async def main() -> None:
    r6: int = await afn(1)
    r7: bool = await afn.invalidate(1)
"""
_MISTYPED = [
    'fn("1")',
    "fn(1, c=2)",
    'fn.invalidate("1")',
    "fn.no_such_helper(1)",
    'Owner().m("5")',
    "Owner().m.key_for()",
    "r8: int = fn(1)",
]


def test_m18_mypy_strict(tmp_path: Path) -> None:
    """The signature is kept on the call and on every helper: what is right passes, what is wrong is found."""
    api = pytest.importorskip("mypy.api")
    (tmp_path / "typed.py").write_text(_TYPED + "".join(f"{line}  # wrong\n" for line in _MISTYPED))
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = true\nmypy_path = {Path(memo.__file__).parents[1]}\n")
    arguments = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    out, err, _ = api.run([*arguments, str(tmp_path / "typed.py")])
    lines = (tmp_path / "typed.py").read_text().splitlines()
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    assert found == {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}, out + err


async def test_m20_late_loader_against_new_entry() -> None:
    """A load that an invalidation has doomed touches the newer entry neither by failing nor by ending."""
    for fails in (True, False):
        clock = ManualClock()
        gates = [asyncio.Event(), asyncio.Event()]
        begun = [asyncio.Event(), asyncio.Event()]
        calls: list[int] = []

        @cache_aside(ttl=10, store=MemoryStore(clock=clock))
        async def fn(a: int) -> str:
            number = len(calls)  # noqa: B023
            calls.append(number)  # noqa: B023
            begun[number].set()  # noqa: B023
            await gates[number].wait()  # noqa: B023
            if number == 0 and fails:  # noqa: B023
                raise LookupError("late")
            return f"load {number}"

        late = asyncio.create_task(fn(1))
        await asyncio.wait_for(begun[0].wait(), WAIT)
        await fn.invalidate(1)
        newer = asyncio.create_task(fn(1))
        await asyncio.wait_for(begun[1].wait(), WAIT)
        gates[1].set()
        assert await asyncio.wait_for(newer, WAIT) == "load 1"
        clock.advance(5)
        gates[0].set()
        if fails:
            with pytest.raises(LookupError):
                await late
        else:
            assert await late == "load 0"
        assert await fn(1) == "load 1"
        assert await fn.ttl_left(1) == 5
        assert len(calls) == 2


@pytest.mark.parametrize("cache_none", [False, True])
def test_m21_none(cache_none: bool) -> None:
    """None is "not found", and kept where that is asked for: then it is a hit, told apart from a miss."""
    calls = []

    @cache_aside(cache_none=cache_none)
    def fn(a: int) -> None:
        calls.append(a)

    assert fn(1) is None
    assert fn(1) is None
    assert len(calls) == (1 if cache_none else 2)
    assert fn.peek(1) is (None if cache_none else MISSING)
    assert fn.store.get(fn.key_for(1), "nothing") is (None if cache_none else "nothing")


def test_m22_loop_bound_ttl() -> None:
    """An entry expires by the clock, whichever event loop it came from and whether that still runs."""
    clock = ManualClock()

    @cache_aside(ttl=10, store=MemoryStore(clock=clock))
    async def fn(a: int) -> int:
        calls.append(a)
        return len(calls)

    calls: list[int] = []
    assert asyncio.run(fn(1)) == 1
    clock.advance(9)
    assert asyncio.run(fn(1)) == 1
    clock.advance(1)
    assert asyncio.run(fn(1)) == 2


def test_m23_reading_statistics_changes_nothing() -> None:
    fn: Any = cache_aside(lambda a: a)
    fn(1)
    fn(1)
    fn(2)
    first, stored = fn.stats(), fn.store.stats()
    for _ in range(16):
        assert fn.stats() == first
        assert fn.store.stats() == stored
    assert (first.hits, first.misses) == (stored.hits, stored.misses) == (1, 2)


def test_m24_hijacked_kwargs() -> None:
    names = ["cache_read", "cache_write", "max_age", "ttl", "key", "store", "tags", "refresh", "ignore", "function"]

    @cache_aside
    def fn(**kwargs: Any) -> dict[str, Any]:
        return kwargs

    @cache_aside(ttl=5)
    def named(cache_read: Any, max_age: Any, ttl: Any, key: Any, store: Any, value: Any) -> tuple[Any, ...]:
        return cache_read, max_age, ttl, key, store, value

    for number, name in enumerate(names):
        assert fn(**{name: number}) == {name: number}
    assert named(cache_read=1, max_age=2, ttl=3, key=4, store=5, value=6) == (1, 2, 3, 4, 5, 6)
    named.set("given", cache_read=1, max_age=2, ttl=3, key=4, store=5, value=6)
    assert named(1, 2, 3, 4, 5, 6) == "given"


def test_m25_address_reuse() -> None:
    class Short:
        def __init__(self, number: int) -> None:
            self.number = number

        @cache_aside
        def m(self, x: int) -> int:
            return self.number

    @cache_aside
    def takes(owner: Any) -> int:
        raise AssertionError("called")

    addresses = set()
    for number in range(200):
        owner = Short(number)
        addresses.add(id(owner))
        assert owner.m(5) == number
        with pytest.raises(UnkeyableError):
            takes(owner)
        del owner
    gc.collect()
    assert len(addresses) < 200, "no address was used again, so this has tested nothing"


def test_m26_methods_follow_identity_not_state() -> None:
    owner = Owner("before")
    assert owner.m(7) == ("before", 7)
    owner.name = "after"
    assert owner.m(7) == ("before", 7)
    owner.m.invalidate(7)
    assert owner.m(7) == ("after", 7)
