"""What stands at a key of a Redis server, as bytes, and the scripts that compare and set it; nothing is sent here.

A plain value is what the serializer made of it. What a decorated function has stored begins with a header of one line:

    #memo1 ID DIGEST STAMPS WINDOWS NAMES\\n

ID is random and another one for each write: who fills a key says which id he saw there, and the script stores only if
that one still stands. DIGEST is the key's, so that an answer to another question is not taken for this one's. STAMPS
are those of the function and of the tags in NAMES when the load began: to remove a stamp is to invalidate everything
that bears it, at no cost for each entry. WINDOWS are the lengths, in milliseconds, of the times before and after the
end of the ttl in which the value is refreshed, served stale, or kept for an error; the server's own PTTL says where in
them it is, so that no two clocks are compared.

Before its first value a key may have a placeholder, `#memo1-ID`: somebody is loading it. It reads as nothing. A value
that one process refreshes for a whole fleet begins with `#memo1+`, and its id is that process's lease.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from ...forks import in_child
from .commands import Reply, Script

__all__ = [
    "CLAIM",
    "EXTEND",
    "FILL",
    "FOREIGN",
    "LONGEST_FLEET_LOAD",
    "LONGEST_LOAD",
    "RELEASE",
    "RENEW",
    "Entry",
    "Held",
    "Plain",
    "Windows",
    "bears",
    "digest",
    "ending",
    "foreign",
    "header",
    "is_of",
    "names",
    "new_id",
    "parse",
    "placeholder",
    "plain",
]

VALUE: Final = b"#memo1 "
HELD: Final = b"#memo1-"

LONGEST_LOAD: Final = 600.0
"""Seconds for which a placeholder stands: the result of a load that takes longer is returned and not stored."""

LONGEST_FLEET_LOAD: Final = 30.0
"""The same where other processes wait for it: a process that was killed keeps them for no longer."""

FOREIGN: Final = b"!"
"""The id of what is no text at all: a list, a hash, which somebody else has put at our key."""


class Windows(NamedTuple):
    """Milliseconds before the end of the ttl from which on a hit refreshes, and after it: served stale, and kept."""

    early: int
    stale: int
    kept: int


class Held(NamedTuple):
    """Somebody is loading the key."""

    id: bytes


Plain = tuple[bytes, int]
"""An entry without windows, all of whose header is what a call expects: as it is written, and where its payload is."""


class Entry(NamedTuple):
    """What a decorated function has stored; without its payload, if only the beginning was read."""

    id: bytes
    digest: bytes
    stamps: bytes
    windows: Windows | None
    names: bytes
    payload: bytes
    claimed: bool = False  # one process of a fleet is refreshing it


_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

_ids: list[bytes] = []  # made and not given out yet: the system is asked for many at a time
in_child(_ids.clear)  # the parent gives out the same


def new_id() -> bytes:
    """Return twelve bytes that nobody else has."""
    while True:
        try:
            return _ids.pop()  # one step for other threads
        except IndexError:  # noqa: PERF203 - of each 64th alone
            made = base64.urlsafe_b64encode(os.urandom(9 * 64))
            _ids.extend([made[at : at + 12] for at in range(0, len(made), 12)])


def digest(key: bytes) -> bytes:
    """Return twelve bytes that tell a key from all others."""
    made = hashlib.blake2b(key, digest_size=9, usedforsecurity=False).digest()
    return binascii.b2a_base64(made, newline=False).translate(_URL_SAFE)


def names(owner: str, tags: tuple[str, ...]) -> bytes:
    """Return the names of a function and of an entry's tags, in one line."""
    return json.dumps([owner, *tags]).encode()


def bears(named: bytes, owner: str) -> bool:
    """Return whether names that were read are those of an entry of a function.

    >>> bears(names("app.f", ("t",)), "app.f"), bears(names("app.f2", ()), "app.f"), bears(b"", "app.f")
    (True, False, False)
    """
    first = b"[" + json.dumps(owner).encode()
    return named.startswith(first) and named[len(first) : len(first) + 1] in (b"]", b",")


def header(entry_id: bytes, key_digest: bytes, stamps: bytes, windows: Windows | None, named: bytes) -> bytes:
    """Return the line that stands before a payload."""
    lengths = b"-" if windows is None else b"%d,%d,%d" % windows
    return b"%b%b %b %b %b %b\n" % (VALUE, entry_id, key_digest, stamps, lengths, named)


def placeholder(lease_id: bytes) -> bytes:
    """Return what stands at a key while it is loaded for the first time."""
    return HELD + lease_id


def parse(data: bytes) -> Entry | Held | None:
    """Return what is written in a key's bytes; None: a plain value.

    >>> parse(header(b"ABCDEFGHIJKL", digest(b"k"), b"s1,s2", None, names("app.f", ("t",))) + b"[1]").payload
    b'[1]'
    >>> parse(placeholder(b"ABCDEFGHIJKL"))
    Held(id=b'ABCDEFGHIJKL')
    >>> parse(b'{"a": 1}')
    """
    if not data.startswith(b"#memo1"):
        return None
    if data.startswith(HELD):
        return Held(data[7:19])
    line, _, payload = data.partition(b"\n")
    fields = line[7:].split(b" ", 4)
    if len(fields) != 5 or data[6:7] not in (b" ", b"+"):
        return Entry(data[7:19], b"", b"", None, b"", b"")  # somebody else's, or damaged: nobody's
    _, key_digest, stamps, lengths, named = fields
    entry_id = data[7:19]
    windows = None
    if lengths != b"-":
        try:
            windows = Windows(*map(int, lengths.split(b",")))
        except (ValueError, TypeError):
            key_digest = b""
    return Entry(entry_id, key_digest, stamps, windows, named, payload, data[6:7] == b"+")


def is_of(data: bytes, key: bytes) -> bool:
    """Return whether the header that data begins with, however much of it there is, names this key."""
    return data[20:32] == digest(key)


def ending(stamps: Sequence[Reply], named: bytes) -> bytes | None:
    """Return how the header of an entry without windows ends that a call asks for; None: there can be none."""
    try:
        return b" %b - %b\n" % (b",".join(stamps), named)
    except TypeError:  # a stamp is gone, or was refused
        return None


def plain(data: Reply, key_digest: bytes, end: bytes | None) -> Plain | None:
    """Return what stands at a key if that is nearly every hit: an entry without windows that a call asks for.

    Args:
        data: what was read.
        key_digest: the key's.
        end: of the header, as `ending` has it.

    >>> data = header(b"ABCDEFGHIJKL", digest(b"k"), b"s1,s2", None, names("app.f", ("t",))) + b"[1]"
    >>> found, at = plain(data, digest(b"k"), ending([b"s1", b"s2"], names("app.f", ("t",))))
    >>> found[at:]
    b'[1]'
    >>> plain(data, digest(b"k"), ending([b"s1", None], names("app.f", ("t",))))
    """
    if (
        end is None
        or type(data) is not bytes
        or not data.startswith(VALUE)
        or not data.startswith(key_digest + end, 20)
    ):
        return None
    return data, 32 + len(end)


def foreign(data: bytes) -> bytes:
    """Return what stands for the id where a plain value stands, which has none: its digest."""
    return b"=" + hashlib.sha1(data, usedforsecurity=False).hexdigest().encode()


# What stands at KEYS[1] has the id ARGV[1].
_STANDS: Final = """
local kind = redis.call('TYPE', KEYS[1]).ok
local id = ARGV[1]
if kind == 'string' then
  if string.sub(id, 1, 1) == '=' then
    if redis.sha1hex(redis.call('GET', KEYS[1])) ~= string.sub(id, 2) then return 0 end
  else
    local head = redis.call('GETRANGE', KEYS[1], 0, 18)
    if string.sub(head, 1, 6) ~= '#memo1' or string.sub(head, 8) ~= id then return 0 end
  end
elseif kind == 'none' or id ~= '!' then
  return 0
end
"""

# Nearly always a placeholder stands there; it is no error here that something else does.
FILL: Final = Script(
    "if redis.pcall('GETRANGE', KEYS[1], 0, 18) ~= '#memo1-' .. ARGV[1] then"
    + _STANDS
    + """end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""
)
"""Arguments: the id that was seen, the new bytes, milliseconds or 0 for ever. Answers 1 if it was stored."""

RELEASE: Final = Script(
    _STANDS
    + """
local kind = redis.call('GETRANGE', KEYS[1], 6, 6)
if ARGV[2] == '1' or kind == '-' then redis.call('UNLINK', KEYS[1])
elseif kind == '+' then redis.call('SETRANGE', KEYS[1], 6, ' ') end
return 1
"""
)
"""Arguments: the id, 1 to remove a value too. Gives back a placeholder or a claim that still stands."""

CLAIM: Final = Script(
    _STANDS
    + """
if ARGV[4] == '1' then redis.call('SETRANGE', KEYS[1], 6, '+' .. ARGV[2])
else redis.call('SET', KEYS[1], '#memo1-' .. ARGV[2], 'PX', ARGV[3]) end
return 1
"""
)
"""Arguments: the id that was seen, a new one, milliseconds, 1 if what stands there is served on. Answers 1 if it was
still there: then the new id stands, of a placeholder or of that value."""

RENEW: Final = Script(
    """
if redis.call('TYPE', KEYS[1]).ok == 'string' then
  local head = redis.call('GETRANGE', KEYS[1], 0, 6)
  if head == '#memo1 ' or head == '#memo1+' then
    redis.call('SETRANGE', KEYS[1], 6, ARGV[3] .. ARGV[1])
    return ARGV[1]
  end
end
redis.call('SET', KEYS[1], '#memo1-' .. ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
)
"""Arguments: a new id, milliseconds for a placeholder, a space or "+" for a value. Gives a value that id, and puts a
placeholder in the place of anything else, so that no earlier lease fits."""

EXTEND: Final = Script(
    """
local left = redis.call('PTTL', KEYS[1])
if left >= 0 then
  if ARGV[1] == '0' then redis.call('PERSIST', KEYS[1])
  elseif left < tonumber(ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
end
return left
"""
)
"""Argument: milliseconds that a stamp has to live at least, or 0 for ever."""
