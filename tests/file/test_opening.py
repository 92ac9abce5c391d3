"""What may stand at the path: a file of memo's own that is this user's alone, or nothing; all else stays as it is."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import math
import os
import random
import select
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memo import MemoError, OptionError, PickleFileStore, StoreError, cache_aside
from memo.serializers.signing import signing_keys
from memo.stores import frames, logfile

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
SECRET = b"a secret of the tests, 32 bytes."
NOBODY = 65_534
PATIENCE = 20
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def _no_hang():
    """Whatever is opened here, nothing waits for it: a hang shows all stacks and ends the run."""
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def folder():
    """A folder that another user can be given, and whose parents any user may pass."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def in_child(function, user=None):
    """Return what `function` returns, as text, in a forked child of another user's if given."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            os.write(writer, str(function()).encode())
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], PATIENCE)
    if not ready:
        os.kill(pid, signal.SIGKILL)
    text = os.read(reader, 65_536).decode() if ready else "the child hangs"
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert status == 0, text
    return text


def as_an_ordinary_user(folder, function):
    """Return what `function` returns, as text, when root's rights do not hide what the file's mode says."""
    if not ROOT:
        return str(function())
    for name in [folder, *folder.rglob("*")]:
        os.chown(name, NOBODY, NOBODY)
    return in_child(function, NOBODY)


def mode_of(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# -- whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_a_new_file_is_its_owners_alone_whatever_the_umask(tmp_path, make, monkeypatch, umask):
    """In 8 threads, since a process has one umask: it is never touched."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the umask is the whole process's"))
            gate = threading.Barrier(8)

            def work(number):
                gate.wait(PATIENCE)
                for path in tmp_path / f"own {number}", tmp_path / "shared":
                    store = make(path, timeout=PATIENCE)
                    store.set("a", number)
                    assert store.compact() or path.name == "shared"
                    assert mode_of(path) == 0o600
                    assert store.stats().errors == {}

            list(pool.map(work, range(8)))
    finally:
        assert os.umask(before) == umask
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o600}


def test_an_empty_file_that_somebody_made_becomes_its_owners_alone(path, make):
    path.touch(0o644)
    store = make()
    store.set("a", 1)
    assert mode_of(path) == 0o600
    assert make().get("a") == 1


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o622])
@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_file_that_others_may_write_is_refused(path, make, mode, secret):
    make(secret=secret).set("a", 1)
    os.chmod(path, mode)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"others may write.*chmod 600 helps"):
        make(secret=secret)
    assert path.read_bytes() == before
    os.chmod(path, 0o640)
    assert make(secret=secret).get("a") == 1


def test_another_users_file_is_refused(path, make, monkeypatch):
    make().set("a", 1)
    before = path.read_bytes()
    if ROOT:
        os.chown(path, NOBODY, NOBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreError, match=r"another user's file"):
        make()
    assert path.read_bytes() == before


# -- what it is ------------------------------------------------------------------------------------------------------


def symlink(path, victim):
    path.symlink_to(victim)


def dangling(path, victim):
    path.symlink_to(path.with_name("nothing is here"))


def loop(path, victim):
    path.symlink_to(path)


def hard_link(path, victim):
    os.link(victim, path)


def fifo(path, victim):
    os.mkfifo(path, 0o600)


def bound_socket(path, victim):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def folder_there(path, victim):
    path.mkdir()


def full_folder(path, victim):
    path.mkdir()
    (path / "something").touch()


def device(path, victim):
    if ROOT:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # /dev/full
    else:
        path.symlink_to("/dev/full")


THINGS = {
    symlink: "a symbolic link",
    dangling: "a symbolic link",
    loop: "a symbolic link",
    hard_link: "hard link",
    fifo: "no regular file",
    bound_socket: "a socket or a device",
    folder_there: "a folder",
    full_folder: "a folder",
    device: "no regular file" if ROOT else "a symbolic link",
}


def tree(folder):
    return sorted((str(each), os.lstat(each).st_mode, os.lstat(each).st_ino) for each in folder.rglob("*"))


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("mine", [False, True], ids=["foreign", "memo's own"])
def test_what_is_no_file_of_its_own_is_refused_and_left_as_it_is(tmp_path, make, thing, mine):
    path, victim = tmp_path / "cache.memo", tmp_path / "victim"
    if mine:
        make(victim).set("a", 1)
    else:
        victim.write_bytes(b"precious")
    before = victim.read_bytes()
    thing(path, victim)
    there = tree(tmp_path)
    with pytest.raises(StoreError, match=THINGS[thing]) as caught:
        make(path)
    assert str(path) in str(caught.value)
    assert "allowed is" in str(caught.value)
    assert tree(tmp_path) == there
    assert victim.read_bytes() == before


@pytest.mark.parametrize("path", ["/dev/full", "/dev/null", "/dev/zero", "/"])
def test_what_belongs_to_the_system_is_refused(path):
    with pytest.raises(StoreError, match=r"no regular file|a folder"):
        PickleFileStore(path)


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: thing.__name__)
def test_what_takes_the_place_of_an_open_file_is_refused_and_left_as_it_is(tmp_path, make, thing):
    """Reads find nothing and raise nothing, sets store nothing, invalidations are errors; then all is as before."""
    path, victim = tmp_path / "cache.memo", tmp_path / "victim"
    victim.write_bytes(b"precious")
    store = make(path)
    store.set("a", 1)
    os.rename(path, tmp_path / "away")
    thing(path, victim)
    there = tree(tmp_path)
    for _ in range(2):
        assert store.get("a", "nothing") == "nothing"
        assert not store.exists("a")
        assert store.ttl("a") is None
        assert store.keys() == []
        store.set("a", 2)
        for invalidate in store.clear, lambda: store.delete("a"), lambda: store.invalidate_tags("t"):
            with pytest.raises(StoreError, match=THINGS[thing]):
                invalidate()
    assert tree(tmp_path) == there
    assert victim.read_bytes() == b"precious"
    errors = store.stats().errors
    assert (errors["get"], errors["set"]) == (2, 2)
    if path.is_dir() and not path.is_symlink():
        os.rename(path, tmp_path / "folder")
    os.replace(tmp_path / "away", path)
    assert store.get("a") == 1
    assert store.delete("a")


def test_a_race_of_things_that_come_and_go_at_the_path_never_reaches_what_they_lead_to(tmp_path, make):
    """Thousands of times, while a store reads, writes and invalidates without a pause."""
    path, victim, empty, spare = (tmp_path / name for name in ("cache.memo", "victim", "empty", "spare"))
    victim.write_bytes(b"precious")
    empty.touch()
    store, stop = make(path, timeout=0.001), threading.Event()
    names = [symlink, dangling, hard_link, fifo, folder_there, device]
    failures, errors = [], 0

    def use():
        nonlocal errors
        chance, latest = random.Random(3), {}
        try:
            while not stop.is_set():
                key = chance.choice("abc")
                value = store.get(key)
                assert value is None or value in latest.get(key, ())
                store.exists(key), store.keys()
                latest.setdefault(key, set()).add(number := chance.randrange(1_000))
                store.set(key, number)
                try:
                    store.delete(chance.choice("abc"))
                except StoreError:
                    errors += 1
        except BaseException as error:
            failures.append(error)

    def take_away(what):
        what.rmdir() if what.is_dir() and not what.is_symlink() else what.unlink(missing_ok=True)

    def put(thing):
        take_away(spare)
        thing(spare, chance.choice([victim, empty]))
        if path.is_dir() or spare.is_dir():
            take_away(path)
        with contextlib.suppress(NotADirectoryError):  # the store may have made its file again
            os.rename(spare, path)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    chance = random.Random(7)
    try:
        for _ in range(50_000 if NIGHTLY else 2_000):
            put(chance.choice(names))
            if chance.random() < 0.3:  # sometimes there is nothing for a moment, and the store makes a file
                take_away(path)
                while chance.random() < 0.5 and not failures:
                    threading.Event().wait(0.0001)
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert failures == []
    assert errors > 0
    assert victim.read_bytes() == b"precious"
    assert empty.read_bytes() == b""
    take_away(path)
    store.set("a", "at last")
    assert make(path).get("a") == "at last"


def test_a_file_that_only_passes_by_is_not_begun(tmp_path, make, monkeypatch):
    """1. Somebody's empty file has the path as its second name. 2. It is opened. 3. The path is taken from it."""
    path, empty, real = tmp_path / "cache.memo", tmp_path / "empty", os.fstat
    empty.touch()
    os.link(empty, path)

    def fstat(descriptor):
        path.unlink(missing_ok=True)
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        store = make(path)
    assert empty.read_bytes() == b""
    store.set("a", 1)
    assert make(path).get("a") == 1


def test_a_log_that_only_passes_by_is_not_emptied_by_a_compaction(tmp_path, make, monkeypatch):
    path, other, real = tmp_path / "cache.memo", tmp_path / "other.memo", os.fstat
    make(other).set("a", "of the other")
    store = make(path)
    store.set("a", 1)
    passing = tmp_path / ".cache.memo.compact"
    os.link(other, passing)

    def fstat(descriptor):
        if os.path.samestat(real(descriptor), os.stat(other)):
            passing.unlink(missing_ok=True)
        return real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        assert store.compact() is False
    assert make(other).get("a") == "of the other"
    assert store.compact()
    assert store.get("a") == 1


# -- arguments -------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_missing_is_an_error_at_once(tmp_path):
    with pytest.raises(OptionError, match=r"'.*nowhere' is not there: make it first"):
        PickleFileStore(tmp_path / "nowhere" / "cache.memo")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"is not there: make it first"):
        PickleFileStore(tmp_path / "file" / "cache.memo")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


class Bytes(os.PathLike):
    def __fspath__(self):
        return b"cache.memo"


BAD = {
    "path": [None, 7, 1.5, True, b"cache.memo", "", "a\0b", "\ud800", "x" * 247, ["a"], Bytes(), object()],
    "max_size": [0, -1, 1.0, "1", True, math.inf, math.nan, [1]],
    "default_ttl": [0, -1, math.nan, math.inf, 1e12, "60", True, [1], b"1"],
    "secret": ["short", b"", "", 7, 1.5, object(), [], [None], [SECRET, 7], [SECRET, "short"], {}, bytearray(SECRET)],
    "timeout": [0, -1, math.nan, math.inf, "1", True, None, [1]],
    "clock": [None, 7, "clock", object(), lambda: 1.0],
}
ALLOWED = {
    "path": r"allowed are|has no NUL|cannot be a file's name",
    "max_size": "whole numbers from 1 on",
    "default_ttl": "seconds",
    "secret": r"allowed are|neither bytes nor text",
    "timeout": "seconds",
    "clock": r"a clock has monotonic\(\) and time\(\)",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name} {number}") for name in BAD for number, value in enumerate(BAD[name])],
)
def test_an_argument_that_is_not_allowed_is_an_error_that_says_what_is(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match=ALLOWED[name]) as caught:
        PickleFileStore(**{"path": tmp_path / "cache.memo", name: value})
    assert f"{name}=" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_may_be_as_long_as_that_of_a_compaction_allows(tmp_path, make):
    store = make(tmp_path / ("x" * 246))
    store.set("a", 1)
    assert store.compact()
    assert store.get("a") == 1
    with pytest.raises(OptionError, match=r"246 bytes"):
        make(tmp_path / ("ä" * 124))


def test_a_path_is_the_same_wherever_the_process_goes_later(tmp_path, make, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    store = make("cache.memo")
    monkeypatch.chdir(tmp_path / "sub")
    store.set("a", 1)
    assert make(tmp_path / "cache.memo").get("a") == 1
    assert list((tmp_path / "sub").iterdir()) == []


# -- what is in it ---------------------------------------------------------------------------------------------------

FOREIGN = {
    "text": b"some text\n" * 100,
    "one byte": b"x",
    "a png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a database": b"SQLite format 3\0" + bytes(100),
    "zeros": bytes(4_096),
    "a pickle": b"\x80\x05K\x01.",
    "nearly": b"\x89memoloG" + bytes(100),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_foreign_file_is_refused_and_never_changed(path, make, content, secret):
    path.write_bytes(content)
    os.utime(path, (7, 7))
    with pytest.raises(StoreError, match=r"left as it is: it was not written by PickleFileStore"):
        make(secret=secret)
    assert path.read_bytes() == content
    assert path.stat().st_mtime == 7


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
def test_a_foreign_file_that_comes_into_the_place_is_never_changed_either(path, make, content):
    store = make()
    store.set("a", 1)
    path.write_bytes(content)  # cut off and written over: the very file that is open
    assert store.get("a") is None
    store.set("a", 2)
    with pytest.raises(StoreError):
        store.clear()
    assert not store.stats().compactions
    with pytest.raises(StoreError):
        store.compact()
    assert path.read_bytes() == content


def header(secret=None, version=frames.VERSION):
    data = bytearray(frames.Identity.new(signing_keys(secret, frames.PURPOSE)).header())
    struct.pack_into("<H", data, 8, version)
    return bytes(data)


@pytest.mark.parametrize("version", [2, 7, 65_535])
def test_a_file_of_a_newer_format_is_refused_with_advice(path, make, version):
    content = header(version=version) + b"whatever is in it"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"its format is {version}, and this memo knows 1: upgrade memo-cache"):
        make()
    assert path.read_bytes() == content


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_flip_of_any_bit_of_the_header_is_found_and_the_file_left_as_it_is(path, make, secret):
    make(secret=secret).set("a", 1)
    content = path.read_bytes()
    # The header of a file that is not signed ends with zeros, which mean nothing.
    # What stands behind that is a note, which has a check of its own.
    for bit in range(8 * (frames.NOTE if secret else frames.NOTE - frames.MAC)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(flipped)
        os.chmod(path, 0o600)
        with pytest.raises(StoreError, match=r"is refused, and left as it is"):
            make(secret=secret)
        assert path.read_bytes() == flipped
    path.write_bytes(content)
    assert make(secret=secret).get("a") == 1


def test_a_file_that_is_cut_off_within_its_header_is_begun_anew(path, make):
    content = header()
    for length in range(frames.HEADER):
        path.write_bytes(content[:length])
        store = make()
        store.set("a", length)
        assert make().get("a") == length
        assert store.stats().errors == {}
        store.close()


@pytest.mark.parametrize("length", [0, 8, 30, frames.HEADER - 1])
def test_a_kill_while_the_header_is_written_is_healed_by_whoever_comes_next(path, make, length):
    def first():
        write = os.writev

        def torn(descriptor, pieces):
            write(descriptor, [b"".join(pieces)[:length]])
            os.kill(os.getpid(), signal.SIGKILL)

        os.writev = torn
        PickleFileStore(path)

    pid = os.fork()
    if pid == 0:
        try:
            first()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert path.stat().st_size == length
    store = make()
    store.set("a", 1)
    assert make().get("a") == 1
    assert store.stats().errors == {}


# -- at the same moment ----------------------------------------------------------------------------------------------


def test_processes_that_open_a_new_file_at_the_same_moment_agree_on_one_header(tmp_path, make):
    for turn in range(100 if NIGHTLY else 12):
        path = tmp_path / f"cache {turn}"
        reader, writer = os.pipe()
        children = []
        for number in range(6):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.close(writer)
                    os.read(reader, 1)  # which ends for all of them at once
                    store = PickleFileStore(path, timeout=PATIENCE)
                    store.set(f"of {number}", number)
                    code = 0 if store.get(f"of {number}") == number and store.stats().errors == {} else 2
                finally:
                    os._exit(code)
            children.append(pid)
        os.close(reader)
        os.close(writer)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
        store = PickleFileStore(path)
        assert store.get_many([f"of {number}" for number in range(6)]) == {f"of {n}": n for n in range(6)}
        assert (store.stats().torn, store.stats().damaged) == (0, 0)
        store.close()


def test_who_finds_a_file_that_another_process_is_just_making_waits_for_it(path, make, monkeypatch, caplog):
    """A read finds nothing in it, which is true and no fault; what writes tries again."""
    with open(path, "wb") as maker:
        fcntl.flock(maker, fcntl.LOCK_EX)
        store = make()
        f = cache_aside(store=store, namespace="f")(lambda x: x)
        assert (store.get("a"), store.exists("a"), store.keys(), store.ttl("a"), f.peek(1)) == (
            None, False, [], None, f.peek(2),
        )  # fmt: skip
        assert store.stats().errors == {}
        assert caplog.messages == []
        pauses = []

        def rest(pause):
            pauses.append(pause)
            if len(pauses) == 3:
                fcntl.flock(maker, fcntl.LOCK_UN)

        monkeypatch.setattr("time.sleep", rest)
        store.set("a", 1)
    assert len(pauses) == 3
    assert store.get("a") == 1
    assert store.stats().errors == {}


def test_a_process_that_was_faster_has_made_the_header(path, make, monkeypatch):
    """1. Both find the file empty. 2. One locks it, writes, and unlocks it. 3. The other has the lock."""
    real, others = fcntl.flock, []

    def flock(descriptor, operation):
        if not others:
            others.append(None)
            others.append(make())
            others[1].set("a", 1)
        return real(descriptor, operation)

    monkeypatch.setattr(logfile.fcntl, "flock", flock)
    store = make()
    assert store.get("a") == 1
    assert store._view.log.same(others[1]._view.log)


# -- what may only be read -------------------------------------------------------------------------------------------


def only_read(store):
    """Assert that reads go on, sets fail open, and invalidations fail loud."""
    f = cache_aside(store=store, namespace="f", tags=("t",))(lambda x: x)
    assert store.get("a") == 1
    assert store.exists("a")
    assert "a" in store.keys()  # noqa: SIM118 - a store is no dict
    assert f(1) == f(1) == 1
    assert f.stats().errors["fill"] == 2
    store.set("b", 2)
    assert store.get("b") is None
    for invalidate in (
        store.clear,
        lambda: store.delete("a"),
        lambda: store.delete("absent"),
        lambda: store.delete_pattern("*"),
        lambda: store.invalidate_tags("t"),
        lambda: store.increment("a"),
        lambda: store.expire("a", 5),
        lambda: f.invalidate(1),
        f.invalidate_all,
    ):
        with pytest.raises(MemoError, match=r"may only be read"):
            invalidate()
    assert store.get("a") == 1
    assert store.stats().errors == {"set": 1}
    assert store.compact() is False
    return "reads went on"


def test_a_file_whose_mode_lets_nobody_write_is_read(folder):
    path = folder / "cache.memo"

    def work():
        writer = PickleFileStore(path)
        writer.set("a", 1)
        writer.close()
        os.chmod(path, 0o400)
        store = PickleFileStore(path)
        answer = only_read(store)
        os.chmod(path, 0o600)
        store.set("a", 3)  # and written again as soon as that is allowed
        assert PickleFileStore(path).get("a") == store.get("a") == 3
        return answer

    assert as_an_ordinary_user(folder, work) == "reads went on"


@pytest.mark.parametrize("closed", ["the file", "its folder"])
def test_what_may_not_even_be_read_is_no_exception_from_a_read(folder, closed):
    path = folder / "cache.memo"

    def work():
        store = PickleFileStore(path)
        store.set("a", 1)
        store.close()
        os.chmod(path if closed == "the file" else folder, 0)
        try:
            for each in store, PickleFileStore(path):
                assert each.get("a") is None
                assert not each.exists("a")
                each.set("a", 2)
                with pytest.raises(StoreError, match="Permission denied"):
                    each.delete("a")
            assert store.stats().errors == {"exists": 1, "get": 1, "set": 1}
            assert each.stats().errors == {"open": 1, "exists": 1, "get": 1, "set": 1}
        finally:
            os.chmod(folder, 0o700)
        os.chmod(path, 0o600)
        assert store.get("a") == each.get("a") == 1
        return "nothing raised"

    assert as_an_ordinary_user(folder, work) == "nothing raised"


def test_a_file_that_may_not_be_made_is_said_with_the_reason(folder):
    path = folder / "cache.memo"

    def work():
        os.chmod(folder, 0o500)
        try:
            store = PickleFileStore(path)
            store.set("a", 1)
            assert store.get("a") is None
            with pytest.raises(StoreError, match="Permission denied"):
                store.clear()
        finally:
            os.chmod(folder, 0o700)
        store.set("a", 1)
        assert store.get("a") == 1
        return store.stats().errors

    assert as_an_ordinary_user(folder, work) == "{'open': 1, 'set': 1, 'get': 1}"


@contextlib.contextmanager
def read_only(folder, monkeypatch):
    """A folder on a file system that may only be read: a real one where that may be mounted."""
    mounted = ROOT and not subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)
    else:
        with denied(errno.EROFS, monkeypatch):
            yield


@contextlib.contextmanager
def denied(number, monkeypatch):
    """No file may be opened for writing."""
    real = os.open

    def refuse(path, flags, *mode, **more):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *mode, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


@pytest.mark.parametrize("how", ["mounted", errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_system_that_may_only_be_read_is_read(folder, monkeypatch, make, how):
    path = folder / "cache.memo"
    writer = make(path)
    writer.set("a", 1)
    writer.close()
    with read_only(folder, monkeypatch) if how == "mounted" else denied(how, monkeypatch):
        store = make(path)
        assert only_read(store) == "reads went on"
    store.set("a", 3)
    assert make(path).get("a") == store.get("a") == 3
    store.close()


def test_a_pipe_that_may_only_be_read_is_refused_and_not_waited_for(path, make, monkeypatch):
    """To open one for reading waits for who writes, unless one says otherwise."""
    os.mkfifo(path, 0o600)
    with denied(errno.EROFS, monkeypatch), pytest.raises(StoreError, match="no regular file"):
        make()


def test_a_new_file_on_a_file_system_that_may_only_be_read_is_no_exception(folder, monkeypatch, make, caplog):
    with read_only(folder, monkeypatch):
        store = make(folder / "cache.memo")
        assert store.get("a") is None
        store.set("a", 1)
        with pytest.raises(StoreError, match="Read-only file system"):
            store.delete("a")
    assert "Read-only file system" in caplog.messages[0]
    assert store.stats().errors == {"open": 1, "get": 1, "set": 1}
    store.set("a", 1)
    assert store.get("a") == 1
    store.close()


# -- file systems without locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_a_clear_error(path, make, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(logfile.fcntl, "flock", flock)
        with pytest.raises(StoreError, match=r"without flock.*put it on a local disk"):
            make()
    store = make()
    store.set("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr(logfile.fcntl, "flock", flock)
        assert make().get("a") == 1  # which needs no lock
        store.set("a", 2)
        with pytest.raises(StoreError, match=r"without flock.*put it on a local disk"):
            store.clear()
    assert store.stats().errors == {"set": 1}
    store.set("a", 3)
    assert make().get("a") == 3
