"""The encoding of values: injective, typed, the same everywhere; and what it refuses."""

# ruff: noqa: UP006, UP007, UP045, F821 (the old spellings of types are values of their own)

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import io
import ipaddress
import itertools
import logging
import math
import operator
import os
import pathlib
import queue
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import types
import typing
import uuid
import weakref
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest
import wrapt
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memo.errors import OptionError, UnkeyableError
from memo.keys import adapters
from memo.keys.encode import SCALARS, encode, is_value_class, register_key_type

HERE = __name__
TAUGHT = sys.modules["memo.keys.encode"]._taught
NAN = float("nan")
OTHER_NAN = struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\xff")[0]


class Color(enum.Enum):
    RED = 1
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Perm(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


Odd = enum.Enum("Odd", {"a b": 1, "a.b": 2, "c": 3}, module=HERE)


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    note: str = dataclasses.field(default="", compare=False)


@dataclasses.dataclass(eq=False)
class ByIdentity:
    x: int


@dataclasses.dataclass(init=False)
class Unset:
    x: int


class MethodsOnly(Point):
    pass


class OwnEquality(Point):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


@dataclasses.dataclass
class DataList(list):
    x: int


class Pair(NamedTuple):
    left: Any
    right: Any


class Triple(Pair):
    pass


class BrokenPair(tuple):
    _fields = ("only",)


class Text(str):
    __slots__ = ()


class Tagged(str):
    tag: str


class Slotted(int):
    __slots__ = ()


class Blob(bytes):
    pass


class Real(float):
    pass


class Numbers(list):
    def __iter__(self) -> Any:
        return iter("lies")


class Settings(SimpleNamespace):
    pass


class Local(dt.datetime):
    pass


class Rooted(type(pathlib.PurePath())):
    __slots__ = ("__root", "unset")

    def mark(self, root: str) -> Rooted:
        self.__root = root
        return self


class Folded(str):
    def __eq__(self, other: object) -> bool:
        return self.lower() == str(other).lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class User:
    def __init__(self, number: int) -> None:
        self.number = number

    def __cache_key__(self) -> object:
        return self.number

    def greet(self) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @staticmethod
    def check() -> None: ...


class Admin(User):
    pass


class OptedOut(User):
    __cache_key__ = None


class Plain:
    pass


class Zone(dt.tzinfo):
    def utcoffset(self, moment: object) -> None: ...


class Meta(type):
    def __cache_key__(cls) -> object:
        return "by the metaclass"


class Made(metaclass=Meta):
    pass


class Outer:
    class Inner:
        pass

    def method(self) -> None: ...


class Record(msgspec.Struct):
    x: Any
    y: Any = None


class FrozenRecord(msgspec.Struct, frozen=True):
    x: int


class LooseRecord(msgspec.Struct, eq=False):
    x: int


class OwnRecord(Record):
    def __eq__(self, other: object) -> bool:
        return True


class OneWay:
    """A mapping that cannot be copied."""

    def __getitem__(self, key: str) -> None: ...

    def keys(self) -> list[str]:
        return []


def function() -> None: ...


def factory() -> Any:
    def inner() -> None: ...

    return inner


@functools.lru_cache
def decorated() -> None: ...


@wrapt.decorator
def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any: ...


@wrapper
def wrapped() -> None: ...


T = typing.TypeVar("T")


class Crate(typing.Generic[T]):
    pass


@pytest.fixture
def taught():
    """Let a test register types, and forget them after it."""
    before = dict(TAUGHT)
    yield TAUGHT
    TAUGHT.clear()
    TAUGHT.update(before)


# Distinct values have distinct encodings.

PARIS = zoneinfo.ZoneInfo("Europe/Paris")
AUTUMN = dt.datetime(2024, 10, 27, 2, 30)

DISTINCT: list[Any] = [
    None, True, False, 0, 1, -1, 10, 2**256 - 1, 2**256, -(2**256), 2**40_000, 0.0, -0.0, 1.0, 1e16, 1e22,
    0.1, math.inf, -math.inf, NAN, "", "1", "None", "True", "nan", "1.0", "b'1'", "'", '"', "\\", "\\'", "\n",
    "\\n", "\0", "é", "e\u0301", "\u2028", "\xa0", "\x85", "\ud800", "\udfff", "\U0001f600", "\ud83d\ude00",
    "(1,2)", "1,2", "()", "[]", "1','2", b"", b"1", b"'", b'"', b"\xff", (), (1,), (1, 2), (1, (2,)),
    ((1,), 2), (1, 2, 3), ("1", "2"), ("1','2",), ("1,2",), ("", ""), [], [1], [1, 2], [[1], 2], [()], [[]],
    set(), {1}, {1, 2}, {"1"}, {(1, 2)}, frozenset(), frozenset({1}), frozenset({1, 2}), {frozenset()}, {},
    {1: 2}, {1: 2, 3: 4}, {"1": 2}, {1: {2: 3}}, {(1, 2): 3}, {1: (2, 3)}, {"a": 1, "b": 2}, {"a": 2, "b": 1},
    {"a:1,'b'": 2}, bytearray(), bytearray(b"1"), 1j, complex(0.0, -0.0), complex(-0.0, 0.0), complex(NAN, 0),
    range(3), range(1, 3), range(0, 3, 2), range(0, 4, 2), slice(3), slice(0, 3), slice(0, 3, 1), ...,
    NotImplemented, deque(), deque([1]), deque([1], 1), deque([1], 2), deque([[1], 1]), OrderedDict(),
    OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), Counter(), Counter("aab"), Counter(a=0), defaultdict(None),
    defaultdict(int), defaultdict(list), defaultdict(int, {1: 2}), MappingProxyType({}),
    MappingProxyType({1: 2}), MappingProxyType(OrderedDict({1: 2})), SimpleNamespace(), SimpleNamespace(a=1),
    SimpleNamespace(**{"a=1,b": 2}), SimpleNamespace(a=1, b=2), fractions.Fraction(1, 2),
    fractions.Fraction(1), decimal.Decimal(1), decimal.Decimal("1.0"), decimal.Decimal("1.00"),
    decimal.Decimal("NaN"), decimal.Decimal("sNaN"), decimal.Decimal("-0"), decimal.Decimal("1E+9"),
    decimal.Decimal("Infinity"), uuid.UUID(int=1), uuid.UUID(int=2), pathlib.PurePosixPath("a"),
    pathlib.PureWindowsPath("a"), pathlib.PureWindowsPath("A"), pathlib.Path("a"), pathlib.Path("a/b"),
    pathlib.Path(), dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, 0, 0, 0, 1),
    dt.datetime(2024, 1, 1, fold=1), dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc),
    dt.datetime(2024, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), dt.datetime(2024, 1, 1, 1, tzinfo=PARIS),
    dt.datetime(2024, 1, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Rome")), AUTUMN.replace(tzinfo=PARIS),
    AUTUMN.replace(tzinfo=PARIS, fold=1), dt.time(1), dt.time(1, fold=1), dt.time(1, tzinfo=dt.timezone.utc),
    dt.timedelta(1), dt.timedelta(0, 1), dt.timedelta(0, 0, 1), dt.timezone.utc,
    dt.timezone(dt.timedelta(hours=1)), dt.timezone(dt.timedelta(hours=1), "CET"), PARIS, re.compile("a"),
    re.compile(b"a"), re.compile("a", re.IGNORECASE), re.compile("b"), ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_network("10.0.0.1"), ipaddress.ip_interface("10.0.0.1"), ipaddress.ip_address("::1"),
    ipaddress.ip_network("::1"), ipaddress.ip_interface("::1"), ipaddress.ip_address("fe80::1%1"), Color,
    Color.RED, Color.GREEN, Size.SMALL, Size.LARGE, Perm.READ, Perm.WRITE, Perm.BOTH, Perm(0), *Odd, Point(1),
    Point("1"), Point(1, 2), Point(2, 1), MethodsOnly(1), Frozen(1), Frozen((1,)), Pair(1, 2), Triple(1, 2),
    Pair(1, (2,)), BrokenPair((1, 2)), BrokenPair((1,)), Text("a"), Tagged("a"), Slotted(1), Blob(b"a"),
    Real(1.0), Real(NAN), Numbers([1, 2]), Settings(), Settings(a=1), Local(2024, 1, 1), Rooted("a"),
    Rooted("a").mark("/"), Rooted("a").mark("/b"), User(1), User("1"), User((1,)), Admin(1), Record(1),
    Record(1, 2), Record((1, 2)), FrozenRecord(1), int, float, Plain, Outer, Outer.Inner, Outer.method,
    type(None), type, function, len, math.sin, decorated, wrapped, wrapper, str.upper, bytes.upper,
    object.__repr__, dict.fromkeys, vars(dict)["fromkeys"], OrderedDict.fromkeys, [1].append, [1].extend,
    "a".join, User(1).greet, User(2).greet, Admin(1).greet, User.make, Admin.make, User.check,
    dt.datetime.now, dt.datetime, functools.partial(function), functools.partial(function, 1),
    functools.partial(function, x=1), functools.partial(function, (1,)), math, operator, list[int], list[str],
    list[int, str], list[list[int]], dict[int, str], tuple[()], tuple[int, ...], type[int], int | str,
    int | None, list[int | str], list[int] | str, collections.abc.Callable[[int], str],
    collections.abc.Callable[..., str], typing.Union[int, str], typing.Optional[int], typing.List,
    typing.List[int], typing.Dict[int, str], typing.Any, typing.Union, typing.Callable,
    typing.Callable[[int], str], typing.Callable[[], int], typing.Literal["a"], typing.Literal["a", 1],
    typing.Literal["a", True], typing.Annotated[int, 1], typing.Annotated[int, 2], T, Crate, Crate[int],
    Crate[T], typing.Literal,
]  # fmt: skip


def test_distinct_values_have_distinct_encodings():
    """A cross product of everything, in particular of what == or str() would mix up."""
    seen: dict[str, Any] = {}
    for value in DISTINCT:
        text = encode(value)
        assert text not in seen, (value, seen[text])
        seen[text] = value
    assert len(seen) > 250


def test_each_is_encoded_the_same_way_inside_others():
    for value in DISTINCT:
        text = encode(value)
        assert encode([value]) == f"[{text}]"
        assert encode((value, value)) == f"({text},{text})"
        assert encode({"k": value}) == f"{{'k':{text}}}"
        assert encode(Point(value)) == f"{HERE}.Point(x={text},y=None)"


def test_no_encoding_holds_a_control_character():
    for value in DISTINCT:
        assert encode(value).isprintable() or not re.search(
            r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", encode(value)
        )


# Equal values of one type have one encoding.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NAN, OTHER_NAN),
        (NAN, -NAN),
        ({1, 2, 3}, {3, 2, 1}),
        ({8, 0}, {0, 8}),  # these meet in the hash table, so that their order is that of insertion
        (frozenset([8, 0]), frozenset([0, 8])),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Counter("ab"), Counter("ba")),
        (SimpleNamespace(a=1, b=2), SimpleNamespace(b=2, a=1)),
        (Frozen(1, note="x"), Frozen(1, note="y")),
        (dt.timezone.utc, dt.timezone(dt.timedelta(0), "UTC")),
        (zoneinfo.ZoneInfo.no_cache("Europe/Paris"), PARIS),
        (int | str, str | int),
        (typing.Union[int, str], typing.Union[str, int]),
        (typing.Literal["a", "b"], typing.Literal["b", "a"]),
        (fractions.Fraction(2, 4), fractions.Fraction(1, 2)),
        (pathlib.Path("a//b/."), pathlib.Path("a/b")),
        (re.compile("a", re.UNICODE), re.compile("a")),
        (functools.partial(function, b=1, a=2), functools.partial(function, a=2, b=1)),
        (Perm.READ | Perm.WRITE, Perm.BOTH),
    ],
)
def test_equal_values_agree(one, other):
    assert encode(one) == encode(other)


def test_the_same_text_from_another_context():
    """The decimal context decides whether an exponent is printed large or small; not here."""
    plain = encode(decimal.Decimal("1E+9"))
    with decimal.localcontext() as context:
        context.capitals = 0
        assert encode(decimal.Decimal("1E+9")) == plain == "decimal.Decimal('1E+9')"


def test_types_that_move_between_python_versions_keep_their_names():
    assert encode(pathlib.Path) == "pathlib.Path"
    assert encode(pathlib.PurePosixPath("a")) == "pathlib.PurePosixPath('a')"
    assert encode(MappingProxyType) == "types.MappingProxyType"


# Strings and numbers.


def test_every_surrogate_has_its_own_encoding_that_is_utf8():
    texts = {encode(chr(code)) for code in range(0xD800, 0xE000)}
    assert len(texts) == 0x800
    assert all(text.encode("ascii") for text in texts)


@given(
    st.text(st.characters()) | st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)) | st.text("'\"\\ab\n")
)
@settings(deadline=None)
def test_strings_read_back(value):
    text = encode(value)
    assert ast.literal_eval(text) == value
    text.encode("utf-8")


def test_characters_that_cannot_be_seen_or_turn_the_text_around_are_escaped():
    for code in [
        *range(0x20),
        *range(0x7F, 0xA0),
        0x2028,
        0x2029,
        0x061C,
        0x200E,
        0x200F,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    ]:
        assert encode(chr(code)).isascii()
    assert encode("\t\n\r\0\x7f\x85\u202e") == r"'\t\n\r\x00\x7f\x85\u202e'"
    assert encode("\xa0é漢😀'") == "'\xa0é漢😀\\''"


def test_huge_numbers_and_bytes():
    """Python refuses to write such a number in decimal; in hexadecimal it is a matter of copying."""
    assert encode(2**256 - 1) == str(2**256 - 1)
    assert encode(-(2**256)) == hex(-(2**256))
    assert len(encode(1 << 4_000_000)) == 1_000_003
    assert encode(fractions.Fraction(1 << 40_000, 3)).startswith("fractions.Fraction(0x1")
    assert len(encode(bytes(20_000_000))) == 4 * 20_000_000 + 3
    assert len(encode("é" * 5_000_000)) == 5_000_002


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers() | st.text(), min_size=1)
    ),
    max_leaves=20,
)


@given(plain)
@settings(deadline=None)
def test_builtin_values_read_back(value):
    back = ast.literal_eval(encode(value))
    assert back == value
    assert encode(back) == encode(value)


# The property: one encoding if and only if equal and of the same type, all the way down.


def same(one: Any, other: Any) -> bool:
    """The rule, written a second time without the encoder, for the kinds that ``anything`` draws."""
    if type(one) is not type(other):
        return False
    if isinstance(one, enum.Enum):
        return one is other
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or (one != one and other != other)
    if isinstance(one, (tuple, list, deque)):
        limits = getattr(one, "maxlen", None) == getattr(other, "maxlen", None)
        return limits and len(one) == len(other) and all(itertools.starmap(same, zip(one, other, strict=True)))
    if isinstance(one, OrderedDict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, dict):
        return matched(list(one.items()), list(other.items()))
    if isinstance(one, (set, frozenset)):
        return matched(list(one), list(other))
    if isinstance(one, Point):
        return same((one.x, one.y), (other.x, other.y))
    if isinstance(one, decimal.Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, (dt.datetime, dt.time)):
        wall = one.replace(tzinfo=None) == other.replace(tzinfo=None)
        return (
            wall
            and one.fold == other.fold
            and str(one.tzinfo) == str(other.tzinfo)
            and type(one.tzinfo) is type(other.tzinfo)
        )
    return one == other


def matched(ones: list[Any], others: list[Any]) -> bool:
    """Tell whether each of one list has its partner in the other, in any order."""
    others = list(others)
    for one in ones:
        for place, other in enumerate(others):
            if same(one, other):
                del others[place]
                break
        else:
            return False
    return not others


zones = st.sampled_from([None, dt.timezone.utc, dt.timezone(dt.timedelta(hours=1)), PARIS, zoneinfo.ZoneInfo("UTC")])
few = st.sampled_from(
    [
        0,
        1,
        2,
        0.0,
        -0.0,
        1.0,
        NAN,
        OTHER_NAN,
        True,
        False,
        None,
        "",
        "1",
        "a",
        "b",
        "'",
        "\\",
        "','",
        b"",
        b"1",
        Size.SMALL,
    ]
)
leaves = (
    few
    | few
    | st.integers()
    | st.floats()
    | st.text(st.sampled_from("ab'\"\\,:(){}[]=\n\ud800é"))
    | st.text()
    | st.binary(max_size=3)
    | st.decimals(allow_nan=False)
    | st.sampled_from([*Color, *Size, *Perm, Perm(0), int, str, Point])
    | st.builds(Text, st.text(max_size=2))
    | st.datetimes(timezones=zones, min_value=dt.datetime(2024, 10, 26), max_value=dt.datetime(2024, 10, 28))
    | st.sampled_from([AUTUMN.replace(tzinfo=zone, fold=fold) for zone in (None, PARIS) for fold in (0, 1)])
    | st.dates()
    | st.timedeltas()
    | st.uuids()
)
hashable = st.recursive(
    leaves, lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
        | st.sets(hashable, max_size=3)
        | st.frozensets(hashable, max_size=3)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.builds(OrderedDict, st.dictionaries(hashable, inner, max_size=3))
        | st.builds(deque, st.lists(inner, max_size=2), st.sampled_from([None, 2, 3]))
        | st.builds(Point, inner, inner)
        | st.builds(MethodsOnly, inner)
    ),
    max_leaves=8,
)


def rebuilt(value: Any) -> Any:
    """Return the same value made anew, its sets and dicts filled in the opposite order."""
    if type(value) in (set, frozenset):
        return type(value)(rebuilt(item) for item in reversed(list(value)))
    if type(value) is dict:
        return {rebuilt(key): rebuilt(item) for key, item in reversed(value.items())}
    if type(value) is OrderedDict:
        return OrderedDict((rebuilt(key), rebuilt(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(rebuilt(item) for item in value)
    if isinstance(value, Point):
        return type(value)(rebuilt(value.x), rebuilt(value.y))
    return value if isinstance(value, type) else copy.deepcopy(value)


@given(anything, anything)
@settings(deadline=None, max_examples=1000)
@example([1, 2], (1, 2))
@example({1: NAN}, {1: OTHER_NAN})
def test_one_encoding_if_and_only_if_the_same(one, other):
    assert (encode(one) == encode(other)) is same(one, other)


@given(leaves, leaves)
@settings(deadline=None, max_examples=1000)
def test_leaves_have_one_encoding_if_and_only_if_the_same(one, other):
    assert (encode(one) == encode(other)) is same(one, other)


@given(anything)
@settings(deadline=None, max_examples=500)
def test_made_anew_it_is_the_same(value):
    again = rebuilt(value)
    assert same(value, again)
    assert encode(again) == encode(value)


@given(anything, anything)
@settings(deadline=None, max_examples=300)
def test_what_looks_like_an_encoding_is_not_one(one, other):
    """A string made of the encoder's own syntax stays a string."""
    assert encode(encode(one)) != encode(one)
    assert encode((encode(one), other)) != encode((one, other))
    assert encode([f"{encode(one)},{encode(other)}"]) != encode([one, other])
    assert encode(f"{encode(one)}','{encode(other)}") != encode((encode(one), encode(other)))


# Names.


def test_a_class_named_after_another_cannot_pass_for_it():
    forged = type("date", (User,), {"__module__": "datetime", "__qualname__": "date"})
    assert encode(forged("2024-01-01")) == "<shadowed>datetime.date('2024-01-01')"
    with pytest.raises(UnkeyableError, match="does not lead back to"):
        encode(forged)
    with pytest.raises(UnkeyableError, match="does not lead back to"):
        encode(type("date", (str,), {"__module__": "datetime", "__qualname__": "date"})("2024-01-01"))


@pytest.mark.parametrize("name", ["a b", "x(1),y", "1a", "", "a..b", "é\u202e", "'"])
def test_odd_class_names_are_refused(name):
    cls = type("C", (User,), {})
    cls.__qualname__ = name
    with pytest.raises(UnkeyableError, match="not a dotted name"):
        encode(cls(1))
    with pytest.raises(UnkeyableError, match="does not lead back"):
        encode(cls)


def test_a_name_that_two_things_could_claim_is_left_to_one(monkeypatch):
    """With a package `pack` that has a class `mod` beside its module `pack.mod`, pack.mod.C could be two classes."""
    package, inside = types.ModuleType("pack"), types.ModuleType("pack.mod")
    outer = type("mod", (), {"__module__": "pack"})
    outer.C = type("C", (User,), {"__module__": "pack", "__qualname__": "mod.C"})
    inside.C = type("C", (User,), {"__module__": "pack.mod", "__qualname__": "C"})
    inside.D = type("D", (User,), {"__module__": "pack.mod", "__qualname__": "D"})
    package.mod = outer
    monkeypatch.setitem(sys.modules, "pack", package)
    monkeypatch.setitem(sys.modules, "pack.mod", inside)
    assert encode(outer.C) == "pack.mod.C"
    assert encode(outer.C(1)) == "pack.mod.C(1)"
    assert encode(inside.C(1)) == "<shadowed>pack.mod.C(1)"
    assert encode(inside.D(1)) == "pack.mod.D(1)"
    with pytest.raises(UnkeyableError):
        encode(inside.C)


def test_a_redefined_class_is_no_longer_what_its_name_says(monkeypatch):
    value = Point(1)
    assert encode(value) == f"{HERE}.Point(x=1,y=None)"
    monkeypatch.setattr(sys.modules[HERE], "Point", type("Point", (), {"__module__": HERE}))
    with pytest.raises(
        UnkeyableError, match=r"Point is a class that its name does not lead back to.*register_key_type\(Point"
    ):
        encode(value)


def test_names_are_readable():
    assert encode(Outer.Inner) == f"{HERE}.Outer.Inner"
    assert encode([int, len, math.sin, function]) == f"[int,len,math.sin,{HERE}.function]"
    assert encode(Admin.make) == f"types.MethodType({HERE}.User.make,{HERE}.Admin)"
    assert encode(User(1).greet) == f"types.MethodType({HERE}.User.greet,{HERE}.User(1))"
    assert encode(Color.RED) == f"{HERE}.Color.RED"
    assert encode(Odd["a b"]) == f"{HERE}.Odd['a b']"
    assert encode(Perm(0)) == f"{HERE}.Perm(0)"
    assert encode(Pair(1, "x")) == f"{HERE}.Pair(left=1,right='x')"
    assert encode(Text("x")) == f"{HERE}.Text('x')"
    assert encode(decorated) == f"{HERE}.decorated"
    assert encode(wrapped) == f"{HERE}.wrapped"
    assert encode(math) == "sys.modules['math']"
    assert encode(Crate[int]) == f"{HERE}.Crate[int]"
    assert encode(T) == f"{HERE}.T"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="unpacking in subscripts came with Python 3.11")
def test_unpacked_aliases_are_told_apart():
    packed = tuple[int]
    assert encode(next(iter(packed))) == "*tuple[int]"


# What users teach.


def test_cache_key_is_looked_up_on_the_type():
    user = User(1)
    user.__cache_key__ = lambda: 2
    assert encode(user) == f"{HERE}.User(1)"
    assert encode(Made) == f"{HERE}.Meta('by the metaclass')"
    with pytest.raises(UnkeyableError, match="has no value that memo knows"):
        encode(Made())


def test_cache_key_none_opts_out():
    with pytest.raises(UnkeyableError, match="OptedOut"):
        encode(OptedOut(1))


def test_cache_key_serves_local_classes():
    class Here(User):
        pass

    assert encode(Here(1)).endswith("test_cache_key_serves_local_classes.<locals>.Here(1)")


def test_cache_key_may_return_anything_that_can_be_encoded():
    assert encode(User([User({1})])) == f"{HERE}.User([{HERE}.User({{1}})])"
    with pytest.raises(UnkeyableError, match="contains itself"):
        user = User(0)
        user.number = [user]
        encode(user)


def test_errors_of_cache_key_and_of_registered_functions_propagate(taught):
    class Broken:
        def __cache_key__(self) -> object:
            raise LookupError("theirs")

    with pytest.raises(LookupError, match="theirs"):
        encode([Broken()])
    register_key_type(Plain, lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode(Plain())


def test_registered_types_come_first_and_the_most_specific_wins(taught):
    class Base:
        pass

    class Child(Base):
        pass

    class Keyed(Base):
        def __cache_key__(self) -> object:
            return "own"

    register_key_type(Base, lambda value: "base")
    assert encode(Child()).endswith("Child('base')")
    assert encode(Keyed()).endswith("Keyed('own')")
    register_key_type(Child, lambda value: "child")
    register_key_type(Keyed, lambda value: "registered")
    assert encode(Child()).endswith("Child('child')")
    assert encode(Keyed()).endswith("Keyed('registered')")
    register_key_type(Child, lambda value: "again")
    assert encode(Child()).endswith("Child('again')")


def test_registered_types_replace_the_rules_for_builtins_but_not_for_exact_scalars(taught):
    register_key_type(list, len)
    register_key_type(str, str.lower)
    register_key_type(decimal.Decimal, lambda value: str(value.normalize()))
    assert encode([1, 2]) == "list(2)"
    assert encode("A") == "'A'"
    assert encode(("A", Text("A"))) == f"('A',{HERE}.Text('a'))"
    assert encode(decimal.Decimal("1.00")) == "decimal.Decimal('1')"
    assert encode({1}) == "{1}"


@pytest.mark.parametrize(
    ("cls", "function", "said"),
    [
        (1, len, "takes a class, not 1"),
        ("int", len, "takes a class"),
        (object, len, "every value"),
        (Plain, 1, "takes a function, not 1"),
    ],
)
def test_registering_checks_its_arguments(cls, function, said, taught):
    with pytest.raises(OptionError, match=said):
        register_key_type(cls, function)
    assert Plain not in taught


def test_registering_from_many_threads_loses_nothing(taught):
    classes = [type(f"C{number}", (), {}) for number in range(200)]
    barrier = threading.Barrier(4)

    def register(part: int) -> None:
        barrier.wait()
        for cls in classes[part::4]:
            register_key_type(cls, lambda value: 1)
            encode([cls()])

    threads = [threading.Thread(target=register, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(classes) <= set(taught)


# What subclasses add.


def test_attributes_of_a_subclass_of_a_builtin_count():
    """str == forgets the tag, a function would not."""
    one, other = Tagged("a"), Tagged("a")
    one.tag, other.tag = "x", "y"
    assert one == other
    assert encode(one) == f"{HERE}.Tagged('a',{{'tag':'x'}})"
    assert encode(other) != encode(one) != encode(Tagged("a"))
    triple = Triple(1, 2)
    triple.note = "x"
    assert encode(triple) == f"{HERE}.Triple(left=1,right=2,{{'note':'x'}})"


def test_a_subclass_cannot_change_what_is_read():
    assert encode(Numbers([1, 2])) == f"{HERE}.Numbers([1,2])"

    class Liar(str):
        def __str__(self) -> str:
            return "lie"

        __repr__ = __cache_key__ = __str__

    assert encode(Liar("a")).endswith("Liar('lie')")
    Liar.__cache_key__ = None
    Liar.__module__, Liar.__qualname__ = HERE, "Liar"
    with mock.patch.object(sys.modules[HERE], "Liar", Liar, create=True):
        assert encode(Liar("a")) == f"{HERE}.Liar('a')"


# What is refused.


def _generator():
    yield


async def _coroutine(): ...


class _Refused:
    """Makes the values when they are asked for, and puts away what has to be closed."""

    def __init__(self) -> None:
        self.closers: list[Any] = []

    def file(self) -> Any:
        file = pathlib.Path(os.devnull).open()  # noqa: SIM115
        self.closers.append(file.close)
        return file

    def socket(self) -> Any:
        made = socket.socket()
        self.closers.append(made.close)
        return made

    def coroutine(self) -> Any:
        made = _coroutine()
        self.closers.append(made.close)
        return made


REFUSED: dict[str, typing.Callable[[_Refused], Any]] = {
    "object": lambda make: object(),
    "plain instance": lambda make: Plain(),
    "lambda": lambda make: lambda: None,
    "nested function": lambda make: factory(),
    "wrapped function": lambda make: decorated.__wrapped__,
    "generator": lambda make: _generator(),
    "coroutine": _Refused.coroutine,
    "file": _Refused.file,
    "socket": _Refused.socket,
    "bytes file": lambda make: io.BytesIO(),
    "lock": lambda make: threading.Lock(),
    "event": lambda make: threading.Event(),
    "thread": lambda make: threading.current_thread(),
    "queue": lambda make: queue.Queue(),
    "logger": lambda make: logging.getLogger(),
    "iterator": lambda make: iter([]),
    "map": lambda make: map(str, []),
    "zip": lambda make: zip((), strict=True),
    "dict view": lambda make: {}.keys(),
    "memoryview": lambda make: memoryview(b""),
    "exception": lambda make: ValueError("x"),
    "weak reference": lambda make: weakref.ref(Plain),
    "random": lambda make: random.Random(1),
    "mock": lambda make: mock.MagicMock(),
    "module not loaded": lambda make: types.ModuleType("math"),
    "dataclass with eq=False": lambda make: ByIdentity(1),
    "dataclass with its own __eq__": lambda make: OwnEquality(1),
    "dataclass and list": lambda make: DataList(1),
    "dataclass without a value": lambda make: Unset(),
    "struct with eq=False": lambda make: LooseRecord(1),
    "struct with its own __eq__": lambda make: OwnRecord(1),
    "str with its own __eq__": lambda make: Folded("a"),
    "list proxy": lambda make: wrapt.ObjectProxy([1]),
    "class proxy": lambda make: wrapt.ObjectProxy(Plain),
    "zone from a file": lambda make: zoneinfo.ZoneInfo.from_file(io.BytesIO(_utc())),
    "mapping proxy": lambda make: MappingProxyType(OneWay()),
    "defaultdict of a lambda": lambda make: defaultdict(lambda: 0),
    "partial of a lambda": lambda make: functools.partial(lambda: 0),
    "method of a plain instance": lambda make: Outer().method,
    "forward reference": lambda make: typing.List["Nowhere"],
    "type variable of nobody": lambda make: typing.TypeVar("nobody"),
    "inner class of the interpreter": lambda make: type(iter([])),
    "user's time zone": lambda make: dt.datetime(2024, 1, 1, tzinfo=Zone()),
    "compiled code": lambda make: compile("", "", "exec"),
    "process": lambda make: subprocess.CompletedProcess("", 0),
}  # fmt: skip


def _utc() -> bytes:
    """Return the smallest file that says: UTC, always."""
    head = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    return head + bytes(6) + b"UTC\0" + head + bytes(6) + b"UTC\0" + b"\nUTC0\n"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_told_apart_is_refused(kind):
    """The message names the kind of value, and whatever holds the value is refused with it."""
    make = _Refused()
    value = REFUSED[kind](make)
    try:
        for held in (value, [value], {"k": (value,)}, Point(value), functools.partial(function, value)):
            with pytest.raises(UnkeyableError) as caught:
                encode(held)
            assert isinstance(caught.value, TypeError)
            assert re.search(r"register_key_type\(|define it|pass |convert", str(caught.value)), caught.value
    finally:
        for close in make.closers:
            close()


def test_the_messages_say_what_to_do():
    with pytest.raises(
        UnkeyableError,
        match=rf"of {HERE}.Plain has no value .*: give it a __cache_key__\(\) method, or .*register_key_type\(Plain, ",
    ):
        encode(Plain())
    with pytest.raises(
        UnkeyableError,
        match=r"an instance of _thread.lock .*: pass what identifies it instead, or .*register_key_type\(lock, ",
    ):
        encode(threading.Lock())
    with pytest.raises(UnkeyableError, match="lambda"):
        encode(lambda: None)
    with pytest.raises(UnkeyableError, match=r"factory.<locals>.inner .* defined at module level"):
        encode(factory())


def test_a_local_class_is_refused_with_advice():
    @dataclasses.dataclass
    class Here:
        x: int

    with pytest.raises(
        UnkeyableError, match=r"Here is a class .* define it at module level, give it a __cache_key__\(\) method"
    ):
        encode(Here(1))


def test_cycles_are_refused():
    cycle: list[Any] = [1]
    cycle.append({"again": cycle})
    holder = Point(1)
    holder.x = holder
    for value in (cycle, holder):
        with pytest.raises(UnkeyableError, match="contains itself"):
            encode(value)


def test_what_is_shared_but_not_cyclic_is_fine():
    """Two references to one list, and two equal lists, are the same argument."""
    shared = [1]
    assert encode([shared, shared]) == encode([[1], [1]]) == "[[1],[1]]"


def test_nesting_without_end_is_refused():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UnkeyableError, match="nested too deeply"):
        encode(deep)
    assert encode([[[[[[[[[[1]]]]]]]]]])


# self of cached methods.


BY_VALUE = [
    User,
    Admin,
    Frozen,
    FrozenRecord,
    Color,
    Size,
    Perm,
    Pair,
    Triple,
    Text,
    Tagged,
    Slotted,
    Blob,
    Real,
    Local,
]
BY_VALUE += [Meta, Rooted, str, tuple, uuid.UUID, decimal.Decimal]
BY_IDENTITY = [Plain, Point, MethodsOnly, OwnEquality, ByIdentity, Record, LooseRecord, Folded, Numbers, list, dict]
BY_IDENTITY += [Settings, type, OptedOut, object, re.Pattern]


@pytest.mark.parametrize("cls", BY_VALUE)
def test_classes_that_count_by_value(cls):
    assert is_value_class(cls)


@pytest.mark.parametrize("cls", BY_IDENTITY)
def test_classes_that_count_by_identity(cls):
    assert not is_value_class(cls)


def test_local_classes_count_by_identity_unless_taught(taught):
    @dataclasses.dataclass(frozen=True)
    class Here:
        x: int

    assert not is_value_class(Here)
    register_key_type(Here, lambda value: value.x)
    assert is_value_class(Here)


def test_frozen_without_equality_counts_by_identity():
    cls = dataclasses.make_dataclass("Loose", ["x"], frozen=True, eq=False)
    cls.__module__ = HERE
    with mock.patch.object(sys.modules[HERE], "Loose", cls, create=True):
        assert not is_value_class(cls)


def test_scalars():
    assert {type(None), bool, int, str, bytes} == SCALARS


def test_nothing_is_imported_for_a_value():
    """The libraries that memo can read are looked for among the loaded modules only."""
    loaded = "sorted({'numpy', 'pandas', 'attr', 'pydantic'} & set(sys.modules))"
    code = f"import sys; from memo.keys.encode import encode; encode([1, {{2}}]); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_library_that_is_half_imported_is_no_trouble(monkeypatch):
    for name in ("numpy", "pandas", "pydantic"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(UnkeyableError):
        encode(Plain())
    assert adapters.foreign_rule(Plain) is None
