"""URLs of files: what they say of the store, what is refused and when, and what such stores keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import memo
from memo import OptionError, PickleFileStore, StoreError, cache_aside, config, configure, override
from memo.config import check_store, resolve_store
from memo.urls import file_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    yield tmp_path / "cache.memo"
    memo.close()


def cached(**options: Any) -> Any:
    return cache_aside(namespace="fn", **options)(lambda a: [a])


# -- what it says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "max_size", "default_ttl", "timeout"),
    [
        ("", None, None, 0.25),
        ("?", None, None, 0.25),
        ("?max_size=5", 5, None, 0.25),
        ("?max_size=none&default_ttl=none&timeout=3", None, None, 3),
        ("?timeout=1e-3&default_ttl=2.5&max_size=7", 7, 2.5, 0.001),
    ],
)
def test_a_file_url_says_what_the_store_is_like(
    path: Path, query: str, max_size: Any, default_ttl: Any, timeout: Any
) -> None:
    url = f"file://{path}{query}"
    check_store(url, "fn")
    assert not path.exists()
    store: Any = resolve_store(url)
    assert type(store) is PickleFileStore
    assert (store.path, store.max_size, store.default_ttl, store._timeout) == (
        str(path),
        max_size,
        default_ttl,
        timeout,
    )
    assert path.exists()


def test_a_scheme_is_known_in_capitals_too(path: Path) -> None:
    assert resolve_store(f"FILE://{path}").path == str(path)


@pytest.mark.parametrize("name", ["a b.memo", "50%.memo", "a?b#c&d=e.memo", "søppel.memo", "a;b.memo", "%41", "*.memo"])
def test_a_path_may_be_any_when_it_is_percent_encoded(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    store: Any = resolve_store(f"file://{quote(str(folder / name))}?max_size=5")
    store.set("a", 1)
    assert os.listdir(folder) == [name]
    memo.close()


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_path_that_is_no_text_is_that_of_the_same_bytes(tmp_path: Path) -> None:
    resolve_store(f"file://{tmp_path}/%ff%fe").set("a", 1)
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]
    memo.close()


def test_the_path_is_decoded_once_and_options_are_not_part_of_it() -> None:
    assert file_path("file:///a%2541?max_size=5", "FILE=") == "/a%41"


# -- where it may stand ------------------------------------------------------------------------------------------------


def test_functions_of_one_url_share_one_store_and_find_their_results_in_another(path: Path) -> None:
    url = f"file://{path}"
    configure(default=url, stores={"disk": url})
    fn = cached()
    fn(1)
    assert fn.store is cached(store="disk").store is cached(store=url).store
    memo.close()
    again = cached(store=url)
    assert again(1) == [1]
    assert (again.stats().hits, again.stats().misses) == (1, 0)


def test_configure_says_the_ttl_and_a_prefix_changes_nothing(path: Path) -> None:
    configure(stores={"plain": f"file://{path}", "own": f"file://{path}?default_ttl=5"}, prefix="app:", ttl=60)
    plain, own = cached(store="plain"), cached(store="own")
    assert (plain.store.default_ttl, own.store.default_ttl) == (60, 5)
    plain(1)
    assert own.store.keys() == ["fn(1)"]  # the file is the store's own: nothing in it has to be told apart


def test_the_environment_names_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMO_STORE", f"file://{path}?max_size=9")
    store = cached().store
    assert (store.path, store.max_size) == (str(path), 9)


def test_nothing_is_opened_before_the_first_call_and_close_closes(path: Path) -> None:
    configure(default=f"file://{path}")
    fn = cached()
    assert config._stores == {}
    assert not path.exists()
    fn(1)
    store = fn.store
    assert path.exists()
    memo.close()
    assert store._view is None
    assert fn(1) == [1]  # and goes on, from the file


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD = [
    ("file://cache.memo", r"a file URL has no host and an absolute path: 'file:///folder/name\.memo'$"),
    ("file://localhost{path}", r"a file URL has no host and an absolute path"),
    ("file://user:hunter2@host{path}", r"a file URL has no host and an absolute path"),
    ("file://", r"a file URL has no host and an absolute path"),
    ("file://?max_size=5", r"a file URL has no host and an absolute path"),
    ("file:///", r"a file URL has no host and an absolute path"),
    ("file://{path}/", r"a file URL has no host and an absolute path"),
    ("file:{path}", r"is no URL: allowed are "),
    ("file://{path}#1", r"a '#' in the path of a file URL is written as '%23'$"),
    ("file://{path}?size=5", r"there is an option that is not known: allowed are 'max_size', 'default_ttl' and 'time"),
    ("file://{path}?hunter2=5", r"there is an option that is not known"),
    ("file://{path}?cleanup_interval=5", r"there is an option that is not known"),
    ("file://{path}?secret=hunter2hunter2hunter2", r"a secret does not belong into a URL, .* give a store, PickleFile"),
    ("file://{path}?secret=", r"a secret does not belong into a URL"),
    ("file://{path}?max_size=x", r"max_size='x': allowed are a whole number and 'none'$"),
    ("file://{path}?max_size=0", r"max_size='0': allowed are whole numbers from 1 on, and 'none'$"),
    ("file://{path}?max_size=", r"max_size='': allowed are a whole number and 'none'$"),
    ("file://{path}?default_ttl=0", r"default_ttl='0': allowed are seconds, more than 0, and 'none'$"),
    ("file://{path}?timeout=none", r"timeout='none': allowed are seconds, more than 0$"),
    ("file://{path}?timeout=-1", r"timeout='-1': allowed are seconds, more than 0$"),
    ("file://{path}?timeout=nan", r"timeout='nan': allowed are seconds, more than 0$"),
    ("file://{folder}/gone/cache.memo", r"the folder '.*/gone' is not there: make it first$"),
    ("file://{path}%00", r"a path has no NUL in it$"),
]


@pytest.mark.parametrize("where", ["store=", "default=", "stores['a']=", "override", "MEMO_STORE="])
@pytest.mark.parametrize(("url", "message"), BAD, ids=[url for url, _ in BAD])
def test_what_is_not_allowed_is_a_clear_error_before_anything_is_opened(
    path: Path, url: str, message: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = url.format(path=path, folder=path.parent)
    before = os.listdir(path.parent)
    with pytest.raises(OptionError, match=message) as caught:
        if where == "store=":
            cached(store=given)
        elif where == "default=":
            configure(default=given)
        elif where == "override":
            override(given)
        elif where == "MEMO_STORE=":
            monkeypatch.setenv("MEMO_STORE", given)
            cached()(1)
        else:
            configure(stores={"a": given})
    if where != "override":
        assert f"{where}'file:...'" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert os.listdir(path.parent) == before


def test_a_folder_that_goes_before_the_first_call_is_an_error_of_that_call(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fn = cached(store=f"file://{folder}/cache.memo")
    folder.rmdir()
    for _ in range(2):
        with pytest.raises(OptionError, match=r"<lambda>: store='file:\.\.\.': .* is not there: make it first$"):
            fn(1)
    folder.mkdir()
    assert fn(1) == [1]
    memo.close()


def test_a_file_that_is_not_memos_is_an_error_of_the_first_call_and_stays_as_it_is(path: Path) -> None:
    path.write_bytes(b"somebody's letters")
    fn = cached(store=f"file://{path}")
    with pytest.raises(StoreError, match="was not written by PickleFileStore"):
        fn(1)
    assert path.read_bytes() == b"somebody's letters"


def test_a_system_without_file_locks_says_so_and_has_all_the_rest() -> None:
    script = """
import os, sys
sys.modules["fcntl"] = None
for name in "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "fork", "register_at_fork", "geteuid", "pread", "writev":
    delattr(os, name)
import memo
print(memo.cache_aside(lambda: 5)())
for use in lambda: memo.configure("file:///a.memo"), lambda: memo.PickleFileStore("/a.memo"):
    try:
        use()
    except memo.OptionError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "5",
        "default='file:...': a file store needs flock, which this system does not have: use 'memory://'",
        "PickleFileStore needs flock, which this system does not have: use MemoryStore",
    ]
