"""Exact LRU, exact counts and sound internals, step by step, on stores of one to four entries."""

from __future__ import annotations

import pickle

from memo import MemoryStore
from memo.testing import LruMachine


class PickledLruMachine(LruMachine):
    def make_store(self, max_size, clock):
        return MemoryStore(max_size=max_size, clock=clock, cleanup_interval=None, serializer=pickle)


TestLru = LruMachine.TestCase
TestPickledLru = PickledLruMachine.TestCase
