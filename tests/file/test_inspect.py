"""`memo inspect`: what a file holds, without running, changing or believing anything in it."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys

import pytest

from memo import PickleFileStore, StoreError, cache_aside, cli
from memo.stores import frames, inspection, logfile
from memo.stores.inspection import inspect_file

SECRET = b"a secret of the tests, 32 bytes."


class Canary:
    """Sings when it is unpickled."""

    sang = 0

    def __reduce__(self):
        return Canary._sing, ()

    @staticmethod
    def _sing():
        Canary.sang += 1
        return Canary()


@pytest.fixture
def _silent():
    Canary.sang = 0
    yield
    assert Canary.sang == 0


def inspected(capsys, *arguments):
    assert cli.main(["inspect", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def numbers(capsys, *arguments):
    return json.loads(inspected(capsys, *arguments, "--json"))


def failure(capsys, *arguments):
    code = cli.main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


# -- what is found -----------------------------------------------------------------------------------------------------


def test_entries_are_listed_with_function_tags_age_time_left_and_size(make, path, clock):
    store = make()
    store.set("plain", 1)
    clock.advance(10)
    store.set("short", "x" * 1_000, ttl=60)

    @cache_aside(ttl=30, tags=("prices", "book:{book}"), store=store, namespace="shop.price")
    def price(book):
        return 20

    price(7)
    clock.advance(5)
    found = {entry.key: entry for entry in inspect_file(path, clock).entries}
    assert list(found) == ["plain", "short", "shop.price(7)"]
    plain, short, priced = found.values()
    assert (plain.function, plain.tags, plain.age, plain.left) == ("", (), 15, float("inf"))
    assert (short.function, short.tags, short.age, short.left) == ("", (), 5, 55)
    assert 1_000 < short.size < 1_200
    assert (priced.function, priced.tags, priced.age, priced.left) == ("shop.price", ("prices", "book:7"), 5, 25)


def test_what_is_gone_is_not_listed_and_counts_as_garbage(make, path, clock):
    store = make()
    header = inspect_file(path, clock).file_size
    for key in "abcd":
        store.set(key, 1, ttl=10 if key == "d" else None)

    @cache_aside(store=store, tags=("t",), namespace="fn")
    def fn(x):
        return x

    fn(1)
    every = inspect_file(path, clock)
    assert (every.garbage_size, every.live_size) == (0, every.file_size - header)
    store.set("a", 2)
    store.delete("b")
    store.invalidate_tags("t")
    clock.advance(10)
    found = inspect_file(path, clock)
    assert [entry.key for entry in found.entries] == ["a", "c"]
    assert found.expired == 1
    assert found.live_size == sum(entry.size for entry in found.entries)
    assert found.garbage_size == found.file_size - header - found.live_size
    assert found.unread_size == found.torn == found.damaged == 0


def test_an_entry_in_a_stale_window_is_listed_as_stale(make, path, clock):
    @cache_aside(ttl=10, stale_while_revalidate=10, store=make(), namespace="fn")
    def fn(x):
        return x

    fn(1)
    clock.advance(12)
    found = inspect_file(path, clock)
    assert [entry.left for entry in found.entries] == [-2]
    screen = cli.console(sys.stdout)
    with screen.capture() as captured:
        cli.present_file(found, found.entries, 5, screen)
    assert captured.get().splitlines()[-1].split()[:4] == ["fn(1)", "12", "s", "stale"]
    clock.advance(8)
    assert inspect_file(path, clock).expired == 1


def test_what_was_made_in_the_future_is_not_listed_as_the_store_does_not_serve_it(make, path, clock):
    make().set("a", 1)
    clock.advance(-100)
    assert inspect_file(path, clock).entries == ()


def test_torn_and_damaged_stretches_are_counted_and_what_may_still_be_written_is_told_apart(make, path, clock):
    store = make()
    store.set("a", 1)
    store.set("b", 2)
    whole = path.read_bytes()
    first = len(whole) - (len(whole) - frames.HEADER) // 2
    path.write_bytes(whole[:-10])  # a writer at work, or killed: nobody can say yet
    found = inspect_file(path, clock)
    assert [entry.key for entry in found.entries] == ["a"]
    assert (found.unread_size, found.torn, found.damaged) == (len(whole) - 10 - first, 0, 0)
    make().set("c", 3)  # who holds the lock knows
    found = inspect_file(path, clock)
    assert [entry.key for entry in found.entries] == ["a", "c"]
    assert (found.unread_size, found.torn, found.damaged) == (0, 1, 0)
    flipped = bytearray(path.read_bytes())
    flipped[frames.HEADER + 5] ^= 1
    path.write_bytes(flipped)
    found = inspect_file(path, clock)
    assert [entry.key for entry in found.entries] == ["c"]
    assert found.damaged == 1


def test_a_signed_file_needs_no_secret_and_says_that_it_is_signed(make, path, clock, capsys):
    store = make(secret=SECRET)
    for key in "abc":
        store.set(key, "x" * 100)
    store.delete("b")
    found = inspect_file(path, clock)
    assert found.signed
    assert [entry.key for entry in found.entries] == ["a", "c"]
    assert (found.torn, found.damaged, found.unread_size) == (0, 0, 0)
    assert "signed: what is listed here was not verified" in inspected(capsys, path)


def test_numbers_agree_with_the_stores_own(make, path, clock):
    store = make()
    for number in range(300):
        store.set(f"key {number % 100}", number, ttl=10 if number % 2 else None)
    clock.advance(11)
    store.cleanup()
    found, stats = inspect_file(path, clock), store.stats()
    assert (len(found.entries), found.file_size, found.live_size) == (stats.size, stats.file_size, stats.live_size)


# -- what does not happen ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_silent")
@pytest.mark.parametrize("secret", [None, SECRET])
def test_no_value_is_unpickled(make, path, clock, capsys, secret):
    store = make(secret=secret)
    store.set("canary", Canary())

    @cache_aside(store=store, tags=("t",), namespace="fn")
    def fn():
        return Canary()

    fn()
    assert len(inspect_file(path, clock).entries) == 2
    for options in [], ["--json"], ["--sort", "size"], ["--pattern", "c*"]:
        inspected(capsys, path, *options)


def test_the_canary_would_sing():
    pickle.loads(pickle.dumps(Canary()))
    assert Canary.sang > 0


def test_the_file_is_not_changed_and_nothing_is_put_beside_it(make, path, capsys):
    store = make()
    store.set("a", 1)
    path.write_bytes(path.read_bytes()[:-3])
    path.chmod(0o400)
    before = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode
    inspected(capsys, path)
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_file_is_not_made(tmp_path, capsys):
    code, message = failure(capsys, tmp_path / "no.memo")
    assert code == 1
    assert message == f"Error: '{tmp_path}/no.memo' cannot be read: No such file or directory\n"
    assert os.listdir(tmp_path) == []


def test_no_lock_is_taken_and_none_is_waited_for(make, path, capsys, monkeypatch):
    make().set("a", 1)
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        monkeypatch.setattr(logfile.fcntl, "flock", lambda *arguments: pytest.fail("locked"))
        assert numbers(capsys, path)["entries"] == 1
        monkeypatch.undo()


def test_no_descriptor_is_left_open(make, path, clock, monkeypatch):
    make().set("a", 1)
    logs = []
    opened = logfile.LogFile._open
    monkeypatch.setattr(logfile.LogFile, "_open", lambda log: logs.append(log) or opened(log))
    inspect_file(path, clock)
    letters = path.parent / "letters"
    letters.write_bytes(b"dear")
    with pytest.raises(StoreError):
        inspect_file(letters)
    assert [log.fd for log in logs] == [-1, -1]


# -- what cannot be listed ---------------------------------------------------------------------------------------------


def test_a_foreign_file_is_said_to_be_one(tmp_path, capsys):
    for data in b"dear diary " * 20, b"", b"\x89memolog", b"\x89PNG":
        letters = tmp_path / "letters"
        letters.write_bytes(data)
        code, message = failure(capsys, letters)
        assert code == 1
        assert str(letters) in message
        assert ("was not written by PickleFileStore" if data[:4] in (b"dear", b"\x89PNG") else "is empty") in message
        assert letters.read_bytes() == data


def test_a_newer_format_is_said_to_be_one(make, path, capsys):
    make().close()
    data = bytearray(path.read_bytes())
    data[8] += 1
    path.write_bytes(data)
    code, message = failure(capsys, path)
    assert code == 1
    assert "its format is 2, and this memo knows 1: upgrade memo-cache" in message


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path, capsys, kind):
    path = tmp_path / kind
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("somewhere")}[kind]()
    code, message = failure(capsys, path)
    assert code == 1
    assert ("a symbolic link" if kind == "link" else "no regular file") in message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://cache.memo", "a file URL has no host and an absolute path"),
        ("file:///no/such/folder/cache.memo", "the folder '/no/such/folder' is not there"),
        ("file:cache.memo", "is no URL"),
    ],
)
def test_a_url_that_is_none_says_what_is_allowed(capsys, url, message):
    code, text = failure(capsys, url)
    assert code == 1
    assert message in text


def test_a_system_without_file_locks_says_so(make, path, monkeypatch):
    make()
    monkeypatch.setattr(inspection, "LOCKS", False)
    with pytest.raises(StoreError, match="this system has no flock"):
        inspect_file(path)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fruit(path):
    """A file of the present, since the command goes by the time of day."""
    store = PickleFileStore(path)
    store.set("apple", "x" * 100)
    store.set("cherry", "x" * 50_000, ttl=7_200)
    store.set("banana", 1, ttl=600)
    store.close()
    return path


def test_a_person_reads_a_table_and_the_totals(fruit, capsys):
    lines = inspected(capsys, fruit).splitlines()
    assert lines[0] == str(fruit) if len(str(fruit)) <= 80 else lines[0].endswith(str(fruit)[-70:])
    assert lines[1].split() == ["format", "1", "not", "signed"]
    assert lines[2].split()[0] == "size"
    assert lines[3].split() == ["entries", "3", "0", "more", "expired"]
    assert lines[4].split()[:2] == ["torn", "0"]
    assert lines[5].split()[:2] == ["damaged", "0"]
    assert lines[7].split() == ["key", "age", "left", "size"]
    assert [line.split()[0] for line in lines[8:]] == ["apple", "banana", "cherry"]
    assert lines[8].split()[-3] == "never"
    assert lines[10].split()[-3:] in (["h", "50.1", "kB"], ["min", "50.1", "kB"])


def test_a_program_reads_json(fruit, capsys):
    found = numbers(capsys, fruit)
    keys = found.pop("keys")
    assert found == {
        "path": str(fruit),
        "version": 1,
        "signed": False,
        "file_size": fruit.stat().st_size,
        "live_size": fruit.stat().st_size - frames.HEADER,
        "garbage_size": 0,
        "unread_size": 0,
        "torn": 0,
        "damaged": 0,
        "expired": 0,
        "entries": 3,
        "matching": 3,
    }
    assert [each["key"] for each in keys] == ["apple", "banana", "cherry"]
    assert keys[0].keys() == {"key", "function", "tags", "age", "left", "size"}
    assert keys[0]["left"] is None
    assert 590 < keys[1]["left"] <= 600


def test_a_url_is_as_good_as_a_path(fruit, capsys):
    assert numbers(capsys, f"file://{fruit}?max_size=5")["path"] == str(fruit)


def test_keys_are_chosen_sorted_and_limited(fruit, capsys):
    def keys(*options):
        return [each["key"] for each in numbers(capsys, fruit, *options)["keys"]]

    assert keys("--sort", "size") == ["cherry", "apple", "banana"]
    assert keys("--sort", "age") == ["apple", "cherry", "banana"]
    assert keys("--sort", "size", "--limit", "2") == ["cherry", "apple"]
    assert keys("--pattern", "*an*") == ["banana"]
    found = numbers(capsys, fruit, "--pattern", "[ab]*", "--limit", "1")
    assert (found["entries"], found["matching"], len(found["keys"])) == (3, 2, 1)
    assert inspected(capsys, fruit, "--limit", "1").splitlines()[-1] == "2 more: --limit lists them"
    assert inspected(capsys, fruit, "--pattern", "x").splitlines()[-1] == "no entry matches"


def test_an_empty_file_of_a_store_has_no_entries(path, capsys):
    PickleFileStore(path).close()
    assert inspected(capsys, path).splitlines()[-1] == "no entries"
    assert numbers(capsys, path)["keys"] == []


def test_what_is_at_the_end_and_cannot_be_told_is_said(fruit, capsys):
    fruit.write_bytes(fruit.read_bytes()[:-1])
    assert any(line.split()[0] == "unread" for line in inspected(capsys, fruit).splitlines() if line)


def test_the_function_is_told_where_the_key_does_not_begin_with_it_and_tags_always(path, capsys):
    store = PickleFileStore(path)
    cache_aside(store=store, key="user:{x}", tags=("users", "user:{x}"), namespace="app")(lambda x: x)(7)
    cache_aside(store=store, key="user:{x}")(_identity)(8)
    store.close()
    lines = inspected(capsys, path).splitlines()
    assert lines[-4].startswith("app:user:7 ")
    assert lines[-3] == "    tags: users, user:7"
    assert lines[-2].startswith("user:8 ")
    assert lines[-1].startswith("    function: ")
    assert "_identity" in lines[-1]


def _identity(x):
    return x


NASTY = [
    "\x1b[2J\x1b]0;owned\x07",
    "line\nbreak\r\ttab",
    "\x9b31m",
    "\u202egnp.exe",
    "lone \ud800",
    "back\\x1b",
    "\u2028\u2029\u200b\ufeff",
    "bell\x07null\x00delete\x7f",
]


def test_nothing_in_a_key_a_tag_or_a_path_reaches_the_terminal_as_a_command(tmp_path, capsys):
    path = tmp_path / "a\x1b[2Jb.memo"
    store = PickleFileStore(path)
    for number, text in enumerate(NASTY):
        store.set(text, 1)
        cache_aside(store=store, key="k{x}", tags=(text,), namespace=f"fn{number}")(lambda x: x)(1)
    store.close()
    text = inspected(capsys, path, "--limit", "99")
    assert all(each == "\n" or each.isprintable() for each in text)
    assert "\\x1b[2J\\x1b]0;owned\\x07" in text
    assert "tags: lone \\ud800" in text
    assert "back\\\\x1b" in text
    assert len(text.splitlines()) == 9 - 1 + 3 * len(NASTY)
    found = numbers(capsys, path)
    assert {each["key"] for each in found["keys"]} >= set(NASTY)
    assert inspected(capsys, path, "--json").isascii()
    path.unlink()
    code, message = failure(capsys, path)
    assert code == 1
    assert "\x1b" not in message


def test_no_line_is_longer_than_80_columns_whatever_the_keys_are(tmp_path, capsys):
    folder = tmp_path / ("f" * 100)
    folder.mkdir()
    store = PickleFileStore(folder / "cache.memo")
    for key in ("k" * 500, "漢字" * 100, "漢" * 40, "é" * 200, "e\u0301" * 200, "\x1b" * 100):
        store.set(key, "x" * 5_000_000 if key[0] == "k" else 1, ttl=3e9)
    cache_aside(store=store, key="k{x}", tags=("t" * 300,), namespace="fn" * 90)(lambda x: x)("y" * 400)
    store.close()
    lines = inspected(capsys, folder / "cache.memo").splitlines()
    assert max(map(cli.cell_len, lines)) <= 80
    assert lines[0].startswith("...")
    assert lines[0].endswith("/cache.memo")
    assert not any("…" in line for line in lines)  # that is not ASCII
    assert sum("..." in line for line in lines) >= 8
    assert [line for line in lines if line != line.rstrip()] == []
    assert len(lines) == 8 + 7 + 1


def test_a_terminal_that_knows_ascii_only_gets_ascii_only(path):
    store = PickleFileStore(path)
    store.set("søppel 漢", 1)
    store.close()
    command = [sys.executable, "-m", "memo", "inspect", str(path)]
    done = subprocess.run(
        command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=60
    )
    assert b"s\\xf8ppel \\u6f22" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "< 1 s"),
        (0.9, "< 1 s"),
        (1, "1 s"),
        (59.4, "59 s"),
        (60, "1.0 min"),
        (599, "10.0 min"),
        (600, "10 min"),
        (5_000, "1.4 h"),
        (86_400, "1.0 d"),
        (864_000, "10 d"),
        (1e9, "11,574 d"),
        (float("inf"), "never"),
    ],
)
def test_times_are_shown_in_the_largest_unit_that_fits(seconds, shown):
    assert cli._span(seconds) == shown


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--limit", "0"], ["a", "--sort", "name"], ["a", "--x"]])
def test_arguments_that_are_not_allowed_say_what_is(capsys, arguments):
    code, message = failure(capsys, *arguments)
    assert code == 2
    assert "memo inspect" in message


def test_help_teaches_with_examples(capsys):
    assert cli.main(["inspect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "memo inspect cache.memo --json" in text
    assert "No value is unpickled" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_file_in_use_is_read_as_it_was_when_it_was_opened(make, path, clock, monkeypatch):
    """1. The file is opened. 2. Another process rewrites it and goes on. 3. What was there at 1 is listed."""
    store = make()
    for _ in range(10):
        store.set("a", "x" * 100)
    opened = logfile.LogFile.reading

    def reading(where):
        log = opened(where)
        assert store.compact()
        store.set("b", 2)
        return log

    monkeypatch.setattr(logfile.LogFile, "reading", reading)
    found = inspect_file(path, clock)
    assert [entry.key for entry in found.entries] == ["a"]
    assert found.garbage_size > found.live_size
    monkeypatch.undo()
    assert [entry.key for entry in inspect_file(path, clock).entries] == ["a", "b"]
