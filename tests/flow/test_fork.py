"""A child of fork has one thread: no lock is left locked in it, and it waits for no flight of its parent's."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import select
import signal
import threading
import traceback
import warnings
import weakref

import pytest

from memo import MemoryStore, cache_aside, config, flight, forks, places, stats

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

PATIENCE = 20


def in_child(function):
    """Return what `function` returns, as text, in a forked child; a child that hangs is killed and fails the test."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: fork beside threads is what is tested here
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writer, str(function()).encode())
            code = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], PATIENCE)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        text = os.read(reader, 65_536).decode() if ready else "the child hangs"
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    assert status == 0, text
    return text


def test_a_child_answers_a_key_that_its_parent_is_loading(cached, spawn, result, look, source):
    f = cached(lambda x: source.read() if os.getpid() == parent else "of the child")
    parent = os.getpid()
    source.hold()
    call = spawn(f, 7)
    source.arrived()
    assert in_child(lambda: f(7)) == "of the child"
    assert in_child(lambda: f.refresh(7)) == "of the child"
    source.gate.set()
    assert result(call) == 0
    assert f(7) == 0
    look(f).clean()


def test_a_child_answers_a_key_that_a_task_of_its_parents_is_loading(cached, spawn, result, look, source):
    async def load(x):
        return await source.aread() if os.getpid() == parent else "of the child"

    f = cached(load)
    parent = os.getpid()
    source.hold()
    call = spawn(asyncio.run, f(7))
    source.arrived()
    assert in_child(lambda: asyncio.run(f(7))) == "of the child"
    source.gate.set()
    assert result(call) == 0
    look(f).clean()


def test_a_fork_within_a_load_lets_both_sides_finish_it(cached, look):
    """The child goes on as the leader of a flight that to its other threads is a dead one."""
    parent = os.getpid()

    def load(x):
        if x == 7 and os.getpid() == parent:
            return "parent", in_child(lambda: (f(8), f.peek(7), f.refresh(7)))
        return "child"

    f = cached(load)
    assert f(7) == ("parent", "('child', MISSING, 'child')")
    assert f(7)[0] == "parent"
    look(f).clean()


@pytest.mark.usefixtures("untraced")
def test_forks_while_threads_hammer_the_store(store):
    """What a lock guards is whole in the child, and the lock is free there."""
    f = cache_aside(store=store, tags=("t",), ttl=60)(lambda x: x)
    stop = threading.Event()
    failures = []

    def hammer(seed):
        x = seed
        while not stop.is_set():
            x = (x * 31 + 7) % 50
            try:
                assert f(x) == x
                if x % 5 == 0:
                    f.invalidate(x)
                elif x % 7 == 0:
                    store.invalidate_tags("t")
                elif x % 11 == 0:
                    f.refresh(x)
                elif x % 13 == 0:
                    f.stats()
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=hammer, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()

    def child():
        for x in range(60):
            assert f(x) == x
        f.invalidate_all()
        store.invalidate_tags("t")
        store.clear()
        counted = f.stats()
        assert counted.hits + counted.misses >= 60
        assert len(store) == store.stats().size == 0
        return "answered"

    try:
        for _ in range(25):
            assert in_child(child) == "answered"
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert failures == []
    assert f(1) == 1


def test_every_lock_is_free_on_both_sides_after_a_fork_that_held_them_all(store):
    """The fork itself waits for each lock, so another thread that holds one delays it and is not torn."""
    held, let_go = threading.Event(), threading.Event()

    def hold():
        with store._shelf.lock:
            held.set()
            assert let_go.wait(PATIENCE)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(PATIENCE)
    threading.Thread(target=let_go.set, daemon=True).start()

    locks = [store._shelf.lock, flight._lock, stats._lock, places._lock, config._lock]

    def locks_are_free():
        return all(lock.acquire(timeout=1) for lock in locks)

    assert in_child(locks_are_free) == "True"
    thread.join(PATIENCE)
    done = threading.Event()

    def take_all():
        for lock in locks:
            with lock:
                pass
        done.set()

    threading.Thread(target=take_all, daemon=True).start()
    assert done.wait(PATIENCE)


def test_a_child_counts_on_from_its_parents_figures(cached):
    f = cached(lambda x: x)
    f(1)
    f(1)

    def child():
        f(1)
        f(2)
        counted = f.stats()
        return counted.hits, counted.misses, counted.loads

    assert in_child(child) == "(2, 2, 2)"
    assert (f.stats().hits, f.stats().misses) == (1, 1)


def test_a_child_may_fork_again(cached):
    f = cached(lambda x: x)
    assert in_child(lambda: in_child(lambda: f(7))) == "7"


def test_a_flight_of_another_process_is_dead(cached, look):
    f = cached(lambda x: x)
    f.invalidate(7)
    mine = f._self_memoized._flight(look(f).space, "key", (7,), {})
    assert not mine.dead()
    before = flight._process
    try:
        flight._child()
        assert mine.dead()
    finally:
        flight._process = before


def test_a_lock_that_nobody_holds_any_more_is_let_go():
    lock = forks.fork_safe_lock()
    ref = weakref.ref(lock)
    del lock
    assert ref() is None
    assert in_child(lambda: "forked") == "forked"


def test_the_hooks_take_every_lock_and_release_it():
    """What `os.fork` calls, in this process."""
    taken = []
    other = threading.Event()

    def attempt(lock):
        got = lock.acquire(blocking=False)
        if got:
            lock.release()
        taken.append(got)
        other.set()

    lock = forks.fork_safe_lock()
    for release in (forks._release, forks._after_in_child):
        before = flight._process
        forks._before()
        try:
            other.clear()
            threading.Thread(target=attempt, args=(lock,)).start()
            assert other.wait(PATIENCE)
        finally:
            release()
            flight._process = before
        other.clear()
        threading.Thread(target=attempt, args=(lock,)).start()
        assert other.wait(PATIENCE)
    assert taken == [False, True, False, True]


def test_a_store_made_in_a_child_works_there():
    def child():
        store = MemoryStore()
        f = cache_aside(store=store)(lambda x: x)
        with contextlib.suppress(KeyError):
            f(1)
        return f(1), f.stats().hits

    assert in_child(child) == "(1, 1)"


def test_a_lock_that_dies_while_the_fork_gathers_them_is_passed_over():
    lock = threading.RLock()
    forks._inner[-1] = weakref.ref(lock)
    del lock
    try:
        forks._before()
        forks._release()
    finally:
        del forks._inner[-1]
    assert forks._held == []


def test_a_system_without_fork_needs_none_of_it(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    spec = importlib.util.spec_from_file_location("forks_without_fork", forks.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.fork_safe_lock():
        pass


def test_one_callback_that_fails_in_a_child_keeps_no_other_from_its_work(monkeypatch):
    done = []

    def fails():
        raise ValueError("on purpose")

    monkeypatch.setattr(forks, "_callbacks", [fails, lambda: done.append(1)])
    with pytest.raises(ValueError, match="on purpose"):
        forks._after_in_child()
    assert done == [1]
