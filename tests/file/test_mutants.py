"""What the tests of sharing catch: each breaks the file store on purpose, and what watches it must fail."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from memo import PickleFileStore, StoreError
from memo.stores.access import FileAccess
from memo.stores.compaction import Compaction
from memo.stores.entries import FileEntries
from memo.stores.file import PickleFileStore as Store
from memo.stores.filespace import FileSpace
from memo.stores.index import Index
from memo.stores.logfile import LogFile
from memo.stores.replay import Leases, View
from mutants import Patch, Watch, catch, machine, replaced, source_of
from siblings import module


def explorer(how: str, by: int = 1, between: str | None = None) -> Watch:
    """Return a call that tries interleavings of a load, an invalidation by a process and a call."""

    def watch() -> None:
        explored = module("file/test_no_stale_fill.py")

        def make(world: Any) -> list[Any]:
            actors = [world.caller(0, "lookup"), world.writer(by, how), world.caller(0, "lookup")]
            return actors if between is None else [*actors, getattr(world, between)(1)]

        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)  # it takes long, and no machine loses its power
            explored.explore(explored.World(Path(folder) / "cache.memo"), make, 2 if between is None else 1)

    return watch


def foreign() -> None:
    """Let another process invalidate a key, at which somebody else's value stands, during its load."""
    explored = module("file/test_no_stale_fill.py")
    with tempfile.TemporaryDirectory() as folder:
        made: list[PickleFileStore] = []

        def make() -> PickleFileStore:
            made.append(PickleFileStore(Path(folder) / "cache.memo"))
            return made[-1]

        explored.test_an_invalidation_voids_a_load_also_where_anothers_value_stands(make)


def counting() -> None:
    """Let another process increment a number in the middle of an increment: it is done, or that it was not is told."""
    with tempfile.TemporaryDirectory() as folder:
        store, another = [PickleFileStore(Path(folder) / "cache.memo", timeout=1e-6) for _ in range(2)]
        store.set("n", 0)
        expected, content = 1, store._content

        def between(*args: Any) -> Any:
            nonlocal expected
            found = content(*args)
            try:
                another.increment("n")
                expected += 1
            except StoreError:
                pass
            return found

        store._content = between  # type: ignore[method-assign]
        store.increment("n")
        counts = [store.get("n"), another.get("n")]
        for each in store, another:
            each.close()
        assert counts == [expected, expected]


def check_the_lease_too_early(patch: pytest.MonkeyPatch) -> None:
    fill_many = FileSpace.fill_many

    def filled(self: Any, fills: Any) -> Any:
        leases = self._store._leases
        standing = {id(lease) for key, lease, *_ in fills if leases.stands(key, lease)}
        leases.stands = lambda key, lease: id(lease) in standing
        try:
            return fill_many(self, fills)
        finally:
            del leases.stands

    patch.setattr(FileSpace, "fill_many", filled)


def leave_leases_when_reading(patch: pytest.MonkeyPatch) -> None:
    read = View._read

    def reads(self: View, piece: Any, now: float) -> bool:
        mine, self.leases = self.leases, Leases()
        try:
            return read(self, piece, now)
        finally:
            self.leases = mine

    patch.setattr(View, "_read", reads)


def read_of_one_file_for_ever(self: LogFile) -> int | None:
    return os.fstat(self.fd).st_size if self.fd >= 0 else None


FILE, RECENCY, WINDOWS = [
    machine("file/test_machine.py", name, 300) for name in ("FileMachine", "RecencyMachine", "FileWindows")
]

MUTANTS: dict[str, tuple[Watch, Patch]] = {
    "a fill does not look at its lease": (
        FILE,
        source_of(FileSpace, "fill_many", "if store._leases.stands(key, lease):", "if True:"),
    ),
    "what is read voids no lease": (FILE, leave_leases_when_reading),
    "what is read voids no lease, key by key": (explorer("key"), leave_leases_when_reading),
    "a file that is opened anew voids no lease": (
        explorer("key", between="compaction"),
        source_of(FileAccess, "_open", "self._leases.clear()", "pass"),
    ),
    "the lease is looked at before what others have appended": (FILE, check_the_lease_too_early),
    "an invalidation of a tag leaves the entries": (FILE, replaced(Index, "mark_tags", lambda *args: None)),
    "an invalidation of a function leaves the entries": (FILE, replaced(Index, "mark_owner", lambda *args: None)),
    "an invalidation of a tag leaves the leases": (
        explorer("tag"),
        source_of(
            View, "_enter", "self.leases.void_if(lambda lease: not named.isdisjoint(lease.tags))", "named.clear()"
        ),
    ),
    "an invalidation leaves the load where another's value stands": (
        foreign,
        source_of(FileEntries, "_remove", "items.append(Item(Kind.VOID, key))", "self._leases.void(key)"),
    ),
    "the most recently used entry is evicted": (
        RECENCY,
        replaced(Index, "oldest", lambda self, count: self.listed()[::-1][:count]),
    ),
    "a read is no use": (RECENCY, replaced(Index, "use", lambda self, key: None)),
    "one entry too many": (
        RECENCY,
        source_of(
            FileEntries, "_append", "max(0, len(index) - self.max_size)", "max(0, len(index) - self.max_size - 1)"
        ),
    ),
    "a rewrite forgets the order of use": (
        RECENCY,
        source_of(FileAccess, "_adopt", "target.index.use(key)", "pass"),
    ),
    "a rewrite forgets what others append meanwhile": (
        FILE,
        source_of(Compaction, "_copy", "batch.flush()", "pass"),
    ),
    "a rewrite does not lock the old file": (FILE, replaced(Compaction, "_lock_old", lambda *args: None)),
    "a rewrite keeps what is over": (
        RECENCY,
        source_of(Compaction, "_copy_living", "if spot is not None and now < spot.kept_until:", "if spot is not None:"),
    ),
    "a file that was replaced is read for ever": (FILE, replaced(LogFile, "size", read_of_one_file_for_ever)),
    "a number is counted up without the file's lock": (
        counting,
        source_of(Store, "increment", "return self._writing(work)", "return self._reading(work)"),
    ),
    "a window is no longer after a rewrite": (
        WINDOWS,
        source_of(Compaction, "_copy_living", "now < spot.kept_until", "now < spot.fresh_until"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_watches_catches(name: str) -> None:
    catch(*MUTANTS[name])


def test_unbroken_code_passes() -> None:
    """The machines are tests of their own beside this file; the rest of what watches is run here."""
    counting()
    foreign()
    for watch in explorer("key"), explorer("tag"), explorer("key", between="compaction"):
        watch()
