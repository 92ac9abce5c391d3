"""Whatever bytes are read, they are a value or a SerializationError: nothing else, and soon."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memo import JSONSerializer, PickleSerializer, SerializationError
from memo.serializers import Serializer, network_serializer

from .kinds import Colour, Event, Failure, Model, Movie, Strict, User, bound

ANNOTATIONS: list[Any] = [
    ...,
    User,
    list[User | Failure],
    dict[int, Event],
    Model,
    Strict | None,
    Movie,
    set[Colour],
]
# Not an unsigned pickle: to read one that anybody wrote may run anything.
NAMES = ["json", "msgpack", "json+gzip", "msgpack+zlib"]
READERS = [bound(name, annotation) for name in NAMES for annotation in ANNOTATIONS]
READERS.append(PickleSerializer(secret="0123456789abcdef"))

bytes_of_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["id", "name", "at", "when", "a"]), inner),
).map(lambda value: json.dumps(value).encode())
bytes_of_msgpack = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers(0, 9) | st.sampled_from(["id", "name"]), inner),
).map(msgspec.msgpack.encode)
heads = st.builds(
    lambda code, size, rest: bytes([code]) + struct.pack(">I", size) + rest,
    st.sampled_from([0xC6, 0xC9, 0xDB, 0xDD, 0xDF]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=20),
)


def read(serializer: Serializer, data: Any) -> None:
    try:
        serializer.loads(data, "place")
    except SerializationError as error:
        assert len(str(error)) < 300  # noqa: PT017


@given(st.binary() | bytes_of_json | bytes_of_msgpack | heads)
@example(b"")
@example(b"[" * 100_000)
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff" * 10_000)
@example(b"\xdd\x00\x00\xff\xff" * 20_000)
@example(b"\xdf\xff\xff\xff\xff")
@example(b"9" * 1_000_000)
@example(b"1e999999999")
@example(b'"\\ud800"')
@example(b"\xff\xfe")
@example(b'{"id": ' * 50_000)
def test_any_bytes_are_a_value_or_a_serialization_error(data: bytes) -> None:
    for serializer in READERS:
        read(serializer, data)


@pytest.mark.parametrize("serializer", READERS, ids=repr)
@pytest.mark.parametrize("data", [None, 5, 1.5, object(), [], {}, ..., "\ud800", memoryview(b"abcdef")[::2]], ids=repr)
def test_what_are_no_bytes_is_the_same_error(serializer: Serializer, data: Any) -> None:
    read(serializer, data)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_spoilt_payloads_of_our_own(name: str, data: st.DataObject) -> None:
    """Nearer to what is valid than any random bytes."""
    payload = bytearray(bound(name, User).dumps(User(1, "Ada", [User(2)])))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    for serializer in READERS:
        read(serializer, bytes(payload))


class Wild:
    """A serializer of the user's own that fails in its own way."""

    error: Any = None

    def dumps(self, value: Any) -> Any:
        return value

    def loads(self, data: bytes) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [MemoryError, RecursionError, StopIteration, OSError, AssertionError], ids=repr)
def test_what_a_serializer_of_the_users_own_raises_is_the_same_error(error: Any) -> None:
    wild = Wild()
    wild.error = error
    with pytest.raises(SerializationError, match=f"Wild cannot read a payload .{error.__name__}"):
        network_serializer(wild).loads(b"a")
    with pytest.raises(SerializationError, match=f"Wild cannot keep a bytes .{error.__name__}"):
        network_serializer(wild).dumps(b"a")


def test_no_value_is_in_the_error() -> None:
    with pytest.raises(SerializationError) as caught:
        bound("json", Model).loads(b'{"id": "correct horse"}')
    assert "correct horse" not in str(caught.value)


@pytest.mark.parametrize("serializer", [JSONSerializer(max_size=10), bound(JSONSerializer(max_size=10), list[str])])
def test_a_payload_that_is_too_large_is_neither_written_nor_read(serializer: Serializer) -> None:
    assert serializer.loads(serializer.dumps(["123456"])) == ["123456"]
    with pytest.raises(SerializationError, match="a payload of 11 bytes is too large, max_size=10"):
        serializer.dumps(["1234567"])
    with pytest.raises(SerializationError, match="a payload of 11 bytes is too large, max_size=10"):
        serializer.loads(b'["1234567"]')
