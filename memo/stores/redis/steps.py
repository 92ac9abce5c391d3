"""What a Redis store does at any key, as generators that yield commands; nothing here waits or sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ...entry import DEFAULT
from . import protocol
from .commands import Command, Refusal, Reply
from .leases import EntrySteps, Standing, Steps, check, time_left
from .protocol import Entry

__all__ = ["BATCH", "StoreSteps", "together"]

T = TypeVar("T")

BATCH: Final = 500
"""Keys that are asked for at once while all are looked at."""

BEGINNING: Final = 1023
"""The last byte that is read where only a header is wanted; a longer one, of many tags, is read again, and whole."""


class StoreSteps(EntrySteps):
    """The operations of a store on one server."""

    # -- any key -----------------------------------------------------------------------------------------------------

    def valid(self, found: Sequence[tuple[bytes, Reply]]) -> Steps[list[Standing | bytes | None]]:
        """Return, for what was found at keys, what it is worth: a function's entry, a plain value or nothing.

        Args:
            found: keys of the server, and the bytes there, or the beginning of them with all of the header.
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
                    worth[index] = Standing(entry, time_left(left, entry.windows))
        return worth

    def headed(self, found: list[tuple[bytes, Reply]]) -> Steps[list[tuple[bytes, Reply]]]:
        """Return the beginnings found at keys, and everything instead where there is more header than beginning."""
        cut = [index for index, (full, data) in enumerate(found) if _is_cut(full, data)]
        if cut:
            replies = yield [("GET", found[index][0]) for index in cut]
            check(replies)
            for index, reply in zip(cut, replies, strict=True):
                found[index] = (found[index][0], reply)
        return found

    def read(self, keys: Sequence[str]) -> Steps[list[bytes | None]]:
        """Return the payloads at keys, those of functions too, None where there is none whose ttl is not over."""
        fulls = [self.full(key) for key in keys]
        replies = yield [("GET", each) for each in fulls]
        check(replies)
        worth = yield from self.valid(list(zip(fulls, replies, strict=True)))
        return [_payload(each) for each in worth]

    def there(self, fulls: Sequence[bytes]) -> Steps[list[bool]]:
        """Return of each key of the server whether there is a value whose ttl is not over."""
        replies = yield [("GETRANGE", each, 0, BEGINNING) for each in fulls]
        check(replies)
        # GETRANGE answers nothing at all as it answers a value that is empty, which no serializer makes.
        found = [(full, reply or None) for full, reply in zip(fulls, replies, strict=True)]
        worth = yield from self.valid((yield from self.headed(found)))
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
        """Do the same for keys of the server.

        An entry whose header is longer than its beginning is counted, whether or not its tags still stood: when that
        is found out it is gone, and nobody can read which they were.
        """
        commands: list[Command] = []
        for full in fulls:
            commands += [("GETRANGE", full, 0, BEGINNING), ("PTTL", full), ("UNLINK", full)]
        replies = yield commands
        for reply in replies[2::3]:
            if isinstance(reply, Refusal):
                raise reply
        cut = [_is_cut(full, reply) for full, reply in zip(fulls, replies[::3], strict=True)]
        known = zip(fulls, replies[::3], cut, strict=True)
        worth = yield from self.valid([(full, None if is_cut else reply or None) for full, reply, is_cut in known])
        count = 0
        # The times are those from before: by now nothing is there that has any.
        for each, is_cut, left, reply in zip(worth, cut, replies[1::3], replies[2::3], strict=True):
            if isinstance(each, Standing):
                each.left = time_left(left, each.entry.windows)
            count += bool(reply) and (is_cut or _payload(each) is not None)
        return count

    def left(self, key: str) -> Steps[float | None]:
        """Return the seconds that a value has left; None: there is none; infinity: it never expires."""
        full = self.full(key)
        replies = yield [("GETRANGE", full, 0, BEGINNING), ("PTTL", full)]
        check(replies)
        (each,) = yield from self.valid((yield from self.headed([(full, replies[0] or None)])))
        if each is None:
            return None
        left = each.left if isinstance(each, Standing) else time_left(replies[1], None)
        return left / 1000 if left > 0 else None

    def expire(self, key: str, ttl: Any) -> Steps[bool]:
        """Give a value a new ttl from now, and windows as long as before; return whether there was one."""
        full = self.full(key)
        (found,) = yield [("GETRANGE", full, 0, BEGINNING)]
        check([found])
        (each,) = yield from self.valid((yield from self.headed([(full, found or None)])))
        if _payload(each) is None:
            return False
        life, _ = self.milliseconds(ttl)
        commands: list[Command] = []
        if isinstance(each, Standing):
            if life and each.entry.windows is not None:
                life += each.entry.windows.kept
            owner, *tags = _names(each.entry.names)
            longest = 0 if life == 0 else max(self._stamp_life, 2 * life)
            commands = [protocol.EXTEND(stamp, longest) for stamp in self.stamp_keys(owner, tags)]
        replies = yield [("PEXPIRE", full, life) if life else ("PERSIST", full), *commands]
        if isinstance(replies[0], Refusal):
            raise replies[0]
        return True

    def increment(
        self, key: str, amount: float, loads: Callable[[bytes], Any], dumps: Callable[[Any], bytes]
    ) -> Steps[Any]:
        """Add to the number at a key; compare and set, again and again, until nobody came in between."""
        full = self.full(key)
        while True:
            found, left = yield [("GET", full), ("PTTL", full)]
            check([found])
            (each,) = yield from self.valid([(full, found)])
            payload = _payload(each)
            if payload is None:
                life, _ = self.milliseconds(DEFAULT)
                total, seen = amount, _id_of(found)
            else:
                number = loads(payload)
                if type(number) not in (int, float):
                    raise ValueError(f"increment({key!r}): there is a {type(number).__name__}, which is not a number")
                total, life = number + amount, 0 if left == -1 else max(1, left)
                seen = _id_of(found)
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
            waiting[index] = next(steps[index]) if replies is None else steps[index].send(replies)
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


def _id_of(found: Reply) -> bytes:
    """Return what a script compares with what stands at a key; nothing: nothing stands there."""
    if not isinstance(found, bytes):
        return b"" if found is None else protocol.FOREIGN
    entry = protocol.parse(found)
    return protocol.foreign(found) if entry is None else entry.id


def _is_cut(full: bytes, data: Reply) -> bool:
    """Return whether the beginning of a function's entry at a key ends before its header does."""
    return (
        isinstance(data, bytes)
        and len(data) > BEGINNING
        and data.startswith(b"#memo1")
        and b"\n" not in data
        and protocol.is_of(data, full)
    )


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
