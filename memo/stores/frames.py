"""The bytes of a log file: its header and its records, made and checked; this module opens no file and knows no store.

A file is a header and then records, one after another, each written by one process that held the lock. A record is

    head     56 bytes: a marker, a check of the head, then what is in `_HEAD`
    key      the key, a pattern, or the name of a function
    meta     whose it is, its tags and its windows
    payload  the pickle
    mac      32 bytes, in a signed file only: of all of the above
    seal     5 bytes, written last: the head's check again, every bit turned, and one more

The checks begin with the file's id and the record's offset. So a copy of a record is none, neither in another file nor
elsewhere in this one: not in a value that contains bytes of its own log, either. A kill in the middle of a write leaves
a beginning of a record, without its seal. `gap` says how many bytes before a record its writer, which held the lock,
took for such a beginning: what it could not read for any other reason it does not declare.

That record may be spoilt in its turn, and what is left then looks as if nobody had written behind the beginning. So the
header ends with a note, the only bytes that are written twice: where the latest such stretch stands.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

from ..errors import StoreError

__all__ = [
    "HEAD",
    "HEADER",
    "LARGEST",
    "MAGIC",
    "NOTE",
    "PURPOSE",
    "SEAL",
    "SYNC",
    "Content",
    "Flags",
    "Head",
    "Identity",
    "Kind",
    "Payload",
    "Windows",
    "decode_meta",
    "decode_text",
    "decode_texts",
    "encode_meta",
    "encode_text",
    "encode_texts",
]

MAGIC: Final = b"\x89memolog"
VERSION: Final = 1

_HEADER: Final = struct.Struct("<8sHH16sI32s")  # magic, version, whether it is signed, id, check, mac
_NOTE: Final = struct.Struct("<QQI")  # where the latest torn stretch begins and ends, check
NOTE: Final = _HEADER.size  # where it stands
HEADER: Final = NOTE + _NOTE.size

SYNC: Final = b"\xa7mR\x1e"
"""What begins a record, and is looked for where one cannot be read."""

# marker, check of the rest, kind, flags, nothing, gap, lengths of key, meta and payload, checks of key with meta and of
# the payload, when it was made, when its ttl is over
_HEAD: Final = struct.Struct("<4sIBBHQIIIIIdd")
HEAD: Final = _HEAD.size

_READ: Final = struct.Struct("<4sIxB2x8xIII4xI")  # of the same, what a read of a value needs

Content = tuple[int, bytes | memoryview]
"""What a record of a value holds: its flags and its payload."""

Payload = bytes | memoryview | tuple[bytes, ...]
"""What is to be written: a pickle, in one piece or in several, so that a large one need not be copied together."""

_SMALL: Final = 1 << 14
"""Bytes up to which a copy is cheaper than a view."""

_OFFSET: Final = struct.Struct("<Q")
_SEAL: Final = struct.Struct("<I")

# No byte of the marker is this one: a record that lacks a part of its seal is not made whole by the one behind it.
_LAST: Final = b"\xc3"
SEAL: Final = _SEAL.size + len(_LAST)
MAC: Final = 32
_WINDOWS: Final = struct.Struct("<ddd")
_LENGTH: Final = struct.Struct("<I")

LARGEST: Final = 2**31
"""Bytes that a payload may have: lengths are written in 32 bits, and one system call writes no more."""

PURPOSE: Final = b"memo file store 1"
"""What the keys are for that sign files."""


class Kind(IntEnum):
    """What a record says."""

    VALUE = 1
    DELETE = 2  # of one key
    PATTERN = 3  # of all keys that match
    TAGS = 4  # of all that bears one of the tags
    OWNER = 5  # of all of one function
    CLEAR = 6
    VOID = 7  # of no value: what is at the key stays, but no load that began before fills it


class Flags:
    """What else is known of a record: plain ints, since to combine an enum's takes longer than to pack a record."""

    NUMBER = 1  # the payload is the pickle of an int or a float, so that to load it runs nobody's code
    RICH = 2  # the meta has windows and tags


class Head(NamedTuple):
    """The fixed part of a record."""

    sync: bytes
    check: int
    kind: int
    flags: int
    nothing: int
    gap: int
    key: int
    meta: int
    payload: int
    body_check: int
    payload_check: int
    made: float
    until: float


class Windows(NamedTuple):
    """The times of an entry besides the end of its ttl, by the wall clock."""

    due: float
    stale_until: float
    kept_until: float


def encode_text(text: str) -> bytes:
    """Return any text as bytes, lone surrogates too."""
    return text.encode() if text.isascii() else text.encode("utf-8", "surrogatepass")  # the first is much faster


def decode_text(data: bytes) -> str:
    """Return the text that `encode_text` has encoded."""
    return data.decode("utf-8", "surrogatepass")


def encode_texts(texts: Sequence[str]) -> bytes:
    """Return several texts as bytes."""
    pieces = []
    for text in texts:
        data = encode_text(text)
        pieces += [_LENGTH.pack(len(data)), data]
    return b"".join(pieces)


def decode_texts(data: bytes) -> tuple[str, ...]:
    """Return the texts that `encode_texts` has encoded."""
    texts, at = [], 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4 + length
        texts.append(decode_text(data[at - length : at]))
    return tuple(texts)


def encode_meta(owner: str, tags: tuple[str, ...], windows: Windows | None) -> tuple[int, bytes]:
    """Return the flags and the bytes that say whose an entry is, its tags and its windows; None: it has none."""
    if not tags and windows is None:
        return 0, encode_text(owner)
    times = b"" if windows is None else _WINDOWS.pack(*windows)
    return Flags.RICH, _LENGTH.pack(len(times)) + times + encode_texts((owner, *tags))


def decode_meta(meta: bytes) -> tuple[str, tuple[str, ...], Windows | None]:
    """Return owner, tags and windows of a record with the flag RICH."""
    (length,) = _LENGTH.unpack_from(meta)
    windows = Windows(*_WINDOWS.unpack_from(meta, 4)) if length else None
    owner, *tags = decode_texts(meta[4 + length :])
    return owner, tuple(tags), windows


class Identity:
    """One log file's identity: what its records are made and checked with.

    Args:
        file_id: 16 bytes that no other file has.
        keys: of `signing_keys` with PURPOSE; none: the file is not signed.
    """

    __slots__ = ("_macs", "_seed", "file_id", "keys", "overhead")

    def __init__(self, file_id: bytes, keys: tuple[bytes, ...]) -> None:
        self.file_id = file_id
        self.keys = keys
        self.overhead = HEAD + SEAL + (MAC if keys else 0)  # bytes of a record beside key, meta and payload
        self._seed = crc32(file_id)
        self._macs = [hmac.new(key, file_id, hashlib.sha256) for key in keys]  # each record's begins with a copy

    @classmethod
    def new(cls, keys: tuple[bytes, ...]) -> Identity:
        """Return that of a new file."""
        return cls(os.urandom(16), keys)

    # -- the header --------------------------------------------------------------------------------------------------

    def header(self) -> bytes:
        """Return the file's first bytes."""
        start = _HEADER.pack(MAGIC, VERSION, bool(self.keys), self.file_id, 0, b"")[:28]
        mac = hmac.digest(self.keys[0], start, hashlib.sha256) if self.keys else bytes(32)
        return start + _SEAL.pack(crc32(start)) + mac + bytes(_NOTE.size)

    def note(self, start: int, end: int) -> bytes:
        """Return what the header says when the latest torn stretch stands from `start` to `end`."""
        places = _NOTE.pack(start, end, 0)[:16]
        return places + _SEAL.pack(crc32(places, self._seed))

    def noted(self, data: bytes) -> tuple[int, int]:
        """Return where the latest torn stretch stands, by the header; nowhere if that does not say."""
        if len(data) < HEADER:
            return 0, 0
        start, end, check = _NOTE.unpack_from(data, NOTE)
        return (start, end) if check == crc32(data[NOTE : NOTE + 16], self._seed) else (0, 0)

    @classmethod
    def of(cls, data: bytes, keys: tuple[bytes, ...] | None, path: str) -> Identity:
        """Return that of a file that begins with `data`.

        Args:
            data: the first bytes.
            keys: None: whoever asks unpickles nothing, so that nothing has to be verified.
            path: of the file, for the error.

        Raises:
            StoreError: it is not memo's, of another format, or signed otherwise.
        """
        refused = f"{path!r} is refused, and left as it is"
        if len(data) < HEADER or not data.startswith(MAGIC):
            raise StoreError(f"{refused}: it was not written by PickleFileStore: give another path")
        _, version, signed, file_id, check, mac = _HEADER.unpack_from(data)
        if version != VERSION:
            raise StoreError(f"{refused}: its format is {version}, and this memo knows {VERSION}: upgrade memo-cache")
        if check != crc32(data[:28]) or signed > 1:
            raise StoreError(f"{refused}: its header is damaged: remove it, and a new one is made")
        if keys is None:
            return cls(file_id, (b"nobody's",) if signed else ())
        if signed and not keys:
            raise StoreError(f"{refused}: it is signed: give the secret= that it was made with")
        if keys and not signed:
            raise StoreError(f"{refused}: it is not signed, and secret= was given: remove it, or give another path")
        if signed and not any(hmac.compare_digest(mac, hmac.digest(key, data[:28], hashlib.sha256)) for key in keys):
            raise StoreError(f"{refused}: it is signed with another secret: give that one too, as secret=[new, old]")
        return cls(file_id, keys)

    @staticmethod
    def begun(data: bytes) -> bool:
        """Return whether a file holds the beginning of a header and nothing else: its maker was killed just then."""
        return 0 < len(data) < HEADER and data[: len(MAGIC)] == MAGIC[: len(data)]

    # -- records -----------------------------------------------------------------------------------------------------

    def _start(self, offset: int) -> int:
        return crc32(_OFFSET.pack(offset), self._seed)

    def record(
        self,
        offset: int,
        gap: int,
        kind: int,
        flags: int,
        key: bytes,
        meta: bytes,
        payload: Payload,
        made: float,
        until: float,
    ) -> tuple[bytes | memoryview, ...]:
        """Return the pieces of a record that is going to stand at `offset`."""
        pieces = payload if isinstance(payload, tuple) else (payload,)
        length = payload_check = 0
        for piece in pieces:
            length += len(piece)
            payload_check = crc32(piece, payload_check)
        rest = _HEAD.pack(
            SYNC, 0, kind, flags, 0, gap, len(key), len(meta), length,
            crc32(meta, crc32(key)), payload_check, made, until,
        )[8:]  # fmt: skip
        check = crc32(rest, self._start(offset))
        seal = self.seal(check)
        start = SYNC + _SEAL.pack(check) + rest + key + meta
        if not self.keys:
            return (start, *pieces, seal)
        mac = self._macs[0].copy()
        mac.update(_OFFSET.pack(offset) + start)
        for piece in pieces:
            mac.update(piece)
        return (start, *pieces, mac.digest(), seal)

    def _verified(self, data: bytes | memoryview, end: int, offset: int) -> bool:
        """Return whether what stands at `end` of a record is the mac, by any of the keys, of what stands before it."""
        for begun in self._macs:
            mac = begun.copy()
            mac.update(_OFFSET.pack(offset))
            mac.update(memoryview(data)[:end])
            if hmac.compare_digest(data[end : end + MAC], mac.digest()):
                return True
        return False

    def head(self, data: bytes, at: int, offset: int) -> Head | None:
        """Return the head that `data` has from `at` on, if it is one that was written at `offset` of this file."""
        head = _HEAD.unpack_from(data, at)
        if head[0] != SYNC or crc32(data[at + 8 : at + HEAD], self._start(offset)) != head[1]:
            return None
        return Head._make(head)

    def length(self, head: Head) -> int:
        """Return how many bytes the record has."""
        return self.overhead + head.key + head.meta + head.payload

    @staticmethod
    def seal(check: int) -> bytes:
        """Return the last bytes of a record with this check of its head."""
        return _SEAL.pack(check ^ 0xFFFFFFFF) + _LAST

    @staticmethod
    def sealed(head: Head, seal: bytes) -> bool:
        """Return whether these last bytes of a record say that all of it was written."""
        return seal == Identity.seal(head.check)

    @staticmethod
    def body(head: Head, data: bytes, at: int) -> tuple[bytes, bytes] | None:
        """Return key and meta, which follow the head at `at`, if they are as they were written."""
        start = at + HEAD
        body = data[start : start + head.key + head.meta]
        if crc32(body) != head.body_check:
            return None
        return body[: head.key], body[head.key :]

    def content(self, data: bytes | memoryview, offset: int, key: bytes, checked: bool) -> Content | None:
        """Return what a whole record of a value holds, if it is that of `key` and as it was written at `offset`.

        Args:
            data: the record.
            offset: where it stands.
            key: whose it has to be.
            checked: do not look at the payload's check again, if the file is not signed.
        """
        if len(data) < HEAD:
            return None
        # Written out, and not made of what is above: this is the larger part of a hit.
        sync, check, flags, key_length, meta, length, payload_check = _READ.unpack_from(data)
        start = HEAD + key_length + meta
        end = start + length
        if (
            sync != SYNC
            or crc32(data[8:HEAD], crc32(_OFFSET.pack(offset), self._seed)) != check
            or data[HEAD : HEAD + key_length] != key
            or end + self.overhead - HEAD != len(data)
        ):
            return None
        payload = data[start:end] if length < _SMALL else memoryview(data)[start:end]
        if self._macs:
            return (flags, payload) if self._verified(data, end, offset) else None
        return (flags, payload) if checked or crc32(payload) == payload_check else None

    def intact(self, data: bytes, offset: int) -> bool:
        """Return whether a whole record is as somebody has written it, with whatever secret."""
        head = self.head(data, 0, offset) if len(data) >= HEAD else None
        if head is None or self.length(head) != len(data):
            return False
        start = HEAD + head.key + head.meta
        return crc32(memoryview(data)[start : start + head.payload]) == head.payload_check
