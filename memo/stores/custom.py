"""The base of a store of one's own: four blocking methods on records are enough; this module keeps no value itself.

What a subclass writes knows keys and records only. Time, tags, patterns, leases, statistics and decorated functions are
done here, under one lock for each store, and the async side runs in worker threads.

Leases are held in this process: every write, removal, tag, pattern and clear of this object voids those that it
touches, before the subclass is asked to do anything. What another process does voids none of them.
"""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..clock import SYSTEM, checked_clock
from ..entry import DEFAULT, MISSING, Life, TaggedLease
from ..errors import StoreError
from ..forks import fork_safe_lock
from ..keys import CallKeys
from ..serializers import Serializer, checked_serializer, function_serializer, is_foreign, refuse_foreign
from ..stats import Counter, StoreStats
from .base import Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl
from .books import Books
from .patterns import compile_pattern
from .records import Record, RecordSpace, made

__all__ = ["CustomStore", "Record"]


class CustomStore(Store):
    """A store of which a subclass writes four blocking methods; everything else is here.

    The four are called under the store's lock, one at a time, from any thread; serializers are not, but the finalizer
    of a value that a subclass lets go is. What they raise reaches callers as a StoreError; calls of decorated functions
    go on without the store, and count it.

    Where `shared` is True (the default), times are those of the wall clock, and entries are told apart by the
    functions' names: other processes, and later ones, may read what is there. A subclass whose records die with the
    process says `shared = False`: its times are monotonic, each function object has entries of its own, and methods'
    instances may count by identity.

    Not promised: a load in one process may be stored although another process has invalidated the key meanwhile, and
    `increment` is one step for the threads of a process only. Tags, patterns and `invalidate_all` look at every record.
    A clock that runs backwards empties the store.

    Args:
        default_ttl: seconds or a timedelta for what is stored without a ttl; None: it never expires.
        serializer: a name, such as "json", or an object with `dumps` and `loads`; records then hold what it makes.
        clock: an object with `monotonic()` and `time()`, such as the time module.

    Raises:
        OptionError: an argument is out of range.

    >>> class DictStore(CustomStore):
    ...     shared = False
    ...     def __init__(self, **options):
    ...         super().__init__(**options)
    ...         self.records = {}
    ...     def load_record(self, key):
    ...         return self.records.get(key)
    ...     def save_record(self, key, record):
    ...         self.records[key] = record
    ...     def remove_record(self, key):
    ...         self.records.pop(key, None)
    ...     def record_keys(self):
    ...         return self.records
    >>> store = DictStore(default_ttl=60)
    >>> store.set("a", 1)
    >>> store.increment("a"), store.keys("?"), store.delete("a"), store.get("a")
    (2, ['a'], True, None)
    """

    def __init__(self, default_ttl: Any = None, serializer: Any = None, clock: Any = SYSTEM) -> None:
        self.default_ttl = checked_ttl(default_ttl, "default_ttl")
        self._serializer = None if serializer is None else checked_serializer(serializer)
        self._clock = checked_clock(clock)
        # Guards the fields below, and is held while a subclass's method runs, which may use another
        # store.
        self._lock = fork_safe_lock(outer=True)
        self._leases: dict[str, TaggedLease] = {}
        self._latest = -math.inf  # the clock's latest reading
        self._wait = 0  # writes until the records of the dead are looked for
        self._sets = self._deletes = self._expirations = 0
        self._books = Books()  # with a lock of its own: a function that comes must not wait until a record is written
        self._gone: set[str] = set()  # owners, now dead, whose records are there still
        self._numbers = Counter(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(default_ttl={self.default_ttl})"

    # -- what a subclass writes --------------------------------------------------------------------------------------

    @abstractmethod
    def load_record(self, key: str) -> Record | None:
        """Return the record that was last saved at `key`; None: there is none."""

    @abstractmethod
    def save_record(self, key: str, record: Record) -> None:
        """Keep a record at `key`, in the place of the one that is there; whoever loads sees the one or the other."""

    @abstractmethod
    def remove_record(self, key: str) -> object:
        """Remove the record at `key`, if there is one; what is returned is not looked at."""

    @abstractmethod
    def record_keys(self) -> Iterable[str]:
        """Return the keys at which there are records, in any order."""

    # -- records; the lock is held where nothing else is said --------------------------------------------------------

    def _ask(self, name: str, *args: Any) -> Any:
        """Call one of the four, and let what it raises be a StoreError."""
        try:
            answer = getattr(self, name)(*args)
            return list(answer) if name == "record_keys" else answer
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"{type(self).__name__}.{name} failed: {type(error).__name__}") from error

    def _tick(self) -> float:
        """Return the clock's reading; if it ran backwards, empty the store first."""
        now: float = self._clock.time() if self.shared else self._clock.monotonic()
        if now < self._latest:
            self._empty()  # records from what is now the future would outlive their ttl
        self._latest = now
        return now

    def _empty(self) -> None:
        self._leases.clear()
        for key in self._ask("record_keys"):
            self._ask("remove_record", key)
            self._deletes += 1

    def _look(self, key: str) -> tuple[Record | None, float]:
        """Return the record at `key` that is of some use, and the time; what is over is removed."""
        # The clock comes after the record, so that one that another process has made meanwhile is not of the future.
        record, latest = self._ask("load_record", key), self._latest
        now = self._tick()
        if record is None or now < latest:
            return None, now
        if not isinstance(record, Record):
            raise StoreError(
                f"{type(self).__name__}.load_record returned a {type(record).__name__}: allowed are None and a Record, "
                f"as save_record was given one"
            )
        if now >= record.kept_until:
            self._ask("remove_record", key)
            self._expirations += 1
            return None, now
        # What a clock that has been put back since has made would live too long.
        return (record if record.made <= now else None), now

    def _alive(self, key: str, owner: str | None = None) -> Record | None:
        """Return the record at `key` that has time left; None as `owner` is anyone's."""
        record, now = self._look(key)
        if record is None or now >= record.fresh_until or (owner is not None and record.owner != owner):
            return None
        return record

    def _left(self, key: str, owner: str | None) -> float | None:
        """Return the seconds that a value has left. The lock is not held."""
        with self._lock:
            record = self._alive(key, owner)
            return None if record is None else record.fresh_until - self._latest

    def _context(self, key: str, serializer: Any) -> tuple[str, ...]:
        """Return what a serializer is told beside the value: the key, so that a signature holds nowhere else."""
        # As the store's own it may be an object of the user's, which knows no context.
        return (key,) if serializer is not self._serializer or isinstance(serializer, Serializer) else ()

    def _decoded(self, key: str, record: Record, serializer: Any) -> Any:
        """Return the value of a record; if it cannot be read, remove it and return MISSING. The lock is not held."""
        if is_foreign(record.value, serializer):
            return MISSING  # whoever can read it may want it still
        if serializer is None:
            return record.value
        try:
            return serializer.loads(record.value, *self._context(key, serializer))
        except Exception:  # noqa: BLE001 - what cannot be read is not there
            with self._lock:
                self._leases.pop(key, None)
                self._remove(key, record.owner)
            return MISSING

    def _remove(self, key: str, owner: str | None) -> bool:
        """Remove the record at `key` if it is the owner's; return whether it had time left."""
        try:
            record, now = self._look(key)
        except StoreError:
            record, now = None, math.inf  # whatever it is: it must not be found again
        if record is not None and owner is not None and record.owner != owner:
            return False
        self._ask("remove_record", key)
        alive = record is not None and now < record.fresh_until
        self._deletes += alive
        return alive

    def _void(self, which: Callable[[TaggedLease], object]) -> None:
        for key in [key for key, lease in self._leases.items() if which(lease)]:
            del self._leases[key]

    def _sweep(self, which: Callable[[Record], bool], prefix: str = "") -> None:
        """Remove the records for which `which` is true, and those that cannot be read."""
        for key in self._ask("record_keys"):
            if key.startswith(prefix):
                try:
                    record, _ = self._look(key)
                except StoreError:
                    self._ask("remove_record", key)
                    continue
                if record is not None and which(record):
                    self._ask("remove_record", key)
                    self._deletes += 1

    def _write(
        self, key: str, value: Any, ttl: Any, tags: tuple[str, ...], owner: str, lease: Any, serializer: Any
    ) -> bool:
        """Store a value, with a lease only if that stands. The lock is not held; if it fails, no lease stays."""
        try:
            if serializer is not None:
                value = serializer.dumps(value, *self._context(key, serializer))
            refuse_foreign(value, serializer)
            with self._lock:
                now = self._tick()
                if lease is not None and self._leases.get(key) is not lease:
                    return False
                self._save(key, made(value, owner, tags, now, self.default_ttl if ttl is DEFAULT else ttl))
                self._bury()
                return True
        except Exception:
            if lease is not None:
                with self._lock:
                    if self._leases.get(key) is lease:
                        del self._leases[key]
                        self._remove(key, owner)
            raise

    def _save(self, key: str, record: Record) -> None:
        """Save a record and void the lease; if that fails, try at least to let the old record not stay."""
        self._leases.pop(key, None)
        try:
            self._ask("save_record", key, record)
        except StoreError:
            with contextlib.suppress(StoreError):
                self._ask("remove_record", key)
            raise
        self._sets += 1

    def _bury(self) -> None:
        """Let go what belonged to functions and instances that have died.

        To look for their records is to look at all, so it is done once in as many writes as there were records.
        """
        self._wait -= 1
        if self._wait > 0:
            return
        gone = {space.owner for space in self._books.bury()}
        if self.shared:  # then the records are another process's too
            return
        self._gone |= gone
        if self._gone:
            owners, self._gone = self._gone, set()
            try:
                self._sweep(lambda record: record.owner in owners or record.owner.partition("(")[0] in owners)
                self._wait = len(self._ask("record_keys"))
            except StoreError:
                self._gone |= owners  # at the next write, which is none of this one's business

    # -- values by key -----------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`."""
        key = checked_key(key)
        with self._lock:
            record = self._alive(key)
        value = MISSING if record is None else self._decoded(key, record, self._serializer)
        (self._books.misses if value is MISSING else self._books.hits).tick()
        return default if value is MISSING else value

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Store a value; whatever was at `key` is gone, and no load that began before fills it."""
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        self._write(checked_key(key), value, length, (), "", None, self._serializer)

    def delete(self, key: str) -> bool:
        """Remove the value at `key`; return whether there was one."""
        key = checked_key(key)
        with self._lock:
            self._leases.pop(key, None)
            return self._remove(key, None)

    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`."""
        key = checked_key(key)
        with self._lock:
            return self._alive(key) is not None

    def increment(self, key: str, amount: float = 1) -> Any:
        """Add to the number at `key` in one step for all threads of this process; a missing key starts at `amount`.

        Raises:
            ValueError: what is there is not a number.
            OptionError: the amount is none.
        """
        key = checked_key(key)
        checked_amount(amount)
        while True:
            with self._lock:
                before = self._alive(key)
                if self._serializer is None:
                    total = _sum(key, 0 if before is None else before.value, amount)
                    self._put(key, before, total)
                    return total
            # A serializer is the user's code, so it runs outside of the lock, and then we look again.
            number = 0 if before is None else self._decoded(key, before, self._serializer)
            if before is not None and is_foreign(before.value, self._serializer):
                number = before.value  # which is none
            if number is not MISSING:
                total = _sum(key, number, amount)
                value = self._serializer.dumps(total, *self._context(key, self._serializer))
                with self._lock:
                    if self._alive(key) == before:
                        self._put(key, before, value)
                        return total

    def _put(self, key: str, before: Record | None, value: Any) -> None:
        """Store a number in the place of the one before, for the time that it has left. The lock is held."""
        if before is None:
            self._save(key, made(value, "", (), self._latest, self.default_ttl))
        else:
            self._save(key, before._replace(value=value))

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are there, by key."""
        found = [(key, self.get(key, MISSING)) for key in keys]
        return {key: value for key, value in found if value is not MISSING}

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
        return self._left(checked_key(key), None)

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Give the value at `key` a new ttl from now, and windows as long as before; return whether there was one."""
        key, length = checked_key(key), self.default_ttl if ttl is DEFAULT else checked_ttl(ttl)
        with self._lock:
            record = self._alive(key)
            if record is not None:
                life: Any = length
                if length is not None and not math.isinf(record.fresh_until):
                    end = record.fresh_until
                    life = Life(length, end - record.due, record.stale_until - end, record.kept_until - end)
                self._save(key, made(record.value, record.owner, record.tags, self._latest, life))
            return record is not None

    # -- many at once ------------------------------------------------------------------------------------------------

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys that match, in no particular order; every record is looked at."""
        matches = compile_pattern(pattern).match
        with self._lock:
            return [key for key in self._ask("record_keys") if matches(key) and self._readable(key)]

    def _readable(self, key: str) -> bool:
        try:
            return self._alive(key) is not None
        except StoreError:
            return False  # one that cannot be read must not hide the others

    def delete_pattern(self, pattern: str) -> int:
        """Remove the values whose keys match, and let no load under way fill one; return how many there were."""
        matches = compile_pattern(pattern).match
        with self._lock:
            self._void(lambda lease: matches(lease.key))
            return sum([self._remove(key, None) for key in self._ask("record_keys") if matches(key)])

    def clear(self) -> None:
        """Remove everything, and let no load that is under way fill anything."""
        with self._lock:
            self._empty()

    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags; every record is looked at."""
        named = set(checked_tags(tags))
        if named:
            with self._lock:
                self._void(lambda lease: not named.isdisjoint(lease.tags))
                self._sweep(lambda record: not named.isdisjoint(record.tags))

    def cleanup(self) -> int:
        """Remove what is over now, which else goes when it is met; return how much there was."""
        with self._lock:
            before = self._expirations
            self._sweep(lambda record: False)
            return self._expirations - before

    def stats(self) -> StoreStats:
        """Return what has been counted in this process; `size` is how many records there are."""
        with self._lock:
            size = len(self._ask("record_keys"))
        hits, misses = self._books.totals()
        return StoreStats(
            hits=hits,
            misses=misses,
            sets=self._sets,
            deletes=self._deletes,
            evictions=0,
            expirations=self._expirations,
            size=size,
            max_size=None,
        )

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> RecordSpace:
        """Return the space of a decorated function."""
        name = keys.label if self.shared else f"{keys.label} #{self._numbers.tick()}"
        space = RecordSpace(self, keys, name, function_serializer(keys, self._serializer))
        self._books.open(space, owner, (hits, misses))
        return space


def _sum(key: str, number: Any, amount: float) -> Any:
    if type(number) not in (int, float):
        raise ValueError(f"increment({key!r}): there is a {type(number).__name__}, which is not a number")
    return number + amount
