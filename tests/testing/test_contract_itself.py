"""What the contract and the state machine say of themselves when they are used in a wrong way, or meet an error."""

from __future__ import annotations

import itertools
import threading

import pytest

from memo import MemoryStore
from memo.testing import ManualClock, StoreContract, StoreMachine


def test_a_contract_that_makes_no_store_says_so():
    with pytest.raises(NotImplementedError):
        StoreContract().make_store(ManualClock())


def test_a_machine_that_makes_no_store_says_so():
    with pytest.raises(NotImplementedError):
        StoreMachine()


def test_an_increment_that_raises_in_one_thread_ends_the_others_too_and_the_test_fails(monkeypatch):
    """They would wait at the barrier for the one that is gone."""

    class Refusing(MemoryStore):
        def increment(self, key, amount=1):
            if next(calls) == 7:
                raise OSError("full")
            return super().increment(key, amount)

    class Contract(StoreContract):
        def make_store(self, clock, default_ttl=None):
            return Refusing(clock=clock, cleanup_interval=None)

    class Barrier(threading.Barrier):
        def abort(self):
            aborted.append(threading.current_thread())
            super().abort()

    calls, aborted, raised = itertools.count(), [], []
    monkeypatch.setattr(threading, "Barrier", Barrier)
    monkeypatch.setattr(threading, "excepthook", lambda given: raised.append((given.thread, given.exc_type)))
    with pytest.raises(AssertionError):
        Contract().test_increment_is_atomic()
    (refused,) = [thread for thread, kind in raised if kind is OSError]
    assert refused in aborted
    assert [kind for thread, kind in raised if thread is not refused] == [threading.BrokenBarrierError] * 3
