"""The queue behind the callers' backs: bounded, one job of a kind, no job's end is the queue's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from memo import background as module
from memo.background import Background

PATIENCE = 20.0


class Held:
    """A job that says that it runs, and waits until it may end."""

    def __init__(self):
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.gate.wait(PATIENCE)

    def arrived(self):
        assert self.entered.wait(PATIENCE)


@pytest.fixture
def queue():
    made = Background()
    yield made
    assert made.drain(PATIENCE)


def test_a_job_runs_in_a_daemon_thread_of_its_own(queue):
    seen = []
    assert queue.submit("a", lambda: seen.append(threading.current_thread()))
    assert queue.drain(PATIENCE)
    (thread,) = seen
    assert thread.daemon
    assert thread is not threading.current_thread()


def test_of_two_with_one_mark_the_second_is_declined_until_the_first_is_done(queue):
    held = Held()
    assert queue.submit("a", held)
    held.arrived()
    assert not queue.submit("a", held)
    assert queue.submit("b", lambda: None)
    held.gate.set()
    assert queue.drain(PATIENCE)
    assert queue.submit("a", lambda: None)


def test_no_more_than_four_run_at_once_and_the_rest_waits(queue):
    jobs = [Held() for _ in range(6)]
    assert all(queue.submit(number, job) for number, job in enumerate(jobs))
    for job in jobs[:4]:
        job.arrived()
    assert not any(job.entered.is_set() for job in jobs[4:])
    jobs[0].gate.set()
    jobs[4].arrived()
    assert not jobs[5].entered.is_set()
    for job in jobs:
        job.gate.set()
    assert queue.drain(PATIENCE)
    assert all(job.entered.is_set() for job in jobs)


def test_a_full_queue_declines(queue, monkeypatch):
    monkeypatch.setattr(module, "LONGEST", 2)
    jobs = [Held() for _ in range(4)]
    for number, job in enumerate(jobs):
        assert queue.submit(number, job)
        job.arrived()
    assert queue.submit("waits", lambda: None)
    assert queue.submit("waits too", lambda: None)
    assert not queue.submit("too much", lambda: None)
    for job in jobs:
        job.gate.set()
    assert queue.drain(PATIENCE)
    assert queue.submit("too much", lambda: None)


def test_what_a_job_raises_is_logged_and_the_next_one_runs(queue, caplog):
    def fail():
        raise SystemExit

    held = [Held() for _ in range(4)]
    for number, job in enumerate(held):
        queue.submit(number, job)
        job.arrived()
    seen = []
    queue.submit("fails", fail)
    queue.submit("runs", lambda: seen.append(1))
    for job in held:
        job.gate.set()
    assert queue.drain(PATIENCE)
    assert seen == [1]
    assert [record.getMessage() for record in caplog.records] == ["a background job failed"]
    assert queue.submit("fails", lambda: None)


def test_threads_end_when_there_is_nothing_to_do(queue):
    queue.submit("a", lambda: None)
    assert queue.drain(PATIENCE)
    for thread in threading.enumerate():
        if thread.name == "memo-refresh":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_where_no_thread_can_be_started_a_job_is_declined(queue, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not queue.submit("a", pytest.fail)
    assert queue.drain(PATIENCE)
    assert queue.submit("a", lambda: None)


def test_who_waits_for_the_end_is_told_when_no_thread_can_be_started(queue, monkeypatch):
    waiter, start = threading.Thread(target=queue.drain, daemon=True), threading.Thread.start

    def fail(self):
        if self is waiter:
            return start(self)
        waiter.start()
        while not queue._idle._waiters:
            threading.Event().wait(0.0005)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert not queue.submit("a", pytest.fail)
    waiter.join(PATIENCE)
    assert not waiter.is_alive()


def test_where_no_thread_can_be_started_another_worker_may_have_the_job_already(queue, monkeypatch):
    held, seen = Held(), []
    queue.submit("held", held)
    held.arrived()

    def fail(self):
        held.gate.set()
        while queue._jobs:
            threading.Event().wait(0.0005)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert queue.submit("a", lambda: seen.append(1))
    assert queue.drain(PATIENCE)
    assert seen == [1]


def test_drain_gives_up_at_its_limit(queue):
    held = Held()
    queue.submit("a", held)
    held.arrived()
    assert not queue.drain(0.001)
    held.gate.set()
    assert queue.drain(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.usefixtures("untraced")
def test_a_forked_child_begins_with_an_empty_queue(queue):
    held = Held()
    queue.submit("a", held)
    held.arrived()
    pid = os.fork()
    if pid == 0:
        seen = []
        ran = queue.drain(0) and queue.submit("a", lambda: seen.append(1)) and queue.drain(PATIENCE) and seen == [1]
        os._exit(0 if ran else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    held.gate.set()


SCRIPT = """
import threading, time
from memo import MemoryStore, cache_aside
from memo.testing import ManualClock

clock = ManualClock()
entered = threading.Event()
first = [True]

@cache_aside(store=MemoryStore(clock=clock), ttl=10, stale_while_revalidate=5)
def load(x):
    if first:
        return first.pop()
    entered.set()
    threading.Event().wait({wait})

load(1)
clock.advance(11)
load(1)
assert entered.wait(20)
"""


@pytest.mark.parametrize("turn", range(3))
def test_interpreter_exit_with_refresh_running_is_not_delayed_and_silent(turn):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(wait=3_600)], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
