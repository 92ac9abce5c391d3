"""With a secret nothing is unpickled but what was written by who knows it; without one, who writes is trusted."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import traceback
from zlib import crc32

import pytest

from memo import OptionError, StoreError, cache_aside
from memo.serializers.signing import signing_keys
from memo.stores import frames

OLD, NEW, OTHER = (name * 8 for name in (b"old!", b"new!", b"else"))
SECRETS = [OLD.decode(), NEW.decode(), OTHER.decode()]


class Canary:
    """A value that makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "the canary has sung"


@pytest.fixture
def payload(marker):
    return pickle.dumps(Canary(marker))


@pytest.fixture
def signed(path, make):
    """A store that signs, with an entry of each kind."""
    store = make(secret=OLD)
    store.set("a", "genuine")
    store.set("number", 7)
    return store


def identity(path):
    """What anybody knows who can read the file: its id, and not the secret."""
    return frames.Identity(path.read_bytes()[12:28], (b"not the secret",))


def record(path, key, payload, *, mac=None, flags=0, owner="", offset=None):
    """Return a record that is right in every way that needs no secret, with a mac of one's choice."""
    offset = path.stat().st_size if offset is None else offset
    start, body, own, seal = identity(path).record(
        offset, 0, frames.Kind.VALUE, flags, key.encode(), owner.encode(), payload, 0.0, float("inf")
    )
    return start + body + (own if mac is None else mac) + seal


def append(path, data):
    with open(path, "ab") as file:
        file.write(data)


def put(path, key, payload, **more):
    append(path, record(path, key, payload, **more))


def mac_of(path, key):
    """The genuine mac of the first record at a key."""
    return genuine(path, key)[2]


def genuine(path, key="trap"):
    """Return offset, payload and mac of the first genuine record at a key."""
    data, here, start = path.read_bytes(), identity(path), frames.HEADER
    while True:
        head = here.head(data, start, start)
        at = start + frames.HEAD + head.key + head.meta
        if data[start + frames.HEAD : at] == key.encode():
            return start, data[at : at + head.payload], data[at + head.payload : at + head.payload + frames.MAC]
        start += here.length(head)


def use(store, key="a"):
    """Do all that reads a value, or moves one; what may fail loud may."""
    f = cache_aside(store=store, namespace="f")(lambda x: "loaded")
    f(1), f.ttl_left(1)
    seen = [store.get(key), store.get_many([key, "trap"][:1]).get(key)]
    store.exists(key), store.ttl(key), store.keys(), store.cleanup(), store.stats()
    for operation in (
        lambda: store.expire(key, 60),
        lambda: store.increment(key),
        store.compact,
        lambda: f.peek(1),
        lambda: store.delete_pattern("no*"),
    ):
        try:
            operation()
        except (StoreError, ValueError):
            pass
    return seen


# -- what an attacker without the secret may write --------------------------------------------------------------------

FORGERIES = {
    "no mac that is right": lambda path, payload: put(path, "a", payload),
    "a mac of zeros": lambda path, payload: put(path, "a", payload, mac=bytes(32)),
    "a mac that is cut off": lambda path, payload: put(path, "a", payload, mac=mac_of(path, "a")[:16]),
    "a mac of no length": lambda path, payload: put(path, "a", payload, mac=b""),
    "the mac of another value of the key": lambda path, payload: put(path, "a", payload, mac=mac_of(path, "a")),
    "the mac of another key": lambda path, payload: put(path, "a", payload, mac=mac_of(path, "number")),
    "a number by its flags": lambda path, payload: put(path, "a", payload, flags=frames.Flags.NUMBER),
    "a number with the mac of one": lambda path, payload: put(
        path, "a", payload, flags=frames.Flags.NUMBER, mac=mac_of(path, "number")
    ),
    "of a function": lambda path, payload: put(path, "f(1)", payload, owner="f"),
    "without a mac, as in a file that is not signed": lambda path, payload: append(
        path,
        b"".join(
            frames.Identity(path.read_bytes()[12:28], ()).record(
                path.stat().st_size, 0, frames.Kind.VALUE, 0, b"a", b"", payload, 0.0, float("inf")
            )
        ),
    ),
}


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_record_by_who_has_no_secret_is_never_unpickled(path, make, signed, payload, marker, forgery, reopened):
    FORGERIES[forgery](path, payload)
    store = make(secret=OLD) if reopened else signed
    assert all(value in (None, "genuine") for value in use(store))
    assert not marker.exists()
    assert store.get("a") != payload
    store.set("a", "new")
    assert store.get("a") == "new"


def test_the_canary_would_sing(path, signed, payload, marker, monkeypatch):
    """What the tests above rest on: the mac alone is what keeps it silent."""
    put(path, "a", payload)
    monkeypatch.setattr(frames.hmac, "compare_digest", lambda one, two: True)
    signed.get("a")
    assert marker.exists()


def test_macs_are_compared_in_constant_time(path, make, monkeypatch):
    real, compared = frames.hmac.compare_digest, []

    def compare_digest(one, two):
        compared.append((len(one), len(two)))
        return real(one, two)

    monkeypatch.setattr(frames.hmac, "compare_digest", compare_digest)
    store = make(secret=OLD)
    store.set("a", 1)
    before = len(compared)
    assert store.get("a") == 1
    assert len(compared) == before + 1
    make(secret=[NEW, OLD])
    assert len(compared) == before + 3
    assert set(compared) == {(32, 32)}
    monkeypatch.setattr(frames.hmac, "compare_digest", lambda one, two: False)
    assert store.get("a") is None


# -- genuine records in another place ---------------------------------------------------------------------------------


@pytest.fixture
def trap(path, make, marker):
    """A store whose owner keeps something dangerous at a key of its own, rightly signed."""
    store = make(secret=OLD)
    store.set("trap", Canary(marker))
    store.set("a", "genuine")
    return store


def test_a_genuine_value_is_none_under_another_key(path, trap, marker):
    _, payload, mac = genuine(path)
    for flags in 0, frames.Flags.NUMBER:
        put(path, "a", payload, mac=mac, flags=flags)
        use(trap)
    assert not marker.exists()
    trap.get("trap")
    assert marker.exists()


def test_a_genuine_record_is_none_at_another_offset(path, trap, marker):
    """Where it was deleted since, say."""
    _, payload, mac = genuine(path)
    trap.delete("trap")
    put(path, "trap", payload, mac=mac)
    assert trap.get("trap") is None
    use(trap, "trap")
    assert not marker.exists()


def test_a_genuine_record_is_none_in_another_file(path, make, trap, tmp_path, marker):
    """Of the same secret, at the same offset, under the same key."""
    start, payload, mac = genuine(path)
    other = tmp_path / "other.memo"
    store = make(other, secret=OLD)
    store.close()
    assert other.stat().st_size == start
    put(other, "trap", payload, mac=mac)
    assert store.get("trap") is None
    use(store, "trap")
    assert not marker.exists()


FIELDS = {"flags": (3, frames.Flags.NUMBER), "nothing": (4, 1), "gap": (5, 1), "made": (11, 1.0), "until": (12, 1e12)}


@pytest.mark.parametrize("field", FIELDS)
def test_a_genuine_record_with_another_word_in_its_head_is_none(path, make, trap, field, marker):
    start, _, mac = genuine(path)
    data = bytearray(path.read_bytes())
    end = data.index(mac) + len(mac)
    fields = list(frames._HEAD.unpack_from(data, start))
    number, value = FIELDS[field]
    assert fields[number] != value
    fields[number] = value
    frames._HEAD.pack_into(data, start, *fields)
    check = crc32(data[start + 8 : start + frames.HEAD], identity(path)._start(start))
    struct.pack_into("<I", data, start + 4, check)
    struct.pack_into("<I", data, end, check ^ 0xFFFFFFFF)
    path.write_bytes(data)
    store = make(secret=OLD)
    assert store.exists("trap")  # for all that can be seen without the secret
    assert store.get("trap") is None
    use(store, "trap")
    assert not marker.exists()


# -- whole files ------------------------------------------------------------------------------------------------------


def unsigned_file(make, path, marker):
    store = make(path)
    store.set("a", Canary(marker))
    store.set("number", 7)
    store.close()


def test_a_file_that_is_not_signed_is_none_for_who_gives_a_secret(path, make, marker):
    unsigned_file(make, path, marker)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"it is not signed, and secret= was given"):
        make(secret=OLD)
    assert path.read_bytes() == before
    assert not marker.exists()


def test_a_file_that_is_not_signed_is_none_in_the_place_of_one_that_is(path, make, signed, tmp_path, marker):
    unsigned_file(make, tmp_path / "other.memo", marker)
    before = (tmp_path / "other.memo").read_bytes()
    os.replace(tmp_path / "other.memo", path)
    assert use(signed) == [None, None]
    with pytest.raises(StoreError, match=r"it is not signed"):
        signed.clear()
    assert path.read_bytes() == before
    assert not marker.exists()


def test_a_file_that_is_not_signed_is_none_where_it_was_written_over_one_that_is(path, make, signed, tmp_path, marker):
    unsigned_file(make, tmp_path / "other.memo", marker)
    path.write_bytes((tmp_path / "other.memo").read_bytes() * 3)
    before = path.read_bytes()
    assert use(signed) == [None, None]
    assert path.read_bytes() == before
    assert not marker.exists()


def test_a_header_that_was_made_to_say_that_nothing_is_signed_is_none(path, make, signed, payload, marker):
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 10, 0)
    struct.pack_into("<I", data, 28, crc32(data[:28]))
    path.write_bytes(data)
    here = frames.Identity(bytes(data[12:28]), ())
    append(path, b"".join(here.record(len(data), 0, 1, 0, b"a", b"", payload, 0.0, float("inf"))))
    with pytest.raises(StoreError, match=r"it is not signed, and secret= was given"):
        make(secret=OLD)
    use(signed)
    assert not marker.exists()


@pytest.mark.parametrize("secret", [None, NEW, [NEW, OTHER]])
def test_a_signed_file_is_none_for_who_has_not_its_secret(path, make, signed, secret):
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"give the secret=|give that one too, as secret=\[new, old\]") as caught:
        make(secret=secret)
    assert not any(each in str(caught.value) for each in SECRETS)
    assert path.read_bytes() == before


def test_a_signed_file_is_none_in_the_place_of_one_that_is_not(path, make, tmp_path):
    """Neither up nor down: what a process takes for its file is as it was told."""
    store = make()
    store.set("a", 1)
    make(tmp_path / "other.memo", secret=OLD).set("a", 2)
    os.replace(tmp_path / "other.memo", path)
    assert store.get("a") is None
    with pytest.raises(StoreError, match=r"it is signed: give the secret="):
        store.delete("a")


def test_a_header_with_the_mac_of_another_secret_is_none(path, make):
    path.write_bytes(frames.Identity.new(signing_keys(OTHER, frames.PURPOSE)).header())
    with pytest.raises(StoreError, match=r"signed with another secret"):
        make(secret=OLD)


# -- more than one secret ---------------------------------------------------------------------------------------------


def test_secrets_are_changed_one_process_after_the_other(path, make):
    old = make(secret=OLD)
    old.set("a", 1)
    with pytest.raises(StoreError, match=r"as secret=\[new, old\]"):
        make(secret=NEW)  # not yet
    both = make(secret=[NEW, OLD])
    assert both.get("a") == 1
    both.set("b", 2)
    both.increment("c", 3)
    assert old.get("a") == 1
    assert old.get("b") is None  # it is signed with a secret that this one does not know
    assert old.stats().corrupt == 1
    assert both.compact()
    new = make(secret=NEW)
    assert new.get_many("abc") == {"a": 1, "b": 2, "c": 3}
    assert both.increment("c") == new.increment("c") - 1 == 4
    assert old.get("a") is None
    with pytest.raises(StoreError, match=r"signed with another secret"):
        old.delete("a")
    with pytest.raises(StoreError, match=r"signed with another secret"):
        make(secret=OLD)


def test_who_cannot_verify_never_compacts(path, make):
    old, both = make(secret=OLD), make(secret=[NEW, OLD])
    both.set("b", 2)
    for number in range(300):
        old.set("a", bytes(10_000))
        if number % 100 == 50:
            old.close()  # which waits for a compaction in the background
    before = path.stat()
    assert old.compact() is False
    assert path.stat().st_ino == before.st_ino
    assert old.stats().compactions == 0
    assert both.get("b") == 2
    assert both.compact()
    assert path.stat().st_size < before.st_size / 10
    assert both.get("b") == 2


@pytest.mark.parametrize("latest", [False, True])
def test_who_cannot_verify_never_compacts_what_was_written_meanwhile_either(path, make, monkeypatch, latest):
    old, both = make(secret=OLD), make(secret=[NEW, OLD])
    old.set("a", 1)
    real = type(old._compaction)._copy_living

    def copy_living(self, *rest):
        real(self, *rest)
        both.set("a" if latest else "b", 2)

    monkeypatch.setattr(type(old._compaction), "_copy_living", copy_living)
    assert old.compact() is False
    assert both.get("a" if latest else "b") == 2


def test_a_forged_record_stops_a_compaction_and_is_not_signed_by_it(path, make, signed, payload, marker):
    put(path, "b", payload)
    before = path.read_bytes()
    assert signed.compact() is False
    assert path.read_bytes() == before
    assert signed.get("a") == "genuine"
    signed.delete("b")
    assert signed.compact()
    assert signed.get_many("ab") == {"a": "genuine"}
    assert not marker.exists()


def test_a_record_that_is_not_as_it_was_written_stops_nothing(path, make, signed):
    """That is no other secret's, but damage."""
    data = bytearray(path.read_bytes())
    data[data.index(b"genuine")] ^= 1
    path.write_bytes(data)
    assert signed.compact()
    assert signed.get_many(["a", "number"]) == {"number": 7}


def test_text_is_the_secret_that_its_bytes_are(make):
    make(secret="ein Geheimnis, äöü").set("a", 1)
    assert make(secret="ein Geheimnis, äöü".encode()).get("a") == 1
    assert make(secret=["another one, longer", "ein Geheimnis, äöü"]).get("a") == 1
    assert make(secret=(b"another one, longer", "ein Geheimnis, äöü")).get("a") == 1


# -- what is never shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    ["tell nobody", b"tell nobody", ["tell nobody"], [OLD, "tell nobody"], bytearray(b"tell nobody, really"),
     {"tell nobody": 1}, [OLD, ["tell nobody"]], [bytearray(b"tell nobody, really")]],
    ids=["text", "bytes", "list", "second", "bytearray", "dict", "list in a list", "bytearray in a list"],
)  # fmt: skip
def test_a_secret_that_is_refused_is_not_shown(path, make, secret):
    with pytest.raises(OptionError, match="secret=") as caught:
        make(secret=secret)
    assert "tell nobody" not in "".join(traceback.format_exception(caught.value))
    assert not path.exists()


def test_a_secret_is_in_no_repr_error_or_log_line_and_not_in_the_file(path, make, caplog, payload, signed):
    caplog.set_level(0)
    seen = [repr(signed), str(signed), repr(signed.stats()), repr(vars(signed)), repr(vars(signed._view.log))]
    seen.append(repr(make(path.with_name("two"), secret=[NEW, OLD])))
    put(path, "a", payload)
    signed.get("a")
    for secret in None, NEW, [NEW, OTHER]:
        try:
            make(secret=secret)
        except StoreError as error:
            seen += traceback.format_exception(error)
    shutil.copy(path, path.with_name("copy"))
    path.write_bytes(b"something else" * 100)
    signed.set("a", 1), signed.get("a")
    try:
        signed.clear()
    except StoreError as error:
        seen += traceback.format_exception(error)
    seen += caplog.messages
    assert len(caplog.messages) > 2
    for text in seen:
        assert not any(each in text for each in SECRETS), text
    assert not any(each.encode() in path.with_name("copy").read_bytes() for each in SECRETS)


# -- without a secret -------------------------------------------------------------------------------------------------


def test_without_a_secret_who_can_write_the_file_can_run_code(path, make, marker):
    """As the reference says: the file is its owner's alone, and its owner is trusted."""
    unsigned_file(make, path, marker)
    store = make()
    store.get("a")
    assert marker.exists()


def test_listing_reading_of_numbers_and_compaction_unpickle_nothing_even_so(path, make, marker):
    unsigned_file(make, path, marker)
    store = make()
    store.keys(), store.exists("a"), store.ttl("a"), store.stats(), store.expire("a", 60)
    with pytest.raises(ValueError, match="not a number"):
        store.increment("a")
    assert store.compact()
    assert store.delete("a")
    assert not marker.exists()
