"""The part of a memory store that belongs to one decorated function or one instance; it never blocks.

A table is a plain dict from keys to entries, so that a hit is a subscript. Whether what it leads to is alive is for
the shelf to say.
"""

from __future__ import annotations

import itertools
import math
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from ..entry import ABSENT, DEFAULT, MISSING, Entry, Lease, Life, Reading, TaggedEntry, TaggedLease, WindowEntry
from ..errors import UnkeyableError
from ..serializers import is_foreign, refuse_foreign
from .base import Space
from .shelf import Death, Shelf

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..flight import Flight
    from ..keys import Shape
    from ..stats import Counter

__all__ = ["Table"]

_numbers = itertools.count(1)


class Table(dict[Any, Entry], Space):
    """Entries by key, and the leases of loads in progress."""

    __slots__ = (
        "__weakref__",
        "counters",
        "deaths",
        "default_ttl",
        "explicit",
        "flights",
        "instance",
        "instances",
        "leases",
        "nameable",
        "parent",
        "serializer",
        "shape",
        "shelf",
    )

    local = True
    raw = True

    def __init__(
        self,
        shelf: Shelf,
        shape: Shape,
        default_ttl: float | None,
        *,
        explicit: bool,
        parent: Table | None = None,
        serializer: Any = None,
    ) -> None:
        super().__init__()
        self.shelf = shelf
        self.shape = shape
        self.serializer = serializer  # None: values are kept as they are
        self.default_ttl = default_ttl
        self.explicit = explicit  # keys are what `key=` made, and do not begin with the label
        self.nameable = parent is None  # another process can find what this is a table of
        self.parent = parent
        self.flights: dict[Any, Flight] = {}
        self.leases: dict[Any, Lease] = {}
        # By id. An instance's death takes it out in C, before its address can be another's, so a hit need not ask
        # whether this is still the same instance.
        self.instances: dict[int, Table] = {}
        self.instance: str | None = None  # how the instance of this table is written in a key's text
        self.deaths: tuple[Any, ...] = ()
        self.counters: tuple[Counter, Counter] | None = None  # hits and misses, in a function's own table

    # By identity, not by content as dicts compare.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    async def _run(self, method: Callable[..., Any], *args: Any) -> Any:
        return method(*args)

    # -- the algorithm's side ----------------------------------------------------------------------------------------

    def read(self, key: Any) -> Reading:
        """Return the value at `key` or the lease that stands there."""
        stale: Any = MISSING
        if key in self:
            entry, now = self._kept(key)
            if entry is not None:
                value = self._decoded(entry)
                if value is not MISSING:
                    if now < entry.due:
                        return Reading(value)
                    late = now >= entry.fresh_until
                    if not late or now < entry.stale_until:
                        return Reading(value, self.leases.get(key), True, late)
                    stale = value
        lease = self.leases.get(key)
        return ABSENT if lease is None and stale is MISSING else Reading(MISSING, lease, False, False, stale)

    def take(self, key: Any, tags: tuple[str, ...], renew: bool) -> Reading | Lease:
        """Return the value at `key`, else a lease: the one that stands there or a new one."""
        if not renew and key in self:
            entry, now = self._kept(key)
            if entry is not None and now < entry.due:
                value = self._decoded(entry)
                if value is not MISSING:
                    return Reading(value)
        if not tags and not renew:
            # No lock: this is one step in C. An invalidation takes it away again or came before the load began; a
            # value that another caller has stored since the look above costs a second load, nothing else.
            return self.leases.setdefault(key, Lease())
        shelf = self.shelf
        with shelf.lock:
            if renew:
                shelf.void(self, key)
            lease = self.leases.get(key)
            if type(lease) is TaggedLease:
                # Parameters left out of the key may give one key other tags: an invalidation of any voids it.
                shelf.tag(lease, tags)
                lease.tags = tuple(dict.fromkeys(lease.tags + tags))
            else:
                lease = Lease()
                if tags:
                    lease = TaggedLease(self, key, tags)
                    shelf.tag(lease, tags)
                self.leases[key] = lease
        return Reading(MISSING, lease)

    def fill(self, key: Any, lease: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> bool | None:
        """Store a value, with a lease only if that stands; if it fails, neither old value nor lease stays.

        This is the price of a miss, so it is written out.
        """
        shelf = self.shelf
        try:
            if self.serializer is not None:
                value = self.serializer.dumps(value)
            if type(value) is bytes:
                refuse_foreign(value, self.serializer)
            if ttl is DEFAULT:
                ttl = self.default_ttl
            life = None
            if type(ttl) is Life:
                life, ttl = ttl, ttl.ttl
            if ttl is None:
                fresh_until = math.inf
            else:
                now = shelf.clock.monotonic()
                if now < shelf.latest:
                    now = shelf.tick()  # it may really have run backwards
                else:
                    shelf.latest = now
                fresh_until = now + ttl
            if life is not None:
                windows = life.early, life.stale, life.kept
                entry: Entry = WindowEntry.with_windows(self, key, value, fresh_until, tags, *windows)
            elif tags:
                entry = TaggedEntry(self, key, value, fresh_until, tags)
            else:
                entry = Entry(self, key, value, fresh_until)
            victims: list[Any] = []
            with shelf.lock:
                stored = shelf.insert(entry, victims, lease)
                if shelf.dead:
                    shelf.bury(victims)
            return stored
        except Exception:
            if lease is not None:
                self.release(key, lease, remove=True)
            raise

    def release(self, key: Any, lease: Any, remove: bool) -> None:
        """Take a lease away if it still stands, and with `remove` the value too."""
        victims: list[Any] = []
        shelf = self.shelf
        now = shelf.tick()
        with shelf.lock:
            if self.leases.get(key) is lease:
                # Voided once: `take` needs no lock, so what stands there after that is another load's.
                if remove:
                    shelf.remove(self, key, now, victims)
                else:
                    shelf.void(self, key)

    def _kept(self, key: Any) -> tuple[Entry | None, float]:
        """Return the entry at `key`, now the most recently used one, and the time; remove it if it is kept no more."""
        shelf = self.shelf
        now = shelf.tick()
        victims: list[Any] = []
        with shelf.lock:
            entry = self.get(key)
            if entry is not None:
                if now < entry.kept_until and entry in shelf.order:
                    try:
                        shelf.order.move_to_end(entry)
                    except KeyError:  # a signal handler or a finalizer has removed it since
                        return None, now
                    return entry, now
                shelf.expire(entry, victims)
        return None, now

    def _decoded(self, entry: Entry) -> Any:
        if is_foreign(entry.value, self.serializer):
            return MISSING
        if self.serializer is None:
            return entry.value
        try:
            return self.serializer.loads(entry.value)
        except Exception:  # noqa: BLE001 - what cannot be read is not there
            self.remove(entry.key)
            return MISSING

    # -- the helpers' side -------------------------------------------------------------------------------------------

    def put(self, key: Any, value: Any, ttl: Any, tags: tuple[str, ...]) -> None:
        """Store a value and void the lease."""
        self.fill(key, None, value, ttl, tags)

    def remove(self, key: Any) -> bool:
        """Remove the value at `key` and void the lease."""
        victims: list[Any] = []
        shelf = self.shelf
        now = shelf.tick()
        with shelf.lock:
            return shelf.remove(self, key, now, victims)

    def remove_all(self) -> None:
        """Remove everything here and in the tables of instances.

        Those are not emptied one by one for ever: they are let go, and each instance gets a new one at its next call.
        A load that is under way in an old one has lost its lease and fills nothing that anyone will find.
        """
        victims: list[Any] = []
        shelf = self.shelf
        shelf.tick()
        with shelf.lock:
            for table in [self, *self.instances.values()]:
                shelf.empty_table(table, victims)
            self.instances.clear()

    def peek(self, key: Any) -> Any:
        """Return the value at `key` or MISSING; nothing is moved."""
        shelf = self.shelf
        now = shelf.tick()
        with shelf.lock:
            entry = self.get(key)
            if entry is None or not shelf.alive(entry, now):
                return MISSING
        return self._decoded(entry)

    def left(self, key: Any) -> float | None:
        """Return the seconds that the value at `key` has left."""
        shelf = self.shelf
        now = shelf.tick()
        with shelf.lock:
            entry = self.get(key)
            return entry.fresh_until - now if entry is not None and shelf.alive(entry, now) else None

    # -- instances and names -----------------------------------------------------------------------------------------

    def of(self, instance: object) -> Table:
        """Return the table of an instance, which is held weakly."""
        ident = id(instance)
        table = self.instances.get(ident)
        if table is not None:
            return table
        shape, serializer = self.shape.rest(), self.serializer
        table = Table(self.shelf, shape, self.default_ttl, explicit=self.explicit, parent=self, serializer=serializer)
        kind = instance if isinstance(instance, type) else type(instance)
        table.instance = f"<{kind.__module__}.{kind.__qualname__} #{next(_numbers)}>"
        try:
            death = Death(instance, self.shelf.dead.append)
            death.table = table
            # Two references, since a callback in C can do one thing only: this one frees the address.
            table.deaths = (weakref.ref(instance, partial(self.instances.pop, ident)), death)
        except TypeError:
            raise UnkeyableError(
                f"{self.shape.label}: {kind.__module__}.{kind.__qualname__} counts by identity but cannot be weakly "
                f"referenced, so it would never be freed: add '__weakref__' to its __slots__, or __cache_key__() to it"
            ) from None
        return self.instances.setdefault(ident, table)

    def join(self, hits: Counter, misses: Counter) -> bool:
        """Count the function's calls as the store's from now on; return False if the function's death was noticed."""
        shelf = self.shelf
        with shelf.lock:
            if self.counters is None:
                if self not in shelf.tables:
                    return False
                # What the counters had before counts for the store that the function was with then.
                shelf.hits -= hits.value
                shelf.misses -= misses.value
                self.counters = (hits, misses)
        return True

    def leave(self) -> None:
        """Count the function's calls no longer; what it had here stays."""
        shelf = self.shelf
        with shelf.lock:
            if self.counters is not None:
                shelf.hits += self.counters[0].value
                shelf.misses += self.counters[1].value
                self.counters = None

    def adopt(self, serializer: Any, victims: list[Any]) -> None:
        """Read and write with a serializer from now on. The lock is held.

        What came from a file may be what another one has made: that does not stay where a hit would return it as it is.
        """
        self.serializer = serializer
        for entry in list(self.values()):  # one step in C: a signal handler may store something at any time
            if is_foreign(entry.value, serializer):
                self.shelf.unlink(entry)
                self.shelf.detach(entry)
                victims.append(entry)

    def retire(self, victims: list[Any]) -> None:
        """Let everything go: the function or the instance has died. The lock is held."""
        shelf = self.shelf
        for table in [self, *self.instances.values()]:
            shelf.empty_table(table, victims)
        self.instances.clear()
        self.leave()
        shelf.tables.pop(self, None)

    def text_of(self, key: Any) -> str:
        """Return the text of a key of this table."""
        return self.shape.text(key, self.instance)

    def key_of(self, text: str) -> Any:
        """Return the key in this table that `text` stands for."""
        if self.explicit:
            return text
        if text.startswith(f"{self.shape.label}(#"):
            # A digest can be written but not read back.
            with self.shelf.lock:
                there = [*self, *self.leases]
            return next((key for key in there if self.text_of(key) == text), text)
        if self.instance is None:
            return self.shape.key(text)
        head = f"{self.shape.label}({self.instance}"
        rest = text[len(head) :]
        if not text.startswith(head) or rest[:1] not in {",", ")"}:
            return text
        bare = f"{self.shape.label}({rest.removeprefix(',')}"
        key = self.shape.key(bare)
        return text if key == bare else key
