"""Payloads of every release are read for ever: what is in `golden.json` never changes, and new ones are added to it."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
import uuid
from decimal import Decimal
from typing import Any

import pytest

from memo import CompressedSerializer, PickleSerializer

from .kinds import Address, Box, Colour, Event, Failure, Model, Movie, Pair, Parcel, Point, Rights, Strict, User, bound

PATH = pathlib.Path(__file__).with_name("golden.json")
SECRET = "a secret for golden payloads"
UTC = dt.timezone.utc

VALUES: dict[str, tuple[Any, Any]] = {
    "plain": (..., {"id": 7, "name": "Ada", "ok": True, "none": None, "score": 1.5, "tags": ["a", "é"]}),
    "numbers": (..., [0, -1, 2**63, 1e300, -0.0]),
    "bytes": (bytes, b"\x00\xff"),
    "datetime": (list[dt.datetime], [dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(2026, 1, 2, tzinfo=UTC)]),
    "date": (dict[dt.date, dt.time], {dt.date(2026, 1, 2): dt.time(3, 4, 5, 6)}),
    "timedelta": (dt.timedelta, dt.timedelta(1, 2, 3)),
    "UUID": (uuid.UUID, uuid.UUID(int=7)),
    "Decimal": (Decimal, Decimal("1.50")),
    "set": (set[int], {7}),
    "frozenset": (frozenset[str], frozenset({"a"})),
    "tuple": (tuple[int, str], (1, "a")),
    "Enum": (dict[Colour, Rights], {Colour.RED: Rights.READ | Rights.WRITE}),
    "TypedDict": (Movie, {"title": "Alien", "year": 1979, "seen": dt.date(2026, 1, 2)}),
    "NamedTuple": (Pair, Pair(1, "a")),
    "dataclass": (User, User(1, "Ada", [User(2, "Bob")])),
    "attrs": (list[Parcel | Address], [Parcel(1.5, frozenset({"a"})), Address("High Street", 7)]),
    "Struct": (Box[Event], Box(Event(dt.datetime(2026, 1, 2), Point(1, 2.0)))),
    "pydantic": (Model, Model(id=1, tags={"a"}, price=Decimal("1.50"), inner=Model(id=2))),
    "strict pydantic": (Strict, Strict(day=dt.date(2026, 1, 2), key=uuid.UUID(int=7))),
    "union": (list[User | Failure | None], [User(1), Failure("x"), None]),
}
SIGNED = PickleSerializer(secret=SECRET)
SERIALIZERS: dict[str, Any] = {
    "json": "json",
    "msgpack": "msgpack",
    "json+gzip": "json+gzip",
    "msgpack+zlib": "msgpack+zlib",
    "pickle": "pickle",
    "signed pickle": SIGNED,
    "signed pickle+gzip": CompressedSerializer(SIGNED, "gzip"),
}
# Pickles name classes by their modules, so that those of tests are left out: builtin types only.
BUILTIN = ["plain", "numbers", "bytes", "datetime", "date", "timedelta", "UUID", "Decimal", "set", "frozenset", "tuple"]
CASES = [(name, kind) for name in SERIALIZERS for kind in VALUES if "pickle" not in name or kind in BUILTIN]


def written(name: str, kind: str) -> str:
    annotation, value = VALUES[kind]
    payload = bound(SERIALIZERS[name], annotation).dumps(value, f"golden:{kind}")
    return payload.decode() if name == "json" else payload.hex()


GOLDEN: dict[str, dict[str, str]] = json.loads(PATH.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_payloads_of_every_release_are_read(name: str, kind: str) -> None:
    annotation, value = VALUES[kind]
    text = GOLDEN[name][kind]
    payload = text.encode() if name == "json" else bytes.fromhex(text)
    back = bound(SERIALIZERS[name], annotation).loads(payload, f"golden:{kind}")
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("kind", VALUES)
def test_json_is_written_as_ever(kind: str) -> None:
    """Other programs read it. Of compression and pickle another version of their library may write something else."""
    assert written("json", kind) == GOLDEN["json"][kind]
    assert json.loads(GOLDEN["json"][kind]) is not None


def test_every_case_is_there() -> None:
    assert {(name, kind) for name in GOLDEN for kind in GOLDEN[name]} == set(CASES)
