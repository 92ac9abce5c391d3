"""Commands to the bytes that are sent, and the bytes that come back to answers; it never sees a connection's time.

Where hiredis is installed it does both, without what the client library does around it for each command. Else commands
are packed here, and answers are read by the client library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from .commands import Command, WrongAnswer

hiredis: Any
try:
    import hiredis
except ImportError:
    hiredis = None

__all__ = ["SIZE", "Answers", "answers_of", "pack"]

SIZE: Final = 65_536
"""Bytes that are read at a time."""

_MORE: Final = object()
"""What hiredis says where an answer has not come to its end yet."""

_PUSH: Final = getattr(hiredis, "PushNotification", None)
"""The class of what a server says without being asked; an older hiredis does not know any."""


def _pack_command(command: Command) -> bytes:
    pieces = [b"*%d\r\n" % len(command)]
    for each in command:
        data = each if type(each) is bytes else str(each).encode()
        pieces.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(pieces)


_pack: Final[Callable[[Command], bytes]] = getattr(hiredis, "pack_command", _pack_command)


def pack(commands: Sequence[Command]) -> bytes:
    """Return what is sent of commands that go out together.

    >>> pack([("GET", b"k"), ("PTTL", b"k")])
    b'*2\\r\\n$3\\r\\nGET\\r\\n$1\\r\\nk\\r\\n*2\\r\\n$4\\r\\nPTTL\\r\\n$1\\r\\nk\\r\\n'
    """
    return b"".join(map(_pack, commands))


class Answers:
    """What comes back on one connection.

    Args:
        refuse: makes an exception of what a server answers in the place of a result.
    """

    __slots__ = ("_next", "feed")

    def __init__(self, refuse: Callable[[str], Exception]) -> None:
        reader = hiredis.Reader(protocolError=WrongAnswer, replyError=refuse, notEnoughData=_MORE)
        self._next = reader.gets
        self.feed = reader.feed
        """Takes bytes that have come."""

    def take(self, replies: list[Any], count: int) -> bool:
        """Append the answers that have come, errors among them, and return whether these are all.

        Raises:
            WrongAnswer: there are more than were asked for, or these are none.
        """
        while (reply := self._next()) is not _MORE:
            if type(reply) is not _PUSH:
                replies.append(reply)
        if len(replies) > count:
            raise WrongAnswer(f"{len(replies)} answers to {count} commands")
        return len(replies) == count


def answers_of(connection: Any) -> Answers | None:
    """Return what reads the answers on a connection that was just made; None: the client library does."""
    parser = connection._parser
    return Answers(parser.parse_error) if type(parser).__name__.endswith("HiredisParser") else None
