"""What the machines catch: each breaks the code on purpose, and the machine that watches it must fail.

A machine that passes whatever is done to the code proves nothing. The list is what README and docs may claim.
"""

from __future__ import annotations

from typing import Any

import pytest

from memo import aside
from memo.entry import MISSING, Lease, Reading, TaggedLease
from memo.flight import Flight
from memo.memoized import Memoized
from memo.stores.memory import MemoryStore
from memo.stores.shelf import Shelf
from memo.stores.tables import Table
from mutants import Patch, Watch, catch, machine, replaced, source_of
from schedules import schedules
from siblings import module


def explorer(invalidation: str) -> Watch:
    """Return a call that tries every interleaving of a load, an invalidation and a call, with few preemptions."""

    def watch() -> None:
        flow = module("flow/test_no_stale_fill.py")

        def make(world: Any) -> list[Any]:
            writer = world.writer(flow.INVALIDATIONS[invalidation])
            return [world.caller("lookup"), writer, world.caller("lookup")]

        flow.explore(make, ("t",) if invalidation == "tag" else (), 2)

    return watch


def one_load() -> None:
    """Try every interleaving of three calls of one key: the function is called once."""
    flow = module("flow/test_no_stale_fill.py")

    class Counting(flow.World):  # type: ignore[misc,name-defined]
        reads = 0

        @property
        def version(self) -> int:
            self.reads += 1
            return 1

        @version.setter
        def version(self, value: int) -> None: ...

    world = Counting(())

    def make() -> list[Any]:
        world.next()
        world.reads = 0
        return [world.caller("lookup") for _ in range(3)]

    for _ in schedules(make, 2):
        assert world.reads == 1


def drop_the_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: Table, key: Any, tags: tuple[str, ...], renew: bool) -> Reading:
        with self.shelf.lock:
            if renew:
                self.shelf.void(self, key)
            lease = self.leases.get(key)
            if lease is None:
                lease = self.leases[key] = TaggedLease(self, key, tags) if tags else Lease()
                if tags:
                    self.shelf.tag(lease, tags)
        return Reading(MISSING, lease)

    monkeypatch.setattr(Table, "take", take)


def skip_the_lease_check(monkeypatch: pytest.MonkeyPatch) -> None:
    insert = Shelf.insert
    monkeypatch.setattr(Shelf, "insert", lambda self, entry, victims, lease=None: insert(self, entry, victims))


def keep_the_lease_on_an_invalidation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "void", lambda self, table, key: None)


ASIDE = machine("machines/test_aside_machine.py", "AsideMachine", 400)
STORE = machine("machines/test_store_machine.py", "MemoryMachine", 400)
WINDOWS = machine("machines/test_windows_machine.py", "Windows", 400)
LRU = machine("machines/test_lru_machine.py", "PickledLruMachine", 400)

MUTANTS: dict[str, tuple[Watch, Patch]] = {
    "the second look is dropped": (ASIDE, drop_the_second_look),
    "a fill does not check its lease": (ASIDE, skip_the_lease_check),
    "an invalidation of a key leaves the lease": (ASIDE, keep_the_lease_on_an_invalidation),
    "an invalidation of a tag leaves the lease": (
        explorer("tag"),
        source_of(Shelf, "invalidate_tag", "del item.space.leases[item.key]", "pass"),
    ),
    "an invalidation of a function leaves the leases": (
        explorer("whole function"),
        source_of(Shelf, "empty_table", "table.leases.clear()", "pass"),
    ),
    "a clear leaves the leases": (explorer("clear"), source_of(Shelf, "empty", "each.leases.clear()", "pass")),
    "any flight may be joined": (
        explorer("key"),
        replaced(Flight, "may_join", lambda self, reading: True),
    ),
    "no flight may be joined": (
        one_load,
        replaced(Flight, "may_join", lambda self, reading: False),
    ),
    "a flight whose lease differs is replaced without another look": (
        one_load,
        source_of(aside, "_lookup", "flight is doubted", "True"),
    ),
    "a flight is not settled": (ASIDE, replaced(Flight, "settle", lambda self, outcome: None)),
    "a failed load keeps its lease": (
        ASIDE,
        source_of(
            aside,
            "load",
            "        if lease is not None:\n            yield Release(lease, remove=False)\n        return outcome",
            "        return outcome",
        ),
    ),
    "a ttl ends after its boundary": (
        STORE,
        source_of(Shelf, "alive", "now < entry.fresh_until", "now <= entry.fresh_until"),
    ),
    "a clock that runs backwards goes unnoticed": (STORE, source_of(Shelf, "tick", "if now < latest:", "if False:")),
    "a tag leads nowhere": (STORE, replaced(Shelf, "tag", lambda self, item, tags: None)),
    "an invalidation leaves the entry": (
        STORE,
        replaced(Shelf, "remove", lambda self, table, key, now, victims: self.void(table, key) or False),
    ),
    "a read is no use": (LRU, source_of(Table, "_kept", "shelf.order.move_to_end(entry)", "pass")),
    "the most recently used entry is evicted": (LRU, source_of(Shelf, "evict", "last=False", "last=True")),
    "one entry too many": (
        LRU,
        source_of(Shelf, "insert", "if len(order) >= self.max_size:", "if len(order) > self.max_size:"),
    ),
    "an eviction is not counted": (LRU, source_of(Shelf, "evict", "self.evictions += 1", "pass")),
    "a slow hit is not counted": (
        STORE,
        source_of(Memoized, "_hit", "self.counters.hits.tick()", "pass"),
    ),
    "stale is served past its window": (
        WINDOWS,
        source_of(Table, "read", "now < entry.stale_until", "now < entry.kept_until"),
    ),
    "stale is not served": (WINDOWS, source_of(Table, "read", "if not late or now < entry.stale_until", "if not late")),
    "what is fresh is refreshed again": (
        WINDOWS,
        source_of(Table, "take", "entry is not None and now < entry.due", "False"),
    ),
    "a refresh takes what is stale for the answer": (
        WINDOWS,
        source_of(Table, "take", "now < entry.due", "now < entry.kept_until"),
    ),
    "an overtaken refresh is stored": (
        WINDOWS,
        source_of(Table, "fill", "shelf.insert(entry, victims, lease)", "shelf.insert(entry, victims, None)"),
    ),
    "a window is swept away": (WINDOWS, source_of(MemoryStore, "cleanup", "and now >= entry.kept_until", "")),
    "a window is removed by who looks": (
        WINDOWS,
        source_of(Table, "_kept", "now < entry.kept_until", "now < entry.fresh_until"),
    ),
    "an error is not covered up": (
        WINDOWS,
        source_of(aside, "_rescued", "if error is None or", "if True or"),
    ),
    "an error is covered up with what is too old": (
        WINDOWS,
        source_of(Table, "fill", "life.early, life.stale, life.kept", "life.early, life.stale, life.kept + 3"),
    ),
    "no refresh begins": (WINDOWS, source_of(Memoized, "_hit", "if first.due:", "if False:")),
    "a store's own hit is not counted": (STORE, source_of(MemoryStore, "get", "self._hits.tick()", "pass")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_machine_catches(name: str) -> None:
    catch(*MUTANTS[name])


def test_unbroken_code_passes() -> None:
    """The machines are tests of their own beside this file; the rest of what watches is run here."""
    one_load()
    for each in ("key", "tag", "whole function"):
        explorer(each)()
