"""The store on a Redis server: runs the steps, blocking or awaiting; it never decides what is asked next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...clock import seconds
from ...entry import DEFAULT, MISSING
from ...errors import OptionError, SerializationError, StoreError
from ...forks import fork_safe_lock, in_child
from ...keys import CallKeys
from ...serializers import function_serializer, network_serializer
from ...stats import Counter, StoreStats, logger
from ..base import Store, Ttl, checked_amount, checked_key, checked_tags, checked_ttl, stores
from ..books import Books
from ..patterns import compile_pattern
from .commands import Refusal
from .leases import Steps
from .link import Link
from .space import RedisSpace
from .steps import BATCH, StoreSteps

__all__ = ["RedisStats", "RedisStore"]

T = TypeVar("T")


@dataclass(frozen=True)
class RedisStats(StoreStats):
    """What a process has counted of a Redis store, and how many keys there are on the server now.

    Attributes:
        errors: what failed without failing the caller, by name: operations to which the server has not answered,
            "decoding", and "strange": what stood at a function's key and was not its own.
        waiting: keys that are to be removed when the server answers again, with `retry_invalidations`.
    """

    errors: dict[str, int] = field(default_factory=dict)
    waiting: int = 0


class RedisStore(Store):
    """Keeps values on a Redis server, which any number of processes and machines share.

    One object serves functions that block and functions that await; nothing is connected before it is needed, and each
    process and each event loop has connections of its own. Values are what the serializer makes of them, for `set`
    readable by any other program; what a decorated function stores has one line before it.

    Where the server does not answer within `timeout`, reads find nothing and `set` stores nothing, which is counted and
    logged once, and after some failures it is left alone for a while; what was to be removed and could not be is a
    StoreError, or waits.

    Args:
        server: a URL (redis://, rediss://, unix://); or a client of redis-py, or of redis.asyncio, or a tuple of both,
            which are used as they are, with their own timeouts, and closed by whoever has made them.
        prefix: what all keys begin with; nothing else on the server is touched.
        default_ttl: seconds or a timedelta for what is stored without a ttl; None: it never expires.
        serializer: "json", "msgpack", one of these with "+gzip" or "+zlib", or an object with `dumps` and `loads`.
        timeout: seconds or a timedelta that an operation takes at most, from its first byte to its last. What asks for
            all keys (`keys`, `delete_pattern`, `clear`, `stats`) takes as long as there are keys, each of its round
            trips at most the timeout.
        connect_timeout: the same for a connection to be made; no operation waits for that longer than for its timeout.
        retry_invalidations: a removal that gets no answer is no error: its keys, 1 000 at most, wait in this process,
            are removed before anything else that it asks, and tried again in a thread. Others read on until then.

    Raises:
        OptionError: an argument is out of range; a password in it is not shown.
    """

    shared = True
    fleet = True

    def __init__(
        self,
        server: Any = "redis://localhost:6379/0",
        prefix: str = "cache:",
        default_ttl: Any = 60,
        serializer: Any = "json",
        timeout: Any = 0.25,
        connect_timeout: Any = 5,
        retry_invalidations: bool = False,
    ) -> None:
        if not isinstance(prefix, str) or not prefix:
            raise OptionError(f"prefix={prefix!r}: allowed is text that is not empty: only what begins so is touched")
        if type(retry_invalidations) is not bool:
            raise OptionError(f"retry_invalidations={retry_invalidations!r}: allowed are True and False")
        self.prefix = prefix
        self.default_ttl = checked_ttl(default_ttl, "default_ttl")
        self._timeout = seconds(timeout, "timeout")
        self._steps = StoreSteps(prefix, self.default_ttl)
        self._codec = network_serializer(serializer)
        self._books = Books()
        self._sets = Counter()
        self._lock = fork_safe_lock()  # guards the two below
        self._errors: dict[str, int] = {}
        self._deletes = 0
        self._link = Link(server, self._timeout, seconds(connect_timeout, "connect_timeout"), retry_invalidations)

    def __repr__(self) -> str:
        return f"RedisStore(prefix={self.prefix!r}, default_ttl={self.default_ttl})"

    # -- running steps -----------------------------------------------------------------------------------------------

    def _walk(self, steps: Steps[T], loud: bool = False, endless: bool = False) -> T:
        """Take the steps, blocking, by one deadline.

        Args:
            steps: of one operation.
            loud: even a server that does not answer is asked.
            endless: nobody knows how many steps there are: each has a deadline of its own.
        """
        replies: Any = None
        deadline = 0.0
        try:
            while True:
                commands = steps.send(replies)
                deadline = self._link.deadline(0.0 if endless else deadline)
                replies = self._link.call(commands, loud, deadline)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    async def _awalk(self, steps: Steps[T], loud: bool = False, endless: bool = False) -> T:
        """Do the same, awaiting."""
        replies: Any = None
        deadline = 0.0
        try:
            while True:
                commands = steps.send(replies)
                deadline = self._link.deadline(0.0 if endless else deadline)
                replies = await self._link.acall(commands, loud, deadline)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()

    def _failed(self, name: str, error: Exception | None) -> None:
        if self._count(name):
            logger.warning("Redis: %s failed (%s)", name, "damaged" if error is None else type(error).__name__)

    def _strange(self, owner: str) -> None:
        """Count that something stood at a function's key that is not its own; the load that follows replaces it."""
        if self._count("strange"):
            logger.warning(
                "Redis: at a key of %s stands what it has not stored: two functions, or a manager, use one name: give "
                "one of them another key= or namespace=",
                owner,
            )

    def _count(self, name: str) -> bool:
        """Count something that fails no caller; return whether it is the first of its kind."""
        with self._lock:
            count = self._errors[name] = self._errors.get(name, 0) + 1
        return count == 1

    def _open(self, name: str, steps: Steps[T], otherwise: T, endless: bool = False) -> T:
        """Take steps, or count that they failed and return `otherwise`."""
        try:
            return self._walk(steps, endless=endless)
        except (StoreError, Refusal) as error:
            self._failed(name, error)
            return otherwise

    async def _aopen(self, name: str, steps: Steps[T], otherwise: T, endless: bool = False) -> T:
        try:
            return await self._awalk(steps, endless=endless)
        except (StoreError, Refusal) as error:
            self._failed(name, error)
            return otherwise

    def _loud(self, steps: Steps[T], endless: bool = False) -> T:
        """Take steps that have to be done: that they were not is an error."""
        try:
            return self._walk(steps, loud=True, endless=endless)
        except Refusal as error:
            raise StoreError(f"the Redis server refuses ({error.kind})") from error

    async def _aloud(self, steps: Steps[T], endless: bool = False) -> T:
        try:
            return await self._awalk(steps, loud=True, endless=endless)
        except Refusal as error:
            raise StoreError(f"the Redis server refuses ({error.kind})") from error

    # -- values ------------------------------------------------------------------------------------------------------

    def _decoded(self, key: str, payload: bytes | None) -> Any:
        if payload is None:
            return MISSING
        try:
            return self._codec.loads(payload, key)
        except SerializationError:
            self._failed("decoding", None)
            return MISSING

    def _encoded(self, key: str, value: Any) -> bytes:
        payload = self._codec.dumps(value, key)
        if payload.startswith(b"#memo1"):
            raise StoreError("what the serializer makes of this begins as an entry of a decorated function does")
        return payload

    def _get(self, keys: Sequence[str]) -> Steps[dict[str, Any]]:
        payloads = yield from self._steps.read(keys)
        found = {}
        for key, payload in zip(keys, payloads, strict=True):
            value = self._decoded(key, payload)
            (self._books.misses if value is MISSING else self._books.hits).tick()
            if value is not MISSING:
                found[key] = value
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at `key`, else `default`."""
        key = checked_key(key)
        return self._counted([key], self._open("get", self._get([key]), None)).get(key, default)

    async def aget(self, key: str, default: Any = None) -> Any:
        """Do what `get` does, awaited."""
        key = checked_key(key)
        return self._counted([key], await self._aopen("get", self._get([key]), None)).get(key, default)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values that are there, by key, in one round trip."""
        asked = [checked_key(key) for key in keys]
        return self._counted(asked, self._open("get_many", self._get(asked), None) if asked else {})

    async def aget_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Do what `get_many` does, awaited."""
        asked = [checked_key(key) for key in keys]
        return self._counted(asked, await self._aopen("get_many", self._get(asked), None) if asked else {})

    def _counted(self, keys: Sequence[str], found: dict[str, Any] | None) -> dict[str, Any]:
        """Count reads that failed as misses."""
        if found is None:
            for _ in keys:
                self._books.misses.tick()
        return found or {}

    def _set(self, values: Mapping[str, Any], ttl: Any) -> Steps[bool]:
        length = ttl if ttl is DEFAULT else checked_ttl(ttl)
        for key in values:
            checked_key(key)
        payloads = [(checked_key(key), self._encoded(key, value)) for key, value in values.items()]
        return self._written(payloads, length)

    def _written(self, payloads: Sequence[tuple[str, bytes]], length: Any) -> Steps[bool]:
        yield from self._steps.write(payloads, length)
        for _ in payloads:
            self._sets.tick()
        return True

    def set(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Store a value; whatever was at `key` is gone, and no load that began before fills it.

        Where the server does not answer nothing is stored, which is counted in `stats` and logged once.

        Raises:
            StoreError: the value cannot be encoded.
        """
        checked_key(key)
        self._open("set", self._set({key: value}, ttl), False)

    async def aset(self, key: str, value: Any, ttl: Ttl = DEFAULT) -> None:
        """Do what `set` does, awaited."""
        checked_key(key)
        await self._aopen("set", self._set({key: value}, ttl), False)

    def set_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Store several values in one round trip; what is not allowed is found before anything is stored."""
        steps = self._set(values, ttl)
        if values:
            self._open("set_many", steps, False)

    async def aset_many(self, values: Mapping[str, Any], ttl: Ttl = DEFAULT) -> None:
        """Do what `set_many` does, awaited."""
        steps = self._set(values, ttl)
        if values:
            await self._aopen("set_many", steps, False)

    def delete(self, key: str) -> bool:
        """Remove the value at `key`; return whether there was one.

        Raises:
            StoreError: it may still be there.
        """
        return self.delete_many([key]) > 0

    async def adelete(self, key: str) -> bool:
        """Do what `delete` does, awaited."""
        return await self.adelete_many([key]) > 0

    def _delete(self, keys: Sequence[str]) -> Steps[int]:
        count = yield from self._steps.remove(keys)
        self._deleted(count)
        return count

    def _deleted(self, count: int) -> None:
        with self._lock:
            self._deletes += count

    def delete_many(self, keys: Iterable[str]) -> int:
        """Remove several values in one round trip; return how many there were.

        Raises:
            StoreError: they may still be there.
        """
        asked = list(dict.fromkeys([checked_key(key) for key in keys]))
        return self._loud(self._delete(asked)) if asked else 0

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """Do what `delete_many` does, awaited."""
        asked = list(dict.fromkeys([checked_key(key) for key in keys]))
        return await self._aloud(self._delete(asked)) if asked else 0

    def _exists(self, key: str) -> Steps[bool]:
        (there,) = yield from self._steps.there([self._steps.full(key)])
        return there

    def exists(self, key: str) -> bool:
        """Return whether there is a value at `key`."""
        return self._open("exists", self._exists(checked_key(key)), False)

    async def aexists(self, key: str) -> bool:
        """Do what `exists` does, awaited."""
        return await self._aopen("exists", self._exists(checked_key(key)), False)

    def ttl(self, key: str) -> float | None:
        """Return the seconds that the value at `key` has left; None: there is none; infinity: it never expires."""
        return self._open("ttl", self._steps.left(checked_key(key)), None)

    async def attl(self, key: str) -> float | None:
        """Do what `ttl` does, awaited."""
        return await self._aopen("ttl", self._steps.left(checked_key(key)), None)

    def expire(self, key: str, ttl: Ttl) -> bool:
        """Give the value at `key` a new ttl from now, and windows as long as before; return whether there was one.

        Raises:
            StoreError: the server has not answered.
        """
        return self._loud(self._steps.expire(checked_key(key), ttl if ttl is DEFAULT else checked_ttl(ttl)))

    async def aexpire(self, key: str, ttl: Ttl) -> bool:
        """Do what `expire` does, awaited."""
        return await self._aloud(self._steps.expire(checked_key(key), ttl if ttl is DEFAULT else checked_ttl(ttl)))

    def increment(self, key: str, amount: float = 1) -> Any:
        """Add to the number at `key` in one step for all processes; a missing key starts at `amount`.

        Raises:
            ValueError: what is there is not a number.
            OptionError: the amount is none.
            StoreError: the server has not answered.
        """
        return self._loud(self._incremented(key, amount))

    async def aincrement(self, key: str, amount: float = 1) -> Any:
        """Do what `increment` does, awaited."""
        return await self._aloud(self._incremented(key, amount))

    def _incremented(self, key: str, amount: float) -> Steps[Any]:
        key = checked_key(key)
        checked_amount(amount)
        return self._steps.increment(
            key, amount, lambda data: self._codec.loads(data, key), lambda total: self._encoded(key, total)
        )

    # -- many at once ------------------------------------------------------------------------------------------------

    def _keys(self, pattern: str) -> Steps[list[str]]:
        matches = compile_pattern(pattern).match
        return self._listed(matches)

    def _listed(self, matches: Callable[[str], object]) -> Steps[list[str]]:
        fulls = yield from self._steps.matching(matches)
        alive: list[str] = []
        for start in range(0, len(fulls), BATCH):
            batch = fulls[start : start + BATCH]
            there = yield from self._steps.there(batch)
            alive += [self._steps.short(full) or "" for full, is_there in zip(batch, there, strict=True) if is_there]
        return alive

    def keys(self, pattern: str = "*") -> list[str]:
        """Return the keys that match, in no particular order; the server is asked for all keys, bit by bit."""
        return self._open("keys", self._keys(pattern), [], endless=True)

    async def akeys(self, pattern: str = "*") -> list[str]:
        """Do what `keys` does, awaited."""
        return await self._aopen("keys", self._keys(pattern), [], endless=True)

    def _delete_pattern(self, matches: Callable[[str], object]) -> Steps[int]:
        fulls = yield from self._steps.matching(matches)
        count = 0
        for start in range(0, len(fulls), BATCH):
            count += yield from self._steps.remove_full(fulls[start : start + BATCH])
        self._deleted(count)
        return count

    def delete_pattern(self, pattern: str) -> int:
        """Remove the values whose keys match, and let no load under way fill one; return how many there were.

        Raises:
            StoreError: they may still be there.
        """
        return self._loud(self._delete_pattern(compile_pattern(pattern).match), endless=True)

    async def adelete_pattern(self, pattern: str) -> int:
        """Do what `delete_pattern` does, awaited."""
        return await self._aloud(self._delete_pattern(compile_pattern(pattern).match), endless=True)

    def _clear(self) -> Steps[None]:
        fulls = yield from self._steps.listed()
        for start in range(0, len(fulls), BATCH):
            yield from self._steps.forget(fulls[start : start + BATCH])

    def clear(self) -> None:
        """Remove everything below the prefix, and let no load that is under way in any process fill anything.

        Raises:
            StoreError: it may still be there.
        """
        self._loud(self._clear(), endless=True)

    async def aclear(self) -> None:
        """Do what `clear` does, awaited."""
        await self._aloud(self._clear(), endless=True)

    def invalidate_tags(self, *tags: str) -> None:
        """Remove every entry that bears one of the tags, at a cost that does not grow with their number.

        Raises:
            StoreError: they may still be there.
        """
        named = checked_tags(tags)
        if named:
            self._loud(self._steps.forget(self._steps.stamp_keys("", named)[1:]))

    async def ainvalidate_tags(self, *tags: str) -> None:
        """Do what `invalidate_tags` does, awaited."""
        named = checked_tags(tags)
        if named:
            await self._aloud(self._steps.forget(self._steps.stamp_keys("", named)[1:]))

    def _stats(self, size: int) -> RedisStats:
        self._books.bury()
        hits, misses = self._books.totals()
        return RedisStats(
            hits=hits,
            misses=misses,
            sets=self._sets.value,
            deletes=self._deletes,
            evictions=0,
            expirations=0,
            size=size,
            max_size=None,
            errors=dict(self._errors),  # one step in C
            waiting=len(self._link.owed or ()),
        )

    def _size(self) -> Steps[int]:
        return len((yield from self._steps.matching(lambda key: True)))

    def stats(self) -> RedisStats:
        """Return what this process has counted; `size` is how many keys the server has below the prefix."""
        return self._stats(self._open("stats", self._size(), 0, endless=True))

    async def astats(self) -> RedisStats:
        """Do what `stats` does, awaited."""
        return self._stats(await self._aopen("stats", self._size(), 0, endless=True))

    def close(self) -> None:
        """Close the connections that nobody uses; they are made again when needed."""
        self._link.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop, and those of functions that do not await."""
        await self._link.aclose()

    # -- decorated functions -----------------------------------------------------------------------------------------

    def attach(self, keys: CallKeys, hits: Counter, misses: Counter, owner: object) -> RedisSpace:
        """Return the space of a decorated function."""
        self._books.bury()  # functions that are gone: what they had on the server stays
        space = RedisSpace(self, keys, function_serializer(keys, self._codec, network=True))
        self._books.open(space, owner, (hits, misses))
        return space


def _in_child() -> None:
    for store in stores():
        if hasattr(store, "_link"):  # one whose arguments were refused has none, and is listed while it lives
            store._link.forget()


in_child(_in_child)
