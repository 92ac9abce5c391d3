"""Sweeping: on demand, and by one thread for all stores that keeps none of them alive."""

from __future__ import annotations

import gc
import logging
import os
import select
import threading
import weakref

import pytest

from memo import MemoryStore, cache_aside
from memo.stores.sweeper import Sweeper, sweeper
from memo.testing import ManualClock, check_memory_store

SAFETY = 60


class Sweepable:
    """A store as the sweeper sees it, that tells when it is visited."""

    def __init__(self, interval, removes=0):
        self.cleanup_interval = interval
        self.visits = 0
        self.visited = threading.Event()
        self._removes = removes

    def cleanup(self):
        self.visits += 1
        self.visited.set()
        return self._removes


class Failing(Sweepable):
    def cleanup(self):
        super().cleanup()
        raise RuntimeError("broken")


class ThreadlessSweeper(Sweeper):
    """Driven by the test, turn by turn."""

    def _start(self):
        pass


@pytest.fixture
def turning():
    return ThreadlessSweeper()


# -- cleanup() -------------------------------------------------------------------------------------------------------


def test_cleanup_removes_what_is_expired_and_says_how_many(clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    load = cache_aside(store=store, namespace="load", ttl=1, tags=("t",))(lambda x: x)
    load(1)
    store.set_many({"a": 1, "b": 1}, 1)
    store.set("c", 1, 2)
    store.set("d", 1)
    assert store.cleanup() == 0
    clock.advance(1)
    assert store.cleanup() == 3
    assert sorted(store.keys()) == ["c", "d"]
    assert len(store) == 2
    assert store.stats().expirations == 3
    assert store.cleanup() == 0
    check_memory_store(store)


def test_cleanup_of_more_than_one_chunk(clock):
    store = MemoryStore(max_size=None, clock=clock, cleanup_interval=None)
    store.set_many({str(number): number for number in range(2_500)}, 1)
    store.set("there", 1)
    clock.advance(1)
    assert store.cleanup() == 2_500
    assert store.keys() == ["there"]


def test_what_changes_while_a_cleanup_goes_on_is_looked_at_again(clock):
    """The lock is free between two chunks: what another has removed, replaced or prolonged is not removed."""
    store = MemoryStore(max_size=None, clock=clock, cleanup_interval=None)
    store.set_many({str(number): number for number in range(1_200)}, 1)
    store.set_many({"deleted": 1, "replaced": 1, "prolonged": 1}, 1)
    prolonged = next(reversed(store._shelf.order))

    class Meanwhile(type(store._shelf)):
        __slots__ = ()

        def expire(self, entry, victims):
            super().expire(entry, victims)
            if entry.key == "0":
                store.delete("deleted")
                store.set("replaced", "new")
                prolonged.fresh_until += 10

    store._shelf.__class__ = Meanwhile
    clock.advance(1)
    assert store.cleanup() == 1_200
    assert store.get_many(["deleted", "replaced", "prolonged"]) == {"replaced": "new", "prolonged": 1}
    assert len(store) == 2


def test_cleanup_buries_what_dead_functions_and_instances_leave():
    store = MemoryStore(cleanup_interval=None)
    load = cache_aside(store=store, namespace="load")(lambda x: x)
    load(1)

    class Thing:
        @cache_aside(store=store)
        def method(self, x):
            return x

    Thing().method(1)
    del load
    gc.collect()
    assert len(store) == 2
    assert store.cleanup() == 0
    assert len(store) == 0
    check_memory_store(store)


def test_a_cleanup_that_sees_the_clock_run_backwards_empties_the_store(clock):
    store = MemoryStore(clock=clock, cleanup_interval=None)
    store.set("a", 1, 10)
    clock.advance(-1)
    assert store.cleanup() == 0
    assert len(store) == 0


# -- the sweeper's turns ---------------------------------------------------------------------------------------------


def test_each_store_is_visited_at_its_own_interval(turning):
    fast, slow = Sweepable(10, removes=1), Sweepable(25, removes=5)
    turning.add(fast)
    turning.add(slow)
    assert turning.pause() == 10
    assert turning.turn(10) == 1
    assert (fast.visits, slow.visits) == (1, 0)
    assert turning.pause() == 10
    assert turning.turn(10) == 1
    assert turning.pause() == 5
    assert turning.turn(5) == 5
    assert (fast.visits, slow.visits) == (2, 1)
    assert turning.pause() == 5
    assert turning.turn(5) == 1


def test_a_turn_before_its_time_visits_nobody(turning):
    store = Sweepable(10)
    turning.add(store)
    assert turning.turn(9.5) == 0
    assert store.visits == 0
    assert turning.pause() == 0.5


def test_a_pause_is_never_so_short_that_the_thread_spins(turning):
    store = Sweepable(1e-9)
    turning.add(store)
    assert turning.pause() == 0.01


def test_the_sweeper_keeps_no_store_alive(turning):
    stores = [Sweepable(10) for _ in range(3)]
    for store in stores:
        turning.add(store)
    turning.turn(10)
    references = [weakref.ref(store) for store in stores]
    del store, stores
    assert not any(reference() for reference in references)
    assert turning.pause() is None
    assert turning.turn(10) == 0


def test_a_store_whose_cleanup_fails_stops_nobody(turning, caplog):
    stores = [Failing(10), Sweepable(10, removes=2), Failing(10)]
    for store in stores:
        turning.add(store)
    with caplog.at_level(logging.ERROR, logger="memo"):
        assert turning.turn(10) == 2
        assert turning.turn(10) == 2
    assert [store.visits for store in stores] == [2, 2, 2]
    assert "a store's cleanup failed" in caplog.text
    assert "broken" in caplog.text


class Over(BaseException):
    """The script is at its end."""


class Scripted:
    """The clock and the event of a sweeper: each wait takes its seconds (None: all of them), then something happens."""

    def __init__(self, *waits):
        self.now = 1_000.0
        self._waits = list(waits)
        self.pauses = []

    def monotonic(self):
        return self.now

    def wait(self, pause):
        self.pauses.append(pause)
        if not self._waits:
            raise Over
        taken, happens = self._waits.pop(0)
        self.now += pause if taken is None else taken
        happens()
        return taken is not None

    def set(self): ...
    def clear(self): ...


@pytest.fixture
def scripted(monkeypatch, turning):
    """Run the sweeper's loop here, on a script; return the pauses that it made."""

    def run(*waits):
        turning._changed = script = Scripted(*waits)
        monkeypatch.setattr("memo.stores.sweeper.time", script)
        turning._thread, turning._mark = "runs", script.now
        with pytest.raises(Over):
            turning._run()
        return script.pauses

    return run


def test_stores_that_come_all_the_time_do_not_keep_the_others_waiting(scripted, turning):
    """Each wakes the thread before its pause is over; the time until then has passed for those that wait."""
    patient, visits, later = Sweepable(10), [], [Sweepable(1_000) for _ in range(5)]
    turning.add(patient)

    def comes():
        visits.append(patient.visits)
        turning.add(later.pop())

    kept = list(later)
    assert scripted(*[(3, comes)] * 5) == [10, 7, 4, 1, 10, 7]
    assert visits == [0, 0, 0, 0, 1]
    assert len(kept) == 5


def test_a_store_that_came_while_the_thread_waited_has_its_own_interval(scripted, turning):
    first, late, seen = Sweepable(10), Sweepable(5), []
    turning.add(first)

    def looks():
        seen.append(late.visits)

    assert scripted((8, lambda: turning.add(late)), (1, looks), (None, looks), (None, looks)) == [10, 2, 1, 3, 5]
    assert seen == [0, 0, 0]
    assert (first.visits, late.visits) == (1, 1)


def test_a_clock_that_a_test_stops_or_moves_stops_no_sweep(scripted, turning):
    store, late = Sweepable(10), Sweepable(10)
    turning.add(store)

    def goes_back():
        turning._changed.now -= 5_000

    def jumps():
        turning._changed.now += 5_000
        turning.add(late)
        turning._changed.now -= 5_000

    assert scripted((None, goes_back), (None, goes_back), (4, jumps), (None, int)) == [10, 10, 10, 10, 10]
    assert (store.visits, late.visits) == (4, 1)


# -- the thread ------------------------------------------------------------------------------------------------------


def test_the_thread_visits_and_ends_with_the_last_store():
    running = Sweeper()
    store = Sweepable(0.01)
    running.add(store)
    thread = running._thread
    assert thread.daemon
    assert thread.name == "memo-sweeper"
    assert store.visited.wait(SAFETY)
    del store
    thread.join(SAFETY)
    assert not thread.is_alive()
    assert running._thread is None


def test_the_thread_starts_again_with_the_next_store():
    running = Sweeper()
    for _ in range(2):
        store = Sweepable(0.01)
        running.add(store)
        thread = running._thread
        assert store.visited.wait(SAFETY)
        del store
        thread.join(SAFETY)
        assert not thread.is_alive()


def test_a_store_that_comes_while_the_thread_waits_is_not_kept_waiting_behind_a_longer_pause():
    running = Sweeper()
    patient = Sweepable(3_600)
    running.add(patient)
    thread = running._thread
    urgent = Sweepable(0.01)
    running.add(urgent)
    assert running._thread is thread
    assert urgent.visited.wait(SAFETY)
    assert patient.visits == 0
    del patient, urgent
    running._changed.set()
    thread.join(SAFETY)
    assert not thread.is_alive()


def test_a_store_that_fails_does_not_end_the_thread(monkeypatch):
    monkeypatch.setattr(logging.getLogger("memo"), "disabled", True)  # a record would hold the store
    running = Sweeper()
    failing, good = Failing(0.01), Sweepable(0.01)
    running.add(failing)
    assert failing.visited.wait(SAFETY)
    failing.visited.clear()
    assert failing.visited.wait(SAFETY)
    running.add(good)
    assert good.visited.wait(SAFETY)
    thread = running._thread
    del failing, good
    thread.join(SAFETY)
    assert not thread.is_alive()


def test_all_stores_share_one_thread():
    stores = [MemoryStore() for _ in range(5)]
    assert sum(thread.name == "memo-sweeper" and thread is sweeper._thread for thread in threading.enumerate()) == 1
    assert all(store in sweeper._stores for store in stores)


def test_a_store_without_an_interval_is_never_swept():
    store = MemoryStore(cleanup_interval=None)
    assert store not in sweeper._stores


def test_an_expired_entry_is_swept_without_being_met():
    clock = ManualClock()
    swept = threading.Event()

    class Value:
        def __del__(self):
            swept.set()

    store = MemoryStore(clock=clock, cleanup_interval=0.01)
    store.set("a", Value(), 1)
    clock.advance(1)
    assert swept.wait(SAFETY)


def test_a_store_is_freed_although_it_is_swept():
    store = MemoryStore(cleanup_interval=0.01)
    store.set("a", 1, 10)
    reference = weakref.ref(store)
    freed = threading.Event()
    weakref.finalize(store, freed.set)
    del store
    gc.collect()
    assert freed.wait(SAFETY)
    assert reference() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_sweeps_on_its_own():
    """A fork copies no thread but one, so without a new one the child's stores would only grow."""
    clock = ManualClock()
    store = MemoryStore(clock=clock, cleanup_interval=0.01)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:

            class Value:
                def __del__(self):
                    os.write(tell, b"swept")

            alive = sweeper._thread is not None and sweeper._thread.is_alive()
            store.set("a", Value(), 1)
            clock.advance(1)
            readable, _, _ = select.select([told], [], [], SAFETY)
            status = 0 if alive and readable else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    os.close(told)
    os.close(tell)
    assert os.waitstatus_to_exitcode(status) == 0
    assert sweeper._thread.is_alive()


def test_a_forked_child_without_stores_starts_no_thread():
    running = Sweeper()
    running._forked()
    assert running._thread is None
