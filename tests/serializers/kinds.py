"""Classes of every kind that results are made of, and how to bind a serializer to an annotation."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import pathlib
import uuid
from decimal import Decimal
from typing import Any, Generic, NamedTuple, NewType, Optional, TypedDict, TypeVar

import attrs
import msgspec
import pydantic

from memo.serializers import Serializer, checked_serializer

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class User:
    id: int
    name: str = ""
    friends: list[User] = dataclasses.field(default_factory=list)  # itself, by a name that is not there yet


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Failure:
    reason: str


@dataclasses.dataclass
class Empty:
    pass


@attrs.define
class Parcel:
    weight: float
    labels: frozenset[str] = frozenset()


@attrs.frozen(slots=False)
class Address:
    street: str
    number: Optional[int] = None  # noqa: UP045


class Event(msgspec.Struct):
    at: dt.datetime
    where: Point


class Box(msgspec.Struct, Generic[T]):
    content: T


class Movie(TypedDict, total=False):
    title: str
    year: int
    seen: dt.date


class Pair(NamedTuple):
    first: int
    second: str = ""


class Model(pydantic.BaseModel):
    id: int
    when: dt.datetime | None = None
    tags: set[str] = set()
    path: pathlib.PurePosixPath | None = None
    price: Decimal | None = None
    inner: Model | None = None


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, frozen=True)
    day: dt.date
    key: uuid.UUID


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr | None = None
    site: pydantic.HttpUrl | None = None
    _note: str = pydantic.PrivateAttr("")


class Plain:
    """A class that no serializer but pickle knows."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


def bound(serializer: str | Serializer, annotation: Any = ..., many: bool = False) -> Serializer:
    """A serializer for the results of a function with that return annotation; without one by default."""

    def function() -> None: ...

    function.__annotations__ = {} if annotation is ... else {"return": annotation}
    made = checked_serializer(serializer)
    assert isinstance(made, Serializer)
    return made.for_function(function, many)
