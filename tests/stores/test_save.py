"""`save`: one pickle file, whole or not at all, for its owner only."""

from __future__ import annotations

import math
import os
import pickle
import stat
import tempfile
import threading

import pytest

from memo import MemoryStore, SnapshotError, StoreError, cache_aside
from memo.stores import snapshot
from memo.testing import ManualClock, check_memory_store


class TwoScales(ManualClock):
    """A wall clock that is not the monotonic one."""

    def time(self):
        return 1_700_000_000.0 + self.now


@pytest.fixture
def clock():
    return TwoScales(start=1_000.0)


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock, cleanup_interval=None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.pickle"


def fresh(path, clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    store.load(path)
    return store


def entries(store):
    return {key: (store.get(key), store.ttl(key)) for key in store.keys()}  # noqa: SIM118 - a store is no dict


def test_what_is_saved_is_loaded(store, path, clock):
    values = {"none": None, "zero": 0, "text": "é\udc80", "bytes": b"\x00", "nested": {"a": [(1, {2})]}, "": False}
    store.set_many(values)
    store.set("short", 1, 10)
    assert store.save(path) == 7
    loaded = fresh(path, clock)
    assert loaded.get_many(values) == values
    assert loaded.ttl("short") == 10
    assert loaded.ttl("none") == math.inf


def test_the_path_may_be_text_or_a_path(store, path):
    store.save(path)
    store.save(str(path))
    store.save(os.fsencode(path).decode())
    assert store.load(str(path)) == 0


def test_an_empty_store_can_be_saved(store, path, clock):
    assert store.save(path) == 0
    assert len(fresh(path, clock)) == 0


def test_the_order_of_use_is_saved(clock, path):
    store = MemoryStore(max_size=3, clock=clock)
    store.set_many({"a": 1, "b": 2, "c": 3})
    store.get("a")
    store.save(path)
    loaded = MemoryStore(max_size=3, clock=clock)
    loaded.load(path)
    loaded.set("d", 4)
    assert sorted(loaded.keys()) == ["a", "c", "d"]


def test_expired_entries_are_not_saved(store, path, clock):
    store.set("over", 1, 1)
    store.set("there", 1, 1.5)
    clock.advance(1)
    assert store.save(path) == 1
    clock.advance(-1)
    assert list(entries(fresh(path, clock))) == ["there"]


def test_saving_changes_nothing_in_the_store(store, path, clock):
    store.set("a", 1, 1)
    store.set("b", 2)
    clock.advance(1)
    before = store.stats()
    store.save(path)
    assert store.stats() == before
    assert len(store) == 2


def test_statistics_are_saved(store, path, clock):
    load = cache_aside(store=store)(lambda x: x)
    store.set("a", 1, 1)
    store.get("a")
    store.get("x")
    store.delete("a")
    store.set("b", 1, 1)
    clock.advance(1)
    store.get("b")
    load(1)
    load(1)
    before = store.stats()
    store.save(path)
    loaded = fresh(path, clock).stats()
    for name in "hits", "misses", "sets", "deletes", "evictions", "expirations":
        assert getattr(loaded, name) == getattr(before, name), name


def test_tags_are_saved(store, path, clock):
    load = cache_aside(store=store, namespace="tagged", tags=("all", "x:{x}"))(lambda x: x)
    load(1)
    load(2)
    store.save(path)
    loaded = fresh(path, clock)
    loaded.invalidate_tags("x:1")
    assert loaded.keys() == ["tagged(2)"]
    loaded.invalidate_tags("all")
    assert loaded.keys() == []
    check_memory_store(loaded)


def test_entries_that_nothing_names_elsewhere_are_not_saved(store, path, clock):
    class Thing:
        @cache_aside(store=store)
        def method(self, x):
            return x

    variable = 1

    @cache_aside(store=store)
    def closure(x):
        return variable

    anonymous = cache_aside(store=store)(lambda x: x)
    twins = [cache_aside(store=store, namespace="twin")(lambda x: x) for _ in range(2)]
    named = cache_aside(store=store, namespace="named")(lambda x: x)
    thing = Thing()
    thing.method(1)
    for function in closure, anonymous, *twins, named:
        function(1)
    store.set("plain", 1)
    assert len(store) == 7
    assert store.save(path) == 2
    assert sorted(fresh(path, clock).keys()) == ["named(1)", "plain"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_file_is_its_owners_only_whatever_the_umask(store, path, umask):
    old = os.umask(umask)
    try:
        store.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o666)
        store.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_the_umask_is_not_touched(store, path, monkeypatch):
    """It belongs to the process: changing it for a moment races with every other thread that creates a file."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    store.save(path)


def test_a_link_is_replaced_and_not_followed(store, path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    store.save(path)
    assert victim.read_text() == "precious"
    assert not path.is_symlink()


def test_nothing_but_the_file_is_left(store, path, tmp_path):
    store.save(path)
    store.save(path)
    assert os.listdir(tmp_path) == [path.name]


# -- failures: the file stays as it was, and nothing is left beside it -----------------------------------------------


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not this one")


@pytest.mark.parametrize("value", [lambda: 1, threading.Lock(), Unpicklable(), (each for each in ())], ids=repr)
def test_a_value_that_cannot_be_pickled(store, path, tmp_path, value):
    store.set("a", 1)
    store.save(path)
    before = path.read_bytes()
    store.set("b", value)
    with pytest.raises(SnapshotError, match="could not save"):
        store.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    assert store.get("a") == 1
    assert store.get("b") is value


def test_a_value_that_is_nested_too_deeply(store, path):
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    store.set("a", deep)
    with pytest.raises(SnapshotError, match="RecursionError"):
        store.save(path)
    assert not path.exists()
    while deep:
        deep = deep.pop()


def test_a_folder_that_is_not_there(store, tmp_path):
    with pytest.raises(SnapshotError, match="could not save"):
        store.save(tmp_path / "missing" / "file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["a folder", "a file in the place of a folder", "a name with a NUL", "a long name"])
def test_a_target_that_cannot_be_written(store, tmp_path, target):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").touch()
    bad = {
        "a folder": tmp_path / "folder",
        "a file in the place of a folder": tmp_path / "file" / "x",
        "a name with a NUL": tmp_path / "a\0b",
        "a long name": tmp_path / ("n" * 1_000),
    }[target]
    with pytest.raises(SnapshotError, match="the file is as it was"):
        store.save(bad)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == ["inner"]


def test_the_error_is_a_store_error_that_names_file_and_cause(store, tmp_path):
    with pytest.raises(StoreError) as caught:
        store.save(tmp_path / "missing" / "file")
    assert "missing" in str(caught.value)
    assert "FileNotFoundError" in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "denied"), MemoryError()]
)
@pytest.mark.parametrize("step", ["pickle.dumps", "tempfile.mkstemp", "os.fdopen", "os.fsync", "os.replace"], ids=str)
def test_a_failure_at_any_step_leaves_the_file_as_it_was(store, path, tmp_path, monkeypatch, step, error):
    store.set("a", "old")
    store.save(path)
    before = path.read_bytes()
    store.set("a", "new")
    module, name = step.split(".")
    modules = {"pickle": pickle, "tempfile": tempfile, "os": os}
    descriptors = []

    def fail(*args, **kwargs):
        if name == "fdopen":
            descriptors.append(args[0])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(modules[module], name, fail)
        with pytest.raises(SnapshotError, match=type(error).__name__):
            store.save(path)
    for descriptor in descriptors:
        os.close(descriptor)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    assert store.get("a") == "new"
    check_memory_store(store)


@pytest.mark.parametrize("step", ["write", "flush", "close"])
def test_a_disk_that_fills_up_leaves_the_file_as_it_was(store, path, tmp_path, monkeypatch, step):
    store.save(path)
    before = path.read_bytes()
    real = os.fdopen

    class Full:
        def __init__(self, descriptor, mode):
            self.file = real(descriptor, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()
            if step == "close" and error[0] is None:
                raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            if name == step:
                raise OSError(28, "No space left on device")
            return getattr(self.file, name)

    monkeypatch.setattr(os, "fdopen", Full)
    store.set("a", 1)
    with pytest.raises(SnapshotError, match="No space"):
        store.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_an_interruption_leaves_the_file_as_it_was(store, path, tmp_path, monkeypatch):
    store.save(path)
    before = path.read_bytes()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    store.set("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_that_cannot_be_synced_is_no_failure(store, path, monkeypatch):
    real = os.open

    def refuse(target, flags, *mode):
        if target == path.parent:
            raise OSError(22, "Invalid argument")
        return real(target, flags, *mode)

    monkeypatch.setattr(snapshot.os, "open", refuse)
    store.set("a", 1)
    assert store.save(path) == 1
    assert store.load(path) == 1
