"""What was written comes back with the type and the value that it had, for every kind of annotation."""

from __future__ import annotations

import collections.abc
import datetime as dt
import json
import math
import typing
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional, Union
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo import SerializationError
from memo.serializers import NAMES, JSONSerializer, MessagePackSerializer

from .kinds import (
    Address,
    Aliased,
    Box,
    Colour,
    Empty,
    Event,
    Failure,
    Level,
    Model,
    Movie,
    Page,
    Pair,
    Parcel,
    Point,
    Rights,
    Strict,
    T,
    User,
    UserId,
    bound,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ints = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
times = st.datetimes(allow_imaginary=False).map(lambda time: time.replace(fold=0))
instants = times.map(lambda time: time.replace(tzinfo=dt.timezone.utc))
points = st.builds(Point, st.integers(-9, 9), floats)
plain = st.recursive(
    st.none() | st.booleans() | ints | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
users = st.recursive(
    st.builds(User, ints, text), lambda inner: st.builds(User, ints, text, st.lists(inner, max_size=2)), max_leaves=4
)
models = st.recursive(
    st.builds(Model, id=ints, when=st.none() | instants | times, tags=st.sets(text, max_size=3)),
    lambda inner: st.builds(Model, id=ints, inner=inner, path=st.sampled_from([None, "a/b"])),
    max_leaves=3,
)

KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "no annotation": (..., plain),
    "Any": (Any, plain),
    "object": (object, plain),
    "a TypeVar": (T, plain),
    "bare dict": (dict, st.dictionaries(text, plain, max_size=3)),
    "bare list": (list, st.lists(plain, max_size=3)),
    "typing.List": (typing.List, st.lists(plain, max_size=3)),  # noqa: UP006
    "None": (None, st.none()),
    "int": (int, ints),
    "float": (float, floats),
    "bool": (bool, st.booleans()),
    "str": (str, text),
    "bytes": (bytes, st.binary(max_size=20)),
    "bytearray": (bytearray, st.builds(bytearray, st.binary(max_size=20))),
    "datetime": (dt.datetime, times),
    "datetime in UTC": (dt.datetime, instants),
    "date": (dt.date, st.dates()),
    "time": (dt.time, st.times().map(lambda time: time.replace(fold=0))),
    "timedelta": (dt.timedelta, st.timedeltas()),
    "UUID": (UUID, st.uuids()),
    "Decimal": (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    "str Enum": (Colour, st.sampled_from(Colour)),
    "IntEnum": (Level, st.sampled_from(Level)),
    "Flag": (Rights, st.sampled_from([*Rights, Rights.READ | Rights.WRITE])),
    "Literal": (Literal["a", 1], st.sampled_from(["a", 1])),
    "Literal of an Enum": (Literal[Colour.RED, Level.LOW, "a"], st.sampled_from([Colour.RED, Level.LOW, "a"])),
    "Optional Literal of an Enum": (Optional[Literal[Colour.RED]], st.sampled_from([None, Colour.RED])),  # noqa: UP045
    "NewType": (UserId, ints),
    "Annotated": (Annotated[list[User], "of a team"], st.lists(users, max_size=2)),
    "tuple of any length": (tuple[int, ...], st.lists(ints, max_size=4).map(tuple)),
    "tuple of two": (tuple[int, str], st.tuples(ints, text)),
    "bare tuple": (tuple, st.tuples(ints, text)),
    "set": (set[int], st.sets(ints, max_size=4)),
    "frozenset": (frozenset[str], st.frozensets(text, max_size=4)),
    "set of tuples": (set[tuple[int, str]], st.sets(st.tuples(ints, text), max_size=3)),
    "set of dataclasses": (set[Point], st.sets(points, max_size=3)),
    "Sequence": (collections.abc.Sequence[int], st.lists(ints, max_size=3)),
    "Iterable": (collections.abc.Iterable[User], st.lists(users, max_size=3)),
    "list of Iterables": (list[collections.abc.Iterable[Point]], st.lists(st.lists(points, max_size=2), max_size=2)),
    "Mapping": (collections.abc.Mapping[str, int], st.dictionaries(text, ints, max_size=3)),
    "int keys": (dict[int, str], st.dictionaries(ints, text, max_size=3)),
    "date keys": (dict[dt.date, int], st.dictionaries(st.dates(), ints, max_size=3)),
    "UUID keys": (dict[UUID, int], st.dictionaries(st.uuids(), ints, max_size=3)),
    "Enum keys": (dict[Colour, int], st.dictionaries(st.sampled_from(Colour), ints)),
    "TypedDict": (Movie, st.fixed_dictionaries({}, optional={"title": text, "year": ints, "seen": st.dates()})),
    "NamedTuple": (Pair, st.builds(Pair, ints, text)),
    "dataclass": (User, users),
    "frozen dataclass with slots": (Point, points),
    "dataclass without fields": (Empty, st.builds(Empty)),
    "attrs": (Parcel, st.builds(Parcel, floats, st.frozensets(text, max_size=2))),
    "frozen attrs without slots": (Address, st.builds(Address, text, st.none() | ints)),
    "Struct": (Event, st.builds(Event, times, points)),
    "generic Struct": (Box[Point], st.builds(Box, points)),
    "pydantic": (Model, models),
    "strict pydantic": (Strict, st.builds(Strict, day=st.dates(), key=st.uuids())),
    "pydantic with an alias": (Aliased, st.builds(lambda id: Aliased(userId=id), ints)),
    "generic pydantic": (Page[Aliased], st.builds(lambda id: Page[Aliased](items=[Aliased(userId=id)]), ints)),
    "list of pydantic": (list[Model], st.lists(models, max_size=2)),
    "Optional": (Optional[User], st.none() | users),  # noqa: UP045
    "union with None": (Model | None, st.none() | models),
    "union of plain types": (int | str | None, ints | text | st.none()),
    "union of two dataclasses": (User | Failure, users | st.builds(Failure, text)),
    "union of dataclass and pydantic": (Point | Aliased | None, points | st.none() | st.just(Aliased(userId=1))),
    "union of two arrays": (Union[tuple[str, str], list[int], int], st.lists(ints, max_size=2) | ints),  # noqa: UP007
    "list of a union": (list[User | Failure], st.lists(users | st.builds(Failure, text), max_size=3)),
    "dict of a union": (dict[str, Point | Aliased], st.dictionaries(text, points, max_size=2)),
    "nested": (
        dict[str, list[tuple[User, set[int]] | None]],
        st.dictionaries(
            text, st.lists(st.none() | st.tuples(users, st.sets(ints, max_size=2)), max_size=2), max_size=2
        ),
    ),
    "list of a NewType and of a TypeVar": (dict[str, tuple[UserId, T]], st.dictionaries(text, st.tuples(ints, plain))),
    "list of object": (list[object], st.lists(plain, max_size=3)),
}


def same(one: Any, two: Any) -> bool:
    """Not what is tested: by type and the value's own equality, which hypothesis's values do not fake."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, two) and one == two
    return one == two


@pytest.mark.parametrize("name", ["json", "msgpack"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_result_comes_back_as_it_was(name: str, kind: str) -> None:
    annotation, values = KINDS[kind]
    serializer = bound(name, annotation)

    @settings(max_examples=settings().max_examples * 2 // 5)  # of each of so many
    @given(values)
    def check(value: Any) -> None:
        payload = serializer.dumps(value)
        assert same(serializer.loads(payload), value)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_every_serializer_keeps_plain_values_and_annotated_ones(name: str) -> None:
    for annotation, value in [(..., {"a": [1, None, 2.5]}), (list[User], [User(1, "Ada", [User(2)])])]:
        serializer = bound(name, annotation)
        assert serializer.loads(serializer.dumps(value)) == value
        assert serializer.loads(bytearray(serializer.dumps(value))) == value


@given(plain)
def test_json_is_what_any_program_reads(value: Any) -> None:
    assert same(json.loads(JSONSerializer().dumps(value)), value)


@given(plain)
def test_json_of_other_programs_is_read(value: Any) -> None:
    assert same(JSONSerializer().loads(json.dumps(value, indent=2).encode()), value)


def test_json_that_is_already_text_is_read() -> None:
    assert JSONSerializer().loads('{"a": 1}') == {"a": 1}


def test_messagepack_keeps_what_json_cannot() -> None:
    serializer = MessagePackSerializer()
    for value in [b"\xff", {1: 2, None: b""}, [float("inf")]]:
        assert serializer.loads(serializer.dumps(value)) == value
    assert math.isnan(serializer.loads(serializer.dumps(float("nan"))))
    keys = bound("msgpack", dict[tuple[int, int], str])
    assert keys.loads(keys.dumps({(1, 2): "a"})) == {(1, 2): "a"}


@pytest.mark.parametrize("number", [2**63, 2**64 - 1, 10**30, -(10**30)])
def test_large_ints_are_kept_or_refused(number: int) -> None:
    assert JSONSerializer().loads(JSONSerializer().dumps(number)) == number
    try:
        assert MessagePackSerializer().loads(MessagePackSerializer().dumps(number)) == number
    except SerializationError:
        assert not -(2**63) <= number < 2**64


def test_of_a_union_the_member_counts_that_would_write_the_same_again() -> None:
    """`Point` can be made of what `Large` writes, too, since msgspec ignores what it does not know."""
    large = msgspec.defstruct("Large", [("x", int), ("y", float), ("z", int)])
    for union in (Union[Point, large], Union[large, Point]):  # noqa: UP007
        serializer = bound("json", union)
        for value in (Point(1, 2.0), large(1, 2.0, 3)):
            assert type(serializer.loads(serializer.dumps(value))) is type(value)


def test_of_a_union_a_member_that_writes_the_same_otherwise_is_better_than_none() -> None:
    """A payload by another program may be spelt in another way, here with a default left out."""
    serializer = bound("json", Failure | User)
    assert serializer.loads(b'{"id": 1}') == User(1)
    with pytest.raises(SerializationError):
        serializer.loads(b'{"neither": 1}')
