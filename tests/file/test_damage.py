"""Whatever happens to the bytes of a log: each key gives its latest value or nothing, and nothing is raised.

A value is a number that is stored once only, so that an older one is seen as what it is.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memo import PickleFileStore, cache_aside
from memo.entry import MISSING
from memo.errors import StoreError
from memo.stores import frames
from memo.stores.frames import HEAD, HEADER, NOTE, SYNC, Flags, Identity, Kind
from memo.stores.logfile import LogFile
from memo.testing import ManualClock

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
SECRET = b"a secret of the tests, 32 bytes."
PAGE = 4096

PLAIN = ("a", "b", "p:1", "p:2", "n")
CALLS = ("f:1", "f:2", "g:1", "g:2")
KEYS = PLAIN + CALLS

Op = tuple[Any, ...]


class Log:
    """A store on a file, beside a dict that says what is in it.

    Attributes:
        model: what each key has.
        steps: after each operation, the size of the file, what each key had, and the header.
    """

    def __init__(self, path: Path, secret: bytes | None = None) -> None:
        self.path, self.secret = path, secret
        self.clock = ManualClock(start=1_000.0)
        self.numbers = itertools.count(1)
        self.model: dict[str, Any] = {}
        self.store = self.open()
        self.steps: list[tuple[int, dict[str, Any], bytes]] = []
        self._stepped()

        @cache_aside(store=self.store, key="{x}", namespace="f", tags=("f", "t{x}"), ttl=100, stale_while_revalidate=50)
        def f(x: int) -> int:
            return x

        @cache_aside(store=self.store, key="{x}", namespace="g", tags=("t{x}",))
        def g(x: int) -> int:
            return x

        self.functions = {"f": f, "g": g}

    def open(self, path: Path | None = None, **options: Any) -> PickleFileStore:
        return PickleFileStore(path or self.path, secret=self.secret, clock=self.clock, **options)

    def do(self, op: Op) -> None:
        before = dict(self.model)
        size = os.path.getsize(self.path)
        if op[0] == "torn":
            self._do(op[2])
            self.model = before
            written = os.path.getsize(self.path) - size
            if written:  # else there was nothing to be done
                os.truncate(self.path, size + 1 + int((written - 2) * op[1]))
        else:
            self._do(op)
        self._stepped()

    def _stepped(self) -> None:
        self.steps.append((os.path.getsize(self.path), dict(self.model), self.path.read_bytes()[:HEADER]))

    def _do(self, op: Op) -> None:
        name, *rest = op
        store, model = self.store, self.model
        if name == "set":
            model[rest[0]] = value = next(self.numbers)
            store.set(rest[0], value, *rest[1:])
        elif name == "call":
            model[f"{rest[0]}:{rest[1]}"] = value = next(self.numbers)
            self.functions[rest[0]].set(value, rest[1])
        elif name == "increment":
            model["n"] = store.increment("n", 1000)  # exactness is shown elsewhere
        elif name == "expire":
            store.expire(rest[0], 1e6)
        elif name == "delete":
            store.delete(rest[0])
            model.pop(rest[0], None)
        elif name == "forget":
            self.functions[rest[0]].invalidate_all()
            self._drop(lambda key: key.startswith(f"{rest[0]}:"))
        elif name == "pattern":
            store.delete_pattern(f"{rest[0]}*")
            self._drop(lambda key: key.startswith(rest[0]))
        elif name == "tag":
            store.invalidate_tags(rest[0])
            self._drop(lambda key: key in CALLS and (key[0] == rest[0] or f"t{key[2]}" == rest[0]))
        else:
            store.clear()
            self._drop(lambda key: True)

    def _drop(self, which: Callable[[str], object]) -> None:
        for key in [key for key in self.model if which(key)]:
            del self.model[key]

    def pieces(self) -> list[Any]:
        log = LogFile(str(self.path), self.store._keys)
        try:
            return list(log.scan(log.first, os.path.getsize(self.path), final=True))
        finally:
            log.close()


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder, in memory where there is one: thousands of files are opened in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture
def place():
    with folder() as path:
        yield path


def read(store: PickleFileStore) -> dict[str, Any]:
    """Return what a store finds; that it raises nothing is part of every test here."""
    found = {key: store.get(key, MISSING) for key in KEYS}
    return {key: value for key, value in found.items() if value is not MISSING}


def agree(found: dict[str, Any], model: dict[str, Any], what: object) -> None:
    """Each key gives its latest value or nothing."""
    wrong = {key: (value, model.get(key)) for key, value in found.items() if model.get(key) != value}
    assert not wrong, f"{what}: found and latest: {wrong}"


def opened(log: Log, path: Path | None = None) -> PickleFileStore | None:
    """Return a fresh store; None: the header says too little, which an error has told."""
    try:
        return log.open(path)
    except StoreError:
        return None


LOGS: dict[str, list[Op]] = {
    "values": [("set", "a"), ("set", "b"), ("set", "a"), ("increment",), ("increment",), ("set", "a", 50)],
    "removed": [("set", "a"), ("set", "p:1"), ("set", "p:2"), ("delete", "a"), ("pattern", "p:"), ("set", "b")],
    "functions": [("call", "f", 1), ("call", "g", 1), ("call", "f", 2), ("tag", "t1"), ("call", "g", 2), ("tag", "f")],
    "forgotten": [
        ("call", "g", 1),
        ("call", "f", 1),
        ("forget", "g"),
        ("expire", "f:1"),
        ("set", "b"),
        ("expire", "b"),
    ],
    "cleared": [("set", "a"), ("call", "f", 1), ("clear",), ("set", "a"), ("delete", "a"), ("set", "b")],
    # Who opens the last two is told of the latest tear by the header, and of all others by the record behind each.
    "torn": [
        ("set", "a"),
        ("set", "p:1"),
        ("torn", 0.9, ("set", "b")),
        ("delete", "a"),
        ("set", "b"),
        ("torn", 0.5, ("call", "f", 1)),
        ("pattern", "p:"),
    ],
    "torn at the end": [("set", "a"), ("set", "a"), ("torn", 0.7, ("delete", "a"))],
}
SIGNED = ("removed", "torn")
MADE = [(name, None) for name in LOGS] + [(name, SECRET) for name in SIGNED]


def made(where: Path, name: str, secret: bytes | None = None) -> Log:
    log = Log(where / "cache.memo", secret)
    for op in LOGS[name]:
        log.do(op)
    assert read(log.open()) == log.model
    return log


every_log = pytest.mark.parametrize(
    ("name", "secret"), MADE, ids=[f"{name}{', signed' if secret else ''}" for name, secret in MADE]
)


# -- torn anywhere ---------------------------------------------------------------------------------------------------


def truncate_everywhere(log: Log, step: int = 1) -> None:
    """Cut a copy at every offset; append behind the cut; everything that was whole is there, before and after."""
    data = log.path.read_bytes()
    path = log.path.with_name("copy.memo")
    sizes = {size for size, _, _ in log.steps}
    for cut in range(0, len(data), step):
        header = next(header for size, _, header in log.steps if size >= cut)  # as it was then
        path.write_bytes((header + data[HEADER:])[:cut])
        path.chmod(0o600)
        expected = next((model for size, model, _ in reversed(log.steps) if size <= cut), {})
        store = log.open(path)
        assert read(store) == expected, cut
        assert store.stats().damaged == 0, cut
        fresh = log.open(path)
        fresh.set("new", cut)
        for each in (store, fresh, log.open(path)):
            assert each.get("new") == cut
            assert read(each) == expected, cut
            stats = each.stats()
            assert stats.damaged == stats.corrupt == 0, cut
            assert stats.errors == {}
            each.close()
        if cut > HEADER and cut not in sizes:
            assert stats.torn, cut


@every_log
def test_a_log_that_is_torn_anywhere_loses_only_what_was_torn(place, name, secret):
    truncate_everywhere(made(place, name, secret))


# -- flipped bits ----------------------------------------------------------------------------------------------------


def flip_every_bit(log: Log, bits: Iterator[int] | None = None) -> tuple[int, int]:
    """Flip each bit in turn, for a store that has the file open and for a fresh one; return what they found and missed.

    What a fresh one misses, it has counted.
    """
    data = bytearray(log.path.read_bytes())
    found = missed = 0
    old = log.open()
    read(old)
    with open(log.path, "r+b", buffering=0) as file:
        for bit in bits if bits is not None else range(8 * len(data)):
            at, mask = bit >> 3, 1 << (bit & 7)
            os.pwrite(file.fileno(), bytes([data[at] ^ mask]), at)
            what = f"bit {bit & 7} of byte {at}"
            seen = read(old)
            agree(seen, log.model, f"{what}, an open store")
            fresh = opened(log)
            if fresh is None:
                assert at < NOTE, what
            else:
                known = read(fresh)
                agree(known, log.model, what)
                found += len(known)
                missed += len(log.model) - len(known)
                if known != log.model:
                    stats = fresh.stats()
                    assert stats.damaged + stats.corrupt, f"{what}: not counted"
                fresh.close()
            os.pwrite(file.fileno(), data[at : at + 1], at)
            if seen != log.model:
                old.close()
                assert read(old) == log.model
    return found, missed


@every_log
def test_a_flip_of_any_bit_gives_the_latest_value_or_a_miss(place, name, secret):
    log = made(place, name, secret)
    found, missed = flip_every_bit(log)
    if log.model:
        assert found  # a store that finds nothing at all proves nothing
        assert missed


def test_a_flip_behind_a_torn_record_that_claims_more_than_there_is_brings_nothing_back(place):
    """A record of many bytes is torn at its beginning. What is deleted behind it is within what it claims."""
    log = Log(place / "cache.memo")
    log.do(("set", "a"))
    size = os.path.getsize(log.path)
    log.store.set("b", bytes(100_000))
    os.truncate(log.path, size + 200)
    log.do(("delete", "a"))
    assert os.path.getsize(log.path) < size + 1000
    flip_every_bit(log, iter(range(8 * (size + 200), 8 * os.path.getsize(log.path))))
    # So, too, when all that was written behind it is gone.
    whole = log.path.read_bytes()
    for spoilt in (bytes(len(whole) - size - 200), b"\xff" * (len(whole) - size - 200)):
        log.path.write_bytes(whole[: size + 200] + spoilt)
        fresh = log.open()
        assert read(fresh) == {}
        assert fresh.stats().damaged == 1


# -- pages, splices, what does not belong there ----------------------------------------------------------------------


def long_log(where: Path, secret: bytes | None = None, pages: int = 5) -> Log:
    """A log of several pages, the values and invalidations of which are spread over it."""
    log = Log(where / "cache.memo", secret)
    numbers = random.Random(4)
    names = [op for ops in LOGS.values() for op in ops]
    while os.path.getsize(log.path) < pages * PAGE:
        log.do(numbers.choice(names))
    log.do(("set", "a"))
    return log


def spoil(log: Log, data: bytes, what: object) -> PickleFileStore | None:
    """Open a copy that has these bytes, read it, write it, and open it again."""
    path = log.path.with_name("copy.memo")
    path.write_bytes(data)
    path.chmod(0o600)
    fresh = opened(log, path)
    if fresh is None:
        return None
    known = read(fresh)
    agree(known, log.model, what)
    stats = fresh.stats()
    assert known == log.model or stats.damaged + stats.corrupt + stats.torn, what
    fresh.set("new", 1)
    fresh.delete("b")
    again = log.open(path)
    model = {key: value for key, value in log.model.items() if key != "b"}
    for each in (fresh, again):
        agree(read(each), model, what)
        assert each.get("new") == 1, what
        each.close()
    return fresh


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", SYNC], ids=["zeroes", "ones", "markers"])
def test_a_page_that_was_lost_gives_the_latest_value_or_a_miss(place, secret, fill):
    log = long_log(place, secret)
    data = log.path.read_bytes()
    page = fill * (PAGE // len(fill))
    for start in range(0, len(data), PAGE // 4):
        end = min(start + PAGE, len(data))
        store = spoil(log, data[:start] + page[: end - start] + data[end:], f"{fill!r} from {start}")
        assert (store is None) == (start < NOTE)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_pages_that_were_swapped_give_the_latest_value_or_a_miss(place, secret):
    log = long_log(place, secret)
    data = log.path.read_bytes()
    pages = [data[start : start + PAGE] for start in range(0, len(data), PAGE)]
    for one, other in itertools.combinations(range(1, len(pages)), 2):
        swapped = list(pages)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        assert spoil(log, b"".join(swapped), f"pages {one} and {other}") is not None


@every_log
def test_records_that_were_doubled_left_out_or_exchanged_give_the_latest_value_or_a_miss(place, name, secret):
    log = made(place, name, secret)
    data = log.path.read_bytes()
    whole = [data[piece.offset : piece.end] for piece in log.pieces()]
    for index in range(len(whole)):
        for other in range(len(whole)):
            changed = list(whole)
            if index == other:
                changed.insert(index, whole[index])
            elif index < other:
                changed[index], changed[other] = changed[other], changed[index]
            else:
                changed[index] = whole[other]
            assert spoil(log, data[:HEADER] + b"".join(changed), f"{index} and {other}") is not None
        if sum(map(len, whole[index + 1 :])) >= HEAD:  # else it is a log that was cut off
            changed = whole[:index] + whole[index + 1 :]
            assert spoil(log, data[:HEADER] + b"".join(changed), f"without {index}") is not None


@every_log
@pytest.mark.parametrize(
    "foreign", [b"\x00", SYNC, b"\x00" * 55, b"x" * 56, SYNC * 50, b"\n" * 5000], ids=lambda each: str(len(each))
)
def test_bytes_that_do_not_belong_there_give_the_latest_value_or_a_miss(place, name, secret, foreign):
    log = made(place, name, secret)
    data = log.path.read_bytes()
    for piece in log.pieces():
        for at in (piece.offset, (piece.offset + piece.end) // 2):
            assert spoil(log, data[:at] + foreign + data[at:], f"put in at {at}") is not None
            written = data[:at] + foreign + data[at + len(foreign) :]
            assert spoil(log, written, f"written over from {at}") is not None
    assert spoil(log, data + foreign, "at the end") is not None


def test_a_record_of_another_file_is_none(place):
    """Two files with the same records at the same places: each is damage in the other."""
    one, other = made(place, "removed"), Log(place / "other.memo")
    for op in LOGS["removed"]:
        other.do(op)
    mine, theirs = one.path.read_bytes(), other.path.read_bytes()
    assert len(mine) == len(theirs)
    for piece in one.pieces():
        mixed = mine[: piece.offset] + theirs[piece.offset : piece.end] + mine[piece.end :]
        store = spoil(one, mixed, piece.offset)
        assert store.stats().damaged + store.stats().corrupt


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
def test_what_was_spoilt_is_counted_once_and_told_once(place, secret, caplog):
    log = made(place, "values", secret)
    data = bytearray(log.path.read_bytes())
    first = log.pieces()[0]
    data[first.offset] ^= 1
    log.path.write_bytes(data)
    store = log.open()
    assert read(store) == {key: value for key, value in log.model.items() if key != "b" or value != 1}
    read(store)
    assert store.stats().damaged == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{str(log.path)!r} is damaged: what was written before that is not served"
    ]


# -- made on purpose -------------------------------------------------------------------------------------------------


def crafted(log: Log, kind: int, flags: int = 0, key: bytes = b"a", meta: bytes = b"", until: float = math.inf) -> None:
    """Append a record whose checks are right and whose content is nonsense."""
    file = LogFile(str(log.path), log.store._keys)
    file.append(file.identity.record(os.path.getsize(log.path), 0, kind, flags, key, meta, b"", 1.0, until))
    file.close()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])
@pytest.mark.parametrize(
    "nonsense",
    [
        {"kind": 0},
        {"kind": 99},
        {"kind": Kind.VALUE, "key": b"\xff\xfe"},
        {"kind": Kind.VALUE, "meta": b"\xff"},
        {"kind": Kind.VALUE, "flags": Flags.RICH},
        {"kind": Kind.VALUE, "flags": Flags.RICH, "meta": b"\x00\x00\x00\x00"},
        {"kind": Kind.VALUE, "flags": Flags.RICH, "meta": b"\x18\x00\x00\x00" + bytes(10)},
        {"kind": Kind.VALUE, "flags": Flags.RICH, "meta": b"\xff\xff\xff\xff" + bytes(24)},
        {"kind": Kind.VALUE, "flags": Flags.RICH, "meta": b"\x00\x00\x00\x00\x01\x00\x00\x00\xff"},
        {"kind": Kind.TAGS, "meta": b"\x01"},
        {"kind": Kind.TAGS, "meta": b"\x01\x00\x00\x00\xff"},
        {"kind": Kind.PATTERN, "key": b"\xff"},
        {"kind": Kind.OWNER, "key": b"\xff"},
    ],
    ids=str,
)
def test_nonsense_whose_checks_are_right_is_damage_to_readers_and_to_a_compaction(place, secret, nonsense):
    log = made(place, "values", secret)
    crafted(log, **nonsense)
    for store in (log.store, log.open()):
        assert read(store) == {}
        assert store.stats().damaged == 1
    log.store.set("b", 77)
    assert read(log.open()) == {"b": 77}
    assert log.store.compact()
    assert read(log.store) == read(log.open()) == {"b": 77}


def test_nonsense_that_comes_while_a_file_is_rewritten_is_damage_in_the_new_one(place, monkeypatch):
    log = made(place, "values")
    rest = type(log.store._compaction)._copy_rest

    def later(self, store, old, target):
        crafted(log, 99)
        rest(self, store, old, target)

    monkeypatch.setattr(type(log.store._compaction), "_copy_rest", later)
    assert log.store.compact()
    assert read(log.store) == read(log.open()) == {}


@pytest.mark.parametrize("until", [math.nan, -math.inf, 0.0, -1.0, 1e308])
def test_ends_that_mean_nothing_are_no_errors(place, until):
    log = Log(place / "cache.memo")
    crafted(log, Kind.VALUE, key=b"a", until=until)
    store = log.open()
    assert store.get("a", MISSING) is MISSING  # there is no pickle in it
    assert store.ttl("a") is None or store.ttl("a") > 0
    store.keys()


@pytest.mark.parametrize("claim", [10**6, 2**31, 2**32 - 1])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["key", "meta", "payload"])
def test_a_length_that_claims_gigabytes_takes_no_memory(place, claim, part, monkeypatch):
    """Not even a check that is right lets more be read than there is."""
    log = made(place, "values")
    size = os.path.getsize(log.path)
    identity = Identity.of(log.path.read_bytes()[:HEADER], (), "")
    lengths = [0, 0, 0]
    lengths[part] = claim
    rest = frames._HEAD.pack(SYNC, 0, Kind.VALUE, 0, 0, 0, *lengths, 0, 0, 1.0, math.inf)[8:]
    check = frames._SEAL.pack(frames.crc32(rest, identity._start(size)))
    log.path.write_bytes(log.path.read_bytes() + SYNC + check + rest + b"some of it")
    pread = os.pread

    def guarded(fd: int, length: int, offset: int) -> bytes:
        assert length <= 1 << 16
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", guarded)
    for store in (log.store, log.open()):
        assert read(store) == log.model
        assert store.stats().damaged == store.stats().torn == 0  # not yet, perhaps
    log.store.set("a", -1)
    for store in (log.store, log.open()):
        assert read(store) == {**log.model, "a": -1}
        assert store.stats().torn == 1


# -- any log ---------------------------------------------------------------------------------------------------------

plain = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(PLAIN)),
    st.tuples(st.just("call"), st.sampled_from("fg"), st.sampled_from([1, 2])),
    st.tuples(st.just("delete"), st.sampled_from(KEYS)),
    st.tuples(st.just("pattern"), st.sampled_from(["p:", "f:", "a"])),
    st.tuples(st.just("tag"), st.sampled_from(["f", "t1", "t2"])),
    st.tuples(st.just("forget"), st.sampled_from("fg")),
    st.tuples(st.just("expire"), st.sampled_from(KEYS)),
    st.just(("clear",)),
)
ops = st.lists(st.one_of(plain, plain, st.tuples(st.just("torn"), st.floats(0, 1), plain)), min_size=1, max_size=12)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
@settings(max_examples=300 if NIGHTLY else 12)
@given(ops, st.sampled_from([None, SECRET]), st.integers(0, 2**32))
def test_any_log_torn_and_flipped_anywhere(ops, secret, seed):
    with folder() as where:
        log = Log(where / "cache.memo", secret)
        for op in ops:
            log.do(op)
        assert read(log.open()) == log.model
        assert log.open().stats().damaged == 0
        bits = 8 * os.path.getsize(log.path)
        flip_every_bit(log, iter(range(bits) if NIGHTLY else sorted(random.Random(seed).sample(range(bits), 150))))
        truncate_everywhere(log, 1 if NIGHTLY else 13)
        log.store.close()
