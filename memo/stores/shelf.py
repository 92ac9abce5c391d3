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
        "sets",
        "tables",
        "tags",
    )

    def __init__(self, max_size: int | None, clock: Any) -> None:
        self.max_size = sys.maxsize if max_size is None else max_size
        self.clock = clock
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

    def insert(self, entry: Entry, victims: list[Any], lease: Lease | None = None) -> bool:
        """Put an entry in the place of the one at its key, or of the least recently used one. The lock is held.

        Args:
            entry: what goes in; the lease that stands at its key is voided.
            victims: what comes out.
            lease: insert only if this stands at the key; None: in any case.

        Returns:
            Whether it was inserted.
        """
        table, key, order, leases = entry.space, entry.key, self.order, entry.space.leases
        if lease is not None and (key not in leases or leases[key] is not lease):
            return False  # a later load's, perhaps: it may still fill
        tagged: Any = None if type(entry) is Entry else entry
        if tagged is not None:
            self.tag(tagged, tagged.tags)
        if len(order) >= self.max_size:
            self.evict(0 if key in table and table[key] in order else 1, victims)
        # From here to where it says so there is no call: no signal handler, finalizer or Ctrl-C gets in between.
        standing = leases[key] if key in leases else None  # noqa: SIM401 - `get` is a call
        if lease is None or standing is lease:
            old = table[key] if key in table else None  # noqa: SIM401
            if old is not None and old in order:
                del order[old]
            table[key] = entry
            order[entry] = None
            if standing is not None:
                del leases[key]
            # To here.
            self.sets += 1
            if tagged is not None:
                self.tag(tagged, tagged.tags)  # in case that a handler has taken a tag away since the first time
            if type(standing) is TaggedLease:
                self.untag(standing)
            if old is not None:
                victims.append(old)
                if type(old) is not Entry:
                    self.untag(old)
            return True
        self.untag(entry)
        return False

    def evict(self, room: int, victims: list[Any]) -> None:
        """Make room for that many more entries. The lock is held."""
        order = self.order
        while len(order) + room > self.max_size:
            try:
                victim, _ = order.popitem(last=False)
            except KeyError:  # a signal handler or a finalizer has emptied it since
                return
            self.evictions += 1
            victims.append(victim)
            if type(victim) is not Entry:
                self.untag(victim)
            self.detach(victim)

    def detach(self, entry: Entry) -> None:
        """Let its key no longer lead to an entry that is a corpse. The lock is held."""
        table, key = entry.space, entry.key
        if key in table and table[key] is entry:  # no call, as in `insert`
            del table[key]

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
            while tag not in self.tags or item not in self.tags[tag]:
                if tag not in self.tags:
                    self.tags[tag] = set()
                else:
                    self.tags[tag].add(item)

    def untag(self, item: Entry | Lease) -> None:
        """Let invalidations of its tags no longer find an entry or a lease. The lock is held."""
        if isinstance(item, (TaggedEntry, TaggedLease)):
            for tag in item.tags:
                bearers = self.tags.get(tag)
                if bearers is not None:
                    bearers.discard(item)
                    if not bearers and tag in self.tags and self.tags[tag] is bearers:  # no call, as in `insert`
                        del self.tags[tag]

    def void(self, table: Table, key: Any) -> None:
        """Take away the lease that stands at a key, if any. The lock is held."""
        if table.leases:
            lease = table.leases.pop(key, None)
            if lease is not None:
                self.untag(lease)

    def remove(self, table: Table, key: Any, now: float, victims: list[Any]) -> bool:
        """Void the lease at a key and remove its entry; return whether that was alive. The lock is held."""
        self.void(table, key)
        if key not in table:
            return False
        entry = table[key]
        victims.append(entry)
        alive = self.unlink(entry)
        self.detach(entry)
        if not alive:
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
        victims.append(entry)
        self.detach(entry)

    def empty_table(self, table: Table, victims: list[Any]) -> None:
        """Void all leases of a table and remove all its entries. The lock is held."""
        leases = list(table.leases.values())  # another thread may add one at any time, without the lock
        table.leases.clear()
        for lease in leases:
            self.untag(lease)
        for entry in list(table.values()):
            victims.append(entry)
            if self.unlink(entry):
                self.deletes += 1
            self.detach(entry)

    def empty(self, victims: list[Any]) -> None:
        """Void all leases and remove all entries. The lock is held."""
        victims.append(list(self.order))
        self.deletes += len(self.order)
        self.order.clear()  # from here on everything is a corpse
        for table in list(self.tables):
            for each in [table, *table.instances.values()]:
                each.leases.clear()
                each.clear()
            table.instances.clear()
        victims.append(list(self.order))  # what a signal handler or a finalizer has stored since
        self.order.clear()
        if not self.order:  # no call, as in `insert`
            self.tags = {}

    def bury(self, victims: list[Any]) -> None:
        """Remove the tables of functions and instances that have died. The lock is held."""
        while self.dead:
            death = self.dead[0]
            death.table.retire(victims)
            if self.dead and self.dead[0] is death:  # else a finalizer got in between and has buried it
                del self.dead[0]

    def invalidate_tag(self, tag: str, victims: list[Any]) -> None:
        """Remove every entry and void every lease that bears a tag. The lock is held."""
        for item in list(self.tags.get(tag, ())):
            victims.append(item)
            if isinstance(item, TaggedLease):
                if item.space.leases.get(item.key) is item:
                    del item.space.leases[item.key]
            else:
                if self.unlink(item):
                    self.deletes += 1
                self.detach(item)
            self.untag(item)
