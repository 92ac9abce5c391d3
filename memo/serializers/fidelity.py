"""Whether a value that was written and read back is still the same, type by type; this module writes and reads nothing.

What a value says of itself is not asked: a class's own `__eq__` may call different things equal. Builtin values are
compared by content, containers by what is in them and in which order (sets aside), instances by their state: what is
in `__dict__` and in slots, which is all that a dataclass, an attrs class, a `msgspec.Struct` or a pydantic model has.
Only what has neither, an object of a type written in C, is written once more, and the bytes are compared.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import functools
import ipaddress
import math
import pathlib
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from types import MemberDescriptorType, NoneType
from typing import Any, Final, NamedTuple

__all__ = ["difference", "named"]

LONGEST: Final = 120
"""Characters of a place within a value that a message shows."""

_ABSENT: Final = object()

_PYDANTIC: Final = ("pydantic_core._pydantic_core", "TzInfo")

_PLAIN: Final = frozenset({str, int, bool, bytes, NoneType})
"""Exact types whose `==` cannot lie."""


def _number(value: float) -> Any:
    """Return what tells a float from all others: the sign of a zero counts, and of NaN there is one."""
    return "nan" if math.isnan(value) else (math.copysign(1.0, value), float.__float__(value))


_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    float: _number,
    complex: lambda value: (_number(value.real), _number(value.imag)),
    int: int.__int__,
    str: str.__str__,
    bytes: lambda value: bytes.__getitem__(value, slice(None)),
    bytearray: bytes,
    dt.date: dt.date.toordinal,
    dt.timedelta: lambda value: (value.days, value.seconds, value.microseconds),
    dt.timezone: repr,
    decimal.Decimal: decimal.Decimal.as_tuple,
    uuid.UUID: lambda value: value.int,
    ipaddress.IPv4Address: str,
    ipaddress.IPv6Address: str,
    ipaddress.IPv4Network: str,
    ipaddress.IPv6Network: str,
    pathlib.PurePosixPath: str,
    pathlib.PureWindowsPath: str,
    pathlib.PosixPath: str,
    pathlib.WindowsPath: str,
}
"""What of a value says which one of its type it is."""


class _Shape(NamedTuple):
    """What is known of a class: the first of its bases whose content is known, its slots, and what it computes."""

    base: type | None
    slots: dict[str, Any]
    computed: frozenset[str]


def difference(value: Any, back: Any, encode: Callable[[Any], bytes] | None) -> str | None:
    """Return where `back` differs from `value`, and how, without showing any value; None: nowhere.

    Args:
        value: what was written.
        back: what was read.
        encode: what writes a value, to compare those of unknown types by their bytes; None: each class decides what is
            kept of it, as in a pickle, so that any instance of the same class will do.

    Raises:
        Exception: whatever a value's own code raises, and RecursionError if it is too deep.

    >>> difference({"a": [1, 2]}, {"a": [1, 2.0]}, None)
    ' at {}[]: an int would come back as a float'
    """
    if encode is not None and _alike(value, back):
        return None
    found = _Comparison(encode).difference(value, back)
    if found is None:
        return None
    place, _, what = found.partition(":")
    if len(place) > LONGEST:
        place = f"{place[:LONGEST]}..."
    return f" at {place}:{what}" if place else found


def named(kind: type) -> str:
    """Return how a message names a type, with an article."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[:1] in 'aeio' else 'a'} {name}"


def _alike(value: Any, back: Any) -> bool:
    """Return whether two values are the same for certain: the quick way for what nearly all are made of."""
    kind = type(value)
    if kind is not type(back):
        return False
    if kind in _PLAIN:
        return bool(value == back)
    if kind is float:
        return bool(value == back and value != 0.0)
    if kind is list:
        return len(value) == len(back) and all(map(_alike, value, back))
    if kind is dict:
        if len(value) != len(back):
            return False
        for (name, one), (other, two) in zip(value.items(), back.items(), strict=True):
            if type(name) is not str or type(other) is not str or name != other or not _alike(one, two):
                return False
        return True
    return False


class _Comparison:
    """One comparison; `seen` keeps an object that is met again and again from being walked as often, or for ever."""

    __slots__ = ("encode", "seen", "shapes")

    def __init__(self, encode: Callable[[Any], bytes] | None) -> None:
        self.encode = encode
        self.seen: set[tuple[int, int]] = set()
        self.shapes: dict[type, _Shape] = {}

    def difference(self, value: Any, back: Any) -> str | None:
        if value is back:
            return None
        kind = type(value)
        if kind is not type(back):
            return f": {named(kind)} would come back as {named(type(back))}"
        if kind in _PLAIN:
            return None if value == back else _changed(value)
        if kind in _LEAVES:
            return None if _LEAVES[kind](value) == _LEAVES[kind](back) else _changed(value)
        pair = (id(value), id(back))  # whose objects live until the comparison is over
        if pair in self.seen:
            return None
        self.seen.add(pair)
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](self, value, back, kind)
        return None if self.encode is None else self.instances(value, back, kind, self.encode)

    def instances(self, value: Any, back: Any, kind: type, encode: Callable[[Any], bytes]) -> str | None:
        """Compare the content of the builtin type that a class is made from, if any, and the state."""
        shape = self.shapes.get(kind)
        if shape is None:
            shape = self.shapes[kind] = _shape(kind)
        base = shape.base
        if base in _CONTAINERS:
            found = _CONTAINERS[base](self, value, back, base)
            if found is not None:
                return found
        elif base is not None and _LEAVES[base](value) != _LEAVES[base](back):
            return _changed(value)
        state, other = _state(value, shape), _state(back, shape)
        for name in {**state, **other}:
            one, two = state.get(name, _ABSENT), other.get(name, _ABSENT)
            if _alike(one, two):
                continue
            if one is _ABSENT or two is _ABSENT:
                return f".{name}: the attribute would {'come back too' if one is _ABSENT else 'be lost'}"
            found = self.difference(one, two)
            if found is not None:
                return f".{name}{found}"
        if base is None and not state and encode(value) != encode(back):
            return _changed(value)
        return None

    def each(self, values: Iterable[Any], others: Iterable[Any], place: str) -> str | None:
        for one, two in zip(values, others, strict=True):
            kind = type(one)
            if one is two or (kind is type(two) and kind in _PLAIN and one == two):
                continue
            found = self.difference(one, two)
            if found is not None:
                return place + found
        return None

    # `base` is the builtin type, by whose methods a subclass's own are passed over.

    def sequences(self, value: Any, back: Any, base: Any) -> str | None:
        if base.__len__(value) != base.__len__(back):
            return _changed(value)
        return self.each(base.__iter__(value), base.__iter__(back), "[]")

    def dicts(self, value: Any, back: Any, base: Any) -> str | None:
        if base.__len__(value) != base.__len__(back):
            return _changed(value)
        found = self.each(base.__iter__(value), base.__iter__(back), "{key}")
        return found or self.each(base.values(value), base.values(back), "{}")

    def sets(self, value: Any, back: Any, base: Any) -> str | None:
        """Compare each member with the one that is found in its place, which is not the same for being equal."""
        members = {member: member for member in base.__iter__(back)}
        if base.__len__(value) != len(members):
            return _changed(value)
        lost = []
        for member in base.__iter__(value):
            if member not in members:
                lost.append(member)
                continue
            found = self.difference(member, members[member])
            if found is not None:
                return "{}" + found
        return None if not lost or self.decide(lost, members.keys() - set(base.__iter__(value))) else _changed(value)

    def decide(self, lost: Iterable[Any], others: Iterable[Any]) -> bool:
        """Return whether members that equal nothing but themselves are of classes that decide what is kept of them."""
        kinds = Counter(map(type, lost))
        known = _PLAIN.union(_LEAVES, _CONTAINERS)
        return self.encode is None and kinds == Counter(map(type, others)) and known.isdisjoint(kinds)

    def times(self, value: Any, back: Any, base: Any) -> str | None:
        """Compare two times or datetimes by fields, fold and zone: zones that agree here may differ at another date."""
        if value.fold != back.fold or value.replace(tzinfo=None, fold=0) != back.replace(tzinfo=None, fold=0):
            return _changed(value)
        if _is_fixed(value.tzinfo) and _is_fixed(back.tzinfo) and value.utcoffset() == back.utcoffset():
            return None  # pydantic has a type of its own for what `timezone` is
        found = self.difference(value.tzinfo, back.tzinfo)
        return None if found is None else f".tzinfo{found}"


_CONTAINERS: Final[dict[type | None, Callable[[_Comparison, Any, Any, Any], str | None]]] = {
    dict: _Comparison.dicts,
    list: _Comparison.sequences,
    tuple: _Comparison.sequences,
    deque: _Comparison.sequences,
    set: _Comparison.sets,
    frozenset: _Comparison.sets,
    dt.datetime: _Comparison.times,
    dt.time: _Comparison.times,
}


def _is_fixed(zone: Any) -> bool:
    """Return whether a zone is an offset and nothing else, not even a name."""
    kind = type(zone)
    return (kind is dt.timezone and len(zone.__getinitargs__()) == 1) or (kind.__module__, kind.__name__) == _PYDANTIC


def _changed(value: Any) -> str:
    return f": {named(type(value))} would come back changed"


def _shape(kind: type) -> _Shape:
    slots, computed = {}, set()
    for cls in reversed(kind.__mro__):
        fields = vars(cls).get("__attrs_attrs__")
        if fields is not None:  # attrs has slots for its fields, and for what cached properties compute
            computed.update({*vars(cls).get("__slots__", ())} - {field.name for field in fields})
        for name, held in vars(cls).items():
            if isinstance(held, functools.cached_property):
                computed.add(name)
            # Which fields were named when a pydantic model was made does not matter.
            elif type(held) is MemberDescriptorType and name != "__pydantic_fields_set__" and name not in computed:
                slots[name] = held
    base = next((cls for cls in kind.__mro__ if cls in _CONTAINERS or cls in _LEAVES), None)
    return _Shape(base, slots, frozenset(computed))


def _state(value: Any, shape: _Shape) -> dict[str, Any]:
    """Return what an instance has in its slots and in its `__dict__`, without what it has computed from the rest."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    if not shape.slots and not shape.computed:
        return own
    state = {name: held for name, held in own.items() if name not in shape.computed}
    for name, descriptor in shape.slots.items():
        with contextlib.suppress(AttributeError):  # nothing is in the slot
            state[name] = descriptor.__get__(value)
    return state
