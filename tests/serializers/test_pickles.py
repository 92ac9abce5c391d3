"""Nothing unsigned is unpickled once there is a secret, and a signature is good for one place only."""

from __future__ import annotations

import functools
import hashlib
import hmac
import pickle
import subprocess
import sys
import threading
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memo import CompressedSerializer, OptionError, PickleSerializer, SerializationError
from memo.serializers import network_serializer
from memo.serializers.signing import Signer

SECRET = b"0123456789abcdef"
OTHER = "another secret of more than 16 bytes"
PLACE = "app:get_user(7)"

fired: list[str] = []


def sing() -> None:
    fired.append("unpickled")


class Canary:
    """Sings as soon as it is unpickled."""

    def __reduce__(self) -> Any:
        return (sing, ())


@pytest.fixture(autouse=True)
def silence() -> Any:
    fired.clear()
    yield
    fired.clear()


def signers() -> list[Any]:
    signed = PickleSerializer(secret=SECRET)
    return [signed, CompressedSerializer(signed, "gzip"), CompressedSerializer(CompressedSerializer(signed), "zlib")]


def forged(key: bytes, data: bytes, place: str = PLACE) -> bytes:
    """A payload as `PickleSerializer` writes it, spelt out here once more, without looking at what it contains."""
    derived = hmac.digest(key, b"memo pickle serializer 1", hashlib.sha256)
    context = place.encode()
    mac = hmac.digest(derived, len(context).to_bytes(8, "big") + context + data, hashlib.sha256)
    return b"\x01" + mac + data


def test_the_canary_sings_where_anyone_is_trusted() -> None:
    """Else the tests below would show nothing."""
    PickleSerializer().loads(pickle.dumps(Canary()))
    assert fired == ["unpickled"]
    PickleSerializer(secret=SECRET).loads(forged(SECRET, pickle.dumps(Canary())), PLACE)
    assert fired == ["unpickled"] * 2


CANARY = pickle.dumps(Canary(), protocol=5)
SIGNED = forged(SECRET, CANARY)
ATTACKS = {
    "unsigned": CANARY,
    "unsigned, marked": b"\x01" + CANARY,
    "a mac of zeros": b"\x01" + bytes(32) + CANARY,
    "no mac": b"\x01" + CANARY,
    "another secret": forged(OTHER.encode(), CANARY),
    "another place": forged(SECRET, CANARY, "app:get_user(8)"),
    "a place that begins in the same way": forged(SECRET, CANARY, PLACE[:-1]),
    "a plain hash": b"\x01" + hashlib.sha256(CANARY).digest() + CANARY,
    "the secret itself as key": b"\x01" + hmac.digest(SECRET, CANARY, hashlib.sha256) + CANARY,
    "a mac cut off": SIGNED[:20] + CANARY,
    "another byte in the mac": SIGNED[:5] + bytes([SIGNED[5] ^ 1]) + SIGNED[6:],
    "another mark": b"\x02" + SIGNED[1:],
    "no mark": SIGNED[1:],
    "more behind": SIGNED + b".",
    "cut off": SIGNED[:-1],
    "twice": SIGNED + SIGNED,
    "nothing": b"",
    "the mark": b"\x01",
}


@pytest.mark.parametrize("payload", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("serializer", signers(), ids=repr)
def test_with_a_secret_nothing_else_is_ever_unpickled(serializer: Any, payload: bytes) -> None:
    for data in (payload, bytearray(payload), memoryview(payload)):
        with pytest.raises(SerializationError, match="not signed with the secret"):
            serializer.loads(data, PLACE)
    assert fired == []


@given(st.data())
def test_no_other_bytes_than_what_was_signed_are_unpickled(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(SIGNED) - 1))
    changed = bytearray(SIGNED)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SerializationError):
        PickleSerializer(secret=SECRET).loads(bytes(changed), PLACE)
    assert fired == []


@given(st.text(max_size=5), st.text(max_size=5))
def test_a_payload_is_good_in_its_own_place_only(here: str, there: str) -> None:
    serializer = PickleSerializer(secret=SECRET)
    payload = serializer.dumps({1, 2}, here)
    assert serializer.loads(payload, here) == {1, 2}
    if here != there:
        with pytest.raises(SerializationError):
            serializer.loads(payload, there)


def test_a_place_may_be_any_text() -> None:
    serializer = PickleSerializer(secret=SECRET)
    assert serializer.loads(serializer.dumps(1, "\ud800"), "\ud800") == 1


def test_where_a_place_ends_and_the_payload_begins_is_signed_too() -> None:
    signer = Signer(SECRET, b"test")
    assert signer.verified(signer.signed(b"bc", "a"), "a") == b"bc"
    moved = signer.signed(b"bc", "a")[:33] + b"c"
    assert signer.verified(moved, "ab") is None


def test_what_is_signed_for_one_purpose_is_not_for_another() -> None:
    assert Signer(SECRET, b"one").verified(Signer(SECRET, b"two").signed(b"x", "a"), "a") is None


def test_a_secret_is_changed_by_a_list_with_the_newest_first() -> None:
    old, new = PickleSerializer(secret=SECRET), PickleSerializer(secret=[OTHER, SECRET])
    assert new.loads(old.dumps(1, PLACE), PLACE) == 1
    assert PickleSerializer(secret=OTHER).loads(new.dumps(2, PLACE), PLACE) == 2
    with pytest.raises(SerializationError):
        old.loads(new.dumps(2, PLACE), PLACE)


def test_text_and_its_bytes_are_one_secret() -> None:
    payload = PickleSerializer(secret=OTHER).dumps(1)
    assert PickleSerializer(secret=OTHER.encode()).loads(payload) == 1


def test_a_signed_payload_is_nothing_to_one_without_a_secret() -> None:
    """A setting that was forgotten is a miss, not a value."""
    with pytest.raises(SerializationError):
        PickleSerializer(trusted=True).loads(SIGNED, PLACE)
    assert fired == []


def test_signing_is_of_the_compressed_bytes_so_that_nothing_else_is_decompressed() -> None:
    bomb = CompressedSerializer("pickle", "zlib", max_size=10_000_000).dumps(bytes(5_000_000))
    with pytest.raises(SerializationError, match="not signed"):
        CompressedSerializer(PickleSerializer(secret=SECRET), "zlib", max_size=100).loads(bomb)


@pytest.mark.parametrize(
    "secret",
    [b"", "short", b"123456789012345", 5, [], (), [SECRET, "short"], [SECRET, 5], {SECRET}, bytearray(SECRET), True],
)
def test_what_is_no_secret_is_refused_and_not_shown(secret: Any) -> None:
    with pytest.raises(OptionError, match="secret=") as caught:
        PickleSerializer(secret=secret)
    assert "123456789012345" not in str(caught.value)
    assert "short'" not in str(caught.value)


def test_the_secret_is_in_no_representation() -> None:
    for serializer in signers():
        shown = repr(serializer) + str(serializer) + repr(vars(serializer))
        assert SECRET.decode() not in shown
        assert "signed" in repr(serializer)
    assert repr(PickleSerializer()) == "PickleSerializer()"
    assert repr(PickleSerializer(trusted=True)) == "PickleSerializer(trusted)"


@pytest.mark.parametrize("trusted", [None, 1, "yes", 0])
def test_trusted_is_true_or_false(trusted: Any) -> None:
    with pytest.raises(OptionError, match="trusted="):
        PickleSerializer(trusted=trusted)


def test_trust_beside_a_secret_is_refused() -> None:
    with pytest.raises(OptionError, match="trusted=True beside secret="):
        PickleSerializer(secret=SECRET, trusted=True)


UNSAFE = [
    "pickle",
    "pickle+gzip",
    PickleSerializer(),
    CompressedSerializer("pickle"),
    CompressedSerializer(CompressedSerializer("pickle")),
    pickle,
    CompressedSerializer(pickle),
    types.SimpleNamespace(dumps=pickle.dumps, loads=pickle._loads),  # type: ignore[attr-defined]
    types.SimpleNamespace(dumps=pickle.dumps, loads=functools.partial(pickle.loads, fix_imports=False)),
    types.SimpleNamespace(dumps=pickle.dumps, loads=functools.partial(functools.partial(pickle.loads), encoding="x")),
    __import__("marshal"),
]


@pytest.mark.parametrize("serializer", UNSAFE, ids=repr)
def test_a_network_store_can_refuse_to_unpickle_what_anyone_wrote(serializer: Any) -> None:
    with pytest.raises(OptionError, match=r"PickleSerializer\(secret=\.\.\.\)"):
        network_serializer(serializer)


def test_a_json_that_makes_any_object_counts_as_a_pickle() -> None:
    jsonpickle = types.ModuleType("jsonpickle")
    exec("def dumps(value): ...\ndef loads(data): ...", {"__name__": "jsonpickle.unpickler"}, vars(jsonpickle))
    with pytest.raises(OptionError, match=r"PickleSerializer\(secret=\.\.\.\)"):
        network_serializer(jsonpickle)


@pytest.mark.parametrize("options", [{"secret": SECRET}, {"trusted": True}], ids=repr)
def test_a_network_store_takes_what_is_signed_or_trusted(options: Any) -> None:
    serializer = PickleSerializer(**options)
    assert network_serializer(serializer) is serializer
    assert network_serializer(CompressedSerializer(serializer)).loads(CompressedSerializer(serializer).dumps(1)) == 1


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        threading.RLock(),
        threading.Event(),
        lambda: 1,
        generator(),
        sys.stdout,
        sys._getframe(),
        types.ModuleType("module"),
        memoryview(b"a"),
        Unpicklable(),
        type("Local", (), {})(),
        iter({1: 1}.keys()).__class__,
        threading.current_thread(),
        subprocess.Popen,
        {"deep": [threading.Lock()]},
        (generator(),),
        property(lambda self: 1),
        types.MappingProxyType({}),
        super(Canary, Canary()),
        type("Other", (), {}),
        {1: 2}.items(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_pickled_is_one_kind_of_error(value: Any) -> None:
    try:
        PickleSerializer(secret=SECRET).dumps(value)
    except SerializationError as error:
        assert "PickleSerializer(signed) cannot keep a" in str(error)  # noqa: PT017
    else:
        assert isinstance(value, type)  # a class that is found by its name


def test_a_class_that_has_another_name_in_the_next_process_is_an_error_when_read(tmp_path: Any) -> None:
    """A deployment renames `Old` to `New`: what the last one wrote cannot be read, which a store takes for a miss."""
    write = (
        "import sys; from memo import PickleSerializer\nclass Old: pass\n"
        "sys.modules['shop'] = sys.modules['__main__']; Old.__module__ = 'shop'\n"
        "sys.stdout.write(PickleSerializer(secret='0123456789abcdef').dumps(Old()).hex())"
    )
    read = (
        "import sys; from memo import PickleSerializer, SerializationError\nclass New: pass\n{}\n"
        "try: PickleSerializer(secret='0123456789abcdef').loads(bytes.fromhex(sys.argv[1]))\n"
        "except SerializationError as error: print(error)"
    )

    def run(program: str, *args: str) -> str:
        command = [sys.executable, "-c", program, *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    payload = run(write)
    renamed = run(read.format("sys.modules['shop'] = sys.modules['__main__']"), payload)
    assert renamed == "PickleSerializer(signed) cannot read a payload (AttributeError)"
    gone = run(read.format(""), payload)
    assert gone == "PickleSerializer(signed) cannot read a payload (ModuleNotFoundError)"


class Moody:
    """Cannot be read back once its mood has changed."""

    error: type[Exception] | None = None

    def __setstate__(self, state: Any) -> None:
        if self.error is not None:
            raise self.error

    def __getstate__(self) -> Any:
        return {"x": 1}


@pytest.mark.parametrize("error", [ValueError, MemoryError, RecursionError, StopIteration, KeyError], ids=repr)
def test_whatever_a_class_raises_when_it_is_read_is_one_kind_of_error(error: type[Exception]) -> None:
    serializer = PickleSerializer()
    payload = serializer.dumps(Moody())
    Moody.error = error
    try:
        with pytest.raises(SerializationError, match=error.__name__):
            serializer.loads(payload)
        with pytest.raises(SerializationError, match=error.__name__):
            serializer.dumps(Moody())
    finally:
        Moody.error = None


def test_ctrl_c_in_a_class_of_the_user_is_no_error_of_ours() -> None:
    payload = PickleSerializer().dumps(Moody())
    Moody.error = KeyboardInterrupt  # type: ignore[assignment]
    try:
        with pytest.raises(KeyboardInterrupt):
            PickleSerializer().loads(payload)
    finally:
        Moody.error = None
