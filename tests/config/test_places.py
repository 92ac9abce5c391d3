"""How one function leaves a store and comes back: what it finds there, what is counted, and what is kept alive."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from memo import MISSING, MemoryStore, NullStore, cache_aside, configure, override, places
from memo.stores import Space
from memo.stores.null import NullSpace
from memo.testing import ManualClock, check_memory_store

SAFETY = 30


def function(**options: Any) -> Any:
    return cache_aside(namespace="fn", **options)(lambda x: object())


class Texts(NullStore):
    """A store whose keys must be text, as those of a store that other processes share."""

    shared = False

    def attach(self, *args: Any) -> NullSpace:
        space = TextSpace()
        space.joined = space.left_ = 0  # type: ignore[attr-defined]
        self.spaces = [*getattr(self, "spaces", []), weakref.ref(space)]
        return space


class TextSpace(NullSpace):
    def take(self, key: Any, tags: Any, renew: bool) -> Any:
        assert type(key) is str
        return super().take(key, tags, renew)

    def join(self, hits: Any, misses: Any) -> bool:
        self.joined += 1  # type: ignore[attr-defined]
        return super().join(hits, misses)

    def leave(self) -> None:
        self.left_ += 1  # type: ignore[attr-defined]
        super().leave()


# -- what is found again -----------------------------------------------------------------------------------------------


def test_instances_find_their_own_entries_again() -> None:
    class Shop:
        @cache_aside
        def total(self, x: int) -> object:
            return object()

    one, two = Shop(), Shop()
    kept = one.total(1), two.total(1)
    store = MemoryStore()
    with override(store):
        others = one.total(1), two.total(1)
        assert len({*others, *kept}) == 4
    assert (one.total(1), two.total(1)) == kept
    with override(store):
        assert (one.total(1), two.total(1)) == others
        check_memory_store(store)


def test_stores_with_clocks_and_serializers_of_their_own(clock: ManualClock) -> None:
    """The code for a store holds its clock; another one's would serve what is over."""
    slow, fast = ManualClock(0.0), clock
    stores = [MemoryStore(clock=slow), MemoryStore(clock=fast), MemoryStore(serializer=__import__("pickle"))]
    calls = []
    fn: Any = cache_aside(ttl=10, namespace="fn")(lambda x: calls.append(x) or len(calls))
    for store in stores:
        with override(store):
            fn(1)
    fast.advance(10)
    for store, expected in zip(stores, [1, 4, 3], strict=True):
        with override(store):
            assert fn(1) == expected


def test_explicit_keys_and_stores_of_text() -> None:
    keyed, plain, store = function(key="k:{x}"), function(), Texts()
    for fn in keyed, plain:
        kept = fn(1)
        with override(store):
            assert fn(1) is not kept
            assert type(fn.key_for(1)) is str
        assert fn(1) is kept


def test_a_raw_key_of_before_is_not_taken_to_a_store_of_text() -> None:
    """Code that has looked in a memory store may be overtaken before it says so."""
    fn, store = function(), Texts()
    fn(1)
    with override(store):
        fn(1)
        assert type(fn._self_memoized.miss(False, (1,), None, 1)) is object
    assert fn.stats().errors == {}


def test_code_that_somebody_holds_looks_where_the_function_is_and_counts_right() -> None:
    fn = function()
    kept = fn(1)
    held = type(fn).__call__
    assert held(1) is kept
    with override(MemoryStore()):
        other = held(1)
        assert held(1) is other is not kept
        assert (fn.stats().hits, fn.stats().misses) == (2, 2)
    assert held(1) is kept
    assert (fn.stats().hits, fn.stats().misses) == (3, 2)


def test_a_function_with_a_store_object_keeps_its_very_code_when_names_come_to_mean_something_else() -> None:
    fixed, named = function(store=MemoryStore()), function()
    fixed(1), named(1)
    code = type(fixed).__call__
    configure(default=MemoryStore())
    assert type(fixed).__call__ is code
    with override(MemoryStore()):
        fixed(1)
        configure(default=MemoryStore())
        fixed(1)
    fixed(1)
    assert type(fixed).__call__ is code


def test_windows_and_refreshes_stay_with_the_store_they_began_in(clock: ManualClock) -> None:
    store, other = MemoryStore(clock=clock), MemoryStore(clock=clock)
    go, begun = threading.Event(), threading.Event()
    calls: list[int] = []

    @cache_aside(store=store, ttl=10, stale_while_revalidate=10, namespace="windowed")
    def windowed(x: int) -> int:
        calls.append(x)
        if len(calls) == 2:
            begun.set()
            assert go.wait(SAFETY)
        return len(calls)

    assert windowed(1) == 1
    clock.advance(15)
    assert windowed(1) == 1  # stale, and refreshed behind
    assert begun.wait(SAFETY)
    with override(other):
        assert windowed(1) == 3
        go.set()
        from memo.background import background

        assert background.drain(SAFETY)
        assert other.get("windowed(1)") == 3
    assert windowed(1) == store.get("windowed(1)") == 3  # the refresh ended after that load, and returned its length
    assert windowed.stats().refreshes == 1


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_a_store_counts_calls_only_while_they_are_its_own() -> None:
    one, two = MemoryStore(), MemoryStore()
    fn = function(store=one)
    fn(1), fn(1), fn(1)
    for _ in range(3):
        with override(two):
            fn(1)
    assert (one.stats().hits, one.stats().misses) == (2, 1)
    assert (two.stats().hits, two.stats().misses) == (2, 1)
    fn(1)
    assert (one.stats().hits, two.stats().hits) == (3, 2)
    assert (fn.stats().hits, fn.stats().misses) == (5, 2)


def test_what_a_store_counts_survives_a_save_in_between(tmp_path: Any) -> None:
    one = MemoryStore()
    fn = function(store=one)
    fn(1), fn(1)
    with override(MemoryStore()):
        fn(1), fn(1), fn(1)
        one.save(tmp_path / "saved")
        one.load(tmp_path / "saved")
        assert (one.stats().hits, one.stats().misses) == (1, 1)
    kept = fn(1)
    assert fn(1) is kept
    assert (one.stats().hits, one.stats().misses) == (3, 1)


def test_joining_and_leaving_twice_is_the_same_as_once() -> None:
    store = MemoryStore()
    fn = function(store=store)
    fn(1), fn(1)
    space, counters = fn._self_memoized.space, fn._self_memoized.counters
    for _ in range(2):
        assert space.join(counters.hits, counters.misses)
        assert (store.stats().hits, store.stats().misses) == (1, 1)
    for _ in range(2):
        space.leave()
        assert (store.stats().hits, store.stats().misses) == (1, 1)
    assert space.join(counters.hits, counters.misses)
    fn(1)
    assert store.stats().hits == 2


def test_a_space_that_was_buried_is_not_joined_again() -> None:
    """The wrapper has died, its bound method lives on, and meanwhile the store has let its entries go."""
    store = MemoryStore(cleanup_interval=None)

    class Shop:
        @cache_aside(store=store)
        def total(self, x: int) -> object:
            return object()

    shop = Shop()
    held = shop.total
    kept = held(1)
    with override(NullStore()):
        held(1)
        del Shop.total
        gc.collect()
        store.cleanup()
        assert len(store) == 0
    again = held(1)
    assert again is not kept
    assert held(1) is again
    assert (store.stats().hits, store.stats().misses) == (1, 2)
    check_memory_store(store)


def test_a_space_of_a_store_of_ones_own_is_told_when_its_function_comes_and_goes() -> None:
    store = Texts()
    fn = function()
    with override(store):
        fn(1)
        space: Any = store.spaces[0]()
        assert (space.joined, space.left_) == (0, 0)
    assert (space.joined, space.left_) == (0, 1)
    with override(store):
        fn(1)
        assert (space.joined, space.left_) == (1, 1)
    assert (space.joined, space.left_) == (1, 2)
    assert len(store.spaces) == 1


def test_a_space_that_nobody_holds_and_one_that_cannot_be_held_weakly_are_made_anew() -> None:
    class Slotted(Space):
        __slots__ = ("flights", "inner")
        local = True

        def __init__(self) -> None:
            self.inner = NullSpace()
            self.flights = {}

    for name in Space.__abstractmethods__:
        setattr(Slotted, name, lambda self, *args, name=name: getattr(self.inner, name)(*args))
    Slotted.__abstractmethods__ = frozenset()

    class Slots(NullStore):
        made = 0

        def attach(self, *args: Any) -> Any:
            Slots.made += 1
            return Slotted()

    fn, slots, texts = function(), Slots(), Texts()
    for _ in range(2):
        with override(slots):
            fn(1)
        with override(texts):
            fn(1)
        gc.collect()
    assert Slots.made == 2
    assert len(texts.spaces) == 2


# -- what is kept alive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MemoryStore, NullStore, Texts])
def test_a_store_that_was_used_for_a_time_is_not_kept_alive(kind: Any) -> None:
    fn = function()
    fn(1)
    store = kind()
    with override(store):
        fn(1)
        bound = fn.store
    gone = weakref.ref(store)
    del store, bound
    fn(1)
    gc.collect()
    assert gone() is None
    assert len(fn._self_memoized._spaces) == 1


def test_a_function_is_not_kept_alive_by_the_stores_it_was_in() -> None:
    stores = [MemoryStore(), MemoryStore()]
    fn = function(store=stores[0])
    fn(1)
    with override(stores[1]):
        fn(1)
    fn(1)
    gone = weakref.ref(fn._self_memoized)
    before = len(places._alive())
    del fn
    gc.collect()
    assert gone() is None
    assert len(places._alive()) < before
    for store in stores:
        store.cleanup()
        assert len(store) == 0
        check_memory_store(store)


def test_the_wrapper_of_a_function_is_never_asked_what_it_is() -> None:
    """It stands for the function in all that Python asks, and a callable object may be false."""

    class False_:
        def __call__(self, x: int) -> object:
            return object()

        def __bool__(self) -> bool:
            raise AssertionError("asked")

        def __len__(self) -> int:
            raise AssertionError("asked")

    from memo import disabled

    fn: Any = cache_aside(False_())
    kept = fn(1)
    with disabled():
        assert fn(1) is not kept
    with override(MemoryStore()):
        assert fn(1) is not kept
    assert fn(1) is kept


# -- moments -----------------------------------------------------------------------------------------------------------


def test_a_finalizers_call_that_attaches_the_function_first_is_not_counted_twice() -> None:
    class Reentrant(MemoryStore):
        def attach(self, *args: Any) -> Any:
            if not entered:
                entered.append(True)
                results.append(fn(1))
            return super().attach(*args)

    entered: list[bool] = []
    results: list[object] = []
    store = Reentrant()
    fn = function(store=store)
    assert fn(1) is results[0]
    assert (store.stats().hits, store.stats().misses) == (1, 1)
    with override(NullStore()):
        fn(1)
    assert fn(1) is results[0]


def test_a_function_that_another_thread_attached_meanwhile_keeps_that_place() -> None:
    """A second place in its space would have code of its own, that nobody tells when the function leaves."""
    fn, store = function(), MemoryStore()
    memoized = fn._self_memoized
    lock = places._lock
    seen = []

    class Lock:
        def __enter__(self) -> None:
            places._lock = lock
            fn(1)
            seen.append(memoized._place)

        def __exit__(self, *exc: object) -> None: ...

    with override(store):
        places._lock = Lock()  # type: ignore[assignment]
        try:
            fn(1)
        finally:
            places._lock = lock
        assert memoized._place is seen[0]


def test_a_function_that_was_called_is_no_method_because_a_class_mentions_it_later() -> None:
    from memo import disabled

    @cache_aside
    def fn(self: int) -> object:
        return object()

    kept = fn(1)
    with disabled():

        class Mentions:
            mentioned = fn

    assert fn(1) is fn.peek(1) is kept


def test_a_change_that_comes_while_a_store_is_found_is_not_missed() -> None:
    fn = function()
    store, other = MemoryStore(), MemoryStore()
    memoized = fn._self_memoized
    found = memoized._found

    def late(mode: Any) -> Any:
        store = found(mode)
        memoized._found = found
        configure(default=other)  # another thread
        return store

    configure(default=store)
    memoized._found = late
    assert fn(1) is fn(1)
    assert fn.store is other
    assert len(store) == 0


def test_a_change_that_comes_just_before_a_methods_first_call_is_not_missed() -> None:
    @cache_aside
    def total(shop: object, x: int) -> object:
        return object()

    class Shop:
        by_x: Any = total  # only where it is called as a method an instance counts by identity

    store, other = MemoryStore(), MemoryStore()
    memoized: Any = total._self_memoized  # type: ignore[attr-defined]  # not for users, and so not in the types
    prepare = memoized.prepare

    def late() -> bool:
        memoized.prepare = prepare
        passing: bool = prepare()
        configure(default=other)  # another thread
        return passing

    configure(default=store)
    memoized.prepare = late
    shop = Shop()
    assert shop.by_x(1) is shop.by_x(1)
    assert (len(store), len(other)) == (0, 1)


def test_a_change_that_comes_while_calls_are_prepared_is_not_missed() -> None:
    """From caching to passing and back, between a look at what holds and the lock."""
    from memo import disabled

    fn, switch = function(), disabled()
    kept = fn(1)
    lock, steps = places._lock, [lambda: switch.__exit__(), switch.__enter__, lambda: switch.__exit__()]

    class Lock:
        def __enter__(self) -> None:
            places._lock = lock
            step = steps.pop(0)
            step()
            lock.acquire()

        def __exit__(self, *exc: object) -> None:
            lock.release()

    switch.__enter__()
    try:
        for passing in (False, True, False):
            fn._self_memoized.detach()
            places._lock = Lock()  # type: ignore[assignment]
            assert (fn(1) is not kept) == passing
    finally:
        places._lock = lock
    assert fn.peek(1) is kept
    assert fn.peek(2) is MISSING
