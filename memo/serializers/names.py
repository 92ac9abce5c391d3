"""Serializers by name, compressed ones, and objects of the user's own; no format but gzip and zlib is known here."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any, Final

from ..errors import OptionError, SerializationError
from .base import LARGEST, Serializer, limit
from .pickled import PickleSerializer
from .typed import JSONSerializer, MessagePackSerializer

__all__ = ["NAMES", "CompressedSerializer", "checked_serializer", "network_serializer"]

_WINDOW_BITS: Final = {"gzip": 31, "zlib": 15}  # of zlib's own: 16 more mean the header and trailer of gzip


class CompressedSerializer(Serializer):
    """What another serializer writes, compressed; a signature is of the compressed bytes, and is checked first.

    Args:
        inner: a serializer or its name.
        method: "gzip" or "zlib".
        max_size: bytes that a payload may have before it is compressed, and after; reading stops there.

    Raises:
        OptionError: an argument is not allowed.

    >>> serializer = CompressedSerializer("json", "gzip")
    >>> serializer.loads(serializer.dumps(["again"] * 100)) == ["again"] * 100
    True
    """

    def __init__(self, inner: Any, method: str = "gzip", max_size: int = LARGEST) -> None:
        if method not in _WINDOW_BITS:
            raise OptionError(f"method={method!r}: allowed are {', '.join(map(repr, _WINDOW_BITS))}")
        self._inner = _adapted(checked_serializer(inner))
        self._method = method
        self.verify = self._inner.verify
        self.max_size = min(limit(max_size), self._inner.max_size)
        self.networked = self._inner.networked

    def for_function(self, function: Any, many: bool = False) -> Serializer:
        """Return one that reads what the return annotation of a function says, beside all that this one does."""
        bound = copy.copy(self)
        bound._inner = self._inner.for_function(function, many)
        return bound

    def _encode(self, value: Any) -> bytes:
        data = self._inner._encode(value)
        self._measure(data)
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[self._method])
        return compressor.compress(data) + compressor.flush()

    def _decode(self, data: Any) -> Any:
        decompressor = zlib.decompressobj(wbits=_WINDOW_BITS[self._method])
        plain = decompressor.decompress(data, self.max_size + 1)  # 0 would mean no limit
        self._measure(plain)
        if not decompressor.eof or decompressor.unused_data:
            raise SerializationError(f"{self!r} cannot read a payload: it is cut off, or has something behind it")
        return self._inner._decode(plain)

    def _compare(self) -> Callable[[Any], bytes] | None:
        return self._inner._compare()

    def _seal(self, data: bytes, context: str) -> bytes:
        return self._inner._seal(data, context)

    def _open(self, data: Any, context: str) -> Any:
        return self._inner._open(data, context)

    def _advice(self) -> str:
        return self._inner._advice()

    def __repr__(self) -> str:
        return f"CompressedSerializer({self._inner!r}, {self._method!r})"


class _Adapter(Serializer):
    """An object of the user's with `dumps` and `loads`, such as the json module."""

    max_size = LARGEST

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.verify = bool(getattr(inner, "verify", True))
        origin = getattr(inner.loads, "__module__", None) or ""
        self.networked = origin.partition(".")[0] not in {"pickle", "_pickle", "dill", "marshal"}

    def _encode(self, value: Any) -> bytes:
        data = self._inner.dumps(value)
        return data.encode() if isinstance(data, str) else bytes(memoryview(data))

    def _decode(self, data: Any) -> Any:
        return self._inner.loads(bytes(data))

    def __repr__(self) -> str:
        return getattr(self._inner, "__name__", type(self._inner).__name__)


_BY_NAME: Final[dict[str, Callable[[], Serializer]]] = {
    "json": JSONSerializer,
    "msgpack": MessagePackSerializer,
    "pickle": PickleSerializer,
}

NAMES: Final = (*_BY_NAME, *(f"{name}+{method}" for name in _BY_NAME for method in _WINDOW_BITS))
"""What a serializer may be called where one is asked for."""


def checked_serializer(serializer: Any) -> Any:
    """Return a serializer by name, or the object given if it has `dumps` and `loads`.

    Raises:
        OptionError: it is none.

    >>> checked_serializer("json+gzip")
    CompressedSerializer(JSONSerializer(), 'gzip')
    """
    if isinstance(serializer, str) and serializer in NAMES:
        name, _, method = serializer.partition("+")
        return CompressedSerializer(_BY_NAME[name](), method) if method else _BY_NAME[name]()
    if not (callable(getattr(serializer, "dumps", None)) and callable(getattr(serializer, "loads", None))):
        raise OptionError(
            f"serializer={serializer!r}: allowed are {', '.join(map(repr, NAMES))}, and an object with dumps and loads"
        )
    if isinstance(serializer, type) and issubclass(serializer, Serializer):
        raise OptionError(f"serializer={serializer.__name__}: allowed is an object of it: {serializer.__name__}()")
    return serializer


def network_serializer(serializer: Any) -> Serializer:
    """Return the serializer of a store whose bytes others can write: any but a pickle that may be anyone's.

    Raises:
        OptionError: it is none, or would unpickle whatever is there.

    >>> network_serializer("pickle")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    memo.errors.OptionError: serializer='pickle': whoever can write to the store could run code here: ...
    """
    adapted = _adapted(checked_serializer(serializer))
    if not adapted.networked:
        raise OptionError(
            f"serializer={serializer!r}: whoever can write to the store could run code here: allowed are "
            f"PickleSerializer(secret=...), which reads what is signed only, and PickleSerializer(trusted=True)"
        )
    return adapted


def _adapted(serializer: Any) -> Serializer:
    return serializer if isinstance(serializer, Serializer) else _Adapter(serializer)
