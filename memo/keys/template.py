"""Keys written by hand, ``"user:{user_id}"``: parsed and checked once, then rendered; it never evaluates anything.

The rendered text is the identity: 7 and "7" render alike on purpose. What must never happen is that two *different*
lists of texts render alike, or that a value says more than its place allows. So a value is percent-escaped until only
ASCII letters, digits and ``_ . - ~`` are left as they are, and of these last four only those that the template's own
text does not use; and each field but the last is followed by a character that no value can hold. A value therefore
cannot run into its neighbour, match anything in a pattern, nor choose a hash slot.
"""

from __future__ import annotations

import datetime as dt
import decimal
import difflib
import enum
import operator
import pathlib
import re
import string
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memo.errors import OptionError, UnkeyableError
from memo.keys.encode import encode

__all__ = ["Template"]

# A field is a parameter, then attributes and constant keys: user, user.id, row[name], rows[0].
_FIELD = re.compile(r"([^.\[\]]*)((?:\.[^.\[\]]+|\[[^\[\]]+\])*)")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")

# What a default repr and a mock print is an address in memory, which another object may have tomorrow.
_ADDRESS = re.compile(r"\bat 0x[0-9A-Fa-f]+|\bid='\d+'")

# Text for None: escapes have two hexadecimal digits, so no string renders like this.
_NONE = "%None"

_Step = Callable[[Any], Any]


class Template:
    """A key template over the parameters of one function.

    Args:
        text: literal text and fields. A field names a parameter, with attributes (``{user.id}``), constant keys
            (``{row[id]}``) and a format spec (``{price:.2f}``) if wanted. ``{{`` and ``}}`` stand for braces.
        parameters: the names that fields may start with.
        function: the qualified name of the function, for messages.

    Raises:
        OptionError: the template is not one, or two of its fields could run together.

    >>> Template("user:{user_id}", ["user_id"], "app.get_user").render({"user_id": "a:b"})
    'user:a%3Ab'
    """

    __slots__ = ("_escape", "_head", "_parts", "fields", "function", "text")

    fields: tuple[str, ...]
    """The parameters that the key depends on, in order of appearance."""

    def __init__(self, text: str, parameters: Iterable[str], function: str) -> None:
        self.text = text
        self.function = function
        literals, found = _parse(text, function)
        allowed = list(parameters)
        self.fields = tuple(dict.fromkeys(_root(field, allowed, text, function) for field, _ in found))
        for place, after in enumerate(literals[1:-1]):
            # Letters, digits and % may stand in any value, so the end of this one would not show.
            if not after or (after[0].isascii() and (after[0].isalnum() or after[0] == "%")):
                raise _wrong(
                    text,
                    function,
                    f"its values could run together: put a separator such as ':' between {{{found[place][0]}}} and "
                    f"{{{found[place + 1][0]}}}",
                )
        self._escape = _escaper("".join(literals))
        self._head = literals[0]
        self._parts = [
            (_root(field, allowed, text, function), _steps(field), spec, field, after)
            for (field, spec), after in zip(found, literals[1:], strict=True)
        ]

    def render(self, values: Mapping[str, object]) -> str:
        """Return the key for these arguments.

        Args:
            values: the value of each parameter in ``fields``; others are not looked at.

        Raises:
            UnkeyableError: a value has no text that identifies it; the message names the field. What attributes, keys,
                ``__str__`` and ``__format__`` raise is not wrapped.
        """
        text = self._head
        for name, steps, spec, field, after in self._parts:
            value: Any = values[name]
            for step in steps:
                value = step(value)
            kind = type(value)
            if value is None:
                text += _NONE + after
                continue
            if spec or (kind is not str and kind is not int):
                piece = _text(value, spec, field)
            else:
                piece = value if kind is str else encode(value)
            if not (piece.isascii() and piece.isalnum()):
                piece = self._escape(piece)
            text += piece + after
        return text

    def __repr__(self) -> str:
        return f"Template({self.text!r}, {list(self.fields)!r}, {self.function!r})"


def _wrong(text: object, function: str, why: str) -> OptionError:
    return OptionError(f"{function}: key={text!r}: {why}")


def _parse(text: str, function: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the literals and, between each two of them, the fields with their format specs."""
    if not isinstance(text, str):
        raise OptionError(f"{function}: key={text!r}: a template is a str, not {type(text).__name__}")
    if not text:
        raise _wrong(text, function, "a template is not empty; one key for the whole function can be any text")
    literals, found = [""], []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise _wrong(text, function, f"{error}; a brace that is meant as text is written twice") from None
    for literal, field, spec, conversion in pieces:
        literals[-1] += literal
        if field is None:
            continue
        if conversion:
            raise _wrong(
                text,
                function,
                f"{{{field}!{conversion}}}: conversions are not allowed, memo chooses a text that is safe",
            )
        if "{" in (spec or ""):
            raise _wrong(text, function, f"{{{field}:{spec}}}: a format spec is constant, without fields of its own")
        found.append((field, spec or ""))
        literals.append("")
    return literals, found


def _root(field: str, allowed: list[str], text: str, function: str) -> str:
    """Return the parameter that a field starts with, after checking the whole field."""
    parsed = _FIELD.fullmatch(field)
    root = parsed[1] if parsed else field
    if not root or root.isdigit():
        raise _wrong(text, function, f"{{{field}}} is by position: name one of the parameters {_listed(allowed)}")
    if root not in allowed:
        close = difflib.get_close_matches(root, allowed, 1)
        hint = f", did you mean {{{close[0]}}}?" if close else ":"
        raise _wrong(text, function, f"{{{field}}} is not a parameter{hint} allowed are {_listed(allowed)}")
    if parsed is None or not all(name.isidentifier() for name, _ in _STEP.findall(parsed[2]) if name):
        raise _wrong(text, function, f"{{{field}}} is not a parameter with attributes and constant keys")
    return root


def _listed(allowed: list[str]) -> str:
    return ", ".join(allowed) or "none, the function has no parameters"


def _steps(field: str) -> tuple[_Step, ...]:
    return tuple(
        operator.attrgetter(name) if name else operator.itemgetter(int(key) if key.isdecimal() else key)
        for name, key in _STEP.findall(field)
    )


def _escaper(literal: str) -> Callable[[str], str]:
    kept = "".join(re.escape(char) for char in "_.-~" if char not in literal)
    unsafe = re.compile(f"[^A-Za-z0-9{kept}]+")

    def quote(match: re.Match[str]) -> str:
        return "".join([f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")])

    return lambda piece: unsafe.sub(quote, piece)


# Values to text.

_BY_STR: frozenset[type] = frozenset(
    {str, bool, float, dt.date, dt.time, dt.datetime, dt.timedelta, uuid.UUID}
    | {pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath}
)

# Classes with one of these print what they hold or wrap: that can leave items out, or depend on the hash seed.
_UNRELIABLE = ("__wrapped__", "__array__", "__dataframe__", "__arrow_c_stream__", "__arrow_c_array__")


def _text(value: Any, spec: str, field: str) -> str:
    kind = type(value)
    if kind in _BY_STR:
        return format(value, spec) if spec else str(value)
    if enum.Enum in kind.__mro__:
        return format(_enum_text(value), spec)
    if kind is int or _prints_itself(kind):
        text = format(value, spec)
        if kind is decimal.Decimal:
            # The case of the exponent is a setting of the thread's decimal context.
            text = text if spec else text.replace("e", "E")
        elif _ADDRESS.search(text):
            raise UnkeyableError(f"{{{field}}} renders as {text!r}, which holds an address: use an attribute of it")
        return text
    if spec:
        raise UnkeyableError(f"{{{field}:{spec}}} is an instance of {kind.__name__}, which takes no format spec")
    try:
        return encode(value)
    except UnkeyableError as error:
        raise UnkeyableError(f"{{{field}}}: {error}, or use an attribute of it, such as {{{field}.id}}") from None


def _enum_text(member: Any) -> Any:
    # What str() and format() say of a member that is also a str or an int changes from one Python version to the next.
    cls = type(member)
    # The enum module copies its own methods into each class; those of builtins have no module.
    if any(getattr(method, "__module__", "enum") != "enum" for method in (cls.__str__, cls.__format__)):
        return member
    if str in cls.__mro__:
        return str.__str__(member)
    if int in cls.__mro__:
        return int.__int__(member)
    # A combination of flags has a name in some versions only.
    return f"{cls.__name__}.{member._name_ if member._name_ in cls.__members__ else member._value_}"


def _prints_itself(kind: type) -> bool:
    """Tell whether a class says itself what its instances look like, and can be believed."""
    ancestry = kind.__mro__
    if type in ancestry or bytes in ancestry or bytearray in ancestry:
        return False
    numpy = sys.modules.get("numpy")
    if getattr(numpy, "generic", None) in ancestry:
        return getattr(numpy, "void", None) not in ancestry
    if any(hasattr(kind, name) for name in _UNRELIABLE):
        return False
    generated = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    for base in ancestry[:-1]:
        if base is generated:
            return False
        if "__str__" in vars(base) or "__format__" in vars(base):
            return True
    return False
