"""Signatures of payloads that are unpickled later: HMAC-SHA-256 and nothing else; this module unpickles nothing.

What is signed says neither by which algorithm nor with which of the secrets: that is for who reads it to know, so that
there is nothing to downgrade.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

from ..errors import OptionError

__all__ = ["Signer", "signing_keys"]

SHORTEST: Final = 16
"""Bytes that a secret has at least."""

_MARK: Final = b"\x01"  # what a signed payload begins with: no pickle does
_MAC: Final = hashlib.sha256().digest_size


def signing_keys(secret: Any, purpose: bytes) -> tuple[bytes, ...]:
    """Return what a secret, or a list of them, signs and verifies with; the first one signs.

    Args:
        secret: at least 16 bytes or text, or a list of these with the newest first; None: there are no keys.
        purpose: what this is for, so that the same secret may sign other things too.

    Raises:
        OptionError: the secret is none. What was given is not shown.

    >>> len(signing_keys(["a new secret of ours", "the one before it"], b"doctest"))
    2
    """
    if secret is None:
        return ()
    secrets = [secret] if isinstance(secret, (bytes, str)) else secret
    if not isinstance(secrets, (list, tuple)) or not secrets:
        raise OptionError("secret= is not allowed: allowed are bytes, text, and a list of these with the newest first")
    keys = []
    for each in secrets:
        if not isinstance(each, (bytes, str)):
            raise OptionError("secret= has an entry that is neither bytes nor text")
        data = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
        if len(data) < SHORTEST:
            raise OptionError(f"secret= is too short: allowed are at least {SHORTEST} bytes: secrets.token_bytes(32)")
        keys.append(hmac.digest(data, purpose, hashlib.sha256))
    return tuple(keys)


class Signer:
    """What signs payloads with the first of some secrets, and verifies them with any.

    Args:
        secret: as for `signing_keys`; None: nothing is signed.
        purpose: what this is for.

    Raises:
        OptionError: the secret is none. What was given is not shown.

    >>> signer = Signer("correct horse battery staple", b"doctest")
    >>> bytes(signer.verified(signer.signed(b"payload", "key"), "key"))
    b'payload'
    >>> signer.verified(signer.signed(b"payload", "key"), "another key") is None
    True
    """

    __slots__ = ("_keys",)

    def __init__(self, secret: Any, purpose: bytes) -> None:
        self._keys = signing_keys(secret, purpose)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def signed(self, data: bytes, context: str) -> bytes:
        """Return a payload with its signature before it."""
        return b"".join((_MARK, _mac(self._keys[0], context, data), data)) if self._keys else data

    def verified(self, data: Any, context: str) -> Any:
        """Return the payload that was signed in this context; None: it was not, or with another secret."""
        if not self._keys:
            return data
        given = memoryview(data)
        mac, payload = given[1 : 1 + _MAC], given[1 + _MAC :]
        if bytes(given[:1]) == _MARK and any(
            hmac.compare_digest(mac, _mac(key, context, payload)) for key in self._keys
        ):
            return payload
        return None


def _mac(key: bytes, context: str, data: Any) -> bytes:
    """Return the MAC of a payload in its context, whose length tells where the one ends and the other begins."""
    place = context.encode("utf-8", "surrogatepass")
    return hmac.digest(key, b"".join((len(place).to_bytes(8, "big"), place, data)), hashlib.sha256)
