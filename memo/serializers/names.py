"""Serializers by name, compressed ones, and objects of the user's own; no format but gzip and zlib is known here."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, Final

from ..errors import OptionError, SerializationError
from ..keys import describe
from .base import LARGEST, MARK, Serializer, limit
from .pickled import PickleSerializer
from .typed import JSONSerializer, MessagePackSerializer

__all__ = [
    "NAMES",
    "CompressedSerializer",
    "adapted_serializer",
    "checked_serializer",
    "network_serializer",
    "serializer_name",
]

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
        if not isinstance(method, str) or method not in _WINDOW_BITS:
            raise OptionError(f"method={method!r}: allowed are {', '.join(map(repr, _WINDOW_BITS))}")
        self._inner = adapted_serializer(inner)
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

    def __init__(self, inner: Any, binary: bool) -> None:
        self._inner = inner
        self._binary = binary
        self.verify = bool(getattr(inner, "verify", True))
        loads = inner.loads
        while isinstance(loads, partial):
            loads = loads.func
        origin = getattr(loads, "__module__", None) or ""
        self.networked = origin.partition(".")[0] not in {"pickle", "_pickle", "dill", "jsonpickle", "marshal"}

    def _encode(self, value: Any) -> Any:
        data = self._inner.dumps(value)
        if not self._binary:
            return data
        return data.encode() if isinstance(data, str) else bytes(memoryview(data))

    def _decode(self, data: Any) -> Any:
        if not self._binary:
            return self._inner.loads(data)
        plain = bytes(data)
        if plain.startswith(MARK):  # it might be read as something, by whoever reads anything
            raise SerializationError(f"{self!r} cannot read a payload: it is a function's own serializer's")
        return self._inner.loads(plain)

    def _measure(self, data: Any) -> None:
        if self._binary:
            super()._measure(data)

    def __repr__(self) -> str:
        return getattr(self._inner, "__name__", type(self._inner).__name__)


_BY_NAME: Final[dict[str, type[Serializer]]] = {
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
    adapted = adapted_serializer(serializer)
    if not adapted.networked:
        raise OptionError(
            f"serializer={serializer!r}: whoever can write to the store could run code here: allowed are "
            f"PickleSerializer(secret=...), which reads what is signed only, and PickleSerializer(trusted=True)"
        )
    return adapted


def adapted_serializer(serializer: Any, binary: bool = True) -> Serializer:
    """Return a serializer with all that those here can do, made of a name or an object.

    Args:
        serializer: the name or the object.
        binary: an object of the user's makes bytes, or text; False: whatever it makes is taken as it is.

    Raises:
        OptionError: it is none.
    """
    checked = checked_serializer(serializer)
    return checked if isinstance(checked, Serializer) else _Adapter(checked, binary)


def serializer_name(serializer: Serializer) -> str:
    """Return what tells a serializer from others, in any process.

    >>> serializer_name(adapted_serializer("json+gzip"))
    'json+gzip'
    """
    if isinstance(serializer, _Adapter):
        inner = serializer._inner
        return f"module {inner.__name__}" if isinstance(inner, ModuleType) else describe(inner)
    if type(serializer) is CompressedSerializer:
        return f"{serializer_name(serializer._inner)}+{serializer._method}"
    # Not of a subclass, which may write something else.
    names = [name for name, kind in _BY_NAME.items() if type(serializer) is kind]
    return names[0] if names else describe(type(serializer))
