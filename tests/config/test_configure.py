"""`configure` and the environment: what they say, when they are asked, and what a second word does to the first."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import UserDict
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from memo import MISSING, MemoryStore, NullStore, OptionError, Store, cache_aside, config, configure
from memo.config import resolve_store

SAFETY = 30


def cached(**options: Any) -> Any:
    return cache_aside(namespace="fn", **options)(lambda a: object())


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_default_is_what_functions_use_that_name_none() -> None:
    configure(default="memory://?max_size=7")
    assert cached().store.max_size == 7
    assert cached(store="default").store is cached().store
    store = MemoryStore()
    configure(default=store)
    assert cached().store is store


def test_stores_are_used_by_their_names() -> None:
    mine = MemoryStore()
    configure(stores={"local": "memory://?max_size=7", "mine": mine, "off": "null://"})
    assert cached(store="local").store.max_size == 7
    assert cached(store="mine").store is mine
    assert type(cached(store="off").store) is NullStore
    assert cached().store is not cached(store="local").store


def test_any_mapping_names_stores() -> None:
    configure(stores=UserDict(local="memory://?max_size=7"))
    assert cached(store="local").store.max_size == 7


def test_one_url_is_one_store_whoever_names_it() -> None:
    configure(default="memory://?max_size=7", stores={"a": "memory://?max_size=7", "b": "memory://?max_size=8"})
    stores = [cached(store=store).store for store in ("default", "a", "memory://?max_size=7")]
    assert stores[0] is stores[1] is stores[2]
    assert cached(store="b").store is not stores[0]


def test_functions_may_be_decorated_before_anything_is_configured() -> None:
    fn = cached(store="local")
    configure(stores={"local": "memory://?max_size=7"})
    assert fn(1) is fn(1)
    assert fn.store.max_size == 7


def test_nothing_is_made_before_the_first_call_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMO_TTL", "not a number")  # nor is the environment read
    configure(default="memory://", stores={"local": "memory://?max_size=7"}, prefix="app:")
    cached(store="local")
    assert config._stores == {}
    assert config._current is None


@pytest.mark.parametrize("ttl", [90, 90.0, timedelta(seconds=90)])
def test_the_ttl_is_that_of_urls_that_name_none(ttl: Any) -> None:
    configure(
        stores={"plain": "memory://", "own": "memory://?default_ttl=5", "never": "memory://?default_ttl=none"}, ttl=ttl
    )
    assert [cached(store=name).store.default_ttl for name in ("plain", "own", "never", "default")] == [90, 5, None, 90]
    mine = MemoryStore()
    configure(default=mine, ttl=ttl)
    assert cached().store.default_ttl is None  # made by somebody else


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"default": "local"}, r"^default='\.\.\.' is no URL: allowed are 'memory://', 'null://', .* and 'unix://'$"),
    ({"default": 5}, r"^default= is of type int: allowed are a store, such as MemoryStore\(\), or 'memory://'$"),
    ({"default": MemoryStore}, r"^default= is of type ABCMeta"),
    ({"default": ["memory://", "null://"]}, r"^default= is a list: tiers of several stores are not there yet"),
    ({"default": "etcd://:hunter2@host"}, r"^default='etcd:\.\.\.': this scheme is not known"),
    (
        {"default": "memory://?max_size=0"},
        r"^default='memory:\.\.\.': max_size='0': allowed are whole numbers from 1 on",
    ),
    ({"stores": ["memory://"]}, r"^stores= is of type list: allowed is a dict from names to stores$"),
    ({"stores": "memory://"}, r"^stores= is of type str"),
    ({"stores": {"a b": "memory://"}}, r"^stores= has a name that is not allowed: allowed are identifiers other than"),
    ({"stores": {"etcd://:hunter2@host": "memory://"}}, r"^stores= has a name that is not allowed"),
    ({"stores": {5: "memory://"}}, r"^stores= has a name that is not allowed"),
    ({"stores": {"default": "memory://"}}, r"^stores= has a name that is not allowed: .* other than 'default'$"),
    ({"stores": {"a": "memory://", "b": "nope://:hunter2@host"}}, r"^stores\['b'\]='nope:\.\.\.': this scheme is not"),
    ({"stores": {"a": "b"}}, r"^stores\['a'\]='\.\.\.' is no URL"),
    ({"stores": {"a": ("memory://",)}}, r"^stores\['a'\]= is a tuple: tiers of several stores are not there yet"),
    ({"stores": {"a": None}}, r"^stores\['a'\]= is of type NoneType"),
    ({"prefix": 5}, r"^prefix=5: allowed is text without any of"),
    ({"prefix": "a*"}, r"^prefix='a\*': allowed is text"),
    ({"prefix": "a\n"}, r"^prefix='a\\n': allowed is text"),
    ({"ttl": 0}, r"^ttl=0: allowed are more than 0"),
    ({"ttl": "60"}, r"^ttl='60': allowed are seconds"),
    ({"ttl": True}, r"^ttl=True: allowed are seconds"),
]


@pytest.mark.parametrize(("said", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_entry_is_named_and_changes_nothing(said: dict[str, Any], message: str) -> None:
    configure(default="memory://?max_size=7", stores={"local": "memory://?max_size=8"}, ttl=5)
    fn = cached()
    kept = fn(1)
    good: dict[str, Any] = {"default": "memory://?max_size=9", "stores": {"local": "null://"}, "prefix": "x", "ttl": 9}
    with pytest.raises(OptionError, match=message) as caught:
        configure(**{**good, **said})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert fn(1) is kept
    assert (cached().store.max_size, cached().store.default_ttl) == (7, 5)
    assert cached(store="local").store.max_size == 8


# -- the environment ---------------------------------------------------------------------------------------------------


def test_the_environment_says_what_configure_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMO_STORE", "memory://?max_size=7")
    monkeypatch.setenv("MEMO_TTL", "2.5")
    assert (cached().store.max_size, cached().store.default_ttl) == (7, 2.5)
    configure(default="memory://?max_size=8")
    assert (cached().store.max_size, cached().store.default_ttl) == (8, 2.5)
    configure(ttl=9)
    assert (cached().store.max_size, cached().store.default_ttl) == (7, 9)
    configure(default=MemoryStore(max_size=5))
    assert cached().store.max_size == 5


def test_the_environment_is_read_when_the_first_store_is_needed_and_then_again_after_configure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fn = cached()
    monkeypatch.setenv("MEMO_STORE", "memory://?max_size=7")
    assert fn.store.max_size == 7
    monkeypatch.setenv("MEMO_STORE", "memory://?max_size=8")
    assert fn.store is cached().store  # two functions of one store stay so
    configure()
    assert fn.store.max_size == 8


def test_variables_that_are_empty_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEMO_STORE", "MEMO_PREFIX", "MEMO_TTL"):
        monkeypatch.setenv(name, "")
    assert (cached().store.max_size, cached().store.default_ttl) == (10_000, None)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MEMO_STORE", "etcd://:hunter2@host", r"fn: MEMO_STORE='etcd:\.\.\.': this scheme is not known"),
        ("MEMO_STORE", "local", r"fn: MEMO_STORE='\.\.\.' is no URL"),
        ("MEMO_STORE", "http://[hunter2", r"fn: MEMO_STORE= is no URL"),
        ("MEMO_STORE", "memory://?hunter2=1", r"fn: MEMO_STORE='memory:\.\.\.': there is an option that is not known"),
        ("MEMO_TTL", "soon", r"fn: MEMO_TTL='soon': allowed are seconds, more than 0$"),
        ("MEMO_TTL", "0", r"fn: MEMO_TTL='0': allowed are seconds, more than 0$"),
        ("MEMO_TTL", "nan", r"fn: MEMO_TTL='nan'"),
        ("MEMO_PREFIX", "a*", r"fn: MEMO_PREFIX='a\*': allowed is text without any of"),
    ],
)
def test_a_bad_variable_is_an_error_of_the_first_call_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    fn = cached()
    for call in fn, fn.peek, fn.invalidate:
        with pytest.raises(OptionError, match=message.replace("fn: ", r"<lambda>: ")) as caught:
            call(1)
        assert "hunter2" not in str(caught.value)
    monkeypatch.delenv(name)
    assert fn(1) is fn(1)  # nothing was half read


def test_a_variable_that_is_not_asked_may_be_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEMO_STORE", "MEMO_TTL", "MEMO_PREFIX"):
        monkeypatch.setenv(name, "*")
    configure(default="memory://", prefix="", ttl=5)
    assert cached().store.default_ttl == 5


# -- said again --------------------------------------------------------------------------------------------------------


def test_functions_that_go_by_a_name_find_their_store_again() -> None:
    configure(default="memory://?max_size=7", stores={"local": "memory://?max_size=8"})
    default, local, url, mine = cached(), cached(store="local"), cached(store="memory://?max_size=9"), MemoryStore()
    fixed = cached(store=mine)
    functions = default, local, url, fixed
    before = [function(1) for function in functions]
    configure(default="memory://?max_size=70", stores={"local": "null://"})
    assert (default.store.max_size, type(local.store)) == (70, NullStore)
    after = [function(1) for function in functions]
    assert after[0] is not before[0]
    assert after[1] is not before[1]
    assert after[2] is before[2]  # the URL still says the same
    assert after[3] is before[3]
    assert fixed.store is mine


def test_a_store_that_is_still_named_keeps_its_entries() -> None:
    configure(default="memory://?max_size=7", stores={"local": "memory://?max_size=8"})
    fn, local = cached(), cached(store="local")
    kept, other = fn(1), local(1)
    configure(default="memory://?max_size=7", stores={"elsewhere": "memory://?max_size=8"})
    assert fn(1) is kept
    assert cached(store="elsewhere").store.max_size == 8
    assert fn.stats().hits == 1
    configure(default="memory://?max_size=8", stores={"local": "memory://?max_size=7"})
    assert local(1) is not other
    assert local.store is not fn.store
    assert fn.store.keys() == ["fn(1)"]  # of the function that was there, under another name
    assert fn.peek(1) is MISSING


def test_the_default_of_before_is_kept_where_nothing_names_another() -> None:
    fn = cached()
    kept = fn(1)
    configure(stores={"local": "memory://"})
    assert fn(1) is kept
    configure(default="null://")
    assert fn(1) is not kept
    configure()
    assert fn(1) is not kept  # it was let go


def test_what_says_how_stores_are_made_makes_them_anew() -> None:
    for said in {"ttl": 5}, {"ttl": 6}, {"ttl": 6, "prefix": "a:"}, {"ttl": 6, "prefix": "b:"}:
        before = resolve_store("memory://")
        configure(**said)
        assert resolve_store("memory://") is not before
    before = resolve_store("memory://")
    configure(ttl=6, prefix="b:")
    assert resolve_store("memory://") is before


def test_a_store_that_nobody_names_any_more_is_freed_and_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "close", lambda store: 1 / 0)
    configure(default="memory://?max_size=7")
    called, uncalled = cached(), cached()
    called(1), uncalled(1)
    gone = weakref.ref(called.store)
    configure(default="memory://?max_size=8")
    called(1)
    gc.collect()
    assert gone() is None


def test_a_store_that_somebody_holds_keeps_its_entries() -> None:
    configure(default="memory://?max_size=7")
    fn = cached()
    kept = fn(1)
    store = fn.store
    configure(default="null://")
    fn(1)
    assert store.get("fn(1)") is kept
    configure(default=store)
    assert fn(1) is kept


def test_a_function_that_moves_is_counted_by_each_store_for_its_own_time() -> None:
    one, two = MemoryStore(), MemoryStore()
    fn = cached()

    def counts() -> list[tuple[int, int]]:
        return [(store.stats().hits, store.stats().misses) for store in (one, two)]

    configure(default=one)
    fn(1), fn(1), fn(1)
    assert counts() == [(2, 1), (0, 0)]
    configure(default=two)
    assert counts() == [(2, 1), (0, 0)]
    fn(1), fn(1)
    assert counts() == [(2, 1), (1, 1)]
    configure(default=one)
    fn(1), fn(2)
    assert counts() == [(3, 2), (1, 1)]
    assert (fn.stats().hits, fn.stats().misses) == (4, 3)


def test_a_load_that_is_under_way_ends_in_the_store_it_began_with() -> None:
    begun, go = threading.Event(), threading.Event()
    one, two = MemoryStore(), MemoryStore()
    results = []

    @cache_aside(namespace="slow")
    def slow(a: int) -> object:
        begun.set()
        assert go.wait(SAFETY)
        return object()

    configure(default=one)
    thread = threading.Thread(target=lambda: results.append(slow(1)), daemon=True)
    thread.start()
    assert begun.wait(SAFETY)
    configure(default=two)
    assert slow.peek(1) is MISSING
    go.set()
    assert slow(1) is not slow.__wrapped__(1)
    thread.join(SAFETY)
    assert one.get("slow(1)") is results[0]
    assert two.get("slow(1)") is slow(1) is not results[0]


# -- moments -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let something happen once, right after a store was made and before that is noted."""

    def let(happen: Any) -> None:
        make = config.make_store

        def made(*args: Any) -> Store:
            monkeypatch.setattr(config, "make_store", make)
            store = make(*args)
            closed.append(store)
            monkeypatch.setattr(type(store), "close", lambda store: notes.closed.append(store))
            happen()
            return store

        monkeypatch.setattr(config, "make_store", made)

    closed: list[Store] = []
    notes = SimpleNamespace(let=let, made=closed, closed=[])
    return notes


def test_a_store_that_another_thread_made_meanwhile_is_taken_and_ours_closed(between: Any) -> None:
    found: list[Store] = []
    between.let(lambda: found.append(resolve_store("memory://?max_size=5")))
    assert resolve_store("memory://?max_size=5") is found[0]
    assert between.closed == between.made != found


def test_a_store_that_was_made_for_what_was_said_before_is_not_used(between: Any) -> None:
    configure(default="memory://?max_size=5")
    between.let(lambda: configure(default="memory://?max_size=6"))
    assert resolve_store("default").max_size == 6  # type: ignore[attr-defined]
    assert between.closed == between.made
    assert list(config._stores) == ["memory://?max_size=6"]


def test_a_store_that_cannot_be_closed_then_is_no_error_of_the_call(
    between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    between.let(lambda: (resolve_store("null://"), monkeypatch.setattr(NullStore, "close", lambda store: 1 / 0)))
    assert type(resolve_store("null://")) is NullStore


def test_threads_that_configure_and_threads_that_call_never_disagree() -> None:
    """Whatever the order, when all is quiet every function is in the store that was said last."""
    stores = [MemoryStore() for _ in range(3)]
    functions = [cached() for _ in range(4)]
    over, called, start = threading.Event(), threading.Event(), threading.Barrier(4)
    failures: list[BaseException] = []

    def guarded(work: Any) -> Any:
        def run() -> None:
            start.wait(SAFETY)
            try:
                work()
            except BaseException as error:
                failures.append(error)

        return run

    def say() -> None:
        for turn in range(60):
            called.clear()
            configure(default=stores[turn % 3])
            assert called.wait(SAFETY)
        over.set()

    def call() -> None:
        while not over.is_set():
            for function in functions:
                assert type(function(1)) is object
                function.peek(1)
            called.set()

    configure(default=stores[0])
    threads = [threading.Thread(target=guarded(work), daemon=True) for work in (say, call, call, call)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY)
    assert failures == []
    for function in functions:
        kept = function(1)
        assert function.store is stores[2]
        assert function(1) is kept
    assert all(store.stats().hits > 0 for store in stores)
    counted = sum(store.stats().hits + store.stats().misses for store in stores)
    calls = sum(function.stats().hits + function.stats().misses for function in functions)
    # A hit in the very moment of a change may count for neither store: at most one for each thread.
    assert calls - 3 * 60 <= counted <= calls
