"""What all serializers do alike: limits, the check of what is written, one error for all; no format is known here.

What is written is read again and compared with the value, before anyone keeps it: a hit must return what the miss
returned, and a value that would come back as something else is refused. Whatever is wrong with bytes that are read, a
SerializationError says so, and nothing else does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

from ..errors import OptionError, SerializationError
from .fidelity import difference, named

__all__ = ["LARGEST", "MARK", "Serializer", "flag", "limit"]

LARGEST: Final = 2**26
"""Bytes of a payload, 64 MiB: more than a network store takes within any deadline that makes sense."""

MARK: Final = b"\xc1memo "
"""What a payload begins with that is for one function's own serializer: no JSON, MessagePack, pickle or compressed one
begins with that byte."""


def flag(name: str, value: Any) -> bool:
    """Return a flag, or raise OptionError."""
    if type(value) is not bool:
        raise OptionError(f"{name}={value!r}: allowed are True and False")
    return value


def limit(max_size: Any) -> int:
    """Return a number of bytes, or raise OptionError."""
    if type(max_size) is not int or max_size < 1:
        raise OptionError(f"max_size={max_size!r}: allowed is an int of at least 1, in bytes")
    return max_size


class Serializer(ABC):
    """What all serializers here can do: values to bytes and back, with a check and with limits.

    Several threads may use one at a time.

    Attributes:
        verify: whether each value is read again and compared before it is written.
        max_size: bytes that a payload may have.
        networked: whether its bytes may come from a store that others can write to.
    """

    verify: bool
    max_size: int
    networked: bool = True

    def dumps(self, value: Any, context: str = "") -> bytes:
        """Return the bytes of a value.

        Args:
            value: what is to be written.
            context: where it is going to be, such as its key; a signed payload can be read with the same only.

        Raises:
            SerializationError: it cannot be written, would come back as something else, or is too large.
        """
        try:
            data = self._encode(value)
            self._measure(data)
            found = difference(value, self._decode(data), self._compare()) if self.verify else None
            if found is None:
                return self._seal(data, context)
        except SerializationError:
            raise
        except Exception as error:
            raise SerializationError(
                f"{self!r} cannot keep {named(type(value))} ({type(error).__name__}); {self._advice()}"
            ) from error
        raise SerializationError(f"{self!r} cannot keep {named(type(value))}{found}; {self._advice()}")

    def loads(self, data: Any, context: str = "") -> Any:
        """Return the value that `dumps` made these bytes of.

        Args:
            data: bytes from anywhere.
            context: what `dumps` was given.

        Raises:
            SerializationError: they cannot be read, whatever they are.
        """
        try:
            opened = self._open(data, context)
            self._measure(opened)
            return self._decode(opened)
        except SerializationError:
            raise
        except Exception as error:  # RecursionError and MemoryError too
            raise SerializationError(f"{self!r} cannot read a payload ({type(error).__name__})") from error

    def for_function(self, function: Any, many: bool = False) -> Serializer:
        """Return the serializer of a function's results, which come back as its return annotation says.

        The annotation is looked at with the first payload. One that cannot be resolved or decoded counts as none, and a
        warning in the log says so.

        Args:
            function: what is decorated.
            many: what it returns are mappings, of which single values are written.
        """
        return self

    @abstractmethod
    def _encode(self, value: Any) -> bytes: ...

    @abstractmethod
    def _decode(self, data: Any) -> Any: ...

    def _compare(self) -> Callable[[Any], bytes] | None:
        """Return what writes values of unknown types to compare them; None: their classes decide what is kept."""
        return None

    def _seal(self, data: bytes, context: str) -> bytes:
        return data

    def _open(self, data: Any, context: str) -> Any:
        return data

    def _measure(self, data: Any) -> None:
        if len(data) > self.max_size:
            raise SerializationError(
                f"{self!r}: a payload of {len(data)} bytes is too large, max_size={self.max_size}; let the function "
                f"return less, or raise max_size"
            )

    def _advice(self) -> str:
        return "verify=False would keep what can be written, changed or not"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
