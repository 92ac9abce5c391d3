"""A decorated function, of every kind: calls, helpers, and its entries as the store shows them."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import wrapt

from memo import DEFAULT, MISSING, MemoryStore, NullStore, OptionError, cache_aside, escape_pattern, places
from memo.testing import ManualClock


class Both:
    """One face for the helpers of a function and for those of an async function."""

    def __init__(self, make: Callable[..., Any], asynchronous: bool) -> None:
        self.calls: list[Any] = []
        self.make = make
        self.asynchronous = asynchronous
        self.loop = asyncio.new_event_loop() if asynchronous else None

    def __call__(self, **options: Any) -> Any:
        calls = self.calls
        return self.make(calls, cache_aside(**options) if options else cache_aside)

    def run(self, result: Any) -> Any:
        return self.loop.run_until_complete(result) if self.loop is not None else result


def a_def(calls: list[Any], decorate: Any) -> Any:
    @decorate
    def fn(a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    return fn


def an_async_def(calls: list[Any], decorate: Any) -> Any:
    @decorate
    async def fn(a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    return fn


def a_lambda(calls: list[Any], decorate: Any) -> Any:
    return decorate(lambda a, b=2: calls.append((a, b)) or (None if a is None else len(calls)))


def a_partial(calls: list[Any], decorate: Any) -> Any:
    def fn(bound: str, a: Any, b: Any = 2, *, also: str) -> Any:
        assert (bound, also) == ("bound", "also")
        calls.append((a, b))
        return None if a is None else len(calls)

    return decorate(functools.partial(functools.partial(fn, "bound"), also="also"))


def an_async_partial(calls: list[Any], decorate: Any) -> Any:
    async def fn(bound: str, a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    return decorate(functools.partial(fn, "bound"))


def a_callable_object(calls: list[Any], decorate: Any) -> Any:
    class Callable_:
        def __call__(self, a: Any, b: Any = 2) -> Any:
            calls.append((a, b))
            return None if a is None else len(calls)

    return decorate(Callable_())


def an_async_callable_object(calls: list[Any], decorate: Any) -> Any:
    class Callable_:
        async def __call__(self, a: Any, b: Any = 2) -> Any:
            calls.append((a, b))
            return None if a is None else len(calls)

    return decorate(Callable_())


def a_wrapped_function(calls: list[Any], decorate: Any) -> Any:
    def fn(a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return decorate(wrapper)


def a_partial_of_an_async_function_in_a_plain_wrapper(calls: list[Any], decorate: Any) -> Any:
    return an_async_function_in_a_plain_wrapper(calls, lambda wrapper: decorate(functools.partial(wrapper)))


def an_async_function_in_a_plain_wrapper(calls: list[Any], decorate: Any) -> Any:
    async def fn(a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return decorate(wrapper)


def in_a_wrapt_wrapper(calls: list[Any], decorate: Any) -> Any:
    @wrapt.decorator
    def passing(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    @decorate
    @passing
    def fn(a: Any, b: Any = 2) -> Any:
        calls.append((a, b))
        return None if a is None else len(calls)

    return fn


def a_bound_method(calls: list[Any], decorate: Any) -> Any:
    class Owner:
        def method(self, a: Any, b: Any = 2) -> Any:
            calls.append((a, b))
            return None if a is None else len(calls)

    return decorate(Owner().method)


SYNC = (a_def, a_lambda, a_partial, a_callable_object, a_wrapped_function, in_a_wrapt_wrapper, a_bound_method)
ASYNC = (
    *(an_async_def, an_async_partial, an_async_callable_object, an_async_function_in_a_plain_wrapper),
    a_partial_of_an_async_function_in_a_plain_wrapper,
)


@pytest.fixture(params=[*SYNC, *ASYNC], ids=lambda make: make.__name__)
def both(request: pytest.FixtureRequest) -> Any:
    made = Both(request.param, request.param in ASYNC)
    yield made
    if made.loop is not None:
        made.loop.close()


def test_bare(both: Both) -> None:
    fn = both()
    assert both.run(fn(1)) == both.run(fn(a=1)) == both.run(fn(1, 2)) == both.run(fn(b=2, a=1)) == 1
    assert both.run(fn(2)) == 2
    assert both.calls == [(1, 2), (2, 2)]
    assert type(fn.store) is MemoryStore


def test_with_options(both: Both, clock: ManualClock) -> None:
    store = MemoryStore(clock=clock)
    fn = both(ttl=10, store=store, cache_none=True)
    assert both.run(fn(None)) is None
    assert both.run(fn(None)) is None
    assert len(both.calls) == 1
    assert both.run(fn.ttl_left(None)) == 10
    clock.advance(9.5)
    assert both.run(fn.ttl_left(None)) == 0.5
    clock.advance(0.5)
    assert both.run(fn.ttl_left(None)) is None
    assert both.run(fn(None)) is None
    assert len(both.calls) == 2
    assert fn.store is store


def test_invalidate_forgets_one_call(both: Both) -> None:
    fn = both()
    both.run(fn(1))
    both.run(fn(2))
    assert both.run(fn.invalidate(b=2, a=1)) is True
    assert both.run(fn.invalidate(1)) is False
    assert both.run(fn(1)) == 3
    assert both.run(fn(2)) == 2


def test_invalidate_all_forgets_every_call(both: Both) -> None:
    fn = both()
    both.run(fn(1))
    both.run(fn([2]))
    assert both.run(fn.invalidate_all()) is None
    assert len(fn.store) == 0
    assert both.run(fn(1)) == 3
    assert both.run(fn([2])) == 4


def test_refresh_calls_and_stores(both: Both) -> None:
    fn = both()
    assert both.run(fn.refresh(1)) == 1
    assert both.run(fn(1)) == 1
    assert both.run(fn.refresh(a=1)) == 2
    assert both.run(fn(1)) == 2


def test_peek_calls_nothing_and_counts_nothing(both: Both) -> None:
    fn = both()
    assert both.run(fn.peek(1)) is MISSING
    both.run(fn(1))
    assert both.run(fn.peek(1)) == 1
    assert len(both.calls) == 1
    assert (fn.stats().hits, fn.stats().misses) == (0, 1)


def test_set_stores_for_the_time_of_the_options(both: Both, clock: ManualClock) -> None:
    fn = both(ttl=timedelta(seconds=5), store=MemoryStore(clock=clock))
    assert both.run(fn.set("given", 1)) is None
    assert both.run(fn(1)) == "given"
    assert both.calls == []
    clock.advance(5)
    assert both.run(fn(1)) == 1


def test_what_the_options_do_not_keep_cannot_be_set(both: Both) -> None:
    fn = both(cache_if=lambda value: value > 0)
    for value in (None, -1):
        with pytest.raises(OptionError, match=r"fn.*|Callable_.*|lambda.*|method.*"):
            both.run(fn.set(value, 1))
    assert both.run(fn.peek(1)) is MISSING


def test_ttl_left(both: Both) -> None:
    fn = both(ttl=None)
    assert both.run(fn.ttl_left(1)) is None
    both.run(fn(1))
    assert both.run(fn.ttl_left(1)) == math.inf


def test_key_for_is_the_key_in_the_store(both: Both) -> None:
    fn = both()
    for argument in (1, "x", [1, 2], "k" * 300, 0.0):
        both.run(fn(argument))
    keys = {fn.key_for(argument): argument for argument in (1, "x", "k" * 300, 0.0)} | {fn.key_for([1, 2]): None}
    assert set(fn.store.keys()) == set(keys)
    assert all(both.run(fn.peek([1, 2] if arg is None else arg)) == fn.store.get(key) for key, arg in keys.items())


def test_entries_are_the_stores_entries(both: Both) -> None:
    """Read, found, deleted and matched by their key's text like any other."""
    store = MemoryStore()
    fn = both(store=store)
    key = fn.key_for(1)
    both.run(fn(1))
    assert store.get(key) == 1
    assert store.exists(key)
    assert store.ttl(key) == math.inf
    assert store.keys(f"{escape_pattern(key[:-3])}*") == [key]
    assert store.get_many([key]) == {key: 1}
    assert store.delete(key) is True
    assert store.delete(key) is False
    assert both.run(fn(1)) == 2
    assert store.delete_pattern(escape_pattern(key)) == 1
    assert both.run(fn(1)) == 3
    assert store.delete_many([key]) == 1
    both.run(fn(1))
    store.clear()
    assert both.run(fn(1)) == 5


def test_a_plain_value_at_the_key_is_no_result_of_the_function(both: Both) -> None:
    store = MemoryStore()
    fn = both(store=store)
    store.set(fn.key_for(1), "foreign")
    assert both.run(fn(1)) == 1


def test_stats(both: Both) -> None:
    fn = both()
    for argument in (1, 1, 2, None, None):
        both.run(fn(argument))
    stats = fn.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.uncached) == (1, 4, 4, 2)
    assert fn.stats() == stats


def test_an_error_of_the_function_is_raised_and_not_kept(both: Both) -> None:
    class Broken(Exception):
        pass

    store = MemoryStore()

    def raising(a: Any) -> Any:
        both.calls.append(a)
        raise Broken(a)

    async def araising(a: Any) -> Any:
        raising(a)

    fn: Any = cache_aside(store=store)(araising if both.asynchronous else raising)
    for _ in range(2):
        with pytest.raises(Broken):
            both.run(fn(1))
        with pytest.raises(Broken):
            both.run(fn.refresh(1))
    assert len(both.calls) == 4
    assert len(store) == 0


def test_every_helper_binds_as_the_call_does(both: Both) -> None:
    fn = both()
    helpers = [fn, fn.invalidate, fn.refresh, fn.peek, functools.partial(fn.set, "value"), fn.key_for, fn.ttl_left]
    for helper in helpers:
        for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1})]:
            with pytest.raises(TypeError, match=r"\(\) (missing|takes|got)"):
                both.run(helper(*args, **kwargs))


def test_a_null_store_keeps_nothing(both: Both) -> None:
    fn = both(store=NullStore())
    assert both.run(fn(1)) == 1
    assert both.run(fn(1)) == 2
    assert both.run(fn.peek(1)) is MISSING
    assert both.run(fn.set("x", 1)) is None
    assert both.run(fn.invalidate(1)) is False
    assert both.run(fn.invalidate_all()) is None
    assert both.run(fn.refresh(1)) == 3
    assert both.run(fn.ttl_left(1)) is None
    assert fn.key_for(1).partition("(")[2].startswith("1,2")


def test_closures_and_definitions_of_one_name_do_not_share() -> None:
    def make(factor: int) -> Any:
        @cache_aside
        def times(a: int) -> int:
            return a * factor

        return times

    two, three = make(2), make(3)
    assert two.key_for(1) == three.key_for(1)
    assert (two(5), three(5), two(5), three(5)) == (10, 15, 10, 15)
    two.invalidate(5)
    assert three.peek(5) == 15


def test_a_function_decorated_twice_has_two_tables() -> None:
    calls = []

    def fn(a: int) -> int:
        calls.append(a)
        return a

    one, two = cache_aside(fn), cache_aside(fn)
    one(1)
    two(1)
    assert calls == [1, 1]
    one.invalidate(1)
    assert two.peek(1) == 1


def test_stacked_decorators_each_have_their_own_entries() -> None:
    calls = []
    outer, inner = MemoryStore(), MemoryStore()

    @cache_aside(store=outer)
    @cache_aside(store=inner)
    def fn(a: int) -> int:
        calls.append(a)
        return a

    assert fn(1) == fn(1) == 1
    assert calls == [1]
    assert len(outer) == len(inner) == 1
    fn.invalidate(1)
    assert len(outer) == 0
    assert fn(1) == 1
    assert calls == [1]
    fn.__wrapped__.invalidate(1)
    fn.invalidate(1)
    assert fn(1) == 1
    assert calls == [1, 1]


def test_parameters_may_have_any_name() -> None:
    """Controls are helpers, so no keyword argument is ever eaten."""

    @cache_aside
    def fn(
        self: Any, wrapped: Any, args: Any = 3, kwargs: Any = 4, value: Any = 5, function: Any = 6, ttl: Any = 7
    ) -> Any:
        return self, wrapped, args, kwargs, value, function, ttl

    expected = (1, 2, 3, 4, 5, 6, 8)
    assert fn(self=1, wrapped=2, ttl=8) == expected
    assert fn.peek(self=1, wrapped=2, ttl=8) == expected
    assert fn.invalidate(self=1, wrapped=2, ttl=8)
    fn.set("given", self=1, wrapped=2, value=5, function=6)
    assert fn(1, 2) == "given"
    assert fn.refresh(self=1, wrapped=2) == (1, 2, 3, 4, 5, 6, 7)
    assert fn.ttl_left(self=1, wrapped=2) == math.inf
    assert fn.key_for(self=1, wrapped=2).endswith("fn(1,2,3,4,5,6,7)")


def test_a_function_without_parameters() -> None:
    calls = []

    @cache_aside
    def fn() -> int:
        calls.append(1)
        return len(calls)

    assert fn() == fn() == 1
    assert fn.key_for().endswith("fn()")
    assert fn.store.get(fn.key_for()) == 1
    assert fn.invalidate()
    assert fn() == 2


def test_a_builtin_can_be_cached() -> None:
    length: Any = cache_aside(len)
    assert length("abc") == length("abc") == 3
    assert length.stats().hits == 1
    assert length.key_for("abc") == "builtins.len('abc')"


def test_a_ttl_of_the_result() -> None:
    clock = ManualClock()

    @cache_aside(ttl=lambda result: result, store=MemoryStore(default_ttl=7, clock=clock))
    def fn(a: Any) -> Any:
        return a

    for result, left in [(5, 5), (0, None), (-1, None), (DEFAULT, 7), (timedelta(seconds=3), 3)]:
        fn(result) if result is not DEFAULT else fn.set(DEFAULT, "default")
        assert fn.ttl_left(result if result is not DEFAULT else "default") == left


def test_single_flight_off() -> None:
    @cache_aside(single_flight=None)
    def fn(a: int) -> int:
        if a not in seen:
            seen.append(a)
            fn(a)  # with single flight this would be a call that waits for itself
        return a

    seen: list[int] = []
    assert fn(1) == 1


def test_a_helper_may_come_before_the_first_call() -> None:
    for helper in ("invalidate", "peek", "refresh", "key_for", "ttl_left"):
        getattr(cache_aside(lambda a: a), helper)(1)
    fn: Any = cache_aside(lambda a: a)
    fn.invalidate_all()
    fn = cache_aside(lambda a: a)
    fn.set("given", 1)
    assert fn(1) == "given"
    assert cache_aside(lambda a: a).stats().hits == 0
    assert type(cache_aside(lambda a: a).store) is MemoryStore


def test_attributes_of_the_function_are_the_wrappers() -> None:
    fn: Any = cache_aside(lambda a: a)
    fn.owner = "me"
    assert fn.owner == fn.__wrapped__.owner == "me"


async def test_an_async_hit_awaits_nothing_but_itself() -> None:
    @cache_aside
    async def fn(a: Any) -> Any:
        return a

    await fn(1)
    await fn([1])
    for argument in (1, [1]):
        coroutine = fn(argument)
        with pytest.raises(StopIteration) as stop:
            coroutine.send(None)
        assert stop.value.value == argument


async def test_a_coroutine_from_a_plain_function_is_an_error_that_says_so() -> None:
    async def inner() -> int:
        return 1

    fn: Any = cache_aside(lambda a: inner())
    with pytest.raises(TypeError, match="can be used only once"):
        fn(1)
    assert fn.peek(1) is MISSING


def test_the_default_store_is_one_for_all_functions() -> None:
    one: Any = cache_aside(lambda a: a)
    two: Any = cache_aside(lambda a: a)
    assert one.store is two.store
    assert one.store is not cache_aside(store="memory://?max_size=5")(lambda a: a).store


# -- moments -----------------------------------------------------------------------------------------------------------


def test_a_function_that_another_thread_attached_meanwhile_is_not_attached_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the look without the lock and the look with it."""
    fn: Any = cache_aside(store=MemoryStore())(lambda a: object())
    results = []
    lock = places._lock

    class Lock:
        def __enter__(self) -> None:
            monkeypatch.setattr(places, "_lock", lock)
            results.append(fn(1))

        def __exit__(self, *exc: object) -> None: ...

    monkeypatch.setattr(places, "_lock", Lock())
    assert fn(1) is results[0]


def test_a_call_that_comes_while_the_function_is_being_attached() -> None:
    """Generated code is in place before the function knows its space: what that code leaves over must wait for it."""
    fn: Any = cache_aside(store=MemoryStore())(lambda a: a)
    memoized = fn._self_memoized
    state = vars(memoized)

    class Attaching(type(memoized)):  # type: ignore[misc]
        @property
        def space(self) -> Any:
            seen = state.get("_space")
            if seen is None and not state.get("entered"):
                state["entered"] = True
                self.attached()  # another thread, right after our reading
            return seen

        @space.setter
        def space(self, value: Any) -> None:
            state["_space"] = value

    del state["space"]
    memoized.__class__ = Attaching
    assert memoized.miss(False, (1,), None, 1) == 1
    assert fn.peek(1) == 1


def test_a_read_that_fails_is_no_failure_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    fn: Any = cache_aside(store=MemoryStore())(lambda a: a)
    fn([1])

    def failing(table: Any, key: Any) -> Any:
        raise OSError("unreadable")

    monkeypatch.setattr(type(fn._self_memoized.space), "read", failing)
    assert fn([1]) == [1]
    assert fn.stats().errors == {"read": 1}
