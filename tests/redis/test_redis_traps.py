"""What other libraries were measured to get wrong, over the Redis store: a test for each that it could get wrong, too.

The numbers are those of tests/peers. Where the file store's test says what is promised of any store that processes
share, it is that test that runs here, with two store objects on one server for two processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import memo
from memo import MISSING, RedisStore, cache_aside
from memo.serializers import PickleSerializer
from siblings import module

WAIT = 20.0


_traps = module("file/test_traps.py")


@pytest.fixture
def make(redis_server):
    """Makes stores of values that only a pickle keeps as they are."""
    made = []

    def make(**options):
        serializer = PickleSerializer(secret=b"a secret of the tests, 32 bytes.")
        made.append(RedisStore(redis_server.url, **{"serializer": serializer, "timeout": 20, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make):
    return make()


test_m01_stale_set = _traps.test_m01_stale_set
test_m02_kwargs = _traps.test_m02_kwargs
test_m03_key_collisions = _traps.test_m03_key_collisions
test_m06_identity_dependent_key = _traps.test_m06_identity_dependent_key
test_m11_method_collision = _traps.test_m11_method_collision
test_m12_aliasing = _traps.test_m12_aliasing
test_m16_glob_injection = _traps.test_m16_glob_injection
test_m21_none = _traps.test_m21_none
test_m23_reading_statistics_changes_nothing = _traps.test_m23_reading_statistics_changes_nothing
test_m25_address_reuse = _traps.test_m25_address_reuse
test_an_invalidation_of_a_function_spares_those_whose_names_begin_alike = (
    _traps.test_an_invalidation_of_a_function_spares_those_whose_names_begin_alike
)
test_numbers_and_truth_come_back_as_what_they_were = _traps.test_numbers_and_truth_come_back_as_what_they_were


@pytest.mark.parametrize("fails", [True, False])
def test_m20_late_loader_against_new_entry(make, fails):
    """A load that another process has doomed touches the newer entry neither by failing nor by ending."""
    gates, begun = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]
    calls: list[int] = []
    another = make()

    @cache_aside(ttl=1_000, store=make(), namespace="fn")
    def fn(a):
        number = len(calls)
        calls.append(number)
        begun[number].set()
        assert gates[number].wait(WAIT)
        if number == 0 and fails:
            raise LookupError("late")
        return f"load {number}"

    outcomes: list[Any] = []

    def call() -> None:
        try:
            outcomes.append(fn(1))
        except LookupError:
            outcomes.append("failed")

    late, newer = (threading.Thread(target=call) for _ in range(2))
    late.start()
    assert begun[0].wait(WAIT)
    another.delete("fn(1)")
    newer.start()
    assert begun[1].wait(WAIT)
    gates[1].set()
    newer.join(WAIT)
    assert another.expire("fn(1)", 500)
    gates[0].set()
    late.join(WAIT)
    assert outcomes == ["load 1", "failed" if fails else "load 0"]
    assert fn(1) == another.get("fn(1)") == "load 1"
    assert 400 < another.ttl("fn(1)") <= 500
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["key", "tag"])
def test_m01_stale_set_awaited(make, how):
    """The same where both await, in one loop."""
    mine, theirs = make(), make()

    async def main() -> tuple[Any, Any, Any]:
        source, begun, changed = ["old"], asyncio.Event(), asyncio.Event()

        async def fn(a):
            value = source[0]
            begun.set()
            await changed.wait()
            return value

        one, two = (cache_aside(store=store, namespace="fn", tags=("tag",), ttl=60)(fn) for store in (mine, theirs))
        load = asyncio.create_task(one(1))
        await asyncio.wait_for(begun.wait(), WAIT)
        source[0] = "new"
        await (two.invalidate(1) if how == "key" else theirs.ainvalidate_tags("tag"))
        changed.set()
        return await load, await one(1), await two(1)

    assert asyncio.run(main()) == ("old", "new", "new")


SEEDS = """
import sys
from memo import RedisStore, cache_aside
store = RedisStore(sys.argv[1], timeout=20)
calls = []
@cache_aside(store=store, namespace="fn", cache_none=True, ttl=60)
def fn(a):
    calls.append(a)
    return None
fn({"alpha", "beta", "gamma", "delta"})
fn({"b": {"x", "y"}, "a": frozenset({"p", "q"})})
print(len(calls))
"""


def test_m05_hash_seed(redis_server):
    """Sets and dicts are found again by processes that hash otherwise."""
    counts = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
        command = [sys.executable, "-W", "error", "-c", SEEDS, redis_server.url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        counts.append(done.stdout)
    assert counts == ["2\n", "0\n"]


# -- what somebody else has put there ----------------------------------------------------------------------------------


@pytest.fixture
def plain(make):
    return make(serializer="json")


def test_what_set_stores_is_plain_json_for_a_bare_client(redis_server, plain):
    value = {"id": 7, "name": "Ada", "tags": ["a", "é"], "none": None}
    plain.set("user:7", value)
    assert json.loads(redis_server.client().get("cache:user:7")) == value
    redis_server.client().set("cache:user:8", json.dumps(value))
    assert plain.get("user:8") == value


@pytest.mark.parametrize("awaits", [False, True])
def test_a_plain_value_at_a_functions_key_is_a_miss_counted_and_warned_of_once(plain, caplog, awaits):
    calls = []

    def load(x):
        calls.append(x)
        return f"loaded {x}"

    async def aload(x):
        return load(x)

    f: Any = cache_aside(store=plain, key="user:{x}", ttl=60)(aload if awaits else load)
    for x in (1, 2):
        plain.set(f"user:{x}", "somebody else's")

    async def main():
        return [await f(x) for x in (1, 2, 1, 2)]

    results = asyncio.run(main()) if awaits else [f(x) for x in (1, 2, 1, 2)]
    assert results == ["loaded 1", "loaded 2"] * 2
    assert calls == [1, 2]
    assert plain.get("user:1") == "loaded 1", "its load has replaced it"
    assert plain.stats().errors == {"strange": 2}
    (message,) = caplog.messages
    assert "two functions, or a manager, use one name" in message
    assert "somebody" not in message


def test_two_functions_of_one_key_see_each_others_results_as_misses(make, caplog):
    """Each in a process of its own: what one has stored is never the other's result."""
    stores = [make(serializer="json") for _ in range(2)]
    one, two = (
        cache_aside(store=store, key="k:{x}", ttl=60)(function)
        for store, function in zip(stores, (_one, _two), strict=True)
    )
    assert one.key_for(1) == two.key_for(1) == "k:1"
    for _ in range(2):
        assert one(1) == one(1) == one.peek(1) == "one"
        assert two.peek(1) is MISSING
        assert two(1) == two(1) == two.peek(1) == "two"
        assert one.peek(1) is MISSING
    assert (one.stats().loads, two.stats().loads) == (2, 2)
    assert [store.stats().errors for store in stores] == [{"strange": 1}, {"strange": 2}]
    assert len(caplog.messages) == 2, "once for each"


def _one(x):
    return "one"


def _two(x):
    return "two"


def test_a_list_at_a_key_is_a_miss_and_is_replaced(redis_server, plain):
    client = redis_server.client()
    client.rpush("cache:k", 1)
    f = cache_aside(store=plain, key="k", ttl=60)(lambda: "loaded")
    assert plain.get("k") is None
    assert plain.get_many(["k"]) == {}
    assert not plain.exists("k")
    assert plain.ttl("k") is None
    assert plain.keys() == []
    assert not plain.expire("k", 5)
    assert f.peek() is MISSING
    assert f() == f() == "loaded"
    assert f.stats().loads == 1
    client.delete("cache:k")
    client.rpush("cache:k", 1)
    assert plain.delete("k") is False
    assert client.type("cache:k") == b"none", "but what was there is gone"
    client.rpush("cache:k", 1)
    assert plain.increment("k") == 1
    client.delete("cache:k")
    client.rpush("cache:k", 1)
    plain.set("k", 5)
    assert plain.get("k") == 5


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"#memo1",
        b"#memo1 ",
        b"#memo1 ABCDEFGHIJKL",
        b"#memo1?ABCDEFGHIJKL a b - c\n1",
        b"#memo2 ABCDEFGHIJKL a b - c\n1",
        b"\x00\xff\x80",
        b"{",
        b'"cut',
    ],
)
def test_bytes_that_are_nobodys_are_a_miss_and_are_replaced(redis_server, plain, damage, caplog):
    client = redis_server.client()
    client.set("cache:k", damage)
    f = cache_aside(store=plain, key="k", ttl=60)(lambda: "loaded")
    assert plain.get("k") is None
    assert f.peek() is MISSING
    assert f() == f() == "loaded"
    assert f.stats().loads == 1
    assert plain.get("k") == "loaded"


@pytest.mark.parametrize("what", ["payload", "digest", "windows", "names", "stamps", "no line"])
def test_an_entry_that_is_damaged_is_a_miss_and_is_replaced(redis_server, plain, what):
    client = redis_server.client()
    f = cache_aside(store=plain, namespace="f", ttl=60)(lambda x: "loaded")
    f(1)
    line, _, payload = client.get("cache:f(1)").partition(b"\n")
    mark, entry_id, digest, stamps, windows, names = line.split(b" ", 5)
    parts = [mark, entry_id, digest, stamps, windows, names]
    at = {"digest": 2, "stamps": 3, "windows": 4, "names": 5}.get(what)
    if at is not None:
        parts[at] = b"x,y"
    end = b"" if what == "no line" else b"\n"
    client.set("cache:f(1)", b" ".join(parts) + end + (b"{damaged" if what == "payload" else payload), keepttl=True)
    assert f.peek(1) is MISSING
    assert plain.get("f(1)") is None
    assert f(1) == "loaded"
    assert f.stats().loads == 2
    assert f.peek(1) == "loaded"
    if what == "payload":
        assert plain.stats().errors["decoding"] >= 1


def test_a_result_with_windows_that_is_damaged_is_a_miss_and_is_replaced(redis_server, plain):
    client = redis_server.client()
    f = cache_aside(store=plain, namespace="f", ttl=60, stale_while_revalidate=60)(lambda x: "loaded")
    f(1)
    client.append("cache:f(1)", b"}")
    assert f.peek(1) is MISSING
    assert f(1) == f(1) == "loaded"
    assert f.stats().loads == 2
    assert plain.stats().errors["decoding"] >= 1


def test_the_entry_of_one_key_that_is_copied_to_another_is_not_served_there(redis_server, plain):
    """As if the answers to two questions were exchanged."""
    client = redis_server.client()
    f = cache_aside(store=plain, namespace="f", ttl=60)(lambda x: f"of {x}")
    assert f(1) == "of 1"
    client.set("cache:f(2)", client.get("cache:f(1)"))
    assert f(2) == "of 2"


def test_an_entry_that_bears_other_tags_than_its_function_has_now_is_a_miss(plain):
    """Else an invalidation of the new tag would not reach it."""
    old = cache_aside(store=plain, namespace="f", ttl=60)(lambda x: "old")
    new = cache_aside(store=plain, namespace="f", ttl=60, tags=("t",))(lambda x: "new")
    assert old(1) == "old"
    assert new(1) == "new"
    assert old(1) == "old"
    assert plain.stats().errors == {}, "it is the same function's"


def test_an_increment_beside_others_loses_nothing(redis_server, make):
    stores = [make(serializer="json") for _ in range(3)]

    def add(store):
        for _ in range(60):
            store.increment("n")

    threads = [threading.Thread(target=add, args=(store,)) for store in stores for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert stores[0].get("n") == 360
    assert redis_server.client().get("cache:n") == b"360"
