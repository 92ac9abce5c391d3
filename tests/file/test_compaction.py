"""Compaction: when a file is rewritten, by whom, and that nothing is lost by it, whatever others do meanwhile."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import random
import signal
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from memo import MISSING, PickleFileStore, StoreError, cache_aside
from memo.stores import compaction, logfile
from memo.stores.compaction import Compaction
from memo.stores.index import Index

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
PATIENCE = 20.0
SMALLEST = 1 << 16


@pytest.fixture(autouse=True)
def _small_files_are_worth_it(monkeypatch):
    monkeypatch.setattr(compaction, "SMALLEST", SMALLEST)


def temporary(path: Any) -> Any:
    return path.with_name(f".{path.name}.compact")


def ended(store: PickleFileStore) -> None:
    """Wait for the compaction that is under way."""
    thread = store._compaction._thread
    if thread is not None:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def fill(store: PickleFileStore, rounds: int, ttl: Any = None) -> None:
    for turn in range(rounds):
        store.set_many({f"k{number}": bytes([turn % 256]) * 1_000 for number in range(10)}, ttl)


# -- when --------------------------------------------------------------------------------------------------------------


def test_a_file_is_rewritten_in_a_thread_when_garbage_outweighs_what_lives(store, monkeypatch):
    threads = []
    compact = Compaction._compact

    def noted(self: Compaction, store: PickleFileStore) -> None:
        threads.append(threading.current_thread())
        compact(self, store)

    monkeypatch.setattr(Compaction, "_compact", noted)
    for _ in range(60):
        fill(store, 1)
        ended(store)
    counted = store.stats()
    assert counted.compactions >= 2
    assert counted.file_size < 10 * 1_100 * 2 + 2 * SMALLEST
    assert counted.live_size > 10_000
    assert threading.main_thread() not in threads
    assert all(thread.daemon for thread in threads)
    assert store.get("k3") == bytes([0]) * 1_000


def test_what_has_expired_is_garbage_too(store, clock):
    for number in range(300):
        store.set(f"short {number}", bytes(1_000), 10)
    store.set("long", "kept")
    ended(store)
    before = store.stats()
    assert before.compactions == 0
    clock.advance(10)
    for number in range(1_000):
        store.set(f"then {number}", bytes(1_000), None)
        ended(store)
        if store.stats().compactions:
            break
    assert store.stats().compactions == 1
    assert store.stats().file_size < before.file_size
    assert store.get("long") == "kept"


def test_what_lives_is_not_rewritten_again_and_again(store):
    for number in range(500):
        store.set(f"k{number}", bytes(1_000))
        ended(store)
    assert store.stats().compactions == 0


def test_who_finds_another_file_looks_at_it_anew(make, path):
    """Its size says nothing of how much of it is garbage."""
    one, another = make(), make()
    fill(one, 30)
    ended(one)
    one._compaction._next = 1 << 40
    another.clear()
    another.compact()
    fill(one, 60)
    ended(one)
    fill(one, 1)
    ended(one)
    assert one.stats().compactions >= 1


def test_no_set_waits_for_a_compaction(make, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    copy = Compaction._copy_living

    def held(self: Compaction, *args: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        copy(self, *args)

    monkeypatch.setattr(Compaction, "_copy_living", held)
    store, another = make(), make()
    fill(store, 30)
    assert begun.wait(PATIENCE)
    store.set("meanwhile", 1)
    another.set("meanwhile, too", 2)
    assert store.delete("k3")
    assert (store.get("meanwhile"), another.get("meanwhile"), store.get("k3")) == (1, 1, None)
    thread = store._compaction._thread
    fill(store, 30)
    assert store._compaction._thread is thread, "one at a time"
    go_on.set()
    ended(store)
    assert store.stats().compactions == 1
    for each in store, another:
        assert [each.get(key) for key in ("meanwhile", "meanwhile, too")] == [1, 2]


def test_one_process_compacts_and_the_others_do_not_wait_for_it(make, path, monkeypatch):
    """Its file's lock says that it does."""
    one, another = make(), make()
    fill(one, 3)
    answers = []
    copy = Compaction._copy_living

    def in_the_middle(self: Compaction, *args: Any) -> None:
        if not answers:
            answers.append(another.compact())
        copy(self, *args)

    monkeypatch.setattr(Compaction, "_copy_living", in_the_middle)
    assert one.compact()
    assert answers == [False]
    assert another.compact()
    assert another.stats().compactions == 1


def test_where_no_thread_can_be_started_it_is_tried_at_a_later_write(store, monkeypatch):
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda self: _raise(RuntimeError("no more threads")))
    fill(store, 30)
    assert store._compaction._thread is None
    monkeypatch.setattr(threading.Thread, "start", lambda self: _raise(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fill(store, 1)
    assert store._compaction._thread is None
    monkeypatch.setattr(threading.Thread, "start", start)
    fill(store, 1)
    ended(store)
    assert store.stats().compactions == 1


def test_who_starts_the_thread_a_second_time_finds_it_started(store, monkeypatch):
    """Between the look and the lock another thread has started it."""
    fill(store, 5)
    compaction_of = store._compaction

    class Lock:
        def __enter__(self) -> None:
            compaction_of._thread = threading.current_thread()

        def __exit__(self, *args: object) -> None: ...

    monkeypatch.setattr(compaction_of, "_lock", Lock())
    monkeypatch.setattr(compaction, "SMALLEST", 1)
    store.set("a", 1)
    assert compaction_of._thread is threading.current_thread()
    compaction_of._thread = None


def test_a_store_that_is_closed_or_gone_meanwhile_is_let_go(make, path, monkeypatch):
    store = make()
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(PickleFileStore, "_look", lambda self: _raise(OSError(errno.EIO, "Input/output error")))
        assert not store._compaction._worth(store)
    gone = Compaction(store)
    gone._store = lambda: None  # type: ignore[assignment]
    gone.consider()
    gone._run()


def _raise(error: BaseException) -> Any:
    raise error


def test_an_error_of_a_compaction_in_the_background_is_counted_and_logged(store, monkeypatch, caplog):
    monkeypatch.setattr(Compaction, "_copy_living", lambda *args: _raise(OSError(errno.ENOSPC, "No space left")))
    fill(store, 30)
    ended(store)
    assert store.stats().errors.keys() == {"compact"}
    assert caplog.text.count("compact failed") == 1
    assert store.get("k3") == bytes([29]) * 1_000


def test_a_file_that_may_only_be_read_is_not_rewritten(make, path, monkeypatch):
    fill(make(), 3)
    monkeypatch.setattr(logfile.LogFile, "_open", _read_only(logfile.LogFile._open))
    store = make()
    assert not store.compact()
    assert not temporary(path).exists()
    store._view.size += 10 * SMALLEST
    assert not store._compaction._worth(store)


def _read_only(open_: Callable[..., int]) -> Callable[..., int]:
    def opened(self: Any) -> int:
        if ".compact" not in self.path:
            self.writable = False
        return open_(self)

    return opened


def test_what_is_more_than_one_write_takes_is_copied_with_several(store, make):
    values = {f"k{number}": bytes([number]) * 300_000 for number in range(10)}
    store.set_many(values)
    assert store.compact()
    assert store.get_many(values) == make().get_many(values) == values


# -- what others do meanwhile ------------------------------------------------------------------------------------------

STEPS = ("_copy_living", "_copy_rest", "_copy", "fsync", "_lock_old", "_put_in_place", "rename", "_adopt", "_sync")
"""What a compaction does, in this order; something may happen before each."""


def before(step: str, action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Do something once before a step of the next compaction."""
    done: list[object] = []

    def once() -> None:
        if not done:
            done.append(True)
            action()

    def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            once()
            return function(*args, **kwargs)

        return wrapper

    if step in ("fsync", "rename"):

        class System:
            def __getattr__(self, name: str) -> Any:
                return hooked(getattr(os, name)) if name == step else getattr(os, name)

        patch.setattr(compaction, "os", System())
    elif step == "_adopt":
        patch.setattr(PickleFileStore, step, hooked(PickleFileStore._adopt))
    elif step == "_sync":
        patch.setattr(compaction, "_sync_folder", hooked(compaction._sync_folder))
    else:
        patch.setattr(Compaction, step, hooked(getattr(Compaction, step)))


def start(make: Any) -> tuple[Any, Any, Any]:
    """Return two stores with entries of all kinds, and a function on the second."""
    store, another = make(), make(timeout=0.01)
    f = cache_aside(store=another, namespace="f", tags=("t{x}",), ttl=None)(lambda x: x)
    for number in range(5):
        another.set(f"k{number}", "old")
        f(number)
    another.set("garbage", 1)
    another.delete("garbage")
    return store, another, f


def content(store: Any) -> dict[str, Any]:
    return {key: store.get(key) for key in sorted(store.keys())}


ACTIONS: dict[str, Callable[[Any, Any], object]] = {
    "set": lambda store, f: store.set("k1", "new"),
    "set with tags": lambda store, f: f.set("new", 1),
    "delete": lambda store, f: store.delete("k1"),
    "pattern": lambda store, f: store.delete_pattern("k[123]"),
    "tags": lambda store, f: store.invalidate_tags("t1", "t3"),
    "function": lambda store, f: f.invalidate_all(),
    "clear": lambda store, f: store.clear(),
    "increment": lambda store, f: store.increment("counter"),
    "expire": lambda store, f: store.expire("k1", 60),
    "much": lambda store, f: store.set_many({f"m{number}": bytes(3_000) for number in range(100)}),
    "another's value": lambda store, f: (store.set("f(1)", "plain"), f.invalidate(1)),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_another_process_writes_before_any_step_is_kept(make, monkeypatch, step, action):
    store, another, f = start(make)
    expected: list[Any] = []

    def act() -> None:
        if step == "rename":  # the file is locked, a moment
            expected.append((content(another), another.ttl("k1")))
            if action in ("set", "much"):
                ACTIONS[action](another, f)
                assert another.stats().errors == {"set": 1}
            else:
                with pytest.raises(StoreError, match="another process holds the lock"):
                    ACTIONS[action](another, f)
        else:
            ACTIONS[action](another, f)
            expected.append((content(another), another.ttl("k1")))

    before(step, act, monkeypatch)
    assert store.compact()
    assert expected, "it does not do that any more"
    fresh = make()
    for each in store, another, fresh:
        assert (content(each), each.ttl("k1")) == expected[0]
    assert fresh.stats().damaged == fresh.stats().torn == 0


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_an_abort_before_any_step_leaves_the_file_and_no_other(make, path, monkeypatch, step, error):
    store, another, _ = start(make)
    expected, inode = content(another), path.stat().st_ino
    with monkeypatch.context() as patch:
        before(step, lambda: _raise(error), patch)
        if step == "_sync" and isinstance(error, OSError):
            return  # it is suppressed within
        with pytest.raises((StoreError, KeyboardInterrupt)):
            store.compact()
    assert not temporary(path).exists()
    assert (path.stat().st_ino == inode) is (step not in ("_adopt", "_sync"))
    for each in store, another, make():
        assert content(each) == expected
    store.set("goes on", 1)
    assert another.get("goes on") == 1
    assert store.compact()
    assert content(another) == expected | {"goes on": 1}


@pytest.mark.parametrize("call", ["writev", "ftruncate"])
def test_a_failure_to_begin_leaves_no_file_behind(make, path, monkeypatch, call):
    store, another, _ = start(make)
    expected = content(another)

    class System:
        def __getattr__(self, name: str) -> Any:
            if name == call:
                return lambda *args: _raise(OSError(errno.ENOSPC, "No space left on device"))
            return getattr(os, name)

    with monkeypatch.context() as patch:
        patch.setattr(logfile, "os", System())
        with pytest.raises(StoreError, match="No space left"):
            store.compact()
    if call == "writev":
        assert not temporary(path).exists()
    assert store.compact()
    assert not temporary(path).exists()
    assert content(another) == expected


@pytest.mark.parametrize("step", ["_copy_living", "_copy_rest", "fsync", "_lock_old", "_put_in_place"])
@pytest.mark.parametrize("how", ["replaced", "removed", "cut off"])
def test_a_file_that_is_replaced_beneath_is_not_overwritten(make, path, monkeypatch, step, how):
    store, another, _ = start(make)
    elsewhere = make(path.with_name("elsewhere.memo"))
    elsewhere.set("of the new file", 1)

    def replace() -> None:
        if how == "replaced":
            os.rename(elsewhere.path, path)
        elif how == "removed":
            os.unlink(path)
        else:
            os.truncate(path, 200)

    before(step, replace, monkeypatch)
    if how == "cut off" and step == "_copy_living":
        store.compact()  # nothing was read yet: it is rewritten as it is
    else:
        assert not store.compact()
    assert not temporary(path).exists()
    left = {"replaced": {"of the new file": 1}, "removed": {}, "cut off": {"k0": "old"}}
    assert content(another) == left[how]


def test_a_new_file_that_is_replaced_beneath_is_not_put_in_place(make, path, monkeypatch):
    store, another, _ = start(make)
    expected = content(another)

    def replace() -> None:
        temporary(path).unlink()
        temporary(path).write_text("somebody else's")

    before("_put_in_place", replace, monkeypatch)
    assert not store.compact()
    assert temporary(path).read_text() == "somebody else's"
    with pytest.raises(StoreError, match="somebody else's"):
        store.compact()
    assert content(store) == content(another) == expected


def test_while_another_process_holds_the_lock_it_is_left(make, path):
    store, another, _ = start(make)
    store._timeout = 0.01
    expected = content(another)
    with another._lock:
        assert another._look_locked() is not None
        assert not store.compact()
        another._view.log.unlock()
    assert not temporary(path).exists()
    assert store.compact()
    assert content(another) == expected


def test_a_file_that_another_process_is_just_making_is_left(store, path):
    """There is nothing in it yet; who opens it then may neither write the header nor wait for it."""
    path.unlink()
    with open(path, "wb") as maker:
        fcntl.flock(maker, fcntl.LOCK_EX)
        assert not store.compact()
    assert store.stats().errors == {}
    store.set("a", 1)
    assert store.compact()
    assert store.get("a") == 1


def test_something_at_the_end_that_cannot_be_read_is_left_to_who_writes_next(make, path):
    store, another, _ = start(make)
    with open(path, "ab") as file:
        file.write(b"?" * 200)
    assert not store.compact()
    another.set("k0", "after")
    assert store.compact()
    assert content(store) == content(another) == {"k0": "after"}, "what stood before the damage is not served"


def test_the_beginning_of_a_record_whose_writer_was_killed_is_not_copied(make, path):
    store, another, _ = start(make)
    whole = path.stat().st_size
    another.set("torn", bytes(1_000))
    os.truncate(path, whole + 500)
    another.close()
    store.close()
    another.set("k0", "after")
    expected = content(another)
    before_, fresh = path.stat().st_size, make()
    assert store.compact()
    assert path.stat().st_size < before_ - 500
    assert content(fresh) == content(store) == expected
    assert make().stats().torn == 0


def test_a_value_that_is_not_as_it_was_written_is_not_copied(make, path, monkeypatch):
    """Nor does what it hides come back, where it is of the part that others append meanwhile."""
    store = make()
    store.set("kept", 1)
    store.set("spoilt", "old")
    offset = path.stat().st_size

    def spoil() -> None:
        another = make()
        another.set("spoilt", "x" * 100)
        data = bytearray(path.read_bytes())
        data[data.index(b"x" * 100, offset)] ^= 1
        with open(path, "r+b") as file:
            file.write(data)

    before("_copy_rest", spoil, monkeypatch)
    assert store.compact()
    assert content(make()) == {"kept": 1}
    data = bytearray(path.read_bytes())
    monkeypatch.undo()
    store.set("spoilt", "y" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"y" * 100)] ^= 1
    with open(path, "r+b") as file:
        file.write(data)
    assert store.compact()
    assert content(make()) == {"kept": 1}


def test_what_a_clock_in_the_future_has_made_is_not_copied(make, clock, monkeypatch):
    from memo.testing import ManualClock

    ahead = make(clock=ManualClock(clock.now + 1_000))
    store = make()
    store.set("a", "now")
    before("_copy_rest", lambda: ahead.set("a", "later"), monkeypatch)
    ahead.set("b", "later")
    assert store.compact()
    assert content(store) == {}
    clock.advance(2_000)
    assert content(make()) == {}, "its time does not come"


def test_a_file_whose_values_cannot_be_verified_is_not_rewritten(make, path):
    """Who has only the old secret would drop what the new one has signed."""
    old, new = b"o" * 32, b"n" * 32
    behind, ahead = make(secret=[old]), make(secret=[new, old])
    behind.set("a", 1)
    ahead.set("b", 2)
    assert (behind.get("a"), behind.get("b")) == (1, None)
    inode = path.stat().st_ino
    assert not behind.compact()
    assert path.stat().st_ino == inode
    assert not temporary(path).exists()
    assert content(ahead) == {"a": 1, "b": 2}
    assert ahead.compact()
    assert content(ahead) == {"a": 1, "b": 2}
    with pytest.raises(StoreError, match="signed with another secret"):
        make(secret=[old])


def test_leases_do_not_outlive_it(make):
    """A load that was under way is not stored, whoever has rewritten the file."""
    for by in (0, 1):
        stores = [make(), make()]
        during = [stores[by].compact]
        f = cache_aside(store=stores[0], namespace=f"f{by}", ttl=None)(
            lambda x, during=during: during.pop()() if during else x
        )
        f(1)
        assert f.stats().refused_fills == 1
        assert f(1) == f(1) == 1


def test_the_order_of_use_survives_it(make):
    one, another = make(max_size=3), make(max_size=3)
    for key in "abc":
        another.set(key, key)
    one.get("a")
    another.set("b", "again")
    assert one.compact()
    one.set("d", 1)
    assert sorted(one.keys()) == ["a", "b", "d"]
    another.set("e", 1)
    assert sorted(one.keys()) == ["b", "d", "e"], "who reads a new file goes by the writes"


def test_a_store_that_has_another_file_by_then_does_not_adopt_it(make, monkeypatch):
    store, another, _ = start(make)
    expected = content(another)
    before("_adopt", store.close, monkeypatch)
    assert store.compact()
    assert store._view is None
    assert content(store) == content(another) == expected


# -- ends --------------------------------------------------------------------------------------------------------------


def test_closing_breaks_off_what_is_under_way(make, path, monkeypatch):
    begun = threading.Event()
    copy = Compaction._copy_living

    def endless(self: Compaction, *args: Any) -> None:
        begun.set()
        pause = threading.Event()
        while not self._stopped:
            pause.wait(0.001)
        copy(self, *args)

    monkeypatch.setattr(Compaction, "_copy_living", endless)
    store = make()
    fill(store, 30)
    assert begun.wait(PATIENCE)
    thread = store._compaction._thread
    store.close()
    assert thread is not None
    assert not thread.is_alive()
    assert not temporary(path).exists()
    assert store.get("k3") == bytes([29]) * 1_000
    assert store.stats().compactions == 0
    assert store.stats().errors == {}


def test_closing_breaks_off_the_waiting_for_the_lock(make, monkeypatch):
    store, another, _ = start(make)
    store._timeout = 60.0
    another._look_locked()
    waiting = threading.Event()
    lock = Compaction._lock_old

    def wait(self: Compaction, *args: Any) -> None:
        waiting.set()
        lock(self, *args)

    monkeypatch.setattr(Compaction, "_lock_old", wait)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(store.compact()))
    thread.start()
    assert waiting.wait(PATIENCE)
    store._compaction.stop()
    thread.join(PATIENCE)
    another._view.log.unlock()
    assert answers == [False]


KILLED = """
import sys
from memo import PickleFileStore
from memo.stores.compaction import Compaction
def held(self, *args):
    print("begun", flush=True)
    sys.stdin.read()
Compaction._copy_rest = held
store = PickleFileStore(sys.argv[1])
store.compact()
"""


def test_what_a_killed_compaction_has_left_is_cleaned_by_the_next_one(make, path, launch):
    store, another, _ = start(make)
    expected = content(another)
    process = launch(KILLED, path)
    assert process.stdout.readline() == "begun\n"
    assert temporary(path).exists()
    assert not store.compact(), "it is under way"
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    assert temporary(path).exists()
    assert content(another) == expected
    assert store.compact()
    assert not temporary(path).exists()
    assert content(another) == expected


EXIT = """
import sys, threading, time
from memo import PickleFileStore
from memo.stores import compaction
from memo.stores.compaction import Compaction
compaction.SMALLEST = 1 << 14
store = PickleFileStore(sys.argv[1], timeout=60)
endless, begun, copy = sys.argv[2] == "endless", threading.Event(), Compaction._copy_living
def late(self, *args):
    begun.set()
    while endless:
        time.sleep(0.001)
    copy(self, *args)
Compaction._copy_living = late
while not begun.is_set() if endless else store._compaction._thread is None:
    store.set_many({f"k{number}": bytes(1000) for number in range(20)})
"""


def test_the_interpreters_exit_is_not_delayed_and_silent(path, launch):
    """In the middle of a compaction, and at whatever moment of one."""
    count = 200 if NIGHTLY else 12
    kinds = ["endless" if number % 2 else "whatever" for number in range(count)]
    processes = [launch(EXIT, path.with_name(f"{number}.memo"), kind) for number, kind in enumerate(kinds)]
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")


def test_a_child_of_fork_has_no_compaction_of_its_parents(make, path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def held(self: Compaction, *args: Any) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        raise compaction._Stopped

    monkeypatch.setattr(Compaction, "_copy_living", held)
    store = make()
    fill(store, 30)
    assert begun.wait(PATIENCE)
    child = os.fork()
    if child == 0:  # pragma: no cover - measured in the parent
        status = 1
        try:
            assert store._compaction._thread is None
            store.close()
            assert store.get("k3") == bytes([29]) * 1_000
            assert not store.compact(), "the parent is at it"
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    ended(store)
    monkeypatch.undo()
    assert store.compact()


# -- real processes ----------------------------------------------------------------------------------------------------

CHILDRENS = 1 << 14
"""What `SMALLEST` is in those processes."""

LOOP = """
import sys, random
from memo import PickleFileStore
from memo.stores import compaction
path, me, rounds, compaction.SMALLEST = sys.argv[1], *map(int, sys.argv[2:])
store = PickleFileStore(path, timeout=60)
chance = random.Random(me)
mine = {}
for number in range(rounds):
    key = f"{me}:{chance.randrange(20)}"
    if chance.random() < 0.2:
        store.delete(key)
        mine.pop(key, None)
    else:
        mine[key] = number
        store.set(key, (number, bytes(chance.randrange(400))))
    if chance.random() < 0.01:
        store.compact()
    if chance.random() < 0.05:
        key = f"{me}:{chance.randrange(20)}"
        found = store.get(key)
        assert (None if found is None else found[0]) == mine.get(key), (key, found, mine.get(key))
assert not store.stats().errors, store.stats()
store.close()
print(repr(mine))
"""


def test_processes_that_set_delete_and_compact_lose_nothing_and_the_file_stays_small(path, make, launch, monkeypatch):
    """Each has keys of its own, and the number of the last set as its value: what it knows is what is to be there."""
    rounds = 20_000 if NIGHTLY else 600
    processes = [launch(LOOP, path, number, rounds, CHILDRENS) for number in range(4 if not NIGHTLY else 8)]
    expected: dict[str, int] = {}
    for process in processes:
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
        expected |= eval(out)
    store = make(clock=__import__("time"))
    assert {key: number for key, (number, _) in content(store).items()} == expected
    # How small it is just now is chance: closing breaks off what is under way. Whoever writes next makes it small.
    monkeypatch.setattr(compaction, "SMALLEST", CHILDRENS)
    store.set("one more", 1)
    ended(store)
    counted = store.stats()
    assert counted.damaged == counted.torn == 0
    assert not counted.errors
    assert counted.file_size < 2 * counted.live_size + 4 * CHILDRENS
    assert not temporary(path).exists()


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ordered", "limit"), [(False, 120), (True, 220)])
def test_the_index_takes_no_more_than_120_bytes_a_key_beside_the_keys_text(ordered, limit):
    """Of a store without `max_size`; the order of use costs more."""
    keys = [f"a key of some length, number {number}" for number in range(100_000)]
    gc.collect()
    tracemalloc.start()
    try:
        index = Index(ordered)
        for number, key in enumerate(keys):
            index.put(key, (1 << 40) + number, 1_000, "", 1.7e9 + number, (), None)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(index) == len(keys)
    assert taken / len(keys) <= limit


def test_the_index_counts_the_bytes_that_live():
    """Its own sum agrees with a look at all, whatever is done to it."""
    index, chance = Index(ordered=True), random.Random(1)
    for offset in range(1, 3_000):
        key = chance.choice("abcdef")
        step = chance.randrange(8)
        if step < 4:
            tags = ("t",) if chance.random() < 0.5 else ()
            index.put(key, offset, chance.randrange(1, 100), chance.choice("xy"), 1e300, tags, None)
        elif step == 4:
            index.drop(key)
        elif step == 5:
            index.mark_tags(("t",), offset)
        elif step == 6:
            index.mark_owner("x", offset)
        else:
            index.drop_matching(lambda key: key < "c")
        index.sweep()
        spots = [index.find(key) for key in index.listed()]
        assert index.live == sum(spot.length for spot in spots if spot is not None)
    assert MISSING not in index.listed()
