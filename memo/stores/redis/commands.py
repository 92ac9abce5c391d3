"""What is sent to a Redis server and what comes back, as plain tuples; this module sends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["Command", "NoConnection", "Refusal", "Reply", "Script", "WrongAnswer", "check"]

Command = tuple[Any, ...]
"""The name of a command and its arguments; a script in the place of the name, with its one key and its arguments."""

Reply = Any
"""Bytes, an int, None, a list of these, or a Refusal."""


class Refusal(Exception):
    """What a server has answered in the place of a result.

    Attributes:
        kind: the word that it begins with: WRONGTYPE, OOM, NOPERM, NOSCRIPT ... The rest may hold a key.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class NoConnection(Exception):
    """No connection could be made.

    Attributes:
        kind: the name of the error that connecting has ended with; its text may hold a password.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class WrongAnswer(Exception):
    """The peer has answered what no Redis server answers to that command: it is none, or the answer is another's."""


_NONE: Final = type(None)

# What is answered if it is no refusal; a client that somebody else has made gives bools for some bytes and ints.
_ANSWERS: Final[dict[str, tuple[type, ...]]] = {
    "GET": (bytes, _NONE),
    "GETRANGE": (bytes,),
    "MGET": (list,),
    "SET": (bytes, bool, _NONE),
    "PTTL": (int,),
    "PEXPIRE": (int,),
    "PERSIST": (int,),
    "UNLINK": (int,),
    "SCAN": (list, tuple),
    "EVALSHA": (int, bytes),
    "EVAL": (int, bytes),
}
_ANY: Final = (object,)
_TEXTS: Final = {bytes, _NONE}


def check(commands: Sequence[Command], replies: Sequence[Reply]) -> None:
    """Raise WrongAnswer if a reply cannot be one to its command.

    >>> check([("GET", b"k"), ("PTTL", b"k")], [b"value", Refusal("NOPERM")])
    >>> check([("GET", b"k")], [7])
    Traceback (most recent call last):
        ...
    memo.stores.redis.commands.WrongAnswer: to GET: int
    """
    for command, reply in zip(commands, replies, strict=True):
        name = command[0]
        if isinstance(reply, Refusal):
            continue
        fits = isinstance(reply, _ANSWERS.get(name, _ANY))
        if fits and name == "MGET":
            fits = len(reply) == len(command) - 1 and set(map(type, reply)) <= _TEXTS
        elif fits and name == "SCAN":
            fits = _page(reply)
        if not fits:
            raise WrongAnswer(f"to {name}: {type(reply).__name__}")


def _page(reply: Sequence[Any]) -> bool:
    """Return whether this is a cursor and keys."""
    if len(reply) != 2 or not isinstance(reply[1], list) or not all(isinstance(key, bytes) for key in reply[1]):
        return False
    cursor = reply[0]
    return isinstance(cursor, int) or (isinstance(cursor, bytes) and cursor.isdigit())


class Script:
    """A script for one key; sent by its digest, and in full where the server does not know it (any more)."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.digest: Final = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, key: bytes, *args: Any) -> Command:
        """Return the command that runs it."""
        return ("EVALSHA", self.digest, 1, key, *args)

    def in_full(self, command: Command) -> Command:
        """Return the command that runs it on a server that does not know it."""
        return ("EVAL", self.source, *command[2:])
