"""What is compressed is whole or an error, and never grows beyond its limit."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import CompressedSerializer, JSONSerializer, OptionError, PickleSerializer, SerializationError

METHODS = ["gzip", "zlib"]
OPEN = {"gzip": gzip.decompress, "zlib": zlib.decompress}
PRESS = {"gzip": gzip.compress, "zlib": zlib.compress}

each_method = pytest.mark.parametrize("method", METHODS)


@each_method
@given(value=st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-9, 9)))
def test_what_is_compressed_is_what_any_program_reads(method: str, value: Any) -> None:
    serializer = CompressedSerializer("json", method)
    payload = serializer.dumps(value)
    assert json.loads(OPEN[method](payload)) == value
    assert serializer.loads(payload) == value
    assert serializer.loads(PRESS[method](json.dumps(value).encode())) == value


@each_method
def test_a_payload_is_the_same_each_time(method: str) -> None:
    """No clock reading in it: gzip has a place for one."""
    assert CompressedSerializer("json", method).dumps("a") == CompressedSerializer("json", method).dumps("a")


@each_method
def test_a_bomb_is_an_error_and_takes_no_memory(method: str) -> None:
    stream = zlib.compressobj(9, wbits=31 if method == "gzip" else 15)
    head = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)
    megabyte = stream.compress(bytes(2**20)) + stream.flush(zlib.Z_FULL_FLUSH)  # which may follow itself
    bomb = head + megabyte * 1023 + stream.flush()
    assert len(bomb) < 2**21
    serializer = CompressedSerializer("pickle", method, max_size=2**22)
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError, match="too large, max_size=4194304"):
            serializer.loads(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("layers", [2, 3])
def test_a_layered_bomb_is_an_error_at_the_layer_that_is_too_large(layers: int) -> None:
    bomb = bytes(2**26)
    serializer: Any = PickleSerializer(max_size=2**20)
    for _ in range(layers):
        bomb = zlib.compress(bomb, 9)
        serializer = CompressedSerializer(serializer, "zlib")
    assert len(bomb) < 2**17
    with pytest.raises(SerializationError, match="too large, max_size=1048576"):
        serializer.loads(bomb)


@each_method
@pytest.mark.parametrize("size", [1, 2, 20, 100])
def test_the_limit_is_exact_for_small_payloads_too(method: str, size: int) -> None:
    plain = b"1" * size
    fits = CompressedSerializer(JSONSerializer(), method, max_size=size + 50)
    assert fits.loads(PRESS[method](b"1" + b" " * (size + 49))) == 1
    with pytest.raises(SerializationError, match="too large"):
        fits.loads(PRESS[method](b"1" + b" " * (size + 50)))
    with pytest.raises(SerializationError, match="too large"):
        CompressedSerializer(JSONSerializer(), method, max_size=size).loads(PRESS[method](plain + b" "))


@each_method
def test_what_could_not_be_read_again_is_not_written(method: str) -> None:
    for serializer in (
        CompressedSerializer("json", method, max_size=1000),
        CompressedSerializer(JSONSerializer(max_size=1000), method),
        CompressedSerializer(JSONSerializer(verify=False), method, max_size=1000),
    ):
        assert serializer.loads(serializer.dumps("a" * 998)) == "a" * 998
        with pytest.raises(SerializationError, match="1001 bytes is too large, max_size=1000"):
            serializer.dumps("a" * 999)


@each_method
@given(st.data())
def test_what_is_cut_off_is_an_error(method: str, data: st.DataObject) -> None:
    payload = CompressedSerializer("json", method).dumps({"a": [1] * 50})
    cut = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(SerializationError):
        CompressedSerializer("json", method).loads(payload[:cut])


@each_method
@given(rest=st.binary(min_size=1, max_size=40))
def test_what_has_something_behind_it_is_an_error(method: str, rest: bytes) -> None:
    serializer = CompressedSerializer("json", method)
    with pytest.raises(SerializationError, match="something behind it"):
        serializer.loads(serializer.dumps(1) + rest)
    with pytest.raises(SerializationError, match="something behind it"):
        serializer.loads(serializer.dumps(1) * 2)


@each_method
@given(st.data())
def test_a_byte_that_is_spoilt_is_an_error_or_does_not_matter(method: str, data: st.DataObject) -> None:
    serializer = CompressedSerializer("json", method)
    payload = bytearray(serializer.dumps({"a": [1] * 50}))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert serializer.loads(bytes(payload)) == {"a": [1] * 50}  # such as gzip's mark of the system
    except SerializationError:
        pass


def test_one_method_does_not_read_the_other() -> None:
    with pytest.raises(SerializationError):
        CompressedSerializer("json", "gzip").loads(CompressedSerializer("json", "zlib").dumps(1))


@pytest.mark.parametrize("method", ["bzip2", "", None, 31, ["gzip"]])
def test_an_unknown_method_is_refused(method: Any) -> None:
    with pytest.raises(OptionError, match=r"method=.*: allowed are 'gzip', 'zlib'"):
        CompressedSerializer("json", method)


def test_an_unknown_inner_serializer_is_refused() -> None:
    with pytest.raises(OptionError, match="serializer='xml'"):
        CompressedSerializer("xml")
