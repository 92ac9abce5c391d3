"""`load`: what was saved, whose time has gone on; a file that cannot be read changes nothing."""

from __future__ import annotations

import gc
import math
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

from memo import MISSING, MemoryStore, SnapshotError, cache_aside
from memo.keys import Shape
from memo.stores import snapshot
from memo.testing import ManualClock, check_memory_store


class TwoScales(ManualClock):
    """A wall clock that goes on while the process, and so the monotonic clock, is not there."""

    def __init__(self, start=1_000.0):
        super().__init__(start)
        self.wall = 1_700_000_000.0

    def advance(self, seconds):
        super().advance(seconds)
        self.wall += seconds

    def time(self):
        return self.wall


@pytest.fixture
def clock():
    return TwoScales()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.pickle"


def later(seconds):
    """Return the clock of another process, so much later."""
    clock = TwoScales(start=3.0)
    clock.wall += seconds
    return clock


def test_ttls_go_on_by_the_wall_clock(store, path):
    store.set("short", 1, 10)
    store.set("long", 2, 100)
    store.set("ever", 3)
    store.save(path)
    loaded = MemoryStore(clock=later(9.5))
    assert loaded.load(path) == 3
    assert [loaded.ttl(key) for key in ("short", "long", "ever")] == [0.5, 90.5, math.inf]
    loaded = MemoryStore(clock=later(10))
    assert loaded.load(path) == 2
    assert sorted(loaded.keys()) == ["ever", "long"]
    assert loaded.ttl("long") == 90
    assert len(loaded) == 2


def test_a_wall_clock_that_was_put_back_makes_lives_longer_by_no_more(store, path):
    store.set("a", 1, 10)
    store.save(path)
    loaded = MemoryStore(clock=later(-5))
    loaded.load(path)
    assert loaded.ttl("a") == 15


def test_loading_replaces_everything(store, path, clock):
    load = cache_aside(store=store, namespace="load", tags=("t",))(lambda x: x)
    store.set("saved", 1)
    load(1)
    store.save(path)
    store.set("later", 1)
    load(2)
    store.delete("saved")
    assert store.load(path) == 2
    assert sorted(store.keys()) == ["load(1)", "saved"]
    assert load.peek(1) == 1
    assert load.peek(2) is MISSING
    store.invalidate_tags("t")
    assert store.keys() == ["saved"]
    check_memory_store(store)


def test_statistics_are_those_of_the_file(store, path):
    load = cache_aside(store=store, namespace="load")(lambda x: x)
    load(1)
    load(1)
    store.get("x")
    saved = store.stats()
    store.save(path)
    for _ in range(5):
        load(1)
        store.set("a", 1)
        store.delete("a")
    store.load(path)
    assert store.stats() == saved
    load(1)
    assert store.stats().hits == saved.hits + 1


def test_loading_twice_is_loading_once(store, path):
    cache_aside(store=store, namespace="load")(lambda x: x)(1)
    store.save(path)
    loaded = MemoryStore()
    assert loaded.load(path) == loaded.load(path) == 1
    assert loaded.keys() == ["load(1)"]
    check_memory_store(loaded)


def test_a_smaller_store_keeps_what_was_used_last(store, path, clock):
    store.set_many({"a": 1, "b": 2, "c": 3})
    store.get("a")
    store.save(path)
    small = MemoryStore(max_size=2, clock=clock)
    small.load(path)
    assert sorted(small.keys()) == ["a", "c"]
    check_memory_store(small)


def test_no_load_that_began_before_fills_afterwards(store, path):
    during = []
    load = cache_aside(store=store, namespace="load")(lambda x: [each() for each in during] and x)
    store.save(path)
    during.append(lambda: store.load(path))
    load(1)
    assert load.peek(1) is MISSING


# -- decorated functions ---------------------------------------------------------------------------------------------


def test_a_function_that_comes_after_the_load_finds_its_entries(store, path, clock):
    def get(x, *, flag=False):
        return x

    cache_aside(store=store, namespace="get", ttl=10, tags=("t:{x}",))(get)(1)
    store.save(path)
    loaded = MemoryStore(clock=clock)
    loaded.load(path)
    assert loaded.keys() == ["get(1,flag=False)"]
    again = cache_aside(store=loaded, namespace="get", tags=("t:{x}",))(
        lambda x, *, flag=False: pytest.fail("it loads")
    )
    assert again(1) == 1
    assert again.ttl_left(1) == 10
    loaded.invalidate_tags("t:1")
    assert again.peek(1) is MISSING
    check_memory_store(loaded)


def test_a_key_template_finds_its_entries_too(store, path):
    cache_aside(store=store, namespace="get", key="user:{x}")(lambda x: x)(1)
    store.save(path)
    loaded = MemoryStore()
    loaded.load(path)
    again = cache_aside(store=loaded, namespace="get", key="user:{x}")(lambda x: pytest.fail("it loads"))
    assert again(1) == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda store: cache_aside(store=store, namespace="get")(lambda x, y=1: "new"),
        lambda store: cache_aside(store=store, namespace="get")(lambda *x: "new"),
        lambda store: cache_aside(store=store, namespace="get")(lambda *, x: "new"),
        lambda store: cache_aside(store=store, namespace="get", key="{x}")(lambda x: "new"),
        lambda store: cache_aside(store=store, namespace="get", version=2)(lambda x: "new"),
        lambda store: cache_aside(store=store, namespace="got")(lambda x: "new"),
    ],
    ids=["a parameter more", "variadic", "keyword only", "a template", "a version", "another name"],
)
def test_a_function_that_has_changed_does_not_adopt_them(store, path, changed):
    cache_aside(store=store, namespace="get")(lambda x: "old")(1)
    store.save(path)
    loaded = MemoryStore()
    loaded.load(path)
    again = changed(loaded)
    try:
        assert again(1) == "new"
    except TypeError:
        assert again(x=1) == "new"
    check_memory_store(loaded)


def test_a_second_function_of_the_same_name_does_not_adopt_them(store, path):
    cache_aside(store=store, namespace="get")(lambda x: "old")(1)
    store.save(path)
    loaded = MemoryStore()
    loaded.load(path)
    one = cache_aside(store=loaded, namespace="get")(lambda x: "one")
    two = cache_aside(store=loaded, namespace="get")(lambda x: "two")
    assert one(1) == "old"
    assert two(1) == "two"


def test_a_function_of_a_changed_signature_that_is_there_already_keeps_out_of_it(store, path):
    cache_aside(store=store, namespace="get")(lambda x: "old")(1)
    store.save(path)
    loaded = MemoryStore()
    changed = cache_aside(store=loaded, namespace="get")(lambda x, y=1: "new")
    changed(5)
    assert loaded.load(path) == 1
    assert changed.peek(1) is MISSING
    assert changed(1) == "new"
    same = cache_aside(store=loaded, namespace="get")(lambda x: "same")
    assert same(1) == "old"
    check_memory_store(loaded)


def test_a_dead_functions_entries_go_with_it_and_a_loaded_ones_stay(store, path):
    function = cache_aside(store=store, namespace="get")(lambda x: "old")
    function(1)
    store.save(path)
    del function
    gc.collect()
    store.load(path)
    assert store.keys() == ["get(1)"]
    again = cache_aside(store=store, namespace="get")(lambda x: "new")
    assert again(1) in ("old", "new")
    check_memory_store(store)


PROGRAM = """
    import sys
    from dataclasses import dataclass
    from memo import MISSING, MemoryStore, cache_aside

    store = MemoryStore()
    loads = []

    @dataclass(frozen=True)
    class Id:
        number: int

        @cache_aside(store=store)
        def method(self, x):
            loads.append("method")
            return (self.number, x)

    class Thing:
        @cache_aside(store=store)
        def method(self, x):
            return x

        @cache_aside(store=store)
        @staticmethod
        def static(x):
            loads.append("static")
            return x

    @cache_aside(store=store, ttl=3600, tags=("number:{x}",))
    def get(x, *rest, flag=False):
        loads.append("get")
        return {"x": x}

    @cache_aside(store=store, key="user:{x}")
    def keyed(x):
        loads.append("keyed")
        return [x]

    @cache_aside(store=store)
    async def awaited(x):
        loads.append("awaited")
        return x

    anonymous = cache_aside(store=store)(lambda x: x)

    def main(path, load):
        import asyncio
        if load:
            print(store.load(path))
        print(get(1), get("a", 2.5, None, flag=True), get((1, "b")), keyed("k"), asyncio.run(awaited(1)))
        print(Id(1).method(2), Thing.static(b"s"))
        if load:
            print(anonymous(1), Thing().method(1))
            print(loads, get.ttl_left(1) > 3500, get.ttl_left(1) <= 3600)
            store.invalidate_tags("number:1")
            print(get.peek(1), sorted(store.keys(), key=len)[0])
        else:
            anonymous(1), Thing().method(1)
            print(store.save(path))
"""


def test_a_new_process_finds_what_another_saved(path, tmp_path):
    """Under another seed of hashes, and with the functions found by nothing but their names."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(load, seed):
        done = subprocess.run(
            [sys.executable, "-c", f"import program; program.main({str(path)!r}, {load})"],
            env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    calls = ["{'x': 1} {'x': 'a'} {'x': (1, 'b')} ['k'] 1", "(1, 2) b's'"]
    assert run(False, "1") == [*calls, "7"]
    assert run(True, "2") == ["7", *calls, "1 1", "[] True True", "MISSING user:k"]


# -- failures: the store stays as it was -----------------------------------------------------------------------------


@pytest.fixture
def filled(store):
    load = cache_aside(store=store, namespace="load", tags=("t",))(lambda x: x)
    load(1)
    store.set("a", [1], 10)
    store.get("a")
    return store, load


def assert_unchanged(filled, path):
    store, load = filled
    before = store.stats(), [(entry.key, entry.value, entry.fresh_until) for entry in store._shelf.order]
    with pytest.raises(SnapshotError, match="the store is as it was"):
        store.load(path)
    assert (store.stats(), [(entry.key, entry.value, entry.fresh_until) for entry in store._shelf.order]) == before
    assert load.peek(1) == 1
    check_memory_store(store)


def test_a_file_that_is_not_there(filled, path):
    assert_unchanged(filled, path)


def test_a_folder(filled, tmp_path):
    assert_unchanged(filled, tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "Input/output error"), MemoryError()])
def test_a_file_that_cannot_be_read(filled, path, monkeypatch, error):
    filled[0].save(path)

    def fail(self):
        raise error

    monkeypatch.setattr(type(path), "read_bytes", fail)
    assert_unchanged(filled, path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"memo snapshot 1",
        b"memo snapshot 2\n",
        b"not ours at all",
        pickle.dumps({"a": 1}),
        b"SQLite format 3\x00" + b"\x00" * 100,
    ],
)
def test_a_foreign_file(filled, path, content):
    path.write_bytes(content)
    assert_unchanged(filled, path)
    assert path.read_bytes() == content


def test_a_file_cut_off_at_any_byte(filled, path):
    filled[0].save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert_unchanged(filled, path)


def test_a_file_with_more_behind_it(filled, path):
    filled[0].save(path)
    path.write_bytes(path.read_bytes() + b"\x00")
    assert_unchanged(filled, path)


def test_a_file_with_any_bit_flipped(filled, path):
    """A damaged pickle may well be another valid one, with wrong values or a memory of gigabytes."""
    filled[0].save(path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert_unchanged(filled, path)


GOOD = dict.fromkeys(snapshot.COUNTS, 0)


@pytest.mark.parametrize(
    "content",
    [
        None,
        ([], {}),
        ([], {}, {}),
        ([], {}, {**GOOD, "hits": "many"}),
        ([("too", "short")], {}, GOOD),
        ([(None, ["unhashable"], 1, None, ())], {}, GOOD),
        ([("f", "key", 1, None, ())], {}, GOOD),
        ([(None, "key", 1, "soon", ())], {}, GOOD),
        ([(None, "key", 1, None, ["a", "b"])], {}, GOOD),
        ([(None, "key", 1, None, (["unhashable"],))], {}, GOOD),
        ([(None, ("not", "text"), 1, None, ())], {}, GOOD),
        ([("f", (int, 1, str), 1, None, ())], {"f": (("",), False)}, GOOD),
        ([("f", 7, 1, None, ())], {"f": (("", ""), False)}, GOOD),
        ([("f", 7, 1, None, ())], {"f": (("*",), False)}, GOOD),
        ([("f", True, 1, None, ())], {"f": (("",), False)}, GOOD),
        ([("f", [7], 1, None, ())], {"f": (("",), False)}, GOOD),
        ([(None, "key", 1, None, (), (1.0, 1.0, 1.0))], {}, GOOD),
        ([(None, "key", 1, 5.0, (), (1.0, 1.0))], {}, GOOD),
        ([(None, "key", 1, 5.0, (), (1, 1.0, 1.0))], {}, GOOD),
        ([(None, "key", 1, 5.0, (), (1.0, -1.0, 1.0))], {}, GOOD),
        ([(None, "key", 1, 5.0, (), (math.nan, math.nan, math.nan))], {}, GOOD),
        ([], {"f": "no parts"}, GOOD),
        ([], {"f": (None, False)}, GOOD),
    ],
    ids=repr,
)
def test_a_file_with_a_valid_pickle_of_something_else(filled, path, content):
    path.write_bytes(snapshot.framed(pickle.dumps(content)))
    assert_unchanged(filled, path)


def test_a_file_that_names_a_class_that_is_gone(filled, path):
    rows = [(None, "key", 1, None, ())]
    data = pickle.dumps((rows, {}, {**GOOD}), protocol=4).replace(b"key", b"kex")
    path.write_bytes(snapshot.framed(data.replace(b"K\x01", b"cgone\nmissing\n")))
    assert_unchanged(filled, path)


def test_a_value_whose_unpickling_raises(filled, path):
    path.write_bytes(snapshot.framed(pickle.dumps(([(None, "a", Raising(), None, ())], {}, GOOD))))
    assert_unchanged(filled, path)


class Raising:
    def __reduce__(self):
        return divmod, (1, 0)


def test_a_good_file_of_this_format_is_read(filled, path):
    """What the broken ones above are broken versions of."""
    rows = [(None, "key", 1, None, ("t",)), ("f", 7, 2, None, ()), ("f", "f([7])", 3, None, ())]
    path.write_bytes(snapshot.framed(pickle.dumps((rows, {"f": (("",), False)}, GOOD))))
    store, _ = filled
    assert store.load(path) == 3
    assert sorted(store.keys()) == ["f(7)", "f([7])", "key"]
    function = cache_aside(store=store, namespace="f")(lambda x: pytest.fail("it loads"))
    assert function(7) == 2
    assert function([7]) == 3
    assert Shape("f", ("",)).text((int, 7)) == "f(7)"
    check_memory_store(store)


def test_a_smaller_store_keeps_the_most_recently_used_ones_and_says_how_many(path):
    store = MemoryStore(cleanup_interval=None)
    for x in range(5):
        store.set(f"k{x}", x)
    store.save(path)
    smaller = MemoryStore(max_size=2, cleanup_interval=None)
    assert smaller.load(path) == 2
    assert sorted(smaller.keys()) == ["k3", "k4"]
