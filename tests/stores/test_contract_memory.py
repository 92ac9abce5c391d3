"""The memory store keeps the promises of every store: by reference and with a serializer, blocking and awaited."""

from __future__ import annotations

import pickle

from memo import MemoryStore
from memo.testing import StoreContract


class TestMemoryStore(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return MemoryStore(clock=clock, default_ttl=default_ttl, cleanup_interval=None)


class TestMemoryStoreWithASerializer(StoreContract):
    def make_store(self, clock, default_ttl=None):
        return MemoryStore(clock=clock, default_ttl=default_ttl, cleanup_interval=None, serializer=pickle)
