"""The child of a fork lets go of its parent's file at once, opens it anew, and goes on with what its parent knew."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import traceback
import warnings
import weakref

import pytest

from memo import PickleFileStore, StoreError, cache_aside
from memo.stores import logfile
from memo.stores.compaction import Compaction

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")]

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
PATIENCE = 20


@pytest.fixture(autouse=True)
def _no_hang():
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Child:
    """A forked child that runs a function, tells what it returned, and may be told to go on."""

    def __init__(self, function):
        self.reader, writer = os.pipe()
        waiting, self.starter = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: fork beside threads is tested here
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.starter)
                self.wait = lambda: os.read(waiting, 1)
                os.write(writer, repr(function(self)).encode())
                code = 0
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(writer)
        os.close(waiting)

    def go_on(self):
        os.close(self.starter)
        self.starter = -1

    def answer(self):
        ready, _, _ = select.select([self.reader], [], [], PATIENCE)
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        text = os.read(self.reader, 65_536).decode() if ready else "the child hangs"
        os.close(self.reader)
        if self.starter >= 0:
            self.go_on()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, text
        return text


def in_child(function):
    return Child(lambda _: function()).answer()


def opened(path):
    """How many descriptors of this process lead to a file, its compaction's included."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        count += target.startswith(f"{path.parent}/")
    return count


def test_a_child_has_closed_its_parents_descriptor_before_anything_else(path, store, make):
    another = make(secret=None)
    store.set("a", 1)
    another.get("a")
    assert opened(path) == 2
    assert in_child(lambda: opened(path)) == "0"
    assert opened(path) == 2
    assert in_child(lambda: (store.get("a"), store.set("b", 2), opened(path))) == "(1, None, 1)"
    assert store.get("b") == another.get("b") == 2


def test_a_child_does_not_read_again_what_its_parent_has_read(path, store, make, monkeypatch):
    store.set_many({f"key {number}": number for number in range(500)})
    read = store._view.position
    begun, real = [], logfile.LogFile.scan

    def scan(self, start, size, final):
        begun.append(start)
        return real(self, start, size, final)

    monkeypatch.setattr(logfile.LogFile, "scan", scan)

    def child():
        assert len(store.keys()) == 500
        assert store.get("key 7") == 7
        assert begun == []
        store.set("own", 1)
        another = make()
        another.set("of another", 2)
        assert store.get("of another") == 2
        begun.remove(another._view.log.first)
        return min(begun) > read

    assert in_child(child) == "True"
    assert begun == []
    assert store.get_many(["own", "of another"]) == {"own": 1, "of another": 2}
    assert begun == [read]


def test_a_child_reads_anew_what_was_put_in_the_place_of_the_file(path, store, make, tmp_path):
    def child(self):
        self.wait()
        return store.get("a"), store.keys()

    store.set("a", 1)
    children = [Child(child)]
    other = make(tmp_path / "other")
    other.set("b", 2)
    other.close()
    os.replace(tmp_path / "other", path)
    children[0].go_on()
    assert children[0].answer() == "(None, ['b'])"
    children.append(Child(child))
    assert store.compact()
    store.set("c", 3)
    children[1].go_on()
    assert children[1].answer() == "(None, ['b', 'c'])"


def test_a_load_that_goes_on_in_a_child_is_not_stored_by_it(store):
    """What others have invalidated before the child opens the file anew, it cannot know."""
    f = cache_aside(store=store, namespace="f")(lambda: "child" if os.fork() == 0 else os.wait() and "parent")
    answer = f()
    if answer == "child":
        os._exit(store.stats().sets != 0)
    assert answer == f.peek() == "parent"
    assert store.stats().sets == 1


def test_a_child_answers_a_key_that_its_parent_is_loading(store):
    parent, entered, gate = os.getpid(), threading.Event(), threading.Event()

    def load(x):
        if os.getpid() != parent:
            return "of the child"
        entered.set()
        assert gate.wait(PATIENCE)
        return "of the parent"

    f = cache_aside(store=store, namespace="f")(load)
    thread = threading.Thread(target=f, args=(7,), daemon=True)
    thread.start()
    assert entered.wait(PATIENCE)
    assert in_child(lambda: f(7)) == "'of the child'"
    gate.set()
    thread.join(PATIENCE)
    # The child has written meanwhile: what the parent has loaded is older for all that anybody knows.
    assert f.peek(7) == "of the child"


@pytest.mark.usefixtures("untraced")
def test_a_fork_while_another_thread_writes_leaves_the_store_free_in_the_child(path, store, monkeypatch):
    """The fork waits for the write: none of its steps is between two processes."""
    entered, gate, real = threading.Event(), threading.Event(), os.writev
    parent = os.getpid()

    def writev(descriptor, pieces):
        if os.getpid() == parent and not gate.is_set():
            entered.set()
            assert gate.wait(PATIENCE)
        return real(descriptor, pieces)

    monkeypatch.setattr(os, "writev", writev)
    writer = threading.Thread(target=store.set, args=("a", 1), daemon=True)
    writer.start()
    assert entered.wait(PATIENCE)
    threading.Timer(0.05, gate.set).start()
    assert in_child(lambda: (gate.is_set(), store.get("a"), store.set("b", 2), store.get("b"))) == "(True, 1, None, 2)"
    writer.join(PATIENCE)
    assert store.get_many("ab") == {"a": 1, "b": 2}


def forking_within(monkeypatch, work):
    """Have a fork come in the middle of the next write, with the file's lock held, as of a signal handler."""
    real, armed = os.writev, [True]

    def writev(descriptor, pieces):
        if armed:
            armed.clear()
            work()
        return real(descriptor, pieces)

    monkeypatch.setattr(os, "writev", writev)


def test_a_child_that_comes_out_of_a_write_neither_writes_nor_hangs(path, store, make, monkeypatch):
    for operation, expected in (
        (lambda: store.set("a", 1), "None"),
        (lambda: store.delete("a"), "StoreError"),
        (lambda: store.increment("n"), "StoreError"),
    ):
        reader, writer = os.pipe()
        pids = []
        with monkeypatch.context() as patch:
            forking_within(patch, lambda pids=pids: pids.append(os.fork()))
            try:
                answer = repr(operation())
            except StoreError:
                answer = "StoreError"
            if pids == [0]:
                code = 1
                try:
                    store.set("of the child", 1)
                    os.write(writer, f"{answer} {store.get('of the child')} {opened(path)}".encode())
                    code = 0
                finally:
                    os._exit(code)
        assert answer != "StoreError"
        os.close(writer)
        assert os.waitpid(pids[0], 0)[1] == 0
        assert os.read(reader, 1_000).decode() == f"{expected} 1 1"
        os.close(reader)
        assert store.get("of the child") == 1
    assert make().get_many(["a", "n"]) == {"n": 1}
    assert (store.stats().torn, store.stats().damaged) == (0, 0)


def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed_with_it(path, store, make, monkeypatch):
    """1. A process has locked the file. 2. It forks. 3. It is killed. 4. Its child lives on: the file is free."""
    store.set("a", 1)
    told, tell = os.pipe()
    waiting, starter = os.pipe()

    def fork_and_die():
        if os.fork() == 0:
            try:
                os.close(starter)
                os.write(tell, b"alive")
                os.read(waiting, 1)
                os.write(tell, b"ended")
            finally:
                os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            forking_within(monkeypatch, fork_and_die)
            store.set("b", 2)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert os.read(told, 100) == b"alive"
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    store.set("c", 3)
    assert pauses == []  # nobody had to be waited for
    assert store.delete("a")
    ready, _, _ = select.select([told], [], [], 0)
    assert not ready  # and the child was alive all the time
    os.close(starter)
    assert os.read(told, 100) == b"ended"
    for descriptor in told, tell, waiting:
        os.close(descriptor)
    assert make().get_many("abc") == {"c": 3}


@pytest.fixture
def compacting(store, monkeypatch):
    """A compaction in a thread that has begun and waits."""
    entered, gate, real, parent = threading.Event(), threading.Event(), Compaction._copy_living, os.getpid()

    def copy_living(self, *rest):
        if os.getpid() == parent:
            entered.set()
            assert gate.wait(PATIENCE)
        return real(self, *rest)

    monkeypatch.setattr(Compaction, "_copy_living", copy_living)
    answers = []
    store.set("a", 1)
    thread = threading.Thread(target=lambda: answers.append(store.compact()), daemon=True)
    thread.start()
    assert entered.wait(PATIENCE)

    def finish():
        gate.set()
        thread.join(PATIENCE)
        return answers

    yield finish
    finish()


@pytest.mark.usefixtures("untraced")
def test_a_child_has_nothing_of_a_compaction_that_is_under_way(path, store, compacting):
    def child():
        assert opened(path) == 0
        assert store.get("a") == 1
        store.set("b", 2)
        assert store.compact() is False  # the parent does
        store.close()
        assert store.get("b") == 2
        return opened(path)

    assert in_child(child) == "1"
    assert compacting() == [True]
    assert store.get_many("ab") == {"a": 1, "b": 2}
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert in_child(lambda: (store.get("b"), store.compact())) == "(2, True)"
    assert store.get_many("ab") == {"a": 1, "b": 2}


@pytest.mark.usefixtures("untraced")
def test_a_child_does_not_keep_others_from_compacting_when_its_parent_was_killed_at_it(path, make, monkeypatch):
    told, tell = os.pipe()
    waiting, starter = os.pipe()
    store = make()
    store.set("a", 1)
    pid = os.fork()
    if pid == 0:

        def fork_and_die(*_):
            if os.fork() == 0:
                try:
                    os.close(starter)
                    os.write(tell, b"alive")
                    os.read(waiting, 1)
                finally:
                    os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

        Compaction._copy_living = fork_and_die
        try:
            store.compact()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert os.read(told, 100) == b"alive"
    assert store.compact()
    assert store.get("a") == 1
    for descriptor in starter, told, tell, waiting:
        os.close(descriptor)


def test_parent_and_children_lose_no_record(path, store, make):
    count = 400 if NIGHTLY else 60

    def work(who):
        for number in range(count):
            store.set(f"{who} {number}", number)
            store.increment("all")
            if number % 7 == 0:
                store.delete(f"{who} {number}")
            if number % 30 == 29:
                store.compact()
        return store.stats().errors

    store._timeout = PATIENCE
    children = [Child(lambda _, who=who: work(who)) for who in range(4)]
    assert work("parent") == {}
    assert [child.answer() for child in children] == ["{}"] * 4
    for each in store, make():
        assert each.get("all") == 5 * count
        for who in (0, 1, 2, 3, "parent"):
            found = each.get_many(f"{who} {number}" for number in range(count))
            assert found == {f"{who} {number}": number for number in range(count) if number % 7}
        assert (each.stats().torn, each.stats().damaged, each.stats().corrupt) == (0, 0, 0)


def test_children_of_children_hold_one_descriptor_each(path, store):
    def deeper(depth):
        store.increment("depth")
        return in_child(lambda: deeper(depth - 1)) if depth else str(opened(path))

    assert in_child(lambda: deeper(6)).strip("\"'\\") == "1"
    assert store.get("depth") == 7
    assert opened(path) == 1


@pytest.mark.usefixtures("untraced")
def test_forks_under_load_leave_every_lock_free_and_every_record_there(path):
    store = PickleFileStore(path, timeout=PATIENCE)
    f = cache_aside(store=store, namespace="f", tags=("t",))(lambda x: x)
    stop, failures, done = threading.Event(), [], [0] * 2

    def hammer(number):
        try:
            while not stop.is_set():
                store.increment("all")
                done[number] += 1
                store.set(f"of {number}", done[number])
                assert store.get(f"of {number}") == done[number]
                assert f(done[number] % 20) == done[number] % 20
                if done[number] % 50 == 0:
                    store.invalidate_tags("t")
                    store.compact()
        except BaseException as error:
            failures.append(error)

    def child():
        for x in range(5):
            assert f(x) == x
        f.invalidate_all()
        store.set("of a child", 1)
        assert store.get("of a child") == 1
        assert opened(path) == 1
        return store.increment("all") > 0

    before, interval = opened(path), sys.getswitchinterval()
    threads = [threading.Thread(target=hammer, args=(number,), daemon=True) for number in range(2)]
    sys.setswitchinterval(1e-3)
    count = 2_000 if NIGHTLY else 100
    try:
        for thread in threads:
            thread.start()
        for _ in range(count):
            assert in_child(child) == "True"
            assert failures == []
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert store.get("all") == sum(done) + count
    assert store.stats().errors == {}
    assert opened(path) == before == 1
    store.close()
    assert opened(path) == 0


def test_a_file_that_is_collected_before_its_turn_keeps_no_other_from_being_let_go(path, monkeypatch):
    """1. the child lists the open files   2. a collection takes one of them   3. the next is closed all the same."""

    class Gone:
        pass

    store = PickleFileStore(path)
    store.set("a", 1)
    log = store._view.log
    monkeypatch.setattr(logfile, "_logs", {0: weakref.ref(Gone()), 1: weakref.ref(log)})
    logfile._in_child()
    assert log.fd < 0
    assert store.get("a") == 1
    store.close()
