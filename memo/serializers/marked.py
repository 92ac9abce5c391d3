"""The serializer of one function's results, be it the store's or its own; which entries there are is not known here.

What a function's own serializer writes begins with a mark that names it. One serializer's payload may be another one's,
too: the JSON of 7 is the MessagePack of 55. So what has another mark, or none, is not read, and a payload with a mark
is read by nobody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import OptionError, SerializationError
from .base import MARK, Serializer
from .names import adapted_serializer, network_serializer, serializer_name

if TYPE_CHECKING:
    from ..keys import CallKeys

__all__ = ["MarkedSerializer", "function_serializer", "is_foreign", "refuse_foreign"]


class MarkedSerializer:
    """What another serializer writes, with a mark before it; it reads nothing else.

    Args:
        inner: the other one, whose name the mark is.

    >>> serializer = MarkedSerializer(adapted_serializer("json"))
    >>> serializer.dumps([1])
    b'\\xc1memo json\\n[1]'
    >>> serializer.loads(b"[1]")
    Traceback (most recent call last):
    memo.errors.SerializationError: JSONSerializer() cannot read a payload: it is another serializer's
    """

    __slots__ = ("_inner", "_mark")

    def __init__(self, inner: Serializer) -> None:
        self._inner = inner
        self._mark = b"%b%b\n" % (MARK, serializer_name(inner).encode("utf-8", "backslashreplace"))

    def dumps(self, value: Any, context: str = "") -> bytes:
        """Return the mark and the bytes of a value, or raise SerializationError."""
        return self._mark + self._inner.dumps(value, context)

    def loads(self, data: Any, context: str = "") -> Any:
        """Return the value that `dumps` made these bytes of, or raise SerializationError."""
        if not isinstance(data, bytes) or not data.startswith(self._mark):
            raise SerializationError(f"{self._inner!r} cannot read a payload: it is another serializer's")
        return self._inner.loads(data[len(self._mark) :], context)


def is_foreign(value: Any, serializer: Any) -> bool:
    """Return whether what was found is for some function's own serializer, and `serializer` is none.

    >>> payload = MarkedSerializer(adapted_serializer("json")).dumps([1])
    >>> is_foreign(payload, None), is_foreign(b"[1]", None), is_foreign("text", None)
    (True, False, False)
    """
    return type(value) is bytes and value.startswith(MARK) and type(serializer) is not MarkedSerializer


def refuse_foreign(value: Any, serializer: Any) -> None:
    """Raise SerializationError if `is_foreign` would say of a value that is to be kept that it is another's.

    >>> refuse_foreign(b"[1]", None)
    """
    if is_foreign(value, serializer):
        raise SerializationError(
            f"bytes that begin with {MARK!r} cannot be kept as they are, since so begins what a function's own "
            f"serializer makes: give the function serializer='msgpack', or wrap them"
        )


def function_serializer(keys: CallKeys, default: Any, network: bool = False) -> Any:
    """Return what writes and reads a function's results; None: nothing does, they are kept as they are.

    Args:
        keys: of the function; they know its own serializer, if it has one.
        default: the store's; None: it has none.
        network: others can write to the store, so that a pickle that may be anyone's is refused.

    Raises:
        OptionError: it is refused.
    """
    own = keys.serializer
    if own is None:
        if default is None:
            return None
        # One of the user's own may make anything of a value, where a store keeps that as it is: a copy, for one.
        return adapted_serializer(default, binary=False).for_function(keys.function, keys.many)
    try:
        inner = network_serializer(own) if network else adapted_serializer(own)
    except OptionError as error:
        raise OptionError(f"{keys.name}: {error}") from None
    return MarkedSerializer(inner.for_function(keys.function, keys.many))
