"""Writers that are killed or still at it, values made of a log's own bytes, and how much is read to find that out."""

from __future__ import annotations

import math
import os
import struct
from typing import Any

import pytest

from memo import PickleFileStore
from memo.serializers.signing import signing_keys
from memo.stores import frames
from memo.stores.frames import HEAD, HEADER, SEAL, SYNC, Identity, Kind
from memo.stores.logfile import LogFile
from memo.stores.replay import View
from mutants import Patch, replaced, source_of
from siblings import module

SECRET = b"a secret of the tests, 32 bytes."
signed = pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "signed"])


def size(path: Any) -> int:
    return os.path.getsize(path)


def tear(make: Any, path: Any, key: str, value: Any, keep: int, secret: bytes | None = None) -> None:
    """Let a process be killed that has written that many bytes of a record; from its end if it is less than 0."""
    killed, before = make(secret=secret), size(path)
    killed.set(key, value)
    killed.close()
    assert before < size(path) + keep
    assert before + keep < size(path)
    os.truncate(path, size(path) + keep if keep < 0 else before + keep)


def clean(*stores: PickleFileStore) -> None:
    for store in stores:
        stats = store.stats()
        assert stats.damaged == stats.corrupt == 0, stats
        assert not stats.errors, stats


class Writer:
    """A live process that holds the lock and writes a record a few bytes at a time."""

    def __init__(self, path: Any, key: str, value: int, secret: bytes | None = None) -> None:
        keys = signing_keys(secret, frames.PURPOSE)
        self.log = LogFile(str(path), keys)
        assert self.log.try_lock()
        payload = b"\x80\x04K" + bytes([value]) + b"."
        record = self.log.identity.record(
            size(path), 0, Kind.VALUE, frames.Flags.NUMBER, key.encode(), b"", payload, 1.0, math.inf
        )
        self.rest = b"".join(record)

    def write(self, count: int) -> bool:
        os.write(self.log.fd, self.rest[:count])
        self.rest = self.rest[count:]
        return bool(self.rest)


# -- a live writer ---------------------------------------------------------------------------------------------------


@signed
def test_the_beginning_of_a_live_writers_record_is_not_yet_there(make, path, secret):
    """After each byte, to a reader that has seen every step and to one that is new."""
    reader = make(secret=secret, timeout=0.01)
    reader.set("a", 1)
    writer = Writer(path, "a", 2, secret)
    while writer.write(1):
        fresh = make(secret=secret)
        for each in (reader, fresh):
            assert each.get("a") == 1
            clean(each)
            assert each.stats().torn == 0
        fresh.close()
    for each in (reader, make(secret=secret)):
        assert each.get("a") == 2
    writer.log.close()
    reader.set("a", 3)
    clean(reader)


def test_what_a_live_writer_has_begun_and_another_then_finds_torn_is_left_behind(make, path):
    reader, other = make(), make()
    reader.set("a", 1)
    writer = Writer(path, "a", 2)
    writer.write(60)
    assert reader.get("a") == 1
    writer.log.close()  # killed
    assert reader.get("a") == 1
    other.set("b", 5)
    for each in (reader, other, make()):
        assert (each.get("a"), each.get("b")) == (1, 5)
        assert each.stats().torn == 1
        clean(each)


def test_a_long_record_that_is_being_written_is_read_through_once(make, path, monkeypatch):
    """Each look at it goes on where the last one has ended."""
    reader = make()
    reader.set("a", 1)
    reader.get("a")
    writer = make()
    value, looks, step = bytes(4_000_000), 40, 100_000
    before = size(path)
    writer.set("b", value)
    data = path.read_bytes()[before:]
    os.truncate(path, before)
    reader.close()
    assert reader.get("a") == 1
    pread, read = os.pread, 0

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        found = pread(fd, length, offset)
        read += len(found)
        return found

    monkeypatch.setattr(os, "pread", counting)
    with open(path, "ab", buffering=0) as file:
        for look in range(looks):
            file.write(data[look * step : (look + 1) * step])
            assert reader.get("a") == 1
        file.write(data[looks * step :])
    assert reader.get("b") == value
    assert read < 2 * len(data)
    clean(reader)


def test_many_bad_stretches_in_a_large_file_do_not_take_a_large_read_each(make, path, monkeypatch):
    store = make()
    for number in range(2_000):
        store.set(str(number), number)
    data = bytearray(path.read_bytes())
    length = (len(data) - HEADER) // 2_000
    for at in range(HEADER, len(data), 10 * length):
        data[at] ^= 0xFF
    path.write_bytes(data)
    pread, read = os.pread, 0

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        found = pread(fd, length, offset)
        read += len(found)
        return found

    monkeypatch.setattr(os, "pread", counting)
    fresh = make()
    assert 100 < fresh.stats().damaged < 300
    assert read < 20 * len(data)


# -- torn tails ------------------------------------------------------------------------------------------------------


def begin(make: Any, secret: bytes | None = None) -> PickleFileStore:
    store = make(secret=secret)
    store.set("a", 1)
    store.set("gone", 1)
    store.delete("gone")
    return store


KEEPS = [1, 3, 4, 20, HEAD - 1, HEAD, HEAD + 1, 70, -SEAL - 1, -SEAL, -3, -1]


@signed
@pytest.mark.parametrize("first", KEEPS)
def test_two_torn_tails_in_a_row_lose_nothing_else(make, path, first, secret):
    """Killed at any place, and who comes next is killed at any place, too."""
    for second in KEEPS:
        if path.exists():
            path.unlink()
        store = begin(make, secret)
        tear(make, path, "a", "x" * 30, first, secret)
        tear(make, path, "a", "y" * 30, second, secret)
        fresh = make(secret=secret)
        for each in (store, fresh):
            assert (each.get("a"), each.get("gone")) == (1, None), (first, second)
        fresh.set("b", 2)
        for each in (store, fresh, make(secret=secret)):
            assert (each.get("a"), each.get("gone"), each.get("b")) == (1, None, 2), (first, second)
            clean(each)


def test_torn_tails_with_records_between_them_are_known_to_whoever_reads_them_later(make, path):
    store = begin(make)
    for number in range(5):
        tear(make, path, "a", "x" * 300, 100 + 40 * number)
        store.set(str(number), number)
    for each in (store, make()):
        assert each.get("a") == 1
        assert [each.get(str(number)) for number in range(5)] == list(range(5))
        assert each.stats().torn == 5
        clean(each)


@pytest.mark.parametrize("keep", [20, 80, -1])
def test_readers_that_stand_at_different_places_go_on_behind_a_torn_tail(make, path, keep):
    before, at, later = make(), make(), make()
    before.keys()
    writer = begin(make)
    at.keys()
    tear(make, path, "a", "x" * 50, keep)
    later.keys()  # has seen the beginning
    make().set("b", 3)
    for each in (before, at, later, writer, make()):
        assert (each.get("a"), each.get("gone"), each.get("b")) == (1, None, 3)
        assert each.stats().torn == 1
        clean(each)


def test_a_store_that_finds_a_torn_tail_and_writes_nothing_declares_it_when_it_writes(make, path):
    """A delete of nobody's key or a refused fill takes the lock, reads to the end and may append nothing."""
    store, other = begin(make), make()
    tear(make, path, "a", "x" * 50, 70)
    other._writing(lambda: None)
    assert other.stats().torn == 1
    other.set("b", 3)
    for each in (store, other, make()):
        assert (each.get("a"), each.get("b")) == (1, 3)
        clean(each)


def test_a_torn_tail_that_one_has_passed_and_another_appends_behind(make, path):
    store, passed = begin(make), make()
    tear(make, path, "a", "x" * 50, 70)
    passed._writing(lambda: None)
    make().set("b", 3)
    tear(make, path, "a", "x" * 50, 70)
    passed.set("c", 5)
    for each in (store, passed, make()):
        assert [each.get(key) for key in "abc"] == [1, 3, 5]
        assert each.stats().torn == 2
        clean(each)


def test_a_short_write_by_a_store_itself_is_a_torn_tail(make, path, monkeypatch):
    store, other = begin(make), make()

    def short(fd: int, pieces: Any) -> int:
        return os.write(fd, b"".join(pieces)[:75])

    def full(fd: int, data: Any) -> int:
        if len(data) == 75:
            return write(fd, data)
        raise OSError(28, "No space left on device")

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", short)
        patch.setattr(os, "write", full)
        store.set("b", "x" * 100)
    assert store.stats().errors == {"set": 1}
    assert other.get("a") == 1
    store.set("c", 3)
    for each in (store, other, make()):
        assert [each.get(key) for key in "abc"] == [1, None, 3]
        assert each.stats().torn == 1
        assert each.stats().damaged == 0


def test_a_file_that_was_cut_off_beneath_a_store_is_appended_to_at_its_end(make, path):
    """1. A store has seen the beginning of a record. 2. It is cut off. 3. The store writes at once."""
    store = begin(make)
    before = size(path)
    tear(make, path, "a", "x" * 50, 70)
    store.get("a")
    os.truncate(path, before)
    store.set("b", 3)
    for each in (store, make()):
        assert (each.get("a"), each.get("b")) == (1, 3)
        clean(each)


def test_a_note_of_what_was_cut_off_since_says_nothing(make, path):
    store = begin(make)
    before = size(path)
    tear(make, path, "a", "x" * 500, 400)
    store.set("a", 3)
    os.truncate(path, before + 30)
    assert make().get("a") == 1
    make().set("b", 2)
    for each in (store, make()):
        assert (each.get("a"), each.get("gone"), each.get("b")) == (1, None, 2)
        clean(each)


def test_a_note_that_is_spoilt_is_none(make, path):
    """The record behind each torn stretch tells of it, too."""
    store = begin(make)
    tear(make, path, "a", "x" * 500, 400)
    store.set("b", 3)
    with open(path, "r+b") as file:
        file.seek(frames.NOTE)
        file.write(b"\xff" * 16)
    for each in (store, make()):
        assert (each.get("a"), each.get("b")) == (1, 3)
        clean(each)


def test_what_cannot_be_noted_is_not_written_behind(make, path, monkeypatch):
    """Where the name leads to another file by now, that one is left as it is."""
    store = begin(make)
    tear(make, path, "a", "x" * 50, 70)
    store._writing(lambda: None)
    log = store._view.log
    path.rename(path.with_name("moved.memo"))
    path.write_bytes(b"another")
    with pytest.raises(OSError, match="replaced"):
        log.note(1, 2)
    assert path.read_bytes() == b"another"


def test_no_end_of_a_record_can_be_the_beginning_of_the_next():
    """A record that lacks a part of its seal would be made whole by who writes behind it."""
    identity = Identity.new(())
    for number in range(3_000):
        *_, seal = identity.record(number, 0, Kind.DELETE, 0, b"a", b"", b"", 1.0, math.inf)
        for missing in range(1, SEAL):
            assert not seal.endswith(SYNC[:missing])


# -- values made of the log's own bytes ------------------------------------------------------------------------------


@signed
def test_a_value_that_contains_bytes_of_its_own_log_never_comes_to_life(make, path, secret):
    """It is torn at every place, and opened, and written behind."""
    store = begin(make, secret)
    store.set("a", 2)
    own = path.read_bytes()
    data = own + own[HEADER:] * 2
    before = size(path)
    store.set("copy", data)
    whole = path.read_bytes()
    store.close()
    copy = path.with_name("torn.memo")
    step = 1 if os.environ.get("MEMO_PROFILE") == "nightly" else 7
    for cut in range(before + 1, len(whole), step):
        copy.write_bytes(whole[:cut])
        copy.chmod(0o600)
        torn = make(copy, secret=secret)
        assert sorted(torn.keys()) == ["a"]
        assert torn.get("a") == 2
        torn.set("b", cut)
        fresh = make(copy, secret=secret)
        for each in (torn, fresh):
            assert (each.get("a"), each.get("gone"), each.get("copy"), each.get("b")) == (2, None, None, cut)
            clean(each)
            each.close()


def test_a_value_full_of_markers_costs_no_more_than_its_length(make, path, monkeypatch):
    """Each marker in what is being written is looked at once, however often a reader comes by."""
    reader = begin(make)
    before = size(path)
    killed = make()
    killed.set("m", SYNC * 20_000)
    killed.close()
    data = path.read_bytes()[before:]
    os.truncate(path, before)
    assert reader.get("a") == 1
    head, calls = Identity.head, 0

    def counting(self: Identity, data: bytes, at: int, offset: int) -> Any:
        nonlocal calls
        calls += 1
        return head(self, data, at, offset)

    monkeypatch.setattr(Identity, "head", counting)
    with open(path, "ab", buffering=0) as file:
        for start in range(0, len(data) - 1000, 1000):
            file.write(data[start : start + 1000])
            assert reader.get("a") == 1
    assert 15_000 < calls < 21_000
    reader.set("b", 1)
    for each in (reader, make()):
        assert (each.get("a"), each.get("b"), each.get("m")) == (1, 1, None)
        assert each.stats().torn == 1
        clean(each)


# -- the scan, step by step ------------------------------------------------------------------------------------------


def test_a_file_that_gets_shorter_while_it_is_read_is_no_error(make, path, monkeypatch):
    store = begin(make)
    store.set("b", "x" * 10_000)
    data = path.read_bytes()
    path.write_bytes(data[:HEADER] + b"?" + data[HEADER + 1 :])
    pread = os.pread
    for moment in range(12):
        count = 0

        def shorter(fd: int, length: int, offset: int, moment: int = moment) -> bytes:
            nonlocal count
            count += 1
            if count == moment:
                os.truncate(path, HEADER + 40)
            return pread(fd, length, offset)

        path.write_bytes(data[:HEADER] + b"?" + data[HEADER + 1 :])
        with monkeypatch.context() as patch:
            fresh = make()
            fresh.close()
            patch.setattr(os, "pread", shorter)
            assert fresh.get("a") in (None, 1)
            assert fresh.get("gone") is None


@signed
def test_less_or_more_than_a_record_is_none(secret):
    identity = Identity.new(signing_keys(secret, frames.PURPOSE))
    record = b"".join(identity.record(500, 0, Kind.VALUE, 0, b"a", b"", b"payload", 1.0, math.inf))
    assert identity.content(record, 500, b"a", False) == (0, b"payload")
    assert identity.intact(record, 500)
    for length in range(len(record)):
        assert identity.content(record[:length], 500, b"a", False) is None
        assert not identity.intact(record[:length], 500)
    for data, offset in ((record + b"x", 500), (record, 501), (record.replace(b"payload", b"another"), 500)):
        assert identity.content(data, offset, b"a", False) is None
        assert not identity.intact(data, offset)
    assert identity.content(record, 500, b"b", False) is None


def test_less_than_a_header_notes_nothing():
    identity = Identity.new(())
    header = identity.header()[: frames.NOTE] + identity.note(100, 200)
    assert identity.noted(header) == (100, 200)
    assert {identity.noted(header[:length]) for length in range(HEADER)} == {(0, 0)}
    assert identity.noted(identity.header()) == Identity.new(()).noted(header) == (0, 0)


def test_what_a_reader_cannot_tell_while_another_holds_the_lock_is_a_miss_and_not_an_error(make, path):
    reader = begin(make)
    writer = LogFile(str(path), ())
    assert writer.try_lock()
    with open(path, "ab") as file:
        file.write(b"?" * 200)
    assert reader.get("a") is None
    assert reader.stats().damaged == 0  # it is not known yet
    writer.unlock()
    assert reader.get("a") is None
    assert reader.stats().damaged == 1
    reader.set("a", 5)
    assert make().get("a") == 5


# -- what would be noticed -------------------------------------------------------------------------------------------


def watch(damage: Any, make: Any, path: Any) -> None:
    """Run what notices, the quicker first; each on a file of its own."""

    def anew() -> None:
        if path.exists():
            path.unlink()

    for step in (
        lambda: test_the_beginning_of_a_live_writers_record_is_not_yet_there(make, path, None),
        lambda: test_torn_tails_with_records_between_them_are_known_to_whoever_reads_them_later(make, path),
        lambda: test_two_torn_tails_in_a_row_lose_nothing_else(make, path, -1, None),
        lambda: test_a_value_that_contains_bytes_of_its_own_log_never_comes_to_life(make, path, None),
    ):
        anew()
        step()
    for name in ("removed", "torn", "functions"):
        with damage.folder() as where:
            damage.truncate_everywhere(damage.made(where, name), 7)
        with damage.folder() as where:
            log = damage.made(where, name)
            damage.flip_every_bit(log, iter(range(0, 8 * size(log.path), 5)))
    with damage.folder() as where:
        damage.test_a_flip_behind_a_torn_record_that_claims_more_than_there_is_brings_nothing_back(where)
    with damage.folder() as where:
        damage.test_records_that_were_doubled_left_out_or_exchanged_give_the_latest_value_or_a_miss(
            where, "removed", None
        )


MUTANTS: dict[str, Patch] = {
    "the seal is not looked at": source_of(Identity, "sealed", "seal == ", "True or seal == "),
    "the gap is ignored": source_of(LogFile, "scan", "torn=found[1].gap >= found[0] - at", "torn=False"),
    "every stretch is taken for a torn one": source_of(
        LogFile, "scan", "torn=found[1].gap >= found[0] - at", "torn=True"
    ),
    "damage at the end is taken for a torn tail": source_of(
        LogFile, "scan", "begun = last <= at and", "begun = True or"
    ),
    "the note is not read": source_of(LogFile, "scan", "if last > size:", "if True:"),
    "the note is not written": replaced(LogFile, "note", lambda self, start, end: None),
    "damage is passed over": source_of(View, "follow", "self.index.clear()", "pass"),
    "the offset is no part of the check": replaced(Identity, "_start", lambda self, offset: self._seed),
    "the body is not checked": source_of(Identity, "body", "crc32(body) != head.body_check", "False"),
    "the payload is not checked": source_of(
        Identity, "content", "if checked or crc32(payload) == payload_check", "if True"
    ),
    "readers take the end for final": source_of(View, "catch_up", "size, final)", "size, True)"),
    "a writer that finds a torn tail does not declare it": source_of(
        View, "append", "self.position, self.gap", "self.position, 0"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_noticed_when(name, make, path, monkeypatch):
    damage = module("file/test_damage.py")
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, struct.error, KeyError, ValueError)):
        watch(damage, make, path)


def test_what_is_not_broken_passes(make, path):
    watch(module("file/test_damage.py"), make, path)
