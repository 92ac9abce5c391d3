"""One value to the text that stands for it in a key; it never hashes, prints or compares a value it does not know.

The rule: two values have one encoding if and only if they are equal *and* of the same type, all the way down. So
``1``, ``1.0``, ``True`` and ``'1'`` differ, ``-0.0`` differs from ``0.0``, NaNs agree, sets and dicts have no order.
Where ``==`` forgets something that a function can see (the digits of ``Decimal('1.00')``, the ``fold`` of a time, the
name of a time zone, the length limit of a deque, the bounds of an empty range, the case of a Windows path, attributes
set on a subclass of ``str``), the values are kept apart: that costs a miss, and a miss never lies.

The text reads as the Python expression it stands for, and is the same in every process, for every hash seed and in
every version of Python. What is not a literal of Python starts with a dotted name, which must lead back to the very
class or function that is meant, so that no class can pass for another. What cannot be written so is refused.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import pathlib
import re
import sys
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any

from memo.errors import OptionError, UnkeyableError
from memo.keys.adapters import (
    HIDDEN,
    STDLIB,
    Rule,
    Walk,
    class_name,
    fields,
    foreign_rule,
    is_frozen,
    lookup,
    name_of,
    owner,
    redefines_eq,
    refuse,
    vouched_name,
)

__all__ = ["SCALARS", "encode", "is_value_class", "register_key_type"]

SCALARS: frozenset[type] = frozenset({type(None), bool, int, str, bytes})
"""The types whose values need no encoding to be told apart: by type and value they are what they are."""

# What users have taught: class to function. Single operations on a dict are atomic, and nothing here does two in a row.
_taught: dict[type, Callable[[Any], object]] = {}


def encode(value: object) -> str:
    """Return the text that stands for a value in a key.

    Every default key of every function, in every store, is made of these texts: a changed text is a lost entry for
    each of them.

    Args:
        value: any value; what it holds is read now, later changes to it do not matter.

    Returns:
        Text without line ends or control characters, the same in every process.

    Raises:
        UnkeyableError: the value, or something inside it, cannot be told apart safely; the message names the kind of
            value and the ways out. What ``__cache_key__`` and registered functions raise is not wrapped.

    >>> encode(("eu", {2, 1}, 1.0))
    "('eu',{1,2},1.0)"
    """
    scalar = _SCALAR.get(type(value))
    if scalar is not None:
        return scalar(value)
    try:
        return _walker()(value)
    except RecursionError as error:
        raise UnkeyableError(f"an instance of {type(value).__name__} is nested too deeply to be written out") from error


def register_key_type(cls: type, encode: Callable[[Any], object]) -> None:
    """Teach memo, in the whole process, what identifies the instances of a class and of its subclasses.

    It comes before memo's own rules and before an inherited ``__cache_key__``; the most specific class wins, and
    registering a class again replaces what was there. Exact None, bool, int, float, str and bytes stay as they are.

    Args:
        cls: the class, which need not be yours.
        encode: given an instance, returns what identifies it: any value that itself can be encoded.

    Raises:
        OptionError: ``cls`` is not a class, or is ``object``, or ``encode`` cannot be called.

    >>> class Money:
    ...     amount, currency = 5, "EUR"
    >>> register_key_type(Money, lambda money: (money.amount, money.currency))
    >>> encode(Money()).partition("(")[2]
    "(5,'EUR'))"
    """
    if not isinstance(cls, type):
        raise OptionError(f"register_key_type(cls=...) takes a class, not {cls!r}")
    if cls is object:
        raise OptionError("register_key_type(object, ...) would stand for every value: register the classes you mean")
    if not callable(encode):
        raise OptionError(f"register_key_type({cls.__name__}, encode=...) takes a function, not {encode!r}")
    _taught[cls] = encode


def is_value_class(cls: type) -> bool:
    """Tell whether instances, as ``self`` of a cached method, may count by value instead of by identity.

    They may if an instance cannot change what it is: the class has ``__cache_key__`` or is registered, or is an enum, a
    frozen dataclass (or attrs class, msgspec Struct, pydantic model) that compares by its fields, or a subclass of an
    immutable builtin that leaves ``__eq__`` alone. A class that its name does not lead back to counts by identity,
    which is always safe.

    Args:
        cls: the class of the instance.

    >>> is_value_class(dt.date), is_value_class(list)
    (True, False)
    """
    if _custom(cls) is not None:
        return True
    if name_of(cls) is None:
        return False
    if enum.Enum in cls.__mro__:
        return True
    made: Any = vars(cls).get("__dataclass_params__")
    if made is not None:
        return bool(made.frozen and made.eq)
    if is_frozen(cls):
        return True
    base = _known_base(cls)
    return base in _IMMUTABLE and not redefines_eq(cls, base)


# Scalars: one function from the value to its text.

_ODD = re.compile(rf"[\x00-\x1f'\\\x7f-\x9f{HIDDEN}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "'": r"\'", "\\": r"\\"}

# Beyond this Python writes decimals in quadratic time, and past 4300 digits not at all.
_LARGE = 1 << 256


def _int(value: int) -> str:
    return int.__repr__(value) if -_LARGE < value < _LARGE else hex(value)


def _str(value: str) -> str:
    # For ASCII without quotes repr does what we want, in C. For the rest it depends on Unicode tables.
    if value.isascii() and "'" not in value:
        return repr(value)
    return f"'{_ODD.sub(_escape, value)}'"


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


_SCALAR: dict[type, Callable[[Any], str]] = {
    type(None): repr,
    bool: repr,
    int: _int,
    float: repr,
    str: _str,
    bytes: bytes.__repr__,
}

# What a value of a subclass is as an exact scalar, whatever the subclass overrides.
_EXACT: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: memoryview(value).tobytes(),
}


# Containers and other builtin values.


def _list(value: list[Any], walk: Walk) -> str:
    return f"[{','.join(map(walk, list.__iter__(value)))}]"


def _tuple(value: tuple[Any, ...], walk: Walk) -> str:
    text = ",".join(map(walk, tuple.__iter__(value)))
    return f"({text},)" if tuple.__len__(value) == 1 else f"({text})"


def _set(value: set[Any], walk: Walk) -> str:
    return f"{{{','.join(sorted(map(walk, set.__iter__(value))))}}}" if set.__len__(value) else "set()"


def _frozenset(value: frozenset[Any], walk: Walk) -> str:
    text = ",".join(sorted(map(walk, frozenset.__iter__(value))))
    return f"frozenset({{{text}}})" if text else "frozenset()"


def _dict(value: dict[Any, Any], walk: Walk) -> str:
    return f"{{{','.join(sorted(f'{walk(key)}:{walk(item)}' for key, item in dict.items(value)))}}}"


def _ordered(value: collections.OrderedDict[Any, Any], walk: Walk) -> str:
    items = collections.OrderedDict.items(value)
    return f"collections.OrderedDict({{{','.join(f'{walk(key)}:{walk(item)}' for key, item in items)}}})"


def _defaultdict(value: collections.defaultdict[Any, Any], walk: Walk) -> str:
    return f"collections.defaultdict({walk(value.default_factory)},{_dict(value, walk)})"


def _deque(value: collections.deque[Any], walk: Walk) -> str:
    limit = "" if value.maxlen is None else f",{value.maxlen}"
    return f"collections.deque([{','.join(map(walk, collections.deque.__iter__(value)))}]{limit})"


def _proxy(value: types.MappingProxyType[Any, Any], walk: Walk) -> str:
    try:
        held = value.copy()  # of the type that the proxy hides
    except AttributeError:
        raise refuse(value, "shows a mapping that cannot be copied, so that its kind is not known") from None
    return f"types.MappingProxyType({walk(held)})"


# Functions, classes, and what is built of them.


def _class(value: type, walk: Walk) -> str:
    return class_name(value)


def _function(value: Any, walk: Walk) -> str:
    name = name_of(value)
    if name is not None:
        return name
    told = f"{value.__module__}.{value.__qualname__}"
    if value.__name__ == "<lambda>":
        raise UnkeyableError(f"the lambda {told} has no name that leads back to it: pass a function defined with def")
    raise UnkeyableError(
        f"the function {told} is not what its name leads to (it is defined inside a function, or was redefined or "
        "wrapped): pass a function defined at module level"
    )


def _method(value: types.MethodType, walk: Walk) -> str:
    return f"types.MethodType({walk(value.__func__)},{walk(value.__self__)})"


def _builtin(value: Any, walk: Walk) -> str:
    # A builtin function has its module as self, or nothing; a builtin method has its instance or class.
    if value.__self__ is None or type(value.__self__) is types.ModuleType:
        return _function(value, walk)
    return f"types.BuiltinMethodType({walk(value.__self__)},{walk(value.__name__)})"


def _descriptor(value: Any, walk: Walk) -> str:
    return f"{class_name(value.__objclass__)}.{value.__name__}"


def _partial(value: functools.partial[Any], walk: Walk) -> str:
    return f"functools.partial({walk(value.func)},{walk(value.args)},{walk(value.keywords)})"


def _module(value: types.ModuleType, walk: Walk) -> str:
    if sys.modules.get(value.__name__) is not value:
        raise refuse(value, f"named {value.__name__!r} is not the one that is loaded under this name")
    return f"sys.modules[{walk(value.__name__)}]"


def _union(value: Any, walk: Walk) -> str:
    return "|".join(sorted(map(walk, value.__args__)))


def _alias(value: Any, walk: Walk) -> str:
    star = "*" if getattr(value, "__unpacked__", False) else ""
    return f"{star}{walk(value.__origin__)}[{','.join(map(walk, value.__args__))}]"


def _typing(value: Any, walk: Walk) -> str:
    origin = getattr(value, "__origin__", None)
    args = getattr(value, "__args__", None)
    alias = getattr(value, "_name", None)
    if origin is None or args is None:
        # A bare form such as typing.Any or typing.List, or a type variable that stands in a module.
        return f"typing.{alias}" if alias and lookup("typing", alias) is value else _unknown(value, walk)
    texts = list(map(walk, args))
    if origin is typing.Union or origin is typing.Literal:
        # Their order is of no meaning.
        return f"typing.{'Union' if origin is typing.Union else 'Literal'}[{','.join(sorted(texts))}]"
    if hasattr(value, "__metadata__"):
        return f"typing.Annotated[{texts[0]},{','.join(map(walk, value.__metadata__))}]"
    named = alias and getattr(lookup("typing", alias), "__origin__", None) is origin
    return f"{f'typing.{alias}' if named else walk(origin)}[{','.join(texts)}]"


_KINDS: dict[type, Rule] = {
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
    dict: _dict,
    bytearray: lambda value, walk: f"bytearray({bytes(memoryview(value))!r})",
    complex: lambda value, walk: f"complex({value.real!r},{value.imag!r})",
    range: lambda value, walk: f"range({walk(value.start)},{walk(value.stop)},{walk(value.step)})",
    slice: lambda value, walk: f"slice({walk(value.start)},{walk(value.stop)},{walk(value.step)})",
    type(...): lambda value, walk: "Ellipsis",
    type(NotImplemented): lambda value, walk: "NotImplemented",
    collections.OrderedDict: _ordered,
    collections.Counter: lambda value, walk: f"collections.Counter({_dict(value, walk)})",
    collections.defaultdict: _defaultdict,
    collections.deque: _deque,
    types.MappingProxyType: _proxy,
    types.SimpleNamespace: lambda value, walk: f"types.SimpleNamespace({walk(vars(value))})",
    types.FunctionType: _function,
    types.BuiltinFunctionType: _builtin,
    types.MethodType: _method,
    types.MethodDescriptorType: _descriptor,
    types.WrapperDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    functools.partial: _partial,
    types.ModuleType: _module,
    types.GenericAlias: _alias,
    type(collections.abc.Callable[[], None]): _alias,
    types.UnionType: _union,
    type: _class,
    **STDLIB,
}

_IMMUTABLE: frozenset[type] = frozenset(
    {bool, int, float, complex, str, bytes, tuple, frozenset, range, dt.date, dt.datetime, dt.time}
    | {dt.timedelta, dt.timezone, decimal.Decimal, fractions.Fraction, uuid.UUID}
    | {cls for cls in STDLIB if cls.__module__ == "ipaddress" or issubclass(cls, pathlib.PurePath)}
)


# Classes of users: enums, dataclasses, subclasses of builtins, and what they have been taught.

_WORD = re.compile(r"(?!\d)\w+", re.ASCII)


def _member(value: Any, walk: Walk) -> str:
    cls = type(value)
    name = value._name_
    if name is not None and cls.__members__.get(name) is value:
        return f"{class_name(cls)}.{name}" if _WORD.fullmatch(name) else f"{class_name(cls)}[{walk(name)}]"
    return f"{class_name(cls)}({walk(value._value_)})"  # a combination of flags


def _dataclass(value: Any, walk: Walk) -> str:
    cls = type(value)
    made: Any = owner(cls, "__dataclass_params__")
    if not made.__dataclass_params__.eq:
        raise refuse(value, "is a dataclass with eq=False, so that nothing says which fields matter")
    if redefines_eq(cls, made):
        raise refuse(value, "redefines __eq__, so that its fields do not say when two are equal")
    if _known_base(cls) is not None:
        raise refuse(value, "is a dataclass and a builtin at once, and only its fields take part in ==")
    return fields(value, (field.name for field in dataclasses.fields(cls) if field.compare), walk)


def _derived(value: Any, walk: Walk) -> str:
    """Encode an instance of a subclass of a kind that is known: the class, the value as that kind, and what it adds."""
    cls = type(value)
    base = _known_base(cls)
    if redefines_eq(cls, base):
        raise refuse(value, f"redefines __eq__, so that its {base.__name__} does not say when two are equal")
    added = _added(value, base)
    more = f",{walk(added)}" if added else ""
    names = getattr(cls, "_fields", None)
    if base is tuple and type(names) is tuple and len(names) == len(value):
        held = dict(zip(names, tuple.__iter__(value), strict=True))
        return f"{class_name(cls)}({','.join(f'{name}={walk(item)}' for name, item in held.items())}{more})"
    text = _SCALAR[base](_EXACT[base](value)) if base in _SCALAR else _KINDS[base](value, walk)
    return f"{class_name(cls)}({text}{more})"


def _added(value: Any, base: type) -> dict[str, object]:
    cls = type(value)
    # A namespace is its attributes; they are written already.
    added = {} if base is types.SimpleNamespace else dict(getattr(value, "__dict__", ()))
    for ancestor in cls.__mro__[: cls.__mro__.index(base)]:
        for name, slot in vars(ancestor).items():
            if type(slot) is types.MemberDescriptorType and hasattr(value, name):
                added[name] = slot.__get__(value, cls)
    return added


def _unknown(value: Any, walk: Walk) -> str:
    # The last way to be known: to stand in a module under one's own name, as ufuncs and decorated functions do.
    name = name_of(value)
    if name is None:
        raise refuse(value, "has no value that memo knows how to read")
    return name


def _known_base(cls: type) -> Any:
    return next((base for base in cls.__mro__ if base in _KINDS or base in _SCALAR), None)


def _custom(cls: type) -> Callable[[Any], object] | None:
    """Return what tells an instance's identity by its user's own word: the most specific class that has one decides."""
    for base in cls.__mro__:
        if base in _taught:
            return _taught[base]
        if "__cache_key__" in vars(base):
            return _bound(vars(base)["__cache_key__"])
    return None


def _bound(method: Any) -> Callable[[Any], object] | None:
    # Bound by hand: the attribute of the class counts, not one that an instance or a wrapper shows. None opts out.
    return None if method is None else lambda value: method.__get__(value, type(value))()


def _rule_or_none(cls: type) -> Rule | None:
    """Return memo's own rule for a class that is none of the exact kinds, by its real ancestry: wrappers may lie."""
    ancestry = cls.__mro__
    if type in ancestry:
        return _class
    if enum.Enum in ancestry:
        return _member
    if owner(cls, "__dataclass_params__") is not None:
        return _dataclass
    rule = foreign_rule(cls)
    if rule is not None:
        return rule
    if cls.__module__ == "typing":
        return _typing
    return _derived if _known_base(cls) is not None else None


def _walker() -> Walk:
    """Return a function that encodes a value and those in it, and refuses to enter one that it is inside of."""
    inside: set[int] = set()

    def walk(value: object) -> str:
        cls = type(value)
        scalar = _SCALAR.get(cls)
        if scalar is not None:
            return scalar(value)
        mark = id(value)
        if mark in inside:
            raise UnkeyableError(f"an instance of {cls.__name__} contains itself, so that it has no end")
        inside.add(mark)
        rule = _KINDS.get(cls)
        custom = _custom(cls) if rule is None or _taught else None
        if custom is not None:
            text = f"{vouched_name(cls)}({walk(custom(value))})"
        else:
            text = (rule or _rule_or_none(cls) or _unknown)(value, walk)
        inside.discard(mark)
        return text

    return walk
