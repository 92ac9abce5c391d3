"""What a decorated function does at its keys of a Redis server: it looks, takes leases and fills; nothing is sent here.

These are generators that yield commands and are sent their answers. All commands of one `yield` go out together: one
round trip. So each operation is written once, for those who block and for those who await.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, TypeVar

from ...entry import DEFAULT, Life
from ...errors import OptionError
from . import protocol
from .commands import Command, Refusal, Reply
from .protocol import Entry, Held, Plain, Windows

__all__ = ["EntrySteps", "RedisLease", "Seen", "Standing", "Steps", "check", "time_left"]

T = TypeVar("T")
Steps = Generator[list[Command], list[Reply], T]

ADDRESSES: Final = 4096
"""Keys whose names and digests a process remembers: about a megabyte."""

STAMPS: Final = 1024
"""Stamps of which a process remembers when it has lengthened their lives."""

LOST: Final = 1024
"""Placeholders that a process remembers to have put, perhaps, though it never heard of that."""

_STAMPS: Final = ("~fn:", "~tag:")
"""What the keys of stamps begin with, after the prefix."""


class RedisLease:
    """The id that stood at a key, and the stamps that stood beside it, when they were read.

    Attributes:
        mine: that id was put there for this load alone, which gives it back when it fails.
        beside: the space's `_lent` when it was asked for.
    """

    __slots__ = ("beside", "id", "mine", "stamps")

    def __init__(self, lease_id: bytes, stamps: bytes, mine: bool = False) -> None:
        self.id = lease_id
        self.stamps = stamps
        self.mine = mine
        self.beside: object = None

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


class Seen(NamedTuple):
    """What a look at a function's key has found.

    Attributes:
        standing: the entry that is valid for the call.
        lease: where there is none: the id that stands there.
        held: another caller is loading the key.
        strange: something stands there that is not this function's.
    """

    standing: Standing | None = None
    lease: RedisLease | None = None
    held: bool = False
    strange: bool = False


class EntrySteps:
    """What is done at one key for a decorated function, and how keys, stamps and times are written.

    Args:
        prefix: what all of its keys begin with.
        default_ttl: seconds; None: what is stored without a ttl never expires.
    """

    def __init__(self, prefix: str, default_ttl: float | None) -> None:
        self.prefix = prefix
        self.default_ttl = default_ttl
        self._first = prefix.encode("utf-8", "surrogatepass")
        self._stamp_life = int(2000 * protocol.LONGEST_LOAD)
        # Until when, of the monotonic clock, stamps live long enough; by whose they are, themselves and that life.
        self._lengthened: dict[tuple[Any, ...], float] = {}
        self._lost: deque[bytes] = deque(maxlen=LOST)  # each method of it that is used is one step for other threads
        # The server's name of a key, and its digest: of the keys in use both are known.
        self.address: Callable[[str], tuple[bytes, bytes]] = lru_cache(ADDRESSES)(partial(_address, self._first))

    # -- names -------------------------------------------------------------------------------------------------------

    def full(self, key: str) -> bytes:
        """Return the server's name of a key.

        Raises:
            OptionError: it would be that of a stamp.
        """
        return _full(self._first, key)

    def stamp_keys(self, owner: str, tags: Iterable[str]) -> list[bytes]:
        """Return the server's names of the stamps of a function and of tags."""
        names = (f"~fn:{owner}", *(f"~tag:{tag}" for tag in tags))
        return [self._first + name.encode("utf-8", "surrogatepass") for name in names]

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
    ) -> Steps[Seen | Plain]:
        """Return the standing entry at a key, or, if there is none, a lease.

        Args:
            key: of the call.
            owner: the function's name.
            tags: of the call.
            named: both of these, as they are written in a header.
            take: put a placeholder for so many seconds where there is nothing, and make stamps that are missing; None:
                only look.
            timed: ask how long the entry has left. Before the entry itself: else another one may come in between, and
                an old value be judged by the time of its successor.
        """
        (full, key_digest), stamp_keys = self.address(key), self.stamp_keys(owner, tags)
        count, again = len(stamp_keys), take is not None
        while True:
            commands: list[Command] = [("PTTL", full)] if timed else []
            commands += [("GET", full), *(("GET", each) for each in stamp_keys)]
            mine = b""
            if take is not None:
                mine = protocol.new_id()
                commands.append(("SET", full, protocol.placeholder(mine), "NX", "PX", int(take * 1000)))
            try:
                replies = yield commands
            except GeneratorExit:
                # No answer came, and the placeholder may stand there all the same. Nobody loads with it: else whoever
                # called next, in this process too, would wait as for a load, in a fleet for half a minute.
                if mine:
                    self._lost.append(mine)
                raise
            left, found = replies[0] if timed else None, replies[timed]
            stamps = replies[timed + 1 : timed + 1 + count]
            # With a placeholder put after it was read, it was gone by then.
            if not timed and (take is None or replies[-1] is None):
                hit = protocol.plain(found, key_digest, protocol.ending(stamps, named))
                if hit is not None:
                    return hit
            for each in stamps:
                if isinstance(each, Refusal):
                    raise each
            if mine and _accepted(replies[-1]):
                # Whatever was read before, it was gone by then.
                return Seen(lease=(yield from self._leased(full, mine, stamp_keys, stamps)))
            if isinstance(found, Refusal) and found.kind != "WRONGTYPE":
                raise found
            if found is None and again and replies[-1] is None:
                again = False  # something came or went in between
                continue
            entry = protocol.parse(found) if isinstance(found, bytes) else None
            if isinstance(entry, Entry) and _stands(entry, full, named, stamps):
                if entry.windows is None or timed:
                    return Seen(Standing(entry, time_left(left, entry.windows)))
                timed = True
                continue
            break
        if found is None:
            return Seen()
        strange = not (isinstance(entry, Held) or (isinstance(entry, Entry) and protocol.bears(entry.names, owner)))
        if take is None:
            seen = b"" if entry is None else entry.id
            joined = b",".join(each or b"?" for each in stamps)
            return Seen(lease=RedisLease(seen, joined) if seen else None, strange=strange)
        if entry is not None:
            if isinstance(entry, Held) and self._is_lost(entry.id):
                return Seen(lease=(yield from self._leased(full, entry.id, stamp_keys, stamps)))
            made = yield from self._stamped(stamp_keys, stamps)
            return Seen(lease=RedisLease(entry.id, b",".join(made)), held=isinstance(entry, Held), strange=strange)
        # What has no id of its own is replaced by a placeholder that has one.
        seen = protocol.foreign(found) if isinstance(found, bytes) else protocol.FOREIGN
        (claimed,) = yield [protocol.CLAIM(full, seen, mine, int(take * 1000), 0)]
        if isinstance(claimed, Refusal):
            raise claimed
        return Seen(lease=(yield from self._leased(full, mine, stamp_keys, stamps)) if claimed else None, strange=True)

    def _leased(
        self, full: bytes, mine: bytes, stamp_keys: Sequence[bytes], stamps: Sequence[Reply]
    ) -> Steps[RedisLease]:
        """Return the lease of a placeholder that was just put; if the stamps cannot be made it is given back."""
        try:
            if None in stamps:
                stamps = yield from self._stamped(stamp_keys, stamps)
            return RedisLease(mine, b",".join(stamps), mine=True)
        except Refusal:
            yield [protocol.RELEASE(full, mine, 0)]
            raise
        except GeneratorExit:
            self._lost.append(mine)
            raise

    def _is_lost(self, lease_id: bytes) -> bool:
        """Return whether this process has put that placeholder and never heard of it; the first to ask has it."""
        try:
            self._lost.remove(lease_id)
        except ValueError:
            return False
        return True

    def look_many(
        self, calls: Sequence[tuple[str, tuple[str, ...]]], owner: str, named: Sequence[bytes], timed: bool
    ) -> Steps[list[Seen | Plain]]:
        """Return what `look` does, which takes nothing, for several keys and their tags."""
        addresses = [self.address(key) for key, _ in calls]
        fulls = [full for full, _ in addresses]
        kinds = {tags: (self.stamp_keys(owner, tags), each) for (_, tags), each in zip(calls, named, strict=True)}
        while True:
            stamp_keys = list(dict.fromkeys(each for keys, _ in kinds.values() for each in keys))
            commands: list[Command] = [("PTTL", full) for full in fulls] if timed else []
            commands += [("MGET", *fulls), ("MGET", *stamp_keys)]
            replies = yield commands
            founds, stood = replies[-2:]
            check((founds, stood))
            stamp_of = dict(zip(stamp_keys, stood, strict=True))
            ends = {
                tags: None if timed else protocol.ending([stamp_of[key] for key in keys], each)
                for tags, (keys, each) in kinds.items()
            }
            seen: list[Seen | Plain] = []
            for index, ((full, key_digest), (_, tags), found) in enumerate(zip(addresses, calls, founds, strict=True)):
                hit = protocol.plain(found, key_digest, ends[tags])
                if hit is not None:
                    seen.append(hit)
                    continue
                stamps = [stamp_of[each] for each in kinds[tags][0]]
                entry = None if found is None else protocol.parse(found)
                if isinstance(entry, Entry) and _stands(entry, full, named[index], stamps):
                    if entry.windows is not None and not timed:
                        break
                    seen.append(Seen(Standing(entry, time_left(replies[index] if timed else None, entry.windows))))
                elif entry is None:
                    seen.append(Seen(strange=found is not None))
                else:
                    strange = isinstance(entry, Entry) and not protocol.bears(entry.names, owner)
                    joined = b",".join(each or b"?" for each in stamps)
                    seen.append(Seen(lease=RedisLease(entry.id, joined), strange=strange))
            else:
                return seen
            timed = True

    def claim(self, key: str, lease: RedisLease, served: bool, longest: float) -> Steps[RedisLease | None]:
        """Take what a lease saw for a load that is to be a whole fleet's; None: it does not stand any more.

        Args:
            key: of the call.
            lease: what was seen.
            served: what stands there is served on, and so stays; else a placeholder takes its place.
            longest: seconds for which that stands.
        """
        mine = protocol.new_id()
        (reply,) = yield [protocol.CLAIM(self.full(key), lease.id, mine, int(longest * 1000), int(served))]
        if isinstance(reply, Refusal):
            raise reply
        return RedisLease(mine, lease.stamps, mine=True) if reply else None

    def _stamped(self, keys: Sequence[bytes], stamps: Sequence[Reply]) -> Steps[list[bytes]]:
        """Make the stamps that are missing; return all.

        1. the load's lookup finds no stamp   2. it is made here, before the load begins   3. an invalidation removes it
        4. the entry is stored with it, and whoever looks finds none, or another one. If it were made only when the
        entry is stored, an invalidation during the load would find nothing to remove.
        """
        missing = [key for key, stamp in zip(keys, stamps, strict=True) if stamp is None]
        if not missing:
            return list(stamps)
        commands: list[Command] = []
        new = {key: protocol.new_id() for key in missing}
        for key, stamp in new.items():
            commands += [("SET", key, stamp, "NX", "PX", self._stamp_life), ("GET", key)]
        replies = yield commands
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply
        made = dict(zip(missing, replies[1::2], strict=True))
        # One that is gone again was invalidated just now: what is recorded stands nowhere and never will.
        return [made[key] or new[key] if stamp is None else stamp for key, stamp in zip(keys, stamps, strict=True)]

    def fill(
        self, key: str, owner: str, tags: tuple[str, ...], named: bytes, lease: RedisLease, payload: bytes, ttl: Any
    ) -> Steps[bool]:
        """Store a payload if the lease's id still stands; return whether it was stored."""
        life, windows = self.milliseconds(ttl)
        full, key_digest = self.address(key)
        data = protocol.header(protocol.new_id(), key_digest, lease.stamps, windows, named) + payload
        longest = 0 if life == 0 else max(self._stamp_life, 2 * life)
        commands = [protocol.FILL(full, lease.id, data, life)]
        stamps = (owner, tags, lease.stamps, longest)
        if self._lengthened.get(stamps, 0.0) < time.monotonic():
            commands += [protocol.EXTEND(each, longest) for each in self.stamp_keys(owner, tags)]
        replies = yield commands
        if isinstance(replies[0], Refusal):
            raise replies[0]
        if len(commands) > 1 and not any(isinstance(each, Refusal) for each in replies):
            self._enough(stamps, longest / 4000 if longest else math.inf)
        return bool(replies[0])

    def _enough(self, stamps: tuple[Any, ...], length: float) -> None:
        """Note that stamps live long enough for so many seconds, for what is filled meanwhile with the same ttl.

        If they go all the same nobody is served what bears them: it is loaded again.
        """
        if len(self._lengthened) >= STAMPS:
            self._lengthened.clear()
        self._lengthened[stamps] = time.monotonic() + length

    def release(self, key: str, lease: RedisLease, remove: bool) -> Steps[None]:
        """Give back the placeholder or the claim that a lease is, and with `remove` what stands there too."""
        if not lease.mine and not remove:
            return  # another process may be loading with that id
        (reply,) = yield [protocol.RELEASE(self.full(key), lease.id, int(remove))]
        if isinstance(reply, Refusal):
            raise reply

    def renew(self, key: str, owner: str, tags: tuple[str, ...], longest: float, claim: bool) -> Steps[RedisLease]:
        """Return a lease beside which no earlier one can be used, whatever stands at the key.

        Args:
            key: of the call.
            owner: the function's name.
            tags: of the call.
            longest: seconds for which a placeholder stands.
            claim: no other process is to refresh a value meanwhile.
        """
        full, stamp_keys = self.full(key), self.stamp_keys(owner, tags)
        replies = yield [
            *(("GET", each) for each in stamp_keys),
            protocol.RENEW(full, protocol.new_id(), int(longest * 1000), "+" if claim else " "),
        ]
        for reply in replies:
            if isinstance(reply, Refusal):
                raise reply
        stamps = yield from self._stamped(stamp_keys, replies[:-1])
        return RedisLease(replies[-1], b",".join(stamps), mine=True)

    def put(self, key: str, owner: str, tags: tuple[str, ...], named: bytes, payload: bytes, ttl: Any) -> Steps[None]:
        """Store a payload whatever stands there."""
        full, stamp_keys = self.full(key), self.stamp_keys(owner, tags)
        stamps = yield [("GET", each) for each in stamp_keys]
        for stamp in stamps:
            if isinstance(stamp, Refusal):
                raise stamp
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


def _full(prefix: bytes, key: str) -> bytes:
    if key.startswith(_STAMPS):
        raise OptionError(
            f"key={key[:60]!r}: keys that begin with '~fn:' or '~tag:' are the Redis store's own: take another"
        )
    return prefix + key.encode("utf-8", "surrogatepass")


def _address(prefix: bytes, key: str) -> tuple[bytes, bytes]:
    full = _full(prefix, key)
    return full, protocol.digest(full)


def _stands(entry: Entry, full: bytes, named: bytes, stamps: Sequence[Reply]) -> bool:
    """Return whether an entry is what a call asks for: of its key, function and tags, and none of its stamps gone."""
    return (
        entry.digest == protocol.digest(full)
        and entry.names == named
        and all(isinstance(each, bytes) for each in stamps)
        and entry.stamps == b",".join(stamps)
    )


def _accepted(reply: Reply) -> bool:
    return reply in (b"OK", "OK", True)


def check(replies: Iterable[Reply]) -> None:
    """Raise what the server has answered, but for a key that holds no text: that is nothing of ours."""
    for reply in replies:
        if isinstance(reply, Refusal) and reply.kind != "WRONGTYPE":
            raise reply


def time_left(left: Any, windows: Windows | None) -> float:
    """Return the milliseconds until a ttl is over, of what PTTL has answered; None: nobody has asked."""
    if left is None or left == -1:
        return math.inf
    if not isinstance(left, int):
        return 0
    return left - (0 if windows is None else windows.kept)
