"""Pickle, which reads nothing unsigned once there is a secret; what a signature is made of is not known here."""

from __future__ import annotations

import pickle
from typing import Any

from ..errors import OptionError, SerializationError
from .base import LARGEST, Serializer, flag, limit
from .signing import Signer

__all__ = ["PickleSerializer"]


class PickleSerializer(Serializer):
    """Pickle: almost any type, and whoever can write to the store can run code here, unless payloads are signed.

    With `secret` a payload is signed with HMAC-SHA-256, together with its context, and only what is signed is
    unpickled. An older payload of the same key stays valid: a signature does not say when.

    Args:
        secret: at least 16 bytes or text, or a list of these with the newest first: that one signs, all are accepted.
        trusted: nobody else can write to the store, so that payloads need no signature there. Not beside a secret.
        verify: read each value again and compare, before it is kept; False: it is kept as it is written.
        max_size: bytes that a payload may have.

    Raises:
        OptionError: an argument is not allowed.

    >>> serializer = PickleSerializer(secret="correct horse battery staple")
    >>> payload = serializer.dumps({1, 2}, context="app:a")
    >>> serializer.loads(payload, context="app:a")
    {1, 2}
    >>> serializer.loads(payload, context="app:b")
    Traceback (most recent call last):
    memo.errors.SerializationError: PickleSerializer(signed) cannot read a payload: it is not signed with the secret
    """

    def __init__(self, secret: Any = None, trusted: bool = False, verify: bool = True, max_size: int = LARGEST) -> None:
        self._signer = Signer(secret, b"memo pickle serializer 1")
        if flag("trusted", trusted) and self._signer:
            raise OptionError("trusted=True beside secret=: allowed is one of them; what is not signed is never read")
        self.verify = flag("verify", verify)
        self.max_size = limit(max_size)
        self.networked = trusted or bool(self._signer)

    def _encode(self, value: Any) -> bytes:
        return pickle.dumps(value, protocol=5)

    def _decode(self, data: Any) -> Any:
        return pickle.loads(data)  # noqa: S301 - what may be read is decided in `_open`

    def _seal(self, data: bytes, context: str) -> bytes:
        return self._signer.signed(data, context)

    def _open(self, data: Any, context: str) -> Any:
        opened = self._signer.verified(data, context)
        if opened is None:
            raise SerializationError(f"{self!r} cannot read a payload: it is not signed with the secret")
        return opened

    def __repr__(self) -> str:
        return f"PickleSerializer({'signed' if self._signer else 'trusted' if self.networked else ''})"
