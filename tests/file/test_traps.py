"""What other libraries were measured to get wrong, and bugs that they have had, over the file store: a test for each.

The numbers are those of tests/peers. A forged signature, number 15, is in test_secret.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
import threading
import types
from typing import Any

import pytest

from memo import MISSING, PickleFileStore, UnkeyableError, cache_aside

WAIT = 20.0


def started(target: Any) -> threading.Thread:
    thread = threading.Thread(target=target)
    thread.start()
    return thread


@pytest.mark.parametrize("whose", ["mine", "another's"])
@pytest.mark.parametrize(
    "how",
    [
        lambda fn, store: fn.invalidate(1),
        lambda fn, store: fn.invalidate_all(),
        lambda fn, store: store.invalidate_tags("tag"),
        lambda fn, store: store.delete(fn.key_for(1)),
        lambda fn, store: store.delete_pattern("*"),
        lambda fn, store: store.clear(),
    ],
    ids=["invalidate", "invalidate_all", "tag", "delete", "pattern", "clear"],
)
def test_m01_stale_set(make, how, whose):
    """The load starts, the source changes, the invalidation by any process returns, the load ends: nobody sees it."""
    source, store, another = {"value": "old"}, make(), make()
    reading, changed = threading.Event(), threading.Event()

    def fn(a):
        value = source["value"]
        reading.set()
        assert changed.wait(WAIT)
        return value

    mine = cache_aside(store=store, namespace="fn", tags=("tag",), ttl=None)(fn)
    theirs = cache_aside(store=another, namespace="fn", tags=("tag",), ttl=None)(fn)
    results: list[str] = []
    loader = started(lambda: results.append(mine(1)))
    assert reading.wait(WAIT)
    source["value"] = "new"
    how(*((mine, store) if whose == "mine" else (theirs, another)))
    changed.set()
    loader.join(WAIT)
    assert results == ["old"]
    assert mine(1) == theirs(1) == "new"


def test_m02_kwargs(make):
    """However a call is written, it is one entry in every process."""
    calls: list[Any] = []

    def fn(a: int, b: int = 2, *, c: int = 3) -> int:
        calls.append((a, b, c))
        return a

    fns = [cache_aside(store=make(), namespace="fn")(fn) for _ in range(2)]
    for form in fns:
        form(1), form(a=1), form(1, 2), form(b=2, a=1), form(1, c=3), form(c=3, b=2, a=1)
    assert calls == [(1, 2, 3)]


def test_m03_key_collisions(store):
    one: Any = cache_aside(store=store, namespace="one")(lambda a: a)
    template: Any = cache_aside(store=store, key="{a}:{b}")(lambda a, b: (a, b))
    for _ in range(2):
        for value in ("", None, (), [], ["p", "q"], "p:q", 1, "1", 1.0, True, "true", "True", b"1"):
            assert one(value) == value
            assert type(one(value)) is type(value)
        for pair in (("x:y", "z"), ("x", "y:z"), ("a b", "c"), ("a", "b c"), ("", "x"), ("x", "")):
            assert template(*pair) == pair


RUN = """
import sys
from memo import PickleFileStore, cache_aside
store = PickleFileStore(sys.argv[1])
calls = []
@cache_aside(store=store, namespace="fn", cache_none=True)
def fn(a):
    calls.append(a)
    return a
fn({"alpha", "beta", "gamma", "delta"})
fn({"b": {"x", "y"}, "a": frozenset({"p", "q"})})
fn([sys.argv[2], sys.argv[2]])
print(len(calls))
"""


def test_m05_hash_seed(path, launch, monkeypatch):
    """Sets and dicts are found again by processes that hash otherwise."""
    counts = []
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        counts.append(launch(RUN, path, "x").communicate(timeout=60)[0])
    assert counts == ["3\n", "0\n", "0\n"]


def test_m06_identity_dependent_key(make):
    """Two equal strings are one argument, whether they are the same object or not; values come back equal, too."""
    calls = []
    x, y = "shared", "".join(["sha", "red"])
    assert x is not y
    for _ in range(2):
        fn = cache_aside(store=make(), namespace="fn")(lambda a, b: calls.append(1) or [a, b])
        assert fn(x, x) == fn(x, y) == fn(y, x) == [x, x]
        assert fn([x], [x]) == fn([x], [y])
    assert len(calls) == 2


@dataclasses.dataclass(frozen=True)
class Owner:
    name: str

    def m(self, x: int) -> tuple[str, str, int]:
        return type(self).__name__, self.name, x

    @classmethod
    def cm(cls, x: int) -> tuple[str, int]:
        return cls.__name__, x


@dataclasses.dataclass(frozen=True)
class Derived(Owner):
    pass


def test_m11_method_collision(make, monkeypatch):
    """Instances that go by their fields, and classes, are told apart in each process and by the next one."""
    for _ in range(2):
        store = make()
        monkeypatch.setattr(Owner, "method", cache_aside(store=store, namespace="m")(Owner.m), raising=False)
        of_class = cache_aside(store=store, namespace="cm")(classmethod(Owner.cm.__func__))
        monkeypatch.setattr(Owner, "of_class", of_class, raising=False)
        for owner in Owner("a"), Owner("b"), Derived("a"):
            assert owner.method(5) == (type(owner).__name__, owner.name, 5)
        assert (Owner.of_class(5), Derived.of_class(5)) == (("Owner", 5), ("Derived", 5))
    assert store.stats().hits == 5


def test_m12_aliasing(store, make):
    """Each caller has a whole copy."""
    mine = [{"items": [1]}]
    store.set("a", mine)
    mine[0]["items"].append("mine")
    for each in store, store, make():
        found = each.get("a")
        assert found == [{"items": [1]}]
        found[0]["items"].append("mine")
    fn = cache_aside(store=store, namespace="fn")(lambda a: {"items": [a]})
    for _ in range(3):
        found = fn(1)
        fn.peek(1)["items"].append("mine")
        assert found == {"items": [1]}
        found["items"].append("mine")


def test_m13_freezegun(path):
    freezegun = pytest.importorskip("freezegun")
    calls = []
    with freezegun.freeze_time("2024-01-01") as frozen:
        store = PickleFileStore(path)
        fn = cache_aside(ttl=10, store=store, namespace="fn")(lambda a: calls.append(a) or len(calls))
        assert fn(1) == 1
        frozen.tick(9.5)
        assert fn(1) == 1
        frozen.tick(0.5)
        assert fn(1) == 2
        store.close()


FORK = """
import os, sys, threading
from memo import PickleFileStore, cache_aside
begun, gate, parent = threading.Event(), threading.Event(), os.getpid()
@cache_aside(store=PickleFileStore(sys.argv[1]), namespace="fn", ttl=None)
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
print(os.waitstatus_to_exitcode(status), fn(1), fn.stats().refused_fills)
"""


def test_m14_fork_during_a_load(path, launch):
    """The child waits for nobody; what it has stored overtakes its parent's load."""
    out, _ = launch(FORK.replace("import os,", "import warnings; warnings.simplefilter('ignore')\nimport os,"), path)\
        .communicate(timeout=60)  # fmt: skip
    assert out == "0 child 1\n"


def test_m16_glob_injection(store):
    """A value can reach no other entry, neither through a key, nor a pattern made of one, nor a tag."""
    fn: Any = cache_aside(store=store, key="user:{name}", tags=("user:{name}",))(lambda name: name)
    names = ["*", "?", "[a-z]", "ann", "bob", "a*", "{ann}"]
    for name in names:
        fn(name)
    fn.invalidate("*")
    store.delete(fn.key_for("?"))
    store.delete_pattern(fn.key_for("[a-z]"))
    store.invalidate_tags("user:a*")
    assert sorted(store.keys()) == sorted(fn.key_for(name) for name in ("ann", "bob", "{ann}"))


MARKER = """
import sys, threading
from memo import PickleFileStore, cache_aside
store = PickleFileStore(sys.argv[1])
@cache_aside(store=store, namespace="fn", ttl=None)
def fn(a):
    if sys.argv[2] == "dies":
        print("computing", flush=True)
        sys.stdin.read()
    return "value"
print(fn(1), flush=True)
"""


def test_m19_crash_marker(path, launch):
    """A process is killed in the middle of a computation; the next one does not wait for it."""
    process = launch(MARKER, path, "dies")
    assert process.stdout.readline() == "computing\n"
    alive = launch(MARKER, path, "lives")
    assert alive.communicate(timeout=WAIT)[0] == "value\n", "nor does one beside it"
    process.send_signal(signal.SIGKILL)
    process.wait(WAIT)
    other = PickleFileStore(path)
    other.clear()
    other.close()
    assert launch(MARKER, path, "lives").communicate(timeout=WAIT)[0] == "value\n"


@pytest.mark.parametrize("fails", [True, False])
async def test_m20_late_loader_against_new_entry(make, clock, fails):
    """A load that another process has doomed touches the newer entry neither by failing nor by ending."""
    gates = [asyncio.Event(), asyncio.Event()]
    begun = [asyncio.Event(), asyncio.Event()]
    calls: list[int] = []
    another = make()

    @cache_aside(ttl=10, store=make(), namespace="fn")
    async def fn(a):
        number = len(calls)
        calls.append(number)
        begun[number].set()
        await gates[number].wait()
        if number == 0 and fails:
            raise LookupError("late")
        return f"load {number}"

    late = asyncio.create_task(fn(1))
    await asyncio.wait_for(begun[0].wait(), WAIT)
    another.delete("fn(1)")
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
    assert await fn(1) == another.get("fn(1)") == "load 1"
    assert await fn.ttl_left(1) == another.ttl("fn(1)") == 5
    assert len(calls) == 2


@pytest.mark.parametrize("cache_none", [False, True])
def test_m21_none(make, cache_none):
    """None is "not found", and kept where that is asked for: then it is a hit, told apart from a miss, for all."""
    calls = []
    for _ in range(2):
        store = make()
        fn = cache_aside(store=store, namespace="fn", cache_none=cache_none)(calls.append)
        assert fn(1) is None
        assert fn.peek(1) is (None if cache_none else MISSING)
        assert store.get(fn.key_for(1), "nothing") is (None if cache_none else "nothing")
        assert store.get_many([fn.key_for(1)]) == ({fn.key_for(1): None} if cache_none else {})
    assert len(calls) == (1 if cache_none else 2)


def test_m23_reading_statistics_changes_nothing(store):
    fn: Any = cache_aside(store=store, namespace="fn")(lambda a: a)
    fn(1), fn(1), fn(2)
    first, stored = fn.stats(), store.stats()
    for _ in range(16):
        assert (fn.stats(), store.stats()) == (first, stored)


def test_m25_address_reuse(store):
    """What has no identity beyond this process is refused: no instance is given another's value."""

    class Short:
        def m(self, x: int) -> int:
            raise AssertionError("called")

    Short.m = cache_aside(store=store)(Short.m)
    takes = cache_aside(store=store, namespace="takes")(lambda owner: None)
    for _ in range(50):
        with pytest.raises(UnkeyableError):
            Short().m(5)
        with pytest.raises(UnkeyableError):
            takes(Short())
    assert store.keys() == []


# -- bugs that others have had -----------------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch):
    """A module with a class that can be pickled by name."""
    made: Any = types.ModuleType("layout_of_a_test")
    exec("class Layout:\n def __init__(self): self.a = 1", made.__dict__)
    monkeypatch.setitem(sys.modules, "layout_of_a_test", made)
    return made


@pytest.mark.parametrize("how", ["class gone", "module gone", "another layout", "fails in its own way"])
def test_what_an_older_version_has_pickled_is_a_miss_that_is_filled_again(store, module, monkeypatch, how, caplog):
    fn = cache_aside(store=store, namespace="fn", ttl=None)(lambda x: "new")
    fn.set(module.Layout(), 1)
    store.set("a", module.Layout())
    if how == "class gone":
        del module.Layout
    elif how == "module gone":
        monkeypatch.delitem(sys.modules, "layout_of_a_test")
    else:

        def fails(self: Any, state: Any) -> None:
            raise (TypeError if how == "another layout" else LookupError)(state)

        module.Layout.__setstate__ = fails
    assert store.get("a", "gone") == "gone"
    assert fn(1) == fn(1) == "new"
    assert store.stats().corrupt >= 2
    assert len([record for record in caplog.records if "cannot be unpickled" in record.message]) == 1


def test_numbers_and_truth_come_back_as_what_they_were(store, make):
    values = [0, 1, True, False, 1.0, -0.0, 10**30, b"1", "1", None, "", 2**63]
    for number, value in enumerate(values):
        store.set(f"{number}", value)
    for number, value in enumerate(values):
        found = make().get(f"{number}", MISSING)
        assert (found, type(found), str(found)) == (value, type(value), str(value))


def test_an_invalidation_of_a_function_spares_those_whose_names_begin_alike(store):
    users = cache_aside(store=store, namespace="users")(lambda x: x)
    others = cache_aside(store=store, namespace="usersAbc")(lambda x: x)
    users(1), others(1)
    users.invalidate_all()
    assert store.keys() == ["usersAbc(1)"]
    assert others.peek(1) == 1


def test_a_tag_that_is_gone_leaves_nothing_behind(store, clock):
    """No list of members outlives them: what is kept of a tag goes with a rewrite, and touches nothing newer."""
    fn = cache_aside(store=store, namespace="fn", tags=("t",), ttl=10)(lambda x: x)
    for number in range(50):
        fn(number)
    store.invalidate_tags("t")
    fn(1)
    assert fn.peek(1) == 1
    clock.advance(10)
    assert store.compact()
    assert os.path.getsize(store.path) < 200
    assert store._view.index._tag_marks == {}


def test_a_ttl_begins_when_the_load_has_ended(store, clock):
    fn = cache_aside(store=store, namespace="fn", ttl=10)(lambda x: clock.advance(100))
    cached = cache_aside(store=store, namespace="cached", ttl=10, cache_none=True)(lambda x: clock.advance(100))
    fn(1), cached(1)
    assert cached.ttl_left(1) == 10


def test_a_key_callable_serves_call_and_invalidation_alike(store):
    fn = cache_aside(store=store, key=lambda x: f"mine:{x % 10}")(lambda x: x)
    assert fn(3) == fn(13) == 3
    assert fn.invalidate(23) is True
    assert store.keys() == []


def test_two_writers_never_leave_a_mixture(path, make):
    """Of values that differ in all their bytes each is found whole, whoever has written it."""
    stores = [make(timeout=60) for _ in range(3)]
    barrier = threading.Barrier(3)

    def write(number: int) -> None:
        barrier.wait(WAIT)
        for turn in range(100):
            stores[number].set("k", [number] * (turn * 13 % 500))
            assert len(set(stores[number].get("k", []))) <= 1

    threads = [started(lambda number=number: write(number)) for number in range(3)]
    for thread in threads:
        thread.join(WAIT)
    assert make().stats().damaged == make().stats().torn == 0
    assert [store.stats().errors for store in stores] == [{}] * 3
