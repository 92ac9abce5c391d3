"""What would come back different is not kept, and the error says where, how, and what to do; liars are found out."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import functools
import ipaddress
import json
import pathlib
import pickle
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest

from memo import (
    CompressedSerializer,
    JSONSerializer,
    MessagePackSerializer,
    PickleSerializer,
    SerializationError,
    StoreError,
)
from memo.serializers import network_serializer
from memo.serializers.fidelity import LONGEST, difference

from .kinds import (
    Colour,
    Empty,
    Event,
    Failure,
    Model,
    Pair,
    Parcel,
    Plain,
    Point,
    Rights,
    Secretive,
    Text,
    User,
    Whole,
    bound,
)

NAN = float("nan")
NOON = dt.datetime(2026, 7, 1, 12)
cycle: list[Any] = []
cycle.append(cycle)
deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]


@dataclasses.dataclass
class Sub(User):
    pass


@dataclasses.dataclass
class Rounded:
    """Changes what it is made of, each time."""

    price: float

    def __post_init__(self) -> None:
        self.price += 0.5


@attrs.define
class Hiding:
    _x: int
    _y: int = 0


class Priced(pydantic.BaseModel):
    price: float


@dataclasses.dataclass
class Liar:
    """Calls everything equal to it."""

    x: Any

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


class Loose(dict[str, int]):
    pass


def with_extra(thing: Any, name: str) -> Any:
    setattr(thing, name, "x")
    return thing


UNFAITHFUL: dict[str, tuple[Any, Any, str]] = {
    "int for float": (float, 1, "an int would come back as a float"),
    "int for float, deep inside": (
        dict[str, list[float]],
        {"a": [1.0, 2]},
        r"at \{\}\[\]: an int would come",
    ),
    "int in a field for float": (Point, Point(1, 2), r"at \.y: an int would come back as a float"),
    "tuple for list": (list[int], (1, 2), "a tuple would come back as a list"),
    "tuple without annotation": (..., {"a": (1,)}, r"at \{\}: a tuple would come back as a list"),
    "list for tuple": (tuple[int, ...], [1], "a list would come back as a tuple"),
    "list for set": (set[int], [1], "a list would come back as a set"),
    "set for frozenset": (frozenset[int], {1}, "a set would come back as a frozenset"),
    "set without annotation": (..., [{1}], r"at \[\]: a set would come back as a list"),
    "frozenset without annotation": (..., frozenset({1}), "a frozenset would come back as a list"),
    "OrderedDict": (..., collections.OrderedDict(a=1), "collections.OrderedDict would come back as a dict"),
    "OrderedDict for dict": (dict[str, int], collections.OrderedDict(a=1), "OrderedDict would come back as a dict"),
    "Counter": (dict[str, int], collections.Counter("a"), "Counter would come back as a dict"),
    "subclass of a dataclass": (User, Sub(1), "Sub would come back as a tests.serializers.kinds.User"),
    "dataclass without annotation": (
        ...,
        [User(1)],
        r"at \[\]: a tests.serializers.kinds.User would come back as a dict",
    ),
    "NamedTuple without annotation": (..., Pair(1), "Pair would come back as a list"),
    "NamedTuple for tuple": (tuple[int, str], Pair(1), "Pair would come back as a tuple"),
    "subclass of str": (str, Text("a"), "cannot keep a tests.serializers.kinds.Text"),
    "subclass of str inside": (..., [Text("a")], "cannot keep a list"),
    "subclass of int": (int, Whole(1), "cannot keep a tests.serializers.kinds.Whole"),
    "subclass of list": (list[int], collections.UserList([1]), "UserList"),
    "bool for int": (int, True, "cannot keep a bool"),
    "int for bool": (bool, 1, "cannot keep an int"),
    "bool in a set of ints": (set[int], {True}, "cannot keep a set"),
    "str for a number": (int, "1", "cannot keep a str"),
    "Enum without annotation": (..., {"a": Colour.RED}, "Colour would come back as a str"),
    "Enum for str": (str, Colour.RED, "Colour would come back as a str"),
    "str for Enum": (Colour, "red", "a str would come back as a tests.serializers.kinds.Colour"),
    "Enum keys without annotation": (
        ...,
        {Colour.RED: 1},
        r"at \{key\}: a .*Colour would come back as",
    ),
    "date without annotation": (..., dt.date(2026, 1, 1), "a datetime.date would come back as a str"),
    "UUID without annotation": (..., uuid.uuid4(), "a uuid.UUID would come back as a str"),
    "Decimal without annotation": (..., decimal.Decimal(1), "a decimal.Decimal would come back as a str"),
    "a named zone": (dt.datetime, NOON.replace(tzinfo=ZoneInfo("Europe/Paris")), "cannot keep a datetime.datetime"),
    "a zone named UTC": (
        dt.datetime,
        NOON.replace(tzinfo=ZoneInfo("UTC")),
        r"at \.tzinfo: a zoneinfo.ZoneInfo",
    ),
    "a named offset": (dt.datetime, NOON.replace(tzinfo=dt.timezone(dt.timedelta(0), "GMT")), r"tzinfo: .* changed"),
    "an offset with seconds": (
        dt.datetime,
        NOON.replace(tzinfo=dt.timezone(dt.timedelta(seconds=1))),
        "changed|cannot",
    ),
    "the second of two equal times": (dt.datetime, NOON.replace(fold=1), "a datetime.datetime would come back changed"),
    "a time with fold": (dt.time, dt.time(1, fold=1), "a datetime.time would come back changed"),
    "a private field": (Hiding, Hiding(1), "cannot keep a tests.serializers.test_fidelity.Hiding"),
    "a private field with a default": (Hiding, Hiding(1, 2), "cannot keep a tests.serializers.test_fidelity.Hiding"),
    "NaN in a model": (Priced, Priced(price=NAN), "cannot keep a tests.serializers.test_fidelity.Priced"),
    "an attribute that is no field": (
        Failure,
        with_extra(Failure("x"), "extra"),
        r"at \.extra: the attribute would be lost",
    ),
    "a class that changes its fields": (Rounded, Rounded(1.0), r"at \.price: a float would come back changed"),
    "a liar": (Liar, Liar((1,)), r"at \.x: a tuple would come back as a list"),
    "a liar in a set": (set[Liar], {Liar((1,))}, r"at \{\}\.x: a tuple would come back as a list"),
    "a liar as a key": (Liar, Liar({"a": Liar(1)}), r"at \.x\{\}: a .*Liar would come back as a dict"),
    "a secret": (Secretive, Secretive(password="abc"), r"at \.password\._secret_value: a str would come back changed"),
    "a private attribute": (
        Secretive,
        with_extra(Secretive(), "_note"),
        r"at \.__pydantic_private__\{\}: a str would come back changed",
    ),
    "a complex number": (complex, 1j, "cannot keep a complex"),
    "a plain object": (Plain, Plain(), "cannot keep a tests.serializers.kinds.Plain"),
    "a lone surrogate": (str, "\ud800", "cannot keep a str .UnicodeEncodeError"),
    "a cycle": (..., cycle, "cannot keep a list .RecursionError"),
    "too deep": (..., deep, "cannot keep a list .RecursionError"),
    "an exception": (..., ValueError("x"), "cannot keep a ValueError"),
}
ONLY_JSON: dict[str, tuple[Any, Any, str]] = {
    "NaN": (float, NAN, "cannot keep a float"),
    "NaN without annotation": (..., [NAN], r"at \[\]: a float would come back as a NoneType"),
    "infinity": (..., {"a": float("inf")}, r"at \{\}: a float would come back as a NoneType"),
    "int keys": (..., {1: "a"}, r"at \{key\}: an int would come back as a str"),
    "bytes": (..., b"a", "a bytes would come back as a str"),
    "None as a key": (..., {None: 1}, "cannot keep a dict"),
    "tuples as keys": (dict[tuple[int, int], int], {(1, 2): 3}, "cannot keep a dict"),
}

CASES = [
    *((name, kind, *row) for name in ("json", "msgpack", "json+zlib") for kind, row in UNFAITHFUL.items()),
    *(("json", kind, *row) for kind, row in ONLY_JSON.items()),
    ("msgpack", "an offset", dt.datetime, NOON.replace(tzinfo=dt.timezone(dt.timedelta(hours=2))), "changed"),
    ("msgpack", "a huge int", ..., 2**64, "cannot keep an int .OverflowError"),
]


@pytest.mark.parametrize(
    ("name", "annotation", "value", "found"),
    [row[:1] + row[2:] for row in CASES],
    ids=[f"{r[0]}-{r[1]}" for r in CASES],
)
def test_what_would_come_back_different_is_an_error(name: str, annotation: Any, value: Any, found: str) -> None:
    with pytest.raises(SerializationError, match=found) as caught:
        bound(name, annotation).dumps(value)
    assert isinstance(caught.value, StoreError)
    for way_out in ("annotate", "PickleSerializer", "verify=False"):
        assert way_out in str(caught.value)


def test_minus_zero_is_not_zero() -> None:
    for name in ("json", "msgpack"):
        back = bound(name, float).loads(bound(name, float).dumps(-0.0))
        assert str(back) == "-0.0"
    assert difference(-0.0, 0.0, repr) == ": a float would come back changed"
    assert difference([-0.0], [0.0], None) == " at []: a float would come back changed"
    assert difference(complex(0, -0.0), complex(0, 0.0), None) is not None
    assert difference(NAN, float("nan"), None) is None


@pytest.mark.parametrize("make", [JSONSerializer, MessagePackSerializer])
def test_without_the_check_what_can_be_written_is_kept_changed(make: Any) -> None:
    serializer = make(verify=False)
    assert serializer.loads(serializer.dumps({"a": (1, 2)})) == {"a": [1, 2]}
    compressed = CompressedSerializer(serializer, "zlib")
    assert compressed.loads(compressed.dumps((1, 2))) == [1, 2]
    with pytest.raises(SerializationError):
        serializer.dumps(Plain())


def test_the_error_shows_no_value() -> None:
    secret = "correct horse"
    for value in [{secret: (secret,)}, User(1, secret, [Sub(1, secret)]), {secret: Plain(secret)}, Text(secret)]:
        for annotation in (..., User, int, list[Secretive]):
            with pytest.raises(SerializationError) as caught:
                bound("json", annotation).dumps(value)
            assert secret not in str(caught.value)


def test_the_error_is_of_bounded_length() -> None:
    value: Any = (1,)
    for _ in range(60):
        value = [{"a": value}]
    with pytest.raises(SerializationError) as caught:
        JSONSerializer().dumps(value)
    assert "..." in str(caught.value)
    assert len(str(caught.value)) < LONGEST + 400


def test_what_is_computed_from_the_rest_need_not_come_back() -> None:
    @dataclasses.dataclass
    class Circle:
        radius: float

        @functools.cached_property
        def area(self) -> float:
            return 3 * self.radius**2

    circle = Circle(2.0)
    assert circle.area == 12
    serializer = bound("json", Circle)
    assert serializer.loads(serializer.dumps(circle)) == circle


def test_nor_need_it_where_attrs_has_a_slot_for_it() -> None:
    @attrs.define
    class Circle:
        radius: float

        @functools.cached_property
        def area(self) -> float:
            return 3 * self.radius**2

    @attrs.define
    class Wheel(Circle):
        spokes: int

    wheel = Wheel(2.0, 9)
    assert wheel.area == 12
    serializer = bound("json", Wheel)
    assert serializer.loads(serializer.dumps(wheel)) == wheel
    assert difference(wheel, Wheel(2.0, 8), msgspec.json.encode) is not None
    assert difference(wheel, Wheel(1.0, 9), msgspec.json.encode) is not None


def test_which_fields_of_a_model_were_set_is_not_compared() -> None:
    serializer = bound("json", Model)
    assert serializer.loads(serializer.dumps(Model(id=1))) == Model(id=1)


def test_a_model_in_utc_comes_back_in_utc_of_another_class() -> None:
    """pydantic has its own class for an offset, which says what `timezone` says."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    serializer = bound("json", Model)
    back = serializer.loads(serializer.dumps(Model(id=1, when=now)))
    assert back == Model(id=1, when=now)
    assert serializer.loads(serializer.dumps(back)) == back
    named = Model(id=1, when=now.replace(tzinfo=dt.timezone(dt.timedelta(hours=2), "EET")))
    with pytest.raises(SerializationError, match="tzinfo"):
        serializer.dumps(named)


def test_models_may_have_fields_of_types_that_only_pydantic_knows() -> None:
    serializer = bound("json", Secretive)
    value = Secretive(site="https://example.org/a")  # type: ignore[arg-type]
    assert serializer.loads(serializer.dumps(value)) == value


# Most of these can only come from pickles and from serializers of the user's own.
PAIRS = (
    (ipaddress.ip_address("::1"), ipaddress.ip_address("::2")),
    (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("10.0.0.0/9")),
    (pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b")),
    (collections.deque([1]), collections.deque([2])),
    (collections.deque([1]), collections.deque([1, 1])),
    (collections.OrderedDict(a=1), collections.OrderedDict(a=2)),
    (collections.OrderedDict(a=1), collections.OrderedDict(a=1, b=2)),
    (collections.defaultdict(int, a=1), collections.defaultdict(str, a=1)),
    (frozenset({1}), frozenset({True})),
    ({1}, {2}),
    ({1}, {1, 2}),
    (dt.date(2026, 1, 1), dt.date(2026, 1, 2)),
    (dt.time(1), dt.time(2)),
    (dt.timedelta(1), dt.timedelta(2)),
    (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
    (uuid.UUID(int=1), uuid.UUID(int=2)),
    (bytearray(b"a"), bytearray(b"b")),
    (Text("a"), Text("b")),
    (Whole(1), Whole(2)),
    (Rights.READ, Rights.WRITE),
    (Pair(1), Pair(2)),
    (Point(1), Point(2)),
    (Parcel(1.0), Parcel(2.0)),
    (Event(NOON, Point(1)), Event(NOON, Point(2))),
    (Plain(1), Plain(2)),
    (1j, 2j),
    ([1], [1, 2]),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": 1}, {"b": 1}),
    ({1: 1}, {True: 1}),
    (msgspec.Raw(b"1"), msgspec.Raw(b"2")),
)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[0])[:40])
def test_every_kind_of_value_is_told_from_another_and_not_from_its_copy(pair: tuple[Any, Any]) -> None:
    one, two = pair
    assert difference(one, two, msgspec.json.encode) is not None
    assert difference([one], [two], msgspec.json.encode) is not None
    copy = msgspec.Raw(b"1") if isinstance(one, msgspec.Raw) else pickle.loads(pickle.dumps(one))
    assert difference(one, copy, msgspec.json.encode) is None
    assert difference([one], [copy], None) is None


def test_subclasses_of_builtin_types_are_compared_by_content_and_by_state() -> None:
    raw = type("Raw", (bytes,), {})
    assert difference(raw(b"a"), raw(b"b"), repr) == difference(raw(b"a"), raw(b"c"), repr) is not None
    assert difference(raw(b"a"), raw(b"a"), repr) is None
    one, two = Loose(a=1), Loose(a=1)
    assert difference(one, two, repr) is None
    two.note = 1  # type: ignore[attr-defined]
    assert difference(one, two, repr) == " at .note: the attribute would come back too"
    assert difference(two, one, repr) == " at .note: the attribute would be lost"


def test_a_slot_that_is_empty_is_an_attribute_that_is_not_there() -> None:
    class Slotted:
        __slots__ = ("x",)

    empty, full = Slotted(), Slotted()
    full.x = 1
    assert difference(empty, Slotted(), lambda value: b"") is None
    assert difference(empty, full, repr) == " at .x: the attribute would come back too"


def test_an_object_of_unknown_insides_is_compared_by_its_bytes() -> None:
    assert difference(Empty(), Empty(), msgspec.json.encode) is None
    assert difference(object(), object(), lambda value: b"") is None
    written = iter([b"1", b"2"])
    assert difference(object(), object(), lambda value: next(written)) == ": an object would come back changed"


def test_a_pickle_is_compared_too_as_far_as_classes_do_not_decide() -> None:
    class Turned:
        def __reduce__(self) -> Any:
            return (str, ("turned",))

    with pytest.raises(SerializationError, match=r"at \{\}: a .*Turned would come back as a str; verify=False"):
        PickleSerializer().dumps({"a": Turned()})
    assert pickle.loads(PickleSerializer(verify=False).dumps({"a": Turned()})) == {"a": "turned"}


def test_a_pickle_may_hold_sets_of_objects_that_equal_nothing_but_themselves() -> None:
    class Turned(Plain):
        def __reduce__(self) -> Any:
            return (Plain, ())

    serializer = PickleSerializer()
    for value in ({Plain(1), Plain(2), "text"}, frozenset({Plain(1)}), [{Plain(1)}]):
        back = serializer.loads(serializer.dumps(value))
        assert type(back) is type(value)
        assert len(back) == len(value)
    for changed in ({Turned()}, {Turned(), Plain()}, {(Turned(),)}):
        with pytest.raises(SerializationError, match="would come back changed"):
            serializer.dumps(changed)
    assert difference({Plain(1)}, {"text"}, None) is not None
    assert difference({"text"}, {"another"}, None) is not None
    assert difference({Plain(1)}, {Plain(1)}, repr) is not None, "no pickle: it is the content that counts"


def test_a_pickle_may_hold_a_cycle_and_an_object_many_times_over() -> None:
    serializer = PickleSerializer()
    back = serializer.loads(serializer.dumps(cycle))
    assert back[0] is back
    laughs: list[Any] = ["ha"]
    for _ in range(60):  # written out it would have 2 to the 60 leaves
        laughs = [laughs, laughs]
    back = serializer.loads(serializer.dumps(laughs))
    assert back[0] is back[1]


def test_a_serializer_of_the_users_own_is_checked_where_a_function_would_get_something_else() -> None:
    with pytest.raises(SerializationError, match="json cannot keep a tuple: a tuple would come back as a list"):
        network_serializer(json).dumps((1, 2))


def test_a_value_that_changes_meanwhile_is_refused() -> None:
    class Changing:
        verify = True

        def dumps(self, value: dict[str, int]) -> bytes:
            written = json.dumps(value).encode()
            value["more"] = 1
            return written

        loads = staticmethod(json.loads)

    with pytest.raises(SerializationError, match="a dict would come back changed"):
        network_serializer(Changing()).dumps({"a": 1})
