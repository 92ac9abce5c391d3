"""What a Redis store does, as generators that yield commands and are sent their answers; nothing here waits or sends.

All commands of one `yield` go out together: one round trip. So each operation is written once, for those who block and
for those who await.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, TypeVar

from ...entry import DEFAULT, Life
from ...errors import StoreError
from . import protocol
from .commands import Command, Refusal, Reply
from .protocol import Entry, Held, Windows

__all__ = ["RedisLease", "Steps", "StoreSteps", "together"]

T = TypeVar("T")
Steps = Generator[list[Command], list[Reply], T]

BATCH: Final = 500
"""Keys that are asked for at once while all are looked at."""

BEGINNING: Final = 1023
"""The last byte that is read where only a header is wanted; a longer one is read again, with its value."""


class RedisLease:
    """The id that stood at a key, and the stamps that stood beside it, when they were read."""

    __slots__ = ("id", "stamps")

    def __init__(self, lease_id: bytes, stamps: bytes) -> None:
        self.id = lease_id
        self.stamps = stamps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RedisLease) and self.id == other.id and self.stamps == other.stamps

    def __hash__(self) -> int:
        return hash((self.id, self.stamps))


class Standing:
    """What a decorated function's entry at a key is worth: it is there, and this is how long it has left.

    Attributes:
        entry: as it is written.
        left: milliseconds until the ttl is over, negative in a window; infinity: it never expires.
    """

    __slots__ = ("entry", "left")

    def __init__(self, entry: Entry, left: float) -> None:
        self.entry = entry
        self.left = left


class StoreSteps:
    """The operations of a store on one server.

    Args:
        prefix: what all of its keys begin with.
        default_ttl: seconds; None: what is stored without a ttl never expires.
    """

    def __init__(self, prefix: str, default_ttl: float | None) -> None:
        self.prefix = prefix
        self.default_ttl = default_ttl
        self._first = prefix.encode("utf-8", "surrogatepass")
        self._stamp_life = int(2000 * protocol.LONGEST_LOAD)

    # -- names -------------------------------------------------------------------------------------------------------

    def full(self, key: str) -> bytes:
        """Return the server's name of a key."""
        return self._first + key.encode("utf-8", "surrogatepass")

    def stamp_keys(self, owner: str, tags: Iterable[str]) -> list[bytes]:
        """Return the server's names of the stamps of a function and of tags."""
        return [self.full(f"~fn:{owner}"), *(self.full(f"~tag:{tag}") for tag in tags)]

    def short(self, full: bytes) -> str | None:
        """Return the key that a name on the server stands for; None: it is a stamp's or nobody's."""
        name = full[len(self._first) :]
        if not full.startswith(self._first) or name.startswith((b"~fn:", b"~tag:")):
            return None
        return name.decode("utf-8", "surrogatepass")

    def milliseconds(self, ttl: Any) -> tuple[int, Windows | None]:
        """Return how long something is kept, 0 for ever, and its windows; `ttl` is seconds, None, DEFAULT or a Life."""
        life = ttl if isinstance(ttl, Life) else None
        length = self.default_ttl if ttl is DEFAULT else ttl if life is None else life.ttl
        if length is None:
            return 0, None
        own = max(1, math.ceil(length * 1000))
        if life is None:
            return own, None
        early, stale, kept = (math.ceil(each * 1000) for each in (life.early, life.stale, life.kept))
        return own + max(stale, kept), Windows(early, stale, max(stale, kept))

    # -- a function's entries ----------------------------------------------------------------------------------------

    def look(
        self, key: str, owner: str, tags: tuple[str, ...], named: bytes, take: float | None, timed: bool
    ) -> Steps[tuple[Standing | None, RedisLease | None, str]]:
        """Return the standing entry at a key, or, if there is none, a lease.

        Args:
            key: of the call.
            owner: the function's name.
            tags: of the call.
            named: both of these, as they are written in a header.
            take: put a placeholder for so many seconds where there is nothing, and make stamps that are missing; None:
                only look.
            timed: ask how long the entry has left.

        Returns:
            The standing entry or None; else the lease or None; and whose placeholder it is: "mine", "other's" or "".
        """
        full, stamp_keys = self.full(key), self.stamp_keys(owner, tags)
        count = len(stamp_keys)
        commands: list[Command] = [("GET", full), *(("GET", each) for each in stamp_keys)]
        if timed:
            commands.append(("PTTL", full))
        mine = b""
        if take is not None:
            mine = protocol.new_id()
            commands.append(("SET", full, protocol.placeholder(mine), "NX", "PX", int(take * 1000)))
        replies = yield commands
        found, stamps = replies[0], replies[1 : 1 + count]
        whose, lease_id = "", b""
        if isinstance(found, Refusal):
            if found.kind != "WRONGTYPE":
                raise found
            lease_id = protocol.FOREIGN
        elif found is None:
            whose = "mine" if take is not None and _accepted(replies[-1]) else ""
            lease_id = mine if whose else b""
        else:
            entry = protocol.parse(found)
            if isinstance(entry, Entry) and (entry.digest, entry.names) == (protocol.digest(full), named):
                left: Any = replies[1 + count] if timed else None
                if all(isinstance(each, bytes) for each in stamps) and entry.stamps == b",".join(stamps):
                    if entry.windows is not None and not timed:
                        (left,) = yield [("PTTL", full)]
                    return Standing(entry, _left(left, entry.windows)), None, ""
            lease_id = protocol.foreign(found) if entry is None else entry.id
            whose = "other's" if isinstance(entry, Held) else ""
        for each in stamps:
            if isinstance(each, Refusal):
                raise each
        if take is None:
            return None, (RedisLease(lease_id, b",".join(each or b"" for each in stamps)) if lease_id else None), whose
        if not lease_id:
            return None, None, ""
        if None in stamps:
            stamps = yield from self._stamped(stamp_keys, stamps)
        return None, RedisLease(lease_id, b",".join(stamps)), whose

    def _stamped(self, keys: Sequence[bytes], stamps: Sequence[Reply]) -> Steps[list[bytes]]:
        """Make the stamps that are missing; return all.

        1. the load's lookup finds no stamp   2. it is made here, before the load begins   3. an invalidation removes it
        4. the entry is stored with it, and whoever looks finds none, or another one. If it were made only when the
        entry is stored, an invalidation during the load would find nothing to remove.
        """
        missing = [key for key, stamp in zip(keys, stamps, strict=True) if stamp is None]
        commands: list[Command] = []
        for key in missing:
            stamp = base64.urlsafe_b64encode(os.urandom(9))
            commands += [("SET", key, stamp, "NX", "PX", self._stamp_life), ("GET", key)]
        replies = yield commands
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply
        made = dict(zip(missing, replies[1::2], strict=True))
        # One that is gone again was invalidated just now: nothing equals it.
        return [made[key] or b"?" if stamp is None else stamp for key, stamp in zip(keys, stamps, strict=True)]

    def fill(
        self, key: str, owner: str, tags: tuple[str, ...], named: bytes, lease: RedisLease, payload: bytes, ttl: Any
    ) -> Steps[bool]:
        """Store a payload if the lease's id still stands; return whether it was stored."""
        life, windows = self.milliseconds(ttl)
        full = self.full(key)
        data = protocol.header(protocol.new_id(), protocol.digest(full), lease.stamps, windows, named) + payload
        longest = 0 if life == 0 else max(self._stamp_life, 2 * life)
        replies = yield [
            protocol.FILL(full, lease.id, data, life),
            *(protocol.EXTEND(each, longest) for each in self.stamp_keys(owner, tags)),
        ]
        if isinstance(replies[0], Refusal):
            raise replies[0]
        return bool(replies[0])

    def release(self, key: str, lease: RedisLease, remove: bool) -> Steps[None]:
        """Remove the placeholder that the lease is, and with `remove` the value too, if it still stands."""
        (reply,) = yield [protocol.RELEASE(self.full(key), lease.id, int(remove))]
        if isinstance(reply, Refusal):
            raise reply

    def renew(self, key: str, owner: str, tags: tuple[str, ...], longest: float) -> Steps[RedisLease]:
        """Return a lease beside which no earlier one can be used, whatever stands at the key."""
        full, stamp_keys = self.full(key), self.stamp_keys(owner, tags)
        replies = yield [
            *(("GET", each) for each in stamp_keys),
            protocol.RENEW(full, protocol.new_id(), int(longest * 1000)),
        ]
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply
        stamps = replies[:-1]
        if None in stamps:
            stamps = yield from self._stamped(stamp_keys, stamps)
        return RedisLease(replies[-1], b",".join(stamps))

    def put(self, key: str, owner: str, tags: tuple[str, ...], named: bytes, payload: bytes, ttl: Any) -> Steps[None]:
        """Store a payload whatever stands there."""
        full, stamp_keys = self.full(key), self.stamp_keys(owner, tags)
        stamps = yield [("GET", each) for each in stamp_keys]
        for stamp in stamps:
            if isinstance(stamp, Refusal):
                raise stamp
        if None in stamps:
            stamps = yield from self._stamped(stamp_keys, stamps)
        life, windows = self.milliseconds(ttl)
        data = protocol.header(protocol.new_id(), protocol.digest(full), b",".join(stamps), windows, named) + payload
        longest = 0 if life == 0 else max(self._stamp_life, 2 * life)
        replies = yield [
            ("SET", full, data, *(("PX", life) if life else ())),
            *(protocol.EXTEND(each, longest) for each in stamp_keys),
        ]
        if isinstance(replies[0], Refusal):
            raise replies[0]

    def forget(self, keys: Sequence[bytes]) -> Steps[None]:
        """Remove keys of the server, values and stamps alike."""
        replies = yield [("UNLINK", key) for key in keys]
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply

    # -- any key -----------------------------------------------------------------------------------------------------

    def valid(self, found: Sequence[tuple[bytes, Reply]], whole: bool) -> Steps[list[Standing | bytes | None]]:
        """Return, for what was found at keys, what it is worth: a function's entry, a plain value or nothing.

        Args:
            found: keys of the server, and the bytes there, or the beginning of them.
            whole: they are all the bytes.
        """
        worth: list[Standing | bytes | None] = [None] * len(found)
        asked: list[tuple[int, Entry, list[bytes]]] = []
        for index, (full, data) in enumerate(found):
            if not isinstance(data, bytes):
                continue  # nothing, or no text at all
            entry = protocol.parse(data)
            if entry is None:
                worth[index] = data
            elif isinstance(entry, Entry) and entry.digest == protocol.digest(full):
                if not whole and len(data) > BEGINNING and b"\n" not in data:
                    raise StoreError("the header of an entry is too long")  # pragma: no cover - names of a kilobyte
                owner, *tags = _names(entry.names)
                asked.append((index, entry, self.stamp_keys(owner, tags)))
        if asked:
            commands: list[Command] = []
            for index, _, stamp_keys in asked:
                commands += [*(("GET", each) for each in stamp_keys), ("PTTL", found[index][0])]
            replies = iter((yield commands))
            for index, entry, stamp_keys in asked:
                stamps = [next(replies) for _ in stamp_keys]
                left = next(replies)
                if all(isinstance(each, bytes) for each in stamps) and b",".join(stamps) == entry.stamps:
                    worth[index] = Standing(entry, _left(left, entry.windows))
        return worth

    def read(self, keys: Sequence[str]) -> Steps[list[bytes | None]]:
        """Return the payloads at keys, those of functions too, None where there is none whose ttl is not over."""
        fulls = [self.full(key) for key in keys]
        replies = yield [("GET", each) for each in fulls]
        _check(replies)
        worth = yield from self.valid(list(zip(fulls, replies, strict=True)), whole=True)
        return [_payload(each) for each in worth]

    def there(self, fulls: Sequence[bytes]) -> Steps[list[bool]]:
        """Return of each key of the server whether there is a value whose ttl is not over."""
        replies = yield [("GETRANGE", each, 0, BEGINNING) for each in fulls]
        _check(replies)
        # GETRANGE answers nothing at all as it answers a value that is empty, which no serializer makes.
        found = [(full, reply or None) for full, reply in zip(fulls, replies, strict=True)]
        worth = yield from self.valid(found, whole=False)
        return [_payload(each) is not None for each in worth]

    def write(self, payloads: Sequence[tuple[str, bytes]], ttl: Any) -> Steps[None]:
        """Store plain values."""
        life, _ = self.milliseconds(ttl)
        replies = yield [("SET", self.full(key), payload, *(("PX", life) if life else ())) for key, payload in payloads]
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply

    def remove(self, keys: Sequence[str]) -> Steps[int]:
        """Remove what stands at keys, placeholders too; return how many values there were."""
        return (yield from self.remove_full([self.full(key) for key in keys]))

    def remove_full(self, fulls: Sequence[bytes]) -> Steps[int]:
        """Do the same for keys of the server."""
        commands: list[Command] = []
        for full in fulls:
            commands += [("GETRANGE", full, 0, BEGINNING), ("PTTL", full), ("UNLINK", full)]
        replies = yield commands
        for reply in replies[2::3]:
            if isinstance(reply, Refusal):
                raise reply
        found = [(full, reply or None) for full, reply in zip(fulls, replies[::3], strict=True)]
        lefts = replies[1::3]
        # The times are those from before: by now nothing is there that has any.
        worth = yield from self.valid(found, whole=False)
        count = 0
        for each, left, reply in zip(worth, lefts, replies[2::3], strict=True):
            if isinstance(each, Standing):
                each.left = _left(left, each.entry.windows)
            count += bool(reply) and _payload(each) is not None
        return count

    def left(self, key: str) -> Steps[float | None]:
        """Return the seconds that a value has left; None: there is none; infinity: it never expires."""
        full = self.full(key)
        replies = yield [("GETRANGE", full, 0, BEGINNING), ("PTTL", full)]
        _check(replies)
        (each,) = yield from self.valid([(full, replies[0] or None)], whole=False)
        if each is None:
            return None
        left = each.left if isinstance(each, Standing) else _left(replies[1], None)
        return left / 1000 if left > 0 else None

    def expire(self, key: str, ttl: Any) -> Steps[bool]:
        """Give a value a new ttl from now, and windows as long as before; return whether there was one."""
        full = self.full(key)
        (found,) = yield [("GETRANGE", full, 0, BEGINNING)]
        _check([found])
        (each,) = yield from self.valid([(full, found or None)], whole=False)
        if _payload(each) is None:
            return False
        life, _ = self.milliseconds(ttl)
        if life and isinstance(each, Standing) and each.entry.windows is not None:
            life += each.entry.windows.kept
        (reply,) = yield [("PEXPIRE", full, life) if life else ("PERSIST", full)]
        if isinstance(reply, Refusal):
            raise reply
        return True

    def increment(
        self, key: str, amount: float, loads: Callable[[bytes], Any], dumps: Callable[[Any], bytes]
    ) -> Steps[Any]:
        """Add to the number at a key; compare and set, again and again, until nobody came in between."""
        full = self.full(key)
        while True:
            found, left = yield [("GET", full), ("PTTL", full)]
            _check([found])
            (each,) = yield from self.valid([(full, found)], whole=True)
            payload = _payload(each)
            if payload is None:
                life, _ = self.milliseconds(DEFAULT)
                total, entry = amount, None if found is None else protocol.parse(found)
                seen = b"" if found is None else protocol.foreign(found) if entry is None else entry.id
            else:
                number = loads(payload)
                if type(number) not in (int, float):
                    raise ValueError(f"increment({key!r}): there is a {type(number).__name__}, which is not a number")
                total, life = number + amount, max(0, left)
                seen = protocol.foreign(found) if isinstance(each, bytes) else each.entry.id  # type: ignore[union-attr]
            data = dumps(total)
            if isinstance(each, Standing) and payload is not None:
                old = each.entry
                data = protocol.header(protocol.new_id(), old.digest, old.stamps, old.windows, old.names) + data
            if not seen:
                command: Command = ("SET", full, data, "NX", *(("PX", life) if life else ()))
            else:
                command = protocol.FILL(full, seen, data, life)
            (reply,) = yield [command]
            if isinstance(reply, Refusal):
                raise reply
            if reply:
                return total

    def listed(self) -> Steps[list[bytes]]:
        """Return all keys of the server that are this store's, stamps included."""
        cursor: Any = 0
        pattern = (
            b"".join(b"\\" + bytes([each]) if each in b"*?[]^\\-" else bytes([each]) for each in self._first) + b"*"
        )
        found: dict[bytes, None] = {}
        while True:
            (reply,) = yield [("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)]
            if isinstance(reply, Refusal):
                raise reply
            cursor, keys = reply
            found.update(dict.fromkeys(key for key in keys if key.startswith(self._first)))
            if int(cursor) == 0:
                return list(found)

    def matching(self, matches: Callable[[str], object]) -> Steps[list[bytes]]:
        """Return the keys of the server whose keys match, placeholders included and stamps not."""
        keys = yield from self.listed()
        return [full for full in keys if (key := self.short(full)) is not None and matches(key)]


def together(steps: Sequence[Steps[T]]) -> Steps[list[T | Exception]]:
    """Take several steps in one round trip each; return their results, an error where one has failed."""
    results: list[Any] = [None] * len(steps)
    waiting: dict[int, list[Command]] = {}

    def advance(index: int, replies: list[Reply] | None) -> None:
        try:
            waiting[index] = steps[index].send(replies)  # type: ignore[arg-type]
        except StopIteration as stop:
            results[index] = stop.value
            waiting.pop(index, None)
        except Exception as error:  # noqa: BLE001 - it is this one's result
            results[index] = error
            waiting.pop(index, None)

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        asked = list(waiting.items())
        replies = yield [command for _, commands in asked for command in commands]
        at = 0
        for index, commands in asked:
            advance(index, replies[at : at + len(commands)])
            at += len(commands)
    return results


def _accepted(reply: Reply) -> bool:
    return reply in (b"OK", "OK", True)


def _check(replies: Iterable[Reply]) -> None:
    """Raise what the server has answered, but for a key that holds no text: that is nothing of ours."""
    for reply in replies:
        if isinstance(reply, Refusal) and reply.kind != "WRONGTYPE":
            raise reply


def _left(left: Any, windows: Windows | None) -> float:
    """Return the milliseconds until a ttl is over, of what PTTL has answered; None: nobody has asked."""
    if left is None or left == -1:
        return math.inf
    if not isinstance(left, int):
        return 0
    return left - (0 if windows is None else windows.kept)


def _payload(worth: Standing | bytes | None) -> bytes | None:
    if isinstance(worth, Standing):
        return worth.entry.payload if worth.left > 0 else None
    return worth


def _names(data: bytes) -> list[str]:
    import json

    try:
        names = json.loads(data)
    except ValueError:
        return [""]
    return [each for each in names if isinstance(each, str)] or [""] if isinstance(names, list) else [""]
