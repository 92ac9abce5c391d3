"""Whatever the system does to the file store: reads raise nothing, sets fail open, invalidations fail loud."""

from __future__ import annotations

import asyncio
import errno
import faulthandler
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import traceback

import pytest

from memo import PickleFileStore, StoreError, cache_aside
from memo.stores import access, compaction, entries, file, logfile

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
ROOT = os.geteuid() == 0
PATIENCE = 20
LARGE = bytes(100_000)


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def pauses(monkeypatch):
    """What an operation would have waited for the lock; nothing waits."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def is_free(path):
    """Whether nobody holds the file's lock: a descriptor of its own is another's, in the same process too."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def opened(folder):
    """How many descriptors of this process lead into a folder."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/")
        except FileNotFoundError:
            continue
    return count


def in_child(function):
    """Perform something in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc()[-60_000:].encode())
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    text = os.read(reader, 65_536).decode()
    os.close(reader)
    assert status == 0, text


# -- each system call of each operation fails -------------------------------------------------------------------------

CALLS = {
    "os": ("open", "fstat", "lstat", "pread", "preadv", "write", "writev", "pwrite", "ftruncate", "fchmod", "fsync",
           "rename", "unlink", "close"),
    "fcntl": ("flock",),
}  # fmt: skip
SHORT = "short"
ERRORS = [errno.EIO, errno.ENOSPC, SHORT, MemoryError]
OTHERS = [
    errno.EINTR,
    errno.EMFILE,
    errno.ENOMEM,
]  # which end as EIO does; the quick run tries them on what matters most


class Faults:
    """Lets the k-th system call fail, and those after it if for ever, of what memo does while it is armed."""

    def __init__(self):
        self.armed, self.calls = False, []
        self.at, self.error, self.forever, self.only = 0, errno.EIO, False, None

    def arm(self, at, error, forever, only=None):
        self.at, self.error, self.forever, self.only = at, error, forever, only
        self.armed, self.calls = True, []

    def reached(self):
        return len(self.calls) >= self.at

    def strikes(self, name):
        if not self.armed or (self.only is not None and name not in self.only):
            return False
        if self.error is SHORT and name not in ("write", "writev"):
            return False
        if self.error is MemoryError and name not in ("pread", "preadv", "write", "writev", "lstat"):
            return False
        self.calls.append(name)
        return len(self.calls) >= self.at if self.forever else len(self.calls) == self.at


class Struck:
    """A module some functions of which fail."""

    def __init__(self, module, faults):
        self._module, self._faults = module, faults

    def __getattr__(self, name):
        real, faults = getattr(self._module, name), self._faults
        if name not in CALLS[self._module.__name__]:
            return real

        def call(*args, **kwargs):
            if not faults.strikes(name):
                return real(*args, **kwargs)
            if faults.error is SHORT:
                data = args[1] if name == "write" else b"".join(args[1])
                return os.write(args[0], bytes(data)[: len(data) // 2])
            if name == "close":
                real(*args)  # as Linux does: it is closed all the same
            if faults.error is MemoryError:
                raise MemoryError
            raise OSError(faults.error, os.strerror(faults.error))

        return call


@pytest.fixture
def faults(monkeypatch):
    faults = Faults()
    for module in logfile, access, compaction:
        monkeypatch.setattr(module, "os", Struck(os, faults))
    monkeypatch.setattr(logfile, "fcntl", Struck(fcntl, faults))
    yield faults
    faults.armed = False


class World:
    """A store with something in it, and another one on the same file that has just written."""

    def __init__(self, folder):
        self.path = folder / "cache.memo"
        self.made = []
        self.store = self.make(max_size=20)
        self.store.set_many({"a": "old", "n": 7, "large": LARGE, "kept": "kept"})
        self.f = cache_aside(store=self.store, namespace="f", tags=("t",))(lambda x: ["loaded", x])
        self.f(1)
        self.other = self.make()
        self.other.set("b", "of another")

    def make(self, path=None, **options):
        self.made.append(PickleFileStore(path or self.path, timeout=0.01, **options))
        return self.made[-1]

    def close(self):
        for store in self.made:
            store.close()


def reopening(operation):
    def work(w):
        w.store.close()
        return operation(w)

    return work


def replaced(operation):
    def work(w):
        w.other.compact()
        return operation(w)

    return work


READS = {
    "get": (lambda w: w.store.get("a"), ["old"]),
    "get of another's": (lambda w: w.store.get("b"), ["of another"]),
    "get of a large value": (lambda w: w.store.get("large"), [LARGE]),
    "get_many": (lambda w: w.store.get_many(["a"]).get("a"), ["old"]),
    "exists": (lambda w: w.store.exists("a"), [True, False]),
    "ttl": (lambda w: w.store.ttl("a"), [float("inf")]),
    "keys": (lambda w: sorted(w.store.keys("a")), [["a"], []]),
    "stats": (lambda w: w.store.stats().hits, [0]),
    "cleanup": (lambda w: w.store.cleanup(), [0]),
    "open": (lambda w: w.make().get("a"), ["old"]),
    "open a new one": (lambda w: w.make(w.path.with_name("new")).get("a"), []),
    "get, reopening": (reopening(lambda w: w.store.get("a")), ["old"]),
    "a hit": (lambda w: w.f(1), [["loaded", 1]]),
    "a miss": (lambda w: w.f(2), [["loaded", 2]]),
    "a miss, reopening": (reopening(lambda w: w.f(2)), [["loaded", 2]]),
    "refresh": (lambda w: w.f.refresh(1), [["loaded", 1]]),
}
SETS = {
    "set": lambda w: w.store.set("a", "new"),
    "set of a large value": lambda w: w.store.set("a", LARGE),
    "set_many": lambda w: w.store.set_many({"a": "new", "c": 3}),
    "set that evicts": lambda w: w.store.set_many({"a": "new", **{f"more {n}": n for n in range(16)}}),
    "set, reopening": reopening(lambda w: w.store.set("a", "new")),
}
LOUD = {
    "delete": lambda w: w.store.delete("a"),
    "delete_many": lambda w: w.store.delete_many(["a", "absent"]),
    "delete, reopening": reopening(lambda w: w.store.delete("a")),
    "delete_pattern": lambda w: w.store.delete_pattern("a*"),
    "clear": lambda w: w.store.clear(),
    "invalidate": lambda w: (w.f.invalidate(1), w.store.delete("a")),
    "invalidate_all": lambda w: (w.f.invalidate_all(), w.store.delete("a")),
    "invalidate_tags": lambda w: (w.store.invalidate_tags("t"), w.store.delete("a")),
}


def struck(world, faults, operation, at, error, forever):
    """Perform an operation with its k-th call failing; return its answer and its error."""
    faults.arm(at, error, forever)
    try:
        return operation(world), None
    except Exception as raised:
        return None, raised
    finally:
        faults.armed = False


def all_points(tmp_path, faults, operation, error, forever):
    """Yield a world for each call of an operation, after that one has failed, with what came of it."""
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        world = World(folder)
        answer, raised = struck(world, faults, operation, at, error, forever)
        if not faults.reached():
            assert raised is None
            world.close()
            break
        yield world, answer, raised
        healthy(world)
        shutil.rmtree(folder)
    assert at > 1 or error in (SHORT, MemoryError)


def healthy(world):
    """Assert that nothing is left of a fault that is gone: no lock, no descriptor, no damage, no value lost."""
    path, store = world.path, world.store
    assert is_free(path)
    folder = path.parent
    store.set("again", 1)
    assert store.get("again") == 1
    assert store.stats().errors.keys() <= {"open", "get", "set", "exists", "ttl", "keys", "compact"}
    fresh = world.make()
    assert fresh.get("again") == 1
    if world.other.exists("kept"):
        assert fresh.get("kept") == store.get("kept") == "kept"
    for key in "a", "b", "n", "large":
        assert store.get(key) in (None, fresh.get(key))
    for each in store, fresh, world.other:
        counted = each.stats()
        assert (counted.damaged, counted.corrupt) == (0, 0)
    assert fresh.compact()
    assert store.delete("again")
    assert not (folder / ".cache.memo.compact").exists()
    assert opened(folder) <= len(world.made)
    world.close()
    assert opened(folder) == 0
    assert fresh.get("again") is None
    fresh.close()


def name_of(error):
    return errno.errorcode.get(error, getattr(error, "__name__", error))


each_error = pytest.mark.parametrize("error", ERRORS + OTHERS * NIGHTLY, ids=name_of)
once_or_ever = pytest.mark.parametrize("forever", [False, True], ids=["once", "for ever"])


@each_error
@once_or_ever
@pytest.mark.parametrize("name", READS)
def test_a_read_raises_nothing_whichever_call_fails(tmp_path, faults, pauses, name, error, forever):
    operation, right = READS[name]
    for world, answer, raised in all_points(tmp_path, faults, operation, error, forever):
        assert raised is None
        assert answer is None or answer in right
        assert world.other.get_many(["kept", "a", "n"]) == {"kept": "kept", "a": "old", "n": 7}


@each_error
@once_or_ever
@pytest.mark.parametrize("name", SETS)
def test_a_set_fails_open_whichever_call_fails(tmp_path, faults, pauses, name, error, forever):
    for world, _, raised in all_points(tmp_path, faults, SETS[name], error, forever):
        assert raised is None
        new = LARGE if "large" in name else "new"
        failed = world.store.stats().errors.get("set", 0)
        assert failed <= 1
        there = world.other.get("a")
        if failed:
            assert there in ("old", new)
        else:
            assert there == world.store.get("a") == new
        assert world.store.get("a") in (None, there)
        assert world.other.get("kept") == "kept"


@each_error
@once_or_ever
@pytest.mark.parametrize("name", LOUD)
def test_an_invalidation_fails_loud_whichever_call_fails(tmp_path, faults, pauses, name, error, forever):
    for world, _, raised in all_points(tmp_path, faults, LOUD[name], error, forever):
        if raised is None:
            assert world.other.get("a") is None
            assert world.store.get("a") is None
        else:
            assert type(raised) is StoreError, raised
            assert str(world.path) in str(raised)
        assert name == "clear" or world.other.get("kept") == "kept"


@each_error
@once_or_ever
def test_an_increment_is_done_or_raised_whichever_call_fails(tmp_path, faults, pauses, error, forever):
    for world, answer, raised in all_points(tmp_path, faults, lambda w: w.store.increment("n"), error, forever):
        there = world.other.get("n")
        assert (there == answer == 8) if raised is None else (type(raised) is StoreError and there in (7, 8))


@pytest.mark.parametrize("error", OTHERS, ids=name_of)
@once_or_ever
def test_each_error_of_the_system_is_the_same(tmp_path, faults, pauses, error, forever):
    for name, operation in ("get", READS["get, reopening"][0]), ("set", SETS["set"]), ("delete", LOUD["delete"]):
        folder = tmp_path / name
        folder.mkdir()
        for _, answer, raised in all_points(folder, faults, operation, error, forever):
            assert name == "delete" or raised is None
            assert raised is None or type(raised) is StoreError
            assert answer in (None, "old", True)


@each_error
@once_or_ever
def test_a_compaction_leaves_the_old_file_or_the_new_whichever_call_fails(tmp_path, faults, pauses, error, forever):
    inodes = set()
    for world, answer, raised in all_points(tmp_path, faults, lambda w: w.store.compact(), error, forever):
        assert answer in (None, True, False)
        assert raised is None or type(raised) is StoreError
        inodes.add((answer, raised is None))
        everything = {"kept": "kept", "a": "old", "b": "of another", "n": 7, "large": LARGE}
        assert world.other.get_many(everything) == world.make().get_many(everything) == everything
        assert world.store.get_many(everything) == everything
        assert world.f.peek(1) == ["loaded", 1]
    assert inodes


@once_or_ever
def test_a_file_whose_sync_has_failed_never_takes_the_place_of_the_old_one(tmp_path, faults, forever):
    """What the system has not written, a second try would not say: the copy is given up."""
    world = World(tmp_path)
    before = os.stat(world.path).st_ino
    faults.arm(1, errno.EIO, forever, only=("fsync",))
    with pytest.raises(StoreError, match="Input/output error"):
        world.store.compact()
    faults.armed = False
    assert os.stat(world.path).st_ino == before
    assert [each.name for each in tmp_path.iterdir()] == ["cache.memo"]
    assert world.store.get("a") == "old"
    healthy(world)


def test_a_folder_that_cannot_be_synced_undoes_nothing(tmp_path, faults):
    world = World(tmp_path)
    faults.arm(2, errno.EIO, True, only=("fsync",))
    assert world.store.compact()
    faults.armed = False
    healthy(world)


def test_a_compaction_in_the_background_that_fails_is_counted_and_logged_and_tried_again_later(
    tmp_path, faults, monkeypatch, caplog
):
    monkeypatch.setattr(compaction, "SMALLEST", 100)
    store = PickleFileStore(tmp_path / "cache.memo")
    faults.arm(1, errno.ENOSPC, True, only=("fsync",))
    for number in range(50):
        store.set("a", number)
        if (thread := store._compaction._thread) is not None:
            thread.join(PATIENCE)
    assert store.stats().errors["compact"] >= 1
    assert len([line for line in caplog.messages if "compact failed" in line]) == 1
    assert store.get("a") == 49
    faults.armed = False
    for number in range(500):
        store.set("a", number)
        if (thread := store._compaction._thread) is not None:
            thread.join(PATIENCE)
    assert store.stats().compactions > 0
    assert store.get("a") == 499
    store.close()


# -- disks that are full ----------------------------------------------------------------------------------------------


def fill_up(path, make_room):
    """Set until there is no room, and go on once there is: what was acknowledged is there, whoever looks."""
    store, there, turn = PickleFileStore(path, timeout=0.01), {}, 0
    while not store.stats().errors.get("set") and turn < 1_000:
        turn += 1
        store.set(f"key {turn}", bytes([turn % 256]) * (300 * (turn % 7) + 1))
        if not store.stats().errors.get("set"):
            there[f"key {turn}"] = bytes([turn % 256]) * (300 * (turn % 7) + 1)
    assert store.stats().errors == {"set": 1}
    assert len(there) > 20
    for _ in range(50):  # again and again
        store.set("one more", bytes(5_000))
        assert store.get("one more") is None
    fresh = PickleFileStore(path)
    for each in store, fresh:
        assert each.get_many(there) == there
    failed = 0
    for key in [f"key {number}" for number in range(1, 40)]:
        try:
            store.delete(key)
            del there[key]
        except StoreError:
            failed += 1
    assert failed > 0
    f = cache_aside(store=store, namespace="f")(lambda x: bytes(5_000))
    assert len(f(1)) == len(f(1)) == 5_000
    assert f.stats().errors == {"fill": 2}
    make_room()
    store.set("one more", bytes(5_000))
    assert store.get("one more") == fresh.get("one more") == bytes(5_000)
    for key in list(there)[:10]:
        assert store.delete(key)
        del there[key]
    for each in store, fresh, PickleFileStore(path):
        assert each.get_many(there) == there
        assert (each.stats().damaged, each.stats().corrupt) == (0, 0)
    try:
        store.compact()
    except StoreError:  # there may be no room for two files
        assert not (path.parent / ".cache.memo.compact").exists()
    assert store.get_many(there) == there
    store.close(), fresh.close()


def test_a_limit_on_a_files_size_cuts_a_write_short_and_nothing_acknowledged_is_lost(tmp_path):
    def work():
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, most))
        fill_up(tmp_path / "cache.memo", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))

    in_child(work)


def mounted(folder):
    return (
        ROOT
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
        ).returncode
    )


def test_a_disk_that_is_full_loses_nothing_acknowledged(tmp_path):
    """A real one of 64 KB, where one may be mounted; else one of which the system says so at 40 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if mounted(folder):
        try:
            filler = folder / "filler"
            filler.write_bytes(bytes(24_000))
            in_child(lambda: fill_up(folder / "cache.memo", filler.unlink))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    else:
        test_a_limit_on_a_files_size_cuts_a_write_short_and_nothing_acknowledged_is_lost(folder)


def test_a_device_that_is_full(tmp_path, monkeypatch):
    """Its own answer, to what is written and to what is to be synced."""
    world = World(tmp_path)
    full, real = os.open("/dev/full", os.O_WRONLY), os.writev
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda descriptor, pieces: real(full, pieces))
        world.store.set("a", "new")
        with pytest.raises(StoreError, match="No space left on device"):
            world.store.delete("kept")
        with pytest.raises(StoreError, match="No space left on device"):
            world.store.compact()
    os.close(full)
    assert world.store.stats().errors == {"set": 1}
    assert world.store.get("a") is None  # not the value that was to be gone
    assert world.other.get("a") == "old"
    healthy(world)


# -- the file beneath -------------------------------------------------------------------------------------------------


class Beneath:
    """What others may do to the file while it is open, and what may then be read."""

    def __init__(self, folder, seed):
        self.path, self.copy, self.spare = (folder / name for name in ("cache.memo", "copy", "spare"))
        self.chance = random.Random(seed)
        self.store = PickleFileStore(self.path)
        self.other = PickleFileStore(self.path)
        self.copied = {}
        self.now = {}  # what was written into the file that is there

    def delete(self):
        self.path.unlink()
        return {}

    def move(self):
        os.replace(self.path, self.spare)
        return {}

    def move_back(self):
        if not self.spare.exists():
            return self.now
        os.replace(self.spare, self.path)
        return None

    def empty(self):
        os.truncate(self.path, 0)
        return {}

    def truncate(self):
        os.truncate(self.path, self.chance.randrange(self.path.stat().st_size + 1))
        return

    def save_a_copy(self):
        shutil.copyfile(self.path, self.copy)
        os.chmod(self.copy, 0o600)
        self.copied = dict(self.now)
        return self.now

    def restore_the_copy(self):
        if not self.copy.exists():
            return self.now
        shutil.copyfile(self.copy, self.spare)
        os.chmod(self.spare, 0o600)
        os.replace(self.spare, self.path)
        return dict(self.copied)

    def write_the_copy_over(self):
        if not self.copy.exists():
            return self.now
        self.path.write_bytes(self.copy.read_bytes())
        return None

    def replace(self):
        self.spare.unlink(missing_ok=True)
        store = PickleFileStore(self.spare)
        store.set("of the new file", 1)
        store.close()
        os.replace(self.spare, self.path)
        return {"of the new file": 1}

    def compact(self):
        self.other.compact()
        return self.now

    MISCHIEF = (delete, move, move_back, empty, truncate, save_a_copy, restore_the_copy, write_the_copy_over, replace,
                compact)  # fmt: skip


@pytest.mark.parametrize("seed", range(20 if NIGHTLY else 2))
def test_a_file_that_is_deleted_replaced_cut_off_or_restored_is_right_or_a_miss_and_heals_at_once(
    tmp_path, monkeypatch, seed, pauses
):
    """What was cut off and has exactly the length again that a process knows is noticed by its next write only."""
    real = os.writev

    def writev(descriptor, pieces):
        there = os.fstat(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        assert there.st_nlink == 1  # never into a file that is gone, or that is no longer the one
        assert name != str(b.path) or os.path.samestat(there, os.lstat(b.path))
        assert name in (str(b.path), str(b.spare), str(tmp_path / ".cache.memo.compact"))
        return real(descriptor, pieces)

    b = Beneath(tmp_path, seed)
    monkeypatch.setattr(os, "writev", writev)
    ever, chance = {}, b.chance
    for turn in range(4_000 if NIGHTLY else 600):
        mischief = chance.choice(Beneath.MISCHIEF) if chance.random() < 0.5 else None
        known = b.now if mischief is None else mischief(b)
        key = f"key {chance.randrange(5)}"
        value = chance.choice([b.store, b.other]).get(key)
        if known is None:  # of the file no more is known than that all in it was once written
            assert value is None or value in ever.get(key, ())
        else:
            assert value in (None, known.get(key))
            assert mischief is not None or value == known.get(key)
        if known is not None:
            b.now = dict(known)
        for _ in range(chance.randrange(3)):
            writer, reader = chance.choice([(b.store, b.other), (b.other, b.store)])
            number = bytes(chance.randrange(5_000)) + b"%d" % turn
            ever.setdefault(key, set()).add(number)
            writer.set(key, number)
            assert writer.get(key) == reader.get(key) == number
            b.now[key] = number
        if known is None:
            b.store.clear()
            assert b.other.keys() == []
            b.now = {}
        elif chance.random() < 0.2:
            b.other.delete(key)
            assert b.store.get(key) is None
            b.now.pop(key, None)
    for store in b.store, b.other:
        assert store.stats().errors == {}
        assert store.get_many(b.now) == b.now
        store.close()
    assert opened(tmp_path) == 0


# -- locks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped_holder(path, make):
    """A process that has locked the file and was stopped."""
    store = make()
    store.set_many({"a": 1, "n": 7})
    store.close()
    pid = os.fork()
    if pid == 0:
        try:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    yield pid
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("timeout", [0.001, 0.05, 0.25, 3])
def test_nobody_waits_longer_than_the_timeout_for_a_holder_that_was_stopped(
    path, make, stopped_holder, pauses, timeout
):
    store = make(timeout=timeout)
    f = cache_aside(store=store, namespace="f", tags=("t",))(lambda x: x)
    assert (store.get("a"), store.exists("a"), store.ttl("a"), len(store.keys())) == (1, True, float("inf"), 2)
    assert pauses == []  # a read waits for nobody

    def waited():
        total = sum(pauses)
        assert timeout <= total < timeout + access.LONGEST_PAUSE + 1e-9
        assert pauses == sorted(pauses)
        assert max(pauses) <= access.LONGEST_PAUSE
        pauses.clear()
        return True

    store.set("a", 2)
    assert waited()
    assert store.get("a") is None
    assert f(1) == 1
    assert waited()
    store.set_many({"b": 1})
    assert waited()
    for invalidate in (
        store.clear,
        lambda: store.delete("a"),
        lambda: store.delete_pattern("*"),
        lambda: store.invalidate_tags("t"),
        lambda: store.increment("n"),
        lambda: store.expire("n", 60),
        lambda: f.invalidate(1),
        f.invalidate_all,
    ):
        with pytest.raises(StoreError, match=r"could not be locked within .* s: another process holds the lock"):
            invalidate()
        assert waited()
    assert store.compact() is False
    assert sum(pauses) >= timeout
    assert store.stats().errors == {"set": 2}


def test_a_holder_that_goes_on_is_waited_for(path, make, stopped_holder, monkeypatch):
    store, pauses = make(), []

    def sleep(pause):
        pauses.append(pause)
        if len(pauses) == 2:
            os.kill(stopped_holder, signal.SIGCONT)
        threading.Event().wait(pause)

    monkeypatch.setattr("time.sleep", sleep)
    store._timeout = PATIENCE
    assert store.delete("a")
    assert len(pauses) >= 2


@pytest.mark.parametrize("reading", [True, False])
def test_the_lock_is_not_lost_when_the_file_is_closed_elsewhere_in_the_process(path, store, make, reading):
    """As one of fcntl's or lockf's would be."""
    store.set("a", 1)
    assert store._view.log.try_lock()
    with open(path, "rb" if reading else "r+b"):
        pass
    make().close()
    assert not is_free(path)
    os.close(os.dup(store._view.log.fd))
    assert not is_free(path)
    store._view.log.unlock()
    assert is_free(path)


def test_two_stores_of_one_process_exclude_each_other(path, store, make, pauses):
    another = make()
    assert store._view.log.try_lock()
    with pytest.raises(StoreError, match="another process holds the lock"):
        another.delete("a")
    store._view.log.unlock()
    assert not another.delete("a")


# -- what hardly ever happens -----------------------------------------------------------------------------------------


def test_a_file_that_is_replaced_at_every_look_is_no_exception_from_a_read(store, monkeypatch):
    store.set("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(logfile.LogFile, "size", lambda self: None)
        assert store.get("a") is None
        with pytest.raises(StoreError, match="could not be locked"):
            store.delete("a")
    assert store.get("a") == 1
    assert store.stats().errors == {"get": 1}


@pytest.mark.parametrize("operation", ["get", "set", "delete"])
def test_a_header_that_was_written_over_beneath_leaves_what_is_there_alone(path, make, operation):
    """The end of the last record is still there, and behind it something that is none."""
    store = make()
    store.set("a", 1)
    data = bytearray(path.read_bytes())
    data[:40] = b"somebody else's".ljust(40)
    path.write_bytes(data + b"and more")
    before = path.read_bytes()
    if operation == "delete":
        with pytest.raises(StoreError, match="was not written by PickleFileStore"):
            store.delete("a")
    else:
        assert (store.get("a") if operation == "get" else store.set("a", 2)) is None
        assert store.stats().errors == {operation: 1}
    assert path.read_bytes() == before


def test_a_file_that_was_written_over_with_as_many_bytes_is_noticed_by_the_next_write(path, make, tmp_path):
    store, other = make(), make(tmp_path / "other")
    store.set("a", 1)
    other.set("b", 2)
    path.write_bytes((tmp_path / "other").read_bytes())
    assert store.get("a") is None
    store.set("c", 3)
    assert store.get_many("abc") == make().get_many("abc") == {"b": 2, "c": 3}


@pytest.mark.parametrize("large", [False, True])
def test_a_value_that_is_spoilt_is_no_number_and_is_given_no_new_end(path, store, large):
    value = b"number" + bytes(100_000 * large)
    store.set("a", value)
    data = bytearray(path.read_bytes())
    data[data.index(b"number")] ^= 1
    path.write_bytes(data)
    assert store.expire("a", 60) is False
    assert store.increment("a") == 1
    assert store.stats().corrupt == 1


def test_a_large_value_of_which_less_is_read_than_there_is_is_a_miss(store, monkeypatch):
    store.set("a", LARGE)
    real = os.preadv
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:-1]], offset))
        assert store.get("a") is None
    assert store.stats().corrupt == 1


def test_a_child_of_fork_begins_like_this(store, make):
    """In this process, where it can be looked at: the descriptor is gone, and what was read is not."""
    store.set("a", 1)
    log, before = store._view.log, store._compaction
    logfile._in_child()
    file._in_child()
    assert log.fd == -1
    assert store._compaction is not before
    with pytest.raises(OSError, match="the child of a fork"):
        log.try_lock()
    log.unlock()
    assert store.get("a") == make().get("a") == 1
    assert store.delete("a")


async def test_an_awaited_read_of_a_store_that_is_busy_or_cannot_be_looked_at_is_done_aside(store, faults):
    store.set("a", 1)
    entered, gate = threading.Event(), threading.Event()

    def hold():
        with store._lock:
            entered.set()
            assert gate.wait(PATIENCE)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert entered.wait(PATIENCE)
    task = asyncio.ensure_future(store.aget("a"))
    await asyncio.sleep(0)  # which is not held up
    assert not task.done()
    gate.set()
    thread.join(PATIENCE)
    assert await task == 1
    faults.arm(1, errno.EIO, True, only=("lstat",))
    assert (await store.aget("a"), await store.aexists("a"), await store.attl("a")) == (None, False, None)
    faults.armed = False
    assert (await store.aget("a"), await store.aexists("a")) == (1, True)


def test_a_listing_goes_on_where_the_store_is_closed_meanwhile(store, monkeypatch):
    monkeypatch.setattr(entries, "_CHUNK", 2)
    store.set_many({f"key {number}": number for number in range(6)})
    real = store._reading

    def reading(work):
        answer = real(work)
        store.close()
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(store, "_reading", reading)
        assert store.keys() == []
    assert len(store.keys()) == 6
