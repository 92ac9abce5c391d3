"""Entries in the order of their last use: the lock, the clock and the tags of one memory store; no keys, no functions.

An entry is alive if it is in `order` and its time is not over. A table (see `tables`) leads from a key to an entry, but
one that is not in `order` any more is a corpse, wherever it is found, and reads as absent. So to remove an entry is one
single step, whatever interrupts the rest, and a hit needs no lock: `order.move_to_end(entry)` raises a KeyError for a
corpse.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from ..entry import Entry, Lease, TaggedEntry, TaggedLease
from ..forks import fork_safe_lock

if TYPE_CHECKING:
    from .tables import Table

__all__ = ["Death", "Shelf"]


class Death(weakref.ref[Any]):
    """A weak reference that knows whose table is of no use when its object dies.

    Its callback is `Shelf.dead.append`, which runs no Python code: it may come at any moment, in any thread, under any
    lock. What is to be done about the death is done by the next writer.
    """

    __slots__ = ("table",)
    table: Table


class Shelf:
    """The entries of one memory store.

    Methods that say so want the lock held. They put what they remove into `victims`, which the caller lets go after
    the lock is free: a value's `__del__` is user code.
    """

    __slots__ = (
        "clock",
        "dead",
        "deletes",
        "evictions",
        "expirations",
        "hits",
        "latest",
        "lock",
        "max_size",
        "misses",
        "order",
        "serializer",
        "sets",
        "tables",
        "tags",
    )

    def __init__(self, max_size: int | None, clock: Any, serializer: Any) -> None:
        self.max_size = sys.maxsize if max_size is None else max_size
        self.clock = clock
        self.serializer = serializer
        # Guards everything below but `latest`, and all tables and their leases. A hit moves its entry in `order`
        # without it: that is one step in C, under the GIL (a build without a GIL takes the lock).
        self.lock = fork_safe_lock()
        self.order: OrderedDict[Entry, None] = OrderedDict()  # least recently used first
        self.tags: dict[str, set[TaggedEntry | TaggedLease]] = {}
        self.tables: dict[Table, None] = {}  # of functions; those of instances hang on them
        self.dead: deque[Death] = deque()
        # The latest reading of the clock that a slow operation saw. Threads may write it out of order: it then lags
        # by a moment, which only delays the noticing of a clock that runs backwards.
        self.latest = -math.inf
        self.sets = self.deletes = self.evictions = self.expirations = 0
        self.hits = self.misses = 0  # of functions that are gone; living ones count for themselves

    def tick(self) -> float:
        """Return the clock's reading; if it ran backwards, empty the shelf first.

        `latest` is read before the clock, so that a reading made in between by another thread is no step back.
        """
        latest = self.latest
        now: float = self.clock.monotonic()
        if now < latest:
            victims: list[Any] = []
            with self.lock:
                # Entries from what is now the future would outlive their ttl.
                self.empty(victims)
                self.latest = now
        elif now > latest:
            self.latest = now
        return now

    def alive(self, entry: Entry | None, now: float) -> bool:
        """Return whether an entry may be served. The lock is held."""
        return entry is not None and now < entry.fresh_until and entry in self.order

    def insert(self, entry: Entry, victims: list[Any]) -> None:
        """Put an entry in the place of the one at its key, or of the least recently used one. The lock is held.

        1. what it replaces leaves `order`   2. the table leads to the new one   3. the new one enters `order`. An
        interruption between two of these leaves the key absent, and the size exact.
        """
        table, key, order = entry.space, entry.key, self.order
        if key in table:
            old = table[key]
            victims.append(old)
            self.unlink(old)
        if len(order) >= self.max_size:
            self.evict(victims)
        table[key] = entry
        order[entry] = None
        if type(entry) is TaggedEntry:
            self.tag(entry, entry.tags)
        self.sets += 1

    def evict(self, victims: list[Any]) -> None:
        """Make room for one more entry. The lock is held."""
        order = self.order
        while len(order) >= self.max_size:
            victim, _ = order.popitem(last=False)
            victims.append(victim)
            if type(victim) is TaggedEntry:
                self.untag(victim)
            # In nearly every case it is the victim; if another got there meanwhile, it goes back.
            gone = victim.space.pop(victim.key, None)
            if gone is not victim and gone is not None:
                victim.space.setdefault(victim.key, gone)
            self.evictions += 1

    def unlink(self, entry: Entry) -> bool:
        """Make an entry a corpse; return whether it was none. The lock is held."""
        if entry not in self.order:
            return False
        del self.order[entry]
        self.untag(entry)
        return True

    def tag(self, item: TaggedEntry | TaggedLease, tags: tuple[str, ...]) -> None:
        """Let an invalidation of the tags find an entry or a lease. The lock is held."""
        for tag in tags:
            bearers = self.tags.get(tag)
            if bearers is None:
                bearers = self.tags[tag] = set()
            bearers.add(item)

    def untag(self, item: Entry | Lease) -> None:
        """Let invalidations of its tags no longer find an entry or a lease. The lock is held."""
        if isinstance(item, (TaggedEntry, TaggedLease)):
            for tag in item.tags:
                bearers = self.tags.get(tag)
                if bearers is not None:
                    bearers.discard(item)
                    if not bearers:
                        self.tags.pop(tag, None)

    def void(self, table: Table, key: Any) -> None:
        """Take away the lease that stands at a key, if any. The lock is held."""
        if table.leases:
            lease = table.leases.pop(key, None)
            if lease is not None:
                self.untag(lease)

    def remove(self, table: Table, key: Any, now: float, victims: list[Any]) -> bool:
        """Void the lease at a key and remove its entry; return whether that was alive. The lock is held."""
        self.void(table, key)
        entry = table.pop(key, None)
        if entry is None:
            return False
        victims.append(entry)
        if not self.unlink(entry):
            return False
        if now < entry.fresh_until:
            self.deletes += 1
            return True
        self.expirations += 1
        return False

    def expire(self, entry: Entry, victims: list[Any]) -> None:
        """Remove an entry whose time is over. The lock is held; a lease at its key is not touched."""
        if self.unlink(entry):
            self.expirations += 1
        if entry.space.get(entry.key) is entry:
            victims.append(entry.space.pop(entry.key, None))

    def empty_table(self, table: Table, victims: list[Any]) -> None:
        """Void all leases of a table and remove all its entries. The lock is held."""
        for lease in table.leases.values():
            self.untag(lease)
        table.leases.clear()
        entries = list(table.values())
        victims.append(entries)
        table.clear()  # from here on nothing of it is found; what follows is accounting
        for entry in entries:
            if self.unlink(entry):
                self.deletes += 1

    def empty(self, victims: list[Any]) -> None:
        """Void all leases and remove all entries. The lock is held."""
        victims.append(list(self.order))
        self.deletes += len(self.order)
        self.order.clear()  # from here on everything is a corpse
        self.tags.clear()
        for table in list(self.tables):
            for each in [table, *table.instances.values()]:
                each.leases.clear()
                each.clear()
            table.instances.clear()

    def bury(self, victims: list[Any]) -> None:
        """Remove the tables of functions and instances that have died. The lock is held."""
        while self.dead:
            try:
                table = self.dead.popleft().table
            except IndexError:  # a finalizer got in between and buried it
                return
            table.retire(victims)

    def invalidate_tag(self, tag: str, victims: list[Any]) -> None:
        """Remove every entry and void every lease that bears a tag. The lock is held."""
        for item in self.tags.pop(tag, ()):
            victims.append(item)
            self.untag(item)
            if isinstance(item, TaggedLease):
                if item.space.leases.get(item.key) is item:
                    del item.space.leases[item.key]
                continue
            if self.unlink(item):
                self.deletes += 1
            if item.space.get(item.key) is item:
                item.space.pop(item.key, None)
