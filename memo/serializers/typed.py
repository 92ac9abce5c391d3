"""JSON and MessagePack, read back as a function's return annotation says; this module resolves no annotation itself."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from ..keys import describe
from .annotations import decoder_for, encode_hook, resolve_return_type, return_annotation
from .base import LARGEST, Serializer, flag, limit

__all__ = ["JSONSerializer", "MessagePackSerializer"]

logger = logging.getLogger("memo")


class _TypedSerializer(Serializer):
    """What JSON and MessagePack have in common: msgspec, and the return annotation."""

    _format: Any  # msgspec.json or msgspec.msgpack

    def __init__(self, verify: bool = True, max_size: int = LARGEST) -> None:
        self.verify = flag("verify", verify)
        self.max_size = limit(max_size)
        self._write: Callable[[Any], bytes] = self._format.Encoder(enc_hook=encode_hook).encode
        self._plain: Callable[[Any], Any] = self._format.Decoder().decode
        self._function: tuple[Any, bool] | None = None
        self._typed: Callable[[Any], Any] | None = None

    def for_function(self, function: Any, many: bool = False) -> Serializer:
        """Return one that reads what the return annotation of a function says, beside all that this one does."""
        bound = copy.copy(self)
        bound._function, bound._typed = (function, many), None
        return bound

    def loads(self, data: Any, context: str = "") -> Any:
        """Do what `Serializer.loads` does, in fewer steps where nothing is wrong."""
        if self._typed is not None and type(data) is bytes and len(data) <= self.max_size:
            try:
                return self._typed(data)
            except Exception:  # noqa: BLE001, S110 - the longer way says what it is
                pass
        return super().loads(data, context)

    def _encode(self, value: Any) -> bytes:
        return self._write(value)

    def _decode(self, data: Any) -> Any:
        return (self._typed or self._bind())(data)

    def _bind(self) -> Callable[[Any], Any]:
        """Return what decodes, by the function's annotation; two threads may both do so, and get the same."""
        if self._function is None:
            self._typed = self._plain
            return self._plain
        function, many = self._function
        annotation: Any = "of its return"
        try:
            annotation = return_annotation(function)
            annotation = resolve_return_type(function, many)
            decode = decoder_for(annotation, self._format) or self._plain
        except Exception as error:  # noqa: BLE001 - to resolve an annotation runs what stands in it
            decode = self._plain
            logger.warning(
                "%s: its return annotation %.200r counts as none, since it cannot be decoded (%s: %.200s)",
                describe(function),
                annotation,
                type(error).__name__,
                error,
            )
        self._typed = decode
        return decode

    def _compare(self) -> Callable[[Any], bytes] | None:
        return self._write

    def _advice(self) -> str:
        return (
            "annotate what the function returns, or let it return plain values; PickleSerializer keeps more types; "
            "verify=False would keep what can be written, changed or not"
        )


class JSONSerializer(_TypedSerializer):
    """Plain JSON, which any program reads.

    Args:
        verify: read each value again and compare, before it is kept; False: it is kept as it is written.
        max_size: bytes that a payload may have.

    Raises:
        OptionError: an argument is not allowed.

    >>> JSONSerializer().dumps({"id": 7, "tags": ["a", "b"]})
    b'{"id":7,"tags":["a","b"]}'
    >>> JSONSerializer().loads(b'{"id": 7}')
    {'id': 7}
    """

    _format = msgspec.json


class MessagePackSerializer(_TypedSerializer):
    """MessagePack: smaller than JSON, and bytes, NaN and dicts with keys of any kind are kept as they are.

    Args:
        verify: read each value again and compare, before it is kept; False: it is kept as it is written.
        max_size: bytes that a payload may have.

    Raises:
        OptionError: an argument is not allowed.

    >>> MessagePackSerializer().loads(MessagePackSerializer().dumps([1, b"x"]))
    [1, b'x']
    """

    _format = msgspec.msgpack
