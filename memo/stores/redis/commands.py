"""What is sent to a Redis server and what comes back, as plain tuples; this module sends nothing."""

from __future__ import annotations

import hashlib
from typing import Any, Final

__all__ = ["Command", "Refusal", "Reply", "Script"]

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
