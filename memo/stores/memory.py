"""The store in this process's memory: exact LRU, a ttl for each entry, exact counts; it never blocks and does no I/O
but `save` and `load`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ..clock import SYSTEM, checked_clock, seconds
from ..entry import DEFAULT, MISSING, Entry, TaggedEntry, WindowEntry
from ..errors import OptionError
from ..keys import CallKeys, Shape
from ..serializers import checked_serializer, function_serializer
from ..stats import Counter, StoreStats
from . import snapshot
from .base import Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl
from .patterns import compile_pattern
from .shelf import Death, Shelf
from .sweeper import sweeper
from .tables import Table

__all__ = ["MemoryStore"]

T = TypeVar("T")

_CHUNK = 1_000
"""Entries that a sweep looks at between two releases of the lock: a few hundred microseconds."""


class MemoryStore(Store):
    """Keeps values in memory, by reference.

    A value that is stored and a value that is returned are the same object: who changes it changes what every later
    caller sees. With `serializer=` each caller gets a copy of its own.

    Args:
        max_size: how many entries; the least recently used one goes first, reads and writes alike. None: any number.
        default_ttl: seconds or a timedelta for what is stored without a ttl; None: it never expires.
        cleanup_interval: seconds between two sweeps for expired entries by a thread that all stores share; None: they
            are removed only when they are met or evicted.
        serializer: a name, such as "json" or "pickle", or an object with `dumps` and `loads`.
        clock: an object with `monotonic()` and `time()`, such as the time module.

    Raises:
        OptionError: an argument is out of range.

    >>> store = MemoryStore(max_size=2, default_ttl=60)
    >>> store.set("a", 1); store.set("b", 2); store.get("a")
    1
    >>> store.set("c", 3); sorted(store.keys())
    ['a', 'c']
    """

    shared = False

    def __init__(
        self,
        max_size: int | None = 10_000,
        default_ttl: Any = None,
        cleanup_interval: Any = 60,
        serializer: Any = None,
        clock: Any = SYSTEM,
    ) -> None:
        if max_size is not None and (type(max_size) is not int or max_size < 1):
            raise OptionError(f"max_size={max_size!r}: allowed is an int of at least 1, or None for no limit")
        self._serializer = None if serializer is None else checked_serializer(serializer)
        self.max_size = max_size
        self.default_ttl = checked_ttl(default_ttl, "default_ttl")
        self.cleanup_interval = None if cleanup_interval is None else seconds(cleanup_interval, "cleanup_interval")
        self._shelf = Shelf(max_size, checked_clock(clock))
        self._plain = Table(self._shelf, Shape("", ()), self.default_ttl, explicit=True, serializer=self._serializer)
        self._shelf.tables[self._plain] = None
        self._hits = Counter()
        self._misses = Counter()
        self._waiting: dict[str, Table] = {}  # loaded, and not yet claimed by a function; guarded by the shelf's lock
        if self.cleanup_interval is not None:
            sweeper.add(self)

    def __repr__(self) -> str:
        return f"MemoryStore(max_size={self.max_size}, default_ttl={self.default_ttl}, size={len(self._shelf.order)})"

    def __len__(self) -> int:
        return len(self._shelf.order)

    async def _run(self, method: Callable[..., T], *args: Any) -> T:
        return method(*args)

    # -- values by key -----------------------------------------------------------------------------------------------

    def _places(self, key: str) -> Iterator[tuple[Table, Any]]:
        """Yield where a text may lead: the plain key, then each decorated function that it could be a call of."""
        yield self._plain, key
        label = key.partition("(")[0]
        for table in list(self._shelf.tables):
            if table is not self._plain and (table.explicit or table.shape.label == label):
                for each in [table, *list(table.instances.values())]:
                    place = each.key_of(key)
                    yield each, place
                    if place is not key:
                        yield each, key

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`; it becomes the most recently used one."""
        for table, place in self._places(checked_key(key)):
            reading = table.read(place)
            if reading.value is not MISSING and not reading.late:
                self._hits.tick()
                return reading.value
        self._misses.tick()
        return default

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Store a value, which becomes the most recently used one."""
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        key = checked_key(key)
        for table, place in self._places(key):
            if table is not self._plain:
                table.remove(place)
        self._plain.put(key, value, length, ())

    def delete(self, key: str) -> bool:
        """Remove the value at `key`, a decorated function's too; return whether there was one."""
        removed = [table.remove(place) for table, place in self._places(checked_key(key))]
        return any(removed)

    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`; its place in the order of use does not change."""
        found = False
        now = self._shelf.tick()
        victims: list[Any] = []
        for table, place in self._places(checked_key(key)):
            with self._shelf.lock:
                entry = table.get(place)
                if entry is not None and self._shelf.alive(entry, now):
                    found = True
                elif entry is not None and now >= entry.kept_until:
                    self._shelf.expire(entry, victims)
        return found

    def increment(self, key: str, amount: float = 1) -> Any:
        """Add to the number at `key` in one atomic step; a missing key starts at `amount`.

        Raises:
            ValueError: what is there is not a number.
            OptionError: the amount is none.
        """
        key = checked_key(key)
        checked_amount(amount)
        shelf, serializer = self._shelf, self._serializer
        while True:
            now = shelf.tick()
            with shelf.lock:
                entry = self._plain.get(key)
                alive = entry is not None and shelf.alive(entry, now)
                number: Any = entry.value if entry is not None and alive else None
            # A serializer is the user's code, so it runs outside of the lock, and then we look again.
            if alive and serializer is not None:
                number = serializer.loads(number)
            if alive and type(number) not in (int, float):
                raise ValueError(f"increment({key!r}): there is a {type(number).__name__}, which is not a number")
            total = number + amount if alive else amount
            value = total if serializer is None else serializer.dumps(total)
            victims: list[Any] = []
            with shelf.lock:
                if self._plain.get(key) is entry and (not alive or entry in shelf.order):
                    until = now + (self.default_ttl or math.inf) if entry is None or not alive else entry.fresh_until
                    shelf.insert(Entry(self._plain, key, value, until), victims)
                    return total

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are there, by key."""
        found = {}
        for key in keys:
            value = self.get(key, MISSING)
            if value is not MISSING:
                found[key] = value
        return found

    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Store several values; a key or ttl that is not allowed is found before anything is stored."""
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        for key in values:
            checked_key(key)
        for key, value in values.items():
            self.set(key, value, length)

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove several values; return how many there were."""
        return sum([self.delete(key) for key in [checked_key(key) for key in keys]])

    def ttl(self, key: str) -> float | None:
        """Return the seconds that the value at `key` has left; None: there is none; infinity: it never expires."""
        for table, place in self._places(checked_key(key)):
            left = table.left(place)
            if left is not None:
                return left
        return None

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Give the value at `key` a new ttl from now; return whether there was one. It counts as a write."""
        length = self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)
        shelf, found = self._shelf, False
        now = shelf.tick()
        for table, place in self._places(checked_key(key)):
            with shelf.lock:
                entry = table.get(place)
                if entry is not None and shelf.alive(entry, now):
                    entry.move(math.inf if length is None else now + length)
                    with contextlib.suppress(KeyError):  # a signal handler or a finalizer has removed it since
                        shelf.order.move_to_end(entry)
                        found = True
        return found

    # -- many at once ------------------------------------------------------------------------------------------------

    def _tables(self) -> list[Table]:
        return [each for table in list(self._shelf.tables) for each in [table, *list(table.instances.values())]]

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys of living entries that match, those of decorated functions as `key_for` writes them."""
        matches = compile_pattern(pattern).match
        shelf = self._shelf
        texts: dict[str, None] = {}
        now = shelf.tick()
        for table in self._tables():
            with shelf.lock:
                alive = [entry.key for entry in list(table.values()) if shelf.alive(entry, now)]
            for key in alive:
                text = table.text_of(key)
                if matches(text):
                    texts[text] = None
        return list(texts)

    def delete_pattern(self, pattern: str) -> int:
        """Remove the values whose keys match, and let no load under way fill one; return how many there were."""
        matches = compile_pattern(pattern).match
        shelf, removed = self._shelf, 0
        for table in self._tables():
            with shelf.lock:
                there = [*table, *table.leases]
            for key in there:
                if matches(table.text_of(key)):
                    removed += table.remove(key)
        return removed

    def clear(self) -> None:
        """Remove everything, and let no load that is under way fill anything."""
        victims: list[Any] = []
        with self._shelf.lock:
            self._shelf.empty(victims)

    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags, at a cost that grows only with their number."""
        checked = checked_tags(tags)
        self._shelf.tick()
        for tag in checked:
            victims: list[Any] = []
            with self._shelf.lock:
                self._shelf.invalidate_tag(tag, victims)

    def cleanup(self) -> int:
        """Remove the expired entries now; return how many there were."""
        shelf, removed = self._shelf, 0
        now = shelf.tick()
        victims: list[Any] = []
        with shelf.lock:
            shelf.bury(victims)
        entries = list(shelf.order)  # one step in C; everything else gets its turn between two chunks
        for start in range(0, len(entries), _CHUNK):
            with shelf.lock:
                for entry in entries[start : start + _CHUNK]:
                    if now >= entry.fresh_until and now >= entry.kept_until and entry in shelf.order:
                        shelf.expire(entry, victims)
                        removed += 1
            victims.clear()
        return removed

    def stats(self) -> StoreStats:
        """Return what has been counted, by this store's own methods and by its functions' calls."""
        shelf = self._shelf
        with shelf.lock:
            counters = [table.counters for table in list(shelf.tables) if table.counters is not None]
            return StoreStats(
                hits=self._hits.value + shelf.hits + sum(hits.value for hits, _ in counters),
                misses=self._misses.value + shelf.misses + sum(misses.value for _, misses in counters),
                sets=shelf.sets,
                deletes=shelf.deletes,
                evictions=shelf.evictions,
                expirations=shelf.expirations,
                size=len(shelf.order),
                max_size=self.max_size,
            )

    # -- decorated functions -----------------------------------------------------------------------------------------

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> Table:
        """Return the table of a decorated function; what was loaded from a file for its name is in it."""
        shelf, shape = self._shelf, keys.shape()
        serializer = function_serializer(keys, self._serializer)
        victims: list[Any] = []
        with shelf.lock:
            shelf.bury(victims)
            table = None
            if keys.anonymous is None and self._waiting.get(shape.label) is not None:
                table = self._waiting.pop(shape.label)
                if table.shape != shape or table.explicit != keys.explicit:
                    table.retire(victims)  # its parameters have changed since
                    table = None
            if table is None:
                table = Table(shelf, shape, self.default_ttl, explicit=keys.explicit)
                table.nameable = keys.anonymous is None
                shelf.tables[table] = None
            table.adopt(serializer, victims)
            table.join(hits, misses)
            death = Death(owner, shelf.dead.append)
            death.table = table
            table.deaths = (death,)
        return table

    # -- a file ------------------------------------------------------------------------------------------------------

    def save(self, path: Any) -> int:
        """Write the living entries and the statistics to a pickle file; return how many entries.

        The file appears whole or not at all, readable by its owner only. Entries of decorated functions are in it too,
        and find their function again by its name; those of instances, lambdas and closures are not, as nothing names
        them in another process. Raises SnapshotError, and leaves the file as it was, if something cannot be written.
        """
        shelf = self._shelf
        now, wall = shelf.tick(), shelf.clock.time()
        stats = self.stats()
        names: dict[str, list[Table]] = {}
        with shelf.lock:
            for table in list(shelf.tables):
                names.setdefault(table.shape.label, []).append(table)
            named = {id(tables[0]): tables[0] for tables in names.values() if len(tables) == 1 and tables[0].nameable}
            alive = [entry for entry in list(shelf.order) if now < entry.fresh_until and id(entry.space) in named]
        rows = [
            snapshot.Row(
                owner=None if entry.space is self._plain else entry.space.shape.label,
                key=entry.key,
                value=entry.value,
                expires=None if entry.fresh_until == math.inf else wall + entry.fresh_until - now,
                tags=entry.tags if isinstance(entry, TaggedEntry) else (),
                windows=entry.windows() if isinstance(entry, WindowEntry) else None,
            )
            for entry in alive
        ]
        shapes = {t.shape.label: (t.shape, t.explicit) for t in named.values() if t is not self._plain}
        counts = {name: getattr(stats, name) for name in snapshot.COUNTS}
        snapshot.write(path, snapshot.Snapshot(rows, shapes, counts))
        return len(rows)

    def load(self, path: Any) -> int:
        """Replace the contents and the statistics by those of a saved file; return how many entries are there now.

        Their time has gone on meanwhile, by the wall clock: what has expired is dropped. A file unpickled runs the code
        that it names: load only what no one else could have written. Raises SnapshotError, and leaves the store as it
        was, if the file cannot be read.
        """
        saved = snapshot.read(path)
        shelf = self._shelf
        now, wall = shelf.tick(), shelf.clock.time()
        victims: list[Any] = []
        with shelf.lock:
            shelf.empty(victims)
            current = self.stats()
            tables: dict[str | None, Table] = {None: self._plain}
            for label, (shape, explicit) in saved.shapes.items():
                tables[label] = self._table_for(shape, explicit)
            for row in saved.rows:
                left = math.inf if row.expires is None else row.expires - wall
                if left > 0:
                    table = tables[row.owner]
                    until = now + left
                    common = table, row.key, row.value, until
                    entry = TaggedEntry(*common, row.tags) if row.tags else Entry(*common)
                    if row.windows is not None:
                        entry = WindowEntry.with_windows(*common, row.tags, *row.windows)
                    shelf.insert(entry, victims)
            for table in tables.values():
                if table not in self._waiting.values():
                    table.adopt(table.serializer, victims)
            count = len(shelf.order)  # a smaller store keeps fewer
            shelf.hits += saved.stats["hits"] - current.hits
            shelf.misses += saved.stats["misses"] - current.misses
            shelf.sets, shelf.deletes = saved.stats["sets"], saved.stats["deletes"]
            shelf.evictions, shelf.expirations = saved.stats["evictions"], saved.stats["expirations"]
        return count

    def _table_for(self, shape: Shape, explicit: bool) -> Table:
        for table in self._shelf.tables:
            if table is not self._plain and table.shape == shape and table.explicit == explicit and table.nameable:
                return table
        table = Table(self._shelf, shape, self.default_ttl, explicit=explicit, serializer=self._serializer)
        self._shelf.tables[table] = None
        self._waiting[shape.label] = table
        return table
