"""The memory store against a dict and a clock, blocking and awaited, by reference and with a serializer."""

from __future__ import annotations

import os
import pickle
import tempfile

from hypothesis import settings
from hypothesis.stateful import precondition, rule

from memo import MemoryStore
from memo.testing import StoreMachine, check_memory_store


class MemoryMachine(StoreMachine):
    serializer = None

    def make_store(self, clock):
        return MemoryStore(
            max_size=None, default_ttl=self.DEFAULT_TTL, cleanup_interval=None, serializer=self.serializer, clock=clock
        )

    @rule()
    def cleanup(self):
        self.side.store.cleanup()
        assert len(self.side.store) == len(self._alive())

    @rule()
    @precondition(lambda self: self.model)
    def save_and_load(self):
        """Into the same store, whose functions find their entries again."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "saved")
            before = self.side.stats()
            assert self.side.store.save(path) == len(self._alive())
            self.side.store.set("a", "not saved")
            self.one(99)
            self.advance(1)
            assert self.side.store.load(path) == len(self._alive())
            after = self.side.stats()
            assert (before.hits, before.misses, before.sets) == (after.hits, after.misses, after.sets)

    def teardown(self):
        check_memory_store(self.side.store)
        super().teardown()


class AwaitedMachine(MemoryMachine):
    awaits = True


class PickledMachine(MemoryMachine):
    """Every value that goes in or comes out is changed by the caller afterwards, and nobody else sees it."""

    serializer = pickle
    copies = True


class AwaitedPickledMachine(PickledMachine):
    awaits = True


TestMemory = MemoryMachine.TestCase
TestAwaited = AwaitedMachine.TestCase
TestPickled = PickledMachine.TestCase
TestAwaitedPickled = AwaitedPickledMachine.TestCase
# A step through an event loop takes twice as long, and what is done in it is the same.
TestAwaited.settings = TestAwaitedPickled.settings = settings(max_examples=settings().max_examples // 2)
